"""Files of an earlier run in the same folder: none is replaced without a word."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from prunelit.report.results import read_results

Cli = Callable[..., None]


@pytest.fixture
def config(
    tmp_path: Path, make_config: Callable[[Path], dict[str, Any]], save_config: Any
) -> Callable[..., str]:
    """`config(limit=3)` writes the configuration of a run with one quick task."""

    def write(limit: int = 3, logger: bool = True) -> str:
        given = make_config(tmp_path) | {"speed": True}
        given["data"]["tasks"] = given["data"]["tasks"][1:2]
        given["data"]["tasks"][0]["init_args"]["limit"] = limit
        if not logger:
            given["trainer"]["logger"] = False
        return str(save_config(tmp_path, given))

    return write


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("logger", [True, False])
def test_a_run_with_other_settings_keeps_what_is_there(
    logger: bool,
    config: Callable[..., str],
    cli: Cli,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    folder = tmp_path / "run" / ("board/only" if logger else ".")
    cli("fit", "--config", config(logger=logger))
    # The same settings and results replace nothing.
    cli("validate", "--config", config(logger=logger))
    # Verdicts are decided anew, of the scores that are there.
    cli("validate", "--config", config(logger=logger), "--keep", "0.5", "--fail_on", "loses")
    assert "keep: 0.5" in (folder / "config.yaml").read_text()
    cli("validate", "--config", config(logger=logger))
    assert not list(folder.glob("earlier_*"))
    assert "configuration were here" not in caplog.text
    before = {path: path.read_bytes() for path in folder.glob("*.*") if path.is_file()}
    figures = {path.name: path.read_bytes() for path in (folder / "figures").iterdir()}
    cli("validate", "--config", config(limit=2, logger=logger))
    (kept,) = folder.glob("earlier_*")
    assert f"Files of another configuration were here; they are now in {kept}." in caplog.text
    assert {path.name: path.read_bytes() for path in (kept / "figures").iterdir()} == figures
    files = ["config.yaml", "environment.json", "gains.json", "results.jsonl", "report.html"]
    files += ["hparams.yaml"] if logger else []
    assert names(kept) == sorted([*files, "figures"])
    for name in files:
        assert (kept / name).read_bytes() == before[folder / name]
        assert (folder / name).is_file()
    assert [row.n for row in read_results(kept / "results.jsonl")][:1] == [3]
    assert [row.n for row in read_results(folder / "results.jsonl")][:1] == [2]
    (task,) = yaml.safe_load((folder / "config.yaml").read_text())["data"]["tasks"]
    assert task["init_args"]["limit"] == 2


def test_other_results_of_the_same_settings_keep_the_options_too(
    config: Callable[..., str], cli: Cli, tmp_path: Path
) -> None:
    cli("validate", "--config", config())
    folder = tmp_path / "run" / "board" / "only"
    text = (folder / "results.jsonl").read_text()
    (folder / "results.jsonl").write_text(text.replace('"n": 3', '"n": 4', 1))
    options = (folder / "hparams.yaml").read_bytes()
    cli("validate", "--config", config())
    assert (folder / "results.jsonl").read_text() == text
    assert (folder / "earlier_1" / "hparams.yaml").read_bytes() == options
    assert (folder / "hparams.yaml").is_file()


def test_the_saved_configuration_repeats_the_run(
    config: Callable[..., str], cli: Cli, tmp_path: Path
) -> None:
    cli("validate", "--config", config())
    folder = tmp_path / "run" / "board" / "only"
    saved = (folder / "config.yaml").read_bytes()
    assert saved.startswith(b"# lightning.pytorch==")
    cli("validate", "--config", str(folder / "config.yaml"))
    assert (folder / "config.yaml").read_bytes() == saved
    assert not list(folder.glob("earlier_*"))
