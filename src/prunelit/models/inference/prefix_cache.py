"""Share the KV cache of a common prefix between sequences."""

import threading
from collections.abc import Callable, Sequence
from weakref import WeakKeyDictionary

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from prunelit.errors import InputError, first_line
from prunelit.models.architecture import takes_positions, trunk
from prunelit.models.stores import one_at_a_time
from prunelit.models.views import original

# Keys and values of a layer, each (B, heads, T, width).
KeysValues = tuple[Tensor, Tensor]
# Returns why the cache of a model cannot be shared in one way, or None if it can.
Check = Callable[[PreTrainedModel], str | None]

MIN_PREFIX = 16  # tokens; sharing a shorter prefix would cost more than reading it again


class CacheNotSharedError(RuntimeError):
    """The cache of a model cannot be shared."""


class SharedPrefix:
    """Keys and values of the prefix of many batches, per model, while the weights do not change.

    It is no mapping or list, because the content of a container would be copied when a batch moves
    to a device.
    """

    def __init__(self) -> None:
        self._problems: WeakKeyDictionary[PreTrainedModel, dict[Check, str | None]] = (
            WeakKeyDictionary()
        )
        self._prefixes: WeakKeyDictionary[PreTrainedModel, tuple[list[int], list[KeysValues]]] = (
            WeakKeyDictionary()
        )
        self._lock = threading.Lock()

    def find_problem(
        self, model: PreTrainedModel, check: Check, *, warn: bool = True
    ) -> str | None:
        """Run a check once per model, and warn if the cache cannot be shared.

        Args:
            model: a causal LM in evaluation mode.
            check: tests one way to share the cache.
            warn: say that every sequence is read whole. False if there is another way to share.

        Returns:
            The reason why the cache cannot be shared, or None if it can.
        """
        with one_at_a_time(self._lock):
            known = self._problems.setdefault(original(model), {})
            if check not in known:
                known[check] = problem = check(model)
                if problem is not None and warn:
                    rank_zero_warn(
                        f"{type(model).__name__} reads every sequence whole, which takes longer: "
                        f"{problem}."
                    )
            return known[check]

    def compute_keys_values(
        self, model: PreTrainedModel, tokens: Sequence[int]
    ) -> list[KeysValues]:
        """Compute keys and values of the prefix, layer by layer, with a batch size of 1.

        Args:
            model: in evaluation mode.
            tokens: P ids, at least 1. Only the last prefix of each model is kept.
        """
        tokens, key = list(tokens), original(model)
        with one_at_a_time(self._lock):
            if key not in self._prefixes or self._prefixes[key][0] != tokens:
                self._prefixes[key] = (tokens, compute_keys_values(model, tokens))
            return self._prefixes[key][1]

    def make_cache(
        self, model: PreTrainedModel, tokens: Sequence[int], attention_mask: Tensor
    ) -> DynamicCache | None:
        """Make the cache of a left-padded batch; None if the cache of the model cannot be shared.

        The cache fills the first P positions. In a row with n positions of padding these are the
        padding and the first P - n tokens of the prefix; the model reads all later tokens. Keys
        depend on the position of a token in its own row without padding, which is the same in all
        rows.

        Args:
            model: a causal LM in evaluation mode.
            tokens: P ids at the start of every row, at least 1.
            attention_mask: (B, T), T above P.
        """
        if self.find_problem(model, find_padding_problem) is not None:
            return None
        return _expand_to_batch(model, self.compute_keys_values(model, tokens), attention_mask)


def common_prefix_length(sequences: Sequence[list[int]]) -> int:
    """Length of the longest common prefix of all sequences."""
    low, high = min(sequences), max(sequences)
    differ = (i for i, (a, b) in enumerate(zip(low, high, strict=False)) if a != b)
    return next(differ, min(len(low), len(high)))


def shared_prefix_length(sequences: Sequence[list[int]]) -> int:
    """Number of prefix tokens to read once for all sequences; 0 if sharing costs more.

    At least one token of each sequence is not in the prefix.
    """
    shared = min(common_prefix_length(sequences), min(map(len, sequences)) - 1)
    return shared if shared >= MIN_PREFIX else 0


