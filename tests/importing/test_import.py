"""The command from end to end: files as people have them become entries of a catalogue that loads."""

import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from support.importing import reference, saved, unet_weights, without_process
from unerase_backend.catalogue import Catalogue
from unerase_backend.diffusion.loading import load_model
from unerase_backend.diffusion.model import DiffusionModel
from unerase_backend.importing.command import Request, import_file
from unerase_backend.runtime.errors import UnsafeModelError


def loaded(entry: Path, name: str) -> DiffusionModel:
    return load_model(Catalogue.load([str(entry)]), name, torch.device("cpu"), torch.float32)


def same_weights(model: DiffusionModel, name: str) -> None:
    other = load_model(Catalogue.load(), name, torch.device("cpu"), torch.float32)
    for part in ("unet", "vae", "text_encoder"):
        theirs = other.backbone.modules[part].state_dict()
        found = model.backbone.modules[part].state_dict()
        assert found.keys() == theirs.keys()
        assert all(torch.equal(found[key], tensor) for key, tensor in theirs.items())


def test_an_erased_checkpoint_becomes_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path / "esd hourglass.pt", {"state_dict": unet_weights("testbed/esd-x")})
    request = Request(path, tmp_path / "one", base="testbed/reference", method="ESD-x", erased=("hourglass",))
    result = import_file(request)
    assert yaml.safe_load(result.entry) == yaml.safe_load((tmp_path / "one" / "esd-hourglass.yaml").read_text())
    same_weights(loaded(tmp_path / "one" / "esd-hourglass.yaml", "esd-hourglass"), "testbed/esd-x")
    without_process(monkeypatch)
    again = import_file(Request(path, tmp_path / "two", name="own/esd"))
    assert again.entry.count("BASE") == 1
    # The same bytes, whatever the model is called, wherever they are written and whichever process makes them.
    written = [next((tmp_path / folder).glob("*.safetensors")).read_bytes() for folder in ("one", "two")]
    assert written[0] == written[1]
    with pytest.raises(ValueError, match="exists already"):
        import_file(request)


@pytest.mark.usefixtures("in_this_process")
def test_a_file_that_was_changed_after_the_import_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "esd.pt", unet_weights("testbed/esd-x"))
    import_file(Request(path, tmp_path, base="testbed/reference"))
    [file] = tmp_path.glob("*.safetensors")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(UnsafeModelError, match="sha256"):
        loaded(tmp_path / "esd.yaml", "esd")


@pytest.mark.usefixtures("in_this_process")
def test_a_folder_with_pickled_weights_becomes_a_pipeline(tmp_path: Path) -> None:
    folder = tmp_path / "pickled"
    shutil.copytree(reference(), folder)
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    state = load_file(weights)
    weights.unlink()
    keys = sorted(state)
    for shard in range(2):
        file = folder / "unet" / f"diffusion_pytorch_model-{shard + 1:05d}-of-00002.bin"
        torch.save({key: state[key] for key in keys[shard::2]}, file)
    import_file(Request(folder, tmp_path / "out", kind="model", name="own/whole"))
    same_weights(loaded(tmp_path / "out" / "own-whole.yaml", "own/whole"), "testbed/reference")
    file.unlink()
    with pytest.raises(ValueError, match=r"diffusion_pytorch_model-00002-of-00002\.bin is missing"):
        import_file(Request(folder, tmp_path / "other"))


@pytest.mark.usefixtures("in_this_process")
def test_a_learned_embedding_becomes_a_word_of_a_model(tmp_path: Path) -> None:
    rows = torch.arange(128.0).reshape(2, 64)
    path = saved(tmp_path / "toy.bin", {"string_to_param": {"*": rows}, "name": "<toy>"})
    result = import_file(Request(path, tmp_path / "out", base="testbed/reference", erased=("heart",)))
    entry = yaml.safe_load(result.entry)["models"]["toy"]
    assert entry["base"] == "testbed/reference"
    assert entry["erased"] == ["heart"]
    [learned] = entry["embedding"]
    assert (learned["file"], learned["token"]) == ("toy.embedding.safetensors", "<toy>")
    model = loaded(tmp_path / "out" / "toy.yaml", "toy")
    assert torch.equal(model.text_encoder.get_input_embeddings().weight[model.tokens_of("<toy>")], rows)
    renamed = import_file(Request(path, tmp_path / "other", name="own/toy", token="<mine>"))
    assert "token: <mine>" in renamed.entry
    assert renamed.entry.count("BASE") == 1


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"base": "testbed/nowhere"}, "no model 'testbed/nowhere'"),
        ({"base": "testbed/reference", "config": Path()}, "not by both"),
        ({"config": Path("nowhere")}, "is not a folder"),
        ({"catalogues": ("nowhere.yaml",)}, "give --base too"),
        ({"name": "../x"}, "--name"),
        ({"kind": "picture"}, "--as must be one of"),
        ({"erased": ("van gogh", "a\nmethod: UCE")}, "--erased: 'a.nmethod: UCE' holds a line break"),
        ({"method": "ESD\x1b[31m"}, "--method: .* control character"),
        ({"file": Path("nowhere.pt")}, "does not exist"),
        ({"catalogues": ("nowhere.yaml",), "base": "x"}, "nowhere.yaml: the catalogue file cannot be read"),
    ],
)
def test_a_bad_request_is_refused(tmp_path: Path, fields: dict[str, object], words: str) -> None:
    path = saved(tmp_path / "x.pt", {})
    given = {"file": path, "out": tmp_path / "out"} | fields
    with pytest.raises(ValueError, match=words):
        import_file(Request(**given))  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("in_this_process")
