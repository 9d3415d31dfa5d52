// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Stand for libcr.so of BLCR 0.8.5, and for its part of the kernel, traps included.
 *
 * Driven by lines written to the FIFO $FAKE_LIBCR_FIFO, which the callback's thread reads, so one
 * request at a time (the FIFO may also be a file that has them all):
 *
 *   checkpoint PATH        a request with that context file; after the dump the process goes on
 *   restart PATH [DUMP]    the same, but what goes on is the restored copy: cr_checkpoint() is
 *                          positive, the sockets are closed, the children gone without a trace.
 *                          PATH is what we are restarted from, DUMP (else PATH) what was asked for
 *   mode fail=ERRNO        the next dump fails so
 *   mode slow=MS           dumps take so long
 *   mode sockets=0|1 children=0|1 pid=N  what a restart takes away; the pid of cr_restart
 *   mode stop=0|1          whether a dump stops the other threads, as CR_SIGNUM does
 *
 * With $FAKE_LIBCR_IMAGE, a path, a restart waits, all other threads stopped, children and sockets
 * gone, after the line "image me" until there is a file of that name: meanwhile somebody else may
 * image this process, end it, restore it, and create the file.
 *
 * $FAKE_LIBCR_FAIL_INIT (ENOSYS, CR_EVERSION, CR_ENOSUPPORT or a number) has cr_init() fail.
 * $FAKE_LIBCR_LOG gets one line an event: init, register, hold, enter, busy, leave, misuse,
 * request, "callback begin", "checkpoint flags=", dumped, failed, restarted, aborted,
 * "callback end", done, killed; with $FAKE_LIBCR_LOG_FORKS also fork.
 */

#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <sched.h>
#include <semaphore.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define CR_SIGNUM 64
#define CR_THREAD_CONTEXT 0x4000000
#define CR_SIGNAL_CONTEXT 0x2000000
#define STOP_TIMEOUT_S 10
#define THREADS_MAX 256

enum { READY = 0, TEMP_FAILURE = 1, PERM_FAILURE = 2, OMIT = 4 };
enum { CR_ETEMPFAIL = 2354, CR_EPERMFAIL, CR_ENOSUPPORT, CR_EVERSION, CR_EOMITTED, CR_EBADARCH,
       CR_EPTRACED, CR_EPTRACER, CR_ERSTRTABRT, CR_ERESTARTED, CR_ENOTCB, CR_ENOINIT };
enum { HOLD_CONT = 1, HOLD_RSTRT = 2, HOLD_BOTH = 3, HOLD_DFLT = 4 };

struct cr_checkpoint_info { int signal; const char *dest; pid_t requester; pid_t target;
                            unsigned scope; };
struct cr_restart_info { pid_t requester; const char *src; };

typedef int (*callback_t)(void *);

// What libcr knows of a thread; initial-exec: the signal handler must not have to allocate it.
static __thread struct {
    int initialised, next_id, sections, hold;
} self __attribute__((tls_model("initial-exec")));

static int log_fd = -1;
static atomic_int lock_state;       // > 0: so many critical sections; < 0: a checkpoint
static atomic_int live;             // requests, from their arrival to the end of the dump
static atomic_int busy_logged;
static int hold_initialised = HOLD_BOTH, hold_others = HOLD_BOTH;

static pthread_mutex_t start_lock = PTHREAD_MUTEX_INITIALIZER;
static int started;
static pthread_t thread;
static atomic_int thread_tid;
static callback_t callback_function;
static void *callback_argument;

// The request; the callback's thread alone writes.
static struct {
    int active, answered, restart, result;
    const char *dump, *source;
} request;
static struct cr_checkpoint_info checkpoint_info;
static struct cr_restart_info restart_info;
static char info_path[PATH_MAX];    // one for both, as in libcr: the second overwrites the first
static int fail_next, slow_ms, close_sockets = 1, kill_children = 1, stop_threads = 1;
static pid_t restarter = 4242;

// The threads that a dump has stopped wait for these.
static sem_t arrived;
static atomic_int dumping, holding, was_restart;

static void note(const char *format, ...)
{
    char line[PATH_MAX + 200];
    va_list arguments;
    int saved = errno, length;

    if (log_fd < 0)
        return;
    va_start(arguments, format);
    length = vsnprintf(line, sizeof line - 1, format, arguments);
    va_end(arguments);
    if (length > (int)sizeof line - 2)
        length = sizeof line - 2;
    line[length] = '\n';
    if (write(log_fd, line, length + 1) < 0)
        log_fd = -1;
    errno = saved;
}

