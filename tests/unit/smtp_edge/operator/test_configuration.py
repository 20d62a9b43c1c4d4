"""Every mistake of a configuration, with its exact sentence; and all of them at once."""
# ruff: noqa: E501  (a row is a mistake and its sentence)

from __future__ import annotations

from pathlib import Path

import pytest

from smtp_edge.configuration import ConfigurationError, load_configuration
from tests.unit.smtp_edge.operator.views import make_identity

EXAMPLE = Path(__file__).resolve().parents[4] / "deploy" / "node.example.toml"
GOOD = """
[node]
name = "a"
[[listener]]
allow_networks = ["127.0.0.0/8"]
[[smart_host]]
name = "up"
host = "smtp.example.net"
[[route]]
via = ["up"]
"""


@pytest.fixture
def node(tmp_path: Path) -> Path:
    make_identity(tmp_path)
    return tmp_path


def mistakes(folder: Path, text: str) -> list[str]:
    """What is wrong, without the file's name."""
    path = folder / "node.toml"
    path.write_text(text)
    with pytest.raises(ConfigurationError) as caught:
        load_configuration(path)
    lines = str(caught.value).splitlines()
    assert all(line.startswith(f"{path}: ") for line in lines)
    return [line.removeprefix(f"{path}: ").replace(f"{folder}/", "") for line in lines]


