"""Runs whose models are placed otherwise give the same numbers."""

import json
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
from safetensors.torch import load_file

pytestmark = pytest.mark.distributed

Found = tuple[list[dict[str, Any]], dict[str, Any], str]


@pytest.fixture
def measure(
    make_config: Callable[[Path], dict[str, Any]],
    save_config: Callable[..., Path],
    forked: Callable[..., CompletedProcess[str]],
    tmp_path: Path,
) -> Callable[..., Found]:
    """`measure(placement, ranks, *options)`: results, weights and stdout of `fit`."""

    def run(placement: str, ranks: int, *options: str) -> Found:
        folder = tmp_path / f"{placement}_{ranks}"
        folder.mkdir()
        config = make_config(folder)
        config["model"]["placement"] = placement
        config["trainer"] |= {"devices": ranks, "strategy": "ddp" if ranks > 1 else "auto"}
        save_config(folder, config)
        done = forked(folder, "fit", "--config", "config.yaml", *options, ranks=ranks)
        assert done.returncode == 0, done.stderr
        (file,) = folder.rglob("results.jsonl")
        results = [json.loads(line) for line in file.read_text().splitlines()]
        (report,) = folder.rglob("pruning.json")
        weights = {}
        for part in report.parent.glob("model*.safetensors"):
            weights |= load_file(part)
        return results, weights, done.stdout

    return run


@pytest.mark.parametrize(
    ("placement", "ranks", "dtype"),
    [
        ("streamed", 1, "bfloat16"),
        ("sharded", 2, "float32"),
        pytest.param("streamed", 1, "float32", marks=pytest.mark.full),
        pytest.param("sharded", 2, "bfloat16", marks=pytest.mark.full),
        pytest.param("sharded", 3, "float32", marks=pytest.mark.full),
    ],
)
def test_a_run_gives_the_numbers_of_a_resident_one(
    measure: Callable[..., Found], placement: str, ranks: int, dtype: str
) -> None:
    results, weights, _ = measure("resident", 1, "--model.dtype", dtype)
    others, same, said = measure(placement, ranks, "--model.dtype", dtype, "--speed", "true")
    assert [(one["task"], one["metric"], one["model"]) for one in results] == [
        (one["task"], one["metric"], one["model"]) for one in others
    ]
    assert [one["value"] for one in results] == [one["value"] for one in others]
    assert weights.keys() == same.keys()
    assert all(weights[name].equal(same[name]) for name in weights)
    assert "Gains: parameters none." in said


@pytest.mark.parametrize(
    ("placement", "ranks"),
    [("streamed", 1), pytest.param("sharded", 2, marks=pytest.mark.full)],
)
def test_blocks_of_their_own_widths_are_placed(
    measure: Callable[..., Found],
    forked: Callable[..., CompletedProcess[str]],
    tmp_path: Path,
    placement: str,
    ranks: int,
) -> None:
    options = {"parameters": 0.9, "neurons": [0.25, 0.5], "heads": [], "uniform": False}
    method = json.dumps({"class_path": "prunelit.pruners.Budget", "init_args": options})
    results, weights, _ = measure("resident", 1, "--pruning.pruner", method)
    others, same, _ = measure(placement, ranks, "--pruning.pruner", method)
    assert [one["value"] for one in results] == [one["value"] for one in others]
    assert weights.keys() == same.keys()
    assert all(weights[name].equal(same[name]) for name in weights)
    assert len({value.shape for name, value in weights.items() if "down_proj" in name}) > 1
    folder = tmp_path / f"{placement}_{ranks}"
    for file in folder.rglob("results.jsonl"):
        file.unlink()
    arguments = ["--config", "config.yaml", "--pruning.pruner", method]
    done = forked(folder, "validate", *arguments, ranks=ranks)
    assert done.returncode == 0, done.stderr
    (file,) = folder.rglob("results.jsonl")
    read = [json.loads(line)["value"] for line in file.read_text().splitlines()]
    assert read == [one["value"] for one in results]


def test_a_trained_model_is_measured_where_it_is_not_trained(
    make_config: Callable[[Path], dict[str, Any]],
    save_config: Callable[..., Path],
    cli: Callable[..., None],
    tmp_path: Path,
) -> None:
    config = make_config(tmp_path)
    config["data"]["tasks"] = config["data"]["tasks"][1:2]  # perplexity
    text = config["data"]["calibration"]["path"]
    config["data"]["recovery"] = {"path": text, "sequences": 4, "length": 16, "batch_size": 2}
    config["trainer"]["max_epochs"] = 1
    path = str(save_config(tmp_path, config))
    values = []
    for command, *options in (["fit"], ["validate", "--model.placement", "streamed"]):
        cli(command, "--config", path, *options)
        file = tmp_path / "run" / "board" / "only" / "results.jsonl"
        values.append([json.loads(line)["value"] for line in file.read_text().splitlines()])
    assert values[0] == values[1]


@pytest.mark.parametrize(
    ("placement", "options", "sentence"),
    [
        ("streamed", ["--trainer.max_epochs", "1"], "`model.placement` 'streamed'"),
        ("sharded", [], "`model.placement` 'sharded', which keeps a share of the weights on each"),
        # Lightning would want a GPU and a package first.
        (
            "resident",
            ["--trainer.strategy", "fsdp"],
            "FSDPStrategy: set `model.placement: sharded`",
        ),
        (
            "resident",
            ["--trainer.strategy", "FSDPStrategy"],
            "FSDPStrategy: set `model.placement: sharded`",
        ),
        (
            "sharded",
            ["--trainer.strategy", "ModelParallelStrategy", "--trainer.devices", "2"],
            "Expected `data_parallel_size` 2 and `tensor_parallel_size` 1",
        ),
        (
            "resident",
            ["--trainer.strategy", "DeepSpeed"],
            "DeepSpeedStrategy: set `model.placement",
        ),
        (
            "resident",
            [
                "--trainer.strategy",
                '{"class_path": "lightning.pytorch.strategies.DeepSpeedStrategy"}',
            ],
            "DeepSpeedStrategy: set `model.placement",
        ),
    ],
)
def test_what_a_placement_cannot_do_is_refused(
    make_config: Callable[[Path], dict[str, Any]],
    save_config: Callable[..., Path],
    cli: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    placement: str,
    options: list[str],
    sentence: str,
) -> None:
    config = save_config(tmp_path, make_config(tmp_path))
    with pytest.raises(SystemExit):
        cli("fit", "--config", str(config), "--model.placement", placement, *options)
    assert sentence in capsys.readouterr().err