static void pause_ms(long ms)
{
    struct timespec left = { ms / 1000, ms % 1000 * 1000000L };

    while (nanosleep(&left, &left) != 0 && errno == EINTR)
        ;
}

// -- what a dump does to the other threads ------------------------------------------------------

static void on_cr_signal(int number, siginfo_t *info, void *context)
{
    int saved = errno, hold;

    (void)number, (void)info, (void)context;
    if (atomic_load(&dumping)) {
        sem_post(&arrived);
        while (atomic_load(&dumping))
            pause_ms(1);
        hold = self.initialised ? (self.hold == HOLD_DFLT ? hold_initialised : self.hold)
                                : hold_others;
        if (hold & (atomic_load(&was_restart) ? HOLD_RSTRT : HOLD_CONT))
            while (atomic_load(&holding))
                pause_ms(1);
    }
    errno = saved;
}

// Whether a thread has CR_SIGNUM blocked: the kernel's part of BLCR unblocks it, we cannot.
static int has_blocked(long tid)
{
    char path[80], line[200];
    unsigned long long mask = 0;
    FILE *file;

    snprintf(path, sizeof path, "/proc/self/task/%ld/status", tid);
    file = fopen(path, "re");
    if (file == NULL)
        return 1;
    while (fgets(line, sizeof line, file) != NULL)
        if (sscanf(line, "SigBlk: %llx", &mask) == 1)
            break;
    fclose(file);
    return mask >> (CR_SIGNUM - 1) & 1;
}

static void stop_all(void)
{
    long tids[THREADS_MAX];
    int count = 0, sent = 0, stopped = 0, left, i;
    struct dirent *entry;
    struct timespec now;
    time_t deadline;
    DIR *directory = opendir("/proc/self/task");

    while (directory != NULL && count < THREADS_MAX && (entry = readdir(directory)) != NULL)
        if (atol(entry->d_name) > 0 && atol(entry->d_name) != atomic_load(&thread_tid))
            tids[count++] = atol(entry->d_name);
    if (directory != NULL)
        closedir(directory);
    atomic_store(&dumping, 1);
    atomic_store(&holding, 1);
    for (i = 0; i < count; i++)
        if (!has_blocked(tids[i]) && syscall(SYS_tgkill, getpid(), tids[i], CR_SIGNUM) == 0)
            tids[sent++] = tids[i];
    clock_gettime(CLOCK_MONOTONIC, &now);
    deadline = now.tv_sec + STOP_TIMEOUT_S;
    for (;;) {      // a thread that ends just now never comes
        while (sem_trywait(&arrived) == 0)
            stopped++;
        for (i = left = 0; i < sent; i++)
            left += syscall(SYS_tgkill, getpid(), tids[i], 0) == 0;
        if (stopped >= left)
            return;
        clock_gettime(CLOCK_MONOTONIC, &now);
        if (now.tv_sec > deadline)
            break;
        pause_ms(1);
    }
    note("misuse: a thread does not stop for the dump");
}

// -- what a dump and a restart do to descriptors and children -----------------------------------

static int visit_descriptors(int restart)
{
    char name[40], target[PATH_MAX];
    struct dirent *entry;
    struct stat status;
    ssize_t length;
    int fd, bad = 0;
    DIR *directory = opendir("/proc/self/fd");

    while (directory != NULL && (entry = readdir(directory)) != NULL) {
        fd = atoi(entry->d_name);
        if (entry->d_name[0] == '.' || fd == dirfd(directory))
            continue;
        if (restart) {
            if (fstat(fd, &status) == 0 && S_ISSOCK(status.st_mode))
                close(fd);
            continue;
        }
        snprintf(name, sizeof name, "/proc/self/fd/%d", fd);
        length = readlink(name, target, sizeof target - 1);
        if (length > 0 && strncmp(target, "anon_inode:", 11) == 0) {
            target[length] = '\0';
            note("misuse: descriptor %d cannot be dumped: %s", fd, target);
            bad = 1;
        }
    }
    if (directory != NULL)
        closedir(directory);
    return bad;
}

