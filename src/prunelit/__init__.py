"""Prune a causal language model and see which of its uses survive.

The names below are the public library; each is imported on first use, so that `import prunelit`
itself costs nothing.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prunelit.comparison import compare
    from prunelit.errors import InputError
    from prunelit.models.loading import load_pretrained, load_tokenizer
    from prunelit.models.saving import save_pretrained
    from prunelit.models.semi_structured import to_semi_structured
    from prunelit.pruning import PruningReport, prune

__version__ = "0.1.0"

__all__ = [
    "InputError",
    "PruningReport",
    "compare",
    "load_pretrained",
    "load_tokenizer",
    "prune",
    "save_pretrained",
    "to_semi_structured",
]

_HOME = {
    "InputError": "prunelit.errors",
    "PruningReport": "prunelit.pruning",
    "compare": "prunelit.comparison",
    "load_pretrained": "prunelit.models.loading",
    "load_tokenizer": "prunelit.models.loading",
    "prune": "prunelit.pruning",
    "save_pretrained": "prunelit.models.saving",
    "to_semi_structured": "prunelit.models.semi_structured",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'prunelit' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
