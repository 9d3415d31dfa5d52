# SPDX-License-Identifier: GPL-2.0-or-later
"""Stand for srun_cr_ctypes: hold srun_cr just before it forks srun, or its child before exec.

$SRUN_CR_TEST_HOLD is `before` or `between`; there it waits until the FIFO $SRUN_CR_TEST_FIFO was
opened for writing and closed."""

import os


def hold(where):
    """Wait for the test, if this is where it wants us."""
    if os.environ.get("SRUN_CR_TEST_HOLD") == where:
        with open(os.environ["SRUN_CR_TEST_FIFO"]) as file:
            file.read()


def set_parent_death_signal(number):
    """Be called in the child, between fork and exec."""
    hold("between")


hold("before")
