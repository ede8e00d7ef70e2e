"""PairedLM: the pruned model beside its frozen dense reference."""

import copy
from functools import cached_property
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prunelit.datamodule import PruneData
from prunelit.errors import InputError
from prunelit.models.architecture import check_length, check_unembedding
from prunelit.models.loading import (
    DType,
    load_config,
    load_pretrained,
    load_tokenizer,
    source_version,
)
from prunelit.report.rows import Row
from prunelit.tasks.base import Pair, Task
from prunelit.tasks.items import ItemTable


class PairedLM(LightningModule):
    """A causal LM to prune, and the dense model it is compared with.

    Weights are read when a run sets up, not here. The reference is no submodule: it is in no
    checkpoint and no optimizer, and always in evaluation mode.

    Args:
        source: of the model, see `prunelit.load_pretrained`.
        dtype: of the weights; `auto` is the one they are stored in.
        attn_implementation: as in transformers; None is its default.
        trust_remote_code: run code that comes with the weights.
        revision: branch, tag or commit on the hub.
        reference: keep the dense model for comparison; switch it off to save its memory.
    """

    def __init__(
        self,
        source: str,
        dtype: DType = "auto",
        attn_implementation: str | None = None,
        trust_remote_code: bool = False,
        revision: str | None = None,
        reference: bool = True,
    ) -> None:
        super().__init__()
        self.source = source
        self.reference = reference
        self.model: PreTrainedModel | None = None
        self.results: list[Row] = []
        self.tables: dict[str, ItemTable] = {}
        self._options: dict[str, Any] = {
            "attn_implementation": attn_implementation,
            "dtype": dtype,
            "revision": revision,
            "trust_remote_code": trust_remote_code,
        }
        self._pair: Pair | None = None

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's tokenizer; reads no weights."""
        return load_tokenizer(self.source, **self._remote)

    @property
    def _remote(self) -> dict[str, Any]:
        return {key: self._options[key] for key in ("revision", "trust_remote_code")}

    @property
    def pair(self) -> Pair:
        """Both models.

        Raises:
            RuntimeError: before `load`.
        """
        if self._pair is None:
            raise RuntimeError("Expected `load` to be called before the models are used.")
        return self._pair

    def load(self, pruned_folder: str | Path | None = None) -> None:
        """Read the weights; does nothing where they are loaded.

        Args:
            pruned_folder: a pruned model to take as the one under test; None takes the dense
                weights, which are then ready to be pruned in place.
        """
        if self._pair is not None:
            return
        dense = None
        if self.reference or pruned_folder is None:
            dense, _ = load_pretrained(self.source, **self._options)
        if pruned_folder is not None:
            pruned, _ = load_pretrained(str(pruned_folder), **{**self._options, "revision": None})
        else:
            assert dense is not None
            pruned = copy.deepcopy(dense) if self.reference else dense
        check_unembedding(pruned)
        self.model = pruned
        if self.reference and dense is not None:
            dense.requires_grad_(False)
        self._pair = Pair(pruned, dense if self.reference else None, self.tokenizer)

    def recipe(self) -> dict[str, Any]:
        """Which dense model this is, and what its activations depend on."""
        return {
            "source": self.source,
            "version": source_version(self.source, **self._remote),
            "dtype": self._options["dtype"],
            "attn_implementation": self._options["attn_implementation"],
            "precision": self.trainer.precision,
        }

    def check_run(self, stage: str) -> None:
        """Refuse what this run cannot do; a callback with heavy work to do calls it before.

        Raises:
            InputError: naming the option.
        """
        trainer = self.trainer
        if stage == "fit" and trainer.max_epochs != 0:
            raise InputError(_NO_TRAINING.format(trainer.max_epochs))
        if trainer.precision.endswith("-true") and trainer.precision != "32-true":
            raise InputError(
                f"Expected `trainer.precision` '32-true' or a mixed one but got "
                f"{trainer.precision!r}, which casts the pruned model alone: set `model.dtype`."
            )
        if trainer.strategy.root_device.type == "mps":
            raise InputError(
                "Statistics are summed in float64, which MPS lacks: set `trainer.accelerator: cpu`."
            )
        limit = trainer.limit_val_batches
        if not (isinstance(limit, float) and limit == 1):  # Lightning's int 1 is a single batch
            raise InputError(
                f"Expected `trainer.limit_val_batches` 1.0 but got {limit}: a task measures all of "
                "its items; give the task a `limit` instead."
            )
        tasks = self._data().tasks
        if not self.reference:
            needing = [name for name, task in tasks.items() if task.needs_reference]
            if needing:
                raise InputError(
                    f"The tasks {needing} need the dense model: set `model.reference: true`."
                )
        config = load_config(self.source, **self._remote)
        calibration = self._data().calibration
        if calibration is not None:
            check_length(config, calibration.length, "a calibration sequence")
        for name, task in tasks.items():
            check_length(config, task.longest, f"the longest sequence of the task {name!r}")

    def setup(self, stage: str) -> None:
        """Called by Lightning after the callbacks: without a pruning callback both are dense."""
        self.check_run(stage)
        self.load()

    def configure_optimizers(self) -> None:
        """Called by Lightning in `fit`: nothing is trained."""

    def training_step(self, *args: Any) -> Tensor:
        """Refused: weights trained without their masks would not stay pruned."""
        raise InputError(_NO_TRAINING.format(self.trainer.max_epochs))

    def on_validation_epoch_start(self) -> None:
        """Called by Lightning: an empty table for each task."""
        for model in self.pair.models().values():
            model.to(self.device).eval()  # type: ignore[arg-type]
        data = self._data()
        self.tables = {name: ItemTable(data.sizes[name]) for name in data.tasks}

    def validation_step(
        self, batch: dict[str, Any], batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Called by Lightning: measures one batch of one task, dense and pruned."""
        name = self.task_names[dataloader_idx]
        if len(batch["indices"]):
            values = self._tasks()[name].step(self.pair, batch)
            self.tables[name].assign(batch["indices"], values)

    def on_validation_epoch_end(self) -> None:
        """Called by Lightning on every rank: collects the items and logs `val/<task>/<metric>`."""
        if self.trainer.sanity_checking:
            return
        self.results = []
        for name, task in self._tasks().items():
            self.tables[name].all_reduce_()
            self.results += task.summarise(self.tables[name])
        for row in self.results:
            # Every rank holds the same complete table, so nothing is left to synchronise.
            self.log(scalar_name(row), row.value, sync_dist=False)

    @property
    def task_names(self) -> list[str]:
        """In the order of the validation loaders."""
        return list(self._tasks())

    def _data(self) -> PruneData:
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        if not isinstance(data, PruneData):
            raise InputError("Expected a `PruneData` as the Trainer's datamodule.")
        return data

    def _tasks(self) -> dict[str, Task]:
        return self._data().tasks


_NO_TRAINING = (
    "Expected `trainer.max_epochs` 0 but got {}: this version prunes and measures, it does not "
    "fine-tune."
)


def scalar_name(row: Row) -> str:
    """`val/<task>/<metric>` for pruned model or pair; dense and difference have a suffix."""
    suffix = "" if row.model in ("pruned", "pair") else f"_{row.model}"
    return f"val/{row.task}/{row.metric}{suffix}"
