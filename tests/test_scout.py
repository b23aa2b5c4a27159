"""Scouts: what sends one, what it trains with, what its verdict does to the fit, and that otherwise it leaves no trace."""
import re
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from fastai.callback import fp16, schedule  # noqa: F401  (they patch Learner)
from fastai.callback.channelslast import ChannelsLast
from fastai.callback.core import Callback
from fastai.callback.data import WeightedDL  # noqa: F401  (patches Datasets)
from fastai.callback.fp16 import MixedPrecision
from fastai.callback.mixup import CutMix, MixUp
from fastai.callback.tracker import EarlyStoppingCallback, SaveModelCallback
from fastai.callback.training import GradientAccumulation
from fastai.data.core import Datasets
from fastai.data.transforms import Categorize, IntToFloatTensor, RandomSplitter, ToTensor, get_image_files, parent_label
from fastai.losses import BCEWithLogitsLossFlat, LabelSmoothingCrossEntropyFlat
from fastai.optimizer import OptimWrapper
from fastai.vision.augment import aug_transforms
from fastai.vision.core import PILImage
from torch import nn

from kit import (SIDE, Coded, Scripted, Squish, cb_of, coded_dls, copy_bytes, files_in, footprint, hooks_of, last_of, make_learner, quiet_cb,
                 read_rgb, resnet_learner, same_weights, seed_all, shapes_dls, tiny_model, weights)
from proxy_attention import callback, gallery, scout, store  # noqa: F401  (gallery patches Learner)
from proxy_attention.audit import audit
from proxy_attention.callback import ProxyAttentionCB
from proxy_attention.copies import InMemoryCopies
from proxy_attention.scout import copy_model, held_out_items
from proxy_attention.shortcut_test import Verdict

pytestmark = pytest.mark.filterwarnings('ignore:.*(CUDA|cuda).*')

def scout_cb(**kwargs):
    "A callback that sends a scout of two steps, asks no probe unless told to, and makes no copies after a fit"
    return quiet_cb(**(dict(scout='2 steps', probe=False, fill='context', select=None) | kwargs))

@pytest.fixture
def sent(monkeypatch):
    "The scouts that are sent: steps and name of each"
    out, train = [], callback.train_scout
    def count(learn, dls, steps, seed, text, *args):
        out.append((steps, text))
        return train(learn, dls, steps, seed, text, *args)
    monkeypatch.setattr(callback, 'train_scout', count)
    return out

@pytest.fixture
def verdict(monkeypatch):
    "A function: whatever the scouts find, both are trained, copies are written, and this is the verdict"
    def give(name):
        monkeypatch.setattr(callback, 'necessity_test', lambda c: None)
        monkeypatch.setattr(callback, 'sufficiency_test', lambda c, *_: Verdict(name, c, 1., (0.9, 1.), 0.5, (0.4, 0.6), 'sufficiency' if name == 'unclear' else ''))
    return give


# -- no regret ------------------------------------------------------------------------------------------------------------------------------------

def with_dropout(): return nn.Sequential(tiny_model()[0], nn.Sequential(nn.Dropout(0.5), *tiny_model()[1]))

def weighted(shapes):
    files = get_image_files(shapes).sorted()
    ds = Datasets(files, [[PILImage.create], [parent_label, Categorize()]], splits=RandomSplitter(0.25, seed=0)(files))
    return ds.weighted_dataloaders(np.linspace(1, 3, len(ds.train)), bs=8, num_workers=0, after_item=[Squish(), ToTensor()],
                                   after_batch=[IntToFloatTensor()])

fits = {
    'fit': lambda learn, **kw: learn.fit(2, 1e-2, **kw),
    'fit_one_cycle': lambda learn, **kw: learn.fit_one_cycle(2, 1e-2, **kw),
    'fit_flat_cos': lambda learn, **kw: learn.fit_flat_cos(2, 1e-2, **kw),
    'fit_sgdr': lambda learn, **kw: learn.fit_sgdr(1, 2, 1e-2, **kw),
    'fine_tune': lambda learn, **kw: learn.fine_tune(1, 1e-2, **kw),
}
ways = { # How the fits differ: learner, loaders, companions
    'plain': {},
    'augmentation': dict(dls=dict(batch_tfms=aug_transforms())),
    'dropout': dict(model=with_dropout),
    'two workers': dict(dls=dict(num_workers=2)),
    'SaveModelCallback': dict(cbs=lambda: [SaveModelCallback(monitor='scripted')], metrics=lambda: [Scripted(1., 0., 0.)]),
    'EarlyStoppingCallback': dict(cbs=lambda: [EarlyStoppingCallback(monitor='scripted', patience=0)], metrics=lambda: [Scripted(1., 0., 0.)]),
    'GradientAccumulation': dict(cbs=lambda: [GradientAccumulation(20)]),
    'MixUp': dict(cbs=lambda: [MixUp()]),
    'CutMix': dict(cbs=lambda: [CutMix()]),
    'bf16': dict(prepare=lambda learn: learn.to_bf16()),
    'channels last': dict(cbs=lambda: [ChannelsLast()]),
    'label smoothing': dict(loss_func=LabelSmoothingCrossEntropyFlat),
    'WeightedDL': dict(loader=weighted),
}

