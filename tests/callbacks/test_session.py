"""A session: what it prints, and what it gives back."""

import logging
from pathlib import Path

import pytest
from lightning.pytorch.utilities import rank_zero_info

from prunelit.callbacks import Results, TaskProgressBar
from prunelit.callbacks.session import open_session
from prunelit.core.datamodule import PruneData
from prunelit.core.module import PairedLM
from prunelit.errors import InputError
from prunelit.pruners import Magnitude
from prunelit.sparsity import Unstructured
from prunelit.tasks import Perplexity
from prunelit.trainer import PruneTrainer

PRUNERS = {"magnitude": Magnitude(Unstructured(0.5))}


@pytest.fixture
def parts(material: Path) -> tuple[PairedLM, PruneData]:
    task = Perplexity(str(material / "text.jsonl"), length=20)
    return PairedLM(str(material / "dense")), PruneData(None, [task])


def make_trainer(folder: Path, results: Results, *others: TaskProgressBar) -> PruneTrainer:
    return PruneTrainer(
        accelerator="cpu",
        callbacks=[results, *others],
        default_root_dir=folder,
        enable_progress_bar=bool(others),
        logger=False,
        max_epochs=0,
    )


@pytest.mark.parametrize("verbose", [False, True])
def test_lines_are_counted_unless_it_is_verbose(
    tmp_path: Path,
    parts: tuple[PairedLM, PruneData],
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    verbose: bool,
) -> None:
    filters = list(logging.getLogger("lightning.pytorch.utilities.rank_zero").filters)
    results = Results(verbose=verbose)
    trainer = make_trainer(tmp_path, results)
    with open_session(trainer, *parts, PRUNERS) as session:
        assert results.brief
        assert results.silent is not verbose
        capsys.readouterr()
        for number in range(30):
            session.tell(f"wanda_{number} ({number + 1} of 30): keeps " + "retrieval, " * 6)
            rank_zero_info("Dense answers were read.")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == (60 if verbose else 15)
    assert max(map(len, lines)) <= 80
    assert ("The progress bar shows the next ones" in lines[-1]) is not verbose
    assert caplog.text.count("Dense answers were read.") == (30 if verbose else 1)
    # Later runs of the process say everything again.
    rank_zero_info("Dense answers were read.")
    assert caplog.text.count("Dense answers were read.") == (31 if verbose else 2)
    assert not results.brief
    assert not results.silent
    assert logging.getLogger("lightning.pytorch.utilities.rank_zero").filters == filters


def test_a_margin_that_no_task_has_is_refused_first(
    tmp_path: Path, parts: tuple[PairedLM, PruneData]
) -> None:
    trainer = make_trainer(tmp_path, Results(keep={"retrieval": 0.9}))
    with (
        pytest.raises(InputError, match="`keep` names 'retrieval', which is no task of this run"),
        open_session(trainer, *parts, PRUNERS),
    ):
        pass


def test_the_bar_names_the_variant(tmp_path: Path, parts: tuple[PairedLM, PruneData]) -> None:
    bar = TaskProgressBar()
    trainer = make_trainer(tmp_path, Results(), bar)
    with open_session(trainer, *parts, PRUNERS) as session:
        session.plan(PRUNERS, {})
        session.measure("magnitude")
        assert bar.validation_description == "magnitude perplexity"
    assert bar.validation_description == "perplexity"
    assert trainer.callbacks.count(bar) == 1  # type: ignore[attr-defined]
    assert (tmp_path / "figures" / "variants.json").is_file()
