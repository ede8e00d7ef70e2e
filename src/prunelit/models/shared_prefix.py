"""The beginning that all prompts have in common, read once."""

import inspect
from collections.abc import Sequence
from itertools import takewhile
from weakref import WeakKeyDictionary

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from prunelit.errors import first_line

# Keys and values of a layer, each (1, heads, P, width).
KeysValues = tuple[Tensor, Tensor]

_WORTH_IT = 16  # tokens; fewer are read with each prompt


class SharedPrefix:
    """Gives the cache that a left-padded batch begins with; for one pass, whose weights stay.

    The first P places of the batch are filled, P being the length of the prefix: in a row with n
    places of padding, with the padding and the first P - n tokens of the prefix. All that follows
    is left to the model, so that the rows stand as they would without a shared prefix. Keys depend
    on the token's position in its own row, which is the same in all.

    Deliberately no container, whose content would be copied when a batch moves to a device.

    Args:
        prompts: the token ids of all prompts.
    """

    def __init__(self, prompts: Sequence[Sequence[int]]) -> None:
        # What the first and the last in order have in common all have; at least one token of each
        # prompt is left to read.
        first, last = min(map(list, prompts)), max(map(list, prompts))
        same = takewhile(lambda pair: pair[0] == pair[1], zip(first, last, strict=False))
        common = [token for token, _ in same][: min(map(len, prompts)) - 1]
        self.tokens = common if len(common) >= _WORTH_IT else []
        self._read: WeakKeyDictionary[PreTrainedModel, list[KeysValues] | None] = (
            WeakKeyDictionary()
        )

    def cache(self, model: PreTrainedModel, attention_mask: Tensor) -> DynamicCache | None:
        """The cache of the first P places; None where there is no prefix or the model lends none.

        A warning says once why a model lends none.

        Args:
            model: in evaluation mode.
            attention_mask: (B, T) of left-padded prompts that begin with the prefix.
        """
        if not self.tokens:
            return None
        if model not in self._read:
            self._read[model] = None
            if (problem := lending_problem(model)) is None:
                self._read[model] = _keys_values(model, self.tokens)
            else:
                rank_zero_warn(f"{type(model).__name__} reads every prompt whole: {problem}.")
        layers = self._read[model]
        return None if layers is None else _spread(model, layers, attention_mask)


@torch.no_grad()
def lending_problem(model: PreTrainedModel) -> str | None:
    """Why this model cannot begin with the cache of other rows, or None where it can.

    Runs a few tokens through the model, with a lent cache and without.

    Args:
        model: a causal LM in evaluation mode.
    """
    # Ordinary tokens, spread over the vocabulary: at its beginning are often special ones, after
    # which padding alone changes the logits by more than the tolerance.
    step = model.config.get_text_config(decoder=True).vocab_size // 16
    prefix = [step * number for number in (3, 4, 5, 6, 7, 8)]
    rests = [[step * number for number in rest] for rest in ([9], [7, 5, 10, 3], [4, 11])]
    longest = max(map(len, rests))
    ids = torch.tensor([[0] * (longest - len(r)) + prefix + r for r in rests], device=model.device)
    mask = (ids > 0).long()
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    takes = inspect.signature(model.forward).parameters

    def logits(begin: int, cache: DynamicCache | None) -> Tensor:
        options = {"position_ids": positions[:, begin:]} if "position_ids" in takes else {}
        inputs = {"input_ids": ids[:, begin:], "attention_mask": mask, **options}
        return model(**inputs, past_key_values=cache, use_cache=True).logits[:, -1].float()

    try:
        with torch.autocast(model.device.type, enabled=False):
            whole = logits(0, None)
            lent = logits(len(prefix), _spread(model, _keys_values(model, prefix), mask))
    except (TypeError, AttributeError, LookupError, ValueError, RuntimeError) as error:
        return f"its cache cannot be lent ({first_line(error)})"
    difference = (lent - whole).abs().max().item()
    # A wrong mask or position is far larger than what another order of sums does.
    tolerance = (1e-4 if model.dtype.itemsize >= 4 else 5e-2) * (1 + whole.abs().max().item())
    if not difference <= tolerance:
        return f"with a lent cache its logits differ by {difference:.2g}"
    return None


@torch.no_grad()
def _keys_values(model: PreTrainedModel, tokens: Sequence[int]) -> list[KeysValues]:
    """Keys and values of the tokens, layer by layer."""
    # Without a configuration no layer forgets what lies before its window.
    cache = DynamicCache()
    model.base_model(
        input_ids=torch.tensor([list(tokens)], device=model.device),
        past_key_values=cache,
        use_cache=True,
    )
    return [(layer.keys, layer.values) for layer in cache.layers]  # type: ignore[misc]


def _spread(
    model: PreTrainedModel, layers: Sequence[KeysValues], attention_mask: Tensor
) -> DynamicCache:
    """The cache of a batch, each row's part of the prefix behind its padding."""
    length = layers[0][0].shape[2]
    padding = (attention_mask == 0).sum(1, keepdim=True)
    # What stands where the padding is does not matter: it is masked.
    places = (torch.arange(length, device=padding.device) - padding).clamp(min=0)
    cache = DynamicCache(config=model.config)
    for number, pair in enumerate(layers):
        keys, values = (part[0][:, places].transpose(0, 1) for part in pair)
        cache.update(keys, values, number)
    return cache
