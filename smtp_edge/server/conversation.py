"""What was said in a session so far, and the answers to commands that need no waiting. Pure, but it asks others.

    state               leaves by
    connected           HELO, EHLO
    greeted             MAIL
    transaction         RCPT (more of it), mail data, RSET, HELO, EHLO
    chunks have begun   BDAT LAST, RSET, HELO, EHLO        RCPT and DATA are refused

Commands out of order are 503 and change nothing. A refusal never repeats what the client sent, and never says why the
policy refuses: that is in the log.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

import structlog

from smtp_edge.address import SyntaxFault
from smtp_edge.envelope import NOT_FORWARDED, BodyType, Client, Envelope, MailData, ReceivedMessage, Recipient, Transfer
from smtp_edge.reply import Goodbye, Reply
from smtp_edge.server.access import Facts, Stage, at_greeting
from smtp_edge.server.commands import (
    MailParameters,
    PathArgument,
    UnknownParameter,
    parse_path_argument,
    take_mail_parameters,
    take_rcpt_parameters,
)
from smtp_edge.server.crowd import Event
from smtp_edge.server.intake import TOO_LARGE
from smtp_edge.server.options import Acceptor, SessionOptions
from smtp_edge.sinks.api import Verb
from smtp_edge.trace import protocol_word
from smtp_edge.transfer import KEYWORD, STATE, TransferFault, parse_transfer

log = structlog.get_logger()

HELO_MAX = 255
OK = Reply(250, "Ok", "2.0.0")
SENDER_OK = Reply(250, "Ok", "2.1.0")
RECIPIENT_OK = Reply(250, "Ok", "2.1.5")
ARGUMENT_TOO_LONG = Reply(501, "the argument is too long", "5.5.4")
BAD_SEQUENCE = Reply(503, "bad sequence of commands", "5.5.1")
NOT_IMPLEMENTED = Reply(502, "command not implemented", "5.5.1")
SENDER_NEEDS_UTF8 = Reply(550, "SMTPUTF8 is required for this address", "5.6.7")
RECIPIENT_NEEDS_UTF8 = Reply(553, "SMTPUTF8 is required for this address", "5.6.7")
"""Two codes, as RFC 6531 section 3.5 has them."""
HELLO_NEEDED = Reply(503, "EHLO or HELO first", "5.5.1")
MAIL_NEEDED = Reply(503, "MAIL first", "5.5.1")
TLS_NEEDED = Reply(530, "STARTTLS first", "5.7.0")
AUTH_NEEDED = Reply(530, "authentication required", "5.7.0")
NOT_YOUR_SENDER = Reply(553, "you may not send as this address", "5.7.1")
TOO_MANY_RECIPIENTS = Reply(452, "too many recipients", "4.5.3")
TOO_MANY_BAD = Reply(421, "too many bad commands", "4.7.0")
TOO_MANY_REFUSED = Reply(421, "too many refused recipients", "4.7.0")
TOO_MANY_IDLE = Reply(421, "too many commands without mail", "4.7.0")
MAIL_MAX_REACHED = Reply(421, "enough mail for one session, connect again", "4.7.0")


@dataclass(slots=True)
class Transaction:
    """MAIL and RCPT so far."""

    sender: str
    mail: MailParameters
    transfer: Transfer | None
    recipients: list[Recipient] = field(default_factory=list)
    chunked: bool = False
    """BDAT has begun."""


class Conversation:
    """See the module."""

    def __init__(self, options: SessionOptions, acceptor: Acceptor, client: Client) -> None:
        self.options, self.client = options, client
        self._acceptor = acceptor
        self.origin = client.address
        """Who is really connected: XCLIENT does not change who may say it."""
        self.more_keywords: Callable[[], Iterable[str]] = tuple
        """Of commands that sinks answer."""
        self._extended = False
        self._bad_count = self._idle_count = self._refused_count = self.messages_count = 0
        self.transaction: Transaction | None = None
        self.verbs: dict[bytes, Callable[[str], Reply]] = {
            b"HELO": self.helo,
            b"EHLO": self.ehlo,
            b"MAIL": self.mail,
            b"RCPT": self.rcpt,
            b"RSET": self.rset,
            b"NOOP": self.noop,
            b"VRFY": self.vrfy,
            b"EXPN": self.refuse_verb,
            b"TURN": self.refuse_verb,
            b"ETRN": self.refuse_verb,
            b"SEND": self.refuse_verb,
            b"SOML": self.refuse_verb,
            b"SAML": self.refuse_verb,
            b"HELP": self.help,
            b"QUIT": self.quit,
            b"XCLIENT": self.refuse_trust,
            b"XFORWARD": self.refuse_trust,
        }

    @property
    def extended(self) -> bool:
        """The client said EHLO."""
        return self._extended

    # -- counting ------------------------------------------------------------------------------------------------------

    def note_bad(self) -> None:
        """A command was refused for its form or its place. Goodbye if it is one too many."""
        self._bad_count += 1
        if self._bad_count > self.options.limits.bad_commands_max:
            raise Goodbye(TOO_MANY_BAD)

    def note_idle(self) -> None:
        """A command that moves no mail. Goodbye if it is one too many; peers may."""
        self._idle_count += 1
        if self._idle_count > self.options.limits.idle_commands_max and not self.client.peer_id:
            raise Goodbye(TOO_MANY_IDLE)

    def note_message(self) -> None:
        """A transaction came to its end, whatever that was."""
        self.messages_count += 1
        self._idle_count = 0

    # -- who is there --------------------------------------------------------------------------------------------------

    def greeting(self) -> Reply:
        """220, or Goodbye for a client that the access rules turn away."""
        refusal = self._decide(Facts(self.client.address), Stage.CONNECT)
        if refusal is not None:
            raise Goodbye(at_greeting(refusal))
        return Reply(220, f"{self.options.hostname} ESMTP smtpmesh")

    def helo(self, argument: str) -> Reply:
        """HELO."""
        return self._hello(argument, extended=False) or Reply(250, self.options.hostname)

    def ehlo(self, argument: str) -> Reply:
        """EHLO: one line for each extension."""
        return self._hello(argument, extended=True) or Reply(250, "\n".join(self.keywords()))

    def _hello(self, argument: str, *, extended: bool) -> Reply | None:
        name = argument.partition(" ")[0]
        if not name or not name.isascii() or len(name) > HELO_MAX:
            return Reply(501, "a host name is required", "5.5.4")
        self.note_idle()
        self.transaction, self._extended = None, extended
        self.client = replace(self.client, helo=name)
        return self._decide(Facts(self.client.address, name), Stage.HELO)

    def keywords(self) -> list[str]:
        """The lines of the answer to EHLO."""
        options = self.options
        words = [options.hostname, "PIPELINING", f"SIZE {options.intake.size_bytes_max}", "8BITMIME", "SMTPUTF8"]
        words += ["CHUNKING", "BINARYMIME", "DSN", "ENHANCEDSTATUSCODES", self._limits_keyword()]
        if self.client.tls:
            words.append("REQUIRETLS")
        elif options.starttls is not None:
            words.append("STARTTLS")
        if options.login is not None and self.client.tls and not self.client.user:
            words.append("AUTH PLAIN LOGIN")
        words += self.more_keywords()
        if options.mesh:
            words.append(f"{KEYWORD} {STATE}")
        return words

    def _limits_keyword(self) -> str:
        """RFC 9422: only what this listener really holds everybody to."""
        words = ["LIMITS", f"RCPTMAX={self.options.recipients_max}"]
        mail_max = self.options.limits.messages_per_session_max
        return " ".join([*words, f"MAILMAX={mail_max}"] if mail_max else words)

    def secured(self, tls: str) -> None:
        """TLS is there: everything learnt before it is forgotten (RFC 3207 section 4.2)."""
        self.transaction, self._extended = None, False
        self.client = replace(self.client, helo="", user="", tls=tls, forwarded=NOT_FORWARDED)

    def authenticated(self, user: str) -> None:
        """AUTH succeeded."""
        self.client = replace(self.client, user=user)

    def met(self, peer_id: str) -> None:
        """The client is a relay of this cluster."""
        self.client = replace(self.client, peer_id=peer_id)

    # -- what sinks turn down ------------------------------------------------------------------------------------------

    def withdraw_hello(self) -> None:
        """As if HELO or EHLO had not been said."""
        self.client, self._extended = replace(self.client, helo=""), False

    def withdraw_mail(self) -> None:
        """As if MAIL had not been said."""
        self.transaction = None

    @property
    def last_recipient(self) -> Recipient:
        """Of the RCPT that was said last and was right."""
        assert self.transaction is not None
        return self.transaction.recipients[-1]

    def withdraw_recipient(self) -> None:
        """As if the last RCPT had not been said. Goodbye if it is one too many."""
        if self.transaction is not None:
            self.transaction.recipients.pop()
        self._note_refused()

    # -- MAIL and RCPT -------------------------------------------------------------------------------------------------

    def mail(self, argument: str) -> Reply:
        """MAIL FROM."""
        client = self.client
        if not client.helo:
            return HELLO_NEEDED
        if self.transaction is not None:
            return BAD_SEQUENCE
        path = parse_path_argument(argument, "FROM", null_allowed=True)
        transaction = self._parse_mail(path)
        if not (path.address.isascii() or transaction.mail.smtputf8):
            return SENDER_NEEDS_UTF8
        refusal = self._refuse_mail(transaction)
        if refusal is not None:
            log.info("mail.refused", client=client.address, user=client.user, sender=path.address, reply=str(refusal))
            return refusal
        self.note_idle()
        self.transaction = transaction
        return SENDER_OK

    def _parse_mail(self, path: PathArgument) -> Transaction:
        parameters = self._parameters(path)
        mail = take_mail_parameters(parameters, tls=bool(self.client.tls))
        transfer = self._parse_transfer(parameters)
        if parameters:
            raise UnknownParameter
        return Transaction(path.address, mail, transfer)

    def _parse_transfer(self, parameters: dict[str, str | None]) -> Transfer | None:
        if not self.client.peer_id:
            return None
        try:
            return parse_transfer(parameters)
        except TransferFault as fault:
            raise SyntaxFault(str(fault)) from fault

    def _refuse_mail(self, transaction: Transaction) -> Reply | None:
        options, client = self.options, self.client
        if options.tls_required and not client.tls:
            return TLS_NEEDED
        if options.auth_required and not client.user:
            return AUTH_NEEDED
        if options.limits.messages_per_session_max and self.messages_count >= options.limits.messages_per_session_max:
            raise Goodbye(MAIL_MAX_REACHED)
        if options.access.rules:
            refusal = self._decide(self._facts(transaction.sender), Stage.MAIL)
            if refusal is not None:
                return refusal
        if options.senders is not None and client.user and not options.senders.permits(client.user, transaction.sender):
            return NOT_YOUR_SENDER
        if transaction.mail.size_bytes > options.intake.size_bytes_max:
            return TOO_LARGE
        return options.too_often(Event.MESSAGE, client.address) or self._acceptor.admit(transaction.mail.size_bytes)

    def rcpt(self, argument: str) -> Reply:
        """RCPT TO."""
        transaction = self.transaction
        if transaction is None:
            return MAIL_NEEDED
        if transaction.chunked:
            return BAD_SEQUENCE
        path = parse_path_argument(argument, "TO", null_allowed=False)
        recipient = self._parse_recipient(path)
        if not (path.address.isascii() or transaction.mail.smtputf8):
            return RECIPIENT_NEEDS_UTF8
        if len(transaction.recipients) >= self.options.recipients_max:
            return TOO_MANY_RECIPIENTS
        refusal = self._refuse_recipient(transaction, recipient)
        if refusal is not None:
            log.info("rcpt.refused", client=self.client.address, recipient=recipient.address, reply=str(refusal))
            self._note_refused()
            return refusal
        transaction.recipients.append(recipient)
        return RECIPIENT_OK

    def _parse_recipient(self, path: PathArgument) -> Recipient:
        if not path.parameters:
            return Recipient(path.address)
        parameters = self._parameters(path)
        notify, orcpt = take_rcpt_parameters(parameters)
        if parameters:
            raise UnknownParameter
        return Recipient(path.address, orcpt, notify)

    def _refuse_recipient(self, transaction: Transaction, recipient: Recipient) -> Reply | None:
        options, client = self.options, self.client
        if options.access.rules:
            refusal = self._decide(self._facts(transaction.sender, recipient.address), Stage.RCPT)
            if refusal is not None:
                return refusal
        return (
            options.policy.permits(client, recipient)
            or self._acceptor.check_recipient(client, recipient, transaction.mail.size_bytes)
            or options.too_often(Event.RECIPIENT, client.address)
        )

    def _note_refused(self) -> None:
        self._refused_count += 1
        if self._refused_count > self.options.limits.refused_recipients_max:
            raise Goodbye(TOO_MANY_REFUSED)

    def _parameters(self, path: PathArgument) -> dict[str, str | None]:
        """A copy to take from; what is left over is not known."""
        if path.parameters and not self._extended:
            raise SyntaxFault("parameters need EHLO")
        return dict(path.parameters)

    def _facts(self, sender: str, recipient: str = "") -> Facts:
        return Facts(self.client.address, self.client.helo, self.client.user, sender, recipient)

    def _decide(self, facts: Facts, stage: Stage) -> Reply | None:
        rule = self.options.access.decide(facts, stage)
        if rule is None:
            return None
        log.info("access.refused", client=facts.client, rule=f"access[{rule.number}]", stage=stage.name.lower())
        return rule.refusal

    # -- the rest ------------------------------------------------------------------------------------------------------

    def rset(self, argument: str) -> Reply:
        """RSET."""
        self.note_idle()
        self.end_transaction()
        return OK

    def end_transaction(self) -> None:
        """Nothing is left of it; what a filter told about its client held for it."""
        self.transaction = None
        if self.client.forwarded is not NOT_FORWARDED:
            self.client = replace(self.client, forwarded=NOT_FORWARDED)

    def noop(self, argument: str) -> Reply:
        """NOOP."""
        self.note_idle()
        return OK

    def vrfy(self, argument: str) -> Reply:
        """VRFY: tells nobody who is here."""
        self.note_idle()
        if not argument:
            return Reply(501, "an address is required", "5.5.4")
        return Reply(252, "send some mail, I will try my best", "2.5.2")

    def help(self, argument: str) -> Reply:
        """HELP."""
        self.note_idle()
        return Reply(214, "see RFC 5321", "2.0.0")

    def refuse_verb(self, argument: str) -> Reply:
        """Verbs that are known, and not available here."""
        return NOT_IMPLEMENTED

    def quit(self, argument: str) -> Reply:
        """QUIT."""
        raise Goodbye(Reply(221, "Bye", "2.0.0"))

    # -- commands of sinks ---------------------------------------------------------------------------------------------

    def refuse_trust(self, argument: str) -> Reply:
        """XCLIENT and XFORWARD, to those for whom no sink answers."""
        return Reply(550, "not for this client", "5.7.0")

    def refuse_command(self, verb: Verb, argument: str) -> Reply | None:
        """None if it may be said here and now. Goodbye for one too many."""
        if len(argument.encode()) > verb.argument_max:
            return ARGUMENT_TOO_LONG
        if verb.hello_first and not self.client.helo:
            return HELLO_NEEDED
        if self.transaction is not None and not verb.in_transaction:
            return BAD_SEQUENCE
        self.note_idle()
        return None

    @property
    def introduced(self) -> Client:
        """The client, with the protocol word as it is by now."""
        client = self.client
        word = protocol_word(extended=self._extended, tls=bool(client.tls), authenticated=bool(client.user), utf8=False)
        return replace(client, protocol=word)

    def become(self, client: Client, *, anew: bool) -> Reply | None:
        """Go on as another client, over the same connection. The refusal, if that one comes too often; Goodbye if the
        access rules turn it away."""
        before = self.client
        self.client = replace(client, listener=before.listener, tls=before.tls, peer_id=before.peer_id)
        if not anew:
            return None
        self.transaction, self._extended = None, client.protocol != "SMTP"
        log.info("session.became", client=before.address, override=client.address, user=client.user)
        refusal = self.options.too_often(Event.CONNECTION, client.address)
        if refusal is None:
            self.greeting()
        return refusal

    # -- mail data -----------------------------------------------------------------------------------------------------

    def begin_data(self, argument: str) -> Transaction:
        """DATA may follow; SyntaxFault with the answer if not."""
        transaction = self.transaction
        if argument:
            raise SyntaxFault("no parameters allowed")
        if transaction is None:
            raise SyntaxFault(MAIL_NEEDED.text, "5.5.1", code=503)
        if transaction.chunked or transaction.mail.body_type is BodyType.BINARY_MIME:
            raise SyntaxFault("BDAT carries this message", "5.5.1", code=503)
        if not transaction.recipients:
            raise SyntaxFault("no valid recipients", "5.5.1", code=554)
        return transaction

    def begin_chunk(self) -> Transaction | Reply:
        """BDAT may follow, or the answer to it."""
        if self.transaction is None:
            return MAIL_NEEDED
        if not self.transaction.recipients:
            return Reply(554, "no valid recipients", "5.5.1")
        self.transaction.chunked = True
        return self.transaction

    @property
    def envelope(self) -> Envelope:
        """Of the transaction, as far as it is known."""
        assert self.transaction is not None
        return self._build_envelope(self.transaction)

    def _build_envelope(self, transaction: Transaction) -> Envelope:
        mail = transaction.mail
        return Envelope(
            transaction.sender,
            tuple(transaction.recipients),
            mail.body_type,
            mail.smtputf8,
            mail.envid,
            mail.ret,
            mail.requiretls,
        )

    def build_message(self, transaction: Transaction, data: MailData) -> ReceivedMessage:
        """All of it, for the acceptor."""
        mail, client = transaction.mail, self.client
        word = protocol_word(
            extended=self._extended, tls=bool(client.tls), authenticated=bool(client.user), utf8=mail.smtputf8
        )
        if client.protocol != word:
            client = self.client = replace(client, protocol=word)
        return ReceivedMessage(client, self._build_envelope(transaction), data, transaction.transfer)
