"""The shapes of what the service says and is told, as its openapi.json shows them."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from vprompt.data.preprocessing import Preprocessing
from vprompt.serving.bank.bank import Entry
from vprompt.serving.errors import RequestError
from vprompt.serving.service import Answer
from vprompt.utils.text import printable


class Fault(BaseModel):
    """What went wrong: a code for programs, a sentence for people."""

    code: str
    message: str


class Failure(BaseModel):
    """The body of every answer with a status from 400 on."""

    error: Fault


class FailedAnswer(BaseModel):
    """Why one adapter among several has no answer."""

    adapter: str
    error: Fault

    @classmethod
    def of(cls, adapter: str, problem: RequestError) -> FailedAnswer:
        """The problem of one adapter."""
        return cls(adapter=printable(adapter[:100]), error=Fault(code=problem.code, message=str(problem)))


class Answers(BaseModel):
    """What several adapters say of one image, in the order of the question."""

    answers: list[Answer | FailedAnswer]


class Summary(BaseModel):
    """An adapter, in short."""

    name: str
    method: str
    num_classes: int
    nbytes: int

    @classmethod
    def of(cls, entry: Entry) -> Summary:
        """What the bank knows of it."""
        return cls(name=entry.name, method=entry.method, num_classes=entry.num_classes, nbytes=entry.nbytes)


class Adapters(BaseModel):
    """All adapters that can be asked."""

    adapters: list[Summary]


class Details(Summary):
    """An adapter. Where it lies on the server's disk is not said."""

    classes: list[str] | None
    prompt_counts: list[int]
    preprocessing: Preprocessing

    @classmethod
    def of(cls, entry: Entry) -> Details:
        """What the bank knows of it."""
        return cls(
            **dict(Summary.of(entry)),
            classes=None if entry.classes is None else [printable(name) for name in entry.classes],
            prompt_counts=list(entry.prompt_counts),
            preprocessing=entry.preprocessing,
        )


class Source(BaseModel):
    """Where an adapter to be added lies: a folder on the server."""

    path: str


class Health(BaseModel):
    """Whether the service takes requests."""

    status: str
    adapters: int


def image_body() -> dict[str, Any]:
    """The image that is the body of a request, for the schema."""
    binary = {"schema": {"type": "string", "format": "binary"}}
    return {"requestBody": {"required": True, "content": {"image/*": binary, "application/octet-stream": binary}}}


def json_body(model: type[BaseModel]) -> dict[str, Any]:
    """A JSON document that is the body of a request, for the schema."""
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": model.model_json_schema()}}}}


def failures(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """What else a request may be answered with, for the schema."""
    return {status: {"model": Failure} for status in statuses}
