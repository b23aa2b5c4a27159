"""`learn.fit_proxy`: Stages 1 to 3 in a loop; how long each is, where it starts, when it stops, what is undone."""
import math
from pathlib import Path

import pandas as pd
import pytest
import torch
from fastai.callback.core import Callback
from fastai.metrics import accuracy

from kit import Scripted, cb_of, copied_files, hooks_of, plain, quiet_cb, same_weights, weights, wrong_files
from proxy_attention import learner as learner_module
from proxy_attention import saliency, stages
from proxy_attention.callback import ProxyAttentionCB
from proxy_attention.core import steps_of
from proxy_attention.store import StoreError

LOW = 1e-3
PER_EPOCH = 3 # 27 items in batches of 8, the last one dropped

COLUMNS = ['cycle', 'items', 'proxies', 'wrong', 'steps', 'train_loss', 'valid_loss', 'accuracy', 'rolled_back', 'stop']

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
    df = learn.fit_proxy(1, 2, lr=LOW)
    assert isinstance(df, pd.DataFrame) and list(df.columns) == COLUMNS
    assert list(df['cycle']) == [0, 1, 2] and list(df['stop']) == ['', '', 'cycles done'] and not df['rolled_back'].any()
    assert list(df['steps']) == [f['steps'] for f in fits] and len(fits) == 3
    assert df['proxies'][0] == 0 and (df['proxies'][1:] > 0).all() and list(df['items']) == [27 + k for k in df['proxies']]
    assert (df['wrong'] > 0).all() and list(df['wrong'][:2]) == list(df['proxies'][1:]) # What a fit got wrong the next one trains on
    assert learn.dls is not dls and len(learn.proxies) == df['wrong'][2] and set(learn.proxies['cycle']) == {3}
    assert abs(float(df['accuracy'][2]) - learn.validate()[1]) < 1e-6

def test_it_calls_ordinary_fits(learner):
    "The same as the fits one after the other"
    learn, _ = watched(learner)
    learn.fit_proxy(1, 1, lr=LOW)
    other, _ = watched(learner)
    for _ in range(2): other.fit_one_cycle(1, LOW)
    assert same_weights(weights(learn.model), weights(other.model)) and copied_files(learn) == copied_files(other)

def test_each_stage_copies_what_it_got_wrong(learner):
    learn, fits = watched(learner)
    dls, kept = learn.dls, []
    learn.fit_proxy(1, 2, lr=LOW, after_cycle=lambda learn, row: kept.append((copied_files(learn), wrong_files(learn.model, dls.train_ds.items))))
    assert len(kept) == 3 and all(a == b != set() for a,b in kept)

def test_afterwards_ordinary_fits_go_on(learner):
    learn, _ = watched(learner)
    dls = learn.dls
    learn.fit_proxy(1, 1, lr=LOW)
    learn.fit(1, LOW)
    assert cb_of(learn).copies.cycle == 3 and copied_files(learn) == wrong_files(learn.model, dls.train_ds.items)

def test_a_scout_goes_out_once(learner):
    learn, fits = watched(learner, cb=quiet_cb(scout='2 steps', fill='context', scout_test=False))
    df = learn.fit_proxy(1, 1, lr=LOW)
    assert list(df['items']) == [27, 27 + df['wrong'][0]] and (learn.proxies['cycle'] == 0).sum() == 27 and df['proxies'][0] == 27


# -- arguments, one by one ------------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('cycles', [0, 1, 3])
def test_cycles(learner, cycles):
    learn, fits = watched(learner)
    df = learn.fit_proxy(1, cycles, lr=LOW)
    assert len(df) == len(fits) == cycles + 1

def test_one_cycle_unless_said_otherwise(learner): assert len(watched(learner)[0].fit_proxy(1, lr=LOW)) == 2

def test_epochs_and_cycle_epochs(learner):
    learn, fits = watched(learner)
    df = learn.fit_proxy(2, 1, lr=LOW)
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

def test_steps_of():
    assert steps_of(0.5, 4, 10) == 5 and steps_of('12 steps', 4, 10) == 12 and steps_of('25%', 4, 10) == 10 and steps_of(1e-9, 4, 10) == 1
    assert steps_of('2 epochs', 4, 10) == 20 == 2*steps_of(' 1 epoch ', 4, 10)
    for bad in ('half', '5 weeks', '', '-3 steps', '0%', '0 steps'):
        with pytest.raises(ValueError, match='length'): steps_of(bad, 4, 10, 'length')
    for bad in (0, -1, float('nan')):
        with pytest.raises(ValueError, match='length'): steps_of(bad, 4, 10, 'length')
    with pytest.raises(TypeError, match='length'): steps_of([1], 4, 10, 'length')

