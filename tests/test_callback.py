"""`ProxyAttentionCB` in every kind of fit: who gets a copy, what is left alone, what happens when things go wrong."""
import json
import os
import shutil
import signal
import traceback
from errno import ENOSPC
from pathlib import Path

import numpy as np
import pytest
import torch
from fastai.callback import fp16, mixup, schedule  # noqa: F401  (they patch Learner)
from fastai.callback.channelslast import ChannelsLast
from fastai.callback.core import Callback
from fastai.callback.mixup import CutMix, MixUp
from fastai.callback.progress import CSVLogger
from fastai.callback.tracker import EarlyStoppingCallback, SaveModelCallback, TerminateOnNaNCallback
from fastai.callback.training import GradientAccumulation
from fastai.data.block import CategoryBlock, DataBlock
from fastai.data.core import DataLoaders
from fastai.data.load import SkipItemException
from fastai.data.transforms import IndexSplitter, parent_label
from fastai.losses import LabelSmoothingCrossEntropyFlat
from fastai.metrics import accuracy
from fastai.vision.augment import Resize, aug_transforms
from fastai.vision.data import ImageBlock, ImageDataLoaders
from PIL import Image
from torch import nn

from kit import (CLASSES, SIDE, Coded, Scripted, coded_dls, copied_files, copy_bytes, files_in, footprint, fresh_process, hooks_of, label_of, last_of, logits_of,
                 make_learner, quiet_cb, read_rgb, resnet_learner, same_weights, seed_all, shapes_dls, cb_of, tiny_model, weights, wrong_files)
from proxy_attention import files, saliency, select, store
from proxy_attention import gallery  # noqa: F401  (patches Learner)
from proxy_attention.callback import ProxyAttentionCB
from proxy_attention.erase import fills
from proxy_attention.targets import placements
from proxy_attention.policy import Policy, presets
from proxy_attention.saliency import saliency_maps
from proxy_attention.store import StoreError

LOW = 1e-3 # A learning rate at which the tiny network stays wrong about many images


def wrong_now(learn, dls): return wrong_files(learn.model, dls.train_ds.items)

@pytest.fixture
def flat(monkeypatch):
    "A method whose maps say nothing: the whole step runs and no copy comes of it"
    monkeypatch.setitem(saliency.saliency_methods, 'flat', lambda acts, grads, weights: torch.zeros_like(acts[:, 0]))
    return 'flat'

@pytest.fixture(scope='module')
def fitted(shapes, tmp_path_factory):
    "A learner after one fit with copies, for reading only"
    here = Path.cwd()
    os.chdir(tmp_path_factory.mktemp('fitted'))
    learn = make_learner(lambda: shapes_dls(shapes), quiet_cb(path=Path.cwd()/'run'))
    learn.user_dls = learn.dls
    learn.fit(1, LOW)
    os.chdir(here)
    return learn


# -- the one line ---------------------------------------------------------------------------------------------------------------------------------

def test_one_line_with_vision_learner(shapes, capsys):
    dls = ImageDataLoaders.from_folder(shapes, valid_pct=0.25, seed=0, bs=8, item_tfms=Resize(SIDE), batch_tfms=aug_transforms(),
                                       num_workers=0)
    learn = resnet_learner(dls, metrics=accuracy, cbs=ProxyAttentionCB())
    learn.fine_tune(1)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith('cycle')]
    n = len(learn.proxies)
    assert 0 < n <= 8 and cb_of(learn).copies.cycle == 2 # 0.3 of 27
    assert [line.split(':')[0] for line in lines] == ['cycle 1', 'cycle 2']
    assert f'{n} copies' in lines[1] and 'wrong of 27 items' in lines[1] and str(27+n) in lines[1] and '.proxies' in lines[1]
    assert len(learn.dls.train_ds) == 27+n and set(learn.proxies['original']) <= {str(f) for f in dls.train_ds.items}
    assert all(p.is_file() and p.parent.parent.name == '.proxies' for p in map(Path, learn.proxies['path']))
    learn.show_proxies(save='gallery.png')
    assert Path('gallery.png').stat().st_size > 1000

def test_one_line_with_plain_learner(learner):
    learn = learner(ProxyAttentionCB())
    learn.fit(1, LOW)
    p = learn.proxies
    assert list(p.columns) == ['id', 'cycle', 'original', 'label', 'predicted', 'confidence', 'method', 'target', 'erased', 'path']
    assert 0 < len(p) <= 8 and (p['cycle'] == 1).all() and (p['method'] == 'gradcam').all() and (p['target'] == 'pred').all()
    assert (p['label'] != p['predicted']).all() and [CLASSES[label_of(o)] for o in p['original']] == list(p['label'])
    assert p['erased'].between(0.09, 0.11).all() and p['id'].is_unique

def test_real_photographs(data_dir):
    files = sorted((data_dir/'asl_digits').glob('[0-2]/*'))[::12][:30]
    if len(files) < 30: pytest.skip("asl_digits isn't among the real images")
    dls = ImageDataLoaders.from_lists(data_dir, files, [f.parent.name for f in files], valid_pct=0.2, seed=0, bs=8, item_tfms=Resize(64),
                                      num_workers=0)
    learn = make_learner(dls, quiet_cb(method='gradcam', select='all', area=0.2))
    learn.fit(1, LOW)
    assert 0 < len(learn.proxies) == 24 - last_of(learn)['flat']
    for o,p in zip(learn.proxies['original'], learn.proxies['path']):
        img, copy = read_rgb(o), read_rgb(p)
        hole = (img != copy).any(2)
        assert img.shape == copy.shape and (copy[hole] == 0).all() and hole.mean() <= 0.21


# -- fit cycles, and a reference pass -------------------------------------------------------------------------------------------------------------

cycles = {
    'fit': (lambda learn: learn.fit(2, LOW), 1),
    'fit_one_cycle': (lambda learn: learn.fit_one_cycle(1, LOW), 1),
    'fine_tune': (lambda learn: learn.fine_tune(1, LOW), 2),
    'fit_flat_cos': (lambda learn: learn.fit_flat_cos(1, LOW), 1),
    'fit twice': (lambda learn: (learn.fit(1, LOW), learn.fit(1, LOW)), 2),
}

@pytest.mark.parametrize('name', cycles)
def test_cycles_copy_what_is_wrong_at_their_end(learner, name):
    run, expected = cycles[name]
    learn = learner(quiet_cb())
    dls = learn.dls
    run(learn)
    wrong = wrong_now(learn, dls)
    assert 0 < len(wrong) < 27 and copied_files(learn) == wrong
    assert cb_of(learn).copies.cycle == expected and set(learn.proxies['cycle']) == {expected}

def channels_last(learn): learn.add_cb(ChannelsLast())

companions = {
    'MixUp': dict(cbs=MixUp),
    'CutMix': dict(cbs=CutMix),
    'label smoothing': dict(loss_func=LabelSmoothingCrossEntropyFlat),
    'GradientAccumulation': dict(cbs=lambda: GradientAccumulation(12)),
    'to_fp16': dict(prepare=lambda learn: learn.to_fp16(), warns=True),
    'to_bf16': dict(prepare=lambda learn: learn.to_bf16(), warns=True),
    'channels last': dict(prepare=channels_last),
    'CSVLogger': dict(cbs=CSVLogger),
}

@pytest.mark.parametrize('name', companions)
@pytest.mark.filterwarnings('ignore:.*(CUDA|cuda).*')
def test_companions_agree_with_a_reference_pass(learner, name):
    c = companions[name]
    learn = learner(quiet_cb(), **({'loss_func': c['loss_func']()} if 'loss_func' in c else {}))
    dls = learn.dls
    if 'prepare' in c: c['prepare'](learn)
    for _ in (1, 2):
        learn.fit(1, LOW, cbs=c['cbs']() if 'cbs' in c else None)
        assert copied_files(learn) == wrong_now(learn, dls) != set()
    sure = logits_of(learn.model, learn.proxies['original']).softmax(1)
    true = [label_of(o) for o in learn.proxies['original']]
    assert np.allclose(learn.proxies['confidence'], sure[range(len(true)), true], atol=1e-5)

def test_csv_logger_keeps_its_table(learner):
    learn = learner([quiet_cb(), CSVLogger()])
    learn.fit(2, LOW)
    lines = Path('history.csv').read_text().splitlines()
    assert lines[0].startswith('epoch,train_loss,valid_loss,accuracy') and [line[0] for line in lines[1:]] == ['0', '1']

class Keep(Callback):
    "Note the weights after each epoch"
    def before_fit(self): self.kept = []
    def after_epoch(self): self.kept.append(weights(self.learn.model))

