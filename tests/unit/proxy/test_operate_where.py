"""Where commands look for the admin API, and which token they take."""

from __future__ import annotations

from pathlib import Path

import pytest

from proxy.cluster.address import Address
from proxy.commands.operate.where import Options, find
from proxy.errors import ConfigError

CONFIG = '[admin]\naddress = "10.0.0.1:1"\ntoken = "of the file"\n[nonsense\n'
SOUND = CONFIG.replace("[nonsense\n", "[nonsense]\n")


@pytest.fixture(autouse=True)
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_without_anything_said_it_is_the_default_port_of_this_machine() -> None:
    assert find(Options(), {}) == (Address("127.0.0.1", 9901), "")


def test_the_command_line_comes_before_environment_before_configuration() -> None:
    Path("districhat.toml").write_text(SOUND, encoding="utf-8")
    Path("token").write_text("of a file\n", encoding="utf-8")
    environment = {"DISTRICHAT_ADMIN__ADDRESS": "10.0.0.2:2", "DISTRICHAT_ADMIN__TOKEN": "of the environment"}
    assert find(Options(), {}) == (Address("10.0.0.1", 1), "of the file")
    assert find(Options(), environment) == (Address("10.0.0.2", 2), "of the environment")
    option = Options(admin="[::1]:3", token_file=Path("token"))
    assert find(option, environment) == (Address("::1", 3), "of a file")
    assert find(Options(admin="http://proxy:3/", token="said"), environment) == (Address("proxy", 3), "said")


@pytest.mark.parametrize(("listens", "reached"), [("0.0.0.0:9", "127.0.0.1:9"), ("[::]:9", "[::1]:9")])
def test_a_server_on_all_interfaces_is_reached_on_loopback(listens: str, reached: str) -> None:
    assert str(find(Options(admin=listens), {})[0]) == reached


@pytest.mark.parametrize(
    ("options", "environment", "problem"),
    [
        (Options(admin="nowhere"), {}, "--admin: expected host:port"),
        (Options(), {"DISTRICHAT_ADMIN__ADDRESS": ""}, "DISTRICHAT_ADMIN__ADDRESS: is empty: "),
        (Options(admin="127.0.0.1:0"), {}, "--admin: give the port itself"),
        (Options(admin="unix:/x"), {}, "--admin: the admin server has no unix sockets: expected host:port"),
        (Options(token_file=Path("none")), {}, "--token-file: cannot be read: no such file or directory"),
        (Options(config=Path("none")), {}, "none: cannot be read: no such file or directory"),
        (Options(token="a\nb"), {}, "--token: a token is printable ASCII"),
        (Options(token_file=Path("umlaut")), {}, "--token-file: a token is printable ASCII"),
        (Options(), {"DISTRICHAT_ADMIN__TOKEN": "\u00fc"}, "DISTRICHAT_ADMIN__TOKEN: a token is printable ASCII"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(options: Options, environment: dict[str, str], problem: str) -> None:
    Path("umlaut").write_text("\u00fc", encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        find(options, environment)
    [line] = caught.value.problems
    assert line.startswith(problem)


def test_a_configuration_that_is_not_toml_is_named_with_the_way_out() -> None:
    Path("districhat.toml").write_text(CONFIG, encoding="utf-8")
    with pytest.raises(ConfigError, match=r"^districhat\.toml: not valid TOML .* --admin HOST:PORT$"):
        find(Options(), {})
    assert find(Options(admin="a:1"), {})[0] == Address("a", 1)
