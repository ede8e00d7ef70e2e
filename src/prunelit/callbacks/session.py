"""A session: variants of one model, checked together and measured one after the other."""

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from lightning.fabric.utilities.seed import reset_seed
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import LambdaCallback
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_info

from prunelit.callbacks.overview import (
    OVERVIEW,
    NoEvents,
    clear_events,
    events_of,
    sweep_folder,
    version,
    write_overview,
)
from prunelit.callbacks.pruning import Pruning
from prunelit.callbacks.results import Results
from prunelit.callbacks.session_checks import check_session
from prunelit.callbacks.session_plan import Plan, find_settings
from prunelit.callbacks.task_progress_bar import TaskProgressBar
from prunelit.core.datamodule import PruneData
from prunelit.core.free_memory import return_memory
from prunelit.core.knobs import Knob
from prunelit.core.module import PairedLM
from prunelit.pruners import BlockDrop, SublayerDrop
from prunelit.pruners.base import Pruner
from prunelit.report.curves import Curve
from prunelit.report.page.folder import write_folder
from prunelit.report.page.records import decide_again, read_all, read_record, write_record
from prunelit.report.page.runs import Run
from prunelit.report.results import Result
from prunelit.report.tables import wrap
from prunelit.report.variants import Point, Variant
from prunelit.report.verdicts import use_sentences, use_words

# Lines on variants, so that a run prints at most 25 lines before its verdicts.
_MOST_LINES = 14

_KINDS = {
    "attention": "attention sublayers",
    "mixer": "mixers",
    "mlp": "MLP sublayers",
    "both": "sublayers of both kinds",
}


