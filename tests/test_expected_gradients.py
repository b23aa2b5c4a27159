"""Expected gradients against captum's GradientShap, against cases computed by hand, for completeness; in scans and copies; and what is refused."""
import random
import weakref
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torchvision
from scipy.ndimage import gaussian_filter
from torch import nn

from kit import Coded, coded_dls, copied_files, copy_bytes, footprint, make_learner, quiet_cb, shapes_dls, tiny_model, weights, same_weights
from proxy_attention.callback import ProxyAttentionCB
from proxy_attention.core import no_footprint
from studies.map_agreement import all_maps
from proxy_attention.policy import Policy, presets
from proxy_attention.saliency import (InputGradients, blurred_cells, class_scores, expected_gradients, gaussian, method_layer, normalise, raw_maps,
                                      saliency_maps)
from proxy_attention.scan import draw_baselines, layer_of, scan

METHOD = 'expected_gradients'


def rand(*shape, seed=0): return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))

class Net(nn.Module):
    "Convolutions, BatchNorm with statistics of its own, dropout; nonlinear"
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.Conv2d(8, 12, 3, 2, 1), nn.Tanh())
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Dropout(.3), nn.Linear(48, 5))
    def forward(self, x): return self.head(self.body(x))

@pytest.fixture
def model():
    torch.manual_seed(3)
    net = Net()
    net(torch.randn(16, 3, 16, 20))
    return net.eval()

@pytest.fixture
def x(): return rand(4, 3, 16, 20, seed=4)

@pytest.fixture
def base(): return rand(3, 3, 16, 20, seed=5)

def linear(c=3, h=4, w=5):
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(c*h*w, 4))


# -- by hand -------------------------------------------------------------------------------------------------------------------------------

class Kink(nn.Module):
    "One logit: relu(x1 + x2 + 5 x3 - 1)"
    def forward(self, x): return (x.flatten(1) @ torch.tensor([1., 1., 5.]) - 1).relu()[:, None]

def pixel(*v): return torch.tensor(v).view(1, 3, 1, 1)

def test_by_hand():
    # From (0,0,0) to (2,1,0) the sum is 3a - 1, above zero where a > 1/3: the gradient is (1,1,5) at 3/8, 5/8 and 7/8, and zero at 1/8
    got = expected_gradients(Kink(), pixel(2., 1., 0.), pixel(0., 0., 0.), samples=4)
    assert got.flatten().tolist() == [1.5, .75, 0.]
    # Samples 1 and 3 come from (0,0,1): the sum is 4 - 2a, above zero everywhere, and the step (2,1,-1)
    both = torch.cat([pixel(0., 0., 0.), pixel(0., 0., 1.)])
    got = expected_gradients(Kink(), pixel(2., 1., 0.), both, samples=4)
    assert got.flatten().tolist() == [6/4, 3/4, -10/4] and got.dtype == torch.float32

def test_without_baselines_each_is_set_against_the_others():
    "Of a linear network: weight times the mean difference from the others, each once"
    net, x = linear(), rand(4, 3, 4, 5)
    got = expected_gradients(net, x, target=2, samples=3)
    mean = (x.sum(0) - x)/3
    torch.testing.assert_close(got, net[1].weight[2].detach().view(3, 4, 5)*(x - mean), atol=1e-6, rtol=1e-5)

def test_a_map_by_hand():
    "Absolute values added up over channels, unblurred"
    net, x, base = linear(), rand(2, 3, 4, 5), rand(1, 3, 4, 5, seed=1)
    expected = (net[1].weight[1].detach().view(3, 4, 5)*(x - base)).abs().sum(1)
    torch.testing.assert_close(saliency_maps(net, x, 1, METHOD, baselines=base, blur=0), normalise(expected), atol=1e-5, rtol=0)
    logits, maps = raw_maps(net, x, InputGradients(base, 1, 0.), METHOD, lambda l: class_scores(l, torch.tensor([1, 1])))
    torch.testing.assert_close(maps, expected, atol=1e-5, rtol=0)
    with torch.no_grad(): assert torch.equal(logits, net(x))
    assert raw_maps(net, x, InputGradients(base), METHOD, lambda l: None)[1] is None

