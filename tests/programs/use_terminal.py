#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Stand for srun on a terminal: print `ready PID fg=BOOL`, then `<LINE>` for what is typed.

`exit N` ends it.  SIGINT prints `INT`; a read that fails prints `EIO`, and ends it with 5.
use_terminal.py [FIFO]: read the terminal only once the FIFO was opened for writing and closed."""

import os
import signal
import sys


def say(text):
    """Print a line with one write."""
    os.write(1, (text + "\n").encode("ascii"))


def main():
    """Read until told to end."""
    signal.signal(signal.SIGINT, lambda number, frame: say("INT"))
    terminal = os.open("/dev/tty", os.O_RDWR)
    say("ready {} fg={}".format(os.getpid(), os.tcgetpgrp(terminal) == os.getpgrp()))
    if len(sys.argv) > 1:
        with open(sys.argv[1]) as file:
            file.read()
        say("reading")
    buffer = b""
    while True:
        try:
            data = os.read(terminal, 1024)
        except OSError:
            say("EIO")
            sys.exit(5)
        if not data:
            sys.exit(6)
        buffer += data
        while b"\n" in buffer:
            line, _, buffer = buffer.partition(b"\n")
            if line.startswith(b"exit "):
                sys.exit(int(line[5:]))
            say("<{}>".format(line.decode("ascii")))


main()