def test_each_fit_goes_on_where_the_last_one_ended(learner):
    learn, fits = watched(learner)
    learn.fit_proxy(1, 2, lr=LOW)
    for before,then in zip(fits, fits[1:]): assert same_weights(before['end'], then['begin'])

def test_after_cycle(learner):
    seen = []
    def note(learn, row):
        seen.append((row['cycle'], len(learn.dls.train_ds)))
        return {'twice': 2*row['steps']} if row['cycle'] else None
    learn, _ = watched(learner)
    df = learn.fit_proxy(1, 1, lr=LOW, after_cycle=note)
    assert [c for c,_ in seen] == list(df['cycle']) and seen[0][1] == df['items'][1] > 27 # What the next fit trains on
    assert df['twice'][1] == 2*df['steps'][1] and math.isnan(df['twice'][0])


# -- when it stops --------------------------------------------------------------------------------------------------------------------------------

def scripted(learner, *values, **kwargs): return watched(learner, metrics=[accuracy, Scripted(*values)], **kwargs)

@pytest.mark.parametrize('until,rows', [('scripted>=0.7', 3), ('scripted>0.6', 3), ('scripted<0.4', 2), ('scripted<=0.3', 2),
                                        ('scripted>=0.95', 5),
                                        ('valid_loss<1e3', 1), ('train_loss < 1000', 1), ('scripted>-1', 1)])
def test_until(learner, until, rows):
    learn, _ = scripted(learner, 0.5, 0.3, 0.7, 0.9, 0.9)
    df = learn.fit_proxy(1, 4, lr=LOW, until=until)
    assert len(df) == rows and df['stop'].iloc[-1] == ('until' if rows < 5 else 'cycles done') and (df['stop'][:-1] == '').all()

@pytest.mark.parametrize('patience,rows', [(1, 4), (2, 5), (None, 8)])
def test_patience(learner, patience, rows):
    learn, _ = scripted(learner, 0.1, 0.2, 0.3, 0.3, 0.2, 0.1, 0.1, 0.1)
    df = learn.fit_proxy(1, 7, lr=LOW, patience=patience, monitor='scripted')
    assert len(df) == rows and df['stop'].iloc[-1] == ('patience' if patience else 'cycles done')

def test_monitor(learner):
    rows = {}
    for monitor in ('scripted', 'scripted_loss', None):
        grows, falls = (0.1, 0.2, 0.3, 0.4), (0.4, 0.3, 0.2, 0.1)
        metrics = {'scripted': [accuracy, Scripted(*grows)], 'scripted_loss': [accuracy, LossLike(*grows)],
                   None: [Scripted(*falls), accuracy]}
        learn, _ = watched(learner, metrics=metrics[monitor])
        rows[monitor] = len(learn.fit_proxy(1, 3, lr=LOW, patience=1, monitor=monitor))
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
    monkeypatch.setattr(stages, 'time', Time)
    rows = [len(watched(learner)[0].fit_proxy(1, 5, lr=LOW, budget=b)) for b in (1, 3, 1e9)] # A second a stage
    assert rows == [1, 3, 6]
    df = watched(learner)[0].fit_proxy(1, 5, lr=LOW, budget=1)
    assert df['stop'].iloc[-1] == 'budget'

def test_a_cycle_without_copies_is_no_reason_to_stop(learner, monkeypatch):
    monkeypatch.setitem(saliency.saliency_methods, 'flat', lambda acts, grads, weights: torch.zeros_like(acts[:, 0]))
    learn, fits = watched(learner, cb=quiet_cb(method='flat'))
    df = learn.fit_proxy(1, 3, lr=LOW)
    assert len(df) == len(fits) == 4 and not df['proxies'].any() and list(df['steps']) == [PER_EPOCH]*4 and df['stop'].iloc[-1] == 'cycles done'

def test_divergence_costs_the_copies_only(learner):
    class Diverge(Callback):
        def after_train(self): self.learn.model[1][2].bias.data.fill_(float('nan'))
    learn, _ = watched(learner)
    learn.add_cb(Diverge())
    with pytest.warns(UserWarning, match='no copies.*finite'): df = learn.fit_proxy(1, 1, lr=LOW)
    assert len(df) == 2 and not len(learn.proxies)


# -- undoing --------------------------------------------------------------------------------------------------------------------------------------

