"""Loading: what is refused and in which words, what the environment may say, and the configurations we ship."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import get_args

import pytest
from pydantic import BaseModel, ValidationError

from proxy.cluster.settings import EndpointSettings
from proxy.errors import ConfigError
from proxy.forwarding.settings import BUILT_IN_ROUTES
from proxy.settings import Settings, load_settings
from proxy.transport.settings import ListenerTlsSettings, UpstreamTlsSettings

CONFIG = Path(__file__).parents[3] / "config"

ENDPOINT = '[[endpoints]]\nid = "Server-A"\naddress = "127.0.0.1:50051"\n'
SECOND = '[[endpoints]]\nid = "Server-B"\naddress = "127.0.0.1:50052"\n'


@pytest.fixture
def file(tmp_path):
    def write(text: str | bytes) -> Path:
        path = tmp_path / "config.toml"
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return path

    return write


def problems(path: Path | None, environ: dict[str, str] | None = None) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_settings(path, environ or {})
    return caught.value.problems


def route(text: str) -> str:
    return f"{ENDPOINT}[[routes]]\n{text}\n"


def routes(*methods: str) -> str:
    return ENDPOINT + "".join(f'[[routes]]\nmethod = "{method}"\nkey = {{ field = "1" }}\n' for method in methods)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", "endpoints: is required: at least one [[endpoints]] table"),
        ("endpoints = []", "endpoints: must not be empty: at least one [[endpoints]] table is required"),
        (
            '[endpoints]\nid = "Server-A"\naddress = "h:1"',
            "endpoints: must be a list, got a table; a list of tables has two brackets: [[endpoints]]",
        ),
        (ENDPOINT + SECOND + "weight = 0", "endpoints[1].weight: must be greater than 0, got 0"),
        (ENDPOINT + SECOND + "weight = -1.5", "endpoints[1].weight: must be greater than 0, got -1.5"),
        (ENDPOINT + "weight = 1001", "endpoints[0].weight: must be at most 1000, got 1001"),
        (ENDPOINT + "weight = inf", "endpoints[0].weight: must be a finite number, got inf"),
        (ENDPOINT + 'weight = "heavy"', 'endpoints[0].weight: must be a number, got "heavy"'),
        (ENDPOINT + "weight = true", "endpoints[0].weight: must be a number, got true"),
        (ENDPOINT + ENDPOINT, 'endpoints[1].id: duplicate id "Server-A", it is already endpoints[0]'),
        (SECOND + '[[endpoints]]\naddress = "h:1"', "endpoints[1].id: is required"),
        (
            SECOND + '[[endpoints]]\nid = 7\naddress = "h:1"',
            'endpoints[1].id: must be text, got 7; in quotes it is text: "7"',
        ),
        (
            SECOND + '[[endpoints]]\nid = 2026-01-01\naddress = "h:1"',
            "endpoints[1].id: must be text, got 2026-01-01",
        ),
        ('[[endpoints]]\nid = ""\naddress = "h:1"', 'endpoints[0].id: must not be empty, got ""'),
        ('[[endpoints]]\nid = "a"\naddress = "h"', "endpoints[0].address: expected host:port or unix:/path, got 'h'"),
        (
            '[[endpoints]]\nid = "a"\naddress = "h:65536"',
            "endpoints[0].address: the port must be a number from 0 to 65535, got 'h:65536'",
        ),
        (
            '[[endpoints]]\nid = "a"\naddress = "http://h:1"',
            "endpoints[0].address: expected host:port or unix:/path, got 'http://h:1'",
        ),
        (
            '[[endpoints]]\nid = "a"\naddress = "h h:1"',
            "endpoints[0].address: 'h h' is no name of a host: at most 253 letters, digits, '-', '.' and '_'",
        ),
        (
            '[[endpoints]]\nid = "a"\naddress = "a..b:1"',
            "endpoints[0].address: 'a..b' is no name of a host: label empty or too long",
        ),
        (
            '[[endpoints]]\nid = "a"\naddress = "[h]:1"',
            "endpoints[0].address: brackets are for an IPv6 host, got '[h]:1'",
        ),
        (
            '[[endpoints]]\nid = "a\\nb"\naddress = "h:1"',
            "endpoints[0].id: a name has no line breaks or other control characters, got 'a\\nb'",
        ),
        (ENDPOINT + 'server_name = "a b"', "endpoints[0].server_name: 'a b' is no name of a host"),
        ('[[endpoints]]\nid = "a"\naddress = "h:0"', "endpoints[0].address: a server needs its real port, got 'h:0'"),
        (ENDPOINT + "wieght = 2", "endpoints[0].wieght: unknown key; did you mean weight?"),
        (ENDPOINT + "colour = 2", "endpoints[0].colour: unknown key; the known ones are id, address, weight"),
        (ENDPOINT + "[lisener]", "lisener: unknown key; did you mean listener?"),
        (ENDPOINT + '[listener]\n"a\\nb" = 1', 'listener."a\\nb": unknown key; the known ones are '),
        (ENDPOINT + "[ring]\nvirtual_nodes = 1.5", "ring.virtual_nodes: must be a whole number, got 1.5"),
        (ENDPOINT + '[ring]\nvirtual_nodes = "100"', 'ring.virtual_nodes: must be a whole number, got "100"'),
        (ENDPOINT + "[ring]\nvirtual_nodes = 0", "ring.virtual_nodes: must be at least 1, got 0"),
        (ENDPOINT + '[ring]\nhash = "md5"', 'ring.hash: must be "murmur3" or "crc32", got "md5"'),
        ("listener = 5\n" + ENDPOINT, "listener: must be a table, got 5"),
        ("listener = 2026-01-01\n" + ENDPOINT, "listener: must be a table, got 2026-01-01"),
        (
            ENDPOINT + "[listener]\nworkers = 0",
            'listener.workers: must be a whole number from 1 to 128, or "auto", got 0',
        ),
        (
            ENDPOINT + '[listener]\nworkers = "all"',
            'listener.workers: must be a whole number from 1 to 128, or "auto", got "all"',
        ),
        (
            ENDPOINT + "[upstream]\nconnect_timeout = 1e-300",
            "upstream.connect_timeout: must be at least 0.001, got 1e-300",
        ),
        (ENDPOINT + "[upstream]\nconnect_timeout = nan", "upstream.connect_timeout: must be a finite number, got nan"),
        (ENDPOINT + "[listener]\nidle_timeout = 1e300", "listener.idle_timeout: must be at most 31536000, got 1e+300"),
        (
            ENDPOINT + "[listener]\nidle_timeout = 1e-300",
            "listener.idle_timeout: must be 0 or at least 0.001, got 1e-300",
        ),
        (ENDPOINT + '[listener]\naddress = "::1:5"', "listener.address: an IPv6 host needs brackets: [::1]:5"),
        (route('method = "Chat"\nkey = { field = "1" }'), "routes[0].method: expected "),
        (route('method = "*"\nkey = { field = "a" }'), "routes[0].key.field: field path 'a' is not field numbers"),
        (route('method = "*"\nkey = { field = 1 }'), "routes[0].key.field: must be text, got 1; in quotes it is"),
        (route('method = "*"\nkey = { feild = "1" }'), "routes[0].key.feild: unknown key; did you mean field?"),
        (
            route('method = "*"\nkey = { metadata = "X-Chat" }'),
            "routes[0].key.metadata: not a metadata name (lower-case letters, digits, '_', '-', '.'): 'X-Chat'",
        ),
        (
            route('method = "*"\nkey = { field = "1", metadata = "x" }'),
            'routes[0].key: give exactly one of field = "NUMBER" and metadata = "NAME"',
        ),
        (
            route('method = "*"\nkey = { field = "1" }\nendpoint = { field = "1" }'),
            "routes[0]: give exactly one of key and endpoint",
        ),
        (route('method = "*"'), "routes[0]: give exactly one of key and endpoint"),
        (
            route('method = "*"\nkey = { field = "1" }\nmissing_key = "drop"'),
            'routes[0].missing_key: must be "least_loaded" or "reject", got "drop"',
        ),
        (ENDPOINT + '[listener]\naddress = "unix:x"', "listener.address: a unix socket needs its whole path"),
        (
            ENDPOINT + '[listener]\nsocket_mode = "888"',
            'listener.socket_mode: must be permissions in octal, such as "0660", got "888"',
        ),
        (
            ENDPOINT + '[tracing]\nendpoint = "collector:4317"',
            'tracing.endpoint: must be http://HOST:PORT or https://HOST:PORT, got "collector:4317"',
        ),
        (ENDPOINT + '[admin]\naddress = "unix:/x"', "admin.address: the admin server has no unix sockets"),
        (ENDPOINT + '[listener.tls]\nkey = "k"', "listener.tls.certificate: is required"),
        (
            ENDPOINT + '[listener.tls]\ncertificate = "c"\nkey = "k"\nallowed_clients = ["a"]',
            "listener.tls: allowed_clients needs client_ca",
        ),
        (
            ENDPOINT + '[upstream.tls]\nca = "a"\ncertificate = "c"',
            "upstream.tls: certificate and key must be given together",
        ),
        (
            '[[endpoints]]\nid = "a"\naddress = "unix:/x"\n[upstream.tls]\nca = "a"',
            "endpoints[0].server_name: is required: a unix socket has no host that a certificate names",
        ),
        (
            ENDPOINT + "[log]\nslow_calls = 1\n[metrics]\nenabled = false",
            "log.slow_calls: needs metrics.enabled: without, calls are not timed",
        ),
        (
            ENDPOINT + '[listener]\naddress = "127.0.0.1:50051"',
            "endpoints[0].address: is the listener's: every call would come back for ever",
        ),
        (
            ENDPOINT + '[listener]\naddress = "0.0.0.0:50051"',
            "endpoints[0].address: is the listener's: every call would come back for ever",
        ),
        (
            '[[endpoints]]\nid = "a"\naddress = "unix:/x"\n[listener]\naddress = "unix:/x"',
            "endpoints[0].address: is the listener's: every call would come back for ever",
        ),
        (
            ENDPOINT + '[listener]\naddress = "[::]:9901"',
            "admin.address: is the listener's: give it a port of its own",
        ),
        (
            ENDPOINT + "weight = 900\n[ring]\nvirtual_nodes = 10_000",
            "ring.virtual_nodes: makes 9,000,000 points with the weights there are, more than 8,388,608: ",
        ),
        *(
            (routes(before, method), "routes[1].method: is never reached: routes[0] takes its calls")
            for before, method in (
                ("*", "/a.B/C"),
                ("*", "*"),
                ("/a.B/*", "/a.B/C"),
                ("/a.B/*", "/a.B/*"),
                ("/a.B/C",) * 2,
            )
        ),
    ],
)
def test_a_mistake_is_one_line_that_starts_with_its_key_path(file, text, line):
    [found] = problems(file(text))
    assert found == line or (found.startswith(line) and "\n" not in found)


@pytest.mark.parametrize("missing", ["opentelemetry", "opentelemetry.sdk"])
def test_tracing_without_its_extra_is_a_mistake(file, monkeypatch, missing):
    monkeypatch.delitem(sys.modules, "opentelemetry.sdk", raising=False)
    monkeypatch.setitem(sys.modules, missing, None)  # what Python takes for: not there
    text = ENDPOINT + '[tracing]\nendpoint = "http://collector:4317"'
    assert problems(file(text)) == ["tracing: endpoint needs the extra otel: pip install '.[otel]' in a clone"]


@pytest.mark.parametrize("listener", ["127.0.0.1:0", "10.0.0.1:50051", "127.0.0.1:50050", "unix:/x"])
def test_a_port_of_another_address_is_another_port(file, listener):
    load_settings(file(ENDPOINT + f'[listener]\naddress = "{listener}"'), {})


@pytest.mark.parametrize(
    ("first", "second"), [("/a.B/C", "/a.B/*"), ("/a.B/*", "/a.Bc/*"), ("/a.B/*", "*"), ("/a/C", "/b/C")]
)
def test_a_route_may_stand_before_a_wider_one(file, first, second):
    load_settings(file(routes(first, second)), {})


def test_all_mistakes_are_told_at_once(file):
    text = ENDPOINT + "weight = 0\n" + ENDPOINT + '[ring]\nhash = "md5"\n[retry]\nmax_atempts = 3\n'
    assert [line.partition(": ")[0] for line in problems(file(text), {"DISTRICHAT_LISTENER__ADDRESS": "x"})] == [
        "listener.address",
        "ring.hash",
        "endpoints[0].weight",
        "retry.max_atempts",
        "endpoints[1].id",
    ]


def test_a_list_whose_items_are_all_wrong_is_not_also_called_empty(file):
    assert problems(file(ENDPOINT + "weight = 0")) == ["endpoints[0].weight: must be greater than 0, got 0"]


@pytest.mark.parametrize(
    ("text", "place", "reason"),
    [
        ('a = 1\n[listener\naddress = "x"', 2, "Expected ']'"),
        ("a = 1\n\nb = \n", 3, "Invalid value"),
        ('a = """\nnever closed', 2, "Unterminated string"),
        (b"a = 1\nb = '\xff'", 2, "not UTF-8 text"),
    ],
)
def test_bad_toml_is_one_line_with_file_and_line_number(file, text, place, reason):
    path = file(text)
    [line] = problems(path)
    assert line.startswith(f"{path}:{place}: ")
    assert reason in line


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("x = " + "[" * 300 + "]" * 300, "lists or tables are nested too deeply"),
        ("x = " + "{a = " * 5_000 + "1" + "}" * 5_000, "lists or tables are nested too deeply"),
        ("x = " + "1" * 5_000, "a number of thousands of digits"),
    ],
)
def test_a_file_beyond_what_can_be_held_is_one_line(file, text, reason):
    path = file(text)
    assert problems(path) == [f"{path}: cannot be read: {reason}"]


