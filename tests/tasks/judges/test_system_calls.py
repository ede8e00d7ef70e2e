"""The filter of system calls, run step by step, and the numbers of the calls."""

import ctypes
import struct
import sys
from errno import ENOSYS, EPERM

import pytest

from prunelit.tasks.judges.system_calls import filter_calls, numbers

ALLOW, KILL, FAIL = 0x7FFF0000, 0x80000000, 0x00050000
PROCESSORS = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}

# Calls that no program needs, with their numbers on both processors.
REFUSED = {
    "keyctl": (250, 219),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "socket": (41, 198),
    "connect": (42, 203),
    "bind": (49, 200),
    "setsockopt": (54, 208),
    "io_uring_setup": (425, 425),
    "userfaultfd": (323, 282),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "ptrace": (101, 117),
    "process_vm_writev": (311, 271),
    "pidfd_open": (434, 434),
    "pidfd_getfd": (438, 438),
    "pidfd_send_signal": (424, 424),
    "unshare": (272, 97),
    "setns": (308, 268),
    "mount": (165, 40),
    "fsopen": (430, 430),
    "seccomp": (317, 277),
    "prctl": (157, 167),
    "setuid": (105, 146),
    "capset": (126, 91),
    "memfd_create": (319, 279),
    "shmget": (29, 194),
    "mq_open": (240, 180),
    "msgget": (68, 186),
    "semget": (64, 190),
    "personality": (135, 92),
    "execveat": (322, 281),
    "open_by_handle_at": (304, 265),
    "reboot": (169, 142),
    "unknown": (9999, 9999),
    "x32 read": (0x40000000, 0x40000000),
}


def decide(processor: str, number: int, *arguments: int, seen: int | None = None) -> int:
    """Return what the filter says of a call."""
    padded = (*arguments, *[0] * 6)[:6]
    data = struct.pack("<IIQ6Q", number, seen or PROCESSORS[processor], 0, *padded)
    steps = list(struct.iter_unpack("<HBBI", filter_calls(processor)))
    word = place = 0
    while True:
        code, if_true, if_false, value = steps[place]
        place += 1
        match code:
            case 0x20:
                word = struct.unpack_from("<I", data, value)[0]
            case 0x54:
                word &= value
            case 0x15:
                place += if_true if word == value else if_false
            case 0x06:
                return value


@pytest.mark.parametrize("processor", PROCESSORS)
def test_the_filter_lets_through_what_is_listed_and_nothing_else(processor: str) -> None:
    calls = numbers(processor)
    checked = {"clone", "clone3", "ioctl", "prlimit64", "socketpair"}
    for name, number in calls.items():
        if name not in checked:
            assert decide(processor, number) == ALLOW, name
    for name, both in REFUSED.items():
        assert decide(processor, both[list(PROCESSORS).index(processor)]) == FAIL | EPERM, name
    listed = set(calls.values())
    assert all(decide(processor, n) == FAIL | EPERM for n in range(500) if n not in listed)
    assert decide(processor, calls["clone3"]) == FAIL | ENOSYS
    assert decide(processor, calls["read"], seen=0x40000003) == KILL  # in numbers of i386


@pytest.mark.parametrize("processor", PROCESSORS)
def test_some_calls_depend_on_an_argument(processor: str) -> None:
    calls = numbers(processor)
    thread = 0x3D0F00  # of the C library
    for name, allowed, refused in (
        ("clone", [(thread,)], [(0x11,), (0x4111,), (thread | 0x10000000,), (0,)]),
        ("ioctl", [(1, 0x5401), (1, 0x5421)], [(1, 0x5412), (1, 0x541C), (1, 0x5401 << 32)]),
        ("prlimit64", [(0, 7)], [(1, 7), (7, 0)]),
        ("socketpair", [(1,)], [(2,), (40,), (16,), (0,)]),
    ):
        assert [decide(processor, calls[name], *a) for a in allowed] == [ALLOW] * len(allowed)
        assert [decide(processor, calls[name], *r) for r in refused] == [FAIL | EPERM] * len(
            refused
        )


@pytest.mark.skipif(sys.platform != "linux", reason="needs the numbers of Linux")
def test_the_numbers_are_those_of_libseccomp() -> None:
    try:
        resolve = ctypes.CDLL("libseccomp.so.2").seccomp_syscall_resolve_name_arch
    except OSError:
        pytest.skip("this machine has no libseccomp")
    for processor, code in PROCESSORS.items():
        for name, number in numbers(processor).items():
            assert resolve(ctypes.c_uint32(code), name.encode()) == number, (processor, name)
        for name, both in REFUSED.items():
            if " " not in name and name != "unknown":
                expected = both[list(PROCESSORS).index(processor)]
                assert resolve(ctypes.c_uint32(code), name.encode()) == expected, (processor, name)
