"""End all processes of a run together, and show the first error."""

import os
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from subprocess import Popen, TimeoutExpired
from typing import NoReturn

import torch
import torch.distributed as dist
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import Logger
from lightning.pytorch.strategies import DDPStrategy

from prunelit.core.private_api import child_processes
from prunelit.core.signals import Stopped
from prunelit.errors import explain

# Seconds to wait for another process: after an error until the first one has ended, and after a run
# until all have ended.
_GONE, _DONE = 5.0, 60.0
_ending_together: list[Trainer] = []  # Trainers whose runs are inside `end_together`


@contextmanager
def end_together(trainer: Trainer) -> Iterator[None]:
    """End all processes at once if one of them fails.

    The process that fails prints its error and exits without the exit handlers of libraries, which
    may wait for the other ranks. The program that started the other processes ends them:

    * Lightning's launcher runs in the first process of a machine. It ends all processes if another
      process of that machine fails. If the first process fails, this function ends the others.
    * `srun --kill-on-bad-exit=1` and torchrun end the ranks of all machines when a process exits
      with a status other than 0.
    * Without either, a rank on another machine fails at its next collective.

    A rank whose collective fails because another rank has ended prints one sentence. The error to
    read is that of the other rank. The first process then exits with the other's status 2, which
    stands for a mistake that the user can correct.

    A process that a signal stopped ends the others without a message: the Trainer has printed one.

    Args:
        trainer: of the run.
    """
    _ending_together.append(trainer)
    try:
        yield
    except Exception as error:
        children = child_processes(trainer)
        if not children and not (dist.is_initialized() and dist.get_world_size() > 1):
            raise
        _leave(error, trainer.global_rank, children)
    except Stopped as stop:
        children = child_processes(trainer)
        if not children and not (dist.is_initialized() and dist.get_world_size() > 1):
            raise
        _end(children)
        os._exit(stop.status)
    finally:
        _ending_together.remove(trainer)
    _await(child_processes(trainer))


def barrier(trainer: Trainer, failed: bool) -> None:
    """Wait for all ranks, for example until the first one has written its files.

    Inside `end_together` a failed first process does not wait, since its error ends all others.

    Args:
        trainer: of the run.
        failed: True if this process raises an error afterwards.
    """
    if not (failed and trainer.is_global_zero and trainer in _ending_together):
        trainer.strategy.barrier()


@contextmanager
def without_gradients(trainer: Trainer) -> Iterator[None]:
    """Let a run that trains nothing keep no gradients.

    DistributedDataParallel holds room for them, as much as the weights take.

    Args:
        trainer: of the run.
    """
    strategy = trainer.strategy
    if trainer.max_epochs != 0 or not isinstance(strategy, DDPStrategy):
        yield
        return
    strategy.configure_ddp = lambda: None  # type: ignore[method-assign]
    try:
        yield
    finally:
        del strategy.configure_ddp


def misconfiguration(error: BaseException) -> str | None:
    """Return the sentence of a setting that Lightning refuses; None for any other error.

    A callback or a logger of Lightning is built by a user, and fails for the options given to it.
    """
    if isinstance(error, MisconfigurationException):
        return " ".join(str(error).split())
    for frame in reversed([frame for frame, _ in traceback.walk_tb(error.__traceback__)]):
        owner, home = frame.f_locals.get("self"), frame.f_globals.get("__name__", "")
        if not home.startswith(("lightning.", "torch.")):
            return None
        if isinstance(owner, Callback | Logger) and type(owner).__module__.startswith("lightning."):
            return (
                f"The options of {type(owner).__name__} do not fit this run "
                f"({type(error).__name__}: {' '.join(str(error).split()):.200}): change them, or "
                "leave it out."
            )
    return None


def _leave(error: Exception, rank: int, children: list[Popen]) -> NoReturn:
    """Print the error, end the child processes and this process."""
    place = _collective(error)
    text, status = explain(error, misconfiguration(error))
    if place is not None:
        reason = " ".join(str(error).split())  # NCCL gives the reason on a later line
        text = f"prunelit: error: A collective call failed at {place}: {reason}"
    text = "".join(f"[rank{rank}]: {line}\n" for line in text.splitlines())
    with suppress(OSError):  # a closed pipe
        sys.stdout.flush()
    with suppress(OSError):
        print(text, end="", file=sys.stderr, flush=True)  # in one piece: other ranks write too
    if place is not None and 2 in _statuses(children):
        status = 2
    _end(children)
    os._exit(status)


def _collective(error: Exception) -> str | None:
    """Return the line that called the collective that failed; None for another error."""
    if not isinstance(error, RuntimeError):  # such as an object that cannot be pickled
        return None
    frames = traceback.extract_tb(error.__traceback__)
    library, collectives = Path(torch.__file__).parent, Path(dist.__file__).parent
    # Errors of collectives that DDP starts during training are raised later, in its wait for them.
    backend = isinstance(error, dist.DistError) or "gloo/transport" in str(error)
    if collectives not in Path(frames[-1].filename).parents and not backend:
        return None
    caller = next(
        (f for f in reversed(frames) if library not in Path(f.filename).parents), frames[0]
    )
    return f"{caller.filename}:{caller.lineno}"


def _await(children: list[Popen]) -> None:
    """Wait until all have ended: they hold memory and devices that the next run may need."""
    try:
        statuses = [child.wait(_DONE) for child in children]
    except TimeoutExpired:
        _end(children)
        text = f"prunelit: error: Killed a process that still ran {_DONE:g} s after the run ended."
        print(text, file=sys.stderr)
        sys.exit(1)
    for child, status in zip(children, statuses, strict=True):
        if status < 0:  # another failed process has printed its error
            text = (
                f"prunelit: error: The process {child.pid} was ended by "
                f"{signal.Signals(-status).name}, after the results were written. Look whether "
                "the system ran out of memory."
            )
            print(text, file=sys.stderr)
    if any(statuses):
        sys.exit(1)


def _statuses(children: list[Popen]) -> list[int]:
    """Wait for the first child to end; return the statuses of those that have, or none in time."""
    until = time.monotonic() + _GONE
    while children and time.monotonic() < until:
        statuses = [status for child in children if (status := child.poll()) is not None]
        if statuses:
            return statuses
        time.sleep(0.1)
    return []


def _end(children: list[Popen]) -> None:
    for child in children:
        child.kill()
    for child in children:
        child.wait()
