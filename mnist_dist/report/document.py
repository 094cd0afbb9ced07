"""One HTML file from the parts in `page/` and what they are to show."""

import base64
import hashlib
import html
import json
import re
from importlib import resources
from typing import Any

LARGEST = 2_000_000  # bytes of a page, so that it can be sent by mail
STYLE = "style.css"

# The kinds of pages: each is a file of that name and the scripts that it runs, in order.
SCRIPTS = {
    "run": ["dom", "charts", "network", "ink", "pen", "answer", "matrix", "sections", "run"],
    "comparison": ["dom", "charts", "comparison"],
}


def document(kind: str, title: str, content: dict[str, Any]) -> bytes:
    """Put a page together.

    The page may not load anything: its content security policy allows its own script and style,
    which it names by their digests, and pictures that are in the page itself.

    Args:
        kind: one of `SCRIPTS`.
        title: of the browser's window, as plain text.
        content: JSON values, which the page's script shows as plain text.

    Returns:
        The HTML file.

    Raises:
        ValueError: the content holds numbers that are not finite.
    """
    style = part(STYLE)
    script = "\n".join(part(f"{name}.js") for name in SCRIPTS[kind])
    policy = (
        f"default-src 'none'; script-src {digest(script)}; style-src {digest(style)}; "
        "img-src data: blob:; base-uri 'none'; form-action 'none'"
    )
    values = {
        "title": html.escape(as_text(title)),
        "policy": policy,
        "style": style,
        "data": as_data(content),
        "script": script,
    }
    # In one pass, so that a value is never taken for a place where another one belongs.
    page = re.sub(r"\{\{(\w+)\}\}", lambda place: values[place[1]], part(f"{kind}.html"))
    return page.encode()


def part(name: str) -> str:
    """Read a file of `page/`."""
    return (resources.files(__package__) / "page" / name).read_text(encoding="utf-8")


def digest(text: str) -> str:
    """Return the digest by which a content security policy names an inline script or style."""
    sha256 = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{base64.b64encode(sha256).decode()}'"


def as_data(content: dict[str, Any]) -> str:
    """Write JSON that can stand within a script element: nothing in it can end the element.

    Args:
        content: JSON values. Texts may hold anything.

    Returns:
        JSON in ASCII, without the characters that mean something in HTML.

    Raises:
        ValueError: it holds numbers that are not finite.
    """
    text = json.dumps(content, allow_nan=False, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def as_text(words: str) -> str:
    """Replace bytes of a path that are no UTF-8 by escapes."""
    return words.encode("utf-8", "backslashreplace").decode()
