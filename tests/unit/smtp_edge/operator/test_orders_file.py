"""Orders on disk: whole or not at all, and nothing is guessed about a file that is damaged."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from smtp_edge import orders as orders_module
from smtp_edge.orders import Order, Orders, OrdersError, PinOrder, load_orders, save_orders

AT = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
ROOT = Order(AT, "root")
ALL = (
    Orders()
    .with_drain(ROOT)
    .with_host("a", Order(AT, "ops at relay-b"))
    .with_pin("default>65536", PinOrder("host:a", AT + timedelta(hours=1), ROOT))
)


@pytest.mark.parametrize("orders", [Orders(), ALL, Orders().with_host("b", ROOT)])
def test_orders_survive_the_disk(tmp_path: Path, orders: Orders) -> None:
    path = tmp_path / "orders.json"
    save_orders(path, orders)
    assert load_orders(path) == orders
    assert path.stat().st_mode & 0o777 == 0o600
    assert [item.name for item in tmp_path.iterdir()] == ["orders.json"]


def test_without_a_file_nothing_was_ordered(tmp_path: Path) -> None:
    assert load_orders(tmp_path / "orders.json") == Orders()


def test_an_order_that_is_taken_back_leaves_nothing() -> None:
    assert ALL.with_drain(None).with_host("a", None).with_pin("default>65536", None) == Orders()


def test_pins_are_over_when_their_time_has_come() -> None:
    assert ALL.find_over(AT + timedelta(minutes=59)) == []
    assert ALL.find_over(AT + timedelta(hours=1)) == ["default>65536"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"format": 2, "drain": null, "hosts": {}, "pins": {}}',
        '{"format": 1, "drain": {"at": "2026-03-01T12:00:00", "by": "x"}, "hosts": {}, "pins": {}}',
        '{"format": 1, "drain": true, "hosts": {}, "pins": {}}',
        '{"format": 1, "drain": null, "hosts": [], "pins": {}}',
        '{"format": 1, "drain": null, "hosts": {}, "pins": {"c": {"hop": "host:a", "at": "x", "until": "x"}}}',
    ],
)
def test_a_damaged_file_is_an_error_with_the_way_out(tmp_path: Path, text: str) -> None:
    path = tmp_path / "orders.json"
    path.write_text(text)
    with pytest.raises(OrdersError) as caught:
        load_orders(path)
    assert str(caught.value).startswith(f"{path} is damaged")
    assert "remove it, and give the orders again" in str(caught.value)


def test_a_full_disk_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "orders.json"
    save_orders(path, ALL)

    def full(number: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OrdersError, match="No space left on device; nothing was changed"):
        save_orders(path, Orders())
    monkeypatch.undo()
    assert load_orders(path) == ALL
    assert [item.name for item in tmp_path.iterdir()] == ["orders.json"]


def test_the_file_is_on_disk_before_it_has_its_name_and_its_folder_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, seen = tmp_path / "orders.json", list[str]()
    real = os.fsync

    def noted(number: int) -> None:
        kind = "folder" if os.path.isdir(f"/proc/self/fd/{number}") else "file"
        seen.append(f"{kind}, {'named' if path.exists() else 'not named'}")
        real(number)

    monkeypatch.setattr(os, "fsync", noted)
    save_orders(path, ALL)
    assert seen == ["file, not named", "folder, named"]


def test_the_file_can_be_read_by_people(tmp_path: Path) -> None:
    path = tmp_path / "orders.json"
    save_orders(path, ALL)
    found = json.loads(path.read_text())
    assert found["format"] == orders_module.FORMAT
    assert found["drain"] == {"at": "2026-03-01T12:00:00+00:00", "by": "root"}
    assert found["pins"]["default>65536"]["until"] == "2026-03-01T13:00:00+00:00"