def fitted(shapes, cb, fit='fit_one_cycle', dls=None, model=tiny_model, cbs=list, metrics=None, prepare=None, loss_func=None, loader=None):
    kwargs = {k: v() for k,v in dict(metrics=metrics, loss_func=loss_func).items() if v is not None}
    seed_all(1)
    learn = make_learner((lambda: shapes_dls(shapes, **(dls or {}))) if loader is None else (lambda: loader(shapes)), cb, model=model(), **kwargs)
    if prepare is not None: prepare(learn)
    learn.user_dls, loss = learn.dls, learn.loss_func
    fits[fit](learn, cbs=cbs())
    assert learn.loss_func is loss
    return learn

def same_footprint(with_cb, without):
    for k in without: assert with_cb[k] == without[k], f"{k} has changed"

@pytest.mark.parametrize('fit,way', [*((f, 'plain') for f in fits), *(('fit_one_cycle', w) for w in ways if w != 'plain'), ('fine_tune', 'augmentation')])
def test_a_verdict_without_copies_leaves_no_trace(shapes, sent, verdict, fit, way):
    verdict('real')
    without = footprint(fitted(shapes, None, fit, **ways[way]))
    learn = fitted(shapes, scout_cb(path='run'), fit, **ways[way])
    assert [text for _,text in sent] == ['scout', 'second scout'], "nothing is tested"
    same_footprint(footprint(learn), without)
    assert learn.dls is learn.user_dls and not len(learn.proxies) and not list(Path('run').glob('*.png'))

@pytest.mark.parametrize('name', ['real', 'unclear'])
def test_the_verdict_of_the_test_itself_leaves_no_trace_either(shapes, verdict, name):
    "Of 27 images three are held out: too few; then two fits one after the other"
    seen = []
    for cb in (None, scout_cb(probe=True)):
        if name == 'real': verdict(name)
        learn = fitted(shapes, cb)
        learn.fit(1, 1e-3)
        seen.append(footprint(learn))
    assert cb_of(learn).last_verdict.name == name
    same_footprint(seen[1], seen[0])

@pytest.mark.parametrize('way', ['plain', 'MixUp'])
def test_a_vision_learner_is_fine_tuned_as_without(shapes, verdict, way):
    verdict('real')
    seen = []
    for cb in (None, scout_cb(layer='0.5', probe=way == 'plain')):
        seed_all()
        learn = resnet_learner(shapes_dls(shapes, batch_tfms=aug_transforms()), cbs=cb)
        learn.fine_tune(1, 1e-2, cbs=ways[way]['cbs']() if way != 'plain' else None)
        seen.append(footprint(learn))
    assert cb_of(learn).last_verdict.name == 'real'
    same_footprint(seen[1], seen[0])

def test_the_first_fit_is_the_same_where_copies_of_wrong_images_follow(shapes):
    seen = []
    for cb in (None, scout_cb(select='wrong', probe=True)):
        learn = fitted(shapes, cb)
        state = footprint(learn)
        seen.append({k: state[k] for k in ('weights', 'optimizer', 'recorder', 'python', 'numpy', 'torch', 'loader')})
    assert len(learn.proxies)
    same_footprint(seen[1], seen[0])


# -- what sends a scout ---------------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('fit', fits)
def test_the_first_fit_sends_a_scout(shapes, sent, fit):
    learn = fitted(shapes, scout_cb(), fit)
    assert sent == [(2, 'scout')]
    learn.fit(1, 1e-3)
    learn.fit_one_cycle(1, 1e-3)
    assert len(sent) == 1

calls = {
    'lr_find': lambda learn: learn.lr_find(num_it=3, show_plot=False, suggest_funcs=()),
    'validate': lambda learn: learn.validate(),
    'get_preds': lambda learn: learn.get_preds(),
    'get_preds of training images': lambda learn: learn.get_preds(ds_idx=0),
    'tta': lambda learn: learn.tta(n=1),
    'summary': lambda learn: learn.summary(),
    'predict': lambda learn: learn.predict(learn.dls.train_ds.items[0]),
}

@pytest.mark.parametrize('call', calls)
def test_other_calls_send_none(learner, sent, call):
    learn = learner(scout_cb())
    calls[call](learn)
    assert sent == [] and files_in() <= {'models'}
    learn.fit(1, 1e-3)
    assert len(sent) == 1, "the first fit after it does"
    calls[call](learn)
    assert len(sent) == 1

def test_new_dataloaders_send_another(learner, sent, shapes):
    learn = learner(scout_cb())
    learn.fit(1, 1e-3)
    learn.dls = shapes_dls(shapes, seed=3)
    learn.fit(1, 1e-3)
    assert len(sent) == 2

