"""Callbacks: prune the model, keep checkpoints, write results, show progress."""

from prunelit.callbacks.checkpoints import LastCheckpoint
from prunelit.callbacks.pruning import Pruning
from prunelit.callbacks.results import Results
from prunelit.callbacks.task_progress_bar import TaskProgressBar
from prunelit.callbacks.watchers import BestCheckpoint, EarlyStopping

__all__ = [
    "BestCheckpoint",
    "EarlyStopping",
    "LastCheckpoint",
    "Pruning",
    "Results",
    "TaskProgressBar",
]
