"""Prune a model block by block, keep masks, and train to recover."""

from prunelit.pruning.prune import prune
from prunelit.pruning.report import PruningReport

__all__ = ["PruningReport", "prune"]
