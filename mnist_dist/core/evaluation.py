"""Exact evaluation: what a model says of every sample, each counted once, over any number of processes."""

from collections.abc import Callable

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from .batches import Batch, GlobalBatches


@torch.no_grad()
def evaluate(
    accelerator: Accelerator, model: nn.Module, batches: GlobalBatches, output: Callable[[nn.Module, Batch], Tensor]
) -> Tensor:
    """Ask a model about each of N samples once, every process about its shares, and gather the answers on all: (N, ...)
    in the order of the data, on the CPU, in the dtype of the output.

    Args:
        model: the bare network; in eval mode meanwhile, and then as it was.
        batches: of the samples; their size and order do not matter.
        output: the model and a batch of n samples to (n, ...), such as logits, or losses and counts, of any dtype.
    """
    modes = [(layer, layer.training) for layer in model.modules()]
    model.eval()
    answers, seen = None, torch.zeros(batches.samples, dtype=torch.int64, device=batches.device)
    for share in (share for batch in batches.epoch() for share in batch.split(batch.lengths)):
        found = output(model, share)
        answers = found.new_zeros(batches.samples, *found.shape[1:]) if answers is None else answers
        answers[share.index] = found
        seen.index_add_(0, share.index, torch.ones_like(share.index))
    for layer, mode in modes:
        layer.training = mode
    # Every process fills in the rows of its own samples and leaves the others 0, so the sum is the gathered whole.
    answers, seen = accelerator.reduce(answers, "sum"), accelerator.reduce(seen, "sum")
    if not bool((seen == 1).all()):
        raise RuntimeError(f"{int((seen != 1).sum())} of {len(seen)} samples were not counted exactly once")
    return answers.cpu()
