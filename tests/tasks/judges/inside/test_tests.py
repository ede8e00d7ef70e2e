"""The interpreter of the tests, and what a program cannot do to it."""

from collections.abc import Callable

import pytest

from prunelit.tasks.judges.helpers import find_helpers
from prunelit.tasks.judges.inside.carried import (
    CLASS,
    FILES,
    INTERPRETER,
    METHOD,
    OBJECT,
    OWN_NAME,
    PLAIN,
    SWALLOWED,
)
from prunelit.tasks.judges.sandbox import Outcome

Run = Callable[..., Outcome]

SUM = "def total(numbers): return sum(numbers)\n"


def test_unittest_judges_too(run: Run) -> None:
    tests = """
        import unittest
        class Totals(unittest.TestCase):
            def test_total(self):
                self.assertEqual(total([1, 2]), 3)
                with self.assertRaises(TypeError):
                    total(3)
        unittest.main()
    """
    assert run(SUM, tests).finished
    assert not run(SUM.replace("sum", "len"), tests).finished
    # A program cannot end the tests, and an exit of its own is not theirs.
    assert not run("total = exit = lambda n: __import__('sys').exit(0)", "total(1)").finished


def test_the_program_makes_no_class_of_the_tests(run: Run) -> None:
    tests = """
    class Point:
        pass
    assert total(Point, 2) == 4
    """
    code = """
    def total(kind, number):
        return type(kind)("X", (int,), {"__eq__": lambda self, other: True})(0)
    """
    assert not run(code, tests=tests).finished


@pytest.mark.parametrize("error", ["SkipTest", "case._ShouldStop"])
def test_the_program_skips_no_test(error: str, run: Run) -> None:
    tests = """
    import unittest
    class Total(unittest.TestCase):
        def test_total(self):
            self.assertEqual(total([1, 2]), 3)
    unittest.main()
    """
    code = f"import unittest\ndef total(numbers): raise unittest.{error}\n"
    assert not run(code, tests=tests).finished


@pytest.mark.parametrize(
    ("code", "tests"),
    [
        ("def f(x): raise StopIteration", "assert all(map(lambda x: f(x) == x, [1]))"),
        ("def f(x): raise x", "class S(StopIteration): pass\nassert not [*map(f, [S])]"),
        ("def f(x): raise ValueError from SystemExit(0)", """
            try:
                f(1)
            except ValueError as error:
                raise error.__cause__
        """),
    ],
)  # fmt: skip
def test_an_error_of_the_program_ends_nothing_without_a_word(
    code: str, tests: str, run: Run
) -> None:
    assert not run(code, tests).finished


def test_the_program_makes_no_mock_that_equals_everything(run: Run) -> None:
    code = """
        def f(mock, x):
            kind = type(mock)
            for number in range(12):
                try:
                    reference = kind(mock._peer, number, [])
                    made = reference(**{"__eq__.return_value": True})
                except BaseException:
                    continue
                if made is not None:
                    return made
    """
    tests = "from unittest.mock import MagicMock\nassert f(MagicMock(return_value=None), 2) == 4"
    assert not run(code, tests).finished


def test_an_exit_of_the_program_is_known_whatever_it_holds(run: Run) -> None:
    code = """
        def f():
            error = SystemExit(0)
            error.__dict__.update(from_the_other=0, __dict__={})
            return error
    """
    assert not run(code, "raise f()").finished


@pytest.mark.parametrize("end", ["return True", "raise ValueError"])
@pytest.mark.parametrize("named", ["", "C\n"])
def test_the_program_swallows_no_failed_test(end: str, named: str, run: Run) -> None:
    code = f"""
        class C:
            def __enter__(self): return 0
            def __exit__(self, *_): {end}
        def f(x): return C()
    """
    tests = f"""
        {named.strip()}
        try:
            with f(2) as found:
                assert found == 4
        except ValueError:
            pass
    """
    assert not run(code, tests).finished


def test_errors_that_are_swallowed_by_right(run: Run) -> None:
    code = """
        class ignoring:
            def __init__(self, *kinds): self.kinds = kinds
            def __enter__(self): return self
            def __exit__(self, kind, *_): return kind is not None and issubclass(kind, self.kinds)
        class Lie:
            def __enter__(self): return 0
            def __exit__(self, *_): return True
        def lie(): return Lie()
    """
    tests = """
        with ignoring(ValueError):
            int("x")
        try:
            with ignoring(ValueError):
                {}[1]
        except KeyError:
            caught = True
        assert caught
    """
    assert run(code, tests).finished
    outcome = run(code, "with lie() as found: assert found.value == 4")
    assert (outcome.finished, outcome.not_carried) == (False, SWALLOWED)


