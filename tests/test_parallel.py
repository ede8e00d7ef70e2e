"""Runs whose models several devices compute together give the numbers of one device."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pyarrow.parquet as pq
import pytest
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prunelit.report.results import read_results

Config = dict[str, Any]
Start = Callable[..., CompletedProcess[str]]
BOARD = Path("run", "board", "only")


@pytest.fixture
def start(save_config: Callable[..., Path], forked: Callable[..., CompletedProcess[str]]) -> Start:
    """`start(folder, config, "validate", ranks, *options)` runs a command on several processes."""

    def run(
        folder: Path, config: Config, command: str, ranks: int, *options: str
    ) -> CompletedProcess[str]:
        if ranks > 1:
            config["model"]["placement"] = "parallel"
            config["trainer"] |= {"devices": ranks, "strategy": "ddp"}
        save_config(folder, config)
        return forked(folder, command, "--config", "config.yaml", *options, ranks=ranks)

    return run


def texts(folder: Path) -> list[str]:
    """Return the texts that both models wrote."""
    return pq.read_table(folder / BOARD / "items" / "rollout.parquet")["output"].to_pylist()


def check_equal(one: Path, other: Path) -> None:
    """Compare the results in two folders, and the texts of both models."""
    paths = [folder / BOARD / "results.jsonl" for folder in (one, other)]
    # A difference of two perplexities has fewer digits than these.
    found = [[r for r in read_results(path) if r.model != "difference"] for path in paths]
    pairs = [*zip(*found, strict=True)]
    assert len(pairs) > 50
    far = [
        (a, b)
        for a, b in pairs
        if (a.task, a.metric, a.model, a.n) != (b.task, b.metric, b.model, b.n)
        or a.value != pytest.approx(b.value, rel=1e-5, abs=1e-5, nan_ok=True)
    ]
    # A noise floor is rounding error, which is another one here.
    assert [pair for pair in far if not pair[0].metric.startswith("floor_")] == []
    differ = sum(a != b for a, b in zip(texts(one), texts(other), strict=True))
    print(f"{differ} of {len(texts(one))} texts differ")
    assert differ == 0
    gains = json.loads((other / BOARD / "gains.json").read_text())
    assert gains["speed"] == {}
    assert gains["bytes"] == json.loads((one / BOARD / "gains.json").read_text())["bytes"]


@pytest.mark.distributed
def test_a_pruned_model_has_the_numbers_of_one_device(
    start: Start, fitted: Path, make_config: Callable[[Path], Config], tmp_path: Path
) -> None:
    done = start(tmp_path, make_config(tmp_path), "validate", 2)
    assert done.returncode == 2
    assert "'sharded' or 'resident' to prune or to train but got 'parallel'" in done.stderr
    shutil.copytree(fitted / "run" / "pruned", tmp_path / "run" / "pruned")
    done = start(tmp_path, make_config(tmp_path), "validate", 2, "--speed", "true")
    assert done.returncode == 0, done.stderr
    check_equal(fitted, tmp_path)


@pytest.mark.distributed
@pytest.mark.full
def test_each_of_two_groups_measures_its_own_batches(
    start: Start,
    make_config: Callable[[Path], Config],
    make_model: Callable[..., PreTrainedModel],
    tokenizer: PreTrainedTokenizerBase,
    material: Path,
    tmp_path: Path,
) -> None:
    make_model("qwen3").save_pretrained(tmp_path / "candidate")
    tokenizer.save_pretrained(tmp_path / "candidate")
    folders = [tmp_path / "one", tmp_path / "groups"]
    for folder, ranks in zip(folders, (1, 4), strict=True):
        folder.mkdir()
        config = make_config(folder)
        del config["pruning"], config["data"]["calibration"]
        config["model"]["candidate"] = str(tmp_path / "candidate")
        config["data"]["tasks"] += [
            {"class_path": f"prunelit.tasks.{name}", "init_args": {"path": str(path), **more}}
            for name, path, more in (
                ("Distribution", material / "text.jsonl", {"length": 12, "limit": 5}),
                ("Trajectory", material / "questions.jsonl", {"max_new_tokens": 3}),
                ("Subspace", material / "questions.jsonl", {}),
            )
        ]
        more = ["--model.parallel_degree", "2"] if ranks > 1 else []
        done = start(folder, config, "compare", ranks, "--speed", "true", *more)
        assert done.returncode == 0, done.stderr
    check_equal(*folders)


@pytest.mark.parametrize(
    ("command", "options", "sentence"),
    [
        ("fit", [], "'sharded' or 'resident' to prune or to train but got 'parallel'"),
        ("sweep", [], "'sharded' or 'resident' to prune or to train but got 'parallel'"),
        ("compare", ["--model.candidate", "GPT2"], "but 'gpt2' has none: set `model.placement`"),
        ("compare", ["--model.candidate", "DENSE"], "got 1 devices and groups of 1"),
        (
            "compare",
            ["--model.candidate", "DENSE", "--baseline", "8bit"],
            "The baseline '8bit' cannot be measured. Expected `model.placement` 'sharded'",
        ),
        (
            "compare",
            ["--model.candidate", "DENSE", "--baseline", "GPT2"],
            "cannot be measured. Expected a family for which transformers has a plan",
        ),
    ],
)
def test_what_cannot_be_done_is_refused(
    make_config: Callable[[Path], Config],
    make_model: Callable[..., PreTrainedModel],
    tokenizer: PreTrainedTokenizerBase,
    save_config: Callable[..., Path],
    cli: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
    material: Path,
    tmp_path: Path,
    command: str,
    options: list[str],
    sentence: str,
) -> None:
    config = make_config(tmp_path)
    pruning = config.pop("pruning")
    if command == "sweep":
        config["variants"] = {"wanda": pruning["init_args"]["pruner"]}
    make_model("gpt2").save_pretrained(tmp_path / "gpt2")
    tokenizer.save_pretrained(tmp_path / "gpt2")
    names = {"GPT2": str(tmp_path / "gpt2"), "DENSE": str(material / "dense")}
    own = [names.get(option, option) for option in options]
    path = str(save_config(tmp_path, config))
    with pytest.raises(SystemExit):
        cli(command, "--config", path, "--model.placement", "parallel", *own)
    assert sentence in capsys.readouterr().err
