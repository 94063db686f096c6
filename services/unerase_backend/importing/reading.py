"""Reads a file of weights without running what it holds: safetensors, or what `torch.save` writes.

Pickles go through torch's own reader with `weights_only`, which calls nothing but what rebuilds tensors. What
Lightning, NumPy and OmegaConf leave in a checkpoint beside its weights becomes a placeholder; anything else is refused.
"""

import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from unerase_backend.catalogue.tensors import is_lfs_pointer
from unerase_backend.importing.isolation import is_shortage
from unerase_backend.runtime.errors import UneraseError, UnsafeModelError

MAX_PICKLE_BYTES = 256 * 1024 * 1024
MAX_MEMBERS = 100_000

# What is dropped where it occurs: it is no weight, and nothing of it is imported.
_NUMPY_TYPES = ("Bool", "Int8", "Int16", "Int32", "Int64", "UInt8", "UInt16", "UInt32", "UInt64", "Str", "Object")
_NUMPY_FLOATS = ("Float16", "Float32", "Float64", "Complex64", "Complex128", "DateTime64", "TimeDelta64")
_OMEGACONF = ("AnyNode", "StringNode", "IntegerNode", "FloatNode", "BooleanNode", "BytesNode", "PathNode", "UnionNode")
_IGNORED = (
    "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",
    "pytorch_lightning.callbacks.early_stopping.EarlyStopping",
    "lightning.pytorch.callbacks.model_checkpoint.ModelCheckpoint",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
    "numpy.core.multiarray._reconstruct",
    "numpy._core.multiarray._reconstruct",
    "numpy.ndarray",
    "numpy.dtype",
    *(f"numpy.dtypes.{kind}DType" for kind in (*_NUMPY_TYPES, *_NUMPY_FLOATS)),
    "numpy.random._pickle.__generator_ctor",
    "numpy.random._pickle.__bit_generator_ctor",
    "numpy.random._pickle.__randomstate_ctor",
    "numpy.random._pcg64.PCG64",
    "numpy.random._mt19937.MT19937",
    "numpy.random.bit_generator.SeedSequence",
    "numpy.random.bit_generator.__pyx_unpickle_SeedSequence",
    "omegaconf.dictconfig.DictConfig",
    "omegaconf.listconfig.ListConfig",
    "omegaconf.base.ContainerMetadata",
    "omegaconf.base.Metadata",
    *(f"omegaconf.nodes.{kind}" for kind in _OMEGACONF),
    "typing.Any",
    "typing.Dict",
    "typing.List",
    "typing.Optional",
    "typing.Tuple",
    "typing.Union",
    "argparse.Namespace",
    "types.SimpleNamespace",
    "datetime.date",
    "datetime.datetime",
    "datetime.time",
    "datetime.timedelta",
    "datetime.timezone",
    "decimal.Decimal",
    "fractions.Fraction",
    "uuid.UUID",
    "pathlib.Path",
    "pathlib.PosixPath",
    "pathlib.PurePosixPath",
    "pathlib.PureWindowsPath",
    "pathlib.WindowsPath",
    "builtins.bool",
    "builtins.complex",
    "builtins.frozenset",
    "builtins.range",
    "builtins.tuple",
    "builtins.dict",
    "builtins.list",
    "builtins.int",
    "builtins.float",
    "builtins.str",
    "builtins.slice",
)
_MAPPINGS = (
    "pytorch_lightning.utilities.parsing.AttributeDict",
    "lightning_fabric.utilities.data.AttributeDict",
    "lightning.fabric.utilities.data.AttributeDict",
    "collections.defaultdict",
)
_LISTS = ("collections.deque",)
_CONTAINERS = ("torch.nn.modules.container.ParameterDict", "torch.nn.modules.container.ParameterList")


class Ignored:
    """Stands for an object that is no weight."""

    def __new__(cls, *_: object, **__: object) -> "Ignored":
        """Take any arguments."""
        return super().__new__(cls)

    def __setstate__(self, _: object) -> None:
        """Forget the state."""


class _Mapping:
    """Stands for a kind of mapping. What is made is a plain dict, since torch's reader fills no other."""

    def __new__(cls, *_: object, **__: object) -> dict[object, object]:  # type: ignore[misc]
        """Take any arguments."""
        return {}


class _List:
    """Stands for a kind of list; what is made is a plain one, as in `_Mapping`."""

    def __new__(cls, *_: object, **__: object) -> list[object]:  # type: ignore[misc]
        """Take any arguments."""
        return []


class Contained:
    """Stands for a container of parameters; its tensors are in `state`."""

    state: object = None

    def __new__(cls, *_: object, **__: object) -> "Contained":
        """Take any arguments."""
        return super().__new__(cls)

    def __setstate__(self, state: object) -> None:
        """Keep the state."""
        self.state = state


