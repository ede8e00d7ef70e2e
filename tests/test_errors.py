import pytest

import prunelit
from prunelit.errors import InputError, check_positive, explain, first_line, near_names, shorten


def test_is_a_value_error_so_that_callers_need_no_import_of_prunelit() -> None:
    with pytest.raises(ValueError, match="an empty file"):
        raise InputError("an empty file")


def test_public_name_is_the_same_class() -> None:
    assert prunelit.InputError is InputError


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OSError("\n  no such file \n more"), "no such file"),
        (RuntimeError(), "RuntimeError"),
        (ValueError(" \n "), "ValueError"),
    ],
)
def test_first_line(error: Exception, expected: str) -> None:
    assert first_line(error) == expected


def test_near_names_or_else_the_first_ones() -> None:
    names = [f"mlp.part{index}" for index in range(9)] + ["self_attn.q_proj"]
    assert near_names("self_attn.qproj", names) == "self_attn.q_proj"
    assert near_names("$", names) == ", ".join(names[:8])


@pytest.mark.parametrize("value", [0, -1.5, float("nan")])
def test_what_is_not_positive_is_refused(value: float) -> None:
    check_positive("temperature", 1e-9)
    with pytest.raises(InputError, match=f"`temperature` above 0 but got {value}"):
        check_positive("temperature", value)


def test_a_long_sentence_keeps_its_begin_and_its_end() -> None:
    assert shorten("two\n lines") == "two lines"
    short = shorten(f"The file has {'9' * 5000}: write less.")
    assert len(short) < 400
    assert short.startswith("The file has 99")
    assert short.endswith("99: write less.")


def test_an_error_that_nobody_expected_has_a_sentence_before_its_traceback() -> None:
    assert explain(InputError("no file")) == ("prunelit: error: no file", 2)
    assert explain(RuntimeError("x"), "a setting") == ("prunelit: error: a setting", 2)
    try:
        raise RuntimeError("surprise")
    except RuntimeError as error:
        text, status = explain(error)
    first, second, *_ = text.splitlines()
    assert status == 1
    assert first.startswith("prunelit: error: Your own `test_an_error")
    assert second.startswith("Traceback")
