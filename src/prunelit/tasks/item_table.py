"""Values of single items, exact on any number of ranks, and their means with error bars."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from prunelit.arguments import checked
from prunelit.errors import check_whole
from prunelit.metrics.sketch import Sketch
from prunelit.report.curves import Curve
from prunelit.report.results import Result


@dataclass
class Streamed:
    """Values of tokens that are summed up at once, so that memory does not grow with the items.

    Args:
        values: (B, P, T), for each item the values of its tokens at each of P places, NaN where it
            has none.
    """

    values: Tensor


@checked
class ItemTable:
    """One slot an item and column. Each item is measured by exactly one rank.

    Slots are assigned, never added to, so that they are bit-identical on any number of ranks.
    Streamed values go into `sketches` instead, which are equal on any number of ranks up to the
    rounding of float64 sums.

    Args:
        size: number of items.

    Example:
        >>> import torch
        >>> from prunelit.tasks import ItemTable
        >>> table = ItemTable(3)
        >>> table.assign(torch.tensor([0, 2]), {"dense/acc": torch.tensor([1.0, 0.0])})
        >>> table.assign(torch.tensor([1]), {"dense/acc": torch.tensor([1.0])})
        >>> table["dense/acc"]
        tensor([1., 1., 0.])
    """

    def __init__(self, size: int) -> None:
        check_whole("size", size, 0)
        self.size = size
        self.sketches: dict[str, Sketch] = {}
        self._columns: dict[str, Tensor] = {}
        self._seen = torch.zeros(size, dtype=torch.int64)

    def assign(self, indices: Tensor, values: Mapping[str, Tensor | Streamed]) -> None:
        """Fill the slots of a batch.

        Args:
            indices: (B,) item numbers.
            values: for each column (B, ...), floating or integer; or for a sketch its tokens.
        """
        indices = indices.cpu()
        self._seen[indices] += 1
        for name, value in values.items():
            if isinstance(value, Streamed):
                if name not in self.sketches:
                    self.sketches[name] = Sketch.of(name, value.values.shape[1])
                self.sketches[name].update(value.values)
                continue
            value = value.detach().cpu()
            if name not in self._columns:
                self._columns[name] = value.new_zeros(self.size, *value.shape[1:])
            self._columns[name][indices] = value

    def all_reduce_(self) -> None:
        """Collect the slots of all ranks, in place.

        Raises:
            RuntimeError: if an item was measured by no rank or by two.
        """
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            self._gather()
        if not bool((self._seen == 1).all()):
            raise RuntimeError("Expected every item to be measured exactly once.")

    def _gather(self) -> None:
        # A rank without items does not know the columns, so shapes travel with the values.
        gathered: list[Any] = [None] * dist.get_world_size()
        mine = self._seen.nonzero()[:, 0]
        local = {name: column[mine] for name, column in self._columns.items()}
        dist.all_gather_object(gathered, (mine, local, self.sketches))
        self._columns.clear()
        self._seen.zero_()
        self.sketches = {}
        for indices, values, sketches in gathered:
            if len(indices):
                self.assign(indices, values)
            for name, sketch in sketches.items():
                if name in self.sketches:
                    self.sketches[name].merge(sketch)
                else:
                    self.sketches[name] = sketch

    def columns(self) -> list[str]:
        """Names of the columns, in the order in which they were first assigned."""
        return list(self._columns)

    def models(self, metric: str) -> list[str]:
        """Names of the models, dense before pruned, whose column `<model>/<metric>` is there."""
        return [model for model in ("dense", "pruned") if f"{model}/{metric}" in self]

    def __contains__(self, name: str) -> bool:
        return name in self._columns

    def __getitem__(self, name: str) -> Tensor:
        """(size, ...), the column."""
        return self._columns[name]

    def paired_results(
        self, task: str, metrics: Sequence[str], details: dict[str, Any]
    ) -> list[Result]:
        """Results of dense, pruned and their difference (pruned minus dense), item by item.

        Columns are named `dense/<metric>` and `pruned/<metric>`.
        """
        results = []
        for metric in metrics:
            values = {model: self[f"{model}/{metric}"].double() for model in self.models(metric)}
            if len(values) == 2:
                values["difference"] = values["pruned"] - values["dense"]
            for model, column in values.items():
                value, error = mean(column)
                results.append(Result(task, metric, model, value, error, self.size, details))
        return results

    def pair_results(
        self, task: str, metrics: Sequence[str], details: dict[str, Any]
    ) -> list[Result]:
        """Results for quantities of both models together, where these were measured."""
        return [
            Result(task, metric, "pair", *mean(self[metric]), self.size, details)
            for metric in metrics
            if metric in self
        ]

    def item_results(self, task: str, details: dict[str, Any]) -> list[Result]:
        """Results for the columns `item/<metric>`, over the items that have a value."""
        results = []
        for column in (name for name in self._columns if name.startswith("item/")):
            there = self[column][~self[column].isnan()]
            if len(there):
                metric = column.removeprefix("item/")
                results.append(Result(task, metric, "pair", *mean(there), len(there), details))
        return results

    def sketch_curves(self) -> Iterator[Curve]:
        """Curves of the sketches over blocks, or over steps where their names say so."""
        for name, sketch in self.sketches.items():
            yield Curve(
                name,
                "step" if "/step/" in name else "block",
                range(sketch.places),
                sketch.mean.tolist(),
                sketch.lowest.tolist(),
                sketch.highest.tolist(),
                sketch.n.tolist(),
                "min-max over tokens",
                sketch.standard_error.tolist(),
            )


def mean(values: Tensor) -> tuple[float, float]:
    """Mean of items and its standard error.

    Args:
        values: (n,).

    Returns:
        The mean and its standard error; the error is NaN for a single item.
    """
    values = values.double()
    error = values.std() / len(values) ** 0.5 if len(values) > 1 else math.nan
    return values.mean().item(), float(error)
