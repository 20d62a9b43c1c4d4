"""What needs the authority's key. `smtpmesh init`: the folder of a new node, ready to run.

    first node       a new cluster: its authority (ca.crt, ca.key), a key and certificate, a commented node.toml
    further nodes    `--from FOLDER` of a node that holds ca.key: a certificate from the same authority, ports of
                     their own, and the first node as the one to join

`smtpmesh workers N` makes it one of N processes, each with a key and certificate of its own (`node-2.crt`, ...).
`smtpmesh renew` gives such a node new certificates for its keys, `smtpmesh revoke` writes the authority's word that a
node is none any more. Files that exist are never touched, but for the certificate that is renewed. ca.key signs
members in and out and is needed for nothing else: keep it off the relays.
"""

from __future__ import annotations

import errno
import re
import shlex
import tomllib
from dataclasses import dataclass
from datetime import datetime
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from gossip.identity import Authority, IdentityError, TrustBundle, certificate_der, node_id_of, replace_file, write_new
from gossip.linkstate import NodeId
from gossip.revocation import SUFFIX, Revocation, RevocationError, build_text
from smtp_edge.admin.address import is_loopback
from smtp_edge.server.listening import try_address
from smtp_edge.setting_kinds import NAME_CHARACTERS_MAX, NAME_PATTERN
from smtp_edge.workers import Worker, list_workers, number_file

PORTS = {"gossip": 7946, "mesh": 7925, "smtp": 2525}
PORT_STEP = 10
PORT_TRIES_MAX = 100
CORES_SHOWN = 4
"""In the comment of a node with one process."""
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
    workers: int = 1


def create_node(plan: Plan, *, at: datetime) -> list[str]:
    """Write everything; the commands to type next. SetupError if something is in the way: then nothing was written."""
    _check_plan(plan)
    folder, authority = plan.folder, _find_authority(plan, at)
    join = _seed_of(plan.parent) if plan.parent is not None else ""
    configuration = _configuration(plan, _free_ports(plan), join)
    identities = [authority.issue(worker.name_of(plan.name), at=at) for worker in list_workers(plan.workers)]
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if plan.parent is None:
            authority.save(folder / "ca.crt", folder / "ca.key")
        else:
            write_new(folder / "ca.crt", authority.trust.pem, mode=0o644)
        for number, (certificate, key) in enumerate(identities, 1):
            write_new(number_file(folder / "node.crt", number), certificate, mode=0o644)
            write_new(number_file(folder / "node.key", number), key, mode=0o600)
        write_new(folder / "node.toml", configuration.encode(), mode=0o644)
    except OSError as error:
        raise SetupError(f"{error.filename or folder}: {error.strerror}") from error
    return _next_steps(plan, join)


@dataclass(frozen=True, slots=True)
class Renewal:
    """What `renew_node` did, with one of the certificates."""

    certificate: Path
    node_id: NodeId
    not_after: datetime


def renew_node(folder: Path, parent: Path, *, at: datetime, days: int) -> list[Renewal]:
    """Replace the certificate in a node's folder, and those of its further workers, by new ones for the same keys.

    SetupError: then nothing changed, unless a disk failed between two of them. The node's own ca.crt must hold the
    authority that signs, or the node would not start: during a rotation every node gets both authorities first.
    """
    authority = _load_authority(parent)
    ca, first = _cluster_file(folder, "ca", "ca.crt"), _cluster_file(folder, "certificate", "node.crt")
    try:
        trust = TrustBundle.load(ca)
    except IdentityError as error:
        raise SetupError(str(error)) from error
    renewed = {path: _renew(path, authority, at, days) for path in [first, *_further(first)]}
    done = []
    for path, certificate in renewed.items():
        try:
            member = trust.member(certificate_der(certificate), at=at)
        except IdentityError as error:
            way_out = "add its certificate there, on every node, before renewing"
            raise SetupError(f"{ca} does not know the authority in {parent}; {way_out}") from error
        done.append(Renewal(path, member.node_id, member.not_after))
    for path, certificate in renewed.items():
        try:
            replace_file(path, certificate, mode=0o644)
        except OSError as error:
            raise SetupError(f"{path}: {error.strerror}") from error
    return done


def _renew(path: Path, authority: Authority, at: datetime, days: int) -> bytes:
    try:
        return authority.renew(_read_certificate(path), at=at, days=days)
    except IdentityError as error:
        raise SetupError(f"{path} is not renewed: {error}") from error


def _further(first: Path) -> list[Path]:
    """Certificates of workers but the first."""
    pattern = re.compile(rf"{re.escape(first.stem)}-(\d+){re.escape(first.suffix)}")
    found = {int(match[1]): path for path in first.parent.glob("*") if (match := pattern.fullmatch(path.name))}
    return [path for _, path in sorted(found.items())]


def set_workers(config: Path, parent: Path | None, count: int, *, at: datetime) -> list[Path]:
    """Issue what is missing for `count` workers, then write `workers = count`; the files that were made. SetupError.

    Certificates and keys of workers that are no more stay: they are needed to bring their mail out.
    """
    text, raw = _read_configuration(config)
    first = _cluster_file(config.parent, "certificate", "node.crt")
    first_key = _cluster_file(config.parent, "key", "node.key")
    name = str(raw.get("node", {}).get("name", "node"))
    changed = _with_workers(text, raw, count, config)
    missing = [n for n in range(2, count + 1) if not _has_identity(number_file(first, n), number_file(first_key, n))]
    made: list[Path] = []
    if missing:
        authority = _find_parent_authority(config, parent, missing)
        _check_same_cluster(authority, first)
        for number in missing:
            certificate, key = authority.issue(Worker(number, count).name_of(name), at=at)
            made += _write_identity(number_file(first, number), certificate, number_file(first_key, number), key)
    if changed != text:
        try:
            replace_file(config, changed.encode(), mode=config.stat().st_mode & 0o777)
        except OSError as error:
            raise SetupError(f"{config}: {error.strerror}") from error
    return made


