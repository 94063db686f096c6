"""Audits in a storm: processes are killed at random moments, and all must come out as if nothing had happened."""

import random
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from google.protobuf import json_format

from chaos.campaign import content_of, follow_campaign, lost_of
from chaos.fleet import BACKEND, STALLED, Fleet, Shared
from chaos.insistence import SETTINGS, insist
from unerase import Client, UneraseError
from unerase.v1.audits_pb2 import AUDIT_STATE_SUCCEEDED, AuditSpec, Battery, ReportContent
from unerase.v1.campaigns_pb2 import CampaignEvent
from unerase.v1.types_pb2 import EvaluationRequest

# The whole backend takes its time to come back, and is killed less often than the rest.
_WEIGHTS = {BACKEND: 1, STALLED: 2}
_WEIGHT = 4
# How many places are named in which a report differs.
_SHOWN = 5


@dataclass
class Toll:
    """What a storm has cost."""

    kills: Counter[str] = field(default_factory=Counter)
    audits: int = 0
    campaigns: int = 0
    lost: int = 0
    """Audits that did not succeed, whose events have a gap, or whose observations are not there exactly once; campaigns
    in which a cell is not there exactly once.
    """
    differing: int = 0
    """Reports whose content is not the undisturbed one, byte for byte."""
    reasons: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        parts = ", ".join(f"{victim} {count}" for victim, count in sorted(self.kills.items()))
        return (
            f"kills {self.kills.total()} ({parts}), audits {self.audits}, "
            f"campaigns {self.campaigns}, lost {self.lost}, differing reports {self.differing}"
        )


@dataclass(frozen=True)
class Undisturbed:
    """How an audit comes out in calm weather."""

    content: bytes
    observations: list[bytes]
    """As they stand in the database, by unit and ordinal."""


def specs() -> list[AuditSpec]:
    """Return audits of some seconds that use every room."""
    noise = EvaluationRequest(name="noise-based")
    noise.parameters.update({"etas": [1.0, 1.5], "variance_scales": [1.0]})
    inversion = EvaluationRequest(name="textual-inversion")
    inversion.parameters.update({"steps": 12, "batch_size": 4})
    batteries = (
        [EvaluationRequest(name="standard-prompt"), noise],
        [inversion],
        [EvaluationRequest(name="likelihood")],
    )
    return [
        AuditSpec(
            subject="testbed/uce",
            concept="hourglass",
            cases=8,
            steps=8,
            seed_base=seed,
            battery=Battery(evaluations=evaluations, allow_incomplete=True),
        )
        for seed, evaluations in enumerate(batteries, start=1)
    ]


def calm(fleet: Fleet | Shared, wanted: Sequence[AuditSpec]) -> list[Undisturbed]:
    """Run each audit once, undisturbed."""
    found = []
    with Client(fleet.addresses[0], settings=SETTINGS) as client:
        for spec in wanted:
            audit = client.audit(spec)
            assert audit.state == AUDIT_STATE_SUCCEEDED, audit.error_message
            found.append(Undisturbed(_content(client, audit.id), fleet.observations(audit.id)))
    return found


def storm(
    fleet: Fleet | Shared,
    wanted: Sequence[AuditSpec],
    undisturbed: Sequence[Undisturbed],
    campaign: bytes = b"",
    *,
    seed: int,
    seconds: float,
    mean_wait_seconds: float = 5.0,
    kills_in_a_round: int = 6,
    say: Callable[[str], None] = lambda _: None,
) -> Toll:
    """Run the audits side by side, again and again for `seconds` and once at least, while things are killed.

    With the content of the `campaign`'s undisturbed report, the campaign runs beside them.
    The moments are random. After so many kills a round ends in peace, since what is killed at once goes nowhere.
    """
    chance, toll = random.Random(seed), Toll()
    weights = [_WEIGHTS.get(victim, _WEIGHT) for victim in fleet.victims]
    end = time.monotonic() + seconds
    with ThreadPoolExecutor(len(wanted) + 1) as threads:
        while True:
            fleet.forget()
            followed = [
                threads.submit(_follow, fleet.addresses[chance.randrange(len(fleet.addresses))], spec)
                for spec in wanted
            ]
            beside = [threads.submit(follow_campaign, fleet.addresses[0])] if campaign else []
            ended = _ended([*followed, *beside])
            before = toll.kills.total()
            while toll.kills.total() < before + kills_in_a_round:
                if ended.wait(chance.expovariate(1 / mean_wait_seconds)):
                    break
                victim = chance.choices(fleet.victims, weights)[0]
                if fleet.kill(victim):
                    toll.kills[victim] += 1
                    say(f"killed: {victim}")
            for follower, expected in zip(followed, undisturbed, strict=True):
                _judge(fleet, follower, expected, toll)
            for follower_of_campaign in beside:
                _judge_campaign(fleet.addresses[0], follower_of_campaign, campaign, toll)
            say(str(toll))
            if time.monotonic() > end:
                return toll