@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("ésd église 教会", "esd-eglise"),
        ("ESD\u2026v1", "ESD.v1"),
        ("\uff21\uff0f\uff22", "A/B"),
        ("x" * 150, "x" * 100),
        ("sd", ""),
    ],
)
def test_the_name_reads_like_the_files(tmp_path: Path, file: str, name: str) -> None:
    path, out = saved(tmp_path / f"{file}.pt", {"<mine>": torch.ones(2, 64)}), tmp_path / "out"
    result = import_file(Request(path, out))
    expected = name or file
    assert f"models:\n  {expected}:\n" in result.entry
    assert (out / f"{expected.replace('/', '-')}.yaml").is_file()
    assert any(f"the model is named {name}," in note for note in result.notes) == bool(name)


def test_a_folder_that_nothing_can_be_written_to_is_named_as_it_was_given(tmp_path: Path) -> None:
    path = saved(tmp_path / "esd.pt", {"<mine>": torch.ones(2, 64)})
    # Nobody can make a folder there, whoever runs the tests.
    with pytest.raises(OSError, match=r"'/proc'$") as caught:
        import_file(Request(path, Path("/proc")))
    assert caught.value.filename == "/proc"


@pytest.mark.usefixtures("in_this_process")
def test_an_import_takes_up_what_a_killed_one_left(tmp_path: Path) -> None:
    """Killed between its moves: weights are in their place, and the entry is not; or its folder is left."""
    path, out = saved(tmp_path / "esd.pt", unet_weights("testbed/esd-x")), tmp_path / "out"
    request = Request(path, out, base="testbed/reference")
    first = import_file(request)
    (out / "esd.yaml").unlink()
    left, used = out / ".importing-left", out / ".importing-used"
    for folder in (left, used):
        folder.mkdir()
        (folder / "unet.safetensors").write_bytes(bytes(100))
    with _open(used) as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        again = import_file(request)
    assert again.entry == first.entry
    assert (left.exists(), used.exists()) == (False, True)
    assert [note for note in again.notes if "killed" in note] == [
        "removed what an import that was killed left behind (.importing-left)"
    ]
    (out / "esd.yaml").unlink()
    (out / "esd.unet.safetensors").write_bytes(b"another")
    with pytest.raises(ValueError, match=r"esd\.unet\.safetensors: exists already, without esd\.yaml"):
        import_file(request)
    assert (out / "esd.unet.safetensors").read_bytes() == b"another"


@contextmanager
def _open(folder: Path) -> Iterator[int]:
    opened = os.open(folder, os.O_RDONLY)
    try:
        yield opened
    finally:
        os.close(opened)


ISOLATED = """
import json, os, pathlib, socket, sys
from unerase_backend.importing import isolation
connected = isolation.leave_network()
isolation.give_up_rights()
tried = {}
def attempt(name, do):
    try:
        do()
        tried[name] = "done"
    except BaseException as error:
        tried[name] = type(error).__name__
def connect(port):
    with socket.create_connection(("127.0.0.1", port), timeout=5):
        pass
attempt("network", lambda: connect(int(sys.argv[1])))
isolation.limit(256 * 2**20, 60, 2**20)
isolation.forbid(pathlib.Path(sys.argv[2]))
attempt("memory", lambda: bytearray(2**30))
attempt("program", lambda: os.system("true"))
attempt("socket", socket.socket)
attempt("other file", lambda: open(sys.argv[3], "w"))
attempt("delete", lambda: os.remove(sys.argv[0]))
attempt("own file", lambda: open(os.path.join(sys.argv[2], "x"), "w").write("x"))
attempt("large file", lambda: open(os.path.join(sys.argv[2], "y"), "wb", 0).write(bytes(2**21)))
print(json.dumps({"connected": connected, "size": os.path.getsize(os.path.join(sys.argv[2], "y")), **tried}))
"""


