"""Opens an ONNX file as data: one file, no code of others, the same bits each time.

The bytes that are checked against the digest are those that onnxruntime gets, so that nothing can change in between.
Tensors in further files are refused, because the digest would not cover them; so are operators that only a library
beside onnxruntime has. The messages of the format are declared here as far as these checks need them
(https://github.com/onnx/onnx/blob/main/onnx/onnx.proto).
"""

import hashlib
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError, Message

from unerase_backend.runtime.errors import UnsafeModelError
from unerase_backend.runtime.onnx_runtime import session_options

INSTALL = "install it with: pip install onnxruntime"
MAX_BYTES = 2**31 - 1
"""A protobuf message, which an ONNX file is, cannot be larger."""
# The operators that onnxruntime itself brings.
_DOMAINS = frozenset({"", "ai.onnx", "ai.onnx.ml", "com.microsoft"})
_MAX_NAMES = 2**20

_Field = descriptor_pb2.FieldDescriptorProto
# Message: field: (number, its message, or "" for a string, or "int"); a repeated field has a star.
_MESSAGES: dict[str, dict[str, tuple[int, str]]] = {
    "Model": {"ir_version": (1, "int"), "graph": (7, "Graph"), "functions*": (25, "Function")},
    "Graph": {"node*": (1, "Node"), "initializer*": (5, "Tensor"), "sparse_initializer*": (15, "Sparse")},
    "Node": {"op_type": (4, ""), "attribute*": (5, "Attribute"), "domain": (7, "")},
    "Attribute": {
        "t": (5, "Tensor"),
        "g": (6, "Graph"),
        "tensors*": (10, "Tensor"),
        "graphs*": (11, "Graph"),
        "sparse_tensor": (22, "Sparse"),
        "sparse_tensors*": (23, "Sparse"),
    },
    "Sparse": {"values": (1, "Tensor"), "indices": (2, "Tensor")},
    "Tensor": {"name": (8, ""), "external_data*": (13, "Entry"), "data_location": (14, "int")},
    "Entry": {"key": (1, ""), "value": (2, "")},
    "Function": {"node*": (7, "Node"), "domain": (10, "")},
}


def read_checked(folder: Path, name: str, digest: str) -> bytes:
    """Return the content of a file that is one whole ONNX model with the given SHA-256.

    Raises:
        UnsafeModelError: it is missing, leads out of the folder, has another digest, is not ONNX, or needs more than
            itself and onnxruntime.
    """
    path = folder / name
    if not path.is_file():
        found = sorted(each.name for each in folder.glob("*.onnx"))
        beside = f"the folder has {', '.join(found[:5])}" if found else "the folder has no .onnx file"
        raise UnsafeModelError(f"{name} is missing; {beside}", reason="WEIGHTS_MISSING")
    if path.stat().st_size > MAX_BYTES:
        raise UnsafeModelError(f"{name} has over {MAX_BYTES} bytes", reason="WEIGHTS_UNREADABLE")
    content = path.read_bytes()
    _check_model(name, content)
    actual = hashlib.sha256(content).hexdigest()
    if actual != digest:
        raise UnsafeModelError(
            f"{name} has the SHA-256 {actual}, and its option sha256 is {digest}: it is not the file that was pinned",
            reason="WEIGHTS_CHANGED",
        )
    return content


def open_session(name: str, content: bytes, threads: int, *, cuda: bool = False) -> Any:
    """Return an onnxruntime session over the content of a checked file; `cuda` asks for the GPU if there is one.

    Raises:
        UnsafeModelError: onnxruntime is not installed, or cannot load the model.
    """
    try:
        import onnxruntime
    except ImportError:
        raise UnsafeModelError(f"a detector needs onnxruntime; {INSTALL}", reason="ONNXRUNTIME_MISSING") from None
    options = session_options(threads)
    providers: list[Any] = ["CPUExecutionProvider"]
    if cuda and "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        fixed = {"cudnn_conv_algo_search": "DEFAULT", "use_tf32": "0"}
        providers.insert(0, ("CUDAExecutionProvider", fixed))
    try:
        return onnxruntime.InferenceSession(content, options, providers=providers)
    except Exception as error:
        # onnxruntime's errors have no common base of their own.
        why = str(error).partition("\n")[0][:300]
        raise UnsafeModelError(f"{name} is not loaded by onnxruntime: {why}", reason="WEIGHTS_UNREADABLE") from error


def named_classes(custom_metadata: Mapping[str, str]) -> tuple[str, ...]:
    """Return the names of classes that a file carries under "names", as in "{0: 'person', 1: 'car'}"; empty if none."""
    text = custom_metadata.get("names", "")
    if len(text) > _MAX_NAMES:
        return ()
    try:
        names = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError):
        return ()
    if isinstance(names, dict) and list(names) == list(range(len(names))):
        return tuple(map(str, names.values()))
    return ()


def _check_model(name: str, content: bytes) -> None:
    model: Any = _message("Model")()
    try:
        model.ParseFromString(content)
    except DecodeError:
        model = None
    if model is None or not model.ir_version or not model.graph.node:
        raise UnsafeModelError(f"{name} is not an ONNX model", reason="WEIGHTS_UNREADABLE")
    domains = _DOMAINS | {function.domain for function in model.functions}
    for part in _parts(model):
        kind = part.DESCRIPTOR.name
        if kind == "Tensor" and (part.external_data or part.data_location):
            places = [repr(entry.value) for entry in part.external_data if entry.key == "location"]
            raise UnsafeModelError(
                f"{name} has tensors in {', '.join(places[:1]) or 'another file'}; a detector must be one file, "
                "so that its digest covers it: write it again with onnx.save_model(onnx.load(FILE), NEW_FILE)",
                reason="WEIGHTS_ELSEWHERE",
            )
        if kind == "Node" and part.domain not in domains:
            raise UnsafeModelError(
                f"{name} uses the operator {part.op_type!r} of {part.domain!r}, which needs a library of its own; "
                "only onnxruntime's own operators are run",
                reason="OPERATOR_UNKNOWN",
            )


def _parts(message: Message) -> Iterator[Any]:
    """Yield a message and every message within it."""
    yield message
    for field, value in message.ListFields():
        if field.message_type is not None:
            for each in value if field.is_repeated else (value,):
                yield from _parts(each)


@cache
def _message(name: str) -> type[Message]:
    package = "unerase.onnx"
    file = descriptor_pb2.FileDescriptorProto(name="unerase/onnx.proto", package=package, syntax="proto3")
    for message, fields in _MESSAGES.items():
        declared = file.message_type.add(name=message)
        for key, (number, of) in fields.items():
            kind = {"": _Field.TYPE_STRING, "int": _Field.TYPE_INT64}.get(of, _Field.TYPE_MESSAGE)
            declared.field.add(
                name=key.rstrip("*"),
                number=number,
                label=_Field.LABEL_REPEATED if key.endswith("*") else _Field.LABEL_OPTIONAL,
                type=kind,
                **({"type_name": f".{package}.{of}"} if kind == _Field.TYPE_MESSAGE else {}),
            )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{package}.{name}"))
