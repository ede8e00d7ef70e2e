"""A killed evaluation continues from its last batch, and its results have the same bits."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prunelit.report.items import read_items

# Killed before its third batch of four, where it is told so.
DYING = """
import os, signal
from prunelit.tasks import Generation

class Dying(Generation):
    measured = 0

    def step(self, pair, batch):
        if "DIE" in os.environ and self.measured == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        self.measured += 1
        values = super().step(pair, batch)
        with open("measured.txt", "a") as file:
            file.write(f"{batch['indices'].tolist()}\\n")
        return values
"""
DDP = (
    *("--trainer.accelerator", "cpu"),
    *("--trainer.devices", "2"),
    *("--trainer.strategy", "ddp"),
)

Prepare = Callable[[str], Path]


@pytest.fixture
def prepare(
    tmp_path: Path,
    material: Path,
    make_config: Callable[[Path], dict[str, Any]],
    save_config: Callable[..., Path],
) -> Prepare:
    """`prepare(name)`: a folder with the configuration of the same run."""

    def make(name: str) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        config = make_config(folder)
        options = {
            "path": str(material / "questions.jsonl"),
            "batch_size": 2,
            "max_new_tokens": 5,
            "samples": 2,
            "temperature": 1.0,
        }
        config["data"]["tasks"] = [{"class_path": "dying.Dying", "init_args": options}]
        save_config(folder, config)
        (folder / "dying.py").write_text(DYING)
        return folder

    return make


def batches(folder: Path) -> list[list[int]]:
    lines = (folder / "measured.txt").read_text().splitlines()
    return [json.loads(line) for line in lines]


def outcome(folder: Path) -> tuple[Any, Any]:
    board = folder / "run" / "board" / "only"
    # As text, since NaN is not equal to itself.
    rows = (board / "results.jsonl").read_text()
    return rows, read_items(board / "items" / "generation.parquet")


def killed(
    folder: Path, forked: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> list[list[int]]:
    with monkeypatch.context() as patch:
        patch.setenv("DIE", "1")
        done = forked(folder, "validate", "--config", "config.yaml")
    assert done.returncode == -9, done.stderr
    assert not (folder / "run" / "board" / "only" / "results.jsonl").exists()
    assert len(list((folder / "run" / "unfinished").iterdir())) == 1
    return batches(folder)


def test_it_goes_on_and_ends_with_the_same_bits(
    prepare: Prepare, forked: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = prepare("whole")
    done = forked(whole, "validate", "--config", "config.yaml")
    assert done.returncode == 0, done.stderr
    assert len(batches(whole)) == 4
    assert not (whole / "run" / "unfinished").exists()

    folder = prepare("killed")
    before = killed(folder, forked, monkeypatch)
    assert len(before) == 2
    done = forked(folder, "validate", "--config", "config.yaml")
    assert done.returncode == 0, done.stderr
    assert "The task 'generation' continues: 2 batches are measured already." in done.stderr
    # Each batch was measured once.
    assert batches(folder) == batches(whole)
    assert outcome(folder) == outcome(whole)
    assert not (folder / "run" / "unfinished").exists()


def test_another_model_begins_anew(
    prepare: Prepare, forked: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = prepare("killed")
    killed(folder, forked, monkeypatch)
    ratio = ("--pruning.pruner.sparsity.ratio", "0.4")
    done = forked(folder, "validate", "--config", "config.yaml", *ratio)
    assert done.returncode == 0, done.stderr
    assert "continues: " not in done.stderr
    (journal,) = (folder / "run" / "unfinished").iterdir()
    assert f"{journal} holds batches that were measured with other settings (models.pruned: " in (
        done.stderr
    )
    assert len(batches(folder)) == 2 + 4


@pytest.mark.distributed
@pytest.mark.full
def test_two_ranks_go_on_where_one_stopped(
    prepare: Prepare,
    console: Callable[..., Any],
    forked: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = prepare("whole")
    done = console(whole, "validate", "--config", "config.yaml")
    assert done.returncode == 0, done.stderr
    folder = prepare("killed")
    killed(folder, forked, monkeypatch)
    done = console(folder, "validate", "--config", "config.yaml", *DDP)
    assert done.returncode == 0, done.stderr
    assert sorted(batches(folder)) == sorted(batches(whole))
    one, two = outcome(whole), outcome(folder)
    assert two[1] == one[1]
    assert two[0] == one[0]
    assert not (folder / "run" / "unfinished").exists()
