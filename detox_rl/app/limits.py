"""What is refused before anybody reads it: too much, too often, from another site, or not text."""

import time
from collections.abc import Callable
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MAX_BYTES = 100_000  # of the body of a request
READ_BYTES = 100 * MAX_BYTES  # of a body too long: who is cut off while sending never reads why
CLIENTS = 10_000  # that are remembered before the idle ones are forgotten


class Rate:
    """A bucket of tokens for each client, which holds a minute's and is filled evenly; a request takes one.

    Args:
        per_minute: requests of a client, at once or evenly.
        clock: seconds.
    """

    def __init__(self, per_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.per_minute, self.clock = per_minute, clock
        self.buckets: dict[str, tuple[float, float]] = {}  # client -> tokens, and when they were counted

    def allows(self, client: str) -> bool:
        """Whether a client may ask now."""
        now = self.clock()
        if len(self.buckets) >= CLIENTS:  # a bucket of a minute ago is full, as a new one is
            self.buckets = {name: bucket for name, bucket in self.buckets.items() if now - bucket[1] < 60}
        tokens, then = self.buckets.get(client, (float(self.per_minute), now))
        tokens = min(self.per_minute, tokens + (now - then) * self.per_minute / 60)
        self.buckets[client] = (tokens - 1 if tokens >= 1 else tokens, now)
        return tokens >= 1


class Limits:
    """ASGI middleware: reads what is sent, and passes it on whole or answers {"detail": one sentence}.

    Args:
        app: what is passed on to.
        rate: of the requests of a client that send something; None for no limit.
    """

    def __init__(self, app: ASGIApp, rate: Rate | None) -> None:
        self.app, self.rate = app, rate

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD"):
            return await self.app(scope, receive, send)
        try:
            check_site(Headers(scope=scope))
            self._check_rate((scope["client"] or ("",))[0])
            body = await read(receive)
        except HTTPException as refusal:
            answer = JSONResponse({"detail": refusal.detail}, refusal.status_code, refusal.headers)
            return await answer(scope, receive, send)
        if body is None:
            return None
        told = iter([{"type": "http.request", "body": body, "more_body": False}])

        async def again() -> Message:
            return next(told, None) or await receive()

        return await self.app(scope, again, send)

    def _check_rate(self, client: str) -> None:
        if self.rate is not None and not self.rate.allows(client):
            raise HTTPException(
                429,
                f"You have sent more than {self.rate.per_minute} requests a minute: wait a moment.",
                {"Retry-After": str(max(1, round(60 / self.rate.per_minute)))},
            )


def check_site(headers: Headers) -> None:
    """Refuses what a page of another site has the user's browser send.

    Raises:
        HTTPException: 403.
    """
    origin = headers.get("origin")
    if origin is not None and urlsplit(origin).netloc != headers.get("host"):
        raise HTTPException(403, "This was sent from a page of another site: open the page of this server.")


async def read(receive: Receive) -> bytes | None:
    """The body of a request; None if the client left.

    Raises:
        HTTPException: 413 if it is too long, 400 if it is not UTF-8.
    """
    body, size, more = bytearray(), 0, True
    while more and size <= READ_BYTES:
        message = await receive()
        if message["type"] != "http.request":
            return None
        chunk, more = message.get("body", b""), message.get("more_body", False)
        size += len(chunk)
        if size <= MAX_BYTES:
            body += chunk
    if size > MAX_BYTES:
        raise HTTPException(413, f"The request is longer than {MAX_BYTES:,} bytes: send a shorter text, or fewer.")
    try:
        body.decode("utf-8")
    except UnicodeDecodeError:
        raise HTTPException(400, "The request is not UTF-8 text: convert it.") from None
    return bytes(body)
