# SPDX-License-Identifier: GPL-2.0-or-later
"""Engine blcr: each sentence of the original's manual, its defects not repeated, no misuse.

libcr, libslurm, cr_run, scontrol and srun <= 18.08 are the stand-ins under fakes/; srun_cr is a
process of its own."""

import contextlib
import json
import os
import pty
import random
import resource
import select
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time

import pytest
from conftest import FAKES, ROOT, SRUN_CR, clean_environ, started, wait_until
from fakes_build import build
from standin import Lines, finish, process_state, session

import srun_cr

OLD_SRUN = os.path.join(FAKES, "old_srun_step.py")
CR_RUN = os.path.join(FAKES, "cr_run")
SCONTROL = os.path.join(FAKES, "scontrol_step")
CR_SIGNUM = 64
LONG = os.environ.get("SRUN_CR_TEST_LONG", "0") != "0"
ROUNDS = 1000 if LONG else 150


class Events(Lines):
    """Lines that can be looked at without waiting."""

    def has(self, text):
        """Whether text has come; all up to its end is read then."""
        while select.select([self._fd], [], [], 0)[0]:
            data = os.read(self._fd, 65536)
            if not data:
                break
            self.seen += data
        head, found, rest = self.seen.partition(text.encode("ascii"))
        if found:
            self.seen = rest
        return bool(found)


class Site:
    """A running srun_cr with engine blcr: its srun, and its libcr and libslurm."""

    def __init__(self, directory, libraries, variables):
        self.directory = str(directory)
        self.libcr_log = os.path.join(self.directory, "libcr.log")
        self.libslurm_log = os.path.join(self.directory, "libslurm.log")
        self.cr_run_log = os.path.join(self.directory, "cr_run.log")
        self.errors_path = os.path.join(self.directory, "errors")
        self.context = os.path.join(self.directory, "context.1")
        self._fifos = {}
        for name in ("libcr", "srun"):
            path = os.path.join(self.directory, name + ".fifo")
            os.mkfifo(path, 0o600)
            self._fifos[name] = os.open(path, os.O_RDWR)
        self.environ = clean_environ(**dict({
            "SRUN_CR_ENGINE": "blcr", "SRUN_CR_LIBCR": libraries[0],
            "SRUN_CR_LIBSLURM": libraries[1], "SRUN_CR_CR_RUN": CR_RUN,
            "SRUN_CR_SCONTROL": SCONTROL, "TMPDIR": self.directory,
            "SRUN_CR_SRUN": " ".join(map(shlex.quote, (sys.executable, "-I", "-S", OLD_SRUN))),
            "FAKE_SRUN_FIFO": os.path.join(self.directory, "srun.fifo"),
            "FAKE_LIBCR_FIFO": os.path.join(self.directory, "libcr.fifo"),
            "FAKE_LIBCR_LOG": self.libcr_log, "FAKE_LIBSLURM_LOG": self.libslurm_log,
            "FAKE_LIBSLURM_TASKS": "2", "FAKE_CR_RUN_LOG": self.cr_run_log}, **variables))
        self.process = None
        self.lines = None
        self.answered = 0

    def close(self):
        """Close the FIFOs."""
        for fd in self._fifos.values():
            os.close(fd)

    # -- what they are told

    def tell_libcr(self, *commands):
        """Have the stand-in for libcr do this."""
        for command in commands:
            os.write(self._fifos["libcr"], os.fsencode(command) + b"\n")

    def tell_srun(self, *commands):
        """Have the stand-in for srun do this."""
        for command in commands:
            data = os.fsencode(command) + b"\n"
            while data:
                data = data[os.write(self._fifos["srun"], data):]

    def send(self, number):
        """Send srun_cr a signal."""
        self.process.send_signal(number)

    # -- what they say

    def ready(self):
        """Wait for srun; return what it was started with."""
        wait_until(lambda: self.lines.has("ready ") or self.process.poll() is not None
                   and pytest.fail("srun_cr ended: " + self.errors()), 20,
                   lambda: "srun in {}\n{}".format(self.log()[-40:], self.errors()))
        return json.loads(self.lines.next())

    def report(self, step="7.3", nodes="n[1-2]"):
        """Have srun report a step, and wait until it is known."""
        self.tell_srun("report {} {}".format(step, nodes))
        self.lines.until("reported {}\n".format(step))

    def log(self):
        """Return the lines of libcr, but the first, which tells what signal it has taken."""
        try:
            with open(self.libcr_log, errors="surrogateescape") as file:
                return file.read().splitlines()[1:]
        except FileNotFoundError:
            return []

    def wait_log(self, line, count=1):
        """Wait for a line of libcr's."""
        wait_until(lambda: self.log().count(line) >= count or self.process.poll() is not None
                   and pytest.fail("srun_cr ended: " + self.errors()), 20,
                   lambda: "{!r} in {}\n{}".format(line, self.log()[-30:], self.errors()))

    def wait_done(self, requests=1):
        """Wait for the end of so many requests more."""
        self.answered += requests
        self.wait_log("done", self.answered)

    def checkpoint(self, path=None):
        """Have libcr ask for a checkpoint; return its lines for it, from `request` to `done`."""
        before = len(self.log())
        self.tell_libcr("checkpoint " + (path or self.context))
        self.wait_done()
        return self.log()[before:]

    def restart(self, path=None, dump=None):
        """Go on as the restarted copy; return what the new srun was started with."""
        self.tell_libcr("restart {}{}".format(path or self.context, " " + dump if dump else ""))
        self.wait_done()
        return self.ready()

    def requests(self):
        """Return the requests that libslurm got, each as a dict."""
        found = []
        try:
            with open(self.libslurm_log, errors="surrogateescape") as file:
                lines = file.read().splitlines()
        except FileNotFoundError:
            return []
        for line in lines:
            head, _, nodes = line.partition(" nodes=")
            head, _, directory = head.partition(" dir=")
            found.append(dict([word.split("=") for word in head.split()[1:]],
                              dir=directory, nodes=nodes))
        return found

    def errors(self):
        """Return what srun_cr has said."""
        with open(self.errors_path, errors="surrogateescape") as file:
            return file.read()

    def error_lines(self):
        """Return the errors and warnings that it has said."""
        return [line for line in self.errors().splitlines()
                if line.startswith(("srun_cr: error", "srun_cr: warning"))]

    def wait_said(self, text, count=1):
        """Wait until srun_cr has said it."""
        wait_until(lambda: self.errors().count(text) >= count, 20,
                   lambda: "{!r} in {}".format(text, self.errors()))

    def settle(self):
        """Wait until all is done that srun_cr has begun: each of its threads but the lasting."""
        def lasting():
            return len(os.listdir("/proc/{}/task".format(self.process.pid))) <= 3

        self.check_alive()  # main has begun what it had to
        wait_until(lasting)
        self.check_alive()  # and has heard of its end

    def check_alive(self, number=signal.SIGURG):
        """Check that a signal goes through srun_cr to srun."""
        self.send(number)
        self.lines.until("signal {}\n".format(int(number)))

    def calm(self):
        """Wait until the signals that were sent have reached srun; it would be too early after
        a restart: srun dies of them until it has handlers."""
        # In the order of their numbers, and those of faults by another way.
        for number in (signal.SIGUSR2, signal.SIGSEGV, 63):
            self.check_alive(number)

    def poke(self, number=signal.SIGURG):
        """Wait until a srun is there that answers, however many there were before it."""
        def answered():
            self.send(number)
            return self.lines.has("signal {}\n".format(int(number)))

        wait_until(answered, what=self.errors)

    def end(self, status=0):
        """Have srun end; check that srun_cr does, as it did."""
        self.tell_srun("exit {}".format(status))
        assert finish(self.process) == status, self.errors()

    def check_use(self):
        """Check that libcr was used as it must be, and that only we have said something.

        Bug: Python >= 3.12 warns of fork(2) beside a thread, and libcr has one."""
        assert [line for line in self.log() if line.startswith("misuse")] == []
        assert [line for line in self.errors().splitlines()
                if not line.startswith("srun_cr: ")] == []


