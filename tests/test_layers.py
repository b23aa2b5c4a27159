"""The last spatial feature map of every family of networks: its name, its grid, its channels first."""
import copy
import gc
import pickle
import weakref

import pytest
import timm
import torch
import torchvision
from torch import nn

from proxy_attention.layers import (FeatureLayer, _layer_cache, cached_feature_layer, channels_first, feature_layer, named_layer, tokens_to_grid,
                                    unwrap)
from proxy_attention.saliency import saliency_maps

tv = torchvision.models

def small_tv_vit():
    vit = tv.VisionTransformer(64, 16, num_layers=3, num_heads=2, hidden_dim=32, mlp_dim=64, num_classes=5)
    nn.init.normal_(vit.heads[0].weight) # made of zeros, which have no gradient
    return vit

def small_swin(name='swin_tiny_patch4_window7_224', **kwargs):
    tiny = dict(embed_dim=24, depths=(1, 1, 1, 1), num_heads=(1, 2, 2, 4), window_size=4)
    return timm.create_model(name, num_classes=5, img_size=(64, 96), **tiny, **kwargs)

def small_tv_swin(): return tv.SwinTransformer([4, 4], 24, [1, 1, 1, 1], [1, 2, 2, 4], [4, 4], num_classes=5)

def small_vit(name='vit_tiny_patch16_224', **kwargs): return timm.create_model(name, num_classes=5, img_size=(64, 96), depth=3, **kwargs)

def small_timm(name, **kwargs): return timm.create_model(name, num_classes=5, **kwargs)

# name: (model, layer found, channels, grid of a 64x96 image, channels already first?)
families = {
    'tv resnet18': (lambda: tv.resnet18(num_classes=5), 'layer4', 512, (2, 3), True),
    'tv vgg11': (lambda: tv.vgg11(num_classes=5, init_weights=False), 'features', 512, (2, 3), True),
    'tv densenet': (lambda: tv.DenseNet(8, (2, 2), 16, num_classes=5), 'features', 32, (8, 12), True),
    'tv efficientnet_b0': (lambda: tv.efficientnet_b0(num_classes=5), 'features', 1280, (2, 3), True),
    'tv convnext_tiny': (lambda: tv.convnext_tiny(num_classes=5), 'features', 768, (2, 3), True),
    'tv regnet_y_400mf': (lambda: tv.regnet_y_400mf(num_classes=5), 'trunk_output', 440, (2, 3), True),
    'tv mobilenet_v2': (lambda: tv.mobilenet_v2(num_classes=5), 'features', 1280, (2, 3), True),
    'tv mobilenet_v3_small': (lambda: tv.mobilenet_v3_small(num_classes=5), 'features', 576, (2, 3), True),
    'tv swin': (small_tv_swin, 'permute', 192, (2, 3), True),
    'timm resnet10t': (lambda: small_timm('resnet10t'), 'layer4', 512, (2, 3), True),
    'timm vgg11': (lambda: small_timm('vgg11', mlp_ratio=1/64), 'features', 512, (2, 3), True),
    'timm densenet121': (lambda: small_timm('densenet121'), 'features', 1024, (2, 3), True),
    'timm efficientnet_b0': (lambda: small_timm('efficientnet_b0'), 'bn2', 1280, (2, 3), True),
    'timm tf_efficientnet_lite0': (lambda: small_timm('tf_efficientnet_lite0'), 'bn2', 1280, (2, 3), True),
    'timm convnext_atto': (lambda: small_timm('convnext_atto'), 'stages', 320, (2, 3), True),
    'timm regnetx_002': (lambda: small_timm('regnetx_002'), 's4', 368, (2, 3), True),
    'timm mobilenetv3_small_050': (lambda: small_timm('mobilenetv3_small_050'), 'blocks', 288, (2, 3), True),
    'timm vit': (small_vit, 'blocks.2.norm1', 192, (4, 6), False),
    'timm vit, average pooling': (lambda: small_vit(global_pool='avg'), 'blocks.2.norm1', 192, (4, 6), False),
    'timm vit, registers': (lambda: small_vit(reg_tokens=4), 'blocks.2.norm1', 192, (4, 6), False),
    'timm deit': (lambda: small_vit('deit_tiny_patch16_224'), 'blocks.2.norm1', 192, (4, 6), False),
    'timm deit, distilled': (lambda: small_vit('deit_tiny_distilled_patch16_224'), 'blocks.2.norm1', 192, (4, 6), False),
    'timm swin': (small_swin, 'norm', 192, (2, 3), False),
    'timm swin v2': (lambda: small_swin('swinv2_tiny_window8_256'), 'norm', 192, (2, 3), False),
}

