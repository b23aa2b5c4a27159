"""The old trial of the lab: are copies of use? Its two tests by themselves, and that they leave nothing behind."""
import numpy as np
import pytest
import torch

from kit import cb_of, quiet_cb, wrong_files
from proxy_attention.callback import ProxyAttentionCB
from proxy_attention.dataloaders import ProxyDataset
from proxy_attention.lab import trial
from proxy_attention.lab.trial import Trial, ask_holes, can_do_without, centred, gone, hole_pictures, needs, right, told_by

LOW = 1e-3


# -- numbers --------------------------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('before, after, chance, share', [(.9, .9, .1, 0), (.9, .1, .1, 1), (.9, .5, .1, .5), (.5, .6, .1, -.25), (.1, .0, .1, 0), (.05, .0, .1, 0)])
def test_gone(before, after, chance, share): assert gone(before, after, chance) == pytest.approx(share)

@pytest.mark.parametrize('numbers, verdict', [((.9, .6, .1), 'spread'), ((.9, .51, .1), 'spread'), ((.9, .49, .1), 'untried'), ((.9, .1, .1, .12, .14), 'unclear'), ((.9, .1, .1, .6, .1), 'real'),
                                              ((.9, .1, .1, .6, .34), 'real'), ((.9, .1, .1, .6, .36), 'shortcut'), ((.9, .1, .1, .5, .7), 'shortcut'), ((.9, .8, .1, .6, .1), 'spread'),
                                              ((.1, .1, .1), 'spread'), ((.9, .1, .1, .12, .5), 'shortcut')])
def test_verdicts(numbers, verdict):
    t = Trial(*numbers)
    assert t.verdict == verdict and t.to_dict()['verdict'] == verdict
    assert trial.words[verdict] in str(t) and f"{numbers[1]:.1%}" in str(t) and (len(numbers) == 3 or f"{numbers[3]:.1%}" in str(t))

@pytest.mark.parametrize('numbers, holes, share, verdict', [((.9, .1, .1), .2, .125, 'shortcut'), ((.9, .1, .1), .41, .3875, 'shortcut'), ((.9, .1, .1), .43, .4125, 'real'), ((.5, .1, .1), .5, 1, 'real'),
                                                            ((.9, .6, .1), .9, 1, 'spread'), ((.9, .1, .1), .05, -.0625, 'shortcut')])
def test_verdicts_by_holes(numbers, holes, share, verdict):
    t = Trial(*numbers, holes=holes)
    assert t.told == pytest.approx(share) and t.verdict == verdict and t.to_dict()['told'] == t.told and f'the holes alone tell {holes:.1%}' in str(t)
    assert Trial(*numbers).told is None and 'holes' not in str(Trial(*numbers))

# -- the tests ------------------------------------------------------------------------------------------------------------------------------------

@pytest.fixture
def asked(learner):
    "A learner that has made copies of all its 27 items"
    learn = learner(quiet_cb(select='all'))
    learn.fit(1, LOW)
    assert len(learn.proxies) == 27
    return learn

def test_right(asked):
    rows, cb = cb_of(asked).copies.rows, asked._grab_cbs(ProxyAttentionCB)[0]
    some = rows[:11]
    originals, copies = [r['original'] for r in some], [str(cb_of(asked).copies.store.file(r)) for r in some]
    wrong = len(wrong_files(asked.model, originals))
    whole, erased, chance = right(asked, some)
    assert whole == pytest.approx(1 - wrong/11) and chance == max(sum(r['label'] == c for r in some) for c in {r['label'] for r in some})/11
    said = trial.predict_classes(asked.model, asked.dls.valid.new(dataset=ProxyDataset(cb_of(asked).prepared.items.base, [], [(c, r['index'], cb_of(asked).prepared.task.kind) for c,r in zip(copies, some)])))
    assert erased == pytest.approx(float((said[0] == said[1]).mean())) and cb.run_path.is_dir()

def test_right_leaves_the_learner_as_it_was(asked):
    modes, rng, dls = [m.training for m in asked.model.modules()], torch.get_rng_state(), asked.dls
    right(asked, cb_of(asked).copies.rows)
    assert modes == [m.training for m in asked.model.modules()] and torch.equal(rng, torch.get_rng_state()) and asked.dls is dls

def test_needs(asked, monkeypatch):
    assert needs(asked) is None # 27 copies tell nothing
    monkeypatch.setattr(trial, 'fewest', 27)
    assert needs(asked) == Trial(*right(asked, cb_of(asked).copies.rows))

def test_several_labels(asked):
    cb_of(asked).prepared.task = cb_of(asked).prepared.task._replace(multilabel=True)
    with pytest.raises(ValueError, match='one label an item'): needs(asked)

def test_copies_alone(asked):
    cb, rows, before = asked._grab_cbs(ProxyAttentionCB)[0], cb_of(asked).copies.rows, asked.dls
    with pytest.raises(RuntimeError, match='stop'), cb.copies_alone(rows[:20]):
        ds = asked.dls.train_ds
        assert len(ds) == asked.dls.train.n == 20 and not ds.originals and [ds.origin(i) for i in range(20)] == [r['index'] for r in rows[:20]]
        assert asked.dls.valid is before.valid
        asked.fit(0)
        raise RuntimeError('stop')
    assert asked.dls is before and len(asked.dls.train_ds) == 54

