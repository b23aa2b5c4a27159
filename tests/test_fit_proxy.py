"""`learn.fit_proxy`: Stages 1 to 3 in a loop; how long each is, where it starts, when it stops, what is undone."""
import math
from pathlib import Path

import pandas as pd
import pytest
import torch
from fastai.callback.core import Callback
from fastai.metrics import accuracy

from kit import Scripted, copied_files, hooks_of, quiet_cb, same_weights, cb_of, weights, wrong_files
from proxy_attention import cycles as cycles_module
from proxy_attention.callback import ProxyAttentionCB
from proxy_attention.cycles import recipes, steps_of
from proxy_attention.policy import Policy, presets
from proxy_attention.store import StoreError

LOW = 1e-3
PER_EPOCH = 3 # 27 items in batches of 8, the last one dropped

COLUMNS = ['cycle', 'items', 'proxies', 'wrong', 'steps', 'train_loss', 'valid_loss', 'accuracy', 'seconds_train', 'seconds_score',
           'seconds_saliency',
           'seconds_erase', 'seconds_write', 'rolled_back', 'stop']

class Watch(Callback):
    "Per fit: training batches, epochs, rates, and weights at its start and its end"
    order = -80
    def __init__(self): self.fits = []
    def before_fit(self):
        begin = weights(self.learn.model)
        self.fits.append(dict(steps=0, epochs=0, rates=[], begin=begin, end=None, frozen=self.frozen()))
    def frozen(self): return not next(self.learn.model.parameters()).requires_grad
    def after_batch(self):
        if self.learn.training: self.fits[-1]['steps'] += 1
    def before_step(self): self.fits[-1]['rates'].append(self.learn.opt.hypers[-1]['lr'])
    def after_epoch(self):
        self.fits[-1]['epochs'] += 1
        self.fits[-1]['end'] = weights(self.learn.model)

def watched(learner, cb=None, **kwargs):
    watch = Watch()
    learn = learner([quiet_cb() if cb is None else cb, watch], **kwargs)
    return learn, watch.fits


# -- what comes back ------------------------------------------------------------------------------------------------------------------------------

def test_a_row_a_fit(learner):
    learn, fits = watched(learner)
    dls = learn.dls
    df = learn.fit_proxy(2, 1, lr=LOW)
    assert isinstance(df, pd.DataFrame) and list(df.columns) == COLUMNS
    assert list(df['cycle']) == [0, 1, 2] and list(df['stop']) == ['', '', 'cycles done'] and not df['rolled_back'].any()
    assert list(df['steps']) == [f['steps'] for f in fits] and len(fits) == 3
    assert df['proxies'][0] == 0 and (df['proxies'][1:] > 0).all() and list(df['items']) == [27 + k for k in df['proxies']]
    assert math.isnan(df['wrong'][0]) and list(df['wrong'][1:]) == list(df['proxies'][1:])
    assert learn.dls is not dls and len(learn.proxies) == df['proxies'][2] and set(learn.proxies['cycle']) == {2}
    valid = float(df['accuracy'][2])
    assert abs(valid - learn.validate()[1]) < 1e-6
    assert (df[['seconds_train']] > 0).all().all() and (df.loc[1:, 'seconds_score'] > 0).all()

def test_stage_2_copies_what_stage_1_got_wrong(learner):
    learn, fits = watched(learner)
    dls = learn.dls
    learn.fit_proxy(1, 1, lr=LOW)
    learn.model.load_state_dict(fits[0]['end'])
    assert copied_files(learn) == wrong_files(learn.model, dls.train_ds.items) != set()
    assert cb_of(learn).copies.cycle == 1, "the callback made copies by itself, too"

def test_afterwards_the_callback_acts_by_itself_again(learner):
    learn, _ = watched(learner)
    dls = learn.dls
    learn.fit_proxy(1, 1, lr=LOW)
    assert not cb_of(learn).fit_state.paused
    learn.fit(1, LOW)
    assert cb_of(learn).copies.cycle == 2 and copied_files(learn) == wrong_files(learn.model, dls.train_ds.items)


