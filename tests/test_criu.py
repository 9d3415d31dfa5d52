# SPDX-License-Identifier: GPL-2.0-or-later
"""Real CRIU in a real Slurm: steps are imaged, stopped, and go on where they were.

Most of a test's time is Slurm's, which starts a requeued job seconds later; so all tests of this
module run side by side: see `side_by_side()`, which other modules use as well."""

import glob
import json
import os
import random
import re
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from conftest import PROGRAMS, SRUN_CR, run, wait_until

PYTHON = sys.executable
COUNT = "{} {}/count.py".format(PYTHON, PROGRAMS)
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


class Case:
    """One test's jobs, directory and user."""

    def __init__(self, slurm, directory, user, criu):
        self.slurm = slurm
        self.directory = str(directory)
        self.user = user
        self.criu = criu
        self.jobs = []

    def submit(self, script, *options, **variables):
        """Submit a script with the step's key `step`, the engine CRIU and all operations."""
        settings = dict(SIGNALS, SRUN_CR_ENGINE="criu", SRUN_CR_CRIU=self.criu,
                        SRUN_CR_STEP="step")
        settings.update(variables)
        settings = {name: value for name, value in settings.items() if value is not None}
        job = self.slurm.submit(self.directory, script, *options, user=self.user, **settings)
        self.jobs.append(job)
        return job

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
    def perform(body, user):
        directory = tmp_path_factory.mktemp(body.__name__[5:45])
        parent = str(directory)
        while parent != "/" and os.stat(parent).st_uid == os.geteuid():
            os.chmod(parent, os.stat(parent).st_mode | 0o055)
            parent = os.path.dirname(parent)
        case = Case(slurm, directory, user, criu_user if user else criu)
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
        if words[1:2] == [os.path.join(PROGRAMS, program)] and mark in words:
            found[int(os.path.basename(path))] = state
    return found


# ---------------------------------------------------------------------------------------------

@side_by_side(None, "nobody")
def test_a_counting_job_survives_three_requeues_at_random_moments(case):
    """Four tasks on two nodes; no number is lost or printed twice; the status is the tasks'."""
    job = case.submit("exec $SRUN_CR {} 80 3".format(COUNT), "-N2", "-n4")
    for restarts in range(3):
        wait_number(job, 20 * restarts + random.randint(2, 18), random.randrange(4))
        order(job, "requeue")
        job.wait_for("requeued", restarts + 1)
    assert finish(job) == ("FAILED", 3), job.output()
    for rank in range(4):
        assert counted(job.output(), rank) == list(range(1, 81)), job.output()
    assert job.show()["Restarts"] == "3"
    assert not errors(job)
    assert job.output().count("restarting step step from generation") == 3


@side_by_side(None, "nobody")
def test_a_process_tree_with_a_pipe_in_it_survives_a_requeue(case):
    job = case.submit("exec $SRUN_CR sh -c '{} 60 | while read -r line; do echo \"$line\"; done; "
                      "exit 5'".format(COUNT), "-n1")
    wait_number(job, random.randint(5, 50))
    order(job, "requeue")
    assert finish(job) == ("FAILED", 5), job.output()
    assert counted(job.output()) == list(range(1, 61)), job.output()
    assert job.show()["Restarts"] == "1"


@side_by_side(None, "nobody")
def test_output_files_are_byte_for_byte_those_of_an_undisturbed_run(case):
    """Both `> file` and `>> file`, the latter with something in it already."""
    program = ("sh -c '{} 60 0 {} >plain.$SLURM_PROCID & {} 60 0 {} >>appended.$SLURM_PROCID; "
               "wait; echo over'")
    undisturbed = os.path.join(case.directory, "undisturbed")
    os.mkdir(undisturbed)
    for directory in (case.directory, undisturbed):
        for rank in range(2):
            with open(os.path.join(directory, "appended.{}".format(rank)), "w") as file:
                file.write("already there\n")
            os.chmod(file.name, 0o666)
    for rank in range(2):
        run(["sh", "-c", program.format(COUNT, 0, COUNT, 0)], cwd=undisturbed,
            env=dict(os.environ, SLURM_PROCID=str(rank)))
    job = case.submit("exec $SRUN_CR " + program.format(COUNT, 0.05, COUNT, 0.05), "-N2", "-n2")
    for restarts in range(2):
        number = 25 * restarts + random.randint(3, 22)
        wait_until(lambda: number in counted(case.read("plain.0")), what=job.output)
        order(job, "requeue")
        job.wait_for("requeued", restarts + 1)
    assert finish(job) == ("COMPLETED", 0), job.output()
    assert job.show()["Restarts"] == "2"
    for name in ("plain.0", "plain.1", "appended.0", "appended.1"):
        assert case.read(name) == case.read("undisturbed", name), name


