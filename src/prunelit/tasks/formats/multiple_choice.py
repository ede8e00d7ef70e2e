"""Formats of well-known multiple-choice data sets.

Column names are those of the data set on the hub.
"""

import re
from typing import Any

from prunelit.data.cells import as_parsed
from prunelit.tasks.formats.base import reads_columns
from prunelit.tasks.questions import GroupedQuestion, Question


@reads_columns("id", "question", "choices", "answerKey")
def arc(row: dict[str, Any]) -> Question:
    """ARC (Clark et al. 2018, arXiv:1803.05457).

    Example:
        >>> from prunelit.tasks.formats import arc
        >>> choices = {"text": ["a stone", "a cork"], "label": ["A", "B"]}
        >>> row = {"id": "1", "question": "What floats?", "choices": choices, "answerKey": "B"}
        >>> arc(row)
        Question(id='1', context='What floats?', choices=['a stone', 'a cork'], label=1)
    """
    choices = as_parsed(row["choices"])
    label = choices["label"].index(row["answerKey"].strip())
    return Question(row["id"], row["question"], choices["text"], label)


@reads_columns("id", "question", "choices", "answerKey")
def commonsense_qa(row: dict[str, Any]) -> Question:
    """CommonsenseQA (Talmor et al. 2019, arXiv:1811.00937).

    Example:
        >>> from prunelit.tasks.formats import commonsense_qa
        >>> choices = {"text": ["oven", "fridge"], "label": ["A", "B"]}
        >>> row = {"id": "1", "question": " Where is milk?", "choices": choices, "answerKey": "B"}
        >>> commonsense_qa(row)
        Question(id='1', context='Where is milk?', choices=['oven', 'fridge'], label=1)
    """
    return arc({**row, "question": row["question"].strip()})


@reads_columns("id", "question_stem", "choices", "answerKey")
def openbookqa(row: dict[str, Any]) -> Question:
    """OpenBookQA (Mihaylov et al. 2018, arXiv:1809.02789), without the facts of its book.

    Example:
        >>> from prunelit.tasks.formats import openbookqa
        >>> choices = {"text": ["a star", "a moon"], "label": ["A", "B"]}
        >>> row = {"id": "1", "question_stem": "The sun is", "choices": choices, "answerKey": "A"}
        >>> openbookqa(row)
        Question(id='1', context='The sun is', choices=['a star', 'a moon'], label=0)
    """
    return arc({**row, "question": row["question_stem"]})


@reads_columns("activity_label", "ctx_a", "ctx_b", "endings", "label")
def hellaswag(row: dict[str, Any]) -> Question:
    """HellaSwag (Zellers et al. 2019, arXiv:1905.07830).

    The context is the heading, then the text, whose last part starts with a capital letter.
    WikiHow's marks in square brackets are removed.

    Example:
        >>> from prunelit.tasks.formats import hellaswag
        >>> row = {"activity_label": "Pans", "ctx_a": "[header] Soak it.", "ctx_b": "then"}
        >>> question = hellaswag({**row, "endings": ["use soap.", "wait."], "label": "0"})
        >>> question.context, question.answer
        ('Pans: Soak it. Then', 'use soap.')
    """
    context = f"{row['activity_label']}: {row['ctx_a']} {row['ctx_b'].capitalize()}"
    choices = [_without_marks(ending) for ending in as_parsed(row["endings"])]
    return Question("", _without_marks(context), choices, int(row["label"]))


def _without_marks(text: str) -> str:
    """Replace ` [title]` by the end of a sentence and remove other marks in square brackets."""
    text = re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". "))
    return text.replace("  ", " ")


@reads_columns("goal", "sol1", "sol2", "label")
def piqa(row: dict[str, Any]) -> Question:
    """PIQA (Bisk et al. 2020, arXiv:1911.11641).

    Example:
        >>> from prunelit.tasks.formats import piqa
        >>> piqa({"goal": "To open a jar,", "sol1": "turn the lid.", "sol2": "wait.", "label": 0})
        Question(id='', context='To open a jar,', choices=['turn the lid.', 'wait.'], label=0)
    """
    return Question("", row["goal"], [row["sol1"], row["sol2"]], row["label"])


@reads_columns("sentence", "option1", "option2", "answer")
def winogrande(row: dict[str, Any]) -> Question:
    """WinoGrande (Sakaguchi et al. 2020, arXiv:1907.10641); `_` is the blank in the context.

    Example:
        >>> from prunelit.tasks.formats import winogrande
        >>> sentence = "The cup is not in the box since the _ is small."
        >>> row = {"sentence": sentence, "option1": "cup", "option2": "box", "answer": "2"}
        >>> winogrande(row).answer
        'box'
    """
    choices = [row["option1"], row["option2"]]
    return Question("", row["sentence"], choices, ("1", "2").index(row["answer"]))


@reads_columns("passage", "question", "label")
def boolq(row: dict[str, Any]) -> Question:
    r"""BoolQ (Clark et al. 2019, arXiv:1905.10044) as in SuperGLUE.

    Example:
        >>> from prunelit.tasks.formats import boolq
        >>> boolq({"passage": "The Moon.", "question": "is it a star", "label": 0}).context
        'The Moon.\nQuestion: is it a star?'
    """
    context = f"{row['passage']}\nQuestion: {row['question']}?"
    return Question("", context, ["no", "yes"], row["label"])


@reads_columns("premise", "choice1", "choice2", "question", "label")
def copa(row: dict[str, Any]) -> Question:
    """COPA (Roemmele et al. 2011) as in SuperGLUE; premise and choice form one sentence.

    A choice begins with a space, which counts in `acc_norm`, as in lm-evaluation-harness 0.4.13.

    Example:
        >>> from prunelit.tasks.formats import copa
        >>> row = {"premise": "The ground was wet.", "question": "cause", "label": 0}
        >>> question = copa({**row, "choice1": "It had rained.", "choice2": "He slept."})
        >>> question.context, question.answer
        ('The ground was wet because', ' it had rained.')
    """
    word = {"cause": "because", "effect": "therefore"}[row["question"]]
    premise = row["premise"].strip()[:-1]  # without its full stop
    choices = [f" {text[0].lower()}{text[1:]}" for text in (row["choice1"], row["choice2"])]
    return Question("", f"{premise} {word}", choices, row["label"])


@reads_columns("question", "subject", "choices", "answer")
def mmlu(row: dict[str, Any]) -> Question:
    """MMLU (Hendrycks et al. 2021, arXiv:2009.03300), grouped by subject.

    Example:
        >>> from prunelit.tasks.formats import mmlu
        >>> mmlu({"question": "2 + 2?", "subject": "maths", "choices": ["3", "4"], "answer": 1})
        GroupedQuestion(id='', context='2 + 2?', choices=['3', '4'], label=1, group='maths')
    """
    question = row["question"].strip()
    return GroupedQuestion("", question, row["choices"], row["answer"], row["subject"])


@reads_columns("question", "mc1_targets")
def truthfulqa_mc1(row: dict[str, Any]) -> Question:
    """TruthfulQA with a single true answer (Lin et al. 2022, arXiv:2109.07958).

    Example:
        >>> from prunelit.tasks.formats import truthfulqa_mc1
        >>> targets = {"choices": ["yes", "no"], "labels": [0, 1]}
        >>> truthfulqa_mc1({"question": "Is the Earth flat?", "mc1_targets": targets})
        Question(id='', context='Is the Earth flat?', choices=['yes', 'no'], label=1)
    """
    targets = as_parsed(row["mc1_targets"])
    return Question("", row["question"], targets["choices"], targets["labels"].index(1))
