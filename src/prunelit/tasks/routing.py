"""Compare the routers of a dense and a pruned mixture of experts, token by token."""

import math
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from prunelit.errors import InputError
from prunelit.metrics.spaces.deviation import check_not_nan
from prunelit.models.architecture import decoder_blocks, probe_ids
from prunelit.models.inference.generation import rollout
from prunelit.models.model_pair import ModelPair
from prunelit.models.replay import capture, check_replay
from prunelit.models.routers import (
    Decisions,
    Gate,
    find_gate,
    find_mixture,
    log_scores,
    route_again,
    watch_router,
)
from prunelit.models.stores import whole
from prunelit.report.curves import Curve, Picture
from prunelit.report.results import Result
from prunelit.report.routing import Load, changes_picture, load_picture
from prunelit.report.task_report import TaskReport
from prunelit.tasks.item_table import ItemTable, Streamed
from prunelit.tasks.prompt_task import PromptTask, RolloutBatch, join_rollout

_MODELS, _PHASES = ("dense", "pruned"), ("prompt", "decode")
_RESAMPLES = 100

Loads = dict[str, dict[str, Load]]  # by phase and model
Entropy = tuple[str, str, np.ndarray]  # metric, model, values


class Routing(PromptTask):
    """Routers of a mixture of experts, dense against pruned.

    Both models read the dense model's greedy rollout. For each token and mixture, A and B are the
    sets of active experts of the dense and of the pruned model, p and q the distributions of their
    routers over the experts.

    * `changed`: 1 if A and B differ, else 0. Its mean is the share of tokens.
    * `overlap`: the Jaccard index: size of the intersection of A and B over that of their union.
    * `router_kl`: KL(p ‖ q) in nats. p is the softmax of the router's logits. In families whose
      gate is a sigmoid, p is the sigmoids divided by their sum. Correction biases and groups are
      not part of it.
    * `load_entropy`: entropy in nats of the load, the share of each expert in all pairs of a token
      and an active expert; mean over mixtures. `load_evenness` is the entropy divided by the
      logarithm of the number of experts: 1 if all experts have the same load.

    If the pruned model lacks experts, the others keep the numbers that they have in the dense
    model. For the KL, p is restricted to them and divided by its sum. `dropped_mass` is the share
    of p on the experts that are gone. Blocks that the pruned model lacks are left out.

    * *Local*: the pruned router reads the input of the dense router. This is the effect of fewer
      experts, or of a pruned router, alone. Other methods leave routers as they are.
    * *Cumulative*: each router reads the stream of its own model. The load is cumulative.

    Decoding step s is the position whose logits choose the s-th token of the rollout. The tokens
    before step 0 are the prompt tokens. All of them are compared, and padding never is.

    Metrics are means over mixtures and tokens of a prompt, then over prompts. Curves show each
    block or each decoding step. The load is that of all prompts together. Its standard errors come
    from drawing prompts with replacement (bootstrap).

    Args:
        kwargs: options of `PromptTask`.

    Example:
        >>> from prunelit.tasks import Routing
        >>> task = Routing("prunelit:facts.jsonl", limit=8)
        >>> task.name, task.needs_reference
        ('routing', True)
    """

    needs_reference = True
    needs_equal = ("model_type", "vocab_size", "hidden_size", "num_hidden_layers")
    needs_experts = True

    def __init__(
        self, path: str, batch_size: int = 8, name: str = "routing", **kwargs: Any
    ) -> None:
        super().__init__(path=path, batch_size=batch_size, name=name, **kwargs)

    @torch.no_grad()
    def check(self, model: PreTrainedModel) -> None:
        blocks = decoder_blocks(model)[1]
        self._mixtures = [find_mixture(block) for block in blocks]
        if not any(self._mixtures):
            raise InputError(
                f"Expected a mixture of experts for the task {self.name!r} but no block of the "
                "model has a router: leave out this task, or take another model."
            )
        ids = probe_ids(model, 2, 8)
        batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        self._form = check_replay(model, batch)
        stream = capture(model, blocks, batch, self._form)
        self._gates: dict[int, Gate] = {}
        self._experts = 0  # of the largest mixture
        for index, (block, mixture) in enumerate(zip(blocks, self._mixtures, strict=True)):
            run = partial(stream.run, block, index)
            if mixture is None:
                stream.hidden = run()
                continue
            stream.hidden, decisions = watch_router(block, mixture, run)
            tokens, experts = decisions.logits.shape
            if tokens != ids.numel():
                raise InputError(
                    f"Expected {mixture.router!r} to read one row for each of {ids.numel()} tokens "
                    f"but it reads {tokens}: leave out the task {self.name!r}."
                )
            self._gates[index] = find_gate(decisions)
            self._experts = max(self._experts, experts)

    @torch.no_grad()
    def step(self, pair: ModelPair, batch: dict[str, Any]) -> dict[str, Tensor | Streamed]:
        ids, mask = batch["input_ids"], batch["attention_mask"]
        steps = self.max_new_tokens
        rolled = pair.ask("dense", rollout, pair.tokenizer, ids, mask, max_new_tokens=steps)
        text = join_rollout(ids, mask, rolled.tokens)
        phases = {phase: there.cpu() for phase, there in text.phases.items()}
        rows, tokens = text.input_ids.shape
        places = rows, len(self._mixtures)
        found: dict[str, Tensor] = {}
        values: dict[str, Tensor | Streamed] = {}
        load = {
            (model, phase): torch.zeros(*places, self._experts, dtype=torch.int64)
            for model in _MODELS
            for phase in phases
        }
        experts = {model: torch.zeros(places, dtype=torch.int64) for model in _MODELS}
        for index, counts, active, compared in self._blocks(pair, text):
            for name, value in compared.items():
                absent = torch.full((*places, tokens), torch.nan, dtype=torch.float64)
                found.setdefault(name, absent)[:, index] = value.view(rows, tokens).cpu()
            for model, count, own in zip(_MODELS, counts, active, strict=True):
                experts[model][:, index] = count
                own = own.view(rows, tokens, -1).cpu()
                for phase, there in phases.items():
                    pairs = (own & there[..., None]).sum(1)
                    load[model, phase][:, index, : own.shape[-1]] = pairs
        values |= {f"experts/{model}": count for model, count in experts.items()}
        values |= {f"load/{model}/{phase}": pairs for (model, phase), pairs in load.items()}
        for name, value in found.items():
            way, quantity = name.split("/")
            for phase, there in phases.items():
                part = value.masked_fill(~there[:, None], torch.nan)
                values[f"{way}/{phase}/{quantity}"] = Streamed(part)
                values[f"item/{way}/{phase}/{quantity}"] = part.flatten(1).nanmean(1)
            decoded = value.masked_fill(~phases["decode"][:, None], torch.nan)
            values[f"{way}/step/{quantity}"] = Streamed(decoded[..., text.positions].mT)
        return values

    def report(self, table: ItemTable) -> TaskReport:
        details = {
            **self.details(),
            "decoding": "greedy",
            "gate": ", ".join(sorted(set(self._gates.values()))),
        }
        loads = _loads(table)
        entropies = list(_entropies(loads))
        return TaskReport(
            table.item_results(self.name, details)
            + _load_results(self.name, entropies, table.size, details),
            curves=_curves(table, entropies),
            pictures=_pictures(table, loads, entropies),
        )

    def _blocks(
        self, pair: ModelPair, text: RolloutBatch
    ) -> Iterator[tuple[int, tuple[int, int], tuple[Tensor, Tensor], dict[str, Tensor]]]:
        """Compare the routers of each block that is a mixture in both models.

        Yields:
            Index of the block in the dense model; the number of experts of both models; the active
            experts of both, (N, E) bool, by their numbers in the dense model; the quantities of
            N = B * T tokens, each (N,).
        """
        assert pair.dense is not None
        batch = {"input_ids": text.input_ids, "attention_mask": text.attention_mask}
        own, theirs = decoder_blocks(pair.dense)[1], decoder_blocks(pair.pruned)[1]
        kept = pair.kept_blocks()
        dense = capture(pair.dense, own, batch, self._form)
        pruned = capture(pair.pruned, theirs, batch, self._form)
        for index, (block, mixture) in enumerate(zip(own, self._mixtures, strict=True)):
            run = partial(dense.run, block, index)
            first: Decisions | None = None
            if mixture is None:
                dense.hidden = run()
            else:
                dense.hidden, first = watch_router(block, mixture, run)
            if (place := kept.get(index)) is None:
                continue
            other = theirs[place]
            run = partial(pruned.run, other, place)
            if mixture is None or first is None or find_mixture(other) is None:
                pruned.hidden = run()
                continue
            with whole(other):
                local = route_again(other, mixture, run, first.inputs)
                pruned.hidden, second = watch_router(other, mixture, run)
            counts = first.logits.shape[1], second.logits.shape[1]
            numbers = self._numbers(pair, f"{place}.{mixture.experts}", *counts)
            numbers = numbers.to(first.logits.device)
            gate = self._gates[index]
            compared = {}
            for way, decisions in (("cumulative", second), ("local", local)):
                found = _compare(first, decisions, numbers, gate)
                compared |= {f"{way}/{name}": value for name, value in found.items()}
            if counts[0] != counts[1]:
                left = log_scores(first.logits.double(), gate).softmax(1)[:, numbers]
                compared["local/dropped_mass"] = 1 - left.sum(1)
            real = dense.tokens.flatten().to(first.logits.device)
            check_not_nan({name: value[real] for name, value in compared.items()})
            yield index, counts, (first.active, _spread(second, numbers, counts[0])), compared

    def _numbers(self, pair: ModelPair, name: str, dense: int, pruned: int) -> Tensor:
        """Find the numbers, in the dense model, of the experts of a pruned mixture, (E',)."""
        if pruned == dense:
            return torch.arange(dense)
        kept = pair.kept_experts.get(name, ())
        if len(kept) != pruned or max(kept) >= dense:
            raise InputError(
                f"Expected to know which {pruned} of the {dense} experts of the dense model are "
                f"left in {name!r} but `pruning.json` does not say it: prune the dense model "
                f"with this release, or leave out the task {self.name!r}."
            )
        return torch.tensor(kept)


