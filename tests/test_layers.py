"""Imports inside the package go downwards only: a module knows those of the layers below its own, and no others."""

import ast
from pathlib import Path

import pytest

LAYERS = """
functional.advantages functional.dual functional.kl functional.logprobs functional.losses functional.masking
functional.scores functional.statistics <
errors text writing conflict.record conflict.tokens < embedded < conflict.lexicon < conflict.grammar < conflict.people <
conflict.clauses conflict.quotes < conflict.report < model.linear model.recipe < model.vocabulary model.t5
model.adapters < classifiers model.policy model.translator < data.marks < model.step_decoder model.merged rollout < model.sampling <
data.prompts data.sources data.batching < engines data.reading data.datamodule < summaries data.preferences <
meaning preference agreement < rewards < floors < score < metrics < summarizer < rows training validation <
cluster checkpoints < ppo_module sft_module preference_module < report.wording report.statistics report.measures report.curves
report.provenance report.charts < report.judges report.dialogues report.systems report.tables report.picture <
report.runs report.card report.values report.before_after report.page < report.figures report.files app.together
app.limits app.feedback app.page < app.web < guard callbacks self_check < trainers < cli < exporting < verifying <
fit sft prefer evaluate summarize export serve
"""
LAYER = {f"detox_rl.{module}": number for number, line in enumerate(LAYERS.split("<")) for module in line.split()}
PACKAGE = Path(__file__).parent.parent / "detox_rl"
FILES = {".".join(file.relative_to(PACKAGE.parent).with_suffix("").parts): file for file in PACKAGE.rglob("*.py")}
PACKAGES = {name for name in FILES if name.endswith(".__init__")}  # the topmost one loads parts when asked for them
ONLY = {
    "peft": "detox_rl.model.adapters", "detoxify": "detox_rl.classifiers", "ctranslate2": "detox_rl.model.translator",
    "fastapi": "detox_rl.app.web", "ray": "detox_rl.cluster",
}  # fmt: skip


def imported(name: str) -> set[str]:
    """All modules that a module imports, also inside its functions."""
    names = set()
    for node in ast.walk(ast.parse(FILES[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: a relative import does not say where it leads"
            names |= {f"{node.module}.{alias.name}" for alias in node.names} & FILES.keys() or {node.module}
    return names


def test_every_module_has_its_layer():
    assert LAYER.keys() == FILES.keys() - PACKAGES
    assert set().union(*map(imported, PACKAGES)) == {"importlib", "typing"}


@pytest.mark.parametrize("name", LAYER)
def test_imports_go_downwards(name):
    own = {other for other in imported(name) if other.partition(".")[0] == "detox_rl"}
    others = {other.partition(".")[0] for other in imported(name) - own}
    assert {other for other in own if LAYER.get(other, len(LAYERS)) >= LAYER[name]} == set()
    assert {package for package in others & ONLY.keys() if ONLY[package] != name} == set()
    assert others == {"torch"} or "functional" not in name
