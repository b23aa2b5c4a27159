"""Probes on models made by hand: one that reads the hole, one that can't see it, one whose evidence is known."""
import numpy as np
import pytest
import torch
from fastai.data.load import DataLoader
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from kit import hooks_of, seed_all, shapes_dls, tiny_model
from proxy_attention.lab.probes import black_of, black_patch_probe, erased_vs_whole, square_masks

quick = settings(deadline=None, max_examples=60, derandomize=True)

def items(n=30, side=20, classes=3, seed=0):
    "Grey noise that is never black; the class is told by which channel has the bright corner"
    rng = np.random.default_rng(seed)
    x = rng.integers(50, 100, (n, 3, side, side)).astype(np.uint8)
    y = np.arange(n) % classes
    for img,c in zip(x, y): img[c, :4, :4] = 250
    return [(torch.from_numpy(img), int(c)) for img,c in zip(x, y)]

def to_float(b): return b[0].float()/255*2 - 1, torch.as_tensor(b[1]) # black is -1

def loader(data=None, bs=8): return DataLoader(items() if data is None else data, bs=bs, after_batch=to_float)

class Hand(nn.Module):
    "A model of the given logits"
    def __init__(self, logits):
        super().__init__()
        self.logits, self.p, self.seen = logits, nn.Parameter(torch.zeros(1)), []
    def forward(self, x):
        self.seen.append(x.clone())
        return self.logits(x) + self.p

def bright(x): return x.flatten(2).amax(2) # the brightest pixel of each channel: a hole elsewhere can't be seen
def corner(x): return x[:, :, :4, :4].mean((2, 3))

def reader(x):
    "Right on whole images; where more than 5% of the pixels are black it says class 2"
    black = (x < -.99).all(1).float().mean((1, 2)) > .05
    return torch.where(black[:, None], torch.tensor([0., 0, 9]), corner(x))


# -- squares --------------------------------------------------------------------------------------------------------------------------------------

@quick
@given(st.integers(1, 8), st.integers(3, 30), st.integers(3, 30), st.floats(.01, 1), st.integers(0, 9))
def test_squares_lie_inside_and_have_their_area(n, h, w, area, seed):
    masks = square_masks(n, (h, w), area, np.random.default_rng(seed)).numpy()
    side = min(h, w, max(1, round((area*h*w)**.5)))
    for m in masks:
        ys, xs = np.nonzero(m)
        assert np.ptp(ys) == np.ptp(xs) == side-1 and m.sum() == side**2

def test_squares_go_everywhere():
    masks = square_masks(3000, (9, 7), .1, np.random.default_rng(0))
    tops, lefts = masks.any(2).int().argmax(1), masks.any(1).int().argmax(1)
    assert set(tops.tolist()) == set(range(7)) and set(lefts.tolist()) == set(range(5))
    assert np.bincount(tops).min() > 3000/7*.8


# -- black ----------------------------------------------------------------------------------------------------------------------------------------

def test_black_is_what_the_loader_makes_of_it(shapes):
    from fastai.data.transforms import Normalize
    dls = shapes_dls(shapes, batch_tfms=Normalize.from_stats([.5, .4, .3], [.2, .3, .4], cuda=False))
    x,y = dls.valid.one_batch()
    assert torch.allclose(black_of(dls.valid, x, y)[0, :, 0, 0], torch.tensor([-.5/.2, -.4/.3, -.3/.4])) and black_of(dls.valid, x, y).shape == (1, 3, 32, 32)
    x,y = loader().one_batch()
    assert (black_of(loader(), x, y) == -1).all()

def test_augmentation_of_training_does_not_touch_it(shapes):
    from fastai.vision.augment import aug_transforms
    dls = shapes_dls(shapes, batch_tfms=aug_transforms(max_lighting=.9, p_lighting=1.))
    dls.train.one_batch() # the pipeline is in training mode now
    x,y = dls.valid.one_batch()
    dls.train.one_batch()
    assert (black_of(dls.valid, x, y) == 0).all()


# -- the black-patch probe ------------------------------------------------------------------------------------------------------------------------

