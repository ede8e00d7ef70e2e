"""Run the tasks of MTEB on a model that prunelit loads.

    python -m prunelit.mteb runs/wanda/pruned --tasks Banking77Classification SciFact -o runs/mteb

In Python, give `encoder(...)` to `mteb.evaluate`.
"""

from prunelit.core.startup import put_working_folder_last

if __name__ == "__main__":  # before the libraries, whose modules a file there could hide
    put_working_folder_last()

import argparse
import functools
import importlib
import sys
from pathlib import Path
from typing import Any, NoReturn, get_args

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prunelit.arguments import checked
from prunelit.data.hub import hub_reason
from prunelit.data.rows import hash_rows
from prunelit.data.tokens import pad, pad_token
from prunelit.errors import InputError, as_refusal, check_whole, near_names, visible
from prunelit.models.inference.embedding import (
    POOLINGS,
    Pooling,
    blocks_before,
    check_layer,
    check_pooling,
    embed,
)
from prunelit.models.loading import DType, load_pretrained, read_removed, source_version
from prunelit.tasks.prompting.text_template import TextTemplate

__all__ = ["encoder"]

ONE_WORD = 'This sentence: "{text}" means in one word: "'


@checked
def encoder(
    source: str,
    *,
    template: str = ONE_WORD,
    query_template: str | None = None,
    pooling: Pooling = "last",
    skip: int = 0,
    layer: int | None = None,
    length: int | None = 256,
    dtype: DType = "auto",
    device: str | None = None,
    trust_remote_code: bool = False,
    revision: str | None = None,
) -> Any:
    """Load a model as an encoder of MTEB.

    The template asks for one word, after PromptEOL (Jiang et al. 2023, arXiv:2307.16645). MTEB
    compares embeddings by their cosine. It stores results by the name and the revision of a model;
    the revision here is a hash of the weights and of these options, so that results of two models
    never mix.

    Args:
        source: see `prunelit.load_pretrained`.
        template: with the field `{text}`.
        query_template: of the queries of retrieval; None is `template`.
        pooling: `last` token, `mean` over tokens, or `weighted_mean`.
        skip: number of first tokens that a mean leaves out.
        layer: read the residual stream after this many blocks of the dense model; None reads the
            last hidden state.
        length: maximum number of tokens of a text, template included; None does not cut.
        dtype: of the weights; `auto` is the dtype they are stored in.
        device: a torch device; None uses a GPU if there is one, or else the CPU.
        trust_remote_code: run code that comes with the weights.
        revision: branch, tag or commit on the hub.

    Returns:
        A subclass of `mteb.models.abs_encoder.AbsEncoder`.

    Raises:
        InputError: if MTEB is not installed, or the model or an option does not fit.

    Example:
        >>> import prunelit
        >>> from prunelit.mteb import encoder
        >>> encoder("a_model", pooling="last", skip=3)
        Traceback (most recent call last):
        prunelit.errors.InputError: Expected `skip` 0, or more with a mean of tokens, but got 3 ...
    """
    check_pooling(pooling, skip)
    if length is not None:
        check_whole("length", length, 1)
    templates = {"query": TextTemplate(query_template or template), "": TextTemplate(template)}
    loaded = _encoder_class()
    gpu = torch.cuda.is_available()
    try:
        place = torch.device(device or ("cuda" if gpu else "cpu"))
    except RuntimeError as error:
        raise InputError(f"Expected `device` as cpu or cuda:NUMBER but got {device!r}.") from error
    same = {"trust_remote_code": trust_remote_code, "revision": revision}
    model, tokenizer = load_pretrained(source, dtype=dtype, **same)
    for one in templates.values():
        one.check(tokenizer, length)
    removed = read_removed(source, revision).blocks
    blocks = blocks_before(layer, removed)
    if blocks is not None:
        check_layer(model, blocks)
    options = {
        "template": template,
        "query_template": query_template,
        "pooling": pooling,
        "skip": skip,
        "layer": layer,
        "length": length,
        "dtype": str(model.dtype),
    }
    model.to(place).eval()  # type: ignore[arg-type]
    settings = {"pooling": pooling, "skip": skip, "blocks": blocks}
    found = loaded(model, tokenizer, templates, length, settings)
    content = hash_rows([source_version(source, **same), options])
    found.mteb_model_meta = _describe(source, content[:16], model, length)
    return found


