# SPDX-License-Identifier: GPL-2.0-or-later
"""Requeues in a real Slurm: which job, when it is refused, what runs again and what does not.

All tests of this module run side by side: see jobs.side_by_side()."""

import os
import random
import signal

import pytest

from conftest import PROGRAMS, Job, run, started, wait_until
from jobs import (WAIT, cases, counted, errors, finish, order, side_by_side,  # noqa: F401
                  srun_cr_pid, wait_number)


def children(pid):
    """Return the pids of the children of a process's main thread."""
    with open("/proc/{0}/task/{0}/children".format(pid)) as file:
        return [int(child) for child in file.read().split()]


def cpu_time_s(*words):
    """Return the CPU time of the process with exactly that command line, 0 if there is none."""
    wanted = "\0".join(words).encode() + b"\0"
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open("/proc/{}/cmdline".format(pid), "rb") as file:
                if file.read() != wanted:
                    continue
            with open("/proc/{}/stat".format(pid), "rb") as file:
                ticks = file.read().rpartition(b")")[2].split()[11]
            return int(ticks) / os.sysconf("SC_CLK_TCK")
        except OSError:
            continue
    return 0.0


@side_by_side()
def test_bc_computes_the_same_digits_as_without_three_requeues(case):
    """A program from the distribution, which knows nothing of checkpoints; random moments."""
    if run(["sh", "-c", "command -v bc"], check=False).returncode:
        pytest.skip("no bc")
    source = case.path("digits.bc")
    with open(source, "w") as file:
        file.write("scale=3600\n4*a(1)\nquit\n")
    with started(["sh", "-c", "exec bc -lq digits.bc >expected"], cwd=case.directory) as bc:
        job = case.submit("exec $SRUN_CR sh -c 'bc -lq {} >digits'".format(source), "-n1")
        for restarts in range(3):
            seconds = random.uniform(0.2, 2.0)
            wait_until(lambda: cpu_time_s("bc", "-lq", source) > seconds, what=job.output)
            order(job, "requeue")
            job.wait_for("requeued", restarts + 1)
        assert finish(job, 120) == ("COMPLETED", 0), job.output()
        assert bc.wait(60) == 0
    assert job.show()["Restarts"] == "3"
    assert len(case.read("digits")) > 3600
    assert case.read("digits") == case.read("expected")


@side_by_side(None, "nobody")
def test_a_finished_step_is_not_run_again_and_returns_its_status(case):
    job = case.submit("$SRUN_CR sh -c 'echo ran >>first; exit 3'\necho first: $?\n"
                      "$SRUN_CR {} &\n{}echo second: $rc\n"
                      "$SRUN_CR sh -c 'echo ran >>third; exit 4'\necho third: $?\n"
                      .format(case.count(80, 5), WAIT), "-n1", SRUN_CR_STEP=None)
    wait_number(job, random.randint(2, 30))
    order(job, "requeue")
    assert finish(job) == ("COMPLETED", 0), job.output()
    assert job.show()["Restarts"] == "1"
    assert case.read("first") == "ran\n" and case.read("third") == "ran\n"
    assert job.lines("first:") == ["first: 3", "first: 3"], job.output()
    assert job.lines("second:") == ["second: 5"], job.output()
    assert job.lines("third:") == ["third: 4"], job.output()
    assert counted(job.output()) == list(range(1, 81)), job.output()


@side_by_side()
def test_parallel_lines_each_go_on_from_their_own_checkpoint(case):
    """Both get the signal; the first to be done requeues the job under the other."""
    line = "$SRUN_CR -n1 --exact sh -c '{} >>out.{}' & pids=\"$pids $!\"\n"
    job = case.submit("".join(line.format(case.count(80), number) for number in range(2))
                      + "trap 'kill -USR1 $pids' USR1\ntrap 'kill -USR2 $pids' USR2\n"
                      "for pid in $pids; do\n"
                      "  while kill -0 $pid 2>/dev/null; do wait $pid; rc=$?; done\n"
                      "  echo step: $rc\ndone\n", "-n2", SRUN_CR_STEP=None)
    for number in range(2):
        wait_until(lambda: 10 in counted(case.read("out.{}".format(number))), what=job.output)
    order(job, "create")
    job.wait_for("checkpoint 1 of step", 2)
    for number in range(2):
        wait_until(lambda: 30 in counted(case.read("out.{}".format(number))), what=job.output)
    order(job, "requeue")
    assert finish(job) == ("COMPLETED", 0), job.output()
    assert job.lines("step:") == ["step: 0"] * 2, job.output()
    assert job.show()["Restarts"] == "1"
    for number in range(2):
        assert counted(case.read("out.{}".format(number))) == list(range(1, 81)), job.output()


