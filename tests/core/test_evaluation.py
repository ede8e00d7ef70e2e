"""One validation: its results, and a task that cannot compute its own."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from prunelit.core.datamodule import PruneData
from prunelit.core.evaluation import Evaluation
from prunelit.core.module import PairedLM
from prunelit.errors import InputError
from prunelit.models.architecture import decoder_blocks
from prunelit.models.stores import whole
from prunelit.report.results import scalar_name
from prunelit.tasks import (
    Deviation,
    Generation,
    ItemTable,
    ModelPair,
    MultipleChoice,
    Perplexity,
    Task,
    TaskReport,
)
from prunelit.trainer import PruneTrainer


def test_results_start_afresh_with_every_validation(
    module: PairedLM, data: PruneData, make_trainer: Callable[..., PruneTrainer]
) -> None:
    trainer = make_trainer()
    trainer.validate(module, datamodule=data)
    before = list(module.results)
    head = module.pair.pruned.get_output_embeddings()
    assert head is not None
    weight = head.get_parameter("weight")
    weight.data = torch.zeros_like(weight)
    trainer.validate(module, datamodule=data)
    assert len(module.results) == len(before)
    after = {scalar_name(row): row for row in module.results}
    assert after["val/perplexity/perplexity"].value == pytest.approx(300)
    assert after["val/perplexity/perplexity_dense"].value == pytest.approx(
        next(r.value for r in before if (r.metric, r.model) == ("perplexity", "dense"))
    )


def test_an_edit_in_place_of_what_both_models_have_is_refused(
    module: PairedLM, data: PruneData, make_trainer: Callable[..., PruneTrainer]
) -> None:
    trainer = make_trainer()
    trainer.validate(module, datamodule=data)
    head = module.pair.pruned.get_output_embeddings()
    assert head is not None
    head.get_parameter("weight").data[:] = 0
    with pytest.raises(InputError, match="both models have them in one memory"):
        trainer.validate(module, datamodule=data)


class Unsound(Perplexity):
    """A task that cannot compute its results."""

    def report(self, table: ItemTable) -> TaskReport:
        raise InputError("These items cannot be summed up.")


@pytest.fixture
def make_evaluation(
    material: Path, module: PairedLM, make_trainer: Callable[..., PruneTrainer]
) -> Callable[..., Evaluation]:
    """`make_evaluation(*tasks)` returns an evaluation that has measured every item."""

    def make(*classes: type[Perplexity], **options: Any) -> Evaluation:
        path = str(material / "text.jsonl")
        tasks = [task(path, name=task.__name__.lower(), length=20, limit=3) for task in classes]
        data = PruneData(None, list(tasks))
        data.prepare(module.tokenizer)
        module.load()
        evaluation = Evaluation(make_trainer(), module.pair, data, **options)
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


def validated(
    module: PairedLM, tasks: list[Task], trainer: PruneTrainer
) -> tuple[list[str], PairedLM]:
    trainer.validate(module, datamodule=PruneData(None, tasks))
    return [repr(row) for row in module.results], module


def several(material: Path) -> list[Task]:
    """Two tasks that share a pass, one of trees and one of texts."""
    text, questions = str(material / "text.jsonl"), str(material / "questions.jsonl")
    return [
        Deviation(text, length=20, limit=5, batch_size=2),
        Perplexity(text, length=20, limit=5, batch_size=2),
        MultipleChoice(questions, batch_size=2),
        Generation(questions, batch_size=2, max_new_tokens=5, samples=2, temperature=1.0),
    ]


def waiting(module: PairedLM) -> PairedLM:
    """Read the models of a module; their blocks wait in files if it has a flight."""
    if module.flight is not None:
        module.placement = module.weights.placement = "streamed"
    module.load()
    block = decoder_blocks(module.pair.pruned)[1][1]
    with torch.no_grad(), whole(block, edited=True):
        block.get_parameter("mlp.up_proj.weight")[::2] = 0
    return module


@pytest.mark.parametrize("flight", [1, 3])
def test_flights_give_the_same_results_and_the_same_answers_of_the_dense_model(
    flight: int,
    material: Path,
    make_trainer: Callable[..., PruneTrainer],
    caplog: pytest.LogCaptureFixture,
) -> None:
    folder = str(material / "dense")
    expected, _ = validated(
        waiting(PairedLM(folder, dense_cache=False)), several(material), make_trainer()
    )
    found, module = validated(
        waiting(PairedLM(folder, flight=flight)), several(material), make_trainer()
    )
    assert found == expected
    evaluation = module.evaluation
    assert evaluation is not None
    answers = evaluation._answers
    assert answers is not None
    names = ["deviation", "perplexity", "multiple_choice", "generation"]
    assert list(answers.counts) == names
    assert all(measured and not read for read, measured in answers.counts.values())
    with caplog.at_level("INFO"):
        again, module = validated(
            waiting(PairedLM(folder, flight=flight)), several(material), make_trainer()
        )
    assert again == expected
    assert "Dense answers of 4 of 4 tasks were read" in caplog.text
    assert module.evaluation is not None
    assert 0 < module.evaluation.brought < evaluation.brought


class Dying(Generation):
    """Fails at its third batch, but not the next time."""

    measured = 0
    fails = True

    def step(self, pair: ModelPair, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
        values = super().step(pair, batch)
        Dying.measured += 1
        if Dying.measured == 3 and Dying.fails:
            raise InputError("It has had enough.")
        return values


def test_a_flight_that_failed_goes_on_with_what_it_measured(
    material: Path, make_trainer: Callable[..., PruneTrainer], tmp_path: Path
) -> None:
    folder, questions = str(material / "dense"), str(material / "questions.jsonl")

    def tasks() -> list[Task]:
        return [Dying(questions, batch_size=1, max_new_tokens=9)]

    Dying.fails, Dying.measured = False, 0
    trainer = make_trainer(default_root_dir=tmp_path / "whole")
    expected, _ = validated(waiting(PairedLM(folder)), tasks(), trainer)
    Dying.fails, Dying.measured = True, 0
    with pytest.raises(InputError, match="had enough"):
        validated(waiting(PairedLM(folder, flight=7)), tasks(), make_trainer())
    assert list((tmp_path / "run" / "unfinished").iterdir())
    Dying.fails, Dying.measured = False, 0
    found, _ = validated(waiting(PairedLM(folder, flight=7)), tasks(), make_trainer())
    assert Dying.measured == 5
    assert found == expected


def test_a_flight_of_no_batch_is_refused(material: Path) -> None:
    with pytest.raises(InputError, match="`flight`"):
        PairedLM(str(material / "dense"), flight=0)


@torch.no_grad()
def test_one_of_the_ranks_that_compute_a_model_together_gives_the_values(
    make_evaluation: Callable[..., Evaluation], monkeypatch: pytest.MonkeyPatch
) -> None:
    make_evaluation(Perplexity, together=2).summarise(keep_going=False)
    monkeypatch.setattr(PruneTrainer, "global_rank", 1)
    with pytest.raises(RuntimeError, match="measured exactly once"):  # by the other rank
        make_evaluation(Perplexity, together=2).summarise(keep_going=False)
    make_evaluation(Perplexity).summarise(keep_going=False)
