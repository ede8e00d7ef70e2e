"""Compare the next-token distributions on a text, beside the noise floor."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from prunelit.errors import InputError
from prunelit.metrics.quantization_ruler import RUNGS, SOURCE, place_on_ruler
from prunelit.metrics.sketch import Sketch
from prunelit.models.architecture import final_hidden
from prunelit.models.comparison import token_deviations
from prunelit.models.model_pair import ModelPair
from prunelit.models.views import recast
from prunelit.report.curves import Picture
from prunelit.report.distribution import (
    Spread,
    distribution_lines,
    distribution_picture,
    distribution_table,
)
from prunelit.report.results import Result
from prunelit.report.task_report import TaskReport
from prunelit.tasks.item_table import ItemTable, Streamed
from prunelit.tasks.shared_pass import LOG_PROBABILITIES, LogitTask, Values

# Reported quantiles, in percent of the tokens.
KL_PERCENT = (99.9, 99, 90, 50, 10, 1)
DELTA_PERCENT = (99.9, 99, 90, 50, 10, 1, 0.1)
_MEANS = (
    "kl_dense_pruned",
    "kl_dense_pruned_estimate",
    "kl_pruned_dense",
    "kl_pruned_dense_estimate",
    "delta_p",
    "top1_agreement",
)
_SKETCHED = (*_MEANS, "delta_nll")
_POINTS = 99  # of a curve
_EXTREME = "an extreme of the tokens"
# Prefixes of the results that compare the dense model with itself.
_BATCH = "floor_batch/"
FLOORS = (_BATCH, "floor_bfloat16/", "floor_float32/")


class Distribution(LogitTask):
    """Next-token distributions, dense against pruned, teacher-forced on the windows of a text.

    The statistics are those of llama.cpp's `--kl-divergence`. They cover the L - 1 tokens of a
    window whose true next token is known:

    * `kl_dense_pruned` and `kl_pruned_dense`: KL divergences in nats per token, each with the mean
      of its second-order estimate (`_estimate`). The first also has its maximum and quantiles: 99%
      of the tokens are below `_q99`.
    * `delta_p`: p'(true) - p(true), with its root mean square (`_rms`), extremes and quantiles.
    * `top1_agreement`: the share of tokens with the same top token.
    * `perplexity_ratio`: PPL(pruned) / PPL(dense) = exp(mean `delta_nll`) of paired tokens. Its
      standard error is that of the mean times the ratio (delta method).
    * `ruler_kl`: the KL of the quantisation that is nearest on a log scale. The details name this
      quantisation.

    Means are exact, and quantiles are within 2%.

    Standard errors treat windows as independent. `standard_error_tokens` in the details treats
    tokens as independent, as llama.cpp does. It is usually too small, because neighbouring tokens
    are similar.

    The noise floor compares the dense model with itself. Its results have the same names after a
    prefix. A deviation that is not above the floor is rounding error. There are two floors:

    * `floor_batch/`: the model reads each window in its batch and again alone. If the batch has
      only one window, the model reads two copies of it as a batch.
    * `floor_bfloat16/` for a float32 model, `floor_float32/` for any other: a copy of the model in
      this dtype reads the windows. The copy exists only during this step. In addition to both
      models it needs half the memory of a float32 model, or twice that of a 16-bit model. A block
      that waits in a store is cast whenever it comes.

    Args:
        path: text rows, see `prunelit.data.load_rows`.
        length: L, number of tokens per window, at least 2, the BOS token included.
        floor: measure the noise floor.
        floor_windows: number of windows for the noise floor; the first ones are used.
        batch_size: number of windows per batch.
        name: of the task.
        kwargs: options of `WindowTask`.

    Example:
        >>> from prunelit.tasks import Distribution
        >>> task = Distribution("prunelit:facts.jsonl", column="context", length=64, limit=8)
        >>> task.name, task.needs_reference
        ('distribution', True)
    """

    needs_reference = True
    needs_equal = ("vocab_size",)

    def __init__(
        self,
        path: str,
        length: int = 256,
        floor: bool = True,
        floor_windows: int = 4,
        batch_size: int = 4,
        name: str = "distribution",
        **kwargs: Any,
    ) -> None:
        super().__init__(path=path, length=length, batch_size=batch_size, name=name, **kwargs)
        if floor_windows < 1:
            raise InputError(f"Expected `floor_windows` of at least 1 but got {floor_windows}.")
        self.floor = floor
        self.floor_windows = floor_windows

    def summarise(
        self,
        pair: ModelPair,
        batch: dict[str, Any],
        hidden: Sequence[Tensor],
        values: Mapping[str, Tensor],
    ) -> Values:
        assert pair.dense is not None
        ids = batch["input_ids"]
        # The next token of the last one is not known.
        found = _with_likelihoods(
            {name: value[:, :-1].contiguous() for name, value in values.items()}
        )
        own: dict[str, Tensor | Streamed] = {
            f"{model}/nll": found[f"{model}/nll"].mean(1) for model in ("dense", "pruned")
        }
        own |= {name: Streamed(found[name][:, None]) for name in _SKETCHED}
        chosen = [row for row, window in enumerate(batch["windows"]) if window < self.floor_windows]
        if self.floor and chosen:
            compared = pair.ask("dense", _floors, ids, chosen, memo={"hidden": hidden[0][:, :-1]})
            for prefix in (one for one in FLOORS if one + _MEANS[0] in compared):
                for name in _SKETCHED:
                    tokens = found[name].new_full((len(ids), 1, self.length - 1), torch.nan)
                    tokens[chosen, 0] = compared[prefix + name]
                    own[prefix + name] = Streamed(tokens)
        return own

    def report(self, table: ItemTable) -> TaskReport:
        results = self._results(table)
        return TaskReport(
            results,
            table=distribution_table(results),
            pictures=self._pictures(table),
            texts=distribution_lines(results),
        )

    def _results(self, table: ItemTable) -> list[Result]:
        details = self.details(self.length - 1)
        results = table.paired_results(self.name, ["nll"], details)
        for prefix in self._prefixes(table):
            results += self._pair_results(table, prefix, details)
        return results

    def _pictures(self, table: ItemTable) -> Iterator[tuple[str, Picture]]:
        spreads = []
        for prefix in self._prefixes(table):
            kl, delta = (table.sketches[prefix + name] for name in ("kl_dense_pruned", "delta_p"))
            shares = _shares(int(kl.tokens))
            mean = float(kl.mean)
            spreads.append(
                Spread(
                    prefix.rstrip("/") or "pruned",
                    shares,
                    kl.quantiles(shares)[:, 0].tolist(),
                    delta.quantiles(shares)[:, 0].tolist(),
                    mean,
                    place_on_ruler(mean).rung.name,
                    int(kl.tokens),
                )
            )
        rungs = {rung.name: rung.kl for rung in RUNGS}
        yield "distribution", distribution_picture(spreads, rungs)

    def _prefixes(self, table: ItemTable) -> list[str]:
        return ["", *(p for p in FLOORS if f"{p}kl_dense_pruned" in table.sketches)]

    def _pair_results(self, table: ItemTable, prefix: str, details: dict[str, Any]) -> list[Result]:
        sketches = {name: table.sketches[prefix + name] for name in _SKETCHED}
        kl, delta, ratio = (sketches[n] for n in ("kl_dense_pruned", "delta_p", "delta_nll"))
        windows = int(kl.n)
        own = {**details, "tokens": int(kl.tokens)}

        def result(metric: str, value: float, error: float = math.nan, **more: Any) -> Result:
            return Result(self.name, prefix + metric, "pair", value, error, windows, own | more)

        results = []
        for name in _MEANS:
            sketch = sketches[name]
            tokens = _or_none(float(sketch.token_error))
            value, error = float(sketch.mean), float(sketch.standard_error)
            results.append(result(name, value, error, standard_error_tokens=tokens))
            if name == "kl_dense_pruned":
                results += [
                    result(metric, value, score=name, no_error_bar=reason)
                    for metric, value, reason in _spread(name, kl, KL_PERCENT)
                ]
            if name == "delta_p":
                results += [
                    result(metric, value, score=name, no_error_bar=reason)
                    for metric, value, reason in [
                        (f"{name}_rms", float(delta.rms), "a root mean square of the tokens"),
                        *_spread(name, delta, DELTA_PERCENT),
                        (f"{name}_min", float(delta.lowest), _EXTREME),
                    ]
                ]
        value = _exp(float(ratio.mean))
        tokens = _or_none(value * float(ratio.token_error))
        error = value * float(ratio.standard_error)
        own_score = {"score": "delta_nll", "standard_error_tokens": tokens}
        results.append(result("perplexity_ratio", value, error, **own_score))
        placement = place_on_ruler(float(kl.mean))
        ruler = {
            "rung": placement.rung.name,
            "below": placement.below and placement.below.name,
            "above": placement.above and placement.above.name,
            "between": placement.between,
            "ruler": SOURCE,
            "score": "kl_dense_pruned",
            "no_error_bar": "a rung of the ruler",
        }
        return [*results, result("ruler_kl", placement.rung.kl, **ruler)]


def _hidden(model: PreTrainedModel, ids: Tensor) -> Tensor:
    """Return the embeddings, (B, L - 1, D), of the tokens whose next token is known."""
    return final_hidden(model, ids, torch.ones_like(ids))[:, :-1]


def _compare(
    dense: PreTrainedModel, pruned: PreTrainedModel, hidden: Tensor, other: Tensor, ids: Tensor
) -> Mapping[str, Tensor]:
    """Compute values (B, L - 1) by name from embeddings (B, L - 1, D) and token ids (B, L)."""
    values = token_deviations(
        dense,
        pruned,
        hidden.flatten(0, 1),
        other.flatten(0, 1),
        targets=ids[:, 1:].flatten(),
    )
    found = _with_likelihoods(values)
    return {name: value.view(hidden.shape[:2]) for name, value in found.items()}


def _with_likelihoods(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Add what compares the log-probabilities of the true tokens."""
    log_p, log_p_pruned = (values[name] for name in LOG_PROBABILITIES)
    found = {
        **values,
        "dense/nll": -log_p,
        "pruned/nll": -log_p_pruned,
        "delta_nll": log_p - log_p_pruned,
        "delta_p": log_p_pruned.exp() - log_p.exp(),
    }
    if found["delta_nll"].isnan().any():
        raise InputError(
            "Expected finite log-probabilities of the text but a model returns NaN, or both "
            "return -inf for the same token. Load the models in another dtype."
        )
    return found


