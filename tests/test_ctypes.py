# SPDX-License-Identifier: GPL-2.0-or-later
"""srun_cr_ctypes: what it says of libcr and libslurm, and how both are used, against stand-ins.

What needs libcr runs in processes of its own: loading it takes a signal from the C library, and
several of its errors end the process."""

import ctypes
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap

import pytest
from conftest import ROOT, clean_environ, started, wait_until
from fakes_build import FAKES, build

import srun_cr_ctypes as bindings

TIMEOUT_S = 20.0
TIMES = itertools.count(1600000000)

PRELUDE = """
import json, os, signal, socket, subprocess, sys, threading, time
sys.path.insert(0, {root!r})
import srun_cr_ctypes as c

def log():
    with open(os.environ["FAKE_LIBCR_LOG"], errors="replace") as file:
        return file.read().splitlines()

def wait_for(line, count=1):
    deadline = time.monotonic() + 15
    while log().count(line) < count:
        if time.monotonic() > deadline:
            sys.exit("no {{!r}} in {{}}".format(line, log()))
        time.sleep(0.002)

def show(*values):
    print(json.dumps(values), flush=True)
""".format(root=ROOT)


@pytest.fixture(scope="module")
def libcr(tmp_path_factory):
    """The stand-in for libcr.so."""
    return build(tmp_path_factory, "libcr")


@pytest.fixture(scope="module")
def libslurm(tmp_path_factory):
    """The stand-in for a libslurm.so of 18.08."""
    return build(tmp_path_factory, "libslurm")


class Client:
    """A process that uses the bindings, and what it has left behind."""

    def __init__(self, directory, libcr):
        self.log_path = str(directory / "libcr.log")
        self.commands_path = str(directory / "libcr.commands")
        self.environ = clean_environ(SRUN_CR_LIBCR=libcr, FAKE_LIBCR_LOG=self.log_path,
                                     FAKE_LIBCR_FIFO=self.commands_path)
        self.status = self.shown = self.errors = None

    def command(self, body):
        """Return the command line of a process that runs body."""
        return [sys.executable, "-c", PRELUDE + textwrap.dedent(body)]

    def run(self, body, *commands, **variables):
        """Run body, which finds these commands waiting; return what it has shown."""
        with open(self.commands_path, "wb") as file:
            file.write(b"".join(os.fsencode(command) + b"\n" for command in commands))
        done = subprocess.run(self.command(body), env=dict(self.environ, **variables),
                              stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE, universal_newlines=True, timeout=TIMEOUT_S)
        self.status, self.errors = done.returncode, done.stderr
        self.shown = [json.loads(line) for line in done.stdout.splitlines()]
        return self.shown

    def log(self):
        """Return the stand-in's lines but the first, which tells the signal taken."""
        with open(self.log_path) as file:
            return file.read().splitlines()[1:]

    def misuse(self):
        """Return the lines that tell of misuse."""
        return [line for line in self.log() if line.startswith("misuse")]


@pytest.fixture
def client(tmp_path, libcr):
    """What runs processes that use the bindings with the stand-in."""
    return Client(tmp_path, libcr)


# -- what the module says of C --------------------------------------------------------------------

C_TYPES = {
    None: "void", ctypes.c_int: "int", ctypes.c_uint: "unsigned", ctypes.c_long: "long",
    ctypes.c_uint16: "uint16_t", ctypes.c_uint32: "uint32_t", ctypes.c_char_p: "char *",
    ctypes.c_void_p: "void *", bindings.cr_callback_t: "cr_callback_t",
    ctypes.POINTER(bindings.cr_checkpoint_info): "struct cr_checkpoint_info *",
    ctypes.POINTER(bindings.cr_restart_info): "struct cr_restart_info *",
}

# What libcr.h and blcr_common.h of BLCR 0.8.5 lay down.
C_DECLARATIONS = """
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/types.h>
#include <time.h>
typedef int (*cr_callback_t)(void *);
typedef int cr_client_id_t;
typedef int cr_callback_id_t;
typedef enum { CR_SCOPE_PROC, CR_SCOPE_PGRP, CR_SCOPE_SESS, CR_SCOPE_TREE } cr_scope_t;
struct cr_checkpoint_info { int signal; const char *dest; pid_t requester; pid_t target;
                            cr_scope_t scope; };
struct cr_restart_info { pid_t requester; const char *src; };
enum { CR_MIN_ERRCODE = 2353, CR_ETEMPFAIL, CR_EPERMFAIL, CR_ENOSUPPORT, CR_EVERSION, CR_EOMITTED,
       CR_EBADARCH, CR_EPTRACED, CR_EPTRACER, CR_ERSTRTABRT, CR_ERESTARTED, CR_ENOTCB,
       CR_ENOINIT };
"""


