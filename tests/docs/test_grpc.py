"""grpcurl is in no registry that the tests install from: its commands name what buf's name, which are run."""

import json
import re

from google.protobuf import descriptor_pool, json_format, message_factory
from grpc_health.v1 import health_pb2

from docs.pages import ROOT, blocks, commands, words
from unerase.v1 import audits_pb2, campaigns_pb2, models_pb2, server_pb2

_METHOD = re.compile(r"([a-z][\w.]*\.[A-Z]\w*)/(\w+)")
# The modules whose messages the commands name; imported, they are in the pool.
_KNOWN = (audits_pb2, campaigns_pb2, models_pb2, server_pb2, health_pb2)


def _calls(program: str) -> list[tuple[str, str, str]]:
    """The service, method and message of every command of a program on the page."""
    found = []
    for block in blocks("docs/grpc.md"):
        for command in commands(block.text):
            called = _METHOD.search(command)
            if words(command).startswith(program) and called:
                message = re.search(r"-d '(\{.*?\})'(?:\s|$)", command, re.DOTALL)
                found.append((*called.groups(), message[1] if message else "{}"))
    return found


def test_what_is_called_is_there() -> None:
    calls = _calls("buf curl") + _calls("grpcurl")
    assert len(calls) > 8
    for service, method, message in calls:
        described = descriptor_pool.Default().FindServiceByName(service).methods_by_name[method].input_type
        json_format.ParseDict(json.loads(message), message_factory.GetMessageClass(described)())


def test_grpcurl_calls_what_buf_calls() -> None:
    assert set(_calls("grpcurl"))
    assert set(_calls("grpcurl")) <= set(_calls("buf curl"))


def test_the_files_that_grpcurl_reads_are_there() -> None:
    text = "\n".join(block.text for block in blocks("docs/grpc.md"))
    named = re.findall(r"-proto (\S+)", text)
    assert named
    assert [name for name in named if not (ROOT / "protos" / name).is_file()] == []