def output(model, found, x):
    kept = []
    handle = found.module.register_forward_hook(lambda m,i,o: kept.append(found.maps(o)))
    with torch.no_grad(): model(x)
    handle.remove()
    return kept[-1]

def check_family(model, name, channels, grid, first, size=(64, 96)):
    torch.manual_seed(0)
    x = torch.randn(2, 3, *size)
    found = feature_layer(model, x)
    assert found.name == name and dict(model.named_modules())[name] is found.module
    assert (found.reshape is None) == first
    assert output(model, found, x).shape == (2, channels, *grid)
    maps = saliency_maps(model, x, 1)
    assert maps.shape == (2, *size)
    assert maps.amax((1, 2)).min() > 0.99, "a map says nothing"

@pytest.mark.parametrize('family', families)
def test_automatic_layer(family):
    torch.manual_seed(0)
    make, *expected = families[family]
    check_family(make().eval(), *expected)

def test_torchvision_vit():
    torch.manual_seed(0)
    check_family(small_tv_vit().eval(), 'encoder.layers.encoder_layer_2.ln_1', 32, (4, 4), False, (64, 64))

fastai_models = {
    'resnet18': (lambda: _fastai(tv.resnet18), '0', 512, (2, 3), True),
    'timm convnext_atto': (lambda: _fastai_timm('convnext_atto'), '0', 320, (2, 3), True),
    'timm vit': (lambda: _fastai_timm('vit_tiny_patch16_224', img_size=(64, 96), depth=3), '0.model.blocks.2.norm1', 192, (4, 6), False),
}

def _fastai(arch):
    from fastai.vision.learner import create_vision_model
    return create_vision_model(arch, 5, pretrained=False)

def _fastai_timm(name, **kwargs):
    from fastai.vision.learner import create_timm_model
    return create_timm_model(name, 5, pretrained=False, **kwargs)[0]

@pytest.mark.parametrize('family', fastai_models)
def test_fastai_vision_learner(family):
    torch.manual_seed(0)
    make, *expected = fastai_models[family]
    check_family(make().eval(), *expected)

heads = {
    'sequential': lambda: nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)),
    'mlp': lambda: nn.Sequential(nn.Flatten(), nn.Linear(8*32*48, 16), nn.ReLU(), nn.Linear(16, 5)),
    'convolutions': lambda: nn.Sequential(nn.Conv2d(8, 5, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()), # 4-D too, but the head's
}

@pytest.mark.parametrize('head', heads)
def test_any_body_and_head(head):
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU())
    check_family(nn.Sequential(body, heads[head]()).eval(), '0', 8, (32, 48), True)

def test_one_flat_sequential():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))
    check_family(model.eval(), '2', 8, (32, 48), True)

class SqueezeExcite(nn.Module):
    "Pools to a point inside of the body, which isn't its end"
    def __init__(self, n): super().__init__(); self.pool, self.conv = nn.AdaptiveAvgPool2d(1), nn.Conv2d(n, n, 1)
    def forward(self, x): return x * self.conv(self.pool(x)).sigmoid()

class Squeezed(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.se, self.conv, self.last = nn.Conv2d(3, 8, 3, 2, 1), SqueezeExcite(8), nn.Conv2d(8, 8, 3, 2, 1), SqueezeExcite(8)
        self.fc = nn.Linear(8, 5)
    def forward(self, x): return self.fc(self.last(self.conv(self.se(self.stem(x)))).mean((2, 3)))

def test_squeeze_and_excitation_is_not_the_end():
    torch.manual_seed(0)
    check_family(Squeezed().eval(), 'last', 8, (16, 24), True)

def test_one_channel_images():
    torch.manual_seed(0)
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))
    model = nn.Sequential(nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU()), head)
    assert saliency_maps(model, torch.randn(2, 1, 28, 28), 1).shape == (2, 28, 28)


