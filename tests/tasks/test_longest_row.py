"""Each task names the row that has its longest sequence, before any model is read."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from prunelit.tasks import (
    CollectionRetrieval,
    Generation,
    MultipleChoice,
    Retrieval,
    Routing,
    SemanticSimilarity,
    Subspace,
    Task,
    Trajectory,
    Transitions,
)

LONG = "a long text " * 20
QUESTIONS: list[dict[str, Any]] = [
    {"id": name, "context": "Which?", "choices": ["oak", "elm"], "label": 0} for name in "abcd"
]
QUESTIONS[2]["context"] = LONG


def lines(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def named(task: Task, tokenizer: PreTrainedTokenizerBase) -> str:
    task.read()
    task.prepare(tokenizer)
    assert task.longest > len(LONG) - 1
    return task.longest_name


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        (MultipleChoice, ""),
        (Retrieval, ""),
        (Subspace, ""),
        (Generation, " with 24 new tokens"),
    ],
)
def test_tasks_on_questions(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase, kind: Any, more: str
) -> None:
    path = lines(tmp_path / "rows.jsonl", QUESTIONS)
    assert named(kind(path), tokenizer) == f"row 2 (counted from 0, id 'c') of {path!r}{more}"
    task = kind(path, split="train[1:]")
    assert (
        named(task, tokenizer)
        == f"row 1 (counted from 0, id 'c') of {path!r} (split 'train[1:]'){more}"
    )


def test_a_long_choice(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    rows = [*QUESTIONS[:2], {**QUESTIONS[3], "choices": ["oak", LONG]}]
    path = lines(tmp_path / "rows.jsonl", rows)
    row = f"row 2 (counted from 0, id 'd') of {path!r}"
    assert named(MultipleChoice(path), tokenizer) == row
    text = repr(LONG)[:40]
    assert named(Retrieval(path), tokenizer) == f"the choice {text} of {row}"


@pytest.mark.parametrize("kind", [Routing, Trajectory, Transitions])
def test_tasks_on_prompts(tmp_path: Path, tokenizer: PreTrainedTokenizerBase, kind: Any) -> None:
    path = lines(tmp_path / "rows.jsonl", QUESTIONS)
    assert named(kind(path, max_new_tokens=5), tokenizer) == (
        f"row 2 (counted from 0) of {path!r} with 5 new tokens"
    )


def test_pairs_of_texts(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    rows = [{"sentence1": "a", "sentence2": "b", "score": n} for n in range(4)]
    rows[1]["sentence2"] = LONG
    path = lines(tmp_path / "rows.jsonl", rows)
    assert (
        named(SemanticSimilarity(path, length=None), tokenizer)
        == f"row 1 (counted from 0) of {path!r}"
    )


@pytest.mark.parametrize(("file", "name"), [("corpus", "document 'd1'"), ("queries", "query 'q1'")])
def test_collections(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase, file: str, name: str
) -> None:
    texts = {"corpus": "d", "queries": "q"}
    for stem, letter in texts.items():
        rows = [
            {"_id": f"{letter}{n}", "text": LONG if (stem, n) == (file, 1) else "x"}
            for n in range(3)
        ]
        lines(tmp_path / f"{stem}.jsonl", rows)
    (tmp_path / "qrels.tsv").write_text("query-id\tcorpus-id\tscore\nq0\td0\t1\nq1\td1\t1\n")
    task = CollectionRetrieval(str(tmp_path), length=None, cache=str(tmp_path / "cache"))
    assert named(task, tokenizer) == f"the {name} of {str(tmp_path)!r}"
