"""Spearman's correlation of cosines against one text at a time in NumPy and SciPy."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prunelit import InputError
from prunelit.report.results import Result
from prunelit.tasks import ItemTable, ModelPair, SemanticSimilarity

WORDS = ["snow", "bee", "honey", "milk", "gold", "water", "city", "tall", "red", "cold", "ice"]
TEMPLATE = 'The text "{text}" is'


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    texts = [
        [" ".join(rng.choice(WORDS, size=rng.integers(1, 6))) for _ in "ab"] for _ in range(11)
    ]
    return [
        {"sentence1": a, "sentence2": b, "score": float(s)}
        for (a, b), s in zip(texts, rng.integers(0, 11, size=11) / 2, strict=True)
    ]


@pytest.fixture
def path(tmp_path: Path, rows: list[dict[str, Any]]) -> Path:
    return write(tmp_path / "rows.jsonl", rows)


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


@pytest.fixture
def pair(
    make_model: Callable[..., PreTrainedModel], tokenizer: PreTrainedTokenizerBase
) -> ModelPair:
    return ModelPair(make_model("llama", seed=1), make_model("llama", seed=0), tokenizer)


@torch.no_grad()
def run(path: Path, pair: ModelPair, **arguments: Any) -> list[Result]:
    given = {"template": TEMPLATE, "batch_size": 4, **arguments}
    task = SemanticSimilarity(str(path), **given)
    task.read()
    table = ItemTable(task.prepare(pair.tokenizer))
    for batch in task.batches(table.size, 0, 1):
        table.assign(batch["indices"], task.step(pair, batch))
    table.all_reduce_()
    return task.report(table).results


def alone(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: str) -> np.ndarray:
    ids = torch.tensor([tokenizer(TEMPLATE.format(text=text))["input_ids"]])
    with torch.no_grad():
        return model.base_model(input_ids=ids).last_hidden_state[0, -1].double().numpy()


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def test_it_is_the_correlation_of_cosines_with_scores(
    path: Path, pair: ModelPair, rows: list[dict[str, Any]]
) -> None:
    found = {(row.metric, row.model): row for row in run(path, pair)}
    scores, vectors = [row["score"] for row in rows], {}
    for name, model in pair.models().items():
        vectors[name] = [
            [alone(model, pair.tokenizer, row[side]) for side in ("sentence1", "sentence2")]
            for row in rows
        ]
        expected = spearmanr([cosine(*both) for both in vectors[name]], scores).statistic
        assert found["spearman", name].value == pytest.approx(expected, abs=1e-9)
    own = [found["spearman", name].value for name in ("pruned", "dense", "difference")]
    assert own[0] - own[1] == pytest.approx(own[2])
    cosines = [
        cosine(d, p)
        for both in zip(vectors["dense"], vectors["pruned"], strict=True)
        for d, p in zip(*both, strict=True)
    ]
    near = found["embedding_cosine", "pair"]
    assert near.value == pytest.approx(np.mean(cosines), rel=1e-5)
    assert {row.n for row in found.values()} == {11}


def test_other_columns_and_a_limit(
    tmp_path: Path, pair: ModelPair, rows: list[dict[str, Any]]
) -> None:
    own = [{"a": r["sentence1"], "b": r["sentence2"], "gold": int(2 * r["score"])} for r in rows]
    path = write(tmp_path / "own.jsonl", own)
    found = run(path, pair, first="a", second="b", score="gold", limit=6)
    short = write(tmp_path / "short.jsonl", rows[:6])
    for row, other in zip(found, run(short, pair), strict=True):
        assert (row.n, row.value) == (6, pytest.approx(other.value))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sentence1": None}, "Row 2 .counted from 0. of .*`sentence1` must be a string"),
        ({"score": None}, "Row 2 .counted from 0. of .*`score` must be a number"),
    ],
)
def test_rows_are_checked(
    tmp_path: Path, rows: list[dict[str, Any]], change: dict[str, Any], message: str
) -> None:
    path = write(tmp_path / "bad.jsonl", [*rows[:2], {**rows[2], **change}])
    with pytest.raises(InputError, match=message):
        SemanticSimilarity(str(path)).read()


def test_scores_of_a_csv_file_are_numbers(
    tmp_path: Path, pair: ModelPair, path: Path, rows: list[dict[str, Any]]
) -> None:
    table = tmp_path / "rows.csv"
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    found = run(table, pair)
    assert [(row.metric, row.value) for row in found] == [
        (row.metric, row.value) for row in run(path, pair)
    ]
    with table.open("a") as file:
        file.write('ice,red,"4,5"\n')
    with pytest.raises(
        InputError,
        match=r"Row 11 .counted from 0. of .*csv': `score` must be a number but is '4,5'",
    ):
        SemanticSimilarity(str(table)).read()


def test_scores_that_are_texts_or_constant_are_refused(
    tmp_path: Path, rows: list[dict[str, Any]]
) -> None:
    words = write(tmp_path / "words.jsonl", [{**row, "score": "high"} for row in rows])
    with pytest.raises(InputError, match=r"Row 0 .counted from 0. of .*`score` must be a number"):
        SemanticSimilarity(str(words)).read()
    constant = write(tmp_path / "constant.jsonl", [{**row, "score": 1.0} for row in rows])
    with pytest.raises(InputError, match="no correlation with a constant"):
        SemanticSimilarity(str(constant)).read()


def test_a_layer_and_a_pooling_that_are_not_there_are_refused(path: Path, pair: ModelPair) -> None:
    with pytest.raises(InputError, match=r"`layer` in \[0, 3\]"):
        SemanticSimilarity(str(path), layer=9).check(pair.pruned)
    with pytest.raises(InputError, match="`pooling`"):
        SemanticSimilarity(str(path), pooling="max")  # type: ignore[arg-type]
    # And those that are there make a difference.
    default = run(path, pair)[0].value
    others = {run(path, pair, **how)[0].value for how in ({"layer": 1}, {"pooling": "mean"})}
    assert default not in others
