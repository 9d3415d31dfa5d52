# SPDX-License-Identifier: GPL-2.0-or-later
"""The engine `app` in a real Slurm: programs that save themselves at a signal.

All tests of this module run side by side: see jobs.side_by_side()."""

import json
import os
import re

from conftest import wait_until
from jobs import (OPERATIONS, cases, counted, errors, finish, order, side_by_side,  # noqa: F401
                  wait_number)


def submit(case, *arguments, **variables):
    """Submit a job of two nodes and four tasks of selfsave.py with these arguments."""
    settings = {"SRUN_CR_ENGINE": "app", "SRUN_CR_CRIU": None, "SRUN_CR_APP_SIGNAL": "HUP"}
    settings.update(variables)
    return case.submit("exec $SRUN_CR " + case.program("selfsave.py", *arguments),
                       "-N2", "-n4", **settings)


def images(case, job, generation):
    """Return the names of a generation's images, and check that the files are there."""
    names = sorted(case.manifest(job, generation)["images"])
    found = sorted(os.listdir(case.path(job.id + ".cr", "step", generation)))
    assert found == sorted(names + ["manifest.json"])
    return names


@side_by_side(None, "nobody")
def test_all_ranks_save_at_create_and_at_requeue_and_go_on_where_they_were(case):
    """The ranks of the restart begin at what they saved, so no number is missing."""
    job = submit(case, "HUP", 60, 3)
    for rank in range(4):
        wait_number(job, 5, rank)
    order(job, "create")
    job.wait_for("checkpoint 1 of step")
    every = ["task.{}.ckpt".format(rank) for rank in range(4)]
    assert images(case, job, "000001") == every
    assert job.state() == "RUNNING"
    wait_number(job, 15)
    order(job, "requeue")
    job.wait_for("job {} requeued".format(job.id))
    saved = [int(case.read(job.id + ".cr", "step", "000002", name)) for name in every]
    assert finish(job) == ("FAILED", 3), job.output()
    before, _, after = job.output().partition("restarting step step from generation 2")
    for rank in range(4):
        # Between its saving and its end a task may count on; the restart does it again.
        assert counted(after, rank) == list(range(saved[rank], 61)), job.output()
        assert counted(before, rank) == list(range(1, counted(before, rank)[-1] + 1))
        assert counted(before, rank)[-1] >= saved[rank] - 1
    assert not errors(job)


@side_by_side()
def test_rank_0_may_save_for_all_if_the_user_says_so(case):
    job = submit(case, "HUP", 40, 3, "rank0", SRUN_CR_APP_RANKS="0")
    wait_number(job, 5)
    order(job, "requeue")
    assert finish(job) == ("FAILED", 3), job.output()
    assert images(case, job, "000001") == ["task.0.ckpt"]
    assert job.show()["Restarts"] == "1" and not errors(job)
    assert counted(job.output())[-1] == 40


@side_by_side()
def test_that_rank_0_saves_alone_is_found_out(case):
    """No file of another rank comes for some seconds: then there will be none."""
    job = submit(case, "HUP", 160, 3, "rank0")
    wait_number(job, 5)
    order(job, "create")
    job.wait_for("checkpoint 1 of step")
    assert images(case, job, "000001") == ["task.0.ckpt"]
    assert finish(job) == ("FAILED", 3), job.output()
    assert counted(job.output(), 3) == list(range(1, 161)) and not errors(job)


@side_by_side(None, "nobody")
def test_a_program_that_saves_and_exits_is_requeued_not_finished(case):
    """It ends with status 0, which is not that of a finished step."""
    job = submit(case, "HUP", 40, 3, "exit")
    for rank in range(4):
        wait_number(job, 5, rank)
    order(job, "requeue")
    assert finish(job) == ("FAILED", 3), job.output()
    assert len(images(case, job, "000001")) == 4 and not errors(job)
    assert job.show()["Restarts"] == "1"
    for rank in range(4):
        assert counted(job.output(), rank) == list(range(1, 41)), job.output()


@side_by_side()
def test_a_program_that_saves_and_exits_is_vacated_with_status_75(case):
    """A new job goes on from there."""
    first = submit(case, "HUP", 30, 3, "exit")
    for rank in range(4):
        wait_number(first, 5, rank)
    order(first, "vacate")
    assert finish(first) == ("FAILED", 75), first.output()
    again = submit(case, "HUP", 30, 3, "exit",
                   SLURM_RESTART_DIR=case.path(first.id + ".cr", "step"))
    assert finish(again) == ("FAILED", 3), again.output()
    for rank in range(4):
        assert counted(again.output(), rank) == list(range(1, 31)), again.output()


@side_by_side(None, "nobody")
def test_a_signal_that_a_task_does_not_catch_is_not_sent(case):
    """It would kill the task: refused in one line, and the step goes on."""
    job = submit(case, "none", 60, 3)
    for rank in range(4):
        wait_number(job, 5, rank)
    for count, operation in enumerate(("create", "requeue"), 1):
        order(job, operation)
        wait_until(lambda: len(errors(job)) == count, what=job.output)
        assert re.search(r"{} \(SIG{}\): n\d: task \d: does not catch SIGHUP, .*: the step goes "
                         r"on, there is no checkpoint".format(operation, OPERATIONS[operation]),
                         errors(job)[-1]), errors(job)
    assert finish(job) == ("FAILED", 3), job.output()
    for rank in range(4):
        assert counted(job.output(), rank) == list(range(1, 61)), job.output()
    assert not case.generations(job) and not case.partial(job)


@side_by_side()
def test_a_step_that_is_over_before_all_have_saved_is_no_checkpoint(case):
    """Ranks that exit without their file: said in a line; srun's status stays."""
    job = submit(case, "HUP", 60, 3, "exit", "rank0", SRUN_CR_APP_RANKS="all")
    wait_number(job, 5)
    order(job, "vacate")
    assert finish(job) == ("COMPLETED", 0), job.output()
    assert "the step ended with 1 of 4 tasks saved" in errors(job)[0], job.output()
    assert not case.generations(job) and not case.partial(job)
    events = [json.loads(line)["event"]
              for line in case.read(job.id + ".cr", "step", "events.log").splitlines()]
    assert "failed" in events and "committed" not in events
