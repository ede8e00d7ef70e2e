"""Pack prefix trees into rows: a model reads whole trees side by side, almost without padding.

A row holds one or more trees. A tree is a stem and the leaves after it, one after another. A token
sees the tokens before it in its stem and in its own leaf, and no others, by its mask and position.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

LONGEST = 1024  # tokens of a tree; reading a longer one costs more by its mask than padding would
# In a row of this length, reading keys and values costs as much as the rest of a block (measured on
# a CPU, a width of 576: 5 ms for 64 tokens more a row, beside 180 ms). Wider models: still longer.
_ATTENTION = 2500


@dataclass
class Rows:
    """Rows that a model reads in one forward pass.

    Args:
        input_ids: (B, W), right-padded.
        positions: (B, W), position of each token in its own sequence, after the root.
        trees: (B, W), number of the tree in the row; -1 is padding.
        leaves: (B, W), number of the leaf in the tree; 0 is the stem.
        places: (n,), flat indices into the B x W positions that predict a target.
    """

    input_ids: Tensor
    positions: Tensor
    trees: Tensor
    leaves: Tensor
    places: Tensor


@dataclass
class Packed:
    """Prefix trees in rows.

    Args:
        passes: rows, pass by pass.
        order: (N',), for each position that predicts a target its index in the places of all
            passes.
    """

    passes: list[Rows]
    order: Tensor


@dataclass(frozen=True)
class Piece:
    """One stem or leaf.

    Args:
        tokens: its token ids.
        start: position of the first one, after the root.
        columns: indices of its tokens that predict a target.
    """

    tokens: list[int]
    start: int
    columns: list[int]


def pack(trees: Sequence[Sequence[tuple[int, Piece]]], pad_id: int, tokens: int) -> Packed | None:
    """Pack trees into rows of one length.

    Args:
        trees: the pieces of each tree with their numbers, from 0; the first piece is the stem.
        pad_id: id of the padding.
        tokens: most tokens of a pass, including padding. A single row may have more.

    Returns:
        None if a tree is too long.
    """
    sizes = [sum(len(piece.tokens) for _, piece in tree) for tree in trees]
    if max(sizes) > LONGEST:
        return None
    rows = _fill_rows(sizes)
    width = max(sum(sizes[number] for number in row) for row in rows)
    count = -(-len(rows) // max(1, tokens // width))
    passes: list[Rows] = []
    found: list[tuple[int, int]] = []  # number of a piece, and its column
    for part in range(count):
        own = rows[part * len(rows) // count : (part + 1) * len(rows) // count]
        made, after = _make_rows([[trees[number] for number in row] for row in own], width, pad_id)
        passes.append(made)
        found += after
    order = torch.tensor(sorted(range(len(found)), key=found.__getitem__), dtype=torch.int64)
    return Packed(passes, order)


def tree_mask(rows: Rows, root: int, dtype: torch.dtype) -> Tensor:
    """Compute what is added to attention scores: 0 where a token sees another one.

    Args:
        rows: of one pass.
        root: R, number of tokens before each row, which all its tokens see.
        dtype: of the model.

    Returns:
        (B, 1, W, R + W).
    """
    trees, leaves = rows.trees, rows.leaves
    width = trees.shape[1]
    sees = trees[:, :, None] == trees[:, None]
    sees &= (leaves[:, None] == 0) | (leaves[:, :, None] == leaves[:, None])
    sees &= torch.ones(width, width, dtype=torch.bool, device=trees.device).tril()
    mask = torch.zeros(len(trees), 1, width, root + width, dtype=dtype, device=trees.device)
    mask[..., root:].masked_fill_(~sees[:, None], torch.finfo(dtype).min)
    return mask


def _fill_rows(sizes: Sequence[int]) -> list[list[int]]:
    """Return the trees of each row, in rows of the length that costs least."""
    order = sorted(range(len(sizes)), key=lambda number: -sizes[number])
    longest = sizes[order[0]]
    options = []
    for width in range(longest, 4 * longest + 1, -(-longest // 32)):
        rows: list[list[int]] = []
        free: list[int] = []
        for number in order:  # first fit, the longest first
            size = sizes[number]
            row = next((row for row, left in enumerate(free) if left >= size), len(rows))
            if row == len(rows):
                rows.append([])
                free.append(width)
            rows[row].append(number)
            free[row] -= size
        real = width - min(free)
        options.append((len(rows) * real * (1 + real / _ATTENTION), rows))
    return min(options)[1]


def _make_rows(
    rows: Sequence[Sequence[Sequence[tuple[int, Piece]]]], width: int, pad_id: int
) -> tuple[Rows, list[tuple[int, int]]]:
    """Make one pass; return with it the number of the piece and the column of each place."""
    shape = (len(rows), width)
    ids, positions, leaves = torch.full(shape, pad_id), torch.zeros(shape), torch.zeros(shape)
    numbers = torch.full(shape, -1)
    places: list[int] = []
    after: list[tuple[int, int]] = []
    for row, trees in enumerate(rows):
        begin = 0
        for number, tree in enumerate(trees):
            for leaf, (name, piece) in enumerate(tree):
                end = begin + len(piece.tokens)
                ids[row, begin:end] = torch.tensor(piece.tokens)
                positions[row, begin:end] = torch.arange(piece.start, piece.start + end - begin)
                numbers[row, begin:end], leaves[row, begin:end] = number, leaf
                places += [row * width + begin + column for column in piece.columns]
                after += [(name, column) for column in piece.columns]
                begin = end
    made = Rows(ids, positions.long(), numbers, leaves.long(), torch.tensor(places).long())
    return made, after
