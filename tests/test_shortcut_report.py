"""`learn.shortcut_report()` on squares whose colour tells the class: verdicts, patches, page."""
import shutil

import numpy as np
import pytest
from fastai.data.transforms import Normalize
from fastai.layers import ConvLayer
from fastai.learner import Learner
from fastai.vision.core import imagenet_stats
from fastai.vision.data import ImageDataLoaders
from PIL import Image
from torch import nn

from kit import quiet, same_weights, seed_all, weights
from proxy_attention.all import ProxyAttentionCB

COLOURS = {'<b>red': (220, 40, 40), 'blue': (40, 40, 220)}

def make_images(root):
    rng = np.random.default_rng(0)
    for split,n in (('train', 80), ('valid', 80)):
        for k in range(n):
            name = list(COLOURS)[k % 2]
            img = rng.integers(0, 90, (32, 32, 3), dtype=np.uint8)
            y,x = rng.integers(0, 26, 2)
            img[y:y+6, x:x+6] = COLOURS[name]
            (root/split/name).mkdir(parents=True, exist_ok=True)
            Image.fromarray(img).save(root/split/name/f'{k}.png')
    return root

def trained(root, cbs=None, epochs=8):
    seed_all()
    dls = ImageDataLoaders.from_folder(root, train='train', valid='valid', bs=20, num_workers=0, seed=0,
                                       batch_tfms=[Normalize.from_stats(*imagenet_stats)])
    body = nn.Sequential(ConvLayer(3, 8), ConvLayer(8, 16, stride=2))
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 2))
    learn = quiet(Learner(dls, nn.Sequential(body, head), cbs=cbs))
    if epochs: learn.fit_one_cycle(epochs, 1e-2)
    return learn

@pytest.fixture(scope='module')
def root(tmp_path_factory): return make_images(tmp_path_factory.mktemp('squares'))

@pytest.fixture(scope='module')
def learn(root): return trained(root)

@pytest.fixture(scope='module')
def report(learn): return learn.shortcut_report()

def test_the_place_of_the_square_is_needed(report):
    assert report.network.verdict.name == 'needed' and not report.found
    assert 'The network relies on one place' in str(report)
    c = report.network.curve.set_index('erased')
    assert c.loc[0.1, 'there'] < 0.6 < 0.9 < c.loc[0.1, 'elsewhere']

def test_patches_show_the_square(report):
    first = {g.name: g for g in reversed(report.groups) if g.origin == 'network'}
    red,blue = first['<b>red'].mean.mean((0, 1)), first['blue'].mean.mean((0, 1))
    assert red[0] > 1.3*red[2] and blue[2] > 1.3*blue[0]
    assert first['blue'].place == 'anywhere'

def test_nothing_of_the_learner_is_changed(learn):
    before, recorded = weights(learn.model), list(learn.recorder.values)
    learn.shortcut_report(scout='4 steps')
    assert same_weights(before, weights(learn.model)) and recorded == list(learn.recorder.values)
    assert learn.model.training is False or all(m.training for m in learn.model.modules())

def test_a_second_network_is_asked(learn, report):
    assert report.network.verdict.counts.second is None
    short,long = (learn.shortcut_report(scout=s).network.verdict for s in ('1 steps', 20))
    assert short.counts.second < long.counts.second
    assert short.name != 'shortcut' and long.name != 'needed'

def test_area(learn, report):
    assert learn.shortcut_report(area=0.03).network.verdict.counts.copy > report.network.verdict.counts.copy
    cb_area = trained_area(learn)
    assert cb_area.network.area == 0.03

def trained_area(learn):
    "The callback's area is taken"
    learn.add_cb(ProxyAttentionCB(area=0.03, verbose=False))
    try: return learn.shortcut_report(max_images=20)
    finally: learn.remove_cbs(learn._grab_cbs(ProxyAttentionCB))