def _compare(dense: Decisions, pruned: Decisions, numbers: Tensor, gate: Gate) -> dict[str, Tensor]:
    """Compute the quantities of N tokens, each (N,).

    Args:
        dense: for E experts.
        pruned: for E' experts.
        numbers: (E',), their numbers in the dense model.
        gate: of both routers.
    """
    one, other = dense.active, _spread(pruned, numbers, dense.logits.shape[1])
    common, together = (one & other).sum(1), (one | other).sum(1)
    p = log_scores(dense.logits.double(), gate)[:, numbers].log_softmax(1)
    q = log_scores(pruned.logits.double(), gate).log_softmax(1)
    return {
        "changed": (one != other).any(1).float(),
        "overlap": common / together,
        "router_kl": (p.exp() * (p - q)).sum(1).clamp(min=0),
    }


def _spread(pruned: Decisions, numbers: Tensor, experts: int) -> Tensor:
    """Return the active experts of a pruned model by their numbers in the dense one, (N, E)."""
    active = pruned.active.new_zeros(len(pruned.logits), experts)
    active[:, numbers] = pruned.active
    return active


def _loads(table: ItemTable) -> Loads:
    """Collect the load of both models, by phase and model."""
    return {
        phase: {
            model: Load(
                table[f"load/{model}/{phase}"].numpy(), table[f"experts/{model}"].amax(0).numpy()
            )
            for model in _MODELS
        }
        for phase in _PHASES
    }


