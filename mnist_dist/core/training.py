"""The update that is the same at any number of processes, the loop over an epoch of them, and exact evaluation."""

import hashlib
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from time import perf_counter
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import recursively_apply
from torch import Tensor, nn
from tqdm import tqdm

from .batches import Batch, GlobalBatches, Sharing
from .gradients import GradientSum
from .processes import UserError, all_or_none, same_everywhere

Loss = Callable[[nn.Module, Batch], Tensor]


@dataclass
class Progress:
    """How far a training has come: with weights and optimizer, all that it needs to go on after a stop."""

    epoch: int = 0  # epochs completed
    step: int = 0  # updates made in the epoch in progress
    global_step: int = 0  # updates made
    loss_sum: float = 0.0  # over the terms of the epoch in progress whose losses were gathered
    terms: float = 0.0
    recent_sum: float = 0.0  # the same since `recent_loss` was last asked
    recent_terms: float = 0.0
    epoch_seconds: float = 0.0  # spent in the epoch in progress
    train_seconds: float = 0.0  # spent in the completed epochs


class Training:
    """A model in training on all processes. Nothing waits for the device but who asks for losses, and fp16's scaler.

    Args:
        accelerator: the processes; its own gradient accumulation is to be off, as it is by default.
        model, optimizer: the bare network, the same everywhere, and of its parameters, in groups with their own rates.
        loss: the model and a batch to a scalar, the *sum* over the terms (samples, tokens, pixels) of its rows."""

    def __init__(self, accelerator: Accelerator, model: nn.Module, optimizer: torch.optim.Optimizer, loss: Loss):
        refuse_layers_that_depend_on_sharing(model)
        same_everywhere("the weights, not drawn from the same seed,", digest([*model.parameters(), *model.buffers()]))
        numbers = {id(each): number for number, each in enumerate(model.parameters())}
        self.order = [numbers.get(id(each), -1) for group in optimizer.param_groups for each in group["params"]]
        same_everywhere("the optimizer's parameters, by their numbers in the model,", self.order)
        if -1 in self.order:
            raise UserError("the optimizer has parameters that are not the model's: make them part of it, to be saved")
        self.accelerator, self.bare, self.loss = accelerator, model, loss
        self.rates = [group["lr"] for group in optimizer.param_groups]
        self.model = accelerator.prepare_model(model, evaluation_mode=True)  # without DistributedDataParallel
        # Without fp16's scaler Accelerate's optimizer has nothing to add, and costs a fifth of an MLP's update.
        self.optimizer = accelerator.prepare_optimizer(optimizer) if accelerator.scaler else optimizer
        self.gradients, self.known = GradientSum([], Sharing(1, 1, 0)), dict[Any, GradientSum]()  # until a batch comes
        self.progress, self.figures = Progress(), dict[str, float]()  # the latter of the last epoch, which sets them
        self.latest: list[tuple[list[Tensor], int | Tensor]] = []  # losses of shares, terms of updates; not waited for
        self.begin = perf_counter()  # when the epoch in progress would have begun without a stop
        self.checked = self.epoch_is_complete = False
        self.last_checkpoint: Any = None  # its folder, for messages
        scaler = {"scaler": accelerator.scaler} if accelerator.scaler else {}
        self.stateful = dict[str, Any](model=model, optimizer=self.optimizer, **scaler)

    def epoch(self, batches: GlobalBatches, title: str = "training") -> Iterator[Batch]:
        """The batches of the epoch in progress, from where it stands, under a progress bar; each is for one update."""
        at = self.progress
        refuse_layers_that_depend_on_sharing(self.bare)  # a rate may have changed
        self.model.train()
        self.begin = perf_counter() - at.epoch_seconds
        rest, off = batches.epoch(at.epoch, first=at.step), None if self.accelerator.is_main_process else True
        for batch in tqdm(rest, title, len(batches), initial=at.step, unit=" updates", leave=False, disable=off):
            self.epoch_is_complete = at.step + 1 == len(batches)
            yield batch
        self.gather_losses()
        seconds = perf_counter() - self.begin
        figures = {"train_loss": at.loss_sum / (at.terms or 1), "learning_rate": self.rate}
        self.figures = figures | {"samples_per_second": batches.samples / seconds}
        at.epoch, at.step, at.loss_sum, at.terms = at.epoch + 1, 0, 0.0, 0
        at.epoch_seconds, at.train_seconds = 0.0, at.train_seconds + seconds

    @property
    def rate(self) -> float:
        """The learning rate of the first group of parameters."""
        return self.optimizer.param_groups[0]["lr"]

    def set_rate(self, factor: float) -> None:
        """Let every group of parameters learn at its own rate times a factor, from the next update on."""
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * factor

    def update(self, batch: Batch, *, pieces: int = 1, clip_norm: float = 0.0) -> None:
        """Update the weights from a global batch, in `pieces` to save memory; limit the gradient's norm unless by 0."""
        if not self.checked:
            self.check_data_and_loss(batch)
        parameters = [each for group in self.optimizer.param_groups for each in group["params"] if each.requires_grad]
        key = batch.sharing, *map(id, parameters)
        self.gradients = self.known[key] = self.known.get(key) or GradientSum(parameters, batch.sharing)
        self.latest.append(self.work(batch, pieces, clip_norm))
        self.progress.step, self.progress.global_step = self.progress.step + 1, self.progress.global_step + 1

    def work(self, batch: Batch, pieces: int, clip_norm: float) -> tuple[list[Tensor], int | Tensor]:
        """What an update asks of the device. Returns the losses of the process's shares, and the terms of the batch."""
        parameters, scaler, losses = self.gradients.parameters, self.accelerator.scaler, list[Tensor]()
        shares = batch.split(batch.lengths) if len(batch.lengths) > 1 else [batch]
        for number, share in zip(batch.sharing.of(batch.sharing.rank), shares, strict=True):
            of_pieces = list[Tensor]()
            for part in share.split(pieces) if pieces > 1 else [share]:
                loss = self.loss(self.model, part)
                # The share's sum over the *global* batch's terms: summed over all shares this is the mean, however they
                # are shared (DDP weighs processes alike, pytorch #67253). In the dtype of the loss, not of the inputs.
                (scaler.scale(loss) if scaler else loss).backward(loss.new_ones(()) / (part.terms + (part.terms == 0)))
                of_pieces.append(loss.detach())
                self.gradients.take(number, last=len(of_pieces) >= pieces)
            losses.append(sum(of_pieces[1:], of_pieces[0]))
        self.gradients.finish()
        if clip_norm:
            self.accelerator.clip_grad_norm_(parameters, clip_norm)
        self.optimizer.step()
        for parameter in parameters:  # `zero_grad` takes 30 us for this
            parameter.grad = None
        return losses, part.terms  # which the loss may have set

    def recent_loss(self) -> float:
        """The mean loss over the terms of the updates since this was last asked."""
        self.gather_losses()
        mean = self.progress.recent_sum / (self.progress.recent_terms or 1)
        self.progress.recent_sum, self.progress.recent_terms = 0.0, 0
        return mean

    def gather_losses(self) -> None:
        """Add up the losses of the latest updates over all processes; `UserError` if they or the weights are wrong."""
        if not self.latest:
            return
        losses, terms = zip(*self.latest, strict=True)
        norm = torch.stack([torch.linalg.vector_norm(each.detach()) for each in self.gradients.parameters]).sum()
        sharing, held = self.gradients.sharing, self.gradients.sharing.of(self.gradients.sharing.rank)
        mine = torch.stack([loss for of_update in losses for loss in of_update]).view(len(losses), len(held))
        table = mine.new_zeros(len(losses) + 1, sharing.shares)
        table[:-1, held.start : held.stop], table[-1, held.start : held.stop] = mine, norm  # their sum is full
        sums, norms = (rows := self.accelerator.reduce(table, "sum").cpu().double())[:-1].sum(dim=1).tolist(), rows[-1]
        at, what, way = self.progress, "", "look for such numbers in the data, or try a lower learning rate or clipping"
        if norms.max() - norms.min() > 1e-5 * norms.max():  # it is 0, or rounding where processors differ
            what = f"processes no longer have the same weights after update {at.global_step}"
            way = "look for what changes weights or gradients on each process by itself"
        if not norms.isfinite().all():  # nor was a loss, unless this is of the last update
            what = f"the gradient of update {at.global_step} is not finite"
        for number in [number for number, loss in enumerate(sums) if not math.isfinite(loss)][:1]:
            what = f"the loss of update {at.global_step - len(sums) + 1 + number} is {sums[number]}"
        if what:
            raise UserError(f"{what}; the last good checkpoint is {self.last_checkpoint or 'none'}: {way}")
        at.terms, at.recent_terms = (number + float(sum(terms)) for number in (at.terms, at.recent_terms))
        for loss in sums:  # one by one: the same bits however often they are gathered
            at.loss_sum, at.recent_sum = at.loss_sum + loss, at.recent_sum + loss
        self.latest.clear()

    def check_data_and_loss(self, batch: Batch) -> None:
        """Refuse data that differ, a loss of the first samples that is not the sum of theirs, a model with a state."""
        some = recursively_apply(lambda tensor: digest([tensor[:: max(1, len(tensor) // 1000)]])[:12], batch.source)
        same_everywhere("the data, which every process is to hold whole and in the same order,", some)
        generators = torch.cuda if self.accelerator.device.type == "cuda" else torch
        self.checked, kept = True, [generators.get_rng_state(), *(buffer.clone() for buffer in self.bare.buffers())]
        parts = [*(few := batch.split(max(1, len(batch.index) // 2))[0]).split(1), *few.split(2)]
        with all_or_none():
            whole, one, other = (self.loss(self.bare, part).detach() for part in parts)
            if not all(map(torch.equal, kept, [generators.get_rng_state(), *self.bare.buffers()])):
                raise UserError("the model or loss draws at random or changes its buffers: use batch.rand, let them be")
            if whole.ndim:
                raise UserError(f"the loss has the shape {tuple(whole.shape)}: give its sum, a scalar")
            if len({float(part.terms) for part in parts}) > 1:
                raise UserError("the loss sets terms by its own rows: give GlobalBatches the terms of all samples")
            coarsest = min(each.itemsize for each in (whole, *self.bare.parameters()))
            rounding = {4: 1e-3, 8: 1e-9}.get(coarsest * (self.accelerator.mixed_precision == "no"), 5e-2)
            if abs(whole - one - other) > rounding * (abs(one) + abs(other)):  # not if NaN
                what = f"{whole:.6g} for samples that alone have {one:.6g} and {other:.6g}"
                raise UserError(f"the loss is no sum over samples ({what}): use reduction='sum', draw by batch.rand")

    def state_dict(self) -> dict[str, Any]:
        """All that must survive a stop; for every process to ask, for the losses are those of all."""
        self.gather_losses()
        self.progress.epoch_seconds = perf_counter() - self.begin if self.progress.step else 0.0
        return {name: part.state_dict() for name, part in self.stateful.items()} | {"progress": asdict(self.progress)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to where `state_dict` was asked for."""
        self.progress, self.latest = Progress(**state["progress"]), []
        for name, part in self.stateful.items():
            part.load_state_dict(state[name])


def digest(tensors: list[Tensor]) -> str:
    """Hexadecimal SHA-256 of the bytes of some tensors."""
    parts = [each.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes() for each in tensors]
    return hashlib.sha256(b"".join(parts)).hexdigest()


def refuse_layers_that_depend_on_sharing(model: nn.Module) -> None:
    """Refuse layers that compute over, or draw random numbers for, just the samples that a process holds."""
    so = "a process's samples alone, so each number of processes would train another model"
    for name, layer in model.named_modules():
        kind = f"{type(layer).__name__} {name}"
        if isinstance(layer, nn.modules.batchnorm._BatchNorm) or getattr(layer, "track_running_stats", False):
            raise UserError(f"{kind} computes over {so}: use GroupNorm or LayerNorm")
        rate = layer.p if isinstance(layer, nn.modules.dropout._DropoutNd) else 0.0
        if rate > 0 or (isinstance(layer, nn.RNNBase | nn.MultiheadAttention) and layer.dropout > 0):
            raise UserError(f"{kind} draws for {so}: set it to 0, and use a mask from batch.rand")
        if getattr(layer, "scale_grad_by_freq", False) or getattr(layer, "max_norm", None) is not None:
            raise UserError(f"{kind} counts or scales by {so}: leave out scale_grad_by_freq and max_norm")


@torch.no_grad()
def evaluate(accelerator: Accelerator, model: nn.Module, batches: GlobalBatches, ask: Callable[..., Tensor]) -> Tensor:
    """Ask about each of N samples once, every process about its shares: (N, ...) on the CPU, in the order of the data.
    `ask` makes (n, ...) of any dtype, such as logits, of the bare network, in eval mode meanwhile, and n samples."""
    # Accelerate's forward is in mixed precision, which is for training: the weights are evaluated as they are stored.
    modes, forward = [(layer, layer.training) for layer in model.modules()], model.__dict__.get("forward")
    model.__dict__.update({"forward": model._original_forward} if "_original_forward" in model.__dict__ else {})
    model.eval()
    found = [(share.index, ask(model, share)) for batch in batches.epoch() for share in batch.split(batch.lengths)]
    for layer, mode in modes:
        layer.training = mode
    model.__dict__.update({"forward": forward} if forward else {})
    index, outputs = (torch.cat(parts) for parts in zip(*found, strict=True))
    answers = outputs.new_zeros(batches.samples, *outputs.shape[1:]).index_copy(0, index, outputs)
    seen = accelerator.reduce(torch.bincount(index, minlength=batches.samples), "sum")
    bits = accelerator.reduce(answers.view(torch.uint8), "sum")
    if not bool((seen == 1).all()):
        raise RuntimeError(f"{int((seen != 1).sum())} of {len(seen)} samples were not counted exactly once")
    return bits.view(answers.dtype).cpu()