def warnings(folder: Path, text: str) -> list[str]:
    path = folder / "node.toml"
    path.write_text(text)
    return load_configuration(path)[1]


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        # single keys
        ('name = "a"', 'name = "a b"', "node.name: 'a b' is no name: letters, digits, dot, dash and underscore, at most 63"),
        ('name = "a"', "name = 3", "node.name: must be a text in quotes, not 3"),
        ('name = "a"', "", "node.name: is required"),
        ("[node]", "[gosip]\n[node]", "gosip: unknown key; did you mean gossip?"),
        ("[node]", "[node]\nqqq = 1", "node.qqq: unknown key; known here: data_dir, hostname, name, tags, workers, zone"),
        ("[node]", "[node]\ndata_dir = 3", "node.data_dir: must be a path in quotes, not 3"),
        ("[node]", "[queue]\nretry_frist_s = 1\n[node]", "queue.retry_frist_s: unknown key; did you mean retry_first_s?"),
        ("[[listener]]", "[[listener]]\nxclient_networks = []", 'listener[0].xclient_networks: unknown key; it is a [[sink]] with use = "xclient" and with = { networks = [...] } now'),
        ("[node]", "[queue]\nretry_first_s = -1\n[node]", "queue.retry_first_s: must be greater than 0, not -1"),
        ("[node]", "[queue]\nlifetime_s = 'x'\n[node]", "queue.lifetime_s: must be a number, not 'x'"),
        ("[node]", "[queue]\nlifetime_s = inf\n[node]", "queue.lifetime_s: must be a finite number, not inf"),
        ("[node]", "[queue]\nactive_max = 1.5\n[node]", "queue.active_max: must be a whole number, not 1.5"),
        ("[node]", "[mesh]\ntransit = 'maybe'\n[node]", "mesh.transit: must be true or false, not 'maybe'"),
        ("[node]", "[log]\nformat = 'xml'\n[node]", "log.format: must be one of 'json' or 'console', not 'xml'"),
        ('host = "smtp', 'port = 70000\nhost = "smtp', "smart_host[0].port: must be at least 1 and at most 65535, not 70000"),
        ('host = "smtp.example.net"', "", "smart_host[0].host: is required, or `socket`: the path of a Unix socket, or `sink`: the name of a [[sink]]"),
        ('host = "smtp', 'socket = "s"\nhost = "smtp', "smart_host[0].socket: and host: a host is reached by one of them"),
        ('host = "smtp.example.net"', 'socket = "s"\ntls = "starttls"', 'smart_host[0].tls: is "starttls", but a Unix socket has no TLS; leave the key out'),
        ('host = "smtp', 'tls = "dane"\nhost = "smtp', 'smart_host[0].tls: "dane" needs a resolver that validates DNSSEC: name it in dns.servers and set dns.trust_ad = true'),
        ('host = "smtp', 'protocol = "uucp"\nhost = "smtp', "smart_host[0].protocol: must be one of 'smtp' or 'lmtp', not 'uucp'"),
        # direct delivery
        ("[node]", '[dns]\nservers = ["localhost"]\n[node]', "dns.servers[0]: 'localhost' is no address; write 127.0.0.1, 127.0.0.1:5353 or [::1]:5353"),
        ("[node]", '[dns]\nservers = ["127.0.0.1:x"]\n[node]', "dns.servers[0]: '127.0.0.1:x': 'x' is no port"),
        ("[node]", '[[tls]]\ndomains = ["a.test"]\nlevel = "dane"\n[node]', 'tls[0].level: "dane" needs a resolver that validates DNSSEC: name it in dns.servers and set dns.trust_ad = true'),
        ("[node]", '[[tls]]\ndomains = []\nlevel = "none"\n[node]', 'tls[0].domains: is empty, so nothing would match; "*" is everything'),
        ("[node]", '[[tls]]\ndomains = ["*"]\nlevel = "encrypted"\nnames = ["mx.a.test"]\n[node]', 'tls[0].names: are of no use with level = "encrypted"; only "verified" looks at them'),
        ("[node]", '[[tls]]\ndomains = ["*"]\nlevel = "verified"\nca = "no"\n[node]', "tls[0].ca: no: No such file or directory"),
        ("[node]", '[mta_sts]\nca = "no"\n[node]', "mta_sts.ca: no: No such file or directory"),
        ("[node]", '[dsn]\ndouble_bounces_to = "me"\n[node]', "dsn.double_bounces_to: 'me' is no mailbox; write postmaster@example.org"),
        ('host = "smtp.example.net"', 'host = "mail:25"', "smart_host[0].host: 'mail:25': the port has a key of its own, and addresses stand without brackets"),
        ('host = "smtp.example.net"', 'host = "a\\u0000"', "smart_host[0].host: 'a\\x00' is no host name or address"),
        ('host = "smtp.example.net"', 'host = "a"\nuser = "x\\ry"\npassword_file = "p"', "smart_host[0].user: 'x\\ry' holds a control character"),
        ("[node]", "[node]\nhostname = 'b\u00fccher.example'", "node.hostname: 'b\u00fccher.example' is no host name; write mx1.example.org, international ones in their xn-- form"),
        ("[node]", '[node]\nhostname = "mx1 example"', "node.hostname: 'mx1 example' is no host name; write mx1.example.org, international ones in their xn-- form"),
        ("[node]", '[node]\nhostname = "mx1\\r\\n250 x"', "node.hostname: 'mx1\\r\\n250 x' is no host name; write mx1.example.org, international ones in their xn-- form"),
        ('host = "smtp.example.net"', 'host = ""', "smart_host[0].host: '' is no host name or address"),
        ("[[listener]]", "[listener]", "listener: must be a list of tables: write [[listener]], not [listener]"),
        ('["127.0.0.0/8"]', '["10.0.0.1/8"]', "listener[0].allow_networks[0]: '10.0.0.1/8' is an address in a network; did you mean 10.0.0.0/8?"),
        ('["127.0.0.0/8"]', '["here"]', "listener[0].allow_networks[0]: 'here' is no network; write it like 192.0.2.0/24 or 2001:db8::/32"),
        ('["127.0.0.0/8"]', '"127.0.0.0/8"', "listener[0].allow_networks: must be a list: [\"...\", \"...\"], not '127.0.0.0/8'"),
        ("[[route]]", '[[route]]\ndomains = ["*x"]', "route[0].domains[0]: '*x' is no domain; write example.org, *.example.org for all below it, or *"),
        ("[[route]]", '[[route]]\ndomains = ["a@b"]', "route[0].domains[0]: 'a@b' is no domain; write example.org, *.example.org for all below it, or *"),
        # routes and names
        ('[[route]]\nvia = ["up"]', "", 'route: no [[route]] says where mail goes; add one with via = smart-host names or ["mx"]'),
        ('via = ["up"]', 'via = ["down"]', "route[0].via: no smart host is named 'down'; there are: up"),
        ('via = ["up"]', 'via = ["up", "mx"]', "route[0].via: \"mx\" stands alone: a route uses smart hosts, or the domains' own exchangers"),
        ('via = ["up"]', "via = []", 'route[0].via: is empty; name smart hosts, or "mx" for direct delivery'),
        ("[[route]]", "[[route]]\ndomains = []", 'route[0].domains: is empty, so nothing would match; "*" is everything'),
        ("[[route]]", '[[route]]\nvia = ["up"]\n[[route]]', "route[1].name: 'default' is the name of route[0] too; give each its own"),
        ("[[route]]", '[[smart_host]]\nname = "up"\nhost = "x"\n[[route]]', "smart_host[1].name: 'up' is the name of smart_host[0] too; give each its own"),
        ("[[route]]", '[[smart_host]]\nname = "mx"\nhost = "x"\n[[route]]', 'smart_host[1].name: "mx" means direct delivery in a route; choose another name'),
        ("[[listener]]", '[[listener]]\nname = "mesh"', "listener[0].name: 'mesh' is the name of the node's own door"),
        ("[[listener]]", '[[listener]]\nname = "metrics"', "listener[0].name: 'metrics' is the name of the node's own door"),
        # addresses
        ("[node]", "[mesh]\nlisten = 'localhost:25'\n[node]", "mesh.listen: 'localhost:25' is not ADDRESS:PORT: an IP address of this machine, a port up to 65535"),
        ("[node]", "[mesh]\nlisten = '::1:25'\n[node]", "mesh.listen: '::1:25' is not ADDRESS:PORT: an IP address of this machine, a port up to 65535"),
        ("[node]", "[admin]\nlisten = 'here'\n[node]", "admin.listen: 'here' is not ADDRESS:PORT or unix:PATH: an IP address of this machine, a port up to 65535"),
        ("[node]", "[admin]\nlisten = 'unix:'\n[node]", 'admin.listen: "unix:" names no path; the default is "unix:admin.sock", in node.data_dir'),
        ("[node]", "[metrics]\nlisten = '9427'\n[node]", "metrics.listen: '9427' is not ADDRESS:PORT: an IP address of this machine, a port up to 65535"),
        ("[node]", "[metrics]\nlisten = '127.0.0.1:7925'\n[node]", "metrics.listen: 127.0.0.1:7925 is taken by mesh.listen"),
        ("[node]", "[mesh]\nlisten = '127.0.0.1:7946'\n[node]", "mesh.listen: 127.0.0.1:7946 is taken by gossip.listen"),
        ("[node]", "[gossip]\nlisten = '0.0.0.0:1'\n[node]", "gossip.advertise: is required when gossip.listen is 0.0.0.0:1: it is the HOST:PORT that peers dial"),
        ("[node]", "[mesh]\nadvertise = 'relay'\n[node]", "mesh.advertise: 'relay' is not HOST:PORT"),
        ("[node]", "[gossip]\njoin = ['relay']\n[node]", "gossip.join[0]: 'relay' is not HOST:PORT"),
        # listeners
        ("[[listener]]", '[[listener]]\ntls = "starttls"', "listener[0].certificate: is required for tls = 'starttls': a PEM file"),
        ("[[listener]]", '[[listener]]\ncertificate = "node.crt"', 'listener[0].tls: is "none", so the certificate would never be shown; set "starttls" or "implicit"'),
        ("[[listener]]", '[[listener]]\nkey = "node.key"', "listener[0].key: is of no use without certificate"),
        ("[[listener]]", '[[listener]]\nauth_users = "node.crt"', 'listener[0].auth_users: needs TLS: passwords never travel in the clear; set tls = "starttls"'),
        ("[[listener]]", '[[listener]]\nrelay_domains = ["*"]', 'listener[0].relay_domains: "*" would relay for everybody to everywhere; name your domains, or clients in allow_networks'),
        # smart hosts
        ("[[smart_host]]", '[[smart_host]]\nuser = "u"', "smart_host[0].password_file: is required with user: a file that holds the password alone"),
        ("[[smart_host]]", '[[smart_host]]\npassword_file = "ca.crt"', "smart_host[0].user: is required with password_file"),
        ("[[smart_host]]", '[[smart_host]]\nuser = "u"\npassword_file = "ca.crt"\ntls = "none"', 'smart_host[0].tls: is "none", so the password would travel in the clear; set "starttls" or "implicit"'),
        ("[[smart_host]]", '[[smart_host]]\ntls_ca = "ca.crt"', 'smart_host[0].tls_ca: is of no use with tls = "opportunistic"; only "starttls" and "implicit" verify'),
        ('host = "smtp', 'protocol = "lmtp"\nhost = "smtp', "smart_host[0].port: is 25, SMTP's, where LMTP must never be spoken (RFC 2033 section 5): name the store's, often 24"),
        ("[[smart_host]]", "[[smart_host]]\nsize_bytes_max = 9", "smart_host[0].size_bytes_max: 9 is less than every server must take; 65536 or more, or 0 for any size"),
        ("[[smart_host]]", "[[smart_host]]\nreserve = 1", "smart_host[0].reserve: must be at least 0 and at most 0.9, not 1"),
        # policies
        ("[node]", '[node]\ntags = ["EU"]', "node.tags[0]: 'EU' is no tag; write up to 32 of a-z 0-9 . _ - beginning with a letter or digit"),
        ("[[route]]", '[[route]]\nrequire_tags = ["eu"]\nforbid_tags = ["eu"]', "route[0].forbid_tags: eu is required as well: nothing can be both"),
        ("[[route]]", '[[route]]\nrequire_tags = ["eu"]\ntransit = false', "route[0]: no own exit meets the policy, and transit = false forbids others: up: require_tags eu: it lacks eu"),
        ("[[route]]", '[[route]]\ntls_min = "verified"\ntransit = false', "route[0]: no own exit meets the policy, and transit = false forbids others: up: tls_min verified: it promises none"),
        ("[[route]]", '[[route]]\ntls_min = "strong"', "route[0].tls_min: must be one of 'none', 'encrypted' or 'verified', not 'strong'"),
        ('via = ["up"]', 'via = ["mx"]\nforbid_tags = ["us"]\nrequire_tags = ["eu"]\ntransit = false', "route[0]: no own exit meets the policy, and transit = false forbids others: mx: require_tags eu: it lacks eu"),
        ("[node]", "[admin]\nadvertise = 'relay'\n[node]", "admin.advertise: 'relay' is not HOST:PORT"),
        # the rest
        ("[node]", "[queue]\nretry_first_s = 10\nretry_max_s = 5\n[node]", "queue.retry_first_s: must not be greater than queue.retry_max_s"),
        ("[node]", "[queue]\nlifetime_s = 60\n[node]", "queue.retry_max_s: must not be greater than queue.lifetime_s: mail would expire untried"),
        ("[node]", '[cluster]\nkey = "no.key"\n[node]', "cluster.key: no.key: No such file or directory; `smtpmesh init` makes it"),
        ("[[smart_host]]", '[[smart_host]]\nuser = "u"\npassword_file = "no"', "smart_host[0].password_file: no: No such file or directory"),
    ],
)  # fmt: skip
@pytest.mark.rfc("2033 5", "6531 3.7.1b")
def test_a_mistake_is_one_sentence_with_key_and_way_out(node: Path, before: str, after: str, expected: str) -> None:
    assert before in GOOD
    assert mistakes(node, GOOD.replace(before, after, 1)) == [expected]


