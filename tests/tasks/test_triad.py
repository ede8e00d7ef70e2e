"""Any multiple-choice rows read three ways by one switch."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonargparse
import pytest
import yaml
from transformers import PreTrainedTokenizerBase

from prunelit import InputError
from prunelit.core.datamodule import PruneData
from prunelit.report.results import read_results
from prunelit.tasks import Generation, MultipleChoice, Perplexity, Retrieval, Task

ROWS = json.loads(
    (Path(__file__).parents[1] / "golden" / "lm_eval" / "hub_rows.json").read_text(encoding="utf-8")
)
FOLDER = Path(__file__).parents[2] / "configs" / "tasks"
CHOICES = [
    path
    for path in sorted(FOLDER.glob("*.yaml"))
    if "MultipleChoice" in path.read_text(encoding="utf-8")
]


@pytest.fixture
def of_file(tmp_path: Path) -> Callable[[Path], MultipleChoice]:
    """The task of a shipped file, with rows in the form of the hub."""

    def load(path: Path) -> MultipleChoice:
        name = next(name for name in ROWS if name.startswith(path.stem))
        own = tmp_path / f"{path.stem}.jsonl"
        own.write_text("".join(json.dumps(row) + "\n" for row in ROWS[name]), encoding="utf-8")
        parser = jsonargparse.ArgumentParser(exit_on_error=False)
        parser.add_argument("--task", type=Task)
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
        config["init_args"] |= {"path": str(own)}
        config["init_args"].pop("few_shot", None)
        return parser.instantiate(parser.parse_object({"task": config})).task

    return load


@pytest.mark.parametrize("path", CHOICES, ids=lambda path: path.stem)
def test_every_shipped_file_gains_its_uses(
    path: Path, of_file: Callable[[Path], MultipleChoice], tokenizer: PreTrainedTokenizerBase
) -> None:
    task = of_file(path)
    data = PruneData(tasks=[task], triad=True)
    assert list(data.tasks) == [task.name, f"{task.name}_retrieval", f"{task.name}_generation"]
    data.prepare(tokenizer)
    _, retrieval, generation = data.tasks.values()
    assert isinstance(retrieval, Retrieval)
    assert isinstance(generation, Generation)
    questions = task._questions
    assert retrieval._questions == questions
    examples = generation._examples
    assert [(e.context, e.target) for e in examples] == [(q.context, q.answer) for q in questions]
    prompt = generation._prompt(0)
    assert questions[0].context in prompt
    # The choices are not given away.
    assert not any(f". {choice}" in prompt for choice in questions[0].choices)


def test_the_template_is_the_task_s_own_where_it_scores_choices(material: Path) -> None:
    path = str(material / "questions.jsonl")
    own = MultipleChoice(path, template="Q: {context}\nA:")
    letters = MultipleChoice(path, template="{context}\n{choices}\nA:", scoring="letter", name="l")
    data = PruneData(tasks=[own, letters], triad=True)
    assert data.tasks["multiple_choice_generation"].template == "Q: {context}\nA:"
    assert data.tasks["l_generation"].template == "Question: {context}\nAnswer:"


def test_without_multiple_choice_there_is_nothing_to_read(material: Path) -> None:
    with pytest.raises(InputError, match="Expected a `MultipleChoice` task with `triad`"):
        PruneData(tasks=[Perplexity(str(material / "text.jsonl"))], triad=True)


def test_the_headline_is_the_last_thing_printed(
    tmp_path: Path,
    make_config: Callable[[Path], dict[str, Any]],
    save_config: Callable[..., Path],
    forked: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    config = make_config(tmp_path)
    config["data"]["tasks"] = [
        task for task in config["data"]["tasks"] if task["class_path"].endswith("MultipleChoice")
    ]
    save_config(tmp_path, config)
    options = ("--data.triad", "true", "--verbose")
    done = forked(tmp_path, "validate", "--config", "config.yaml", *options)
    assert done.returncode == 0, done.stderr
    (path,) = tmp_path.rglob("results.jsonl")
    rows = [row for row in read_results(path) if row.metric == "retained"]
    assert [row.details["use"] for row in rows] == [*("multiple choice", "retrieval", "generation")]
    assert {row.n for row in rows} == {7}
    assert (path.parent / "figures" / "retained.png").read_bytes().startswith(b"\x89PNG")
    last = done.stdout.rindex("Verdicts: share of")
    assert "Dense against pruned" not in done.stdout[last:]
    assert "questions.jsonl" in done.stdout[last:]
    verdict, page = done.stdout.rstrip().splitlines()[-2:]
    assert verdict.endswith(").")
    assert page == f"Page: {path.parent / 'report.html'}"
