"""`--allow_code_execution`: without it no program that a model wrote is run."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prunelit.core.datamodule import PruneData
from prunelit.report.results import read_results
from prunelit.tasks import Generation, Perplexity
from prunelit.tasks.judges import Execution
from prunelit.tasks.judges.sandbox import Outcome


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    path = tmp_path / "programs.jsonl"
    rows = [
        {
            "prompt": f"def f{n}():\n",
            "entry_point": f"f{n}",
            "test": f"def check(f): assert f() == {n}",
            "canonical_solution": f"    return {n}",
        }
        for n in range(2)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The programs that would have been run, all of which end well."""
    found: list[str] = []

    def run(program: str, *_: Any) -> Outcome:
        found.append(program)
        return Outcome(True, False, "")

    monkeypatch.setattr("prunelit.tasks.judges.judge.run_program", run)
    monkeypatch.setattr("prunelit.tasks.judges.judge.check_isolation", lambda: None)
    return found


@pytest.fixture
def validate(
    tmp_path: Path,
    programs: Path,
    make_config: Callable[[Path], dict[str, Any]],
    save_config: Callable[..., Path],
    cli: Callable[..., None],
) -> Callable[..., set[str]]:
    """`validate(*options)` gives the names of the metrics."""

    def run(*options: str) -> set[str]:
        config = make_config(tmp_path)
        # The file that is shipped, on rows of two functions.
        shipped = Path(__file__).parents[1] / "configs" / "tasks" / "humaneval.yaml"
        config["data"]["tasks"] = [str(shipped)]
        path = save_config(tmp_path, config)
        more = ("--data.tasks.path", str(programs), "--data.tasks.max_new_tokens", "4")
        cli("validate", "--config", str(path), *more, *options)
        rows = read_results(tmp_path / "run" / "board" / "only" / "results.jsonl")
        return {row.metric for row in rows}

    return run


def test_nothing_is_run_and_one_sentence_says_how(
    validate: Callable[..., set[str]], ran: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    assert "passed" not in validate()
    assert ran == []
    assert "saved but not run" in caplog.text
    assert "set `--allow_code_execution true`" in caplog.text


@pytest.mark.parametrize("value", [["true"], []])
def test_the_option_runs_what_both_models_wrote(
    validate: Callable[..., set[str]],
    ran: list[str],
    caplog: pytest.LogCaptureFixture,
    value: list[str],
) -> None:
    assert "passed" in validate("--allow_code_execution", *value)
    assert len(ran) == 2 * 2
    assert "allow_code_execution" not in caplog.text


def test_the_same_in_python() -> None:
    tasks = [Generation("unread", judge=Execution()), Perplexity("unread")]
    PruneData(tasks=tasks)
    judge = tasks[0].judge
    assert isinstance(judge, Execution)
    assert not judge.allowed
    PruneData(tasks=tasks, allow_code_execution=True)
    assert judge.allowed
