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
