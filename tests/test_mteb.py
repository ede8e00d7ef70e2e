"""A pruned folder as an encoder of MTEB: its embeddings are those of prunelit's own tasks."""

import importlib.util
import json
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import prunelit.mteb
from prunelit import InputError, load_pretrained
from prunelit.mteb import encoder, main
from prunelit.pruners import SublayerDrop

needs_mteb = pytest.mark.skipif(
    not importlib.util.find_spec("mteb"), reason="extra mteb not installed"
)
TEXTS = ["gold and snow", "a longer text of some words", "ice"]


@pytest.fixture
def quiet() -> Iterator[None]:
    """MTEB and its libraries warn of what is none of our concern."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def test_without_the_extra_one_sentence_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "mteb", None)
    monkeypatch.setitem(sys.modules, "mteb.models.abs_encoder", None)
    prunelit.mteb._encoder_class.cache_clear()
    with pytest.raises(InputError, match=r"pip install 'prunelit\[mteb\]'"):
        encoder(str(folder))
    for arguments in ([str(folder), "--tasks", "SciFact"], [str(folder)]):
        with pytest.raises(SystemExit) as left:
            main(arguments)
        assert left.value.code == 2
        assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pooling": "last", "skip": 2}, "`skip` 0"),
        ({"template": "no field"}, "exactly the field {text}"),
        ({"length": 0}, "`length`"),
        ({"pooling": "max"}, "pooling"),
    ],
)
def test_options_that_do_not_fit(folder: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        encoder(str(folder), **options)


@needs_mteb
@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_embeddings_are_those_of_single_texts(
    folder: Path, tokenizer: PreTrainedTokenizerBase, pooling: Any
) -> None:
    model = encoder(str(folder), template="Say: {text}", query_template="Q {text}", pooling=pooling)
    plain, _ = load_pretrained(str(folder))
    batches = [{"text": TEXTS[:2]}, {"text": TEXTS[2:]}]
    for kind, begin in ((None, "Say: "), ("query", "Q ")):
        found = model.encode(batches, prompt_type=kind, batch_size=2)
        assert found.dtype == np.float32
        for row, text in zip(found, TEXTS, strict=True):
            ids = torch.tensor([tokenizer(begin + text)["input_ids"]])
            with torch.no_grad():
                states = plain.base_model(input_ids=ids).last_hidden_state[0].double()
            expected = states[-1] if pooling == "last" else states.mean(0)
            assert row == pytest.approx(expected.numpy(), abs=1e-5)
    with pytest.raises(InputError, match=r"a task on texts but its inputs are \['image'\]"):
        model.encode([{"image": []}])


@needs_mteb
@pytest.mark.usefixtures("quiet")
def test_results_of_two_models_never_mix(
    tmp_path: Path, make_model: Callable[..., PreTrainedModel], tokenizer: PreTrainedTokenizerBase
) -> None:
    for seed in (0, 1):
        for part in (make_model("llama", seed=seed), tokenizer):
            part.save_pretrained(tmp_path / f"m{seed}")
    paths = [str(tmp_path / f"m{seed}") for seed in (0, 0, 1)]
    options: list[dict[str, Any]] = [{}, {"pooling": "mean"}, {}]
    metas = [encoder(p, **o).mteb_model_meta for p, o in zip(paths, options, strict=True)]
    assert len({meta.revision for meta in metas}) == 3
    assert encoder(paths[0]).mteb_model_meta.revision == metas[0].revision


@needs_mteb
@pytest.mark.usefixtures("quiet")
def test_a_local_task_runs_on_a_folder_without_a_sublayer(
    tmp_path: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase,
    input_ids: torch.Tensor, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    from mteb.mocks.mock_tasks import MockClassificationTask, MockRetrievalTask

    folder = tmp_path / "pruned"
    report = prunelit.prune(model, SublayerDrop(2, "both"), input_ids, progress=False)
    prunelit.save_pretrained(model, tokenizer, folder, report)
    monkeypatch.setattr(
        prunelit.mteb, "_find_tasks", lambda *_: [MockClassificationTask(), MockRetrievalTask()]
    )
    main([str(folder), "--tasks", "any", "-o", str(tmp_path / "results")])
    printed = capsys.readouterr().out
    assert "MockClassificationTask: " in printed
    files = {path.name: path for path in (tmp_path / "results").rglob("*.json")}
    assert {"MockClassificationTask.json", "MockRetrievalTask.json"} <= files.keys()
    scores = json.loads(files["MockRetrievalTask.json"].read_text())["scores"]
    assert 0 <= scores["test"][0]["main_score"] <= 1


@needs_mteb
@pytest.mark.usefixtures("quiet")
def test_an_unknown_task_is_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([str(folder), "--tasks", "Bankin77Classification"])
    assert "did you mean one of Banking77Classification" in capsys.readouterr().err
