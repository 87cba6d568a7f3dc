"""Statistics of a run: against rliable and scipy, by hand, and by what an interval promises."""

import json
import math

import numpy as np
import pytest
import scipy

from cql.analysis import statistics
from cql.analysis.results import Results
from cql.analysis.statistics import BC, METRICS, Bootstrap, replicates, resample_counts
from cql.config import Config

pytestmark = pytest.mark.slow

# rliable 1.2.0 (arch 7.2.0, numpy 2.4.6, pandas 2.3.3) on X and Y, from rliable import library, metrics:
#   metrics.aggregate_iqm(X[:, None]); metrics.aggregate_iqm(X[:15, None]); metrics.aggregate_mean(X[:, None])
#   metrics.probability_of_improvement(X[None], Y[None])     one run of each task, the data set being the task
#   library.get_interval_estimates({"x": X[:, None]}, lambda s: array([aggregate_mean(s), aggregate_iqm(s)]),
#                                  reps=50000, random_state=RandomState(0))     one-level, plain percentile
X = np.array([18.4, 21.3, 7.1, 15.2, -79.4, 16.5, 20.9, 13.4, 18.0, 19.1, 12.6, 21.3, 14.7, 17.9, 16.4, 1.5])
Y = np.array([14.0, 15.8, -80.7, 7.1, -79.4, 16.9, 15.1, 11.2, 9.8, 19.6, 3.5, 20.2, -12.3, 14.7, 10.6, 4.4])
RLIABLE = {"iqm": 16.3125, "iqm of 15": 16.62222222222222, "mean": 9.68125, "improvement": 0.78125,
           "mean interval": (-3.3625, 17.4625), "iqm interval": (12.4, 18.525)}


def bootstrap(datasets, seeds=1, resamples=2000, level=0.95):
    return Bootstrap(resample_counts(datasets, seeds, resamples), level)


def results_of(values: dict, seeds=1):
    """Of {group: {metric: [D, S]}}; what is not given is not known."""
    datasets = len(next(iter(next(iter(values.values())).values())))
    alphas = tuple(alpha for algorithm, alpha in values if algorithm == "cql")
    config = Config(alpha=alphas, num_seeds=seeds, num_datasets=datasets)
    rows = []
    for (algorithm, alpha), metrics in values.items():
        for d, data_seed in enumerate(config.data_seeds):
            for s, seed in enumerate(config.seeds):
                known = {name: float(np.reshape(found, (datasets, seeds))[d, s]) for name, found in metrics.items()}
                rows.append({"algorithm": algorithm, "alpha": alpha, "seed": seed, "data_seed": data_seed,
                             "diverged": None, "converged": None, **dict.fromkeys(METRICS),
                             **{k: None if math.isnan(v) else v for k, v in known.items()}})
    return Results(config, rows)


def test_the_one_level_case_is_rliables():
    one = bootstrap(16)
    assert one.estimate(X[:, None], "iqm")[0] == pytest.approx(RLIABLE["iqm"])
    assert one.estimate(X[:, None])[0] == pytest.approx(RLIABLE["mean"])
    assert bootstrap(15).estimate(X[:15, None], "iqm")[0] == pytest.approx(RLIABLE["iqm of 15"])
    assert one.share(statistics.improvement(X[:, None], Y[:, None]))[0] == RLIABLE["improvement"]
    counts = resample_counts(16, 1, 50_000, seed=3)
    for name, places in (("mean", 0.5), ("iqm", 0.15)):
        ends = np.quantile(replicates(X[:, None], counts, name), (0.025, 0.975))
        assert np.allclose(ends, RLIABLE[f"{name} interval"], atol=places)


@pytest.mark.parametrize("size", [1, 2, 5, 16, 31])
def test_statistics_of_counts_are_those_of_the_repeated_values(size):
    random = np.random.default_rng(size)
    values, counts = random.normal(size=size).round(1), random.integers(0, 4, (50, size))
    counts[:, 0] += 1
    for n, row in enumerate(counts):
        repeated = np.repeat(values, row)
        for name, wanted in (("mean", repeated.mean()), ("iqm", scipy.stats.trim_mean(repeated, 0.25)),
                             ("q90", np.quantile(repeated, 0.9)), ("worst", repeated.max())):
            assert statistics.STATISTICS[name][0](values, counts)[n] == pytest.approx(wanted), name


