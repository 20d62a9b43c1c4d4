"""The ledger: what was accepted against what arrived, message by message. Pure; all instants are Unix seconds.

It trusts nothing that the relay says about itself: ids and digests are set by the submitter and compared with what the
smart hosts wrote. The relays' logs serve only to name the reason of a duplicate. It balances when

    every accepted message arrived, unchanged, and every second copy has a reason outside the mesh.

Reasons for a second copy at an exit (RFC 1047): whoever sent it never saw the answer to the first one, because the
sender, the receiver or the connection died between the final dot and the reply.
"""

from __future__ import annotations

import itertools
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

FORMAT = 1
"""Version of the JSON: raised when a key changes its meaning or goes away."""
REASON_WINDOW_S = 2.0
"""A kill explains a first copy that arrived at most this long before or after it: attempts in flight, not history."""


@dataclass(frozen=True, slots=True)
class Submission:
    """One message as its submitter saw it."""

    message_id: str
    body_sha256: str
    submitted_at: float
    accepted_at: float | None = None
    """When a relay answered 250; None = never."""
    relay: str = ""
    """The relay that answered 250."""
    doubts: tuple[str, ...] = ()
    """Relays that were sent the final dot and never answered; the message was then offered to the next one."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """One message as a smart host wrote it down."""

    message_id: str
    host: str
    at: float
    body_sha256: str
    relay: str
    """Name in EHLO of the relay that delivered it."""
    entered: str = ""
    """Where and as what the mesh took it first: `RELAY QUEUE_ID` from the oldest Received field of a relay."""


@dataclass(frozen=True, slots=True)
class Kill:
    """A process that was killed with SIGKILL."""

    name: str
    at: float
    back_at: float | None = None


@dataclass(frozen=True, slots=True)
class Doubt:
    """A relay's own note that a connection was lost between the final dot and its reply."""

    relay: str
    host: str
    at: float


@dataclass(frozen=True, slots=True)
class Reroute:
    """How long the mesh went on using a dead hop."""

    hop: str
    killed_at: float
    last_use_s: float | None
    """From the kill to the last attempt that a relay began while it held the hop for usable; None = no attempt."""
    seen_s: Mapping[str, float | None]
    """Relay -> seconds from the kill until its routing table showed the hop unusable; None = never seen."""

    @property
    def everywhere_s(self) -> float | None:
        """Until the last relay had seen it; None if one never did."""
        seen = list(self.seen_s.values())
        return max((value for value in seen if value is not None), default=None) if None not in seen else None


@dataclass(frozen=True, slots=True)
class Double:
    """A message that arrived more than once."""

    message_id: str
    hosts: tuple[str, ...]
    reason: str
    """A sentence; empty if nothing explains it, and then the ledger does not balance."""
    kind: str
    """`exit` (an answer was lost behind the mesh), `submission` (before it), or `mesh` (unexplained: our fault)."""


@dataclass(frozen=True, slots=True)
class Ledger:
    """The account."""

    submitted: int
    accepted: int
    delivered: int
    """Different accepted messages that arrived."""
    lost: tuple[str, ...]
    """Accepted and not arrived when the account was drawn up."""
    changed: tuple[str, ...]
    """Arrived with another body than was submitted."""
    strangers: tuple[str, ...]
    """Arrived without ever having been submitted."""
    doubled: tuple[Double, ...]
    unanswered: int
    """Submitted, never answered 250; these may arrive or not."""
    hosts: Mapping[str, int]
    """Copies by smart host."""
    shares: Mapping[str, float] = field(default_factory=dict)
    """Share of the copies by smart host within the window given, 0..1."""
    rates: Mapping[str, float] = field(default_factory=dict)
    """What each smart host can take, messages per second."""
    reroutes: tuple[Reroute, ...] = ()
    kills: tuple[Kill, ...] = ()
    waiting: int | None = 0
    """What the relays say still waits in their queues (hearsay: it excuses nothing); None = they do not answer."""

    @property
    def balanced(self) -> bool:
        """Nothing lost, changed or invented, and nothing doubled inside the mesh."""
        return not (self.lost or self.changed or self.strangers or self.doubled_in_mesh)

    @property
    def doubled_in_mesh(self) -> int:
        """Second copies that nothing outside the mesh explains."""
        return sum(1 for double in self.doubled if double.kind == "mesh")


