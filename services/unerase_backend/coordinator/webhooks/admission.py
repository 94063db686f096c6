"""Whether a request may ask for a webhook."""

from unerase_backend.coordinator.webhooks.hosts import Hosts
from unerase_backend.coordinator.webhooks.signing import Secrets
from unerase_backend.runtime.errors import FieldViolation, InvalidRequestError, PreconditionError


class WebhookAdmission:
    """Checks the webhooks of requests; by default there are none."""

    def __init__(self, hosts: Hosts | None = None, secrets: Secrets | None = None) -> None:
        self.hosts = hosts or Hosts()
        self._secrets = secrets or Secrets(None)

    def check(self, url: str, tenant: str) -> None:
        """Check the webhook of a request; an empty one asks for none.

        Raises:
            PreconditionError: this backend sends no webhooks, or has no secret for the tenant.
            InvalidRequestError: it is not a URL of a host that the operator allows.
        """
        if not url:
            return
        if not self.hosts.names:
            raise PreconditionError("this backend sends no webhooks; leave `webhook` out", reason="WEBHOOKS_OFF")
        try:
            signed = bool(self._secrets.of(tenant))
        except (OSError, ValueError):
            signed = False
        if not signed:
            raise PreconditionError(
                "this backend has no secret to sign your webhooks with; ask its operator, or leave `webhook` out",
                reason="WEBHOOKS_OFF",
            )
        try:
            self.hosts.target(url)
        except ValueError as error:
            raise InvalidRequestError(
                f"webhook: {error}", reason="WEBHOOK_REFUSED", violations=[FieldViolation("webhook", str(error))]
            ) from None