def test_rollback_undoes_weights_and_copies(learner):
    learn, fits = scripted(learner, 0.5, 0.6, 0.2)
    kept = []
    def note(learn, row): kept.append((list(learn.proxies['id']), len(learn.dls.train_ds), plain(learn.opt.state_dict())))
    df = learn.fit_proxy(1, 2, lr=LOW, rollback=0.1, monitor='scripted', after_cycle=note)
    assert list(df['rolled_back']) == [False, False, True]
    assert same_weights(weights(learn.model), fits[1]['end']) and not same_weights(fits[2]['end'], fits[1]['end'])
    assert kept[1] == kept[2] != kept[0] and list(learn.proxies['id']) == kept[1][0] and set(learn.proxies['cycle']) == {2} # Not those of the third fit
    assert all(Path(p).is_file() for p in learn.proxies['path'])

def test_rollback_of_the_first_cycle_leaves_the_copies_of_stage_1(learner):
    learn, fits = scripted(learner, 0.5, 0.1)
    dls = learn.dls
    df = learn.fit_proxy(1, 1, lr=LOW, rollback=0, monitor='scripted')
    assert list(df['rolled_back']) == [False, True] and set(learn.proxies['cycle']) == {1}
    assert copied_files(learn) == wrong_files(learn.model, dls.train_ds.items) and same_weights(weights(learn.model), fits[0]['end'])
    learn.fit(1, LOW) # And on
    assert copied_files(learn) == wrong_files(learn.model, dls.train_ds.items)

def test_a_cycle_that_is_undone_is_not_repeated(learner):
    learn, fits = scripted(learner, 0.5, 0.1, 0.1)
    learn.fit_proxy(1, 2, lr=LOW, rollback=0, monitor='scripted')
    assert same_weights(fits[1]['begin'], fits[2]['begin']) and not same_weights(fits[1]['end'], fits[2]['end'])

@pytest.mark.parametrize('rollback,undone', [(None, 0), (0.5, 0), (0.2, 1), (0, 2)])
def test_rollback_tolerance(learner, rollback, undone):
    learn, _ = scripted(learner, 0.8, 0.5, 0.75)
    df = learn.fit_proxy(1, 2, lr=LOW, rollback=rollback, monitor='scripted')
    assert df['rolled_back'].sum() == undone

def test_rollback_of_a_loss_that_grows(learner):
    learn, _ = watched(learner, metrics=[LossLike(0.5, 0.9, 0.4)])
    df = learn.fit_proxy(1, 2, lr=LOW, rollback=0.1, monitor='scripted_loss')
    assert list(df['rolled_back']) == [False, True, False]

def test_an_undone_cycle_does_not_reach_the_goal(learner):
    learn, _ = watched(learner, metrics=[LossLike(0.5, 0.9, 0.4), Scripted(0., 1., 0.)])
    df = learn.fit_proxy(1, 2, lr=LOW, rollback=0.1, monitor='scripted_loss', until='scripted>=1')
    assert list(df['rolled_back']) == [False, True, False] and df['stop'].iloc[-1] == 'cycles done'


# -- policies -------------------------------------------------------------------------------------------------------------------------------------

def test_a_preset_is_all_it_takes(learner):
    learn, fits = watched(learner, cb=ProxyAttentionCB.preset('proposal', verbose=False))
    learn.fit_proxy(1, 3, lr=LOW)
    assert len(fits) == 4 and set(learn.proxies['method']) == {'gradcam'} and learn.proxies['erased'].nunique() > 1

def test_preset_masktune(learner):
    learn, fits = watched(learner, cb=ProxyAttentionCB.preset('masktune', verbose=False))
    df = learn.fit_proxy(2, 1, lr=LOW, cycle_epochs=1)
    assert [f['epochs'] for f in fits] == [2, 1] and set(learn.proxies['method']) == {'xgradcam'}
    assert list(df['items']) == [27, 27] and df['proxies'][1] > 13 # In the originals' stead

def test_preset_early_look(learner):
    learn, fits = watched(learner, cb=ProxyAttentionCB.preset('early_look', verbose=False, method='eigencam'))
    df = learn.fit_proxy(4, 0, lr=LOW)
    assert cb_of(learn).last_report.steps == PER_EPOCH and len(df) == 1 and fits[0]['epochs'] == 4 # A quarter of four epochs
    assert df['proxies'][0] == 27 and df['items'][0] == 54

def test_a_callback_is_added_where_there_is_none(learner, capsys):
    learn = learner()
    df = learn.fit_proxy(1, 1, lr=LOW)
    assert len(df) == 2 and cb_of(learn).policy == ProxyAttentionCB().policy

