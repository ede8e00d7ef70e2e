"""Retrieval from a collection against brute force."""

import json
import math
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
from prunelit.tasks import CollectionRetrieval, ItemTable, ModelPair

QUERY, DOCUMENT = "Q: {text}\nA:", 'The word "{text}'
N, Q = 37, 7
Grades = list[dict[int, int]]
Prepare = Callable[..., tuple[CollectionRetrieval, int]]
Measure = Callable[..., ItemTable]
Run = Callable[..., list[Result]]


def values(rows: list[Result]) -> dict[tuple[str, str], float]:
    return {(row.metric, row.model): row.value for row in rows}


def embed_alone(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: str, pooling: str
) -> np.ndarray:
    """(D,), one text at a time, so without any padding."""
    ids = torch.tensor([tokenizer(text)["input_ids"]])
    with torch.no_grad():
        states = model(input_ids=ids, output_hidden_states=True).hidden_states[-1][0]
    states = states.double().numpy()
    if pooling == "weighted_mean":
        return np.average(states, axis=0, weights=np.arange(1, len(states) + 1))
    return states[-1] if pooling == "last" else states.mean(0)


def embed_all(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, made: Any, pooling: str
) -> tuple[np.ndarray, np.ndarray]:
    documents, queries, _ = made
    return (
        np.stack([embed_alone(model, tokenizer, QUERY.format(text=t), pooling) for t in queries]),
        np.stack(
            [embed_alone(model, tokenizer, DOCUMENT.format(text=t), pooling) for t in documents]
        ),
    )


def orders(queries: np.ndarray, documents: np.ndarray, centre: bool) -> np.ndarray:
    if centre:
        queries, documents = queries - queries.mean(0), documents - documents.mean(0)
    norms = np.outer(np.linalg.norm(queries, axis=1), np.linalg.norm(documents, axis=1))
    return np.argsort(-(queries @ documents.T / norms), axis=1, kind="stable")


def by_hand(order: np.ndarray, grades: Grades) -> dict[str, float]:
    """Means over queries, from the definitions."""
    found: dict[str, list[float]] = {}
    for row, own in zip(order.tolist(), grades, strict=True):
        places = sorted(row.index(document) + 1 for document in own)
        gain = sum(own.get(d, 0) / math.log2(r + 2) for r, d in enumerate(row[:10]))
        ideal = sorted(own.values(), reverse=True)[:10]
        for metric, value in {
            "ndcg@10": gain / sum(g / math.log2(r + 2) for r, g in enumerate(ideal)),
            "recall@3": sum(place <= 3 for place in places) / len(own),
            "mrr@10": 1 / places[0] if places[0] <= 10 else 0.0,
            "map@50": sum((i + 1) / place for i, place in enumerate(places)) / len(own),
        }.items():
            found.setdefault(metric, []).append(value)
    return {metric: float(np.mean(column)) for metric, column in found.items()}


@pytest.mark.parametrize("centre", [True, False])
@pytest.mark.parametrize("pooling", ["last", "mean", "weighted_mean"])
def test_metrics_are_those_of_brute_force(
    pair: ModelPair, made: Any, pooling: str, centre: bool, run: Run
) -> None:
    rows = run(pair, pooling=pooling, centre=centre, recall_at=[3], depth=50)
    found = values(rows)
    vectors = {n: embed_all(m, pair.tokenizer, made, pooling) for n, m in pair.models().items()}
    order = {name: orders(*own, centre) for name, own in vectors.items()}
    for name in vectors:
        for metric, value in by_hand(order[name], made[2]).items():
            assert found[metric, name] == pytest.approx(value, rel=1e-5), (metric, name)
    ranks = {name: own.argsort(1) for name, own in order.items()}
    correlations = [spearmanr(ranks["dense"][q], ranks["pruned"][q]).statistic for q in range(Q)]
    assert found["rank_correlation", "pair"] == pytest.approx(np.mean(correlations), rel=1e-6)
    shared = [len(set(a[:10]) & set(b[:10])) / 10 for a, b in zip(*order.values(), strict=True)]
    assert found["top10_overlap", "pair"] == pytest.approx(np.mean(shared))
    for place, name in enumerate(("query_cosine", "document_cosine")):
        a, b = vectors["dense"][place], vectors["pruned"][place]
        cosines = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
        assert found[name, "pair"] == pytest.approx(cosines.mean(), rel=1e-4)
    assert {row.n for row in rows if row.metric != "document_cosine"} == {Q}
    assert {row.n for row in rows if row.metric == "document_cosine"} == {N}


@torch.no_grad()
def test_a_layer_inside_and_a_block_that_is_gone(
    pair: ModelPair, make_model: Callable[..., PreTrainedModel], prepare: Prepare, run: Run
) -> None:
    pruned = make_model("llama", seed=0)
    del pruned.model.layers[1]
    pruned.config.num_hidden_layers = 2
    same = ModelPair(pruned, pair.dense, pair.tokenizer, removed_blocks=[1])
    # Up to the removed block both are the same, and after it they are not.
    assert values(run(same, layer=1))["document_cosine", "pair"] == pytest.approx(1)
    assert values(run(same, layer=3))["document_cosine", "pair"] < 0.99
    task, _ = prepare(same, layer=4)
    with pytest.raises(InputError, match=r"`layer` in \[0, 3\]"):
        task.check(pair.dense)  # type: ignore[arg-type]


