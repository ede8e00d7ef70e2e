"""`prunelit fit` and `prunelit validate` from end to end on a tiny model."""

import json
import logging
import os
import shutil
import signal
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from prunelit.cli import _is_news
from prunelit.report.results import Result, read_results

Config = dict[str, Any]
Cli = Callable[..., None]


@pytest.fixture
def config(tmp_path: Path, make_config: Callable[[Path], Config]) -> Config:
    """A run of two quick tasks; a test may change it."""
    config = make_config(tmp_path)
    config["data"]["tasks"] = config["data"]["tasks"][:2]
    return config


@pytest.fixture
def run(
    tmp_path: Path, config: Config, save_config: Callable[..., Path], cli: Cli
) -> Callable[..., list[Result]]:
    """`run("fit", *options)`, in this process, gives the rows of its results."""

    def start(subcommand: str, *options: str) -> list[Result]:
        cli(subcommand, "--config", str(save_config(tmp_path, config)), *options)
        return read_results(tmp_path / "run" / "board" / "only" / "results.jsonl")

    return start


def zeros(model: PreTrainedModel, name: str) -> torch.Tensor:
    return model.state_dict()[f"model.layers.0.{name}.weight"] == 0


def pruned(folder: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder)


def values(rows: list[Result]) -> dict[tuple[str, str, str], float]:
    return {(row.task, row.metric, row.model): row.value for row in rows}


