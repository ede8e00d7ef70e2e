"""Baselines beside a run: the dense model rounded, and other models."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from prunelit import InputError, PairedLM, prune, read_results
from prunelit.callbacks import Pruning, Results, baselines
from prunelit.callbacks.baselines import packed_bytes
from prunelit.core.datamodule import PruneData
from prunelit.core.recovery_text import RecoveryText
from prunelit.pruners import Magnitude, Quantize
from prunelit.sparsity import Unstructured
from prunelit.tasks import MultipleChoice, Perplexity
from prunelit.trainer import PruneTrainer


@pytest.fixture
def make_folder(tmp_path: Path, material: Path) -> Callable[..., str]:
    """`make_folder(name, tokenizer)` saves another tiny Llama."""

    def make(name: str, tokenizer: PreTrainedTokenizerFast, **sizes: Any) -> str:
        dense = LlamaConfig.from_pretrained(material / "dense").to_dict()
        torch.manual_seed(5)
        model = AutoModelForCausalLM.from_config(
            LlamaConfig(**{**dense, "num_hidden_layers": 1, **sizes})
        )
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
        return str(tmp_path / name)

    return make


@pytest.fixture
def start(tmp_path: Path, material: Path) -> Callable[..., PairedLM]:
    """`start(names)` prunes half of the weights in memory, and measures the baselines."""

    def run(
        *names: str, stage: str = "validate", into: str = "run", epochs: int = 0, **options: Any
    ) -> PairedLM:
        tasks = [
            MultipleChoice(str(material / "questions.jsonl")),
            Perplexity(str(material / "text.jsonl"), length=12, limit=3),
        ]
        text = RecoveryText(str(material / "text.jsonl"), sequences=2, length=12, batch_size=1)
        data = PruneData(None, tasks, recovery=text if epochs else None)
        module = PairedLM(str(material / "dense"), **options)
        trainer = PruneTrainer(
            default_root_dir=str(tmp_path / into),
            accelerator="cpu",
            devices=1,
            max_epochs=epochs,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
            num_sanity_val_steps=0,
            callbacks=[
                Pruning(Magnitude(Unstructured(0.5))),
                Results(speed=False, baselines=names),
            ],
        )
        getattr(trainer, stage)(module, datamodule=data)
        assert trainer.max_epochs == epochs
        return module

    return run


def test_each_baseline_is_a_run_of_its_own(
    start: Callable[..., PairedLM],
    make_folder: Callable[..., str],
    tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
    capsys: Any,
    caplog: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rounded: list[Quantize] = []

    def spy(model: PreTrainedModel, pruner: Quantize) -> None:
        rounded.append(pruner)
        prune(model, pruner)

    monkeypatch.setattr(baselines, "prune", spy)
    monkeypatch.setattr("prunelit.callbacks.results.write_picture", lambda *_: None)  # is slow
    tokenizer.add_tokens(["<more>"])
    other = make_folder("other", tokenizer)
    with caplog.at_level("INFO"):
        module = start("4bit", other, stage="fit", epochs=1)  # baselines are not trained
    assert [(pruner.bits, pruner.group) for pruner in rounded] == [(4, 64)]
    folder = tmp_path / "run"
    lines = capsys.readouterr().out.splitlines()
    names = [line.partition(":")[0] for line in lines if line.startswith("Baseline")]
    assert names == ["Baseline 4bit", "Baseline other"]
    assert lines[-1] == f"Page: {folder / 'report.html'}"
    assert "['perplexity'] compare both models on the same tokens but" in caplog.text
    results = read_results(folder / "results.jsonl")
    assert [(r.task, r.value) for r in results] == [(r.task, r.value) for r in module.results]
    assert module.model is not None
    assert (module.model.model.layers[0].mlp.up_proj.weight == 0).any()  # the pruned one again
    found = json.loads((folder / "verdicts.json").read_text())["baselines"]
    assert [*found] == ["4bit", "other"]
    assert found["4bit"]["file_bytes_are"] == "theory"
    assert found["4bit"]["bytes"]["pruned"] == found["4bit"]["bytes"]["dense"]
    sizes = found["4bit"]["file_bytes"]
    assert 0.3 < sizes["pruned"] / sizes["dense"] < 0.5
    assert found["other"]["source"] == other
    assert found["other"]["parameters"]["pruned"] < found["other"]["parameters"]["dense"]
    assert [*found["other"]["left_out"].values()] == [["perplexity"]]
    own = {r.task for r in read_results(folder / "baselines" / "other" / "results.jsonl")}
    assert own == {"multiple_choice"}
    page = (folder / "report.html").read_text()
    assert "other is not measured on perplexity" in page
    assert "Rounding is simulated" in page

    # The same command measures only what is missing.
    (folder / "baselines" / "other" / "scores.parquet").write_bytes(b"damaged")
    written = (folder / "baselines" / "other" / "baseline.json").stat().st_mtime_ns
    before = (folder / "baselines" / "4bit" / "results.jsonl").stat().st_mtime_ns
    start("4bit", other, stage="validate", epochs=1)
    assert len(rounded) == 1
    assert (folder / "baselines" / "other" / "baseline.json").stat().st_mtime_ns > written
    assert (folder / "baselines" / "4bit" / "results.jsonl").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("2bit", {}, "Expected a baseline `8bit`, `4bit` or the source of a model but got '2bit'"),
        ("int8", {}, "but got 'int8'"),
        ("./nowhere", {}, r"The baseline './nowhere' cannot be measured. .*nowhere"),
        ("8bit", {"reference": False}, "Expected `model.reference` true with the baselines"),
    ],
)
def test_it_is_refused_before_weights_are_read(
    start: Callable[..., PairedLM],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    options: dict[str, Any],
    words: str,
) -> None:
    monkeypatch.setattr("prunelit.core.weights.load_placed", None)
    with pytest.raises(InputError, match=words):
        start(name, **options)


def test_texts_that_a_baseline_cannot_read_are_refused(
    start: Callable[..., PairedLM],
    make_folder: Callable[..., str],
    tokenizer: PreTrainedTokenizerFast,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    short = make_folder("short", tokenizer, max_position_embeddings=4)
    monkeypatch.setattr("prunelit.core.weights.load_placed", None)
    with pytest.raises(InputError, match=r"The baseline '.*short' cannot be measured.*positions"):
        start(short)


def test_a_sweep_has_variants_instead(
    start: Callable[..., PairedLM], cli: Callable[..., None], tmp_path: Path, capsys: Any
) -> None:
    trainer = PruneTrainer(accelerator="cpu", logger=False, callbacks=[Results(baselines=["8bit"])])
    with pytest.raises(InputError, match="Expected no `baselines` in a sweep or a search"):
        trainer.sweep(PairedLM("x"), None, variants={})
    (tmp_path / "c.yaml").write_text("model: {source: x}\nbaseline: [8bit]\nvariants: {}\n")
    with pytest.raises(SystemExit):
        cli("sweep", "--config", str(tmp_path / "c.yaml"))
    assert "belongs to `prunelit fit`, `validate` and `compare`" in capsys.readouterr().err


def test_the_option_is_given_once_for_each_baseline(
    cli: Callable[..., None], tmp_path: Path, capsys: Any
) -> None:
    (tmp_path / "c.yaml").write_text("model: {source: x}\nbaseline: 8bit\n")
    with pytest.raises(SystemExit):
        cli(
            *("fit", "--config", str(tmp_path / "c.yaml"), "--baseline", "4bit"),
            *("--baseline=org/model", "--print_config"),
        )
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed["baseline"] == ["8bit", "4bit", "org/model"]


def test_packed_bytes_count_scales_and_offsets(model: PreTrainedModel) -> None:
    expected = 0
    for name, weight in model.named_parameters():
        if name.endswith("_proj.weight"):
            rows, columns = weight.shape  # 32 or 48 columns are one group
            expected += rows * columns // 2 + 4 * rows
        else:
            expected += weight.numel() * 2  # of a model that is stored in 16 bits
    assert packed_bytes(model, Quantize(4), stored=0.5) == expected