def compiled(directory, text):
    """Compile a C program and return what it prints."""
    if shutil.which("cc") is None:
        pytest.skip("no C compiler")
    source, program = str(directory / "check.c"), str(directory / "check")
    with open(source, "w") as file:
        file.write(text)
    done = subprocess.run(["cc", "-std=gnu11", "-Wall", "-Wextra", "-Werror", "-o", program,
                           source], stderr=subprocess.STDOUT, stdout=subprocess.PIPE,
                          universal_newlines=True)
    assert done.returncode == 0, done.stdout
    return subprocess.check_output([program], universal_newlines=True)


def declarations():
    """Return what the comments above the rows declare: {function: C declaration}."""
    with open(bindings.__file__) as file:
        lines = file.read().splitlines()
    found = {}
    for index, line in enumerate(lines):
        row = re.match(r'    "(\w+)": Proto\(', line)
        if row:
            above = []
            while lines[index - 1].startswith("    #"):
                index -= 1
                above.insert(0, lines[index].strip("# "))
            found[row.group(1)] = re.match(r"[^()]*\([^()]*\)", " ".join(above)).group(0)
    return found


def test_structures_are_laid_out_as_a_c_compiler_does(tmp_path):
    lines, expected = [], []
    for structure in (bindings.cr_checkpoint_info, bindings.cr_restart_info):
        name = structure.__name__
        lines.append('printf("%zu\\n", sizeof(struct {}));'.format(name))
        expected.append(ctypes.sizeof(structure))
        for field, kind in structure._fields_:
            lines.append('printf("%zu\\n", offsetof(struct {0}, {1}));'
                         'printf("%zu\\n", sizeof(((struct {0} *)0)->{1}));'.format(name, field))
            expected += [getattr(structure, field).offset, ctypes.sizeof(kind)]
    printed = compiled(tmp_path, C_DECLARATIONS + "int main(void) {" + "".join(lines)
                       + "return 0; }")
    assert [int(line) for line in printed.split()] == expected
    assert len(expected) == 2 + 2 * 7


def test_error_codes_are_those_of_the_header(tmp_path):
    names = [name for name in dir(bindings) if re.match("CR_E[A-Z]+$", name)]
    assert len(names) >= 7
    printed = compiled(tmp_path, C_DECLARATIONS + "int main(void) {" + "".join(
        'printf("%d\\n", {});'.format(name) for name in names) + "return 0; }")
    assert [int(line) for line in printed.split()] == [getattr(bindings, n) for n in names]


def test_prototypes_agree_with_the_declarations_above_them(tmp_path):
    declared = declarations()
    table = dict(bindings.LIBCR, **bindings.LIBSLURM)
    assert set(declared) == set(table)
    text = C_DECLARATIONS
    for name, proto in table.items():
        arguments = ", ".join(C_TYPES[kind] for kind in proto.argtypes) or "void"
        text += declared[name].replace("const ", "") + ";\n"
        text += '_Static_assert(__builtin_types_compatible_p(__typeof__({}), {} ({})), "");\n' \
            .format(name, C_TYPES[proto.restype], arguments)
    compiled(tmp_path, text + "int main(void) { return 0; }")


def test_each_wide_c_type_has_its_size(tmp_path):
    printed = compiled(tmp_path, C_DECLARATIONS + 'int main(void) { printf("%zu %zu %zu\\n", '
                       "sizeof(time_t), sizeof(pid_t), sizeof(cr_scope_t)); return 0; }")
    assert [int(word) for word in printed.split()] == [
        ctypes.sizeof(kind) for kind in (bindings.time_t, bindings.pid_t, bindings.cr_scope_t)]


def test_import_loads_no_library_and_little_else(tmp_path):
    body = ("import sys; sys.path.insert(0, {!r}); import ctypes, os; before = set(sys.modules);"
            "import srun_cr_ctypes; print(sorted(set(sys.modules) - before))").format(ROOT)
    shown = subprocess.check_output([sys.executable, "-I", "-S", "-c", body],
                                    universal_newlines=True)
    assert shown == "['srun_cr_ctypes']\n"


# -- where libraries are looked for ---------------------------------------------------------------

