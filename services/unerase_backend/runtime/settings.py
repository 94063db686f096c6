"""The settings that several rooms share; each room adds its own beside its deployment.

An unknown key is an error, in a Serve config's `args` as well as here.
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

HEALTH_CHECK_PERIOD_SECONDS = 3
HEALTH_CHECK_TIMEOUT_SECONDS = 10
"""Serve replaces a replica that three times does not answer for so long.

It is also how long a caller can hold others up: at the end of a stream Ray lets the whole replica wait for the caller's
receipt, which does not come from a process that is stopped.
"""


class RoomSettings(BaseModel):
    """Where a deployment finds its artefacts and its catalogue, and how it computes."""

    # What is told of a bad setting does not hold the others: a database's URL has a password in it.
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
