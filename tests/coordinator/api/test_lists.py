"""Lists of audits and models by filter and order: what a caller gets, page by page, and what is refused."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from support.registering import nothing_registered
from unerase.v1.audits_pb2 import (
    AUDIT_STATE_CANCELLED,
    Audit,
    AuditSpec,
    CancelAuditRequest,
    CreateAuditRequest,
    ListAuditsRequest,
    ListAuditsResponse,
)
from unerase.v1.models_pb2 import ListModelsRequest, ListModelsResponse
from unerase.v1.types_pb2 import EvaluationDescription
from unerase_backend.catalogue import Catalogue
from unerase_backend.coordinator.api.audit_service import AuditServicer
from unerase_backend.coordinator.api.model_service import ModelServicer
from unerase_backend.coordinator.storage.database import Database
from unerase_backend.coordinator.storage.engine import create_engine
from unerase_backend.runtime.artifacts import ArtifactStore
from unerase_backend.runtime.errors import AlreadyExistsError, InvalidRequestError

from ..conftest import write_catalogue
from .auditing import auditing

NO_CONTEXT: Any = None


@pytest.fixture
async def audits(
    tmp_path: Path, catalogue: Catalogue, store: ArtifactStore, descriptions: dict[str, EvaluationDescription]
) -> AsyncIterator[AuditServicer]:
    database = Database(create_engine(f"sqlite+aiosqlite:///{tmp_path / 'audits.sqlite'}"))
    await database.migrate()
    yield auditing(database, catalogue, store, descriptions)
    await database.close()


def asked(request_id: str, subject: str = "small/edited", seed: int = 0, **labels: str) -> CreateAuditRequest:
    spec = AuditSpec(subject=subject, concept="hourglass", seed_base=seed)
    return CreateAuditRequest(request_id=request_id, spec=spec, labels=labels)


async def create(audits: AuditServicer, request: CreateAuditRequest) -> Audit:
    return await audits.CreateAudit(request, NO_CONTEXT)


async def listed(audits: AuditServicer, **fields: Any) -> ListAuditsResponse:
    return await audits.ListAudits(ListAuditsRequest(**fields), NO_CONTEXT)


def problem(error: pytest.ExceptionInfo[InvalidRequestError]) -> str:
    (violation,) = error.value.violations
    return f"{violation.field}: {violation.description}"


async def test_audits_are_found_by_their_labels(audits: AuditServicer) -> None:
    red = await create(audits, asked("one", team="red"))
    blue = await create(audits, asked("two", team="blue", seed=1))
    assert dict(red.labels) == {"team": "red"}
    found = await listed(audits, filter="labels.team = red AND subject = small/edited")
    assert [audit.id for audit in found.audits] == [red.id]
    assert found.audits[0].labels == red.labels
    await audits.CancelAudit(CancelAuditRequest(id=blue.id), NO_CONTEXT)
    found = await listed(audits, filter="state = CANCELLED OR labels.team = red", order_by="create_time")
    assert [audit.id for audit in found.audits] == [red.id, blue.id]
    assert found.audits[1].state == AUDIT_STATE_CANCELLED


async def test_a_token_continues_the_list_that_gave_it_and_no_other(audits: AuditServicer) -> None:
    for number in range(3):
        await create(audits, asked(f"r{number}", seed=number, team="red"))
    first = await listed(audits, page_size=2, filter="labels:team", order_by="create_time")
    rest = await listed(
        audits, page_size=2, filter=" labels:team ", order_by="create_time", page_token=first.next_page_token
    )
    assert [audit.request_id for audit in [*first.audits, *rest.audits]] == ["r0", "r1", "r2"]
    assert not rest.next_page_token
    plain = await listed(audits, page_size=2)
    for token, fields in (
        (first.next_page_token, {}),
        (first.next_page_token, {"filter": "labels:other", "order_by": "create_time"}),
        (first.next_page_token, {"filter": "labels:team"}),
        (plain.next_page_token, {"filter": "labels:team"}),
        (plain.next_page_token, {"order_by": "end_time"}),
    ):
        with pytest.raises(InvalidRequestError) as refused:
            await listed(audits, page_size=2, page_token=token, **fields)
        assert "another filter or order" in problem(refused)


async def test_a_request_that_is_repeated_with_other_labels_is_another(audits: AuditServicer) -> None:
    audit = await create(audits, asked("same", team="red"))
    assert (await create(audits, asked("same", team="red"))).id == audit.id
    for other in (asked("same"), asked("same", team="blue"), asked("same", team="red", more="x")):
        with pytest.raises(AlreadyExistsError):
            await create(audits, other)


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("Team", "x", "the key 'Team' must be 1 to 63 lower-case letters"),
        ("", "x", "the key '' must be"),
        ("x" * 64, "x", "must be 1 to 63"),
        ("team", "x" * 256, "the value of 'team' must be at most 255 characters, not 256"),
        ("team", "a\nb", "no control and no invisible characters"),
        ("team", "a\0b", "no control and no invisible characters"),
    ],
)
async def test_a_label_that_is_none_is_refused(audits: AuditServicer, key: str, value: str, says: str) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        await create(audits, asked("r", **{key: value}))
    assert problem(refused).startswith("labels: ")
    assert says in problem(refused)


async def test_what_is_no_filter_and_no_order_is_refused(audits: AuditServicer) -> None:
    for field, reason in (("filter", "FILTER_INVALID"), ("order_by", "ORDER_INVALID")):
        with pytest.raises(InvalidRequestError) as refused:
            await listed(audits, **{field: "subject"})
        assert problem(refused).startswith(f"{field}: ")
        assert refused.value.reason == reason


@pytest.fixture
async def models(tmp_path: Path) -> AsyncIterator[ModelServicer]:
    path = write_catalogue(tmp_path)
    content = yaml.safe_load(path.read_text())
    content["models"]["small/edited"] |= {"labels": {"release": "2026-12", "team/owner": "safety"}, "method": "UCE"}
    content["models"]["small/again"] |= {"labels": {"release": "2027-01"}}
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    none: Any = None
    database = Database(create_engine(f"sqlite+aiosqlite:///{tmp_path / 'audits.sqlite'}"))
    await database.migrate()
    catalogue = Catalogue.load([str(path)], embedded=Path("none"))
    yield ModelServicer(catalogue, none, none, none, none, nothing_registered(catalogue, none, database), none)
    await database.close()


async def models_listed(models: ModelServicer, **fields: Any) -> ListModelsResponse:
    return await models.ListModels(ListModelsRequest(**fields), NO_CONTEXT)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ('labels.release = "2026-12"', ["small/edited"]),
        ("labels:release", ["small/again", "small/edited"]),
        ('labels."team/owner":*', ["small/edited"]),
        ("method = UCE OR base = small/edited", ["small/again", "small/edited"]),
        ("erased:hourglass AND NOT labels.release = 2027-01", ["small/edited"]),
        ("registered = true", []),
    ],
)
async def test_models_are_found_by_what_their_entry_says(models: ModelServicer, text: str, names: list[str]) -> None:
    found = await models_listed(models, filter=text)
    assert [model.name for model in found.models] == names
    backwards = await models_listed(models, filter=text, order_by="name desc")
    assert [model.name for model in backwards.models] == names[::-1]


async def test_models_come_page_by_page_in_either_order(models: ModelServicer) -> None:
    for order in ("", "name desc"):
        names: list[str] = []
        token = ""
        while token or not names:
            page = await models_listed(models, page_size=2, page_token=token, order_by=order, filter="name >= small")
            names += [model.name for model in page.models]
            token = page.next_page_token
        assert names == sorted(names, reverse=bool(order))
        assert len(names) == 4
    first = await models_listed(models, page_size=1)
    with pytest.raises(InvalidRequestError) as refused:
        await models_listed(models, page_token=first.next_page_token, order_by="name desc")
    assert "another filter or order" in problem(refused)


def test_a_catalogue_with_a_label_that_is_none_is_refused(tmp_path: Path) -> None:
    path = write_catalogue(tmp_path)
    content = yaml.safe_load(path.read_text())
    content["models"]["small/edited"] |= {"labels": {"Release": "x"}}
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(InvalidRequestError, match=r"labels.*the key 'Release' must be"):
        Catalogue.load([str(path)], embedded=Path("none"))
