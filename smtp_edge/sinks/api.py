"""The sink API: events, what they are given and what they may answer.

A *sink* is a class whose async methods are named after events; its constructor's keyword arguments are its settings. A
*binding* (`[[sink]]` in the configuration) says when it runs: rule, priority, time limit, what a failure means. A sink
overrides the events it wants and no others.

    class Static(Sink):
        '''Everything through one smart host.'''

        def __init__(self, host: str) -> None:
            self.host = host

        async def route(self, delivery: RouteRequest) -> Route:
            return Route((NextHop(f"host:{self.host}"),))

    before the 250    connect helo auth mail rcpt command data
    after it          expand route deliver
    report only       outcome link disconnect

The first verdict that is not None wins. The router of the mesh is an ordinary `route` sink.

A reload that changes `[[sink]]` makes all sinks anew: the new ones start before anything is changed, those of before
stop when they have answered what they were asked. A reload that does not leaves them alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from smtp_edge.envelope import Client, Envelope, Recipient
from smtp_edge.envelope import verp_tag as verp_tag
from smtp_edge.networks import Networks
from smtp_edge.reply import Reply
from smtp_edge.sinks.delivery import Delivery as Delivery
from smtp_edge.sinks.message import Headers as Headers
from smtp_edge.sinks.message import Message as Message
from smtp_edge.sinks.protection import ProtectedError as ProtectedError
from smtp_edge.sinks.protection import Protection as Protection
from smtp_edge.sinks.protection import Signed as Signed
from smtp_edge.sinks.watch import offload as offload

BEFORE_250 = ("connect", "helo", "auth", "mail", "rcpt", "command", "data")
AFTER_250 = ("expand", "route", "deliver")
REPORTS = ("outcome", "link", "disconnect")
EVENTS = BEFORE_250 + AFTER_250 + REPORTS
PRIORITY_DEFAULT = 24575
PRIORITY_MAX = 32767


# -- verdicts ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Accept:
    """Ask no further sink of this event."""


@dataclass(frozen=True, slots=True)
class Reject:
    """Refuse for good. ValueError for a code that is not 5yz or a status that does not fit."""

    text: str
    code: int = 550
    status: str = "5.7.1"

    def __post_init__(self) -> None:
        _check(self.code, self.text, self.status, "5")

    @property
    def reply(self) -> Reply:
        """As it goes on the wire."""
        return Reply(self.code, self.text, self.status)


@dataclass(frozen=True, slots=True)
class TempFail:
    """Refuse for now. ValueError for a code that is not 4yz or a status that does not fit."""

    text: str
    code: int = 451
    status: str = "4.3.0"

    def __post_init__(self) -> None:
        _check(self.code, self.text, self.status, "4")

    @property
    def reply(self) -> Reply:
        """As it goes on the wire."""
        return Reply(self.code, self.text, self.status)


@dataclass(frozen=True, slots=True)
class Discard:
    """Answer 250 and drop the message."""


@dataclass(frozen=True, slots=True)
class Quarantine:
    """Accept, but hold for an operator."""

    reason: str


@dataclass(frozen=True, slots=True)
class Disconnect:
    """Answer 421 and close."""

    text: str = "closing connection"

    @property
    def reply(self) -> Reply:
        """As it goes on the wire."""
        return Reply(421, self.text, "4.7.0")


Verdict = Accept | Reject | TempFail | Discard | Quarantine | Disconnect


def _check(code: int, text: str, status: str, family: str) -> None:
    if str(code)[0] != family:
        raise ValueError(f"code {code} is not {family}yz")
    if any(character in text for character in "\r\n"):
        raise ValueError("a verdict's text is one line")
    Reply(code, text, status)


# -- what events are given ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Verb:
    """An SMTP command that a sink answers (`Sink.verbs`)."""

    name: str
    """Upper case, letters and digits, at most 12."""
    keyword: str = ""
    """Line of the EHLO reply; empty = it is not told."""
    argument_max: int = 512
    """Octets of the argument; longer ones are told 501."""
    hello_first: bool = True
    """Before EHLO or HELO it is told 503."""
    in_transaction: bool = False
    """False: between MAIL and the end of the message it is told 503."""
    peers_only: bool = False
    """Known to authenticated peers alone, after mutual TLS; to everybody else it is no command. Of other verbs, peers
    know nothing."""
    origins: Networks | None = None
    """Known to those alone who are connected from there, whomever they speak for by now (XCLIENT). None = to all."""


@dataclass(frozen=True, slots=True)
class Command:
    """A verb of a sink, as it was said. What a client pipelines behind it waits for the answer."""

    verb: str
    """Upper case."""
    argument: str
    client: Client


@dataclass(frozen=True, slots=True)
class Become:
    """Answer to a command: the session goes on as that of another client (XCLIENT, XFORWARD)."""

    client: Client
    reply: Reply
    anew: bool = True
    """As if it had just connected: greeting, no EHLO yet."""


@dataclass(frozen=True, slots=True)
class RouteRequest:
    """A delivery that needs a next hop now."""

    queue_id: str
    sender: str
    recipients: tuple[Recipient, ...]
    class_id: str
    size_bytes: int
    trace: tuple[str, ...]
    attempts: int
    avoid: tuple[str, ...] = ()
    """Hop ids on which this delivery is backing off."""
    prefer: str = ""
    """Hop id of an in-doubt transfer, to be tried first; empty if none."""
    hand_over: bool = False
    """Its next attempt is not due and this relay drains: only another relay (`peer:...`) may take it now."""


@dataclass(frozen=True, slots=True)
class NextHop:
    """One next hop with its weight among the alternatives."""

    hop: str
    """`peer:NODE_ID`, `host:NAME` or `mx:DOMAIN`."""
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Route:
    """Next hops, best first. The dispatcher takes the first that has a free slot."""

    hops: tuple[NextHop, ...]


@dataclass(frozen=True, slots=True)
class Avoid:
    """The sinks that are asked next must do without these hops. ValueError for what is no hop id."""

    hops: tuple[str, ...]
    """Hop ids."""

    def __post_init__(self) -> None:
        for hop in self.hops:
            kind, _, name = hop.partition(":")
            if kind not in ("peer", "host", "mx") or not name:
                raise ValueError(f"{hop!r} is no hop id, as host:uplink-1")


@dataclass(frozen=True, slots=True)
class Unreachable:
    """No next hop. `for_good` bounces; otherwise the delivery waits without counting an attempt."""

    reason: str
    for_good: bool = False
    status: str = "5.4.4"
    """Enhanced status code of the report, for good only."""
    retry_in_s: float | None = None
    """When to ask again; None = when something changed (a slot, a link, a backlog)."""


@dataclass(frozen=True, slots=True)
class Mail:
    """A message that a sink sends."""

    sender: str
    """Reverse-path; empty for the null reverse-path."""
    recipients: tuple[Recipient, ...]
    content: bytes
    """Header, empty line, body; lines end in CRLF, dots are as the author wrote them."""
    verp: bool = False
    """Each recipient has a reverse-path of its own: `local+user=domain@sender-domain`. A recipient for whom that is no
    local part (over 64 octets, or quoted) gets `sender` itself."""
    verp_key: str = ""
    """With `verp`: `local+TAG@sender-domain`, where TAG is `verp_tag(verp_key, recipient)`. Nobody makes up a bounce
    who has not seen that reverse-path, and it is never too long behind a local part of 47 octets."""


@dataclass(frozen=True, slots=True)
class Expansion:
    """What becomes of a recipient (`expand`): all of it, or none of it, is in the queue afterwards.

    Without recipients and mail the message has reached what it was for (a command to a list, say).
    """

    recipients: tuple[Recipient, ...] = ()
    """Who gets the message instead, with the sink's edits. They are looked up again, as an alias may name another."""
    sender: str | None = None
    """Reverse-path of what they get; None = as it was, and so are the reports about it."""
    verp: bool = False
    """As in `Mail`; with a `sender` only."""
    verp_key: str = ""
    """As in `Mail`."""
    also: tuple[Mail, ...] = ()
    """Other mail that goes out because of it."""


