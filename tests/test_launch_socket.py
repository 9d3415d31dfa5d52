# SPDX-License-Identifier: GPL-2.0-or-later
"""The launch socket: what srun <= 18.08 says on it, and what others may try."""

import contextlib
import os
import random
import resource
import selectors
import socket
import stat
import struct
import subprocess
import sys
import time

import pytest
from conftest import FAKES, SRUN_CR, wait_until
from standin import Lines, finish, standin_environ, supervised

import srun_cr

OLD_SRUN = os.path.join(FAKES, "old_srun.py")
WHOLE = struct.pack("=IIi", 7, 3, 6) + b"n[1-2]\0"


def message(nodes, length=None, end=b"\0"):
    """Return a message of step 7.3."""
    return struct.pack("=IIi", 7, 3, len(nodes) if length is None else length) + nodes + end


@contextlib.contextmanager
def old_srun(*modes, **options):
    """Start srun_cr with the stand-in of an old srun; its standard error is `errors`."""
    environ = standin_environ(OLD_SRUN, **dict({"SRUN_CR_DEBUG": "1"},
                                            **options.pop("environ", {})))
    with supervised(list(modes), environ=environ, stderr=subprocess.PIPE, **options) as process:
        process.errors = Lines(process.stderr.fileno())
        yield process


def said(*modes, **options):
    """Return what srun_cr said of the launch socket while that stand-in ran, pids left out."""
    with old_srun(*modes, **options) as process:
        text = process.errors.rest()
        assert finish(process) == 0, text
    assert "Traceback" not in text
    found = []
    for line in text.splitlines():
        start, _, rest = line.partition("launch socket: process ")
        if start == "srun_cr: debug: " and rest:
            found.append(rest.partition(": ")[2])
    return found


# -- processes ------------------------------------------------------------------------------------

STEP = "step 7.3 on n[1-2]"
CLOSED = "closed before the message was whole"
BAD_END = "the node list does not end where its length says"


@pytest.mark.parametrize("mode, words", [
    ("whole", STEP), ("bytes", STEP), ("half", CLOSED), ("headless", CLOSED),
    ("nothing", CLOSED), ("long", "node list of 32769 bytes, limit 32768"),
    ("longest", "step 7.3 on " + "n" * 32768), ("negative", "node list of -1 bytes, limit 32768"),
    ("open-end", BAD_END), ("inner-nul", BAD_END), ("trailing", BAD_END)])
def test_message_is_taken_or_dropped_and_srun_goes_on(mode, words):
    assert said(mode) == [words]


def test_step_is_still_heard_after_every_odd_message():
    modes = ("half", "long", "negative", "open-end", "trailing", "nothing", "whole")
    assert said(*modes)[-1] == STEP


def test_both_components_of_a_heterogeneous_step_are_heard():
    assert said("twice") == ["step 8.0 on n[1-2]", "step 9.0 on n[1-2]"]


def test_300_connections_at_once_are_all_heard():
    assert sorted(said("many")) == sorted(
        "step 7.{} on n[1-2]".format(number) for number in range(300))


def test_silent_connection_holds_up_neither_others_nor_the_end():
    begun = time.monotonic()
    assert said("silent", "whole") in ([STEP, CLOSED], [STEP, "srun has ended"])
    assert time.monotonic() - begun < srun_cr.LAUNCH_READ_TIMEOUT_S


def test_srun_nested_in_a_task_is_not_taken_for_ours():
    assert said("nested", "whole") == ["step 7.3 is of another srun", STEP]


def test_srun_that_a_wrapper_of_the_site_starts_is_ours():
    assert said("wrapped") == [STEP]


def test_srun_that_is_over_at_once_does_no_harm():
    for _ in range(5):
        said("hasty")


def test_process_that_is_not_of_our_srun_is_not_taken_for_it():
    with old_srun("path", stdin=subprocess.PIPE) as process:
        path = process.lines.next()
        with contextlib.closing(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) as peer:
            peer.settimeout(20)
            peer.connect(path)
            peer.sendall(WHOLE)
            assert peer.recv(1) == b""
        process.stdin.close()
        text = process.errors.rest()
        assert finish(process) == 0
    assert "process {}: step 7.3 is of another srun\n".format(os.getpid()) in text


