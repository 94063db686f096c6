"""Pictures on the page: the file holds each one once, however often it is shown.

A picture is an SVG around a data URI. Repetitions refer to the first by its id. Large pictures are reduced.
"""

import base64
import io
from collections.abc import Callable

from markupsafe import Markup
from PIL import Image

from unerase_backend.report.text import visible

MAX_SIDE = 256
"""Larger pictures are reduced to this many pixels a side, so that the file stays small enough to mail."""


class Pictures:
    """The pictures of one page; `read` returns the PNG of a digest, and its errors propagate."""

    def __init__(self, read: Callable[[str], bytes]) -> None:
        self._read = read
        self._shown: dict[str, tuple[str, int, int]] = {}

    def show(self, digest: str, described: str) -> Markup:
        """Return a picture with its description in words."""
        if digest in self._shown:
            identifier, width, height = self._shown[digest]
            inside = Markup('<use href="#{}"/>').format(identifier)
        else:
            identifier = f"picture-{len(self._shown) + 1}"
            uri, width, height = data_uri(self._read(digest))
            self._shown[digest] = identifier, width, height
            inside = Markup('<image id="{}" width="{}" height="{}" href="{}"/>').format(identifier, width, height, uri)
        return Markup('<svg class="picture" viewBox="0 0 {} {}" role="img"><title>{}</title>{}</svg>').format(
            width, height, visible(described), inside
        )


def data_uri(picture: bytes) -> tuple[str, int, int]:
    """Return the picture as a data URI, reduced if it is large, with its width and height."""
    kind = "png"
    with Image.open(io.BytesIO(picture)) as image:
        if max(image.size) > MAX_SIDE:
            image.thumbnail((MAX_SIDE, MAX_SIDE))
            reduced = io.BytesIO()
            image.convert("RGB").save(reduced, "JPEG", quality=88)
            kind, picture = "jpeg", reduced.getvalue()
        width, height = image.size
    return f"data:image/{kind};base64,{base64.b64encode(picture).decode()}", width, height
