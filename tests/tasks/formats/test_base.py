"""Questions and examples from rows of any data set, and the rows that are refused."""

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from prunelit import InputError
from prunelit.data.local_files import Table
from prunelit.tasks.formats import arc, gsm8k, piqa, reads_columns
from prunelit.tasks.formats.base import Format, read_examples, read_questions
from prunelit.tasks.questions import Example, GroupedQuestion, Question

PLAIN = {"id": "a", "context": "1 + 1 =", "choices": ["1", "2"], "label": 1}
ARC = {
    "id": "q",
    "question": "2 + 3 =",
    "choices": {"text": ["4", "5"], "label": ["A", "B"]},
    "answerKey": "B",
}


def write(path: Path, *rows: dict[str, Any]) -> str:
    file = path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def test_rows_become_questions(material: Path) -> None:
    questions = read_questions(str(material / "questions.jsonl"), "train", None)
    assert [question.id for question in questions][:3] == ["capital", "snow", "japan"]
    assert [question.answer for question in questions] == [
        *("Paris", "white", "東京", "gold", "5", "cold", "honey")
    ]


def test_a_number_is_a_good_id(tmp_path: Path) -> None:
    (question,) = read_questions(write(tmp_path, {**PLAIN, "id": 17}), "train", None)
    assert question.id == "17"


def test_limit_and_split_choose_rows(material: Path) -> None:
    path = str(material / "questions.jsonl")
    assert [q.id for q in read_questions(path, "train", 2)] == ["capital", "snow"]
    assert [q.id for q in read_questions(path, "train[5:]", None)] == ["hot", "bees"]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"label": 2}, r"expected `label` in \[0, 2\) but got 2"),
        ({"label": -1}, r"expected `label` in \[0, 2\) but got -1"),
        ({"label": None}, r"expected `label` in \[0, 2\) but got None"),
        ({"context": " "}, "`context` must be a non-empty string"),
        ({"context": None}, "`context` must be a non-empty string"),
        (
            {"choices": ["1"], "label": 0},
            "`choices` must be a list of at least two non-empty",
        ),
        ({"choices": ["1", " "]}, "`choices` must be a list of at least two non-empty"),
        ({"choices": None}, "`choices` must be a list of at least two non-empty"),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, change: dict[str, Any], problem: str) -> None:
    path = write(tmp_path, PLAIN, {**PLAIN, "id": "b", **change})
    with pytest.raises(
        InputError, match=rf"Row 1 \(counted from 0, id 'b'\) of .*rows.jsonl': {problem}"
    ):
        read_questions(path, "train", None)


@pytest.mark.parametrize("label", [True, 0.5, [1], "one"])
def test_a_label_of_another_type_is_refused(tmp_path: Path, label: object) -> None:
    with pytest.raises(InputError, match=r"Row 0 .*expected `label` in \[0, 2\)"):
        read_questions(write(tmp_path, {**PLAIN, "label": label}), "train", None)


@pytest.mark.parametrize("label", [1, 1.0, "1.0", "B", "b"])
def test_a_label_is_an_index_or_a_letter(tmp_path: Path, label: object) -> None:
    path = write(tmp_path, {**PLAIN, "label": label})
    (found,) = read_questions(path, "train")
    assert (found.label, found.answer) == (1, "2")
    columns = {name: name for name in ("context", "choices", "label")}
    assert read_questions(path, "train", columns=columns) == [
        Question("0", "1 + 1 =", ["1", "2"], 1)
    ]


def test_a_row_without_an_id_gets_its_number(tmp_path: Path) -> None:
    rows = [{**PLAIN, "id": None}, {**PLAIN, "id": 0}, {**PLAIN, "id": " "}, {**PLAIN, "id": "x"}]
    path = write(tmp_path, *(rows[n] for n in (1, 0, 2, 3)))
    assert [question.id for question in read_questions(path, "train")] == ["0", "1", "2", "x"]
    bare = {key: value for key, value in ARC.items() if key != "id"}
    path = write(tmp_path, *({**bare, "id": name} for name in (None, 0, "q")))
    with pytest.warns(UserWarning, match="'0'"):  # the number of the first row, and an id
        found = read_questions(path, "train", format=arc)
    assert [question.id for question in found] == ["0", "0", "q"]
    with pytest.raises(InputError, match=r"^Row 1 .counted from 0. of '.*': expected `label`"):
        read_questions(write(tmp_path, PLAIN, {**PLAIN, "id": None, "label": 9}), "train")


