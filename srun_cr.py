#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Run a parallel job step with checkpoint/restart support.

The command line is srun's, unchanged: write `srun_cr` where a job script says `srun`.  This file
is the program; `srun_cr_ctypes.py` beside it holds what only ctypes can do.  Standard library
only, Python 3.6 and up.  Importing does nothing: `main()`, or `Supervisor` with a `Config`, run a
step; `Store` reads what was written.

THREADS

    thread      owns                                 may read            woken by
    main        all state: srun, signals, terminal,  everything          the wakeup pipe: signal
                sockets, step records                                    numbers, 0 for an event
    worker      one operation: the helper steps,     Config, StepInfo,   its helpers' output, the
                the generation being written         its Operation       operation's own pipe
    faults      nothing                              nothing             sigwaitinfo()
    libcr's     the answer to one request of BLCR    Blcr.launched       libcr (engine blcr only)

The others hand results to main with `post()`, and touch nothing else.  While libcr's thread is
in its callback, main can enter no critical section: it forwards signals, and leaves srun and the
sockets alone until it can.

STATES

    LAUNCHING -> RUNNING <-> CHECKPOINTING -> (RUNNING | STOPPING -> REQUEUED) -> DONE

    LAUNCHING       srun runs, its step is not known yet
    CHECKPOINTING   the worker writes a generation; srun's end cancels that
    STOPPING        the generation is committed, its tasks were ended; srun is waited for
    REQUEUED        Slurm has accepted the requeue; nothing of the script may run any more
"""

if __name__ == "__main__":
    # Ctrl-C before main() has its handlers: death by it, without a traceback.
    import signal
    if signal.getsignal(signal.SIGINT) == signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)

import errno
import os
import select
import selectors
import signal
import socket
import stat
import struct
import sys
import time
from collections import OrderedDict, deque

MYPY = False  # typing takes longer to import than everything else here together
if MYPY:
    import subprocess
    from typing import (Any, Callable, Deque, Dict, Iterable, Iterator, List, Mapping, Optional,
                        Sequence, Set, Tuple, Type, Union)

__version__ = "0.1.0"


# ---------------------------------------------------------------------------------------------
# Constants
# ---------------------------------------------------------------------------------------------

EXIT_CONFIG = 2             # a bad SRUN_CR_* value
EXIT_STOPPED = 75           # EX_TEMPFAIL: checkpointed and stopped, not finished
EXIT_FAILURE = 125          # our own failure, before srun ran
EXIT_CANNOT_EXECUTE = 126
EXIT_NOT_FOUND = 127

CR_SIGNUM = 64              # libcr's own: never caught, blocked or forwarded            [libcr.h]
SOCKET_PATH_MAX_BYTES = 107     # sun_path less the NUL                                  [unix(7)]
LAUNCH_NODELIST_MAX_BYTES = 32768   # what the original's reader allows
LAUNCH_READ_TIMEOUT_S = 5.0
LAUNCH_PAUSE_S = 0.5        # before accept() is tried again without a descriptor left
LAUNCH_BACKLOG = 128        # a full backlog blocks srun <= 18.08 for good
COMMAND_TIMEOUT_S = 60.0    # scontrol and scancel; slurmctld may be busy
STOP_TIMEOUT_S = 30.0       # from the end of all tasks to that of srun
STEP_END_S = 1.0            # from the end of a step to that of its srun
KILL_TIMEOUT_S = 10.0       # from SIGTERM to SIGKILL
REQUEUE_END_TIMEOUT_S = 600.0   # how long Slurm may take to end a job it has requeued
SHELL_GRACE_S = 1.0         # from Slurm's SIGTERM until a shell that lives on is stopped
PARENT_POLL_S = 0.25        # only while we wait for our own end after a requeue
CRITICAL_RETRY_S = 0.02     # only while BLCR checkpoints us
APP_POLL_S = 0.05
APP_SETTLE_S = 5.0          # no other rank's file so long after rank 0's: rank 0 writes alone
REPORT_LINE_MAX_BYTES = 900     # srun may interleave longer lines of several nodes
STALE_JOB_S = 60.0          # clocks of nodes and file servers differ by less
STEP_FORMAT = 1             # of step.json and manifest.json

FAULTS = frozenset((signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGTRAP,
                    signal.SIGSYS))
# Python ignores these two before any of our code runs; what they were before is not to be known.
PYTHON_IGNORES = frozenset((signal.SIGPIPE, signal.SIGXFSZ))
# Taken by sigwaitinfo() in a thread of their own.  A handler written in Python returns to the
# instruction that faulted, for ever; blocked instead, a real fault still kills, as the kernel
# forces it, and one that another process sent is read from the queue.  The other two: si_pid
# tells what our own write() raised from what somebody sent.
QUEUED = FAULTS | PYTHON_IGNORES
# The C library keeps 32 and 33 to itself.
ALL_SIGNALS = frozenset(range(1, signal.NSIG)) - {32, 33, CR_SIGNUM}
NOT_CAUGHT = frozenset((signal.SIGKILL, signal.SIGSTOP)) | QUEUED
STOP_SIGNALS = (signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU)
# After one of these srun's end is no completion: somebody wanted it.
ENDING_SIGNALS = frozenset((signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT,
                            signal.SIGXCPU, signal.SIGABRT))

# Runs this very file on another node: no dependence on PYTHON* variables, on the user's directory
# (where a random.py may stand) or on the name under which it was copied; byte code is cached.
BOOTSTRAP = ("import sys;from importlib.machinery import SourceFileLoader as L;"
             "m=type(sys)('srun_cr');m.__file__=sys.argv[1];sys.modules['srun_cr']=m;"
             "L('srun_cr',sys.argv[1]).exec_module(m);sys.exit(m.node_main(sys.argv[2:]))")

# Every srun option of 17.11 to 26.05: long name[,letter], `=` takes an argument, `?` may take
# one; `/R` followed by the new kind where release R changed it; @first-last where not all
# releases have it.
SRUN_OPTIONS = """
accel-bind= account,A= acctg-freq= async@26.05- autocomplete=@23.02- bb= bbf= bcast?
bcast-exclude=@21.08- begin,b= blrts-image=@-17.11 chdir,D= checkpoint=@-19.05
checkpoint-dir=@-18.08 cluster,M= cluster-constraint= clusters,M= cnload-image=@-17.11
comment= compress? conn-type=@-17.11 consolidate-segments@25.11- constraint,C=
container=@21.08- container-id=@23.02- container-type=@26.05- context=@21.08- contiguous
core-spec,S= cores-per-socket= cpu-bind= cpu-freq= cpu_bind= cpus-per-gpu=@18.08-
cpus-per-task,c= deadline= debugger-test delay-boot= dependency,d= disable-status,X
distribution,m= epilog= error,e= exact@20.11- exclude,x= exclusive? export=
external-launcher/24.05?@23.11- extra=@23.02- extra-node-info,B= geometry,g=@-17.11
get-user-env?@-18.08 gid=@-22.05 gpu-bind=@18.08- gpu-freq=@18.08- gpus,G=@18.08-
gpus-per-node=@18.08- gpus-per-socket=@18.08- gpus-per-task=@18.08- gres= gres-flags= help,h
het-group=@20.02- hint= hold,H ignore-signals=@26.05- immediate,I? input,i= interactive@20.11-
ioload-image=@-17.11 job-name,J= jobid= join,j@-18.08 kill-on-bad-exit,K? label,l
launch-cmd@-18.08 launcher-opts=@-18.08 licenses,L= linux-image=@-17.11 mail-type= mail-user=
max-exit-timeout=@-17.11 mcs-label= mem= mem-bind= mem-per-cpu= mem-per-gpu=@18.08-
mem-update=@26.05- mem_bind=@-18.08 mincores=@-18.08 mincpus= minsockets=@-18.08
minthreads=@-18.08 mloader-image=@-17.11 mpi= msg-timeout= multi-prog network= nice?
no-allocate,Z no-kill,k/19.05? no-rotate,R@-17.11 nodefile,F=@19.05- nodelist,w= nodes,N=
ntasks,n= ntasks-per-core= ntasks-per-gpu=@20.11- ntasks-per-node= ntasks-per-socket=
ntasks-per-tres=@20.11- oom-kill-step?@24.11- open-mode= output,o= overcommit,O
overlap/22.05?@20.11- oversubscribe,s pack-group= parsable@26.05- partition,p= power=@-23.11
prefer=@22.05- preserve-env,E preserve-slurm-env,E@-18.08 priority= profile= prolog=
propagate? pty/23.02? qos,q= quiet,Q quit-on-interrupt ramdisk-image=@-17.11 reboot
relative,r= reservation= resources=@25.11- restart-dir=@-18.08 resv-ports? runjob-opts=@-17.11
segment=@24.05- send-libs?@21.08- share,s@-18.08 signal= slurmd-debug= sockets-per-node=
spread-job spread-segments@25.11- stepmgr@24.05- switches= task-epilog= task-prolog=
tasks-per-node= test-only thread-spec= threads,T= threads-per-core= time,t= time-min= tmp=
treewidth=@23.11- tres-bind=@23.11- tres-per-task=@23.02- uid=@-22.05 unbuffered,u usage
use-min-nodes verbose,v version,V wait,W= wait-for-children@25.05- wckey= whole@20.11- x11?
"""


# ---------------------------------------------------------------------------------------------
# Exceptions
# ---------------------------------------------------------------------------------------------

class SrunCrError(Exception):
    """What a user can be told in one line: `<what>: <why>: <what to do>`."""

    exit_status = EXIT_FAILURE


class ConfigError(SrunCrError):
    """A variable of the environment has a value that means nothing."""

    exit_status = EXIT_CONFIG


class CommandError(SrunCrError):
    """A command cannot be executed; exit_status tells not found from not executable."""

    def __init__(self, text: str, exit_status: int) -> None:
        super().__init__(text)
        self.exit_status = exit_status


class CheckpointError(SrunCrError):
    """An operation failed: the job goes on and the previous generation stays."""


# ---------------------------------------------------------------------------------------------
# Helpers
# ---------------------------------------------------------------------------------------------

def signal_name(number: int) -> str:
    """Return SIGUSR1, SIGRTMIN+3, or the number of what has no name."""
    low, high = int(signal.SIGRTMIN), int(signal.SIGRTMAX)
    if low < number < high:
        return "SIGRTMIN+{}".format(number - low)
    try:
        return signal.Signals(number).name
    except ValueError:
        return "signal {}".format(number)


def parse_signal(text: str) -> int:
    """Return the number of a signal given as USR1, SIGUSR1, RTMIN+3 or 10.

    Raises: ValueError."""
    name = text.strip().upper()
    if name.isdigit():
        number = int(name)
    else:
        name = name[3:] if name.startswith("SIG") else name
        base, plus, offset = name.partition("+")
        if not plus:
            base, plus, offset = name.partition("-")
        number = int(getattr(signal, "SIG" + base, 0)) if base.isalnum() else 0
        if base in ("RTMIN", "RTMAX") and offset.isdigit():
            number += int(plus + offset)
        elif plus:
            number = 0
    if not 0 < number < signal.NSIG:
        raise ValueError(text)
    return number


def describe_status(status: int) -> str:
    """Word a wait status: `exit status 3`, `killed by SIGTERM`."""
    if os.WIFSIGNALED(status):
        return "killed by " + signal_name(os.WTERMSIG(status))
    return "exit status {}".format(os.WEXITSTATUS(status))


def describe_size(size_bytes: int) -> str:
    """Word a number of bytes: `3.1 MB`."""
    size, unit = float(size_bytes), "B"
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if size < 1000 or unit == "TB":
            break
        size /= 1000
    return "{:.0f} {}".format(size, unit) if unit == "B" else "{:.1f} {}".format(size, unit)


def plural(count: int, noun: str) -> str:
    """Return `1 task`, `2 tasks`."""
    return "{} {}{}".format(count, noun, "" if count == 1 else "s")


def quote_command(command: "Sequence[str]") -> str:
    """Return the command as a shell would read it, for messages and records."""
    import shlex
    return " ".join(map(shlex.quote, command))


def split_command(setting: str) -> "List[str]":
    """Split a setting that holds a command (`sudo -n criu`) into words.  Raises: ValueError."""
    if any(character in setting for character in " \t'\"\\"):
        import shlex
        words = shlex.split(setting)
        if not words:
            raise ValueError("empty")
        return words
    return [setting]


def find_command(name: str, search_path: str) -> str:
    """Return the path of a program, by the rules of execvp(3) less one: never our own file.

    A site may put this program on PATH as `srun`; the srun that it runs is the next one.
    Raises: CommandError with status 127, or 126 if what is there is not executable."""
    def ours(path: str) -> bool:
        for own in (__file__, sys.argv[0] if sys.argv else ""):
            try:
                if own and os.path.samefile(path, own):
                    return True
            except OSError:
                pass
        return False

    if "/" in name:
        candidates = [name]
    else:
        candidates = [os.path.join(part or ".", name) for part in search_path.split(os.pathsep)]
    found = None
    for path in candidates:
        if os.path.isfile(path) and not ours(path):
            if os.access(path, os.X_OK):
                return path
            found = path
    if found or "/" in name and os.path.exists(name):
        raise CommandError("{}: cannot be executed: check its permissions".format(found or name),
                           EXIT_CANNOT_EXECUTE)
    raise CommandError("{}: not found: check PATH, or the SRUN_CR_* variable that names it"
                       .format(name), EXIT_NOT_FOUND)


def load_sibling(name: str) -> "Any":
    """Import the module of that name which stands beside this file, wherever that is.

    Raises: ImportError."""
    module = sys.modules.get(name)
    if module is None:
        from importlib.machinery import SourceFileLoader
        path = os.path.join(os.path.dirname(os.path.realpath(__file__)), name + ".py")
        if not os.path.isfile(path):
            raise ImportError(path + ": not found")
        module = type(sys)(name)
        module.__file__ = path
        SourceFileLoader(name, path).exec_module(module)
        sys.modules[name] = module
    return module


def unblock_signals() -> None:
    """Unblock all signals; in a child, as we have them blocked most of the time."""
    signal.pthread_sigmask(signal.SIG_SETMASK, [])


def ignore_sigterm() -> None:
    """Ignore SIGTERM; in a child."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    unblock_signals()


def write_all(fd: int, data: bytes) -> None:
    """Write data whole, whatever write(2) takes at a time."""
    while data:
        data = data[os.write(fd, data):]


def fsync_directory(path: str) -> None:
    """Make the entries of a directory durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def fsync_tree(path: str) -> "Tuple[int, int]":
    """Make a file, or a directory with all in it, durable; return (bytes, files).

    Raises: OSError, also for what is neither file nor directory (never followed: a link)."""
    status = os.lstat(path)
    if stat.S_ISDIR(status.st_mode):
        size = files = 0
        for entry in os.listdir(path):
            entry_size, entry_files = fsync_tree(os.path.join(path, entry))
            size, files = size + entry_size, files + entry_files
        fsync_directory(path)
        return size, files
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "neither a file nor a directory", path)
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        os.fsync(fd)
        return os.fstat(fd).st_size, 1
    finally:
        os.close(fd)


def measure_tree(path: str) -> "Tuple[int, int]":
    """Return (bytes, files) of a file, or of a directory with all in it.

    Raises: OSError, also for a link."""
    status = os.lstat(path)
    if stat.S_ISREG(status.st_mode):
        return status.st_size, 1
    if not stat.S_ISDIR(status.st_mode):
        raise OSError(errno.EINVAL, "neither a file nor a directory", path)
    size = files = 0
    for entry in os.listdir(path):
        entry_size, entry_files = measure_tree(os.path.join(path, entry))
        size, files = size + entry_size, files + entry_files
    return size, files


def write_json(path: str, value: "Any") -> None:
    """Replace a file by the JSON of value, durably: a reader sees the old one or the new."""
    import json
    temporary = path + ".new"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    try:
        try:
            write_all(fd, json.dumps(value, indent=1).encode("ascii") + b"\n")
            os.fsync(fd)
        finally:
            os.close(fd)
        os.rename(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    fsync_directory(os.path.dirname(path))


def read_json(path: str) -> "Any":
    """Return what write_json() wrote.

    Raises: OSError, ValueError."""
    import json
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    with open(fd, "rb") as file:
        return json.loads(file.read().decode("ascii"))


# ---------------------------------------------------------------------------------------------
# Configuration
# ---------------------------------------------------------------------------------------------

class Frozen:
    """An immutable record; the fields are its class's __slots__, all of them given by name."""

    __slots__ = ()  # type: Tuple[str, ...]

    def __init__(self, **fields: "Any") -> None:
        for name in self.__slots__:
            object.__setattr__(self, name, fields.pop(name))
        if fields:
            raise TypeError("no such field: " + ", ".join(fields))

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError("{} is immutable".format(type(self).__name__))

    def __delattr__(self, name: str) -> None:
        raise AttributeError("{} is immutable".format(type(self).__name__))

    def __repr__(self) -> str:
        return "{}({})".format(type(self).__name__, ", ".join(
            "{}={!r}".format(name, getattr(self, name)) for name in self.__slots__))


