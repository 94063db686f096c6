"""Models that callers register: checked as in a catalogue, recorded once, and seen by their tenant alone."""

import json
import shutil
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml
from google.protobuf.struct_pb2 import Value

from support.fuzzing import leaks
from support.hostile_models import HOSTILE, TRIPPED
from support.registering import (
    CHECKING,
    REFUSED,
    REGISTERED,
    Registrar,
    refused,
    registrar,
    settings_of,
    whole,
)
from unerase.v1.models_pb2 import (
    CheckModelRequest,
    DeleteModelRequest,
    GetModelRequest,
    ImportStatusRequest,
    ListModelsRequest,
    Model,
    NewModel,
    RegisterModelRequest,
)
from unerase_backend.catalogue import EMBEDDED, Catalogue
from unerase_backend.coordinator.storage.database import Database
from unerase_backend.coordinator.storage.engine import create_engine
from unerase_backend.runtime.access import Gate, Quota, TokenList, entry_of, new_token
from unerase_backend.runtime.settings import RoomSettings


@pytest.fixture(scope="module")
async def refusing(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[Registrar, Path]]:
    """A service for what is refused at once, and its allowed folder: nothing of one request is there for the next."""
    folder = tmp_path_factory.mktemp("refusing")
    settings = settings_of(folder)
    root = Path(settings.model_roots[0])
    shutil.copytree(EMBEDDED.parent / "reference", root / "plain")
    (root / "link").symlink_to("/etc")
    (root / "l.pt").write_bytes(b"")
    (root / "loop").symlink_to("loop")
    database = Database(create_engine(f"sqlite+aiosqlite:///{folder / 'audits.sqlite'}"))
    await database.migrate()
    async with registrar(settings, database) as service:
        yield service, root
    await database.close()


async def model(service: Registrar, name: str) -> Model:
    found: Model = await service.call("GetModel", GetModelRequest(name=name))
    return found


async def test_a_model_exists_once_it_was_checked(service: Registrar, folder: Path) -> None:
    entry = {"base": "testbed/reference", "unet": str(folder / "unet.safetensors"), "erased": ["hourglass"]}
    begun = await service.begin("acme/edited", entry | {"method": "UCE"}, labels={"release": "2026-12"})
    assert (begun.state, begun.name) == (CHECKING, "acme/edited")
    assert begun.HasField("create_time")
    assert not begun.HasField("end_time")
    ended = await service.ended("acme/edited")
    assert (ended.state, ended.error_reason) == (REGISTERED, "")
    assert ended.check.family
    assert not ended.check.problems
    # The same files under a name of the operator's are the same model.
    expected = Catalogue.load().describe_model("testbed/uce")
    found = await model(service, "acme/edited")
    assert found == ended.model
    assert (found.digest, list(found.files)) == (expected.digest, list(expected.files))
    assert (found.name, found.base, found.method, list(found.erased)) == (
        "acme/edited",
        "testbed/reference",
        "UCE",
        ["hourglass"],
    )
    assert found.registered
    assert dict(found.labels) == {"release": "2026-12"}
    assert (found.steps, found.guidance_scale, found.resolution) == (
        expected.steps,
        expected.guidance_scale,
        expected.resolution,
    )
    assert not (await model(service, "testbed/uce")).registered
    listed = await service.call("ListModels", ListModelsRequest(page_size=3))
    assert listed.models[0].name == "acme/edited"
    following = await service.call("ListModels", ListModelsRequest(page_token=listed.next_page_token))
    names = [each.name for each in (*listed.models, *following.models)]
    assert names == sorted({*Catalogue.load().models, "acme/edited"})
    check = await service.call("CheckModel", CheckModelRequest(name="acme/edited"))
    assert check == ended.check
    assert check.name == "acme/edited"


