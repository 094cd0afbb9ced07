"""The layers of the code, as docs/design.md draws them: imports go downwards only."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import REPOSITORY

PACKAGE = REPOSITORY / "mnist_dist"
# From the bottom. Packages of one layer may not import each other.
LAYERS = [
    ("core",),
    ("run", "task"),
    ("digits", "plots"),
    ("records",),
    ("report",),
    ("tools",),
]
HEIGHT = {package: height for height, layer in enumerate(LAYERS) for package in layer}


def imported_packages(module: Path) -> Iterator[str]:
    """The packages of this project that a module imports, wherever in it."""
    for node in ast.walk(ast.parse(module.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            first, _, rest = name.partition(".")
            if first == "mnist_dist":
                yield rest.partition(".")[0]


@pytest.mark.parametrize("package", HEIGHT)
def test_imports_go_downwards(package):
    modules = list((PACKAGE / package).rglob("*.py"))
    upwards = [
        (module.relative_to(PACKAGE).as_posix(), other)
        for module in modules
        for other in imported_packages(module)
        if other in HEIGHT and other != package and HEIGHT[other] >= HEIGHT[package]
    ]
    assert modules and not upwards


def test_every_package_has_a_layer():
    packages = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert packages - {"scripts"} == HEIGHT.keys()  # which finds the scripts at the top level
