"""Every method gives the weights, masks and reports of one process if ranks share the blocks."""

import itertools
import json
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prunelit.pruners import Pruner

from ..contracts.walk import classes

pytestmark = pytest.mark.distributed

SCRIPT = Path(__file__).parents[1] / "material" / "prune_sharded.py"

# Expressions that build a method, and the fractions of its rounds.
METHODS = {
    "Wanda(Unstructured(0.5))": (0.5, 1),
    "Wanda(Unstructured(0.5), variant=True)": (1,),
    "Wanda(SemiStructured(2, 4))": (1,),
    "Wanda(Unstructured(0.5), allocation=OWL(2.0))": (0.5, 1),
    "RIA(Unstructured(0.5), allocation=AlphaPruning(0.1))": (0.5, 1),
    "RIA(Unstructured(0.5), ratios={'*': 0.4}, allocation=LinearDepth(0.1))": (1,),
    "RIA(SemiStructured(2, 4), permute=True)": (1,),
    "SparseGPT(Unstructured(0.5))": (0.5, 1),
    "SparseGPT(SemiStructured(2, 4))": (1,),
    "ADMM(Unstructured(0.5))": (0.5, 1),
    "SparseFW(Unstructured(0.5), update=True)": (0.5, 1),
    "DSnoT(Unstructured(0.5), start='sparsegpt')": (0.5, 1),
    "WandaPlus(Unstructured(0.5), repeats=2, samples=3, learning_rate=1e-3)": (0.5, 1),
    "OBSUpdate(Magnitude(Unstructured(0.5, within='model')))": (1,),
    "Magnitude(Unstructured(0.5, within='model'))": (0.5, 1),
    "Random(Unstructured(0.5))": (0.5, 1),
    "Quantize(4)": (1,),
    "Neuron(0.25)": (0.5, 1),
    "SublayerDrop(2, 'both', rescore=True)": (0.5, 1),
    "BlockDrop(1)": (1,),
    "Budget(0.9, heads=[], neurons=[0.25, 0.5], blocks=1)": (1,),
    "DepthByLoss(1)": (1,),
    "DepthByLoss(2, 'both', 'loss', rescore=True)": (0.5, 1),
    "Sequence([Neuron(0.25), Wanda(Unstructured(0.5))])": (0.5, 1),
    "BlockDrop(2, consecutive=True)": (0.5, 1),
}
# Methods for mixtures, or not for all kinds above; they write a stock model with fewer parts.
EXPERT_METHODS = {
    "ExpertDrop(0.5)": (0.5, 1),
    "ExpertDrop(0.25, criterion='frequency')": (1,),
    "ExpertDrop(0.5, criterion='reconstruction')": (0.5, 1),
    "ExpertMerge(0.5)": (0.5, 1),
    "Heads(0.5)": (0.5, 1),
    "Hidden(0.5)": (0.5, 1),
}
MIXTURES = ("qwen2_moe", "gpt_oss")
KINDS = ("llama", "llama_untied", "gpt2", "qwen3", "gemma2")
DTYPES = ("float32", "bfloat16")
WORLDS = (1, 2, 3)
TABLE = list(itertools.product(METHODS, KINDS, DTYPES))