def test_an_id_of_several_rows_is_named(tmp_path: Path) -> None:
    path = write(tmp_path, *({**PLAIN, "id": name} for name in ("a", "b", "a", "c", "c")))
    with pytest.warns(UserWarning, match=r"^2 ids of '.*' are not unique: the rows 0 and 2 .* 'a'"):
        assert len(read_questions(path, "train")) == 5


CSV = {
    "list": "id,context,choices,label\n"
    '007,Which?,"[""oak"", ""it\'s, elm""]",1\n'
    "8,\"Two\nlines?\",\"['oak', 'fir', 'ash']\",0\n",
    "columns": "id,context,A,B,C,label\n"
    '007,Which?,oak,"it\'s, elm",,B\n'
    '8,"Two\nlines?",oak,fir,ash,A\n',
}
EXPECTED = [
    Question("007", "Which?", ["oak", "it's, elm"], 1),
    Question("8", "Two\nlines?", ["oak", "fir", "ash"], 0),
]


@pytest.mark.parametrize("ending", ["csv", "tsv", "CSV"])
@pytest.mark.parametrize("form", list(CSV))
def test_tables_of_questions(tmp_path: Path, form: str, ending: str) -> None:
    text = io.StringIO()
    delimiter = "\t" if ending == "tsv" else ","
    csv.writer(text, delimiter=delimiter).writerows(csv.reader(io.StringIO(CSV[form], newline="")))
    path = tmp_path / f"rows.{ending}"
    path.write_text(text.getvalue(), newline="")
    names: dict[str, str | list[str]] = {n: n for n in ("id", "context", "choices", "label")}
    if form == "list":
        assert read_questions(str(path), "test") == EXPECTED
    else:
        names["choices"] = ["A", "B", "C"]
    assert read_questions(str(path), "test", columns=names) == EXPECTED


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (
            "q,a,b,c,label\nx,oak,,fir,0\n",
            r"Row 0 .counted from 0. of .*`choices` must be a list of at least two",
        ),
        (
            "q,a,b,c,label\nx,oak,elm,,0\nx,oak,elm,,C\n",
            r"Row 1 .counted from 0. of .* from A to B or .* got 'C'",
        ),
        (
            "q,a,b,c,label\nx,oak,elm,,0\nx,oak,elm,,first\n",
            r"Row 1 .counted from 0. of .* but got 'first'",
        ),
        ("q,a,b,c,label\n,oak,elm,,0\n", r"Row 0 .*`context` .* .`context` is .* column 'q'"),
        ("q,a,b,label\nx,oak,elm,0\n", r"has no column 'c'\. Its columns are"),
    ],
)
def test_tables_that_are_refused(tmp_path: Path, table: str, message: str) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(table)
    columns: Any = {"context": "q", "choices": ["a", "b", "c"], "label": "label"}
    with pytest.raises(InputError, match=message):
        read_questions(str(path), "train", columns=columns)


def test_each_choice_has_its_own_column() -> None:
    columns: Any = {"context": "q", "choices": ["a", "b", "a"], "label": "l"}
    with pytest.raises(InputError, match="another column for each of the `choices`"):
        read_questions("prunelit:facts.jsonl", "train", columns=columns)


@pytest.mark.parametrize(("field", "names"), [("context", ["q", "r"]), ("choices", ["a"])])
def test_only_choices_have_several_columns(field: str, names: list[str]) -> None:
    columns: Any = {"context": "q", "choices": "o", "label": "l", field: names}
    with pytest.raises(
        InputError, match=rf"one column for `{field}`, or at least two for `choices`"
    ):
        read_questions("rows.jsonl", "train", columns=columns)