def _floors(
    dense: PreTrainedModel, ids: Tensor, chosen: list[int], hidden: Tensor
) -> dict[str, Tensor]:
    """Compare the dense model with itself on the chosen windows; return values (B', L - 1).

    Their names are those of the quantities, after the prefix of the floor.
    """
    windows = [ids[row : row + 1] for row in chosen]
    copies = 1 if len(ids) > 1 else 2
    ids, hidden = ids[chosen], hidden[chosen]
    again = torch.cat([_hidden(dense, window.expand(copies, -1))[:1] for window in windows])
    dtype = torch.bfloat16 if dense.dtype == torch.float32 else torch.float32
    twin = recast(dense, dtype)
    # The twin keeps its own dtype, even if the Trainer's precision casts.
    with torch.autocast(ids.device.type, enabled=False):
        found = torch.cat([_hidden(twin, window) for window in windows])
    floors = {
        _BATCH: _compare(dense, dense, hidden, again, ids),
        f"floor_{str(dtype).removeprefix('torch.')}/": _compare(dense, twin, hidden, found, ids),
    }
    return {
        prefix + name: compared[name] for prefix, compared in floors.items() for name in _SKETCHED
    }


def _spread(name: str, sketch: Sketch, percent: Sequence[float]) -> list[tuple[str, float, str]]:
    """Return the maximum and the quantiles: name, value, and why there is no error bar."""
    found = sketch.quantiles([share / 100 for share in percent])[:, 0].tolist()
    quantiles = [
        (f"{name}_q{share:g}", value, "a quantile of the tokens")
        for share, value in zip(percent, found, strict=True)
    ]
    return [(f"{name}_max", float(sketch.highest), _EXTREME), *quantiles]


def _shares(tokens: int) -> list[float]:
    """Return the shares of tokens at which a curve is drawn, evenly spaced on a logit scale."""
    reach = math.log(2 * tokens - 1)  # half a token from either end
    ends = [reach * (2 * place / (_POINTS - 1) - 1) for place in range(_POINTS)]
    return [1 / (1 + math.exp(-end)) for end in ends]


def _exp(value: float) -> float:
    return math.exp(value) if value < 709 else math.inf


def _or_none(value: float) -> float | None:
    """Return None for NaN and infinity, which JSON does not have."""
    return value if math.isfinite(value) else None
