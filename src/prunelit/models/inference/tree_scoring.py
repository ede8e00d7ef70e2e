"""Score continuations with a prefix tree: each shared part is read once.

The model reads the root of a `TokenTree`, then rows of whole questions, each token with the mask
and the position that its place in the tree gives it. A family that cannot be read so, or whose
sliding window is shorter than a row, reads root, stems and leaves one after the other. Each pass
uses the keys and values of the tokens before it: every stem those of the root, every leaf those of
its stem. They are joined layer by layer, so that only one layer's joined keys and values are in
memory.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicLayer

from prunelit.models.architecture import decoder_blocks, final_hidden, takes_positions, trunk
from prunelit.models.inference.packing import Packed, tree_mask
from prunelit.models.inference.prefix_cache import (
    CacheNotSharedError,
    KeysValues,
    SharedPrefix,
    find_difference,
    plain_tokens,
)
from prunelit.models.inference.scoring import log_likelihoods
from prunelit.models.inference.token_tree import TokenTree, build_branch, build_tree

# Names of a configuration for the number of tokens that attention looks back.
_WINDOW = re.compile(r"(window|chunk)(_size)?$")


class _PrefixLayer(DynamicLayer):
    """Keys and values of one layer in one pass: those of the prefix, then the pass's own.

    No token is dropped; the attention mask applies sliding windows.

    Args:
        length: length of the prefix, in tokens.
        prefix: returns keys and values of the prefix; None without a prefix.
        keep: keep the pass's own keys and values for a later pass.
    """

    def __init__(
        self, length: int, prefix: Callable[[], KeysValues] | None, *, keep: bool = True
    ) -> None:
        super().__init__()
        self._length = length
        self._prefix = prefix
        self._keep = keep

    @property
    def own(self) -> KeysValues:
        """Keys and values of the tokens of the pass."""
        if self.keys is None or self.values is None:
            raise CacheNotSharedError("a block did not store its keys and values in the cache")
        return self.keys, self.values

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> KeysValues:
        """Return the keys and values that attention reads: prefix first, then those of the pass."""
        if self._keep:
            self.keys, self.values = key_states, value_states
        if self._prefix is None:
            return key_states, value_states
        before = self._prefix()
        return torch.cat([before[0], key_states], 2), torch.cat([before[1], value_states], 2)

    def get_seq_length(self) -> int:
        """Return the number of tokens before the pass."""
        return self._length

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return length and offset of the keys and values of the pass."""
        return self._length + query_length, 0


def tree_scores(
    model: PreTrainedModel, tree: TokenTree, shared_prefix: SharedPrefix | None = None
) -> Tensor:
    """Compute the log-likelihood of every request's continuation, a sum over its tokens.

    A tree that is packed is read in rows if the model can read them. If else the cache of the model
    cannot be shared, every sequence is read whole.

    Args:
        model: a causal LM in evaluation mode.
        tree: the requests.
        shared_prefix: keeps the keys and values of the root, and the result of the check, between
            calls.

    Returns:
        (C,) float64, nats.
    """
    shared_prefix = shared_prefix or SharedPrefix()
    packed = tree.packed
    if (
        packed is not None
        and _fits_windows(model, len(tree.root) + packed.passes[0].input_ids.shape[1])
        and shared_prefix.find_problem(model, find_packing_problem, warn=False) is None
    ):
        return _sum_by_request(model, tree, _embed_packed(model, tree, packed, shared_prefix))
    if shared_prefix.find_problem(model, find_tree_problem) is None:
        return _sum_by_request(model, tree, _embed_shared(model, tree, shared_prefix))
    return _sum_by_request(model, tree, _embed_whole(model, tree))


def find_tree_problem(model: PreTrainedModel) -> str | None:
    """Check if the cache of a model can be shared by stems and leaves.

    It runs a few tokens through the model, with a shared cache and without.

    Args:
        model: a causal LM in evaluation mode.

    Returns:
        The reason why the cache cannot be shared; None if it can.

    Raises:
        InputError: if the logits hold NaN.
    """
    return _find_problem(
        model, lambda tree: _embed_shared(model, tree, SharedPrefix()), packing=False
    )


def find_packing_problem(model: PreTrainedModel) -> str | None:
    """Check if a model can read several questions in one row, as `find_tree_problem` does.

    Returns:
        The reason why it cannot; None if it can.

    Raises:
        InputError: if the logits hold NaN.
    """
    if not takes_positions(model):
        return "it takes no positions"

    def embed(tree: TokenTree) -> Tensor:
        assert tree.packed is not None
        return _embed_packed(model, tree, tree.packed, SharedPrefix())

    return _find_problem(model, embed, packing=True)


def _find_problem(
    model: PreTrainedModel, embed: Callable[[TokenTree], Tensor], packing: bool
) -> str | None:
    """Compare one way to read a tree with whole sequences."""
    a, b, c, d, e, f, g, h, i = plain_tokens(model)[:9]
    requests = [
        [([a, b, c, d, e], [f, g, h]), ([a, b, c, d, e], [i, f]), ([a, b, c, d, e], [g])],
        [([a, b, c, h, d, i, g], [e, a]), ([a, b, c, h, d, i, g], [b, c, e])],
    ]
    branches = [build_branch(own, 3) for own in requests]
    tree = build_tree([a, b, c], branches, 0, 4096, packing=packing)
    tree = move_data_to_device(tree, model.device)
    return find_difference(
        model,
        lambda: _sum_by_request(model, tree, _embed_whole(model, tree)),
        lambda: _sum_by_request(model, tree, embed(tree)),
    )


