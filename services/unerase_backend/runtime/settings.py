"""The settings that several rooms share; each room adds its own in its `settings` module.

Each setting is declared in one class. `unerase serve` inherits those of `SharedSettings` and passes them on to every
room. An unknown key is an error, in a Serve config's `args` as well as here.
"""

import re
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from fsspec import get_filesystem_class
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
    model_roots: tuple[str, ...] = Field(
        default=(), description="folder or fsspec prefix, as s3://bucket/models, that models may be registered from"
    )
    model_organisations: tuple[str, ...] = Field(
        default=(), description="organisation of the model hub that models may be registered from"
    )
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

    @field_validator("model_roots")
    @classmethod
    def _name_places(cls, roots: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(map(_checked_root, roots))

    @field_validator("model_organisations")
    @classmethod
    def _name_organisations(cls, organisations: tuple[str, ...]) -> tuple[str, ...]:
        for each in organisations:
            if not re.fullmatch(r"[A-Za-z0-9][\w.-]{0,95}", each, re.ASCII):
                raise ValueError(f"must be names of organisations, such as CompVis, not {each[:100]!r}")
        return organisations

    @field_validator("trace_endpoint")
    @classmethod
    def _name_a_receiver(cls, value: str) -> str:
        # Reading `port` raises ValueError if it is not a number from 0 to 65535.
        place = urlsplit(value)
        if value and (place.scheme not in ("http", "https") or not place.hostname or place.port == 0):
            raise ValueError(f"must be a URL such as http://127.0.0.1:4317, not {value!r}")
        return value


def checked_scheme(url: str) -> str:
    """Return a URL whose scheme fsspec knows.

    Raises:
        ValueError: it has none, or one that needs a package that is not installed.
    """
    scheme = url.partition("://")[0]
    if not scheme:
        raise ValueError(f"{url!r} must begin with a scheme, such as s3://")
    try:
        get_filesystem_class(scheme)
    except (ImportError, ValueError) as error:
        raise ValueError(f"{scheme}:// needs a package that is not installed: {error}") from None
    return url


def _checked_root(root: str) -> str:
    plain = root.rstrip("/") or root
    if any(part in (".", "..") for part in plain.split("/")):
        raise ValueError(f"must not lead over . or ..: {root!r}")
    if "://" in plain:
        if not plain.partition("://")[2]:
            raise ValueError(f"must name a bucket or folder behind its scheme: {root!r}")
        return checked_scheme(plain)
    if not Path(plain).is_absolute():
        raise ValueError(f"must be an absolute path, or a URL such as s3://bucket/models, not {root!r}")
    return plain


class RoomSettings(SharedSettings):
    """Where a deployment finds its artefacts and its catalogue, and how it computes."""

    artifacts: str = Field(description="fsspec URL or folder of the artefact store")
    logs: str = Field(default="", description="folder of a log file for each room; empty means the replica's stderr")
    model_copies: str = Field(
        default="", description="folder of local copies of models from URLs of model_roots; empty: no URL is read"
    )
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
