"""Which address is which folder: names on disk for local parts, domains and Maildir++ folders. Pure.

A name that comes from an address is one component of a path or nothing: what holds a slash or a control character,
begins with a dot or is longer than a file name may be is no mailbox. Letters of local parts and domains count as small,
and a quoted local part is what it quotes (RFC 5321 section 4.1.2).
"""

from __future__ import annotations

import base64
import itertools
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass

NAME_BYTES_MAX = 255
"""Of a component of a path."""
INBOX = ""
_PLACEHOLDER = re.compile(r"\{(\w*)\}")
_QUOTED_PAIR = re.compile(r"\\(.)")


@dataclass(frozen=True, slots=True)
class Place:
    """A mailbox and a folder in it."""

    mailbox: tuple[str, ...]
    """Components of the path below the root."""
    folder: str = INBOX
    """As people write it, levels separated by dots: `lists.python`."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the mailbox of an address is: `{domain}/{local}`, and what separates a folder from a user."""

    components: tuple[str, ...]
    delimiter: str

    @classmethod
    def parse(cls, layout: str, delimiter: str) -> Layout:
        """ValueError for what names no mailbox of its own for each local part."""
        components = tuple(layout.split("/"))
        unknown = {name for name in _PLACEHOLDER.findall(layout) if name not in ("domain", "local")}
        plain = _PLACEHOLDER.sub("x", layout)
        if "{local}" not in layout or unknown or not all(map(is_name, plain.split("/"))) or re.search(r"[{}]", plain):
            raise ValueError(f"layout = {layout!r} is no relative path with {{local}} in it, as {{domain}}/{{local}}")
        if delimiter and not re.fullmatch(r"[!#$%&*+=?^_|~-]", delimiter):
            raise ValueError(f"delimiter = {delimiter!r} is none of the characters that may separate a folder, as +")
        return cls(components, delimiter)

    def places(self, address: str) -> list[Place]:
        """Where its mail may go, best first: the whole local part is asked before it is cut. Empty: nowhere."""
        local, _, domain = address.rpartition("@") if "@" in address else (address, "", "")
        local = unicodedata.normalize("NFC", _unquote(local))
        cut = [(local, INBOX)]
        if self.delimiter and self.delimiter in local:
            user, _, folder = local.partition(self.delimiter)
            cut.append((user, folder))
        found = [(self._mailbox(user.lower(), domain.lower()), folder) for user, folder in cut]
        return [Place(mailbox, folder) for mailbox, folder in found if mailbox]

    def _mailbox(self, local: str, domain: str) -> tuple[str, ...]:
        if not is_name(local) or ("{domain}" in "".join(self.components) and not is_name(domain)):
            return ()
        values = {"local": local, "domain": domain}
        path = tuple(_PLACEHOLDER.sub(lambda found: values[found[1]], component) for component in self.components)
        return path if all(map(is_name, path)) else ()


def is_name(name: str) -> bool:
    """May be a component of a path that comes from outside."""
    try:
        length = len(name.encode())
    except UnicodeEncodeError:
        return False
    return 0 < length <= NAME_BYTES_MAX and name[0] != "." and not any(map(_is_forbidden, name))


def folder_name(folder: str) -> str:
    """Its directory in a Maildir++: `.lists.python`, other letters than ASCII in the encoding of IMAP (RFC 3501
    section 5.1.3). Empty: that is no folder, or the inbox.
    """
    if folder.lower() == "inbox" or not all(folder.split(".")) or any(map(_is_forbidden, folder)):
        return ""
    try:
        name = "." + "".join(_encode(*run) for run in itertools.groupby(folder, _is_printable))
    except UnicodeEncodeError:
        return ""
    return name if len(name) <= NAME_BYTES_MAX else ""


def _encode(printable: bool, characters: Iterable[str]) -> str:
    text = "".join(characters)
    if printable:
        return text.replace("&", "&-")
    encoded = base64.b64encode(text.encode("utf-16-be")).decode().rstrip("=").replace("/", ",")
    return f"&{encoded}-"


def _unquote(local: str) -> str:
    if len(local) < 2 or not (local[0] == local[-1] == '"'):
        return local
    return _QUOTED_PAIR.sub(r"\1", local[1:-1])


def _is_printable(character: str) -> bool:
    return " " <= character <= "~"


def _is_forbidden(character: str) -> bool:
    return character == "/" or unicodedata.category(character) == "Cc"
