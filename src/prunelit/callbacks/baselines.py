"""Baselines: what costs less work than pruning, measured beside the pruned model.

A baseline is the dense model rounded to 8 or 4 bit, or another model by its source. It is measured
with the tasks, rows and dense answers of the run, and has the files of a run in
`baselines/<name>/` of the run's folder. `baseline.json` says that it is finished.
"""

import json
import math
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities.seed import reset_seed
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import LambdaCallback, ProgressBar
from lightning.pytorch.utilities import rank_zero_info
from transformers import PreTrainedModel

from prunelit.callbacks.gains import file_bytes
from prunelit.callbacks.results import BITS, Bits, Results
from prunelit.callbacks.rounds import require_prunelit
from prunelit.callbacks.session import sweep_folder
from prunelit.core.candidate import check_compared, find_refused
from prunelit.core.datamodule import PruneData
from prunelit.core.measurement import measurement_key, measurement_settings
from prunelit.core.module import PairedLM
from prunelit.core.weights import Weights
from prunelit.errors import InputError
from prunelit.files import replace_folder, write_text
from prunelit.models.architecture import decoder_blocks, oriented_weight
from prunelit.models.fingerprint import weight_bytes
from prunelit.models.streaming import place_model
from prunelit.pruners import Quantize
from prunelit.pruning.prune import prune
from prunelit.recipe import describe
from prunelit.report.page.record_file import digest_results, is_recorded
from prunelit.report.page.runs import BASELINE, BASELINES


@dataclass
class _Baseline:
    """A model that is measured beside the pruned one.

    Args:
        name: of its folder.
        bits: to which the dense model is rounded; None for another model.
        weights: of it and of the dense model.
        left_out: names of the tasks that cannot compare it, by the reason in words.
    """

    name: str
    bits: Bits | None
    weights: Weights
    left_out: Mapping[str, Sequence[str]]


def find_results(trainer: Trainer) -> Results | None:
    """Return the callback that asks for baselines; None if none does."""
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    found = (c for c in callbacks if isinstance(c, Results) and c.baselines)
    return next(found, None)


def refuse_baselines(trainer: Trainer) -> None:
    """Refuse baselines in a sweep or a search, whose variants are compared already.

    Raises:
        InputError: naming the option.
    """
    if find_results(trainer) is not None:
        raise InputError(
            "Expected no `baselines` in a sweep or a search: add `Quantize` as a variant, or "
            "measure the baselines with `prunelit validate`."
        )


def check_baselines(trainer: Trainer, module: LightningModule, data: PruneData | None) -> None:
    """Refuse baselines that cannot be measured, before the heavy work; reads no weights.

    Raises:
        InputError: naming the baseline.
    """
    if (results := find_results(trainer)) is None:
        return
    if not isinstance(module, PairedLM) or data is None or not data.tasks:
        raise InputError(f"Expected tasks to measure the baselines {results.baselines} on.")
    if not module.weights.reference:
        raise InputError(
            f"Expected `model.reference` true with the baselines {results.baselines}: they are "
            "compared with the dense model."
        )
    found = _find_baselines(results, module, data)
    # A mistake in the data is one of the run, and not of a baseline.
    data.prepare(module.tokenizer, module.weights.other_tokenizer)
    for baseline in found:
        for reason, names in baseline.left_out.items():
            rank_zero_info(f"Not measured for the baseline {baseline.name!r}: {names} {reason}.")
        try:
            with _without(data, baseline):
                if not data.tasks:
                    raise InputError("No task can compare it with the dense model.")
                data.prepare(module.tokenizer, baseline.weights.other_tokenizer)
                if baseline.bits is not None:
                    module.check_prunes()  # rounding changes weights too
                else:
                    check_compared(data, baseline.weights)
                    if module.placement == "parallel":
                        baseline.weights.check_parallel(1)  # its heads, when devices are known
        except InputError as error:
            raise _name(baseline.name, error) from error


