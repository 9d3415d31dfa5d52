# SPDX-License-Identifier: GPL-2.0-or-later
"""What srun_cr can do only through ctypes: libcr (BLCR), libslurm <= 18.08, prctl(2).

Opened on demand by `srun_cr.py`, which does without it where it is missing.  Nothing here runs
at import but the import of ctypes; a library is opened by its load_...() function.

Sources: libcr.h and blcr_common.h of BLCR 0.8.5 and 0.8.6, slurm.h and slurm_errno.h of Slurm
2.1 to 18.08, prctl(2).  All functions that may block release the interpreter's lock, as CDLL
does; with PyDLL libcr's callback would wait for ever for the thread that waits for it."""

import ctypes
import os
from _thread import get_ident
from ctypes import (POINTER, c_char_p, c_int, c_long, c_uint, c_uint16, c_uint32, c_ulong,
                    c_void_p)

MYPY = False
if MYPY:
    from typing import Any, Callable, Dict, List, Optional, Sequence, Union
    Check = Callable[["Library", str, Any], Any]


# ---------------------------------------------------------------------------------------------
# Constants
# ---------------------------------------------------------------------------------------------

# prctl(2) [linux/prctl.h]
PR_SET_PDEATHSIG = 1    # signal that this process gets when the thread that made it ends

# cr_register_callback(), one of them [libcr.h]
CR_THREAD_CONTEXT = 0x4000000   # run in a thread of libcr's own
CR_SIGNAL_CONTEXT = 0x2000000   # run in the thread that registered it, perhaps in its handler

# cr_checkpoint() [blcr_common.h]
CR_CHECKPOINT_READY = 0         # checkpoint me
CR_CHECKPOINT_TEMP_FAILURE = 1  # cancel checkpoint and continue
CR_CHECKPOINT_PERM_FAILURE = 2  # cancel checkpoint, and kill me
CR_CHECKPOINT_OMIT = 4          # continue checkpoint, but w/o my process

# Error codes, beside those of errno.h; cr_checkpoint() returns them negated [blcr_errcodes.h]
CR_ETEMPFAIL = 2354     # Temporary error: checkpoint cancelled
CR_EPERMFAIL = 2355     # Permanent failure: checkpoint cancelled and job killed
CR_ENOSUPPORT = 2356    # Checkpoint support not linked into one or more processes
CR_EVERSION = 2357      # Requested kernel interface version is not supported
CR_EOMITTED = 2358      # Process omitted from checkpoint at a callback's request
CR_ENOTCB = 2364        # Call is only valid from a checkpoint callback
CR_ENOINIT = 2365       # Calling thread has not called cr_init()

# cr_hold_ctrl() [libcr.h, blcr_common.h]
CR_HOLD_SCOPE_INIT = 1      # threads that have called cr_init()
CR_HOLD_SCOPE_UNINIT = 2    # threads that have not
CR_HOLD_NONE = 0            # go on after the dump without waiting for the callbacks' end
CR_HOLD_BOTH = 3            # wait for it, after a checkpoint and after a restart: the default

# slurm_checkpoint_tasks() [slurm_errno.h]
ESLURM_ALREADY_DONE = 2021  # also: slurmstepd has had a request with this time

STEP_ID_MAX = 0xffff    # uint16_t step_id
WAIT_MAX_S = 0xffff     # uint16_t max_wait
JOB_ID_MAX = 0xffffffff     # uint32_t job_id

# In the order in which they are tried.
LIBCR_NAMES = ("libcr.so.0", "libcr.so")
LIBSLURM_NAMES = tuple("libslurm.so.{}".format(version)     # 33: Slurm 18.08
                       for version in range(33, 19, -1)) + ("libslurm.so",)     # 21: 2.1

OTHER_ENGINES = "SRUN_CR_ENGINE=criu or SRUN_CR_ENGINE=app"


# ---------------------------------------------------------------------------------------------
# Types
# ---------------------------------------------------------------------------------------------

cr_client_id_t = c_int      # typedef int cr_client_id_t                            [libcr.h]
cr_callback_id_t = c_int    # typedef int cr_callback_id_t                          [libcr.h]
cr_scope_t = c_uint         # typedef enum cr_scope_t                               [blcr_common.h]
pid_t = c_int
time_t = c_long


