# SPDX-License-Identifier: GPL-2.0-or-later
"""Real CRIU in a real Slurm: steps are imaged, stopped, and go on where they were."""

import glob
import os
import random
import re
import signal

from conftest import run, wait_until
from jobs import (WAIT, cases, counted, errors, finish, is_srun_cr, order,  # noqa: F401
                  side_by_side, tasks, wait_number)


@side_by_side(None, "nobody")
def test_a_counting_job_survives_three_requeues_at_random_moments(case):
    """Four tasks on two nodes; no number is lost or printed twice; the status is the tasks'."""
    job = case.submit("exec $SRUN_CR " + case.count(140, 3, 0.1), "-N2", "-n4")
    for restarts in range(3):
        wait_number(job, 30 * restarts + random.randint(2, 25), random.randrange(4))
        order(job, "requeue")
        job.wait_for("requeued", restarts + 1)
    assert finish(job) == ("FAILED", 3), job.output()
    for rank in range(4):
        assert counted(job.output(), rank) == list(range(1, 141)), job.output()
    assert job.show()["Restarts"] == "3"
    assert not errors(job)
    assert job.output().count("restarting step step from generation") == 3


@side_by_side(None, "nobody")
def test_a_process_tree_with_a_pipe_in_it_survives_a_requeue(case):
    job = case.submit("exec $SRUN_CR sh -c '{} | while read -r line; do echo \"$line\"; done; "
                      "exit 5'".format(case.count(100)), "-n1")
    wait_number(job, random.randint(5, 50))
    order(job, "requeue")
    assert finish(job) == ("FAILED", 5), job.output()
    assert counted(job.output()) == list(range(1, 101)), job.output()
    assert job.show()["Restarts"] == "1"


@side_by_side(None, "nobody")
def test_output_files_are_byte_for_byte_those_of_an_undisturbed_run(case):
    """Both `> file` and `>> file`, the latter with something in it already."""
    program = ("sh -c '{0} >plain.$SLURM_PROCID & {0} >>appended.$SLURM_PROCID; wait; "
               "echo over'")
    undisturbed = os.path.join(case.directory, "undisturbed")
    os.mkdir(undisturbed)
    for directory in (case.directory, undisturbed):
        for rank in range(2):
            with open(os.path.join(directory, "appended.{}".format(rank)), "w") as file:
                file.write("already there\n")
            os.chmod(file.name, 0o666)
    for rank in range(2):
        run(["sh", "-c", program.format(case.count(100, 0, 0))], cwd=undisturbed,
            env=dict(os.environ, SLURM_PROCID=str(rank)))
    job = case.submit("exec $SRUN_CR " + program.format(case.count(100)), "-N2", "-n2")
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
    job = case.submit("exec $SRUN_CR " + case.count(300), "-N2", "-n2", SRUN_CR_KEEP=2)
    for number in range(1, 4):
        wait_number(job, 12 * number)
        order(job, "create")
        job.wait_for("checkpoint {} of step".format(number))
        assert job.state() == "RUNNING"
    wait_until(lambda: case.generations(job) == ["000002", "000003"])  # said before it is done
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
    wait_until(lambda: case.generations(job) == ["000004", "000005"])
    assert finish(job) == ("COMPLETED", 0), job.output()
    for rank in range(2):
        assert counted(job.output(), rank) == list(range(1, 301)), job.output()
    assert not case.partial(job) and not errors(job)


@side_by_side(None, "nobody")
def test_vacate_ends_with_75_and_a_new_job_resumes_where_restart_dir_says(case):
    """SLURM_RESTART_DIR may be a generation, a step's directory or a job's.

    One after the other, as an image holds the pids, which can be there once."""
    script = "exec $SRUN_CR " + case.count(40, 3)
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
    job = case.submit("$SRUN_CR sh -c 'exec {} >>counted' &\n{}"
                      "[ -n \"$SLURM_RESTART_COUNT\" ] || sleep 600\nexit $rc"
                      .format(case.count(200), WAIT),
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
    assert counted(case.read("counted")) == list(range(1, 201)), job.output()
    assert case.read("counted").count("\n") == 200


def restored(job):
    """Return how many tasks of a job have been restored, by the name their parents take then."""
    count = 0
    for path in glob.glob("/proc/[0-9]*/comm"):
        try:
            with open(path) as file, open(os.path.dirname(path) + "/environ", "rb") as environ:
                count += file.read() == "srun_cr-task\n" and \
                    b"SLURM_JOB_ID=" + job.id.encode() in environ.read().split(b"\0")
        except OSError:
            continue
    return count


@side_by_side(None, "nobody")
def test_a_signal_reaches_each_restored_task_from_one_sender_only(case):
    """From slurmstepd or passed on by the task's parent, not both.

    Senders are compared, not counted signals: under load Slurm 22.05 itself sends a signal twice
    to a step of a requeued job, with bare srun too."""
    job = case.submit("exec $SRUN_CR " + case.program("record.py", case.directory), "-N2", "-n4")
    job.wait_for("ready", 4)
    order(job, "requeue")
    job.wait_for("restarting step")
    # A signal that comes while CRIU still restores is another matter.
    wait_until(lambda: restored(job) == 4, what=job.output)
    for name in ("USR1", "HUP", "URG", "USR2"):
        # At its second sending scancel may find that the first has ended the step.
        case.slurm.run("scancel", "-s", name, job.id + ".0", check=name != "USR2")
        job.wait_for("got SIG" + name, 4)
    assert finish(job) == ("COMPLETED", 0), job.output()
    for rank in range(4):
        got = [line.split()[3:] for line in job.lines("task {} got".format(rank))]
        assert {name for name, _, _ in got} == {"SIGUSR1", "SIGHUP", "SIGURG", "SIGUSR2"}
        assert len({sender for _, _, sender in got}) == 1, job.output()


@side_by_side(None, "nobody")
def test_scancel_leaves_no_restored_process_behind(case):
    job = case.submit("exec $SRUN_CR sh -c '{} | cat; true'".format(
        case.count(6000, 0, 0.1, case.directory)), "-N2", "-n2")
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
                      "{}'".format(case.program("connected.py", 60, 4)), "-n1")
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
        assert re.search(r"{} \(SIG\w+\): n\d: task 0: criu: .*[Cc]onnected TCP socket.*"
                         r"the step goes on, generation 1 stays the newest".format(operation),
                         errors(job)[-1])
    assert case.generations(job) == ["000001"] and not case.partial(job)
    assert finish(job) == ("FAILED", 4), job.output()
    assert counted(job.output()) == list(range(1, 61))


@side_by_side()
def test_a_pseudo_terminal_is_refused_beforehand(case):
    """Tasks under --pty are not even frozen; the step goes on."""
    job = case.submit("export SRUN_CR\nexec script -qefc '$SRUN_CR --pty {}' /dev/null"
                      .format(case.count(40, 4)), "-n1")

    def numbers():
        # The terminal's echo of what script(1) sends at the end of its input comes first.
        return list(map(int, re.findall(r"task 0 number (\d+)", job.output())))

    wait_until(lambda: 5 in numbers(), what=job.output)
    pid, = [int(path.split("/")[2]) for path in glob.glob("/proc/[0-9]*/cmdline")
            if is_srun_cr(path, job.id)]
    os.kill(pid, signal.SIGUSR2)
    wait_until(lambda: errors(job), what=job.output)
    assert "engine criu: --pty: a pseudo-terminal cannot be imaged: the step goes on" \
        in errors(job)[0]
    assert finish(job) == ("FAILED", 4), job.output()
    assert numbers() == list(range(1, 41))
    assert not case.generations(job) and not case.partial(job)
