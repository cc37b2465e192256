"""Checks the embedded dialogues, prints their counts, and exits 1 with one sentence per fault.

    python scripts/assets/check_dialogues.py [--folder detox_rl/assets/dialogues]

It needs nothing but Python. The table that it prints is the one in the data card (CARD.md).
"""

import argparse
import hashlib
import json
import re
import statistics
import sys
from collections import Counter, defaultdict
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[2] / "detox_rl" / "assets" / "dialogues"
SPLITS = ("train", "validation", "test")
KEYS = ("id", "dialogue", "summary", "quoting_summary", "rudeness", "conflicts")
CONFLICT_KEYS = ["by", "to", "act"]
RUDENESS = ("none", "mild", "swearing", "insult", "threat")
ACTS = RUDENESS[1:]

DIALOGUE_CHARACTERS = (200, 1000)
SUMMARY_CHARACTERS = (60, 220)
QUOTING_TO_NEUTRAL = (0.7, 1.4)  # in characters, so that length does not tell the two summaries apart
FEWEST_TURNS = 3
FEWEST_TEST_ROWS = 120
SHINGLE_WORDS = 5
NEAR_DUPLICATE = 0.3  # Jaccard similarity of the sets of shingles, speakers' names left out

_TURN = re.compile(r"[^:\n]{1,40}: \S")
_WORD = re.compile(r"[^\W\d_]+(?:['-][^\W\d_]+)*")

# Rude wherever they stand, in any ending: no neutral summary and no polite dialogue may hold them.
_ALWAYS_RUDE = re.compile(
    r"""(?x)
    (?:\w+-?)?(?:fuck|shit|bollock|wank|arsehole|asshole|bastard|bitch|twat|dickhead)\w*
    | fkn? | wtf | stfu | gtfo | ffs | effing | frigging | bugger\w* | piss\w* | arsed? | (?:dumb|jack|bad)?ass
    | bloody | (?:god)?damn\w* | crap\w* | sod(?:ding)? | knobhead\w* | bellend\w* | tosser\w* | pricks? | shat
    | idiot\w* | moron\w* | imbecil\w* | (?:half|dim|nit|f)-?wit(?:ted)?s? | brain-?(?:dead|less) | stupid\w* | dumb\w*
    | numpt(?:y|ies) | muppets? | pillocks? | dipsticks? | numbskulls? | twerps? | twits? | gits? | wallies | clods?
    | jerks? | losers? | scum\w* | sleazebags? | scumbags? | pathetic | worthless | gormless | clueless
    | cretins? | dunces? | blockheads? | crackpots? | jobsworths? | windbags? | tightarse
    """,
    re.IGNORECASE,
)

# Rude or plain by what they are said of. They count where a quoting summary takes them from the dialogue.
_SOMETIMES_RUDE = frozenset(
    """
    amateur amateurs animal annoying attention-starved backside bag bald bat blind brain brains brat bum butcher
    butchers chimp circus clown clowns cow coward cowardly cowards crook crooked crooks daft dimwit dirty disgrace
    disgusting donkey donkeys dope dozy dried-up drunken fool fools freak freaks garbage goat gobby goldfish goose
    gossiping greedy gutless hag halfwit heartless hell hopeless hypocrite ignorant illiterate incompetent joke
    jumped-up lazy leech liar liars lump lunatic lying maniac mare mean miserable monkey mutt nag nagging nosy oaf
    pain parasite parasites penniless petty pig pigs plank pompous potato princess puppet quack rat rats robber
    robbers rot rotten rubbish ruddy sack selfish shameless shrew sissy slimy smug snake snitch snob soft sour-faced
    spineless spiteful swine talentless thick thief thieves thieving tin-eared toad toady trash trout turd two-faced
    ugly ungrateful useless vermin vile vulture weak weasel whining whiny witch worm wretch zip
    """.split()
)

