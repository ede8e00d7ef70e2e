"""Programs of one worker at a time."""

import pytest


@pytest.fixture(autouse=True)
def _alone(_one_worker_at_a_time: None) -> None:
    pass
