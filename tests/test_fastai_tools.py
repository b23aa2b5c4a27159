"""fastai's own tools with copies in the training loader: they speak of originals, and a learner that leaves needs nothing of ours."""
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from fastai.callback import schedule  # noqa: F401  (patches Learner)
from fastai.callback.core import Callback
from fastai.interpret import Interpretation
from fastai.vision import learner as vision_learning  # noqa: F401  (teaches plot_top_losses to draw images)
from fastai.vision import widgets
from fastai.vision.augment import Resize

from kit import SIDE, cb_of, fresh_process, logits_of, make_learner, quiet_cb, shapes_dls
from proxy_attention.callback import ProxyAttentionCB
from proxy_attention.dataloaders import ProxyDataset

LOW = 1e-3

@pytest.fixture(params=['add', 'replace'])
def copied(shapes, request):
    "A learner with copies of 10 of 27 images, beside their originals or in their place"
    learn = make_learner(lambda: shapes_dls(shapes), quiet_cb(select='low_confidence', share=0.4, merge=request.param))
    learn.user_dls = learn.dls
    learn.fit(1, LOW)
    assert len(learn.proxies) == 10
    return learn

@pytest.fixture
def cleaner(copied, monkeypatch):
    "As in a notebook, where IPython gives `display`"
    monkeypatch.setattr(widgets, 'display', lambda *args, **kwargs: None, raising=False)
    return widgets.ImageClassifierCleaner(copied)

def originals(learn): return [str(f) for f in learn.user_dls.train_ds.items]

def test_the_cleaner_offers_originals_only(copied, cleaner):
    offered = []
    for v in copied.dls.vocab:
        cleaner.dd_cats.value = v
        offered += [str(f) for f in cleaner.fns]
    assert len(offered) == len(set(offered)) and set(offered) == set(originals(copied))

def test_the_cleaner_deletes_what_the_user_marked(copied, cleaner):
    "And nothing else: an original that has a copy is offered once, with its own loss"
    first = copied.proxies['original'][0]
    cleaner.dd_cats.value = copied.proxies['label'][0]
    names = [str(f) for f in cleaner.fns]
    assert list(cleaner.delete()) == [] and names.count(first) == 1
    cleaner.iw.widget.children[names.index(first)].children[1].value = '<Delete>'
    assert [str(cleaner.fns[i]) for i in cleaner.delete()] == [first]

def test_predictions_of_the_training_set_are_of_originals(copied):
    preds, y = copied.get_preds(ds_idx=0)
    files = originals(copied)
    assert len(preds) == 27 and torch.allclose(preds, logits_of(copied.model, files).softmax(1), atol=1e-4)
    assert y.tolist() == [copied.dls.vocab.o2i[Path(f).parent.name] for f in files]

def test_interpretation_is_of_originals(copied):
    interp = Interpretation.from_learner(copied, ds_idx=0)
    losses, order = interp.top_losses()
    files = originals(copied)
    labels = torch.tensor([copied.dls.vocab.o2i[Path(f).parent.name] for f in files])
    own = torch.nn.functional.cross_entropy(logits_of(copied.model, files), labels, reduction='none')
    assert len(losses) == 27 and np.allclose(losses, own[order], atol=1e-4) and [str(f) for f in interp.dl.items] == files
    interp.plot_top_losses(9)

def test_predictions_of_what_is_drawn(copied):
    preds, y = copied.get_preds(dl=copied.dls.train)
    assert len(preds) == len(y) > 0

def test_a_callback_for_one_fit(shapes):
    learn = make_learner(lambda: shapes_dls(shapes))
    dls = learn.dls
    learn.fit(1, LOW, cbs=quiet_cb())
    n = len(learn.proxies)
    assert n > 0 and len(learn.dls.train_ds) == 27+n and {str(f) for f,_,_ in learn.dls.train_ds.copies} == set(learn.proxies['path'])
    assert not learn._grab_cbs(ProxyAttentionCB)
    learn.remove_proxies()
    assert learn.dls is dls and not len(learn.proxies)

def test_a_callback_that_is_taken_off_stops(copied):
    cb = cb_of(copied)
    copied.remove_cb(cb)
    before = list(copied.proxies['id'])
    copied.fit(1, LOW)
    assert list(copied.proxies['id']) == before and isinstance(copied.dls.train_ds, ProxyDataset)
    copied.remove_proxies()
    assert copied.dls is copied.user_dls and not len(copied.proxies)

code = '''import sys, warnings; warnings.simplefilter('ignore')
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] == 'proxy_attention': raise ImportError('there is no such library here')
sys.meta_path.insert(0, Refuse())
import fastai.callback.progress
from fastai.learner import load_learner
learn = load_learner('learner.pkl')
with learn.no_bar(), learn.no_logging(): print(*learn.predict(sys.argv[1])[2].tolist())'''

@pytest.mark.parametrize('scout', [None, '2 steps'])
def test_an_export_needs_nothing_of_ours(shapes, scout):
    dls = shapes_dls(shapes, item_tfms=Resize(SIDE, method='squish'))
    learn = make_learner(dls, quiet_cb(scout=scout, fill='context', scout_test=False))
    learn.fit(1, LOW)
    file, there = learn.proxies['original'][0], list(learn.cbs)
    probs = learn.predict(file)[2]
    learn.export(Path('learner.pkl').resolve())
    assert all(a is b for a,b in zip(learn.cbs, there)) and len(learn.proxies) and learn.proxy_attention_cb
    done = fresh_process(code, file, env={k: v for k,v in os.environ.items() if k != 'PYTHONPATH'})
    assert done.returncode == 0, done.stderr
    assert np.allclose([float(v) for v in done.stdout.split()], probs, atol=1e-5)

def test_an_export_holds_a_callback_that_does_nothing(copied):
    import pickle
    assert type(pickle.loads(pickle.dumps(cb_of(copied)))) is Callback

def test_the_names_of_all():
    "About twenty, and none that fastai or fastcore has taken"
    import fastai.vision.all as vision
    import fastcore.all as core

    from proxy_attention import all as ours
    assert len(ours.__all__) == len(set(ours.__all__)) <= 20 and all(hasattr(ours, n) for n in ours.__all__)
    assert not {n for n in ours.__all__ if hasattr(vision, n) or hasattr(core, n)}
    assert {'ProxyAttentionCB', 'Policy', 'presets', 'audit', 'purge', 'saliency_maps', 'selectors', 'fills'} <= set(ours.__all__)
