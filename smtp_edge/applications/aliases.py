"""Aliases: an `expand` sink that reads a file like Postfix's /etc/aliases, without programs, files and lists in files.

    [[sink]]
    use = "aliases"
    rule = "rcpt to=*@example.org,*@example.net"
    with = { path = "/etc/smtpmesh/aliases", domains = ["example.org"], plus = "+" }

    # a name, in each of `domains`
    sales:              ann, bob@example.net
    # one address; it keeps its own mail, and carol gets it too
    dave@example.org:   dave@example.org, carol@example.net
    # whatever else is sent to a domain
    @example.net:       postmaster@example.org

A line that begins with a blank continues the one above it, one that begins with `#` is a comment. The most exact entry
counts: the whole address, with `plus` the address without its detail, the name, the catch-all. A target without a
domain is in the domain of the address that was looked up. Case does not matter. The file is read at start, and again
when it has changed; if it is wrong then, the log names the line and what was read before goes on counting. Loops are
errors.

The reverse-path stays, and so do ORCPT and NOTIFY: an alias is no end of the way (RFC 3461 sections 5.2.7.1, 5.2.7.2),
reports are about what the sender had written.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import structlog

from smtp_edge.address import SyntaxFault, parse_mailbox
from smtp_edge.sinks.api import Expansion, Message, Sink

log = structlog.get_logger()

FILE_BYTES_MAX = 16 * 1024 * 1024
TARGETS_MAX = 10_000
"""Addresses that one alias comes to, in the end."""
_ENTRY = re.compile(r'(?P<name>"[^"]*"|[^\s:"]+)\s*:(?P<targets>.*)', re.DOTALL)
_ORCPT_PLAIN = re.compile(r"[!-*,-<>-~]")


class AliasError(ValueError):
    """The file cannot be what was meant; `str()` names the line."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A line of the file."""

    line: int
    targets: tuple[str, ...]


class Table:
    """What the file says. Pure; AliasError for what is wrong with it."""

    def __init__(self, text: str, domains: Iterable[str] = (), plus: str = "") -> None:
        self._domains, self._plus = frozenset(map(fold, domains)), plus
        self._entries: dict[str, Entry] = {}
        for line, name, targets in _parse(text):
            if name in self._entries:
                raise AliasError(f"line {line}: {name} is also in line {self._entries[name].line}")
            if "@" not in name and not self._domains:
                raise AliasError(f"line {line}: {name} has no domain, and `domains` names none")
            self._entries[name] = Entry(line, targets)
        self._check_loops()

    def __len__(self) -> int:
        return len(self._entries)

    def lookup(self, address: str) -> tuple[str, ...] | None:
        """Its targets, one step; None if it is no alias."""
        found = self._find(address)
        if found is None:
            return None
        domain = address.rpartition("@")[2]
        return tuple(target if "@" in target else f"{target}@{domain}" for target in found.targets)

    def resolve(self, address: str) -> tuple[str, ...] | None:
        """Where its mail goes in the end; None if it is no alias. AliasError for more than `TARGETS_MAX`."""
        if self.lookup(address) is None:
            return None
        ends, seen, waiting = dict[str, str](), set[str](), [address]
        while waiting:
            asked = waiting.pop()
            if fold(asked) in seen:
                continue
            seen.add(fold(asked))
            targets = self.lookup(asked)
            if targets is None or fold(asked) in map(fold, targets):
                ends.setdefault(fold(asked), asked)
                if len(ends) > TARGETS_MAX:
                    raise AliasError(f"{address} comes to more than {TARGETS_MAX} addresses")
            if targets is not None:
                waiting += reversed(targets)
        return tuple(ends.values())

    def _find(self, address: str) -> Entry | None:
        local, separator, domain = fold(address).rpartition("@")
        if not separator:
            return None
        names = [local]
        if self._plus and self._plus in local[1:]:
            names.append(local[: local.index(self._plus, 1)])
        keys = [f"{name}@{domain}" for name in names]
        keys += names if domain in self._domains else []
        return next((self._entries[key] for key in (*keys, f"@{domain}") if key in self._entries), None)

    def _check_loops(self) -> None:
        """Depth first. On the way of each loop are only targets, so these are where it begins."""
        done = set[str]()
        for start in self._all_targets():
            way: dict[str, Iterator[str]] = {}
            self._step_into(start, way, done)
            while way:
                last = next(reversed(way))
                target = next(way[last], None)
                if target is None:
                    done.add(last)
                    del way[last]
                elif target in way and target != last:
                    found = self._find(target)
                    line = found.line if found else 0
                    raise AliasError(f"line {line}: {target} leads back to itself, by way of {', '.join(way)}")
                elif target not in way:
                    self._step_into(target, way, done)

    def _step_into(self, address: str, way: dict[str, Iterator[str]], done: set[str]) -> None:
        if address not in done:
            way[address] = iter([fold(target) for target in self.lookup(address) or ()])

    def _all_targets(self) -> Iterator[str]:
        for name, entry in self._entries.items():
            domain = name.rpartition("@")[2]
            for target in map(fold, entry.targets):
                if "@" in target:
                    yield target
                else:
                    yield from (f"{target}@{one}" for one in ([domain] if "@" in name else self._domains))


