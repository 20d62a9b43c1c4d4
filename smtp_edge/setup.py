"""What needs the authority's key. `smtpmesh init`: the folder of a new node, ready to run.

    first node       a new cluster: its authority (ca.crt, ca.key), a key and certificate, a commented node.toml
    further nodes    `--from FOLDER` of a node that holds ca.key: a certificate from the same authority, ports of
                     their own, and the first node as the one to join

`smtpmesh renew` gives such a node a new certificate for its key, `smtpmesh revoke` writes the authority's word that a
node is none any more. Files that exist are never touched, but for the certificate that is renewed. ca.key signs
members in and out and is needed for nothing else: keep it off the relays.
"""

from __future__ import annotations

import errno
import re
import shlex
import socket
import tomllib
from dataclasses import dataclass
from datetime import datetime
from ipaddress import ip_address
from pathlib import Path

from gossip.identity import Authority, IdentityError, TrustBundle, certificate_der, node_id_of, replace_file, write_new
from gossip.linkstate import NodeId
from gossip.revocation import SUFFIX, Revocation, RevocationError, build_text
from smtp_edge.admin.address import is_loopback
from smtp_edge.setting_kinds import NAME_PATTERN

PORTS = {"gossip": 7946, "mesh": 7925, "smtp": 2525}
PORT_STEP = 10
PORT_TRIES_MAX = 100
FILES = ("node.toml", "node.key", "node.crt", "ca.crt", "ca.key")


class SetupError(Exception):
    """The folder cannot be made; `str()` is a sentence with the way out."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What to write."""

    folder: Path
    name: str
    cluster: str
    address: str
    """IP address on which the node listens."""
    parent: Path | None = None
    """Folder of a node that holds the authority's key."""


def create_node(plan: Plan, *, at: datetime) -> list[str]:
    """Write everything; the commands to type next. SetupError if something is in the way: then nothing was written."""
    _check_plan(plan)
    folder, authority = plan.folder, _find_authority(plan, at)
    join = _seed_of(plan.parent) if plan.parent is not None else ""
    configuration = _configuration(plan, _free_ports(plan), join)
    certificate, key = authority.issue(plan.name, at=at)
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if plan.parent is None:
            authority.save(folder / "ca.crt", folder / "ca.key")
        else:
            write_new(folder / "ca.crt", authority.trust.pem, mode=0o644)
        write_new(folder / "node.crt", certificate, mode=0o644)
        write_new(folder / "node.key", key, mode=0o600)
        write_new(folder / "node.toml", configuration.encode(), mode=0o644)
    except OSError as error:
        raise SetupError(f"{error.filename or folder}: {error.strerror}") from error
    return _next_steps(plan, join)


@dataclass(frozen=True, slots=True)
class Renewal:
    """What `renew_node` did."""

    certificate: Path
    node_id: NodeId
    not_after: datetime


def renew_node(folder: Path, parent: Path, *, at: datetime, days: int) -> Renewal:
    """Replace the certificate in a node's folder by a new one for the same key. SetupError: then nothing changed.

    The node's own ca.crt must hold the authority that signs, or the node would not start: during a rotation every
    node gets both authorities first.
    """
    authority = _load_authority(parent)
    ca, path = _cluster_file(folder, "ca", "ca.crt"), _cluster_file(folder, "certificate", "node.crt")
    try:
        trust = TrustBundle.load(ca)
    except IdentityError as error:
        raise SetupError(str(error)) from error
    old = _read_certificate(path)
    try:
        renewed = authority.renew(old, at=at, days=days)
    except IdentityError as error:
        raise SetupError(f"{path} is not renewed: {error}") from error
    try:
        member = trust.member(certificate_der(renewed), at=at)
    except IdentityError as error:
        text = (
            f"{ca} does not know the authority in {parent}; add its certificate there, on every node, before renewing"
        )
        raise SetupError(text) from error
    try:
        replace_file(path, renewed, mode=0o644)
    except OSError as error:
        raise SetupError(f"{path}: {error.strerror}") from error
    return Renewal(path, member.node_id, member.not_after)


