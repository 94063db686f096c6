"""Models over the wire: a broken one is marked and never breaks the list; a check is made once."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml

from support.backend import own_evaluations
from support.registering import nothing_registered
from support.small_files import write_pipeline
from unerase import AsyncClient, Client, ClientSettings, RetryConfig, UneraseError
from unerase.v1.models_pb2 import ModelCheck
from unerase.v1.models_pb2_grpc import add_ModelServiceServicer_to_server
from unerase_backend.catalogue import Catalogue
from unerase_backend.coordinator.api.interceptor import Interceptor
from unerase_backend.coordinator.api.model_service import ModelServicer
from unerase_backend.coordinator.metrics import Metrics
from unerase_backend.coordinator.storage.database import Database
from unerase_backend.coordinator.storage.engine import create_engine
from unerase_backend.runtime.access import Gate

from ..conftest import write_catalogue
from .conftest import Service

QUICK = ClientSettings(retry=RetryConfig(max_attempts=1))


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Catalogue:
    """Models that can be described, and one between them that cannot."""
    folder = tmp_path_factory.mktemp("mixed")
    path = write_catalogue(folder)
    unet = write_pipeline(folder / "bin", "bin") / "unet"
    (unet / "diffusion_pytorch_model.safetensors").rename(unet / "diffusion_pytorch_model.bin")
    content = yaml.safe_load(path.read_text())
    content["models"] |= {
        "mine/bin": {"pipeline": "bin", "resolution": 32, "erased": ["hourglass"], "method": "MACE"},
        "mine/made-of-bin": {"base": "mine/bin", "unet": "never.safetensors"},
    }
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return Catalogue.load([str(path)], embedded=Path("none"))


@pytest.fixture(params=[10.0, 0.0], ids=["pages", "pages that end at once"])
async def client(mixed: Catalogue, request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[AsyncClient]:
    """A client of the catalogue; with no time for a page each holds one model."""
    server = grpc.aio.server(interceptors=[Interceptor(Metrics(), Gate(None))])
    none: Any = None
    database = Database(create_engine(f"sqlite+aiosqlite:///{tmp_path / 'audits.sqlite'}"))
    await database.migrate()
    registered = nothing_registered(mixed, none, database)
    servicer = ModelServicer(mixed, none, none, none, none, registered, none, page_seconds=request.param)
    add_ModelServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with AsyncClient(f"127.0.0.1:{port}", settings=QUICK) as connected:
        yield connected
    await server.stop(None)
    await database.close()


async def test_a_broken_model_is_marked_among_the_others(client: AsyncClient, mixed: Catalogue) -> None:
    listed = {model.name: model for model in await client.models()}
    assert list(listed) == sorted(mixed.models)
    broken = {name for name, model in listed.items() if model.problem}
    assert broken == {"mine/bin", "mine/made-of-bin"}
    assert all(bool(model.digest) == (name not in broken) for name, model in listed.items())
    marked = listed["mine/bin"]
    assert "mine/bin" in marked.problem
    assert "diffusion_pytorch_model.bin" in marked.problem
    assert (marked.method, list(marked.erased), marked.resolution) == ("MACE", ["hourglass"], 32)
    assert (await client.model("mine/bin")) == marked


async def test_an_unknown_model_is_not_found(client: AsyncClient) -> None:
    with pytest.raises(UneraseError) as refused:
        await client.model("nothing")
    assert refused.value.reason == "MODEL_NOT_FOUND"


async def test_a_check_is_made_once_and_again_where_it_found_something(service: Service) -> None:
    models = service.models
    models.broken = {"small/edited"}
    models.made = 0
    async with AsyncClient(service.address, settings=QUICK) as connected:
        for _ in range(3):
            assert await connected.check_model("small/never") == ModelCheck(name="small/never")
        assert models.made == 1
        for made in (2, 3):
            found = await connected.check_model("small/edited")
            assert [problem.reason for problem in found.problems] == ["WEIGHTS_MISSING"]
            assert models.made == made
        for name, reason in (("nothing", "MODEL_NOT_FOUND"), ("", "INVALID_REQUEST")):
            with pytest.raises(UneraseError) as refused:
                await connected.check_model(name)
            assert refused.value.reason == reason
    assert models.made == 3


async def test_the_families_are_listed_with_what_each_evaluation_does(service: Service) -> None:
    evaluations = own_evaluations()
    async with AsyncClient(service.address, settings=QUICK) as connected:
        families = {family.name: family for family in await connected.backbones()}
    with Client(service.address) as blocking:
        assert list(families.values()) == await asyncio.to_thread(blocking.backbones)
    assert families["stable-diffusion-xl"].loaded
    for family in families.values():
        assert {each.name for each in family.evaluations} == set(evaluations)
    of_dev = {each.name: each.not_applicable for each in families["flux-dev"].evaluations}
    assert "predictions without guidance are needed" in of_dev["likelihood"].reason
    assert not of_dev["noise-based"].reason