def _read_configuration(config: Path) -> tuple[str, dict[str, Any]]:
    try:
        text = config.read_text("utf-8")
        return text, tomllib.loads(text)
    except OSError as error:
        raise SetupError(f"{config}: {error.strerror}; --config names the node's file") from error
    except ValueError as error:
        raise SetupError(f"{config} is not valid TOML: {error}") from error


def _with_workers(text: str, raw: dict[str, Any], count: int, config: Path) -> str:
    """The file with another number in it, and nothing else changed. SetupError: it is written in another way."""
    head = re.search(r"^\[node\][^\n]*\n", text, re.MULTILINE)
    if head is None:
        raise SetupError(f"{config} has no section [node]: is it a node's file?")
    end = re.search(r"^\[", text[head.end() :], re.MULTILINE)
    section = text[head.end() : head.end() + end.start()] if end is not None else text[head.end() :]
    wanted, found = f"workers = {count}", re.search(r"^workers *= *\d+", section, re.MULTILINE)
    found = found or re.search(r"^# *workers *= *\d+", section, re.MULTILINE)
    before, after = (section[: found.start()], section[found.end() :]) if found else ("", f"\n{section}")
    changed = text[: head.end()] + before + wanted + after + text[head.end() + len(section) :]
    expected = raw | {"node": raw.get("node", {}) | {"workers": count}}
    try:
        sound = tomllib.loads(changed) == expected
    except ValueError:
        sound = False
    if not sound:
        raise SetupError(f"{config}: write `{wanted}` under [node] yourself, then run this again")
    return changed


def _has_identity(certificate: Path, key: Path) -> bool:
    if certificate.exists() is not key.exists():
        there, away = (certificate, key) if certificate.exists() else (key, certificate)
        raise SetupError(f"{there} is there, and {away.name} is not: put it back, or remove {there.name} as well")
    return certificate.exists()


def _find_parent_authority(config: Path, parent: Path | None, missing: list[int]) -> Authority:
    folder = parent if parent is not None else config.parent
    if parent is None and not (folder / "ca.key").exists():
        names = ", ".join(f"node-{number}.crt" for number in missing)
        raise SetupError(f"{names} must be issued, which needs ca.key: name the folder that holds it with --from")
    return _load_authority(folder)


def _check_same_cluster(authority: Authority, certificate: Path) -> None:
    """A worker of another cluster would never find its siblings."""
    try:
        authority.trust.check_issued(_read_certificate(certificate))
    except IdentityError as error:
        raise SetupError(f"{certificate} is of another authority: {error}") from error


def _write_identity(certificate_path: Path, certificate: bytes, key_path: Path, key: bytes) -> list[Path]:
    try:
        write_new(key_path, key, mode=0o600)
        write_new(certificate_path, certificate, mode=0o644)
    except OSError as error:
        raise SetupError(f"{error.filename}: {error.strerror}") from error
    return [certificate_path, key_path]


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
    if len(list_workers(plan.workers)[-1].name_of(plan.name)) > NAME_CHARACTERS_MAX:
        raise SetupError(f"{plan.name!r} is too long for {plan.workers} workers; choose a shorter one with --name")
    further = [number_file(Path(f"node.{kind}"), n).name for n in range(2, plan.workers + 1) for kind in ("key", "crt")]
    for name in (*FILES, *further):
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
    """The usual ports, or the next ones on which nobody listens and which no sibling's file names.

    Each worker needs one for gossip and one for mail of peers: as many free ones follow.
    """
    taken = _ports_of_siblings(plan)
    usual = PORTS | {"gossip": max(PORTS["gossip"], PORTS["mesh"] + plan.workers)}
    for step in range(PORT_TRIES_MAX):
        ports = {name: port + step * PORT_STEP for name, port in usual.items()}
        counts = {name: 1 if name == "smtp" else plan.workers for name in ports}
        wanted = {port + ahead for name, port in ports.items() for ahead in range(counts[name])}
        if not taken & wanted and all(_is_free(plan.address, port) for port in wanted):
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
        workers = raw.get("node", {}).get("workers", 1)
        workers = workers if isinstance(workers, int) else 1
        places = [(raw.get("gossip", {}), workers), (raw.get("mesh", {}), workers)]
        for section, count in [*places, *((listener, 1) for listener in raw.get("listener", []))]:
            host, _, port = str(section.get("listen", "")).rpartition(":")
            if host.strip("[]") == plan.address and port.isdigit():
                taken.update(range(int(port), int(port) + count))
    return taken


def _is_free(address: str, port: int) -> bool:
    """False if somebody listens there. An address of another machine cannot be tried: the folder will move there."""
    try:
        try_address(address, port)
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
        workers=(f"workers = {plan.workers}" if plan.workers > 1 else f"# workers = {CORES_SHOWN}").ljust(34),
    )


TEMPLATE = """\
# A smtpmesh node. Every key, with its bounds and what it trades: deploy/node.example.toml.
# `smtpmesh check-config` reports every mistake, `smtpmesh reload` has a running node go by what is changed here.
# Paths are relative to this file.

[node]
name = "{name}"
# hostname = "mx1.example.org"    # in EHLO, Received and the greeting; this machine's own name if absent
data_dir = "data"                 # the queue: on a disk that keeps what fsync promised
{workers}# processes; `smtpmesh workers N` issues what more of them need

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
