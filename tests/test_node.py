# SPDX-License-Identifier: GPL-2.0-or-later
"""What runs on the nodes: CRIU's images read, processes found, and how things are worded."""

import os
import random
import re
import signal
import struct
import subprocess
import sys

import pytest
from conftest import started, wait_until

import srun_cr
from srun_cr import (ALL_SIGNALS, CriuFiles, ProcessStat, appended_files, criu_reason,
                     describe_size, describe_status, is_descendant, parse_message, parse_records,
                     parse_signal, plural, process_tree, quote_command, read_image, signal_name,
                     signal_tree)


# -- protobuf --------------------------------------------------------------------------------

def varint(value):
    """Encode by the description of the format, independently of the program."""
    data = bytearray()
    while value > 0x7F:
        data.append(value & 0x7F | 0x80)
        value >>= 7
    data.append(value)
    return bytes(data)


def message(*fields):
    """Encode fields: (number, int) as varint, (number, bytes) as length-delimited."""
    data = b""
    for key, value in fields:
        if isinstance(value, int):
            data += varint(key << 3) + varint(value)
        else:
            data += varint(key << 3 | 2) + varint(len(value)) + value
    return data


def image(*entries):
    """Return the bytes of one of CRIU's image files."""
    return b"\x54\x56\x48\x54MAGI" + b"".join(struct.pack("<I", len(entry)) + entry
                                              for entry in entries)


def test_a_message_is_read_with_all_its_fields():
    data = message((1, 0), (2, 1), (3, 300), (4, 2 ** 64 - 1), (16, b"path"), (3, 7), (5, b""))
    data += varint(6 << 3 | 1) + b"12345678" + varint(7 << 3 | 5) + b"1234"
    assert parse_message(data) == {1: [0], 2: [1], 3: [300, 7], 4: [2 ** 64 - 1], 16: [b"path"],
                                   5: [b""], 6: [b"12345678"], 7: [b"1234"]}
    assert parse_message(b"") == {}


def test_random_messages_are_read_back_as_they_were_written():
    chance = random.Random("messages")
    for _ in range(500):
        fields = [(chance.randint(1, 2 ** 29 - 1), chance.choice((
            chance.getrandbits(chance.randint(1, 64)),
            bytes(chance.getrandbits(8) for _ in range(chance.randrange(200))))))
            for _ in range(chance.randrange(8))]
        expected = {}
        for key, value in fields:
            expected.setdefault(key, []).append(value)
        assert parse_message(message(*fields)) == expected


def test_a_message_cut_inside_a_field_is_an_error():
    fields = [(1, 300), (2, b"some bytes"), (500, 2 ** 40), (4, b"x" * 200)]
    whole, ends, at = message(*fields), [0], 0
    for field in fields:
        at += len(message(field))
        ends.append(at)
    for length in range(len(whole) + 1):
        if length in ends:
            assert parse_message(whole[:length]) is not None
        else:
            with pytest.raises(ValueError):
                parse_message(whole[:length])


@pytest.mark.parametrize("data", [
    b"\x08" + b"\xff" * 10 + b"\x01", b"\x08" + b"\x80" * 100 + b"\x00", b"\xff" * 50,
    b"\x12" + varint(2 ** 63) + b"x", b"\x12\x05four", b"\x09" + b"7bytes!", b"\x0d123",
    b"\x0b", b"\x0c", b"\x0e", b"\x0f", b"\x80"])
def test_what_the_format_does_not_allow_is_an_error(data):
    with pytest.raises(ValueError):
        parse_message(data)


def test_garbage_raises_nothing_but_valueerror():
    chance = random.Random("garbage")
    good = bad = 0
    for case in range(5000):
        if case % 2:
            data = bytes(chance.getrandbits(8) for _ in range(chance.randrange(60)))
        else:   # nearly right
            mutable = bytearray(message((1, 5), (2, 300), (6, b"/path/of/a/file"), (8, 77)))
            for _ in range(chance.randint(1, 3)):
                mutable[chance.randrange(len(mutable))] = chance.getrandbits(8)
            data = bytes(mutable)
        try:
            fields = parse_message(data)
            good += 1
        except ValueError:
            bad += 1
        else:
            assert all(isinstance(value, (int, bytes)) for values in fields.values()
                       for value in values)
    assert good > 100 and bad > 1000


