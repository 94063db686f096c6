"""Limits on uploads: their number for each tenant, the memory of all together, and their time.

An upload is in memory until its pictures are decoded. If all uploads together exceed their limit, the largest upload of
the tenant that holds the most is ended. So no tenant can block another by sending much; nor by sending nothing, because
a silent upload is ended too.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from unerase_backend.runtime.access import CALLER
from unerase_backend.runtime.errors import DeadlineError, ExhaustedError

UPLOADS_OF_A_TENANT = 4
UPLOAD_SECONDS = 300.0
"""The time that an upload may take in all."""
SILENT_SECONDS = 20.0
"""The time that an upload may send nothing."""
MAX_BYTES = 256 * 1024 * 1024
"""The bytes that all uploads together may hold in memory."""
_AGAIN_SECONDS = 5.0


class Arriving:
    """One upload that is being read."""

    def __init__(self, uploads: "Uploads", tenant: str, limit: asyncio.Timeout) -> None:
        self.tenant = tenant
        self.bytes = 0
        self.crowded = False
        self._uploads = uploads
        self._limit = limit
        self._end = asyncio.get_running_loop().time() + UPLOAD_SECONDS

    def came(self, size: int) -> None:
        """Note that a message of `size` bytes has arrived."""
        self.bytes += size
        if not self.crowded:
            self._limit.reschedule(min(self._end, asyncio.get_running_loop().time() + SILENT_SECONDS))
        self._uploads.make_room()

    def read(self) -> None:
        """Note that the whole upload has arrived, so that its time is no longer limited."""
        if not self.crowded:
            self._limit.reschedule(None)

    def give_up(self) -> None:
        """End the upload, because others need the memory."""
        self.crowded = True
        if not self._limit.expired():
            self._limit.reschedule(asyncio.get_running_loop().time())

    def late(self) -> ExhaustedError | DeadlineError:
        """Return the error that says why the upload was ended."""
        if self.crowded:
            return ExhaustedError(
                f"all uploads together may hold {MAX_BYTES} bytes, and this one was ended to make room; try again",
                reason="UPLOADS_BUSY",
                retry_after_seconds=_AGAIN_SECONDS,
            )
        if asyncio.get_running_loop().time() >= self._end:
            return DeadlineError(f"the upload took longer than {UPLOAD_SECONDS:g} s", reason="UPLOAD_LATE")
        return DeadlineError(f"the upload sent nothing for {SILENT_SECONDS:g} s", reason="UPLOAD_SILENT")


class Uploads:
    """The uploads of all tenants."""

    def __init__(self) -> None:
        self._all: dict[Arriving, None] = {}

    @asynccontextmanager
    async def arriving(self) -> AsyncIterator[Arriving]:
        """Count an upload of the caller for as long as it is in memory.

        Raises:
            ExhaustedError: the caller's tenant has too many uploads, or others need the memory.
            DeadlineError: the upload is silent for too long, or takes too long.
        """
        tenant = CALLER.get().tenant
        if sum(each.tenant == tenant for each in self._all) >= UPLOADS_OF_A_TENANT:
            raise ExhaustedError(
                f"{UPLOADS_OF_A_TENANT} concepts are being uploaded, the most that a tenant may upload at once",
                reason="UPLOADS_BUSY",
                retry_after_seconds=_AGAIN_SECONDS,
            )
        limit = asyncio.timeout(SILENT_SECONDS)
        upload: Arriving | None = None
        try:
            async with limit:
                upload = Arriving(self, tenant, limit)
                self._all[upload] = None
                yield upload
        except TimeoutError:
            if upload is None or not limit.expired():
                raise
            raise upload.late() from None
        finally:
            if upload is not None:
                del self._all[upload]

    def make_room(self) -> None:
        """If the uploads hold too much memory, end the largest one of the tenant that holds the most."""
        held = {upload: upload.bytes for upload in self._all if not upload.crowded}
        if sum(held.values()) <= MAX_BYTES:
            return
        of_tenants: Counter[str] = Counter()
        for upload, size in held.items():
            of_tenants[upload.tenant] += size
        (greedy, _), *_ = of_tenants.most_common(1)
        max((upload for upload in held if upload.tenant == greedy), key=held.__getitem__).give_up()
