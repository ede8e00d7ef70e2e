"""Every task file that is shipped is an item of a list of tasks: in a config or a command."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

FOLDER = Path(__file__).parents[2] / "configs"
# Whole runs lie in the folder above, see `test_configs.py`.
TASKS = sorted((FOLDER / "tasks").glob("*.yaml"))

every_task = pytest.mark.parametrize("path", TASKS, ids=lambda path: path.stem)
Parse = Callable[..., list[dict[str, Any]]]


@pytest.fixture
def parse(cli: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> Parse:
    """Return the list of tasks that the command line builds from its arguments."""

    def tasks(*arguments: str) -> list[dict[str, Any]]:
        with pytest.raises(SystemExit) as left:
            cli("validate", *arguments, "--print_config")
        printed, complaint = capsys.readouterr()
        assert left.value.code == 0, complaint
        return yaml.safe_load(printed)["data"]["tasks"]

    return tasks


def contains(found: Any, given: Any) -> bool:
    """Return True if `found` contains everything in `given`; it has defaults too."""
    if isinstance(given, dict):
        return all(contains(found[name], value) for name, value in given.items())
    return found == given


def test_there_are_tasks_to_check() -> None:
    assert len(TASKS) >= 19


@every_task
def test_it_is_a_single_task(path: Path) -> None:
    assert list(yaml.safe_load(path.read_text(encoding="utf-8"))) == ["class_path", "init_args"]


@every_task
def test_added_on_the_command_line_with_rows_of_ones_own(path: Path, parse: Parse) -> None:
    given = yaml.safe_load(path.read_text(encoding="utf-8"))
    config = ("--config", str(FOLDER / "wanda.yaml"))
    found = parse(*config, f"--data.tasks+={path}", "--data.tasks.path", "rows.jsonl")
    before = yaml.safe_load((FOLDER / "shared" / "data.yaml").read_text(encoding="utf-8"))
    assert len(found) == len(before["tasks"]) + 1
    assert found[-1]["class_path"] == given["class_path"]
    for name, value in {**given["init_args"], "path": "rows.jsonl"}.items():
        assert contains(found[-1]["init_args"][name], value), name
    # The name of the file is that of the task, so that results of two files never mix.
    assert found[-1]["init_args"]["name"] == path.stem


@every_task
def test_the_header_says_how_it_is_used(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert f"tasks: [tasks/{path.name}]" in text
    assert f"--data.tasks+=configs/tasks/{path.name}" in text


def test_all_in_one_list(parse: Parse) -> None:
    config = ("--config", str(FOLDER / "wanda.yaml"))
    found = parse(*config, "--data.tasks", f"[{', '.join(map(str, TASKS))}]")
    assert [task["init_args"]["name"] for task in found] == [path.stem for path in TASKS]


def test_named_in_a_config_relative_to_it(tmp_path: Path, parse: Parse) -> None:
    config = yaml.safe_load((FOLDER / "wanda.yaml").read_text(encoding="utf-8"))
    (tmp_path / "tasks").mkdir()
    for path in TASKS:
        (tmp_path / "tasks" / path.name).write_text(path.read_text(encoding="utf-8"))
    own = {
        "class_path": "prunelit.tasks.MultipleChoice",
        "init_args": {"path": "prunelit:facts.jsonl"},
    }
    config["model"] = {"source": "unread"}
    config["data"] = {"tasks": [*(f"tasks/{path.name}" for path in TASKS), own]}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    found = parse("--config", str(tmp_path / "config.yaml"))
    assert [task["init_args"]["name"] for task in found] == [
        *(path.stem for path in TASKS),
        "multiple_choice",
    ]


def test_a_list_given_anew_replaces_the_earlier_one(parse: Parse, tmp_path: Path) -> None:
    # jsonargparse would keep the options of an earlier item at the same place: the limit, say.
    for name in ("arc_easy", "piqa"):
        task = {"class_path": "prunelit.tasks.MultipleChoice", "init_args": {"path": name}}
        if name == "arc_easy":
            task["init_args"] |= {"limit": 7, "subset": "ARC-Easy", "few_shot": {"count": 3}}
        config = {"model": {"source": "unread"}, "data": {"tasks": [task]}}
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    first, second = (str(tmp_path / f"{name}.yaml") for name in ("arc_easy", "piqa"))
    alone = parse("--config", second)
    assert alone[0]["init_args"]["limit"] is None
    assert parse("--config", first, "--config", second) == alone
    # Options of the last item change it still.
    (changed,) = parse("--config", first, "--data.tasks.batch_size", "5")
    assert changed["init_args"]["limit"] == 7
    assert changed["init_args"]["batch_size"] == 5
    files = [f"[{FOLDER / 'tasks' / name}.yaml]" for name in ("arc_easy", "piqa")]
    (piqa,) = parse("--config", first, "--data.tasks", files[1])
    assert piqa == parse("--config", second, "--data.tasks", files[1])[0]
    assert piqa["init_args"]["subset"] is None
    (other,) = parse("--config", first, "--data.tasks", files[0], "--data.tasks.limit", "2")
    assert (other["init_args"]["limit"], other["init_args"]["few_shot"]) == (2, None)
