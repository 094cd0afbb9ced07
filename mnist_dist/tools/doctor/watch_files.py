"""Watches which files are written and read, by which line."""

import os
import sys
from pathlib import Path
from typing import Any

import torch

from mnist_dist.tools.doctor.patches import call_before
from mnist_dist.tools.doctor.places import place
from mnist_dist.tools.doctor.recorder import Recorder

# What every process may write: locks, devices, and the caches of libraries, which have locks.
IGNORED_ENDINGS = (".lock", ".pyc")
CHECKPOINTS = (".pt", ".pth", ".bin", ".ckpt", ".tar", ".pkl", ".safetensors")
IGNORED_PARTS = ("/dev/", "/proc/", "/.cache/", "/.config/", "/.triton/", "/.nv/")


class FileWatch:
    """Watches `torch.save`, and Python's `open` for writing.

    Args:
        recorder: of this process.
    """

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder

    def install(self) -> None:
        """Set the hooks."""
        call_before(torch, "save", self.recorder.quietly(self.saved))
        opened = self.recorder.quietly(self.opened)

        def audit(event: str, args: tuple[Any, ...]) -> None:
            if event == "open":
                opened(*args)

        sys.addaudithook(audit)

    def saved(self, value: Any, file: Any = None, *args: Any, **kwargs: Any) -> None:
        """Note a file that `torch.save` writes."""
        del value, args
        self.note(kwargs.get("f", file), self.recorder.record.saved)

    def opened(self, path: Any, mode: Any, flags: Any) -> None:
        """Note a file that is opened to be written anew, or a checkpoint that is read."""
        del flags
        if not isinstance(mode, str):
            return
        record = self.recorder.record
        if mode[:1] in ("w", "x"):
            self.note(path, record.saved)
        elif mode[:1] == "r" and record.made == 0 and is_checkpoint(path):
            self.note(path, record.loaded)

    def note(self, file: Any, files: dict[str, str]) -> None:
        """Note a file, unless it is one that every process may write.

        Args:
            file: its path, or something else.
            files: where to note it.
        """
        if not isinstance(file, str | os.PathLike):
            return
        path = str(Path(file).absolute())
        folder = f"{self.recorder.folder}{os.sep}"
        is_ignored = path.endswith(IGNORED_ENDINGS) or path.startswith(folder)
        if is_ignored or any(part in path for part in IGNORED_PARTS):
            return
        files.setdefault(path, place())


def is_checkpoint(path: Any) -> bool:
    """Return whether a file may be one of those from which a training is resumed, by its name."""
    return isinstance(path, str | os.PathLike) and os.fspath(path).endswith(CHECKPOINTS)
