"""The interpreter of the program."""

from collections.abc import Callable

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
