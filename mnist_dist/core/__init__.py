"""The exact part: the same training at any number of processes, for any data, model and loss.

Copy the folder into your own project: it imports torch, accelerate and tqdm alone. Read `batches` (which process sees
which sample when), `gradients` (their sum), `training` (the update, the loop over an epoch of them, exact evaluation),
`checkpoints` (stop anywhere, lose nothing) and `processes` (how they agree).
"""

from .batches import Batch, GlobalBatches, stream
from .checkpoints import Checkpoints
from .processes import Stopped, UserError, all_or_none, announce, same_everywhere
from .training import Progress, Training, evaluate
