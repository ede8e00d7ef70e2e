"""Schedules: the rounds of pruning, their times and their fractions."""

from abc import ABC, abstractmethod

from jsonargparse.typing import PositiveInt

from prunelit.arguments import Checked
from prunelit.errors import InputError

__all__ = ["Cubic", "Linear", "OneShot", "Schedule"]


class Schedule(Checked, ABC):
    """Rounds of pruning: the first before training, the others between epochs or optimizer steps.

    Args:
        rounds: number of rounds.
        every_n_epochs: number of recovery epochs between two rounds.
        every_n_steps: number of optimizer steps between two rounds; replaces `every_n_epochs`.

    Example:
        >>> from prunelit.schedule import Schedule
        >>> class Halving(Schedule):
        ...     def fraction(self, index):  # each round removes half of the rest, the last all
        ...         return 1.0 if index + 1 == self.rounds else 1 - 0.5 ** (index + 1)
        >>> [Halving(rounds=3).fraction(index) for index in range(3)]
        [0.5, 0.75, 1.0]
    """

    def __init__(
        self,
        rounds: PositiveInt = 4,  # type: ignore[valid-type]
        every_n_epochs: PositiveInt = 1,  # type: ignore[valid-type]
        every_n_steps: PositiveInt | None = None,  # type: ignore[valid-type]
    ) -> None:
        for name, value in (("rounds", rounds), ("every_n_epochs", every_n_epochs)):
            if value < 1:
                raise InputError(f"Expected `{name}` of at least 1 but got {value}.")
        if every_n_steps is not None and every_n_steps < 1:
            raise InputError(f"Expected `every_n_steps` of at least 1 but got {every_n_steps}.")
        self.rounds = int(rounds)
        self.every_n_epochs = int(every_n_epochs)
        self.every_n_steps = None if every_n_steps is None else int(every_n_steps)

    @abstractmethod
    def fraction(self, index: int) -> float:
        """Compute the fraction of the final removal that a round reaches.

        Args:
            index: number of the round, from 0.

        Returns:
            A number in (0, 1]; 1 for the last round.
        """

    def due(self, epoch: int, step: int) -> int:
        """Count the rounds that must be done before `epoch` and optimizer step `step` start."""
        passed = epoch // self.every_n_epochs
        if self.every_n_steps is not None:
            passed = step // self.every_n_steps
        return min(self.rounds, 1 + passed)


class OneShot(Schedule):
    """One round.

    Example:
        >>> from prunelit.schedule import OneShot
        >>> OneShot().fraction(0)
        1.0
    """

    def __init__(self) -> None:
        super().__init__(rounds=1)

    def fraction(self, index: int) -> float:
        return 1.0


class Linear(Schedule):
    """Remove the same number of weights in every round.

    Args:
        rounds: number of rounds.
        every_n_epochs: number of recovery epochs between two rounds.
        every_n_steps: number of optimizer steps between two rounds; replaces `every_n_epochs`.

    Example:
        >>> from prunelit.schedule import Linear
        >>> [Linear(rounds=4).fraction(index) for index in range(4)]
        [0.25, 0.5, 0.75, 1.0]
    """

    def fraction(self, index: int) -> float:
        return (index + 1) / self.rounds


class Cubic(Schedule):
    """Remove many weights first and few last (Zhu and Gupta 2017, arXiv:1710.01878, eq. 1).

    Args:
        rounds: number of rounds.
        every_n_epochs: number of recovery epochs between two rounds.
        every_n_steps: number of optimizer steps between two rounds; replaces `every_n_epochs`.

    Example:
        >>> from prunelit.schedule import Cubic
        >>> [Cubic(rounds=4).fraction(index) for index in range(4)]
        [0.578125, 0.875, 0.984375, 1.0]
    """

    def fraction(self, index: int) -> float:
        return 1 - (1 - (index + 1) / self.rounds) ** 3
