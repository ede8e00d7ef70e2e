"""Blocks and sublayers as places that a method drops."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from torch import nn
from transformers import PreTrainedModel

from prunelit.errors import InputError
from prunelit.models.architecture import decoder_blocks
from prunelit.models.parts import drop_, find_zeros, sublayers, weights_of
from prunelit.models.removal import Parts, find_removal
from prunelit.models.stores import each_whole
from prunelit.models.variation import Variation

Target = Literal["block", "attention", "mixer", "mlp", "both"]
BLOCK: Literal["block"] = "block"
Place = tuple[int, str]  # index of a block; kind of a sublayer, or BLOCK


def find_places(model: PreTrainedModel, target: Target, count: int) -> list[Place]:
    """Find the places of a kind, in order.

    Args:
        model: with all its parts.
        target: `both` is mixers and MLPs.
        count: number of places to drop.

    Raises:
        InputError: if there are none, or no more than `count`.
    """
    blocks = _blocks(model)
    if target == BLOCK:
        places = [(index, BLOCK) for index in range(len(blocks))]
        kind = "blocks of the model"
    else:
        places = [
            (index, kind)
            for index, block in enumerate(blocks)
            for kind, own in sublayers(block).items()
            if target in (kind, own.name, "both")
        ]
        kind = f"sublayers of the model ({target})"
    if not places:
        names = {own.name for block in blocks for own in sublayers(block).values()}
        raise InputError(
            f"Expected blocks with the sublayer {target!r} but {type(model).__name__} has "
            f"{' and '.join(sorted(names)) or 'none'}: choose another `target`."
        )
    if count >= len(places):
        raise InputError(f"Expected `count` below the {len(places)} {kind} but got {count}.")
    return places


def find_dropped(model: PreTrainedModel, places: Iterable[Place]) -> list[Place]:
    """Find the places that are dropped already: all their weights are 0."""
    blocks = _blocks(model)
    zeros = [find_zeros(block) for block in each_whole(blocks)]
    whole = [set(sublayers(block)) == found for block, found in zip(blocks, zeros, strict=True)]
    return [
        (index, kind)
        for index, kind in places
        if (whole[index] if kind == BLOCK else kind in zeros[index])
    ]


def variation_at(model: PreTrainedModel, place: Place) -> Variation:
    """Give the model without one place, as a variation."""
    index, kind = place
    if kind == BLOCK or set(sublayers(_blocks(model)[index])) == {kind}:
        return Variation(index)

    def drop(block: nn.Module) -> None:
        for weight in weights_of(block, sublayers(block)[kind]):
            weight.zero_()

    return Variation(index, drop)


def _parts_of(model: PreTrainedModel, places: Iterable[Place]) -> Parts:
    """Give the parts of a model at some places; a block without sublayers is left out whole."""
    blocks = _blocks(model)
    gone: dict[int, list[str]] = {}
    for index, kind in sorted(set(places)):
        gone.setdefault(index, []).extend(sublayers(blocks[index]) if kind == BLOCK else [kind])
    whole = [i for i, kinds in gone.items() if set(kinds) == set(sublayers(blocks[i]))]
    return Parts(whole, {i: kinds for i, kinds in gone.items() if i not in whole})


def drop_places(model: PreTrainedModel, dropped: Sequence[Place], chosen: Sequence[Place]) -> None:
    """Set the weights at some places to 0.

    Args:
        model: edited in place.
        dropped: places of earlier rounds.
        chosen: the new ones.

    Raises:
        InputError: if a model without both could not be written; nothing has changed then.
    """
    blocks = _blocks(model)
    find_removal(model, _parts_of(model, [*dropped, *chosen]))
    for index, kind in chosen:
        drop_(blocks[index], *(sublayers(blocks[index]) if kind == BLOCK else [kind]))


def drop_lowest(
    model: PreTrainedModel, dropped: Sequence[Place], scores: Mapping[Place, float], count: int
) -> None:
    """Set the weights at the places with the lowest scores to 0; of equal ones the first goes.

    Args:
        model: edited in place.
        dropped: places of earlier rounds.
        scores: of all other places, in order.
        count: how many go.

    Raises:
        InputError: see `drop_places`.
    """
    drop_places(model, dropped, sorted(scores, key=lambda place: scores[place])[:count])


def _blocks(model: PreTrainedModel) -> nn.ModuleList:
    return decoder_blocks(model)[1]
