"""Verdicts: against SciPy, by hand, and by simulation (does an interval hold the truth as often as it says?)."""
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from proxy_attention.lab.metrics.stats import Difference, bootstrap_t, bounded_by_images, intervals, not_worse, paired_t
from proxy_attention.lab.metrics.text import effect_sign, interval_text, points

numbers = st.lists(st.tuples(st.floats(-1, 1), st.floats(-1, 1)), min_size=2, max_size=12)


@given(numbers)
def test_paired_t_is_scipys(pairs):
    a,b = np.array(pairs).T
    if (a - b).std() < 1e-9: return
    ours,theirs = paired_t(a, b), stats.ttest_rel(a, b)
    ci = theirs.confidence_interval(0.95)
    assert np.allclose([ours.mean, ours.low, ours.high, ours.p], [(a - b).mean(), ci.low, ci.high, theirs.pvalue], rtol=1e-6, atol=1e-9)

def test_by_hand():
    d = paired_t([2, 4, 6], [1, 2, 3]) # differences 1, 2, 3: mean 2, standard error 1/sqrt(3), t(0.975, 2) = 4.3027
    assert (d.mean, d.n) == (2, 3) and d.high - d.mean == pytest.approx(4.3027/np.sqrt(3), abs=1e-4)

def test_bootstrap_t_by_scipy_s_own_resampling():
    "The same studentised quantiles, from an independent implementation"
    rng = np.random.default_rng(3)
    d = rng.normal(0.1, 0.05, 8)
    ours = bootstrap_t(d, np.zeros(8), draws=20000)
    resampled = stats.bootstrap((d,), lambda x, axis: (x.mean(axis) - d.mean())/(x.std(axis, ddof=1)/np.sqrt(8)), n_resamples=20000, method='percentile',
                                random_state=np.random.default_rng(5), vectorized=True).bootstrap_distribution
    low,high = np.quantile(resampled[np.isfinite(resampled)], [.025, .975])
    se = d.std(ddof=1)/np.sqrt(8)
    assert ours.low == pytest.approx(d.mean() - high*se, abs=0.15*se) and ours.high == pytest.approx(d.mean() - low*se, abs=0.15*se)

@pytest.mark.parametrize('name, low', [('t', 0.9), ('bootstrap-t', 0.88)])
@pytest.mark.parametrize('draw', ['normal', 'uniform'])
def test_coverage_and_false_positives_with_five_seeds(name, low, draw):
    rng,times = np.random.default_rng(1), 800 if name == 't' else 250
    kw = {} if name == 't' else dict(draws=499)
    noise = (lambda: rng.normal(size=5)) if draw == 'normal' else (lambda: rng.uniform(-1, 1, 5))
    got = [intervals[name](0.4 + noise(), np.zeros(5), **kw) for _ in range(times)]
    assert low < np.mean([g.low <= 0.4 <= g.high for g in got]) < 0.985
    null = [intervals[name](noise(), np.zeros(5), **kw).sign for _ in range(times)]
    assert 0.01 < np.mean(np.abs(null)) < 0.09 # about one in twenty says something where nothing is

def test_false_claims_of_not_worse():
    "Where the loss is the margin itself, it is called not worse in one of twenty"
    rng = np.random.default_rng(2)
    claims = [not_worse(rng.normal(-0.02, 0.01, 10), np.zeros(10), 0.02)[0] for _ in range(1500)]
    assert 0.03 < np.mean(claims) < 0.07

def test_not_worse_is_the_one_sided_test():
    "The same bound as SciPy's, and as the lower end of the two-sided 90% interval of either kind"
    a,b = np.array([.90, .91, .88, .92, .90]), np.array([.90, .90, .90, .91, .91])
    assert not_worse(a, b, 0.02)[1] == pytest.approx(stats.ttest_rel(a, b, alternative='greater').confidence_interval(0.95).low)
    for name,f in intervals.items(): assert not_worse(a, b, 0.02, interval=name)[1] == pytest.approx(f(a, b, 0.9).low)
    assert not_worse(a, b, 0.02) != not_worse(a, b, 0.02, interval='bootstrap-t')

