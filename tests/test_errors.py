import pytest

import prunelit
from prunelit.errors import InputError, check_positive, first_line, near_names


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
