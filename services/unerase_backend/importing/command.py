"""`unerase import`: has a foreign file read by a process of its own, and writes safetensors and a catalogue's entry."""

import json
import os
import re
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

from safetensors import SafetensorError, safe_open

from unerase_backend.catalogue import Catalogue
from unerase_backend.catalogue.digests import hash_file
from unerase_backend.catalogue.layouts import PICKLES, ImportKind
from unerase_backend.catalogue.names import nearest
from unerase_backend.importing.entry import Described, entry_of
from unerase_backend.importing.folders import Job, architecture_of, jobs_of, write_folder
from unerase_backend.importing.placing import check_free, place, work_folder
from unerase_backend.runtime.errors import InvalidRequestError, UneraseError

KINDS: tuple[str, ...] = get_args(ImportKind)
"""What a file can be asked to be, by `--as`."""
DEFAULT_SECONDS = 900
MiB = 2**20
# Of what the process says of its work.
_MAX_ANSWER_BYTES = MiB
# What a process may write.
_PART = re.compile(r"unet|text_encoder|vae|lora|embedding(?:-\d{1,2})?")
_ENDINGS = (*PICKLES, ".safetensors")
# What a process needs of the caller's environment; tokens and passwords stay here.
_ENVIRONMENT = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "TZ", "VIRTUAL_ENV", "PYTHONHOME")
_END_SIGNALS = (signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True)
class Request:
    """What the command is asked for."""

    file: Path
    out: Path
    kind: str = ""
    """One of `KINDS`; by the file's content if empty."""
    name: str = ""
    """The model's name in the catalogue; the file's, if empty."""
    base: str = ""
    """The catalogue's model that the file changes."""
    catalogues: tuple[str, ...] = ()
    config: Path | None = None
    """A pipeline's folder, or a part's, whose configurations are the model's."""
    select: str = ""
    token: str = ""
    method: str = ""
    erased: tuple[str, ...] = ()
    memory: int = 0
    """Bytes; four times the file and 1 GiB if 0."""
    seconds: int = DEFAULT_SECONDS
    require_isolation: bool = False


@dataclass
class Result:
    """What the command did."""

    files: list[str]
    """One line for each written file, with its SHA-256."""
    entry: str
    """The catalogue's entry, as YAML."""
    notes: list[str] = field(default_factory=list)


