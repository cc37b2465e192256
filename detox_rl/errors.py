"""How errors are worded: one clear sentence that says what to do."""

import math
import re
from collections.abc import Mapping
from typing import Any

ABOVE_ZERO = math.ulp(0.0)  # the least number that is more than nothing


def check_bounds(options: Any, prefix: str, bounds: Mapping[str, tuple[float, float]]) -> None:
    """Refuses a number that makes no sense; None is another matter.

    Args:
        options: name -> value.
        prefix: of the option's name on the command line, such as "model"; "" for none.
        bounds: name -> least and greatest value allowed.

    Raises:
        ValueError: if a value lies outside its bounds.
    """
    for name, (low, high) in bounds.items():
        value = options[name]
        if value is None or low <= value <= high:
            continue
        least = "above 0" if low == ABOVE_ZERO else f"at least {low:g}"
        wanted = least if math.isinf(high) else f"{least} and at most {high:g}"
        raise ValueError(f"{prefix}{'.' if prefix else ''}{name} must be {wanted}, not {value}.")


def first_line(error: BaseException) -> str:
    """What an error says first; its kind where it says nothing."""
    return next(iter(str(error).splitlines()), "") or type(error).__name__


def root_cause(error: BaseException) -> str:
    """The error at the bottom, in short: `datasets` wraps it in one that says nothing."""
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(error).split())[:200] or type(error).__name__


def one_sentence(error: BaseException) -> str:
    """What went wrong, on one line and without the page about types that jsonargparse puts around it."""
    option = re.match(r'Parser key "(.+?)"', str(error))
    prefix, found = "", error
    while "Union subtypes" in str(found) and found.__cause__ is not None:
        found, prefix = found.__cause__, f"{option[1]}: " if option else ""
    sentence = re.sub(
        r"Type <class '[\w.]*(Callable|Protocol)'> expects a function or a callable class: ", "", str(found)
    )
    sentence = " ".join(sentence.split()) or type(found).__name__
    if unknown := re.search(r"Group '(.+?)' does not accept option '(.+?)'", sentence):
        sentence = (
            f"This command has no option {unknown[1]}.{unknown[2]}: see --help. A config of fit and one of sft share data "
            "and trainer; put these into a file of their own, and name it with --config in both."
        )
    elif isinstance(found, UnicodeDecodeError):
        sentence = f"A file is not UTF-8 text ({sentence}): check the files you named, or convert them."
    elif isinstance(found, OSError) and found.filename:
        sentence = f"{found.filename}: {found.strerror}."
    return prefix + sentence
