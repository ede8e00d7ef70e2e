"""When to prune, and how much of it by then."""

from abc import ABC, abstractmethod

from jsonargparse.typing import PositiveInt

from prunelit.errors import InputError

__all__ = ["Cubic", "Linear", "OneShot", "Schedule"]


class Schedule(ABC):
    """Rounds of pruning: the first before training, the others at epochs or optimizer steps.

    Args:
        rounds: how many.
        every_n_epochs: epochs of recovery after each round but the last.
        every_n_steps: optimizer steps instead of epochs.
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
        """The share of what is removed in the end that round `index` (from 0) reaches, in (0, 1].

        The last round reaches 1.
        """

    def due(self, epoch: int, step: int) -> int:
        """How many rounds should have happened before `epoch` and optimizer step `step` start."""
        passed = epoch // self.every_n_epochs
        if self.every_n_steps is not None:
            passed = step // self.every_n_steps
        return min(self.rounds, 1 + passed)


class OneShot(Schedule):
    """One round."""

    def __init__(self) -> None:
        super().__init__(rounds=1)

    def fraction(self, index: int) -> float:
        return 1.0


class Linear(Schedule):
    """Every round removes the same number.

    Args:
        rounds: how many.
        every_n_epochs: epochs of recovery after each round but the last.
        every_n_steps: optimizer steps instead of epochs.
    """

    def fraction(self, index: int) -> float:
        return (index + 1) / self.rounds


class Cubic(Schedule):
    """Much at first, little at the end (Zhu and Gupta 2017, arXiv:1710.01878, eq. 1).

    Args:
        rounds: how many.
        every_n_epochs: epochs of recovery after each round but the last.
        every_n_steps: optimizer steps instead of epochs.
    """

    def fraction(self, index: int) -> float:
        return 1 - (1 - (index + 1) / self.rounds) ** 3
