"""The first step of a command."""

import os
import sys

import pytest

from prunelit.core.startup import put_working_folder_last


def test_the_working_folder_is_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [os.getcwd(), "elsewhere"])
    put_working_folder_last()
    assert sys.path == ["elsewhere", os.getcwd()]
