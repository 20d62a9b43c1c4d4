"""A generic gRPC client: it knows an address and learns the rest by reflection, as grpcurl does.

    call("unix:/run/smtpmesh/admin.sock", "smtpmesh.admin.v1.Admin", "GetRoutes", {})

Requests and answers are plain dictionaries with the fields' names of the .proto file, every field shown. It imports
nothing of smtpmesh, so that what it sees is what any other tool in any other language sees.
"""

from __future__ import annotations

from typing import Any

import grpc
from google.protobuf import json_format, message_factory
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

TIMEOUT_S = 10.0
ADMIN = "smtpmesh.admin.v1.Admin"
HEALTH = "grpc.health.v1.Health"


def list_services(address: str) -> list[str]:
    """Names of the services that the server reflects, sorted."""
    with _open(address) as channel:
        return sorted(ProtoReflectionDescriptorDatabase(channel).get_services())


def list_methods(address: str, service: str = ADMIN) -> list[str]:
    """Names of a service's methods, in the order of its .proto file."""
    with _open(address) as channel:
        pool = DescriptorPool(ProtoReflectionDescriptorDatabase(channel))
        return [method.name for method in pool.FindServiceByName(service).methods]


def call(address: str, service: str, method: str, fields: dict[str, Any]) -> dict[str, Any]:
    """One unary call. grpc.RpcError as the server gave it."""
    with _open(address) as channel:
        pool = DescriptorPool(ProtoReflectionDescriptorDatabase(channel))
        found = pool.FindServiceByName(service).FindMethodByName(method)
        request = json_format.ParseDict(fields, message_factory.GetMessageClass(found.input_type)())
        answer_class = message_factory.GetMessageClass(found.output_type)
        caller = channel.unary_unary(
            f"/{service}/{method}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=answer_class.FromString,
        )
        answer = caller(request, timeout=TIMEOUT_S)
    shown: dict[str, Any] = json_format.MessageToDict(
        answer, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    return shown


def _open(address: str) -> grpc.Channel:
    return grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)])
