"""Messages of the parser in plain words. `tests/bad_input` sees them on the command line."""

import pytest

from prunelit.core.option_errors import explain_types, rephrase

KNOWN = ["model.source", "model.dtype", "data.calibration", "data.tasks", "trainer.devices"]
WANDA = "prunelit.pruners.Wanda"


@pytest.mark.parametrize(
    ("message", "owner", "sentence"),
    [
        (
            "Subcommand 'fit' does not accept option 'data.calibraton.path'",
            None,
            "prunelit does not accept `data.calibraton`: near names: data.calibration.",
        ),
        (
            "Option 'sparcity' is not accepted",
            WANDA,
            "prunelit.pruners.Wanda does not accept `sparcity`: near names: sparsity.",
        ),
        (
            "unrecognized arguments: --modle.source dense",
            None,
            "prunelit does not accept `modle`: near names: model.",
        ),
        (
            "the following arguments are required: fit.model.source, fit.data.calibration",
            None,
            "Expected a value for `model.source`, `data.calibration`: give it in the YAML or",
        ),
        (
            "unrecognized arguments: more",
            None,
            "Expected options such as `--config FILE` but got 'more'.",
        ),
        (
            "Parser key \"model.dtype\":\n  Expected a typing.Literal['auto', 'float32']. "
            "Got value: flaot32",
            None,
            "Expected `model.dtype` as one of 'auto', 'float32' but got 'flaot32' "
            "(similar: 'float32'): write one of them.",
        ),
        (
            "Parser key \"seed\":\n  Expected a <class 'int'>. Got value: 1.5",
            WANDA,
            "Expected `seed` of prunelit.pruners.Wanda as int but got '1.5': write such a value.",
        ),
        (
            'Parser key "ratio": Not of type Ratio: 30.0 does not conform to restriction v>=0',
            None,
            "Expected `ratio` as a number v with v>=0 but got '30.0': write such a number.",
        ),
        (
            "Parser key \"pruner\": Problem with given class_path 'prunelit.pruners.Wandda': "
            "module 'prunelit.pruners' has no attribute 'Wandda'",
            None,
            "The class 'prunelit.pruners.Wandda', given for `pruner`, does not exist: "
            "prunelit.pruners has no 'Wandda'; near names: Wanda",
        ),
        (
            "Parser key \"pruner\": Problem with given class_path 'prunelit.prunners.Wanda': "
            "module 'prunelit' has no attribute 'prunners'",
            None,
            "prunelit has no 'prunners'; near names: pruners",
        ),
        (
            'Parser key "pruner": Expected a dot import path string: Wandda',
            None,
            "Expected `pruner` as the path of a class but got 'Wandda': near: "
            "prunelit.pruners.Wanda, prunelit.pruners.WandaPlus.",
        ),
        (
            "Parser key \"pruner\": Problem with given class_path 'my.Method': No module named "
            "'my'",
            None,
            "The class 'my.Method', given for `pruner`, cannot be used: No module named 'my'. Put "
            "its file into the folder of the call.",
        ),
        (
            'Parser key "tasks": Expected an instantiatable class, but '
            "prunelit.tasks.base.Task is abstract",
            None,
            "Expected a class for `tasks` but got options alone, or the base class Task: give "
            "`class_path`, such as prunelit.tasks.Classification, and `init_args`.",
        ),
        ("A message of another form", None, "A message of another form"),
    ],
    ids=range(14),
)
def test_sentence(message: str, owner: str | None, sentence: str) -> None:
    known = ["sparsity", "include"] if owner else KNOWN
    assert sentence in rephrase(message, owner, known, [])


UNION = (
    'Parser key "{key}":\n  Does not validate against any of the Union subtypes\n'
    "  Subtypes: [{kinds}]\n  Errors:\n    - {errors}\n"
    "  Given value type: <class 'str'>\n  Given value: {value}"
)


@pytest.mark.parametrize(
    ("kinds", "errors", "value", "sentence"),
    [
        (
            "<class 'bool'>, typing.Literal[3, 'far'], <class 'NoneType'>",
            "Expected a <class 'bool'>\n    - Expected a typing.Literal[3, 'far']",
            "fat",
            "as one of 3, 'far' or bool but got 'fat' (similar: 'far'): write such a value.",
        ),
        (
            "dict[str, float], collections.abc.Callable[[str], str | None]",
            "Expected a <class 'dict'>\n    - Expected a dot import path string: x",
            "x",
            "as dict[str, float] or the path of a function or class but got 'x'",
        ),
        (
            "<class 'str'>, <class 'some.library.Strategy'>",
            "Expected a <class 'str'>\n    - Problem with given class_path 'no.D': "
            "No module named 'no'",
            "{'class_path': 'no.D'}",
            "The class 'no.D', given for `option`, cannot be used: No module named 'no'.",
        ),
        ("<class 'int'>, list[int]", "Expected a <class 'int'>\n    - Another", "x", None),
        ("<class 'int'>, list[int]", "Expected a <class 'int'>", "lost.yaml", None),
    ],
)
def test_all_types_are_named(kinds: str, errors: str, value: str, sentence: str | None) -> None:
    message = UNION.format(key="option", kinds=kinds, errors=errors, value=value)
    found = explain_types(message, None, [])
    assert found is None if sentence is None else sentence in str(found)