def test_the_best_weights_are_the_ones_looked_at(learner):
    keep = Keep()
    learn = learner([quiet_cb(), keep, SaveModelCallback(monitor='scripted')], metrics=Scripted(1., 0., 0.))
    dls = learn.dls
    learn.fit(3, 0.05)
    assert same_weights(weights(learn.model), keep.kept[0]) and not same_weights(keep.kept[0], keep.kept[2])
    best = wrong_now(learn, dls)
    assert copied_files(learn) == best
    learn.model.load_state_dict(keep.kept[2])
    assert best != wrong_now(learn, dls), "the weights of the last epoch would have given the same copies: nothing is tested"

def test_early_stopping_acts(learner):
    learn = learner([quiet_cb(), EarlyStoppingCallback(monitor='scripted', patience=1)], metrics=Scripted(1., 0., 0., 0.))
    dls = learn.dls
    learn.fit(4, LOW)
    assert len(learn.recorder.values) == 2 and cb_of(learn).copies.cycle == 1
    assert copied_files(learn) == wrong_now(learn, dls) != set()

def test_what_each_part_took_adds_up_to_the_step(fitted):
    report = cb_of(fitted).last_report
    parts = [report.seconds_score, report.seconds_saliency, report.seconds_erase, report.seconds_write]
    assert min(parts) > 0 and sum(parts) <= report.seconds

def test_new_copies_take_the_place_of_the_old(learner):
    learn = learner(quiet_cb())
    dls = learn.dls
    for cycle in (1, 2, 3):
        learn.fit(1, LOW)
        assert set(learn.proxies['cycle']) == {cycle} and copied_files(learn) == wrong_now(learn, dls)
        assert len(learn.dls.train_ds) == learn.dls.train.n == 27 + len(learn.proxies)


# -- what makes nothing ---------------------------------------------------------------------------------------------------------------------------

quiet_calls = {
    'validate': lambda learn, f: learn.validate(),
    'get_preds': lambda learn, f: learn.get_preds(),
    'get_preds of train': lambda learn, f: learn.get_preds(ds_idx=0),
    'predict': lambda learn, f: learn.predict(f),
    'tta': lambda learn, f: learn.tta(n=1),
    'show_results': lambda learn, f: learn.show_results(),
    'summary': lambda learn, f: learn.summary(),
    'lr_find': lambda learn, f: learn.lr_find(num_it=4, show_plot=False, suggest_funcs=()),
    'fit(0)': lambda learn, f: learn.fit(0),
}

@pytest.mark.parametrize('name', quiet_calls)
def test_other_calls_make_nothing(learner, name, capsys):
    learn = learner(quiet_cb(verbose=True))
    dls, file = learn.dls, learn.dls.train_ds.items[0]
    quiet_calls[name](learn, file)
    assert learn.dls is dls and not len(learn.proxies) and cb_of(learn).copies.cycle == 0 and 'cycle' not in capsys.readouterr().out
    learn.fit(1, LOW)
    before, with_copies, on_disk = copy_bytes(learn), learn.dls, files_in('.proxies')
    quiet_calls[name](learn, file)
    assert learn.dls is with_copies and copy_bytes(learn) == before and files_in('.proxies') == on_disk and cb_of(learn).copies.cycle == 1

@pytest.mark.parametrize('name', quiet_calls)
def test_other_calls_write_nothing(learner, name):
    learn = learner(quiet_cb())
    quiet_calls[name](learn, learn.dls.train_ds.items[0])
    assert not Path('.proxies').exists()

class Break(Callback):
    "Raise `error` once, in batch `at`"
    order = 20
    def __init__(self, error, at=1): self.error, self.at = error, at
    def after_batch(self):
        if self.learn.training and self.learn.iter == self.at: raise self.error

@pytest.mark.parametrize('error', [KeyboardInterrupt(), RuntimeError('out of memory')], ids=['interrupt', 'exception'])
def test_a_fit_that_broke_makes_nothing_and_the_next_recovers(learner, error):
    learn = learner(quiet_cb())
    dls = learn.dls
    with pytest.raises(type(error)): learn.fit(1, LOW, cbs=Break(error))
    assert learn.dls is dls and not len(learn.proxies) and cb_of(learn).copies.cycle == 0 and hooks_of(learn.model) == 0
    learn.validate() # What ends in after_fit next must not take the broken fit for its own
    assert not len(learn.proxies)
    learn.fit(1, LOW)
    assert copied_files(learn) == wrong_now(learn, dls) != set()
    live = learn.dls
    with pytest.raises(type(error)): learn.fit(1, LOW, cbs=Break(error))
    assert learn.dls is live and set(learn.proxies['cycle']) == {1}

@pytest.mark.parametrize('cbs', [None, TerminateOnNaNCallback], ids=['to the end', 'terminated'])
def test_weights_that_are_not_numbers(learner, cbs):
    learn = learner(quiet_cb())
    dls, good = learn.dls, weights(learn.model)
    with pytest.warns(UserWarning, match='no copies.*finite'): learn.fit(1, float('nan'), cbs=cbs and cbs())
    assert learn.dls is dls and not len(learn.proxies)
    learn.model.load_state_dict(good)
    learn.opt = None
    learn.fit(1, LOW)
    assert copied_files(learn) == wrong_now(learn, dls) != set()

class InterruptedFill:
    def __init__(self, error): self.error = error
    def __call__(self, *args): raise self.error

@pytest.mark.parametrize('error', [KeyboardInterrupt(), RuntimeError('bad fill')], ids=['interrupt', 'exception'])
def test_a_step_that_broke_leaves_everything_and_the_next_recovers(learner, monkeypatch, error):
    learn = learner(quiet_cb())
    dls, modes = learn.dls, [m.training for m in learn.model.modules()]
    with monkeypatch.context() as m:
        m.setitem(fills, 'black', InterruptedFill(error))
        with pytest.raises(type(error)): learn.fit(1, LOW)
    assert learn.dls is dls and not len(learn.proxies) and hooks_of(learn.model) == 0
    assert not list(Path('.proxies').rglob('*.tmp'))
    learn.fit(1, LOW)
    assert copied_files(learn) == wrong_now(learn, dls) != set()
    assert len(modes) == len(list(learn.model.modules()))


# -- promise 2: no footprint ----------------------------------------------------------------------------------------------------------------------

footprint_cbs = {'plain': lambda: [], 'GradientAccumulation': lambda: [GradientAccumulation(100)], 'MixUp': lambda: [MixUp()]}

def reasons_for_nothing(name):
    return dict(flat=dict(method='flat'), none_chosen=dict(select='nobody'), disk_full=dict(max_gb=1e-9))[name]

@pytest.mark.parametrize('cbs', footprint_cbs)
@pytest.mark.parametrize('reason', ['flat', 'none_chosen', 'disk_full'])
@pytest.mark.filterwarnings('ignore:ProxyAttentionCB made no copies')
def test_a_cycle_without_copies_leaves_no_footprint(shapes, flat, monkeypatch, cbs, reason):
    monkeypatch.setitem(select.selectors, 'nobody', lambda scores, rng: np.full(len(scores), -np.inf))
    seen = []
    for cb in (None, quiet_cb(**reasons_for_nothing(reason))):
        learn = make_learner(lambda: shapes_dls(shapes, batch_tfms=aug_transforms()), cb, model=None)
        states = []
        for _ in range(2): # The second fit shows what the first one left behind
            learn.fit(1, 0.01, cbs=footprint_cbs[cbs]())
            states.append(footprint(learn))
        seen.append(states)
    assert last_of(learn)['proxies'] == 0 and last_of(learn)['cycle'] in (0, 2)
    for without,with_cb in zip(*seen):
        for k in without: assert with_cb[k] == without[k], f"{k} has changed"
    if cbs == 'GradientAccumulation': assert any(len(g) for g in seen[0][0]['grads']), "no gradients were left, so nothing is tested"

def test_a_cycle_with_copies_changes_the_loader_only(shapes):
    seen = []
    for cb in (None, quiet_cb(method='gradcam', fill='noise')):
        learn = make_learner(lambda: shapes_dls(shapes), cb)
        learn.fit(1, 0.01)
        seen.append(footprint(learn))
    without, with_cb = seen
    assert with_cb.pop('items') > without.pop('items')
    for k in without: assert with_cb[k] == without[k], f"{k} has changed"

def test_a_frozen_body_stays_frozen_and_gets_maps(learner):
    learn = learner(quiet_cb())
    learn.model[0].requires_grad_(False)
    learn.fit(1, LOW)
    assert not any(p.requires_grad for p in learn.model[0].parameters()) and len(learn.proxies)


