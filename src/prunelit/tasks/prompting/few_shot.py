"""Solved examples before what is asked."""

import random
from collections.abc import Callable, Hashable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

from prunelit.data.rows import hash_rows
from prunelit.errors import InputError
from prunelit.tasks.questions import Example, Question, get_group

Asked = TypeVar("Asked", bound=Question | Example)
# What two of them have in common where one, solved, would give the other away.
Shown = Callable[[Asked], Hashable]


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

    def before(
        self, pool: Sequence[Asked], questions: Sequence[Asked], shown: Shown[Asked]
    ) -> list[list[Asked]]:
        """For each question its examples, never one that shows the same.

        Args:
            pool: to draw from.
            questions: that they stand before; named in errors by their `id` or their number.
            shown: of a question, what a prompt shows of it but for the answer.

        Raises:
            InputError: if there are too few.
        """
        drawn = self._drawn(pool, shown)
        return [
            self._examples(drawn, question, str(getattr(question, "id", number)), shown)
            for number, question in enumerate(questions)
        ]

    def details(self, examples: Sequence[Sequence[Asked]]) -> dict[str, Any]:
        """What makes a number after these examples comparable."""
        shown = [[vars(example) for example in own] for own in examples]
        return {"few_shot": asdict(self), "few_shot_sha256": hash_rows(shown)}

    def _drawn(self, pool: Sequence[Asked], shown: Shown[Asked]) -> dict[str | None, list[Asked]]:
        """One more than asked for of each group, in place of one that is the question."""
        groups: dict[str | None, dict[Hashable, Asked]] = {}
        for example in pool:
            groups.setdefault(get_group(example), {}).setdefault(shown(example), example)
        drawn = {}
        for group, distinct in groups.items():
            members, more = list(distinct.values()), min(self.count + 1, len(distinct))
            if self.seed is not None:
                members = random.Random(self.seed).sample(members, more)
            drawn[group] = members[:more]
        return drawn

    def _examples(
        self,
        drawn: dict[str | None, list[Asked]],
        question: Asked,
        name: str,
        shown: Shown[Asked],
    ) -> list[Asked]:
        group = get_group(question)
        members = drawn.get(group, drawn.get(None, []))
        others = [other for other in members if shown(other) != shown(question)][: self.count]
        if len(others) < self.count:
            of_group = "" if group is None else f" of {group!r}"
            raise InputError(
                f"Expected {self.count} examples{of_group} beside the question {name!r} in the "
                f"split {self.split!r} but it has {len(others)}."
            )
        return others
