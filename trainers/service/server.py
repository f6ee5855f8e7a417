"""The processes of a service: one that answers, or several on one port and one that replaces those that die."""

import contextlib
import importlib
import logging
import multiprocessing
import os
import resource
import shutil
import signal
import socket
import sys
import time
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType

from trainers.processes.failure import DISK_FULL, OUT_OF_MEMORY, USER_ERROR, USER_ERRORS, exit_status
from trainers.processes.interrupt import STOP_SIGNALS
from trainers.processes.parent import end_with_parent
from trainers.service.settings import ServiceSettings

logger = logging.getLogger(__name__)

MOST_FILES = 65536
"""Open files, so connections, that a process asks the system for."""
REFUSING_SECONDS = 0.3
"""How long a process that is to stop still takes connections, to refuse them: those on their way get an answer."""
IDLE_SECONDS = 0.1
"""How long connections without a request stay open after that: theirs may be on its way."""
LAST_SECONDS = 0.5
"""Of the grace, for sending what could not be computed its refusal."""
KILL_SECONDS = 2.0
"""After the grace a process that has not ended is killed."""
FAILED_STARTS = 3
"""Processes that may die before they are ready, one after another, until a service gives up that has no other left."""
LONGEST_PAUSE = 30.0
"""Seconds before another replacement is tried where the last ones died before they were ready."""


def serve(settings: ServiceSettings) -> None:
    """Serve until SIGTERM, SIGINT or another of `STOP_SIGNALS`; then answer what was accepted and return.

    Raises:
        ValueError, OSError: the port is taken, or a model is missing or damaged.
        ModuleNotFoundError: the extra `serve` is not installed.
    """
    _check_installed()
    files, most = resource.getrlimit(resource.RLIMIT_NOFILE)  # each connection takes one
    if files < (wanted := MOST_FILES if most == resource.RLIM_INFINITY else min(most, MOST_FILES)):
        with contextlib.suppress(OSError, ValueError):  # systems with a lower limit of their own
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))
    with _listening(settings) as listener, TemporaryDirectory(prefix="lora-core-serve-") as folder:
        if settings.workers == 1:
            run_process(settings, listener, Path(folder))
        else:
            os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder
            _Supervisor(settings, listener, Path(folder)).run()


def run_process(
    settings: ServiceSettings, listener: socket.socket, folder: Path, started: Connection | None = None
) -> None:
    """Load the models and answer until a signal says to stop.

    Args:
        started: is told when requests are taken, and of what files.
    """
    os.environ.setdefault("RAYON_NUM_THREADS", str(settings.threads_of_each))  # the tokenizers' threads
    import asyncio

    import uvicorn

    from trainers.service.app import Service, create_app
    from trainers.service.connection import impatient

    service = Service(settings, folder)

    class Server(uvicorn.Server):
        """Goes on refusing for a moment when it is to stop, and never raises the signal anew."""

        stop_at = float("inf")

        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            if service.draining and sig == signal.SIGINT:
                self.force_exit = True
            elif not service.draining:
                service.draining = True
                self.stop_at = time.monotonic() + REFUSING_SECONDS

        async def on_tick(self, counter: int) -> bool:
            self.should_exit = self.should_exit or time.monotonic() >= self.stop_at
            return await super().on_tick(counter)

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            host, port = listener.getsockname()[:2]
            names = ", ".join(service.models.by_name)
            logger.info(
                "%s at http://%s:%d in process %d", names, f"[{host}]" if ":" in host else host, port, os.getpid()
            )
            if started is not None:
                started.send({} if settings.reload_on_change else service.models.stamps())

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            left = settings.grace - REFUSING_SECONDS - LAST_SECONDS
            asyncio.get_running_loop().call_later(max(0.0, left), service.abandon)
            for server in self.servers:
                server.close()
            await asyncio.sleep(IDLE_SECONDS)
            await super().shutdown(sockets)

    config = uvicorn.Config(
        create_app(service),
        http=impatient(settings.timeout),
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=max(1, round(settings.grace - REFUSING_SECONDS)),
        lifespan="on",
        ws="none",
    )
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    server = Server(config)
    for number in set(STOP_SIGNALS) - {signal.SIGINT, signal.SIGTERM}:  # which uvicorn sees to
        signal.signal(number, server.handle_exit)
    server.run(sockets=[listener])
    logger.info("stopped")
    if any(model.queue.computes for model in service.models.by_name.values()):
        # A batch that nobody waits for any more: the interpreter would come to its end in the middle of it.
        if started is None:
            shutil.rmtree(folder, ignore_errors=True)
        logging.shutdown()
        os._exit(0)


