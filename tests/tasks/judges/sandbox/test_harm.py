"""Harmful programs that must have no effect."""

import os
import platform
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from prunelit.tasks.judges.sandbox import Limits, Outcome, run_program

isolated = pytest.mark.usefixtures("isolated")


REFUSED = """
def refused(action):
    try:
        action()
    except OSError:
        return True
    return False
"""


def run(code: str, limits: Limits | None = None) -> Outcome:
    return run_program(REFUSED + textwrap.dedent(code), limits or Limits(cpu_seconds=2, seconds=20))


@isolated
@pytest.mark.parametrize(
    "code",
    [
        "import os\nwhile True: os.fork()",
        """
        import os
        while True:
            try:
                os.fork()
            except OSError:
                pass
        """,
        """
        import threading, time
        while True:
            threading.Thread(target=time.sleep, args=(60,)).start()
        """,
        "import subprocess, sys\nsubprocess.run([sys.executable, '-c', 'while True: pass'])",
        "import multiprocessing\nmultiprocessing.Pool(8).map(abs, range(10))",
    ],
)
def test_a_fork_bomb_does_not_go_off(code: str) -> None:
    assert not run(code).finished


@isolated
@pytest.mark.parametrize(
    "code",
    [
        "x = bytearray(10**12)",
        "x = []\nwhile True: x.append(bytearray(10**7))",
        "x = 'a'\nwhile True: x += x",
        "import mmap\nx = [mmap.mmap(-1, 10**8) for _ in range(100)]",
    ],
)
def test_a_memory_hog_is_refused_memory(code: str) -> None:
    before = _available_memory()
    outcome = run(code, Limits(cpu_seconds=10, seconds=60, memory=256 << 20))
    assert not outcome.finished
    assert not outcome.timed_out
    assert "Error" in outcome.output
    assert _available_memory() > before - (2 << 30)


def _available_memory() -> int:
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable"))


@isolated
@pytest.mark.parametrize(
    "code",
    [
        "while True: pass",
        "def f(): f()\nwhile True:\n  try: f()\n  except RecursionError: pass",
        # Signals that can be caught do not help it.
        """
        import signal
        for number in (signal.SIGXCPU, signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        while True: pass
        """,
    ],
)
def test_an_endless_loop_ends_with_its_processor_time(code: str) -> None:
    started = time.monotonic()
    outcome = run(code, Limits(cpu_seconds=1, seconds=120))
    assert not outcome.finished
    assert not outcome.timed_out
    assert time.monotonic() - started < 100


@isolated
@pytest.mark.parametrize(
    "code",
    [
        "import time; time.sleep(1000)",
        # It leaves its session and asks not to die with its parent.
        """
        import ctypes, os, time
        os.setsid() if os.getpid() != os.getpgid(0) else None
        ctypes.CDLL(None).prctl(1, 0, 0, 0, 0)
        time.sleep(1000)
        """,
        "import signal\nsignal.pause()",
        "import sys, time\nsys.stdout.close(); sys.stderr.close(); time.sleep(1000)",
    ],
)
def test_a_sleeper_is_killed_by_the_clock(code: str) -> None:
    started = time.monotonic()
    outcome = run(code, Limits(cpu_seconds=5, seconds=2))
    assert outcome.timed_out
    assert not outcome.finished
    assert time.monotonic() - started < 15


@isolated
def test_a_writer_of_files_fills_no_disk() -> None:
    outcome = run(
        """
        import os
        assert os.listdir() == []
        def large():
            with open("large", "wb", buffering=0) as file:
                for _ in range(100):
                    file.write(b"x" * 2**20)
        assert refused(large)
        assert os.path.getsize("large") <= 2**20
        def many():
            for number in range(100):
                with open(f"file{number}", "wb") as file:
                    file.write(b"x" * 2**20)
        assert refused(many)
        def empty():
            for number in range(10**5):
                open(f"empty{number}", "w").close()
        assert refused(empty)
        for path in ("/x", "/tmp/x", "/usr/lib/x", "/program.py", "/lib/x"):
            assert refused(lambda: open(path, "w")), path
        assert refused(lambda: os.remove("/program.py"))
        assert refused(lambda: os.chmod("/program.py", 0o777))
        """
    )
    assert outcome.finished, outcome.output


@isolated
def test_endless_output_is_cut() -> None:
    outcome = run("while True: print('x' * 1000)", Limits(cpu_seconds=1, file=10_000))
    assert not outcome.finished
    assert len(outcome.output) <= 10_000


@isolated
def test_killing_others_reaches_nobody() -> None:
    bystander = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"])
    try:
        outcome = run(
            f"""
            import os, signal
            for pid in ({os.getpid()}, {bystander.pid}, {os.getppid()}):
                try:
                    os.kill(pid, signal.SIGKILL)
                except OSError:
                    continue
                assert pid < 3, pid
            refused(lambda: os.kill(-1, signal.SIGKILL))
            refused(lambda: os.kill(1, signal.SIGKILL))
            """
        )
        assert outcome.finished, outcome.output
        time.sleep(0.2)
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


