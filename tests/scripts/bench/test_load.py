"""scripts/bench/load.py, against a server that answers by heart."""

import asyncio

import pytest

pytest.importorskip("httpx", reason="httpx is not installed: pip install 'detox_rl[dev]'")
import httpx
from load import load, table


class Server:
    """Refuses every tenth dialogue, drops every hundredth; knows how many ask at once."""

    def __init__(self) -> None:
        self.dialogues, self.now, self.most = [], 0, 0

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        self.now += 1
        self.most = max(self.most, self.now)
        await asyncio.sleep(0.001)
        self.now -= 1
        self.dialogues.append(request.content.decode())
        if len(self.dialogues) % 100 == 0:
            raise httpx.ReadError("gone")
        if len(self.dialogues) % 10 == 0:
            return httpx.Response(503, json={"detail": "later"})
        return httpx.Response(200, json={"summaries": ["Tom leaves."], "toxicity": [0.1]})


def test_every_dialogue_is_asked_for_once_by_so_many_at_once():
    server = Server()

    async def run():
        async with httpx.AsyncClient(transport=httpx.MockTransport(server), base_url="http://x") as client:
            return await load(client, [f"number {number}" for number in range(300)], 16)

    found, seconds = asyncio.run(run())
    assert len(set(server.dialogues)) == len(server.dialogues) == 300 and server.most == 16
    lines = table(found, seconds).splitlines()
    assert lines[:3] == ["errors            30 of 300", '  27 x 503 {"detail":"later"}', "  3 x ReadError"]
    assert all(0.001 <= second < seconds for problem, second in found)


def test_the_table_counts_only_answers():
    found = [(None, second / 100) for second in range(1, 100)] + [("503 later", 50.0)]
    assert table(found, 10.0).splitlines() == [
        "errors            1 of 100", "  1 x 503 later", "median            0.500 s", "95th percentile   0.941 s",
        "requests a second 9.90",
    ]  # fmt: skip
    assert table([("503 later", 1.0)], 1.0).splitlines()[-1] == "requests a second 0.00"