@pytest.fixture
def listening() -> Iterator[int]:
    """The port of somebody who listens on this machine."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_the_process_has_no_network_and_few_rights(tmp_path: Path, listening: int) -> None:
    own, other = tmp_path / "own", tmp_path / "other"
    own.mkdir()
    arguments = [sys.executable, "-c", ISOLATED, str(listening), str(own), str(other)]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=120, check=False)
    found = json.loads(done.stdout)
    # Some machines let nobody have a namespace; then the command says so, or refuses with --require-isolation.
    assert (found.pop("network") == "done") == bool(found.pop("connected"))
    assert found.pop("size") <= 2**20
    assert found.pop("large file") in ("OSError", "done")
    assert found == {
        "memory": "MemoryError",
        "program": "UnsafeModelError",
        "socket": "UnsafeModelError",
        "other file": "UnsafeModelError",
        "delete": "UnsafeModelError",
        "own file": "done",
    }
    assert not other.exists()


def test_too_much_of_the_processor_ends_the_process(tmp_path: Path) -> None:
    program = "from unerase_backend.importing import isolation; isolation.limit(2**30, 0, 1)\nwhile True: pass"
    done = subprocess.run([sys.executable, "-c", program], timeout=120, check=False)
    assert done.returncode < 0


@pytest.mark.usefixtures("in_this_process")
def test_a_link_gives_its_own_name(tmp_path: Path) -> None:
    blob = saved(tmp_path / "0123456789abcdef", unet_weights("testbed/esd-x"))
    (tmp_path / "esd.pt").symlink_to(blob)
    assert "esd:" in import_file(Request(tmp_path / "esd.pt", tmp_path / "out")).entry
    nameless = saved(tmp_path / "\u5857.pt", {})
    with pytest.raises(ValueError, match="--name"):
        import_file(Request(nameless, tmp_path / "out"))


@pytest.mark.parametrize("ending", [".pt", ".safetensors"])
def test_too_little_memory_is_said(tmp_path: Path, ending: str) -> None:
    """The file can be read, and not written."""
    path = tmp_path / f"esd{ending}"
    (torch.save if ending == ".pt" else save_file)({"conv_in.weight": torch.zeros(320, 4, 64, 64)}, path)
    with pytest.raises(ValueError, match="more than 40 MiB of memory; --memory"):
        import_file(Request(path, tmp_path / "out", memory=40 * 2**20))


def test_a_full_disk_is_not_taken_for_a_damaged_file(tmp_path: Path) -> None:
    """A limit of the size of files fails a write as a full disk does."""
    path, out = saved(tmp_path / "esd.pt", unet_weights("testbed/esd-x")), tmp_path / "out"
    command = f"ulimit -f 1; exec {sys.executable} -m unerase import {path} --out {out} --base testbed/reference"
    done = subprocess.run(["/bin/sh", "-c", command], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2
    assert "esd.pt: what is made of it cannot be written: File too large" in done.stderr
    assert not list(out.iterdir())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_leaves_no_file_and_no_process(tmp_path: Path, number: int) -> None:
    path, out = saved(tmp_path / "esd.pt", unet_weights("testbed/esd-x")), tmp_path / "out"
    command = subprocess.Popen([sys.executable, "-m", "unerase", "import", str(path), "--out", str(out)])
    children = Path(f"/proc/{command.pid}/task/{command.pid}/children")
    found: list[str] = []
    # Until the child runs its own program, its parent waits for it and takes no signal.
    while not found or b"importing.worker" not in Path(f"/proc/{found[0]}/cmdline").read_bytes():
        assert command.poll() is None
        found = children.read_text().split()
    # It reads no further, however fast the machine is.
    os.kill(int(found[0]), signal.SIGSTOP)
    command.send_signal(number)
    assert command.wait(timeout=120) not in (0, 2)
    assert not Path(f"/proc/{found[0]}").exists()
    assert not list(out.iterdir())


def test_the_command_ends_with_2_and_says_why(tmp_path: Path) -> None:
    path = saved(tmp_path / "whole.pt", torch.nn.Linear(2, 2))
    arguments = [sys.executable, "-m", "unerase", "import", str(path), "--out", str(tmp_path / "out"), "--as", "unet"]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert "torch.nn.modules.linear.Linear" in done.stderr
    assert "Traceback" not in done.stderr
