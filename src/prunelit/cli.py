"""The command line: `prunelit fit`, `validate`, `compare`, `sweep` and `search`.

Internal: the command and its options are public, the classes are not.
"""

import inspect
import logging
import os
import pkgutil
import re
import sys
import warnings
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import yaml
from huggingface_hub.utils import are_progress_bars_disabled, enable_progress_bars
from jsonargparse import ActionYesNo, get_loader, set_loader
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer, strategies
from lightning.pytorch.cli import LightningArgumentParser, SaveConfigCallback
from lightning.pytorch.strategies import StrategyRegistry
from lightning.pytorch.utilities import rank_zero_info
from transformers.utils.logging import disable_progress_bar

from prunelit.callbacks import LastCheckpoint, Pruning, Results, TaskProgressBar
from prunelit.callbacks.checkpoints import WholeFileCheckpointIO
from prunelit.callbacks.overview import sweep_folder
from prunelit.callbacks.results import OUTCOME
from prunelit.core.candidate import leave_out
from prunelit.core.checks import check_strategy, unknown_strategy
from prunelit.core.command import SUBCOMMANDS
from prunelit.core.config_files import check_nodes, config_paths
from prunelit.core.datamodule import PruneData
from prunelit.core.dry_run import dry_run
from prunelit.core.module import PairedLM
from prunelit.core.option_errors import name_owner
from prunelit.core.parser import OneSentenceParser, innermost
from prunelit.core.private_api import HookedCLI, collect_texts, replace_lists
from prunelit.core.processes import end_together, misconfiguration
from prunelit.errors import (
    InputError,
    check_seed,
    explain,
    name_own_code,
    visible,
)
from prunelit.files import is_text, keep_earlier, make_folder, write_text
from prunelit.report.verdicts import FAILS, KEEP
from prunelit.trainer import PruneTrainer

# Warnings of Lightning that do not apply to a run of prunelit.
_BESIDE_THE_POINT = (
    ".*configure_optimizers` returned `None`",
    ".*isinstance\\(treespec, LeafSpec\\)` is deprecated",
    # Every rank has the complete table of items.
    "It is recommended to use `self.log\\(.*sync_dist=True",
    # A run without tasks, which is said.
    "Total length of `dict` across ranks is zero",
    # The folder holds the last checkpoint of this run.
    "Checkpoint directory .* exists and is not empty",
)

# Lines of Lightning that do not either: products that it can log to, and a training of no epochs.
_NO_NEWS = ("litlogger", "litmodels", "`Trainer.fit` stopped: `max_epochs=0` reached")

_CONFIG = re.compile(r"(-c|--config)(=|$)")
_PLAIN = (int, float, str, bool, "int", "float", "str", "bool")
_jsonargparse_yaml = get_loader("yaml")


