"""The routes: a page with two summaries of a dialogue side by side, and an API that gives one."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any, NamedTuple, Self

from fastapi import APIRouter, FastAPI, Form, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse, RedirectResponse, Response
from pydantic import BaseModel, ConfigDict, Field, model_validator

from detox_rl.app.feedback import Choice, Feedback
from detox_rl.app.limits import Limits, Rate
from detox_rl.app.page import HEADERS, render, style
from detox_rl.app.together import MOST, Together
from detox_rl.classifiers import StrongWords
from detox_rl.summarizer import Summary

EXAMPLE = '{"dialogue": "Tom: ..."} or {"dialogues": ["Tom: ...", ...]}'


class Model(NamedTuple):
    """One of the two whose summaries are shown.

    Attributes:
        name: what the page calls it.
        stream: dialogues to judged summaries, as `Summarizer.stream`.
    """

    name: str
    stream: Callable[[Iterable[str]], Iterable[Summary]]


class Question(BaseModel):
    """What POST /summarize is sent."""

    model_config = ConfigDict(extra="forbid")
    dialogue: str | None = None
    dialogues: list[str] | None = Field(default=None, min_length=1, max_length=MOST)

    @model_validator(mode="after")
    def one_of_them(self) -> Self:
        """Refuses none and both."""
        if (self.dialogue is None) == (self.dialogues is None):
            raise ValueError("one of dialogue and dialogues is needed")
        return self


class Answer(BaseModel):
    """What POST /summarize answers; each list has an item a dialogue. The judge is the embedded classifier."""

    summaries: list[str]
    toxicity: list[float]


class Site:
    """What the routes share.

    Args:
        before: the baseline.
        after: the model that is tried, and that the API gives.
        feedback: where choices are kept; None shows no buttons.
        report: a file that /report shows, if it is there.
        max_characters: of a dialogue.
    """

    def __init__(
        self, before: Model, after: Model, feedback: Feedback | None, report: Path | None, max_characters: int
    ) -> None:
        self.names = {"before": before.name, "after": after.name}
        self.feedback, self.report, self.max_characters = feedback, report, max_characters
        self.thread = ThreadPoolExecutor(1)
        self.before, self.after = (Together(model.stream, self.thread) for model in (before, after))
        self.pattern = StrongWords().pattern

    @asynccontextmanager
    async def lifespan(self, app: FastAPI) -> AsyncIterator[None]:
        """Answers questions while the server runs."""
        workers = [asyncio.create_task(model.work()) for model in (self.before, self.after)]
        yield
        for worker in workers:
            worker.cancel()
        self.thread.shutdown()

    async def open(self, kept: bool = False) -> Response:
        """The empty page; `kept` thanks for a choice."""
        return self._page(kept=kept)

    async def compare(self, dialogue: Annotated[str, Form()] = "") -> Response:
        """The page with both summaries of a dialogue."""
        try:
            asked = self._checked(dialogue)
            before, after = await _together(self.before(asked), self.after(asked))
        except HTTPException as refusal:
            return self._page(refusal.status_code, dialogue=dialogue, problem=refusal.detail)
        return self._page(dialogue=asked, summaries={"before": before, "after": after})

    def keep(
        self,
        dialogue: Annotated[str, Form(min_length=1)],
        choice: Annotated[Choice, Form()],
        before: Annotated[str, Form()] = "",
        after: Annotated[str, Form()] = "",
    ) -> Response:
        """Notes a choice."""
        if self.feedback is None:
            raise HTTPException(404, "This server keeps no choices: start it with --feedback FILE.")
        texts = [_unix(text) for text in (dialogue, before, after)]
        self.feedback.keep(texts[0], texts[1], texts[2], choice)
        return RedirectResponse("/?kept=true", 303)

    async def summarize(self, question: Question) -> Answer:
        """Summaries of one dialogue or of several, and how toxic each is."""
        asked = question.dialogues if question.dialogue is None else [question.dialogue]
        summaries = await _together(*(self.after(text) for text in [self._checked(text) for text in asked or ()]))
        toxicity: list[Any] = [one.toxicity for one in summaries]
        return Answer(summaries=[one.text for one in summaries], toxicity=toxicity)

    async def show_report(self) -> Response:
        """The report of the run, which carries its own content security policy."""
        if not self._has_report():
            raise HTTPException(404, "There is no report: make it with python -m detox_rl.evaluate RUN.")
        return FileResponse(str(self.report), media_type="text/html")

    async def show_style(self) -> Response:
        """The style sheet."""
        return Response(style(), media_type="text/css")

    def _has_report(self) -> bool:
        return self.report is not None and self.report.is_file()

    def _page(self, status: int = 200, **said: object) -> Response:
        said = {"dialogue": "", "summaries": None, "problem": None, "kept": False} | said
        about = {"names": self.names, "feedback": self.feedback, "report": self._has_report()}
        text = render(self.pattern, max_characters=self.max_characters, **about, **said)
        return HTMLResponse(text, status, HEADERS)

    def _checked(self, dialogue: str) -> str:
        """A dialogue as a model gets it.

        Raises:
            HTTPException: 422, if it is blank, too long or no text.
        """
        dialogue = _unix(dialogue).strip()
        if not dialogue:
            raise HTTPException(422, "The dialogue is empty: give one turn a line, such as Tom: You left the bin open.")
        if len(dialogue) > self.max_characters:
            raise HTTPException(
                422,
                f"The dialogue has {len(dialogue):,} characters, more than {self.max_characters:,}: give a shorter one.",
            )
        try:
            dialogue.encode()
        except UnicodeEncodeError:  # json can escape what is no text
            raise HTTPException(
                422, "The dialogue holds half a character, a surrogate without the other: take it out."
            ) from None
        return dialogue


def application(site: Site, requests_per_minute: int | None) -> FastAPI:
    """The whole server, without the page /docs of FastAPI, which would load scripts from elsewhere; /openapi.json is there.

    Args:
        site: what its routes share.
        requests_per_minute: of a client, counting those that send something; None for no limit.
    """
    app = FastAPI(title="detox_rl", docs_url=None, redoc_url=None, lifespan=site.lifespan)
    page = APIRouter(include_in_schema=False)
    page.add_api_route("/", site.open, methods=["GET"])
    page.add_api_route("/", site.compare, methods=["POST"])
    page.add_api_route("/feedback", site.keep, methods=["POST"])
    page.add_api_route("/report", site.show_report, methods=["GET"])
    page.add_api_route("/style.css", site.show_style, methods=["GET"])
    app.include_router(page)
    app.add_api_route("/summarize", site.summarize, methods=["POST"])
    app.add_middleware(Limits, rate=None if requests_per_minute is None else Rate(requests_per_minute))
    app.add_exception_handler(RequestValidationError, _say_what_is_wrong)
    app.add_exception_handler(asyncio.QueueFull, _say_to_wait)
    return app


async def _together(*answers: Awaitable[Summary]) -> list[Summary]:
    try:
        return await asyncio.gather(*answers)
    except ValueError as error:  # a dialogue that the model cannot read
        raise HTTPException(422, str(error)) from error


async def _say_what_is_wrong(request: Request, error: Exception) -> JSONResponse:
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"])
    sentence = f"{place}: {first['msg'].removeprefix('Value error, ')}"
    if request.url.path == "/summarize":
        sentence += f"; send application/json such as {EXAMPLE}"
    return JSONResponse({"detail": f"{sentence}."}, 422)


async def _say_to_wait(request: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"detail": "Too many dialogues are waiting: try again in a moment."}, 503, {"Retry-After": "5"})


def _unix(text: str) -> str:
    """Forms are sent with the line ends of the network."""
    return text.replace("\r\n", "\n")
