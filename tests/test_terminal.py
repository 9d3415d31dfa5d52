# SPDX-License-Identifier: GPL-2.0-or-later
"""srun on a terminal behaves under srun_cr as it does bare, job control included."""

import contextlib
import fcntl
import os
import pty
import re
import shlex
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time

import pytest
from conftest import SRUN_CR, wait_until
from standin import (Lines, finish, process_state, processes_in_session, session,
                     standin_environ)

PROMPT = "PROMPT> "
CTRL_C, CTRL_Z = "\x03", "\x1a"


class Terminal:
    """A pseudo terminal, and the session that it controls."""

    def __init__(self, master, process):
        self.master = master
        self.process = process
        self.output = Lines(master)

    def type(self, text):
        """Type text."""
        os.write(self.master, text.encode("utf-8"))

    def until(self, text):
        """Read until text was shown; return all up to its end."""
        return self.output.until(text)

    def foreground(self):
        """Return the terminal's foreground process group."""
        return os.tcgetpgrp(self.master)


class Shell(Terminal):
    """An interactive shell with job control."""

    def command(self, line):
        """Type a command that ends; return what it has shown."""
        self.type(line + "\n")
        return self.until(PROMPT)

    def number(self, expression):
        """Return a number that the shell knows: `$?`, `$(jobs -p)`."""
        return int(re.search(r"number=(\d+)", self.command(
            "echo number=" + expression)).group(1))

    def ready(self):
        """Wait for use_terminal.py; return (its pid, whether it had the foreground)."""
        self.until("ready ")
        pid, _, foreground = self.until("\n").strip().partition(" fg=")
        return int(pid), foreground == "True"


@contextlib.contextmanager
def on_terminal(command, kind=Terminal, **options):
    """Start a command as leader of a session with a terminal of its own, without echo."""
    master, slave = pty.openpty()
    try:
        settings = termios.tcgetattr(slave)
        settings[3] &= ~termios.ECHO
        termios.tcsetattr(slave, termios.TCSANOW, settings)
        with session(command, stdin=slave, stdout=slave, stderr=slave,
                     preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
                     **options) as process:
            os.close(slave)
            slave = -1
            yield kind(master, process)
    finally:
        os.close(master)
        if slave >= 0:
            os.close(slave)


@contextlib.contextmanager
def shell_in(environ):
    """Start an interactive bash; $S is srun_cr."""
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("no bash: apt-get install bash")
    environ = dict(environ, PS1=PROMPT, PS2="", TERM="dumb", HISTFILE="/dev/null",
                   S="{} {}".format(sys.executable, SRUN_CR))
    with on_terminal([bash, "--norc", "--noprofile", "--noediting", "-i"], Shell,
                     env=environ) as shell:
        shell.until(PROMPT)
        yield shell


@pytest.fixture
def shell(tmp_path):
    """An interactive bash; $S is srun_cr, srun is use_terminal.py, the directory tmp_path."""
    with shell_in(standin_environ("use_terminal.py")) as shell:
        shell.command("cd " + shlex.quote(str(tmp_path)))
        yield shell


def state(pid):
    """Return a process's state letter, or Z when it is gone."""
    try:
        return process_state(pid)
    except FileNotFoundError:
        return "Z"


def wait_stopped(*pids):
    """Wait until all these processes are stopped."""
    wait_until(lambda: all(state(pid) == "T" for pid in pids),
               what=lambda: "all stopped: {}".format([state(pid) for pid in pids]))


# -- the foreground -------------------------------------------------------------------------------

def test_srun_gets_the_terminal_and_the_shell_gets_it_back(shell):
    shell.type("$S\n")
    pid, foreground = shell.ready()
    assert foreground
    assert shell.foreground() == pid
    shell.type("hello\n")
    shell.until("<hello>")
    shell.type("exit 3\n")
    shell.until(PROMPT)
    assert shell.foreground() == shell.process.pid
    assert shell.number("$?") == 3


def test_srun_cr_as_session_leader_gives_srun_the_terminal():
    with on_terminal([sys.executable, SRUN_CR], env=standin_environ("use_terminal.py")) as term:
        assert "fg=True" in term.until("\n")
        term.type("hello\n")
        term.until("<hello>")
        # Its group is orphaned, nobody could continue it: bare srun would not stop either.
        term.type(CTRL_Z)
        term.type("more\n")
        term.until("<more>")
        term.type("exit 3\n")
        assert finish(term.process) == 3


def test_script_can_read_the_terminal_once_srun_has_ended():
    """It is in our process group and has no job control: nobody else gives it the terminal."""
    script = "{} {}; echo st=$?; read -r line; echo \"line=$line\"".format(
        sys.executable, SRUN_CR)
    with on_terminal(["sh", "-c", script], env=standin_environ("use_terminal.py")) as terminal:
        assert "fg=True" in terminal.until("\n")
        terminal.type("exit 3\n")
        terminal.until("st=3\r\n")
        assert terminal.foreground() == terminal.process.pid
        terminal.type("hello\n")
        terminal.until("line=hello\r\n")
        assert finish(terminal.process) == 0