def test_the_commented_example_loads_and_only_its_closed_listener_is_doubtful(node: Path) -> None:
    assert warnings(node, EXAMPLE.read_text("utf-8")) == [
        "listener smtp (127.0.0.1:2525) relays for nobody: set allow_networks, relay_domains or auth_users"
    ]


@pytest.mark.parametrize("listen", ["", "127.0.0.1:9427", "[::1]:9427"])
def test_metrics_that_only_this_machine_can_ask_for_are_no_doubt(node: Path, listen: str) -> None:
    assert warnings(node, f'{GOOD}[metrics]\nlisten = "{listen}"\n') == []


def test_a_policy_that_only_other_relays_can_meet_is_told(node: Path) -> None:
    asked = GOOD.replace("[[route]]", '[[route]]\nrequire_tags = ["eu"]\nforbid_tags = ["us"]')
    assert warnings(node, asked) == [
        "mail of route default leaves only through other relays whose exits meet its policy: "
        "up: require_tags eu: it lacks eu"
    ]
    tagged = asked.replace("[[smart_host]]", '[[smart_host]]\ntags = ["eu"]')
    assert warnings(node, tagged) == []
    direct = GOOD.replace('via = ["up"]', 'via = ["mx"]\nrequire_tags = ["eu"]').replace("[[smart_host]]", "", 1)
    direct = direct.replace('name = "up"\nhost = "smtp.example.net"', "")
    assert len(warnings(node, direct)) == 1
    assert warnings(node, direct.replace('name = "a"', 'name = "a"\ntags = ["eu"]')) == []