@pytest.fixture(scope="module")
def libraries(tmp_path_factory):
    """The stand-ins for libcr and for libslurm of 18.08."""
    return build(tmp_path_factory, "libcr"), build(tmp_path_factory, "libslurm")


@pytest.fixture
def blcr(tmp_path, libraries):
    """Start srun_cr: a context manager blcr(ARGUMENT..., VARIABLE=...) that gives the Site.

    commands: for libcr, from the start; program: run instead of srun_cr.py; options: Popen's."""
    sites = []

    @contextlib.contextmanager
    def start(*arguments, commands=(), program=SRUN_CR, options=None, **variables):
        directory = tmp_path / str(len(sites))
        directory.mkdir()
        site = Site(directory, libraries, variables)
        sites.append(site)
        site.tell_libcr(*commands)
        with contextlib.closing(site), open(site.errors_path, "wb") as errors, session(
                [sys.executable, program, *arguments],
                **dict({"env": site.environ, "stdout": subprocess.PIPE, "stderr": errors},
                       **options or {})) as process:
            site.process = process
            if process.stdout is not None:
                site.lines = Events(process.stdout.fileno())
            yield site
            site.check_use()

    return start


@pytest.fixture
def driver(tmp_path):
    """Make a program that changes the module srun_cr by some statements, and runs it."""
    def make(body):
        path = tmp_path / "driver.py"
        path.write_text("import os, sys, time\nsys.path.insert(0, {!r})\nimport srun_cr\n{}\n"
                        "sys.exit(srun_cr.main())\n".format(ROOT, body))
        return str(path)

    return make


def masks(pid, task):
    """Return the signal masks of a thread: name -> set of numbers."""
    found = {}
    with open("/proc/{}/task/{}/status".format(pid, task)) as file:
        for line in file:
            name, _, value = line.partition(":")
            if name in ("SigBlk", "SigIgn", "SigCgt"):
                mask = int(value, 16)
                found[name] = {n for n in range(1, 65) if mask >> (n - 1) & 1}
    return found


# -- the start ------------------------------------------------------------------------------------

def test_libcr_is_told_before_signals_are_caught_and_srun_is_forked_in_a_critical_section(blcr):
    with blcr(FAKE_LIBCR_LOG_FORKS="1") as site:
        site.ready()
        assert [line for line in site.log() if not line.startswith("hold")][:5] == [
            "init id=0", "register flags=0x4000000", "enter", "fork", "leave"]
        site.end()


def test_srun_is_run_by_cr_run_omit_with_its_arguments_byte_for_byte(blcr):
    arguments = ["-n2", "--job-name=a b", "", "*", "\udcff\udcfe", "--", "$(x)", "--omit", "\n"]
    with blcr(*arguments) as site:
        assert site.ready()["argv"] == arguments
        with open(site.cr_run_log, errors="surrogateescape") as file:
            assert file.read() == "--omit {} -I -S {} {}\n".format(
                sys.executable, OLD_SRUN, " ".join(arguments))
        site.end()


def test_srun_has_a_process_group_of_its_own_and_an_empty_signal_mask(blcr):
    with blcr() as site:
        ready = site.ready()
        assert ready["pgid"] == ready["pid"] != site.process.pid
        assert ready["masks"]["SigBlk"] == 0
        site.end()


def test_srun_gets_no_descriptor_of_ours(blcr):
    with blcr() as site:
        # 3: the directory that lists them.
        assert site.ready()["fds"] == ["0", "1", "2", "3"]
        site.end()


@pytest.mark.parametrize("status", [0, 1, 2, 7, 139, 255])
def test_status_of_srun_is_ours(blcr, status):
    with blcr() as site:
        site.ready()
        site.end(status)


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGKILL, signal.SIGTERM, signal.SIGABRT],
                         ids=lambda number: number.name)
def test_death_of_srun_by_a_signal_is_ours(blcr, number):
    def cores():
        hard = resource.getrlimit(resource.RLIMIT_CORE)[1]
        resource.setrlimit(resource.RLIMIT_CORE, (hard, hard))

    with blcr(options={"preexec_fn": cores, "cwd": "/"}) as site:
        site.ready()
        site.tell_srun("die {}".format(int(number)))
        _, status = os.waitpid(site.process.pid, 0)
        site.process.returncode = -number
        assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == number
        assert not os.WCOREDUMP(status)


@pytest.mark.parametrize("number", [
    signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGPIPE,
    signal.SIGALRM, signal.SIGTERM, signal.SIGCONT, signal.SIGWINCH, signal.SIGIO, 34, 63],
    ids=lambda number: getattr(number, "name", str(number)))
def test_signal_goes_to_srun(blcr, number):
    with blcr() as site:
        site.ready()
        site.check_alive(number)
        site.end()


@pytest.mark.parametrize("number", [signal.SIGILL, signal.SIGFPE, signal.SIGBUS, signal.SIGSEGV],
                         ids=lambda number: number.name)
def test_fault_that_another_process_sends_goes_to_srun(blcr, number):
    with blcr() as site:
        site.ready()
        site.check_alive(number)
        site.end()


@pytest.mark.parametrize("number", [signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU],
                         ids=lambda number: number.name)
