"""Files that mean harm, or are broken in ways that could do some: each is refused, nothing in it is run, nothing stays.

Those that need the limits of the process that reads them, and one of each kind, go through the whole command.
"""

import os
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from support.importing import imported
from unerase_backend.importing.command import Request, import_file
from unerase_backend.runtime.errors import UneraseError

Write = Callable[[Path, Path], None]
HOSTILE: dict[str, tuple[Write, str, str, bool]] = {}
WEIGHTS = {"conv_in.weight": torch.zeros(8, 4, 3, 3)}


class Tripwire:
    """Leaves a file where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


class Evaluated(Tripwire):
    """The same by way of a builtin."""

    def __reduce__(self) -> tuple[Any, ...]:
        return eval, (f"open({str(self.mark)!r}, 'w')",)


def hostile(words: str, ending: str = ".pt", *, whole: bool = False) -> Callable[[Write], Write]:
    """Register a function that writes a hostile file; `mark` is what must not come to be."""

    def register(write: Write) -> Write:
        HOSTILE[write.__name__] = (write, words, ending, whole)
        return write

    return register


def checkpoint(path: Path, opcodes: bytes, *storages: bytes, compression: int = zipfile.ZIP_STORED) -> None:
    """A zip as torch.save writes it, around any pickle."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", opcodes)
        archive.writestr("archive/byteorder", "little")
        for index, storage in enumerate(storages):
            archive.writestr(f"archive/data/{index}", storage)
        archive.writestr("archive/version", "3\n")


def rebuilt(size: int, elements: int, stride: int) -> bytes:
    """A pickle of {"conv_in.weight": a tensor of `size` times `size` numbers over a storage of `elements`}."""

    class Storage:
        pass

    class Pickler(pickle.Pickler):
        def persistent_id(self, given: object) -> object:
            return ("storage", torch.FloatStorage, "0", "cpu", elements) if isinstance(given, Storage) else None

    class Rebuilt:
        def __reduce__(self) -> tuple[Any, ...]:
            rows = (Storage(), 0, (size, size), (stride, stride), False, {})
            return torch._utils._rebuild_tensor_v2, rows

    stream = BytesIO()
    Pickler(stream, 2).dump({"conv_in.weight": Rebuilt()})
    return stream.getvalue()


@hostile("asks for pathlib.Path.touch|pathlib.PosixPath.touch|builtins.getattr|getattr", whole=True)
def a_pickle_that_calls(path: Path, mark: Path) -> None:
    torch.save({"conv_in.weight": Tripwire(mark)}, path)


@hostile("asks for", ".ckpt")
def a_legacy_pickle_that_calls(path: Path, mark: Path) -> None:
    torch.save({"conv_in.weight": Evaluated(mark)}, path, _use_new_zipfile_serialization=False)


@hostile("asks for", ".bin")
def a_plain_pickle_that_calls(path: Path, mark: Path) -> None:
    path.write_bytes(pickle.dumps(Evaluated(mark), protocol=2))


@hostile("asks for os.system|asks for posix.system")
def a_pickle_that_imports(path: Path, mark: Path) -> None:
    checkpoint(path, b"\x80\x02cos\nsystem\nX" + struct.pack("<I", 4) + b"true\x85R.")


@hostile("asks for .*Linear.*state_dict")
def a_whole_module(path: Path, mark: Path) -> None:
    torch.save(nn.Linear(2, 2), path)


@hostile("TorchScript")
def a_program(path: Path, mark: Path) -> None:
    torch.jit.script(nn.Linear(2, 2)).save(str(path))


@hostile("--memory", whole=True)
def a_pickle_that_allocates(path: Path, mark: Path) -> None:
    length = b"\x8a\x06" + (1 << 40).to_bytes(6, "little")
    checkpoint(path, b"\x80\x02cbuiltins\nbytearray\n" + length + b"\x85R.")


@hostile("unfold to more than", whole=True)
def a_tensor_that_unfolds(path: Path, mark: Path) -> None:
    checkpoint(path, rebuilt(1 << 20, 1, 0), struct.pack("<f", 1.0))


@hostile("is damaged")
def a_tensor_beyond_its_storage(path: Path, mark: Path) -> None:
    checkpoint(path, rebuilt(1 << 10, 4, 1 << 10), bytes(16))


@hostile("damaged|ended with|nested", whole=True)
def a_pickle_that_is_deep(path: Path, mark: Path) -> None:
    depth = 300_000
    checkpoint(path, b"\x80\x02}X" + struct.pack("<I", 1) + b"a" + b"]" * 1 + b"(" * depth + b"t" * depth + b"s.")


@hostile("no tensors by name|nested")
def mappings_that_are_deep(path: Path, mark: Path) -> None:
    nested: dict[str, Any] = {"conv_in.weight": torch.zeros(2)}
    for _ in range(200):
        nested = {"model": nested}
    torch.save(nested, path)


