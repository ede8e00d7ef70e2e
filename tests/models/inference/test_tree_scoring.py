"""Scoring with a shared cache, compared with single unpadded sequences without a cache."""

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import MambaConfig, MambaForCausalLM, PreTrainedModel

from prunelit import InputError
from prunelit.models.architecture import decoder_blocks
from prunelit.models.inference import tree_scoring
from prunelit.models.inference.prefix_cache import SharedPrefix
from prunelit.models.inference.token_tree import Request, build_branch, build_tree
from prunelit.models.inference.tree_scoring import find_tree_problem, tree_scores
from prunelit.models.parts import drop_
from prunelit.models.surgery import shrink_

MakeModel = Callable[..., PreTrainedModel]


@pytest.fixture(autouse=True)
def _no_grad() -> object:
    with torch.no_grad():
        yield


def questions(root: list[int], longest: int = 14) -> list[list[Request]]:
    """Longer than the sliding windows of the families, which are 6 tokens."""
    draw = random.Random(0)

    def tokens(size: int) -> list[int]:
        return [draw.randint(1, 256) for _ in range(size)]

    found = []
    for size in (7, 1, 3, longest, 5):
        context = root + tokens(size)
        found.append([(context, tokens(length)) for length in (1, 4, 2, 9)])
    context, rest = root + tokens(2), tokens(6)
    found.append([(context + tokens(1), rest), (context + tokens(4), rest)])
    found.append([(root + tokens(4), rest), (root + tokens(2), rest)])  # nothing in common
    found.append([(context, [11]), (context, [12])])
    return found


def oracle(model: PreTrainedModel, every: list[list[Request]]) -> Tensor:
    scores = []
    for context, continuation in (request for own in every for request in own):
        ids = torch.tensor([context + continuation[:-1]])
        logits = model(ids, use_cache=False).logits[0]
        places = torch.arange(len(context) - 1, len(context) + len(continuation) - 1)
        log_p = logits.double().log_softmax(-1)[places, torch.tensor(continuation)]
        scores.append(log_p.sum())
    return torch.stack(scores)


def shared(
    model: PreTrainedModel, root: list[int], every: list[list[Request]], **more: Any
) -> Tensor:
    branches = [build_branch(own, len(root)) for own in every]
    return tree_scores(model, build_tree(root, branches, 0, 60, **more))


@pytest.mark.parametrize("length", [0, 1, 9])
@pytest.mark.parametrize("pass_cost", [0, 1000])
def test_scores_are_those_of_single_sequences(
    make_model: MakeModel, family: str, length: int, pass_cost: int
) -> None:
    model = make_model(family)
    root = [(7 * i) % 250 + 1 for i in range(length)]
    every = questions(root)
    assert find_tree_problem(model) is None  # so the cache is tested
    found = shared(model, root, every, pass_cost=pass_cost)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, oracle(model, every), rtol=1e-6, atol=1e-5)


def test_letters_after_a_root(make_model: MakeModel, family: str) -> None:
    model = make_model(family)
    root = list(range(1, 21))
    every = [[(root + [30 + i] * (i + 1), [letter]) for letter in (65, 66, 67)] for i in range(4)]
    torch.testing.assert_close(
        shared(model, root, every), oracle(model, every), rtol=1e-6, atol=1e-5
    )


@pytest.mark.parametrize("kept", [True, False])
def test_sequences_as_long_as_the_positions(make_model: MakeModel, family: str, kept: bool) -> None:
    # The padding of the short one must not get a position beyond the limit of the model.
    model = make_model(family)
    draw = random.Random(1)
    context = [draw.randint(1, 256) for _ in range(120)]
    long = [(context[:100], context[:29]), (context[:100], context[3:12])]
    short = [(context, [5, 6]), (context, [7, 8, 9])]
    shared_prefix = SharedPrefix()
    if not kept:
        shared_prefix._problems[model] = {find_tree_problem: "told so"}
    tree = build_tree([], [build_branch(long), build_branch(short)], 0, 4096, 1000)
    found = tree_scores(model, tree, shared_prefix)
    torch.testing.assert_close(found, oracle(model, [long, short]), rtol=1e-6, atol=2e-5)


