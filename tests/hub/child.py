"""Run cases in forks of one process that has imported prunelit and the clients of the hub.

The parent sends a line of JSON per case and gets a line back when its process has ended. The case
runs in a folder of its own; HF_HOME is a relative path, so that each folder has its own cache.
"""

import json
import os
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

import datasets
import fsspec
import huggingface_hub
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import prunelit.__main__
import prunelit.cli
from prunelit import InputError, load_pretrained, load_tokenizer
from prunelit.core.weights import Weights
from prunelit.data import load_rows
from prunelit.models.fingerprint import fingerprint
from prunelit.models.loading import load_config, source_version

SECONDS = 60


def rows(path: str, columns: list[str], **options: Any) -> Any:
    return load_rows(path, columns=columns, **options)


def commit(path: str) -> str:
    """Ask for the commit of a data set, without its rows."""
    from prunelit.data.hub_rows import pin

    return pin(path)


def model(source: str, revision: str | None = None) -> dict[str, Any]:
    """Load a model; gives what differs between the revisions of the tests."""
    loaded, tokenizer = load_pretrained(source, revision=revision, dtype="float32")
    return {
        "norm": loaded.model.norm.weight[0].item(),
        "template": tokenizer.chat_template,
        "version": source_version(source, revision=revision),
    }


def tokenizer(source: str, revision: str | None = None) -> str | None:
    return load_tokenizer(source, revision=revision).chat_template


def config(source: str, revision: str | None = None) -> int:
    return load_config(source, revision=revision).num_hidden_layers


def version(source: str, revision: str | None = None) -> dict[str, Any]:
    return source_version(source, revision=revision)


def weights(source: str) -> list[Any]:
    """Read the two models of a run, one after the other."""
    own = Weights(source, dtype="float32")
    own.load()
    assert own.pair.dense is not None
    return [*map(fingerprint, (own.pair.pruned, own.pair.dense)), own.recipe()["version"]]


def command(*arguments: str) -> None:
    sys.argv = ["prunelit", *arguments]
    prunelit.__main__.main()


def _run(case: dict[str, Any]) -> None:
    os.chdir(case["folder"])
    for stream, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
    wait = time.sleep
    time.sleep = lambda seconds: wait(min(seconds, 0.01))  # between two tries of a client
    if case["offline"]:
        datasets.config.HF_HUB_OFFLINE = True
        huggingface_hub.constants.HF_HUB_OFFLINE = case["offline"] != "datasets"
    if case["token"]:
        os.environ["HF_TOKEN"] = case["token"]
    value: Any = None
    status = 1
    try:
        value = globals()[case["call"]](*case["arguments"], **case["options"])
        status = 0
    except InputError as error:
        value, status = str(error), 2
    except SystemExit as left:
        status = left.code if isinstance(left.code, int) else 1
    finally:  # the fork must not go on with the loop of its parent
        if sys.exc_info()[1] is not None:
            traceback.print_exc()
        Path("value.json").write_text(json.dumps(value))
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _import_lazy_parts() -> None:
    """Read a tiny model, so that the forks need not import what libraries import late."""
    fsspec.get_filesystem_class("https")
    with tempfile.TemporaryDirectory() as folder:
        shapes = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 1}
        config = LlamaConfig(vocab_size=8, num_hidden_layers=1, **shapes)
        LlamaForCausalLM(config).save_pretrained(folder)
        words = Tokenizer(models.WordLevel({"<end>": 0}, unk_token="<end>"))
        PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<end>").save_pretrained(folder)
        load_pretrained(folder)


def main() -> None:
    _import_lazy_parts()
    print("ready", flush=True)
    for line in sys.stdin:
        if (process := os.fork()) == 0:
            signal.alarm(SECONDS)
            _run(json.loads(line))
        print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), flush=True)


if __name__ == "__main__":
    main()
