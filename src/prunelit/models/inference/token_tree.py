"""Token sequences that begin alike, as a tree whose shared parts a model reads once."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from prunelit.data.tokens import pad
from prunelit.models.inference.prefix_cache import common_prefix_length

# Tokens of a context and of the continuation that is scored after it, neither empty.
Request = tuple[list[int], list[int]]

# A pass over a few tokens costs about as much as so many tokens more: on a CPU the weights are read
# once a pass (measured), on a GPU kernels are started (assumed).
_PASS_ON_CPU, _PASS_ON_GPU = 48, 1024


@dataclass(frozen=True)
class Branch:
    """The requests of one question, without the root that many questions have in common.

    Args:
        stem: what all requests read first; may be empty.
        leaves: for each request what it reads after the stem; may be empty.
        firsts: for each request the place in stem and leaf whose next token is its first target.
        targets: for each request its continuation.
    """

    stem: list[int]
    leaves: list[list[int]]
    firsts: list[int]
    targets: list[list[int]]


@dataclass
class Pass:
    """Stems or leaves of about one length, which a model reads together.

    Args:
        input_ids: (M, S), right-padded.
        lengths: (M,), without padding.
        parents: (M,), of a leaf the stem it grows from, in the order of all stems that are read.
        before: (M,), tokens between the root and it: the length of that stem; 0 for a stem.
        places: (N,), where in the M x S positions a target follows.
    """

    input_ids: Tensor
    lengths: Tensor
    parents: Tensor
    before: Tensor
    places: Tensor


@dataclass
class TokenTree:
    """Requests of several questions as a model reads them: root, stems, leaves.

    Args:
        root: (R,), what all questions read first; may be empty.
        stems: passes over what the choices of a question have in common.
        leaves: passes over what comes after it.
        targets: (N', K), the tokens that follow each place, pass by pass.
        owners: (N', K), the request that each target belongs to; -1 fills up.
        requests: C, number of requests.
    """

    root: Tensor
    stems: list[Pass]
    leaves: list[Pass]
    targets: Tensor
    owners: Tensor
    requests: int


@dataclass(frozen=True)
class _Line:
    """One stem or leaf to be read: its tokens, the stem it grows from, what follows its places."""

    tokens: list[int]
    stem: int
    before: int
    after: dict[int, list[tuple[int, int]]]


def build_branch(requests: Sequence[Request], root: int = 0) -> Branch:
    """The branch of one question.

    Args:
        requests: of the question.
        root: tokens at the beginning of every context that belong to the root.
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
) -> TokenTree:
    """The tree of several questions.

    Args:
        root: what all of them read first.
        branches: of the questions.
        pad_id: fills up.
        tokens: of a pass, padding included, at most.
        pass_cost: of a pass, in tokens, beside its tokens; None is that of this machine.
    """
    if pass_cost is None:
        pass_cost = _PASS_ON_GPU if torch.cuda.is_available() else _PASS_ON_CPU
    stems, leaves = _lines(branches)
    stem_passes = _passes(stems, tokens, pass_cost)
    # Leaves name their stem by its place among those that are read.
    place = {line.stem: i for i, line in enumerate(line for own in stem_passes for line in own)}
    leaf_passes = _passes(leaves, tokens, pass_cost)
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
        [_as_pass(lines, pad_id, {}) for lines in stem_passes],
        [_as_pass(lines, pad_id, place) for lines in leaf_passes],
        pairs[..., 0],
        pairs[..., 1],
        sum(len(own.targets) for own in branches),
    )


def _lines(branches: Sequence[Branch]) -> tuple[list[_Line], list[_Line]]:
    """All stems, and all leaves but those that are the beginning of another of their question.

    A causal model sees only what stands before, so such a leaf is found in the longer one.
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


def _passes(lines: Sequence[_Line], tokens: int, pass_cost: int) -> list[list[_Line]]:
    """Lines for each pass, longest first: cut where passes and padding cost least together."""
    lines = sorted(lines, key=lambda line: -len(line.tokens))
    # The least cost of the first lines, and where the last of their passes begins.
    best: list[tuple[int, int]] = [(0, 0)]
    for end in range(1, len(lines) + 1):
        options = []
        for start in range(end - 1, -1, -1):
            read = (end - start) * len(lines[start].tokens)
            if read > tokens and start < end - 1:
                break
            options.append((best[start][0] + pass_cost + read, start))
        best.append(min(options))
    passes: list[list[_Line]] = []
    end = len(lines)
    while end:
        start = best[end][1]
        passes.append(list(lines[start:end]))
        end = start
    return passes[::-1]


def _as_pass(lines: Sequence[_Line], pad_id: int, place: dict[int, int]) -> Pass:
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
