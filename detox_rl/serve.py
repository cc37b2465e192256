"""Serves a page to try a model beside its warm start, and a small API.

Examples:
  python -m detox_rl.serve --model lightning_logs/version_0
  curl http://127.0.0.1:8000/summarize --json '{"dialogues": ["Tom: You left the bin open."]}'
"""

import socket
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

from jsonargparse import ArgumentParser
from lightning.pytorch.cli import ArgsType

from detox_rl.classifiers import Detoxify
from detox_rl.cli import HelpFormatter, one_sentence_errors
from detox_rl.embedded import EMBEDDED
from detox_rl.errors import check_bounds
from detox_rl.report.runs import read_config, usage_of
from detox_rl.report.systems import is_run
from detox_rl.summarizer import Summarizer

NEEDED = "fastapi", "python_multipart", "uvicorn"


def serve(
    model: str,
    baseline: str | None = None,
    host: str = "127.0.0.1",
    port: int = 8000,
    feedback: str | None = "feedback.jsonl",
    max_characters: int = 20_000,
    requests_per_minute: int | None = 60,
) -> None:
    """Serves the page and the API until Ctrl-C.

    Args:
        model: folder of a run; folder or hub id of a PEFT adapter, or of a whole T5; or embedded.
        baseline: shown beside it, named in the same ways; unset: the warm start of the run, else embedded.
        host: address to listen at; 0.0.0.0 lets in whoever reaches this machine, and there is no password.
        port: to listen at; 0 for any that is free.
        feedback: a jsonl file to which is added which summary people find better; null shows no buttons.
        max_characters: of a dialogue; a longer one is refused.
        requests_per_minute: of a client, by its address; null for no limit.

    Raises:
        ModuleNotFoundError: if what the extra `app` brings is not installed.
        OSError: if the address cannot be had, or the folder of `feedback` is not there.
        ValueError: if options make no sense, or a model cannot be had.
    """
    check_installed()
    import uvicorn

    from detox_rl.app.feedback import Feedback
    from detox_rl.app.web import Model, Site, application

    most = {"port": (0, 65_535), "max_characters": (1, float("inf")), "requests_per_minute": (1, float("inf"))}
    check_bounds(locals(), "", most)
    kept = None if feedback is None else Feedback(Path(feedback))
    with bound(host, port) as own:
        before, after = summarizers(model, baseline)
        names = baseline or ("warm start" if is_run(model) else EMBEDDED), Path(model).name
        report = Path(model) / "evaluation" / "report.html"
        site = Site(Model(names[0], before.stream), Model(names[1], after.stream), kept, report, max_characters)
        config = uvicorn.Config(application(site, requests_per_minute), log_level="warning")
        own.listen()  # so that whoever reads the address at once is not refused
        print(f"The page is at {address(own)} (Ctrl-C ends it).", flush=True)
        with suppress(KeyboardInterrupt):
            uvicorn.Server(config).run(sockets=[own])


def check_installed() -> None:
    """Says what to install.

    Raises:
        ModuleNotFoundError: if something is not there.
    """
    if absent := [name for name in NEEDED if find_spec(name) is None]:
        raise ModuleNotFoundError(f'The page needs {", ".join(absent)}: pip install "detox_rl[app]"')


def bound(host: str, port: int) -> socket.socket:
    """A socket that has the address, before a model is loaded for it.

    Raises:
        OSError: if the address cannot be had.
    """
    try:
        family, kind, _, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        own = socket.socket(family, kind)
        own.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        own.bind(place)
    except OSError as error:
        raise OSError(f"{host} port {port} cannot be listened at ({error.strerror}): set --host or --port.") from error
    return own


def address(own: socket.socket) -> str:
    """Of the page, for a browser."""
    host, port = own.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def summarizers(model: str, baseline: str | None) -> tuple[Summarizer, Summarizer]:
    """The baseline and the model, judged by the embedded classifier.

    Raises:
        OSError, ValueError: if one cannot be had.
    """
    judge = Detoxify()
    if baseline is not None or not is_run(model):
        return Summarizer(baseline or EMBEDDED, judge=judge), Summarizer(model, judge=judge)
    config = read_config(Path(model))
    config["model"] = {"warm_start": None} | config["model"]  # a run of sft has none
    usage = usage_of(config)
    before = Summarizer(usage.warm_start, usage.base_model, usage.max_new_tokens, usage.prompt, judge=judge)
    return before, Summarizer(model, judge=judge)


def main(args: ArgsType = None) -> None:
    """The command line of `serve`."""
    with one_sentence_errors():
        parser = ArgumentParser(
            prog="python -m detox_rl.serve", description=__doc__, exit_on_error=False, formatter_class=HelpFormatter
        )
        parser.add_function_arguments(serve)
        serve(**parser.instantiate(parser.parse_args(args)))  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
