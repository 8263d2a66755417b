"""The application and its routes."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from functools import partial
from importlib import resources
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, FastAPI, Form, Path, Request, Response, Security, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.security import HTTPBearer
from starlette.exceptions import HTTPException

from ldp_runtime import __version__
from ldp_runtime.images.pixel_capture import has_capture_names
from ldp_runtime.paircheck.modes import Mode
from ldp_runtime.service import problems
from ldp_runtime.service.gate import Gate
from ldp_runtime.service.models import Health, Limits, RestorationStatus
from ldp_runtime.service.problems import ProblemError, documented, problem_of
from ldp_runtime.service.restore import SUFFIXES, Axis, File, FileName, Format, Restoration, RestorationJob, Upload
from ldp_runtime.service.results import Results
from ldp_runtime.service.state import Service
from ldp_runtime.service.uploads import UploadRoute

PAGE = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/viewer.js": ("viewer.js", "text/javascript; charset=utf-8"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
"""Path -> file in the package's folder ``page``, and its type. No other path reaches a file."""

PUBLIC = (*PAGE, "/v1/health", "/v1/health/ready", "/openapi.json")
"""Paths that need no token."""

_PURGE_SECONDS = 15.0
_DESCRIPTION = (
    "Turns a blurred dual-pixel photo pair into an all-in-focus image. `POST /v1/deblur` answers with the image; "
    "`POST /v1/restorations` answers at once, and keeps the image, the blur map and previews for a while. "
    "Errors are problems as in RFC 9457."
)
_LIMIT_STATUSES = (400, 408, 413, 422, 429, 503)
_PICTURES = {f"image/{name}": {"schema": {"type": "string", "format": "binary"}} for name in SUFFIXES}


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


CurrentService = Annotated[Service, Depends(_service)]


# --- uploads ------------------------------------------------------------------------------------------------


async def _read_upload(
    left: Annotated[
        UploadFile,
        Form(
            description="Left (or top) view: PNG, TIFF, JPEG, PGM or PPM; or a file that holds both views: a "
            "dual-pixel raw photo (CR2, CR3, DNG), a TIFF of two pages, or a picture for `side_by_side`"
        ),
    ],
    right: Annotated[
        UploadFile | None,
        Form(description="Right (or bottom) view, of the same size and depth; left out where `left` holds both"),
    ] = None,
    axis: Annotated[Axis, Form(description="How the sensor splits its pixels")] = "horizontal",
    swap: Annotated[bool, Form(description="The views are exchanged")] = False,
    side_by_side: Annotated[bool, Form(description="`left` is a picture with the left view in its left half")] = False,
    check: Annotated[
        Mode | None,
        Form(
            description="Measure the pair first: correct what can be, and refuse what would only do harm (`auto`), "
            "only say what seems wrong (`warn`), or neither (`off`); left out, it is as the service was started"
        ),
    ] = None,
    format: Annotated[Format, Form(description="Format of the restored image")] = "png",
) -> Upload:
    names = [file.filename or "" for file in (left, right) if file is not None]
    return Upload(
        await left.read(),
        None if right is None else await right.read(),
        axis,
        swap,
        format,
        side_by_side,
        check,
        is_pixel_capture=has_capture_names(names),
    )


CurrentUpload = Annotated[Upload, Depends(_read_upload)]


def _upload_routes() -> APIRouter:
    router = APIRouter(prefix="/v1", route_class=UploadRoute, tags=["restore"])
    limits: Any = {"max_files": 2, "max_fields": 8, "max_part_size": 1024}

    @router.post(
        "/deblur",
        summary="Restores a pair and answers with the image",
        response_class=Response,
        responses={
            200: {
                "description": "The image, with the depth, ICC profile and metadata of the left view",
                "content": _PICTURES,
                "headers": {
                    "Server-Timing": {"description": "Milliseconds by stage", "schema": {"type": "string"}},
                    "LDP-Warning": {"description": "What seems wrong, if anything", "schema": {"type": "string"}},
                },
            },
            **documented(*_LIMIT_STATUSES, 504),
        },
        form_limits=limits,
    )
    async def deblur(request: Request, service: CurrentService, upload: CurrentUpload) -> Response:
        """Answers when the pair is restored. A client that leaves before its turn is dropped from the queue."""
        job = service.submit(upload, previews=False)
        restoration = await _outcome(service, job, request)
        report = restoration.report
        headers = {
            "Server-Timing": ", ".join(f"{name};dur={1000 * value:.1f}" for name, value in report.seconds.items())
        }
        if report.warnings:
            headers["LDP-Warning"] = "; ".join(report.warnings)
        return _picture(restoration.files["image"], "restored", headers)

    @router.post(
        "/restorations",
        summary="Accepts a pair and answers at once",
        status_code=202,
        responses={
            202: {"headers": {"Location": {"description": "Path of the restoration", "schema": {"type": "string"}}}},
            **documented(*_LIMIT_STATUSES),
        },
        form_limits=limits,
    )
    async def create_restoration(
        service: CurrentService, upload: CurrentUpload, response: Response
    ) -> RestorationStatus:
        """Answers as soon as the pair is in the queue; poll its path for its state."""
        job = service.submit(upload, previews=True)
        name = service.results.add(job)
        response.headers["Location"] = _path(name)
        return _status(service, name, job)

    return router


