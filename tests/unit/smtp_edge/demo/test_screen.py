"""Lines of the story."""

import io

from smtp_edge.demo.screen import Moment, PlainScreen, build_table, describe_moment, describe_routes
from smtp_edge.demo.watch import HopView, RelayView

HOP = HopView("host:c", "c", "up", "chosen", 0.5, 80.0, 0.052, 8, 5, 0, "")
DOWN = HopView("host:a", "a", "down", "edge-down", 0.0, 20.0, None, 4, 0, 0, "connection refused")
VIEW = RelayView("relay A", 3, 100, 97, 0, (HOP, DOWN))
MOMENT = Moment(
    elapsed_s=6.0,
    offered_mps=110.0,
    accepted=612,
    delivered=590,
    recent_shares={"smart host A": 0.14, "smart host C": 0.86},
    recent_mps=108.4,
    relays={"relay A": VIEW, "relay B": None},
)


def test_a_moment_is_one_line() -> None:
    assert describe_moment(MOMENT) == (
        "  6.0 s  offered 110/s  accepted   612  delivered   590 (108/s)  shares A 14% C 86%         queued A 3 B -"
    )


def test_a_routing_table_in_plain_text() -> None:
    assert describe_routes(VIEW) == [
        "    routing table of relay A (smtpmesh routes): 3 waiting",
        "    next hop   state      verdict     capacity  latency  window",
        "    c          up         chosen          80/s    52 ms   5/8  ",
        "    a          down       edge-down       20/s        -   0/4  ",
    ]


def test_the_live_table_has_a_row_for_each_hop_and_for_a_silent_relay() -> None:
    assert build_table(MOMENT).row_count == 3


def test_plain_output_has_no_control_characters() -> None:
    out = io.StringIO()
    screen = PlainScreen(out)
    screen.say("hello")
    screen.show(MOMENT)
    screen.close()
    assert all(character.isprintable() or character == "\n" for character in out.getvalue())
