"""Requests to the admin API, and what is said when they fail."""

from __future__ import annotations

import http.client
import json
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Final, Generic, TypeVar
from urllib.parse import quote, urlencode

from pydantic import BaseModel, ValidationError

from proxy.admin import schema
from proxy.errors import CommandError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from proxy.cluster.address import Address

TIMEOUT: Final = 10.0
"""Seconds until a request is given up."""

WRONG: Final = 1
MISUSED: Final = 2
UNREACHABLE: Final = 3

_Body = TypeVar("_Body", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class Answer(Generic[_Body]):
    """What the proxy answered."""

    body: _Body
    raw: bytes
    """The same as it came, with fields that this version does not know."""

    def print_json(self) -> None:
        """For programs: all of it, on stdout."""
        print(json.dumps(json.loads(self.raw), indent=2, ensure_ascii=False))


class AdminClient:
    """Asks one proxy. Every method raises CommandError, with a line that says what to do."""

    def __init__(self, address: Address, token: str) -> None:
        self.address = address
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}

    def endpoints(self) -> Answer[schema.Endpoints]:
        """Every server and its state."""
        return self._ask("GET", "/api/endpoints", schema.Endpoints)

    def explain(self, key: bytes) -> Answer[schema.Explanation]:
        """Where a key goes."""
        return self._ask("GET", "/api/explain?" + urlencode({"key_hex": key.hex()}), schema.Explanation)

    def plan(self, query: Sequence[tuple[str, str]]) -> Answer[schema.Plan]:
        """What a change would move."""
        return self._ask("GET", "/api/plan?" + urlencode(query), schema.Plan)

    def drain(self, endpoint_id: str, reason: str, *, force: bool) -> Answer[schema.Drained]:
        """New calls walk past the server."""
        body = {"reason": reason, "force": force}
        return self._ask("POST", f"/api/endpoints/{quote(endpoint_id, safe='')}/drain", schema.Drained, body)

    def undrain(self, endpoint_id: str) -> Answer[schema.Drained]:
        """The operator gives the server back."""
        return self._ask("POST", f"/api/endpoints/{quote(endpoint_id, safe='')}/undrain", schema.Drained, {})

    def reload(self) -> Answer[schema.Reloaded]:
        """Read the configuration again."""
        return self._ask("POST", "/api/reload", schema.Reloaded, {})

    def _ask(
        self, method: str, path: str, model: type[_Body], body: Mapping[str, object] | None = None
    ) -> Answer[_Body]:
        status, raw = self._exchange(method, path, body)
        if status != HTTPStatus.OK:
            raise self._refusal(status, raw)
        try:
            return Answer(model.model_validate_json(raw, extra="ignore"), raw)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            raise CommandError(
                f"{self.address}: the answer is not what this version of districhat understands "
                f"({'.'.join(map(str, first['loc'])) or 'body'}: {first['msg']}); use the version of the proxy",
                UNREACHABLE,
            ) from error

    def _exchange(self, method: str, path: str, body: Mapping[str, object] | None) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(self.address.host, self.address.port, timeout=TIMEOUT)
        headers = self._headers if body is None else {**self._headers, "Content-Type": "application/json"}
        try:
            connection.request(method, path, None if body is None else json.dumps(body), headers)
            response = connection.getresponse()
            return response.status, response.read()
        except TimeoutError as error:
            raise self._unreachable(f"no answer within {TIMEOUT:g} s") from error
        except OSError as error:
            raise self._unreachable((error.strerror or str(error)).lower()) from error
        except http.client.HTTPException as error:
            raise self._unreachable(f"no HTTP server ({error})") from error
        finally:
            connection.close()

    def _unreachable(self, why: str) -> CommandError:
        return CommandError(
            f"cannot reach the proxy at {self.address}: {why}; is it running, and is this its [admin] address? "
            "(--admin HOST:PORT says another)",
            UNREACHABLE,
        )

    def _refusal(self, status: int, raw: bytes) -> CommandError:
        try:
            problem = schema.Problem.model_validate_json(raw, extra="ignore")
        except ValidationError:
            return CommandError(f"{self.address} is no admin server of districhat: HTTP {status}", UNREACHABLE)
        if status == HTTPStatus.UNAUTHORIZED:
            return CommandError(
                f"{self.address} wants another token: that of its [admin] token, by DISTRICHAT_ADMIN__TOKEN, "
                "--token-file or --config",
                MISUSED,
            )
        if status in {HTTPStatus.BAD_REQUEST, HTTPStatus.NOT_FOUND}:
            return CommandError(problem.detail, MISUSED)
        if problem.problems:  # of the configuration
            return CommandError("\n".join(problem.problems), MISUSED)
        return CommandError(problem.detail, WRONG)
