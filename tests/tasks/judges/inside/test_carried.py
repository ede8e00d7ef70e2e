"""What the text of tests shows of things that the sandbox does not carry."""

import pytest

from prunelit.tasks.judges.inside.carried import CLASS, INTERPRETER, METHOD, find_reason


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("assert f(1) == 2", None),
        ("assert type(f(1)) is Node", CLASS),
        ("match f(1):\n    case Node(x=1): pass", CLASS),
        ("match f(1):\n    case [1, *_]: pass", None),
        ("async def main():\n    async with f(): pass", METHOD),
        ("import random\nrandom.seed(0)", INTERPRETER),
        ("from unittest.mock import patch", INTERPRETER),
        ("with open('x', 'w') as file: pass", INTERPRETER),
        ("not Python", None),
        ("assert 'open' == f('open')", None),
    ],
)
def test_reasons(code: str, reason: str | None) -> None:
    assert find_reason(code) == reason
