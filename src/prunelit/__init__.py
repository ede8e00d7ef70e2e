"""Prune a causal language model and see which of its uses survive.

The names in `__all__` are the public library. Each is imported when it is first used, so that
`import prunelit` itself is fast.

Example:
    >>> import prunelit
    >>> prunelit.prune.__module__.startswith("prunelit.pruning")
    True
"""

import importlib
import importlib.util
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prunelit.core.calibration_text import CalibrationText
    from prunelit.core.datamodule import PruneData
    from prunelit.core.module import PairedLM
    from prunelit.core.recovery_text import RecoveryText
    from prunelit.errors import InputError
    from prunelit.models.comparison import compare
    from prunelit.models.loading import load_pretrained, load_tokenizer
    from prunelit.models.saving import save_pretrained
    from prunelit.models.semi_structured import to_semi_structured
    from prunelit.pruning import PruningReport, prune
    from prunelit.report.items import read_items
    from prunelit.report.results import read_results
    from prunelit.trainer import PruneTrainer

__all__ = [
    "CalibrationText",
    "InputError",
    "PairedLM",
    "PruneData",
    "PruneTrainer",
    "PruningReport",
    "RecoveryText",
    "compare",
    "load_pretrained",
    "load_tokenizer",
    "prune",
    "read_items",
    "read_results",
    "save_pretrained",
    "to_semi_structured",
]

_HOME = {
    "CalibrationText": "prunelit.core.calibration_text",
    "InputError": "prunelit.errors",
    "PairedLM": "prunelit.core.module",
    "PruneData": "prunelit.core.datamodule",
    "PruneTrainer": "prunelit.trainer",
    "PruningReport": "prunelit.pruning",
    "RecoveryText": "prunelit.core.recovery_text",
    "compare": "prunelit.models.comparison",
    "load_pretrained": "prunelit.models.loading",
    "load_tokenizer": "prunelit.models.loading",
    "prune": "prunelit.pruning",
    "read_items": "prunelit.report.items",
    "read_results": "prunelit.report.results",
    "save_pretrained": "prunelit.models.saving",
    "to_semi_structured": "prunelit.models.semi_structured",
}

# Transformers reads a model without some sublayers by this, see its docstring.
_READER = "prunelit.models.without_sublayers"
_REGISTRY = "transformers.models.auto.configuration_auto"


class _AfterTransformers:
    """Finder that imports the reader as soon as transformers is there; that takes seconds."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name != _REGISTRY:
            return None
        sys.meta_path.remove(self)
        spec: Any = importlib.util.find_spec(name)
        run = spec.loader.exec_module

        def run_and_register(module: Any) -> None:
            run(module)
            importlib.import_module(_READER)

        spec.loader.exec_module = run_and_register
        return spec


if _REGISTRY in sys.modules:
    importlib.import_module(_READER)
else:
    sys.meta_path.insert(0, _AfterTransformers())


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("prunelit")
    if name not in _HOME:
        raise AttributeError(f"module 'prunelit' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__, "__version__"])