@pytest.mark.parametrize("below", ["t", "t" * 100, "t" * 60 + "/" + "t" * 60])
def test_socket_is_private_and_its_path_short_enough(tmp_path, below):
    temporary = tmp_path / below
    temporary.mkdir(parents=True)
    with old_srun("path", stdin=subprocess.PIPE, preexec_fn=lambda: os.umask(0),
                  environ={"TMPDIR": str(temporary)}) as process:
        path = process.lines.next()
        assert len(os.fsencode(path)) <= 107
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
        directory = os.stat(os.path.dirname(path))
        assert stat.S_IMODE(directory.st_mode) == 0o700
        assert directory.st_uid == os.geteuid()
        process.stdin.close()
        assert finish(process) == 0
    assert not os.path.exists(os.path.dirname(path))
    assert os.listdir(str(temporary)) == []


def test_temporary_directory_that_is_not_there_is_no_trouble(tmp_path):
    assert said("whole", environ={"TMPDIR": str(tmp_path / "none")}) == [STEP]


def cpu_time_s(pid):
    """Return the CPU time a process has used."""
    with open("/proc/{}/stat".format(pid), "rb") as file:
        fields = file.read().rpartition(b")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_connections_beyond_our_descriptors_neither_keep_us_busy_nor_shut_out_srun(tmp_path):
    """Bug: the listener stays readable while accept() fails with EMFILE."""
    def few():
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (32, hard))

    environ = standin_environ(OLD_SRUN, SRUN_CR_DEBUG="1")
    with open(str(tmp_path / "errors"), "w+") as errors, supervised(
            ["crowd", "leave", "whole"], environ=environ, stdin=subprocess.PIPE, stderr=errors,
            preexec_fn=few) as process:
        assert process.lines.next() == "ready"
        before = cpu_time_s(process.pid)
        time.sleep(1)  # the time that is measured
        used = cpu_time_s(process.pid) - before
        process.stdin.close()
        assert finish(process) == 0
        errors.seek(0)
        assert errors.read().count(STEP) == 1
        assert used < 0.5


# -- LaunchMessage --------------------------------------------------------------------------------

def test_message_is_read_at_any_split():
    for cut in range(len(WHOLE) + 1):
        reader = srun_cr.LaunchMessage()
        step = reader.feed(WHOLE[:cut]) or reader.feed(WHOLE[cut:])
        assert (step.name, step.node_list) == ("7.3", "n[1-2]"), cut


def test_large_ids_and_bytes_that_are_no_text_are_kept():
    step = srun_cr.LaunchMessage().feed(
        struct.pack("=IIi", 0xffffffff, 0xfffffffe, 2) + b"\xff\xfe\0")
    assert step.name == "4294967295.4294967294"
    assert os.fsencode(step.node_list) == b"\xff\xfe"


@pytest.mark.parametrize("data", [
    message(b"n", length=-1), message(b"", length=-2147483648), message(b"", length=32769),
    message(b"n1", end=b"x"), message(b"n1", end=b"\0\0"), message(b"n\0", end=b"\0"),
    message(b"n1", length=1)], ids=repr)
def test_message_that_does_not_agree_with_itself_is_an_error(data):
    with pytest.raises(srun_cr.ProtocolError):
        srun_cr.LaunchMessage().feed(data)


def test_garbage_gives_a_step_or_a_protocol_error():
    chance = random.Random(3)
    ends = {"step": 0, "error": 0, "open": 0}
    for _ in range(2000):
        data = bytearray(chance.choice([WHOLE, message(b"n" * chance.randrange(40)), b""])
                         + bytes(chance.randrange(256) for _ in range(chance.randrange(20))))
        for _ in range(chance.randrange(3)):
            if data:
                data[chance.randrange(len(data))] = chance.randrange(256)
        reader, end = srun_cr.LaunchMessage(), "open"
        while data and end == "open":
            size = chance.randrange(1, len(data) + 1)
            part, data = bytes(data[:size]), data[size:]
            try:
                step = reader.feed(part)
            except srun_cr.ProtocolError:
                end = "error"
            else:
                assert step is None or isinstance(step, srun_cr.StepInfo)
                end = "open" if step is None else "step"
        ends[end] += 1
    assert all(count > 50 for count in ends.values()), ends


# -- LaunchSocket ---------------------------------------------------------------------------------