def revoke_node(node: str, parent: Path, output: Path | None, *, at: datetime, reason: str) -> tuple[Revocation, Path]:
    """Write the authority's revocation of a node, named by its id or by a file with its certificate. SetupError."""
    authority = _load_authority(parent)
    try:
        revocation = authority.revoke(_find_node(node, authority), at=at, reason=reason)
    except RevocationError as error:
        raise SetupError(str(error)) from error
    file = output or Path(f"{revocation.node_id}{SUFFIX}")
    if not file.name.endswith(SUFFIX):
        raise SetupError(f"{file} would not be read: the name must end in {SUFFIX}")
    text = build_text(revocation.encode(), authority.sign_revocation(revocation))
    try:
        write_new(file, text.encode("ascii"), mode=0o644)
    except FileExistsError:
        raise SetupError(f"{file} exists; name another with -o") from None
    except OSError as error:
        raise SetupError(f"{file}: {error.strerror}") from error
    return revocation, file


def _find_node(node: str, authority: Authority) -> NodeId:
    if re.fullmatch(r"[0-9a-f]{32}", node):
        return NodeId(node)
    if not Path(node).exists():
        raise SetupError(f"{node} is neither a node id (32 hexadecimal digits, see `smtpmesh nodes`) nor a certificate")
    found = _read_certificate(Path(node))
    try:
        authority.trust.check_issued(found)
    except IdentityError as error:
        raise SetupError(f"{node} is not revoked: {error}") from error
    return node_id_of(found)


def _read_certificate(path: Path) -> bytes:
    try:
        return certificate_der(path.read_bytes())
    except OSError as error:
        raise SetupError(f"{path}: {error.strerror}") from error
    except IdentityError as error:
        raise SetupError(f"{path}: {error}") from error


def _cluster_file(folder: Path, key: str, usual: str) -> Path:
    """A file of [cluster], where node.toml says it is."""
    try:
        cluster = tomllib.loads((folder / "node.toml").read_text("utf-8")).get("cluster", {})
    except (OSError, ValueError):
        return folder / usual
    return folder / str(cluster.get(key, usual) if isinstance(cluster, dict) else usual)


def _check_plan(plan: Plan) -> None:
    for what, name in (("node", plan.name), ("cluster", plan.cluster)):
        if not re.fullmatch(NAME_PATTERN, name):
            way_out = "; choose one with --name" if what == "node" else ""
            text = f"{name!r} is no name for a {what}: letters, digits, dot, dash and underscore, at most 63{way_out}"
            raise SetupError(text)
    try:
        unspecified = ip_address(plan.address).is_unspecified
    except ValueError:
        raise SetupError(f"--address {plan.address} is not an IP address of this machine") from None
    if unspecified:
        raise SetupError(f"--address {plan.address} is no address that peers can dial; name one of this machine")
    for name in FILES:
        if (plan.folder / name).exists():
            raise SetupError(f"{plan.folder / name} exists; choose another folder, nothing was changed")


def _find_authority(plan: Plan, at: datetime) -> Authority:
    return Authority.create(plan.cluster, at=at) if plan.parent is None else _load_authority(plan.parent)


def _load_authority(folder: Path) -> Authority:
    if not (folder / "ca.key").exists():
        text = f"there is no {folder / 'ca.key'}; --from wants the first node's folder, which holds it"
        raise SetupError(text)
    try:
        return Authority.load(folder / "ca.crt", folder / "ca.key")
    except IdentityError as error:
        raise SetupError(str(error)) from error


def _seed_of(parent: Path) -> str:
    """The gossip address of the first node."""
    try:
        gossip = tomllib.loads((parent / "node.toml").read_text("utf-8")).get("gossip", {})
    except (OSError, ValueError):
        return ""
    return str(gossip.get("advertise") or gossip.get("listen") or "")


def _free_ports(plan: Plan) -> dict[str, int]:
    """The usual ports, or the next ones on which nobody listens and which no sibling's file names."""
    taken = _ports_of_siblings(plan)
    for step in range(PORT_TRIES_MAX):
        ports = {name: port + step * PORT_STEP for name, port in PORTS.items()}
        if not taken.intersection(ports.values()) and all(_is_free(plan.address, port) for port in ports.values()):
            return ports
    raise SetupError(f"all ports tried on {plan.address} are in use ({PORT_TRIES_MAX} sets of three)")


