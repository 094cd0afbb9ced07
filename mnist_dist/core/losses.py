"""The mean loss over all samples on all processes, and checks for a training run that has gone wrong."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from .accelerator import ExactAccelerator


class MeanLoss:
    """Averages the losses of updates over samples (or terms), the same at any number of processes.

    Nothing waits for the device until the mean is read. Pass it to
    `accelerator.register_for_checkpointing`, so that an epoch's mean survives a stop.

    Args:
        accelerator: the processes. Create one on each, and make the same calls on all of them.
    """

    def __init__(self, accelerator: "ExactAccelerator") -> None:
        self.accelerator = accelerator
        self.loss_sum = 0.0
        self.terms = 0.0
        self.recent_loss_sum = 0.0
        self.recent_terms = 0.0
        # This process's losses that have not been added up yet.
        self.pending: list[PendingLoss] = []
        accelerator.mean_losses.append(self)

    def update(self, loss: Tensor, terms: int | float | Tensor | None = None) -> None:
        """Note the loss of this micro-batch; nothing here waits for the device.

        Args:
            loss: a scalar, as it is given to `accelerator.backward`.
            terms: as they are given to it.
        """
        micro_batch = self.accelerator.micro_batch
        count = len(micro_batch) if terms is None else terms
        value = sum_of_terms(loss.detach(), count)
        if micro_batch.piece > 0:
            self.pending[-1].add(value, count, closes_update=micro_batch.closes_update)
            return
        update = self.accelerator.updates + 1  # of which this loss is a part
        size = micro_batch.size if terms is None else None
        self.pending.append(
            PendingLoss(
                loss=value,
                terms=count,
                share=micro_batch.share,
                opens_batch=micro_batch.opens_batch,
                closes_update=micro_batch.closes_update,
                size=size,
                update=update,
            )
        )

    def compute(self) -> float:
        """The mean over all samples since the last `reset`; every process must call this.

        Raises:
            UserError: on every process, if a loss is not finite or the processes' weights differ.
        """
        self.collect()
        return self.loss_sum / (self.terms or 1)

    def compute_recent(self) -> float:
        """The mean over the samples since the previous call; every process must call this.

        Raises:
            UserError: as `compute`.
        """
        self.collect()
        mean = self.recent_loss_sum / (self.recent_terms or 1)
        self.recent_loss_sum = 0.0
        self.recent_terms = 0.0
        return mean

    def reset(self) -> None:
        """Begin a new mean, with the next micro-batch."""
        self.collect()
        self.loss_sum = 0.0
        self.terms = 0.0

    def collect(self) -> None:
        """Add up the pending losses of all processes, and compare weights in the same communication.

        Raises:
            UserError: on every process, if a loss is not finite or the processes' weights differ.
        """
        complete = [number for number, item in enumerate(self.pending, 1) if item.closes_update]
        if not complete:
            return
        # Losses of an unfinished update stay pending, as a checkpoint covers only finished ones.
        pending, self.pending = self.pending[: complete[-1]], self.pending[complete[-1] :]
        opened = [item for item in pending if item.opens_batch]
        losses, norms = self.sum_over_shares(pending, len(opened), [item.loss for item in pending])
        for loss, item in zip(losses, opened, strict=True):
            if not math.isfinite(loss):
                raise self.accelerator.training_error(f"the loss of update {item.update} is {loss}")
        self.accelerator.check_weight_norms(norms)
        for loss in losses:  # one by one: the same bits however often they are collected
            self.loss_sum += loss
            self.recent_loss_sum += loss
        terms = self.terms_of(pending, opened)
        self.terms += terms
        self.recent_terms += terms

    def terms_of(self, pending: list["PendingLoss"], opened: list["PendingLoss"]) -> float:
        """The number of terms in the losses of these micro-batches, over all processes.

        Args:
            pending: the micro-batches of this process.
            opened: those of them that are the first of a global batch.
        """
        if all(item.size is not None for item in opened):
            return sum(item.size or 0 for item in opened)
        terms = [
            torch.as_tensor(item.terms, dtype=torch.float64, device=item.loss.device)
            for item in pending
        ]
        sums, _ = self.sum_over_shares(pending, len(opened), terms)
        return sum(sums)

    def sum_over_shares(
        self, pending: list["PendingLoss"], batches: int, values: list[Tensor]
    ) -> tuple[list[float], list[float]]:
        """Sum values of micro-batches over the shares of each global batch.

        Args:
            pending: the micro-batches.
            batches: global batches that they are of.
            values: one scalar for each.

        Returns:
            The sum for each global batch, and a norm of the weights for each share's process.
        """
        sharing = self.accelerator.sharing
        stacked = torch.stack(values)
        table = stacked.new_zeros(batches + 1, sharing.shares)
        places = []
        kept = []
        row = -1
        for number, item in enumerate(pending):
            row += 1 if item.opens_batch else 0
            if item.share is not None:
                places.append(row * sharing.shares + item.share)
                kept.append(number)
        mine = stacked.index_select(0, torch.tensor(kept).to(stacked.device))
        table.view(-1).index_copy_(0, torch.tensor(places).to(stacked.device), mine)
        table[-1, sharing.own_shares.start : sharing.own_shares.stop] = (
            self.accelerator.weight_norm().to(table.dtype)
        )
        # Each place has a number from one process and zeros from the others, so no sum here is
        # rounded.
        full = self.accelerator.reduce(table, "sum").cpu().double()
        return full[:-1].sum(dim=1).tolist(), full[-1].tolist()

    def state_dict(self) -> dict[str, Any]:
        """The sums so far, for a checkpoint; every process must ask."""
        self.collect()
        return {
            "loss_sum": self.loss_sum,
            "terms": self.terms,
            "recent_loss_sum": self.recent_loss_sum,
            "recent_terms": self.recent_terms,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with the sums of a checkpoint."""
        self.pending = []
        self.loss_sum = state["loss_sum"]
        self.terms = state["terms"]
        self.recent_loss_sum = state["recent_loss_sum"]
        self.recent_terms = state["recent_terms"]


def sum_of_terms(loss: Tensor, count: int | float | Tensor) -> Tensor:
    """The sum behind a mean: mean times count, or 0 if there are no terms and the mean is NaN."""
    if isinstance(count, Tensor):
        return torch.where(count != 0, loss * count, torch.zeros_like(loss))
    return loss * count if count else torch.zeros_like(loss)


@dataclass
class PendingLoss:
    """The loss of one micro-batch that has not been added up yet.

    Attributes:
        loss: the sum over its terms, a scalar on the device.
        terms: how many.
        share: its number; None if the process had no samples to work on.
        opens_batch: whether it is this process's first of a global batch.
        closes_update: whether it is this process's last of an update.
        size: number of terms in the global batch, if known without communication.
        update: the number of the update that it is a part of, from 1.
    """

    loss: Tensor
    terms: int | float | Tensor
    share: int | None
    opens_batch: bool
    closes_update: bool
    size: int | None
    update: int

    def add(self, loss: Tensor, terms: int | float | Tensor, *, closes_update: bool) -> None:
        """Add another piece of the same share."""
        self.closes_update = closes_update
        self.loss = self.loss + loss
        self.terms = self.terms + terms