static void end_children(void)
{
    static const struct timespec at_once;
    char path[80];
    struct dirent *entry;
    sigset_t set;
    FILE *file;
    long pid;
    DIR *directory = opendir("/proc/self/task");

    while (directory != NULL && (entry = readdir(directory)) != NULL) {
        snprintf(path, sizeof path, "/proc/self/task/%.20s/children", entry->d_name);
        file = entry->d_name[0] == '.' ? NULL : fopen(path, "re");
        if (file == NULL)
            continue;
        while (fscanf(file, "%ld", &pid) == 1) {
            kill(pid, SIGKILL);
            waitpid(pid, NULL, 0);
            note("child %ld is gone", pid);
        }
        fclose(file);
    }
    if (directory != NULL)
        closedir(directory);
    // The restored process never had them: no signal either, as all others are stopped.
    sigemptyset(&set);
    sigaddset(&set, SIGCHLD);
    while (sigtimedwait(&set, NULL, &at_once) > 0)
        ;
}

static int dump(void)
{
    int result = 0;

    if (stop_threads)
        stop_all();
    pause_ms(slow_ms);
    if (fail_next != 0) {
        result = -fail_next;
        fail_next = 0;
    } else if (visit_descriptors(0)) {
        result = -EBADF;
    } else if (request.restart) {
        if (close_sockets)
            visit_descriptors(1);
        if (kill_children)
            end_children();
        if (getenv("FAKE_LIBCR_IMAGE") != NULL) {
            note("image me");
            while (access(getenv("FAKE_LIBCR_IMAGE"), F_OK) != 0)
                pause_ms(5);
        }
        result = restarter;
    }
    if (result < 0)
        note("failed %d", result);
    else if (result > 0)
        note("restarted %s", request.source);
    else
        note("dumped %s", request.dump);
    atomic_store(&was_restart, result > 0);
    if (result < 0)
        atomic_store(&holding, 0);
    atomic_store(&dumping, 0);
    return result;
}

static void kill_self(const char *why)
{
    note("killed %s", why);
    kill(getpid(), SIGKILL);
    for (;;)
        pause();
}

// -- the callback's thread ----------------------------------------------------------------------

static int in_callback(void)
{
    return request.active && syscall(SYS_gettid) == atomic_load(&thread_tid);
}

static int answer(int flags)
{
    request.answered = 1;
    switch (flags & 0xffff) {
    case READY:
        request.result = dump();
        break;
    case TEMP_FAILURE:
        request.result = flags >> 16 ? -(flags >> 16) : -CR_ETEMPFAIL;
        note("aborted %d", request.result);
        break;
    case PERM_FAILURE:
        kill_self("PERM_FAILURE");
        break;
    case OMIT:
        request.result = -CR_EOMITTED;
        note("aborted %d", request.result);
        break;
    default:
        request.result = -EINVAL;
        note("misuse: cr_checkpoint(%d)", flags);
    }
    return request.result;
}

static void serve(const char *source, const char *dump_path, int restart)
{
    int old, rc;

    memset(&request, 0, sizeof request);
    request.restart = restart;
    request.source = source;
    request.dump = dump_path;
    checkpoint_info.dest = restart_info.src = NULL;
    atomic_store(&busy_logged, 0);
    atomic_fetch_add(&live, 1);
    note("request %s", dump_path);
    for (;;) {      // the exclusive lock: no critical section in any thread
        old = atomic_load(&lock_state);
        if (old <= 0 && atomic_compare_exchange_weak(&lock_state, &old, old - 1))
            break;
        sched_yield();
    }
    request.active = 1;
    note("callback begin %s", dump_path);
    rc = callback_function(callback_argument);
    note("callback end rc=%d", rc);
    if (rc != 0)
        kill_self("by the callback's result");
    if (!request.answered) {
        note("checkpoint flags=0 implied");
        answer(READY);
    }
    request.active = 0;
    atomic_fetch_sub(&live, 1);
    atomic_fetch_add(&lock_state, 1);
    atomic_store(&holding, 0);
    note("done");
}

static void set_mode(char *words)
{
    char *word, *state;
    int value;

    for (word = strtok_r(words, " ", &state); word != NULL; word = strtok_r(NULL, " ", &state)) {
        if (sscanf(word, "fail=%d", &value) == 1)
            fail_next = value;
        else if (sscanf(word, "slow=%d", &value) == 1)
            slow_ms = value;
        else if (sscanf(word, "sockets=%d", &value) == 1)
            close_sockets = value;
        else if (sscanf(word, "children=%d", &value) == 1)
            kill_children = value;
        else if (sscanf(word, "stop=%d", &value) == 1)
            stop_threads = value;
        else if (sscanf(word, "pid=%d", &value) == 1)
            restarter = value;
        else
            note("misuse: mode %s", word);
    }
}