def test_ever_wrong_in_fit_proxy(learner):
    learn, _ = watched(learner, cb=quiet_cb(select='ever_wrong'))
    df = learn.fit_proxy(1, 2, lr=LOW)
    assert len(df) == 3 and 0 < df['proxies'][1] <= 24 # Three batches of eight were seen


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
    with pytest.raises(type(error)): learn.fit_proxy(1, 2, lr=LOW)
    learn.remove_cb(stop)
    assert all(a is b for a,b in zip(dls.loaders, loaders)) and (dls.train.n, len(dls.train)) == (27, PER_EPOCH)
    assert (learn.dls is dls) == (fit == 0) and len(learn.dls.train_ds) == 27 + len(learn.proxies) and hooks_of(learn.model) == 0
    assert not cb_of(learn).fit_state.paused and not learn._grab_cbs(learner_module._Counter)
    learn.fit(1, LOW)
    assert copied_files(learn) == wrong_files(learn.model, dls.train_ds.items) != set()
    learn.remove_proxies()
    assert learn.dls is dls

def test_copies_lost_before_a_stage(learner):
    learn, fits = watched(learner)
    learn.fit(1, LOW)
    n = len(learn.proxies)
    Path(learn.proxies['path'][0]).unlink()
    with pytest.warns(UserWarning, match=f'1 of {n} copies.*missing'): df = learn.fit_proxy(1, 0, lr=LOW)
    assert list(df['steps']) == [(27+n-1)//8] == [f['steps'] for f in fits[1:]]
    assert learn.dls.train.n == len(learn.dls.train_ds) == 27 + len(learn.proxies)

def test_a_full_disk_costs_the_copies_only(learner):
    learn, _ = watched(learner, cb=quiet_cb(max_gb=1e-9))
    dls = learn.dls
    with pytest.warns(UserWarning, match='no copies.*max_gb'): df = learn.fit_proxy(1, 2, lr=LOW)
    assert len(df) == 3 and df['stop'].iloc[-1] == 'cycles done' and learn.dls is dls and 'max_gb' in cb_of(learn).last_report.why


# -- bad arguments: before anything is trained ----------------------------------------------------------------------------------------------------

bad = {
    'cycles': [(dict(cycles=-1), ValueError, 'cycles=-1'), (dict(cycles=1.5), ValueError, 'cycles=1.5'),
               (dict(cycles='3'), TypeError, "cycles='3'")],
    'epochs': [(dict(epochs=None), TypeError, 'epochs=None'), (dict(epochs=0), ValueError, 'epochs=0'),
               (dict(epochs=True), TypeError, 'epochs=True')],
    'cycle_epochs': [(dict(cycle_epochs=0), ValueError, 'cycle_epochs=0')],
    'freeze_epochs': [(dict(freeze_epochs=-1), ValueError, 'freeze_epochs=-1'), (dict(freeze_epochs='1'), TypeError, "freeze_epochs='1'")],
    'monitor': [(dict(monitor='acuracy'), ValueError, "monitor='acuracy'.*'train_loss', 'valid_loss', 'accuracy'")],
    'until': [(dict(until='accuracy'), ValueError, "until='accuracy'.*>="), (dict(until='f1>=0.5'), ValueError, "until='f1'.*'accuracy'"),
              (dict(until=0.9), ValueError, 'until=0.9'), (dict(until='accuracy>=high'), ValueError, 'until=')],
    'patience': [(dict(patience=0), ValueError, 'patience=0'), (dict(patience=1.5), ValueError, 'patience=1.5')],
    'budget': [(dict(budget=0), ValueError, 'budget=0'), (dict(budget='1h'), TypeError, "budget='1h'")],
    'rollback': [(dict(rollback=-0.1), ValueError, 'rollback=-0.1'), (dict(rollback=True), TypeError, 'rollback=True')],
    'after_cycle': [(dict(after_cycle=3), TypeError, 'after_cycle=3')],
    'lr': [(dict(lr='fast'), TypeError, "lr='fast'"), (dict(lr=-1.), ValueError, 'lr=-1')],
}

@pytest.mark.parametrize('kwargs,error,words', [case for cases in bad.values() for case in cases], ids=str)
def test_bad_arguments(learner, kwargs, error, words):
    learn, fits = watched(learner)
    before = weights(learn.model)
    with pytest.raises(error, match=f'(?s){words}'): learn.fit_proxy(**(dict(cycles=1, epochs=1, lr=LOW) | kwargs))
    assert fits == [] and same_weights(weights(learn.model), before) and not Path('.proxies').exists()

def test_a_path_in_use_is_told_before_anything_is_trained(learner):
    one, (two, fits) = learner(quiet_cb(path='run')), watched(learner, cb=quiet_cb(path='run'))
    one.fit(1, LOW)
    with pytest.raises(StoreError, match='in use'): two.fit_proxy(1, 1, lr=LOW)
    assert sum(f['steps'] for f in fits) == 0
