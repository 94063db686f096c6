"""Reflection: grpc.reflection.v1, and v1alpha for older tools.

The gRPC package has only v1alpha. v1 has the same messages in another protobuf package, so its descriptors are derived
from those of v1alpha, and one servicer answers both.
"""

from collections.abc import Sequence

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool
from grpc_reflection.v1alpha import reflection, reflection_pb2
from grpc_reflection.v1alpha import reflection_pb2_grpc as v1alpha

_ALPHA, _STABLE = "grpc.reflection.v1alpha", "grpc.reflection.v1"
_FILE = "grpc/reflection/v1/reflection.proto"
SERVICE = f"{_STABLE}.ServerReflection"


def add_reflection(names: Sequence[str], server: grpc.aio.Server) -> None:
    """Describe the services of these names, and reflection itself, in both versions."""
    servicer = reflection.aio.ReflectionServicer([*names, SERVICE, reflection.SERVICE_NAME])
    v1alpha.add_ServerReflectionServicer_to_server(servicer, server)
    _describe()
    handler = grpc.stream_stream_rpc_method_handler(
        servicer.ServerReflectionInfo,
        reflection_pb2.ServerReflectionRequest.FromString,
        reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    handlers = {"ServerReflectionInfo": handler}
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(SERVICE, handlers)])


def _describe() -> None:
    """Add v1 to the descriptor pool from which reflection answers."""
    file = descriptor_pb2.FileDescriptorProto()
    reflection_pb2.DESCRIPTOR.CopyToProto(file)
    file.name, file.package = "grpc/reflection/v1/reflection.proto", _STABLE
    for message in file.message_type:
        for field in message.field:
            if field.HasField("type_name"):
                field.type_name = field.type_name.replace(_ALPHA, _STABLE)
    for service in file.service:
        for method in service.method:
            method.input_type = method.input_type.replace(_ALPHA, _STABLE)
            method.output_type = method.output_type.replace(_ALPHA, _STABLE)
    pool = descriptor_pool.Default()
    try:
        pool.FindFileByName(file.name)
    except KeyError:
        pool.AddSerializedFile(file.SerializeToString())
