"""The service on Ray Serve: `serve run vprompt.serving.ray:application adapters=runs replicas=2`."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack, suppress
from importlib import import_module
from typing import TYPE_CHECKING, Any

from vprompt.serving.limits import Limits
from vprompt.serving.setup import Setup
from vprompt.utils.errors import VPromptError
from vprompt.utils.serialization import build, check_known, options_of

if TYPE_CHECKING:
    from ray.serve import Application
    from starlette.types import ASGIApp


def application(arguments: Mapping[str, Any]) -> Application:
    """An application of Ray Serve that answers as `vprompt serve` does; each replica is a service of its own.

    Args:
        arguments: Options of `vprompt serve` by name, with its adapters as `named`, and `replicas`, `cpus` and `gpus`
            of each. Paths and $VPROMPT_TOKEN are those of the machines that replicas run on.

    Raises:
        VPromptError: If an argument is none, or Ray Serve is not installed.

    Example:
        >>> from ray import serve  # doctest: +SKIP
        >>> serve.run(application({"adapters": "runs", "replicas": 2}))  # doctest: +SKIP
    """
    try:
        serve: Any = import_module("ray.serve")
    except ImportError as error:
        raise VPromptError(f"A deployment needs {error.name}: pip install 'vprompt[ray-serve]'.") from error
    numbers: dict[str, Any] = {"replicas": 1, "cpus": 1.0, "gpus": 0.0}
    check_known(arguments, {**options_of(Setup), **numbers}, "argument")
    kinds = {name: type(value) for name, value in {**vars(Limits()), **numbers, "named": ()}.items()}
    values = {**numbers, **{name: _typed(value, kinds.get(name)) for name, value in arguments.items()}}
    setup: Setup = build(Setup, values)

    def app() -> ASGIApp:
        from vprompt.serving.app import create_app

        token = setup.token()
        return create_app(setup.service(ExitStack()), token=token, local=token is None)

    deployment = serve.deployment(serve.ingress(app)()).options(
        name="vprompt",
        num_replicas=values["replicas"],
        max_ongoing_requests=2 * setup.limits.max_queue,  # more are refused by the service, with a reason
        ray_actor_options={"num_cpus": values["cpus"], "num_gpus": values["gpus"]},
    )
    return deployment.bind()


def _typed(value: Any, kind: type | None) -> Any:
    """A value of `serve run`, which knows text alone, as a number or a list where that is wanted."""
    with suppress(ValueError):
        if isinstance(value, str) and kind in (int, float):
            return kind(value)
    return value.split(",") if isinstance(value, str) and kind is tuple else value
