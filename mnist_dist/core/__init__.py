"""The exact part: the same training at any number of processes, for any data, model and loss.

It imports torch, accelerate and tqdm and nothing else of the package: copy the folder into your own project. Read

    batches      which process sees which sample when, and random numbers that ignore sharing
    training     the update, and the loop over an epoch of them
    evaluation   every sample counted once
    checkpoints  stop anywhere, lose nothing
    stopping     how all processes leave after the same update
    processes    how they agree
"""

from .batches import Batch, GlobalBatches, stream
from .checkpoints import Checkpoints
from .errors import UserError
from .evaluation import evaluate
from .processes import all_or_none, announce, same_everywhere
from .stopping import Stopped
from .training import Progress, Training