class Config(Frozen):
    """The settings; from_environ() is the one reader of the environment."""

    __slots__ = ("engine", "directory", "keep", "signals", "wait_s", "step", "skip_completed",
                 "app_signal", "app_ranks", "commands", "libraries", "verbosity", "restart_dir",
                 "job_id", "het_job_ids", "requeue_id", "restart_count", "task_pid",
                 "search_path", "temporary", "cwd")

    engine: str                 # auto, blcr, criu, app, none
    libraries: "Mapping[str, Optional[str]]"    # libcr, libslurm -> path
    directory: str              # absolute
    keep: int                   # generations
    signals: "Mapping[int, str]"    # number -> create, vacate or requeue
    wait_s: float
    step: "Optional[str]"
    skip_completed: bool
    app_signal: "Optional[int]"
    app_ranks: str              # auto, all, 0
    commands: "Mapping[str, List[str]]"     # srun, scontrol, scancel, criu, cr_run -> words
    verbosity: int
    restart_dir: "Optional[str]"
    job_id: "Optional[str]"     # None outside an allocation
    het_job_ids: "Tuple[str, ...]"      # of the components, the leader's first; else empty
    requeue_id: str             # what `scontrol requeue` is to be told
    restart_count: int
    task_pid: int               # of the batch script, 0 if unknown
    search_path: str
    temporary: str              # for sockets
    cwd: str

    @classmethod
    def from_environ(cls, environ: "Mapping[str, str]") -> "Config":
        """Read the settings.

        Raises: ConfigError that names the variable."""
        def number(name: str, default: int, least: int) -> int:
            text = environ.get(name, "") or str(default)
            try:
                value = int(text)
            except ValueError:
                value = least - 1
            if not least <= value <= 10 ** 9:
                raise ConfigError("{}={}: not a whole number of at least {}".format(
                    name, text, least))
            return value

        def choice(name: str, default: str, choices: "Iterable[str]") -> str:
            text = environ.get(name, "").lower() or default
            if text not in choices:
                raise ConfigError("{}={}: must be one of {}".format(
                    name, text, ", ".join(choices)))
            return text

        def command(name: str) -> "List[str]":
            variable = "SRUN_CR_" + name.upper()
            text = environ.get(variable) or name
            if text == "cr_run" and environ.get("BLCR_HOME"):
                text = os.path.join(environ["BLCR_HOME"], "bin", "cr_run")
            try:
                return split_command(text)
            except ValueError as error:
                raise ConfigError("{}={}: not a command: {}".format(
                    variable, text, error)) from None

        try:
            cwd = os.getcwd()
        except OSError:  # removed under us; srun will say so
            cwd = "/"
        job_id = environ.get("SLURM_JOB_ID") or environ.get("SLURM_JOBID") or None
        if job_id is not None and not job_id.isdigit():
            raise ConfigError("SLURM_JOB_ID={}: not a job id".format(job_id))
        # In a task of another srun_cr these two are what that one told its tasks.
        nested = "SLURM_SRUN_CR_SOCKET" in environ
        directory = (environ.get("SRUN_CR_DIR")
                     or not nested and environ.get("SLURM_CHECKPOINT_IMAGE_DIR") or ".")
        app_signal = None
        if environ.get("SRUN_CR_APP_SIGNAL"):
            app_signal = _signal_setting("SRUN_CR_APP_SIGNAL", environ["SRUN_CR_APP_SIGNAL"])
        engine = choice("SRUN_CR_ENGINE", "auto", ("auto", *ENGINES))
        if engine == "app" and app_signal is None:
            raise ConfigError("SRUN_CR_ENGINE=app: set SRUN_CR_APP_SIGNAL to the signal at which "
                              "the program saves itself")
        step = environ.get("SRUN_CR_STEP") or None
        if step is not None and (not step[0].isalnum() or not all(
                c.isalnum() or c in "._+-" for c in step) or len(step) > 100):
            raise ConfigError("SRUN_CR_STEP={}: only letters, digits and ._+- may be in the name "
                              "of a step, at most 100".format(step))
        debug = environ.get("SRUN_CR_DEBUG") or environ.get("SLURM_DEBUG") or "0"
        return cls(
            engine=engine, directory=os.path.join(cwd, directory) if directory != "." else cwd,
            keep=number("SRUN_CR_KEEP", 2, 1),
            signals=_signals_setting(environ.get("SRUN_CR_SIGNALS", "")),
            wait_s=float(number("SRUN_CR_WAIT", 60, 1)), step=step,
            skip_completed=choice("SRUN_CR_SKIP_COMPLETED", "yes", ("yes", "no")) == "yes",
            app_signal=app_signal,
            app_ranks=choice("SRUN_CR_APP_RANKS", "auto", ("auto", "all", "0")),
            commands={name: command(name)
                      for name in ("srun", "scontrol", "scancel", "criu", "cr_run")},
            libraries={name: environ.get("SRUN_CR_" + name.upper()) or None
                       for name in ("libcr", "libslurm")},
            verbosity=int(debug) if debug in list("0123456789") else 0,
            restart_dir=None if nested else environ.get("SLURM_RESTART_DIR") or None,
            job_id=job_id,
            het_job_ids=het_job_ids(environ), requeue_id=requeue_id(environ),
            restart_count=number("SLURM_RESTART_COUNT", 0, 0),
            task_pid=number("SLURM_TASK_PID", 0, 0),
            search_path=environ.get("PATH", os.defpath),
            temporary=environ.get("TMPDIR") or "/tmp", cwd=cwd)


def requeue_id(environ: "Mapping[str, str]") -> str:
    """Return what `scontrol requeue` takes for this job: an array's element, a leader; or ""."""
    if environ.get("SLURM_ARRAY_JOB_ID") and environ.get("SLURM_ARRAY_TASK_ID"):
        return environ["SLURM_ARRAY_JOB_ID"] + "_" + environ["SLURM_ARRAY_TASK_ID"]
    for name in ("SLURM_HET_JOB_ID", "SLURM_PACK_JOB_ID", "SLURM_JOB_ID", "SLURM_JOBID"):
        if environ.get(name):
            return environ[name]
    return ""


def het_job_ids(environ: "Mapping[str, str]") -> "Tuple[str, ...]":
    """Return the job ids of a heterogeneous job's components, the leader's first; else none."""
    ids = []  # type: List[str]
    for prefix in ("SLURM_JOB_ID_HET_GROUP_", "SLURM_JOB_ID_PACK_GROUP_"):
        while environ.get(prefix + str(len(ids))):
            ids.append(environ[prefix + str(len(ids))])
    return tuple(ids)


def _signal_setting(name: str, text: str) -> int:
    """Return the signal that a variable names, if it can be sent and caught."""
    try:
        number = parse_signal(text)
    except ValueError:
        raise ConfigError("{}={}: not a signal: name it as in USR1, RTMIN+3 or 10".format(
            name, text)) from None
    if number not in ALL_SIGNALS - NOT_CAUGHT - {signal.SIGCHLD}:
        raise ConfigError("{}={}: {} cannot be used for this".format(
            name, text, signal_name(number)))
    return number


def _signals_setting(text: str) -> "Dict[int, str]":
    """Return what SRUN_CR_SIGNALS maps: number -> operation."""
    found = {}  # type: Dict[int, str]
    for word in text.replace(",", " ").split():
        name, _, operation = word.partition("=")
        if operation not in OPERATIONS:
            raise ConfigError("SRUN_CR_SIGNALS={}: {!r} is not SIGNAL=OPERATION, with one of {}"
                              .format(text, word, ", ".join(OPERATIONS)))
        found[_signal_setting("SRUN_CR_SIGNALS", name)] = operation
    return found


OPERATIONS = ("create", "vacate", "requeue")


# ---------------------------------------------------------------------------------------------
# Messages
# ---------------------------------------------------------------------------------------------

class Messages:
    """Writes lines in Slurm's form to standard error: `srun_cr: error: ...`."""

    def __init__(self, verbosity: int = 0) -> None:
        self.verbosity = verbosity

    def _write(self, text: str) -> None:
        # sys.stderr is None if descriptor 2 was closed when we started: then it is not ours.
        if sys.stderr is None:
            return
        try:
            write_all(2, "srun_cr: {}\n".format(text).encode("utf-8", "surrogateescape"))
        except OSError:
            pass

    def error(self, text: str) -> None:
        """Say why something asked for was not done."""
        self._write("error: " + text)

    def warning(self, text: str) -> None:
        """Say what the user may not expect."""
        self._write("warning: " + text)

    def info(self, text: str) -> None:
        """Say what was done."""
        self._write(text)

    def debug(self, text: str) -> None:
        """Say it if SLURM_DEBUG or SRUN_CR_DEBUG asks for it."""
        if self.verbosity > 0:
            self._write("debug: " + text)


# ---------------------------------------------------------------------------------------------
# The srun command line
# ---------------------------------------------------------------------------------------------

def release_number(text: str) -> "Tuple[int, int]":
    """Return (22, 5) for `22.05` or `22.05.8`; Raises: ValueError."""
    year, month = text.split(".")[:2]
    return int(year), int(month)


class SrunOption(Frozen):
    """One option of srun over the releases."""

    __slots__ = ("name", "letter", "kinds", "first", "last")

    name: str
    letter: "Optional[str]"
    kinds: "Tuple[Tuple[Tuple[int, int], str], ...]"    # (since, kind), kind "", "=" or "?"
    first: "Tuple[int, int]"
    last: "Tuple[int, int]"

    @classmethod
    def parse(cls, entry: str) -> "SrunOption":
        """Read one entry of SRUN_OPTIONS."""
        entry, _, releases = entry.partition("@")
        first, _, last = releases.partition("-")
        entry, _, change = entry.partition("/")
        kind = entry[-1] if entry[-1] in "=?" else ""
        name, _, letter = entry.rstrip("=?").partition(",")
        kinds = [((0, 0), kind)]
        if change:
            kinds.append((release_number(change[:-1]), change[-1]))
        return cls(name=name, letter=letter or None, kinds=tuple(kinds),
                   first=release_number(first) if first else (0, 0),
                   last=release_number(last) if last else (99, 99))

    def in_release(self, release: "Optional[Tuple[int, int]]") -> bool:
        """Whether that release has it; None stands for any."""
        return release is None or self.first <= release <= self.last

    def kinds_in(self, release: "Optional[Tuple[int, int]]") -> "Set[str]":
        """Return its kind in a release; None: all it ever had."""
        if release is None:
            return {kind for _, kind in self.kinds}
        return {[kind for since, kind in self.kinds if since <= release][-1]}


class SrunCommand:
    """An srun command line, cut where srun cuts it.

    srun reads with getopt_long: it stops at the first word that is no option, accepts unique
    prefixes, and a `:` among the words that follow starts the next component of a heterogeneous
    step, options first.  What an option takes may depend on the release, and plugins of the site
    bring options of their own: `ask(argument)` returns what `srun ARGUMENT` prints (`--version`,
    `--help`), and is called at most once for each, only where the answer decides."""

    def __init__(self, arguments: "Sequence[str]",
                 ask: "Optional[Callable[[str], str]]" = None) -> None:
        self.arguments = list(arguments)
        self._ask = ask
        self._options = None  # type: Optional[List[SrunOption]]
        self._release = None  # type: Optional[Tuple[int, int]]
        self._release_asked = False
        self._site = None  # type: Optional[Dict[str, str]]
        self._given = []  # type: List[Tuple[int, str]]
        self.starts = []  # type: List[int]     # where the commands are, one a component
        self.components = []  # type: List[Tuple[int, int]]
        self._cut()

    def has(self, *names: str) -> bool:
        """Whether an option of one of these long names is given, in whatever form."""
        return any(given in names for _, given in self._given)

    @property
    def command(self) -> "List[str]":
        """The first component's command and arguments; empty if there is none."""
        for (_, end), start in zip(self.components, self.starts):
            if start < end:
                return self.arguments[start:end]
        return []

    @property
    def programs(self) -> "List[str]":
        """All components' commands, with `:` between them: what runs, without how."""
        words = []  # type: List[str]
        for (_, end), start in zip(self.components, self.starts):
            words += [*([":"] if words else []), *self.arguments[start:end]]
        return words

    def with_prefix(self, prefix: "Sequence[str]") -> "List[str]":
        """Return the arguments with prefix before the command of every component."""
        result = []  # type: List[str]
        for (begin, end), start in zip(self.components, self.starts):
            result += self.arguments[begin:start]
            if start < end:
                # Behind the prefix a command that looks like an option would be one of srun's.
                result += [*prefix, *self.arguments[start:end]]
        return result

    def _cut(self) -> None:
        begin, total = 0, len(self.arguments)
        while True:
            start = self._skip_options(begin + 1 if self.components else 0)
            end = start
            while end < total and self.arguments[end] != ":":
                end += 1
            self.components.append((begin, end))
            self.starts.append(start)
            if end >= total:
                return
            begin = end  # the ":" belongs to what it starts

    def _skip_options(self, index: int) -> int:
        """Return where the options that begin at index end."""
        arguments = self.arguments
        while index < len(arguments):
            word = arguments[index]
            if word == "--":
                return index + 1
            if word.startswith("--"):
                name, equals, _ = word[2:].partition("=")
                full, takes = self._long(name)
                self._given.append((index, full))
                index += 2 if takes and not equals else 1
            elif word.startswith("-") and len(word) > 1:
                index += 2 if self._cluster(index, word[1:]) else 1
            else:
                return index
        return len(arguments)  # an option without its argument: srun will say so

    def _table(self) -> "List[SrunOption]":
        if self._options is None:
            self._options = [SrunOption.parse(entry) for entry in SRUN_OPTIONS.split()]
        return self._options

    def _long(self, name: str) -> "Tuple[str, bool]":
        """Return the full name of a long option and whether it takes a word of its own."""
        exact = [option for option in self._table() if option.name == name]
        if exact:
            return name, "=" in exact[0].kinds_in(None)
        candidates = [option for option in self._table() if option.name.startswith(name)]
        if candidates and name in self._site_options():
            return name, self._site_options()[name] == "="
        takes = {"=" in option.kinds_in(None) for option in candidates}
        if len({option.letter or option.name for option in candidates}) > 1 and len(takes) > 1:
            # Which of them it is depends on the release that reads it.
            candidates = [option for option in candidates if option.in_release(self._known())]
            takes = {"=" in option.kinds_in(None) for option in candidates}
        site = [(full, kind) for full, kind in self._site_options().items()
                if full.startswith(name)] if not candidates else []
        if candidates:
            return candidates[0].name, True in takes
        if site:
            best = dict(site).get(name)
            return (name, best == "=") if best is not None else (site[0][0], site[0][1] == "=")
        return name, False

    def _cluster(self, index: int, letters: str) -> bool:
        """Read a word of short options; return whether the last takes the next word."""
        for position, letter in enumerate(letters):
            options = [option for option in self._table() if option.letter == letter]
            rest = letters[position + 1:]
            kinds = {kind for option in options for kind in option.kinds_in(None)}
            if len(kinds) > 1 and rest:
                options = [option for option in options if option.in_release(self._known())]
                kinds = {kind for option in options for kind in option.kinds_in(self._known())}
            if options:
                self._given.append((index, options[0].name))
            if "=" in kinds:
                return not rest
            if "?" in kinds:
                return False
        return False

    def _known(self) -> "Optional[Tuple[int, int]]":
        """Return the release of the srun that is here, None if it cannot be had."""
        if not self._release_asked and self._ask is not None:
            self._release_asked = True
            words = self._ask("--version").split()
            try:
                self._release = release_number(words[-1])
            except (IndexError, ValueError):
                pass
        return self._release

    def _site_options(self) -> "Dict[str, str]":
        """Return the long options that `srun --help` shows: name -> kind."""
        if self._site is None:
            self._site = {}
            import re
            text = self._ask("--help") if self._ask is not None else ""
            for match in re.finditer(r"^ {1,8}(?:-\S[^-\n]{0,12})?--([A-Za-z0-9][\w-]*)(\[?=)?",
                                     text, re.M):
                self._site.setdefault(match.group(1), {"=": "=", "[=": "?"}.get(match.group(2), ""))
        return self._site


# ---------------------------------------------------------------------------------------------
# Slurm: every call of its commands
# ---------------------------------------------------------------------------------------------

class StepInfo(Frozen):
    """A launched step, or one component of a heterogeneous one."""

    __slots__ = ("job_id", "step_id", "node_list", "nodes", "tasks")

    job_id: str         # "12"; of a het component its own
    step_id: str        # "0"
    node_list: str      # Slurm's form: n[1-2]
    nodes: int          # 0: unknown
    tasks: int          # 0: unknown

    @property
    def name(self) -> str:
        """The form in which scontrol and scancel take it."""
        return "{}.{}".format(self.job_id, self.step_id)


def parse_records(text: str) -> "List[Dict[str, str]]":
    """Parse what `scontrol -o show` prints: a record a line, words KEY=VALUE."""
    records = []
    for line in text.splitlines():
        record = {}  # type: Dict[str, str]
        for word in line.split():
            key, equals, value = word.partition("=")
            if equals:
                record.setdefault(key, value)
        if record:
            records.append(record)
    return records


def is_descendant(pid: int, ancestor: int) -> bool:
    """Whether process pid is ancestor, or comes from it."""
    while pid > 1:
        if pid == ancestor:
            return True
        try:
            pid = ProcessStat(pid).parent
        except (OSError, ValueError, IndexError):
            return False
    return False


