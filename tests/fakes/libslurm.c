// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Stand for libslurm.so: of Slurm 18.08, or with -DNEW of a later one, without
 * slurm_checkpoint_tasks() but with slurm_init(); -DBOTH has both.  What needs slurm_init() aborts
 * without it.
 *
 * $FAKE_LIBSLURM_LOG gets a line for each call: init, or checkpoint_tasks and its arguments, of
 * which the last two, dir= and nodes=, may have spaces.
 * $FAKE_LIBSLURM_TASKS=n has the directory made and task.0.ckpt to task.<n-1>.ckpt in it,
 * $FAKE_LIBSLURM_ERRNO=e a request fail (-1: as SLURM_ERROR does), $FAKE_LIBSLURM_SLEEP_MS=t
 * take so long.  A second request with the time of the one before is refused.
 */

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define ESLURM_INVALID_JOB_ID 2017
#define ESLURM_ALREADY_DONE 2021

#if defined(NEW) || defined(BOTH)
#define HAS_INIT 1
#define API_VERSION 0x260000
#else
#define HAS_INIT 0
#define API_VERSION 0x210000
#endif

static int initialised = !HAS_INIT;

static void need_init(void)
{
    if (!initialised)
        abort();
}

static void note(const char *line, size_t length)
{
    const char *path = getenv("FAKE_LIBSLURM_LOG");
    int fd = path == NULL ? -1 : open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);

    if (fd >= 0) {
        if (write(fd, line, length) < 0)
            abort();
        close(fd);
    }
}

int slurm_get_errno(void);
char *slurm_strerror(int code);
long slurm_api_version(void);

int slurm_get_errno(void)
{
    int code = errno;

    need_init();
    return code;
}

char *slurm_strerror(int code)
{
    need_init();
    switch (code) {
    case -1:
        return "Unspecified error";
    case ESLURM_INVALID_JOB_ID:
        return "Invalid job id specified";
    case ESLURM_ALREADY_DONE:
        return "Job/step already completing or completed";
    default:
        return strerror(code);
    }
}

long slurm_api_version(void)
{
    return API_VERSION;
}

#if HAS_INIT
void slurm_init(const char *conf);

void slurm_init(const char *conf)
{
    (void)conf;
    initialised = 1;
    note("init\n", 5);
}
#endif

#ifndef NEW
int slurm_checkpoint_tasks(uint32_t job_id, uint16_t step_id, time_t begin_time, char *image_dir,
                           uint16_t max_wait, char *nodelist);

static int number(const char *name)
{
    const char *value = getenv(name);

    return value == NULL ? 0 : atoi(value);
}

static int fail(int code)
{
    errno = code;
    return code;
}

int slurm_checkpoint_tasks(uint32_t job_id, uint16_t step_id, time_t begin_time, char *image_dir,
                           uint16_t max_wait, char *nodelist)
{
    static uint32_t last_job;
    static uint16_t last_step;
    static time_t last_time;
    int ms = number("FAKE_LIBSLURM_SLEEP_MS"), tasks = number("FAKE_LIBSLURM_TASKS"), i, fd;
    struct timespec left = { ms / 1000, ms % 1000 * 1000000L };
    char *line, path[PATH_MAX + 40];
    int length;

    need_init();
    length = asprintf(&line, "checkpoint_tasks job=%u step=%u begin=%lld wait=%u length=%zu "
                      "dir=%s nodes=%s\n", (unsigned)job_id, (unsigned)step_id,
                      (long long)begin_time, (unsigned)max_wait, strlen(nodelist), image_dir,
                      nodelist);
    if (length < 0)
        abort();
    note(line, length);
    free(line);
    while (nanosleep(&left, &left) != 0 && errno == EINTR)
        ;
    if (job_id == last_job && step_id == last_step && begin_time == last_time)
        return fail(ESLURM_ALREADY_DONE);
    last_job = job_id;
    last_step = step_id;
    last_time = begin_time;
    if (number("FAKE_LIBSLURM_ERRNO") != 0)
        return fail(number("FAKE_LIBSLURM_ERRNO"));
    if (tasks > 0 && mkdir(image_dir, 0700) != 0 && errno != EEXIST)
        return fail(errno);
    for (i = 0; i < tasks; i++) {
        snprintf(path, sizeof path, "%s/task.%d.ckpt", image_dir, i);
        fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
        if (fd < 0 || write(fd, "image\n", 6) != 6)
            return fail(errno);
        close(fd);
    }
    return 0;
}
#endif
