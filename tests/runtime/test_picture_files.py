"""Pictures as people have them: what is read pixel for pixel, and what is refused with its reason."""

import io
import itertools
import struct
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageCms, ImageOps

from unerase_backend.catalogue import EMBEDDED
from unerase_backend.runtime.picture_files import MAX_PARTS, MAX_SCANS, picture_size, read_picture
from unerase_backend.runtime.pictures import UnreadablePictureError

TILE = Image.open(EMBEDDED.parent / "pictures" / "hourglass.png").convert("RGB").crop((0, 0, 32, 32))
GRADIENT = Image.linear_gradient("L").resize((32, 32))


def saved(image: Image.Image, form: str = "PNG", **options: object) -> bytes:
    content = io.BytesIO()
    image.save(content, format=form, **options)
    return content.getvalue()


def with_alpha(alpha: int | Image.Image, mode: str = "RGBA") -> Image.Image:
    image = TILE.copy() if mode == "RGBA" else TILE.convert("L")
    image.putalpha(alpha)
    return image


def deep() -> bytes:
    return saved(Image.fromarray(np.asarray(TILE.convert("L")).astype(np.uint16) * 257))


def palette(transparency: int | None = None) -> bytes:
    options = {} if transparency is None else {"transparency": transparency}
    return saved(TILE.convert("P"), **options)


def animated(form: str) -> bytes:
    return saved(TILE, form, save_all=True, append_images=[TILE.rotate(90)])


def profile(name: str) -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile(name)).tobytes()


def scaled(tag: bytes, factor: float) -> bytes:
    """An sRGB profile with one of its primaries moved."""
    whole = bytearray(profile("sRGB"))
    place = next(
        struct.unpack_from(">I", whole, 136 + 12 * index)[0]
        for index in range(struct.unpack_from(">I", whole, 128)[0])
        if whole[132 + 12 * index : 136 + 12 * index] == tag
    )
    struct.pack_into(">i", whole, place + 8, int(struct.unpack_from(">i", whole, place + 8)[0] * factor))
    return bytes(whole)


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def with_chunks(**chunks: bytes) -> bytes:
    """The tile as a PNG with chunks after its header."""
    whole = saved(TILE)
    return whole[:33] + b"".join(png_chunk(kind.encode(), body) for kind, body in chunks.items()) + whole[33:]


def gamma(value: int) -> bytes:
    return struct.pack(">I", value)


def twelve_bits() -> bytes:
    content = bytearray(saved(TILE, "JPEG"))
    content[content.index(b"\xff\xc0") + 4] = 12
    return bytes(content)


SRGB_XY = struct.pack(">8I", 31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000)
ADOBE_XY = struct.pack(">8I", 31270, 32900, 64000, 33000, 21000, 71000, 15000, 6000)


@pytest.mark.parametrize(
    ("content", "shown"),
    [
        (saved(TILE), TILE),
        (saved(TILE.convert("L")), TILE.convert("L")),
        (saved(TILE.convert("1")), TILE.convert("1")),
        (palette(), TILE.convert("P")),
        (saved(with_alpha(255)), TILE),
        (saved(with_alpha(255, "LA")), TILE.convert("L")),
        (saved(TILE, "WEBP", lossless=True), TILE),
        (saved(with_alpha(255), "WEBP", lossless=True, exact=True), TILE),
        (saved(TILE, icc_profile=profile("sRGB")), TILE),
        (saved(TILE, "WEBP", lossless=True, icc_profile=profile("sRGB")), TILE),
        (saved(TILE.crop((0, 0, 32, 24))), TILE.crop((0, 0, 32, 24))),
        (with_chunks(gAMA=gamma(45455), cHRM=SRGB_XY), TILE),
        # sRGB and its like outrank what stands beside them, and white and primaries alone say nothing of tones.
        (with_chunks(sRGB=b"\0", gAMA=gamma(100_000)), TILE),
        (with_chunks(cHRM=ADOBE_XY), TILE),
        (with_chunks(cICP=bytes([1, 13, 0, 1]), gAMA=gamma(100_000)), TILE),
    ],
    # All processes must agree on them, and a profile holds the time of its making.
    ids=itertools.count(),
)
def test_what_loses_nothing_is_read(content: bytes, shown: Image.Image) -> None:
    assert np.array_equal(read_picture(content), np.asarray(shown.convert("RGB")))
    assert picture_size(content) == shown.size


