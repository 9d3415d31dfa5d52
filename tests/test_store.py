# SPDX-License-Identifier: GPL-2.0-or-later
"""What is on disk: claims, records and generations; nothing that was committed is lost."""

import json
import os
import signal
import stat
import subprocess
import sys

import pytest
from conftest import ROOT

import srun_cr
from srun_cr import (CheckpointError, Config, ConfigError, Generation, GenerationError, Messages,
                     SrunCrError, Store, StoreError, fsync_tree, given_generations,
                     private_directory, rewind_files)

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
COMMAND = ["prog", "a"]
ARGUMENTS = ["-n2", *COMMAND]


@pytest.fixture
def config(tmp_path):
    """Return a function that makes the Config of a job whose checkpoints go to tmp_path."""
    def make(**variables):
        environ = {"SRUN_CR_DIR": str(tmp_path), "SLURM_JOB_ID": "7"}
        environ.update(variables)
        return Config.from_environ(environ)
    return make


@pytest.fixture
def store(config):
    """Return a function that claims a step; all are given up at the end."""
    opened = []

    def make(arguments=ARGUMENTS, program="prog", **variables):
        opened.append(Store(config(**variables), arguments, program))
        return opened[-1]
    yield make
    for one in opened:
        one.close()


def manifest(images, **fields):
    """Return a manifest as the supervisor writes it."""
    return dict({"format": 1, "engine": "criu", "command": COMMAND, "run": 0, "committed": 1.5,
                 "requested": 1.0, "steps": ["7.0"], "tasks": len(images), "images": images,
                 "files": {}}, **fields)


def write_images(directory, text="image"):
    """Write two tasks' images, a directory and a file; return their sizes."""
    os.mkdir(os.path.join(directory, "task.0.ckpt"))
    for name in ("task.0.ckpt/pages-1.img", "task.0.ckpt/core-1.img", "task.1.ckpt"):
        with open(os.path.join(directory, name), "w") as file:
            file.write(text)
    return {name: fsync_tree(os.path.join(directory, name))
            for name in ("task.0.ckpt", "task.1.ckpt")}


def commit(store, text="image", **fields):
    """Commit one generation; return it."""
    partial = store.begin()
    return store.commit(partial, manifest(write_images(partial, text), **fields))


def numbers(store):
    return [generation.number for generation in store.generations()]


# -- claims ----------------------------------------------------------------------------------

def test_the_nth_invocation_of_a_command_line_claims_the_nth_directory(store):
    keys = [store().key for _ in range(9)]
    assert [key.rpartition(".")[2] for key in keys] == list("123456789")
    assert len({key.rpartition(".")[0] for key in keys}) == 1 and keys[0].startswith("prog-")


def test_other_command_lines_and_directories_are_counted_apart(store, monkeypatch, tmp_path):
    first = store().key
    assert store(["-n3", *COMMAND]).key.endswith(".1")
    assert store(["-n2", "prog", "a\0b"]).key.rpartition(".")[0] != first.rpartition(".")[0]
    monkeypatch.chdir(str(tmp_path))
    assert store().key.endswith(".1") and store().key.endswith(".2")


def test_a_run_after_a_requeue_finds_its_steps_again_in_the_same_order(store):
    first = [store(), store()]
    keys = [one.key for one in first]
    for one in first:
        one.close()
    for count in ("1", "2"):
        again = [store(SLURM_RESTART_COUNT=count), store(SLURM_RESTART_COUNT=count)]
        assert [one.key for one in again] == keys
        for one in again:
            one.close()


def test_parallel_processes_claim_distinct_numbers_without_a_gap(tmp_path):
    script = ("import sys; sys.path.insert(0, {!r})\nimport srun_cr\n"
              "config = srun_cr.Config.from_environ("
              "{{'SRUN_CR_DIR': {!r}, 'SLURM_JOB_ID': '7'}})\n"
              "print('ready', flush=True); sys.stdin.readline()\n"
              "for _ in range(5):\n"
              "    print(srun_cr.Store(config, ['prog'], 'prog').key)\n")
    processes = [subprocess.Popen(
        [sys.executable, "-c", script.format(ROOT, str(tmp_path))], stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, universal_newlines=True) for _ in range(4)]
    try:
        for process in processes:
            assert process.stdout.readline() == "ready\n"
        for process in processes:
            process.stdin.write("\n")
            process.stdin.flush()
        claimed = sorted(int(key.rpartition(".")[2]) for process in processes
                         for key in process.communicate(timeout=30)[0].split())
    finally:
        for process in processes:
            process.kill()
            process.wait()
            process.stdin.close()
            process.stdout.close()
    assert claimed == list(range(1, 21))


