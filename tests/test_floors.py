"""Floors under terms of the reward: their bound, the multiplier that holds them, what is refused."""

import math

import pytest
import torch
from doubles import VowelJudge, attach, make_batch, make_module, train, unsettle
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import ttest_1samp

from detox_rl.classifiers import named
from detox_rl.floors import DEFAULT_FLOORS, HIGH, LOW, Floor, Floors, lower_bound
from detox_rl.functional.statistics import moments
from detox_rl.rewards import LengthBand, MissingEOS, NonToxicity, RougeL, Summaries, term_values

ONE = torch.ones(())


def rewards(weight: float = 1.0) -> list:
    return [NonToxicity(VowelJudge()), LengthBand(weight=weight), MissingEOS()]


# -- the bound -------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # scipy's, of values that hardly differ
@given(st.lists(st.floats(-1, 1), min_size=2, max_size=30))
def test_the_bound_is_that_of_students_test(values):
    interval = ttest_1samp(values, 0.0, alternative="greater").confidence_interval(0.95)
    wanted = interval.low if len(set(values)) > 1 else values[0]
    bound = lower_bound(moments(torch.tensor(values, dtype=torch.float64)))
    assert bound.item() == pytest.approx(wanted, abs=1e-6)


def test_one_value_bounds_nothing_and_zeros_bound_to_zero():
    assert lower_bound(moments(torch.tensor([5.0]))) == -math.inf
    assert lower_bound(moments(torch.zeros(2))) == lower_bound(moments(torch.zeros(1))) == 0.0


def test_more_dialogues_of_the_same_kind_show_more():
    values = torch.tensor([-0.3, -0.1, 0.1, 0.3])
    bounds = [lower_bound(moments(values.repeat(times))).item() for times in (1, 2, 10, 100)]
    assert bounds == sorted(bounds) and bounds[0] < -0.2 and -0.02 < bounds[-1] < 0.0


# -- the multiplier --------------------------------------------------------------------------------


def test_at_the_start_nothing_is_lost_and_the_multiplier_yields_to_the_allowance():
    floor = Floor(allowance=0.1)
    floor.update(moments(torch.zeros(8)), 10.0 * ONE)  # the allowance is one standard deviation
    assert lower_bound(floor.differences) == 0.0
    assert floor.ascended.item() == pytest.approx(math.exp(-0.1))
    assert floor.multiplier.item() == pytest.approx(math.exp(-0.1 - 2.0))
    strict = Floor(allowance=0.0)
    strict.update(moments(torch.zeros(8)), 10.0 * ONE)
    assert strict.multiplier == strict.ascended == 1.0


@pytest.mark.parametrize("difference, end", [(-1.0, HIGH), (1.0, LOW)])
def test_it_rises_while_the_floor_is_broken_and_falls_while_it_holds(difference, end):
    floor, before = Floor(allowance=0.1), 1.0
    for _ in range(300):
        floor.update(moments(difference + 0.1 * torch.randn(16, generator=torch.Generator().manual_seed(0))), ONE)
        sign = -math.copysign(1.0, difference)
        assert sign * floor.multiplier.item() >= sign * before
        before = floor.multiplier.item()
    assert before == pytest.approx(end)