def test_ctrl_c_reaches_srun_once(shell):
    shell.type("$S\n")
    shell.ready()
    for _ in range(3):
        shell.type(CTRL_C)
        shell.until("INT\r\n")
        shell.type("next\n")
        assert shell.until("<next>\r\n") == "<next>\r\n"
    shell.type("exit 0\n")
    shell.until(PROMPT)
    assert shell.number("$?") == 0


def test_ctrl_c_that_kills_srun_is_seen_by_the_shell_as_such():
    with shell_in(standin_environ("/bin/cat")) as shell:
        shell.type("$S\n")
        wait_until(lambda: shell.foreground() != shell.process.pid and any(
            state(pid) == "S" and comm(pid) == "cat"
            for pid in processes_in_session(shell.process.pid)), what="cat")
        shell.type(CTRL_C)
        shell.until(PROMPT)
        assert shell.number("$?") == 128 + signal.SIGINT


def comm(pid):
    """Return a process's name."""
    with contextlib.suppress(OSError), open("/proc/{}/comm".format(pid)) as file:
        return file.read().strip()


# -- stop and go on -------------------------------------------------------------------------------

def test_ctrl_z_stops_both_and_fg_continues_both_with_the_terminal(shell):
    shell.type("$S\n")
    pid, _ = shell.ready()
    for word in ("first", "second"):
        shell.type(CTRL_Z)
        shell.until("Stopped")
        shell.until(PROMPT)
        assert shell.foreground() == shell.process.pid
        wait_stopped(pid, shell.number("$(jobs -p)"))
        shell.type("fg\n")
        wait_until(lambda: shell.foreground() == pid, what="srun in the foreground")
        shell.type(word + "\n")
        shell.until("<{}>".format(word))
    shell.type("exit 4\n")
    shell.until(PROMPT)
    assert shell.number("$?") == 4


def test_background_srun_leaves_the_terminal_alone_and_stops_when_it_reads(shell):
    shell.type("$S &\n")
    pid, foreground = shell.ready()
    assert not foreground
    assert shell.foreground() == shell.process.pid
    wait_stopped(pid, shell.number("$!"))
    shell.type("fg\n")
    wait_until(lambda: shell.foreground() == pid, what="srun in the foreground")
    shell.type("hello\n")
    shell.until("<hello>")
    shell.type("exit 6\n")
    shell.until(PROMPT)
    assert shell.number("$?") == 6
    assert shell.foreground() == shell.process.pid


def test_background_srun_that_does_not_read_runs_to_its_end(shell):
    shell.command("SRUN_CR_SRUN=/bin/true $S & wait $!; echo")
    assert shell.number("$?") == 0
    assert shell.foreground() == shell.process.pid


def test_bg_lets_srun_go_on_without_the_terminal_until_it_reads(shell, tmp_path):
    os.mkfifo(str(tmp_path / "read"))
    shell.type("$S read\n")
    pid, _ = shell.ready()
    shell.type(CTRL_Z)
    shell.until("Stopped")
    shell.until(PROMPT)
    job = shell.number("$(jobs -p)")
    wait_stopped(pid, job)
    shell.command("bg")
    wait_until(lambda: state(pid) == state(job) == "S", what="both to go on")
    assert shell.foreground() == shell.process.pid
    (tmp_path / "read").write_text("")
    shell.until("reading")
    wait_stopped(pid, job)
    shell.type("fg\n")
    wait_until(lambda: shell.foreground() == pid, what="srun in the foreground")
    shell.type("hello\n")
    shell.until("<hello>")
    shell.type("exit 8\n")
    shell.until(PROMPT)
    assert shell.number("$?") == 8


def test_other_commands_of_a_pipeline_can_read_the_terminal_too(shell):
    """As in `srun ... | less`, whose keys come from the terminal."""
    reader = ("import os; os.read(0, 99); os.write(1, b'asking'); "
              "os.write(1, b'got ' + os.read(os.open('/dev/tty', 0), 99))")
    shell.type("SRUN_CR_SRUN=/bin/sh $S -c 'echo; exec sleep 60' | {} -c \"{}\"\n".format(
        sys.executable, reader))
    shell.until("asking")
    shell.type("key\n")
    shell.until("got key")
    shell.type(CTRL_C)
    shell.until(PROMPT)


LAUNCHER = """if True:
    import os, subprocess, sys
    process = subprocess.Popen(sys.argv[1:], preexec_fn=os.setpgrp)
    while True:
        _, status = os.waitpid(process.pid, os.WUNTRACED | os.WCONTINUED)
        if os.WIFSTOPPED(status): word = "stopped %d" % os.WSTOPSIG(status)
        elif os.WIFCONTINUED(status): word = "continued"
        elif os.WIFEXITED(status): word = "exit %d" % os.WEXITSTATUS(status)
        else: word = "killed %d" % os.WTERMSIG(status)
        os.write(1, ("%d %s\\n" % (process.pid, word)).encode())
        if word[0] in "ek": break
"""


