"""A check, once per epoch and without virtual processes, that no result depends on how batches are split."""

import torch
from torch import Tensor, nn

from .agreement import all_or_none
from .batch_norm import global_buffers, refuse_pieces
from .digests import same_bits
from .errors import UserError
from .randomness import GeneratorStates
from .refusals import refuse_layers_that_depend_on_sharing
from .row_means import why_not_mean_over_rows
from .row_pairs import COMPARES_ROWS, compares_rows
from .sharing import MicroBatch


class ForwardGuard:
    """Checks an epoch's first forward and backward pass for anything that depends on how batches are split.

    Args:
        device: this process's.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        # The loader and epoch that have been looked at.
        self.looked_at: tuple[int, int] | None = None
        # Those of the micro-batch whose backward passes are being looked at.
        self.looking_at: tuple[int, int] | None = None
        self.before: tuple[GeneratorStates, list[Tensor]] | None = None
        self.in_eval = False  # whether no layer is in training mode, so that there is no `before`
        self.about_loss = ""
        self.nested = False

    def begin_micro_batch(
        self, micro_batch: MicroBatch, models: list[nn.Module], *, nested: bool
    ) -> None:
        """Before a forward pass: record the state it must not change, unless this epoch has been checked.

        Args:
            micro_batch: the micro-batch about to be yielded.
            models: unwrapped.
            nested: whether its loop runs inside another one, whose rows a loss may be of.

        Raises:
            UserError: on every process, if a layer depends on which samples its process holds. Such
                a layer may fail on a process with a single sample, and leave the others waiting.
        """
        self.forget()
        self.nested = nested
        if self.looking_at is not None:
            self.looked_at = self.looking_at
            self.looking_at = None
        if self.looked_at == (micro_batch.loader, micro_batch.epoch):
            return
        if not any(layer.training for model in models for layer in model.modules()):
            self.in_eval = True
            return
        for model in models:
            refuse_layers_that_depend_on_sharing(model)
            if micro_batch.pieces > 1:
                refuse_pieces(model)
        buffers = [buffer.clone() for model in models for buffer in model.buffers()]
        self.before = GeneratorStates(self.device), buffers

    def forget(self) -> None:
        """Leave out the current micro-batch, because something else has run between its forward and backward pass."""
        self.before = None
        self.in_eval = False

    def is_due(self, micro_batch: MicroBatch) -> bool:
        """Whether the backward pass of this micro-batch is to be checked."""
        if self.looked_at == (micro_batch.loader, micro_batch.epoch):
            return False
        return self.before is not None or self.in_eval

    def look_at_loss(
        self, loss: Tensor, micro_batch: MicroBatch, terms: int | float | Tensor | None
    ) -> None:
        """Before a backward pass: look whether the loss is a mean over rows, unless this epoch has been checked.

        Of several backward passes it is the first one that counts: the others may be of something
        else than rows, such as a penalty.

        Args:
            loss: a scalar.
            micro_batch: of whose rows it is.
            terms: the number of terms that it averages over, if the user has given it.
        """
        self.about_loss = ""
        is_unclear = self.nested or terms is not None or self.looking_at is not None
        if self.is_due(micro_batch) and not is_unclear and len(micro_batch):
            self.about_loss = why_not_mean_over_rows(loss, len(micro_batch))
            if not self.about_loss and compares_rows(loss.grad_fn, len(micro_batch)):
                self.about_loss = COMPARES_ROWS

    def check(self, micro_batch: MicroBatch, models: list[nn.Module]) -> None:
        """After a backward pass; every process calls this.

        Raises:
            UserError: on every process, if a layer, the model or the loss depends on which samples
                its process holds, or the loss is not their mean.
        """
        if not self.is_due(micro_batch):
            return
        # A second backward pass of this micro-batch, as in a GAN, is looked at, too.
        self.looking_at = micro_batch.loader, micro_batch.epoch
        with all_or_none():
            for model in models:
                refuse_layers_that_depend_on_sharing(model)
            if self.about_loss:
                raise UserError(self.about_loss)
            if self.before is not None:
                generators, buffers = self.before
                refuse_draws(generators)
                refuse_changes(models, buffers)


def refuse_draws(generators: GeneratorStates) -> None:
    """Refuse random numbers that were drawn since the states of the generators were noted.

    Raises:
        UserError: names the generators.
    """
    drawn = generators.changed()
    if drawn:
        raise UserError(
            f"the model or loss draws random numbers ({' and '.join(drawn)}) for each process's "
            "own samples, so the trained model would depend on the number of processes: draw them "
            "with accelerator.micro_batch.rand, or pass virtual_processes to ExactAccelerator"
        )


def refuse_changes(models: list[nn.Module], before: list[Tensor]) -> None:
    """Raise if a buffer has changed.

    Args:
        models: the models that own the buffers.
        before: the earlier values of all buffers, in order.

    Raises:
        UserError: names the first one.
    """
    now = [(name, buffer) for model in models for name, buffer in model.named_buffers()]
    exact = {id(buffer) for model in models for buffer in global_buffers(model)}
    for (name, buffer), earlier in zip(now, before, strict=True):
        if id(buffer) not in exact and not same_bits(buffer, earlier):
            raise UserError(
                f"the model changes its buffer {name} based on each process's own samples, so the "
                "trained model would depend on the number of processes: do not change buffers in "
                "the forward pass, or pass virtual_processes to ExactAccelerator"
            )
