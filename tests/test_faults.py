# SPDX-License-Identifier: GPL-2.0-or-later
"""What breaks while a checkpoint is made or restored: nothing that was saved is lost.

The processes that take part are killed at chosen moments, images are damaged, the disk is full.
All tests of this module run side by side: see jobs.side_by_side()."""

import glob
import os
import signal

import pytest

from conftest import PROGRAMS, run, wait_until
from jobs import (WAIT, cases, counted, errors, finish, order, side_by_side,  # noqa: F401
                  srun_cr_pid, tasks)

NUMBERS = list(range(1, 201))


def find_processes(*wanted, without=()):
    """Return the pids of the processes with all these words in their command line."""
    found = []
    for path in glob.glob("/proc/[0-9]*/cmdline"):
        try:
            with open(path, "rb") as file:
                words = file.read().decode("utf-8", "replace")
        except OSError:
            continue
        if all(word in words for word in wanted) and not any(word in words for word in without):
            found.append(int(path.split("/")[2]))
    return found


class Trial:
    """A job whose task counts into a file, with a CRIU that stops where it is told."""

    def __init__(self, case, **variables):
        self.case = case
        self.mark = case.directory
        settings = {"SRUN_CR_CRIU": "{}/slow_criu {} {}".format(
            PROGRAMS, case.directory, case.criu)}
        settings.update(variables)
        # A step that was damaged ends the script only after a requeue.
        self.job = case.submit(
            "$SRUN_CR sh -c 'exec {} >>counted' &\n{}"
            "[ $rc = 3 ] || [ -n \"$SLURM_RESTART_COUNT\" ] || exec sleep 600\nexit $rc"
            .format(case.count(len(NUMBERS), 3, 0.05, self.mark), WAIT), "-n1", **settings)
        self.wait_more(5)

    def numbers(self):
        """Return what has been counted."""
        return counted(self.case.read("counted"))

    def wait_more(self, count):
        """Wait until the task has counted on."""
        before = len(self.numbers())
        wait_until(lambda: len(self.numbers()) >= before + count, what=self.job.output)

    def create(self, number):
        """Have a generation made, and let the task count on."""
        order(self.job, "create")
        self.job.wait_for("checkpoint {} of step".format(number))
        self.wait_more(5)

    def hold(self, moment, operation):
        """Begin an operation and wait until CRIU stops at the moment."""
        with open(self.case.path("hold." + moment), "w"):
            pass
        order(self.job, operation)
        wait_until(lambda: os.path.exists(self.case.path("at." + moment)), what=self.job.output)

    def go_on(self, moment):
        """Let CRIU go on."""
        os.unlink(self.case.path("hold." + moment))
        os.unlink(self.case.path("at." + moment))

    def kill(self, victim):
        """Kill srun_cr, the process on the node, or CRIU."""
        if victim == "srun_cr":
            pids = [srun_cr_pid(self.job.id)]
        elif victim == "node":
            pids = find_processes("node_main", "\0checkpoint\0", self.mark, without=["\0--jobid="])
        else:
            pids = find_processes("\0dump\0", self.mark, without=["slow_criu"])
        assert len(pids) == 1, pids
        os.kill(pids[0], signal.SIGKILL)

    def assert_going_on(self, error_count):
        """Check that the task runs, an error was printed, and only generation 1 is there."""
        wait_until(lambda: len(errors(self.job)) == error_count, what=self.job.output)
        assert "the step goes on, generation 1 stays the newest" in errors(self.job)[-1]
        wait_until(lambda: list(tasks("count.py", self.mark).values()) in (["S"], ["R"]),
                   what=lambda: tasks("count.py", self.mark))
        self.wait_more(5)
        assert self.job.state() == "RUNNING"
        assert self.case.generations(self.job) == ["000001"]
        assert not self.case.partial(self.job)

    def end_step(self):
        """End the task as a crash would."""
        self.case.slurm.run("scancel", "-s", "KILL", self.job.id + ".0")
        wait_until(lambda: not find_processes(self.mark, "count.py"), what=self.job.output)

    def requeue(self):
        """Requeue the job from outside."""
        self.case.slurm.run("scontrol", "requeue", self.job.id)

    def assert_resumed(self, generation):
        """Check that the job ends well from that generation, each number counted once."""
        self.job.wait_for("restarting step step from generation {} ".format(generation))
        assert finish(self.job) == ("FAILED", 3), self.job.output()
        assert self.numbers() == NUMBERS, self.job.output()
        assert not self.case.partial(self.job)


@side_by_side()
def test_a_killed_node_process_or_criu_leaves_the_step_running(case):
    """At several moments of a create and of a requeue; afterwards the step can be restored."""
    trial = Trial(case)
    trial.create(1)
    moments = [("node", "before", "create"), ("node", "within", "create"),
               ("node", "after", "requeue"), ("criu", "within", "create"),
               ("criu", "within", "requeue")]
    for count, (victim, moment, operation) in enumerate(moments, 1):
        trial.hold(moment, operation)
        trial.kill(victim)
        trial.go_on(moment)
        trial.assert_going_on(count)
    trial.requeue()
    trial.assert_resumed(1)


