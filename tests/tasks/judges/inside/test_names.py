"""Names of the tests, and those that they take from the program."""

import builtins

import pytest

from prunelit.tasks.judges.inside.names import Main, Names, build_class_with


class Other:
    """The end that knows the names of the program."""

    def __init__(self) -> None:
        self.known = {"limit": 3, "sum": 7}
        self.asked: list[str] = []

    def look_up(self, name: str) -> int:
        self.asked.append(name)
        return self.known[name]

    def ask(self, method: str, _: None, name: str, *values: int) -> None:
        assert method == ("assign" if values else "delete")
        del self.known[name]
        for value in values:
            self.known[name] = value


def test_the_body_of_a_class_uses_names_of_the_program(monkeypatch: pytest.MonkeyPatch) -> None:
    other = Other()
    names = Names(other, ["sum"])
    monkeypatch.setattr(builtins, "__build_class__", build_class_with(names))
    exec("class A:\n    x = limit + sum\n    y = max(x, 1)\nz = A.x, A.y", names)
    assert names["z"] == (10, 10)
    other.asked.clear()
    exec("class A:\n    def limit(self): return 1\n    x = limit\n    y = str.upper", names)
    assert "limit" not in other.asked
    assert "upper" not in other.asked
    exec("class A:\n    limit = staticmethod(limit)", names)
    assert other.asked == ["limit"]
    assert "limit" not in list(names)


def test_a_builtin_is_no_name_of_the_program_unless_it_says_so() -> None:
    assert eval("sum([1])", Names(Other(), [])) == 1
    with pytest.raises(NameError):
        eval("missing", Names(Other(), []))


def test_a_name_is_replaced_where_it_is() -> None:
    other = Other()
    names = Names(other, [])
    main = Main(other, names)
    names["own"] = 1
    main.own, main.limit = 2, 4
    assert (names["own"], main.own, other.known["limit"], main.limit) == (2, 2, 4, 4)
    del main.limit
    del main.own
    assert not hasattr(main, "limit")
    assert "own" not in names
