"""Processes of their own that need not import everything again.

A server that has imported the libraries and done nothing else forks them: a fork of the tests' own process, which has
threads, can wait for ever for a lock that one of them held.
"""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

_server = multiprocessing.get_context("forkserver")
_server.set_forkserver_preload(
    [
        "knowledge_distillation.cli.commands",
        *(f"transformers.models.{name}.modeling_{name}" for name in ("bert", "llama")),
    ]
)


def free_port() -> str:
    """A port of this machine that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


class Forked:
    """`work(*arguments)` in a new process with this one's environment and `changes` to it; it writes into `log`."""

    def __init__(self, work: Callable[..., None], *arguments: str, log: Path, **changes: str) -> None:
        self.log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        environment = {**os.environ, **changes}
        self._process = _server.Process(target=_run, args=(work, arguments, environment, str(log)))
        self._process.start()

    def poll(self) -> int | None:
        return self._process.exitcode

    def kill(self) -> None:
        self._process.kill()

    def wait(self, timeout: float = 180) -> int:
        """The exit status, no later than in `timeout` seconds; if it is not 0, what the process wrote is printed."""
        self._process.join(timeout)
        if self.poll() is None:
            os.kill(self._process.pid, signal.SIGUSR1)  # it writes where each of its threads stands
            time.sleep(1)
            self.kill()
            self._process.join()
        if self.poll() != 0:
            print(self.log.read_text() if self.log.exists() else "killed before it wrote anything")
        return self._process.exitcode


def _run(work: Callable[..., None], arguments: tuple[str, ...], environment: dict[str, str], log: str) -> None:
    os.environ.clear()
    os.environ.update(environment)
    with open(log, "w") as file:
        os.dup2(file.fileno(), 1), os.dup2(file.fileno(), 2)
    faulthandler.register(signal.SIGUSR1, 2, all_threads=True)
    sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
    status = 1
    try:
        work(*arguments)
        status = 0
    except SystemExit as end:
        status = end.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(status)
