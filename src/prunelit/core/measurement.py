"""Identify all that the results of a variant depend on."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

from lightning.pytorch import Trainer

from prunelit.core.datamodule import PruneData
from prunelit.core.environment import describe_environment
from prunelit.core.module import PairedLM
from prunelit.data.hub_rows import pin
from prunelit.data.sources import is_hub_name, local_path
from prunelit.recipe import describe, recipe_id

_SOURCES = ("path", "qrels", "source", "folder")  # options of a task that name its data


def measurement_key(recipe: Any, settings: Mapping[str, Any]) -> str:
    """Return an id that two measurements of one pruned model by the same tasks share.

    Args:
        recipe: of the pruned model.
        settings: see `measurement_settings`.
    """
    text = json.dumps({"pruned": recipe_id(recipe), **settings}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def measurement_settings(trainer: Trainer, module: PairedLM, data: PruneData) -> dict[str, Any]:
    """Return what the results depend on beside the pruned model, as plain data.

    A task counts by its options, its own code and the content of the files that its options name.

    Args:
        trainer: of the run.
        module: the models.
        data: the tasks.

    Raises:
        InputError: if a task does not store its options.
    """
    tasks = {name: describe(task) for name, task in data.tasks.items()}
    return {
        "tasks": tasks,
        "content": {path: _content(path) for path in sorted({*_sources(tasks)})},
        "reference": module.weights.reference,
        # The last bits of what several devices compute together depend on their number.
        **({"together": module.together} if module.together > 1 else {}),
        **describe_environment(trainer),
    }


def _sources(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            if key in _SOURCES and isinstance(item, str):
                yield item
            yield from _sources(item)
    elif isinstance(value, list):
        for item in value:
            yield from _sources(item)


def _content(source: str) -> str | None:
    """Hash the file or the files of a source; of a data set on the hub name the commit."""
    if is_hub_name(source):
        return pin(source)
    path = local_path(source)
    digest = hashlib.sha256()
    for file in sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]:
        digest.update(str(file.relative_to(path)).encode())
        with file.open("rb") as content:
            while part := content.read(1 << 20):
                digest.update(part)
    return digest.hexdigest()
