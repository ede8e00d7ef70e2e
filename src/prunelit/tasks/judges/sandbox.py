"""Run programs of a model in a sandbox."""

import json
import math
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from socket import SHUT_WR, socket, socketpair
from typing import IO, Any, NoReturn

from prunelit.arguments import checked
from prunelit.errors import InputError
from prunelit.tasks.judges import jail
from prunelit.tasks.judges.helpers import Helpers
from prunelit.tasks.judges.inside.carried import NOT_CARRIED
from prunelit.tasks.judges.inside.tests import PASSED, REASONS
from prunelit.tasks.judges.system_calls import can_filter, filter_calls

_SYSTEM = (
    *("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/etc/ld.so.cache"),
    "/usr/share/zoneinfo",
)
_INSIDE = Path(jail.__file__).parent / "inside"

# Every action of the probe must fail. Otherwise the kernel does not isolate the program.
_PROBE = """
import ctypes, os, resource, socket
libc = ctypes.CDLL(None, use_errno=True)
def refused(action):
    try:
        action()
    except OSError:
        return True
def denied(call, *arguments):
    return getattr(libc, call)(*arguments) < 0 and ctypes.get_errno() == 1
assert os.listdir() == [], "the folder is not empty"
assert refused(lambda: os.fork() or os._exit(1)), "a process was started"
assert resource.getrlimit(resource.RLIMIT_NPROC)[1] == {threads}, "threads have no limit"
assert refused(lambda: open("/program.py", "a")), "a file was opened for writing"
for family in range(64):
    assert refused(lambda: socket.socket(family, socket.SOCK_DGRAM)), "a socket was made"
assert refused(socket.if_nameindex), "a network was there"
assert refused(lambda: os.listdir("/proc")), "other processes can be seen"
assert denied("unshare", 0x10000000), "a user namespace was made"
assert denied("personality", 0xFFFFFFFF), "system calls are not filtered"
"""


