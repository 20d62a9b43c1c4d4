"""`smtpmesh init`: the folder of a new node, ready to run.

    first node       a new cluster: its authority (ca.crt, ca.key), a key and certificate, a commented node.toml
    further nodes    `--from FOLDER` of a node that holds ca.key: a certificate from the same authority, ports of
                     their own, and the first node as the one to join

Existing files are never touched. ca.key signs new members and is needed for nothing else: keep it off the relays.
"""

from __future__ import annotations

import socket
import tomllib
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from gossip.identity import Authority, IdentityError, write_new

PORTS = {"gossip": 7946, "mesh": 7925, "smtp": 2525}
PORT_STEP = 10
PORT_TRIES_MAX = 100


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
    """Write everything; the commands to type next. SetupError if something is in the way."""
    folder = plan.folder
    for name in ("node.toml", "node.key", "node.crt", "ca.crt"):
        if (folder / name).exists():
            raise SetupError(f"{folder / name} exists; choose another folder, nothing was changed")
    authority = _find_authority(plan, at)
    join = _seed_of(plan.parent) if plan.parent is not None else ""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        certificate, key = authority.issue(plan.name, at=at)
        if plan.parent is None:
            authority.save(folder / "ca.crt", folder / "ca.key")
        else:
            write_new(folder / "ca.crt", authority.certificate_pem, mode=0o644)
        write_new(folder / "node.crt", certificate, mode=0o644)
        write_new(folder / "node.key", key, mode=0o600)
        write_new(folder / "node.toml", _configuration(plan, _free_ports(plan), join).encode(), mode=0o644)
    except OSError as error:
        raise SetupError(f"{error.filename or folder}: {error.strerror}") from error
    return _next_steps(plan)


def _find_authority(plan: Plan, at: datetime) -> Authority:
    if plan.parent is None:
        return Authority.create(plan.cluster, at=at)
    try:
        return Authority.load(plan.parent / "ca.crt", plan.parent / "ca.key")
    except IdentityError as error:
        text = f"{error}; --from wants the folder that `smtpmesh init` made first: it holds ca.key"
        raise SetupError(text) from error


def _seed_of(parent: Path) -> str:
    """The gossip address of the first node."""
    try:
        gossip = tomllib.loads((parent / "node.toml").read_text("utf-8")).get("gossip", {})
    except (OSError, ValueError):
        return ""
    return str(gossip.get("advertise") or gossip.get("listen") or "")


def _free_ports(plan: Plan) -> dict[str, int]:
    """The usual ports, or the next ones on which nobody listens and which no sibling's file names."""
    taken = _ports_of_siblings(plan.folder)
    for step in range(PORT_TRIES_MAX):
        ports = {name: port + step * PORT_STEP for name, port in PORTS.items()}
        if not taken.intersection(ports.values()) and all(_is_free(plan.address, port) for port in ports.values()):
            return ports
    raise SetupError(f"no free ports on {plan.address}")


def _ports_of_siblings(folder: Path) -> set[int]:
    taken: set[int] = set()
    for file in folder.absolute().parent.glob("*/node.toml"):
        try:
            raw = tomllib.loads(file.read_text("utf-8"))
        except (OSError, ValueError):
            continue
        sections = [raw.get("gossip", {}), raw.get("mesh", {}), *raw.get("listener", [])]
        taken |= {
            int(port) for section in sections if (port := str(section.get("listen", "")).rpartition(":")[2]).isdigit()
        }
    return taken


def _is_free(address: str, port: int) -> bool:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OSError:
            return False
    return True


def _next_steps(plan: Plan) -> list[str]:
    config = plan.folder / "node.toml"
    steps = [
        f"edit {config}: name your smart hosts, then",
        f"smtpmesh check-config --config {config}",
        f"smtpmesh run --config {config}",
    ]
    if plan.parent is None:
        steps.append(
            f"smtpmesh init FOLDER --name NAME --from {plan.folder}   (for each further node, then copy FOLDER)"
        )
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
# `smtpmesh check-config` reports every mistake. Paths are relative to this file.

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
join = {join}                     # any node of the cluster; known ones are remembered

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