# -- promise 3: hooks -----------------------------------------------------------------------------------------------------------------------------

class Fragile(nn.Module):
    "A layer that raises while copies are made, when it is told to"
    def __init__(self): super().__init__(); self.error = None
    def forward(self, x):
        if self.error is not None and not self.training: raise self.error
        return x

class Arm(Callback):
    order = 89 # Just before the copies
    def __init__(self, layer, error): self.layer, self.error = layer, error
    def after_fit(self): self.layer.error = self.error

@pytest.mark.parametrize('error', [RuntimeError('broken'), KeyboardInterrupt()], ids=['exception', 'interrupt'])
def test_no_hook_outlives_the_step(learner, error):
    fragile = Fragile()
    model = nn.Sequential(nn.Sequential(*tiny_model()[0], nn.Identity()), nn.Sequential(fragile, *tiny_model()[1]))
    learn = learner(quiet_cb(), model=model)
    dls = learn.dls
    learn.fit(1, LOW)
    assert hooks_of(model) == 0 and len(learn.proxies)
    live = learn.dls
    with pytest.raises(type(error)): learn.fit(1, LOW, cbs=Arm(fragile, error))
    assert hooks_of(model) == 0 and learn.dls is live and torch.is_grad_enabled()
    fragile.error = None
    learn.fit(1, LOW)
    assert hooks_of(model) == 0 and copied_files(learn) == wrong_now(learn, dls)


# -- promises 1, 4, 5, 9: who is copied, labels, DataLoaders ---------------------------------------------------------------------------------------

def test_copies_have_their_originals_labels_and_nothing_else_has_changed(fitted):
    ds, base = fitted.dls.train_ds, fitted.user_dls.train_ds
    assert len(ds) > len(base) == 27
    for i in range(27): assert ds[i][1] == base[i][1] and np.array_equal(np.array(ds[i][0]), np.array(base[i][0]))
    for k,row in enumerate(fitted.proxies.itertuples()):
        img, y = ds[27+k]
        src = [str(f) for f in base.items].index(row.original)
        assert y == base[src][1] and type(y) is type(base[src][1]) and type(img) is type(base[src][0])
        assert np.array_equal(np.array(img), read_rgb(row.path))
    assert list(ds.vocab) == list(base.vocab) and fitted.dls.vocab == fitted.user_dls.vocab

def test_a_copy_is_its_original_but_for_the_hole(fitted):
    for row in fitted.proxies.itertuples():
        img, copy = read_rgb(row.original), read_rgb(row.path)
        hole = (copy != img).any(2)
        assert copy.shape == img.shape and (copy[hole] == 0).all()
        assert abs(row.erased - 0.1) < 0.01 and hole.mean() <= row.erased + 1e-6
        assert hole.mean() > row.erased - 0.02 # Pixels that were black already

def test_the_hole_is_where_the_network_looked(learner):
    learn = learner(quiet_cb(method='layercam', target='true', select='all', area=0.2))
    learn.fit(1, LOW)
    for row in learn.proxies.itertuples():
        img, copy = read_rgb(row.original), read_rgb(row.path)
        small = torch.from_numpy(np.array(Image.fromarray(img).resize((32, 32), Image.BILINEAR))).permute(2, 0, 1)[None].float() / 255
        inner = saliency_maps(learn.model, small, label_of(row.original), 'layercam')[0]
        there = torch.nn.functional.interpolate(inner[None, None], img.shape[:2], mode='bilinear')[0, 0].numpy()
        hole = (copy != img).any(2)
        assert there[hole].mean() > 1.3*there[~hole].mean()
    assert len(learn.proxies) > 8

def test_the_users_dataloaders_never_change(learner):
    learn = learner(quiet_cb(keep='all'))
    dls, loaders, dataset = learn.dls, list(learn.dls.loaders), learn.dls.train.dataset
    def sizes_of(dls):
        pipes = len(dls.train.after_item.fs), len(dls.valid.after_batch.fs)
        return len(dls.train), dls.train.n, len(dls.train_ds), len(dls.valid_ds), *pipes
    sizes = sizes_of(dls)
    valid = [v[0].clone() for v in dls.valid]
    for _ in range(2): learn.fit(1, LOW)
    assert learn.dls is not dls and all(a is b for a,b in zip(dls.loaders, loaders)) and dls.train.dataset is dataset
    assert sizes_of(dls) == sizes
    assert learn.dls.valid is dls.valid and all(torch.equal(a, b[0]) for a,b in zip(valid, dls.valid))

def test_remove_proxies_puts_everything_back(learner):
    learn = learner(quiet_cb(merge='replace'))
    dls, n = learn.dls, len(learn.dls.train)
    learn.fit(1, LOW)
    files = [Path(p) for p in learn.proxies['path']]
    assert learn.dls is not dls and learn.remove_proxies() is learn
    assert learn.dls is dls and (len(dls.train_ds), dls.train.n, len(dls.train)) == (27, 27, n) and not len(learn.proxies)
    assert all(f.is_file() for f in files)
    assert not learn._grab_cbs(ProxyAttentionCB), "it would go on making copies"
    learn.fit(1, LOW)
    assert learn.dls is dls and not len(learn.proxies)
    learn.add_cb(quiet_cb()) # And it starts again as if nothing had been
    learn.fit(1, LOW)
    assert copied_files(learn) == wrong_now(learn, dls) != set()

def test_remove_proxies_can_delete_the_copies(learner):
    learn = learner(quiet_cb())
    learn.fit(1, LOW)
    files = [Path(p) for p in learn.proxies['path']]
    learn.remove_proxies(purge=True)
    assert files and not any(f.exists() for f in files) and not files[0].parent.exists()

def test_validation_items_are_never_looked_at_or_copied(learner):
    valid = Coded(9, 1, 100)
    learn = learner(quiet_cb(select='all', share=1.), dls=lambda: coded_dls(valid=valid))
    learn.fit(1, LOW)
    valid.reads.clear()
    learn.proxy_attention_cb.make_proxies()
    assert valid.reads == [] and sorted(learn.proxies['original']) == list(range(24))

def test_validation_is_the_same_before_and_after(learner):
    learn = learner(quiet_cb(select='all'))
    learn.fit(1, LOW)
    preds, valid = learn.get_preds(), [str(f) for f in learn.dls.valid_ds.items]
    figures = list(learn.validate())
    cb = cb_of(learn)
    learn.remove_proxies()
    again = learn.get_preds()
    assert torch.equal(preds[0], again[0]) and torch.equal(preds[1], again[1]) and list(learn.validate()) == figures
    learn.add_cb(cb)
    cb.make_proxies()
    assert len(learn.proxies) == 27 and not copied_files(learn) & set(valid)
    assert [str(f) for f in learn.dls.valid_ds.items] == valid and list(learn.validate()) == figures

def test_a_file_in_both_splits_gets_no_copy(learner, shapes):
    files = sorted(shapes.rglob('*.png'))
    split = set(map(str, files[:9:4]))
    everything = files + files[:9:4] + files[9:12]
    block = DataBlock(blocks=(ImageBlock, CategoryBlock), get_items=lambda _: everything, get_y=parent_label, item_tfms=Resize(32),
                      splitter=IndexSplitter(list(range(9, 12)) + list(range(36, 42))))
    dls = block.dataloaders(shapes, bs=8, num_workers=0)
    assert split == set(map(str, dls.train_ds.items)) & set(map(str, dls.valid_ds.items))
    learn = learner(quiet_cb(select='all'), dls=dls)
    with pytest.warns(UserWarning, match='validation.*no copy') as told: learn.fit(1, LOW)
    assert any(str(f) in str(w.message) for w in told for f in split)
    assert copied_files(learn) == set(map(str, dls.train_ds.items)) - split and last_of(learn)['held_out'] == len(split)

def test_a_file_of_the_test_set_gets_no_copy(shapes):
    dls = shapes_dls(shapes)
    tested = dls.train_ds.items[:4]
    three = DataLoaders(dls.train, dls.valid, dls.test_dl(tested))
    learn = make_learner(three, quiet_cb(select='all'))
    with pytest.warns(UserWarning, match='4 training items are validation or test items too'): learn.fit(1, LOW)
    assert copied_files(learn) == set(map(str, dls.train_ds.items[4:]))

def test_copies_are_never_looked_at_or_copied_again(learner):
    learn = learner(quiet_cb(select='all', keep='all'))
    dls = learn.dls
    for cycle in (1, 2, 3):
        learn.fit(1, LOW)
        assert last_of(learn)['items'] == 27 and last_of(learn)['proxies'] == 27 and len(learn.proxies) == 27*cycle
        assert copied_files(learn) == set(map(str, dls.train_ds.items))
    for o,cs in learn.proxies.groupby('original'): # Each cycle begins with the whole picture again
        for p in cs['path']: assert ((read_rgb(o) != read_rgb(p)).any(2)).mean() <= 0.11