def import_file(request: Request) -> Result:
    """Import a file, or a pipeline's folder with pickled weights.

    Raises:
        ValueError: the request or the file is wrong; nothing is left behind.
        OSError: a file cannot be read or written.
    """
    try:
        with _ended_by_signals():
            return _import(request)
    except UneraseError as error:
        raise ValueError(error.message) from error


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Let signals that end the process end what it does first: nothing stays behind."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, _: object) -> None:
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, end) for number in _END_SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _held_back() -> Iterator[Callable[[], object]]:
    """Hold signals back until the function that it yields is called, or to the end.

    One that came while a process is being started would leave it behind: nobody would know it yet.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, *_END_SIGNALS))

    def let_through() -> object:
        return signal.pthread_sigmask(signal.SIG_SETMASK, before)

    try:
        yield let_through
    finally:
        let_through()


def _import(request: Request) -> Result:
    # A link has its own name: that of a file in a hub's cache is a digest.
    file = Path(os.path.abspath(request.file))
    name = request.name or re.sub(r"\.\.+", ".", nearest(file.stem))
    if not name:
        raise ValueError(f"{request.file.name}: give a --name; none of letters and digits can be made of the file's")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,99}", name) or ".." in name:
        raise ValueError(
            "--name must begin with a letter or digit and hold only letters, digits, '.', '_', '-' and '/'"
        )
    for option, value in (("--method", request.method), *(("--erased", each) for each in request.erased)):
        if not value.isprintable():
            raise ValueError(f"{option}: {value!a} holds a line break or another control character")
    if request.kind and request.kind not in KINDS:
        raise ValueError(f"--as must be one of {', '.join(KINDS)}, not {request.kind!r}")
    if not request.file.exists():
        raise ValueError(f"{request.file}: does not exist")
    request = replace(request, file=file)
    base = _base_folder(request)
    stem = name.replace("/", "-")
    check_free(request.out / f"{stem}.yaml", request.out / stem)
    notes: list[str] = []
    if not request.name and name != file.stem:
        notes.append(f"the model is named {name}, since a name cannot hold all characters of the file's")
    with work_folder(request.out, notes) as folder:
        jobs = jobs_of(request.file, request.kind) if request.file.is_dir() else [_job(request, base)]
        written: list[str] = []
        for index, job in enumerate(jobs):
            own = folder / str(index)
            own.mkdir()
            answer = _run(request, job, own)
            if answer.get("connected") and not index:
                notes.append(f"the file was read without isolation from the network: {answer['connected']}")
            notes += [str(note) for note in answer["notes"]]
            written += [
                _checked(own / f"{part}.safetensors", folder / f"{part}.safetensors") for part in answer["files"]
            ]
        return _placed(request, name, stem, folder, written, notes, request.file if request.file.is_dir() else base)


def _base_folder(request: Request) -> Path | None:
    if request.config is not None:
        if request.base or request.catalogues:
            raise ValueError("give the model's architecture by --base or by --config, not by both")
        if not request.config.is_dir():
            raise ValueError(f"--config: {request.config} is not a folder")
        return request.config
    if not request.base:
        if request.catalogues:
            raise ValueError("--catalogue says where --base is looked up; give --base too")
        return None
    try:
        return Catalogue.load(request.catalogues).model_parts(request.base).folder
    except InvalidRequestError as error:
        raise ValueError("; ".join(f"{each.field}: {each.description}" for each in error.violations)) from error


def _job(request: Request, base: Path | None) -> Job:
    if not request.file.is_file():
        raise ValueError(f"{request.file}: is neither a file nor a folder")
    if request.file.suffix.lower() not in _ENDINGS:
        raise ValueError(f"{request.file.name}: must end in one of {', '.join(_ENDINGS)}")
    beside = request.file.with_name("adapter_config.json")
    text = beside.read_text(encoding="utf-8") if beside.is_file() and beside.stat().st_size < MiB else ""
    return Job(request.kind, (request.file,), architecture_of(base) if base else {}, beside=text)


def _asked(request: Request, job: Job, folder: Path) -> dict[str, Any]:
    """Return what the process that does a job in `folder` is told."""
    size = sum(file.stat().st_size for file in job.files)
    memory = request.memory or 4 * size + 1024 * MiB
    return {
        "files": [str(file.resolve()) for file in job.files],
        "kind": job.kind,
        "architecture": job.architecture,
        "complete": job.complete,
        "beside": job.beside,
        "select": request.select,
        "token": request.token,
        "folder": str(folder.resolve()),
        "memory": memory,
        "seconds": request.seconds,
        "written": 2 * size + 64 * MiB,
        "require_isolation": request.require_isolation,
    }


def _run(request: Request, job: Job, folder: Path) -> dict[str, Any]:
    """Have a process of its own do a job in `folder`; return its answer."""
    content = json.dumps(_asked(request, job, folder)).encode()
    environment = {key: os.environ[key] for key in _ENVIRONMENT if key in os.environ} | {
        "HOME": str(folder),
        "TMPDIR": str(folder),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    answered = folder / "answer.json"
    with answered.open("wb") as stdout, _held_back() as let_through:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "unerase_backend.importing.worker"],
            stdin=subprocess.PIPE,
            stdout=stdout,
            stderr=subprocess.DEVNULL,
            cwd=folder,
            env=environment,
            start_new_session=True,
        )
        try:
            let_through()
            process.communicate(content, timeout=request.seconds + 30)
        except subprocess.TimeoutExpired:
            raise ValueError(f"{request.file.name}: reading it took longer than --seconds {request.seconds}") from None
        finally:
            with suppress(ProcessLookupError):
                process.kill()
            process.wait()
    return _answer(request, process.returncode, answered)


def _answer(request: Request, code: int, path: Path) -> dict[str, Any]:
    if code in (-signal.SIGXCPU, -signal.SIGKILL):
        raise ValueError(f"{request.file.name}: reading it took more than --seconds {request.seconds}, or all memory")
    if code == -signal.SIGXFSZ:
        raise ValueError(f"{request.file.name}: it unfolds to far more bytes than the file has")
    try:
        with path.open("rb") as stream:
            answer = json.loads(stream.read(_MAX_ANSWER_BYTES))
    except (ValueError, RecursionError):
        named = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        raise ValueError(f"{request.file.name}: the process that read it ended with {named}") from None
    if not isinstance(answer, dict) or "error" in answer:
        raise ValueError(f"{request.file.name}: {answer.get('error') if isinstance(answer, dict) else 'no answer'}")
    files = answer.get("files")
    known = isinstance(files, list) and files and all(isinstance(each, str) and _PART.fullmatch(each) for each in files)
    if not known or not isinstance(answer.get("notes"), list):
        raise ValueError(f"{request.file.name}: the process that read it gave no right answer")
    return answer


def _checked(found: Path, target: Path) -> str:
    """Check a file that the process wrote, and move it; return its part."""
    try:
        if not stat.S_ISREG(found.lstat().st_mode):
            raise ValueError("the process that read the file wrote something that is no file")
        with safe_open(found, framework="np") as file:
            if not list(file.keys()):
                raise ValueError("the process that read the file wrote no tensors")
    except (OSError, SafetensorError) as error:
        raise ValueError("the process that read the file wrote no right safetensors") from error
    if target.exists():
        raise ValueError(f"the file holds two times the part {target.stem}")
    found.chmod(0o644)
    found.replace(target)
    return target.stem


def _placed(
    request: Request, name: str, stem: str, work: Path, parts: Sequence[str], notes: list[str], base: Path | None
) -> Result:
    """Move the written parts to their place, and describe them."""
    digests = {part: hash_file(part, work / f"{part}.safetensors").digest for part in parts}
    whole = "vae" in parts or request.file.is_dir()
    tokens = {part: _name_in(work / f"{part}.safetensors") for part in parts if part.startswith("embedding")}
    described = Described(
        name, stem, request.file.name, request.base, request.method, request.erased, digests, whole, tokens
    )
    entry, more = entry_of(described, base)
    if not request.base and not whole:
        notes.append("the entry's base is to be filled in: the catalogue's name of the model that the file changes")
    if base is None:
        notes.append("names and shapes were compared with no model; --base compares them")
    moves = {work / f"{part}.safetensors": request.out / described.file_of(part) for part in parts}
    (work / "entry.yaml").write_text(entry, encoding="utf-8")
    moves[work / "entry.yaml"] = request.out / f"{stem}.yaml"
    if whole:
        assert base is not None  # noqa: S101 - a whole model has been checked against its base
        write_folder(base, work / "pipeline", {part: work / f"{part}.safetensors" for part in parts})
        moves = {work / "pipeline": request.out / stem, work / "entry.yaml": request.out / f"{stem}.yaml"}
    place(moves, request.out / f"{stem}.yaml")
    lines = [f"{request.out / described.file_of(part)} sha256:{digests[part]}" for part in parts]
    return Result(lines, entry, [*notes, *more])


def _name_in(path: Path) -> str:
    """Return the name of a file's only tensor."""
    with safe_open(path, framework="np") as file:
        [name] = file.keys()
    return str(name)
