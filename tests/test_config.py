# SPDX-License-Identifier: GPL-2.0-or-later
"""The settings: what the environment may say, and what becomes of what it may not."""

import ast
import os
import signal

import pytest

import srun_cr
from srun_cr import Config, ConfigError, Operation, StepInfo

RTMIN = int(signal.SIGRTMIN)

COMMANDS = ("srun", "scontrol", "scancel", "criu", "cr_run")


def config(**variables):
    """Return the Config of an environment with these variables alone."""
    return Config.from_environ(variables)


# -- defaults and values ---------------------------------------------------------------------

def test_without_any_variable_the_settings_are_the_documented_ones(tmp_path, monkeypatch):
    monkeypatch.chdir(str(tmp_path))
    found = config()
    assert {name: getattr(found, name) for name in Config.__slots__} == {
        "engine": "auto", "directory": os.getcwd(), "keep": 2, "signals": {},
        "wait_s": 60.0, "step": None, "skip_completed": True, "app_signal": None,
        "app_ranks": "auto", "verbosity": 0, "restart_dir": None, "job_id": None,
        "requeue_id": "", "het_job_ids": (), "restart_count": 0, "task_pid": 0,
        "search_path": os.defpath,
        "temporary": "/tmp", "cwd": os.getcwd(),
        "commands": {name: [name] for name in COMMANDS},
        "libraries": {"libcr": None, "libslurm": None}}


def test_an_empty_variable_is_one_that_is_not_set(tmp_path, monkeypatch):
    monkeypatch.chdir(str(tmp_path))
    names = ["ENGINE", "DIR", "KEEP", "SIGNALS", "WAIT", "STEP", "SKIP_COMPLETED", "APP_SIGNAL",
             "APP_RANKS", "SRUN", "SCONTROL", "SCANCEL", "CRIU", "DEBUG"]
    slurm = ["SLURM_JOB_ID", "SLURM_RESTART_COUNT", "SLURM_RESTART_DIR", "SLURM_TASK_PID",
             "SLURM_CHECKPOINT_IMAGE_DIR", "SLURM_DEBUG", "SLURM_ARRAY_JOB_ID", "TMPDIR"]
    empty = dict.fromkeys(["SRUN_CR_" + name for name in names] + slurm, "")
    assert repr(config(**empty)) == repr(config())


@pytest.mark.parametrize("variables, name, value", [
    ({"SRUN_CR_ENGINE": "criu"}, "engine", "criu"),
    ({"SRUN_CR_ENGINE": "NONE"}, "engine", "none"),
    ({"SRUN_CR_ENGINE": "app", "SRUN_CR_APP_SIGNAL": "USR1"}, "engine", "app"),
    ({"SRUN_CR_DIR": "/scratch"}, "directory", "/scratch"),
    ({"SLURM_CHECKPOINT_IMAGE_DIR": "/images"}, "directory", "/images"),
    ({"SRUN_CR_DIR": "/a", "SLURM_CHECKPOINT_IMAGE_DIR": "/b"}, "directory", "/a"),
    ({"SRUN_CR_KEEP": "1"}, "keep", 1), ({"SRUN_CR_KEEP": "40"}, "keep", 40),
    ({"SRUN_CR_WAIT": "600"}, "wait_s", 600.0),
    ({"SRUN_CR_STEP": "solve-2_b.c+d"}, "step", "solve-2_b.c+d"),
    ({"SRUN_CR_STEP": "x" * 100}, "step", "x" * 100),
    ({"SRUN_CR_SKIP_COMPLETED": "no"}, "skip_completed", False),
    ({"SRUN_CR_SKIP_COMPLETED": "YES"}, "skip_completed", True),
    ({"SRUN_CR_APP_SIGNAL": "SIGUSR2"}, "app_signal", int(signal.SIGUSR2)),
    ({"SRUN_CR_APP_RANKS": "all"}, "app_ranks", "all"),
    ({"SRUN_CR_APP_RANKS": "0"}, "app_ranks", "0"),
    ({"SRUN_CR_DEBUG": "2"}, "verbosity", 2), ({"SLURM_DEBUG": "3"}, "verbosity", 3),
    ({"SRUN_CR_DEBUG": "1", "SLURM_DEBUG": "3"}, "verbosity", 1),
    ({"SLURM_DEBUG": "verbose"}, "verbosity", 0),
    ({"SLURM_RESTART_DIR": "12.cr"}, "restart_dir", "12.cr"),
    ({"SLURM_JOB_ID": "12"}, "job_id", "12"), ({"SLURM_JOBID": "13"}, "job_id", "13"),
    ({"SLURM_JOB_ID": "12", "SLURM_JOBID": "13"}, "job_id", "12"),
    ({"SLURM_RESTART_COUNT": "3"}, "restart_count", 3),
    ({"SLURM_TASK_PID": "4711"}, "task_pid", 4711),
    ({"PATH": "/a:/b"}, "search_path", "/a:/b"), ({"TMPDIR": "/t"}, "temporary", "/t")])
