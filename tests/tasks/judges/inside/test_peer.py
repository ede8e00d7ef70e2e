"""Objects, functions and errors that one interpreter uses in the other."""

from collections.abc import Callable

from prunelit.tasks.judges.sandbox import Outcome

Run = Callable[..., Outcome]


def test_all_kinds_of_values_reach_the_program_and_the_tests(run: Run) -> None:
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


def test_objects_of_a_class_that_the_tests_name(run: Run) -> None:
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


def test_errors_arrive_with_all_that_they_hold(run: Run) -> None:
    code = """
        import sys
        def leave(x): sys.exit(x)
        def stop(x): raise StopIteration(x)
        def decode(x): return x.decode()
        def read(x): return open(x)
        def parse(x): compile(x, "x", "exec")
        def load(x): __import__(x)
        def chain():
            try: 1 / 0
            except ZeroDivisionError as error: raise ValueError("v") from error
        class Bad(Exception):
            code = 7
            def __init__(self, n): self.n = n
            def __str__(self): return f"bad {self.n}"
            def twice(self): return 2 * self.n
        class Worse(Bad): code = 8
        def fail(x): raise Worse(x)
        class Other(ValueError):
            def __str__(self): return "own"
        def fail_too(): raise Other(1)
        def call(function, kind=Bad):
            try: return function()
            except kind as error: return f"caught {error}"
        def hand_back(kind): raise kind("x")
    """
    tests = """
        class raises:
            def __init__(self, kind, text=""): self.kind, self.text = kind, text
            def __enter__(self): return self
            def __exit__(self, kind, error, _):
                assert issubclass(kind, self.kind) and self.text in str(error), repr(error)
                self.error = error
                return True
        def caught(kind, function, *args, text=""):
            with raises(kind, text) as found: function(*args)
            return found.error
        assert caught(SystemExit, leave, 3).code == 3
        assert caught(StopIteration, stop, 3).value == 3
        error = caught(UnicodeDecodeError, decode, b"a\\xff", text="invalid start byte")
        assert (error.start, error.object) == (1, b"a\\xff")
        error = caught(OSError, read, "/no")
        assert (error.errno, error.filename) == (2, "/no") and str(error).endswith("'/no'")
        assert caught(SyntaxError, parse, "a b").lineno == 1
        assert caught(ImportError, load, "no_such").name == "no_such"
        assert isinstance(caught(ValueError, chain).__cause__, ZeroDivisionError)
        assert str(caught(ValueError, fail_too)) == "own"
        error = caught(Bad, fail, 1, text="bad 1")
        assert (error.n, error.code, Bad.code, error.args) == (1, 8, 7, (1,))
        assert error.twice() == 2 and type(error) is Worse and Bad(4).n == 4
        def raise_bad(): raise Bad("x")
        assert call(raise_bad) == "caught bad x"
        class Own(Exception): pass
        def raise_own(): raise Own("y")
        assert call(raise_own, Own) == "caught y" and str(caught(Own, hand_back, Own)) == "x"
    """
    outcome = run(code, tests)
    assert outcome.finished, outcome.output


def test_functions_generators_and_contexts(run: Run) -> None:
    code = """
        from contextlib import contextmanager
        from functools import lru_cache, wraps
        def plus_one(function):
            "Add one."
            @wraps(function)
            def wrapper(*args, **kwargs): return function(*args, **kwargs) + 1
            return wrapper
        @lru_cache(None)
        def fib(n): return n if n < 2 else fib(n - 1) + fib(n - 2)
        def typed(x: int, y=2, *, z: str = "z") -> bool: return True
        def talk(x):
            heard = yield x
            yield heard
            return "end"
        def patient():
            try: yield 1
            except KeyError: yield "key"
            finally: log.append("closed")
        log = []
        @contextmanager
        def opened(x):
            log.append("in")
            try: yield x
            except ValueError as error: raise RuntimeError("wrapped") from error
            finally: log.append("out")
        class Node:
            def __init__(self, x, next=None): self.x, self.next = x, next
            def __eq__(self, other): return self.x == other.x
        def chain(): return Node([1], Node([2]))
        from dataclasses import dataclass
        @dataclass
        class Pair:
            x: int
            y: list
        def pair(): return Pair(1, [2])
    """
    tests = """
        import copy, inspect, types
        @plus_one
        def f(a, b=2):
            "Add."
            return a + b
        assert f(1) == 4 and (f.__name__, f.__doc__, plus_one.__doc__) == ("f", "Add.", "Add one.")
        assert str(inspect.signature(f)) == "(a, b=2)"
        class A:
            n = 5
            @plus_one
            def method(self, k): return self.n + k
        assert A().method(1) == 7
        assert fib(30) == 832040 and fib.cache_info().misses == 31
        assert str(inspect.signature(typed)) == "(x: int, y=2, *, z: str = 'z') -> bool"
        assert inspect.isfunction(typed) and inspect.isgenerator(talk(1))
        generator = talk(1)
        assert next(generator) == 1 and generator.send(5) == 5
        try:
            next(generator)
        except StopIteration as error:
            assert error.value == "end"
        generator = patient()
        assert next(generator) == 1 and generator.throw(KeyError()) == "key"
        generator.close()
        assert log == ["closed"]
        with opened(3) as x:
            assert x == 3 and log[-1] == "in"
        try:
            with opened(3):
                int("x")
        except RuntimeError as error:
            assert str(error) == "wrapped"
        assert log[-1] == "out"
        assert chain().next.x == [2] and chain().next.next is None
        node = Node([1])
        same = copy.deepcopy(node)
        node.x.append(2)
        node.x = [3]
        assert same.x == [1] and same != node and type(node) == Node
        chain().x = 5
        assert type(node)(4).x == 4
        from dataclasses import asdict, fields, is_dataclass, replace
        assert asdict(pair()) == {"x": 1, "y": [2]} and replace(pair(), x=3).x == 3
        assert [field.name for field in fields(Pair)] == ["x", "y"] and is_dataclass(Pair)
        assert not is_dataclass(node) and not is_dataclass(Node)
    """
    outcome = run(code, tests)
    assert outcome.finished, outcome.output
