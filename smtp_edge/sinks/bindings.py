"""Bindings from the configuration: which sink runs for what, in which order, how long, and what its failure means.

`load_bindings` finds each sink, gives it its settings and compiles its rule; `smtp_edge.sinks.chain` asks them.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import re
from collections.abc import Sequence
from importlib import metadata

from smtp_edge.settings import SinkSettings, SmartHostSettings, sink_names
from smtp_edge.sinks.api import BEFORE_250, EVENTS, Sink
from smtp_edge.sinks.chain import TEMPFAIL, Binding, SinkError
from smtp_edge.sinks.commands import check_sole, find_fault
from smtp_edge.sinks.rules import RuleError, parse_rule

ENTRY_POINTS = "smtpmesh.sinks"
BUILT_IN = {
    "aliases": "smtp_edge.applications.aliases:Aliases",
    "applier": "smtp_edge.applications.applier:Applier",
    "archive": "smtp_edge.applications.archive:Archive",
    "authres": "smtp_edge.applications.authres.sink:AuthRes",
    "clamav": "smtp_edge.applications.clamav:ClamAV",
    "disclaimer": "smtp_edge.applications.disclaimer:Disclaimer",
    "dkim": "smtp_edge.applications.dkim:DKIM",
    "etrn": "smtp_edge.applications.etrn:ETRN",
    "exec": "smtp_edge.applications.exec:Exec",
    "lists": "smtp_edge.applications.lists.sink:Lists",
    "maildir": "smtp_edge.applications.maildir:Maildir",
    "milter": "smtp_edge.applications.milter.sink:Milter",
    "mtahooks": "smtp_edge.applications.mtahooks:MTAHooks",
    "ratelimit": "smtp_edge.applications.ratelimit:RateLimit",
    "replicate": "smtp_edge.applications.replicate:Replicate",
    "sql": "smtp_edge.applications.sql:Sql",
    "webhook": "smtp_edge.applications.webhook:Webhook",
    "xclient": "smtp_edge.applications.xclient:XClient",
}
"""Sinks that come along, by the name that an entry point would have."""

_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h)?")
_UNIT_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, None: 1.0}


def load_bindings(sections: Sequence[SinkSettings]) -> list[Binding]:
    """Build the bindings of the configuration. SinkError names the binding and what is wrong with it."""
    names = sink_names(sections)
    bindings = [
        _load(number, section, name) for number, (section, name) in enumerate(zip(sections, names, strict=True))
    ]
    _check_signers(bindings)
    check_sole(bindings)
    return bindings


def digest_of(sections: Sequence[SinkSettings]) -> str:
    """Hash of which sinks are bound and when, 16 hexadecimal digits; empty if there is none.

    Not of their settings: addresses and paths are each machine's own.
    """
    if not sections:
        return ""
    names = sink_names(sections)
    told = [
        (name, item.use, item.rule, item.priority, item.on_failure) for name, item in zip(names, sections, strict=True)
    ]
    return hashlib.sha256(repr(told).encode()).hexdigest()[:16]


def check_exits(bindings: Sequence[Binding], hosts: Sequence[SmartHostSettings]) -> None:
    """Smart hosts that are sinks need one that delivers. SinkError."""
    able = [binding.name for binding in bindings if binding.handles("deliver")]
    for host in hosts:
        if host.sink and host.sink not in able:
            others = ", ".join(able) or "none"
            raise SinkError(f"smart_host {host.name}: sink {host.sink} has no `deliver`; those that have: {others}")


def check_alone(bindings: Sequence[Binding], worker_count: int) -> None:
    """Some sinks do not bear siblings on the same listeners. SinkError."""
    for binding in bindings:
        if worker_count > 1 and binding.sink.alone:
            raise SinkError(
                f"sink {binding.name} remembers things in one process, and there are {worker_count}: "
                "set node.workers = 1, or bind it on a node of its own"
            )


def _check_signers(bindings: Sequence[Binding]) -> None:
    """Whoever is asked after a signer would break the signature."""
    signer = ""
    for binding in sorted((item for item in bindings if item.handles("data")), key=lambda item: item.priority):
        if binding.sink.signs:
            signer = binding.name
        elif signer:
            raise SinkError(
                f"sink {binding.name} may change what {signer} has signed: give {signer} the highest priority number"
            )


def _load(number: int, section: SinkSettings, name: str) -> Binding:
    where = f"sink[{number}] ({name})"
    factory = _find(where, section.use)
    try:
        sink = factory(**section.with_)
    except TypeError as error:
        accepted = ", ".join(inspect.signature(factory).parameters) or "nothing"
        raise SinkError(f"{where}: the settings in `with` do not fit: {error}; it takes: {accepted}") from None
    except (ValueError, OSError) as error:
        raise SinkError(f"{where}: {error}") from None
    bare = Binding(name, sink)
    events = [event for event in EVENTS if bare.handles(event)]
    if not events:
        raise SinkError(f"{where}: it handles no event; there are: {', '.join(EVENTS)}")
    _check_commands(where, sink, section, answers="command" in events)
    try:
        rule = parse_rule(section.rule, events=events)
    except RuleError as error:
        raise SinkError(f"{where}: {error}") from None
    if section.on_failure != TEMPFAIL and not set(events) & set(BEFORE_250):
        raise SinkError(
            f"{where}: on_failure = {section.on_failure!r} is for sinks before the 250; "
            "when one after it fails, the mail waits"
        )
    timeout_s = _parse_duration(where, section.timeout) if section.timeout else None
    return Binding(name, sink, rule, section.priority, timeout_s, section.on_failure)


def _check_commands(where: str, sink: Sink, section: SinkSettings, *, answers: bool) -> None:
    """Verbs and the event belong together, and a command that fails is told 451 whatever else is wished."""
    if answers is not bool(sink.verbs):
        missing = "handles `command` and has no verbs" if answers else "has verbs and does not handle `command`"
        raise SinkError(f"{where}: it {missing}")
    fault = find_fault(sink.verbs)
    if fault:
        raise SinkError(f"{where}: {fault}")
    if answers and section.on_failure != TEMPFAIL:
        raise SinkError(f"{where}: on_failure = {section.on_failure!r} means nothing for a command: a failure is 451")


def _find(where: str, use: str) -> type[Sink]:
    module_name, separator, class_name = BUILT_IN.get(use, use).partition(":")
    try:
        if separator:
            found = getattr(importlib.import_module(module_name), class_name)
        else:
            (entry,) = metadata.entry_points(group=ENTRY_POINTS, name=use)
            found = entry.load()
    except (ImportError, AttributeError, ValueError) as error:
        raise SinkError(
            f"{where}: no such sink: neither built in ({', '.join(BUILT_IN)}) nor an entry point of {ENTRY_POINTS} nor "
            f"module:Class ({error})"
        ) from None
    if not (isinstance(found, type) and issubclass(found, Sink)):
        raise SinkError(f"{where}: it is not a class derived from smtp_edge.sinks.api.Sink")
    return found


def _parse_duration(where: str, text: str) -> float:
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        raise SinkError(f"{where}: timeout {text!r} is not a duration like 500ms, 20s or 2m")
    return float(match[1]) * _UNIT_S[match[2]]