def test_a_variable_sets_what_it_is_for(variables, name, value):
    assert getattr(config(**variables), name) == value


def test_a_relative_directory_is_one_of_where_we_were_started(tmp_path, monkeypatch):
    monkeypatch.chdir(str(tmp_path))
    assert config(SRUN_CR_DIR="images").directory == os.path.join(os.getcwd(), "images")


def test_a_working_directory_that_was_removed_is_no_error(tmp_path, monkeypatch):
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(str(gone))
    gone.rmdir()
    assert config().cwd == "/"


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("text, words", [
    ("/opt/slurm/bin/x", ["/opt/slurm/bin/x"]), ("sudo -n x", ["sudo", "-n", "x"]),
    ("'/opt/my slurm/x' -v", ["/opt/my slurm/x", "-v"]), ("a\\ b", ["a b"])])
def test_a_command_may_be_given_with_arguments_and_quotes(name, text, words):
    commands = config(**{"SRUN_CR_" + name.upper(): text}).commands
    assert commands.pop(name) == words
    assert commands == {other: [other] for other in COMMANDS
                        if other != name}


# -- wrong values ----------------------------------------------------------------------------

@pytest.mark.parametrize("name, value", [
    ("SRUN_CR_ENGINE", "blrc"), ("SRUN_CR_ENGINE", "criu "), ("SRUN_CR_ENGINE", "app"),
    ("SRUN_CR_KEEP", "0"), ("SRUN_CR_KEEP", "-1"), ("SRUN_CR_KEEP", "two"),
    ("SRUN_CR_KEEP", "1.5"), ("SRUN_CR_WAIT", "0"), ("SRUN_CR_WAIT", "60s"),
    ("SRUN_CR_WAIT", "inf"), ("SRUN_CR_WAIT", "nan"),
    pytest.param("SRUN_CR_WAIT", "9" * 400, id="SRUN_CR_WAIT-400 digits"),
    ("SRUN_CR_STEP", "a/b"), ("SRUN_CR_STEP", ".."), ("SRUN_CR_STEP", ".hidden"),
    ("SRUN_CR_STEP", "-n"), ("SRUN_CR_STEP", "a b"), ("SRUN_CR_STEP", "a\n"),
    ("SRUN_CR_STEP", "x" * 101), ("SRUN_CR_STEP", "a\udcff"),
    ("SRUN_CR_SKIP_COMPLETED", "maybe"), ("SRUN_CR_SKIP_COMPLETED", "1"),
    ("SRUN_CR_APP_SIGNAL", "USR3"), ("SRUN_CR_APP_SIGNAL", "KILL"), ("SRUN_CR_APP_SIGNAL", "0"),
    ("SRUN_CR_APP_SIGNAL", "64"), ("SRUN_CR_APP_SIGNAL", "CHLD"),
    ("SRUN_CR_APP_RANKS", "1"), ("SRUN_CR_APP_RANKS", "none"),
    ("SRUN_CR_SIGNALS", "USR1"), ("SRUN_CR_SIGNALS", "USR1=restart"),
    ("SRUN_CR_SIGNALS", "=create"), ("SRUN_CR_SIGNALS", "USR1=create USR9=vacate"),
    ("SRUN_CR_SIGNALS", "USR1=create,USR2"), ("SRUN_CR_SIGNALS", "USR1==create"),
    ("SRUN_CR_SRUN", "srun 'x"), ("SRUN_CR_SCONTROL", '"'), ("SRUN_CR_SCANCEL", "a\\"),
    ("SRUN_CR_CRIU", "sudo -n 'criu"), ("SRUN_CR_SRUN", " "), ("SRUN_CR_CRIU", "\t "),
    ("SLURM_JOB_ID", "12.0"), ("SLURM_JOB_ID", "../12"), ("SLURM_JOB_ID", "-1"),
    ("SLURM_RESTART_COUNT", "-1"), ("SLURM_RESTART_COUNT", "once"),
    ("SLURM_TASK_PID", "-5"), ("SLURM_TASK_PID", "x")])
