# SPDX-License-Identifier: GPL-2.0-or-later
"""Signals, and all else that a process hands on: what srun_cr is given is what srun gets."""

import contextlib
import ctypes
import fcntl
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest
from conftest import FAKES, SRUN_CR, wait_until
from standin import finish, program, session, standin_environ, supervised

CR_SIGNUM = 64      # libcr's
NOT_FORWARDED = {signal.SIGKILL, signal.SIGSTOP, 32, 33, signal.SIGCHLD, CR_SIGNUM}
FORWARDED = sorted(set(range(1, signal.NSIG)) - NOT_FORWARDED)
PYTHON_HIDES = {signal.SIGPIPE, signal.SIGXFSZ}


def name_of(number):
    """Return what a test is called after."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return "signal-{}".format(number)


def signal_set(number, text):
    """Return the signals in a mask of /proc/PID/status."""
    for line in text.splitlines():
        if line.startswith(number + ":"):
            mask = int(line.split()[1], 16)
            return {n for n in range(1, 65) if mask >> (n - 1) & 1}
    pytest.fail("no {} in {}".format(number, text))


def ignoring(*numbers):
    """Return a preexec_fn that ignores signals, as nohup does."""
    return lambda: [signal.signal(number, signal.SIG_IGN) for number in numbers]


def proc_status(pid):
    """Return /proc/PID/status."""
    with open("/proc/{}/status".format(pid)) as file:
        return file.read()


def wait_until_caught(process):
    """Wait until srun_cr has installed its handlers."""
    wait_until(lambda: signal.SIGUSR1 in signal_set("SigCgt", proc_status(process.pid))
               or process.poll() is not None, what="a handler for SIGUSR1")


# -- forwarding -----------------------------------------------------------------------------------

@pytest.mark.parametrize("number", FORWARDED, ids=name_of)
def test_signal_from_outside_reaches_srun_once(number):
    marker = signal.SIGUSR2 if number == signal.SIGUSR1 else signal.SIGUSR1
    with supervised([]) as process:
        process.lines.until("ready ")
        process.lines.next()
        process.send_signal(number)
        assert int(process.lines.next()) == number
        process.send_signal(marker)
        assert int(process.lines.next()) == marker
        assert process.poll() is None


def test_sigchld_from_outside_does_not_reach_srun():
    with supervised([]) as process:
        process.lines.until("ready ")
        process.lines.next()
        for _ in range(20):
            process.send_signal(signal.SIGCHLD)
        process.send_signal(signal.SIGUSR1)
        assert int(process.lines.next()) == signal.SIGUSR1


def test_signal_64_is_left_to_libcr():
    """It is not caught, blocked or forwarded: without libcr it kills, and srun gets SIGTERM."""
    with supervised([]) as process:
        process.lines.until("ready ")
        process.lines.next()
        status = proc_status(process.pid)
        for mask in ("SigBlk", "SigIgn", "SigCgt"):
            assert CR_SIGNUM not in signal_set(mask, status), mask
        process.send_signal(CR_SIGNUM)
        assert finish(process) == -CR_SIGNUM
        assert int(process.lines.next()) == signal.SIGTERM


def test_queued_real_time_signals_arrive_as_often_as_sent():
    number = signal.SIGRTMIN + 3
    with supervised([]) as process:
        process.lines.until("ready ")
        process.lines.next()
        # Stopped, so that all three are pending together.
        process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
        for _ in range(3):
            process.send_signal(number)
        process.send_signal(signal.SIGCONT)
        got = [int(process.lines.next()) for _ in range(4)]
        assert sorted(got) == [signal.SIGCONT] + [number] * 3
        process.send_signal(signal.SIGUSR1)
        assert int(process.lines.next()) == signal.SIGUSR1


def test_storm_from_two_senders_does_no_harm():
    sender = ("import os, random, sys\n"
              "numbers = list(map(int, sys.argv[3].split(',')))\n"
              "choice = random.Random(int(sys.argv[1])).choice\n"
              "for _ in range(2500): os.kill(int(sys.argv[2]), choice(numbers))\n")
    numbers = ",".join(str(int(n)) for n in FORWARDED + [signal.SIGCHLD]
                       if n not in (signal.SIGUSR1, signal.SIGUSR2))
    with supervised(["exit", str(int(signal.SIGUSR2)), "7"], stderr=subprocess.PIPE) as process:
        process.lines.until("ready ")
        process.lines.next()
        with contextlib.ExitStack() as stack:
            senders = [stack.enter_context(session(
                [sys.executable, "-I", "-S", "-c", sender, str(seed), str(process.pid), numbers]))
                       for seed in (1, 2)]
            assert [finish(each) for each in senders] == [0, 0]
        process.send_signal(signal.SIGUSR1)
        process.lines.until("\n{}\n".format(int(signal.SIGUSR1)))
        process.send_signal(signal.SIGUSR2)
        assert finish(process) == 7
        assert process.stderr.read() == b""


# -- ignored on entry -----------------------------------------------------------------------------

def test_signals_ignored_on_entry_are_not_forwarded():
    ignored = [signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTSTP, signal.SIGCONT,
               signal.SIGRTMIN + 2]
    with supervised([], preexec_fn=ignoring(*ignored)) as process:
        process.lines.until("ready ")
        process.lines.next()
        for number in ignored:
            process.send_signal(number)
        process.send_signal(signal.SIGUSR1)
        assert int(process.lines.next()) == signal.SIGUSR1


def test_fault_signals_ignored_on_entry_are_not_forwarded():
    """Bug: they were taken by sigwaitinfo(), which asks for no disposition."""
    with supervised([], preexec_fn=ignoring(signal.SIGTRAP, signal.SIGSEGV)) as process:
        process.lines.until("ready ")
        process.lines.next()
        process.send_signal(signal.SIGTRAP)
        process.send_signal(signal.SIGSEGV)
        process.send_signal(signal.SIGSYS)  # taken by the same thread, in the kernel's order
        assert int(process.lines.next()) == signal.SIGSYS


@pytest.mark.parametrize("ignored", [
    [], [signal.SIGHUP], [signal.SIGCHLD], [signal.SIGINT, signal.SIGQUIT, signal.SIGTSTP],
    [signal.SIGSEGV, signal.SIGTRAP, CR_SIGNUM], [signal.SIGTTIN, signal.SIGTTOU, 34, 63],
    sorted(set(range(1, 65)) - {9, 19, 32, 33})], ids=str)
@pytest.mark.parametrize("blocked", [
    [], [signal.SIGUSR1, signal.SIGTERM, signal.SIGCHLD, 35], [signal.SIGSEGV, signal.SIGPIPE],
    sorted(set(range(1, 65)) - {9, 19, 32, 33})], ids=str)
def test_srun_has_the_mask_and_the_ignored_signals_we_were_given(blocked, ignored):
    """Less two: Python ignores SIGPIPE and SIGXFSZ before any code of ours runs."""
    def prepare():
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        ignoring(*ignored)()

    with supervised(["/proc/self/status"], srun="/bin/cat", preexec_fn=prepare,
                    stderr=subprocess.PIPE) as process:
        status = process.lines.rest()
        assert process.stderr.read() == b""
        assert finish(process) == 0
    assert signal_set("SigBlk", status) == set(blocked)
    assert signal_set("SigIgn", status) == set(ignored) - PYTHON_HIDES
    assert signal_set("SigCgt", status) == set()


def test_mask_with_the_c_librarys_own_signals_is_no_trouble():
    """Nothing may be said of 32 and 33, which a raw system call can block."""
    libc = ctypes.CDLL(None)
    everything = (ctypes.c_uint64 * 1)(0xffffffffffffffff)
    number = {"x86_64": 14, "aarch64": 135}.get(os.uname().machine)
    if number is None:
        pytest.skip("the number of rt_sigprocmask is not known here")

    def prepare():
        libc.syscall(number, signal.SIG_SETMASK, everything, None, ctypes.c_size_t(8))

    with supervised(["/proc/self/status"], srun="/bin/cat", preexec_fn=prepare,
                    stderr=subprocess.PIPE) as process:
        status = process.lines.rest()
        assert process.stderr.read() == b""
        assert finish(process) == 0
    assert signal_set("SigBlk", status) | {32, 33} == set(range(1, 65)) - {9, 19}


def test_pipe_and_xfsz_are_default_in_srun_whatever_they_were():
    """A documented limit: Python has ignored them before it can be known what they were."""
    for ignored in ([], [signal.SIGPIPE, signal.SIGXFSZ]):
        with supervised(["/proc/self/status"], srun="/bin/cat",
                        preexec_fn=ignoring(*ignored)) as process:
            status = process.lines.rest()
        assert not signal_set("SigIgn", status) & PYTHON_HIDES, ignored


def test_status_is_srun_own_where_sigchld_was_ignored_on_entry():
    with supervised(["7"], srun="exit_with", preexec_fn=ignoring(signal.SIGCHLD),
                    stderr=subprocess.PIPE) as process:
        assert finish(process) == 7
        assert process.stderr.read() == b""


# -- the rest of the inheritance ------------------------------------------------------------------

def compare_starts(tmp_path, arguments=(), prepare=None, **environ):
    """Run the reporter bare and under srun_cr, equally; return both reports, less the socket."""
    reports = []
    command = [sys.executable, "-I", "-S", program("report_start.py").rsplit(" ", 1)[1]]
    for supervise in (False, True):
        path = str(tmp_path / "report")
        given = standin_environ("report_start.py", SRUN_CR_TEST_REPORT=path, **environ)
        with session([sys.executable, SRUN_CR] * supervise + command * (not supervise)
                     + list(arguments), env=given, preexec_fn=prepare, close_fds=False,
                     stdin=None) as process:
            assert finish(process) == 0
        with open(path) as file:
            reports.append(json.load(file))
        os.unlink(path)
    bare, ours = reports
    own = [entry for entry in ours["environ"]
           if bytes.fromhex(entry).startswith(b"SLURM_SRUN_CR_SOCKET=/")]
    assert len(own) == 1
    ours["environ"].remove(own[0])
    return bare, ours


def test_everything_inherited_is_as_under_bare_srun(tmp_path):
    bare, ours = compare_starts(tmp_path)
    for what in bare:
        assert (what, ours[what] == bare[what]) == (what, True)


def test_inherited_descriptors_are_passed_on_and_none_is_added(tmp_path):
    with open(str(tmp_path / "file"), "w") as file:
        kept = [fcntl.fcntl(file.fileno(), fcntl.F_DUPFD, least) for least in (3, 10, 255, 900)]
        for fd in kept:
            os.set_inheritable(fd, True)
        try:
            bare, ours = compare_starts(tmp_path)
        finally:
            for fd in kept:
                os.close(fd)
    assert {str(fd) for fd in kept} <= set(ours["descriptors"])
    assert ours["descriptors"] == bare["descriptors"]


@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (0, 1), (0, 1, 2)], ids=str)
def test_closed_standard_descriptors_stay_closed(tmp_path, closed):
    bare, ours = compare_starts(tmp_path, prepare=lambda: [os.close(fd) for fd in closed])
    assert not {str(fd) for fd in closed} & set(ours["descriptors"])
    assert ours["descriptors"] == bare["descriptors"]


def test_umask_and_working_directory_are_passed_on(tmp_path):
    def prepare():
        os.umask(0o137)
        os.chdir(str(tmp_path))

    bare, ours = compare_starts(tmp_path, prepare=prepare)
    assert (ours["umask"], ours["cwd"]) == (0o137, str(tmp_path))


@pytest.mark.parametrize("settings", [
    {"LC_ALL": "C"}, {"LC_ALL": None, "LANG": None, "LC_CTYPE": None}, {"LC_ALL": "C.UTF-8"},
    {"LC_ALL": None, "LANG": "C", "LC_CTYPE": None},
    {"LC_ALL": None, "LANG": None, "LC_CTYPE": "C.UTF-8"},
    {"LC_ALL": None, "LANG": None, "LC_CTYPE": "C"},
    {"LC_ALL": None, "LANG": None, "LC_CTYPE": "POSIX"},
    {"LC_ALL": None, "LANG": None, "LC_CTYPE": ""}], ids=str)
def test_environment_is_passed_on_in_every_locale(tmp_path, settings):
    bare, ours = compare_starts(tmp_path, NOT_UTF8=b"\xff\xfe\n=".decode("utf-8",
                                                                         "surrogateescape"),
                                EMPTY="", **settings)
    # What both have is not shown: it is the environment of whoever runs this.
    differ = set(ours["environ"]) ^ set(bare["environ"])
    assert {bytes.fromhex(entry) for entry in differ} == set()
    assert b"NOT_UTF8=\xff\xfe\n=".hex() in ours["environ"]


@pytest.mark.parametrize("locale", ["C", "C.UTF-8"])
def test_arguments_are_passed_on_byte_for_byte(tmp_path, locale):
    arguments = [b"-n1", b"", b"a\nb", b"\xff\xfe", b"\xc3\xa4", b"--", b" ", b"'\"$(x)`", b"-c"]
    bare, ours = compare_starts(tmp_path, arguments, LC_ALL=locale)
    assert ours["argv"] == bare["argv"]
    assert [bytes.fromhex(word) for word in ours["argv"]][-1 - len(arguments):-1] == arguments


# -- before, while and after srun is there --------------------------------------------------------

@contextlib.contextmanager
def held(tmp_path, where, srun, arguments=(), **options):
    """Start srun_cr and hold it at that point of the launch; yield (process, let_go)."""
    srun_cr, fifo = str(tmp_path / "srun_cr.py"), str(tmp_path / "fifo")
    shutil.copy(SRUN_CR, srun_cr)
    shutil.copy(os.path.join(FAKES, "holding_ctypes.py"), str(tmp_path / "srun_cr_ctypes.py"))
    os.mkfifo(fifo)
    environ = standin_environ(srun, SRUN_CR_TEST_HOLD=where, SRUN_CR_TEST_FIFO=fifo)
    with supervised(list(arguments), srun_cr=srun_cr, environ=environ, stderr=subprocess.PIPE,
                    **options) as process:
        file = wait_until(lambda: open_if_awaited(fifo), what="srun_cr to be held")
        with file:
            yield process, file.close


def open_if_awaited(fifo):
    """Open a FIFO for writing if somebody waits for that; else return None."""
    try:
        return open(os.open(fifo, os.O_WRONLY | os.O_NONBLOCK), "w")
    except OSError:
        return None


def blocking_usr1():
    """Block SIGUSR1, so that srun, which inherits that, finds it pending once it can look."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})


