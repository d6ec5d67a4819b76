"""Channels of grpcio to a server, for questions about it: apart from the data path, in cleartext or over TLS.

Over TLS, grpcio verifies a server by its name. Where servers are known by identities instead, `TlsRelay` does.
"""

from __future__ import annotations

import grpc
import grpc.aio

from proxy.cluster.address import Address
from proxy.control.tls_relay import TlsRelay
from proxy.transport.tls import EndpointTls, Pem


class EndpointChannel:
    """A channel to one server, made when it is first needed, and again after `close`."""

    def __init__(self, address: Address, tls: EndpointTls | None, timeout: float, user_agent: str) -> None:
        """`tls`: None: cleartext. `timeout`: seconds that a connect may take."""
        self._address = address
        self._tls = tls
        self._timeout = timeout
        self._user_agent = user_agent
        self._pem: Pem | None = None
        """What the channel's credentials were made of."""
        self._relay: TlsRelay | None = None
        """Of the channel, where servers are known by their identities."""
        self._channel: grpc.aio.Channel | None = None

    @property
    def objection(self) -> str:
        """Why the server could not be connected to, as far as grpcio does not know it; empty: nothing is known."""
        return self._relay.why if self._relay is not None else ""

    async def connected(self) -> grpc.aio.Channel:
        """The channel; another one than before if the certificates have changed. Raises OSError or ValueError."""
        tls = self._tls
        if tls is not None and tls.tls.pem is not self._pem:
            await self.close()
        if self._channel is None:
            options: list[tuple[str, int | str]] = [
                ("grpc.use_local_subchannel_pool", 1),  # or a fresh channel would inherit the back-off of the old
                ("grpc.min_reconnect_backoff_ms", max(100, int(self._timeout * 1000))),  # limit of a connect
                ("grpc.enable_retries", 0),
                ("grpc.enable_http_proxy", 0),
                ("grpc.service_config_disable_resolution", 1),  # a TXT look-up for each connect
                ("grpc.max_receive_message_length", 65_536),
                ("grpc.primary_user_agent", self._user_agent),
            ]
            target = str(self._address) if self._address.path else f"dns:///{self._address}"
            if tls is None:
                self._channel = grpc.aio.insecure_channel(target, options=options)
                return self._channel
            pem = self._pem = tls.tls.pem
            if tls.tls.by_identity:
                self._relay = await TlsRelay.open(self._address, tls)
                self._channel = grpc.aio.insecure_channel(self._relay.target, options=options)
            else:
                options.append(("grpc.ssl_target_name_override", tls.server_name))
                credentials = grpc.ssl_channel_credentials(pem.ca, pem.key, pem.chain)
                self._channel = grpc.aio.secure_channel(target, credentials, options=options)
        return self._channel

    async def close(self) -> None:
        """Close the connection, which ends the calls on it. May be called twice."""
        channel, self._channel = self._channel, None
        relay, self._relay = self._relay, None
        if channel is not None:
            await channel.close()
        if relay is not None:
            await relay.close()
