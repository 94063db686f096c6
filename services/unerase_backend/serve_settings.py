"""The settings of `unerase serve`: those that it passes on to the rooms, and its own.

Every setting can come from the environment, as in UNERASE_SERVE_PORT=50052. `serve_options` makes some of them options.
"""

import os
import re
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict, SettingsError

from unerase._settings import DEFAULT_PORT
from unerase_backend.coordinator.settings import ServiceSettings
from unerase_backend.runtime.settings import SharedSettings, checked_scheme
from unerase_backend.runtime.validation import problems_of

PREFIX = "UNERASE_SERVE_"

_CHOSEN = "; by default chosen from the free memory and the largest model"


class ServeSettings(ServiceSettings, SharedSettings, BaseSettings):
    """All settings of a local backend."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="forbid", frozen=True, hide_input_in_errors=True)

    port: int = Field(default=DEFAULT_PORT, ge=0, le=65535, description="port of the gRPC server; 0 takes a free one")
    metrics_port: int | None = Field(
        default=None, ge=0, le=65535, description="port of /metrics; 0 takes a free one; none means no /metrics"
    )
    rooms_metrics_port: int = Field(
        default=0, ge=0, le=65535, description="port where Ray serves the rooms' metrics; 0 takes a free one"
    )
    data_dir: Path = Field(
        default=Path("~/.local/share/unerase"), description="folder of the databases, the artefacts and the logs"
    )
    artifacts: str = Field(
        default="", description="folder or fsspec URL of the artefacts, which coordinators share; empty: in data_dir"
    )
    generation_threads: int | None = Field(
        default=None,
        ge=1,
        le=1024,
        description="torch threads of each process that makes pictures; by default one, or more for large models",
    )
    generation_replicas: int | None = Field(
        default=None,
        ge=1,
        le=1024,
        description="processes that make pictures; by default chosen from cores and memory, or from the GPUs",
    )
    batch_rows: int | None = Field(
        default=None, ge=2, le=1024, description=f"rows of every UNet call of generation{_CHOSEN}"
    )
    decode_batch: int | None = Field(default=None, ge=1, le=256, description=f"pictures in every VAE call{_CHOSEN}")
    models_in_memory: int | None = Field(
        default=None, ge=1, le=1024, description=f"models that generation holds{_CHOSEN}"
    )
    gradient_rows: int | None = Field(
        default=None, ge=1, le=256, description=f"most rows of an attack's UNet call{_CHOSEN}"
    )
    models_kept: int | None = Field(default=None, ge=1, le=1024, description=f"models that attack holds{_CHOSEN}")
    judge_batch: int = Field(default=32, ge=1, le=512, description="pictures in one call of a judge")
    gpu_memory_gb: float | None = Field(
        default=None,
        gt=0,
        le=100_000,
        allow_inf_nan=False,
        description="memory of each GPU that may be used; by default what is free at the start",
    )
    attack_timeout_seconds: float = Field(
        default=6 * 3600.0,
        gt=0,
        le=30 * 86400,
        allow_inf_nan=False,
        description="seconds that one unit of an attack may take",
    )
    object_store_mb: int = Field(default=256, ge=80, description="shared memory for pictures between the rooms")
    # Ray always opens its own ports on every interface. A token keeps other machines from giving it work.
    ray_auth: Literal["token", "disabled"] = Field(default="token", description="authentication of Ray's own ports")

    @field_validator("tls_certificate", "tls_key", "tls_client_ca", "tokens", "webhook_secrets", "webhook_ca")
    @classmethod
    def _find_the_file(cls, path: str) -> str:
        return _absolute(path) if path else ""

    @field_validator("catalogues")
    @classmethod
    def _find_the_catalogues(cls, paths: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(map(_absolute, paths))

    @field_validator("artifacts")
    @classmethod
    def _know_the_store(cls, value: str) -> str:
        return checked_scheme(value) if "://" in value else value

    @field_validator("model_roots", mode="before")
    @classmethod
    def _find_the_roots(cls, roots: Any) -> Any:
        # What is no list of texts is refused by its type.
        listed = roots if isinstance(roots, list | tuple) and all(isinstance(each, str) for each in roots) else ()
        return tuple(each if "://" in each else _folder(each) for each in listed) or roots

    @model_validator(mode="after")
    def _refuse_unknown_environment(self) -> "ServeSettings":
        known = {PREFIX + name.upper() for name in type(self).model_fields}
        unknown = sorted(name for name in os.environ if name.upper().startswith(PREFIX) and name.upper() not in known)
        if unknown:
            raise ValueError(f"the environment sets {', '.join(unknown)}, which is not a setting")
        return self


def read_settings(**given: Any) -> ServeSettings:
    """Return the settings that are given, with those of the environment and the defaults; None is not given.

    Raises:
        ValueError: a setting is bad or does not fit another one; a line for each, with its name.
    """
    try:
        return ServeSettings(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        raise ValueError("\n".join(problems_of(error, "settings"))) from None
    except SettingsError as error:
        raise ValueError(_not_json(error)) from None


def _not_json(error: SettingsError) -> str:
    """Return what is wrong with a variable that must hold JSON; the error's message names its field alone."""
    named = re.search(r'field "(\w+)"', str(error))
    if named is None:
        return str(error)
    return f'{PREFIX}{named[1].upper()}: must be JSON, in which a list of texts is written ["a", "b"]'


def _folder(path: str) -> str:
    """Return the absolute path of a folder as it is written: links are followed where a model is named."""
    folder = Path(os.path.abspath(Path(path).expanduser()))
    if not path or not folder.is_dir():
        raise ValueError(f"there is no folder {path!r}")
    return str(folder)


def _absolute(path: str) -> str:
    """Return an absolute path, because the rooms' processes have other working folders."""
    return str(Path(path).expanduser().resolve())