class ProcessStat:
    """What /proc/PID/stat says.

    Raises: OSError, if it has ended.  Source: proc(5)."""

    def __init__(self, pid: int) -> None:
        with open("/proc/{}/stat".format(pid), "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
        self.state = fields[0].decode("ascii")
        self.parent, self.pgid, self.sid = (int(field) for field in fields[1:4])
        self.start_ticks = int(fields[19])


def start_time(pid: int) -> float:
    """Return when a process started, in seconds since the epoch.  Raises: OSError."""
    with open("/proc/stat", "rb") as file:
        boot = int(file.read().partition(b"\nbtime ")[2].split()[0])
    return boot + ProcessStat(pid).start_ticks / os.sysconf("SC_CLK_TCK")


class Slurm:
    """Slurm's commands, as the job's owner; safe to use from the worker thread."""

    def __init__(self, config: Config, log: Messages, environ: "Mapping[str, str]") -> None:
        self._config = config
        self._log = log
        # A script's SLURM_* variables are input to srun: they would bend a helper step, whose
        # shape is its own.  What is kept says where Slurm is, not what to ask of it.
        keep = ("SLURM_CONF", "SLURM_CLUSTERS", "SLURM_JWT", "SLURM_CONF_SERVER")
        self.environ = {name: value for name, value in environ.items() if name in keep
                        or not name.startswith(("SLURM_", "SBATCH_", "SALLOC_", "SRUN_"))}
        self._overlaps = None  # type: Optional[bool]

    def run(self, name: str, *arguments: str, shielded: bool = False) -> str:
        """Return the output of a command; shielded: of one that Slurm's SIGTERM does not end.

        Raises: SrunCrError with the command's own words."""
        import subprocess
        command = [*self._config.commands[name], *arguments]
        self._log.debug(quote_command(command))
        try:
            done = subprocess.run(command, env=self.environ, stdin=subprocess.DEVNULL,
                                  stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                  start_new_session=True, timeout=COMMAND_TIMEOUT_S,
                                  preexec_fn=ignore_sigterm if shielded else unblock_signals)
        except OSError as error:
            raise SrunCrError("{}: {}".format(command[0], error.strerror)) from error
        except subprocess.TimeoutExpired as error:
            raise SrunCrError("{}: no answer in {:.0f} s".format(
                quote_command(command), COMMAND_TIMEOUT_S)) from error
        if done.returncode:
            words = done.stderr.decode("utf-8", "replace").split("\n")
            status = done.returncode << 8 if done.returncode > 0 else -done.returncode
            raise SrunCrError("{}: {}".format(
                quote_command(command), words[0].strip() or describe_status(status)))
        return done.stdout.decode("utf-8", "surrogateescape")

    def ask_srun(self, argument: str) -> str:
        """Return what srun prints for --help or --version; nothing if it cannot."""
        try:
            return self.run("srun", argument)
        except SrunCrError as error:
            self._log.debug(str(error))
            return ""

    def job(self, job_id: str) -> "Dict[str, str]":
        """Return what Slurm says of a job: JobState, Requeue, BatchFlag, ...

        Raises: SrunCrError."""
        records = parse_records(self.run("scontrol", "-o", "show", "job", job_id))
        if not records:
            raise SrunCrError("job {}: unknown to Slurm".format(job_id))
        return records[0]

    def find_steps(self, job_id: str, srun_pid: int) -> "List[StepInfo]":
        """Return the step of that srun, its components if it is heterogeneous; [] before launch.

        Source: SrunHost:Pid in `scontrol show step`, 17.11 to 26.05."""
        host = socket.gethostname().partition(".")[0]
        found = []
        # Of a heterogeneous job scontrol shows the steps of one component at a time, and of an
        # array's element it says `12_2.0`: the id that was asked for is what helpers take.
        for job, record in ((job, record) for job in self._config.het_job_ids or (job_id,)
                            for record in parse_records(
                                self.run("scontrol", "-o", "show", "step", job))):
            at, _, pid = record.get("SrunHost:Pid", "").rpartition(":")
            if at.partition(".")[0] != host or not pid.isdigit() \
                    or not is_descendant(int(pid), srun_pid):
                continue
            step = record.get("StepId", "").partition(".")[2]
            if not step.isdigit():  # `TBD`, with some releases `TDB`: it waits for resources
                continue
            found.append(StepInfo(job_id=job, step_id=step,
                                  node_list=record.get("NodeList", ""),
                                  nodes=int(record.get("Nodes", "0")),
                                  tasks=int(record.get("Tasks", "0"))))
        return found

    def count_tasks(self, step: StepInfo) -> int:
        """Return how many tasks a running step has, 0 if Slurm does not say.

        Raises: SrunCrError, ValueError."""
        records = parse_records(self.run("scontrol", "-o", "show", "step", step.name))
        return int(records[0].get("Tasks", "0")) if records else 0

    def start_on_nodes(self, step: StepInfo, command: "Sequence[str]"
                       ) -> "subprocess.Popen[bytes]":
        """Start command once on every node of a running step, beside its tasks.

        Returns srun's Popen, in a session of its own, with pipes for all three streams; what is
        written to stdin reaches every process."""
        import subprocess
        if self._overlaps is None:
            # Before 20.11 steps overlap by default, and the option is unknown.
            try:
                self._overlaps = release_number(self.ask_srun("--version").split()[-1]) >= (20, 11)
            except (IndexError, ValueError):
                self._overlaps = True
        # The script's request for memory or GPUs is the step's: asked for again it would wait.
        srun = [*self._config.commands["srun"], *(["--overlap"] if self._overlaps else []),
                *self._allocation(step), "--nodelist=" + step.node_list,
                "--nodes={}".format(step.nodes), "--ntasks={}".format(step.nodes),
                "--ntasks-per-node=1", "--mem=0", "--gres=none", "--cpu-bind=none", "--mpi=none",
                "--kill-on-bad-exit=1", "--quiet", "--job-name=srun_cr", *command]
        self._log.debug(quote_command(srun))
        try:
            return subprocess.Popen(srun, env=self.environ, stdin=subprocess.PIPE,
                                    stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                    start_new_session=True, preexec_fn=unblock_signals)
        except OSError as error:
            raise CheckpointError("{}: {}".format(srun[0], error.strerror)) from error

    def _allocation(self, step: StepInfo) -> "List[str]":
        ids = self._config.het_job_ids
        if step.job_id not in ids:
            return ["--jobid=" + step.job_id]
        return ["--jobid=" + ids[0], "--het-group={}".format(ids.index(step.job_id))]

    def signal_tasks(self, step: StepInfo, number: int) -> None:
        """Send a signal to every task of a step.  Raises: SrunCrError."""
        self.run("scancel", "--signal={}".format(number), step.name)

    def proctrack(self) -> str:
        """Return the plugin that signals tasks: linuxproc, pgid, cgroup; '' if not to be had."""
        try:
            for line in self.run("scontrol", "show", "config").splitlines():
                if line.startswith("ProctrackType"):
                    return line.rpartition("/")[2].strip()
        except SrunCrError as error:
            self._log.debug(str(error))
        return ""

    def requeue(self, requeue_id: str) -> None:
        """Have the job run again from its start.  Raises: SrunCrError.

        Slurm's SIGTERM to all of the job may come before its answer to scontrol, which is of the
        job as well: killed by it, it would look like a refusal."""
        self.run("scontrol", "requeue", requeue_id, shielded=True)


def node_command(*arguments: str) -> "List[str]":
    """Return the command that runs node_main() of this very file on a node."""
    return [sys.executable or "python3", "-I", "-c", BOOTSTRAP, os.path.realpath(__file__),
            *arguments]


# ---------------------------------------------------------------------------------------------
# The store
# ---------------------------------------------------------------------------------------------

class StoreError(SrunCrError):
    """The directory of checkpoints cannot be used, or what is in it cannot be trusted."""


class GenerationError(StoreError):
    """A generation is not fit for a restart."""


def private_directory(path: str) -> None:
    """Create a directory for us alone, or check that the one there is such.

    Raises: StoreError."""
    try:
        try:
            os.mkdir(path, 0o700)
        except FileExistsError:
            pass
        status = os.lstat(path)
    except OSError as error:
        raise StoreError("{}: {}: set SRUN_CR_DIR to a directory that all nodes share and you "
                         "may write to".format(path, error.strerror)) from error
    if not stat.S_ISDIR(status.st_mode):
        raise StoreError(path + ": not a directory: images are not written through a link")
    if status.st_uid != os.geteuid():
        raise StoreError("{}: belongs to user {}: it is not trusted".format(path, status.st_uid))
    if status.st_mode & 0o077:
        os.chmod(path, 0o700)


def check_manifest(manifest: "Any") -> None:
    """Check that all fields that a restart reads are there.  Raises: ValueError, KeyError."""
    def are_pairs(value: "Any") -> bool:
        return isinstance(value, dict) and all(
            isinstance(pair, list) and len(pair) == 2 and all(isinstance(n, int) for n in pair)
            for pair in value.values())

    if not isinstance(manifest, dict) or manifest["format"] != STEP_FORMAT:
        raise ValueError("not of format {}: written by another version".format(STEP_FORMAT))
    if not are_pairs(manifest["images"]) or not are_pairs(manifest["files"]) \
            or manifest["engine"] not in list(ENGINES) or not isinstance(manifest["run"], int) \
            or not isinstance(manifest["committed"], (int, float)) \
            or not isinstance(manifest["command"], list) \
            or not all(isinstance(word, str) for word in manifest["command"]):
        raise ValueError("not a manifest of srun_cr")


class Generation:
    """A committed checkpoint of one step: a directory with manifest.json and the tasks' images."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.number = int(os.path.basename(path))
        self._manifest = None  # type: Optional[Dict[str, Any]]

    @property
    def manifest(self) -> "Dict[str, Any]":
        """What was committed.  Raises: GenerationError."""
        if self._manifest is None:
            path = os.path.join(self.path, "manifest.json")
            try:
                status = os.lstat(self.path)
                if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
                    raise GenerationError(self.path + ": not a directory of ours")
                manifest = read_json(path)
                check_manifest(manifest)
            except OSError as error:
                raise GenerationError("{}: {}".format(path, error.strerror)) from error
            except (ValueError, KeyError) as error:
                raise GenerationError("{}: {}".format(path, error)) from error
            self._manifest = manifest
        return self._manifest

    def verify(self) -> None:
        """Check that every image is there with the size it was committed with.

        Raises: GenerationError that names what is not."""
        for name, expected in self.manifest["images"].items():
            path = os.path.join(self.path, name)
            try:
                if os.path.basename(name) != name:
                    raise OSError(errno.EINVAL, "not a name", path)
                found = list(measure_tree(path))
            except OSError as error:
                raise GenerationError("{}: {}".format(path, error.strerror)) from error
            if found != expected:
                raise GenerationError("{}: {} bytes in {} files, {} in {} were committed".format(
                    path, found[0], found[1], expected[0], expected[1]))

    @property
    def size_bytes(self) -> int:
        """Of all images."""
        return sum(int(size[0]) for size in self.manifest["images"].values())


def list_generations(path: str) -> "List[Generation]":
    """Return the committed generations in a step's directory, newest first.  Raises: OSError."""
    names = [entry for entry in os.listdir(path) if entry.isdigit() and len(entry) >= 6]
    return [Generation(os.path.join(path, name)) for name in sorted(names, key=int, reverse=True)]


class Store:
    """What is on disk of one srun_cr invocation: its records and generations.

    Thread: main, but `begin()`, `commit()`, `discard()` and `prune()` are the worker's.  A lock
    on the step's directory keeps a second srun_cr away."""

    def __init__(self, config: Config, arguments: "Sequence[str]", program: str) -> None:
        """Claim the step's directory.  Raises: StoreError."""
        self._config = config
        self.job_directory = os.path.join(config.directory, "{}.cr".format(config.job_id))
        self._set_stale_aside()
        private_directory(self.job_directory)
        self._lock_fd = self._requeue_fd = -1
        self.key = self._claim(arguments, os.path.basename(program))
        self.path = os.path.join(self.job_directory, self.key)
        private_directory(self.path)
        self._lock()
        for entry in os.listdir(self.path):
            if entry.endswith(".partial"):  # of an srun_cr that was killed
                self.discard(os.path.join(self.path, entry))
        self.record = self._load(list(arguments))

    def _set_stale_aside(self) -> None:
        """Rename what an older job of the same number has left, when this one first runs.

        Numbers begin anew when slurmctld has lost its state, and on another cluster; taken for
        ours, its checkpoints would be restored after our first requeue."""
        path = os.path.join(self.job_directory, ".claims", "0")
        if self._config.restart_count or not self._config.task_pid:
            return
        try:
            age_s = start_time(self._config.task_pid) - os.stat(path).st_mtime
            if age_s > STALE_JOB_S:
                os.rename(self.job_directory, "{}.{}.old".format(
                    self.job_directory[:-len(".cr")], int(os.stat(path).st_mtime)))
        except (OSError, ValueError, IndexError):
            pass  # there is none

    def _claim(self, arguments: "Sequence[str]", program: str) -> str:
        """Return the step's key: the n-th invocation of this command line in this run.

        A claim is a directory that only one can make, so parallel lines find each their own;
        those of one command have no gaps, so the first free one is found by bisection."""
        if self._config.step is not None:
            return str(self._config.step)
        import hashlib
        text = "\0".join([self._config.cwd, *arguments]).encode("utf-8", "surrogateescape")
        name = "".join(c if c.isalnum() and c < "\x7f" or c in "._+-" else "_" for c in program)
        base = "{}-{}".format(name.lstrip("._+-")[:40] or "step",
                              hashlib.sha256(text).hexdigest()[:10])
        claims = os.path.join(self.job_directory, ".claims")
        private_directory(claims)
        run = os.path.join(claims, str(self._config.restart_count))
        private_directory(run)

        def path(number: int) -> str:
            return os.path.join(run, "{}.{}".format(base, number))

        high = 1
        while os.path.exists(path(high)):
            high *= 2
        low = high // 2  # taken, or 0; high is free
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if os.path.exists(path(middle)) else (low, middle)
        while True:
            try:
                os.mkdir(path(high), 0o700)
                return "{}.{}".format(base, high)
            except FileExistsError:
                high += 1
            except OSError as error:
                raise StoreError("{}: {}".format(path(high), error.strerror)) from error

    def _lock(self) -> None:
        import fcntl
        path = os.path.join(self.path, "lock")
        try:
            self._lock_fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
            fcntl.flock(self._lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StoreError("{}: another srun_cr runs this step: give each its own SRUN_CR_STEP"
                             .format(self.path)) from None
        except OSError as error:
            if self._lock_fd < 0:
                raise StoreError("{}: {}".format(path, error.strerror)) from error
            # A file system without locks: the claim has to do.

    def _load(self, arguments: "List[str]") -> "Dict[str, Any]":
        path = os.path.join(self.path, "step.json")
        try:
            record = read_json(path)
            if not isinstance(record, dict) or record["format"] != STEP_FORMAT \
                    or not isinstance(record["runs"], list):
                raise ValueError("written by another version of srun_cr")
            for run in record["runs"]:
                if not isinstance(run, dict) or not isinstance(run["restart_count"], int) \
                        or not isinstance(run.get("status", 0), int):
                    raise ValueError("not a record of runs")
            return record
        except FileNotFoundError:
            return {"format": STEP_FORMAT, "key": self.key, "job": self._config.job_id,
                    "arguments": arguments, "cwd": self._config.cwd, "runs": []}
        except (OSError, ValueError, KeyError) as error:
            raise StoreError("{}: {}: move {} away to begin anew".format(
                path, error, self.path)) from error

    def close(self) -> None:
        """Give the step up."""
        for fd in (self._lock_fd, self._requeue_fd):
            if fd >= 0:
                os.close(fd)
        self._lock_fd = self._requeue_fd = -1

    def hold_requeue(self) -> None:
        """Have the other steps of the job wait with its requeue until let_requeue().

        A requeue ends all of the job: parallel steps that were asked for one checkpoint first."""
        import fcntl
        try:
            if self._requeue_fd < 0:
                self._requeue_fd = os.open(os.path.join(self.job_directory, ".requeue"),
                                           os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
            fcntl.flock(self._requeue_fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            pass  # one requeues just now, or a file system without locks

    def let_requeue(self, alone: bool, timeout_s: float) -> None:
        """End hold_requeue(); with alone, return when no other step holds, or after timeout_s.

        Thread: any, one at a time."""
        import fcntl
        deadline = time.monotonic() + timeout_s
        if self._requeue_fd >= 0:
            fcntl.flock(self._requeue_fd, fcntl.LOCK_UN)
            while alone and time.monotonic() < deadline:
                try:
                    fcntl.flock(self._requeue_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    return
                except OSError as error:
                    if error.errno != errno.EWOULDBLOCK:
                        return
                    time.sleep(PARENT_POLL_S)

    def _save(self) -> None:
        try:
            write_json(os.path.join(self.path, "step.json"), self.record)
        except OSError as error:
            raise StoreError("{}: {}".format(self.path, error.strerror)) from error

    def log_event(self, event: str, **fields: "Any") -> None:
        """Append a line to events.log; a full disk must not end a job, so errors are dropped."""
        import json
        line = json.dumps(dict(fields, time=time.time(), event=event,
                               restart_count=self._config.restart_count), sort_keys=True)
        try:
            fd = os.open(os.path.join(self.path, "events.log"),
                         os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o600)
        except OSError:
            return
        try:
            write_all(fd, line.encode("ascii") + b"\n")
        except OSError:
            pass
        finally:
            os.close(fd)

    def completed(self) -> "Optional[int]":
        """Return the wait status with which the step ended in an earlier run of the script.

        None if it did not end, or was stopped: that is told by our record, not by the status."""
        runs = self.record["runs"]
        if runs and runs[-1]["restart_count"] < self._config.restart_count \
                and runs[-1].get("completed"):
            return int(runs[-1]["status"])
        return None

    def start_run(self, engine: str, generation: "Optional[Generation]") -> None:
        """Record that srun is about to be started.  Raises: StoreError."""
        self.record["engine"] = engine
        self.record["runs"].append({
            "restart_count": self._config.restart_count, "host": socket.gethostname(),
            "pid": os.getpid(), "started": time.time(),
            "from": generation.path if generation is not None else None})
        self._save()
        self.log_event("start", engine=engine, generation=self.record["runs"][-1]["from"])

    def end_run(self, status: int, completed: bool) -> None:
        """Record srun's wait status, and whether the step is finished.  Raises: StoreError."""
        self.record["runs"][-1].update(ended=time.time(), status=status, completed=completed)
        self._save()
        self.log_event("end", status=status, completed=completed)

    def generations(self) -> "List[Generation]":
        """Return the committed generations, newest first."""
        return list_generations(self.path)

    def begin(self) -> str:
        """Create the directory of the next generation; return its path, *.partial.

        Raises: CheckpointError."""
        numbers = [int(entry.partition(".")[0]) for entry in os.listdir(self.path)
                   if entry.partition(".")[0].isdigit()]
        path = os.path.join(self.path, "{:06d}.partial".format(max(numbers, default=0) + 1))
        try:
            os.mkdir(path, 0o700)
        except OSError as error:
            raise CheckpointError("{}: {}".format(path, error.strerror)) from error
        return path

    def commit(self, partial: str, manifest: "Dict[str, Any]") -> Generation:
        """Make a generation of a directory whose images are complete and durable.

        From the rename on it is used for restarts.  Raises: CheckpointError."""
        path = partial[:-len(".partial")]
        try:
            write_json(os.path.join(partial, "manifest.json"), manifest)
            os.rename(partial, path)
            fsync_directory(self.path)
        except OSError as error:
            raise CheckpointError("{}: {}".format(partial, error.strerror)) from error
        return Generation(path)

    def discard(self, path: str) -> None:
        """Remove a generation, committed or not."""
        import shutil
        if not path.endswith(".partial"):
            # First out of sight: half of it must never be taken for a whole one.
            try:
                os.rename(path, path + ".partial")
            except OSError:
                return
            path += ".partial"
        shutil.rmtree(path, ignore_errors=True)

    def prune(self) -> None:
        """Remove the oldest generations, down to SRUN_CR_KEEP."""
        for generation in self.generations()[self._config.keep:]:
            self.discard(generation.path)

    def failure_path(self, generation: Generation) -> str:
        """Where a task says why it could not be restored; one path for each attempt."""
        return os.path.join(self.path, "restore.{}.{:06d}.failed".format(
            self._config.restart_count, generation.number))


def given_generations(config: Config, key: str, command: "List[str]") -> "List[Generation]":
    """Return the generations in SLURM_RESTART_DIR, newest first.

    It may be a generation, a step's directory or a job's (`<job id>.cr`), in which the step's
    key says which.  A job's directory may lack this step: that is an empty list.
    Raises: ConfigError, if it is something else or another command's."""
    path = os.path.normpath(os.path.join(config.cwd, config.restart_dir or ""))
    if os.path.exists(os.path.join(path, "manifest.json")) and os.path.basename(path).isdigit():
        found = [Generation(path)]
    else:
        if path.endswith(".cr") and os.path.isdir(path):
            path = os.path.join(path, key)
            if not os.path.exists(path):
                return []
        try:
            found = list_generations(path)
        except OSError as error:
            raise ConfigError("SLURM_RESTART_DIR={}: {}".format(
                config.restart_dir, error.strerror)) from error
        if not found:
            raise ConfigError("SLURM_RESTART_DIR={}: no committed generation in {}".format(
                config.restart_dir, path))
    for generation in found:
        try:
            theirs = generation.manifest["command"]
        except GenerationError:
            continue
        if theirs != command:
            raise ConfigError(
                "SLURM_RESTART_DIR={}: a checkpoint of `{}`, not of `{}`: unset it for this step"
                .format(config.restart_dir, quote_command(theirs), quote_command(command)))
    return found


def rewind_files(generation: Generation, log: Messages) -> None:
    """Cut the tasks' output files back to their size at the checkpoint.

    What was appended since comes from computing that is about to be done again; CRIU refuses a
    file of another size.  Only a file that is the same (inode) and longer is touched."""
    for path, (size, inode) in generation.manifest["files"].items():
        try:
            fd = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError:
            continue
        try:
            status = os.fstat(fd)
            if stat.S_ISREG(status.st_mode) and status.st_ino == inode and status.st_size > size:
                os.ftruncate(fd, size)
                log.info("{}: cut back to {} bytes, as at the checkpoint (were {})".format(
                    path, size, status.st_size))
        except OSError as error:
            log.warning("{}: {}".format(path, error.strerror))
        finally:
            os.close(fd)


# ---------------------------------------------------------------------------------------------
# Engines
# ---------------------------------------------------------------------------------------------

class Operation:
    """One checkpoint under way: what was asked, and the way to call it off.

    Thread: made by main; the worker runs it; `cancel()` and `note_end()` are main's, and wake
    the worker out of its wait."""

    def __init__(self, kind: str, source: str, wait_s: float, launched: bool = False) -> None:
        self.kind = kind                # create, vacate, requeue
        self.stop = kind != "create"
        self.launched = launched        # False: not that we know
        self.source = source            # for messages: SIGUSR1, ...
        self.requested = time.time()
        self.deadline = time.monotonic() + wait_s
        self.cancelled = False
        self.step_ended = False
        self._read_fd, self._write_fd = os.pipe()

    def cancel(self) -> None:
        """Have the worker give up."""
        self.cancelled = True
        os.write(self._write_fd, b"c")

    def note_end(self) -> None:
        """Tell the worker that srun has ended."""
        self.step_ended = True
        os.write(self._write_fd, b"e")

    def close(self) -> None:
        """Release the pipe; main's, after the worker is done."""
        os.close(self._read_fd)
        os.close(self._write_fd)

    def check(self) -> None:
        """Raise CheckpointError if it is called off or has taken too long."""
        if self.cancelled:
            raise CheckpointError("the step ended meanwhile")
        if time.monotonic() >= self.deadline:
            raise CheckpointError("not done in SRUN_CR_WAIT seconds: give it more")

    def wait(self, fds: "Sequence[int]", timeout_s: "Optional[float]" = None) -> "List[int]":
        """Wait for data on fds; return those that have some.

        Raises: CheckpointError as check() does."""
        self.check()
        left_s = self.deadline - time.monotonic()
        poll = select.poll()
        poll.register(self._read_fd, select.POLLIN)
        for fd in fds:
            poll.register(fd, select.POLLIN)
        ready = [fd for fd, _ in poll.poll(max(0.0, min(
            left_s, 86400.0, left_s if timeout_s is None else timeout_s)) * 1000 + 1)]
        if self._read_fd in ready:
            os.read(self._read_fd, 64)
        self.check()
        return [fd for fd in ready if fd != self._read_fd]


class NodeHelper:
    """A helper step beside a running one: a process a node, read line by line."""

    def __init__(self, slurm: Slurm, step: StepInfo, operation: Operation,
                 arguments: "Sequence[str]") -> None:
        self._operation = operation
        self._process = slurm.start_on_nodes(step, node_command(*arguments))
        self._errors = b""

    def reports(self) -> "Iterator[Dict[str, Any]]":
        """Yield what the nodes report, one dict at a time, until all have ended or said `done`.

        Raises: CheckpointError with a node's own words if one failed."""
        import json
        assert self._process.stdout is not None and self._process.stderr is not None
        stdout_fd, stderr_fd = self._process.stdout.fileno(), self._process.stderr.fileno()
        open_fds = [stdout_fd, stderr_fd]
        rest = b""
        while open_fds:
            for fd in self._operation.wait(open_fds):
                data = os.read(fd, 65536)
                if not data:
                    open_fds.remove(fd)
                elif fd == stderr_fd:
                    self._errors = (self._errors + data)[-4000:]
                    continue
                *lines, rest = (rest + data).split(b"\n")
                for line in lines:
                    try:
                        report = json.loads(line.decode("ascii"))
                    except ValueError:
                        continue  # a prolog's
                    if "error" in report:
                        raise CheckpointError(report["error"])
                    yield report
        if self._process.wait():
            raise CheckpointError("the helper step failed: " + self.why())

    def why(self) -> str:
        """Return the first error line of its srun."""
        lines = self._errors.decode("utf-8", "replace").strip().splitlines()
        return next((line for line in lines if "error" in line), lines[0] if lines else
                    "no message")

    def tell(self, word: str) -> None:
        """Write a line to every node's process."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(word.encode("ascii") + b"\n")
            self._process.stdin.close()
        except OSError:
            pass

    def end(self, timeout_s: float = KILL_TIMEOUT_S) -> int:
        """Wait for it, or end it; return its srun's returncode."""
        import subprocess
        process = self._process
        for end in (None, process.terminate, process.kill):
            if end is not None:
                end()
            try:
                # communicate() reads what is left: a full pipe would keep it from ending.
                process.communicate(timeout=timeout_s)
                break
            except subprocess.TimeoutExpired:
                continue
            except ValueError:  # stdin closed by tell(), 3.6 flushes it all the same
                process.wait()
                break
        return int(process.wait())


class Images(Frozen):
    """What an engine has written into the directory of a generation."""

    __slots__ = ("sizes", "files", "details")

    sizes: "Dict[str, Tuple[int, int]]"     # name -> bytes, files
    files: "Dict[str, Tuple[int, int]]"     # tasks' output: path -> bytes, inode
    details: "Dict[str, str]"               # for the manifest: the engine's version, ...


class Engine:
    """How tasks are imaged and restored.  One class an engine; this one has none: `none`."""

    name = "none"
    saves_and_exits = False     # whether tasks may end by themselves at a checkpoint

    def __init__(self, config: Config, slurm: Slurm, log: Messages) -> None:
        self.config = config
        self.slurm = slurm
        self.log = log

    def unavailable(self) -> "Optional[str]":
        """Return why this engine cannot work here, None if it can."""
        return None

    def refuses(self, command: SrunCommand) -> "Optional[str]":
        """Return which option of an srun command line this engine cannot serve, and why."""
        return None

    def environment(self, store: "Optional[Store]", generation: "Optional[Generation]"
                    ) -> "Dict[str, str]":
        """Return what the tasks' environment gets, for a launch or a restart."""
        return {"SLURM_RESTART_DIR": generation.path} if generation is not None else {}

    def prepare(self, store: Store) -> None:
        """Make what launch needs on disk."""

    def srun_prefix(self) -> "List[str]":
        """Return the words before srun."""
        return []

    def enter(self) -> bool:
        """Enter a critical section, in which no checkpoint of this process itself can be taken.

        Thread: main.  Returns whether it was entered; if not, one is under way."""
        return True

    def leave(self) -> None:
        """Leave the critical section."""

    def launch_command(self, command: SrunCommand) -> "List[str]":
        """Return srun's arguments for a first launch."""
        return command.arguments

    def restart_command(self, command: SrunCommand, generation: Generation, failure_path: str
                        ) -> "List[str]":
        """Return srun's arguments for a restart from a generation."""
        return command.arguments

    def checkpoint(self, steps: "List[StepInfo]", directory: str, store: Store,
                   operation: Operation) -> Images:
        """Image every task of the step into directory, durably.

        Thread: worker.  With operation.stop no task runs on after its image, until release().
        Raises: CheckpointError, after which all tasks run on."""
        raise CheckpointError("engine {}: takes no checkpoints".format(self.name))

    def release(self, steps: "List[StepInfo]", stop: bool, committed: bool) -> None:
        """After the commit: end the tasks if that was asked for; without one, let them go on.

        Thread: worker.  Raises: SrunCrError."""


class Criu(Engine):
    """Images of the tasks' processes by CRIU; programs need nothing."""

    name = "criu"

    def __init__(self, config: Config, slurm: Slurm, log: Messages) -> None:
        super().__init__(config, slurm, log)
        self._helpers = []  # type: List[Tuple[StepInfo, NodeHelper]]

    def unavailable(self) -> "Optional[str]":
        command = self.config.commands["criu"]
        try:
            path = find_command(command[0], self.config.search_path + ":/usr/sbin:/usr/local/sbin")
        except CommandError as error:
            return str(error)
        if os.geteuid() != 0 and len(command) == 1:
            # `sudo -n criu` and the like are believed; a program must carry capabilities.
            try:
                os.getxattr(path, "security.capability")
            except OSError:
                return ("{}: has no capabilities for ordinary users: setcap "
                        "cap_checkpoint_restore,cap_setpcap+eip, or let SRUN_CR_CRIU say how to "
                        "run it".format(path))
        return None

    def refuses(self, command: SrunCommand) -> "Optional[str]":
        # CRIU dumps a --pty task as one of a shell's jobs, and cannot restore it as a task.
        for option, why in (("multi-prog", "its tasks cannot be given a restore command"),
                            ("pty", "a pseudo-terminal cannot be imaged"),
                            ("async", "there is no srun to supervise")):
            if command.has(option):
                return "--{}: {}".format(option, why)
        return None

    def _criu(self) -> "List[str]":
        words = list(self.config.commands["criu"])
        words[0] = find_command(words[0],
                                self.config.search_path + ":/usr/sbin:/usr/local/sbin")
        if os.geteuid() != 0 and len(words) == 1:
            words.append("--unprivileged")
        return words

    def restart_command(self, command: SrunCommand, generation: Generation, failure_path: str
                        ) -> "List[str]":
        import json
        return command.with_prefix(node_command("restart", json.dumps(
            {"directory": generation.path, "failure": failure_path, "criu": self._criu(),
             "scancel": self.config.commands["scancel"],
             "proctrack": self.slurm.proctrack()}, sort_keys=True)))

    def checkpoint(self, steps: "List[StepInfo]", directory: str, store: Store,
                   operation: Operation) -> Images:
        import json
        sizes = {}  # type: Dict[str, Tuple[int, int]]
        files = {}  # type: Dict[str, Tuple[int, int]]
        details = {}  # type: Dict[str, str]
        self._helpers = []
        first_rank = 0
        try:
            for step in steps:
                # scontrol counts the tasks of each component from 0, SLURM_PROCID does not.
                request = {"first_rank": first_rank,
                           "step": step.name, "directory": directory, "criu": self._criu(),
                           "scontrol": self.config.commands["scontrol"], "stop": operation.stop,
                           "wait_s": max(1.0, operation.deadline - time.monotonic())}
                first_rank += step.tasks
                self._helpers.append((step, NodeHelper(
                    self.slurm, step, operation, ["checkpoint", json.dumps(request)])))
            for step, helper in self._helpers:
                self._collect(step, helper, operation, sizes, files, details)
        except BaseException:
            self.release(steps, stop=False, committed=False)
            raise
        return Images(sizes=sizes, files=files, details=details)

    @staticmethod
    def _collect(step: StepInfo, helper: NodeHelper, operation: Operation,
                 sizes: "Dict[str, Tuple[int, int]]", files: "Dict[str, Tuple[int, int]]",
                 details: "Dict[str, str]") -> None:
        """Read one component's reports until all its tasks are there."""
        tasks = nodes = 0
        for report in helper.reports():
            if "image" in report:
                sizes[report["image"]] = (report["bytes"], report["files"])
                tasks += 1
            elif "path" in report:
                # Frozen one after the other, several tasks may have one file open: the largest
                # size is the one that lacks nothing.
                size = max(report["bytes"], files.get(report["path"], (0, 0))[0])
                files[report["path"]] = (size, report["inode"])
            elif "done" in report:
                details.setdefault("criu", report["done"])
                nodes += 1
                # Frozen tasks' nodes wait for the verdict; the others just end.
                if operation.stop and nodes == step.nodes:
                    break
        if nodes != step.nodes or step.tasks and tasks != step.tasks:
            raise CheckpointError("{} of {} imaged on {} of {}: {}".format(
                tasks, plural(step.tasks, "task"), nodes, plural(step.nodes, "node"),
                helper.why()))

    def release(self, steps: "List[StepInfo]", stop: bool, committed: bool) -> None:
        helpers, self._helpers = self._helpers, []
        for _, helper in helpers:
            helper.tell("end" if stop else "resume")
        for step, helper in helpers:
            if helper.end():
                # A node's process that was killed has left its tasks frozen: by other means.
                self.log.debug("step {}: its helper failed: {}".format(step.name, helper.why()))
                self._release_again(step, stop)

    def _release_again(self, step: StepInfo, stop: bool) -> None:
        if stop:
            self.slurm.signal_tasks(step, signal.SIGKILL)
            return
        # Not scancel: it reaches the tasks' process groups, which not all of a tree need be in.
        helper = self.slurm.start_on_nodes(step, node_command(
            "resume", step.name, *self.config.commands["scontrol"]))
        try:
            _, errors = helper.communicate(timeout=KILL_TIMEOUT_S)
            if helper.returncode:
                self.log.debug("step {}: {}".format(step.name, errors.decode("utf-8", "replace")))
        finally:
            helper.kill()


class App(Engine):
    """Programs that save themselves when they get a signal."""

    name = "app"
    saves_and_exits = True

    def __init__(self, config: Config, slurm: Slurm, log: Messages) -> None:
        super().__init__(config, slurm, log)
        self._linked = []  # type: List[str]    # staged files that are images now

    def unavailable(self) -> "Optional[str]":
        return None if self.config.app_signal is not None else "SRUN_CR_APP_SIGNAL is not set"

    @staticmethod
    def _staging(store: Store) -> str:
        return os.path.join(store.path, "staging")

    def prepare(self, store: Store) -> None:
        private_directory(self._staging(store))

    def environment(self, store: "Optional[Store]", generation: "Optional[Generation]"
                    ) -> "Dict[str, str]":
        environment = super().environment(store, generation)
        if store is not None:
            environment["SLURM_CHECKPOINT_IMAGE_DIR"] = self._staging(store)
        return environment

    @staticmethod
    def _saved(staging: str) -> "Dict[str, Tuple[int, int, int]]":
        """Return the images that are there: name -> what tells a new one from an old one."""
        found = {}
        for entry in os.listdir(staging):
            rank = entry[len("task."):-len(".ckpt")]
            if entry == "task.{}.ckpt".format(rank) and rank.isdigit():
                try:
                    status = os.lstat(os.path.join(staging, entry))
                except FileNotFoundError:
                    continue
                found[entry] = (status.st_ino, status.st_mtime_ns, status.st_ctime_ns)
        return found

    def checkpoint(self, steps: "List[StepInfo]", directory: str, store: Store,
                   operation: Operation) -> Images:
        assert self.config.app_signal is not None
        staging = self._staging(store)
        self._check_caught(steps, operation)
        before = self._saved(staging)
        for step in steps:
            self.slurm.signal_tasks(step, self.config.app_signal)
        names = self._wait_saved(steps, store, operation, staging, before)
        sizes = {}
        self._linked = []
        try:
            for name in names:
                source, target = os.path.join(staging, name), os.path.join(directory, name)
                # Until the commit the program's own copy stays: should that fail, it is all
                # there is of a program that has saved itself and ended.
                try:
                    os.link(source, target)
                    self._linked.append(source)
                except OSError:  # a directory, or a file system without hard links
                    os.rename(source, target)
                sizes[name] = fsync_tree(target)
        except OSError as error:
            raise CheckpointError("{}: {}".format(error.filename, error.strerror)) from error
        return Images(sizes=sizes, files={}, details={
            "app_signal": signal_name(self.config.app_signal)})

    def _check_caught(self, steps: "List[StepInfo]", operation: Operation) -> None:
        """Raise CheckpointError if the signal would kill a task."""
        for step in steps:
            helper = NodeHelper(self.slurm, step, operation, [
                "catches", step.name, str(self.config.app_signal),
                *self.config.commands["scontrol"]])
            try:
                for _ in helper.reports():
                    pass
            finally:
                helper.end()

    def _wait_saved(self, steps: "List[StepInfo]", store: Store, operation: Operation,
                    staging: str, before: "Dict[str, Tuple[int, int, int]]") -> "List[str]":
        """Wait until the tasks have saved themselves; return the names of the images."""
        total = sum(step.tasks for step in steps)
        ranks = self._ranks(store)
        start = time.monotonic()
        alone_since = None  # type: Optional[float]
        while True:
            ended = operation.step_ended  # before the look: what ended has saved by now
            now = self._saved(staging)
            new = sorted(name for name, what in now.items() if before.get(name) != what)
            if len(new) == total or new == ["task.0.ckpt"] and ranks == "0":
                return new
            if new == ["task.0.ckpt"] and ranks == "auto":
                if alone_since is None:
                    alone_since = time.monotonic()
                settle_s = max(APP_SETTLE_S, 10 * (alone_since - start))
                if ended or time.monotonic() - alone_since >= settle_s:
                    return new
            if ended:
                raise CheckpointError("the step ended with {} of {} saved".format(
                    len(new), plural(total, "task")))
            operation.wait([], APP_POLL_S)

    def _ranks(self, store: Store) -> str:
        """Return whether all ranks save, or rank 0 alone; what they once did, if not told."""
        if self.config.app_ranks == "auto":
            for generation in store.generations():
                try:
                    return "all" if len(generation.manifest["images"]) > 1 else "auto"
                except GenerationError:
                    continue
        return str(self.config.app_ranks)

    def release(self, steps: "List[StepInfo]", stop: bool, committed: bool) -> None:
        if committed:
            for path in self._linked:
                os.unlink(path)
        if stop:
            for step in steps:
                try:
                    self.slurm.signal_tasks(step, signal.SIGKILL)
                except SrunCrError as error:  # ended by itself, after it had saved
                    self.log.debug(str(error))


class Blcr(Engine):
    """BLCR, through libcr and libslurm of Slurm <= 18.08: what the original srun_cr did.

    BLCR dumps this process, with the batch script, and tells us so in a thread of libcr's; the
    tasks are imaged by their slurmstepds, as slurm_checkpoint_tasks() asks.  Requests come from
    `scontrol checkpoint` or cr_checkpoint; the images are where those want them, not in a Store.

    Thread: main, but _callback() and what it calls: libcr's."""

    name = "blcr"

    def __init__(self, config: Config, slurm: Slurm, log: Messages) -> None:
        super().__init__(config, slurm, log)
        self.launched = ()  # type: Tuple[StepInfo, ...]     # replaced as a whole, by main
        self.restarted = False      # srun and sockets are gone; main is yet to see it
        self._libcr = None  # type: Any
        self._libslurm = None  # type: Any
        self._client_id = -1
        self._last_begin = 0
        self._post = None  # type: Optional[Callable[[str, object], None]]

    def unavailable(self) -> "Optional[str]":
        try:
            bindings = load_sibling("srun_cr_ctypes")
        except ImportError as error:
            return "{}: copy it there, too".format(error)
        try:
            self._libslurm = bindings.load_libslurm(self.config.libraries["libslurm"])
            self._libcr = bindings.load_libcr(self.config.libraries["libcr"])
            find_command(self.config.commands["cr_run"][0], self.config.search_path)
        except (CommandError, bindings.LibraryError) as error:
            return str(error)
        return None

    def connect(self, post: "Callable[[str, object], None]") -> None:
        """Make this process one that BLCR can checkpoint.

        Before any signal is caught and srun is started.  Raises: SrunCrError."""
        self._post = post
        try:
            self._client_id = self._libcr.init()
            self._libcr.register_callback(self._callback, self._on_error)
        except load_sibling("srun_cr_ctypes").LibraryError as error:
            raise SrunCrError("SRUN_CR_ENGINE=blcr: {}".format(error)) from error

    def srun_prefix(self) -> "List[str]":
        words = self.config.commands["cr_run"]
        return [find_command(words[0], self.config.search_path), *words[1:], "--omit"]

    def enter(self) -> bool:
        return bool(self._libcr.tryenter_cs(self._client_id))

    def leave(self) -> None:
        self._libcr.leave_cs(self._client_id)

    def _callback(self) -> None:
        """Answer a request of BLCR: have the tasks imaged, then let us be dumped.

        It answers once, whatever happens: an exception before that is the bindings' affair, who
        cancel the request.  PERM_FAILURE, the original's answer to a failure, would kill the job
        that could not be saved."""
        bindings = load_sibling("srun_cr_ctypes")
        launched = self.launched
        directory, error = "", None
        try:
            directory = self._context_directory()
            if launched and not directory:
                raise CheckpointError("the context goes to a pipe or socket: the tasks' images "
                                      "have no directory: name a file")
            for step in launched:
                self._checkpoint_tasks(step, os.path.join(directory, step.name))
        except (SrunCrError, OSError, bindings.LibraryError) as failure:
            error = str(failure)
        result = self._libcr.checkpoint(bindings.CR_CHECKPOINT_READY if error is None
                                        else bindings.CR_CHECKPOINT_TEMP_FAILURE)
        assert self._post is not None
        if error is not None or result < 0:
            self._post("blcr-failed", error or self._libcr.strerror(result))
        elif result == 0:
            self._post("blcr-continued", directory)
        else:
            self.launched = ()      # at once: the next request may come before main has seen it
            self.restarted = True
            path = None
            try:
                path = self._libcr.restart_info()  # none if it was read from a pipe
            finally:
                self._post("blcr-restarted", (launched, os.path.dirname(path) if path
                                              else directory))

    def _on_error(self, error: BaseException) -> None:
        """The callback raised, and the bindings have cancelled the request."""
        assert self._post is not None
        self._post("blcr-failed", "{}: {}".format(type(error).__name__, error))

    def _context_directory(self) -> str:
        """Return the directory of the context file under way; '' if that is no file."""
        info = self._libcr.checkpoint_info()
        return os.path.dirname(info.path) or "." if info is not None and info.path else ""

    def _checkpoint_tasks(self, step: StepInfo, directory: str) -> None:
        """Have every slurmstepd of a step image its tasks.

        Raises: CheckpointError, LibraryError, OSError."""
        if len(self.launched) > 1:
            raise CheckpointError("heterogeneous step: a restart can be told one directory of "
                                  "images only (SLURM_RESTART_DIR)")
        # The time is the request's id: slurmstepd refuses a second one of the same second.
        # Not `<=`: after a restart elsewhere, or when it was set, the clock may be behind.
        while int(time.time()) == self._last_begin:
            time.sleep(0.05)
        self._last_begin = begin = int(time.time())
        before = self._images(directory)
        self._libslurm.checkpoint_tasks(int(step.job_id), int(step.step_id), begin, directory,
                                        min(int(self.config.wait_s), 65535), step.node_list)
        # slurmstepd takes an image program that was killed by a signal for one that succeeded,
        # and an earlier checkpoint has left images of the same names.
        ranks = [name for name, state in self._images(directory).items()
                 if before.get(name) != state]
        if len(ranks) < max(step.tasks, 1):
            raise CheckpointError("{}: {} of {} imaged".format(
                directory, len(ranks), plural(max(step.tasks, 1), "task")))

    @staticmethod
    def _images(directory: str) -> "Dict[str, Tuple[int, int, int]]":
        """Return name -> (inode, size, time) of the images there are; {} without directory.

        They are opened, as NFS looks for what another host has written at open(2) only.
        Raises: OSError."""
        found = {}
        try:
            names = os.listdir(directory)
        except FileNotFoundError:
            names = []
        for name in names:
            if name.startswith("task.") and name.endswith(".ckpt"):
                fd = os.open(os.path.join(directory, name), os.O_RDONLY | os.O_CLOEXEC)
                try:
                    status = os.fstat(fd)
                finally:
                    os.close(fd)
                found[name] = (status.st_ino, status.st_size, status.st_mtime_ns)
        return found


ENGINES = OrderedDict((engine.name, engine) for engine in (Blcr, Criu, App, Engine)
                      )  # type: OrderedDict[str, Type[Engine]]


def choose_engine(config: Config, slurm: Slurm, log: Messages, name: str) -> Engine:
    """Return the engine of that name; for `auto` the first that can work here.

    Raises: SrunCrError, if one asked for by name cannot."""
    if name != "auto":
        engine = ENGINES[name](config, slurm, log)
        why = engine.unavailable()
        if why is not None:
            raise SrunCrError("SRUN_CR_ENGINE={}: {}".format(name, why))
        return engine
    reasons = []
    for candidate in ENGINES.values():
        if candidate is Blcr:  # chosen before this where it can work: Supervisor.run()
            continue
        engine = candidate(config, slurm, log)
        why = engine.unavailable()
        if why is None:
            break
        reasons.append("{}: {}".format(candidate.name, why))
    if engine.name == "none":
        log.warning("no checkpoints, the step runs as with srun: " + "; ".join(reasons))
    return engine


# ---------------------------------------------------------------------------------------------
# On the nodes
# ---------------------------------------------------------------------------------------------

class NodeError(SrunCrError):
    """A node cannot do its part; the text goes to the supervisor."""


def list_tasks(scontrol: "Sequence[str]", step: str) -> "Dict[int, int]":
    """Return the tasks of a step on this node: global task id -> pid of the root process.

    Raises: NodeError.  Source: `scontrol listpids`, rows with a GLOBALID."""
    import subprocess
    node = os.environ.get("SLURMD_NODENAME", "")
    command = [*scontrol, "listpids", step] + ([node] if node else [])
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE, timeout=COMMAND_TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NodeError("{}: {}".format(quote_command(command), error)) from error
    tasks = {}
    for line in done.stdout.decode("ascii", "replace").splitlines():
        words = line.split()
        if len(words) == 5 and words[0].isdigit() and words[4].isdigit():
            tasks[int(words[4])] = int(words[0])
    if not tasks:
        words = done.stderr.decode("utf-8", "replace").strip().splitlines()
        raise NodeError("{}: {}".format(quote_command(command),
                                        words[0] if words else "no task is running"))
    return {rank: imaged_root(pid, rank) for rank, pid in tasks.items()}


def imaged_root(pid: int, rank: int) -> int:
    """Return the process to image for a task: the task, or what its restart_task() restored.

    Raises: NodeError, if it is still being restored."""
    try:
        with open("/proc/{}/cmdline".format(pid), "rb") as file:
            words = file.read().split(b"\0")
        if BOOTSTRAP.encode("ascii") not in words or b"restart" not in words:
            return pid
        children = child_pids(pid)
        with open("/proc/{}/comm".format(pid), "rb") as file:
            restored = file.read() == RESTORED_NAME + b"\n"
    except OSError as error:
        raise NodeError("task {}: {}".format(rank, error.strerror)) from error
    if not restored or len(children) != 1:
        raise NodeError("task {}: is still being restored: try again".format(rank))
    return children[0]


RESTORED_NAME = b"srun_cr-task"     # of restart_task() once its task runs, in /proc/PID/comm


def child_pids(pid: int) -> "List[int]":
    """Return the children of all threads of a process.  Raises: OSError, if it has ended."""
    children = []  # type: List[int]
    for thread in os.listdir("/proc/{}/task".format(pid)):
        try:
            with open("/proc/{}/task/{}/children".format(pid, thread)) as file:
                children += map(int, file.read().split())
        except OSError:
            continue
    return children


def process_tree(pid: int) -> "List[int]":
    """Return a process and all its descendants, ancestors first."""
    tree = [pid]
    for member in tree:
        try:
            tree += child_pids(member)
        except OSError:
            continue
    return tree


def appended_files(pids: "Iterable[int]") -> "List[str]":
    """Return the regular files that these processes have open for appending.

    CRIU neither records nor checks the size of such a file."""
    paths = []
    for pid in pids:
        base = "/proc/{}".format(pid)
        try:
            fds = os.listdir(base + "/fd")
        except OSError:
            continue
        for fd in fds:
            try:
                with open("{}/fdinfo/{}".format(base, fd)) as file:
                    flags = int(file.read().partition("flags:")[2].split()[0], 8)
                if flags & os.O_APPEND and flags & os.O_ACCMODE:
                    path = os.readlink("{}/fd/{}".format(base, fd))
                    if os.path.isfile(path) and path not in paths:
                        paths.append(path)
            except (OSError, ValueError, IndexError):
                continue
    return paths


def parse_message(data: bytes) -> "Dict[int, List[Union[int, bytes]]]":
    """Return the fields of one protobuf message: number -> values; what is nested stays bytes.

    Raises: ValueError.  Source: the wire format of Protocol Buffers."""
    fields = {}  # type: Dict[int, List[Union[int, bytes]]]
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value
            if shift > 63:
                raise ValueError("varint too long")

    try:
        while at < len(data):
            key = varint()
            wire = key & 7
            if wire == 0:
                fields.setdefault(key >> 3, []).append(varint())
                continue
            length = {1: 8, 5: 4}.get(wire, -1) if wire != 2 else varint()
            if length < 0 or at + length > len(data):
                raise ValueError("wire type {} or length {}".format(wire, length))
            fields.setdefault(key >> 3, []).append(data[at:at + length])
            at += length
    except IndexError as error:
        raise ValueError("truncated message") from error
    return fields


def read_image(path: str) -> "Iterator[Dict[int, List[Union[int, bytes]]]]":
    """Yield the entries of one of CRIU's image files.

    Raises: OSError, ValueError.  Source: CRIU's images: two magic numbers, then entries of a
    32-bit size and a protobuf message."""
    with open(path, "rb") as file:
        data = file.read()
    at = 8
    while at + 4 <= len(data):
        size, = struct.unpack_from("<I", data, at)
        at += 4
        if at + size > len(data):
            raise ValueError(path + ": truncated")
        yield parse_message(data[at:at + size])
        at += size
    if at != len(data):
        raise ValueError(path + ": truncated")


class CriuFiles:
    """The open files in an image of CRIU, as far as a restore needs to know them.

    Raises: OSError, ValueError.  Source: CRIU's images/fdinfo.proto, regfile.proto, pipe.proto."""

    def __init__(self, directory: str) -> None:
        try:
            self._read(directory)
        except (KeyError, AssertionError) as error:
            raise ValueError("{}: damaged: {!r}".format(directory, error)) from error

    def _read(self, directory: str) -> None:
        self.written = {}  # type: Dict[str, int]       # path -> size when frozen
        ends = {}  # type: Dict[int, Set[int]]          # pipe -> access modes of its open ends
        pipes = {}  # type: Dict[int, int]              # file id -> pipe
        for entry in read_image(os.path.join(directory, "files.img")):
            for raw in entry.get(3, []):  # reg_file_entry
                assert isinstance(raw, bytes)
                file = parse_message(raw)
                flags, = file[2]
                assert isinstance(flags, int)
                if flags & os.O_ACCMODE and 8 in file:
                    name, size = file[6][0], file[8][0]
                    assert isinstance(name, bytes) and isinstance(size, int)
                    self.written[os.fsdecode(name)] = size
            for raw in entry.get(18, []):  # pipe_entry
                assert isinstance(raw, bytes)
                pipe = parse_message(raw)
                number, flags = pipe[2][0], pipe[3][0]
                assert isinstance(number, int) and isinstance(flags, int)
                pipes[int(str(entry[2][0]))] = number
                ends.setdefault(number, set()).add(flags & os.O_ACCMODE)
        # A pipe with both ends in the image is the task's own; of the others slurmstepd has the
        # far end: standard input, output and error, wherever the task has put them.
        self.outside = {number: 0 if modes == {os.O_RDONLY} else 1
                        for number, modes in ends.items() if len(modes) == 1
                        and os.O_RDWR not in modes}  # type: Dict[int, int]
        at_fd = {}  # type: Dict[int, Set[int]]
        for entry_name in os.listdir(directory):
            if entry_name.startswith("fdinfo-"):
                for entry in read_image(os.path.join(directory, entry_name)):
                    file_id, fd = int(str(entry[1][0])), int(str(entry[4][0]))
                    if file_id in pipes:
                        at_fd.setdefault(pipes[file_id], set()).add(fd)
        for number, fd in self.outside.items():
            if fd == 1 and 1 not in at_fd.get(number, ()) and 2 in at_fd.get(number, ()):
                self.outside[number] = 2


def criu_reason(path: str, output: bytes) -> str:
    """Return the line of CRIU's log that says why it failed, without its prefixes."""
    try:
        with open(path, "rb") as file:
            lines = file.read().splitlines()
    except OSError:
        lines = []
    # Of a limit that it cannot raise CRIU says so, and goes on.
    errors = [line for line in lines if b"Error (" in line and b"): rlimit: " not in line]
    errors = errors or output.strip().splitlines()[-1:]
    for line in errors:
        text = line.decode("utf-8", "replace").partition("Error (")[2] or line.decode(
            "utf-8", "replace")
        return text.partition("): ")[2].strip() or text.strip()
    return "no reason in " + path


class TaskDump:
    """The image of one task in the making."""

    def __init__(self, request: "Mapping[str, Any]", rank: int, pid: int) -> None:
        import shlex
        import subprocess
        self.rank = rank
        self.pid = pid
        self.name = "task.{}.ckpt".format(rank)
        self.directory = os.path.join(request["directory"], self.name)
        os.mkdir(self.directory, 0o700)
        command = [*request["criu"], "dump", "-t", str(pid), "-D", self.directory,
                   "--shell-job", "--manage-cgroups=ignore", "-v4", "-o", "dump.log",
                   "--leave-stopped" if request["stop"] else "--leave-running"]
        self._appended = appended_files(process_tree(pid))
        self._sizes = os.path.join(self.directory, "appended")
        if self._appended:
            # At this point of a dump the tasks are frozen: the sizes belong to the image.
            # CRIU executes the file, it asks no shell.
            script = self._sizes + ".sh"
            fd = os.open(script, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o700)
            write_all(fd, os.fsencode(
                '#!/bin/sh\n[ "$CRTOOLS_SCRIPT_ACTION" != post-dump ] || stat -c "%s %i %n" -- {} '
                '>{}\n'.format(" ".join(map(shlex.quote, self._appended)),
                               shlex.quote(self._sizes))))
            os.close(fd)
            command += ["--action-script", script]
        # A group of its own, to be ended with what the setting wraps around CRIU.
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL,
                                        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                        start_new_session=True)

    def finish(self, deadline: float) -> None:
        """Wait for CRIU.  Raises: NodeError with its reason."""
        import subprocess
        try:
            output = self.process.communicate(timeout=max(0.1, deadline - time.monotonic()))[0]
        except subprocess.TimeoutExpired:
            try:
                os.killpg(self.process.pid, signal.SIGKILL)
            except PermissionError:  # sudo's: it ends when it is done
                pass
            self.process.communicate()
            raise NodeError("task {}: criu dump not done in SRUN_CR_WAIT seconds".format(
                self.rank)) from None
        if self.process.returncode:
            raise NodeError("task {}: criu: {}".format(self.rank, criu_reason(
                os.path.join(self.directory, "dump.log"), output)))

    def reports(self) -> "Iterator[Dict[str, Any]]":
        """Make the image durable and yield what the supervisor has to know of it."""
        found = []
        for path, size in CriuFiles(self.directory).written.items():
            try:
                found.append((path, size, os.stat(path).st_ino))
            except OSError:
                continue
        if self._appended and os.path.exists(self._sizes):
            with open(self._sizes, encoding="utf-8", errors="surrogateescape") as file:
                for line in file.read().splitlines():
                    words = line.split(" ", 2)
                    if len(words) == 3:
                        found.append((words[2], int(words[0]), int(words[1])))
        size_bytes, files = fsync_tree(self.directory)
        for path, size, inode in found:
            yield {"path": path, "bytes": size, "inode": inode}
        yield {"image": self.name, "bytes": size_bytes, "files": files}


def report(value: "Mapping[str, Any]") -> None:
    """Print one line for the supervisor, in one write."""
    import json
    line = json.dumps(value).encode("ascii") + b"\n"
    if len(line) <= REPORT_LINE_MAX_BYTES or "path" not in value:
        write_all(1, line)


def signal_tree(pid: int, number: int) -> None:
    """Send a signal to every process of a task."""
    for member in process_tree(pid):
        try:
            os.kill(member, number)
        except ProcessLookupError:
            pass


def checkpoint_node(request: "Mapping[str, Any]") -> int:
    """Image all tasks of a step on this node at once, and report; node side of Criu.checkpoint().

    With request["stop"] the tasks are frozen then, and a line on standard input says whether they
    end or go on: if the supervisor is gone they go on."""
    deadline = time.monotonic() + request["wait_s"]
    if not os.path.isdir(request["directory"]):
        raise NodeError("{}: not there: SRUN_CR_DIR must be a directory that all nodes share"
                        .format(request["directory"]))
    dumps = []  # type: List[TaskDump]
    verdict = b"resume"
    try:
        for rank, pid in sorted(list_tasks(request["scontrol"], request["step"]).items()):
            dumps.append(TaskDump(request, request["first_rank"] + rank, pid))
        errors = []
        for dump in dumps:
            try:
                dump.finish(deadline)
            except NodeError as error:
                errors.append(error)
        if errors:
            raise errors[0]
        for dump in dumps:
            for line in dump.reports():
                report(line)
        report({"done": criu_version(request["criu"])})
        if request["stop"]:
            verdict = os.read(0, 64).strip()
    finally:
        if request["stop"]:
            for dump in dumps:
                dump.process.wait()
                signal_tree(dump.pid, signal.SIGKILL if verdict == b"end" else signal.SIGCONT)
    return 0


def criu_version(criu: "Sequence[str]") -> str:
    """Return CRIU's version, empty if it does not say."""
    import subprocess
    done = subprocess.run([*criu, "--version"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.DEVNULL)
    words = done.stdout.decode("ascii", "replace").split()
    return words[1] if words[:1] == ["Version:"] else ""


def resume_tasks(step: str, scontrol: "Sequence[str]") -> int:
    """Have frozen tasks of this node go on, whose checkpoint_node() was killed."""
    for pid in list_tasks(scontrol, step).values():
        signal_tree(pid, signal.SIGCONT)
    return 0


def check_catches(step: str, number: int, scontrol: "Sequence[str]") -> int:
    """Check that every task of this node catches a signal; node side of App.checkpoint()."""
    for rank, pid in sorted(list_tasks(scontrol, step).items()):
        with open("/proc/{}/status".format(pid)) as file:
            masks = dict(line.split(":\t", 1) for line in file.read().splitlines()
                         if line.startswith("Sig") and ":\t" in line)
        handled = int(masks["SigCgt"], 16) | int(masks["SigIgn"], 16) | int(masks["SigBlk"], 16)
        if not handled >> (number - 1) & 1:
            raise NodeError("task {}: does not catch {}, it would be killed: not sent".format(
                rank, signal_name(number)))
    return 0


class RestoredTask:
    """One task on its way back from its image; node side of Criu.restart_command().

    Runs as the task that Slurm started and stays its parent: passes signals on and mirrors how
    it ends."""

    def __init__(self, request: "Mapping[str, Any]") -> None:
        self._request = request
        self._rank = os.environ.get("SLURM_PROCID", "0")
        self._images = os.path.join(request["directory"], "task.{}.ckpt".format(self._rank))
        self._signals = Signals()
        self._early = []  # type: List[int]     # signals that came before the task was there
        self._pid = 0

    def run(self) -> int:
        """Restore the task and wait for it; return its wait status."""
        self._signals.open()
        try:
            self._restore()
        except (SrunCrError, OSError, ValueError) as error:
            self._fail(str(error))
            return 1 << 8
        return self._supervise()

    def _restore(self) -> None:
        import shutil
        import subprocess
        import tempfile
        status = os.lstat(self._images)
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
            raise NodeError(self._images + ": not a directory of ours")
        # CRIU replaces descriptors 0 to 2 early: they cannot be the ones it inherits from.
        import fcntl
        ours = [fcntl.fcntl(fd, fcntl.F_DUPFD, 100) for fd in (0, 1, 2)]
        work = tempfile.mkdtemp(prefix="srun_cr.")
        try:
            command = [*self._request["criu"], "restore", "-D", self._images, "-W", work,
                       "--shell-job", "--manage-cgroups=ignore", "-d", "-S", "-v4",
                       "-o", "restore.log", "--pidfile", os.path.join(work, "pid")]
            for pipe, fd in sorted(CriuFiles(self._images).outside.items()):
                command += ["--inherit-fd", "fd[{}]:pipe:[{}]".format(ours[fd], pipe)]
            # A process group of its own: all tasks of a node share the one that slurmstepd
            # signals, and would get each signal twice, from there and from their parent here.
            self._early = self._signals.take()
            done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                  stderr=subprocess.STDOUT, pass_fds=ours,
                                  preexec_fn=_restore_in_own_group)
            if done.returncode:
                raise NodeError("criu: " + criu_reason(os.path.join(work, "restore.log"),
                                                       done.stdout))
            with open(os.path.join(work, "pid")) as file:
                self._pid = int(file.read())
        finally:
            shutil.rmtree(work, ignore_errors=True)
            # slurmstepd waits for the end of these; they are the task's alone now.
            for fd in ours:
                os.close(fd)
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, 0)
        os.dup2(null, 1)
        with open("/proc/self/comm", "wb", buffering=0) as comm:
            comm.write(RESTORED_NAME)

    def _fail(self, why: str) -> None:
        """Leave word for the supervisor, who tries the generation before, and end the step."""
        import subprocess
        text = "task {} on {}: {}".format(
            self._rank, os.environ.get("SLURMD_NODENAME") or socket.gethostname(), why)
        Messages().error("{} cannot be restored: {}".format(self._request["directory"], text))
        try:
            fd = os.open(self._request["failure"], os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except OSError:
            return  # another task was first: it ends the step
        write_all(fd, text.encode("utf-8", "surrogateescape"))
        os.close(fd)
        step = "{}.{}".format(os.environ.get("SLURM_JOB_ID"), os.environ.get("SLURM_STEP_ID"))
        subprocess.call([*self._request["scancel"], step], stdin=subprocess.DEVNULL,
                        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                        preexec_fn=unblock_signals)

    def _supervise(self) -> int:
        """Pass signals on until the task ends; return its wait status."""
        # linuxproc sends a signal to all descendants of slurmstepd, so the task has it already,
        # unless it came before the task did; pgid to a group, cgroup to slurmstepd's children.
        plugin = self._request["proctrack"]
        numbers = self._early
        while True:
            for number in numbers:
                if number not in (0, signal.SIGCHLD):
                    try:
                        if plugin == "cgroup":
                            os.kill(self._pid, number)
                        else:
                            os.killpg(os.getpgid(self._pid), number)
                    except (ProcessLookupError, PermissionError):
                        pass
            pid, status = os.waitpid(self._pid, os.WNOHANG)
            if pid:
                return status
            self._signals.wait()
            numbers = self._signals.take()
            if plugin == "linuxproc":
                numbers = []


def _restore_in_own_group() -> None:
    """Set the child up that is to be `criu restore`: all signals as a task has them."""
    os.setpgid(0, 0)
    unblock_signals()


def node_main(arguments: "Sequence[str]") -> int:
    """Run the node side of an engine, which says what: see its node_command() calls."""
    import json

    def on_term(number: int, frame: object) -> None:
        raise NodeError("ended by " + signal_name(number))

    try:
        if arguments[0] == "restart":
            mimic(RestoredTask(json.loads(arguments[1])).run())
        if arguments[0] == "catches":
            return check_catches(arguments[1], int(arguments[2]), arguments[3:])
        if arguments[0] == "resume":
            return resume_tasks(arguments[1], arguments[2:])
        signal.signal(signal.SIGTERM, on_term)  # frozen tasks are not left behind
        return checkpoint_node(json.loads(arguments[1]))
    except (SrunCrError, OSError, ValueError) as error:
        report({"error": "{}: {}".format(
            os.environ.get("SLURMD_NODENAME") or socket.gethostname(), error)[:600]})
        return EXIT_FAILURE


# ---------------------------------------------------------------------------------------------
# Signals, terminal, child
# ---------------------------------------------------------------------------------------------

def _note_only(number: int, frame: object) -> None:
    """Handle every signal: what counts is the byte that Python writes to the wakeup pipe."""


class Signals:
    """The signals of this process, as bytes in a pipe.

    They are blocked but where main waits or takes them: in a storm main would else get no
    further than from one handler to the next.  Blocked, the kernel keeps one of each standard
    signal, and queues the real-time ones.
    Thread: main, but post().  What was ignored on entry stays so, in us and in srun."""

    def __init__(self) -> None:
        self.inherited_mask = set()  # type: Set[int]
        self.inherited_ignored = set()  # type: Set[int]
        self.read_fd = self.write_fd = -1
        self._caught = []  # type: List[int]
        self._fault_thread = False

    def open(self, wanted: "Iterable[int]" = ()) -> None:
        """Catch all that can be; `wanted` also if ignored on entry."""
        self.read_fd, self.write_fd = os.pipe()
        os.set_blocking(self.read_fd, False)
        os.set_blocking(self.write_fd, False)
        if sys.version_info >= (3, 7):
            signal.set_wakeup_fd(self.write_fd, warn_on_full_buffer=False)
        else:
            signal.set_wakeup_fd(self.write_fd)
        self.inherited_mask = {int(n) for n in signal.pthread_sigmask(signal.SIG_BLOCK, QUEUED)
                               if n not in (32, 33)}
        self.inherited_ignored = {int(n) for n in FAULTS if signal.getsignal(n) == signal.SIG_IGN}
        for number in sorted(ALL_SIGNALS - NOT_CAUGHT):
            if signal.getsignal(number) == signal.SIG_IGN:
                self.inherited_ignored.add(number)
                # Children of a process that ignores SIGCHLD leave no status behind.
                if number != signal.SIGCHLD and number not in wanted:
                    continue
            signal.signal(number, _note_only)
            self._caught.append(number)
        signal.pthread_sigmask(signal.SIG_SETMASK, ALL_SIGNALS)

    def start_fault_thread(self) -> None:
        """Take what other processes send of QUEUED, as sigwaitinfo() tells from real faults."""
        if not self._fault_thread:
            import _thread
            self._fault_thread = True
            _thread.start_new_thread(self._take_queued, ())

    def _take_queued(self) -> None:
        own = os.getpid()
        while True:
            info = signal.sigwaitinfo(QUEUED)
            if info.si_pid == own or info.si_signo in self.inherited_ignored:
                continue  # our own write() raised it, or nohup-like: nobody's
            try:
                os.write(self.write_fd, bytes((info.si_signo,)))
            except BlockingIOError:
                pass  # full: a standard signal is at least one of many

    def end(self) -> None:
        """Let signals come and go: nobody will take them any more.

        Python 3.6 prints a line for each that finds the pipe full, and a storm would go on."""
        signal.set_wakeup_fd(-1)

    def post(self) -> None:
        """Wake main up.  Thread: any."""
        try:
            os.write(self.write_fd, b"\0")
        except BlockingIOError:
            pass  # full: main has enough to wake up for

    def select(self, selector: "selectors.BaseSelector", timeout_s: "Optional[float]" = None
               ) -> "List[Tuple[selectors.SelectorKey, int]]":
        """Wait for what the selector waits for, and for signals.

        Blocked on entry or not: srun would take them by sigwait()."""
        signal.pthread_sigmask(signal.SIG_SETMASK, QUEUED)
        try:
            return selector.select(timeout_s)
        finally:
            signal.pthread_sigmask(signal.SIG_BLOCK, ALL_SIGNALS)

    def wait(self, timeout_s: "Optional[float]" = None) -> None:
        """Wait until there is something to take."""
        with selectors.PollSelector() as selector:
            selector.register(self.read_fd, selectors.EVENT_READ)
            self.select(selector, timeout_s)

    def take(self) -> "List[int]":
        """Return the signals that came, 0 for post(); in order, the standard ones once each.

        Real-time signals are queued by the kernel, so they are counted here, too."""
        signal.pthread_sigmask(signal.SIG_SETMASK, QUEUED)     # what is pending gets its byte
        signal.pthread_sigmask(signal.SIG_BLOCK, ALL_SIGNALS)
        data = b""
        while True:
            try:
                part = os.read(self.read_fd, 65536)
            except BlockingIOError:
                break
            data += part
        numbers = []  # type: List[int]
        seen = set()  # type: Set[int]
        for number in data:
            if number not in seen or number >= signal.SIGRTMIN:
                seen.add(number)
                numbers.append(number)
        return numbers

    def stop_self(self, number: int) -> None:
        """Stop this process as `number` does by default; return when continued.

        At once, if our process group is orphaned: the kernel does not stop those."""
        import _thread
        if number == signal.SIGSTOP:
            signal.pthread_kill(_thread.get_ident(), number)
            return
        handler = signal.signal(number, signal.SIG_DFL)
        signal.pthread_kill(_thread.get_ident(), number)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})    # here we stop
        signal.pthread_sigmask(signal.SIG_BLOCK, {number})
        signal.signal(number, handler)

    def reset_in_child(self) -> None:
        """Give a child, between fork and exec, what we were started with."""
        signal.set_wakeup_fd(-1)
        for number in self._caught:
            signal.signal(number, signal.SIG_IGN if number in self.inherited_ignored
                          else signal.SIG_DFL)
        for number in PYTHON_IGNORES:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, self.inherited_mask)


class Terminal:
    """The controlling terminal, if there is one.  Thread: main."""

    def __init__(self) -> None:
        try:
            self._fd = os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
        except OSError:
            self._fd = -1

    @property
    def exists(self) -> bool:
        """Whether we have a controlling terminal."""
        return self._fd >= 0

    def foreground(self) -> bool:
        """Whether our process group has the terminal."""
        return self._owner() == os.getpgrp()

    def _owner(self) -> int:
        try:
            return os.tcgetpgrp(self._fd)
        except OSError:
            return -1

    def give(self, pgid: int) -> None:
        """Make a process group the foreground one; we may be in the background."""
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTTOU})
        try:
            os.tcsetpgrp(self._fd, pgid)
        except OSError:
            pass
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    def take_back(self, pgid: int) -> bool:
        """Make ours the foreground group again, if it is still pgid's; return whether it was."""
        if not self.exists or self._owner() != pgid:
            return False
        self.give(os.getpgrp())
        return True

    def close(self) -> None:
        """Release the descriptor; a restart by BLCR may have closed it."""
        fd, self._fd = self._fd, -1
        try:
            if fd >= 0:
                os.close(fd)
        except OSError:
            pass


