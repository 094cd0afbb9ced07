"""The pictures. Each function draws one, or a few, and writes it as the file's name says."""

from .classification import confusion_matrix, digits, evaluation, reliability
from .curves import compared, learning_curves
from .figures import EXPECTED, SUFFIXES
from .search import history, importances, pareto_front, trade_off

__all__ = [
    "EXPECTED",
    "SUFFIXES",
    "compared",
    "confusion_matrix",
    "digits",
    "evaluation",
    "history",
    "importances",
    "learning_curves",
    "pareto_front",
    "reliability",
    "trade_off",
]