@side_by_side()
def test_an_array_element_requeues_itself_only(case):
    array = case.submit("exec $SRUN_CR " + case.count(60, 3), "-n1", "--array=1-2",
                        "--output=" + case.path("log.%a"))
    jobs = [Job(case.slurm, "{}_{}".format(array.id, element),
                case.path("log.{}".format(element)), case.directory) for element in (1, 2)]
    for job in jobs:
        wait_number(job, random.randint(3, 20))
    order(jobs[1], "requeue")
    for job in jobs:
        assert finish(job) == ("FAILED", 3), job.output()
        assert counted(job.output()) == list(range(1, 61)), job.output()
    assert [job.show()["Restarts"] for job in jobs] == ["0", "1"]
    assert "job {} requeued".format(jobs[1].id) in jobs[1].output()


@side_by_side()
def test_a_heterogeneous_job_is_requeued_by_its_leader(case):
    """One step on both components."""
    job = case.submit("exec $SRUN_CR --het-group=0,1 " + case.count(60, 3),
                      "-N1", "-n1", ":", "-N1", "-n1")
    for rank in range(2):
        wait_number(job, 5, rank)
    order(job, "create")
    job.wait_for("checkpoint 1 of step")
    assert sorted(case.manifest(job, "000001")["images"]) == ["task.0.ckpt", "task.1.ckpt"]
    wait_number(job, 20)
    order(job, "requeue")
    job.wait_for("job {} requeued".format(job.id))
    assert finish(job) == ("FAILED", 3), job.output()
    for rank in range(2):
        assert counted(job.output(), rank) == list(range(1, 61)), job.output()
    assert job.show()["Restarts"] == "1" and not errors(job)


@side_by_side()
def test_the_script_does_not_run_its_next_line_after_a_requeue(case):
    """Neither a shell that dies of SIGTERM nor one that catches it; srun_cr in the foreground."""
    for trap in ("", "trap : TERM\n"):
        job = case.submit("{}$SRUN_CR {}\nrc=$?\ntouch next.${{SLURM_RESTART_COUNT:-0}}\nexit $rc"
                          .format(trap, case.count(20, 3)), "-n1")
        before = job.output().count("task 0 number 5\n")
        job.wait_for("task 0 number 5\n", before + 1)
        os.kill(srun_cr_pid(job.id), signal.SIGUSR1)
        assert finish(job) == ("FAILED", 3), job.output()
        assert job.show()["Restarts"] == "1"
        assert os.path.exists(case.path("next.1"))
        assert not os.path.exists(case.path("next.0")), job.output()
        os.unlink(case.path("next.1"))


@side_by_side()
def test_the_script_does_not_run_its_next_line_with_srun_cr_in_the_background(case):
    job = case.submit("trap : TERM\n$SRUN_CR {} &\n{}touch next.${{SLURM_RESTART_COUNT:-0}}\n"
                      "exit $rc".format(case.count(20, 3), WAIT), "-n1")
    wait_number(job, 5)
    order(job, "requeue")
    assert finish(job) == ("FAILED", 3), job.output()
    assert job.show()["Restarts"] == "1"
    assert os.path.exists(case.path("next.1"))
    assert not os.path.exists(case.path("next.0")), job.output()


@side_by_side(None, "nobody")
def test_a_job_that_must_not_be_requeued_is_told_so_beforehand(case):
    """Nothing is imaged, nothing stopped; a `create` is done as ever."""
    job = case.submit("exec $SRUN_CR " + case.count(60, 3), "-n1", "--no-requeue")
    wait_number(job, 5)
    order(job, "requeue")
    wait_until(lambda: errors(job), what=job.output)
    assert errors(job) == ["srun_cr: error: requeue (SIGUSR1): job {}: must not be requeued: "
                           "submit it with --requeue: the step goes on, there is no checkpoint"
                           .format(job.id)]
    assert not case.generations(job) and not case.partial(job)
    order(job, "create")
    job.wait_for("checkpoint 1 of step")
    assert finish(job) == ("FAILED", 3), job.output()
    assert counted(job.output()) == list(range(1, 61)), job.output()
    assert len(errors(job)) == 1


