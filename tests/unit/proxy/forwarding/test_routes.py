from __future__ import annotations

import pytest
from pydantic import ValidationError

from proxy.forwarding.routes import RouteTable
from proxy.forwarding.settings import KeySource, RouteSettings


def route(method: str, field: str = "1") -> RouteSettings:
    return RouteSettings(method=method, key=KeySource(field=field))


@pytest.mark.parametrize(
    ("pattern", "method", "matches"),
    [
        ("/a.B/C", "/a.B/C", True),
        ("/a.B/C", "/a.B/CD", False),
        ("/a.B/*", "/a.B/C", True),
        ("/a.B/*", "/a.B/", True),
        ("/a.B/*", "/a.BC/D", False),
        ("/a.B/*", "/a.B/C/D", False),
        ("*", "/any.Service/Method", True),
        ("*", "", True),
    ],
)
def test_a_pattern_is_a_method_a_service_or_everything(pattern: str, method: str, matches: bool) -> None:
    found = RouteTable([route(pattern, "7")]).find(method)
    assert (found.method == pattern) is (matches or found.method == pattern == "*")
    assert (found.path is not None and found.metadata is None and found.method == pattern) is matches


def test_the_first_configured_route_that_matches_wins_over_later_and_built_in_ones() -> None:
    table = RouteTable([route("/chat.ChatService/Chat", "2"), route("/chat.ChatService/*", "3"), route("*", "4")])
    assert table.find("/chat.ChatService/Chat").method == "/chat.ChatService/Chat"
    assert table.find("/chat.ChatService/PostMessage").method == "/chat.ChatService/*"
    assert table.find("/other.Service/Any").method == "*"


def test_the_built_in_routes_know_the_chat_service() -> None:
    table = RouteTable([])
    assert table.find("/chat.ChatService/GetCacheStats").by_id
    for method in ("PostMessage", "StreamReply", "Chat", "HealthCheck", "SomethingNew"):
        found = table.find(f"/chat.ChatService/{method}")
        assert not found.by_id
        assert found.path is not None
    assert table.find("/grpc.health.v1.Health/Check").metadata == b"x-chat-id"


def test_only_the_unary_methods_of_the_chat_service_have_a_timeout() -> None:
    table = RouteTable([])
    timeouts = {
        name: table.find(f"/chat.ChatService/{name}").timeout for name in ("PostMessage", "StreamReply", "Chat")
    }
    assert timeouts == {"PostMessage": 10.0, "StreamReply": None, "Chat": None}


@pytest.mark.parametrize(
    "bad",
    [
        {"method": "chat.ChatService/X", "key": {"field": "1"}},
        {"method": "/a/b/c", "key": {"field": "1"}},
        {"method": "/a.*/b", "key": {"field": "1"}},
        {"method": "*"},
        {"method": "*", "key": {"field": "1"}, "endpoint": {"field": "1"}},
        {"method": "*", "key": {}},
        {"method": "*", "key": {"field": "1", "metadata": "x"}},
        {"method": "*", "key": {"field": "0"}},
        {"method": "*", "key": {"field": "1.x"}},
        {"method": "*", "key": {"metadata": "X-Upper"}},
        {"method": "*", "key": {"metadata": "a b"}},
        {"method": "*", "key": {"field": "1"}, "missing_key": "hash"},
        {"method": "*", "key": {"field": "1"}, "timeout": 0},
        {"method": "*", "key": {"field": "1"}, "unknown": 1},
    ],
)
def test_an_impossible_route_is_refused(bad: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        RouteSettings.model_validate(bad)
