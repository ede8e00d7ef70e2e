"""All uses of private parts of Lightning, jsonargparse and torch.

A new release may change them without notice. `tests/core/test_private_api.py` checks each of them,
and `pyproject.toml` allows the releases that pass.

Internal: nothing here is public.
"""

import platform
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path, PurePath
from pickle import UnpicklingError
from subprocess import Popen
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.strategies import ModelParallelStrategy, Strategy
from torch.distributed.checkpoint import metadata
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

try:
    from jsonargparse._typehints import ActionTypeHint
    from lightning.pytorch.strategies.launchers.subprocess_script import _SubprocessScriptLauncher
    from lightning.pytorch.trainer.connectors.signal_connector import _SignalConnector
    from torch.distributed.checkpoint.filesystem import _StorageInfo
    from torch.testing._internal.distributed.fake_pg import FakeStore
except ImportError as error:
    raise ImportError(
        f"This release of Lightning, jsonargparse or torch has no private part that prunelit uses "
        f"({error}): install the releases that prunelit's requirements name."
    ) from error


def multiplies_bfloat16() -> bool:
    """Return True if this CPU has instructions for products of bfloat16."""
    if platform.machine().lower() in ("x86_64", "amd64"):
        return torch.cpu._is_avx512_bf16_supported()  # all that have AMX have these too
    known = torch.backends.mkldnn.is_available()
    return known and bool(torch.ops.mkldnn._is_mkldnn_bf16_device_supported())


def child_processes(trainer: Trainer) -> list[Popen]:
    """Return the processes that Lightning started; empty if another program started this one."""
    launcher = trainer.strategy.launcher
    return launcher.procs if isinstance(launcher, _SubprocessScriptLauncher) else []


def parallel_sizes(strategy: ModelParallelStrategy) -> tuple[int | str, int | str]:
    """Return the sizes of a data-parallel and of a tensor-parallel group; each may be `auto`."""
    return strategy._data_parallel_size, strategy._tensor_parallel_size


def writes_folders(strategy: Strategy) -> bool:
    """Return True if a checkpoint is a folder, into which every rank writes its shards."""
    sharded = isinstance(strategy, ModelParallelStrategy)
    return sharded and strategy._save_distributed_checkpoint


@contextmanager
def imagined_group(ranks: int) -> Iterator[DeviceMesh]:
    """Let this process be the first of several that do not exist, within the context.

    Args:
        ranks: their number.

    Returns:
        All of them, on the CPU. What is sent is lost, and what is received has no value.
    """
    dist.init_process_group("fake", rank=0, world_size=ranks, store=FakeStore())
    try:
        yield init_device_mesh("cpu", (ranks,))
    finally:
        dist.destroy_process_group()


def optimizer_stepped(trainer: Trainer) -> bool:
    """Return True if the optimizer made a step at the current training batch."""
    return not trainer.fit_loop._should_accumulate()


def validation_follows(trainer: Trainer) -> bool:
    """Return True if a validation comes between the current training batch and the next one."""
    fetcher = trainer.fit_loop._data_fetcher
    assert fetcher is not None
    return trainer.fit_loop.epoch_loop._should_check_val_fx(fetcher)


def claim_version(logger: Logger) -> Path | None:
    """Make the next free `version_N` of a logger, which no other run then takes.

    Returns:
        The folder; None for a logger that has a version, or that writes no such folders.
    """
    if not isinstance(logger, TensorBoardLogger | CSVLogger) or logger._version is not None:
        return None
    number = logger.version
    assert isinstance(number, int)
    while True:
        logger._version = number
        folder = Path(logger.log_dir)
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            number += 1
        else:
            return folder


@cache
def index_names() -> dict[tuple[str, str], Any]:
    """Return what the index of a folder of `torch.distributed.checkpoint` names.

    Returns:
        Classes, dtypes and functions, by module and name; none of them does anything but build a
        value.
    """
    classes = (
        *(metadata.Metadata, metadata.MetadataIndex, metadata.StorageMeta, _StorageInfo),
        *(metadata.TensorStorageMetadata, metadata.ChunkStorageMetadata, torch.Size),
        *(metadata.TensorProperties, metadata._MEM_FORMAT_ENCODING, metadata.BytesStorageMetadata),
    )
    dtypes = [value for value in vars(torch).values() if isinstance(value, torch.dtype)]
    return {
        **{(one.__module__, one.__name__): one for one in classes},
        **{("torch", str(dtype).removeprefix("torch.")): dtype for dtype in dtypes},
        ("torch.serialization", "_get_layout"): torch.serialization._get_layout,
        # So some releases of Python 3.11, as that of Debian 12, write a member of an enumeration.
        ("builtins", "getattr"): _memory_format,
        # The place of the folder when it was written; its module depends on the version of Python.
        **dict.fromkeys(((name, "PosixPath") for name in ("pathlib", "pathlib._local")), PurePath),
    }