static void *thread_main(void *argument)
{
    const char *fifo = getenv("FAKE_LIBCR_FIFO");
    char *line = NULL, *rest;
    size_t size = 0;
    FILE *file = NULL;
    struct stat status;
    sigset_t set;
    int fd = -1;

    sigfillset(&set);
    pthread_sigmask(SIG_SETMASK, &set, NULL);
    atomic_store(&thread_tid, syscall(SYS_gettid));
    self.initialised = 1;
    self.hold = HOLD_DFLT;
    sem_post(argument);
    if (fifo != NULL && stat(fifo, &status) == 0)   // O_RDWR: a FIFO without an end
        fd = open(fifo, (S_ISFIFO(status.st_mode) ? O_RDWR : O_RDONLY) | O_CLOEXEC);
    if (fd >= 0)
        file = fdopen(fd, "r");
    while (file != NULL && getline(&line, &size, file) > 0) {
        line[strcspn(line, "\n")] = '\0';
        rest = strchr(line, ' ');
        if (rest != NULL)
            *rest++ = '\0';
        if (rest == NULL)
            note("misuse: %s", line);
        else if (strcmp(line, "checkpoint") == 0)
            serve(rest, rest, 0);
        else if (strcmp(line, "restart") == 0) {
            char *second = strchr(rest, ' ');
            if (second != NULL)
                *second++ = '\0';
            serve(rest, second != NULL ? second : rest, 1);
        } else if (strcmp(line, "mode") == 0)
            set_mode(rest);
        else
            note("misuse: %s", line);
    }
    while (argument != NULL)    // for ever
        pause();
    return NULL;
}

// -- the interface ------------------------------------------------------------------------------

static void before_fork(void)
{
    if (getenv("FAKE_LIBCR_LOG_FORKS") != NULL)
        note("fork");
}

static void in_child(void)
{
    // Threads do not survive a fork, and the child has not called cr_init().
    memset(&self, 0, sizeof self);
    memset(&request, 0, sizeof request);
    atomic_store(&lock_state, 0);
    atomic_store(&live, 0);
    atomic_store(&dumping, 0);
    atomic_store(&holding, 0);
    atomic_store(&thread_tid, 0);
    started = 0;
}

static void __attribute__((constructor)) load(void)
{
    const char *path = getenv("FAKE_LIBCR_LOG");
    int (*allocate)(int) = NULL;
    void *symbol = dlsym(RTLD_DEFAULT, "__libc_allocate_rtsig");
    struct sigaction action;

    if (path != NULL)
        log_fd = open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
    memcpy(&allocate, &symbol, sizeof symbol);
    if (allocate != NULL)
        note("signal %d", allocate(0));     // the lowest in priority: SIGRTMAX drops by one
    memset(&action, 0, sizeof action);
    action.sa_sigaction = on_cr_signal;
    action.sa_flags = SA_RESTART | SA_SIGINFO;
    sigfillset(&action.sa_mask);
    sigaction(CR_SIGNUM, &action, NULL);
    sem_init(&arrived, 0, 0);
    pthread_atfork(before_fork, NULL, in_child);
}

int cr_init(void)
{
    const char *fail = getenv("FAKE_LIBCR_FAIL_INIT");

    if (fail != NULL && *fail != '\0') {
        errno = strcmp(fail, "ENOSYS") == 0 ? ENOSYS
                : strcmp(fail, "CR_EVERSION") == 0 ? CR_EVERSION
                : strcmp(fail, "CR_ENOSUPPORT") == 0 ? CR_ENOSUPPORT : atoi(fail);
        note("init failed %d", errno);
        return -1;
    }
    if (!self.initialised) {
        self.initialised = 1;
        self.hold = HOLD_DFLT;
    }
    note("init id=%d", self.next_id);
    return self.next_id++;      // so each thread begins with 0
}

int cr_register_callback(callback_t function, void *argument, int flags)
{
    sem_t running;

    if (!self.initialised) {
        errno = CR_ENOINIT;
    } else if (in_callback()) {
        errno = EBUSY;
    } else if (flags != CR_THREAD_CONTEXT) {
        errno = flags == CR_SIGNAL_CONTEXT ? ENOTSUP : EINVAL;
    } else {
        pthread_mutex_lock(&start_lock);
        note("register flags=0x%x", (unsigned)flags);
        callback_function = function;
        callback_argument = argument;
        if (!started) {
            started = 1;
            sem_init(&running, 0, 0);
            pthread_create(&thread, NULL, thread_main, &running);
            while (sem_wait(&running) != 0)
                ;
        }
        pthread_mutex_unlock(&start_lock);
        return CR_THREAD_CONTEXT;
    }
    note("misuse: register flags=0x%x errno=%d", (unsigned)flags, errno);
    return -1;
}

