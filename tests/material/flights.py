"""Measure tasks in flights, as one of several processes that share the blocks of both models.

`runpy.run_path` runs this file with the names FOLDER, RANK, WORLD, FLIGHT and FAILS, and it writes
`FOLDER/WORLD-RANK.json`. The batch number FAILS of the first task raises an error.
"""

import json
import signal
from pathlib import Path

import torch
import torch.distributed as dist

from prunelit.core.datamodule import PruneData
from prunelit.core.evaluation import Evaluation
from prunelit.models.shards import shard_blocks
from prunelit.trainer import PruneTrainer

folder = Path(FOLDER)  # noqa: F821
signal.alarm(60)
torch.set_num_threads(1)
pair, tasks = torch.load(folder / "run.pt", weights_only=False)
dist.init_process_group(
    "gloo",
    init_method=f"file://{folder}/meeting-{WORLD}",  # noqa: F821
    rank=RANK,  # noqa: F821
    world_size=WORLD,  # noqa: F821
)
data = PruneData(None, tasks)
data.prepare(pair.tokenizer)
for task in tasks:
    task.check(pair.dense)
for model in pair.models().values():
    shard_blocks(model)
trainer = PruneTrainer(accelerator="cpu", logger=False, default_root_dir=str(folder))
found = {}
try:
    with torch.inference_mode():
        evaluation = Evaluation(trainer, pair, data)
        for place, (name, task) in enumerate(data.tasks.items()):
            batches = list(task.batches(data.sizes[name], RANK, WORLD))  # noqa: F821
            found[name] = [len(batch["indices"]) for batch in batches]
            if RANK == 1 and FAILS and not place:  # noqa: F821
                del batches[0]["input_ids"]
            for start in range(0, len(batches), FLIGHT):  # noqa: F821
                evaluation.measure_flight(name, batches[start : start + FLIGHT])  # noqa: F821
        evaluation.summarise(keep_going=False)
    found["results"] = [repr(row) for row in evaluation.results]
    found["brought"] = evaluation.brought
except Exception as error:  # noqa: BLE001 - the test reads it
    found["error"] = [type(error).__name__, str(error)]
(folder / f"{WORLD}-{RANK}.json").write_text(json.dumps(found))  # noqa: F821
dist.destroy_process_group()
