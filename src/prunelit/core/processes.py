"""Processes of one run end together, and what stopped the first of them is what a user reads."""

import os
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
from lightning.pytorch import Trainer

from prunelit.errors import InputError
from prunelit.private_api import child_processes

# Seconds that one process waits for others: for the first one gone, and for each at a good end.
_GONE, _DONE = 5.0, 60.0
_ending_together: list[Trainer] = []  # of the runs that are in `end_together`


@contextmanager
def end_together(trainer: Trainer) -> Iterator[None]:
    """On several processes an error on any of them ends all, at once.

    The process that fails says so and leaves without the exits of libraries, which may wait for
    the other ranks. What ends those depends on who started them. Lightning's launcher, which runs
    in the first process of a machine, ends all where another process of that machine fails; where
    the first one fails, it is done here. `srun --kill-on-bad-exit=1` and torchrun end the ranks of
    all machines as soon as a process leaves with a status other than 0, so that leaving is enough.
    Across machines without them a rank is stopped by its next collective.

    A rank that is stopped by a collective, because another one is gone, says so in one sentence:
    the error to read is that of the other. The first process then takes over the status 2 of a
    mistake that the user can mend.

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
    finally:
        _ending_together.remove(trainer)
    _await(child_processes(trainer))


def barrier(trainer: Trainer, failed: bool) -> None:
    """Wait for all ranks, such as for what the first one writes.

    Where an error ends all, the first one does not wait to raise its own.

    Args:
        trainer: of the run.
        failed: whether this process is to raise an error then.
    """
    if not (failed and trainer.is_global_zero and trainer in _ending_together):
        trainer.strategy.barrier()


def _leave(error: Exception, rank: int, children: list[Popen]) -> NoReturn:
    """Say what happened, end the children and this process."""
    place = _collective(error)
    status = 1
    if isinstance(error, InputError):
        text, status = f"prunelit: error: {error}", 2
    elif place is not None:
        reason = " ".join(str(error).split())  # NCCL says it on a later line
        text = f"prunelit: error: Meeting other ranks failed at {place}: {reason}"
    else:
        text = "".join(traceback.format_exception(error)).rstrip()
    text = "".join(f"[rank{rank}]: {line}\n" for line in text.splitlines())
    with suppress(OSError):  # where nobody reads
        sys.stdout.flush()
    with suppress(OSError):
        print(text, end="", file=sys.stderr, flush=True)  # in one piece, as others write there too
    if place is not None and 2 in _statuses(children):
        status = 2
    _end(children)
    os._exit(status)


def _collective(error: Exception) -> str | None:
    """Where an error was raised in a collective: the line that called it."""
    if not isinstance(error, RuntimeError):  # what cannot be pickled, for one
        return None
    frames = traceback.extract_tb(error.__traceback__)
    library, collectives = Path(torch.__file__).parent, Path(dist.__file__).parent
    # Those that DDP calls while it trains are raised where it waits for them.
    backend = isinstance(error, dist.DistError) or "gloo/transport" in str(error)
    if collectives not in Path(frames[-1].filename).parents and not backend:
        return None
    caller = next(
        (f for f in reversed(frames) if library not in Path(f.filename).parents), frames[0]
    )
    return f"{caller.filename}:{caller.lineno}"


def _await(children: list[Popen]) -> None:
    """Until all have ended: they hold memory and devices that the next run may need."""
    try:
        statuses = [child.wait(_DONE) for child in children]
    except TimeoutExpired:
        _end(children)
        text = f"prunelit: error: A process went on {_DONE:g} s after the run was done: ended it."
        print(text, file=sys.stderr)
        sys.exit(1)
    if any(statuses):  # each has said why
        sys.exit(1)


def _statuses(children: list[Popen]) -> list[int]:
    """Of the children that have ended, once one has; none where none does."""
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
