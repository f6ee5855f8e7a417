"""The addresses of the service: predictions in two forms, models and their adapters, health, metrics and the page."""

import asyncio
import base64
import hashlib
import hmac
import json
import logging
import os
import re
import time
import traceback
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response
from starlette.datastructures import FormData
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from trainers.service import openapi
from trainers.service.batches import QueueClosed, QueueFull
from trainers.service.inputs import JSON, MULTIPART, PredictRequest, read_json, short
from trainers.service.metrics import CONTENT_TYPE, Metrics
from trainers.service.models import Models, ServedModel
from trainers.service.reload import Reloader
from trainers.service.settings import TOKEN_VARIABLE, Refusal, ServiceSettings, stopping

logger = logging.getLogger(__name__)


class Service:
    """One process of a service: its models, its figures, and whether it is being stopped."""

    def __init__(self, settings: ServiceSettings, folder: Path) -> None:
        """
        Args:
            folder: of the service while it runs, shared by its processes.

        Raises:
            ValueError, OSError: a model or adapter is missing or damaged.
        """
        self.settings = settings
        self.models = Models(settings, folder)
        self.metrics = Metrics()
        self.draining = False
        """Whether new work is refused."""
        self.open_requests = 0
        for model in self.models.by_name.values():
            self._adopt(model)
        self.reloader = Reloader(self.models, self._adopt) if settings.reload_on_change else None
        if self.reloader is not None:
            self.reloader.start()

    def _adopt(self, model: ServedModel) -> None:
        model.queue.on_batch = self._counter_of(model)
        model.queue.start()

    def abandon(self) -> None:
        """Answer what still waits with 503."""
        if self.reloader is not None:
            self.reloader.stop()
        for model in self.models.by_name.values():
            model.queue.close(abandon=True)

    @property
    def ready(self) -> bool:
        """Whether requests are taken and computed."""
        return not self.draining and all(model.queue.works for model in self.models.by_name.values())

    def _counter_of(self, model: ServedModel) -> Callable[[int, int], None]:
        name = model.name
        inputs, requests = self.metrics.batch_inputs.labels(name), self.metrics.batch_requests.labels(name)
        queue, waiting = model.queue, self.metrics.queue.labels(name)

        def count(of_inputs: int, of_requests: int) -> None:
            inputs.observe(of_inputs)
            requests.observe(of_requests)
            waiting.set(queue.waiting)

        return count

    async def predict(self, request: Request, name: str | None, *, toolkit: bool = False) -> Response:
        """Answer a request for predictions.

        Args:
            name: "model" or "model+adapter"; None: the only model.
            toolkit: in the form of Hugging Face's inference toolkit.
        """
        if self.draining:
            raise stopping()
        model, adapter = self._find(name)
        request.scope["model"] = model.name
        if self.open_requests >= self.settings.max_queue:
            raise _too_busy()
        self.open_requests += 1
        try:
            deadline = time.monotonic() + self.settings.timeout
            try:
                asked = await asyncio.wait_for(self._read(request, model, toolkit), self.settings.timeout)
            except asyncio.TimeoutError:
                raise Refusal(408, f"the request did not arrive within {self.settings.timeout:g} s") from None
            results = await self._results(request, model, asked, asked.adapter or adapter, deadline)
        finally:
            self.open_requests -= 1
        if not toolkit:
            return _json({"predictions": results})
        # A single input is answered as pipeline(input) does: by a list.
        one = results[0] if asked.one else results
        return _json(one if isinstance(one, list) else [one])

    def _find(self, name: str | None) -> tuple[ServedModel, str | None]:
        if name is None:
            if len(self.models.by_name) > 1:
                known = ", ".join(self.models.by_name)
                raise Refusal(404, f"several models are served; POST to /models/NAME, one of {known}")
            name = next(iter(self.models.by_name))
        return self.models.find(name)

    async def _read(self, request: Request, model: ServedModel, toolkit: bool) -> PredictRequest:
        """The request, checked. Images are opened and long texts searched in another thread."""
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind == MULTIPART and not toolkit:
            body = await read_body(request, self.settings.max_body)
            form = await _form(request, body, self.settings.max_inputs)
            try:
                return await model.reader.of_form(form)
            finally:
                await form.close()
        if toolkit and model.served.task == "image-classification" and kind in ("", BYTES, *IMAGES):
            body = await read_body(request, self.settings.max_body)
            return await asyncio.to_thread(model.reader.of_images, [body], {}, True)
        if kind not in (JSON, CURL):
            raise Refusal(415, f"the content type is {short(kind) if kind else 'missing'}; expected {JSON}")
        body = await read_body(request, self.settings.max_body)
        options_key = "parameters" if toolkit else "options"

        def parse() -> PredictRequest:
            try:
                value = read_json(body)
            except Refusal as refusal:
                if kind == JSON:
                    raise
                raise Refusal(415, f"{refusal} (for JSON add -H 'Content-Type: {JSON}', for files -F)") from None
            if toolkit and isinstance(value, dict):
                value = openapi.without_toolkit_defaults(value)
            return model.reader.of_json(value, options_key=options_key, one_or_many=toolkit)

        return parse() if len(body) < SMALL_BODY else await asyncio.to_thread(parse)

    async def _results(
        self, request: Request, model: ServedModel, asked: PredictRequest, adapter: str | None, deadline: float
    ) -> list[Any]:
        if model.takes_adapters and not self.models.synced:
            await asyncio.to_thread(self.models.sync)
        job = model.job(asked, adapter) or await asyncio.to_thread(model.prepare, asked, adapter)
        if not asked.inputs:
            return []
        try:
            future = asyncio.wrap_future(model.queue.submit(job))
            self.metrics.queue.labels(model.name).set(model.queue.waiting)
        except QueueFull:
            raise _too_busy() from None
        except QueueClosed:
            raise stopping() from None
        gone = asyncio.ensure_future(request.receive())  # the body is read: what comes now is that the client left
        try:
            left = max(0.0, deadline - time.monotonic())
            await asyncio.wait({future, gone}, timeout=left, return_when=asyncio.FIRST_COMPLETED)
            if not future.done():
                if gone.done():
                    self.metrics.cancelled.labels(model.name).inc()
                    raise Refusal(499, "the client went away")
                raise Refusal(504, f"no answer within {self.settings.timeout:g} s; send fewer or shorter inputs")
            return future.result()
        except QueueClosed:
            raise stopping() from None
        except (ValueError, OSError) as error:  # what the pipelines raise for inputs that cannot be used
            raise Refusal(422, _first_line(error)) from None
        finally:
            gone.cancel()
            future.cancel()

    def admit(self, request: Request) -> None:
        """Let those pass who may load and remove adapters.

        Raises:
            Refusal: others.
        """
        token = os.environ.get(TOKEN_VARIABLE, "")
        if not token:
            raise Refusal(403, f"adapters cannot be changed here: the service was started without {TOKEN_VARIABLE}")
        given = request.headers.get("authorization", "")
        if not hmac.compare_digest(given.encode(), f"Bearer {token}".encode()):
            raise Refusal(401, "wrong or missing token", {"WWW-Authenticate": "Bearer"})


