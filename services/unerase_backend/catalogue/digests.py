"""The files of a model or judge by component, each with its SHA-256, and a digest over all of them."""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from unerase_backend.catalogue.kept_digests import file_digest
from unerase_backend.catalogue.layouts import UNSAFE
from unerase_backend.runtime.errors import UnsafeModelError

WEIGHTS = ".safetensors"
# Other files that affect results: configurations, vocabularies.
_TEXTS = (".json", ".txt")

Digest = Callable[[Path], str]
"""Returns SHA-256 of a file, hexadecimal; `kept_digests.KeptDigests` is one."""


@dataclass(frozen=True)
class HashedFile:
    """A file with the component it belongs to."""

    component: str
    name: str
    digest: str
    size_bytes: int

    @property
    def weights(self) -> bool:
        """Whether it holds weights; otherwise it is a configuration or vocabulary."""
        return self.name.endswith(WEIGHTS)


def hash_file(component: str, path: Path, digest: Digest = file_digest) -> HashedFile:
    """Return the file with its digest."""
    return HashedFile(component, path.name, digest(path), path.stat().st_size)


def hash_files(loaded: Mapping[str, Iterable[Path]], digest: Digest = file_digest) -> list[HashedFile]:
    """Return the files with their digests, given by component."""
    return [hash_file(component, path, digest) for component, paths in loaded.items() for path in paths]


def folder_files(component: str, folder: Path, root: Path | None, digest: Digest = file_digest) -> list[HashedFile]:
    """Return the files of one folder with weights, by name; errors as in `folder_paths`."""
    return [hash_file(component, path, digest) for path in folder_paths(component, folder, root)]


def folder_paths(component: str, folder: Path, root: Path | None) -> list[Path]:
    """Return the paths of the files of one folder with weights, by name.

    Raises:
        UnsafeModelError: it is missing, has no safetensors, or leads out of `root`.
    """
    paths = _listed(component, folder, root, (WEIGHTS, *_TEXTS))
    if not any(path.suffix == WEIGHTS for path in paths):
        if unsafe := sorted(path.name for path in folder.iterdir() if path.suffix in UNSAFE):
            raise UnsafeModelError(
                f"{component} has its weights only in {unsafe[0]}, a format that can carry code; "
                "convert them to safetensors",
                reason="WEIGHTS_NOT_SAFETENSORS",
            )
        raise UnsafeModelError(f"{component} has no weights: no file *{WEIGHTS}", reason="WEIGHTS_MISSING")
    return paths


def judge_files(folder: Path, root: Path | None, digest: Digest = file_digest) -> list[HashedFile]:
    """Return the files of a judge's folder (`judge_paths`), named by their path in it."""
    return [
        replace(hash_file("judge", path, digest), name=path.relative_to(folder).as_posix())
        for path in judge_paths(folder, root)
    ]


def judge_paths(folder: Path, root: Path | None) -> list[Path]:
    """Return all files of a judge's folder but hidden ones: what a third party's judge reads is not known here.

    Raises as `folder_paths`.
    """
    paths = folder_paths("judge", folder, root)
    found = [path for path in folder.rglob("*") if path.is_file() and path not in paths]
    others = sorted(path for path in found if not any(part.startswith(".") for part in path.relative_to(folder).parts))
    _check_inside("judge", others, root)
    return paths + others


def check_pinned(files: Iterable[HashedFile], pinned: Mapping[str, str]) -> None:
    """Compare the files of weights with the digests that a catalogue gives for their components.

    Raises:
        UnsafeModelError: a component has no file, several, or one with another digest.
    """
    listed = list(files)
    for component, digest in pinned.items():
        found = [file.digest for file in listed if file.weights and file.component.split()[0] == component]
        if found != [digest]:
            message = (
                f"the file of weights of {component} is not the one that the catalogue's sha256 names: "
                f"{', '.join(found) or 'there is none'}"
            )
            raise UnsafeModelError(message, reason="WEIGHTS_CHANGED")


def nameless(file: HashedFile) -> HashedFile:
    """Return the file without its name, which says nothing of what it holds."""
    return replace(file, name="")


def combined_digest(files: Iterable[HashedFile], base: str = "") -> str:
    """Return SHA-256 over the sorted components with their files' digests, and over the base's digest."""
    lines: Sequence[str] = sorted(f"{file.component}\0{file.name}\0{file.digest}\n" for file in files)
    return hashlib.sha256("".join([f"base\0{base}\n", *lines]).encode()).hexdigest()


def _listed(component: str, folder: Path, root: Path | None, suffixes: tuple[str, ...]) -> list[Path]:
    if not folder.is_dir():
        raise UnsafeModelError(f"{component} is missing: there is no folder {folder.name}", reason="MODEL_INCOMPLETE")
    paths = sorted(path for path in folder.iterdir() if path.is_file() and path.suffix in suffixes)
    _check_inside(component, (folder, *paths), root)
    return paths


def _check_inside(component: str, paths: Iterable[Path], root: Path | None) -> None:
    if root is not None and any(not path.resolve().is_relative_to(root) for path in paths):
        raise UnsafeModelError(f"{component} contains a link that leads out of its folder", reason="PATH_ESCAPES")
