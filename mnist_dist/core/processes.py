"""Names that moved to modules of their own: errors, agreement, stopping."""

from .agreement import all_or_none, announce, same_everywhere
from .errors import STOPPED as STATUS
from .errors import Stopped, UserError, explain
from .stopping import PATIENCE, SIGNALS, StopRequest

__all__ = [
    "PATIENCE",
    "SIGNALS",
    "STATUS",
    "StopRequest",
    "Stopped",
    "UserError",
    "all_or_none",
    "announce",
    "explain",
    "same_everywhere",
]
