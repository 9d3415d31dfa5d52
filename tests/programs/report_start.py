#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Stand for srun: write how it was started, as JSON, to the file $SRUN_CR_TEST_REPORT."""

import json
import os


def read(name):
    """Return a file of our own in /proc, as the kernel has it: Python's os.environ may differ."""
    with open("/proc/self/" + name, "rb") as file:
        return file.read()


def open_descriptors():
    """Return {descriptor: what it is open on}."""
    found = {}
    for entry in os.listdir("/proc/self/fd"):
        try:
            found[entry] = os.readlink("/proc/self/fd/" + entry)
        except OSError:
            pass  # that of listdir() itself
    return found


descriptors = open_descriptors()
umask = os.umask(0)
os.umask(umask)
report = {
    "descriptors": descriptors,
    "umask": umask,
    "cwd": os.getcwd(),
    "argv": [word.hex() for word in read("cmdline").split(b"\0")],
    "environ": sorted(entry.hex() for entry in read("environ").split(b"\0")),
}
with open(os.environ["SRUN_CR_TEST_REPORT"], "w") as file:
    json.dump(report, file)
