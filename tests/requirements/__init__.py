"""What the RFCs of mail want of a relay, and the tests that show it: the lists, and the page that is made of both.

One file for each RFC: `"4.1.1.5" = ["server", "MUST", "what, in our words"]`. A letter behind the section tells several
requirements of one section apart. A fourth element is the reason why we deviate. What does not concern a relay (mailbox
stores, mail programs, gateways) is not listed, nor is every MAY.

A test says what it shows: `@pytest.mark.rfc("5321 4.1.1.5")`, also several, and a dialogue in a line of its own,
`# rfc: 5321 4.1.1.5, 2034 4a`. `python3 deploy/run.py requirements` writes smtp_edge/REQUIREMENTS.md; `tests/house`
fails where the page is not fresh, a requirement has neither test nor reason, or a test names what is not listed.
"""
