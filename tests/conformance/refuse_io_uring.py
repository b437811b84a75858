"""Runs a command under a seccomp filter that answers io_uring_setup with an error: refuse_io_uring.py ERRNO COMMAND…"""

import ctypes
import os
import struct
import sys

# The same on every architecture (asm-generic/unistd.h).
IO_URING_SETUP = 425

PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS, SECCOMP_MODE_FILTER = 22, 38, 2
RETURN_ERRNO, RETURN_ALLOW = 0x00050000, 0x7FFF0000

# Classic BPF: load the word at an offset of seccomp_data, compare it, return a constant.
LOAD, JUMP_IF_EQUAL, RETURN = 0x20, 0x15, 0x06
NUMBER_OFFSET = 0


def instruction(code, operand, if_true=0, if_false=0):
    return struct.pack("HBBI", code, if_true, if_false, operand)


def refuse(error):
    """Puts the filter on this process and all that it runs."""
    program = b"".join(
        [
            instruction(LOAD, NUMBER_OFFSET),
            instruction(JUMP_IF_EQUAL, IO_URING_SETUP, if_false=1),
            instruction(RETURN, RETURN_ERRNO | error),
            instruction(RETURN, RETURN_ALLOW),
        ]
    )
    held = ctypes.create_string_buffer(program, len(program))
    filter_program = struct.pack("HP", len(program) // 8, ctypes.addressof(held))
    libc = ctypes.CDLL(None, use_errno=True)
    for call in ((PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), (PR_SET_SECCOMP, SECCOMP_MODE_FILTER, filter_program, 0, 0)):
        if libc.prctl(*call) != 0:
            raise OSError(ctypes.get_errno(), f"prctl{call[:2]}")


if __name__ == "__main__":
    refuse(int(sys.argv[1]))
    os.execvp(sys.argv[2], sys.argv[2:])
