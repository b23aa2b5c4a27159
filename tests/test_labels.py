"""Which labels are probably wrong: folds, networks that haven't seen what they judge, cleanlab's rule, and what the gate is worth on planted errors."""
import random
import sys

import numpy as np
import pytest
import torch
from fastai.callback.core import Callback
from fastai.callback.data import WeightedDL
from fastai.data.core import DataLoaders, TfmdDL
from fastai.learner import Learner
from fastai.losses import CrossEntropyLossFlat
from fasttransform import ItemTransform
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from kit import coded_dls, Coded, make_learner, quiet_cb, seed_all, shapes_dls, tiny_model
from proxy_attention.callback import ProxyAttentionCB
from proxy_attention import labels as lab
from proxy_attention.labels import find_label_errors, fold_indices, fold_probs, fold_seed, out_of_fold_probs, plant_label_errors, rules, train_targets

quick = settings(deadline=None, max_examples=40, derandomize=True)

def small(dls): return Learner(dls, tiny_model(), loss_func=CrossEntropyLossFlat())


# -- the rule -------------------------------------------------------------------------------------------------------------------------------------

def sure(said, p=.9, c=4):
    "Probabilities of networks that say `said`"
    return np.eye(c)[said]*(p - (1-p)/(c-1)) + (1-p)/(c-1)

def test_what_disagrees_is_named_least_credible_first():
    pytest.importorskip('cleanlab')
    said = np.repeat(np.arange(4), 20)
    given_ = said.copy()
    given_[[3, 30, 70]] = [1, 2, 0]
    probs = sure(said)
    probs[3], probs[30], probs[70] = [.93, .05, .01, .01], [.02, .93, .03, .02], [.01, .03, .02, .94] # of their labels: .05, .03, .01
    assert find_label_errors(probs, given_).tolist() == [70, 30, 3]
    assert find_label_errors(sure(said), said).tolist() == []
    assert find_label_errors(torch.tensor(probs), torch.tensor(given_)).tolist() == find_label_errors(probs, given_.tolist()).tolist()

def test_as_cleanlab_says():
    filter_ = pytest.importorskip('cleanlab.filter')
    rng = np.random.default_rng(0)
    probs = rng.dirichlet([.4]*5, 300)
    targets = np.array([rng.choice(5, p=p) for p in probs])
    made = {}
    for rule in rules:
        made[rule] = find_label_errors(probs, targets, rule)
        assert made[rule].tolist() == filter_.find_label_issues(targets, probs, filter_by=rule, return_indices_ranked_by='self_confidence').tolist()
        own = probs[made[rule], targets[made[rule]]]
        assert (np.diff(own) >= 0).all()
    assert len({tuple(v) for v in made.values()}) > 3, "the rules differ"

def test_a_class_without_items():
    pytest.importorskip('cleanlab')
    said = np.repeat([0, 1, 3], 10)
    given_ = said.copy(); given_[4] = 3
    assert find_label_errors(sure(said), given_).tolist() == [4]

@pytest.mark.parametrize('probs,targets,error,words', [
    (np.eye(3)[:2]*3, [0, 1], ValueError, 'softmax'), (np.eye(3), [0, 1], ValueError, '2 entries for 3'), (np.eye(3), [0, 1, 3], ValueError, '0 to 2'),
    (np.eye(3)[0], [0], ValueError, 'dimensions'), (np.full((2, 2), np.nan), [0, 1], ValueError, 'finite'), (np.eye(2), [.5, 1.], TypeError, 'class indices')])
def test_what_can_not_be_judged(probs, targets, error, words):
    pytest.importorskip('cleanlab')
    with pytest.raises(error, match=words): find_label_errors(probs, targets)

def test_an_unknown_rule():
    pytest.importorskip('cleanlab')
    with pytest.raises(ValueError, match="rule='bot'.*'both'"): find_label_errors(np.eye(2), [0, 1], 'bot')

def test_without_cleanlab(monkeypatch):
    monkeypatch.setitem(sys.modules, 'cleanlab.filter', None)
    with pytest.raises(ImportError, match=r"pip install 'proxy_attention\[labels\]'"): find_label_errors(np.eye(2), [0, 1])


# -- folds ----------------------------------------------------------------------------------------------------------------------------------------

