"""Prune models, as one of several processes of which each keeps its share of the blocks.

`runpy.run_path` runs this file with the names FOLDER, RANK, WORLD and CASES, and it writes
`FOLDER/WORLD-RANK.json`. If WORLD is 0, there is one process that keeps whole models.
"""

import hashlib
import json
import signal
from pathlib import Path

import torch
import torch.distributed as dist
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from prunelit import prune, pruners, save_pretrained
from prunelit.allocation import OWL, AlphaPruning, LinearDepth
from prunelit.models.architecture import decoder_blocks
from prunelit.models.fingerprint import content_of, fingerprint
from prunelit.models.shards import Shards, shard_blocks
from prunelit.models.stores import each_weight, store_of
from prunelit.pruning.masks import Masks
from prunelit.pruning.report import find_missing
from prunelit.sparsity import SemiStructured, Unstructured

NAMES = {**vars(pruners), "LinearDepth": LinearDepth, "OWL": OWL, "AlphaPruning": AlphaPruning}
NAMES |= {"SemiStructured": SemiStructured, "Unstructured": Unstructured}


def digest(tensor):
    return hashlib.sha256(content_of(tensor)).hexdigest()


def held(model):
    """Bytes of parameters that this process has."""
    stores = {store_of(block) for block in decoder_blocks(model)[1]} - {None}
    assert all(isinstance(store, Shards) for store in stores)
    here = sum(p.nbytes for p in model.parameters() if not p.is_meta)
    return here + sum(store.nbytes for store in stores)


def prune_case(kind, dtype, method, fractions):
    model = torch.load(folder / f"{kind}.pt", weights_only=False).to(getattr(torch, dtype))
    found = {"dense_bytes": sum(p.nbytes for p in model.parameters())}
    found["block_bytes"] = sum(p.nbytes for p in decoder_blocks(model)[1].parameters())
    if WORLD:  # noqa: F821
        shard_blocks(model)
    found["held_before"] = held(model)
    shrinks, masks = eval(method, NAMES).shrinks, Masks()
    before, reports = find_missing(model, shrinks=shrinks), []
    for fraction in fractions:
        pruner, last = eval(method, NAMES), fraction == fractions[-1]
        pruner = pruner if fraction == 1 else pruner.scale(fraction)
        report = prune(model, pruner, batches, progress=False, shrink=last)
        report.check(model)
        reports += [report.as_dict(), report.recount(model, before).as_dict()]
        masks.merge(report.masks)
    if not shrinks:
        masks.apply_(model)
        masks.check(model)
    for each in reports:
        for block in each["blocks"]:
            del block["seconds"], block["peak_bytes"]
    found["fingerprint"] = fingerprint(model)
    # `to` rounds the frequencies of the positions, which a folder has in float32, and a router may
    # turn that into another expert.
    mixture = method.startswith(("Expert", "Heads", "Hidden")) and dtype == "float32"
    if method.startswith("Wanda(Uns") or mixture:
        tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
        into = folder / f"saved-{world}-{kind}-{dtype}-{len(method)}"
        save_pretrained(model, tokenizer, into, report)
        assert (into / "pruning.json").is_file()  # on every rank
        saved = AutoModelForCausalLM.from_pretrained(into)
        found["saved"] = {name: digest(weight) for name, weight in saved.named_parameters()}
        found["files"] = len(list(into.glob("*.safetensors")))
    found["held"], found["away"] = held(model), [p.is_meta for p in model.parameters()]
    found["weights"] = {name: digest(weight) for name, weight in each_weight(model)}
    found["masks"] = {name: digest(bits) for name, bits in masks.pack().items()}
    return found | {"reports": reports}


folder, rank, world = Path(FOLDER), RANK, WORLD  # noqa: F821
logging.set_verbosity_error()
logging.disable_progress_bar()
batches = torch.load(folder / "batches.pt")
if world:
    signal.alarm(300)
    torch.set_num_threads(1)
    group = f"file://{folder}/group-{world}"
    dist.init_process_group("gloo", init_method=group, rank=rank, world_size=world)
found = [prune_case(*case) for case in CASES]  # noqa: F821
(folder / f"{world}-{rank}.json").write_text(json.dumps(found))
if world:
    dist.destroy_process_group()
