"""Choose the solved examples before a question."""

import random
from collections.abc import Callable, Hashable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

from prunelit.arguments import checked
from prunelit.data.rows import hash_rows
from prunelit.errors import InputError
from prunelit.tasks.questions import Example, Question, get_group

Asked = TypeVar("Asked", bound=Question | Example)
# Equal for two questions if the solution of one is the solution of the other too.
Key = Callable[[Asked], Hashable]


@checked
@dataclass
class FewShot:
    """Solved examples before every question.

    They are the same for all questions, or for all questions of a group, so that they are run once.
    A question that is one of the examples gets another example in its place.

    Args:
        count: number of examples.
        split: that the examples come from.
        path: of their rows; None is the path of the task.
        subset: configuration of a data set on the hub; None is that of the task.
        seed: of the draw; None takes the first rows.

    Raises:
        InputError: if `count` is not positive.

    Example:
        >>> from prunelit.tasks import FewShot
        >>> from prunelit.tasks.questions import Example
        >>> pool = [Example(f"{n} + 1 = ", str(n + 1), str(n + 1)) for n in range(4)]
        >>> few_shot = FewShot(count=2)
        >>> (examples,) = few_shot.choose(pool, [pool[1]], key=lambda one: one.context)
        >>> [example.context for example in examples]
        ['0 + 1 = ', '2 + 1 = ']
    """

    count: int = 5
    split: str = "train"
    path: str | None = None
    subset: str | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        if self.count < 1:
            raise InputError(f"Expected `count` of at least 1 but got {self.count}.")

    def source(self, path: str, subset: str | None) -> dict[str, Any]:
        """Return path, split and subset of the rows that the examples come from.

        Args:
            path: of the task.
            subset: of the task.
        """
        return {
            "path": self.path or path,
            "split": self.split,
            "subset": self.subset or subset,
        }

    def choose(
        self, pool: Sequence[Asked], questions: Sequence[Asked], key: Key[Asked]
    ) -> list[list[Asked]]:
        """Choose the examples of each question, without the question itself.

        Args:
            pool: of possible examples.
            questions: to choose for.
            key: two questions with the same key count as the same question.

        Returns:
            `count` examples for each question.

        Raises:
            InputError: if the pool is too small.
        """
        drawn = self._draw(pool, key)
        return [
            self._examples(drawn, question, str(getattr(question, "id", number)), key)
            for number, question in enumerate(questions)
        ]

    def details(self, examples: Sequence[Sequence[Asked]]) -> dict[str, Any]:
        """Return the options, and a hash of the examples, for comparing results."""
        shown = [[vars(example) for example in own] for own in examples]
        return {"few_shot": asdict(self), "few_shot_sha256": hash_rows(shown)}

    def _draw(self, pool: Sequence[Asked], key: Key[Asked]) -> dict[str | None, list[Asked]]:
        """Draw `count` + 1 examples of each group, one of which may be the question itself."""
        groups: dict[str | None, dict[Hashable, Asked]] = {}
        for example in pool:
            groups.setdefault(get_group(example), {}).setdefault(key(example), example)
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
        key: Key[Asked],
    ) -> list[Asked]:
        group = get_group(question)
        members = drawn.get(group, drawn.get(None, []))
        others = [other for other in members if key(other) != key(question)][: self.count]
        if len(others) < self.count:
            of_group = "" if group is None else f" of {group!r}"
            raise InputError(
                f"Expected {self.count} examples{of_group} besides the question {name!r} in the "
                f"split {self.split!r} but found {len(others)}."
            )
        return others
