"""Trajectories of models that agree, that diverge, and that end."""

import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prunelit.errors import InputError
from prunelit.metrics.spaces.deviation import LOGIT_SPACE
from prunelit.tasks import ModelPair
from prunelit.tasks.trajectory import Trajectory

MakeModel = Callable[..., PreTrainedModel]
BUDGET = 6

some_families = pytest.mark.parametrize("name", ["llama", "gemma2", "gpt_neox"])


@some_families
@pytest.mark.parametrize("sample", [False, True])
def test_a_model_against_its_own_copy_never_diverges(
    make_model: MakeModel,
    tokenizer: PreTrainedTokenizerBase,
    trajectory: Callable[..., Any],
    name: str,
    sample: bool,
) -> None:
    dense = make_model(name)
    task, table, streams = trajectory(
        ModelPair(copy.deepcopy(dense), dense, tokenizer), sample=sample
    )
    assert torch.equal(table["dense/tokens"], table["pruned/tokens"])
    assert (table["dense/tokens"][0] != table["dense/tokens"][1]).any()
    assert (table["diverged"] == 0).all()
    alive = table["dense/tokens"] >= 0
    for mode in ("teacher_forced", "free_running"):
        for quantity, nothing in (
            *((f"{space}_cosine", 1.0) for space in ("embedding", "logit", "probability")),
            *((f"kl_{direction}", 0.0) for direction in ("dense_pruned", "pruned_dense")),
            ("top1_agreement", 1.0),
        ):
            values = streams[f"{mode}/{quantity}"]
            assert torch.equal(~values.isnan(), alive)
            assert (values[alive] - nothing).abs().max() < 1e-5
    assert (table["keep"][alive] == 1).all()
    curves = {curve.tag: curve for curve in task.report(table).curves}
    assert set(curves["first_divergence/observed"].mean) == {1}
    assert set(curves["first_divergence/forecast"].mean) == {1}
    values = {row.metric: row.value for row in task.report(table).results}
    assert values["forecast_distance"] == 0
    assert values["diverged"] == 0
    assert math.isnan(values["first_divergence_median"])
    assert values["first_divergence_mean"] == len(curves["first_divergence/observed"].mean)


@pytest.mark.parametrize("sample", [False, True])
def test_batch_size_does_not_matter(
    parting: Callable[..., ModelPair], trajectory: Callable[..., Any], sample: bool
) -> None:
    pair = parting("llama")
    _, alone, singles = trajectory(pair, batch_size=1, sample=sample)
    _, together, batched = trajectory(pair, batch_size=3, sample=sample)
    for column in ("dense/tokens", "pruned/tokens", "last", "diverged"):
        assert torch.equal(alone[column], together[column])
    assert singles.keys() == batched.keys()
    for name, values in singles.items():
        torch.testing.assert_close(values, batched[name], rtol=1e-3, atol=2e-5, equal_nan=True)


def test_the_logit_space_without_logits_is_that_of_logits(
    parting: Callable[..., ModelPair], trajectory: Callable[..., Any]
) -> None:
    pair = parting("gpt_neox")
    _, _, plain = trajectory(pair, logit_gram=False)
    _, _, found = trajectory(pair)
    assert list(found) == list(plain)
    changed = set()
    for name, values in plain.items():
        if not torch.equal(values.nan_to_num(7), found[name].nan_to_num(7)):
            changed.add(name.rpartition("/")[2])
            torch.testing.assert_close(found[name], values, rtol=1e-4, atol=1e-6, equal_nan=True)
    assert changed == {*LOGIT_SPACE, "logit_distance"}


