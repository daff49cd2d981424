"""Run one command and print, as JSON, what it took: ``child.py STDOUT STDERR SECONDS COMMAND...``.

A program of its own, without site-packages (python -I -S): the kernel counts the peak memory of the process
that spawns as the child's, so that whoever spawns has to be small. A bare interpreter takes 10 MiB.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time


def main() -> None:
    stdout, stderr, patience, *command = sys.argv[1:]
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    actions = [
        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
        (os.POSIX_SPAWN_OPEN, 1, stdout, flags, 0o600),
        (os.POSIX_SPAWN_OPEN, 2, stderr, flags, 0o600),
    ]
    began = time.monotonic()
    # Where Python may not keep bytecode, each start of vmdump would compile all of it: 50 ms.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    pid = os.posix_spawnp(command[0], command, environment, file_actions=actions)
    # Whoever ends the group wants the command to clean up, and to know when it has.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, lambda number, frame: os.kill(pid, signal.SIGKILL))
    signal.alarm(int(patience))
    _, status, usage = os.wait4(pid, 0)
    seconds = time.monotonic() - began
    signal.alarm(0)
    took = {
        "seconds": seconds,
        "exit_code": os.waitstatus_to_exitcode(status),
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "peak_bytes": usage.ru_maxrss * 1024,
    }
    print(json.dumps(took))


if __name__ == "__main__":
    main()