def test_stop_signal_stops_srun_and_us_and_sigcont_continues_both(blcr, number, tmp_path):
    # A shell in between: the kernel does not stop a process group that is orphaned.
    script = ("import os, subprocess, sys\nprocess = subprocess.Popen(sys.argv[1:], "
              "preexec_fn=lambda: os.setpgid(0, 0))\nprint('pid', process.pid, flush=True)\n"
              "sys.exit(process.wait())\n")
    path = tmp_path / "shell.py"
    path.write_text(script)
    with blcr(sys.executable, SRUN_CR, program=str(path)) as site:
        site.lines.until("pid ")
        pid = int(site.lines.next())
        srun_pid = site.ready()["pid"]
        os.kill(pid, number)
        wait_until(lambda: process_state(srun_pid) == "T")
        wait_until(lambda: process_state(pid) == "T")
        os.kill(pid, signal.SIGCONT)
        site.lines.until("signal {}\n".format(int(signal.SIGCONT)))
        assert process_state(pid) != "T"
        site.end(3)


def test_srun_is_told_a_socket_on_which_it_reports_its_step(blcr):
    with blcr(SRUN_CR_DEBUG="1") as site:
        path = site.ready()["environ"]["SLURM_SRUN_CR_SOCKET"]
        assert os.stat(path).st_mode & 0o777 == 0o600
        site.report("12.0", "n1")
        site.wait_said("step 12.0 on n1")
        site.end()
        assert not os.path.exists(os.path.dirname(path))


# -- the checkpoint -------------------------------------------------------------------------------

def test_launched_step_is_imaged_beside_the_context_file_and_then_we_are_dumped(blcr):
    with blcr(SRUN_CR_WAIT="77") as site:
        site.ready()
        site.report("7.3", "n[1-2]")
        before = int(time.time())
        lines = site.checkpoint()
        request, = site.requests()
        assert before <= int(request.pop("begin")) <= time.time()
        assert request == {"job": "7", "step": "3", "wait": "77", "length": "6",
                           "dir": os.path.join(site.directory, "7.3"), "nodes": "n[1-2]"}
        assert [line for line in lines if not line.startswith(("enter", "leave", "busy"))] == [
            "request " + site.context, "callback begin " + site.context, "checkpoint flags=0",
            "dumped " + site.context, "callback end rc=0", "done"]
        site.wait_said("BLCR checkpoint in {}: 7.3\n".format(site.directory))
        site.check_alive()
        site.end(4)


@pytest.mark.parametrize("path, directory", [
    ("/tmp/a b/context.9", "/tmp/a b"), ("context", "."), ("/context", "/"),
    ("sub/dir/.", "sub/dir")])
def test_images_are_in_the_directory_of_the_context_file(blcr, path, directory):
    # Where they cannot be written the request is seen all the same.
    with blcr(FAKE_LIBSLURM_ERRNO="5") as site:
        site.ready()
        site.report("7.3")
        site.checkpoint(path)
        assert site.requests()[0]["dir"] == os.path.join(directory, "7.3")
        site.end()


def test_nothing_is_imaged_before_a_step_is_launched(blcr):
    with blcr() as site:
        site.ready()
        assert "dumped " + site.context in site.checkpoint()
        assert site.requests() == []
        site.wait_said("the step is not launched yet")
        site.check_alive()
        site.end()


def test_nothing_is_imaged_once_srun_has_ended(blcr):
    """A request that comes as srun ends: the status is right, whatever comes first."""
    for order in range(6):
        with blcr() as site:
            site.ready()
            site.report()
            if order % 2:
                site.tell_srun("exit 9")
                site.tell_libcr("checkpoint " + site.context)
            else:
                site.tell_libcr("checkpoint " + site.context)
                site.tell_srun("exit 9")
            assert finish(site.process) == 9
            assert site.error_lines() == []


@pytest.mark.parametrize("code, words", [
    ("2017", "Invalid job id specified (error 2017)"), ("-1", "Unspecified error"),
    ("5", "Input/output error (error 5)")])
def test_failure_to_image_cancels_the_checkpoint_with_one_line_and_the_job_goes_on(
        blcr, code, words):
    with blcr(FAKE_LIBSLURM_ERRNO=code) as site:
        site.ready()
        site.report()
        lines = site.checkpoint()
        assert "checkpoint flags=1" in lines and "aborted -2354" in lines
        site.wait_said("the step goes on")
        line, = site.error_lines()
        assert line.startswith("srun_cr: error: BLCR checkpoint failed: ")
        assert words in line
        site.check_alive()
        site.end(5)


def test_checkpoint_after_one_that_failed_works(blcr):
    with blcr() as site:
        site.ready()
        site.report()
        blocked = os.path.join(site.directory, "7.3")
        with open(blocked, "w"):
            pass  # where the directory is to be
        assert "checkpoint flags=1" in site.checkpoint()
        os.unlink(blocked)
        assert "dumped " + site.context in site.checkpoint()
        assert sorted(os.listdir(blocked)) == ["task.0.ckpt", "task.1.ckpt"]
        site.wait_said("BLCR checkpoint in ")
        assert len(site.error_lines()) == 1
        site.end()


def test_dump_that_fails_is_told_in_one_line_and_a_later_one_works(blcr):
    with blcr() as site:
        site.ready()
        site.report()
        site.tell_libcr("mode fail=28")
        assert "failed -28" in site.checkpoint()
        site.wait_said("BLCR checkpoint failed: No space left on device: the step goes on")
        site.check_alive()
        assert "dumped " + site.context in site.checkpoint()
        assert len(site.error_lines()) == 1
        site.end(6)


# -- the restart ----------------------------------------------------------------------------------

def test_restarted_copy_runs_srun_again_with_the_directory_of_images(blcr):
    with blcr("-n2", "a b") as site:
        first = site.ready()
        assert "SLURM_RESTART_DIR" not in first["environ"]
        site.report("7.3")
        second = site.restart()
        assert second["environ"]["SLURM_RESTART_DIR"] == os.path.join(site.directory, "7.3")
        assert second["argv"] == ["-n2", "a b"]
        assert second["pid"] != first["pid"]
        assert second["pgid"] == second["pid"]
        assert second["masks"] == first["masks"] and second["fds"] == first["fds"]
        with open(site.cr_run_log) as file:
            calls = file.read().splitlines()
        assert len(calls) == 2 and calls[0] == calls[1]
        site.end()


def test_directory_of_images_is_that_of_the_context_file_we_are_restarted_from(blcr):
    with blcr() as site:
        site.ready()
        site.report("7.3")
        second = site.restart("/moved/to/context.2", site.context)
        assert site.requests()[0]["dir"] == os.path.join(site.directory, "7.3")
        assert second["environ"]["SLURM_RESTART_DIR"] == "/moved/to/7.3"
        site.wait_said("tasks from /moved/to/7.3")
        site.end()