def _memory_format(owner: object, name: str) -> metadata._MEM_FORMAT_ENCODING:
    if owner is not metadata._MEM_FORMAT_ENCODING:
        raise UnpicklingError(f"it would take {name!r} of {owner!r}, which is not done")
    return metadata._MEM_FORMAT_ENCODING[name]


class ResumingTrainer(Trainer):
    """A Trainer whose `ckpt_path` is known when the callbacks are set up, and not only later."""

    def _run(
        self, model: LightningModule, ckpt_path: Any = None, weights_only: bool | None = None
    ) -> Any:
        self._checkpoint_connector._ckpt_path = ckpt_path
        return super()._run(model, ckpt_path=ckpt_path, weights_only=True)  # so that no code runs


class _NoSignals(_SignalConnector):
    def register_signal_handlers(self) -> None:
        pass


def leave_signals(trainer: Trainer) -> None:
    """Keep Lightning from handling signals in the runs of this Trainer.

    Its handler of SIGTERM ends a run with status 0. With several processes it starts a collective
    inside the handler. Under SLURM, its handler of SIGUSR1 writes a checkpoint within a step.
    """
    trainer._signal_connector = _NoSignals(trainer)


def restores_checkpoint(error: BaseException) -> bool:
    """Return True if an error came up while Lightning restored a checkpoint."""
    return any(
        Path(frame.f_code.co_filename).stem == "checkpoint_connector"
        and frame.f_code.co_name.startswith(("restore", "_restore", "resume"))
        for frame, _ in traceback.walk_tb(error.__traceback__)
    )


class _WholeList(ActionTypeHint):
    """An option whose value, a list, replaces an earlier list.

    jsonargparse merges two lists of the same length item by item. A task would then keep the limit
    or the subset of the task that it replaces.
    """

    def _check_type(
        self, value: Any, append: bool = False, cfg: Any = None, mode: Any = None
    ) -> Any:
        whole = isinstance(value, str | list) and not append  # not an option of the last item
        return super()._check_type(value, append, cfg=None if whole else cfg, mode=mode)


def replace_lists(parser: LightningArgumentParser, option: str) -> None:
    """Let a later list of `option` replace an earlier one; jsonargparse has no setting for it."""
    action = next(action for action in parser._actions if action.dest == option)
    action.__class__ = _WholeList


class _Texts(ActionTypeHint):
    """An option that can be given several times: a text is one more item of its list."""

    def _check_type(
        self, value: Any, append: bool = False, cfg: Any = None, mode: Any = None
    ) -> Any:
        one = isinstance(value, str) and not value.startswith("[") and value != "null"
        return super()._check_type(value, append=append or one, cfg=cfg, mode=mode)


def collect_texts(parser: LightningArgumentParser, option: str) -> None:
    """Let `option`, a list of texts, be given several times; each adds to the list."""
    action = next(action for action in parser._actions if action.dest == option)
    action.__class__ = _Texts


class HookedCLI(LightningCLI):
    """LightningCLI with public methods in place of Lightning's private ones.

    A checkpoint given by `--ckpt_path` does not change the configuration: Lightning would let the
    hyperparameters in it override the options that the user gives. None are written either, which
    would need the configuration a second time, as text.
    """

    config_dump: ClassVar[dict[str, Any]] = {}

    def add_subcommand_arguments(self, parser: LightningArgumentParser, subcommand: str) -> None:
        """Add arguments to the parser of one subcommand."""

    def run_subcommand(self, run: Callable[[], None]) -> None:
        """Call `run`, which runs the chosen subcommand."""
        run()

    def subcommand_parser(self) -> LightningArgumentParser:
        """Return the parser of the chosen subcommand."""
        return self._parser(self.subcommand)

    def setting(self, key: str, default: Any = None) -> Any:
        """Return an object or value of the chosen subcommand's instantiated configuration."""
        return self._get(self.config_init, key, default=default)

    def build_trainer(self, config: dict[str, Any], callbacks: list[Callback]) -> Trainer:
        """Build the Trainer from its arguments, with `callbacks` after those in `config`."""
        return self._instantiate_trainer(config, callbacks)

    def _prepare_subcommand_parser(
        self, klass: type, subcommand: str, **kwargs: Any
    ) -> LightningArgumentParser:
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        self.add_subcommand_arguments(parser, subcommand)
        return parser

    def _run_subcommand(self, subcommand: str) -> None:
        run = super()._run_subcommand
        self.run_subcommand(lambda: run(subcommand))

    def _parse_ckpt_path(self) -> None:
        pass