@pytest.mark.parametrize("options", [{"quality": 95}, {"quality": 80, "progressive": True}, {"quality": 100}])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_jpeg_is_what_pillow_decodes(mode: str, options: dict[str, object]) -> None:
    content = saved(TILE.convert(mode), "JPEG", **options)
    assert np.array_equal(read_picture(content), np.asarray(Image.open(io.BytesIO(content)).convert("RGB")))


def test_a_lossy_webp_is_what_pillow_decodes() -> None:
    content = saved(TILE, "WEBP", quality=80)
    assert np.array_equal(read_picture(content), np.asarray(Image.open(io.BytesIO(content)).convert("RGB")))
    assert picture_size(content) == (32, 32)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 10))
def test_a_picture_is_turned_as_viewers_do(form: str, orientation: int) -> None:
    wide = TILE.crop((0, 0, 32, 24))
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = saved(wide, form, exif=exif)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(content))).convert("RGB")
    assert np.array_equal(read_picture(content), np.asarray(upright))
    assert picture_size(content) == upright.size


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (deep(), "16 bits a channel"),
        (saved(with_alpha(GRADIENT)), "must be opaque"),
        (saved(with_alpha(254)), "must be opaque"),
        (saved(with_alpha(GRADIENT, "LA")), "must be opaque"),
        (palette(TILE.convert("P").getpixel((0, 0))), "must be opaque"),
        (saved(with_alpha(GRADIENT), "WEBP"), "must be opaque"),
        (saved(TILE.convert("CMYK"), "JPEG"), "CMYK"),
        (animated("PNG"), "not an animation"),
        (animated("WEBP"), "not an animation"),
        (saved(TILE, icc_profile=scaled(b"gXYZ", 0.6)), "colour profile other than sRGB"),
        (saved(TILE, "JPEG", icc_profile=scaled(b"rXYZ", 1.1)), "colour profile other than sRGB"),
        (saved(TILE, "WEBP", icc_profile=profile("LAB")), "colour profile other than sRGB"),
        (saved(TILE, "JPEG", icc_profile=b"nonsense"), "colour profile other than sRGB"),
        (with_chunks(gAMA=gamma(100_000)), "colour profile other than sRGB"),
        (with_chunks(gAMA=gamma(45455), cHRM=ADOBE_XY), "colour profile other than sRGB"),
        (with_chunks(gAMA=b"\0"), "colour profile other than sRGB"),
        (with_chunks(cICP=bytes([9, 16, 0, 1]), sRGB=b"\0"), "colour profile other than sRGB"),
        (twelve_bits(), "12 bits a channel"),
        (saved(TILE, "GIF"), "not a PNG, JPEG or WebP file"),
        (saved(TILE, "TIFF"), "not a PNG, JPEG or WebP file"),
        (saved(TILE, "BMP"), "not a PNG, JPEG or WebP file"),
        (b"", "not a PNG, JPEG or WebP file"),
    ],
    # All processes must agree on them, and a profile holds the time of its making.
    ids=itertools.count(),
)
def test_what_would_not_stay_what_it_is_is_refused(content: bytes, said: str) -> None:
    for read in (picture_size, read_picture):
        with pytest.raises(UnreadablePictureError) as refused:
            read(content)
        assert said in refused.value.message


def test_a_transparent_colour_that_no_pixel_has_is_none() -> None:
    free = next(index for index in range(256) if index not in set(TILE.convert("P").tobytes()))
    assert np.array_equal(read_picture(palette(free)), np.asarray(TILE.convert("P").convert("RGB")))


def png_of_size(side: int) -> bytes:
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + png_chunk(b"IDAT", zlib.compress(bytes(1000))) + png_chunk(b"IEND", b"")


