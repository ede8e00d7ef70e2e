"""Retrieval against brute-force ranks in NumPy."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prunelit import InputError
from prunelit.tasks import ItemTable, ModelPair, Retrieval

QUERY, CANDIDATE = "Q: {text}\nA:", 'The word "{text}'
TEMPLATES = {"query_template": QUERY, "document_template": CANDIDATE}


def embed_alone(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: str, pooling: str
) -> np.ndarray:
    """(D,), one text at a time, so without any padding."""
    ids = torch.tensor([tokenizer(text)["input_ids"]])
    with torch.no_grad():
        states = model(input_ids=ids, output_hidden_states=True).hidden_states[-1][0]
    states = states.double().numpy()
    return states[-1] if pooling == "last" else states.mean(0)


def brute_force(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: list[dict],
    pooling: str,
    centre: bool,
) -> tuple[np.ndarray, np.ndarray]:
    """The rank (from 1) of each right answer and its cosine."""
    corpus: list[str] = []
    for row in rows:
        corpus += [choice for choice in row["choices"] if choice not in corpus]
    queries = np.stack(
        [embed_alone(model, tokenizer, QUERY.format(text=r["context"]), pooling) for r in rows]
    )
    candidates = np.stack(
        [embed_alone(model, tokenizer, CANDIDATE.format(text=c), pooling) for c in corpus]
    )
    if centre:
        queries, candidates = queries - queries.mean(0), candidates - candidates.mean(0)
    norms = np.linalg.norm(queries, axis=1)[:, None] * np.linalg.norm(candidates, axis=1)
    cosines = queries @ candidates.T / norms
    right = np.array([corpus.index(row["choices"][row["label"]]) for row in rows])
    own = cosines[np.arange(len(rows)), right]
    return 1 + (cosines > own[:, None]).sum(1), own


@torch.no_grad()
def measure(
    material: Path, pair: ModelPair, **arguments: object
) -> tuple[dict[tuple[str, str], float], Retrieval]:
    task = Retrieval(str(material / "questions.jsonl"), **TEMPLATES, **arguments)
    task.read()
    size = task.prepare(pair.tokenizer)
    table = ItemTable(size)
    for batch in task.batches(size, 0, 1):
        table.assign(batch["indices"], task.step(pair, batch))
    rows = task.report(table).results
    assert {row.n for row in rows} == {7}
    return {(row.metric, row.model): row.value for row in rows}, task


@pytest.fixture
def pair(
    make_model: Callable[..., PreTrainedModel], tokenizer: PreTrainedTokenizerBase
) -> ModelPair:
    return ModelPair(make_model("llama", seed=1), make_model("llama", seed=0), tokenizer)


@pytest.mark.parametrize(
    ("pooling", "centre", "ends"),
    [
        *(("last", True, False), ("last", False, False), ("mean", True, False)),
        *(("mean", False, False), ("last", True, True)),
    ],
)
def test_metrics_are_those_of_brute_force_ranks(
    material: Path, pair: ModelPair, pooling: str, centre: bool, ends: bool
) -> None:
    if ends:  # the state of the token that ends each text is read, beside padding of the same id
        pair.tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single="$A <end>", special_tokens=[("<end>", 0)]
        )
        assert pair.tokenizer("a")["input_ids"][-1] == pair.tokenizer.pad_token_id == 0
    values, _ = measure(material, pair, pooling=pooling, centre=centre, batch_size=5)
    lines = (material / "questions.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    for name, model in pair.models().items():
        ranks, cosines = brute_force(model, pair.tokenizer, rows, pooling, centre)
        if centre:
            # torchmetrics alone would give these items a rank of zero.
            assert (cosines < 0).any()
        assert values["mrr", name] == pytest.approx((1 / ranks).mean(), rel=1e-6)
        for k in (1, 5, 10):
            assert values[f"recall@{k}", name] == pytest.approx((ranks <= k).mean(), rel=1e-6)
        gains = [1 / math.log2(rank + 1) if rank <= 10 else 0 for rank in ranks]
        assert values["ndcg@10", name] == pytest.approx(np.mean(gains), rel=1e-6)


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_padding_is_irrelevant(material: Path, pair: ModelPair, pooling: str) -> None:
    alone, _ = measure(material, pair, pooling=pooling, batch_size=1)
    together, task = measure(material, pair, pooling=pooling, batch_size=64)
    assert not task.collate(range(20))["attention_mask"].all()
    assert together == pytest.approx(alone, rel=1e-6, nan_ok=True)


@pytest.mark.parametrize(("batch_size", "tokens"), [(64, 60), (3, 4096), (64, 1)])
def test_batches_hold_texts_of_similar_length_within_a_budget(
    material: Path, pair: ModelPair, batch_size: int, tokens: int
) -> None:
    alone, _ = measure(material, pair, batch_size=1)
    values, task = measure(material, pair, batch_size=batch_size, tokens=tokens)
    assert values == pytest.approx(alone, rel=1e-6, nan_ok=True)
    size = task.prepare(pair.tokenizer)
    chunks = task.chunks(size)
    masks = [task.collate(chunk)["attention_mask"] for chunk in chunks]
    assert sorted(item for chunk in chunks for item in chunk) == list(range(size))
    lengths = torch.cat([mask.sum(1) for mask in masks]).tolist()
    assert lengths == sorted(lengths, reverse=True)
    assert len(set(lengths)) > 1
    for mask in masks:
        assert len(mask) == 1 or (len(mask) <= batch_size and mask.numel() <= tokens)


def test_the_corpus_holds_every_distinct_choice(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    rows = [
        {"id": "a", "context": "x", "choices": ["one", "two"], "label": 0},
        {"id": "b", "context": "y", "choices": ["two", "three"], "label": 0},
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = Retrieval(str(path), **TEMPLATES)
    task.read()
    assert task.prepare(tokenizer) == 2 + 3
    # Items 2, 3, 4 are the candidates; the second answer is one that the first row brought in.
    texts = [tokenizer.decode(task.collate([i])["input_ids"][0]) for i in range(5)]
    assert texts[1:] == [QUERY.format(text="y")] + [
        CANDIDATE.format(text=text) for text in ("one", "two", "three")
    ]
    table = ItemTable(5)
    # Queries beside their answers: both first, although recall@10 reaches beyond the corpus.
    angles = torch.tensor([0.0, 2.0, 0.1, 2.1, 4.0])
    table.assign(
        torch.arange(5), {"pruned/embedding": torch.stack([angles.cos(), angles.sin()], 1)}
    )
    found = {row.metric: row for row in task.report(table).results}
    assert found["mrr"].value == found["recall@10"].value == 1
    assert found["mrr"].details["documents"] == 3
    assert found["mrr"].details["chance_mrr"] == pytest.approx((1 + 1 / 2 + 1 / 3) / 3)


def test_an_unknown_pooling_is_refused() -> None:
    with pytest.raises(InputError, match=r"\['mean', 'last', 'weighted_mean'\] but got 'max'"):
        Retrieval("rows.jsonl", pooling="max")  # type: ignore[arg-type]


def test_a_template_without_its_field_is_refused_while_reading(material: Path) -> None:
    with pytest.raises(InputError, match=r"Expected exactly the field \{text\}"):
        Retrieval(str(material / "questions.jsonl"), document_template="word").read()


def test_recall_is_taken_where_it_is_asked_for(material: Path, pair: ModelPair) -> None:
    values, _ = measure(material, pair, recall_at=[2, 999])
    metrics = {metric for metric, _ in values}
    assert metrics >= {"recall@2", "recall@999", "mrr", "ndcg@10"}
    assert "recall@10" not in metrics
    assert values["recall@999", "dense"] == 1
    with pytest.raises(InputError, match="Expected `recall_at` of at least 1"):
        Retrieval("rows.jsonl", recall_at=[0])


def test_long_texts_are_cut(material: Path, pair: ModelPair) -> None:
    _, whole = measure(material, pair)
    _, task = measure(material, pair, length=24)
    assert whole.longest > task.longest == 24


@torch.no_grad()
def test_items_have_the_rank_of_the_right_answer(material: Path, pair: ModelPair) -> None:
    task = Retrieval(str(material / "questions.jsonl"), **TEMPLATES)
    task.read()
    size = task.prepare(pair.tokenizer)
    table = ItemTable(size)
    for batch in task.batches(size, 0, 1):
        table.assign(batch["indices"], task.step(pair, batch))
    items = list(task.report(table).items)
    lines = (material / "questions.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    for name, model in pair.models().items():
        ranks, _ = brute_force(model, pair.tokenizer, rows, "last", True)
        own = [row for row in items if row["model"] == name]
        assert [row["rank"] for row in own] == ranks.tolist()
        assert [row["prompt"] for row in own] == [row["context"] for row in rows]
        assert all((row["answer"] == row["target"]) == (row["rank"] == 1) for row in own)
        assert [row["mrr"] for row in own] == pytest.approx((1 / ranks).tolist())
