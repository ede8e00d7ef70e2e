"""Check what a CUDA GPU does: a line of `pass` or `fail` with a figure for each path.

    python benchmarks/gpu.py [--folder DISK]      on one GPU of 16 GiB or more, within 10 minutes
    python benchmarks/gpu.py --device cpu         a dry run of all lines on a tiny model

It needs no network: the models are random Llamas, which it writes into a temporary folder, with a
tokenizer of bytes. `skip` says why a line cannot be judged here. An error fails its line, its
traceback is on stderr, and the next line runs. The status is 1 if a line fails. Measured runs take
deterministic kernels, because some sums on a GPU have no fixed order otherwise.
"""

import argparse
import copy
import os
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from generation import Bare, Rollouts, report, whole_task
from gpu_runs import FACTS, SCALES, Bench, Plan, Run, free_memory
from pruning import METHODS, PLAIN, plain
from torch import Tensor
from transformers import PreTrainedModel

import prunelit
from prunelit.files import readable
from prunelit.models.architecture import decoder_blocks, linear_modules
from prunelit.pruners import Magnitude
from prunelit.sparsity import SemiStructured
from prunelit.tasks import Generation, ModelPair


@dataclass
class Line:
    """One line of the output.

    Args:
        name: what is checked.
        figure: what was found, and what was expected.
        passed: None if it cannot be judged here.
    """

    name: str
    figure: str
    passed: bool | None

    def __str__(self) -> str:
        word = {True: "pass", False: "fail", None: "skip"}[self.passed]
        return f"{word}  {self.name}: {self.figure}"


def distance(found: Tensor, exact: Tensor) -> float:
    """Return the norm of the difference as a share of the norm."""
    return float((found.double() - exact.double()).norm() / exact.double().norm())


def removed(model: PreTrainedModel) -> Tensor:
    """Return which weights of the blocks are 0, (N,) bool on the CPU."""
    blocks = decoder_blocks(model)[1]
    weights = [m.weight for block in blocks for m in linear_modules(block).values()]
    return torch.cat([(weight == 0).flatten().cpu() for weight in weights])  # type: ignore[operator]


def check_masks(bench: Bench) -> Iterator[Line]:
    """Prune in bfloat16: the device may choose otherwise than a CPU as far as rounding goes."""
    ids = bench.ids("small", 16, bench.scale.calibration[1])
    cpu = torch.device("cpu")
    for method in PLAIN:
        chosen = []
        kinds = (("float32", cpu), ("bfloat16", cpu), ("bfloat16", bench.device))
        for dtype, device in kinds:
            model = bench.load("small")
            model.to(device, getattr(torch, dtype))  # type: ignore[arg-type]
            prunelit.prune(model, METHODS[method](), ids, progress=False)
            chosen.append(removed(model))
        exact, rounded, own = chosen
        rounding = float((rounded != exact).float().mean())
        other = float((own != rounded).float().mean())
        # Two roundings of the same numbers differ by at most what each of them changes.
        yield Line(
            f"masks of {method} in bfloat16",
            f"{1 - other:.5f} equal to those of the CPU (at least {1 - 2 * rounding:.5f}, twice "
            "the loss of the CPU's own bfloat16)",
            other <= 2 * rounding,
        )


def check_streamed(bench: Bench) -> Iterator[Line]:
    """Prune and measure with blocks in files: all bits are those of a resident run."""
    for method, measured in (("Wanda", True), ("SparseGPT", False)):
        plan = Plan("large", "resident", method, measured)
        resident, streamed = bench.run(plan), bench.run(replace(plan, placement="streamed"))
        weights, other = resident.weights(), streamed.weights()
        differ = sum(name not in other or not w.equal(other[name]) for name, w in weights.items())
        yield Line(
            f"{method} streamed, pruned weights",
            f"{differ} of {len(weights)} tensors differ from the resident run (0)",
            differ == 0 and weights.keys() == other.keys(),
        )
        if measured:
            yield equal_values(f"{method} streamed, results", resident, streamed)


def equal_values(name: str, resident: Run, streamed: Run) -> Line:
    """Compare all results of two runs, bit for bit."""
    keys = resident.values.keys() | streamed.values.keys()
    differ = sum(repr(resident.values.get(key)) != repr(streamed.values.get(key)) for key in keys)
    figure = f"{differ} of {len(keys)} values differ from the resident run (0)"
    return Line(name, figure, differ == 0 < len(keys))


