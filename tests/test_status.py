# SPDX-License-Identifier: GPL-2.0-or-later
"""How srun_cr ends: as srun does, or with one line that says why not; and what it leaves."""

import contextlib
import os
import resource
import shutil
import signal
import stat
import subprocess
import sys

import pytest
from conftest import SRUN_CR, clean_environ, run, started
from standin import (finish, processes_in_session, session, standin_environ, supervised)

CR_SIGNUM = 64
NOT_DEADLY = {signal.SIGCHLD, signal.SIGCONT, signal.SIGURG, signal.SIGWINCH, signal.SIGSTOP,
              signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU, 32, 33}
DEADLY = sorted(set(range(1, 65)) - NOT_DEADLY)
CLD_KILLED = 2      # of <signal.h>; CLD_DUMPED would be 3


def srun_cr(*arguments, **options):
    """Run srun_cr to its end; return its CompletedProcess."""
    options.setdefault("timeout_s", 20.0)
    return run([sys.executable, options.pop("program", SRUN_CR), *arguments], check=False,
               **options)


def is_one_line(text):
    """Whether text is one message of ours."""
    return text.startswith("srun_cr: error: ") and text.count("\n") == 1 and text.endswith("\n")


def executable(path, text):
    """Write an executable file; return its path."""
    path.write_text(text)
    path.chmod(0o755)
    return str(path)


# -- srun's end -----------------------------------------------------------------------------------

def test_every_exit_status_of_srun_is_ours(tmp_path):
    environ = standin_environ("exit_with", TMPDIR=str(tmp_path))
    command = [sys.executable, "-I", "-S", SRUN_CR]     # without site: it starts faster
    for first in range(0, 256, 4):
        with contextlib.ExitStack() as stack:
            processes = [stack.enter_context(started([*command, str(status)], env=environ))
                         for status in range(first, first + 4)]
            assert [finish(process) for process in processes] == list(range(first, first + 4))
    assert os.listdir(str(tmp_path)) == []


@pytest.mark.parametrize("number", DEADLY)
def test_death_by_a_signal_is_ours_too_and_leaves_no_core_file(tmp_path, number):
    directory, temporary = tmp_path / "cwd", tmp_path / "tmp"
    directory.mkdir()
    temporary.mkdir()

    def unlimited():
        _, hard = resource.getrlimit(resource.RLIMIT_CORE)
        resource.setrlimit(resource.RLIMIT_CORE, (hard, hard))

    with supervised([str(int(number))], cwd=str(directory), preexec_fn=unlimited,
                    environ=standin_environ("die_of", TMPDIR=str(temporary)),
                    stderr=subprocess.PIPE) as process:
        assert process.stderr.read() == b""
        info = os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert (info.si_code, info.si_status) == (CLD_KILLED, number)
        assert finish(process) == -number
    assert os.listdir(str(directory)) == []
    assert os.listdir(str(temporary)) == []


# -- srun cannot be run ---------------------------------------------------------------------------

def test_srun_that_is_not_executable_is_126(tmp_path):
    (tmp_path / "srun").write_text("#!/bin/sh\n")  # without an x bit not even root may
    for setting in (str(tmp_path / "srun"), "srun"):
        done = srun_cr("-n1", env=clean_environ(SRUN_CR_ENGINE="none", SRUN_CR_SRUN=setting,
                                                PATH=str(tmp_path), TMPDIR=str(tmp_path)))
        assert done.returncode == 126
        assert is_one_line(done.stderr) and str(tmp_path / "srun") in done.stderr
        assert os.listdir(str(tmp_path)) == ["srun"]


@pytest.mark.parametrize("slash", ["", "/"])
def test_directory_as_srun_is_126(tmp_path, slash):
    done = srun_cr(env=clean_environ(SRUN_CR_ENGINE="none", SRUN_CR_SRUN=str(tmp_path) + slash))
    assert done.returncode == 126
    assert is_one_line(done.stderr) and str(tmp_path) in done.stderr


def test_file_that_is_no_program_is_126(tmp_path):
    path = executable(tmp_path / "srun", "\x7fELF and nothing more")
    done = srun_cr(env=clean_environ(SRUN_CR_ENGINE="none", SRUN_CR_SRUN=path))
    assert done.returncode == 126
    assert is_one_line(done.stderr) and path in done.stderr


@pytest.mark.parametrize("setting", [
    "/no/such/srun", "no-such-srun", "srun", "/etc/passwd/srun", "relative/srun"])
