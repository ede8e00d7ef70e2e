"""The task `Distribution`: batches and ranks, its noise floor, and what it shows."""

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from prunelit import InputError
from prunelit.models.architecture import final_hidden
from prunelit.models.views import recast
from prunelit.report.results import read_results, write_results
from prunelit.tasks import ModelPair
from prunelit.tasks.distribution import Distribution

MakeModel = Callable[..., PreTrainedModel]
Measure = Callable[..., Any]


@pytest.fixture
def pair(make_model: MakeModel, tokenizer: PreTrainedTokenizerBase) -> ModelPair:
    return ModelPair(make_model("llama", seed=1), make_model("llama", seed=0), tokenizer)


def test_a_model_does_not_differ_from_its_copy(
    family: str, distribution: Measure, make_model: MakeModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    dense = make_model(family)
    rows, _, _ = distribution(ModelPair(copy.deepcopy(dense), dense, tokenizer))
    for name, row in rows.items():
        if name.startswith("floor_") or name == "ruler_kl":
            continue
        same = 1 if name in ("top1_agreement", "perplexity_ratio") else 0
        assert row.value == pytest.approx(same, abs=1e-6), name
    ruler = rows["ruler_kl"].details
    assert (ruler["rung"], ruler["below"], ruler["between"]) == ("f16", None, None)


def test_the_nearest_rung_is_that_of_the_mean(distribution: Measure, pair: ModelPair) -> None:
    rows, _, _ = distribution(pair, floor=False)
    # Nearer to 0.445 than to 2.25, also on a log scale.
    assert 0.5 < rows["kl_dense_pruned"].value < 0.9
    row = rows["ruler_kl"]
    assert (row.details["rung"], row.details["above"]) == ("2-bit", "1-bit")
    assert row.value == 0.445132
    assert "Llama-3-8B" in row.details["ruler"]


@pytest.mark.parametrize("batch_size", [1, 3, 7])
def test_batch_size_does_not_matter(
    distribution: Measure, pair: ModelPair, batch_size: int
) -> None:
    expected, _, _ = distribution(pair)
    rows, _, _ = distribution(pair, batch_size=batch_size)
    assert rows.keys() == expected.keys()
    for name, row in rows.items():
        other = expected[name]
        assert row.value == pytest.approx(other.value, rel=1e-4, abs=1e-5), name
        assert row.n == other.n
        assert row.details.keys() == other.details.keys()


def test_two_ranks_give_what_one_gives(distribution: Measure, pair: ModelPair) -> None:
    expected, _, alone = distribution(pair)
    rows, _, table = distribution(pair, world=2)
    assert {n: r.value for n, r in rows.items()} == pytest.approx(
        {n: r.value for n, r in expected.items()}, rel=1e-12
    )
    assert {n: r.n for n, r in rows.items()} == {n: r.n for n, r in expected.items()}
    assert table["pruned/nll"].equal(alone["pruned/nll"])


def test_the_dtype_floor_is_above_the_floor_of_the_batch_size(
    distribution: Measure, pair: ModelPair
) -> None:
    rows, _, _ = distribution(pair)
    batch, dtype = (rows[f"floor_{f}/kl_dense_pruned"] for f in ("batch", "bfloat16"))
    assert 0 <= batch.value < 1e-6 < dtype.value < rows["kl_dense_pruned"].value
    assert batch.n == dtype.n == 3  # the first windows
    assert batch.details["tokens"] == 3 * 11
    assert rows["floor_batch/perplexity_ratio"].value == pytest.approx(1, abs=1e-5)
    same = {name.rpartition("/")[2] for name in rows if name.startswith("floor_batch/")}
    assert same == {name for name in rows if "/" not in name}


def test_the_floor_does_not_depend_on_the_pruned_model(
    distribution: Measure, pair: ModelPair, make_model: MakeModel
) -> None:
    def floors(pruned: PreTrainedModel) -> dict[str, float]:
        rows, _, _ = distribution(ModelPair(pruned, pair.dense, pair.tokenizer))
        return {name: row.value for name, row in rows.items() if name.startswith("floor_")}

    assert floors(pair.pruned) == floors(make_model("llama", seed=5))


def test_a_copy_in_another_dtype_is_as_if_loaded(folder: Path, model: PreTrainedModel) -> None:
    expected = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    twin = recast(model, torch.bfloat16)
    for name, parameter in expected.named_parameters():
        assert twin.get_parameter(name).equal(parameter), name
        assert twin.get_parameter(name).dtype == torch.bfloat16
    for name, buffer in expected.named_buffers():
        assert twin.get_buffer(name).equal(buffer), name
        assert twin.get_buffer(name).dtype == buffer.dtype == torch.float32
    assert twin.get_output_embeddings().weight is twin.get_input_embeddings().weight
    assert model.dtype == torch.float32


def test_the_copy_computes_in_its_own_dtype_whatever_the_trainer_casts_to(
    distribution: Measure, pair: ModelPair, monkeypatch: pytest.MonkeyPatch
) -> None:
    dense = pair.dense
    assert dense is not None
    twin = dense.to(torch.bfloat16)
    seen = []

    def hidden(model: PreTrainedModel, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        seen.append((model.dtype, torch.is_autocast_enabled("cpu")))
        return final_hidden(model, ids, mask)

    for room in ("distribution", "shared_pass"):
        monkeypatch.setattr(f"prunelit.tasks.{room}.final_hidden", hidden)
    with torch.autocast("cpu", torch.bfloat16):
        distribution(ModelPair(pair.pruned, twin, pair.tokenizer), limit=2, floor_windows=1)
    assert seen == [
        (torch.bfloat16, True),
        (torch.float32, True),
        (torch.bfloat16, True),
        (torch.float32, False),
    ]


@pytest.mark.parametrize(("batch_size", "sizes"), [(1, [1, 1, 2, 1]), (2, [2, 2, 1, 1])])
def test_the_other_batch_size_is_another_one(
    batch_size: int,
    sizes: list[int],
    distribution: Measure,
    pair: ModelPair,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen = []

    def hidden(model: PreTrainedModel, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        seen.append(len(ids))
        return final_hidden(model, ids, mask)

    for room in ("distribution", "shared_pass"):
        monkeypatch.setattr(f"prunelit.tasks.{room}.final_hidden", hidden)
    distribution(pair, batch_size=batch_size, limit=batch_size, floor_windows=1)
    # Dense, pruned, dense again, and the copy.
    assert seen == sizes


def test_without_a_floor_there_are_no_rows_of_it(distribution: Measure, pair: ModelPair) -> None:
    rows, task, table = distribution(pair, floor=False)
    assert not [name for name in rows if "/" in name]
    assert {tuple(line) for line in task.report(table).texts} == {("", "pruned")}
    assert set(dict(task.report(table).pictures)["distribution"].numbers["compared"]) == {"pruned"}


def test_the_table_and_the_figure(distribution: Measure, pair: ModelPair) -> None:
    rows, task, table = distribution(pair)
    lines = list(task.report(table).texts)
    assert [*lines[0]] == ["", "pruned", "floor: other batch size", "floor: bfloat16"]
    mean = next(line for line in lines if line[""] == "KL(dense ‖ pruned): mean")
    assert mean["pruned"].startswith(f"{rows['kl_dense_pruned'].value:.4g} ± ")
    assert len(lines) == len([name for name in rows if "/" not in name])
    numbers = dict(task.report(table).pictures)["distribution"].numbers
    pruned = [place for place, name in enumerate(numbers["compared"]) if name == "pruned"]
    shares, kl = ([numbers[key][place] for place in pruned] for key in ("share", "kl"))
    assert shares == sorted(shares)
    assert kl == sorted(kl)
    # The ends are the lowest and the highest of the 77 tokens.
    assert kl[-1] == pytest.approx(rows["kl_dense_pruned_max"].value, rel=0.02)
    assert (shares[0], shares[-1]) == pytest.approx((0.5 / 77, 76.5 / 77))


def test_a_single_token_has_no_error_and_can_be_written(
    distribution: Measure, pair: ModelPair, tmp_path: Path
) -> None:
    rows, task, table = distribution(pair, length=2, limit=1)
    assert rows["kl_dense_pruned"].details["standard_error_tokens"] is None
    assert math.isnan(rows["perplexity_ratio"].standard_error)
    write_results(list(rows.values()), tmp_path / "results.jsonl")
    again = read_results(tmp_path / "results.jsonl")
    assert [row.value for row in again] == [row.value for row in rows.values()]
    assert dict(task.report(table).pictures)["distribution"].numbers["kl"]


def test_a_model_without_numbers_is_refused(distribution: Measure, pair: ModelPair) -> None:
    with torch.no_grad():
        pair.pruned.get_output_embeddings().weight[7] = torch.nan
    with pytest.raises(InputError, match="Expected a number for `logit_cosine` of every"):
        distribution(pair)


@pytest.mark.parametrize("windows", [0, -1])
def test_bad_arguments(windows: int) -> None:
    with pytest.raises(InputError, match=f"`floor_windows` of at least 1 but got {windows}"):
        Distribution("text.jsonl", floor_windows=windows)


def test_it_needs_the_reference() -> None:
    assert Distribution.needs_reference