def test_a_claim_that_another_makes_at_the_same_moment_is_left_to_it(store, monkeypatch):
    base = store().key.rpartition(".")[0]
    real, lost = os.mkdir, []

    def beaten(path, *arguments, **options):
        if path.endswith((base + ".2", base + ".3")) and path not in lost and ".claims" in path:
            lost.append(path)
            real(path, *arguments, **options)   # the other's
        return real(path, *arguments, **options)
    monkeypatch.setattr(os, "mkdir", beaten)
    assert store().key == base + ".4" and len(lost) == 2


@pytest.mark.parametrize("program", ["", "/", "..", "-rf", "a/b c", "\udcff\udcfe", "\u00e9t\u00e9",
                                     "x" * 300, ".hidden", "a\nb"])
def test_whatever_the_program_is_called_the_key_is_a_plain_name(store, program):
    key = store(["\udcff", "\n", ""], program).key
    assert key.rpartition("-")[0] and len(key) < 100 and key[0].isalnum()
    assert all(c.isalnum() or c in "._+-" for c in key) and key.encode("ascii")


def test_a_key_that_was_given_is_taken_as_it_is(store):
    one = store(SRUN_CR_STEP="solve")
    assert one.key == "solve" and one.path.endswith("/7.cr/solve")


def test_a_second_srun_cr_with_the_same_given_key_is_kept_away_until_the_first_is_done(store):
    first = store(SRUN_CR_STEP="solve")
    partial = first.begin()
    with pytest.raises(StoreError) as caught:
        store(SRUN_CR_STEP="solve")
    assert "SRUN_CR_STEP" in str(caught.value) and first.path in str(caught.value)
    assert os.path.isdir(partial)   # what the first is writing was not taken for a leftover
    first.close()
    store(SRUN_CR_STEP="solve")


# -- a directory for us alone ----------------------------------------------------------------

def test_what_is_created_is_for_us_alone_whatever_the_umask(tmp_path):
    mask = os.umask(0)
    try:
        private_directory(str(tmp_path / "new"))
    finally:
        os.umask(mask)
    assert stat.S_IMODE(os.stat(str(tmp_path / "new")).st_mode) == 0o700


def test_a_directory_of_ours_that_others_can_read_is_closed(tmp_path):
    (tmp_path / "open").mkdir()
    os.chmod(str(tmp_path / "open"), 0o755)
    private_directory(str(tmp_path / "open"))
    assert stat.S_IMODE(os.stat(str(tmp_path / "open")).st_mode) == 0o700


@pytest.mark.parametrize("kind", ["link", "dangling link", "file", "fifo"])
def test_what_is_no_directory_is_refused(tmp_path, kind):
    path, real = str(tmp_path / "path"), tmp_path / "real"
    real.mkdir()
    if kind == "file":
        (tmp_path / "path").write_text("")
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        os.symlink(str(real) + ("" if kind == "link" else ".gone"), path)
    os.chmod(str(real), 0o755)
    with pytest.raises(StoreError) as caught:
        private_directory(path)
    assert path in str(caught.value) and stat.S_IMODE(real.stat().st_mode) == 0o755


@as_root
def test_a_directory_of_another_user_is_refused(tmp_path):
    (tmp_path / "theirs").mkdir(0o700)
    os.chown(str(tmp_path / "theirs"), 4711, -1)
    with pytest.raises(StoreError) as caught:
        private_directory(str(tmp_path / "theirs"))
    assert "4711" in str(caught.value)