def test_which_images(learn, report):
    some = learn.shortcut_report(max_images=30)
    assert len(some.network.seen.idxs) == 30 and len(report.network.seen.idxs) == 80
    other = learn.shortcut_report(max_images=30, seed=1)
    assert list(other.network.seen.idxs) != list(some.network.seen.idxs)
    train = learn.shortcut_report(ds_idx=0, max_images=30)
    assert train.doubts is None and 'has learnt' in train.doubts_text

def test_scouts_come_first(root):
    learn = trained(root, ProxyAttentionCB(scout='50%', probe=False, verbose=False))
    report = learn.shortcut_report()
    assert report.scout == learn.proxy_attention_cb.last_verdict
    assert str(report).startswith('Scouts, before training: ')

@pytest.mark.parametrize('cb', [None, dict(scout=None, select='all')]) # with live copies in dls.train, too
def test_duplicates(root, tmp_path, cb):
    own = tmp_path/'own'
    shutil.copytree(root, own)
    shutil.copy(own/'train'/'blue'/'1.png', own/'valid'/'blue'/'twin.png')
    learn = trained(own, None if cb is None else ProxyAttentionCB(path=tmp_path/'copies', verbose=False, **cb))
    assert cb is None or len(learn.proxies)
    report = learn.shortcut_report()
    assert [tuple(f[-8:] for f in p) for p in report.duplicates] == [('twin.png', 'ue/1.png')]

def test_page(report, tmp_path):
    page = report.save(tmp_path/'a'/'report.html').read_text()
    assert '<b>' not in page and '&lt;b&gt;red' in page
    assert 'src="http' not in page and '<script' not in page
    assert report.save(tmp_path/'b.html').read_text() == page

def test_save(learn, tmp_path):
    learn.shortcut_report(max_images=20, save=tmp_path/'page.html')
    assert (tmp_path/'page.html').is_file()

def test_figure(report):
    fig = report.plot()
    assert len(fig.axes) > 8 or len(fig.subfigs) == 2

def test_few_patches_are_no_cluster(report):
    assert min(g.of for g in report.groups) >= 5 and all(len(g.items) == g.n for g in report.groups)

def test_a_second_network_that_is_not_trained_is_said(learn):
    asked, silent = (str(learn.shortcut_report(scout=s, max_images=5)) for s in ('1 steps', None))
    assert 'No second network was trained' in asked and 'No second network' not in silent

def test_a_network_that_is_often_wrong_doubts_no_labels(root):
    report = trained(root, epochs=0).shortcut_report()
    assert report.doubts is None and 'too few to doubt labels' in report.doubts_text

def test_the_title_is_the_networks_own(learn, report, tmp_path):
    page = report.save(tmp_path/'page.html').read_text()
    assert '<h1>One place is relied on</h1>' in page
    assert "<h1>It can't be told" in learn.shortcut_report(max_images=5).save(tmp_path/'few.html').read_text().replace('&#x27;', "'")

def test_loaders_that_cannot_be_asked(learn):
    import torch
    from fastai.data.core import DataLoaders
    whole = learn.dls
    try:
        learn.dls = DataLoaders(whole.train, torch.utils.data.DataLoader(whole.valid_ds))
        with pytest.raises(TypeError, match="ds_idx=1: a loader of torch.* can't be asked"): learn.shortcut_report()
        learn.dls = DataLoaders(whole.train)
        with pytest.raises(ValueError, match='ds_idx=1: these DataLoaders have no validation set'): learn.shortcut_report()
    finally: learn.dls = whole

@pytest.mark.parametrize('bad, words', [
    (dict(save='.'), "save='.' is a folder"), (dict(save=True), 'save=True is no file name'), (dict(sav='x'), "Did you mean 'save'"),
    (dict(ds_idx=2), 'ds_idx=2'), (dict(area=0), 'area=0'), (dict(scout='10%'), 'give epochs'), (dict(scout='x'), 'scout='),
    (dict(max_images=0), 'max_images=0'), (dict(seed=-1), 'seed=-1')])
def test_bad_arguments(learn, bad, words):
    with pytest.raises((TypeError, ValueError), match=words): learn.shortcut_report(**bad)
