"""The first steps of a command."""

import os
import sys
from typing import Any

import pytest

from prunelit.core.startup import put_working_folder_last


def test_a_rank_that_is_no_number(monkeypatch: pytest.MonkeyPatch, cli: Any, capfd: Any) -> None:
    monkeypatch.setenv("RANK", "")
    with pytest.raises(SystemExit) as left:
        cli("fit")
    assert left.value.code == 2
    assert "Expected the variable RANK as a whole number" in capfd.readouterr().err


def test_the_working_folder_is_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [os.getcwd(), "elsewhere"])
    put_working_folder_last()
    assert sys.path == ["elsewhere", os.getcwd()]
