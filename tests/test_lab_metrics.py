"""Figures of merit against scikit-learn's, against hand-computed ones and against what must hold of any; costs against torchvision's documentation."""
import json
import math
import mmap

import numpy as np
import pytest
import sklearn.metrics as sk
import timm
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from torch import nn

from proxy_attention.lab.metrics import classification as lab
from proxy_attention.lab.metrics.classification import CostMeter, calibration_error, classification_report, copies_mb
from proxy_attention.lab.metrics.classification import model_cost, reliability, reset_peak_ram, time_to_target
from proxy_attention.lab.metrics.maps import map_quality


def case(n=200, c=4, seed=0, sharp=1.5):
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, c, n)
    probs = torch.tensor(rng.normal(0, sharp, (n, c)) + np.eye(c)[targets]).softmax(1).numpy()
    return probs, targets, [f'class {i}' for i in range(c)]

def leaves(v): return [x for w in (v.values() if isinstance(v, dict) else v) for x in leaves(w)] if isinstance(v, (dict, list)) else [v]


# -- oracles -------------------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('c', [2, 4, 10])
def test_agrees_with_scikit_learn(c):
    probs,targets,vocab = case(c=c)
    report,preds = classification_report(probs, targets, vocab), probs.argmax(1)
    assert report['n'] == 200
    assert report['accuracy'] == pytest.approx(sk.accuracy_score(targets, preds), abs=0)
    for k,f in (('precision', sk.precision_score), ('recall', sk.recall_score), ('f1', sk.f1_score)):
        assert report[k] == pytest.approx(f(targets, preds, average='macro'), abs=1e-12)
        assert [report['per_class'][v][k] for v in vocab] == pytest.approx(f(targets, preds, average=None).tolist(), abs=1e-12)
    assert [report['per_class'][v]['n'] for v in vocab] == np.bincount(targets, minlength=c).tolist()
    assert report['confusion'] == sk.confusion_matrix(targets, preds).tolist()
    assert report['nll'] == pytest.approx(-np.log(probs[np.arange(200), targets]).mean(), abs=1e-9)

def test_calibration_error_by_hand():
    # ten predictions at 0.9, seven of them right; ten at 0.6, six right; two at 0.62, in the bin of 0.6 (0.6 < edge 0.6667), none right
    conf = np.r_[np.full(10, .9), np.full(10, .61), np.full(2, .62)]
    right = np.r_[np.arange(10) < 7, np.arange(10) < 6, np.zeros(2, bool)]
    probs = np.stack([conf, 1-conf], 1)
    report = classification_report(probs, np.where(right, 0, 1), ['a', 'b'])
    mean = (10*.61 + 2*.62)/12
    assert report['ece'] == pytest.approx(10/22*.2 + 12/22*(mean - .5))
    rows = [(r['n'], r['confidence'], r['accuracy']) for r in report['reliability'] if r['n']]
    assert rows == [(12, pytest.approx(mean), .5), (10, pytest.approx(.9), pytest.approx(.7))]
    coarse = reliability(conf, right, bins=1)
    assert calibration_error(coarse) == pytest.approx(conf.mean() - 13/22) and len(coarse) == 1

def test_a_bin_holds_its_upper_edge():
    rows = reliability(np.array([.5, .51, 1., .2]), np.array([True, False, True, True]), bins=2)
    assert [r['n'] for r in rows] == [2, 2] and rows[0]['confidence'] == pytest.approx(.35)
    assert calibration_error(rows) == pytest.approx(.5*(1 - .35) + .5*abs(.755 - .5))

def test_confidence_by_hand():
    probs = [[.8, .2], [.4, .6], [.95, .05], [.7, .3]]
    report = classification_report(probs, [0, 1, 0, 1], 'ab')
    assert report['confidence_right'] == pytest.approx((.8 + .6 + .95)/3) and report['confidence_wrong'] == pytest.approx(.7)
    assert {k: (v['accuracy'], v['share']) for k,v in report['accuracy_at'].items()} == {
        '0.5': (.75, 1.), '0.7': (pytest.approx(2/3), .75), '0.8': (1., .5), '0.9': (1., .25), '0.95': (1., .25)}

