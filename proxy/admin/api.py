"""The requests of the admin API and their answers. See `schema` for what they hold."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import cache
from http import HTTPStatus
from typing import Final, TypeVar

from aiohttp import web
from pydantic import BaseModel, ValidationError

from proxy.admin import metrics, schema
from proxy.admin.events import Subscription
from proxy.admin.guard import ProblemError
from proxy.admin.ports import AdminPort, LastServerError, ReloadRefusedError
from proxy.admin.ring_view import RingView, RingViews
from proxy.admin.slices import sliced
from proxy.balancing import plan
from proxy.balancing.errors import DuplicateNodeError, UnknownNodeError
from proxy.balancing.hashing import RING_SIZE
from proxy.balancing.ring import RingSnapshot
from proxy.balancing.settings import MAX_RING
from proxy.cluster.settings import EndpointSettings
from proxy.transport.slices import in_passes

HEARTBEAT: Final = 15.0
"""Seconds after which a stream of events says that it is alive; proxies in between give up after a minute or so."""
MAX_KEY: Final = 4096
"""Bytes of the longest key that is explained."""
DECISIONS: Final = 100
MAX_DECISIONS: Final = 1000
CANDIDATES: Final = 16
MAX_CANDIDATES: Final = 100

_Body = TypeVar("_Body", bound=BaseModel)


class Api:
    """Handlers of the requests. `routes` lists them."""

    def __init__(self, proxy: AdminPort, views: RingViews, *, max_watchers: int) -> None:
        self._proxy = proxy
        self._views = views
        self._max_watchers = max_watchers
        self._ring: tuple[RingView, bytes] | None = None
        """The latest one's body: only the first to ask waits for it to be made."""

    def routes(self) -> list[web.RouteDef]:
        """Every path and its handler."""
        return [
            web.get("/livez", self.livez),
            web.get("/readyz", self.readyz),
            web.get("/metrics", self.metrics),
            web.get("/api/schema", self.json_schema),
            web.get("/api/config", self.config),
            web.get("/api/endpoints", self.endpoints),
            web.get("/api/ring", self.ring),
            web.get("/api/explain", self.explain),
            web.get("/api/decisions", self.decisions),
            web.get("/api/plan", self.plan),
            web.get("/api/events", self.events),
            web.post("/api/endpoints/{id}/drain", self.drain),
            web.post("/api/endpoints/{id}/undrain", self.undrain),
            web.post("/api/reload", self.reload),
        ]

    async def livez(self, _request: web.Request) -> web.Response:
        """The process runs and its event loop turns."""
        return _json(schema.Health(status="ok"))

    async def readyz(self, _request: web.Request) -> web.Response:
        """Clients may be sent here."""
        reason = self._proxy.not_ready()
        if reason:
            return _json(schema.Health(status="unavailable", reason=reason), HTTPStatus.SERVICE_UNAVAILABLE)
        return _json(schema.Health(status="ok"))

    async def metrics(self, _request: web.Request) -> web.Response:
        """What Prometheus reads."""
        text = await metrics.render(await self._proxy.statistics())
        return web.Response(body=text, headers={"Content-Type": metrics.CONTENT_TYPE})

    async def json_schema(self, _request: web.Request) -> web.Response:
        """The JSON schema of all bodies."""
        return web.Response(body=_schema(), content_type="application/json")

    async def config(self, _request: web.Request) -> web.Response:
        """The settings that hold."""
        return _json(schema.Config(settings=self._proxy.config()))

    async def endpoints(self, _request: web.Request) -> web.Response:
        """Every server."""
        told = await self._proxy.endpoints()
        body = await _listed(told.model_copy(update={"endpoints": ()}), "endpoints", told.endpoints)
        return web.Response(body=body, content_type="application/json")

    async def ring(self, request: web.Request) -> web.StreamResponse:
        """The ring: large, so it is made in slices, kept, and not made again for who has it."""
        snapshot = self._proxy.snapshot()
        view = await self._views.of(self._proxy.ring())
        tag = f'"{snapshot.version}-{snapshot.fingerprint}"'
        if request.headers.get("If-None-Match") == tag:
            return web.Response(status=HTTPStatus.NOT_MODIFIED, headers={"ETag": tag})
        body = await self._ring_body(view, snapshot)
        return web.Response(body=body, content_type="application/json", headers={"ETag": tag})

    async def _ring_body(self, view: RingView, snapshot: schema.Snapshot) -> bytes:
        if self._ring is None or self._ring[0] is not view:
            empty = schema.Ring(snapshot=snapshot, hash=view.ring.layout, ring_size=RING_SIZE, members=())
            members = (
                schema.RingMember(
                    id=node.id, virtual_nodes=node.vnodes, share=view.shares[index], arcs=view.arcs(index)
                )
                for index, node in enumerate(view.ring.nodes)
            )
            self._ring = view, await _listed(empty, "members", members)
        return self._ring[1]

    async def explain(self, request: web.Request) -> web.Response:
        """Where a key goes, and why. `key`: UTF-8 text, or `key_hex`: any bytes."""
        query = request.query
        if "key_hex" in query:
            try:
                key = bytes.fromhex(query["key_hex"])
            except ValueError as error:
                raise ProblemError(HTTPStatus.BAD_REQUEST, "key_hex: not hexadecimal digits") from error
        else:
            key = query.get("key", "").encode("utf-8", "surrogateescape")
        if not key:
            raise ProblemError(HTTPStatus.BAD_REQUEST, "say which key: /api/explain?key=CHAT_ID")
        if len(key) > MAX_KEY:
            raise ProblemError(HTTPStatus.BAD_REQUEST, f"a key of {len(key)} bytes; the most is {MAX_KEY}")
        limit = whole_number(query.get("candidates", str(CANDIDATES)), "candidates", 1, MAX_CANDIDATES)
        return _json(await self._proxy.explain(key, limit))

    async def decisions(self, request: web.Request) -> web.Response:
        """Where the latest calls went. `key`: those of one chat."""
        limit = whole_number(request.query.get("limit", str(DECISIONS)), "limit", 1, MAX_DECISIONS)
        key = request.query.get("key")
        return _json(
            await self._proxy.decisions(limit, None if key is None else key.encode("utf-8", "surrogateescape"))
        )

    async def plan(self, request: web.Request) -> web.Response:
        """What a change of the members would move."""
        query = request.query
        if not query or query.keys() - {"add", "remove", "reweight"}:
            raise ProblemError(
                HTTPStatus.BAD_REQUEST,
                "say what shall change: add=ID=WEIGHT, remove=ID, reweight=ID=WEIGHT, each as often as wanted",
            )
        snapshot, before = self._proxy.snapshot(), self._proxy.ring()
        try:
            nodes = plan.changed(
                before.nodes,
                self._proxy.virtual_nodes(),
                add=weights(query.getall("add", []), "add"),
                remove=set(query.getall("remove", [])),
                reweight=weights(query.getall("reweight", []), "reweight", needed=True),
            )
        except UnknownNodeError as error:
            raise no_such_endpoint(error.node_id) from error
        except DuplicateNodeError as error:
            known = any(node.id == error.node_id for node in before.nodes)
            named = bool({"remove", "reweight"} & query.keys())
            detail = f"{error.node_id!r} is " + ("a server already" if known and not named else "named twice")
            raise ProblemError(HTTPStatus.BAD_REQUEST, detail) from error
        if not nodes:
            raise ProblemError(HTTPStatus.BAD_REQUEST, "no server would be left")
        if (points := sum(node.vnodes for node in nodes)) > MAX_RING:
            raise ProblemError(HTTPStatus.BAD_REQUEST, f"{points:,} virtual nodes are more than {MAX_RING:,}")
        after = await in_passes(RingSnapshot.building(nodes, before.layout))
        keys = tuple(await self._proxy.recent_keys())
        found = await in_passes(plan.planning(before, after, keys))
        shares = (await in_passes(RingView.building(after))).shares
        return _json(
            schema.Plan(
                snapshot=snapshot,
                fingerprint=after.fingerprint,
                moved_share=sum(found.places.values()) / RING_SIZE,
                recent_chats=len(keys),
                moved_chats=sum(found.keys.values()),
                moves=_moves(found),
                shares={node.id: share for node, share in zip(after.nodes, shares, strict=True)},
            )
        )

    async def drain(self, request: web.Request) -> web.Response:
        """New calls walk past the server."""
        body = await _read(request, schema.DrainRequest)
        try:
            return _json(await self._proxy.drain(request.match_info["id"], body.reason, force=body.force))
        except KeyError:
            raise no_such_endpoint(request.match_info["id"]) from None
        except LastServerError as error:
            detail = f'{error}; with force ({{"force": true}}, --force) it is drained all the same'
            raise ProblemError(HTTPStatus.CONFLICT, detail) from error

    async def undrain(self, request: web.Request) -> web.Response:
        """The operator gives the server back."""
        await _read(request, schema.Empty)
        try:
            return _json(await self._proxy.undrain(request.match_info["id"]))
        except KeyError:
            raise no_such_endpoint(request.match_info["id"]) from None

    async def reload(self, request: web.Request) -> web.Response:
        """Read the configuration again."""
        await _read(request, schema.Empty)
        try:
            return _json(await self._proxy.reload())
        except ReloadRefusedError as error:
            raise ProblemError(
                HTTPStatus.CONFLICT,
                "the configuration was not applied, nothing has changed",
                problems=tuple(error.problems),
            ) from error

    async def events(self, request: web.Request) -> web.StreamResponse:
        """What happens, as server-sent events (HTML standard, section 9.2)."""
        bus = self._proxy.events
        if bus.listeners >= self._max_watchers:
            raise ProblemError(
                HTTPStatus.SERVICE_UNAVAILABLE, f"{self._max_watchers} clients are watching events already"
            )
        last = request.headers.get("Last-Event-ID", request.query.get("after", ""))
        after = int(last) if last.isascii() and last.isdigit() and len(last) < 16 else None
        with bus.subscribe(after) as subscription:
            response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-store"})
            # Nobody says goodbye who closes a page: it is seen when something is written.
            with suppress(ConnectionResetError):
                await response.prepare(request)
                await response.write(b": the events of this proxy\n\n")
                await _pass_on(subscription, response)
            return response