def test_student_and_wilson_are_scipys():
    for freedom in (5, 7, 15, 31, 200):
        for probability in (0.9, 0.975, 0.995):
            assert statistics.student_quantile(probability, freedom) == pytest.approx(
                scipy.stats.t.ppf(probability, freedom), rel=3e-3)
    for hits, n in ((0, 4), (3, 16), (16, 16)):
        found = scipy.stats.binomtest(hits, n).proportion_ci(0.95, method="wilson")
        assert statistics.wilson(hits / n, n, 0.95) == pytest.approx((found.low, found.high))


def test_data_sets_are_resampled_first_and_seeds_within_them():
    counts = resample_counts(5, 3, 400)
    assert (counts.sum((1, 2)) == 15).all() and (counts.sum(2) % 3 == 0).all()
    assert (counts.sum(2) == 3 * resample_counts(5, 1, 400)[:, :, 0]).all()
    assert (counts == resample_counts(5, 3, 400)).all()
    assert (counts > 3).any() and (counts[counts.sum(2) == 3] != 1).any()  # seeds are drawn with replacement too


def test_equal_seeds_add_nothing_and_several_seeds_are_no_further_data_sets():
    wide = bootstrap(16).estimate(X[:, None])
    assert bootstrap(16, 4).estimate(np.repeat(X[:, None], 4, axis=1)) == pytest.approx(wide)
    flat = bootstrap(64).estimate(np.repeat(X, 4)[:, None])
    assert flat[2] - flat[1] < 0.6 * (wide[2] - wide[1])  # the mistake that the hierarchy avoids


def test_the_variance_of_two_levels():
    random = np.random.default_rng(0)
    values = random.normal(0, 2, (400, 1)) + random.normal(0, 3, (400, 3))
    found = replicates(values, resample_counts(400, 3, 4000), "mean").var()
    # Davison & Hinkley, section 3.8: between data sets, and once more (b - 1) / b of the spread within
    within = values.var(axis=1).mean() / 3
    assert found == pytest.approx((values.mean(1).var() + within) / 400, rel=0.1)


def test_intervals_of_normal_values_cover_as_often_as_they_say():
    random = np.random.default_rng(1)
    eight = bootstrap(8, resamples=600)
    samples = random.normal(3, 1, (600, 8, 1))
    found = [eight.estimate(values) for values in samples]
    assert np.mean([low <= 3 <= high for _, low, high in found]) == pytest.approx(0.95, abs=0.03)
    plain = [np.quantile(replicates(values, eight.counts, "mean"), (0.025, 0.975)) for values in samples]
    assert np.mean([low <= 3 <= high for low, high in plain]) < 0.92  # the plain percentile promises more


def test_intervals_of_a_rare_share_cover_where_a_percentile_would_not():
    samples, sixteen = np.random.default_rng(2).random((300, 16, 1)) < 0.1, bootstrap(16, resamples=300)
    found = [sixteen.share(values.astype(float)) for values in samples]
    assert np.mean([low <= 0.1 <= high for _, low, high in found]) > 0.9
    plain = [np.quantile(replicates(values.astype(float), sixteen.counts, "mean"), (0.025, 0.975))
             for values in samples]
    assert np.mean([low <= 0.1 <= high for low, high in plain]) < 0.9


def test_no_interval_where_the_range_of_the_data_sets_would_not_do():
    assert [statistics.units_needed(q, 0.95) for q in (0.5, 0.9, 1.0)] == [6, 36, math.inf]
    assert 2 * 0.5**6 <= 0.05 < 2 * 0.5**5 and 0.9**36 <= 0.025 < 0.9**35
    assert bootstrap(5).estimate(X[:5, None]) == [X[:5].mean(), None, None]
    assert bootstrap(1).estimate([[7.0]]) == [7.0, None, None]
    for datasets, given in ((35, False), (36, True)):
        values = np.random.default_rng(0).random((datasets, 1))
        assert (bootstrap(datasets).estimate(values, "q90")[1] is not None) == given
        assert bootstrap(datasets).estimate(values, "worst") == [values.max(), None, None]
    assert bootstrap(16, 2).estimate(np.ones((16, 2)) / 3) == [1 / 3, None, None]  # nothing varies


