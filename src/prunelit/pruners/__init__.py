"""How to prune: one method a file."""

from prunelit.pruners.base import LinearPruner, Probe, Pruner
from prunelit.pruners.magnitude import Magnitude
from prunelit.pruners.wanda import Wanda

__all__ = ["LinearPruner", "Magnitude", "Probe", "Pruner", "Wanda"]