def test_a_variable_beyond_what_can_be_held_is_one_line(file):
    environ = {"DISTRICHAT_LISTENER__MAX_CONNECTIONS": "[" * 100_000}
    assert problems(file(ENDPOINT), environ) == [
        "the environment: cannot be read: lists or tables are nested too deeply"
    ]


def test_a_byte_order_mark_before_the_file_is_no_part_of_it(file):
    assert load_settings(file(b"\xef\xbb\xbf" + ENDPOINT.encode()), {}) == load_settings(file(ENDPOINT), {})


ODD_VALUES = ["0", "-1", "-0.0", "1", "65536", str(2**63), "9" * 30, "1e308", "-1e308", "1e-308", "nan", "-inf", "true"]
ODD_VALUES += ['""', '"x"', r'"\u0000"', r'"\n"', '"' + "x" * 5_000 + '"', "[]", "{}", "[[1]]", "1979-05-27T07:32:00Z"]


def refusals(path: Path) -> list[str]:
    """The problems of a file; none if it is valid."""
    try:
        load_settings(path, {})
    except ConfigError as error:
        return error.problems
    return []


@pytest.mark.parametrize("value", ODD_VALUES, ids=lambda value: value[:20])
def test_whatever_the_value_of_any_key_it_is_taken_or_refused_in_short_lines_that_begin_with_the_key(file, value):
    for key in sorted(keys(Settings)):
        section, _, name = key.partition(".")
        if section in {"endpoints", "routes"}:
            continue  # lists of tables: the rows above
        for line in refusals(file(ENDPOINT + f"[{section}]\n{name} = {value}")):
            assert line.startswith(section)
            assert len(line) < 300
            assert "\n" not in line