def test_groups_by_hand():
    probs = np.eye(2)[[0, 0, 1, 1, 1]]
    report = classification_report(probs, [0, 1, 1, 1, 1], 'ab', groups=['x', 'x', 'y', 'y', 'z'])
    assert report['per_group'] == {'x': dict(accuracy=.5, n=2), 'y': dict(accuracy=1., n=2), 'z': dict(accuracy=1., n=1)}
    assert report['worst_group_accuracy'] == .5
    assert 'per_group' not in classification_report(probs, [0, 1, 1, 1, 1], 'ab')

def test_perfect_and_worst():
    targets = np.arange(30) % 3
    best = classification_report(np.eye(3)[targets], targets, 'abc', groups=targets)
    assert [best[k] for k in ('accuracy', 'precision', 'recall', 'f1', 'ece', 'confidence_right', 'confidence_wrong', 'worst_group_accuracy')] == [1, 1, 1, 1, 0, 1, None, 1]
    assert best['nll'] == pytest.approx(0, abs=1e-9)
    worst = classification_report(np.eye(3)[(targets + 1) % 3], targets, 'abc', groups=targets)
    assert [worst[k] for k in ('accuracy', 'precision', 'recall', 'f1', 'ece', 'confidence_right', 'confidence_wrong', 'worst_group_accuracy')] == [0, 0, 0, 0, 1, None, 1, 0]
    assert math.isfinite(worst['nll']) and worst['nll'] > 10

def test_classes_that_do_not_occur():
    probs = np.eye(4)[[0, 1, 1, 0]]
    report = classification_report(probs, [0, 1, 1, 1], 'abcd')
    assert report['per_class']['d'] == dict(precision=0, recall=0, f1=0, n=0) and np.shape(report['confusion']) == (4, 4)
    assert report['recall'] == pytest.approx((1 + 2/3)/2) # over the two that do
    assert classification_report(np.ones((3, 1)), [0, 0, 0], ['only'])['nll'] == 0

def test_as_sure_as_right():
    "A network that tells the true probabilities is calibrated; one that is twice as sure is not"
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 1, (20_000, 3))
    probs = torch.tensor(logits).softmax(1).numpy()
    targets = np.array([rng.choice(3, p=p) for p in probs])
    assert classification_report(probs, targets, 'abc')['ece'] < .02 < .1 < classification_report(torch.tensor(3*logits).softmax(1), targets, 'abc')['ece']


# -- what must hold of any -----------------------------------------------------------------------------------------------------------------

@st.composite
def predictions(draw):
    c,n = draw(st.integers(1, 5)), draw(st.integers(1, 30))
    raw = draw(npst.arrays(np.float64, (n, c), elements=st.floats(0, 1))) + 1e-6
    if draw(st.booleans()): raw = np.eye(c)[raw.argmax(1)] # all or nothing
    return raw/raw.sum(1, keepdims=True), np.array(draw(st.lists(st.integers(0, c-1), min_size=n, max_size=n))), [f'c{i}' for i in range(c)]

