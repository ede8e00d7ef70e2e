"""Outcomes of a program, and machines that cannot isolate one."""

import re
import socket
import sys
import textwrap
from pathlib import Path

import pytest

from prunelit import InputError
from prunelit.tasks.judges import jail
from prunelit.tasks.judges.sandbox import Limits, Outcome, check_isolation, run_program

isolated = pytest.mark.usefixtures("isolated")


def run(code: str, limits: Limits | None = None) -> Outcome:
    return run_program(textwrap.dedent(code), limits or Limits(cpu_seconds=2, seconds=20))


@isolated
def test_a_good_program_finishes_and_its_output_is_kept() -> None:
    outcome = run("import math, json\nprint(json.dumps(math.comb(5, 2)))")
    assert outcome == Outcome(finished=True, timed_out=False, output="10\n")


@isolated
@pytest.mark.parametrize(
    "code",
    [
        "assert 1 == 2",
        "def f(:",
        "x = '''",
        "import numpy_that_is_not_there",
        # A program that exits before the tests does not pass them.
        "import sys; sys.exit(0)",
        "import os; os._exit(0)",
        "raise SystemExit",
        "import sys; sys.stdin.read(); quit()",
        "if True:",
        "print('finished')\nassert False",
        "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)",
    ],
)
def test_a_program_that_does_not_reach_its_end_has_not_finished(code: str) -> None:
    outcome = run(code)
    assert not outcome.finished
    assert not outcome.timed_out


@isolated
@pytest.mark.parametrize("code", ["import sys; sys.stdout.close()", "print = None"])
def test_a_program_that_reaches_its_end_has_finished_without_a_word(code: str) -> None:
    assert run(code).finished


@isolated
def test_output_without_a_final_newline_ends_well() -> None:
    assert run("print('yes', end='')") == Outcome(finished=True, timed_out=False, output="yes")


@isolated
def test_programs_are_the_same_each_time() -> None:
    code = "print(hash('a'), list({'a', 'b', 'c', 'd'}))"
    assert len({run(code).output for _ in range(3)}) == 1


@isolated
def test_text_that_is_no_text_is_run_too() -> None:
    assert run("x = 'é東'\nprint(len(x))").output == "2\n"
    assert not run("x = '\ud800'\nassert x == 'a'").finished
    assert not run("\0").finished


def test_other_systems_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(InputError, match="cannot isolate the programs of a model"):
        run_program("print(1)")


def test_a_kernel_that_refuses_is_not_passed_by(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    source = Path(jail.__file__).read_text(encoding="utf-8")
    for call in ("unshare", "pivot_root", "syscall", "mount", "prctl"):
        script = tmp_path / f"{call}.py"
        script.write_text(
            source.replace(
                "    if getattr(_libc, name)(*raw) != 0:",
                f"    if name == {call!r}:\n"
                "        ctypes.set_errno(1)\n"
                f"    if name == {call!r} or getattr(_libc, name)(*raw) != 0:",
            ),
            encoding="utf-8",
        )
        monkeypatch.setattr(jail, "__file__", str(script))
        witness = tmp_path / "witness"
        with pytest.raises(InputError, match=rf"{call}: Operation not permitted|unshare"):
            run_program(f"open({str(witness)!r}, 'w')")
        assert not witness.exists()


def test_an_interpreter_that_does_not_start_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sys._base_executable", "/no/such/python")
    with pytest.raises(InputError, match=r"cannot isolate .*no/such/python"):
        run_program("print(1)")


@pytest.mark.parametrize("weakness", ["processes", "threads", "network", "files"])
@isolated
def test_isolation_that_is_not_complete_is_noticed(
    weakness: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    source = Path(jail.__file__).read_text(encoding="utf-8")
    unfiltered = re.sub(r'    call\("prctl", FILTER_CALLS, .*\n', "", source)
    assert unfiltered != source
    weaker = {
        "processes": unfiltered,
        "threads": source.replace(
            "for name, value in limits.items():\n",
            "for name, value in limits.items():\n        if name == 'RLIMIT_NPROC': continue\n",
        ),
        "network": unfiltered.replace("NEW_PROCESSES | NEW_NETWORK\n", "NEW_PROCESSES\n"),
        "files": source.replace('    make_read_only("/")\n', "").replace(
            "file.write(text)", "os.fchmod(file.fileno(), 0o666), file.write(text)"
        ),
    }[weakness]
    assert weaker != source
    script = tmp_path / "jail.py"
    script.write_text(weaker, encoding="utf-8")
    monkeypatch.setattr(jail, "__file__", str(script))
    if weakness == "network" and not _reachable():
        pytest.skip("this machine has no network to be noticed")
    with pytest.raises(InputError, match="cannot isolate the programs of a model"):
        check_isolation()


def _reachable() -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("1.1.1.1", 9))
        except OSError:
            return False
    return True


@pytest.mark.parametrize("limits", [{"cpu_seconds": 0}, {"seconds": float("inf")}, {"memory": -1}])
def test_limits_that_limit_nothing_are_refused(limits: dict[str, float]) -> None:
    name = next(iter(limits))
    with pytest.raises(InputError, match=f"Expected a positive limit `{name}`"):
        Limits(**limits)