class cr_checkpoint_info(ctypes.Structure):
    """What is being asked for [libcr.h]."""

    _fields_ = [
        ("signal", c_int),          # sent to the process once the checkpoint has been taken; or 0
        ("dest", c_char_p),         # path of the context file
        ("requester", pid_t),       # pid of requester
        ("target", pid_t),          # pid, pgid or sid of which the checkpoint is requested
        ("scope", cr_scope_t),      # scope of the request
    ]


class cr_restart_info(ctypes.Structure):
    """By whom, and from what, we were restarted [libcr.h]."""

    _fields_ = [
        ("requester", pid_t),       # pid of cr_restart
        ("src", c_char_p),          # path of the context file
    ]


# typedef int (*cr_callback_t)(void *)                                              [libcr.h]
cr_callback_t = ctypes.CFUNCTYPE(c_int, c_void_p)


class CheckpointInfo:
    """A request, in Python types; immutable by convention."""

    __slots__ = ("path", "signal", "requester", "target", "scope")

    def __init__(self, info: cr_checkpoint_info) -> None:
        self.path = os.fsdecode(info.dest or b"")  # type: str
        self.signal = int(info.signal)
        self.requester = int(info.requester)
        self.target = int(info.target)
        self.scope = int(info.scope)


class LibraryError(Exception):
    """What a library refuses or lacks, in one line: `<what>: <why>: <what to do>`.

    errno: its error code, or 0."""

    def __init__(self, text: str, errno: int = 0) -> None:
        super().__init__(" ".join(text.split()))
        self.errno = errno


# ---------------------------------------------------------------------------------------------
# Error checkers, each named after the convention of the C functions that it is for
# ---------------------------------------------------------------------------------------------

def _check_negative_errno(library: "Library", name: str, result: int) -> int:
    """Negative: failed, and errno says why."""
    if result < 0:
        code = ctypes.get_errno()
        raise LibraryError("{}: {}: {} (error {}): {}".format(
            library.kind, name, library.strerror(code), code, library.remedy(name, code)), code)
    return result


def _check_nonzero_errno(library: "Library", name: str, result: int) -> int:
    """Nonzero: failed, and the library's own errno says why."""
    if result != 0:
        code = library.last_errno()
        raise LibraryError("{}: {}: {} (error {}): {}".format(
            library.kind, name, library.strerror(code), code, library.remedy(name, code)), code)
    return result


# ---------------------------------------------------------------------------------------------
# Prototypes
# ---------------------------------------------------------------------------------------------

class Proto:
    """The prototype of one C function."""

    __slots__ = ("argtypes", "restype", "check", "required")

    def __init__(self, argtypes: "Sequence[Any]", restype: "Any",
                 check: "Optional[Check]" = None, required: bool = False) -> None:
        self.argtypes = argtypes
        self.restype = restype
        self.check = check
        self.required = required


LIBCR = {
    # cr_client_id_t cr_init(void)                                                  [libcr.h]
    "cr_init": Proto([], cr_client_id_t, _check_negative_errno, required=True),
    # cr_callback_id_t cr_register_callback(cr_callback_t func, void *arg, int flags)  [libcr.h]
    "cr_register_callback": Proto([cr_callback_t, c_void_p, c_int], cr_callback_id_t,
                                  _check_negative_errno, required=True),
    # int cr_enter_cs(cr_client_id_t id)                                            [libcr.h]
    "cr_enter_cs": Proto([cr_client_id_t], c_int, _check_negative_errno, required=True),
    # int cr_tryenter_cs(cr_client_id_t id)             0 entered, > 0 busy, -1 errno  [libcr.h]
    "cr_tryenter_cs": Proto([cr_client_id_t], c_int, _check_negative_errno, required=True),
    # int cr_leave_cs(cr_client_id_t id)                                            [libcr.h]
    "cr_leave_cs": Proto([cr_client_id_t], c_int, _check_negative_errno, required=True),
    # int cr_checkpoint(int flags)          0 continue, > 0 restarted, < 0 -(code)  [libcr.h]
    "cr_checkpoint": Proto([c_int], c_int, required=True),
    # const struct cr_checkpoint_info *cr_get_checkpoint_info(void)                 [libcr.h]
    "cr_get_checkpoint_info": Proto([], POINTER(cr_checkpoint_info), required=True),
    # const struct cr_restart_info *cr_get_restart_info(void)                       [libcr.h]
    "cr_get_restart_info": Proto([], POINTER(cr_restart_info), required=True),
    # const char *cr_strerror(int errnum)                                           [libcr.h]
    "cr_strerror": Proto([c_int], c_char_p),
    # int cr_hold_ctrl(int scope, int flags)                        since BLCR 0.7  [libcr.h]
    "cr_hold_ctrl": Proto([c_int, c_int], c_int, _check_negative_errno),
}