# -- arguments, one by one ------------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('cycles', [0, 1, 3, None])
def test_cycles(learner, cycles):
    learn, fits = watched(learner)
    df = learn.fit_proxy(cycles, 1, lr=LOW)
    assert len(df) == len(fits) == (2 if cycles is None else cycles+1)

def test_epochs_and_cycle_epochs(learner):
    learn, fits = watched(learner)
    df = learn.fit_proxy(1, 2, lr=LOW)
    assert [f['epochs'] for f in fits] == [2, 2] and df['steps'][0] == 2*PER_EPOCH
    fits.clear()
    learn.remove_proxies()
    learn.fit_proxy(2, 2, lr=LOW, cycle_epochs=1)
    assert [f['epochs'] for f in fits] == [2, 1, 1]

def test_lr(learner):
    for lr in (1e-4, 5e-3):
        learn, fits = watched(learner)
        learn.fit_proxy(1, 1, lr=lr)
        assert all(0.5*lr < max(f['rates']) <= lr*1.0001 for f in fits)

def test_lr_is_the_learners_unless_given(learner):
    learn, fits = watched(learner, lr=4e-4)
    learn.fit_proxy(1, 1)
    assert all(2e-4 < max(f['rates']) <= 4.001e-4 for f in fits)

def body_and_head(model): return [list(model[0].parameters()), list(model[1].parameters())]

def test_freeze_epochs(learner):
    learn, fits = watched(learner, splitter=body_and_head)
    df = learn.fit_proxy(1, 1, lr=LOW, freeze_epochs=2)
    assert [(f['epochs'], f['frozen']) for f in fits] == [(2, True), (1, False)]*2
    begin, end = fits[0]['begin'], fits[0]['end'] # Nothing but the head learns
    assert torch.equal(begin['0.0.weight'], end['0.0.weight']) and not torch.equal(begin['1.2.weight'], end['1.2.weight'])
    assert not torch.equal(fits[1]['begin']['0.0.weight'], fits[1]['end']['0.0.weight'])
    assert list(df['steps']) == [fits[0]['steps']+fits[1]['steps'], fits[2]['steps']+fits[3]['steps']]

looks = {0.5: 2, 1: 3, 1.5: 4, 2: 6, 0.01: 1, '5 steps': 5, '1 step': 1, '7steps': 7, '50%': 3, '25%': 2, '100%': 6, ' 10 % ': 1}

@pytest.mark.parametrize('look_after', looks)
def test_look_after(learner, look_after):
    learn, fits = watched(learner)
    df = learn.fit_proxy(1, 2, lr=LOW, look_after=look_after)
    n = len(learn.dls.train)
    assert fits[0]['steps'] == df['steps'][0] == looks[look_after] and fits[0]['epochs'] == 1
    assert fits[1]['steps'] == df['steps'][1] == 2*n and fits[1]['epochs'] == 2

def test_a_short_look_draws_different_items(learner):
    seen = []
    class Drawn(Callback):
        run_valid = False
        def before_batch(self): seen.append(self.xb[0].flatten(1).mean(1).tolist())
    learn = learner([quiet_cb(), Drawn()])
    learn.fit_proxy(0, 1, lr=LOW, look_after='3 steps')
    assert len(set(sum(seen, []))) == 24 and len(seen) == 3 # No item twice in one epoch

def test_a_long_look_goes_through_several_epochs(learner):
    seen = []
    class Drawn(Callback):
        run_valid = False
        def before_batch(self): seen.extend(round(v, 5) for v in self.xb[0].flatten(1).mean(1).tolist())
    learn = learner([quiet_cb(), Drawn()])
    learn.fit_proxy(0, 1, lr=LOW, look_after='7 steps')
    counts = pd.Series(seen).value_counts()
    assert len(seen) == 56 and len(counts) == 27 and counts.max() <= 3 and counts.min() >= 2