@side_by_side(None, "nobody")
def test_create_leaves_the_step_running_and_old_generations_are_removed(case):
    """Also of a restored step, which is imaged once more and restored from that."""
    job = case.submit("exec $SRUN_CR {} 120".format(COUNT), "-N2", "-n2", SRUN_CR_KEEP=2)
    for number in range(1, 4):
        wait_number(job, 12 * number)
        order(job, "create")
        job.wait_for("checkpoint {} of step".format(number))
        assert job.state() == "RUNNING"
    assert case.generations(job) == ["000002", "000003"]
    manifest = case.manifest(job, "000003")
    assert sorted(manifest["images"]) == ["task.0.ckpt", "task.1.ckpt"]
    assert (manifest["engine"], manifest["kind"], manifest["tasks"]) == ("criu", "create", 2)
    seen = len(counted(job.output()))
    wait_number(job, seen + 5)
    order(job, "requeue")
    job.wait_for("restarting step step from generation 4")
    seen = len(counted(job.output()))
    wait_number(job, seen + 5)
    order(job, "create")
    job.wait_for("checkpoint 5 of step")
    assert case.generations(job) == ["000004", "000005"]
    assert finish(job) == ("COMPLETED", 0), job.output()
    for rank in range(2):
        assert counted(job.output(), rank) == list(range(1, 121)), job.output()
    assert not case.partial(job) and not errors(job)


@side_by_side(None, "nobody")
def test_vacate_ends_with_75_and_a_new_job_resumes_where_restart_dir_says(case):
    """SLURM_RESTART_DIR may be a generation, a step's directory or a job's.

    One after the other, as an image holds the pids, which can be there once."""
    script = "exec $SRUN_CR {} 40 3".format(COUNT)
    first = case.submit(script, "-N2", "-n2")
    wait_number(first, 10)
    order(first, "vacate")
    assert finish(first) == ("FAILED", 75), first.output()
    done = {rank: counted(first.output(), rank) for rank in range(2)}
    step = case.path(first.id + ".cr", "step")
    before = len(first.output())
    for directory in (os.path.join(step, "000001"), step, os.path.dirname(step)):
        job = case.submit(script, "-N2", "-n2", SLURM_RESTART_DIR=directory)
        assert finish(job) == ("FAILED", 3), job.output()
        output = job.output()[before:]
        before += len(output)
        for rank in range(2):
            assert done[rank] + counted(output, rank) == list(range(1, 41)), output
    assert case.generations(first) == ["000001"]


@side_by_side(None, "nobody")
def test_an_appended_file_is_cut_back_when_the_step_died_after_its_checkpoint(case):
    """What was appended since is computed again: no line twice, none lost."""
    job = case.submit("$SRUN_CR sh -c '{} 80 >>counted' &\n{}"
                      "[ -n \"$SLURM_RESTART_COUNT\" ] || sleep 600\nexit $rc".format(COUNT, WAIT),
                      "-n1")
    wait_until(lambda: 10 in counted(case.read("counted")), what=job.output)
    order(job, "create")
    job.wait_for("checkpoint 1 of step")
    last = counted(case.read("counted"))[-1]
    wait_until(lambda: last + 10 in counted(case.read("counted")), what=job.output)
    case.slurm.run("scancel", "-s", "KILL", job.id + ".0")
    wait_until(lambda: "Killed" in job.output() or "killed" in job.output(), what=job.output)
    case.slurm.run("scontrol", "requeue", job.id)
    assert finish(job) == ("COMPLETED", 0), job.output()
    assert "counted: cut back to" in job.output()
    assert counted(case.read("counted")) == list(range(1, 81)), job.output()
    assert case.read("counted").count("\n") == 80