@hostile("more than 100000")
def mappings_that_multiply(path: Path, mark: Path) -> None:
    level: dict[str, Any] = dict(WEIGHTS)
    for _ in range(6):
        level = {f"{index}": level for index in range(12)} | WEIGHTS
    torch.save(level, path)


@hostile("compressed")
def a_zip_bomb(path: Path, mark: Path) -> None:
    checkpoint(path, rebuilt(2, 4, 2), bytes(1 << 26), compression=zipfile.ZIP_DEFLATED)


@hostile("overlap|damaged|two of one name")
def a_zip_whose_members_overlap(path: Path, mark: Path) -> None:
    checkpoint(path, rebuilt(2, 4, 2), bytes(4096))
    content = path.read_bytes()
    at, end = content.index(b"PK\x01\x02"), content.rindex(b"PK\x05\x06")
    directory = content[at:end]
    count = directory.count(b"PK\x01\x02")
    copies = b"".join(
        directory.replace(b"archive/data/0", f"archive/data/{n}".encode()).replace(b"archive/", b"archiv%d/" % n)
        for n in range(1, 9)
    )
    tail = struct.pack("<4sHHHHIIH", b"PK\x05\x06", 0, 0, 9 * count, 9 * count, 9 * len(directory), at, 0)
    path.write_bytes(content[:end] + copies + tail)


@hostile("tar archive", ".ckpt")
def a_tar(path: Path, mark: Path) -> None:
    with tarfile.open(path, "w") as archive:
        archive.addfile(tarfile.TarInfo("storages"), BytesIO(b""))


@hostile("damaged")
def a_file_that_is_cut_off(path: Path, mark: Path) -> None:
    torch.save(WEIGHTS, path)
    path.write_bytes(path.read_bytes()[:-200])


@hostile("damaged")
def a_legacy_file_that_is_cut_off(path: Path, mark: Path) -> None:
    torch.save(WEIGHTS, path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes()[:-200])


@hostile("is empty")
def an_empty_file(path: Path, mark: Path) -> None:
    path.write_bytes(b"")


@hostile("neither safetensors nor", ".safetensors")
def a_text(path: Path, mark: Path) -> None:
    path.write_text("import os\n" * 100)


@hostile("git lfs pull", ".ckpt")
def a_pointer_of_git_lfs(path: Path, mark: Path) -> None:
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3438167536\n")


@hostile("damaged", ".safetensors", whole=True)
def a_header_longer_than_the_file(path: Path, mark: Path) -> None:
    path.write_bytes(struct.pack("<Q", 1 << 40) + b'{"conv_in.weight":{}}')


@hostile("asks for", ".safetensors")
def a_pickle_named_safetensors(path: Path, mark: Path) -> None:
    torch.save({"conv_in.weight": Evaluated(mark)}, path)


@hostile("NaN or infinity")
def a_weight_that_is_nan(path: Path, mark: Path) -> None:
    torch.save({"conv_in.weight": torch.full((8, 4, 3, 3), float("nan"))}, path)


@hostile("the type int64")
def weights_that_are_whole_numbers(path: Path, mark: Path) -> None:
    torch.save({"conv_in.weight": torch.zeros((8, 4, 3, 3), dtype=torch.int64)}, path)


@hostile("sparse, quantised or without values")
def a_tensor_without_values(path: Path, mark: Path) -> None:
    torch.save({"conv_in.weight": torch.zeros((1 << 20, 1 << 20), device="meta")}, path)


@hostile("name is no text")
def a_name_that_hides_text(path: Path, mark: Path) -> None:
    torch.save({"conv_in.\u202eweight": torch.zeros(2)}, path)


@hostile("is neither a file nor a folder", whole=True)
def a_fifo(path: Path, mark: Path) -> None:
    os.mkfifo(path)


@hostile("must end in one of", ".exe", whole=True)
def another_ending(path: Path, mark: Path) -> None:
    save_file(WEIGHTS, path)


@pytest.mark.parametrize("name", HOSTILE)
def test_no_hostile_file_is_imported(tmp_path: Path, name: str) -> None:
    write, words, ending, whole = HOSTILE[name]
    path, mark, out = tmp_path / f"weights{ending}", tmp_path / "mark", tmp_path / "out"
    write(path, mark)
    with pytest.raises((ValueError, UneraseError), match=words) as refused:
        import_file(Request(file=path, out=out)) if whole else imported(path)
    assert not mark.exists()
    assert not out.exists() or not list(out.iterdir())
    assert "Traceback" not in str(refused.value)


def test_there_are_more_than_twenty() -> None:
    assert len(HOSTILE) > 20