LIBSLURM = {
    # int slurm_checkpoint_tasks(uint32_t job_id, uint16_t step_id, time_t begin_time,
    #                            char *image_dir, uint16_t max_wait, char *nodelist)
    #                                                                2.1 to 18.08  [slurm.h]
    "slurm_checkpoint_tasks": Proto(
        [c_uint32, c_uint16, time_t, c_char_p, c_uint16, c_char_p], c_int, _check_nonzero_errno),
    # int slurm_get_errno(void)                                                     [slurm_errno.h]
    "slurm_get_errno": Proto([], c_int),
    # char *slurm_strerror(int errnum)                                              [slurm_errno.h]
    "slurm_strerror": Proto([c_int], c_char_p, required=True),
    # long slurm_api_version(void)              0xAABBCC, AA as in libslurm.so.AA  [slurm.h]
    "slurm_api_version": Proto([], c_long),
    # void slurm_init(const char *conf)                                 since 20.11  [slurm.h]
    "slurm_init": Proto([c_char_p], None),
}


# ---------------------------------------------------------------------------------------------
# Loading
# ---------------------------------------------------------------------------------------------

class Library:
    """A shared library, opened, and those of its functions that have a prototype."""

    kind = ""       # what a message calls it: libcr, libslurm
    advice = ""     # what to do where it is not the right one

    def __init__(self, path: str, prototypes: "Dict[str, Proto]") -> None:
        """Open it.  Raises: OSError; LibraryError, with all that is missing."""
        self.path = path
        if not path:
            raise ValueError("no path")     # dlopen(3) would return this program itself
        self._dll = ctypes.CDLL(path, use_errno=True)
        self._functions = {}  # type: Dict[str, Any]
        missing = []  # type: List[str]
        for name, proto in prototypes.items():
            try:
                function = getattr(self._dll, name)
            except AttributeError:
                if proto.required:
                    missing.append(name)
                continue
            function.argtypes = proto.argtypes
            function.restype = proto.restype
            if proto.check is not None:
                function.errcheck = self._checker(name, proto.check)
            self._functions[name] = function
        if missing:
            raise LibraryError("{}: {} lacks {}: {}".format(
                self.kind, path, ", ".join(missing), self.advice))

    def _checker(self, name: str, check: "Check") -> "Callable[[Any, Any, Any], Any]":
        return lambda result, _function, _arguments: check(self, name, result)

    def has(self, name: str) -> bool:
        """Whether the library has that optional function."""
        return name in self._functions

    def strerror(self, code: int) -> str:
        """Word an error code."""
        raise NotImplementedError

    def remedy(self, name: str, code: int) -> str:
        """Say what to do when a function has failed with that code."""
        raise NotImplementedError

    def last_errno(self) -> int:
        """Return errno as the function that was called last in this thread has left it."""
        return ctypes.get_errno()


def _open_library(kind: str, path: "Optional[str]", variable: str, names: "Sequence[str]",
                  make: "Callable[[str], Any]", advice: str) -> "Any":
    """Return make(name) for the first name that can be opened.

    Order: path, else the environment, else names, else what the linker's cache and compiler
    know.  A path that was given is the only one tried: another library than the one that the
    user has named must not answer for it."""
    path = path or os.environ.get(variable)
    if path:
        try:
            return make(path)
        except OSError as error:
            why = str(error)
            raise LibraryError("{}: {}: correct {}, or unset it to search".format(
                kind, why if path in why else "{}: {}".format(path, why), variable)) from error
    for name in names:
        try:
            return make(name)
        except OSError as error:
            # Found but unusable (another architecture, a missing dependency) is what to tell.
            if "cannot open shared object file: No such file" not in str(error):
                raise LibraryError("{}: {}: repair it, or set {}".format(
                    kind, error, variable)) from error
            if name not in str(error).partition(":")[0]:
                raise LibraryError("{}: {} needs {}: install that, or set {}".format(
                    kind, name, error, variable)) from error
    import ctypes.util  # runs ldconfig, and cc: only if nothing else is left
    found = ctypes.util.find_library(kind[len("lib"):])
    if found is not None:
        try:
            return make(found)
        except OSError as error:
            raise LibraryError("{}: {}: set {}".format(kind, error, variable)) from error
    raise LibraryError("{}: not found, neither as {} nor by the linker: {}".format(
        kind, " nor ".join((names[0], names[-1])), advice))


