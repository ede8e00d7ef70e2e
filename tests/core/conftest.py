"""A Trainer, a module and data of a quick validation."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prunelit.core.datamodule import PruneData
from prunelit.core.module import PairedLM
from prunelit.tasks import MultipleChoice, Perplexity
from prunelit.trainer import PruneTrainer


@pytest.fixture
def make_trainer(tmp_path: Path) -> Callable[..., PruneTrainer]:
    def make(**arguments: Any) -> PruneTrainer:
        defaults = {
            "accelerator": "cpu",
            "default_root_dir": tmp_path / "run",
            "enable_model_summary": False,
            "enable_progress_bar": False,
            "logger": False,
            "max_epochs": 0,
        }
        return PruneTrainer(**{**defaults, **arguments})

    return make


@pytest.fixture
def module(material: Path) -> PairedLM:
    return PairedLM(str(material / "dense"))


@pytest.fixture
def data(material: Path) -> PruneData:
    tasks = [
        Perplexity(str(material / "text.jsonl"), length=20, limit=3),
        MultipleChoice(str(material / "questions.jsonl"), batch_size=3),
    ]
    return PruneData(None, tasks)