@quick
@given(st.lists(st.integers(4, 12), min_size=2, max_size=5), st.integers(2, 4), st.integers(0, 5))
def test_each_item_is_in_one_fold_and_classes_in_equal_parts(sizes, folds, seed):
    targets = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)), sizes))
    parts = fold_indices(targets, folds, seed=seed)
    assert len(parts) == folds and sorted(np.concatenate(parts)) == list(range(len(targets)))
    for c,n in enumerate(sizes): assert all(n//folds <= (targets[p] == c).sum() <= -(-n//folds) for p in parts)

@quick
@given(st.integers(4, 10), st.integers(2, 4), st.integers(0, 5))
def test_groups_stay_together(n_groups, folds, seed):
    groups = np.random.default_rng(seed).integers(0, n_groups, 60)
    groups[:n_groups] = range(n_groups)
    parts = fold_indices(np.arange(60) % 3, folds, [f'signer {g}' for g in groups], seed)
    assert sorted(np.concatenate(parts)) == list(range(60))
    assert sum(len(set(groups[p])) for p in parts) == n_groups

def test_the_seed_decides_and_the_number_of_folds():
    targets = np.arange(40) % 4
    same = lambda a,b: all(np.array_equal(x, y) for x,y in zip(a, b))
    assert same(fold_indices(targets), fold_indices(targets)) and not same(fold_indices(targets), fold_indices(targets, seed=1))
    assert len(fold_indices(targets)) == 5 and len(fold_indices(targets, 4)) == 4 and fold_seed(0, 0) != fold_seed(0, 1) != fold_seed(1, 1)

@pytest.mark.parametrize('kwargs,error,words', [
    (dict(targets=[0, 1]*5, folds=1), ValueError, 'folds=1'), (dict(targets=[0, 1]*5, folds=2.5), ValueError, 'folds=2.5'), (dict(targets=[0]*9 + [1], folds=3), ValueError, 'folds=3: the smallest class has only 1'),
    (dict(targets=[0, 1]*5, folds=3, groups=['a', 'b']*5), ValueError, 'folds=3: there are only 2 groups'), (dict(targets=[0, 1]*5, folds=2, groups=['a']), ValueError, 'groups has 1'),
    (dict(targets=np.eye(4), folds=2), TypeError, 'one label')])
def test_bad_folds(kwargs, error, words):
    with pytest.raises(error, match=words): fold_indices(**kwargs)


# -- networks of folds ----------------------------------------------------------------------------------------------------------------------------

def test_targets_of_every_kind_of_loader(shapes):
    files = shapes_dls(shapes)
    assert train_targets(files).tolist() == [int(y) for _,y in files.train_ds]
    assert train_targets(coded_dls()).tolist() == [i % 3 for i in range(24)]
    class Several(Coded):
        def __init__(self, *args):
            super().__init__(*args)
            self.items = [(x, torch.eye(3)[c]) for x,c in self.items]
    with pytest.raises(TypeError, match='several'): train_targets(coded_dls(Several()))

class Noted(Callback):
    "Which items training and validation batches held: their first pixel"
    def __init__(self, seen): self.seen = seen
    def before_batch(self): self.seen['train' if self.training else 'valid'] |= set((self.xb[0][:, 0, 0, 0]*255).round().int().tolist())

def test_a_network_never_sees_what_it_is_asked_about():
    dls, seen = coded_dls(drop_last=False), []
    def make(dls):
        seen.append(dict(train=set(), valid=set()))
        return Learner(dls, tiny_model(), loss_func=CrossEntropyLossFlat(), cbs=Noted(seen[-1]))
    probs = out_of_fold_probs(dls, make, folds=3, epochs=1, lr=.01)
    parts = fold_indices(train_targets(dls), 3)
    assert probs.shape == (24, 3) and np.allclose(probs.sum(1), 1, atol=1e-5) and len(seen) == 3
    for part,s in zip(parts, seen):
        assert s['train'] == set(range(24)) - set(part.tolist()), "all of the rest, and nothing of the fold"
        assert s['valid'] == set(range(100, 109)), "validation is the user's own"

def test_probabilities_are_the_networks_own(shapes):
    "As a plain evaluation of the same network gives them, through the transforms of validation"
    from kit import logits_of
    made, dls = [], shapes_dls(shapes)
    held = fold_indices(train_targets(dls), 3)[1]
    probs = fold_probs(dls, lambda dls: made.append(small(dls)) or made[-1], held, epochs=2, lr=.01)
    assert np.allclose(probs, logits_of(made[0].model, [dls.train_ds.items[i] for i in held]).softmax(1).numpy(), atol=1e-5)

def test_same_seed_same_probabilities_and_nothing_else_changes(shapes):
    dls = shapes_dls(shapes)
    train, order = dls.train, dls.train.rng.getstate()
    def run(**kwargs):
        random.random(), torch.rand(3) # whatever came before
        return out_of_fold_probs(dls, small, **dict(folds=2, epochs=1, lr=.01) | kwargs)
    a = run()
    seed_all(5)
    before = random.getstate(), torch.get_rng_state()
    random.seed(7)
    b = run()
    assert np.array_equal(a, b) and dls.train is train and train.rng.getstate() == order and len(dls.train_ds) == 27
    seed_all(5)
    lab.out_of_fold_probs(dls, small, folds=2, epochs=1)
    assert random.getstate() == before[0] and torch.equal(torch.get_rng_state(), before[1])
    for change in (dict(folds=3), dict(epochs=2), dict(lr=.1), dict(lr=None), dict(seed=1), dict(freeze_epochs=1), dict(groups=[f'{i//3}' for i in range(27)])):
        assert not np.array_equal(run(**change), a), f"{change} changes nothing"

def test_make_learner_decides_the_network(shapes):
    dls = shapes_dls(shapes)
    fixed = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 3))
    a,b = (fold_probs(dls, lambda dls: Learner(dls, m, loss_func=CrossEntropyLossFlat()), [0, 1], epochs=1) for m in (tiny_model(), fixed)) # noqa: B023
    assert not np.allclose(a, b)

