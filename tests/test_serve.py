"""`python -m detox_rl.serve`: its page and its API through the client of the library, its command through `main`."""

import asyncio
import json
import re
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from urllib.request import Request, urlopen

import pytest
from commands import failure
from doubles import subprocess_environment

from detox_rl import serve
from detox_rl.model.policy import Policy
from detox_rl.summarizer import Summarizer, Summary

pytest.importorskip("fastapi", reason="FastAPI is not installed: pip install 'detox_rl[app,dev]'")
from fastapi.testclient import TestClient

from detox_rl.app.feedback import Feedback
from detox_rl.app.limits import MAX_BYTES
from detox_rl.app.web import Model, Site, application

DIALOGUE = "Tom: You left the bin open, you idiot.\nAnna: Sorry."
NASTY = "<script>window.broken = 1</script>\"'><b>&amp;</b>"
RUDE = "Tom calls Anna a bloody IDIOT & an idiotism now."


class Stub:
    """Summarises by saying the same, or what it was given back; remembers its calls."""

    def __init__(self, text: str | None = None, toxicity: float = 0.25, parts: int = 1) -> None:
        self.text, self.toxicity, self.parts = text, toxicity, parts
        self.calls: list[list[str]] = []

    def stream(self, dialogues):
        self.calls.append(list(dialogues))
        if "too long" in dialogues:
            raise ValueError("A dialogue is longer than the model's window: lower max_new_tokens.")
        for dialogue in dialogues:
            yield Summary(dialogue[::-1] if self.text is None else self.text, self.parts, self.toxicity)


@pytest.fixture
def before() -> Stub:
    return Stub(RUDE, 0.98765)


@pytest.fixture
def after() -> Stub:
    return Stub(None, 0.0625)


@pytest.fixture
def site(before, after, tmp_path) -> Site:
    models = Model("warm start", before.stream), Model("version_7", after.stream)
    return Site(*models, Feedback(tmp_path / "kept.jsonl"), tmp_path / "report.html", 300)


@pytest.fixture
def client(site):
    with TestClient(application(site, None), follow_redirects=False) as client:
        yield client


def form(client: TestClient, path: str = "/", **fields: str):
    """Sent as the page's forms are."""
    return client.post(path, files={name: (None, value) for name, value in fields.items()})


def refused(response, status: int) -> str:
    """The one sentence of a refusal."""
    assert response.status_code == status, response.text
    assert response.json().keys() == {"detail"}
    sentence = response.json()["detail"]
    assert "\n" not in sentence and re.fullmatch(r"\S.*\.|There was an error parsing the body", sentence), sentence
    return sentence


# -- the API ---------------------------------------------------------------------------------------


def test_one_dialogue_and_several(client, after):
    assert client.post("/summarize", json={"dialogue": "abc"}).json() == {"summaries": ["cba"], "toxicity": [0.0625]}
    several = {"dialogues": ["abc", " de\r\nf\n", "<b>"]}
    assert client.post("/summarize", json=several).json()["summaries"] == ["cba", "f\ned", ">b<"]
    assert after.calls == [["abc"], ["abc", "de\nf", "<b>"]]


@pytest.mark.parametrize(
    "body, place",
    [
        ({}, "one of dialogue and dialogues is needed"), ({"dialogue": "a", "dialogues": ["b"]}, "one of dialogue and"),
        ({"dialog": "a"}, "body.dialog:"), ({"dialogue": 7}, "body.dialogue:"), ({"dialogue": ["a"]}, "body.dialogue:"),
        ({"dialogues": "a"}, "body.dialogues:"), ({"dialogues": []}, "body.dialogues:"),
        ({"dialogues": ["a"] * 33}, "body.dialogues:"), ({"dialogues": ["a", None]}, "body.dialogues.1:"),
        (["a"], "body:"), ("a", "body:"), (None, "body:"), ({"dialogue": None}, "one of dialogue and dialogues"),
    ],
)  # fmt: skip
def test_a_question_of_another_shape_is_refused_in_a_sentence(body, place, client, after):
    sentence = refused(client.post("/summarize", json=body), 422)
    assert place in sentence and '"dialogues": [' in sentence
    assert after.calls == []