def test_a_wrong_value_is_named_with_its_variable_and_ends_us_with_status_2(name, value):
    with pytest.raises(ConfigError) as caught:
        config(**{name: value})
    text = str(caught.value)
    assert text.startswith(name) and "\n" not in text.replace(value, "")
    assert caught.value.exit_status == 2


def test_main_says_which_variable_is_wrong_and_returns_2(capfd, monkeypatch):
    monkeypatch.setenv("SRUN_CR_KEEP", "none")
    assert srun_cr.main(["true"]) == 2
    assert capfd.readouterr().err == (
        "srun_cr: error: SRUN_CR_KEEP=none: not a whole number of at least 1\n")


@pytest.mark.parametrize("text", ["60", "86400", "9999999", "999999999"])
def test_a_wait_that_is_accepted_is_one_that_can_be_waited_for(text):
    try:
        wait_s = config(SRUN_CR_WAIT=text).wait_s
    except ConfigError:
        assert int(text) > 86400
        return
    operation = Operation("create", "test", wait_s)
    read_fd, write_fd = os.pipe()
    os.write(write_fd, b"x")
    try:
        assert operation.wait([read_fd]) == [read_fd]
    finally:
        operation.close()
        os.close(read_fd)
        os.close(write_fd)


# -- signals ---------------------------------------------------------------------------------

@pytest.mark.parametrize("text, expected", [
    ("USR1=requeue USR2=create", {signal.SIGUSR1: "requeue", signal.SIGUSR2: "create"}),
    ("SIGTERM=vacate", {signal.SIGTERM: "vacate"}), ("10=create", {10: "create"}),
    ("usr1=create", {signal.SIGUSR1: "create"}),
    ("USR1=create,USR2=vacate", {signal.SIGUSR1: "create", signal.SIGUSR2: "vacate"}),
    ("  USR1=create\n\tHUP=vacate ,", {signal.SIGUSR1: "create", signal.SIGHUP: "vacate"}),
    ("RTMIN=create RTMIN+3=vacate SIGRTMAX-2=requeue",
     {RTMIN: "create", RTMIN + 3: "vacate", int(signal.SIGRTMAX) - 2: "requeue"}),
    ("", {}), (" , ", {})])
def test_signals_are_read_in_all_their_forms(text, expected):
    assert config(SRUN_CR_SIGNALS=text).signals == expected


@pytest.mark.parametrize("name", [
    "KILL", "STOP", "CHLD", "SIGCLD", "64", "RTMAX", "SEGV", "BUS", "FPE", "ILL", "TRAP", "SYS",
    "PIPE", "XFSZ", "32", "33", "0", "65", "-1", "RTMIN-1", "RTMIN+30", "RTMAX+1", "RTMIN+",
    "RTMIN+x", "USR1+1", "RTMIN+-1", "SIG", "SIGSIGUSR1", "", "_IGN", "SIG_IGN", "_SETMASK",
    "_UNBLOCK", "\u00b2", "1.5", "nal"])
