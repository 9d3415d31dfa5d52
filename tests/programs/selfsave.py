#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Count as count.py does, and save itself at a signal.

    selfsave.py SIGNAL COUNT STATUS [OPTION]...

What is saved is the counter, in $SLURM_CHECKPOINT_IMAGE_DIR/task.<rank>.ckpt, by rename; at the
start it comes from $SLURM_RESTART_DIR.  SIGNAL `none` catches nothing.  Options:

    exit    end after it has saved, with status 0
    rank0   rank 0 alone saves, for all; every rank restarts from its file"""

import os
import signal
import sys
import time


class Counter:
    """The program's state: the next number."""

    def __init__(self, count, options):
        self.rank = os.environ["SLURM_PROCID"]
        self.options = options
        self.count = count
        self.asked = False
        self.number = 1
        if "SLURM_RESTART_DIR" in os.environ:
            with open(self.path(os.environ["SLURM_RESTART_DIR"])) as file:
                self.number = int(file.read())

    def path(self, directory):
        """Return the path of the file to save to, or to restart from."""
        rank = "0" if "rank0" in self.options else self.rank
        return os.path.join(directory, "task.{}.ckpt".format(rank))

    def save(self):
        """Save the counter, unless that is rank 0's to do."""
        if self.rank == "0" or "rank0" not in self.options:
            path = self.path(os.environ["SLURM_CHECKPOINT_IMAGE_DIR"])
            with open(path + ".new", "w") as file:
                file.write(str(self.number))
            os.rename(path + ".new", path)

    def ask(self, number, frame):
        """Have the main loop save; the signal's handler."""
        self.asked = True
        if "exit" in self.options:
            # Under load slurmstepd sends a signal twice, perhaps while the interpreter ends.
            signal.signal(number, signal.SIG_IGN)

    def run(self):
        """Count to the end."""
        while self.number <= self.count:
            if self.asked:
                self.asked = False
                self.save()
                if "exit" in self.options:
                    sys.exit(0)
            line = "task {} number {}\n".format(self.rank, self.number)
            self.number += 1
            os.write(1, line.encode("ascii"))
            time.sleep(0.05)


def main(name, count, status, *options):
    """Count, and save at the signal."""
    counter = Counter(int(count), options)
    if name != "none":
        signal.signal(getattr(signal, "SIG" + name), counter.ask)
    counter.run()
    sys.exit(int(status))


main(*sys.argv[1:])
