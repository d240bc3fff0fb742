"""The HTTP interface: what can be asked, and how it is answered."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Annotated

import fastapi
from fastapi import APIRouter, Depends, FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse
from fastapi.security import HTTPBearer
from pydantic import ValidationError
from starlette.exceptions import HTTPException

from vprompt.serving.errors import RequestError
from vprompt.serving.middleware import Gate, response
from vprompt.serving.requests import check_image_type, read_body, while_connected
from vprompt.serving.schema import (
    Adapters,
    Answers,
    Details,
    FailedAnswer,
    Health,
    Source,
    Summary,
    failures,
    image_body,
    json_body,
)
from vprompt.serving.service import Answer, Service
from vprompt.utils.errors import VPromptError
from vprompt.utils.text import printable
from vprompt.utils.version import __version__

PREDICTING = failures(400, 401, 403, 404, 408, 413, 415, 422, 500, 503)

MAX_SOURCE_BYTES = 64 * 1024

Name = Annotated[str, fastapi.Path(description="Name of an adapter.")]

Names = Annotated[list[str], Query(description="Names of adapters.", min_length=1)]

Top = Annotated[int, Query(ge=1, description="How many classes to name.")]


def create_app(service: Service, *, token: str | None = None, manage: bool = False, local: bool = False) -> FastAPI:
    """The ASGI application; whoever made the service closes it.

    Args:
        service: What is asked.
        token: What clients must show as `Authorization: Bearer TOKEN`, everywhere but at /health.
        manage: Let clients add and remove adapters; needs a token.
        local: Answer only what is addressed to `localhost` or a loopback address.

    Raises:
        VPromptError: If `manage` comes without a token.
    """
    if manage and token is None:
        raise VPromptError("Adapters can be managed only where a token is asked for; give one.")
    # No pages of documentation: they would load scripts from elsewhere. openapi.json has it all.
    app = FastAPI(title="vprompt", version=__version__, docs_url=None, redoc_url=None, redirect_slashes=False)
    app.add_middleware(Gate, service=service, token=token, local=local)
    app.add_exception_handler(RequestError, _problem)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _unrouted)
    guarded = [] if token is None else [Depends(HTTPBearer(auto_error=False))]
    app.include_router(_open_routes(service))
    app.include_router(_routes(service), dependencies=guarded)
    if manage:
        app.include_router(_managing_routes(service), dependencies=guarded)
    return app


def _open_routes(service: Service) -> APIRouter:
    routes = APIRouter()

    @routes.get("/health", responses={503: {"model": Health}})
    async def health() -> Health:  # pyright: ignore[reportUnusedFunction]
        """Whether the service takes requests: 200, or 503 while it stops."""
        found = Health(status="stopping" if service.stopping else "ok", adapters=len(service.bank))
        return JSONResponse(found.model_dump(), status_code=503) if service.stopping else found  # pyright: ignore[reportReturnType]

    return routes


def _routes(service: Service) -> APIRouter:
    routes = APIRouter()

    @routes.post("/v1/predict/{adapter}", responses=PREDICTING, openapi_extra=image_body())
    async def predict(request: Request, adapter: Name, top: Top = 3) -> Answer:  # pyright: ignore[reportUnusedFunction]
        """Asks one adapter about the image that is the body."""
        service.entry(adapter)  # before its image is read
        [answer] = await _exchange(service, request, [adapter], top)
        if isinstance(answer, RequestError):
            raise answer
        return answer

    @routes.post("/v1/predict", responses=PREDICTING, openapi_extra=image_body())
    async def predict_several(request: Request, adapter: Names, top: Top = 3) -> Answers:  # pyright: ignore[reportUnusedFunction]
        """Asks several adapters about the image that is the body; each answers or fails alone."""
        names = list(dict.fromkeys(adapter))
        if len(names) > service.limits.max_queue:
            raise RequestError("invalid", f"Ask at most {service.limits.max_queue} adapters at once, not {len(names)}.")
        answers = await _exchange(service, request, names, top)
        pairs = zip(names, answers, strict=True)
        return Answers(answers=[FailedAnswer.of(n, a) if isinstance(a, RequestError) else a for n, a in pairs])

    @routes.get("/v1/adapters", responses=failures(401, 403))
    async def adapters() -> Adapters:  # pyright: ignore[reportUnusedFunction]
        """All adapters."""
        found: list[Summary] = []
        for name in service.bank:
            with contextlib.suppress(RequestError):  # one may go meanwhile
                found.append(Summary.of(service.entry(name)))
        return Adapters(adapters=found)

    @routes.get("/v1/adapters/{adapter}", responses=failures(401, 403, 404, 422))
    async def adapter_details(adapter: Name) -> Details:  # pyright: ignore[reportUnusedFunction]
        """One adapter."""
        return Details.of(service.entry(adapter))

    @routes.get("/metrics", response_class=PlainTextResponse, responses=failures(401, 403))
    async def metrics() -> PlainTextResponse:  # pyright: ignore[reportUnusedFunction]
        """Counters as text for Prometheus."""
        return PlainTextResponse(service.exposition(), media_type="text/plain; version=0.0.4")

    return routes


def _managing_routes(service: Service) -> APIRouter:
    routes = APIRouter()
    refusals = failures(401, 403, 408, 409, 413, 422, 500)

    @routes.put("/v1/adapters/{adapter}", status_code=201, responses=refusals, openapi_extra=json_body(Source))
    async def add(request: Request, adapter: Name) -> Details:  # pyright: ignore[reportUnusedFunction]
        """Adds an adapter from a folder on the server."""
        body = await read_body(request, max_bytes=MAX_SOURCE_BYTES, timeout=service.limits.timeout)
        try:
            source = Source.model_validate_json(body)
        except ValidationError as error:
            raise RequestError("invalid", 'The body must be JSON: {"path": FOLDER}.') from error
        return Details.of(await service.add(adapter, Path(source.path)))

    @routes.delete("/v1/adapters/{adapter}", status_code=204, responses=failures(401, 403, 404, 422))
    async def remove(adapter: Name) -> None:  # pyright: ignore[reportUnusedFunction]
        """Removes an adapter."""
        service.remove(adapter)

    return routes


async def _exchange(service: Service, request: Request, adapters: list[str], top: int) -> list[Answer | RequestError]:
    """Reads the image and asks; leaves what is to be counted in the request's state."""
    try:
        with service.place():
            check_image_type(request)
            limits = service.limits
            image = await read_body(request, max_bytes=limits.max_bytes, timeout=limits.timeout)
            answers = await while_connected(request, service.predict(image, adapters, top=top))
    except RequestError as problem:
        request.state.answers = [(name, problem.status) for name in adapters if name in service.bank]
        raise
    request.state.answers = [
        (name if name in service.bank else "", answer.status if isinstance(answer, RequestError) else 200)
        for name, answer in zip(adapters, answers, strict=True)
    ]
    return answers


async def _problem(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestError)
    return response(error)


async def _invalid(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    return response(RequestError("invalid", f"The {first['loc'][0]}'s {first['loc'][-1]!r} is wrong: {first['msg']}."))


async def _unrouted(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    path = printable(request.url.path[:200])
    if error.status_code == 405:
        answer = response(RequestError("wrong_method", f"{request.method} is not what {path!r} is for."))
    else:
        answer = response(RequestError("not_found", f"There is nothing at {path!r}; /openapi.json says what there is."))
    for name, value in (error.headers or {}).items():
        answer.headers[name] = value
    return answer
