"""An accelerator that does not exist: its tensors hold their numbers on the CPU, and who uses them is watched.

    python tests/pretended.py '[{"program": "train", "flags": [...], "float64": false, "scaler": false}, ...]' RESULT

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
from typing import Any
from unittest.mock import patch

import torch
from accelerate.state import AcceleratorState
from torch import Tensor
from torch.utils import _foreach_utils
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

sys.path.insert(0, str(Path(__file__).parents[1]))

import evaluate
import train
from mnist_dist.core import Training, UserError, batches, gradients
from mnist_dist.plots import figures
from mnist_dist.run import graphs, launch, locks

ROOT, NAME = Path(__file__).resolve().parents[1], "pretended"
_setup_privateuseone_for_python_backend(NAME)  # once a process, and for good: torch.accelerator is this from now on
# What gives the device no work: views, and memory.
FREE = set("detach view alias expand slice select split split_with_sizes transpose t permute as_strided".split())
FREE |= set("unsqueeze squeeze unbind _unsafe_view empty empty_like empty_strided new_empty new_empty_strided".split())
# What CUDA cannot do without telling the host something.
WAITING = set("_local_scalar_dense equal nonzero masked_select bincount _unique2 unique_dim unique_consecutive".split())
WAITING |= {"repeat_interleave"}


class Pretended(Tensor):
    """A tensor on the device; `held` has its numbers."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> "Pretended":
        like = {"strides": held.stride(), "storage_offset": held.storage_offset(), "dtype": held.dtype}
        made = Tensor._make_wrapper_subclass(cls, held.shape, **like, device=torch.device(NAME, 0))
        made.held = held
        return made

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.cpu().__reduce_ex__(protocol)

    @classmethod
    def __torch_dispatch__(cls, function, types, words=(), options=None):
        raise AssertionError(f"{function} on a thread without the mode")


WATCHES: list["Watch"] = []
_foreach_utils._foreach_supported_types.append(Pretended)  # as tensors of a GPU are


class Watch(TorchDispatchMode):
    """In it the device is there. `waits`: how often the host waited, by place and operation.

    Args:
        float64: whether the device has it; Apple's have not."""

    def __init__(self, float64: bool) -> None:
        super().__init__()
        self.float64, self.waits, self.operations = float64, Counter[tuple[str, str]](), Counter[str]()

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
            assert not here or not any(each.ndim for each in others), f"{function} takes tensors of two devices"
            chosen = words[1] if name in ("index", "index_put", "index_put_", "_index_put_impl_") else []
            crosses = name in WAITING or any(each is not None and each.dtype == torch.bool for each in chosen)
        if crosses:
            self.waits[place(), name] += 1
        self.operations[name] += name.removesuffix("_") not in FREE
        if "device" in options and target.type == NAME:
            options["device"] = torch.device("cpu")
        words, options = tree_map_only(Pretended, lambda each: each.held, (words, options))
        results, same = function(*words, **options), {id(each.held): each for each in here}

        def wrapped(held: Tensor) -> Tensor:
            assert self.float64 or held.dtype != torch.float64, f"{function} makes float64, which the device has not"
            return same[id(held)] if id(held) in same else Pretended(held)  # the former after work in place

        return tree_map_only(Tensor, wrapped, results) if target.type == NAME else results


