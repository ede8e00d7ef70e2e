"""Check what a CUDA GPU does: a line of `pass` or `fail` with a figure for each path.

    python benchmarks/gpu.py [--folder DISK]      on one GPU of 16 GiB or more, within 10 minutes
    python benchmarks/gpu.py --device cpu         a dry run of all lines on a tiny model

It needs no network: the models are random Llamas, which it writes into a temporary folder, with a
tokenizer of bytes. `skip` says why a line cannot be judged here. An error fails its line, its
traceback is on stderr, and the next line runs. The status is 1 if a line fails. Measured runs take
deterministic kernels, because some sums on a GPU have no fixed order otherwise.
"""

import argparse
import contextlib
import copy
import gc
import json
import os
import random
import statistics
import string
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
from pruning import METHODS, PLAIN, plain
from safetensors.torch import load_file
from streamed import write_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

import prunelit
from prunelit.callbacks import Pruning
from prunelit.core.placement import Needs, Placement
from prunelit.files import readable
from prunelit.models.architecture import decoder_blocks, linear_modules
from prunelit.models.loading import DType
from prunelit.pruners import Magnitude
from prunelit.sparsity import SemiStructured
from prunelit.tasks import (
    Deviation,
    Generation,
    ModelPair,
    MultipleChoice,
    Perplexity,
    Retrieval,
    Task,
)

FACTS = "prunelit:facts.jsonl"
# Shapes as in `streamed.SHAPES`: width, inner width, blocks, heads, key-value heads, vocabulary.
TINY = (32, 64, 2, 2, 1, 512)


@dataclass(frozen=True)
class Scale:
    """Sizes of models and of their work.

    Args:
        shapes: of the small model, whose results a CPU computes too, and of the large one.
        calibration: sequences, and tokens of each.
        timed: the same, of the lines that take the time.
        items: most items of a task.
        new_tokens: of a rollout.
        matrix: rows and columns of a product.
        repeats: of a time.
    """

    shapes: dict[str, tuple[int, ...]]
    calibration: tuple[int, int]
    timed: tuple[int, int]
    items: int
    new_tokens: int
    matrix: int
    repeats: int


SCALES = {
    "cuda": Scale(
        shapes={"small": (512, 1536, 4, 8, 4, 4096), "large": (2048, 8192, 8, 32, 8, 32000)},
        calibration=(32, 512),
        timed=(32, 2048),
        items=64,
        new_tokens=32,
        matrix=4096,
        repeats=3,
    ),
    "cpu": Scale(
        shapes={"small": TINY, "large": TINY},
        calibration=(2, 16),
        timed=(2, 16),
        items=2,
        new_tokens=2,
        matrix=64,
        repeats=1,
    ),
}


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


@dataclass(frozen=True)
class Plan:
    """A run of the trainer: `prunelit fit` without a training.

    Args:
        model: `small` or `large`.
        placement: of both models.
        method: name of the pruner.
        measured: with the tasks; False prunes alone.
        dtype: of the weights.
        precision: of the trainer.
    """

    model: str
    placement: Placement
    method: str
    measured: bool = True
    dtype: DType = "bfloat16"
    precision: Any = "32-true"


@dataclass
class Run:
    """What a run of the trainer gave.

    Args:
        values: the value of each result by task, metric and model.
        folder: of the pruned model.
        peak: bytes on the device, beyond those that were there before; 0 on a CPU.
        needs: what the run was expected to take.
    """

    values: dict[tuple[str, str, str], float]
    folder: Path
    peak: int
    needs: Needs

    def weights(self) -> dict[str, Tensor]:
        """Read the pruned model."""
        found: dict[str, Tensor] = {}
        for file in self.folder.glob("model*.safetensors"):
            found |= load_file(file)
        return found