SHARES = {
    "listener.premature_resets_per_second",
    "retry.budget_percent",
    "retry.token_ratio",
    "limits.pushback",
    "outlier.success_rate_deviations",
    "outlier.max_ejection_percent",
    "health.interval_jitter_percent",
}
"""Settings that no timer is set by: they may be as small as they like."""


def test_no_setting_is_too_small_for_a_timer_or_too_large_for_a_clock(file):
    for key in sorted(keys(Settings)):
        section, _, name = key.partition(".")
        for value in ("1e308", "1e-308", "9" * 30):
            if key not in SHARES:
                assert refusals(file(ENDPOINT + f"[{section}]\n{name} = {value}"))


def test_a_file_that_is_not_there_or_no_file_is_told_with_the_reason(tmp_path):
    assert problems(tmp_path / "none.toml") == [f"{tmp_path}/none.toml: cannot be read: no such file or directory"]
    assert problems(tmp_path) == [f"{tmp_path}: cannot be read: is a directory"]


def test_the_environment_overrides_the_file_key_by_key(file):
    path = file(ENDPOINT + '[listener]\naddress = "127.0.0.1:1"\ndrain_grace = 7\n[ring]\nhash = "crc32"\n')
    settings = load_settings(
        path,
        {
            "DISTRICHAT_LISTENER__ADDRESS": "0.0.0.0:50050",
            "DISTRICHAT_RING__VIRTUAL_NODES": "512",
            "DISTRICHAT_UPSTREAM__CONNECT_TIMEOUT": "1.5",
            "DISTRICHAT_RETRY": '{"max_attempts": 2}',
        },
    )
    assert settings.listener.address == "0.0.0.0:50050"
    assert settings.listener.drain_grace == 7.0
    assert (settings.ring.virtual_nodes, settings.ring.hash) == (512, "crc32")
    assert settings.upstream.connect_timeout == 1.5
    assert settings.retry.max_attempts == 2


