"""The names of the files that are written."""

import pytest

from prunelit import InputError
from prunelit.core.new.files import commands, part_paths


def test_commands_can_be_pasted() -> None:
    paths = part_paths("my decision.yml")
    assert commands(paths)["fit"] == (
        "prunelit fit --config 'my decision.yml' --config 'my decision.fit.yml'"
    )
    for wrong in ("decision", "decision.json", ""):
        with pytest.raises(InputError, match=r"ends in \.yaml"):
            part_paths(wrong)