# -- a layer that is named -----------------------------------------------------------------------------------------------------------------

@pytest.fixture(scope='module')
def resnet():
    torch.manual_seed(0)
    return tv.resnet18(num_classes=5).eval()

@pytest.fixture(scope='module')
def vit():
    torch.manual_seed(0)
    return small_vit().eval()

@pytest.fixture
def x(): return torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))

def test_by_name_and_by_module(resnet, x):
    for name in ('layer4', 'layer3', 'layer2.0.conv1'):
        module = resnet.get_submodule(name)
        for layer in (name, module):
            found = feature_layer(resnet, x, layer)
            assert found == FeatureLayer(name, module, None) and named_layer(resnet, layer) == (name, module)
        assert torch.equal(saliency_maps(resnet, x, 1, layer=name), saliency_maps(resnet, x, 1, layer=module))

def test_a_layer_found_before(resnet, x):
    found = feature_layer(resnet, x, 'layer3')
    assert feature_layer(resnet, x, found) is found
    assert torch.equal(saliency_maps(resnet, x, 1, layer=found), saliency_maps(resnet, x, 1, layer='layer3'))

def test_only_one_image_is_passed_through(resnet, x):
    sizes = []
    handle = resnet.conv1.register_forward_hook(lambda m,i,o: sizes.append(len(o)))
    feature_layer(resnet, x)
    handle.remove()
    assert sizes and set(sizes) == {1}

def test_tokens_of_a_named_block(vit, x): # the grid is known of the family
    for name in ('blocks.0', 'blocks.1.norm2'): assert output(vit, feature_layer(vit, x, name), x).shape == (2, 192, 4, 6)

def test_reshape(vit, x):
    whole = feature_layer(vit, x, 'blocks.2.norm1', tokens_to_grid(1, (4, 6)))
    assert torch.equal(output(vit, whole, x), output(vit, feature_layer(vit, x), x))
    turned = feature_layer(vit, x, 'blocks.2.norm1', lambda t: tokens_to_grid(1, (6, 4))(t))
    assert output(vit, turned, x).shape == (2, 192, 6, 4)

def test_reshape_without_a_layer(vit, x):
    found = feature_layer(vit, x, reshape=tokens_to_grid(1, (6, 4)))
    assert output(vit, found, x).shape == (2, 192, 6, 4)

def test_tokens_to_grid():
    t = torch.arange(2*7*3).reshape(2, 7, 3)
    out = tokens_to_grid(1, (2, 3))(t)
    assert out.shape == (2, 3, 2, 3)
    for b,row,col in ((0, 0, 0), (1, 1, 0), (1, 0, 2)): assert torch.equal(out[b, :, row, col], t[b, 1 + 3*row + col])
    assert tokens_to_grid(0)(torch.zeros(1, 9, 4)).shape == (1, 4, 3, 3)
    with pytest.raises(ValueError, match='reshape'): tokens_to_grid(0)(torch.zeros(1, 8, 4))

def test_channels_first():
    t = torch.arange(2*3*4*5).reshape(2, 3, 4, 5)
    assert torch.equal(channels_first(t)[1, 2], t[1, :, :, 2])

def test_swin_stage_by_name():
    torch.manual_seed(0)
    model, x = small_swin().eval(), torch.randn(2, 3, 64, 96)
    assert output(model, feature_layer(model, x, 'layers.2'), x).shape == (2, 96, 4, 6)
    assert saliency_maps(model, x, 1, layer='layers.2').shape == (2, 64, 96)

def test_verbose_prints_the_choice(resnet, x, capsys):
    feature_layer(resnet, x)
    assert capsys.readouterr().out == ''
    feature_layer(resnet, x, verbose=True)
    out = capsys.readouterr().out
    assert 'layer4' in out and '512' in out and '2x3' in out


# -- wrappers ------------------------------------------------------------------------------------------------------------------------------

wrappers = {
    'DataParallel': lambda m: nn.DataParallel(m),
    'compile': lambda m: torch.compile(m, backend='eager'),
    'both': lambda m: torch.compile(nn.DataParallel(m), backend='eager'),
}

