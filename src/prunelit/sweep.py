"""Prune one model in several ways: a list of variants, or settings that a search chooses.

Internal: the public names are `PruneTrainer.sweep` and `PruneTrainer.search` in `prunelit`.
"""

from collections.abc import Mapping, Sequence

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info

from prunelit.callbacks.session import Session, open_session
from prunelit.core.datamodule import PruneData
from prunelit.core.knobs import Knob, format_setting, read_knobs
from prunelit.core.module import PairedLM
from prunelit.errors import InputError, check_whole
from prunelit.pruners.base import Pruner
from prunelit.report.bisection import next_setting
from prunelit.report.placed import Placed, place_settings
from prunelit.report.search import Answer, find_answers, kept_by_use, kept_words
from prunelit.report.verdicts import USES, Verdict


def sweep(
    trainer: Trainer,
    model: LightningModule,
    data: PruneData | None,
    pruners: Mapping[str, Pruner],
    grid: Mapping[str, Sequence[float]] | str | None = None,
    knobs: Mapping[str, str] | None = None,
) -> None:
    """Prune, write and measure one variant after the other, then draw figures of all variants.

    The dense weights are read once. Each variant is pruned from them as if it were the only one. It
    leaves the same files as `fit`. The model is in `<default_root_dir>/<variant>/pruned`. The
    results are in a folder of the logger with the variant's name as version, or in
    `<default_root_dir>/<variant>` without a logger. A later sweep uses both again if nothing that
    they depend on has changed.

    Args:
        trainer: gets its own callbacks and loggers back at the end.
        model: a `PairedLM`.
        data: a `PruneData` with at least one task.
        pruners: the variants, by the name of their folder.
        grid: settings that replace a variant, see `prunelit.core.knobs.read_knobs`.
        knobs: paths of their numeric options.

    Raises:
        InputError: before any weight is pruned, if a variant or a setting does not fit. Later, if
            pruning or a task fails; the earlier variants are then written and in the figures.
    """
    found = read_knobs(pruners, grid, knobs)
    places = {
        knob.variant(setting): (knob, setting)
        for knob in found.values()
        for setting in knob.settings
    }
    every: dict[str, Pruner] = {}
    for name, pruner in pruners.items():
        own = {k: knob.build(s) for k, (knob, s) in places.items() if knob.method == name}
        every |= own or {name: pruner}
    with open_session(trainer, model, data, every) as session:
        session.wanted = list(every)
        session.plan(every, places)
        for place, name in enumerate(every):
            again = " (measured already)" if name in session.known else ""
            session.measure(name)
            if session.writes:
                words = kept_words(session.read(name).verdicts) or "has no verdict"
                session.tell(f"{name} ({place + 1} of {len(every)}): {words}{again}.")
    if session.writes:
        session.close()


def search(
    trainer: Trainer,
    model: LightningModule,
    data: PruneData | None,
    pruners: Mapping[str, Pruner],
    grid: Mapping[str, Sequence[float]] | str,
    knobs: Mapping[str, str] | None = None,
    uses: Sequence[str] | None = None,
    seeds: int = 1,
) -> None:
    """Find the strongest setting of each method that still keeps each use, by bisection.

    Each setting is measured as a variant of a sweep, once for all uses. Those that an earlier
    search or sweep measured are used again, also if they are not in the grid.

    Args:
        trainer: gets its own callbacks and loggers back at the end.
        model: a `PairedLM`.
        data: a `PruneData` with tasks that have a main score.
        pruners: the methods by name.
        grid: settings of each method that is searched.
        knobs: paths of their numeric options.
        uses: that are searched; None is all that the tasks measure.
        seeds: number of calibration texts with which the settings around an answer are measured.

    Raises:
        InputError: as in `sweep`, or if there is nothing to search.
    """
    found = read_knobs(pruners, grid, knobs)
    _check_search(model, data, found, uses, seeds)
    if left := [name for name in pruners if name not in found]:
        rank_zero_info(f"Not searched, as `grid` has no settings of them: {', '.join(left)}.")
    places = {knob.variant(s): (knob, s) for knob in found.values() for s in knob.settings}
    needed = {name: knob.build(setting) for name, (knob, setting) in places.items()}
    with open_session(trainer, model, data, needed) as session:
        extra = session.find_settings(found)
        others = {name: knob.build(s) for name, (knob, s) in extra.items() if name not in places}
        places |= extra
        session.plan(needed, places, others)
        asked = _Asked(session, places, uses)
        for knob in found.values():
            _bisect(trainer, asked, knob)
        _repeat(trainer, asked, seeds)
    if session.writes:
        session.close(list(session.variants), uses)


