"""Which task measures a file, and the files that none can."""

from collections.abc import Callable
from typing import Any

import pytest

from prunelit import InputError
from prunelit import tasks as known_tasks
from prunelit.core.new.plans import plan_answer, plan_classify, plan_search

Write = Callable[[str, Any], str]
QUESTIONS = [
    {"question": "What floats?", "a": "a stone", "b": "a cork", "answer": "B"},
    {"question": "What is warm?", "a": "the sun", "b": "ice", "answer": "A"},
]


def read(plan: Any) -> Any:
    """The task, after it has read its file."""
    task = getattr(known_tasks, plan.task)(**plan.arguments)
    task.read()
    return task


@pytest.mark.parametrize("kind", ["csv", "tsv", "json", "jsonl", "parquet"])
def test_texts_with_a_label(write: Write, labelled: list[dict[str, Any]], kind: str) -> None:
    path = write(f"intents.{kind}", labelled)
    plan = plan_classify(path, path, "intents")
    assert (plan.task, plan.use) == ("Classification", "classification")
    assert (plan.arguments["text"], plan.arguments["label"]) == ("Message", "Intent")
    assert plan.count == "6 texts to train on, 6 to test"
    assert len(read(plan)._test) == 6
    assert not plan.warnings


def test_a_folder_of_training_and_test(write: Write, labelled: list[dict[str, Any]]) -> None:
    write("intents/train.csv", labelled[:8])
    write("intents/test.csv", [labelled[0], *labelled[8:]])
    plan = plan_classify("intents", "intents", "intents")
    assert plan.arguments["train"] == "intents/train.csv"
    assert plan.arguments["path"] == "intents/test.csv"
    assert "1 test texts are training texts" in plan.warnings[0]
    write("intents/test.jsonl", labelled)
    with pytest.raises(InputError, match=r"Expected one file `test` .* but found .*test.csv"):
        plan_classify("intents", "intents", "intents")


@pytest.mark.parametrize(
    ("rows", "way"),
    [
        (QUESTIONS, "a letter"),
        ([{**r, "answer": n} for r, n in zip(QUESTIONS, (1, 0), strict=True)], "a number from 0"),
        (
            [{**r, "answer": t} for r, t in zip(QUESTIONS, ("a cork", "the sun"), strict=True)],
            "the text of a choice",
        ),
    ],
)
def test_questions_with_choices_serve_three_uses(write: Write, rows: Any, way: str) -> None:
    path = write("questions.csv", rows)
    columns = {"context": "question", "choices": ["a", "b"], "label": "answer"}
    for plan_file, task in (
        (plan_classify, "MultipleChoice"),
        (plan_answer, "Generation"),
        (plan_search, "Retrieval"),
    ):
        plan = plan_file(path, path, "questions")
        assert plan.task == task
        assert plan.arguments["columns"] == columns
        assert plan.read.endswith(f"'answer' the right one as {way}")
        read(plan)


def test_a_list_of_choices_with_ids_needs_no_columns(write: Write) -> None:
    rows = [{"id": "x", "context": "A?", "choices": ["b", "c"], "label": 1}]
    plan = plan_classify(write("rows.json", rows), "rows.json", "rows")
    assert "columns" not in plan.arguments
    assert read(plan)._questions[0].answer == "c"
    in_cells = 'Question,Options,Answer\nA?,"[""b"", ""c""]",c\n'
    plan = plan_classify(write("cells.csv", in_cells), "cells.csv", "cells")
    assert plan.arguments["columns"]["choices"] == "Options"
    assert read(plan)._questions[0].answer == "c"


def test_labels_that_may_begin_with_1_are_told(write: Write) -> None:
    text = "q,choice_1,choice_2,choice_3,label\nQ1?,x,y,z,1\nQ2?,x,y,u,2"
    (warning,) = plan_classify(write("one.csv", text), "one.csv", "one").warnings
    assert warning.startswith("one: no label is 0, but labels are read as numbers from 0.")
    zero = write("zero.csv", text + "\nQ?,x,y,z,0")
    assert not plan_answer(zero, zero, "zero").warnings