def test_a_violation_counts_in_deviations_of_the_term():
    """The same course in points and in shares gives the same multiplier."""
    one, other = Floor(0.01), Floor(1.0)
    values = 0.05 * torch.randn(6, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for row in values:
        one.update(moments(row), 10.0 * ONE)
        other.update(moments(100.0 * row), 0.1 * ONE)
    assert one.multiplier != 1.0
    torch.testing.assert_close(one.multiplier, other.multiplier)


def test_what_says_nothing_moves_nothing():
    """A single difference, which has no bound; a term that never varied."""
    for floor, differences, inverse in (
        (Floor(0.1), torch.tensor([-5.0]), ONE),
        (Floor(0.1), torch.full((4,), -5.0), 0.0 * ONE),
    ):
        floor.update(moments(differences), inverse)
        assert floor.multiplier == 1.0


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("cost", [0.3, 0.6])
def test_it_settles_where_the_floor_just_holds(cost, seed):
    """A policy that moves along score / |score|: `cost` is what a unit of the other term, of weight 1, costs this one.

    At rest multiplier * 1 = 1 * cost + pull, and the bound, not the mean, lies on the floor; 32 differences a time.
    """
    floor, weight, x, random = Floor(allowance=0.1), 0.2, 0.0, torch.Generator().manual_seed(seed)
    bounds, multipliers = [], []
    for _ in range(300):
        floor.update(moments(x + torch.randn(32, generator=random)), ONE)
        multiplier = weight * floor.multiplier.item()
        x += 0.1 * ((multiplier - cost) / math.hypot(multiplier, 1.0) - 0.2 * x)
        bounds.append(lower_bound(floor.differences).item())
        multipliers.append(math.log(multiplier))
    settled, level = torch.tensor(bounds[150:]), torch.tensor(multipliers[150:])
    assert settled.mean().item() == pytest.approx(-0.1, abs=0.02)
    assert settled.std() < 0.1
    assert level.mean().exp().item() == pytest.approx(cost, rel=0.15) and level.std() < 0.3


# -- which terms may have one ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "floors, sentence",
    [
        ({"rougeL": 0.01}, r"model\.floors names rougeL, but the terms .* non_toxicity, length_band, missing_eos\.$"),
        ({"rouge_l": 0.02}, "names rouge_l, but the terms"),
        ({"non_toxicity": 0.1}, "names non_toxicity, which training is to raise: put floors under other terms"),
        ({"length_band": -0.1}, r"model\.floors\.length_band is .* at least 0, not -0\.1"),
        ({"length_band": math.inf}, "at least 0, not inf"),
        ({"length_band": math.nan}, "at least 0, not nan"),
    ],
)
def test_a_floor_that_cannot_be_is_refused(floors, sentence, tiny_t5):
    with pytest.raises(ValueError, match=sentence) as refused:
        make_module(tiny_t5, rewards=rewards(), floors=floors)
    assert "\n" not in str(refused.value)


def test_a_floor_under_a_term_that_is_to_fall_is_refused():
    with pytest.raises(ValueError, match="length_band, whose weight is below 0"):
        Floors(rewards(weight=-1.0), {"length_band": 0.1})


def test_the_default_holds_where_there_is_such_a_term():
    assert Floors([*rewards(), RougeL()], DEFAULT_FLOORS).allowances == {"rouge_l": 0.01}
    assert Floors(rewards(), DEFAULT_FLOORS).allowances == Floors([*rewards(), RougeL()], None).allowances == {}


def test_weights_are_multipliers_where_there_are_floors():
    terms = [*rewards(weight=4.0), lambda summaries: [0.0]]
    floors = Floors(terms, {"missing_eos": 0.0, "length_band": 0.1})
    assert list(floors) == ["length_band", "missing_eos"]  # in the order of the terms
    assert floors.weights(named(terms)).tolist() == [1.0, 4.0, 1.0, 1.0]
    losses = torch.stack([moments(torch.full((4,), -1.0)), moments(torch.zeros(4))])
    floors.update(losses, torch.ones(2))
    weights = floors.weights(named(terms)).tolist()
    assert weights[1] > 4.0 and weights[2] == 1.0
    terms[0].weight = 7.0  # a weight is read when it is needed
    assert floors.weights(named(terms))[0] == 7.0


# -- in training -----------------------------------------------------------------------------------


