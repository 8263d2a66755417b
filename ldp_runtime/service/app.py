"""The application: routes, their models, and what they share."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Mapping
from functools import partial
from importlib import resources
from typing import TYPE_CHECKING, Annotated, Any, Literal

from fastapi import APIRouter, Depends, FastAPI, Form, Path, Request, Response, Security, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.security import HTTPBearer
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException

from ldp_runtime import __version__
from ldp_runtime.service import problems
from ldp_runtime.service.gate import Gate
from ldp_runtime.service.problems import Problem, ProblemError, documented, problem_of
from ldp_runtime.service.restore import (
    SUFFIXES,
    Axis,
    File,
    FileName,
    Format,
    Restoration,
    RestorationJob,
    Upload,
)
from ldp_runtime.service.results import Results
from ldp_runtime.service.state import Service
from ldp_runtime.service.uploads import UploadRoute

if TYPE_CHECKING:
    pass

PAGE = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/viewer.js": ("viewer.js", "text/javascript; charset=utf-8"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
"""Path -> file of the package's folder ``page``, and its type. No other path reaches a file."""

PUBLIC = (*PAGE, "/v1/health", "/v1/health/ready", "/openapi.json")
"""Paths that need no token."""

_PURGE_SECONDS = 15.0
_DESCRIPTION = (
    "Turns a blurred dual-pixel photo pair into an all-in-focus image. `POST /v1/deblur` answers with the image; "
    "`POST /v1/restorations` answers at once, and keeps the image, the blur map and previews for a while. "
    "Errors are problems as in RFC 9457."
)
_LIMIT_STATUSES = (400, 408, 413, 422, 429, 503)


class Report(BaseModel):
    """How a restoration went."""

    width: int = Field(description="px")
    height: int = Field(description="px")
    bits: int = Field(description="Bits a sample: 8 or 16")
    seconds: dict[str, float] = Field(description="Time by stage, in order")
    bundle: str
    backend: str
    precision: str
    tiles: int = Field(description="How many tiles the image was restored in")
    warnings: list[str] = Field(description="What looks wrong, a sentence each")


class RestorationStatus(BaseModel):
    """Where a restoration stands."""

    id: str
    state: Literal["waiting", "running", "done", "failed"]
    position: int | None = Field(description="While it waits: 1 is the next")
    report: Report | None = Field(description="Once it is done")
    links: dict[str, str] = Field(description="Once it is done: name of a picture -> its path")
    problem: Problem | None = Field(description="If it failed")


class Health(BaseModel):
    """The state of the service."""

    status: Literal["ready", "stopping"]
    version: str
    waiting: int = Field(description="Pairs that wait for a worker")
    running: int = Field(description="Pairs that workers are at")


class Limits(BaseModel):
    """What the service takes."""

    max_upload: int = Field(description="Largest request body in bytes")
    max_pixels: int = Field(description="Largest view in pixels")
    time_limit: float = Field(description="Seconds from the end of the upload to the result")
    keep_seconds: float = Field(description="How long results are kept")


