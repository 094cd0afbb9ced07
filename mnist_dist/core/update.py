"""The gradients of an update, from those of its micro-batches on all processes."""

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from .agreement import all_or_none
from .buffers import BufferMean
from .errors import UserError
from .exchange import GradientSum
from .sharing import MicroBatch, Sharing

Terms = int | float | Tensor | None


class UpdateGradients:
    """Adds up the gradients of an update, by `DistributedDataParallel` or by an exchange of our own.

    Args:
        sharing: the shares, and who works on which.
        device: this process's.
        ddp: whether models are wrapped in `DistributedDataParallel`.

    Attributes:
        buffers: averages the models' buffers together with the gradients; None without virtual
            processes.
    """

    def __init__(self, sharing: Sharing, device: torch.device, *, ddp: bool) -> None:
        self.sharing = sharing
        self.device = device
        self.ddp = ddp
        self.buffers: BufferMean | None = None
        self.sums: dict[tuple[int, ...], GradientSum] = {}
        # Gradients from before this update, not cleared by zero_grad.
        self.kept: list[Tensor | None] | None = None
        self.kept_of: list[nn.Parameter] = []  # the parameters whose gradients `kept` holds
        self.terms: Tensor | None = None  # counted in this update, under DDP
        self.counts_terms: bool | None = None  # in the update in progress, if it has begun
        self.wrappers: list[DistributedDataParallel] = []
        self.summed_by_ddp: set[int] = set()  # the identities of parameters
        self.nothing: EmptyMicroBatchGuard | None = None  # during a backward pass beside DDP
        # Under DDP, of the update in progress, hidden from the loop between its micro-batches.
        self.so_far: list[Tensor | None] = []

    def watch(self, wrapper: DistributedDataParallel) -> None:
        """Make a DDP wrapper sum gradients over processes instead of averaging them."""
        if any(wrapper is known for known in self.wrappers):
            return
        wrapper.register_comm_hook(self, sum_gradients)
        self.wrappers.append(wrapper)
        self.summed_by_ddp.update(id(each) for each in wrapper.parameters() if each.requires_grad)

    def begin_micro_batch(self, micro_batch: MicroBatch) -> None:
        """Let wrappers exchange gradients during the backward pass of an update's last micro-batch only."""
        for wrapper in self.wrappers:
            wrapper.require_backward_grad_sync = micro_batch.closes_update

    def add(self, micro_batch: MicroBatch, parameters: list[nn.Parameter], terms: Terms) -> None:
        """After a backward pass: add its gradients to those of the update.

        After the update's last micro-batch, `grad` holds the gradient of the mean loss over the
        whole update, plus any gradient that had not been cleared before it.

        Args:
            micro_batch: the micro-batch of the loss.
            parameters: all that take gradients, the same ones on every process.
            terms: what the loss was the mean over, if not over rows.

        Raises:
            UserError: some losses of the update were given terms, and others were not.
        """
        counts_terms = terms is not None
        if self.counts_terms not in (None, counts_terms):
            raise UserError(
                "accelerator.backward was given terms for only some losses of one update, so they "
                "cannot be weighted: give terms to every accelerator.backward of an update, or to "
                "none"
            )
        self.counts_terms = None if micro_batch.closes_update else counts_terms
        if self.ddp:
            self.after_ddp(micro_batch, parameters, terms)
        else:
            self.add_to_sum(micro_batch, parameters, terms)

    def set_aside(self, parameters: list[nn.Parameter]) -> None:
        """Before an update's first backward pass: set aside gradients that `zero_grad` has not cleared.

        They are already summed over all processes, and must not be summed again.
        """
        if self.kept is not None:
            return
        self.kept_of = parameters
        self.kept = [parameter.grad for parameter in parameters]
        for parameter in parameters:
            parameter.grad = None

    def begin_backward(
        self, micro_batch: MicroBatch, parameters: list[nn.Parameter], terms: Terms
    ) -> None:
        """Before a backward pass under DDP: make sure that an empty micro-batch adds no gradient.

        Without DDP, `take_gradients` does that afterwards. With DDP that would be too late, because
        it sums gradients over processes during the pass.
        """
        self.nothing = None
        if not self.ddp:
            return
        for parameter, gradient in zip(parameters, self.so_far, strict=False):
            parameter.grad = gradient
        self.so_far = []
        counts = is_of_something(micro_batch, terms)
        if counts is not True:
            self.nothing = EmptyMicroBatchGuard(parameters, counts)

    def refuse_lost_buffers(self) -> None:
        """Raise if buffers were changed by forward passes that no `accelerator.backward` followed.

        Every process must call this at the end of a loop.

        Raises:
            UserError: on every process; the changes of its shares are not those of the others.
        """
        if self.buffers is None or not self.buffers.before_update or self.kept is not None:
            return
        with all_or_none():
            name = self.buffers.changed_without_backward()
            if name:
                raise UserError(
                    f"the buffer {name} was changed in a loop without accelerator.backward, as in update_bn, and each "
                    "process has seen its own shares only: use a loader that accelerator.prepare was not given, or "
                    "call model.eval() first"
                )

    def abandon(self) -> None:
        """Discard an incomplete update, as if it had never begun."""
        if self.buffers is not None:
            self.buffers.abandon()
        if self.kept is None:
            return
        for parameter, kept in zip(self.kept_of, self.kept, strict=True):
            parameter.grad = kept
        self.kept = None
        self.so_far = []
        self.terms = None
        self.counts_terms = None
        for gradient_sum in self.sums.values():
            gradient_sum.sums = {}

    def add_kept(self, parameters: list[nn.Parameter]) -> None:
        """Add what `set_aside` has kept to the gradients of the update."""
        for parameter, kept in zip(parameters, self.kept or [], strict=False):
            if kept is not None:
                parameter.grad = kept if parameter.grad is None else kept + parameter.grad
        self.kept = None

    def add_to_sum(
        self, micro_batch: MicroBatch, parameters: list[nn.Parameter], terms: Terms
    ) -> None:
        """Add a micro-batch's gradients to the update's; after the last one, store their sum in `grad`."""
        found = take_gradients(parameters, keep=is_of_something(micro_batch, terms))
        changes = []
        if self.buffers is not None and self.buffers.floating:
            changes = self.buffers.changes(closes_share=micro_batch.piece == micro_batch.pieces - 1)
        counted = [] if terms is None else [self.as_number(terms, parameters)]
        gradient_sum = self.sum_for(parameters, changes, counted)
        gradient_sum.add(
            micro_batch.share, found + changes + counted, complete=micro_batch.completes_share
        )
        if not micro_batch.closes_update:
            return
        total = gradient_sum.total()
        gradients = total[: len(parameters)]
        if counted:
            divide(gradients, total[-1])
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        if self.buffers is not None:
            self.buffers.finish(total[len(parameters) : len(parameters) + len(changes)])
        self.add_kept(parameters)

    def as_number(self, terms: int | float | Tensor, parameters: list[nn.Parameter]) -> Tensor:
        """A number of terms as a scalar tensor: float32 (exact up to 16,777,216), or float64 like the weights."""
        precise = any(parameter.dtype == torch.float64 for parameter in parameters)
        return scalar(terms, torch.float64 if precise else torch.float32, self.device)

    def sum_for(
        self, parameters: list[nn.Parameter], changes: list[Tensor], counted: list[Tensor]
    ) -> GradientSum:
        """The cached `GradientSum` for these parameters; freezing or unfreezing layers makes another one."""
        key = len(changes), len(counted), *map(id, parameters)
        if key not in self.sums:
            self.sums[key] = GradientSum([*parameters, *changes, *counted], self.sharing)
        return self.sums[key]

    def after_ddp(
        self, micro_batch: MicroBatch, parameters: list[nn.Parameter], terms: Terms
    ) -> None:
        """`DistributedDataParallel` has summed the gradients if this was the update's last micro-batch."""
        if terms is not None:
            so_far = self.as_number(terms, parameters)
            self.terms = so_far if self.terms is None else self.terms + so_far
        nothing, self.nothing = self.nothing, None
        if not micro_batch.closes_update:
            if nothing is not None:
                nothing.restore_gradients(parameters)
            self.so_far = [parameter.grad for parameter in parameters]
            for parameter in parameters:
                parameter.grad = None
            return
        for parameter in parameters:
            if id(parameter) not in self.summed_by_ddp:  # it was frozen when its model was prepared
                if nothing is not None:
                    nothing.restore_gradients([parameter])
                parameter.grad = (
                    torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                )
                dist.all_reduce(parameter.grad)
        if self.terms is not None:
            dist.all_reduce(self.terms)
            gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
            divide(gradients, self.terms)
            self.terms = None
        self.add_kept(parameters)