class Aliases(Sink):
    """See the module. ValueError for settings that mean nothing or a file that does, OSError."""

    def __init__(self, path: str, domains: Sequence[str] = (), plus: str = "") -> None:
        """`domains`: where names without one count. `plus`: what divides a name from its detail; empty = nothing."""
        if isinstance(domains, str) or not all(
            isinstance(item, str) and _is_address(f"any@{item}") for item in domains
        ):
            raise ValueError('domains is a list of domains, as ["example.org"]')
        if plus and (len(plus) != 1 or plus.isalnum() or not _is_address(plus)):
            raise ValueError(f'plus is one character, as "+", not {plus!r}')
        self._path, self._domains, self._plus = Path(path), tuple(domains), plus
        self._version = _version(self._path)
        self._table = self._read()

    def _read(self) -> Table:
        try:
            with self._path.open("rb") as file:
                text = file.read(FILE_BYTES_MAX + 1)
            if len(text) > FILE_BYTES_MAX:
                raise AliasError(f"it is larger than {FILE_BYTES_MAX} bytes")
            return Table(text.decode("utf-8"), self._domains, self._plus)
        except ValueError as error:
            raise AliasError(f"{self._path}: {error}") from None

    async def expand(self, message: Message) -> Expansion | None:
        """Where its recipient's mail goes, if that is an alias. AliasError: it comes to too many."""
        await self._refresh()
        (recipient,) = message.envelope.recipients
        ends = self._table.resolve(recipient.address)
        if ends is None or [fold(address) for address in ends] == [fold(recipient.address)]:
            return None
        orcpt = recipient.orcpt or _orcpt(recipient.address)
        return Expansion(tuple(replace(recipient, address=address, orcpt=orcpt) for address in ends))

    async def _refresh(self) -> None:
        """Read the file again if it has changed; what is wrong with it is in the log, once for each change."""
        try:
            version = await asyncio.to_thread(_version, self._path)
            if version == self._version:
                return
            self._version = version
            self._table = await asyncio.to_thread(self._read)
            log.info("aliases.read", path=str(self._path), entries=len(self._table))
        except (OSError, AliasError) as error:
            log.error("aliases.not_read", path=str(self._path), reason=str(error))


def fold(address: str) -> str:
    """As addresses are compared."""
    return address.lower()


def _version(path: Path) -> tuple[int, int, int]:
    status = path.stat()
    return status.st_mtime_ns, status.st_size, status.st_ino


def _parse(text: str) -> Iterator[tuple[int, str, tuple[str, ...]]]:
    """(line, folded name, targets)."""
    for line, entry in _join_lines(text):
        match = _ENTRY.fullmatch(entry)
        if match is None:
            raise AliasError(f"line {line}: it is not `name: target, target`")
        name = fold(match["name"].strip('"'))
        if not _is_address(f"any{name}" if name.startswith("@") else name):
            raise AliasError(f"line {line}: {name!r} is neither a name nor an address nor @domain")
        targets = tuple(word for word in map(str.strip, match["targets"].split(",")) if word)
        if not 0 < len(targets) <= TARGETS_MAX:
            raise AliasError(f"line {line}: {name} has {len(targets) or 'no'} targets")
        for target in targets:
            _check_target(line, target)
        yield line, name, targets


def _join_lines(text: str) -> Iterator[tuple[int, str]]:
    """(number of its first line, entry with its continuation lines)."""
    began, entry = 0, ""
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        if line[0] not in " \t":
            if entry:
                yield began, entry
            began, entry = number, line
        elif entry:
            entry += f" {line.strip()}"
        else:
            raise AliasError(f"line {number}: it continues nothing")
    if entry:
        yield began, entry


def _check_target(line: int, target: str) -> None:
    bare = target.strip('"')
    if bare.startswith("|"):
        raise AliasError(f"line {line}: {target} is a program; mail is not piped into programs here")
    if bare.startswith("/"):
        raise AliasError(f"line {line}: {target} is a file; mail is not appended to files here")
    if bare.lower().startswith(":include:"):
        raise AliasError(f"line {line}: {target} is a list in a file; name the addresses here")
    if not _is_address(target):
        raise AliasError(f"line {line}: {target!r} is no address")


def _is_address(text: str) -> bool:
    """A name alone, or with a domain."""
    try:
        parse_mailbox(text if "@" in text else f"{text}@domain")
    except SyntaxFault:
        return False
    return " " not in text


def _orcpt(address: str) -> str:
    """In xtext (RFC 3461 section 4): what reports name is what the sender wrote; empty for addresses beyond ASCII."""
    if not address.isascii():
        return ""
    return "rfc822;" + "".join(
        character if _ORCPT_PLAIN.fullmatch(character) else f"+{ord(character):02X}" for character in address
    )