def test_one_data_set_speaks_of_seeds():
    assert bootstrap(1, 16).estimate(X[None])[1] < X.mean()
    assert bootstrap(2, 8).estimate(X.reshape(2, 8))[1:] == [None, None]  # sixteen members, but two data sets
    found = statistics.summary(results_of({("cql", 6.0): {"return": X[None]}}, seeds=16))
    assert found["intervals_over"] == "seeds only" and found["groups"][0]["metrics"]["return"]["mean"][1] is not None


def test_missing_members_are_left_out_and_counted():
    values = np.column_stack([X, Y])
    values[3, 1] = values[5] = np.nan
    estimate, low, high = bootstrap(16, 2).estimate(values)
    assert estimate == pytest.approx(np.nanmean(values)) and low < estimate < high
    values[5:] = np.nan
    assert bootstrap(16, 2).estimate(values) == [pytest.approx(np.nanmean(values)), None, None]  # five data sets
    assert bootstrap(16, 2).estimate(np.full((16, 2), np.nan)) is None
    found = statistics.summary(results_of({("cql", 6.0): {"return": values}}, seeds=2))["groups"][0]
    assert found["members"] == 32 and found["missing"] == found["metrics"]["return"]["missing"] == 23
    assert found["metrics"]["hazard_probability"] is None and found["against_bc"] is None


def test_a_resample_without_any_value_is_left_out():
    values = np.full((16, 1), np.nan)
    values[:7, 0] = X[:7]
    found = replicates(values, resample_counts(16, 1, 20_000), "mean")
    # each of 16 places is drawn from the 9 empty ones with probability 9 / 16
    empty = 1 - len(found) / 20_000
    assert np.isfinite(found).all() and empty == pytest.approx((9 / 16) ** 16, abs=2e-4)


def test_differences_are_paired():
    sides = ({"return": x[:, None], "hazard_probability": -x[:, None]} for x in (X + 2, X))
    shifted = statistics.paired(bootstrap(16), *sides)
    assert shifted["return"] == [pytest.approx(2), None, None]  # no spread between pairs at all
    assert [share[0] for share in shifted["probability_of_improvement"].values()] == [1, 1]


def test_improvement_counts_ties_half_and_leaves_out_what_has_no_partner():
    mine, theirs = np.array([[1.0, 2.0], [3.0, np.nan]]), np.array([[1.0, 5.0], [2.0, 4.0]])
    assert np.array_equal(statistics.improvement(mine, theirs), [[0.5, 0], [1, np.nan]], equal_nan=True)
    assert np.array_equal(statistics.improvement(mine, theirs, False), [[0.5, 1], [0, np.nan]], equal_nan=True)
    assert bootstrap(2, 2).share(statistics.improvement(mine, theirs))[0] == 0.5


def story():
    """Alpha 0 is bad, 1 best, 3 nearly, 100 and 200 are BC but for a rare difference."""
    noise = np.linspace(-1, 1, 8)
    bc = {"return": 10 + 3 * noise, "hazard_probability": 0.2 + 0.05 * noise, "action_mismatch_rate": 0.4 + 0 * noise}

    def moved(by, hazard, mismatch, wiggle):
        return {"return": bc["return"] + by + wiggle * noise[::-1],
                "hazard_probability": bc["hazard_probability"] + hazard + wiggle * noise**2 / 100,
                "action_mismatch_rate": bc["action_mismatch_rate"] + mismatch}

    return results_of({BC: bc, ("cql", 0.0): moved(-50, 0.5, 0.3, 2), ("cql", 1.0): moved(6, -0.15, 0.02, 1),
                       ("cql", 3.0): moved(5.9, -0.1, 0.02, 2), ("cql", 50.0): moved(0, 0.001, 0.02, 1),
                       ("cql", 100.0): moved(0.1, 0, 0.004, 1), ("cql", 200.0): moved(0, 0, 0, 0)})


