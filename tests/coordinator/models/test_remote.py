"""Models on another file system: a local copy, checked file by file, of what was registered and nothing else."""

import shutil
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from support.registering import REFUSED, REGISTERED, Registrar, refused, registrar, settings_of
from unerase_backend.catalogue import EMBEDDED, Catalogue
from unerase_backend.catalogue.definitions import name_of
from unerase_backend.catalogue.opening import open_catalogue
from unerase_backend.catalogue.prompt_checks import text_reaches
from unerase_backend.catalogue.remote_files import _SMALL_BYTES, RemoteFiles
from unerase_backend.checking.models import check_model
from unerase_backend.coordinator.storage.database import Database
from unerase_backend.runtime.errors import UnsafeModelError
from unerase_backend.runtime.settings import RoomSettings

UNET = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture
def bucket() -> Iterator[str]:
    """A bucket in this process's memory with the testbed's reference in it, and an edit of it."""
    memory, name = fsspec.filesystem("memory"), f"bucket-{uuid.uuid4().hex[:8]}"
    memory.put(str(EMBEDDED.parent / "reference") + "/", f"/{name}/models/plain/", recursive=True)
    memory.put(str(EMBEDDED.parent / "uce" / "unet.safetensors"), f"/{name}/models/unet.safetensors")
    memory.pipe(f"/{name}/models/plain/README.md", b"of no use")
    memory.pipe(f"/{name}/secret/unet.safetensors", b"of another")
    yield f"memory://{name}/models"
    memory.rm(f"/{name}", recursive=True)


@pytest.fixture
def settings(tmp_path: Path, bucket: str) -> RoomSettings:
    return settings_of(tmp_path, model_roots=(bucket,), model_copies=str(tmp_path / "copies"))


@pytest.fixture
async def service(settings: RoomSettings, database: Database) -> AsyncIterator[Registrar]:
    async with registrar(settings, database) as service:
        yield service


def whole(bucket: str, **more: Any) -> dict[str, Any]:
    return {"pipeline": f"{bucket}/plain", "resolution": 32, **more}


async def internal_name(service: Registrar, name: str) -> str:
    found = await service.database.models.get(name)
    assert found is not None
    return name_of(found.content)


def remote(bucket: str, file: str) -> str:
    return bucket.removeprefix("memory:/") + "/" + file


async def test_a_remote_model_is_the_same_as_a_local_one(service: Registrar, bucket: str, tmp_path: Path) -> None:
    base = await service.register("far/base", whole(bucket))
    assert base.state == REGISTERED, base.error_message
    edited = await service.register("far/edited", {"base": "far/base", "unet": f"{bucket}/unet.safetensors"})
    assert edited.state == REGISTERED, edited.error_message
    known = Catalogue.load()
    assert base.model.digest == known.describe_model("testbed/reference").digest
    assert edited.model.digest == known.describe_model("testbed/uce").digest
    # The registration's own copies are those that rooms look for, without what nothing reads.
    copies = tmp_path / "copies"
    assert not list(copies.glob("new-*"))
    assert not list(copies.rglob("README.md"))
    name = await internal_name(service, "far/edited")
    catalogue = open_catalogue(service.settings, service.store)
    fsspec.filesystem("memory").rm(remote(bucket, "plain"), recursive=True)
    parts = catalogue.model_parts(name)
    assert (parts.folder / UNET).read_bytes() == (EMBEDDED.parent / "reference" / UNET).read_bytes()
    assert not check_model(catalogue, name).problems


async def test_another_machine_fetches_what_was_registered(service: Registrar, bucket: str, tmp_path: Path) -> None:
    await service.register("far/base", whole(bucket))
    name = await internal_name(service, "far/base")
    shutil.rmtree(tmp_path / "copies")
    parts = open_catalogue(service.settings, service.store).model_parts(name)
    assert (parts.folder / UNET).read_bytes() == (EMBEDDED.parent / "reference" / UNET).read_bytes()
    # A copy that was damaged since is not taken.
    (parts.folder / UNET).write_bytes(b"damaged")
    with pytest.raises(UnsafeModelError, match="is not as it was registered"):
        open_catalogue(service.settings, service.store).model_parts(name)
    # Nor is a file that was replaced in its place.
    shutil.rmtree(tmp_path / "copies")
    fsspec.filesystem("memory").pipe(remote(bucket, f"plain/{UNET}"), b"another")
    with pytest.raises(UnsafeModelError) as caught:
        open_catalogue(service.settings, service.store).model_parts(name)
    assert caught.value.reason == "WEIGHTS_CHANGED"
    assert not list((tmp_path / "copies").glob("*/plain"))