def group_is_orphaned() -> bool:
    """Whether nobody in our session, but outside our process group, is parent of its members.

    The kernel does not stop such a group for terminal access, it fails the access with EIO."""
    pgid, sid = os.getpgrp(), os.getsid(0)
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                member = ProcessStat(int(entry))
                if member.pgid == pgid and member.state not in "ZX":
                    parent = ProcessStat(member.parent)
                    if parent.pgid != pgid and parent.sid == sid:
                        return False
            except (OSError, ValueError, IndexError):
                continue
    return True


class Child:
    """srun: a process group of its own, waited for by pid.  Thread: main."""

    def __init__(self, command: "Sequence[str]", environ: "Mapping[str, str]", signals: Signals,
                 terminal: Terminal) -> None:
        """Start it.  Raises: CommandError."""
        self._terminal = terminal
        foreground = terminal.exists and terminal.foreground()
        orphaned = terminal.exists and not foreground and group_is_orphaned()
        try:
            set_parent_death_signal = load_sibling("srun_cr_ctypes").set_parent_death_signal
        except ImportError:
            set_parent_death_signal = None
        parent = os.getpid()
        read_fd, write_fd = os.pipe()
        # Signals wait while there are two of us that could take them for their own: before the
        # fork they are ours, after it each has its own.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, ALL_SIGNALS)
        if sys.version_info >= (3, 12):
            import warnings     # of fork() beside threads: our child calls exec at once
            warnings.simplefilter("ignore", DeprecationWarning)
        self.pid = os.fork()
        if self.pid == 0:
            _become(command, environ, signals, terminal if foreground else None, orphaned,
                    set_parent_death_signal, parent, write_fd)
        try:
            os.setpgid(self.pid, self.pid)  # whichever of the two comes first
        except OSError:
            pass  # it has called exec, after its own setpgid
        if foreground:
            terminal.give(self.pid)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        os.close(write_fd)
        code = os.read(read_fd, 16)
        os.close(read_fd)
        if code:
            os.waitpid(self.pid, 0)
            terminal.take_back(self.pid)
            number = int(code)
            raise CommandError("{}: {}".format(command[0], os.strerror(number)),
                               EXIT_NOT_FOUND if number in (errno.ENOENT, errno.ENOTDIR)
                               else EXIT_CANNOT_EXECUTE)

    def send(self, number: int) -> None:
        """Send a signal to srun's process group; it may have ended.

        Never to a number that is not our child's: after a restart by BLCR it is anybody's."""
        try:
            os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            os.killpg(self.pid, number)
        except (ChildProcessError, ProcessLookupError, PermissionError):
            pass

    def resume(self, with_terminal: bool = True) -> None:
        """Have a stopped srun go on, with the terminal if it is ours."""
        if with_terminal and self._terminal.exists and self._terminal.foreground():
            self._terminal.give(self.pid)
        self.send(signal.SIGCONT)

    def poll(self) -> "Optional[int]":
        """Return the wait status of what has happened: ended or stopped; None: nothing.

        Raises: ChildProcessError, if somebody else has waited for it."""
        pid, status = os.waitpid(self.pid, os.WNOHANG | os.WUNTRACED)
        if pid == 0:
            return None
        self._terminal.take_back(self.pid)
        return status


