"""The calls that a loop has to make: `backward` for every micro-batch, and an optimizer step for every update."""

from collections.abc import Callable, Iterable

from torch import nn

from .errors import UserError
from .optimizer import ExactOptimizer
from .sharing import MicroBatch, Sharing

BACKWARD_LEFT_OUT = (
    "accelerator.backward was not called for a micro-batch before the loader moved on to the next: "
    "call it for every micro-batch of an update, even for one without rows"
)


class LoopProtocol:
    """Notes the calls that a loop makes, and raises where they would not make an exact update.

    Args:
        sharing: the shares, and who works on which.
        micro_batches: pieces that each share is cut into.
    """

    def __init__(self, sharing: Sharing, micro_batches: int) -> None:
        self.sharing = sharing
        self.micro_batches = micro_batches
        self.backward_done: MicroBatch | None = None  # the last one that `backward` was called for
        # The last one after which an optimizer made its step.
        self.stepped: MicroBatch | None = None
        # Whether the update in progress has micro-batches without `backward`.
        self.left_out = False
        self.unused = False  # whether no optimizer has made its step of the last complete update

    @property
    def several_micro_batches(self) -> bool:
        """Whether a loader gives a global batch in several micro-batches."""
        return self.sharing.rounds > 1 or self.micro_batches > 1

    def begin_micro_batch(
        self, previous: MicroBatch | None, following: MicroBatch, *, in_progress: bool
    ) -> None:
        """Note that a loader moves on.

        Args:
            previous: the micro-batch before; None if there is none.
            following: the one about to be yielded.
            in_progress: whether `backward` was called for any micro-batch of the update.

        Raises:
            UserError: it was, but not for the previous one.
        """
        if previous is None or previous.loader != following.loader:
            self.left_out = False
            return
        left_out = self.backward_done is not previous
        if left_out and in_progress:
            raise UserError(BACKWARD_LEFT_OUT)
        self.left_out = not previous.closes_update and (left_out or self.left_out)

    def check_backward(
        self, micro_batch: MicroBatch, optimizers: list[ExactOptimizer], *, in_progress: bool
    ) -> None:
        """Check that `backward` may be called for a micro-batch now.

        Args:
            micro_batch: the current one.
            optimizers: all that were prepared.
            in_progress: whether it was called for any micro-batch of the update.

        Raises:
            UserError: the gradients would not be those of one whole update.
        """
        if self.left_out:
            raise UserError(BACKWARD_LEFT_OUT)
        is_second = self.backward_done is micro_batch
        if is_second and not micro_batch.closes_update:
            self.refuse_second_backward(len(optimizers))
        if self.unused and not in_progress and self.several_micro_batches:
            refuse_gradients_of_the_update_before(optimizers)

    def refuse_second_backward(self, optimizers: int) -> None:
        """Raise for a second `backward` on a micro-batch that is not the last one of its batch.

        Args:
            optimizers: how many there are.

        Raises:
            UserError: an optimizer step meant to come between the two passes could not be made.
        """
        if self.sharing.virtual:
            raise UserError(
                "accelerator.backward was called twice for one share of a batch (virtual_processes "
                f"{self.sharing.shares} on {self.sharing.world} processes): add the losses and call it once, or "
                "start as many processes as there are virtual ones"
            )
        if self.micro_batches > 1 and optimizers > 1:
            raise UserError(
                "accelerator.backward was called twice for one micro-batch, with no optimizer "
                f"step possible in between (micro_batches={self.micro_batches}): leave "
                "micro_batches at 1"
            )

    def note_backward(self, micro_batch: MicroBatch) -> None:
        """Note that `backward` was called for a micro-batch."""
        self.backward_done = micro_batch
        if micro_batch.closes_update:
            self.unused = True

    def check_step(
        self, micro_batch: MicroBatch | None, trained: Callable[[], Iterable[nn.Parameter]]
    ) -> None:
        """Check that an optimizer may make its step now.

        Args:
            micro_batch: the current one; None outside of a loop, where nothing is checked.
            trained: gives all parameters that take gradients.

        Raises:
            UserError: there are gradients that `backward` has neither weighted nor summed.
        """
        if micro_batch is None or self.backward_done is micro_batch:
            return
        if any(parameter.grad is not None for parameter in trained()):
            raise UserError(
                "optimizer.step found gradients, but accelerator.backward was not called for this batch: call "
                "accelerator.backward(loss) instead of loss.backward()"
            )

    def note_step(self, micro_batch: MicroBatch | None) -> bool:
        """Note that an optimizer has made its step.

        Returns:
            Whether it is the first one to do so in this update.
        """
        self.unused = False
        if micro_batch is None or self.stepped is micro_batch:
            return False
        self.stepped = micro_batch
        return True

    def has_stepped(self, micro_batch: MicroBatch | None) -> bool:
        """Whether an optimizer has made its step after this micro-batch."""
        return micro_batch is not None and self.stepped is micro_batch


def refuse_gradients_of_the_update_before(optimizers: list[ExactOptimizer]) -> None:
    """Raise if a loop accumulates by counting micro-batches, as their number depends on the processes.

    Raises:
        UserError: gradients of the previous update were neither used nor cleared.
    """
    kept = any(
        parameter.grad is not None
        for optimizer in optimizers
        for group in optimizer.param_groups
        for parameter in group["params"]
    )
    if kept:
        raise UserError(
            "the gradients of an update were neither used by optimizer.step nor cleared by "
            "zero_grad, as if the loop counted micro-batches itself, whose number depends on "
            "the number of processes: call optimizer.step for every micro-batch, do not "
            "divide the loss by the number of steps, and pass gradient_accumulation_steps to ExactAccelerator"
        )