@pytest.fixture
def places(tmp_path, libslurm, monkeypatch):
    """A function that makes a copy of libslurm; and no other place to find one in."""
    monkeypatch.delenv("SRUN_CR_LIBSLURM", raising=False)
    monkeypatch.setattr(bindings, "LIBSLURM_NAMES",
                        tuple(str(tmp_path / name) for name in ("first.so", "second.so")))
    monkeypatch.setattr("ctypes.util.find_library", lambda name: None)

    def make(name):
        return shutil.copy(libslurm, str(tmp_path / name))
    return make


def test_search_order_is_path_environment_names_linker(places, monkeypatch):
    path, by_environment, by_linker = places("a.so"), places("b.so"), places("c.so")
    asked = []
    monkeypatch.setattr("ctypes.util.find_library", lambda name: asked.append(name) or by_linker)
    assert bindings.load_libslurm().path == by_linker
    assert asked == ["slurm"]
    second = places("second.so")
    assert bindings.load_libslurm().path == second
    first = places("first.so")
    assert bindings.load_libslurm().path == first
    monkeypatch.setenv("SRUN_CR_LIBSLURM", by_environment)
    assert bindings.load_libslurm().path == by_environment
    assert bindings.load_libslurm("").path == by_environment
    assert bindings.load_libslurm(path).path == path
    assert asked == ["slurm"]


def test_candidates_are_the_sonames_newest_first():
    assert bindings.LIBSLURM_NAMES[0] == "libslurm.so.33"
    assert {"libslurm.so.21", "libslurm.so.27"} < set(bindings.LIBSLURM_NAMES)
    assert bindings.LIBSLURM_NAMES[-1] == "libslurm.so"
    assert bindings.LIBCR_NAMES == ("libcr.so.0", "libcr.so")


def test_newest_soname_on_the_linker_path_is_taken(tmp_path, libslurm):
    for version in (27, 33):
        shutil.copy(libslurm, str(tmp_path / "libslurm.so.{}".format(version)))
    body = ("import sys; sys.path.insert(0, {!r}); import srun_cr_ctypes as c; "
            "print(c.load_libslurm().path)").format(ROOT)
    shown = subprocess.check_output([sys.executable, "-c", body], universal_newlines=True,
                                    env=clean_environ(LD_LIBRARY_PATH=str(tmp_path)))
    assert shown == "libslurm.so.33\n"


def refusal(function, *arguments):
    """Return the text of the LibraryError that a call raises: one line of three parts."""
    with pytest.raises(bindings.LibraryError) as caught:
        function(*arguments)
    text = str(caught.value)
    assert "\n" not in text and len(text.split(": ")) >= 3, text
    return text


def test_nothing_found_is_one_line(places, monkeypatch):
    text = refusal(bindings.load_libslurm)
    assert text.startswith("libslurm: not found") and "SRUN_CR_LIBSLURM" in text
    monkeypatch.delenv("SRUN_CR_LIBCR", raising=False)
    monkeypatch.setattr(bindings, "LIBCR_NAMES", ("/nowhere/libcr.so.0", "/nowhere/libcr.so"))
    text = refusal(bindings.load_libcr)
    assert text.startswith("libcr: not found") and "SRUN_CR_LIBCR" in text
    assert "criu" in text and "app" in text


def test_a_path_that_was_given_is_the_only_one_tried(places, tmp_path):
    places("first.so")
    text = refusal(bindings.load_libslurm, str(tmp_path / "gone.so"))
    assert "gone.so" in text and "No such file" in text and "SRUN_CR_LIBSLURM" in text


def test_a_candidate_that_is_there_but_broken_is_named(places, tmp_path):
    (tmp_path / "first.so").write_bytes(b"no library at all, but some text")
    places("second.so")
    text = refusal(bindings.load_libslurm)
    assert "first.so" in text and "SRUN_CR_LIBSLURM" in text


def test_all_missing_symbols_are_in_one_error(libslurm):
    text = refusal(bindings.load_libcr, libslurm)
    required = [name for name, proto in bindings.LIBCR.items() if proto.required]
    assert len(required) == 8 and all(name in text for name in required)
    assert libslurm in text and "cr_hold_ctrl" not in text


def test_a_library_that_is_not_slurms_is_refused(libcr):
    body = ("import sys; sys.path.insert(0, {!r}); import srun_cr_ctypes as c\n"
            "try:\n    c.load_libslurm({!r})\nexcept c.LibraryError as e:\n    print(e)"
            ).format(ROOT, libcr)
    shown = subprocess.check_output([sys.executable, "-c", body], universal_newlines=True)
    assert "lacks slurm_strerror: " in shown and shown.count("\n") == 1


