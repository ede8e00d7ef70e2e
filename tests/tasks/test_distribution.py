"""The task `Distribution` against NumPy, and its noise floor against models made by hand."""

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import log_softmax
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from prunelit import InputError
from prunelit.models.architecture import final_hidden
from prunelit.report.rows import Row, read_rows, write_rows
from prunelit.tasks import ItemTable, Pair
from prunelit.tasks.distribution import (
    DELTA_PERCENT,
    KL_PERCENT,
    Distribution,
    _recast,
)

MakeModel = Callable[..., PreTrainedModel]
Rows = dict[str, Row]


@pytest.fixture
def pair(make_model: MakeModel, tokenizer: PreTrainedTokenizerBase) -> Pair:
    return Pair(make_model("llama", seed=1), make_model("llama", seed=0), tokenizer)


def measure(
    material: Path, pair: Pair, world: int = 1, **arguments: Any
) -> tuple[Rows, Distribution, ItemTable]:
    """Rows of the pair by metric; batches of all ranks go into tables that are merged."""
    defaults = {"length": 12, "limit": 7, "batch_size": 2, "floor_windows": 3}
    task = Distribution(str(material / "text.jsonl"), **{**defaults, **arguments})
    task.read()
    size = task.prepare(pair.tokenizer)
    tables = [ItemTable(size) for _ in range(world)]
    with torch.inference_mode():  # as in Lightning's validation
        for rank, table in enumerate(tables):
            for batch in task.batches(size, rank, world):
                if len(batch["indices"]):
                    table.assign(batch["indices"], task.step(pair, batch))
        table = tables[0]
        for other in tables[1:]:
            mine = other._seen.nonzero()[:, 0]
            table.assign(mine, {name: other[name][mine] for name in other.columns()})
            for name, sketch in other.sketches.items():
                if name in table.sketches:
                    table.sketches[name].merge(sketch)
                else:
                    table.sketches[name] = sketch
    table.all_reduce_()
    return {r.metric: r for r in task.summarise(table) if r.model == "pair"}, task, table


@torch.no_grad()
def numpy_values(
    dense: PreTrainedModel, pruned: PreTrainedModel, ids: torch.Tensor
) -> dict[str, np.ndarray]:
    """(W, L - 1) values, one window at a time, in float64."""
    found: dict[str, list[np.ndarray]] = {}
    for window in ids:
        log_p, log_q = (
            log_softmax(m(input_ids=window[None]).logits[0, :-1].double().numpy(), -1)
            for m in (dense, pruned)
        )
        p, q = np.exp(log_p), np.exp(log_q)
        true = window[1:, None].numpy()
        a, b = (np.take_along_axis(x, true, -1)[:, 0] for x in (log_p, log_q))
        values = {
            "kl_dense_pruned": (p * (log_p - log_q)).sum(-1),
            "kl_pruned_dense": (q * (log_q - log_p)).sum(-1),
            "delta_p": np.exp(b) - np.exp(a),
            "top1_agreement": (p.argmax(-1) == q.argmax(-1)).astype(float),
            "delta_nll": a - b,
            "dense/nll": -a,
            "pruned/nll": -b,
        }
        for name, value in values.items():
            found.setdefault(name, []).append(value)
    return {name: np.stack(value) for name, value in found.items()}


def standard_error(values: np.ndarray) -> float:
    return values.std(ddof=1) / math.sqrt(len(values))


