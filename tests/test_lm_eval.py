"""Pruned folders in lm-evaluation-harness: its scores are those of the model that was pruned."""

import functools
import importlib.util
import json
import os
import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from datasets.exceptions import DatasetNotFoundError
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

import prunelit
import prunelit.lm_eval
from prunelit import InputError
from prunelit.pruners import SublayerDrop, Wanda
from prunelit.sparsity import Unstructured

needs_harness = pytest.mark.skipif(
    not importlib.util.find_spec("lm_eval"), reason="extra lm-eval not installed"
)
only_sublayers = pytest.mark.parametrize("pruned", ["sublayers"], indirect=True)
TASK = {
    "task": "own_rows",
    "dataset_path": "json",
    "test_split": "train",
    "output_type": "multiple_choice",
    "doc_to_text": "Question: {{context}}\nAnswer:",
    "doc_to_choice": "{{choices}}",
    "doc_to_target": "{{label}}",
    "metric_list": [{"metric": "acc"}],
}


@pytest.fixture
def rows(material: Path) -> list[dict[str, Any]]:
    lines = (material / "questions.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


@pytest.fixture
def task(tmp_path: Path, material: Path) -> Path:
    """A folder with a task of the harness on local rows."""
    path = tmp_path / "tasks"
    path.mkdir()
    data = {"data_files": str(material / "questions.jsonl")}
    (path / "own_rows.yaml").write_text(yaml.safe_dump({**TASK, "dataset_kwargs": data}))
    return path


@pytest.fixture(params=["sublayers", "weights"])
def pruned(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    input_ids: torch.Tensor,
) -> tuple[Path, PreTrainedModel]:
    """The folder of a pruned model, and the model in memory."""
    method = SublayerDrop(2, "both") if request.param == "sublayers" else Wanda(Unstructured(0.5))
    report = prunelit.prune(model, method, input_ids, progress=False)
    prunelit.save_pretrained(model, tokenizer, tmp_path / "pruned", report)
    return tmp_path / "pruned", model


@torch.no_grad()
def by_hand(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: list[dict[str, Any]]
) -> list[list[float]]:
    """Log-likelihood of every choice, one at a time."""
    result = []
    for row in rows:
        context = tokenizer(f"Question: {row['context']}\nAnswer:")["input_ids"]
        scores = []
        for choice in row["choices"]:
            ids = torch.tensor([*context, *tokenizer(f" {choice}")["input_ids"]])
            logs = model(input_ids=ids[None]).logits[0].double().log_softmax(-1)
            places = range(len(context), len(ids))
            scores.append(sum(logs[place - 1, ids[place]].item() for place in places))
        result.append(scores)
    return result


@needs_harness
def test_scores_are_those_of_the_model_in_memory(
    pruned: tuple[Path, PreTrainedModel],
    tokenizer: PreTrainedTokenizerBase,
    rows: list[dict[str, Any]],
    task: Path,
) -> None:
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    folder, model = pruned
    assert prunelit.lm_eval.register().__name__ == "PrunedLM"
    results = simple_evaluate(
        model="prunelit",
        model_args={"source": str(folder), "dtype": "float32"},
        batch_size=4,
        device="cpu",
        tasks=["own_rows"],
        task_manager=TaskManager(include_path=str(task), include_defaults=False),
        bootstrap_iters=0,
    )
    assert results is not None
    samples = sorted(results["samples"]["own_rows"], key=lambda sample: sample["doc_id"])
    found = [[float(answer[0]) for answer in sample["filtered_resps"]] for sample in samples]
    expected = by_hand(model, tokenizer, rows)
    for own, theirs in zip(found, expected, strict=True):
        assert own == pytest.approx(theirs, abs=1e-4)
    assert results["config"]["model_source"] == str(folder)
    stored, _ = prunelit.load_pretrained(str(folder))
    assert results["config"]["model_num_parameters"] == stored.num_parameters()


@needs_harness
@only_sublayers
def test_the_model_of_the_harness_lacks_the_sublayers_too(
    pruned: tuple[Path, PreTrainedModel], input_ids: torch.Tensor
) -> None:
    folder, model = pruned
    own = prunelit.lm_eval.register()(source=str(folder), device="cpu")
    with torch.no_grad():
        expected = model(input_ids=input_ids).logits
        assert torch.allclose(own._model_call(input_ids), expected, atol=1e-5)
        harness = AutoModelForCausalLM.from_pretrained(folder)  # what its `hf` calls
        assert torch.allclose(harness(input_ids=input_ids).logits, expected, atol=1e-5)


@needs_harness
def test_it_writes_what_the_model_writes(
    pruned: tuple[Path, PreTrainedModel], tokenizer: PreTrainedTokenizerBase
) -> None:
    from lm_eval.api.instance import Instance

    folder, model = pruned
    own = prunelit.lm_eval.register()(source=str(folder), device="cpu", batch_size=2)
    prompts = ["Question: 2 + 3 =\nAnswer:", "Snow is"]
    options = {"until": ["\n\n\n"], "max_gen_toks": 6, "do_sample": False}
    requests = [
        Instance("generate_until", {}, (prompt, options), index)
        for index, prompt in enumerate(prompts)
    ]
    for prompt, text in zip(prompts, own.generate_until(requests, disable_tqdm=True), strict=True):
        ids = tokenizer(prompt, return_tensors="pt").input_ids
        written = model.generate(ids, max_new_tokens=6, do_sample=False, pad_token_id=0)
        expected = tokenizer.decode(written[0, ids.shape[1] :], skip_special_tokens=True)
        assert text == expected


@needs_harness
@only_sublayers
def test_the_command(pruned: tuple[Path, PreTrainedModel], task: Path, tmp_path: Path) -> None:
    done = command(
        tmp_path,
        *("--model", "prunelit", "--model_args", f"source={pruned[0]},dtype=float32"),
        *("--include_path", str(task), "--tasks", "own_rows"),
        *("--batch_size", "4", "--output_path", "out"),
    )
    assert done.returncode == 0, done.stderr
    assert "own_rows" in done.stdout
    if not torch.cuda.is_available():  # the harness's own command asks for one
        assert "prunelit: no GPU found, using the CPU" in done.stderr
    (path,) = (tmp_path / "out").rglob("results_*.json")
    results = json.loads(path.read_text())
    assert results["config"]["model"] == "prunelit"
    assert results["n-samples"]["own_rows"]["effective"] == 7


@needs_harness
def test_a_wrong_source_is_one_sentence(tmp_path: Path, task: Path) -> None:
    done = command(
        tmp_path,
        *("--model", "prunelit", "--model_args", "source=./nowhere"),
        *("--include_path", str(task), "--tasks", "own_rows"),
    )
    assert done.returncode == 2
    assert "prunelit: error: Expected an existing file or folder but './nowhere'" in done.stderr
    assert "Traceback" not in done.stderr


@needs_harness
@only_sublayers
def test_several_processes_are_refused(
    pruned: tuple[Path, PreTrainedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="Expected a single process"):
        prunelit.lm_eval.register()(source=str(pruned[0]))


def test_without_the_harness_the_extra_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "lm_eval"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    again = functools.cache(prunelit.lm_eval.register.__wrapped__)
    monkeypatch.setattr(prunelit.lm_eval, "register", again)
    with pytest.raises(InputError, match="pip install 'prunelit\\[lm-eval\\]'"):
        prunelit.lm_eval.register()
    with pytest.raises(SystemExit) as left:
        prunelit.lm_eval.main()
    assert left.value.code == 2
    assert capsys.readouterr().err.startswith("prunelit: error: lm-evaluation-harness needs")


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (DatasetNotFoundError("Dataset 'a/b' doesn't exist on the Hub."), "Dataset 'a/b' doesn't"),
        (ConnectionError("Couldn't reach 'a/b' on the Hub"), "Couldn't reach 'a/b' on the Hub."),
    ],
)
def test_a_data_set_of_the_harness_that_the_hub_does_not_give(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: Exception,
    words: str,
) -> None:
    def fail() -> None:
        raise error

    monkeypatch.setattr(prunelit.lm_eval, "register", fail)
    with pytest.raises(SystemExit) as left:
        prunelit.lm_eval.main()
    assert left.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(
        f"prunelit: error: The harness cannot read a data set from the hub: {words}"
    )