def test_steps_of():
    assert steps_of(0.5, 4, 10) == 5 and steps_of('12 steps', 4, 10) == 12 and steps_of('25%', 4, 10) == 10 and steps_of(1e-9, 4, 10) == 1
    for bad in ('half', '5 epochs', '', '-3 steps', '0%', '0 steps'):
        with pytest.raises(ValueError, match='look_after'): steps_of(bad, 4, 10)
    for bad in (0, -1, float('nan')):
        with pytest.raises(ValueError, match='look_after'): steps_of(bad, 4, 10)
    with pytest.raises(TypeError, match='look_after'): steps_of([1], 4, 10)

def test_restart_none_goes_on(learner):
    learn, fits = watched(learner)
    learn.fit_proxy(2, 1, lr=LOW)
    for before,then in zip(fits, fits[1:]): assert same_weights(before['end'], then['begin'])

@pytest.mark.parametrize('look_after', [None, '2 steps'])
def test_restart_initial(learner, look_after):
    learn, fits = watched(learner)
    first = weights(learn.model)
    learn.fit_proxy(2, 1, lr=LOW, restart='initial', look_after=look_after)
    for f in fits: assert same_weights(f['begin'], first) and not same_weights(f['end'], first)

def test_restart_initial_forgets_the_optimizer(learner):
    learn, _ = watched(learner)
    learn.fit_proxy(1, 1, lr=LOW, restart='initial')
    assert {s['step'] for s in learn.opt.state.values() if 'step' in s} == {len(learn.dls.train)} # Not those of Stage 1

def test_restart_initial_with_a_frozen_body(learner):
    learn, fits = watched(learner, splitter=body_and_head)
    learn.freeze()
    learn.fit_proxy(1, 1, lr=LOW, restart='initial')
    assert [f['frozen'] for f in fits] == [True, True] and learn.opt.frozen_idx == 1
    assert torch.equal(fits[1]['end']['0.0.weight'], fits[0]['begin']['0.0.weight'])

def test_restart_head(learner):
    learn, fits = watched(learner)
    learn.fit_proxy(1, 1, lr=LOW, restart='head')
    first, second = fits
    for k in first['end']:
        if k.startswith('0.'): assert torch.equal(first['end'][k], second['begin'][k])
        else: assert not torch.equal(first['end'][k], second['begin'][k]) and not torch.equal(first['begin'][k], second['begin'][k])

def test_after_cycle(learner):
    seen = []
    def note(learn, row):
        seen.append((row['cycle'], len(learn.dls.train_ds)))
        return {'twice': 2*row['steps']} if row['cycle'] else None
    learn, _ = watched(learner)
    df = learn.fit_proxy(1, 1, lr=LOW, after_cycle=note)
    assert seen == list(zip(df['cycle'], df['items'])) and df['twice'][1] == 2*df['steps'][1] and math.isnan(df['twice'][0])


# -- when it stops --------------------------------------------------------------------------------------------------------------------------------

def scripted(learner, *values, **kwargs): return watched(learner, metrics=[accuracy, Scripted(*values)], **kwargs)

@pytest.mark.parametrize('until,rows', [('scripted>=0.7', 3), ('scripted>0.6', 3), ('scripted<0.4', 2), ('scripted<=0.3', 2),
                                        ('scripted>=0.95', 5),
                                        ('valid_loss<1e3', 1), ('train_loss < 1000', 1), ('scripted>-1', 1)])
def test_until(learner, until, rows):
    learn, _ = scripted(learner, 0.5, 0.3, 0.7, 0.9, 0.9)
    df = learn.fit_proxy(4, 1, lr=LOW, until=until)
    assert len(df) == rows and df['stop'].iloc[-1] == ('until' if rows < 5 else 'cycles done') and (df['stop'][:-1] == '').all()

@pytest.mark.parametrize('patience,rows', [(1, 4), (2, 5), (None, 8)])
def test_patience(learner, patience, rows):
    learn, _ = scripted(learner, 0.1, 0.2, 0.3, 0.3, 0.2, 0.1, 0.1, 0.1)
    df = learn.fit_proxy(7, 1, lr=LOW, patience=patience, monitor='scripted')
    assert len(df) == rows and df['stop'].iloc[-1] == ('patience' if patience else 'cycles done')

