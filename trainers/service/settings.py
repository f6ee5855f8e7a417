"""What whoever runs a service may set, and the refusals that its limits lead to."""

from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from lora_core.kernels.cores import usable_cores

Chosen = Literal["auto", "torch", "torch-bf16", "onnx", "openvino", "openvino-bf16"]
"""That of serve/backends.py, whose room is too heavy for the command line's start."""

TOKEN_VARIABLE = "LORA_CORE_SERVE_TOKEN"
"""The environment variable with the token of those who may load and remove adapters."""


@dataclass(frozen=True)
class ServiceSettings:
    """A service: what it serves, where, and within which limits. Its fields are the flags of `lora-core serve`."""

    models: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Run folders, model folders, hub ids or ONNX files, each also as NAME=PATH; by default the name is the folder's or
    the file's."""
    adapters: tuple[str, ...] = ()
    """Adapters of ONNX bases to begin with, each as MODEL+NAME=FILE."""
    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 for every network."""
    port: int = 8000
    """0: any that is free; the first line of the log says which."""
    workers: int = 1
    """Processes that answer."""
    threads: int = 0
    """Threads of one model's arithmetic in each process; 0: the cores, divided by the processes."""
    reload_on_change: bool = False
    """Serve a new ONNX file in the place of the old one as soon as it is there; requests go on meanwhile. Adapters of a
    base must fit the new one."""
    device: str | None = None
    """Such as cpu or cuda."""
    backend: Chosen | None = None
    """What computes, as for predict: auto is what lora-core bench found to be the fastest with so many threads."""
    max_tokens: int | None = None
    """Most positions of one forward pass, padding included (by default what suits the device); 1 runs each input alone,
    so that with an int8 file of dynamic scales its result does not depend on its neighbours."""
    batch_tokens: int = 2048
    """About how many tokens of waiting requests are computed together."""
    batch_wait_ms: float = 5.0
    """Longest wait of a request for others to join it, in milliseconds; there is none while they come one by one."""
    max_body_mb: float = 10.0
    """Largest body of a request."""
    max_inputs: int = 256
    """Most texts or images of one request."""
    max_characters: int = 50_000
    """Most characters of one text."""
    max_pixels: int = 25_000_000
    """Most pixels of one image."""
    max_queue: int = 1024
    """Most inputs that wait for one model, and most requests at once in one process; others get status 429."""
    timeout: float = 30.0
    """Seconds for one request; then it gets status 504."""
    grace: float = 20.0
    """Seconds to answer what was accepted when SIGTERM says to stop."""

    def __post_init__(self) -> None:
        if not self.models:
            raise ValueError("serve needs a model: name a run, a model folder or an ONNX file.")
        for name, least in {"workers": 1, "batch_tokens": 1, "max_inputs": 1, "max_characters": 1, "max_pixels": 1,
                            "threads": 0, "batch_wait_ms": 0, "port": 0}.items():  # fmt: skip
            if getattr(self, name) < least:
                raise ValueError(f"--{name.replace('_', '-')} is {getattr(self, name)}; expected at least {least}.")
        if self.port > 65535:
            raise ValueError(f"--port is {self.port}; expected at most 65535.")
        for name in ("max_body_mb", "timeout", "grace"):
            if not 0 < getattr(self, name) < 1e6:
                raise ValueError(f"--{name.replace('_', '-')} is {getattr(self, name)}; expected more than 0.")
        if self.max_queue < self.max_inputs:
            raise ValueError(
                f"--max-queue is {self.max_queue}, below --max-inputs {self.max_inputs}: a request of so many would "
                "never be served. Raise the one or lower the other."
            )

    @property
    def max_body(self) -> int:
        """Most bytes of a request's body."""
        return int(self.max_body_mb * 1e6)

    @property
    def threads_of_each(self) -> int:
        """Threads of one model's arithmetic in each process, so that the processes share the cores."""
        return self.threads or max(1, usable_cores() // self.workers)


class Refusal(Exception):
    """A request that is not served: its HTTP status, and one line for whoever sent it."""

    def __init__(self, status: int, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.headers = headers or {}


def stopping() -> Refusal:
    """The answer to new work, and to what could not be finished in time, of a service that is being stopped."""
    return Refusal(503, "the service is being stopped; try again", {"Retry-After": "1", "Connection": "close"})
