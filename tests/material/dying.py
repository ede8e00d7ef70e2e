"""A pruner, a callback and two functions that kill their process once, where DIE_AT says.

DIE_BY names the signal.
"""

import os
import signal
from pathlib import Path

from lightning.pytorch import Callback
from transformers import PreTrainedTokenizerFast as Tokenizer

from prunelit.pruners import Wanda


def die_at(place):
    """Send the signal to this process at `place`, unless it happened before."""
    marker = Path("died")
    if os.environ.get("DIE_AT") == place and not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.Signals[os.environ.get("DIE_BY", "SIGKILL")])


class DyingWanda(Wanda):
    """Dies when it has pruned so many blocks, rounds counted through: `block 4`."""

    blocks = 0

    def prune_block(self, block, probes):
        super().prune_block(block, probes)
        DyingWanda.blocks += 1
        die_at(f"block {DyingWanda.blocks}")


class Dying(Callback):
    """Dies after so many optimizer steps, `step 3`, or where an epoch or a validation is."""

    def on_train_batch_end(self, trainer, *_):
        die_at(f"step {trainer.global_step}")

    def on_validation_end(self, trainer, *_):
        die_at(f"validation {trainer.global_step}")

    def on_train_epoch_end(self, trainer, *_):
        die_at(f"end {trainer.current_epoch}")

    def on_train_epoch_start(self, trainer, *_):
        die_at(f"epoch {trainer.current_epoch}")


def before(place, function, when=lambda *_: True):
    """Return `function` with `die_at(place)` before it, if `when` is true of the arguments."""

    def dying(*arguments, **options):
        if when(*arguments):
            die_at(place)
        return function(*arguments, **options)

    return dying


# While the pruned model is written: weights and masks are there but no tokenizer, and all is there
# but under its temporary name, from where an older model was moved away.
Tokenizer.save_pretrained = before("tokenizer", Tokenizer.save_pretrained)
Path.rename = before("rename", Path.rename, lambda path, _: path.name == ".pruned.partial")
