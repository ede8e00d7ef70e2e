"""A session: variants of one model, checked together and measured one after the other."""

import os
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.fabric.utilities.seed import reset_seed
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import LambdaCallback
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_info

from prunelit.callbacks.overview import (
    FIGURES,
    OVERVIEW,
    NoEvents,
    clear_events,
    decide_again,
    events_of,
    read_record,
    read_records,
    version,
    write_overview,
    write_record,
)
from prunelit.callbacks.pruned_folder import check_output, read_own
from prunelit.callbacks.pruning import Pruning
from prunelit.callbacks.results import Results, check_outcome
from prunelit.callbacks.rounds import require_prunelit
from prunelit.core.datamodule import PruneData
from prunelit.core.knobs import Knob
from prunelit.core.measurement import measurement_key, measurement_settings
from prunelit.core.module import PairedLM
from prunelit.errors import InputError
from prunelit.files import check_names
from prunelit.pruners import BlockDrop, SublayerDrop
from prunelit.pruners.base import Pruner
from prunelit.pruning.blockwise import check_text, reads_text
from prunelit.recipe import recipe_id
from prunelit.report.curves import Curve
from prunelit.report.page.runs import PAGE, Run
from prunelit.report.results import Result
from prunelit.report.search import SEARCH
from prunelit.report.variants import Point, Variant
from prunelit.report.verdicts import use_sentences, use_words

_RESERVED = (OVERVIEW, FIGURES, SEARCH, PAGE, "config.yaml")

_KINDS = {
    "attention": "attention sublayers",
    "mlp": "MLP sublayers",
    "both": "sublayers of both kinds",
}


def sweep_folder(trainer: Trainer) -> Path:
    """Return the folder of all variants: `<save_dir>/<name>` of a logger or `default_root_dir`."""
    logger = trainer.logger
    return Path(
        logger.root_dir if isinstance(logger, TensorBoardLogger) else trainer.default_root_dir
    )