def test_monitor(learner):
    rows = {}
    for monitor in ('scripted', 'scripted_loss', None):
        grows, falls = (0.1, 0.2, 0.3, 0.4), (0.4, 0.3, 0.2, 0.1)
        metrics = {'scripted': [accuracy, Scripted(*grows)], 'scripted_loss': [accuracy, LossLike(*grows)],
                   None: [Scripted(*falls), accuracy]}
        learn, _ = watched(learner, metrics=metrics[monitor])
        rows[monitor] = len(learn.fit_proxy(3, 1, lr=LOW, patience=1, monitor=monitor))
    assert rows == {'scripted': 4, 'scripted_loss': 2, None: 2} # A loss that grows is worse; the first metric counts unless told

class LossLike(Scripted):
    @property
    def name(self): return 'scripted_loss'

def test_budget(learner, monkeypatch):
    clock = [0.]
    class Time:
        @staticmethod
        def perf_counter():
            clock[0] += 1
            return clock[0]
    monkeypatch.setattr(cycles_module, 'time', Time)
    rows = [len(watched(learner)[0].fit_proxy(5, 1, lr=LOW, budget=b)) for b in (1, 12, 1e9)]
    assert rows[0] == 1 and 1 < rows[1] < 6 and rows[2] == 6
    df = watched(learner)[0].fit_proxy(5, 1, lr=LOW, budget=1)
    assert df['stop'].iloc[-1] == 'budget'

def test_nothing_left_to_erase(learner):
    learn, fits = watched(learner)
    df = learn.fit_proxy(5, 25, lr=0.02)
    assert df['stop'].iloc[-1] == 'nothing left to erase' and len(df) == len(fits) < 6

def test_divergence_stops_and_says_so(learner):
    class Diverge(Callback):
        def after_train(self): self.learn.model[1][2].bias.data.fill_(float('nan'))
    learn, _ = watched(learner)
    learn.add_cb(Diverge())
    with pytest.warns(UserWarning, match='no copies.*finite'): df = learn.fit_proxy(3, 1, lr=LOW)
    assert len(df) == 1 and 'finite' in df['stop'].iloc[-1] and not len(learn.proxies)


# -- undoing --------------------------------------------------------------------------------------------------------------------------------------

def test_rollback_undoes_weights_and_copies(learner):
    learn, fits = scripted(learner, 0.5, 0.6, 0.2)
    kept = []
    def note(learn, row): kept.append((list(learn.proxies['id']), len(learn.dls.train_ds)))
    df = learn.fit_proxy(2, 1, lr=LOW, rollback=0.1, monitor='scripted', after_cycle=note)
    assert list(df['rolled_back']) == [False, False, True]
    assert same_weights(weights(learn.model), fits[1]['end']) and not same_weights(fits[2]['end'], fits[1]['end'])
    assert (list(learn.proxies['id']), len(learn.dls.train_ds)) == kept[1] != kept[2] and set(learn.proxies['cycle']) == {1}
    assert all(Path(p).is_file() for p in learn.proxies['path'])

def test_rollback_of_the_first_cycle_leaves_no_copies(learner):
    learn, fits = scripted(learner, 0.5, 0.1)
    dls = learn.dls
    df = learn.fit_proxy(1, 1, lr=LOW, rollback=0, monitor='scripted')
    assert list(df['rolled_back']) == [False, True] and learn.dls is dls and not len(learn.proxies)
    assert same_weights(weights(learn.model), fits[0]['end'])
    learn.fit(1, LOW) # And on
    assert copied_files(learn) == wrong_files(learn.model, dls.train_ds.items)

@pytest.mark.parametrize('rollback,undone', [(None, 0), (0.5, 0), (0.2, 1), (0, 2)])
def test_rollback_tolerance(learner, rollback, undone):
    learn, _ = scripted(learner, 0.8, 0.5, 0.75)
    df = learn.fit_proxy(2, 1, lr=LOW, rollback=rollback, monitor='scripted')
    assert df['rolled_back'].sum() == undone

