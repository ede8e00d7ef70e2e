"""The progress bar names the task that is being measured."""

from pathlib import Path
from typing import Any

import pytest

from prunelit.callbacks import TaskProgressBar
from prunelit.core.datamodule import PruneData
from prunelit.core.module import PairedLM
from prunelit.tasks import MultipleChoice, Perplexity
from prunelit.trainer import PruneTrainer


class Watched(TaskProgressBar):
    """Record the text of the bar after each batch."""

    def __init__(self) -> None:
        super().__init__()
        self.said: list[str] = []

    def on_validation_batch_end(self, *arguments: Any, **named: Any) -> None:
        super().on_validation_batch_end(*arguments, **named)
        assert self.progress is not None
        self.said += [task.description for task in self.progress.tasks if task.visible]


def make_trainer(bar: Watched, folder: Path) -> PruneTrainer:
    return PruneTrainer(
        accelerator="cpu",
        callbacks=[bar],
        default_root_dir=folder,
        enable_checkpointing=False,
        logger=False,
        max_epochs=0,
    )


def test_each_batch_is_shown_under_the_name_of_its_task(
    material: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tasks = [
        MultipleChoice(str(material / "questions.jsonl"), batch_size=3, name="facts"),
        Perplexity(str(material / "text.jsonl"), length=20, limit=4, batch_size=2, name="text"),
    ]
    bar = Watched()
    trainer = make_trainer(bar, tmp_path)
    trainer.validate(PairedLM(str(material / "dense")), datamodule=PruneData(None, tasks))
    names = [next(n for n in ("facts", "text") if n in said) for said in bar.said]
    assert names == ["facts"] * 3 + ["text"] * 2
    assert "text" in capsys.readouterr().out


class Blocks(Watched):
    """Record the bar of blocks after each flight."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: list[tuple[str, float]] = []

    def on_validation_batch_end(self, *arguments: Any, **named: Any) -> None:
        super().on_validation_batch_end(*arguments, **named)
        self.counts += [(bar.description, bar.completed) for bar in self.blocks()]

    def blocks(self) -> list[Any]:
        assert self.progress is not None
        return [bar for bar in self.progress.tasks if bar.visible and "blocks" in bar.description]


def test_the_blocks_of_a_flight_are_counted(material: Path, tmp_path: Path) -> None:
    tasks = [
        Perplexity(str(material / "text.jsonl"), length=20, limit=5, batch_size=1, name="text"),
        MultipleChoice(str(material / "questions.jsonl"), name="facts"),
    ]
    bar = Blocks()
    trainer = make_trainer(bar, tmp_path)
    dense = str(material / "dense")
    module = PairedLM(dense, placement="streamed", flight=3, dense_cache=False)
    trainer.validate(module, datamodule=PruneData(None, tasks))
    first, second, third = bar.counts
    assert "text blocks" in first[0]
    assert "facts blocks" in third[0]
    assert (first[1], second[1]) == (6, 12)  # three blocks of two models a flight
    assert third[1] > 0
    assert not bar.blocks()