def test_two_ranks_find_what_one_finds(
    parting: Callable[..., ModelPair], trajectory: Callable[..., Any]
) -> None:
    pair = parting("llama")
    task, one, _ = trajectory(pair, sample=True, batch_size=2)
    _, two, _ = trajectory(pair, world=2, sample=True, batch_size=2)
    assert one.columns() == two.columns()
    for column in one.columns():
        assert torch.equal(one[column].nan_to_num(7), two[column].nan_to_num(7))
    for row, other in zip(*(task.report(table).results for table in (one, two)), strict=True):
        assert (row.metric, row.n, row.details) == (other.metric, other.n, other.details)
        assert row.value == pytest.approx(other.value, rel=0, abs=0, nan_ok=True)
        assert row.standard_error == pytest.approx(other.standard_error, rel=0, abs=0, nan_ok=True)
    for curve, other in zip(*(task.report(table).curves for table in (one, two)), strict=True):
        assert curve.tag == other.tag
        assert list(curve.n) == list(other.n)
        for key in ("mean", "low", "high", "standard_error"):
            ours, theirs = getattr(curve, key), getattr(other, key)
            np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-9)


@some_families
def test_the_greedy_forecast_is_exact(
    parting: Callable[..., ModelPair], trajectory: Callable[..., Any], name: str
) -> None:
    pair = parting(name)
    task, table, _ = trajectory(pair)
    kept = table["keep"] != 0  # NaN after the end
    for row, last, diverged in zip(kept, table["last"], table["diverged"], strict=True):
        assert row.all() == (diverged == 0)
        if diverged:
            assert int(row.int().argmin()) == last
    assert table["diverged"].sum() > 0
    curves = {curve.tag: curve for curve in task.report(table).curves}
    observed, predicted = curves["first_divergence/observed"], curves["first_divergence/forecast"]
    shared = slice(len(observed.mean))
    assert list(predicted.mean)[shared] == pytest.approx(list(observed.mean), abs=1e-12)
    rows = {row.metric: row for row in task.report(table).results}
    assert rows["forecast_distance"].value == pytest.approx(0, abs=1e-12)
    for kind in ("median", "mean"):
        first, forecast = rows[f"first_divergence_{kind}"], rows[f"forecast_{kind}"]
        assert forecast.value == pytest.approx(first.value, nan_ok=True)
        assert forecast.standard_error == pytest.approx(first.standard_error, nan_ok=True)
    # The teacher-forced pass alone gives the same forecast.
    alone = trajectory(pair, free_running=False)[1]["keep"]
    assert torch.equal(alone.nan_to_num(7), table["keep"].nan_to_num(7))


def test_the_sampled_forecast_is_what_many_rollouts_do(
    parting: Callable[..., ModelPair], trajectory: Callable[..., Any]
) -> None:
    # One prompt 300 times over: the noise differs, and nothing else.
    pair = parting("llama")
    task, table, _ = trajectory(pair, contexts=["two"] * 300, sample=True, batch_size=100)
    assert len(table["dense/tokens"].unique(dim=0)) > 200
    curves = {curve.tag: curve for curve in task.report(table).curves}
    observed, predicted = curves["first_divergence/observed"], curves["first_divergence/forecast"]
    assert 0.1 < observed.mean[3] < 0.9
    distances = np.abs(np.array(observed.mean) - np.array(predicted.mean)[: len(observed.mean)])
    assert distances.max() < 4 * 0.5 / math.sqrt(300)
    rows = {row.metric: row for row in task.report(table).results}
    mean, forecast = rows["first_divergence_mean"], rows["forecast_mean"]
    assert abs(mean.value - forecast.value) < 4 * mean.standard_error
    # Without common noise the two would diverge far earlier.
    _, apart, _ = trajectory(pair, contexts=["two"] * 300, sample=True, batch_size=100, seed=1)
    agree = (apart["pruned/tokens"][:, 0] == table["dense/tokens"][:, 0]).double().mean()
    assert agree < observed.mean[0] - 0.2