def test_a_model_that_reads_the_patch():
    got = black_patch_probe(Hand(reader), loader(), area=.1)
    assert got['n'] == 30 and got['whole'] == 1 and got['patched'] == pytest.approx(1/3) and got['fall'] == pytest.approx(2/3)
    assert got['changed'] == pytest.approx(2/3) and got['drawn_to'] == 2 and got['drawn'] == pytest.approx(2/3)

def test_a_model_that_ignores_the_patch():
    data = items()
    for x,y in data: x[y, -4:, -4:] = 250 # two bright corners: a square of a tenth can't hide both
    got = black_patch_probe(Hand(bright), loader(data), area=.1)
    assert (got['whole'], got['patched'], got['fall'], got['changed'], got['drawn']) == (1, 1, 0, 0, 0)

def test_a_model_that_is_always_wrong():
    "The prediction may change though the accuracy doesn't"
    got = black_patch_probe(Hand(lambda x: -reader(x)), loader([(x, y) for x,y in items() if y == 0]), area=.1)
    assert got['whole'] == 0 and got['changed'] > 0

def test_the_patches_are_black_squares_of_the_area_asked_for():
    model = Hand(bright)
    got = black_patch_probe(model, loader(bs=30), area=.2, repeats=2)
    whole,*patched = model.seen
    assert len(patched) == 2 and got['area'] == pytest.approx(81/400)
    for p in patched:
        black = (p == -1).all(1)
        assert (black.flatten(1).sum(1) == 81).all() and torch.equal(p[~black[:, None].expand_as(p)], whole[~black[:, None].expand_as(p)])
    assert not torch.equal(*patched)

def test_arguments_of_the_probe():
    def places(**kwargs):
        model = Hand(corner)
        black_patch_probe(model, loader(bs=30), **kwargs)
        return torch.stack([(x == -1).all(1) for x in model.seen[1:]])
    base = places()
    assert torch.equal(base, places(area=.1, seed=0, repeats=3)) and not torch.equal(base, places(seed=1))
    assert places(area=.3).float().mean() > base.float().mean() and len(places(repeats=1)) == 1 and torch.equal(places(repeats=1)[0], base[0])

def test_batches_of_another_size_give_the_same():
    a,b = (black_patch_probe(Hand(corner), loader(bs=bs), area=.8, repeats=2) for bs in (4, 30))
    assert a == pytest.approx(b) and a['fall'] > 0

def test_of_the_whole_and_the_patched_images_each_counts_once():
    "By hand: accuracy on all patched images is the mean over repeats"
    one = [black_patch_probe(Hand(corner), loader(), seed=0, repeats=r) for r in (1, 2)]
    assert one[0]['n'] == one[1]['n'] == 30 and 0 <= 2*one[1]['patched'] - one[0]['patched'] <= 1

def footprint_of(model): return [m.training for m in model.modules()], hooks_of(model), {k: v.clone() for k,v in model.state_dict().items()}, [p.grad for p in model.parameters()]

@pytest.mark.parametrize('probe', [black_patch_probe, erased_vs_whole])
def test_no_footprint(shapes, probe):
    dls, model = shapes_dls(shapes), tiny_model().train()
    model[0][1].eval()
    modes, hooks, state, grads = footprint_of(model)
    seed_all(3)
    rng = torch.get_rng_state()
    a = probe(model, dls.valid)
    assert torch.equal(torch.get_rng_state(), rng) and a == probe(model, dls.valid)
    now = footprint_of(model)
    assert now[:2] == (modes, hooks) and all(torch.equal(v, now[2][k]) for k,v in state.items()) and now[3] == grads

@pytest.mark.parametrize('kwargs,error', [(dict(area=0), ValueError), (dict(area=1.5), ValueError), (dict(area='big'), TypeError), (dict(repeats=0), ValueError),
                                          (dict(repeats=1.5), ValueError), (dict(seed=-1), ValueError)], ids=str)
def test_bad_arguments(kwargs, error):
    with pytest.raises(error, match=next(iter(kwargs))): black_patch_probe(Hand(corner), loader(), **kwargs)

