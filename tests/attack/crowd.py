"""A hundred well-behaved clients and three servers, as a process of their own: `python -m tests.attack.crowd`.

Prints the servers' addresses as a line of JSON, reads the addresses of two proxies and the clients' chats from another
on stdin, and from then on prints a line for every call that ends: by which way (`proxy`, or `control` for those of the
control group), when (time.monotonic(), which is the same clock for all processes), how many seconds it took, and the
name of its status. Ends when stdin does.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time

import grpc
import grpc.aio

from tests.support.grpc_server import CLIENT_OPTIONS, EchoServer
from tests.support.messages import keyed

STREAMS = 20
"""Clients with one long stream instead of short calls."""
PAUSE = 0.5
"""Seconds between two calls of a client, at most."""
DEADLINE = 30.0
CONTROLS = 50
"""Clients of a proxy that nobody attacks: what slows them down too is the machine's doing."""


def report(started: float, status: grpc.StatusCode, way: str = "proxy") -> None:
    now = time.monotonic()
    sys.stdout.write(f"{way} {now} {now - started} {status.name}\n")


async def call_again_and_again(channel: grpc.aio.Channel, message: bytes, way: str = "proxy") -> None:
    call = channel.unary_unary("/chat.ChatService/Unary")
    while True:
        started = time.monotonic()
        try:
            answer = await call(message, timeout=DEADLINE)
            report(started, grpc.StatusCode.OK if answer == message else grpc.StatusCode.DATA_LOSS, way)
        except grpc.aio.AioRpcError as error:
            report(started, error.code(), way)
        await asyncio.sleep(random.random() * PAUSE)


async def talk_on_one_stream(channel: grpc.aio.Channel, message: bytes) -> None:
    """Each message and its echo counts as a call."""
    while True:
        stream = channel.stream_stream("/chat.ChatService/Talk")()
        started = time.monotonic()
        try:
            while True:
                started = time.monotonic()
                await stream.write(message)
                answer = await stream.read()
                if answer != message:
                    report(started, await stream.code() if answer is grpc.aio.EOF else grpc.StatusCode.DATA_LOSS)
                    break
                report(started, grpc.StatusCode.OK)
                await asyncio.sleep(random.random() * PAUSE)
        except grpc.aio.AioRpcError as error:
            report(started, error.code())


async def main() -> None:
    servers = [EchoServer(f"Server-{name}") for name in "ABC"]
    for server in servers:
        await server.start()
    print(json.dumps({server.id: server.address for server in servers}), flush=True)
    loop = asyncio.get_running_loop()
    orders = json.loads(await loop.run_in_executor(None, sys.stdin.readline))
    channels = [grpc.aio.insecure_channel(orders["address"], options=CLIENT_OPTIONS) for _ in orders["chats"]]
    clients = []
    for number, (channel, chat) in enumerate(zip(channels, orders["chats"], strict=True)):
        await channel.channel_ready()
        serve = talk_on_one_stream if number < STREAMS else call_again_and_again
        clients.append(loop.create_task(serve(channel, keyed(chat)), name=f"client {number}"))
    controls = [grpc.aio.insecure_channel(orders["control"], options=CLIENT_OPTIONS) for _ in range(CONTROLS)]
    for number, (channel, chat) in enumerate(zip(controls, orders["chats"], strict=False)):
        await channel.channel_ready()
        task = loop.create_task(call_again_and_again(channel, keyed(chat), "control"), name=f"control {number}")
        clients.append(task)
    over = loop.run_in_executor(None, sys.stdin.read)
    while not over.done():
        sys.stdout.flush()
        await asyncio.sleep(0.02)
    for task in clients:
        task.cancel()
    await asyncio.wait(clients)
    for channel in (*channels, *controls):
        await channel.close()
    for server in servers:
        await server.stop()


if __name__ == "__main__":
    asyncio.run(main())
