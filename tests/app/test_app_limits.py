"""What is refused before anybody reads it."""

import asyncio

import pytest

pytest.importorskip("starlette", reason="the page's library is not installed: pip install 'detox_rl[app]'")
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException

from detox_rl.app import limits
from detox_rl.app.limits import MAX_BYTES, READ_BYTES, Limits, Rate, check_site, read


class Clock:
    """Seconds that pass when they are told to."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_client_has_a_minutes_requests_at_once_and_then_evenly():
    clock = Clock()
    rate = Rate(6, clock)
    assert [rate.allows("a") for _ in range(8)] == 6 * [True] + 2 * [False]
    assert rate.allows("b")
    clock.now += 9.9
    assert not rate.allows("a")
    clock.now += 0.2
    assert [rate.allows("a") for _ in range(2)] == [True, False]
    clock.now += 1e6
    assert [rate.allows("a") for _ in range(7)] == 6 * [True] + [False]


def test_who_asks_too_often_does_not_have_to_start_again():
    """A refusal takes no token: the next one comes when it would have come."""
    clock = Clock()
    rate = Rate(60, clock)
    for _ in range(60):
        rate.allows("a")
    found = []
    for _ in range(20):
        clock.now += 0.25
        found.append(rate.allows("a"))
    assert found == 5 * [False, False, False, True]


def test_idle_clients_are_forgotten_and_busy_ones_are_not(monkeypatch):
    monkeypatch.setattr(limits, "CLIENTS", 3)
    clock = Clock()
    rate = Rate(1, clock)
    for client in "abc":
        rate.allows(client)
    clock.now += 59
    rate.allows("d")
    assert not rate.allows("a") and set(rate.buckets) == set("abcd")
    clock.now += 60
    assert rate.allows("e") and set(rate.buckets) == {"e"}


def test_only_this_servers_own_page_may_send():
    for origin in (None, "http://here:8000"):
        check_site(Headers({"host": "here:8000"} | ({"origin": origin} if origin else {})))
    for origin in ("http://here", "http://here:8001", "https://example.org", "null", ""):
        with pytest.raises(HTTPException) as refusal:
            check_site(Headers({"host": "here:8000", "origin": origin}))
        assert refusal.value.status_code == 403


def body(*chunks: bytes, end: str = "http.request"):
    """A `receive` of these pieces."""
    left = [{"type": "http.request", "body": chunk, "more_body": True} for chunk in chunks]
    left.append({"type": end})

    async def receive():
        return left.pop(0)

    receive.left = left
    return receive


def test_a_body_is_read_whole():
    assert asyncio.run(read(body(b"a" * (MAX_BYTES - 2), "é".encode()))) == b"a" * (MAX_BYTES - 2) + "é".encode()
    assert asyncio.run(read(body())) == b""


def test_a_letter_may_be_cut_between_two_pieces():
    assert asyncio.run(read(body(b"\xc3", b"\xa9"))) == "é".encode()


@pytest.mark.parametrize(
    "chunks, status", [([b"a" * 50_000, b"b" * 50_001], 413), ([b"\xff"], 400), ([b"\xff" * 100_001], 413)]
)
def test_a_body_too_long_or_not_text_is_refused_when_it_has_been_read(chunks, status):
    receive = body(*chunks)
    with pytest.raises(HTTPException) as refusal:
        asyncio.run(read(receive))
    assert refusal.value.status_code == status and receive.left == []


def test_a_body_without_end_is_not_read_for_ever():
    given = 0

    async def receive():
        nonlocal given
        given += 1
        return {"type": "http.request", "body": bytes(MAX_BYTES), "more_body": True}

    with pytest.raises(HTTPException):
        asyncio.run(read(receive))
    assert given == READ_BYTES // MAX_BYTES + 1


def test_nothing_is_done_for_who_has_left():
    assert asyncio.run(read(body(b"Tom", end="http.disconnect"))) is None
    scope = {"type": "http", "method": "POST", "headers": [], "client": None}
    asyncio.run(Limits(None, Rate(1))(scope, body(b"Tom", end="http.disconnect"), None))  # calls no application
