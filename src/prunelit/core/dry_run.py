"""Dry run: say what a run would take, without the weights of its model."""

import copy
import math
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.trainer.states import TrainerFn
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig, MixtralConfig, PreTrainedConfig

from prunelit.core.datamodule import PruneData
from prunelit.core.module import PairedLM
from prunelit.core.placement import Placement, Sizes, build_shapes, measure_mask, measure_sizes
from prunelit.data.batches import count_kept
from prunelit.data.sources import is_hub_name, local_path
from prunelit.files import readable
from prunelit.models.architecture import decoder_blocks, trunk
from prunelit.models.fewer_experts import is_mixture
from prunelit.models.model_pair import ModelPair
from prunelit.models.without_sublayers import is_uneven
from prunelit.pruners.base import Pruner
from prunelit.pruners.linear_pruner import LinearPruner
from prunelit.tasks.base import Task
from prunelit.tasks.embedding_task import EmbeddingTask
from prunelit.tasks.shared_pass import find_shared

# Times that all blocks of a model come, beside the tasks: to read, check, identify and mask it; to
# check, count, calibrate, prune, count, write and prove it; more if the method looks at the model
# first, and proves that parts can go.
_TO_READ, _TO_PRUNE, _TO_LOOK = 5, 15, 8
_PROBE = 5.0  # seconds of each of two measurements
_READ = 2**28  # bytes that are read to see how fast the disk is
_MOST_TOKENS = 2**12  # of one pass of the probe


@dataclass(frozen=True)
class Work:
    """Forward passes through the blocks of a model.

    Args:
        passes: number of passes through all blocks.
        tokens: of all passes together.
    """

    passes: float
    tokens: float


@dataclass(frozen=True)
class Pace:
    """Time of one block.

    Args:
        a_pass: seconds of a pass with one token.
        a_token: seconds of each further token.
    """

    a_pass: float
    a_token: float

    def seconds(self, work: Work, blocks: float) -> float:
        """Compute the seconds of some work in some blocks."""
        return blocks * (work.passes * self.a_pass + work.tokens * self.a_token)


