"""A run that reads what the dense model gave has the results of one that measures it."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prunelit.core.datamodule import PruneData
from prunelit.core.module import PairedLM
from prunelit.report.results import read_results
from prunelit.tasks import Routing, Task, Transitions
from prunelit.trainer import PruneTrainer

from ..contracts.small import TASKS, family_of, small_arguments, write_rows

LIMITS = 120, 8 << 30  # seconds and bytes; figures are then empty files
# It runs the dense model block by block.
BY_LAYER = (Routing, Transitions)


class CountPasses(Callback):
    """Count the forward passes of the dense model during a validation."""

    passes = 0

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        base = pl_module.pair.dense.base_model
        self._handle = base.register_forward_hook(
            lambda *_: setattr(self, "passes", self.passes + 1)
        )

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        self._handle.remove()


Validate = Callable[..., tuple[list[str], int]]


@pytest.fixture
def validate(
    tmp_path: Path,
    material: Path,
    make_model: Callable[..., PreTrainedModel],
    tokenizer: PreTrainedTokenizerBase,
    make_trainer: Callable[..., PruneTrainer],
) -> Validate:
    """`validate(tasks, **options)` returns the results, and the passes of the dense model."""
    rows = write_rows(tmp_path / "rows.jsonl", material)

    def run(
        classes: list[type[Task]], zeroed: str = "pruned", **options: Any
    ) -> tuple[list[str], int]:
        def make(task: type[Task]) -> Task:
            arguments = small_arguments(task, rows)
            if task.__name__ == "CollectionRetrieval":
                arguments["cache"] = str(tmp_path / "embeddings")
            return task(batch_size=3, **arguments)  # type: ignore[call-arg]

        (family,) = set(map(family_of, classes))
        if not (dense := tmp_path / family).exists():
            make_model(family).save_pretrained(dense)
            tokenizer.save_pretrained(dense)
        module = PairedLM(str(dense), **options)
        module.load()
        weight = "model.layers.1.self_attn.o_proj.weight"
        with torch.no_grad():
            getattr(module.pair, zeroed).get_parameter(weight)[::2] = 0
        count = CountPasses()
        make_trainer(callbacks=[count]).validate(
            module, datamodule=PruneData(None, list(map(make, classes)))
        )
        return [repr(row) for row in module.results], count.passes

    return run


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.__name__)
def test_every_task_has_the_same_results(
    task: type[Task], validate: Validate, caplog: pytest.LogCaptureFixture
) -> None:
    measured, passes = validate([task], dense_cache=False)
    assert passes > 0
    assert validate([task])[0] == measured
    assert "Dense answers" not in caplog.text
    with caplog.at_level("INFO"):
        read, again = validate([task])
    assert read == measured
    if task in BY_LAYER:
        assert 0 < again < passes
    else:
        assert again == 0
    if task.__name__ != "CollectionRetrieval":  # its embeddings have a cache of their own
        assert "Dense answers of 1 of 1 tasks were read from" in caplog.text


def test_another_dense_model_is_measured(validate: Validate) -> None:
    tasks = [task for task in TASKS if task.__name__ in ("Perplexity", "Generation")]
    first, passes = validate(tasks)
    other, again = validate(tasks, zeroed="dense")
    assert again == passes
    assert other != first
    assert validate(tasks, zeroed="dense", dense_cache=False)[0] == other


@pytest.mark.full
@pytest.mark.distributed
def test_two_processes_read_their_own_batches(
    tmp_path: Path,
    make_config: Callable[[Path], dict[str, Any]],
    save_config: Callable[..., Path],
    forked: Callable[..., Any],
) -> None:
    found = []
    for number in range(2):
        folder = tmp_path / str(number)
        folder.mkdir()
        config = make_config(folder)
        config["trainer"] |= {"devices": 2, "strategy": "ddp", "logger": False}
        config["data"]["tasks"] = config["data"]["tasks"][1:3]
        save_config(folder, config)
        own = {"PRUNELIT_CACHE": str(tmp_path / "cache")}
        done = forked(
            folder, "fit", "--config", "config.yaml", ranks=2, variables=own, limits=LIMITS
        )
        assert done.returncode == 0, done.stderr
        told = re.findall(r"Dense answers of (\d of \d) tasks were read", done.stderr)
        assert told == ["2 of 2"] * number
        rows = read_results(folder / "run" / "results.jsonl")
        found.append([repr((row.metric, row.model, row.value, row.standard_error)) for row in rows])
    assert found[0] == found[1]