def test_srun_that_is_not_found_is_127_and_nothing_is_left(tmp_path, setting):
    done = srun_cr(env=clean_environ(SRUN_CR_ENGINE="none", SRUN_CR_SRUN=setting,
                                     PATH=str(tmp_path), TMPDIR=str(tmp_path)))
    assert done.returncode == 127
    assert is_one_line(done.stderr) and setting in done.stderr
    assert os.listdir(str(tmp_path)) == []


def test_srun_whose_interpreter_is_not_found_is_127_and_nothing_is_left(tmp_path):
    path = executable(tmp_path / "srun", "#!/no/such/interpreter\n")
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    done = srun_cr(env=clean_environ(SRUN_CR_ENGINE="none", SRUN_CR_SRUN=path,
                                     TMPDIR=str(temporary)))
    assert done.returncode == 127
    assert is_one_line(done.stderr) and path in done.stderr
    assert os.listdir(str(temporary)) == []


# -- never itself ---------------------------------------------------------------------------------

@pytest.mark.parametrize("kind", ["symlink", "copy", "hard link"])
def test_srun_cr_under_the_name_srun_runs_the_next_srun_on_path(tmp_path, kind):
    (tmp_path / "1").mkdir()
    (tmp_path / "2").mkdir()
    original = str(tmp_path / "srun_cr.py")
    shutil.copy(SRUN_CR, original)
    os.chmod(original, 0o755)
    name = str(tmp_path / "1" / "srun")
    {"symlink": os.symlink, "copy": shutil.copy, "hard link": os.link}[kind](original, name)
    executable(tmp_path / "2" / "srun", "#!/bin/sh\necho real $SLURM_SRUN_CR_SOCKET \"$@\"\n")
    path = os.pathsep.join([str(tmp_path / "1"), str(tmp_path / "2"), os.environ["PATH"]])
    for program in (name, original):
        done = srun_cr("-n1", program=program,
                       env=clean_environ(SRUN_CR_ENGINE="none", PATH=path))
        assert (done.returncode, done.stderr) == (0, "")
        words = done.stdout.split()
        assert (words[0], words[-1], len(words)) == ("real", "-n1", 3)


def test_srun_cr_as_the_only_srun_is_127(tmp_path):
    os.symlink(SRUN_CR, str(tmp_path / "srun"))
    for setting in ("srun", str(tmp_path / "srun"), SRUN_CR):
        done = srun_cr(env=clean_environ(SRUN_CR_ENGINE="none", SRUN_CR_SRUN=setting,
                                         PATH=str(tmp_path)))
        assert done.returncode in (126, 127), done.stderr
        assert is_one_line(done.stderr)


# -- settings -------------------------------------------------------------------------------------

@pytest.mark.parametrize("name, value", [
    ("SRUN_CR_ENGINE", "nonesuch"), ("SRUN_CR_ENGINE", "app"), ("SRUN_CR_KEEP", "0"),
    ("SRUN_CR_KEEP", "two"), ("SRUN_CR_KEEP", "1.5"), ("SRUN_CR_WAIT", "-1"),
    ("SRUN_CR_WAIT", "9" * 400), ("SRUN_CR_WAIT", "inf"), ("SRUN_CR_SIGNALS", "USR1"),
    ("SRUN_CR_SIGNALS", "USR1=explode"), ("SRUN_CR_SIGNALS", "NONE=create"),
    ("SRUN_CR_SIGNALS", "KILL=create"), ("SRUN_CR_SIGNALS", "CHLD=create"),
    ("SRUN_CR_SIGNALS", "64=create"), ("SRUN_CR_SIGNALS", "SEGV=create"),
    ("SRUN_CR_SIGNALS", "RTMIN+99=create"), ("SRUN_CR_SIGNALS", "\xb2=create"),
    ("SRUN_CR_APP_SIGNAL", "64"), ("SRUN_CR_APP_SIGNAL", "0"), ("SRUN_CR_APP_SIGNAL", "HUPP"),
    ("SRUN_CR_APP_RANKS", "1"), ("SRUN_CR_SKIP_COMPLETED", "maybe"), ("SRUN_CR_STEP", "../x"),
    ("SRUN_CR_STEP", ".hidden"), ("SRUN_CR_STEP", "s" * 101), ("SRUN_CR_STEP", "a/b"),
    ("SRUN_CR_SRUN", "'srun"), ("SRUN_CR_SRUN", " "), ("SRUN_CR_SCONTROL", "'"),
    ("SRUN_CR_CRIU", "sudo \""), ("SLURM_JOB_ID", "twelve"), ("SLURM_RESTART_COUNT", "-1")],
    ids=lambda text: text[:12])
