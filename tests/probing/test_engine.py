"""The engine of the probes: what it refuses, how it ends, what its deployment serves."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import replace

import pydantic
import pytest

from support.backend import LocalBackend
from unerase.internal.v1alpha1 import probing_pb2
from unerase.internal.v1alpha1.generation_pb2 import GenerateRequest, GenerateResponse
from unerase.internal.v1alpha1.probing_pb2 import ListProbesRequest, ProbeRequest
from unerase.internal.v1alpha1.units_pb2 import Unit
from unerase_backend.probing import engine as module
from unerase_backend.probing.deployment import Probing
from unerase_backend.probing.engine import ProbingEngine
from unerase_backend.probing.settings import ProbingSettings
from unerase_backend.runtime.errors import InvalidRequestError, NotFoundError, UnavailableError


async def never_answers(request: GenerateRequest) -> AsyncIterator[GenerateResponse]:
    await asyncio.Event().wait()
    yield GenerateResponse()


async def test_an_unknown_probe_is_not_found(local: LocalBackend) -> None:
    # An attack is none of the probes.
    for name in ("no-such-probe", "textual-inversion", ""):
        with pytest.raises(NotFoundError, match="standard-prompt") as caught:
            async for _ in local.probing.Probe(ProbeRequest(unit=local.unit(name))):
                pass
        assert caught.value.reason == "EVALUATION_NOT_FOUND"


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (lambda unit: unit.ClearField("cases"), "unit.cases"),
        (lambda unit: unit.ClearField("model"), "unit.model"),
        (lambda unit: unit.ClearField("steps"), "unit.steps"),
    ],
)
async def test_bad_units_name_their_field(local: LocalBackend, change: Callable[[Unit], None], field: str) -> None:
    unit = local.unit("noise-based")
    change(unit)
    with pytest.raises(InvalidRequestError) as caught:
        await local.run(unit)
    assert [violation.field for violation in caught.value.violations] == [field]


async def test_an_error_of_the_backends_comes_through_and_ends_what_else_was_asked(local: LocalBackend) -> None:
    open_streams = 0

    async def one_fails(request: GenerateRequest) -> AsyncIterator[GenerateResponse]:
        nonlocal open_streams
        open_streams += 1
        try:
            if "heart" in request.trajectories[0].conditioning.text:
                raise UnavailableError("gone")
            async for response in never_answers(request):
                yield response
        finally:
            open_streams -= 1

    with pytest.raises(UnavailableError, match="gone"):
        await local.run(local.unit("interference"), replace(local.models, generate_stream=one_fails))
    assert open_streams == 0


async def test_a_silent_probe_shows_that_it_lives(local: LocalBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HEARTBEAT_SECONDS", 0.01)
    engine = ProbingEngine(replace(local.models, generate_stream=never_answers))
    async with aclosing(engine.Probe(ProbeRequest(unit=local.unit("standard-prompt")))) as responses:
        assert (await anext(responses)).event.HasField("progress")


async def test_probes_are_listed_in_order_of_name(local: LocalBackend) -> None:
    listed = (await local.probing.ListProbes(ListProbesRequest())).probes
    names = [description.name for description in listed]
    assert names == sorted(names)
    assert {
        "diffusion-completion",
        "interference",
        "judge-quality",
        "likelihood",
        "noise-based",
        "standard-prompt",
        "unconditional-rate",
    } <= set(names)
    assert not any(description.attack for description in listed)
    deciding = {description.name: list(description.deciding_arms) for description in listed}
    assert deciding["noise-based"] == ["noise"]


def test_the_deployment_has_the_services_methods() -> None:
    methods = {method.name for method in probing_pb2.DESCRIPTOR.services_by_name["ProbingService"].methods}
    assert methods == {name for name in vars(Probing) if name[0].isupper()}


def test_an_unknown_setting_is_an_error() -> None:
    with pytest.raises(pydantic.ValidationError):
        ProbingSettings(artifacts="unused", replica=2)
