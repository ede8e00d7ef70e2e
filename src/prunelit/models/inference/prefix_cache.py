"""What many sequences begin with: read once, its keys and values lent to all of them."""

import inspect
from collections.abc import Callable, Sequence
from weakref import WeakKeyDictionary

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from prunelit.errors import InputError, first_line

# Keys and values of a layer, each (B, heads, T, width).
KeysValues = tuple[Tensor, Tensor]
# Why a model cannot lend its cache in some way, or None where it can.
Probe = Callable[[PreTrainedModel], str | None]

MIN_PREFIX = 16  # tokens; what is shorter is read with each sequence: to lend it would cost more


class CacheNotSharedError(RuntimeError):
    """A model's cache cannot be lent."""


class SharedPrefix:
    """What many batches in a row need to know of a model once, while its weights stay.

    Deliberately no container, whose content would be copied when a batch moves to a device.
    """

    def __init__(self) -> None:
        self._problems: WeakKeyDictionary[PreTrainedModel, dict[Probe, str | None]] = (
            WeakKeyDictionary()
        )
        self._read: WeakKeyDictionary[PreTrainedModel, tuple[list[int], list[KeysValues]]] = (
            WeakKeyDictionary()
        )

    def find_problem(self, model: PreTrainedModel, probe: Probe) -> str | None:
        """What the probe says; a warning says what it means when it is first found.

        Args:
            model: a causal LM in evaluation mode.
            probe: of the way in which its cache is to be lent.
        """
        known = self._problems.setdefault(model, {})
        if probe not in known:
            known[probe] = problem = probe(model)
            if problem is not None:
                rank_zero_warn(
                    f"{type(model).__name__} reads every sequence whole, which takes longer: "
                    f"{problem}."
                )
        return known[probe]

    def compute_keys_values(
        self, model: PreTrainedModel, tokens: Sequence[int]
    ) -> list[KeysValues]:
        """Keys and values of the beginning, layer by layer, with a batch of 1.

        Args:
            model: in evaluation mode.
            tokens: P ids, at least 1; only the last ones that were asked for are kept.
        """
        tokens = list(tokens)
        if model not in self._read or self._read[model][0] != tokens:
            self._read[model] = (tokens, compute_keys_values(model, tokens))
        return self._read[model][1]

    def make_cache(
        self, model: PreTrainedModel, tokens: Sequence[int], attention_mask: Tensor
    ) -> DynamicCache | None:
        """The cache that a left-padded batch begins with; None where the model lends none.

        The first P places are filled: in a row with n places of padding, with the padding and the
        first P - n tokens of the beginning. All that follows is left to the model, so that the rows
        stand as they would without. Keys depend on the token's position in its own row, which is
        the same in all.

        Args:
            model: a causal LM in evaluation mode.
            tokens: P ids that every row begins with, at least 1.
            attention_mask: (B, T), T above P.
        """
        if self.find_problem(model, find_padding_problem) is not None:
            return None
        return _spread(model, self.compute_keys_values(model, tokens), attention_mask)


def common_prefix_length(sequences: Sequence[list[int]]) -> int:
    """Length of the longest beginning that all sequences share."""
    low, high = min(sequences), max(sequences)
    differ = (i for i, (a, b) in enumerate(zip(low, high, strict=False)) if a != b)
    return next(differ, min(len(low), len(high)))


def shared_prefix_length(sequences: Sequence[list[int]]) -> int:
    """How many tokens to read once for all sequences: those that all begin with.

    At least one of each is left to read after them. 0 where sharing is not worth it.
    """
    shared = min(common_prefix_length(sequences), min(map(len, sequences)) - 1)
    return shared if shared >= MIN_PREFIX else 0