# -- libslurm -------------------------------------------------------------------------------------

class Requests:
    """The stand-in's records."""

    def __init__(self, directory, libslurm, monkeypatch):
        self.path = str(directory / "libslurm.log")
        self.library = bindings.load_libslurm(libslurm)
        monkeypatch.setenv("FAKE_LIBSLURM_LOG", self.path)

    def time(self):
        """Return a time that was not used before."""
        return next(TIMES)

    def seen(self):
        """Return the recorded lines."""
        if not os.path.exists(self.path):
            return []
        with open(self.path, "rb") as file:
            return file.read().splitlines()


@pytest.fixture
def requests(tmp_path, libslurm, monkeypatch):
    """libslurm, loaded here, and what it records."""
    return Requests(tmp_path, libslurm, monkeypatch)


def test_arguments_arrive_as_they_are(requests, tmp_path):
    requests.library.checkpoint_tasks(4294967295, 65535, 1700000000, str(tmp_path / "7.3"), 65535,
                                      "n[1-2]")
    assert requests.seen() == [
        "checkpoint_tasks job=4294967295 step=65535 begin=1700000000 wait=65535 length=6 dir={} "
        "nodes=n[1-2]".format(tmp_path / "7.3").encode()]


def test_bytes_and_undecodable_paths_arrive_as_they_are(requests):
    requests.library.checkpoint_tasks(7, 3, requests.time(), b"/x/\xff", 60, b"n1")
    requests.library.checkpoint_tasks(7, 3, requests.time(), os.fsdecode(b"/x/\xfe"), 60, "n1")
    first, second = requests.seen()
    assert b"dir=/x/\xff nodes" in first and b"dir=/x/\xfe nodes" in second


def test_node_list_of_32_kib_arrives_whole(requests):
    nodes = "n" * 32768
    requests.library.checkpoint_tasks(7, 3, requests.time(), "/x", 60, nodes)
    line, = requests.seen()
    assert b"length=32768 " in line and line.endswith(b"nodes=" + nodes.encode())


def test_images_are_made_by_the_stand_in(requests, tmp_path, monkeypatch):
    monkeypatch.setenv("FAKE_LIBSLURM_TASKS", "3")
    requests.library.checkpoint_tasks(7, 3, requests.time(), str(tmp_path / "7.3"), 60, "n1")
    assert sorted(os.listdir(str(tmp_path / "7.3"))) == [
        "task.0.ckpt", "task.1.ckpt", "task.2.ckpt"]


@pytest.mark.parametrize("arguments, word", [
    ((7, 65536, 1, "/x", 60, "n1"), "65535"),
    ((7, 0xfffffffe, 1, "/x", 60, "n1"), "65535"),
    ((7, -1, 1, "/x", 60, "n1"), "65535"),
    ((7, 3, 1, "/x", 65536, "n1"), "65536 s"),
    ((7, 3, 1, "/x", -1, "n1"), "-1 s"),
    ((2 ** 32, 3, 1, "/x", 60, "n1"), "4294967295"),
    ((7, 3, 1, "/x\0y", 60, "n1"), "image directory"),
    ((7, 3, 1, "/x", 60, b"n1\0n2"), "node list"),
])
def test_what_c_would_cut_off_is_refused_before_anything_is_sent(requests, arguments, word):
    text = refusal(requests.library.checkpoint_tasks, *arguments)
    assert text.startswith("step {}.{}: ".format(*arguments[:2])) and word in text
    assert requests.seen() == []


@pytest.mark.parametrize("code, text", [
    (2017, "Invalid job id specified"), (13, "Permission denied"), (-1, "Unspecified error")])
def test_failure_has_slurms_words_and_code(requests, monkeypatch, code, text):
    monkeypatch.setenv("FAKE_LIBSLURM_ERRNO", str(code))
    with pytest.raises(bindings.LibraryError) as caught:
        requests.library.checkpoint_tasks(7, 3, requests.time(), "/x", 60, "n1")
    assert caught.value.errno == code
    assert str(caught.value).startswith(
        "libslurm: slurm_checkpoint_tasks: {} (error {}): ".format(text, code))


def test_second_request_of_the_same_second_says_so(requests):
    now = requests.time()
    requests.library.checkpoint_tasks(7, 3, now, "/x", 60, "n1")
    text = refusal(requests.library.checkpoint_tasks, 7, 3, now, "/x", 60, "n1")
    assert text.endswith("ask again in a second")
    requests.library.checkpoint_tasks(7, 3, now + 1, "/x", 60, "n1")