def test_bad_setting_is_2_and_one_line_that_names_it(tmp_path, name, value):
    environ = standin_environ("exit_with", TMPDIR=str(tmp_path), PYTHONIOENCODING="utf-8")
    environ[name] = value
    done = srun_cr("0", env=environ, cwd=str(tmp_path))
    assert done.returncode == 2
    assert is_one_line(done.stderr) and name in done.stderr
    assert os.listdir(str(tmp_path)) == []


@pytest.mark.parametrize("value", ["\xb2", "yes", "-1", "9" * 30, "1e3", ""],
                         ids=lambda text: ascii(text[:5]))
def test_odd_verbosity_is_no_traceback(value):
    """It may be a site's own SLURM_DEBUG, as `debug2`: what srun takes it for is srun's matter."""
    for name in ("SRUN_CR_DEBUG", "SLURM_DEBUG"):
        environ = standin_environ("exit_with")
        environ[name] = value
        done = srun_cr("4", env=environ)
        assert "Traceback" not in done.stderr
        assert done.returncode == 4 or name in done.stderr and done.returncode == 2


# -- what is left ---------------------------------------------------------------------------------

@pytest.mark.parametrize("srun, argument, status", [
    ("exit_with", "3", 3), ("die_of", "15", -15), ("die_of", "9", -9), ("/no/such", "", 127)])
def test_nothing_is_left_behind(tmp_path, srun, argument, status):
    with session([sys.executable, SRUN_CR, argument], stderr=subprocess.DEVNULL,
                 env=standin_environ(srun, TMPDIR=str(tmp_path))) as process:
        assert finish(process) == status
        assert processes_in_session(process.pid) == []
    assert os.listdir(str(tmp_path)) == []


def test_sigkill_leaves_one_directory_with_a_socket_in_it(tmp_path_factory):
    # A short path: below a longer one there is no room for a socket.
    parent = tmp_path_factory.mktemp("left")
    with supervised([], environ=standin_environ("record_signals.py",
                                                TMPDIR=str(parent))) as process:
        process.lines.until("ready ")
        process.kill()
        finish(process)
    name, = os.listdir(str(parent))
    left = parent / name
    assert name.startswith("srun_cr.")
    assert stat.S_IMODE(os.stat(str(left)).st_mode) == 0o700
    assert os.listdir(str(left)) == ["launch"]
    assert stat.S_ISSOCK(os.stat(str(left / "launch")).st_mode)


def test_working_directory_that_was_removed_is_no_trouble(tmp_path):
    gone = tmp_path / "gone"
    gone.mkdir()
    with supervised(["6"], environ=standin_environ("exit_with"), cwd=str(gone),
                    preexec_fn=lambda: os.rmdir(str(gone)), stderr=subprocess.PIPE) as process:
        assert finish(process) == 6
        assert b"Traceback" not in process.stderr.read()


# -- the real srun --------------------------------------------------------------------------------

@pytest.mark.parametrize("option", ["--help", "--usage", "--version", "-V", "-h"])
def test_what_srun_says_of_itself_is_unchanged(slurm, option):
    bare = slurm.run("srun", option, check=False)
    ours = slurm.run(sys.executable, SRUN_CR, option, check=False,
                     env=dict(slurm.environ, SRUN_CR_ENGINE="none"))
    assert bare.stdout
    assert (ours.returncode, ours.stdout, ours.stderr) == (bare.returncode, bare.stdout,
                                                           bare.stderr)


@pytest.mark.parametrize("command", [
    ["sh", "-c", "exit 0"], ["sh", "-c", "exit 37"], ["sh", "-c", "kill -TERM $$"],
    ["sh", "-c", "kill -KILL $$"], ["/no/such/program"]], ids=lambda words: words[-1])
def test_status_of_real_srun_is_ours(slurm, command):
    bare = slurm.run("srun", "-n1", *command, check=False)
    ours = slurm.run(sys.executable, SRUN_CR, "-n1", *command, check=False,
                     env=dict(slurm.environ, SRUN_CR_ENGINE="none"))
    assert ours.returncode == bare.returncode
