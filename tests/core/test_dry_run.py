"""A dry run says what a run takes, and does nothing."""

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from prunelit import prune, save_pretrained
from prunelit.core import dry_run
from prunelit.core.calibration_text import CalibrationText
from prunelit.core.datamodule import PruneData
from prunelit.core.dry_run import Pace, Work
from prunelit.core.placement import measure_part, measure_sizes
from prunelit.files import readable
from prunelit.models.streaming import FileStore
from prunelit.pruners import Budget, DepthByLoss
from prunelit.trainer import PruneTrainer

METHODS: dict[str, dict[str, Any]] = {
    "Wanda": {},
    "SublayerDrop": {"class_path": "prunelit.pruners.SublayerDrop", "init_args": {"count": 1}},
    "Budget": {"class_path": "prunelit.pruners.Budget", "init_args": {"parameters": 0.9}},
}
OTHERS = {
    "Heads": {"class_path": "prunelit.pruners.Heads", "init_args": {"ratio": 0.5}},
    "Hidden": {"class_path": "prunelit.pruners.Hidden", "init_args": {"ratio": 0.25}},
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
        if own := (METHODS | OTHERS)[method]:
            config["pruning"]["init_args"]["pruner"] = own
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
    part, whole = measure_part(model.config, torch.float32, 2), measure_sizes(model)
    assert f"weights {readable(2 * part.model)}," in found["memory"]
    assert f"weights {readable(2 * whole.model - whole.skeleton)}," in found["resident"]
    assert 2 * part.model > whole.model  # norms stay whole
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
    with pytest.raises(SystemExit):
        told("Budget", "--pruning.pruner.held_out", "0.99")
    assert "`held_out: 0.99` takes of " in capsys.readouterr().err


def test_the_pace_of_a_block_is_known_for_every_family(
    family: str, make_model: Callable[..., PreTrainedModel]
) -> None:
    config = make_model(family).config
    pace = dry_run._measure_block(config, torch.float32, torch.device("cpu"))
    assert pace.a_pass > 0
    assert pace.seconds(Work(2, 0), 3) == pytest.approx(6 * pace.a_pass)


def test_time_is_that_of_passes_and_tokens() -> None:
    assert Pace(0.5, 0.25).seconds(Work(passes=2, tokens=4), blocks=10) == 20


def test_embeddings_count_once_where_a_method_leaves_them_as_they_are(
    told: Callable[..., dict[str, str]], model: PreTrainedModel
) -> None:
    sizes = measure_sizes(model)
    both = 2 * sizes.model
    heads = told("Heads")["memory"]
    assert f"weights {readable(both - sizes.skeleton)}," in heads
    assert "statistics" in heads  # of the inputs of the output maps
    assert f"weights {readable(both)}," in told("Hidden")["memory"]


def test_a_sequence_at_a_time_makes_more_passes() -> None:
    data = PruneData(CalibrationText("text.jsonl", sequences=10, length=16, batch_size=4))
    trainer = PruneTrainer(accelerator="cpu", devices=1, logger=False)
    assert dry_run._calibration(data, trainer, 2) == Work(6, 320)
    assert dry_run._calibration(data, trainer, 2, alone=True) == Work(20, 320)


def test_a_model_whose_blocks_differ(
    told: Callable[..., dict[str, str]],
    model: PreTrainedModel,
    tokenizer: Any,
    input_ids: torch.Tensor,
    tmp_path: Path,
) -> None:
    """Blocks of its folder are named, and only the first one is built to measure time."""
    methods = (
        DepthByLoss(1, target="attention"),
        Budget(0.85, heads=[], neurons=[0.25, 0.5], blocks=0, uniform=False),
    )
    for method in methods:
        small = copy.deepcopy(model)
        folder = tmp_path / type(method).__name__
        save_pretrained(small, tokenizer, folder, prune(small, method, input_ids))
        assert "parameters" in told("Wanda", "--model.source", str(folder))["model"]
