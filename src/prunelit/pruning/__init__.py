"""Prune a model block by block: the call, its report, and the masks and training that follow."""

from prunelit.pruning.prune import prune
from prunelit.pruning.report import PruningReport

__all__ = ["PruningReport", "prune"]
