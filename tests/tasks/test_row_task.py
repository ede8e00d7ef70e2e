"""Options that several tasks share are declared once, and every task has them."""

import json
from pathlib import Path
from typing import Any

import pytest
from jsonargparse import ArgumentParser

from prunelit import InputError
from prunelit.recipe import describe
from prunelit.tasks import (
    CollectionRetrieval,
    Generation,
    MultipleChoice,
    Perplexity,
    Retrieval,
    Routing,
    SemanticSimilarity,
    Task,
    Trajectory,
    Transitions,
)

ROWS = {"path", "split", "limit", "batch_size", "name"}
QUESTIONS = ROWS | {"subset", "format", "columns"}
EMBEDDINGS = {"pooling", "skip", "layer", "length"}
ROWS_OF: dict[type[Task], str] = {
    Perplexity: "_documents",
    Trajectory: "contexts",
    MultipleChoice: "_questions",
    SemanticSimilarity: "_rows",
}
PROMPTS = {"template", "chat", "max_new_tokens"}


@pytest.mark.parametrize(
    ("task", "options"),
    [
        (MultipleChoice, QUESTIONS | {"few_shot", "primary"}),
        (Generation, QUESTIONS | PROMPTS | {"few_shot", "judge"}),
        (Retrieval, QUESTIONS | EMBEDDINGS | {"query_template", "document_template"}),
        (CollectionRetrieval, ROWS | EMBEDDINGS | {"query_template", "document_template"}),
        (SemanticSimilarity, ROWS | EMBEDDINGS | {"subset", "template"}),
        (Trajectory, ROWS | PROMPTS | {"column"}),
        (Transitions, ROWS | PROMPTS | {"column"}),
        (Routing, ROWS | PROMPTS | {"column"}),
    ],
)
def test_every_option_is_on_the_command_line_with_its_help(
    task: type[Task], options: set[str]
) -> None:
    parser = ArgumentParser()
    parser.add_class_arguments(task, "task")
    found = {action.dest.removeprefix("task."): action.help for action in parser._actions}
    assert options <= set(found)
    assert all(found[name] for name in options)


def test_generation_has_no_column() -> None:
    parser = ArgumentParser()
    parser.add_class_arguments(Generation, "task")
    assert "task.column" not in {action.dest for action in parser._actions}


def test_a_recipe_has_the_options_of_the_bases() -> None:
    task = Retrieval("rows.jsonl", split="test", subset="easy", pooling="mean", skip=1)
    arguments = describe(task)["init_args"]
    assert arguments["path"] == "rows.jsonl"
    assert (arguments["split"], arguments["subset"]) == ("test", "easy")
    assert (arguments["pooling"], arguments["skip"], arguments["layer"]) == ("mean", 1, None)


@pytest.mark.parametrize("limit", [0, -1, 2.5, True, "3"])
@pytest.mark.parametrize("task", [MultipleChoice, CollectionRetrieval, Perplexity])
def test_a_limit_is_a_number_of_rows(task: type[Task], limit: Any) -> None:
    with pytest.raises(InputError, match=r"Expected `limit` .*of at least 1 but got"):
        task("rows.jsonl", limit=limit)  # type: ignore[call-arg, arg-type]


@pytest.mark.parametrize("kind", [Perplexity, Trajectory, MultipleChoice, SemanticSimilarity])
def test_a_local_file_is_one_split_in_every_task(tmp_path: Path, kind: Any) -> None:
    rows = [
        {"id": n, "text": "a", "context": f"c{n}", "choices": ["x", "y"], "label": 0}
        | {"sentence1": "a", "sentence2": f"b{n}", "score": n}
        for n in range(8)
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    read = []
    for split in ("train[4:]", "test[4:]", "dev-clean[50%:]"):
        task = kind(str(path), split=split)
        task.read()
        read.append(task.__dict__[ROWS_OF[kind]])
    assert len(read[0]) == 4
    assert read[0] == read[1] == read[2]


def test_an_unknown_option_is_an_error() -> None:
    with pytest.raises(TypeError, match="candidate_template"):
        Retrieval("rows.jsonl", candidate_template="{text}")