def test_certificates_can_be_named_in_the_environment_alone(file):
    environ = {
        "DISTRICHAT_LISTENER__TLS__CERTIFICATE": "/tls.crt",
        "DISTRICHAT_LISTENER__TLS__KEY": "/tls.key",
        "DISTRICHAT_LISTENER__TLS__CLIENT_CA": "/ca.crt",
        "DISTRICHAT_LISTENER__TLS__ALLOWED_CLIENTS": '["spiffe://test/chat"]',
        "DISTRICHAT_UPSTREAM__TLS__CA": "/ca.crt",
    }
    settings = load_settings(file(ENDPOINT), environ)
    assert settings.listener.tls == ListenerTlsSettings(
        certificate=Path("/tls.crt"),
        key=Path("/tls.key"),
        client_ca=Path("/ca.crt"),
        allowed_clients=("spiffe://test/chat",),
    )
    assert settings.upstream.tls == UpstreamTlsSettings(ca=Path("/ca.crt"))


def test_a_server_on_a_unix_socket_needs_a_name_only_where_one_is_verified(file):
    endpoint = '[[endpoints]]\nid = "a"\naddress = "unix:/x"\n'
    for lines in ("tls = false\n", 'server_name = "a.test"\n'):
        load_settings(file(endpoint + lines + '[upstream.tls]\nca = "a"'), {})
    for key in ('server_name = "a.test"', 'allowed_servers = ["spiffe://test/a"]'):
        load_settings(file(endpoint + f'[upstream.tls]\nca = "a"\n{key}'), {})


