# SPDX-License-Identifier: GPL-2.0-or-later
"""What all tests share: programs started and surely ended, a real Slurm, jobs in it.

Runs on Python 3.6 and up, like the program."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from importlib.machinery import SourceFileLoader

import pytest

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
SRUN_CR = os.path.join(ROOT, "srun_cr.py")
PROGRAMS = os.path.join(ROOT, "tests", "programs")
FAKES = os.path.join(ROOT, "tests", "fakes")
# A shell has its background jobs ignore these two; what tests start is to have the defaults.
for ignored in (signal.SIGINT, signal.SIGQUIT):
    if signal.getsignal(ignored) == signal.SIG_IGN:
        signal.signal(ignored, signal.SIG_DFL)
sys.path.insert(0, ROOT)
sys.path.insert(0, os.path.join(ROOT, "tests"))


def wait_until(condition, timeout_s=30.0, what=None):
    """Return condition()'s first true value; fail after timeout_s."""
    deadline = time.monotonic() + timeout_s
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            pytest.fail("not in {} s: {}".format(timeout_s, what() if callable(what) else
                                                 what or condition))
        time.sleep(0.02)


def clean_environ(**variables):
    """Return the environment without what a job or a user may have set; None removes."""
    environ = {name: value for name, value in os.environ.items()
               if not name.startswith(("SLURM_", "SRUN_CR_", "SBATCH_"))
               or name.startswith("SRUN_CR_TEST_")}
    for name, value in variables.items():
        if value is None:
            environ.pop(name, None)
        else:
            environ[name] = str(value)
    return environ


@contextlib.contextmanager
def started(command, **options):
    """Start a process in a session of its own; end the whole session's group at exit."""
    options.setdefault("stdin", subprocess.DEVNULL)
    options.setdefault("start_new_session", True)
    process = subprocess.Popen(command, **options)
    try:
        yield process
    finally:
        for target in (os.killpg, os.kill):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                target(process.pid, signal.SIGKILL)
        process.wait()
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()


def run(command, timeout_s=60.0, check=True, **options):
    """Run a command to its end; return the CompletedProcess with text in stdout and stderr."""
    options.setdefault("stdin", subprocess.DEVNULL)
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          universal_newlines=True, timeout=timeout_s, **options)
    if check and done.returncode:
        pytest.fail("{}: {}\n{}{}".format(command, done.returncode, done.stdout, done.stderr))
    return done


class Job:
    """A batch job in the tests' cluster."""

    def __init__(self, slurm, job_id, log, directory):
        self.slurm = slurm
        self.id = job_id
        self.log = log
        self.directory = directory

    def output(self):
        """Return what the job has printed so far."""
        try:
            with open(self.log, errors="replace") as file:
                return file.read()
        except FileNotFoundError:
            return ""

    def lines(self, start):
        """Return the lines of the output that begin with start."""
        return [line for line in self.output().splitlines() if line.startswith(start)]

    def show(self):
        """Return scontrol's words for the job: JobState, Restarts, ExitCode, ..."""
        text = self.slurm.run("scontrol", "-o", "show", "job", self.id).stdout
        return dict(word.split("=", 1) for word in text.split() if "=" in word)

    def state(self):
        """Return the job's state."""
        return self.show()["JobState"]

    def wait_for(self, text, count=1, timeout_s=40.0):
        """Wait until the output has text at least count times."""
        wait_until(lambda: self.output().count(text) >= count, timeout_s,
                   lambda: "{!r} {} times in:\n{}".format(text, count, self.output()))

    def wait(self, timeout_s=60.0):
        """Wait for the job's end; return (state, exit code)."""
        over = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED")
        wait_until(lambda: self.state() in over, timeout_s,
                   lambda: "end of job in state {}:\n{}".format(self.state(), self.output()))
        shown = self.show()
        return shown["JobState"], int(shown["ExitCode"].partition(":")[0])

    def signal_script(self, name):
        """Send a signal to the batch script alone."""
        self.slurm.run("scancel", "-b", "-s", name, self.id)

    def cancel(self):
        """Cancel it."""
        self.slurm.run("scancel", self.id, check=False)


class Slurm:
    """The tests' cluster and its commands, as root or (`user`) as an ordinary user."""

    def __init__(self, cluster):
        self.cluster = cluster
        self.environ = {name: value for name, value in cluster.environ.items()
                        if not name.startswith("SRUN_CR_") or name.startswith("SRUN_CR_TEST_")}

    def run(self, *command, **options):
        """Run a command in the cluster; see run()."""
        options.setdefault("env", self.environ)
        return run(list(command), **options)

    def command(self, command, user=None):
        """Return command, to be run as that user."""
        if user is None:
            return list(command)
        return ["setpriv", "--reuid=" + user, "--regid=nogroup", "--clear-groups", *command]

    def submit(self, directory, script, *options, user=None, **variables):
        """Submit a script (its lines) that runs in directory; return the Job.

        SRUN_CR is the command under test; what variables say is exported before it."""
        directory = str(directory)
        log = os.path.join(directory, "log")
        path = os.path.join(directory, "script.sh")
        settings = dict({"SRUN_CR_DIR": directory}, **variables)
        with open(path, "w") as file:
            file.write("#!/bin/bash\n")
            for name, value in settings.items():
                file.write("export {}='{}'\n".format(name, value))
            file.write("SRUN_CR='{} {}'\n{}\n".format(sys.executable, SRUN_CR, script))
        os.chmod(path, 0o755)
        if user is not None:
            os.chmod(directory, 0o777)
        done = self.run(*self.command(
            ["sbatch", "--parsable", "--requeue", "--open-mode=append", "--output=" + log,
             "--chdir=" + directory, *options, path], user))
        return Job(self, done.stdout.strip(), log, directory)


@pytest.fixture(scope="session")
def slurm():
    """A real Slurm of three nodes with four CPUs each, for the whole run."""
    module = type(sys)("cluster")
    SourceFileLoader("cluster", os.path.join(ROOT, "contrib", "cluster")).exec_module(module)
    try:
        cluster = module.Cluster(nodes=3, cpus=4, install=False)
        with cluster:
            yield Slurm(cluster)
    except module.MissingError as error:
        pytest.skip(str(error))


@pytest.fixture
def jobdir(tmp_path):
    """A directory that all nodes and users share; its jobs are cancelled at the end."""
    parent = str(tmp_path)
    while parent != "/" and os.stat(parent).st_uid == os.geteuid():
        os.chmod(parent, os.stat(parent).st_mode | 0o055)
        parent = os.path.dirname(parent)
    return tmp_path


@pytest.fixture(scope="session")
def criu():
    """The command of a CRIU that works here, for root."""
    path = os.environ.get("SRUN_CR_TEST_CRIU")
    if not path or os.geteuid() != 0:
        pytest.skip("no CRIU that works here: tests/run.sh gets one, as root")
    return path


@pytest.fixture(scope="session")
def criu_user():
    """The command of a CRIU with file capabilities, and the name of an ordinary user."""
    path = os.environ.get("SRUN_CR_TEST_CRIU_USER")
    if not path or os.geteuid() != 0 or not shutil.which("setpriv"):
        pytest.skip("no CRIU with capabilities: tests/run.sh makes one, as root")
    return path


def pytest_collection_modifyitems(items):
    """Mark what uses the cluster."""
    for item in items:
        if "slurm" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.cluster)
