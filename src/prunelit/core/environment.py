"""Describe the machine and the libraries of a run, as far as its results depend on them."""

from importlib.metadata import version
from typing import Any

import torch
import transformers
from lightning.pytorch import Trainer


def describe_environment(trainer: Trainer) -> dict[str, Any]:
    """Return device, precision and versions as plain data.

    Args:
        trainer: of the run.
    """
    return {
        "device": trainer.strategy.root_device.type,
        "precision": trainer.precision,
        "matmul_precision": torch.get_float32_matmul_precision(),
        "versions": {
            "prunelit": version("prunelit"),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    }
