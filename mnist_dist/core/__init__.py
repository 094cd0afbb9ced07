"""The exact part: the same training at any number of processes, for any data, model and loss. To be copied: it imports
torch, accelerate and tqdm alone. Read batches, gradients, training, checkpoints, processes."""

from .batches import Batch, GlobalBatches, stream
from .checkpoints import Checkpoints
from .processes import Stopped, UserError, all_or_none, announce, same_everywhere
from .training import Progress, Training, evaluate
