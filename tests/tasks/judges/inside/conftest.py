"""A program and its tests, each in its interpreter."""

import textwrap
from collections.abc import Callable

import pytest

from prunelit.tasks.judges.helpers import Helpers
from prunelit.tasks.judges.sandbox import Limits, Outcome, run_program


@pytest.fixture
def run(isolated: None) -> Callable[..., Outcome]:
    """`run(code, tests)` runs both."""

    def start(code: str, tests: str, helpers: Helpers | None = None) -> Outcome:
        limits = Limits(cpu_seconds=2, seconds=20)
        return run_program(textwrap.dedent(code), limits, textwrap.dedent(tests), helpers)

    return start
