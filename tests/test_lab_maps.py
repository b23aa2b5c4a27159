"""Maps judged: by hand, against SciPy and closed forms, and what must hold of any map; the networks are left as they were."""
import json

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from torch import nn

from studies import map_agreement as study
from studies.map_agreement import all_maps, best_iou, localisation, map_agreement, rank_correlation
from studies.map_checks import blanks, blurred, draw_maps, faithfulness, randomize_parameters
from proxy_attention.gallery import overlay_heatmap
from studies.map_checks import parameter_layers, pixel_ranks, randomisation_check
from proxy_attention.lab.metrics.maps import map_quality
from proxy_attention.lab.models.small import small_cnn, small_vit
from proxy_attention.saliency import method_layer, saliency_maps

quick = settings(max_examples=30, deadline=None, derandomize=True)
some_maps = npst.arrays(np.float32, st.tuples(st.integers(1, 3), st.integers(2, 6), st.integers(2, 6)), elements=st.floats(0, 1, width=32))

def rand(*shape, seed=0): return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))

def plain(v):
    assert json.loads(json.dumps(v, allow_nan=False)) == v
    return v

@pytest.fixture(scope='module')
def cnn():
    torch.manual_seed(0)
    return small_cnn(4, width=4).eval()

@pytest.fixture(scope='module')
def vit():
    torch.manual_seed(0)
    return small_vit(4, 24, dim=16, depth=2, heads=2).eval()

@pytest.fixture(scope='module')
def x(): return torch.randn(5, 3, 24, 24, generator=torch.Generator().manual_seed(0))

def state(model): return {k: v.clone() for k,v in model.state_dict().items()}

def untouched(model, before):
    after = model.state_dict()
    return all(torch.equal(v, after[k]) for k,v in before.items()) and not any(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())

class Linear(nn.Module):
    "Class 1's probability is the weighted sum of the pixels, class 0's the rest; computed in double"
    def __init__(self, weights, before=0.):
        super().__init__()
        self.weights,self.before,self.calls = nn.Parameter(torch.as_tensor(weights, dtype=torch.float64)), before, []
    def forward(self, x):
        self.calls.append(len(x))
        p = (self.before + (self.weights*x[:, 0]).sum((1, 2))).clamp(1e-12, 1-1e-12)
        return torch.stack([1-p, p], 1).log()


# -- IoU -----------------------------------------------------------------------------------------------------------------------------------

def test_iou_by_hand():
    maps = torch.tensor([[[1., .6], [.3, 0.]], [[.2, 1.], [.6, .6]]], dtype=torch.float64)
    masks = torch.tensor([[[1, 1], [0, 0]], [[0, 1], [0, 0]]])
    # above .5: 2 of 2 and 1 of 3; above .7: 1 of 2 and 1 of 1; above .1: 2 of 3 and 1 of 4
    assert plain(best_iou(maps, masks, (.1, .5, .7))) == dict(iou=.75, threshold=.7, n=2)
    assert best_iou(maps, masks, .5)['iou'] == pytest.approx((1 + 1/3)/2) and best_iou(maps, masks, [.1])['iou'] == pytest.approx((2/3 + 1/4)/2)
    assert best_iou(maps[:1], masks[:1], (.1, .5, .7)) == dict(iou=1., threshold=.5, n=1)
    assert best_iou(maps, masks)['iou'] == .75 and best_iou(maps, masks)['threshold'] == .6

def test_iou_leaves_out_what_cannot_be_said():
    maps,masks = torch.zeros(3, 2, 2), torch.ones(3, 2, 2)
    maps[0, 0] = 1
    masks[1] = 0
    assert best_iou(maps, masks) == dict(iou=.5, threshold=0., n=1) # the second has no thing, the third no map
    assert plain(best_iou(maps[1:], masks[1:])) == dict(iou=None, threshold=None, n=0)