def test_the_working_folder_hides_no_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])  # as `python -m` sets it
    for name in [name for name in sys.modules if name.split(".")[0] == "lm_eval"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.delitem(sys.modules, "prunelit.lm_eval")
    with pytest.raises(SystemExit, match="2"):
        runpy.run_module("prunelit.lm_eval", run_name="__main__")
    assert capsys.readouterr().err.startswith("prunelit: error: lm-evaluation-harness needs")
    assert sys.path[-1] == str(tmp_path)
    assert sys.path.count(str(tmp_path)) == 1


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({}, "Expected `source` in --model_args"),
        ({"dtype": "float8"}, "Expected `dtype` as one of .* but got 'float8'"),
        ({"device": "gpu"}, "Expected `device` as cpu or cuda:NUMBER but got 'gpu'"),
        ({"device": 7.5}, "Expected `device` as cpu or cuda:NUMBER but got 7.5"),
        ({"max_lenght": 3}, "has no argument 'max_lenght': did you mean one of max_length"),
        ({"batch_size": "many"}, "Expected `batch_size`"),
    ],
)
def test_wrong_arguments_are_one_sentence(
    arguments: dict[str, Any], reason: str, material: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class HFLM:
        """The harness's class as far as its arguments; the harness is an extra."""

        def __init__(self, pretrained, max_length=None, batch_size=1, **kwargs) -> None:
            raise AssertionError("wrong arguments must not come here")

    parts = {"lm_eval.models.huggingface": {"HFLM": HFLM}}
    parts["lm_eval.api.registry"] = {"register_model": lambda name: lambda cls: cls}
    monkeypatch.setattr(prunelit.lm_eval, "_harness", lambda name: SimpleNamespace(**parts[name]))
    known = prunelit.lm_eval.register.__wrapped__()
    source = {"source": str(material / "dense")} if arguments else {}
    with pytest.raises(InputError, match=reason):
        known(**{**source, **arguments})


def command(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "prunelit.lm_eval", *arguments],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