def _run_worker(settings: ServiceSettings, listener: socket.socket, folder: Path, started: Connection) -> None:
    """A process that the supervisor started, and which ends as if asked to when that is gone."""
    end_with_parent(by=signal.SIGTERM)
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.INFO)
    try:
        run_process(settings, listener, folder, started)
    except USER_ERRORS as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(exit_status(error)) from error


class _Supervisor:
    """Starts the processes that answer, and replaces those that die."""

    def __init__(self, settings: ServiceSettings, listener: socket.socket, folder: Path) -> None:
        self.settings = settings
        self.listener = listener
        self.folder = folder
        self.spawn = multiprocessing.get_context("spawn")
        self.processes: list[BaseProcess] = []
        self.starting: dict[Connection, BaseProcess] = {}
        self.files: dict[str, tuple] | None = None
        """What the processes have loaded, as far as they do not see to that themselves."""
        self.was_ready = False
        self.failed_starts = 0
        self.next_start = 0.0
        """When the next process may be started."""
        self.stopping = False

    def run(self) -> None:
        from prometheus_client.multiprocess import mark_process_dead

        for number in STOP_SIGNALS:
            signal.signal(number, self._stop)
        status = 0
        try:
            while not self.stopping and not status:
                while len(self.processes) < self.settings.workers and time.monotonic() >= self.next_start:
                    self._start()
                wait([*(process.sentinel for process in self.processes), *self.starting], timeout=0.2)
                self._note_started()
                for process in [process for process in self.processes if process.exitcode is not None]:
                    self.processes.remove(process)
                    if self.stopping:
                        continue
                    mark_process_dead(process.pid)
                    status = self._after_death(process)
        finally:
            self._end()
        if status:
            raise SystemExit(status)

    def _start(self) -> None:
        ours, theirs = self.spawn.Pipe(duplex=False)
        process = self.spawn.Process(
            target=_run_worker, args=(self.settings, self.listener, self.folder, theirs), name="lora-core-serve"
        )
        process.start()
        theirs.close()
        self.processes.append(process)
        self.starting[ours] = process

    def _note_started(self) -> None:
        for connection in wait(list(self.starting), timeout=0):
            assert isinstance(connection, Connection)
            process = self.starting.pop(connection)
            try:
                files = connection.recv()
                if self.files not in (None, files):
                    logger.warning(
                        "process %s has loaded files that were replaced since the others started: those are started "
                        "anew", process.pid,
                    )  # fmt: skip
                    for other in self.processes:
                        if other is not process:
                            other.terminate()
                self.files, self.was_ready, self.failed_starts = files, True, 0
            except EOFError:  # it died before
                self.failed_starts += 1
            connection.close()

    def _after_death(self, process: BaseProcess) -> int:
        """See to a replacement; the exit status if there is no use in that, else 0."""
        status = process.exitcode or 0
        if status in (USER_ERROR, OUT_OF_MEMORY, DISK_FULL) and not self.was_ready:  # it has said why
            return status
        if self.failed_starts >= FAILED_STARTS and not self.processes:
            logger.error("%d processes in a row died before they were ready; the service stops", self.failed_starts)
            return 1
        pause = min(2.0**self.failed_starts - 1, LONGEST_PAUSE)
        self.next_start = time.monotonic() + pause
        logger.warning(
            "process %d ended with status %s; another takes its place in %g s", process.pid, process.exitcode, pause
        )
        return 0

    def _stop(self, sig: int, frame: FrameType | None) -> None:
        self.stopping = True

    def _end(self) -> None:
        self.listener.close()  # else it would go on taking connections that nobody answers
        for process in self.processes:
            process.terminate()
        deadline = time.monotonic() + self.settings.grace + KILL_SECONDS
        for process in self.processes:
            process.join(max(0.0, deadline - time.monotonic()))
            if process.exitcode is None:
                logger.error("process %d did not end within the grace and is killed", process.pid)
                process.kill()
                process.join()


def _check_installed() -> None:
    try:
        for name in ("fastapi", "prometheus_client", "python_multipart", "uvicorn"):
            importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"serve needs {error.name}: pip install 'lora-core[serve]'", name=error.name
        ) from error


def _listening(settings: ServiceSettings) -> socket.socket:
    """The socket that all processes take connections from: what a dead one had not taken, another takes."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        listener = socket.create_server((settings.host, settings.port), family=family, backlog=2048)
    except OSError as error:
        if (error.errno or 0) < 0:  # of the resolver
            raise OSError(f"--host {settings.host} is no address of this machine ({error.strerror})") from error
        raise OSError(
            f"cannot listen on {settings.host} port {settings.port} ({error.strerror}); give another --port"
        ) from error
    # Connections inherit it. Without it an answer in two packets waits 40 ms for the client to acknowledge the first.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    listener.set_inheritable(True)
    return listener
