"""The service on Ray Serve: `serve run vprompt.serving.ray:application adapters=runs replicas=2`."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from importlib import import_module
from typing import TYPE_CHECKING, Any

from vprompt.serving.setup import Setup
from vprompt.utils.errors import VPromptError
from vprompt.utils.serialization import build, check_known, options_of

if TYPE_CHECKING:
    from ray.serve import Application
    from starlette.types import ASGIApp

LISTS = ("named", "rate", "in_flight")


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
        raise VPromptError(f"A deployment needs {error.name}: pip install 'vprompt[ray,serve]'.") from error
    numbers = {"replicas": 1, "cpus": 1.0, "gpus": 0.0}
    check_known(arguments, {**options_of(Setup), **numbers}, "argument")
    # `serve run` knows text alone; lists are separated by commas.
    values: dict[str, Any] = {name: _number(value) for name, value in arguments.items()}
    values |= {name: str(values[name]).split(",") for name in LISTS if isinstance(values.get(name), str | float)}
    setup: Setup = build(Setup, values)
    replicas, cpus, gpus = (values.get(name, number) for name, number in numbers.items())

    def app() -> ASGIApp:
        from vprompt.serving.app import create_app

        token = setup.token()
        return create_app(setup.service(ExitStack()), token=token, local=token is None)

    deployment = serve.deployment(serve.ingress(app)()).options(
        name="vprompt",
        num_replicas=replicas,
        max_ongoing_requests=2 * setup.limits.max_queue,  # more are refused by the service, with a reason
        ray_actor_options={"num_cpus": cpus, "num_gpus": gpus},
    )
    return deployment.bind()


def _number(value: Any) -> Any:
    try:
        return int(value) if isinstance(value, str) and value.isdigit() else float(value)
    except (TypeError, ValueError):
        return value
