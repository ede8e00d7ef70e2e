import pytest

import prunelit
from prunelit.errors import InputError, first_line


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