class Bench:
    """The models, and the runs that several checks look at.

    Args:
        device: `cuda` or `cpu`.
        folder: empty, on a disk.
    """

    def __init__(self, device: torch.device, folder: Path) -> None:
        self.device = device
        self.gpu = device.type == "cuda"
        self.scale = SCALES[device.type]
        self.tokenizer = byte_tokenizer()
        self._folder = folder
        self._runs: dict[Plan, Run] = {}
        for name, shape in self.scale.shapes.items():
            write_model(folder / name, shape, self.tokenizer)
        draw = random.Random(0)
        words = ["".join(draw.choices(string.ascii_lowercase, k=5)) for _ in range(20_000)]
        (folder / "text.jsonl").write_text(json.dumps({"text": " ".join(words)}) + "\n")

    def load(self, name: str, dtype: DType = "bfloat16") -> PreTrainedModel:
        """Read a model to the CPU."""
        return prunelit.load_pretrained(str(self._folder / name), dtype=dtype)[0]

    def ids(self, name: str, sequences: int, length: int) -> Tensor:
        """Draw token ids of a model."""
        vocabulary = self.scale.shapes[name][-1]
        generator = torch.Generator().manual_seed(0)
        return torch.randint(0, vocabulary, (sequences, length), generator=generator)

    def tasks(self) -> list[Task]:
        """Return a task of each kind of data."""
        length = self.scale.calibration[1] // 2
        path, limit = str(self._folder / "text.jsonl"), self.scale.items
        facts: dict[str, Any] = {"path": FACTS, "limit": limit, "batch_size": 16}
        return [
            Deviation(path, length=length, limit=limit),
            Perplexity(path, length=length, limit=limit),
            MultipleChoice(**facts),
            Retrieval(**facts),
            Generation(**facts, chat=False, max_new_tokens=self.scale.new_tokens),
        ]

    def run(self, plan: Plan) -> Run:
        """Prune and measure as `prunelit fit` does; a run that was made already is kept."""
        if plan not in self._runs:
            with contextlib.redirect_stdout(sys.stderr), deterministic(self.gpu):
                self._runs[plan] = self._run(plan)
        return self._runs[plan]

    def _run(self, plan: Plan) -> Run:
        sequences, length = self.scale.calibration
        path = str(self._folder / "text.jsonl")
        text = prunelit.CalibrationText(path, sequences=sequences, length=length)
        data = prunelit.PruneData(text, self.tasks() if plan.measured else None)
        module = prunelit.PairedLM(
            str(self._folder / plan.model), plan.dtype, placement=plan.placement, dense_cache=False
        )
        pruning = Pruning(METHODS[plan.method]())
        trainer = prunelit.PruneTrainer(
            accelerator="gpu" if self.gpu else "cpu",
            devices=1,
            callbacks=[pruning],
            default_root_dir=tempfile.mkdtemp(dir=self._folder),
            precision=plan.precision,
            max_epochs=0,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
        )
        before = 0
        if self.gpu:
            before = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
        trainer.fit(module, data)
        assert pruning.report is not None
        assert pruning.written is not None
        peak = 0
        if self.gpu:  # the allocator's peak begins anew with each block that is pruned
            blocks = [block["peak_bytes"] for block in pruning.report["blocks"]]
            peak = max(torch.cuda.max_memory_allocated(), *blocks) - before
        config = module.weights.load_config()
        needs = module.needs(config, [plan.placement], pruning.pruner)[plan.placement]
        values = {(one.task, one.metric, one.model): one.value for one in module.results}
        return Run(values, pruning.written, peak, needs)


def byte_tokenizer() -> PreTrainedTokenizerBase:
    """Build a tokenizer whose tokens are bytes."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<end>": 0} | {symbol: number for number, symbol in enumerate(alphabet, 1)}
    inner = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    ends = {"eos_token": "<end>", "pad_token": "<end>"}
    return PreTrainedTokenizerFast(tokenizer_object=inner, padding_side="left", **ends)


@contextlib.contextmanager
def deterministic(wanted: bool) -> Iterator[None]:
    """Take kernels with a fixed order of sums; PyTorch warns of operations that have none."""
    if not wanted:
        yield
        return
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


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
    if bench.gpu:  # models of this check must not count in the memory of the next one
        gc.collect()
        torch.cuda.empty_cache()


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