@pytest.mark.parametrize('probe', [black_patch_probe, erased_vs_whole])
def test_what_can_not_be_probed(probe):
    with pytest.raises(TypeError, match='one class index each'): probe(Hand(corner), loader([(x, torch.eye(3)[y]) for x,y in items()]))
    with pytest.raises(ValueError, match='no images'): probe(Hand(corner), loader([]))


# -- erased beside whole --------------------------------------------------------------------------------------------------------------------------

def net(weights):
    "A convolution that passes channels on, and a linear head of the given weights: its evidence is where the channels are bright"
    body, head = nn.Conv2d(3, 3, 1), nn.Linear(3, 3)
    with torch.no_grad():
        body.weight.copy_(torch.eye(3)[:, :, None, None]); body.bias.fill_(-.6)
        head.weight.copy_(torch.as_tensor(weights)); head.bias.zero_()
    return nn.Sequential(nn.Sequential(body, nn.ReLU()), nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)

def test_what_the_maps_erase_is_the_corner():
    "The bright corner is 16 of 400 pixels: without it the model knows nothing, and says class 0"
    got = erased_vs_whole(net(torch.eye(3)), loader(), area=.04)
    assert got['n'] == 30 and got['whole'] == 1 and got['erased'] == pytest.approx(1/3) and got['area'] == pytest.approx(.04) and got['flat_maps'] == 0
    assert got['fall'] == pytest.approx(-2/3) and got['changed'] == pytest.approx(2/3)

def test_a_model_that_knows_holes_only():
    "Trained on copies alone it may know the hole, not the thing: right on erased images, lost on whole ones"
    class Hole(nn.Module):
        def __init__(self): super().__init__(); self.p = nn.Parameter(torch.zeros(1))
        def forward(self, x):
            hole = (x == -1).all(1).flatten(1).any(1)
            told = x[:, :, 10, 10].argmax(1) # a pixel that stays, and tells the class
            return torch.where(hole[:, None], torch.eye(3)[told], torch.tensor([1., 0, 0]))*9 + self.p
    data = items()
    for x,y in data: x[:, 10, 10] = torch.eye(3)[y]*99 + 60
    got = erased_vs_whole(Hole(), loader(data), looker=net(torch.eye(3)), area=.04)
    assert got['erased'] == 1 and got['whole'] == pytest.approx(1/3) and got['fall'] == pytest.approx(2/3)

def test_the_looker_decides_what_is_erased():
    own = erased_vs_whole(net(torch.eye(3)), loader(), area=.04)
    other = erased_vs_whole(net(torch.eye(3)), loader(), looker=net(torch.zeros(3, 3)), area=.04)
    assert own['erased'] < 1 and other['erased'] == 1 and other['flat_maps'] == 30 and other['area'] == 0

def test_arguments_of_erased_vs_whole():
    seed_all(4)
    model, dl = tiny_model().eval(), loader(items(60))
    seen = []
    def masks(**kwargs):
        class Spy(nn.Module):
            def __init__(self): super().__init__(); self.p = nn.Parameter(torch.zeros(1))
            def forward(self, x): seen.append((x == -1).all(1)); return torch.zeros(len(x), 3)
        erased_vs_whole(Spy(), dl, **dict(looker=model, method='gradcam++') | kwargs)
        got = torch.cat(seen[1::2])
        seen.clear()
        return got
    base = masks()
    assert torch.equal(base, masks(area=.1)) and base.float().mean() == pytest.approx(.1, abs=.005)
    for change in (dict(area=.3), dict(threshold=.6), dict(method='eigencam'), dict(target='true'), dict(layer='0.2')):
        assert not torch.equal(base, masks(**change)), f"{change} changes nothing"

@pytest.mark.parametrize('kwargs', [dict(method='gradcma'), dict(target='contrast'), dict(area=0), dict(threshold=2), dict(area=.1, threshold=.5)], ids=str)
def test_bad_arguments_of_erased_vs_whole(kwargs):
    with pytest.raises(ValueError, match=next(iter(kwargs))): erased_vs_whole(net(torch.eye(3)), loader(), **kwargs)
