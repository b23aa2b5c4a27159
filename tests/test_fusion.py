"""`layer=` as a list: maps of several layers, read in one pass, against the mean of the single maps; in the callback; and what is refused."""
import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from kit import copy_bytes, files_in, hooks_of, make_learner, quiet_cb, same_weights, shapes_dls, tiny_model, weights
from proxy_attention.callback import ProxyAttentionCB
from studies.map_checks import randomisation_check
from proxy_attention.layers import FeatureLayer, feature_layer
from proxy_attention.saliency import OnAttention, OnInput, class_scores, fused, method_layer, normalise, raw_maps, saliency_maps, saliency_methods
from proxy_attention.scan import layer_of

methods = [m for m,f in saliency_methods.items() if m != 'cam' and not isinstance(f, (OnAttention, OnInput))]


class Net(nn.Module):
    "Three grids: 16x20, 8x10 and 4x5; in-place ReLUs behind each of the layers"
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 6, 3, 2, 1), nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(6, 8, 3, 2, 1), nn.BatchNorm2d(8))
        self.three = nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(8, 12, 3, 2, 1))
        self.head = nn.Sequential(nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(48, 5))
    def forward(self, x): return self.head(self.three(self.two(self.one(x))))

@pytest.fixture
def model():
    torch.manual_seed(3)
    net = Net()
    net(torch.randn(16, 3, 32, 40))
    return net.eval()

@pytest.fixture
def x(): return torch.randn(4, 3, 32, 40, generator=torch.Generator().manual_seed(4))

def of_class(logits): return class_scores(logits, torch.ones(len(logits), dtype=torch.long))

def single(model, x, name, method, size):
    "The map of one layer by itself: normalised, then enlarged"
    _, raw = raw_maps(model, x, feature_layer(model, x, name), method, of_class)
    return F.interpolate(normalise(raw)[:, None], size, mode='bilinear', align_corners=False)[:, 0]

def stretched(maps, x):
    big = F.interpolate(maps[:, None], x.shape[2:], mode='bilinear', align_corners=False)[:, 0]
    low, high = big.amin((1, 2), keepdim=True), big.amax((1, 2), keepdim=True)
    return (big - low)/(high - low)

names = [('one', 'three'), ('three', 'two'), ('one', 'two', 'three'), ('two', 'two.1')] # the last: one inside of the other

@pytest.mark.parametrize('layers', names, ids='+'.join)
@pytest.mark.parametrize('method', methods)
def test_fusion_is_the_mean_of_the_single_maps(model, x, method, layers):
    size = (16, 20) if 'one' in layers else (8, 10)
    mean = sum(single(model, x, n, method, size) for n in layers)/len(layers)
    _, raw = raw_maps(model, x, method_layer(model, x, method, list(layers)), method, of_class)
    torch.testing.assert_close(raw, mean, atol=1e-5, rtol=0)
    torch.testing.assert_close(saliency_maps(model, x, 1, method, layer=list(layers)), stretched(mean, x), atol=1e-5, rtol=0)

nets = {
    'resnet18': (lambda: torchvision.models.resnet18(num_classes=10), ('layer2', 'layer4'), (12, 8)),
    'lite0': (lambda: timm.create_model('tf_efficientnet_lite0', num_classes=10), ('blocks.4', 'bn2'), (6, 4)),
    'densenet': (lambda: torchvision.models.DenseNet(8, (2, 2), 16, num_classes=10), ('features.denseblock1', 'features'), (24, 16)),
    'vit': (lambda: timm.create_model('vit_tiny_patch16_224', num_classes=10, img_size=(96, 64), depth=4), ('blocks.1.norm1', 'blocks.3.norm1'), (6, 4)),
    'swin': (lambda: timm.create_model('swin_tiny_patch4_window7_224', num_classes=10, img_size=(96, 64)), ('layers.1', 'layers.2'), (12, 8)),
}

@pytest.mark.parametrize('frozen', [False, True])
@pytest.mark.parametrize('net', nets)
def test_networks_of_all_kinds(net, frozen):
    torch.manual_seed(0)
    make, layers, size = nets[net]
    model, x = make().eval().requires_grad_(not frozen), torch.randn(2, 3, 96, 64)
    for method in ('gradcam', 'layercam'):
        mean = sum(single(model, x, n, method, size) for n in layers)/2
        _, raw = raw_maps(model, x, method_layer(model, x, method, layers), method, of_class)
        torch.testing.assert_close(raw, mean, atol=1e-4, rtol=0)

