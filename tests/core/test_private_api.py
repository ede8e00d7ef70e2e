"""Private parts of Lightning and jsonargparse, each as this package uses it."""

import ast
import importlib.metadata
import importlib.util
import inspect
import pkgutil
import platform
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jsonargparse
import pytest
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from lightning.pytorch.strategies.launchers import subprocess_script

import prunelit
import prunelit.core.private_api as private_api
from prunelit.core.private_api import (
    HookedCLI,
    child_processes,
    claim_version,
    imagined_group,
    leave_signals,
    multiplies_bfloat16,
    optimizer_stepped,
    parallel_sizes,
    replace_lists,
    validation_follows,
    writes_folders,
)

PACKAGE = Path(prunelit.__file__).parent
LIBRARIES = ("lightning", "jsonargparse")

# Private attributes of other libraries: `os._exit` is documented, the others have tests of their
# own (`test_fingerprint.py`, `contracts/test_metrics.py`).
ELSEWHERE = {
    "os._exit",
    "model.config._attn_implementation",
    "part._version",  # PyTorch counts changes in place by it, and its documentation names it
    "model._keys_to_ignore_on_load_unexpected",  # transformers: authors of models set it
    "model._get_dtype_plan",  # transformers: it reads what authors of models set
    "super()._apply",
    "experts._apply_gate",  # transformers: authors of experts set it
}


def changed(part: str) -> str:
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in LIBRARIES)
    return (
        f"{part} is not what core/private_api.py uses ({versions}): adapt it, "
        "or exclude this release in pyproject.toml."
    )


CLI = "lightning.pytorch.cli:LightningCLI."
SIGNALS = "lightning.pytorch.trainer.connectors.signal_connector:_SignalConnector."
LOOPS = "lightning.pytorch.loops."
METHODS = {
    f"{LOOPS}fit_loop:_FitLoop._should_accumulate": [],
    f"{LOOPS}training_epoch_loop:_TrainingEpochLoop._should_check_val_fx": ["data_fetcher"],
    "jsonargparse._typehints:ActionTypeHint._check_type": ["value", "append", "cfg", "mode"],
    f"{CLI}_get": ["config", "key", "default"],
    f"{CLI}_instantiate_trainer": ["config", "callbacks"],
    f"{CLI}_parse_ckpt_path": [],
    f"{CLI}_parser": ["subcommand"],
    f"{CLI}_prepare_subcommand_parser": ["klass", "subcommand", "kwargs"],
    f"{CLI}_run_subcommand": ["subcommand"],
    f"{SIGNALS}register_signal_handlers": [],
    "lightning.pytorch.trainer.trainer:Trainer._run": ["model", "ckpt_path", "weights_only"],
}


@pytest.mark.parametrize("path", METHODS)
def test_a_private_method_has_the_same_arguments(path: str) -> None:
    try:
        method = pkgutil.resolve_name(path)
    except (ImportError, AttributeError) as error:
        pytest.fail(f"{changed(path)} {error}")
    assert list(inspect.signature(method).parameters) == ["self", *METHODS[path]], changed(path)


def test_a_release_without_a_private_part_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(subprocess_script, "_SubprocessScriptLauncher")
    spec = importlib.util.spec_from_file_location("again", private_api.__file__)
    assert spec is not None
    assert spec.loader is not None
    with pytest.raises(ImportError, match=r"_SubprocessScriptLauncher.*install the releases"):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


def test_started_processes_are_those_of_the_launcher() -> None:
    options: dict[str, Any] = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False}
    assert child_processes(Trainer(**options)) == []
    trainer = Trainer(devices=2, strategy="ddp", **options)
    launcher = trainer.strategy.launcher
    assert getattr(launcher, "procs", None) == [], changed("`procs` of Lightning's launcher")
    process = subprocess.Popen(["true"])
    launcher.procs = [process]  # type: ignore[union-attr]
    assert child_processes(trainer) == [process]
    process.wait()


def test_ranks_that_do_not_exist_are_imagined() -> None:
    with imagined_group(3) as mesh:
        assert (mesh.size(), mesh.get_rank(), dist.get_world_size()) == (3, 0, 3)
    assert not dist.is_initialized()


