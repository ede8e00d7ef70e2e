"""Models by their names on the hub: revisions, refusals and the cache."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load, save
from torch import Tensor
from transformers import PreTrainedModel

from prunelit import load_pretrained, prune, save_pretrained
from prunelit.models.fingerprint import fingerprint
from prunelit.pruners import SublayerDrop

from .server import TOKEN, Files, Hub

Ask = Callable[..., Any]
ModelFiles = Callable[..., Files]
READERS = ("config", "tokenizer", "model", "version")


@pytest.fixture
def commits(hub: Hub, model_files: ModelFiles) -> dict[str, str]:
    """Two states of `tiny/llama`: the branch `main` and the tag `v1`."""
    repository = hub.add("models", "tiny/llama")
    old = repository.commit(model_files(2.0, "old"), "v1")
    return {"v1": old, "main": repository.commit(model_files(1.0, "new"), "main")}


def test_a_revision_is_read_whole_and_named_by_its_commit(
    ask: Ask, commits: dict[str, str]
) -> None:
    for revision, ref in ((None, "main"), ("v1", "v1"), (commits["v1"], "v1")):
        found = ask("model", "tiny/llama", revision)
        assert found.status == 0, found.err
        assert found.value["norm"] == {"main": 1.0, "v1": 2.0}[ref]
        assert found.value["template"].endswith({"main": "new", "v1": "old"}[ref])
        assert found.value["version"] == {"commit": commits[ref]}
    for reader in ("config", "tokenizer"):
        assert ask(reader, "tiny/llama", "v1").status == 0


def test_a_branch_that_moves_is_read_anew(
    ask: Ask, hub: Hub, commits: dict[str, str], model_files: ModelFiles
) -> None:
    assert ask("model", "tiny/llama").value["norm"] == 1.0
    pushed = hub.repositories["models", "tiny/llama"].commit(model_files(3.0), "main")
    found = ask("model", "tiny/llama").value
    assert (found["norm"], found["version"]) == (3.0, {"commit": pushed})


def test_integers_in_the_place_of_weights(ask: Ask, hub: Hub, model_files: ModelFiles) -> None:
    files = dict(model_files(1.0))
    weights = load(files["model.safetensors"])
    weights["model.norm.weight"] = weights["model.norm.weight"].int()
    files["model.safetensors"] = save(weights, {"format": "pt"})
    hub.add("models", "tiny/integers").commit(files, "main")
    found = ask("model", "tiny/integers")
    assert found.status == 2
    assert "'tiny/integers' holds 1 weights of LlamaForCausalLM that are no floating" in found.value


def test_a_run_keeps_the_commit_that_it_began_with(
    ask: Ask, hub: Hub, commits: dict[str, str]
) -> None:
    def push(path: str) -> None:
        if path.endswith("tokenizer.json"):  # before the weights are read
            hub.repositories["models", "tiny/llama"].refs["main"] = commits["v1"]

    hub.after = push
    found = ask("weights", "tiny/llama")
    assert found.status == 0, found.err
    pruned, dense, version = found.value
    assert pruned == dense
    assert version == {"commit": commits["main"]}
    assert ask("version", "tiny/llama").value == {"commit": commits["v1"]}  # it did move


def test_offline_with_a_filled_cache(ask: Ask, hub: Hub, commits: dict[str, str]) -> None:
    online = [ask("model", "tiny/llama", revision).value for revision in (None, "v1")]
    hub.asked.clear()
    offline = [ask("model", "tiny/llama", r, offline=True).value for r in (None, "v1")]
    assert offline == online
    assert offline[1]["version"] == {"commit": commits["v1"]}
    assert hub.asked == []
    assert len(ask("weights", "tiny/llama", offline=True).value) == 3
    sentence = ask("version", "tiny/llama", "v2", offline=True).sentence
    assert "HF_HUB_OFFLINE is set, and it is not in the cache at the revision 'v2'" in sentence


@pytest.mark.parametrize("fault", ["silent", pytest.param("status", marks=pytest.mark.full)])
def test_a_hub_without_an_answer_is_said_and_the_commit_named(
    ask: Ask, hub: Hub, commits: dict[str, str], fault: str
) -> None:
    before = ask("model", "tiny/llama")
    assert "gives no answer" not in before.err
    setattr(hub, fault, 503)
    found = ask("model", "tiny/llama")
    assert found.value == before.value, found.err
    (said,) = [line for line in found.err.splitlines() if "gives no answer" in line]
    assert f"'tiny/llama' is read from the cache, as it was at the commit {commits['main']}" in said


def refused(
    ask: Ask, *arguments: Any, readers: tuple[str, ...] = ("config", "model"), **options: Any
) -> str:
    """The one sentence with which every reader refuses."""
    sentences = [ask(reader, *arguments, **options).sentence for reader in readers]
    assert len({sentence.partition("on the hub: ")[2] for sentence in sentences}) == 1
    assert all(repr(arguments[0]) in sentence for sentence in sentences)
    return sentences[-1]


def test_a_missing_repository(ask: Ask, hub: Hub) -> None:
    sentence = refused(ask, "tiny/lama")
    assert "on the hub: there is no model of this name, or it is private; check" in sentence
    assert f"{hub.address}/tiny/lama" in sentence


def test_a_missing_revision_is_named(ask: Ask, hub: Hub, commits: dict[str, str]) -> None:
    for revision in ("v9", "0" * 40):
        sentence = refused(ask, "tiny/llama", revision, readers=READERS)
        assert f"it has no revision {revision!r}; name a branch, tag or commit" in sentence
    assert "give 'tiny/llama' as the source and 'v1' as `revision`" in (
        ask("model", "tiny/llama@v1").sentence
    )


def test_a_gated_repository(ask: Ask, hub: Hub, model_files: ModelFiles) -> None:
    hub.add("models", "tiny/gated", gated=True).commit(model_files(), "main")
    for token in ("", "hf_another"):
        sentence = refused(ask, "tiny/gated", token=token)
        assert f"it is gated; accept its terms at {hub.address}/tiny/gated, then run" in sentence
        assert "`hf auth login` or set HF_TOKEN" in sentence
    assert ask("model", "tiny/gated", token=TOKEN).value["norm"] == 1.0


def test_a_private_repository(ask: Ask, hub: Hub, model_files: ModelFiles) -> None:
    hub.add("models", "tiny/hidden", hidden=True).commit(model_files(), "main")
    assert "run `hf auth login` or set HF_TOKEN if it is private" in refused(ask, "tiny/hidden")
    assert ask("model", "tiny/hidden", token=TOKEN).status == 0


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (401, "your token is refused (status 401); run `hf auth login` or set HF_TOKEN anew"),
        (429, "too many requests (status 429); wait a while"),
        (503, "the hub has a fault (status 503); run again later"),
    ],
)
def test_another_answer_never_shows_the_token(
    ask: Ask, hub: Hub, commits: dict[str, str], status: int, words: str
) -> None:
    hub.status = status
    found = ask("model", "tiny/llama", token=TOKEN)
    assert words in found.sentence
    assert TOKEN not in found.out + found.err + found.value


def test_offline_with_an_empty_cache(ask: Ask, hub: Hub) -> None:
    sentence = refused(ask, "tiny/llama", "v1", offline=True)
    assert "HF_HUB_OFFLINE is set, and it is not in the cache at the revision 'v1'; unset it, " in (
        sentence
    )
    step = "run `hf download tiny/llama --revision v1` where there is a network, or name a local"
    assert sentence.endswith(f"{step} folder.")
    assert hub.asked == []


def test_a_hub_that_cannot_be_reached(ask: Ask, hub: Hub) -> None:
    hub.silent = True
    assert "the connection broke off (RemoteProtocolError" in refused(ask, "tiny/llama")


def test_a_cut_connection_loses_nothing(ask: Ask, hub: Hub, commits: dict[str, str]) -> None:
    hub.cut = "model.safetensors"
    sentence = ask("model", "tiny/llama").sentence
    assert sentence.startswith("No model could be loaded from 'tiny/llama'")
    assert "the connection broke off (" in sentence
    assert sentence.endswith("run again, complete files are kept.")
    hub.cut = None
    hub.asked.clear()
    assert ask("model", "tiny/llama").value["norm"] == 1.0
    assert not any("resolve" in path and "tokenizer.json" in path for path in hub.asked)


@pytest.mark.parametrize(
    "alone", [pytest.param(False, marks=pytest.mark.full), True], ids=["beside", "alone"]
)
def test_an_adapter_is_refused_by_every_reader(
    ask: Ask, hub: Hub, model_files: ModelFiles, alone: bool
) -> None:
    adapter = {"adapter_config.json": b'{"peft_type": "LORA", "base_model_name_or_path": "a/b"}'}
    files = adapter if alone else {**model_files(), **adapter}
    hub.add("models", "tiny/adapter").commit(files, "main")
    for reader in READERS:
        sentence = ask(reader, "tiny/adapter").sentence
        assert "but 'tiny/adapter' holds an adapter (adapter_config.json): merge it" in sentence
    assert not any("safetensors" in path for path in hub.asked)


def test_a_pruned_model_keeps_its_removed_parts(
    ask: Ask, hub: Hub, tmp_path: Path, model: PreTrainedModel, tokenizer: Any, input_ids: Tensor
) -> None:
    report = prune(model, SublayerDrop(1, "mlp"), input_ids, progress=False)
    save_pretrained(model, tokenizer, tmp_path / "pruned", report)
    files = {path.name: path.read_bytes() for path in (tmp_path / "pruned").iterdir()}
    hub.add("models", "tiny/pruned").commit(files, "main")
    expected = fingerprint(load_pretrained(str(tmp_path / "pruned"), dtype="float32")[0])
    for offline in (False, True):
        found = ask("weights", "tiny/pruned", offline=offline)
        assert found.status == 0, found.value
        assert found.value[:2] == [expected, expected]


def test_a_token_that_no_header_can_hold(ask: Ask, hub: Hub, commits: dict[str, str]) -> None:
    token = "hf_\u00e9"
    for found in (ask("config", "tiny/llama", token=token), ask("rows", "a/b", [], token=token)):
        assert "your token holds a letter that no token has; run `hf auth " in found.sentence
        assert token not in found.value + found.err
