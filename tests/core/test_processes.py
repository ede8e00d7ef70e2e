"""An error in one process of a run ends all processes, and its message is shown."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import prunelit.core.processes
from prunelit.core.processes import end_together
from prunelit.errors import InputError
from prunelit.report.results import read_results
from prunelit.trainer import PruneTrainer

# Fails on one rank and in one method, while the others wait in a collective or are busy.
FAILING = """
import os, time
from dataclasses import replace
from prunelit.errors import InputError
from prunelit.pruning.recovery import Recovery
from prunelit.tasks import Perplexity

ANY = -1

class Failing(Perplexity):
    def __init__(self, path: str, rank: int, method: str, error: str, busy: float):
        super().__init__(path, length=12, limit=5, batch_size=1)
        self.fails = rank, method, error, busy

    def fail(self, here):
        rank, method, error, busy = self.fails
        if method == here:
            if rank in (ANY, int(os.environ.get("LOCAL_RANK", 0))):
                kind = {"InputError": InputError, "RuntimeError": RuntimeError}[error]
                raise kind(f"Rank {rank} has had enough.")
            time.sleep(busy)

    def prepare(self, tokenizer):
        self.fail("prepare")
        return super().prepare(tokenizer)

    def check(self, model):
        self.fail("check")

    def step(self, pair, batch):
        self.fail("step")
        return super().step(pair, batch)

    def report(self, table):
        self.fail("report")
        return super().report(table)

class Slow(Perplexity):
    # Longer at it than Lightning's first process takes to see that another one is gone.
    def items(self):
        time.sleep(7)
        yield {"item": 0}

    def report(self, table):
        return replace(super().report(table), items=self.items())

losses, batches = Recovery.losses, []

def failing(recovery, *arguments):
    batches.append(arguments)
    if len(batches) == 2 and os.environ.get("LOCAL_RANK", "0") == os.environ.get("FAILING"):
        raise InputError("It has had enough of training.")
    return losses(recovery, *arguments)

Recovery.losses = failing
"""


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("devices", "rank", "method", "error", "busy"),
    [
        pytest.param(3, 1, "step", "RuntimeError", 0, marks=pytest.mark.full),
        pytest.param(2, 1, "prepare", "InputError", 0, marks=pytest.mark.full),
        pytest.param(2, 0, "check", "RuntimeError", 0, marks=pytest.mark.full),
        (2, 1, "step", "InputError", 100),
        pytest.param(2, 0, "report", "InputError", 100, marks=pytest.mark.full),
    ],
)
def test_an_error_on_one_rank_ends_all(
    devices: int,
    rank: int,
    method: str,
    error: str,
    busy: float,
    tmp_path: Path,
    make_config: Callable[[Path], dict[str, Any]],
    save_config: Callable[..., Path],
    console: Callable[..., Any],
) -> None:
    (tmp_path / "failing.py").write_text(FAILING)
    config = make_config(tmp_path)
    arguments = {"rank": rank, "method": method, "error": error, "busy": busy}
    arguments["path"] = config["data"]["calibration"]["path"]
    config["data"] = {"tasks": [{"class_path": "failing.Failing", "init_args": arguments}]}
    del config["pruning"]
    config["trainer"] |= {"devices": devices, "strategy": "ddp"}
    save_config(tmp_path, config)
    begin = time.monotonic()
    # It reads its pipes to the end, which comes only when every process that holds them has ended.
    done = console(tmp_path, "validate", "--config", "config.yaml")
    assert time.monotonic() - begin < 60
    assert f"Starting with {devices} processes" in done.stderr
    assert f"Rank {rank} has had enough." in done.stderr
    # Status of the first process: its launcher kills it if another process has ended before.
    status = 2 if error == "InputError" else 1
    assert done.returncode in ({status, -9} if rank else {status})
    tracebacks = [line for line in done.stderr.splitlines() if "Traceback" in line]
    expected = (
        [] if error == "InputError" else [f"[rank{rank}]: Traceback (most recent call last):"]
    )
    assert tracebacks == expected
    assert ("This is a bug" in done.stderr or "Your own" in done.stderr) == bool(expected)
    assert not list(tmp_path.rglob("results.jsonl"))


def small(task: str, **arguments: Any) -> dict[str, Any]:
    return {"class_path": f"failing.{task}", "init_args": arguments}


@pytest.mark.distributed
def test_what_others_measured_is_written_before_all_end(
    tmp_path: Path,
    make_config: Callable[[Path], dict[str, Any]],
    save_config: Callable[..., Path],
    forked: Callable[..., Any],
) -> None:
    (tmp_path / "failing.py").write_text(FAILING)
    config = make_config(tmp_path)
    path = config["data"]["calibration"]["path"]
    wrong = {"rank": -1, "method": "report", "error": "InputError", "busy": 0}
    slow = small("Slow", path=path, length=12, limit=5, name="slow")
    config["data"] = {"tasks": [small("Failing", path=path, **wrong), slow]}
    del config["pruning"]
    config["trainer"] |= {"devices": 2, "strategy": "ddp"}
    save_config(tmp_path, config)
    done = forked(tmp_path, "validate", "--config", "config.yaml")
    assert done.returncode == 2
    assert "[rank0]: prunelit: error: Rank -1 has had enough." in done.stderr
    (file,) = tmp_path.rglob("results.jsonl")
    assert {row.task for row in read_results(file)} == {"slow"}
    assert (file.parent / "items" / "slow.parquet").is_file()
    assert (file.parent / "figures" / "scores.png").is_file()


SCRIPT = """
import os, sys
from failing import Failing
from prunelit import InputError
from prunelit.core.datamodule import PruneData
from prunelit.core.module import PairedLM
from prunelit.tasks import Perplexity
from prunelit.trainer import PruneTrainer

