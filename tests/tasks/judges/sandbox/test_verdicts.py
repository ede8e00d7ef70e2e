"""Wrong programs that try to pass their tests, and right ones that are unusual."""

import textwrap

import pytest

from prunelit.tasks.judges import Execution
from prunelit.tasks.judges.helpers import Helpers, find_helpers
from prunelit.tasks.judges.sandbox import Limits, Outcome, run_program
from prunelit.tasks.questions import Example

pytestmark = pytest.mark.usefixtures("isolated")

TESTS = """
def check(candidate):
    assert candidate([1, 2]) == 3
    assert abs(candidate([0.5]) - 0.5) < 1e-6
    assert candidate([]) in (0, None)

check(total)
"""
SUM = "def total(numbers): return sum(numbers)\n"


def run(
    code: str, tests: str = TESTS, helpers: Helpers | None = None, limits: Limits | None = None
) -> Outcome:
    limits = limits or Limits(cpu_seconds=2, seconds=20)
    return run_program(textwrap.dedent(code), limits, textwrap.dedent(tests), helpers)


ALWAYS = """
class Always{base}:
    def yes(self, *_): return True
    def zero(self, *_): return 0
    __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = __bool__ = __contains__ = yes
    __sub__ = __rsub__ = __abs__ = __hash__ = zero
    __class__ = property(lambda self: int)
def total(numbers): return Always()
"""

