"""Workers that are actors of a Ray cluster. Ray is imported when a crew is hired, and by nobody else."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout
from typing import Any

from mer_export import machine
from mer_export.errors import NotAvailableError
from mer_export.install import not_installed
from mer_export.launcher import ROOT
from runtimes.scale.blocks import Asked, Block, BlockWorker, Died, Event, Ready

LOCAL = "local"
STORE_BYTES = 256 << 20
"""Of a cluster that is started here: what it holds at a time are answers of blocks."""


def ray_module() -> Any:
    """`ray`; raises NotAvailableError where it is not installed."""
    # Nothing is told to anybody.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError:
        raise NotAvailableError(not_installed("ray", "scale")) from None
    return ray


class ClusterCrew:
    """Actors that take blocks, each with the cores (and the GPU) that it asks for; see `runtimes.scale.run.Crew`.

    No task is retried and no actor restarted by Ray: what a death costs is decided where all else is.
    """

    def __init__(self, ray: Any, asked: Asked, count: int, cores: int, gpus: int):
        self.ray = ray
        settings: dict[str, Any] = {"num_cpus": cores, "num_gpus": gpus, "max_restarts": 0, "max_task_retries": 0}
        self._class = ray.remote(**settings, scheduling_strategy="SPREAD")(BlockWorker)
        self._asked = ray.put(asked)
        self._running: dict[Any, tuple[Any, Block | None]] = {}
        self._idle: list[Any] = []
        for _ in range(count):
            self._start()

    @classmethod
    @contextmanager
    def hired(cls, asked: Asked, address: str, count: int | None, cores: int, gpus: int) -> Iterator[ClusterCrew]:
        """A crew that is gone when the block ends.

        Args:
            asked: what workers need to know.
            address: of a cluster, or `local` for one that is started here and ends with the crew.
            count: actors; None takes as many as the cluster has room for.
            cores: of each actor.
            gpus: of each actor.

        Raises:
            NotAvailableError: Ray is not installed, nothing answers at the address, or there is no room for an actor.
        """
        ray = ray_module()
        with ExitStack() as stack:
            # Its threads print what they hear of lost nodes, and standard output is for the result of the command.
            stack.enter_context(redirect_stdout(stack.enter_context(open(os.devnull, "w"))))
            if not ray.is_initialized():
                _connect(ray, address, (count or 1) * cores)
                stack.callback(ray.shutdown)
            most = room(ray.cluster_resources(), cores, gpus)
            if not most:
                raise NotAvailableError(
                    f"the cluster {address} has no room for a worker of {cores} cores and {gpus} GPUs: pass other "
                    "--threads or --device, or add nodes"
                )
            crew = cls(ray, asked, count or most, cores, gpus)
            stack.callback(crew.close)
            yield crew

    @property
    def free(self) -> int:
        """How many are ready and have no block."""
        return len(self._idle)

    def give(self, block: Block) -> None:
        """A block for one that is free."""
        actor = self._idle.pop()
        self._running[actor.answer.remote(block)] = (actor, block)

    def event(self) -> Event:
        """The next thing that happens; waits for it."""
        (done, *_), _ = self.ray.wait(list(self._running), num_returns=1)
        actor, block = self._running.pop(done)
        try:
            event: Event = self.ray.get(done)
        except self.ray.exceptions.RayError as error:
            # One that hangs in a lost node would hold its place.
            self.ray.kill(actor)
            self._start()
            return Died(block, f"its worker ended: {_short(error)}", began=block is not None)
        if block is not None or isinstance(event, Ready):
            self._idle.append(actor)
        return event

    def close(self) -> None:
        """Ends all of them, whatever they are at."""
        for actor in [*self._idle, *(a for a, _ in self._running.values())]:
            self.ray.kill(actor)

    def _start(self) -> None:
        actor = self._class.remote(self._asked)
        self._running[actor.begin.remote()] = (actor, None)


def _connect(ray: Any, address: str, cores: int) -> None:
    paths = os.pathsep.join(p for p in (str(ROOT), os.environ.get("PYTHONPATH", "")) if p)
    said: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    said["runtime_env"] = {"env_vars": {"PYTHONPATH": paths}}
    try:
        if address == LOCAL:
            most = max(cores, machine.cores())
            store = {"object_store_memory": STORE_BYTES, "include_dashboard": False}
            ray.init(address=LOCAL, num_cpus=most, _node_ip_address="127.0.0.1", **store, **said)
        else:
            ray.init(address=address, **said)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise NotAvailableError(f"no Ray cluster answers at {address}: {_short(error)}") from None


def room(resources: dict[str, float], cores: int, gpus: int) -> int:
    """How many actors of so many cores and GPUs fit into what a cluster has."""
    by_cores = int(resources.get("CPU", 0) // cores)
    return min(by_cores, int(resources.get("GPU", 0) // gpus)) if gpus else by_cores


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:240]
