#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Count as count.py does, with a TCP connection to itself open, which CRIU refuses to image."""

import os
import runpy
import socket
import sys

with socket.socket() as listener:
    listener.bind(("127.0.0.1", 0))
    listener.listen(1)
    client = socket.create_connection(listener.getsockname())
    server, _ = listener.accept()
runpy.run_path(os.path.join(os.path.dirname(os.path.abspath(__file__)), "count.py"))
sys.exit(0)
