"""Read what the weights of a checkpoint are stored as.

Internal: nothing here is public.
"""

import json
import re
import zipfile
from collections.abc import Collection, Iterable
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils import (
    SAFE_WEIGHTS_INDEX_NAME,
    SAFE_WEIGHTS_NAME,
    WEIGHTS_INDEX_NAME,
    WEIGHTS_NAME,
)

# Files of weights in the order in which transformers looks for them.
_NAMES = (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME, WEIGHTS_NAME, WEIGHTS_INDEX_NAME)


def find_cast(model: PreTrainedModel, folder: Path, surplus: Collection[str]) -> dict[str, str]:
    """Find stored integers that became weights: transformers casts them, and asks for no scale.

    Buffers, such as positions, may be integers.

    Args:
        model: loaded from `folder`.
        folder: of the checkpoint.
        surplus: names of stored tensors that the model leaves out.

    Returns:
        The stored types of these tensors, by name.
    """
    prefix = f"{model.base_model_prefix}."
    tensors = {**model.state_dict(), **dict(model.named_buffers())}
    ignored = [*(model._keys_to_ignore_on_load_unexpected or ()), r"position_ids$"]
    found = {}
    for name, kind in _integers(folder).items():
        names = (name, prefix + name, name.removeprefix(prefix))
        own = next((tensors[one] for one in names if one in tensors), None)
        if own is None:  # a part of a tensor, unless it is left out
            cast = name not in surplus and not any(re.search(one, name) for one in ignored)
        else:
            cast = own.is_floating_point()
        if cast:
            found[name] = kind
    return found


def count_blocks(folder: Path) -> int | None:
    """Count the blocks that the safetensors of a checkpoint hold, from the headers alone.

    Returns:
        The highest number of parts that have one name and a number each, such as `model.layers.3`;
        None if there are none.
    """
    numbers: dict[str, set[str]] = {}
    for path in _files(folder):
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118
                    if found := re.match(r"(.*?)\.(\d+)\.", name):
                        numbers.setdefault(found[1], set()).add(found[2])
    return max(map(len, numbers.values()), default=None)


def _integers(folder: Path) -> dict[str, str]:
    """Read the types of all tensors of a checkpoint that are not in floating point, by name."""
    found: dict[str, str] = {}
    for path in _files(folder):
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                kinds = {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
            found |= {name: kind for name, kind in kinds.items() if not re.match("B?F", kind)}
        else:
            mapped = zipfile.is_zipfile(path)
            stored = torch.load(path, map_location="meta", mmap=mapped, weights_only=True)
            found |= {
                name: str(value.dtype)
                for name, value in stored.items()
                if isinstance(value, Tensor) and not value.is_floating_point()
            }
    return found


def _files(folder: Path) -> Iterable[Path]:
    """Find the files that transformers reads the weights from; none if it reads others."""
    first = next((folder / name for name in _NAMES if (folder / name).is_file()), None)
    if first is None or first.suffix != ".json":
        return [] if first is None else [first]
    names = json.loads(first.read_text(encoding="utf-8"))["weight_map"].values()
    return [folder / name for name in sorted(set(names))]