def test_reset_sends_another(learner, sent):
    learn = learner(scout_cb())
    learn.fit(1, 1e-3)
    learn.proxy_attention_cb.reset()
    learn.fit(1, 1e-3)
    assert len(sent) == 2

@pytest.mark.parametrize('length,steps', [('15%', 2), ('50%', 6), ('5 steps', 5), ('1 step', 1), (1, 3), (0.5, 2), ('100%', 12), (None, 0)])
def test_length(learner, sent, length, steps):
    "Of a fit of 4 epochs of 3 steps"
    learn = learner(scout_cb(scout=length))
    learn.fit(4, 1e-3)
    assert [n for n,_ in sent] == ([steps] if steps else []) and last_of(learn)['steps'] == steps


# -- what it trains with --------------------------------------------------------------------------------------------------------------------------

@pytest.fixture
def scouts(monkeypatch):
    "The learners that scouts are trained with"
    out, make = [], scout._scout_learner
    def note(*args):
        out.append(make(*args))
        out[-1].frozen_at_start = out[-1].opt.frozen_idx
        return out[-1]
    monkeypatch.setattr(scout, '_scout_learner', note)
    return out

def body_and_head(model): return [list(model[0].parameters()), list(model[1].parameters())]

def test_a_scout_trains_all_layers_of_a_frozen_network(learner, scouts, sent):
    "At the highest rate of the fit, for at least FROZEN_STEPS where the length is a share of the frozen fit; the network itself stays frozen"
    learn = learner(scout_cb(scout='15%'), splitter=body_and_head)
    learn.freeze()
    before, asked = weights(learn.model), []
    learn.fit_one_cycle(1, slice(1e-4, 1e-2), cbs=AskRates(asked))
    new, after = scouts[0], weights(scouts[0].model)
    assert len(new.opt.param_lists) == 2 and all(p.requires_grad for p in new.model.parameters()) and asked == [1e-2, 1e-2]
    assert not torch.equal(after['0.0.weight'], before['0.0.weight']) and not torch.equal(after['1.2.weight'], before['1.2.weight'])
    assert learn.opt.frozen_idx == 1 and torch.equal(weights(learn.model)['0.0.weight'], before['0.0.weight'])
    assert sent[0][0] == scout.FROZEN_STEPS > 3, "15% of three steps would be one"

@pytest.mark.parametrize('length,steps', [('2 steps', 2), (1, 3), ('15%', scout.FROZEN_STEPS)])
def test_length_in_a_frozen_fit(learner, sent, length, steps):
    learn = learner(scout_cb(scout=length), splitter=body_and_head)
    learn.freeze()
    learn.fit(1, 1e-2)
    assert sent[0][0] == steps

def test_what_the_user_froze_by_hand_stays_so(learner, scouts):
    learn = learner(scout_cb())
    learn.model[0][0].requires_grad_(False)
    before = weights(learn.model)
    learn.fit(1, 1e-2)
    assert torch.equal(weights(scouts[0].model)['0.0.weight'], before['0.0.weight'])
    assert [p.requires_grad for p in scouts[0].model.parameters()] == [p.requires_grad for p in learn.model.parameters()]

@pytest.mark.parametrize('fit,highest', [('fit', 1e-2), ('fit_one_cycle', 1e-2), ('fit_flat_cos', 1e-2)])
def test_rate_decay_and_momentum_are_the_fits(learner, scouts, fit, highest):
    learn = learner(scout_cb(), wd=0.03, moms=(0.9, 0.8, 0.9))
    rates = []
    class Note(Callback):
        def before_step(self): rates.append((self.opt.hypers[-1]['lr'], self.opt.hypers[-1]['wd'], self.opt.hypers[-1]['mom']))
    note, make = Note(), scout._scout_learner
    scouts.clear()
    def with_note(*args):
        new = make(*args)
        new.add_cb(note)
        return new
    scout._scout_learner, kept = with_note, scout._scout_learner
    try: fits[fit](learn)
    finally: scout._scout_learner = kept
    assert 0.5*highest < max(lr for lr,_,_ in rates) <= highest*1.001
    assert {wd for _,wd,_ in rates} == {0.03} and all(0.8 <= m <= 0.9 for _,_,m in rates) and scouts[0].opt_func is learn.opt_func

def test_groups_keep_their_rates(learner, scouts):
    learn = learner(scout_cb(), splitter=body_and_head)
    asked = []
    learn.fit_one_cycle(1, slice(1e-4, 1e-2), cbs=AskRates(asked))
    assert np.allclose(asked, [1e-4, 1e-2])

class AskRates(Callback):
    order = -80 # before the scout is sent
    def __init__(self, out): self.out = out
    def before_train(self): self.out.extend(scout.highest_lr(self.learn))

