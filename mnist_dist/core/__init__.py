"""The exact part, to be copied: it imports torch, accelerate and tqdm alone. Read batches, gradients, training."""

from .batches import Batch, GlobalBatches, stream
from .checkpoints import Checkpoints
from .processes import Stopped, UserError, all_or_none, announce, same_everywhere
from .training import Progress, Training, evaluate