# Slurs against groups of people (race, religion, sexuality, gender, disability) may stand nowhere. They are kept as
# the first 12 hex digits of the SHA-256 of the lower-case word, so that this file does not spread them; words that
# are also everyday names of the group, or plain English, are left out.
_SLURS = frozenset(
    """
    0515b9e67e0e 08a841e99678 093b7636b24a 0be9b885f4a3 118418653f4d 120f6e5b4ea3 12e6274e4309 158869a97379
    16ea09fc78ca 17bde8b40646 1802d081455e 22fc75e65a0e 27a62b68179c 27eb0c4ad707 333f76180929 33740da8a87d
    3b1e0d7c5dd4 3c9d595181c3 3cc0a581d3bb 428cc39e867f 43508b5c03b8 469c0fdb6020 4b18aefe826a 544fc8545c8d
    566f532d486c 56d9e1f65737 586697d3fad8 58d5ed002eca 5b3ae48be122 6122fdf4ae14 6182f690da88 619bc82e0d20
    65961619eae0 66415f8ce37b 6b571f65fa6f 6d1833779e38 70aafb426695 728f269a6eca 80f304ff7070 85580f904474
    86607d124f0f 886d51e97ad7 8ae667fa85ed 8d2f40570be9 8f5083e3e5c7 94a877e2ce63 94c6d2e10a76 96c91fa84782
    98b52c4b6b7d 9915ba2d8222 9ae315a94e42 9d57436661e1 9f1c7abfa23b a7bf072c97a0 acc96930e3a6 ad64e56f214e
    ad6cacf3af98 b15f4a2183aa b3cec2f6ece2 b66dd06a13d8 b726c4b4a1b4 bb87adf8aa78 bd331fb1d242 be00f1af522e
    bff7a4bf43f6 c1b4ed05397d c2c3b68b4883 c3de533e9b7f cc02032349c8 d00a3db7315a d067075bc9d8 d316bfb1721b
    da0a6b1b9213 dc675e448132 e4df1b8c5eef e742d17ff490 e9e8b6c5afa7 edf5e73441f8 ee5a869b5ace eef3bd091670
    f64c6fad9c3c f9d0d9b18ae9
    """.split()
)


def main(arguments: list[str] | None = None) -> int:
    """Runs the check and returns the exit code: 0 when nothing is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--folder",
        type=Path,
        default=FOLDER,
        help="where train, validation and test.jsonl are (default: the embedded ones)",
    )
    folder = parser.parse_args(arguments).folder
    try:
        splits = {split: read(folder / f"{split}.jsonl") for split in SPLITS}
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    faults = check(splits)
    for fault in faults:
        print(fault, file=sys.stderr)
    if faults:
        print(f"{len(faults)} faults; mend the rows in {folder}.", file=sys.stderr)
        return 1
    print(table(splits))
    return 0


def read(path: Path) -> list[dict]:
    """Returns the rows of one jsonl file.

    Raises:
        ValueError: A line is no JSON object with exactly the keys and types of a dialogue; the sentence names it.
        FileNotFoundError: There is no such file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; --folder must hold {', '.join(f'{s}.jsonl' for s in SPLITS)}.")
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: not JSON ({error}).") from None
        if not isinstance(row, dict) or set(row) != set(KEYS):
            raise ValueError(f"{path}, line {number}: a row must have exactly the keys {', '.join(KEYS)}.")
        for key, value in row.items():
            if key == "conflicts":
                if not isinstance(value, list) or not all(_is_conflict(entry) for entry in value):
                    raise ValueError(f'{path}, line {number}: conflicts must be a list of {{"by", "to", "act"}}.')
            elif not isinstance(value, str) and not (key == "quoting_summary" and value is None):
                raise ValueError(f"{path}, line {number}: {key} must be text, not {value!r}.")
        rows.append(row)
    return rows


def _is_conflict(entry: object) -> bool:
    """Three texts by name, of which `to` may be null: rudeness that is aimed at nobody."""
    if not isinstance(entry, dict) or list(entry) != CONFLICT_KEYS:
        return False
    return all(isinstance(value, str) or (key == "to" and value is None) for key, value in entry.items())


def check(splits: dict[str, list[dict]]) -> list[str]:
    """Returns one sentence per fault of the whole set; an empty list means that all is well."""
    named = [(f"{split} {row['id']}", row) for split, rows in splits.items() for row in rows]
    faults = [f"{name}: {fault}" for name, row in named for fault in row_faults(row)]
    return faults + _duplicates(named) + _test_split(splits["test"])


def row_faults(row: dict) -> list[str]:
    """Returns what is wrong with one row taken by itself."""
    return _form(row) + _neutral(row) + _quoting(row) + _conflicts(row) + _slurs(row)