@as_root
def test_a_job_directory_that_another_user_made_first_is_refused(store, tmp_path):
    (tmp_path / "7.cr").mkdir(0o777)
    os.chown(str(tmp_path / "7.cr"), 4711, -1)
    with pytest.raises(StoreError):
        store()
    assert os.listdir(str(tmp_path / "7.cr")) == []


def test_a_parent_that_is_missing_is_told_with_the_variable_to_set(store, tmp_path):
    with pytest.raises(StoreError) as caught:
        store(SRUN_CR_DIR=str(tmp_path / "missing"))
    assert "SRUN_CR_DIR" in str(caught.value)


def test_a_lock_that_is_a_link_is_not_followed(store, tmp_path):
    one = store(SRUN_CR_STEP="solve")
    one.close()
    os.unlink(os.path.join(one.path, "lock"))
    os.symlink(str(tmp_path / "victim"), os.path.join(one.path, "lock"))
    with pytest.raises(StoreError):
        store(SRUN_CR_STEP="solve")
    assert not (tmp_path / "victim").exists()


# -- generations -----------------------------------------------------------------------------

def test_a_generation_is_invisible_until_it_is_committed(store):
    one = store()
    partial = one.begin()
    assert partial.endswith("/000001.partial") and os.path.isdir(partial)
    sizes = write_images(partial)
    assert one.generations() == []
    generation = one.commit(partial, manifest(sizes))
    assert numbers(one) == [1] and not os.path.exists(partial)
    assert generation.path == partial[:-len(".partial")]
    generation.verify()
    assert generation.size_bytes == 15 and one.generations()[0].manifest["command"] == COMMAND


def test_what_is_written_is_for_us_alone(store):
    one = store()
    mask = os.umask(0)
    try:
        one.start_run("criu", None)
        generation = commit(one)
    finally:
        os.umask(mask)
    paths = [one.path, generation.path] + [os.path.join(one.path, name) for name in
                                           ("step.json", "lock", "events.log")]
    paths.append(os.path.join(generation.path, "manifest.json"))
    assert [oct(os.stat(path).st_mode & 0o077) for path in paths] == ["0o0"] * len(paths)


def test_the_newest_come_first_and_only_so_many_are_kept(store):
    one = store(SRUN_CR_KEEP="2")
    for count in range(1, 6):
        generation = commit(one)
        assert generation.number == count
        one.prune()
        assert numbers(one) == list(range(count, max(0, count - 2), -1))
        one.generations()[0].verify()
    assert not [name for name in os.listdir(one.path) if name.endswith(".partial")]


def test_a_number_is_never_used_for_two_committed_generations(store):
    one = store(SRUN_CR_KEEP="1")
    seen = []
    for step in range(8):
        if step % 3 == 2:
            one.discard(one.begin())    # an operation that failed
        seen.append(commit(one).number)
        one.prune()
    assert len(set(seen)) == len(seen) and seen == sorted(seen)


def test_the_number_of_an_unfinished_generation_is_not_taken_by_the_next(store):
    one = store()
    assert one.begin() != one.begin()


def test_generations_beyond_six_digits_are_in_the_order_of_their_numbers(store, config):
    one = store()
    for name in ("999999", "1000000", "000002"):
        os.mkdir(os.path.join(one.path, name))
    assert numbers(one) == [1000000, 999999, 2]
    assert [g.number for g in given_generations(
        config(SLURM_RESTART_DIR=one.path), one.key, COMMAND)] == [1000000, 999999, 2]


def test_other_names_in_the_directory_are_no_generations(store):
    one = store()
    for name in ("000001.partial", "1", "staging", "000002.partial.partial", "00000x"):
        os.mkdir(os.path.join(one.path, name))
    assert one.generations() == []


def test_what_a_killed_srun_cr_left_unfinished_is_removed_and_nothing_else(store):
    one = store(SRUN_CR_STEP="solve")
    commit(one)
    write_images(one.begin())
    one.close()
    again = store(SRUN_CR_STEP="solve")
    assert numbers(again) == [1]
    assert [name for name in os.listdir(again.path) if "partial" in name] == []
    again.generations()[0].verify()