def test_a_tls_floor_is_met_by_a_host_that_verifies(node: Path) -> None:
    floor = GOOD.replace("[[route]]", '[[route]]\ntls_min = "verified"\ntransit = false')
    assert warnings(node, floor.replace("[[smart_host]]", '[[smart_host]]\ntls = "starttls"')) == []


@pytest.mark.parametrize("transit", ["true", "false"])
def test_direct_delivery_keeps_whatever_floor_the_route_sets(node: Path, transit: str) -> None:
    direct = GOOD.replace('via = ["up"]', f'via = ["mx"]\ntls_min = "verified"\ntransit = {transit}')
    assert warnings(node, direct) == ["smart host up is in no route: it carries nothing"]


def test_a_listener_that_takes_less_than_it_says_is_told(node: Path) -> None:
    limited = GOOD.replace("[[smart_host]]", "[[smart_host]]\nsize_bytes_max = 1000000")
    assert warnings(node, limited) == ["listener smtp takes 997952 bytes at most: no exit of any route takes more"]
    assert warnings(node, limited.replace("[[listener]]", "[[listener]]\nsize_bytes_max = 900000")) == []


def test_operators_that_cannot_show_a_certificate_are_told(node: Path) -> None:
    text = GOOD + '[admin]\noperators = ["ops"]\n'
    assert warnings(node, text) == [
        "admin.operators is of no use with admin.listen unix:admin.sock: certificates are shown over the network"
    ]
    assert len(warnings(node, text + 'listen = "127.0.0.1:7947"\n')) == 1
    assert warnings(node, text + 'listen = "192.0.2.1:7947"\n') == []