@quick
@given(some_maps)
def test_a_perfect_mask_has_iou_one(maps):
    masks = maps > .5
    got = best_iou(masks.astype(float), masks)
    assert got['n'] == masks.any((1, 2)).sum() and (got['iou'] in (1., None))
    got = best_iou(maps, masks)
    assert got['iou'] is None or 0 <= got['iou'] <= 1
    if got['n']: assert got['iou'] >= max(best_iou(maps, masks, t)['iou'] for t in (0, .25, .5, .9))

def test_localisation_is_map_quality_and_iou():
    maps,masks = rand(4, 6, 6), rand(4, 2, 6, 6, seed=1) > .5
    got = plain(localisation(maps, masks, ('a', 'b')))
    assert {k: v for k,v in got.items() if 'iou' not in k} == map_quality(maps, masks, ('a', 'b'))
    for k,name in enumerate('ab'):
        one = best_iou(maps, masks[:, k])
        assert (got[f'iou_{name}'], got[f'iou_threshold_{name}']) == (one['iou'], one['threshold'])
    assert localisation(maps, masks, ('a', 'b'), .7)['iou_a'] == best_iou(maps, masks[:, 0], .7)['iou']

@pytest.mark.parametrize('kw,error,match', [
    (dict(maps=torch.zeros(2, 3)), ValueError, r'maps must be \(N,H,W\), got \(2, 3\)'), (dict(maps=torch.full((2, 3, 3), 2.)), ValueError, r'lie in \[0,1\]'),
    (dict(maps=torch.full((2, 3, 3), -1.)), ValueError, 'finite and at least 0'), (dict(maps=torch.full((2, 3, 3), np.nan)), ValueError, 'finite'),
    (dict(maps=torch.zeros(0, 3, 3)), ValueError, 'maps is empty'), (dict(maps='maps'), TypeError, 'must be an array'),
    (dict(masks=torch.zeros(2, 3, 4)), ValueError, r'masks must be \(2, 3, 3\)'), (dict(thresholds=()), ValueError, 'thresholds is empty'),
    (dict(thresholds=2), ValueError, 'thresholds=2')], ids=str)
def test_bad_input_of_iou(kw, error, match):
    with pytest.raises(error, match=match): best_iou(**(dict(maps=torch.ones(2, 3, 3), masks=torch.ones(2, 3, 3)) | kw))


# -- faithfulness --------------------------------------------------------------------------------------------------------------------------

def test_deletion_and_insertion_of_a_linear_model_in_closed_form():
    w = rand(6, 5, seed=2).double()
    w /= w.sum()
    x = torch.ones(3, 1, 6, 5, dtype=torch.float64)
    maps = torch.stack([w/w.max(), 1 - w/w.max(), rand(6, 5)])
    got = plain(faithfulness(Linear(w), x, maps, 1, steps=30, insert='zero'))
    rows = []
    for m in maps: # what is left when the k brightest are gone: the rest of the weights
        order = m.flatten().argsort(descending=True)
        rows.append(1 - np.r_[0, np.cumsum(w.flatten()[order])])
    gone = np.array(rows)
    assert got['deletion_curve'] == pytest.approx(gone.mean(0), abs=1e-9) and got['insertion_curve'] == pytest.approx(1 - gone.mean(0), abs=1e-9)
    areas = (gone[:, 1:] + gone[:, :-1]).mean(1)/2
    assert got['deletion'] == pytest.approx(areas.mean(), abs=1e-9) and got['insertion'] == pytest.approx(1 - areas.mean(), abs=1e-9)
    assert (got['n'], got['flat']) == (3, 0)

def test_steps_take_equal_shares():
    w = torch.tensor([[.4, .3], [.2, .1]], dtype=torch.float64)
    def curve(steps): return faithfulness(Linear(w), torch.ones(1, 1, 2, 2).double(), w[None], 1, steps)['deletion_curve']
    assert curve(1) == pytest.approx([1, 0], abs=1e-9) and curve(2) == pytest.approx([1, .3, 0], abs=1e-9)
    assert curve(4) == pytest.approx([1, .6, .3, .1, 0], abs=1e-9)

