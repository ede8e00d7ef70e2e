"""A callback that writes what a training measures between its steps, and how much it holds then."""

import gc
import json
from pathlib import Path

from lightning.pytorch import Callback
from torch import nn
from torch.distributed.tensor import DTensor

from prunelit.models.shards import Shards


def held():
    """Bytes of all parameters and shares that this process has; tied ones count once."""
    gc.collect()
    found = [one for one in gc.get_objects() if type(one) in (nn.Parameter, DTensor, Shards)]
    weights = [one.detach() for one in found if isinstance(one, nn.Parameter) and not one.is_meta]
    plain = [one.to_local() if isinstance(one, DTensor) else one for one in weights]
    storages = {one.untyped_storage().data_ptr(): one.untyped_storage().nbytes() for one in plain}
    return sum(storages.values()) + sum(one.nbytes for one in found if isinstance(one, Shards))


class Seen(Callback):
    """The first process appends a line to `seen.jsonl` at each of these places."""

    def _write(self, trainer, place, value):
        if trainer.is_global_zero:
            with Path("seen.jsonl").open("a") as file:
                file.write(json.dumps({"place": place, "value": value}) + "\n")

    def on_train_start(self, trainer, _):
        self._write(trainer, "train", held())

    def on_validation_batch_end(self, trainer, *_):
        if trainer.state.fn == "fit":
            self._write(trainer, "measure", held())

    def on_validation_end(self, trainer, _):
        if trainer.state.fn == "fit":
            values = {name: float(value) for name, value in trainer.callback_metrics.items()}
            self._write(trainer, "values", values)

    def teardown(self, trainer, _, stage):
        if stage == "fit":
            self._write(trainer, "end", held())