def test_a_right_program_that_fails_by_what_is_not_carried_says_so(run: Run) -> None:
    code = """
        class Text:
            def __init__(self, x=""): self.x = x
            def upper(self): return self.x.upper()
        def f(x): return Text(x)
        def g(x): return x.get_nowait()
        def h(): return LIMIT
        import random
        def r(): return random.random()
    """
    for tests, reason in {
        "assert f('a').upper() == 'A'": METHOD,
        "import queue\nq = queue.Queue()\nq.put(1)\nassert g(q) == 1": OBJECT,
        "class My(Text):\n    pass\nassert My('a').upper() == 'A'": CLASS,
        "LIMIT = 3\nassert h() == 3": OWN_NAME,
        "import random\nrandom.seed(1)\na = r()\nrandom.seed(1)\nassert r() == a": INTERPRETER,
        "assert f('a').x == 'b'": None,
    }.items():
        outcome = run(code, tests)
        assert (outcome.finished, outcome.not_carried) == (False, reason), tests
    assert run(code, "assert f('a').x == 'a' and not hasattr(f('a'), 'upper')").not_carried is None


def test_objects_that_a_test_lends(run: Run) -> None:
    code = """
        import functools
        def read(file): return file.read()
        def write(file): print("hi", file=file)
        def shuffle(xs, source): source.shuffle(xs)
        def add(space):
            space.total = space.a + space.b
        def once(kind): return kind.__name__, kind.count
    """
    tests = """
        import io, random
        from types import SimpleNamespace
        file = io.StringIO()
        write(file)
        assert read(io.StringIO("ab")) == "ab" and file.getvalue() == "hi\\n"
        mine, theirs = [1, 2, 3], [1, 2, 3]
        random.Random(1).shuffle(mine)
        shuffle(theirs, random.Random(1))
        assert mine == theirs
        space = SimpleNamespace(a=1, b=2)
        add(space)
        assert space.total == 3
        class Point:
            count = 2
        assert once(Point) == ("Point", 2)
    """
    outcome = run(code, tests)
    assert outcome.finished, outcome.output


def test_the_program_reaches_nothing_else_of_the_tests(run: Run) -> None:
    tests = """
        expected = 4
        class P:
            def norm(self): return 1
        def given(x): return x
        f(given, P, (x for x in range(3)))
        assert expected == 4 and P().norm() == 1
    """
    code = """
        def f(function, kind, generator):
            for action in (
                lambda: function.__globals__.update(expected=0),
                lambda: function.__dict__.update(expected=0),
                lambda: generator.gi_frame.f_globals.update(expected=0),
                lambda: setattr(kind, "norm", lambda *_: 4),
            ):
                try:
                    action()
                except (TypeError, AttributeError):
                    continue
                raise AssertionError
    """
    outcome = run(code, tests)
    assert outcome.finished, outcome.output


KINDS = """
    import dataclasses, datetime, enum
    from typing import Generic, NamedTuple, TypeVar
    from zoneinfo import ZoneInfo
    class Level(enum.IntEnum): LOW = 1
    class Word(str):
        def shout(self): return self.upper()
    class Pair(NamedTuple):
        x: int
        def double(self): return 2 * self.x
    class Plain(NamedTuple):
        x: int
    @dataclasses.dataclass(frozen=True)
    class Point: x: int
    class Stack(Generic[TypeVar("T")]):
        def top(self): return 1
    def level(): return Level.LOW
    def word(): return Word("a")
    def pair(): return Pair(2)
    def plain(): return Plain(2)
    def points(): return {Point(1)}
    def later(): return datetime.datetime(2020, 1, 1, fold=1)
    def keep(text):
        with open("/tmp/x", "w") as file: file.write(text)
        with open("/tmp/x") as file: return file.read()
    def null(): return open("/dev/null", "w")
"""


def test_objects_of_classes_that_the_tests_name_are_themselves_from_the_first_on(run: Run) -> None:
    tests = """
        assert level() is Level.LOW and level() == 1
        assert points() == {Point(1)} and word().shout() == "A" and Word("a") == "a"
        assert Stack[int]().top() == 1 and "top" in dir(Stack)
        assert later().fold == 1 and keep("text") == "text"
    """
    outcome = run(KINDS, tests)
    assert outcome.finished, outcome.output


@pytest.mark.parametrize(
    ("tests", "doubt"),
    [
        ("assert word().shout() == 'A'", PLAIN),
        ("assert pair().double() == 4", PLAIN),
        ("assert plain().x == 3", None),
        ("null()", FILES),
    ],
)
def test_plain_values_and_devices_are_doubts(tests: str, doubt: str | None, run: Run) -> None:
    outcome = run(KINDS, tests)
    assert (outcome.finished, outcome.not_carried) == (False, doubt)


def test_a_device_at_the_start_is_a_doubt(run: Run) -> None:
    assert run("open('/dev/null')", "f()").not_carried == FILES


def test_a_class_that_the_tests_do_not_ask_for_is_not_named(run: Run) -> None:
    code = """
        from prunelit.tasks.judges.inside.program import Program
        class Always:
            def __eq__(self, other): return True
        result = append = Always
        do = Program._do
        Program._do = lambda self, method, *a: [Always] if method == "classes" else do(
            self, method, *a)
        def total(numbers): return Always()
    """
    tests = """
        def check(candidate):
            result = candidate([1])
            [].append(result)
            assert result == 3
        check(total)
    """
    helpers = find_helpers("def total(numbers):\n", "    return 3\n")
    assert not run(code, tests, helpers).finished
    assert not run(code.replace("Program._do =", "x ="), tests).finished
