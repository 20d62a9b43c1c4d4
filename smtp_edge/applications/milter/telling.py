"""What a filter is told of a client and a message: macros and ESMTP parameters, in the words of Postfix. Pure."""

from __future__ import annotations

from smtp_edge.envelope import BodyType, Client, Envelope, Recipient


def known_macros(client: Client, envelope: Envelope, message_id: str, hostname: str, version: str) -> dict[str, str]:
    """All but those of a recipient. What nobody knows is empty."""
    tls_version, _, cipher = client.tls.partition(" ")
    return {
        "i": message_id,
        "j": hostname,
        "v": version,
        "_": f"{client.name or 'unknown'} [{client.address}]",
        "daemon_name": client.listener,
        "tls_version": tls_version,
        "cipher": cipher,
        "client_addr": client.address,
        "client_name": client.name or "unknown",
        "client_port": str(client.port),
        "client_ptr": client.name or "unknown",
        "auth_authen": client.user,
        "auth_type": "PLAIN" if client.user else "",  # filters ask only whether there is one
        "mail_addr": envelope.sender,
        "mail_host": envelope.sender.rpartition("@")[2],
        "mail_mailer": "smtp",
    }


def recipient_macros(recipient: Recipient) -> dict[str, str]:
    """Of RCPT."""
    return {"rcpt_addr": recipient.address, "rcpt_host": recipient.domain, "rcpt_mailer": "smtp"}


def sender_parameters(envelope: Envelope, size_bytes: int) -> list[str]:
    """Of MAIL."""
    parameters = [f"SIZE={size_bytes}"]
    if envelope.body_type is not BodyType.SEVEN_BIT:
        parameters.append(f"BODY={envelope.body_type.value}")
    if envelope.smtputf8:
        parameters.append("SMTPUTF8")
    return parameters


def client_name(client: Client) -> str:
    """For CONNECT; brackets say that there is none."""
    return client.name or f"[{client.address}]"


def split_field(raw: bytes, *, leading_space: bool) -> tuple[bytes, bytes]:
    """Name and value of a field with its continuation lines, which filters know to end in LF."""
    name, _, value = raw.partition(b":")
    value = value.replace(b"\r\n", b"\n").removesuffix(b"\n")
    # one blank is put back by whoever writes the field again; signatures depend on the others
    return name.rstrip(b" \t"), value if leading_space else value.removeprefix(b" ")
