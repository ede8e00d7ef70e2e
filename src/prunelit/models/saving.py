"""Write a pruned model as a folder that `from_pretrained` of transformers loads."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import torch.distributed as dist
from safetensors.torch import save_file
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prunelit.arguments import checked
from prunelit.data.sources import is_hub_name, local_path
from prunelit.errors import InputError
from prunelit.files import check_replaceable, is_replaceable, real_path, replace_folder
from prunelit.models.architecture import check_merged, check_model, decoder_blocks
from prunelit.models.block_files import write_blocks
from prunelit.models.fingerprint import fingerprint_files, weight_bytes
from prunelit.models.proof import answer, prove_written
from prunelit.models.report_file import REPORT_FILE, copy_processor
from prunelit.models.stores import check_here, each_whole, is_shared, store_of
from prunelit.models.surgery import Removed, build_exported, count_stored, find_removed
from prunelit.models.without_sublayers import absent_modules, fields_of, write_config

MASKS_FILE = "masks.safetensors"


def check_writable(folder: str | Path) -> None:
    """Refuse an output folder before the heavy work starts.

    Raises:
        InputError: if `folder` exists and is not a pruned model, or if it cannot be written.
    """
    folder = Path(folder)
    if not os.path.isfile(folder / REPORT_FILE) and not is_replaceable(folder):
        raise InputError(
            f"Expected a new folder, or a pruned model to replace, but {str(folder)!r} exists and "
            f"holds no {REPORT_FILE}: choose another output folder or remove it."
        )
    check_replaceable(folder)


def check_apart(source: str, folder: str | Path) -> None:
    """Refuse an output folder that is the source of the model, holds it or lies in it.

    Args:
        source: of the model, see `prunelit.load_pretrained`; links are followed.
        folder: output folder; it need not exist.

    Raises:
        InputError: naming both.
    """
    if is_hub_name(source):
        return
    read, written = real_path(local_path(source)), real_path(folder)
    one_in_other = any(
        os.path.exists(outer) and os.path.exists(inner) and os.path.samefile(outer, inner)
        for whole, outer in ((read, written), (written, read))
        for inner in (whole, *whole.parents)
    )
    if one_in_other:
        raise InputError(
            f"Expected an output folder apart from the model that is pruned, {source!r}, but got "
            f"{str(folder)!r}: choose another `trainer.default_root_dir` or `pruning.output`."
        )


@checked
def save_pretrained(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: str | Path,
    report: Any,
    full_hash: bool = False,
    custom_code: bool = False,
) -> None:
    """Write weights (safetensors), configuration, tokenizer and `pruning.json`.

    A method that removes blocks, sublayers, heads or neurons gives a smaller model; `pruning.json`
    lists the indices that were removed. For other methods `masks.safetensors` holds one bit per
    weight of every pruned tensor.

    The files are written under a temporary name beside `folder`. They are loaded, a few tokens are
    run through both models, and the folder is renamed if the logits are equal. Only then is an
    earlier pruned model replaced. `pruning.json` holds hashes of all files, by which
    `prunelit validate` notices a later change.

    A model whose blocks the ranks share is written by the first rank, a file for each block. Call
    it on every rank.

    Args:
        model: the pruned model; tied weights stay tied.
        tokenizer: its tokenizer.
        folder: output folder; its parents are created.
        report: the report that `prunelit.prune` returned.
        full_hash: hash all weights, which takes a second or two per GB; False hashes a sample.
        custom_code: put code beside a model whose blocks differ, by which transformers alone loads
            it with `trust_remote_code=True`. Other models need none.

    Raises:
        InputError: if `folder` exists and is not a pruned model, or is the folder that the model
            was loaded from; if the model has an adapter, or is not the one of the report; if the
            folder would hold another model than the one in memory.

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
    if not hasattr(report, "check"):
        raise InputError(f"Expected the report of `prunelit.prune` but got {report!r:.60}.")
    check_model(model)
    check_merged(model)  # transformers would write the adapter alone
    check_writable(folder)
    if model.name_or_path and os.path.exists(model.name_or_path):
        check_apart(model.name_or_path, folder)
    report.check(model)
    blocks = decoder_blocks(model)[1]
    if report.shrinks and report.removed is None:
        check_here(model, "Writing a model with dropped parts that are still in it as zeros")
    expected = answer(model)
    shared = is_shared(blocks)
    if shared and dist.get_rank():
        for _ in each_whole(blocks):  # the first rank writes them
            pass
        dist.barrier()
        return
    with replace_folder(folder, size=weight_bytes(model)) as partial:
        plain = report.as_dict() | count_stored(model)  # it may have another dtype now
        if report.shrinks and report.removed is None:
            model, removed = build_exported(model, by_block=report.by_block)
            plain["removed"] = removed.as_dict()
            plain |= count_stored(model)
        elif not report.shrinks:  # names and shapes are the same in the folder
            if (before := find_removed(model)) != Removed():  # removed by an earlier method
                plain["removed"] = before.as_dict()
            save_file(report.masks.pack(), partial / MASKS_FILE)
        if any(map(store_of, blocks)):
            write_blocks(model, partial)
        else:
            model.save_pretrained(partial)
        absent, fields = absent_modules(model), fields_of(model)
        if absent or fields:
            write_config(partial, model.config, absent, fields, custom_code)
        tokenizer.save_pretrained(partial)
        copy_processor(model, partial)
        plain["content"] = _content(partial, plain, full_hash)
        text = json.dumps(plain, indent=2, allow_nan=False)
        (partial / REPORT_FILE).write_text(text + "\n", encoding="utf-8")
        prove_written(partial, model, expected)
    if shared:
        dist.barrier()


def check_unchanged(folder: str | Path, report: dict[str, Any]) -> str:
    """Refuse a pruned model whose files are not those that were written.

    Args:
        folder: of the pruned model.
        report: its `pruning.json`, see `read_report`.

    Returns:
        Words for how the weights were compared: `all weights` or `a sample of the weights`.

    Raises:
        InputError: naming the files that changed, came or went.
    """
    stored = report.get("content")
    before = stored if isinstance(stored, dict) else {}
    full = not any(str(value).startswith("sampled") for value in before.values())
    now = _content(Path(folder), report, full)
    if changed := sorted(key for key in {*before, *now} if before.get(key) != now.get(key)):
        raise InputError(
            f"The pruned model in {str(folder)!r} was changed after it was written: "
            f"{', '.join(changed)}. Put the files back, or move the folder away and run "
            "`prunelit fit`."
        )
    return "all weights" if full else "a sample of the weights"


def _content(folder: Path, report: dict[str, Any], full: bool) -> dict[str, str]:
    """Hash every file of a pruned model; of `pruning.json` all but these hashes."""
    rest = {key: value for key, value in report.items() if key != "content"}
    text = json.dumps(rest, sort_keys=True)  # a file that was changed may hold NaN
    own = {REPORT_FILE: f"sha256 {hashlib.sha256(text.encode()).hexdigest()}"}
    return fingerprint_files(folder, full) | own
