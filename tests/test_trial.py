"""The trial: are copies of use? Its two tests, what `fit_proxy` makes of them, and that it leaves nothing behind."""
import numpy as np
import pytest
import torch

from kit import copied_files, quiet_cb, same_weights, cb_of, wrong_files
from proxy_attention import cycles, trial
from proxy_attention.callback import ProxyAttentionCB
from proxy_attention.cycles import recipes
from proxy_attention.inject import ProxyDataset
from proxy_attention.trial import Trial, ask_holes, can_do_without, centred, gone, hole_pictures, needs, right, told_by
from test_fit_proxy import LOW, watched


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
    said = trial.predicted(asked.model, asked.dls.valid.new(dataset=ProxyDataset(cb_of(asked).prepared.items.base, [], [(c, r['index'], cb_of(asked).prepared.task.kind) for c,r in zip(copies, some)])))
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
    cb_of(asked).prepared.task = cb_of(asked).prepared.task._replace(several=True)
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

# -- in fit_proxy ---------------------------------------------------------------------------------------------------------------------------------

@pytest.fixture
def told(monkeypatch):
    "A function: let the tests find these numbers"
    def tell(first, then=None):
        monkeypatch.setattr(cycles, 'needs', lambda learn: first)
        def second(learn, first, fit, seed):
            with learn._grab_cbs(ProxyAttentionCB)[0].copies_alone(cb_of(learn).copies.rows): fit()
            return then
        monkeypatch.setattr(cycles, 'can_do_without', second)
    return tell

LOST = (.9, .1, .3)

def test_a_shortcut_starts_again_with_copies(learner, told):
    told(Trial(*LOST), Trial(*LOST, .6, .6))
    learn, fits = watched(learner, quiet_cb(select='all', merge='replace'))
    df = learn.fit_proxy(1, 2, lr=LOW, look_after='2 steps', restart='initial', trial='4 steps')
    assert [f['steps'] for f in fits] == [2, 4, 6] and list(df['steps']) == [2, 6] and list(df['steps_trial']) == [0, 4] and list(df['trial']) == ['', 'shortcut']
    assert all(same_weights(f['begin'], fits[0]['begin']) for f in fits[1:]) and len(learn.proxies) == 27 == len(learn.dls.train_ds) and df['seconds_trial'][1] > 0

@pytest.mark.parametrize('first, then, verdict', [((.9, .8, .3), None, 'spread'), (LOST, (*LOST, .8, .3), 'real'), (LOST, (*LOST, .31, .3), 'unclear'), (None, None, 'few')])
def test_otherwise_training_goes_on_as_if_nothing_had_been(learner, told, first, then, verdict):
    told(first and Trial(*first), then and Trial(*then))
    learn, fits = watched(learner, quiet_cb(select='all', merge='replace'))
    plain = learn.dls
    df = learn.fit_proxy(1, 1, lr=LOW, look_after='2 steps', restart='initial', trial='4 steps')
    assert list(df['trial']) == ['', verdict] and len(fits) == (2 if then is None else 3) and list(df['proxies']) == [0, 0] and list(df['items']) == [27, 27]
    assert same_weights(fits[-1]['begin'], fits[0]['end']) and learn.dls is plain and not len(learn.proxies)

@pytest.mark.parametrize('holes, verdict', [(.2, 'shortcut'), (.8, 'real'), (None, 'few')])
def test_holes_take_no_steps(learner, monkeypatch, holes, verdict):
    monkeypatch.setattr(cycles, 'needs', lambda learn: Trial(*LOST))
    asked = []
    monkeypatch.setattr(cycles, 'ask_holes', lambda learn, first, seed: asked.append(seed) or holes and Trial(*LOST, holes=holes))
    learn, fits = watched(learner, quiet_cb(select='all', merge='replace', seed=3))
    df = learn.fit_proxy(1, 2, lr=LOW, look_after='2 steps', restart='initial', trial='holes')
    assert asked == [3] and [f['steps'] for f in fits] == [2, 6] and list(df['trial']) == ['', verdict] and list(df['steps_trial']) == [0, 0]
    assert same_weights(fits[1]['begin'], fits[0]['begin' if verdict == 'shortcut' else 'end']) and len(learn.proxies) == (27 if verdict == 'shortcut' else 0)

