"""Batches and samples of generation: their common prefix, and their independence."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prunelit.metrics.pass_at_k import estimate_pass_at_k
from prunelit.tasks import Generation, ItemTable, ModelPair
from prunelit.tasks.judges import ExactMatch

MakeModel = Callable[..., PreTrainedModel]


@torch.no_grad()
def measure(task: Generation, pair: ModelPair) -> tuple[dict[tuple[str, str], float], ItemTable]:
    task.read()
    size = task.prepare(pair.tokenizer)
    table = ItemTable(size)
    for batch in task.batches(size, 0, 1):
        table.assign(batch["indices"], task.step(pair, batch))
    table.all_reduce_()
    rows = task.report(table).results
    return {(row.metric, row.model): row.value for row in rows}, table


@pytest.fixture
def many(tmp_path: Path) -> str:
    """Nine prompts of very unequal length that begin alike, beyond what is worth sharing."""
    path = tmp_path / "many.jsonl"
    rows = [
        {"q": "The beginning of all: " + "abcdefghi"[n] * (1 + 7 * n % 40), "a": f"{n}"}
        for n in range(9)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


NAMES = {"context": "q", "target": "a"}


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_batches_and_shared_beginnings_change_nothing(
    many: str,
    make_model: MakeModel,
    family: str,
    tokenizer: PreTrainedTokenizerBase,
    temperature: float,
) -> None:
    pair = ModelPair(make_model(family, seed=1), make_model(family), tokenizer)
    tables = []
    for batch_size in (1, 4, 9):
        task = Generation(
            many,
            columns=NAMES,
            chat=False,
            max_new_tokens=8,
            temperature=temperature,
            batch_size=batch_size,
        )
        tables.append(measure(task, pair)[1])
        assert len(task._prefix) == 22
    for table in tables[1:]:
        for name in tables[0].columns():
            assert torch.equal(table[name], tables[0][name]), name
    assert tables[0]["diverged"].any()


def test_batches_hold_prompts_of_like_length_on_any_number_of_ranks(
    many: str, tokenizer: PreTrainedTokenizerBase
) -> None:
    task = Generation(many, columns=NAMES, chat=False, batch_size=2)
    task.read()
    size = task.prepare(tokenizer)
    one = [batch["indices"].tolist() for batch in task.batches(size, 0, 1)]
    lengths = [len(task._tokens[index]) for indices in one for index in indices]
    assert lengths == sorted(lengths, reverse=True)
    assert sorted(index for indices in one for index in indices) == list(range(9))
    three = [[b["indices"].tolist() for b in task.batches(size, rank, 3)] for rank in range(3)]
    assert [len(batches) for batches in three] == [2, 2, 2]
    assert {tuple(b) for batches in three for b in batches if b} == {tuple(b) for b in one}


def sampled(path: str, **more: Any) -> Generation:
    options = {"samples": 4, "temperature": 1.0, "seed": 3, "max_new_tokens": 6, **more}
    return Generation(path, columns=NAMES, chat=False, **options)


def test_samples_depend_on_seed_and_prompt_alone(
    many: str, make_model: MakeModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    pair = ModelPair(make_model("llama"), make_model("llama"), tokenizer)
    _, table = measure(sampled(many, batch_size=9), pair)
    tokens = table["pruned/tokens"]
    assert tokens.shape == (9, 4, 6)
    assert len({tuple(row.tolist()) for row in tokens.flatten(0, 1)}) == 36
    # The dense copy draws the same.
    assert not table["diverged"].any()
    _, few = measure(sampled(many, batch_size=2, limit=5), pair)
    assert torch.equal(few["pruned/tokens"], tokens[:5])
    _, other = measure(sampled(many, seed=4), pair)
    assert not torch.equal(other["pruned/tokens"], tokens)


def test_pass_at_k_and_means_over_samples(
    many: str, make_model: MakeModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    # Right if the second character is even: about half of the samples are.
    judge = ExactMatch({"even": parity})
    pair = ModelPair(make_model("llama", seed=1), make_model("llama"), tokenizer)
    task = sampled(many, judge=judge, pass_at=[1, 3])
    task.read()
    task._examples = [type(e)(e.context, "even", "") for e in task._examples]
    task.read = lambda: None  # type: ignore[method-assign]
    values, table = measure(task, pair)
    for model in ("dense", "pruned"):
        right = table[f"{model}/even"].sum(1).int().tolist()
        assert 0 < sum(right) < 36
        assert values["even", model] == pytest.approx(sum(right) / 36)
        assert values["pass@1", model] == pytest.approx(values["even", model])
        estimate = sum(estimate_pass_at_k(4, count, 3) for count in right) / 9
        assert values["pass@3", model] == pytest.approx(estimate)
        assert values["pass@3", model] > values["pass@1", model]
    rows = list(task.report(table).items)
    assert [(row["item"], row["sample"]) for row in rows[:4]] == [(0, 0), (0, 0), (0, 1), (0, 1)]
    assert len(rows) == 9 * 4 * 2


def parity(text: str) -> str:
    return "even" if sum(map(ord, text)) % 2 == 0 else "odd"
