"""The settings that several rooms share; each room adds its own in its `settings` module.

An unknown key is an error, also in the `args` of a Serve config.
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

HEALTH_CHECK_PERIOD_SECONDS = 3
HEALTH_CHECK_TIMEOUT_SECONDS = 10
"""Serve replaces a replica that fails to answer three health checks in a row, each for this long.

This also bounds how long a stopped caller can block others: at the end of a stream Ray makes the whole replica wait
until the caller has acknowledged it.
"""


class RoomSettings(BaseModel):
    """Where a deployment finds its artefacts and its catalogue, and how it computes."""

    # An error about one setting must not show the others: the database's URL contains a password.
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    artifacts: str = Field(description="fsspec URL or folder of the artefact store")
    catalogues: tuple[str, ...] = Field(default=(), description="catalogue files beside the embedded testbed's")
    device: str = Field(default="cpu", description="torch device of the weights")
    dtype: str = Field(default="float32", description="torch dtype of the computation")
    torch_threads: int = Field(default=1, ge=1, description="torch threads of one replica")
    log_format: Literal["text", "json"] = Field(default="text", description="form of a line of the log")
    logs: str = Field(default="", description="folder of a log file for each room; empty means the replica's stderr")
    trace_endpoint: str = Field(
        default="", description="OTLP receiver (gRPC) of traces, as http://127.0.0.1:4317; empty means none"
    )
