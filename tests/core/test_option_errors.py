"""Messages of the parser in plain words. `tests/bad_input` sees them on the command line."""

import pytest

from prunelit.core.option_errors import rephrase

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
            "(similar: 'float32').",
        ),
        (
            "Parser key \"seed\":\n  Expected a <class 'int'>. Got value: 1.5",
            WANDA,
            "Expected `seed` of prunelit.pruners.Wanda as int but got '1.5'.",
        ),
        (
            'Parser key "ratio": Not of type Ratio: 30.0 does not conform to restriction v>=0',
            None,
            "Expected `ratio` as a number v with v>=0 but got '30.0'.",
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
            "prunelit.pruners.Wanda.",
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
            "`class_path`, such as prunelit.tasks.CollectionRetrieval, and `init_args`.",
        ),
        ("A message of another form", None, "A message of another form"),
    ],
    ids=range(14),
)
def test_sentence(message: str, owner: str | None, sentence: str) -> None:
    known = ["sparsity", "include"] if owner else KNOWN
    assert sentence in rephrase(message, owner, known, [])