class SaveConfig(SaveConfigCallback):
    """Write the configuration to the folder of the run, or to the folder of all variants.

    Another configuration that is there is moved to `earlier_N`, and with it the results of its run.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find the folder; on every rank, as Lightning shares the logger's folder between them."""
        self._sweeps = "variants" in self.config
        logged = trainer.log_dir or trainer.default_root_dir
        self._folder = sweep_folder(trainer) if self._sweeps else Path(logged)
        super().setup(trainer, pl_module, stage)

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write the file on rank 0."""
        path = make_folder(self._folder) / self.config_filename
        text = self.parser.dump(self.config, skip_none=False)
        if path.is_file() and _settings(path.read_bytes()) != _settings(text):
            kept = keep_earlier(path.parent, (path.name, *(() if self._sweeps else OUTCOME)))
            rank_zero_info(f"Files of another configuration were here; they are now in {kept}.")
        write_text(path, text)


class PruneLitCLI(HookedCLI):
    """LightningCLI with the group `pruning` and a subcommand for each run of `PruneTrainer`."""

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Return the Trainer's methods on offer, each with its arguments that are not options."""
        # Data comes from the datamodule; `validate` reads the folder that `fit` wrote.
        given = {"model", "datamodule", "verbose", "weights_only"}
        given |= {"dataloaders", "train_dataloaders", "val_dataloaders"}
        every = dict.fromkeys(SUBCOMMANDS, given) | {"validate": given | {"ckpt_path"}}
        # The options of a subcommand take half a second; only those of the chosen one are needed.
        return {name: own for name, own in every.items() if name in sys.argv[1:2]} or every

    _default = False  # True for `compare` without a configuration

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the option that allows programs written by the models to run."""
        parser.add_argument(
            "--allow_code_execution",
            action=ActionYesNo,
            nargs="?",
            help="Run the programs that the models write, each in isolation, to judge them.",
        )
        parser.link_arguments("allow_code_execution", "data.allow_code_execution")
        parser.add_argument(
            "--keep",
            type=float | dict[str, float] | str,
            default=KEEP,
            help="Share of the dense model's lead over chance that must remain; by the name of a "
            "task or use: `generation=0.9,default=0.95`.",
        )
        parser.add_argument(
            "--margin",
            type=dict[str, float] | str | None,
            default=None,
            help="Highest loss of a score in place of the share, by the name of a task or use: "
            "`answers=0.05`.",
        )
        parser.add_argument(
            "--speed",
            type=bool,
            default=True,
            help="Measure speed and memory of both models when the tasks are done.",
        )
        parser.add_argument(
            "--verbose",
            action=ActionYesNo,
            nargs="?",
            help="Print the tables of all blocks, metrics and verdicts.",
        )
        parser.add_argument(
            "--fail_on",
            type=Literal["loses", "cannot_tell"] | None,
            default=None,
            help="Exit with status 3 if a use `loses`, or if it does not keep (`cannot_tell`).",
        )

    def add_subcommand_arguments(self, parser: LightningArgumentParser, subcommand: str) -> None:
        """Add the group `pruning`; a sweep has `variants` instead, and `compare` a candidate."""
        if subcommand in ("fit", "validate", "compare"):
            parser.add_argument(
                "--baseline",
                type=list[str] | None,
                default=None,
                help="Measure a baseline beside the pruned model; give it once for each one: "
                "`8bit`, `4bit` (the dense model rounded), or the source of another model.",
            )
            collect_texts(parser, "baseline")
            parser.add_argument(
                "--dry_run",
                action=ActionYesNo,
                nargs="?",
                help="Print what the run would take: placement, memory, disk, sweeps over the "
                "weights and time. Prune, measure and write nothing.",
            )
        if subcommand in ("fit", "validate"):
            parser.add_lightning_class_args(Pruning, "pruning", subclass_mode=True, required=False)
        if subcommand == "compare" and not any(map(_CONFIG.match, sys.argv)):
            self._default = True
            parser.default_config_files = [
                str(resources.files("prunelit") / "data" / "compare.yaml")
            ]
        replace_lists(parser, "data.tasks")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse, and refuse a seed that is too large."""
        OneSentenceParser.started = os.getcwd()
        super().parse_arguments(parser, args)
        seed = self.config[self.config["subcommand"]]["seed_everything"]
        if not isinstance(seed, bool):
            check_seed("seed_everything", seed)

    def instantiate_classes(self) -> None:
        """Build the objects of the configuration; an error of a constructor is an InputError."""
        given = self.config[self.config["subcommand"]].as_dict()
        _check_null(given)
        strategy = given["trainer"]["strategy"]
        if isinstance(strategy, dict):  # its constructor would want a package first
            kind = pkgutil.resolve_name(strategy["class_path"])
            if isinstance(kind, type):
                check_strategy(kind)
        try:
            super().instantiate_classes()
        except (ValueError, MisconfigurationException) as error:
            cause = error.__cause__
            if cause is not None and not isinstance(cause, ValueError) and name_own_code(cause):
                raise
            inner = innermost(error)
            sentence = name_owner(inner, config_paths(sys.argv[1:])) or str(inner)
            sentence = re.sub(
                r"^Problem with given class_path ('.*?'):",
                r"The class \1 cannot be used:",
                sentence,
            )
            raise InputError(" ".join(sentence.split())) from error
        if self._default and self.model.weights.candidate is not None:
            leave_out(self.datamodule, self.model.weights)
        self._results.check(self.datamodule)
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, Pruning):
                callback.verbose = self._results.verbose

    def run_subcommand(self, run: Callable[[], None]) -> None:
        """Run the subcommand; if one process fails, all of them end."""
        if self.setting("dry_run", False):
            self._tell()
            return
        with end_together(self.trainer):
            run()
        fails = FAILS.get(self.setting("fail_on"), ())
        if self.trainer.is_global_zero and any(word in fails for word in self._results.words):
            sys.exit(3)

    def _tell(self) -> None:
        """Print what the run would take."""
        callbacks: list[Any] = self.trainer.callbacks  # type: ignore[attr-defined]
        pruning = next((one for one in callbacks if isinstance(one, Pruning)), None)
        fits = self.subcommand == "fit"
        output = pruning.folder(self.trainer) if pruning is not None and fits else None
        pruner = None if pruning is None else pruning.pruner
        found = dry_run(self.trainer, self.model, self.datamodule, pruner, output, fits=fits)
        width = max(map(len, found))
        for topic, words in found.items():
            print(f"{topic:{width}}  {visible(words)}")

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Build the Trainer with the callbacks that every run has."""
        callbacks = [self.setting(key) for key in self.subcommand_parser().callback_keys]
        callbacks = [callback for callback in callbacks if callback is not None]
        config = {**self.setting("trainer", default={}), **kwargs}
        if config.get("enable_progress_bar") is not False:
            callbacks.append(TaskProgressBar())
        self._results = Results(
            self.setting("keep", KEEP),
            self.setting("margin"),
            self.setting("speed", True),
            bool(self.setting("verbose", False)),
            self.setting("baseline") or (),
        )
        if not self._results.verbose:
            _silence_transformers()
        callbacks.append(self._results)  # last, to print when the progress bar is gone
        if config.get("max_epochs") != 0 and config.get("enable_checkpointing") is not False:
            given = config.get("callbacks") or []
            given = [*(given if isinstance(given, list) else [given]), *callbacks]
            if not any(isinstance(callback, LastCheckpoint) for callback in given):
                root = config.get("default_root_dir") or os.getcwd()
                callbacks.append(LastCheckpoint(os.path.join(root, "checkpoints")))
            plugins = config.get("plugins") or []
            plugins = plugins if isinstance(plugins, list) else [plugins]
            config["plugins"] = [*plugins, WholeFileCheckpointIO()]
        # Lightning would want a GPU first, or a package; and it knows no names of classes.
        wanted = config.get("strategy")
        if (name := str(wanted).lower()) in StrategyRegistry:
            check_strategy(StrategyRegistry[name]["strategy"])
        elif isinstance(kind := getattr(strategies, str(wanted).rpartition(".")[2], None), type):
            check_strategy(kind)
            config["strategy"] = kind()
        elif isinstance(wanted, str) and name != "auto":
            raise unknown_strategy(wanted)
        try:
            return self.build_trainer(config, callbacks)
        # Devices that are no number; two callbacks of a kind; the variables of another launcher.
        except (TypeError, RuntimeError) as error:
            if name_own_code(error):
                raise
            raise InputError(f"The Trainer refuses its settings: {error}") from error
        except MisconfigurationException as error:
            raise InputError(_name_setting(str(error), config)) from error


def _silence_transformers() -> None:
    """Leave out the bars of weights that are read and written; those of downloads stay."""
    downloads = not are_progress_bars_disabled()
    disable_progress_bar()
    if downloads:
        enable_progress_bars()


def _name_setting(message: str, config: dict[str, Any]) -> str:
    """Name the option of the Trainer whose value is in a message that names none."""
    if not any(name in message for name in config):
        given = [
            name
            for name, value in config.items()
            if isinstance(value, str) and re.search(rf"\b{re.escape(value)}\b", message)
        ]
        message += f" It is given for `trainer.{given[0]}`." if given else ""
    return message


def run(args: list[str] | None = None) -> PruneLitCLI:
    """Parse the arguments and run; None takes the arguments of the process, which DDP passes on."""
    for argument in sys.argv[1:] if args is None else args:
        if not is_text(argument):
            raise InputError(
                f"Expected arguments in UTF-8 but got {argument!r}: rename the file or the folder."
            )
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
        save_config_kwargs={"save_to_log_dir": False},  # `SaveConfig` finds the folder
        parser_class=OneSentenceParser,
        args=args,
    )


def main(args: list[str] | None = None) -> None:
    """Run; print an InputError as one sentence on stderr and exit with status 2."""
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(_is_news)
    for message in _BESIDE_THE_POINT:
        warnings.filterwarnings("ignore", message=message)
    set_loader("yaml", load_yaml, (yaml.YAMLError,))
    # Defaults of Lightning that are members of an enumeration of texts.
    yaml.SafeDumper.add_multi_representer(str, lambda dumper, text: dumper.represent_str(str(text)))
    try:
        run(args)
    except Exception as error:  # noqa: BLE001 - each ends in a sentence
        text, status = explain(error, misconfiguration(error))
        print(text, file=sys.stderr)
        sys.exit(status)


def load_yaml(text: str) -> Any:
    """Load YAML as jsonargparse does, but refuse what it takes for something else without a word.

    Raises:
        InputError: see `check_nodes`.
        yaml.YAMLError: if the text is not valid.
    """
    try:
        if ":" in text or "&" in text:
            check_nodes(yaml.compose(text, Loader=yaml.SafeLoader))
        return _jsonargparse_yaml(text)
    except RecursionError:
        raise InputError(f"The YAML that begins with {text[:40]!r} is nested too deeply.") from None
    except InputError:
        raise
    except ValueError as error:  # such as a date that does not exist
        raise yaml.YAMLError(str(error)) from error


def _settings(text: str | bytes) -> Any:
    """Read the settings that decide the results of a configuration that was saved."""
    try:
        settings = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError):  # of a file that was edited
        return None
    if isinstance(settings, dict):
        for name in (
            "ckpt_path",
            "keep",
            "margin",
            "fail_on",
            "speed",
            "verbose",
            "baseline",
            "dry_run",
        ):  # they change no result
            settings.pop(name, None)
    return settings


def _check_null(config: Any) -> None:
    """Refuse null for an option of a class that does not take None; jsonargparse allows it.

    Raises:
        InputError: naming the option.
    """
    if isinstance(config, list):
        for item in config:
            _check_null(item)
    if not isinstance(config, dict):
        return
    arguments = config.get("init_args")
    if isinstance(path := config.get("class_path"), str) and isinstance(arguments, dict):
        kinds = _annotations(pkgutil.resolve_name(path))
        for name, value in arguments.items():
            if value is None and (kind := kinds.get(name)) in _PLAIN:
                raise InputError(
                    f"Expected `{name}` of {path} as {getattr(kind, '__name__', kind)} but got "
                    "null: give a value, or leave it out for its default."
                )
    for value in config.values():
        _check_null(value)


def _annotations(target: Any) -> dict[str, Any]:
    """Return the annotations of a class's arguments, those that it passes on to a base included."""
    functions = (
        [vars(base).get("__init__") for base in reversed(inspect.getmro(target))]
        if (inspect.isclass(target))
        else [target]
    )
    return {
        name: parameter.annotation
        for function in functions
        if inspect.isfunction(function)
        for name, parameter in inspect.signature(function).parameters.items()
    }


def _is_news(record: logging.LogRecord) -> bool:
    """Return False for a line of Lightning that does not apply to a run of prunelit."""
    return not any(words in record.getMessage() for words in _NO_NEWS)