# -- CRIU's image files ----------------------------------------------------------------------

def test_the_entries_of_an_image_are_read_in_order(tmp_path):
    path = tmp_path / "files.img"
    path.write_bytes(image(message((1, 1)), b"", message((1, 2), (2, b"x"))))
    assert list(read_image(str(path))) == [{1: [1]}, {}, {1: [2], 2: [b"x"]}]
    path.write_bytes(image())
    assert list(read_image(str(path))) == []


def test_an_image_that_is_cut_is_an_error_wherever_it_is_cut(tmp_path):
    path = tmp_path / "files.img"
    entries = [message((1, 1), (2, b"first")), message((1, 2), (2, b"second"))]
    whole = image(*entries)
    ends = [8, 8 + 4 + len(entries[0]), len(whole)]     # an end here cannot be told from the end
    for length in range(len(whole) + 1):
        path.write_bytes(whole[:length])
        if length in ends:
            assert len(list(read_image(str(path)))) == ends.index(length)
        else:
            with pytest.raises(ValueError) as caught:
                list(read_image(str(path)))
            assert str(path) in str(caught.value) or length > 12


def file_entry(number, path, flags, size=None):
    """Return an entry of files.img for a regular file."""
    regular = [(1, number), (2, flags), (3, 0), (4, b""), (5, 0), (6, os.fsencode(path))]
    return message((1, 1), (2, number), (3, message(*regular, *([] if size is None else
                                                                [(8, size)]))))


def pipe_entry(number, pipe, flags):
    """Return an entry of files.img for an end of a pipe."""
    return message((1, 3), (2, number), (18, message((1, number), (2, pipe), (3, flags),
                                                     (4, b""))))


def at_fd(number, fd):
    """Return an entry of fdinfo-N.img."""
    return message((1, number), (2, 0), (3, 3), (4, fd))


def write_image_directory(path):
    """Write the open files of a task as CRIU does: see the test below for which."""
    (path / "files.img").write_bytes(image(
        file_entry(1, "/lib/x.so", os.O_RDONLY, 9000), file_entry(2, "/out/log", os.O_WRONLY, 12),
        file_entry(3, "/out/a b\udcff", os.O_RDWR | os.O_APPEND, 0),
        file_entry(4, "/out/unsized", os.O_WRONLY),
        pipe_entry(5, 100, os.O_RDONLY), pipe_entry(6, 101, os.O_WRONLY),
        pipe_entry(7, 102, os.O_WRONLY), pipe_entry(8, 103, os.O_RDONLY),
        pipe_entry(9, 103, os.O_WRONLY), pipe_entry(10, 104, os.O_WRONLY),
        pipe_entry(11, 105, os.O_WRONLY)))
    (path / "fdinfo-2.img").write_bytes(image(at_fd(5, 0), at_fd(6, 1), at_fd(7, 2), at_fd(8, 5),
                                              at_fd(9, 6), at_fd(2, 7)))
    (path / "fdinfo-3.img").write_bytes(image(at_fd(10, 1), at_fd(10, 2), at_fd(11, 9)))


def test_the_open_files_of_an_image_are_told_apart(tmp_path):
    write_image_directory(tmp_path)
    files = CriuFiles(str(tmp_path))
    assert files.written == {"/out/log": 12, "/out/a b\udcff": 0}
    # 103 has both ends in the image; 104, merged output, is standard output, as is 105, which
    # the task has moved away from where it was.
    assert files.outside == {100: 0, 101: 1, 102: 2, 104: 1, 105: 1}


def test_damaged_images_raise_nothing_but_what_a_restore_expects(tmp_path):
    write_image_directory(tmp_path)
    originals = {name: (tmp_path / name).read_bytes() for name in ("files.img", "fdinfo-2.img")}
    chance = random.Random("damage")
    bad = 0
    for _ in range(800):
        name = chance.choice(sorted(originals))
        data = bytearray(originals[name])
        for _ in range(chance.randint(1, 3)):
            data[chance.randrange(8, len(data))] = chance.getrandbits(8)
        (tmp_path / name).write_bytes(bytes(data))
        try:
            CriuFiles(str(tmp_path))
        except (OSError, ValueError):
            bad += 1
        (tmp_path / name).write_bytes(originals[name])
    assert bad > 100


