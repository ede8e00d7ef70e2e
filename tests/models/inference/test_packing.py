"""Questions in common rows, compared with single unpadded sequences and with the plain way."""

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, MambaConfig, MambaForCausalLM, PreTrainedModel

from prunelit.models.inference import tree_scoring
from prunelit.models.inference.packing import LONGEST, tree_mask
from prunelit.models.inference.token_tree import Request, build_branch, build_tree
from prunelit.models.inference.tree_scoring import (
    find_packing_problem,
    find_tree_problem,
    tree_scores,
)

MakeModel = Callable[..., PreTrainedModel]


@pytest.fixture(autouse=True)
def _no_grad() -> object:
    with torch.no_grad():
        yield


def questions(root: list[int], sizes: tuple[int, ...] = (7, 1, 3, 14, 5)) -> list[list[Request]]:
    draw = random.Random(0)

    def tokens(size: int) -> list[int]:
        return [draw.randint(1, 256) for _ in range(size)]

    found = []
    for size in sizes:
        context = root + tokens(size)
        found.append([(context, tokens(length)) for length in (1, 4, 2, 9)])
    rest = tokens(6)
    found.append([(root + tokens(4), rest), (root + tokens(2), rest)])  # nothing in common
    found.append([(root + tokens(3), [letter]) for letter in (11, 12)])
    return found


def oracle(model: PreTrainedModel, every: list[list[Request]]) -> Tensor:
    scores = []
    for context, continuation in (request for own in every for request in own):
        ids = torch.tensor([context + continuation[:-1]])
        logits = model(ids, use_cache=False).logits[0, len(context) - 1 :]
        targets = torch.tensor(continuation)[:, None]
        scores.append(logits.double().log_softmax(-1).gather(1, targets).sum())
    return torch.stack(scores)


def tree(
    root: list[int], every: list[list[Request]], tokens: int = 60, packing: bool = True
) -> Any:
    branches = [build_branch(own, len(root)) for own in every]
    return build_tree(root, branches, 0, tokens, packing=packing)


@pytest.fixture
def long_windows(family: str, make_model: MakeModel) -> PreTrainedModel:
    """A family whose sliding windows are longer than the rows."""
    config = make_model(family).config
    if getattr(config, "sliding_window", None):
        config.sliding_window = 100
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    for parameter in model.parameters():
        if parameter.ndim >= 2:
            parameter.normal_(std=0.15)
    return model


@pytest.fixture
def only_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """No other way than rows."""
    whole = tree_scoring._embed_whole

    def only_in_the_check(*args: Any) -> Tensor:
        return whole(*args) if args[1].requests == 5 else pytest.fail("read whole")

    monkeypatch.setattr(tree_scoring, "_embed_whole", only_in_the_check)
    monkeypatch.delattr(tree_scoring, "_embed_shared")


@pytest.mark.parametrize("length", [0, 1, 9])
@pytest.mark.usefixtures("only_rows")
def test_scores_in_rows_are_those_of_single_sequences(
    long_windows: PreTrainedModel, family: str, length: int
) -> None:
    root = [(7 * i) % 250 + 1 for i in range(length)]
    every = questions(root)
    found = tree_scores(long_windows, tree(root, every))
    torch.testing.assert_close(found, oracle(long_windows, every), rtol=1e-6, atol=1e-5)


def test_rows_and_the_plain_way_differ_by_rounding(model: PreTrainedModel) -> None:
    every = questions([])
    rows, plain = (tree_scores(model, tree([], every, packing=own)) for own in (True, False))
    assert 0 < (rows - plain).abs().max() < 1e-5


def test_a_row_longer_than_a_window_is_not_read(make_model: MakeModel) -> None:
    model = make_model("mistral")  # a window of 6 tokens
    every = questions([])
    plain = tree_scores(model, tree([], every, packing=False))
    assert torch.equal(tree_scores(model, tree([], every)), plain)
    small = [[([5, 6, 7], [8, 9]), ([5, 6, 7], [3])]]
    assert tree_scoring._fits_windows(model, 6)
    assert not tree_scoring._fits_windows(model, 7)
    torch.testing.assert_close(
        tree_scores(model, tree([], small)), oracle(model, small), rtol=1e-6, atol=1e-5
    )


def test_a_family_with_a_state_takes_the_way_of_before() -> None:
    torch.manual_seed(0)
    config = MambaConfig(vocab_size=300, hidden_size=16, num_hidden_layers=2, pad_token_id=0)
    config.bos_token_id = config.eos_token_id = 0
    model = MambaForCausalLM(config).eval()
    assert find_packing_problem(model) == "it takes no positions"
    every = questions([3, 4, 5])
    with pytest.warns(UserWarning, match="MambaForCausalLM reads every sequence whole"):
        found = tree_scores(model, tree([3, 4, 5], every))
    torch.testing.assert_close(found, oracle(model, every), rtol=1e-6, atol=1e-5)


def test_a_wrong_mask_is_found_out(model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def see_all(*args: Any) -> Tensor:
        mask = tree_mask(*args)
        return torch.full_like(mask, torch.finfo(mask.dtype).min).triu(
            1 + mask.shape[-1] - mask.shape[-2]
        )

    monkeypatch.setattr(tree_scoring, "tree_mask", see_all)
    assert "its results differ by" in (find_packing_problem(model) or "")
    assert find_tree_problem(model) is None
    every = questions([])
    torch.testing.assert_close(
        tree_scores(model, tree([], every)), oracle(model, every), rtol=1e-6, atol=1e-5
    )


def test_half_precision_can_be_packed(make_model: MakeModel) -> None:
    assert find_packing_problem(make_model("llama").to(torch.bfloat16)) is None


@pytest.mark.parametrize("tokens", [1, 30, 60, 4096])
def test_each_token_sees_its_own_sequence(tokens: int) -> None:
    root, every = [250, 251], questions([250, 251])
    built = tree(root, every, tokens)
    seen = []
    for rows in built.packed.passes:
        count, width = rows.input_ids.shape
        assert count == 1 or count * width <= tokens
        mask = tree_mask(rows, len(root), torch.float32)
        for place in rows.places.tolist():
            row, column = divmod(place, width)
            sees = (mask[row, 0, column] == 0).nonzero().flatten()
            own = [column - len(root) for column in sees.tolist() if column >= len(root)]
            assert len(sees) == len(root) + len(own)
            assert rows.positions[row, own].tolist() == list(range(len(own)))
            seen.append(rows.input_ids[row, own].tolist())
    targets, owners = built.targets.tolist(), built.owners.tolist()
    found = {
        (tuple(root + seen[place]), target, owner)
        for place, *pairs in zip(built.packed.order.tolist(), targets, owners, strict=True)
        for target, owner in zip(*pairs, strict=True)
        if owner >= 0
    }
    requests = [request for own in every for request in own]
    assert found == {
        (tuple(context + continuation[:i]), target, owner)
        for owner, (context, continuation) in enumerate(requests)
        for i, target in enumerate(continuation)
    }


def test_rows_have_little_padding() -> None:
    every = questions([], sizes=(60, 55, 41, 40, 33, 30, 24, 20, 18, 11))
    built = tree([], every, 4096)
    read = sum(rows.trees.numel() for rows in built.packed.passes)
    real = sum(int((rows.trees >= 0).sum()) for rows in built.packed.passes)
    assert real == sum(int(one.lengths.sum()) for one in [*built.stems, *built.leaves])
    assert read <= 1.1 * real


def test_a_long_question_is_not_packed() -> None:
    every = questions([], sizes=(LONGEST,))
    assert tree([], every, 4096).packed is None