def test_every_figure_is_that_of_numpy_token_by_token(
    family: str, material: Path, make_model: MakeModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    dense, pruned = make_model(family, seed=0), make_model(family, seed=1)
    rows, task, table = measure(material, Pair(pruned, dense, tokenizer), floor=False)
    expected = numpy_values(dense, pruned, task.collate(range(7))["input_ids"])
    for name in ("kl_dense_pruned", "kl_pruned_dense", "delta_p", "top1_agreement"):
        row, values = rows[name], expected[name]
        assert row.value == pytest.approx(values.mean(), rel=1e-4, abs=1e-7), name
        assert row.standard_error == pytest.approx(standard_error(values.mean(1)), rel=1e-3)
        tokens = row.details["standard_error_tokens"]
        assert tokens == pytest.approx(standard_error(values.flatten()), rel=1e-3)
        assert (row.n, row.details["tokens"]) == (7, 7 * 11)
    kl, delta = expected["kl_dense_pruned"].flatten(), expected["delta_p"].flatten()
    assert rows["kl_dense_pruned_max"].value == pytest.approx(kl.max(), rel=1e-4)
    assert rows["delta_p_max"].value == pytest.approx(delta.max(), rel=1e-3)
    assert rows["delta_p_min"].value == pytest.approx(delta.min(), rel=1e-3)
    assert rows["delta_p_rms"].value == pytest.approx(math.sqrt((delta**2).mean()), rel=1e-4)
    for name, values, percents in (
        ("kl_dense_pruned", kl, KL_PERCENT),
        ("delta_p", delta, DELTA_PERCENT),
    ):
        for percent in percents:
            exact = np.percentile(values, percent, method="inverted_cdf")
            found = rows[f"{name}_q{percent:g}"]
            assert found.value == pytest.approx(exact, rel=0.021, abs=1e-8), (name, percent)
            assert math.isnan(found.standard_error)
    ratio, change = rows["perplexity_ratio"], expected["delta_nll"]
    both = [math.exp(expected[f"{m}/nll"].mean()) for m in ("pruned", "dense")]
    assert ratio.value == pytest.approx(both[0] / both[1], rel=1e-4)
    assert ratio.standard_error == pytest.approx(
        ratio.value * standard_error(change.mean(1)), rel=1e-3
    )
    assert ratio.details["standard_error_tokens"] == pytest.approx(
        ratio.value * standard_error(change.flatten()), rel=1e-3
    )
    models = {r.model: r for r in task.summarise(table) if r.metric == "nll"}
    assert models["dense"].value == pytest.approx(expected["dense/nll"].mean(), rel=1e-4)
    assert models["difference"].value == pytest.approx(change.mean(), abs=1e-4)


def test_a_model_does_not_differ_from_its_copy(
    family: str, material: Path, make_model: MakeModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    dense = make_model(family)
    rows, _, _ = measure(material, Pair(copy.deepcopy(dense), dense, tokenizer))
    for name, row in rows.items():
        if name.startswith("floor_") or name == "ruler_kl":
            continue
        same = 1 if name in ("top1_agreement", "perplexity_ratio") else 0
        assert row.value == pytest.approx(same, abs=1e-6), name
    ruler = rows["ruler_kl"].details
    assert (ruler["rung"], ruler["below"], ruler["between"]) == ("f16", None, None)


def test_the_nearest_rung_is_that_of_the_mean(material: Path, pair: Pair) -> None:
    rows, _, _ = measure(material, pair, floor=False)
    # Nearer to 0.445 than to 2.25, also on a log scale.
    assert 0.5 < rows["kl_dense_pruned"].value < 0.9
    row = rows["ruler_kl"]
    assert (row.details["rung"], row.details["above"]) == ("2-bit", "1-bit")
    assert row.value == 0.445132
    assert "Llama-3-8B" in row.details["ruler"]


@pytest.mark.parametrize("batch_size", [1, 3, 7])
def test_batch_size_does_not_matter(material: Path, pair: Pair, batch_size: int) -> None:
    expected, _, _ = measure(material, pair)
    rows, _, _ = measure(material, pair, batch_size=batch_size)
    assert rows.keys() == expected.keys()
    for name, row in rows.items():
        other = expected[name]
        assert row.value == pytest.approx(other.value, rel=1e-4, abs=1e-5), name
        assert row.n == other.n
        assert row.details.keys() == other.details.keys()


def test_two_ranks_give_what_one_gives(material: Path, pair: Pair) -> None:
    expected, _, alone = measure(material, pair)
    rows, _, table = measure(material, pair, world=2)
    assert {n: r.value for n, r in rows.items()} == pytest.approx(
        {n: r.value for n, r in expected.items()}, rel=1e-12
    )
    assert {n: r.n for n, r in rows.items()} == {n: r.n for n, r in expected.items()}
    assert table["pruned/nll"].equal(alone["pruned/nll"])


def test_the_dtype_floor_is_above_the_floor_of_the_batch_size(material: Path, pair: Pair) -> None:
    rows, _, _ = measure(material, pair)
    batch, dtype = (rows[f"floor_{f}/kl_dense_pruned"] for f in ("batch", "bfloat16"))
    assert 0 <= batch.value < 1e-6 < dtype.value < rows["kl_dense_pruned"].value
    assert batch.n == dtype.n == 3  # the first windows
    assert batch.details["tokens"] == 3 * 11
    assert rows["floor_batch/perplexity_ratio"].value == pytest.approx(1, abs=1e-5)
    same = {name.rpartition("/")[2] for name in rows if name.startswith("floor_batch/")}
    assert same == {name for name in rows if "/" not in name}


def test_the_floor_does_not_depend_on_the_pruned_model(
    material: Path, pair: Pair, make_model: MakeModel
) -> None:
    def floors(pruned: PreTrainedModel) -> dict[str, float]:
        rows, _, _ = measure(material, Pair(pruned, pair.dense, pair.tokenizer))
        return {name: row.value for name, row in rows.items() if name.startswith("floor_")}

    assert floors(pair.pruned) == floors(make_model("llama", seed=5))


@pytest.mark.parametrize("batch_size", [1, 2])
@pytest.mark.parametrize(
    ("own", "other"), [(torch.float32, torch.bfloat16), (torch.bfloat16, torch.float32)]
)
def test_the_dtype_floor_is_that_of_a_model_loaded_so(
    own: torch.dtype,
    other: torch.dtype,
    batch_size: int,
    folder: Path,
    material: Path,
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    dense = AutoModelForCausalLM.from_pretrained(folder, dtype=own)
    dense.save_pretrained(folder / "again")  # of bfloat16, what is left of the weights
    twin = AutoModelForCausalLM.from_pretrained(folder / "again", dtype=other)
    rows, task, _ = measure(material, Pair(dense, dense, tokenizer), batch_size=batch_size)
    expected = numpy_values(dense, twin, task.collate(range(3))["input_ids"])
    name = str(other).removeprefix("torch.")
    values = expected["kl_dense_pruned"]
    # A window alone and two in a batch differ by rounding, which in bfloat16 is no trifle.
    near = 2e-2 if own == torch.float32 else 0.3
    assert rows[f"floor_{name}/kl_dense_pruned"].value == pytest.approx(values.mean(), rel=near)
    assert {metric.partition("/")[0] for metric in rows if "/" in metric} == {
        "floor_batch",
        f"floor_{name}",
    }


def test_a_copy_in_another_dtype_is_as_if_loaded(folder: Path, model: PreTrainedModel) -> None:
    expected = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    twin = _recast(model, torch.bfloat16)
    for name, parameter in expected.named_parameters():
        assert twin.get_parameter(name).equal(parameter), name
        assert twin.get_parameter(name).dtype == torch.bfloat16
    for name, buffer in expected.named_buffers():
        assert twin.get_buffer(name).equal(buffer), name
        assert twin.get_buffer(name).dtype == buffer.dtype == torch.float32
    assert twin.get_output_embeddings().weight is twin.get_input_embeddings().weight
    assert model.dtype == torch.float32


def test_the_copy_computes_in_its_own_dtype_whatever_the_trainer_casts_to(
    material: Path, pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    dense = pair.dense
    assert dense is not None
    twin = dense.to(torch.bfloat16)
    seen = []

    def hidden(model: PreTrainedModel, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        seen.append((model.dtype, torch.is_autocast_enabled("cpu")))
        return final_hidden(model, ids, mask)

    monkeypatch.setattr("prunelit.tasks.distribution.final_hidden", hidden)
    with torch.autocast("cpu", torch.bfloat16):
        measure(material, Pair(pair.pruned, twin, pair.tokenizer), limit=2, floor_windows=1)
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
    material: Path,
    pair: Pair,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen = []

    def hidden(model: PreTrainedModel, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        seen.append(len(ids))
        return final_hidden(model, ids, mask)

    monkeypatch.setattr("prunelit.tasks.distribution.final_hidden", hidden)
    measure(material, pair, batch_size=batch_size, limit=batch_size, floor_windows=1)
    # Dense, pruned, dense again, and the copy.
    assert seen == sizes


def test_without_a_floor_there_are_no_rows_of_it(material: Path, pair: Pair) -> None:
    rows, task, table = measure(material, pair, floor=False)
    assert not [name for name in rows if "/" in name]
    assert {tuple(line) for line in task.texts(table)} == {("", "pruned")}
    assert set(task.pictures(table)["distribution"].numbers["compared"]) == {"pruned"}


def test_the_table_and_the_figure(material: Path, pair: Pair) -> None:
    rows, task, table = measure(material, pair)
    lines = task.texts(table)
    assert [*lines[0]] == ["", "pruned", "floor: other batch size", "floor: bfloat16"]
    mean = next(line for line in lines if line[""] == "KL(dense ‖ pruned): mean")
    assert mean["pruned"].startswith(f"{rows['kl_dense_pruned'].value:.4g} ± ")
    assert len(lines) == len([name for name in rows if "/" not in name])
    numbers = task.pictures(table)["distribution"].numbers
    pruned = [place for place, name in enumerate(numbers["compared"]) if name == "pruned"]
    shares, kl = ([numbers[key][place] for place in pruned] for key in ("share", "kl"))
    assert shares == sorted(shares)
    assert kl == sorted(kl)
    # The ends are the lowest and the highest of the 77 tokens.
    assert kl[-1] == pytest.approx(rows["kl_dense_pruned_max"].value, rel=0.02)
    assert (shares[0], shares[-1]) == pytest.approx((0.5 / 77, 76.5 / 77))


def test_a_single_token_has_no_error_and_can_be_written(
    material: Path, pair: Pair, tmp_path: Path
) -> None:
    rows, task, table = measure(material, pair, length=2, limit=1)
    assert rows["kl_dense_pruned"].details["standard_error_tokens"] is None
    assert math.isnan(rows["perplexity_ratio"].standard_error)
    write_rows(list(rows.values()), tmp_path / "results.jsonl")
    again = read_rows(tmp_path / "results.jsonl")
    assert [row.value for row in again] == [row.value for row in rows.values()]
    assert task.pictures(table)["distribution"].numbers["kl"]


def test_a_model_without_numbers_is_refused(material: Path, pair: Pair) -> None:
    with torch.no_grad():
        pair.pruned.get_output_embeddings().weight[7] = torch.nan
    with pytest.raises(InputError, match="Expected a log-probability of every token"):
        measure(material, pair)


@pytest.mark.parametrize("windows", [0, -1])
def test_bad_arguments(windows: int) -> None:
    with pytest.raises(InputError, match=f"`floor_windows` of at least 1 but got {windows}"):
        Distribution("text.jsonl", floor_windows=windows)


def test_it_needs_the_reference() -> None:
    assert Distribution.needs_reference
