"""What a call costs in the HTTP/2 engine alone: the calls that a proxy cannot do without, and nothing between them."""

from __future__ import annotations

from time import perf_counter

from proxy.http2 import Limits, client_engine, server_engine

_LIMITS = Limits(1000, 262_144, 16_384, 100)
_REQUEST = (
    (b":method", b"POST"),
    (b":scheme", b"http"),
    (b":path", b"/chat.ChatService/PostMessage"),
    (b":authority", b"chat.test"),
    (b"content-type", b"application/grpc"),
    (b"te", b"trailers"),
)
_RESPONSE = ((b":status", b"200"), (b"content-type", b"application/grpc"))
_TRAILERS = ((b"grpc-status", b"0"),)


class EngineAlone:
    """A client, the two engines of a proxy, a server. Only what the two do is timed."""

    def __init__(self, body: bytes) -> None:
        self._body = body
        self._client, self._server = client_engine(_LIMITS), server_engine(_LIMITS)
        self._down, self._up = server_engine(_LIMITS), client_engine(_LIMITS)
        for one, other in ((self._client, self._down), (self._up, self._server)):
            for _ in range(3):
                other.receive_data(one.data_to_send())
                one.receive_data(other.data_to_send())
                one.events()
                other.events()

    def call(self) -> float:
        """One unary call; the seconds it took in the proxy's engines."""
        client, server, down, up, body = self._client, self._server, self._down, self._up, self._body
        client.send_data(client.send_request(_REQUEST), body, end_stream=True)
        request = client.data_to_send()
        start = perf_counter()
        down.receive_data(request)
        asked, data = down.events()[:2]
        up_sid = up.send_request(asked.headers)  # type: ignore[attr-defined]  # a RequestReceived
        up.send_data(up_sid, data.data, end_stream=True)  # type: ignore[attr-defined]  # a DataReceived
        request = up.data_to_send()
        up.events()
        seconds = perf_counter() - start
        server.receive_data(request)
        sid = server.events()[0].stream_id  # type: ignore[attr-defined]  # a RequestReceived
        server.send_response(sid, _RESPONSE)
        server.send_data(sid, body)
        server.send_trailers(sid, _TRAILERS)
        server.acknowledge_received_data(len(body), sid)
        response = server.data_to_send()
        server.events()
        start = perf_counter()
        up.receive_data(response)
        answered, data, ended = up.events()[:3]
        down_sid = asked.stream_id  # type: ignore[attr-defined]  # see above
        down.send_response(down_sid, answered.headers)  # type: ignore[attr-defined]  # a ResponseReceived
        down.send_data(down_sid, data.data)  # type: ignore[attr-defined]  # a DataReceived
        down.send_trailers(down_sid, ended.headers)  # type: ignore[attr-defined]  # a TrailersReceived
        down.acknowledge_received_data(len(body), down_sid)
        up.acknowledge_received_data(len(body), up_sid)
        response = down.data_to_send()
        down.events()
        seconds += perf_counter() - start
        client.receive_data(response)
        client.events()
        client.acknowledge_received_data(len(body), down_sid)
        return seconds
