"""Who may ask: token, Host, Origin, content type; and errors as problem+json.

A port on loopback is open to every program of this machine, a browser with a foreign page in it among them. Such a
page can send simple requests anywhere (CSRF), and by DNS rebinding even reads the answers. So without a token the Host
header must be a name of ours, and a POST must be JSON, which a foreign page may not send without asking first (Fetch
standard, "CORS-safelisted request-header").
"""

from __future__ import annotations

import hmac
import logging
from http import HTTPStatus
from typing import Final

from aiohttp import hdrs, web
from aiohttp.typedefs import Handler, Middleware

from proxy.admin.schema import Problem
from proxy.admin.settings import AdminSettings
from proxy.cluster.address import Address

log = logging.getLogger(__name__)

OPEN: Final = frozenset({"/livez", "/readyz"})
"""Paths that probes ask without a token; they tell nothing else."""

_HEADERS: Final = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class ProblemError(Exception):
    """A request that is refused. Becomes a problem+json response."""

    def __init__(self, status: HTTPStatus, detail: str, *, problems: tuple[str, ...] = ()) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.problems = problems


def problem(status: HTTPStatus, detail: str, problems: tuple[str, ...] = ()) -> web.Response:
    """An error as a response (RFC 9457)."""
    body = Problem(title=status.phrase, status=status, detail=detail, problems=problems)
    response = web.Response(
        status=status, body=body.model_dump_json().encode(), content_type="application/problem+json"
    )
    if status == HTTPStatus.UNAUTHORIZED:
        response.headers[hdrs.WWW_AUTHENTICATE] = "Bearer"
    return response


@web.middleware
async def errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Whatever goes wrong is a problem+json; what cannot be the client's fault is logged."""
    try:
        response = await handler(request)
    except ProblemError as error:
        response = problem(error.status, error.detail, error.problems)
    except web.HTTPException as error:
        if error.status < HTTPStatus.BAD_REQUEST:
            raise
        allowed = error.headers.get(hdrs.ALLOW)
        response = problem(HTTPStatus(error.status), _in_words(error, allowed))
        if allowed is not None:
            response.headers[hdrs.ALLOW] = allowed
    except Exception:
        log.exception("a bug ended an admin request: %s %s", request.method, request.path)
        response = problem(HTTPStatus.INTERNAL_SERVER_ERROR, "a bug of the proxy; its log has the details")
    if not response.prepared:
        for name, value in _HEADERS.items():
            response.headers.setdefault(name, value)
    return response


def _in_words(error: web.HTTPException, allowed: str | None) -> str:
    if allowed is not None:
        return f"this path takes {allowed.replace(',', ', ')} only"
    if error.status == HTTPStatus.NOT_FOUND:
        return "nothing is at this path: / has the dashboard, /api/schema says what else there is"
    return error.text or error.reason


def guard(settings: AdminSettings, public: frozenset[str] = frozenset()) -> Middleware:
    """Lets in who may ask. `public`: further paths that hold nothing secret, such as the files of a page."""
    token = settings.token.get_secret_value().encode()
    hosts = {"localhost", "127.0.0.1", "::1", *(name.lower() for name in settings.allowed_hosts)}
    if settings.address:
        hosts.add(Address.parse(settings.address).host.lower())

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        if token:
            if request.path not in OPEN and request.path not in public and not _has_token(request, token):
                raise ProblemError(
                    HTTPStatus.UNAUTHORIZED, "send the token of [admin] token as: Authorization: Bearer TOKEN"
                )
        elif _host(request) not in hosts:
            raise ProblemError(
                HTTPStatus.FORBIDDEN,
                f"the Host header names {_host(request)!r}; a name of your own belongs into [admin] allowed_hosts",
            )
        if request.method == "POST":
            _refuse_foreign_pages(request)
        return await handler(request)

    return check


def _has_token(request: web.Request, token: bytes) -> bool:
    scheme, _, given = request.headers.get(hdrs.AUTHORIZATION, "").partition(" ")
    # Compared in a time that does not depend on where they differ.
    return scheme.lower() == "bearer" and hmac.compare_digest(given.strip().encode("utf-8", "surrogateescape"), token)


def _host(request: web.Request) -> str:
    host = request.headers.get(hdrs.HOST, "").lower()
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.rpartition(":")[0] if ":" in host else host


def _refuse_foreign_pages(request: web.Request) -> None:
    origin = request.headers.get(hdrs.ORIGIN)
    if origin is not None and origin.partition("://")[2].lower() != request.headers.get(hdrs.HOST, "").lower():
        raise ProblemError(HTTPStatus.FORBIDDEN, f"a page of {origin} may not steer this proxy")
    if request.content_type != "application/json":
        raise ProblemError(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "send a JSON body with Content-Type: application/json")
