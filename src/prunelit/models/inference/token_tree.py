"""A prefix tree of token sequences, so that a model reads each shared part once.

It has three levels. The root is the prefix that all questions share, such as worked examples. A
stem is the rest of the prefix that all requests of one question share. A leaf is the rest of one
request, such as an answer option.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from prunelit.data.tokens import pad
from prunelit.models.inference.packing import Packed, Piece, pack
from prunelit.models.inference.prefix_cache import common_prefix_length

# Token ids of a context and of the continuation to score after it, neither empty.
Request = tuple[list[int], list[int]]

# Fixed cost of a forward pass, in tokens. On a CPU the weights are read once per pass (measured),
# on a GPU kernels are started (assumed).
PASS_ON_CPU, _PASS_ON_GPU = 48, 1024


@dataclass(frozen=True)
class Branch:
    """The requests of one question, after the root.

    Args:
        stem: token ids that all requests share; may be empty.
        leaves: for each request the token ids after the stem; may be empty.
        firsts: for each request the position in stem and leaf that predicts its first target.
        targets: for each request the token ids of its continuation.
    """

    stem: list[int]
    leaves: list[list[int]]
    firsts: list[int]
    targets: list[list[int]]


@dataclass
class Pass:
    """Stems or leaves of similar length that a model reads in one forward pass.

    Args:
        input_ids: (M, S), right-padded.
        lengths: (M,), lengths without padding.
        parents: (M,), for a leaf the index of its stem, in the order in which stems are read.
        before: (M,), for a leaf the length of its stem; 0 for a stem.
        places: (N,), flat indices into the M x S positions that predict a target.
    """

    input_ids: Tensor
    lengths: Tensor
    parents: Tensor
    before: Tensor
    places: Tensor


@dataclass
class TokenTree:
    """Requests of several questions in the order in which a model reads them.

    Args:
        root: (R,), token ids that all questions share; may be empty.
        stems: passes over the stems.
        leaves: passes over the leaves.
        targets: (N', K), the targets that each position predicts, pass by pass.
        owners: (N', K), index of the request of each target; -1 is padding.
        requests: C, number of requests.
        packed: stems and leaves in common rows; None leaves this way out.
    """

    root: Tensor
    stems: list[Pass]
    leaves: list[Pass]
    targets: Tensor
    owners: Tensor
    requests: int
    packed: Packed | None = None


@dataclass(frozen=True)
class _Line:
    """One stem or leaf: its tokens, its stem, the stem's length, and its targets by position."""

    tokens: list[int]
    stem: int
    before: int
    after: dict[int, list[tuple[int, int]]]


def build_branch(requests: Sequence[Request], root: int = 0) -> Branch:
    """Split the requests of one question into stem and leaves.

    Args:
        requests: requests of the question.
        root: number of tokens of the root, at the start of every context.
    """
    reads = [[*context, *continuation[:-1]][root:] for context, continuation in requests]
    cut = common_prefix_length(reads)
    return Branch(
        reads[0][:cut],
        [read[cut:] for read in reads],
        [len(context) - 1 - root for context, _ in requests],
        [continuation for _, continuation in requests],
    )


def build_tree(
    root: Sequence[int],
    branches: Sequence[Branch],
    pad_id: int,
    tokens: int,
    pass_cost: int | None = None,
    packing: bool = False,
) -> TokenTree:
    """Build the tree of several questions and group its stems and leaves into passes.

    Args:
        root: token ids that all questions share.
        branches: branches of the questions.
        pad_id: id of the padding.
        tokens: most tokens of a pass, including padding.
        pass_cost: fixed cost of a pass, in tokens; None takes the value for this machine.
        packing: pack stems and leaves into common rows too, unless a question is too long.
    """
    if pass_cost is None:
        pass_cost = _PASS_ON_GPU if torch.cuda.is_available() else PASS_ON_CPU
    stems, leaves = _split_lines(branches)
    stem_passes = _group_passes(stems, tokens, pass_cost)
    # A leaf refers to its stem by the index in the order of reading.
    place = {line.stem: i for i, line in enumerate(line for own in stem_passes for line in own)}
    leaf_passes = _group_passes(leaves, tokens, pass_cost)
    after = [
        line.after[column]
        for lines in [*stem_passes, *leaf_passes]
        for line in lines
        for column in sorted(line.after)
    ]
    most = max(map(len, after))
    pairs = torch.tensor([own + [(0, -1)] * (most - len(own)) for own in after])
    return TokenTree(
        torch.tensor(root, dtype=torch.int64),
        [_make_pass(lines, pad_id, {}) for lines in stem_passes],
        [_make_pass(lines, pad_id, place) for lines in leaf_passes],
        pairs[..., 0],
        pairs[..., 1],
        sum(len(own.targets) for own in branches),
        _pack_lines(stem_passes, leaf_passes, pad_id, tokens) if packing else None,
    )


def _pack_lines(
    stems: list[list[_Line]], leaves: list[list[_Line]], pad_id: int, tokens: int
) -> Packed | None:
    """Pack each stem with its leaves; a leaf without a stem is a tree of its own."""
    count = sum(map(len, stems))
    trees: dict[tuple[int, int], list[tuple[int, Piece]]] = {}
    for number, line in enumerate(line for lines in [*stems, *leaves] for line in lines):
        alone = number if number >= count and not line.before else -1
        piece = Piece(line.tokens, line.before, sorted(line.after))
        trees.setdefault((line.stem, alone), []).append((number, piece))
    return pack(list(trees.values()), pad_id, tokens)


def _split_lines(branches: Sequence[Branch]) -> tuple[list[_Line], list[_Line]]:
    """Return all stems, and all leaves except those that are a prefix of another leaf.

    A causal model sees only earlier tokens, so the longer leaf also holds the targets of its
    prefix.
    """
    stems, leaves = [], []
    request = 0
    for number, own in enumerate(branches):
        stem = _Line(own.stem, number, 0, {})
        grown: list[_Line] = []
        for leaf in sorted(own.leaves, key=len, reverse=True):
            if leaf and not any(line.tokens[: len(leaf)] == leaf for line in grown):
                grown.append(_Line(leaf, number, len(own.stem), {}))
        for leaf, first, targets in zip(own.leaves, own.firsts, own.targets, strict=True):
            found = next((line for line in grown if line.tokens[: len(leaf)] == leaf), stem)
            for place, target in enumerate(targets, first - len(own.stem)):
                line, column = (found, place) if place >= 0 else (stem, place + len(own.stem))
                line.after.setdefault(column, []).append((target, request))
            request += 1
        stems += [stem] if own.stem else []
        leaves += grown
    return stems, leaves


def _group_passes(lines: Sequence[_Line], tokens: int, pass_cost: int) -> list[list[_Line]]:
    """Group lines into passes, longest first, with the least cost of passes and padding."""
    groups = group_by_length([len(line.tokens) for line in lines], tokens, pass_cost=pass_cost)
    return [[lines[number] for number in group] for group in groups]


def group_by_length(
    lengths: Sequence[int], tokens: int, *, most: int | None = None, pass_cost: int = PASS_ON_CPU
) -> list[list[int]]:
    """Group sequences into passes, longest first, with the least cost of passes and padding.

    Args:
        lengths: of the sequences, in tokens.
        tokens: most tokens of a pass, padding included. A single sequence may have more.
        most: most sequences of a pass; None is no limit.
        pass_cost: fixed cost of a pass, in tokens.

    Returns:
        The numbers of the sequences of each pass.
    """
    order = sorted(range(len(lengths)), key=lambda number: -lengths[number])
    # Least cost of the first n sequences, and the start of their last pass.
    best: list[tuple[int, int]] = [(0, 0)]
    for end in range(1, len(order) + 1):
        options = []
        for start in range(end - 1, max(-1, end - 1 - (most or end)), -1):
            read = (end - start) * lengths[order[start]]
            if read > tokens and start < end - 1:
                break
            options.append((best[start][0] + pass_cost + read, start))
        best.append(min(options))
    passes: list[list[int]] = []
    end = len(order)
    while end:
        start = best[end][1]
        passes.append(order[start:end])
        end = start
    return passes[::-1]


def _make_pass(lines: Sequence[_Line], pad_id: int, place: dict[int, int]) -> Pass:
    ids = pad([line.tokens for line in lines], pad_id)["input_ids"]
    width = ids.shape[1]
    return Pass(
        ids,
        torch.tensor([len(line.tokens) for line in lines]),
        torch.tensor([place.get(line.stem, 0) for line in lines]),
        torch.tensor([line.before for line in lines]),
        torch.tensor(
            [
                row * width + column
                for row, line in enumerate(lines)
                for column in sorted(line.after)
            ],
            dtype=torch.int64,
        ),
    )
