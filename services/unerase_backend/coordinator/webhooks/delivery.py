"""Delivers the webhooks that are due: at least once, each with the same id, and again for a day or so if need be.

The database says what is due, and a claim keeps two coordinators from sending the same at once, so that deliveries
survive every restart. A webhook that cannot be delivered changes nothing of its audit or campaign.
"""

import asyncio
import logging
import ssl
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextvars import Context
from functools import partial
from typing import Protocol

import aiohttp

from unerase_backend.coordinator.metrics import Metrics
from unerase_backend.coordinator.storage.webhooks import DueWebhook, Webhooks, WebhookState
from unerase_backend.coordinator.webhooks.addresses import RefusedAddressError, Resolve, resolve
from unerase_backend.coordinator.webhooks.hosts import Hosts, Target
from unerase_backend.coordinator.webhooks.posting import SECONDS, post
from unerase_backend.coordinator.webhooks.signing import Secrets, signed_headers

_logger = logging.getLogger(__name__)

ATTEMPTS = 12
"""With `wait_seconds` some 32 hours."""
_FIRST_SECONDS, _GROWTH, _LONGEST_SECONDS = 5.0, 4.0, 6 * 3600.0
# At once in all, and for one tenant: a host that answers late keeps no other tenant's webhooks back.
_AT_ONCE, _OF_A_TENANT = 32, 4
CLAIM_SECONDS = 2 * SECONDS
"""Longer than an attempt takes: a claim that has run out was a dead coordinator's."""
_KEPT_SECONDS = 7 * 86400.0
_GONE = 410


class Send(Protocol):
    """`post`, with all that does not change."""

    def __call__(self, target: Target, body: bytes, headers: dict[str, str]) -> Awaitable[int]:
        """Return the status of the answer."""


def wait_seconds(attempt: int) -> float:
    """Return how long to wait after an attempt, from 1, that failed."""
    return float(min(_FIRST_SECONDS * _GROWTH ** (attempt - 1), _LONGEST_SECONDS))


def sending(authorities: str = "", resolver: Resolve = resolve) -> Send:
    """Return what sends a webhook; `authorities` is a PEM file of those trusted beside the system's."""
    context = ssl.create_default_context()
    if authorities:
        context.load_verify_locations(authorities)
    return partial(post, context=context, resolver=resolver)


class Deliveries:
    """Delivers webhooks in this process, beside other coordinators."""

    def __init__(
        self,
        webhooks: Webhooks,
        hosts: Hosts,
        secrets: Secrets,
        metrics: Metrics,
        send: Send,
        *,
        wait: Callable[[int], float] = wait_seconds,
        claim_seconds: float = CLAIM_SECONDS,
    ) -> None:
        self._webhooks = webhooks
        self._hosts = hosts
        self._secrets = secrets
        self._metrics = metrics
        self._send = send
        self._wait = wait
        self._claim_ns = int(claim_seconds * 1e9)
        self._running: dict[asyncio.Task[None], str] = {}

    async def deliver(self) -> None:
        """Begin what is due, as far as there is room; call it again and again."""
        taken = Counter(self._running.values())
        for webhook_id, tenant in await self._webhooks.due(time.time_ns(), _OF_A_TENANT):
            if len(self._running) >= _AT_ONCE:
                return
            if taken[tenant] >= _OF_A_TENANT:
                continue
            now = time.time_ns()
            claimed = await self._webhooks.claim(webhook_id, now, now + self._claim_ns)
            if claimed is not None:
                taken[tenant] += 1
                task = asyncio.create_task(self._attempt(claimed), context=Context())
                self._running[task] = tenant
                task.add_done_callback(self._running.pop)

    async def settled(self) -> None:
        """Return once every attempt that has begun is over."""
        while self._running:
            await asyncio.gather(*self._running, return_exceptions=True)

    async def forget(self) -> None:
        """Remove the records of webhooks that were settled a week ago."""
        await self._webhooks.forget(time.time_ns() - int(_KEPT_SECONDS * 1e9))

    async def close(self) -> None:
        """Interrupt every attempt; it is made again once its claim has run out."""
        for task in self._running:
            task.cancel()
        await self.settled()

    async def _attempt(self, webhook: DueWebhook) -> None:
        try:
            await self._settle(webhook, *await self._sent(webhook))
        except Exception:
            _logger.exception("a webhook could not be settled; it is tried again")

    async def _sent(self, webhook: DueWebhook) -> tuple[WebhookState, str]:
        """Make one attempt; return what comes of it, and why it failed if it did."""
        try:
            # Again, because the operator may no longer allow the host.
            target = self._hosts.target(webhook.url)
            secrets = self._secrets.of(webhook.tenant)
            if not secrets:
                return WebhookState.DUE, "there is no secret to sign it with"
            headers = signed_headers(webhook.id, int(time.time()), webhook.body, secrets)
            status = await self._send(target, webhook.body, headers)
        except (RefusedAddressError, ValueError) as error:
            return WebhookState.DUE, str(error)
        except TimeoutError:
            return WebhookState.DUE, f"no answer within {SECONDS:g} s"
        except (OSError, aiohttp.ClientError) as error:
            # Some messages hold the URL, which may hold a secret.
            return WebhookState.DUE, type(error).__name__
        if 200 <= status < 300:
            return WebhookState.DELIVERED, ""
        return WebhookState.GIVEN_UP if status == _GONE else WebhookState.DUE, f"the host answered {status}"

    async def _settle(self, webhook: DueWebhook, state: WebhookState, problem: str) -> None:
        what = f"the webhook {webhook.id} of {webhook.kind} {webhook.about}"
        if state is WebhookState.DUE and webhook.attempt < ATTEMPTS:
            wait = self._wait(webhook.attempt)
            await self._webhooks.again(webhook, time.time_ns() + int(wait * 1e9))
            self._metrics.webhooks.labels("repeated").inc()
            _logger.warning("%s failed (%s), attempt %d; again in %.0f s", what, problem, webhook.attempt, wait)
            return
        delivered = state is WebhookState.DELIVERED
        await self._webhooks.settle(webhook, WebhookState.DELIVERED if delivered else WebhookState.GIVEN_UP)
        self._metrics.webhooks.labels("delivered" if delivered else "given_up").inc()
        if delivered:
            _logger.info("%s was delivered, attempt %d", what, webhook.attempt)
        else:
            _logger.error("%s is given up (%s), attempt %d", what, problem, webhook.attempt)