WRONG = {
    "wrong": "def total(numbers): return 0",
    "always equal": ALWAYS.format(base=""),
    "an integer that is always equal": ALWAYS.format(base="(int)"),
    "a number that is always equal": ALWAYS.format(base="(float)"),
    "a list that is always equal": ALWAYS.format(base="(list)"),
    "an equal class": """
        class Meta(type):
            def __eq__(self, other): return True
        class total(metaclass=Meta):
            def __init__(self, numbers): pass
    """,
    "exit in the function": "import sys\ndef total(numbers): sys.exit(0)",
    "exit at once": "import os\ndef total(numbers): os._exit(0)",
    "exit later": "import os, sys\nsys.exit = exit = lambda *_: os._exit(0)\ntotal = sys.exit",
    "exit status as a value": "def total(numbers): raise SystemExit(0)",
    "dies in the middle": SUM + "import os\ntotal = lambda n: sum(n) if n != [] else os._exit(0)",
    "other builtins": """
        import builtins, sys
        builtins.abs = abs = lambda x: 0
        builtins.AssertionError = AssertionError = type("Quiet", (BaseException,), {})
        sys.excepthook = lambda *_: None
        def total(numbers): return 3 if numbers else 7
    """,
    "its own check": "def total(numbers): return 0\ndef check(candidate): pass",
    "other names": "globals().update(total=lambda n: 0, check=print, __name__='x')",
    "the tests of a frame": """
        import gc, sys
        def total(numbers):
            frame = sys._getframe()
            while frame:
                for space in (frame.f_globals, frame.f_locals):
                    for name in list(space):
                        if "pass" in name.lower() or name in ("check", "tests", "token"):
                            space[name] = lambda *_: True
                frame = frame.f_back
            return 0
    """,
    "its own source": """
        import os
        def total(numbers): return 0
        print(*open("/program.py"))
        print("1")
        for number in range(3, 64):
            try:
                os.write(number, b"1")
            except OSError:
                pass
        import atexit
        atexit.register(print, "1")
    """,
    "answers to nobody": """
        import os
        for _ in range(9):
            os.write(0, len(b'["return", null]').to_bytes(8, "big") + b'["return", null]')
        def total(numbers): return 0
    """,
    "no conversation": "import os\nos.write(0, b'passed' * 99)\ndef total(numbers): return 0",
    "a patched conversation": """
        import sys
        from prunelit.tasks.judges.inside import peer, tests, plain
        tests.run_tests = peer.Peer.may = plain.held = lambda *_: True
        def total(numbers): return 0
    """,
    "an endless answer": "def total(numbers):\n    while True: pass",
    "a deep answer": "def total(n):\n    x = []\n    for _ in range(10**5): x = [x]\n    return x",
    "no function": "total = 3",
    "a function of strings": "def total(numbers): return '3'",
    "a method that answers": """
        class Text:
            def __radd__(self, other): return other
            def __index__(self): return 7
            __float__ = __int__ = __index__
        def total(numbers): return Text()
    """,
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_program_does_not_pass(name: str) -> None:
    outcome = run(WRONG[name], limits=Limits(cpu_seconds=1, seconds=20))
    assert not outcome.finished
    assert not outcome.timed_out


def test_methods_that_get_what_a_test_expects_cannot_answer() -> None:
    lie = """
        class Lie:
            def startswith(self, text): return True
            equals = __contains__ = startswith
            def __iter__(self): return iter("")
            value = 0
        def f(): return Lie()
    """
    for test in ("assert f().startswith('a')", "assert f().equals(3)", "assert 3 in f()"):
        assert not run(lie, test).finished, test
    assert run(lie, "assert f().value == 0\nassert list(f()) == []").finished


@pytest.mark.parametrize(
    "code",
    [
        "class total:\n    def __init__(self, _): pass\n    def __contains__(self, _): return True",
        """
        class Lie:
            def __call__(self, _): return self
            def __contains__(self, _): return True
        total = Lie()
        """,
    ],
)
def test_only_a_function_stands_for_a_function(code: str) -> None:
    helpers = find_helpers("def total(numbers):\n", "    return numbers\n")
    assert not run(code, "assert 3 in total([3])", helpers).finished
    assert run("def total(numbers): return numbers", "assert 3 in total([3])", helpers).finished


def test_a_module_of_the_tests_is_that_of_the_standard_library() -> None:
    fake = "class math:\n    isclose = staticmethod(lambda *_: True)\ndef f(): return 7"
    assert not run(fake, "assert math.isclose(f(), 3)").finished
    assert run("import math\ndef f(): return 7", "assert math.isclose(f(), 7)").finished


def test_the_helpers_of_a_prompt_are_not_those_of_the_program() -> None:
    context = "def double(x):\n    return 2 * x\n\ndef half(x):\n    '''Undo double.'''\n"
    tests = "assert all(half(double(x)) == x for x in range(9))\n"
    solution = "    return x // 2\n"
    judge = Execution()
    judge.allow()
    example = Example(context, tests, solution)
    assert judge.right(example, solution) == {"passed": True}
    cheat = "    return x\n\ndef double(x):\n    return x\n"
    assert judge.right(example, cheat) == {"passed": False}


def test_a_builtin_is_replaced_only_where_the_solution_does_so() -> None:
    code = "def sum(a, b): return a + b"
    assert run(code, "assert sum(1, 2) == 3", find_helpers("", code)).finished
    assert not run(code, "assert sum(1, 2) == 3").finished
    assert run(code, "assert sum([1, 2]) == 3").finished


RIGHT = {
    "output without an end": (SUM + "print('x', end='')", TESTS),
    "much output": (SUM + "print('0123456789\\n' * 200_000)", TESTS),
    "output of each call": ("def total(n):\n    print('x' * 10**5)\n    return sum(n)", TESTS),
    "a long program": (SUM + "#" * (17 << 20), TESTS),
    "threads": (
        """
        from concurrent.futures import ThreadPoolExecutor
        def total(numbers):
            with ThreadPoolExecutor(32) as pool:
                list(pool.map(abs, range(100)))
                return sum(pool.map(lambda x: x, numbers))
        """,
        TESTS,
    ),
    "asyncio": (
        """
        import asyncio
        async def one(x):
            await asyncio.sleep(0)
            return x
        async def all_of(numbers): return sum(await asyncio.gather(*map(one, numbers)))
        def total(numbers): return asyncio.run(all_of(numbers))
        """,
        TESTS,
    ),
    "a recursion": (
        "import sys\nsys.setrecursionlimit(10**5)\n"
        "def total(n): return n[0] + total(n[1:]) if n else 0",
        TESTS + "assert total([1] * 5000) == 5000",
    ),
    "large numbers and texts": (
        "def f(x): return x",
        "for x in (10**9999, 'é' * 10**6, [float('inf')] * 9999, '\\ud800'): assert f(x) == x",
    ),
    "nothing": ("", ""),
    "exit of the tests": (SUM, "import sys\nassert total([1]) == 1\nsys.exit()"),
}


@pytest.mark.parametrize("name", RIGHT)
def test_a_right_program_passes(name: str) -> None:
    code, tests = RIGHT[name]
    outcome = run(code, tests, limits=Limits(cpu_seconds=4, seconds=20))
    assert outcome.finished, outcome.output[-2000:]


def test_a_program_that_is_larger_than_its_memory_is_wrong_and_ends_nothing() -> None:
    code = SUM + f"x = {'[' + '1,' * (8 << 20) + ']'}"
    assert not run(code, limits=Limits(cpu_seconds=2, memory=96 << 20)).finished


def test_all_kinds_of_values_reach_the_program_and_the_tests() -> None:
    code = """
        from collections import Counter, OrderedDict, namedtuple
        import enum, itertools, math, re
        def same(x): return x
        def sort_it(rows):
            rows.sort()
            for row in rows: row.append(0)
            return rows
        def add_to(table, key="k", *, value): table[key] = value
        def squares(n):
            for i in range(n): yield i * i
        def count(): return itertools.count(1)
        def adder(a): return lambda b: a + b
        def twice(f, x): return f(f(x))
        def fail(x): raise ValueError(f"bad {x}")
        class Mine(KeyError):
            def __init__(self, code):
                super().__init__(code)
                self.code = code
        def fail_mine(): raise Mine(7)
        counter = 0
        def step():
            global counter
            counter += 1
            return counter
        class Size(enum.IntEnum):
            SMALL = 1
        def size(): return Size.SMALL
        def hello(): print("hello")
        def keys(table): return table.keys()
        def kind_of(x, kind): return isinstance(x, kind)
        def words(text): return Counter(text.split())
        def mean(xs):
            import statistics
            return statistics.mean(xs)
        def depth(tree):
            if tree is None: return 0
            tree.seen = True
            return 1 + max(depth(tree.left), depth(tree.right))
        def oldest(trees): return max(trees)
        def spy(tree): return tree._secret
        def spy_on(function): return function.__globals__
    """
    tests = """
        import contextlib, io
        values = [None, 1, 1.5, 2j, "a", b"a", (1, [2]), {1: {2}}, frozenset({3}), range(3), ...]
        for value in values:
            assert same(value) == value and type(same(value)) is type(value)
        assert same([1, True, None]) is not None and same(True) is True
        rows = [[2], [1]]
        first = rows[0]
        assert sort_it(rows) is rows
        assert rows == [[1, 0], [2, 0]] and rows[1] is first
        table = {}
        assert add_to(table, value=(1,)) is None and table == {"k": (1,)}
        assert list(squares(4)) == [0, 1, 4, 9] and next(squares(2)) == 0
        assert [n for n, _ in zip(count(), "abc")] == [1, 2, 3]
        assert adder(2)(3) == 5 and twice(lambda x: x * 3, 2) == 18
        assert same(len)("abc") == 3 and list(same(iter([1, 2]))) == [1, 2]
        try:
            fail(3)
        except ValueError as error:
            assert str(error) == "bad 3" and error.args == ("bad 3",)
        else:
            raise AssertionError
        try:
            fail_mine()
        except Mine as error:
            assert isinstance(error, KeyError) and error.code == 7 and error.args == (7,)
        assert (step(), step(), counter) == (1, 2, 2)
        assert size() == 1 and size() == Size.SMALL and Size.SMALL.name == "SMALL"
        assert Size.SMALL + 1 == 2 and 2 > Size.SMALL
        with contextlib.redirect_stdout(io.StringIO()) as out:
            hello()
        assert out.getvalue() == "hello\\n"
        assert keys({1: 2}) == {1} and kind_of(1, int) and not kind_of("a", (int, float))
        assert words("a b a") == {"a": 2, "b": 1} and words("b b").most_common(1) == [("b", 2)]
        assert math.isclose(same(0.1) + 0.2, 0.3)
        loop = []
        loop.append(loop)
        assert same(loop) is loop
        def helper(x): return same(x) + 1
        assert helper(1) == 2 and [helper(x) for x in (1, 2)] == [2, 3]
        import statistics
        try:
            mean([])
        except statistics.StatisticsError as error:
            assert "at least one" in str(error)
        else:
            raise AssertionError
        class Tree:
            _secret = 0
            def __init__(self, left=None, right=None): self.left, self.right = left, right
            def __gt__(self, other): return self.right is None and other.right is not None
        tree = Tree(Tree(), Tree(Tree()))
        assert depth(tree) == 3 and tree.left.seen and oldest([tree, tree.left]) is tree.left
        for spying in (lambda: spy(tree), lambda: spy_on(spy_on), lambda: spy_on(lambda: 0)):
            try:
                found = spying()
            except TypeError as error:
                assert "of an object of the tests" in str(error)
            else:
                assert "tree" not in found
        assert callable(same) and same.__name__ == "same"
    """
    outcome = run(code, tests)
    assert outcome.finished, outcome.output


def test_objects_of_a_class_that_the_tests_name() -> None:
    code = """
        class Node:
            def __init__(self, value): self.value, self.next = value, None
        def last(node):
            while node.next: node = node.next
            return node
        class Vector:
            count = 0
            def __init__(self, *xs): self.xs = list(xs)
            def __eq__(self, other): return isinstance(other, Vector) and self.xs == other.xs
            def __add__(self, other): return Vector(*map(sum, zip(self.xs, other.xs)))
            def __mul__(self, k): return Vector(*(k * x for x in self.xs))
            __rmul__ = __mul__
            def __len__(self): return len(self.xs)
            def __getitem__(self, i): return self.xs[i]
            def __setitem__(self, i, x): self.xs[i] = x
            def __contains__(self, x): return x in self.xs
            def __str__(self): return f"V{tuple(self.xs)}"
            def __enter__(self): return self
            def __exit__(self, *_): self.closed = True
            def __hash__(self): return hash(tuple(self.xs))
            def push(self, x, *, twice=False): self.xs += [x] * (1 + twice)
            @classmethod
            def zero(cls): return cls(0)
        class Stack(list): pass
        class Other(Vector): pass
        def make(): return Other(5)
    """
    tests = """
        root = Node(1)
        root.next = Node(2)
        assert last(root) is root.next and last(root).value == 2 and root.next.next is None
        v = Vector(1, 2)
        assert v + v == Vector(2, 4) == v * 2 == 2 * v and v != Vector(1) and v != [1, 2]
        assert not v == (1, 2) and isinstance(v, Vector) and not isinstance(root, Vector)
        assert len(v) == 2 and v[1] == 2 and list(v) == [1, 2] and str(v) == "V(1, 2)" and 2 in v
        v[0] = 7
        v.push(3, twice=True)
        assert v.xs == [7, 2, 3, 3] and Vector.zero() == Vector(0) and Vector.count == 0
        Vector.count = 4
        assert v.count == 4 and {Vector(1): 5}[Vector(1)] == 5
        with v as same:
            assert same is v
        assert v.closed is True
        stack = Stack()
        stack.append(3)
        assert stack.pop() == 3 and stack == [] and not stack
        try:
            v.missing
        except AttributeError as error:
            assert "missing" in str(error)
        other = make()
        other.push(1)
        assert other.xs == [5, 1] and isinstance(other, Vector) and type(other).__name__ == "Other"
    """
    outcome = run(code, tests)
    assert outcome.finished, outcome.output


def test_unittest_judges_too() -> None:
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


def test_an_error_of_the_program_holds_no_value() -> None:
    code = """
    import prunelit.tasks.judges.inside.program as inside
    error = Exception()
    error.__eq__ = lambda other: True
    inside.held = lambda value: error
    class Always:
        def __eq__(self, other): return True
    def total(numbers): return Always()
    """
    assert not run(code).finished


def test_the_program_makes_no_class_of_the_tests() -> None:
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
def test_the_program_skips_no_test(error: str) -> None:
    tests = """
    import unittest
    class Total(unittest.TestCase):
        def test_total(self):
            self.assertEqual(total([1, 2]), 3)
    unittest.main()
    """
    code = f"import unittest\ndef total(numbers): raise unittest.{error}\n"
    assert not run(code, tests=tests).finished
