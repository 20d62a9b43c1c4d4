"""A real member that speaks in another node's name is refused: one log line, and nothing of it in the database."""

import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import grpc

from gossip.identity import Identity, node_id_of, server_name
from gossip.linkstate import Key, Kind, Links, LinkState, LinkStatus, NodeId, NodeInfo, Payload, Version
from gossip.wire import encode_body
from smtp_edge.demo.cluster import CLUSTER_NAME, Cluster, HostPlan, Relay
from smtpmesh.gossip.v1 import gossip_pb2 as pb
from smtpmesh.gossip.v1 import gossip_pb2_grpc as pb_grpc
from tests.e2e.scene import admin_calls, events, wait_members, wait_until

LATER = Version(2**40, 1)
"""Newer than anything that the victim has said."""


def test_a_member_cannot_speak_for_another(folder: Path) -> None:
    with Cluster(folder, relays=("A", "B"), hosts=(HostPlan("S"),)) as cluster:
        cluster.start()
        calls = admin_calls(cluster)
        wait_members(cluster, calls)
        told, victim = cluster.relays["relay A"], identity_of(cluster.relays["relay B"])
        forger = new_member(cluster)
        lie = Links((LinkState("host:s", LinkStatus.DOWN, 0, 0, 0, 0),))
        push(told, forger, [forge(forger, victim.node_id, Kind.LINKS, lie)], until=lambda: refusals(told))
        (line,) = refusals(told)
        assert (line["origin"], line["peer"]) == (victim.node_id, forger.node_id)
        assert "signature" in line["reason"]
        links = calls.call("relay A", "ListLinks")
        assert links is not None
        assert "down" not in {link.state for link in links.links if link.origin == victim.node_id}


def test_what_the_member_says_of_itself_is_believed(folder: Path) -> None:
    """The same road, an honest advertisement: the refusal above is about the forgery and not about the road."""
    with Cluster(folder, relays=("A",), hosts=(HostPlan("S"),)) as cluster:
        cluster.start()
        told, honest = cluster.relays["relay A"], new_member(cluster)
        info = NodeInfo("honest", "127.0.0.1:1", "127.0.0.1:1")
        calls = admin_calls(cluster)

        def known() -> bool:
            nodes = calls.call("relay A", "ListNodes")
            return nodes is not None and "honest" in {node.name for node in nodes.nodes}

        push(told, honest, [forge(honest, honest.node_id, Kind.NODE, info)], until=known)
        assert refusals(told) == []


def refusals(relay: Relay) -> list[dict[str, object]]:
    return events(relay.server.log, "gossip.advertisement_refused")


def identity_of(relay: Relay) -> Identity:
    return Identity.load(relay.folder / "ca.crt", relay.folder / "node.crt", relay.folder / "node.key")


def new_member(cluster: Cluster) -> Identity:
    certificate, key = cluster.authority.issue("member", at=datetime.now(UTC))
    return Identity(cluster.authority.certificate_pem, certificate, key)


def forge(signer: Identity, origin: NodeId, kind: Kind, payload: Payload) -> pb.Advertisement:
    """An advertisement about `origin`, signed by `signer`."""
    body = encode_body(
        Key(origin, kind),
        LATER,
        CLUSTER_NAME,
        payload,
        certificate=signer.certificate_der,
        issued_at=0,
        lifetime_s=600,
    )
    return pb.Advertisement(body=body, signature=signer.sign(body))


def push(relay: Relay, member: Identity, advertisements: list[pb.Advertisement], *, until) -> None:
    """One gossip session of a real member, with this push in it, open until the condition holds."""
    done = threading.Event()

    def frames() -> Iterator[pb.Frame]:
        yield pb.Frame(hello=pb.Hello(sequence=1))
        yield pb.Frame(push=pb.Push(advertisements=advertisements))
        done.wait(30)

    there = node_id_of(identity_of(relay).certificate_der)
    credentials = grpc.ssl_channel_credentials(member.ca_pem, member.key_pem, member.certificate_pem)
    options = [("grpc.ssl_target_name_override", server_name(there))]
    with grpc.secure_channel(f"127.0.0.1:{relay.ports['gossip']}", credentials, options=options) as channel:
        session = pb_grpc.GossipStub(channel).Session(frames())
        try:
            wait_until(until, 15, "the push was judged")
        finally:
            done.set()
            session.cancel()
