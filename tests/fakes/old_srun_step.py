#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Stand for srun <= 18.08 with a step: reports it when told, records signals, ends as told.

Prints a line for each event: `ready JSON` (pid, pgid, argv, mask, ignored, environment),
`reported JOB.STEP`, `half`, `signal NUMBER`.  Commands are lines in the FIFO $FAKE_SRUN_FIFO:

    report JOB.STEP NODES   report a step, as after its launch
    begin JOB.STEP NODES    send the first half of such a report
    finish                  send its other half
    exit STATUS, die SIGNAL end so"""

import json
import os
import resource
import select
import signal
import socket
import struct
import sys

# TSTP and its like do to us what they do to srun.
KEPT = {signal.SIGKILL, signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU,
        signal.SIGCHLD, 32, 33}


def say(text):
    """Print a line with one write."""
    try:
        os.write(1, (text + "\n").encode("ascii"))
    except OSError:
        pass  # a terminal that is gone


def message(step, nodes):
    """Return the report of a step: native byte order, length without the NUL at the end."""
    job_id, _, step_id = step.partition(".")
    data = os.fsencode(nodes)
    return struct.pack("=IIi", int(job_id), int(step_id), len(data)) + data + b"\0"


def connect():
    """Return a connection to where srun_cr listens."""
    peer = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    peer.connect(os.environ["SLURM_SRUN_CR_SOCKET"])
    return peer


def end(peer):
    """Wait until the other side has closed, as what was sent is in force then."""
    try:
        while peer.recv(4096):
            pass
    except ConnectionResetError:
        pass
    peer.close()


def read(fd):
    """Return what there is to read."""
    try:
        return os.read(fd, 65536)
    except BlockingIOError:
        return b""


def status_mask(name):
    """Return a mask of signals from /proc/self/status."""
    with open("/proc/self/status") as file:
        for line in file:
            if line.startswith(name + ":"):
                return int(line.split()[1], 16)
    return None


def main():
    """Do what comes."""
    inherited = {name: status_mask(name) for name in ("SigBlk", "SigIgn")}
    descriptors = sorted(os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    read_fd, write_fd = os.pipe()
    for fd in (read_fd, write_fd):
        os.set_blocking(fd, False)
    signal.set_wakeup_fd(write_fd)
    for number in set(range(1, signal.NSIG)) - KEPT:
        signal.signal(number, lambda number, frame: None)
    fifo = os.open(os.environ["FAKE_SRUN_FIFO"], os.O_RDWR | os.O_NONBLOCK)
    say("ready " + json.dumps({
        "pid": os.getpid(), "pgid": os.getpgrp(), "argv": sys.argv[1:],
        "masks": inherited, "fds": descriptors,
        "environ": {name: value for name, value in os.environ.items()
                    if name.startswith("SLURM_")}}))
    commands, peer, rest = b"", None, b""
    while True:
        ready = select.select([read_fd, fifo], [], [])[0]
        if read_fd in ready:
            for number in read(read_fd):
                say("signal {}".format(number))
        if fifo in ready:
            commands += read(fifo)
        while b"\n" in commands:
            line, _, commands = commands.partition(b"\n")
            word, _, argument = os.fsdecode(line).partition(" ")
            if word == "exit":
                os._exit(int(argument))
            elif word == "die":
                # SIGKILL has no handler, and the mask is empty as in srun.
                if int(argument) != signal.SIGKILL:
                    signal.signal(int(argument), signal.SIG_DFL)
                os.kill(os.getpid(), int(argument))
            elif word == "report":
                step, _, nodes = argument.partition(" ")
                peer = connect()
                peer.sendall(message(step, nodes))
                end(peer)
                say("reported " + step)
            elif word == "begin":
                step, _, nodes = argument.partition(" ")
                data = message(step, nodes)
                peer, rest = connect(), data[len(data) // 2:]
                peer.sendall(data[:len(data) // 2])
                say("half")
            elif word == "finish":
                try:
                    peer.sendall(rest)
                except OSError:
                    pass  # srun_cr was restarted meanwhile
                end(peer)
                say("finished")


main()
