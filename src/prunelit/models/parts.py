"""Find the sublayers of a block by their structure."""

import re
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from prunelit.models.stores import whole

# The kinds of sublayers, in the order in which a block runs them. A mixer moves information between
# tokens: attention, a state space, a convolution. An MLP works on each token alone.
KINDS = ("mixer", "mlp")

# Names are asked only where structure does not tell.
MLP_NAME = re.compile(r"mlp|moe|expert|ffn|feed_?forward|^ff$|^fc\d?$", re.IGNORECASE)
_NORM = re.compile("norm", re.IGNORECASE)
_ATTENTION = re.compile("att", re.IGNORECASE)
_PLACES = ("layer_idx", "layer_id")  # a module that keeps a cache knows the index of its block


@dataclass(frozen=True)
class Sublayer:
    """Mixer or MLP of a block.

    Args:
        name: `attention` for a mixer that attends to keys and values, `mixer` for another one, or
            `mlp`.
        parts: names of its modules in the block. Some blocks have several side by side.
    """

    name: str
    parts: tuple[str, ...]


def sublayers(block: nn.Module) -> dict[str, Sublayer]:
    """Find the sublayers of a block, by kind: `mixer`, `mlp`, both, or one of them.

    They are the modules directly in the block that hold matrices. Those that know the index of
    their block, since they keep a cache, are the mixer; the others are the MLP. Names tell where
    no module knows it, and where an MLP knows it too.

    Args:
        block: a decoder block; parts that were left out of it are not found.
    """
    held = [name for name, child in block.named_children() if _has_matrix(child)]
    names = [name for name in held if not _NORM.search(name)]
    known = {name for name in names if place_of(block.get_submodule(name)) is not None}
    told = {name for name in names if MLP_NAME.search(name)}
    mlp = told | (set(names) - known if known or not told else set())
    mixer = tuple(name for name in names if name not in mlp)
    attention = len(mixer) == 1 and _attends(block, mixer[0])
    found = {
        "mixer": Sublayer("attention" if attention else "mixer", mixer),
        "mlp": Sublayer("mlp", tuple(name for name in names if name in mlp)),
    }
    return {kind: sublayer for kind, sublayer in found.items() if sublayer.parts}


def place_of(module: nn.Module) -> int | None:
    """Return the index of its block that a module, or one inside, knows; None if none does."""
    for inner in module.modules():
        for name in _PLACES:
            if isinstance(place := getattr(inner, name, None), int):
                return place
    return None


def _has_matrix(module: nn.Module) -> bool:
    return any(parameter.ndim > 1 for parameter in module.parameters())


def _attends(block: nn.Module, name: str) -> bool:
    module = block.get_submodule(name)
    named = _ATTENTION.search(f"{name} {type(module).__name__}") is not None
    return named and not any(isinstance(inner, nn.Conv1d) for inner in module.modules())


def weights_of(block: nn.Module, sublayer: Sublayer) -> list[Tensor]:
    """List the parameters of a sublayer."""
    return [weight for part in sublayer.parts for weight in block.get_submodule(part).parameters()]


@torch.no_grad()
def drop_(block: nn.Module, *kinds: str) -> None:
    """Set all weights of sublayers of a block to 0, so that they add nothing."""
    with whole(block, edited=True):
        for kind in kinds:
            for weight in weights_of(block, sublayers(block)[kind]):
                weight.zero_()


def is_dropped(block: nn.Module, kind: str) -> bool:
    """Return True if all weights of a sublayer are 0."""
    with whole(block):
        return not any(bool(weight.any()) for weight in weights_of(block, sublayers(block)[kind]))


def find_zeros(block: nn.Module) -> set[str]:
    """Find the kinds of the sublayers of a block that are dropped."""
    with whole(block):
        return {kind for kind in sublayers(block) if is_dropped(block, kind)}