async def test_a_chain_of_registered_models(service: Registrar, folder: Path) -> None:
    first = await service.register("own/base", whole(folder, guidance_scale=4.0))
    assert first.model.digest == Catalogue.load().describe_model("testbed/reference").digest
    negative = [{"kind": "negative-prompt", "text": "an hourglass"}]
    lora = {"base": "own/base", "unet": str(folder / "unet.safetensors"), "guards": negative}
    second = await service.register("own/edited", lora)
    assert second.state == REGISTERED, second.error_message
    assert (second.model.base, second.model.steps, second.model.guidance_scale) == ("own/base", 12, 4.0)
    assert second.model.weights_digest == Catalogue.load().describe_model("testbed/uce").digest
    assert [guard.kind for guard in second.model.guards] == ["negative-prompt"]
    in_use = await refused(service.delete("own/base"))
    assert (in_use.reason, in_use.metadata["used_by"]) == ("MODEL_IN_USE", "own/edited")
    await service.delete("own/edited")
    await service.delete("own/base")
    assert (await refused(service.delete("own/base"))).reason == "MODEL_NOT_FOUND"
    assert (await refused(model(service, "own/base"))).reason == "MODEL_NOT_FOUND"


async def test_a_repeated_request_changes_nothing(service: Registrar, folder: Path) -> None:
    begun = await service.begin("own/one", whole(folder), request_id="one")
    ended = await service.ended("own/one")
    assert await service.begin("own/one", whole(folder), request_id="one") == ended
    assert ended.create_time == begun.create_time
    for other in (("own/two", whole(folder)), ("own/one", whole(folder, steps=9))):
        assert (await refused(service.begin(*other, request_id="one"))).reason == "REQUEST_ID_REUSED"
    taken = await refused(service.begin("own/one", whole(folder), request_id="two"))
    assert (taken.reason, taken.code) == ("MODEL_EXISTS", grpc.StatusCode.ALREADY_EXISTS)


async def test_a_refused_model_gives_its_name_up(service: Registrar, folder: Path) -> None:
    unet = folder / "plain" / "unet" / "diffusion_pytorch_model.safetensors"
    unet.rename(unet.with_suffix(".bin"))
    found = await service.register("own/one", whole(folder), request_id="one")
    assert (found.state, found.error_reason) == (REFUSED, "WEIGHTS_NOT_SAFETENSORS")
    assert found.check.problems[0].description == found.error_message
    assert not found.HasField("model")
    assert (await refused(model(service, "own/one"))).reason == "MODEL_NOT_FOUND"
    unet.with_suffix(".bin").rename(unet)
    # The same request is answered the same, and another one may take the name.
    assert (await service.begin("own/one", whole(folder), request_id="one")).state == REFUSED
    assert (await service.register("own/one", whole(folder), request_id="two")).state == REGISTERED