def measure_baselines(trainer: Trainer, module: LightningModule, data: PruneData | None) -> None:
    """Measure the baselines that are asked for; every rank must call it, after the run.

    Those that an earlier run measured are used again if nothing that they depend on has changed.

    Raises:
        InputError: naming the baseline. The earlier ones are then on the page of the run.
    """
    if (results := find_results(trainer)) is None:
        return
    assert isinstance(module, PairedLM)
    assert data is not None
    found = _find_baselines(results, module, data)
    root = sweep_folder(trainer)
    failed: InputError | None = None
    for number, baseline in enumerate(found):
        rank_zero_info(f"Baseline {number + 1} of {len(found)}: {baseline.name}.")
        try:
            with _one_more(trainer, module, data, baseline):
                _measure(trainer, module, data, results, baseline, root)
        except InputError as error:
            failed = _name(baseline.name, error)
            break
    if trainer.is_global_zero:
        results.close()
    if failed is not None:
        raise failed


def _find_baselines(results: Results, module: PairedLM, data: PruneData) -> list[_Baseline]:
    """Find the baselines, each with a folder name of its own."""
    found: dict[str, _Baseline] = {}
    for text in results.baselines:
        if text in BITS:
            found[text] = _Baseline(text, BITS[text], module.weights.beside(None), {})
            continue
        weights = module.weights.beside(text)
        try:
            left_out = find_refused(data, weights)
        except InputError as error:
            raise _name(text, error) from error
        first = name = re.sub(r"[^\w.+=-]", "_", Path(text).name).lstrip(".")[-80:] or "model"
        number = 1
        while name in found or name in BITS:
            number += 1
            name = f"{first}-{number}"
        found[name] = _Baseline(name, None, weights, left_out)
    return list(found.values())


def _name(text: str, error: InputError) -> InputError:
    return InputError(f"The baseline {text!r} cannot be measured. {error}")


@contextmanager
def _without(data: PruneData, baseline: _Baseline) -> Iterator[None]:
    """Leave out the tasks that cannot compare a baseline, and the text of calibration."""
    tasks, calibration = data.tasks, data.calibration
    left_out = [name for names in baseline.left_out.values() for name in names]
    data.tasks = {name: task for name, task in tasks.items() if name not in left_out}
    data.calibration = None
    try:
        yield
    finally:
        data.tasks, data.calibration = tasks, calibration


@contextmanager
def _one_more(
    trainer: Trainer, module: PairedLM, data: PruneData, baseline: _Baseline
) -> Iterator[None]:
    """Put a baseline in the place of the pruned model; all is as before at the end."""
    callbacks, loggers = trainer.callbacks, trainer.loggers  # type: ignore[attr-defined]
    weights, model, evaluation = module.weights, module.model, module.evaluation
    epochs, steps = trainer.max_epochs, trainer.max_steps
    loop = trainer.fit_loop
    try:
        trainer.loggers = []
        loop.max_epochs, loop.epoch_loop.max_steps = 0, -1  # a baseline is not trained
        module.weights, module.model = baseline.weights, None
        with _without(data, baseline):
            yield
    finally:
        trainer.callbacks, trainer.loggers = callbacks, loggers  # type: ignore[attr-defined]
        loop.max_epochs, loop.epoch_loop.max_steps = epochs, steps
        module.weights, module.model, module.evaluation = weights, model, evaluation
        baseline.weights.discard_pruned()  # frees its memory


def _measure(
    trainer: Trainer,
    module: PairedLM,
    data: PruneData,
    results: Results,
    baseline: _Baseline,
    root: Path,
) -> None:
    folder = results.into / BASELINES / baseline.name
    speed = results.speed and baseline.bits is None
    key = _find_key(trainer, module, data, baseline, speed)
    known = trainer.is_global_zero and _take(folder, key, root)
    if trainer.strategy.broadcast(known):
        rank_zero_info("It is measured already: nothing that its results depend on has changed.")
        return
    own = Results(speed=speed)
    own.margins, own.folder, own.silent, own.beside = results.margins, folder, True, True
    rounding = None if baseline.bits is None else _Rounding(Quantize(baseline.bits))
    first = [] if rounding is None else [LambdaCallback(setup=rounding.setup)]
    bars = [c for c in trainer.callbacks if isinstance(c, ProgressBar)]  # type: ignore[attr-defined]
    trainer.callbacks = [*first, *bars, own]  # type: ignore[attr-defined]
    reset_seed()  # so that no baseline depends on those before it
    trainer.validate(module, datamodule=data, verbose=False)
    if trainer.is_global_zero:
        candidate = baseline.weights.candidate
        record = {
            "name": baseline.name,
            "source": None if candidate is None else candidate.source,
            "bits": baseline.bits,
            "left_out": baseline.left_out,
            **({} if rounding is None else rounding.sizes),
            "key": key,
            "results": digest_results(folder),
        }
        write_text(folder / BASELINE, json.dumps(record, indent=2) + "\n")
        own.close()  # the page says now that it is a baseline