@checked
@dataclass(frozen=True)
class Limits:
    """Limits of a program, and of its tests, which have a process of their own.

    Args:
        cpu_seconds: of processor time.
        seconds: of wall-clock time, including the start of the interpreter.
        memory: bytes of address space.
        file: bytes of its largest file. Of its output this much is kept.
        folder: bytes of all its files.
        open_files: at the same time.
        threads: at the same time, the two processes that hold the sandbox included.

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
    threads: int = 64

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not 0 < value < math.inf:
                raise InputError(f"Expected a positive limit `{name}` but got {value}.")


@dataclass(frozen=True)
class Outcome:
    """Result of running a program.

    Args:
        finished: it ran to its last line, and so did its tests. Without tests, a program that is
            made to deceive can pretend this.
        timed_out: it was killed because of `Limits.seconds`.
        output: stdout and stderr of the program and of its tests.
        not_carried: one of `NOT_CARRIED` in `inside/carried.py` if it has not finished, and the
            tests asked for this, so that a right program may have failed too; None otherwise.
    """

    finished: bool
    timed_out: bool
    output: str
    not_carried: str | None = None


def check_isolation() -> None:
    """Refuse a machine on which `run_program` is not safe.

    Raises:
        InputError: if the machine cannot isolate a program; it says why.
    """
    limits = Limits()
    outcome = run_program(_PROBE.format(threads=limits.threads), limits)
    if not outcome.finished:
        lines = outcome.output.strip().splitlines()
        _refuse(lines[-1] if lines else "the probe gave no output")


def run_program(
    code: str, limits: Limits | None = None, tests: str = "", helpers: Helpers | None = None
) -> Outcome:
    """Run Python code and its tests, each in an isolated process, see `prunelit.tasks.judges.jail`.

    The program can import the standard library, but no installed package, and it sees no file of
    the user. The tests run in another interpreter, which calls the functions of the program over a
    socket. Results come as plain values: None, numbers, strings, bytes, dates, and the containers
    of the standard library. The tests see all other objects by reference. An object answers
    for itself, by its methods and operators, only if the tests name it or its class; otherwise it
    can be called, iterated, awaited, entered and read. It never equals a plain value.

    Changes of an argument come back with the result of the call. The container in a result is a
    copy. So is that in an attribute or an item, but changes of it are written back.
    `Outcome.not_carried` says of a program that did not pass if its tests asked for something that
    comes over no socket.

    Args:
        code: of the program.
        limits: of the program, and of its tests; None takes the defaults.
        tests: Python code that uses names of the program, and passes if it runs to its end.
        helpers: names that the tests do not take from the program.

    Raises:
        InputError: if the machine cannot isolate the program, which is not run then.
    """
    if sys.platform != "linux":
        _refuse(f"{platform.system()} has no namespaces")
    if not can_filter():
        _refuse(f"the system calls of {platform.machine()} are not known")
    limits, helpers = limits or Limits(), helpers or Helpers()
    work = {"program": code, "tests": tests, **vars(helpers)}
    until = time.monotonic() + limits.seconds
    with ExitStack() as stack:
        root = stack.enter_context(tempfile.TemporaryDirectory(prefix="prunelit-"))
        read_end, write_end = os.pipe()
        reader = stack.enter_context(open(read_end, "rb"))
        pool = stack.enter_context(ThreadPoolExecutor(1))
        # Closed before the pool, which reads until nobody can write any more.
        writer = stack.enter_context(open(write_end, "wb"))
        output = pool.submit(_keep, reader, limits.file)
        for end in (*(talk := socketpair()), *(control := socketpair())):
            stack.enter_context(end)
        plan = _plan(root, limits)
        ours, theirs = control
        number = theirs.fileno()
        processes = [
            stack.enter_context(_start(plan, main, end, writer, passed))
            for main, end, passed in (
                ("program.main()", talk[0], ()),
                (f"tests.main({number})", talk[1], (number,)),
            )
        ]
        for end in (*talk, theirs, writer):
            end.close()
        answer = _ask(ours, json.dumps(work).encode(), until)
        for process in processes:
            process.kill()  # all of its namespace dies with it, whatever it does to survive
        complaint = b"".join(process.stderr.read() for process in processes if process.stderr)
        text = output.result().decode(errors="replace")
    if complaint:
        _refuse(complaint.decode(errors="replace"))
    reason = NOT_CARRIED[REASONS.index(answer)] if answer in REASONS else None
    return Outcome(answer == PASSED, answer is None, text, reason)


def _plan(root: str, limits: Limits) -> dict[str, Any]:
    """Return the plan of a jail, see `jail.main`; `files` still needs what to run."""
    python, paths = _interpreter()
    return {
        "root": root,
        "paths": paths,
        "python": python,
        "files": {
            f"prunelit/tasks/judges/inside/{path.name}": path.read_text(encoding="utf-8")
            for path in _INSIDE.glob("[!_]*.py")
        },
        "scratch": limits.folder,
        "calls": filter_calls(platform.machine()).hex(),
        "limits": {
            "RLIMIT_AS": limits.memory,
            "RLIMIT_CORE": 0,
            "RLIMIT_CPU": limits.cpu_seconds,
            "RLIMIT_FSIZE": limits.file,
            "RLIMIT_NOFILE": limits.open_files,
            "RLIMIT_NPROC": limits.threads,
        },
    }


@contextmanager
def _start(
    plan: dict[str, Any], main: str, talk: socket, output: IO[bytes], passed: tuple[int, ...]
) -> Iterator[subprocess.Popen[bytes]]:
    """Start one interpreter; its stdin is its end of the talk, its stderr complains of the jail."""
    module, _, _ = main.partition(".")
    start = f"from prunelit.tasks.judges.inside import {module}\n{main}\n"
    plan = {**plan, "files": {**plan["files"], "program.py": start}}
    try:
        started = subprocess.Popen(
            [plan["python"], "-I", "-S", "-B", str(jail.__file__), json.dumps(plan)],
            stdin=talk.fileno(),
            stdout=output,
            stderr=subprocess.PIPE,
            pass_fds=passed,
            cwd="/",
            env={},
            start_new_session=True,
        )
    except OSError as error:
        _refuse(str(error))
    with started as process:
        try:
            yield process
        finally:
            process.kill()


def _ask(control: socket, work: bytes, until: float) -> bytes | None:
    """Send what to run; return the byte of the verdict, b"" for none, None if time is over."""
    try:
        control.settimeout(max(until - time.monotonic(), 1e-3))
        control.sendall(work)
        control.shutdown(SHUT_WR)
        control.settimeout(max(until - time.monotonic(), 1e-3))
        return control.recv(len(PASSED))
    except TimeoutError:
        return None
    except (BrokenPipeError, ConnectionResetError):  # the jail has complained
        return b""


def _keep(file: IO[bytes], size: int) -> bytes:
    """Read a file to its end; return its first `size` bytes."""
    kept = bytearray()
    while data := os.read(file.fileno(), 1 << 16):
        kept += data[: size - len(kept)]
    return bytes(kept)


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


def _refuse(reason: str) -> NoReturn:
    raise InputError(
        f"This machine cannot isolate the programs of a model ({reason}): remove "
        "`--allow_code_execution`, or use Linux 5.12 or newer with user namespaces."
    )