def _fits_windows(model: PreTrainedModel, length: int) -> bool:
    """Return True if no sliding window or chunk of a model is shorter than a row and the root."""
    config = model.config.get_text_config(decoder=True)
    sizes = (value for name, value in vars(config).items() if _WINDOW.search(name))
    return not any(type(size) is int and 0 < size < length for size in sizes)


def _sum_by_request(model: PreTrainedModel, tree: TokenTree, hidden: Tensor) -> Tensor:
    """Sum the log-likelihoods of the targets of each request, (C,)."""
    scores = log_likelihoods(model, hidden, tree.targets)
    real = tree.owners >= 0
    return scores.new_zeros(tree.requests).index_add_(0, tree.owners[real], scores[real])


def _embed_packed(
    model: PreTrainedModel, tree: TokenTree, packed: Packed, shared_prefix: SharedPrefix
) -> Tensor:
    """Compute the embeddings that predict targets, (N', D), with whole questions in rows."""
    length, roots = len(tree.root), _read_root(model, tree, shared_prefix)
    found = []
    for rows in packed.passes:
        mask = tree_mask(rows, length, model.dtype)
        prefixes = [None if root is None else _repeat(root, len(mask)) for root in roots]
        layers = [_PrefixLayer(length, prefix, keep=False) for prefix in prefixes]
        hidden = _run(model, rows.input_ids, mask, length + rows.positions, layers)
        found.append(hidden.flatten(0, 1)[rows.places])
    return torch.cat(found)[packed.order]


def _read_root(
    model: PreTrainedModel, tree: TokenTree, shared_prefix: SharedPrefix
) -> Sequence[KeysValues | None]:
    """Return keys and values of the root for each block; None without a root."""
    if len(tree.root):
        return shared_prefix.compute_keys_values(model, tree.root.tolist())
    return [None] * len(decoder_blocks(model)[1])


def _embed_shared(model: PreTrainedModel, tree: TokenTree, shared_prefix: SharedPrefix) -> Tensor:
    """Compute the embeddings that predict targets, (N', D), with a shared cache."""
    length, roots = len(tree.root), _read_root(model, tree, shared_prefix)
    blocks = len(roots)
    found = []
    stems: list[list[KeysValues]] = [[] for _ in range(blocks)]
    for own in tree.stems:
        ids = own.input_ids
        prefixes = [None if layer is None else _repeat(layer, len(ids)) for layer in roots]
        layers = [_PrefixLayer(length, prefix, keep=bool(tree.leaves)) for prefix in prefixes]
        mask = ids.new_ones(len(ids), length + ids.shape[1])
        hidden = _run(model, ids, mask, length + _count_positions(ids), layers)
        found.append(hidden.flatten(0, 1)[own.places])
        for kept_stems, layer in zip(stems, layers if tree.leaves else [], strict=False):
            kept_stems.append(layer.own)
    for own in tree.leaves:
        before = length + own.before
        longest = int(before.max())
        steps = torch.arange(longest, device=before.device)
        # The prefix ends directly before the leaf, and shorter prefixes are masked at the start. So
        # distances are right, as sliding windows need.
        shift = (longest - before)[:, None]
        slots = (steps - shift).clamp(min=0)
        mask = torch.cat([steps >= shift, own.input_ids.new_ones(own.input_ids.shape)], 1)
        # Padding gets the position of the last token, so that no position exceeds the longest.
        last = (before + own.lengths - 1)[:, None]
        positions = torch.minimum(before[:, None] + _count_positions(own.input_ids), last)
        prefixes = [
            _gather(roots[index], stems[index], own.parents, slots) if longest else None
            for index in range(blocks)
        ]
        layers = [_PrefixLayer(longest, prefix, keep=False) for prefix in prefixes]
        hidden = _run(model, own.input_ids, mask.long(), positions, layers)
        found.append(hidden.flatten(0, 1)[own.places])
    return torch.cat(found)


def _embed_whole(model: PreTrainedModel, tree: TokenTree) -> Tensor:
    """Compute the embeddings that predict targets, (N', D), without a cache."""
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
    model: PreTrainedModel, ids: Tensor, mask: Tensor, positions: Tensor, layers: list[_PrefixLayer]
) -> Tensor:
    """Compute final embeddings, (B, T, D), with a mask of two or four dimensions.

    A family without `position_ids` uses the mask.
    """
    options = {"position_ids": positions} if takes_positions(model) else {}
    return trunk(model)(
        input_ids=ids,
        attention_mask=mask,
        past_key_values=Cache(layers=layers),  # type: ignore[arg-type]
        use_cache=True,
        **options,
    ).last_hidden_state


def _count_positions(ids: Tensor) -> Tensor:
    """Return 0, 1, 2, ... in each row, (B, T)."""
    return torch.arange(ids.shape[1], device=ids.device).expand(ids.shape)


def _repeat(layer: KeysValues, count: int) -> Callable[[], KeysValues]:
    """Repeat the keys and values of the root for `count` rows, without a copy."""
    return lambda: (layer[0].expand(count, -1, -1, -1), layer[1].expand(count, -1, -1, -1))


def _gather(
    root: KeysValues | None, stems: list[KeysValues], parents: Tensor, slots: Tensor
) -> Callable[[], KeysValues]:
    """Gather keys and values of root and stem for each leaf, at the given slots."""

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