def jpeg_of_size(side: int) -> bytes:
    content = bytearray(saved(TILE, "JPEG"))
    place = content.index(b"\xff\xc0")
    struct.pack_into(">HH", content, place + 5, side, side)
    return bytes(content)


def webp_of_size(side: int, **options: object) -> bytes:
    content = bytearray(saved(TILE, "WEBP", **options))
    name = bytes(content[12:16])
    if name == b"VP8 ":
        struct.pack_into("<HH", content, 26, side, side)
    elif name == b"VP8L":
        bits = struct.unpack_from("<I", content, 21)[0] >> 28 << 28
        struct.pack_into("<I", content, 21, bits | (side - 1) << 14 | (side - 1))
    else:
        content[24:30] = (side - 1).to_bytes(3, "little") * 2
    return bytes(content)


@pytest.mark.parametrize(
    "content",
    [
        png_of_size(16_000),
        jpeg_of_size(16_000),
        webp_of_size(16_000),
        webp_of_size(16_000, lossless=True),
        webp_of_size(16_000, exif=b"Exif\0\0MM\0*\0\0\0\x08\0\0"),
    ],
    # All processes must agree on them, and a profile holds the time of its making.
    ids=itertools.count(),
)
def test_the_size_of_a_bomb_is_read_before_its_pixels(content: bytes) -> None:
    with pytest.raises(UnreadablePictureError, match="16000 x 16000 pixels, too many"):
        picture_size(content)


def crowded(form: str) -> bytes:
    whole = saved(TILE, form)
    match form:
        case "PNG":
            return (
                whole[:33]
                + (struct.pack(">I", 0) + b"abCd" + struct.pack(">I", zlib.crc32(b"abCd"))) * 5000
                + whole[33:]
            )
        case "JPEG":
            return whole[:2] + b"\xff\xfe\x00\x02" * 5000 + whole[2:]
        case _:
            return whole + b"abcd\0\0\0\0" * 5000


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
def test_countless_parts_are_not_gone_through(form: str) -> None:
    with pytest.raises(UnreadablePictureError, match=f"more than {MAX_PARTS} (chunks|segments)"):
        picture_size(crowded(form))


def test_a_jpeg_of_fillers_is_not_gone_through() -> None:
    whole = saved(TILE, "JPEG")
    with pytest.raises(UnreadablePictureError, match=f"more than {MAX_PARTS} segments"):
        picture_size(whole[:2] + b"\xff" * 2**20 + whole[2:])


def test_a_jpeg_of_countless_scans_is_not_decoded() -> None:
    whole = saved(TILE, "JPEG", progressive=True)
    last = whole.rindex(b"\xff\xda")
    with pytest.raises(UnreadablePictureError, match=f"more than {MAX_SCANS} scans"):
        read_picture(whole[:last] + whole[last:-2] * 200 + whole[-2:])


def _read_or_refused(content: bytes) -> None:
    for read in (picture_size, read_picture):
        try:
            read(content)
        except UnreadablePictureError:
            continue


WHOLE = [saved(TILE), saved(TILE, "JPEG", progressive=True), saved(with_alpha(255), "WEBP"), saved(TILE, "WEBP")]


@given(whole=st.sampled_from(WHOLE), place=st.integers(0), value=st.integers(0, 255), end=st.integers(0))
def test_damage_is_refused_or_read_and_nothing_else(whole: bytes, place: int, value: int, end: int) -> None:
    damaged = bytearray(whole)
    damaged[place % len(whole)] = value
    _read_or_refused(bytes(damaged))
    _read_or_refused(whole[: end % len(whole)])


@given(rest=st.binary(max_size=200), head=st.sampled_from([b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"RIFF1234WEBPVP8X"]))
def test_nonsense_is_refused(head: bytes, rest: bytes) -> None:
    _read_or_refused(head + rest)


@pytest.mark.parametrize("spoil", [lambda each: each[:60], lambda each: each[:200], lambda each: bytes(200) + each])
def test_a_damaged_profile_is_none_of_srgb(spoil: Callable[[bytes], bytes]) -> None:
    with pytest.raises(UnreadablePictureError, match="colour profile"):
        picture_size(saved(TILE, icc_profile=spoil(profile("sRGB"))))
