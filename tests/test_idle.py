# SPDX-License-Identifier: GPL-2.0-or-later
"""At rest srun_cr does nothing at all."""

import os
import time

from conftest import wait_until
from standin import supervised

REST_S = 3.0
SETTLED_S = 0.5


def context_switches(pid):
    """Return {thread: its context switches, voluntary and not} of a process."""
    found = {}
    for thread in os.listdir("/proc/{}/task".format(pid)):
        with open("/proc/{}/task/{}/status".format(pid, thread)) as file:
            found[thread] = sum(int(line.split()[1]) for line in file
                                if "ctxt_switches:" in line)
    return found


def test_no_thread_runs_while_srun_does():
    with supervised([]) as process:
        process.lines.until("ready ")
        last = [time.monotonic(), None]

        def settled():
            now = context_switches(process.pid)
            if now != last[1]:
                last[:] = time.monotonic(), now
            return time.monotonic() - last[0] > SETTLED_S

        wait_until(settled, what=lambda: "still running: {}".format(last[1]))
        before = context_switches(process.pid)
        time.sleep(REST_S)  # the rest that is measured
        assert context_switches(process.pid) == before
        assert len(before) >= 1 and all(before.values())
