# SPDX-License-Identifier: GPL-2.0-or-later
"""The unit tests on other Pythons: the oldest and the newest that the machine has."""

import os
import subprocess
import sys

import pytest

from conftest import ROOT, clean_environ

PYTHONS = [path for path in os.environ.get("SRUN_CR_TEST_PYTHONS", "").split(":") if path]


@pytest.mark.skipif(not PYTHONS, reason="tests/run.sh found no Python older or newer than this")
@pytest.mark.parametrize("python", PYTHONS or ["none"])
def test_unit_tests_pass_on_the_oldest_and_the_newest_python(python, tmp_path):
    done = subprocess.run(
        [python, "-m", "pytest", "-q", "-m", "not cluster", "-p", "no:cacheprovider",
         "--basetemp", str(tmp_path / "base"), os.path.join(ROOT, "tests"),
         "--ignore", os.path.abspath(__file__)],
        cwd=ROOT, env=clean_environ(PYTHONDONTWRITEBYTECODE="1", SRUN_CR_TEST_PYTHONS=None),
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    output = done.stdout.decode(errors="replace")
    assert done.returncode == 0, output[-6000:]
    assert " passed" in output
    sys.stdout.write(output[-300:])
