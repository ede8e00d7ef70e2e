"""Run one untrusted program in isolation. `sandbox.py` starts this file as a script.

The script runs in a bare interpreter and imports the standard library only. The program gets its
own namespaces for files, network, processes and shared memory. Its root folder holds Python and the
system's libraries, read-only, and a small empty folder to work in. It has no capabilities, and no
environment variable except the fixed ones of `ENVIRONMENT`. Its limits are hard. A filter lets it
make only the system calls of `system_calls.py`: it starts some threads and no process. If the
kernel refuses any of this, the script ends before the program starts.

There are three processes. The first is this script, which is killed with its parent. The second is
its child, the first process of the namespace. It is killed with the script, and its end kills
everything in the namespace. The third is the program.
"""

import ctypes
import json
import os
import resource
import signal
import struct
import sys
from collections.abc import Callable
from typing import NoReturn

# Constants of Linux, the same on every architecture.
NEW_MOUNTS, NEW_NAMES, NEW_IPC = 0x00020000, 0x04000000, 0x08000000
NEW_USERS, NEW_PROCESSES, NEW_NETWORK = 0x10000000, 0x20000000, 0x40000000
NOSUID, NODEV, NOEXEC = 0x2, 0x4, 0x8
BIND, RECURSIVE, PRIVATE = 0x1000, 0x4000, 0x40000
DETACH = 2
MOUNT_SETATTR, THIS_FOLDER, ALL_BELOW, READ_ONLY = 442, -100, 0x8000, 0x1
DEATH_SIGNAL, NO_NEW_PRIVILEGES, FILTER_CALLS, BY_PROGRAM = 1, 38, 22, 2
# Users that systemd gives to services for a time. With one of its own, the threads of a program are
# counted alone.
PASSING_USERS = range(61184, 65520)
# A hash seed keeps the order of sets of strings. Threads share one heap: a second one is large.
ENVIRONMENT = {"PYTHONHASHSEED": "0", "MALLOC_ARENA_MAX": "1"}

NOTHING = ctypes.c_ulong(0)

FAILED = 125  # exit status if the program could not be isolated

_libc = ctypes.CDLL(None, use_errno=True)


def call(name: str, *arguments: object) -> None:
    """Call a function of the C library that returns 0 on success.

    Raises:
        OSError: naming the function.
    """
    raw = [a.encode() if isinstance(a, str) else a for a in arguments]
    if getattr(_libc, name)(*raw) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


def mount(source: str, target: str, kind: str | None, flags: int, options: str = "") -> None:
    """Mount a file system, or with `BIND` a folder, at `target`."""
    call("mount", source, target, kind, ctypes.c_ulong(flags), options)


def control(option: int, value: int) -> None:
    """Set an attribute of this process."""
    call("prctl", option, *(ctypes.c_ulong(number) for number in (value, 0, 0, 0)))


def make_read_only(path: str) -> None:
    """Remount `path` and everything below it read-only, without set-user-id bits and devices."""
    attributes = (ctypes.c_uint64 * 4)(READ_ONLY | NOSUID | NODEV, 0, 0, 0)
    call(
        "syscall",
        ctypes.c_long(MOUNT_SETATTR),
        THIS_FOLDER,
        path,
        ctypes.c_uint(ALL_BELOW),
        ctypes.byref(attributes),
        ctypes.c_size_t(ctypes.sizeof(attributes)),
    )


def enter_namespaces() -> None:
    """Leave the machine's namespaces; the next child is the first process of the new one.

    A normal user becomes root of a user namespace until another program is executed. Outside of it
    the user stays the same, also in the kernel's count of processes.
    """
    flags = NEW_MOUNTS | NEW_NAMES | NEW_IPC | NEW_PROCESSES | NEW_NETWORK
    user, group = os.geteuid(), os.getegid()
    call("unshare", flags if user == 0 else flags | NEW_USERS)
    if user != 0:
        for name, text in (
            ("setgroups", "deny"),
            ("uid_map", f"{user} {user} 1"),
            ("gid_map", f"{group} {group} 1"),
        ):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)


