"""Random states of torch: what they are, and whether much was drawn between two of them."""

import torch
from torch import Tensor

from mnist_dist.tools.doctor.digests import digest

# The state of the generator for CPUs begins with these fields, in bytes.
NEXT = slice(16, 24)  # the number of the next word to be drawn of the table
TABLE = slice(24, 24 + 624 * 8)  # words, which are replaced when all have been drawn


def random_states() -> list[Tensor]:
    """Return the random states of the CPU and, if there is one, of this process's GPU."""
    states = [torch.get_rng_state()]
    if torch.cuda.is_initialized():
        states.append(torch.cuda.get_rng_state())
    return states


def digest_of_draws(before: list[Tensor], after: list[Tensor], least: int) -> int:
    """Return a digest of what was drawn between two moments; 0 if it was less than asked for.

    A few numbers may be drawn for a decision that all processes are to make alike, such as the size
    of images. As many as there are rows are noise, masks or augmentations.

    Args:
        before: the random states at the first moment.
        after: those at the second one.
        least: how many numbers are to have been drawn on the CPU.
    """
    many = [after[0]] if drawn_on_the_cpu(before[0], after[0]) >= least else []
    for one, other in zip(before[1:], after[1:], strict=False):
        if not torch.equal(one, other):
            many.append(other)
    return digest(many) if many else 0


def drawn_on_the_cpu(before: Tensor, after: Tensor) -> int:
    """Return how many numbers were drawn at least, as far as the states tell.

    Args:
        before: the state of the generator at first.
        after: and then.
    """
    if not torch.equal(before[TABLE], after[TABLE]):
        return 624
    return int(after[NEXT].view(torch.int64)) - int(before[NEXT].view(torch.int64))
