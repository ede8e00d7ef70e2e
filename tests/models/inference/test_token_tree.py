"""Trees of requests, compared with the requests."""

import itertools
import random

import pytest

from prunelit.models.inference.token_tree import (
    Branch,
    Pass,
    Request,
    TokenTree,
    _group_passes,
    _Line,
    build_branch,
    build_tree,
)


def questions(root: list[int], seed: int = 0) -> list[list[Request]]:
    """Random questions: shared stems, choices with common prefixes, contexts that differ early."""
    draw = random.Random(seed)

    def tokens(size: int) -> list[int]:
        return [draw.randint(1, 4) for _ in range(size)]

    found = []
    for size in (1, 2, 5, 9):
        context = root + tokens(size)
        found.append([(context, tokens(length)) for length in (1, 4, 2, 7)])
    rest = tokens(5)
    found.append([(root + tokens(3), rest), (root + tokens(1), rest)])
    found.append([([*root, 5], rest), ([*root, 6, 1], rest)])  # no token in common but the root
    begin = root + tokens(2)
    found.append([(begin, [7, 8]), (begin, [7, 8, 9, 9]), (begin, [7]), (begin, [7, 8])])
    return found


def expected_steps(every: list[list[Request]]) -> set[tuple[tuple[int, ...], int, int]]:
    """List for each target the tokens before it, the target and the index of its request."""
    requests = [request for own in every for request in own]
    return {
        (tuple(context + continuation[:i]), target, owner)
        for owner, (context, continuation) in enumerate(requests)
        for i, target in enumerate(continuation)
    }


def steps(tree: TokenTree) -> list[tuple[tuple[int, ...], int, int]]:
    """The same triples, from the passes of a tree."""
    stems = [
        row[:size].tolist()
        for own in tree.stems
        for row, size in zip(own.input_ids, own.lengths, strict=True)
    ]
    seen = []
    for own in [*tree.stems, *tree.leaves]:
        width = own.input_ids.shape[1]
        for place in own.places.tolist():
            row, column = divmod(place, width)
            assert column < own.lengths[row]
            stem = stems[own.parents[row]] if own.before[row] else []
            assert len(stem) == own.before[row]
            seen.append(tree.root.tolist() + stem + own.input_ids[row, : column + 1].tolist())
    pairs = zip(seen, tree.targets.tolist(), tree.owners.tolist(), strict=True)
    return [
        (tuple(read), target, owner)
        for read, targets, owners in pairs
        for target, owner in zip(targets, owners, strict=True)
        if owner >= 0
    ]


@pytest.mark.parametrize("length", [0, 1, 6])
@pytest.mark.parametrize("pass_cost", [0, 10, 1000])
def test_every_target_comes_after_the_tokens_before_it(length: int, pass_cost: int) -> None:
    root = [3, 1, 4, 1, 5, 9][:length]
    every = questions(root)
    tree = build_tree(root, [build_branch(own, length) for own in every], 0, 40, pass_cost)
    found = steps(tree)
    assert set(found) == expected_steps(every)
    assert len(found) == len(set(found))
    assert tree.requests == sum(map(len, every))
    assert tree.root.tolist() == root


def test_the_common_prefix_of_choices_is_read_once() -> None:
    context = [1, 2, 3, 4]
    gold, goldfish = [5, 6], [5, 6, 7, 8]
    own = build_branch([(context, goldfish), (context, gold), (context, [9])])
    assert own == Branch(context, [[5, 6, 7], [5], []], [3, 3, 3], [goldfish, gold, [9]])
    tree = build_tree([], [own], 0, 40)
    assert [row.input_ids.tolist() for row in tree.stems] == [[context]]
    # `gold` is a prefix of `goldfish`; a single token needs no pass.
    assert [row.input_ids.tolist() for row in tree.leaves] == [[[5, 6, 7]]]


def test_letters_need_no_leaves_and_one_place() -> None:
    own = build_branch([([1, 2, 3], [letter]) for letter in (7, 8, 9)])
    tree = build_tree([], [own, own], 0, 40)
    assert tree.leaves == []
    assert tree.targets.tolist() == [[7, 8, 9]] * 2
    assert tree.owners.tolist() == [[0, 1, 2], [3, 4, 5]]


def lines(lengths: list[int]) -> list[_Line]:
    return [_Line([1] * length, 0, 0, {}) for length in lengths]


def cost(parts: list[list[int]], pass_cost: int) -> int:
    return sum(pass_cost + len(part) * max(part) for part in parts)


@pytest.mark.parametrize("pass_cost", [0, 3, 8, 100])
@pytest.mark.parametrize("tokens", [12, 1000])
def test_passes_cost_least(pass_cost: int, tokens: int) -> None:
    lengths = [9, 1, 7, 2, 2, 8, 3, 1]
    found = [
        [len(line.tokens) for line in part]
        for part in _group_passes(lines(lengths), tokens, pass_cost)
    ]
    assert sorted(itertools.chain(*found)) == sorted(lengths)
    # All splits of the sorted lengths.
    ordered = sorted(lengths, reverse=True)
    best = min(
        cost(parts, pass_cost)
        for count in range(len(ordered))
        for cuts in itertools.combinations(range(1, len(ordered)), count)
        for parts in [[ordered[a:b] for a, b in itertools.pairwise([0, *cuts, len(ordered)])]]
        if all(len(part) == 1 or len(part) * max(part) <= tokens for part in parts)
    )
    assert cost(found, pass_cost) == best
    assert all(len(part) == 1 or len(part) * max(part) <= tokens for part in found)


def test_a_line_longer_than_a_pass_is_read_alone() -> None:
    found = _group_passes(lines([50, 3, 3]), 10, 1000)
    assert [len(part) for part in found] == [1, 2]


def test_padding_is_on_the_right() -> None:
    tree = build_tree(
        [], [build_branch([([1, 2, 3], [4])]), build_branch([([5], [6])])], 0, 40, 1000
    )
    (own,) = tree.stems
    assert isinstance(own, Pass)
    assert own.input_ids.tolist() == [[1, 2, 3], [5, 0, 0]]
    assert own.lengths.tolist() == [3, 1]
    assert own.places.tolist() == [2, 3]
