"""A pruner and a callback that kill their process once, wherever the environment says."""

import os
import signal
from pathlib import Path

from lightning.pytorch import Callback

from prunelit.pruners import Wanda


def die_at(place):
    """SIGKILL at `place`, unless it happened before."""
    marker = Path("died")
    if os.environ.get("DIE_AT") == place and not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)


class DyingWanda(Wanda):
    """Dies when it has pruned so many blocks, rounds counted through: `block 4`."""

    blocks = 0

    def prune_block(self, block, probes):
        super().prune_block(block, probes)
        DyingWanda.blocks += 1
        die_at(f"block {DyingWanda.blocks}")


class Dying(Callback):
    """Dies after so many optimizer steps, `step 3`, or at the start of an epoch, `epoch 2`."""

    def on_train_batch_end(self, trainer, *_):
        die_at(f"step {trainer.global_step}")

    def on_train_epoch_start(self, trainer, *_):
        die_at(f"epoch {trainer.current_epoch}")