def test_choices_that_are_one_text_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="`choices` must be a list"):
        read_questions(write(tmp_path, {**PLAIN, "choices": "12"}), "train", None)


def test_plain_rows_are_questions_whatever_the_format(tmp_path: Path) -> None:
    path = write(tmp_path, PLAIN, {**PLAIN, "id": 7})
    for format in (None, arc):
        found = read_questions(path, "test", format=format)
        assert found == [
            Question("a", "1 + 1 =", ["1", "2"], 1),
            Question("7", "1 + 1 =", ["1", "2"], 1),
        ]


def test_a_group_is_kept(tmp_path: Path) -> None:
    (found,) = read_questions(write(tmp_path, {**PLAIN, "group": "sums"}), "train")
    assert found == GroupedQuestion("a", "1 + 1 =", ["1", "2"], 1, "sums")


def test_questions_with_columns_of_other_names(tmp_path: Path) -> None:
    row = {"q": "1 + 1 =", "options": ["1", "2"], "gold": 1, "topic": "sums", "more": 0}
    names = {"context": "q", "choices": "options", "label": "gold", "group": "topic"}
    (found,) = read_questions(write(tmp_path, row), "train", columns=names)
    assert found == GroupedQuestion("0", "1 + 1 =", ["1", "2"], 1, "sums")


def test_a_local_file_is_one_split_whatever_its_name(tmp_path: Path) -> None:
    path = write(tmp_path, *({**PLAIN, "id": i} for i in range(10)))
    assert len(read_questions(path, "validation")) == 10
    assert [q.id for q in read_questions(path, "test[80%:]")] == ["8", "9"]
    assert [q.id for q in read_questions(path, "test", 2)] == ["0", "1"]


def test_a_data_set_on_the_hub_is_asked_for_subset_and_split(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[Sequence[Any]] = []

    def load(path: str, subset: str | None, split: str) -> Table:
        asked.append((path, subset, split))
        return Table(list(ARC), lambda wanted: [{name: ARC[name] for name in wanted}])

    monkeypatch.setattr("prunelit.data.hub_rows.open_hub_table", load)
    read_questions("allenai/ai2_arc", "test", subset="ARC-Easy", format=arc)
    assert asked == [("allenai/ai2_arc", "ARC-Easy", "test")]


@pytest.mark.parametrize(
    ("format", "missing"),
    [(None, "choices"), (piqa, "sol1"), (arc, "answerKey")],
)
def test_a_missing_column_is_named(tmp_path: Path, format: Format | None, missing: str) -> None:
    with pytest.raises(InputError, match=rf"has no column .*'{missing}'.* Its columns"):
        read_questions(write(tmp_path, {"text": "x"}), "train", format=format)


def test_a_group_that_is_no_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        InputError,
        match=r"Row 0 \(counted from 0, id 'a'\) of .*: `group` must be a non-empty string",
    ):
        read_questions(write(tmp_path, {**PLAIN, "group": 3}), "train")


@pytest.mark.parametrize(
    "columns",
    [{"context": "q", "choices": "o"}, {"context": "q", "choices": "o", "label": "l", "x": "y"}],
)
def test_columns_that_cannot_make_a_question_are_refused(columns: dict[str, str]) -> None:
    with pytest.raises(InputError, match=r"the keys \['context', 'choices', 'label'\] and"):
        read_questions("rows.jsonl", "train", columns=columns)


def test_a_format_says_which_columns_it_reads(tmp_path: Path) -> None:
    def riddle(row: dict[str, Any]) -> Question:
        return Question("", row["text"], ["yes", "no"], 0)

    path = write(tmp_path, {"text": "x", "other": 1})
    with pytest.raises(InputError, match=r"Expected the format 'riddle' to declare its columns"):
        read_questions(path, "train", format=riddle)
    assert read_questions(path, "train", format=reads_columns("text")(riddle))[0].context == "x"


def read(one: Example | Question) -> tuple[str, str, str]:
    return one.context, one.target, one.solution