def test_two_branches():
    "Neither layer lies behind the other, with parameters frozen and not"
    class Branches(nn.Module):
        def __init__(self): super().__init__(); self.a, self.b, self.fc = nn.Conv2d(3, 4, 3, 2), nn.Conv2d(3, 4, 3, 2), nn.Linear(4, 3)
        def forward(self, x): return self.fc((self.a(x).relu()*self.b(x)).mean((2, 3)))
    torch.manual_seed(0)
    model, x = Branches(), torch.randn(2, 3, 16, 16)
    for frozen in (False, True):
        model.requires_grad_(not frozen)
        mean = sum(single(model, x, n, 'layercam', (7, 7)) for n in 'ab')/2
        torch.testing.assert_close(raw_maps(model, x, method_layer(model, x, 'layercam', ['b', 'a']), 'layercam', of_class)[1], mean, atol=1e-5, rtol=0)

def test_a_layer_that_passes_on_what_others_use_too():
    "The gradient is that of the layer's own output, not of its input's other uses"
    class Skip(nn.Module):
        def __init__(self): super().__init__(); self.first, self.same, self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Identity(), nn.Conv2d(4, 4, 3, padding=1), nn.Linear(4, 3)
        def forward(self, x):
            x = self.first(x)
            return self.fc((self.same(x) - 5*self.conv(x)).tanh().mean((2, 3)))
    torch.manual_seed(0)
    model, x = Skip(), torch.randn(2, 3, 16, 16)
    mean = sum(single(model, x, n, 'hirescam', (14, 14)) for n in ('first', 'same'))/2
    torch.testing.assert_close(raw_maps(model, x, method_layer(model, x, 'hirescam', ['first', 'same']), 'hirescam', of_class)[1], mean, atol=1e-5, rtol=0)

def test_a_map_that_says_nothing_takes_no_part():
    flat, map_ = torch.ones(1, 2, 2), torch.tensor([[[0., 1.], [0., 0.]]])
    assert torch.equal(fused([flat, map_]), map_/2) and not fused([flat, flat]).any()
    assert fused([torch.ones(1, 4, 2), torch.ones(1, 2, 6)]).shape == (1, 4, 6)

@pytest.mark.parametrize('method', methods)
def test_a_list_of_one_is_the_layer(model, x, method):
    alone = saliency_maps(model, x, 1, method, layer='two')
    for layer in (['two'], ('two',), [model.two], [feature_layer(model, x, 'two')]): assert torch.equal(saliency_maps(model, x, 1, method, layer=layer), alone)

@pytest.mark.parametrize('method', methods)
def test_order_and_names_do_not_matter(model, x, method):
    first = saliency_maps(model, x, 1, method, layer=['one', 'two', 'three'])
    assert not torch.allclose(first, saliency_maps(model, x, 1, method, layer=['one', 'two']), atol=1e-3)
    for layer in (['three', 'one', 'two'], (model.two, 'one', model.three), [feature_layer(model, x, n) for n in ('two', 'three', 'one')],
                  method_layer(model, x, method, ['three', 'two', 'one'])):
        torch.testing.assert_close(saliency_maps(model, x, 1, method, layer=layer), first, atol=1e-5, rtol=0)

def test_one_pass_and_no_hooks(model, x):
    sizes, found = [], method_layer(model, x, 'gradcam', ['one', 'three'])
    handle = model.register_forward_hook(lambda m, i, o: sizes.append(len(o)))
    logits, _ = raw_maps(model, x, found, 'gradcam', of_class)
    handle.remove()
    assert sizes == [4] and hooks_of(model) == 0 and all(p.grad is None for p in model.parameters())
    with torch.no_grad(): torch.testing.assert_close(logits, model(x), atol=1e-6, rtol=1e-5)
    assert raw_maps(model, x, found, 'gradcam', lambda l: None)[1] is None
    with torch.inference_mode(): within = saliency_maps(model, x.clone(), 1, layer=['one', 'three'])
    assert torch.equal(within, saliency_maps(model, x, 1, layer=['one', 'three']))

def test_cam_says_which_layer_it_is_not_for(x):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 6, 3)), nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3)))
    with pytest.raises(ValueError, match="method='cam' is exact only.*'0.0'"): saliency_maps(model, x, 1, 'cam', layer=['0.2', '0.0'])

def test_reshape_is_for_all(model, x):
    turned = saliency_maps(model, x, 1, layer=['one', 'three'], reshape=lambda t: t.flip(3)).flip(2)
    torch.testing.assert_close(turned, saliency_maps(model, x, 1, layer=['one', 'three']), atol=1e-5, rtol=0)

def test_a_copy_has_layers_of_its_own(model, x):
    import copy
    found, other = method_layer(model, x, 'gradcam', ['one', 'three']), copy.deepcopy(model)
    there = layer_of(other, found)
    assert [f.name for f in there] == ['one', 'three'] and there[0].module is other.one and there[1].module is other.three and type(there[0]) is FeatureLayer
    assert randomisation_check(model, x, 'layercam', 1, layer=[model.one, 'three']) == randomisation_check(model, x, 'layercam', 1, layer=['one', 'three'])


