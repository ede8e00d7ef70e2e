import gc
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from prunelit import prune
from prunelit.pruners import Magnitude, SparseGPT, SublayerDrop, Wanda
from prunelit.sparsity import Unstructured


@pytest.mark.parametrize(
    "build",
    [
        lambda: Wanda(Unstructured(0.5)),
        lambda: SparseGPT(Unstructured(0.5)),
        lambda: SublayerDrop(1),
        lambda: Magnitude(Unstructured(0.5, within="model")),
    ],
)
def test_weights_are_those_of_a_run_in_memory(
    build: Callable[[], object],
    family: str,
    make_model: Callable[..., PreTrainedModel],
    input_ids: Tensor,
) -> None:
    one, other = make_model(family).bfloat16(), make_model(family).bfloat16()
    parameters = dict(other.named_parameters())
    prune(one, build(), input_ids)  # type: ignore[arg-type]
    prune(other, build(), input_ids, offload_to=torch.device("cpu"))  # type: ignore[arg-type]
    gc.collect()
    for name, weight in one.named_parameters():
        assert torch.equal(weight, other.get_parameter(name)), name
        assert other.get_parameter(name) is parameters[name]
    assert torch.equal(one(input_ids=input_ids).logits, other(input_ids=input_ids).logits)


# Prunes a model of 12 blocks of 25 MB each, and prints how much its resident set grew, in MB.
SCRIPT = """
import os, torch
from transformers import AutoModelForCausalLM, LlamaConfig
from prunelit import prune
from prunelit.pruners import Wanda
from prunelit.sparsity import Unstructured
torch.set_num_threads(1)
def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
config = LlamaConfig(vocab_size=300, hidden_size=512, intermediate_size=3300,
                     num_hidden_layers=12, num_attention_heads=4)
model = AutoModelForCausalLM.from_config(config).eval()
before = resident()
seen = []
class Looking(Wanda):
    def prune_block(self, block, probes):
        super().prune_block(block, probes)
        seen.append(resident())
for offload in (torch.device("cpu"), None):
    if os.fork() == 0:  # from the same start
        ids = torch.ones(2, 8, dtype=torch.long)
        prune(model, Looking(Unstructured(0.5)), ids, offload_to=offload)
        print(max(seen[2:]) - before, flush=True)
        os._exit(0)
    assert os.wait()[1] == 0
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_blocks_that_wait_are_not_resident() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    waiting, resident = map(float, done.stdout.split())
    # 12 blocks of 24.5 MB are 294 MB.
    assert waiting < resident - 200
