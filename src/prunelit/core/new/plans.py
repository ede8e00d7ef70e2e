"""Plan the tasks of files: which task measures a file, with which columns."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from prunelit.core.new.columns import (
    ANSWERS,
    CLASSES,
    IDS,
    QUESTIONS,
    RIGHT,
    TEXTS,
    Row,
    find_choices,
    find_column,
    only_text,
    read_file,
    refuse_columns,
)
from prunelit.data.beir import load_collection
from prunelit.data.cells import as_parsed
from prunelit.data.choices import check_texts, merge_choices, settle_labels, take_columns
from prunelit.data.labelled import check_divisible, find_shared, read_labelled
from prunelit.data.local_files import KINDS
from prunelit.data.rows import refuse_row
from prunelit.data.sources import is_hub_name, local_path, split_revision
from prunelit.errors import InputError, similar_paths

_NEARLY_ALL = 0.9  # share of the items


@dataclass
class Plan:
    """A task on a file.

    Args:
        task: name of the class in `prunelit.tasks`.
        use: of the model that it measures; None for a task on a text.
        arguments: of the class.
        read: how the file was read, in words.
        count: number of test items, in words.
        texts: of the items, by which an overlap is found.
        warnings: what makes the score say less than it seems to.
    """

    task: str
    use: str | None
    arguments: dict[str, Any]
    read: str
    count: str
    texts: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Name of the task."""
        return self.arguments["name"]


def plan_search(path: str, shown: str, name: str) -> Plan:
    """Plan the task of `--search`: a folder in the format of BEIR, or questions with choices.

    Args:
        path: of the folder or file.
        shown: the path as the configuration names it.
        name: of the task.

    Raises:
        InputError: if it is neither, or not valid.
    """
    if not is_folder(path):
        names, rows = read_file(path)
        if find_choices(names, rows) is None:
            raise refuse_columns(
                path,
                names,
                "a folder with corpus, queries and qrels, or columns such as `question`, "
                "`choices` and `label`,",
            )
        return _plan_questions("Retrieval", "retrieval", path, shown, name)
    split = _find_split(local_path(path) / "qrels")
    collection = load_collection(path, split=split)
    count = f"{len(collection.queries):,} queries, {len(collection.documents):,} documents"
    arguments = {"name": name, "path": shown, "split": split}
    read = f"corpus, queries and qrels of {path!r}, split {split!r}"
    return Plan("CollectionRetrieval", "retrieval", arguments, read, count, collection.queries)


def plan_classify(path: str, shown: str, name: str) -> Plan:
    """Plan the task of `--classify`: questions with choices, or texts with a label.

    A folder has a file `train` and a file `test`.

    Raises:
        InputError: if it is neither, or not valid.
    """
    train, shown_train = None, ""
    if is_folder(path):
        train, path = (_find_part(path, part) for part in ("train", "test"))
        shown_train, shown = (f"{shown.rstrip('/')}/{Path(one).name}" for one in (train, path))
    names, rows = read_file(path)
    if train is None and find_choices(names, rows) is not None:
        return _plan_questions("MultipleChoice", "multiple choice", path, shown, name)
    label = find_column(names, CLASSES)
    text = find_column([one for one in names if one != label], TEXTS)
    text = text or only_text(names, rows, [label] if label else [])
    if label is None or text is None:
        wanted = "columns such as `text` and `label`, or `question`, `choices` and `label`,"
        raise refuse_columns(path, names, wanted)
    arguments: dict[str, Any] = {"name": name, "path": shown, "text": text, "label": label}
    test_rows = read_labelled(path, "train", text=text, label=label)
    labels = Counter(row.label for row in test_rows)
    read = f"{text!r} is the text, {label!r} one of {len(labels)} labels"
    warnings = _warn_constant(name, "label", labels)
    if len(labels) < 2:
        raise InputError(f"Expected at least two labels in {path!r} but got {[*labels]}: add rows.")
    if train is None:
        check_divisible(test_rows)
        count = f"{len(test_rows) // 2:,} texts to train on, {-(-len(test_rows) // 2):,} to test"
    else:
        training = read_labelled(train, "train", text=text, label=label)
        arguments["train"] = shown_train
        count = f"{len(training):,} texts to train on, {len(test_rows):,} to test"
        if both := find_shared(training, test_rows):
            warnings.append(
                f"{name}: {len(both)} test texts are training texts, so the score may be too high; "
                f"the first is {both[0].place()}."
            )
    texts = [row.text for row in test_rows]
    return Plan("Classification", "classification", arguments, read, count, texts, warnings)


def plan_answer(path: str, shown: str, name: str) -> Plan:
    """Plan the task of `--answer`: questions with an answer, or with choices.

    Raises:
        InputError: if it is neither, or not valid.
    """
    names, rows = read_file(path)
    if find_choices(names, rows) is not None:
        plan = _plan_questions("Generation", "generation", path, shown, name)
        if "columns" in plan.arguments:
            plan.arguments["questions"] = True
        return plan
    question = find_column(names, QUESTIONS)
    answer = find_column([one for one in names if one != question], ANSWERS)
    if question is None or answer is None:
        raise refuse_columns(path, names, "columns such as `question` and `answer`")
    for number, row in enumerate(rows):
        for column in (question, answer):
            if not isinstance(row[column], str) or not row[column].strip():
                problem = f"`{column}` must be a non-empty string but is {row[column]!r:.60}"
                raise refuse_row(path, number, problem)
    columns = {"context": question, "target": answer}
    longest = max(len(row[answer]) for row in rows)
    arguments = {"name": name, "path": shown, "columns": columns, "max_new_tokens": _room(longest)}
    read = f"{question!r} is the question, {answer!r} the answer"
    warnings = _warn_constant(name, "answer", Counter(row[answer].strip() for row in rows))
    texts = [row[question] for row in rows]
    count = f"{len(rows):,} questions"
    return Plan("Generation", "generation", arguments, read, count, texts, warnings)