def test_what_is_no_signal_or_must_not_be_trapped_is_refused(name):
    for variable, value in (("SRUN_CR_SIGNALS", name + "=create"), ("SRUN_CR_APP_SIGNAL", name)):
        if value:
            with pytest.raises(ConfigError) as caught:
                config(**{variable: value})
            assert str(caught.value).startswith(variable + "=")


# -- the job ---------------------------------------------------------------------------------

@pytest.mark.parametrize("variables, expected", [
    ({}, "12"),
    ({"SLURM_ARRAY_JOB_ID": "10", "SLURM_ARRAY_TASK_ID": "0"}, "10_0"),
    ({"SLURM_ARRAY_JOB_ID": "10", "SLURM_ARRAY_TASK_ID": "2"}, "10_2"),
    ({"SLURM_ARRAY_JOB_ID": "10"}, "12"),
    ({"SLURM_HET_JOB_ID": "11"}, "11"), ({"SLURM_PACK_JOB_ID": "11"}, "11"),
    ({"SLURM_HET_JOB_ID": "11", "SLURM_PACK_JOB_ID": "9"}, "11")])
def test_what_is_requeued_is_the_element_of_an_array_and_the_leader_of_a_het_job(
        variables, expected):
    assert config(SLURM_JOB_ID="12", **variables).requeue_id == expected


# -- immutable records -----------------------------------------------------------------------

def test_a_config_cannot_be_changed():
    found = config(SRUN_CR_SIGNALS="USR1=create")
    before = repr(found)
    for name in (*Config.__slots__, "new"):
        with pytest.raises(AttributeError):
            setattr(found, name, 1)
    assert repr(found) == before


def test_no_field_of_a_record_can_be_deleted():
    found = config()
    with pytest.raises(AttributeError):
        del found.engine
    assert found.engine == "auto"


def test_a_record_has_all_its_fields_and_no_other():
    fields = dict(job_id="1", step_id="0", node_list="n1", nodes=1, tasks=2)
    assert StepInfo(**fields).name == "1.0"
    with pytest.raises(TypeError):
        StepInfo(pid=3, **fields)
    del fields["tasks"]
    with pytest.raises(KeyError):
        StepInfo(**fields)


# -- one reader of the environment -----------------------------------------------------------

READING = ("environ", "environb", "getenv", "getenvb", "get_exec_path", "expandvars",
           "expanduser")


def environment_readers(source):
    """Return [(definition at module level, line)] of all that gets at os.environ."""
    readers = []
    for top in ast.parse(source).body:
        for node in ast.walk(top):
            if isinstance(node, ast.Attribute) and node.attr in READING:
                root = node.value
                while isinstance(root, ast.Attribute):
                    root = root.value
                found = isinstance(root, ast.Name) and root.id in ("os", "posix")
            else:
                found = (isinstance(node, ast.ImportFrom)
                         and any(alias.name in READING for alias in node.names))
            if found:
                readers.append((getattr(top, "name", None), node.lineno))
    return readers


@pytest.mark.parametrize("line", [
    "os.environ['X']", "os.getenv('X')", "os.environb", "from os import environ",
    "os.path.expanduser('~')", "[os.environ.get(n) for n in x]"])
def test_readers_of_the_environment_are_found_wherever_they_hide(line):
    assert environment_readers("def f(x):\n    " + line) == [("f", 2)]
    assert environment_readers("def f(environ):\n    environ['X']") == []


def test_nothing_reads_the_environment_but_given_environ_and_the_node_side():
    with open(srun_cr.__file__) as file:
        source = file.read()
    lines = source.splitlines()
    banners = [number for number in range(2, len(lines)) if lines[number].startswith("# ---")
               and lines[number - 2].startswith("# ---")]
    titles = [lines[number - 1] for number in banners]
    node_side = titles.index("# On the nodes")
    begin, end = banners[node_side], banners[node_side + 1]
    readers = environment_readers(source)
    assert "given_environ" in [name for name, _ in readers]
    assert [(name, line) for name, line in readers
            if name != "given_environ" and not begin < line - 1 < end] == []
