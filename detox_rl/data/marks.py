"""Rude turns of a dialogue, marked for the model that reads it: it knows then who was rude, and need not guess."""

from functools import cache

from tqdm import tqdm

from detox_rl.classifiers import Detoxify

MARK = " (rude)"
RUDE = 0.5  # a turn is marked that the embedded classifier finds likelier toxic than this
BATCH = 1024  # turns between two moves of the bar


def mark_rude_turns(dialogues: list[str]) -> list[str]:
    """The same dialogues, with a mark behind the speaker's name in each rude turn: `Tom (rude): You pig.`

    A turn is a line `Name: text`; the others stay as they are. To mark twice is to mark once.
    """
    lines = [dialogue.split("\n") for dialogue in dialogues]
    said = sorted(dict.fromkeys(line.partition(": ")[2] for turns in lines for line in turns), key=len)
    bar = tqdm(range(0, len(said), BATCH), "Marking rude turns", delay=3, leave=False, disable=None)
    toxicity = [p for start in bar for p in _judge()(said[start : start + BATCH]).probability.tolist()]
    rude = {text for text, probability in zip(said, toxicity) if text and probability > RUDE}
    return ["\n".join(_marked(line, rude) for line in turns) for turns in lines]


def _marked(line: str, rude: set[str]) -> str:
    name, colon, text = line.partition(": ")
    return f"{name}{MARK}{colon}{text}" if name and text in rude and not name.endswith(MARK) else line


@cache
def _judge() -> Detoxify:
    return Detoxify()