class _Rounding:
    """Round the dense model at the beginning of a run.

    Args:
        pruner: rounds each weight of the linear maps in the blocks.
    """

    def __init__(self, pruner: Quantize) -> None:
        self.sizes: dict[str, Any] = {}
        self._pruner = pruner

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check the run and round the weights, in memory."""
        _, module = require_prunelit(trainer, pl_module)
        module.check_run()
        module.load()
        assert module.model is not None
        place_model(module.model, trainer.strategy.root_device)
        prune(module.model, self._pruner)
        number, size = sum(p.numel() for p in module.model.parameters()), weight_bytes(module.model)
        stored = min(size, _stored_bytes(module.weights, number) or size)
        self.sizes = {
            "parameters": {"dense": number, "pruned": number},
            "bytes": {"dense": size, "pruned": size},  # floats, since rounding is simulated
            "file_bytes": {
                "dense": stored,
                "pruned": packed_bytes(module.model, self._pruner, stored / size),
            },
        }


def _stored_bytes(weights: Weights, number: int) -> int | None:
    """Return the bytes of the stored dense model; None if its files do not tell."""
    dtype = weights.origin.text_config.dtype
    known = number * dtype.itemsize if isinstance(dtype, torch.dtype) else None
    return file_bytes(weights.source) or known


def packed_bytes(model: PreTrainedModel, pruner: Quantize, stored: float) -> int:
    """Count the bytes of the files of a model whose rounded weights are packed.

    Each group has a scale and an offset of 16 bits. Other weights have the bytes of the dense
    files.

    Args:
        model: whose weights are rounded.
        pruner: that rounds them.
        stored: bytes of the dense files, as a share of those in memory.
    """
    others, packed = weight_bytes(model), 0
    for block in decoder_blocks(model)[1]:
        for linear in pruner.targets(block).values():
            weight = oriented_weight(linear)
            rows, columns = weight.shape
            groups = rows * math.ceil(columns / pruner.group)
            packed += math.ceil(weight.numel() * pruner.bits / 8) + 4 * groups
            others -= weight.nbytes
    return packed + round(others * stored)


def _find_key(
    trainer: Trainer, module: PairedLM, data: PruneData, baseline: _Baseline, speed: bool
) -> str | None:
    """Identify all that the results depend on; None if a task does not tell its options."""
    candidate = baseline.weights.candidate
    own: dict[str, Any] = {}
    if baseline.bits is not None:
        own["pruner"] = describe(Quantize(baseline.bits))
    if candidate is not None:
        own["candidate"] = [candidate.version, candidate.all_weights]
    try:
        settings = measurement_settings(trainer, module, data) | {"speed": speed}
    except InputError as error:
        rank_zero_info(f"A later run measures it again, as results cannot be compared. {error}")
        return None
    return measurement_key({"model": module.recipe(), **own}, settings)


def _take(folder: Path, key: str | None, root: Path) -> bool:
    """Find what an earlier run measured, in this folder or in that of another run beside it."""
    if key is None:
        return False
    if is_recorded(folder / BASELINE, key):
        return True
    beside = folder.parents[1].glob(f"*/{BASELINES}/{folder.name}")  # in `earlier_N`
    for place in (*beside, *sorted(root.glob(f"*/{BASELINES}/{folder.name}"))):
        if not folder.exists() and is_recorded(place / BASELINE, key):
            with replace_folder(folder) as partial:
                shutil.copytree(place, partial, dirs_exist_ok=True)
            return True
    return False