def test_a_strategy_tells_how_it_shards() -> None:
    strategies = [ModelParallelStrategy(2, 1), ModelParallelStrategy(2, "auto", False)]
    sentence = changed("`ModelParallelStrategy._data_parallel_size`")
    assert [parallel_sizes(strategy) for strategy in strategies] == [(2, 1), (2, "auto")], sentence
    assert [writes_folders(strategy) for strategy in strategies] == [True, False], sentence
    assert not writes_folders(DDPStrategy())


@pytest.mark.parametrize("kind", [TensorBoardLogger, CSVLogger])
def test_loggers_that_start_together_have_folders_of_their_own(kind: Any, tmp_path: Path) -> None:
    loggers = [kind(tmp_path, name="board") for _ in range(2)]
    with ThreadPoolExecutor(2) as pool:
        folders = list(pool.map(claim_version, loggers))
    assert {folder and folder.name for folder in folders} == {"version_0", "version_1"}
    assert {logger.version for logger in loggers} == {0, 1}, changed("`Logger._version`")
    assert claim_version(loggers[0]) is None
    assert claim_version(kind(tmp_path, name="board", version="only")) is None


class Handlers(Callback):
    """Record the handler of SIGTERM during training."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.found = signal.getsignal(signal.SIGTERM)


def test_lightning_leaves_signals_alone(tmp_path: Path) -> None:
    handlers = Handlers()
    trainer = Trainer(
        accelerator="cpu", callbacks=[handlers], default_root_dir=tmp_path, fast_dev_run=True,
        enable_model_summary=False, enable_progress_bar=False,
    )  # fmt: skip
    before = signal.getsignal(signal.SIGTERM)
    leave_signals(trainer)
    trainer.fit(BoringModel())
    assert handlers.found == before, changed("`Trainer._signal_connector`")


class Noting(Callback):
    """Record after every training batch if a step was made and if a validation follows."""

    def __init__(self) -> None:
        self.stepped: list[bool] = []
        self.validates: list[bool] = []
        self.found: list[str] = []

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, *_: Any, **__: Any
    ) -> None:
        assert hasattr(trainer.fit_loop, "_data_fetcher"), changed("`_FitLoop._data_fetcher`")
        self.stepped.append(optimizer_stepped(trainer))
        self.validates.append(validation_follows(trainer))
        self.found.append("batch")

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.found.append("validation")


def test_steps_and_validations_are_foreseen(tmp_path: Path) -> None:
    noting = Noting()
    trainer = Trainer(
        accelerator="cpu",
        accumulate_grad_batches=2,
        callbacks=[noting],
        default_root_dir=tmp_path,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        limit_train_batches=7,
        limit_val_batches=1,
        logger=False,
        max_epochs=1,
        num_sanity_val_steps=0,
        val_check_interval=3,
    )
    trainer.fit(BoringModel())
    # The gradients that are accumulated at the end of an epoch make a step.
    assert noting.stepped == [False, True, False, True, False, True, True], changed(
        "`_should_accumulate`"
    )
    sentence = changed("`_should_check_val_fx`")
    assert noting.validates == [False, False, True, False, False, True, False], sentence
    expected = []
    for follows in noting.validates:
        expected += ["batch", "validation"] if follows else ["batch"]
    assert noting.found == expected, sentence


class Holder:
    def __init__(self, tasks: list[dict[str, int]] | None = None) -> None:
        self.tasks = tasks


def test_a_list_replaces_an_earlier_list() -> None:
    parser = LightningArgumentParser()
    parser.add_argument("--config", action=jsonargparse.ActionConfigFile)
    parser.add_class_arguments(Holder, "data")
    replace_lists(parser, "data.tasks")
    given = ['--data.tasks=[{"limit": 1, "seed": 2}]', '--data.tasks=[{"limit": 3}]']
    assert parser.parse_args(given).data.tasks == [{"limit": 3}], changed("`_check_type`")


class Recording(Trainer):
    def measure(self, model: LightningModule, ckpt_path: str | None = None) -> None:
        """Do nothing."""


class Hooked(HookedCLI):
    ran: list[str]

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        return {"measure": {"model"}}

    def add_subcommand_arguments(self, parser: LightningArgumentParser, subcommand: str) -> None:
        parser.add_argument(f"--{subcommand}_again", type=int, default=1)

    def run_subcommand(self, run: Any) -> None:
        self.ran = ["before"]
        run()
        self.ran.append("after")

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        assert self.subcommand_parser() is not self.parser
        config = {**self.setting("trainer", default={}), **kwargs}
        return self.build_trainer(config, [Noting()])


def test_subcommands_have_public_methods_to_override(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["program"])  # Lightning warns of arguments beside `args`
    checkpoint = tmp_path / "any.ckpt"
    checkpoint.write_bytes(b"Lightning would read this file for hyperparameters.")
    cli = Hooked(
        BoringModel,
        trainer_class=Recording,
        trainer_defaults={"accelerator": "cpu", "logger": False, "enable_progress_bar": False},
        save_config_callback=None,
        seed_everything_default=False,
        args=["measure", "--measure_again", "2", "--ckpt_path", str(checkpoint)],
    )
    sentence = changed("a private method of LightningCLI")
    assert cli.setting("measure_again") == 2, sentence
    assert cli.setting("nothing", default="else") == "else", sentence
    assert cli.ran == ["before", "after"], sentence
    assert any(isinstance(c, Noting) for c in cli.trainer.callbacks), sentence  # type: ignore[attr-defined]


def trees() -> Iterator[tuple[Path, ast.Module]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        if path.name != "private_api.py":
            yield path.relative_to(PACKAGE), ast.parse(path.read_text(encoding="utf-8"))


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def test_no_other_file_imports_a_private_part() -> None:
    found = [
        f"{path}:{node.lineno}"
        for path, tree in trees()
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        and (node.module or "").startswith(LIBRARIES)
        and any(map(is_private, [*(node.module or "").split("."), *(n.name for n in node.names)]))
    ]
    assert not found, f"Move these imports to private_api.py: {found}."


def test_no_other_file_uses_a_private_attribute_of_a_library() -> None:
    nodes = [(path, node) for path, tree in trees() for node in ast.walk(tree)]
    own = {node.name for _, node in nodes if isinstance(node, ast.FunctionDef)}
    own |= {
        node.attr
        for _, node in nodes
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)
    }
    own |= {
        name
        for _, node in nodes
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__slots__"
        for name in ast.literal_eval(node.value)
    }
    found = [
        f"{path}:{node.lineno} {ast.unparse(node)}"
        for path, node in nodes
        if isinstance(node, ast.Attribute)
        and is_private(node.attr)
        and ast.unparse(node) not in ELSEWHERE
        and (node.attr not in own or ast.unparse(node.value) == "super()")
    ]
    assert not found, f"Move these uses to private_api.py: {found}."


def private_names(owner: type) -> set[str]:
    """Names that a class defines, as a method, an attribute or by `self.name = ...`."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(owner)))
    given = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and isinstance(node.ctx, ast.Store)
        and ast.unparse(node.value) == "self"
    }
    return {name for name in given | set(vars(owner)) if is_private(name)}


def subclasses() -> Iterator[tuple[type, list[type]]]:
    """Classes of the package with those of their bases that belong to the libraries."""
    for module in pkgutil.walk_packages(prunelit.__path__, "prunelit."):
        if module.name in ("prunelit.__main__", "prunelit.core.private_api"):
            continue
        for member in vars(importlib.import_module(module.name)).values():
            if inspect.isclass(member) and member.__module__ == module.name:
                bases = [base for base in member.__mro__ if base.__module__.startswith(LIBRARIES)]
                if bases:
                    yield member, bases


def test_no_other_class_overrides_a_private_name() -> None:
    found = {
        f"{member.__name__}.{name}"
        for member, bases in subclasses()
        for base in bases
        for name in private_names(member) & private_names(base)
        if name != "_abc_impl"
    }
    assert not found, f"Rename these attributes, or move them to private_api.py: {sorted(found)}."


def test_instructions_for_bfloat16_are_those_of_the_processor() -> None:
    info = Path("/proc/cpuinfo")
    if not info.is_file() or platform.machine() != "x86_64":
        pytest.skip("needs Linux on x86")
    assert multiplies_bfloat16() == ("avx512_bf16" in info.read_text())
