"""The report of a task: parts that are cheap, and parts that only the writer of files asks for."""

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from prunelit.callbacks import Results
from prunelit.core.datamodule import PruneData
from prunelit.core.module import PairedLM
from prunelit.report.results import Result
from prunelit.tasks import ItemTable, Perplexity, TaskReport
from prunelit.trainer import PruneTrainer

LAZY = ("curves", "items", "pictures", "texts")


class Noting(Perplexity):
    """Notes which lazy parts of its report were begun."""

    begun: list[str]

    def report(self, table: ItemTable) -> TaskReport:
        parts: dict[str, Any] = {name: self._part(name) for name in LAZY}
        return replace(super().report(table), **parts)

    def _part(self, name: str) -> Iterator[Any]:
        self.begun.append(name)
        yield from ()


@pytest.mark.parametrize("written", [False, True])
def test_only_the_writer_of_files_asks_for_the_lazy_parts_and_only_once(
    material: Path, tmp_path: Path, written: bool
) -> None:
    task = Noting(str(material / "text.jsonl"), name="noting", length=20, limit=2)
    task.begun = []
    trainer = PruneTrainer(
        accelerator="cpu",
        callbacks=[Results()] if written else [],
        default_root_dir=tmp_path,
        enable_model_summary=False,
        enable_progress_bar=False,
        logger=False,
        max_epochs=0,
    )
    module = PairedLM(str(material / "dense"))
    trainer.validate(module, datamodule=PruneData(None, [task]), verbose=False)
    assert {row.task for row in module.results} == {"noting"}
    assert sorted(task.begun) == (list(LAZY) if written else [])


def test_a_report_of_results_alone_has_no_other_parts() -> None:
    report = TaskReport([])
    assert report.table is None
    assert not [*report.curves, *report.pictures, *report.texts, *report.items]


def test_every_result_says_what_it_stands_for() -> None:
    metrics = {
        "acc": {},
        "chosen/yes": {"score": "acc"},
        "teacher_forced/kl_pruned_dense": {},
        "subspace_logit_cosine": {},
    }
    given = [Result("t", name, "pair", 0.5, 0.1, 9, own) for name, own in metrics.items()]
    assert [one.details for one in TaskReport(given).results] == [
        {"score": "acc"},
        {"score": "acc"},
        {"score": "kl_pruned_dense", "space": "probability", "direction": "pruned_dense"},
        {"score": "subspace_logit_cosine", "space": "logit"},
    ]
    assert metrics["acc"] == {}


@pytest.mark.parametrize(
    ("value", "n", "own", "reason"),
    [
        (0.5, 1, {}, "a single item"),
        (math.inf, 9, {}, "the value is not finite"),
        (0.5, 9, {}, "the task gives none"),
        (0.5, 9, {"no_error_bar": "a p-value"}, "a p-value"),
    ],
)
def test_a_result_without_an_error_bar_says_why(
    value: float, n: int, own: dict[str, Any], reason: str
) -> None:
    (row,) = TaskReport([Result("t", "x", "pair", value, math.nan, n, own)]).results
    assert row.details["no_error_bar"] == reason
