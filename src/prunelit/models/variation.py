"""A change of one block whose effect on the output of the model is measured."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class Variation:
    """A change of one block.

    Args:
        block: index of the block.
        edit: edits the weights of the block in place; they are copies, so that the model stays as
            it is. None leaves the block out: its output is its input.
    """

    block: int
    edit: Callable[[nn.Module], None] | None = None
