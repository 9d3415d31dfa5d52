# SPDX-License-Identifier: GPL-2.0-or-later
"""What srun_cr can do only through ctypes.

Opened on demand by `srun_cr.py`, which does without it where it is missing.  Nothing here runs
at import but the import of ctypes."""

import ctypes
import os

# prctl(2) [linux/prctl.h]
PR_SET_PDEATHSIG = 1    # signal that this process gets when the thread that made it ends


def set_parent_death_signal(number: int) -> None:
    """Have the kernel send us a signal when the thread that forked us ends; 0: none.

    Survives execve(2) of programs without privileges of their own.
    Raises: OSError.  Source: int prctl(int option, unsigned long arg2, ...), prctl(2)."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl.argtypes = [ctypes.c_int] + [ctypes.c_ulong] * 4
    libc.prctl.restype = ctypes.c_int
    if libc.prctl(PR_SET_PDEATHSIG, number, 0, 0, 0) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
