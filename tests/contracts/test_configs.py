"""Every YAML file in `configs/` parses, and everything it names is there."""

import importlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

FOLDER = Path(__file__).parents[2] / "configs"
# A run, which a command starts. Benchmarks in `tasks/` have `test_task_configs.py`.
CONFIGS = sorted(FOLDER.glob("*.yaml"))
# Parts of a run, to which runs refer.
SHARED = sorted((FOLDER / "shared").glob("*.yaml"))

every_config = pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
every_shared = pytest.mark.parametrize("path", SHARED, ids=lambda path: path.stem)

Parse = Callable[..., dict[str, Any]]


def references(node: Any) -> Iterator[str]:
    """List the paths of YAML files that a config refers to, as it writes them."""
    if isinstance(node, str) and node.endswith(".yaml"):
        yield node
    elif isinstance(node, dict | list):
        for value in node.values() if isinstance(node, dict) else node:
            yield from references(value)


def read(path: Path) -> list[Any]:
    """The content of a config and of every file that it refers to."""
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    parts = [content]
    for reference in references(content):
        parts += read(path.parent / reference)
    return parts


def class_paths(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        if "class_path" in node:
            yield node["class_path"]
        for value in node.values():
            yield from class_paths(value)
    elif isinstance(node, list):
        for value in node:
            yield from class_paths(value)


@pytest.fixture
def parse(cli: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> Parse:
    """Return the configuration that the command line builds from its arguments."""

    def printed(*arguments: str) -> dict[str, Any]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli(*arguments, "--print_config")
        out, complaint = capsys.readouterr()
        assert ended.value.code == 0, complaint
        return yaml.safe_load(out)

    return printed


def test_there_are_configs_to_check() -> None:
    assert CONFIGS
    assert SHARED


def test_every_file_has_a_place() -> None:
    tasks = (FOLDER / "tasks").glob("*.yaml")
    assert sorted(path for path in FOLDER.rglob("*") if path.is_file()) == sorted(
        [*CONFIGS, *SHARED, *tasks]
    ), "A file in `configs/` is a run (`*.yaml`), `shared/*.yaml` or `tasks/*.yaml`."


@every_config
@pytest.mark.parametrize("subcommand", ["fit", "validate"])
def test_the_command_line_parses_it(config: Path, subcommand: str, parse: Parse) -> None:
    (given, *shared) = read(config)
    if "variants" in given:
        subcommand = {"fit": "sweep", "validate": "search"}[subcommand]
        if subcommand == "search" and "grid" not in given:
            subcommand = "sweep"
    result = parse(subcommand, "--config", str(config))
    # What the file and its shared parts name is in the result: nothing was dropped.
    assert set(class_paths([given, *shared])) <= set(class_paths(result))
    models = [part for part in (given["model"], *shared) if isinstance(part, dict)]
    assert result["model"]["source"] in [model.get("source") for model in models]
    # Two configs never write into one folder.
    assert result["trainer"]["default_root_dir"] == f"runs/{config.stem}"
    assert result["trainer"]["logger"]["init_args"]["name"] == config.stem


@every_config
def test_every_class_can_be_imported(config: Path) -> None:
    paths = list(class_paths(read(config)))
    assert paths
    for path in paths:
        module, _, name = path.rpartition(".")
        assert isinstance(getattr(importlib.import_module(module), name), type)


@every_config
def test_the_header_says_how_it_is_started(config: Path) -> None:
    header = config.read_text(encoding="utf-8").split("\n\n")[0]
    given = read(config)[0]
    command = "search" if "grid" in given else "sweep" if "variants" in given else "fit"
    started = f"#   prunelit {command} --config configs/{config.name}\n"
    assert started in header or "#   sbatch scripts/slurm.sh\n" in header


@every_shared
def test_a_shared_file_is_used(path: Path) -> None:
    used = {
        (config.parent / reference).resolve()
        for config in [*CONFIGS, *SHARED]
        for reference in references(yaml.safe_load(config.read_text(encoding="utf-8")))
    }
    assert path.resolve() in used, f"No config refers to {path.name}: delete it."


def test_single_keys_of_a_shared_file_can_be_changed(parse: Parse, tmp_path: Path) -> None:
    before = parse("fit", "--config", str(FOLDER / "wanda.yaml"))
    (tmp_path / "second.yaml").write_text("data: {calibration: {sequences: 4}}")
    second = ("--config", str(tmp_path / "second.yaml"))
    options = ("--data.calibration.length", "64", "--model.source", "mine")
    after = parse("fit", "--config", str(FOLDER / "wanda.yaml"), *second, *options)
    before["data"]["calibration"] |= {"sequences": 4, "length": 64}
    before["model"]["source"] = "mine"
    assert after == before


@pytest.mark.parametrize("subcommand", ["fit", "sweep"])
def test_the_saved_configuration_needs_no_shared_file(
    subcommand: str,
    tmp_path: Path,
    make_config: Callable[[Path], dict[str, Any]],
    save_config: Callable[[Path, dict[str, Any]], Path],
    cli: Callable[..., None],
    parse: Parse,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = make_config(tmp_path)
    config["data"]["tasks"] = config["data"]["tasks"][1:2]
    if subcommand == "sweep":
        pruner = config.pop("pruning")["init_args"]["pruner"]
        config["variants"] = {"first": pruner}
    (tmp_path / "shared").mkdir()
    for part in ("model", "data"):
        (tmp_path / "shared" / f"{part}.yaml").write_text(yaml.safe_dump(config[part]))
        config[part] = f"shared/{part}.yaml"
    path = save_config(tmp_path, config)
    expected = parse(subcommand, "--config", str(path))
    monkeypatch.chdir(tmp_path)
    cli(subcommand, "--config", str(path))
    board = tmp_path / "run" / "board"
    (saved,) = board.rglob("config.yaml")
    assert not list(references(yaml.safe_load(saved.read_text(encoding="utf-8"))))
    assert parse(subcommand, "--config", str(saved)) == expected
