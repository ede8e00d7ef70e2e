"""The system calls that a program of the sandbox may make: everything else is refused.

The list holds the calls of a Python program that computes, works with files in its own folder,
waits, and starts threads. Keys, sockets, other processes, new kernel interfaces and everything that
needs rights are not in it. A program may replace itself by another one, under the same filter.
"""

import platform
import struct
import sys
from collections.abc import Iterator
from errno import ENOSYS, EPERM

# Name, number on x86_64, number on aarch64; from the kernel's unistd.h.
_FILES = """
read 0 63, write 1 64, readv 19 65, writev 20 66, pread64 17 67, pwrite64 18 68, preadv 295 69,
pwritev 296 70, open 2 -, openat 257 56, creat 85 -, close 3 57, close_range 436 436, stat 4 -,
fstat 5 80, lstat 6 -, newfstatat 262 79, statx 332 291, statfs 137 43, fstatfs 138 44, access 21 -,
faccessat 269 48, faccessat2 439 439, lseek 8 62, ftruncate 77 46, truncate 76 45, fallocate 285 47,
fadvise64 221 223, fsync 74 82, fdatasync 75 83, flock 73 32, fcntl 72 25, dup 32 23, dup2 33 -,
dup3 292 24, pipe 22 -, pipe2 293 59, getdents64 217 61, getcwd 79 17, chdir 80 49, fchdir 81 50,
rename 82 -, renameat 264 38, renameat2 316 276, mkdir 83 -, mkdirat 258 34, rmdir 84 -, link 86 -,
linkat 265 37, symlink 88 -, symlinkat 266 36, unlink 87 -, unlinkat 263 35, readlink 89 -,
readlinkat 267 78, chmod 90 -, fchmod 91 52, fchmodat 268 53, umask 95 166, utime 132 -,
utimes 235 -, utimensat 280 88, futimesat 261 -, getxattr 191 8, lgetxattr 192 9, fgetxattr 193 10,
listxattr 194 11, llistxattr 195 12, flistxattr 196 13, sendfile 40 71, copy_file_range 326 285
"""
_MEMORY = """
brk 12 214, mmap 9 222, munmap 11 215, mremap 25 216, mprotect 10 226, madvise 28 233,
mincore 27 232, msync 26 227
"""
_WAITING = """
poll 7 -, ppoll 271 73, select 23 -, pselect6 270 72, epoll_create 213 -, epoll_create1 291 20,
epoll_ctl 233 21, epoll_wait 232 -, epoll_pwait 281 22, epoll_pwait2 441 441, eventfd 284 -,
eventfd2 290 19, futex 202 98, nanosleep 35 101, clock_nanosleep 230 115, pause 34 -, alarm 37 -,
setitimer 38 103, getitimer 36 102, sched_yield 24 124, restart_syscall 219 128
"""
_OWN_PROCESS = """
getpid 39 172, getppid 110 173, gettid 186 178, getuid 102 174, geteuid 107 175, getgid 104 176,
getegid 108 177, getresuid 118 148, getresgid 120 150, getgroups 115 158, getpgrp 111 -,
getpgid 121 155, getsid 124 156, setsid 112 157, setpgid 109 154, getrusage 98 165,
getrlimit 97 163, times 100 153, uname 63 160, sysinfo 99 179, getcpu 309 168,
sched_getaffinity 204 123, getpriority 140 141, clock_gettime 228 113, clock_getres 229 114,
gettimeofday 96 169, time 201 -, getrandom 318 278, arch_prctl 158 -, set_tid_address 218 96,
set_robust_list 273 99, get_robust_list 274 100, rseq 334 293, rt_sigaction 13 134,
rt_sigprocmask 14 135, rt_sigreturn 15 139, rt_sigpending 127 136, rt_sigsuspend 130 133,
rt_sigtimedwait 128 137, sigaltstack 131 132, kill 62 129, tkill 200 130, tgkill 234 131,
execve 59 221, exit 60 93, exit_group 231 94, wait4 61 260, waitid 247 95
"""
# Data over a pair of sockets of the program itself, which `asyncio` wakes itself by.
_PAIRS = "sendto 44 206, recvfrom 45 207, shutdown 48 210, getsockname 51 204, getpeername 52 205"
_CHECKED = "clone 56 220, ioctl 16 29, prlimit64 302 261, socketpair 53 199, clone3 435 435"