class Server:
    """A LaunchSocket with its loop, in this process."""

    def __init__(self, directory, is_ours=lambda pid: True):
        self.selector = selectors.PollSelector()
        self.steps = []
        self.words = []
        log = srun_cr.Messages()
        log.debug = self.words.append
        self.socket = srun_cr.LaunchSocket(str(directory), self.selector, is_ours,
                                           self.steps.append, log)

    def turn(self):
        """Handle what there is."""
        for key, _ in self.selector.select(0):
            key.data(key.fileobj)

    def until(self, words):
        """Run the loop until something was said."""
        def said_it():
            self.turn()
            return [line for line in self.words if words in line]
        wait_until(said_it, what=lambda: "{!r} in {}".format(words, self.words))


@pytest.fixture
def server(tmp_path):
    """A LaunchSocket that takes all peers for our srun."""
    # The path of pytest's directory may be too long for a socket.
    previous = os.getcwd()
    os.chdir(str(tmp_path))
    server = Server(".")
    yield server
    server.socket.close()
    server.selector.close()
    os.chdir(previous)


def connect(server):
    """Return a connection to the server, to be used in a with statement."""
    peer = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    peer.settimeout(20)
    peer.connect(server.socket.path)
    return peer


def test_silent_peer_is_dropped_at_its_deadline_and_not_before(server, monkeypatch):
    assert server.socket.next_deadline() is None
    now = [1000.0]
    monkeypatch.setattr(srun_cr.time, "monotonic", lambda: now[0])
    with connect(server) as first, connect(server) as second:
        server.turn()
        assert server.socket.next_deadline() == 1000.0 + srun_cr.LAUNCH_READ_TIMEOUT_S
        first.sendall(WHOLE[:5])
        now[0] += srun_cr.LAUNCH_READ_TIMEOUT_S - 0.001
        server.turn()
        server.socket.expire()
        assert not [line for line in server.words if "silent" in line]
        now[0] += 0.001
        server.socket.expire()
        assert len([line for line in server.words if "silent for too long" in line]) == 2
        assert server.socket.next_deadline() is None
        assert (first.recv(1), second.recv(1)) == (b"", b"")
    assert server.steps == []


def test_step_that_comes_slowly_but_in_time_is_taken(server):
    with connect(server) as peer:
        for index in range(len(WHOLE)):
            assert server.steps == []
            peer.sendall(WHOLE[index:index + 1])
            wait_until(lambda: server.turn() or server.steps or index < len(WHOLE) - 1)
    assert [step.name for step in server.steps] == ["7.3"]


def test_another_users_peer_is_refused_even_where_the_directory_is_open(server, tmp_path):
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    os.chmod(".", 0o755)
    os.chmod("launch", 0o666)
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.setgid(65534)
            os.setuid(65534)
            peer = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            peer.connect("launch")
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                peer.sendall(WHOLE)
            status = 0
        finally:
            os._exit(status)
    try:
        server.until("user 65534 refused")
    finally:
        _, status = os.waitpid(pid, 0)
    assert status == 0
    server.turn()
    assert server.steps == []


def test_peer_that_is_not_ours_is_heard_out_and_dropped(server):
    server.socket._is_ours = lambda pid: False
    with connect(server) as peer:
        peer.sendall(WHOLE)
        server.until("of another srun")
        assert peer.recv(1) == b""
    assert server.steps == []


def test_close_drops_all_and_removes_the_socket(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    server = Server(".")
    with connect(server) as peer:
        server.turn()
        server.socket.close()
        assert peer.recv(1) == b""
    assert os.listdir(".") == []
    assert not server.selector.get_map()
    server.selector.close()


# -- the real srun --------------------------------------------------------------------------------

def test_real_srun_that_still_reports_its_step_is_heard(slurm):
    done = slurm.run(sys.executable, SRUN_CR, "-n1", "sh", "-c",
                     "echo $SLURM_JOB_ID.$SLURM_STEP_ID on $SLURM_STEP_NODELIST",
                     env=dict(slurm.environ, SRUN_CR_ENGINE="none", SRUN_CR_DEBUG="1"))
    version = slurm.run("srun", "--version").stdout.split()[-1]
    words = "step " + done.stdout.strip()
    heard = [line for line in done.stderr.splitlines() if line.endswith(words)]
    if srun_cr.release_number(version) > (22, 5) and not heard:
        pytest.skip("srun {} does not report its step any more".format(version))
    assert len(heard) == 1, done.stderr
