"""Speed and memory of models that are used: reading a prompt, then writing token by token."""

import statistics
import time
import weakref
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import PreTrainedModel

from prunelit.models.architecture import probe_ids, takes_positions
from prunelit.models.fingerprint import stored_parts, weight_bytes

PROMPT, WRITTEN = 128, 8  # tokens
_ROUNDS = 5


def measure_speed(models: Mapping[str, PreTrainedModel]) -> dict[str, dict[str, Any]]:
    """Measure how fast models read and write, in turns, so that a busy machine slows down all.

    A prompt of 128 tokens is read (`prefill`), and 8 more tokens are written one by one with the
    cache of keys and values (`decode`), without a batch. The tokens are arbitrary: their choice
    changes no time. Five rounds measure every model, after one that is not counted.

    Args:
        models: by name, on their device and in evaluation mode.

    Returns:
        For each model `prefill` and `decode`, each the tokens a second of every round, and
        `peak_bytes`: the weights and the largest sum of tensors that a round has at once. A model
        without a cache of keys and values has no `decode`.
    """
    found: dict[str, dict[str, Any]] = {}
    for name, model in models.items():
        with _Alive(model) as alive:
            first = read_and_write(model)
        found[name] = {key: [] for key in first} | {"peak_bytes": weight_bytes(model) + alive.peak}
    for _ in range(_ROUNDS):
        for name, model in models.items():
            for key, value in read_and_write(model).items():
                found[name][key].append(value)
    return found


def compare_speed(found: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Summarise the rounds of a dense and a pruned model.

    Args:
        found: of `dense` and `pruned`, see `measure_speed`.

    Returns:
        For `prefill` and `decode` the medians `dense` and `pruned` in tokens a second; `ratio`, the
        median of pruned / dense of a round, with its extremes `low` and `high`.
    """
    compared = {}
    for key in ("prefill", "decode"):
        if all(key in own for own in found.values()):
            dense, pruned = (found[name][key] for name in ("dense", "pruned"))
            ratios = [after / before for before, after in zip(dense, pruned, strict=True)]
            compared[key] = {
                "dense": statistics.median(dense),
                "pruned": statistics.median(pruned),
                "ratio": statistics.median(ratios),
                "low": min(ratios),
                "high": max(ratios),
                "rounds": len(ratios),
            }
    return compared


@torch.inference_mode()
def read_and_write(
    model: PreTrainedModel, prompt: int = PROMPT, batch_size: int = 1
) -> dict[str, float]:
    """Return tokens a second of prompts and their continuation, of one round.

    Args:
        model: on its device and in evaluation mode.
        prompt: tokens of a prompt; fewer if the model has no more positions.
        batch_size: number of prompts at once.

    Returns:
        `prefill` and `decode`, see `measure_speed`.
    """
    config = model.config.get_text_config(decoder=True)
    positions = getattr(config, "max_position_embeddings", None) or prompt + WRITTEN
    size = max(1, min(prompt, positions - WRITTEN))
    tokens = probe_ids(model, batch_size, size)
    start = _now(model)
    output = model(input_ids=tokens, use_cache=True, **_places(model, 0, size))
    read = _now(model) - start
    cache = getattr(output, "past_key_values", None)
    if cache is None:
        return {"prefill": batch_size * size / read}
    start = _now(model)
    for place in range(size, size + WRITTEN):
        token = tokens[:, :1]  # what the model writes may be the token of an image
        model(input_ids=token, past_key_values=cache, use_cache=True, **_places(model, place, 1))
    written = _now(model) - start
    return {"prefill": batch_size * size / read, "decode": batch_size * WRITTEN / written}


def _places(model: PreTrainedModel, first: int, count: int) -> dict[str, Tensor]:
    """Give the positions of tokens; multimodal models remember those of an earlier batch."""
    if not takes_positions(model):
        return {}
    return {"position_ids": torch.arange(first, first + count, device=model.device)[None]}


def _now(model: PreTrainedModel) -> float:
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
    return time.perf_counter()


class _Alive(TorchDispatchMode):
    """Count the bytes of the tensors that operations make, while they are alive.

    Args:
        model: its weights and buffers are not counted.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.peak = self._bytes = 0
        own = [*model.parameters(), *model.buffers()]
        parts = [part for tensor in own for part in stored_parts(tensor)]
        self._known = {id(part.untyped_storage()) for part in parts}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation, and count what it makes."""
        output = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(output):
            for part in stored_parts(tensor) if isinstance(tensor, Tensor) else ():
                self._add(part.untyped_storage())
        return output

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = id(storage), storage.nbytes()
        if key not in self._known:
            self._known.add(key)
            self._bytes += size
            self.peak = max(self.peak, self._bytes)
            weakref.finalize(storage, self._free, key, size)

    def _free(self, key: int, size: int) -> None:
        self._known.discard(key)
        self._bytes -= size
