"""Configuration files are checked before libraries are imported, and the line of a key is found."""

from pathlib import Path

import pytest

from prunelit import InputError
from prunelit.core.config_files import check_configs, config_paths, name_place

CLASS = "data:\n  tasks:\n    - class_path: prunelit.tasks.Perplexity\n"


def write(folder: Path, **files: str) -> list[str]:
    for name, text in files.items():
        (folder / f"{name}.yaml").write_text(text, encoding="utf-8")
    return [str(folder / "run.yaml")]


@pytest.mark.parametrize(
    ("arguments", "paths"),
    [
        ([], []),
        (["fit", "--config"], []),
        (["fit", "-c", "a.yaml", "--model.dtype", "auto", "--config=b"], ["a.yaml", "b"]),
        (["fit", "--config", "model: {}", "--config", '{"a": 1}', "--config", "-"], []),
    ],
)
def test_the_files_of_a_command(arguments: list[str], paths: list[str]) -> None:
    assert config_paths(arguments) == paths


def test_similar_names_of_a_missing_file(tmp_path: Path) -> None:
    write(tmp_path, wanda="model: {}\n")
    with pytest.raises(InputError, match=r"wnada.yaml' does not exist \(similar: '.*wanda.yaml'\)"):
        check_configs([str(tmp_path / "wnada.yaml")])


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("model: shared/modl.yaml\n", r"shared/modl.yaml', named in line 1 of '.*run.yaml', does"),
        (
            "data:\n  tasks:\n    - task.yaml\n",
            r"task.yaml', named in line 3 of '.*run.yaml', does",
        ),
        ("model: part.yaml\n", r"part.yaml', named in line 1 of .* no valid YAML: .* in line 2\."),
        ("model:\n  a: 1\n b: 2\n", r"run.yaml' is no valid YAML: expected .* in line 3\. Check"),
        ("model: 'open\n", r"run.yaml' is no valid YAML: found unexpected end of stream in line 2"),
        ("model: {a: 1]\n", r"run.yaml' is no valid YAML: .* in line 1"),
        ("a: 1\n---\nb: 2\n", "expected a single document .* but found another .* in line 2"),
        ("", r"run.yaml' holds no options: expected keys such as `model`"),
        ("- model\n", "run.yaml' holds no options"),
        ("a: " + "[" * 3000 + "]" * 3000, "run.yaml' is nested too deeply"),
        (CLASS + "      init_arg: {}\n", "line 4 has the key 'init_arg' .*: write `init_args`"),
        (CLASS + "      init_args: {}\n      limit: 3\n", "line 5 .*'limit' .* under `init_args`"),
        (CLASS + "      init_args: '{limit: 3}'\n", "expected `init_args` in line 4 .* as options"),
        (CLASS.replace("class_path", "clas_path") + "      init_args: {}\n", "write `class_path`"),
        (CLASS.replace("prunelit.tasks.Perplexity", "3"), "`class_path` in line 3 .* but got '3'"),
        ("model: {}\ndata: 3\n", "run.yaml' has '3' as `data` in line 2: put options below it"),
        ("data: []\n", "run.yaml' has a list as `data` in line 1"),
        ("trainer:\n", "run.yaml' has '' as `trainer` in line 1"),
    ],
    ids=range(18),
)
def test_refused(tmp_path: Path, content: str, reason: str) -> None:
    paths = write(tmp_path, run=content, part="a: 1\nb: *c\n")
    with pytest.raises(InputError, match=reason):
        check_configs(paths)


@pytest.mark.parametrize(
    "content",
    [
        "model: part.yaml\ntrainer: {default_root_dir: a.yaml}\n",
        CLASS + "      init_args: {path: rows.yaml}\n",
        "a: &a {init_args: {limit: 3}}\nb: {<<: *a, class_path: mine.Task}\n",
        "data: {tasks: list.yaml, calibration: none.yaml}\n",
        "model: run.yaml\n",  # a circle, for which jsonargparse has a sentence
    ],
    ids=range(5),
)
def test_accepted(tmp_path: Path, content: str) -> None:
    files = {"part": "source: a\n", "list": "- mine.Task\n", "none": "# nothing\n"}
    check_configs(write(tmp_path, run=content, **files))


def test_a_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is a folder: name a YAML file in it"):
        check_configs([str(tmp_path)])


@pytest.mark.parametrize(
    ("key", "owner", "value", "line"),
    [
        ("model.dtype", None, None, "line 2 of '{}/model.yaml'"),
        ("data.tasks", None, None, "line 3 of '{}/run.yaml'"),
        ("limit", "Perplexity", None, "line 6 of '{}/run.yaml'"),
        ("limit", "Perplexity", "8", "line 9 of '{}/run.yaml'"),
        ("limit", "Perplexity", "9", None),  # of the command line
        ("data.tasks", None, "[1]", "line 3 of '{}/run.yaml'"),
        ("limit", "Deviation", None, None),
        ("length", "CalibrationText", None, "line 11 of '{}/run.yaml'"),
        ("model.typo", None, None, None),
    ],
)
def test_the_line_of_a_key(
    tmp_path: Path, key: str, owner: str | None, value: str | None, line: str | None
) -> None:
    task = "    - class_path: prunelit.tasks.Perplexity\n      init_args:\n        limit: {}\n"
    text = "model: model.yaml\ndata:\n  tasks:\n" + task.format(4) + task.format(8)
    paths = write(
        tmp_path,
        run=text + "  calibration:\n    length: 2\n",
        model="source: a\ndtype: auto\n",
    )
    expected = "" if line is None else f" ({line.format(tmp_path)})"
    assert name_place(paths, key, owner, value) == expected
