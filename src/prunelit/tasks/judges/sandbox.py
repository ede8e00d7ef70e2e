"""Run programs of a model in a sandbox."""

import json
import math
import os
import platform
import secrets
import subprocess
import sys
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from prunelit.errors import InputError
from prunelit.tasks.judges import jail

_SYSTEM = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/etc/ld.so.cache")

# Every action of the probe must fail. Otherwise the kernel does not isolate the program.
_PROBE = """
import ctypes, os, socket
def refused(action):
    try:
        action()
    except OSError:
        return True
assert os.listdir() == [], "the folder is not empty"
assert refused(lambda: os.fork() or os._exit(1)), "a process was started"
assert refused(lambda: open("/program.py", "a")), "a file was opened for writing"
assert refused(lambda: socket.create_connection(("127.0.0.1", 9), 1)), "a network was there"
assert refused(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).connect(("1.1.1.1", 9)))
assert refused(lambda: os.listdir("/proc")), "other processes can be seen"
assert ctypes.CDLL(None).unshare(0x10000000), "a user namespace was made"
"""


@dataclass(frozen=True)
class Limits:
    """Limits of a program.

    Args:
        cpu_seconds: of processor time.
        seconds: of wall-clock time, including the start of the interpreter.
        memory: bytes of address space.
        file: bytes of its largest file, and of its output.
        folder: bytes of all its files.
        open_files: at the same time.

    Raises:
        InputError: if a limit is not positive.

    Example:
        >>> from prunelit.tasks.judges import Limits
        >>> Limits(seconds=5).open_files
        64
    """

    cpu_seconds: int = 5
    seconds: float = 30.0
    memory: int = 1 << 30
    file: int = 1 << 20
    folder: int = 1 << 24
    open_files: int = 64

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not 0 < value < math.inf:
                raise InputError(f"Expected a positive limit `{name}` but got {value}.")


@dataclass(frozen=True)
class Outcome:
    """Result of running a program.

    Args:
        finished: it ran to its last line. A program that is made to deceive can read its own source
            and pretend this.
        timed_out: it was killed because of `Limits.seconds`.
        output: its stdout and stderr.
    """

    finished: bool
    timed_out: bool
    output: str


def check_isolation() -> None:
    """Refuse a machine on which `run_program` is not safe.

    Raises:
        InputError: if the machine cannot isolate a program; it says why.
    """
    outcome = run_program(_PROBE)
    if not outcome.finished:
        lines = outcome.output.strip().splitlines()
        _refuse(lines[-1] if lines else "the probe gave no output")


def run_program(code: str, limits: Limits | None = None) -> Outcome:
    """Run Python code in an isolated process, see `prunelit.tasks.judges.jail`.

    The program can import the standard library, but no installed package, and it sees no file of
    the user. System V shared memory has no limit. Only code that calls the C library can allocate
    it, and it is freed when the program ends.

    Args:
        code: of the program.
        limits: of the program; None takes the defaults.

    Raises:
        InputError: if the machine cannot isolate the program, which is not run then.
    """
    if sys.platform != "linux":
        _refuse(f"{platform.system()} has no namespaces")
    limits = limits or Limits()
    python, paths = _interpreter()
    # The exit status is not enough: a program that exits before its tests has the status 0 too.
    token = secrets.token_hex(16)
    with tempfile.TemporaryDirectory(prefix="prunelit-") as root, tempfile.TemporaryFile() as out:
        plan = {
            "root": root,
            "paths": paths,
            "python": python,
            "scratch": limits.folder,
            "limits": {
                "RLIMIT_AS": limits.memory,
                "RLIMIT_CORE": 0,
                "RLIMIT_CPU": limits.cpu_seconds,
                "RLIMIT_FSIZE": limits.file,
                "RLIMIT_NOFILE": limits.open_files,
                "RLIMIT_NPROC": 0,
            },
        }
        with subprocess.Popen(
            [python, "-I", "-S", "-B", str(jail.__file__), json.dumps(plan)],
            stdin=subprocess.PIPE,
            stdout=out,
            stderr=subprocess.PIPE,
            cwd="/",
            env={},
            start_new_session=True,
        ) as process:
            try:
                # The token has a line of its own, also after output without a final newline.
                last = f"print({chr(10) + token!r}, flush=True)"
                source = f"{code}\n{last}\n".encode(errors="replace")
                _, complaint = process.communicate(source, timeout=limits.seconds)
                timed_out = False
            except subprocess.TimeoutExpired:
                complaint, timed_out = b"", True
            finally:
                # The program dies with this process, whatever it does to survive.
                with suppress(ProcessLookupError):
                    process.kill()
        out.seek(0)
        output = out.read().decode(errors="replace")
    if complaint:
        _refuse(complaint.decode(errors="replace"))
    # Only a line that equals the token counts: a traceback may quote the line that prints it.
    finished = not timed_out and token in output.splitlines()
    return Outcome(finished, timed_out, output.replace(f"\n{token}\n", ""))


def _interpreter() -> tuple[str, list[str]]:
    """Return the base interpreter of a virtual environment, and the paths that it needs."""
    python = os.path.realpath(getattr(sys, "_base_executable", sys.executable))
    own = [
        os.path.join(os.path.realpath(prefix), folder)
        for prefix in (sys.base_prefix, sys.base_exec_prefix)
        for folder in ("lib", "lib64")
    ]
    paths = dict.fromkeys([python, *own, *_SYSTEM])
    return python, [path for path in paths if Path(path).exists()]


def _refuse(reason: str) -> None:
    raise InputError(
        f"This machine cannot isolate the programs of a model ({reason}): remove "
        "`--allow_code_execution`, or use Linux 5.12 or newer with user namespaces."
    )