@isolated
def test_the_users_files_cannot_be_read() -> None:
    secret = Path(__file__).parents[3] / "material" / "text.jsonl"
    assert secret.is_file()
    outcome = run(
        f"""
        import os
        for path in ({str(secret)!r}, "/etc/passwd", "/etc/shadow", "/proc/self/environ",
                     "/proc/1/cmdline", "/dev/mem", os.path.expanduser("~/.ssh/id_rsa")):
            assert refused(lambda: open(path, "rb").read()), path
        for path in ({str(Path.cwd())!r}, "/home", "/proc", "/sys", "/var", "/etc/ssl"):
            assert refused(lambda: os.listdir(path)), path
        assert set(os.environ) <= {{"PYTHONHASHSEED", "MALLOC_ARENA_MAX", "LC_CTYPE"}}, os.environ
        os.chdir("/")
        for _ in range(50):
            os.chdir("..")
        assert "program.py" in os.listdir(), os.listdir()
        assert refused(lambda: os.chroot("/work"))
        for descriptor in range(3, 64):
            assert refused(lambda: os.fstat(descriptor)), descriptor
        """
    )
    assert outcome.finished, outcome.output


@isolated
def test_there_is_no_network() -> None:
    outcome = run(
        """
        import socket
        for address in ("127.0.0.1", "1.1.1.1"):
            assert refused(lambda: socket.create_connection((address, 80), 1)), address
        assert refused(lambda: socket.getaddrinfo("pypi.org", 443))
        assert refused(socket.if_nameindex)
        # A network namespace does not cover all kinds of sockets, such as AF_VSOCK and AF_NETLINK.
        for family in range(64):
            for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_RAW):
                assert refused(lambda: socket.socket(family, kind)), (family, kind)
        """
    )
    assert outcome.finished, outcome.output


@isolated
def test_system_calls_that_are_not_listed_are_refused() -> None:
    numbers = {
        "x86_64": {"keyctl": 250, "add_key": 248, "request_key": 249, "io_uring_setup": 425,
                   "userfaultfd": 323, "bpf": 321, "perf_event_open": 298, "ptrace": 101,
                   "process_vm_readv": 310, "pidfd_open": 434, "memfd_create": 319, "shmget": 29,
                   "socket": 41, "setns": 308, "seccomp": 317, "prctl": 157, "new": 500},
        "aarch64": {"keyctl": 219, "add_key": 217, "request_key": 218, "io_uring_setup": 425,
                    "userfaultfd": 282, "bpf": 280, "perf_event_open": 241, "ptrace": 117,
                    "process_vm_readv": 270, "pidfd_open": 434, "memfd_create": 279, "shmget": 194,
                    "socket": 198, "setns": 268, "seccomp": 277, "prctl": 167, "new": 500},
    }[platform.machine()]  # fmt: skip
    outcome = run(
        f"""
        import ctypes, errno, os
        libc = ctypes.CDLL(None, use_errno=True)
        for name, number in {numbers!r}.items():
            ctypes.set_errno(0)
            assert libc.syscall(ctypes.c_long(number), 0, 0, 0, 0, 0) == -1, name
            assert ctypes.get_errno() == errno.EPERM, (name, ctypes.get_errno())
        assert refused(os.fork) and refused(lambda: os.forkpty())
        assert refused(lambda: os.posix_spawn("/bin/true", ["true"], {{}}))
        """
    )
    assert outcome.finished, outcome.output


@isolated
def test_rights_cannot_be_won_back() -> None:
    outcome = run(
        """
        import ctypes, os, resource
        libc = ctypes.CDLL(None, use_errno=True)
        MS_REMOUNT, MS_BIND = 32, 4096
        assert libc.mount(b"none", b"/", None, MS_REMOUNT | MS_BIND, None) != 0
        assert libc.umount2(b"/usr/lib", 2) != 0
        assert libc.sethostname(b"x", 1) != 0
        for uid in (0, 1, 1000):
            try:
                os.setuid(uid)
            except OSError:
                continue
            assert os.getuid() == uid != 0
        for name in ("RLIMIT_NPROC", "RLIMIT_AS", "RLIMIT_CPU", "RLIMIT_FSIZE"):
            number = getattr(resource, name)
            try:
                resource.setrlimit(number, (resource.RLIM_INFINITY,) * 2)
            except (OSError, ValueError):
                continue
            raise AssertionError(name)
        # In a user namespace of its own it would have rights again, over new mounts for one.
        assert libc.unshare(0x10000000) != 0
        assert libc.unshare(0x10000000 | 0x00020000) != 0
        assert libc.mount(b"none", b"/work", b"tmpfs", 0, None) != 0
        """
    )
    assert outcome.finished, outcome.output


@isolated
def test_the_program_dies_with_who_started_it(
    processes: Callable[[], set[int]],
    tmp_path_factory: pytest.TempPathFactory,
    start_process: Callable[..., BaseProcess],
) -> None:
    before = processes()
    # The folder that the program's root was built in is left to the killed process.
    root = tmp_path_factory.mktemp("root")
    (root / "parent.py").write_text(
        "import tempfile\n"
        "from prunelit.tasks.judges.sandbox import run_program\n"
        "tempfile.tempdir = FOLDER\n"
        "run_program('import time; time.sleep(1000)')\n"
    )
    parent = start_process(root / "parent.py", {"FOLDER": str(root)})
    try:
        for _ in range(300):
            if processes() - before:
                break
            time.sleep(0.1)
        assert processes() - before
    finally:
        parent.kill()
        parent.join()
    for _ in range(100):
        if not processes() - before:
            break
        time.sleep(0.1)
    assert not processes() - before