def build_ledger(
    submissions: Iterable[Submission],
    arrivals: Iterable[Arrival],
    *,
    kills: Sequence[Kill] = (),
    doubts: Sequence[Doubt] = (),
    reroutes: Sequence[Reroute] = (),
    rates: Mapping[str, float] | None = None,
    window: tuple[float, float] | None = None,
    waiting: int | None = 0,
) -> Ledger:
    """Draw up the account. Shares are counted over arrivals within `window` (all if None)."""
    sent = {submission.message_id: submission for submission in submissions}
    came: dict[str, list[Arrival]] = defaultdict(list)
    for arrival in sorted(arrivals, key=lambda arrival: arrival.at):
        came[arrival.message_id].append(arrival)
    accepted = {name for name, submission in sent.items() if submission.accepted_at is not None}
    copies = [arrival for group in came.values() for arrival in group]
    return Ledger(
        submitted=len(sent),
        accepted=len(accepted),
        delivered=len(accepted & came.keys()),
        lost=tuple(sorted(accepted - came.keys())),
        changed=tuple(sorted(name for name in came if name in sent and _is_changed(sent[name], came[name]))),
        strangers=tuple(sorted(came.keys() - sent.keys())),
        doubled=tuple(
            explain_double(sent[name], group, kills, doubts)
            for name, group in sorted(came.items())
            if len(group) > 1 and name in sent
        ),
        unanswered=len(sent) - len(accepted),
        hosts=dict(sorted(Counter(arrival.host for arrival in copies).items())),
        shares=count_shares(copies, window),
        rates=dict(rates or {}),
        reroutes=tuple(reroutes),
        kills=tuple(kills),
        waiting=waiting,
    )


def count_shares(arrivals: Iterable[Arrival], window: tuple[float, float] | None = None) -> dict[str, float]:
    """Share of each smart host among arrivals from `window[0]` to `window[1]`."""
    counts = Counter(a.host for a in arrivals if window is None or window[0] <= a.at < window[1])
    return {host: count / counts.total() for host, count in sorted(counts.items())}


def explain_double(
    submission: Submission, arrivals: Sequence[Arrival], kills: Sequence[Kill], doubts: Sequence[Doubt]
) -> Double:
    """Give every second copy its reason; one copy without a reason makes the whole message unexplained."""
    found: list[tuple[str, str]] = []
    entries = {arrival.entered for arrival in arrivals}
    for before, after in itertools.pairwise(arrivals):
        found.append(
            _explain_submission(submission, before, after, len(entries))
            or _explain_kill(before, after, kills)
            or _explain_doubt(before, doubts)
            or ("mesh", "")
        )
    kinds = [kind for kind, _ in found]
    kind = "mesh" if "mesh" in kinds else kinds[0]
    reason = "" if kind == "mesh" else "; ".join(dict.fromkeys(reason for _, reason in found))
    return Double(submission.message_id, tuple(arrival.host for arrival in arrivals), reason, kind)


def _is_changed(submission: Submission, arrivals: Sequence[Arrival]) -> bool:
    return any(arrival.body_sha256 != submission.body_sha256 for arrival in arrivals)


def _explain_submission(
    submission: Submission, before: Arrival, after: Arrival, entries: int
) -> tuple[str, str] | None:
    """Two entries into the mesh are two messages to it: the submitter sent it again."""
    if not submission.doubts or before.entered == after.entered or entries > len(submission.doubts) + 1:
        return None
    silent = " and ".join(submission.doubts)
    return "submission", f"{silent} died before answering the submitter, who sent it again by {submission.relay}"


def _explain_kill(before: Arrival, after: Arrival, kills: Sequence[Kill]) -> tuple[str, str] | None:
    for kill in kills:
        gap_s = kill.at - before.at
        near = abs(gap_s) <= REASON_WINDOW_S and (kill.back_at is None or before.at <= kill.back_at)
        if not near or after.at < kill.at or kill.name not in (before.relay, before.host):
            continue
        when = f"{abs(gap_s):.2f} s {'after' if gap_s >= 0 else 'before'}"
        if kill.name == before.host:
            return "exit", f"{kill.name} was killed {when} it wrote the message: its 250 never arrived"
        fate = "the 250 was not yet recorded" if gap_s >= 0 else "nobody was left to hear the 250"
        return "exit", f"{kill.name} was killed {when} {before.host} wrote the message: {fate}"
    return None


def _explain_doubt(before: Arrival, doubts: Sequence[Doubt]) -> tuple[str, str] | None:
    for doubt in doubts:
        if doubt.relay == before.relay and doubt.host == before.host and abs(doubt.at - before.at) <= REASON_WINDOW_S:
            return "exit", f"{before.relay} lost the connection to {before.host} between the final dot and the reply"
    return None


# -- reading and writing -----------------------------------------------------------------------------------------------


def parse_arrival(line: str, host: str, relay_names: Mapping[str, str]) -> Arrival:
    """One line of a smart host's file. `relay_names`: EHLO name -> name for people. ValueError for a torn line."""
    record = json.loads(line)
    return Arrival(
        message_id=record["id"],
        host=host,
        at=record["at"],
        body_sha256=record["body_sha256"],
        relay=relay_names.get(record["client"], record["client"]),
        entered=_find_entry(record["received"], relay_names),
    )


