"""The dashboard: one page and its files, as they lie in `static`, given out with a policy that lets nothing else in.

There is no build step: browsers get the files that are read here. The page holds nothing secret, so its files need no
token; what it shows comes from the API, which asks for it.
"""

from __future__ import annotations

from importlib import resources
from typing import Final

from aiohttp import web

_TYPES: Final = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}

# Nothing from elsewhere, no inline script or style, no framing, no form that leaves the page; and no text becomes HTML,
# whatever a server or a chat is called (CSP level 3; Trusted Types).
_POLICY: Final = "; ".join(  # noqa: FLY002 - one directive a line
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)


class Dashboard:
    """The page's files, in memory."""

    def __init__(self) -> None:
        files = (each for each in resources.files("proxy.admin").joinpath("static").iterdir() if each.is_file())
        self._files = {f"/static/{each.name}": (each.read_bytes(), _type_of(each.name)) for each in files}
        self._files["/"] = self._files.pop("/static/index.html")

    @property
    def paths(self) -> frozenset[str]:
        """Where they are. None of them holds anything secret."""
        return frozenset(self._files)

    def routes(self) -> list[web.RouteDef]:
        """Every file and its handler."""
        return [web.get(path, self._file) for path in self._files]

    async def _file(self, request: web.Request) -> web.Response:
        body, content_type = self._files[request.path]
        headers = {"Content-Security-Policy": _POLICY}
        return web.Response(body=body, content_type=content_type, charset="utf-8", headers=headers)


def _type_of(name: str) -> str:
    return _TYPES[name[name.rindex(".") :]]