def test_rollback_of_a_loss_that_grows(learner):
    learn, _ = watched(learner, metrics=[LossLike(0.5, 0.9, 0.4)])
    df = learn.fit_proxy(2, 1, lr=LOW, rollback=0.1, monitor='scripted_loss')
    assert list(df['rolled_back']) == [False, True, False]

def test_an_undone_cycle_does_not_reach_the_goal(learner):
    learn, _ = watched(learner, metrics=[LossLike(0.5, 0.9, 0.4), Scripted(0., 1., 0.)])
    df = learn.fit_proxy(2, 1, lr=LOW, rollback=0.1, monitor='scripted_loss', until='scripted>=1')
    assert list(df['rolled_back']) == [False, True, False] and df['stop'].iloc[-1] == 'cycles done'


# -- recipes --------------------------------------------------------------------------------------------------------------------------------------

def test_recipe_proposal(learner):
    learn, fits = watched(learner, cb=quiet_cb(method='layercam', share=0.1))
    df = learn.fit_proxy(epochs=1, lr=LOW, recipe='proposal')
    assert len(df) == 4 and set(learn.proxies['method']) == {'gradcam'} and learn.proxies['erased'].nunique() > 1
    assert df['items'][1] == 27 + df['proxies'][1] > 30 and same_weights(fits[0]['end'], fits[1]['begin'])

def test_recipe_masktune(learner):
    learn, fits = watched(learner)
    df = learn.fit_proxy(epochs=2, lr=LOW, recipe='masktune')
    assert [f['epochs'] for f in fits] == [2, 1] and set(learn.proxies['method']) == {'xgradcam'}
    assert list(df['items']) == [27, 27] and df['proxies'][1] > 13 # In the originals' stead

def test_recipe_early_look(learner):
    learn, fits = watched(learner)
    first = weights(learn.model)
    df = learn.fit_proxy(epochs=4, lr=LOW, recipe='early_look')
    assert df['steps'][0] == PER_EPOCH and len(df) == 2 # A quarter of four epochs
    assert same_weights(fits[1]['begin'], first) and fits[1]['epochs'] == 4 and df['proxies'][1] + cb_of(learn).last['flat'] == 27

def test_arguments_win_over_the_recipe(learner):
    learn, fits = watched(learner)
    df = learn.fit_proxy(2, 2, lr=LOW, recipe='early_look', look_after='1 step', cycle_epochs=1)
    assert len(df) == 3 and df['steps'][0] == 1 and [f['epochs'] for f in fits] == [1, 1, 1]

def test_a_recipe_is_a_policy_for_this_call_only(learner):
    learn, _ = watched(learner, cb=quiet_cb(share=0.2))
    learn.fit_proxy(1, 1, lr=LOW, recipe='early_look')
    cb = learn._grab_cbs(ProxyAttentionCB)[0]
    assert cb.policy == cb.active == Policy(method='eigencam', share=0.2) and cb_of(learn).override is None
    learn.fit(1, LOW)
    assert 0 < len(learn.proxies) <= 5 and set(learn.proxies['method']) == {'eigencam'}

def test_a_recipe_adds_the_callback(learner):
    learn = learner()
    df = learn.fit_proxy(1, 1, lr=LOW, recipe='early_look')
    assert len(df) == 2 and len(learn._grab_cbs(ProxyAttentionCB)) == 1

def test_recipes_can_be_added(learner, monkeypatch):
    monkeypatch.setitem(recipes, 'mine', dict(policy=dict(method='eigencam', select='random', share=0.2),
                                              fit=dict(cycles=2, restart='head')))
    learn, fits = watched(learner)
    df = learn.fit_proxy(epochs=1, lr=LOW, recipe='mine')
    assert list(df['proxies']) == [0, 5, 5] and not torch.equal(fits[0]['end']['1.2.weight'], fits[1]['begin']['1.2.weight'])