def test_questions_with_an_answer(write: Write) -> None:
    path = write("qa.jsonl", [{"Input": "2 + 2?", "Output": "four"}])
    plan = plan_answer(path, path, "qa")
    assert plan.arguments["columns"] == {"context": "Input", "target": "Output"}
    assert read(plan).contexts == ["2 + 2?"]
    long = write("long.jsonl", [{"question": "Why?", "answer": "x" * 300}])
    assert plan_answer(long, long, "l").arguments["max_new_tokens"] == 160


def test_a_collection(collection: str) -> None:
    plan = plan_search(collection, collection, "tickets")
    assert plan.arguments["split"] == "dev"
    assert plan.count == "4 queries, 4 documents"
    assert len(plan.texts) == 4
    read(plan)


def test_one_answer_for_nearly_all_rows_is_told(write: Write) -> None:
    rows = [{"text": f"t{n}", "label": "yes" if n else "no"} for n in range(18)]
    rows += [{"text": "t", "label": "no"}]
    path = write("skewed.csv", rows)
    assert not plan_classify(path, path, "skewed").warnings  # 17 of 19
    more = [*rows, *({"text": f"u{n}", "label": "yes"} for n in range(9))]
    (warning,) = plan_classify(write("more.csv", more), "more.csv", "more").warnings
    assert warning.startswith("more: the label 'yes' is right for 26 of 28 rows.")
    first = [{**QUESTIONS[1], "question": f"Q{n}?", "b": f"ice {n}"} for n in range(9)]
    (warning,) = plan_answer(write("first.csv", first), "first.csv", "first").warnings
    assert warning.startswith("first: the choice 'number 1' is right for 9 of 9 rows.")


@pytest.mark.parametrize(
    ("plan", "name", "rows", "message"),
    [
        (plan_classify, "x.csv", [{"foo": 1, "bar": 2}], "and `label`.*'foo', 'bar': rename"),
        (plan_answer, "x.csv", [{"question": "a?"}], "`question` and `answer`"),
        (plan_answer, "x.csv", "question;foo\na;b\n", "its columns are 'question', 'foo': rename"),
        (plan_answer, "x.jsonl", [{"question": "a?", "answer": ["b"]}], "Row 0 .*`answer` must be"),
        (plan_answer, "x.jsonl", [{"question": "a?", "answer": None}], "Row 0 .*`answer` must be"),
        (plan_search, "x.csv", [{"question": "a?", "answer": "b"}], "a folder with corpus, quer"),
        (plan_classify, "x.csv", [{"text": "a", "label": "b"}], "at least two labels"),
        (
            plan_classify,
            "x.csv",
            [*({"text": "a", "label": "b"} for _ in range(3)), {"text": "a", "label": "c"}],
            "Row 3 .*only row with the label 'c'",
        ),
        (plan_classify, "x.csv", [{**QUESTIONS[0], "answer": "Z"}], "Row 0 .*expected `answer` in"),
        (plan_classify, "x.jsonl", [{**QUESTIONS[0], "b": ""}], "Row 0 .*`choices` must be a list"),
        (plan_classify, "x.csv", "", "it is empty"),
        (plan_classify, "x.xlsx", "a", "Expected a file ending in"),
    ],
)  # fmt: skip
def test_files_that_fit_no_task(
    write: Write, plan: Any, name: str, rows: Any, message: str
) -> None:
    path = write(name, rows)
    with pytest.raises(InputError, match=message) as caught:
        plan(path, path, "x")
    assert len(str(caught.value).split(". ")) <= 2


def test_a_name_on_the_hub_is_to_be_downloaded(write: Write) -> None:
    write("tickets/x.csv", "a")
    with pytest.raises(InputError) as caught:
        plan_search("org/name@v1", "org/name@v1", "x")
    assert str(caught.value) == (
        "Expected a file or a folder on this machine but got 'org/name@v1': of a data set on the "
        "hub, run `hf download org/name --repo-type dataset --local-dir .` and name its file."
    )
    with pytest.raises(InputError, match=r"but got 'ticket' \(similar: '.*tickets'\): of a data"):
        plan_search("ticket", "ticket", "x")


def test_cells_may_be_separated_by_semicolons(write: Write) -> None:
    path = write("qa.csv", '\ufeffquestion;answer\n"a; or b?";1,5\n')
    assert read(plan_answer(path, path, "qa"))._examples[0].target == "1,5"