def test_the_optimizer_survives_the_trial(learner, told):
    told(Trial(*LOST), Trial(*LOST, .8, .3))
    learn, _ = watched(learner, quiet_cb(select='all'))
    opts = []
    learn.fit_proxy(1, 1, lr=LOW, look_after='2 steps', restart='initial', trial='4 steps', after_cycle=lambda learn, row: opts.append(learn.opt))
    assert opts[0] is opts[1]

def test_without_a_trial_there_are_no_columns(learner):
    learn, _ = watched(learner, quiet_cb(select='all'))
    assert not {'trial', 'steps_trial', 'seconds_trial'} & set(learn.fit_proxy(1, 1, lr=LOW, restart='initial'))

def test_percent_and_recipe(learner, told, monkeypatch):
    told(Trial(*LOST), Trial(*LOST, .6, .6))
    monkeypatch.setattr(cycles, 'ask_holes', lambda learn, first, seed: Trial(*LOST, holes=.3))
    learn, fits = watched(learner)
    df = learn.fit_proxy(epochs=8, lr=LOW, recipe='recommended') # 24 steps
    assert [f['steps'] for f in fits] == [4, 24] and list(df['trial']) == ['', 'shortcut'] and len(copied_files(learn)) == 27 and len(learn.dls.train_ds) == 27
    learn, fits = watched(learner)
    df = learn.fit_proxy(epochs=8, lr=LOW, recipe='recommended', trial='8%')
    assert [f['steps'] for f in fits] == [4, 2, 24] and list(df['trial']) == ['', 'shortcut'] and len(learn.dls.train_ds) == 27
    assert recipes['recommended']['policy']['merge'] == 'replace'

def test_an_interrupt_in_the_trial_gives_the_weights_back(learner, monkeypatch):
    monkeypatch.setattr(cycles, 'needs', lambda learn: Trial(*LOST))
    def stop(learn, first, fit, seed):
        with torch.no_grad():
            for p in learn.model.parameters(): p.zero_()
        raise KeyboardInterrupt
    monkeypatch.setattr(cycles, 'can_do_without', stop)
    learn, fits = watched(learner, quiet_cb(select='all'))
    with pytest.raises(KeyboardInterrupt): learn.fit_proxy(1, 1, lr=LOW, look_after='2 steps', restart='initial', trial='4 steps')
    assert same_weights(learn.model.state_dict(), fits[0]['end'])

def test_says_what_it_found(learner, told, capsys):
    told(Trial(*LOST), Trial(*LOST, .6, .6))
    learn, _ = watched(learner, quiet_cb(select='all', verbose=True))
    learn.fit_proxy(1, 1, lr=LOW, restart='initial', trial='2 steps')
    assert trial.words['shortcut'] in capsys.readouterr().out

@pytest.mark.parametrize('kw, error, words', [(dict(trial='2 steps'), ValueError, "trial='2 steps' needs restart"), (dict(trial='soon', restart='initial'), ValueError, "trial='soon'.*steps.*%.*'holes'"),
                                              (dict(trial='holes'), ValueError, "trial='holes' needs restart"), (dict(look_after='holes'), ValueError, "look_after='holes' is neither"), (dict(trial=0, restart='head'), ValueError, 'trial=0'), (dict(trial=[1], restart='head'), TypeError, r'trial=\[1\]')])
def test_bad_input(learner, kw, error, words):
    learn, fits = watched(learner)
    with pytest.raises(error, match=words): learn.fit_proxy(1, 1, **kw)
    assert not fits

# -- for real -------------------------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('how', ['60 steps', 'holes'])
@pytest.mark.parametrize('strength, verdict', [(1., 'shortcut'), (0., 'real')])
def test_digits_with_a_shortcut_and_without(tmp_path, strength, verdict, how):
    from fastai.learner import Learner
    from fastai.metrics import accuracy
    from proxy_attention.lab.digits import make_shortcut_digits, shortcut_digits_dls
    from proxy_attention.lab.models import quiet, small_cnn
    dls = shortcut_digits_dls(make_shortcut_digits(tmp_path/'digits', strength, n_train=600, n_valid=20, n_test=20), bs=32)
    torch.manual_seed(0)
    learn = Learner(dls, small_cnn(10, 16), metrics=accuracy, cbs=quiet_cb(method='gradcam', select='all', merge='replace'))
    with quiet(learn): df = learn.fit_proxy(1, 1, lr=1e-2, look_after='100 steps', restart='initial', trial=how)
    assert df['trial'][1] == verdict and len(learn.proxies) == (600 if strength else 0)
    assert list(df['steps_trial']) == [0, 60 if how == '60 steps' else 0]