def _become(command: "Sequence[str]", environ: "Mapping[str, str]", signals: Signals,
            terminal: "Optional[Terminal]", orphaned: bool,
            set_parent_death_signal: "Optional[Callable[[int], None]]", parent: int,
            error_fd: int) -> None:
    """Become srun; in the child, between fork and exec.  Never returns."""
    code = errno.EIO
    try:
        os.setpgid(0, 0)
        if terminal is not None:
            terminal.give(os.getpid())
        if orphaned:
            # Our group, whose place this one takes, would get EIO from the terminal.  This one
            # is not orphaned, as we are its parent: it would be stopped, again and again.
            for number in (signal.SIGTTIN, signal.SIGTTOU):
                signals.inherited_ignored.add(number)
        if set_parent_death_signal is not None:
            set_parent_death_signal(signal.SIGTERM)
            if os.getppid() != parent:
                os._exit(EXIT_FAILURE)
        signals.reset_in_child()
        os.execve(command[0], list(command), environ)
    except OSError as error:
        code = error.errno or errno.EIO
    finally:
        os.write(error_fd, str(code).encode("ascii"))
        os._exit(EXIT_FAILURE)


def mimic(status: int) -> "Any":
    """End as the process did whose wait status this is; never returns."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError, AttributeError):
            pass
    if os.WIFEXITED(status):
        # The interpreter gives all signals their defaults back while it ends.
        signal.pthread_sigmask(signal.SIG_BLOCK, ALL_SIGNALS)
        sys.exit(os.WEXITSTATUS(status))
    number = os.WTERMSIG(status)
    import resource
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    try:
        signal.signal(number, signal.SIG_DFL)
    except (OSError, ValueError):
        pass  # SIGKILL
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ALL_SIGNALS)
    os.kill(os.getpid(), number)
    sys.exit(128 + number)  # a signal whose default is not to end


# ---------------------------------------------------------------------------------------------
# The launch socket
# ---------------------------------------------------------------------------------------------

def temporary_directory(parent: str) -> str:
    """Create a directory for us alone, in which a Unix socket can be; return its path.

    Raises: OSError, if that can be neither in parent nor in /tmp."""
    for base in (parent, "/tmp"):
        path = os.path.join(base, "srun_cr.{}.{}".format(os.getpid(), os.urandom(6).hex()))
        if len(os.fsencode(path)) + len("/control") <= SOCKET_PATH_MAX_BYTES:
            try:
                os.mkdir(path, 0o700)
                return path
            except OSError:
                if base == "/tmp":
                    raise
    raise OSError(errno.ENAMETOOLONG, "no directory with a short enough path", parent)


class ProtocolError(SrunCrError):
    """A message on a socket is not what it should be."""


class LaunchMessage:
    """One message of srun <= 18.08, in the making.

    Source: its wire format, native byte order: uint32 job id, uint32 step id, int32 length, then
    length + 1 bytes of node list with a NUL at the end."""

    HEADER = struct.Struct("=IIi")

    def __init__(self) -> None:
        self._data = b""

    def feed(self, data: bytes) -> "Optional[StepInfo]":
        """Add what was read; return the step once the message is whole.

        Raises: ProtocolError."""
        self._data += data
        if len(self._data) < self.HEADER.size:
            return None
        job_id, step_id, length = self.HEADER.unpack_from(self._data)
        if not 0 <= length <= LAUNCH_NODELIST_MAX_BYTES:
            raise ProtocolError("node list of {} bytes, limit {}".format(
                length, LAUNCH_NODELIST_MAX_BYTES))
        body = self._data[self.HEADER.size:]
        if len(body) <= length:
            return None
        if len(body) != length + 1 or body.find(b"\0") != length:
            raise ProtocolError("the node list does not end where its length says")
        return StepInfo(job_id=str(job_id), step_id=str(step_id), nodes=0, tasks=0,
                        node_list=body[:length].decode("utf-8", "surrogateescape"))


class LaunchSocket:
    """Where srun <= 18.08 reports the step that it has launched.

    Every connection is accepted: a full backlog would block srun for good.  What another user,
    or another srun than ours, sends is read to its end and dropped.  Thread: main."""

    def __init__(self, directory: str, selector: "selectors.PollSelector",
                 is_ours: "Callable[[int], bool]", on_step: "Callable[[StepInfo], None]",
                 log: Messages) -> None:
        self.path = os.path.join(directory, "launch")
        self._selector = selector
        self._is_ours = is_ours
        self._on_step = on_step
        self._log = log
        self._open = {}  # type: Dict[socket.socket, Tuple[float, int, LaunchMessage]]
        self._resume = None  # type: Optional[float]    # when to accept again
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        mask = os.umask(0o177)
        try:
            self._listener.bind(self.path)
        finally:
            os.umask(mask)
        self._listener.listen(LAUNCH_BACKLOG)
        self._listener.setblocking(False)
        selector.register(self._listener, selectors.EVENT_READ, self._on_connect)

    def _on_connect(self, listener: socket.socket) -> None:
        while True:
            try:
                peer, _ = listener.accept()
            except BlockingIOError:
                return
            except OSError as error:  # no descriptor left: srun goes on without
                self._log.debug("launch socket: {}".format(error.strerror))
                # The listener stays readable: look away, or we would spin.
                self._selector.unregister(listener)
                self._resume = time.monotonic() + LAUNCH_PAUSE_S
                return
            peer.setblocking(False)
            pid, uid, _ = struct.unpack("iII", peer.getsockopt(
                socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
            if uid not in (0, os.geteuid()):
                self._log.debug("launch socket: user {} refused".format(uid))
                peer.close()
                continue
            self._open[peer] = (time.monotonic() + LAUNCH_READ_TIMEOUT_S, pid, LaunchMessage())
            self._selector.register(peer, selectors.EVENT_READ, self._on_data)

    def _on_data(self, peer: socket.socket) -> None:
        _, pid, message = self._open[peer]
        try:
            data = peer.recv(4096)
            if not data:
                raise ProtocolError("closed before the message was whole")
            step = message.feed(data)
        except BlockingIOError:
            return
        except (OSError, ProtocolError) as error:
            self._drop(peer, str(error))
            return
        if step is not None:
            if self._is_ours(pid):
                self._drop(peer, "step {} on {}".format(step.name, step.node_list))
                self._on_step(step)
            else:
                self._drop(peer, "step {} is of another srun".format(step.name))

    def _drop(self, peer: socket.socket, why: str) -> None:
        self._log.debug("launch socket: process {}: {}".format(self._open.pop(peer)[1], why))
        self._selector.unregister(peer)
        peer.close()

    def next_deadline(self) -> "Optional[float]":
        """Return the monotonic time at which expire() has something to do."""
        deadlines = [deadline for deadline, _, _ in self._open.values()]
        return min(deadlines + ([self._resume] if self._resume is not None else []), default=None)

    def expire(self) -> None:
        """Drop the peers that took too long."""
        now = time.monotonic()
        for peer in [peer for peer, (deadline, _, _) in self._open.items() if deadline <= now]:
            self._drop(peer, "silent for too long")
        if self._resume is not None and self._resume <= now:
            self._resume = None
            self._selector.register(self._listener, selectors.EVENT_READ, self._on_connect)

    def forget(self) -> None:
        """Drop what BLCR has closed behind our back: the numbers may be others' by now."""
        for peer in [self._listener, *self._open]:
            peer.detach()
        self._open.clear()
        self._resume = None
        self._unlink()

    def close(self) -> None:
        """Close all and remove the socket."""
        for peer in list(self._open):
            self._drop(peer, "srun has ended")
        if self._resume is None:
            self._selector.unregister(self._listener)
        self._listener.close()
        self._unlink()

    def _unlink(self) -> None:
        try:
            os.unlink(self.path)
        except OSError:
            pass