def test_ended_rollouts_leave_the_count(
    parting: Callable[..., ModelPair], trajectory: Callable[..., Any]
) -> None:
    task, table, _ = trajectory(parting("llama"))
    curves = {curve.tag: curve for curve in task.report(table).curves}
    lengths = {name: (table[f"{name}/tokens"] >= 0).sum(1) for name in ("dense", "pruned")}
    assert lengths["dense"].unique().numel() > 1
    both = torch.minimum(lengths["dense"], lengths["pruned"])
    for mode, counted in (("teacher_forced", lengths["dense"]), ("free_running", both)):
        curve = curves[f"{mode}/kl_dense_pruned"]
        steps = int(counted.max())
        assert list(curve.x) == list(range(steps))
        assert curve.n == [int((counted > step).sum()) for step in range(steps)]
        assert curve.n[0] > curve.n[-1]
        assert all(a <= b for a, b in zip(curve.low, curve.high, strict=True))
    observed = curves["first_divergence/observed"]
    assert observed.n == [int((table["last"] >= step).sum()) for step in observed.x]


def test_accumulation_begins_where_the_rollouts_part(
    parting: Callable[..., ModelPair], trajectory: Callable[..., Any]
) -> None:
    _, table, streams = trajectory(parting("llama"))
    steps = torch.arange(BUDGET)
    for name in ("embedding_distance", "logit_distance", "kl_dense_pruned"):
        values = streams[f"accumulation/{name}"]
        before = (steps <= table["last"][:, None]) & ~values.isnan()
        after = (steps > table["last"][:, None]) & ~values.isnan()
        assert before.any()
        assert after.any()
        assert values[before].abs().max() < 1e-5
        assert values[after].abs().min() > 1e-4


def test_rows_are_means_over_prompts_with_their_errors(
    parting: Callable[..., ModelPair], trajectory: Callable[..., Any]
) -> None:
    pair = parting("llama")
    task, table, streams = trajectory(pair, temperature=0.7, sample=True, seed=3)
    rows = {row.metric: row for row in task.report(table).results}
    assert {row.model for row in rows.values()} == {"pair"}
    for metric in ("teacher_forced/kl_dense_pruned", "free_running/probability_cosine"):
        items = streams[metric].nanmean(1).numpy()
        assert rows[metric].value == pytest.approx(items.mean())
        assert rows[metric].standard_error == pytest.approx(items.std(ddof=1) / math.sqrt(7))
        assert rows[metric].n == 7
    added = rows["accumulation/kl_dense_pruned"]
    items = streams["accumulation/kl_dense_pruned"].nanmean(1).numpy()
    assert added.value == pytest.approx(items.mean())
    details = rows["forecast_mean"].details
    assert (details["temperature"], details["decoding"], details["seed"]) == (0.7, "gumbel-max", 3)
    _, greedy, _ = trajectory(pair)
    assert task.report(greedy).results[0].details["prompts_sha256"] == details["prompts_sha256"]
    exact = 1 - streams["teacher_forced/embedding_cosine"].numpy().ravel()
    estimate = 1 - streams["teacher_forced/embedding_cosine_estimate"].numpy().ravel()
    ranks = [np.argsort(np.argsort(x[~np.isnan(x)])) for x in (exact, estimate)]
    assert rows["rank_correlation/embedding_cosine"].value == pytest.approx(
        np.corrcoef(*ranks)[0, 1], abs=1e-9
    )


def test_estimates_hold_for_a_small_perturbation_and_not_for_a_large_one(
    parting: Callable[..., ModelPair], trajectory: Callable[..., Any]
) -> None:
    for amount, holds in ((0.02, True), (3.0, False)):
        task, table, streams = trajectory(parting("llama", amount), temperature=0.2)
        rows = {row.metric: row for row in task.report(table).results}
        held = rows["holds_to/kl_dense_pruned"].value
        largest = np.nanmax(streams["teacher_forced/logit_std_p"].numpy())
        if holds:
            assert held == pytest.approx(largest)
            assert rows["rank_correlation/kl_dense_pruned"].value > 0.99
        else:
            assert held < largest / 2


