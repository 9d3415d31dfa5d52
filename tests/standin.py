# SPDX-License-Identifier: GPL-2.0-or-later
"""What the tests of the stand-in mode share: srun_cr as a process, with a small program as srun."""

import contextlib
import os
import select
import shlex
import signal
import subprocess
import sys
import time

import pytest
from conftest import PROGRAMS, SRUN_CR, clean_environ, started

TIMEOUT_S = 20.0


def program(name):
    """Return the setting that makes a program in tests/programs (or a path) srun.

    Python ones run with the tests' own interpreter, without site: they start faster."""
    path = os.path.join(PROGRAMS, name)
    if path.endswith(".py"):
        return " ".join(map(shlex.quote, (sys.executable, "-I", "-S", path)))
    return shlex.quote(path)


def standin_environ(srun, **variables):
    """Return an environment in which srun_cr only supervises, and that program is srun."""
    return clean_environ(SRUN_CR_ENGINE="none", SRUN_CR_SRUN=program(srun), **variables)


def processes_in_session(sid):
    """Return the pids of a session, zombies left out."""
    pids = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                with open("/proc/{}/stat".format(entry), "rb") as file:
                    fields = file.read().rpartition(b")")[2].split()
            except OSError:
                continue
            if int(fields[3]) == sid and fields[0] not in (b"Z", b"X"):
                pids.append(int(entry))
    return pids


def process_state(pid):
    """Return the state letter of a process."""
    with open("/proc/{}/stat".format(pid), "rb") as file:
        return file.read().rpartition(b")")[2].split()[0].decode("ascii")


@contextlib.contextmanager
def session(command, **options):
    """Start a process in a session of its own and end all that is in it, whatever its group."""
    with started(command, **options) as process:
        try:
            yield process
        finally:
            # A process that forks while we look is found the next time.
            while True:
                pids = processes_in_session(process.pid)
                for pid in pids:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                if not [pid for pid in pids if pid != process.pid]:
                    break


@contextlib.contextmanager
def supervised(arguments, srun="record_signals.py", srun_cr=SRUN_CR, environ=None, **options):
    """Start srun_cr with that program as srun; its standard output is `lines`."""
    options.setdefault("stdout", subprocess.PIPE)
    if environ is None:
        environ = standin_environ(srun)
    with session([sys.executable, srun_cr, *arguments], env=environ, **options) as process:
        if process.stdout is not None:
            process.lines = Lines(process.stdout.fileno())
        yield process


class Lines:
    """Lines from a descriptor, each awaited for a limited time."""

    def __init__(self, fd):
        self._fd = fd
        self.seen = b""

    def _read(self, deadline):
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([self._fd], [], [], left)[0]:
            pytest.fail("nothing more in {} s after {!r}".format(TIMEOUT_S, self.seen[-2000:]))
        try:
            data = os.read(self._fd, 65536)
        except OSError:  # EIO: the last slave of a pseudo terminal is closed
            data = b""
        self.seen += data
        return data

    def next(self):
        """Return the next line without its end; fail at the end of the output."""
        deadline = time.monotonic() + TIMEOUT_S
        while b"\n" not in self.seen:
            if not self._read(deadline):
                pytest.fail("ended after {!r}".format(self.seen[-2000:]))
        line, _, self.seen = self.seen.partition(b"\n")
        return line.decode("utf-8", "replace")

    def until(self, text):
        """Read until text has come; return all up to its end."""
        text = text.encode("utf-8")
        deadline = time.monotonic() + TIMEOUT_S
        while text not in self.seen:
            if not self._read(deadline):
                pytest.fail("ended, without {!r}, after {!r}".format(text, self.seen[-2000:]))
        head, _, self.seen = self.seen.partition(text)
        return (head + text).decode("utf-8", "replace")

    def rest(self):
        """Return what comes until the end of the output."""
        deadline = time.monotonic() + TIMEOUT_S
        while self._read(deadline):
            pass
        data, self.seen = self.seen, b""
        return data.decode("utf-8", "replace")


def finish(process):
    """Wait for a process's end; return its status, as Popen has it."""
    return process.wait(timeout=TIMEOUT_S)