def test_no_copies_are_made_in_the_folds(shapes, tmp_path):
    dls = shapes_dls(shapes)
    made = []
    def make(dls):
        made.append(make_learner(dls, quiet_cb(select='all', path=tmp_path/'copies')))
        return made[-1]
    fold_probs(dls, make, [0, 1], epochs=1)
    assert not (tmp_path/'copies').exists() and not made[0]._grab_cbs(ProxyAttentionCB)

def test_a_fold_smaller_than_a_batch_is_still_trained():
    dls = coded_dls(bs=20, drop_last=True)
    seen = []
    class Count(Callback):
        def after_step(self): seen.append(len(self.xb[0]))
    fold_probs(dls, lambda dls: Learner(dls, tiny_model(), loss_func=CrossEntropyLossFlat(), cbs=Count()), list(range(12)), epochs=1)
    assert seen == [12] and dls.train.bs == 20

class as_floats(ItemTransform):
    def encodes(self, b): return b[0].float()/255, b[1]

def test_weights_of_a_weighted_loader():
    w, seen = np.arange(24), dict(train=set(), valid=set())
    train = WeightedDL(Coded(), wgts=w, bs=8, shuffle=True, after_batch=as_floats())
    dls = DataLoaders(train, TfmdDL(Coded(9, 1, 100), bs=8, after_batch=as_floats()))
    own = lab._without(dls, lab.training_set(dls), [1, 2, 23])
    left = np.setdiff1d(np.arange(24), [1, 2, 23])
    assert np.allclose(own.train.wgts, left/left.sum()) and own.train.n == 21 and np.allclose(train.wgts, w/w.sum())
    fold_probs(dls, lambda dls: Learner(dls, tiny_model(), loss_func=CrossEntropyLossFlat(), cbs=Noted(seen)), [1, 2, 23], epochs=3)
    assert not seen['train'] & {0, 1, 2, 23} and len(seen['train']) > 5, "weight 0 is never drawn"

def test_items_that_can_not_be_read(own_shapes):
    dls = shapes_dls(own_shapes)
    dls.train_ds.items[0].write_bytes(b'broken')
    with pytest.raises(OSError, match="1 training items can't be read"): fold_probs(dls, small, [0, 1], epochs=1)

@pytest.mark.parametrize('kwargs', [dict(epochs=0), dict(epochs=1.5), dict(freeze_epochs=-1), dict(seed=-1)], ids=str)
def test_bad_numbers(shapes, kwargs):
    with pytest.raises(ValueError, match=next(iter(kwargs))): fold_probs(shapes_dls(shapes), small, [0], **kwargs)


# -- planted errors -------------------------------------------------------------------------------------------------------------------------------

@quick
@given(st.integers(2, 6), st.integers(1, 80), st.floats(0, 1), st.integers(0, 9))
def test_planted_errors_are_errors(classes, n, share, seed):
    targets = np.arange(n) % classes
    noisy,at = plant_label_errors(targets, share, seed, classes)
    assert ((noisy != targets).nonzero()[0] == at).all() and len(at) == round(share*n) and noisy.min() >= 0 and noisy.max() < classes
    assert np.array_equal(noisy, plant_label_errors(targets, share, seed, classes)[0])

def test_arguments_of_planted_errors():
    t = np.arange(100) % 4
    assert len(plant_label_errors(t)[1]) == 5 and not np.array_equal(plant_label_errors(t)[1], plant_label_errors(t, seed=1)[1])
    assert plant_label_errors(t, 1., n_classes=9)[0].max() > 3 >= plant_label_errors(t, 1.)[0].max()
    with pytest.raises(ValueError, match='share=2'): plant_label_errors(t, 2)
    with pytest.raises(ValueError, match='n_classes=1'): plant_label_errors(t, n_classes=1)

def test_the_gate_finds_planted_errors():
    "Colours that any network can tell apart: it names nearly all of the planted errors and little else"
    pytest.importorskip('cleanlab')
    class Shapes(Coded):
        def __init__(self, n, noisy=None, **kw):
            super().__init__(n, **kw)
            if noisy is not None: self.items = [(x, int(y)) for (x,_),y in zip(self.items, noisy)]
    noisy,at = plant_label_errors(np.arange(150) % 3)
    dls = coded_dls(Shapes(150, noisy), bs=10)
    named = find_label_errors(out_of_fold_probs(dls, small, folds=3, epochs=6, lr=.03), noisy)
    both = len(np.intersect1d(named, at))
    assert both >= .8*len(at) and both >= .7*len(named)
