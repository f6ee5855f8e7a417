"""What a service measures, for Prometheus: over all its processes where it has several."""

import os

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

FOLDER_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
"""Where processes share their figures; prometheus_client reads it when it is imported."""
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
COUNTS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """The figures of this process."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        registry = self._registry
        self.requests = Counter(
            "lora_core_requests", "Requests answered, by model and HTTP status.", ["model", "status"], registry=registry
        )
        self.errors = Counter(
            "lora_core_errors", "Requests that met an error inside the service.", ["model"], registry=registry
        )
        self.cancelled = Counter(
            "lora_core_cancelled", "Requests whose client went away before the answer.", ["model"], registry=registry
        )
        self.latency = Histogram(
            "lora_core_request_seconds", "Time of a request to a model.", ["model"], buckets=SECONDS, registry=registry
        )
        self.batch_inputs = Histogram(
            "lora_core_batch_inputs", "Inputs computed together.", ["model"], buckets=COUNTS, registry=registry
        )
        self.batch_requests = Histogram(
            "lora_core_batch_requests", "Requests that share a batch.", ["model"], buckets=COUNTS, registry=registry
        )
        self.queue = Gauge(
            "lora_core_queue_inputs",
            "Inputs without a result.",
            ["model"],
            multiprocess_mode="livesum",
            registry=registry,
        )

    def text(self) -> bytes:
        """All figures in Prometheus' text format."""
        if FOLDER_VARIABLE not in os.environ:
            return generate_latest(self._registry)
        together = CollectorRegistry()
        MultiProcessCollector(together)
        return generate_latest(together)