def test_a_commit_that_fails_says_so_and_leaves_the_one_before(store, monkeypatch):
    one = store()
    commit(one)
    partial = one.begin()

    def full(fd, data):
        raise OSError(28, os.strerror(28))
    monkeypatch.setattr(srun_cr, "write_all", full)
    with pytest.raises(CheckpointError) as caught:
        one.commit(partial, manifest({}))
    assert os.strerror(28) in str(caught.value)
    one.discard(partial)
    assert numbers(one) == [1] and not [n for n in os.listdir(one.path) if n.startswith("000002")]


@pytest.mark.parametrize("function", ["rename", "fsync", "open", "write", "mkdir",
                                      "unlink", "rmdir"])
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("call", range(1, 7))
def test_kill_9_at_any_step_of_a_commit_leaves_a_sound_generation(store, function, when, call):
    one = store(SRUN_CR_STEP="solve", SRUN_CR_KEEP="1")
    commit(one, "first")
    calls = []
    real = getattr(os, function)

    def deadly(*arguments, **options):
        calls.append(function)
        if len(calls) == call and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        result = real(*arguments, **options)
        if len(calls) == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    pid = os.fork()
    if pid == 0:
        try:
            setattr(os, function, deadly)
            one.begin()
            partial = os.path.join(one.path, "000002.partial")
            one.commit(partial, manifest(write_images(partial, "second one")))
            one.prune()
        finally:
            os._exit(0)
    status = os.waitpid(pid, 0)[1]
    # A commit has fewer than six of some of these calls, but one of each.
    assert os.WIFSIGNALED(status) or call > 1
    one.close()

    again = store(SRUN_CR_STEP="solve")
    sizes = []
    for generation in again.generations():
        generation.verify()
        sizes.append((generation.number, generation.size_bytes))
    assert sizes and set(sizes) <= {(1, 15), (2, 30)}
    assert commit(again).number == sizes[0][0] + 1
    assert again.generations()[0].number == sizes[0][0] + 1


# -- verify ----------------------------------------------------------------------------------

def truncate(path):
    os.truncate(path, os.path.getsize(path) - 1)


def extend(path):
    with open(path, "a") as file:
        file.write("x")


def add_beside(path):
    with open(path + ".new", "w"):
        pass


def link(path):
    os.rename(path, path + ".moved")
    os.symlink(path + ".moved", path)


@pytest.mark.parametrize("name, change", [
    ("task.1.ckpt", os.unlink), ("task.1.ckpt", truncate), ("task.1.ckpt", extend),
    ("task.1.ckpt", link), ("task.0.ckpt/pages-1.img", os.unlink),
    ("task.0.ckpt/pages-1.img", truncate), ("task.0.ckpt/pages-1.img", extend),
    ("task.0.ckpt/pages-1.img", add_beside), ("task.0.ckpt/core-1.img", link)])
def test_verify_names_an_image_that_is_not_as_it_was_committed(store, name, change):
    generation = commit(store())
    generation.verify()
    change(os.path.join(generation.path, *name.split("/")))
    with pytest.raises(GenerationError) as caught:
        generation.verify()
    assert os.path.join(generation.path, name.split("/")[0]) in str(caught.value)


def test_an_image_named_outside_the_generation_is_refused(store):
    one = store()
    partial = one.begin()
    generation = one.commit(partial, manifest({"../lock": [0, 1]}))
    with pytest.raises(GenerationError):
        generation.verify()


@pytest.mark.parametrize("text", [
    b"", b"{", b"[]", b"null", b"5", b"\xff\xfe", b"{}", b'{"format": 2, "images": {}}', b'"x"',
    b'{"format": "1", "images": {}, "engine": "criu"}', b'{"format": 1}',
    b'{"format": 1, "images": [], "engine": "criu"}', b'{"format": 1, "images": {}}',
    b'{"format": 1, "images": {}, "engine": "lost"}',
    b'{"format": 1, "images": {}, "engine": ["criu"]}', b'{"format": 1, "engine": "criu"}'])