# -- CRIU's reasons --------------------------------------------------------------------------

LOG = b"""\
(00.000000) Version: 4.1.1 (gitid 0)
(00.008111) Warn  (criu/kerndat.c:1469): no such thing
(00.012345) Error (criu/sk-inet.c:191): inet: Connected TCP socket, consider using \
--tcp-established option.
(00.012399) Error (criu/cr-dump.c:2128): Dumping FAILED.
"""


def test_the_reason_is_the_first_error_of_the_log_without_its_prefix(tmp_path):
    (tmp_path / "dump.log").write_bytes(LOG)
    assert criu_reason(str(tmp_path / "dump.log"), b"other") == (
        "inet: Connected TCP socket, consider using --tcp-established option.")


@pytest.mark.parametrize("log, output, reason", [
    (b"", b"first\nsudo: a password is required\n", "sudo: a password is required"),
    (None, b"exec: not found", "exec: not found"), (b"(0) nothing wrong\n", b"out\n", "out"),
    (b"(0) Error (x.c:1): \xff\xfe bad\n", b"", "\ufffd\ufffd bad"),
    (b"(0) Error (cut here", b"", "cut here"), (b"(0) Error (a.c:1): b (c): d\n", b"", "b (c): d")])
def test_without_an_error_in_the_log_the_last_line_printed_is_the_reason(
        tmp_path, log, output, reason):
    if log is not None:
        (tmp_path / "log").write_bytes(log)
    assert criu_reason(str(tmp_path / "log"), output) == reason


@pytest.mark.parametrize("log, output", [(None, b""), (b"", b"\n"), (b"(0) Error (a.c:1): \n", b""),
                                         (b"", b"   \n\n")])
def test_a_reason_is_never_empty(tmp_path, log, output):
    if log is not None:
        (tmp_path / "log").write_bytes(log)
    assert criu_reason(str(tmp_path / "log"), output).strip()


# -- Slurm's records -------------------------------------------------------------------------

def test_the_records_of_scontrol_are_parsed_word_by_word():
    text = ("StepId=12.0 UserId=0 StartTime=2024-01-01T00:00:00 TimeLimit=UNLIMITED\n"
            "StepId=12.batch Nodes=1 NodeList=n[1-2,4] SrunHost:Pid=n1:4711 Name=a=b Empty= x\n"
            "\nNo steps in the system\n   \n")
    assert parse_records(text) == [
        {"StepId": "12.0", "UserId": "0", "StartTime": "2024-01-01T00:00:00",
         "TimeLimit": "UNLIMITED"},
        {"StepId": "12.batch", "Nodes": "1", "NodeList": "n[1-2,4]", "SrunHost:Pid": "n1:4711",
         "Name": "a=b", "Empty": ""}]
    assert parse_records("") == []


def test_a_later_word_of_a_users_choosing_does_not_replace_an_earlier_key():
    assert parse_records("JobId=7 JobState=RUNNING Comment=x JobId=8")[0]["JobId"] == "7"


# -- words -----------------------------------------------------------------------------------

def test_a_death_is_worded_as_it_was():
    for code in range(256):
        assert describe_status(code << 8) == "exit status {}".format(code)
    for number in ALL_SIGNALS:
        assert describe_status(number) == "killed by " + signal_name(number)
    assert describe_status(signal.SIGSEGV | 0x80) == "killed by SIGSEGV"


@pytest.mark.parametrize("script, words", [
    ("import sys; sys.exit(7)", "exit status 7"),
    ("import os; os.kill(os.getpid(), 15)", "killed by SIGTERM")])
def test_a_real_death_is_worded_as_it_was(script, words):
    process = subprocess.Popen([sys.executable, "-S", "-c", script])
    status = os.waitpid(process.pid, 0)[1]
    process.returncode = 0
    assert describe_status(status) == words


