"""The smaller commands, each a module of `tools` with its own settings: python -m mnist_dist COMMAND."""

import importlib
import sys

from mnist_dist.run import launch
from mnist_dist.run.command_line import parse
from mnist_dist.usage import UsageError

COMMANDS = {
    "explore": "look at the data: sizes, statistics, class balance, pictures",
    "download": "fetch a data set beforehand, for machines without internet",
    "predict": "classify your own pictures of digits",
    "runs": "compare runs: settings, state, accuracy, seeds, learning curves",
    "tune": "search for settings, by accuracy on held-out samples",
    "export": "write a trained model in another format",
    "verify": "is this distributed set-up right?",
}


def main() -> None:
    name, *words = sys.argv[1:] or ["--help"]
    if name in ("--help", "-h"):
        print("usage: python -m mnist_dist COMMAND [FLAG...]     each has a --help of its own\n")
        print("\n".join(f"  {command:10} {what}" for command, what in COMMANDS.items()))
        return
    if name not in COMMANDS:
        raise UsageError(f"there is no command {name!r}: give one of {', '.join(COMMANDS)}")
    tool = importlib.import_module(f"mnist_dist.tools.{name}")  # no other command pays for what this one imports
    tool.main(parse(tool.Config, words, prog=f"python -m mnist_dist {name}"))


if __name__ == "__main__":
    launch.run(main, "mnist_dist")
