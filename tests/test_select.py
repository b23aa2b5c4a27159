"""Which items get a copy: against a slow and simple reference, for any scores."""
from dataclasses import fields

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy_attention.select import Scores, default_share, item_indices, score_batch, select_items, selectors

quick = settings(deadline=None, max_examples=80, derandomize=True)
levels = st.integers(0, 5).map(lambda v: v/4) # few: many ties

@st.composite
def scores(draw, max_n=30):
    n = draw(st.integers(0, max_n))
    numbers = lambda elements: np.array(draw(st.lists(elements, min_size=n, max_size=n)), float)
    label = np.array(draw(st.lists(st.integers(0, 3), min_size=n, max_size=n)), int)
    flags = lambda: np.array(draw(st.lists(st.booleans(), min_size=n, max_size=n)), bool)
    wrong = flags()
    predicted = np.where(wrong, (label+1) % 4, label)
    return Scores(label, predicted, wrong, numbers(levels)/1.25, numbers(levels), numbers(levels)-0.5, wrong | flags())

def hardness(s, select, i):
    "How hard item `i` is; None: no candidate. Independent of the library"
    if select == 'wrong': return s.loss[i] if s.wrong[i] else None
    if select == 'ever_wrong': return s.loss[i] if s.ever_wrong[i] else None
    return {'low_confidence': -s.confidence[i], 'high_loss': s.loss[i], 'low_margin': -s.margin[i], 'all': s.loss[i]}[select]

def reference(s, select, share, per_class, allowed):
    found = sorted((-h, i) for i in range(len(s)) if allowed[i] and (h := hardness(s, select, i)) is not None)
    limit = lambda n: max(1, int(share*n + 1e-9))
    taken, count = [], {}
    for _,i in found:
        group = int(s.label[i]) if per_class else None
        size = int((s.label == group).sum()) if per_class else len(s)
        if count.get(group, 0) >= limit(size): continue
        count[group] = count.get(group, 0) + 1
        taken.append(i)
    return taken

told = [s for s in selectors if s != 'random']

@pytest.mark.parametrize('select', told)
@quick
@given(scores(), st.floats(0.01, 1), st.booleans(), st.data())
def test_as_the_reference(select, s, share, per_class, data):
    allowed = np.array(data.draw(st.lists(st.booleans(), min_size=len(s), max_size=len(s))), bool)
    assert select_items(s, select, share, per_class, allowed=allowed).tolist() == reference(s, select, share, per_class, allowed)
    assert select_items(s, select, share, per_class).tolist() == reference(s, select, share, per_class, np.ones(len(s), bool))

@pytest.mark.parametrize('select', selectors)
@quick
@given(scores(), st.floats(0.01, 1), st.booleans())
def test_always(select, s, share, per_class):
    kept = s.take(np.arange(len(s)))
    found = select_items(s, select, share, per_class, np.random.default_rng(0))
    assert len(set(found.tolist())) == len(found) and all(0 <= i < len(s) for i in found)
    assert found.tolist() == select_items(s, select, share, per_class, np.random.default_rng(0)).tolist()
    assert all(np.array_equal(getattr(s, f.name), getattr(kept, f.name)) for f in fields(Scores)) # scores are read only
    groups = [s.label == c for c in np.unique(s.label)] if per_class else [np.ones(len(s), bool)]
    for g in groups: assert g[found].sum() <= max(1, share*g.sum() + 1e-6)

@quick
@given(scores(), st.floats(0.01, 1))
def test_only_wrong_ones(s, share):
    assert s.wrong[select_items(s, 'wrong', share)].all()
    assert s.ever_wrong[select_items(s, 'ever_wrong', share)].all()

@quick
@given(scores())
def test_a_larger_share_goes_on_where_the_smaller_stopped(s):
    small, large = select_items(s, 'high_loss', 0.2), select_items(s, 'high_loss', 0.7)
    assert large[:len(small)].tolist() == small.tolist()

def example(n=20, classes=4):
    rng = np.random.default_rng(0)
    label = rng.integers(0, classes, n)
    predicted = np.where(rng.random(n) < 0.5, (label+1) % classes, label)
    wrong = predicted != label
    return Scores(label, predicted, wrong, rng.random(n), rng.random(n), rng.random(n)*2-1, wrong | (rng.random(n) < 0.3))

def test_ties_keep_the_order():
    s = example()
    s.loss[:] = 1.
    assert select_items(s, 'all').tolist() == list(range(20))
    assert select_items(s, 'wrong', 1.).tolist() == np.flatnonzero(s.wrong).tolist()

def test_every_selector_selects_otherwise():
    s = example(200)
    found = {name: tuple(select_items(s, name, 0.2, rng=np.random.default_rng(1)).tolist()) for name in selectors}
    assert found.pop('all') == found['high_loss'] # the same order; told apart by its share
    assert len(set(found.values())) == len(found)

