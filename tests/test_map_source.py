"""Where maps come from: the size of the last layer's map decides, a layer that is named is used, and what is made by it has cells enough."""
import pytest
import timm
import torch
import torchvision
from torch import nn

from kit import cb_of, make_learner, quiet_cb, resnet_learner, seed_all, shapes_dls
from proxy_attention.callback import ProxyAttentionCB
from proxy_attention.core import no_footprint
from proxy_attention.layers import map_shape
from proxy_attention.map_source import FINE_CELLS, map_source
from proxy_attention.saliency import InputGradients, class_scores, raw_maps

pytestmark = pytest.mark.filterwarnings('ignore')
tv = torchvision.models

def tv_vit(side): return tv.VisionTransformer(side, 16, num_layers=2, num_heads=2, hidden_dim=32, mlp_dim=64, num_classes=5)
def timm_vit(side): return timm.create_model('vit_tiny_patch16_224', num_classes=5, img_size=side, depth=2)
nets = {
    'tv resnet18': lambda side: tv.resnet18(num_classes=5), 'timm resnet18': lambda side: timm.create_model('resnet18', num_classes=5),
    'tv convnext': lambda side: tv.ConvNeXt([tv.convnext.CNBlockConfig(16*2**k, 16*2**(k+1) if k < 3 else None, 1) for k in range(4)], num_classes=5),
    'timm convnext': lambda side: timm.create_model('convnext_atto', num_classes=5),
    'timm lite0': lambda side: timm.create_model('tf_efficientnet_lite0', num_classes=5),
    'tv vit': tv_vit, 'timm vit': timm_vit,
}
strides = {'tv vit': 16, 'timm vit': 16} # The others': 32

def source_of(net, side, *args, **kwargs):
    with no_footprint(net): return map_source(net, torch.randn(2, 3, side, side), *args, **kwargs)

def made(net, side, source):
    "Maps of two images, and how many forward passes of an image and how many backward passes they took"
    x, count = torch.randn(2, 3, side, side), dict(forward=0)
    at = source.reads if not isinstance(source.reads, InputGradients) else InputGradients(torch.randn(3, 3, side, side), samples=3)
    def forward(mod, inp): count['forward'] += len(inp[0])
    handle = net.register_forward_pre_hook(forward)
    try:
        with no_footprint(net): _,maps = raw_maps(net, x, at, source.method, lambda logits: class_scores(logits, logits.argmax(1)))
    finally: handle.remove()
    return maps, count['forward']/len(x)


@pytest.mark.parametrize('name', nets)
@pytest.mark.parametrize('side', [64, 224])
def test_shape_and_cost(name, side):
    seed_all()
    net = nets[name](side)
    if name == 'tv vit': nn.init.normal_(net.heads[0].weight) # made of zeros, which have no gradient
    source, last = source_of(net, side), side//strides.get(name, 32)
    maps, passes = made(net, side, source)
    assert torch.isfinite(maps).all() and min(maps.shape[1:]) >= FINE_CELLS
    if last >= FINE_CELLS:
        assert (source.method, source.coarse) == ('gradcam', None) and maps.shape[1:] == (last, last) and passes == 1
        assert str(source) == 'Maps by gradcam'
    else:
        assert source.method == 'expected_gradients' and source.coarse[1:] == (last, last) and maps.shape[1:] == (24, 24)
        assert passes == 1 + 3 and f"has {last}×{last} cells" in str(source), "one pass for the class, and one for each sample"

@pytest.mark.parametrize('side, method', [(64, 'expected_gradients'), (96, 'expected_gradients'), (128, 'expected_gradients'), (224, 'gradcam')])
def test_sizes_of_lite0(side, method):
    net = nets['timm lite0'](side)
    assert source_of(net, side).method == method
    fine = source_of(net, side, 'layercam')
    assert fine.method == 'layercam' and min(map_shape(net, torch.randn(1, 3, side, side), fine.reads)[2:]) >= FINE_CELLS
    assert (fine.coarse is None) == (side == 224) and ("at 'blocks" in str(fine)) == (side < 224)