# ---------------------------------------------------------------------------------------------
# The supervisor
# ---------------------------------------------------------------------------------------------

class Outcome(Frozen):
    """How an operation went."""

    __slots__ = ("operation", "generation", "error")

    operation: Operation
    generation: "Optional[Generation]"      # None with no error: nothing was launched yet
    error: "Optional[str]"


def cpu_flags() -> str:
    """Return the flags of the first CPU, empty where the kernel does not say."""
    try:
        with open("/proc/cpuinfo") as file:
            for line in file:
                if line.startswith(("flags", "Features")):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return ""


class Supervisor:
    """Runs srun, and checkpoints, stops and restarts its step.

    Thread: main owns it all; _work() and what it calls are the worker's."""

    def __init__(self, config: Config, arguments: "Sequence[str]",
                 environ: "Mapping[str, str]", log: "Optional[Messages]" = None) -> None:
        self.config = config
        self.state = "LAUNCHING"
        self.steps = []  # type: List[StepInfo]     # as srun <= 18.08 reports them
        self._arguments = list(arguments)
        self._environ = dict(environ)
        self._log = log or Messages(config.verbosity)
        self._slurm = Slurm(config, self._log, environ)
        self._engine = Engine(config, self._slurm, self._log)
        self._command = None  # type: Optional[SrunCommand]
        self._store = None  # type: Optional[Store]
        self._candidates = []  # type: List[Generation]     # to restart from, newest first
        self._generation = None  # type: Optional[Generation]   # srun restarts from
        self._signals = Signals()
        self._terminal = Terminal()
        self._selector = selectors.PollSelector()
        self._events = deque()  # type: Deque[Tuple[str, Any]]
        self._directory = None  # type: Optional[str]
        self._launch_socket = None  # type: Optional[LaunchSocket]
        self._child = None  # type: Optional[Child]
        self._ended_with = None  # type: Optional[int]      # srun's wait status
        self._operation = None  # type: Optional[Operation]
        self._next = None  # type: Optional[Tuple[str, str]]    # kind, source
        self._intent = None  # type: Optional[str]      # vacate, requeue: srun's end is ours
        self._parent_pid = os.getppid()
        self._requeue_answered = False
        self._ending_since = 0.0    # monotonic; of Slurm's first signal after a requeue
        self._asked_to_end = False
        self._forwarded_stop = False
        self._early_signals = []  # type: List[int]     # came before srun was started
        self._launched = False  # known from a checkpoint: not all sruns report it
        self._held = False      # BLCR takes a checkpoint of us: no critical section
        self._shared = False    # the terminal, with our neighbours in a pipeline
        self._deadlines = {}  # type: Dict[str, Tuple[float, Callable[[], None]]]
        self._result = None  # type: Optional[int]      # our own wait status
        self._handlers = {
            "committed": self._on_committed, "outcome": self._on_outcome,
            "requeued": self._on_requeued, "counted": self._on_counted,
            "blcr-failed": self._on_blcr_failed, "blcr-continued": self._on_blcr_continued,
            "blcr-restarted": self._on_restart,
        }  # type: Dict[str, Callable[[Any], None]]

    def run(self) -> int:
        """Run the step; return the wait status to end with.

        Raises: SrunCrError, if srun could not be run."""
        self._connect_blcr()
        self._signals.open(self.config.signals)
        self._selector.register(self._signals.read_fd, selectors.EVENT_READ, self._on_wakeup)
        try:
            self._result = self._prepare()
            if self._result is None:
                self._critical(self._start)
            while self._result is None:
                self._turn()
            return self._result
        finally:
            self.state = "DONE"
            self._close()

    def post(self, event: str, value: object) -> None:
        """Hand something to main.  Thread: any."""
        self._events.append((event, value))
        self._signals.post()

    # -- the loop ------------------------------------------------------------------------------

    def _turn(self) -> None:
        deadlines = [when for when, _ in self._deadlines.values()]
        if self._launch_socket is not None:
            expiry = self._launch_socket.next_deadline()
            if expiry is not None:
                deadlines.append(expiry)
        timeout_s = max(0.0, min(deadlines) - time.monotonic()) if deadlines else None
        if self._held:
            self._signals.wait(CRITICAL_RETRY_S)
            self._on_wakeup(self._signals.read_fd)
            self._retry_held()
            return
        selector = self._selector
        for key, _ in self._signals.select(selector, timeout_s):
            if self._selector is not selector:
                break  # restarted by BLCR: what was ready is closed
            if key.fd == self._signals.read_fd:
                self._on_wakeup(key.fd)
            elif not self._critical(key.data, key.fileobj):
                break
        if deadlines:
            now = time.monotonic()
            for name, (when, action) in list(self._deadlines.items()):
                if when <= now:
                    del self._deadlines[name]
                    action()
            if self._launch_socket is not None:
                self._launch_socket.expire()

    def _critical(self, action: "Callable[..., None]", *arguments: "Any") -> bool:
        """Do something short that a checkpoint of ourselves must not find half done.

        If BLCR takes one just now: return False; what is left to do is looked for after it."""
        if not self._engine.enter():
            self._held = True
            return False
        try:
            if isinstance(self._engine, Blcr) and self._engine.restarted:
                return False    # what it is about is gone; _on_restart() comes next
            action(*arguments)
        finally:
            self._engine.leave()
        return True

    def _retry_held(self) -> None:
        """Go on where _critical() could not, if the checkpoint is over."""
        if self._engine.enter():
            self._engine.leave()
            self._held = False
            # The callback has posted how it ended: before anything else, as after a restart
            # neither srun nor the sockets are what they were.
            self._on_wakeup(self._signals.read_fd)
            if self._child is None and self._result is None and self.state == "LAUNCHING":
                self._critical(self._start)
            self._on_child()

    def _on_wakeup(self, fd: int) -> None:
        for number in self._signals.take():
            if number == signal.SIGCHLD:
                self._on_child()
            elif number in self.config.signals:
                self._request(self.config.signals[number], signal_name(number))
            elif number != 0:
                self._forward(number)
        # Whether or not there was room in the pipe for the byte that says so.
        while self._events:
            event, value = self._events.popleft()
            self._handlers[event](value)

    def _forward(self, number: int) -> None:
        if number in ENDING_SIGNALS:
            self._asked_to_end = True
        if self.state == "REQUEUED":
            self._await_end()
        elif self._child is None:
            if self._held and self._result is None:
                self._early_signals.append(number)
        else:
            self._log.debug("forwarding " + signal_name(number))
            if number == signal.SIGCONT:
                self._child.resume(not self._shared)
            elif number in (signal.SIGTTIN, signal.SIGTTOU) and self._terminal.exists \
                    and self._terminal.take_back(self._child.pid):
                # Not for us: the kernel tells the whole group of who asked.  A neighbour in the
                # pipeline (`srun_cr ... | less`) wants the terminal that srun has; from now on
                # whoever asks gets it.
                self._shared = True
                os.killpg(os.getpgrp(), signal.SIGCONT)
            else:
                self._forwarded_stop = self._forwarded_stop or number in STOP_SIGNALS
                self._child.send(number)

    # -- before srun ---------------------------------------------------------------------------

    def _connect_blcr(self) -> None:
        """Be known to libcr, before anything else, if BLCR is what there is.

        Raises: SrunCrError."""
        if self.config.engine == "blcr" or self.config.engine == "auto" and os.path.exists(
                "/proc/checkpoint"):
            engine = Blcr(self.config, self._slurm, self._log)
            why = engine.unavailable()
            if why is None:
                engine.connect(self.post)
                self._engine = engine
            elif self.config.engine == "blcr":
                raise SrunCrError("SRUN_CR_ENGINE=blcr: " + why)
            else:
                self._log.debug("engine blcr: " + why)

    def _prepare(self) -> "Optional[int]":
        """Choose the engine, claim the step, find what to restart from.

        Returns a wait status if there is nothing to run: the step was finished before."""
        config = self.config
        if config.engine == "none" or self._engine.name == "blcr":
            return None
        self._command = command = SrunCommand(self._arguments, self._slurm.ask_srun)
        if not command.command or config.job_id is None or command.has(
                "help", "usage", "version", "test-only"):
            self._command = None
            return None
        self._engine = choose_engine(config, self._slurm, self._log, config.engine)
        if self._engine.name == "none":
            return None
        self._store = store = Store(config, self._arguments, command.command[0])
        status = store.completed()
        if status is not None and config.skip_completed:
            self._log.info("step {}: finished in an earlier run of this job ({}): not run again"
                           .format(store.key, describe_status(status)))
            return status
        self._engine.prepare(store)
        self._candidates = self._find_generations(store, command)
        if self._candidates:
            self._choose_generation()
        return None

    def _find_generations(self, store: Store, command: SrunCommand) -> "List[Generation]":
        """Return what the step can be restarted from, newest first: its own, else what is given.

        What an earlier, completed run left is not a part of this one."""
        runs = store.record["runs"]
        over = max((index for index, run in enumerate(runs) if run.get("completed")), default=-1)
        own = []
        for generation in store.generations():
            try:
                if generation.manifest["run"] > over:
                    own.append(generation)
            except GenerationError:
                own.append(generation)  # named when it is this one's turn
        if own or self.config.restart_dir is None:
            return own
        return given_generations(self.config, store.key, command.programs)

    def _choose_generation(self) -> None:
        """Take the newest generation that is sound, and the engine that wrote it.

        Raises: SrunCrError, if there is none: to begin anew would be to lose what was computed."""
        last = "none"
        while self._candidates:
            generation = self._candidates.pop(0)
            try:
                generation.verify()
            except GenerationError as error:
                last = str(error)
                self._log.error("generation {} cannot be used: {}".format(
                    generation.number, error))
                continue
            engine = generation.manifest["engine"]
            if engine != self._engine.name:
                if self.config.engine != "auto":
                    raise ConfigError("SRUN_CR_ENGINE={}: the checkpoint {} was made by {}".format(
                        self.config.engine, generation.path, engine))
                self._engine = choose_engine(self.config, self._slurm, self._log, engine)
            self._generation = generation
            return
        raise SrunCrError("no generation can be restored, the last tried: {}: mend that, or move "
                          "{} away to begin anew".format(last, self._step_store().path))

    def _step_store(self) -> Store:
        assert self._store is not None
        return self._store

    def _open_socket(self) -> None:
        try:
            self._directory = temporary_directory(self.config.temporary)
            self._launch_socket = LaunchSocket(
                self._directory, self._selector,
                lambda pid: self._child is not None and is_descendant(pid, self._child.pid),
                self._on_launched, self._log)
        except OSError as error:
            self._log.debug("no launch socket: {}".format(error))

    def _on_launched(self, step: StepInfo) -> None:
        self.steps.append(step)
        if self.state == "LAUNCHING":
            self.state = "RUNNING"
        if isinstance(self._engine, Blcr):
            self._engine.launched = tuple(self.steps)
            import threading
            threading.Thread(target=self._count_tasks, args=(step,), name="count",
                             daemon=True).start()

    def _count_tasks(self, step: StepInfo) -> None:
        """Ask Slurm how many images BLCR is to leave of a step; thread target."""
        try:
            self.post("counted", (step, self._slurm.count_tasks(step)))
        except (SrunCrError, ValueError) as error:
            self._log.debug(str(error))

    def _on_counted(self, what: "Tuple[StepInfo, int]") -> None:
        step, tasks = what
        if step in self.steps and isinstance(self._engine, Blcr):
            self.steps[self.steps.index(step)] = StepInfo(
                job_id=step.job_id, step_id=step.step_id, node_list=step.node_list,
                nodes=step.nodes, tasks=tasks)
            self._engine.launched = tuple(self.steps)

    # -- srun ----------------------------------------------------------------------------------

    def _start(self) -> None:
        """Start srun, for the first time or from a generation.  Raises: SrunCrError."""
        if self._launch_socket is None:
            self._open_socket()
        words = self.config.commands["srun"]
        path = find_command(words[0], self.config.search_path)
        arguments = self._arguments
        if self._store is not None and self._command is not None:
            if self._generation is not None:
                self._log.info("restarting step {} from generation {} of {}".format(
                    self._store.key, self._generation.number, time.strftime(
                        "%Y-%m-%d %H:%M:%S",
                        time.localtime(self._generation.manifest["committed"]))))
                rewind_files(self._generation, self._log)
                arguments = self._engine.restart_command(
                    self._command, self._generation,
                    self._store.failure_path(self._generation))
            else:
                arguments = self._engine.launch_command(self._command)
            try:
                self._store.start_run(self._engine.name, self._generation)
            except StoreError as error:  # a full disk: what is there can be restarted all the same
                self._log.warning(str(error))
        self.steps = []
        self._launched = False
        if isinstance(self._engine, Blcr):
            self._engine.launched = ()
        self.state = "LAUNCHING"
        self._ended_with = None
        self._child = Child([*self._engine.srun_prefix(), path, *words[1:], *arguments],
                            self._srun_environ(), self._signals, self._terminal)
        self._signals.start_fault_thread()
        while self._early_signals:
            self._forward(self._early_signals.pop(0))

    def _srun_environ(self) -> "Dict[str, str]":
        environ = dict(self._environ)
        if self._launch_socket is not None:
            environ["SLURM_SRUN_CR_SOCKET"] = self._launch_socket.path
        if self._store is not None:
            environ.pop("SLURM_RESTART_DIR", None)
            environ.update(self._engine.environment(self._store, self._generation))
        return environ

    def _on_child(self) -> None:
        """Look what SIGCHLD was for: srun, or one of the worker's helpers."""
        statuses = []  # type: List[int]
        while self._child is not None and self._critical(self._reap, statuses) and statuses:
            status = statuses.pop()
            if os.WIFSTOPPED(status):
                self._on_stopped(os.WSTOPSIG(status))
            else:
                self._on_end(status)

    def _reap(self, statuses: "List[int]") -> None:
        """Append srun's wait status, if something has happened, and forget it if it ended."""
        assert self._child is not None
        try:
            status = self._child.poll()
        except ChildProcessError:
            self._log.warning("srun's end was taken by another part of this process: its status "
                              "is unknown")
            status = EXIT_FAILURE << 8
        if status is not None:
            statuses.append(status)
            if not os.WIFSTOPPED(status):
                self._child = None
                if isinstance(self._engine, Blcr):
                    self._engine.launched = ()

    def _on_stopped(self, number: int) -> None:
        """Stop as srun has, so that whoever waits for us sees what it would see of srun.

        Not where nobody can have meant us: a srun that was stopped by its pid, without a
        terminal, is continued by its pid, and we would never know."""
        if not self._terminal.exists and not self._forwarded_stop:
            return
        assert self._child is not None
        if self._shared and number != signal.SIGTSTP and self._terminal.foreground():
            self._terminal.give(self._child.pid)    # its turn; see _forward()
            self._child.send(signal.SIGCONT)
            return
        self._forwarded_stop = False
        self._signals.stop_self(number)
        numbers = self._signals.take()
        if signal.SIGCONT not in numbers:
            # Our group is orphaned, so we were not stopped; nor would bare srun have been.
            # One that reads the terminal would be stopped again at once, for ever: the kernel's
            # own answer to a stopped group that becomes orphaned is SIGHUP.
            if number in (signal.SIGTTIN, signal.SIGTTOU) and self._child is not None:
                self._child.send(signal.SIGHUP)
            numbers.append(signal.SIGCONT)
        for again in numbers:
            if again == 0:
                self._signals.post()
            elif again in self.config.signals:
                self._request(self.config.signals[again], signal_name(again))
            elif again != signal.SIGCHLD:
                self._forward(again)

    def _on_end(self, status: int) -> None:
        """srun has ended; an operation under way decides with it what that means."""
        self._ended_with = status
        self._deadlines.clear()
        self._log.debug("srun: " + describe_status(status))
        if self._intent is not None:
            self._stopped()
        elif self._operation is None:
            self._finish()
        elif self._engine.saves_and_exits and self._operation.stop:
            self._operation.note_end()
        else:
            self._operation.cancel()

    def _finish(self) -> None:
        """The step is over by itself: fall back if it could not be restored, else we are done."""
        status, self._ended_with = self._ended_with, None
        assert status is not None
        if self._store is not None:
            if self._fall_back():
                return
            try:
                self._store.end_run(status, self._is_complete(status))
            except StoreError as error:
                self._log.error(str(error))
        self._result = status

    def _is_complete(self, status: int) -> bool:
        """Whether srun's end is that of the step, not of a job that is being ended.

        A program may well exit 0 when Slurm sends SIGTERM for a requeue: taken for the end, the
        rest of its work would never be done.  slurmctld knows before any task is told."""
        if not os.WIFEXITED(status) or os.WEXITSTATUS(status) >= 128 or self._asked_to_end:
            return False
        try:
            state = self._slurm.job(str(self.config.job_id)).get("JobState", "")
        except SrunCrError as error:
            self._log.warning("the step is not recorded as finished: {}".format(error))
            return False
        return state == "RUNNING"

    def _fall_back(self) -> bool:
        """If a task could not be restored, start from the generation before; return whether.

        Raises: SrunCrError, if there is none before."""
        store = self._step_store()
        if self._generation is None:
            return False
        try:
            with open(store.failure_path(self._generation), "rb") as file:
                why = file.read().decode("utf-8", "replace")
        except OSError:
            return False
        store.log_event("restore-failed", generation=self._generation.path, why=why)
        store.end_run(EXIT_FAILURE << 8, False)
        if self._asked_to_end:
            return False
        if not self._candidates:
            raise SrunCrError("generation {} cannot be restored, and there is none before it: {}: "
                              "mend that, or move {} away to begin anew".format(
                                  self._generation.number, why, store.path))
        self._log.error("generation {} cannot be restored: {}".format(
            self._generation.number, why))
        self._choose_generation()
        self._start()
        return True

    # -- operations ----------------------------------------------------------------------------

    def _request(self, kind: str, source: str) -> None:
        """Start an operation, or have it follow the one that runs."""
        if self.state == "REQUEUED" or self._intent is not None:
            self._log.info("{}: already in progress".format(kind))
        elif self._store is None or self._command is None:
            self._log.error("{} ({}): {}: the step goes on".format(
                kind, source, "engine blcr: ask with `scontrol checkpoint`, or cr_checkpoint"
                if self._engine.name == "blcr" else "not inside a Slurm job"
                if self.config.job_id is None else "no checkpoint engine: set SRUN_CR_ENGINE"))
        elif self._operation is None:
            self._begin(kind, source)
        elif kind == "create" or self._operation.stop:
            self._log.info("{} ({}): operation already in progress: joined".format(kind, source))
        elif self._next is None or OPERATIONS.index(kind) > OPERATIONS.index(self._next[0]):
            self._next = (kind, source)

    def _begin(self, kind: str, source: str) -> None:
        import threading
        self._operation = Operation(kind, source, self.config.wait_s,
                                    self._launched or bool(self.steps))
        self.state = "CHECKPOINTING"
        store = self._step_store()
        store.log_event("begin", kind=kind, source=source)
        if kind == "requeue":
            store.hold_requeue()
        assert self._child is not None
        threading.Thread(target=self._work, args=(self._operation, self._child.pid),
                         name="checkpoint worker", daemon=True).start()

    def _work(self, operation: Operation, srun_pid: int) -> None:
        """Do an operation; thread target."""
        generation = error = None
        try:
            generation = self._checkpoint(operation, srun_pid)
        except SrunCrError as failure:
            error = str(failure)
        except Exception as failure:  # a border: main must hear of it whatever it is
            error = "{}: {}".format(type(failure).__name__, failure)
        self.post("outcome", Outcome(operation=operation, generation=generation, error=error))

    def _checkpoint(self, operation: Operation, srun_pid: int) -> "Optional[Generation]":
        """Image the step and commit the generation.  Thread: worker.

        None: there is no step yet.  Raises: SrunCrError, with all tasks running on."""
        assert self._command is not None
        store, engine = self._step_store(), self._engine
        why = engine.refuses(self._command)
        if why is not None:
            raise CheckpointError("engine {}: {}".format(engine.name, why))
        if operation.kind == "requeue":
            self._check_can_requeue()
        steps = self._slurm.find_steps(str(self.config.job_id), srun_pid)
        if not steps:
            # Not launched yet, or just over: srun's end, which always wins, tells which.
            operation.wait([], None if operation.launched else STEP_END_S)
            if operation.step_ended:
                raise CheckpointError("the step ended meanwhile")
            return None
        partial = store.begin()
        try:
            images = engine.checkpoint(steps, partial, store, operation)
            operation.check()
            try:
                generation = store.commit(partial, self._manifest(operation, steps, images))
            except BaseException:
                engine.release(steps, stop=False, committed=False)
                raise
        except BaseException:
            store.discard(partial)
            raise
        self.post("committed", (operation, generation))
        try:
            engine.release(steps, operation.stop, committed=True)
        except SrunCrError as error:  # main ends srun, if that does not end by itself
            self._log.warning(str(error))
        store.prune()
        return generation

    def _check_can_requeue(self) -> None:
        """Raise CheckpointError if Slurm would refuse: before anything is stopped."""
        job = self._slurm.job(str(self.config.job_id))
        if job.get("BatchFlag", "1") == "0":
            raise CheckpointError("job {}: only batch jobs can be requeued".format(
                self.config.job_id))
        if job.get("Requeue", "1") == "0":
            raise CheckpointError("job {}: must not be requeued: submit it with --requeue".format(
                self.config.job_id))

    def _manifest(self, operation: Operation, steps: "List[StepInfo]", images: Images
                  ) -> "Dict[str, Any]":
        assert self._command is not None
        system = os.uname()
        return {
            "format": STEP_FORMAT, "srun_cr": __version__, "engine": self._engine.name,
            "details": images.details, "kind": operation.kind, "job": self.config.job_id,
            "restart_count": self.config.restart_count,
            "run": len(self._step_store().record["runs"]) - 1,
            "steps": [step.name for step in steps], "nodes": [step.node_list for step in steps],
            "tasks": sum(step.tasks for step in steps), "command": self._command.programs,
            "cwd": self.config.cwd, "host": system.nodename, "kernel": system.release,
            "machine": system.machine, "cpu_flags": cpu_flags(),
            "requested": operation.requested, "committed": time.time(),
            "images": images.sizes, "files": images.files}

    def _on_committed(self, what: "Tuple[Operation, Generation]") -> None:
        """There is a new generation; its tasks are about to be released."""
        operation, generation = what
        self._launched = True
        manifest = generation.manifest
        seconds = manifest["committed"] - manifest["requested"]
        self._log.info("checkpoint {} of step {}: {}, {}, {:.1f} s{}".format(
            generation.number, ",".join(manifest["steps"]), plural(manifest["tasks"], "task"),
            describe_size(generation.size_bytes), seconds,
            "; ending the tasks" if operation.stop else ""))
        self._step_store().log_event(
            "committed", kind=operation.kind, seconds=seconds, generation=generation.number,
            bytes=generation.size_bytes)

    def _on_outcome(self, outcome: Outcome) -> None:
        """The worker is done."""
        operation, self._operation = outcome.operation, None
        operation.close()
        if outcome.error is not None:
            self._report_failure(operation, outcome.error)
        if outcome.error is None and operation.stop:
            self._stop(operation.kind, launched=outcome.generation is not None)
            return
        if outcome.error is None and outcome.generation is None:
            self._log.info("create ({}): the step is not launched yet, there is nothing to "
                           "checkpoint".format(operation.source))
        if operation.kind == "requeue":
            self._step_store().let_requeue(alone=False, timeout_s=0.0)
        self.state = "RUNNING"
        following, self._next = self._next, None
        if self._child is None:
            self._finish()
        elif following is not None:
            self._begin(*following)

    def _report_failure(self, operation: Operation, why: str) -> None:
        newest = next(iter(self._step_store().generations()), None)
        self._log.error("{} ({}): {}: {}, {}".format(
            operation.kind, operation.source, why,
            "the step goes on" if self._child is not None else "it is over",
            "there is no checkpoint" if newest is None else
            "generation {} stays the newest".format(newest.number)))
        self._step_store().log_event("failed", kind=operation.kind, why=why)

    def _stop(self, kind: str, launched: bool) -> None:
        """The tasks are ended, or were never started: have srun end, too."""
        self._intent = kind
        self.state = "STOPPING"
        if self._child is None:
            self._stopped()
        elif launched:
            self._deadlines["stop"] = (time.monotonic() + STOP_TIMEOUT_S, self._terminate)
        else:
            self._terminate()

    def _terminate(self) -> None:
        if self._child is not None:
            self._child.send(signal.SIGTERM)
            self._child.send(signal.SIGCONT)
            self._deadlines["stop"] = (time.monotonic() + KILL_TIMEOUT_S, self._kill)

    def _kill(self) -> None:
        if self._child is not None:
            self._child.send(signal.SIGKILL)

    def _stopped(self) -> None:
        """srun has ended because we wanted it to."""
        status, self._ended_with = self._ended_with, None
        assert status is not None
        try:
            self._step_store().end_run(status, completed=False)
        except StoreError as error:
            self._log.error(str(error))
        if self._intent == "vacate":
            self._log.info("step stopped, not finished: exit status {}".format(EXIT_STOPPED))
            self._result = EXIT_STOPPED << 8
            return
        self.state = "REQUEUED"
        import threading
        threading.Thread(target=self._requeue, name="requeue", daemon=True).start()

    def _requeue(self) -> None:
        """Have Slurm requeue the job; thread target."""
        error = None
        try:
            store = self._step_store()
            store.let_requeue(alone=True, timeout_s=self.config.wait_s + STOP_TIMEOUT_S)
            # A job that was cancelled meanwhile must not be brought back; one that another step
            # of it has requeued is on its way.
            state = self._slurm.job(str(self.config.job_id)).get("JobState", "")
            if state == "CANCELLED":
                error = "it was cancelled"
            elif state not in ("PENDING", "COMPLETING", "REQUEUED"):
                self._slurm.requeue(self.config.requeue_id)
            store.let_requeue(alone=False, timeout_s=0.0)
        except SrunCrError as failure:
            error = str(failure)
        except Exception as failure:  # a border, as in _work()
            error = "{}: {}".format(type(failure).__name__, failure)
        self.post("requeued", error)

    def _on_requeued(self, error: "Optional[str]") -> None:
        """Slurm has answered; if it agreed, nothing of the script may run any more."""
        self._requeue_answered = True
        self._step_store().log_event("requeue", job=self.config.requeue_id, error=error)
        if error is not None:
            self._log.error("job {} is not requeued: {}: its checkpoint stays, exit status {}"
                            .format(self.config.requeue_id, error, EXIT_STOPPED))
            self._result = EXIT_STOPPED << 8
            return
        self._log.info("job {} requeued".format(self.config.requeue_id))
        if self.config.task_pid == os.getpid():
            self._result = EXIT_STOPPED << 8    # `exec srun_cr`: the script has no next line
            return
        self._deadlines["end"] = (time.monotonic() + REQUEUE_END_TIMEOUT_S, self._give_up)

    def _await_end(self) -> None:
        """Slurm is ending the job: leave once the shell of the script is gone, not before.

        A shell that outlives the signal (it may trap it) would run the script's next line; that
        one is ended by Slurm's SIGKILL, and so are we."""
        if self._requeue_answered and os.getppid() != self._parent_pid:
            self._give_up()
        else:
            # Slurm's SIGKILL may reach us first: the shell would go on then, for a moment.  One
            # that has survived the SIGTERM, and has nothing to wait for but us, is stopped.
            now = time.monotonic()
            self._ending_since = self._ending_since or now
            if self._requeue_answered and now - self._ending_since >= SHELL_GRACE_S:
                self._stop_waiting_shells()
            self._deadlines["parent"] = (time.monotonic() + PARENT_POLL_S, self._await_end)

    def _stop_waiting_shells(self) -> None:
        """Stop the script, as far as it only waits for us: from our parent up to its shell."""
        pid, child = os.getppid(), os.getpid()
        try:
            while pid > 1 and is_descendant(pid, self.config.task_pid):
                if child_pids(pid) == [child]:
                    os.kill(pid, signal.SIGSTOP)
                pid, child = ProcessStat(pid).parent, pid
        except OSError:
            pass

    def _give_up(self) -> None:
        self._result = EXIT_STOPPED << 8

    # -- BLCR ----------------------------------------------------------------------------------

    def _on_blcr_failed(self, why: str) -> None:
        self._log.error("BLCR checkpoint failed: {}: the step goes on".format(why))

    def _on_blcr_continued(self, directory: str) -> None:
        self._log.info("BLCR checkpoint in {}: {}".format(directory or "a pipe", ", ".join(
            step.name for step in self.steps) or "the step is not launched yet"))

    def _on_restart(self, what: "Tuple[Tuple[StepInfo, ...], str]") -> None:
        """This is the copy that BLCR has restarted: rebuild what does not live on in it.

        Our children are gone and our sockets closed; host and terminal may be others, and the
        monotonic clock is unrelated.  Pipes, handlers and memory are as they were."""
        launched, directory = what
        assert isinstance(self._engine, Blcr)
        if not self._engine.restarted:
            return      # twice before we saw the first: srun has been started since
        self._engine.restarted = False
        self._child = None
        self._deadlines.clear()
        if self._launch_socket is not None:
            self._launch_socket.forget()
            self._launch_socket = None
        self._remove_directory()
        self._selector = selectors.PollSelector()
        self._selector.register(self._signals.read_fd, selectors.EVENT_READ, self._on_wakeup)
        self._terminal.close()
        self._terminal = Terminal()
        self._parent_pid = os.getppid()
        self._asked_to_end = self._forwarded_stop = False
        for step in launched:
            self._environ["SLURM_RESTART_DIR"] = os.path.join(directory, step.name)
        # Else srun starts with what it was started with before.
        self._log.info("restarted by BLCR on {}: {}".format(
            socket.gethostname(), "tasks from " + self._environ["SLURM_RESTART_DIR"]
            if launched else "the step was not launched yet, it is started"))
        self.steps = []
        self.state = "LAUNCHING"
        self._critical(self._start)

    def _remove_directory(self) -> None:
        if self._directory is not None:
            try:
                os.rmdir(self._directory)
            except OSError:
                pass
            self._directory = None

    def _close(self) -> None:
        # For good: a checkpoint of a process whose interpreter ends would wait for it for ever.
        for _ in range(int(self.config.wait_s / CRITICAL_RETRY_S)):
            if self._engine.enter():
                break
            time.sleep(CRITICAL_RETRY_S)
        self._signals.end()
        if self._launch_socket is not None:
            self._launch_socket.close()
        self._remove_directory()
        if self._store is not None:
            self._store.close()
        self._terminal.close()
        self._selector.close()


