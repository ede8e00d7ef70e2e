"""Every YAML file that is shipped parses, and everything it names is there."""

import importlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

FOLDER = Path(__file__).parents[2] / "configs"
# A single task is no run, see `test_task_configs.py`.
CONFIGS = sorted(path for path in FOLDER.rglob("*.yaml") if path.parent != FOLDER / "tasks")

every_config = pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)


def class_paths(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        if "class_path" in node:
            yield node["class_path"]
        for value in node.values():
            yield from class_paths(value)
    elif isinstance(node, list):
        for value in node:
            yield from class_paths(value)


def test_there_are_configs_to_check() -> None:
    assert CONFIGS


@every_config
@pytest.mark.parametrize("subcommand", ["fit", "validate"])
def test_the_command_line_parses_it(
    config: Path,
    subcommand: str,
    cli: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    if "variants" in yaml.safe_load(config.read_text(encoding="utf-8")):
        subcommand = "sweep"
    with pytest.raises(SystemExit) as left:
        cli(subcommand, "--config", str(config), "--print_config")
    printed, complaint = capsys.readouterr()
    assert left.value.code == 0, complaint
    given = yaml.safe_load(config.read_text(encoding="utf-8"))
    result = yaml.safe_load(printed)
    # What the file names is in the result: nothing was dropped.
    assert set(class_paths(given)) <= set(class_paths(result))
    assert result["model"]["source"] == given["model"]["source"]


@every_config
def test_every_class_can_be_imported(config: Path) -> None:
    paths = list(class_paths(yaml.safe_load(config.read_text(encoding="utf-8"))))
    assert paths
    for path in paths:
        module, _, name = path.rpartition(".")
        assert isinstance(getattr(importlib.import_module(module), name), type)
