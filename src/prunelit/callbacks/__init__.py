"""When to prune, and what to show of it."""

from prunelit.callbacks.progress import TaskProgressBar
from prunelit.callbacks.pruning import Pruning
from prunelit.callbacks.results import Results

__all__ = ["Pruning", "Results", "TaskProgressBar"]