class EmptyMicroBatchGuard:
    """Keeps the backward pass of an empty micro-batch, whose loss may be NaN, from changing gradients under DDP.

    The pass still runs as on the other processes, because layers may communicate during it.

    Args:
        parameters: their gradients, from earlier micro-batches of the update, are preserved.
        counts: False, or a tensor on the device that says whether the loss has any rows or terms.
    """

    def __init__(self, parameters: list[nn.Parameter], counts: bool | Tensor) -> None:
        self.counts = counts
        self.before = {id(parameter): copy_of(parameter.grad) for parameter in parameters}

    def restore_gradients(self, parameters: list[nn.Parameter]) -> None:
        """Give parameters the gradients from before the pass."""
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad = self.chosen(parameter, parameter.grad)

    def restore_in_bucket(self, bucket: dist.GradBucket) -> None:
        """Restore the gradients from before the pass in a DDP bucket, before it is sent."""
        buffer = bucket.buffer()
        if buffer.is_sparse:  # of one parameter
            buffer.copy_(self.chosen(bucket.parameters()[0], buffer))
            return
        for parameter, gradient in zip(bucket.parameters(), bucket.gradients(), strict=True):
            gradient.copy_(self.chosen(parameter, gradient))

    def chosen(self, parameter: Tensor, gradient: Tensor) -> Tensor:
        """The gradient from before the pass, or the new one where the loss counts after all."""
        before = self.before[id(parameter)]
        if before is None:
            before = torch.zeros_like(gradient)
        if isinstance(self.counts, Tensor) and not gradient.is_sparse:
            return torch.where(self.counts, gradient, before)
        return before