def test_the_recipes_hold_the_presets():
    assert set(recipes) >= {'proposal', 'masktune', 'early_look', 'recommended'}
    for name in ('proposal', 'masktune'): assert recipes[name]['policy'] == presets[name]

def test_ever_wrong_in_fit_proxy(learner):
    learn, _ = watched(learner, cb=quiet_cb(select='ever_wrong'))
    df = learn.fit_proxy(2, 1, lr=LOW, look_after='2 steps')
    assert len(df) == 3 and 0 < df['proxies'][1] <= 16 # Two batches of eight were seen


# -- interruption and trouble ---------------------------------------------------------------------------------------------------------------------

class StopAt(Callback):
    "Raise in batch `at` of fit number `fit`"
    def __init__(self, fit, at, error): self.fit, self.at, self.error, self.n = fit, at, error, -1
    def before_fit(self): self.n += 1
    def after_batch(self):
        if self.learn.training and (self.n, self.learn.iter) == (self.fit, self.at): raise self.error

@pytest.mark.parametrize('error', [KeyboardInterrupt(), RuntimeError('broken')], ids=['interrupt', 'exception'])
@pytest.mark.parametrize('fit', [0, 1], ids=['stage 1', 'stage 3'])
def test_an_interruption_leaves_the_dataloaders_unharmed(learner, fit, error):
    learn, _ = watched(learner)
    dls, loaders = learn.dls, list(learn.dls.loaders)
    stop = StopAt(fit, 1, error)
    learn.add_cb(stop)
    with pytest.raises(type(error)): learn.fit_proxy(2, 1, lr=LOW, look_after='3 steps')
    learn.remove_cb(stop)
    assert all(a is b for a,b in zip(dls.loaders, loaders)) and (dls.train.n, len(dls.train)) == (27, PER_EPOCH)
    assert (learn.dls is dls) == (fit == 0) and len(learn.dls.train_ds) == 27 + len(learn.proxies) and hooks_of(learn.model) == 0
    cb = learn._grab_cbs(ProxyAttentionCB)[0]
    assert not cb.proxy_state.paused and cb.proxy_state.override is None
    assert [type(c).__name__ for c in learn.cbs].count('_Ledger') == 0
    learn.fit(1, LOW)
    assert copied_files(learn) == wrong_files(learn.model, dls.train_ds.items) != set()
    learn.remove_proxies()
    assert learn.dls is dls

def test_copies_lost_before_a_short_look(learner):
    learn, fits = watched(learner)
    learn.fit(1, LOW)
    n = len(learn.proxies)
    Path(learn.proxies['path'][0]).unlink()
    with pytest.warns(UserWarning, match=f'1 of {n} copies.*missing'): df = learn.fit_proxy(1, 1, lr=LOW, look_after='2 steps')
    assert list(df['steps']) == [2, len(learn.dls.train)] == [f['steps'] for f in fits[1:]] and df['proxies'][0] == n-1
    assert len(learn.dls.train) == (27 + len(learn.proxies))//8 and learn.dls.train.n == len(learn.dls.train_ds) == 27 + len(learn.proxies)
    assert not callable(vars(learn.dls.train).get('get_idxs')), "the short epoch's draw has stayed"

def test_a_full_disk_stops_the_loop_and_says_so(learner):
    learn, _ = watched(learner, cb=quiet_cb(max_gb=1e-9))
    dls = learn.dls
    with pytest.warns(UserWarning, match='no copies.*max_gb'): df = learn.fit_proxy(3, 1, lr=LOW)
    assert len(df) == 1 and 'max_gb' in df['stop'].iloc[-1] and learn.dls is dls


# -- bad arguments: before anything is trained ----------------------------------------------------------------------------------------------------

