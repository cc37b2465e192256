"""How a running server bears up: many clients that ask at once, each again as soon as it has been answered.

    python -m detox_rl.serve --model lightning_logs/version_0 --requests_per_minute null
    python scripts/bench/load.py http://127.0.0.1:8000 [--requests 1000] [--clients 16]

The dialogues are those of the embedded test split, in their order, again from the start when they are at their end.
"""

import argparse
import asyncio
import json
import time
from collections import Counter
from itertools import cycle, islice

import httpx
import numpy as np

from detox_rl.embedded import dialogues


async def ask(client: httpx.AsyncClient, dialogue: str) -> tuple[str | None, float]:
    """One request: what went wrong, or None, and the seconds it took."""
    start = time.perf_counter()
    try:
        response = await client.post("/summarize", json={"dialogue": dialogue})
        fine = response.status_code == 200 and len(response.json()["summaries"]) == 1
        problem = None if fine else f"{response.status_code} {response.text[:100]}"
    except (httpx.HTTPError, ValueError, LookupError) as error:
        problem = type(error).__name__
    return problem, time.perf_counter() - start


async def load(
    client: httpx.AsyncClient, texts: list[str], clients: int
) -> tuple[list[tuple[str | None, float]], float]:
    """Has every text summarised by so many clients at once. Returns what `ask` says of each, and the seconds of all."""
    waiting, found = iter(texts), []

    async def work() -> None:
        for text in waiting:
            found.append(await ask(client, text))

    start = time.perf_counter()
    await asyncio.gather(*(work() for _ in range(clients)))
    return found, time.perf_counter() - start


def table(found: list[tuple[str | None, float]], seconds: float) -> str:
    """Errors of each kind, median and 95th percentile of those answered, and requests a second."""
    problems = Counter(problem for problem, _ in found if problem is not None)
    took = [second for problem, second in found if problem is None]
    lines = [f"errors            {problems.total()} of {len(found)}"]
    lines += [f"  {count} x {problem}" for problem, count in problems.most_common()]
    if took:
        median, late = np.percentile(took, [50, 95])
        lines += [f"median            {median:.3f} s", f"95th percentile   {late:.3f} s"]
    return "\n".join([*lines, f"requests a second {len(took) / seconds:.2f}"])


async def run(address: str, requests: int, clients: int) -> str:
    """The table of a server's answers."""
    rows = dialogues("test").read_text(encoding="utf-8").splitlines()
    texts = list(islice(cycle(json.loads(row)["dialogue"] for row in rows), requests))
    limits = httpx.Limits(max_connections=clients)
    async with httpx.AsyncClient(base_url=address, timeout=600, limits=limits) as client:
        return table(*await load(client, texts, clients))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("address", help="of the server")
    parser.add_argument("--requests", type=int, default=1000, help="in all (default: 1000)")
    parser.add_argument("--clients", type=int, default=16, help="that ask at once (default: 16)")
    print(asyncio.run(run(**vars(parser.parse_args()))))
