#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Count aloud: `task R number I`, every 50 ms.

    count.py COUNT [STATUS [PAUSE_S [MARK]]]

I goes from 1 to COUNT, one write(2) a line; then it exits with STATUS.  MARK is for who looks for
its process."""

import os
import sys
import time


def main(count, status=0, pause_s=0.05, mark=""):
    """Count to `count` and exit with status."""
    rank = os.environ.get("SLURM_PROCID", "0")
    for number in range(1, int(count) + 1):
        os.write(1, "task {} number {}\n".format(rank, number).encode("ascii"))
        time.sleep(float(pause_s))
    sys.exit(int(status))


main(*sys.argv[1:])
