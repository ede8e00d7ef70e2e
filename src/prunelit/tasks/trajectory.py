"""Compare dense and pruned along their rollouts, decoding step by decoding step."""

import math
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from prunelit.errors import check_seed
from prunelit.metrics.survival import Survival, forecast_survival, kaplan_meier, keep_probability
from prunelit.metrics.validity import NEAR, Validity, measure_quantity_validity
from prunelit.models.architecture import final_hidden
from prunelit.models.comparison import token_deviations
from prunelit.models.inference.generation import Sampling, rollout, stop_tokens
from prunelit.models.model_pair import ModelPair
from prunelit.report.curves import Curve, Picture
from prunelit.report.first_divergence import first_divergence_picture
from prunelit.report.quantities import ESTIMATE, LEADING
from prunelit.report.results import Result
from prunelit.report.scatter import scatter_picture
from prunelit.report.task_report import TaskReport
from prunelit.report.trajectory import (
    accumulation_picture,
    cosines_picture,
    kl_picture,
    logits_picture,
    theory_picture,
)
from prunelit.tasks.item_table import ItemTable, Streamed, mean
from prunelit.tasks.prompt_task import PromptTask, RolloutBatch, join_rollout

FORCED, FREE = "teacher_forced", "free_running"
_DISTANCES = ("embedding", "logit", "probability")
_REPORTED = (*LEADING, "kl_pruned_dense", "top1_agreement")
_SIZE = "logit_std_p"
_RESAMPLES = 100