def _form(row: dict) -> list[str]:
    dialogue, faults = row["dialogue"], []
    expected = identity(dialogue)
    if row["id"] != expected:
        faults.append(f"the id must be {expected}, the first 12 hex digits of the dialogue's SHA-256.")
    if row["rudeness"] not in RUDENESS:
        faults.append(f"rudeness must be one of {', '.join(RUDENESS)}, not {row['rudeness']!r}.")
    faults += _length("the dialogue", dialogue, DIALOGUE_CHARACTERS)
    faults += _length("the summary", row["summary"], SUMMARY_CHARACTERS)
    turns = dialogue.split("\n")
    if len(turns) < FEWEST_TURNS:
        faults.append(f"the dialogue has {len(turns)} turns; at least {FEWEST_TURNS} are needed.")
    faults += [f"every turn must read 'Name: text', but one is {turn!r}." for turn in turns if not _TURN.match(turn)]
    return faults


def _length(what: str, text: str, bounds: tuple[int, int]) -> list[str]:
    if bounds[0] <= len(text) <= bounds[1]:
        return []
    return [f"{what} has {len(text)} characters; {bounds[0]} to {bounds[1]} are allowed."]


def _neutral(row: dict) -> list[str]:
    """The neutral summary must not hold rude words, nor may a dialogue that is called polite."""
    summary = words(row["summary"])
    lifted = set(words(row["quoting_summary"] or "")) & set(words(row["dialogue"])) & _SOMETIMES_RUDE
    rude = [word for word in summary if _ALWAYS_RUDE.fullmatch(word) or word in lifted]
    faults = [f"the neutral summary holds the rude word {word!r}." for word in rude]
    if row["rudeness"] == "none":
        rude = [word for word in words(row["dialogue"]) if _ALWAYS_RUDE.fullmatch(word)]
        faults += [f"rudeness is 'none', but the dialogue holds {word!r}." for word in rude]
    return faults


def _quoting(row: dict) -> list[str]:
    """A quoting summary stands beside every rude dialogue, about as long as the neutral one, and does quote."""
    quoting = row["quoting_summary"]
    if (quoting is None) != (row["rudeness"] == "none"):
        return ["a quoting summary must be there exactly when rudeness is not 'none'."]
    if quoting is None:
        return []
    faults = _length("the quoting summary", quoting, SUMMARY_CHARACTERS)
    ratio = len(quoting) / max(len(row["summary"]), 1)
    if not QUOTING_TO_NEUTRAL[0] <= ratio <= QUOTING_TO_NEUTRAL[1]:
        faults.append(f"the quoting summary is {ratio:.2f} times as long as the neutral one.")
    if not repeats_rudeness(row):
        faults.append("the quoting summary repeats no rude wording of the dialogue.")
    return faults


def repeats_rudeness(row: dict) -> bool:
    """Whether the quoting summary takes from the dialogue a rude word, or three words in a row, that are rude.

    Rude words are looked up. For rudeness without such a word ("go and paint your nails"), three consecutive words
    that the neutral summary lacks count as repeated; whether they are rude only a reader can tell.
    """
    dialogue, neutral, quoting = (words(row[key]) for key in ("dialogue", "summary", "quoting_summary"))
    taken = (set(quoting) & set(dialogue)) - set(neutral)
    if any(word in _SOMETIMES_RUDE or _ALWAYS_RUDE.fullmatch(word) for word in taken):
        return True
    return bool((_shingles(quoting, 3) & _shingles(dialogue, 3)) - _shingles(neutral, 3))


def _conflicts(row: dict) -> list[str]:
    """Who is rude to whom stands beside every rude dialogue and beside no other, and speakers by their exact names."""
    if (not row["conflicts"]) != (row["rudeness"] == "none"):
        return ["conflicts must be there exactly when rudeness is not 'none'."]
    speakers = {turn.partition(": ")[0] for turn in row["dialogue"].split("\n")}
    faults = []
    for by, to, act in map(dict.values, row["conflicts"]):
        if by not in speakers:
            faults.append(f"a conflict is by {by!r}, who says nothing in the dialogue.")
        if to == by:
            faults.append(f"a conflict is by {by!r} and to the same.")
        if to is not None and to not in speakers and (meant := _speaker_meant(to, speakers)):
            faults.append(f"a conflict is to {to!r}, but the speaker's exact name is {meant!r}.")
        if act not in ACTS:
            faults.append(f"the act of a conflict must be one of {', '.join(ACTS)}, not {act!r}.")
    return faults


def _speaker_meant(party: str, speakers: set[str]) -> str | None:
    """The speaker of this name in another case or with "the", or of whose name it is a part and written like one."""
    said = set(words(party)) - {"the"}
    named = {name: set(words(name)) - {"the"} for name in sorted(speakers)}
    return next((name for name, own in named.items() if said == own or (party[:1].isupper() and said <= own)), None)


