"""End a run that a signal asks to end, with the exit status that shells expect.

SIGTERM comes from `kill`, SLURM, systemd and `docker stop`, SIGINT from the keyboard, SIGHUP from a
terminal that closes, and SIGUSR1 from SLURM some time before the end of a job.

Internal: nothing here is public.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_NAMES = ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1")  # Windows lacks the last two
_REPEATED = 1.0  # seconds; systemd, srun and a terminal signal a process and its parent at once
_LAUNCHER = "PRUNELIT_LAUNCHER"  # variable with the process that Lightning's ranks are started by
_PATIENCE = 2.0  # seconds that this process waits until that one ends it


class Stopped(SystemExit):
    """The exit of a process that a signal asked to end; its status is 128 plus the signal's number.

    Args:
        number: of the signal.
        everywhere: True if every rank stops at the same place.

    Attributes:
        number: of the signal.
        name: of the signal.
        status: of the process.
        told: True if the user has read how to go on.
    """

    def __init__(self, number: int, everywhere: bool = False) -> None:
        self.number = number
        self.status = 128 + number
        self.everywhere = everywhere
        super().__init__(self.status)
        self.name = signal.Signals(number).name
        self.told = False

    def tell(self, how_to_go_on: str) -> None:
        """Print one sentence on stderr, unless one was printed before."""
        if not self.told:
            self.told = True
            print(f"prunelit: Stopped by {self.name}. {how_to_go_on}", file=sys.stderr)

    def pass_on(self) -> None:
        """Let the process that started this rank end all ranks, by the same signal.

        Lightning kills that process without a word when a rank ends before it does.
        """
        launcher = os.getppid()
        started = os.environ.get(_LAUNCHER) == str(launcher)
        if started and os.environ.get("LOCAL_RANK", "0") != "0":
            self.told = True
            if not self.everywhere:
                os.kill(launcher, self.number)
            time.sleep(_PATIENCE)


@contextmanager
def launching() -> Iterator[None]:
    """Tell the ranks that this process starts in the block which process it is."""
    os.environ[_LAUNCHER] = str(os.getpid())
    try:
        yield
    finally:
        os.environ.pop(_LAUNCHER, None)


class _Request:
    """The signal that came last, and the notice of work that ends before the process does."""

    process: int | None = None  # that handles signals
    number: int | None = None
    seconds = 0.0
    notice: str | None = None


@contextmanager
def stop_on_signals(*, last: bool = False) -> Iterator[None]:
    """Raise `Stopped` in the block when a signal comes; inside `finish_first` only set `requested`.

    A second signal, later than a second after the first, always raises. An ignored signal, such as
    SIGHUP under `nohup`, stays ignored. Nested blocks and other threads change nothing.

    Args:
        last: the process ends after the block, so signals that come after `Stopped` are ignored.
    """
    main = threading.current_thread() is threading.main_thread()
    if not main or _Request.process == os.getpid():
        yield
        return
    before: dict[int, Any] = {}
    for number in (getattr(signal, name) for name in _NAMES if hasattr(signal, name)):
        if signal.getsignal(number) not in (signal.SIG_IGN, None):
            before[number] = signal.signal(number, _handle)
    _Request.process = os.getpid()
    try:
        yield
    except Stopped:
        if last:
            before = dict.fromkeys(before, signal.SIG_IGN)
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _Request.process = _Request.number = _Request.notice = None


def finish_first(notice: str | None) -> None:
    """Let the work in progress end before the process does, from now on or no longer.

    Args:
        notice: a line for stderr when the signal comes; empty prints nothing. None ends this.
    """
    _Request.notice = notice


def requested() -> int | None:
    """Return the number of the signal that came inside `finish_first`."""
    return _Request.number


def _handle(number: int, _: Any) -> None:
    if os.getpid() != _Request.process:  # a fork, such as a worker of a DataLoader
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
        return
    now, first = time.monotonic(), _Request.number is None
    if not first and now - _Request.seconds < _REPEATED:
        return
    _Request.number, _Request.seconds = number, now
    if _Request.notice is None or not first:
        raise Stopped(number)
    if _Request.notice:  # not with print, which the signal may have interrupted
        os.write(2, f"prunelit: {signal.Signals(number).name}. {_Request.notice}\n".encode())
