"""Gains: sizes, memory and speed of a pruned model, beside those of the dense one."""

from pathlib import Path
from typing import Any

import torch

from prunelit.core.weights import Weights
from prunelit.data.sources import is_hub_name, local_path
from prunelit.models.fingerprint import weight_bytes
from prunelit.models.inference.speed import compare_speed, measure_speed

_WEIGHTS = (".safetensors", ".gguf", ".bin", ".pt", ".pth")


def measure_gains(
    weights: Weights, report: dict[str, Any] | None, written: Path | None
) -> dict[str, Any]:
    """Measure both models as they are on their device; the pruned one is as it is written.

    Speed and memory are those of models on one device: they are measured with the placement
    `resident` only.

    Args:
        weights: of both models.
        report: of the pruning; None for a candidate.
        written: folder of the pruned model; None if it is in memory only.

    Returns:
        Plain data; sizes that are not known are None.
    """
    models = weights.pair.models()
    # Where blocks wait, the speed would be that of bringing them; other ranks are not here.
    found = measure_speed(models) if weights.resident else {}
    place = str(written) if written else None
    sources = {
        "dense": weights.source,
        "pruned": place if weights.candidate is None else weights.candidate.source,
    }
    device = weights.pair.pruned.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    threads = f", threads: {torch.get_num_threads()}" if device.type == "cpu" else ""
    return {
        "parameters": {
            key: sum(p.numel() for p in own.parameters()) for key, own in models.items()
        },
        "bytes": {key: weight_bytes(own) for key, own in models.items()},
        "file_bytes": {key: file_bytes(source) for key, source in sources.items()},
        "peak_bytes": {key: found[key]["peak_bytes"] if found else None for key in models},
        "speed": compare_speed(found) if found else {},
        "loads_in": None if report is None else _loader(report),
        "device": f"{name}{threads}",
        "dtype": str(weights.pair.pruned.dtype).removeprefix("torch."),
    }


def file_bytes(source: str | None) -> int | None:
    """Sum the files of weights and masks of a source; None if it is no folder and no file.

    Args:
        source: of a model; None is a model in memory only.
    """
    if source is None or is_hub_name(source):
        return None
    path = local_path(source)
    files = [path] if path.is_file() else path.iterdir()
    return sum(file.stat().st_size for file in files if file.suffix in _WEIGHTS)


def _loader(report: dict[str, Any]) -> str:
    """Say what can load the folder: no stock class has a block without one sublayer."""
    removed = report.get("removed") or {}
    if any(removed.get(kind) for kind in ("attention", "mixer", "mlp")):
        return (
            "transformers after `import prunelit`, as no stock class lacks one sublayer of a block"
        )
    if removed.get("fields"):
        return "transformers after `import prunelit`, as no stock class has blocks of other widths"
    return "stock transformers by from_pretrained"
