"""What the operator ordered and what must survive a restart: the drain of this node, drained hosts, pinned classes.

One small JSON file in data_dir, written whole: a new file, fsync, rename, fsync of the folder. A file that cannot be
read keeps the node from starting: one that forgot its drain would take mail while its operator pulls the plug.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

FILE = "orders.json"
FORMAT = 1
T = TypeVar("T")


class OrdersError(Exception):
    """The orders cannot be read or kept; `str()` says why, and the way out."""


@dataclass(frozen=True, slots=True)
class Order:
    """Who ordered something, and when."""

    at: datetime
    """Aware UTC."""
    by: str


@dataclass(frozen=True, slots=True)
class PinOrder:
    """All mail of a class goes by one own hop until then."""

    hop: str
    """Hop id."""
    until_at: datetime
    """Aware UTC."""
    order: Order


@dataclass(frozen=True, slots=True)
class Orders:
    """All that is in force. Methods give a copy with a change."""

    drain: Order | None = None
    """Of this node."""
    hosts: Mapping[str, Order] = field(default_factory=dict)
    """Drained smart hosts, by name."""
    pins: Mapping[str, PinOrder] = field(default_factory=dict)
    """By class id."""

    def with_drain(self, order: Order | None) -> Orders:
        """This node drains, or (None) does no longer."""
        return replace(self, drain=order)

    def with_host(self, name: str, order: Order | None) -> Orders:
        """A host is drained, or (None) is no longer."""
        return replace(self, hosts=_with(self.hosts, name, order))

    def with_pin(self, class_id: str, pin: PinOrder | None) -> Orders:
        """A class is pinned, or (None) is no longer."""
        return replace(self, pins=_with(self.pins, class_id, pin))

    def find_over(self, at: datetime) -> list[str]:
        """Classes whose pins are over."""
        return [class_id for class_id, pin in self.pins.items() if at >= pin.until_at]


def load_orders(path: Path) -> Orders:
    """What was kept; nothing if there is no file. OrdersError."""
    try:
        text = path.read_text("utf-8")
    except FileNotFoundError:
        return Orders()
    except (OSError, UnicodeDecodeError) as error:
        raise OrdersError(f"{path} cannot be read: {error}") from error
    try:
        return _decode(json.loads(text))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        text = f"{path} is damaged ({error!r}); remove it, and give the orders again (drains and pins of this node)"
        raise OrdersError(text) from error


def save_orders(path: Path, orders: Orders) -> None:
    """Keep them; on return they are on stable storage. OrdersError: nothing was changed."""
    partial = path.with_suffix(".partial")
    try:
        with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
            json.dump(_encode(orders), file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        _sync(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise OrdersError(f"{path} cannot be written: {error.strerror}; nothing was changed") from error


def _sync(folder: Path) -> None:
    number = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def _with(known: Mapping[str, T], name: str, value: T | None) -> dict[str, T]:
    rest = {key: item for key, item in known.items() if key != name}
    return rest if value is None else {**rest, name: value}


# -- as JSON -----------------------------------------------------------------------------------------------------------


def _encode(orders: Orders) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "drain": _encode_order(orders.drain) if orders.drain is not None else None,
        "hosts": {name: _encode_order(order) for name, order in sorted(orders.hosts.items())},
        "pins": {
            class_id: {"hop": pin.hop, "until": pin.until_at.isoformat(), **_encode_order(pin.order)}
            for class_id, pin in sorted(orders.pins.items())
        },
    }


def _encode_order(order: Order) -> dict[str, str]:
    return {"at": order.at.isoformat(), "by": order.by}


def _decode(found: Any) -> Orders:
    if found["format"] != FORMAT:
        raise ValueError(f"format {found['format']} is another release's")
    return Orders(
        _decode_order(found["drain"]) if found["drain"] is not None else None,
        _decode_all(found["hosts"], _decode_order),
        _decode_all(found["pins"], _decode_pin),
    )


def _decode_all(found: Any, decode: Callable[[Any], T]) -> dict[str, T]:
    return {str(name): decode(item) for name, item in found.items()}


def _decode_order(found: Any) -> Order:
    return Order(_decode_time(found["at"]), str(found["by"]))


def _decode_pin(found: Any) -> PinOrder:
    return PinOrder(str(found["hop"]), _decode_time(found["until"]), _decode_order(found))


def _decode_time(text: str) -> datetime:
    at = datetime.fromisoformat(text)
    if at.tzinfo is None:
        raise ValueError(f"{text} names no zone")
    return at.astimezone(UTC)