def test_without_the_pruned_rollout_only_the_forecast_is_there(
    parting: Callable[..., ModelPair], trajectory: Callable[..., Any]
) -> None:
    pair = parting("llama")
    task, table, streams = trajectory(pair, free_running=False)
    assert "pruned/tokens" not in table
    assert {name.partition("/")[0] for name in streams} == {"teacher_forced"}
    metrics = {row.metric for row in task.report(table).results}
    assert "forecast_median" in metrics
    assert not any("first_divergence" in m or "accumulation" in m for m in metrics)
    tags = {curve.tag for curve in task.report(table).curves}
    assert "first_divergence/forecast" in tags
    assert "first_divergence/observed" not in tags
    pictures = dict(task.report(table).pictures)
    assert "accumulation" not in pictures
    assert set(pictures["first_divergence"].numbers["curve"]) == {"first_divergence/forecast"}
    assert list(next(iter(task.report(table).texts))) == ["prompt", "dense"]


def test_pictures_hold_the_numbers_behind_them(
    parting: Callable[..., ModelPair], trajectory: Callable[..., Any]
) -> None:
    task, table, streams = trajectory(parting("llama"))
    pictures = dict(task.report(table).pictures)
    assert set(pictures) == {
        *(f"trajectory_{name}" for name in ("cosines", "kl", "logits", "theory", "scatter")),
        *("accumulation", "first_divergence"),
    }
    for picture in pictures.values():
        assert len({len(column) for column in picture.numbers.values()}) == 1
        assert all(len(column) > 0 for column in picture.numbers.values())
    scatter = pictures["trajectory_scatter"].numbers
    chosen = [i for i, name in enumerate(scatter["quantity"]) if name == "kl_dense_pruned"]
    exact = streams["teacher_forced/kl_dense_pruned"].flatten()
    assert [scatter["exact"][i] for i in chosen] == exact[~exact.isnan()].tolist()
    dz = streams["teacher_forced/logit_std_p"].flatten()
    assert [scatter["dz"][i] for i in chosen] == dz[~dz.isnan()].tolist()


def test_texts_say_where_the_rollouts_part(
    parting: Callable[..., ModelPair],
    tokenizer: PreTrainedTokenizerBase,
    contexts: list[str],
    trajectory: Callable[..., Any],
) -> None:
    task, table, _ = trajectory(parting("llama", 0.1))
    texts = list(task.report(table).texts)
    assert [row["prompt"] for row in texts] == contexts
    for index, row in enumerate(texts):
        for name in ("dense", "pruned"):
            tokens = [t for t in table[f"{name}/tokens"][index].tolist() if t >= 0]
            assert row[name] == tokenizer.decode(tokens, skip_special_tokens=True).strip()
        last = int(table["last"][index])
        parted = f"step {last}" if table["diverged"][index] else f"none in {last + 1} steps"
        assert row["first divergence"] == parted
    assert {row["first divergence"].split()[0] for row in texts} == {"step", "none"}


def test_equal_tokens_end_together_whatever_the_pruned_configuration_says(
    make_model: MakeModel, tokenizer: PreTrainedTokenizerBase, trajectory: Callable[..., Any]
) -> None:
    dense = make_model("llama")
    pruned = copy.deepcopy(dense)
    _, free, _ = trajectory(ModelPair(pruned, dense, tokenizer))
    pruned.generation_config.eos_token_id = int(free["dense/tokens"][0, 1])
    _, table, _ = trajectory(ModelPair(pruned, dense, tokenizer))
    assert torch.equal(table["pruned/tokens"], free["dense/tokens"])
    assert (table["diverged"] == 0).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"temperature": 0}, "Expected `temperature` above 0 but got 0"),
        ({"temperature": -1.0, "sample": True}, "Expected `temperature` above 0 but got -1.0"),
        ({"seed": -1}, "Expected `seed` from 0 to 4294967295 but got -1"),
        ({"max_new_tokens": 0}, "Expected `max_new_tokens` of at least 1 but got 0"),
        ({"batch_size": 0}, "Expected `batch_size` of at least 1 but got 0"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Trajectory("prompts.jsonl", **arguments)
