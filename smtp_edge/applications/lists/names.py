"""Lists as they are configured, and the addresses of each. Pure.

talk@lists.example.org                       posts
talk-request@                                commands, in the subject or line by line in the text
talk-join@ talk-subscribe@                   join
talk-leave@ talk-unsubscribe@                leave
talk-confirm+TOKEN@                          what was asked for was meant
talk-owner@                                  the owners
talk-bounces@ talk-bounces+TAG@              reverse-path of what a list sends; the latter tells whose copy it was
"""

from __future__ import annotations

import dataclasses
import enum
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass

from smtp_edge.address import SyntaxFault, parse_mailbox
from smtp_edge.sinks.fields import make_field

NAME_MAX = 32
"""Octets of a list's local part: with `-confirm+` or `-bounces+` and 16 more it is no longer than one may be."""


class Role(enum.StrEnum):
    """What an address of a list is for."""

    POST = "post"
    REQUEST = "request"
    JOIN = "join"
    LEAVE = "leave"
    CONFIRM = "confirm"
    OWNER = "owner"
    BOUNCES = "bounces"


SUFFIXES = {role.value: role for role in Role if role is not Role.POST} | {
    "subscribe": Role.JOIN,
    "unsubscribe": Role.LEAVE,
}
_DETAILED = (Role.CONFIRM, Role.BOUNCES)
_CHOICES = {
    "posts": ("anyone", "members", "owners"),
    "others": ("hold", "refuse"),
    "joins": ("open", "closed"),
}


@dataclass(frozen=True, slots=True)
class MailingList:
    """One list. ValueError for settings that mean nothing."""

    address: str
    owners: tuple[str, ...]
    title: str = ""
    """For people; empty = the local part of its address."""
    posts: str = "members"
    """Who posts freely: `anyone`, `members`, `owners`. Owners always may."""
    others: str = "hold"
    """What becomes of the posts of others: `hold` for the owners, or `refuse`."""
    joins: str = "open"
    """`open`: whoever confirms is a member; `closed`: the owners say yes to each."""
    unsubscribe_url: str = ""
    """`https:`; takes a POST without questions (RFC 8058), and is the same in all copies."""
    bounces_max: int = 5
    """A member whose mail came back for good on so many days of `store.BOUNCE_DAYS` gets none any more."""

    def __post_init__(self) -> None:
        for name, known in _CHOICES.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name} = {getattr(self, name)!r} is none of: {', '.join(known)}")
        if not self.owners:
            raise ValueError("owners names nobody")
        for owner in self.owners:
            _check_address("owners", owner)
        if not isinstance(self.bounces_max, int) or self.bounces_max < 1:
            raise ValueError("bounces_max is at least 1")
        url = self.unsubscribe_url
        if url and not (url.startswith("https://") and url.isascii() and not set(url) & set(" <>,\r\n")):
            raise ValueError(f"unsubscribe_url is an https URL, not {url!r}")
        if set(self.title) & set('<>"\r\n'):
            raise ValueError("title is one line without <, > and quotation marks")
        make_field("List-Id", f"{self.title} <{self.list_id}>")

    @property
    def local(self) -> str:
        """Before the `@`."""
        return self.address.rpartition("@")[0]

    @property
    def domain(self) -> str:
        """Behind it."""
        return self.address.rpartition("@")[2]

    @property
    def name(self) -> str:
        """For people."""
        return self.title or self.local

    @property
    def list_id(self) -> str:
        """RFC 2919, without angle brackets."""
        return f"{self.local}.{self.domain}"

    def address_of(self, role: Role, detail: str = "") -> str:
        """One of its addresses."""
        if role is Role.POST:
            return self.address
        return f"{self.local}-{role.value}{'+' if detail else ''}{detail}@{self.domain}"

    def is_owner(self, *addresses: str) -> bool:
        """One of these is an owner."""
        known = set(map(fold, self.owners))
        return any(fold(address) in known for address in addresses)


@dataclass(frozen=True, slots=True)
class Target:
    """What a recipient's address means."""

    of: MailingList
    role: Role
    detail: str = ""


class Book:
    """All lists of a binding."""

    def __init__(self, lists: Mapping[str, Mapping[str, object]]) -> None:
        """ValueError names the list and what is wrong with it."""
        if not isinstance(lists, Mapping) or not lists:
            raise ValueError("lists names no list")
        self._lists = {fold(address): _parse_list(address, found) for address, found in lists.items()}
        self.domains = frozenset(one.domain.lower() for one in self._lists.values())
        for one in self._lists.values():
            self._check_apart(one)

    def _check_apart(self, one: MailingList) -> None:
        for suffix in SUFFIXES:
            other = f"{one.local}-{suffix}@{one.domain}"
            if fold(other) in self._lists:
                raise ValueError(f"lists: {other} cannot be a list: {one.address} has that address")

    def find(self, address: str) -> Target | None:
        """None: no address of a list."""
        local, _, domain = fold(address).rpartition("@")
        whole = self._lists.get(f"{local}@{domain}")
        if whole is not None:
            return Target(whole, Role.POST)
        base, plus, detail = local.partition("+")
        name, _, suffix = base.rpartition("-")
        found, role = self._lists.get(f"{name}@{domain}"), SUFFIXES.get(suffix)
        if found is None or role is None or (plus and role not in _DETAILED):
            return None
        return Target(found, role, detail)


def fold(address: str) -> str:
    """As addresses are compared."""
    return unicodedata.normalize("NFC", address).lower()


def _parse_list(address: str, found: Mapping[str, object]) -> MailingList:
    try:
        _check_address("the list", address)
        local = address.rpartition("@")[0]
        if "+" in local or '"' in local or len(local.encode()) > NAME_MAX:
            raise ValueError(f"a list's name has neither + nor quotation marks, and at most {NAME_MAX} bytes")
        known = [field.name for field in dataclasses.fields(MailingList)][1:]
        unknown = sorted(set(found) - set(known))
        if unknown:
            raise ValueError(f"{unknown[0]} is no setting of a list; these are: {', '.join(known)}")
        owners = found.get("owners", ())
        if not isinstance(owners, list | tuple):
            raise ValueError('owners is a list of addresses, as ["ann@example.org"]')
        for name in ("title", "posts", "others", "joins", "unsubscribe_url"):
            if not isinstance(found.get(name, ""), str):
                raise ValueError(f"{name} is a text")
        settings = {**found, "owners": tuple(owners)}
        return MailingList(address=address, **settings)  # type: ignore[arg-type]
    except ValueError as error:
        raise ValueError(f"lists: {address}: {error}") from None


def _check_address(name: str, address: object) -> None:
    try:
        whole = isinstance(address, str) and "@" in parse_mailbox(address)
    except SyntaxFault:
        whole = False
    if not whole:
        raise ValueError(f"{name}: {address!r} is no address")
