"""A small HTTP client for load: one connection that is kept, no retries of its own, and ways to misbehave."""

import asyncio
import contextlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from time import perf_counter
from typing import Any, Self

import h11

HOST = "127.0.0.1"
TIMEOUT = 300.0  # seconds until an answer's end
_CHUNK = 1 << 16


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a server said."""

    status: int
    headers: dict[str, str]  # names in lower case
    body: bytes
    seconds: float  # from the request's first byte to the answer's last

    def json(self) -> Any:
        """The body's JSON."""
        return json.loads(self.body)

    def events(self) -> list[tuple[str, Any]]:
        """The events of a stream that has ended: names and JSON."""
        found = []
        for block in self.body.decode().split("\n\n"):
            lines = dict(line.split(": ", 1) for line in block.splitlines() if ": " in line and line[0] != ":")
            if "data" in lines:
                found.append((lines.get("event", "message"), json.loads(lines["data"])))
        return found


class Client:
    """A connection to a server of this machine, made anew where the server has closed it."""

    def __init__(self, port: int, *, timeout: float = TIMEOUT) -> None:
        self._port, self._timeout = port, timeout
        self._http = h11.Connection(h11.CLIENT)
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def ask(
        self, method: str, path: str, body: bytes = b"", *, headers: Mapping[str, str] | None = None
    ) -> Answer:
        """Sends a request, and waits for all of its answer.

        Raises:
            ConnectionError: the server ended the connection before its answer did.
            TimeoutError: there was no end of it.
        """
        began = perf_counter()
        async with asyncio.timeout(self._timeout):
            await self.send(method, path, body, headers=headers)
            return await self.answer(began)

    async def ask_json(self, path: str, content: object, *, headers: Mapping[str, str] | None = None) -> Answer:
        """Posts JSON; see `ask`."""
        body = json.dumps(content).encode()
        return await self.ask("POST", path, body, headers={"content-type": "application/json", **(headers or {})})

    async def send(
        self,
        method: str,
        path: str,
        body: bytes = b"",
        *,
        headers: Mapping[str, str] | None = None,
        length: int | None = None,
    ) -> None:
        """Sends a request and nothing else.

        Args:
            method: of HTTP.
            path: with its query.
            body: its bytes.
            headers: besides those of every request.
            length: what it says of its body's length, where that is more than is sent.
        """
        _, writer = await self._open()
        fields = {"host": f"{HOST}:{self._port}", "content-length": str(len(body) if length is None else length)}
        request = h11.Request(method=method, target=path, headers=list({**fields, **(headers or {})}.items()))
        data = self._http.send(request)
        data += (self._http.send(h11.Data(data=body)) or b"") if body else b""
        if length is None:
            data += self._http.send(h11.EndOfMessage()) or b""
        writer.write(data)
        with contextlib.suppress(ConnectionError):  # a server may answer before it has everything, and read no more
            await writer.drain()

    async def answer(self, began: float) -> Answer:
        """The answer of what was sent.

        Args:
            began: when, in `perf_counter`'s seconds.
        """
        status, headers, parts = 0, {}, []
        while not isinstance(event := await self._next(), h11.EndOfMessage):
            if isinstance(event, h11.Response):
                status = event.status_code
                headers = {name.decode(): value.decode() for name, value in event.headers}
            elif isinstance(event, h11.Data):
                parts.append(bytes(event.data))
            elif isinstance(event, h11.ConnectionClosed):
                raise ConnectionError("the server ended the connection before its answer did")
        if self._http.our_state is h11.DONE and self._http.their_state is h11.DONE:
            self._http.start_next_cycle()
        else:
            await self.close()
        return Answer(status=status, headers=headers, body=b"".join(parts), seconds=perf_counter() - began)

    async def received(self) -> None:
        """Waits for the next part of an answer, of which nothing is kept."""
        await self._next()

    async def close(self) -> None:
        """Ends the connection, in the middle of an answer if need be."""
        if self._streams is not None:
            _, writer = self._streams
            self._streams = None
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    async def _open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._streams is not None and self._streams[0].at_eof():
            await self.close()
        if self._streams is None:
            self._streams = await asyncio.open_connection(HOST, self._port)
            self._http = h11.Connection(h11.CLIENT)
        return self._streams

    async def _next(self) -> Any:
        assert self._streams is not None
        try:
            while (event := self._http.next_event()) is h11.NEED_DATA:
                self._http.receive_data(await self._streams[0].read(_CHUNK))
        except h11.RemoteProtocolError as error:
            raise ConnectionError(f"the server ended the connection before its answer did: {error}") from error
        return event