def test_libslurm_without_the_call_is_refused_with_the_engines_that_work(tmp_path_factory):
    path = build(tmp_path_factory, "libslurm", "-DNEW")
    text = refusal(bindings.load_libslurm, path)
    assert path in text and "API 38" in text and "19.05" in text
    assert text.endswith("use SRUN_CR_ENGINE=criu or SRUN_CR_ENGINE=app")


def test_slurm_init_comes_first_where_it_exists(tmp_path_factory, tmp_path, monkeypatch):
    monkeypatch.setenv("FAKE_LIBSLURM_LOG", str(tmp_path / "log"))
    library = bindings.load_libslurm(build(tmp_path_factory, "libslurm", "-DBOTH"))
    library.checkpoint_tasks(7, 3, 1700000000, "/x", 60, "n1")
    lines = (tmp_path / "log").read_text().splitlines()
    assert lines[0] == "init" and lines[1].startswith("checkpoint_tasks ")
    assert library.has("slurm_init") and library.api_version() == 38


def test_optional_functions_are_asked_for(requests):
    assert requests.library.has("slurm_checkpoint_tasks")
    assert not requests.library.has("slurm_init")
    assert requests.library.api_version() == 33


# -- libcr ----------------------------------------------------------------------------------------

REGISTER = """
lib = c.load_libcr()
client_id = lib.init()
results = []
def callback():
    info = lib.checkpoint_info()
    results.append([info.path, info.target == os.getpid(), lib.restart_info()])
    result = lib.checkpoint(c.CR_CHECKPOINT_READY)
    results.append([result, lib.checkpoint_info(), lib.restart_info()])
"""


def test_signal_64_is_taken_from_the_c_library(client):
    client.run("before = signal.SIGRTMAX; lib = c.load_libcr(); show(int(before))")
    with open(client.log_path) as file:
        assert file.read().splitlines() == ["signal 64"]
    assert client.shown == [[64]]


@pytest.mark.parametrize("code, words", [
    ("ENOSYS", ("Function not implemented", "load the kernel module blcr", "criu", "app")),
    ("CR_ENOSUPPORT", ("not linked", "load the kernel module blcr", "criu")),
    ("CR_EVERSION", ("version is not supported", "belongs to this kernel's blcr module")),
])
def test_libcr_without_its_part_of_the_kernel_is_one_line(client, code, words):
    shown = client.run("""
        lib = c.load_libcr()
        try:
            lib.init()
        except c.LibraryError as error:
            show(str(error), error.errno)
        """, FAKE_LIBCR_FAIL_INIT=code)
    text, number = shown[0]
    assert text.startswith("libcr: cr_init: ") and "\n" not in text
    assert all(word in text for word in words), text
    assert number == getattr(bindings, code, 38)


def test_checkpoint_continues_with_zero(client):
    client.run(REGISTER + """
lib.register_callback(callback)
wait_for("done")
show(*results)
""", "checkpoint /shared/context.7")
    assert client.shown == [[["/shared/context.7", True, None], [0, None, None]]]
    assert client.log() == [
        "init id=0", "hold scope=1 flags=0", "hold scope=2 flags=0", "register flags=0x4000000",
        "request /shared/context.7", "callback begin /shared/context.7", "checkpoint flags=0",
        "dumped /shared/context.7", "callback end rc=0", "done"]
    assert client.status == 0


def test_undecodable_context_path_comes_back(client):
    client.run(REGISTER + """
lib.register_callback(callback)
wait_for("done")
show(list(os.fsencode(results[0][0])))
""", "checkpoint /x/\udcff")
    assert client.shown == [[list(b"/x/\xff")]]


def test_restarted_copy_has_no_children_and_no_sockets(client):
    client.run(REGISTER + """
ours, peer = socket.socketpair()
listening = socket.socket(socket.AF_UNIX)
reader, writer = os.pipe()
signals = []
signal.signal(signal.SIGCHLD, lambda number, frame: signals.append(number))
child = subprocess.Popen(["sleep", "60"])
lib.register_callback(callback)
wait_for("done")
def closed(fd):
    try:
        os.fstat(fd)
        return False
    except OSError:
        return True
try:
    os.waitpid(child.pid, os.WNOHANG)
    left = True
except ChildProcessError:
    left = False
show(results, [closed(s.fileno()) for s in (ours, peer, listening)], closed(reader), left, signals)
child.returncode = 0
""", "mode pid=77", "restart /new/context.7 /old/context.7")
    assert client.shown == [[
        [["/old/context.7", True, None], [77, None, "/new/context.7"]],
        [True, True, True], False, False, []]]
    assert client.misuse() == []


