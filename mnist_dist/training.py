"""Training: one update, one epoch."""

import math
from contextlib import nullcontext
from pathlib import Path
from time import perf_counter

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from mnist_dist.augment import distort, dropout
from mnist_dist.checkpoint import Keeper, TrainState
from mnist_dist.config import TrainConfig
from mnist_dist.data import DISTORT, DROPOUT, Batch, Loader, seeded
from mnist_dist.errors import UserError
from mnist_dist.schedules import learning_rate
from mnist_dist.tracking import Tracker


def adam(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """Adam with decoupled weight decay (AdamW, Loshchilov and Hutter 2019); without decay it is Adam, bit for bit."""
    return torch.optim.AdamW(model.parameters(), lr=config.lr, weight_decay=config.weight_decay, fused=True)


def average(model: nn.Module, optimizer: torch.optim.Optimizer, decay: float) -> nn.Module:
    """A moving average of the weights that every update moves on (Polyak and Juditsky 1992).

    Args:
        model: the bare network, on its device.
        decay: share of the average that a step keeps, in [0, 1).

    Returns:
        The network with the averaged weights; the same on all processes, since the weights are.
    """
    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay))

    def follow(*_: object) -> None:
        # fp16's scaler leaves it to the fused optimizer to skip an update whose gradient overflowed; to ask is to wait.
        if not getattr(optimizer, "found_inf", False):
            averaged.update_parameters(model)

    optimizer.register_step_post_hook(follow)
    return averaged


def compile_mode(config: TrainConfig) -> str | None:
    """The mode in which torch.compile is to work on the network, None for not at all."""
    if not config.compile:
        return None
    # On CUDA reduce-overhead makes graphs, without launches to wait for; but the next replay writes over the gradients
    # of the one before, which accumulation adds up (pytorch #169545).
    return "reduce-overhead" if config.gradient_accumulation_steps == 1 else "default"


def train_step(
    accelerator: Accelerator, model: nn.Module, optimizer: torch.optim.Optimizer, batch: Batch, config: TrainConfig
) -> Tensor:
    """One update of the weights from one global batch, of which this process holds a share.

    Returns:
        The sum of the losses of this process's samples: a scalar on the device, not waited for.
    """
    # DDP averages the gradients with equal weight for every process (pytorch #67253). Weighing the *sum* over the share
    # by W / B makes that average the mean over the global batch, however the B samples are shared out.
    weight = batch.images.new_full((), accelerator.num_processes / batch.size)  # no copy that a GPU would wait for
    pieces, scaler = config.gradient_accumulation_steps, accelerator.scaler
    losses = []
    parts = zip(*(tensor.tensor_split(pieces) for tensor in (batch.labels, batch.images, *batch.keep)), strict=True)
    for number, (labels, *inputs) in enumerate(parts, 1):
        with nullcontext() if number == pieces else accelerator.no_sync(model):
            loss = F.cross_entropy(model(*inputs), labels, reduction="sum", label_smoothing=config.label_smoothing)
            # What `accelerator.backward` does, but for a division by 1 that costs two operations on a scalar.
            (scaler.scale(loss) if scaler else loss).backward(gradient=weight.to(loss.dtype))
        losses.append(loss.detach())
    if config.clip_norm:
        accelerator.clip_grad_norm_(model.parameters(), config.clip_norm)
    optimizer.step()
    optimizer.zero_grad()
    return losses[0] if pieces == 1 else torch.stack(losses).sum()


