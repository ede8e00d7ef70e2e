"""Write a model whose blocks wait in stores, a file for each block."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

from safetensors import safe_open
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from prunelit.models.architecture import decoder_blocks
from prunelit.models.stores import each_whole

_ONE_FILE = 10**18  # bytes
_SMALL = 2**24  # bytes of a tensor that shares a file with others


def write_blocks(model: PreTrainedModel, folder: Path) -> None:
    """Write a model for `from_pretrained` of transformers; one block at a time is whole.

    Ranks that share the blocks run `each_whole` over the blocks meanwhile.

    Args:
        model: any; what is outside the blocks is in the first files.
        folder: exists; it gets the configuration, a file of weights for each part, and their index.
    """
    own = folder / "part"
    outside = _outside(model)
    count = len(outside) + len(decoder_blocks(model)[1])
    places: dict[str, str] = {}
    size = 0
    for number, weights in enumerate(_parts(model, outside), 1):
        size += sum({value.data_ptr(): value.nbytes for value in weights.values()}.values())
        # The library leaves out tied weights, renames others, and empties the dictionary.
        into = folder if number == 1 else own
        model.save_pretrained(into, state_dict=weights, max_shard_size=_ONE_FILE)
        name = SAFE_WEIGHTS_NAME.replace(".", f"-{number:05}-of-{count:05}.")
        (into / SAFE_WEIGHTS_NAME).replace(folder / name)
        with safe_open(folder / name, framework="pt") as file:
            places |= dict.fromkeys(file.keys(), name)
    shutil.rmtree(own)
    index = {"metadata": {"total_size": size}, "weight_map": places}
    text = json.dumps(index, indent=2, sort_keys=True)
    (folder / SAFE_WEIGHTS_INDEX_NAME).write_text(text + "\n", encoding="utf-8")


def _outside(model: PreTrainedModel) -> list[dict[str, Tensor]]:
    """Group the tensors outside the blocks: each file is in memory while it is written.

    Returns:
        Each large tensor by its names, which are several if it is tied, and all others together.
    """
    prefix, _ = decoder_blocks(model)
    groups: dict[int, dict[str, Tensor]] = {}
    for name, value in model.state_dict().items():
        if not name.startswith(f"{prefix}."):
            groups.setdefault(value.data_ptr() if value.nbytes > _SMALL else 0, {})[name] = value
    return list(groups.values())


def _parts(model: PreTrainedModel, outside: list[dict[str, Tensor]]) -> Iterator[dict[str, Tensor]]:
    """Give the tensors of each file by their names: those outside the blocks, then each block."""
    prefix, blocks = decoder_blocks(model)
    yield from outside
    for index, block in enumerate(each_whole(blocks)):
        yield dict(block.state_dict(prefix=f"{prefix}.{index}."))