def read(path: Path) -> tuple[Any, dict[str, str]]:
    """Return what a file holds, nested as in the file, and the metadata of safetensors.

    Raises:
        UnsafeModelError: it is not a file of weights, is damaged, or holds what is not weights.
    """
    try:
        with path.open("rb") as stream:
            start = stream.read(512)
    except OSError as error:
        raise UnsafeModelError(f"it cannot be read: {error.strerror}", reason="WEIGHTS_UNREADABLE") from error
    if not start:
        raise UnsafeModelError("it is empty", reason="WEIGHTS_UNREADABLE")
    if start[8:9] == b"{":
        return _safetensors(path)
    if start[:4] == b"PK\x03\x04" or zipfile.is_zipfile(path):
        _check_zip(path)
        _check_globals(path)
    elif start[257:262] == b"ustar" or tarfile.is_tarfile(path):
        raise _refused("it is a tar archive; load and save it with a torch that still reads it")
    elif is_lfs_pointer(path):
        raise _refused("it is a pointer of Git LFS in place of the file; fetch the file (git lfs pull)")
    elif start[:1] != b"\x80":
        raise _refused("it is neither safetensors nor what torch.save writes")
    return _pickle(path), {}


def _safetensors(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except (OSError, SafetensorError, ValueError) as error:
        if is_shortage(error):
            raise MemoryError from error
        raise _refused("it is damaged: it cannot be read as safetensors") from error


def _check_zip(path: Path) -> None:
    """Refuse archives that torch does not write: compressed, or with members that unfold or overlap."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, UnicodeDecodeError) as error:
        raise _refused("it is a damaged zip archive") from error
    names = [member.filename for member in members]
    if len(members) > MAX_MEMBERS or len(set(names)) != len(names):
        raise _refused("it is a zip archive with too many members, or two of one name")
    if any(name.endswith("/constants.pkl") for name in names):
        raise _refused("it is TorchScript, a program; save the module's state_dict() instead")
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise _refused("it is a compressed zip archive, which torch.save never writes")
    if sum(member.file_size for member in members) > path.stat().st_size:
        raise _refused("it is a zip archive whose members overlap")
    pickles = [member.file_size for member in members if member.filename.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise _refused("it is a zip archive, but not one that torch.save writes")
    if pickles[0] > MAX_PICKLE_BYTES:
        raise _refused(f"its pickle has more than {MAX_PICKLE_BYTES} bytes")


def _placeholders() -> list[Any]:
    """Return what stands for the objects that a checkpoint may hold beside its weights, with their names."""
    return [
        *((Ignored, name) for name in _IGNORED),
        *((_Mapping, name) for name in _MAPPINGS),
        *((_List, name) for name in _LISTS),
        *((Contained, name) for name in _CONTAINERS),
    ]


def _check_globals(path: Path) -> None:
    """Refuse a file whose pickle names anything but tensors and what becomes a placeholder."""
    with safe_globals(_placeholders()):
        try:
            unsafe = sorted(get_unsafe_globals_in_checkpoint(path))
        except UneraseError:
            raise
        except Exception as error:
            raise _unreadable(error) from error
    if unsafe:
        raise _unsafe(", ".join(unsafe[:3]) + (f" and {len(unsafe) - 3} more" if len(unsafe) > 3 else ""))


def _pickle(path: Path) -> Any:
    with safe_globals(_placeholders()):
        try:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=False)
        except (MemoryError, UneraseError):
            raise
        except Exception as error:
            raise _unreadable(error) from error


def _unreadable(error: Exception) -> UnsafeModelError:
    """Return the refusal for an error of torch's reader, which quotes the file and advises to trust it."""
    if is_shortage(error):
        raise MemoryError from error
    _, found, rest = str(error).partition("GLOBAL ")
    if found:
        return _unsafe(rest.split()[0])
    return _refused("it is damaged, or holds what is not weights")


def _unsafe(named: str) -> UnsafeModelError:
    message = (
        f"its pickle asks for {named}, which is not weights and is not run; if the file holds a whole module, save its "
        "state_dict() instead, and if it holds that beside the weights, save the weights alone, where you trust the "
        'file: torch.save(torch.load(FILE, weights_only=False)["state_dict"], NEW)'
    )
    return UnsafeModelError(message, reason="UNSAFE_MODEL")


def _refused(message: str) -> UnsafeModelError:
    return UnsafeModelError(message, reason="WEIGHTS_UNREADABLE")


def contents(value: object) -> Mapping[Any, Any] | None:
    """Return a mapping, or the mapping that a container of parameters stands for; None for anything else."""
    if isinstance(value, Mapping):
        return value
    if isinstance(value, Contained):
        state = value.state
        inner = state.get("_parameters") if isinstance(state, Mapping) else None
        found = inner if isinstance(inner, Mapping) and inner else state
        return found if isinstance(found, Mapping) else None
    return None
