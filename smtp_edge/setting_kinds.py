"""The kinds of values that a configuration is made of: names, networks, domains, patterns. Each says what is wrong."""

from __future__ import annotations

import re
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from gossip.linkstate import TAG_PATTERN, TAGS_MAX

_DOMAIN = re.compile(r"(?:\*|(?:\*\.)?[^\s@*.:/,]+(?:\.[^\s@*.:/,]+)*|\[[0-9A-Fa-f.:IPv]+\])")
_TAG = re.compile(TAG_PATTERN)
_HOSTNAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?(?:\.[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?)*")
NAME_CHARACTERS_MAX = 63
NAME_PATTERN = rf"^[A-Za-z0-9][A-Za-z0-9._-]{{0,{NAME_CHARACTERS_MAX - 1}}}$"


def parse_network(given: object) -> IPv4Network | IPv6Network:
    """A network as `192.0.2.0/24` or `2001:db8::/32`, or one address. ValueError says what else it may have meant."""
    try:
        return ip_network(str(given))
    except ValueError:
        pass
    try:
        meant = ip_network(str(given), strict=False)
    except ValueError:
        raise ValueError(f"{given!r} is no network; write it like 192.0.2.0/24 or 2001:db8::/32") from None
    raise ValueError(f"{given!r} is an address in a network; did you mean {meant}?")


def parse_domain(given: str) -> str:
    """A domain in lower case, `*.example.org`, or `*`. ValueError."""
    if not _DOMAIN.fullmatch(given):
        raise ValueError(f"{given!r} is no domain; write example.org, *.example.org for all below it, or *")
    return given.lower()


def parse_host(given: str) -> str:
    """A host name or address without port. ValueError."""
    if not given or not given.isprintable() or re.search(r"[\s/@]", given):
        raise ValueError(f"{given!r} is no host name or address")
    if given.count(":") == 1 or given.startswith("["):
        raise ValueError(f"{given!r}: the port has a key of its own, and addresses stand without brackets")
    return given


def parse_hostname(given: str) -> str:
    """The name that a machine calls itself; empty for its own. ValueError: it would be no name on the wire."""
    if given and (len(given) > 255 or not _HOSTNAME.fullmatch(given)):
        raise ValueError(f"{given!r} is no host name; write mx1.example.org, international ones in their xn-- form")
    return given


def parse_word(given: str) -> str:
    """A text of one line without control characters. ValueError."""
    if not given.isprintable():
        raise ValueError(f"{given!r} holds a control character")
    return given


def parse_tag(given: str) -> str:
    """A tag. ValueError."""
    if not _TAG.fullmatch(given):
        raise ValueError(f"{given!r} is no tag; write up to 32 of a-z 0-9 . _ - beginning with a letter or digit")
    return given


def parse_pattern(given: str) -> str:
    """A pattern in lower case, `*` for anything. ValueError."""
    if not given or not given.isprintable() or " " in given:
        raise ValueError(f"{given!r} is no pattern; write it like ann@example.org, *@example.org or *.example.org")
    return given.lower()


def parse_server(given: str) -> str:
    """A DNS server as address or `ADDRESS:PORT`. ValueError."""
    address, _, port = given.rpartition(":") if given.count(":") == 1 or given.startswith("[") else (given, "", "53")
    address = address.removeprefix("[").removesuffix("]")
    try:
        ip_address(address)
    except ValueError:
        raise ValueError(f"{given!r} is no address; write 127.0.0.1, 127.0.0.1:5353 or [::1]:5353") from None
    if not (port.isascii() and port.isdigit() and 0 < int(port) <= 65535):
        raise ValueError(f"{given!r}: {port!r} is no port")
    return given


Seconds = Annotated[float, Field(ge=0)]
Name = Annotated[str, Field(pattern=NAME_PATTERN)]
Network = Annotated[IPv4Network | IPv6Network, BeforeValidator(parse_network)]
Domain = Annotated[str, AfterValidator(parse_domain)]
Tags = Annotated[tuple[Annotated[str, AfterValidator(parse_tag)], ...], Field(max_length=TAGS_MAX)]
Host = Annotated[str, AfterValidator(parse_host)]
Hostname = Annotated[str, AfterValidator(parse_hostname)]
Word = Annotated[str, AfterValidator(parse_word)]
Server = Annotated[str, AfterValidator(parse_server)]
Port = Annotated[int, Field(ge=1, le=65535)]
TlsWord = Literal["none", "opportunistic", "encrypted", "starttls", "dane", "implicit"]
LOCAL_NETWORKS = ("0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/3", "::/127", "fe80::/10", "ff00::/8")
"""Where no exchanger of another domain can be: unspecified, loopback, link-local, multicast and beyond."""
Pattern = Annotated[str, AfterValidator(parse_pattern)]


class Section(BaseModel):
    """A table of the file: frozen; unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
