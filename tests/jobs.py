# SPDX-License-Identifier: GPL-2.0-or-later
"""Tests on the cluster that run side by side, as most of their time is Slurm's.

A requeued job starts again seconds later; a module imports `side_by_side` and `cases`."""

import glob
import json
import os
import re
import shutil
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

import conftest
from conftest import PROGRAMS, run, wait_until

# For scripts that do not exec srun_cr: it runs in the background, so that traps run at once.
WAIT = """\
child=$!
trap 'kill -USR1 $child' USR1
trap 'kill -USR2 $child' USR2
while kill -0 $child 2>/dev/null; do wait $child; rc=$?; done
"""
SIGNALS = {"SRUN_CR_SIGNALS": "USR1=requeue USR2=create URG=vacate"}
OPERATIONS = {"requeue": "USR1", "create": "USR2", "vacate": "URG"}
OVER = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED")
AT_ONCE = 6     # tests that run side by side


def can(slurm, user, command):
    """Return whether the user can run a shell command."""
    # Through a shell, as setpriv itself still has root's right to pass any directory.
    return run(slurm.command(["sh", "-c", command], user), check=False).returncode == 0


def python_for(slurm, user):
    """Return a Python that the user may execute; the one that runs us may be in a home."""
    for python in (sys.executable, "/usr/bin/python3"):
        if can(slurm, user, python + " -c ''"):
            return python
    return pytest.skip("no Python that {} may execute".format(user))


def site_for(slurm, user, base):
    """Return a directory with the program and the tests' programs that the user may read.

    The checkout, or a copy below base, as the checkout may be in a home."""
    if can(slurm, user, "cat {} >/dev/null".format(conftest.SRUN_CR)):
        return conftest.ROOT
    site = os.path.join(base, "site")
    if not os.path.exists(site):
        os.makedirs(os.path.join(site, "tests"))
        for name in ("srun_cr.py", "srun_cr_ctypes.py"):
            shutil.copy(os.path.join(conftest.ROOT, name), site)
        shutil.copytree(PROGRAMS, os.path.join(site, "tests", "programs"))
    return site


class Case:
    """One test's jobs, directory and user."""

    def __init__(self, slurm, directory, user, criu, site):
        self.slurm = slurm
        self.site = site
        self.directory = str(directory)
        self.user = user
        self.criu = criu
        self.python = python_for(slurm, user)
        self.jobs = []

    def submit(self, script, *options, **variables):
        """Submit a script with the step's key `step`, the engine CRIU and all operations."""
        settings = dict(SIGNALS, SRUN_CR_ENGINE="criu", SRUN_CR_CRIU=self.criu,
                        SRUN_CR_STEP="step")
        settings.update(variables)
        settings = {name: value for name, value in settings.items() if value is not None}
        script = "SRUN_CR='{} {}/srun_cr.py'\n{}".format(self.python, self.site, script)
        job = self.slurm.submit(self.directory, script, *options, user=self.user, **settings)
        self.jobs.append(job)
        return job

    def program(self, name, *arguments):
        """Return the command of a program of ours."""
        path = os.path.join(self.site, "tests", "programs", name)
        return " ".join(map(str, [self.python, path, *arguments]))

    def count(self, *arguments):
        """Return the command of count.py."""
        return self.program("count.py", *arguments)

    def path(self, *names):
        """Return a path in this test's directory."""
        return os.path.join(self.directory, *names)

    def read(self, *names):
        """Return what a file there holds, nothing if it does not exist."""
        try:
            with open(self.path(*names)) as file:
                return file.read()
        except FileNotFoundError:
            return ""

    def generations(self, job, step="step"):
        """Return the names of the step's committed generations, oldest first."""
        return sorted(name for name in os.listdir(self.path(job.id + ".cr", step))
                      if name.isdigit())

    def partial(self, job, step="step"):
        """Return what is left of generations that were not committed."""
        return glob.glob(self.path(job.id + ".cr", step, "*.partial"))

    def manifest(self, job, generation, step="step"):
        """Return a generation's manifest."""
        return json.loads(self.read(job.id + ".cr", step, generation, "manifest.json"))

    def end(self):
        """Cancel what still runs."""
        for job in self.jobs:
            job.cancel()