def sample(world: int) -> list[tuple[str, str, str]]:
    """Take two of three methods, each with one model and one type: see `test_the_sample`."""
    return [
        (method, KINDS[(place + 2 * world) % 5], DTYPES[(place + place // 5 + world) % 2])
        for place, method in enumerate(METHODS)
        if place % 3 != world % 3
    ]


@pytest.fixture
def measure(
    make_model: Callable[..., PreTrainedModel],
    padded: dict[str, Tensor],
    tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path,
    run_ranks: Callable[..., None],
) -> Callable[..., list[list[dict[str, Any]]]]:
    """`measure(world, table)` prunes and gives what each rank found; 0 keeps whole models."""
    for kind in (*KINDS, *MIXTURES):
        model = make_model(kind.removesuffix("_untied"))
        if kind == "llama_untied":
            head = model.lm_head.weight.detach().clone()
            model.lm_head.weight = torch.nn.Parameter(head)
            model.config.tie_word_embeddings = False
        torch.save(model, tmp_path / f"{kind}.pt")
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    # Four batches do not divide evenly among three ranks.
    batches = [{key: value[i : i + 1, :12] for key, value in padded.items()} for i in (0, 2, 3, 4)]
    torch.save(batches, tmp_path / "batches.pt")

    def run(world: int, table: list[tuple[str, str, str]]) -> list[list[dict[str, Any]]]:
        fractions = METHODS | EXPERT_METHODS
        cases = [(kind, dtype, method, fractions[method]) for method, kind, dtype in table]
        names = {"FOLDER": str(tmp_path), "CASES": cases}
        if not world:
            runpy.run_path(str(SCRIPT), {**names, "WORLD": 0, "RANK": 0})
        run_ranks(SCRIPT, world, **names)
        files = [tmp_path / f"{world}-{rank}.json" for rank in range(max(world, 1))]
        return [json.loads(file.read_text()) for file in files]

    return run


def compare(
    world: int,
    table: list[tuple[str, str, str]],
    measure: Callable[..., list[list[dict[str, Any]]]],
) -> None:
    """Compare the ranks with one process that keeps whole models."""
    same = ("weights", "masks", "reports", "fingerprint")
    ranks, resident = measure(world, table), measure(0, table)[0]
    for place, case in enumerate(table):
        expected = resident[place]
        for rank in ranks:
            found = rank[place]
            for key in same:
                assert found[key] == expected[key], (case, world, key)
            if "saved" in expected:
                assert found["saved"] == expected["saved"] == expected["weights"], case
                # One for what is outside, one for each of three blocks, one for the masks if the
                # weights of the method are not taken out.
                masks = case[0] in METHODS
                assert (found["files"], expected["files"]) == (4 + masks, 1 + masks)
            # A share of the blocks, up to the alignment of each parameter and share.
            outside = found["dense_bytes"] - found["block_bytes"]
            share = found["block_bytes"] / world
            assert share <= found["held_before"] - outside <= share + 64 * 3 * (20 / world + 1)
            assert found["held"] <= found["held_before"]
            assert any(found["away"])
        assert expected["held_before"] == expected["dense_bytes"]


def test_every_method_is_in_the_table() -> None:
    names = {member.__name__ for member in classes("pruners", Pruner)}
    assert names == {method.partition("(")[0] for method in METHODS | EXPERT_METHODS}


def test_the_sample() -> None:
    cases = [(world, *case) for world in WORLDS for case in sample(world)]
    methods = [method for _, method, _, _ in cases]
    assert all(methods.count(method) == 2 for method in METHODS)
    assert {(world, kind) for world, _, kind, _ in cases} == {*itertools.product(WORLDS, KINDS)}
    assert {(world, dtype) for world, _, _, dtype in cases} == {*itertools.product(WORLDS, DTYPES)}
    assert {(kind, dtype) for _, _, kind, dtype in cases} == {*itertools.product(KINDS, DTYPES)}


@pytest.mark.parametrize("world", WORLDS)
def test_shares_give_what_whole_models_give(world: int, measure: Callable[..., Any]) -> None:
    compare(world, sample(world), measure)


@pytest.mark.parametrize("world", [2, 3])
def test_shares_of_a_mixture(world: int, measure: Callable[..., Any]) -> None:
    table = [
        (method, MIXTURES[(place + world) % 2], DTYPES[(place + place // 2) % 2])
        for place, method in enumerate(EXPERT_METHODS)
    ]
    compare(world, table, measure)


@pytest.mark.full
@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("kind", KINDS)
def test_all_combinations(world: int, kind: str, measure: Callable[..., Any]) -> None:
    compare(world, [case for case in TABLE if case[1] == kind], measure)
