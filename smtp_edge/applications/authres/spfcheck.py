"""SPF (RFC 7208) by the library pyspf, which asks our DNS: may this client send for the domain of the reverse-path?

With the null reverse-path it is the domain that the client names itself (section 2.4).
"""

from __future__ import annotations

import ipaddress

import spf
import structlog

from smtp_edge.applications.authres.lookups import LookupFailed, Lookups
from smtp_edge.applications.authres.results import FAIL, NEUTRAL, NONE, PASS, PERMERROR, TEMPERROR, Result, to_ascii

log = structlog.get_logger()

KNOWN = (PASS, FAIL, NONE, NEUTRAL, TEMPERROR, PERMERROR, "softfail")
NAME_BYTES_MAX = 253


class Query(spf.query):  # type: ignore[misc]
    """The library's evaluation of one message, with our lookups."""

    def __init__(self, lookups: Lookups, address: str, sender: str, helo: str, receiver: str) -> None:
        super().__init__(i=address, s=sender, h=helo, receiver=receiver)
        self._lookups = lookups

    def dns(self, name: str, qtype: str, cnames: object = None, ignore_void: bool = False) -> list[object]:
        """Where the library asks. spf.TempError, spf.PermError."""
        name = str(name).rstrip(".")
        if not name or len(name) > NAME_BYTES_MAX or not all(0 < len(label) < 64 for label in name.split(".")):
            return []
        try:
            found = [_as_pyspf(record, qtype) for record in self._lookups.ask(name, qtype)]
        except LookupFailed as error:
            raise spf.TempError(f"DNS {error}") from None
        if not found and not ignore_void:
            self.void_lookups += 1
            if self.void_lookups > spf.MAX_VOID_LOOKUPS:
                raise spf.PermError(f"more than {spf.MAX_VOID_LOOKUPS} names that are not there")
        return found


def check_spf(lookups: Lookups, address: str, sender: str, helo: str, receiver: str) -> Result:
    """Blocks. Whatever was in a record, or a name, is a result."""
    name, domain = ("smtp.mailfrom", sender.rpartition("@")[2]) if sender else ("smtp.helo", helo)
    domain = to_ascii(domain)
    properties = ((name, sender or helo),)
    if "." not in domain or domain.startswith("["):
        return Result("spf", NONE, properties)
    try:
        ipaddress.ip_address(address)
    except ValueError:
        return Result("spf", NONE, properties, "the client has no address")
    whole = f"{sender.rpartition('@')[0]}@{domain}" if sender else ""
    try:
        result, _, _ = Query(lookups, address, whole, to_ascii(helo) or "unknown", receiver).check()
    except Exception as error:  # the library meets records of strangers
        log.info("authres.spf_failed", domain=domain, reason=f"{type(error).__name__}: {error}"[:200])
        result = PERMERROR
    return Result("spf", result if result in KNOWN else PERMERROR, properties, domain=domain)


def _as_pyspf(record: object, kind: str) -> object:
    """As the library has records of this kind."""
    match kind:
        case "A" | "AAAA":
            return record.address  # type: ignore[attr-defined]
        case "MX":
            return record.preference, record.exchange.to_text(True)  # type: ignore[attr-defined]
        case "PTR":
            return record.target.to_text(True)  # type: ignore[attr-defined]
        case _:
            return record.strings  # type: ignore[attr-defined]