def test_a_list_in_the_environment_is_json_and_replaces_the_files(file):
    environ = {"DISTRICHAT_ENDPOINTS": '[{"id": "X", "address": "h:1", "weight": 2}]'}
    expected = (EndpointSettings(id="X", address="h:1", weight=2.0),)
    assert load_settings(file(ENDPOINT + SECOND), environ).endpoints == expected
    assert load_settings(None, environ).endpoints == expected


@pytest.mark.parametrize(
    ("name", "value", "line"),
    [
        (
            "DISTRICHAT_LISTENER__ADDRESS",
            "nowhere",
            "listener.address: expected host:port or unix:/path, got 'nowhere' (from DISTRICHAT_LISTENER__ADDRESS)",
        ),
        (
            "DISTRICHAT_RING__VIRTUAL_NODES",
            "many",
            'ring.virtual_nodes: must be a whole number, got "many" (from DISTRICHAT_RING__VIRTUAL_NODES)',
        ),
        (
            "DISTRICHAT_LISTENER__ADRESS",
            "h:1",
            "listener.adress: unknown key; did you mean address? (from DISTRICHAT_LISTENER__ADRESS)",
        ),
        (
            "DISTRICHAT_LISTNER__ADDRESS",
            "h:1",
            "listner.address: unknown key; did you mean listener? (from DISTRICHAT_LISTNER__ADDRESS)",
        ),
        ("DISTRICHAT_ENDPOINT", "[]", "endpoint: unknown key; did you mean endpoints? (from DISTRICHAT_ENDPOINT)"),
        (
            "DISTRICHAT_ENDPOINTS",
            "[{",
            'endpoints: must be a list, got "[{" (from DISTRICHAT_ENDPOINTS, which must be JSON: ',
        ),
        (
            "DISTRICHAT_ENDPOINTS__0__WEIGHT",
            "2",
            "endpoints: must be a list, got a table (from DISTRICHAT_ENDPOINTS__0__WEIGHT; the environment sets a list",
        ),
        (
            "DISTRICHAT_ENDPOINTS",
            '[{"id": "a", "address": "h:1", "weight": 0}]',
            "endpoints[0].weight: must be greater than 0, got 0 (from DISTRICHAT_ENDPOINTS)",
        ),
        ("DISTRICHAT_LISTENER__ADDRESS", "\udcff", "listener.address: must be UTF-8 text"),
    ],
)
def test_a_mistake_in_the_environment_names_key_and_variable(file, name, value, line):
    [found] = problems(file(ENDPOINT), {name: value})
    assert found.startswith(line)


