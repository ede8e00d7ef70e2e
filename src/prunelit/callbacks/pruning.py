"""When to prune: once, before the optimizer and the strategy see the weights."""

from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning.pytorch.utilities import rank_zero_info

from prunelit.datamodule import PruneData
from prunelit.errors import InputError
from prunelit.models.saving import check_writable, read_report, save_pretrained
from prunelit.module import PairedLM
from prunelit.pruners.base import Pruner
from prunelit.pruning import PruningReport, describe_batches, prune
from prunelit.recipe import describe
from prunelit.report.tables import pruning_table, show


class Pruning(Callback):
    """One-shot pruning when a run sets up.

    `fit` prunes and writes the pruned model. `validate` uses what `fit` wrote where its recipe is
    the present one, and otherwise prunes in memory and says so.

    A schedule of one's own overrides `apply`; its constructor's arguments are part of the recipe.

    Args:
        pruner: the method.
        output: folder of the pruned model; None is `pruned` under `trainer.default_root_dir`.
    """

    def __init__(self, pruner: Pruner, output: str | None = None) -> None:
        self.pruner = pruner
        self.output = output
        self.report: dict[str, Any] | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Called by Lightning after the data is ready and before the weights are placed."""
        if self.report is not None:  # `fit` went before this `validate` in the same process
            return
        data, module = self._checked(trainer, pl_module)
        module.check_run(stage)
        folder = self.folder(trainer)
        recipe = self.recipe(data, module)
        if stage == "fit":
            check_writable(folder)
        else:
            written = read_report(folder)
            same = written is not None and written.get("recipe") == recipe
            # Ranks must agree even where they do not share a disk: pruning is collective.
            if trainer.strategy.reduce_boolean_decision(same, all=True):
                assert written is not None
                rank_zero_info(f"Using the pruned model in {folder}: its recipe is this one.")
                module.load(pruned_folder=folder)
                self.report = written
                return
            why = "holds no pruned model" if written is None else "was pruned by another recipe"
            rank_zero_info(f"Pruning in memory, since {folder} {why}; `fit` would write it.")
        report = self.apply(trainer, module, data)
        report.recipe = recipe
        self.report = report.as_dict()
        if trainer.is_global_zero:
            show(pruning_table(self.report))
            if stage == "fit":
                assert module.model is not None
                save_pretrained(module.model, module.tokenizer, folder, report)
                rank_zero_info(f"The pruned model is in {folder}.")
        trainer.strategy.barrier("prunelit-pruned")

    def apply(self, trainer: Trainer, module: PairedLM, data: PruneData) -> PruningReport:
        """Prune the module's model in place on this rank's device."""
        batches = data.calibration_batches()
        module.load()
        assert module.model is not None
        module.model.to(trainer.strategy.root_device)  # type: ignore[arg-type]
        with trainer.precision_plugin.forward_context():
            return prune(module.model, self.pruner, batches)

    def recipe(self, data: PruneData, module: PairedLM) -> dict[str, Any]:
        """What decides the masks."""
        return {
            "callback": self._describe(),
            "model": module.recipe(),
            "pruner": describe(self.pruner),
            "calibration": describe_batches(data.calibration_batches()),
        }

    def folder(self, trainer: Trainer) -> Path:
        """Where the pruned model goes."""
        return Path(self.output or Path(trainer.default_root_dir) / "pruned")

    def _describe(self) -> dict[str, Any]:
        described = describe(self)
        arguments = described["init_args"]
        # The pruner has a place of its own in the recipe; where the model lies decides nothing.
        kept = {key: arguments[key] for key in arguments if key not in ("pruner", "output")}
        return {**described, "init_args": kept}

    def _checked(self, trainer: Trainer, module: LightningModule) -> tuple[PruneData, PairedLM]:
        data = trainer.datamodule  # type: ignore[attr-defined]
        if not isinstance(module, PairedLM) or not isinstance(data, PruneData):
            raise InputError("Expected a `PairedLM` and a `PruneData` with the `Pruning` callback.")
        if not isinstance(trainer.strategy, SingleDeviceStrategy | DDPStrategy):
            raise InputError(
                f"Expected a single device or the strategy `ddp` but got "
                f"{type(trainer.strategy).__name__}, which shards the weights that pruning reads."
            )
        return data, module
