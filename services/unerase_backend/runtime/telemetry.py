"""The logs and traces of a room's process."""

from unerase_backend.runtime import logs, tracing
from unerase_backend.runtime.settings import RoomSettings


def configure_telemetry(room: str, settings: RoomSettings) -> None:
    """Configure logs and traces of this process by the settings, under the room's name."""
    logs.configure(room, settings.log_format, settings.logs)
    tracing.configure(room, settings.trace_endpoint)
