"""The service as a deployment of Ray Serve: a replica is all of it, on the devices that Ray gave the replica.

    serve deploy example/ray/demo.yaml

A replica is one actor: our application with a scheduler and worker processes of its own. Serve's proxy hands requests
to it, nothing else is between, and no replica knows of another.
"""

import asyncio
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import ray
from ray import serve
from starlette.applications import Starlette

from app.application import Application
from app.startup import prepared
from workers.confinement import forget_secrets
from workers.devices import VARIABLE
from workers.nvml import Nvml

ROOT = Path(__file__).resolve().parents[2]
POLL_SECONDS = 0.1  # between two looks at workers that load
HOST = "CONTOUR_SERVER__HOST"
ARGUMENTS = {"config": "configs/demo.yaml", "host": "127.0.0.1"}  # and their defaults


class UnhealthyError(RuntimeError):
    """A replica can serve nothing any more; Serve replaces it."""


class Replica:
    """One service. Serve runs all of it on one thread, which stays: so the workers end with the replica, not before."""

    def __init__(self, config: str, host: str) -> None:
        self._nvml = Nvml.open()
        context = ray.get_runtime_context()
        environ = environment(context.get_accelerator_ids()["GPU"], host, os.environ)
        settings = prepared(Path(config), environ)
        self._application = Application(settings, environ, self._nvml, cores(context.get_assigned_resources()))
        forget_secrets(os.environ)  # no worker is started yet; Ray has read its token
        self._loaded = False

    def __serve_build_asgi_app__(self) -> Starlette:
        """The application; Serve also runs its lifespan."""
        return self._application.asgi

    async def check_health(self) -> None:
        """Serve asks before the first request, and then again and again.

        The first time it waits for a worker that is ready, so that no replica is counted, and no older one ended, too
        early. Raises UnhealthyError.
        """
        application = self._application
        while not (self._loaded or application.pool.core.ready or application.failure):  # noqa: ASYNC110 - there is none
            await asyncio.sleep(POLL_SECONDS)
        self._loaded = True
        if application.failure:
            raise UnhealthyError(f"All workers have failed: {application.failure}")

    def __del__(self) -> None:
        """After the lifespan has ended."""
        if self._nvml is not None:
            self._nvml.close()


CONTOUR = serve.deployment(name="Contour")(serve.ingress()(Replica))


def environment(gpus: Sequence[str], host: str, environ: Mapping[str, str]) -> Mapping[str, str]:
    """The environment for a replica with `gpus` (indices or UUIDs): for none, Ray may leave the variable as it is.

    `host` is what Serve's proxies listen on. The application itself does not listen, but by `host` it decides which
    names it accepts in a request's Host header.
    """
    return {**environ, VARIABLE: ",".join(gpus), HOST: host}


def cores(resources: Mapping[str, float]) -> int:
    """Processor cores that Ray assigned; its workers share them."""
    return max(1, int(resources.get("CPU", 1)))


def build(arguments: Mapping[str, str]) -> serve.Application:
    """The target of `import_path`. `config` is a path relative to the repository's folder, wherever Ray was started.

    `host` repeats `http_options.host` of the Serve config file. Raises ValueError for other arguments.
    """
    if unknown := set(arguments) - set(ARGUMENTS):
        raise ValueError(f"args has {', '.join(sorted(unknown))}, but takes only {', '.join(ARGUMENTS)}")
    given = {**ARGUMENTS, **arguments}
    return CONTOUR.bind(str(ROOT / given["config"]), given["host"])