def _ended(followed: Sequence[Future[Any]]) -> threading.Event:
    ended, left = threading.Event(), threading.Semaphore(len(followed) - 1)

    def count(_: object) -> None:
        if not left.acquire(blocking=False):
            ended.set()

    for each in followed:
        each.add_done_callback(count)
    return ended


def _follow(address: str, spec: AuditSpec) -> tuple[str, list[str]]:
    """Ask for an audit and watch it to its end; returns its id, and the units in the order in which they were done.

    The client itself refuses a gap between events.
    """
    request_id = uuid.uuid4().hex
    with Client(address, settings=SETTINGS) as client:
        audit_id = insist(lambda: client.create_audit(spec, request_id=request_id).id)
        events = list(client.watch(audit_id))
    return audit_id, [event.unit_done.unit for event in events if event.WhichOneof("event") == "unit_done"]


def _judge(fleet: Fleet | Shared, follower: Future[tuple[str, list[str]]], expected: Undisturbed, toll: Toll) -> None:
    toll.audits += 1
    try:
        audit_id, done = follower.result()
    except UneraseError as error:
        toll.lost += 1
        toll.reasons.append(f"{error.code.name} {error.reason}: {error.message}")
        return
    with Client(fleet.addresses[0], settings=SETTINGS) as client:
        # What was killed last may still be on its way back.
        audit = insist(lambda: client.get_audit(audit_id))
        observations = fleet.observations(audit_id)
        whole = (
            audit.state == AUDIT_STATE_SUCCEEDED
            and len(done) == len(set(done)) == audit.units_done == audit.units_total
            and observations == expected.observations
        )
        if not whole:
            toll.lost += 1
            toll.reasons.append(
                f"state {audit.state}, {len(done)} of {audit.units_total} units, {len(observations)} of "
                f"{len(expected.observations)} observations: {audit.error_reason} {audit.error_message}"
            )
        elif (content := _content(client, audit_id)) != expected.content:
            toll.differing += 1
            where = ", ".join(_differences(_as_dict(expected.content), _as_dict(content))[:_SHOWN])
            toll.reasons.append(f"another report of seed base {audit.spec.seed_base}: {where}")


def _judge_campaign(
    address: str, follower: Future[tuple[str, list[CampaignEvent]]], expected: bytes, toll: Toll
) -> None:
    toll.campaigns += 1
    try:
        campaign_id, events = follower.result()
    except UneraseError as error:
        toll.lost += 1
        toll.reasons.append(f"campaign: {error.code.name} {error.reason}: {error.message}")
        return
    if reason := lost_of(address, campaign_id, events):
        toll.lost += 1
        toll.reasons.append(reason)
    elif content_of(address, campaign_id) != expected:
        toll.differing += 1
        toll.reasons.append("another report of the campaign")


def _as_dict(content: bytes) -> dict[str, Any]:
    return json_format.MessageToDict(ReportContent.FromString(content))


def _differences(expected: Any, found: Any, path: str = "content") -> list[str]:
    """Return where two values differ, each place with both."""
    if isinstance(expected, dict) and isinstance(found, dict):
        keys = sorted({*expected, *found})
        return [each for key in keys for each in _differences(expected.get(key), found.get(key), f"{path}.{key}")]
    if isinstance(expected, list) and isinstance(found, list) and len(expected) == len(found):
        pairs = enumerate(zip(expected, found, strict=True))
        return [each for index, pair in pairs for each in _differences(*pair, f"{path}[{index}]")]
    return [] if expected == found else [f"{path} is {str(found)[:80]} in place of {str(expected)[:80]}"]


def _content(client: Client, audit_id: str) -> bytes:
    return insist(lambda: client.report_message(audit_id)).content.SerializeToString(deterministic=True)