companions = {
    'MixUp': (MixUp, True), 'CutMix': (CutMix, True), 'GradientAccumulation': (partial(GradientAccumulation, 4), True), 'ChannelsLast': (ChannelsLast, True),
    'MixedPrecision': (partial(MixedPrecision, amp_mode='bf16'), True),
    'SaveModelCallback': (partial(SaveModelCallback, fname='best'), False), 'EarlyStoppingCallback': (EarlyStoppingCallback, False),
}

@pytest.mark.parametrize('name', companions)
def test_what_changes_training_is_carried_over_and_nothing_else(learner, scouts, name):
    make, carried = companions[name]
    cb = make()
    learn = learner(scout_cb())
    learn.fit(1, 1e-3, cbs=cb)
    there = [c for c in scouts[0].cbs if type(c) is type(cb)]
    assert bool(there) == carried and not any(c is cb for c in there) and not scouts[0]._grab_cbs(ProxyAttentionCB)

def test_mixup_mixes_in_the_scout(learner, monkeypatch):
    seen = []
    real = MixUp.before_batch
    def note(self):
        seen.append(type(self.learn).__name__)
        return real(self)
    monkeypatch.setattr(MixUp, 'before_batch', note)
    learn = learner(scout_cb())
    loss = learn.loss_func
    learn.fit(1, 1e-3, cbs=MixUp())
    assert seen == ['ScoutLearner']*2 + ['Learner']*3 and learn.loss_func is loss

def test_the_network_of_the_learner_is_not_the_scouts(learner, scouts):
    learn = learner(scout_cb())
    learn.fit(1, 1e-3)
    ours, theirs = {p.data_ptr() for p in learn.model.parameters()}, {p.data_ptr() for p in scouts[0].model.parameters()}
    assert not ours & theirs and scouts[0].loss_func is not learn.loss_func

def test_held_out_images_are_seen_by_no_scout(monkeypatch, verdict):
    verdict('real')
    drawn, real = [], callback.train_scout
    def note(learn, dls, *args):
        ds = dls.train_ds
        drawn.append({ds.origin(i) for i in range(len(ds))})
        return real(learn, dls, *args)
    monkeypatch.setattr(callback, 'train_scout', note)
    learn = make_learner(lambda: coded_dls(Coded(48)), scout_cb())
    learn.fit(1, 1e-3)
    held = set(held_out_items(np.arange(48) % 3, 0).tolist())
    assert len(held) == 6 and len(drawn) == 2 and drawn[0] == set(range(48)) - held and not drawn[1] & held and drawn[1]


# -- trouble --------------------------------------------------------------------------------------------------------------------------------------

class Fragile(nn.Module):
    "A loss that raises at its `at`th call"
    y_int, reduction = True, 'mean'
    def __init__(self, calls): super().__init__(); self.calls = calls
    def __deepcopy__(self, memo): return Fragile(self.calls)
    def forward(self, x, y, reduction=None):
        self.calls['n'] += 1
        if self.calls['n'] == self.calls['at']: raise self.calls['error']
        return nn.functional.cross_entropy(x.as_subclass(torch.Tensor), y.as_subclass(torch.Tensor).long(), reduction=reduction or self.reduction)
    def activation(self, x): return x.softmax(1)
    def decodes(self, x): return x.argmax(1)

@pytest.mark.parametrize('error', [RuntimeError('broken'), KeyboardInterrupt()], ids=['exception', 'interrupt'])
@pytest.mark.parametrize('at', [1, 2, 3], ids=['first step', 'second step', 'second scout'])
@pytest.mark.parametrize('cbs', [None, MixUp], ids=['plain', 'MixUp'])
def test_after_a_scout_that_broke_the_fit_is_as_if_nothing_had_been(learner, verdict, error, at, cbs):
    verdict('real')
    def make(cb, at):
        loss = Fragile(dict(n=0, at=at, error=error))
        return learner(cb, loss_func=loss), loss
    plain, _ = make(None, -1)
    plain.fit_one_cycle(2, 1e-2, cbs=cbs and cbs())
    learn, loss = make(scout_cb(), at)
    there, before, dls = [type(c) for c in learn.cbs], weights(learn.model), learn.dls
    random = torch.get_rng_state()
    with pytest.raises(type(error)): learn.fit_one_cycle(2, 1e-2, cbs=cbs and cbs())
    assert torch.equal(random, torch.get_rng_state()), "random numbers were drawn"
    assert same_weights(weights(learn.model), before) and hooks_of(learn.model) == 0 and learn.loss_func is loss and learn.dls is dls
    assert not len(learn.proxies) and torch.is_grad_enabled()
    learn.fit_one_cycle(2, 1e-2, cbs=cbs and cbs())
    assert [type(c) for c in learn.cbs] == there and learn.loss_func is loss
    assert cb_of(learn).last_verdict.name == 'real', "the scout is sent again"
    same_footprint(footprint(learn), footprint(plain) | {k: footprint(learn)[k] for k in ('python', 'numpy', 'torch')})