def test_batches_hold_queries_or_documents_alike_in_length(
    pair: ModelPair, prepare: Prepare
) -> None:
    task, size = prepare(pair)
    chunks = task.chunks(size)
    assert sorted(item for chunk in chunks for item in chunk) == list(range(Q + N))
    assert [len({item < Q for item in chunk}) for chunk in chunks] == [1] * len(chunks)
    spread = [np.ptp(task.collate(chunk)["attention_mask"].sum(1).numpy()) for chunk in chunks[2:]]
    assert max(spread) <= 8
    # A premise of the other tests.
    assert not all(task.collate(chunk)["attention_mask"].all() for chunk in chunks)


def test_a_long_document_loses_its_end_only(
    folder: Path, pair: ModelPair, prepare: Prepare
) -> None:
    task, _ = prepare(pair, length=20, document_template="<{text}> =")
    read = pair.tokenizer.decode(task.collate([Q + 3])["input_ids"][0])
    text = json.loads((folder / "corpus.jsonl").read_text().splitlines()[3])["text"]
    assert read == f"<{text[:16]}> ="
    assert task.longest == 20


def test_a_query_does_not_find_itself(
    folder: Path, pair: ModelPair, prepare: Prepare, measure: Measure
) -> None:
    # The queries are documents too, with their own ids, as in ArguAna.
    corpus, queries = folder / "corpus.jsonl", (folder / "queries.jsonl").read_text()
    corpus.write_text(corpus.read_text() + "\n" + queries)
    same = {"query_template": QUERY, "document_template": QUERY, "centre": False}
    for exclude, found in ((False, True), (True, False)):
        task, size = prepare(pair, **same, exclude_same_id=exclude)
        table = measure(task, size, pair)
        for row in task.report(table).items:
            assert (row["query"] in row["first"]) == found
            assert len(row["first"]) == 10
        assert task.report(table).results[0].details["exclude_same_id"] is exclude


def test_items_are_the_metrics_of_every_query(
    pair: ModelPair, made: Any, prepare: Prepare, measure: Measure
) -> None:
    task, size = prepare(pair, recall_at=[3], depth=50)
    table = measure(task, size, pair)
    rows, found = list(task.report(table).items), values(task.report(table).results)
    assert [(row["query"], row["model"]) for row in rows[:2]] == [("q0", "dense"), ("q0", "pruned")]
    assert len(rows) == 2 * Q
    for name in ("dense", "pruned"):
        own = [row for row in rows if row["model"] == name]
        for metric in ("ndcg@10", "recall@3", "mrr@10", "map@50"):
            mean = np.mean([row[metric] for row in own])
            assert mean == pytest.approx(found[metric, name], rel=1e-9)
        for row, grades in zip(own, made[2], strict=True):
            hits = [int(d[1:]) in grades for d in row["first"]]
            assert row["mrr@10"] == pytest.approx(1 / (hits.index(True) + 1) if any(hits) else 0)


def test_without_a_reference_lists_are_of_the_pruned_model(pair: ModelPair, run: Run) -> None:
    both = values(run(pair))
    alone = values(run(ModelPair(pair.pruned, None, pair.tokenizer)))
    assert alone == {key: value for key, value in both.items() if key[1] == "pruned"}


def test_details_tell_collections_apart(pair: ModelPair, made: Any, run: Run) -> None:
    details = run(pair)[0].details
    assert details["documents"] == N
    assert details["relevant"] == sum(map(len, made[2]))
    assert details["missing"] == 0
    assert 0 < details["chance_ndcg@10"] < 0.5
    smaller = run(pair, limit=3, corpus_limit=20)
    assert smaller[0].n == 3
    assert smaller[0].details["documents"] == 20
    assert smaller[0].details["collection_sha256"] != details["collection_sha256"]
    assert json.loads(json.dumps(details)) == details


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"depth": 9}, "`depth` of at least 10"),
        ({"depth": 50, "recall_at": [100]}, "`depth` of at least 100"),
        ({"recall_at": [0]}, "`recall_at` of at least 1"),
        ({"pooling": "max"}, "'weighted_mean'"),
        ({"skip": 1}, "`skip` 0"),
    ],
)
def test_arguments_are_checked(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        CollectionRetrieval("folder", **arguments)


def test_a_template_without_its_field_is_refused_while_reading(folder: Path) -> None:
    with pytest.raises(InputError, match=r"exactly the field \{text\} in the template 'word'"):
        CollectionRetrieval(str(folder), document_template="word").read()


def test_without_a_length_no_text_is_cut(
    pair: ModelPair, prepare: Callable[..., tuple[CollectionRetrieval, int]]
) -> None:
    task, size = prepare(pair, length=None)
    lengths = [task.collate([item])["input_ids"].shape[1] for item in range(size)]
    assert task.longest == max(lengths)
    cut, _ = prepare(pair, length=min(lengths))
    assert cut.collate([lengths.index(max(lengths))])["input_ids"].shape[1] == min(lengths)
