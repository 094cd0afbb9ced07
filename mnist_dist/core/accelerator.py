"""`ExactAccelerator`: Accelerate's `Accelerator`, with the same training at any number of processes."""

import inspect
import math
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from accelerate import Accelerator
from accelerate.utils import extract_model_from_parallel, gather_object, recursively_apply
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader

from . import refusals, state
from .agreement import all_or_none, announce, check_same_across_processes
from .batch_norm import (
    GlobalBatchNorm,
    compute_over_the_global_batch,
    watch_for_single_values,
)
from .bits import make_deterministic
from .buffers import BufferMean
from .digests import digest
from .errors import UserError
from .gathering import gather_by_rank, gather_rows
from .guard import ForwardGuard
from .hooks import call_hooks
from .kernels import Kernels
from .launchers import refuse_a_process_of_several, refuse_unconnected
from .loader import ExactDataLoader
from .losses import MeanLoss
from .memory import keep_freed_memory
from .no_rows import StandIns
from .optimizer import ExactOptimizer, ExactScheduler
from .protocol import LoopProtocol
from .randomness import GeneratorStates, seed_generators, seed_of
from .sharing import MicroBatch, Sharing
from .steady import (
    SteadyUpdate,
    warn_of_counted_batches,
    warn_of_discarded_micro_batches,
)
from .update import UpdateGradients, ddp_of, scalar
from .waiting import watch


@dataclass(frozen=True)
class LoopState:
    """The state of a loop over a prepared loader, saved while a nested loop runs in its body.

    Attributes:
        micro_batch: its current micro-batch; None if there was no outer loop.
        loader: the loader that yielded it.
        sync_gradients: whether that micro-batch completes an update.
        generators: the states of the random generators; only with virtual processes.
    """

    micro_batch: MicroBatch | None
    loader: ExactDataLoader | None
    sync_gradients: bool
    generators: GeneratorStates | None


