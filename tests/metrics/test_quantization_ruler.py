"""The ruler for KL."""

import math

import pytest

from prunelit import InputError
from prunelit.metrics.quantization_ruler import RUNGS, Rung, place_on_ruler


def test_rungs_are_the_published_ones_from_fine_to_coarse() -> None:
    rounded = {rung.name: float(f"{rung.kl:.2g}") for rung in RUNGS}
    # The table of llama.cpp.
    assert rounded == {
        "f16": 0.00055,
        "8-bit": 0.0014,
        "6-bit": 0.0055,
        "5-bit": 0.011,
        "4-bit": 0.031,
        "3-bit": 0.1,
        "2-bit": 0.45,
        "1-bit": 2.3,
    }
    assert [rung.kl for rung in RUNGS] == sorted(rung.kl for rung in RUNGS)


@pytest.mark.parametrize("rung", RUNGS, ids=lambda rung: rung.name)
def test_a_rung_is_nearest_to_itself(rung: Rung) -> None:
    place = place_on_ruler(rung.kl)
    assert place.rung == place.below == rung
    assert place.between == (None if rung is RUNGS[-1] else 0)


def test_the_nearest_is_so_on_a_log_scale() -> None:
    # 0.25 is nearer to 0.10 than to 0.45 by difference, and nearer to 0.45 by ratio.
    assert abs(0.25 - RUNGS[5].kl) < abs(0.25 - RUNGS[6].kl)
    place = place_on_ruler(0.25)
    assert place.rung.name == "2-bit"
    assert place.below is not None
    assert place.above is not None
    assert (place.below.name, place.above.name) == ("3-bit", "2-bit")
    assert place.between == pytest.approx(math.log(0.25 / 0.101913) / math.log(0.445132 / 0.101913))
    middle = math.sqrt(RUNGS[2].kl * RUNGS[3].kl)
    assert place_on_ruler(middle * 0.999).rung.name == "6-bit"
    assert place_on_ruler(middle * 1.001).rung.name == "5-bit"
    assert place_on_ruler(middle).between == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("kl", "nearest", "below", "above"),
    [
        (0.0, "f16", None, "f16"),
        (1e-9, "f16", None, "f16"),
        (40.0, "1-bit", "1-bit", None),
        (math.inf, "1-bit", "1-bit", None),
    ],
)
def test_beyond_the_ends(kl: float, nearest: str, below: str | None, above: str | None) -> None:
    place = place_on_ruler(kl)
    assert place.rung.name == nearest
    assert (place.below and place.below.name) == below
    assert (place.above and place.above.name) == above
    assert place.between is None


@pytest.mark.parametrize("kl", [-1e-6, math.nan])
def test_negative_and_nan_kl_are_refused(kl: float) -> None:
    with pytest.raises(InputError, match="Expected a KL of at least 0 but got"):
        place_on_ruler(kl)