def test_two_learners_share_dataloaders(shapes):
    dls = shapes_dls(shapes)
    one, two = (make_learner(dls, quiet_cb(), seed) for seed in (0, 1))
    one.fit(1, LOW)
    assert two.dls is dls and len(two.dls.train_ds) == 27
    two.fit(1, LOW)
    for learn in (one, two): assert copied_files(learn) == wrong_now(learn, dls) and len(learn.dls.train_ds) == 27 + len(learn.proxies)
    assert one.dls is not two.dls and copied_files(one) != copied_files(two) and len(dls.train_ds) == 27

@pytest.mark.parametrize('merge', ['add', 'replace'])
def test_a_learner_that_gets_anothers_copies_is_told(shapes, merge):
    dls = shapes_dls(shapes)
    one = make_learner(dls, quiet_cb(merge=merge))
    one.fit(1, LOW)
    two = make_learner(one.dls, quiet_cb(), 1)
    with pytest.warns(UserWarning, match=f'{len(one.proxies)} copies made by another learner'): two.fit(1, LOW)
    assert last_of(two)['items'] == 27 and copied_files(two) == wrong_now(two, dls) and len(two.dls.train_ds) == 27 + len(two.proxies)

@pytest.mark.parametrize('which', ['new', 'the first'])
def test_dataloaders_replaced_by_the_user(shapes, learner, which):
    learn = learner(quiet_cb(keep='all'))
    dls = learn.dls
    learn.fit(1, LOW)
    n = len(learn.proxies)
    learn.dls = mine = shapes_dls(shapes, seed=7) if which == 'new' else dls
    with pytest.warns(UserWarning, match=f'replaced.*{n} copies'): learn.fit(1, LOW)
    assert set(learn.proxies['cycle']) == {2} and copied_files(learn) == wrong_now(learn, mine)
    learn.remove_proxies()
    assert learn.dls is mine

def test_an_export_knows_nothing_of_the_data(learner, shapes):
    learn = learner(quiet_cb(select='all'), dls=lambda: shapes_dls(shapes, item_tfms=Resize(SIDE, method='squish')))
    learn.fit(1, LOW)
    file = learn.dls.train_ds.items[3]
    said, probs = learn.predict(file)[0], learn.predict(file)[2]
    copies = [Path(p).name for p in learn.proxies['path']]
    with_copies = learn.dls
    learn.export(Path('learner.pkl').resolve())
    assert learn.dls is with_copies and len(learn.proxies) == 27
    data = Path('learner.pkl').read_bytes()
    names = [*copies, *(f.name for f in shapes.rglob('*.png')), '.proxies']
    for name in names: assert name.encode() not in data, f"{name} is in the export"
    learn.remove_proxies(purge=True)
    shutil.rmtree('.proxies')
    code = '''import sys, warnings; warnings.simplefilter('ignore')
import fastai.callback.progress
from fastai.learner import load_learner
learn = load_learner('learner.pkl')
with learn.no_bar(), learn.no_logging(): said, _, probs = learn.predict(sys.argv[1])
hooks = sum(len(m._forward_hooks) for m in learn.model.modules())
print(said, sum(m.startswith('proxy_attention') for m in sys.modules), hooks, *probs.tolist())'''
    done = fresh_process(code, file, env=child_env())
    assert done.returncode == 0, done.stderr
    got = done.stdout.split()
    assert got[:3] == [said, '0', '0'] and np.allclose([float(v) for v in got[3:]], probs, atol=1e-5) and not Path('.proxies').exists()

def child_env():
    here = str(Path(store.__file__).parents[1])
    return {**os.environ, 'PYTHONPATH': os.pathsep.join([here, *filter(None, [os.environ.get('PYTHONPATH')])])}


# -- promise 8: same seed, same copies ------------------------------------------------------------------------------------------------------------

def manifest(learn): return [json.loads(line) for line in (cb_of(learn).copies.store.path/'manifest.jsonl').read_text().splitlines()]

@pytest.mark.parametrize('fill', ['black', 'noise', 'context'])
def test_same_seed_same_bytes(shapes, fill):
    made = []
    for name in ('a', 'b'):
        learn = make_learner(lambda: shapes_dls(shapes), quiet_cb(path=name, fill=fill, select='random', share=0.5))
        np.random.rand(3 if name == 'a' else 7) # Global random numbers don't matter
        for _ in range(2): learn.fit(1, LOW)
        made.append((copy_bytes(learn), manifest(learn), (Path(name)/'manifest.jsonl').read_bytes()))
    assert made[0] == made[1] and len(made[0][0]) == 13

def test_another_seed_makes_other_choices_and_other_noise(learner):
    def made(**kwargs):
        learn = learner(quiet_cb(**kwargs))
        learn.fit(1, LOW)
        return learn
    a, b = (made(select='random', share=0.5, seed=s) for s in (0, 1))
    assert copied_files(a) != copied_files(b) and len(a.proxies) == len(b.proxies) == 13
    a, b = (made(fill='noise', seed=s) for s in (0, 1))
    assert copied_files(a) == copied_files(b) and all(copy_bytes(a)[k] != copy_bytes(b)[k] for k in copy_bytes(a))


# -- every argument changes the outcome -----------------------------------------------------------------------------------------------------------

@pytest.fixture(scope='module')
def outcome(shapes, tmp_path_factory):
    "A function: a learner fitted with the callback's arguments given; otherwise always the same"
    made = {}
    def get(**kwargs):
        key = repr(kwargs)
        if key not in made:
            kwargs = dict(path=tmp_path_factory.mktemp('run')) | kwargs
            made[key] = make_learner(lambda: shapes_dls(shapes), quiet_cb(**kwargs))
            made[key].fit(1, LOW)
        return made[key]
    return get

def hole(original, copy): return (read_rgb(original) != read_rgb(copy)).any(2)

@pytest.mark.parametrize('method', [m for m,f in saliency.saliency_methods.items() if m != 'eigencam' and not isinstance(f, saliency.OnAttention)])
def test_method(outcome, method):
    a, b = outcome(method='eigencam'), outcome(method=method)
    both = copied_files(a) & copied_files(b)
    assert both and any(copy_bytes(a)[k] != copy_bytes(b)[k] for k in both) and set(b.proxies['method']) == {method}

def test_the_methods_differ(outcome):
    made = {m: copy_bytes(outcome(method=m)) for m in ('gradcam', 'gradcam++', 'layercam', 'hirescam', 'xgradcam')}
    same_for_this_head = {frozenset(('gradcam', 'hirescam')), frozenset(('gradcam', 'xgradcam')), frozenset(('hirescam', 'xgradcam'))}
    for a in made:
        for b in made:
            if a < b and frozenset((a, b)) not in same_for_this_head: assert made[a] != made[b], f"{a} and {b} made the same copies"

def test_target(outcome):
    made = {t: outcome(method='gradcam', target=t) for t in ('pred', 'true', 'contrast')}
    for t,learn in made.items(): assert set(learn.proxies['target']) == {t}
    for a,b in (('pred', 'true'), ('pred', 'contrast'), ('true', 'contrast')): assert copy_bytes(made[a]) != copy_bytes(made[b])

def ranked(learn, key):
    "Training files by a figure computed here, hardest first"
    files = [str(f) for f in learn.dls.train_ds.base.items]
    p = logits_of(learn.model, files).softmax(1).double()
    true = torch.tensor([label_of(f) for f in files])
    right = p.gather(1, true[:, None])[:, 0]
    rival = p.scatter(1, true[:, None], -1).amax(1)
    hardness = {'low_confidence': -right, 'high_loss': -right.log(), 'low_margin': rival-right}[key]
    return [files[i] for i in hardness.argsort(descending=True)]

@pytest.mark.parametrize('key', ['low_confidence', 'high_loss', 'low_margin'])
def test_select_by_rank(outcome, key):
    learn = outcome(select=key, share=0.4)
    assert list(learn.proxies['original']) == ranked(learn, key)[:10]

def test_select_wrong_comes_hardest_first(outcome):
    learn = outcome(share=0.3)
    wrong = wrong_files(learn.model, learn.dls.train_ds.base.items)
    assert list(learn.proxies['original']) == [f for f in ranked(learn, 'high_loss') if f in wrong][:8]

