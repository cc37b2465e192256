"""Trains the embedded n-gram judge, a logistic regression over hashed n-grams, on nothing that the reward has read.

    python scripts/assets/train_hashed_ngrams.py --data FOLDER [--output detox_rl/assets/hashed_ngrams]
    python scripts/assets/measure_judges.py --data FOLDER      # afterwards: the figures of the card

FOLDER holds a folder of gzipped json lines for each of the readers in toxicity_sources.py.
"""

import argparse
import json
import random
import re
from pathlib import Path

import numpy as np
from safetensors.numpy import save
from scipy import sparse
from sklearn.calibration import CalibratedClassifierCV
from sklearn.linear_model import LogisticRegression
from sklearn.utils.class_weight import compute_sample_weight
from toxicity_sources import ASSETS, common_runs, dialogues, divide, hold_out, without
from train_toxicity_classifier import SEED, training_rows

from detox_rl.classifiers import ngram_vectorizers

NGRAMS = {
    "words": {"analyzer": "word", "token_pattern": r"(?u)\b\w[\w']*\b", "ngram_range": [1, 2]},
    "letters": {"analyzer": "char_wb", "ngram_range": [2, 5]},
}
FEATURES = 2**19  # of each kind: two bytes each, 2 MiB in all
INVERSE_PENALTY = 4.0

# Struck out of the training texts, so that the name of a group is evidence of nothing: in the sources it stands mostly
# beside insults, and a linear model cannot tell the two apart.
GROUPS = re.compile(
    r"""(?ix) \b (?:
    gay | lesbian | queer | trans(?:gender|sexual)? | (?:homo|bi|hetero)?sexual(?:ity)? | sex | gender
    | (?:wo)?m[ae]n | girl | boy | (?:fe)?male | lady | ladies | wife | wives | mother | mom | feminist
    | black | white | brown | yellow | race | racial | minority | asian | african | american | mexican | latin[oa]
    | hispanic | arab | indian | chinese | japanese | russian | german | french | british | english | irish | polish
    | turk(?:ish)? | pakistani | israeli | palestinian | immigrant | migrant | refugee | foreigner
    | muslim | islam(?:ic)? | jew(?:ish)? | judaism | christian | catholic | hindu | sikh | buddhist | atheist
    | religion | religious | disabled | disability | deaf | blind | autistic | old | elderly
    ) s? \b"""
)


def separate(data):
    """Returns the sources of reward and judge, and how many rows the judge gave up because the reward has read them."""
    reward, judge = divide(data)
    read = [text for text, _ in training_rows(hold_out(reward)[0], random.Random(SEED))]
    for row in dialogues("*"):
        turns = [turn.split(": ", 1)[1] for turn in row["dialogue"].split("\n")]
        read += [row["summary"], row["quoting_summary"] or "", *turns]
    kept = without(judge, common_runs([text for rows in judge.values() for text, _ in rows], read))
    return reward, kept, sum(len(judge[name]) - len(kept[name]) for name in judge)


def fit(features, labels):
    """Returns weights (features,) and bias of a calibrated logistic regression, as if both classes were as frequent."""
    regression = LogisticRegression(C=INVERSE_PENALTY, solver="liblinear")
    calibrated = CalibratedClassifierCV(regression, method="sigmoid", cv=5, ensemble=False)
    calibrated.fit(features, labels, sample_weight=compute_sample_weight("balanced", labels))
    (fitted,) = calibrated.calibrated_classifiers_
    (sigmoid,) = fitted.calibrators
    # p = 1 / (1 + exp(a * decision + b)), so scale and shift go into the weights.
    return -sigmoid.a_ * fitted.estimator.coef_[0], -sigmoid.a_ * fitted.estimator.intercept_[0] - sigmoid.b_


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with the labelled sets")
    parser.add_argument(
        "--output", type=Path, default=ASSETS / "hashed_ngrams", help="where it is written (default: %(default)s)"
    )
    args = parser.parse_args()
    _, sources, given_up = separate(args.data)
    rows = [row for source in hold_out(sources)[0].values() for row in source]
    texts = [" ".join(GROUPS.sub(" ", text).split()) for text, _ in rows]
    settings = {kind: options | {"binary": True, "n_features": FEATURES} for kind, options in NGRAMS.items()}
    features = sparse.hstack([v.transform(texts) for v in ngram_vectorizers(settings).values()]).tocsr()
    weights, bias = fit(features, [label for _, label in rows])
    halves = dict(zip(settings, np.split(weights.astype(np.float16), len(settings))))
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / "weights.safetensors").write_bytes(save(halves))  # save_file's files only their owner may read
    run = {"training rows": len(rows), "rows given up to the reward": given_up}
    for name, content in (("settings", {"bias": bias, "ngrams": settings}), ("metrics", run)):
        (args.output / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
