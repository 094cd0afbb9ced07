"""The update that is the same at any number of processes, and the loop over an epoch of them."""

import math
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from time import perf_counter
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import gather
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from tqdm import tqdm

from .batches import Batch, GlobalBatches
from .errors import UserError
from .processes import FEW, all_or_none, exchange

Loss = Callable[[nn.Module, Batch], Tensor]


@dataclass
class Progress:
    """How far a training has come: with weights and optimizer, all that it needs to go on after a stop."""

    epoch: int = 0  # epochs completed
    step: int = 0  # updates made in the epoch in progress
    global_step: int = 0  # updates made
    loss_sum: float = 0.0  # over the terms of the epoch in progress whose losses were gathered
    terms: int = 0
    recent_sum: float = 0.0  # the same since `recent_loss` was last asked
    recent_terms: int = 0
    epoch_seconds: float = 0.0  # spent in the epoch in progress
    train_seconds: float = 0.0  # spent in the completed epochs


class Training:
    """A model in training on all processes. Nothing in it waits for the device but who asks for losses.

    Args:
        accelerator: the processes; its own gradient accumulation is to be off, as it is by default.
        model: the bare network, with the same weights on every process.
        optimizer: of its parameters, in one group or several, each with its own rate.
        loss: the model and a batch to a scalar, the *sum* over the terms (samples, tokens, pixels) of the batch's rows.

    `figures` of the last epoch: `train_loss` (mean over its terms at the time of their updates), `learning_rate` (last
    update, first group), `samples_per_second` (all processes).
    """

    def __init__(self, accelerator: Accelerator, model: nn.Module, optimizer: torch.optim.Optimizer, loss: Loss):
        refuse_layers_that_depend_on_sharing(model)
        self.accelerator, self.bare, self.loss = accelerator, model, loss
        self.rates = [group["lr"] for group in optimizer.param_groups]
        self.model, wrapper = accelerator.prepare(model, optimizer)
        parallel = getattr(self.model, "_orig_mod", self.model)  # what torch.compile compiles
        if 1 < accelerator.num_processes <= FEW and dist.get_backend() == "gloo":
            parallel.register_comm_hook(None, exchange)
        # Without fp16's scaler Accelerate's optimizer has nothing to add, and costs a fifth of an MLP's update.
        self.optimizer = wrapper if accelerator.scaler else optimizer
        self.progress, self.figures = Progress(), dict[str, float]()
        self.latest: list[tuple[Tensor, int | Tensor]] = []  # losses and terms of updates, not waited for
        self.begin = perf_counter()  # when the epoch in progress would have begun without a stop
        self.checked = self.epoch_is_complete = False
        self.last_checkpoint: Any = None  # its folder, for messages

    def epoch(self, batches: GlobalBatches, title: str = "training") -> Iterator[Batch]:
        """The batches of the epoch in progress, from where it stands, under a progress bar; each is for one update."""
        at = self.progress
        self.model.train()
        self.begin = perf_counter() - at.epoch_seconds
        done, off = at.step * batches.batch_size, None if self.accelerator.is_main_process else True  # None: ask
        with tqdm(
            desc=title, total=batches.samples, initial=done, unit=" samples", unit_scale=True, leave=False, disable=off
        ) as bar:
            for batch in batches.epoch(at.epoch, first=at.step):
                self.epoch_is_complete = at.step + 1 == len(batches)
                yield batch
                bar.update(batch.size)
        self.gather_losses()
        seconds = perf_counter() - self.begin
        figures = {"train_loss": at.loss_sum / max(at.terms, 1), "learning_rate": self.rate}
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
        if not self.model.training:
            self.model.train()
        if not self.checked:
            self.check_that_the_loss_is_a_sum(batch)
        scaler, world, losses = self.accelerator.scaler, self.accelerator.num_processes, []
        for number, part in enumerate(batch.split(pieces), 1):
            with nullcontext() if number == pieces else self.accelerator.no_sync(self.model):
                loss = self.loss(self.model, part)
                # DDP averages the gradients with equal weight for every process (pytorch #67253). Weighing the *sum* by
                # W / terms makes that average the mean over the terms of the global batch, however they are shared.
                # The weight has the dtype of the loss, not of the inputs, and no GPU waits for it to be copied.
                terms = part.terms  # which the loss may have set
                weight = loss.new_full((), world) / terms
                # What `accelerator.backward` does, but for a division by 1 that costs two operations on a scalar.
                (scaler.scale(loss) if scaler else loss).backward(gradient=weight)
            losses.append(loss.detach())
        if clip_norm:
            self.accelerator.clip_grad_norm_(self.model.parameters(), clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.latest.append((losses[0] if pieces == 1 else torch.stack(losses).sum(), terms))
        self.progress.step += 1
        self.progress.global_step += 1

    def recent_loss(self) -> float:
        """The mean loss over the terms of the updates since this was last asked."""
        self.gather_losses()
        mean = self.progress.recent_sum / max(self.progress.recent_terms, 1)
        self.progress.recent_sum, self.progress.recent_terms = 0.0, 0
        return mean

    def gather_losses(self) -> None:
        """Add up the losses of the latest updates over all processes; `UserError` at one, or a gradient, not finite."""
        if not self.latest:
            return
        losses, terms = zip(*self.latest, strict=True)
        # 0, or not a number if a weight is not finite: one sum a tensor is all this costs.
        weights = 0 * torch.stack([parameter.detach().sum() for parameter in self.bare.parameters()]).sum()
        mine = torch.stack([*losses, weights.to(losses[0].dtype)])
        *sums, unfit = gather(mine.unsqueeze(0)).cpu().double().sum(dim=0).tolist()  # in order of rank
        at, broken = self.progress, [number for number, loss in enumerate(sums) if not math.isfinite(loss)]
        if broken or not math.isfinite(unfit):
            # If only the weights show it, it was the last update: else the loss of the next one would.
            what = f"the gradient of update {at.global_step} is not finite"
            if broken:
                update = at.global_step - len(sums) + 1 + broken[0]
                what = f"the loss of update {update} is {sums[broken[0]]}, by itself or by the gradient before it"
            what += f"; the last good checkpoint is {self.last_checkpoint or 'none'}"
            raise UserError(f"{what}: try a lower learning rate, clipping, or another precision")
        at.terms, at.recent_terms = at.terms + int(sum(terms)), at.recent_terms + int(sum(terms))
        for loss in sums:  # one by one: the same bits however often they are gathered
            at.loss_sum, at.recent_sum = at.loss_sum + loss, at.recent_sum + loss
        self.latest.clear()

    @torch.no_grad()
    def check_that_the_loss_is_a_sum(self, batch: Batch) -> None:
        """Refuse a loss that is not the sum of those of the batch's halves: a mean, or one that draws at random."""
        self.checked = True
        with all_or_none():
            whole, *halves = (self.loss(self.bare, part) for part in (batch, *batch.split(2)))
            if whole.ndim:
                raise UserError(f"the loss has the shape {tuple(whole.shape)}: give its sum, a scalar")
            coarse = self.accelerator.mixed_precision != "no" or whole.dtype.itemsize < 4
            total, (one, other) = whole.item(), (half.item() for half in halves)
            # False if they are not finite: `gather_losses` names them.
            if len(batch.index) > 1 and abs(total - one - other) > (5e-2 if coarse else 1e-3) * (abs(one) + abs(other)):
                what = f"{total:.6g} for a batch, {one:.6g} + {other:.6g} for its halves"
                raise UserError(
                    f"the loss is no sum over samples ({what}): use reduction='sum', and batch.rand to draw"
                )

    def state_dict(self) -> dict[str, Any]:
        """All that must survive a stop; for every process to ask, for the losses are those of all."""
        self.gather_losses()
        if self.progress.step:
            self.progress.epoch_seconds = perf_counter() - self.begin
        scaler = self.accelerator.scaler
        state = {"progress": asdict(self.progress), "model": self.bare.state_dict()}
        return state | {"optimizer": self.optimizer.state_dict(), "scaler": scaler.state_dict() if scaler else None}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to where `state_dict` was asked for."""
        self.progress = Progress(**state["progress"])
        self.bare.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if state["scaler"] and self.accelerator.scaler:
            self.accelerator.scaler.load_state_dict(state["scaler"])


def refuse_layers_that_depend_on_sharing(model: nn.Module) -> None:
    """Refuse layers that compute over, or draw random numbers for, just the samples that a process holds."""
    for name, layer in model.named_modules():
        so = "a process's samples alone, so each number of processes would train another model"
        if isinstance(layer, _BatchNorm) or getattr(layer, "track_running_stats", False):
            raise UserError(f"{type(layer).__name__} {name} computes over {so}: use GroupNorm or LayerNorm")
        rate = layer.p if isinstance(layer, _DropoutNd) else 0.0
        rate = layer.dropout if isinstance(layer, nn.RNNBase | nn.MultiheadAttention) else rate
        if rate > 0:
            raise UserError(
                f"{type(layer).__name__} {name} draws for {so}: set it to 0, and use a mask from batch.rand"
            )
