"""Programs that a model wrote, run where they can harm nothing."""

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

# Everything here has to fail, or the kernel does not do what it was asked for.
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
    """What a program may use.

    Args:
        cpu_seconds: of processor time; on a busy machine these take longer.
        seconds: of time on the clock, its start included: ends what sleeps.
        memory: bytes of address space.
        file: bytes of its largest file, its output too.
        folder: bytes of all its files.
        open_files: at a time.

    Raises:
        InputError: if a limit is not positive.
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
    """How a program ended.

    Args:
        finished: it ran to its last line. A program made to deceive can read its own text, and say
            so before it has.
        timed_out: it was killed for the time on the clock.
        output: what it wrote to stdout and stderr.
    """

    finished: bool
    timed_out: bool
    output: str


def check_isolation() -> None:
    """Refuse a machine on which `run_program` would not be safe.

    Raises:
        InputError: saying what is missing.
    """
    outcome = run_program(_PROBE)
    if not outcome.finished:
        lines = outcome.output.strip().splitlines()
        _refuse(lines[-1] if lines else "a program that does nothing does not end")


def run_program(code: str, limits: Limits | None = None) -> Outcome:
    """Run Python code in a process of its own, isolated as `prunelit.tasks.judges.jail` says.

    It sees the standard library, no installed package and no file of the user. Not limited is
    shared memory of System V, which only code that calls the C library can ask for; it is gone when
    the program is.

    Args:
        code: of the program.
        limits: what it may use; None takes the defaults.

    Raises:
        InputError: if the machine cannot isolate it; nothing was run then.
    """
    if sys.platform != "linux":
        _refuse(f"{platform.system()} has no namespaces")
    limits = limits or Limits()
    python, paths = _interpreter()
    # An exit status says little: a program that leaves before its tests exits with 0 too.
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
                source = f"{code}\nprint({token!r}, flush=True)\n".encode(errors="replace")
                _, complaint = process.communicate(source, timeout=limits.seconds)
                timed_out = False
            except subprocess.TimeoutExpired:
                complaint, timed_out = b"", True
            finally:
                # Its death takes the program with it, whatever that does to live on.
                with suppress(ProcessLookupError):
                    process.kill()
        out.seek(0)
        output = out.read().decode(errors="replace")
    if complaint:
        _refuse(complaint.decode(errors="replace"))
    # On a line of its own: a traceback may show the line of the program that it stands in.
    finished = not timed_out and token in output.splitlines()
    return Outcome(finished, timed_out, output.replace(f"{token}\n", ""))


def _interpreter() -> tuple[str, list[str]]:
    """The interpreter below any virtual environment, and the paths that it needs."""
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
        f"This machine cannot run programs that a model wrote safely ({reason}): leave "
        "`--allow_code_execution` off, or use Linux 5.12 or newer with user namespaces."
    )
