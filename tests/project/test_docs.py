"""What the pages in docs/ promise about the code; `mkdocs build --strict` in .ci/run checks their links."""

import re

from conftest import REPOSITORY

TROUBLESHOOTING = (REPOSITORY / "docs" / "troubleshooting.md").read_text()


def all_messages() -> str:
    """The source of all modules and batch scripts, with string literals that continue on the next line joined."""
    files = [*(REPOSITORY / "mnist_dist").rglob("*.py"), *(REPOSITORY / "slurm").iterdir()]
    sources = [path.read_text() for path in sorted(files)]
    joined = re.sub(r'"\s*\n\s*f?"', "", "\n".join(sources))
    joined = joined.replace("{so}", "each process's own samples")
    return joined.replace("{rank}", "…").replace("{have}", "has")


def test_messages_that_are_explained_are_those_of_the_code():
    source = all_messages()
    quoted = re.findall(
        r'"([^"]+)"', "\n".join(re.findall(r"^### (.*)$", TROUBLESHOOTING, re.MULTILINE))
    )
    parts = [
        part.strip(" ():")
        for message in quoted
        for part in re.split("…|differ between|differ$", message)
    ]
    missing = [part for part in parts if part and part not in source]
    assert len(quoted) > 40 and not missing


def test_no_page_speaks_of_a_flag_that_is_gone():
    pages = [path for path in (REPOSITORY / "docs").glob("*.md") if path.name != "design.md"]
    assert not [path.name for path in pages if "--cuda-graph" in path.read_text()]


def test_every_path_that_a_page_names_exists():
    pages = [REPOSITORY / "README.md", *(REPOSITORY / "docs").rglob("*.md")]
    # Some pages leave out the first folder.
    bases = [REPOSITORY, REPOSITORY / "tests", REPOSITORY / "mnist_dist"]
    # Not those that trainings leave in the repository, such as runs/.
    folders = {"benchmarks", "docs", "examples", "mnist_dist", "slurm", "tests"}
    folders |= {folder.name for base in bases[1:] for folder in base.iterdir() if folder.is_dir()}
    named = {
        (page.name, path)
        for page in pages
        for path in re.findall(r"`(\w+/[\w./-]*\w)`", page.read_text())
        if path.split("/")[0] in folders
    }
    missing = [
        (page, path) for page, path in named if not any((base / path).exists() for base in bases)
    ]
    assert len(named) > 50 and not missing


def test_the_map_of_the_core_has_every_module():
    page = (REPOSITORY / "docs" / "design.md").read_text()
    _, after = page.split("The modules of `core`")
    table, *_ = after.split("\n## ")
    modules = (REPOSITORY / "mnist_dist" / "core").glob("*.py")
    assert set(re.findall(r"`(\w+)`", table)) == {path.stem for path in modules} - {"__init__"}
