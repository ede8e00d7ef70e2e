"""Records of quantities against the quantities that are measured."""

import pytest
import torch

from prunelit.metrics import deviations
from prunelit.report.quantities import ESTIMATE, QUANTITIES, find_quantity, unchanged_value


def test_every_measured_quantity_has_a_record_that_says_its_value_without_a_change() -> None:
    generator = torch.Generator().manual_seed(0)
    h, z = (torch.randn(5, width, generator=generator) for width in (8, 30))
    found = deviations(h, h, z, z)
    assert set(found) <= set(QUANTITIES)
    # The distances are differences that a trajectory adds.
    assert set(QUANTITIES) - set(found) == {
        f"{space}_distance" for space in ("embedding", "logit", "probability")
    }
    for name, values in found.items():
        expected = torch.full_like(values, unchanged_value(name))
        torch.testing.assert_close(values, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", [name for name, one in QUANTITIES.items() if one.estimated])
def test_an_estimate_is_in_the_unit_of_its_quantity(name: str) -> None:
    exact, estimate = QUANTITIES[name], QUANTITIES[name + ESTIMATE]
    assert (exact.space, exact.unit, exact.unchanged) == (
        *(estimate.space, estimate.unit, estimate.unchanged),
    )


def test_the_way_of_measuring_is_no_part_of_the_name() -> None:
    assert find_quantity("local/mlp/prompt/logit_cosine") is QUANTITIES["logit_cosine"]
    assert find_quantity("step") is None
    assert unchanged_value("delta_p") == 0