@pytest.mark.parametrize("where", ["before", "between"])
def test_signal_while_srun_is_launched_is_kept_for_it(tmp_path, where):
    with held(tmp_path, where, "record_signals.py", preexec_fn=blocking_usr1) as (process, go):
        process.send_signal(signal.SIGUSR1)
        go()
        process.lines.until("ready ")
        process.lines.next()
        assert int(process.lines.next()) == signal.SIGUSR1


@pytest.mark.parametrize("where", ["before", "between"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGSEGV], ids=name_of)
def test_signal_while_srun_is_launched_ends_it_and_us(tmp_path, where, number):
    with held(tmp_path, where, "/bin/sleep", ["60"]) as (process, go):
        process.send_signal(number)
        go()
        assert finish(process) == -number
        assert process.stderr.read() == b""


def test_signal_at_any_moment_of_the_launch_is_death_by_it(tmp_path):
    """Before our handlers are there it ends us, later it reaches srun, and we die as srun."""
    chance = random.Random(1)
    environ = standin_environ("/bin/sleep", TMPDIR=str(tmp_path))
    for _ in range(60):
        number = chance.choice([signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGRTMIN])
        with supervised(["60"], environ=environ, stderr=subprocess.PIPE) as process:
            time.sleep(chance.uniform(0, 0.08))  # the moment itself, nothing is waited for
            process.send_signal(number)
            assert finish(process) == -number
            assert process.stderr.read() == b""