@pytest.mark.parametrize('wrapper', wrappers)
def test_wrappers_are_unwrapped(resnet, x, wrapper):
    wrapped = wrappers[wrapper](resnet)
    assert wrapped is not resnet and unwrap(wrapped) is resnet
    assert feature_layer(wrapped, x) == FeatureLayer('layer4', resnet.layer4, None)
    for layer in (None, 'layer3', resnet.layer3):
        assert torch.equal(saliency_maps(wrapped, x, 1, layer=layer), saliency_maps(resnet, x, 1, layer=layer))
    assert not resnet.layer4._forward_hooks


# -- a layer that is found once ------------------------------------------------------------------------------------------------------------

class Small(nn.Module):
    "Two stages on a 64x96 image, of which the second can be switched off, and any number more"
    def __init__(self):
        super().__init__()
        self.one, self.two, self.fc = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 2, 1), nn.Linear(8, 5)
        self.both, self.more = True, nn.ModuleList()
    def forward(self, x):
        x = self.one(x).relu()
        if self.both: x = self.two(x).relu()
        for stage in self.more: x = stage(x)
        return self.fc(x.mean((2, 3)))

@pytest.fixture
def small():
    torch.manual_seed(0)
    return Small().eval()

@pytest.fixture
def passes(small):
    "Batch sizes of the forward passes of `small`"
    seen = []
    small.register_forward_hook(lambda m,i,o: seen.append(len(o)))
    return seen

def test_the_second_call_runs_one_forward_pass(small, passes, x):
    first = saliency_maps(small, x, 1)
    assert passes == [1, 1, 2] # search, check, and the batch itself
    passes.clear()
    for _ in range(3): assert torch.equal(saliency_maps(small, x, 1), first)
    assert passes == [2]*3
    assert torch.equal(saliency_maps(small, x, 1, layer='two'), first)

def test_later_batches_of_other_lengths_and_methods_need_no_search(small, passes, x):
    saliency_maps(small, x, 1)
    passes.clear()
    for method in ('gradcam', 'layercam', 'eigencam'): saliency_maps(small, x[:1], 1, method)
    assert passes == [1]*3

def test_the_mode_and_the_weights_do_not_matter(small, passes, x):
    saliency_maps(small, x, 1)
    passes.clear()
    small.train().requires_grad_(False)
    small.load_state_dict({k: v + 1 for k,v in small.state_dict().items()})
    small.double()
    maps = saliency_maps(small, x.double(), 1)
    assert passes == [2] and torch.equal(maps, saliency_maps(small, x.double(), 1, layer='two'))

@pytest.mark.parametrize('wrapper', wrappers)
def test_wrappers_share_what_was_found(small, passes, x, wrapper):
    wrapped = wrappers[wrapper](small)
    saliency_maps(small, x, 1)
    passes.clear()
    saliency_maps(wrapped, x, 1)
    assert passes == [2]

class Twice(nn.Module):
    def forward(self, x): return x*2

def _replace_body(m): m.two = nn.Conv2d(8, 8, 3, 4, 1)
def _replace_head(m): m.fc = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 5))
def _drop_the_layer(m): m.two = Twice()
def _body_of_the_same_kind(m): m.two = copy.deepcopy(m.two)
def _head_of_the_same_kind(m): m.fc = copy.deepcopy(m.fc)
def _lengthen(m): m.two = nn.Sequential(m.two, nn.Conv2d(8, 8, 3, 2, 1))
def _add_a_stage(m): m.more.append(nn.Conv2d(8, 8, 3, 2, 1))
def _swap(m): m.one, m.two = m.two, m.one; m.forward = lambda x: m.fc(m.one(m.two(x).relu()).relu().mean((2, 3)))
def _set_a_flag(m): m.both = False
def _set_a_stride(m): m.two.stride = (1, 1)
def _replace_forward(m): m.forward = lambda x: m.fc(m.one(x).mean((2, 3)))

changes = [_replace_body, _replace_head, _body_of_the_same_kind, _head_of_the_same_kind, _drop_the_layer, _lengthen, _add_a_stage, _swap, _set_a_flag,
           _set_a_stride, _replace_forward]