bad = {
    'cycles': [(dict(cycles=-1), ValueError, 'cycles=-1'), (dict(cycles=1.5), ValueError, 'cycles=1.5'),
               (dict(cycles='3'), TypeError, "cycles='3'")],
    'epochs': [(dict(epochs=None), ValueError, 'epochs=None'), (dict(epochs=0), ValueError, 'epochs=0'),
               (dict(epochs=True), TypeError, 'epochs=True')],
    'cycle_epochs': [(dict(cycle_epochs=0), ValueError, 'cycle_epochs=0')],
    'freeze_epochs': [(dict(freeze_epochs=-1), ValueError, 'freeze_epochs=-1'), (dict(freeze_epochs='1'), TypeError, "freeze_epochs='1'")],
    'look_after': [(dict(look_after='soon'), ValueError, "look_after='soon'.*epochs.*steps.*%"),
                   (dict(look_after=0), ValueError, 'look_after=0'),
                   (dict(look_after=[1]), TypeError, r'look_after=\[1\]')],
    'restart': [(dict(restart='inital'), ValueError, "restart='inital'.*'initial'.*'head'.*mean 'initial'")],
    'monitor': [(dict(monitor='acuracy'), ValueError, "monitor='acuracy'.*'train_loss', 'valid_loss', 'accuracy'")],
    'until': [(dict(until='accuracy'), ValueError, "until='accuracy'.*>="), (dict(until='f1>=0.5'), ValueError, "until='f1'.*'accuracy'"),
              (dict(until=0.9), ValueError, 'until=0.9'), (dict(until='accuracy>=high'), ValueError, 'until=')],
    'patience': [(dict(patience=0), ValueError, 'patience=0'), (dict(patience=1.5), ValueError, 'patience=1.5')],
    'budget': [(dict(budget=0), ValueError, 'budget=0'), (dict(budget='1h'), TypeError, "budget='1h'")],
    'rollback': [(dict(rollback=-0.1), ValueError, 'rollback=-0.1'), (dict(rollback=True), TypeError, 'rollback=True')],
    'recipe': [(dict(recipe='early'), ValueError, "recipe='early'.*'proposal', 'masktune', 'early_look'")],
    'after_cycle': [(dict(after_cycle=3), TypeError, 'after_cycle=3')],
    'lr': [(dict(lr='fast'), TypeError, "lr='fast'"), (dict(lr=-1.), ValueError, 'lr=-1')],
}

@pytest.mark.parametrize('kwargs,error,words', [case for cases in bad.values() for case in cases], ids=str)
def test_bad_arguments(learner, kwargs, error, words):
    learn, fits = watched(learner)
    before = weights(learn.model)
    with pytest.raises(error, match=f'(?s){words}'): learn.fit_proxy(**(dict(cycles=1, epochs=1, lr=LOW) | kwargs))
    assert fits == [] and same_weights(weights(learn.model), before) and not Path('.proxies').exists()

def test_a_headless_model_is_refused_before_anything_is_trained(learner):
    class Plain(torch.nn.Module):
        def __init__(self):
            super().__init__()
            from kit import tiny_model
            self.one, self.two = tiny_model()
        def forward(self, x): return self.two(self.one(x))
    learn, fits = watched(learner, model=Plain())
    with pytest.raises(ValueError, match="restart='head'.*has no head"): learn.fit_proxy(1, 1, lr=LOW, restart='head')
    assert fits == [] and not Path('.proxies').exists()

def test_a_learner_without_the_callback(learner):
    learn = learner()
    with pytest.raises(ValueError, match='no ProxyAttentionCB.*add one'): learn.fit_proxy(1, 1)
    with pytest.raises(ValueError, match='epochs'): learn.fit_proxy(recipe='early_look')
    assert not learn._grab_cbs(ProxyAttentionCB), "a call that was refused has added a callback"

def test_a_path_in_use_is_told_before_anything_is_trained(learner):
    one, (two, fits) = learner(quiet_cb(path='run')), watched(learner, cb=quiet_cb(path='run'))
    one.fit(1, LOW)
    with pytest.raises(StoreError, match='in use'): two.fit_proxy(1, 1, lr=LOW)
    assert sum(f['steps'] for f in fits) == 0
