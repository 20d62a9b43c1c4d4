"""Whose fault a negative reply is: the next hop's, or the message's. A healthy host is never blamed for a recipient.

    stage        the hop's fault                          the message's
    RCPT         421, x.3.z (its system)                  every other: address, mailbox, greylisting, relaying
    MAIL         421, no status, x.3.z, x.4.z, x.7.z      sender's address, size, parameters
    DATA, dot    421, no status, x.3.z, x.4.z             content, mailbox, policy (x.6.z, x.2.z, x.7.z)

x.7.z at MAIL is about us as a client (Postfix limits rates so), at RCPT and after the dot about this mail. Subjects of
status codes: RFC 3463 section 3. A 5yz is for good and about the message: another hop would have to say the same.
"""

from __future__ import annotations

from router.decision import OutcomeKind
from smtp_edge.reply import Reply

SYSTEM, NETWORK, POLICY = "3", "4", "7"
UNNAMED = ""


def blame(reply: Reply, stage: str) -> OutcomeKind:
    """HOP_TEMPFAIL or MESSAGE_REFUSED for a negative reply to a command of a transaction."""
    if reply.code == 421:
        return OutcomeKind.HOP_TEMPFAIL
    if not reply.transient:
        return OutcomeKind.MESSAGE_REFUSED
    _, _, rest = reply.status.partition(".")
    subject = rest.partition(".")[0]
    if stage == "RCPT":
        guilty = subject == SYSTEM
    elif stage == "MAIL":
        guilty = subject in (UNNAMED, SYSTEM, NETWORK, POLICY)
    else:
        guilty = subject in (UNNAMED, SYSTEM, NETWORK)
    return OutcomeKind.HOP_TEMPFAIL if guilty else OutcomeKind.MESSAGE_REFUSED
