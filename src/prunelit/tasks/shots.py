"""Solved examples before what is asked."""

import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol, TypeVar

from prunelit.errors import InputError
from prunelit.rows import hash_rows


class Askable(Protocol):
    """What can be asked, and shown solved; of a part of the data set where it has a `group`."""

    @property
    def asked(self) -> tuple[str, ...]:
        """What two of them have in common where one would give the other away."""
        ...


Asked = TypeVar("Asked", bound=Askable)


@dataclass
class FewShot:
    """Solved examples before every question, the same for all, so that they are read once.

    A question that is among them gets another in its place.

    Args:
        count: of examples.
        split: they are drawn from; of the group of the question where questions have one.
        path: of their rows; None is the task's own.
        subset: configuration of the data set on the hub; None is the task's own.
        seed: of the draw; None takes the first ones in order.
    """

    count: int = 5
    split: str = "train"
    path: str | None = None
    subset: str | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        if self.count < 1:
            raise InputError(f"Expected `count` of at least 1 example but got {self.count}.")

    def source(self, path: str, subset: str | None) -> dict[str, Any]:
        """Which rows they are drawn from: path, split and subset.

        Args:
            path: of the task's own rows.
            subset: of the task's own rows.
        """
        return {
            "path": self.path or path,
            "split": self.split,
            "subset": self.subset or subset,
        }

    def before(self, pool: Sequence[Asked], questions: Sequence[Asked]) -> list[list[Asked]]:
        """For each question its examples, never the question itself.

        Args:
            pool: to draw from.
            questions: that they stand before; named in errors by their `id` or their number.

        Raises:
            InputError: if there are too few.
        """
        drawn = self._drawn(pool)
        return [
            self._examples(drawn, question, str(getattr(question, "id", number)))
            for number, question in enumerate(questions)
        ]

    def details(self, examples: Sequence[Sequence[Asked]]) -> dict[str, Any]:
        """What makes a number after these examples comparable."""
        shown = [[vars(example) for example in own] for own in examples]
        return {"few_shot": asdict(self), "few_shot_sha256": hash_rows(shown)}

    def _drawn(self, pool: Sequence[Asked]) -> dict[str | None, list[Asked]]:
        """One more than asked for of each group, in place of one that is the question."""
        groups: dict[str | None, dict[tuple[str, ...], Asked]] = {}
        for example in pool:
            groups.setdefault(group_of(example), {}).setdefault(example.asked, example)
        drawn = {}
        for group, distinct in groups.items():
            members, more = list(distinct.values()), min(self.count + 1, len(distinct))
            if self.seed is not None:
                members = random.Random(self.seed).sample(members, more)
            drawn[group] = members[:more]
        return drawn

    def _examples(
        self, drawn: dict[str | None, list[Asked]], question: Asked, name: str
    ) -> list[Asked]:
        group = group_of(question)
        members = drawn.get(group, drawn.get(None, []))
        others = [other for other in members if other.asked != question.asked][: self.count]
        if len(others) < self.count:
            of_group = "" if group is None else f" of {group!r}"
            raise InputError(
                f"Expected {self.count} examples{of_group} beside the question {name!r} in the "
                f"split {self.split!r} but it has {len(others)}."
            )
        return others


def group_of(question: object) -> str | None:
    """The part of the data set that a question belongs to, None where it has none."""
    return getattr(question, "group", None)