@pytest.mark.parametrize(
    ("entry", "field", "said"),
    [
        ({}, "model.entry", "exactly one of pipeline, hub and base"),
        (
            {"pipeline": "plain", "resolution": 32},
            "model.entry.pipeline",
            "must lie in a place that the operator allows",
        ),
        ({"pipeline": "{root}/../models/plain"}, "model.entry.pipeline", "must lie in a place"),
        ({"pipeline": "{root}x/plain"}, "model.entry.pipeline", "must lie in a place"),
        ({"pipeline": "/etc"}, "model.entry.pipeline", "must lie in a place"),
        ({"pipeline": "s3://bucket/model"}, "model.entry.pipeline", "must lie in a place"),
        ({"pipeline": "file://{root}/plain"}, "model.entry.pipeline", "must lie in a place"),
        ({"pipeline": "{root}/nowhere"}, "model.entry.pipeline", "does not exist"),
        ({"pipeline": "{root}/link"}, "model.entry.pipeline", "is a link that leads out"),
        ({"pipeline": "{root}/loop"}, "model.entry.pipeline", "is a link that leads to itself"),
        ({"pipeline": "{root}/" + "x" * 300}, "model.entry.pipeline", "cannot be read: File name too long"),
        ({"pipeline": "{root}/plain"}, "model.entry", "must give the resolution"),
        ({"pipeline": "{root}/plain", "resolution": 32.5}, "model.entry.resolution", "integer"),
        ({"pipeline": "{root}/plain", "trust_remote_code": True}, "model.entry.trust_remote_code", "no such key"),
        ({"base": "nothing"}, "model.entry.base", "there is no model 'nothing'"),
        ({"base": "model:" + "0" * 64}, "model.entry.base", "there is no model"),
        ({"base": 7}, "model.entry.base", "string"),
        ({"base": "testbed/reference", "resolution": 32}, "model.entry.resolution", "is the base's"),
        (
            {"base": "testbed/reference", "never_learned": ["x"]},
            "model.entry.never_learned",
            "denoiser is the base's",
        ),
        ({"base": "testbed/reference", "unet": "{root}/plain/model_index.json"}, "model.entry.unet", ".safetensors"),
        (
            {"base": "testbed/reference", "lora": [{"file": "{root}/l.pt"}]},
            "model.entry.lora[0].file",
            "import it: unerase import l.pt --as lora",
        ),
        ({"base": "testbed/reference", "guards": [{"kind": "none"}]}, "model.entry.guards", "there is no guard 'none'"),
        ({"hub": "CompVis/x", "revision": "0" * 40, "resolution": 32}, "model.entry.hub", "does not allow"),
        ({"pipeline": "{root}/plain", "revision": "0" * 40}, "model.entry", "a hub id needs its revision"),
    ],
)
async def test_a_bad_entry_is_refused_at_once(
    refusing: tuple[Registrar, Path], entry: Mapping[str, Any], field: str, said: str
) -> None:
    service, folder = refusing
    placed = json.loads(json.dumps(entry).replace("{root}", str(folder)))
    error = await refused(service.begin("own/bad", placed))
    assert error.code == grpc.StatusCode.INVALID_ARGUMENT
    found = {violation.field: violation.description for violation in error.violations}
    assert said in found.get(field, ""), found
    assert (
        await refused(service.call("ImportStatus", ImportStatusRequest(name="own/bad")))
    ).reason == "MODEL_NOT_FOUND"


async def test_what_no_catalogue_could_hold(service: Registrar) -> None:
    new = NewModel(name="own/bad")
    new.entry.fields["steps"].number_value = float("nan")
    new.entry.fields["base"].null_value = 0
    error = await refused(service.call("RegisterModel", RegisterModelRequest(request_id="one", model=new)))
    assert {each.field: each.description for each in error.violations} == {
        "model.entry": "must not hold NaN or infinity"
    }
    new.entry.fields["steps"].number_value = 2.0**60
    new.entry.fields["nothing"].CopyFrom(Value())
    error = await refused(service.call("RegisterModel", RegisterModelRequest(request_id="one", model=new)))
    assert error.code == grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize("name", ["testbed/reference", "", "a b", "model:" + "0" * 64, "a" * 101])
async def test_a_bad_name(refusing: tuple[Registrar, Path], name: str) -> None:
    service, folder = refusing
    error = await refused(service.begin(name, whole(folder)))
    assert [violation.field for violation in error.violations] == ["model.name"]


async def test_bad_labels(service: Registrar, folder: Path) -> None:
    error = await refused(service.begin("own/one", whole(folder), labels={"Release": "1", "release": "x" * 256}))
    assert [violation.field for violation in error.violations] == ["model.labels"] * 2