def train_epoch(
    accelerator: Accelerator,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Loader,
    state: TrainState,
    config: TrainConfig,
    tracker: Tracker | None = None,
    keeper: Keeper | None = None,
) -> dict[str, float]:
    """Visit every training sample of an epoch once, from where `state` stands, and advance it to the next epoch.

    Nothing in the loop waits for the device, except for a point of the loss curve and for a checkpoint; distortions,
    which are drawn on the CPU; and with fp16 the moving average (see `average`).

    Args:
        tracker: takes the loss curve; None where nobody wants it.
        keeper: writes checkpoints and notices requests to stop; None for training that is not to go on after a stop.

    Returns:
        `train_loss` (mean over the epoch's samples of the losses at the time of their updates), `learning_rate` (of the
        last update) and `samples_per_second` (over all processes).

    Raises:
        UserError: a loss or a gradient was not finite, or a checkpoint could not be written.
        Stopped: some process was asked to stop; the checkpoint is written.
    """
    model.train()
    samples, steps = len(batches.dataset), math.ceil(len(batches.dataset) / config.batch_size)
    batches.sampler.set_epoch(state.epoch, first=state.step)
    losses: list[Tensor] = []  # of the latest updates, not waited for
    # Left to itself `unwrap_model` takes a compiled model's DDP away.
    shapes = accelerator.unwrap_model(model, keep_torch_compile=False).outputs if config.dropout else []
    rate, begin = config.lr, perf_counter() - state.epoch_seconds

    def gather_losses() -> None:
        # Not finite where a weight is not: one sum a tensor is all this costs.
        weights = torch.stack([parameter.detach().sum() for parameter in model.parameters()]).sum()
        sums = sum_over_processes(accelerator, torch.stack([*losses, weights]))
        last_good = keeper.last if keeper else None
        check_finite(sums[:-1], state.global_step, not sums[-1].isfinite(), last_good)
        losses.clear()
        state.losses += sums[:-1].tolist()

    progress = tqdm(
        total=samples,
        initial=state.step * config.batch_size,
        desc=f"epoch {state.epoch + 1}/{config.epochs}",
        unit=" samples",
        unit_scale=True,
        leave=False,
        disable=None if accelerator.is_main_process else True,  # None: only where standard error is a terminal
    )
    with progress:
        for batch in batches:
            rate = learning_rate(
                state.global_step, steps * config.epochs, peak=config.lr, schedule=config.schedule, warmup=config.warmup
            )
            for group in optimizer.param_groups:
                group["lr"] = rate
            if config.affine or config.elastic:
                batch.images = distort(
                    batch.images,
                    batch.size,
                    batch.positions,
                    affine=config.affine,
                    elastic=config.elastic,
                    generator=seeded(config.seed, DISTORT, state.epoch, state.step),
                )
            if config.dropout:
                batch.keep = dropout(
                    shapes,
                    batch.size,
                    batch.positions,
                    share=config.dropout,
                    generator=seeded(config.seed, DROPOUT, state.epoch, state.step, device=batch.images.device),
                )
            losses.append(train_step(accelerator, model, optimizer, batch, config))
            state.step += 1
            state.global_step += 1
            progress.update(batch.size)
            if state.step % config.log_every == 0 or state.step == steps:
                gather_losses()
                first = (state.step - 1) // config.log_every * config.log_every  # where the last point of the curve was
                loss = sum(state.losses[first:]) / (
                    min(state.step * config.batch_size, samples) - first * config.batch_size
                )
                if tracker:
                    tracker.curve({"global_step": state.global_step, "train/loss": loss, "train/learning_rate": rate})
                progress.set_postfix_str(f"loss {loss:.4f}", refresh=False)
            # An epoch's end has a checkpoint of its own.
            if keeper and state.step < steps and keeper.due(state.global_step):
                gather_losses()
                state.epoch_seconds = perf_counter() - begin
                keeper.keep(state, tracker.history if tracker else [])
    seconds = perf_counter() - begin
    figures = {
        "train_loss": sum(state.losses) / samples,
        "learning_rate": rate,
        "samples_per_second": samples / seconds,
    }
    state.epoch, state.step, state.losses, state.epoch_seconds = state.epoch + 1, 0, [], 0.0
    state.train_seconds += seconds
    return figures


def sum_over_processes(accelerator: Accelerator, values: Tensor) -> Tensor:
    """The element-wise sum of each process's (n,) values, float64 on the CPU, in an order that is always the same."""
    gathered = accelerator.gather(values.unsqueeze(0))
    return gathered.double().cpu().sum(dim=0)


def check_finite(losses: Tensor, step: int, unfit: bool, last_good: Path | None) -> None:
    """Stop a run whose numbers broke.

    Args:
        losses: (n,) of the latest updates.
        step: number of the last of them, counted from 1.
        unfit: whether the weights after it hold numbers that are not finite.
        last_good: the newest checkpoint, for the message.

    Raises:
        UserError: a loss, or a gradient and so the weights, is infinite or not a number; the message names the update.
    """
    broken = torch.nonzero(~losses.isfinite())
    if not (len(broken) or unfit):
        return
    what = f"the gradient of update {step} is not finite"  # else the loss of the next one would show it
    if len(broken):
        number = step - len(losses) + 1 + int(broken[0])
        what = f"the loss of update {number} is {losses[broken[0]].item()}, by itself or by the gradient before it"
    good = f"the last good checkpoint is {last_good}" if last_good else "there is no checkpoint of before"
    raise UserError(f"{what}; {good}: try a lower --lr, a --clip-norm, or another --mixed-precision")
