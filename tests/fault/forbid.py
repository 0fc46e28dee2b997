#!/usr/bin/env python3
"""Runs a command to which the kernel refuses some calls: forbid.py WHAT[,WHAT] COMMAND...

  io_uring  no ring can be made (EPERM, as in many containers)
  direct    no file is opened with O_DIRECT (EINVAL, as on many file systems)
  tmpfile   no file without a name is made (EOPNOTSUPP, as on many file systems)

A seccomp filter, which needs no rights. The program that is run inherits it. Exit code 77 where
this machine has no such filters.
"""
import ctypes
import errno
import os
import platform
import struct
import sys

PR_SET_SECCOMP, SECCOMP_MODE_FILTER, PR_SET_NO_NEW_PRIVS = 22, 2, 38
IO_URING_SETUP = 425  # on every machine
OPENAT = {"x86_64": 257, "aarch64": 56}
NUMBER, THIRD_ARGUMENT = 0, 32  # in struct seccomp_data; the lower half, low byte first

# Classic BPF, linux/filter.h.
LOAD, AND, JUMP_IF_EQUAL, RETURN = 0x20, 0x54, 0x15, 0x06
ALLOW, REFUSE = 0x7FFF0000, 0x00050000

RULES = {  # call, flags that must all be set, the error
    "io_uring": (IO_URING_SETUP, 0, errno.EPERM),
    "direct": (OPENAT.get(platform.machine()), os.O_DIRECT, errno.EINVAL),
    "tmpfile": (OPENAT.get(platform.machine()), os.O_TMPFILE, errno.EOPNOTSUPP),
}


def instruction(code, value, skip_if_not=0):
    return struct.pack("=HBBI", code, 0, skip_if_not, value)


def program(names):
    filters = []
    for name in names:
        call, flags, error = RULES[name]
        filters += [instruction(LOAD, NUMBER), instruction(JUMP_IF_EQUAL, call, 4),
                    instruction(LOAD, THIRD_ARGUMENT), instruction(AND, flags),
                    instruction(JUMP_IF_EQUAL, flags, 1), instruction(RETURN, REFUSE | error)]
    return filters + [instruction(RETURN, ALLOW)]


def install(names):
    class Program(ctypes.Structure):
        _fields_ = [("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p)]

    instructions = program(names)
    filters = Program(len(instructions), b"".join(instructions))
    libc = ctypes.CDLL(None, use_errno=True)
    if (libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0
            or libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(filters), 0, 0) != 0):
        print(f"forbid.py: no filter can be set: {os.strerror(ctypes.get_errno())}", file=sys.stderr)
        raise SystemExit(77)


def main():
    names, *command = sys.argv[1:]
    if platform.machine() not in OPENAT:
        print(f"forbid.py: not written for {platform.machine()}", file=sys.stderr)
        raise SystemExit(77)
    install(names.split(","))
    os.execvp(command[0], command)


if __name__ == "__main__":
    main()
