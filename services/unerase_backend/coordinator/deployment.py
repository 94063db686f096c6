"""The coordinator as a Ray Serve application: one replica that owns the gRPC server, the database and the workflows.

It offers no RPCs through Serve. `running` does the work.
"""

from ray import serve

from unerase_backend.coordinator.settings import CoordinatorSettings
from unerase_backend.runtime.deployment import application


class Coordinator:
    """The ingress of application "coordinator"."""

    async def __init__(self, settings: CoordinatorSettings) -> None:  # type: ignore[misc]
        # Imported only in the replica, so that the process that deploys it stays light.
        from unerase_backend.coordinator.running import RunningCoordinator

        self._running = RunningCoordinator(settings)
        await self._running.begin()

    async def __del__(self) -> None:
        """Drain: calls end, or are cut off after the grace period; the next replica continues the workflows."""
        if (running := getattr(self, "_running", None)) is not None:
            await running.end()


def build(args: CoordinatorSettings) -> serve.Application:
    """Build the application from the `args` of a Serve config."""
    return application(
        Coordinator,
        args,
        # Serve kills a replica that has not drained by then; the server's own grace period must end first.
        graceful_shutdown_timeout_s=args.shutdown_grace_seconds + 15,
        graceful_shutdown_wait_loop_s=0.1,
    )