@pytest.mark.parametrize("size, words", [
    (0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (3100000, "3.1 MB"), (12 * 10 ** 9, "12.0 GB"),
    (5 * 10 ** 15, "5000.0 TB")])
def test_a_size_is_worded_in_three_digits(size, words):
    assert describe_size(size) == words


def test_counts_and_commands_are_worded():
    assert [plural(count, "task") for count in (0, 1, 2)] == ["0 tasks", "1 task", "2 tasks"]
    assert quote_command(["a b", "", "c'd", "e"]) == "'a b' '' 'c'\"'\"'d' e"


def test_every_signal_has_a_name_that_is_read_back_as_its_number():
    for number in sorted(ALL_SIGNALS):
        name = signal_name(number)
        if number == 16 and not hasattr(signal, "SIGSTKFLT"):   # Python < 3.11 does not name it
            name = "16"
        else:
            assert re.match(r"SIG[A-Z0-9]+(\+\d+)?$", name), name
        for text in (name, name.lower(), name.replace("SIG", ""), str(number), name + " "):
            assert parse_signal(text) == number
    assert len({signal_name(number) for number in ALL_SIGNALS}) == len(ALL_SIGNALS)


def test_every_name_that_this_system_has_is_its_signal():
    for name in dir(signal):
        if re.match("SIG[A-Z0-9]+$", name):
            assert parse_signal(name) == parse_signal(name[3:]) == int(getattr(signal, name))
    low, high = int(signal.SIGRTMIN), int(signal.SIGRTMAX)
    for offset in range(high - low + 1):
        assert parse_signal("RTMIN+{}".format(offset)) == low + offset
        assert parse_signal("RTMAX-{}".format(offset)) == high - offset


@pytest.mark.parametrize("text", ["", "SIG", "USR3", "0", "65", "-1", "1.5", "RTMIN+99", "RTMIN+",
                                  "RTMAX+1", "USR1+0", "_DFL", "_IGN", "SIG_IGN", "_BLOCK",
                                  "_UNBLOCK", "_SETMASK", "NALS", "SIGSIGHUP", "\u00b2"])
def test_what_names_no_signal_is_an_error(text):
    with pytest.raises(ValueError):
        parse_signal(text)


def test_a_number_without_a_name_is_worded_by_its_number():
    for number in (0, 32, 33, 65, 1000):
        assert signal_name(number) == "signal {}".format(number)


# -- processes -------------------------------------------------------------------------------

# Prints the pids of itself, a child, that one's child, and a child of a second thread.
FAMILY = """
import os, subprocess, sys, threading
SLEEP = [sys.executable, "-S", "-c", "import sys; sys.stdin.read()"]
def child_of_thread():
    found.append(subprocess.Popen(SLEEP, stdin=hold))
    stay.acquire()
read_fd, write_fd = os.pipe()
hold = os.fdopen(read_fd)
found, stay = [], threading.Lock()
stay.acquire()
shell = subprocess.Popen([sys.executable, "-S", "-c",
    "import subprocess, sys; p = subprocess.Popen(sys.argv[1:]); print(p.pid, flush=True);"
    "p.wait()"] + SLEEP, stdin=hold, stdout=subprocess.PIPE)
grandchild = int(shell.stdout.readline())
thread = threading.Thread(target=child_of_thread, daemon=True)
thread.start()
while not found:
    pass
print(os.getpid(), shell.pid, grandchild, found[0].pid, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def family():
    """Return the pids of a process, a child, a grandchild and a child of a second thread."""
    with started([sys.executable, "-S", "-c", FAMILY], stdin=subprocess.PIPE,
                 stdout=subprocess.PIPE, universal_newlines=True) as process:
        yield [int(word) for word in process.stdout.readline().split()]


def state(pid):
    """Return a process' state, X once it is gone."""
    try:
        return ProcessStat(pid).state
    except OSError:
        return "X"


def test_a_process_tree_is_all_descendants_ancestors_first(family):
    parent, child, grandchild, threads_child = family
    tree = process_tree(parent)
    assert sorted(tree) == sorted(family) and tree[0] == parent
    assert tree.index(child) < tree.index(grandchild)
    assert process_tree(child) == [child, grandchild]
    assert process_tree(threads_child) == [threads_child]


def test_the_tree_of_what_has_ended_is_itself_alone_and_may_be_signalled():
    process = subprocess.Popen([sys.executable, "-S", "-c", ""])
    process.wait()
    assert process_tree(process.pid) == [process.pid]
    signal_tree(process.pid, signal.SIGTERM)


def test_a_descendant_is_known_from_a_stranger(family):
    parent, child, grandchild, threads_child = family
    assert is_descendant(grandchild, parent) and is_descendant(threads_child, parent)
    assert is_descendant(parent, os.getpid()) and is_descendant(parent, parent)
    assert not is_descendant(parent, child) and not is_descendant(threads_child, child)
    assert not is_descendant(2 ** 22 + 1, parent) and not is_descendant(0, parent)


def test_a_signal_reaches_every_process_of_a_tree_and_none_beside_it(family):
    parent, child, grandchild, threads_child = family
    signal_tree(child, signal.SIGSTOP)
    wait_until(lambda: state(child) == state(grandchild) == "T")
    assert state(parent) != "T" and state(threads_child) != "T"
    signal_tree(parent, signal.SIGSTOP)
    wait_until(lambda: [state(pid) for pid in family] == ["T"] * 4)
    signal_tree(parent, signal.SIGCONT)
    wait_until(lambda: "T" not in [state(pid) for pid in family])
    signal_tree(parent, signal.SIGKILL)
    wait_until(lambda: all(state(pid) in "XZ" for pid in family))


# Opens files in several ways and prints a ready line.
OPENER = """
import os, sys
a, b, c, d, e, f = sys.argv[1:]
fds = [os.open(a, os.O_WRONLY | os.O_APPEND | os.O_CREAT),
       os.open(a, os.O_WRONLY | os.O_APPEND | os.O_CREAT),
       os.open(b, os.O_RDWR | os.O_APPEND | os.O_CREAT),
       os.open(c, os.O_WRONLY | os.O_CREAT), os.open(d, os.O_RDONLY | os.O_CREAT),
       os.open(d, os.O_RDONLY | os.O_APPEND), os.open(e, os.O_RDWR | os.O_APPEND),
       os.open("/dev/null", os.O_WRONLY | os.O_APPEND),
       os.open(f, os.O_WRONLY | os.O_APPEND | os.O_CREAT)]
os.unlink(f)
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def opener(tmp_path):
    """Start a process with files open; return (its pid, the paths open for appending)."""
    paths = [str(tmp_path / name) for name in ("append", "read write \udcff\n", "write", "read",
                                               "fifo", "unlinked")]
    os.mkfifo(paths[4])
    with started([sys.executable, "-S", "-c", OPENER] + paths, stdin=subprocess.PIPE,
                 stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"ready\n"
        yield process.pid, paths[:2]


def test_the_regular_files_open_for_appending_are_found_once_each(opener):
    pid, paths = opener
    assert sorted(appended_files([pid])) == sorted(paths)
    assert sorted(appended_files([pid, pid])) == sorted(paths)
    assert appended_files([]) == []


def test_a_process_that_has_ended_does_not_hide_the_files_of_the_next(opener):
    pid, paths = opener
    ended = subprocess.Popen([sys.executable, "-S", "-c", ""])
    ended.wait()
    assert sorted(appended_files([ended.pid, pid])) == sorted(paths)


def test_a_file_closed_while_we_look_does_not_hide_the_others(opener, monkeypatch):
    pid, paths = opener
    first = sorted(os.listdir("/proc/{}/fd".format(pid)), key=int)
    missed = []

    def racing(path, *arguments, **options):
        if str(path) == "/proc/{}/fdinfo/{}".format(pid, first[0]):
            missed.append(path)
            raise FileNotFoundError(2, "No such file or directory", path)
        return open(path, *arguments, **options)
    monkeypatch.setattr(srun_cr, "open", racing, raising=False)
    assert sorted(appended_files([pid])) == sorted(paths)
    assert missed