@side_by_side()
def test_without_scontrol_an_operation_is_refused_and_the_step_goes_on(case):
    job = case.submit("exec $SRUN_CR " + case.count(50, 3), "-n1",
                      SRUN_CR_SCONTROL="/nonexistent/scontrol")
    wait_number(job, 5)
    for count, operation in enumerate(("create", "requeue"), 1):
        order(job, operation)
        wait_until(lambda: len(errors(job)) == count, what=job.output)
        assert errors(job)[-1].startswith("srun_cr: error: " + operation)
        assert "/nonexistent/scontrol: " in errors(job)[-1]
        assert errors(job)[-1].endswith("the step goes on, there is no checkpoint")
    assert finish(job) == ("FAILED", 3), job.output()
    assert counted(job.output()) == list(range(1, 51)), job.output()
    assert not case.generations(job) and not case.partial(job)


def submit_that_exits_0_at_the_end(case, prefix):
    """Submit a job whose task ends with 0 at SIGTERM; run again, it ends with 7."""
    return case.submit("exec {} $SRUN_CR sh -c 'trap \"exit 0\" TERM; echo started; "
                       "[ -z \"$SLURM_RESTART_COUNT\" ] || exit 7; "
                       "while :; do sleep 0.05; done'".format(prefix), "-n1")


@side_by_side()
def test_a_step_that_ends_as_slurm_ends_the_job_is_not_finished(case):
    """The program exits 0 at the SIGTERM of a requeue from outside; its work is not done."""
    job = submit_that_exits_0_at_the_end(case, "")
    job.wait_for("started")
    case.slurm.run("scontrol", "requeue", job.id)
    assert finish(job) == ("FAILED", 7), job.output()
    assert job.output().count("started") == 2


@side_by_side()
def test_a_step_that_ends_as_slurm_ends_the_job_is_not_finished_if_only_tasks_are_told(case):
    """SIGTERM is ignored by the script, so by srun_cr: Slurm's word on the job decides."""
    job = submit_that_exits_0_at_the_end(case, "env --ignore-signal=TERM")
    job.wait_for("started")
    case.slurm.run("scontrol", "requeue", job.id)
    assert finish(job) == ("FAILED", 7), job.output()
    assert job.output().count("started") == 2


@side_by_side()
def test_a_step_that_still_waits_for_its_nodes_is_simply_started_again(case):
    """Behind another step of the job: nothing to image; a requeue needs no image either."""
    job = case.submit("srun sh -c 'echo $$ >first.pid; while [ ! -e go ]; do sleep 0.05; done' &\n"
                      "while [ ! -e first.pid ]; do sleep 0.05; done\n"
                      "exec $SRUN_CR {}".format(case.count(20, 3)), "-n1")
    wait_until(lambda: case.read("first.pid") and len(children(srun_cr_pid(job.id))) == 2,
               what=job.output)
    order(job, "create")
    job.wait_for("the step is not launched yet")
    order(job, "requeue")
    job.wait_for("job {} requeued".format(job.id))
    with open(case.path("go"), "w"):
        pass
    assert finish(job) == ("FAILED", 3), job.output()
    assert counted(job.output()) == list(range(1, 21)), job.output()
    assert job.show()["Restarts"] == "1"
    assert not case.generations(job) and not case.partial(job) and not errors(job)


@side_by_side()
def test_a_step_that_ends_while_a_requeue_looks_for_it_is_finished_not_requeued(case):
    """Bug: without a step in Slurm's list it was taken for one that is not launched yet."""
    open(case.path("hold"), "w").close()
    job = case.submit("exec $SRUN_CR " + case.count(60, 3), "-n1", SRUN_CR_SCONTROL="{} {}".format(
        os.path.join(PROGRAMS, "slow_scontrol"), case.directory))
    wait_number(job, 20)
    order(job, "requeue")
    wait_until(lambda: os.path.exists(case.path("held")), what=job.output)
    job.wait_for("Exited with exit code 3")
    os.unlink(case.path("hold"))
    assert finish(job) == ("FAILED", 3), job.output()
    assert job.show()["Restarts"] == "0"
    assert "the step ended meanwhile: it is over" in errors(job)[0]


@side_by_side()
def test_scontrol_that_gets_slurms_sigterm_before_the_answer_has_requeued(case):
    """Bug: its death was taken for a refusal, and the script ran its next line."""
    job = case.submit("$SRUN_CR {}\nrc=$?\n[ $rc = 75 ] && touch next\nexit $rc".format(
        case.count(60, 3)), "-n1", SRUN_CR_SCONTROL="{} {}".format(
            os.path.join(PROGRAMS, "slow_scontrol"), case.directory))
    wait_number(job, 10)
    os.kill(srun_cr_pid(job.id), signal.SIGUSR1)
    assert finish(job) == ("FAILED", 3), job.output()
    assert not os.path.exists(case.path("next"))
    assert not errors(job), job.output()