async def _pass_on(subscription: Subscription, response: web.StreamResponse) -> None:
    """Write events until there will be no more. Raises ConnectionResetError if the reader is gone."""
    while True:
        try:
            async with asyncio.timeout(HEARTBEAT):
                events = await subscription.next()
        except TimeoutError:
            await response.write(b": still here\n\n")
            continue
        if events is None:
            return
        await response.write(b"".join(map(_message, events)))


def _message(event: schema.Event) -> bytes:
    return f"id: {event.id}\nevent: {event.type}\ndata: {event.model_dump_json()}\n\n".encode()


@cache
def _schema() -> bytes:
    return json.dumps(schema.json_schema()).encode()


async def _listed(body: BaseModel, field: str, items: Iterable[BaseModel]) -> bytes:
    """`body`, whose `field` is an empty list, as JSON with these items in that list. Made in slices."""
    pieces = [each.model_dump_json() async for each in sliced(items)]
    start, end = body.model_dump_json().split(f'"{field}":[]', 1)
    return f'{start}"{field}":[{",".join(pieces)}]{end}'.encode()


def _json(body: BaseModel, status: HTTPStatus = HTTPStatus.OK) -> web.Response:
    return web.Response(body=body.model_dump_json().encode(), status=status, content_type="application/json")


def whole_number(text: str, name: str, least: int, most: int) -> int:
    """A number of a query. Raises ProblemError."""
    if not (text.isascii() and text.isdigit() and len(text) < 10 and least <= int(text) <= most):
        raise ProblemError(HTTPStatus.BAD_REQUEST, f"{name}: a whole number from {least} to {most}, got {text!r}")
    return int(text)