def dry_run(
    trainer: Trainer,
    module: PairedLM,
    data: PruneData,
    pruner: Pruner | None = None,
    output: Path | None = None,
    *,
    fits: bool = True,
) -> dict[str, str]:
    """Say what a run takes: placement, memory, disk, sweeps over the weights, and time.

    It reads the configuration, the tokenizer, and the rows of the data. It runs one block of the
    model with arbitrary weights, and three batches of each task with tiny models. It reads no
    weights, and writes nothing.

    Args:
        trainer: of the run, before it starts other processes.
        module: of the run.
        data: of the run.
        pruner: the method; None if the run does not prune.
        output: folder of the pruned model; None if the run writes none.
        fits: True for `fit`, which prunes and may train; other runs only measure.

    Returns:
        What is said of each topic.

    Raises:
        InputError: as the run would raise it before it reads weights.
    """
    trainer.datamodule = data  # type: ignore[attr-defined]
    trainer.state.fn = TrainerFn.FITTING if fits else TrainerFn.VALIDATING
    module.trainer, data.trainer = trainer, trainer
    if fits:
        module.check_prunes()
    data.prepare(module.tokenizer, module.weights.other_tokenizer)
    module.check_run(pruner)
    config, weights = module.weights.load_config(), module.weights
    dtype = weights.origin.dtype or torch.float32
    shapes = build_shapes(config, dtype)
    steps = [] if pruner is None else pruner.steps
    replaying = sum(step.replays for step in steps)
    passes = measuring = 0.0  # over all of the text
    looking = 0
    compared = Work(0, 0)
    text = _calibration(data, trainer, 1)
    for step in steps:
        step.check(shapes)
        if data.calibration is not None:
            count_kept(data.calibration.sequences, step.held_out)
        times, variants = step.measured(shapes)
        share = step.held_out or 1.0  # of the text that is compared
        measuring += share * times
        passes += share * (times + variants // 2)
        outputs = times + variants
        tokens: float = share * text.tokens
        if step.tokens is not None:
            tokens = min(tokens, math.ceil(step.tokens / trainer.world_size))
        compared = Work(
            compared.passes + outputs * share * text.passes, compared.tokens + outputs * tokens
        )
        looks = type(step).look is not Pruner.look
        if isinstance(step, LinearPruner):  # others may ask the weights for their values
            looks = any(step.look(shapes))
        looking += looks
        passes += (1 - step.held_out) * (looks + (0 if step.replays else 2))
    sizes, blocks = measure_sizes(shapes), decoder_blocks(shapes)[1]
    pair = _stand_ins(module, is_mixture(shapes))
    tasks = dict(_count_tasks(module, pair, data, trainer.world_size // module.together))
    to_prune = _TO_PRUNE * len(steps) + _TO_LOOK * looking + math.ceil(text.passes * measuring)
    models = 1 + weights.reference
    sweeps = {"to read": _TO_READ * models, "to prune": to_prune}
    sweeps |= {name: task.sweeps for name, task in tasks.items()}
    pace = _measure_block(config, dtype, trainer.strategy.root_device)
    head = sizes.skeleton / (sizes.blocks / len(blocks))  # as blocks of the same size
    pruning = pace.seconds(_calibration(data, trainer, passes), len(blocks))
    pruning += pace.seconds(_calibration(data, trainer, 2 * replaying, alone=True), len(blocks))
    pruning += pace.seconds(_replays(data, steps), len(blocks))
    seconds = {"to prune": pruning + pace.seconds(compared, head)}
    seconds |= {name: pace.seconds(task.work, len(blocks) + head) for name, task in tasks.items()}
    if pruner is None:
        del seconds["to prune"], sweeps["to prune"]
    parameters = sum(weight.numel() for weight in shapes.parameters())
    return {
        "model": f"{module.source}: {parameters / 1e9:.3g} billion parameters in "
        f"{str(dtype).removeprefix('torch.')}, {readable(sizes.model)}; {models} of them",
        **_tell_memory(trainer, module, config, pruner, sizes),
        "disk": _tell_disk(sizes, weights.placement, output, dtype),
        "sweeps": _tell_sweeps(weights.placement, sweeps),
        "time": _tell_time(seconds),
        **_tell_reading(module.source, weights.placement, sizes, sum(sweeps.values())),
    }


def _tell_memory(
    trainer: Trainer,
    module: PairedLM,
    config: PreTrainedConfig,
    pruner: Pruner | None,
    sizes: Sizes,
) -> dict[str, str]:
    """Say what a device needs, with the placement of the run and with the others."""
    chosen = module.weights.placement
    others: tuple[Placement, ...] = ("resident", "streamed")
    if trainer.world_size > 1:
        others += ("sharded",)
    needs = module.needs(config, dict.fromkeys((chosen, *others)), pruner)
    each = "" if trainer.world_size == 1 else f", on each of {trainer.world_size} processes"
    flight = "" if module.in_flight is None else f"; {module.in_flight} batches share a block"
    masked = ""
    if chosen == "sharded" and module.weights.reference:
        mask = measure_mask(sizes, module.weights.origin.dtype or torch.float32)
        # A mask is applied to a copy of the share, of the block that comes next too.
        less = sizes.skeleton + (sizes.blocks - mask - 2 * sizes.block) // trainer.world_size
        masked = f"; up to {readable(less)} less if pruning only removes weights" * (less > 0)
    return {
        "placement": f"{chosen}{flight}",
        "memory": f"{needs[chosen]}{each}{masked}",
        **{f"  {name}": str(own) for name, own in needs.items() if name != chosen},
    }


def _tell_disk(sizes: Sizes, placement: Placement, output: Path | None, dtype: torch.dtype) -> str:
    """Say what the files of a run take, and what is free."""
    needs = {} if output is None else {str(output): sizes.model}
    if placement == "streamed" and output is not None:
        needs[f"files without a name in {tempfile.gettempdir()}"] = sizes.blocks
    if not needs:
        return "results only"
    places = [output or Path(), Path(tempfile.gettempdir())][: len(needs)]
    free = [readable(shutil.disk_usage(_existing(place)).free) for place in places]
    told = "; ".join(
        f"at most {readable(size)} for {name} ({own} free)"
        for (name, size), own in zip(needs.items(), free, strict=True)
    )
    if len(needs) == 1:
        return told
    mask = readable(measure_mask(sizes, dtype))
    return f"{told}, or {mask} if pruning only removes weights in their stored dtype"


def _existing(path: Path) -> Path:
    return next(one for one in (path, *path.absolute().parents) if one.exists())


def _tell_sweeps(placement: Placement, sweeps: dict[str, int]) -> str:
    """Say how often the blocks of a model come."""
    if placement in ("resident", "parallel"):
        return "none: the blocks stay on the device"
    named = ", ".join(f"{name} {count}" for name, count in sweeps.items())
    return f"at most {sum(sweeps.values())} times all blocks of one model ({named})"


def _tell_time(seconds: dict[str, float]) -> str:
    """Say how long the forward passes take."""
    named = ", ".join(f"{name} {_duration(own)}" for name, own in seconds.items())
    total = _duration(sum(seconds.values()))
    return f"about {total} of forward passes, if every text is written to its end ({named})"


def _tell_reading(source: str, placement: Placement, sizes: Sizes, sweeps: int) -> dict[str, str]:
    """Say how long blocks take to come from the disk; only its files can tell."""
    if placement != "streamed":
        return {}
    if is_hub_name(source):
        return {"reading": "not known before the files are here"}
    speed = _measure_disk(local_path(source))
    total = sweeps * sizes.blocks
    return {
        "reading": f"at most {readable(total)}, {_duration(total / speed)} at {speed / 1e9:.2g} "
        "GB/s from this disk; less as far as memory keeps the files"
    }


def _duration(seconds: float) -> str:
    if seconds < 99.5:
        return f"{seconds:.2g} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def _calibration(data: PruneData, trainer: Trainer, passes: float, *, alone: bool = False) -> Work:
    """Count the passes over the calibration text of one rank; `alone`, a sequence at a time."""
    if data.calibration is None:
        return Work(0, 0)
    own = math.ceil(data.calibration.sequences / trainer.world_size)
    batches = own if alone else math.ceil(own / data.calibration.batch_size)
    return Work(passes * batches, passes * own * data.calibration.length)


def _replays(data: PruneData, steps: Sequence[Pruner]) -> Work:
    """Count the passes that methods make themselves, one sequence at a time."""
    if data.calibration is None:
        return Work(0, 0)
    runs = sum(step.replayed(data.calibration.sequences) for step in steps)
    return Work(runs, runs * data.calibration.length)


@dataclass(frozen=True)
class _Counted:
    """Work of a task on one rank, and the sweeps that bring the blocks of both models for it."""

    work: Work
    sweeps: int


def _count_tasks(
    module: PairedLM, pair: ModelPair, data: PruneData, ranks: int
) -> Iterator[tuple[str, _Counted]]:
    """Count the passes of each task by its first, middle and last batch on a rank.

    Some tasks have the longest texts first.
    """
    shared = find_shared(data.tasks.values())
    for name, task in data.tasks.items():
        batches = task.batches(data.sizes[name], 0, ranks)
        count = len(batches)
        flights = math.ceil(count / (module.in_flight or count))
        chosen = {0, count // 2, count - 1}
        seen: list[tuple[int, int]] = []
        for place, batch in enumerate(batches):
            if place in chosen:
                with _counting(pair) as counts:
                    _measure(shared.get(name, task), name, pair, batch)
                seen.append(counts())
        passes, tokens = (statistics.mean(own) for own in zip(*seen, strict=True))
        work = Work(round(passes * count), round(tokens * count))
        yield name, _Counted(work, flights * max(passes for passes, _ in seen))


def _measure(measurer: Any, name: str, pair: ModelPair, batch: dict[str, Any]) -> None:
    with torch.inference_mode():
        if isinstance(measurer, EmbeddingTask):  # it would keep the vectors on disk
            for model in pair.models().values():
                trunk(model)(input_ids=batch["input_ids"], use_cache=False)
        elif isinstance(measurer, Task):
            measurer.check(pair.dense or pair.pruned)
            measurer.measure(pair, batch)
        else:
            measurer.measure(name, pair, batch)


def _stand_ins(module: PairedLM, mixture: bool) -> ModelPair:
    """Build two tiny models with the vocabulary of the real one, of a kind that tasks can run."""
    text = module.weights.load_config().get_text_config(decoder=True)
    config = (MixtralConfig if mixture else LlamaConfig)(
        vocab_size=text.vocab_size,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=getattr(text, "max_position_embeddings", None) or 2**20,
        eos_token_id=None,  # so that texts end at the last step
        bos_token_id=None,
        tie_word_embeddings=True,
    )
    pruned = AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    dense = copy.deepcopy(pruned) if module.weights.reference else None
    return ModelPair(pruned, dense, module.tokenizer, (), module.weights.other_tokenizer)


@contextmanager
def _counting(pair: ModelPair) -> Iterator[Callable[[], tuple[int, int]]]:
    """Count passes and tokens of both models, within the context."""
    tokens: list[int] = []
    handles = [
        decoder_blocks(model)[1][0].register_forward_hook(
            lambda block, inputs, output: tokens.append(inputs[0].shape[:-1].numel())
        )
        for model in pair.models().values()
    ]
    try:
        yield lambda: (len(tokens), sum(tokens))
    finally:
        for handle in handles:
            handle.remove()


def _measure_block(config: PreTrainedConfig, dtype: torch.dtype, device: torch.device) -> Pace:
    """Time one block of the real shape with few and with many tokens."""
    model = _one_block(config, dtype, device)
    text = config.get_text_config(decoder=True)
    most = min(_MOST_TOKENS, getattr(text, "max_position_embeddings", None) or _MOST_TOKENS)
    tokens, first = 1, _time_pass(model, 1)
    last = first
    while last < _PROBE / 4 and 4 * tokens <= most:
        tokens *= 4
        last = _time_pass(model, tokens)
    return Pace(first, max(0.0, last - first) / max(1, tokens - 1))


def _one_block(config: PreTrainedConfig, dtype: torch.dtype, device: torch.device) -> nn.Module:
    """Build the model with its first block alone, with arbitrary weights.

    Of a model whose blocks differ, it is a block without any part taken out.
    """
    config = copy.deepcopy(config)
    if is_uneven(config):  # what differs is named by blocks that are not built
        vars(config).update(_absent={}, _fields={})
    text = config.get_text_config(decoder=True)
    count = text.num_hidden_layers
    for name, value in vars(text).items():  # a kind for each block, in some families
        if isinstance(value, list) and len(value) == count:
            setattr(text, name, value[:1])
    text.num_hidden_layers = 1
    shapes = build_shapes(config, dtype)
    model = trunk(shapes).to_empty(device=device)
    with torch.no_grad():
        for values in (*decoder_blocks(shapes)[1].parameters(), *model.buffers()):
            values.fill_(0.01)
    return model.eval()


@torch.inference_mode()
def _time_pass(model: nn.Module, tokens: int) -> float:
    """Return the median seconds of a pass, of at most three."""
    ids = torch.zeros(1, tokens, dtype=torch.long, device=next(model.parameters()).device)
    times: list[float] = []
    while len(times) < 4 and sum(times) < _PROBE:
        start = time.perf_counter()
        model(input_ids=ids, use_cache=False)
        if ids.is_cuda:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    kept = sorted(times[1:] or times)  # the first one warms up
    return kept[len(kept) // 2]


def _measure_disk(source: Path) -> float:
    """Return the bytes a second of reading a part of the largest file of a model."""
    files = [source] if source.is_file() else [path for path in source.iterdir() if path.is_file()]
    path = max(files, key=lambda file: file.stat().st_size)
    with path.open("rb", buffering=0) as file:
        size = min(_READ, path.stat().st_size)
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, size, os.POSIX_FADV_DONTNEED)
        start, left = time.perf_counter(), size
        while left and (part := file.read(min(left, 2**24))):
            left -= len(part)
        return size / (time.perf_counter() - start)
