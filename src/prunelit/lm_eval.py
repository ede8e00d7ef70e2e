"""Run the tasks of lm-evaluation-harness on a model that prunelit loads.

    python -m prunelit.lm_eval --model prunelit --model_args source=runs/wanda/pruned --tasks piqa

All other options are options of `lm_eval`. In Python, call `register()` before
`lm_eval.simple_evaluate(model="prunelit", model_args={"source": ...}, ...)`.
"""

from prunelit.core.startup import put_working_folder_last

if __name__ == "__main__":  # before the libraries, whose modules a file there could hide
    put_working_folder_last()

import functools
import importlib
import inspect
import os
import re
import sys
from typing import Any, get_args

import torch

from prunelit.data.hub import hub_reason
from prunelit.errors import InputError, as_refusal, near_names
from prunelit.models.loading import DType, load_pretrained

__all__ = ["register"]

NAME = "prunelit"


@functools.cache
def register() -> type:
    """Make the model known to lm-evaluation-harness under the name `prunelit`.

    Returns:
        The class, a subclass of the harness's own for Hugging Face models.

    Raises:
        InputError: if the harness is not installed.
    """
    harness: Any = _harness("lm_eval.models.huggingface")

    class PrunedLM(harness.HFLM):
        """Model that `load_pretrained` reads, so that dropped sublayers are read too.

        Args:
            source: see `prunelit.load_pretrained`.
            device: a torch device. None uses a GPU if there is one, or else the CPU. `cuda`, the
                default of the harness's command, falls back to the CPU without a GPU.
            dtype: of the weights; `auto` is the dtype they are stored in.
            attn_implementation: as in transformers; None is its default.
            trust_remote_code: run code that comes with the weights.
            revision: branch, tag or commit on the hub.
            batch_size: sequences per batch.
            **options: other arguments of the harness's class (`max_length`, `add_bos_token`, ...).
        """

        def __init__(
            self,
            source: str | None = None,
            device: str | None = None,
            dtype: DType = "auto",
            attn_implementation: str | None = None,
            trust_remote_code: bool = False,
            revision: str | None = None,
            batch_size: int | str = 1,
            **options: Any,
        ) -> None:
            if source is None:
                raise InputError("Expected `source` in --model_args: --model_args source=FOLDER.")
            if dtype not in (known := get_args(DType)):
                raise InputError(f"Expected `dtype` as one of {known} but got {dtype!r}.")
            _check_options(harness.HFLM, options)
            if not re.fullmatch(r"[1-9]\d*|auto(:\d+)?", str(batch_size)):
                raise InputError(
                    f"Expected `batch_size` as a whole number, auto or auto:N but got "
                    f"{batch_size!r}."
                )
            if os.environ.get("WORLD_SIZE", "1") not in ("", "1"):
                raise InputError(
                    "Expected a single process, since lm-evaluation-harness cannot distribute a "
                    "model that it did not load: start it without `accelerate` or `torchrun`."
                )
            gpu = torch.cuda.is_available()
            try:
                place = torch.device(device or ("cuda" if gpu else "cpu"))
            except (RuntimeError, TypeError) as error:
                raise InputError(
                    f"Expected `device` as cpu or cuda:NUMBER but got {device!r}."
                ) from error
            model, tokenizer = load_pretrained(
                source,
                dtype=dtype,
                attn_implementation=attn_implementation,
                trust_remote_code=trust_remote_code,
                revision=revision,
            )
            if place.type == "cuda" and not gpu:
                print("prunelit: no GPU found, using the CPU", file=sys.stderr)
                place = torch.device("cpu")
            model.to(place)  # type: ignore[arg-type]
            super().__init__(
                pretrained=model, tokenizer=tokenizer, batch_size=batch_size, **options
            )
            self.source = source

        def get_model_info(self) -> dict[str, Any]:
            """Return the description of the model in the results of the harness."""
            return {
                "model_source": self.source,
                "model_num_parameters": self._model.num_parameters(),
                "model_dtype": str(self._model.dtype),
            }

    registry: Any = _harness("lm_eval.api.registry")
    registry.register_model(NAME)(PrunedLM)
    return PrunedLM


def main() -> None:
    """Run the command line of lm-evaluation-harness with the model `prunelit`."""
    try:
        register()
        _harness("lm_eval.__main__").cli_evaluate()
    except Exception as error:
        refusal = as_refusal(error)
        if refusal is None and (reason := hub_reason(error)):
            refusal = (
                f"The harness cannot read a data set from the hub: {reason}. Check its name and "
                "the network, and run `hf auth login` if it is gated or private."
            )
        if refusal is None:
            raise
        print(f"prunelit: error: {refusal}", file=sys.stderr)
        sys.exit(2)


def _check_options(harness_class: type, options: dict[str, Any]) -> None:
    """Refuse arguments that the harness's class would swallow.

    Raises:
        InputError: naming the argument.
    """
    known = set(inspect.signature(harness_class.__init__).parameters) - {"self", "kwargs"}
    known -= {"pretrained", "tokenizer"}
    if unknown := sorted(set(options) - known - {"max_batch_size"}):
        raise InputError(
            f"The model `prunelit` has no argument {unknown[0]!r}: did you mean one of "
            f"{near_names(unknown[0], sorted(known | {'source', 'dtype', 'device'}))}?"
        )


def _harness(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise InputError(
            f"lm-evaluation-harness needs {error.name!r}, which is not installed: run "
            "`pip install 'prunelit[lm-eval]'`."
        ) from error


if __name__ == "__main__":
    main()
