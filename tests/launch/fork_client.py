"""A program in place of python: the job that `tests.launch.forked.accept_jobs` forks gets its words and its signals.

`fork_client.py SOCKET WORD ...`; it imports nothing that takes time.
"""

import json
import os
import signal
import socket
import sys

if __name__ == "__main__":
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(sys.argv[1])
    stream = connection.makefile("rw")
    printed = [os.readlink(f"/proc/self/fd/{descriptor}") for descriptor in (1, 2)]
    print(json.dumps([sys.argv[2:], os.getcwd(), dict(os.environ), printed]), file=stream, flush=True)
    pid = int(stream.readline())
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, lambda number, _frame: os.kill(pid, number))
    sys.exit(int(stream.readline()))
