"""The interpreter of the program."""

from collections.abc import Callable

import pytest

from prunelit.tasks.judges.inside.carried import CONTAINER
from prunelit.tasks.judges.sandbox import Outcome

Run = Callable[..., Outcome]


def test_an_error_of_the_program_holds_no_value(run: Run) -> None:
    code = """
    import prunelit.tasks.judges.inside.program as inside
    error = Exception()
    error.__eq__ = lambda other: True
    inside.held = lambda value: error
    class Always:
        def __eq__(self, other): return True
    def total(numbers): return Always()
    """
    assert not run(code, "assert total([1, 2]) == 3").finished


def test_what_the_tests_await_is_done_in_the_program(run: Run) -> None:
    code = """
        import asyncio
        async def double(x):
            await asyncio.sleep(0)
            return 2 * x
        async def count(n):
            for i in range(n): yield i
        async def fail(): raise ValueError("no")
    """
    tests = """
        import asyncio
        assert asyncio.run(double(3)) == 6
        async def main():
            assert await double(4) == 8 and await asyncio.create_task(double(1)) == 2
            assert await asyncio.gather(double(1), double(2)) == [2, 4]
            assert [x async for x in count(3)] == [0, 1, 2]
            try:
                await fail()
            except ValueError as error:
                return str(error)
        assert asyncio.run(main()) == "no" and asyncio.iscoroutinefunction(double)
    """
    outcome = run(code, tests)
    assert outcome.finished, outcome.output


def test_an_awaited_object_cannot_answer(run: Run) -> None:
    code = """
        class Always:
            def __eq__(self, other): return True
        async def double(x): return Always()
    """
    assert not run(code, "import asyncio\nassert asyncio.run(double(2)) == 4").finished


def test_a_name_that_the_tests_replace_is_replaced_in_the_program(run: Run) -> None:
    code = """
        LIMIT = 3
        def helper(x): return x
        def total(x): return helper(x) + LIMIT
    """
    tests = """
        import __main__
        from unittest import mock
        with mock.patch("__main__.helper", return_value=10) as called:
            assert total(1) == 13
        called.assert_called_once_with(1)
        with mock.patch.object(__main__, "LIMIT", 9):
            assert total(1) == 10
        assert total(1) == 4
    """
    outcome = run(code, tests)
    assert outcome.finished, outcome.output


def test_a_program_is_no_script(run: Run) -> None:
    code = """
        import __main__, dataclasses, pickle, sys, unittest
        from unittest import mock
        @dataclasses.dataclass
        class Point: x: int
        def one(): return 1
        def f(n):
            with mock.patch(f"{__name__}.one", return_value=n), mock.patch("__main__.one", one):
                return pickle.loads(pickle.dumps(Point(one()))).x + (__main__.f is f)
        if __name__ == "__main__":
            n = int(input())
            unittest.main()
            sys.exit(f(n))
    """
    tests = """
        assert f(2) == 2 + (__name__ == "__main__")
    """
    outcome = run(code, tests)
    assert outcome.finished, outcome.output


HOLDER = """
    class Node:
        def __init__(self, value):
            self.value, self.children, self.d = value, [], {}
        def add(self, value): self.children.append(value)
        def total(self): return self.value + sum(child.total() for child in self.children)
        def __getitem__(self, key): return self.d.setdefault(key, [])
    items = [3, 1, 2]
    def count(): return len(items)
    def apply(function, *args): return function(*args), count()
"""


@pytest.mark.parametrize(
    "tests",
    [
        """
        root = Node(1)
        root.children.append(Node(2))
        root.children[0].children += [Node(3), Node(4)]
        assert root.total() == 10 and len(root.children) == 1
        """,
        """
        a = Node(1)
        a.d["x"] = 1
        a["y"].append(2)
        assert a.d == {"x": 1, "y": [2]}
        """,
        """
        import heapq
        heapq.heapify(items)
        heapq.heappush(items, 0)
        assert items == [0, 1, 2, 3] and count() == 4
        items.clear()
        assert count() == 0
        """,
        """
        held = items
        assert count() == 3
        for n in range(3):
            held.append(n)
            assert count() == 4 + n
        assert apply(held.pop)[1] == 5
        """,
        """
        a = Node(1)
        for n in range(100):
            a.children.append([n])
            a.children[-1].append(n)
        assert a.children == [[n, n] for n in range(100)]
        """,
    ],
)
def test_a_container_that_the_tests_change_is_that_of_the_program(tests: str, run: Run) -> None:
    outcome = run(HOLDER, tests)
    assert outcome.finished, outcome.output


@pytest.mark.parametrize(
    ("tests", "doubt"),
    [
        ("held = items\nitems.append(1)\nassert held == [3, 1, 2, 1]", CONTAINER),
        ("a = Node(1)\nheld = a.children\na.add(5)\nassert held == [5]", CONTAINER),
        ("a = Node(1)\nheld = a.children\na.add(5)\nassert a.children == [6]", CONTAINER),
        ("a = Node(1)\na.add(5)\nassert a.children == [6]", None),
    ],
)
def test_a_container_that_differs_is_a_doubt(tests: str, doubt: str | None, run: Run) -> None:
    outcome = run(HOLDER, tests)
    assert (outcome.finished, outcome.not_carried) == (False, doubt)
