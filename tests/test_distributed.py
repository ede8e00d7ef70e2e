"""Two processes against one: the same masks, the same results."""

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from prunelit.report.results import Result, read_results

pytestmark = pytest.mark.distributed

DDP = (
    *("--trainer.accelerator", "cpu"),
    *("--trainer.devices", "2"),
    *("--trainer.strategy", "ddp"),
)


@pytest.fixture(scope="module")
def two_ranks(
    tmp_path_factory: pytest.TempPathFactory,
    make_config: Callable[[Path], dict[str, Any]],
    save_config: Callable[..., Path],
    forked: Callable[..., Any],
) -> Path:
    """The folder of the run of `fitted`, on two ranks."""
    folder = tmp_path_factory.mktemp("two_ranks")
    save_config(folder, make_config(folder))
    done = forked(folder, "fit", "--config", "config.yaml", *DDP)
    assert done.returncode == 0, done.stderr
    (folder / "stdout").write_text(done.stdout)
    (folder / "stderr").write_text(done.stderr)
    return folder


def results(folder: Path) -> list[Result]:
    return read_results(folder / "run" / "board" / "only" / "results.jsonl")


def test_two_processes_took_part(two_ranks: Path) -> None:
    assert "Starting with 2 processes" in (two_ranks / "stderr").read_text()


def test_weights_are_identical(two_ranks: Path, fitted: Path) -> None:
    one, two = (
        load_file(folder / "run" / "pruned" / "model.safetensors") for folder in (fitted, two_ranks)
    )
    assert one.keys() == two.keys()
    for name, weight in one.items():
        assert weight.equal(two[name]), name


def test_recipes_are_identical(two_ranks: Path, fitted: Path) -> None:
    one, two = (
        json.loads((folder / "run" / "pruned" / "pruning.json").read_text())
        for folder in (fitted, two_ranks)
    )
    assert one["recipe"] == two["recipe"]
    assert one["tensors"] == two["tensors"]


def test_every_result_is_equal(two_ranks: Path, fitted: Path) -> None:
    one, two = results(fitted), results(two_ranks)
    # The premise: a task with fewer batches than ranks, and tasks that do not divide evenly.
    assert {row.n for row in one if row.task == "perplexity"} == {3}
    assert {row.n for row in one if row.task == "rollout"} == {7}
    key = [(row.task, row.metric, row.model, row.n, row.details) for row in one]
    assert key == [(row.task, row.metric, row.model, row.n, row.details) for row in two]
    for mine, other in zip(one, two, strict=True):
        value = pytest.approx(mine.value, rel=1e-6, abs=1e-6, nan_ok=True)
        assert other.value == value, mine
        error = pytest.approx(mine.standard_error, rel=1e-6, abs=1e-6, nan_ok=True)
        assert other.standard_error == error, mine


def test_only_one_rank_speaks(two_ranks: Path) -> None:
    printed = (two_ranks / "stdout").read_text()
    assert printed.count("Achieved sparsity") == printed.count("Page: ") == 1
    assert (two_ranks / "stderr").read_text().count("The pruned model is in") == 1


@pytest.mark.full
def test_an_error_ends_both_ranks_with_one_sentence(
    tmp_path: Path,
    make_config: Callable[[Path], dict[str, Any]],
    save_config: Callable[..., Path],
    forked: Callable[..., Any],
) -> None:
    config = make_config(tmp_path)
    config["pruning"]["init_args"]["pruner"]["init_args"]["include"] = ["mlp.up_prj"]
    save_config(tmp_path, config)
    done = forked(tmp_path, "fit", "--config", "config.yaml", *DDP)
    assert done.returncode != 0
    assert "'mlp.up_prj' matches no linear module" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run" / "pruned").exists()


def test_rounds_and_recovery(
    tmp_path: Path,
    make_config: Callable[[Path], dict[str, Any]],
    save_config: Callable[..., Path],
    forked: Callable[..., Any],
) -> None:
    config = make_config(tmp_path)
    config["data"]["tasks"] = config["data"]["tasks"][1:2]
    text = config["data"]["calibration"]["path"]
    config["data"]["recovery"] = {"path": text, "sequences": 9, "length": 16, "batch_size": 2}
    cubic = {"class_path": "prunelit.schedule.Cubic", "init_args": {"rounds": 2}}
    config["pruning"]["init_args"]["schedule"] = cubic
    config["model"]["recovery"] = {"kl": 1.0}
    config["trainer"]["max_epochs"] = 2
    save_config(tmp_path, config)
    done = forked(tmp_path, "fit", "--config", "config.yaml", *DDP, ranks=2)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "run" / "pruned" / "pruning.json").read_text())
    # Nine sequences are two whole batches of two for each of two ranks.
    assert [entry["step"] for entry in report["rounds"]] == [0, 2]
    weights = load_file(tmp_path / "run" / "pruned" / "model.safetensors")
    for tensor in report["tensors"]:
        assert int((weights[tensor["name"]] == 0).sum()) == tensor["size"] // 2