@pytest.mark.parametrize("number", [signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU])
def test_stop_signal_without_a_terminal_stops_both_and_cont_continues_both(number):
    """The launcher is our parent in the session: our group is not orphaned."""
    with session([sys.executable, "-I", "-S", "-c", LAUNCHER, sys.executable, SRUN_CR],
                 env=standin_environ("deaf"), stdin=subprocess.PIPE,
                 stdout=subprocess.PIPE) as launcher:
        lines = Lines(launcher.stdout.fileno())
        assert lines.next() == "ready"
        pid, = [pid for pid in processes_in_session(launcher.pid)
                if parent_of(pid) == launcher.pid]
        srun, = [child for child in processes_in_session(launcher.pid)
                 if parent_of(child) == pid]
        for _ in range(2):
            os.kill(pid, number)
            assert lines.next() == "{} stopped {}".format(pid, int(number))
            assert state(srun) == "T"
            os.kill(pid, signal.SIGCONT)
            assert lines.next() == "{} continued".format(pid)
            wait_until(lambda: state(srun) == "S", what="srun to go on")
        launcher.stdin.write(b"\n")
        launcher.stdin.flush()
        assert lines.next() == "{} exit 7".format(pid)
        assert finish(launcher) == 0


def parent_of(pid):
    """Return the parent of a process."""
    with open("/proc/{}/stat".format(pid), "rb") as file:
        return int(file.read().rpartition(b")")[2].split()[1])


# -- nobody left to continue it -------------------------------------------------------------------

def cpu_time_s(sid):
    """Return the CPU time that the processes of a session have used, less its leader's."""
    total = 0.0
    for pid in processes_in_session(sid):
        if pid != sid:
            with contextlib.suppress(OSError), open("/proc/{}/stat".format(pid), "rb") as file:
                fields = file.read().rpartition(b")")[2].split()
                total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total


def wait_alone(shell):
    """Wait until only the shell is left of its session."""
    wait_until(lambda: processes_in_session(shell.process.pid) == [shell.process.pid],
               what=lambda: processes_in_session(shell.process.pid))


def test_orphaned_group_that_reads_the_terminal_gets_eio(shell, tmp_path):
    os.mkfifo(str(tmp_path / "start"))
    shell.command("( (read -r x <start; exec $S) & )")
    # The parent of that group is gone, as the shell shows its prompt.
    (tmp_path / "start").write_text("\n")
    _, foreground = shell.ready()
    assert not foreground
    shell.until("EIO")
    wait_alone(shell)
    assert shell.foreground() == shell.process.pid


def test_group_that_is_orphaned_later_does_not_spin_when_it_reads(shell, tmp_path):
    """Bug: it was stopped by SIGTTIN and continued by us, again and again."""
    os.mkfifo(str(tmp_path / "leave"))
    os.mkfifo(str(tmp_path / "read"))
    shell.type("($S read & read -r x <leave)\n")
    shell.ready()
    (tmp_path / "leave").write_text("\n")
    shell.until(PROMPT)
    (tmp_path / "read").write_text("")
    shell.until("reading")
    before = cpu_time_s(shell.process.pid)
    time.sleep(1)  # the time that is measured
    assert cpu_time_s(shell.process.pid) - before < 0.3
    assert shell.number("$((6*7))") == 42


# -- the real srun --------------------------------------------------------------------------------

def test_interactive_shell_through_real_srun(slurm):
    remote = "REMOTE> "
    with shell_in(dict(slurm.environ, SRUN_CR_ENGINE="none")) as shell:
        shell.type("$S --pty env PS1='REMOTE> ' bash --norc --noprofile --noediting -i\n")
        shell.until(remote)
        for line, shown in (("echo $((6*7))", "\n42\r\n"), ("tty", "\n/dev/pts/")):
            shell.type(line + "\n")
            shell.until(shown)
            shell.until(remote)
        shell.type("cat\n")
        shell.type("typed\n")
        shell.until("typed\r\ntyped\r\n")
        shell.type(CTRL_C)
        shell.until(remote)
        shell.type("echo st=$?\n")
        shell.until("\nst=130\r\n")
        shell.until(remote)
        fcntl.ioctl(shell.master, termios.TIOCSWINSZ, struct.pack("HHHH", 33, 77, 0, 0))
        shell.type("until [ \"$(stty size)\" = '33 77' ]; do :; done; stty size\n")
        shell.until("\n33 77\r\n")
        shell.until(remote)
        shell.type("exit 5\n")
        shell.until(PROMPT)
        assert shell.number("$?") == 5