def test_questions_for_generation_with_their_format(tmp_path: Path) -> None:
    choices = {"text": ["4", "5"], "label": ["A", "B"]}
    row = {"id": "q", "question": "2 + 3 =", "choices": choices, "answerKey": "B"}
    path = write(tmp_path, row)
    found = read_examples(path, "test", format=arc, questions=True)
    assert [read(one) for one in found] == [("2 + 3 =", "5", "5")]


def test_questions_for_generation_with_columns_of_other_names(tmp_path: Path) -> None:
    path = write(tmp_path, {"q": "2 + 3 =", "options": ["4", "5"], "right": 1})
    columns = {"context": "q", "choices": "options", "label": "right"}
    found = read_examples(path, "test", columns=columns, questions=True)
    assert [read(one) for one in found] == [("2 + 3 =", "5", "5")]


def test_rows_of_a_local_file_whatever_the_name_of_its_split(tmp_path: Path) -> None:
    rows = [{"question": f"q{n}", "answer": f"#### {n}", "more": n} for n in range(5)]
    path = write(tmp_path, *rows)
    examples = read_examples(path, "test", format=gsm8k)
    assert [example.target for example in examples] == ["0", "1", "2", "3", "4"]
    assert read_examples(path, "test[:40%]", format=gsm8k) == examples[:2]
    assert read_examples(path, "test", 3, format=gsm8k) == examples[:3]


def test_multiple_choice_rows_need_no_format(material: Path) -> None:
    examples = read_examples(str(material / "questions.jsonl"), "train")
    assert read(examples[0]) == ("What is the capital of France?", "Paris", "Paris")


def test_examples_with_columns_of_other_names(tmp_path: Path) -> None:
    path = write(tmp_path, {"q": "Who?", "a": "Me."})
    columns = {"context": "q", "target": "a"}
    assert read_examples(path, "train", columns=columns) == [Example("Who?", "Me.", "Me.")]
    with pytest.raises(InputError, match=r"\['context', 'target'\] but its keys are \['context'\]"):
        read_examples(path, "train", columns={"context": "q"})


@reads_columns("q")
def broken(row: dict[str, Any]) -> Example:
    return Example(row["q"], row["q"]["answer"], "")


def undecorated(row: dict[str, Any]) -> Example:
    return Example("", "", "")


def test_bad_rows_are_named(tmp_path: Path) -> None:
    rows = [{"question": "q", "answer": "#### 1"}, {"question": " ", "answer": "#### 2"}]
    path = write(tmp_path, *rows)
    with pytest.raises(
        InputError,
        match=r"Row 1 .counted from 0. of '.*rows.jsonl': `question` must be a non-empty string\.",
    ):
        read_examples(path, "train", format=gsm8k)
    path = write(tmp_path, {"q": "text"})
    with pytest.raises(
        InputError, match=r"Row 0 .counted from 0. of .* the format 'broken' fails on it .TypeError"
    ):
        read_examples(path, "train", format=broken)
    with pytest.raises(InputError, match="'undecorated' to declare its columns"):
        read_examples(path, "train", format=undecorated)
    with pytest.raises(InputError, match=r"has no column 'answer', 'question'"):
        read_examples(path, "train", format=gsm8k)


def test_a_format_of_questions_has_to_be_named_as_one(tmp_path: Path) -> None:
    choices = {"text": ["4", "5"], "label": ["A", "B"]}
    row = {"id": "q", "question": "2 + 3 =", "choices": choices, "answerKey": "B"}
    path = write(tmp_path, row)
    with pytest.raises(InputError, match="set `questions: true`"):
        read_examples(path, "test", format=arc)
    path = write(tmp_path, {"question": "2 + 3 =", "answer": "#### 5"})
    with pytest.raises(InputError, match="to return a `Question` but it returned a `Example`"):
        read_examples(path, "test", format=gsm8k, questions=True)


def test_own_rows_need_no_ids(tmp_path: Path) -> None:
    rows = [{"context": "1 + 1 =", "choices": ["1", "2"], "label": "B"} for _ in range(2)]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    assert [(one.id, one.answer) for one in read_questions(str(path), "train")] == [
        ("0", "2"),
        ("1", "2"),
    ]
