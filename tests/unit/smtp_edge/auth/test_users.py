"""The users file, the sender map, and authenticators from the configuration."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from smtp_edge.auth.api import Authenticator, AuthError
from smtp_edge.auth.backends import load_authenticator
from smtp_edge.auth.senders import SenderMap
from smtp_edge.auth.users import UsersFile, hash_password, verify_password
from smtp_edge.cli import cli
from smtp_edge.envelope import Client
from smtp_edge.settings_inbound import AuthSettings

CLIENT = Client("192.0.2.7", tls="TLSv1.3")


class Generous(Authenticator):
    """Takes everybody who knows the word."""

    def __init__(self, word: str) -> None:
        self.word = word

    async def verify(self, user: str, password: str, client: Client) -> str | None:
        return user.lower() if password == self.word else None


def write(folder: Path, text: str) -> Path:
    path = folder / "file"
    path.write_text(text, "utf-8")
    return path


def test_a_password_from_a_pipe_is_hashed_and_an_empty_one_is_not() -> None:
    done = CliRunner().invoke(cli, ["hash-password"], input="a secret\n")
    assert done.exit_code == 0
    assert verify_password("a secret", done.stdout.strip())
    assert CliRunner().invoke(cli, ["hash-password"], input="").exit_code == 1


async def test_known_users_with_their_passwords(tmp_path: Path) -> None:
    users = UsersFile(write(tmp_path, f"# staff\n\nsue:{hash_password('secret')}\njörg:{hash_password('grün')}\n"))
    assert await users.verify("sue", "secret", CLIENT) == "sue"
    assert await users.verify("jörg", "grün", CLIENT) == "jörg"
    assert await users.verify("sue", "grün", CLIENT) is None
    assert await users.verify("nobody", "", CLIENT) is None
    assert await users.verify("", "", CLIENT) is None


@pytest.mark.parametrize(
    "line", ["sue", "sue:secret", ":scrypt$1$8$1$AA==$AA==", "sue:scrypt$99$8$1$AA==$AA==", "a\x1bb:x"]
)
def test_a_bad_line_is_named(tmp_path: Path, line: str) -> None:
    with pytest.raises(AuthError, match="line 2"):
        UsersFile(write(tmp_path, f"# staff\n{line}\n"))


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(AuthError, match="missing cannot be read"):
        UsersFile(tmp_path / "missing")


def test_senders(tmp_path: Path) -> None:
    senders = SenderMap.load(write(tmp_path, "# who\nsue: Sue@example.org, @sue.example.org\nrobot: *\n"))
    assert senders.permits("sue", "SUE@example.org")
    assert senders.permits("sue", "anybody@Sue.Example.org")
    assert senders.permits("sue", "")
    assert senders.permits("robot", "anybody@example.net")
    assert not senders.permits("sue", "ann@example.org")
    assert not senders.permits("sue", "ann@deep.sue.example.org")
    assert not senders.permits("nobody", "nobody@example.org")


@pytest.mark.parametrize("line", ["sue", "sue:", ": a@b.c", "sue: example.org"])
def test_a_bad_line_of_senders_is_named(tmp_path: Path, line: str) -> None:
    with pytest.raises(AuthError, match="line 1"):
        SenderMap.load(write(tmp_path, line))


async def test_a_class_of_ones_own() -> None:
    section = {"name": "x", "use": f"{__name__}:Generous", "with": {"word": "please"}}
    authenticator = load_authenticator(AuthSettings.model_validate(section))
    assert await authenticator.verify("Sue", "please", CLIENT) == "sue"


@pytest.mark.parametrize(
    ("section", "text"),
    [
        ({"use": "nonsense"}, "entry point of smtpmesh.auth"),
        ({"use": "no_such_module:X"}, "no_such_module"),
        ({"use": "pathlib:Path"}, "not a class derived"),
        ({"use": f"{__name__}:Generous"}, "it takes: word"),
        ({"use": f"{__name__}:Generous", "with": {"wrod": 1}}, "it takes: word"),
        ({"use": "file"}, "it takes: path"),
        ({"use": "dovecot", "path": "x", "with": {"service": "a b"}}, "service"),
    ],
)
def test_what_cannot_be_built_says_why(section: dict[str, object], text: str) -> None:
    with pytest.raises(AuthError, match=text):
        load_authenticator(AuthSettings.model_validate({"name": "x", **section}))