class ExactAccelerator(Accelerator):
    """An `Accelerator` whose training result does not depend on the number of processes.

    An ordinary Accelerate training loop needs no change except for the class. The differences:

    - `prepare(loader)`: `batch_size` is the global batch size. The rows of each global batch are
      split over the processes, and every sample is used exactly once per epoch. Random transforms
      in the data set depend only on the seed, the epoch and the sample.
    - `backward(loss)`: the loss must be the mean over the rows that the loader has just yielded. It
      is weighted by their fraction of the global batch, and gradients are summed over processes,
      not averaged.
    - The optimizer and the scheduler step once per update.
    - `gather_for_metrics` returns every row exactly once.
    - `save_state` and `load_state` cover the whole training state, including the position in each
      loader, as plain data; a run can be resumed on a different number of processes.

    Anything that cannot be made exact raises a `UserError`.

    Args:
        virtual_processes: V, the number of shares that each global batch is split into. Results are
            then bit-identical in float32 on 1 to V processes. Each process works through its shares
            in turn: the loader yields one share at a time, and `sync_gradients` is true for the
            last one. 0: one share per process; results then agree up to rounding.
        seed: seed for the sample order and all random numbers used in training. It does not affect
            the initial weights; call `set_seed` for those.
        micro_batches: number of pieces each share is split into, to save memory; they are processed
            one after the other.
        ddp: wrap models in `DistributedDataParallel` if there are several processes, so that
            gradients travel during the backward pass. None: on GPUs without virtual processes; on
            CPUs an exchange after it is faster.
        options: as for `Accelerator`. `gradient_accumulation_steps` is the number of global batches
            an update.

    Attributes:
        sharing: how the shares of a batch are assigned to processes.
        updates: number of updates made so far.
        last_checkpoint: folder of the checkpoint last written or read, for error messages.
        mean_losses: all `MeanLoss` objects created for this accelerator, in order.

    Raises:
        UserError: the configuration cannot be made exact, or there are more processes than shares.
    """

    def __init__(
        self,
        *arguments: Any,
        virtual_processes: int = 0,
        seed: int = 0,
        micro_batches: int = 1,
        ddp: bool | None = None,
        **options: Any,
    ) -> None:
        refusals.refuse_divided_models(
            inspect.signature(Accelerator).bind(*arguments, **options).arguments
        )
        environ = dict(os.environ)  # which Accelerate changes
        if not (environ.get("WORLD_SIZE") or environ.get("MASTER_ADDR")):
            refuse_a_process_of_several(environ)
        super().__init__(*arguments, **options)
        refusals.refuse_communication_hooks(self.ddp_handler)
        world = self.num_processes
        if world == 1:
            refuse_a_process_of_several(environ)
        refuse_unconnected(environ)
        if 0 < virtual_processes < world:
            raise UserError(
                f"{world} processes cannot share {virtual_processes} virtual processes: start at "
                f"most {virtual_processes}"
            )
        self.virtual_processes = virtual_processes
        self.seed = seed
        self.micro_batches = micro_batches
        self.sharing = Sharing(
            shares=virtual_processes or world,
            world=world,
            rank=self.process_index,
            virtual=virtual_processes > 0,
        )
        if self.device.type == "cpu":
            keep_freed_memory()
        on_gpus = self.device.type == "cuda"
        wanted = on_gpus if ddp is None else ddp
        self.ddp = wanted and world > 1 and not virtual_processes
        self.bits = make_deterministic(self.device) if virtual_processes else {}
        self.last_checkpoint: str | os.PathLike[str] | None = None
        self._forget_training()
        watch(self)

    def _forget_training(self) -> None:
        """Begin with no models, no updates and no loop in progress."""
        self.updates = 0
        self.mean_losses: list[MeanLoss] = []
        self.kernels = Kernels(self)
        self._micro_batch: MicroBatch | None = None
        self._loader: ExactDataLoader | None = None
        self._gradients = UpdateGradients(self.sharing, self.device, ddp=self.ddp)
        self._protocol = LoopProtocol(self.sharing, self.micro_batches)
        self._guard = ForwardGuard(self.device)
        self._steady = SteadyUpdate()
        self._stand_ins = StandIns()
        self._unwrapped_models: list[nn.Module] = []
        # Of all models and optimizers, by their identities.
        self._parameters: dict[int, nn.Parameter] = {}
        # The loader and epoch in which the parameters' gradient hooks were looked at.
        self._hooks_of: tuple[int, int] | None = None

    # -------------------------------------------------------------------------------------- prepare

    def prepare(self, *args: Any, device_placement: list[bool] | None = None) -> Any:
        """Prepare models, optimizers, loaders and schedulers, as `Accelerator.prepare`.

        Every process must pass the same objects, in the same order.

        Raises:
            UserError: on every process, if they differ or cannot be trained exactly.
        """
        with all_or_none():
            prepared = super().prepare(*args, device_placement=device_placement)
        for each in args:
            if isinstance(each, ExactDataLoader):  # Accelerate passes it on unseen
                self.prepare_data_loader(each)
        self._check_parameters()
        if self.sharing.virtual and self._models and self._dataloaders:
            self.kernels.compare()
        return prepared

    def prepare_data_loader(
        self,
        data_loader: "DataLoader | ExactDataLoader",
        device_placement: bool | None = None,
        slice_fn_for_dispatch: Any = None,
    ) -> ExactDataLoader:
        """Wrap a loader so that it yields this process's rows of each global batch.

        Raises:
            UserError: the loader cannot be split exactly.
        """
        if isinstance(data_loader, ExactDataLoader):
            prepared = data_loader
        else:
            prepared = ExactDataLoader(self, data_loader, number=len(self._dataloaders))
        if prepared not in self._dataloaders:
            self._dataloaders.append(prepared)
        return prepared

    def prepare_model(
        self, model: nn.Module, device_placement: bool | None = None, evaluation_mode: bool = False
    ) -> nn.Module:
        """Prepare a model as Accelerate does, but let its gradients be summed over processes, not averaged.

        Raises:
            UserError: it differs between processes, or cannot be trained exactly.
        """
        if self.sharing.virtual:
            watch_for_single_values(model, self.sharing.shares)
        else:
            self._compute_over_the_global_batch(model)
        refusals.refuse_layers_that_reach_beyond_a_share(model)
        wrap = self.ddp and not evaluation_mode
        check_same_across_processes(
            "the initial weights (was set_seed called before the model was built?)",
            digest([*model.parameters(), *model.buffers()]),
        )
        prepared = super().prepare_model(model, device_placement, evaluation_mode=not wrap)
        wrapper = ddp_of(prepared)
        if wrapper is not None:
            self._gradients.watch(wrapper)
        if self.num_processes > 1:  # on one process models have no such method in Accelerate either
            setattr(prepared, "no_sync", refusals.refuse_no_sync)  # noqa: B010  # not a module's own
        self._parameters = {}
        self._gradients.buffers = None
        return prepared

    def _compute_over_the_global_batch(self, model: nn.Module) -> None:
        """Make BatchNorm layers compute their statistics over all processes, and announce it once."""
        changed = compute_over_the_global_batch(model)
        if changed and self.num_processes > 1:
            layers = (
                "1 BatchNorm layer takes" if changed == 1 else f"{changed} BatchNorm layers take"
            )
            announce(f"{layers} statistics over the global batch, from all processes")

    def prepare_optimizer(
        self, optimizer: torch.optim.Optimizer, device_placement: bool | None = None
    ) -> ExactOptimizer:
        """Wrap an optimizer so that it steps once per update.

        Raises:
            UserError: it needs sparse gradients.
        """
        refusals.refuse_sparse_optimizers(optimizer)
        if not isinstance(optimizer, ExactOptimizer):
            placement = self.device_placement if device_placement is None else device_placement
            optimizer = ExactOptimizer(optimizer, self, device_placement=placement)
        if optimizer not in self._optimizers:
            self._optimizers.append(optimizer)
        return optimizer

    def prepare_scheduler(self, scheduler: LRScheduler) -> ExactScheduler:
        """Wrap a scheduler so that it steps once per update."""
        if not isinstance(scheduler, ExactScheduler):
            of_its_own = [
                each
                for each in self._optimizers
                if each.optimizer is getattr(scheduler, "optimizer", None)
            ]
            optimizers = of_its_own or self._optimizers
            scheduler = ExactScheduler(
                scheduler, optimizers, step_with_optimizer=self.step_scheduler_with_optimizer
            )
        if scheduler not in self._schedulers:
            self._schedulers.append(scheduler)
        return scheduler

    @property
    def unwrapped_models(self) -> list[nn.Module]:
        """The prepared models without wrappers, in the order in which they were prepared."""
        # Cached: unwrapping makes Accelerate search for packages.
        if len(self._unwrapped_models) != len(self._models):
            self._unwrapped_models = [
                extract_model_from_parallel(model, keep_torch_compile=False)
                for model in self._models
            ]
        return self._unwrapped_models

    def _check_parameters(self) -> None:
        """Check that the optimizers hold the models' parameters, in the same order on every process.

        Raises:
            UserError: an optimizer holds other parameters, or the orders differ.
        """
        if not (self._optimizers and self._models):
            return
        orders = refusals.parameter_indices(self.unwrapped_models, self._optimizers)
        check_same_across_processes(
            "the optimizer's parameters (as indices into the model's)", orders
        )

    def parameter_orders(self) -> list[list[int]]:
        """For each optimizer the numbers of its parameters among those of all models, in its order."""
        return refusals.parameter_indices(self.unwrapped_models, self._optimizers)

    # -------------------------------------------------------------------------------- micro-batches

    @property
    def micro_batch(self) -> MicroBatch:
        """The micro-batch that the loader has just yielded: which samples of which global batch.

        Raises:
            UserError: no loop over a prepared loader is running.
        """
        if self._micro_batch is None:
            raise UserError(
                "accelerator.micro_batch was used outside of a loop over a prepared loader: "
                "iterate over the loader that accelerator.prepare returned"
            )
        return self._micro_batch

    @property
    def update_is_in_progress(self) -> bool:
        """Whether gradients have been computed for an update that is not complete yet."""
        return self._gradients.kept is not None

    @property
    def gradients_are_complete(self) -> bool:
        """Whether the current micro-batch is the last one of its update; also if there is none."""
        return self._micro_batch is None or self._micro_batch.closes_update

    def begin_loop(self) -> LoopState:
        """Save the state of the current loop before a nested one begins; called by loaders."""
        nested_under_virtual = self._micro_batch is not None and self.sharing.virtual
        generators = GeneratorStates(self.device) if nested_under_virtual else None
        return LoopState(self._micro_batch, self._loader, self.sync_gradients, generators)

    def end_loop(self, outer: LoopState, loader: ExactDataLoader, epoch: int, given: int) -> None:
        """Restore the outer loop's state when a nested loop ends; called by loaders.

        If there was no outer loop, an update that was left incomplete is discarded.

        Args:
            outer: the state returned by `begin_loop`.
            loader: the loader whose loop has ended.
            epoch: the index of its epoch.
            given: the micro-batches that the loader has yielded in this loop.
        """
        self._micro_batch = outer.micro_batch
        GlobalBatchNorm.rows_are_shared = outer.micro_batch is not None
        self._loader = outer.loader
        self.sync_gradients = outer.sync_gradients
        self._guard.forget()  # draws in this loop are not part of the outer forward pass
        in_progress = outer.micro_batch
        self._stand_ins.begin_micro_batch(
            self.unwrapped_models, empty=in_progress is not None and len(in_progress) == 0
        )
        if outer.micro_batch is not None:
            self._gradients.begin_micro_batch(outer.micro_batch)
            if outer.generators is not None:
                outer.generators.restore()
            return
        was_left = sys.exc_info()[0] is GeneratorExit  # and did not end, or fail
        if was_left and self.several_micro_batches:
            self._warn_of_leaving(loader, given)
        if sys.is_finalizing():  # the program has ended and left the loop's iterator behind
            return
        if sys.exc_info()[0] is None:
            self._gradients.refuse_lost_buffers()
        self._gradients.abandon()
        if self.sharing.virtual:  # processes ended on different shares: reseed all alike
            seed_generators(seed_of("epoch", self.seed, loader.batches.number, epoch), self.device)

    def _warn_of_leaving(self, loader: ExactDataLoader, given: int) -> None:
        """Say what is wrong with the place where a loop was left, if anything is.

        Args:
            loader: the loader of the loop.
            given: the micro-batches that it has yielded in it; after one, the loop only had a look.
        """
        length = loader.length_if_known() or 1
        whole = length * self.sharing.rounds * self.micro_batches
        given_so_far = loader.micro_batches_given
        if 1 < given < whole and length > 1 and given_so_far % length == 0:
            warn_of_counted_batches(given_so_far, length, self.updates)
        elif self.update_is_in_progress:
            warn_of_discarded_micro_batches()

    def begin_micro_batch(
        self, micro_batch: MicroBatch, loader: ExactDataLoader, *, nested: bool
    ) -> None:
        """Prepare for the micro-batch that a loader is about to yield; loaders call this.

        Args:
            micro_batch: the micro-batch about to be yielded.
            loader: the loader that yields it.
            nested: whether its loop runs inside another one, as an evaluation may.
        """
        if not nested:
            in_progress = self.update_is_in_progress
            self._protocol.begin_micro_batch(
                self._micro_batch, micro_batch, in_progress=in_progress
            )
            if self.several_micro_batches:
                self._steady.begin_micro_batch(
                    self._trained_parameters(),
                    self._optimizers,
                    in_progress=in_progress,
                )
        self._micro_batch = micro_batch
        GlobalBatchNorm.rows_are_shared = True
        self._loader = loader
        self.sync_gradients = micro_batch.closes_update
        self._gradients.begin_micro_batch(micro_batch)
        self._stand_ins.begin_micro_batch(self.unwrapped_models, empty=len(micro_batch) == 0)
        if self.sharing.virtual:
            self._begin_share(micro_batch, nested=nested)
        else:
            self._guard.begin_micro_batch(micro_batch, self.unwrapped_models, nested=nested)
        call_hooks("micro_batch", self)

    def _begin_share(self, micro_batch: MicroBatch, *, nested: bool) -> None:
        """With virtual processes: reset the buffers to before the update, and seed this share's generators."""
        if self._gradients.buffers is None:
            self._gradients.buffers = BufferMean(self.unwrapped_models)
        buffers = self._gradients.buffers
        if buffers.in_training and not nested:
            buffers.begin(opens_share=micro_batch.piece == 0, empty=len(micro_batch) == 0)
            if micro_batch.opens_batch:
                buffers.shares_with_samples += min(micro_batch.shares, micro_batch.size)
        place = (
            micro_batch.loader,
            micro_batch.epoch,
            micro_batch.batch,
            micro_batch.share,
            micro_batch.piece,
        )
        seed_generators(seed_of("share", self.seed, *place), self.device)

    def end_epoch(self) -> None:
        """Compare weights between processes if this epoch has changed them; loaders call this.

        Raises:
            UserError: on every process, if they no longer have the same weights.
        """
        if self._protocol.has_stepped(self._micro_batch):
            self.check_weights()

    @contextmanager
    def accumulate(self, *models: nn.Module) -> Iterator[None]:
        """A no-op, for compatibility: here the loaders decide when gradients are complete."""
        yield

    @contextmanager
    def no_sync(self, model: nn.Module) -> Iterator[None]:
        """Not supported: without synchronisation, each process would keep its own samples' gradients.

        Raises:
            UserError: always.
        """
        raise UserError(
            "accelerator.no_sync would leave gradients unsynchronised: pass "
            "gradient_accumulation_steps=N to ExactAccelerator to accumulate several batches"
        )
        yield

    @contextmanager
    def join_uneven_inputs(
        self, joinables: Any, even_batches: bool | None = None
    ) -> Iterator[None]:
        """A no-op, for compatibility: here every process has the same number of batches."""
        yield

    def skip_first_batches(
        self, dataloader: ExactDataLoader, num_batches: int = 0
    ) -> ExactDataLoader:
        """Skip batches at the start of the next iteration; not needed after `load_state`, which does it itself.

        Args:
            dataloader: a prepared one.
            num_batches: global batches to skip.

        Returns:
            The loader.
        """
        return dataloader.skip(num_batches)

    # ------------------------------------------------------------------------------------ gradients

    def backward(
        self, loss: Tensor, terms: int | float | Tensor | None = None, **kwargs: Any
    ) -> None:
        """Backpropagate a loss; after the last micro-batch, `grad` holds the gradient of the whole update.

        Args:
            loss: a scalar, the mean over the rows that the loader has just given.
            terms: number of terms the loss averages over, if not the number of rows; for example,
                the number of tokens.
            kwargs: as for `Tensor.backward`.

        Raises:
            UserError: the loss is no scalar, there is no loop over a prepared loader, or without
                virtual processes the model or loss draws random numbers, changes buffers or, without
                `terms`, is visibly not the mean over the rows.
        """
        micro_batch = self._micro_batch_of_backward(loss)
        if self._loader is not None:
            self._loader.note_backward(micro_batch)
        self._guard.look_at_loss(loss, micro_batch, terms)
        parameters = self._trained_parameters()
        if self._hooks_of != (micro_batch.loader, micro_batch.epoch):
            self._hooks_of = micro_batch.loader, micro_batch.epoch
            refusals.refuse_gradient_hooks(self.unwrapped_models)
            if self.sharing.shares * self.micro_batches > 1:
                refusals.warn_of_gradient_hooks(self.unwrapped_models)
        self._gradients.set_aside(parameters)
        if loss.dtype in (torch.float16, torch.bfloat16):
            loss = loss.float()  # half precision would round its weight
        self._gradients.begin_backward(micro_batch, parameters, terms)
        weight = len(micro_batch) / max(micro_batch.update_size, 1) if terms is None else terms
        scaled = self.scaler.scale(loss) if self.scaler else loss
        if isinstance(weight, float) and weight == 1.0:
            scaled.backward(**kwargs)
        else:
            scaled.backward(scalar(weight, scaled.dtype, scaled.device), **kwargs)
        self._gradients.add(micro_batch, parameters, terms)
        self._guard.check(micro_batch, self.unwrapped_models)
        self._protocol.note_backward(micro_batch)
        if micro_batch.closes_update:
            call_hooks("gradients", self)

    def _micro_batch_of_backward(self, loss: Tensor) -> MicroBatch:
        """The micro-batch that the loss belongs to.

        Raises:
            UserError: there is none, the loss is not a scalar, or the call cannot be exact.
        """
        micro_batch = self._micro_batch
        if micro_batch is None:
            raise UserError(
                "accelerator.backward was called outside of a loop over a prepared loader, so the "
                "number of samples is unknown: iterate over the loader that accelerator.prepare "
                "returned"
            )
        if loss.ndim:
            raise UserError(
                f"the loss has the shape {tuple(loss.shape)}: give the mean over its rows, a scalar"
            )
        self._protocol.check_backward(
            micro_batch, self._optimizers, in_progress=self.update_is_in_progress
        )
        return micro_batch

    @property
    def several_micro_batches(self) -> bool:
        """Whether a loader gives a global batch in several micro-batches."""
        return self._protocol.several_micro_batches

    def _trained_parameters(self) -> list[nn.Parameter]:
        """The parameters of all prepared models and optimizers that take gradients.

        Includes parameters that no optimizer holds: gradient clipping counts their gradients, and
        they may be added to an optimizer later.
        """
        if not self._parameters:
            self._parameters = {
                id(each): each for model in self.unwrapped_models for each in model.parameters()
            }
        for optimizer in self._optimizers:
            for group in optimizer.optimizer.param_groups:
                for parameter in group["params"]:
                    self._parameters.setdefault(id(parameter), parameter)
        return [parameter for parameter in self._parameters.values() if parameter.requires_grad]

    def clip_grad_norm_(self, parameters: Any, max_norm: float, norm_type: float = 2) -> Tensor:
        """Clip the gradient norm of an update; before its last micro-batch this does nothing and returns 0.

        Returns:
            The norm before clipping, a scalar.
        """
        if not self.sync_gradients:
            return torch.zeros((), device=self.device)
        return super().clip_grad_norm_(parameters, max_norm, norm_type)

    def clip_grad_value_(self, parameters: Any, clip_value: float) -> None:
        """Clip each gradient value of an update; before its last micro-batch this does nothing."""
        if self.sync_gradients:
            super().clip_grad_value_(parameters, clip_value)

    def check_step(self) -> None:
        """Check that an optimizer may make its step now; optimizers call this.

        Raises:
            UserError: there are gradients that did not come by `backward`.
        """
        self._protocol.check_step(self._micro_batch, self._trained_parameters)

    def count_update(self) -> None:
        """Note that an update is done; optimizers call this after their step."""
        micro_batch = self._micro_batch
        is_first = self._protocol.note_step(micro_batch)
        if micro_batch is None or not is_first:
            return  # another optimizer has already stepped for this update
        self.updates += 1
        if self._loader is not None:
            self._loader.update_is_done(micro_batch)
        call_hooks("update", self)

    # ------------------------------------------------------------------------------ what goes wrong

    @torch.no_grad()
    def weight_norm(self) -> Tensor:
        """The sum of the norms of all parameters in training, a scalar on the device."""
        parameters = self._trained_parameters()
        if not parameters:
            return torch.zeros((), device=self.device)
        return torch.stack([torch.linalg.vector_norm(parameter) for parameter in parameters]).sum()

    def check_weights(self) -> None:
        """Check that the weights are finite and equal on all processes; every process must call this.

        Any `MeanLoss` with unread losses is checked first, because it can name the update in which
        a loss became non-finite.

        Raises:
            UserError: on every process, if they are not.
        """
        for mean_loss in self.mean_losses:
            mean_loss.collect()
        # In the weights' dtype, for there are devices without float64.
        norm = self.weight_norm().reshape(1)
        self.check_weight_norms(super().gather(norm).cpu().tolist())
        if self.sharing.virtual:
            self.check_buffers()

    def check_buffers(self) -> None:
        """See that all processes have the same buffers, under virtual processes to the bit.

        Raises:
            UserError: on every process, if they have not.
        """
        buffers = []
        for model in self.unwrapped_models:
            before = self.buffers_before_update(model)
            buffers += [before.get(name, buffer) for name, buffer in model.named_buffers()]
        own = digest(buffers)
        if len(set(gather_object([own]))) > 1:
            raise self.training_error(
                f"processes no longer have the same buffers after update {self.updates}",
                "call the model in training mode only between a batch and its accelerator.backward",
            )

    def buffers_before_update(self, model: nn.Module) -> dict[str, Tensor]:
        """A model's buffers, by name, as they were before the update in progress; empty if there is none."""
        buffers = self._gradients.buffers
        return {} if buffers is None else buffers.state_before_update(model)

    def check_weight_norms(self, norms: list[float]) -> None:
        """Compare norms of the weights of several processes.

        Raises:
            UserError: they differ by more than rounding on different processors can explain.
        """
        if not all(map(math.isfinite, norms)):
            raise self.training_error(f"the gradient of update {self.updates} is not finite")
        if max(norms) - min(norms) > 1e-5 * max(norms):
            raise self.training_error(
                f"processes no longer have the same weights after update {self.updates}",
                "look for code that changes weights or gradients independently on each process",
            )

    def training_error(self, what: str, advice: str = "") -> UserError:
        """The error for a training run that has gone wrong; it names the last good checkpoint."""
        numbers = (
            "check the data for non-finite values, or try a lower learning rate or gradient "
            "clipping"
        )
        checkpoint = "there is no checkpoint yet"
        if self.last_checkpoint:
            checkpoint = f"the last good checkpoint is {self.last_checkpoint}"
        return UserError(f"{what}; {checkpoint}: {advice or numbers}")

    # ---------------------------------------------------------------------------- metrics and state

    def gather(self, tensor: Any) -> Any:
        """Concatenate the tensors of all processes, in rank order; their lengths may differ.

        In a loop over a prepared loader, the result is detached from autograd's graph.

        Args:
            tensor: a tensor, or a nested structure of them; only their lengths may differ between
                processes.

        Returns:
            The same structure.

        Raises:
            UserError: on every process, if they differ in more than their lengths.
        """
        if self.num_processes > 1:
            return gather_by_rank(tensor, self.device)
        if self._micro_batch is None:
            return super().gather(tensor)
        # What comes from several processes has no graph, either.
        return recursively_apply(torch.Tensor.detach, tensor)

    def check_trigger(self) -> bool:
        """Whether any process has called `set_trigger`; False before an update's last micro-batch.

        A loop that stops on this trigger therefore makes the same updates on any number of
        processes.
        """
        if self._micro_batch is not None and not self.sync_gradients:
            return False
        return super().check_trigger()

    def gather_for_metrics(self, input_data: Any, use_gather_object: bool = False) -> Any:
        """Gather the rows of all processes, each sample exactly once, in the order of the global batch.

        With virtual processes, these are the rows of the shares being processed at the moment.

        Args:
            input_data: a tensor, or a nested structure of tensors, with one row for each row that
                the loader has just yielded; or a list with one object for each of them.
            use_gather_object: take `input_data` as a list of objects.

        Returns:
            The same structure with the rows of all processes.

        Raises:
            UserError: on every process, if the rows are not those of the micro-batch, or have
                different shapes.
        """
        if self._micro_batch is None:
            return super().gather_for_metrics(input_data, use_gather_object)
        return gather_rows(
            input_data, self._micro_batch, self.sharing, self.device, as_objects=use_gather_object
        )

    def save_state(
        self,
        output_dir: str | os.PathLike[str] | None = None,
        safe_serialization: bool = True,
        **save_model_func_kwargs: Any,
    ) -> str:
        """Save the whole training state, to be resumed on any number of processes; call it on every process.

        The checkpoint is written atomically (to a temporary folder that is flushed and then
        renamed), carries a checksum, and contains plain data only.

        Args:
            output_dir: a new folder, or one with a checkpoint to be replaced; None with automatic
                checkpoint naming.
            safe_serialization: has no effect, because the format is always safe to load.
            save_model_func_kwargs: must be empty, because no function of Accelerate's writes the models.

        Returns:
            The folder.

        Raises:
            UserError: on every process, if it cannot be written.
        """
        refusals.refuse_options("save_state", save_model_func_kwargs)
        if output_dir is not None and self.several_micro_batches and self._dataloaders:
            given = self._dataloaders[0].micro_batches_given  # that of the training is the first
            self._steady.warn_of_counted_name(output_dir, given, updates=self.updates)
        return state.save(self, output_dir)

    def load_state(
        self,
        input_dir: str | os.PathLike[str] | None = None,
        load_kwargs: dict[str, Any] | None = None,
        **load_model_func_kwargs: Any,
    ) -> None:
        """Restore a state saved by `save_state`, also on another number of processes; call it on every process.

        Args:
            input_dir: what was given to `save_state`; None for the newest with automatic checkpoint
                naming.
            load_kwargs, load_model_func_kwargs: must be empty, because no function of Accelerate's
                reads the models.

        Raises:
            UserError: on every process, if it is missing, damaged or of another training.
        """
        refusals.refuse_options("load_state", (load_kwargs or {}) | load_model_func_kwargs)
        state.load(self, input_dir)

    def register_save_state_pre_hook(self, hook: Any) -> NoReturn:
        """Not supported: the state is written in a format of its own, of which such hooks know nothing.

        Raises:
            UserError: always.
        """
        refusals.refuse_state_hooks("register_save_state_pre_hook")

    def register_load_state_pre_hook(self, hook: Any) -> NoReturn:
        """Not supported: the state is read in a format of its own, of which such hooks know nothing.

        Raises:
            UserError: always.
        """
        refusals.refuse_state_hooks("register_load_state_pre_hook")

    def free_memory(self, *objects: Any) -> list[Any]:
        """Forget all that was prepared, as `Accelerator.free_memory`."""
        self._forget_training()
        self._custom_objects: list[Any] = []
        return super().free_memory(*objects)
