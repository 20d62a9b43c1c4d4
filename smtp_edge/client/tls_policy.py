"""How a session with a next hop must be secured: what the operator, the domain and the message ask for. Pure.

The operator sets a floor: `tls` of a smart host; for the exchangers of domains `[[tls]]` (else opportunistic), or
`tls_min` of the route if that is higher.

    floor           TLS offered, sound     TLS offered, broken           TLS not offered
    none            not used               not used                      clear
    opportunistic   used                   clear, on a new connection    clear
    encrypted       used                   no session                    no session
    verified        used, verified (1)     no session                    no session
    dane            used, DANE             no session                    no session

(1) by an authority, for the host's name or one of `names`; or by DANE.

The domain's own policies raise it for each host (`dane.judge`, `mta_sts`), but for the floor `none`, by which an
operator sets them aside. DANE, where it applies, takes the place of MTA-STS (RFC 8461 section 2):

    DANE verdict      MTA-STS                       tried in this order
    AUTHENTICATE      any                           DANE
    ENCRYPT           any                           floor, but at least encrypted; not with the floor dane
    SKIP              any                           this host is left out
    NOT_APPLICABLE    enforce, host listed          verified
    NOT_APPLICABLE    enforce, host not listed      this host is left out
    NOT_APPLICABLE    testing                       verified, if that fails the floor (and a line in the log)
    NOT_APPLICABLE    none, or no policy            floor; not with the floor dane

The message may ask for more or less (RFC 8689): REQUIRETLS wants every session verified, and the host's name vouched
for by DNSSEC, by an MTA-STS policy, or by the operator; `TLS-Required: No` sets the domain's policies aside, never the
operator's floor. REQUIRETLS on a report (null reverse-path) is a wish, so that the report is not lost.
"""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass, replace
from pathlib import Path

from smtp_edge.client.dane import NOT_APPLICABLE, DanePlan, DaneVerdict, Tlsa
from smtp_edge.client.mta_sts import Mode, Policy, permits_host
from smtp_edge.envelope import Envelope

_TLS_REQUIRED_NO = re.compile(rb"^tls-required[ \t]*:[ \t]*(?:\r\n[ \t]+)?no[ \t]*\r?$", re.IGNORECASE | re.MULTILINE)


class Level(enum.IntEnum):
    """How much a session must be secured."""

    NONE = 0
    OPPORTUNISTIC = 1
    ENCRYPTED = 2
    VERIFIED = 3
    DANE = 4


class Wish(enum.Enum):
    """What a message asks for (RFC 8689)."""

    NOTHING = enum.auto()
    REQUIRE = enum.auto()
    RELAX = enum.auto()


@dataclass(frozen=True, slots=True)
class Floor:
    """What the operator demands."""

    level: Level = Level.OPPORTUNISTIC
    names: tuple[str, ...] = ()
    ca: Path | None = None

    def raised_to(self, level: Level) -> Floor:
        """At least this level; names and authority stay."""
        return replace(self, level=level) if level > self.level else self


@dataclass(frozen=True, slots=True)
class TlsDemand:
    """What one connection must reach."""

    level: Level
    host: str = ""
    """SNI, and the name that the certificate must hold."""
    names: tuple[str, ...] = ()
    """Names of which the certificate must hold one instead; for DANE: the reference names."""
    ca: Path | None = None
    tlsa: tuple[Tlsa, ...] = ()
    source: str = ""
    """Who asks: `dane`, `mta-sts`, `mta-sts testing`, `requiretls`, or empty for the operator."""


@dataclass(frozen=True, slots=True)
class LeftOut:
    """No session with this host."""

    reason: str


CLEAR = TlsDemand(Level.NONE)


def wish_of(envelope: Envelope, header: bytes) -> Wish:
    """What a message asks for. REQUIRETLS overrides the header field (RFC 8689 section 4.2.2)."""
    if envelope.requiretls:
        return Wish.REQUIRE if envelope.sender else Wish.NOTHING
    return Wish.RELAX if _TLS_REQUIRED_NO.search(header) else Wish.NOTHING


def plan_tls(
    floor: Floor,
    host: str,
    *,
    dane: DanePlan = NOT_APPLICABLE,
    policy: Policy | None = None,
    reference_names: tuple[str, ...] = (),
    name_trusted: bool = False,
    wish: Wish = Wish.NOTHING,
) -> tuple[TlsDemand, ...] | LeftOut:
    """What to try with a host, in order; the next only after TLS has failed. See the tables.

    `name_trusted`: DNSSEC or the operator vouches for the host's name. `reference_names` are for DANE-TA.
    """
    if floor.level is Level.NONE or (wish is Wish.RELAX and floor.level is not Level.DANE):
        dane, policy = NOT_APPLICABLE, None
    demand = TlsDemand(floor.level, host, floor.names, floor.ca)
    match dane.verdict:
        case DaneVerdict.SKIP:
            return LeftOut(dane.reason)
        case DaneVerdict.AUTHENTICATE:
            return (TlsDemand(Level.DANE, dane.base, reference_names, None, dane.records, "dane"),)
        case DaneVerdict.ENCRYPT if floor.level is Level.DANE:
            return LeftOut(f"no TLSA record of {dane.base} can be used, and DANE is demanded")
        case DaneVerdict.ENCRYPT if wish is not Wish.REQUIRE:
            level = max(floor.level, Level.ENCRYPTED)
            return (replace(demand, level=level, source="" if level is floor.level else "dane"),)
        case DaneVerdict.NOT_APPLICABLE if floor.level is Level.DANE:
            return LeftOut(f"{host} has no TLSA records that DNSSEC vouches for, and DANE is demanded")
        case _:
            pass
    return _plan_by_authority(demand, policy, name_trusted, wish)


def _plan_by_authority(
    demand: TlsDemand, policy: Policy | None, name_trusted: bool, wish: Wish
) -> tuple[TlsDemand, ...] | LeftOut:
    host, mode = demand.host, policy.mode if policy is not None else Mode.NONE
    listed = policy is not None and mode is not Mode.NONE and permits_host(policy, host)
    if mode is Mode.ENFORCE and not listed:
        return LeftOut(f"{host} is not in the MTA-STS policy of the domain")
    verified = replace(demand, level=Level.VERIFIED)
    if wish is Wish.REQUIRE:
        if not (name_trusted or listed or demand.names):
            return LeftOut(f"REQUIRETLS: neither DNSSEC nor MTA-STS vouches for {host}")
        return (replace(verified, source="requiretls"),)
    if demand.level >= Level.VERIFIED:
        return (demand,)
    if mode is Mode.ENFORCE:
        return (replace(verified, names=(), ca=demand.ca, source="mta-sts"),)
    rest = (demand, CLEAR) if demand.level is Level.OPPORTUNISTIC else (demand,)
    if mode is Mode.TESTING:
        return (replace(verified, names=(), source="mta-sts testing"), *rest)
    return rest