async def _outcome(service: Service, job: RestorationJob, request: Request) -> Restoration:
    """Waits for a job to end, its client to leave or its time to be over, whichever comes first."""
    outcome = asyncio.wrap_future(job.future)
    outcome.add_done_callback(lambda ended: ended.cancelled() or ended.exception())  # marks the error as seen
    gone = asyncio.create_task(_disconnected(request))
    try:
        timeout = job.deadline - time.monotonic()
        both: set[asyncio.Future[Any]] = {outcome, gone}
        await asyncio.wait(both, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        if outcome.done():
            return outcome.result()
        if gone.done():
            raise ProblemError(503, "the client left")
        raise job.late()
    except ProblemError:
        raise
    except Exception as error:
        raise problem_of(error) from error
    finally:
        gone.cancel()
        service.queue.drop(job)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


# --- results ------------------------------------------------------------------------------------------------

_Id = Annotated[str, Path(description="As `POST /v1/restorations` named it", max_length=64)]


def _result_routes() -> APIRouter:
    router = APIRouter(prefix="/v1/restorations", tags=["restore"])

    @router.get("/{id}", summary="The state of a restoration", responses=documented(404, 422))
    async def read_restoration(id: _Id, service: CurrentService) -> RestorationStatus:
        return _status(service, id, service.results.get(id))

    @router.get(
        "/{id}/{file}",
        summary="A picture of a restoration",
        response_class=Response,
        responses={200: {"description": "The picture", "content": _PICTURES}, **documented(404, 409, 422)},
    )
    async def read_picture(id: _Id, file: FileName, service: CurrentService) -> Response:
        """``image`` as it was asked for; ``before``, ``after`` and, if there is one, ``blur-map`` as 8-bit PNG."""
        job = service.results.get(id)
        if not job.future.done() or job.future.cancelled() or job.future.exception() is not None:
            raise ProblemError(409, f"the restoration has no {file}; ask {_path(id)} for its state")
        restoration = job.future.result()
        if file not in restoration.files:
            raise ProblemError(
                404,
                f"bundle {restoration.report.bundle!r} has no blur map: its network reads none; start the service with "
                "a bundle whose network reads one",
            )
        return _picture(restoration.files[file], "restored" if file == "image" else file, {})

    @router.delete(
        "/{id}",
        summary="Deletes a restoration",
        status_code=204,
        response_class=Response,
        responses=documented(404, 422),
    )
    async def delete_restoration(id: _Id, service: CurrentService) -> None:
        """Removes it from the queue too, if it waits."""
        service.queue.drop(service.results.remove(id))

    return router


def _path(name: str) -> str:
    return f"/v1/restorations/{name}"


def _status(service: Service, name: str, job: RestorationJob) -> RestorationStatus:
    if not job.future.done():
        position = service.queue.position(job)
        if position is not None:
            return RestorationStatus(id=name, state="waiting", position=position)
        return RestorationStatus(id=name, state="running", progress=round(job.done, 3))
    raised = job.late() if job.future.cancelled() else job.future.exception()
    if raised is not None:
        error = problem_of(raised)
        described = problems.describe(error.status_code, str(error.detail))
        return RestorationStatus(id=name, state="failed", problem=described)
    done = job.future.result()
    links = {file: f"{_path(name)}/{file}" for file in done.files}
    return RestorationStatus(id=name, state="done", report=done.report, links=links)


def _picture(file: File, name: str, headers: dict[str, str]) -> Response:
    disposition = {"Content-Disposition": f'inline; filename="{name}{SUFFIXES[file.format]}"'}
    return Response(file.data, media_type=f"image/{file.format}", headers={**disposition, **headers})


async def _purge(results: Results) -> None:
    while True:
        await asyncio.sleep(_PURGE_SECONDS)
        results.purge()


# --- the service itself -------------------------------------------------------------------------------------


def _public_routes() -> APIRouter:
    router = APIRouter(prefix="/v1", tags=["service"])

    @router.get("/health", summary="Answers while the process runs")
    async def live(service: CurrentService) -> Health:
        return _health(service)

    @router.get(
        "/health/ready",
        summary="Answers with 200 while uploads are accepted, with 503 while the service stops",
        responses={503: {"model": Health}},
    )
    async def ready(service: CurrentService, response: Response) -> Health:
        if service.queue.closed:
            response.status_code = 503
        return _health(service)

    return router


def _metrics_routes() -> APIRouter:
    router = APIRouter(tags=["service"])

    @router.get("/v1/limits", summary="The limits of the service")
    async def limits(service: CurrentService) -> Limits:
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
    async def metrics(service: CurrentService) -> Response:
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