def test_average_drop_and_increase_by_hand():
    w = torch.tensor([[.5, -.3]], dtype=torch.float64)
    x = torch.ones(3, 1, 1, 2, dtype=torch.float64)
    maps = torch.tensor([[[1., 0.]], [[.5, 0.]], [[0., 1.]]])
    # whole: .5 + .5 - .3 = .7; seen through the maps: 1, .75, .2. Drops: 0, 0, 5/7; two of three rise
    got = faithfulness(Linear(w, .5), x, maps, 1)
    assert got['average_drop'] == pytest.approx(100*(5/7)/3) and got['increase'] == pytest.approx(2/3)
    # class 0: .3, and 0, .25, .8
    got = faithfulness(Linear(w, .5), x, maps, 0)
    assert got['average_drop'] == pytest.approx(100*(1 + .05/.3)/3) and got['increase'] == pytest.approx(1/3)

def test_blanks():
    x = rand(2, 3, 16, 24)
    assert not blanks['zero'](x).any() and torch.allclose(blanks['mean'](x)[1, 2], x[1, 2].mean()) and blanks['blur'] is blurred
    assert blurred(x).shape == x.shape and blurred(x).std() < x.std()/4 and torch.allclose(blurred(torch.ones(1, 1, 8, 8)), torch.ones(1, 1, 8, 8))
    assert blurred(x.half()).dtype == torch.float16 and blurred(rand(1, 1, 1, 1)).shape == (1, 1, 1, 1)

def test_each_blank_fills_in_what_it_should():
    w = torch.full((1, 2), .5).double()
    x = torch.tensor([[[[.8, .2]]]]).double()
    m = torch.tensor([[[1., .5]]])
    def ends(**kw): return [faithfulness(Linear(w), x, m, 1, 2, **kw)[f'{k}_curve'] for k in ('deletion', 'insertion')]
    gone, back = ends(delete='mean', insert='zero')
    assert gone == pytest.approx([.5, .35, .5]) and back == pytest.approx([0, .4, .5], abs=1e-6)
    assert ends(delete='zero')[0] == pytest.approx([.5, .1, 0], abs=1e-6)
    assert faithfulness(Linear(w), x, m, 1, delete='mean')['average_drop'] == 0 and faithfulness(Linear(w), x, m, 1)['average_drop'] == pytest.approx(10)

def test_ranks():
    assert pixel_ranks([[[.1, .9], [.5, 0.]]]).tolist() == [[[2, 0], [1, 3]]]
    flat = pixel_ranks(torch.zeros(2, 4, 4))
    assert all(sorted(r.ravel()) == list(range(16)) for r in flat) and (flat[0] != flat[1]).any()
    assert (pixel_ranks(torch.zeros(1, 4, 4), 1) != flat[:1]).any() and (pixel_ranks(torch.zeros(2, 4, 4), 0) == flat).all()

@quick
@given(some_maps)
def test_ranks_follow_the_map(maps):
    ranks = pixel_ranks(maps)
    for m,r in zip(maps.reshape(len(maps), -1), ranks.reshape(len(maps), -1)):
        assert (np.diff(m[np.argsort(r)]) <= 0).all() and sorted(r) == list(range(m.size))

def test_the_seed_decides_among_equals(cnn, x):
    maps = (rand(5, 24, 24) > .5).float()
    one, same, other = (faithfulness(cnn, x, maps, steps=5, seed=s) for s in (0, 0, 1))
    assert one == same and one['deletion'] != other['deletion']

def test_the_class_followed(cnn, x):
    maps = all_maps(cnn, x)
    with torch.no_grad(): predicted = cnn(x).argmax(1)
    by = {k: faithfulness(cnn, x, maps, t, steps=4) for k,t in dict(none=None, predicted=predicted, listed=predicted.tolist(), one=1).items()}
    assert by['none'] == by['predicted'] == by['listed'] != by['one']