class Tape(TorchDispatchMode):
    """Stands for a CUDA graph: it notes what the device is asked to do, and does that again with the same memory."""

    def __init__(self, watch: Watch) -> None:
        super().__init__()
        self.watch, self.steps, self.before = watch, [], dict[int, tuple[Any, Any]]()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

    def __torch_dispatch__(self, function, types, words=(), options=None):
        options, waits = options or {}, self.watch.waits.total()
        for argument, word in zip(function._schema.arguments, words, strict=False):
            if argument.alias_info and argument.alias_info.is_write:
                for tensor in tree_leaves(word):
                    memory = tensor.held.untyped_storage() if isinstance(tensor, Pretended) else None
                    if memory is not None and memory.data_ptr() not in self.before:
                        self.before[memory.data_ptr()] = memory, memory.clone()
        given = [each for each in tree_leaves((words, options)) if isinstance(each, Tensor)]
        apart = [isinstance(each, Pretended) for each in given]
        assert all(apart) or not any(apart), f"{function} takes a number from the host, which a graph would keep"
        made = function(*words, **options)
        assert self.watch.waits.total() == waits, f"{function} waits for the device while a graph is recorded"
        if any(isinstance(leaf, Pretended) for leaf in tree_leaves((words, options, made))):
            self.steps.append((function, words, options, made))
        return made

    def undo(self) -> None:
        """Nothing is computed while a graph is recorded."""
        for memory, content in self.before.values():
            memory.copy_(content)

    @torch.no_grad()
    def replay(self) -> None:
        counted = self.watch.operations.copy()
        for function, words, options, made in self.steps:
            for old, new in zip(tree_leaves(made), tree_leaves(function(*words, **options)), strict=True):
                if isinstance(new, torch.ScriptObject):  # a message
                    torch.distributed.Work.unbox(new).wait()
                if isinstance(old, Pretended) and old.held.data_ptr() != new.held.data_ptr():
                    old.held.copy_(new.held)
        self.watch.operations = counted + Counter(["a graph"])


class Recorder:
    """In place of `graphs.Recorder`."""

    def run(self, work):
        return work()

    def record(self, work):
        with Tape(WATCHES[-1]) as tape:
            made = work()
        tape.undo()
        return tape.replay, made


def place() -> str:
    """The innermost function of the project that is at work; a comprehension is its function's."""
    frame, package = sys._getframe(1), (str(ROOT / "mnist_dist"), str(ROOT / "train.py"), str(ROOT / "evaluate.py"))
    while frame:
        name, code = Path(frame.f_code.co_filename), frame.f_code.co_name
        if str(name).startswith(package) and not code.startswith("<"):
            return f"{name.relative_to(ROOT).as_posix()}:{code}"
        frame = frame.f_back
    return "elsewhere"


def run(program: str, flags: list[str], float64: bool = False, scaler: bool = False, eager: int = 1) -> dict[str, Any]:
    """Run a program on the device, and return what it did there.

    Args:
        eager: updates of each kind before the first that is a graph, if graphs are asked for.
    """
    AcceleratorState._reset_state(reset_partial_state=True)
    watch, updates, start, update = Watch(float64), [], launch.start, Training.update
    WATCHES.append(watch)

    def watched(*words: Any, **options: Any) -> None:
        before = watch.waits.total(), watch.operations.total()
        update(*words, **options)
        updates.append((watch.waits.total() - before[0], watch.operations.total() - before[1]))

    def started(cpu: bool, *words: Any, **options: Any) -> Any:
        # Accelerate connects processes of a CPU alone by gloo, and makes a scaler for the devices alone that it knows.
        accelerator = start(cpu or "RANK" in os.environ, *words, **options)
        accelerator.scaler = torch.amp.GradScaler(NAME) if scaler else None
        return accelerator

    device = {} if "--cpu" in flags else {"ACCELERATE_TORCH_DEVICE": NAME}
    patches = patch.object(Training, "update", watched), patch.object(launch, "start", started)
    with patch.dict(os.environ, device), patches[0], patches[1], patch.object(graphs, "EAGER", eager), watch:
        sys.argv, error = [f"{program}.py", *flags], None
        try:
            {"train": train, "evaluate": evaluate}[program].main()
        except (AssertionError, UserError) as broken:
            error = str(broken)
    waits = [[*what, often] for what, often in sorted(watch.waits.items())]
    return {"waits": waits, "updates": updates, "error": error}


if __name__ == "__main__":
    stream = batches.stream
    batches.stream = lambda *words, device="cpu": stream(*words)  # noqa: ARG005  # generators of the CPU, for its numbers
    gradients.GradientSum.FEW = 0  # all-reduces, as on GPUs
    graphs.Recorder, graphs.DEVICES = Recorder, (NAME,)
    locks.lock = lambda _: None  # a run may go on in the same process
    figures.save = lambda *_: None  # drawn, for what they read, but not written, which takes seconds
    _, runs, result = sys.argv
    found = [run(**each) for each in json.loads(runs)]
    Path(f"{result}-{os.environ.get('RANK', 0)}.json").write_text(json.dumps(found))