@pytest.mark.parametrize('change', changes)
def test_a_changed_model_is_searched_again(small, passes, x, change):
    saliency_maps(small, x, 1)
    change(small)
    passes.clear()
    maps, expected = saliency_maps(small, x, 1), feature_layer(small, x)
    assert passes == [1, 1, 2] + [1, 1]
    found = cached_feature_layer(small, x)
    assert found == expected and found.module is small.get_submodule(found.name) and len(passes) == 5
    assert torch.equal(maps, saliency_maps(small, x, 1, layer=expected))

def test_a_renamed_module(x):
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))
    assert cached_feature_layer(model, x).name == '1'
    model._modules = {{'1': 'relu'}.get(k, k): v for k,v in model._modules.items()}
    assert cached_feature_layer(model, x) == feature_layer(model, x) and cached_feature_layer(model, x).name == 'relu'

def test_a_module_that_takes_the_memory_of_the_old_one(small, x):
    "Modules are told apart by weak references, not by addresses, which may be used again"
    for _ in range(20):
        small.two = None
        gc.collect()
        small.two = nn.Conv2d(8, 8, 3, 2, 1)
        assert cached_feature_layer(small, x).module is small.two

def test_other_sizes_are_searched_again(small, passes, x):
    saliency_maps(small, x, 1)
    for size in ((32, 48), (64, 96)):
        passes.clear()
        assert saliency_maps(small, torch.randn(2, 3, *size), 1).shape == (2, *size) and passes == [1, 1, 2]

def test_a_grid_that_differs(x):
    torch.manual_seed(0)
    model = timm.create_model('vit_tiny_patch16_224', num_classes=5, img_size=(64, 96), depth=2, dynamic_img_size=True).eval()
    wide = saliency_maps(model, x, 1)
    assert torch.equal(wide, saliency_maps(model, x, 1)) and cached_feature_layer(model, x).maps(torch.zeros(1, 25, 8)).shape == (1, 8, 4, 6)
    model.set_input_size((96, 64))
    tall = x.transpose(2, 3)
    assert cached_feature_layer(model, tall).maps(torch.zeros(1, 25, 8)).shape == (1, 8, 6, 4)
    assert torch.equal(saliency_maps(model, tall, 1), saliency_maps(model, tall, 1, layer=feature_layer(model, tall)))

def test_what_was_found_before_an_error_is_not_kept(small, passes, x):
    small.two = nn.Flatten()
    for _ in range(2):
        with pytest.raises(ValueError, match="can't take x .*Dimension out of range"): saliency_maps(small, x, 1)
    small.two = nn.Conv2d(8, 8, 3, 2, 1)
    assert saliency_maps(small, x, 1).any() and cached_feature_layer(small, x).name == 'two'

def test_a_named_layer_and_a_reshape_do_not_enter_the_cache(small, x):
    saliency_maps(small, x, 1, layer='one')
    saliency_maps(small, x, 1, reshape=lambda t: t.flip(3))
    assert small not in _layer_cache
    saliency_maps(small, x, 1)
    assert cached_feature_layer(small, x) == feature_layer(small, x)

def test_the_model_does_not_carry_the_cache(small, x):
    def parts(): return [{k: id(v) for k,v in vars(m).items()} for m in small.modules()]
    before, state, pickled = parts(), list(small.state_dict()), pickle.dumps(small)
    saliency_maps(small, x, 1)
    assert parts() == before and list(small.state_dict()) == state and pickle.dumps(small) == pickled

@pytest.mark.parametrize('again', [copy.deepcopy, copy.copy, lambda m: pickle.loads(pickle.dumps(m))], ids=['deepcopy', 'copy', 'pickle'])
def test_a_copy_has_a_layer_of_its_own(small, x, again):
    expected = saliency_maps(small, x, 1)
    other = again(small)
    assert torch.equal(saliency_maps(other, x, 1), expected)
    other.two = nn.Conv2d(8, 8, 3, 2, 1)
    for m in (small, other): assert cached_feature_layer(m, x).module is m.two

def refer_to_whole(model):
    for m in list(model.modules())[1:]: object.__setattr__(m, 'whole', model)

families_kept = {'cnn': Small, 'vit': small_vit, 'swin': small_swin}

