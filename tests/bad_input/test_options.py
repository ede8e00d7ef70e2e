"""Options, keys and classes that a user can get wrong."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Refuse = Callable[..., str]
Config = dict[str, Any]


def pruner(config: Config) -> Config:
    return config["pruning"]["init_args"]["pruner"]["init_args"]


def task(config: Config, number: int) -> Config:
    return config["data"]["tasks"][number]["init_args"]


MULTIPLE_CHOICE = 2


def test_missing_config_file(
    cli: Callable[..., None],
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nowehre.yaml").touch()
    with pytest.raises(SystemExit) as left:
        cli("fit", "--config", "nowhere.yaml")
    assert left.value.code == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("prunelit: error: ")
    assert "nowhere.yaml" in line
    assert "does not exist (similar: 'nowehre.yaml')" in line


def test_unknown_subcommand(cli: Callable[..., None], capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        cli("test")
    assert left.value.code == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert "'test'" in line
    assert "'fit', 'validate'" in line


@pytest.mark.parametrize(
    ("place", "key", "near"),
    [
        (lambda c: c["model"], "sorce", "model.source"),
        (lambda c: c["data"], "calibraton", "data.calibration"),
        (lambda c: c, "trainr", "trainer"),
        (lambda c: c["data"]["calibration"], "lenght", "length"),
        (lambda c: task(c, MULTIPLE_CHOICE), "tempate", "template"),
        (pruner, "sparcity", "sparsity"),
        (lambda c: pruner(c)["sparsity"]["init_args"], "ration", "ratio"),
        (lambda c: c["trainer"], "acelerator", "trainer.accelerator"),
    ],
    ids=["model", "data", "root", "calibration", "task", "pruner", "sparsity", "trainer"],
)
def test_wrong_key(
    refuse: Refuse, config: Config, tmp_path: Path, place: Callable, key: str, near: str
) -> None:
    place(config)[key] = "x"
    sentence = refuse()
    lines = (tmp_path / "config.yaml").read_text(encoding="utf-8").splitlines()
    number = next(n for n, line in enumerate(lines, 1) if line.strip(" -").startswith(f"{key}:"))
    assert f"{key}` (line {number} of '{tmp_path}/config.yaml')" in sentence
    assert "not accept" in sentence
    assert near in sentence.partition("near names: ")[2]


@pytest.mark.parametrize(
    ("place", "key", "value", "expected"),
    [
        (lambda c: c["data"]["calibration"], "length", "long", "int"),
        (lambda c: task(c, MULTIPLE_CHOICE), "limit", "many", "int"),
        (lambda c: c["model"], "dtype", "float8", "'auto', 'float32', 'bfloat16', 'float16'"),
        (lambda c: c["model"], "dtype", "flaot32", "(similar: 'float32')"),
        (lambda c: c["model"], "reference", "perhaps", "bool"),
        (lambda c: task(c, MULTIPLE_CHOICE + 1), "pooling", "max", "'mean', 'last'"),
        (lambda c: pruner(c)["sparsity"]["init_args"], "ratio", "half", "as a number"),
    ],
    ids=["int", "optional", "literal", "similar", "bool", "task-literal", "ratio"],
)
def test_wrong_type(
    refuse: Refuse, config: Config, place: Callable, key: str, value: str, expected: str
) -> None:
    place(config)[key] = value
    sentence = refuse()
    assert key in sentence
    assert " (line " in sentence
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
        (lambda c: c["data"]["tasks"][0], "prunelit.tasks.Perplexty", "near names: Perplexity"),
        (lambda c: c["data"]["tasks"][0], "prunelit.task.Perplexity", "near names: tasks"),
        (lambda c: c["data"]["tasks"][0], "Perplexty", "near: prunelit.tasks.Perplexity"),
        (lambda c: c["pruning"]["init_args"]["pruner"], "Wandda", "near: prunelit.pruners.Wanda"),
        (lambda c: c["pruning"], "nowhere.Pruning", "No module named 'nowhere'"),
        (lambda c: c["pruning"]["init_args"]["pruner"], "my.Method", "No module named 'my'"),
        (lambda c: pruner(c)["sparsity"], "prunelit.pruners.Wanda", "a subclass of Sparsity"),
    ],
    ids=["task", "room", "short", "short pruner", "callback", "pruner", "wrong kind"],
)
def test_unknown_class_path(
    refuse: Refuse, config: Config, place: Callable, path: str, reason: str
) -> None:
    place(config)["class_path"] = path
    sentence = refuse()
    assert path in sentence
    assert reason in sentence


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda t: t.update(init_arg=t.pop("init_args")), "'init_arg' beside `class_path`"),
        (lambda t: t.update(clas_path=t.pop("class_path")), "'clas_path' beside `init_args`"),
        (lambda t: t.update(limit=3), "'limit' beside `class_path`: put options of the class"),
        (lambda t: t.pop("class_path"), "as `class_path` and `init_args` of a Task"),
    ],
    ids=["init_args", "class_path", "outside", "no class"],
)
def test_a_class_with_a_wrong_key(
    refuse: Refuse, config: Config, spoil: Callable, reason: str
) -> None:
    spoil(config["data"]["tasks"][0])
    assert reason in refuse()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--modle.dtype", "auto"), "prunelit does not accept `modle`: near names: model"),
        (("--model.dtyp=auto",), "prunelit does not accept `model.dtyp`: near names: model.dtype"),
        (("--pruning.pruner.sparsity.ration", "0.3"), "`ration`: near names: ratio"),
        (("--model.dtype", "float23"), "one of 'auto', 'float32', 'bfloat16', 'float16' but got"),
        (("--model", "modle.yaml"), "'modle.yaml', given for `model`, does not exist"),
        (("--pruning.pruner", "Wandda"), "near: prunelit.pruners.Wanda"),
        (("more",), "but got 'more'"),
    ],
    ids=range(7),
)
def test_wrong_option(refuse: Refuse, options: tuple[str, ...], reason: str) -> None:
    assert reason in refuse(*options)


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
    assert "Expected `trainer.max_epochs` 0, or text to train on" in refuse(
        "--trainer.max_epochs", "3"
    )


def test_part_of_the_items(refuse: Refuse) -> None:
    assert "`trainer.limit_val_batches` 1.0 but got 1:" in refuse(
        "--trainer.limit_val_batches", "1"
    )


@pytest.mark.parametrize("pruned", [True, False])
@pytest.mark.parametrize("subcommand", ["fit", "validate"])
def test_strategy_that_splits_matrices(
    refuse: Refuse, config: Config, subcommand: str, pruned: bool
) -> None:
    if not pruned:
        del config["pruning"]
    name = "ModelParallelStrategy"
    strategy = {"class_path": f"lightning.pytorch.strategies.{name}"}
    config["trainer"] |= {"devices": 2, "strategy": strategy}
    # In this process: no other one was started.
    sentence = refuse(subcommand=subcommand)
    assert sentence.startswith("Expected `data_parallel_size` 2 and `tensor_parallel_size` 1 of ")
    assert "but got auto and auto: set both under `trainer.strategy`" in sentence


@pytest.mark.parametrize("subcommand", ["fit", "validate"])
@pytest.mark.parametrize(
    ("options", "name"),
    [
        (("--trainer.accelerator", "cpuu"), "cpuu"),
        (("--trainer.strategy", "fsdp"), "model.placement: sharded"),
        (
            ("--trainer.strategy", "dddp"),
            "as auto, ddp or ModelParallelStrategy but got 'dddp' (similar: 'ddp')",
        ),
    ],
)
def test_what_lightning_refuses(
    refuse: Refuse, options: tuple[str, str], name: str, subcommand: str
) -> None:
    assert name in refuse(*options, subcommand=subcommand)


def test_a_second_callback_of_a_kind(refuse: Refuse, config: Config) -> None:
    arguments = {"pruner": config["pruning"]["init_args"]["pruner"]}
    path = "prunelit.callbacks.Pruning"
    config["trainer"]["callbacks"] = [{"class_path": path, "init_args": arguments}]
    assert "The Trainer refuses its settings: " in refuse()
