# SPDX-License-Identifier: GPL-2.0-or-later
"""Engine blcr through a true dump, kill and restore of srun_cr itself, threads and all.

CRIU does what BLCR's part of the kernel did, when the stand-in for libcr asks for it."""

import contextlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys

from conftest import FAKES, SRUN_CR, clean_environ, wait_until
from fakes_build import build
from standin import processes_in_session

OLD_SRUN = os.path.join(FAKES, "old_srun_step.py")


class Restored:
    """srun_cr in a session of its own, which may be imaged and restored as our child."""

    def __init__(self, directory, tmp_path_factory, criu):
        self.directory = str(directory)
        self.criu = shlex.split(criu)
        self.answer = self.path("answer")
        for name in ("libcr.fifo", "srun.fifo"):
            os.mkfifo(self.path(name))
        self.fifos = {name: os.open(self.path(name + ".fifo"), os.O_RDWR)
                      for name in ("libcr", "srun")}
        environ = clean_environ(
            SRUN_CR_ENGINE="blcr", TMPDIR=self.directory,
            SRUN_CR_LIBCR=build(tmp_path_factory, "libcr"),
            SRUN_CR_LIBSLURM=build(tmp_path_factory, "libslurm"),
            SRUN_CR_CR_RUN=os.path.join(FAKES, "cr_run"),
            SRUN_CR_SCONTROL=os.path.join(FAKES, "scontrol_step"),
            SRUN_CR_SRUN=" ".join(map(shlex.quote, (sys.executable, "-I", "-S", OLD_SRUN))),
            FAKE_SRUN_FIFO=self.path("srun.fifo"), FAKE_LIBCR_FIFO=self.path("libcr.fifo"),
            FAKE_LIBCR_LOG=self.path("libcr.log"), FAKE_LIBSLURM_LOG=self.path("libslurm.log"),
            FAKE_LIBSLURM_TASKS="2", FAKE_LIBCR_IMAGE=self.answer)
        # Files, as pipes to another process would have to be handed to criu.
        with open(self.path("output"), "wb") as output, open(self.path("errors"), "wb") as errors:
            self.pid = subprocess.Popen(
                [sys.executable, SRUN_CR, "-n2"], env=environ, stdin=subprocess.DEVNULL,
                stdout=output, stderr=errors, start_new_session=True).pid

    def path(self, name):
        """Return the path of a file of ours."""
        return os.path.join(self.directory, name)

    def text(self, name):
        """Return what is in a file."""
        with contextlib.suppress(FileNotFoundError), open(self.path(name)) as file:
            return file.read()
        return ""

    def wait_for(self, name, text, count=1):
        """Wait until a file has text so often."""
        wait_until(lambda: self.text(name).count(text) >= count, 20,
                   lambda: "{!r} in {}\n{}\n{}".format(text, self.text("output"),
                                                       self.text("errors"),
                                                       self.text("libcr.log")))

    def tell(self, whom, command):
        """Send a command to a stand-in."""
        os.write(self.fifos[whom], (command + "\n").encode("ascii"))

    def ready(self, count):
        """Return what the srun was started with that is the count-th."""
        self.wait_for("output", "ready ", count)
        wait_until(lambda: self.text("output").endswith("\n"))
        lines = [line for line in self.text("output").splitlines() if line.startswith("ready ")]
        return json.loads(lines[count - 1][len("ready "):])

    def run_criu(self, *arguments):
        """Run criu to its end; fail with its log."""
        done = subprocess.run([*self.criu, *arguments, "-v4", "-o", "log"],
                              stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, universal_newlines=True, timeout=60)
        directory = arguments[arguments.index("-D") + 1]
        assert done.returncode == 0, done.stdout + self.text(os.path.join(directory, "log"))[-4000:]

    def image_and_restore(self, number):
        """Have libcr ask for an image, take it, end the process and restore it."""
        self.tell("libcr", "restart " + self.path("context"))
        self.wait_for("libcr.log", "image me\n", number)
        images = self.path("images.{}".format(number))
        os.mkdir(images)
        self.run_criu("dump", "-t", str(self.pid), "-D", images, "--shell-job")
        _, status = os.waitpid(self.pid, 0)
        assert os.WTERMSIG(status) == signal.SIGKILL
        self.run_criu("restore", "-D", images, "--shell-job", "-d", "-S")
        assert processes_in_session(self.pid) == [self.pid]
        with open(self.answer, "w"):
            pass
        self.wait_for("libcr.log", "done\n", number)
        os.unlink(self.answer)

    def wait(self):
        """Wait for srun_cr's end; return its status."""
        wait_until(lambda: os.waitid(os.P_PID, self.pid,
                                     os.WEXITED | os.WNOHANG | os.WNOWAIT), 20)
        pid, self.pid = self.pid, 0
        return os.waitpid(pid, 0)[1]

    def close(self):
        """End all."""
        for fd in self.fifos.values():
            os.close(fd)
        if self.pid:
            for pid in processes_in_session(self.pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(self.pid, 0)


def test_srun_cr_that_was_dumped_killed_and_restored_runs_srun_again_twice(
        tmp_path, tmp_path_factory, criu):
    with contextlib.closing(Restored(tmp_path, tmp_path_factory, criu)) as job:
        first = job.ready(1)
        job.tell("srun", "report 7.3 n[1-2]")
        job.wait_for("output", "reported 7.3\n")
        # As on another host: the directory of the socket is not there.
        shutil.rmtree(os.path.dirname(first["environ"]["SLURM_SRUN_CR_SOCKET"]))
        job.image_and_restore(1)
        second = job.ready(2)
        assert second["environ"]["SLURM_RESTART_DIR"] == str(tmp_path / "7.3")
        assert second["environ"]["SLURM_SRUN_CR_SOCKET"] != first["environ"][
            "SLURM_SRUN_CR_SOCKET"]
        assert second["argv"] == ["-n2"] and second["masks"] == first["masks"]
        os.kill(job.pid, signal.SIGUSR1)
        job.wait_for("output", "signal {}\n".format(int(signal.SIGUSR1)))
        os.kill(job.pid, signal.SIGSEGV)    # taken by the thread for faults
        job.wait_for("output", "signal {}\n".format(int(signal.SIGSEGV)))

        job.tell("srun", "report 8.0 n3")
        job.wait_for("output", "reported 8.0\n")
        job.image_and_restore(2)
        assert job.ready(3)["environ"]["SLURM_RESTART_DIR"] == str(tmp_path / "8.0")
        assert job.text("libslurm.log").count("checkpoint_tasks ") == 2
        os.kill(job.pid, signal.SIGUSR2)
        job.wait_for("output", "signal {}\n".format(int(signal.SIGUSR2)))
        job.tell("srun", "exit 7")
        status = job.wait()
        assert os.WIFEXITED(status) and os.WEXITSTATUS(status) == 7
        assert "misuse" not in job.text("libcr.log")
        assert [line for line in job.text("errors").splitlines()
                if not line.startswith("srun_cr: restarted by BLCR")] == []