def test_a_resolver_that_is_believed_from_afar_and_floors_that_nobody_needs_are_told(node: Path) -> None:
    assert warnings(node, GOOD + '[dns]\nservers = ["127.0.0.1:5353", "::1"]\ntrust_ad = true\n') == []
    assert warnings(node, GOOD + '[dns]\nservers = ["192.0.2.53"]\ntrust_ad = true\n') == [
        "dns.trust_ad: whoever is between here and 192.0.2.53 can forge what DANE rests on; loopback is safe"
    ]
    assert warnings(node, GOOD + "[dns]\ntrust_ad = true\n") == [
        "dns.trust_ad rests on /etc/resolv.conf: name your validating resolvers in dns.servers"
    ]
    assert warnings(node, GOOD + '[[tls]]\ndomains = ["a.test"]\nlevel = "verified"\n') == [
        '[[tls]] for a.test is never used: no route delivers to exchangers ("mx")'
    ]


def test_the_good_configuration_is_good(node: Path) -> None:
    assert warnings(node, GOOD) == []


def test_all_mistakes_come_at_once(node: Path) -> None:
    text = GOOD.replace('name = "a"', 'nmae = "a"').replace('via = ["up"]', 'via = ["down"]')
    assert mistakes(node, f'{text}[gossip]\njoin = ["x"]\n[queue]\nretry_first_s = 0\n[log]\nlevel = "loud"\n') == [
        "node.name: is required",
        "node.nmae: unknown key; did you mean name?",
        "queue.retry_first_s: must be greater than 0, not 0",
        "log.level: must be one of 'debug', 'info', 'warning' or 'error', not 'loud'",
        "route[0].via: no smart host is named 'down'; there are: up",
        "gossip.join[0]: 'x' is not HOST:PORT",
    ]


