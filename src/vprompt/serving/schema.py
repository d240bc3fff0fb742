"""Documents that the service sends and takes, as its openapi.json shows them."""

from __future__ import annotations

from operator import attrgetter
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict

from vprompt.data.preprocessing import Preprocessing
from vprompt.serving.errors import RequestError
from vprompt.utils.text import printable


class Fault(BaseModel):
    """An error: a code for programs, a sentence for people."""

    code: str
    message: str

    @classmethod
    def of(cls, problem: RequestError) -> Fault:
        """The fault that an error stands for."""
        return cls(code=problem.code, message=printable(str(problem)))


class Failure(BaseModel):
    """The body of every answer with a status from 400 on."""

    error: Fault


class FailedAnswer(BaseModel):
    """Why one adapter among several has no answer."""

    adapter: str
    error: Fault


class Answer(BaseModel):
    """Prediction of an adapter for an image: a class, tags, numbers by name, or what else its target says.

    `top` has the most probable classes or tags with their probabilities, falling; a class without a name is called by
    its number.
    """

    model_config = ConfigDict(extra="allow")

    adapter: str
    class_index: int | None = None
    class_name: str | None = None
    probability: float | None = None
    top: list[tuple[str, float]] | None = None
    tags: list[str] | None = None
    values: dict[str, float] | None = None
    size: tuple[int, int] | None = None
    runs: list[tuple[int, int]] | None = None


class Answers(BaseModel):
    """Answers of several adapters about one image, in the order of the question."""

    answers: list[FailedAnswer | Answer]


class Summary(BaseModel):
    """An adapter, in short; read from the `Entry` of a bank."""

    name: str
    method: str
    num_classes: int
    target: Annotated[str, BeforeValidator(attrgetter("name"))]
    nbytes: int


class Adapters(BaseModel):
    """All adapters that can be asked."""

    adapters: list[Summary]


class Details(Summary):
    """An adapter. Where it lies on the server's disk is not said."""

    classes: list[Annotated[str, BeforeValidator(printable)]] | None
    prompt_counts: list[int]
    preprocessing: Preprocessing


class Source(BaseModel):
    """An adapter to be added: a folder on the server."""

    path: str


class Backbone(BaseModel):
    """A backbone of the service."""

    name: str
    fingerprint: str
    img_size: tuple[int, int]


class Health(BaseModel):
    """Whether the service takes requests, and what it runs."""

    status: str
    adapters: int
    version: str
    backbones: list[Backbone]


_BINARY = {"schema": {"type": "string", "format": "binary"}}

IMAGE_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "image/*": _BINARY,
            "application/octet-stream": _BINARY,
            "multipart/form-data": {"schema": {"type": "object", "properties": {"image": _BINARY["schema"]}}},
            "application/json": {
                "schema": {"type": "object", "properties": {"image": {"type": "string", "format": "byte"}}}
            },
        },
    }
}
"""A request whose body is an image, or holds one."""

SOURCE_BODY: dict[str, Any] = {
    "requestBody": {"required": True, "content": {"application/json": {"schema": Source.model_json_schema()}}}
}
"""A request whose body is a `Source`."""


def failures(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Statuses of failures that a request may be answered with."""
    return {status: {"model": Failure} for status in statuses}
