# SPDX-License-Identifier: GPL-2.0-or-later
"""Build the stand-ins in C under tests/fakes/, for the tests that use them."""

import os
import shutil
import subprocess

import pytest

FAKES = os.path.join(os.path.dirname(os.path.abspath(__file__)), "fakes")


def build(directory, name, *flags):
    """Return the path of the shared library made of tests/fakes/<name>.c: `libcr`, `libslurm`.

    directory: a path, or pytest's tmp_path_factory; what is there already is used again.
    flags: for the compiler; -DNEW makes a library of another kind."""
    if hasattr(directory, "getbasetemp"):
        directory = directory.getbasetemp()
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    path = os.path.join(str(directory), "-".join((name,) + flags).replace("/", "_") + ".so")
    if not os.path.exists(path):
        done = subprocess.run(
            [compiler, "-std=gnu11", "-g", "-O1", "-Wall", "-Wextra", "-fPIC", "-shared",
             "-pthread", *flags, "-o", path + ".part",
             os.path.join(FAKES, name + ".c"), "-ldl"],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, universal_newlines=True)
        if done.returncode or done.stdout:
            pytest.fail("{}.c: not without a warning:\n{}".format(name, done.stdout))
        os.rename(path + ".part", path)
    return path