@pytest.mark.parametrize(
    "content, status",
    [
        (b"", 422), (b"{", 422), (b"Tom: hello", 422), (b"[" * 90_000, 400), (b"7" * 90_000, 400),
        (b'{"dialogue": "\xff"}', 400), (b'{"dialogue": "\\ud800"}', 422), (b"\x00", 422),
        (b'{"dialogue": "' + b"a" * 10**6 + b'"}', 413),
    ],
)  # fmt: skip
def test_what_is_no_json_is_refused_in_a_sentence(content, status, client, after):
    refused(client.post("/summarize", content=content, headers={"Content-Type": "application/json"}), status)
    assert after.calls == []


@pytest.mark.parametrize("text, word", [("", "empty"), (" \n\t", "empty"), ("a" * 301, "301 characters")])
def test_a_dialogue_that_is_empty_or_too_long_is_refused(text, word, client, after):
    assert word in refused(client.post("/summarize", json={"dialogue": text}), 422)
    assert word in refused(client.post("/summarize", json={"dialogues": ["fine", text]}), 422)
    assert after.calls == []


def test_as_many_characters_as_are_taken_are_taken_whatever_they_are(client):
    text = "\N{PILE OF POO}" * 300
    assert client.post("/summarize", json={"dialogue": text}).json()["summaries"] == [text]
    assert f">\n{text}</textarea>" in form(client, dialogue=text).text


def test_the_default_of_them_fits_into_a_request():
    """Four bytes a character, in the form and in json that does not escape them."""
    default = serve.serve.__defaults__[-2]
    assert default == 20_000 and 4 * default + 1_000 < MAX_BYTES


def test_a_dialogue_that_the_model_cannot_read_is_refused_alone(client):
    assert "model's window" in refused(client.post("/summarize", json={"dialogue": "too long"}), 422)
    assert client.post("/summarize", json={"dialogue": "abc"}).status_code == 200


def test_sixteen_clients_share_one_decode(site, after):
    """All that arrive while a decode runs."""
    httpx = pytest.importorskip("httpx", reason="httpx is not installed: pip install 'detox_rl[dev]'")
    app = application(site, None)
    slow = lambda dialogues: [time.sleep(1.0), after.stream(dialogues)][1]
    site.after.function = slow

    async def ask() -> list[str]:
        transport = httpx.ASGITransport(app)
        async with app.router.lifespan_context(app), httpx.AsyncClient(transport=transport, base_url="http://x") as to:
            asked = [asyncio.create_task(to.post("/summarize", json={"dialogue": f"{n}a"})) for n in [0]]
            while site.after.waiting.empty() and not asked[0].done():
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.1)  # that one is in the thread
            asked += [asyncio.create_task(to.post("/summarize", json={"dialogue": f"{n}a"})) for n in range(1, 17)]
            return [(await answer).json()["summaries"][0] for answer in asked]

    assert asyncio.run(ask()) == [f"{n}a"[::-1] for n in range(17)]
    assert [len(call) for call in after.calls] == [1, 16]


def test_who_asks_too_often_is_told_when_to_come_back(site):
    with TestClient(application(site, 3)) as client:
        for _ in range(3):
            assert client.post("/summarize", json={"dialogue": "abc"}).status_code == 200
        response = client.post("/summarize", json={"dialogue": "abc"})
        assert "3 requests a minute" in refused(response, 429) and response.headers["Retry-After"] == "20"
        refused(form(client, dialogue="abc"), 429)
        assert client.get("/").status_code == 200


def test_too_many_that_wait_are_told_to_come_back(client, site, monkeypatch):
    def full(item) -> None:
        raise asyncio.QueueFull

    monkeypatch.setattr(site.after.waiting, "put_nowait", full)
    assert "try again" in refused(client.post("/summarize", json={"dialogue": "abc"}), 503)


def test_pages_of_other_sites_may_not_send(client, after, tmp_path):
    for path in ("/", "/summarize", "/feedback"):
        refused(client.post(path, content=b"{}", headers={"Origin": "http://elsewhere.example"}), 403)
    own = client.post("/summarize", json={"dialogue": "abc"}, headers={"Origin": "http://testserver"})
    assert own.status_code == 200 and len(after.calls) == 1 and not (tmp_path / "kept.jsonl").exists()


def test_the_api_describes_itself_and_loads_nothing_from_elsewhere(client):
    assert set(client.get("/openapi.json").json()["paths"]) == {"/summarize"}
    for path in ("/docs", "/redoc", "/nothing"):
        assert client.get(path).status_code == 404


# -- the page --------------------------------------------------------------------------------------