BYTES, IMAGES = "application/octet-stream", [f"image/{kind}" for kind in ("png", "jpeg", "webp", "gif", "bmp", "tiff")]
"""Content types of a body that is an image itself; the hub's client often gives none."""
CURL = "application/x-www-form-urlencoded"
"""What `curl -d` says of a body unless it is told otherwise: if it is JSON, it is taken as that."""
SMALL_BODY = 1 << 15
"""Bytes of a body that is parsed at once; a larger one is parsed in another thread."""


def create_app(service: Service) -> FastAPI:
    """The application of a process."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        service.abandon()

    app = FastAPI(title="lora-core", version="1", docs_url=None, redoc_url=None, lifespan=lifespan)
    app.add_middleware(_Answers, service=service)
    page = files("trainers.service").joinpath("page.html").read_text(encoding="utf-8")
    page_headers = {"Content-Security-Policy": _content_policy(page), "X-Content-Type-Options": "nosniff",
                    "Referrer-Policy": "no-referrer", "Cache-Control": "no-cache"}  # fmt: skip

    @app.get("/", include_in_schema=False)
    async def show_page() -> Response:
        return Response(page, media_type="text/html", headers=page_headers)

    @app.head("/healthz", include_in_schema=False)
    @app.get("/healthz", summary="The process is alive", tags=["operation"])
    async def health() -> Response:
        return _json({"status": "alive"})

    @app.head("/readyz", include_in_schema=False)
    @app.get("/readyz", summary="The process takes requests", tags=["operation"])
    async def readiness() -> Response:
        return _json({"status": "ready"}) if service.ready else _json({"error": "not ready"}, 503)

    @app.get("/metrics", summary="Figures for Prometheus", tags=["operation"])
    async def metrics() -> Response:
        return Response(await asyncio.to_thread(service.metrics.text), media_type=CONTENT_TYPE)

    @app.get("/v1/models", summary="What is served", tags=["models"], openapi_extra=openapi.MODELS)
    async def models() -> Response:
        await asyncio.to_thread(service.models.sync)
        return _json({"models": [model.describe() for model in service.models.by_name.values()]})

    @app.post("/v1/models/{name}:predict", summary="Predictions", tags=["predict"], openapi_extra=openapi.PREDICT)
    async def predict(request: Request, name: str) -> Response:
        return await service.predict(request, name)

    @app.post("/", summary="As the inference toolkit", tags=["predict"], openapi_extra=openapi.TOOLKIT)
    async def toolkit(request: Request) -> Response:
        return await service.predict(request, None, toolkit=True)

    @app.post("/models/{name}", summary="The same, of several", tags=["predict"], openapi_extra=openapi.TOOLKIT)
    async def toolkit_of(request: Request, name: str) -> Response:
        return await service.predict(request, name, toolkit=True)

    @app.put("/v1/models/{name}/adapters/{adapter}", summary="Load an adapter", tags=["models"],
             openapi_extra=openapi.LOAD)  # fmt: skip
    async def load_adapter(request: Request, name: str, adapter: str) -> Response:
        service.admit(request)
        model, _ = service.models.find(name)
        value = read_json(await read_body(request, service.settings.max_body))
        path = value.get("path") if isinstance(value, dict) else None
        if not isinstance(path, str) or "\0" in path:
            raise Refusal(422, 'expected {"path": "FILE"}, the file of an adapter on this machine')
        try:
            loaded = await asyncio.to_thread(service.models.load_adapter, model, adapter, Path(path))
        except (ValueError, OSError) as error:
            raise Refusal(422, _first_line(error)) from None
        return _json({"name": adapter, "labels": list(loaded.served.labels), "bytes": loaded.size})

    @app.delete("/v1/models/{name}/adapters/{adapter}", summary="Remove an adapter", tags=["models"],
                openapi_extra=openapi.REMOVE)  # fmt: skip
    async def remove_adapter(request: Request, name: str, adapter: str) -> Response:
        service.admit(request)
        model, _ = service.models.find(name)
        try:
            await asyncio.to_thread(service.models.remove_adapter, model, adapter)
        except KeyError:
            raise Refusal(404, f"the model {model.name} has no adapter {short(adapter)}") from None
        return _json({"removed": adapter})

    @app.exception_handler(Refusal)
    async def refuse(_: Request, refusal: Refusal) -> Response:
        return _json({"error": str(refusal)}, refusal.status, refusal.headers)

    @app.exception_handler(HTTPException)
    async def no_such_address(request: Request, error: HTTPException) -> Response:
        known = "GET /openapi.json tells the addresses"
        message = f"{request.method} {short(request.url.path)}: {error.detail}; {known}"
        return _json({"error": _first_line(message)}, error.status_code, dict(error.headers or {}))

    return app


class _Answers:
    """Counts and times what is answered, and turns what nobody expected into one line and status 500.

    The log has the kind of the error and where it arose, never its message, which may quote a text.
    """

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self.app = app
        self.service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        status: list[int] = []
        begin = time.perf_counter()

        async def note(message: Message) -> None:
            if message["type"] == "http.response.start":
                status.append(message["status"])
            await send(message)

        try:
            await self.app(scope, receive, note)
        except Exception as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            logger.error("%s at %s:%s", type(error).__name__, place.filename, place.lineno)
            self.service.metrics.errors.labels(scope.get("model", "")).inc()
            if not status:
                await _json({"error": "an error inside the service; its log says where"}, 500)(scope, receive, note)
        finally:
            model = scope.get("model", "")
            self.service.metrics.requests.labels(model, str(status[0]) if status else "none").inc()
            if model:
                self.service.metrics.latency.labels(model).observe(time.perf_counter() - begin)


async def read_body(request: Request, most: int) -> bytes:
    """The body, of at most so many bytes.

    Raises:
        Refusal: it is larger, or the client went away.
    """
    from starlette.requests import ClientDisconnect

    too_large = Refusal(413, f"the body exceeds {most / 1e6:g} MB", {"Connection": "close"})
    stated = request.headers.get("content-length", "")
    if stated.isdigit() and int(stated) > most:
        raise too_large
    parts, size = [], 0
    try:
        async for part in request.stream():
            size += len(part)
            if size > most:
                raise too_large
            parts.append(part)
    except ClientDisconnect:
        raise Refusal(499, "the client went away") from None
    return b"".join(parts)


async def _form(request: Request, body: bytes, most: int) -> FormData:
    """The parts of a multipart body that is read already."""

    async def again() -> Message:
        return {"type": "http.request", "body": body, "more_body": False}

    try:
        return await Request(request.scope, again).form(max_files=most, max_fields=2, max_part_size=1 << 16)
    except (MultiPartException, HTTPException, KeyError, ValueError, UnicodeError) as error:
        detail = getattr(error, "detail", None) or getattr(error, "message", None) or type(error).__name__
        raise Refusal(400, f"the multipart body cannot be read: {_first_line(detail)}") from None


def _too_busy() -> Refusal:
    return Refusal(429, "too many requests are waiting; try again", {"Retry-After": "1"})


def _json(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    body = json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "backslashreplace")
    return Response(body, status, headers, media_type=JSON)


def _first_line(error: object) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:300]


def _content_policy(page: str) -> str:
    """What the page may do: run its own script, use its own style, and speak to where it came from."""
    (script,) = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (
        f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; connect-src 'self'; "
        "img-src data: blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
