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


def test_each_batch_is_shown_under_the_name_of_its_task(
    material: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tasks = [
        MultipleChoice(str(material / "questions.jsonl"), batch_size=3, name="facts"),
        Perplexity(str(material / "text.jsonl"), length=20, limit=4, batch_size=2, name="text"),
    ]
    bar = Watched()
    trainer = PruneTrainer(
        accelerator="cpu",
        callbacks=[bar],
        default_root_dir=tmp_path,
        enable_checkpointing=False,
        logger=False,
        max_epochs=0,
    )
    trainer.validate(PairedLM(str(material / "dense")), datamodule=PruneData(None, tasks))
    names = [next(n for n in ("facts", "text") if n in said) for said in bar.said]
    assert names == ["facts"] * 3 + ["text"] * 2
    assert "text" in capsys.readouterr().out