@side_by_side(None, "nobody")
def test_a_signal_reaches_each_restored_task_exactly_once(case):
    """The tasks' queue is read, in which two of one signal are two."""
    job = case.submit("exec $SRUN_CR {} {}/record.py {}".format(PYTHON, PROGRAMS, case.directory),
                      "-N2", "-n4")
    job.wait_for("ready", 4)
    order(job, "requeue")
    job.wait_for("restarting step")
    wait_until(lambda: len(tasks("record.py", case.directory)) == 4, what=job.output)
    for name in ("USR1", "HUP", "WINCH", "USR2"):
        case.slurm.run("scancel", "-s", name, job.id + ".0")
        job.wait_for("got SIG" + name, 4)
    assert finish(job) == ("COMPLETED", 0), job.output()
    for rank in range(4):
        got = [line.split()[-1] for line in job.lines("task {} got".format(rank))]
        assert got == ["SIGUSR1", "SIGHUP", "SIGWINCH", "SIGUSR2"], job.output()


@side_by_side(None, "nobody")
def test_scancel_leaves_no_restored_process_behind(case):
    job = case.submit("exec $SRUN_CR sh -c '{} 6000 0 0.1 {} | cat; true'".format(
        COUNT, case.directory), "-N2", "-n2")
    wait_number(job, 3)
    order(job, "requeue")
    job.wait_for("restarting step")
    pids = wait_until(lambda: len(tasks("count.py", case.directory)) == 2
                      and tasks("count.py", case.directory), what=job.output)
    job.cancel()
    assert finish(job)[0] == "CANCELLED"
    wait_until(lambda: not tasks("count.py", case.directory), what=lambda: pids)
    assert errors(job) == [], job.output()


@side_by_side(None, "nobody")
def test_a_connected_tcp_socket_is_refused_with_the_reason_of_criu(case):
    """One line; the step goes on, the generation before stays, nothing half is left."""
    job = case.submit("exec $SRUN_CR sh -c 'while [ ! -e connect ]; do sleep 0.05; done; "
                      "{} {}/connected.py 60 4'".format(PYTHON, PROGRAMS), "-n1")
    wait_until(lambda: job.state() == "RUNNING")
    wait_until(lambda: "StepId=" in case.slurm.run(
        "scontrol", "-o", "show", "step", job.id + ".0", check=False).stdout)
    order(job, "create")
    job.wait_for("checkpoint 1 of step")
    with open(case.path("connect"), "w"):
        pass
    wait_number(job, 5)
    for count, operation in enumerate(("create", "requeue"), 1):
        order(job, operation)
        wait_until(lambda: len(errors(job)) == count, what=job.output)
        assert re.search(r"{} \(SIG\w+\): n1: task 0: criu: .*[Cc]onnected.*"
                         r"the step goes on, generation 1 stays the newest".format(operation),
                         errors(job)[-1])
    assert case.generations(job) == ["000001"] and not case.partial(job)
    assert finish(job) == ("FAILED", 4), job.output()
    assert counted(job.output()) == list(range(1, 61))


@side_by_side()
def test_a_pseudo_terminal_is_refused_beforehand(case):
    """Tasks under --pty are not even frozen; the step goes on."""
    job = case.submit("export SRUN_CR\nexec script -qefc '$SRUN_CR --pty {} 40 4' /dev/null"
                      .format(COUNT), "-n1")
    wait_until(lambda: 5 in counted(job.output().replace("\r", "")), what=job.output)
    pid, = [int(path.split("/")[2]) for path in glob.glob("/proc/[0-9]*/cmdline")
            if is_srun_cr(path, job.id)]
    os.kill(pid, signal.SIGUSR2)
    wait_until(lambda: errors(job), what=job.output)
    assert "engine criu: --pty: a pseudo-terminal cannot be imaged: the step goes on" \
        in errors(job)[0]
    assert finish(job) == ("FAILED", 4), job.output()
    assert counted(job.output().replace("\r", "")) == list(range(1, 41))
    assert not case.generations(job) and not case.partial(job)


def is_srun_cr(path, job_id):
    """Whether a process, by its /proc/PID/cmdline, is the srun_cr of a job."""
    try:
        with open(path, "rb") as file:
            words = file.read().split(b"\0")
        with open(os.path.join(os.path.dirname(path), "environ"), "rb") as file:
            environ = file.read().split(b"\0")
    except OSError:
        return False
    return words[1:2] == [SRUN_CR.encode()] and b"SLURM_JOB_ID=" + job_id.encode() in environ
