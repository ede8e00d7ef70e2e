import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

CODE = """\
import sys, torch
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True)
with torch.no_grad():
    logits = model.eval()(input_ids=torch.tensor([[1, 2, 3]]), use_cache=False).logits
print("prunelit" in sys.modules, sum("Absent" in str(type(own)) for own in model.modules()))
torch.save(logits, sys.argv[2])
"""


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[None]:
    """A group of this one process."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture
def logits_without_prunelit(tmp_path: Path) -> Callable[[Path], tuple[Tensor, int]]:
    """`logits_without_prunelit(folder)` loads a folder with its own code by transformers alone.

    It gives the logits of the tokens 1, 2 and 3, and the number of absent modules.
    """

    def load(folder: Path) -> tuple[Tensor, int]:
        done = subprocess.run(
            [sys.executable, "-c", CODE, str(folder), str(tmp_path / "logits.pt")],
            check=True,
            capture_output=True,
            text=True,
            env={**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules")},
        )
        imported, absent = done.stdout.split()
        assert imported == "False"
        return torch.load(tmp_path / "logits.pt"), int(absent)

    return load