def test_can_do_without_holds_back(asked, monkeypatch):
    monkeypatch.setattr(trial, 'fewest', 14)
    trained = []
    def held(seed):
        can_do_without(asked, Trial(.9, .1, .3), lambda: trained.append([ds.origin(i) for ds in [asked.dls.train_ds] for i in range(len(ds))]), seed)
        return set(range(27)) - set(trained[-1])
    first, again, other = held(0), held(0), held(1)
    assert len(first) == 7 and first == again != other # half of `fewest`; a tenth would be 2
    monkeypatch.setattr(trial, 'fewest', 2)
    assert len(held(0)) == 2

def test_can_do_without_judges_those_held_back(asked, monkeypatch):
    monkeypatch.setattr(trial, 'fewest', 14)
    seen = {}
    def right_(learn, rows): seen['rows'] = {r['index'] for r in rows}; return .6, .5, .4
    monkeypatch.setattr(trial, 'right', right_)
    trained = []
    found = can_do_without(asked, Trial(.9, .1, .3), lambda: trained.extend(asked.dls.train_ds.origin(i) for i in range(len(asked.dls.train_ds))))
    assert found == Trial(.9, .1, .3, .5, .6) and seen['rows'] == set(range(27)) - set(trained)

# -- holes ----------------------------------------------------------------------------------------------------------------------------------------

def test_hole_pictures():
    a = torch.zeros(2, 3, 32, 32)
    b = a.clone()
    b[0, :, :4, 2:6] = 1
    b[0, 0, 20, 20] = .2 # less than a tenth of the largest difference, summed over the channels
    got = hole_pictures(a, b)
    want = torch.zeros(16, 16)
    want[:2, 1:3] = 1
    assert torch.equal(got[0], want) and not got[1].any() and hole_pictures(a, b, 8).shape == (2, 8, 8) and hole_pictures(a, b, 8)[0, 0, 1] == .5

def test_centred():
    p = np.zeros((9, 9))
    p[0, 6:9] = 1
    want = np.zeros((9, 9))
    want[4, 3:6] = 1
    assert (centred(p) == want).all() and (centred(want) == want).all() and not centred(np.zeros((9, 9))).any()

def squares(rng, y, shape=None, place=None):
    "Holes whose shape and place depend on the class, or on nothing"
    out = np.zeros((len(y), 16, 16))
    for p,c in zip(out, y):
        h,w = [(2, 8), (4, 4), (8, 2)][c if shape else 1]
        i,j = (4*c, 4) if place else rng.integers(0, 8, 2)
        p[i:i+h, j:j+w] = 1
    return out

def test_told_by():
    rng, y = np.random.default_rng(0), np.arange(240) % 3
    random, shape, place = (told_by(squares(rng, y, **kw), y) for kw in ({}, dict(shape=True), dict(place=True)))
    assert random < .5 and shape > .9 and place > .9
    few = np.r_[y[:30], 3] # an image alone of its class is left out
    assert told_by(squares(rng, few % 3, shape=True), few) > .8
    assert told_by(np.zeros((4, 16, 16)), [0, 0, 0, 1]) == .75 and told_by(squares(rng, [0, 0]), [0, 0]) == 1. and told_by(squares(rng, [0, 1]), [0, 1]) == .5
    a,b = (told_by(squares(np.random.default_rng(1), y), y, seed) for seed in (0, 1))
    assert a == told_by(squares(np.random.default_rng(1), y), y, 0) != b

def test_ask_holes_sees_what_was_erased(asked, monkeypatch):
    "The pictures are those of the copies' holes, in the rows' order, with the rows' labels"
    seen = {}
    monkeypatch.setattr(trial, 'told_by', lambda pictures, y, seed: seen.update(pictures=pictures, y=y, seed=seed) or .4)
    assert ask_holes(asked, Trial(.9, .1, .3)) is None # 27 copies teach a classifier nothing
    monkeypatch.setattr(trial, 'enough', 27)
    first, modes, rng = Trial(.9, .1, .3), [m.training for m in asked.model.modules()], torch.get_rng_state()
    assert ask_holes(asked, first, 7) == Trial(.9, .1, .3, holes=.4) and seen['seed'] == 7
    rows = cb_of(asked).copies.rows
    assert seen['pictures'].shape == (27, 16, 16) and [asked.dls.vocab[i] for i in seen['y']] == [r['label'] for r in rows]
    assert np.allclose(seen['pictures'].mean((1, 2)), [r['erased'] for r in rows], atol=.03)
    assert modes == [m.training for m in asked.model.modules()] and torch.equal(rng, torch.get_rng_state())
    monkeypatch.setattr(trial, 'most', 5)
    ask_holes(asked, first)
    assert len(seen['y']) == 5