def test_garbage_for_a_manifest_is_one_line_that_names_it(store, text):
    generation = commit(store())
    path = os.path.join(generation.path, "manifest.json")
    with open(path, "wb") as file:
        file.write(text)
    with pytest.raises(GenerationError) as caught:
        Generation(generation.path).verify()
    assert str(caught.value).startswith(path) and "\n" not in str(caught.value)


@pytest.mark.parametrize("size", [None, 5, "5", [], [5], ["5", 1], {}, [5, 1, 1], [10, 2]])
def test_a_size_in_the_manifest_that_is_none_is_told_like_a_wrong_one(store, size):
    one = store()
    partial = one.begin()
    write_images(partial)
    generation = one.commit(partial, manifest({"task.1.ckpt": size}))
    with pytest.raises(GenerationError):
        generation.verify()


@pytest.mark.parametrize("field", sorted(manifest({})))
@pytest.mark.parametrize("value", ["missing", None, 5, "x", [], {}, [[]], {"a": 5}])
def test_no_manifest_raises_anything_that_a_user_cannot_be_told(store, config, field, value):
    one = store()
    partial = one.begin()
    content = manifest(write_images(partial))
    if value == "missing":
        del content[field]
    else:
        content[field] = value
    generation = one.commit(partial, content)
    for use in (generation.verify, lambda: generation.size_bytes,
                lambda: rewind_files(generation, Messages()),
                lambda: given_generations(config(SLURM_RESTART_DIR=one.path), one.key, COMMAND)):
        try:
            use()
        except SrunCrError:
            pass


@pytest.mark.parametrize("field, values", [
    ("command", (None, "prog", 5, [5])), ("run", (None, "0", [])), ("committed", (None, "now")),
    ("images", (None, 5)), ("engine", (None, "lost"))])
def test_a_manifest_without_what_a_restart_reads_is_no_generation(store, field, values):
    one = store()
    for value in values + ("missing",):
        partial = one.begin()
        content = dict(manifest(write_images(partial)), **{field: value})
        if value == "missing":
            del content[field]
        with pytest.raises(GenerationError):
            one.commit(partial, content).verify()


def test_a_generation_or_a_manifest_that_is_a_link_is_refused(store):
    one = store()
    generation = commit(one)
    os.symlink(generation.path, os.path.join(one.path, "000009"))
    with pytest.raises(GenerationError):
        Generation(os.path.join(one.path, "000009")).verify()
    path = os.path.join(generation.path, "manifest.json")
    os.rename(path, path + ".real")
    os.symlink(path + ".real", path)
    with pytest.raises(GenerationError):
        Generation(generation.path).verify()


@as_root
def test_a_generation_of_another_user_is_refused(store):
    generation = commit(store())
    os.chown(generation.path, 4711, -1)
    with pytest.raises(GenerationError):
        Generation(generation.path).verify()


# -- step.json and events.log ----------------------------------------------------------------

def test_a_step_is_completed_only_for_a_later_run_of_the_script(store):
    one = store(SRUN_CR_STEP="solve")
    assert one.completed() is None
    one.start_run("criu", None)
    assert one.completed() is None
    one.end_run(3 << 8, completed=True)
    assert one.completed() is None      # a loop in this very run
    one.close()
    same = store(SRUN_CR_STEP="solve")
    assert same.completed() is None
    same.close()
    assert store(SRUN_CR_STEP="solve", SLURM_RESTART_COUNT="1").completed() == 3 << 8


def test_a_step_that_was_stopped_or_never_ended_is_not_completed(store):
    one = store(SRUN_CR_STEP="solve")
    one.start_run("criu", None)
    one.end_run(0, completed=False)
    one.close()
    stopped = store(SRUN_CR_STEP="solve", SLURM_RESTART_COUNT="1")
    assert stopped.completed() is None
    stopped.start_run("criu", commit(stopped))
    stopped.close()
    later = store(SRUN_CR_STEP="solve", SLURM_RESTART_COUNT="2")
    assert later.completed() is None
    assert [run["from"] is None for run in later.record["runs"]] == [True, False]


def test_a_run_that_follows_a_completed_one_is_the_one_that_counts(store):
    one = store(SRUN_CR_STEP="solve")
    one.start_run("criu", None)
    one.end_run(0, completed=True)
    one.start_run("criu", None)
    one.close()
    assert store(SRUN_CR_STEP="solve", SLURM_RESTART_COUNT="1").completed() is None