class Session:
    """Measures variants of one model, one after the other; made by `open_session`.

    Args:
        trainer: its callbacks and loggers are changed.
        module: the models.
        data: the tasks.
        results: writes the results of each variant.

    Attributes:
        variants: those that are measured, by name; on the first rank.
        wanted: names of all variants of a sweep.
    """

    def __init__(
        self, trainer: Trainer, module: PairedLM, data: PruneData, results: Results
    ) -> None:
        self.folder = sweep_folder(trainer)
        self.results = results
        self.variants: dict[str, Variant] = {}
        self.wanted: Sequence[str] = ()
        self._trainer, self._module, self._data = trainer, module, data
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        self._others = [callback for callback in callbacks if callback is not results]
        self._logger = trainer.loggers[0] if trainer.loggers else None
        self._plan = Plan(self.folder, Path(trainer.default_root_dir), results.verbose)
        self._lines = 0

    @property
    def logger(self) -> TensorBoardLogger | None:
        """The logger of the run."""
        assert self._logger is None or isinstance(self._logger, TensorBoardLogger)
        return self._logger

    @property
    def known(self) -> set[str]:
        """Names of the planned variants that an earlier run measured."""
        return self._plan.known

    @property
    def writes(self) -> bool:
        """True on the rank that has the verdicts."""
        return self._trainer.is_global_zero

    def reads_text(self, method: str) -> bool:
        """Return True for a method with a knob that looks at calibration text."""
        return self._plan.reads_text[method]

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
        self._plan.begin(pruners, places, extra or {}, seed)
        self._start([LambdaCallback(setup=self._plan.setup), *self._others], OVERVIEW, NoEvents)
        self._data.measures = False
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="Total length of .* is zero")
                self._trainer.validate(self._module, datamodule=self._data, verbose=False)
        finally:
            self._data.measures = True

    def measure(self, name: str) -> None:
        """Measure a variant that was planned; every rank must call it."""
        if name in self.known:
            self._take(name)
            return
        trainer, results = self._trainer, self.results
        pruning = self._plan.prunings.pop(name)  # frees its masks after the variant
        self._start([pruning, *self._others, results], name)
        results.folder = None if self._logger else self.folder / name
        with self._events_of_one():
            trainer.validate(self._module, datamodule=self._data, verbose=False)
        if not trainer.is_global_zero:
            return
        point = self._plan.points.get(name)
        variant = _variant(name, self._module.results, results.curves, pruning, point)
        self.variants[name] = variant
        write_record(self.folder / name, variant, self._plan.keys.get(name))

    def find_settings(self, knobs: Mapping[str, Knob]) -> dict[str, tuple[Knob, float]]:
        """Find settings of methods that an earlier run measured, by the name of the variant."""
        return find_settings(self.folder, knobs)

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

    def tell(self, sentence: str) -> None:
        """Print a line on a variant; from a number of lines on, only the progress bar shows it."""
        lines = wrap(sentence)
        before, self._lines = self._lines, self._lines + lines.count("\n") + 1
        if self.results.verbose or self._lines <= _MOST_LINES:
            print(lines, flush=True)
        elif before <= _MOST_LINES:
            print("The progress bar shows the next ones; `--verbose` prints a line for each.")

    def write(self) -> None:
        """Write table and figures of all variants; also after a later variant has failed."""
        if self._trainer.is_global_zero and self.variants:
            variants, results = list(self.variants.values()), self.results
            write_overview(variants, self.folder, self.logger, results.margins, results.verbose)
            if missing := [name for name in self.wanted if name not in self.variants]:
                rank_zero_info(f"Not in the figures: {', '.join(missing)} (failed or not started).")

    def close(self, names: Sequence[str] | None = None, uses: Sequence[str] | None = None) -> None:
        """Write the page, and print the verdicts; call it after `write`, on the first rank.

        Args:
            names: of the variants that count; None is all in the folder, those of this run last.
            uses: that are searched; None is all.
        """
        if names is None:
            earlier = [variant.name for variant in read_all(self.folder)]
            names = [*(name for name in earlier if name not in self.variants), *self.variants]
        report = write_folder(self.folder, self.results.margins, names, uses)
        self.results.words = report.words()
        print(*report.lines(), sep="\n", flush=True)

    def _take(self, name: str) -> None:
        """Take the results of an earlier run."""
        if not self._trainer.is_global_zero:
            return
        key, point = self._plan.keys[name], self._plan.points.get(name)
        variant = read_record(self.folder / name, key)
        assert variant is not None
        if variant.point != point:
            variant.point = point
            write_record(self.folder / name, variant, key)
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
        for callback in callbacks:
            if isinstance(callback, TaskProgressBar):
                callback.variant = name
        self._trainer.callbacks = callbacks  # type: ignore[attr-defined]
        self._trainer.loggers = [version(self.logger, name, kind)] if self.logger else []
        self._module.discard_pruned()
        return_memory()
        reset_seed()  # so that no variant depends on those before it

    @contextmanager
    def _events_of_one(self) -> Iterator[None]:
        """Let the folder of a variant have the curves of one run: others would be drawn over."""
        earlier = [path for logger in self._trainer.loggers for path in events_of(logger)]
        yield
        if self._trainer.is_global_zero:
            clear_events(earlier, self.results.kept)


@contextmanager
def open_session(
    trainer: Trainer, model: LightningModule, data: PruneData | None, pruners: Mapping[str, Pruner]
) -> Iterator[Session]:
    """Give a session; the trainer gets back what it had, and the figures are written."""
    module, data = check_session(trainer, model, data, pruners)
    callbacks, loggers = list(trainer.callbacks), list(trainer.loggers)  # type: ignore[attr-defined]
    results = next((c for c in callbacks if isinstance(c, Results)), None) or Results()
    results.check(data)
    results.brief, results.silent = True, not results.verbose
    session = Session(trainer, module, data, results)
    with _told_once(not results.verbose):
        try:
            yield session
        finally:
            trainer.callbacks, trainer.loggers = callbacks, loggers  # type: ignore[attr-defined]
            results.folder, results.brief, results.silent = None, False, False
            for callback in callbacks:
                if isinstance(callback, TaskProgressBar):
                    callback.variant = ""
            session.write()


@contextmanager
def _told_once(active: bool) -> Iterator[None]:
    """Print a notice that is the same for every variant only once."""
    logger = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    said: set[str] = set()

    def is_new(record: logging.LogRecord) -> bool:
        text = record.getMessage()
        new = text not in said
        said.add(text)
        return new

    if active:
        logger.addFilter(is_new)
    try:
        yield
    finally:
        logger.removeFilter(is_new)


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
