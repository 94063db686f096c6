"""How a room's process is seen from outside, beside its metrics: its logs and its traces."""

from unerase_backend.runtime import logs, tracing
from unerase_backend.runtime.settings import RoomSettings


def configure_telemetry(room: str, settings: RoomSettings) -> None:
    """Let this process log and trace as the settings say, under the room's name."""
    logs.configure(room, settings.log_format, settings.logs)
    tracing.configure(room, settings.trace_endpoint)