def test_every_argument_matters():
    s = example(60)
    base = select_items(s, 'wrong', 0.2).tolist()
    assert select_items(s, 'wrong', 0.1).tolist() == base[:6]
    assert select_items(s, 'wrong', 0.2, per_class=True).tolist() != base
    assert select_items(s, 'wrong', 0.2, allowed=np.arange(60) != base[0]).tolist()[:11] == base[1:12]
    one, other = (select_items(s, 'random', 0.2, rng=np.random.default_rng(seed)).tolist() for seed in (1, 2))
    assert one != other

def test_share_unless_told_otherwise():
    s = example(100)
    assert default_share('all') == 1 and default_share('wrong') == default_share('random') == 0.3
    assert len(select_items(s, 'all')) == 100
    assert len(select_items(s, 'high_loss')) == len(select_items(s, 'random')) == 30
    assert select_items(s, 'random').tolist() == select_items(s, 'random', rng=np.random.default_rng(0)).tolist()

counts = [(10, 0.3, 3), (100, 0.29, 29), (10, 0.7, 7), (7, 0.3, 2), (1000, 0.001, 1), (3, 0.01, 1), (10, 1, 10)]

@pytest.mark.parametrize('n,share,expected', counts)
def test_how_many(n, share, expected): assert len(select_items(example(n), 'all', share)) == expected

def test_what_is_not_allowed_does_not_count_for_the_cap():
    s = example(20)
    allowed = np.arange(20) >= 12
    assert len(select_items(s, 'all', 0.4, allowed=allowed)) == 8 and (select_items(s, 'all', 0.4, allowed=allowed) >= 12).all()
    assert len(select_items(s, 'all', allowed=np.zeros(20, bool))) == 0

def test_nothing_wrong():
    s = example()
    s.wrong[:] = False
    assert select_items(s, 'wrong').tolist() == [] == select_items(s, 'wrong', per_class=True).tolist()

def test_quota_of_each_class():
    label = np.array([0]*10 + [1]*4 + [2]*2)
    s = Scores(label, label+1, np.ones(16, bool), np.zeros(16), np.arange(16.), np.zeros(16))
    assert select_items(s, 'wrong', 0.5, per_class=True).tolist() == [15, 13, 12, 9, 8, 7, 6, 5]

def test_random_covers_everybody():
    s, rng = example(20), np.random.default_rng(0)
    seen = np.bincount(np.concatenate([select_items(s, 'random', 0.25, rng=rng) for _ in range(400)]), minlength=20)
    assert seen.sum() == 2000 and seen.min() > 60 and seen.max() < 140 # 100 expected, standard deviation 8.7

def test_a_loss_that_is_not_a_number_gets_no_copy():
    s = example()
    s.loss[3] = np.nan
    found = select_items(s, 'all').tolist()
    assert 3 not in found and len(found) == 19

def test_a_new_entry_is_a_new_selector(monkeypatch):
    monkeypatch.setitem(selectors, 'last', lambda scores, rng: np.arange(len(scores), dtype=float))
    assert select_items(example(), 'last', 0.2).tolist() == [19, 18, 17, 16]

bad_shares = [*((v, ValueError) for v in (0, 1.1, -0.5, float('nan'))), ('0.3', TypeError), (True, TypeError)]

@pytest.mark.parametrize('share,error', bad_shares)
def test_bad_share(share, error):
    with pytest.raises(error, match='share='): select_items(example(), 'wrong', share)

def test_bad_select():
    with pytest.raises(ValueError, match="select='wrng'.*Did you mean 'wrong'"): select_items(example(), 'wrng')
    with pytest.raises(TypeError, match='per_class='): select_items(example(), per_class='yes')
    s = example()
    s.ever_wrong = None
    with pytest.raises(ValueError, match="select='ever_wrong'"): select_items(s, 'ever_wrong')

def test_no_quotas_with_several_labels():
    y = torch.tensor([[1., 0.], [1., 1.]])
    with pytest.raises(ValueError, match='per_class=True'): select_items(score_batch(torch.zeros(2, 2), y), per_class=True)
    assert select_items(score_batch(torch.zeros(2, 2), y), share=1).tolist() == [0, 1]


# -- scores --------------------------------------------------------------------------------------------------------------------------------

def test_one_label_by_hand():
    logits = torch.tensor([[2., 1., 0.], [0., 3., 0.], [1., 1., 1.]]).log_softmax(1)
    s = score_batch(logits, torch.tensor([0, 0, 2]))
    p = logits.exp().numpy()
    assert s.label.tolist() == [0, 0, 2] and s.predicted.tolist() == [0, 1, 0] and s.wrong.tolist() == [False, True, True]
    np.testing.assert_allclose(s.confidence, [p[0, 0], p[1, 0], 1/3], rtol=1e-5)
    np.testing.assert_allclose(s.loss, -np.log([p[0, 0], p[1, 0], 1/3]), rtol=1e-5)
    np.testing.assert_allclose(s.margin, [p[0, 0]-p[0, 1], p[1, 0]-p[1, 1], 0], atol=1e-6)