def test_batches_change_nothing(cnn, x):
    maps = all_maps(cnn, x)
    one, two = faithfulness(cnn, x, maps, steps=3), faithfulness(cnn, x, maps, steps=3, bs=2)
    for k in one: assert two[k] == pytest.approx(one[k], abs=1e-6)
    net = Linear(torch.full((2, 2), .1))
    faithfulness(net, torch.ones(5, 1, 2, 2).double(), rand(5, 2, 2), 1, 2, bs=2)
    assert set(net.calls) == {1, 2}

def test_flat_maps_are_left_out_and_counted(cnn, x):
    maps = all_maps(cnn, x)
    maps[1], maps[3] = 0, .5
    got, rest = faithfulness(cnn, x, maps, steps=4), faithfulness(cnn, x[[0, 2, 4]], maps[[0, 2, 4]], steps=4, seed=0)
    assert (got['n'], got['flat'], rest['flat']) == (5, 2, 0) and got['average_drop'] == pytest.approx(rest['average_drop'], abs=1e-5)
    got = plain(faithfulness(cnn, x, torch.zeros(5, 24, 24)))
    assert got['flat'] == 5 and got['deletion'] is None and got['increase'] is None and got['insertion_curve'] is None

def test_the_model_is_left_as_it_was(x):
    torch.manual_seed(0)
    model = small_cnn(4, width=4).train()
    before, rng = state(model), torch.get_rng_state()
    kept = x.clone()
    faithfulness(model, x, rand(5, 24, 24), steps=2)
    randomisation_check(model, x, steps=2)
    parameter_layers(model, x)
    assert untouched(model, before) and all(m.training for m in model.modules()) and torch.equal(torch.get_rng_state(), rng) and torch.equal(x, kept)
    assert all(p.grad is None for p in model.parameters())

def test_half_precision(cnn, x):
    import copy
    maps = all_maps(cnn, x)
    one, other = faithfulness(cnn, x, maps, steps=4), faithfulness(copy.deepcopy(cnn).bfloat16(), x, maps, steps=4)
    assert other['deletion'] == pytest.approx(one['deletion'], abs=.05) and other['insertion'] == pytest.approx(one['insertion'], abs=.05)

@pytest.mark.parametrize('kw,error,match', [
    (dict(delete='black'), ValueError, "delete='black'.*'zero', 'mean', 'blur'"), (dict(insert='blurr'), ValueError, "insert='blurr'.*Did you mean 'blur'"),
    (dict(steps=0), ValueError, 'steps=0'), (dict(bs=.5), ValueError, 'bs=0.5'), (dict(seed=-1), ValueError, 'seed=-1'), (dict(target=4), ValueError, 'target=4.*0 to 3'),
    (dict(target=[0, 1]), ValueError, 'target has 2 entries for 5'), (dict(target=.5), TypeError, 'target=0.5'), (dict(maps=rand(5, 24, 23)), ValueError, 'one size'),
    (dict(maps=rand(4, 24, 24)), ValueError, 'x holds 5 images for 4 maps'), (dict(maps=2*torch.ones(5, 24, 24)), ValueError, r'\[0,1\]'),
    (dict(x=np.zeros((5, 3, 24, 24))), TypeError, 'x must be a float tensor')], ids=str)
def test_bad_input_of_faithfulness(cnn, x, kw, error, match):
    with pytest.raises(error, match=match): faithfulness(cnn, **(dict(x=x, maps=rand(5, 24, 24)) | kw))


# -- agreement -----------------------------------------------------------------------------------------------------------------------------

@quick
@given(some_maps, st.integers(0, 9))
def test_rank_correlation_is_scipys(a, seed):
    b = np.random.default_rng(seed).integers(0, 3, a.shape)/2 # with ties
    got = rank_correlation(a, b)
    for g,u,v in zip(got, a, b):
        if np.ptp(u) == 0 or np.ptp(v) == 0: assert np.isnan(g)
        else: assert g == pytest.approx(scipy.stats.spearmanr(u.ravel(), v.ravel()).statistic, abs=1e-9)

