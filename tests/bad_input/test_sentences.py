"""Inputs that once ended in a traceback or without an end: each is one sentence before any work."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from prunelit import InputError, compare, load_tokenizer, prune
from prunelit.data import load_rows
from prunelit.pruners import Magnitude, Wanda
from prunelit.sparsity import Unstructured

Refuse = Callable[..., str]
Config = dict[str, Any]


def first_task(config: Config) -> Config:
    return config["data"]["tasks"][0]["init_args"]


BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]\n"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"model: \xe4", "is not UTF-8 text"),
        (yaml.safe_dump({"model": 1}).encode("utf-16"), "is not UTF-8 text"),
        (b"model: &a\n  source: *a\n", "a value that contains it"),
        (b"data: &a\n  tasks: [*a]\n", "a value that contains it"),
        (BOMB.encode(), "stand for more than"),
        (b"model:\n  source: a\n  source: b\n", "'source' is given twice in the YAML, in line 2"),
        (
            b"data: {tasks: [{class_path: 0}]}\n",
            "expected `class_path` in line 1 of the YAML as the path of a class",
        ),
        (b"model: {source: a, source: b}\n", "'source' is given twice in the YAML, in line 1"),
    ],
    ids=[
        "latin-1",
        "utf-16",
        "circle",
        "circle-in-a-list",
        "bomb",
        "twice",
        "class",
        "twice-in-a-line",
    ],
)
def test_yaml(
    tmp_path: Path, cli: Callable[..., None], capfd: Any, content: bytes, reason: str
) -> None:
    path = tmp_path / "spoiled.yaml"
    path.write_bytes(content)
    with pytest.raises(SystemExit) as left:
        cli("fit", "--config", str(path))
    assert left.value.code == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert reason in line


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--seed_everything", str(2**70)), "Expected `seed_everything` from 0 to 4294967295"),
        (("--seed_everything", "-1"), "Expected `seed_everything` from 0 to 4294967295"),
        (("--seed_everything", "1.5"), "Expected `seed_everything` as bool or int but got '1.5'"),
        (("--trainer.precision", "abc"), "as one of 64, 32, 16, 'transformer-engine'"),
        (("--trainer.default_root_dir", "http://x"), "a folder of this machine but got 'http://x'"),
        (("--pruning.output", "s3://x/y"), "a folder of this machine but got 's3://x/y'"),
        (("--trainer.val_check_interval", "0"), "Expected `trainer.val_check_interval` above 0"),
        (("--trainer.accumulate_grad_batches", "0"), "`trainer.accumulate_grad_batches` above 0"),
        (("--trainer.fast_dev_run", "true"), "Expected no `trainer.fast_dev_run`"),
        (("--trainer.max_time", "1h"), "It is given for `trainer.max_time`."),
        (("--trainer.logger", "abc"), "`class_path` and `init_args` of a Logger but got 'abc'"),
        (("--trainer.strategy.class_path", "no.Such"), "The class 'no.Such', given for"),
        (("--model.attn_implementation", "abc"), "The attention 'abc', given as `attn_impl"),
        (("--model.optimizer", "abc"), "as the path of a function or class but got 'abc'"),
        (("--data.tasks", "no.yaml"), "'no.yaml', given for `data.tasks`"),
        (("--data.calibration", "abc"), "`init_args` of a CalibrationText but got 'abc'"),
        (("--data.calibration.batch_size", "0"), "`batch_size` of prunelit.CalibrationText"),
        (("--allow_code_execution", "x"), "`allow_code_execution` as true or false but got 'x'"),
        (
            ("--pruning.pruner.sparsity.ratio", "true"),
            "of prunelit.sparsity.Unstructured as a number but got",
        ),
        (("--pruning.pruner.ratios", "null"), "for null, write `ratios: null` in the YAML, since"),
        (("--trainer.devices", "-5"), "The Trainer refuses its settings: `devices`"),
        (("--trainer.devices", "abc"), "The Trainer refuses its settings: `devices`"),
    ],
)
def test_options(refuse: Refuse, options: tuple[str, str], reason: str) -> None:
    assert reason in refuse(*options)


@pytest.mark.parametrize(
    ("place", "key", "value", "reason"),
    [
        (
            lambda c: c["data"]["calibration"],
            "length",
            None,
            "`length` of prunelit.CalibrationText",
        ),
        (
            lambda c: c["data"]["calibration"],
            "seed",
            2**70,
            "`seed` of prunelit.CalibrationText (line ",
        ),
        (first_task, "length", None, "Expected `length` of prunelit.tasks.Deviation as int"),
        (
            lambda c: c["data"]["tasks"][1]["init_args"],
            "length",
            None,
            "Expected `length` of prunelit.tasks.Perplexity as int",
        ),
        (first_task, "name", "x" * 300, "with 300 bytes: give a shorter `name`"),
    ],
    ids=["null", "seed", "null-in-a-task", "null-for-a-base", "long-name"],
)
def test_values(
    refuse: Refuse, config: Config, place: Callable, key: str, value: Any, reason: str
) -> None:
    place(config)[key] = value
    assert reason in refuse()


def test_a_text_in_the_place_of_options(refuse: Refuse, config: Config) -> None:
    config["data"]["calibration"] = str({**config["data"]["calibration"], "lenght": 8})
    assert "`lenght`, in the text given for `data.calibration` (line " in refuse()


@pytest.mark.parametrize("wrong", [[], 5, "text"])
def test_init_args_of_another_form(refuse: Refuse, config: Config, wrong: Any) -> None:
    config["data"]["tasks"][0]["init_args"] = wrong
    assert "expected `init_args` in line " in refuse()


@pytest.mark.parametrize(
    ("template", "reason"),
    [("{context:>10000000000}", "at most 10000 characters"), ("{context:d}", "correct the templ")],
)
def test_templates(refuse: Refuse, config: Config, template: str, reason: str) -> None:
    config["data"]["tasks"][2]["init_args"]["template"] = template
    assert reason in refuse()


@pytest.mark.parametrize(
    ("path", "options"),
    [
        ("callbacks.Timer", {"duration": "00:00:00:00"}),
        ("callbacks.ModelSummary", {"max_depth": -5}),
        ("loggers.CSVLogger", {"save_dir": "logs", "flush_logs_every_n_steps": 0}),
    ],
)
def test_objects_of_lightning(
    config: Config,
    path: str,
    options: Config,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    save_config: Callable[..., Path],
    cli: Callable[..., None],
    capfd: Any,
) -> None:
    monkeypatch.chdir(tmp_path)
    one = {"class_path": f"lightning.pytorch.{path}", "init_args": options}
    config["trainer"]["logger" if "loggers" in path else "callbacks"] = [one]
    with pytest.raises(SystemExit) as left:
        cli("fit", "--config", str(save_config(tmp_path, config)))
    assert left.value.code == 2
    assert path.partition(".")[2] in capfd.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("key", ["default_root_dir", "logger"])
def test_results_into_a_file(refuse: Refuse, config: Config, tmp_path: Path, key: str) -> None:
    (tmp_path / "file").touch()
    folder = str(tmp_path / "file" / "below")
    if key == "logger":
        config["trainer"]["logger"]["init_args"]["save_dir"] = folder
    else:
        config["trainer"][key] = folder
    assert str(tmp_path / "file") in refuse()


def test_checkpoint_of_another_program(refuse: Refuse, config: Config, tmp_path: Path) -> None:
    torch.save({"weights": 1}, tmp_path / "other.ckpt")
    sentence = refuse("--ckpt_path", str(tmp_path / "other.ckpt"))
    assert "is no checkpoint of a training, since it lacks" in sentence


@pytest.mark.parametrize(
    "content",
    [
        "[]",
        '"text"',
        "3",
        '{"removed": {"x": 1}}',
        '{"removed": {"mlp": ["a"]}}',
        '{"removed": {"fields": {"0": 3}}}',
    ],
)
def test_pruning_json_of_another_form(refuse: Refuse, tmp_path: Path, content: str) -> None:
    folder = tmp_path / "older"
    folder.mkdir()
    (folder / "pruning.json").write_text(content)
    sentence = refuse("--pruning.output", str(folder), subcommand="validate")
    assert f"'{folder / 'pruning.json'}'" in sentence


def as_sweep(config: Config, name: Any = "half") -> None:
    config["variants"] = {name: config.pop("pruning")["init_args"]["pruner"]}


def test_variant_that_is_a_number(refuse: Refuse, config: Config) -> None:
    as_sweep(config, 50)
    assert "but got 50: put numbers in quotes" in refuse(subcommand="sweep")


@pytest.mark.parametrize("subcommand", ["fit", "validate"])
def test_configuration_of_a_sweep(refuse: Refuse, config: Config, subcommand: str) -> None:
    as_sweep(config)
    assert "`variants` belongs to `prunelit sweep`" in refuse(subcommand=subcommand)


def test_place_in_a_relative_configuration(
    config: Config,
    save_config: Callable[[Path, Config], Path],
    cli: Callable[..., None],
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    as_sweep(config)
    config["variants"]["half"]["init_args"]["shape"] = 1
    (tmp_path / "configs").mkdir()
    path = save_config(tmp_path / "configs", config).relative_to(tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        cli("sweep", "--config", str(path))
    sentence = capfd.readouterr().err
    assert "does not accept `shape` (line " in sentence
    assert f" of {str(path)!r})" in sentence
    assert Path.cwd() == tmp_path


def test_configuration_for_no_sweep(refuse: Refuse, config: Config) -> None:
    assert "`prunelit sweep` takes `variants`" in refuse(subcommand="sweep")


OWN = """\
from prunelit.tasks import Task