async def test_a_coordinator_fetches_no_weights(
    service: Registrar, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("unerase_backend.catalogue.remote_files._SMALL_BYTES", 100_000)
    assert _SMALL_BYTES > 100_000
    await service.register("far/base", whole(bucket))
    name = await internal_name(service, "far/base")
    shutil.rmtree(tmp_path / "copies")
    catalogue = open_catalogue(service.settings, service.store, weights=False)
    assert catalogue.describe_model(name).digest == Catalogue.load().describe_model("testbed/reference").digest
    assert text_reaches(catalogue, name)[0].read("a hourglass").tokens > 0
    assert (catalogue.model_parts(name).folder / UNET).stat().st_size == 0
    # Whoever loads them has a copy of its own.
    assert (open_catalogue(service.settings, service.store).model_parts(name).folder / UNET).stat().st_size > 100_000


async def test_what_lies_beyond_is_refused(service: Registrar, bucket: str) -> None:
    beyond = bucket.removesuffix("/models")
    for place, said in (
        (f"{beyond}/secret/unet.safetensors", "must lie in a place"),
        (f"{bucket}/../secret/unet.safetensors", "must lie in a place"),
        (f"{bucket}x/unet.safetensors", "must lie in a place"),
        (f"{bucket}/x::file:///etc/passwd", "must lie in a place"),
        ("/etc/passwd", "must lie in a place"),
        (f"{bucket}/nothing.safetensors", "does not exist"),
        (f"{bucket}/plain/README.md", "must be a .safetensors file"),
    ):
        error = await refused(service.begin("far/bad", {"base": "testbed/reference", "unet": place}))
        assert [violation.field for violation in error.violations] == ["model.entry.unet"]
        assert said in error.message


async def test_weights_that_can_carry_code_are_named_and_not_fetched(service: Registrar, bucket: str) -> None:
    memory = fsspec.filesystem("memory")
    memory.mv(remote(bucket, f"plain/{UNET}"), remote(bucket, f"plain/{UNET}").replace(".safetensors", ".bin"))
    found = await service.register("far/base", whole(bucket))
    assert (found.state, found.error_reason) == (REFUSED, "WEIGHTS_NOT_SAFETENSORS")
    assert "diffusion_pytorch_model.bin" in found.error_message


async def test_a_place_that_does_not_answer(service: Registrar, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = type(fsspec.filesystem("memory"))

    def down(*_: object, **__: object) -> None:
        raise ConnectionError("secret-host:9000 refused")

    monkeypatch.setattr(memory, "info", down)
    error = await refused(service.begin("far/base", whole(bucket)))
    assert error.reason == "PLACE_UNAVAILABLE"
    assert "secret-host" not in error.message


@pytest.mark.parametrize("name", ["../x.json", "/x.json", "a/../../x.json", "a\\x.json", "a\u202ex.json"])
def test_a_definition_cannot_lead_out_of_the_copies(tmp_path: Path, bucket: str, name: str) -> None:
    with pytest.raises(ValueError, match="name cannot be used"):
        RemoteFiles(tmp_path / "copies").local(f"{bucket}/plain", {name: "0" * 64})
    assert not list(tmp_path.rglob("x.json"))


def test_shards_come_with_their_index(tmp_path: Path, bucket: str) -> None:
    memory, files = fsspec.filesystem("memory"), RemoteFiles(tmp_path / "copies")
    index = '{"weight_map": {"a": "one.safetensors", "b": "../secret/unet.safetensors"}}'
    memory.pipe(remote(bucket, "w/m.safetensors.index.json"), index.encode())
    memory.pipe(remote(bucket, "w/one.safetensors"), b"one")
    path = files.local(f"{bucket}/w/m.safetensors.index.json", None)
    assert sorted(each.name for each in path.parent.iterdir()) == ["m.safetensors.index.json", "one.safetensors"]