def side_by_side(*users):
    """Make a test of body(case): in a thread of its own, beside the module's other tests.

    Once as each of the users; None is root."""
    def decorate(body):
        @pytest.mark.cluster
        @pytest.mark.parametrize("user", users or (None,), ids=lambda user: user or "root")
        def test(user, cases):
            cases[body.__name__, user].result()
        test.__name__ = body.__name__
        test.__doc__ = body.__doc__
        test.body = body
        return test
    return decorate


@pytest.fixture(scope="module")
def cases(request, slurm, criu, criu_user, tmp_path_factory):
    """Run the bodies of all selected tests of the module; return their futures."""
    parent = base = str(tmp_path_factory.mktemp(request.module.__name__))
    while parent != "/" and os.stat(parent).st_uid == os.geteuid():
        os.chmod(parent, os.stat(parent).st_mode | 0o055)
        parent = os.path.dirname(parent)

    sites = {user: site_for(slurm, user, base) for user in (None, "nobody")}

    def perform(body, user):
        directory = os.path.join(base, "{}-{}".format(body.__name__[5:], user or "root"))
        os.mkdir(directory)
        case = Case(slurm, directory, user, criu_user if user else criu, sites[user])
        try:
            return body(case)
        finally:
            case.end()

    with ThreadPoolExecutor(AT_ONCE) as pool:
        futures = {}
        for item in request.session.items:
            body = getattr(getattr(item, "function", None), "body", None)
            if item.module is request.module and body is not None:
                user = item.callspec.params["user"]
                futures[body.__name__, user] = pool.submit(perform, body, user)
        yield futures
        for future in futures.values():
            future.cancel()


def order(job, operation):
    """Have srun_cr do an operation, by a signal to the batch script."""
    job.signal_script(OPERATIONS[operation])


def finish(job, timeout_s=60.0):
    """Wait for the job's end, which is asked for less often than job.wait() does.

    Returns (state, exit code)."""
    wait_until(lambda: time.sleep(0.3) or job.state() in OVER, timeout_s,
               lambda: "end of job in state {}:\n{}".format(job.state(), job.output()))
    shown = job.show()
    return shown["JobState"], int(shown["ExitCode"].partition(":")[0])


def counted(text, rank=0):
    """Return the numbers that a task has counted, as printed."""
    return [int(number) for number in
            re.findall(r"^task {} number (\d+)$".format(rank), text, re.M)]


def errors(job):
    """Return the lines of the log in which srun_cr says what went wrong."""
    return job.lines("srun_cr: error: ")


def is_srun_cr(path, job_id):
    """Whether a process, by its /proc/PID/cmdline, is the srun_cr of a job."""
    try:
        with open(path, "rb") as file:
            words = file.read().split(b"\0")
        with open(os.path.join(os.path.dirname(path), "environ"), "rb") as file:
            environ = file.read().split(b"\0")
    except OSError:
        return False
    return words[1:] and words[1].endswith(b"/srun_cr.py") \
        and b"SLURM_JOB_ID=" + job_id.encode() in environ


def wait_number(job, number, rank=0):
    """Wait until a task has counted to a number."""
    job.wait_for("task {} number {}\n".format(rank, number))


def tasks(program, mark):
    """Return the processes that run a program of ours with a mark as an argument: pid -> state.

    Neither srun nor who restores them, which have the program among their arguments."""
    found = {}
    for path in glob.glob("/proc/[0-9]*"):
        try:
            with open(path + "/cmdline", "rb") as file:
                words = file.read().decode("utf-8", "replace").split("\0")
            with open(path + "/stat", "rb") as file:
                state = file.read().rpartition(b")")[2].split()[0].decode("ascii")
        except OSError:
            continue
        if words[1:] and words[1].endswith("/tests/programs/" + program) and mark in words:
            found[int(os.path.basename(path))] = state
    return found


# ---------------------------------------------------------------------------------------------


def srun_cr_pid(job_id):
    """Return the pid of a job's only srun_cr, once it runs; its children are it until exec."""
    def pids():
        return [int(pid) for pid in os.listdir("/proc") if pid.isdigit()
                and is_srun_cr("/proc/{}/cmdline".format(pid), job_id)]

    return wait_until(lambda: pids() if len(pids()) == 1 else None)[0]