static int valid(int id, const char *what)
{
    if (in_callback())
        return 1;
    if (self.initialised && id >= 0 && id < self.next_id)
        return 1;
    errno = self.initialised ? EINVAL : CR_ENOINIT;
    note("misuse: %s id=%d errno=%d", what, id, errno);
    return 0;
}

static int try_enter(void)
{
    int old = atomic_load(&lock_state);

    if (self.sections > 0) {    // nested: those outside keep a checkpoint away
        atomic_fetch_add(&lock_state, 1);
    } else {
        do {
            if (old < 0 || atomic_load(&live) > 0)
                return 0;
        } while (!atomic_compare_exchange_weak(&lock_state, &old, old + 1));
    }
    self.sections++;
    return 1;
}

int cr_enter_cs(int id)
{
    if (!valid(id, "enter"))
        return -1;
    if (in_callback())
        return 0;
    while (!try_enter())
        sched_yield();
    note("enter");
    return 0;
}

int cr_tryenter_cs(int id)
{
    if (!valid(id, "tryenter"))
        return -1;
    if (in_callback())
        return 0;
    if (!try_enter()) {
        if (atomic_exchange(&busy_logged, 1) == 0)
            note("busy");       // once a request
        return 1;
    }
    note("enter");
    return 0;
}

int cr_leave_cs(int id)
{
    if (!valid(id, "leave"))
        return -1;
    if (in_callback())
        return 0;
    if (self.sections == 0) {
        note("misuse: leave without enter");
        abort();
    }
    self.sections--;
    note("leave");
    atomic_fetch_sub(&lock_state, 1);
    return 0;
}

int cr_checkpoint(int flags)
{
    if (!in_callback()) {
        note("misuse: cr_checkpoint(%d) outside the callback", flags);
        errno = CR_ENOTCB;
        return -CR_ENOTCB;
    }
    if (request.answered) {
        note("misuse: cr_checkpoint(%d) again", flags);
        return -EINVAL;
    }
    note("checkpoint flags=%d", flags);
    return answer(flags);
}

const struct cr_checkpoint_info *cr_get_checkpoint_info(void)
{
    if (!in_callback())
        return NULL;
    if (request.answered) {
        note("misuse: cr_get_checkpoint_info after cr_checkpoint");
        abort();
    }
    snprintf(info_path, sizeof info_path, "%s", request.dump);
    checkpoint_info.signal = 0;
    checkpoint_info.dest = info_path;
    checkpoint_info.requester = 4241;
    checkpoint_info.target = getpid();
    checkpoint_info.scope = 3;
    return &checkpoint_info;
}

const struct cr_restart_info *cr_get_restart_info(void)
{
    if (!in_callback())
        return NULL;
    if (request.result <= 0) {
        note("misuse: cr_get_restart_info without a restart");
        abort();
    }
    snprintf(info_path, sizeof info_path, "%s", request.source);
    restart_info.requester = request.result;
    restart_info.src = info_path;
    return &restart_info;
}

int cr_hold_ctrl(int scope, int flags)
{
    int *held = scope == 0 ? &self.hold : scope == 1 ? &hold_initialised
                : scope == 2 ? &hold_others : NULL;
    int old;

    if (!self.initialised || held == NULL) {
        errno = self.initialised ? EINVAL : CR_ENOINIT;
        return -1;
    }
    old = *held;
    if (flags != -1)
        *held = flags;
    note("hold scope=%d flags=%d", scope, flags);
    return old;
}

const char *cr_strerror(int code)
{
    switch (code) {
    case CR_ETEMPFAIL:
        return "Temporary error: checkpoint cancelled";
    case CR_EPERMFAIL:
        return "Permanent failure: checkpoint cancelled and job killed";
    case CR_ENOSUPPORT:
        return "Checkpoint support not linked into one or more processes";
    case CR_EVERSION:
        return "Requested kernel interface version is not supported";
    case CR_EOMITTED:
        return "Process omitted from checkpoint at a callback's request";
    case CR_ENOTCB:
        return "Call is only valid from a checkpoint callback";
    case CR_ENOINIT:
        return "Calling thread has not called cr_init()";
    default:
        return strerror(code);
    }
}
