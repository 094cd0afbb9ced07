"""`ExactAccelerator`: Accelerate's `Accelerator`, with the same training at any number of processes."""

import inspect
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DDPCommunicationHookType, extract_model_from_parallel, gather_object
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader

from . import refusals, state
from .agreement import all_or_none, announce, same_everywhere
from .batch_norm import compute_over_the_global_batch
from .bits import fix_bits
from .buffers import BufferMean
from .digests import digest
from .errors import UserError
from .gathering import gather_rows
from .guard import ForwardGuard
from .hooks import call_hooks
from .kernels import Kernels
from .launchers import refuse_a_process_of_several
from .loader import ExactDataLoader
from .losses import MeanLoss
from .optimizer import ExactOptimizer, ExactScheduler
from .randomness import GeneratorStates, seed_generators, seed_of
from .sharing import MicroBatch, Sharing
from .update import UpdateGradients, ddp_of, scalar
from .waiting import watch


@dataclass(frozen=True)
class LoopState:
    """Where a loop over a prepared loader stood when another one began in its body.

    Attributes:
        micro_batch: what it had been given; None if there was no such loop.
        loader: that had given it.
        sync_gradients: whether its update was to be completed.
        generators: the states of the random generators, under virtual processes.
    """

    micro_batch: MicroBatch | None
    loader: ExactDataLoader | None
    sync_gradients: bool
    generators: GeneratorStates | None


