"""A model that two ranks compute together gives what it gives alone, up to rounding."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from prunelit.core.placement import build_shapes, measure_part, measure_sizes
from prunelit.errors import InputError
from prunelit.models.parallel import check_parallel, gather

SCRIPT = Path(__file__).parents[1] / "material" / "parallel.py"
Compare = Callable[..., list[list[dict[str, Any]]]]


@pytest.fixture
def compare(
    make_model: Callable[..., PreTrainedModel],
    padded: dict[str, Tensor],
    tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path,
    run_ranks: Callable[..., None],
) -> Compare:
    """`compare(*cases)` gives what each of two ranks found, for each family and dtype.

    The first rank has the larger part; a dry run must say how large it is.
    """

    def run(*cases: tuple[str, str]) -> list[list[dict[str, Any]]]:
        configs = {}
        for kind, _ in cases:
            model = make_model(kind.removesuffix("_narrow"))
            if kind.endswith("_narrow"):
                model.config.intermediate_size = 45  # no even number for each rank
                model = AutoModelForCausalLM.from_config(model.config).eval()
            torch.save(model, tmp_path / f"{kind}.pt")
            configs[kind] = model.config
        torch.save((padded, tokenizer), tmp_path / "batch.pt")
        run_ranks(SCRIPT, 2, FOLDER=str(tmp_path), CASES=cases)
        found = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
        for (kind, dtype), kept in zip(cases, (one["kept"] for one in found[0]), strict=True):
            told = measure_part(configs[kind], getattr(torch, dtype), 2)
            assert vars(told) == kept
            whole = measure_sizes(build_shapes(configs[kind], getattr(torch, dtype)))
            assert told.blocks < 0.52 * whole.blocks
        return found

    return run


def check(kind: str, dtype: str, found: dict[str, Any]) -> None:
    """Check what one rank found of a model."""
    # A number of up to 4 has a distance of 0.016 to the next one in bfloat16.
    bound = 1e-5 if dtype == "float32" else 0.1
    floor = found["differences"].pop("floor")  # of the model in the other dtype
    assert max(found["differences"].values()) < bound, found["differences"]
    assert floor < (0.1 if dtype == "float32" else 1e-5)
    assert found["floors"][0] / 2 < found["floors"][1] < 2 * found["floors"][0]
    print(f"{kind} {dtype}: {found['texts_that_differ']} of 6 texts differ")
    assert found["texts_that_differ"] <= (0 if dtype == "float32" else 2)
    whole, split = found["bytes_in_blocks"]
    assert whole / 2 <= split < 0.52 * whole  # norms stay whole
    assert found["bytes"][0] == found["bytes"][1]
    assert found["gathered"] == [0, 1]
    # The first time both compute, the second time one of them has lost its files.
    assert found["cached"] == [1, 2, 2]
    assert found["copy"] == "A model that several ranks compute together cannot be copied."


@pytest.mark.distributed
def test_two_ranks_give_what_one_gives(compare: Compare) -> None:
    cases = [("llama", "float32"), ("qwen3", "float32"), ("llama", "bfloat16")]
    first, second = compare(*cases)
    for case, one, two in zip(cases, first, second, strict=True):
        assert one == two, case
        check(*case, one)
        assert one["tied"] == (case[0] == "llama")
        assert len({*one["fingerprints"]}) == 2


@pytest.mark.distributed
@pytest.mark.full
def test_families_with_other_plans(compare: Compare) -> None:
    """Two norms and soft caps; biases; one matrix for queries, keys and values; windows; widths."""
    kinds = ("gemma2", "phi", "gpt_neox", "qwen2", "mistral", "llama_narrow")
    cases = [(kind, "float32") for kind in kinds]
    for case, found in zip(cases, compare(*cases)[0], strict=True):
        check(*case, found)


@pytest.mark.parametrize("kind", ["gpt2", "opt"])
def test_a_family_without_a_plan_is_refused(
    kind: str, make_model: Callable[..., PreTrainedModel]
) -> None:
    with pytest.raises(InputError, match=f"'{kind}' has none: set `model.placement`"):
        check_parallel(make_model(kind).config, 2)


def test_heads_that_ranks_cannot_share_are_refused(model: PreTrainedModel) -> None:
    check_parallel(model.config, 2)
    with pytest.raises(InputError, match="`num_key_value_heads` 2 but got 4"):
        check_parallel(model.config, 4)


def test_a_whole_model_has_one_rank(model: PreTrainedModel) -> None:
    assert gather(model, "own") == ["own"]
    assert gather(None, 1) == [1]