def task_names(paths: Sequence[str]) -> list[str]:
    """Name the tasks of files by the files, each name once.

    Example:
        >>> from prunelit.core.new.plans import task_names
        >>> task_names(["a/my intents.csv", "b/my intents.jsonl.gz", "tickets/"])
        ['my_intents', 'my_intents_2', 'tickets']
    """
    names = ["deviation", "perplexity"]  # tasks on texts have these
    for path in paths:
        file = Path(re.sub(r".*:", "", path)).name.removesuffix(".gz")
        stem = Path(file).stem if Path(file).suffix.lower() in KINDS else file
        name = re.sub(r"[^\w-]+", "_", stem).strip("_")[:40] or "task"
        same = sum(re.fullmatch(rf"{re.escape(name)}(_\d+)?", other) is not None for other in names)
        names.append(f"{name}_{same + 1}" if same else name)
    return names[2:]


def _plan_questions(task: str, use: str, path: str, shown: str, name: str) -> Plan:
    names, rows = read_file(path)
    choices = find_choices(names, rows)
    assert choices is not None
    own = [choices] if isinstance(choices, str) else choices
    question = find_column([one for one in names if one not in own], QUESTIONS)
    label = find_column([one for one in names if one not in (*own, question)], RIGHT)
    if question is None or label is None:
        raise refuse_columns(path, names, "columns such as `question`, `choices` and `label`")
    columns: dict[str, Any] = {"context": question, "choices": choices, "label": label}
    if (identifier := find_column(names, [one for one in IDS if one])) is not None:
        columns["id"] = identifier
    questions = [_question(path, number, row, columns) for number, row in enumerate(rows)]

    def refuse(number: int, problem: str) -> InputError:
        problem = problem.replace("`label`", f"`{label}`")
        return refuse_row(path, number, problem)

    way = settle_labels(questions, refuse)
    arguments: dict[str, Any] = {"name": name, "path": shown}
    if any(field != column for field, column in columns.items()):
        arguments["columns"] = columns
    if task == "Generation":
        longest = max(len(one.choices[one.label]) for one in questions)
        arguments["max_new_tokens"] = _room(longest)
    of = repr(choices) if isinstance(choices, str) else f"{choices[0]!r} to {choices[-1]!r}"
    read = f"{question!r} is the question, {of} the choices, {label!r} the right one as {way}"
    fixed = len({frozenset(one.choices) for one in questions}) == 1
    right = Counter(
        one.choices[one.label] if fixed else f"number {one.label + 1}" for one in questions
    )
    warnings = _warn_constant(name, "choice", right)
    if way == "a number from 0" and len(rows) > 1 and min(one.label for one in questions) > 0:
        warnings.append(
            f"{name}: no label is 0, but labels are read as numbers from 0. If yours begin with 1, "
            "write letters."
        )
    texts = [one.context for one in questions]
    return Plan(task, use, arguments, read, f"{len(rows):,} questions", texts, warnings)


def _question(path: str, number: int, row: Row, columns: dict[str, Any]) -> Any:
    context, label = row[columns["context"]], row[columns["label"]]
    choices = as_parsed(take_columns(row, columns["choices"]))
    try:
        check_texts(context, choices)
    except InputError as error:
        of = columns["context"] if "`context`" in str(error) else columns["choices"]
        raise refuse_row(path, number, f"{error} (read from {of!r})") from error
    return SimpleNamespace(context=context, choices=merge_choices(choices), label=label)


def _warn_constant(name: str, kind: str, counts: Counter[str]) -> list[str]:
    """Warn if one answer is right for nearly all items."""
    ((most, count),), total = counts.most_common(1), sum(counts.values())
    if len(counts) < 2 and kind != "choice":
        return []
    if count < _NEARLY_ALL * total:
        return []
    return [
        f"{name}: the {kind} {most!r:.60} is right for {count:,} of {total:,} rows. A model that "
        "always gives it looks good, so add rows with other answers."
    ]


def _room(characters: int) -> int:
    """Return a number of new tokens in which an answer of this length can be said in a sentence."""
    return min(512, 16 + characters // 2 // 8 * 8)


def is_folder(path: str) -> bool:
    """Return True for a folder.

    Raises:
        InputError: if there is nothing of this name on this machine.
    """
    if is_hub_name(path):
        raise InputError(
            f"Expected a file or a folder on this machine but got {path!r}{similar_paths(path)}: "
            f"of a data set on the hub, run `hf download {split_revision(path)[0]} --repo-type "
            "dataset --local-dir .` and name its file."
        )
    return local_path(path).is_dir()


def _find_split(folder: Path) -> str:
    """Return the split of the judgements: `test`, or the only one there is."""
    if not folder.is_dir():
        return "test"
    splits = sorted({file.name.partition(".")[0] for file in folder.iterdir() if file.suffix})
    if "test" in splits or not splits:
        return "test"
    if len(splits) > 1:
        raise InputError(
            f"Expected a file `test` in {str(folder)!r}, or a single file, but it has {splits}."
        )
    return splits[0]


def _find_part(folder: str, part: str) -> str:
    files = sorted(local_path(folder).glob(f"{part}.*"))
    if len(files) != 1:
        raise InputError(
            f"Expected one file `{part}` such as {part}.csv in {folder!r} but found "
            f"{[file.name for file in files]}: give a folder with `train` and `test`, or one file."
        )
    return str(files[0])