@quick
@given(some_maps)
def test_identical_maps_agree(maps):
    got = plain(map_agreement(maps, maps, area=.3))
    if got['flat_a'] < len(maps): assert got['rank_correlation'] == pytest.approx(1) and got['iou_top'] == 1
    else: assert got['rank_correlation'] is None and got['iou_top'] is None
    cubes = maps**3
    if len(np.unique(cubes)) == len(np.unique(maps)): # small numbers' cubes may tie
        assert map_agreement(maps, cubes, area=.3)['rank_correlation'] in (None, pytest.approx(1))

def test_agreement_by_hand():
    a = torch.tensor([[[1., .8], [.4, .2]], [[0., 0.], [0., 0.]]])
    b = torch.tensor([[[.9, .1], [.6, .3]], [[1., 0.], [0., 0.]]])
    # ranks 4 3 2 1 and 4 1 3 2: sum of squared differences 0 + 4 + 1 + 1, 1 - 6*6/(4*15) = .4; top halves {0, 1} and {0, 2}
    got = plain(map_agreement(a, b, .5))
    assert got == dict(n=2, flat_a=1, flat_b=0, area=.5, rank_correlation=pytest.approx(.4), iou_top=pytest.approx(1/3), iou_chance=pytest.approx(1/3))
    assert map_agreement(a, b, .25)['iou_top'] == 1 and map_agreement(b, a, .5)['flat_b'] == 1

def test_chance_is_what_random_maps_have():
    a, b = rand(300, 20, 20), rand(300, 20, 20, seed=1)
    for area in (.1, .3):
        got = map_agreement(a, b, area)
        assert got['iou_top'] == pytest.approx(got['iou_chance'], abs=.01) and abs(got['rank_correlation']) < .01

def test_agreement_with_truth():
    a, b, masks = rand(4, 6, 6), rand(4, 6, 6, seed=1), rand(4, 2, 6, 6, seed=2) > .5
    got = plain(map_agreement(a, b, masks=masks, names=('digit', 'square')))
    assert got['a'] == localisation(a, masks, ('digit', 'square')) and got['b'] == localisation(b, masks, ('digit', 'square'))
    assert {k: v for k,v in got.items() if k not in 'ab'} == map_agreement(a, b)

@pytest.mark.parametrize('kw,match', [(dict(area=0), 'area=0'), (dict(area=1.5), 'area=1.5'), (dict(maps_b=rand(2, 3, 4)), 'of the same images'), (dict(names=('a',)), 'without masks'),
                                      (dict(maps_a=rand(3, 3)), 'maps_a must be'), (dict(masks=torch.ones(2, 1, 3, 3), names=('a', 'b')), 'masks of shape')], ids=str)
def test_bad_input_of_agreement(kw, match):
    with pytest.raises(ValueError, match=match): map_agreement(**(dict(maps_a=rand(2, 3, 3), maps_b=rand(2, 3, 3)) | kw))

def test_rank_correlation_of_other_sizes():
    with pytest.raises(ValueError, match='one size'): rank_correlation(rand(2, 3, 3), rand(2, 3, 4))


# -- sanity --------------------------------------------------------------------------------------------------------------------------------

def test_layers_in_the_order_they_are_run(cnn, vit, x):
    names = parameter_layers(cnn, x)
    assert names[0] == '0.0.0' and names[-1] == '1.2' and set(names) == {n for n,m in cnn.named_modules() if list(m.parameters(recurse=False))}
    names = parameter_layers(vit, x)
    assert names[0] == '' and names[1] == 'patch_embed.proj' and names[-1] == 'head' # the ViT's own: its positions
    class Backwards(nn.Module):
        def __init__(self): super().__init__(); self.last, self.first, self.never = nn.Linear(3, 2), nn.Conv2d(3, 3, 1), nn.Linear(2, 2)
        def forward(self, x): return self.last(self.first(x).mean((2, 3)))
    assert parameter_layers(Backwards(), x) == ['first', 'last']

