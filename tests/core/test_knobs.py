"""Knobs: the numeric option of a method, and its settings."""

from typing import Any

import pytest

from prunelit import InputError
from prunelit.core.knobs import format_setting, read_knobs
from prunelit.pruners import (
    BlockDrop,
    Budget,
    Heads,
    Magnitude,
    Neuron,
    Quantize,
    SublayerDrop,
    Wanda,
)
from prunelit.recipe import describe
from prunelit.sparsity import SemiStructured, Unstructured

VARIANTS = {
    "wanda": Wanda(Unstructured(0.5), variant=True),
    "drop": SublayerDrop(4, target="mlp"),
    "block": BlockDrop(),
    "neuron": Neuron(0.25),
    "quantize": Quantize(),
    "budget": Budget(),
    "heads": Heads(),
    "semi": Magnitude(SemiStructured(2, 4)),
}


def test_the_usual_options_need_no_path() -> None:
    grid = {"wanda": [0.1, 0.3], "drop": [1, 2.0], "block": [1], "neuron": [0.5]}
    knobs = read_knobs(VARIANTS, grid)
    assert {name: knob.path for name, knob in knobs.items()} == {
        "wanda": "sparsity.ratio",
        "drop": "count",
        "block": "count",
        "neuron": "ratio",
    }
    built = knobs["wanda"].build(0.3)
    expected = Wanda(Unstructured(0.3), variant=True)
    assert describe(built) == describe(expected)
    assert VARIANTS["wanda"].sparsity.ratio == 0.5
    assert describe(knobs["drop"].build(2.0)) == describe(SublayerDrop(2, target="mlp"))
    assert knobs["drop"].variant(2.0) == "drop_2"
    assert knobs["wanda"].variant(0.30000000000000004) == "wanda_0.3"


def test_a_text_gives_the_same_settings() -> None:
    knobs = read_knobs(VARIANTS, "wanda=0.2, 0.3;drop=1,2")
    assert {name: knob.settings for name, knob in knobs.items()} == {
        "wanda": (0.2, 0.3),
        "drop": (1.0, 2.0),
    }
    assert read_knobs(VARIANTS, None) == {}


def test_another_option_is_named() -> None:
    knob = read_knobs(VARIANTS, {"quantize": [32, 64]}, {"quantize": "group"})["quantize"]
    assert describe(knob.build(32)) == describe(Quantize(group=32))


@pytest.mark.parametrize(
    ("grid", "paths", "sentence"),
    [
        ({"wanda": []}, None, "at least one setting of 'wanda' in `grid`"),
        ("wanda=", None, "at least one setting of 'wanda' in `grid`"),
        ("wanda", None, "such as `wanda=0.2,0.3;drop=1,2`, but got 'wanda'"),
        ("wanda=a,b", None, "such as `wanda=0.2,0.3;drop=1,2`, but got 'wanda=a,b'"),
        ("wanda=0.1;wanda=0.2", None, "but got 'wanda=0.1;wanda=0.2'"),
        ({"wnada": [0.1]}, None, "`grid` names 'wnada'.*near names.*wanda"),
        ({"wanda": [0.3, 0.2]}, None, "ascending order but 0.2 follows 0.3"),
        ({"wanda": [0.3, 0.3]}, None, "ascending order but 0.3 follows 0.3"),
        ({"wanda": [float("nan")]}, None, "Expected numbers as the settings of 'wanda'"),
        ({"wanda": [True]}, None, "Expected numbers as the settings of 'wanda'"),
        ({"wanda": ["0.1"]}, None, "Expected numbers as the settings of 'wanda'"),
        ({"wanda": [0.5, 1.5]}, None, r"The setting 1.5 of 'wanda'.*Expected `ratio` in \[0, 1\)"),
        ({"drop": [1.5]}, None, "The setting 1.5 of 'drop' in `grid` cannot be used.*as int"),
        ({"wanda": [0.1]}, {"wanda": "sparsity.within"}, "the numeric options of Wanda are"),
        ({"wanda": [0.1]}, {"drop": "count"}, "`knobs` names 'drop', which has no settings"),
        ({"wanda": [0.1]}, {"dorp": "count"}, "`knobs` names 'dorp', which is not in `variants`"),
        (
            {"quantize": [2, 4]},
            {"quantize": "bits"},
            "but `bits` of Quantize removes less",
        ),
        ({"budget": [0.7, 0.8]}, {"budget": "parameters"}, "`parameters` of Budget removes less"),
        ({"heads": [1, 2]}, {"heads": "count"}, "`count` of 'heads', which `knobs` names, .* null"),
        ({"semi": [2]}, None, "Expected the knob of 'semi' in `knobs`"),
    ],
)
def test_what_is_no_knob_is_refused(grid: Any, paths: Any, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        read_knobs(VARIANTS, grid, paths)


def test_a_method_without_numbers() -> None:
    class Plain(Magnitude):
        def __init__(self) -> None:
            super().__init__(Unstructured(0.5))

    with pytest.raises(InputError, match="Plain has no numeric option"):
        read_knobs({"plain": Plain()}, {"plain": [1]})


def test_settings_are_written_short() -> None:
    assert [format_setting(value) for value in (0.1, 4.0, 1e-5, 12345678.0)] == [
        *("0.1", "4", "1e-05", "12345678")
    ]