class Part(Task):
    def read(self):
        pass

class Whole(Part):
    prepare = collate = step = report = None

    def __init__(self, name: str = "whole"):
        super().__init__(name, 1)
        1 / 0
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module of the user's own in the working folder."""
    monkeypatch.chdir(tmp_path)
    name = f"own_{abs(hash(str(tmp_path)))}"
    Path(f"{name}.py").write_text(OWN)
    return name


def test_abstract_task(refuse: Refuse, config: Config, own: str) -> None:
    config["data"]["tasks"] = [{"class_path": f"{own}.Part", "init_args": {"name": "x"}}]
    assert "it lacks collate, prepare, report, step" in refuse()


def test_own_class_that_fails_is_named_before_its_traceback(
    config: Config,
    own: str,
    tmp_path: Path,
    save_config: Callable[..., Path],
    cli: Callable[..., None],
    capfd: Any,
) -> None:
    config["data"]["tasks"] = [{"class_path": f"{own}.Whole"}]
    with pytest.raises(SystemExit) as left:
        cli("fit", "--config", str(save_config(tmp_path, config)))
    assert left.value.code == 1
    first, *rest = capfd.readouterr().err.split("prunelit: error: ")[1].splitlines()
    assert first.startswith(f"Your own `Whole.__init__` in {own}.py, line 12, raised Zero")
    assert rest[0].startswith("Traceback")


