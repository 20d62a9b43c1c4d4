"""MTA-STS (RFC 8461): records, policies, and what a policy asks of a session. Pure.

policy in the cache        DNS record (TXT)            HTTPS           what counts from now on
none                       none, or no answer          -               no policy; asked again after a while
none                       a record                    a policy        the fetched one, for its max_age
none                       a record                    fails           no policy; asked again after a while
fresh                      the same id                 -               the cached one
fresh                      another id                  a policy        the fetched one
fresh                      another id                  fails           the cached one until it expires
fresh                      none, or no answer          -               the cached one until it expires
fresh, half of it over     any record                  a policy        the fetched one (refresh ahead)
expired                    as with none

mode      host in `mx`   certificate                      session
enforce   yes            verified by an authority, name   allowed
enforce   yes            anything else, or no TLS         not with this host: another, or later (4.7.5)
enforce   no             any                              not with this host
testing   any            any                              allowed, what enforce would have refused goes to the log
none      any            any                              allowed, as without a policy
"""

from __future__ import annotations

import enum
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

MAX_AGE_S_MAX = 31_557_600
"""RFC 8461 section 3.2: about a year."""
POLICY_BYTES_MAX = 64 * 1024
MX_PATTERNS_MAX = 500
CHECK_S = 600.0
"""The TXT record of a domain with a policy is looked at this often, while mail goes there."""
ABSENT_S = 300.0
"""A domain that has no policy (or whose policy could not be fetched) is asked again after this (section 5.1)."""

_ID = re.compile(r"[A-Za-z0-9]{1,32}")
_HOST = re.compile(r"(?:\*\.)?[a-z0-9_](?:[a-z0-9_-]*)(?:\.[a-z0-9_][a-z0-9_-]*)*")
_FIELD = re.compile(r"([A-Za-z0-9][A-Za-z0-9_.-]{0,31}):[ \t]*(.*?)[ \t]*")


class PolicyError(ValueError):
    """What the domain published is no policy; `str()` says why, without repeating it."""


class Mode(enum.StrEnum):
    """Mode of a policy."""

    ENFORCE = "enforce"
    TESTING = "testing"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class Policy:
    """A policy as the domain wrote it."""

    mode: Mode
    mx: tuple[str, ...]
    max_age_s: int


@dataclass(frozen=True, slots=True)
class CachedPolicy:
    """A policy with what is known about its age."""

    policy: Policy
    record_id: str
    fetched_at: datetime
    checked_at: datetime
    """When the TXT record was last seen to hold `record_id`, or could not be seen."""

    def is_fresh(self, at: datetime) -> bool:
        """Its max_age is not over."""
        return at < self.fetched_at + timedelta(seconds=self.policy.max_age_s)

    def wants_check(self, at: datetime) -> bool:
        """The TXT record should be looked at again."""
        return at >= self.checked_at + timedelta(seconds=min(CHECK_S, self.policy.max_age_s / 2))

    def wants_refresh(self, at: datetime) -> bool:
        """Half of its time is over: fetch it although the id is the same."""
        return at >= self.fetched_at + timedelta(seconds=self.policy.max_age_s / 2)


def parse_record(texts: Sequence[str]) -> str | None:
    """The id in the TXT records of `_mta-sts.DOMAIN`; None if there is not exactly one that is well-formed."""
    ours = [text for text in texts if re.match(r"v=STSv1\s*(;|$)", text)]
    if len(ours) != 1:
        return None
    found = ""
    for part in ours[0].split(";"):
        key, _, value = part.strip().partition("=")
        if key == "id":
            found = value.strip()
    return found if _ID.fullmatch(found) else None


def parse_policy(body: bytes) -> Policy:
    """A policy file (section 3.2). PolicyError; unknown fields are skipped, of repeated ones the first counts."""
    if len(body) > POLICY_BYTES_MAX:
        raise PolicyError("the policy is too large")
    try:
        lines = body.decode("utf-8").replace("\r\n", "\n").split("\n")
    except UnicodeDecodeError:
        raise PolicyError("the policy is not UTF-8") from None
    fields: dict[str, str] = {}
    patterns: list[str] = []
    for line in lines:
        if not line.strip():
            continue
        match = _FIELD.fullmatch(line)
        if match is None:
            raise PolicyError("a line of the policy is no field")
        if match[1] == "mx":
            patterns.append(match[2].lower().rstrip("."))
        else:
            fields.setdefault(match[1], match[2])
    return _build_policy(fields, patterns)


def _build_policy(fields: dict[str, str], patterns: list[str]) -> Policy:
    if fields.get("version") != "STSv1":
        raise PolicyError("the policy's version is not STSv1")
    if fields.get("mode") not in set(Mode):
        raise PolicyError("the policy has no known mode")
    age = fields.get("max_age", "")
    if not (age.isascii() and age.isdigit() and len(age) <= 10):
        raise PolicyError("the policy has no max_age")
    mode = Mode(fields["mode"])
    if len(patterns) > MX_PATTERNS_MAX or not all(_HOST.fullmatch(pattern) for pattern in patterns):
        raise PolicyError("the policy names what is no host")
    if not patterns and mode is not Mode.NONE:
        raise PolicyError("the policy names no mx")
    return Policy(mode, tuple(patterns), min(int(age), MAX_AGE_S_MAX))


def permits_host(policy: Policy, host: str) -> bool:
    """True if a policy's `mx` holds an exchanger's name: equal, or `*.` for exactly one label (section 4.1)."""
    name = host.lower().rstrip(".")
    parent = f"*.{name.partition('.')[2]}"
    return name in policy.mx or parent in policy.mx


def pack(cached: CachedPolicy) -> dict[str, object]:
    """For the file in `data_dir`."""
    policy = cached.policy
    return {
        "mode": policy.mode.value,
        "mx": list(policy.mx),
        "max_age_s": policy.max_age_s,
        "id": cached.record_id,
        "fetched_at": cached.fetched_at.isoformat(),
    }


def unpack(packed: object) -> CachedPolicy:
    """From the file. PolicyError for what is damaged."""
    try:
        if not isinstance(packed, dict):
            raise TypeError("no table")
        policy = Policy(Mode(packed["mode"]), tuple(str(host) for host in packed["mx"]), int(packed["max_age_s"]))
        fetched_at = datetime.fromisoformat(packed["fetched_at"])
        if fetched_at.tzinfo is None or not 0 <= policy.max_age_s <= MAX_AGE_S_MAX:
            raise ValueError("out of range")
        return CachedPolicy(policy, str(packed["id"]), fetched_at, checked_at=fetched_at)
    except (KeyError, TypeError, ValueError) as error:
        raise PolicyError(f"damaged: {error!r}") from error
