"""Measured settings of the methods in one folder, and the numbers of their figure."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from prunelit.report.variants import Point, Variant
from prunelit.report.verdicts import Verdict

SETTINGS = "score_by_setting"
_COLUMNS = (
    *("method", "knob", "setting", "seed", "use", "task", "metric", "dense", "pruned", "floor"),
    *("kept", "low", "high", "margin", "verdict", "n"),
)


@dataclass(frozen=True)
class Placed:
    """One measured setting of a method.

    Args:
        point: its place.
        verdicts: of its tasks.
    """

    point: Point
    verdicts: Sequence[Verdict]


def place_settings(
    variants: Sequence[Variant], verdicts: Mapping[str, Sequence[Verdict]]
) -> list[Placed]:
    """Collect the settings of each method in ascending order.

    Of variants with the same name of a method, those with the recipe of the last one count.

    Args:
        variants: of all methods; a variant without a setting is left out.
        verdicts: of their tasks, by the name of the variant.
    """
    with_verdicts = [v for v in variants if v.point is not None and verdicts.get(v.name)]
    points = {v.name: v.point for v in with_verdicts if v.point is not None}
    recipes = {p.method: p.recipe for p in points.values() if p.seed == 0}
    placed = [
        Placed(point, verdicts[name])
        for name, point in points.items()
        if point.recipe == recipes.get(point.method)
    ]
    order = list(recipes)
    return sorted(placed, key=lambda p: (order.index(p.point.method), p.point.setting))


def settings_numbers(placed: Sequence[Placed]) -> dict[str, list[object]]:
    """Return the numbers of the figure of settings, one line a setting and task.

    Args:
        placed: measured settings, see `place_settings`.
    """
    rows = [line for one in placed for line in _lines(one)]
    return {name: [row[place] for row in rows] for place, name in enumerate(_COLUMNS)}


def _lines(one: Placed) -> Iterator[tuple[object, ...]]:
    point = one.point
    for verdict in one.verdicts:
        own = verdict.result.details
        yield (
            *(point.method, point.knob, point.setting, point.seed, verdict.use, verdict.task),
            *(own["primary"], own["dense"], own["pruned"], own["chance"]),
            *(verdict.value, verdict.low, verdict.high, verdict.bar(), verdict.word),
            verdict.result.n,
        )