@given(predictions(), st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_properties(predicted, random):
    probs,targets,vocab = predicted
    groups = [f'g{i % 3}' for i in range(len(targets))]
    report = classification_report(probs, targets, vocab, groups)
    assert json.loads(json.dumps(report, allow_nan=False)) == report # plain, finite, the same when read back
    confusion = np.array(report['confusion'])
    assert confusion.sum() == report['n'] == len(targets) and report['accuracy'] == pytest.approx(np.trace(confusion)/confusion.sum())
    assert [v['n'] for v in report['per_class'].values()] == confusion.sum(1).tolist()
    assert all(0 <= report[k] <= 1 for k in ('accuracy', 'precision', 'recall', 'f1', 'ece', 'worst_group_accuracy')) and report['nll'] >= 0
    assert report['worst_group_accuracy'] <= report['accuracy'] + 1e-12
    assert sum(g['n']*g['accuracy'] for g in report['per_group'].values()) == pytest.approx(report['accuracy']*len(targets))
    shares = [v['share'] for v in report['accuracy_at'].values()]
    assert shares == sorted(shares, reverse=True)
    order = list(range(len(targets)))
    random.shuffle(order)
    again = classification_report(probs[order], targets[order], vocab, [groups[i] for i in order])
    assert leaves(again) == pytest.approx(leaves(report), abs=1e-9)

def test_size_does_not_grow_with_the_data():
    sizes = [len(leaves(classification_report(*case(n)))) for n in (10, 1000)]
    assert sizes[0] == sizes[1]

def test_takes_tensors_arrays_and_lists():
    probs,targets,vocab = case(20)
    expected = classification_report(probs, targets, vocab)
    assert classification_report(probs.tolist(), targets.tolist(), vocab) == expected
    assert classification_report(torch.tensor(probs, requires_grad=True), torch.tensor(targets), vocab) == expected
    assert classification_report(torch.tensor(probs).bfloat16(), torch.tensor(targets), vocab)['accuracy'] == pytest.approx(expected['accuracy'], abs=.1)
    before = probs.copy()
    classification_report(probs, targets, vocab)
    assert np.array_equal(probs, before)

bad_reports = [(dict(probs=[[2., -1.]]), ValueError, 'softmax'), (dict(probs=[[.3, .3]]), ValueError, 'sum of 1'), (dict(probs=[[float('nan'), 1.]]), ValueError, 'diverged'),
               (dict(probs=[.5, .5]), ValueError, r'probs must have 2 dimensions, got shape \(2,\)'), (dict(probs=[[.5, .5], [1.]]), ValueError, 'differ in length'),
               (dict(probs=np.zeros((0, 2))), ValueError, 'empty'), (dict(probs=[['a', 'b']]), TypeError, 'numbers'),
               (dict(targets=[0, 1]), ValueError, '2 entries for 1 rows'), (dict(targets=[2]), ValueError, '0 to 1'), (dict(targets=[-1]), ValueError, '0 to 1'),
               (dict(targets=[.5]), TypeError, 'class indices'), (dict(vocab=['a']), ValueError, '1 names for 2 columns'), (dict(vocab=['a', 'a']), ValueError, 'twice')]

@pytest.mark.parametrize('args,error,match', bad_reports)
def test_bad_reports(args, error, match):
    with pytest.raises(error, match=match): classification_report(**dict(probs=[[.4, .6]], targets=[1], vocab=['a', 'b']) | args)


# -- maps ----------------------------------------------------------------------------------------------------------------------------------

def test_map_quality_by_hand():
    maps,masks = torch.zeros(3, 2, 2), torch.zeros(3, 2, 2, 2)
    maps[0] = torch.tensor([[1., 2.], [5., 0.]])
    maps[1] = torch.tensor([[4., 0.], [0., 0.]])
    masks[:, 0, 0] = 1 # the upper row
    masks[:, 1, 1, 0] = 1 # one pixel
    got = map_quality(maps, masks, ['top', 'dot'])
    assert got == dict(n=3, empty_maps=1, on_top=pytest.approx((3/8 + 1)/2), hit_top=.5, area_top=.5, on_dot=pytest.approx(5/16), hit_dot=.5, area_dot=.25)
    assert map_quality(maps.numpy(), masks.bool().numpy(), ['top', 'dot']) == got
    assert map_quality(10*maps, masks, ['top', 'dot']) == got # the scale says nothing
    none = map_quality(0*maps, masks, ['top', 'dot'])
    assert none == dict(n=3, empty_maps=3, on_top=None, hit_top=None, area_top=None, on_dot=None, hit_dot=None, area_dot=None)
    assert json.loads(json.dumps(got)) == got

@given(npst.arrays(np.float64, (4, 3, 5), elements=st.floats(0, 1e3)), npst.arrays(bool, (4, 3, 5)))
def test_shares_of_a_mask_and_its_complement_are_one(maps, mask):
    got = map_quality(maps, np.stack([mask, ~mask], 1), ['a', 'b'])
    if got['empty_maps'] == 4: assert got['on_a'] is None
    else:
        for k in ('on', 'hit', 'area'): assert 0 <= got[f'{k}_a'] <= 1 + 1e-9 and got[f'{k}_a'] + got[f'{k}_b'] == pytest.approx(1)

@pytest.mark.parametrize('args', [dict(maps=torch.ones(4, 4)), dict(masks=torch.ones(2, 3, 4, 4)), dict(names=['a', 'b'])])
def test_maps_and_masks_of_different_shapes(args):
    with pytest.raises(ValueError, match='masks of shape'): map_quality(**dict(maps=torch.ones(2, 4, 4), masks=torch.ones(2, 1, 4, 4), names=['a']) | args)


# -- cost ----------------------------------------------------------------------------------------------------------------------------------

documented = ['resnet18', 'efficientnet_b0', 'vit_b_16', 'swin_t', 'convnext_tiny']

@pytest.mark.parametrize('name', documented)
def test_multiply_adds_are_the_documented_ones(name):
    "torchvision's documentation says them, in billions with three decimals; attention included"
    with torch.device('meta'): cost = model_cost(torchvision.models.get_model(name), 224)
    meta = torchvision.models.get_model_weights(name).DEFAULT.meta
    assert cost['multiply_adds']/1e9 == pytest.approx(meta['_ops'], abs=6e-4) and cost['parameters'] == meta['num_params']

def test_multiply_adds_by_hand():
    model = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.Flatten(), nn.Linear(5*6*6, 7))
    n = 5*3*9 + 5 + 7*180 + 7
    assert model_cost(model, 6) == dict(parameters=n, trainable=n, multiply_adds=6*6*5*3*9 + 180*7)

