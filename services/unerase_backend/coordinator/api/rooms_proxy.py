"""Forwards calls of the four rooms' services to their Serve applications, with cancellation and deadline."""

# grpc's classes are generic for type checkers only.
from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import grpc
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message_factory import GetMessageClass

from unerase.internal.v1alpha1 import attack_pb2, classification_pb2, generation_pb2, probing_pb2
from unerase_backend.coordinator.fair_queue import FairQueue
from unerase_backend.runtime.handles import ATTACK, CLASSIFICATION, GENERATION, PROBING, Room

Context = grpc.aio.ServicerContext[Any, Any]

ROOMS: dict[Room, ServiceDescriptor] = {
    GENERATION: generation_pb2.DESCRIPTOR.services_by_name["GenerationService"],
    CLASSIFICATION: classification_pb2.DESCRIPTOR.services_by_name["ClassificationService"],
    PROBING: probing_pb2.DESCRIPTOR.services_by_name["ProbingService"],
    ATTACK: attack_pb2.DESCRIPTOR.services_by_name["AttackService"],
}


# At once in all, and for one tenant. A replica takes 256 requests at once, so audits always have some of them.
_AT_ONCE = (128, 32)


def room_handlers() -> list[grpc.GenericRpcHandler]:
    """Return the handlers of the four services."""
    queues = {room: FairQueue(*_AT_ONCE) for room in ROOMS}
    return [
        grpc.method_handlers_generic_handler(
            service.full_name, {method.name: _handler(room, method, queues[room]) for method in service.methods}
        )
        for room, service in ROOMS.items()
    ]


def _handler(room: Room, method: MethodDescriptor, queue: FairQueue) -> grpc.RpcMethodHandler[Any, Any]:
    request, response = GetMessageClass(method.input_type), GetMessageClass(method.output_type)
    name = method.name

    async def unary(message: Any, context: Context) -> Any:
        async with queue.turn():
            return await room.call(name, message)

    async def streaming(message: Any, context: Context) -> AsyncIterator[Any]:
        async with queue.turn(), aclosing(room.stream(name, message)) as items:
            async for item in items:
                yield item

    if method.server_streaming:
        return grpc.unary_stream_rpc_method_handler(
            streaming,
            request.FromString,
            response.SerializeToString,
        )
    return grpc.unary_unary_rpc_method_handler(
        unary,
        request.FromString,
        response.SerializeToString,
    )
