"""The Trainer whose methods are the subcommands of the command line."""

from typing import Any

from lightning.pytorch import LightningModule, Trainer

from prunelit.datamodule import PruneData


class PruneTrainer(Trainer):
    """A `lightning.Trainer` with the two runs of prunelit; every argument is Lightning's."""

    def fit(  # type: ignore[override]
        self, model: LightningModule, datamodule: PruneData | None = None, **kwargs: Any
    ) -> None:
        """Prune the model, write it, and compare it with the dense one."""
        super().fit(model, datamodule=datamodule, **kwargs)
        if self.state.finished:
            self.validate(model, datamodule=datamodule)

    def validate(  # type: ignore[override]
        self,
        model: LightningModule,
        datamodule: PruneData | None = None,
        verbose: bool = False,
        **kwargs: Any,
    ) -> list[Any]:
        """Compare the pruned model that `fit` wrote with the dense one."""
        return list(super().validate(model, datamodule=datamodule, verbose=verbose, **kwargs))
