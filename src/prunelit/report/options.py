"""The options of a recipe as one flat list."""

from collections.abc import Iterator, Mapping
from typing import Any


def list_options(arguments: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the options of a recipe by keys such as `sparsity.ratio`.

    A class is its name, before its own options.

    Args:
        arguments: of a class in a recipe.
        prefix: of the keys.

    Example:
        >>> from prunelit.report.options import list_options
        >>> ratio = {"class_path": "prunelit.sparsity.Unstructured", "init_args": {"ratio": 0.5}}
        >>> dict(list_options({"sparsity": ratio, "order": None}))
        {'sparsity': 'Unstructured', 'sparsity.ratio': 0.5, 'order': None}
    """
    for key, value in arguments.items():
        if isinstance(value, Mapping) and "class_path" in value:
            yield prefix + key, str(value["class_path"]).rpartition(".")[2]
            yield from list_options(value.get("init_args") or {}, f"{prefix}{key}.")
        else:
            yield prefix + key, value