@pytest.mark.parametrize('error', [RuntimeError('broken'), KeyboardInterrupt()], ids=['exception', 'interrupt'])
def test_a_scout_that_can_not_start(learner, monkeypatch, error):
    def broken(*args): raise error
    learn = learner(scout_cb())
    with monkeypatch.context() as m:
        m.setattr(callback, 'train_scout', broken)
        with pytest.raises(type(error)): learn.fit(1, 1e-2)
    learn.fit(1, 1e-2)
    plain = learner()
    plain.fit(1, 1e-2)
    assert same_weights(weights(learn.model), weights(plain.model)) and hooks_of(learn.model) == 0

def test_full_disk_costs_the_copies_and_not_the_fit(learner, verdict):
    verdict('shortcut')
    learn = learner(scout_cb(max_gb=1e-9))
    with pytest.warns(UserWarning, match='no copies.*max_gb'): learn.fit(1, 1e-2)
    plain = learner()
    plain.fit(1, 1e-2)
    same_footprint(footprint(learn), footprint(plain))
    assert 'max_gb' in last_of(learn)['why'] and not len(learn.proxies)

def test_maps_of_one_cell_cost_the_copies_and_not_the_fit(shapes, capsys):
    "A ResNet at 32 pixels, whose last layer is named"
    seen = []
    for cb in (None, scout_cb(layer='0', verbose=True)):
        seed_all()
        learn = resnet_learner(shapes_dls(shapes), cbs=cb)
        learn.fit_one_cycle(2, 1e-3)
        seen.append(footprint(learn))
    same_footprint(seen[1], seen[0])
    assert len(learn.recorder.losses) == 6 and re.search(r'say nothing \(they have 1×1 cells\).*no copies.*layer=', capsys.readouterr().out)

def test_several_labels_get_no_scout_and_one_line(sent, capsys):
    class Several(Coded):
        def __init__(self, *args):
            super().__init__(*args)
            self.items = [(x, torch.tensor([c == 0, c != 1, c == 2]).float()) for x,c in self.items]
    seen = []
    for cb in (None, scout_cb(verbose=True)):
        learn = make_learner(lambda: coded_dls(Several(), Several(9, 1, 100)), cb, loss_func=BCEWithLogitsLossFlat(), metrics=[])
        learn.fit(1, 1e-2)
        seen.append(footprint(learn))
    lines = capsys.readouterr().out.splitlines()
    assert sent == [] and len(lines) == 1 and 'several labels' in lines[0] and 'no copies' in lines[0]
    same_footprint(seen[1], seen[0])


# -- a planted cue --------------------------------------------------------------------------------------------------------------------------------

class Planted(Coded):
    "Stripes that run across or down, faint in noise; and a small square in the colour of its class, wherever it happens to be"
    def __init__(self, n, seed=0, cue=True):
        rng = np.random.default_rng(seed)
        self.reads, self.items = [], []
        for i in range(n):
            c = i % 2
            lines = 2*np.sign(np.sin(np.arange(SIDE)*np.pi/2 + .1))
            img = rng.integers(60, 160, (SIDE, SIDE, 3)) + (lines[:, None, None] if c else lines[None, :, None])
            y,x = rng.integers(0, SIDE-5, 2)
            if cue: img[y:y+5, x:x+5] = (255, 0, 0) if c else (0, 0, 255)
            self.items.append((torch.from_numpy(img.astype(np.uint8)).permute(2, 0, 1).contiguous(), c))

def planted_learner(n=384, **kwargs):
    seed_all()
    cb = scout_cb(**(dict(scout='100%', method='gradcam', area=0.2, path='run') | kwargs))
    return make_learner(lambda: coded_dls(Planted(n), Planted(32, 1, False), bs=16), cb, model=tiny_model(2))

def test_a_shortcut_is_found_and_replaced(capsys):
    learn = planted_learner(verbose=True) # Two epochs of 24 steps
    dls = learn.dls
    learn.fit_one_cycle(2, 2e-2)
    found = cb_of(learn).last_report
    assert found.verdict.name == 'shortcut' and found.verdict.counts.image > 0.9 and found.verdict.counts.copy < 0.75
    assert re.search(r"scout: Shortcut found\..* trains on 384 erased copies in their originals' place", capsys.readouterr().out)
    ds = learn.dls.train_ds
    assert learn.dls is not dls and len(ds) == learn.dls.train.n == 384 and list(ds.originals) == [] and len(ds.copies) == len(learn.proxies) == 384
    assert {str(f) for f,_,_ in ds.copies} == set(learn.proxies['path']) and set(learn.proxies['cycle']) == {0} and found.live == found.proxies == 384
    learn.fit(1, 1e-3)
    assert set(learn.proxies['cycle']) == {0} and len(learn.dls.train_ds) == 384, "they stay in for later fits"
    assert all(Path(p).is_file() for p in learn.proxies['path'])

