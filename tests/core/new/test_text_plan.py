"""A text is divided: one part to calibrate on, the rest to measure."""

from collections.abc import Callable
from typing import Any

import pytest

from prunelit import InputError
from prunelit.core.new.text_plan import plan_text

Write = Callable[[str, Any], str]


def test_a_text_is_divided(write: Write) -> None:
    rows = [{"id": n, "body": f"{n} " + "some words of a text " * 80} for n in range(40)]
    plan = plan_text(write("text.jsonl", rows), "text.jsonl", "", whole=False)
    assert plan.calibration["split"] == "train[:75%]"
    assert (plan.calibration["column"], len(plan.texts)) == ("body", 30)
    assert [task.name for task in plan.tasks] == ["deviation", "perplexity"]
    assert plan.tasks[0].arguments["split"] == "train[75%:]"
    assert set(plan.tasks[0].texts).isdisjoint(plan.texts)
    second = plan_text("text.jsonl", "text.jsonl", "_2", whole=True)
    assert (len(second.tasks[0].texts), second.tasks[0].name) == (40, "deviation_2")
    one = plan_text(write("one.txt", "a few words " * 400), "one.txt", "", whole=False)
    assert (one.calibration["split"], one.tasks) == ("train", [])
    paragraphs = plan_text(write("p.txt", "a b c d e f\n\n" * 200), "p.txt", "", whole=False)
    assert paragraphs.calibration["documents"] == "paragraphs"


def test_too_little_text_is_refused(write: Write) -> None:
    with pytest.raises(InputError, match=r"at least 384 characters .* but got 6"):
        plan_text(write("t.txt", "a text"), "t.txt", "", whole=False)
    with pytest.raises(InputError, match=r"this machine but got 'org/name': of a data set on the"):
        plan_text("org/name", "org/name", "", whole=False)