@dataclass(frozen=True, slots=True)
class DeliveryOutcome:
    """Report of the end of an attempt (`outcome`)."""

    queue_id: str
    key: str
    """As in `Delivery.key`."""
    sender: str
    hop: str
    """Hop id; empty if there was none."""
    state: str
    """`relayed`, `deferred`, `failed`, `expired`, `held`."""
    reply: str = ""
    recipients: tuple[Recipient, ...] = field(default=())
    """Of the delivery; of one that is asked again, those who are left."""


@dataclass(frozen=True, slots=True)
class LinkOutcome:
    """Report of a next hop that came or went (`link`)."""

    hop: str
    """Hop id."""
    before: str
    after: str
    """`up`, `suspect`, `down`, `half-open`, ..."""
    reason: str = ""


class NodeServices(Protocol):
    """What a sink may ask of the node it lives in (`Sink.node`)."""

    @property
    def node_id(self) -> str:
        """Of the node, for ever."""
        ...

    @property
    def hostname(self) -> str:
        """As it greets."""
        ...

    @property
    def data_dir(self) -> Path:
        """A folder of this binding's own, made; it outlives restarts."""
        ...

    async def submit(self, mail: Mail) -> str:
        """Send a message: its queue id, when it is on stable storage. StoreError: nothing was queued."""
        ...

    async def flush(self, domains: Sequence[str]) -> int:
        """Deferred mail to these domains (`.example.org`: and all below) is due now; how many deliveries."""
        ...