def test_copies_of_wrong_images_stand_beside_those_of_the_scout(verdict):
    verdict('shortcut')
    learn = planted_learner(64, select='low_confidence')
    learn.fit_one_cycle(2, 2e-2)
    for cycle in (1, 2):
        assert (learn.proxies['cycle'] == 0).sum() == 64 and (learn.proxies['cycle'] == cycle).sum() == 64
        assert len(learn.dls.train_ds) == 128 and {str(f) for f,_,_ in learn.dls.train_ds.copies} == set(learn.proxies['path'])
        learn.fit(1, 1e-3)
    learn.remove_proxies()
    assert len(learn.dls.train_ds) == 64 and isinstance(learn.dls.train_ds, Planted)

def test_a_run_with_a_scouts_copies_is_clean(own_shapes, verdict):
    verdict('shortcut')
    learn = make_learner(lambda: shapes_dls(own_shapes), scout_cb(path='run', select='wrong'))
    learn.fit(1, 1e-3)
    assert (learn.proxies['cycle'] == 0).sum() == 27 and audit(learn.proxy_attention_cb.run_path, near=None)

def test_copies_are_tested_a_few_at_a_time(learner, monkeypatch):
    "However many that are, the counts are the same"
    def counts(size):
        seed_all()
        learn = learner(scout_cb(path=f'run{size}'))
        old = callback.check_task
        seen, init = [], InMemoryCopies.__init__
        with monkeypatch.context() as m:
            m.setattr(callback, 'check_task', lambda *args: old(*args)._replace(chunk_size=size))
            m.setattr(InMemoryCopies, '__init__', lambda self, source, images, *args: (seen.append(len(images)), init(self, source, images, *args))[1])
            learn.fit(1, 1e-3)
        return cb_of(learn).last_verdict.counts, seen
    (few, sizes), (many, size) = counts(2), counts(32)
    assert few == many and max(sizes) == 2 and size == [few.n]

def test_scout_merge_and_scout_select(learner, verdict):
    verdict('shortcut')
    added = learner(scout_cb(scout_merge='add', path='a'))
    added.fit(1, 1e-3)
    assert len(added.dls.train_ds) == 54 and len(added.proxies) == 27
    assert 'trains on 27 erased copies beside their originals.' in cb_of(added).last_report.text
    some = learner(scout_cb(scout_select='low_confidence', share=0.2, path='b'))
    some.fit(1, 1e-3)
    assert len(some.proxies) == 5 and len(some.dls.train_ds) == 27 and len(some.dls.train_ds.originals) == 22

@pytest.mark.parametrize('name', ['real', 'spread', 'unclear'])
def test_rejected_candidates_can_be_looked_at(learner, verdict, monkeypatch, name):
    verdict(name)
    if name == 'spread': monkeypatch.setattr(callback, 'necessity_test', lambda c: Verdict('spread', c, 0.2, (0.1, 0.3)))
    learn = learner(scout_cb(path='run'))
    learn.fit(1, 1e-3)
    assert not list(Path('run').rglob('*.png')) and not len(learn.proxies)
    fig = learn.show_proxies(3, return_fig=True)
    assert len(fig.axes) == 9 and f'not used: {name}' in fig.get_suptitle()
    assert all(ax.images for ax in fig.axes)

def test_a_figure_of_one_cycle(learner, capsys):
    learn = learner(scout_cb(scout_test=False, scout_merge='add', select='wrong', share=.2, scout_select='low_confidence', area=0.2))
    learn.fit(1, 1e-6)
    count = learn.proxies['cycle'].value_counts()
    assert set(count.index) == {0, 1}
    for cycle in (0, 1): assert len(learn.show_proxies(100, return_fig=True, cycle=cycle).axes) == 3*count[cycle]
    assert len(learn.show_proxies(100, return_fig=True).axes) == 3*count.sum()
    assert learn.show_proxies(cycle=2) is None and 'no live copies of cycle 2' in capsys.readouterr().out
    with pytest.raises(ValueError, match='cycle=-1'): learn.show_proxies(cycle=-1)

def test_without_the_test_copies_are_used_at_once(learner, sent):
    learn = learner(scout_cb(scout_test=False))
    learn.fit(1, 1e-3)
    assert sent == [(2, 'scout')] and len(learn.proxies) == 27 == len(learn.dls.train_ds) and last_of(learn)['verdict'] is None

def test_the_same_seed_sends_the_same_scout(shapes):
    made = []
    for path, numbers in (('a', 1), ('b', 5)):
        seed_all()
        learn = make_learner(lambda: shapes_dls(shapes), scout_cb(scout_test=False, path=path))
        np.random.rand(numbers)
        torch.rand(numbers)
        learn.fit(1, 1e-3)
        made.append({o: Path(p).read_bytes() for o,p in zip(learn.proxies['original'], learn.proxies['path'])})
    assert made[0] == made[1]


# -- bad input ------------------------------------------------------------------------------------------------------------------------------------

