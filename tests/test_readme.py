"""The code and the commands of README.md are true."""

import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prunelit.models.saving import read_report

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PYTHON = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
SHELL = re.findall(r"```bash\n(.*?)```", README, flags=re.DOTALL)
COMMANDS = [
    command
    for block in SHELL
    for command in block.replace("\\\n", " ").splitlines()
    if command.startswith("prunelit ")
]


@pytest.fixture
def plugins(tmp_path: Path) -> Path:
    """The files of the README, beside which a user starts the command."""
    for block in PYTHON:
        if (name := re.match(r"# (\w+\.py)\n", block)) is not None:
            (tmp_path / name[1]).write_text(block, encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--pruning.pruner", "my_pruner.SquaredWanda"], "my_pruner.SquaredWanda"),
        (["--pruning", "my_callback.TwoSteps"], "my_callback.TwoSteps"),
    ],
)
def test_plugins(
    plugins: Path,
    make_config: Callable[[Path], dict[str, Any]],
    save_config: Callable[[Path, dict[str, Any]], Path],
    console: Callable[..., subprocess.CompletedProcess[str]],
    options: list[str],
    expected: str,
) -> None:
    config = make_config(plugins)
    config["data"]["tasks"] = []
    path = save_config(plugins, config)
    ran = console(
        plugins, "fit", "--config", str(path), *options, "--pruning.pruner.sparsity.ratio", "0.25"
    )
    assert ran.returncode == 0, ran.stderr
    report = read_report(plugins / "run" / "pruned")
    assert report is not None
    named = [report["recipe"][part]["class_path"] for part in ("callback", "pruner")]
    assert expected in named
    assert report["sparsity"] == 0.25


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_parse(
    plugins: Path,
    cli: Callable[..., None],
    command: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = command.partition("#")[0].replace("FILE", "configs/wanda.yaml")
    words = [re.sub(r"(^|=)(?=configs/)", rf"\1{ROOT}/", word) for word in command.split()]
    if not {"--help", "--print_config"} & set(words):
        words.append("--print_config")
    monkeypatch.chdir(plugins)
    monkeypatch.syspath_prepend(str(plugins))
    with pytest.raises(SystemExit) as ended:
        cli(*words[1:])
    assert ended.value.code in (0, None), capsys.readouterr().err
    assert "seed_everything" in capsys.readouterr().out


def test_there_are_commands_and_plugins() -> None:
    assert len(COMMANDS) >= 5
    assert len(PYTHON) == 3


@pytest.mark.model
def test_notebook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (block,) = [block for block in PYTHON if not block.startswith("# my_")]
    names: dict[str, Any] = {}
    exec(compile(block, "README.md", "exec"), names)
    assert names["report"].sparsity == pytest.approx(0.5)
    assert 0.5 < names["result"]["embedding_cosine"] < 1
    assert read_report(tmp_path / "my-pruned-model") is not None