def test_the_page_has_both_summaries_with_their_scores_and_rude_words(client, before, after):
    text = form(client, dialogue=DIALOGUE.replace("\n", "\r\n")).text
    assert before.calls == after.calls == [[DIALOGUE]]
    assert "Tom calls Anna a bloody <mark>IDIOT</mark> &amp; an idiotism now." in text
    values = re.findall(r"<dt>([\w ]+)</dt><dd>(.+?)</dd>", text)
    assert values == [
        ("toxicity", "0.988"), ("strong words", "1"), ("words", "10"),
        ("toxicity", "0.062"), ("strong words", "0"), ("words", "10"),
    ]  # fmt: skip
    assert "warm start" in text and "version_7" in text and "Both alike" in text


def test_what_was_read_in_parts_is_said(client, after):
    after.parts = 3
    assert "<dd>3</dd>" in form(client, dialogue=DIALOGUE).text
    after.parts = 1
    assert "parts that" not in form(client, dialogue=DIALOGUE).text


def test_markup_is_shown_as_text_wherever_it_stands(client, before, after):
    before.text, after.text = NASTY, f"idiot{NASTY}idiot"
    for dialogue in (NASTY, f"</textarea>{NASTY}" + 400 * "a"):
        response = form(client, dialogue=dialogue)
        assert "<script" not in response.text and "<b>" not in response.text and response.text.count("</textarea>") == 1
        policy = response.headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'none'; ") and "script" not in policy and "unsafe" not in policy
    assert response.headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize(
    "text, word", [("", "empty"), (" \n", "empty"), ("a" * 301, "301 characters"), ("too long", "window")]
)
def test_a_bad_dialogue_comes_back_with_a_sentence(text, word, client):
    response = form(client, dialogue=text)
    assert response.status_code == 422 and f">\n{text}</textarea>" in response.text
    assert word in re.search(r'role="alert" id="problem">(.+?)</p>', response.text)[1]
    assert "Summaries</h2>" not in response.text


def test_a_form_without_a_dialogue_is_an_empty_one(client):
    assert client.post("/", data={}).status_code == 422
    assert client.post("/", content=b"no form at all").status_code == 422


def test_a_choice_is_kept_as_it_was_shown(client, site):
    said = {"dialogue": f"{DIALOGUE}\r\n{NASTY}", "before": "A\r\nB", "after": ""}
    for choice in ("after", "before", "alike"):
        response = form(client, "/feedback", choice=choice, **said)
        assert response.status_code == 303
    assert "your choice is kept" in client.get(response.headers["Location"]).text
    kept = [json.loads(line) for line in site.feedback.path.read_text().splitlines()]
    assert {row["dialogue"] for row in kept} == {f"{DIALOGUE}\n{NASTY}"}
    assert [row["preferred"] for row in kept] == ["", "A\nB", "A\nB", ""]
    assert [row["rejected"] for row in kept] == ["A\nB", "", "", "A\nB"]


@pytest.mark.parametrize("change", [{"choice": "both"}, {"choice": ""}, {"dialogue": ""}])
def test_a_choice_of_nothing_is_refused(change, client, site):
    refused(
        form(client, "/feedback", **{"dialogue": "a", "before": "b", "after": "c", "choice": "after"} | change), 422
    )
    assert not site.feedback.path.exists()


def test_equal_summaries_leave_nothing_to_choose(client, after):
    after.text = RUDE
    text = form(client, dialogue=DIALOGUE).text
    assert "Both say the same." in text and "<button form=" not in text and "/feedback" not in text


def test_without_a_file_nobody_is_asked(client, site):
    site.feedback = None
    assert "/feedback" not in form(client, dialogue=DIALOGUE).text
    refused(form(client, "/feedback", dialogue="a", before="b", after="c", choice="after"), 404)


def test_the_report_is_there_as_soon_as_it_is_made(client, site):
    assert "/report" not in client.get("/").text
    assert "detox_rl.evaluate" in refused(client.get("/report"), 404)
    site.report.write_text("<p>Report</p>")
    assert 'href="/report"' in client.get("/").text
    response = client.get("/report")
    assert response.text == "<p>Report</p>" and response.headers["Content-Type"].startswith("text/html")
    assert "Content-Security-Policy" not in response.headers  # its own stands in it


# -- the command -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tiny_t5, tiny_adapter, tmp_path_factory) -> str:
    """A folder as `fit` leaves it, of a run whose warm start is the bare base."""
    folder = tmp_path_factory.mktemp("runs") / "version_3"
    Policy(tiny_t5, tiny_adapter).save_adapter(folder / "adapter", "{dialogue} TL;DR", 200, 6)
    model = {"base_model": tiny_t5, "warm_start": None, "max_new_tokens": 6}
    config = {"model": model, "data": {"prompt_template": "{dialogue} TL;DR", "max_prompt_tokens": 200}}
    (folder / "config.yaml").write_text(json.dumps(config | {"seed_everything": 0}))
    return str(folder)


