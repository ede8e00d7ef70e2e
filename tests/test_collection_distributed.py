"""Retrieval from a collection on two processes against one, through the command line."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prunelit.report.items import read_items
from prunelit.report.rows import read_rows

pytestmark = pytest.mark.distributed


def run(
    folder: Path,
    material: Path,
    make_config: Callable[[Path], dict[str, Any]],
    save_config: Callable[..., Path],
    console: Callable[..., Any],
    *options: str,
) -> Path:
    """Validate in `folder`; the folder of its results."""
    lines = (material / "questions.jsonl").read_text(encoding="utf-8").splitlines()
    questions = [json.loads(line) for line in lines]
    files: dict[str, list[dict[str, Any]]] = {"corpus": [], "queries": [], "qrels": []}
    for row in questions:
        files["queries"].append({"_id": row["id"], "text": row["context"]})
        for number, choice in enumerate(row["choices"]):
            document, score = f"{row['id']}-{number}", int(number == row["label"])
            files["corpus"].append({"_id": document, "text": choice})
            files["qrels"].append({"query-id": row["id"], "corpus-id": document, "score": score})
    (folder / "collection").mkdir(parents=True)
    for name, rows in files.items():
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / "collection" / f"{name}.jsonl").write_text(text, encoding="utf-8")
    pairs = [{"sentence1": q["context"], "sentence2": q["choices"][0]} for q in questions]
    pairs = [{**pair, "score": number % 4} for number, pair in enumerate(pairs)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    config = make_config(folder)
    config["data"]["tasks"] = [
        {
            "class_path": "prunelit.tasks.CollectionRetrieval",
            "init_args": {
                "path": "collection",
                "cache": "cache",
                "length": 80,
                "batch_size": 5,
                "depth": 100,
            },
        },
        # Seven pairs in a single batch: the other rank has none.
        {
            "class_path": "prunelit.tasks.SemanticSimilarity",
            "init_args": {"path": "pairs.jsonl", "batch_size": 8},
        },
    ]
    save_config(folder, config)
    done = console(folder, "validate", "--config", "config.yaml", *options)
    assert done.returncode == 0, done.stderr
    assert ("Starting with 2 processes" in done.stderr) == bool(options)
    return folder / "run" / "board" / "only"


def test_two_processes_give_the_numbers_of_one(
    tmp_path: Path,
    material: Path,
    make_config: Callable[[Path], dict[str, Any]],
    save_config: Callable[..., Path],
    console: Callable[..., Any],
) -> None:
    given = (material, make_config, save_config, console)
    devices = ("--trainer.devices", "2", "--trainer.strategy", "ddp")
    one, two = run(tmp_path / "1", *given), run(tmp_path / "2", *given, *devices)
    rows, others = (read_rows(path / "results.jsonl") for path in (one, two))
    assert {row.task for row in rows} == {"collection_retrieval", "similarity"}
    # Not nearly: calibration on two ranks prunes the same weights, and no sum depends on ranks.
    assert rows == others
    items = [read_items(path / "items" / "collection_retrieval.parquet") for path in (one, two)]
    assert items[0] == items[1]
    assert len(items[0]) == 14
    files = [sorted(p.name for p in (tmp_path / n / "cache").rglob("*.npy")) for n in ("1", "2")]
    assert files[0] == files[1]
