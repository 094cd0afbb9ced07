"""The exact part, to be copied: it imports torch, accelerate and tqdm alone. Read batches, gradients, training."""

from .accelerator import ExactAccelerator
from .agreement import all_or_none, announce, same_everywhere
from .batches import Batch, GlobalBatches
from .checkpoints import Checkpoints
from .errors import Stopped, UserError
from .evaluating import as_stored
from .hooks import register_hook
from .losses import MeanLoss
from .randomness import stream
from .sharing import MicroBatch
from .training import Progress, Training, evaluate