@side_by_side()
def test_srun_cr_killed_within_a_create_loses_no_generation(case):
    trial = Trial(case)
    trial.create(1)
    trial.hold("within", "create")
    trial.kill("srun_cr")
    trial.go_on("within")
    wait_until(lambda: not tasks("count.py", trial.mark), what=trial.job.output)
    assert case.generations(trial.job) == ["000001"]
    trial.requeue()
    trial.assert_resumed(1)


@side_by_side()
def test_srun_cr_killed_with_the_tasks_frozen_leaves_none_frozen(case):
    """During a requeue, when CRIU has stopped the tasks and the commit is to come."""
    trial = Trial(case)
    trial.create(1)
    trial.hold("after", "requeue")
    assert list(tasks("count.py", trial.mark).values()) == ["T"]
    trial.kill("srun_cr")
    trial.go_on("after")
    wait_until(lambda: not tasks("count.py", trial.mark), what=trial.job.output)
    assert case.generations(trial.job) == ["000001"]
    trial.requeue()
    trial.assert_resumed(1)


def damaged(case, *generations, truncate):
    """Return a job with two generations of which some are damaged, requeued after a crash."""
    trial = Trial(case)
    trial.create(1)
    trial.create(2)
    trial.end_step()
    for generation in generations:
        path, = glob.glob(case.path(trial.job.id + ".cr", "step", generation, "task.0.ckpt",
                                    "inventory.img"))
        with open(path, "r+b") as file:
            size = os.fstat(file.fileno()).st_size
            if truncate:
                file.truncate(size // 2)
            else:
                file.write(b"\xa5" * size)
    trial.requeue()
    return trial


@side_by_side()
def test_a_truncated_newest_generation_is_passed_over_and_named(case):
    trial = damaged(case, "000002", truncate=True)
    trial.assert_resumed(1)
    assert len(errors(trial.job)) == 1
    assert errors(trial.job)[0].startswith("srun_cr: error: generation 2 cannot be used: ")
    assert "bytes in" in errors(trial.job)[0]


@side_by_side()
def test_a_generation_that_criu_cannot_restore_is_passed_over_and_named(case):
    """Its sizes are right, so only CRIU can tell."""
    trial = damaged(case, "000002", truncate=False)
    trial.assert_resumed(1)
    assert any(line.startswith("srun_cr: error: generation 2 cannot be restored: ")
               for line in errors(trial.job)), trial.job.output()


@side_by_side()
def test_with_all_generations_damaged_nothing_is_started_nor_deleted(case):
    trial = damaged(case, "000001", "000002", truncate=True)
    assert finish(trial.job) == ("FAILED", 125), trial.job.output()
    assert case.generations(trial.job) == ["000001", "000002"]
    assert "no generation can be restored" in errors(trial.job)[-1]
    assert trial.numbers() == NUMBERS[:len(trial.numbers())]


@side_by_side()
def test_a_full_directory_fails_the_checkpoint_only(case):
    """A file system of 1 MB."""
    full = case.path("full")
    os.mkdir(full)
    if run(["mount", "-t", "tmpfs", "-o", "size=1m,mode=700", "none", full],
           check=False).returncode:
        pytest.skip("cannot mount a tmpfs")
    try:
        trial = Trial(case, SRUN_CR_DIR=full)
        for count, operation in enumerate(("create", "requeue"), 1):
            order(trial.job, operation)
            wait_until(lambda: len(errors(trial.job)) == count, what=trial.job.output)
            assert "the step goes on, there is no checkpoint" in errors(trial.job)[-1]
            trial.wait_more(5)
            assert not glob.glob(os.path.join(full, "*.cr", "step", "0*"))
        assert finish(trial.job) == ("FAILED", 3), trial.job.output()
        assert trial.numbers() == NUMBERS
    finally:
        for job in case.jobs:
            job.cancel()
        run(["umount", "-l", full], check=False)


@side_by_side()
def test_a_checkpoint_that_takes_too_long_is_given_up(case):
    """Before and after the tasks are frozen; then one that is in time succeeds."""
    trial = Trial(case, SRUN_CR_WAIT=2)
    trial.create(1)
    for count, (moment, operation) in enumerate(
            [("before", "create"), ("within", "create"), ("after", "requeue")], 1):
        trial.hold(moment, operation)
        wait_until(lambda: len(errors(trial.job)) == count, what=trial.job.output)
        assert "SRUN_CR_WAIT" in errors(trial.job)[-1]
        trial.assert_going_on(count)
        trial.go_on(moment)
    trial.create(2)
    assert finish(trial.job) == ("FAILED", 3), trial.job.output()
    assert trial.numbers() == NUMBERS