def test_select_all_and_random(outcome):
    everything = outcome(select='all', share=None)
    assert len(everything.proxies) == 27 and list(everything.proxies['original']) == ranked(everything, 'high_loss')
    some = outcome(select='random', share=0.5)
    assert len(some.proxies) == 13 and list(some.proxies['original']) != ranked(some, 'high_loss')[:13]

def test_selectors_can_be_added(learner, monkeypatch):
    monkeypatch.setitem(select.selectors, 'surest', lambda scores, rng: scores.confidence)
    learn = learner(quiet_cb(select='surest', share=0.2))
    learn.fit(1, LOW)
    assert list(learn.proxies['original']) == ranked(learn, 'low_confidence')[::-1][:5]

@pytest.mark.parametrize('share,n', [(None, 8), (0.2, 5), (1., 27), (0.001, 1)])
def test_share(outcome, share, n): assert len(outcome(select='low_confidence', share=share).proxies) == n

def test_per_class(outcome):
    learn = outcome(select='low_confidence', share=0.3, per_class=True)
    there = [label_of(f) for f in learn.dls.train_ds.base.items]
    for c,name in enumerate(CLASSES): assert (learn.proxies['label'] == name).sum() == max(1, int(0.3*there.count(c)))
    assert copied_files(learn) != copied_files(outcome(select='low_confidence', share=0.3))

@pytest.mark.parametrize('area', [0.05, 0.1, 0.5, 1.])
def test_area(outcome, area):
    p = outcome(area=area).proxies
    for o,e in zip(p['original'], p['erased']):
        pixels = read_rgb(o)[..., 0].size
        assert abs(e*pixels - area*pixels) <= 0.51

def test_area_is_a_tenth_unless_said_otherwise(outcome):
    assert copy_bytes(outcome(area=0.1)) == copy_bytes(outcome()) != copy_bytes(outcome(area=0.05))

def test_threshold(outcome):
    erased = [outcome(threshold=t).proxies.set_index('original')['erased'] for t in (0., 0.3, 0.6, 0.9)]
    for more,less in zip(erased, erased[1:]): assert (more > less).all()
    assert erased[2].nunique() > 1 # Not an area: it follows the map

def test_threshold_of_masktune(outcome):
    p = outcome(threshold='mean+2std').proxies
    assert len(p) and p['erased'].nunique() > 1 and (p['erased'] < 0.2).all()

@pytest.mark.parametrize('fill', fills)
def test_fill(outcome, fill):
    learn, black = outcome(fill=fill, area=0.2), outcome(fill='black', area=0.2)
    assert copied_files(learn) == copied_files(black)
    whole = dict(zip(black.proxies['original'], black.proxies['path']))
    for row in learn.proxies.itertuples():
        img, copy, hole_there = read_rgb(row.original), read_rgb(row.path), hole(row.original, whole[row.original])
        outside = ~hole_there & (img > 0).any(2)
        if fill != 'swap': assert (copy[outside] == img[outside]).all(), f"{fill} changed pixels outside of the hole"
        inside = copy[hole_there]
        if fill == 'black': assert (inside == 0).all()
        elif fill == 'mean': assert (inside == inside[0]).all() and abs(inside[0].astype(float) - img.reshape(-1, 3).mean(0)).max() <= 1
        elif fill == 'unchanged': assert (inside == img[hole_there]).all()
        elif fill == 'blend': assert (inside <= img[hole_there]).all() and inside.any()
        else: assert inside.std() > 0 and (inside != img[hole_there]).any()
        if fill == 'swap': assert 0 < (copy != img)[~hole_there].any(1).mean() < 0.7 # The patch of another image
    if fill != 'black': assert all(copy_bytes(learn)[k] != copy_bytes(black)[k] for k in copy_bytes(black))

@pytest.mark.parametrize('place', [p for p in placements if p != 'salient'])
def test_place(outcome, place):
    "As many pixels of the same images as the method erases, but others"
    learn,method = outcome(place=place, area=0.2), outcome(area=0.2)
    assert copied_files(learn) == copied_files(method) and (learn.proxies['erased'] == method.proxies['erased']).mean() > 0.9
    assert copy_bytes(learn) != copy_bytes(method) and copy_bytes(learn) == copy_bytes(outcome(place=place, area=0.2))
    own = dict(zip(method.proxies['original'], method.proxies['path']))
    overlap = [(hole(r.original, r.path) & hole(r.original, own[r.original])).sum() / hole(r.original, r.path).sum() for r in learn.proxies.itertuples()]
    assert np.mean(overlap) < 0.7 if place != 'least_salient' else np.mean(overlap) == 0

def test_copies_of_an_earlier_process(shapes, learner):
    first = make_learner(lambda: shapes_dls(shapes), quiet_cb(path='run', select='all'))
    first.fit(1, LOW)
    ids,items = list(first.proxies['id']), len(first.dls.train_ds)
    first.remove_proxies()
    again = make_learner(lambda: shapes_dls(shapes), quiet_cb(path='run', select='all'))
    cb = again._grab_cbs(ProxyAttentionCB)[0]
    assert cb.resume(ids) == len(ids) and list(again.proxies['id']) == ids and len(again.dls.train_ds) == items
    last = int(ids[-1].split('-')[1])
    assert again.dls.train_ds[items-1][1] == again.dls.train_ds[last][1] # the label is the original's
    assert cb.resume(ids[:3]) == 3 and len(again.dls.train_ds) == items - len(ids) + 3
    assert cb.resume() == len(ids) and cb.make_proxies().cycle == 2
    with pytest.raises(ValueError, match="ids=.*no such copies"): cb.resume(['9-9'])
    again.remove_proxies()

def test_copies_of_other_images_are_not_taken_up(shapes, own_shapes):
    first = make_learner(lambda: shapes_dls(shapes), quiet_cb(path='run', select='all'))
    first.fit(1, LOW)
    first.remove_proxies()
    other = make_learner(lambda: shapes_dls(own_shapes), quiet_cb(path='run'))
    with pytest.raises(ValueError, match='copies of other images'): other._grab_cbs(ProxyAttentionCB)[0].resume()
    assert not len(other.proxies)
    other.remove_proxies()

def test_resume_leaves_lost_copies_out(shapes):
    first = make_learner(lambda: shapes_dls(shapes), quiet_cb(path='run', select='all'))
    first.fit(1, LOW)
    gone = Path(first.proxies['path'][0])
    first.remove_proxies()
    gone.unlink()
    again = make_learner(lambda: shapes_dls(shapes), quiet_cb(path='run'))
    with pytest.warns(UserWarning, match='missing or damaged'): assert again._grab_cbs(ProxyAttentionCB)[0].resume() == 26
    again.show_proxies() # without maps: they were another process's
    again.remove_proxies()

def test_merge(outcome):
    added, replaced = outcome(), outcome(merge='replace')
    n = len(added.proxies)
    assert 0 < n < 27 and len(added.dls.train_ds) == 27+n and len(replaced.dls.train_ds) == 27
    drawn = [str(replaced.dls.train_ds.base.items[replaced.dls.train_ds.origin(i)]) for i in range(27-n)]
    assert not set(drawn) & copied_files(replaced) and len(set(drawn)) == 27-n

def test_replaced_originals_are_still_looked_at_and_come_back(learner):
    learn = learner(quiet_cb(merge='replace'))
    dls = learn.dls
    for _ in range(2):
        learn.fit(1, LOW)
        assert last_of(learn)['items'] == 27 and copied_files(learn) == wrong_now(learn, dls) and len(learn.dls.train_ds) == 27

def test_keep(learner):
    latest, every = learner(quiet_cb(keep='latest')), learner(quiet_cb(keep='all'))
    counts = []
    for _ in range(2):
        for learn in (latest, every): learn.fit(1, LOW)
        counts.append((last_of(latest)['proxies'], last_of(every)['proxies']))
    assert len(latest.proxies) == counts[1][0] and set(latest.proxies['cycle']) == {2}
    assert len(every.proxies) == counts[0][1] + counts[1][1] and set(every.proxies['cycle']) == {1, 2}
    assert len(every.dls.train_ds) == 27 + len(every.proxies)

@pytest.mark.parametrize('keep,left', [('latest', 0), ('all', 1)])
def test_an_empty_cycle(learner, monkeypatch, keep, left):
    learn = learner(quiet_cb(keep=keep))
    dls = learn.dls
    learn.fit(1, LOW)
    n = len(learn.proxies)
    monkeypatch.setitem(select.selectors, 'wrong', lambda scores, rng: np.full(len(scores), -np.inf))
    learn.fit(1, LOW)
    assert len(learn.proxies) == left*n and (learn.dls is dls) == (left == 0) and last_of(learn)['proxies'] == 0