def _ports_of_siblings(plan: Plan) -> set[int]:
    """Ports on the same address in the files of the folders beside this one and of the first node."""
    files = set(plan.folder.absolute().parent.glob("*/node.toml"))
    if plan.parent is not None:
        files.add(plan.parent.absolute() / "node.toml")
    taken: set[int] = set()
    for file in files:
        try:
            raw = tomllib.loads(file.read_text("utf-8"))
        except (OSError, ValueError):
            continue
        for section in (raw.get("gossip", {}), raw.get("mesh", {}), *raw.get("listener", [])):
            host, _, port = str(section.get("listen", "")).rpartition(":")
            if host.strip("[]") == plan.address and port.isdigit():
                taken.add(int(port))
    return taken


def _is_free(address: str, port: int) -> bool:
    """False if somebody listens there. An address of another machine cannot be tried: the folder will move there."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OSError as error:
            return error.errno != errno.EADDRINUSE
    return True


def _next_steps(plan: Plan, join: str) -> list[str]:
    config = shlex.quote(str(plan.folder / "node.toml"))
    as_first = f" as in {plan.parent / 'node.toml'}" if plan.parent is not None else ""
    steps = [
        f"edit {config}: name your smart hosts{as_first}",
        f"smtpmesh check-config --config {config}",
        f"smtpmesh run --config {config}",
    ]
    if plan.parent is None:
        first = shlex.quote(str(plan.folder))
        steps.append(f"smtpmesh init FOLDER --from {first}   (a further node; then move FOLDER to its machine)")
    elif not join:
        steps.insert(1, f"set gossip.join in {config} to the gossip address of any node")
    elif is_loopback(join.rpartition(":")[0]) and not is_loopback(plan.address):
        steps.insert(1, f"change gossip.join in {config}: {join} is reached on the first node's own machine only")
    return steps


def _configuration(plan: Plan, ports: dict[str, int], join: str) -> str:
    host = f"[{plan.address}]" if ":" in plan.address else plan.address
    return TEMPLATE.format(
        name=plan.name,
        gossip=f"{host}:{ports['gossip']}",
        mesh=f"{host}:{ports['mesh']}",
        smtp=f"{host}:{ports['smtp']}",
        join=f'["{join}"]' if join else "[]",
    )


TEMPLATE = """\
# A smtpmesh node. Every key, with its bounds and what it trades: deploy/node.example.toml.
# `smtpmesh check-config` reports every mistake, `smtpmesh reload` has a running node go by what is changed here.
# Paths are relative to this file.

[node]
name = "{name}"
# hostname = "mx1.example.org"    # in EHLO, Received and the greeting; this machine's own name if absent
data_dir = "data"                 # the queue: on a disk that keeps what fsync promised

[cluster]
ca = "ca.crt"
certificate = "node.crt"
key = "node.key"

[gossip]                          # peers only, mutual TLS
listen = "{gossip}"
join = {join}   # any node of the cluster, itself excepted; empty on the first

[mesh]                            # mail between peers, mutual TLS
listen = "{mesh}"

[[listener]]                      # where your clients submit
listen = "{smtp}"
allow_networks = ["127.0.0.0/8", "::1/128"]   # who may relay without a password; an empty list is nobody

[[smart_host]]                    # an exit; the same name on two nodes means the same host
name = "uplink-1"
host = "127.0.0.1"
port = 25
# tls = "starttls"                # demand a verified certificate; the default takes what is offered
# user = "relay"                  # with password_file = "uplink-1.password"

# [[smart_host]]
# name = "uplink-2"
# host = "192.0.2.25"

[[route]]                         # the first match wins
name = "default"
domains = ["*"]
via = ["uplink-1"]                # smart hosts share by what they are measured to carry; ["mx"] delivers directly

[admin]
listen = "unix:admin.sock"        # in data_dir; only this user and root
"""