@pytest.mark.parametrize('size, sigma', [((24, 24), 2.), ((30, 17), 1.3), ((9, 40), 4.5)])
def test_the_blur_agrees_with_scipy(size, sigma):
    m = np.random.default_rng(0).random(size)
    def zeros(v): return gaussian_filter(v, sigma, mode='constant', truncate=30)
    ours = gaussian(size[0], sigma) @ torch.from_numpy(m) @ gaussian(size[1], sigma).T
    np.testing.assert_allclose(ours, zeros(m)/zeros(np.ones(size)), atol=1e-9)

@pytest.mark.parametrize('size, blur, cells', [((224, 224), 1/12, (24, 24)), ((32, 32), 1/12, (24, 24)), ((16, 16), 1/12, (16, 16)), ((96, 192), 1/12, (24, 48)),
                                               ((64, 64), 1/2, (4, 4)), ((64, 64), 0, (64, 64)), ((64, 64), 1e-300, (64, 64)), ((1, 1), 1/12, (1, 1))], ids=str)
def test_a_map_has_two_cells_a_deviation(size, blur, cells):
    maps = rand(2, *size).abs()
    got = blurred_cells(maps, blur)
    assert got.shape == (2, *cells) and got.isfinite().all()
    if cells == size and blur < 1e-3: torch.testing.assert_close(got, maps)
    assert blurred_cells(torch.full((1, *size), 3.), blur).allclose(torch.tensor(3.))