def test_restarted_copy_can_be_checkpointed_and_restarted_again(client):
    client.run(REGISTER + """
lib.register_callback(callback)
wait_for("done", 3)
show(*[result[2] for result in results])
""", "restart /x/1", "checkpoint /x/2", "restart /x/3")
    assert client.shown == [[None, "/x/1", None, None, None, "/x/3"]]
    assert client.misuse() == []


def test_results_of_answers_come_back_raw(client):
    client.run("""
        lib = c.load_libcr()
        lib.init()
        flags = [c.CR_CHECKPOINT_TEMP_FAILURE, c.CR_CHECKPOINT_OMIT, c.CR_CHECKPOINT_READY]
        results = []
        lib.register_callback(lambda: results.append(lib.checkpoint(flags.pop(0))))
        wait_for("done", 3)
        show(results, [lib.strerror(result) for result in results])
        """, "checkpoint /x/1", "checkpoint /x/2", "mode fail=28", "checkpoint /x/3")
    (results, texts), = client.shown
    assert results == [-bindings.CR_ETEMPFAIL, -bindings.CR_EOMITTED, -28]
    assert texts[0].startswith("Temporary error") and texts[2] == "No space left on device"
    assert client.status == 0


def test_permanent_failure_kills(client):
    client.run("""
        lib = c.load_libcr()
        lib.init()
        lib.register_callback(lambda: lib.checkpoint(c.CR_CHECKPOINT_PERM_FAILURE))
        wait_for("done")
        """, "checkpoint /x/1")
    assert client.status == -signal.SIGKILL
    assert client.log()[-2:] == ["checkpoint flags=2", "killed PERM_FAILURE"]


def test_descriptors_that_blcr_cannot_dump_fail_the_dump(client):
    client.run(REGISTER + """
import select
epoll = select.epoll()
lib.register_callback(callback)
wait_for("done")
show(results[1][0])
""", "checkpoint /x/1")
    assert client.shown == [[-9]]
    assert "eventpoll" in client.misuse()[0]


def test_ids_are_for_the_thread_that_got_them(client):
    client.run("""
        lib = c.load_libcr()
        first = lib.init()
        lib.enter_cs(first)
        lib.leave_cs(first)
        def other():
            for call in (lib.enter_cs, lib.tryenter_cs, lib.leave_cs):
                try:
                    call(first)
                except c.LibraryError as error:
                    show(error.errno, str(error))
            second = lib.init()
            show(lib.tryenter_cs(second))
            lib.leave_cs(second)
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        """)
    assert [line[0] for line in client.shown] == [bindings.CR_ENOINIT] * 3 + [True]
    assert client.shown[0][1] == ("libcr: cr_enter_cs: Calling thread has not called cr_init() "
                                  "(error 2365): call cr_init in the same thread")


def test_tryenter_is_busy_during_a_request_and_enter_waits(client):
    client.run("""
        lib = c.load_libcr()
        client_id = lib.init()
        begun, go = threading.Event(), threading.Event()
        def callback():
            lib.enter_cs(-1)        # nothing, in the callback
            lib.leave_cs(-1)
            begun.set()
            go.wait(10)
            lib.checkpoint(c.CR_CHECKPOINT_READY)
        lib.register_callback(callback)
        begun.wait(10)
        show(lib.tryenter_cs(client_id), lib.tryenter_cs(client_id))
        go.set()
        lib.enter_cs(client_id)
        show(log()[-2:])
        lib.leave_cs(client_id)
        show(lib.tryenter_cs(client_id))
        lib.leave_cs(client_id)
        """, "checkpoint /x/1")
    assert client.shown == [[False, False], [["done", "enter"]], [True]]
    assert client.misuse() == []


def test_request_waits_for_the_critical_section(client):
    client.run(REGISTER + """
lib.enter_cs(client_id)
lib.enter_cs(client_id)     # nests, and also while a request waits
lib.register_callback(callback)
wait_for("request /x/1")
show(lib.tryenter_cs(client_id))
for _ in range(3):
    show(results)
    lib.leave_cs(client_id)
wait_for("done")
show(len(results))
""", "checkpoint /x/1")
    assert client.shown == [[True], [[]], [[]], [[]], [2]]
    log = client.log()
    assert log.index("callback begin /x/1") > max(
        index for index, line in enumerate(log) if line == "leave")


# -- the callback ---------------------------------------------------------------------------------

