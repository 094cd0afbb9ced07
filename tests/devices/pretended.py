"""An accelerator that does not exist: its tensors hold their numbers on the CPU, and who uses them is watched.

    python tests/devices/pretended.py '[{"program": "train", "flags": [...], "float64": false, ...}, ...]' RESULT

runs train.py or evaluate.py on it, also under torchrun, and writes to RESULT-<rank>.json for each run
    waits: [place, operation, how often] for each place (file:function) where the host waited for the device;
    updates: [waits, operations of the device] of every update;
    error: what broke a rule of the device, or ended the program, or null.

The device has the rules of a GPU: an operation takes tensors of one device (beside them numbers, and scalars of the
CPU), and the host waits where it reads a value or copies anything from one device to the other. The numbers are those
of the CPU, so whole programs run, and end with its bits.
"""

import json
import os
import sys
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import Any
from unittest.mock import patch

import torch
from accelerate.state import AcceleratorState
from torch import Tensor
from torch.utils import _foreach_utils
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

sys.path.insert(0, str(Path(__file__).parents[2]))

import evaluate
import train
from mnist_dist.core import ExactAccelerator, UserError, connections, register_hook, sharing
from mnist_dist.plots import figures
from mnist_dist.run import launch, locks

ROOT, NAME = Path(__file__).resolve().parents[2], "pretended"
TRAINING = 0  # the number of the loader of the training data
# Once a process, and for good: torch.accelerator is this from now on.
_setup_privateuseone_for_python_backend(NAME)
# What gives the device no work: views, and memory.
FREE = set(
    "detach view alias expand slice select split split_with_sizes transpose t permute as_strided".split()
)
FREE |= set(
    "unsqueeze squeeze unbind _unsafe_view empty empty_like empty_strided new_empty new_empty_strided".split()
)
# What CUDA cannot do without telling the host something.
WAITING = set(
    "_local_scalar_dense equal nonzero masked_select bincount _unique2 unique_dim unique_consecutive".split()
)
WAITING |= {"repeat_interleave"}


class Pretended(Tensor):
    """A tensor on the device; `held` has its numbers."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> "Pretended":
        like: dict[str, Any] = {
            "strides": held.stride(),
            "storage_offset": held.storage_offset(),
            "dtype": held.dtype,
        }
        made = Tensor._make_wrapper_subclass(cls, held.shape, **like, device=torch.device(NAME, 0))
        made.held = held
        return made

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.cpu().__reduce_ex__(protocol)

    @classmethod
    def __torch_dispatch__(cls, function, types, words=(), options=None):  # type: ignore[override]
        raise AssertionError(f"{function} on a thread without the mode")


_foreach_utils._foreach_supported_types.append(Pretended)  # type: ignore[arg-type]  # as tensors of a GPU are


class Watch(TorchDispatchMode):
    """In it the device is there. `waits`: how often the host waited, by place and operation.

    Args:
        float64: whether the device has it; Apple's have not."""

    def __init__(self, float64: bool) -> None:
        super().__init__()
        self.float64, self.waits, self.operations = (
            float64,
            Counter[tuple[str, str]](),
            Counter[str](),
        )

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # to tell dynamo so would take seconds

    def __torch_dispatch__(self, function, types, words=(), options=None):
        name, options = function._schema.name.removeprefix("aten::"), dict(options or {})
        given = [each for each in tree_leaves((words, options)) if isinstance(each, Tensor)]
        here = [each for each in given if isinstance(each, Pretended)]
        others = [each for each in given if not isinstance(each, Pretended)]
        target = torch.device(options.get("device") or (NAME if here else "cpu"))
        if name == "copy_":
            target = words[0].device
        if not here and target.type != NAME:
            return function(*words, **options)
        if name in ("copy_", "_to_copy"):
            crosses = target.type != NAME or bool(others)
        else:
            assert not here or not any(each.ndim for each in others), (
                f"{function} takes tensors of two devices"
            )
            chosen = (
                words[1] if name in ("index", "index_put", "index_put_", "_index_put_impl_") else []
            )
            crosses = name in WAITING or any(
                each is not None and each.dtype == torch.bool for each in chosen
            )
        if crosses:
            self.waits[place(), name] += 1
        self.operations[name] += name.removesuffix("_") not in FREE
        if "device" in options and target.type == NAME:
            options["device"] = torch.device("cpu")
        words, options = tree_map_only(Pretended, lambda each: each.held, (words, options))
        results, same = function(*words, **options), {id(each.held): each for each in here}

        def wrapped(held: Tensor) -> Tensor:
            assert self.float64 or held.dtype != torch.float64, (
                f"{function} makes float64, which the device has not"
            )
            # The former after work in place.
            return same[id(held)] if id(held) in same else Pretended(held)

        return tree_map_only(Tensor, wrapped, results) if target.type == NAME else results