def test_the_working_folder_hides_no_library(tmp_path: Path, console: Callable[..., Any]) -> None:
    for name in ("yaml", "json", "random"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('this is not the library')")
    done = console(tmp_path, "fit", "--config", "nowhere.yaml")
    assert "this is not the library" not in done.stderr
    assert "nowhere.yaml" in done.stderr


# --- in Python


def test_a_path_is_accepted(material: Path) -> None:
    assert len(load_rows(material / "questions.jsonl", columns=["id"])) == 7  # type: ignore[arg-type]
    assert load_tokenizer(material / "dense").pad_token == "<end>"  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", [-1, 300, 10**9])
def test_ids_out_of_range(model: Any, wrong: int) -> None:
    ids = torch.full((2, 4), wrong)
    with pytest.raises(InputError, match=f"from 0 to 299.*batch 0 has {wrong}"):
        prune(model, Wanda(Unstructured(0.5)), ids, progress=False)
    with pytest.raises(InputError, match=f"from 0 to 299.*batch 0 has {wrong}"):
        compare(model, model, ids)


@pytest.mark.parametrize("wrong", ["0.5", None, [0.5], True])
def test_a_ratio_that_is_no_number(wrong: Any) -> None:
    with pytest.raises(InputError, match="`ratio`"):
        Unstructured(wrong)


@pytest.mark.parametrize("wrong", [None, "text", 3])
def test_objects_of_another_kind(model: Any, wrong: Any) -> None:
    with pytest.raises(InputError):
        prune(wrong, Magnitude(Unstructured(0.5)))
    with pytest.raises(InputError):
        prune(model, wrong)
    with pytest.raises(InputError):
        compare(model, model, wrong)
    with pytest.raises(InputError):
        load_rows(wrong and 3, columns=["id"])  # type: ignore[arg-type]