def _moves(found: plan.Plan) -> tuple[schema.Move, ...]:
    moves = [
        schema.Move(source=pair[0], target=pair[1], share=places / RING_SIZE, chats=found.keys.get(pair, 0))
        for pair, places in found.places.items()
    ]
    return tuple(sorted(moves, key=lambda move: -move.share))


def weights(values: Sequence[str], name: str, *, needed: bool = False) -> dict[str, float]:
    """Weights by id, of `ID=WEIGHT` each; without a weight it is 1, unless one is `needed`. Raises ProblemError."""
    found: dict[str, float] = {}
    for value in values:
        endpoint_id, separator, text = value.rpartition("=")
        if not separator:
            endpoint_id, text = value, "" if needed else "1"
        try:
            settings = EndpointSettings(id=endpoint_id, address="plan:1", weight=float(text))
        except ValueError as error:
            detail = f"{name}: expected ID=WEIGHT with a weight above 0, at most 1000, got {value!r}"
            raise ProblemError(HTTPStatus.BAD_REQUEST, detail) from error
        if endpoint_id in found:
            raise ProblemError(HTTPStatus.BAD_REQUEST, f"{endpoint_id!r} is named twice")
        found[endpoint_id] = settings.weight
    return found


async def _read(request: web.Request, model: type[_Body]) -> _Body:
    data = await request.read() or b"{}"
    try:
        return model.model_validate_json(data, strict=True)
    except ValidationError as error:
        problems = tuple(
            f"{'.'.join(map(str, each['loc'])) or 'body'}: {each['msg']}" for each in error.errors(include_url=False)
        )
        raise ProblemError(
            HTTPStatus.BAD_REQUEST, f"the body is not what it should be ({problems[0]})", problems=problems
        ) from error


def no_such_endpoint(endpoint_id: str) -> ProblemError:
    """What is said of an id that nobody has."""
    return ProblemError(
        HTTPStatus.NOT_FOUND,
        f"no endpoint has the id {endpoint_id!r}; /api/endpoints and `districhat status` list them",
    )
