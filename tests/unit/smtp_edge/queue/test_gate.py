"""Readers together, or one alone."""

from __future__ import annotations

import threading

from smtp_edge.queue.gate import Gate


def test_readers_do_not_wait_for_each_other_and_nobody_is_alone_beside_them() -> None:
    gate = Gate()
    with gate.reading(), gate.reading(), gate.alone(wait=False) as alone:
        assert not alone
    with gate.alone(wait=False) as alone:
        assert alone


def test_a_reader_waits_for_the_one_who_is_alone() -> None:
    gate, order = Gate(), list[str]()

    def read() -> None:
        with gate.reading():
            order.append("reader")

    with gate.alone(wait=True):
        thread = threading.Thread(target=read)
        thread.start()
        thread.join(0.05)
        order.append("alone")
    thread.join(5)
    assert order == ["alone", "reader"]


def test_who_waits_to_be_alone_gets_it_when_the_last_reader_leaves() -> None:
    gate, entered = Gate(), threading.Event()

    def enter() -> None:
        with gate.alone(wait=True):
            entered.set()

    with gate.reading():
        thread = threading.Thread(target=enter)
        thread.start()
        assert not entered.wait(0.05)
    assert entered.wait(5)
    thread.join(5)
