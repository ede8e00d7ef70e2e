from pathlib import Path
from typing import Any

from prunelit.report.page.runs import read_run
from prunelit.report.page.words import name_run


def test_a_sequence_is_named_by_its_methods(make_run: Any, tmp_path: Path) -> None:
    run = read_run(make_run(tmp_path / "run"))
    assert run.pruning is not None
    wanda = {
        "sparsity": {"class_path": "prunelit.sparsity.Unstructured", "init_args": {"ratio": 0.5}}
    }
    methods = [
        {
            "class_path": "prunelit.pruners.Neuron",
            "init_args": {"ratio": 0.25, "compensate": False},
        },
        {"class_path": "prunelit.pruners.Wanda", "init_args": wanda},
        {"class_path": "prunelit.pruners.Heads", "init_args": {"ratio": 0.25, "count": 1}},
    ]
    sequence = {"class_path": "prunelit.pruners.Sequence", "init_args": {"methods": methods}}
    run.pruning["recipe"]["pruner"] = sequence
    assert (
        ", pruned by Neuron (ratio 0.25, compensate False), then Wanda (sparsity Unstructured, "
        "ratio 0.5), then Heads (count 1), against"
    ) in name_run(run)