def test_a_root_is_read_once_for_many_batches(
    model: PreTrainedModel,
) -> None:
    root = list(range(1, 31))
    every = questions(root)
    shared_prefix = SharedPrefix()
    shared_prefix.find_problem(model, find_tree_problem)
    expected = oracle(model, every)
    reads: list[tuple[int, ...]] = []
    model.get_submodule("model.embed_tokens").register_forward_hook(
        lambda _, inputs, __: reads.append(tuple(inputs[0].shape))
    )
    found = [
        tree_scores(model, build_tree(root, [build_branch(own, 30)], 0, 4096), shared_prefix)
        for own in every
    ]
    torch.testing.assert_close(torch.cat(found), expected, rtol=1e-6, atol=1e-5)
    assert reads.count((1, 30)) == 1
    assert all(width < 30 for rows, width in reads if (rows, width) != (1, 30))


def test_another_root_or_model_is_not_mistaken(make_model: MakeModel) -> None:
    shared_prefix = SharedPrefix()
    for seed in (0, 1):
        model = make_model("llama", seed=seed)
        for start in (1, 2):
            root = list(range(start, start + 20))
            every = questions(root)[:2]
            tree = build_tree(root, [build_branch(own, 20) for own in every], 0, 4096)
            torch.testing.assert_close(
                tree_scores(model, tree, shared_prefix), oracle(model, every), rtol=1e-6, atol=1e-5
            )


@pytest.mark.parametrize("kind", ["mixer", "mlp"])
def test_models_without_some_sublayers(make_model: MakeModel, family: str, kind: str) -> None:
    model = make_model(family)
    for index in (0, 2):
        drop_(decoder_blocks(model)[1][index], kind)
    shrink_(model)
    assert find_tree_problem(model) is None
    root = [9, 8, 7]
    every = questions(root)
    torch.testing.assert_close(
        shared(model, root, every), oracle(model, every), rtol=1e-6, atol=1e-5
    )


def test_a_family_without_keys_and_values_reads_whole_with_a_warning() -> None:
    torch.manual_seed(0)
    config = MambaConfig(vocab_size=300, hidden_size=16, num_hidden_layers=2, pad_token_id=0)
    config.bos_token_id = config.eos_token_id = 0
    model = MambaForCausalLM(config).eval()
    every = questions([3, 4, 5])
    with pytest.warns(
        UserWarning, match="MambaForCausalLM reads every sequence whole, which takes longer"
    ):
        found = shared(model, [3, 4, 5], every)
    torch.testing.assert_close(found, oracle(model, every), rtol=1e-6, atol=1e-5)


def test_a_cache_that_is_shared_wrongly_is_found_out(
    model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    gather = tree_scoring._gather

    def gather_wrongly(root: Any, stems: Any, parents: Tensor, slots: Tensor) -> Any:
        return gather(root, stems, parents, slots.roll(1, 1))

    monkeypatch.setattr(tree_scoring, "_gather", gather_wrongly)
    assert "with a shared cache its results differ by" in (find_tree_problem(model) or "")
    every = questions([])
    with pytest.warns(UserWarning, match="LlamaForCausalLM reads every sequence whole"):
        found = shared(model, [], every)
    torch.testing.assert_close(found, oracle(model, every), rtol=1e-6, atol=1e-5)


def test_half_precision_can_be_shared(make_model: MakeModel, family: str) -> None:
    model = make_model(family).to(torch.bfloat16)
    assert find_tree_problem(model) is None


def test_logits_that_are_not_numbers_are_refused(model: PreTrainedModel) -> None:
    model.get_parameter("model.norm.weight").fill_(torch.nan)
    with pytest.raises(InputError, match="LlamaForCausalLM gives NaN"):
        find_tree_problem(model)
