"""Knobs: one numeric option of a pruner, and the settings that it is tried at."""

import copy
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prunelit.errors import InputError, near_names
from prunelit.pruners.base import Pruner
from prunelit.recipe import arguments_of, describe

# Options that say how much is removed. A method with exactly one of them needs no path.
_USUAL = ("ratio", "count")
# Options of which less removes more, where a knob removes more as it rises.
_FALLING = ("bits", "bytes", "parameters")


@dataclass(frozen=True)
class Knob:
    """One numeric option of a method, and its settings.

    Args:
        method: name of the variant that the settings replace.
        path: of the option, with dots, such as `sparsity.ratio`.
        pruner: the method at any setting.
        settings: in ascending order; the last one removes most.
    """

    method: str
    path: str
    pruner: Pruner
    settings: tuple[float, ...]

    @property
    def option(self) -> str:
        """Name of the option without its path."""
        return self.path.rpartition(".")[2]

    def variant(self, setting: float) -> str:
        """Name the variant of a setting, such as `wanda_0.3`."""
        return f"{self.method}_{format_setting(setting)}"

    def build(self, setting: float) -> Pruner:
        """Build the method at a setting.

        Raises:
            InputError: if the method refuses the setting.
        """
        try:
            return _rebuild(self.pruner, self.path.split("."), setting)
        except InputError as error:
            raise InputError(
                f"The setting {format_setting(setting)} of {self.method!r} in `grid` cannot be "
                f"used. {error}"
            ) from error

    def strip(self, recipe: Mapping[str, Any]) -> dict[str, Any]:
        """Return the recipe of a variant without the setting: all settings have it in common.

        Args:
            recipe: of the pruned model.
        """
        stripped = copy.deepcopy(dict(recipe))
        own = stripped["pruner"]
        *above, last = self.path.split(".")
        for name in above:
            own = own["init_args"][name]
        del own["init_args"][last]
        return stripped


def format_setting(setting: float) -> str:
    """Write a setting without digits that say nothing."""
    return format(setting, ".12g")


def read_knobs(
    variants: Mapping[str, Pruner],
    grid: Mapping[str, Sequence[float]] | str | None,
    paths: Mapping[str, str] | None = None,
) -> dict[str, Knob]:
    """Read the settings of each variant that has some.

    Args:
        variants: the pruners by name.
        grid: settings by the name of a variant. As a text: `wanda=0.2,0.3;drop=1,2`.
        paths: path of the knob by the name of a variant; without one it is the option `ratio` or
            `count`.

    Raises:
        InputError: naming the variant, if a name is unknown, a setting is no number or refused by
            the method, the settings are not ascending, or there is no such numeric option.
    """
    paths = paths or {}
    settings = _by_name(grid)
    for option, names in (("grid", settings), ("knobs", paths)):
        for name in names:
            if name not in variants:
                raise InputError(
                    f"`{option}` names {name!r}, which is not in `variants`: near names: "
                    f"{near_names(name, list(variants))}."
                )
    if unused := [name for name in paths if name not in settings]:
        raise InputError(
            f"`knobs` names {unused[0]!r}, which has no settings in `grid`: add them, or leave it "
            "out."
        )
    knobs = {}
    for name, values in settings.items():
        describe(variants[name])  # each argument is then an attribute of the same name
        path = _find_path(name, variants[name], paths.get(name))
        knobs[name] = knob = Knob(name, path, variants[name], _check_settings(name, values))
        for setting in knob.settings:
            knob.build(setting)
    return knobs


def _by_name(grid: Mapping[str, Sequence[float]] | str | None) -> dict[str, Any]:
    if not isinstance(grid, str):
        return dict(grid or {})
    found: dict[str, Any] = {}
    for part in grid.split(";"):
        name, sign, values = part.partition("=")
        try:
            numbers = [float(value) for value in values.split(",") if value.strip()]
        except ValueError:
            sign = ""
            numbers = []
        if not sign or not name.strip() or name.strip() in found:
            raise InputError(
                "Expected `grid` as settings by the name of a variant, such as "
                f"`wanda=0.2,0.3;drop=1,2`, but got {grid!r:.80}."
            )
        found[name.strip()] = numbers
    return found


def _check_settings(name: str, values: Any) -> tuple[float, ...]:
    if not isinstance(values, list | tuple) or not values:
        raise InputError(
            f"Expected at least one setting of {name!r} in `grid` but got {values!r:.60}: give a "
            "list of numbers."
        )
    for value in values:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not math.isfinite(value):
            raise InputError(
                f"Expected numbers as the settings of {name!r} in `grid` but got {value!r:.60}."
            )
    for before, after in itertools.pairwise(values):
        if before >= after:
            raise InputError(
                f"Expected the settings of {name!r} in `grid` in ascending order but "
                f"{format_setting(after)} follows {format_setting(before)}."
            )
    return tuple(values)


def _find_path(name: str, pruner: Pruner, given: str | None) -> str:
    numeric = [path for path in _numeric(pruner) if path.rpartition(".")[2] not in _FALLING]
    if given is not None:
        kind = type(pruner).__name__
        if given.rpartition(".")[2] in _FALLING and given in _numeric(pruner):
            raise InputError(
                f"Expected a knob of {name!r} that removes more as it rises but `{given}` of "
                f"{kind} removes less: compare its values as variants of `prunelit sweep`."
            )
        if given in arguments_of(type(pruner)) and vars(pruner).get(given) is None:
            raise InputError(
                f"Expected a number as `{given}` of {name!r}, which `knobs` names, but it is null: "
                "give it a first number in `init_args`."
            )
        if given not in numeric:
            raise InputError(
                f"Expected a numeric option of {name!r} in `knobs` but got {given!r}: "
                f"{_tell(pruner, numeric)}."
            )
        return given
    usual = [path for path in numeric if path.rpartition(".")[2] in _USUAL]
    found = usual or numeric
    if len(found) != 1:
        raise InputError(
            f"Expected the knob of {name!r} in `knobs`, such as `knobs: {{{name}: OPTION}}`: "
            f"{_tell(pruner, numeric)}."
        )
    return found[0]


def _tell(pruner: Pruner, numeric: Sequence[str]) -> str:
    kind = type(pruner).__name__
    if not numeric:
        return f"{kind} has no numeric option"
    return f"the numeric options of {kind} are {', '.join(numeric)}"


def _numeric(value: Any, prefix: str = "") -> Iterator[str]:
    """Yield the paths of the numeric options of an object, and of the objects that it takes."""
    for name in arguments_of(type(value)):
        own = vars(value).get(name)
        if isinstance(own, int | float) and not isinstance(own, bool):
            yield prefix + name
        elif hasattr(own, "__dict__") and not isinstance(own, type) and not callable(own):
            yield from _numeric(own, f"{prefix}{name}.")


def _rebuild(value: Any, path: Sequence[str], setting: float) -> Any:
    """Build an object again with one number changed, so that its constructor checks it."""
    cls, name = type(value), path[0]
    arguments = {key: vars(value)[key] for key in arguments_of(cls)}
    if len(path) > 1:
        arguments[name] = _rebuild(arguments[name], path[1:], setting)
        return cls(**arguments)
    if isinstance(arguments[name], int) and float(setting).is_integer():
        setting = int(setting)
    return cls(**{**arguments, name: setting})