def create_app(service: Service) -> FastAPI:
    """The application of a service."""
    token = service.settings.token

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        purging = asyncio.create_task(_purge(service.results))
        yield
        purging.cancel()

    app = FastAPI(
        title="LDP",
        version=__version__,
        description=_DESCRIPTION,
        lifespan=lifespan,
        docs_url=None,  # FastAPI's pages for these load from other hosts
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.service = service
    app.include_router(_public_routes())
    protected = [] if token is None else [Security(HTTPBearer(auto_error=False, description="The service's token"))]
    statuses = () if token is None else (401,)
    for router in (_upload_routes(), _result_routes(), _metrics_routes()):
        app.include_router(router, dependencies=protected, responses=documented(*statuses))
    for path, (name, media_type) in PAGE.items():
        answer = partial(_static, (resources.files("ldp_runtime.service") / "page" / name).read_bytes(), media_type)
        app.add_api_route(path, answer, methods=["GET"], include_in_schema=False)
    app.add_exception_handler(HTTPException, _answer_problem)
    app.add_exception_handler(RequestValidationError, _answer_invalid)
    app.add_exception_handler(Exception, _answer_bug)
    app.add_middleware(Gate, token=token, public=PUBLIC, metrics=service.metrics)
    return app


def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


ServiceOf = Annotated[Service, Depends(_service)]


# --- uploads ------------------------------------------------------------------------------------------------


async def _read_upload(
    left: Annotated[UploadFile, Form(description="Left (or top) view: PNG, TIFF or JPEG, 8 or 16 bits")],
    right: Annotated[UploadFile, Form(description="Right (or bottom) view, of the same size and depth")],
    axis: Annotated[Axis, Form(description="How the sensor splits its pixels")] = "horizontal",
    swap: Annotated[bool, Form(description="The files are the wrong way round")] = False,
    format: Annotated[Format, Form(description="Format of the restored image")] = "png",
) -> Upload:
    return Upload(await left.read(), await right.read(), axis, swap, format)


UploadOf = Annotated[Upload, Depends(_read_upload)]


def _upload_routes() -> APIRouter:
    router = APIRouter(prefix="/v1", route_class=UploadRoute, tags=["restore"])
    limits: Any = {"max_files": 2, "max_fields": 8, "max_part_size": 1024}
    pictures = {f"image/{name}": {"schema": {"type": "string", "format": "binary"}} for name in SUFFIXES}

    @router.post(
        "/deblur",
        summary="Restores a pair and answers with the image",
        response_class=Response,
        responses={
            200: {
                "description": "The image, with the depth, ICC profile and metadata of the left view",
                "content": pictures,
                "headers": {
                    "Server-Timing": {"description": "Milliseconds by stage", "schema": {"type": "string"}},
                    "LDP-Warning": {"description": "What looks wrong, if anything", "schema": {"type": "string"}},
                },
            },
            **documented(*_LIMIT_STATUSES, 504),
        },
        form_limits=limits,
    )
    async def deblur(request: Request, service: ServiceOf, upload: UploadOf) -> Response:
        """Answers when the pair is restored. A client that leaves before its turn is dropped from the queue."""
        job = service.submit(upload, previews=False)
        restoration = await _outcome(service, job, request)
        headers = {"Server-Timing": _server_timing(restoration.seconds)}
        if restoration.warnings:
            headers["LDP-Warning"] = "; ".join(restoration.warnings)
        return _picture(restoration.files["image"], f"restored{SUFFIXES[upload.format]}", headers)

    @router.post(
        "/restorations",
        summary="Takes a pair, to be asked for later",
        status_code=202,
        responses={
            202: {"headers": {"Location": {"description": "Path of the restoration", "schema": {"type": "string"}}}},
            **documented(*_LIMIT_STATUSES),
        },
        form_limits=limits,
    )
    async def create_restoration(service: ServiceOf, upload: UploadOf, response: Response) -> RestorationStatus:
        """Answers as soon as the pair is in the queue; ask for its path to see how far it is."""
        job = service.submit(upload, previews=True)
        name = service.results.add(job)
        response.headers["Location"] = _path(name)
        return _status(service, name, job)

    return router


async def _outcome(service: Service, job: RestorationJob, request: Request) -> Restoration:
    """Waits for a job, for its client to leave, or for its time to be over, whichever is first."""
    outcome = asyncio.wrap_future(job.future)
    outcome.add_done_callback(lambda ended: ended.cancelled() or ended.exception())  # nobody may be there to see it
    left = asyncio.create_task(_disconnected(request))
    try:
        timeout = job.deadline - time.monotonic()
        both: set[asyncio.Future[Any]] = {outcome, left}
        await asyncio.wait(both, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        if outcome.done():
            return outcome.result()
        if left.done():
            raise ProblemError(503, "the client left")
        raise job.late()
    except ProblemError:
        raise
    except Exception as error:
        raise problem_of(error) from error
    finally:
        left.cancel()
        service.queue.drop(job)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _server_timing(seconds: Mapping[str, float]) -> str:
    return ", ".join(f"{stage};dur={1000 * value:.1f}" for stage, value in seconds.items())


# --- results ------------------------------------------------------------------------------------------------

_Id = Annotated[str, Path(description="As `POST /v1/restorations` named it", max_length=64)]


def _result_routes() -> APIRouter:
    router = APIRouter(prefix="/v1/restorations", tags=["restore"])
    pictures = {f"image/{name}": {"schema": {"type": "string", "format": "binary"}} for name in SUFFIXES}

    @router.get("/{id}", summary="Tells how far a restoration is", responses=documented(404, 422))
    async def read_restoration(id: _Id, service: ServiceOf) -> RestorationStatus:
        return _status(service, id, service.results.get(id))

    @router.get(
        "/{id}/{file}",
        summary="A picture of a restoration",
        response_class=Response,
        responses={200: {"description": "The picture", "content": pictures}, **documented(404, 409, 422)},
    )
    async def read_picture(id: _Id, file: FileName, service: ServiceOf) -> Response:
        """``image`` as it was asked for; ``before``, ``after`` and ``blur-map`` as PNG of 8 bits, for browsers."""
        job = service.results.get(id)
        if not job.future.done() or job.future.cancelled() or job.future.exception() is not None:
            raise ProblemError(409, f"the restoration has no {file}; ask {_path(id)} for its state")
        found = job.future.result().files[file]
        suffix = SUFFIXES[_format(found)]
        return _picture(found, f"{'restored' if file == 'image' else file}{suffix}", {})

    @router.delete(
        "/{id}",
        summary="Forgets a restoration",
        status_code=204,
        response_class=Response,
        responses=documented(404, 422),
    )
    async def delete_restoration(id: _Id, service: ServiceOf) -> None:
        """Drops it from the queue too, if it waits."""
        service.queue.drop(service.results.remove(id))

    return router


def _path(name: str) -> str:
    return f"/v1/restorations/{name}"


def _format(file: File) -> Format:
    for name in SUFFIXES:
        if file.media_type == f"image/{name}":
            return name
    raise ValueError(f"expected a picture's type, got {file.media_type}")


def _status(service: Service, name: str, job: RestorationJob) -> RestorationStatus:
    status = RestorationStatus(id=name, state="running", position=None, report=None, links={}, problem=None)
    if job.future.cancelled():
        error = problem_of(job.late())
        return status.model_copy(update={"state": "failed", "problem": problems.describe(503, str(error.detail))})
    if not job.future.done():
        position = service.queue.position(job)
        return status if position is None else status.model_copy(update={"state": "waiting", "position": position})
    raised = job.future.exception()
    if raised is not None:
        error = problem_of(raised)
        described = problems.describe(error.status_code, str(error.detail))
        return status.model_copy(update={"state": "failed", "problem": described})
    done = job.future.result()
    report = Report(
        width=done.width,
        height=done.height,
        bits=done.bits,
        seconds={stage: round(value, 6) for stage, value in done.seconds.items()},
        bundle=done.bundle,
        backend=done.backend,
        precision=done.precision,
        tiles=done.tiles,
        warnings=list(done.warnings),
    )
    links = {file: f"{_path(name)}/{file}" for file in done.files}
    return status.model_copy(update={"state": "done", "report": report, "links": links})


def _picture(file: File, name: str, headers: dict[str, str]) -> Response:
    disposition = {"Content-Disposition": f'inline; filename="{name}"'}
    return Response(file.data, media_type=file.media_type, headers={**disposition, **headers})


async def _purge(results: Results) -> None:
    while True:
        await asyncio.sleep(_PURGE_SECONDS)
        results.purge()


# --- the service itself -------------------------------------------------------------------------------------


def _public_routes() -> APIRouter:
    router = APIRouter(prefix="/v1", tags=["service"])

    @router.get("/health", summary="Answers while the process lives")
    async def live(service: ServiceOf) -> Health:
        return _health(service)

    @router.get(
        "/health/ready",
        summary="Answers with 200 while uploads are taken, with 503 while the service stops",
        responses={503: {"model": Health}},
    )
    async def ready(service: ServiceOf, response: Response) -> Health:
        if service.queue.closed:
            response.status_code = 503
        return _health(service)

    return router


def _metrics_routes() -> APIRouter:
    router = APIRouter(tags=["service"])

    @router.get("/v1/limits", summary="What the service takes")
    async def limits(service: ServiceOf) -> Limits:
        s = service.settings
        return Limits(
            max_upload=s.max_upload, max_pixels=s.max_pixels, time_limit=s.time_limit, keep_seconds=s.keep_seconds
        )

    @router.get(
        "/metrics",
        summary="Counters for Prometheus",
        response_class=Response,
        responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
    )
    async def metrics(service: ServiceOf) -> Response:
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    return router


def _health(service: Service) -> Health:
    queue = service.queue
    status: Literal["ready", "stopping"] = "stopping" if queue.closed else "ready"
    return Health(status=status, version=__version__, waiting=queue.waiting, running=queue.running)


async def _static(content: bytes, media_type: str) -> Response:
    return Response(content, media_type=media_type, headers={"Cache-Control": "no-cache"})


async def _answer_problem(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return problems.respond(error.status_code, str(error.detail), dict(error.headers or {}))


async def _answer_invalid(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    parts = (f"{'.'.join(str(part) for part in each['loc'][1:]) or 'body'}: {each['msg']}" for each in error.errors())
    return problems.respond(422, "; ".join(parts))


async def _answer_bug(_: Request, error: Exception) -> Response:
    answer = problem_of(error)
    return problems.respond(answer.status_code, str(answer.detail))
