"""The settings that several rooms share; each room adds its own in its `settings` module.

Each setting is declared in one class. `unerase serve` inherits those of `SharedSettings` and passes them on to every
room. An unknown key is an error, in a Serve config's `args` as well as here.
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
    """The settings that are the same for all rooms."""

    # An error about one setting must not show the others: the database's URL contains a password.
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    catalogues: tuple[File, ...] = Field(default=(), description="catalogue files beside the embedded testbed's")
    device: Literal["cpu", "cuda"] = Field(default="cpu", description="device that computes")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto", description="dtype of the UNet and the text encoder; auto: bfloat16 on a GPU, float32 on a CPU"
    )
    torch_threads: int = Field(default=1, ge=1, le=1024, description="torch threads of one replica")
    log_format: Literal["text", "json"] = Field(default="text", description="form of a line of the logs: text or json")
    trace_endpoint: str = Field(
        default="", description="OTLP receiver (gRPC) of traces, as http://127.0.0.1:4317; empty means none"
    )

    @property
    def precision(self) -> str:
        """The dtype of the UNet and the text encoder, by its name in torch."""
        if self.dtype == "auto":
            return "float32" if self.device == "cpu" else "bfloat16"
        return self.dtype

    @field_validator("trace_endpoint")
    @classmethod
    def _name_a_receiver(cls, value: str) -> str:
        # Reading `port` raises ValueError if it is not a number from 0 to 65535.
        place = urlsplit(value)
        if value and (place.scheme not in ("http", "https") or not place.hostname or place.port == 0):
            raise ValueError(f"must be a URL such as http://127.0.0.1:4317, not {value!r}")
        return value


class RoomSettings(SharedSettings):
    """Where a deployment finds its artefacts and its catalogue, and how it computes."""

    artifacts: str = Field(description="fsspec URL or folder of the artefact store")
    logs: str = Field(default="", description="folder of a log file for each room; empty means the replica's stderr")
    digests: str = Field(
        default="", description="folder that keeps the digests of weight files; empty: every process hashes them anew"
    )


class ReplicatedRoomSettings(RoomSettings):
    """A room that may have several replicas: every room but the coordinator."""

    replicas: int = Field(default=1, ge=1, le=1024, description="replicas of the deployment")
    gpu_share: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="share of a GPU that each replica asks Ray for, and the bound of its memory; 0 states none",
    )