def test_claims_by_hand():
    claims = statistics.summary(story())["claims"]
    assert claims["hazard_below_bc"] == {"alpha": 1.0, "alphas": [1.0, 3.0], "unknown": []}
    best = claims["best_return"]
    assert (best["alpha"], best["runner_up"]) == (1.0, 3.0) and best["mean"][0] == pytest.approx(16)
    assert best["lead"][0] == pytest.approx(0.1) and best["lead"][1] < 0 < best["lead"][2]
    assert best["tie"] is True
    best = claims["best_hazard"]
    assert (best["alpha"], best["runner_up"]) == (1.0, 3.0) and best["lead"][2] < 0
    assert best["tie"] is False
    # 50 has BC's return but not its actions; at 200 the policies are equal, so that no difference varies
    assert claims["becomes_bc"] == {"alpha": 100.0, "alphas": [100.0, 200.0], "unknown": [], "mismatch_within": 0.005}


def test_becoming_bc_needs_every_larger_alpha():
    bc = {"return": X, "action_mismatch_rate": 0 * X, "hazard_probability": 0 * X}
    groups = {BC: bc, ("cql", 1.0): bc, ("cql", 2.0): {**bc, "return": X + 1 + 0.01 * Y}}
    assert statistics.summary(results_of(groups))["claims"]["becomes_bc"]["alpha"] is None
    assert statistics.summary(results_of({**groups, ("cql", 4.0): bc}))["claims"]["becomes_bc"]["alphas"] == [4.0]


def test_a_summary_is_json_without_nan_and_deterministic():
    found = statistics.summary(story())
    assert json.dumps(found, allow_nan=False) == json.dumps(statistics.summary(story()), allow_nan=False)
    assert [group["alpha"] for group in found["groups"]] == [None, 0.0, 1.0, 3.0, 50.0, 100.0, 200.0]
    assert list(found["groups"][1]["metrics"]) == list(METRICS)
    assert list(found["groups"][1]["metrics"]["hazard_probability"]) == ["missing", "mean", "q90", "worst"]  # no IQM
    assert [(pair["alpha"], pair["other"]) for pair in found["pairs"]] == [
        (1.0, 0.0), (3.0, 1.0), (50.0, 3.0), (100.0, 50.0), (200.0, 100.0)]
    assert found["pairs"][0]["return"][0] == pytest.approx(56)


def test_without_bc_and_without_a_model_the_rest_stands():
    found = statistics.summary(results_of({("cql", 6.0): {"value_estimate": X}}))
    assert found["groups"][0]["metrics"]["value_estimate"]["mean"][0] == pytest.approx(X.mean())
    assert found["groups"][0]["against_bc"] is None
    assert found["claims"]["best_return"] is None
    assert found["claims"]["hazard_below_bc"] == {"alpha": None, "alphas": [], "unknown": [6.0]}
    assert statistics.table(found).endswith("No exact return of a CQL policy is known, so nothing is said of alpha.")
    assert "CQL         6       16  –" in statistics.table(found)
    with pytest.raises(ValueError, match="level"):
        statistics.summary(story(), level=1.0)


def test_the_table_says_what_the_summary_holds():
    text = statistics.table(statistics.summary(story()))
    assert "8 data sets × 1 training seed, all values exact; [95% intervals]" in text
    assert "Smallest alpha with a hazard probability below BC’s with 95 % confidence: 1; " in text
    assert "lies below 0: at alpha = 1, 3." in text and "alpha = 3: +0.10 [" in text
    assert "Smallest alpha from which on CQL acts as BC: 100; " in text


BELOW, SAME = ("hazard_below_bc", "hazard_probability"), ("becomes_bc", "return")


