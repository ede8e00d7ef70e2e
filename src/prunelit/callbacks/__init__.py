"""When to prune, what to keep of a run, and what to show of it."""

from prunelit.callbacks.checkpoints import BestCheckpoint, EarlyStopping, LastCheckpoint
from prunelit.callbacks.progress import TaskProgressBar
from prunelit.callbacks.pruning import Pruning
from prunelit.callbacks.results import Results

__all__ = [
    "BestCheckpoint",
    "EarlyStopping",
    "LastCheckpoint",
    "Pruning",
    "Results",
    "TaskProgressBar",
]
