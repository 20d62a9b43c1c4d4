"""The reverse-path of one recipient (VERP) is a local part as RFC 5321 has it, or that of all (section 4.5.3.1.1)."""

import pytest

from smtp_edge.envelope import own_sender, verp_tag

BOUNCES, QUOTED = "talk-bounces@l.test", '"ann bob"@x.test'


@pytest.mark.parametrize(
    ("recipient", "key", "sender"),
    [
        ("ann@x.test", "", "talk-bounces+ann=x.test@l.test"),
        (f"{'a' * 44}@x.test", "", f"talk-bounces+{'a' * 44}=x.test@l.test"),
        (f"{'a' * 45}@x.test", "", BOUNCES),
        ("\N{LATIN SMALL LETTER A WITH DIAERESIS}" * 22 + "@x.test", "", None),
        ("\N{LATIN SMALL LETTER A WITH DIAERESIS}" * 23 + "@x.test", "", BOUNCES),
        (QUOTED, "", BOUNCES),
        (f"{'a' * 64}@x.test", "secret", f"talk-bounces+{verp_tag('secret', 'a' * 64 + '@x.test')}@l.test"),
        (QUOTED, "secret", f"talk-bounces+{verp_tag('secret', QUOTED)}@l.test"),
    ],
)
def test_a_reverse_path_that_is_no_local_part_is_that_of_all(recipient: str, key: str, sender: str | None) -> None:
    assert own_sender(BOUNCES, recipient, key) == (sender or f"talk-bounces+{recipient.replace('@', '=')}@l.test")


def test_a_tag_is_of_one_key_and_one_address_in_any_case() -> None:
    assert verp_tag("secret", "Ann@X.test") == verp_tag("secret", "ann@x.test") == "qynqwg7tehecsj6z"
    others = {verp_tag("other", "ann@x.test"), verp_tag("secret", "bob@x.test")}
    assert len(others - {verp_tag("secret", "ann@x.test")}) == 2