@pytest.mark.parametrize("text", [
    b"", b"{", b"null", b"[]", b"\xff", b"{}", b'{"format": 1}', b'{"format": 2, "runs": []}',
    b'{"format": 1, "runs": {}}', b'{"format": 1, "runs": [5]}', b'{"format": 1, "runs": [{}]}',
    b'{"format": 1, "runs": [{"restart_count": "0", "completed": true, "status": 0}]}',
    b'{"format": 1, "runs": [{"restart_count": 0, "completed": true, "status": "x"}]}'])
def test_garbage_in_step_json_is_one_line_that_names_it_and_what_to_do(store, text):
    one = store(SRUN_CR_STEP="solve")
    one.close()
    path = os.path.join(one.path, "step.json")
    with open(path, "wb") as file:
        file.write(text)
    with pytest.raises(StoreError) as caught:
        store(SRUN_CR_STEP="solve", SLURM_RESTART_COUNT="1").completed()
    assert str(caught.value).startswith(path) and "move" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_step_json_that_is_a_link_is_refused(store, tmp_path):
    one = store(SRUN_CR_STEP="solve")
    one.start_run("criu", None)
    one.close()
    path = os.path.join(one.path, "step.json")
    os.rename(path, str(tmp_path / "elsewhere"))
    os.symlink(str(tmp_path / "elsewhere"), path)
    with pytest.raises(StoreError):
        store(SRUN_CR_STEP="solve")


def test_arguments_of_any_bytes_survive_in_the_record(store):
    arguments = ["prog", "\udcff\udc80", "a\nb", "\u00e9", ""]
    one = store(arguments, SRUN_CR_STEP="solve")
    one.start_run("criu", None)
    one.close()
    assert store(arguments, SRUN_CR_STEP="solve").record["arguments"] == arguments


def test_each_line_of_events_log_is_one_json_object(store):
    one = store()
    one.start_run("criu", None)
    one.log_event("failed", why="two\nlines \udcff \u00e9", none=None)
    one.end_run(0, completed=True)
    with open(os.path.join(one.path, "events.log"), "rb") as file:
        lines = file.read().decode("ascii").split("\n")
    assert lines.pop() == ""
    events = [json.loads(line) for line in lines]
    assert [event["event"] for event in events] == ["start", "failed", "end"]
    assert events[1]["why"] == "two\nlines \udcff \u00e9"
    assert all(event["time"] > 1e9 and event["restart_count"] == 0 for event in events)


def test_a_full_disk_loses_an_event_but_ends_no_job(store, monkeypatch):
    one = store()
    real, opened = os.open, []

    def full(path, *arguments, **options):
        if str(path).endswith("events.log"):
            opened.append(path)
            return real("/dev/full", os.O_WRONLY)
        return real(path, *arguments, **options)
    before = os.listdir("/proc/self/fd")
    monkeypatch.setattr(os, "open", full)
    one.log_event("failed", why="x")
    monkeypatch.undo()
    assert opened and len(os.listdir("/proc/self/fd")) == len(before)
    one.log_event("later")
    with open(os.path.join(one.path, "events.log")) as file:
        assert json.loads(file.read())["event"] == "later"


def test_an_events_log_that_cannot_be_opened_ends_no_job(store, tmp_path):
    one = store()
    os.symlink(str(tmp_path / "victim"), os.path.join(one.path, "events.log"))
    one.log_event("x")
    assert not (tmp_path / "victim").exists()


def test_a_record_that_cannot_be_written_is_told_and_the_old_one_stays(store, monkeypatch):
    one = store(SRUN_CR_STEP="solve")
    one.start_run("criu", None)

    def full(fd, data):
        raise OSError(28, os.strerror(28))
    monkeypatch.setattr(srun_cr, "write_all", full)
    with pytest.raises(StoreError):
        one.end_run(0, completed=True)
    monkeypatch.undo()
    one.close()
    again = store(SRUN_CR_STEP="solve", SLURM_RESTART_COUNT="1")
    assert len(again.record["runs"]) == 1 and again.completed() is None
    assert not [name for name in os.listdir(again.path) if name.endswith(".new")]