def check_memory(bench: Bench) -> Iterator[Line]:
    """Measure the peak of the device: the estimate holds it, and is not far above."""
    plan = Plan("large", "resident", "Wanda")
    for own in (plan, replace(plan, placement="streamed")):
        name = f"peak memory {own.placement}"
        if not bench.gpu:
            yield Line(name, "needs CUDA, whose allocator counts", None)
            continue
        found = bench.run(own)
        share = found.peak / found.needs.total
        yield Line(
            name,
            f"{share:.2f} of the estimate (0.5 to 1.1), {readable(found.peak)} of {found.needs}",
            0.5 <= share <= 1.1,
        )


@torch.no_grad()
def check_semi_structured(bench: Bench) -> Iterator[Line]:
    """Compress 2:4 weights: the kernel rounds no worse than the dense product."""
    name = "2:4 kernel"
    if not bench.gpu or torch.cuda.get_device_capability() < (8, 0):
        yield Line(name, "needs CUDA with compute capability 8.0 or higher", None)
        return
    model = bench.load("small")
    model.to(bench.device)  # type: ignore[arg-type]
    prunelit.prune(model, Magnitude(SemiStructured(2, 4)), progress=False)
    ids = bench.ids("small", 3, 37).to(bench.device)  # a number of rows that the kernel pads
    exact = copy.deepcopy(model).float()(input_ids=ids).logits
    dense = distance(model(input_ids=ids).logits, exact)
    count = sum(len(linear_modules(block)) for block in decoder_blocks(model)[1])
    compressed = prunelit.to_semi_structured(model)
    sparse = distance(model(input_ids=ids).logits, exact)
    yield Line(
        name,
        f"logits {sparse:.2e} from float32 (at most {2 * dense:.2e}, twice the dense kernel's), "
        f"{compressed} of {count} weights compressed",
        compressed == count and sparse <= 2 * dense,
    )


def check_autocast(bench: Bench) -> Iterator[Line]:
    """Run float32 weights in mixed precision: near float32, and streamed as resident."""
    plan = Plan("small", "resident", "Wanda", dtype="float32")
    mixed = replace(plan, precision="bf16-mixed")
    full, own = bench.run(plan), bench.run(mixed)
    names = [key for key in full.values if key[1] == "nll" and key[2] != "difference"]
    worst = max(abs(own.values[key] / full.values[key] - 1) for key in names)
    yield Line(
        "bf16-mixed against float32",
        f"log-likelihoods differ by {worst:.1e} (above 0, at most 1e-2)",
        0 < worst <= 1e-2,
    )
    streamed = bench.run(replace(mixed, placement="streamed"))
    yield equal_values("bf16-mixed streamed, results", own, streamed)


def check_tf32(bench: Bench) -> Iterator[Line]:
    """Multiply in float32 after all runs: none of them may have chosen TF32."""
    size = bench.scale.matrix
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.randn(size, size, generator=generator) for _ in range(2))
    first, second = first.to(bench.device), second.to(bench.device)
    error = distance(first @ second, first.double() @ second.double())
    yield Line(
        "TF32 off", f"a float32 product is {error:.1e} from float64 (at most 1e-5)", error <= 1e-5
    )


def check_speed(bench: Bench) -> Iterator[Line]:
    """Time Wanda and SparseGPT beside two bare passes and the published loop of SparseGPT."""
    dense = bench.load("large")
    dense.to(bench.device)  # type: ignore[arg-type]
    ids = bench.ids("large", *bench.scale.timed).to(bench.device)

    @torch.no_grad()
    def bare(model: PreTrainedModel, ids: Tensor) -> None:
        for _ in range(2):
            for batch in ids.split(8):
                model.base_model(input_ids=batch, use_cache=False)

    runs: dict[str, Callable[[PreTrainedModel, Tensor], object]] = {"bare": bare}
    for method in PLAIN:
        runs[method] = lambda model, ids, method=method: prunelit.prune(
            model, METHODS[method](), ids, progress=False
        )
    runs["loop"] = lambda model, ids: plain(model, ids, PLAIN["SparseGPT"])
    for run in runs.values():
        run(copy.deepcopy(dense), ids[:1])  # warm
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(bench.scale.repeats):
        for name, run in runs.items():
            model = copy.deepcopy(dense)
            times[name].append(seconds(lambda run=run, model=model: run(model, ids), bench.gpu))
    median = {name: statistics.median(own) for name, own in times.items()}
    ratio = median["Wanda"] / median["bare"]
    yield timed_line(
        bench,
        "time of Wanda",
        f"{ratio:.2f} times two bare passes of {median['bare']:.2f} s (at most 1.25)",
        ratio <= 1.25,
    )
    share = median["SparseGPT"] / median["loop"]
    yield timed_line(
        bench,
        "time of SparseGPT",
        f"{median['SparseGPT'] / median['bare']:.2f} times two bare passes, {share:.2f} of the "
        "published loop (at most 0.5)",
        share <= 0.5,
    )


