"""Load a pair of models as one of several processes, and count the bytes of their files it reads.

`runpy.run_path` runs this file with the names FOLDER, RANK and WORLD, and it writes
`FOLDER/WORLD-RANK.json`.
"""

import json
import re
import signal
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors import safe_open
from transformers.utils import logging

from prunelit import load_pretrained
from prunelit.core import weights
from prunelit.models.architecture import decoder_blocks
from prunelit.models.shards import shard_blocks
from prunelit.models.stores import each_weight, store_of

folder, mapped = Path(FOLDER), []  # noqa: F821


def keep_mapped(model, *rest):
    """Shard a model, and keep its files mapped so that the pages which were read can be counted."""
    mapped.extend(weight.data for weight in model.parameters())
    mapped.extend(store_of(block) for block in decoder_blocks(model)[1])  # which have the files
    shard_blocks(model, *rest)


def bytes_read():
    """What this process has read, of one model: pages of its mapped files, and what calls read."""
    by_call = int(Path("/proc/self/io").read_text().split("rchar: ")[1].split()[0])
    entries = re.split(
        r"^(?=[0-9a-f]+-[0-9a-f]+ )", Path("/proc/self/smaps").read_text(), flags=re.M
    )
    own = [entry for entry in entries if ".safetensors" in entry.partition("\n")[0]]
    return (by_call + sum(int(entry.split("Rss:")[1].split()[0]) for entry in own) * 1024) / 2


signal.alarm(120)
logging.set_verbosity_error()
logging.disable_progress_bar()
group = f"file://{folder}/group-{WORLD}"  # noqa: F821
dist.init_process_group("gloo", init_method=group, rank=RANK, world_size=WORLD)  # noqa: F821
weights.shard_blocks = keep_mapped
before = bytes_read()
pair = weights.Weights(str(folder / "dense"))
pair.placement = "sharded"
pair.load()
found = {"read": bytes_read() - before}
for path in 2 * list(Path(folder, "dense").glob("*.safetensors")):
    file = safe_open(path, framework="pt")
    mapped.extend(file.get_tensor(name) for name in file.keys())  # noqa: SIM118
for own in mapped:
    if isinstance(own, torch.Tensor):
        own.sum()
found["all"] = bytes_read() - before
resident = load_pretrained(str(folder / "dense"))[0]
found["equal"] = all(
    weight.equal(resident.get_parameter(name)) for name, weight in each_weight(pair.pair.pruned)
)
(folder / f"{WORLD}-{RANK}.json").write_text(json.dumps(found))  # noqa: F821
dist.destroy_process_group()
