"""DMARC (RFC 7489): a domain's policy in the DNS, and whether what passed is of the domain that readers see. Pure.

A record that asks for nothing that can be understood is no record, but for one that wants reports: that is `none`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from smtp_edge.applications.authres.results import FAIL, NONE, PASS, PERMERROR, TEMPERROR, Result

POLICIES = ("none", "quarantine", "reject")
RECORD_BYTES_MAX = 4096
VERSION = b"v=DMARC1"


class BadRecord(ValueError):
    """A record that says nothing."""


@dataclass(frozen=True, slots=True)
class Policy:
    """What a domain asks for."""

    policy: str = "none"
    subdomains: str = "none"
    strict_dkim: bool = False
    strict_spf: bool = False
    percent: int = 100
    """Of what fails; the rest gets the milder policy."""


def parse_record(record: bytes) -> Policy:
    """BadRecord. Tags that mean nothing are as if they were not there (section 6.3)."""
    pairs = [part.partition("=") for part in record[:RECORD_BYTES_MAX].decode("ascii", "replace").split(";")]
    tags = {name.strip().lower(): value.strip() for name, _, value in reversed(pairs)}
    lower = {name: value.lower() for name, value in tags.items()}
    policy = lower.get("p", "")
    subdomains = lower.get("sp", policy)
    if policy not in POLICIES or subdomains not in POLICIES:
        if not lower.get("rua", "").startswith("mailto:"):
            raise BadRecord("it has no policy")
        policy = subdomains = "none"
    percent = tags.get("pct", "")
    return Policy(
        policy,
        subdomains,
        lower.get("adkim") == "s",
        lower.get("aspf") == "s",
        min(int(percent), 100) if percent.isascii() and percent.isdecimal() and len(percent) < 4 else 100,
    )


def find_policy(
    domain: str, text: Callable[[str], Sequence[bytes]], organizational: Callable[[str], str]
) -> Policy | None:
    """Of a domain, or of its organization (section 6.6.3); None if there is none. BadRecord, and what `text` raises."""
    for place in dict.fromkeys((domain, organizational(domain))):
        records = [record for record in text(f"_dmarc.{place}") if is_record(record)]
        if len(records) > 1:
            return None
        if records:
            found = parse_record(records[0])
            if place == domain:
                return found
            return Policy(found.subdomains, found.subdomains, found.strict_dkim, found.strict_spf, found.percent)
    return None


def is_record(record: bytes) -> bool:
    """Its first tag is the version."""
    return record.partition(b";")[0].replace(b" ", b"") == VERSION


def judge(
    domain: str, policy: Policy, spf: Result, dkim: Sequence[Result], organizational: Callable[[str], str]
) -> Result:
    """One aligned pass is enough (section 4.2). What could not be looked at for now may have been that one."""

    def is_aligned(other: str, strict: bool) -> bool:
        if strict or not other:
            return other == domain
        return organizational(other) == organizational(domain)

    aligned = [spf] if is_aligned(spf.domain, policy.strict_spf) else []
    aligned += [found for found in dkim if is_aligned(found.domain, policy.strict_dkim)]
    said = {found.result for found in aligned}
    result = PASS if PASS in said else TEMPERROR if TEMPERROR in said else FAIL
    return build(domain, result, policy.policy)


def build(domain: str, result: str, policy: str = "", reason: str = "") -> Result:
    """The result of the method."""
    assert result in (PASS, FAIL, NONE, TEMPERROR, PERMERROR)
    properties = (("header.from", domain), ("policy.dmarc", policy if result == FAIL else ""))
    return Result("dmarc", result, properties, reason or (f"p={policy}" if policy else ""), domain)
