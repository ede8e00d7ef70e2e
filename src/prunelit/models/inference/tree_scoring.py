"""Log-likelihoods of continuations that begin alike, what they share read once.

Root, stems and leaves of a `TokenTree` are read one after the other. Each pass borrows the keys and
values of what stands before it: the root's are the same for every stem, a stem's for each of its
leaves. The borrowed ones are put together layer by layer: never more than one layer's are held.
"""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicLayer

from prunelit.models.architecture import decoder_blocks, final_hidden
from prunelit.models.inference.prefix_cache import (
    CacheNotSharedError,
    KeysValues,
    SharedPrefix,
    find_difference,
    probe_tokens,
)
from prunelit.models.inference.scoring import log_likelihoods
from prunelit.models.inference.token_tree import TokenTree, build_branch, build_tree


class _Layer(DynamicLayer):
    """Keys and values of one layer in one pass: the borrowed ones, then the pass's own.

    Sliding windows are left to the attention mask: nothing that was read is forgotten.

    Args:
        length: of what is borrowed, in tokens.
        borrow: gives it; None where there is nothing before.
        keep: keep the pass's own for a later pass.
    """

    def __init__(
        self, length: int, borrow: Callable[[], KeysValues] | None, *, keep: bool = True
    ) -> None:
        super().__init__()
        self._length = length
        self._borrow = borrow
        self._keep = keep

    @property
    def own(self) -> KeysValues:
        """Keys and values of the tokens that the pass read."""
        if self.keys is None or self.values is None:
            raise CacheNotSharedError("a block did not put its keys and values into the cache")
        return self.keys, self.values

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> KeysValues:
        """Called by the model's attention, once a pass."""
        if self._keep:
            self.keys, self.values = key_states, value_states
        if self._borrow is None:
            return key_states, value_states
        before = self._borrow()
        return torch.cat([before[0], key_states], 2), torch.cat([before[1], value_states], 2)

    def get_seq_length(self) -> int:
        """Tokens before the pass."""
        return self._length

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Length and offset of keys and values in the pass."""
        return self._length + query_length, 0


def tree_scores(
    model: PreTrainedModel, tree: TokenTree, shared_prefix: SharedPrefix | None = None
) -> Tensor:
    """Summed log-likelihood of every request's continuation.

    What requests have in common is read once; a model whose cache cannot be lent reads every
    sequence whole.

    Args:
        model: a causal LM in evaluation mode.
        tree: the requests.
        shared_prefix: remembers between calls whether the model can lend its cache, and the root.

    Returns:
        (C,) float64, nats.
    """
    shared_prefix = shared_prefix or SharedPrefix()
    if shared_prefix.find_problem(model, find_tree_problem) is None:
        return _summed(model, tree, _shared(model, tree, shared_prefix))
    return _summed(model, tree, _whole(model, tree))


def find_tree_problem(model: PreTrainedModel) -> str | None:
    """Why this model cannot lend its cache to stems and leaves, or None where it can.

    Runs a few tokens through the model, shared and whole.

    Args:
        model: a causal LM in evaluation mode.

    Raises:
        InputError: if its logits are not numbers.
    """
    a, b, c, d, e, f, g, h, i = probe_tokens(model)[:9]
    requests = [
        [([a, b, c, d, e], [f, g, h]), ([a, b, c, d, e], [i, f]), ([a, b, c, d, e], [g])],
        [([a, b, c, h, d, i, g], [e, a]), ([a, b, c, h, d, i, g], [b, c, e])],
    ]
    tree = build_tree([a, b, c], [build_branch(own, 3) for own in requests], 0, 4096)
    tree = move_data_to_device(tree, model.device)
    return find_difference(
        model,
        lambda: _summed(model, tree, _whole(model, tree)),
        lambda: _summed(model, tree, _shared(model, tree, SharedPrefix())),
    )


def _summed(model: PreTrainedModel, tree: TokenTree, hidden: Tensor) -> Tensor:
    """(C,), log-likelihoods of the targets, summed for each request."""
    scores = log_likelihoods(model, hidden, tree.targets)
    real = tree.owners >= 0
    return scores.new_zeros(tree.requests).index_add_(0, tree.owners[real], scores[real])


def _shared(model: PreTrainedModel, tree: TokenTree, shared_prefix: SharedPrefix) -> Tensor:
    """(N', D), the embeddings at all places."""
    length, blocks = len(tree.root), len(decoder_blocks(model)[1])
    roots = (
        shared_prefix.compute_keys_values(model, tree.root.tolist()) if length else [None] * blocks
    )
    found = []
    stems: list[list[KeysValues]] = [[] for _ in range(blocks)]
    for own in tree.stems:
        ids = own.input_ids
        lent = [None if layer is None else _repeated(layer, len(ids)) for layer in roots]
        layers = [_Layer(length, borrow, keep=bool(tree.leaves)) for borrow in lent]
        mask = ids.new_ones(len(ids), length + ids.shape[1])
        hidden = _run(model, ids, mask, length + _count(ids), layers)
        found.append(hidden.flatten(0, 1)[own.places])
        for kept_stems, layer in zip(stems, layers if tree.leaves else [], strict=False):
            kept_stems.append(layer.own)
    for own in tree.leaves:
        before = length + own.before
        longest = int(before.max())
        steps = torch.arange(longest, device=before.device)
        # What is borrowed ends where the leaf begins, and what stands before its beginning is
        # masked. So distances are true, which sliding windows need.
        shift = (longest - before)[:, None]
        slots = (steps - shift).clamp(min=0)
        mask = torch.cat([steps >= shift, own.input_ids.new_ones(own.input_ids.shape)], 1)
        # Padding after the end gets no position that a longest sequence has not.
        last = (before + own.lengths - 1)[:, None]
        positions = torch.minimum(before[:, None] + _count(own.input_ids), last)
        lent = [
            _gathered(roots[index], stems[index], own.parents, slots) if longest else None
            for index in range(blocks)
        ]
        layers = [_Layer(longest, borrow, keep=False) for borrow in lent]
        hidden = _run(model, own.input_ids, mask.long(), positions, layers)
        found.append(hidden.flatten(0, 1)[own.places])
    return torch.cat(found)


def _whole(model: PreTrainedModel, tree: TokenTree) -> Tensor:
    """(N', D), the embeddings at all places, without a cache."""
    stems = [
        ids[:size]
        for own in tree.stems
        for ids, size in zip(own.input_ids, own.lengths, strict=True)
    ]
    found = []
    for own in [*tree.stems, *tree.leaves]:
        read, starts = [], []
        lines = zip(own.input_ids, own.lengths, own.parents, own.before, strict=True)
        for row, size, parent, before in lines:
            stem = stems[parent] if before else row[:0]
            read.append(torch.cat([tree.root, stem, row[:size]]))
            starts.append(len(tree.root) + len(stem))
        ids = pad_sequence(read, batch_first=True)
        hidden = final_hidden(model, ids, torch.ones_like(ids))
        width = own.input_ids.shape[1]
        begin = torch.tensor(starts, device=ids.device)
        row = own.places // width
        found.append(hidden[row, begin[row] + own.places % width])
    return torch.cat(found)


def _run(
    model: PreTrainedModel, ids: Tensor, mask: Tensor, positions: Tensor, layers: list[_Layer]
) -> Tensor:
    """(B, T, D), final embeddings; a family that takes no positions derives them from the mask."""
    takes = inspect.signature(model.base_model.forward).parameters
    options = {"position_ids": positions} if "position_ids" in takes else {}
    return model.base_model(
        input_ids=ids,
        attention_mask=mask,
        past_key_values=Cache(layers=layers),  # type: ignore[arg-type]
        use_cache=True,
        **options,
    ).last_hidden_state


def _count(ids: Tensor) -> Tensor:
    """(B, T), 0, 1, 2, ... in each row."""
    return torch.arange(ids.shape[1], device=ids.device).expand(ids.shape)


def _repeated(layer: KeysValues, count: int) -> Callable[[], KeysValues]:
    """The root's keys and values for each of `count` rows, without a copy."""
    return lambda: (layer[0].expand(count, -1, -1, -1), layer[1].expand(count, -1, -1, -1))


def _gathered(
    root: KeysValues | None, stems: list[KeysValues], parents: Tensor, slots: Tensor
) -> Callable[[], KeysValues]:
    """Keys and values of root and stem for each leaf, those at the given slots."""

    def gather(index: int) -> Tensor:
        width = max((own[index].shape[2] for own in stems), default=0)
        parts = [pad(own[index], (0, 0, 0, width - own[index].shape[2])) for own in stems]
        if root is None:
            source = torch.cat(parts)
        else:
            rows = sum(map(len, parts)) or 1
            repeated = root[index].expand(rows, -1, -1, -1)
            source = torch.cat([repeated, torch.cat(parts)], 2) if parts else repeated
        return source[parents[:, None], :, slots].transpose(1, 2)

    return lambda: (gather(0), gather(1))
