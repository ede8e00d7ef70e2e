"""Log-likelihoods of continuations that begin alike, what they share read once.

Root, stems and leaves of a `Tree` are read one after the other. Each pass borrows the keys and
values of what stands before it: the root's are the same for every stem, a stem's for each of its
leaves. The borrowed ones are put together layer by layer: never more than one layer's are held.
"""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from lightning.fabric.utilities import move_data_to_device, rank_zero_warn
from torch import Tensor
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicLayer

from prunelit.errors import InputError, first_line
from prunelit.models.architecture import decoder_blocks, final_hidden
from prunelit.models.branches import Tree, branch, grow
from prunelit.models.scoring import log_likelihoods

# Keys and values of a layer, each (B, heads, T, width).
KeysValues = tuple[Tensor, Tensor]


class Lending:
    """What many batches in a row need to know of a model once, while its weights stay.

    Deliberately no container, whose content would be copied when a batch moves to a device.
    """

    def __init__(self) -> None:
        # By identity; the models are held, so that none is mistaken for another.
        self._models: dict[int, PreTrainedModel] = {}
        self._problems: dict[int, str | None] = {}
        self._roots: dict[int, tuple[list[int], list[KeysValues]]] = {}

    def problem(self, model: PreTrainedModel) -> str | None:
        """See `sharing_problem`; a warning says what it means when it is first found."""
        key = self._key(model)
        if key not in self._problems:
            self._problems[key] = problem = sharing_problem(model)
            if problem is not None:
                rank_zero_warn(
                    f"{type(model).__name__} reads every choice with its whole prompt, which takes "
                    f"longer: {problem}."
                )
        return self._problems[key]

    def root(self, model: PreTrainedModel, ids: Tensor) -> list[KeysValues]:
        """Keys and values of the root, layer by layer, with a batch of 1.

        Args:
            model: in evaluation mode.
            ids: (R,), R at least 1.
        """
        key, tokens = self._key(model), ids.tolist()
        if key not in self._roots or self._roots[key][0] != tokens:
            layers = [_Layer(0, None) for _ in decoder_blocks(model)[1]]
            _run(model, ids[None], torch.ones_like(ids[None]), _count(ids[None]), layers)
            self._roots[key] = (tokens, [layer.own for layer in layers])
        return self._roots[key][1]

    def _key(self, model: PreTrainedModel) -> int:
        self._models[id(model)] = model
        return id(model)


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
            raise _NotSharedError("a block did not put its keys and values into the cache")
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


class _NotSharedError(RuntimeError):
    """A model's cache cannot be lent."""


def tree_scores(model: PreTrainedModel, tree: Tree, lending: Lending | None = None) -> Tensor:
    """Summed log-likelihood of every request's continuation.

    What requests have in common is read once; a model whose cache cannot be lent reads every
    sequence whole.

    Args:
        model: a causal LM in evaluation mode.
        tree: the requests.
        lending: remembers between calls whether the model can lend its cache, and the root.

    Returns:
        (C,) float64, nats.
    """
    lending = lending or Lending()
    if lending.problem(model) is None:
        return _summed(model, tree, _shared(model, tree, lending))
    return _summed(model, tree, _whole(model, tree))


def sharing_problem(model: PreTrainedModel) -> str | None:
    """Why this model cannot lend its cache, or None where it can.

    Runs a few tokens through the model, shared and whole.

    Args:
        model: a causal LM in evaluation mode.

    Raises:
        InputError: if its logits are not numbers.
    """
    requests = [
        [([1, 2, 3, 4, 5], [6, 7, 8]), ([1, 2, 3, 4, 5], [9, 6]), ([1, 2, 3, 4, 5], [7])],
        [([1, 2, 3, 8, 4, 9, 7], [5, 1]), ([1, 2, 3, 8, 4, 9, 7], [2, 3, 5])],
    ]
    tree = grow([1, 2, 3], [branch(own, 3) for own in requests], 0, 4096)
    tree = move_data_to_device(tree, model.device)
    with torch.no_grad(), torch.autocast(model.device.type, enabled=False):
        whole = _summed(model, tree, _whole(model, tree))
        try:
            shared = _summed(model, tree, _shared(model, tree, Lending()))
        except InputError:
            raise
        except (TypeError, AttributeError, LookupError, ValueError, RuntimeError) as error:
            return f"its cache cannot be lent ({first_line(error)})"
    # A wrong mask or position is far larger than what another order of sums does.
    tolerance = 1e-4 if model.dtype.itemsize >= 4 else 5e-2
    worst = float(((shared - whole).abs() / (1 + whole.abs())).max())
    if not worst <= tolerance:
        return f"with a lent cache its log-likelihoods differ by {worst:.2g}"
    return None


def _summed(model: PreTrainedModel, tree: Tree, hidden: Tensor) -> Tensor:
    """(C,), log-likelihoods of the targets, summed for each request."""
    scores = log_likelihoods(model, hidden, tree.targets)
    real = tree.owners >= 0
    return scores.new_zeros(tree.requests).index_add_(0, tree.owners[real], scores[real])


def _shared(model: PreTrainedModel, tree: Tree, lending: Lending) -> Tensor:
    """(N', D), the embeddings at all places."""
    length, blocks = len(tree.root), len(decoder_blocks(model)[1])
    roots = lending.root(model, tree.root) if length else [None] * blocks
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


def _whole(model: PreTrainedModel, tree: Tree) -> Tensor:
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