_NEW_NAMESPACES = 0x7E020080
_THREAD, _UNIX = 0x10000, 1
# Calls that depend on one argument: its place, the bits that count, their values.
_ARGUMENTS = {
    "clone": (0, _THREAD | _NEW_NAMESPACES, (_THREAD,)),  # a thread, no process
    # Is it a terminal, its size, close on exec, waiting or not.
    "ioctl": (1, 0xFFFFFFFF, (0x5401, 0x5413, 0x5450, 0x5451, 0x5421)),
    "prlimit64": (0, 0xFFFFFFFF, (0,)),  # of itself
    "socketpair": (0, 0xFFFFFFFF, (_UNIX,)),
}

# The kernel's names for processors, and the column of their numbers.
_PROCESSORS = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}

# Instructions of the filter, which sees the number, the processor, and the arguments of a call.
_LOAD, _AND, _IF_EQUAL, _RETURN = 0x20, 0x54, 0x15, 0x06
_NUMBER, _PROCESSOR, _FIRST_ARGUMENT = 0, 4, 16
_ALLOW, _KILL, _FAIL = 0x7FFF0000, 0x80000000, 0x00050000


def numbers(processor: str) -> dict[str, int]:
    """Return the numbers of the allowed calls, those that depend on an argument included."""
    column = _PROCESSORS[processor][1]
    entries = ",".join((_FILES, _MEMORY, _WAITING, _OWN_PROCESS, _PAIRS, _CHECKED)).split(",")
    rows = [entry.split() for entry in entries]
    return {name: int(found[column]) for name, *found in rows if found[column] != "-"}


def can_filter() -> bool:
    """Return whether the calls of this machine's processor are known."""
    return platform.machine() in _PROCESSORS and sys.maxsize > 1 << 32


def filter_calls(processor: str) -> bytes:
    """Return the filter as a program for the kernel (classic BPF), 8 bytes an instruction.

    An allowed call goes on, any other fails with "Operation not permitted", and a call in the
    numbers of another processor ends the process. `clone3` fails as unknown: its arguments cannot
    be seen, and the C library then uses `clone`.

    Args:
        processor: its name by `uname`.
    """

    def test(value: int, skip: int) -> tuple[int, int, int, int]:
        """Skip instructions if the loaded word is not `value`."""
        return _IF_EQUAL, 0, skip, value

    def steps() -> Iterator[tuple[int, int, int, int]]:
        yield _LOAD, 0, 0, _PROCESSOR
        yield _IF_EQUAL, 1, 0, _PROCESSORS[processor][0]
        yield _RETURN, 0, 0, _KILL
        yield _LOAD, 0, 0, _NUMBER
        for name, number in numbers(processor).items():
            if name in _ARGUMENTS:
                place, bits, values = _ARGUMENTS[name]
                yield test(number, 3 + 2 * len(values))
                yield _LOAD, 0, 0, _FIRST_ARGUMENT + 8 * place
                yield _AND, 0, 0, bits
                for value in values:
                    yield test(value, 1)
                    yield _RETURN, 0, 0, _ALLOW
                yield _RETURN, 0, 0, _FAIL | EPERM
            else:
                yield test(number, 1)
                yield _RETURN, 0, 0, _FAIL | ENOSYS if name == "clone3" else _ALLOW
        yield _RETURN, 0, 0, _FAIL | EPERM

    return b"".join(struct.pack("<HBBI", *step) for step in steps())
