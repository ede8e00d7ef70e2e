"""A candidate takes the place of the pruned model; `tests/test_compare.py` runs the command."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

from prunelit import InputError, prune, read_items, save_pretrained
from prunelit.callbacks import Results
from prunelit.core.candidate import tell_models
from prunelit.core.datamodule import PruneData
from prunelit.core.module import PairedLM
from prunelit.core.resume import recipe_of
from prunelit.core.weights import Weights
from prunelit.pruners import BlockDrop
from prunelit.report.results import Result
from prunelit.tasks import (
    Deviation,
    Distribution,
    Generation,
    MultipleChoice,
    Perplexity,
    Retrieval,
    SemanticSimilarity,
    Subspace,
    Task,
    Trajectory,
    Transitions,
)
from prunelit.trainer import PruneTrainer

MakeTrainer = Callable[..., PruneTrainer]


@pytest.fixture
def make_folder(
    tmp_path: Path, material: Path, tokenizer: PreTrainedTokenizerFast
) -> Callable[..., str]:
    """`make_folder(**sizes)` saves a tiny Llama of other sizes than the dense one."""

    def make(own: PreTrainedTokenizerFast = tokenizer, **sizes: Any) -> str:
        dense = LlamaConfig.from_pretrained(material / "dense").to_dict()
        torch.manual_seed(5)
        model = AutoModelForCausalLM.from_config(LlamaConfig(**{**dense, **sizes}))
        folder = tmp_path / "candidate"
        model.save_pretrained(folder)
        own.save_pretrained(folder)
        return str(folder)

    return make


@pytest.fixture
def compare(material: Path, make_trainer: MakeTrainer) -> Callable[..., list[Result]]:
    def run(candidate: str, *tasks: Task, **options: Any) -> list[Result]:
        module = PairedLM(str(material / "dense"), candidate=candidate, **options)
        make_trainer().compare(module, PruneData(None, list(tasks)))
        return module.results

    return run


def on_text(material: Path, kind: type[Task], **options: Any) -> Any:
    return kind(str(material / "text.jsonl"), length=12, limit=3, **options)


def on_questions(material: Path, kind: type[Task], **options: Any) -> Any:
    return kind(str(material / "questions.jsonl"), **options)


def test_the_dense_model_itself_differs_by_exactly_0(
    material: Path, compare: Callable[..., list[Result]]
) -> None:
    tasks = [
        on_text(material, Deviation),
        on_text(material, Perplexity),
        on_questions(material, MultipleChoice),
        on_questions(material, Retrieval),
    ]
    results = compare(str(material / "dense"), *tasks)
    differences = [result for result in results if result.model == "difference"]
    assert {result.task for result in differences} == {task.name for task in tasks[1:]}
    assert all(result.value == 0 for result in differences)
    distances = {r.metric: r.value for r in results if r.task == "deviation"}
    assert distances["kl_dense_pruned"] == distances["logit_mse"] == 0
    assert distances["embedding_cosine"] == distances["top1_agreement"] == 1


def test_a_narrow_and_shallow_model_is_compared_without_its_embeddings(
    material: Path,
    make_folder: Callable[..., str],
    compare: Callable[..., list[Result]],
    caplog: Any,
) -> None:
    candidate = make_folder(hidden_size=16, num_hidden_layers=2, tie_word_embeddings=False)
    columns = {"first": "context", "second": "id", "score": "label"}
    similarity = SemanticSimilarity(str(material / "questions.jsonl"), **columns)
    tasks = [
        on_text(material, Deviation),
        on_text(material, Distribution, floor=False),
        on_questions(material, MultipleChoice),
        on_questions(material, Retrieval),
        similarity,
    ]
    with caplog.at_level("INFO"):
        results = compare(candidate, *tasks)
    found = {(result.task, result.metric) for result in results}
    assert {("deviation", "kl_dense_pruned"), ("distribution", "kl_dense_pruned")} <= found
    assert {("multiple_choice", "acc"), ("retrieval", "mrr")} <= found
    assert not any("embedding" in metric for task, metric in found if task == "deviation")
    assert ("similarity", "spearman") in found
    assert ("similarity", "embedding_cosine") not in found
    assert "have 32 numbers in" in caplog.text
    assert "and 16 in" in caplog.text


@pytest.mark.parametrize(
    ("sizes", "kind", "words"),
    [
        ({"hidden_size": 16}, Trajectory, r"\['trajectory'\] .*`hidden_size` .* 32 and .* 16"),
        ({"hidden_size": 16}, Subspace, r"\['subspace'\] .*`hidden_size` .* 32 and .* 16"),
        (
            {"num_hidden_layers": 2},
            Transitions,
            r"\['transitions'\] .*`num_hidden_layers` .* 3",
        ),
        ({"vocab_size": 320}, Subspace, r"\['subspace'\] .*`vocab_size` .* 300 and .* 320"),
        ({"num_hidden_layers": 2}, Retrieval, r"\['retrieval'\] .*`num_hidden_layers` .* 3"),
    ],
)
def test_a_task_that_needs_equal_sizes_is_named_before_weights_are_read(
    material: Path,
    make_folder: Callable[..., str],
    compare: Callable[..., list[Result]],
    sizes: dict[str, int],
    kind: type[Task],
    words: str,
) -> None:
    candidate = make_folder(**sizes)
    Path(candidate, "model.safetensors").unlink()  # it would be an error of its own
    options = {"layer": 2} if kind is Retrieval else {}
    with pytest.raises(InputError, match=f"The tasks {words}.*leave these tasks out"):
        compare(candidate, on_questions(material, kind, **options))


def test_texts_that_are_too_long_for_the_candidate_alone(
    material: Path, make_folder: Callable[..., str], compare: Callable[..., list[Result]]
) -> None:
    candidate = make_folder(max_position_embeddings=8)
    with pytest.raises(InputError, match=r"at most 8 tokens.*'perplexity', for '.*candidate'"):
        compare(candidate, on_text(material, Perplexity))


@pytest.fixture
def renamed(material: Path, tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> str:
    """The dense model with its tokens in another order: it says the same of every text."""
    dense = AutoModelForCausalLM.from_pretrained(material / "dense")
    rows = dense.get_input_embeddings().weight
    with torch.no_grad():
        rows[1:257] = rows[1:257].flip(0)
    inner = json.loads(tokenizer.backend_tokenizer.to_str())
    names = {token: 257 - number for token, number in inner["model"]["vocab"].items() if number}
    inner["model"]["vocab"] = {"<end>": 0, **names}
    other = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(inner)),
        eos_token="<end>",
        pad_token="<end>",
        chat_template=tokenizer.chat_template,
    )
    dense.save_pretrained(tmp_path / "renamed")
    other.save_pretrained(tmp_path / "renamed")
    return str(tmp_path / "renamed")


def test_each_model_reads_texts_by_its_own_tokenizer(
    material: Path, renamed: str, make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    columns = {"first": "context", "second": "id", "score": "label"}
    tasks = [
        on_questions(material, MultipleChoice, batch_size=3, primary="acc_token_norm"),
        on_questions(material, Retrieval, batch_size=3),
        on_questions(material, Generation, batch_size=3, max_new_tokens=6),
        SemanticSimilarity(str(material / "questions.jsonl"), **columns),
    ]
    module = PairedLM(str(material / "dense"), candidate=renamed)
    make_trainer(callbacks=[Results()]).compare(module, PruneData(None, tasks))
    found = {(r.task, r.metric): r.value for r in module.results if r.model == "difference"}
    assert {task for task, _ in found} == {task.name for task in tasks}
    assert list(found.values()) == pytest.approx([0] * len(found), abs=1e-5)
    assert not any(result.metric in ("diverged", "first_divergence") for result in module.results)
    rows = read_items(tmp_path / "run" / "items" / "generation.parquet")
    assert len(rows) == 14
    texts = {
        name: [r["output"] for r in rows if r["model"] == name] for name in ("dense", "pruned")
    }
    assert texts["dense"] == texts["pruned"]
    assert len(set(texts["dense"])) > 1
    assert module.weights.identities()["candidate"]["tokenizer"] == "its own"


def test_an_interrupted_run_of_two_tokenizers_is_its_own(material: Path, renamed: str) -> None:
    data = PruneData(None, [on_questions(material, Generation)])
    weights = [Weights(str(material / "dense"), candidate=one) for one in (renamed, None)]
    recipes = []
    for one in weights:
        data.prepare(one.tokenizer, one.other_tokenizer)
        (task,) = data.tasks.values()
        recipes.append(recipe_of(task))
    assert recipes[0] != recipes[1]
    assert {**recipes[0], "candidate": None} == {**recipes[1], "candidate": None}
    assert recipes[0]["candidate"]["tokens_sha256"] != recipes[0]["tokens_sha256"]


def test_the_default_leaves_out_what_cannot_be_compared(
    material: Path, renamed: str, cli: Callable[..., None], capfd: Any, caplog: Any
) -> None:
    models = ("--model.source", str(material / "dense"), "--model.candidate", renamed)
    options = ("--model.reference", "false", "--trainer.logger", "false")
    with caplog.at_level("INFO"), pytest.raises(SystemExit) as left:
        cli("compare", *models, *options)  # refused later, since the questions are many
    assert left.value.code == 2
    words = "Left out of the default configuration: the tasks ['distribution'] compare"
    assert words in caplog.text
    assert "set `model.reference: true`" in capfd.readouterr().err


def test_another_vocabulary_is_refused(
    material: Path,
    make_folder: Callable[..., str],
    compare: Callable[..., list[Result]],
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    tokenizer.add_tokens(["<more>"])
    tasks = on_text(material, Perplexity), on_text(material, Deviation)
    words = r"The tasks \['perplexity', 'deviation'\] compare.*id 257 is no token.*'<more>' here"
    with pytest.raises(InputError, match=words):
        compare(make_folder(tokenizer), *tasks, on_questions(material, MultipleChoice))


def test_another_chat_template_is_said(
    material: Path,
    make_folder: Callable[..., str],
    compare: Callable[..., list[Result]],
    tokenizer: PreTrainedTokenizerFast,
    caplog: Any,
) -> None:
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    with caplog.at_level("INFO"):
        compare(make_folder(tokenizer), on_text(material, Perplexity))
    assert "has the same tokens but another chat template: both models get" in caplog.text


def test_what_a_candidate_is_not_for(material: Path, make_trainer: MakeTrainer) -> None:
    source = str(material / "dense")
    data = PruneData(None, [on_text(material, Perplexity)])
    with pytest.raises(InputError, match=r"Expected `model.candidate`, the model to compare"):
        make_trainer().compare(PairedLM(source), data)
    with pytest.raises(InputError, match="at least one task to compare the two models on"):
        make_trainer().compare(PairedLM(source, candidate=source), PruneData())
    with pytest.raises(InputError, match="no training and no `fit` with the candidate"):
        make_trainer().fit(PairedLM(source, candidate=source), data)
    with pytest.raises(InputError, match="no training and no `fit` with the candidate"):
        make_trainer(max_epochs=1).compare(PairedLM(source, candidate=source), data)
    with pytest.raises(InputError, match=r"set `model.reference: true`"):
        make_trainer().compare(PairedLM(source, candidate=source, reference=False), data)
    with pytest.raises(InputError, match="Expected `candidate` with `candidate_revision` 'main'"):
        PairedLM(source, candidate_revision="main")
    with pytest.raises(InputError, match=r"'nowhere\.gguf' does not exist"):
        make_trainer().compare(PairedLM(source, candidate="nowhere.gguf"), data)


def test_blocks_that_prunelit_removed_are_known(material: Path, tmp_path: Path) -> None:
    source, folder = str(material / "dense"), str(tmp_path / "pruned")
    dense = Weights(source)
    dense.load()
    ids = torch.arange(1, 21).view(2, 10)
    report = prune(dense.pair.pruned, BlockDrop(1), ids)
    save_pretrained(dense.pair.pruned, dense.tokenizer, folder, report)
    assert report.removed is not None
    weights = Weights(source, candidate=folder)
    weights.load()
    assert weights.pair.removed_blocks == report.removed["blocks"]
    assert not any(parameter.requires_grad for parameter in weights.pair.pruned.parameters())
    # The same folder on both sides: no block of the dense model is missing.
    both = Weights(folder, candidate=folder)
    assert list(both.removed_blocks) == []


def test_both_models_are_identified_by_content(material: Path, tmp_path: Path) -> None:
    copied = tmp_path / "copied"
    shutil.copytree(material / "dense", copied)
    weights = Weights(str(material / "dense"), dtype="bfloat16", candidate=str(copied))
    weights.load()
    found = weights.identities()
    assert found["dense"].pop("source") == str(material / "dense")
    assert found["candidate"].pop("source") == str(copied)
    assert found["candidate"].pop("tokenizer") == "that of the dense model"
    assert found["dense"] == found["candidate"]
    assert found["dense"]["dtype"] == "bfloat16"
    assert found["dense"]["content_by"] == "a sample of the weights"
    assert tell_models(weights.identities()).endswith("Both have the same content.")
    other = Weights(str(material / "dense"), full_hash=True, candidate=str(copied))
    other.load()
    assert other.identities()["candidate"]["content_by"] == "all weights"
    assert other.identities()["candidate"]["dtype"] == "float32"
