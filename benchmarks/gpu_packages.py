"""Prints what train.py needs beside torch and NumPy, with versions; for gpu_pack.sh."""

from importlib.metadata import requires, version

from packaging.requirements import Requirement

NEEDED = (
    "accelerate",
    "filelock",
    "matplotlib",
    "psutil",
    "safetensors",
    "tqdm",
    "tyro",
)
THERE = ("torch", "torchvision", "numpy")  # wherever a GPU is used


def needed_by(name: str, found: dict[str, str]) -> None:
    """Note a package, and all those that it needs, with their versions."""
    name = name.lower().replace("_", "-")
    if name in THERE or name in found:
        return
    found[name] = version(name)
    for line in requires(name) or []:
        requirement = Requirement(line)
        marker = requirement.marker
        if marker is None or marker.evaluate({"extra": ""}):
            needed_by(requirement.name, found)


def main() -> None:
    found: dict[str, str] = {}
    for name in NEEDED:
        needed_by(name, found)
    for name, number in found.items():
        print(f"{name}=={number}")


if __name__ == "__main__":
    main()