def place() -> str:
    """The innermost function of the project that is at work; a comprehension is its function's."""
    frame: FrameType | None = sys._getframe(1)
    package = (str(ROOT / "mnist_dist"), str(ROOT / "train.py"), str(ROOT / "evaluate.py"))
    while frame:
        name, code = Path(frame.f_code.co_filename), frame.f_code.co_name
        if str(name).startswith(package) and not code.startswith("<"):
            return f"{name.relative_to(ROOT).as_posix()}:{code}"
        frame = frame.f_back
    return "elsewhere"


class Updates:
    """Counts what each update of a training asks of the device: `found` has its waits and its operations.

    An update begins where the one before it ended, or where an epoch does.
    """

    def __init__(self, watch: Watch) -> None:
        self.watch = watch
        self.found: list[tuple[int, int]] = []
        self.begin = self.counts()
        self.epoch: int | None = None
        self.hooks = [
            register_hook("micro_batch", self.before),
            register_hook("update", self.after),
        ]

    def counts(self) -> tuple[int, int]:
        """Waits and operations so far."""
        return self.watch.waits.total(), self.watch.operations.total()

    def before(self, accelerator: ExactAccelerator) -> None:
        """A micro-batch is about to come."""
        micro_batch = accelerator.micro_batch
        if micro_batch.loader == TRAINING and micro_batch.epoch != self.epoch:
            self.epoch = micro_batch.epoch
            self.begin = self.counts()

    def after(self, _: ExactAccelerator) -> None:
        """The optimizer has made a step."""
        now = self.counts()
        self.found.append((now[0] - self.begin[0], now[1] - self.begin[1]))
        self.begin = now

    def end(self) -> None:
        """Count no longer."""
        for hook in self.hooks:
            hook.remove()


def run(
    program: str, flags: list[str], float64: bool = False, scaler: bool = False
) -> dict[str, Any]:
    """Run a program on the device, and return what it did there."""
    AcceleratorState._reset_state(reset_partial_state=True)
    watch, start = Watch(float64), launch.start

    def started(cpu: bool, *words: Any, **options: Any) -> Any:
        # Accelerate connects processes of a CPU alone by gloo, and makes a scaler for the devices alone that it knows.
        accelerator = start(cpu or "RANK" in os.environ, *words, **options)
        accelerator.scaler = torch.amp.GradScaler(NAME) if scaler else None
        return accelerator

    device = {} if "--cpu" in flags else {"ACCELERATE_TORCH_DEVICE": NAME}
    updates = Updates(watch)
    error = None
    sys.argv = [f"{program}.py", *flags]
    with patch.dict(os.environ, device), patch.object(launch, "start", started), watch:
        try:
            {"train": train, "evaluate": evaluate}[program].main()
        except (AssertionError, UserError) as broken:
            error = str(broken)
    updates.end()
    waits = [[*what, often] for what, often in sorted(watch.waits.items())]
    return {"waits": waits, "updates": updates.found, "error": error}


if __name__ == "__main__":
    generator_for = sharing.generator_for
    sharing.generator_for = lambda *words, device="cpu": generator_for(*words)  # noqa: ARG005  # generators of the CPU, for its numbers
    connections.FEW_PROCESSES = 0  # all-reduces, as on GPUs
    locks.lock = lambda folder: None  # noqa: ARG005  # a run may go on in the same process
    # Drawn, for what they read, but not written, which takes seconds.
    figures.save = lambda *_: None
    _, runs, result = sys.argv
    found = [run(**each) for each in json.loads(runs)]
    Path(f"{result}-{os.environ.get('RANK', 0)}.json").write_text(json.dumps(found))