def _resampled(size: int) -> np.ndarray:
    """Return how often each prompt counts: once, then as resamples draw it, (1 + R, size)."""
    drawn = np.random.default_rng(0).integers(size, size=(_RESAMPLES, size))
    counts = [np.bincount(own, minlength=size) for own in drawn]
    return np.stack([np.ones(size, dtype=np.int64), *counts])


def _entropies(loads: Loads) -> Iterator[Entropy]:
    """Yield metric, model and values of all prompts and of the resamples, (1 + R, P)."""
    for phase, own in loads.items():
        weights = _resampled(len(own["dense"].pairs))
        found = {model: load.entropies(weights) for model, load in own.items()}
        for name in found["dense"]:
            for model in _MODELS:
                yield f"{phase}/{name}", model, found[model][name]


def _load_results(
    task: str, entropies: Sequence[Entropy], prompts: int, details: dict[str, Any]
) -> list[Result]:
    by_metric: dict[str, dict[str, np.ndarray]] = {}
    for metric, model, values in entropies:
        there = ~np.isnan(values[0])
        if there.any():
            by_metric.setdefault(metric, {})[model] = values[:, there].mean(1)
    results = []
    for metric, own in by_metric.items():
        own["difference"] = own["pruned"] - own["dense"]
        for model, values in own.items():
            error = float(np.std(values[1:], ddof=1)) if prompts > 1 else math.nan
            results.append(Result(task, metric, model, float(values[0]), error, prompts, details))
    return results


def _curves(table: ItemTable, entropies: Sequence[Entropy]) -> Iterator[Curve]:
    yield from table.sketch_curves()
    for metric, model, values in entropies:
        low, high = np.quantile(values[1:], [0.025, 0.975], axis=0)
        yield Curve(
            f"{metric}/{model}",
            "block",
            range(values.shape[1]),
            values[0].tolist(),
            low.tolist(),
            high.tolist(),
            np.where(np.isnan(values[0]), 0, table.size).tolist(),
            "95% of resamples of the prompts",
            np.std(values[1:], axis=0, ddof=1).tolist(),
        )


def _pictures(
    table: ItemTable, loads: Loads, entropies: Sequence[Entropy]
) -> Iterator[tuple[str, Picture]]:
    curves = {curve.tag: curve for curve in _curves(table, entropies)}
    yield "routing_changes", changes_picture(curves)
    yield "routing_load", load_picture(loads, curves)
