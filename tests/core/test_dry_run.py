"""A dry run says what a run takes, and does nothing."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from prunelit.core import dry_run
from prunelit.core.dry_run import Pace, Work
from prunelit.core.placement import measure_part, measure_sizes
from prunelit.files import readable
from prunelit.models.streaming import FileStore

METHODS: dict[str, dict[str, Any]] = {
    "Wanda": {},
    "SublayerDrop": {"class_path": "prunelit.pruners.SublayerDrop", "init_args": {"count": 1}},
}


@pytest.fixture
def told(
    make_config: Callable[[Path], dict[str, Any]],
    save_config: Callable[..., Path],
    cli: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> Callable[..., dict[str, str]]:
    """`told(method, *options)`: what is said of each topic; `fit` has the same settings."""
    monkeypatch.setattr(dry_run, "_PROBE", 0.01)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)

    def run(method: str, *options: str, command: str = "fit") -> dict[str, str]:
        config = make_config(tmp_path)
        if METHODS[method]:
            config["pruning"]["init_args"]["pruner"] = METHODS[method]
        path = str(save_config(tmp_path, config))
        cli(command, "--config", path, "--dry_run", *options)
        lines = capsys.readouterr().out.splitlines()
        return dict(re.split(r"  +", line.strip(), maxsplit=1) for line in lines)  # type: ignore[misc]

    return run


def test_nothing_is_written_and_no_weight_is_read(
    told: Callable[..., dict[str, str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("prunelit.core.weights.load_placed", None)
    found = told("Wanda")
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]
    assert found["placement"] == "resident"
    assert found["sweeps"] == "none: the blocks stay on the device"
    assert "for " + str(tmp_path / "run" / "pruned") in found["disk"]
    assert {"model", "memory", "streamed", "time"} <= found.keys()
    assert "reading" not in found


def test_a_rank_that_computes_with_others_has_its_part(
    told: Callable[..., dict[str, str]], model: PreTrainedModel, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--model.placement", "parallel", "--trainer.devices", "2"]
    with pytest.raises(SystemExit):  # as `fit` is
        told("Wanda", *options)
    assert "'sharded' or 'resident' to prune or to train" in capsys.readouterr().err
    found = told("Wanda", *options, command="validate")
    part = measure_part(model.config, torch.float32, 2)
    for placement, sizes in (("memory", part), ("resident", measure_sizes(model))):
        assert f"weights {readable(2 * sizes.model)}," in found[placement], placement
    assert 2 * part.model > measure_sizes(model).model  # norms stay whole
    assert found["placement"] == "parallel"


@pytest.mark.parametrize("method", METHODS)
def test_a_run_brings_its_blocks_no_more_often_than_told(
    told: Callable[..., dict[str, str]],
    cli: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    method: str,
) -> None:
    found = told(method, "--model.placement", "streamed")
    sweeps = found["sweeps"]
    assert found["placement"] == "streamed; 8 batches share a block"
    assert found["disk"].count("at most") == 2
    assert found["disk"].endswith("kB if pruning only removes weights in their stored dtype")
    assert "GB/s from this disk" in found["reading"]
    fetched: list[FileStore] = []
    fetch = FileStore.fetch

    def count(self: FileStore) -> None:
        fetched.append(self)
        fetch(self)

    monkeypatch.setattr(FileStore, "fetch", count)
    cli("fit", "--config", str(tmp_path / "config.yaml"), "--model.placement", "streamed")
    most = int(sweeps.split()[2])
    blocks = 3
    assert 0.8 * most <= len(fetched) / blocks <= most


def test_what_a_run_refuses_is_refused(
    told: Callable[..., dict[str, str]], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        told("Wanda", "--data.calibration.length", "100000")
    assert "but the 12 documents hold only" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        told("Wanda", "--pruning.pruner.include", "nothing.*")
    assert "nothing.*" in capsys.readouterr().err


def test_the_pace_of_a_block_is_known_for_every_family(
    family: str, make_model: Callable[..., PreTrainedModel]
) -> None:
    config = make_model(family).config
    pace = dry_run._measure_block(config, torch.float32, torch.device("cpu"))
    assert pace.a_pass > 0
    assert pace.seconds(Work(2, 0), 3) == pytest.approx(6 * pace.a_pass)


def test_time_is_that_of_passes_and_tokens() -> None:
    assert Pace(0.5, 0.25).seconds(Work(passes=2, tokens=4), blocks=10) == 20