class Trajectory(PromptTask):
    """Dense against pruned along rollouts (arXiv:2603.24652).

    Decoding step s, from 0, is the position whose logits choose the s-th token.

    * *Teacher-forced*: both models read the dense model's rollout, in one pass each.
    * *Free-running*: each model reads its own rollout. The models are compared at the same step,
      as long as neither rollout has ended.
    * *Accumulation*: free-running minus teacher-forced, at the same prompt and step, of 1 - cosine
      and of the KL.
    * *First divergence*: the first step at which the tokens of both rollouts differ. A rollout that
      never differs is censored at its last step. Median and mean are those of the Kaplan-Meier
      curve; the mean is restricted to the longest dense rollout.
    * *Forecast*: the first divergence as predicted by the teacher-forced pass alone, see
      `prunelit.metrics.survival`. With greedy decoding it agrees with the observation, except for
      ties.

    Most metrics are means over the steps of a prompt, then over prompts. The following metrics
    need all prompts at once. Their standard errors come from drawing prompts with replacement
    (bootstrap):

    * `first_divergence_*` and `forecast_*`.
    * `rank_correlation/*`: between the second-order estimates and the exact values.
    * `holds_to/*`: the highest standard deviation of dz under p up to which the median error of
      the estimate stays below 10%.

    Args:
        temperature: of the softmax and of sampling.
        sample: sample with Gumbel noise that both models share; otherwise decode greedily.
        seed: of that noise and of the bootstrap.
        free_running: let the pruned model generate its own rollouts. Otherwise there is no
            accumulation, and the first divergence is forecast but not observed.
        logit_gram: compute the logit space from embeddings and the Gram matrix of the unembedding,
            where both models have the same one, see `prunelit.metrics.LogitGram`. False computes it
            from logits in float32.
        kwargs: options of `PromptTask`.

    Example:
        >>> from prunelit.tasks import Trajectory
        >>> task = Trajectory("prunelit:facts.jsonl", limit=16, free_running=False)
        >>> task.name, task.needs_reference
        ('trajectory', True)
    """

    needs_reference = True
    needs_equal = ("vocab_size", "hidden_size")

    def __init__(
        self,
        path: str,
        batch_size: int = 8,
        temperature: float = 1.0,
        sample: bool = False,
        seed: int = 0,
        free_running: bool = True,
        logit_gram: bool = True,
        name: str = "trajectory",
        **kwargs: Any,
    ) -> None:
        super().__init__(path=path, batch_size=batch_size, name=name, **kwargs)
        check_seed("seed", seed)
        Sampling(seed, (), temperature)  # raises an error for invalid values
        self.temperature = temperature
        self.sample, self.seed = sample, seed
        self.free_running = free_running
        self.logit_gram = logit_gram

    @torch.no_grad()
    def step(self, pair: ModelPair, batch: dict[str, Any]) -> dict[str, Tensor | Streamed]:
        assert pair.dense is not None
        ids, mask = batch["input_ids"], batch["attention_mask"]
        noise = Sampling(self.seed, batch["prompts"], self.temperature)
        roll = partial(
            pair.ask,
            function=rollout,
            tokenizer=pair.tokenizer,
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=self.max_new_tokens,
            sampling=noise if self.sample else None,
            # Both models stop at the same tokens, so that equal rollouts end together.
            stops=stop_tokens(pair.dense, pair.tokenizer),
        )
        tokens = roll("dense").tokens
        text = join_rollout(ids, mask, tokens)
        hidden = pair.ask("dense", _read, text)
        forced = self._compare(pair, hidden, _read(pair.pruned, text), text.steps, tokens)
        values: dict[str, Tensor | Streamed] = {"dense/tokens": tokens, "keep": forced.pop("keep")}
        for quantity in (*LEADING, *(name + ESTIMATE for name in LEADING), _SIZE):
            values[f"token/{quantity}"] = forced[quantity]
        values |= _streamed(FORCED, forced, _REPORTED)
        if not self.free_running:
            return values
        own = roll("pruned").tokens
        values["pruned/tokens"] = own
        differ = tokens != own
        values["diverged"] = differ.any(1).double()
        last = text.steps.sum(1) - 1
        values["last"] = torch.where(differ.any(1), differ.int().argmax(1), last)
        theirs = join_rollout(ids, mask, own)
        both = text.steps & theirs.steps
        free = self._compare(pair, hidden, _read(pair.pruned, theirs), both)
        values |= _streamed(FREE, free, _REPORTED)
        added = {
            f"{space}_distance": forced[f"{space}_cosine"] - free[f"{space}_cosine"]
            for space in _DISTANCES
        }
        added["kl_dense_pruned"] = free["kl_dense_pruned"] - forced["kl_dense_pruned"]
        return values | _streamed("accumulation", added, tuple(added))

    def report(self, table: ItemTable) -> TaskReport:
        return TaskReport(
            self._results(table),
            curves=self._curves(table),
            pictures=self._pictures(table),
            texts=self._text_rows(table),
        )

    def _results(self, table: ItemTable) -> list[Result]:
        details = {
            **self.details(),
            "temperature": self.temperature,
            "decoding": "gumbel-max" if self.sample else "greedy",
            "seed": self.seed,
        }
        results = []
        for column in (name for name in table.columns() if name.startswith("item/")):
            there = table[column][~table[column].isnan()]
            metric = column.removeprefix("item/")
            results.append(Result(self.name, metric, "pair", *mean(there), len(there), details))
        results += table.pair_results(self.name, ["diverged"], details)
        n = table.size
        drawn = np.random.default_rng(self.seed).integers(n, size=(_RESAMPLES, n))
        others = [_pooled(table, prompts) for prompts in drawn]
        for metric, value in _pooled(table, np.arange(n)).items():
            spread = np.std([other[metric] for other in others], ddof=1)
            error = float(spread) if n > 1 else math.nan
            own = dict(details)
            if n > 1 and math.isnan(error):
                own["no_error_bar"] = f"undefined in some of {_RESAMPLES} resamples of the prompts"
            results.append(Result(self.name, metric, "pair", value, error, n, own))
        return results

    def _curves(self, table: ItemTable) -> Iterator[Curve]:
        for name, sketch in table.sketches.items():
            low, high = sketch.quantiles([0.1, 0.9])
            ys = (sketch.mean, low, high, sketch.n)
            yield _curve(name, ys, "10%-90% of prompts", sketch.standard_error)
        steps = _longest(table)
        n = (table["dense/tokens"] >= 0).sum(0).numpy()
        found = [("forecast", forecast_survival(table["keep"].numpy()[:, :steps]), n)]
        if self.free_running:
            seen = _observed(table, np.arange(table.size), steps)
            found.append(("observed", seen, seen.at_risk))
        for name, one, n in found:
            ys = (one.survival, one.low, one.high, n)
            yield _curve(f"first_divergence/{name}", ys, "95% confidence")

    def _pictures(self, table: ItemTable) -> Iterator[tuple[str, Picture]]:
        curves = {curve.tag: curve for curve in self._curves(table)}
        everyone = np.arange(table.size)
        judged = {quantity: _judge(table, everyone, quantity) for quantity in LEADING}
        tokens = max(len(one.exact) for one in judged.values())
        of = f"up to {tokens} tokens of {table.size} prompts"
        title = f"Second-order estimates, teacher-forced, one dot a token (n = {of})"
        yield "trajectory_cosines", cosines_picture(curves)
        yield "trajectory_kl", kl_picture(curves)
        yield "trajectory_logits", logits_picture(curves)
        yield "trajectory_theory", theory_picture(curves)
        yield "trajectory_scatter", scatter_picture(judged, NEAR, title)
        steps = _longest(table)
        ended = [0] * steps
        title = "First divergence, forecast"
        if self.free_running:
            yield "accumulation", accumulation_picture(curves)
            undiverged = table["last"][table["diverged"] == 0]
            ended = torch.bincount(undiverged, minlength=steps).tolist()
            distance = _pooled(table, everyone)["forecast_distance"]
            title = (
                f"First divergence (largest distance of forecast and observation: {distance:.2f})"
            )
        yield "first_divergence", first_divergence_picture(curves, ended, title)

    def _text_rows(self, table: ItemTable) -> Iterator[dict[str, str]]:
        """Yield the prompt, both texts, and the step of their first divergence."""
        for index, context in enumerate(self.contexts):
            row = {"prompt": context, "dense": self.text(table["dense/tokens"][index])}
            if self.free_running:
                row["pruned"] = self.text(table["pruned/tokens"][index])
                last = int(table["last"][index])
                row["first divergence"] = (
                    f"step {last}" if table["diverged"][index] else f"none in {last + 1} steps"
                )
            yield row

    def _compare(
        self,
        pair: ModelPair,
        dense: Tensor,
        pruned: Tensor,
        there: Tensor,
        tokens: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Compute deviations, (B, S), NaN where `there` is False.

        With `tokens`, the probability that the pruned model keeps each token is added.
        """
        assert pair.dense is not None
        values = token_deviations(
            pair.dense,
            pair.pruned,
            dense[there],
            pruned[there],
            temperature=self.temperature,
            gram=pair.logit_gram() if self.logit_gram else None,
            also=None if tokens is None else partial(self._keep, tokens[there]),
        )
        absent = torch.full(there.shape, torch.nan, dtype=torch.float64, device=there.device)
        return {name: absent.masked_scatter(there, value) for name, value in values.items()}

    def _keep(self, tokens: Tensor, z: Tensor, other: Tensor, place: slice) -> dict[str, Tensor]:
        if self.sample:
            return {"keep": keep_probability(z, other, tokens[place], self.temperature)}
        return {"keep": (other.argmax(-1) == tokens[place]).double()}


def _read(model: PreTrainedModel, text: RolloutBatch) -> Tensor:
    """Return the final embeddings of the decoding steps, (B, S, D), from one pass."""
    return final_hidden(model, text.input_ids, text.attention_mask)[:, text.positions]


def _streamed(
    mode: str, values: dict[str, Tensor], reported: tuple[str, ...]
) -> dict[str, Tensor | Streamed]:
    """Return every quantity (B, S) by step, and the mean over steps of the reported ones."""
    found: dict[str, Tensor | Streamed] = {
        f"{mode}/{name}": Streamed(value[..., None]) for name, value in values.items()
    }
    return found | {f"item/{mode}/{name}": values[name].nanmean(1) for name in reported}


def _curve(tag: str, ys: Sequence[Any], band: str, standard_error: Tensor | None = None) -> Curve:
    """Build a curve of mean, ends of the band and number of prompts, while there are prompts."""
    steps = int((ys[3] > 0).sum())
    mean, low, high, n = (y[:steps].tolist() for y in ys)
    error = [math.nan] * steps if standard_error is None else standard_error[:steps].tolist()
    return Curve(tag, "step", range(steps), mean, low, high, n, band, error)


def _longest(table: ItemTable) -> int:
    """Return the number of steps of the longest dense rollout."""
    return int((table["dense/tokens"] >= 0).sum(1).max())


def _observed(table: ItemTable, prompts: np.ndarray, steps: int) -> Survival:
    last, diverged = (table[name].numpy()[prompts] for name in ("last", "diverged"))
    return kaplan_meier(last, diverged, steps)


def _judge(table: ItemTable, prompts: np.ndarray, quantity: str) -> Validity:
    names = (_SIZE, quantity, f"{quantity}_estimate")
    dz, exact, estimate = (table[f"token/{name}"].numpy()[prompts].ravel() for name in names)
    return measure_quantity_validity(quantity, dz, exact, estimate)


def _pooled(table: ItemTable, prompts: np.ndarray) -> dict[str, float]:
    """Compute the metrics that need all prompts at once."""
    steps = _longest(table)
    predicted = forecast_survival(table["keep"].numpy()[prompts, :steps])
    found = {"forecast_median": predicted.median, "forecast_mean": predicted.restricted_mean}
    if "last" in table:
        seen = _observed(table, prompts, steps)
        found["first_divergence_median"] = seen.median
        found["first_divergence_mean"] = seen.restricted_mean
        found["forecast_distance"] = float(np.abs(seen.survival - predicted.survival).max())
    for quantity in LEADING:
        judged = _judge(table, prompts, quantity)
        found[f"rank_correlation/{quantity}"] = judged.rank_correlation
        found[f"holds_to/{quantity}"] = judged.holds_to
    return found