def _find_entry(received: Sequence[str], relay_names: Mapping[str, str]) -> str:
    """Relay and queue id of the oldest Received field that one of the relays wrote."""
    for value in reversed(received):
        words = value.replace(";", " ").split()
        by = words[words.index("by") + 1] if "by" in words[:-1] else ""
        queue_id = words[words.index("id") + 1] if "id" in words[:-1] else ""
        if by in relay_names:
            return f"{relay_names[by]} {queue_id}"
    return ""


def read_arrivals(path: Path, host: str, relay_names: Mapping[str, str]) -> list[Arrival]:
    """All of a smart host's file; a torn last line (killed while writing) was never answered 250 and is left out."""
    lines = path.read_text(encoding="utf-8").split("\n") if path.exists() else []
    return [parse_arrival(line, host, relay_names) for line in lines[:-1] if line]


def to_json(ledger: Ledger) -> dict[str, object]:
    """The account as one JSON object; seconds and counts, keys never change their meaning within a `format`."""
    return {
        "format": FORMAT,
        "balanced": ledger.balanced,
        "submitted": ledger.submitted,
        "accepted": ledger.accepted,
        "delivered": ledger.delivered,
        "unanswered": ledger.unanswered,
        "waiting": ledger.waiting,
        "lost": list(ledger.lost),
        "changed": list(ledger.changed),
        "strangers": list(ledger.strangers),
        "doubled_in_mesh": ledger.doubled_in_mesh,
        "doubled": [asdict(double) for double in ledger.doubled],
        "hosts": {
            host: {
                "copies": ledger.hosts.get(host, 0),
                "rate_mps": ledger.rates.get(host),
                "share": round(ledger.shares.get(host, 0.0), 4),
            }
            for host in sorted({*ledger.hosts, *ledger.rates})
        },
        "reroutes": [
            {
                "hop": reroute.hop,
                "last_use_s": _rounded(reroute.last_use_s),
                "everywhere_s": _rounded(reroute.everywhere_s),
                "seen_s": {relay: _rounded(seen_s) for relay, seen_s in sorted(reroute.seen_s.items())},
            }
            for reroute in ledger.reroutes
        ],
        "kills": [asdict(kill) for kill in ledger.kills],
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)


def to_text(ledger: Ledger) -> str:
    """The account for people."""
    lines = [
        f"submitted {ledger.submitted}   accepted {ledger.accepted}   delivered {ledger.delivered}"
        + (f"   unanswered {ledger.unanswered}" if ledger.unanswered else ""),
        f"lost      {_names(ledger.lost)}{_waiting_note(ledger)}",
        f"changed   {_names(ledger.changed)}",
    ]
    if ledger.strangers:
        lines.append(f"strangers {_names(ledger.strangers)}")
    lines += _double_lines(ledger)
    lines += [_share_line(ledger, host) for host in sorted({*ledger.hosts, *ledger.rates})]
    lines += [line for reroute in ledger.reroutes for line in _reroute_lines(reroute)]
    lines.append("the ledger balances" if ledger.balanced else "THE LEDGER DOES NOT BALANCE")
    return "\n".join(lines)


NAMES_SHOWN_MAX = 10


def _names(names: Sequence[str]) -> str:
    shown = ", ".join(names[:NAMES_SHOWN_MAX]) + (", ..." if len(names) > NAMES_SHOWN_MAX else "")
    return f"{len(names)}" + (f"  ({shown})" if names else "")


def _waiting_note(ledger: Ledger) -> str:
    if not ledger.lost:
        return ""
    return "  not all relays answer" if ledger.waiting is None else f"  {ledger.waiting} still wait, say the relays"


def _double_lines(ledger: Ledger) -> list[str]:
    lines = [
        f"doubled   {ledger.doubled_in_mesh} inside the mesh, {len(ledger.doubled) - ledger.doubled_in_mesh} outside"
    ]
    for double in ledger.doubled:
        reason = double.reason or "UNEXPLAINED"
        lines.append(f"          {double.message_id} ({', '.join(double.hosts)}): {reason}")
    return lines


def _share_line(ledger: Ledger, host: str) -> str:
    rate, total = ledger.rates.get(host), sum(ledger.rates.values())
    line = (
        f"{host}: {ledger.hosts.get(host, 0)} copies, {ledger.shares.get(host, 0.0):.0%} of the mail with all hosts up"
    )
    return f"{line} (it has {rate / total:.0%} of the capacity)" if rate and total else line


def _reroute_lines(reroute: Reroute) -> list[str]:
    last = "never used again" if reroute.last_use_s is None else f"last used {reroute.last_use_s * 1000:.0f} ms later"
    seen = reroute.everywhere_s
    shown = "not seen by every relay" if seen is None else f"shown down by all relays after {seen * 1000:.0f} ms"
    return [f"time to reroute: {reroute.hop} killed; {last}, {shown}"]