@torch.no_grad()
def compute_keys_values(model: PreTrainedModel, tokens: Sequence[int]) -> list[KeysValues]:
    """Keys and values of the tokens, layer by layer, with a batch of 1.

    Raises:
        CacheNotSharedError: if a block has none.
    """
    # Without a configuration no layer forgets what lies before its window.
    cache = DynamicCache()
    model.base_model(
        input_ids=torch.tensor([list(tokens)], device=model.device),
        past_key_values=cache,
        use_cache=True,
    )
    found = [(layer.keys, layer.values) for layer in cache.layers]  # type: ignore[union-attr]
    if not found or any(part is None for pair in found for part in pair):
        raise CacheNotSharedError("a block did not put its keys and values into the cache")
    return found  # type: ignore[return-value]


def probe_tokens(model: PreTrainedModel) -> list[int]:
    """Thirteen ids for a probe, spread over the vocabulary.

    At its beginning and end are often special ones, after which padding alone can change the logits
    by more than a probe tolerates.
    """
    vocabulary = model.config.get_text_config(decoder=True).vocab_size
    return [vocabulary * number // 16 for number in range(3, 16)]


def find_difference(
    model: PreTrainedModel, whole: Callable[[], Tensor], lent: Callable[[], Tensor]
) -> str | None:
    """Why a model cannot lend its cache, or None where lending changes nothing but rounding.

    Args:
        model: a causal LM in evaluation mode.
        whole: what it gives for whole sequences.
        lent: the same with a lent cache.
    """
    with torch.no_grad(), torch.autocast(model.device.type, enabled=False):
        expected = whole()
        try:
            found = lent()
        except InputError:
            raise
        except (TypeError, AttributeError, LookupError, ValueError, RuntimeError) as error:
            return f"its cache cannot be lent ({first_line(error)})"
    # A wrong mask or position is far larger than what another order of sums does.
    tolerance = 1e-4 if model.dtype.itemsize >= 4 else 5e-2
    difference = ((found - expected).abs().max() / (1 + expected.abs().max())).item()
    if not difference <= tolerance:
        return f"with a lent cache what it gives differs by {difference:.2g}"
    return None


def find_padding_problem(model: PreTrainedModel) -> str | None:
    """Why this model cannot lend its cache to left-padded rows, or None where it can.

    Runs a few tokens through the model, with a lent cache and without.

    Args:
        model: a causal LM in evaluation mode.
    """
    ids = probe_tokens(model)
    prefix = ids[:6]
    rests = [[ids[6]], [ids[4], ids[2], ids[7], ids[0]], [ids[1], ids[8]]]
    longest = len(prefix) + max(map(len, rests))
    padding = [longest - len(prefix) - len(rest) for rest in rests]
    rows = [[0] * n + prefix + rest for n, rest in zip(padding, rests, strict=True)]
    batch = torch.tensor(rows, device=model.device)
    mask = (batch > 0).long()
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    takes = inspect.signature(model.forward).parameters

    def logits(begin: int, cache: DynamicCache | None) -> Tensor:
        options = {"position_ids": positions[:, begin:]} if "position_ids" in takes else {}
        options |= {"use_cache": False} if cache is None else {"past_key_values": cache}
        written = model(input_ids=batch[:, begin:], attention_mask=mask, **options)
        return written.logits[:, -1].float()

    return find_difference(
        model,
        lambda: logits(0, None),
        lambda: logits(len(prefix), _spread(model, compute_keys_values(model, prefix), mask)),
    )


def _spread(
    model: PreTrainedModel, layers: Sequence[KeysValues], attention_mask: Tensor
) -> DynamicCache:
    """The cache of a batch, each row's part of the beginning behind its padding."""
    length = layers[0][0].shape[2]
    padding = (attention_mask == 0).sum(1, keepdim=True)
    # What stands where the padding is does not matter: it is masked.
    places = (torch.arange(length, device=padding.device) - padding).clamp(min=0)
    cache = DynamicCache(config=model.config)
    for number, pair in enumerate(layers):
        keys, values = (part[0][:, places].transpose(0, 1) for part in pair)
        cache.update(keys, values, number)
    return cache
