#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Stand for srun: print `ready PID`, then the number of every signal that comes, a line each.

record_signals.py [exit SIGNAL STATUS]: end with that status at that signal."""

import os
import signal
import sys

ALL = set(range(1, signal.NSIG)) - {signal.SIGKILL, signal.SIGSTOP, 32, 33}


def say(text):
    """Print a line with one write."""
    os.write(1, (text + "\n").encode("ascii"))


def main():
    """Record until told to end."""
    last, status = (int(sys.argv[2]), int(sys.argv[3])) if len(sys.argv) > 3 else (0, 0)
    # Blocked signals stay pending, even those that are ignored; real-time ones are counted.
    signal.pthread_sigmask(signal.SIG_BLOCK, ALL)
    say("ready {}".format(os.getpid()))
    while True:
        number = signal.sigwaitinfo(ALL).si_signo
        say(str(int(number)))
        if number == last:
            sys.exit(status)


main()
