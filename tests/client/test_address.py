"""Where the server is and which token goes to it: argument before environment before file."""

from __future__ import annotations

from pathlib import Path

import pytest

from lockstep.address import Address, find_token, server_address, token_path
from lockstep.contract.errors import UserError

LOCAL = Address("127.0.0.1", 7460)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        (None, LOCAL),
        ("", LOCAL),
        ("train.example", Address("train.example", 7460)),
        ("train.example:80", Address("train.example", 80)),
        ("[::1]:7461", Address("::1", 7461)),
    ],
)
def test_addresses(text: str | None, address: Address) -> None:
    assert server_address(text) == address
    assert server_address(str(address)) == address


@pytest.mark.parametrize("text", ["http://a:1", "a:0", "a:65536", "a:b", "::1", "a b", "a:1\n"])
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(UserError, match=r"it must be HOST:PORT, as in 127\.0\.0\.1:7460"):
        server_address(text)


def test_the_environment_names_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCKSTEP_SERVER", "train.example:1")
    assert server_address() == Address("train.example", 1)
    assert server_address("other:2") == Address("other", 2)


def test_a_token_is_looked_for_in_turn(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert find_token(LOCAL) is None
    own = token_path("127.0.0.1", 7460)
    own.parent.mkdir(parents=True)
    own.write_text("own\n")
    assert find_token(LOCAL) == "own"
    assert find_token(Address("localhost", 7460)) == "own"
    assert find_token(Address("127.0.0.1", 7461)) is None
    (tmp_path / "environment").write_text("# for everybody\nenvironment\nanother\n")
    monkeypatch.setenv("LOCKSTEP_TOKEN_FILE", str(tmp_path / "environment"))
    assert find_token(LOCAL) == "environment"
    (tmp_path / "file").write_text("file")
    assert find_token(LOCAL, token_file=tmp_path / "file") == "file"
    assert find_token(LOCAL, "argument") == "argument"


def test_token_files_lie_in_the_state_folder(tmp_path: Path) -> None:
    assert token_path("train.example", 7460) == tmp_path / "state" / "lockstep" / "tokens" / "train.example_7460"
    assert token_path("::1", 7460) == token_path("localhost", 7460)
    assert token_path("fe80::2", 7460).name == "fe80--2_7460"


def test_a_bad_token_is_not_repeated(tmp_path: Path) -> None:
    path = tmp_path / "token"
    for content in ("", "half a secret", "\u00e9"):
        path.write_text(content)
        with pytest.raises(UserError) as caught:
            find_token(LOCAL, token_file=path)
        assert str(caught.value) == f"{path}: it must hold a token of 1 to 512 visible ASCII characters"
    with pytest.raises(UserError, match="the token file cannot be read: No such file"):
        find_token(LOCAL, token_file=tmp_path / "missing")