def test_layer(outcome):
    earlier, automatic = outcome(layer='0.2'), outcome()
    assert cb_of(earlier).prepared.task.maps.reads.name == '0.2' and copied_files(earlier) == copied_files(automatic)
    assert copy_bytes(earlier) != copy_bytes(automatic)
    model = tiny_model()
    assert copy_bytes(outcome(layer='0.5')) == copy_bytes(automatic) and isinstance(model[0][5], nn.ReLU)

def test_layer_as_a_module(learner):
    seed_all(3)
    model = tiny_model()
    learn = learner(quiet_cb(layer=model[0][2]), model=model)
    learn.fit(1, LOW)
    assert cb_of(learn).prepared.task.maps.reads.name == '0.2' and len(learn.proxies)

def mirror(out): return out.flip(-1)

def test_reshape(outcome):
    a, b = outcome(layer='0.5'), outcome(layer='0.5', reshape=mirror)
    assert copied_files(a) == copied_files(b)
    for o in copy_bytes(a): # The hole is mirrored
        x, y = (hole(o, p) for p in (dict(zip(learn.proxies['original'], learn.proxies['path']))[o] for learn in (a, b)))
        assert (x == y[:, ::-1]).mean() > 0.95 > 0 and x.any()

def test_path(learner):
    learn = learner(quiet_cb(path='some/where'))
    learn.fit(1, LOW)
    assert {Path(p).resolve().parent for p in learn.proxies['path']} == {Path('some/where').resolve()} and not Path('.proxies').exists()
    assert len(manifest(learn)) == len(learn.proxies)

def test_two_runs_get_two_folders(learner):
    one, two = learner(quiet_cb()), learner(quiet_cb())
    for learn in (one, two): learn.fit(1, LOW)
    assert cb_of(one).copies.store.path != cb_of(two).copies.store.path and copy_bytes(one) == copy_bytes(two)

def test_format(outcome):
    png, jpg = outcome(), outcome(format='jpg')
    assert {Path(p).suffix for p in jpg.proxies['path']} == {'.jpg'} and {Path(p).suffix for p in png.proxies['path']} == {'.png'}
    both = dict(zip(png.proxies['original'], png.proxies['path'])), dict(zip(jpg.proxies['original'], jpg.proxies['path']))
    assert both[0].keys() == both[1].keys()
    for k in both[0]: # The same picture, nearly
        a, b = read_rgb(both[0][k]), read_rgb(both[1][k])
        assert a.shape == b.shape and (a != b).any() and np.corrcoef(a.mean(2).ravel(), b.mean(2).ravel())[0, 1] > 0.9

def test_max_gb(learner):
    learn = learner(quiet_cb(max_gb=1e-6))
    dls = learn.dls
    with pytest.warns(UserWarning, match='no copies.*max_gb=1e-06'): learn.fit(1, LOW)
    assert learn.dls is dls and not len(learn.proxies)

def test_verbose(learner, capsys):
    for verbose,lines in ((True, 1), (False, 0)):
        learner(quiet_cb(verbose=verbose)).fit(1, LOW)
        assert len(capsys.readouterr().out.splitlines()) == lines

def test_the_line_says_what_to_do_when_few_are_wrong(learner, capsys):
    learn = learner(quiet_cb(verbose=True))
    with torch.no_grad(): learn.model[1][2].weight.zero_()
    learn.fit(30, 0.02)
    out = capsys.readouterr().out
    assert last_of(learn)['wrong'] <= 1, "the network learnt too little for this test"
    assert "Few are wrong: select='low_confidence'" in out and 'scout=' in out

def test_presets(outcome):
    assert ProxyAttentionCB.preset('proposal').policy == Policy(scout=None, method='gradcam', select='wrong', share=1., threshold=0.6, fill='black')
    masktune = ProxyAttentionCB.preset('masktune').policy
    assert (masktune.select, masktune.threshold, masktune.merge) == ('all', 'mean+2std', 'replace')
    assert ProxyAttentionCB.preset('proposal', area=0.2).policy.rule == dict(area=0.2, threshold=None)
    assert ProxyAttentionCB.preset('proposal', threshold=0.4, fill='mean').policy == Policy(scout=None, method='gradcam', share=1., threshold=0.4, fill='mean')
    recommended = Policy(scout='15%', scout_select='all', scout_merge='replace', scout_test=True, method='auto', probe=True, target='pred', select='wrong', fill='context',
                         merge='add', keep='latest')
    assert ProxyAttentionCB().policy == ProxyAttentionCB.preset('recommended').policy == Policy() == recommended
    early = ProxyAttentionCB.preset('early_look').policy
    assert (early.scout, early.scout_test, early.scout_merge, early.select) == ('25%', False, 'add', None)
    assert ProxyAttentionCB.preset('after_fit').policy == Policy(scout=None, fill='black')
    assert set(presets) == {'recommended', 'proposal', 'masktune', 'early_look', 'after_fit'}
    for name in presets: assert ProxyAttentionCB.preset(name, seed=3, verbose=False).seed == 3

def test_copies_are_drawn_as_often_as_asked(learner):
    learn = learner(quiet_cb(select='all', repeat=3))
    learn.fit(1, LOW)
    ds,copies = learn.dls.train_ds, len(learn.proxies)
    assert copies == 27 and len(ds) == learn.dls.train.n == 27 + 3*27 and last_of(learn)['live'] == 27 == learn.proxies['id'].nunique()
    assert sorted(ds.origin(i) for i in range(27, len(ds))) == sorted(3*[*range(27)])
    assert sum(len(b[0]) for b in learn.dls.train) >= len(ds) - learn.dls.bs

def test_preset_proposal_to_the_letter(learner):
    learn = learner(ProxyAttentionCB.preset('proposal', verbose=False))
    dls = learn.dls
    learn.fit(1, LOW)
    assert len(learn.proxies) == len(wrong_now(learn, dls)) - last_of(learn)['flat'] > 8 # No quota
    assert learn.proxies['erased'].nunique() > 1


# -- maps that say nothing ------------------------------------------------------------------------------------------------------------------------

def flat_kind(kind):
    def method(acts, grads, weights):
        if kind == 'zero': return torch.zeros_like(acts[:, 0])
        if kind == 'negative': return -acts.abs().sum(1) - 1
        if kind == 'constant': return torch.full_like(acts[:, 0], 0.7)
        if kind == 'not a number': return torch.full_like(acts[:, 0], float('nan'))
        return acts.mean((2, 3))[:, :1, None] # One by one
    return method

@pytest.mark.parametrize('kind', ['zero', 'negative', 'constant', 'not a number', '1x1'])
def test_flat_maps_are_counted_and_reported(learner, monkeypatch, capsys, kind):
    monkeypatch.setitem(saliency.saliency_methods, 'flat', flat_kind(kind))
    learn = learner(quiet_cb(method='flat', verbose=True))
    dls = learn.dls
    learn.fit(1, LOW)
    wrong = len(wrong_now(learn, dls))
    assert wrong and last_of(learn)['flat'] == wrong and last_of(learn)['proxies'] == 0
    assert learn.dls is dls and not len(learn.proxies) and f'{wrong} flat' in capsys.readouterr().out

def test_some_maps_are_flat(learner, monkeypatch):
    def method(acts, grads, weights):
        maps = saliency.eigencam(acts)
        return maps * (acts.sum((1, 2, 3), keepdim=True)[..., 0] > acts.sum((1, 2, 3)).median())
    monkeypatch.setitem(saliency.saliency_methods, 'half', method)
    learn = learner(quiet_cb(method='half', select='all'))
    learn.fit(1, LOW)
    done = last_of(learn)
    assert 0 < done['flat'] < 27 and done['proxies'] + done['flat'] == 27 and len(learn.proxies) == done['proxies']


# -- trouble with files ---------------------------------------------------------------------------------------------------------------------------

class Corrupt(Callback):
    "Break files when the last training batch is over"
    def __init__(self, files): self.files = files
    def after_train(self):
        for f in self.files: Path(f).write_bytes(b'no image')

def test_corrupt_originals_are_left_out(learner, own_shapes):
    learn = learner(quiet_cb(), root=own_shapes)
    items = [str(f) for f in learn.dls.train_ds.items]
    bad = [items[0], items[9], items[26]]
    with pytest.warns(UserWarning, match='3 training items can.t be read') as told: learn.fit(1, LOW, cbs=Corrupt(bad))
    assert any(Path(bad[0]).name in str(w.message) for w in told)
    assert last_of(learn)['unreadable'] == 3
    assert copied_files(learn) == wrong_files(learn.model, [f for f in items if f not in bad]) != set() # Numbers stay aligned
    for row in learn.proxies.itertuples(): assert row.label == Path(row.original).parent.name and hole(row.original, row.path).mean() < 0.11