@functools.cache
def _encoder_class() -> type:
    """Build the class, whose base is a class of MTEB."""
    base: Any = _mteb("mteb.models.abs_encoder").AbsEncoder

    class PrunedEncoder(base):
        """Embed texts as prunelit's own tasks do.

        Args:
            model: in evaluation mode, on its device.
            tokenizer: of the model.
            templates: of queries (`query`) and of all other texts (the empty text).
            length: maximum number of tokens of a text.
            settings: further options of `prunelit.models.inference.embedding.embed`.
        """

        def __init__(
            self,
            model: PreTrainedModel,
            tokenizer: PreTrainedTokenizerBase,
            templates: dict[str, TextTemplate],
            length: int | None,
            settings: dict[str, Any],
        ) -> None:
            self.model = model
            self._tokenizer = tokenizer
            self._templates = templates
            self._length = length
            self._settings = settings

        @torch.inference_mode()
        def encode(self, inputs: Any, *, prompt_type: Any = None, **options: Any) -> Any:
            """Return the embeddings of all texts, (n, D) float32.

            Args:
                inputs: batches with the key `text`.
                prompt_type: `query` for queries.
                **options: `batch_size`; others of MTEB change nothing.

            Raises:
                InputError: if the inputs are no texts.
            """
            texts: list[str] = []
            for batch in inputs:
                if "text" not in batch:
                    raise InputError(f"Expected a task on texts but its inputs are {[*batch]}.")
                texts += batch["text"]
            kind = "query" if getattr(prompt_type, "value", prompt_type) == "query" else ""
            template = self._templates[kind]
            tokens = [template.tokens(self._tokenizer, text, self._length) for text in texts]
            order = sorted(range(len(tokens)), key=lambda number: -len(tokens[number]))
            size = options.get("batch_size") or 32
            found: list[Any] = [None] * len(tokens)
            for start in range(0, len(order), size):
                numbers = order[start : start + size]
                batch = pad([tokens[number] for number in numbers], pad_token(self._tokenizer))
                place = self.model.device
                ids, mask = (batch[key].to(place) for key in ("input_ids", "attention_mask"))
                for number, row in zip(
                    numbers, embed(self.model, ids, mask, **self._settings).cpu(), strict=True
                ):
                    found[number] = row
            return torch.stack(found).numpy()

    return PrunedEncoder


def _describe(source: str, revision: str, model: PreTrainedModel, length: int | None) -> Any:
    """Describe the model for MTEB, which stores results by name and revision."""
    words = _mteb("mteb.models.model_meta")
    name = "".join(c if c.isalnum() or c in "-_." else "_" for c in source.rstrip("/"))
    given = {
        "name": f"prunelit/{name[-80:].lstrip('.') or 'model'}",
        "revision": revision,
        "n_parameters": model.num_parameters(),
        "max_tokens": length,
        "embed_dim": model.config.get_text_config(decoder=True).hidden_size,
        "similarity_fn_name": words.ScoringFunction.COSINE,
        "framework": ["PyTorch"],
    }
    return words.ModelMeta.create_empty(overwrites=given)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Refuse the arguments in one sentence."""
        raise InputError(f"{message[:1].upper()}{message[1:]}: see `{self.prog} --help`.")


def main(arguments: list[str] | None = None) -> None:
    """Run the command line.

    Args:
        arguments: None takes those of the process.
    """
    try:
        _run(_parse(arguments))
    except Exception as error:
        refusal = as_refusal(error)
        if refusal is None and (reason := hub_reason(error)):
            refusal = (
                f"MTEB cannot read a data set from the hub: {reason}. Check the network, and run "
                "`hf auth login` if the data set is gated or private."
            )
        if refusal is None:
            raise
        print(f"prunelit: error: {refusal}", file=sys.stderr)
        sys.exit(2)


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = _Parser("python -m prunelit.mteb", description="Run tasks of MTEB on a model.")
    parser.add_argument("source", help="folder, GGUF file or name on the hub")
    parser.add_argument("--tasks", nargs="+", required=True, metavar="NAME", help="tasks of MTEB")
    parser.add_argument(
        *("-o", "--output"),
        default="runs/mteb",
        help="folder of the results; default: runs/mteb",
    )
    parser.add_argument("--batch_size", type=int, default=32, help="texts a batch; default: 32")
    parser.add_argument("--template", default=ONE_WORD, help="with the field {text}")
    parser.add_argument("--query_template", help="of queries; default: the template")
    parser.add_argument("--pooling", choices=POOLINGS, default="last")
    parser.add_argument("--skip", type=int, default=0, help="first tokens that a mean leaves out")
    parser.add_argument("--layer", type=int, help="read the stream after so many dense blocks")
    parser.add_argument("--length", type=int, default=256, help="most tokens of a text")
    parser.add_argument("--dtype", choices=get_args(DType), default="auto")
    parser.add_argument("--device", help="cpu or cuda:NUMBER")
    parser.add_argument("--trust_remote_code", action="store_true")
    parser.add_argument("--revision", help="branch, tag or commit on the hub")
    return parser.parse_args(arguments)


def _run(given: argparse.Namespace) -> None:
    options = dict(vars(given))
    names, output, size = (options.pop(key) for key in ("tasks", "output", "batch_size"))
    check_whole("batch_size", size, 1)
    library = _mteb("mteb")
    tasks = _find_tasks(library, names)
    model = encoder(options.pop("source"), **options)
    cache = library.ResultCache(Path(output))
    results = library.evaluate(model, tasks, cache=cache, encode_kwargs={"batch_size": size})
    for result in results.task_results:
        print(visible(f"{result.task_name}: {result.get_score():.4f}"))
    print(visible(f"Results of MTEB: {output}"))


def _find_tasks(library: Any, names: list[str]) -> Any:
    """Return the tasks of MTEB with these names.

    Raises:
        InputError: naming an unknown task and similar ones.
    """
    known = sorted({task.metadata.name for task in library.get_tasks(exclude_superseded=False)})
    for name in names:
        if name not in known:
            raise InputError(
                f"MTEB has no task {name!r}: did you mean one of {near_names(name, known)}?"
            )
    return library.get_tasks(tasks=names)


def _mteb(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise InputError(
            f"MTEB needs {error.name!r}, which is not installed: run `pip install "
            "'prunelit[mteb]'`, with Python 3.11 or later."
        ) from error


if __name__ == "__main__":
    main()