def test_arguments_change_the_outcome():
    a,b = np.array([.5, .6, .4, .7]), np.array([.4, .4, .4, .5])
    assert paired_t(a, b, 0.99).high > paired_t(a, b, 0.9).high and paired_t(b, a).mean == -paired_t(a, b).mean
    assert bootstrap_t(a, b, 0.99, draws=999).high > bootstrap_t(a, b, 0.9, draws=999).high
    x,y = np.random.default_rng(0).normal(size=(2, 9))
    assert bootstrap_t(x, y, seed=1, draws=999) != bootstrap_t(x, y, seed=2, draws=999) and bootstrap_t(x, y, draws=999) != bootstrap_t(x, y, draws=1999)
    assert not_worse(a, a + .01 + np.array([0, .01, 0, .01]), 0.05)[0] and not not_worse(a, a + .01 + np.array([0, .01, 0, .01]), 0.01)[0]
    assert not_worse(a, b, 0.01, 0.99)[1] < not_worse(a, b, 0.01, 0.9)[1]

def test_no_spread():
    assert paired_t([1, 2, 3], [1, 2, 3]).p == 1 and paired_t([1, 2, 3], [0, 1, 2]).sign == 1 and bootstrap_t([1, 2, 3], [0, 1, 2]).low == 1

def test_words():
    assert points(0.123) == '+12.3' and points(-0.05) == '−5.0'
    assert interval_text(vars(Difference(.123, .081, .16, .001, 5)), ' points') == '+12.3 points [8.1, 16.0]'
    assert interval_text(vars(Difference(.01, -.02, .04, .4, 5))) == '+1.0 [−2.0, 4.0]'
    assert [Difference(*ends, .01, 5).sign for ends in ((.1, .05, .2), (.01, -.02, .04), (-.1, -.2, -.05))] == [1, 0, -1]

@pytest.mark.parametrize('a, b, words', [([1], [2], '1 pair'), ([1, 2], [1, 2, 3], 'longer')])
def test_bad_input(a, b, words):
    for f in intervals.values():
        with pytest.raises(ValueError, match=words): f(a, b)


# -- what is never claimed ----------------------------------------------------------------------------------------------------------------------------

def test_two_seeds_claim_nothing():
    "Two differences that are equal make an interval of no width"
    d = paired_t([.9, .8], [.8, .7])
    assert d.low > 0 and d.sign == 0 and paired_t([.9, .8, .7], [.8, .7, .6]).sign == 1
    assert [effect_sign(-.2, -.1, n) for n in (2, 3)] == [0, -1]
    assert not not_worse([.9, .8], [.8, .7], .01)[0] and not_worse([.9, .8, .7], [.8, .7, .6], .01)[0]

@pytest.mark.parametrize('n', [20, 70, 400])
def test_an_interval_is_no_narrower_than_the_images_allow(n):
    "The binomial distribution's, of as many images on which the arms differ as the mean says"
    k = round(.1*n)
    d = bounded_by_images(Difference(k/n, k/n, k/n, 0., 5), n)
    half = 1.96*np.sqrt(k/n*(1 - k/n)/n)
    assert d.low == pytest.approx(k/n - half, abs=1e-4) and d.high == pytest.approx(k/n + half, abs=1e-4) and d.mean == k/n
    simulated = np.random.default_rng(0).binomial(n, k/n, 20_000)/n
    assert d.high - d.low == pytest.approx(2*1.96*simulated.std(), rel=.03)

def test_a_wide_interval_stays_as_it_is():
    wide = Difference(.1, -.4, .6, .5, 5)
    assert bounded_by_images(wide, 70) == wide and bounded_by_images(wide, None) is wide
    assert bounded_by_images(Difference(0., 0., 0., 1., 5), 70).sign == 0

def test_images_bound_what_is_not_worse():
    a, b = [.50, .51, .52], [.52, .53, .54]
    assert not_worse(a, b, .03)[0] and not not_worse(a, b, .03, n_images=70)[0] and not_worse(a, b, .03, n_images=70_000)[0]
