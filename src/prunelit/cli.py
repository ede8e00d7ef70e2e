"""The command line: `prunelit fit`, `prunelit validate` and `prunelit sweep`.

Internal: the command and its options are public, the classes are not.
"""

import logging
import os
import re
import sys
import warnings
from collections.abc import Callable
from typing import Any, NoReturn

from jsonargparse import ActionYesNo
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, SaveConfigCallback

from prunelit.callbacks import LastCheckpoint, Pruning, Results, TaskProgressBar
from prunelit.callbacks.checkpoints import WholeFileCheckpointIO
from prunelit.core.datamodule import PruneData
from prunelit.core.module import PairedLM
from prunelit.core.private_api import HookedCLI, replace_lists
from prunelit.core.processes import end_together
from prunelit.errors import InputError
from prunelit.files import make_folder
from prunelit.sweep import sweep_folder
from prunelit.trainer import PruneTrainer

# Warnings of Lightning that do not apply to a run of prunelit.
_BESIDE_THE_POINT = (
    ".*configure_optimizers` returned `None`",
    ".*isinstance\\(treespec, LeafSpec\\)` is deprecated",
    # Every rank has the complete table of items.
    "It is recommended to use `self.log\\(.*sync_dist=True",
    # The folder holds the last checkpoint of this run.
    "Checkpoint directory .* exists and is not empty",
)


class OneSentenceParser(LightningArgumentParser):
    """A parser that reports an error in one sentence, without the usage of every option."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:  # type: ignore[override]
        """Print the innermost reason of an error and exit with status 2."""
        sentence = str(message)
        if ex is not None and (reason := _innermost(ex)) is not ex:
            key = re.match(r'Parser key "[^"]*"[^:]*:', sentence)
            sentence = f"{key[0] if key else ''} {reason}"
        print(f"prunelit: error: {' '.join(sentence.split())}", file=sys.stderr)
        sys.exit(2)


class SaveConfig(SaveConfigCallback):
    """Write the configuration to the folder of the run, or to the folder of all variants."""

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write the configuration of a sweep on rank 0, and replace an earlier file."""
        if not self.save_to_log_dir:
            path = sweep_folder(trainer) / self.config_filename
            make_folder(path.parent)
            self.parser.save(
                self.config,
                str(path),
                skip_none=False,
                overwrite=self.overwrite,
                multifile=self.multifile,
            )


class PruneLitCLI(HookedCLI):
    """LightningCLI with the group `pruning` and the subcommands `fit`, `validate`, `sweep`."""

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Return the Trainer's methods on offer, each with its arguments that are not options."""
        # Data comes from the datamodule; `validate` reads the folder that `fit` wrote.
        given = {"model", "datamodule", "verbose", "weights_only"}
        given |= {"dataloaders", "train_dataloaders", "val_dataloaders"}
        return {"fit": given, "validate": given | {"ckpt_path"}, "sweep": given}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the option that allows programs written by the models to run."""
        parser.add_argument(
            "--allow_code_execution",
            action=ActionYesNo,
            nargs="?",
            help="Run the programs that the models write, each in isolation, to judge them.",
        )
        parser.link_arguments("allow_code_execution", "data.allow_code_execution")

    def add_subcommand_arguments(self, parser: LightningArgumentParser, subcommand: str) -> None:
        """Add the group `pruning`; a sweep has the option `variants` instead."""
        if subcommand != "sweep":
            parser.add_lightning_class_args(Pruning, "pruning", subclass_mode=True, required=False)
        replace_lists(parser, "data.tasks")

    def instantiate_classes(self) -> None:
        """Build the objects of the configuration; an error of a constructor is an InputError."""
        try:
            super().instantiate_classes()
        except (ValueError, MisconfigurationException) as error:
            raise InputError(" ".join(str(_innermost(error)).split())) from error

    def run_subcommand(self, run: Callable[[], None]) -> None:
        """Run the subcommand; if one process fails, all of them end."""
        with end_together(self.trainer):
            run()

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Build the Trainer with the callbacks that every run has."""
        callbacks = [self.setting(key) for key in self.subcommand_parser().callback_keys]
        callbacks = [callback for callback in callbacks if callback is not None]
        config = {**self.setting("trainer", default={}), **kwargs}
        if config.get("enable_progress_bar") is not False:
            callbacks.append(TaskProgressBar())
        callbacks.append(Results())  # last, to print when the progress bar is gone
        if self.subcommand == "sweep":
            self.save_config_kwargs["save_to_log_dir"] = False
        if config.get("max_epochs") != 0 and config.get("enable_checkpointing") is not False:
            given = config.get("callbacks") or []
            given = [*(given if isinstance(given, list) else [given]), *callbacks]
            if not any(isinstance(callback, LastCheckpoint) for callback in given):
                root = config.get("default_root_dir") or os.getcwd()
                callbacks.append(LastCheckpoint(os.path.join(root, "checkpoints")))
            plugins = config.get("plugins") or []
            plugins = plugins if isinstance(plugins, list) else [plugins]
            config["plugins"] = [*plugins, WholeFileCheckpointIO()]
        return self.build_trainer(config, callbacks)


def run(args: list[str] | None = None) -> PruneLitCLI:
    """Parse the arguments and run; None takes the arguments of the process, which DDP passes on."""
    return PruneLitCLI(
        PairedLM,
        PruneData,
        trainer_class=PruneTrainer,
        trainer_defaults={
            "max_epochs": 0,
            "num_sanity_val_steps": 0,
            "enable_model_summary": False,
            "log_every_n_steps": 1,
        },
        seed_everything_default=0,
        auto_configure_optimizers=False,
        save_config_callback=SaveConfig,
        # A logger with a fixed version overwrites the files of the last run; so does this file.
        save_config_kwargs={"overwrite": True},
        parser_class=OneSentenceParser,
        args=args,
    )


def main(args: list[str] | None = None) -> None:
    """Run; print an InputError as one sentence on stderr and exit with status 2."""
    # Lightning prints advertisements of products that it can log to.
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(_no_advertisement)
    for message in _BESIDE_THE_POINT:
        warnings.filterwarnings("ignore", message=message)
    try:
        run(args)
    except InputError as error:
        print(f"prunelit: error: {error}", file=sys.stderr)
        sys.exit(2)


def _innermost(error: BaseException) -> BaseException:
    """Find the cause of an error that lists every type that jsonargparse tried for a value."""
    while "any of the Union subtypes" in str(error) and error.__cause__ is not None:
        error = error.__cause__
    return error


def _no_advertisement(record: logging.LogRecord) -> bool:
    return "litlogger" not in record.getMessage() and "litmodels" not in record.getMessage()
