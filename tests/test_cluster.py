"""`summarize --ray`: a corpus of shards on a Ray cluster gives what the ordinary command gives of each of them."""

import importlib.util
import json
import os
import re
import signal
from pathlib import Path

import pandas as pd
import pytest
from commands import failure
from doubles import VowelJudge, subprocess_environment

from detox_rl import cluster, summarize

HAS_RAY = importlib.util.find_spec("ray") is not None
needs_ray = pytest.mark.skipif(not HAS_RAY, reason='ray is not installed (pip install ".[cluster]")')
NUMBERS = {"a": 5, "b": 260, "c": 3}  # rows of each shard; one has more than a window


class Deadly(VowelJudge):
    """Counts the windows that it has judged, a line each, and kills its process once, in the second window of a shard.

    Args:
        folder: of its notes.
    """

    def __init__(self, folder: str) -> None:
        self.folder, self.before = Path(folder), 0

    def __call__(self, texts):
        if len(texts) == 4 and self.before == 256 and not (self.folder / "killed").exists():
            (self.folder / "killed").write_text(str(os.getpid()))
            os.kill(os.getpid(), signal.SIGKILL)
        self.before = len(texts)
        if len(texts) != 2:  # not when it is only tried
            with (self.folder / "windows").open("a") as file:
                file.write(f"{len(texts)}\n")
        return super().__call__(texts)


class Broken(VowelJudge):
    """Fails on more texts than it is tried with."""

    def __call__(self, texts):
        if len(texts) > 2:
            raise RuntimeError("no memory left")
        return super().__call__(texts)


@pytest.fixture(scope="module")
def address():
    """A cluster of two machines with one CPU each, both of them processes of this one."""
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patched:
        for name, value in subprocess_environment().items():
            patched.setenv(name, value)
        size = {"num_cpus": 1, "object_store_memory": 80_000_000, "include_dashboard": False}
        machines = Cluster(initialize_head=True, head_node_args=size)
        machines.add_node(**size)
        yield machines.address
        machines.shutdown()