# -- what is refused ---------------------------------------------------------------------------------------------------------------------------

bad = [([], ValueError, r'layer=\[\] is empty'), ((), ValueError, r'layer=\(\) is empty'), (['one', 'head'], ValueError, "layer='head' has no spatial output"),
       (['head.3', 'one'], ValueError, "layer='head.3' has no spatial output"), (['one', 'tow'], ValueError, "layer='tow' names no module.*'two'"),
       (['one', 3], TypeError, 'layer=3 is neither'), ([['one', 'two']], TypeError, 'is neither a module nor its dotted name')]

@pytest.mark.parametrize('layer, error, match', bad, ids=str)
def test_bad_lists(model, x, layer, error, match):
    with pytest.raises(error, match=match): saliency_maps(model, x, 1, layer=layer)
    assert hooks_of(model) == 0

def test_a_layer_that_takes_no_part(model, x):
    model.spare = nn.Conv2d(3, 3, 1)
    with pytest.raises(ValueError, match="layer='spare' takes no part"): saliency_maps(model, x, 1, layer=['one', 'spare'])
    with pytest.raises(ValueError, match="layer='spare' takes no part"): saliency_maps(model, x, 1, layer=[feature_layer(model, x, 'one'), FeatureLayer('spare', model.spare)])
    class Unused(Net):
        def forward(self, x): return self.head(self.three(self.two(self.one(x)))) + 0*self.side(x).detach().mean()
    torch.manual_seed(0)
    net = Unused()
    net.side = nn.Conv2d(3, 3, 1)
    with pytest.raises(ValueError, match="layer='side': what it gives isn't used"): saliency_maps(net.eval(), x, 1, layer=['one', 'side'])

@pytest.mark.parametrize('method', ['rollout', 'gradrollout', 'expected_gradients'])
@pytest.mark.parametrize('layer', [['blocks.0', 'blocks.1'], ['blocks.0'], []], ids=str)
def test_lists_for_methods_that_read_no_layer(method, layer):
    model = timm.create_model('vit_tiny_patch16_224', num_classes=3, img_size=32, depth=2)
    with pytest.raises(ValueError, match=rf"layer=\[.*method='{method}' .*takes no layer"): saliency_maps(model, torch.randn(2, 3, 32, 32), 1, method, layer=layer)


# -- in the callback ---------------------------------------------------------------------------------------------------------------------------

def test_copies_by_several_layers(shapes, tmp_path):
    def made(name, **kwargs):
        learn = make_learner(lambda: shapes_dls(shapes), quiet_cb(select='all', area=.2, path=tmp_path/name, **kwargs))
        learn.fit(1, 1e-3)
        maps = list(learn.proxy_attention_cb.copies.erasers.values())[-1].seen.maps
        assert hooks_of(learn.model) == 0
        return copy_bytes(learn), maps
    late,both,turned,one = (made(str(k), layer=v) for k,v in enumerate(('0', ['0.0', '0'], ('0', '0.0'), ['0'])))
    assert late[0] == one[0] and both[0] == turned[0] and sum(both[0][k] != late[0][k] for k in late[0]) > 13
    assert late[1].shape[1:] == (8, 8) and both[1].shape[1:] == (16, 16)

def test_a_scout_reads_layers_of_its_own(shapes, tmp_path):
    cb = ProxyAttentionCB(method='layercam', layer=['0.0', '0'], scout='2 steps', scout_test=False, select=None, path=tmp_path/'run', verbose=False)
    learn = make_learner(lambda: shapes_dls(shapes), cb)
    learn.fit(1, 1e-3)
    assert len(learn.proxies) and cb.copies.erasers[0].seen.maps.shape[1:] == (16, 16)

@pytest.mark.parametrize('kwargs, match', [(dict(layer=[]), 'is empty'), (dict(layer=['0', '1.2']), "layer='1.2' has no spatial output"),
                                           (dict(layer=['0', '0.0'], method='expected_gradients'), 'takes no layer')], ids=str)
def test_bad_lists_are_told_before_training(shapes, tmp_path, kwargs, match):
    learn = make_learner(lambda: shapes_dls(shapes), quiet_cb(path=tmp_path/'run', **kwargs), model=tiny_model())
    before, here = weights(learn.model), files_in(tmp_path)
    with pytest.raises(ValueError, match=match): learn.fit(1, 1e-3)
    assert same_weights(weights(learn.model), before) and files_in(tmp_path) == here
