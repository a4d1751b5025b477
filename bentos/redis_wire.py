"""One pipelined connection to Redis inside the event loop: bytes of many commands out, their replies back.

redis-py's asyncio client costs about as much CPU per command as the whole decision; hiredis, which it uses too, does
the parsing here.
"""

from __future__ import annotations

import asyncio
import json
import ssl
from typing import Any

import hiredis

from campaign import StoreError

_KNOWN = {"db", "username", "password", "ssl", "socket_timeout", "socket_connect_timeout"}


class RedisWire:
    """A connection opened when it is needed and thrown away when anything is odd about it; one request at a time."""

    def __init__(self, host: str, port: int, options: dict[str, Any]) -> None:
        self.host, self.port, self.options = host, port, options
        self._protocol: _Protocol | None = None

    @classmethod
    def of(cls, connection_string: str) -> RedisWire | None:
        """A wire for Feast's connection string "host:port,key=value,..."; None where it says what is not known here."""
        parts = [part.strip() for part in connection_string.split(",")]
        nodes = [part for part in parts if "=" not in part]
        options = dict(part.split("=", 1) for part in parts if "=" in part)
        if len(nodes) != 1 or not set(options) <= _KNOWN:
            return None
        host, _, port = nodes[0].rpartition(":")
        return cls(host, int(port), options)

    async def ask(self, commands: bytes, count: int) -> list[Any]:
        """Send encoded commands, wait for their `count` replies.

        Raises: StoreError: Redis refuses one of them. OSError: it cannot be reached.
        """
        try:
            if self._protocol is None or not self._protocol.usable:
                self._protocol = await self._connect()
            replies = await self._protocol.ask(commands, count)
        except BaseException:
            # late replies would be taken for those of the next request
            self.close()
            raise
        self._check(replies)
        return replies

    def close(self) -> None:
        """Drop the connection; the next request opens another."""
        if self._protocol is not None:
            self._protocol.drop()
            self._protocol = None

    async def _connect(self) -> _Protocol:
        secure = ssl.create_default_context() if str(self.options.get("ssl", "")).lower() == "true" else None
        loop = asyncio.get_running_loop()
        _, protocol = await loop.create_connection(_Protocol, self.host, self.port, ssl=secure)
        greeting: list[Any] = []
        if "password" in self.options:
            user = [self.options["username"]] if "username" in self.options else []
            greeting.append(("AUTH", *user, _plain(self.options["password"])))
        if "db" in self.options:
            greeting.append(("SELECT", self.options["db"]))
        try:
            self._check(await protocol.ask(b"".join(hiredis.pack_command(g) for g in greeting), len(greeting)))
        except BaseException:
            protocol.drop()
            raise
        return protocol

    def _check(self, replies: list[Any]) -> None:
        for reply in replies:
            if isinstance(reply, hiredis.ReplyError):
                raise StoreError(f"Redis at {self.host}:{self.port}: {reply}")


class _Protocol(asyncio.Protocol):
    def __init__(self) -> None:
        self.reader = hiredis.Reader()
        self.replies: list[Any] = []
        self.count = 0
        self.done: asyncio.Future[list[Any]] | None = None
        self.transport: asyncio.Transport | None = None

    @property
    def usable(self) -> bool:
        return self.transport is not None and not self.transport.is_closing()

    async def ask(self, commands: bytes, count: int) -> list[Any]:
        if self.transport is None:
            raise ConnectionError("Redis closed the connection")
        if count == 0:
            return []
        self.replies, self.count = [], count
        self.done = asyncio.get_running_loop().create_future()
        self.transport.write(commands)
        return await self.done

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]  # a stream's transport

    def data_received(self, data: bytes) -> None:
        self.reader.feed(data)
        while (reply := self.reader.gets()) is not False:
            self.replies.append(reply)
        if self.done is not None and not self.done.done() and len(self.replies) >= self.count:
            self.done.set_result(self.replies)

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        if self.done is not None and not self.done.done():
            self.done.set_exception(ConnectionError("Redis closed the connection"))

    def drop(self) -> None:
        if self.transport is not None:
            self.transport.abort()


def _plain(value: str) -> str:
    """Feast reads parameter values as JSON where they are; a quoted password is its content."""
    try:
        return str(json.loads(value)) if value.startswith('"') else value
    except ValueError:
        return value
