"""HTTP interface of the service: its routes, and how they answer."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Awaitable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import fastapi
from fastapi import APIRouter, Depends, FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse
from pydantic import ValidationError
from starlette.exceptions import HTTPException

from vprompt.data.masks import mask_picture
from vprompt.model.predict import mask_of
from vprompt.serving.bank.bank import Entry
from vprompt.serving.body import image_in
from vprompt.serving.errors import RequestError
from vprompt.serving.middleware import BEARER, Gate, as_response, host_of
from vprompt.serving.schema import (
    IMAGE_BODY,
    SOURCE_BODY,
    Adapters,
    Answer,
    Answers,
    Backbone,
    Details,
    FailedAnswer,
    Fault,
    Health,
    Source,
    failures,
)
from vprompt.serving.service import Service
from vprompt.serving.watch import check_name
from vprompt.utils.errors import VPromptError
from vprompt.utils.text import printable
from vprompt.utils.version import __version__

PREDICTING = failures(400, 401, 403, 404, 408, 409, 413, 415, 422, 429, 500, 503)

PENALTY_SECONDS = 0.5
"""Seconds until an image of too much work is refused, so that nobody gets far by sending one after the other."""

T = TypeVar("T")

open_routes, guarded_routes, managing_routes = APIRouter(), APIRouter(), APIRouter()


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
    app.state.service = service
    app.add_middleware(Gate, service=service, token=token, local=local)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _unrouted)
    app.include_router(open_routes)
    for routes in (guarded_routes, *[managing_routes] * manage):
        app.include_router(routes, dependencies=[] if token is None else [Depends(BEARER)])
    return app


async def _service(request: Request) -> Service:
    return request.app.state.service


Served = Annotated[Service, Depends(_service)]

Name = Annotated[str, fastapi.Path(description="Name of an adapter.")]

Names = Annotated[list[str], Query(description="Names of adapters.", min_length=1)]

Top = Annotated[int, Query(ge=1, description="How many classes or tags to name.")]


@open_routes.get("/health", responses={503: {"model": Health}})
async def health(service: Served, response: Response) -> Health:
    """Whether the service takes requests: 200, or 503 while it stops; and what it runs."""
    if service.stopping:
        response.status_code = 503
    return Health(
        status="stopping" if service.stopping else "ok",
        adapters=len(service.bank),
        version=__version__,
        backbones=[
            Backbone(name=bank.info.name, fingerprint=bank.key[0], img_size=bank.key[1]) for bank in service.bank.banks
        ],
    )


@guarded_routes.post(
    "/v1/predict/{adapter}",
    response_model=Answer,
    responses=PREDICTING,
    openapi_extra=IMAGE_BODY,
    response_model_exclude_unset=True,
)
async def predict(request: Request, service: Served, adapter: Name, top: Top = 3) -> Any:
    """Asks one adapter about the image that is the body; one that says masks sends them as PNG where that is accepted.

    A mask in JSON is its `size` and its `runs`: pairs of a class's number and a length, row by row.
    """
    [answer] = await _exchange(service, request, [adapter], top, alone=True)
    if isinstance(answer, RequestError):
        raise answer
    entry = service.bank.get(adapter)  # None: it was given up a moment ago
    if entry is not None and entry.target.dense and "image/png" in request.headers.get("accept", ""):
        picture = io.BytesIO()
        await asyncio.to_thread(mask_picture(mask_of(answer), entry.target).save, picture, "PNG")
        return Response(picture.getvalue(), media_type="image/png")
    return Answer(**answer)


@guarded_routes.post("/v1/predict", responses=PREDICTING, openapi_extra=IMAGE_BODY, response_model_exclude_unset=True)
async def predict_several(request: Request, service: Served, adapter: Names, top: Top = 3) -> Answers:
    """Asks several adapters about the image that is the body; each answers or fails alone."""
    names = list(dict.fromkeys(adapter))
    most = min(service.limits.max_queue, service.limits.max_adapters if service.store else len(names))
    if len(names) > most:
        raise RequestError("invalid", f"Ask at most {most} adapters at once, not {len(names)}.")
    answers = await _exchange(service, request, names, top)
    return Answers(
        answers=[
            FailedAnswer(adapter=printable(name[:100]), error=Fault.of(answer))
            if isinstance(answer, RequestError)
            else Answer(**answer)
            for name, answer in zip(names, answers, strict=True)
        ]
    )


@guarded_routes.get("/v1/adapters", response_model=Adapters, responses=failures(401, 403))
async def adapters(service: Served) -> dict[str, list[Entry]]:
    """All adapters."""
    return {"adapters": service.bank.entries}


@guarded_routes.get("/v1/adapters/{adapter}", response_model=Details, responses=failures(401, 403, 404, 422))
async def adapter_details(service: Served, adapter: Name) -> Entry:
    """One adapter."""
    return service.bank[adapter]


@guarded_routes.get("/metrics", response_class=PlainTextResponse, responses=failures(401, 403))
async def metrics(service: Served) -> PlainTextResponse:
    """Counters as text for Prometheus."""
    text = service.metrics.text({entry.name: entry.nbytes for entry in service.bank.entries})
    return PlainTextResponse(text, media_type="text/plain; version=0.0.4")


@managing_routes.put(
    "/v1/adapters/{adapter}",
    status_code=201,
    response_model=Details,
    responses=failures(401, 403, 408, 409, 413, 422, 500),
    openapi_extra=SOURCE_BODY,
)
async def add(request: Request, service: Served, adapter: Name) -> Entry:
    """Adds an adapter from a folder on the server."""
    try:
        source = Source.model_validate_json(await request.body())
    except ValidationError as error:
        raise RequestError("invalid", 'The body must be JSON: {"path": FOLDER}.') from error
    check_name(adapter)
    try:
        return await asyncio.to_thread(service.bank.add, adapter, Path(source.path))
    except VPromptError as error:
        raise RequestError("refused", str(error)) from error


@managing_routes.delete("/v1/adapters/{adapter}", status_code=204, responses=failures(401, 403, 404, 422))
async def remove(service: Served, adapter: Name) -> None:
    """Removes an adapter; asks for it that wait are told that it is gone."""
    await asyncio.to_thread(service.bank.remove, adapter)  # which waits while another is added


async def _exchange(
    service: Service, request: Request, adapters: list[str], top: int, *, alone: bool = False
) -> list[dict[str, Any] | RequestError]:
    """Reads the image and asks; leaves what is to be counted in the request's state."""
    client, headers = host_of(request.scope), request.headers
    try:
        with service.metrics.under_way.track_inprogress():
            if service.stopping:
                raise RequestError("stopping", "The service is stopping; ask another one, or later.")
            if alone:
                service.check_adapter(adapters[0])  # before its image is read
            service.check(client, adapters)
            if headers.get("content-encoding", "identity").strip().lower() != "identity":
                raise RequestError("not_an_image", "Send the image's bytes as they are, without a Content-Encoding.")
            image = image_in(await request.body(), headers.get("content-type", ""), service.limits.max_bytes)
            with service.place(client, adapters):
                work = service.predict(image, adapters, top=top, client=client)
                answers = await _while_connected(request, work)
    except RequestError as problem:
        request.state.answers = [(name, problem.status) for name in adapters if name in service.bank]
        if problem.code == "too_much_work":
            await asyncio.sleep(PENALTY_SECONDS)
        raise
    request.state.answers = [
        (name if name in service.bank else "", answer.status if isinstance(answer, RequestError) else 200)
        for name, answer in zip(adapters, answers, strict=True)
    ]
    return answers


async def _while_connected(request: Request, work: Awaitable[T]) -> T:
    """Awaits `work`, which is cancelled when the client goes away; the body must have been read.

    Raises:
        RequestError: If it went away.
    """
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise RequestError("client_gone", "The client closed the connection.")
    finally:
        task.cancel()
        gone.cancel()
        await asyncio.wait({task, gone})


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _invalid(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    raise RequestError("invalid", f"The {first['loc'][0]}'s {first['loc'][-1]!r} is wrong: {first['msg']}.")


async def _unrouted(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    path = printable(request.url.path[:200])
    if error.status_code == 405:
        problem = RequestError("wrong_method", f"{request.method} is not what {path!r} is for.")
    else:
        problem = RequestError("not_found", f"There is nothing at {path!r}; /openapi.json says what there is.")
    answer = as_response(problem)
    answer.headers.update(error.headers or {})
    return answer