def _slurs(row: dict) -> list[str]:
    text = " ".join(row[key] or "" for key in ("dialogue", "summary", "quoting_summary"))
    slurs = {word for word in words(text) if {identity(word), identity(word.removesuffix("s"))} & _SLURS}
    return [f"a slur against a group begins with {slur[0]!r} and has {len(slur)} letters." for slur in sorted(slurs)]


def _duplicates(named: list[tuple[str, dict]]) -> list[str]:
    """Repeated ids (so also dialogues that stand in two splits), repeated summaries, and near-duplicate dialogues."""
    faults = []
    for key in ("id", "summary"):
        places = defaultdict(list)
        for name, row in named:
            places[row[key].casefold()].append(name)
        faults += [f"{' and '.join(same)}: the same {key}." for same in places.values() if len(same) > 1]
    for first, second, similarity in near_duplicates([row["dialogue"] for _, row in named]):
        faults.append(f"{named[first][0]} and {named[second][0]}: near-duplicates (similarity {similarity:.2f}).")
    return faults


def near_duplicates(dialogues: list[str], threshold: float = NEAR_DUPLICATE) -> list[tuple[int, int, float]]:
    """Returns the pairs of positions whose sets of word 5-grams overlap, by Jaccard, by more than the threshold.

    Speakers' names are left out, so that a dialogue told again by other people is found.
    """
    sets = [_shingles(words(re.sub(r"(?m)^[^:\n]*: ", "", dialogue)), SHINGLE_WORDS) for dialogue in dialogues]
    holders = defaultdict(list)  # shingle -> positions, in rising order
    for position, shingles in enumerate(sets):
        for shingle in shingles:
            holders[shingle].append(position)
    shared = Counter(
        (first, second)
        for positions in holders.values()
        for index, second in enumerate(positions)
        for first in positions[:index]
    )
    similar = [(a, b, both / (len(sets[a]) + len(sets[b]) - both)) for (a, b), both in shared.items()]
    return sorted(pair for pair in similar if pair[2] > threshold)


def _test_split(rows: list[dict]) -> list[str]:
    rude = sum(row["rudeness"] != "none" for row in rows)
    faults = []
    if len(rows) < FEWEST_TEST_ROWS:
        faults.append(f"the test split has {len(rows)} rows; at least {FEWEST_TEST_ROWS} are needed.")
    if 2 * rude != len(rows):
        faults.append(f"half of the test split must be rude, but {rude} of {len(rows)} rows are.")
    return faults


def identity(text: str) -> str:
    """Returns the first 12 hex digits of the SHA-256 of a text."""
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def words(text: str) -> list[str]:
    """Returns the words of a text in lower case; hyphens and apostrophes inside a word stay."""
    return _WORD.findall(text.lower().replace("’", "'"))


def _shingles(sequence: list[str], size: int) -> set[tuple[str, ...]]:
    return {tuple(sequence[start : start + size]) for start in range(len(sequence) - size + 1)}


def table(splits: dict[str, list[dict]]) -> str:
    """Returns the counts by rudeness and of acts, and the lengths, as a Markdown table, a column a split."""
    columns = [*splits.values(), [row for rows in splits.values() for row in rows]]
    lines = ["| | " + " | ".join([*splits, "all"]) + " |", "|---" + "|---:" * len(columns) + "|"]
    lines.append(_line("dialogues", [len(rows) for rows in columns]))
    for kind in RUDENESS:
        lines.append(_line(f"rudeness: {kind}", [sum(row["rudeness"] == kind for row in rows) for rows in columns]))
    for act in ACTS:
        lines.append(_line(f"conflicts: {act}", [sum(_acts(row).count(act) for row in rows) for rows in columns]))
    lines.append(_line("turns", [_spread(row["dialogue"].count("\n") + 1 for row in rows) for rows in columns]))
    for key in ("dialogue", "summary", "quoting_summary"):
        lengths = [_spread(len(row[key]) for row in rows if row[key]) for rows in columns]
        lines.append(_line(f"characters: {key}", lengths))
    return "\n".join(lines)


def _acts(row: dict) -> list[str]:
    return [conflict["act"] for conflict in row["conflicts"]]


def _line(title: str, cells: list) -> str:
    return f"| {title} | " + " | ".join(map(str, cells)) + " |"


def _spread(numbers) -> str:
    ordered = sorted(numbers)
    return f"{ordered[0]} / {statistics.median(ordered):g} / {ordered[-1]}" if ordered else "-"


if __name__ == "__main__":
    sys.exit(main())
