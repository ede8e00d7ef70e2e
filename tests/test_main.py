"""The console entry that answers without torch."""

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

import prunelit


@pytest.mark.parametrize("arguments", [[], ["-h"], ["--help"]])
def test_help(arguments: list[str], cli: Callable[..., None], capsys: Any) -> None:
    cli(*arguments)
    text = capsys.readouterr().out
    assert "usage: prunelit" in text
    assert "--print_config" in text
    for subcommand in ("fit", "validate", "compare", "sweep"):
        assert f"\n  {subcommand} " in text


def test_version(cli: Callable[..., None], capsys: Any) -> None:
    cli("--version")
    assert capsys.readouterr().out == f"prunelit {prunelit.__version__}\n"


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_neither_imports_a_library(option: str) -> None:
    program = (
        "import sys; sys.argv = ['prunelit', sys.argv[1]]; before = set(sys.modules)\n"
        "from prunelit.__main__ import main; main()\n"
        "rooms = {name.partition('.')[0] for name in sys.modules.keys() - before}\n"
        "assert rooms - sys.stdlib_module_names == {'prunelit'}, rooms"
    )
    done = subprocess.run([sys.executable, "-c", program, option], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("arguments", [["fti"], ["fit", "--config", "nowhere.yaml"]])
def test_a_refusal_before_torch(arguments: list[str]) -> None:
    program = (
        "import sys; sys.argv = ['prunelit', *sys.argv[1:]]\n"
        "from prunelit.__main__ import main\n"
        "try:\n    main()\nfinally:\n    print('torch' in sys.modules)"
    )
    command = [sys.executable, "-c", program, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "False\n")
    assert done.stderr.startswith("prunelit: error: ")
    assert done.stderr.count("\n") == 1
