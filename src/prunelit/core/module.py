"""PairedLM: the pruned model beside its frozen dense reference."""

import copy
import hashlib
import os
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prunelit.core.checks import check_data, check_trainer, check_training
from prunelit.core.datamodule import PruneData
from prunelit.core.journal import open_journals
from prunelit.core.processes import barrier
from prunelit.errors import InputError
from prunelit.models.architecture import check_unembedding
from prunelit.models.loading import (
    DType,
    load_config,
    load_pretrained,
    load_tokenizer,
    read_removed,
    source_version,
)
from prunelit.models.model_pair import ModelPair
from prunelit.pruning.lora import Adapters
from prunelit.pruning.recovery import TRAINING, Recovery, adamw
from prunelit.recipe import describe
from prunelit.report.results import Result, scalar_name
from prunelit.report.task_report import TaskReport
from prunelit.tasks.base import Task
from prunelit.tasks.item_table import ItemTable


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
        recovery: the loss and the weights of training; None is the language-model loss on all.
        optimizer: None is AdamW with a learning rate of 1e-4 and no weight decay.
        lr_scheduler: stepped after every optimizer step; None keeps the learning rate.
    """

    def __init__(
        self,
        source: str,
        dtype: DType = "auto",
        attn_implementation: str | None = None,
        trust_remote_code: bool = False,
        revision: str | None = None,
        reference: bool = True,
        recovery: Recovery | None = None,
        optimizer: OptimizerCallable | None = None,
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        super().__init__()
        self.source = source
        self.recovery = recovery or Recovery()
        self._optimizer = optimizer or adamw
        self._lr_scheduler = lr_scheduler
        self.adapters: Adapters | None = None
        self.reference = reference
        self.model: PreTrainedModel | None = None
        self._checked: list[Task] = []
        self.rounds_left = 0  # of pruning, set by its callback
        self.results: list[Result] = []
        self.tables: dict[str, ItemTable] = {}
        self.reports: dict[str, TaskReport] = {}  # for the callbacks, until validation has ended
        self.failed: dict[str, Exception] = {}  # of the tasks whose items could not be summed up
        self._options: dict[str, Any] = {"dtype": dtype, "attn_implementation": attn_implementation}
        self._options |= {"revision": revision, "trust_remote_code": trust_remote_code}
        self._pair: ModelPair | None = None
        self._dense: list[PreTrainedModel] = []  # the reference; what is in a list is no submodule

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's tokenizer; reads no weights."""
        return load_tokenizer(self.source, **self._remote)

    @property
    def _remote(self) -> dict[str, Any]:
        return {key: self._options[key] for key in ("revision", "trust_remote_code")}

    @property
    def pair(self) -> ModelPair:
        """Both models.

        Raises:
            RuntimeError: before `load`.
        """
        if self._pair is None:
            raise RuntimeError("Expected `load` to be called before the models are used.")
        return self._pair

    def load(self, pruned_folder: str | Path | None = None, reference: bool = True) -> None:
        """Read the weights; does nothing where they are loaded.

        Args:
            pruned_folder: a pruned model to take as the one under test; None takes the dense
                weights, which are then ready to be pruned in place.
            reference: read the dense model too, where the run keeps one; see `load_reference`.
        """
        if self._pair is not None:
            return
        own = pruned_folder is None
        if own and self._dense:
            pruned = copy.deepcopy(self._dense[0]).requires_grad_(True)
        else:
            options = self._options if own else {**self._options, "revision": None}
            pruned, _ = load_pretrained(self.source if own else str(pruned_folder), **options)
            check_unembedding(pruned)
        self.model = pruned
        removed = [] if own else read_removed(str(pruned_folder)).blocks
        self._pair = ModelPair(pruned, None, self.tokenizer, removed)
        if reference:
            if own and self.reference and not self._dense:
                # Copied rather than read again while both are the same.
                self._dense = [copy.deepcopy(pruned)]
            self.load_reference()

    def load_reference(self) -> None:
        """Read the dense model where the run keeps one and has none yet."""
        if self.reference:
            self._dense = self._dense or [load_pretrained(self.source, **self._options)[0]]
            self.pair.dense = self._dense[0].requires_grad_(False)

    def renew(self) -> None:
        """Forget the pruned model: the next `load` begins anew, and reads no dense model again."""
        self._pair = self.model = None

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
        config = load_config(self.source, **self._remote)
        check_trainer(self.trainer)
        check_data(self._data(), config, reference=self.reference)
        if self.trains:
            check_training(self._data(), config, self.recovery, reference=self.reference)

    def check_tasks(self) -> None:
        """Refuse a model that a task cannot measure; called where the weights are loaded."""
        for task in self._tasks().values():
            if not any(task is known for known in self._checked):
                task.check(self.pair.dense or self.pair.pruned)
                self._checked.append(task)

    def setup(self, stage: str) -> None:
        """Called by Lightning after the callbacks: without a pruning callback both are dense."""
        self.check_run(stage)
        self.load()
        self.check_tasks()
        if stage == "fit" and self.trains:
            self.begin_training()

    @property
    def trains(self) -> bool:
        """Whether this run, or the `fit` it belongs to, trains the pruned model."""
        return self.trainer.max_epochs != 0

    def begin_training(self) -> None:
        """Freeze what is not trained and attach adapters; called once, before the optimizer."""
        assert self.model is not None
        if self.recovery.lora is None:
            self.recovery.choose(self.model)
        else:
            self.adapters = Adapters(self.model, self.recovery.lora)
        self.model.train()  # dropout, where the model has any

    def merge_adapters(self) -> None:
        """Merge LoRA adapters into the weights, removed ones too; does nothing without adapters."""
        if self.adapters is not None:
            self.adapters.merge()
            self.adapters = None

    def training_recipe(self) -> dict[str, Any]:
        """What decides how training changes the weights."""
        text, tokens = self._data().recovery, self._data().recovery_tokens
        digest = None if tokens is None else hashlib.sha256(tokens.numpy().tobytes()).hexdigest()
        return {
            **self.recovery.recipe(self._optimizer, self._lr_scheduler),
            "text": None if text is None else describe(text),
            "text_sha256": digest,
            **{name: getattr(self.trainer, name) for name in TRAINING},
            # Adapters begin at random; nothing else of training does.
            "seed": os.environ.get("PL_GLOBAL_SEED") if self.recovery.lora else None,
        }

    def configure_optimizers(self) -> Any:
        """Called by Lightning in `fit`: nothing is trained where `max_epochs` is 0."""
        if not self.trains:
            return None
        assert self.model is not None
        optimizer = self._optimizer([p for p in self.model.parameters() if p.requires_grad])
        if self._lr_scheduler is None:
            return optimizer
        scheduler = {"scheduler": self._lr_scheduler(optimizer), "interval": "step"}
        return {"optimizer": optimizer, "lr_scheduler": scheduler}

    def on_train_start(self) -> None:
        """Called by Lightning: the reference is no submodule, so it is moved here."""
        if self.pair.dense is not None:
            self.pair.dense.to(self.device)  # type: ignore[arg-type]

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Called by Lightning: the loss of one batch, logged with its parts."""
        trainer = self.trainer
        # Dropout depends on the place in training alone, so that a run taken up goes on the same.
        place = (trainer.current_epoch << 32) + batch_idx * trainer.world_size + trainer.global_rank
        torch.manual_seed(place)
        losses = self.recovery.losses(self.pair.pruned, self.pair.dense, batch["input_ids"])
        loss = losses["loss"]
        if not torch.isfinite(loss):
            raise InputError(
                f"The recovery loss is {loss.item()} at step {trainer.global_step}: lower the "
                "learning rate or train in a wider precision."
            )
        self.log_dict({f"train/{name}": value.detach() for name, value in losses.items()})
        self.log("loss", loss.detach(), prog_bar=True, logger=False)
        return loss

    def on_validation_epoch_start(self) -> None:
        """Called by Lightning: an empty table for each task."""
        for model in self.pair.models().values():
            model.to(self.device).eval()  # type: ignore[arg-type]
        data = self._data()
        self.tables = {name: ItemTable(data.sizes[name]) for name in data.tasks}
        self._journals = open_journals(self.trainer, self.pair, data.tasks)

    def validation_step(
        self, batch: dict[str, Any], batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Called by Lightning: measures one batch of one task, dense and pruned."""
        name = self.task_names[dataloader_idx]
        if len(indices := batch["indices"]):
            task = self._tasks()[name]
            values = self._journals.values(name, indices, lambda: task.step(self.pair, batch))
            self.tables[name].assign(indices, values)

    def on_validation_epoch_end(self) -> None:
        """Called by Lightning on every rank: collects the items and logs `val/<task>/<metric>`."""
        if self.trainer.sanity_checking:
            return
        self.reports, self.failed = {}, {}
        for name, task in self._tasks().items():
            self.tables[name].all_reduce_()
            try:
                self.reports[name] = task.report(self.tables[name])
            except Exception as error:
                if self.trainer.state.fn != "validate":
                    raise
                self.failed[name] = error  # raised when the results of the others are written
        self.results = [row for report in self.reports.values() for row in report.results]
        for row in self.results:
            # Every rank holds the same complete table, so nothing is left to synchronise.
            self.log(scalar_name(row), row.value, sync_dist=False)

    def on_validation_end(self) -> None:
        """Called by Lightning after the callbacks, which have written the results on rank 0."""
        self.reports = {}
        barrier(self.trainer, failed=bool(self.failed))
        if self.failed:
            raise next(iter(self.failed.values()))
        self._journals.remove()

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