def test_a_layer_that_is_named_is_used():
    net = nets['tv resnet18'](64)
    for kwargs in (dict(layer='layer4'), dict(layer=net.layer4), dict(method='gradcam', layer='layer4'), dict(layer=['layer3', 'layer4'])):
        source = source_of(net, 64, **kwargs)
        assert source.method == 'gradcam' and source.coarse is None
        several = isinstance(kwargs['layer'], list)
        assert [at.name for at in (source.reads if several else [source.reads])] == (['layer3', 'layer4'] if several else ['layer4'])

def test_methods_that_read_no_layer_are_as_they_were():
    vit, net = nets['timm vit'](64), nets['tv resnet18'](64)
    assert source_of(vit, 64, 'rollout').method == 'rollout' and source_of(net, 64, 'expected_gradients').coarse is None
    with pytest.raises(ValueError, match="method='rollout'"): source_of(net, 64, 'rollout')

def test_cam_stays_at_the_last_layer():
    assert source_of(nets['tv resnet18'](64), 64, 'cam').reads.name == 'layer4', "it is exact there only"

class Detached(nn.Module):
    "Can't be differentiated down to the image"
    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Sequential(nn.Conv2d(3, 8, 3, 4, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 4, 1), nn.ReLU()), nn.Linear(8, 5)
    def forward(self, x): return self.head(self.body(x.detach()).mean((2, 3)))

def test_a_network_that_is_detached_gets_an_earlier_layer():
    source = source_of(Detached(), 64)
    assert source.method == 'gradcam' and source.reads.name == 'body.1' and source.coarse == ('body', 4, 4)

def test_no_layer_has_cells_enough():
    source = source_of(nets['tv resnet18'](8), 8, 'gradcam')
    assert source.reads.name == source.coarse[0] == 'layer4'

@pytest.mark.parametrize('bad', ['Auto', 'grad-cam', None, 7])
def test_unknown_methods(bad):
    with pytest.raises(ValueError, match=r"method=.*'auto', 'cam', 'gradcam'"): ProxyAttentionCB(method=bad)
    with pytest.raises(ValueError, match=r"method=.*'auto', 'cam', 'gradcam'"): source_of(nets['tv resnet18'](64), 64, bad)


# -- in the callback ------------------------------------------------------------------------------------------------------------------------------

def tiny_resnet(shapes, cb):
    seed_all()
    return resnet_learner(shapes_dls(shapes), cbs=cb)

def test_what_was_chosen_is_printed_once(shapes, capsys):
    learn = tiny_resnet(shapes, quiet_cb(method='auto', select='all', verbose=True, samples=2, path='run'))
    learn.fit(1, 1e-3)
    learn.fit(1, 1e-3)
    said = capsys.readouterr().out
    assert said.count("Maps by expected_gradients, since the last layer ('0') has 1×1 cells") == 1
    assert set(learn.proxies['method']) == {'expected_gradients'} and len(learn.proxies)
    learn = tiny_resnet(shapes, quiet_cb(method='auto', select='all', verbose=True, layer='0.5', path='other'))
    learn.fit(1, 1e-3)
    assert 'Maps by' not in capsys.readouterr().out and set(learn.proxies['method']) == {'gradcam'}

def test_nothing_is_said_where_maps_are_fine(shapes, capsys):
    learn = make_learner(lambda: shapes_dls(shapes), quiet_cb(method='auto', verbose=True, path='run'))
    learn.fit(1, 1e-3)
    assert 'Maps by' not in capsys.readouterr().out and cb_of(learn).prepared.task.maps.coarse is None

def test_another_method_or_layer_is_noticed_by_the_next_fit(shapes):
    learn = tiny_resnet(shapes, quiet_cb(select='all', samples=1, path='run'))
    cb, found = cb_of(learn), []
    for method,layer in (('auto', None), ('auto', '0.6'), ('gradcam', '0.5'), ('gradcam', None)):
        cb.method, cb.layer = method, layer
        learn.fit(1, 1e-3)
        found.append((cb.prepared.task.maps.method, getattr(cb.prepared.task.maps.reads, 'name', None), learn.proxies['method'].unique().tolist()))
    assert found == [('expected_gradients', None, ['expected_gradients']), ('gradcam', '0.6', ['gradcam']), ('gradcam', '0.5', ['gradcam']),
                     ('gradcam', '0.4', ['gradcam'])]

