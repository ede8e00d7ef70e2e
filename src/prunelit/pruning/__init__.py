"""Prune a model block by block, report it, keep its masks, and train it to recover."""

from prunelit.pruning.prune import prune
from prunelit.pruning.report import PruningReport

__all__ = ["PruningReport", "prune"]