def build_root(
    root: str, paths: list[str], files: dict[str, str], scratch: int, owner: int
) -> None:
    """Build the root folder from `paths` of the machine, `files`, and the folder `/work`.

    It lies one level below the root of its file system. There the kernel refuses to create a user
    namespace, in which the program would get capabilities again.

    Args:
        root: an empty folder.
        paths: absolute paths, mounted at the same place. The target of a link has its own entry.
        files: texts of new files by their path, relative to the root folder.
        scratch: capacity of `/work` in bytes.
        owner: user and group of `/work`.
    """
    mount("none", "/", None, RECURSIVE | PRIVATE)
    mount("none", root, "tmpfs", NOSUID | NODEV, "size=16m,nr_inodes=4096,mode=0755")
    top = f"{root}/top"
    for path in paths:
        inside = top + path
        os.makedirs(os.path.dirname(inside), exist_ok=True)
        if os.path.islink(path):
            os.symlink(os.readlink(path), inside)
            continue
        if os.path.isdir(path):
            os.makedirs(inside, exist_ok=True)
        else:
            with open(inside, "xb"):
                pass
        mount(path, inside, None, BIND | RECURSIVE)
    for path, text in files.items():
        os.makedirs(os.path.dirname(f"{top}/{path}"), exist_ok=True)
        with open(f"{top}/{path}", "x", encoding="utf-8") as file:
            file.write(text)
    os.mkdir(f"{top}/work")
    os.symlink("/work", f"{top}/tmp")
    os.chdir(root)
    call("pivot_root", ".", ".")
    call("umount2", ".", DETACH)
    os.chdir("/")
    make_read_only("/")
    os.chroot("/top")
    os.chdir("/")
    options = f"size={scratch},nr_inodes=1024,mode=0700,uid={owner},gid={owner}"
    mount("none", "/work", "tmpfs", NOSUID | NODEV | NOEXEC, options)


def confine(limits: dict[str, int], owner: int, calls: bytes) -> None:
    """Drop all privileges, set limits that cannot be raised again, and filter system calls."""
    os.chdir("/work")
    if os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(owner, owner, owner)
        os.setresuid(owner, owner, owner)
    for name, value in limits.items():
        resource.setrlimit(getattr(resource, name), (value, value))
    control(NO_NEW_PRIVILEGES, 1)
    instructions = ctypes.create_string_buffer(calls, len(calls))
    program = struct.pack("HP", len(calls) // 8, ctypes.addressof(instructions))
    call("prctl", FILTER_CALLS, ctypes.c_ulong(BY_PROGRAM), program, NOTHING, NOTHING)


def run(python: str, limits: dict[str, int], owner: int, calls: bytes) -> NoReturn:
    """Replace this process by the program; its stderr goes to its stdout."""
    confine(limits, owner, calls)
    os.dup2(1, 2)
    # `-I` would ignore the hash seed.
    os.execve(python, [python, "-S", "-s", "-B", "/program.py"], ENVIRONMENT)


def fork_and_wait(child: Callable[[], int]) -> int:
    """Run `child()` in a new process; return its exit status, 128 + n if signal n ended it."""
    complaint = os.dup(2)  # closed when the program starts
    pid = os.fork()
    if pid == 0:
        try:
            os._exit(child())
        except BaseException as error:  # noqa: BLE001 - the child must not go on as the parent
            os.write(complaint, str(error).encode())
            os._exit(FAILED)
    os.close(complaint)
    _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def main() -> int:
    """Follow the plan in the first argument; see `sandbox.py`."""
    plan = json.loads(sys.argv[1])
    calls = bytes.fromhex(plan["calls"])
    owner = os.geteuid() or PASSING_USERS[int.from_bytes(os.urandom(4), "big") % len(PASSING_USERS)]
    enter_namespaces()
    control(DEATH_SIGNAL, signal.SIGKILL)

    def first_process() -> int:
        control(DEATH_SIGNAL, signal.SIGKILL)
        build_root(plan["root"], plan["paths"], plan["files"], plan["scratch"], owner)
        return fork_and_wait(lambda: run(plan["python"], plan["limits"], owner, calls))

    return fork_and_wait(first_process)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except OSError as error:
        sys.stderr.write(str(error))
        sys.exit(FAILED)