def test_forgetting():
    torch.manual_seed(0)
    layer, norm = nn.Linear(4, 4), nn.BatchNorm2d(3)
    old = layer.weight.clone()
    norm.running_mean += 1
    randomize_parameters(layer)
    randomize_parameters(norm)
    assert not torch.equal(layer.weight, old) and not norm.running_mean.any()
    class Own(nn.Module):
        def __init__(self): super().__init__(); self.numbers, self.inner = nn.Parameter(torch.arange(50.).view(5, 10)), nn.Linear(2, 2)
    own = Own()
    inner = own.inner.weight.clone()
    randomize_parameters(own)
    assert sorted(own.numbers.flatten().tolist()) == list(range(50)) and own.numbers[0].tolist() != list(range(10)) and torch.equal(own.inner.weight, inner)

@pytest.mark.parametrize('method', ['gradcam', 'rollout', 'gradrollout'])
def test_the_check_by_hand(vit, x, method):
    "A copy whose layers are forgotten one after another, compared with the original's maps of the original's class"
    import copy
    with torch.no_grad(): classes = vit(x).argmax(1)
    got = plain(randomisation_check(vit, x, method, steps=3, seed=7))
    names, other, first = parameter_layers(vit, x)[::-1], copy.deepcopy(vit), saliency_maps(vit, x, classes, method)
    assert got['layers'] == len(names) and [r['forgotten'] for r in got['rows']] == np.cumsum([len(a) for a in np.array_split(names, 3)]).tolist()
    done = 0
    for k,row in enumerate(got['rows']):
        torch.manual_seed(7 + k)
        for n in names[done:row['forgotten']]: randomize_parameters(other.get_submodule(n))
        done = row['forgotten']
        values = rank_correlation(first, saliency_maps(other, x, classes, method))
        assert row['down_to'] == names[done-1] and row['flat'] == np.isnan(values).sum()
        assert row['rank_correlation'] == (pytest.approx(np.nanmean(values), abs=1e-6) if np.isfinite(values).any() else None)
    assert got['rank_correlation'] == got['rows'][-1]['rank_correlation'] and (got['method'], got['n']) == (method, 5)

def test_rollout_does_not_see_that_the_head_is_forgotten(vit, x):
    rows = {m: randomisation_check(vit, x, m)['rows'][0] for m in ('rollout', 'gradrollout')}
    assert rows['rollout']['down_to'] == 'head' and rows['rollout']['rank_correlation'] == pytest.approx(1) and rows['gradrollout']['rank_correlation'] < .99

def test_a_picture_of_edges_is_caught(cnn, x, monkeypatch):
    "A method that ignores the network keeps its maps to the end"
    monkeypatch.setattr(study, 'saliency_maps', lambda model, x, *a, **kw: x.abs().mean(1)/x.abs().mean(1).amax())
    assert [r['rank_correlation'] for r in randomisation_check(cnn, x)['rows']] == pytest.approx([1.]*11)

def test_arguments_of_the_check(cnn, x):
    one = randomisation_check(cnn, x, 'layercam')
    assert len(one['rows']) == one['layers'] == 11 and len(randomisation_check(cnn, x, 'layercam', steps=100)['rows']) == 11
    assert randomisation_check(cnn, x, 'layercam') == one
    def values(**kw): return [r['rank_correlation'] for r in randomisation_check(cnn, x, **(dict(method='layercam') | kw))['rows']]
    first = [r['rank_correlation'] for r in one['rows']]
    for kw in (dict(seed=1), dict(target=2), dict(layer='0.1'), dict(method='eigencam'), dict(steps=2), dict(reshape=lambda t: t[:, :2])): assert values(**kw) != first
    assert values(bs=2) == pytest.approx(first, abs=1e-3)
    by_name = values(layer='0.2')
    assert values(layer=cnn[0][2]) == by_name and values(layer=method_layer(cnn, x, 'layercam', '0.2')) == by_name

def test_blocks_found_before(vit, x):
    blocks = method_layer(vit, x, 'rollout')
    assert randomisation_check(vit, x, 'rollout', steps=2, layer=blocks) == randomisation_check(vit, x, 'rollout', steps=2)