@torch.no_grad()
def compute_keys_values(model: PreTrainedModel, tokens: Sequence[int]) -> list[KeysValues]:
    """Compute keys and values of the tokens, layer by layer, with a batch size of 1.

    Raises:
        CacheNotSharedError: if a block does not store its keys and values.
    """
    # Without a configuration no layer drops the tokens before its sliding window.
    cache = DynamicCache()
    trunk(model)(
        input_ids=torch.tensor([list(tokens)], device=model.device),
        past_key_values=cache,
        use_cache=True,
    )
    found = [(layer.keys, layer.values) for layer in cache.layers]  # type: ignore[union-attr]
    if not found or any(part is None for pair in found for part in pair):
        raise CacheNotSharedError("a block did not store its keys and values in the cache")
    return found  # type: ignore[return-value]


def plain_tokens(model: PreTrainedModel) -> list[int]:
    """Return thirteen ids for a check, spread over the vocabulary.

    The start and the end of a vocabulary often hold special tokens. After these, padding alone can
    change the logits by more than the tolerance of a check.
    """
    vocabulary = model.config.get_text_config(decoder=True).vocab_size
    return [vocabulary * number // 16 for number in range(3, 16)]


def find_difference(
    model: PreTrainedModel, whole: Callable[[], Tensor], shared: Callable[[], Tensor]
) -> str | None:
    """Compare the results with and without a shared cache.

    Args:
        model: a causal LM in evaluation mode.
        whole: computes the result with whole sequences.
        shared: computes it with a shared cache.

    Returns:
        The reason why the cache cannot be shared; None if the results differ only by rounding.
    """
    with torch.no_grad(), torch.autocast(model.device.type, enabled=False):
        expected = whole()
        try:
            found = shared()
        except InputError:
            raise
        except LookupError:
            return "its cache cannot be shared (a block reads a place that the cache does not have)"
        except (TypeError, AttributeError, ValueError, RuntimeError) as error:
            return f"its cache cannot be shared ({first_line(error)})"
    # A wrong mask or position changes far more than another order of sums.
    tolerance = 1e-4 if model.dtype.itemsize >= 4 else 5e-2
    difference = ((found - expected).abs().max() / (1 + expected.abs().max())).item()
    if not difference <= tolerance:
        return f"with a shared cache its results differ by {difference:.2g}"
    return None


def find_padding_problem(model: PreTrainedModel) -> str | None:
    """Check if the cache of a model can be shared by left-padded rows.

    It runs a few tokens through the model, with a shared cache and without.

    Args:
        model: a causal LM in evaluation mode.

    Returns:
        The reason why the cache cannot be shared; None if it can.
    """
    ids = plain_tokens(model)
    prefix = ids[:6]
    rests = [[ids[6]], [ids[4], ids[2], ids[7], ids[0]], [ids[1], ids[8]]]
    longest = len(prefix) + max(map(len, rests))
    padding = [longest - len(prefix) - len(rest) for rest in rests]
    rows = [[0] * n + prefix + rest for n, rest in zip(padding, rests, strict=True)]
    batch = torch.tensor(rows, device=model.device)
    mask = (batch > 0).long()
    positions = (mask.cumsum(1) - 1).clamp(min=0)

    def logits(begin: int, cache: DynamicCache | None) -> Tensor:
        options = {"position_ids": positions[:, begin:]} if takes_positions(model) else {}
        options |= {"use_cache": False} if cache is None else {"past_key_values": cache}
        written = model(input_ids=batch[:, begin:], attention_mask=mask, **options)
        return written.logits[:, -1].float()

    def shared_logits() -> Tensor:
        layers = compute_keys_values(model, prefix)
        return logits(len(prefix), _expand_to_batch(model, layers, mask))

    return find_difference(model, lambda: logits(0, None), shared_logits)


def _expand_to_batch(
    model: PreTrainedModel, layers: Sequence[KeysValues], attention_mask: Tensor
) -> DynamicCache:
    """Make the cache of a batch: in each row its part of the prefix, after the padding."""
    length = layers[0][0].shape[2]
    padding = (attention_mask == 0).sum(1, keepdim=True)
    # The values at the padding do not matter, as they are masked.
    positions = (torch.arange(length, device=padding.device) - padding).clamp(min=0)
    cache = DynamicCache(config=model.config)
    for number, pair in enumerate(layers):
        keys, values = (part[0][:, positions].transpose(0, 1) for part in pair)
        cache.update(keys, values, number)
    return cache