def copy_of(gradient: Tensor | None) -> Tensor | None:
    """A copy, or None if there is no gradient."""
    return None if gradient is None else gradient.clone()


def ddp_of(model: nn.Module) -> DistributedDataParallel | None:
    """The wrapper that a prepared model has, which may itself have been compiled."""
    inner = getattr(model, "_orig_mod", model)
    return inner if isinstance(inner, DistributedDataParallel) else None


def scalar(number: int | float | Tensor, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A number as a scalar on a device, without a wait for the device if it is not a tensor."""
    if isinstance(number, Tensor):
        return number.detach().to(device, dtype).reshape(())
    return torch.full((), number, dtype=dtype, device=device)


def is_of_something(micro_batch: MicroBatch, terms: Terms) -> bool | Tensor:
    """Whether a loss averages over at least one row or term; a tensor if that is known only on the device."""
    if len(micro_batch) == 0:
        return False
    if terms is None:
        return True
    found = terms != 0
    return found if isinstance(found, Tensor) and not found.is_cpu else bool(found)


def take_gradients(parameters: list[nn.Parameter], *, keep: bool | Tensor) -> list[Tensor]:
    """Move gradients out of the parameters: dense, in separate memory, and zeros where there is none.

    Args:
        parameters: the parameters; their `grad` is None afterwards.
        keep: whether to use the gradients; those of an empty mean are dropped, and may be NaN.
    """
    found = []
    for parameter in parameters:
        gradient = None if keep is False else parameter.grad
        dense = torch.zeros_like(parameter) if gradient is None else gradient.to_dense()
        found.append(torch.where(keep, dense, 0) if isinstance(keep, Tensor) else dense)
        parameter.grad = None
    # Autograd may give one gradient to two parameters that are added together. Clipping would then
    # change it twice.
    distinct = {gradient.untyped_storage()._cdata for gradient in found}
    if len(distinct) < len(found):
        found = [gradient.clone() for gradient in found]
    return found


def divide(gradients: list[Tensor], terms: Tensor) -> None:
    """Divide summed gradients in place by their number of terms; with no terms they are 0 and stay 0."""
    torch._foreach_div_(gradients, torch.where(terms == 0, torch.ones_like(terms), terms))


def sum_gradients(
    gradients: UpdateGradients, bucket: dist.GradBucket
) -> torch.futures.Future[Tensor]:
    """A communication hook for `DistributedDataParallel` that sums over processes, where DDP's own averages."""
    if gradients.nothing is not None:
        gradients.nothing.restore_in_bucket(bucket)
    buffer = bucket.buffer()
    # Gloo would call back from a thread of its own, which may outlive the interpreter.
    if buffer.is_cpu:
        dist.all_reduce(buffer)
        done: torch.futures.Future[Tensor] = torch.futures.Future()
        done.set_result(buffer)
        return done
    work = dist.all_reduce(buffer, async_op=True)
    return work.get_future().then(lambda future: future.value()[0])
