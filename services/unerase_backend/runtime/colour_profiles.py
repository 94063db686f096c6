"""Whether a picture's colours are sRGB as far as an eye can tell: primaries, and the middle of the tone curves.

They stand in an ICC profile or in the chunks of a PNG. Names of profiles say little: copies of sRGB have dozens.
Sources: ICC.1:2022, sections 7.2, 7.3, 10.6, 10.18 and 10.31; IEC 61966-2-1; PNG (third edition), section 11.3.2; ITU-T
H.273 for the numbers of cICP.
"""

import struct
from collections.abc import Mapping

# Red, green and blue of sRGB, adapted to the D50 white of profiles: X, Y, Z.
_PRIMARIES = {
    b"rXYZ": (0.4361, 0.2225, 0.0139),
    b"gXYZ": (0.3851, 0.7169, 0.0971),
    b"bXYZ": (0.1431, 0.0606, 0.7141),
}
_CURVES = {b"RGB ": (b"rTRC", b"gTRC", b"bTRC"), b"GRAY": (b"kTRC",)}
# Profiles round their figures.
_NEAR = 0.003
# What the value in the middle becomes in linear light: 0.214 in sRGB, 0.218 with a gamma of 2.2.
_MIDDLE = (0.205, 0.225)
_GAMMAS = (2.1, 2.5)
_MOST_TAGS = 100
# White, red, green and blue of sRGB: x and y of each.
_CHROMATICITIES = (0.3127, 0.3290, 0.64, 0.33, 0.30, 0.60, 0.15, 0.06)
_NEAR_XY = 0.01
# Primaries, transfer, matrix and full range.
_CICP = bytes([1, 13, 0, 1])


def is_srgb(profile: bytes) -> bool:
    """Return whether pixels with this profile look the same without it."""
    try:
        tags = _tags(profile)
        curves = _CURVES.get(profile[16:20])
        if curves is None:
            return False
        if profile[16:20] == b"RGB " and any(not _near(profile, tags[tag], xyz) for tag, xyz in _PRIMARIES.items()):
            return False
        return all(_is_tone_curve(profile, tags[tag]) for tag in curves)
    except (struct.error, KeyError, IndexError):
        return False


def png_is_srgb(chunks: Mapping[bytes, bytes]) -> bool:
    """Return whether the chunks of a PNG, by name, leave its pixels sRGB; of several for one thing the best one counts.

    An ICC profile is left to `is_srgb`. Without any such chunk a picture is sRGB.
    """
    if b"cICP" in chunks:
        return chunks[b"cICP"] == _CICP
    if {b"iCCP", b"sRGB"} & chunks.keys() or b"gAMA" not in chunks:
        return True
    try:
        (gamma,) = struct.unpack(">I", chunks[b"gAMA"])
        given = struct.unpack(">8I", chunks[b"cHRM"]) if b"cHRM" in chunks else ()
    except struct.error:
        return False
    near = all(abs(one / 1e5 - other) <= _NEAR_XY for one, other in zip(given, _CHROMATICITIES, strict=False))
    return near and 1 / _GAMMAS[1] <= gamma / 1e5 <= 1 / _GAMMAS[0]


def _tags(profile: bytes) -> dict[bytes, int]:
    """Return the place of each tag's content."""
    (count,) = struct.unpack_from(">I", profile, 128)
    places = (struct.unpack_from(">4sI", profile, 132 + 12 * index) for index in range(min(count, _MOST_TAGS)))
    return dict(places)


def _near(profile: bytes, place: int, wanted: tuple[float, float, float]) -> bool:
    found = struct.unpack_from(">3i", profile, place + 8)
    return all(abs(value / 65536 - other) < _NEAR for value, other in zip(found, wanted, strict=True))


def _is_tone_curve(profile: bytes, place: int) -> bool:
    if profile[place : place + 4] == b"para":
        (gamma,) = struct.unpack_from(">i", profile, place + 12)
        return bool(_GAMMAS[0] <= gamma / 65536 <= _GAMMAS[1])
    if profile[place : place + 4] != b"curv":
        return False
    (count,) = struct.unpack_from(">I", profile, place + 8)
    if count == 1:
        (gamma,) = struct.unpack_from(">H", profile, place + 12)
        return bool(_GAMMAS[0] <= gamma / 256 <= _GAMMAS[1])
    if count == 0:
        return False
    (below,) = struct.unpack_from(">H", profile, place + 12 + 2 * ((count - 1) // 2))
    (above,) = struct.unpack_from(">H", profile, place + 12 + 2 * (count // 2))
    return bool(_MIDDLE[0] <= (below + above) / 2 / 65535 <= _MIDDLE[1])
