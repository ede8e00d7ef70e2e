"""Write a pruned model as a folder that `from_pretrained` of transformers loads."""

import json
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prunelit.errors import InputError
from prunelit.files import check_replaceable, is_replaceable, replace_folder
from prunelit.models.surgery import Removed, build_exported, count_stored, find_removed

REPORT_FILE = "pruning.json"
MASKS_FILE = "masks.safetensors"


def check_writable(folder: str | Path) -> None:
    """Refuse an output folder before the heavy work starts.

    Raises:
        InputError: if `folder` exists and is not a pruned model, or if it cannot be written.
    """
    folder = Path(folder)
    if not (folder / REPORT_FILE).is_file() and not is_replaceable(folder):
        raise InputError(
            f"Expected a new folder, or a pruned model to replace, but {str(folder)!r} exists and "
            f"holds no {REPORT_FILE}: choose another output folder or remove it."
        )
    check_replaceable(folder)


def weight_bytes(model: PreTrainedModel) -> int:
    """Count the bytes of the weights of a model; tied ones count once."""
    return sum(weight.nbytes for weight in model.parameters())


def save_pretrained(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: str | Path,
    report: Any,
) -> None:
    """Write weights (safetensors), configuration, tokenizer and `pruning.json`.

    A method that removes whole blocks, neurons or sublayers gives a smaller model; `pruning.json`
    lists the indices that were removed. For other methods `masks.safetensors` holds one bit per
    weight of every pruned tensor.

    The files are written under a temporary name beside `folder` and renamed when complete. Only
    then is an earlier pruned model replaced.

    Args:
        model: the pruned model; tied weights stay tied.
        tokenizer: its tokenizer.
        folder: output folder; its parents are created.
        report: the report that `prunelit.prune` returned.

    Raises:
        InputError: if `folder` exists and is not a pruned model.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from tokenizers import Tokenizer, models
        >>> from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
        >>> from prunelit import prune, save_pretrained
        >>> from prunelit.pruners import Magnitude
        >>> from prunelit.sparsity import Unstructured
        >>> config = LlamaConfig(vocab_size=8, hidden_size=8, intermediate_size=16,
        ...                      num_hidden_layers=2, num_attention_heads=2)
        >>> model = LlamaForCausalLM(config).eval()
        >>> tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()))
        >>> report = prune(model, Magnitude(Unstructured(0.5)))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_pretrained(model, tokenizer, Path(folder, "pruned"), report)
        ...     sorted(path.name for path in Path(folder, "pruned").iterdir())
        ['config.json', ..., 'masks.safetensors', 'model.safetensors', 'pruning.json', ...]
    """
    folder = Path(folder)
    check_writable(folder)
    with replace_folder(folder, size=weight_bytes(model)) as partial:
        plain = report.as_dict()
        if report.shrinks and report.removed is None:
            model, removed = build_exported(model)
            plain["removed"] = removed.as_dict()
            plain |= count_stored(model)
        elif not report.shrinks:  # names and shapes are the same in the folder
            if (before := find_removed(model)) != Removed():  # removed by an earlier method
                plain["removed"] = before.as_dict()
            save_file(report.masks.pack(), partial / MASKS_FILE)
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        text = json.dumps(plain, indent=2, allow_nan=False)
        (partial / REPORT_FILE).write_text(text + "\n", encoding="utf-8")


def read_report(folder: str | Path) -> dict[str, Any] | None:
    """Read `pruning.json` of a folder; None if the folder is no pruned model.

    Raises:
        InputError: if the file is not valid JSON.
    """
    path = Path(folder) / REPORT_FILE
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise InputError(f"{str(path)!r} is not valid JSON: {error}.") from error