# ---------------------------------------------------------------------------------------------
# main
# ---------------------------------------------------------------------------------------------

def given_environ() -> "Dict[str, str]":
    """Return the environment we were given.

    In the C locale Python >= 3.7 adds LC_CTYPE to its own: no business of srun's and its tasks."""
    environ = dict(os.environ)
    if environ.get("LC_CTYPE", "") in ("C.UTF-8", "C.utf8", "UTF-8"):
        try:
            with open("/proc/self/environ", "rb") as file:
                given = [entry for entry in file.read().split(b"\0")
                         if entry.startswith(b"LC_CTYPE=")]
            del environ["LC_CTYPE"]
            if given:
                environ["LC_CTYPE"] = os.fsdecode(given[0].partition(b"=")[2])
        except OSError:
            pass
    return environ


def main(arguments: "Optional[Sequence[str]]" = None) -> int:
    """Run srun with these arguments (default: the command line's) under supervision.

    Returns an exit status, or dies of the signal that srun died of."""
    log = Messages()
    try:
        environ = given_environ()
        config = Config.from_environ(environ)
        log.verbosity = config.verbosity
        status = Supervisor(config, sys.argv[1:] if arguments is None else arguments, environ,
                            log).run()
    except SrunCrError as error:
        log.error(str(error))
        return error.exit_status
    except OSError as error:
        log.error("{}: {}".format(error.filename or "system call", error.strerror))
        return EXIT_FAILURE
    mimic(status)
    return EXIT_FAILURE  # not reached


if __name__ == "__main__":
    sys.exit(main())