def test_restarted_srun_gets_a_fresh_socket_that_works(blcr):
    with blcr(SRUN_CR_DEBUG="1") as site:
        first = site.ready()["environ"]["SLURM_SRUN_CR_SOCKET"]
        site.report("7.3")
        second = site.restart()["environ"]["SLURM_SRUN_CR_SOCKET"]
        assert second != first
        assert not os.path.exists(os.path.dirname(first)) and os.path.exists(second)
        site.report("8.0", "n9")
        site.wait_said("step 8.0 on n9")
        site.checkpoint()
        assert [(r["job"], r["step"], r["nodes"]) for r in site.requests()[1:]] == [
            ("8", "0", "n9")]
        site.end()


def test_restarted_step_is_not_launched_until_srun_reports_it_again(blcr):
    with blcr() as site:
        site.ready()
        site.report("7.3")
        site.restart()
        assert len(site.requests()) == 1
        assert "dumped " + site.context in site.checkpoint()
        assert len(site.requests()) == 1
        site.report("8.0")
        site.checkpoint()
        assert [(request["job"], request["step"]) for request in site.requests()] == [
            ("7", "3"), ("8", "0")]
        site.end()


def test_request_right_after_a_restart_does_not_image_the_old_step(blcr):
    """The next request may be served before main has seen that we were restarted."""
    with blcr() as site:
        site.ready()
        site.report("7.3")
        site.tell_libcr("restart " + site.context, "checkpoint " + site.context)
        site.wait_done(2)
        site.ready()
        assert len(site.requests()) == 1
        site.check_alive()
        site.end()


def test_signals_go_to_the_restarted_srun(blcr):
    with blcr() as site:
        site.ready()
        site.report()
        site.restart()
        for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGSEGV, 40):
            site.check_alive(number)
        site.end()


@pytest.mark.parametrize("how, status", [("exit 0", 0), ("exit 7", 7), ("die 9", -9),
                                         ("die 11", -11)])
def test_status_of_the_restarted_srun_is_ours(blcr, how, status):
    with blcr() as site:
        site.ready()
        site.report()
        site.restart()
        site.tell_srun(how)
        assert finish(site.process) == status


def test_restarted_step_can_be_checkpointed_and_restarted_again(blcr):
    with blcr() as site:
        site.ready()
        site.report("7.3")
        site.restart()
        site.report("8.0")
        assert "dumped " + site.context in site.checkpoint()
        ready = site.restart("/elsewhere/context", site.context)
        assert ready["environ"]["SLURM_RESTART_DIR"] == "/elsewhere/8.0"
        site.report("9.1")
        ready = site.restart()
        assert ready["environ"]["SLURM_RESTART_DIR"] == os.path.join(site.directory, "9.1")
        assert [request["job"] for request in site.requests()] == ["7", "8", "8", "9"]
        assert site.error_lines() == []
        site.end(8)


def test_step_that_was_not_launched_is_started_with_the_environment_it_had(blcr):
    with blcr() as site:
        first = site.ready()["environ"]
        second = site.restart()["environ"]
        assert site.requests() == []
        assert second.pop("SLURM_SRUN_CR_SOCKET") != first.pop("SLURM_SRUN_CR_SOCKET")
        assert second == first
        site.end()


def test_step_restarted_but_not_launched_again_is_restarted_from_the_same_images(blcr):
    with blcr() as site:
        site.ready()
        site.report("7.3")
        site.restart("/first/context", site.context)
        ready = site.restart("/second/context", site.context)
        assert ready["environ"]["SLURM_RESTART_DIR"] == "/first/7.3"
        assert len(site.requests()) == 1
        site.end()


# -- the original's defects -----------------------------------------------------------------------

def test_two_checkpoints_within_a_second_both_work(blcr):
    with blcr() as site:
        site.ready()
        site.report()
        site.tell_libcr("checkpoint " + site.context, "checkpoint " + site.context)
        site.wait_done(2)
        assert site.log().count("dumped " + site.context) == 2
        begins = [int(request["begin"]) for request in site.requests()]
        assert len(set(begins)) == 2
        assert site.error_lines() == []
        site.end()


@pytest.mark.parametrize("step_id", [65536, 70003, 4294967294])
def test_step_id_that_slurm_would_cut_off_is_refused(blcr, step_id):
    with blcr() as site:
        site.ready()
        site.report("7.{}".format(step_id))
        assert "checkpoint flags=1" in site.checkpoint()
        site.wait_said("the step goes on")
        line, = site.error_lines()
        assert "step 7.{}: slurm_checkpoint_tasks knows step ids up to 65535".format(
            step_id) in line
        assert site.requests() == []
        site.check_alive()
        site.end()


def test_step_id_65535_is_imaged(blcr):
    with blcr() as site:
        site.ready()
        site.report("4294967295.65535")
        assert "checkpoint flags=0" in site.checkpoint()
        request, = site.requests()
        assert (request["job"], request["step"]) == ("4294967295", "65535")
        site.end()


def test_context_that_is_no_file_is_refused(blcr):
    with blcr() as site:
        site.ready()
        site.report()
        site.tell_libcr("checkpoint ")
        site.wait_done()
        assert "checkpoint flags=1" in site.log()
        site.wait_said("the step goes on")
        line, = site.error_lines()
        assert "pipe or socket" in line
        assert site.requests() == []
        site.check_alive()
        site.end()


def test_context_that_is_no_file_is_no_matter_before_the_launch(blcr):
    """There are no images that would need a directory."""
    with blcr() as site:
        site.ready()
        site.tell_libcr("checkpoint ")
        site.wait_done()
        assert "checkpoint flags=0" in site.log()
        assert site.error_lines() == []
        site.end()


@pytest.mark.parametrize("length", [32767, 32768])
def test_node_list_of_32_kib_is_handed_on_whole(blcr, length):
    nodes = ("n[" + ",".join(map(str, range(10000, 20000))))[:length - 1] + "]"
    with blcr() as site:
        site.ready()
        site.report("7.3", nodes)
        assert "dumped " + site.context in site.checkpoint()
        request, = site.requests()
        assert request["length"] == str(length) and request["nodes"] == nodes
        site.end()


def test_heterogeneous_step_is_refused_with_one_line_that_says_why(blcr):
    with blcr() as site:
        site.ready()
        site.report("7.0", "n1")
        site.report("8.0", "n2")
        assert "checkpoint flags=1" in site.checkpoint()
        site.wait_said("the step goes on")
        line, = site.error_lines()
        assert "heterogeneous" in line and "SLURM_RESTART_DIR" in line
        assert site.requests() == []
        site.check_alive()
        site.end()


def test_checkpoint_without_any_image_is_refused(blcr):
    with blcr(FAKE_LIBSLURM_TASKS="0") as site:
        site.ready()
        site.report()
        assert "checkpoint flags=1" in site.checkpoint()
        site.wait_said("the step goes on")
        line, = site.error_lines()
        assert os.path.join(site.directory, "7.3") in line
        site.check_alive()
        site.end()


