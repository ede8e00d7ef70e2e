"""The options of a recipe as one flat list."""

from prunelit.report.options import list_options


def test_nested_recipes_become_flat_names() -> None:
    arguments = {
        "sparsity": {"class_path": "a.b.Unstructured", "init_args": {"ratio": 0.5}},
        "include": ["*"],
        "fast": True,
        "name": None,
    }
    assert list(list_options(arguments)) == [
        ("sparsity", "Unstructured"),
        ("sparsity.ratio", 0.5),
        ("include", ["*"]),
        ("fast", True),
        ("name", None),
    ]


def test_a_class_without_options_is_its_name() -> None:
    assert dict(list_options({"allocation": {"class_path": "a.Even"}})) == {"allocation": "Even"}
