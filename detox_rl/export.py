"""Trained weights for use elsewhere: `python -m detox_rl.export RUN --to merged --out FOLDER`."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

from jsonargparse import ActionYesNo, ArgumentParser
from lightning.pytorch.cli import ArgsType

from detox_rl.cli import HelpFormatter, one_sentence_errors
from detox_rl.exporting import check_form, read_source, write_form
from detox_rl.report.card import write_card
from detox_rl.verifying import check_faithful, compare, table

DESCRIPTION = """Writes trained weights as a PEFT adapter, a whole T5 or for CTranslate2, and checks that they say the same.

Examples:
  python -m detox_rl.export lightning_logs/version_0 --to merged --out summariser
  python -m detox_rl.export lightning_logs/version_0/checkpoints/last.ckpt --to adapter --out adapter
  python -m detox_rl.export lightning_logs/version_0 --to ctranslate2 --dtype int8 --out fast"""


def export(
    source: str,
    to: Literal["adapter", "merged", "ctranslate2"],
    out: str,
    dtype: Literal["float32", "bfloat16", "int8"] = "float32",
    verify: bool = True,
) -> None:
    """Writes a folder, whole or not at all.

    Args:
        source: folder of a run, a .ckpt file of one, or folder or hub id of an adapter.
        to: adapter (plain PEFT, on the untouched base), merged (a whole T5 for transformers) or ctranslate2.
        out: folder to write; it must not exist.
        dtype: of the weights: float32 for all three, bfloat16 for merged and ctranslate2, int8 for ctranslate2.
        verify: load what was written afresh, and compare it with the source on embedded validation dialogues.

    Raises:
        FileExistsError: if the folder is there already.
        ValueError: if there is nothing to export, there is no such form, or it says something else than the source.
    """
    check_form(to, dtype, verify)
    target = Path(out)
    if target.exists():
        raise FileExistsError(
            f"{out} exists already, and is not overwritten: name another folder with --out, or delete it."
        )
    trained = read_source(source)
    target.parent.mkdir(parents=True, exist_ok=True)
    # In a folder beside it, so that whatever bears the name is whole and has been compared.
    with TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as work:
        written = Path(work) / to
        write_form(trained, to, dtype, written)
        lines = compare(trained, to, dtype, written) if verify else []
        if lines:
            print(table(lines))
        check_faithful(lines, to, dtype)
        rows = [(line.measure, line.found, line.allowed) for line in lines]
        write_card(written, to, trained.recipe, trained.config, trained.report, dtype, rows)
        written.rename(target)
    size = sum(file.stat().st_size for file in target.iterdir()) / 1e6
    print(f"Written: {target} ({to}, {dtype}, {size:.0f} MB)   Use: python -m detox_rl.summarize --model {target} FILE")


def main(args: ArgsType = None) -> None:
    """The command line of `export`."""
    with one_sentence_errors():
        parser = ArgumentParser(
            prog="python -m detox_rl.export",
            description=DESCRIPTION,
            formatter_class=HelpFormatter,
            exit_on_error=False,
        )
        parser.add_argument("source", help="Folder of a run, a .ckpt file of one, or folder or hub id of an adapter.")
        parser.add_argument(
            "--verify",
            action=ActionYesNo,
            default=True,
            help="Load what was written afresh, and compare it with the source on embedded validation dialogues.",
        )
        parser.add_function_arguments(export, skip={"source", "verify"})
        export(**parser.parse_args(args))  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
