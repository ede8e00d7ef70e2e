"""Unread blocks: weights that are still in the files of a model, and are read block by block.

`from_pretrained` of transformers maps a weight from its file, which takes no memory. Two kinds of
weights take memory while it loads: those in another dtype, and those that are joined, such as the
experts that most files hold one by one. So a whole model would be in memory. Here it only learns
the shapes of the blocks, and its own code reads a block once the block is brought.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, modeling_utils
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    convert_and_load_state_dict_in_model,
    dot_natural_key,
    rename_source_key,
)
from transformers.utils import logging

from prunelit.errors import InputError
from prunelit.models.architecture import decoder_blocks
from prunelit.models.flat_block import FlatBlock
from prunelit.models.stores import Store, keep_in

# Names in files of safetensors.
_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
}


class Unread(Store):
    """Weights of a block that are in the files of its model.

    Args:
        block: its parameters are on `meta`, but those that no file holds.
        read: gives the block its parameters.
        stored: tensors in the files that it reads.
        mapped: reading takes no memory: all weights lie in the files as they are here.

    Attributes:
        mapped: see above.
    """

    def __init__(
        self, block: nn.Module, read: Callable[[], object], stored: list[Any], mapped: bool
    ) -> None:
        super().__init__()
        self.mapped = mapped
        self._block = block
        self._read = read
        self._stored = stored
        self._weights = [one for one in FlatBlock(block.modules()).weights if one.here.is_meta]

    def fetch(self) -> None:
        """Read the weights.

        Raises:
            InputError: if a weight comes from no file, or from one that has other blocks too.
        """
        self._read()
        for weight in self._weights:
            found = (own for key, name in weight.places if (own := key[name]) is not None)
            here = next((own for own in found if not own.is_meta), None)
            if here is None:
                raise InputError(
                    f"The weight {weight.places[0][1]!r} of a {type(self._block).__name__} cannot "
                    "be read without other blocks: load the model with the placement resident."
                )
            weight.put(here)

    def parts(self) -> list[Tensor]:
        """Return the stored tensors, mapped from the files."""
        return [one[...] for one in self._stored]

    def make_room(self) -> None:
        """Give the block parameters without content, which another rank reads."""
        for weight in self._weights:
            room = torch.empty_like(weight.away, device="cpu")
            weight.put(nn.Parameter(room, weight.away.requires_grad))

    def leave(self, edited: bool) -> None:
        if edited:
            keep_in(self._block, None)  # the files do not have the change
            return
        for weight in self._weights:
            weight.put(weight.away)


class _Shape:
    """A stored tensor for transformers to convert, of which only the shape is known.

    Args:
        stored: a tensor, or one in a file of safetensors; even its first page is not read.
    """

    def __init__(self, stored: Any) -> None:
        self._shape = stored.shape if isinstance(stored, Tensor) else stored.get_shape()

    def __getitem__(self, index: Any) -> "_Shape":
        return self

    def to(self, device: Any, dtype: torch.dtype) -> Tensor:
        return torch.empty(self._shape, dtype=dtype, device="meta")


def _has_dtype(stored: Any, dtype: torch.dtype) -> bool:
    """Compare the dtype of a stored tensor, see `_Shape`."""
    if isinstance(stored, Tensor):
        return stored.dtype == dtype
    return stored.get_dtype() == _DTYPES.get(dtype)


@contextmanager
def blocks_unread() -> Iterator[Callable[[PreTrainedModel], None]]:
    """Let `from_pretrained` read no weights of blocks, within the context.

    Buffers of blocks, and all that is outside the blocks, are read. A quantised model is, too.

    Returns:
        A function that lets the blocks of the model that was loaded wait as `Unread`, in place.
    """
    usual = convert_and_load_state_dict_in_model
    later: dict[int, tuple[Callable[[], object], list[Any], bool]] = {}

    def load(state_dict: dict[str, Any], **given: Any) -> Any:
        read = partial(usual, **given)
        config = given["load_config"]
        mapping = config.weight_mapping or []
        model = given["model"]
        inside = {} if config.is_quantized else _group(model, state_dict, mapping)
        names = [name for block in inside.values() for name in block]
        found = read(state_dict=state_dict | {name: _Shape(state_dict[name]) for name in names})
        for index, targets in inside.items():
            stored = {name: state_dict[name] for name in targets}
            mapped = all(
                target is not None and _has_dtype(value, model.get_parameter(target).dtype)
                for target, value in zip(targets.values(), stored.values(), strict=True)
            )
            own = partial(_read_quietly, partial(read, state_dict=stored))
            later[index] = own, list(stored.values()), mapped
        return found

    def keep(model: PreTrainedModel) -> None:
        blocks = decoder_blocks(model)[1]
        for index, own in later.items():
            keep_in(blocks[index], Unread(blocks[index], *own))
        later.clear()

    caller: Any = modeling_utils  # `from_pretrained` is there
    caller.convert_and_load_state_dict_in_model = load
    try:
        yield keep
    finally:
        caller.convert_and_load_state_dict_in_model = usual


def _group(
    model: PreTrainedModel, stored: Mapping[str, Any], mapping: list[Any]
) -> dict[int, dict[str, str | None]]:
    """Find the stored tensors of each block.

    Args:
        model: without weights.
        stored: all tensors by their names in the files.
        mapping: rules of transformers for names, and for tensors that become others.

    Returns:
        By index of the block: for each name in the files the parameter that it is; None if it is
        converted.
    """
    prefix, _ = decoder_blocks(model)
    renamings = [rule for rule in mapping if isinstance(rule, WeightRenaming)]
    converters = [rule for rule in mapping if isinstance(rule, WeightConverter)]
    own = model.state_dict()
    parameters = dict(model.named_parameters(remove_duplicate=False))
    base = model.base_model_prefix
    found: dict[int, dict[str, str | None]] = {}
    for name in sorted(stored, key=dot_natural_key):
        target, pattern = rename_source_key(name, renamings, converters, base, own)
        if target not in own and name in own:
            target, pattern = rename_source_key(name, [], [], base, own)
        inside = target.removeprefix(f"{prefix}.")
        if inside != target and target in parameters:
            block = found.setdefault(int(inside.partition(".")[0]), {})
            block[name] = target if pattern is None else None
    return found


def _read_quietly(read: Callable[[], object]) -> None:
    """Read without a progress bar for each block."""
    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        read()
    finally:
        if bars:
            logging.enable_progress_bar()
