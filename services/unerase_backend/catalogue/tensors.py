"""Which tensors the files of a part hold, from their headers alone, under today's names."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path

from safetensors import SafetensorError, safe_open

from unerase_backend.catalogue import layouts
from unerase_backend.catalogue.configs import shown
from unerase_backend.catalogue.findings import Findings
from unerase_backend.catalogue.layouts import Layout, import_command, recognise
from unerase_backend.catalogue.model_files import WeightFiles
from unerase_backend.catalogue.tensor_names import TIED, UNUSED_OF, current_name

FLOATS = {"F16": 2, "BF16": 2, "F32": 4, "F64": 8}
"""The number types that are read, in safetensors' words, with their bytes."""
_LAYOUTS = {
    "UNet2DConditionModel": layouts.UNET,
    "AutoencoderKL": layouts.VAE,
    "CLIPTextModel": layouts.TEXT_ENCODER,
    "CLIPTextModelWithProjection": layouts.TEXT_ENCODER,
}
"""The layout of each class that is recognised by it; other classes are told by the names of their tensors alone."""
_LFS = b"version https://git-lfs.github.com/spec/"
UNREADABLE = (OSError, ValueError, SafetensorError)
"""What safetensors raises where a file is no safetensors file, cut off, or damaged."""


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file."""

    file: Path
    name: str
    """Its name in the file."""
    shape: tuple[int, ...]
    dtype: str
    """In safetensors' words, as in `BF16`."""
    twin: "StoredTensor | None" = None
    """The same tensor stored once more, under another name that it has in the part."""

    def may_be(self, other: "StoredTensor") -> bool:
        """Whether another tensor may be this one under another name."""
        return self.twin is None and (self.shape, self.dtype) == (other.shape, other.dtype) and self.name != other.name

    @property
    def parameters(self) -> int:
        """How many numbers it holds."""
        return prod(self.shape)

    @property
    def bytes(self) -> int:
        """Bytes in the file; 0 for a number type that is not read."""
        return self.parameters * FLOATS.get(self.dtype, 0)


@dataclass(frozen=True)
class Header:
    """What a safetensors file says about itself."""

    tensors: Mapping[str, StoredTensor]
    metadata: Mapping[str, str]


def read_header(path: Path) -> Header:
    """Read a file's header; safetensors checks it against the length of the file.

    Raises:
        OSError, ValueError, SafetensorError: it is no safetensors file, is cut off, or is damaged (`UNREADABLE`).
    """
    with safe_open(path, framework="np") as file:
        tensors = {}
        for name in file.keys():  # noqa: SIM118 - the file is no mapping
            view = file.get_slice(name)
            tensors[name] = StoredTensor(path, name, tuple(view.get_shape()), view.get_dtype())
        return Header(tensors, file.metadata() or {})


def is_lfs_pointer(path: Path) -> bool:
    """Return whether a file is what Git leaves in place of a large file that was not fetched."""
    try:
        with path.open("rb") as stream:
            return stream.read(len(_LFS)) == _LFS
    except OSError:
        return False


def part_tensors(part: str, kind: str, weights: WeightFiles, findings: Findings) -> dict[str, StoredTensor] | None:
    """Return the tensors of a part's files by today's names; None, with a problem, if they cannot be told.

    `kind` is the part's class. Tensors that are computed today are left out.
    """
    headers = {}
    for path in weights.files:
        try:
            headers[path] = read_header(path)
        except UNREADABLE:
            name = shown(path.name)
            pointer = is_lfs_pointer(path)
            why = "a pointer of Git LFS in place of the file" if pointer else "cut off, damaged, or no safetensors file"
            what = f"the weights of {part} cannot be read: {name} is {why}"
            remedy = "fetch the file (git lfs pull)" if pointer else "fetch the file again"
            findings.problem(part, "WEIGHTS_UNREADABLE", what, remedy=remedy, found=name)
    if len(headers) < len(weights.files):
        return None
    stored = [tensor for header in headers.values() for tensor in header.tensors.values()]
    metadata = {key: value for header in headers.values() for key, value in header.metadata.items()}
    layout = recognise([tensor.name for tensor in stored], metadata)
    if not _check_layout(part, _LAYOUTS.get(kind), weights, layout, stored, findings):
        return None
    return _by_current_names(part, kind, stored, findings)


def _check_layout(
    part: str,
    wanted: Layout | None,
    weights: WeightFiles,
    layout: Layout,
    stored: list[StoredTensor],
    findings: Findings,
) -> bool:
    name = shown((weights.index or weights.files[0]).name)
    if not stored:
        findings.problem(part, "WEIGHTS_INCOMPLETE", f"{name} holds no tensors", found=name)
    elif layout is wanted or (wanted is None and layout.import_as is None):
        return True
    elif layout is layouts.UNKNOWN:
        what = f"{name} holds tensors of no layout that is known here, {shown(stored[0].name)!r} among them"
        findings.problem(part, "WEIGHTS_UNKNOWN_TENSOR", what, found=name)
    elif layout.part is None:
        remedy = f"import it: {import_command(name, layout.import_as)}" if layout.import_as else ""
        findings.problem(part, "WEIGHTS_LAYOUT", f"{name} is {layout.title}", remedy=remedy, found=name)
    else:
        what = f"{name} is {layout.title}, and is named as {part}"
        findings.problem(part, "WEIGHTS_LAYOUT", what, remedy=f"name it as {layout.part}", found=name)
    return False


def _by_current_names(
    part: str, kind: str, stored: list[StoredTensor], findings: Findings
) -> dict[str, StoredTensor] | None:
    tensors: dict[str, StoredTensor] = {}
    for tensor in stored:
        name = current_name(part, tensor.name, kind)
        file = shown(tensor.file.name)
        if name == UNUSED_OF.get(kind, ""):
            findings.note(f"{part}: {name} of {file} is not used; no picture depends on it")
            continue
        if name is None:
            continue
        if tensor.dtype not in FLOATS:
            what = f"{shown(name)!r} of {part} is stored as {tensor.dtype}; read are {', '.join(FLOATS)}"
            findings.problem(part, "WEIGHTS_WRONG_TYPE", what, found=file)
            return None
        if name in TIED.get(kind, {}).values() and name in tensors and tensors[name].may_be(tensor):
            tensors[name] = replace(tensors[name], twin=tensor)
            continue
        if name in tensors:
            what = f"the weights of {part} hold {shown(name)!r} twice"
            there = shown(tensors[name].file.name)
            findings.problem(part, "WEIGHTS_AMBIGUOUS", what, found=file if there == file else f"{there}, {file}")
            return None
        tensors[name] = tensor
    return tensors