def test_interrupt_once_we_have_begun_leaves_no_traceback():
    """From the first handler of ours on; before that it is the interpreter's."""
    for _ in range(10):
        with supervised(["60"], srun="/bin/sleep", stderr=subprocess.PIPE) as process:
            wait_until_caught(process)
            process.send_signal(signal.SIGINT)
            assert finish(process) == -signal.SIGINT
            assert process.stderr.read() == b""


def test_interrupt_while_we_are_being_imported_leaves_no_traceback(tmp_path):
    """Bug: KeyboardInterrupt was shown; held in the import of a module that we import."""
    fifo = str(tmp_path / "fifo")
    os.mkfifo(fifo)
    (tmp_path / "selectors.py").write_text("open({!r}).read()\n".format(fifo))
    # Without site: what that imports is not ours.
    with session([sys.executable, "-S", SRUN_CR, "0"], stderr=subprocess.PIPE,
                 env=standin_environ("exit_with", PYTHONPATH=str(tmp_path))) as process:
        with wait_until(lambda: open_if_awaited(fifo), what="the import"):
            process.send_signal(signal.SIGINT)
            assert finish(process) == -signal.SIGINT
        assert process.stderr.read() == b""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1,
                                    signal.SIGINT], ids=name_of)
def test_signals_just_after_srun_ended_do_not_change_the_status(number):
    """Bug: the interpreter gives all signals their defaults back while it ends.

    Nor may a thread of ours that has hardly begun be there to take them."""
    for _ in range(8):
        with supervised([], srun="deaf", stdin=subprocess.PIPE,
                        stderr=subprocess.PIPE) as process:
            process.lines.until("ready\n")
            process.stdin.write(b"\n")
            process.stdin.flush()
            # Not reaped, so that the pid stays its own.
            while os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
                os.kill(process.pid, number)
            assert finish(process) == 7
            assert process.stderr.read() == b""


# -- the end of srun_cr itself, and life without its second file ----------------------------------

def test_sigkill_of_srun_cr_ends_srun():
    with supervised([]) as process:
        process.lines.until("ready ")
        process.lines.next()
        process.kill()
        assert finish(process) == -signal.SIGKILL
        assert int(process.lines.next()) == signal.SIGTERM


@pytest.mark.parametrize("name", ["srun_cr.py", "srun_cr"])
def test_srun_cr_alone_in_a_directory_runs(tmp_path, name):
    shutil.copy(SRUN_CR, str(tmp_path / name))
    with supervised(["exit", str(int(signal.SIGUSR2)), "9"], srun_cr=str(tmp_path / name),
                    stderr=subprocess.PIPE) as process:
        process.lines.until("ready ")
        process.lines.next()
        process.send_signal(signal.SIGUSR1)
        assert int(process.lines.next()) == signal.SIGUSR1
        process.send_signal(signal.SIGUSR2)
        assert finish(process) == 9
        assert process.stderr.read() == b""