@pytest.mark.parametrize("body, reported", [
    ("raise ValueError('no')", "ValueError"),
    ("raise SystemExit(3)", "SystemExit"),
    ("raise KeyboardInterrupt()", "KeyboardInterrupt"),
    ("sys.exit('no')", "SystemExit"),
    ("return 'what'", None),
    ("lib.checkpoint('0')", "TypeError"),
    ("lib.checkpoint(None)", "TypeError"),
    ("def deeper(): deeper()\n    deeper()", "RecursionError"),
])
def test_callback_without_an_answer_cancels_once_and_returns_zero(client, body, reported):
    client.run("""
lib = c.load_libcr()
lib.init()
seen = []
def callback():
    {}
lib.register_callback(callback, lambda error: seen.append(type(error).__name__))
wait_for("done", 2)
show(seen)
""".format(body), "checkpoint /x/1", "checkpoint /x/2")
    assert client.shown == [[[reported] * 2 if reported else []]]
    for number in "12":
        begin = client.log().index("callback begin /x/" + number)
        assert client.log()[begin:begin + 5] == [
            "callback begin /x/" + number, "checkpoint flags=1", "aborted -2354",
            "callback end rc=0", "done"]
    assert client.status == 0 and client.errors == ""


def test_exception_after_the_answer_does_not_answer_again(client):
    client.run("""
        lib = c.load_libcr()
        lib.init()
        seen = []
        def callback():
            lib.checkpoint(c.CR_CHECKPOINT_READY)
            raise OSError(5, "after")
        lib.register_callback(callback, lambda error: seen.append(str(error)))
        wait_for("done")
        show(seen)
        """, "checkpoint /x/1")
    assert client.shown == [[["[Errno 5] after"]]]
    assert client.log()[-4:] == ["checkpoint flags=0", "dumped /x/1", "callback end rc=0", "done"]


def test_exception_in_the_error_handler_leaves_nothing_either(client):
    client.run("""
        lib = c.load_libcr()
        lib.init()
        lib.register_callback(lambda: 1 / 0, lambda error: sys.exit(9))
        wait_for("done", 2)
        """, "checkpoint /x/1", "checkpoint /x/2")
    assert client.status == 0 and client.errors == ""
    assert client.log().count("callback end rc=0") == 2


def test_second_answer_is_refused_and_does_not_reach_libcr(client):
    client.run("""
        lib = c.load_libcr()
        lib.init()
        seen = []
        def callback():
            lib.checkpoint(c.CR_CHECKPOINT_READY)
            lib.checkpoint(c.CR_CHECKPOINT_READY)
        lib.register_callback(callback, lambda error: seen.append(str(error)))
        wait_for("done")
        show(seen)
        """, "checkpoint /x/1")
    assert "answered" in client.shown[0][0][0]
    assert client.log().count("checkpoint flags=0") == 1 and client.misuse() == []


def test_answers_from_other_threads_are_none(client):
    client.run("""
        lib = c.load_libcr()
        lib.init()
        begun, go = threading.Event(), threading.Event()
        def callback():
            begun.set()
            go.wait(10)
            lib.checkpoint(c.CR_CHECKPOINT_READY)
        lib.register_callback(callback)
        begun.wait(10)
        show(lib.checkpoint(0), lib.checkpoint_info(), lib.restart_info())
        go.set()
        wait_for("done")
        """, "checkpoint /x/1")
    assert client.shown == [[-bindings.CR_ENOTCB, None, None]]
    assert client.log()[-4:] == ["checkpoint flags=0", "dumped /x/1", "callback end rc=0", "done"]


def test_second_callback_is_refused(client):
    client.run("""
        lib = c.load_libcr()
        lib.init()
        lib.register_callback(print)
        try:
            lib.register_callback(print)
        except c.LibraryError as error:
            show(str(error))
        """)
    assert client.shown[0][0].startswith("libcr: cr_register_callback: ")
    assert client.log().count("register flags=0x4000000") == 1


def test_registering_needs_init_and_may_be_repeated_after_a_failure(client):
    client.run("""
        lib = c.load_libcr()
        try:
            lib.register_callback(print)
        except c.LibraryError as error:
            show(error.errno)
        lib.init()
        show(lib.register_callback(print))
        """)
    assert client.shown == [[bindings.CR_ENOINIT], [bindings.CR_THREAD_CONTEXT]]


def test_callback_object_lives_as_long_as_the_library(client):
    client.run("""
        import gc
        lib = c.load_libcr()
        lib.init()
        lib.register_callback(lambda: lib.checkpoint(0))
        gc.collect()
        others = [c.cr_callback_t(lambda argument: 9) for _ in range(1000)]
        wait_for("done", 20)
        """, *["checkpoint /x/{}".format(number) for number in range(20)])
    assert client.status == 0 and client.log().count("callback end rc=0") == 20