def test_checkpoint_with_fewer_images_than_tasks_is_refused(blcr):
    with blcr(FAKE_SCONTROL_TASKS="3") as site:
        site.ready()
        site.report()
        site.settle()
        assert "checkpoint flags=1" in site.checkpoint()
        site.wait_said("2 of 3 tasks imaged: the step goes on")
        assert len(site.error_lines()) == 1
        site.end()


def test_checkpoint_with_an_image_of_every_task_is_taken(blcr):
    with blcr(FAKE_SCONTROL_TASKS="2") as site:
        site.ready()
        site.report()
        site.settle()
        assert "dumped " + site.context in site.checkpoint()
        assert site.error_lines() == []
        site.end()


def test_images_of_an_earlier_checkpoint_do_not_count(blcr):
    """They have the same names: an image program that was killed leaves them behind."""
    with blcr(FAKE_LIBSLURM_TASKS="0") as site:
        site.ready()
        site.report()
        directory = os.path.join(site.directory, "7.3")
        os.mkdir(directory)
        for name in ("task.0.ckpt", "task.1.ckpt"):
            with open(os.path.join(directory, name), "w") as file:
                file.write("earlier\n")
        assert "checkpoint flags=1" in site.checkpoint()
        site.check_alive()
        site.end()


def test_signal_64_stays_libcrs(blcr):
    """Caught by libcr, blocked in no thread but libcr's own: it stops them all for a dump."""
    with blcr(FAKE_SCONTROL_TASKS="2") as site:
        ready = site.ready()
        site.report()
        site.settle()
        tasks = os.listdir("/proc/{}/task".format(site.process.pid))
        assert len(tasks) == 3      # main's, libcr's, the one for faults
        blocked = [task for task in tasks
                   if CR_SIGNUM in masks(site.process.pid, task)["SigBlk"]]
        assert len(blocked) == 1 and str(site.process.pid) not in blocked
        # With another's handler a thread would not stop: misuse, in the log.
        assert "dumped " + site.context in site.checkpoint()
        assert not ready["masks"]["SigBlk"] >> (CR_SIGNUM - 1) & 1
        assert not ready["masks"]["SigIgn"] >> (CR_SIGNUM - 1) & 1
        site.end()


def test_we_have_no_descriptor_that_blcr_cannot_dump(blcr):
    with blcr(FAKE_SCONTROL_TASKS="2") as site:
        for begin in range(2):
            site.ready() if not begin else site.restart()
            site.report()
            site.settle()
            directory = "/proc/{}/fd".format(site.process.pid)
            kinds = [os.readlink(os.path.join(directory, fd)) for fd in os.listdir(directory)]
            assert len(kinds) > 4
            assert [kind for kind in kinds if kind.startswith("anon_inode")] == []
        site.end()


def test_restart_directory_that_the_user_gives_is_used_for_the_first_start(blcr):
    with blcr(SLURM_RESTART_DIR="/given/7.3") as site:
        assert site.ready()["environ"]["SLURM_RESTART_DIR"] == "/given/7.3"
        site.report("9.0")
        ready = site.restart()
        assert ready["environ"]["SLURM_RESTART_DIR"] == os.path.join(site.directory, "9.0")
        site.end()


def test_srun_is_ended_when_we_are_killed(blcr):
    with blcr() as site:
        site.ready()
        site.restart()
        site.process.kill()
        site.lines.until("signal {}\n".format(int(signal.SIGTERM)))


# -- misuse ---------------------------------------------------------------------------------------

@pytest.mark.parametrize("what", [
    "ValueError('x')", "SystemExit(3)", "KeyboardInterrupt()", "MemoryError()",
    "RecursionError()", "UnicodeError('\\udcff')"])
def test_exception_in_the_callback_cancels_the_checkpoint_and_the_step_goes_on(
        blcr, driver, what):
    program = driver("def broken(*_):\n    raise {}\n"
                     "srun_cr.Blcr._checkpoint_tasks = broken".format(what))
    with blcr(program=program) as site:
        site.ready()
        site.report()
        for _ in range(2):
            lines = site.checkpoint()
            assert "checkpoint flags=1" in lines and "callback end rc=0" in lines
        site.wait_said("BLCR checkpoint failed: " + what.partition("(")[0], 2)
        site.check_alive()
        site.end(3)


def test_exception_after_the_answer_neither_ends_us_nor_answers_again(blcr, driver):
    program = driver("def broken(*_):\n    raise ValueError('late')\n"
                     "import srun_cr_ctypes\n"
                     "sys.modules['srun_cr_ctypes'].Libcr.restart_info = broken")
    with blcr(program=program) as site:
        site.ready()
        site.tell_libcr("restart " + site.context)
        site.wait_done()
        assert "callback end rc=0" in site.log()
        # What it is restarted from is not known, but that it is: srun is gone.
        site.ready()
        site.check_alive()
        site.end()


def test_directory_of_images_that_cannot_be_read_cancels_the_checkpoint(blcr):
    with blcr(FAKE_LIBSLURM_TASKS="0") as site:
        site.ready()
        site.report()
        with open(os.path.join(site.directory, "7.3"), "w"):
            pass
        assert "checkpoint flags=1" in site.checkpoint()
        site.wait_said("the step goes on")
        assert len(site.error_lines()) == 1
        site.check_alive()
        site.end()


def test_request_before_srun_is_started_is_served_and_srun_starts(blcr):
    for slow in (0, 300):
        with blcr(commands=["mode slow={}".format(slow), "checkpoint /tmp/context"]) as site:
            site.ready()
            site.wait_done()
            site.check_alive()
            site.report()
            site.checkpoint()
            site.end(2)


def test_restart_before_srun_is_started_starts_it_once(blcr):
    with blcr(commands=["restart /tmp/context"] * 3) as site:
        site.wait_done(3)
        # A late one has ended a srun that was ready, or not: the last one answers.
        site.poke()
        site.tell_srun("exit 5")
        assert finish(site.process) == 5


def test_signal_that_comes_before_srun_is_not_lost(blcr):
    """Main waits for the end of a checkpoint before it starts srun."""
    commands = ["mode slow=1500", "mode stop=0", "checkpoint /tmp/context"]
    with blcr(commands=commands) as site:
        wait_until(lambda: "busy" in site.log() or "enter" in site.log())
        site.send(signal.SIGTERM)
        # srun dies of it until it has handlers; then so do we.
        wait_until(lambda: site.process.poll() is not None
                   or site.lines.has("signal {}\n".format(int(signal.SIGTERM))), 20, site.errors)
        if site.process.poll() is None:
            site.end(15)
        assert site.process.returncode in (15, -signal.SIGTERM)