model, path = sys.argv[1:]
trainer = PruneTrainer(
    accelerator="cpu", devices=2, strategy="ddp", max_epochs=0, logger=False,
    enable_progress_bar=False,
)
module = PairedLM(model)
for task in (Failing(path, -1, "report", "InputError", 0), Perplexity(path, length=12)):
    try:
        trainer.validate(module, datamodule=PruneData(tasks=[task]))
        sys.stderr.write(f"done {task.name}\\n")  # in one piece
    except InputError as error:
        sys.stderr.write(f"caught {error}\\n")
"""


@pytest.mark.distributed
@pytest.mark.full
def test_a_script_may_go_on_after_an_error_on_all_ranks(tmp_path: Path, material: Path) -> None:
    (tmp_path / "failing.py").write_text(FAILING)
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [sys.executable, "script.py", str(material / "dense"), str(material / "text.jsonl")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60,
        check=True,
    )  # fmt: skip
    assert done.stderr.count("caught Rank -1 has had enough.") == 2
    assert done.stderr.count("done perplexity") == 2


@pytest.mark.distributed
@pytest.mark.parametrize("rank", [0, pytest.param(1, marks=pytest.mark.full)])
def test_an_error_in_training_on_one_rank_ends_all(
    rank: int,
    tmp_path: Path,
    make_config: Callable[[Path], dict[str, Any]],
    save_config: Callable[..., Path],
    forked: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FAILING", str(rank))
    (tmp_path / "failing.py").write_text(FAILING)
    config = make_config(tmp_path)
    path = config["data"]["calibration"]["path"]
    config["data"]["tasks"] = [small("Slow", path=path, length=12, limit=5)]
    config["data"]["recovery"] = {"path": path, "sequences": 8, "length": 16, "batch_size": 1}
    config["trainer"] |= {"devices": 2, "strategy": "ddp", "max_epochs": 2}
    save_config(tmp_path, config)
    begin = time.monotonic()
    done = forked(tmp_path, "fit", "--config", "config.yaml")
    assert time.monotonic() - begin < 60
    assert f"[rank{rank}]: prunelit: error: It has had enough of training." in done.stderr
    assert done.returncode in ({2, -9} if rank else {2})
    # A process that waits for the gradients of the other prints one sentence, too.
    assert "Traceback" not in done.stderr


@pytest.fixture
def start() -> Callable[[str], PruneTrainer]:
    """`start(code)`: a Trainer whose launcher has started one process, which runs `code`."""

    def run(code: str) -> PruneTrainer:
        trainer = PruneTrainer(
            accelerator="cpu", devices=2, strategy="ddp", logger=False, enable_progress_bar=False
        )
        launcher: Any = trainer.strategy.launcher
        launcher.procs = [subprocess.Popen([sys.executable, "-c", code])]
        return trainer

    return run


def statuses(trainer: PruneTrainer) -> list[int | None]:
    launcher: Any = trainer.strategy.launcher
    return [process.returncode for process in launcher.procs]


def test_the_first_process_ends_last(start: Callable[[str], PruneTrainer]) -> None:
    with end_together(trainer := start("import time; time.sleep(0.5)")):
        assert statuses(trainer) == [None]
    assert statuses(trainer) == [0]


def test_a_late_failure_counts(start: Callable[[str], PruneTrainer]) -> None:
    trainer = start("raise SystemExit(3)")
    with pytest.raises(SystemExit) as left, end_together(trainer):
        pass
    assert left.value.code == 1


def test_a_killed_process_is_named(
    start: Callable[[str], PruneTrainer], capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = start("import os; os.kill(os.getpid(), 9)")
    with pytest.raises(SystemExit) as left, end_together(trainer):
        pass
    assert left.value.code == 1
    launcher: Any = trainer.strategy.launcher
    expected = f"The process {launcher.procs[0].pid} was ended by SIGKILL, after the results"
    assert expected in capsys.readouterr().err


def test_a_process_that_does_not_end_is_ended(
    start: Callable[[str], PruneTrainer],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(prunelit.core.processes, "_DONE", 0.1)
    trainer = start("import time; time.sleep(100)")
    with pytest.raises(SystemExit) as left, end_together(trainer):
        pass
    assert left.value.code == 1
    assert "Killed a process that still ran 0.1 s after the run ended" in capsys.readouterr().err
    assert statuses(trainer) == [-9]


def test_a_single_process_keeps_its_error() -> None:
    trainer = PruneTrainer(accelerator="cpu", logger=False, enable_progress_bar=False)
    with pytest.raises(InputError, match="as it was"), end_together(trainer):
        raise InputError("as it was")


@pytest.mark.parametrize(
    ("text", "collective"),
    [
        ("No such file: /home/gloomy/NCCL.txt", False),
        ("[/pytorch/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer", True),
    ],
)
def test_only_an_error_of_a_collective_is_taken_for_one(text: str, collective: bool) -> None:
    with pytest.raises(RuntimeError) as raised:
        raise RuntimeError(text)
    assert (prunelit.core.processes._collective(raised.value) is not None) == collective