def test_fused_attention_is_counted():
    "Four times the tokens: the attention's products are 16 times as many, all else four times"
    def make(size): return timm.models.VisionTransformer(size, 16, embed_dim=64, depth=1, num_heads=2, num_classes=0, class_token=False, global_pool='avg')
    a,b = model_cost(make(32), 32)['multiply_adds'], model_cost(make(64), 64)['multiply_adds']
    tokens = 4
    assert b - 4*a == 2*64*(16*tokens**2 - 4*tokens**2)

def test_trainable():
    model = torchvision.models.resnet18(num_classes=4)
    for p in model.parameters(): p.requires_grad_(False)
    for p in model.fc.parameters(): p.requires_grad_(True)
    cost = model_cost(model, 64)
    assert cost['trainable'] == 512*4 + 4 and cost['parameters'] == sum(p.numel() for p in model.parameters())

@pytest.mark.parametrize('make', [lambda: torchvision.models.resnet18(), lambda: torchvision.models.VisionTransformer(32, 16, 1, 2, 8, 8, dropout=.5)])
def test_no_footprint(make):
    model = make().train()
    list(model.modules())[-1].eval()
    before,modes,rng = {k: v.clone() for k,v in model.state_dict().items()}, [m.training for m in model.modules()], torch.get_rng_state()
    fast = torch.backends.mha.get_fastpath_enabled()
    model_cost(model, 32)
    assert all(torch.equal(v, before[k]) for k,v in model.state_dict().items()) and [m.training for m in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), rng) and torch.backends.mha.get_fastpath_enabled() == fast
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules()) and all(p.grad is None for p in model.parameters())

def test_no_footprint_after_an_error():
    fast = torch.backends.mha.get_fastpath_enabled()
    model = torchvision.models.vgg11(num_classes=2, init_weights=False).train()
    with pytest.raises(RuntimeError): model_cost(model, 8)
    assert torch.backends.mha.get_fastpath_enabled() == fast and model.training