def test_request_while_srun_reports_its_step_is_served_and_the_step_is_known_after_it(blcr):
    with blcr() as site:
        site.ready()
        site.tell_srun("begin 7.3 n[1-2]")
        site.lines.until("half\n")
        assert "dumped " + site.context in site.checkpoint()
        assert site.requests() == []
        site.tell_srun("finish")
        site.lines.until("finished\n")
        assert "dumped " + site.context in site.checkpoint()
        assert len(site.requests()) == 1
        site.end()


def test_restart_while_srun_reports_its_step_starts_it_anew(blcr):
    with blcr() as site:
        site.ready()
        site.tell_srun("begin 7.3 n[1-2]")
        site.lines.until("half\n")
        assert "SLURM_RESTART_DIR" not in site.restart()["environ"]
        site.report("8.0")
        site.checkpoint()
        assert [request["job"] for request in site.requests()] == ["8"]
        site.end()


def test_signals_go_to_srun_while_a_checkpoint_takes_long(blcr):
    with blcr(FAKE_LIBSLURM_SLEEP_MS="2000") as site:
        site.ready()
        site.report()
        site.tell_libcr("checkpoint " + site.context)
        site.wait_log("callback begin " + site.context)
        for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGSEGV):
            site.check_alive(number)
        assert "done" not in site.log()
        site.wait_done()
        assert "dumped " + site.context in site.log()
        site.end()


def test_connection_that_comes_during_a_checkpoint_is_served_after_it(blcr):
    with blcr(FAKE_LIBSLURM_SLEEP_MS="700", SRUN_CR_DEBUG="1") as site:
        site.ready()
        site.report("7.3", "n1")
        site.tell_libcr("checkpoint " + site.context)
        site.wait_log("callback begin " + site.context)
        site.tell_srun("report 8.4 n2")
        site.wait_log("busy")
        assert "done" not in site.log()
        site.lines.until("reported 8.4\n")
        site.wait_done()
        assert "step 8.4 on n2" in site.errors()
        site.end()


@pytest.mark.parametrize("how, status", [("exit 11", 11), ("die 15", -15)])
def test_end_of_srun_during_a_checkpoint_is_seen_after_it(blcr, how, status):
    with blcr(FAKE_LIBSLURM_SLEEP_MS="700") as site:
        pid = site.ready()["pid"]
        site.report()
        site.tell_libcr("checkpoint " + site.context)
        site.wait_log("callback begin " + site.context)
        site.tell_srun(how)
        wait_until(lambda: process_state(pid) == "Z")
        assert "done" not in site.log()
        assert finish(site.process) == status
        assert "dumped " + site.context in site.log()


def test_srun_that_ended_before_the_restart_is_run_again(blcr):
    """Its end was not seen: the images are whole, and the restarted copy has no child."""
    with blcr(FAKE_LIBSLURM_SLEEP_MS="700") as site:
        pid = site.ready()["pid"]
        site.report()
        site.tell_libcr("restart " + site.context)
        site.wait_log("callback begin " + site.context)
        site.tell_srun("exit 11")
        wait_until(lambda: process_state(pid) == "Z")
        site.wait_done()
        assert site.ready()["environ"]["SLURM_RESTART_DIR"].endswith("/7.3")
        site.end(12)


def test_signal_storm_during_checkpoints_and_restarts_blocks_nothing(blcr):
    ignored = (signal.SIGCHLD, signal.SIGURG, signal.SIGWINCH, signal.SIGCONT)
    deadly = (signal.SIGUSR1, signal.SIGHUP, signal.SIGFPE, 45)
    with blcr() as site:
        site.ready()
        over, starting, only_mild = (threading.Event() for _ in range(3))

        def storm():
            while not over.is_set():
                mild = starting.is_set()
                for number in ignored + (() if mild else deadly):
                    os.kill(site.process.pid, number)
                if mild:
                    only_mild.set()
                over.wait(0.0005)

        thread = threading.Thread(target=storm)
        thread.start()
        try:
            for index in range(4):
                if index % 2 == 0:
                    site.report("7.{}".format(index))
                site.checkpoint()
                if index % 2 == 1:
                    starting.set()
                    assert only_mild.wait(20)
                    site.calm()
                    site.restart()
                    starting.clear()
                    only_mild.clear()
        finally:
            over.set()
            thread.join()
        site.check_alive()
        site.end(1)


def test_restarted_copy_does_not_signal_the_old_srun(blcr):
    """Here it lives on, as its number may, as another process: it is not ours any more."""
    with blcr(commands=["mode children=0"]) as site:
        old = site.ready()["pid"]
        site.report()
        site.tell_libcr("restart " + site.context)
        site.wait_done()
        new = site.ready()["pid"]
        for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGUSR2):
            site.send(number)
            assert site.lines.next() == "signal {}".format(int(number))
        # Nothing more: each came once, so one of the two got it.
        os.kill(old, signal.SIGKILL)
        os.kill(new, signal.SIGKILL)
        assert finish(site.process) == -signal.SIGKILL
        assert site.lines.rest() == ""


def test_signal_is_not_sent_to_a_process_that_is_not_our_child():
    script = ("import os, signal\nif os.fork():\n    os._exit(0)\nos.setpgid(0, 0)\n"
              "print(os.getpid(), flush=True)\nsignal.pause()\n")
    with started([sys.executable, "-c", script], stdout=subprocess.PIPE) as process:
        pid = int(process.stdout.readline())
        child = srun_cr.Child.__new__(srun_cr.Child)
        child.pid = pid
        try:
            child.send(signal.SIGKILL)
            os.kill(pid, signal.SIGSTOP)    # after the other one
            wait_until(lambda: process_state(pid) == "T")
        finally:
            os.kill(pid, signal.SIGKILL)


LATE_MAIN = """
original = srun_cr.Supervisor._on_wakeup
def late(self, fd):
    if os.path.exists({flag!r}):
        time.sleep(0.5)
    original(self, fd)
srun_cr.Supervisor._on_wakeup = late
"""


@pytest.mark.parametrize("restarts", [1, 2])
def test_restart_that_main_sees_late_starts_srun_once(blcr, driver, tmp_path, restarts):
    """Bug: a SIGCHLD before it was taken for the end of the old srun, whose status is unknown."""
    flag = str(tmp_path / "late")
    with blcr(program=driver(LATE_MAIN.format(flag=flag))) as site:
        site.ready()
        site.report("7.3")
        site.settle()
        with open(flag, "w"):
            pass
        site.send(signal.SIGCHLD)   # so that main is late
        site.tell_libcr(*["restart " + site.context] * restarts)
        site.wait_done(restarts)
        assert site.ready()["environ"]["SLURM_RESTART_DIR"].endswith("/7.3")
        os.unlink(flag)
        site.calm()
        site.end(3)
        assert "ready" not in site.lines.rest()     # nor is there another srun: it has ended
        assert len(site.requests()) == 1 and site.error_lines() == []