@pytest.mark.parametrize("n", [1, 3, 5])
def test_where_no_interval_exists_no_claim_is_denied(n):
    """Alpha 6 is far safer than BC and 50 acts exactly as BC does; so few data sets say neither yes nor no."""
    bc = {"return": X[:n], "hazard_probability": Y[:n], "action_mismatch_rate": 0 * X[:n]}
    found = statistics.summary(results_of({
        BC: bc, ("cql", 6.0): {**bc, "return": X[:n] + 5, "hazard_probability": Y[:n] - 9}, ("cql", 50.0): bc}))
    why = f"an interval takes 6 data sets, and the run has {n}" if n > 1 else (
        "an interval takes 6 data sets, or 6 seeds on one, and the run has 1 data set and 1 seed")
    for claim, metric in (BELOW, SAME):
        assert found["claims"][claim]["alpha"] is None
        assert found["claims"][claim]["unknown"] == [6.0, 50.0]
        assert statistics.not_found(found, claim, metric) == (False, why)
    assert found["claims"]["best_return"]["tie"] is None and found["claims"]["best_return"]["lead"][0] == 5
    text = statistics.table(found)
    assert text.count(f": not known; {why}.") == 2 and "at no alpha" not in text
    assert "means have no interval: an interval takes" in text
    assert "alpha = 50: +5.00 (no interval: it may be chance)." in text


def test_what_is_denied_has_an_interval_that_denies_it():
    """Eight data sets: alpha 1 has values on all, alpha 0 on two; neither is below BC, and neither acts like it."""
    bc = {"return": X[:8], "hazard_probability": Y[:8], "action_mismatch_rate": 0 * X[:8]}
    worse = {"return": X[:8] + Y[:8] - 99, "hazard_probability": Y[:8] + 9 + X[:8] / 99}
    rare = {name: np.where(np.arange(8) < 2, values, np.nan) for name, values in worse.items()}
    all_known = statistics.summary(results_of({BC: bc, ("cql", 1.0): worse}))
    some = statistics.summary(results_of({BC: bc, ("cql", 0.0): rare, ("cql", 1.0): worse}))
    none = statistics.summary(results_of({BC: bc, ("cql", 0.0): rare}))
    alone = statistics.summary(results_of({("cql", 1.0): worse}))
    without = statistics.summary(results_of({group: {"return": X[:8]} for group in (BC, ("cql", 1.0))}))
    for claim in (BELOW, SAME):
        assert statistics.not_found(all_known, *claim) == (True, "at no alpha of this run")
        assert statistics.not_found(some, *claim) == (True, "at no alpha that has an interval; there is none at 0")
        assert statistics.not_found(none, *claim) == (False, "the differences have no interval")
        assert statistics.not_found(alone, *claim) == (False, "the run has no BC")
    assert statistics.not_found(without, *BELOW) == (False, "no member has a value")


def test_a_run_without_bc_says_so_first():
    """Neither of both alphas has enough values: that there is no BC is the reason all the same."""
    found = statistics.summary(results_of({("cql", 0.0): {"return": X[:2]}, ("cql", 1.0): {"return": X[:2]}}))
    found["claims"]["becomes_bc"]["unknown"] = []
    assert statistics.not_found(found, *SAME) == (False, "the run has no BC")


def test_six_seeds_on_one_data_set_are_enough():
    assert statistics.too_few(1, 6) is None and statistics.too_few(6, 1) is None
    assert statistics.too_few(2, 6) == "an interval takes 6 data sets, and the run has 2"
    assert statistics.too_few(1, 5).endswith("or 6 seeds on one, and the run has 1 data set and 5 seeds")


def test_the_sign_of_a_difference():
    eight = bootstrap(8)
    assert [eight.sign(shift + Y[:8, None] / 99) for shift in (9, -9, 0.3)] == [1, -1, 0]
    assert eight.sign(np.zeros((8, 1))) == 0  # nothing varies, and 8 data sets say so
    assert eight.sign(np.full((8, 1), np.nan)) is None and bootstrap(5).sign(np.zeros((5, 1))) is None


def test_a_single_alpha_is_the_best_of_nothing():
    text = statistics.table(statistics.summary(results_of({BC: {"return": X}, ("cql", 6.0): {"return": Y}})))
    assert "Highest" not in text and "Lowest" not in text


def test_members_that_have_not_converged_are_counted():
    results = results_of({BC: {"return": X[:3]}, ("cql", 6.0): {"return": X[:3]}})
    for row, converged in zip(results.rows, (True, False, None, False, False, True)):
        row["converged"] = converged
    found = statistics.summary(results)
    assert [group["not_converged"] for group in found["groups"]] == [1, 2]
    assert [line.rstrip().endswith("2 not converged") for line in statistics.group_lines(found["groups"])] == [
        False, False, True]