def test_variables_of_others_are_left_alone(file):
    others = {
        "DISTRICHAT_BACKEND_STORE__URL": "memory:",
        "DISTRICHAT_SERVICE_HOST": "10.0.0.1",  # what Kubernetes sets for a service named districhat
        "DISTRICHAT_PORT_50050_TCP": "tcp://10.0.0.1:50050",
        "LISTENER__ADDRESS": "x",
    }
    assert load_settings(file(ENDPOINT), others) == load_settings(file(ENDPOINT), {})


def test_without_an_argument_the_environment_is_the_processes_own(file, monkeypatch):
    monkeypatch.setenv("DISTRICHAT_RETRY__MAX_ATTEMPTS", "1")
    assert load_settings(file(ENDPOINT)).retry.max_attempts == 1


def test_settings_made_directly_read_no_environment_and_refuse_duplicates(monkeypatch):
    monkeypatch.setenv("DISTRICHAT_LISTENER__ADDRESS", "0.0.0.0:1")
    endpoint = EndpointSettings(id="a", address="h:1")
    assert Settings(endpoints=(endpoint,)).listener.address == "127.0.0.1:50050"
    with pytest.raises(ValidationError, match="duplicate id"):
        Settings(endpoints=(endpoint, endpoint))


def test_settings_are_immutable(file):
    settings = load_settings(file(ENDPOINT), {})
    with pytest.raises(ValidationError):
        settings.routes = ()


def test_the_minimal_configuration_is_the_endpoints_alone():
    settings = load_settings(CONFIG / "minimal.toml", {})
    servers = [
        EndpointSettings(id=f"Server-{letter}", address=f"127.0.0.1:{port}")
        for letter, port in (("A", 50051), ("B", 50052), ("C", 50053))
    ]
    assert settings == Settings(endpoints=tuple(servers))
    assert settings.model_fields_set == {"endpoints"}


def keys(model: type[BaseModel], prefix: str = "") -> set[str]:
    """Every key a configuration can have, lists without their index: `endpoints.weight`."""
    found = set()
    for name, field in model.model_fields.items():
        inner = [field.annotation, *get_args(field.annotation)]
        models = [each for each in inner if isinstance(each, type) and issubclass(each, BaseModel)]
        found |= keys(models[0], f"{prefix}{name}.") if models else {f"{prefix}{name}"}
    return found


def given(value: object, prefix: str = "") -> set[str]:
    """The keys that a configuration gave."""
    if isinstance(value, tuple):
        return set().union(*(given(each, prefix) for each in value))
    if isinstance(value, BaseModel):
        return set().union(*(given(getattr(value, name), f"{prefix}.{name}") for name in value.model_fields_set))
    return {prefix[1:]}


def test_the_full_configuration_gives_every_key_with_its_default():
    settings = load_settings(CONFIG / "proxy.toml", {})
    # A key and an endpoint are said in the same ways: showing each once is enough.
    shown = {key.replace("routes.endpoint.", "routes.key.") for key in given(settings)}
    missing = {key.replace("routes.endpoint.", "routes.key.") for key in keys(Settings)} - shown
    # What is not set by default cannot be given with its default; its example stands in a comment.
    comments = [line for line in (CONFIG / "proxy.toml").read_text().splitlines() if line.startswith("# ")]
    assert not [key for key in missing if not any(line.startswith(f"# {key.split('.')[-1]} = ") for line in comments)]
    minimal = load_settings(CONFIG / "minimal.toml", {})
    assert settings.model_copy(update={"routes": ()}) == minimal
    assert settings.routes == BUILT_IN_ROUTES
