"""What every request goes through before its route: an id, its host and origin, its key, its size and its time."""

import asyncio
import base64
import binascii
import hmac
import logging
import re
import secrets
from time import perf_counter
from typing import Any
from urllib.parse import urlsplit

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from . import logs
from .errors import ApiError
from .metrics import Metrics
from .settings import LOOPBACK, ServerSettings

logger = logging.getLogger(__name__)

#: the only route that needs no key
LIVENESS = "/health/live"
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}", re.ASCII)
_CHALLENGE = {"www-authenticate": 'Basic realm="safelight"'}
_WITHOUT_EFFECT = ("GET", "HEAD", "OPTIONS")
#: routes whose answers are counted under their own name; others are under "other"
_OTHER = "other"


class Gate:
    """An ASGI application around the routes. Whatever comes out of them is an answer."""

    def __init__(self, app: ASGIApp, settings: ServerSettings, metrics: Metrics) -> None:
        self._app = app
        self._settings = settings
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers, or lets the application answer."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = _headers(scope)
        given = headers.get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else f"req_{secrets.token_hex(12)}"
        scope["state"] = {**scope.get("state", {}), "request_id": request_id}
        token = logs.request_id.set(request_id)
        answer = _Answer(send, request_id)
        started = perf_counter()
        try:
            self._check(scope, headers)
            body = LimitedBody(receive, headers, self._settings)
            await self._app(scope, body, answer)
        except ApiError as error:
            await answer.error(error, scope, receive)
        except HTTPException as error:
            await answer.error(_of_starlette(error), scope, receive)
        except (ConnectionError, ClientDisconnect):
            pass  # the client is gone
        except Exception as error:
            logger.error("request_failed", exc_info=error)
            message = "the server failed; its log says why"
            await answer.error(ApiError(500, message, code="internal_error"), scope, receive)
        finally:
            seconds = perf_counter() - started
            route = _route(scope)
            self._metrics.request_finished(route, answer.status, seconds)
            logs.event("request", method=scope["method"], route=route, status=answer.status, seconds=round(seconds, 6))
            logs.request_id.reset(token)

    def _check(self, scope: Scope, headers: dict[str, str]) -> None:
        """Refuses who calls the server by another name, comes from another page, or has no key."""
        host = headers.get("host", "")
        if not self._is_own(_name(host)):
            raise ApiError(403, "this server does not go by that Host", code="foreign_host")
        origin = headers.get("origin")
        if origin is not None and scope["method"] not in _WITHOUT_EFFECT and urlsplit(origin).netloc != host:
            raise ApiError(403, "requests from other sites' pages are refused", code="foreign_origin")
        if self._settings.api_keys and scope["path"] != LIVENESS and not self._has_key(headers):
            message = "an API key is needed: Authorization: Bearer KEY"
            raise ApiError(401, message, code="invalid_api_key", headers=_CHALLENGE)

    def _is_own(self, name: str) -> bool:
        """Whether a name is the server's. One that others reach goes by any, unless names are given: it has a key."""
        if self._settings.is_local:
            return name in (*LOOPBACK, *self._settings.allowed_hosts)
        return not self._settings.allowed_hosts or name in (
            *LOOPBACK,
            self._settings.host,
            *self._settings.allowed_hosts,
        )

    def _has_key(self, headers: dict[str, str]) -> bool:
        kind, _, value = headers.get("authorization", "").partition(" ")
        key = value.strip()
        if kind.lower() == "basic":
            try:
                key = base64.b64decode(key, validate=True).decode().partition(":")[2]
            except (binascii.Error, UnicodeDecodeError):
                return False
        elif kind.lower() != "bearer":
            return False
        found = [hmac.compare_digest(key.encode(), known.encode()) for known in self._settings.api_keys]
        return any(found)


class LimitedBody:
    """A request's body with an end, in bytes and in time."""

    def __init__(self, receive: Receive, headers: dict[str, str], settings: ServerSettings) -> None:
        self._receive = receive
        self._most = settings.max_body
        self._seconds = settings.body_timeout
        self._deadline = asyncio.get_running_loop().time() + settings.body_timeout
        self._length = 0
        self._whole = False
        told = headers.get("content-length", "")
        self._told = int(told) if told.isascii() and told.isdecimal() else 0

    async def __call__(self) -> Message:
        """The next message of the connection.

        Raises:
            ApiError: 413, the body is too large; 408, it takes too long.
        """
        if self._whole:
            return await self._receive()
        if self._told > self._most:
            raise self._too_large()
        try:
            async with asyncio.timeout_at(self._deadline):
                message = await self._receive()
        except TimeoutError:
            text = f"the request's body took longer than {self._seconds:g} seconds"
            raise ApiError(408, text, code="body_timeout", headers={"connection": "close"}) from None
        if message["type"] == "http.request":
            self._length += len(message.get("body", b""))
            if self._length > self._most:
                raise self._too_large()
            self._whole = not message.get("more_body", False)
        return message

    def _too_large(self) -> ApiError:
        message = f"a request may have {self._most} bytes"
        return ApiError(413, message, code="body_too_large", headers={"connection": "close"})


class _Answer:
    """Where an answer goes: it gets the request's id, and its status is noted."""

    def __init__(self, send: Send, request_id: str) -> None:
        self._send = send
        self._request_id = request_id
        self.status = 0  # nothing was said

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            own = [(b"x-request-id", self._request_id.encode()), (b"x-content-type-options", b"nosniff")]
            message = {**message, "headers": [*message.get("headers", ()), *own]}
        await self._send(message)

    async def error(self, error: ApiError, scope: Scope, receive: Receive) -> None:
        """Says what is wrong, if nothing was said yet; else cuts the connection: the answer is not whole."""
        if self.status:
            raise error
        await JSONResponse(error.body(), error.status, headers=error.headers())(scope, receive, self)


def _headers(scope: Scope) -> dict[str, str]:
    return {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}


def _name(host: str) -> str:
    """The name of a Host header, without its port."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _route(scope: Scope) -> str:
    route: Any = scope.get("route")
    path = getattr(route, "path", None)
    return path if isinstance(path, str) else _OTHER


def _of_starlette(error: HTTPException) -> ApiError:
    """What the router says: there is no such route, or not for this method."""
    if error.status_code == 404:
        return ApiError(404, "there is nothing here; /docs has what there is", code="not_found")
    if error.status_code == 405:
        return ApiError(
            405, "this method is not for this route", code="method_not_allowed", headers=dict(error.headers or {})
        )
    return ApiError(error.status_code, str(error.detail), code="invalid_form")