def load_libcr(path: "Optional[str]" = None) -> "Libcr":
    """Open libcr: path, else $SRUN_CR_LIBCR, else by its names.

    Loading makes libcr take CR_SIGNUM (64) from the C library: SIGRTMAX drops by one.
    Raises: LibraryError, in one line for the user."""
    library = _open_library(
        "libcr", path, "SRUN_CR_LIBCR", LIBCR_NAMES, Libcr,
        "install BLCR, set SRUN_CR_LIBCR, or use " + OTHER_ENGINES)  # type: Libcr
    return library


def load_libslurm(path: "Optional[str]" = None) -> "Libslurm":
    """Open a libslurm with slurm_checkpoint_tasks(): path, else $SRUN_CR_LIBSLURM, else by name.

    Raises: LibraryError, in one line for the user."""
    library = _open_library(
        "libslurm", path, "SRUN_CR_LIBSLURM", LIBSLURM_NAMES, Libslurm,
        "set SRUN_CR_LIBSLURM, or use " + OTHER_ENGINES)  # type: Libslurm
    return library


# ---------------------------------------------------------------------------------------------
# libcr
# ---------------------------------------------------------------------------------------------

class Libcr(Library):
    """BLCR's library: one callback, critical sections, the answer to a request.

    The callback's thread has all signals blocked and holds libcr's exclusive lock: until the
    request is over, enter_cs() in every other thread waits, spinning.  So it must not wait for
    another thread, and main had better use tryenter_cs()."""

    kind = "libcr"
    advice = "this is not BLCR's library: set SRUN_CR_LIBCR, or use " + OTHER_ENGINES

    def __init__(self, path: str) -> None:
        super().__init__(path, LIBCR)
        # What ctypes has made of the callback; libcr has its address until the process ends.
        self._callback = None  # type: Any
        # Of the request under way; the callback's thread alone touches them.
        self._callback_thread = 0
        self._answered = False
        self._result = 0

    def init(self) -> int:
        """Make this thread one that may use libcr; return its client id.

        Once in each thread that enters critical sections; the id is of use in that thread only,
        and is not known to a child after fork(2).  No other thread waits for the callback's end
        after a dump from here on.
        Raises: LibraryError, also for a libcr without its part of the kernel.
        Source: cr_init(), cr_hold_ctrl() in libcr.h."""
        client_id = int(self._functions["cr_init"]())
        if self.has("cr_hold_ctrl"):
            # The dump stops every thread by a signal, also the one that has the interpreter's
            # lock.  By default it would then be held until the callback has ended, which needs
            # that lock first: neither would go on.
            for scope in (CR_HOLD_SCOPE_INIT, CR_HOLD_SCOPE_UNINIT):
                self._functions["cr_hold_ctrl"](scope, CR_HOLD_NONE)
        return client_id

    def register_callback(self, function: "Callable[[], None]",
                          on_error: "Optional[Callable[[BaseException], None]]" = None) -> int:
        """Have function called at each request, in libcr's thread; return the callback's id.

        function calls checkpoint() exactly once.  If it returns or raises without, the request
        is cancelled with CR_CHECKPOINT_TEMP_FAILURE; libcr would take that for READY.  What it
        raises is given to on_error, in the same thread, after the answer; nothing leaves the
        callback.  It may call: checkpoint_info() before the answer, restart_info() after one
        that was positive, no critical sections, nothing that waits for another thread.
        Thread: one that has called init(), outside a callback.
        Raises: LibraryError, also at a second registration.
        Source: cr_register_callback() in libcr.h."""
        if self._callback is not None:
            raise LibraryError("libcr: cr_register_callback: there is a callback already: "
                               "register one that calls both")

        def callback(_argument: "Optional[int]") -> int:
            # Whatever leaves a ctypes callback is printed, and what libcr gets back is then not
            # defined: nonzero kills us.  So no statement here is outside of a try.
            failure = None  # type: Optional[BaseException]
            try:
                self._result = 0
                self._answered = False
                self._callback_thread = get_ident()
                function()
            except BaseException as error:  # SystemExit, too, would leave us with garbage
                failure = error
            try:
                if not self._answered:
                    self._answered = True
                    self._functions["cr_checkpoint"](CR_CHECKPOINT_TEMP_FAILURE)
                self._callback_thread = 0
                if failure is not None and on_error is not None:
                    on_error(failure)
            except BaseException:
                self._callback_thread = 0
            return 0

        c_callback = cr_callback_t(callback)
        self._callback = c_callback     # first: libcr may call it before it has returned to us
        try:
            return int(self._functions["cr_register_callback"](c_callback, None,
                                                               CR_THREAD_CONTEXT))
        except LibraryError:
            self._callback = None
            raise

    def enter_cs(self, client_id: int) -> None:
        """Enter a critical section: no checkpoint begins before leave_cs().

        Waits, spinning, while a checkpoint is under way; in the callback it does nothing.
        Thread: the one of client_id.  Raises: LibraryError.  Source: cr_enter_cs(), libcr.h."""
        self._functions["cr_enter_cs"](client_id)

    def tryenter_cs(self, client_id: int) -> bool:
        """Enter a critical section if that needs no waiting; return whether it was entered.

        False: a checkpoint is under way; there is nothing to leave then.
        Thread: the one of client_id.  Raises: LibraryError.
        Source: cr_tryenter_cs(), libcr.h: 0 entered, positive busy."""
        return int(self._functions["cr_tryenter_cs"](client_id)) == 0

    def leave_cs(self, client_id: int) -> None:
        """Leave a critical section; one call for each that was entered.

        A request that waited is served now, perhaps before this returns.
        Thread: the one of client_id.  Raises: LibraryError.  Source: cr_leave_cs(), libcr.h."""
        self._functions["cr_leave_cs"](client_id)

    def checkpoint(self, flags: int) -> int:
        """Answer the request with CR_CHECKPOINT_*; return libcr's result as it is.

        0: the checkpoint was taken, we continue.  Positive (the pid of cr_restart): this is the
        restarted copy.  Negative: no checkpoint, -CR_ETEMPFAIL after TEMP_FAILURE, -CR_EOMITTED
        after OMIT, -CR_ENOTCB outside the callback, else minus an errno.  strerror() words it.
        PERM_FAILURE, unless the kill fails, does not return.
        Thread: the callback's.  Raises: LibraryError at a second answer to one request.
        Source: cr_checkpoint(), libcr.h."""
        answer = c_int(flags)  # may raise, so before the request counts as answered
        if get_ident() != self._callback_thread:
            return int(self._functions["cr_checkpoint"](answer))
        if self._answered:
            raise LibraryError("libcr: cr_checkpoint: the request has been answered: "
                               "answer it once")
        self._answered = True
        self._result = int(self._functions["cr_checkpoint"](answer))
        return self._result

    def checkpoint_info(self) -> "Optional[CheckpointInfo]":
        """Return the request under way; None outside the callback and after the answer.

        Its path is absolute, or empty if the image goes to a pipe or socket, or ends in `/.` if
        a directory was given to the requester.
        Thread: the callback's.  Source: cr_get_checkpoint_info(), libcr.h."""
        # After the answer libcr may abort the process.
        if get_ident() != self._callback_thread or self._answered:
            return None
        info = self._functions["cr_get_checkpoint_info"]()
        return CheckpointInfo(info.contents) if info else None

    def restart_info(self) -> "Optional[str]":
        """Return the path of the context file we were restarted from; None if we were not.

        Empty if that is no file.  Thread: the callback's, after checkpoint() was positive.
        Source: cr_get_restart_info(), libcr.h."""
        # Without a restart libcr may abort the process.
        if get_ident() != self._callback_thread or self._result <= 0:
            return None
        info = self._functions["cr_get_restart_info"]()
        return os.fsdecode(info.contents.src or b"") if info else None

    def strerror(self, code: int) -> str:
        """Word an error code, errno's or BLCR's own, of either sign."""
        function = self._functions.get("cr_strerror")
        text = function(abs(code)) if function is not None else None
        return text.decode("utf-8", "replace") if text else os.strerror(abs(code))

    def remedy(self, name: str, code: int) -> str:
        """Say what to do when a function has failed with that code."""
        if name == "cr_init":
            if code == CR_EVERSION:
                return "install the libcr that belongs to this kernel's blcr module"
            # libcr says ENOSYS whatever keeps it from opening /proc/checkpoint/ctrl.
            return "load the kernel module blcr, or use " + OTHER_ENGINES
        if code == CR_ENOINIT:
            return "call cr_init in the same thread"
        return "see the kernel's log"


