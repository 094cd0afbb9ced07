"""The commands: `mnist-dist COMMAND`, or `python -m mnist_dist COMMAND` under any launcher."""

import mnist_dist.startup  # noqa: F401  # isort: skip  # first: see there
import importlib
import sys
from pathlib import Path
from typing import Any

from mnist_dist import __version__
from mnist_dist.run import launch
from mnist_dist.run.command_line import parse
from mnist_dist.scripts import SCRIPTS, load_script
from mnist_dist.usage import UsageError

COMMANDS = {
    "train": "train a classifier: train.py",
    "evaluate": "evaluate a trained model exactly: evaluate.py",
    "explore": "look at the data: sizes, statistics, class balance, pictures",
    "download": "fetch a data set beforehand, for machines without internet",
    "predict": "classify your own pictures of digits",
    "report": "a page that shows a run, or compares several, in one HTML file",
    "runs": "compare runs: settings, state, accuracy, seeds, learning curves",
    "tune": "search for settings, by accuracy on held-out samples",
    "export": "write a trained model in another format",
    "verify": "is this distributed set-up right?",
    "doctor": "what is wrong with your own distributed training, and where?",
}

# Commands whose words are followed by those of another program: they read them themselves.
FOLLOWED_BY_A_PROGRAM = ("doctor",)


def main() -> None:
    """Do what the command line asks for."""
    name, *words = sys.argv[1:] or ["--help"]
    if name in ("--help", "-h"):
        print(f"usage: {program()} COMMAND [FLAG...]     each has a --help of its own\n")
        print("\n".join(f"  {command:10} {what}" for command, what in COMMANDS.items()))
        return
    if name == "--version":
        print(f"mnist-dist {__version__}")
        return
    if name not in COMMANDS:
        raise UsageError(f"there is no command {name!r}: give one of {', '.join(COMMANDS)}")
    module, config_type = command(name)
    prog = f"{program()} {name}"
    if name in FOLLOWED_BY_A_PROGRAM:
        settings = module.read(words, prog)
    else:
        settings = parse(config_type, words, prog=prog)
    module.main(settings)


def command(name: str) -> tuple[Any, Any]:
    """Load the module of a command; no other command pays for what it imports.

    Args:
        name: one of `COMMANDS`.

    Returns:
        The module, whose `main` takes the settings, and the dataclass of these.
    """
    if name in SCRIPTS:
        script = load_script(name)
        return script, getattr(script, SCRIPTS[name])
    tool = importlib.import_module(f"mnist_dist.tools.{name}")
    if hasattr(tool, "__path__"):  # a package, whose other modules the command needs
        tool = importlib.import_module(f"mnist_dist.tools.{name}.command")
    return tool, tool.Config


def program() -> str:
    """Return what the user called: the console script, or this package as a module."""
    called = Path(sys.argv[0]).stem
    return "python -m mnist_dist" if called == "__main__" else called


def run() -> None:
    """Run a command and end the process; the console script calls this."""
    name = program()
    launch.run(main, "mnist_dist" if name == "python -m mnist_dist" else name)


if __name__ == "__main__":
    run()