class _Asked:
    """State of a search: the verdicts of all that it measured; on the first rank.

    Args:
        session: measures the settings.
        places: knob and setting of each variant.
        uses: that are searched; None is all.
    """

    def __init__(
        self,
        session: Session,
        places: Mapping[str, tuple[Knob, float]],
        uses: Sequence[str] | None,
    ) -> None:
        self.session = session
        self.places = places
        self._uses = uses
        self._verdicts: dict[str, list[Verdict]] = {}

    def known(self, knob: Knob) -> list[str]:
        """Return the names of the settings of a method that are measured already."""
        own = [
            (setting, name)
            for name, (other, setting) in self.places.items()
            if other is knob and name in self.session.known
        ]
        return [name for _, name in sorted(own)]

    def measure(self, name: str, knob: Knob, setting: float, seed: int = 0) -> None:
        """Measure a setting; every rank must call it."""
        known = name in self.session.known
        self.session.measure(name)
        if not self.session.writes:
            return
        verdicts = self._verdicts[name] = self.session.read(name).verdicts
        # A task of the user's own may name a use and give no scores.
        _check_uses([verdict.use for verdict in verdicts], self._uses)
        text = f", calibration text {seed + 1}" if seed else ""
        again = " (measured already)" if known else ""
        place = f"{knob.method} {knob.option} {format_setting(setting)}{text}"
        self.session.tell(f"{place}: {kept_words(verdicts)}{again}.")

    def next(self, knob: Knob) -> float | None:
        """Choose the next setting of a method."""
        measured = {
            one.point.setting: one.verdicts
            for one in self._placed()
            if one.point.method == knob.method and not one.point.seed
        }
        return next_setting(knob.settings, kept_by_use(measured, self._uses))

    def answers(self) -> list[Answer]:
        """Find the answers among all that is measured."""
        return find_answers(self._placed(), self._uses)

    def _placed(self) -> list[Placed]:
        return place_settings(list(self.session.variants.values()), self._verdicts)


def _bisect(trainer: Trainer, asked: _Asked, knob: Knob) -> None:
    """Measure settings of one method until the answer for each use is found."""
    for name in asked.known(knob):
        asked.measure(name, *asked.places[name])
    while True:
        setting = asked.next(knob) if trainer.is_global_zero else None
        setting = trainer.strategy.broadcast(setting)
        if setting is None:
            return
        asked.measure(knob.variant(setting), knob, setting)


def _repeat(trainer: Trainer, asked: _Asked, seeds: int) -> None:
    """Measure the settings around the answers with other calibration text."""
    session = asked.session
    if seeds == 1:
        return
    around = {(a.method, one.setting) for a in asked.answers() for one in a.around}
    around = trainer.strategy.broadcast(around)
    places = [pair for pair in asked.places.values() if (pair[0].method, pair[1]) in around]
    for method in dict.fromkeys(knob.method for knob, _ in places):
        if not session.reads_text(method):
            rank_zero_info(f"Not repeated, as {method} looks at no calibration text.")
    places = [pair for pair in places if session.reads_text(pair[0].method)]
    for seed in range(1, seeds) if places else ():
        with session.calibrated(seed):
            own = {f"{knob.variant(s)}_text{seed + 1}": (knob, s) for knob, s in places}
            session.plan({name: knob.build(s) for name, (knob, s) in own.items()}, own, seed=seed)
            for name, (knob, setting) in own.items():
                asked.measure(name, knob, setting, seed)


def _check_search(
    module: LightningModule,
    data: object,
    knobs: Mapping[str, Knob],
    uses: Sequence[str] | None,
    seeds: int,
) -> None:
    """Refuse a search that could not answer."""
    if not knobs:
        raise InputError(
            "Expected settings in `grid` to search, such as `wanda=0.2,0.3,0.4`, but got none."
        )
    check_whole("seeds", seeds, 1)
    for use in uses or ():
        if use not in USES:
            raise InputError(
                f"Expected `uses` among {', '.join(map(repr, USES))} but got {use!r:.60}."
            )
    if uses is not None and not uses:
        raise InputError("Expected at least one use in `uses` but got none: leave it out for all.")
    if isinstance(module, PairedLM) and not module.weights.reference:
        raise InputError(
            "Expected `model.reference` true for a search: a verdict needs the dense model."
        )
    if seeds > 1 and isinstance(data, PruneData) and data.calibration is None:
        raise InputError(
            f"Expected `data.calibration` with `seeds` {seeds}: they draw other calibration text."
        )
    if isinstance(data, PruneData) and data.tasks:
        _check_uses(data.uses(), uses)


def _check_uses(found: Sequence[str], uses: Sequence[str] | None) -> None:
    """Refuse uses that no task measures."""
    if not found:
        raise InputError(
            "Expected a task with a main score, such as multiple choice, but got none: "
            "add one to `data.tasks`. A task of your own names its use in its attribute `use`."
        )
    if missing := [use for use in uses or () if use not in found]:
        raise InputError(
            f"`uses` names {missing[0]!r}, which no task measures: expected among "
            f"{', '.join(map(repr, dict.fromkeys(found)))}."
        )
