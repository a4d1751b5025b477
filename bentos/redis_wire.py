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
    """A connection opened when it is needed and thrown away when anything is odd about it; one request at a time.

    Args:
        host, port: where Redis listens.
        options: the other settings of Feast's connection string.
        seconds: how long a request may take, and how long connecting may.
    """

    def __init__(self, host: str, port: int, options: dict[str, Any], seconds: float) -> None:
        self.host, self.port, self.options, self.seconds = host, port, options, seconds
        self._protocol: _Protocol | None = None

    @classmethod
    def of(cls, connection_string: str, seconds: float) -> RedisWire | None:
        """A wire for Feast's connection string "host:port,key=value,..."; None where it says what is not known here."""
        parts = [part.strip() for part in connection_string.split(",")]
        nodes = [part for part in parts if "=" not in part]
        options = dict(part.split("=", 1) for part in parts if "=" in part)
        if len(nodes) != 1 or not set(options) <= _KNOWN:
            return None
        host, _, port = nodes[0].rpartition(":")
        return cls(host, int(port), options, seconds)

    async def ask(self, commands: bytes, count: int) -> list[Any]:
        """Send encoded commands, wait for their `count` replies.

        Raises: StoreError: Redis refuses one of them. OSError: it cannot be reached. TimeoutError: not in time.
        """
        try:
            if self._protocol is None or not self._protocol.usable:
                async with asyncio.timeout(self.seconds):
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
        _, protocol = await loop.create_connection(lambda: _Protocol(self.seconds), self.host, self.port, ssl=secure)
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
    """Replies of one request after the other; a request that takes longer than `seconds` fails.

    One timer watches over all requests, set again only when it goes off: one for each would cost more than a read.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds, self.deadline = seconds, 0.0
        self.watch: asyncio.TimerHandle | None = None
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
        loop = asyncio.get_running_loop()
        self.replies, self.count = [], count
        self.done, self.deadline = loop.create_future(), loop.time() + self.seconds
        if self.watch is None:
            self.watch = loop.call_at(self.deadline, self._look)
        self.transport.write(commands)
        return await self.done

    def _look(self) -> None:
        self.watch = None
        if self.done is None or self.done.done():
            return
        loop = asyncio.get_running_loop()
        if loop.time() >= self.deadline:
            self.done.set_exception(TimeoutError(f"Redis did not answer within {self.seconds} s"))
        else:
            self.watch = loop.call_at(self.deadline, self._look)

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
        if self.watch is not None:
            self.watch.cancel()
            self.watch = None
        if self.transport is not None:
            self.transport.abort()


def _plain(value: str) -> str:
    """Feast reads parameter values as JSON where they are; a quoted password is its content."""
    try:
        return str(json.loads(value)) if value.startswith('"') else value
    except ValueError:
        return value
