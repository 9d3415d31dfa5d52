#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Stand for srun <= 18.08's side of the launch socket, in regular and in odd ways.

old_srun.py MODE...: do these in turn, and exit 0.  Each waits until srun_cr has closed its
connections, so that all is seen before our end."""

import os
import resource
import socket
import struct
import sys
import time


def message(job_id=7, step_id=3, nodes=b"n[1-2]", length=None, end=b"\0"):
    """Return the message: native byte order, length without the NUL at the end."""
    return struct.pack("=IIi", job_id, step_id, len(nodes) if length is None else length
                       ) + nodes + end


def connect():
    """Return a connection to where srun_cr listens."""
    peer = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    peer.connect(os.environ["SLURM_SRUN_CR_SOCKET"])
    return peer


def await_close(peer):
    """Wait until the other side has closed."""
    try:
        while peer.recv(4096):
            pass
    except ConnectionResetError:
        pass  # it left something unread
    peer.close()


def send(data, step=None):
    """Send data on a connection of its own, step bytes at a time, and end it."""
    peer = connect()
    try:
        step = step or len(data) or 1
        for start in range(0, len(data), step):
            peer.sendall(data[start:start + step])
        peer.shutdown(socket.SHUT_WR)
    except OSError:
        pass  # it has seen enough
    await_close(peer)


def in_child(action, *arguments):
    """Do something in a child, as the srun does that a wrapper starts."""
    pid = os.fork()
    if pid == 0:
        action(*arguments)
        os._exit(0)
    os.waitpid(pid, 0)


def in_task(action, *arguments):
    """Do something in a process that does not come from us, as a srun nested in a task."""
    read_fd, write_fd = os.pipe()
    pid = os.fork()
    if pid == 0:
        parent = os.getpid()
        if os.fork():
            os._exit(0)  # the other one gets a new parent
        while os.getppid() == parent:
            time.sleep(0.001)
        action(*arguments)
        os._exit(0)
    os.close(write_fd)
    os.waitpid(pid, 0)
    os.read(read_fd, 1)
    os.close(read_fd)


def many(count):
    """Open count connections, then use all."""
    peers = [connect() for _ in range(count)]
    for number, peer in enumerate(peers):
        peer.sendall(message(step_id=number))
    for peer in peers:
        await_close(peer)


def crowd(count):
    """Open count connections that stay silent, say so, and wait for the end of stdin."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    peers = [connect() for _ in range(count)]
    os.write(1, b"ready\n")
    os.read(0, 1)
    return peers


KEPT = []
MODES = {
    "whole": lambda: send(message()),
    "bytes": lambda: send(message(), 1),
    "half": lambda: send(message()[:9]),
    "headless": lambda: send(message()[:15]),
    "nothing": lambda: send(b""),
    "long": lambda: send(message(nodes=b"n" * 32769)),
    "longest": lambda: send(message(nodes=b"n" * 32768), 4000),
    "negative": lambda: send(message(length=-1)),
    "open-end": lambda: send(message(end=b"x")),
    "inner-nul": lambda: send(message(nodes=b"n\0[12]")),
    "trailing": lambda: send(message(end=b"\0x")),
    "twice": lambda: (send(message(8, 0)), send(message(9, 0))),
    "many": lambda: many(300),
    "silent": lambda: KEPT.append(connect()),
    "nested": lambda: in_task(send, message()),
    "wrapped": lambda: in_child(send, message()),
    "crowd": lambda: KEPT.extend(crowd(60)),
    "leave": lambda: [peer.close() for peer in KEPT],
    # As a srun does that is over at once: nobody waits.
    "hasty": lambda: connect().sendall(message()),
    "path": lambda: (os.write(1, (os.environ["SLURM_SRUN_CR_SOCKET"] + "\n").encode()),
                     os.read(0, 1)),
    "wait": lambda: time.sleep(60),
}

for mode in sys.argv[1:]:
    MODES[mode]()
