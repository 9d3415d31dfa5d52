#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Print each signal that comes: `task R got SIGUSR1 from PID`; SIGUSR2 ends the program.

    record.py [MARK]

Blocked and taken from the kernel's queue, so that none is merged with another by Python."""

import os
import signal
import sys


def main():
    """Record until SIGUSR2."""
    rank = os.environ.get("SLURM_PROCID", "0")
    wanted = {signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP, signal.SIGURG}
    signal.pthread_sigmask(signal.SIG_BLOCK, wanted)
    os.write(1, "task {} ready\n".format(rank).encode("ascii"))
    while True:
        info = signal.sigwaitinfo(wanted)
        os.write(1, "task {} got {} from {}\n".format(
            rank, signal.Signals(info.si_signo).name, info.si_pid).encode("ascii"))
        if info.si_signo == signal.SIGUSR2:
            sys.exit(0)


main()