# -- the class to inherit ----------------------------------------------------------------------------------------------


class Sink:
    """Base of all sinks. Override the events you want."""

    node: NodeServices
    """Set before `start`; not in the constructor yet."""
    verbs: Sequence[Verb] = ()
    """Commands that it answers (`command`)."""
    events: Sequence[str] = ()
    """Of the events that it overrides, those that it wants, if its settings say which; empty = all of them."""

    signs: bool = False
    """It signs what it sees at `data`: only others that sign may be asked after it."""
    alone: bool = False
    """It remembers what each process would remember for itself: it wants `node.workers = 1`."""
    owns: Sequence[str] = ()
    """Header fields that only this sink may say something with. Those that come with a message are somebody else's:
    they are removed before any `data` sink is asked, also if this one then fails."""

    async def start(self) -> None:
        """Called once before the first event, on the node's loop. Whatever it raises keeps the node from starting, or a
        reload out."""

    async def stop(self) -> None:
        """Called once after the last."""

    async def connect(self, client: Client) -> Verdict | None:
        """A client connected."""
        return None

    async def helo(self, client: Client) -> Verdict | None:
        """HELO or EHLO."""
        return None

    async def auth(self, client: Client) -> Verdict | None:
        """Authentication succeeded."""
        return None

    async def mail(self, client: Client, envelope: Envelope) -> Verdict | None:
        """MAIL FROM."""
        return None

    async def rcpt(self, client: Client, envelope: Envelope, recipient: Recipient) -> Verdict | None:
        """RCPT TO; the verdict is for this recipient."""
        return None

    async def command(self, command: Command) -> Reply | Become | Disconnect | None:
        """One of its `verbs` was said. None: not by this client (500, as for what is no command).

        The reply is 2yz, 4yz or 5yz in printable ASCII; anything else, and a failure, is told 451.
        """
        return None

    async def data(self, message: Message) -> Verdict | None:
        """After the final dot; nothing is durable yet."""
        return None

    async def expand(self, message: Message) -> Expansion | None:
        """What becomes of the one recipient of `message.envelope` (lists, aliases); None: it is not ours.

        After the 250, once, where the mail came into the mesh. May be asked again after a crash: then nothing of the
        first answer has happened but what the sink did itself.
        """
        return None

    async def route(self, delivery: RouteRequest) -> Route | Unreachable | Avoid | None:
        """Where the delivery goes next."""
        return None

    async def deliver(self, delivery: Delivery) -> Reply | Sequence[Reply | Quarantine] | None:
        """Final delivery: the reply to all recipients, or one for each in their order; None = all have it.

        2yz: delivered; 4yz: asked again later; 5yz: reported to the sender; Quarantine: waits for an operator. May be
        asked again for what it has delivered already (a crash): `delivery.key` tells.
        """
        return None

    async def outcome(self, outcome: DeliveryOutcome) -> None:
        """An attempt ended. After the fact and without promise: a node that dies reports nothing."""

    async def link(self, outcome: LinkOutcome) -> None:
        """A next hop came or went. As `outcome`."""

    async def disconnect(self, client: Client) -> None:
        """A session ended."""