# ---------------------------------------------------------------------------------------------
# libslurm
# ---------------------------------------------------------------------------------------------

class Libslurm(Library):
    """Slurm's library, 2.1 to 18.08."""

    kind = "libslurm"
    advice = "this is not Slurm's library: set SRUN_CR_LIBSLURM, or use " + OTHER_ENGINES

    def __init__(self, path: str) -> None:
        super().__init__(path, LIBSLURM)
        if not self.has("slurm_checkpoint_tasks"):
            # slurm_init() is left alone: it ends the process where there is no slurm.conf.
            version = self.api_version()
            raise LibraryError(
                "libslurm: {} {} slurm_checkpoint_tasks, which Slurm 19.05 removed: use {}".format(
                    path, "has no" if version is None else
                    "(API {}) has no".format(version), OTHER_ENGINES))
        if self.has("slurm_init"):
            self._functions["slurm_init"](None)

    def api_version(self) -> "Optional[int]":
        """Return the number in libslurm.so.NUMBER: 33 for Slurm 18.08; None: it does not say."""
        if not self.has("slurm_api_version"):
            return None
        return int(self._functions["slurm_api_version"]()) >> 16 & 0xff

    def checkpoint_tasks(self, job_id: int, step_id: int, begin_time: int,
                         image_dir: "Union[str, bytes]", max_wait_s: int,
                         node_list: "Union[str, bytes]") -> None:
        """Image all tasks of a step into image_dir; return when every node has answered.

        Each slurmd on node_list is asked, so it takes what the images take, up to max_wait_s.
        begin_time, in seconds since 1970, is the request's name: a second one of the same time
        is refused.  That it returns does not prove that the images are whole: look.
        Thread: any, and libcr's callback is meant.
        Raises: LibraryError, errno Slurm's; also before anything is sent, for what the C types
        would cut off.
        Source: slurm_checkpoint_tasks(), slurm.h of 2.1 to 18.08."""
        step = "step {}.{}".format(job_id, step_id)
        if not 0 <= step_id <= STEP_ID_MAX:
            raise LibraryError("{}: slurm_checkpoint_tasks knows step ids up to {} only: use {}"
                               .format(step, STEP_ID_MAX, OTHER_ENGINES))
        if not 0 <= job_id <= JOB_ID_MAX:
            raise LibraryError("{}: not a job id: give one up to {}".format(step, JOB_ID_MAX))
        if not 0 <= max_wait_s <= WAIT_MAX_S:
            raise LibraryError("{}: cannot be waited for {} s: give 0 to {}".format(
                step, max_wait_s, WAIT_MAX_S))
        texts = []
        for what, text in (("image directory", image_dir), ("node list", node_list)):
            data = os.fsencode(text)
            if b"\0" in data:
                raise LibraryError("{}: {} with a NUL in it: give one without".format(step, what))
            texts.append(ctypes.create_string_buffer(data))     # char *, not const
        self._functions["slurm_checkpoint_tasks"](job_id, step_id, int(begin_time), texts[0],
                                                  max_wait_s, texts[1])

    def strerror(self, code: int) -> str:
        """Word an error code, errno's or Slurm's own."""
        text = self._functions["slurm_strerror"](code)
        return text.decode("utf-8", "replace") if text else "error {}".format(code)

    def last_errno(self) -> int:
        """Return Slurm's errno as the function that was called last in this thread has left it."""
        function = self._functions.get("slurm_get_errno")
        # ctypes puts errno back before each call.
        return int(function()) if function is not None else super().last_errno()

    def remedy(self, name: str, code: int) -> str:
        """Say what to do when a function has failed with that code."""
        if code == ESLURM_ALREADY_DONE:
            return "it has ended, or was asked in this very second: ask again in a second"
        return "see slurmd's log on the step's nodes"


# ---------------------------------------------------------------------------------------------
# The C library
# ---------------------------------------------------------------------------------------------

def set_parent_death_signal(number: int) -> None:
    """Have the kernel send us a signal when the thread that forked us ends; 0: none.

    Survives execve(2) of programs without privileges of their own.
    Raises: OSError.  Source: int prctl(int option, unsigned long arg2, ...), prctl(2)."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl.argtypes = [c_int] + [c_ulong] * 4
    libc.prctl.restype = c_int
    if libc.prctl(PR_SET_PDEATHSIG, number, 0, 0, 0) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