def test_a_corrupt_image_is_no_donor(learner, own_shapes):
    learn = learner(quiet_cb(fill='context', select='all'), root=own_shapes)
    bad = [str(f) for f in learn.dls.train_ds.items[3:12]]
    with pytest.warns(UserWarning, match="9 training items can.t be read"): learn.fit(1, LOW, cbs=Corrupt(bad))
    assert len(learn.proxies) == 18 and not copied_files(learn) & set(bad)

def test_a_truncated_original(learner, own_shapes):
    learn = learner(quiet_cb(select='all'), root=own_shapes)
    file = Path(learn.dls.train_ds.items[4])
    class Cut(Callback):
        def after_train(self): file.write_bytes(file.read_bytes()[:200])
    with pytest.warns(UserWarning, match="1 training items can.t be read"): learn.fit(1, LOW, cbs=Cut())
    assert len(learn.proxies) == 26 and str(file) not in copied_files(learn)

@pytest.mark.parametrize('which', [0, 4])
def test_an_original_that_is_gone(learner, own_shapes, which):
    learn = learner(quiet_cb(select='all'), root=own_shapes)
    file = Path(learn.dls.train_ds.items[which])
    class Delete(Callback):
        def after_train(self): file.unlink()
    with pytest.warns(UserWarning, match="1 training items can.t be read"): learn.fit(1, LOW, cbs=Delete())
    assert len(learn.proxies) == 26 and str(file) not in copied_files(learn)

@pytest.mark.parametrize('harm', ['deleted', 'cut short'])
def test_copies_lost_between_cycles(learner, harm):
    learn = learner(quiet_cb(keep='all'))
    dls = learn.dls
    learn.fit(1, LOW)
    n, lost = len(learn.proxies), [Path(p) for p in learn.proxies['path'][:2]]
    names = set(learn.proxies['original'][:2])
    for f in lost: f.unlink() if harm == 'deleted' else f.write_bytes(f.read_bytes()[:50])
    drawn = []
    class Scan(Callback):
        def before_batch(self):
            if self.learn.training and self.learn.iter == 0: drawn.append((self.learn.dl.n, self.learn.n_iter))
    with pytest.warns(UserWarning, match=f'2 of {n} copies.*missing or damaged'): learn.fit(1, LOW, cbs=Scan())
    assert drawn == [(27+n-2, (27+n-2)//8)] and copied_files(learn) >= wrong_now(learn, dls)
    first = learn.proxies[learn.proxies['cycle'] == 1]
    assert len(first) == n-2 and not set(first['original']) & names and all(Path(p).is_file() for p in learn.proxies['path'])

def test_the_whole_folder_is_gone(learner):
    learn = learner(quiet_cb())
    dls = learn.dls
    learn.fit(1, LOW)
    shutil.rmtree('.proxies')
    with pytest.warns(UserWarning, match='missing or damaged'): learn.fit(1, LOW)
    assert learn.dls is dls or all(Path(p).is_file() for p in learn.proxies['path'])
    learn.remove_proxies()
    assert learn.dls is dls
    learn.add_cb(quiet_cb())
    learn.fit(1, LOW)
    assert copied_files(learn) == wrong_now(learn, dls) != set() and all(Path(p).is_file() for p in learn.proxies['path'])

def test_the_working_directory_changes_between_cycles(learner, monkeypatch):
    learn = learner(quiet_cb(keep='all'))
    learn.fit(1, LOW)
    n, here = len(learn.proxies), Path.cwd()
    (here/'elsewhere').mkdir()
    monkeypatch.chdir('elsewhere')
    learn.fit(1, LOW)
    assert len(learn.proxies) == n + last_of(learn)['proxies'] and set(learn.proxies['cycle']) == {1, 2}
    assert len(list((here/'.proxies').iterdir())) == 1 and not (here/'elsewhere/.proxies').exists()

def test_two_learners_one_path(learner):
    one, two = learner(quiet_cb(path='run')), learner(quiet_cb(path='run'), seed=1)
    one.fit(1, LOW)
    before, on_disk = weights(two.model), files_in('run')
    with pytest.raises(StoreError, match="path='run'.*in use by another learner"): two.fit(1, LOW)
    assert same_weights(weights(two.model), before) and files_in('run') == on_disk and two.dls.train.n == 27
    kept = copy_bytes(one)
    one.remove_proxies()
    two.fit(1, LOW)
    assert len(two.proxies) and len(kept)

def test_a_learner_made_anew_gets_the_path_of_the_one_it_replaces(learner):
    learn = learner(quiet_cb(path='run'))
    learn.fit(1, LOW)
    learn = learner(quiet_cb(path='run')) # As when a notebook's cell is run again: nobody has closed the first
    learn.fit(1, LOW)
    assert len(learn.proxies) and len(rows_of('run')) == len(learn.proxies)

def full(*args, **kwargs): raise OSError(ENOSPC, 'No space left on device')

def after(n, real):
    "`real` for the first `n` calls, then the disk is full"
    calls = []
    def call(*args, **kwargs):
        calls.append(1)
        return real(*args, **kwargs) if len(calls) <= n else full()
    return call

@pytest.mark.parametrize('what', ['write', 'replace'])
@pytest.mark.parametrize('goes', [0, 3], ids=['at once', 'in the middle'])
@pytest.mark.filterwarnings('ignore:Exception ignored')
def test_the_disk_fills_up_in_a_step(learner, monkeypatch, what, goes):
    learn = learner(quiet_cb())
    dls = learn.dls
    learn.fit(1, LOW)
    live, before = learn.dls, copy_bytes(learn)
    writes = after(goes, open)
    class Fill(Callback):
        order = 89
        def after_fit(self):
            if what == 'replace': m.setattr(os, 'replace', after(goes, os.replace))
            else: m.setattr(files, 'open', lambda path, mode, **kw: (writes if mode == 'xb' else open)(path, mode, **kw), raising=False)
    with monkeypatch.context() as m, pytest.warns(UserWarning, match='no copies.*path=.*No space left') as told:
        learn.fit(1, LOW, cbs=Fill())
    assert sum('no copies' in str(w.message) for w in told) == 1 and 'proxies' in str(told[0].message)
    assert learn.dls is live and copy_bytes(learn) == before and last_of(learn)['proxies'] == 0
    assert not list(Path('.proxies').rglob('*.tmp')) and hooks_of(learn.model) == 0
    learn.fit(1, LOW) # There is room again
    assert copied_files(learn) == wrong_now(learn, dls) != set()
    ids = [r['id'] for r in manifest(learn)]
    assert set(learn.proxies['id']) <= set(ids) and set(learn.proxies['cycle']) == {2}

@pytest.mark.skipif(not Path('/dev/full').exists(), reason="needs /dev/full, a disk that is always full")
def test_the_manifest_can_not_be_written(learner):
    resource = pytest.importorskip('resource')
    learn = learner(quiet_cb(save=False))
    learn.fit(1, LOW)
    live, before, old = learn.dls, copied_files(learn), resource.getrlimit(resource.RLIMIT_FSIZE)
    size = (cb_of(learn).copies.store.path/'manifest.jsonl').stat().st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 100, old[1]))
    try:
        with pytest.warns(UserWarning, match='no copies.*path='): learn.fit(1, LOW)
    finally: resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert learn.dls is live and copied_files(learn) == before

def test_a_device_in_the_manifests_place(learner):
    "Reading it would never end, and nothing is written into it"
    learn = learner(quiet_cb())
    learn.fit(1, LOW)
    path = cb_of(learn).copies.store.path/'manifest.jsonl'
    path.unlink()
    path.symlink_to('/dev/full')
    with pytest.warns(UserWarning, match='no copies.*path=') as said: learn.fit(1, LOW)
    assert any('missing or damaged' in str(w.message) for w in said) and not len(learn.proxies) and learn.dls is cb_of(learn).prepared.dls

def rows_of(folder): return [json.loads(line) for line in (Path(folder)/'manifest.jsonl').read_text().splitlines()]