class ExactAccelerator(Accelerator):
    """Accelerate's `Accelerator`, with the same training at any number of processes.

    A loop written as Accelerate's documentation writes it needs no change but the class. What
    differs:

    - `prepare(loader)`: `batch_size` is that of the global batch, of which each process gets its
      rows, every sample exactly once an epoch. What a data set draws at random for a sample depends
      on seed, epoch and sample alone.
    - `backward(loss)`: the loss is the mean over the rows that the loader has just given, and
      counts by their share of the global batch; all processes' gradients are summed, not averaged.
    - optimizer and scheduler make one step an update.
    - `gather_for_metrics` gives every row exactly once.
    - `save_state` and `load_state` hold the whole training, the loaders' positions included, as
      plain data; a training goes on at another number of processes.

    What cannot be exact is refused by a `UserError`.

    Args:
        virtual_processes: V, the shares that every global batch is divided into, for the same
            float32 bits on 1 to V processes. Each process works through its shares one by one: the
            loader gives one share at a time, and `sync_gradients` is true with the last one. 0: one
            share for each process, equal but for rounding.
        seed: of the order of the samples and of all random numbers; not of the first weights, which
            `set_seed` decides.
        micro_batches: pieces that every share is given in, one after the other, to save memory.
        ddp: wrap models in `DistributedDataParallel` if there are several processes, so that
            gradients travel during the backward pass. None: on GPUs without virtual processes; on
            CPUs an exchange after it is faster.
        options: as for `Accelerator`. `gradient_accumulation_steps` is the number of global batches
            an update.

    Attributes:
        sharing: the shares, and who works on which.
        updates: made so far.
        last_checkpoint: the folder of the last one that was written or read, for messages.
        mean_losses: those that were made for this accelerator, in order.

    Raises:
        UserError: something was asked for that is not exact, or there are more processes than
            shares.
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
        world = self.num_processes
        if world == 1:
            refuse_a_process_of_several(environ)
        if 0 < virtual_processes < world:
            raise UserError(
                f"{world} processes are more than the {virtual_processes} virtual processes they share: start fewer"
            )
        self.virtual_processes = virtual_processes
        self.seed = seed
        self.micro_batches = micro_batches
        self.sharing = Sharing(
            shares=virtual_processes or world,
            world=world,
            rank=self.process_index,
            fixed=virtual_processes > 0,
        )
        on_gpus = self.device.type == "cuda"
        wanted = on_gpus if ddp is None else ddp
        self.ddp = wanted and world > 1 and not virtual_processes
        self.bits = fix_bits(self.device) if virtual_processes else {}
        self.kernels = Kernels(self)
        self._micro_batch: MicroBatch | None = None
        self.updates = 0
        watch(self)
        self.last_checkpoint: str | os.PathLike[str] | None = None
        self.mean_losses: list[MeanLoss] = []
        self._loader: ExactDataLoader | None = None
        self._gradients = UpdateGradients(self.sharing, self.device, ddp=self.ddp)
        self._guard = ForwardGuard(self.device)
        self._bare_models: list[nn.Module] = []
        self._parameters: dict[
            int, nn.Parameter
        ] = {}  # of all models and optimizers, by their identities
        self._backward_done: MicroBatch | None = None  # the last one that `backward` was called for
        self._counted: MicroBatch | None = (
            None  # the last one after which an optimizer made its step
        )

    # -------------------------------------------------------------------------------------- prepare

    def prepare(self, *args: Any, device_placement: list[bool] | None = None) -> Any:
        """Prepare models, optimizers, loaders and schedulers, as `Accelerator.prepare`.

        Every process must give the same ones, in the same order.

        Raises:
            UserError: on every process, if they differ or cannot be trained exactly.
        """
        with all_or_none():
            prepared = super().prepare(*args, device_placement=device_placement)
        self._check_parameters()
        if self.sharing.fixed and self._models and self._dataloaders:
            self.kernels.compare()
        return prepared

    def prepare_data_loader(
        self,
        data_loader: DataLoader,
        device_placement: bool | None = None,
        slice_fn_for_dispatch: Any = None,
    ) -> ExactDataLoader:
        """Make a loader of global batches, of which each process gets its rows.

        Raises:
            UserError: it cannot be shared exactly.
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
        """Move a model to the device, with mixed precision and compilation as asked for, and without averaging.

        Raises:
            UserError: it differs between processes, or cannot be trained exactly.
        """
        if not self.sharing.fixed:
            self._compute_over_the_global_batch(model)
        refusals.refuse_layers_that_reach_beyond_a_share(model)
        wrap = self.ddp and not evaluation_mode
        handler = self.ddp_handler
        if wrap and handler is not None and handler.comm_hook != DDPCommunicationHookType.NO:
            raise UserError(
                f"the communication hook {handler.comm_hook} changes gradients on their way, and a "
                "model has only one hook: leave comm_hook out of DistributedDataParallelKwargs"
            )
        same_everywhere(
            "the weights, not drawn from the same seed,",
            digest([*model.parameters(), *model.buffers()]),
        )
        prepared = super().prepare_model(model, device_placement, evaluation_mode=not wrap)
        wrapper = ddp_of(prepared)
        if wrapper is not None:
            self._gradients.watch(wrapper)
        self._parameters = {}
        self._gradients.buffers = None
        return prepared

    def _compute_over_the_global_batch(self, model: nn.Module) -> None:
        """Let batch normalisation take its statistics over all processes, and say so once."""
        changed = compute_over_the_global_batch(model)
        if changed and self.num_processes > 1:
            layers = (
                "1 BatchNorm layer takes" if changed == 1 else f"{changed} BatchNorm layers take"
            )
            announce(f"{layers} statistics over the global batch, from all processes")

    def prepare_optimizer(
        self, optimizer: torch.optim.Optimizer, device_placement: bool | None = None
    ) -> ExactOptimizer:
        """Let an optimizer make one step an update."""
        if not isinstance(optimizer, ExactOptimizer):
            placement = self.device_placement if device_placement is None else device_placement
            optimizer = ExactOptimizer(optimizer, self, device_placement=placement)
        if optimizer not in self._optimizers:
            self._optimizers.append(optimizer)
        return optimizer

    def prepare_scheduler(self, scheduler: LRScheduler) -> ExactScheduler:
        """Let a scheduler move on once an update."""
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
    def bare_models(self) -> list[nn.Module]:
        """The prepared models without wrappers, in the order in which they were prepared."""
        if len(self._bare_models) != len(
            self._models
        ):  # looked for once: Accelerate looks for packages to do so
            self._bare_models = [
                extract_model_from_parallel(model, keep_torch_compile=False)
                for model in self._models
            ]
        return self._bare_models

    def _check_parameters(self) -> None:
        """See that optimizers have the models' parameters, in the same order everywhere.

        Raises:
            UserError: they do not.
        """
        if not (self._optimizers and self._models):
            return
        orders = refusals.refuse_optimizers_of_other_parameters(self.bare_models, self._optimizers)
        same_everywhere("the optimizer's parameters, by their numbers in the model,", orders)

    def parameter_orders(self) -> list[list[int]]:
        """For each optimizer the numbers of its parameters among those of all models, in its order."""
        return refusals.refuse_optimizers_of_other_parameters(self.bare_models, self._optimizers)

    # -------------------------------------------------------------------------------- micro-batches

    @property
    def micro_batch(self) -> MicroBatch:
        """What the loader has just given: which samples of which global batch.

        Raises:
            UserError: there is no loop over a prepared loader.
        """
        if self._micro_batch is None:
            raise UserError(
                "accelerator.micro_batch was asked for outside of a loop over a prepared loader: iterate over what "
                "accelerator.prepare made of your DataLoader"
            )
        return self._micro_batch

    @property
    def update_is_in_progress(self) -> bool:
        """Whether gradients have been computed for an update that is not complete yet."""
        return self._gradients.kept is not None

    def begin_loop(self) -> LoopState:
        """Note where a loop stands in which another one begins; loaders call this."""
        nested_under_virtual = self._micro_batch is not None and self.sharing.fixed
        generators = GeneratorStates(self.device) if nested_under_virtual else None
        return LoopState(self._micro_batch, self._loader, self.sync_gradients, generators)

    def end_loop(self, outer: LoopState, loader: ExactDataLoader, epoch: int) -> None:
        """Let the loop go on that was in progress when this one began; loaders call this.

        If there was none, what this one has left of an incomplete update is forgotten.

        Args:
            outer: from `begin_loop`.
            loader: of the loop that ends.
            epoch: the number of its epoch.
        """
        self._micro_batch = outer.micro_batch
        self._loader = outer.loader
        self.sync_gradients = outer.sync_gradients
        self._guard.before = None  # what this loop has drawn is not the other one's forward pass
        if outer.micro_batch is not None:
            self._gradients.begin_micro_batch(outer.micro_batch)
            if outer.generators is not None:
                outer.generators.restore()
            return
        self._gradients.abandon()
        if self.sharing.fixed:  # the last share was not the same one on every process
            seed_generators(seed_of("epoch", self.seed, loader.batches.number, epoch), self.device)

    def begin_micro_batch(
        self, micro_batch: MicroBatch, loader: ExactDataLoader, *, nested: bool
    ) -> None:
        """Prepare for the micro-batch that a loader is about to yield; loaders call this.

        Args:
            micro_batch: what it is.
            loader: that gives it.
            nested: whether its loop is in the body of another one, as an evaluation may be.
        """
        if not nested:
            self._refuse_a_missing_backward(micro_batch)
        self._micro_batch = micro_batch
        self._loader = loader
        self.sync_gradients = micro_batch.closes_update
        self._gradients.begin_micro_batch(micro_batch)
        if self.sharing.fixed:
            self._begin_share(micro_batch, nested=nested)
        else:
            self._guard.begin_micro_batch(micro_batch, self.bare_models)
        call_hooks("micro_batch", self)

    def _refuse_a_missing_backward(self, micro_batch: MicroBatch) -> None:
        """Refuse to go on with an update of which a micro-batch was left out.

        Raises:
            UserError: `backward` was called for the first micro-batch of the update, and not for
                the last one that was given.
        """
        previous = self._micro_batch
        if previous is None or not self.update_is_in_progress:
            return
        if previous.loader == micro_batch.loader and self._backward_done is not previous:
            raise UserError(
                "accelerator.backward was not called for a micro-batch of this update: call it for "
                "every one, also for one without rows"
            )

    def _begin_share(self, micro_batch: MicroBatch, *, nested: bool) -> None:
        """Under virtual processes: buffers as before the update, and generators that belong to the share."""
        if self._gradients.buffers is None:
            self._gradients.buffers = BufferMean(self.bare_models)
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
        if self._counted is not None and self._counted is self._micro_batch:
            self.check_weights()

    @contextmanager
    def accumulate(self, *models: nn.Module) -> Iterator[None]:
        """Accelerate's context for gradient accumulation; here the loaders decide when gradients are complete."""
        yield

    @contextmanager
    def no_sync(self, model: nn.Module) -> Iterator[None]:
        """Not offered: gradients that are not summed would be those of a process's samples alone.

        Raises:
            UserError: always.
        """
        raise UserError(
            "accelerator.no_sync leaves gradients to each process: use ExactAccelerator(gradient_accumulation_steps=N) "
            "to make updates from several batches"
        )
        yield

    @contextmanager
    def join_uneven_inputs(
        self, joinables: Any, even_batches: bool | None = None
    ) -> Iterator[None]:
        """Accelerate's context for processes with more batches than others, of which there are none here."""
        yield

    def skip_first_batches(
        self, dataloader: ExactDataLoader, num_batches: int = 0
    ) -> ExactDataLoader:
        """Begin the next iteration behind so many batches; after `load_state` the loader itself knows where to begin.

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
        """Compute the gradients of a loss; after an update's last micro-batch they are those of the whole update.

        Args:
            loss: a scalar, the mean over the rows that the loader has just given.
            terms: what the loss is the mean over if not over the rows, such as the number of tokens
                in them.
            kwargs: as for `Tensor.backward`.

        Raises:
            UserError: the loss is no scalar, there is no loop over a prepared loader, or the model
                or loss draws random numbers or changes buffers without virtual processes.
        """
        micro_batch = self._micro_batch_of_backward(loss)
        parameters = self._trained_parameters()
        self._gradients.set_aside(parameters)
        if loss.dtype in (torch.float16, torch.bfloat16):
            loss = loss.float()  # whose weight would be rounded
        self._gradients.begin_backward(micro_batch, parameters, terms)
        weight = len(micro_batch) / max(micro_batch.update_size, 1) if terms is None else terms
        scaled = self.scaler.scale(loss) if self.scaler else loss
        if isinstance(weight, float) and weight == 1.0:
            scaled.backward(**kwargs)
        else:
            scaled.backward(scalar(weight, scaled.dtype, scaled.device), **kwargs)
        self._gradients.add(micro_batch, parameters, terms)
        self._guard.check(micro_batch, self.bare_models)
        self._backward_done = micro_batch
        if micro_batch.closes_update:
            call_hooks("gradients", self)

    def _micro_batch_of_backward(self, loss: Tensor) -> MicroBatch:
        """What the loss is of.

        Raises:
            UserError: that cannot be told, or cannot be exact.
        """
        micro_batch = self._micro_batch
        if micro_batch is None:
            raise UserError(
                "accelerator.backward was called outside of a loop over a prepared loader, so nobody knows how many "
                "samples the loss is of: iterate over what accelerator.prepare made of your DataLoader"
            )
        if loss.ndim:
            raise UserError(
                f"the loss has the shape {tuple(loss.shape)}: give the mean over its rows, a scalar"
            )
        again = self._backward_done is micro_batch
        if again and self.sharing.fixed and not micro_batch.closes_update:
            raise UserError(
                "accelerator.backward was called twice for one share of a batch (virtual_processes "
                f"{self.virtual_processes} on {self.num_processes} processes): add the losses and call it once, or "
                "start as many processes as there are virtual ones"
            )
        return micro_batch

    def _trained_parameters(self) -> list[nn.Parameter]:
        """The parameters of all prepared models and optimizers that take gradients.

        Also those that no optimizer has: clipping counts their gradients, and an optimizer may be
        given them later.
        """
        if not self._parameters:
            self._parameters = {
                id(each): each for model in self.bare_models for each in model.parameters()
            }
        for optimizer in self._optimizers:
            for group in optimizer.optimizer.param_groups:
                for parameter in group["params"]:
                    self._parameters.setdefault(id(parameter), parameter)
        return [parameter for parameter in self._parameters.values() if parameter.requires_grad]

    def clip_grad_norm_(self, parameters: Any, max_norm: float, norm_type: float = 2) -> Tensor:
        """Limit the norm of the gradients of an update; before its last micro-batch there are none, and it is 0.

        Returns:
            The norm before, a scalar.
        """
        if not self.sync_gradients:
            return torch.zeros((), device=self.device)
        return super().clip_grad_norm_(parameters, max_norm, norm_type)

    def clip_grad_value_(self, parameters: Any, clip_value: float) -> None:
        """Limit each number of the gradients of an update; before its last micro-batch there are none."""
        if self.sync_gradients:
            super().clip_grad_value_(parameters, clip_value)

    def count_update(self) -> None:
        """Note that an update is done; optimizers call this after their step."""
        micro_batch = self._micro_batch
        if micro_batch is None or self._counted is micro_batch:
            return  # one of several optimizers has made its step of this update before
        self._counted = micro_batch
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
        """See that all processes have the same, finite weights; every process must call this.

        A `MeanLoss` with losses that nobody has read yet looks first: it can name the update in
        which they broke.

        Raises:
            UserError: on every process, if they have not.
        """
        for mean_loss in self.mean_losses:
            mean_loss.collect()
        # In the weights' dtype, for there are devices without float64.
        norm = self.weight_norm().reshape(1)
        self.judge_weights(self.gather(norm).cpu().tolist())
        if self.sharing.fixed:
            self.check_buffers()

    def check_buffers(self) -> None:
        """See that all processes have the same buffers, under virtual processes to the bit.

        Raises:
            UserError: on every process, if they have not.
        """
        own = digest(buffer for model in self.bare_models for buffer in model.buffers())
        if len(set(gather_object([own]))) > 1:
            raise self.gone_wrong(
                f"processes no longer have the same buffers after update {self.updates}",
                "call the model in training mode only between a batch and its accelerator.backward",
            )

    def judge_weights(self, norms: list[float]) -> None:
        """Compare norms of the weights of several processes.

        Raises:
            UserError: they differ by more than what two kinds of processors may round differently.
        """
        if not all(map(math.isfinite, norms)):
            raise self.gone_wrong(f"the gradient of update {self.updates} is not finite")
        if max(norms) - min(norms) > 1e-5 * max(norms):
            raise self.gone_wrong(
                f"processes no longer have the same weights after update {self.updates}",
                "look for what changes weights or gradients on each process by itself",
            )

    def gone_wrong(self, what: str, advice: str = "") -> UserError:
        """The error for a training that has gone wrong, with what it can be gone on from."""
        numbers = "look for such numbers in the data, or try a lower learning rate or clipping"
        return UserError(
            f"{what}; the last good checkpoint is {self.last_checkpoint or 'none'}: {advice or numbers}"
        )

    # ---------------------------------------------------------------------------- metrics and state

    def gather_for_metrics(self, input_data: Any, use_gather_object: bool = False) -> Any:
        """The rows of all processes, every sample's exactly once, in the order of the global batch.

        Under virtual processes these are the rows of the shares that the processes work on now.

        Args:
            input_data: a tensor, or a structure of tensors, with a row for every row that the
                loader has just given; or a list with as many objects.
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

    def save_state(self, output_dir: str | os.PathLike[str] | None = None, **_: Any) -> str:
        """Write all that the training needs to go on, on any number of processes; every process calls this.

        It is written aside, flushed to the disk and then moved into place, with a digest, and holds
        plain data only.

        Args:
            output_dir: a new folder, or one with a checkpoint to be replaced; None with automatic
                checkpoint naming.

        Returns:
            The folder.

        Raises:
            UserError: on every process, if it cannot be written.
        """
        return state.save(self, output_dir)

    def load_state(self, input_dir: str | os.PathLike[str] | None = None, **_: Any) -> None:
        """Go back to where `save_state` was called, perhaps on another number of processes; every process calls this.

        Args:
            input_dir: what was given to `save_state`; None for the newest with automatic checkpoint
                naming.

        Raises:
            UserError: on every process, if it is missing, damaged or of another training.
        """
        state.load(self, input_dir)

    def free_memory(self, *objects: Any) -> list[Any]:
        """Forget all that was prepared, as `Accelerator.free_memory`."""
        self._gradients = UpdateGradients(self.sharing, self.device, ddp=self.ddp)
        self._guard = ForwardGuard(self.device)
        self._bare_models = []
        self.kernels = Kernels(self)
        self._parameters = {}
        self._backward_done = None
        self._counted = None
        self._loader = None
        self._custom_objects: list[Any] = []
        self.mean_losses = []
        self.updates = 0
        self._micro_batch = None
        return super().free_memory(*objects)
