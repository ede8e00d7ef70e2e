"""One validation: its results, and a task that cannot compute its own."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from prunelit.core.datamodule import PruneData
from prunelit.core.evaluation import Evaluation
from prunelit.core.module import PairedLM
from prunelit.errors import InputError
from prunelit.report.results import scalar_name
from prunelit.tasks import ItemTable, Perplexity, TaskReport
from prunelit.trainer import PruneTrainer


def test_results_start_afresh_with_every_validation(
    module: PairedLM, data: PruneData, make_trainer: Callable[..., PruneTrainer]
) -> None:
    trainer = make_trainer()
    trainer.validate(module, datamodule=data)
    before = list(module.results)
    with torch.no_grad():
        module.pair.pruned.get_output_embeddings().weight.zero_()
    trainer.validate(module, datamodule=data)
    assert len(module.results) == len(before)
    after = {scalar_name(row): row for row in module.results}
    assert after["val/perplexity/perplexity"].value == pytest.approx(300)
    assert after["val/perplexity/perplexity_dense"].value == pytest.approx(
        next(r.value for r in before if (r.metric, r.model) == ("perplexity", "dense"))
    )


class Unsound(Perplexity):
    """A task that cannot compute its results."""

    def report(self, table: ItemTable) -> TaskReport:
        raise InputError("These items cannot be summed up.")


@pytest.fixture
def make_evaluation(
    material: Path, module: PairedLM, make_trainer: Callable[..., PruneTrainer]
) -> Callable[..., Evaluation]:
    """`make_evaluation(*tasks)` returns an evaluation that has measured every item."""

    def make(*classes: type[Perplexity]) -> Evaluation:
        path = str(material / "text.jsonl")
        tasks = [task(path, name=task.__name__.lower(), length=20, limit=3) for task in classes]
        data = PruneData(None, list(tasks))
        data.prepare(module.tokenizer)
        module.load()
        evaluation = Evaluation(make_trainer(), module.pair, data)
        for name, task in data.tasks.items():
            for batch in task.batches(data.sizes[name], 0, 1):
                evaluation.measure(name, batch)
        return evaluation

    return make


@torch.no_grad()
def test_an_error_of_one_task_is_kept_until_the_end(
    make_evaluation: Callable[..., Evaluation],
) -> None:
    evaluation = make_evaluation(Unsound, Perplexity)
    evaluation.summarise(keep_going=True)
    assert {row.task for row in evaluation.results} == {"perplexity"}
    assert list(evaluation.reports) == ["perplexity"]
    assert list(evaluation.failed) == ["unsound"]
    with pytest.raises(InputError, match="cannot be summed up"):
        evaluation.finish()
    assert not evaluation.reports


@torch.no_grad()
def test_without_keep_going_an_error_is_raised_at_once(
    make_evaluation: Callable[..., Evaluation],
) -> None:
    evaluation = make_evaluation(Unsound, Perplexity)
    with pytest.raises(InputError, match="cannot be summed up"):
        evaluation.summarise(keep_going=False)
    assert not evaluation.results


@torch.no_grad()
def test_results_stay_when_the_reports_are_released(
    make_evaluation: Callable[..., Evaluation],
) -> None:
    evaluation = make_evaluation(Perplexity)
    evaluation.summarise(keep_going=True)
    before = list(evaluation.results)
    evaluation.finish()
    assert evaluation.reports == {}
    assert evaluation.results == before
    assert {(row.metric, row.n) for row in before} == {("nll", 3), ("perplexity", 3)}