def test_half_precision(): assert model_cost(nn.Conv2d(3, 2, 1).bfloat16(), 4)['multiply_adds'] == 3*2*16


# -- time, memory, disk --------------------------------------------------------------------------------------------------------------------

rows = [dict(accuracy=a, seconds_train=s) for a,s in ((.3, 1.), (.2, 2.), (.8, 4.), (.6, 8.))]

def test_time_to_target():
    assert time_to_target(rows, .8) == dict(epochs=3, seconds=7.)
    assert time_to_target(rows, .3) == dict(epochs=1, seconds=1.) and time_to_target(rows, .81) == time_to_target([], 0) == dict(epochs=None, seconds=None)

@given(st.lists(st.floats(0, 1), max_size=12), st.floats(0, 1), st.floats(0, 1))
def test_a_higher_target_takes_no_less(accuracies, a, b):
    low,high = (time_to_target([dict(accuracy=x, seconds_train=1.) for x in accuracies], t) for t in sorted((a, b)))
    assert high['epochs'] is None or low['epochs'] <= high['epochs']
    assert low['epochs'] == low['seconds']

def test_the_copies_size_without_their_manifest(tmp_path):
    "A run that was killed lists some copies twice"
    (tmp_path/'a.png').write_bytes(b'1'*3000)
    (tmp_path/'deeper').mkdir()
    (tmp_path/'deeper'/'b.jpg').write_bytes(b'1'*1000)
    for lines in (1, 2):
        (tmp_path/'manifest.jsonl').write_text('{}\n'*lines)
        assert copies_mb(tmp_path) == copies_mb(str(tmp_path)) == 0.004 and copies_mb(tmp_path/'nowhere') == 0

def test_cost_meter():
    row = CostMeter().row()
    assert row['peak_ram_mb'] > 50 and json.loads(json.dumps(row, allow_nan=False)) == row
    if not torch.cuda.is_available(): assert row['peak_gpu_allocated_mb'] is row['peak_gpu_reserved_mb'] is None

def test_peak_of_a_stage():
    "A stage's peak is its own: memory that an earlier one held and gave back doesn't count"
    if not reset_peak_ram(): pytest.skip("this system doesn't let the mark be set back")
    meter = CostMeter()
    before = meter.row()['peak_ram_mb']
    # Fresh pages from the system: an array may get pages that the allocator kept, and the process wouldn't grow
    with mmap.mmap(-1, 200*2**20) as held:
        for page in range(0, len(held), mmap.PAGESIZE): held[page] = 1
        during = meter.row()
    assert during['peak_ram_mb'] > before + 150 and CostMeter().row()['peak_ram_mb'] < during['peak_ram_mb'] - 100 and during['peak_ram_of'] == 'stage'

def test_where_the_mark_cannot_be_set_back(monkeypatch):
    monkeypatch.setattr(lab, 'reset_peak_ram', lambda: False)
    monkeypatch.setattr(lab, 'peak_ram', lambda: 123.)
    assert {k: v for k,v in CostMeter().row().items() if 'ram' in k} == dict(peak_ram_mb=123., peak_ram_of='process')
    monkeypatch.setattr(lab, 'peak_ram', lambda: float('nan')) # Windows
    assert CostMeter().row()['peak_ram_mb'] is None

def test_gpu_figures(monkeypatch):
    reset = []
    for name,value in (('is_available', lambda: True), ('device_count', lambda: 2), ('reset_peak_memory_stats', reset.append),
                       ('max_memory_allocated', lambda d: (3 + d)*2**20), ('max_memory_reserved', lambda d: (7 - d)*2**20)):
        monkeypatch.setattr(torch.cuda, name, value)
    row = CostMeter().row()
    assert (row['peak_gpu_allocated_mb'], row['peak_gpu_reserved_mb']) == (4, 7) and reset == [0, 1]