def test_the_command_serves_a_run_beside_its_warm_start(run, tiny_t5, tmp_path):
    command = [sys.executable, "-m", "detox_rl.serve", "--model", run, "--port", "0"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=tmp_path, env=subprocess_environment(), text=True)
    try:
        place = re.search(r"http://127\.0\.0\.1:\d+", server.stdout.readline())[0]
        body = json.dumps({"dialogue": DIALOGUE}).encode()
        with urlopen(Request(f"{place}/summarize", body, {"Content-Type": "application/json"})) as response:
            found = json.load(response)
        with urlopen(Request(f"{place}/", f"dialogue={DIALOGUE.replace(' ', '+')}".encode())) as response:
            page = response.read().decode()
    finally:
        server.terminate()
        server.communicate(timeout=60)
    trained = Summarizer(run).summarize([DIALOGUE])
    untrained = Summarizer(None, tiny_t5, 6, Summarizer(run).prompt).summarize([DIALOGUE])
    assert found["summaries"] == trained != untrained and 0 < found["toxicity"][0] < 1
    shown = re.findall(r'<p class="text" dir="auto">(.*?)\n?</p>', re.sub("</?mark>", "", page), re.DOTALL)
    assert [text.strip() for text in shown] == [untrained[0].strip(), trained[0].strip()]
    assert "warm start" in page and "version_3" in page
    assert not (tmp_path / "feedback.jsonl").exists()


def test_a_run_of_sft_is_beside_its_base_and_others_beside_the_embedded_one(run, tmp_path, monkeypatch):
    config = json.loads((Path(run) / "config.yaml").read_text())
    del config["model"]["warm_start"]
    (tmp_path / "adapter").mkdir()
    (tmp_path / "config.yaml").write_text(json.dumps(config))
    asked = []
    monkeypatch.setattr(serve, "Summarizer", lambda *args, judge: asked.append(args))
    monkeypatch.setattr(serve, "Detoxify", lambda: "judge")
    serve.summarizers(str(tmp_path), None)
    serve.summarizers(run, "embedded")
    serve.summarizers("some/adapter", None)
    base, prompt = config["model"]["base_model"], Summarizer(run).prompt
    assert asked == [
        (None, base, 6, prompt), (str(tmp_path),), ("embedded",), (run,), ("embedded",), ("some/adapter",)
    ]  # fmt: skip


def test_an_absent_extra_is_named(monkeypatch, capfd):
    monkeypatch.setattr(serve, "find_spec", lambda name: None if name == "fastapi" else object())
    code, sentence = failure(serve.main, ["--model", "embedded"], capfd)
    assert sentence == 'The page needs fastapi: pip install "detox_rl[app]"'


@pytest.mark.parametrize(
    "args, words",
    [
        (["--model", "nowhere"], "There is no model 'nowhere'"), (["--baseline", "nowhere"], "no model 'nowhere'"),
        (["--port", "70000"], "port must be at least 0 and at most 65535"), (["--host", "no.such.host.invalid"], "no.such"),
        (["--max_characters", "0"], "max_characters must be"), (["--requests_per_minute", "0"], "requests_per_minute must"),
        (["--feedback", "no/such/folder/kept.jsonl"], "make it first"),
    ],
)  # fmt: skip
def test_bad_options_end_in_a_sentence_before_anything_is_served(args, words, run, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    code, sentence = failure(serve.main, ["--model", run, "--port", "0", *args], capfd)
    assert words in sentence
    assert "The page is at" not in capfd.readouterr().out


def test_a_port_that_is_taken_is_said_before_a_model_is_loaded(run, capfd, monkeypatch):
    monkeypatch.setattr(serve, "summarizers", None)
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        code, sentence = failure(serve.main, ["--model", run, "--port", str(port)], capfd)
    assert str(port) in sentence and "set --host or --port" in sentence


def test_addresses_are_those_of_a_browser():
    with serve.bound("127.0.0.1", 0) as own:
        assert serve.address(own) == f"http://127.0.0.1:{own.getsockname()[1]}"
    other = SimpleNamespace(getsockname=lambda: ("::1", 8000, 0, 0))
    assert serve.address(other) == "http://[::1]:8000"
