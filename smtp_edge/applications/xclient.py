"""XCLIENT and XFORWARD, of filters and proxies that stand in front of us: a sink at `command`.

    [[sink]]
    use = "xclient"
    rule = "listener=inbound"                       # "command=xforward" leaves XCLIENT out
    with = { networks = ["192.0.2.10/32", "2001:db8::/64"] }

    XCLIENT NAME=mail.example.org ADDR=192.0.2.7 HELO=mail.example.org     the session goes on as if that client called
    XFORWARD ADDR=192.0.2.7 IDENT=4XyZ SOURCE=REMOTE                       for the log and the Received field only

Whoever connects from `networks` can be anybody: access rules, allow_networks and AUTH go by the client that he names.
What counts is the connection (or the PROXY header), not a client that XCLIENT has told of: nobody comes
into `networks` by way of himself. To others both are neither shown nor known (550).

Attribute values are xtext (RFC 3461 section 4); `[UNAVAILABLE]` and `[TEMPUNAVAIL]` say that nothing is known. The
semantics are those of Postfix's XCLIENT_README and XFORWARD_README: only between transactions, unknown attributes are
errors, XCLIENT begins the session anew (220), and XFORWARD holds until the next transaction is over.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from smtp_edge.envelope import NOT_FORWARDED, Client, Forwarded
from smtp_edge.networks import Networks, parse_address
from smtp_edge.reply import Reply
from smtp_edge.setting_kinds import parse_network
from smtp_edge.sinks.api import Become, Command, Sink, Verb

VALUE_MAX = 255
ATTRIBUTES_MAX = 16
UNKNOWN = frozenset({"[UNAVAILABLE]", "[TEMPUNAVAIL]"})
ATTRIBUTES = {
    "XCLIENT": ("NAME", "ADDR", "PORT", "PROTO", "HELO", "LOGIN", "DESTADDR", "DESTPORT"),
    "XFORWARD": ("NAME", "ADDR", "PORT", "PROTO", "HELO", "IDENT", "SOURCE"),
}
ARGUMENT_MAX = 4096
OK = Reply(250, "Ok", "2.0.0")

_PAIR = re.compile(r"([A-Za-z]+)=([!-*,-<>-~]*(?:\+[0-9A-Fa-f]{2}[!-*,-<>-~]*)*)")
_HEX = re.compile(r"\+([0-9A-Fa-f]{2})")
_HOST = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]*[A-Za-z0-9_])?\.?")
_VISIBLE = re.compile(r"[!-~]+")


class SyntaxFault(ValueError):
    """The attributes are not understood; `str()` repeats nothing of them."""


@dataclass(frozen=True, slots=True)
class Override:
    """XCLIENT: what is to be believed instead of what we see. None = not said; empty = unknown."""

    name: str | None = None
    address: str | None = None
    port: int | None = None
    helo: str | None = None
    protocol: str | None = None
    """ESMTP or SMTP."""
    user: str | None = None


class XClient(Sink):
    """See the module. ValueError for settings that mean nothing."""

    def __init__(self, networks: Sequence[str]) -> None:
        if isinstance(networks, str) or not networks:
            raise ValueError('networks is a list of the filters\' networks, as ["192.0.2.10/32"]')
        parsed = [parse_network(text) for text in networks]
        if any(network.prefixlen == 0 for network in parsed):
            raise ValueError("networks holds every address: anybody could say that he is anybody")
        trusted = Networks(parsed)
        xclient, xforward = (f"{verb} {' '.join(names)}" for verb, names in ATTRIBUTES.items())
        self.verbs = (
            Verb("XCLIENT", xclient, ARGUMENT_MAX, hello_first=False, origins=trusted),
            Verb("XFORWARD", xforward, ARGUMENT_MAX, hello_first=False, origins=trusted),
        )

    async def command(self, command: Command) -> Reply | Become:
        """Another client, or what is told of one."""
        try:
            if command.verb == "XFORWARD":
                forwarded = parse_xforward(command.argument, command.client.forwarded)
                return Become(replace(command.client, forwarded=forwarded), OK, anew=False)
            client = apply_override(command.client, parse_xclient(command.argument))
        except SyntaxFault as fault:
            return Reply(501, str(fault), "5.5.4")
        return Become(client, Reply(220, f"{self.node.hostname} ESMTP smtpmesh"))


def apply_override(before: Client, said: Override) -> Client:
    """The client that the filter tells of. What it does not say stays, but for the name of HELO."""
    return replace(
        before,
        address=(said.address or "unknown") if said.address is not None else before.address,
        port=said.port if said.port is not None else before.port,
        name=said.name if said.name is not None else before.name,
        helo=said.helo or "",
        protocol=said.protocol or before.protocol,
        user=said.user if said.user is not None else before.user,
        forwarded=NOT_FORWARDED,
    )


def parse_xclient(argument: str) -> Override:
    """SyntaxFault for anything that is not understood: a client that lies must not be half believed."""
    given = _parse_attributes(argument, ATTRIBUTES["XCLIENT"])
    login = given.get("LOGIN")
    if login is not None and not login.isprintable():
        raise SyntaxFault("bad LOGIN")
    return Override(
        name=_host(given, "NAME"),
        address=_address(given),
        port=_port(given, "PORT"),
        helo=_visible(given, "HELO"),
        protocol=_protocol(given),
        user=login,
    )


def parse_xforward(argument: str, before: Forwarded) -> Forwarded:
    """`before` with what is said now. SyntaxFault."""
    given = _parse_attributes(argument, ATTRIBUTES["XFORWARD"])
    source = given.get("SOURCE", before.source).upper()
    if source not in ("", "LOCAL", "REMOTE"):
        raise SyntaxFault("bad SOURCE")
    said = {
        "name": _host(given, "NAME"),
        "address": _address(given),
        "helo": _visible(given, "HELO"),
        "protocol": _visible(given, "PROTO"),
        "ident": _visible(given, "IDENT"),
        "source": source,
    }
    port = _port(given, "PORT")
    if port is not None:
        said["port"] = str(port or "")
    return replace(before, **{key: value for key, value in said.items() if value is not None})


def _parse_attributes(argument: str, known: tuple[str, ...]) -> dict[str, str]:
    words = argument.split()
    if not words or len(words) > ATTRIBUTES_MAX:
        raise SyntaxFault("syntax: attribute=value ...")
    found: dict[str, str] = {}
    for word in words:
        match = _PAIR.fullmatch(word)
        name = match[1].upper() if match else ""
        if match is None or name not in known or name in found:
            raise SyntaxFault("bad attribute")
        value = decode_xtext(match[2])
        if len(value) > VALUE_MAX:
            raise SyntaxFault("an attribute is too long")
        found[name] = "" if value.upper() in UNKNOWN else value
    return found


def decode_xtext(text: str) -> str:
    """xtext as UTF-8. SyntaxFault for what is none."""
    raw = _HEX.sub(lambda match: chr(int(match[1], 16)), text)
    try:
        return raw.encode("latin-1").decode("utf-8")
    except UnicodeError as error:
        raise SyntaxFault("an attribute is not UTF-8") from error


def _host(given: dict[str, str], key: str) -> str | None:
    value = given.get(key)
    if value and not _HOST.fullmatch(value):
        raise SyntaxFault(f"bad {key}")
    return value


def _visible(given: dict[str, str], key: str) -> str | None:
    value = given.get(key)
    if value and not _VISIBLE.fullmatch(value):
        raise SyntaxFault(f"bad {key}")
    return value


def _address(given: dict[str, str]) -> str | None:
    value = given.get("ADDR")
    if not value:
        return value
    prefixed = value[:5].upper() == "IPV6:"
    parsed = parse_address(value[5:] if prefixed else value)
    if parsed is None or "%" in value:
        raise SyntaxFault("bad ADDR")
    return str(parsed)


def _port(given: dict[str, str], key: str) -> int | None:
    value = given.get(key)
    if value is None:
        return None
    if value and not (value.isascii() and value.isdigit() and int(value) <= 65535):
        raise SyntaxFault(f"bad {key}")
    return int(value or 0)


def _protocol(given: dict[str, str]) -> str | None:
    value = given.get("PROTO")
    if value and value.upper() not in ("SMTP", "ESMTP"):
        raise SyntaxFault("bad PROTO")
    return value and value.upper()