@pytest.mark.full
def test_an_error_on_any_rank_ends_all(
    tmp_path: Path,
    make_config: Callable[[Path], dict[str, Any]],
    save_config: Callable[..., Path],
    forked: Callable[..., Any],
) -> None:
    (tmp_path / "failing.py").write_text(
        "import os\n"
        "from prunelit.pruners import Wanda\n"
        "class Failing(Wanda):\n"
        "    def prune_block(self, block, probes):\n"
        "        if os.environ.get('LOCAL_RANK') == '1':\n"
        "            raise RuntimeError('rank 1 has had enough')\n"
        "        super().prune_block(block, probes)\n"
    )
    config = make_config(tmp_path)
    config["pruning"]["init_args"]["pruner"]["class_path"] = "failing.Failing"
    save_config(tmp_path, config)
    done = forked(tmp_path, "fit", "--config", "config.yaml", *DDP)
    assert done.returncode != 0
    assert "rank 1 has had enough" in done.stderr
    assert not (tmp_path / "run" / "pruned").exists()


@pytest.mark.full
def test_processes_that_python_spawns(
    tmp_path: Path,
    make_config: Callable[[Path], dict[str, Any]],
    save_config: Callable[..., Path],
    forked: Callable[..., Any],
) -> None:
    config = make_config(tmp_path)
    config["data"]["tasks"] = config["data"]["tasks"][1:2]  # perplexity
    del config["pruning"]
    config["trainer"] |= {"devices": 2, "strategy": "ddp_spawn"}
    save_config(tmp_path, config)
    # The arguments of a process go through pickle, and the parser of the command line too.
    done = forked(tmp_path, "validate", "--config", "config.yaml")
    assert done.returncode == 0, done.stderr
    assert {row.task for row in results(tmp_path)} == {"perplexity"}


def test_a_rank_that_dies_unseen_is_noticed(
    tmp_path: Path,
    make_config: Callable[[Path], dict[str, Any]],
    save_config: Callable[..., Path],
    forked: Callable[..., Any],
) -> None:
    (tmp_path / "leaving.py").write_text(
        "import atexit, os\n"
        "from prunelit.pruners import Wanda\n"
        "class Leaving(Wanda): ...\n"
        "if os.environ.get('LOCAL_RANK') == '1':\n"
        "    atexit.register(os._exit, 7)\n"
    )
    config = make_config(tmp_path)
    config["pruning"]["init_args"]["pruner"]["class_path"] = "leaving.Leaving"
    save_config(tmp_path, config)
    done = forked(tmp_path, "fit", "--config", "config.yaml", "--print_config", ranks=2)
    assert done.returncode == 7
    assert done.stderr.endswith("Rank 1 ended with status 7.\n")


SIGNALLING = """
import os, signal
from lightning.pytorch import Callback
from prunelit.pruners import Wanda
from prunelit.tasks import Perplexity

def signalled(place):
    rank, name, where = os.environ["SIGNALLED"].split()
    if os.environ.get("LOCAL_RANK", "0") == rank and place == where:
        os.kill(os.getpid(), signal.Signals[name])

class Pruned(Wanda):
    def prune_block(self, block, probes):
        super().prune_block(block, probes)
        signalled("pruning")

class Measured(Perplexity):
    def step(self, pair, batch):
        signalled("measuring")
        return super().step(pair, batch)

class Trained(Callback):
    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == 2:
            signalled("training")
"""


@pytest.mark.parametrize(
    ("rank", "name", "place"),
    [
        (1, "SIGTERM", "measuring"),
        pytest.param(1, "SIGUSR1", "training", marks=pytest.mark.full),
        pytest.param(0, "SIGTERM", "training", marks=pytest.mark.full),
        pytest.param(0, "SIGUSR1", "measuring", marks=pytest.mark.full),
        pytest.param(0, "SIGTERM", "pruning", marks=pytest.mark.full),
        pytest.param(1, "SIGTERM", "pruning", marks=pytest.mark.full),
    ],
)
def test_a_signal_to_one_of_two_processes_ends_both_with_its_sentence(
    rank: int,
    name: str,
    place: str,
    tmp_path: Path,
    make_config: Callable[[Path], dict[str, Any]],
    save_config: Callable[..., Path],
    forked: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "signalling.py").write_text(SIGNALLING)
    config = make_config(tmp_path)
    text = config["data"]["calibration"]["path"]
    options = {"path": text, "length": 20, "limit": 4, "batch_size": 1}
    config["data"]["tasks"] = [{"class_path": "signalling.Measured", "init_args": options}]
    config["pruning"]["init_args"]["pruner"]["class_path"] = "signalling.Pruned"
    if place == "training":
        config["data"]["recovery"] = {"path": text, "sequences": 9, "length": 16, "batch_size": 1}
        config["trainer"] |= {"max_epochs": 1, "callbacks": [{"class_path": "signalling.Trained"}]}
    save_config(tmp_path, config)
    monkeypatch.setenv("SIGNALLED", f"{rank} {name} {place}")
    done = forked(tmp_path, "fit", "--config", "config.yaml", *DDP)
    how = {
        "pruning": "No checkpoint is written yet: start the same command again.",
        "training": f"Continue from {tmp_path}/run/checkpoints/last.ckpt with `--ckpt_path last`.",
        "measuring": "The pruned model is written: `prunelit validate` with the same options",
    }
    # In training all ranks stop at the same step; the first one does not know the signal's name.
    shown = "SIGTERM" if place == "training" and rank else name
    assert done.returncode == 128 + signal.Signals[shown], done.stderr
    assert done.stderr.count(f"prunelit: Stopped by {shown}. {how[place]}") == 1, done.stderr
    assert done.stderr.count("Stopped by") == 1
    assert "Traceback" not in done.stderr