@pytest.mark.parametrize('kw,error,match', [(dict(steps=0), ValueError, 'steps=0'), (dict(method='gradcma'), ValueError, 'gradcam'), (dict(x=None), TypeError, 'x must be'),
                                            (dict(seed='a'), TypeError, "seed='a'"), (dict(target=9), ValueError, 'target=9'), (dict(method='rollout'), ValueError, 'attention')], ids=str)
def test_bad_input_of_the_check(cnn, x, kw, error, match):
    before = state(cnn)
    with pytest.raises(error, match=match): randomisation_check(cnn, **(dict(x=x) | kw))
    assert untouched(cnn, before)


# -- many maps, and the figure -------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('target', [None, 1, [0, 1, 2, 3, 0]])
def test_all_maps(cnn, x, target):
    expected = saliency_maps(cnn, x, target, 'layercam', layer='0.2')
    got = all_maps(cnn, x, torch.tensor(target) if isinstance(target, list) else target, 2, method='layercam', layer='0.2')
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match='target has 2 entries'): all_maps(cnn, x, [0, 1])
    with pytest.raises(ValueError, match='bs=0'): all_maps(cnn, x, bs=0)

def test_the_figure(x):
    pics = rand(2, 3, 24, 30)
    maps = dict(one=rand(2, 24, 30), coarse=rand(2, 4, 5))
    masks = np.zeros((2, 24, 30), bool)
    masks[:, 5:9, 3:8] = True
    fig = draw_maps(pics, maps, ['a', 'b'], masks, strength=.4, side=1)
    axs = np.array(fig.axes).reshape(2, 3)
    assert [a.get_title() for a in axs[0]] == ['', 'one', 'coarse'] and [a.get_ylabel() for a in axs[:, 0]] == ['a', 'b']
    drawn = lambda a: a.images[0].get_array()
    assert np.allclose(drawn(axs[1, 0])/255, pics[1].permute(1, 2, 0), atol=1/255) and (drawn(axs[1, 2]) == overlay_heatmap(drawn(axs[1, 0]), maps['coarse'][1], .4)).all()
    assert len(axs[0, 1].collections) and not axs[0, 0].collections
    plainer = draw_maps(pics, maps)
    assert not any(len(a.collections) for a in plainer.axes) and (drawn(plainer.axes[1]) == overlay_heatmap(drawn(plainer.axes[0]), maps['one'][0])).all()
    assert plainer.get_size_inches()[0] == 4.5 and fig.get_size_inches()[0] == pytest.approx(3.8)
    whole = draw_maps((pics*255).round().byte().permute(0, 2, 3, 1).numpy(), maps) # as read from a file
    assert (drawn(whole.axes[0]) == drawn(axs[0, 0])).all()
    assert draw_maps(pics[:, :1], dict(one=maps['one'])).axes[0].images[0].get_array().shape == (24, 30, 3)

@pytest.mark.parametrize('kw,error,match', [
    (dict(images=rand(2, 3, 8)), ValueError, 'images must be'), (dict(images=rand(2, 4, 8, 8)), ValueError, 'one or three channels'), (dict(images=rand(2, 3, 8, 8) - 1), ValueError, 'normalisation'),
    (dict(maps={}), TypeError, 'maps must be a dictionary'), (dict(maps=rand(2, 8, 8)), TypeError, 'maps must be a dictionary'), (dict(maps=dict(a=rand(3, 8, 8))), ValueError, r"maps\['a'\] must be 2"),
    (dict(maps=dict(a=rand(2, 8, 8) + 1)), ValueError, r"maps\['a'\]"), (dict(labels=['a']), ValueError, 'labels has 1'), (dict(outlines=rand(2, 8, 9)), ValueError, 'outlines must be'),
    (dict(strength=2), ValueError, 'strength=2')], ids=str)
def test_bad_input_of_the_figure(kw, error, match):
    with pytest.raises(error, match=match): draw_maps(**(dict(images=rand(2, 3, 8, 8), maps=dict(a=rand(2, 8, 8))) | kw))
