"""Digests of source code, which are part of the keys of stored results: edited code finds no results of the old code.

A digest is SHA-256 over the path, within its package, and the content of every file except bytecode and hidden files.
Line endings of Python files do not count, nor does the location of the package, so that all processes and machines with
the same source agree. The backend's own digests are computed when this module is first imported; later edits count from
the next start.
"""

import hashlib
from collections.abc import Iterator, Sequence
from functools import cache
from importlib.metadata import Distribution, entry_points
from importlib.util import find_spec
from pathlib import Path

from unerase import internal
from unerase.v1 import types_pb2

_BACKBONES = "unerase.backbones"
_GROUPS = ("unerase.probes", "unerase.attacks", "unerase.judges", "unerase.guards", _BACKBONES)

PICTURE_ROOMS = ("runtime", "catalogue", "diffusion", "evaluation", "generation")
"""The rooms whose code makes pictures: generation, and the rooms that it imports."""

RESULT_ROOMS = (*PICTURE_ROOMS, "classification", "probing", "attack")
"""The rooms whose code affects the result of a unit. Coordinator, verdict, report and testbed only read results."""


def rooms_digest(rooms: Sequence[str], backend: Path = Path(__file__).parents[1]) -> str:
    """Return the digest of the rooms of a backend's package, and of the messages in which results are stored.

    Raises:
        RuntimeError: a room has no files, for example because the package is imported from an archive.
    """
    digest = hashlib.sha256()
    _add(digest, "unerase_backend", backend / "__init__.py")
    for room in rooms:
        if not _add(digest, room, backend / room):
            raise RuntimeError(f"the source of {room} must be in the folder {backend / room}, and is not")
    _add(digest, "internal", Path(internal.__path__[0]))
    _add(digest, "types", Path(types_pb2.__file__))
    return digest.hexdigest()


def with_backbones(rooms: str) -> str:
    """Return the digest of rooms with the packages of third parties' families of models; as it is where there are none.

    Whatever is computed may be computed with such a family, so that their code counts as the backend's own does.
    """
    return _digest(rooms, registered_digest(_BACKBONES)) if entry_points(group=_BACKBONES) else rooms


def component_digest(module: str) -> str:
    """Return the digest of all code that affects the results of an evaluation in `module`.

    That is the backend's own source and, for a third party's module, also its whole package and the distributions that
    register components from it.
    """
    return RESULTS if _top(module) == "unerase_backend" else _digest(RESULTS, *_third_party(module))


@cache
def registered_digest(group: str) -> str:
    """Return the digest of the third parties' packages that register components in an entry point group.

    Their modules are not imported.
    """
    modules = sorted({entry_point.module for entry_point in entry_points(group=group)})
    return _digest(group, *(part for module in modules for part in _third_party(module)))


def _third_party(module: str) -> Iterator[str]:
    yield module
    for group in _GROUPS:
        for entry_point in entry_points(group=group):
            if entry_point.dist is not None and _top(entry_point.module) == _top(module):
                yield f"{entry_point.dist.name} {entry_point.dist.version} {_files_digest(entry_point.dist)}"
    if (location := _location(module)) is not None:
        digest = hashlib.sha256()
        _add(digest, "", location)
        yield digest.hexdigest()


def _files_digest(distribution: Distribution) -> str:
    """Return the digest of the Python files that a distribution lists; an editable installation lists none."""
    digest = hashlib.sha256()
    for file in sorted(distribution.files or (), key=str):
        place = Path(str(file.locate()))
        if file.suffix == ".py" and place.is_file():
            _add(digest, str(file), place)
    return digest.hexdigest()


def _location(module: str) -> Path | None:
    """Return the folder of the outermost package that holds a module, or the module's own file; None if there is none.

    A namespace package does not count as a package here, because unrelated distributions may share it.
    """
    name = ""
    for part in module.split("."):
        name = f"{name}.{part}".removeprefix(".")
        try:
            spec = find_spec(name)
        except (ImportError, ValueError, AttributeError):
            return None
        if spec is None:
            return None
        if spec.has_location and spec.origin:
            origin = Path(spec.origin)
            return origin.parent if spec.submodule_search_locations else origin
    return None


def _add(digest: "hashlib._Hash", name: str, place: Path) -> int:
    """Add a file, or the files of a folder, to a digest, and return how many there were."""
    files = [place] if place.is_file() else sorted(path for path in place.rglob("*") if _counts(path, place))
    for path in files:
        content = path.read_bytes()
        if path.suffix == ".py":
            content = content.replace(b"\r\n", b"\n")
        inner = path.relative_to(place).as_posix()
        digest.update(f"{name}/{inner}\0{hashlib.sha256(content).hexdigest()}\n".encode())
    return len(files)


def _counts(path: Path, folder: Path) -> bool:
    inner = path.relative_to(folder)
    hidden = any(part.startswith(".") or part == "__pycache__" for part in inner.parts)
    # Stubs are only for type checkers.
    return not hidden and path.suffix != ".pyi" and path.is_file()


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _top(module: str) -> str:
    return module.partition(".")[0]


# At the end of the module, because they need everything above.
PICTURES = with_backbones(rooms_digest(PICTURE_ROOMS))
RESULTS = with_backbones(rooms_digest(RESULT_ROOMS))
