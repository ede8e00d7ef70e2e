"""A rank that fails takes the others with it, and its error is on the screen."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.distributed

PLUG_IN = '''
import os

from prunelit import InputError
from prunelit.tasks import Perplexity


class Broken(Perplexity):
    """Fails on the second of three ranks, or while rows are tokenised, or at its first batch."""

    def prepare(self, tokenizer):
        self._fail("prepare")
        return super().prepare(tokenizer)

    def step(self, pair, batch):
        self._fail("step")
        return super().step(pair, batch)

    def _fail(self, place):
        if os.environ["FAILS"] == f"{os.environ.get('LOCAL_RANK', 0)} {place}":
            raise InputError("Expected a disk that is not on fire.")
'''


@pytest.mark.parametrize("fails", ["1 step", "0 step", "2 prepare"])
def test_all_end_and_the_reason_is_said(
    fails: str,
    tmp_path: Path,
    make_config: Callable[[Path], dict[str, Any]],
    save_config: Callable[..., Path],
) -> None:
    (tmp_path / "broken.py").write_text(PLUG_IN)
    config = make_config(tmp_path)
    arguments = {"path": config["data"]["tasks"][0]["init_args"]["path"], "length": 20, "limit": 4}
    config["data"]["tasks"] = [
        {"class_path": "broken.Broken", "init_args": {**arguments, "batch_size": 1}}
    ]
    save_config(tmp_path, config)
    options = ("--trainer.devices", "3", "--trainer.strategy", "ddp")
    begun = time.monotonic()
    with (tmp_path / "stderr").open("w") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", "prunelit", "validate", "--config", "config.yaml", *options],
            cwd=tmp_path,
            env={**os.environ, "OMP_NUM_THREADS": "1", "FAILS": fails},
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            start_new_session=True,
        )
        code = process.wait(timeout=120)
    said = (tmp_path / "stderr").read_text()
    assert code != 0, said
    assert "prunelit: error: Expected a disk that is not on fire." in said
    # Starting takes most of it: from the failure on it is seconds.
    assert time.monotonic() - begun < 60
    deadline = time.monotonic() + 10
    while _alive(process.pid) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not _alive(process.pid)


def _alive(session: int) -> bool:
    """Whether a process of the group is left."""
    try:
        os.killpg(session, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_strategy_that_shards_weights_is_refused(
    tmp_path: Path,
    make_config: Callable[[Path], dict[str, Any]],
    save_config: Callable[..., Path],
    console: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    config = make_config(tmp_path)
    sharding = "lightning.pytorch.strategies.ModelParallelStrategy"
    config["trainer"] |= {"devices": 2, "strategy": {"class_path": sharding}}
    save_config(tmp_path, config)
    done = console(tmp_path, "validate", "--config", "config.yaml")
    assert done.returncode != 0
    complaints = {x for x in done.stderr.splitlines() if x.startswith("prunelit: error: ")}
    assert len(complaints) == 1
    assert "ModelParallelStrategy, which shards the weights that pruning reads" in complaints.pop()
    assert "Loading weights" not in done.stderr