@pytest.mark.parametrize("name", sorted(set(HOSTILE) - {"an_absolute_path"}))
async def test_no_hostile_model_is_registered(service: Registrar, settings: RoomSettings, name: str) -> None:
    spoil, reason = HOSTILE[name]
    root = Path(settings.model_roots[0])
    shutil.copytree(EMBEDDED.parent / "reference", root / "pipeline")
    replaced = {part: f"{root}/{yaml.safe_load(file)}" for part, file in spoil(root).items()}
    TRIPPED.clear()
    entry = {"pipeline": str(root / "pipeline"), "resolution": 32, **replaced}
    if reason == "INVALID_REQUEST":
        error = await refused(service.begin("own/hostile", entry))
        assert {violation.field for violation in error.violations} == {f"model.entry.{part}" for part in replaced}
        told = error.message
    else:
        found = await service.register("own/hostile", entry)
        assert (found.state, found.error_reason) == (REFUSED, reason), found.error_message
        assert found.check.problems[0].reason == reason
        told = found.error_message
    assert not TRIPPED
    assert str(root) not in told.replace(f"allows: {root}", "")
    assert not leaks(told.replace(str(root), ""))


async def test_links_out_of_what_is_only_listed_are_refused(service: Registrar, folder: Path, tmp_path: Path) -> None:
    """A guard's folder may hold any file, and its digest would tell what a link leads to."""
    (tmp_path / "secret.json").write_text("{}")
    (folder / "plain" / "more").mkdir()
    (folder / "plain" / "more" / "config.json").symlink_to(tmp_path / "secret.json")
    found = await service.register("own/one", whole(folder))
    assert (found.state, found.error_reason) == (REFUSED, "PATH_ESCAPES")


async def test_tenants_see_their_own(settings: RoomSettings, database: Database, folder: Path, tmp_path: Path) -> None:
    tokens = {tenant: new_token() for tenant in ("one", "two")}
    scopes = ("model:read", "model:write")
    entries = [entry_of(tenant, token, tenant, scopes, 4e9) for tenant, token in tokens.items()]
    reader = new_token()
    entries.append(entry_of("reader", reader, "one", ("model:read",), 4e9))
    (tmp_path / "tokens.json").write_text(TokenList(tokens=tuple(entries)).model_dump_json())
    async with registrar(settings, database, gate=Gate(tmp_path / "tokens.json"), quota=Quota(models=2)) as service:
        for tenant, steps in (("one", 7), ("two", 8)):
            service.token = tokens[tenant]
            assert (
                await service.register("own/base", whole(folder, steps=steps), request_id="same")
            ).model.steps == steps
        edited = {"base": "own/base", "unet": str(folder / "unet.safetensors")}
        assert (await service.register("own/edited", edited)).model.steps == 8
        full = await refused(service.begin("own/more", edited))
        assert (full.reason, full.code) == ("QUOTA_MODELS", grpc.StatusCode.RESOURCE_EXHAUSTED)
        service.token = tokens["one"]
        assert (await model(service, "own/base")).steps == 7
        assert (await refused(model(service, "own/edited"))).reason == "MODEL_NOT_FOUND"
        assert (await refused(service.delete("own/edited"))).reason == "MODEL_NOT_FOUND"
        secret = (await database.models.get("own/edited", "two")).definition  # type: ignore[union-attr]
        for method, request in (("GetModel", GetModelRequest), ("CheckModel", CheckModelRequest)):
            error = await refused(service.call(method, request(name=f"model:{secret}")))
            assert error.reason == "MODEL_NOT_FOUND"
        other = await refused(service.begin("own/of-another", {"base": f"model:{secret}"}))
        assert [violation.field for violation in other.violations] == ["model.entry.base"]
        service.token = reader
        assert (await model(service, "own/base")).steps == 7
        for call in (service.begin("own/x", edited), service.delete("own/base")):
            assert (await refused(call)).reason == "SCOPE_MISSING"


async def test_the_operators_models_stay(service: Registrar) -> None:
    for call in (
        service.delete("testbed/uce"),
        service.call("ImportStatus", ImportStatusRequest(name="testbed/uce")),
    ):
        assert (await refused(call)).reason == "MODEL_NOT_REGISTERED"
    assert (await refused(service.call("DeleteModel", DeleteModelRequest()))).reason == "INVALID_REQUEST"