class Round:
    """One srun_cr in the random rounds: what it was told, and what of that is over."""

    def __init__(self, site, chance):
        self.site = site
        self.chance = chance
        self.running = False    # a request
        self.restarts = 0
        self.launched = False   # or told to report
        self.excited = False    # signals are on their way that srun could die of
        self.job = 0
        site.ready()

    def free(self):
        """Whether no request is running; see then to what it has brought."""
        if self.site.process.poll() is not None:
            pytest.fail("ended with {}: {}".format(self.site.process.returncode,
                                                   self.site.errors()))
        if self.running:
            log = self.site.log()
            if log.count("done") < self.site.answered:
                return False
            restarts = sum(line.startswith("restarted ") for line in log)
            if restarts > self.restarts:
                self.site.ready()
                self.restarts = restarts
                self.launched = False
            self.running = False
        return True

    def request(self, *kinds):
        """Ask libcr for these, one right after the other."""
        if self.excited and "restart" in kinds:
            self.site.calm()
            self.excited = False
        self.site.tell_libcr("mode slow={}".format(self.chance.choice((0, 0, 3, 30))),
                             *(kind + " " + self.site.context for kind in kinds))
        self.site.answered += len(kinds)
        self.running = True

    def act(self):
        """Do something."""
        site, chance = self.site, self.chance
        kind = chance.choice(("report", "report", "half", "checkpoint", "restart", "restart",
                              "both", "fail", "signals"))
        if kind == "report" and not self.launched:
            self.launched = True
            self.job += 1
            site.tell_srun("report {}.{} n1".format(self.job, chance.randrange(65536)))
        elif kind == "half":
            site.tell_srun("begin 1.1 n1")
        elif kind == "fail":
            site.tell_libcr("mode fail={}".format(chance.choice((5, 16, 28, 2356))))
            self.request("checkpoint")
        elif kind == "both":
            self.request("checkpoint", "restart")
        elif kind in ("checkpoint", "restart"):
            self.request(kind)
        # A srun that is being started dies of more than these, as it should.
        numbers = [signal.SIGCHLD, signal.SIGURG, signal.SIGCONT]
        if kind not in ("both", "restart"):
            numbers += [signal.SIGUSR1, signal.SIGHUP, signal.SIGBUS, 50]
            self.excited = True
        for _ in range(chance.choice((0, 0, 1, 5))):
            site.send(chance.choice(numbers))


def test_random_rounds_of_checkpoints_restarts_and_signals_never_block(blcr):
    chance = random.Random(20181108)
    count = 8 if LONG else 4
    with contextlib.ExitStack() as stack:
        rounds = [Round(stack.enter_context(blcr()), random.Random(chance.random()))
                  for _ in range(count)]
        deadline = time.monotonic() + (300 if LONG else 100)
        left = ROUNDS
        while left:
            free = [one for one in rounds if one.free()]
            assert time.monotonic() < deadline, [one.site.log()[-5:] for one in rounds]
            if not free:
                time.sleep(0.005)
            for one in free[:left]:
                one.act()
                left -= 1
        for number, one in enumerate(rounds):
            wait_until(one.free)
            one.site.calm()
            one.site.end(number + 1)
        log = [line for one in rounds for line in one.site.log()]
        # All kinds there were, and none failed but those that were to.
        assert min(log.count(line) for line in ("busy", "done", "enter")) > 0
        assert sum(line.startswith("restarted ") for line in log) > ROUNDS / 10
        assert sum(len(one.site.requests()) for one in rounds) > ROUNDS / 20
        refusals = [line for one in rounds for line in one.site.error_lines()
                    if "failed: " in line and "heterogeneous" not in line]
        assert len(refusals) == sum(line.startswith("failed ") for line in log)


# -- what is missing ------------------------------------------------------------------------------

def run_alone(directory, *arguments, program=SRUN_CR, **variables):
    """Run srun_cr to its end, with true(1) for srun; return (status, what it said)."""
    environ = clean_environ(**dict({"SRUN_CR_SRUN": "true", "SRUN_CR_ENGINE": "blcr",
                                    "TMPDIR": str(directory)}, **variables))
    done = subprocess.run([sys.executable, program, *arguments], env=environ,
                          stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, universal_newlines=True, timeout=20)
    assert done.stdout == ""
    return done.returncode, done.stderr.splitlines()


def blcr_variables(libraries, **variables):
    """Return the settings of engine blcr with the stand-ins."""
    return dict({"SRUN_CR_LIBCR": libraries[0], "SRUN_CR_LIBSLURM": libraries[1],
                 "SRUN_CR_CR_RUN": CR_RUN}, **variables)


def test_module_without_its_bindings_runs_without_blcr_and_names_them_for_it(
        tmp_path, libraries):
    program = str(tmp_path / "srun_cr.py")
    shutil.copy(SRUN_CR, program)
    assert run_alone(tmp_path, program=program, SRUN_CR_ENGINE="none") == (0, [])
    status, lines = run_alone(tmp_path, program=program, **blcr_variables(libraries))
    assert status == 125
    assert lines == ["srun_cr: error: SRUN_CR_ENGINE=blcr: {}: not found: copy it there, too"
                     .format(tmp_path / "srun_cr_ctypes.py")]


def test_libslurm_without_slurm_checkpoint_tasks_is_told_with_what_works_instead(
        tmp_path, libraries):
    new = build(tmp_path, "libslurm", "-DNEW")
    status, lines = run_alone(tmp_path, **blcr_variables(libraries, SRUN_CR_LIBSLURM=new))
    assert status == 125 and len(lines) == 1
    assert new in lines[0] and "slurm_checkpoint_tasks, which Slurm 19.05 removed" in lines[0]
    assert "SRUN_CR_ENGINE=criu or SRUN_CR_ENGINE=app" in lines[0]


def test_missing_libcr_is_told_in_one_line(tmp_path, libraries):
    status, lines = run_alone(tmp_path, **blcr_variables(
        libraries, SRUN_CR_LIBCR=str(tmp_path / "libcr.so")))
    assert status == 125 and len(lines) == 1
    assert lines[0].startswith("srun_cr: error: SRUN_CR_ENGINE=blcr: libcr: ")
    assert str(tmp_path / "libcr.so") in lines[0]


@pytest.mark.parametrize("code, words", [
    ("ENOSYS", "load the kernel module blcr"), ("CR_EVERSION", "belongs to this kernel"),
    ("CR_ENOSUPPORT", "not linked")])
