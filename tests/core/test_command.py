"""A command is checked before libraries are imported; `tests/test_main.py` looks at them."""

from typing import Any

import pytest

from prunelit import InputError
from prunelit.core.command import check_arguments


def test_a_rank_that_is_no_number(monkeypatch: pytest.MonkeyPatch, cli: Any, capfd: Any) -> None:
    monkeypatch.setenv("RANK", "")
    with pytest.raises(SystemExit) as left:
        cli("fit")
    assert left.value.code == 2
    assert "Expected the variable RANK as a whole number" in capfd.readouterr().err


@pytest.mark.parametrize("arguments", [["fti"], ["Fit", "--config", "a.yaml"], ["run.yaml"]])
def test_an_unknown_subcommand(arguments: list[str]) -> None:
    known = "'new', 'fit', 'validate', 'compare', 'sweep', 'search', 'report', 'worse'"
    reason = f"Expected one of {known} but got '{arguments[0]}': see"
    with pytest.raises(InputError, match=reason):
        check_arguments(arguments)


def test_options_alone_are_left_to_the_parser() -> None:
    check_arguments(["--config", "{}"])
    check_arguments(["fit", "--help"])