def test_several_labels_by_hand():
    p = torch.tensor([[0.9, 0.2, 0.6], [0.4, 0.1, 0.2]])
    y = torch.tensor([[1., 0., 1.], [1., 0., 0.]])
    s = score_batch(p.logit(), y)
    assert s.wrong.tolist() == [False, True] and s.predicted.tolist() == [[True, False, True], [False, False, False]]
    np.testing.assert_allclose(s.confidence, [0.6, 0.4], rtol=1e-5)
    np.testing.assert_allclose(s.loss, [-np.log([0.9, 0.8, 0.6]).mean(), -np.log([0.4, 0.9, 0.8]).mean()], rtol=1e-4)
    np.testing.assert_allclose(s.margin, [0.2, -0.2], atol=1e-5)
    assert score_batch(p.logit(), y, thresh=0.3).wrong.tolist() == [False, False]
    assert score_batch(p.logit(), y, thresh=0.7).wrong.tolist() == [True, True]
    np.testing.assert_allclose(score_batch(torch.tensor([[0.9, 0.7]]).logit(), torch.tensor([[1., 0.]])).confidence, [0.3], rtol=1e-5)
    assert not score_batch(torch.zeros(1, 2), y[1:, :2]).predicted.any(), "a label counts above the threshold, not at it"

@quick
@given(st.integers(1, 12), st.integers(1, 11), st.booleans())
def test_batches_joined_are_the_whole(n, cut, several):
    rng = torch.Generator().manual_seed(n)
    logits = torch.randn(n, 4, generator=rng)
    y = torch.randint(0, 2, (n, 4), generator=rng).float() if several else torch.randint(0, 4, (n,), generator=rng)
    whole, cut = score_batch(logits, y), min(cut, n)
    parts = [score_batch(l, t) for l,t in zip(logits.split(cut), y.split(cut))]
    joined = parts[0].room(n)
    for i,part in enumerate(parts): joined.put(i*cut, part)
    for f in fields(Scores):
        a, b = getattr(whole, f.name), getattr(joined, f.name)
        if a is None: assert b is None
        else: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    assert len(joined) == n
    turned = whole.take(np.arange(n)[::-1])
    assert (turned.loss == whole.loss[::-1]).all() and (turned.label == whole.label[::-1]).all()

def test_half_precision_logits():
    logits = torch.randn(8, 5, generator=torch.Generator().manual_seed(0)).bfloat16()
    assert score_batch(logits, torch.zeros(8).long()).loss.dtype == np.float32


# -- items that the user names ---------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('value', [[5, 2, 5], (5, 2, 2), np.array([5, 2]), torch.tensor([5, 2, 2]), [False, False, True, False, False, True], {5, 2}, frozenset([2, 5])], ids=str)
@pytest.mark.parametrize('n', [6, None])
def test_named_items(value, n):
    found = item_indices('i', value, n)
    assert found.tolist() == ([2, 5] if isinstance(value, (set, frozenset)) or len(value) == 6 else [5, 2]) and found.dtype.kind == 'i'

@pytest.mark.parametrize('value', [[], (), set(), np.zeros((0, 3))], ids=str)
def test_no_items_named(value): assert item_indices('i', value, 3).tolist() == [] and item_indices('i', value).dtype.kind == 'i'

def test_the_first_and_the_last_item(): assert item_indices('i', [0, 2], 3).tolist() == [0, 2] and item_indices('i', [10**9]).tolist() == [10**9]

allowed = 'i must hold indices of training items'
misnamed = [
    ([3], 3, ValueError, allowed + r' \(0 to 2\), or .*got 3'), ([0, 9, -1], 3, ValueError, 'got 9'), ([-1], None, ValueError, allowed + ', or .*got -1'),
    ([True], 3, ValueError, 'a mask of 1 for 3 items'), ('ab', 3, TypeError, "i='ab': " + allowed), (b'ab', 3, TypeError, "i=b'ab'"), (5, 9, TypeError, 'i=5: ' + allowed),
    ([.5], 3, TypeError, r'an array \(1,\) of float64'), ([[1, 2]], 3, TypeError, r'an array \(1, 2\)'), ([[1], [2, 3]], 3, TypeError, 'differ in length'),
    ({1, 'a'}, 3, TypeError, allowed), (np.array(3), 9, TypeError, allowed),
]

@pytest.mark.parametrize('value,n,error,says', misnamed, ids=str)
def test_misnamed_items(value, n, error, says):
    with pytest.raises(error, match=says): item_indices('i', value, n)