def test_libcr_without_its_kernel_part_is_told_in_one_line(tmp_path, libraries, code, words):
    status, lines = run_alone(tmp_path, **blcr_variables(libraries, FAKE_LIBCR_FAIL_INIT=code))
    assert status == 125 and len(lines) == 1
    assert lines[0].startswith("srun_cr: error: SRUN_CR_ENGINE=blcr: libcr: cr_init: ")
    assert words in lines[0]


def test_missing_cr_run_is_told_in_one_line(tmp_path, libraries):
    status, lines = run_alone(tmp_path, **blcr_variables(
        libraries, SRUN_CR_CR_RUN=str(tmp_path / "cr_run")))
    assert status == 125 and len(lines) == 1
    assert str(tmp_path / "cr_run") in lines[0]


def test_cr_run_is_looked_for_in_blcr_home(tmp_path, libraries):
    (tmp_path / "bin").mkdir()
    shutil.copy(CR_RUN, str(tmp_path / "bin" / "cr_run"))
    log = tmp_path / "log"
    assert run_alone(tmp_path, **blcr_variables(
        libraries, SRUN_CR_CR_RUN=None, BLCR_HOME=str(tmp_path),
        FAKE_CR_RUN_LOG=str(log))) == (0, [])
    assert log.read_text().startswith("--omit ")


def test_missing_srun_is_told_in_one_line(tmp_path, libraries):
    status, lines = run_alone(tmp_path, **blcr_variables(
        libraries, SRUN_CR_SRUN=str(tmp_path / "srun"), FAKE_LIBCR_LOG=str(tmp_path / "log")))
    assert status == 127 and len(lines) == 1
    assert str(tmp_path / "srun") in lines[0]
    log = (tmp_path / "log").read_text().splitlines()
    # The last section lasts to the end: nothing checkpoints an interpreter that ends.
    assert log.count("enter") == log.count("leave") + 1 and log[-1] == "enter"


def test_operation_asked_for_by_a_signal_is_refused_in_one_line(blcr):
    with blcr(SRUN_CR_SIGNALS="USR1=create,USR2=requeue") as site:
        site.ready()
        for number in (signal.SIGUSR1, signal.SIGUSR2):
            site.send(number)
            site.wait_said("({})".format(number.name))
        site.check_alive()
        assert len(site.error_lines()) == 2
        assert all("scontrol checkpoint" in line for line in site.error_lines())
        site.end()


def test_auto_without_blcr_in_the_kernel_does_not_load_libcr(tmp_path, libraries):
    if os.path.exists("/proc/checkpoint"):
        pytest.skip("this kernel has BLCR")
    log = tmp_path / "log"
    status, _ = run_alone(tmp_path, SRUN_CR_ENGINE="auto", FAKE_LIBCR_LOG=str(log),
                          SRUN_CR_CRIU=str(tmp_path / "none"), **blcr_variables(libraries))
    assert status == 0
    assert not log.exists()


# -- another host ---------------------------------------------------------------------------------

JUMPING_CLOCK = """
def jumping(clock, by):
    return lambda: clock() + (by if os.path.exists({flag!r}) else 0)
time.time = jumping(time.time, {wall})
time.monotonic = jumping(time.monotonic, {monotonic})
"""


@pytest.mark.parametrize("wall, monotonic", [(-3600, 0), (0, 1e6), (-86400, -1e6), (-1.5, 0)])
def test_restart_with_other_clocks_goes_on_as_before(blcr, driver, tmp_path, wall, monotonic):
    """Bug: with the wall clock behind, the callback waited until it had caught up."""
    flag = str(tmp_path / "jumped")
    program = driver(JUMPING_CLOCK.format(flag=flag, wall=wall, monotonic=monotonic))
    with blcr(program=program) as site:
        site.ready()
        site.report("7.3")
        site.checkpoint()
        site.tell_srun("begin 1.1 n1")
        site.lines.until("half\n")
        with open(flag, "w"):
            pass
        site.restart()
        site.report("8.0")
        begun = time.monotonic()
        assert "dumped " + site.context in site.checkpoint()
        assert time.monotonic() - begun < 5
        site.check_alive()
        site.end()


def test_restart_without_the_terminal_that_there_was_goes_on(blcr):
    master, slave = pty.openpty()
    reader, writer = os.pipe()
    options = {"stdin": slave, "stdout": writer, "pass_fds": (),
               "preexec_fn": lambda: __import__("fcntl").ioctl(
                   0, __import__("termios").TIOCSCTTY, 0)}
    try:
        with blcr(options=options) as site:
            site.lines = Events(reader)
            os.close(writer)
            writer = -1
            ready = site.ready()
            site.report("7.3")
            assert os.tcgetpgrp(master) == ready["pgid"]
            site.checkpoint()
            os.close(slave)
            os.close(master)
            slave = master = -1
            site.lines.until("signal {}\n".format(int(signal.SIGHUP)))
            again = site.restart()
            assert again["environ"]["SLURM_RESTART_DIR"].endswith("/7.3")
            site.report("8.0")
            assert "dumped " + site.context in site.checkpoint()
            site.check_alive()
            site.end(4)
            assert site.error_lines() == []
    finally:
        for fd in (master, slave, reader, writer):
            if fd >= 0:
                os.close(fd)


def test_restart_without_the_directory_of_the_socket_goes_on(blcr):
    with blcr() as site:
        path = site.ready()["environ"]["SLURM_SRUN_CR_SOCKET"]
        site.report("7.3")
        shutil.rmtree(os.path.dirname(path))
        again = site.restart()["environ"]["SLURM_SRUN_CR_SOCKET"]
        assert os.path.exists(again)
        site.report("8.0")
        site.end()


def test_restart_where_the_temporary_directory_is_missing_uses_another(blcr, tmp_path):
    temporary = tmp_path / "t"
    temporary.mkdir()
    with blcr(TMPDIR=str(temporary)) as site:
        site.ready()
        site.report("7.3")
        shutil.rmtree(str(temporary))
        again = site.restart()["environ"]["SLURM_SRUN_CR_SOCKET"]
        assert again.startswith("/tmp/srun_cr.")
        site.report("8.0")
        site.end()
        assert not os.path.exists(os.path.dirname(again))


def test_restart_where_srun_is_missing_is_told_in_one_line(blcr, tmp_path):
    srun = tmp_path / "srun"
    srun.write_text("#!/bin/sh\nexec {} -I -S {}\n".format(sys.executable, OLD_SRUN))
    srun.chmod(0o755)
    with blcr(SRUN_CR_SRUN=str(srun)) as site:
        site.ready()
        site.report("7.3")
        srun.unlink()
        site.tell_libcr("restart " + site.context)
        assert finish(site.process) == 127
        line, = site.error_lines()
        assert str(srun) in line