class Session:
    """Measures variants of one model, one after the other; made by `open_session`.

    Args:
        trainer: its callbacks and loggers are changed.
        module: the models.
        data: the tasks.
        results: writes the results of each variant.
    """

    def __init__(
        self, trainer: Trainer, module: PairedLM, data: PruneData, results: Results
    ) -> None:
        self.folder = sweep_folder(trainer)
        self.results = results
        self.variants: dict[str, Variant] = {}  # that are measured; on the first rank
        self.known: set[str] = set()  # measured earlier, by what `plan` found
        self.wanted: Sequence[str] = ()  # all variants of a sweep
        self.reads_text: dict[str, bool] = {}  # of each method with a knob
        self._trainer, self._module, self._data = trainer, module, data
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        self._others = [callback for callback in callbacks if callback is not results]
        self._logger = trainer.loggers[0] if trainer.loggers else None
        self._prunings: dict[str, Pruning] = {}
        self._keys: dict[str, str] = {}
        self._points: dict[str, Point] = {}
        self._methods: dict[str, str] = {}  # id of the recipe of each method

    @property
    def logger(self) -> TensorBoardLogger | None:
        """The logger of the run."""
        assert self._logger is None or isinstance(self._logger, TensorBoardLogger)
        return self._logger

    def plan(
        self,
        pruners: Mapping[str, Pruner],
        places: Mapping[str, tuple[Knob, float]],
        extra: Mapping[str, Pruner] | None = None,
        seed: int = 0,
    ) -> None:
        """Check variants before the first one is pruned, and find those that are measured already.

        Args:
            pruners: the variants by name.
            places: knob and setting of the variants that have one.
            extra: variants that count only if they are measured already.
            seed: number of the calibration text.
        """
        extra = extra or {}
        output = Path(self._trainer.default_root_dir)
        every = {**pruners, **extra}
        self._prunings = {name: _pruning(output / name, own) for name, own in every.items()}
        checks = _Checks(self._prunings, list(pruners), self._look)
        self._start([LambdaCallback(setup=checks.setup), *self._others], OVERVIEW, NoEvents)
        self._data.measures = False
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="Total length of .* is zero")
                self._trainer.validate(self._module, datamodule=self._data, verbose=False)
        finally:
            self._data.measures = True
        for name, (knob, setting) in places.items():
            if name in every:
                # Other calibration text is another recipe of the same method.
                own = recipe_id(knob.strip(checks.recipes[name]))
                own = self._methods.setdefault(knob.method, own)
                self._points[name] = Point(knob.method, knob.path, setting, own, seed)
                self.reads_text[knob.method] = checks.reads_text.get(name, False)

    def measure(self, name: str) -> None:
        """Measure a variant that was planned; every rank must call it."""
        if name in self.known:
            self._take(name)
            return
        trainer, results = self._trainer, self.results
        pruning = self._prunings.pop(name)  # frees its masks after the variant
        self._start([pruning, *self._others, results], name)
        results.folder = None if self._logger else self.folder / name
        with self._events_of_one():
            trainer.validate(self._module, datamodule=self._data, verbose=False)
        if not trainer.is_global_zero:
            return
        point = self._points.get(name)
        variant = _variant(name, self._module.results, results.curves, pruning, point)
        self.variants[name] = variant
        if key := self._keys.get(name):
            write_record(self.folder / name, variant, key)

    @property
    def writes(self) -> bool:
        """True on the rank that has the verdicts."""
        return self._trainer.is_global_zero

    def find_settings(self, knobs: Mapping[str, Knob]) -> dict[str, tuple[Knob, float]]:
        """Find settings of methods that an earlier run measured, by the name of the variant."""
        found = {}
        for variant in read_records(self.folder):
            point = variant.point
            if point is None or point.seed or point.method not in knobs:
                continue
            knob = knobs[point.method]
            if knob.path == point.knob and knob.variant(point.setting) == variant.name:
                found[variant.name] = (knob, point.setting)
        return found

    @contextmanager
    def calibrated(self, seed: int) -> Iterator[None]:
        """Take other calibration text for a while.

        Args:
            seed: is added to that of the run.
        """
        assert self._data.calibration is not None
        own = self._data.calibration.seed
        self._data.draw_calibration(own + seed)
        try:
            yield
        finally:
            self._data.draw_calibration(own)

    def read(self, name: str) -> Run:
        """Read a variant that is measured, and decide its verdicts; on the first rank."""
        return decide_again(self.folder / name, self.results.margins)

    def write(self, brief: bool) -> None:
        """Write table and figures of all variants; also after a later variant has failed."""
        if self._trainer.is_global_zero and self.variants:
            variants = list(self.variants.values())
            margins = self.results.margins
            write_overview(variants, self.folder, self.logger, margins, brief)
            if missing := [name for name in self.wanted if name not in self.variants]:
                rank_zero_info(f"Not in the figures: {', '.join(missing)} (failed or not started).")

    def _take(self, name: str) -> None:
        """Take the results of an earlier run."""
        if not self._trainer.is_global_zero:
            return
        variant = read_record(self.folder / name, self._keys[name])
        assert variant is not None
        if variant.point != self._points.get(name):
            variant.point = self._points.get(name)
            write_record(self.folder / name, variant, self._keys[name])
        self.variants[name] = variant
        verdicts = self.read(name).verdicts
        self.results.words += use_words(verdicts).values()
        if not self.results.silent:
            rank_zero_info(
                f"{name} is measured already: nothing that its results depend on has changed."
            )
            if verdicts:
                print(*use_sentences(verdicts), sep="\n", flush=True)

    def _start(
        self,
        callbacks: list[Callback],
        name: str,
        kind: type[TensorBoardLogger] = TensorBoardLogger,
    ) -> None:
        self._trainer.callbacks = callbacks  # type: ignore[attr-defined]
        self._trainer.loggers = [version(self.logger, name, kind)] if self.logger else []
        self._module.discard_pruned()
        reset_seed()  # so that no variant depends on those before it

    def _look(self, recipes: Mapping[str, dict[str, Any]]) -> None:
        """Find the variants that are measured already; the first rank decides for all."""
        try:
            settings = measurement_settings(self._trainer, self._module, self._data)
        except InputError as error:
            rank_zero_info(f"No variant is used again, since results cannot be compared. {error}")
            return
        self._keys |= {name: measurement_key(own, settings) for name, own in recipes.items()}
        known = {name for name, own in recipes.items() if self._is_measured(name, own)}
        self.known |= self._trainer.strategy.broadcast(known)

    def _is_measured(self, name: str, recipe: dict[str, Any]) -> bool:
        if read_record(self.folder / name, self._keys[name]) is None:
            return False
        folder = self._prunings[name].find_folder(self._trainer, self._module, recipe)
        return read_own(folder, recipe) is not None

    @contextmanager
    def _events_of_one(self) -> Iterator[None]:
        """Let the folder of a variant have the curves of one run: others would be drawn over."""
        earlier = [path for logger in self._trainer.loggers for path in events_of(logger)]
        yield
        if self._trainer.is_global_zero:
            clear_events(earlier, self.results.kept)


