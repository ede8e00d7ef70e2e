"""Whole runs whose model, text and shipped tasks come from the hub by their names."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from prunelit import read_results

from .conftest import jsonl, parquet
from .server import Files, Hub

Ask = Callable[..., Any]
TASKS = Path(__file__).parents[2] / "configs" / "tasks"

# Rows in the schema that each data set has on the hub.
ARC = [
    {
        "id": f"q{number}",
        "question": f"Which of these is number {number}?",
        "choices": {"text": ["one", "two", "three", "four"], "label": ["A", "B", "C", "D"]},
        "answerKey": "ABCD"[number - 1],
    }
    for number in (1, 2, 3)
]
LAMBADA = [{"text": f"The cat sat by the door and the dog sat by the {w}"} for w in ("cat", "door")]
STSB = [
    {"sentence1": "A dog runs.", "sentence2": f"A {word}.", "score": score}
    for word, score in (("dog is running", 0.9), ("cat sleeps", 0.3), ("stone", 0.0))
]
WIKITEXT = [{"text": text} for text in ("", " = A title = \n", "", " A sentence of words . \n")]
LAYOUT = b"""---
configs:
- config_name: %s
  data_files:
  - split: %s
    path: %s
---
"""


@pytest.fixture
def commits(hub: Hub, model_files: Callable[..., Files], material: Path) -> dict[str, str]:
    """What a run needs, by name: the commit of each repository."""
    text = [json.loads(line) for line in (material / "text.jsonl").read_text().splitlines()]
    arc, test = "ARC-Easy/test-00000-of-00001.parquet", "data/test-00000-of-00001.parquet"
    lambada = "data/lambada_test.jsonl"
    sets: dict[str, Files] = {
        "allenai/ai2_arc": {
            "README.md": LAYOUT % (b"ARC-Easy", b"test", b"ARC-Easy/test-*"),
            arc: parquet(ARC),
        },
        "EleutherAI/lambada_openai": {
            "README.md": LAYOUT % (b"default", b"test", lambada.encode()),
            lambada: jsonl(LAMBADA),
        },
        "sentence-transformers/stsb": {test: parquet(STSB)},
        "Salesforce/wikitext": {
            "README.md": LAYOUT % (b"wikitext-2-raw-v1", b"test", b"wikitext-2-raw-v1/test-*"),
            "wikitext-2-raw-v1/test-00000-of-00001.parquet": parquet(WIKITEXT),
        },
        "tiny/text": {"train.parquet": parquet(text)},
    }
    found = {name: hub.add("datasets", name).commit(files, "main") for name, files in sets.items()}
    changed = {**sets["allenai/ai2_arc"], arc: parquet([{**row, "answerKey": "A"} for row in ARC])}
    found["fixed"] = hub.repositories["datasets", "allenai/ai2_arc"].commit(changed, "fixed")
    llama = hub.add("models", "tiny/llama")
    found["v1"] = llama.commit(model_files(2.0), "v1")
    return {**found, "tiny/llama": llama.commit(model_files(), "main")}


@pytest.fixture
def config(tmp_path: Path, make_config: Callable[[Path], dict[str, Any]]) -> Path:
    """A configuration that names the model and the text by their names on the hub."""
    config = make_config(tmp_path)
    config["model"]["source"] = "tiny/llama"
    config["data"]["calibration"]["path"] = "tiny/text"
    names = ("arc_easy", "lambada", "stsb")
    wikitext = yaml.safe_load((TASKS / "wikitext2.yaml").read_text())
    wikitext["init_args"]["length"] = 16  # the model is tiny
    config["data"]["tasks"] = [*(str(TASKS / f"{name}.yaml") for name in names), wikitext]
    config["trainer"]["logger"] = False
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def values(folder: Path) -> dict[tuple[str, ...], str]:
    return {
        (result.task, result.metric, result.model): repr(result.value)
        for result in read_results(folder / "results.jsonl")
    }


def test_shipped_tasks_by_their_names_and_again_offline(
    ask: Ask, hub: Hub, commits: dict[str, str], config: Path, tmp_path: Path
) -> None:
    done = ask("command", "fit", "--config", str(config))
    assert done.status == 0, done.err
    run = tmp_path / "run"
    report = json.loads((run / "pruned" / "pruning.json").read_text())
    assert report["recipe"]["model"]["source"] == "tiny/llama"
    assert report["recipe"]["model"]["version"] == {"commit": commits["tiny/llama"]}
    details = {result.task: result.details for result in read_results(run / "results.jsonl")}
    names = {
        "arc_easy": "allenai/ai2_arc",
        "lambada": "EleutherAI/lambada_openai",
        "stsb": "sentence-transformers/stsb",
        "wikitext2": "Salesforce/wikitext",
    }
    assert {task: one["path"] for task, one in details.items()} == names
    assert {task: one["commit"] for task, one in details.items()} == {
        task: commits[name] for task, name in names.items()
    }
    main = ("acc", "spearman", "perplexity")
    sizes = {r.task: r.n for r in read_results(run / "results.jsonl") if r.metric in main}
    assert sizes == {"arc_easy": 3, "lambada": 2, "stsb": 3, "wikitext2": 2}
    found = values(run)

    hub.asked.clear()
    again = ask("command", "validate", "--config", str(config), offline=True)
    assert again.status == 0, again.err
    assert values(run) == found
    assert hub.asked == []

    # Another revision has other answers, and one of the model is another recipe.
    options = ("--data.tasks", f"[{TASKS / 'arc_easy.yaml'}]", "--data.tasks.path")
    options += ("allenai/ai2_arc@fixed", "--model.revision", "v1")
    other = ask("command", "validate", "--config", str(config), *options)
    assert other.status == 0, other.err
    assert f"(model.version.commit: {commits['v1']} now, {commits['tiny/llama']} there)" in (
        other.err
    )
    for result in read_results(run / "results.jsonl"):
        assert result.details["path"] == "allenai/ai2_arc@fixed"
        assert result.details["commit"] == commits["fixed"]
        assert result.details["rows_sha256"] != details["arc_easy"]["rows_sha256"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--model.revision", "v9"), "it has no revision 'v9'"),
        (("--data.calibration.path", "tiny/gone"), "there is no data set of this name, or it is"),
    ],
)
def test_a_refusal_is_one_sentence_before_any_work(
    ask: Ask,
    commits: dict[str, str],
    config: Path,
    tmp_path: Path,
    options: tuple[str, str],
    words: str,
) -> None:
    done = ask("command", "fit", "--config", str(config), *options)
    assert words in done.sentence
    assert "Achieved sparsity" not in done.out
    assert not (tmp_path / "run" / "pruned").exists()