def test_what_follows_from_a_mistake_is_not_reported_too(node: Path) -> None:
    text = GOOD.replace('name = "up"', 'name = "u p"').replace(
        "[[listener]]", '[[listener]]\nauth_users = "x"\ntls = "x"'
    )
    assert mistakes(node, text) == [
        "listener[0].tls: must be one of 'none', 'starttls' or 'implicit', not 'x'",
        "smart_host[0].name: 'u p' is no name: letters, digits, dot, dash and underscore, at most 63",
    ]


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ('allow_networks = ["127.0.0.0/8"]', "", "listener smtp (127.0.0.1:2525) relays for nobody: set allow_networks, relay_domains or auth_users"),
        ('["127.0.0.0/8"]', '["0.0.0.0/0"]', "listener smtp (127.0.0.1:2525) is an open relay: allow_networks holds every address"),
        ('[[listener]]\nallow_networks = ["127.0.0.0/8"]', "", "listener smtp (127.0.0.1:2525) relays for nobody: set allow_networks, relay_domains or auth_users"),
        ("[node]", "[metrics]\nlisten = '0.0.0.0:9427'\n[node]", "metrics.listen 0.0.0.0:9427 is not loopback: whoever reaches it reads next hops, classes and queue totals"),
        ("[[smart_host]]", '[[smart_host]]\nuser = "u"\npassword_file = "ca.crt"', 'smart host up: tls = "opportunistic" shows the password to whoever answers; "starttls" verifies'),
        ("[node]", "[[smart_host]]\nname = 'x'\nhost = 'x'\n[node]", "smart host x is in no route: it carries nothing"),
        ("[[route]]", '[[route]]\nname = "all"\nvia = ["up"]\n[[route]]', "route default never sees *: route all takes it before"),
    ],
)  # fmt: skip
def test_a_doubtful_configuration_runs_with_a_warning(node: Path, before: str, after: str, expected: str) -> None:
    assert warnings(node, GOOD.replace(before, after, 1)) == [expected]


def test_no_listener_at_all_is_a_warning(node: Path) -> None:
    text = "listener = []\n" + GOOD.replace('[[listener]]\nallow_networks = ["127.0.0.0/8"]', "")
    assert warnings(node, text) == ["there is no [[listener]]: this node takes mail from peers only"]


def test_domains_are_compared_in_lower_case(node: Path) -> None:
    path = node / "node.toml"
    path.write_text(GOOD.replace("[[route]]", '[[route]]\ndomains = ["Example.ORG", "*.Example.ORG"]'))
    assert load_configuration(path)[0].route[0].domains == ("example.org", "*.example.org")


def test_paths_are_relative_to_the_file(node: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (node / "node.toml").write_text(GOOD)
    monkeypatch.chdir("/")
    settings, _ = load_configuration(node / "node.toml")
    assert settings.node.data_dir == node / "data"
    assert settings.cluster.key == node / "node.key"


def test_a_question_needs_no_readable_files(tmp_path: Path) -> None:
    (tmp_path / "node.toml").write_text(GOOD)
    assert load_configuration(tmp_path / "node.toml", files=False)[0].node.name == "a"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"a = [", "is not valid TOML: Invalid value (at end of document)"),
        (b"a = '\xff'", "cannot be read: not UTF-8"),
        (None, "there is no such file; `smtpmesh init FOLDER` writes one, `--config FILE` names one"),
    ],
)
def test_a_file_that_cannot_be_read_says_why(tmp_path: Path, content: bytes | None, expected: str) -> None:
    path = tmp_path / "node.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigurationError) as caught:
        load_configuration(path)
    assert str(caught.value) == f"{path}: {expected}"