@pytest.mark.parametrize("everywhere", [False, True])
def test_before_any_update_nothing_is_lost(everywhere, tiny_t5, tiny_adapter, tiny_adapter_everywhere):
    """The reference draws the very summaries of the policy: same dialogues, same random numbers, same weights."""
    warm_start = tiny_adapter_everywhere if everywhere else tiny_adapter
    module = make_module(tiny_t5, warm_start, rewards=rewards(), floors={"length_band": 0.0}, lr=0.1)
    drawn, draw = [], module.draw
    module.draw = lambda encoded: drawn.append(draw(encoded)) or drawn[-1]
    metrics = []
    log = module.log_iteration
    module.log_iteration = lambda *args: (log(*args), metrics.append(dict(module.trainer.callback_metrics)))
    train(module, [make_batch(8), make_batch(8, seed=1)])
    assert drawn[0].texts == drawn[1].texts and drawn[2].texts != drawn[3].texts
    first, second = metrics
    assert first["floor/length_band"] == first["difference/length_band"] == 0.0
    assert first["multiplier/length_band"] == 1.0
    assert second["difference/length_band"] != 0.0 and second["multiplier/length_band"] != 1.0


def test_differences_are_paired_and_of_the_floored_terms(tiny_t5, tiny_adapter):
    module = attach(unsettle(make_module(tiny_t5, tiny_adapter, rewards=rewards(), floors={"length_band": 0.0})))
    batch = make_batch(8)
    sampled, summaries = module.sample(batch)
    terms = term_values(named(module.rewards), summaries)
    module.score(terms)
    with module.policy.reference():
        _, before = module.sample(batch)
    assert before.texts != summaries.texts
    judged, judge = [], module.rewards[0].classifier
    module.rewards[0].classifier = lambda texts: judged.append(texts) or judge(texts)
    module.hold_floors(batch, sampled, terms)
    assert judged == []  # the reference's summaries are not judged by what has no floor
    band = lambda texts: LengthBand()(Summaries(texts, batch.dialogues, batch.references, [True] * 8))
    wanted = moments(band(summaries.texts) - band(before.texts))
    torch.testing.assert_close(module.score.floors["length_band"].differences, wanted)
    assert wanted[2] > 0.0


def test_without_floors_the_reference_draws_nothing(tiny_t5):
    for floors in (None, {}, DEFAULT_FLOORS):
        module, drawn = make_module(tiny_t5, rewards=rewards(), floors=floors), []
        draw = module.draw
        module.draw = lambda encoded: drawn.append(1) or draw(encoded)
        metrics = train(module, [make_batch(4)]).callback_metrics
        assert drawn == [1]
        assert not [name for name in metrics if name.startswith(("floor/", "multiplier/", "difference/"))]


def test_the_multiplier_weighs_the_next_score(tiny_t5):
    """And its share of the weights is logged, of terms that vary; a term that never does has none."""
    module = attach(make_module(tiny_t5, rewards=rewards(), floors={"length_band": 0.0}))
    terms = torch.randn(16, 3, generator=torch.Generator().manual_seed(0))
    terms[:, 2] = 0.0
    module.score(terms)
    module.score.floors["length_band"].multiplier.fill_(1e6)
    scores = module.score(terms)
    column = terms[:, 1].double()
    wanted = ((column - column.mean()) / column.std(unbiased=False)).float()
    torch.testing.assert_close(scores, wanted, atol=1e-4, rtol=1e-4)
    assert (module.score.scale() != 0.0).tolist() == [True, True, False]


def test_shares_are_of_terms_that_vary(tiny_t5):
    module = make_module(tiny_t5, rewards=[*rewards(weight=3.0), lambda summaries: [0.5] * len(summaries.texts)])
    metrics = train(module, [make_batch(8)]).callback_metrics
    shares = {name: metrics[f"share/{name}"].item() for name in named(module.rewards)}
    assert shares["<lambda>"] == 0.0 and sum(shares.values()) == pytest.approx(1.0)
    assert shares["length_band"] == pytest.approx(3.0 * shares["non_toxicity"])
    assert metrics["reward/<lambda>"] == 0.5