# -- given generations -----------------------------------------------------------------------

@pytest.fixture
def given(store, config):
    """Return (a step with generations 1 and 2, what given_generations() finds for a path)."""
    one = store()
    commit(one)
    commit(one)

    def find(path, key=one.key, command=COMMAND):
        found = given_generations(config(SLURM_RESTART_DIR=path), key, command)
        return [generation.path for generation in found]
    return one, find


def test_a_generation_a_step_or_a_job_can_be_given(given):
    one, find = given
    both = [os.path.join(one.path, name) for name in ("000002", "000001")]
    assert find(both[1]) == both[1:]
    assert find(both[1] + "/") == both[1:]
    assert find(one.path) == both and find(one.path + "//") == both
    assert find(one.job_directory) == both


def test_a_relative_path_is_one_of_where_we_were_started(given, monkeypatch):
    one, find = given
    monkeypatch.chdir(one.job_directory)
    assert find(one.key) == [os.path.join(os.getcwd(), one.key, name)
                             for name in ("000002", "000001")]


def test_a_step_that_the_given_job_lacks_begins_anew(given):
    one, find = given
    assert find(one.job_directory, key="other-1.1") == []


def test_a_checkpoint_of_another_command_is_refused_with_both_named(given):
    one, find = given
    for path in (one.path, one.path + "/000001", one.job_directory):
        with pytest.raises(ConfigError) as caught:
            find(path, command=["prog", "b c"])
        text = str(caught.value)
        assert text.startswith("SLURM_RESTART_DIR=" + path)
        assert "`prog a`" in text and "`prog 'b c'`" in text


def test_what_holds_no_checkpoint_is_refused(given, tmp_path):
    one, find = given
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "empty", tmp_path / "file", tmp_path / "missing",
                 tmp_path / "missing.cr"):
        with pytest.raises(ConfigError) as caught:
            find(str(path))
        assert str(caught.value).startswith("SLURM_RESTART_DIR=" + str(path))


def test_an_unreadable_generation_does_not_hide_the_sound_one_before_it(given):
    one, find = given
    os.unlink(os.path.join(one.path, "000002", "manifest.json"))
    assert find(one.path)[-1].endswith("000001")


# -- the tasks' output files -----------------------------------------------------------------

def rewind(store, path, size, inode=None):
    inode = os.stat(path).st_ino if inode is None else inode
    generation = commit(store(), files={path: [size, inode]})
    rewind_files(generation, Messages())


def test_a_file_that_has_grown_is_cut_back_and_the_user_told(store, tmp_path, capfd):
    path = str(tmp_path / "out")
    (tmp_path / "out").write_text("before after")
    rewind(store, path, 6)
    assert (tmp_path / "out").read_text() == "before"
    assert path in capfd.readouterr().err


@pytest.mark.parametrize("size", [12, 13, 1000])
def test_a_file_that_has_not_grown_is_left_alone(store, tmp_path, capfd, size):
    (tmp_path / "out").write_text("before after")
    rewind(store, str(tmp_path / "out"), size)
    assert (tmp_path / "out").read_text() == "before after"
    assert capfd.readouterr().err == ""


def test_another_file_of_that_name_is_left_alone(store, tmp_path):
    (tmp_path / "out").write_text("before after")
    rewind(store, str(tmp_path / "out"), 6, inode=os.stat(str(tmp_path)).st_ino)
    assert (tmp_path / "out").read_text() == "before after"


def test_a_link_a_fifo_and_what_is_gone_are_left_alone(store, tmp_path):
    (tmp_path / "real").write_text("before after")
    os.symlink(str(tmp_path / "real"), str(tmp_path / "link"))
    os.mkfifo(str(tmp_path / "fifo"))
    rewind(store, str(tmp_path / "link"), 6)
    rewind(store, str(tmp_path / "fifo"), 0)
    rewind(store, str(tmp_path / "gone"), 0, inode=1)
    assert (tmp_path / "real").read_text() == "before after"
