"""Let pages link to files outside of `docs/`, as they do on a code host: mkdocs alone refuses such links.

The README is the first page. Pictures, pages and scripts that pages link to are put into the site, at their places in
the repository; a link to a folder becomes its name. A link to a file that does not exist ends the build.
"""

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

REPOSITORY = Path(__file__).parents[1]
DOCS = "docs"
HOME = "README.md"
LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s#:]+)(#[^)\s]*)?\)")
FENCE = re.compile(r"(^```.*?^```)", re.DOTALL | re.MULTILINE)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the README, the list of changes, and whatever pages link to."""
    waiting = [
        HOME,
        "CHANGELOG.md",
        *(f"{DOCS}/{file.src_uri}" for file in files.documentation_pages()),
    ]
    seen = set()
    while waiting:
        source = waiting.pop()
        if source in seen:
            continue
        seen.add(source)
        if not source.startswith(f"{DOCS}/"):
            files.append(
                File.generated(config, uri_in_site(source), abs_src_path=str(REPOSITORY / source))
            )
        if source.endswith(".md"):
            links = LINK.findall(FENCE.sub("", (REPOSITORY / source).read_text()))
            targets = [target_of(source, link) for _, _, link, _ in links]
            waiting += [target for target in targets if (REPOSITORY / target).is_file()]
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Point links to where their targets are in the site."""
    source = source_of(page.file.src_uri)
    parts = FENCE.split(markdown)
    parts[::2] = [LINK.sub(lambda found: rewritten(found, source), part) for part in parts[::2]]
    return "".join(parts)


def rewritten(found: re.Match[str], source: str) -> str:
    """The Markdown of a link in the site.

    Raises:
        PluginError: there is no such file.
    """
    exclamation, text, link, anchor = found.groups()
    target = target_of(source, link)
    if (REPOSITORY / target).is_dir():
        return text if text.startswith("`") else f"{text} (`{target}/`)"
    if not (REPOSITORY / target).is_file():
        raise PluginError(f"{source} links to {link}, which does not exist")
    here = posixpath.dirname(uri_in_site(source))
    relative = posixpath.relpath(uri_in_site(target), here or ".")
    return f"{exclamation}[{text}]({relative}{anchor or ''})"


def target_of(source: str, link: str) -> str:
    """The path in the repository of what a page there links to."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(source), link))


def uri_in_site(path: str) -> str:
    """The path in the site's sources of a file of the repository."""
    if path == HOME:
        return "index.md"
    return path.removeprefix(f"{DOCS}/")


def source_of(uri: str) -> str:
    """The path in the repository of a file of the site's sources."""
    if uri == "index.md":
        return HOME
    return f"{DOCS}/{uri}" if (REPOSITORY / DOCS / uri).exists() else uri
