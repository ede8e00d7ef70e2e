"""Arguments of a session that are refused before any work."""

from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.loggers import CSVLogger

from prunelit import InputError
from prunelit.callbacks import Pruning
from prunelit.callbacks.session_checks import check_session
from prunelit.core.datamodule import PruneData
from prunelit.core.module import PairedLM
from prunelit.pruners import SublayerDrop
from prunelit.tasks import Perplexity
from prunelit.trainer import PruneTrainer


def make_trainer(folder: Path, **options: Any) -> PruneTrainer:
    settings = {"accelerator": "cpu", "logger": False, "max_epochs": 0, "barebones": False}
    return PruneTrainer(default_root_dir=folder, **{**settings, **options})


@pytest.fixture
def module(material: Path) -> PairedLM:
    return PairedLM(str(material / "dense"))


@pytest.fixture
def data(material: Path) -> PruneData:
    return PruneData(None, [Perplexity(str(material / "text.jsonl"), length=20)])


def test_what_fits_is_returned(tmp_path: Path, module: PairedLM, data: PruneData) -> None:
    trainer = make_trainer(tmp_path)
    pruners = {"drop_1.5+x=2": SublayerDrop(1)}
    assert check_session(trainer, module, data, pruners) == (module, data)


@pytest.mark.parametrize("name", ["overview", "figures", "search.json", "report.html", "a/b", ""])
def test_names_that_cannot_name_a_folder(
    tmp_path: Path, module: PairedLM, data: PruneData, name: str
) -> None:
    with pytest.raises(InputError, match=f"each names a folder.*got {name!r}"):
        check_session(make_trainer(tmp_path), module, data, {name: SublayerDrop(1)})


def test_arguments_that_do_not_fit(tmp_path: Path, module: PairedLM, data: PruneData) -> None:
    pruners: dict[str, Any] = {"drop": SublayerDrop(1)}
    trainer = make_trainer(tmp_path)
    cases: list[tuple[tuple[Any, ...], str]] = [
        ((trainer, module, None, pruners), "Expected a `PairedLM` and a `PruneData`"),
        ((trainer, module, data, {}), "at least one pruner in `variants`"),
        ((trainer, module, data, {"drop": 1}), "'drop' to be a Pruner but got int"),
        ((trainer, module, PruneData(), pruners), "at least one task in `data.tasks`"),
        ((make_trainer(tmp_path, max_epochs=1), module, data, pruners), "`trainer.max_epochs` 0"),
        (
            (make_trainer(tmp_path, logger=CSVLogger(tmp_path)), module, data, pruners),
            r"one TensorBoardLogger or false but got \['CSVLogger'\]",
        ),
        (
            (make_trainer(tmp_path, callbacks=[Pruning(SublayerDrop(1))]), module, data, pruners),
            "no `Pruning` callback in a sweep",
        ),
    ]
    for arguments, sentence in cases:
        with pytest.raises(InputError, match=sentence):
            check_session(*arguments)


def test_a_file_in_the_place_of_a_folder(tmp_path: Path, module: PairedLM, data: PruneData) -> None:
    (tmp_path / "drop").write_text("a note")
    with pytest.raises(InputError, match="Expected a folder for the results"):
        check_session(make_trainer(tmp_path), module, data, {"drop": SublayerDrop(1)})
