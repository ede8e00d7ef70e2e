import pytest

from prunelit.tasks.judges.answers import (
    AfterMarker,
    code_block,
    contains,
    exact_match,
    first_line,
    first_number,
    first_word,
    last_number,
    normalise,
    normalise_number,
    verbatim,
    whole,
)


def test_whole_and_verbatim() -> None:
    assert whole("  a b\n") == "a b"
    assert verbatim("    return 1\n") == "    return 1\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [("\n\n  yes \nno", "yes"), ("one", "one"), ("", None), (" \n\t\n", None)],
)
def test_first_line(text: str, expected: str | None) -> None:
    assert first_line(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (" signs.\n\nHe", "signs"),
        (' "Yes," she', "Yes"),
        ("don't go", "don't"),
        ("— well", "well"),
        ("été", "été"),
        ("...", None),
        ("", None),
    ],
)
def test_first_word(text: str, expected: str | None) -> None:
    assert first_word(text) == expected


@pytest.mark.parametrize(
    ("text", "first", "last"),
    [
        ("16 - 3 = 13, so $26.", "16", "$26"),
        ("16-3=13", "16", "13"),
        ("it fell to -4.5 degrees", "-4.5", "-4.5"),
        ("f(x)-2", "2", "2"),
        ("$1,234,567.89 in all", "$1,234,567.89", "$1,234,567.89"),
        ("1,2345", "1", "2345"),
        ("-$30", "-$30", "-$30"),
        ("about .5 or 50%", ".5", "50"),
        ("The answer is 42.", "42", "42"),
        ("3, 4, 5", "3", "5"),
        ("step 1. do it. 2. done", "1", "2"),
        ("none", None, None),
        ("", None, None),
    ],
)
def test_first_and_last_number(text: str, first: str | None, last: str | None) -> None:
    assert first_number(text) == first
    assert last_number(text) == last


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("#### 42", "42"),
        ("3 * 14\n#### 42\n#### 43", "42"),
        ("#### 42 apples\nand 7 more", "42 apples"),
        ("42", None),
        ("####", None),
    ],
)
def test_what_stands_after_the_marker(text: str, expected: str | None) -> None:
    assert AfterMarker("####")(text) == expected


def test_what_stands_after_the_marker_is_read_further() -> None:
    assert AfterMarker("####", first_number)("1 #### is $42, not 7") == "$42"
    assert AfterMarker("####", first_number)("1 #### nothing") is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Sure:\n```python\ndef f():\n    return 1\n```\nDone.", "def f():\n    return 1\n"),
        ("```\na\n```\n```\nb\n```", "a\n"),
        ("```python\ndef f():", "def f():"),
        ("  ```py\n  a\n  ```", "  a\n"),
        ("```python\nx = '`'\n```", "x = '`'\n"),
        ("use `f` and ```inline```", None),
        ("def f(): pass", None),
    ],
)
def test_code_block(text: str, expected: str | None) -> None:
    assert code_block(text) == expected


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The Answer: 42!", "the answer 42"),
        ("  a\n b\t", "a b"),
        ("STRASSE", "strasse"),
        ("Straße", "strasse"),
        ("São Paulo.", "são paulo"),
        ("ﬁsh", "fish"),
        ("don't", "don t"),
        ("...", ""),
    ],
)
def test_normalise(text: str, normal: str) -> None:
    assert normalise(text) == normal


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("$1,200.00", "1200"),
        ("+1200", "1200"),
        ("007", "7"),
        ("42.", "42"),
        (".50", "0.5"),
        ("-0.0", "0"),
        ("-$30", "-30"),
        ("1200", "1200"),
        ("0.10", "0.1"),
        (" about 5 ", "about 5"),
        ("1.2.3", "1.2.3"),
        ("", ""),
    ],
)
def test_normalise_number(text: str, normal: str) -> None:
    assert normalise_number(text) == normal


@pytest.mark.parametrize(
    ("answer", "target", "expected"),
    [
        ("$18.00", "18", True),
        ("18", "19", False),
        (None, "18", False),
    ],
)
def test_exact_match(answer: str | None, target: str, expected: bool) -> None:
    assert exact_match(answer, target, normalise_number) is expected


def test_nothing_matches_nothing() -> None:
    assert not exact_match("?", "!", normalise)


@pytest.mark.parametrize(
    ("answer", "target", "expected"),
    [
        ("It is **Paris**.", "paris", True),
        ("Parisian", "Paris", False),
        ("the sum is 15", "5", False),
        ("the sum is 5.", "5", True),
        ("in São Paulo, Brazil", "são paulo", True),
        ("Paulo", "São Paulo", False),
        ("", "Paris", False),
        ("Anything at all", "?!", False),
    ],
)
def test_contains_whole_words(answer: str, target: str, expected: bool) -> None:
    assert contains(answer, target) is expected


def test_a_target_without_words_has_to_be_there_verbatim() -> None:
    assert contains("the answer is +.", "+")
    assert not contains("", "+")
    assert not contains("- -", "+")
    assert not contains("the answer is plus", " + ")
