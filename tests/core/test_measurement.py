"""The key of a measurement: what changes it, and what does not."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Trainer

from prunelit import PairedLM, PruneData
from prunelit.core.measurement import measurement_key, measurement_settings
from prunelit.tasks import MultipleChoice, Perplexity


@pytest.fixture
def settings(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    def build(precision: Any = "32-true", **options: Any) -> dict[str, Any]:
        text = tmp_path / "text.jsonl"
        if not text.exists():
            text.write_text('{"text": "one"}\n')
        tasks = [Perplexity(str(text), **options), MultipleChoice("prunelit:facts.jsonl")]
        trainer = Trainer(accelerator="cpu", precision=precision, logger=False)
        return measurement_settings(trainer, PairedLM("dense"), PruneData(tasks=tasks))

    return build


def test_the_same_run_has_the_same_key(settings: Callable[..., dict[str, Any]]) -> None:
    recipe = {"model": {"source": "here"}, "pruner": {"ratio": 0.5}}
    keys = {measurement_key(recipe, settings()) for _ in range(2)}
    assert len(keys) == 1
    moved = recipe | {"model": {"source": "there"}}
    assert measurement_key(moved, settings()) in keys
    assert measurement_key(recipe | {"pruner": {"ratio": 0.4}}, settings()) not in keys


def test_options_content_and_precision_change_it(
    settings: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    first = settings()
    assert settings(limit=3) != first
    assert settings("bf16-true") != first
    (tmp_path / "text.jsonl").write_text('{"text": "two"}\n')
    changed = settings()
    assert changed["tasks"] == first["tasks"]
    assert changed["content"] != first["content"]
    assert set(changed["content"]) == {str(tmp_path / "text.jsonl"), "prunelit:facts.jsonl"}
