"""Runs that must end with one sentence on stderr, status 2, nothing pruned and nothing written."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

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
