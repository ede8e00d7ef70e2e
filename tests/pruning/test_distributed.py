"""Pruning on two ranks against one: the same masks."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from prunelit import prune, pruners
from prunelit.allocation import OWL
from prunelit.sparsity import Unstructured

# Methods that observe in different ways, by the expression that builds them.
METHODS = [
    "Wanda(Unstructured(0.5))",
    "SparseGPT(Unstructured(0.4), expert_tokens=30)",  # of a mixture, see below
    "Wanda(Unstructured(0.5), allocation=OWL(2.0))",
    "SparseGPT(Unstructured(0.5))",
    "OBSUpdate(RIA(Unstructured(0.5)))",
    "ADMM(Unstructured(0.5))",
    "SparseFW(Unstructured(0.5))",
    "DSnoT(Unstructured(0.5))",
    "WandaPlus(Unstructured(0.5), repeats=1, samples=3, learning_rate=1e-3, expert_tokens=30)",
    "WandaPlus(Unstructured(0.5), repeats=2, samples=4, learning_rate=1e-3)",
    "Random(Unstructured(0.5))",
    "Neuron(0.5)",
    "Heads(0.5)",
    "Hidden(0.25)",
    "SublayerDrop(2, 'both', rescore=True)",
    "BlockDrop(2, consecutive=True)",
]
NAMES = {**vars(pruners), "Unstructured": Unstructured, "OWL": OWL}

# Run by every rank: prunes the model of `folder` with each number of batches, in turn.
RANK = """
import torch, torch.distributed as dist
from transformers import AutoModelForCausalLM
from prunelit import prune
from prunelit.allocation import OWL
from prunelit.pruners import *
from prunelit.sparsity import Unstructured

torch.set_num_threads(1)
store = f"file://{FOLDER}/store"
dist.init_process_group("gloo", init_method=store, rank=RANK, world_size=WORLD)
for place, method in enumerate(METHODS):
    for count in (1, 5):
        name = "mixture" if "expert_tokens" in method else "dense"
        model = AutoModelForCausalLM.from_pretrained(f"{FOLDER}/{name}").eval()
        batches = torch.load(f"{FOLDER}/batches.pt")[:count]
        passes = []
        model.model.layers[1].self_attn.register_forward_hook(lambda *_: passes.append(1))
        report = prune(model, eval(method), batches)
        state = {"weights": model.state_dict(), "recipe": report.recipe, "zeros": report.zeros}
        state["experts"] = report.experts
        state["passes"] = len(passes)
        torch.save(state, f"{FOLDER}/{place}-{count}-{RANK}.pt")
dist.destroy_process_group()
"""


@pytest.mark.distributed
def test_two_ranks_make_the_masks_of_one(
    folder: Path,
    make_model: Callable[..., PreTrainedModel],
    input_ids: Tensor,
    padded: dict[str, Tensor],
    run_ranks: Callable[..., None],
) -> None:
    root = folder.parent
    # Five uneven batches for two ranks, then a single one, of which rank 1 gets nothing.
    keys = list(padded)
    batches = [{key: padded[key][i : i + 2] for key in keys} for i in (0, 2, 4)]
    batches += [{"input_ids": input_ids[:5, :6]}, {"input_ids": input_ids[:1, 3:5]}]
    torch.save(batches, root / "batches.pt")
    (root / "rank.py").write_text(RANK)
    make_model("gpt_oss").save_pretrained(root / "mixture")
    run_ranks(root / "rank.py", 2, FOLDER=str(root), METHODS=METHODS)
    for place, method in enumerate(METHODS):
        for count in (1, 5):
            model = make_model("gpt_oss" if "expert_tokens" in method else "llama")
            report = prune(model, eval(method, NAMES), batches[:count])
            for rank in range(2):
                found = torch.load(root / f"{place}-{count}-{rank}.pt")
                if place == 0:
                    # Two passes over its own batches, two over one sequence to check the replay.
                    assert found["passes"] == 2 * len(range(rank, count, 2)) + 2
                assert found["recipe"] == report.recipe
                assert found["zeros"] == report.zeros
                assert found["experts"] == report.experts
                for name, tensor in model.state_dict().items():
                    assert torch.equal(found["weights"][name], tensor), (method, count, rank, name)
