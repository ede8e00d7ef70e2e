"""A run on disk, made by hand: 40 questions that are chosen, searched and answered."""

import base64
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from prunelit.report.items import write_items
from prunelit.report.page.records import write_record
from prunelit.report.results import Result, read_results, write_results
from prunelit.report.score_test import PairedScores
from prunelit.report.variants import Point, Variant
from prunelit.report.verdicts import score_rows

PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
N = 40
# Of 40 items the dense model is right on 36. The pruned one loses 18 of them and gains 2.
DENSE = [1.0] * 36 + [0.0] * 4
PRUNED = [0.0] * 18 + [1.0] * 18 + [0.0, 0.0, 1.0, 1.0]

MakeRun = Callable[..., Path]


def details(use: str, primary: str, **more: Any) -> dict[str, Any]:
    return {
        "path": "rows.jsonl",
        "split": "train",
        "rows_sha256": "ab" * 32,
        "template": "{context}",
        "use": use,
        "primary": primary,
        "chance": 0.0,
        **more,
    }


@pytest.fixture
def make_run() -> MakeRun:
    """`make_run(folder, text=..., rows=...)` writes a run, and returns its folder."""

    def make(
        folder: Path,
        text: str = "Rome",
        rows: str = "ab" * 32,
        answer: str = "yes",
        after: Sequence[float] = PRUNED,
        **more: Any,
    ) -> Path:
        (folder / "figures").mkdir(parents=True)
        place = f"{folder.name}/pruned"
        tasks = {
            "choose": ("multiple choice", "acc"),
            "find": ("retrieval", "mrr"),
            "answers": ("generation", "contains"),
        }
        results, scored = [], []
        for task, (use, primary) in tasks.items():
            own = details(use, primary, rows_sha256=rows, max_new_tokens=24, **more)
            for model, scores in (("dense", DENSE), ("pruned", after)):
                value = float(np.mean(scores))
                results.append(Result(task, primary, model, value, 0.05, N, own, "r1", place))
            kept = float(np.mean(after))
            lost = own | {"dense": 0.9, "pruned": kept}
            retained = Result(task, "retained", "pair", kept / 0.9, 0.1, N, lost, "r1", place)
            results.append(retained)
            pair = (np.array(DENSE), np.array(after), np.zeros(N))
            scored.append((retained, PairedScores(*pair)))
        results += [
            Result("answers", "end_of_text", "dense", 0.5, 0.1, N, own, "r1", place),
            Result("choose", f"chosen/{answer}", "pruned", 0.95, 0.1, N, {"class": answer}),
            Result("text", "kl_dense_pruned", "pair", 0.8, 0.1, N, {}),
            Result("text", "embedding_cosine", "pair", 0.9, 0.1, N, {}),
            Result("text", "logit_cosine", "pair", 0.8, 0.1, N, {}),
            Result("text", "probability_cosine", "pair", 0.7, 0.1, N, {}),
        ]
        write_results(results, folder / "results.jsonl")
        write_items(score_rows(scored), folder / "scores.parquet")
        models = (("dense", DENSE), ("pruned", after))
        items: dict[str, list[dict[str, Any]]] = {name: [] for name in tasks}
        for n in range(N):
            for model, scores in models:
                row = {"item": n, "model": model, "prompt": f"Q{n}: {text}?", "target": text}
                given = text if scores[n] else f"no {model} {text}"
                items["choose"].append(
                    {**row, "id": text, "answer": given, "right_acc": scores[n] > 0}
                )
                rank = {"rank": 1 if scores[n] else 7, "mrr": scores[n]}
                items["find"].append({**row, "id": text, "answer": given, **rank})
                parts = {"first_divergence": n, "diverged": n < 30}
                output = {"output": f"It is {given}.", "right_contains": scores[n] > 0, **parts}
                items["answers"].append({**row, "sample": 0, **output})
        for name, own_rows in items.items():
            write_items(own_rows, folder / "items" / f"{name}.parquet")
        (folder / "figures" / "text_cosines.png").write_bytes(PNG)
        (folder / "figures" / "text_cosines.csv").write_text(
            "curve,axis,x,mean,standard_error,low,high,n\n"
            "teacher_forced/logit_cosine,block,0,0.99,0,0,0,5\n"
            "teacher_forced/logit_cosine,block,29,0.71,0,0,0,5\n"
        )
        pruning = {
            "recipe": {
                "model": {"source": text, "version": {"model.safetensors": "sha256 12"}},
                "pruner": {"class_path": "prunelit.pruners.Wanda", "init_args": {"text": text}},
            },
            "parameters": 100,
            "stored_parameters": 100,
            "bytes": 400,
            "stored_bytes": 400,
            "sparsity": 0.5,
            "versions": {"torch": "2.13.0"},
        }
        (folder / "pruned").mkdir()
        (folder / "pruned" / "pruning.json").write_text(json.dumps(pruning))
        config = {"seed_everything": 0, "model": {"source": text}, "trainer": {"precision": 32}}
        (folder / "config.yaml").write_text(yaml.safe_dump(config, allow_unicode=True))
        return folder

    return make


@pytest.fixture
def make_variant(make_run: MakeRun) -> MakeRun:
    """`make_variant(folder, point)` writes a run and the record of its variant."""

    def make(folder: Path, point: Point | None = None, **options: Any) -> Path:
        make_run(folder, **options)
        results = read_results(folder / "results.jsonl")
        write_record(folder, Variant(folder.name, results, {}, 0.5, point=point), "key")
        return folder

    return make


@pytest.fixture
def searched(tmp_path: Path, make_variant: MakeRun) -> Path:
    """A folder of three settings of a method: the first keeps, the last loses, by margin 0.75."""
    shares = {0.1: 36, 0.2: 34, 0.3: 18}
    for setting, right in shares.items():
        point = Point("wanda", "sparsity.ratio", setting, "id")
        after = [1.0] * right + [0.0] * (N - right)
        make_variant(tmp_path / "search" / f"wanda_{setting}", point, after=after)
    return tmp_path / "search"
