"""Sweeps that must end with one sentence, nothing pruned and nothing written."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prunelit.trainer import PruneTrainer

Config = dict[str, Any]

DROP = {"class_path": "prunelit.pruners.SublayerDrop"}


@pytest.fixture
def refused(
    run: Callable[..., None], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """`refused(*options)` returns the error, and checks that nothing was pruned or written."""

    def start(*options: str) -> str:
        with pytest.raises(SystemExit) as left:
            run(*options)
        assert left.value.code == 2
        out, err = capfd.readouterr()
        assert "Achieved sparsity" not in out
        assert "Traceback" not in err
        assert not list(tmp_path.rglob("pruning.json"))
        assert not list(tmp_path.rglob("results.jsonl"))
        (line,) = [line for line in err.splitlines() if line.startswith("prunelit: error: ")]
        assert len(line) < 400
        return line

    return start


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (lambda c: c.update(variants={}), ["at least one pruner in `variants`"]),
        (lambda c: c.pop("variants"), ["Expected a value for `variants`: give it"]),
        (lambda c: c["variants"].update({"a/b": DROP}), ["each names a folder", "'a/b'"]),
        (lambda c: c["variants"].update({"..": DROP}), ["each names a folder", "'..'"]),
        (lambda c: c["variants"].update({"": DROP}), ["each names a folder", "''"]),
        (lambda c: c["variants"].update({"overview": DROP}), ["got 'overview'"]),
        (lambda c: c["variants"].update({"figures": DROP}), ["got 'figures'"]),
        (lambda c: c["trainer"].update(max_epochs=1), ["`trainer.max_epochs` 0 but got 1"]),
        (lambda c: c["data"].update(tasks=[]), ["at least one task in `data.tasks`"]),
        (lambda c: c.update(pruning=None), ["not accept `pruning`"]),
        (
            lambda c: c["variants"]["attention_1"].update(class_path="prunelit.sparsity.Cubic"),
            ["variants", "prunelit.sparsity.Cubic", "has no 'Cubic'"],
        ),
        (
            lambda c: c["variants"].update(
                attention_1={
                    "class_path": "prunelit.sparsity.Unstructured",
                    "init_args": {"ratio": 0.5},
                }
            ),
            ["variants", "prunelit.sparsity.Unstructured", "subclass of Pruner"],
        ),
        (
            lambda c: c["variants"]["attention_1"]["init_args"].update(cuont=2),
            ["cuont", "not accept"],
        ),
        (
            lambda c: c["variants"]["attention_1"]["init_args"].update(count=0),
            ["Expected `count` of prunelit.pruners.SublayerDrop (line", "of at least 1"],
        ),
        (
            lambda c: c["variants"]["attention_1"]["init_args"].update(count=3),
            ["Variant 'attention_1' cannot be pruned", "below the 3 sublayers"],
        ),
        (
            lambda c: c["trainer"].update(
                logger={
                    "class_path": "lightning.pytorch.loggers.CSVLogger",
                    "init_args": {"save_dir": "run"},
                }
            ),
            ["one TensorBoardLogger or false but got ['CSVLogger']"],
        ),
        (
            lambda c: c["trainer"].update(
                callbacks=[
                    {
                        "class_path": "prunelit.callbacks.Pruning",
                        "init_args": {"pruner": DROP},
                    }
                ]
            ),
            ["no `Pruning` callback in a sweep"],
        ),
        (
            lambda c: c["data"].update(calibration=None),
            ["cannot be pruned", "Expected calibration text, `data.calibration`"],
        ),
    ],
    ids=[
        *("no variants", "no key", "slash", "parent", "empty", "overview", "figures"),
        *("training", "no tasks", "pruning group", "absent class", "wrong class", "wrong key"),
        *("wrong value", "does not fit the model", "logger", "pruning callback"),
        "no text",
    ],
)
def test_what_cannot_be_swept_is_refused(
    refused: Callable[..., str],
    config: Config,
    change: Callable[[Config], object],
    parts: list[str],
) -> None:
    change(config)
    sentence = refused()
    for part in parts:
        assert part in sentence, sentence


def test_a_file_where_results_would_lie_is_refused(
    refused: Callable[..., str], tmp_path: Path
) -> None:
    (tmp_path / "run" / "board").mkdir(parents=True)
    (tmp_path / "run" / "board" / "attention_1").write_text("a note")
    assert "Expected a folder for the results" in refused()


def test_a_foreign_folder_of_the_last_variant_is_refused_before_the_first(
    refused: Callable[..., str], tmp_path: Path
) -> None:
    folder = tmp_path / "run" / "attention_1" / "pruned"
    folder.mkdir(parents=True)
    (folder / "thesis.txt").write_text("years of work")
    assert "holds no pruning.json" in refused()
    assert [path.name for path in folder.iterdir()] == ["thesis.txt"]


def test_a_disk_without_room_for_the_weights_ends_it_before_pruning(
    refused: Callable[..., str], config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A method that removes no part writes as many bytes as the dense model has."""
    config["variants"] = {"wanda": config["variants"]["wanda"]}
    usage = shutil.disk_usage("/")._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    assert "There is no room for" in refused()


def test_the_help_names_the_variants_and_no_pruning_group(
    cli: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        cli("sweep", "--help")
    assert left.value.code == 0
    text = capsys.readouterr().out
    assert "--variants" in text
    assert "--data.tasks" in text
    for absent in ("--pruning", "--ckpt_path", "--dataloaders"):
        assert absent not in text
    assert PruneTrainer.sweep.__doc__ is not None
    assert PruneTrainer.sweep.__doc__.splitlines()[0] in text.replace("\n", " ")
