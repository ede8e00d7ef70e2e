"""Every task of prunelit, and arguments that fit it to tiny data."""

import inspect
import json
from pathlib import Path
from typing import Any

from prunelit.tasks import Routing, Task

from .walk import classes

TASKS = classes("tasks", Task)
# Need a mixture of experts.
ON_MIXTURES: tuple[type[Task], ...] = (Routing,)
# Given to those that have them.
SMALL = {"length": 12, "max_new_tokens": 4, "limit": 7}
SIMILARITY = {"first": "context", "second": "text", "score": "label"}
LABELLED = {"text": "context"}


def family_of(task_class: type[Task]) -> str:
    """A family that a task can measure."""
    return "qwen3_moe" if task_class in ON_MIXTURES else "llama"


def write_rows(path: Path, material: Path) -> Path:
    """Rows that any task can read: questions that have a text too."""
    questions = (material / "questions.jsonl").read_text(encoding="utf-8").splitlines()
    texts = (material / "text.jsonl").read_text(encoding="utf-8").splitlines()
    merged = [
        json.dumps(json.loads(question) | json.loads(text))
        for question, text in zip(questions, texts, strict=False)
    ]
    path.write_text("\n".join(merged))
    return path


def small_arguments(task_class: type[Task], path: Path) -> dict[str, Any]:
    """Return the arguments of a task on the rows of `path`."""
    parameters = {
        name for base in task_class.__mro__ for name in inspect.signature(base.__init__).parameters
    }
    small: dict[str, Any] = {name: value for name, value in SMALL.items() if name in parameters}
    if "qrels" in parameters:
        path = _as_collection(path)
    if {"first", "second", "score"} <= parameters:
        small |= SIMILARITY
    if {"text", "label"} <= parameters:
        small |= LABELLED
    if "skip" in parameters:  # texts, whose template alone has more tokens
        small["length"] = 80
    return {"path": str(path), **small}


def _as_collection(path: Path) -> Path:
    """Write the rows as a collection: contexts are the queries, choices are the documents."""
    folder = path.with_suffix("")
    folder.mkdir(exist_ok=True)
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    files: dict[str, list[dict]] = {"queries": [], "corpus": [], "qrels": []}
    for row in rows:
        files["queries"].append({"_id": row["id"], "text": row["context"]})
        answer = f"{row['id']}-{row['label']}"
        files["qrels"].append({"query-id": row["id"], "corpus-id": answer, "score": 1})
        for number, choice in enumerate(row["choices"]):
            files["corpus"].append({"_id": f"{row['id']}-{number}", "text": choice})
    for name, lines in files.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder
