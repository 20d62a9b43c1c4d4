"""A generic gRPC client, which knows nothing but the address, sees the routing table that the CLI shows."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import json_format, message_factory
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from smtp_edge.demo.cluster import SOURCE_ROOT, Cluster, HostPlan, Relay
from tests.e2e.scene import admin_calls, wait_members

SERVICE = "smtpmesh.admin.v1.Admin"
VOLATILE = {
    "availability",
    "reliability",
    "backlog_age_s",
    "capacity_mps",
    "share",
    "gain",
    "age_s",
    "uptime_s",
    "reason",
}
"""Terms that move with time alone: compared for presence, not for their value."""


@pytest.fixture
def cluster(folder: Path) -> Iterator[Cluster]:
    with Cluster(folder, hosts=(HostPlan("A"), HostPlan("B"))) as cluster:
        cluster.start()
        wait_members(cluster, admin_calls(cluster))
        yield cluster


def call_generically(address: str, method: str, fields: dict[str, Any]) -> dict[str, Any]:
    """Like grpcurl: descriptors from the server, JSON in, JSON out."""
    with grpc.insecure_channel(address) as channel:
        pool = DescriptorPool(ProtoReflectionDescriptorDatabase(channel))
        found = pool.FindServiceByName(SERVICE).FindMethodByName(method)
        request = message_factory.GetMessageClass(found.input_type)()
        answer = message_factory.GetMessageClass(found.output_type)
        call = channel.unary_unary(
            f"/{SERVICE}/{method}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=answer.FromString,
        )
        response = call(json_format.ParseDict(fields, request), timeout=10)
    shown = json_format.MessageToDict(
        response, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    assert isinstance(shown, dict)
    return shown


def call_cli(relay: Relay, *words: str) -> dict[str, Any]:
    """`smtpmesh ... --json`"""
    environment = dict(os.environ, PYTHONPATH=f"{SOURCE_ROOT}{os.pathsep}{SOURCE_ROOT / 'proto'}")
    command = [sys.executable, "-m", "smtp_edge.cli", *words, "--json", "--admin", relay.admin]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    shown = json.loads(done.stdout)
    assert isinstance(shown, dict)
    return shown


def steady(value: Any) -> Any:
    """The same without what moves with time alone."""
    if isinstance(value, dict):
        return {key: None if key in VOLATILE else steady(item) for key, item in value.items()}
    return [steady(item) for item in value] if isinstance(value, list) else value


def test_the_generic_client_and_the_cli_show_the_same_routing_table(cluster: Cluster) -> None:
    relay = cluster.relays["relay A"]
    generic, cli = call_generically(relay.admin, "GetRoutes", {}), call_cli(relay, "routes")
    (route,) = generic["routes"]
    assert {hop["label"] for hop in route["next_hops"]} == {"a", "b", "relay-b", "relay-c"}
    assert without_root(steady(generic)) == without_root(steady(cli))


def test_explain_names_every_candidate_and_why_it_lost(cluster: Cluster) -> None:
    relay = cluster.relays["relay A"]
    answer = call_generically(relay.admin, "Explain", {"address": "reader@example.test"})
    candidates = answer["route"]["next_hops"]
    assert {hop["label"] for hop in candidates} == {"a", "b", "relay-b", "relay-c"}
    assert [hop["hop"] for hop in candidates if hop["verdict"] == "chosen"] == [answer["chosen"]]
    assert all(hop["reason"] for hop in candidates if hop["verdict"] != "chosen")
    cli = call_cli(relay, "explain", "reader@example.test")
    assert {hop["hop"] for hop in cli["route"]["next_hops"]} == {hop["hop"] for hop in candidates}


def without_root(shown: dict[str, Any]) -> dict[str, Any]:
    """The database may have taken in a record between the two calls."""
    return {key: value for key, value in shown.items() if key != "database_root"}
