"""Compare a model with the same one that several processes compute together, as one of them.

`runpy.run_path` runs this file with the names FOLDER, RANK, WORLD and CASES, and it writes
`FOLDER/RANK.json`.
"""

# pyright: reportUndefinedVariable=false

import copy
import json
import shutil
import signal
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from prunelit.core.placement import measure_sizes
from prunelit.models.architecture import decoder_blocks, final_hidden, unembed
from prunelit.models.dense_answers import DenseAnswers
from prunelit.models.fingerprint import fingerprint, stored_parts, weight_bytes
from prunelit.models.inference.embedding import embed, residual_after
from prunelit.models.inference.embedding_cache import EmbeddingCache
from prunelit.models.inference.generation import rollout
from prunelit.models.inference.token_tree import build_branch, build_tree
from prunelit.models.inference.tree_scoring import find_tree_problem, tree_scores
from prunelit.models.parallel import gather, parallelize
from prunelit.models.views import recast, view


def measure(model):
    """Logits, hidden states, scores and texts of a left-padded batch."""
    ids, mask = batch["input_ids"], batch["attention_mask"]
    hidden = final_hidden(model, ids, mask)
    floor = torch.float32 if model.dtype == torch.bfloat16 else torch.bfloat16
    other = final_hidden(recast(model, floor), ids, mask)
    requests = [([7, 8, 9, 10], [11, 12]), ([7, 8, 9, 10], [13]), ([7, 8, 14], [15, 16])]
    tree = build_tree([7, 8], [build_branch(requests, 2)], 0, 4096)
    real = mask.bool()
    return {
        "logits": model(input_ids=ids, attention_mask=mask).logits[real],
        "hidden": hidden[real],
        "unembedded": unembed(model, hidden)[real],
        "of_a_view": final_hidden(view(model), ids, mask)[real],
        "after_a_block": residual_after(model, ids, mask, 1)[real],
        "floor": other[real],
        "tree": tree_scores(model, tree),
        "problem": torch.tensor(find_tree_problem(model) is not None),
        "texts": rollout(model, tokenizer, ids, mask, max_new_tokens=8, stops=[]).tokens,
    }


def gap(found):
    """Distance of the hidden states to those of the model in the other dtype."""
    return (found["floor"].float() - found["hidden"].float()).abs().mean().item()


def error_of_a_copy(model):
    """Message of the error."""
    try:
        copy.deepcopy(model)
    except RuntimeError as error:
        return str(error)


def ask_caches(model):
    """Count how often this rank reads and computes, if the files of one rank are lost."""
    answers = DenseAnswers(model, folder / f"answers-{RANK}")  # noqa: F821
    cache = EmbeddingCache(folder / f"embeddings-{RANK}")  # noqa: F821
    compute, calls = partial(embed, model, **batch, pooling="mean"), []
    key = fingerprint(model).encode()[:16]
    found = []
    for _ in range(3):
        found.append(answers.ask(final_hidden, tuple(batch.values()), {}, {}))
        found.append(cache.fetch(key, 6, lambda: calls.append(1) or compute(), model))
        if RANK == 1 and len(found) == 2:  # noqa: F821
            for kept in (answers.folder, cache.folder):
                shutil.rmtree(kept)
    assert all(torch.equal(found[place], found[place % 2]) for place in range(6))
    return [*answers.counts[""], len(calls)]


def compare(kind, dtype):
    model = torch.load(folder / f"{kind}.pt", weights_only=False).to(getattr(torch, dtype))
    size, blocks = weight_bytes(model), decoder_blocks(model)[1]
    inside = sum(weight.nbytes for weight in blocks.parameters())
    alone, known = measure(model), fingerprint(model)
    parallelize(model, mesh, torch.device("cpu"))
    together = measure(model)
    parts = (part for weight in blocks.parameters() for part in stored_parts(weight))
    head = model.get_output_embeddings()
    return {
        "differences": {
            name: (together[name].double() - alone[name].double()).abs().max().item()
            for name in alone
            if name != "texts"
        },
        "texts_that_differ": (alone["texts"] != together["texts"]).any(1).sum().item(),
        "floors": [gap(alone), gap(together)],
        "fingerprints": [known, fingerprint(model)],
        "bytes": [size, weight_bytes(model)],
        "bytes_in_blocks": [inside, sum(part.untyped_storage().nbytes() for part in parts)],
        "kept": vars(measure_sizes(model)),
        "tied": head.weight is model.get_input_embeddings().weight,
        "gathered": gather(model, RANK),  # noqa: F821
        "copy": error_of_a_copy(model),
        "cached": ask_caches(model),
    }


folder = Path(FOLDER)  # noqa: F821
signal.alarm(60)
torch.set_num_threads(1)
dist.init_process_group(
    "gloo",
    init_method=f"file://{folder}/meeting",
    rank=RANK,  # noqa: F821
    world_size=WORLD,  # noqa: F821
)
mesh = init_device_mesh("cpu", (WORLD,))  # noqa: F821
batch, tokenizer = torch.load(folder / "batch.pt", weights_only=False)
with torch.inference_mode():
    found = [compare(*case) for case in CASES]  # noqa: F821
(folder / f"{RANK}.json").write_text(json.dumps(found))  # noqa: F821
dist.destroy_process_group()
