"""Signals end a run with the status that shells expect, and a sentence that says how to go on."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import prunelit.core.signals
from prunelit.core.signals import Stopped, finish_first, requested, stop_on_signals
from prunelit.pruners import Wanda
from prunelit.tasks import Perplexity

NAMES = ["SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1"]


def send(name: str) -> None:
    os.kill(os.getpid(), signal.Signals[name])


@pytest.mark.parametrize("name", NAMES)
def test_the_status_is_128_plus_the_number(name: str) -> None:
    before = signal.getsignal(signal.Signals[name])
    with pytest.raises(SystemExit) as left, stop_on_signals():
        send(name)
    assert left.value.code == 128 + signal.Signals[name]
    assert signal.getsignal(signal.Signals[name]) == before


def test_a_signal_while_the_process_ends_changes_nothing() -> None:
    before = {name: signal.getsignal(signal.Signals[name]) for name in NAMES}
    try:
        with pytest.raises(Stopped, match="130"), stop_on_signals(last=True):
            send("SIGINT")
        for name in NAMES:
            send(name)
    finally:
        for name, handler in before.items():
            signal.signal(signal.Signals[name], handler)


def test_work_in_progress_ends_first(capfd: pytest.CaptureFixture[str]) -> None:
    with stop_on_signals():
        finish_first("A moment.")
        send("SIGUSR1")
        assert requested() == signal.SIGUSR1
        assert capfd.readouterr().err == "prunelit: SIGUSR1. A moment.\n"
    assert requested() is None


def test_a_second_signal_ends_at_once_but_not_an_echo(monkeypatch: pytest.MonkeyPatch) -> None:
    with stop_on_signals():
        finish_first("")
        send("SIGTERM")
        send("SIGTERM")  # systemd signals every process of a service
        monkeypatch.setattr(prunelit.core.signals, "_REPEATED", 0.0)
        with pytest.raises(Stopped, match="130"):
            send("SIGINT")


def test_what_nohup_ignores_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_on_signals():
            send("SIGHUP")
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_fork_dies_by_the_signal() -> None:
    with stop_on_signals():
        if (child := os.fork()) == 0:
            send("SIGTERM")
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM


def test_a_signal_while_torch_loads_has_its_sentence(tmp_path: Path) -> None:
    # The first module of torch, which sends the signal.
    (tmp_path / "torch.py").write_text("import os, signal; os.kill(os.getpid(), signal.SIGTERM)")
    done = subprocess.run(
        [sys.executable, "-m", "prunelit", "fit"], check=False, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"},
    )  # fmt: skip
    assert done.returncode == 143
    assert done.stderr == "prunelit: Stopped by SIGTERM. Start the same command again.\n"


@pytest.mark.parametrize(
    ("command", "place", "sentence"),
    [
        ("fit", "pruning", "No checkpoint is written yet: start the same command again."),
        ("fit", "measuring", "The pruned model is written: `prunelit validate` with the same"),
        ("validate", "measuring", "The same command continues: "),
        ("sweep", "pruning", "The same command continues: "),
    ],
)
def test_every_command_says_how_to_go_on(
    command: str,
    place: str,
    sentence: str,
    tmp_path: Path,
    make_config: Callable[[Path], dict[str, Any]],
    save_config: Callable[..., Path],
    cli: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = make_config(tmp_path)
    config["data"]["tasks"] = config["data"]["tasks"][1:2]
    owner, name = {"pruning": (Wanda, "prune_block"), "measuring": (Perplexity, "step")}[place]
    monkeypatch.setattr(owner, name, lambda *_: send("SIGTERM"))
    if command == "sweep":
        config["variants"] = {"only": config.pop("pruning")["init_args"]["pruner"]}
        del config["trainer"]["logger"]["init_args"]["version"]
    path = save_config(tmp_path, config)
    with pytest.raises(SystemExit) as left:
        cli(command, "--config", str(path))
    assert left.value.code == 143
    printed = capsys.readouterr().err
    assert f"prunelit: Stopped by SIGTERM. {sentence}" in printed
    assert printed.count("Stopped by") == 1
    assert not list(tmp_path.rglob("results.jsonl"))
    assert not list(tmp_path.rglob("*.partial"))