class _Checks:
    """Check all variants before the first one is pruned.

    Args:
        prunings: of the variants by name.
        needed: names of those that must fit; others only get their recipe.
        look: is called at the end with the recipe of each variant.
    """

    def __init__(
        self,
        prunings: Mapping[str, Pruning],
        needed: Sequence[str],
        look: Callable[[Mapping[str, dict[str, Any]]], None],
    ) -> None:
        self.recipes: dict[str, dict[str, Any]] = {}
        self.reads_text: dict[str, bool] = {}
        self._prunings = prunings
        self._needed = needed
        self._look = look

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check the variants when the data is ready."""
        _, module = require_prunelit(trainer, pl_module)
        module.check_run()
        data: PruneData = trainer.datamodule  # type: ignore[attr-defined]
        for name, pruning in self._prunings.items():
            recipe = self.recipes[name] = pruning.recipe(data, module)
            if name in self._needed:
                check_output(pruning.find_folder(trainer, module, recipe), recipe)
        module.load()
        assert module.model is not None
        module.check_tasks()
        for name in self._needed:
            pruner = self._prunings[name].pruner
            try:
                pruner.check(module.model)
                self.reads_text[name] = reads_text(pruner, module.model)
                if data.calibration is None:
                    check_text(pruner, module.model)
            except InputError as error:
                raise InputError(f"Variant {name!r} cannot be pruned. {error}") from error
        self._look(self.recipes)


@contextmanager
def open_session(
    trainer: Trainer, model: LightningModule, data: PruneData | None, pruners: Mapping[str, Pruner]
) -> Iterator[Session]:
    """Give a session; the trainer gets back what it had, and the figures are written."""
    module, data = _check(trainer, model, data, pruners)
    callbacks, loggers = list(trainer.callbacks), list(trainer.loggers)  # type: ignore[attr-defined]
    results = next((c for c in callbacks if isinstance(c, Results)), None) or Results()
    results.check(data)
    results.brief = True
    session = Session(trainer, module, data, results)
    try:
        yield session
    finally:
        trainer.callbacks, trainer.loggers = callbacks, loggers  # type: ignore[attr-defined]
        silent = results.silent
        results.folder, results.brief, results.silent = None, False, False
        session.write(brief=silent)


def _check(
    trainer: Trainer, module: LightningModule, data: object, pruners: Mapping[str, Pruner]
) -> tuple[PairedLM, PruneData]:
    if not isinstance(module, PairedLM) or not isinstance(data, PruneData):
        raise InputError("Expected a `PairedLM` and a `PruneData` to sweep over.")
    if not pruners:
        raise InputError("Expected at least one pruner in `variants` but got none.")
    for name, pruner in pruners.items():
        plain = isinstance(name, str) and re.fullmatch(r"\w[\w.+=-]{0,149}", name)
        if not plain or name in _RESERVED:
            raise InputError(
                f"Expected names in `variants` of letters, digits and `_.+=-`, since each names a "
                f"folder, and other than {OVERVIEW} and {FIGURES}, but got {name!r}: put "
                "numbers in quotes."
            )
        if not isinstance(pruner, Pruner):
            raise InputError(
                f"Expected the variant {name!r} to be a Pruner but got {type(pruner).__name__}."
            )
    if not data.tasks:
        raise InputError("Expected at least one task in `data.tasks` but got none.")
    if trainer.max_epochs != 0:
        raise InputError(
            f"Expected `trainer.max_epochs` 0 but got {trainer.max_epochs}: a sweep does not train."
        )
    if any(isinstance(callback, Pruning) for callback in trainer.callbacks):  # type: ignore[attr-defined]
        raise InputError(
            "Expected no `Pruning` callback in a sweep, since the sweep adds one for each variant: "
            "remove it."
        )
    for path in (sweep_folder(trainer), *(sweep_folder(trainer) / name for name in pruners)):
        if os.path.isfile(path):
            raise InputError(
                f"Expected a folder for the results at {str(path)!r} but found a file: rename or "
                "move the file."
            )
        check_outcome(path)
    check_names(sweep_folder(trainer), files=[SEARCH])
    if len(trainer.loggers) > 1 or not all(
        isinstance(logger, TensorBoardLogger) for logger in trainer.loggers
    ):
        raise InputError(
            "Expected `trainer.logger` of a sweep to be one TensorBoardLogger or false but got "
            f"{[type(logger).__name__ for logger in trainer.loggers]}."
        )
    return module, data


def _pruning(folder: Path, pruner: Pruner) -> Pruning:
    pruning = Pruning(pruner, output=str(folder / "pruned"))
    pruning.always_writes = True
    return pruning


def _variant(
    name: str,
    results: Sequence[Result],
    curves: Mapping[str, Sequence[Curve]],
    pruning: Pruning,
    point: Point | None,
) -> Variant:
    report = pruning.report
    assert report is not None
    dense, size = [(report[f"{m}parameters"], report[f"{m}bytes"]) for m in ("", "stored_")]
    dropped = _dropped(pruning.pruner)
    return Variant(name, results, curves, report["sparsity"], dropped, dense, size, point)


def _dropped(pruner: Pruner) -> tuple[str, int] | None:
    if isinstance(pruner, BlockDrop):
        return "neighbouring blocks" if pruner.consecutive else "blocks", pruner.count
    if isinstance(pruner, SublayerDrop):
        return _KINDS[pruner.target] + (", scored anew" if pruner.rescore else ""), pruner.count
    return None
