"""The settings that several rooms share; each room adds its own beside its deployment.

A setting is written in one class: `unerase serve` takes those of `SharedSettings` from there, and hands them on to
every room. An unknown key is an error, in a Serve config's `args` as well as here.
"""

from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator

File = Annotated[
    str,
    BeforeValidator(lambda value: str(value) if isinstance(value, Path) else value),
    Field(json_schema_extra={"format": "file-path"}),
]
"""The path of a file, as text; empty means none."""


class SharedSettings(BaseModel):
    """What all rooms are told alike."""

    # What is told of a bad setting does not hold the others: a database's URL has a password in it.
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    catalogues: tuple[File, ...] = Field(default=(), description="catalogue files beside the embedded testbed's")
    device: str = Field(default="cpu", description="torch device of the weights")
    dtype: str = Field(default="float32", description="torch dtype of the computation")
    torch_threads: int = Field(default=1, ge=1, description="torch threads of one replica")
    log_format: Literal["text", "json"] = Field(default="text", description="form of a line of the logs: text or json")
    trace_endpoint: str = Field(
        default="", description="OTLP receiver (gRPC) of traces, as http://127.0.0.1:4317; empty means none"
    )

    @field_validator("trace_endpoint")
    @classmethod
    def _name_a_receiver(cls, value: str) -> str:
        # What reads the port refuses one that is none.
        place = urlsplit(value)
        if value and (place.scheme not in ("http", "https") or not place.hostname or place.port == 0):
            raise ValueError(f"must be as http://127.0.0.1:4317, not {value!r}")
        return value


class RoomSettings(SharedSettings):
    """Where a deployment finds its artefacts and its catalogue, and how it computes."""

    artifacts: str = Field(description="fsspec URL or folder of the artefact store")
    logs: str = Field(default="", description="folder of a log file for each room; empty means the replica's stderr")


class ReplicatedRoomSettings(RoomSettings):
    """A room of which there may be several replicas: every one but the coordinator."""

    replicas: int = Field(default=1, ge=1, le=1024, description="replicas of the deployment")