@pytest.mark.parametrize('family', families_kept)
def test_the_model_is_freed(x, family):
    model = families_kept[family]()
    refer_to_whole(model) # so that a strong reference to any part would keep all
    saliency_maps(model, x, 1)
    assert model in _layer_cache
    kept = weakref.ref(model)
    del model
    gc.collect()
    assert kept() is None


# -- errors --------------------------------------------------------------------------------------------------------------------------------

near_names = [('layer5', 'layer4'), ('layer4.2', r'layer4\.1'), ('nothing like it', 'conv1'), ('', 'named_modules')]

@pytest.mark.parametrize('layer,hint', near_names)
def test_unknown_name(resnet, x, layer, hint):
    with pytest.raises(ValueError, match=f"layer={layer!r}.*{hint}"): feature_layer(resnet, x, layer)

def test_a_module_of_another_model(resnet, x):
    with pytest.raises(ValueError, match='layer=Conv2d.*not a module of this ResNet'): feature_layer(resnet, x, nn.Conv2d(3, 4, 3))

@pytest.mark.parametrize('layer', [3, 1.5, ['layer4'], lambda: None])
def test_layer_of_a_wrong_type(resnet, x, layer):
    with pytest.raises(TypeError, match='layer='): feature_layer(resnet, x, layer)

def test_no_spatial_output(resnet, x):
    with pytest.raises(ValueError, match=r"layer='fc'.*\(1, 5\).*reshape="): feature_layer(resnet, x, 'fc')

def test_a_reshape_that_gives_no_grid(resnet, x):
    with pytest.raises(ValueError, match="layer='layer4'.*reshape="): feature_layer(resnet, x, 'layer4', lambda t: t.mean(3))

class WithSpare(nn.Module):
    "`spare` takes no part; what `aux` gives is thrown away"
    def __init__(self):
        super().__init__()
        self.spare, self.conv, self.aux, self.fc = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 1), nn.Linear(4, 5)
        self.two = Two()
    def forward(self, x):
        h = self.conv(x).relu()
        self.aux(h)
        return self.fc(self.two(h)[0])

class Two(nn.Module):
    def forward(self, h): return h.mean((2, 3)), h

@pytest.mark.parametrize('ask', [feature_layer, lambda model, x, layer: saliency_maps(model, x, 1, layer=layer)])
def test_a_layer_that_takes_no_part(x, ask):
    with pytest.raises(ValueError, match="layer='spare' takes no part"): ask(WithSpare(), x, 'spare')

def test_a_layer_whose_output_is_thrown_away(x):
    with pytest.raises(ValueError, match="layer='aux'"): saliency_maps(WithSpare(), x, 1, layer='aux')

def test_a_layer_with_several_outputs(x):
    with pytest.raises(ValueError, match="layer='two' has no spatial output: got tuple"): feature_layer(WithSpare(), x, 'two')

def small_mixer():
    mixer = timm.models.mlp_mixer.MlpMixer(num_classes=5, img_size=64, patch_size=16, num_blocks=2, embed_dim=32)
    nn.init.normal_(mixer.head.weight) # made of zeros
    return mixer

no_grid = {
    'mixer': small_mixer,
    'linear': lambda: nn.Sequential(nn.Flatten(), nn.Linear(3*64*64, 5)),
    # its class token comes in later only
    'cait': lambda: timm.create_model('cait_xxs24_224', num_classes=5, img_size=64, depth=2, embed_dim=32, num_heads=2),
}

@pytest.mark.parametrize('net', no_grid)
def test_where_the_choice_cannot_be_made(net):
    torch.manual_seed(0)
    model = no_grid[net]().eval()
    with pytest.raises(ValueError, match='layer=.*reshape='): feature_layer(model, torch.randn(1, 3, 64, 64))
    assert not any(m._forward_hooks for m in model.modules())

@pytest.mark.parametrize('net', ['mixer', 'cait'])
def test_where_it_is_made_by_hand(net):
    torch.manual_seed(0)
    model, x = no_grid[net]().eval(), torch.randn(2, 3, 64, 64)
    found = feature_layer(model, x, 'blocks.1.norm1', tokens_to_grid(0))
    assert output(model, found, x).shape == (2, 32, 4, 4)
    maps = saliency_maps(model, x, 1, layer='blocks.1.norm1', reshape=tokens_to_grid(0))
    assert maps.shape == (2, 64, 64) and maps.any()
