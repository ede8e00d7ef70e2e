"""A small collection, and functions that run the task on it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prunelit.report.results import Result
from prunelit.tasks import CollectionRetrieval, ItemTable, ModelPair

WORDS = ["snow", "bee", "honey", "milk", "gold", "water", "city", "tall", "red", "cold", "ice"]
QUERY, DOCUMENT = "Q: {text}\nA:", 'The word "{text}'
TEMPLATES = {"query_template": QUERY, "document_template": DOCUMENT}
N, Q = 37, 7
Grades = list[dict[int, int]]


@pytest.fixture(scope="module")
def made() -> tuple[list[str], list[str], Grades]:
    """Documents, queries and, for each query, the grade of its relevant documents."""
    rng = np.random.default_rng(0)
    # No equal texts: their order would depend on rounding.
    drawn = (" ".join(rng.choice(WORDS, size=rng.integers(1, 6))) for _ in range(2 * N))
    documents = list(dict.fromkeys(drawn))[:N]
    queries = [" ".join(rng.choice(WORDS, size=2)) + "?" for _ in range(Q)]
    grades = [
        {int(d): int(rng.integers(1, 3)) for d in rng.choice(N, size=rng.integers(1, 5))}
        for _ in range(Q)
    ]
    return documents, queries, grades


@pytest.fixture
def folder(tmp_path: Path, made: tuple[list[str], list[str], Grades]) -> Path:
    documents, queries, grades = made
    path = tmp_path / "collection"
    path.mkdir()
    for name, texts, letter in (("corpus", documents, "d"), ("queries", queries, "q")):
        rows = [json.dumps({"_id": f"{letter}{i}", "text": text}) for i, text in enumerate(texts)]
        (path / f"{name}.jsonl").write_text("\n".join(rows))
    rows = [f"q{q}\td{d}\t{s}" for q, own in enumerate(grades) for d, s in own.items()]
    (path / "qrels.tsv").write_text("\n".join(["query-id\tcorpus-id\tscore", *rows]))
    return path


@pytest.fixture
def pair(
    make_model: Callable[..., PreTrainedModel], tokenizer: PreTrainedTokenizerBase
) -> ModelPair:
    return ModelPair(make_model("llama", seed=1), make_model("llama", seed=0), tokenizer)


@pytest.fixture
def prepare(folder: Path) -> Callable[..., tuple[CollectionRetrieval, int]]:
    """`prepare(pair, **arguments)`: the task on the collection, and the number of its items."""

    def make(pair: ModelPair, **arguments: Any) -> tuple[CollectionRetrieval, int]:
        given = {**TEMPLATES, "length": 64, "batch_size": 4, "cache": str(folder / "cache")}
        task = CollectionRetrieval(str(folder), **{**given, **arguments})
        task.read()
        return task, task.prepare(pair.tokenizer)

    return make


@pytest.fixture
def measure() -> Callable[..., ItemTable]:
    """`measure(task, size, pair, rank=0, world=1)`: the whole table, gathered from all ranks."""

    @torch.no_grad()
    def run(
        task: CollectionRetrieval, size: int, pair: ModelPair, rank: int = 0, world: int = 1
    ) -> ItemTable:
        table = ItemTable(size)
        for batch in task.batches(size, rank, world):
            if len(batch["indices"]):
                table.assign(batch["indices"], task.step(pair, batch))
        table.all_reduce_()
        return table

    return run


@pytest.fixture
def run(
    prepare: Callable[..., tuple[CollectionRetrieval, int]], measure: Callable[..., ItemTable]
) -> Callable[..., list[Result]]:
    """`run(pair, **arguments)`: the results on one rank."""

    def rows(pair: ModelPair, **arguments: Any) -> list[Result]:
        task, size = prepare(pair, **arguments)
        return task.report(measure(task, size, pair)).results

    return rows