@pytest.mark.skipif(not hasattr(os, 'fork'), reason="needs fork")
@pytest.mark.filterwarnings('ignore:.*fork.*')
@pytest.mark.parametrize('writes', [1, 5, 9])
def test_killed_while_writing_then_run_again(shapes, writes):
    def run(path):
        learn = make_learner(lambda: shapes_dls(shapes), quiet_cb(path=path, select='all'))
        learn.fit(1, LOW)
        return learn
    pid = os.fork()
    if pid == 0: # The child dies while it writes a copy, with some lines of the manifest on disk
        try:
            real, calls = os.replace, []
            def replace(a, b):
                if not str(b).endswith('.png'): return real(a, b)
                calls.append(b)
                if len(calls) > writes: os.kill(os.getpid(), signal.SIGKILL)
                return real(a, b)
            store.os.replace = replace
            run('killed')
        except BaseException: traceback.print_exc()
        finally: os._exit(1)
    assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGKILL
    left = {p.name for p in Path('killed').glob('*.png')}
    again, fresh = run('killed'), run('fresh')
    assert 0 < len(left) < 27 and left <= {Path(p).name for p in again.proxies['path']}
    ids = [r['id'] for r in rows_of('killed')]
    assert len(ids) == len(set(ids)) == 27 and rows_of('killed') == rows_of('fresh') and copy_bytes(again) == copy_bytes(fresh)
    assert {p.name for p in Path('killed').glob('*.png')} == {p.name for p in Path('fresh').glob('*.png')}
    for learn in (again, fresh): learn.remove_proxies()

def test_a_manifest_cut_in_the_middle_of_a_line(shapes):
    def run(path):
        learn = make_learner(lambda: shapes_dls(shapes), quiet_cb(path=path))
        learn.fit(1, LOW)
        learn.remove_proxies()
        return rows_of(path)
    first = run('run')
    file = Path('run/manifest.jsonl')
    file.write_bytes(file.read_bytes()[:-40])
    assert sorted(run('run'), key=lambda r: r['id']) == sorted(first, key=lambda r: r['id'])

def test_running_again_doubles_nothing(shapes):
    seen = []
    for _ in range(2):
        learn = make_learner(lambda: shapes_dls(shapes), quiet_cb(path='run'))
        for _ in range(2): learn.fit(1, LOW)
        seen.append((rows_of('run'), {p.name: p.read_bytes() for p in Path('run').glob('*.png')}))
        learn.remove_proxies()
    assert seen[0] == seen[1] and len(seen[0][0]) > 8

def test_a_manifest_of_a_newer_version(learner):
    store.ProxyStore('run').open().close()
    Path('run/manifest.jsonl').write_text(json.dumps(dict(schema=99, version='9.9', id='1-1')) + '\n')
    learn = learner(quiet_cb(path='run'))
    before = weights(learn.model)
    with pytest.raises(StoreError, match='9.9.*Upgrade, or give another path='): learn.fit(1, LOW)
    assert same_weights(weights(learn.model), before) and len(Path('run/manifest.jsonl').read_text().splitlines()) == 1


# -- ever_wrong -----------------------------------------------------------------------------------------------------------------------------------

class WrongLog(Callback):
    "Which items were predicted wrong while training, told by the number in their first pixel"
    order, run_valid = 5, False
    def __init__(self): self.wrong, self.seen = set(), set()
    def after_pred(self):
        ids = (self.xb[0][:, 0, 0, 0]*255).round().long().tolist()
        hits = (self.pred.argmax(1) == self.yb[0]).tolist()
        self.seen.update(ids)
        self.wrong.update(i for i,h in zip(ids, hits) if not h)

def learnt(**kwargs):
    "Coded items that a tiny network soon gets right"
    return make_learner(lambda: coded_dls(**kwargs), quiet_cb(select='ever_wrong'))

@pytest.mark.parametrize('kwargs', [{}, dict(drop_last=False, train=Coded(26)), dict(num_workers=2)], ids=['plain', 'ragged', 'workers'])
def test_ever_wrong_equals_an_independent_log(kwargs):
    learn, log = learnt(**kwargs), WrongLog()
    learn.fit(6, 0.05, cbs=log)
    n = len(learn.dls.train_ds.base)
    assert 0 < len(log.wrong) < n, "choose another rate: all or none were ever wrong"
    assert set(learn.proxies['original']) == log.wrong and last_of(learn)['candidates'] == len(log.wrong)

def test_ever_wrong_with_copies_in_the_batches():
    learn = make_learner(lambda: coded_dls(train=Coded(first=1)), quiet_cb(select='ever_wrong', area=1.)) # Number 0: a black copy
    for cycle in (1, 2):
        log = WrongLog()
        learn.fit(2, 0.01, cbs=log)
        assert (0 in log.seen) == (cycle == 2)
        assert set(learn.proxies['original']) == {i-1 for i in log.wrong - {0}} != set() and set(learn.proxies['cycle']) == {cycle}

def test_ever_wrong_where_copies_replace_their_originals():
    learn = make_learner(lambda: coded_dls(train=Coded(first=1)), quiet_cb(select='ever_wrong', area=1., merge='replace', share=0.4))
    for cycle in (1, 2):
        log = WrongLog()
        learn.fit(2, 1e-3, cbs=log)
        wrong = {i-1 for i in log.wrong - {0}}
        assert (0 in log.seen) == (cycle == 2) and wrong
        assert set(learn.proxies['original']) <= wrong and len(learn.proxies) == min(9, len(wrong)), "a copy of an item that wasn't wrong"
        assert set(learn.proxies['cycle']) == {cycle} and list(learn.proxies['label']) == [str(i % 3) for i in learn.proxies['original']]

def test_ever_wrong_begins_anew_each_fit():
    learn = learnt()
    learn.fit(8, 0.05)
    first = set(learn.proxies['original'])
    cb = cb_of(learn)
    learn.remove_proxies()
    learn.add_cb(cb)
    log = WrongLog()
    learn.fit(1, 1e-5, cbs=log)
    assert set(learn.proxies['original']) == log.wrong and log.wrong < first

def test_ever_wrong_looks_at_its_candidates_only():
    train = Coded()
    learn, log = learnt(train=train), WrongLog()
    class Clear(Callback):
        order = 89
        def after_fit(self): train.reads.clear()
    learn.fit(6, 0.05, cbs=[log, Clear()])
    assert set(learn.proxies['original']) == log.wrong and len(log.wrong) < 24
    assert set(train.reads) - {0} <= log.wrong # Item 0 tells the type of the images

def test_ever_wrong_when_none_was():
    learn = learnt()
    learn.fit(25, 0.05)
    cb = cb_of(learn)
    learn.remove_proxies()
    learn.add_cb(cb)
    dls, log = learn.dls, WrongLog()
    learn.fit(1, 0., cbs=log)
    assert log.wrong == set(), "the network learnt too little for this test"
    assert learn.dls is dls and not len(learn.proxies) and last_of(learn)['proxies'] == 0

def test_ever_wrong_needs_a_fit():
    with pytest.raises(ValueError, match="ever_wrong.*call fit first"): learnt().proxy_attention_cb.make_proxies()

@pytest.mark.parametrize('mix', [MixUp, CutMix])
def test_ever_wrong_refuses_mixed_targets(learner, mix):
    learn = learner(quiet_cb(select='ever_wrong'))
    before = weights(learn.model)
    with pytest.raises(ValueError, match="select='ever_wrong'.*MixUp.*use select='wrong'"): learn.fit(1, LOW, cbs=mix())
    assert same_weights(weights(learn.model), before) and not Path('.proxies').exists()

@pytest.mark.parametrize('drop_last', [True, False])
def test_ever_wrong_refuses_indices_it_can_not_trust(drop_last):
    def skip(item):
        if int(item[0][0, 0, 0]) % 5 == 0: raise SkipItemException()
        return item
    learn = make_learner(lambda: coded_dls(drop_last=drop_last, after_item=skip), quiet_cb(select='ever_wrong'))
    with pytest.raises(ValueError, match="select='ever_wrong'.*skips items.*use select='wrong'"): learn.fit(2, LOW)
    assert not len(learn.proxies)

def test_ever_wrong_refuses_a_loader_used_by_somebody_else(learner):
    class Peek(Callback):
        def after_batch(self):
            if self.learn.training and self.learn.iter == 0: self.learn.dls.train.one_batch()
    learn = learner(quiet_cb(select='ever_wrong'))
    with pytest.raises(ValueError, match="select='ever_wrong'.*somebody else"): learn.fit(1, LOW, cbs=Peek())

def test_ever_wrong_from_files(learner):
    learn = learner(quiet_cb(select='ever_wrong'))
    dls = learn.dls
    learn.fit(1, 0.)
    assert copied_files(learn) and copied_files(learn) <= set(map(str, dls.train_ds.items))

def test_a_callback_for_one_fit_only(learner):
    "fastai takes a callback given to `fit` off again; its copies can still be removed"
    learn = learner(None)
    dls = learn.dls
    learn.fit(1, LOW, cbs=quiet_cb())
    assert len(learn.dls.train_ds) > len(dls.train_ds)
    learn.remove_proxies()
    assert learn.dls is dls
