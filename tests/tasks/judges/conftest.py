"""Programs in the sandbox, and what is left of them."""

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from filelock import FileLock

from prunelit import InputError
from prunelit.tasks.judges.sandbox import check_isolation


def sandboxed() -> set[int]:
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"/program.py" in command:
            found.add(int(folder.name))
    return found


@pytest.fixture
def _one_worker_at_a_time(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """`sandboxed` finds the programs of every pytest worker, so only one worker may run some."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent  # all workers have this one
    with FileLock(folder / "sandbox.lock"):
        yield


@pytest.fixture
def processes() -> Callable[[], set[int]]:
    """`processes()` lists the processes that run a program of the sandbox."""
    return sandboxed


@pytest.fixture(scope="session")
def _can_isolate() -> None:
    try:
        check_isolation()
    except InputError as error:
        pytest.skip(str(error))


@pytest.fixture
def isolated(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    _one_worker_at_a_time: None,
    _can_isolate: None,
) -> Iterator[None]:
    """The machine can isolate; no process and no file of the program is there after the test."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    before = sandboxed()
    yield
    for _ in range(50):
        if sandboxed() <= before:
            break
        time.sleep(0.1)
    assert sandboxed() <= before
    assert list(tmp_path.glob("prunelit-*")) == []