def test_the_pruned_folder_loads_in_stock_transformers(fitted: Path, material: Path) -> None:
    model = pruned(fitted / "run" / "pruned")
    dense = AutoModelForCausalLM.from_pretrained(material / "dense")
    text = "What is the capital of France?"
    tokenizer = AutoTokenizer.from_pretrained(fitted / "run" / "pruned")
    ids = tokenizer(text, return_tensors="pt")["input_ids"]
    # The model with the same weights, put in by hand.
    by_hand = AutoModelForCausalLM.from_pretrained(material / "dense")
    by_hand.load_state_dict(model.state_dict())
    with torch.no_grad():
        assert model(ids).logits.equal(by_hand(ids).logits)
        assert not torch.allclose(model(ids).logits, dense(ids).logits, atol=1e-2)
    for name in ("self_attn.q_proj", "mlp.down_proj"):
        share = zeros(model, name).sum(1)
        assert share.eq(zeros(model, name).shape[1] // 2).all()
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model.model.embed_tokens.weight.equal(dense.model.embed_tokens.weight)


def test_pruning_json_tells_what_was_done(fitted: Path, material: Path) -> None:
    folder = fitted / "run" / "pruned"
    report = json.loads((folder / "pruning.json").read_text())
    assert report["sparsity"] == 0.5
    assert report["recipe"]["pruner"] == {
        "class_path": "prunelit.pruners.Wanda",
        "init_args": {
            "sparsity": {
                "class_path": "prunelit.sparsity.Unstructured",
                "init_args": {"ratio": 0.5, "within": None},
            },
            "include": ["*"],
            "exclude": [],
            "ratios": None,
            "allocation": None,
            "expert_tokens": 32,
            "variant": False,
        },
    }
    assert report["recipe"]["model"]["source"] == str(material / "dense")
    assert report["recipe"]["calibration"]["tokens"] == 80
    assert set(report["versions"]) == {"prunelit", "torch", "transformers", "python"}
    weights = pruned(folder).state_dict()
    assert len(report["tensors"]) == 3 * 7
    for tensor in report["tensors"]:
        assert tensor["zeros"] == int((weights[tensor["name"]] == 0).sum())
        assert tensor["shape"] == list(weights[tensor["name"]].shape)


def test_the_configuration_of_a_run_lies_beside_its_results(fitted: Path) -> None:
    saved = yaml.safe_load((fitted / "run" / "board" / "only" / "config.yaml").read_text())
    pruner = saved["pruning"]["init_args"]["pruner"]
    assert pruner["init_args"]["sparsity"]["init_args"]["ratio"] == 0.5
    assert saved["seed_everything"] == 0


def test_validate_with_the_same_yaml_uses_the_folder(
    fitted: Path, tmp_path: Path, material: Path, forked: Callable[..., Any]
) -> None:
    # A copy, since other tests read the results of `fit`; a recipe holds no path but the model's.
    text = (fitted / "config.yaml").read_text().replace(f"{fitted}/run", f"{tmp_path}/run")
    (tmp_path / "config.yaml").write_text(text)
    folder = fitted / "run" / "pruned"
    cards = ("README.md", ".eval_results")  # of the last run that measured the model
    before = {path: path.read_bytes() for path in folder.iterdir() if path.name not in cards}
    done = forked(tmp_path, "validate", "--config", "config.yaml", "--pruning.output", str(folder))
    assert done.returncode == 0, done.stderr
    assert f"Using the pruned model in {folder}: its recipe is this one." in done.stderr
    assert "Achieved sparsity" not in done.stdout
    rows = read_results(tmp_path / "run" / "board" / "only" / "results.jsonl")
    expected = read_results(fitted / "run" / "board" / "only" / "results.jsonl")
    assert values(rows) == pytest.approx(values(expected), rel=1e-9, abs=1e-12, nan_ok=True)
    assert {path: path.read_bytes() for path in before} == before


def test_another_ratio_on_the_command_line_prunes_in_memory(
    run: Callable[..., list[Result]],
    fitted: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    folder = fitted / "run" / "pruned"
    before = {path: path.read_bytes() for path in folder.iterdir()}
    rows = run(
        *("validate", "--pruning.output", str(folder)),
        *("--pruning.pruner.sparsity.ratio", "0.25"),
    )
    printed = capfd.readouterr().out
    assert "Achieved sparsity 0.2500" in printed
    expected = values(read_results(fitted / "run" / "board" / "only" / "results.jsonl"))
    key = ("deviation", "kl_dense_pruned", "pair")
    assert 0 < values(rows)[key] < expected[key]
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    assert not (tmp_path / "run" / "pruned").exists()


def test_n_of_m_through_yaml(
    run: Callable[..., list[Result]], config: Config, tmp_path: Path
) -> None:
    config["pruning"]["init_args"]["pruner"]["init_args"]["sparsity"] = {
        "class_path": "prunelit.sparsity.SemiStructured",
        "init_args": {"keep": 2, "group": 4},
    }
    run("fit")
    model = pruned(tmp_path / "run" / "pruned")
    for name in ("self_attn.q_proj", "mlp.down_proj"):
        assert zeros(model, name).unflatten(1, (-1, 4)).sum(2).eq(2).all()


def test_a_ratio_on_the_command_line_is_fitted(
    run: Callable[..., list[Result]], tmp_path: Path
) -> None:
    run("fit", "--pruning.pruner.sparsity.ratio", "0.3")
    report = json.loads((tmp_path / "run" / "pruned" / "pruning.json").read_text())
    assert all(t["zeros"] == round(0.3 * t["size"]) for t in report["tensors"])
    asked = report["recipe"]["pruner"]["init_args"]["sparsity"]["init_args"]
    assert asked == {"ratio": 0.3, "within": None}


def test_without_a_pruning_group_dense_meets_itself(
    run: Callable[..., list[Result]], config: Config, tmp_path: Path
) -> None:
    del config["pruning"]
    rows = values(run("validate"))
    assert rows["perplexity", "nll", "difference"] == 0
    assert rows["deviation", "kl_dense_pruned", "pair"] == pytest.approx(0, abs=1e-9)
    assert rows["deviation", "top1_agreement", "pair"] == 1
    assert not (tmp_path / "run" / "pruned").exists()


def test_classes_of_the_users_own_live_in_their_own_file(
    run: Callable[..., list[Result]],
    config: Config,
    tmp_path: Path,
    material: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    shutil.copy(material / "mine.py", tmp_path)
    monkeypatch.chdir(tmp_path)
    config["pruning"]["class_path"] = "mine.Announced"
    config["pruning"]["init_args"]["word"] = "my way"
    config["pruning"]["init_args"]["pruner"]["class_path"] = "mine.Magnitude"
    run("fit")
    assert "Pruning my way." in capfd.readouterr().out
    model = pruned(tmp_path / "run" / "pruned")
    assert zeros(model, "mlp.up_proj").sum(1).eq(16).all()
    assert not zeros(model, "self_attn.q_proj").any()
    recipe = json.loads((tmp_path / "run" / "pruned" / "pruning.json").read_text())["recipe"]
    assert recipe["callback"]["class_path"] == "mine.Announced"
    assert recipe["pruner"]["class_path"] == "mine.Magnitude"
    assert recipe["pruner"]["init_args"]["power"] == 1.0


def test_classes_are_swapped_on_the_command_line(
    run: Callable[..., list[Result]],
    tmp_path: Path,
    material: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    shutil.copy(material / "mine.py", tmp_path / "swapped.py")
    monkeypatch.chdir(tmp_path)
    run(
        *("fit", "--pruning", "swapped.Announced", "--pruning.word", "at last"),
        *("--pruning.pruner", "swapped.Magnitude", "--pruning.pruner.power", "2"),
        *("--pruning.pruner.sparsity.ratio", "0.25"),
    )
    assert "Pruning at last." in capfd.readouterr().out
    recipe = json.loads((tmp_path / "run" / "pruned" / "pruning.json").read_text())["recipe"]
    assert recipe["callback"]["class_path"] == "swapped.Announced"
    assert recipe["pruner"]["class_path"] == "swapped.Magnitude"
    assert recipe["pruner"]["init_args"]["power"] == 2.0
    assert recipe["pruner"]["init_args"]["sparsity"]["init_args"]["ratio"] == 0.25


def test_an_interrupt_leaves_no_half_written_folder(
    config: Config,
    tmp_path: Path,
    material: Path,
    save_config: Callable[..., Path],
    forked: Callable[..., Any],
) -> None:
    shutil.copy(material / "mine.py", tmp_path)
    config["pruning"]["init_args"]["pruner"]["class_path"] = "mine.Slow"
    save_config(tmp_path, config)

    def interrupt(process: BaseProcess) -> None:
        deadline = time.monotonic() + 120
        while not (tmp_path / "started").exists():
            assert process.is_alive()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert process.pid is not None
        os.kill(process.pid, signal.SIGINT)

    done = forked(tmp_path, "fit", "--config", "config.yaml", meanwhile=interrupt)
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    left = [str(path.relative_to(tmp_path)) for path in (tmp_path / "run").rglob("*")]
    assert not [name for name in left if "pruned" in name or name.endswith(".safetensors")]
    assert "results.jsonl" not in "".join(left)


def test_only_what_does_something_is_offered(cli: Cli, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        cli("fit", "--help")
    assert left.value.code == 0
    text = capfd.readouterr().out
    for option in ("--pruning", "--model.source", "--data.calibration", "--trainer.devices"):
        assert option in text
    assert "--ckpt_path" in text
    assert "--train_dataloaders" not in text
    with pytest.raises(SystemExit):
        cli("validate", "--help")
    assert "--ckpt_path" not in capfd.readouterr().out


def test_the_resulting_configuration_can_be_printed(
    config: Config,
    tmp_path: Path,
    save_config: Callable[..., Path],
    cli: Cli,
    capfd: pytest.CaptureFixture[str],
) -> None:
    path = str(save_config(tmp_path, config))
    with pytest.raises(SystemExit) as left:
        cli("fit", "--config", path, "--pruning.pruner.sparsity.ratio", "0.3", "--print_config")
    assert left.value.code == 0
    printed = yaml.safe_load(capfd.readouterr().out)
    sparsity = printed["pruning"]["init_args"]["pruner"]["init_args"]["sparsity"]
    assert sparsity["init_args"]["ratio"] == 0.3
    assert printed["data"]["tasks"][1]["init_args"]["limit"] == 3
    assert not (tmp_path / "run").exists()


def test_a_second_run_in_the_same_folder(run: Callable[..., list[Result]]) -> None:
    first = run("fit")
    assert values(run("fit")) == values(first)


def test_lines_of_lightning_that_mean_nothing_here_are_not_printed() -> None:
    def is_news(text: str) -> bool:
        return _is_news(logging.LogRecord("lightning", logging.INFO, "", 0, text, None, None))

    assert not is_news("`Trainer.fit` stopped: `max_epochs=0` reached.")
    assert not is_news("Tip: for seamless logging, `pip install litlogger`")
    assert is_news("`Trainer.fit` stopped: `max_epochs=3` reached.")
    assert is_news("`Trainer.fit` stopped: `max_steps=0` reached.")