@pytest.fixture
def corpus(tmp_path) -> Path:
    """A folder of three shards: two of jsonl and one of parquet, and a file that is none."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    for name, count in NUMBERS.items():
        rows = [
            {"id": f"{name}{i}", "dialogue": f"Tom: hello {'good ' * (7 * i % 5)}\nAnna: {i} you"} for i in range(count)
        ]
        if name == "c":
            pd.DataFrame(rows).to_parquet(folder / "c.parquet")
        else:
            (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "_SUCCESS").touch()
    return folder


@pytest.fixture
def options(tiny_t5, tiny_adapter) -> list[str]:
    return ["--base_model", tiny_t5, "--model", tiny_adapter, "--max_new_tokens", "8", "--max_toxicity", "0.1"]


def ordinary(corpus: Path, args: list[str], out: Path) -> dict[str, bytes]:
    """What the command without Ray gives of each shard."""
    out.mkdir()
    for shard in corpus.glob("?.*"):
        summarize.main([str(shard), *args, "--out", str(out / f"{shard.stem}.jsonl")])
    return contents(out)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.endswith("options.json")}


@needs_ray
def test_each_shard_is_what_the_ordinary_command_makes_of_it_and_what_is_there_is_left(
    corpus, options, address, tmp_path, capfd
):
    """Made by one of the two machines; and once more with one output gone, which alone is made again."""
    args = [*options, "--judge", "doubles.VowelJudge"]
    expected = ordinary(corpus, args, tmp_path / "ordinary")
    out = tmp_path / "out"
    command = [str(corpus), *args, "--ray", address, "--out", str(out)]
    summarize.main(command)
    assert expected.keys() == {"a.jsonl", "b.jsonl", "c.jsonl"} and contents(out) == expected
    assert expected["b.jsonl"].count(b"\n") == 260 and b'"withheld": true' in expected["b.jsonl"]
    withheld = sum(content.count(b'"withheld": true') for content in expected.values())
    assert f"{withheld} of 268 summaries were withheld" in capfd.readouterr().err

    (out / "c.jsonl").unlink()
    before = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    summarize.main(command)
    assert contents(out) == expected and "2 of 3 shards were there already" in capfd.readouterr().err
    assert {name: (out / name).stat().st_mtime_ns for name in before} == before
    again = failure(summarize.main, [*command, "--seed", "1"], capfd)[1]
    assert "out was made with seed 0 (now 1)" in again and contents(out) == expected
    again = failure(summarize.main, [*command, "--model", "null"], capfd)[1]
    assert "model_fingerprint" in again and contents(out) == expected


@needs_ray
def test_a_worker_that_is_killed_costs_its_shard_alone(corpus, options, address, tmp_path):
    """And that one only the time: it is made anew by another, and nothing is there twice."""
    notes = tmp_path / "notes"
    notes.mkdir()
    args = [*options, "--judge", f"{Deadly.__module__}.Deadly", "--judge.folder", str(notes)]
    out = tmp_path / "out"
    summarize.main([str(corpus), *args, "--ray", address, "--out", str(out)])
    assert int((notes / "killed").read_text()) != os.getpid()
    assert sorted(map(int, (notes / "windows").read_text().split())) == [3, 4, 5, 256, 256]
    assert contents(out) == ordinary(corpus, args, tmp_path / "ordinary")


@needs_ray
def test_a_bad_shard_does_not_stop_the_others(corpus, options, address, tmp_path, capfd):
    (corpus / "b.jsonl").write_text('{"dialogue": "Tom: hello"}\n{"dialogue": null}\n')
    out = tmp_path / "out"
    command = [str(corpus), *options, "--judge", "doubles.VowelJudge", "--ray", address, "--out", str(out)]
    sentence = failure(summarize.main, command, capfd)[1]
    assert sentence.startswith("1 of 3 shards could not be summarised, the others are done: Row 1 of ")
    assert "b.jsonl (rows count from 0) has no dialogue in column 'dialogue'" in sentence
    assert contents(out).keys() == {"a.jsonl", "c.jsonl"}


@needs_ray
def test_what_fails_whatever_the_shard_is_said(corpus, options, address, tmp_path, capfd):
    command = [str(corpus), *options, "--judge", f"{Broken.__module__}.Broken", "--ray", address]
    sentence = failure(summarize.main, [*command, "--out", str(tmp_path / "out")], capfd)[1]
    assert sentence == "A worker failed (no memory left): put that right; the same command makes what is left."
    assert contents(tmp_path / "out") == {}


def test_a_worker_with_other_weights_is_refused():
    class Model:
        def fingerprint(self):
            return "here"

    cluster.Worker(Model, "here", "dialogue", None)
    with pytest.raises(ValueError, match="has other weights than where the command was given"):
        cluster.Worker(Model, "there", "dialogue", None)


@needs_ray
def test_local_starts_a_cluster_of_its_own_and_ends_it(corpus, options, tmp_path, monkeypatch):
    (corpus / "b.jsonl").unlink()
    args = [*options, "--judge", "doubles.VowelJudge"]
    import ray

    for name, value in subprocess_environment().items():  # where workers find the judge
        monkeypatch.setenv(name, value)
    start = ray.init
    small = {"num_cpus": 2, "object_store_memory": 80_000_000, "include_dashboard": False}
    monkeypatch.setattr(ray, "init", lambda address, **given: start(address, **given, **small))
    summarize.main([str(corpus), *args, "--ray", "local", "--out", str(tmp_path / "out")])
    assert contents(tmp_path / "out") == ordinary(corpus, args, tmp_path / "ordinary")
    assert not ray.is_initialized()


# -- what makes no sense: said before the model is loaded, and before Ray is asked ------------------


@pytest.mark.parametrize(
    "args, sentence",
    [
        (["corpus"], "name the folder of the summaries with --out"),
        (
            ["corpus", "--out", "out.jsonl"],
            "out is a folder, with a file of summaries for each file of rows, not out.jsonl",
        ),
        (["corpus", "--out", "note.txt"], "out is a folder"),
        (["corpus", "--out", "no/where"], "There is no folder .*no to make where in: make it first"),
        (["--out", "out"], "--dialogue and standard input are for one machine"),
        (["-", "--out", "out"], "--dialogue and standard input are for one machine"),
        (["corpus", "--dialogue", "A: hi", "--out", "out"], "--dialogue and standard input are for one machine"),
        (["empty", "--out", "out"], "empty holds no file that ends in .json, .jsonl, .csv, .parquet"),
        (["nothing", "--out", "out"], "There is no file or folder .*nothing"),
        (["note.txt", "--out", "out"], "note.txt is no file of rows"),
        (
            ["corpus", "more/a.csv.gz", "--out", "out"],
            "corpus/a.jsonl and .*more/a.csv.gz would both become .*out/a.jsonl",
        ),
        (["corpus", "--out", "corpus"], "a.jsonl lies in the folder that summaries are written to"),
    ],
)
def test_one_sentence(args, sentence, corpus, tmp_path, capfd, monkeypatch):
    for name in ("empty", "more"):
        (tmp_path / name).mkdir()
    for name in ("note.txt", "more/a.csv.gz"):
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    for name in ("Summarizer", "summarize_shards"):
        monkeypatch.setattr(summarize, name, lambda *args: pytest.fail("work was begun"))
    found = failure(summarize.main, [*args, "--ray", "local"], capfd)[1]
    assert re.search(sentence, found), found
    assert sorted(tmp_path.rglob("*")) == before


def test_without_ray_the_extra_is_named(corpus, tmp_path, monkeypatch, capfd):
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    command = [str(corpus), "--ray", "local", "--out", str(tmp_path / "out")]
    assert 'pip install "detox_rl[cluster]"' in failure(summarize.main, command, capfd)[1]


@needs_ray
def test_a_folder_of_somebody_else_is_left_alone(corpus, options, tmp_path, capfd):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    command = [str(corpus), *options, "--ray", "local", "--out", str(tmp_path / "out")]
    assert "out is there already, and no out.options.json beside it" in failure(summarize.main, command, capfd)[1]


@needs_ray
def test_an_address_without_a_cluster(corpus, options, tmp_path, capfd):
    command = [str(corpus), *options, "--ray", "nobody", "--out", str(tmp_path / "out")]
    assert "There is no Ray cluster at 'nobody'" in failure(summarize.main, command, capfd)[1]