def refused(learn, error, words, fit=lambda learn: learn.fit(2, 1e-3)):
    before = weights(learn.model)
    with pytest.raises(error, match=f'(?s){words}') as e: fit(learn)
    assert str(e.value).count('Exception occured') <= 1
    assert same_weights(weights(learn.model), before) and not learn.recorder.values and hooks_of(learn.model) == 0 and not len(learn.proxies)

@pytest.mark.parametrize('value,error', [('soon', ValueError), ('101%', ValueError), (0, ValueError), (-1, ValueError), ('0 steps', ValueError),
                                         (float('nan'), ValueError), ([1], TypeError), (True, TypeError)])
def test_bad_lengths(value, error):
    with pytest.raises(error, match='scout='): ProxyAttentionCB(scout=value)

@pytest.mark.parametrize('length', ['7 steps', 3, 2.4])
def test_a_scout_longer_than_the_fit(learner, length):
    refused(learner(scout_cb(scout=length)), ValueError, f'scout={length!r} is [789] steps, longer than the fit of 6')

@pytest.mark.parametrize('n', [40, 160])
def test_too_little_to_be_tested_on(n):
    "One class alone can be held out: the fit goes on as it would without a scout"
    train = Coded(n)
    train.items = [(x, int(i == 0)) for i,(x,_) in enumerate(train.items)]
    learn, plain = (make_learner(lambda: coded_dls(train), cb) for cb in (scout_cb(), None))
    for each in (learn, plain):
        seed_all(1)
        each.fit(2, 1e-3)
    assert (v := cb_of(learn).last_verdict).name == 'unclear' and v.reason == ('few' if n < 100 else 'chance')
    assert same_weights(weights(learn.model), weights(plain.model)) and not len(learn.proxies)

class NotCopied(nn.Module):
    def __init__(self): super().__init__(); self.net = tiny_model()
    def forward(self, x): return self.net(x)
    def __deepcopy__(self, memo): raise RuntimeError('holds a lock')

def test_a_network_that_can_not_be_copied(learner):
    with pytest.raises(TypeError, match="scout: .*NotCopied can't be copied.*holds a lock.*scout=None"): copy_model(NotCopied())
    refused(learner(scout_cb(), model=NotCopied()), TypeError, "scout: .*NotCopied can't be copied.*scout=None")

def test_an_optimizer_that_is_bound_already(learner):
    model = tiny_model()
    opt = OptimWrapper(opt=torch.optim.SGD(model.parameters(), lr=1e-3))
    refused(learner(scout_cb(), model=model, opt_func=opt), TypeError, 'scout: opt_func.*bound.*scout=None')

def test_an_optimizer_of_torch_works(learner):
    learn = learner(scout_cb(), opt_func=partial(OptimWrapper, opt=torch.optim.AdamW))
    learn.fit(1, 1e-3)
    assert cb_of(learn).last_verdict is not None

def test_a_loss_that_can_not_be_copied(learner):
    class Bound(Fragile):
        def __deepcopy__(self, memo): raise RuntimeError('a handle')
    refused(learner(scout_cb(), loss_func=Bound(dict(n=0, at=-1))), TypeError, "scout: the loss function can't be copied.*scout=None")

def test_one_image_can_not_be_a_donor():
    train = Coded(1)
    with pytest.raises(ValueError): make_learner(lambda: coded_dls(train, drop_last=False), scout_cb()).fit(1, 1e-3)

@pytest.mark.parametrize('kwargs,words', [(dict(scout_select='al'), "scout_select='al'.*Did you mean 'all'"), (dict(scout_select='ever_wrong'), "scout_select='ever_wrong'"),
                                          (dict(scout_merge='replac'), "scout_merge='replac'.*'replace'")])
def test_bad_choices(kwargs, words):
    with pytest.raises(ValueError, match=words): ProxyAttentionCB(**kwargs)

@pytest.mark.parametrize('value', [1, 'yes', None], ids=str)
def test_test_is_true_or_false(value):
    with pytest.raises(TypeError, match='scout_test='): ProxyAttentionCB(scout_test=value)

def test_a_rejected_verdict_deletes_its_own_copies_only(shapes, monkeypatch):
    "Copies of an earlier process in the same folder, taken up or not, stay on disk"
    earlier = make_learner(lambda: shapes_dls(shapes), quiet_cb(select='all', path='run'))
    earlier.fit(1, 1e-6)
    kept = {Path(p).name for p in earlier.proxies.path}
    earlier.remove_proxies()
    monkeypatch.setattr(callback, 'necessity_test', lambda c: None)
    monkeypatch.setattr(callback, 'sufficiency_test', lambda c, *_: Verdict('real', c, 1., (.9, 1.), 0., (0., .1)))
    cb = quiet_cb(select=None, path='run', scout='2 steps')
    learn = make_learner(lambda: shapes_dls(shapes), cb)
    cb.resume()
    learn.fit(1, 1e-6)
    assert cb.last_verdict.name == 'real' and {f.name for f in Path('run').glob('*.png')} == kept
    assert len(learn.proxies) == 27