def test_the_map_is_highest_where_the_network_looks():
    class Corner(nn.Module):
        def forward(self, x): return torch.stack([x[:, :, :8, -8:].mean((1, 2, 3))*3, x[:, 0, 0, 0]*0], 1).tanh()
    maps = saliency_maps(Corner(), rand(3, 3, 48, 64), 0, METHOD, blur=1/12)
    for m in maps: assert (m.argmax() // 64 < 8) and (m.argmax() % 64 >= 56) and m[24:, :32].max() < .01


# -- the oracle ----------------------------------------------------------------------------------------------------------------------------

def gradient_shap(model, x, baselines, target, samples, monkeypatch, places=None):
    "captum's GradientShap without noise; its lots are replaced by baselines in turn and by `places`, where they matter"
    captum = pytest.importorskip('captum.attr')
    n = len(x)
    if places is not None: # captum repeats each image `samples` times in a row
        monkeypatch.setattr(np.random, 'uniform', lambda low, high, size: np.tile(places, n)[:size])
        monkeypatch.setattr(np.random, 'choice', lambda k, size: np.tile(np.arange(samples) % k, n)[:size])
    return captum.GradientShap(model).attribute(x, baselines, n_samples=samples, stdevs=0., target=target).detach()

def test_a_linear_network_agrees_with_captum(monkeypatch):
    "The gradient is the same everywhere: with one baseline nothing that is drawn matters"
    net, x, base, target = linear(), rand(4, 3, 4, 5), rand(1, 3, 4, 5, seed=1), torch.tensor([0, 3, 1, 1])
    theirs = gradient_shap(net, x, base, target, 5, monkeypatch)
    torch.testing.assert_close(expected_gradients(net, x, base, target, 5), theirs, atol=1e-6, rtol=1e-5)

@pytest.mark.parametrize('samples', [3, 6, 7])
def test_the_same_places_agree_with_captum(model, x, base, samples, monkeypatch):
    target = torch.tensor([0, 3, 1, 4])
    theirs = gradient_shap(model, x, base, target, samples, monkeypatch, (np.arange(samples) + .5)/samples)
    ours = expected_gradients(model, x, base, target, samples)
    assert ours.abs().max() > 1e-3
    torch.testing.assert_close(ours, theirs.float(), atol=1e-6, rtol=1e-4)

def reference(model, x, baselines, target, samples):
    "The formula, an image and a sample at a time"
    out = torch.zeros_like(x)
    for i,c in enumerate(target):
        for s in range(samples):
            b = baselines[s % len(baselines)]
            point = (b + (s + .5)/samples*(x[i] - b)).clone().requires_grad_()
            out[i] += torch.autograd.grad(model(point[None])[0, c], point)[0]*(x[i] - b)/samples
    return out

nets = {
    'resnet18': lambda: torchvision.models.resnet18(num_classes=10),
    'lite0': lambda: timm.create_model('tf_efficientnet_lite0', num_classes=10),
    'vit': lambda: timm.create_model('vit_tiny_patch16_224', num_classes=10, img_size=(32, 48), depth=3),
    'swin': lambda: torchvision.models.SwinTransformer([4, 4], 24, [1]*4, [1, 2, 2, 4], [7, 7], num_classes=10),
    'convnext': lambda: timm.create_model('convnext_atto', num_classes=10),
}

@pytest.fixture(scope='module', params=nets)
def net(request):
    torch.manual_seed(0)
    return nets[request.param]().eval()

def test_any_network(net):
    x, base, target = rand(2, 3, 32, 48), rand(2, 3, 32, 48, seed=1), [3, 8]
    net.double() # where rounding moves no value over the kink of a ReLU
    try: ours, theirs = expected_gradients(net, x.double(), base, target, 3), reference(net, x.double(), base.double(), target, 3).float()
    finally: net.float()
    torch.testing.assert_close(ours, theirs, atol=1e-5*float(theirs.abs().max()), rtol=1e-4)
    maps = saliency_maps(net, x, target, METHOD, baselines=base)
    assert maps.shape == (2, 32, 48) and maps.amax((1, 2)).tolist() == [1., 1.] and maps.min() == 0


# -- completeness --------------------------------------------------------------------------------------------------------------------------

def gained(model, x, base, target):
    "What the score gains from the mean baseline to each image"
    with torch.no_grad(): return model(x)[:, target] - model(base)[:, target].mean()

@pytest.mark.parametrize('samples', [1, 3, 6])
def test_attributions_of_a_linear_network_add_up(samples):
    "Exactly, with as many samples as baselines, once or twice"
    net, x, base = linear(), rand(4, 3, 4, 5), rand(min(samples, 3), 3, 4, 5, seed=1)
    got = expected_gradients(net, x, base, 2, samples).sum((1, 2, 3))
    torch.testing.assert_close(got, gained(net, x, base, 2), atol=1e-5, rtol=1e-5)

def test_attributions_add_up(model, x, base):
    """With m samples a baseline, one lies in each m-th part of the way: off by the variation of the slope along the way, over m, at most"""
    at = torch.linspace(0, 1, 4001)[:, None, None, None]
    def variation(image, b):
        with torch.no_grad(): scores = model(b + at*(image - b))[:, 2].double()
        return (scores.diff()*4000).diff().abs().sum()
    bound = torch.stack([torch.stack([variation(i, b) for b in base]).mean() for i in x])
    score, errors = gained(model, x, base, 2), []
    for m in (1, 10, 100):
        got = expected_gradients(model, x, base, 2, 3*m).sum((1, 2, 3))
        errors.append((got - score).abs())
        assert (errors[-1] <= bound/m + 1e-5).all()
    assert (errors[2] <= .01*score.abs().max()).all() and errors[2].max() < errors[0].max()/10


# -- the model is left as it was, and memory ---------------------------------------------------------------------------------------------------

def state_of(model):
    kinds = ('_forward_hooks', '_forward_pre_hooks', '_backward_hooks', '_backward_pre_hooks')
    return dict(modes=[m.training for m in model.modules()], hooks=sum(len(getattr(m, k)) for m in model.modules() for k in kinds),
                state={k: v.numpy().tobytes() for k,v in model.state_dict().items()}, grads=[p.grad is None for p in model.parameters()],
                needs=[p.requires_grad for p in model.parameters()], checkpoints=[getattr(m, 'grad_checkpointing', None) for m in model.modules()],
                streams=(random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist()), grad=torch.is_grad_enabled())

@pytest.mark.parametrize('checkpoints', [False, True])
def test_no_footprint(net, checkpoints):
    if checkpoints and not hasattr(net, 'set_grad_checkpointing'): pytest.skip("has no gradient checkpoints")
    x, base = rand(3, 3, 32, 48), rand(2, 3, 32, 48, seed=1)
    plain = saliency_maps(net, x, 1, METHOD, baselines=base)
    try:
        net.train()
        if checkpoints: net.set_grad_checkpointing(True)
        before, kept = state_of(net), (x.clone(), base.clone())
        assert torch.equal(saliency_maps(net, x, 1, METHOD, baselines=base), plain)
        expected_gradients(net, x, base)
        assert state_of(net) == before and torch.equal(x, kept[0]) and torch.equal(base, kept[1])
    finally:
        net.eval()
        if checkpoints: net.set_grad_checkpointing(False)

def test_no_footprint_after_an_error(model, x):
    model.train()
    before = state_of(model)
    with pytest.raises(ValueError, match='target'): saliency_maps(model, x, 99, METHOD)
    model.head[3].forward = lambda t: t.detach() @ torch.eye(48)[:, :5]
    with pytest.raises(ValueError, match='differentiated'): saliency_maps(model, x, 1, METHOD)
    del model.head[3].forward
    assert state_of(model) == before

def test_a_pass_is_over_before_the_next_one(model, x):
    "Memory is that of one sample, however many there are"
    kept, alive = [], []
    def hook(mod, inp, out):
        alive.append(sum(r() is not None for r in kept))
        kept.append(weakref.ref(out))
    handle = model.body[0].register_forward_hook(hook)
    expected_gradients(model, x, samples=20)
    handle.remove()
    assert len(kept) == 21 and max(alive) == 0

def test_images_without_a_score_cost_nothing(model, x, base):
    sizes = []
    handle = model.register_forward_hook(lambda m, i, o: sizes.append(len(o)))
    def some(logits): return class_scores(logits, torch.tensor([1, 2, 1, 2]))*torch.tensor([1., 0, 0, 1])[:, None]
    with torch.no_grad():
        for at in (InputGradients(base), InputGradients()):
            _, maps = raw_maps(model, x, at, METHOD, some)
            _, full = raw_maps(model, x, at, METHOD, lambda l: class_scores(l, torch.tensor([1, 2, 1, 2])))
            torch.testing.assert_close(maps[[0, 3]], full[[0, 3]], atol=1e-6, rtol=1e-4)
            assert not maps[1:3].any() and sizes == [4] + [2]*6 + [4] + [4]*6
            sizes.clear()
        raw_maps(model, x, InputGradients(base), METHOD, lambda l: torch.zeros_like(l))
    assert sizes == [4]
    handle.remove()

@pytest.mark.parametrize('bs', [1, 2, 3])
def test_chunks_change_nothing(model, x, base, bs):
    whole = saliency_maps(model, x, 1, METHOD, baselines=base)
    parts = torch.cat([saliency_maps(model, x[i:i+bs], 1, METHOD, baselines=base) for i in range(0, 4, bs)])
    torch.testing.assert_close(parts, whole, atol=1e-5, rtol=0)
    kw = dict(method=METHOD, baselines=base)
    torch.testing.assert_close(all_maps(model, x, 1, bs, **kw), whole, atol=1e-5, rtol=0)
    torch.testing.assert_close(all_maps(model, x, 1, bs, method=METHOD), all_maps(model, x, 1, 4, method=METHOD), atol=1e-5, rtol=0)

def test_frozen_weights_change_nothing(model, x):
    free = saliency_maps(model, x, 1, METHOD)
    for p in model.parameters(): p.requires_grad_(False)
    assert torch.equal(saliency_maps(model, x, 1, METHOD), free)

def test_inference_mode(model, x, base):
    expected = expected_gradients(model, x, base, 1)
    with torch.inference_mode():
        got = expected_gradients(model, x.clone(), base.clone(), 1)
        assert torch.is_inference_mode_enabled()
        theirs = x.clone(), base.clone()
    assert torch.equal(got, expected) and torch.equal(expected_gradients(model, *theirs, 1), expected)

def test_types(model, x, base):
    from fastai.vision.core import TensorImage
    expected = expected_gradients(model, x, base, 1)
    got = expected_gradients(model, TensorImage(x), TensorImage(base), 1)
    assert type(got) is torch.Tensor and torch.equal(got, expected) and not got.requires_grad
    double = expected_gradients(model.double(), x.double(), base, 1)
    torch.testing.assert_close(double, expected, atol=1e-6, rtol=1e-4)
    half = expected_gradients(model.bfloat16(), x.bfloat16(), base, 1)
    assert double.dtype == half.dtype == torch.float32 and torch.cosine_similarity(half.flatten(), expected.flatten(), dim=0) > .98

def test_a_network_that_changes_its_input_in_place(x, base):
    class InPlace(nn.Module):
        def __init__(self): super().__init__(); self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(4, 3)
        def forward(self, x): return self.fc(self.conv(x.sub_(1).mul_(3)).relu().mean((2, 3)))
    torch.manual_seed(0)
    net, kept = InPlace(), x.clone()
    assert saliency_maps(net, x, 1, METHOD, baselines=base).any() and torch.equal(x, kept)

@pytest.mark.parametrize('change', [dict(samples=3), dict(blur=0), dict(blur=1/4), dict(baselines=rand(3, 3, 16, 20, seed=6)), dict(baselines=None), dict(target=2)], ids=str)
def test_every_argument_matters(model, x, base, change):
    kw = dict(target=1, method=METHOD, baselines=base)
    assert not torch.allclose(saliency_maps(model, x, **kw), saliency_maps(model, x, **(kw | change)), atol=1e-2)

def test_what_stands_in_a_layers_place(model, x, base):
    assert method_layer(model, x, METHOD) == InputGradients() and layer_of(model, InputGradients(None, 3)) == InputGradients(None, 3)
    given = InputGradients(base, 3, 1/4)
    assert torch.equal(saliency_maps(model, x, 1, METHOD, layer=given), saliency_maps(model, x, 1, METHOD, baselines=base, samples=3, blur=1/4))


# -- what is refused ---------------------------------------------------------------------------------------------------------------------------

bad = [
    (dict(samples=0), ValueError, r'samples=0 .*at least 1'), (dict(samples=1.5), ValueError, 'samples=1.5.*whole'), (dict(samples='6'), TypeError, "samples='6'"),
    (dict(samples=True), TypeError, 'samples=True'), (dict(samples=None), TypeError, 'samples=None'),
    (dict(blur=-.1), ValueError, r'blur=-0.1 .*0 to 0.5'), (dict(blur=.51), ValueError, r'blur=0.51 .*0 to 0.5'), (dict(blur='a'), TypeError, "blur='a'"),
    (dict(blur=float('nan')), ValueError, 'blur=nan'),
    (dict(baselines=rand(2, 3, 8, 8)), ValueError, r'baselines must be \(S,3,16,20\).*got \(2, 3, 8, 8\)'),
    (dict(baselines=rand(3, 16, 20)), ValueError, r'baselines must be \(S,3,16,20\)'), (dict(baselines=rand(0, 3, 16, 20)), ValueError, 'baselines must be'),
    (dict(baselines=np.zeros((1, 3, 16, 20))), TypeError, 'baselines must be a float tensor.*ndarray'),
    (dict(baselines=torch.zeros(1, 3, 16, 20).long()), TypeError, 'baselines must be a float tensor'),
    (dict(layer='body'), ValueError, f"layer='body': method='{METHOD}' .*takes no layer"), (dict(reshape=lambda t: t), ValueError, 'reshape=.*leave it out'),
    (dict(method='gradcam', baselines=rand(2, 3, 16, 20)), ValueError, "baselines= is for method='expected_gradients'"),
]

@pytest.mark.parametrize('kwargs, error, match', bad, ids=lambda v: '-'.join(v) if isinstance(v, dict) else '')
def test_bad_arguments(model, x, kwargs, error, match):
    with pytest.raises(error, match=match): saliency_maps(model, x, **(dict(method=METHOD) | kwargs))
    if {'blur', 'layer', 'reshape', 'method'} & kwargs.keys(): return
    with pytest.raises(error, match=match): expected_gradients(model, x, **kwargs)

def test_one_image_without_baselines(model, x):
    for f in (lambda: saliency_maps(model, x[:1], 1, METHOD), lambda: expected_gradients(model, x[:1])):
        with pytest.raises(ValueError, match=r'baselines=None: .*only one.*\(S,3,16,20\)'): f()
    assert not saliency_maps(model, x[:1], 1, METHOD, baselines=x[:1]).any() # against itself there is nothing to see

class Detached(nn.Module):
    def __init__(self, how='detach'): super().__init__(); self.how, self.net = how, tiny_model()
    def forward(self, x):
        if self.how == 'no_grad':
            with torch.no_grad(): return self.net(x)
        return self.net(x.detach())

@pytest.mark.parametrize('frozen', [False, True])
@pytest.mark.parametrize('how', ['detach', 'no_grad'])
def test_a_network_that_is_not_differentiable(how, frozen):
    net = Detached(how).requires_grad_(not frozen)
    for f in (saliency_maps, expected_gradients):
        with pytest.raises(ValueError, match="Detached can't be differentiated down to the image.*gradcam"):
            f(net, rand(2, 3, 32, 32), target=1, **(dict(method=METHOD) if f is saliency_maps else {}))

@pytest.mark.parametrize('what, name', [('parameter', '0.0.weight'), ('buffer', '0.1.running_mean')])
def test_a_network_made_in_inference_mode(what, name):
    net = tiny_model()
    with torch.inference_mode():
        if what == 'parameter': net[0][0].weight = nn.Parameter(torch.randn(8, 3, 3, 3))
        else: net[0][1].running_mean = torch.zeros(8)
    with pytest.raises(ValueError, match=f"{what} '{name}' was made in torch.inference_mode"): saliency_maps(net, rand(2, 3, 32, 32), 1, METHOD)

class Greedy(nn.Module):
    "Too large for a batch of more than two"
    def __init__(self, error): super().__init__(); self.error, self.net = error, tiny_model()
    def forward(self, x):
        if len(x) > 2: raise self.error
        return self.net(x)

@pytest.mark.parametrize('method', [METHOD, 'gradcam'])
@pytest.mark.parametrize('error', [torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 2.00 GiB'), RuntimeError('HIP out of memory'),
                                   RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried")], ids=['cuda', 'hip', 'cpu'])
def test_out_of_memory(method, error):
    net = Greedy(error)
    with pytest.raises(type(error), match=f"method='{method}' ran out of memory with 3 images.*bs=.*{str(error)[-14:]}"):
        saliency_maps(net, rand(3, 3, 32, 32), 1, method, layer=None if method == METHOD else 'net.0')
    assert saliency_maps(net, rand(2, 3, 32, 32), 1, method, layer=None if method == METHOD else 'net.0').shape == (2, 32, 32)

def test_other_errors_of_a_model_are_told_as_its_own():
    with pytest.raises(ValueError, match="^the model can't take x .*: boom$") as e: saliency_maps(Greedy(RuntimeError('boom')), rand(3, 3, 32, 32), 1, METHOD)
    assert type(e.value.__cause__) is RuntimeError and str(e.value.__cause__) == 'boom'


# -- in a scan ---------------------------------------------------------------------------------------------------------------------------------

def run_scan(dls, model, at, **kwargs):
    with no_footprint(model): return scan(model, dls, dls.train.dataset, dls.train.n, at, METHOD, 'pred', **kwargs)

@pytest.fixture
def coded():
    torch.manual_seed(0)
    return coded_dls(bs=5), tiny_model().eval()

def test_baselines_of_a_scan_are_training_images_as_validation_sees_them(coded):
    dls, model = coded
    got = draw_baselines(model, dls, dls.train.dataset, 24, 6)
    numbers = [round(float(v)*255) for v in got[:, 0, 0, 0]]
    assert got.shape == (6, 3, 32, 32) and len(set(numbers)) == 6 and all(0 <= k < 24 for k in numbers)
    for k,b in zip(numbers, got): torch.testing.assert_close(b, dls.train.dataset.items[k][0].float()/255)
    assert torch.equal(draw_baselines(model, dls, dls.train.dataset, 24, 6), got)
    assert not torch.equal(draw_baselines(model, dls, dls.train.dataset, 24, 6, seed=1), got)
    assert len(draw_baselines(model, dls, dls.train.dataset, 24, 100)) == 24 and len(draw_baselines(model, dls, dls.train.dataset, 3, 6)) == 3

def test_a_scan_is_the_maps_of_its_images(coded):
    dls, model = coded
    base = draw_baselines(model, dls, dls.train.dataset, 24, 4)
    found = run_scan(dls, model, InputGradients(base, 4, 1/8))
    x = torch.stack([img.float()/255 for img,_ in dls.train.dataset.items])
    assert found.maps.shape == (24, 16, 16) and not found.flat.any()
    _, raw = raw_maps(model, x, InputGradients(base, 4, 1/8), METHOD, lambda l: class_scores(l, l.argmax(1)))
    torch.testing.assert_close(found.maps, normalise(raw), atol=1e-4, rtol=0)

def test_only_the_maps_that_are_wanted_are_paid_for(coded):
    dls, model = coded
    base = draw_baselines(model, dls, dls.train.dataset, 24, 2)
    whole, sizes = run_scan(dls, model, InputGradients(base, 2)), []
    handle = model.register_forward_hook(lambda m, i, o: sizes.append(len(o)))
    some = run_scan(dls, model, InputGradients(base, 2), wants=lambda part: np.arange(len(part)) == 1)
    handle.remove()
    assert sizes == [5, 1, 1]*4 + [4, 1, 1]
    mapped = some.maps.flatten(1).any(1)
    assert mapped.nonzero().flatten().tolist() == [1, 6, 11, 16, 21] and (some.classes[mapped.numpy()] >= 0).any(1).all() and (some.classes[~mapped.numpy()] == -1).all()
    torch.testing.assert_close(some.maps[mapped], whole.maps[mapped], atol=1e-4, rtol=0)

def test_unreadable_images_are_no_baselines(shapes, tmp_path):
    dls = shapes_dls(shapes, bs=4)
    model, files = tiny_model().eval(), list(dls.train_ds.items)
    before = draw_baselines(model, dls, dls.train_ds, 27, 27)
    assert before.shape == (27, 3, 32, 32)
    kept = {f: f.read_bytes() for f in files[::2]}
    try:
        for f in kept: f.write_bytes(b'no image')
        got = draw_baselines(model, dls, dls.train_ds, 27, 6)
        assert len(got) == 6 and len(draw_baselines(model, dls, dls.train_ds, 27, 27)) == 13
        whole = {b.numpy().tobytes() for b in before}
        assert all(b.numpy().tobytes() in whole for b in got)
        with pytest.raises(OSError, match='no training item can be read'): draw_baselines(model, dls, dls.train_ds, 1, 6)
    finally:
        for f,data in kept.items(): f.write_bytes(data)

def test_images_of_several_sizes(tmp_path):
    class Mixed(Coded):
        def __getitem__(self, i): return self.items[i][0][:, :32 - i % 2], self.items[i][1]
    dls = coded_dls(Mixed(), Mixed(9, 1, 100), bs=1)
    with pytest.raises(ValueError, match=r'several sizes: \(3, 31, 32\), \(3, 32, 32\).*Resize'): draw_baselines(tiny_model(), dls, dls.train.dataset, 24, 6)


# -- in the callback ---------------------------------------------------------------------------------------------------------------------------

def fitted(shapes, path, **kwargs):
    learn = make_learner(lambda: shapes_dls(shapes), quiet_cb(**(dict(method=METHOD, select='all', path=path, area=.2) | kwargs)))
    learn.fit(1, 1e-3)
    return learn

def test_samples_blur_and_seed_change_the_copies(shapes, tmp_path):
    "And nothing else does: the same settings make the same copies"
    first, again = (copy_bytes(fitted(shapes, tmp_path/str(k))) for k in range(2))
    assert len(first) == 27 and first == again
    for k,change in enumerate((dict(samples=2), dict(blur=1/4), dict(blur=0), dict(seed=1))):
        other = copy_bytes(fitted(shapes, tmp_path/f'other{k}', **change))
        assert other.keys() == first.keys() and sum(other[f] != first[f] for f in first) > 13, change

def test_attributes_hold_for_the_next_step(shapes, tmp_path):
    learn = fitted(shapes, tmp_path/'run', samples=2)
    cb = learn.proxy_attention_cb
    assert (cb.samples, cb.blur) == (2, 1/12)
    cb.samples, cb.blur = 6, 0
    cb.make_proxies()
    maps = list(cb.copies.erasers.values())[-1].seen.maps
    assert maps.shape == (27, 32, 32)
    cb.blur, cb.method = 1/2, METHOD
    cb.make_proxies()
    assert list(cb.copies.erasers.values())[-1].seen.maps.shape == (27, 4, 4)
    cb.method = 'gradcam'
    cb.make_proxies()
    assert set(learn.proxies['method']) <= {'gradcam'}
    cb.samples = 0
    with pytest.raises(ValueError, match='samples=0'): assert cb.policy

def test_a_scout_looks_with_it(shapes, tmp_path):
    cb = ProxyAttentionCB(method=METHOD, scout='2 steps', scout_test=False, select=None, path=tmp_path/'run', verbose=False, samples=2)
    learn = make_learner(lambda: shapes_dls(shapes), cb)
    learn.fit(1, 1e-3)
    assert len(learn.proxies) and set(learn.proxies['method']) == {METHOD} and cb.last_report.seconds_saliency > 0

def test_a_step_without_copies_leaves_no_trace(shapes, tmp_path):
    def after(cb):
        learn = make_learner(lambda: shapes_dls(shapes), cb)
        learn.fit(1, 1e-3)
        return footprint(learn)
    assert after(None) == after(quiet_cb(method=METHOD, select='all', fill='unchanged', suspects=list(range(27)), path=tmp_path/'run'))

def test_wrong_images_only(shapes, tmp_path):
    learn = fitted(shapes, tmp_path/'run', select='wrong')
    assert 0 < len(copied_files(learn)) < 27

@pytest.mark.parametrize('kwargs, error, match', [(dict(samples=0), ValueError, 'samples=0'), (dict(samples='6'), TypeError, "samples='6'"), (dict(blur=.6), ValueError, 'blur=0.6'),
                                                  (dict(blur=-1), ValueError, 'blur=-1'), (dict(blur=None), TypeError, 'blur=None')], ids=str)
def test_numbers_out_of_range(kwargs, error, match):
    for f in (ProxyAttentionCB, Policy):
        with pytest.raises(error, match=match): f(**kwargs)

def test_presets_are_as_they_were():
    assert Policy().samples == 6 and Policy().blur == 1/12 and not any({'samples', 'blur'} & p.keys() for p in presets.values())

@pytest.mark.parametrize('model, kwargs, match', [(Detached, {}, "can't be differentiated down to the image"), (tiny_model, dict(layer='0'), "layer='0': .*takes no layer"),
                                                  (tiny_model, dict(reshape=lambda t: t), 'reshape=.*takes no layer')], ids=['detached', 'layer', 'reshape'])
def test_what_it_can_not_do_is_said_before_training(shapes, tmp_path, model, kwargs, match):
    learn = make_learner(lambda: shapes_dls(shapes), quiet_cb(method=METHOD, path=tmp_path/'run', **kwargs), model=model())
    before = weights(learn.model)
    with pytest.raises(ValueError, match=match): learn.fit(1, 1e-3)
    assert same_weights(weights(learn.model), before) and not Path(tmp_path/'run').exists()


# -- in the lab --------------------------------------------------------------------------------------------------------------------------------

def test_keys_of_the_lab():
    from proxy_attention.lab.config.sections import ProxyConfig
    conf = ProxyConfig(method=METHOD, samples='3', blur='0.25')
    assert conf.policy == dict(method=METHOD, samples=3, blur=.25) and Policy(**conf.policy).samples == 3
    assert ProxyConfig().policy == {} and ProxyConfig(blur='0').policy == dict(blur=0.)
    with pytest.raises(ValueError, match='samples'): ProxyConfig(samples='1.5')

def test_maps_of_the_lab_do_not_depend_on_the_batch(coded):
    from proxy_attention.lab.runs.measuring import loader_maps
    dls, model = coded
    maps = loader_maps(model, dls.valid, METHOD) # the last batch is smaller
    assert maps.shape == (9, 32, 32) and maps.flatten(1).any(1).sum() >= 8

def test_it_may_judge():
    "It is tried on one image, which has nothing else to be set against"
    from proxy_attention.lab.runs.plan import _try_judge
    _try_judge(METHOD, 'small_cnn', 8, 32)
    with pytest.raises(ValueError, match="judge='rollout' is not for arch='small_cnn'"): _try_judge('rollout', 'small_cnn', 8, 32)