@torch.no_grad()
def check_generation(bench: Bench) -> Iterator[Line]:
    """Write with the task and with `generate` in turns: the same texts, in no more time."""
    model = bench.load("large", "float32")
    model.to(bench.device)  # type: ignore[arg-type]
    template = "Question: {context}\nAnswer:"
    options: dict[str, Any] = {"limit": bench.scale.items, "max_new_tokens": bench.scale.new_tokens}
    task = Generation(FACTS, chat=False, template=template, **options)
    task.read()
    task.prepare(bench.tokenizer)
    pair = ModelPair(model, None, bench.tokenizer)
    runs: dict[str, Callable[[], Rollouts]] = {
        "generate": Bare(task, model, bench.tokenizer, task.batch_size),
        "task": lambda: whole_task(task, pair),
    }
    found = {name: run() for name, run in runs.items()}  # warm
    mine, other = found["task"], found["generate"]
    differ = sum(other[index][: len(tokens)] != tokens for index, tokens in mine.items())
    yield Line("texts of generation", f"{report(task, model, mine, other)} (0)", differ == 0)
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(bench.scale.repeats):
        for name, run in runs.items():
            times[name].append(seconds(run, bench.gpu))
    speed = statistics.median(times["generate"]) / statistics.median(times["task"])
    yield timed_line(
        bench, "speed of generation", f"{speed:.2f} of `generate` (at least 0.95)", speed >= 0.95
    )


def seconds(run: Callable[[], object], gpu: bool) -> float:
    """Time a call, with all that it has queued on the device."""
    if gpu:
        torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    if gpu:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def timed_line(bench: Bench, name: str, figure: str, passed: bool) -> Line:
    """Judge a time on a GPU only: a tiny model on a CPU shows nothing."""
    return Line(
        name, figure if bench.gpu else f"{figure}; needs CUDA", passed if bench.gpu else None
    )


CHECKS = (
    check_masks,
    check_streamed,
    check_memory,
    check_semi_structured,
    check_autocast,
    check_tf32,
    check_speed,
    check_generation,
)


def lines(check: Callable[[Bench], Iterator[Line]], bench: Bench) -> Iterator[Line]:
    """Give the lines of a check; an error is one more that failed."""
    try:
        yield from check(bench)
    except Exception as error:  # noqa: BLE001 - the next check still runs
        traceback.print_exc()
        yield Line(check.__name__, f"{type(error).__name__}: {error}".partition("\n")[0], False)
    if bench.gpu:
        free_memory()


def main(arguments: list[str] | None = None) -> int:
    """Print all lines; return 1 if one failed."""
    parser = argparse.ArgumentParser(description="Check what a CUDA GPU does.")
    parser.add_argument("--device", choices=SCALES, default="cuda")
    parser.add_argument("--folder", type=Path, help="where 10 GiB are free; default: temporary")
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("no CUDA device was found; `--device cpu` is a dry run")
    # Read when cuBLAS starts; without it its sums have no fixed order.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    name = torch.cuda.get_device_name() if options.device == "cuda" else "CPU, a dry run"
    print(f"{name}, torch {torch.__version__}", flush=True)
    start = time.perf_counter()
    failed = 0
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        bench = Bench(torch.device(options.device), Path(folder))
        for check in CHECKS:
            for line in lines(check, bench):
                print(line, flush=True)
                failed += line.passed is False
    print(f"{failed} lines failed, {time.perf_counter() - start:.0f} s", flush=True)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