def test_copies_taken_up_from_a_scout_send_no_other(shapes, verdict, sent):
    verdict('shortcut')
    first = make_learner(lambda: shapes_dls(shapes), quiet_cb(select=None, path='run', scout='2 steps'))
    first.fit(1, 1e-6)
    ids = list(first.proxies['id'])
    first.remove_proxies()
    sent.clear()
    cb = quiet_cb(select=None, path='run', scout='2 steps')
    learn = make_learner(lambda: shapes_dls(shapes), cb)
    cb.resume()
    learn.fit(1, 1e-6)
    assert sent == [] and list(learn.proxies['id']) == ids and {r['cycle'] for r in cb.copies.rows} == {0}


# -- rounds ---------------------------------------------------------------------------------------------------------------------------------------

@pytest.fixture
def rounds_find(monkeypatch):
    "A function: what each round's sufficiency test says, one after the other; and the bounds that they are given"
    def give(*names):
        left, bounds = list(names), []
        monkeypatch.setattr(callback, 'necessity_test', lambda c: None)
        def test(c, bound):
            bounds.append(bound)
            return Verdict(left.pop(0), c, 1., (0.9, 1.), 0.5, (0.4, 0.6))
        monkeypatch.setattr(callback, 'sufficiency_test', test)
        return bounds
    return give

def on_disk(learn): return {Path(f).name for f in Path(cb_of(learn).run_path).rglob('*.png')}

@pytest.mark.parametrize('rounds, found, kept', [(1, ['shortcut'], 1), (2, ['shortcut', 'shortcut'], 2), (3, ['shortcut', 'shortcut', 'real'], 2),
                                                 (3, ['shortcut', 'real'], 1), (2, ['shortcut', 'unclear'], 1), (3, ['real'], 0)])
def test_rounds_go_on_while_they_find_a_shortcut(learner, sent, rounds_find, rounds, found, kept):
    bounds = rounds_find(*found)
    learn = learner(scout_cb(rounds=rounds))
    learn.fit(1, 1e-2)
    report = last_of(learn)
    assert [text for _,text in sent] == ['scout', 'second scout', 'next scout', 'next scout'][:1 + len(found)] and report['steps'] == 2*(1 + len(found))
    assert report['rounds'] == kept and len(learn.proxies) == report['proxies'] == (27 if kept else 0)
    assert report['verdict']['name'] == (found[0] if kept < 1 else 'shortcut')
    assert bounds == [0.15, 0.5, 0.5][:len(found)], "less would be the object itself"
    assert on_disk(learn) == {Path(p).name for p in learn.proxies.path}, "what no one trains on is gone"
    if kept: assert learn.proxies.erased.between(0.09, 0.1*kept + 0.01).all() and (kept == 1 or learn.proxies.erased.mean() > 0.101)
    assert ('2 regions were found' in report['text']) == (kept == 2)

def test_a_round_that_finds_nothing_leaves_the_former_copies(learner, rounds_find):
    made = []
    for rounds,found in ((1, ['shortcut']), (3, ['shortcut', 'real'])):
        rounds_find(*found)
        learn = learner(scout_cb(rounds=rounds))
        learn.fit(1, 1e-2)
        made.append((copy_bytes(learn), weights(learn.model), cb_of(learn).candidates[0]))
    assert made[0][0] == made[1][0] and same_weights(made[0][1], made[1][1])
    assert [r['id'] for r in made[0][2]] == [r['id'] for r in made[1][2]]

def test_the_second_region_is_erased_beside_the_first(learner, rounds_find):
    changed = []
    for found in (['shortcut'], ['shortcut', 'shortcut']):
        rounds_find(*found)
        learn = learner(scout_cb(rounds=len(found)))
        learn.fit(1, 1e-2)
        changed.append({r.original: (read_rgb(r.original) != read_rgb(r.path)).any(-1) for r in learn.proxies.itertuples()})
        assert audit(cb_of(learn).run_path, near=None)
    assert set(changed[0]) == set(changed[1])
    lost = [(one & ~changed[1][f]).sum()/one.sum() for f,one in changed[0].items()]
    assert np.mean(lost) < 0.05, "a pixel may by chance be the donor's own colour"
    assert np.mean([two.mean() for two in changed[1].values()]) > 1.01*np.mean([one.mean() for one in changed[0].values()])

@pytest.mark.parametrize('bad', [0, -1, 1.5, 11, '2', True, None, float('nan')])
def test_rounds_out_of_range(bad):
    with pytest.raises((ValueError, TypeError), match=f'rounds={bad!r}'): ProxyAttentionCB(rounds=bad)

def test_a_terminal_shows_a_bar_with_the_scouts_name(monkeypatch, capsys):
    monkeypatch.setattr(scout, 'shows_progress', lambda learn: True)
    monkeypatch.setattr('fastprogress.fastprogress.printing', lambda: True)
    learn = make_learner(coded_dls, scout_cb(verbose=True))
    learn.fit(1)
    assert '... scout]' in capsys.readouterr().out
