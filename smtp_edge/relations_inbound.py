"""Relations between the keys of SMTP in: listeners, AUTH, limits, and access rules that contradict each other. Pure."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence

from smtp_edge.globs import as_addresses, covers
from smtp_edge.mistake import Mistake
from smtp_edge.setting_kinds import Network
from smtp_edge.settings_inbound import AccessSettings, AuthSettings, LimitsSettings, ListenerSettings

OPEN_PREFIX = 0
"""Prefix length of a network that holds everybody."""
LINE_BYTES_MIN = 1000
"""RFC 5321 section 4.5.3.1.6."""
FAMILY = {"reject": "5", "defer": "4"}


def find_mistakes(
    listeners: Sequence[ListenerSettings], auths: Sequence[AuthSettings], rules: Sequence[AccessSettings]
) -> Iterator[Mistake]:
    """All broken relations of these sections."""
    for number, listener in enumerate(listeners):
        yield from _check_tls(f"listener[{number}]", listener)
        yield from _check_auth(f"listener[{number}]", listener, [auth.name for auth in auths])
        yield from _check_trust(f"listener[{number}]", listener)
    for number, auth in enumerate(auths):
        if auth.use in ("file", "dovecot") and auth.path is None:
            what = "the users file" if auth.use == "file" else "Dovecot's socket, as /run/dovecot/auth-client"
            yield Mistake(f"auth[{number}].path", f'is required with use = "{auth.use}": {what}')
    for number, rule in enumerate(rules):
        yield from _check_rule(f"access[{number}]", rule, [listener.name for listener in listeners])
        yield from _check_users(f"access[{number}]", rule, listeners)
        yield from _check_reach(number, rules)


def find_warnings(
    listeners: Sequence[ListenerSettings],
    auths: Sequence[AuthSettings],
    rules: Sequence[AccessSettings],
    limits: LimitsSettings,
) -> Iterator[str]:
    """What runs, but surely not as meant."""
    for listener in listeners:
        yield from _warn_listener(listener, limits.overridden_by(listener.limits))
    used = {listener.auth for listener in listeners}
    for auth in auths:
        if auth.name not in used:
            yield f"auth {auth.name} is named by no listener: nobody's password is checked there"
    for number, rule in enumerate(rules):
        yield from _warn_rule(number, rules)
        yield from _warn_permit(f"access[{number}]", rule, listeners)


# -- listeners ---------------------------------------------------------------------------------------------------------


def _check_tls(key: str, listener: ListenerSettings) -> Iterator[Mistake]:
    if listener.tls != "none" and listener.certificate is None:
        yield Mistake(f"{key}.certificate", f"is required for tls = {listener.tls!r}: a PEM file")
    if listener.tls == "none" and listener.certificate is not None:
        yield Mistake(f"{key}.tls", 'is "none", so the certificate would never be shown; set "starttls" or "implicit"')
    if listener.key is not None and listener.certificate is None and listener.tls == "none":
        yield Mistake(f"{key}.key", "is of no use without certificate")
    if listener.tls_required and listener.tls != "starttls":
        yield Mistake(f"{key}.tls_required", 'is for tls = "starttls"; with "implicit" there is no other way in')


def _check_auth(key: str, listener: ListenerSettings, known: Sequence[str]) -> Iterator[Mistake]:
    offers = bool(listener.auth or listener.auth_users)
    for name, value in (("auth_users", listener.auth_users), ("auth", listener.auth)):
        if value and listener.tls == "none":
            yield Mistake(f"{key}.{name}", 'needs TLS: passwords never travel in the clear; set tls = "starttls"')
    if listener.auth and listener.auth_users is not None:
        yield Mistake(f"{key}.auth", "and auth_users are two answers to one question; leave one out")
    if listener.auth and listener.auth not in known:
        near = difflib.get_close_matches(listener.auth, known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are: {', '.join(known) or 'none'}"
        yield Mistake(f"{key}.auth", f"no [[auth]] is named {listener.auth!r}; {hint}", rests_on=("auth",))
    if listener.auth_required and not offers:
        yield Mistake(f"{key}.auth_required", "would refuse everybody: there is neither auth nor auth_users")
    if listener.senders is not None and not offers:
        yield Mistake(f"{key}.senders", "is of no use without auth or auth_users")


def _check_trust(key: str, listener: ListenerSettings) -> Iterator[Mistake]:
    if "*" in listener.relay_domains:
        text = '"*" would relay for everybody to everywhere; name your domains, or clients in allow_networks'
        yield Mistake(f"{key}.relay_domains", text)
    if listener.limits is not None and "buffer_bytes_max" in listener.limits.model_fields_set:
        yield Mistake(f"{key}.limits.buffer_bytes_max", "is for the whole node: set it in [limits]")


def _warn_listener(listener: ListenerSettings, limits: LimitsSettings) -> Iterator[str]:
    where = f"listener {listener.name} ({listener.listen})"
    if not (listener.allow_networks or listener.relay_domains or listener.auth_users or listener.auth):
        yield f"{where} relays for nobody: set allow_networks, relay_domains or auth_users"
    if _holds_everybody(listener.allow_networks):
        yield f"{where} is an open relay: allow_networks holds every address"
    if _holds_everybody(listener.proxy_networks):
        yield f"{where} believes everybody who his client is: proxy_networks holds every address"
    if 0 < limits.mail_line_bytes_max < LINE_BYTES_MIN:
        yield f"{where} refuses lawful mail: mail_line_bytes_max is below the {LINE_BYTES_MIN} of RFC 5321"
    if listener.connections_per_client_max > listener.connections_max:
        yield f"{where}: connections_per_client_max is above connections_max, so one client may take all"


def _holds_everybody(networks: Sequence[Network]) -> bool:
    return any(network.prefixlen == OPEN_PREFIX for network in networks)


# -- access rules ------------------------------------------------------------------------------------------------------


def _check_rule(key: str, rule: AccessSettings, listeners: Sequence[str]) -> Iterator[Mistake]:
    for name in rule.listener:
        if name not in listeners:
            text = f"no listener is named {name!r}; there are: {', '.join(listeners) or 'none'}"
            yield Mistake(f"{key}.listener", text, rests_on=("listener",))
    if rule.action == "permit":
        for name, value in (("code", rule.code), ("status", rule.status), ("text", rule.text)):
            if value:
                yield Mistake(f"{key}.{name}", "is for a refusal; a permit says nothing")
        return
    family = FAMILY[rule.action]
    if rule.code is not None and str(rule.code)[0] != family:
        yield Mistake(f"{key}.code", f"{rule.code} is not {family}yz, as action = {rule.action!r} wants it")
    if rule.status and rule.status[0] != family:
        yield Mistake(
            f"{key}.status", f"{rule.status} does not begin with {family}, as action = {rule.action!r} wants it"
        )


def _check_users(key: str, rule: AccessSettings, listeners: Sequence[ListenerSettings]) -> Iterator[Mistake]:
    concerned = [listener for listener in listeners if not rule.listener or listener.name in rule.listener]
    if rule.user and concerned and not any(listener.auth or listener.auth_users for listener in concerned):
        text = "never fits: no listener that it is for has auth or auth_users"
        yield Mistake(f"{key}.user", text, rests_on=("listener",))


def _check_reach(number: int, rules: Sequence[AccessSettings]) -> Iterator[Mistake]:
    """A rule behind one that fits whatever it fits, and says otherwise, was surely meant to count."""
    for before, earlier in enumerate(rules[:number]):
        if _includes(earlier, rules[number]) and earlier.action != rules[number].action:
            text = f"is never reached: access[{before}] ({earlier.action}) fits all of it; the narrower one comes first"
            yield Mistake(f"access[{number}]", text, rests_on=(f"access[{before}]",))
            return


def _warn_rule(number: int, rules: Sequence[AccessSettings]) -> Iterator[str]:
    rule = rules[number]
    if any(_includes(earlier, rule) and earlier.action == rule.action for earlier in rules[:number]):
        yield f"access[{number}] is never reached: an earlier rule says the same of all that it fits"
    elif not _conditions(rule) and rule.action != "permit" and number == 0:
        yield "access[0] names no condition: all mail from outside of the cluster is refused"


def _warn_permit(key: str, rule: AccessSettings, listeners: Sequence[ListenerSettings]) -> Iterator[str]:
    """Who writes a permit for foreign domains may think that it makes them relayed."""
    if rule.action != "permit" or rule.user or not rule.recipient:
        return
    concerned = [listener for listener in listeners if not rule.listener or listener.name in rule.listener]
    own = [f"*@{domain}" for listener in concerned for domain in listener.relay_domains]
    foreign = [word for word in as_addresses(rule.recipient) if not any(covers(domain, word) for domain in own)]
    if foreign and not any(listener.allow_networks or listener.auth or listener.auth_users for listener in concerned):
        yield f"{key} permits {foreign[0]}, but is no leave to relay: the domain is not in relay_domains"


def _conditions(rule: AccessSettings) -> bool:
    return bool(rule.listener or rule.client or rule.helo or rule.user or rule.sender or rule.recipient)


def _includes(wide: AccessSettings, narrow: AccessSettings) -> bool:
    """Whatever fits `narrow` fits `wide`."""
    return (
        (not wide.listener or (bool(narrow.listener) and set(narrow.listener) <= set(wide.listener)))
        and _includes_networks(wide.client, narrow.client)
        and _includes_patterns(wide.helo, narrow.helo)
        and _includes_patterns(wide.user, narrow.user)
        and _includes_patterns(as_addresses(wide.sender), as_addresses(narrow.sender))
        and _includes_patterns(as_addresses(wide.recipient), as_addresses(narrow.recipient))
    )


def _includes_networks(wide: Sequence[Network], narrow: Sequence[Network]) -> bool:
    if not wide:
        return True
    return bool(narrow) and all(any(_within(inner, outer) for outer in wide) for inner in narrow)


def _within(inner: Network, outer: Network) -> bool:
    return inner.version == outer.version and inner.subnet_of(outer)  # type: ignore[arg-type]


def _includes_patterns(wide: Sequence[str], narrow: Sequence[str]) -> bool:
    if not wide:
        return True
    return bool(narrow) and all(any(covers(outer, inner) for outer in wide) for inner in narrow)