def test_busy_interpreter_does_not_deadlock_with_the_dump(client):
    """Bug: threads held until the callback's end, one of them with the interpreter's lock."""
    client.run(REGISTER + """
lib.register_callback(callback)
for _ in range(2):
    threading.Thread(target=lambda: [None for _ in iter(lambda: len(results) < 300, False)],
                     daemon=True).start()
while len(results) < 300:
    pass
wait_for("done", 150)
show(results[1::2] == [[0, None, None]] * 150)
""", *["checkpoint /x/{}".format(number) for number in range(150)])
    assert client.shown == [[True]] and client.misuse() == []


def test_child_after_fork_has_nothing_of_libcr(client):
    client.run(REGISTER + """
lib.register_callback(callback)
wait_for("done")
lib.enter_cs(client_id)
pid = os.fork()
if pid == 0:
    try:
        lib.leave_cs(client_id)
    except c.LibraryError as error:
        os._exit(error.errno == c.CR_ENOINIT)
    os._exit(9)
show(os.WEXITSTATUS(os.waitpid(pid, 0)[1]))
lib.leave_cs(client_id)
""", "checkpoint /x/1")
    assert client.shown == [[1]]


# -- the stand-in itself --------------------------------------------------------------------------

def test_stand_in_takes_an_early_return_for_ready(client):
    client.run("""
        lib = c.load_libcr()
        lib.init()
        keep = c.cr_callback_t(lambda argument: 0)
        lib._functions["cr_register_callback"](keep, None, c.CR_THREAD_CONTEXT)
        wait_for("done")
        """, "checkpoint /x/1")
    assert client.log()[-4:] == ["callback end rc=0", "checkpoint flags=0 implied",
                                 "dumped /x/1", "done"]


def test_stand_in_kills_at_a_result_that_is_not_zero(client):
    client.run("""
        lib = c.load_libcr()
        lib.init()
        keep = c.cr_callback_t(lambda argument: 3)
        lib._functions["cr_register_callback"](keep, None, c.CR_THREAD_CONTEXT)
        wait_for("done")
        """, "checkpoint /x/1")
    assert client.status == -signal.SIGKILL
    assert client.log()[-1] == "killed by the callback's result"


def test_stand_in_blocks_all_signals_in_the_callback(client):
    client.run("""
        lib = c.load_libcr()
        lib.init()
        seen = []
        def callback():
            seen.append(len(signal.pthread_sigmask(signal.SIG_BLOCK, [])))
            seen.append(threading.get_ident() != threading.main_thread().ident)
        lib.register_callback(callback)
        wait_for("done")
        show(*seen)
        """, "checkpoint /x/1")
    assert client.shown[0][0] >= 59 and client.shown[0][1] is True


def test_stand_in_is_driven_through_a_fifo(client):
    os.mkfifo(client.commands_path)
    with started(client.command(REGISTER + """
lib.register_callback(callback)
wait_for("done", 2)
"""), env=client.environ) as process:
        with open(client.commands_path, "w") as fifo:
            fifo.write("checkpoint /x/1\n")
            fifo.flush()
            wait_until(lambda: os.path.exists(client.log_path) and "done" in client.log(),
                       TIMEOUT_S)
            fifo.write("mode slow=20\nrestart /x/2\n")
        assert process.wait(timeout=TIMEOUT_S) == 0
    assert [line for line in client.log() if line.startswith(("dumped", "restarted"))] == [
        "dumped /x/1", "restarted /x/2"]


def test_cr_run_stand_in_wants_omit(tmp_path):
    cr_run = os.path.join(FAKES, "cr_run")
    environ = dict(os.environ, FAKE_CR_RUN_LOG=str(tmp_path / "log"))
    assert subprocess.call([cr_run, "--omit", "sh", "-c", "exit 7"], env=environ) == 7
    assert subprocess.call([cr_run, "sh", "-c", "exit 7"], env=environ,
                           stderr=subprocess.DEVNULL) == 64
    assert (tmp_path / "log").read_text() == "--omit sh -c exit 7\nsh -c exit 7\n"


# -- the C library --------------------------------------------------------------------------------

def test_parent_death_signal_needs_no_other_library():
    bindings.set_parent_death_signal(0)
    with pytest.raises(OSError):
        bindings.set_parent_death_signal(4096)
