"""The linear probe of early layers: leave-one-out against refitting, evidence that adds up to the score, squares that hold the most, no trace in the network."""
import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from proxy_attention.layers import early_layers
from proxy_attention.probe import class_evidence, fit_probe, layer_outputs, pooled_features, spread_cells


def random_maps(n=24, seed=0):
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(n, 5, 12, 9, generator=g), torch.randn(n, 3, 6, 5, generator=g), torch.randn(n, 2, 1, 1, generator=g)]

def net(): return nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 8, 3, 2, 1), nn.ReLU(),
                                nn.Conv2d(8, 8, 3, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))


# -- fitting ----------------------------------------------------------------------------------------------------------------------------------------

def ridge(z, y, penalty):
    "Weights (D,K) of plain ridge regression in the primal form"
    return torch.linalg.solve(z.T @ z/z.shape[1] + penalty*torch.eye(z.shape[1], dtype=z.dtype), z.T @ y/z.shape[1])

@pytest.mark.parametrize('n,d', [(20, 7), (12, 40)])
def test_leave_one_out_is_what_refitting_finds(monkeypatch, n, d):
    "With standardisation and bias of all items, as the probe has them"
    from proxy_attention import probe as module
    monkeypatch.setattr(module, 'PENALTIES', (0.3,))
    g = torch.Generator().manual_seed(3)
    x, labels = torch.randn(n, d, generator=g), torch.arange(n) % 3
    x[:, 0] += labels
    z = ((x - x.mean(0))/(x.std(0) + 1e-6)).double()
    y = F.one_hot(labels, 3).double()
    right = 0
    for i in range(n):
        keep = torch.arange(n) != i
        right += int((z[i] @ ridge(z[keep], (y - y.mean(0))[keep], 0.3) + y.mean(0)).argmax() == labels[i])
    got = fit_probe(x, labels, 3)
    # the penalty of a fold is that of the whole: both forms divide by D, not by n
    assert got.accuracy == pytest.approx(right/n, abs=1e-9)
    assert torch.allclose(got.scores(x).double(), z @ ridge(z, y - y.mean(0), 0.3) + y.mean(0), atol=1e-4)

def test_the_strongest_penalty_that_costs_little(monkeypatch):
    from proxy_attention import probe as module
    g = torch.Generator().manual_seed(0)
    x, labels = torch.randn(90, 30, generator=g), torch.arange(90) % 3
    x[:, 1] += 3*(labels == 1)
    kept = fit_probe(x, labels, 3)
    monkeypatch.setattr(module, 'TOLERANCE', 1.)
    shrunk = fit_probe(x, labels, 3)
    assert shrunk.weights.norm() < kept.weights.norm() and shrunk.accuracy <= kept.accuracy

def test_labels_that_nothing_tells():
    g = torch.Generator().manual_seed(0)
    assert fit_probe(torch.randn(200, 20, generator=g), torch.randint(0, 4, (200,), generator=g), 4).accuracy < 0.45

def test_constant_features_do_no_harm():
    x, labels = torch.ones(12, 3), torch.arange(12) % 2
    x[:, 2] = labels
    probe = fit_probe(x, labels, 2)
    assert probe.accuracy == 1 and torch.isfinite(probe.weights).all()


# -- evidence ---------------------------------------------------------------------------------------------------------------------------------------

def test_evidence_adds_up_to_the_score():
    maps = random_maps()
    features, labels = pooled_features(maps), torch.arange(24) % 4
    probe = fit_probe(features, labels, 4)
    for classes in (labels, (labels + 1) % 4):
        evidence = class_evidence(probe, maps, classes)
        assert evidence.shape == (24, 12, 9)
        assert torch.allclose(evidence.sum((1, 2)), (probe.scores(features) - probe.bias).gather(1, classes[:, None])[:, 0], atol=1e-4)

def test_evidence_by_hand():
    "One channel of 2x2; weights 3 of its maximum and 8 of its mean, means of training 1 and 2"
    from proxy_attention.probe import LinearProbe
    probe = LinearProbe(torch.tensor([[3.], [8.]]), torch.tensor([1., 2.]), torch.zeros(1), 1.)
    m = torch.tensor([[[[1., 2.], [5., 0.]]]])
    by_mean = 8*(m[0, 0] - 2)/4
    by_max = torch.tensor([[0., 0.], [3*(5. - 1), 0.]])
    assert torch.allclose(class_evidence(probe, [m], torch.tensor([0]))[0], by_mean + by_max)

def test_a_silent_channel_says_the_same_everywhere():
    from proxy_attention.probe import LinearProbe
    probe = LinearProbe(torch.tensor([[4.], [0.]]), torch.tensor([-2., 0.]), torch.zeros(1), 1.)
    assert torch.allclose(class_evidence(probe, [torch.zeros(1, 1, 2, 2)], torch.tensor([0]))[0], torch.full((2, 2), 4*2/4))
    two = torch.tensor([[[[0., 3.], [3., 0.]]]])
    assert torch.allclose(class_evidence(probe, [two], torch.tensor([0]))[0], torch.tensor([[0., 10.], [10., 0.]]))

@pytest.mark.parametrize('size', [(8, 8), (9, 7), (4, 4), (5, 11)])
def test_spread_cells_keeps_the_sum(size):
    m = torch.randn(3, 4, 3 if size[1] != 4 else 4)
    out = spread_cells(m, size)
    assert out.shape == (3, *size) and torch.allclose(out.sum((1, 2)), m.sum((1, 2)), atol=1e-5)


# -- the network ------------------------------------------------------------------------------------------------------------------------------------

def test_outputs_are_the_layers_and_leave_no_trace():
    torch.manual_seed(0)
    model = net().train()
    x = torch.rand(2, 3, 64, 64)
    layers = early_layers(model, x)
    assert [layer.name for layer in layers] == ['0', '2', '4']
    before, rng = {k: v.clone() for k,v in model.state_dict().items()}, torch.get_rng_state()
    ran = []
    handle = model[5].register_forward_hook(lambda *a: ran.append(1))
    maps = layer_outputs(model, x, layers)
    handle.remove()
    assert not ran, "what lies behind the last layer isn't computed"
    assert model.training and model[1].training and torch.equal(torch.get_rng_state(), rng)
    assert all(torch.equal(v, before[k]) for k,v in model.state_dict().items()) and not any(m._forward_hooks for m in model.modules())
    model.eval()
    with torch.no_grad(): assert torch.equal(maps[0], model[0](x)) and torch.equal(maps[2], model[:5](x))

def test_an_error_inside_leaves_no_hook():
    model = net()
    layers = early_layers(model, torch.rand(1, 3, 64, 64))
    with pytest.raises(RuntimeError): layer_outputs(model, torch.rand(1, 5, 64, 64), layers)
    assert not any(m._forward_hooks for m in model.modules())

def test_a_layer_that_changes_its_input_in_place():
    model = nn.Sequential(nn.Conv2d(3, 4, 3, 1, 1), nn.ReLU(inplace=True), nn.Conv2d(4, 4, 3, 2, 1), nn.Flatten(), nn.LazyLinear(2))
    x = torch.rand(2, 3, 24, 24)
    model(x)
    first = layer_outputs(model, x, early_layers(model, x))[0]
    with torch.no_grad(): assert torch.equal(first, model[0](x)) and (first < 0).any()

networks = {
    'tf_efficientnet_lite0': lambda: timm.create_model('tf_efficientnet_lite0', num_classes=5), 'resnet18': lambda: torchvision.models.resnet18(num_classes=5),
    'convnext_atto': lambda: timm.create_model('convnext_atto', num_classes=5), 'vit': lambda: timm.create_model('vit_tiny_patch16_224', num_classes=5, img_size=224),
    'swin': lambda: timm.create_model('swin_tiny_patch4_window7_224', num_classes=5),
}

@pytest.mark.parametrize('name', networks)
def test_layers_of_networks(name):
    model = networks[name]().eval()
    x = torch.rand(1, 3, 224, 224)
    maps = layer_outputs(model, x, early_layers(model, x))
    grids = [tuple(m.shape[2:]) for m in maps]
    assert all(m.dim() == 4 and min(m.shape[2:]) >= 12 and torch.isfinite(m).all() for m in maps)
    assert len(maps) <= 6 and len(set(grids)) >= len(grids) - 1 and max(g[0] for g in grids) <= 224

def test_what_an_attention_makes_inside_is_no_image():
    "Queries of (batch, heads, tokens, channels) have four dimensions, too"
    model = timm.create_model('vit_tiny_patch16_224', num_classes=5, qk_norm=True, num_heads=12).eval()
    names = [layer.name for layer in early_layers(model, torch.rand(1, 3, 224, 224))]
    assert names and all(n.startswith('patch_embed') for n in names)

def test_a_module_that_is_called_at_several_grids_is_left_out():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second, self.act, self.head = nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 4, 3, 2, 1), nn.ReLU(), nn.Linear(4, 2)
        def forward(self, x): return self.head(self.act(self.second(self.act(self.first(x)))).mean((2, 3)))
    model, x = Shared(), torch.rand(2, 3, 64, 64)
    layers = early_layers(model, x)
    assert [layer.name for layer in layers] == ['first', 'second']
    assert [m.shape[-1] for m in layer_outputs(model, x, layers)] == [32, 16]

def test_how_many_cells():
    model, x = net(), torch.rand(1, 3, 64, 64)
    assert [layer.name for layer in early_layers(model, x, cells=8)] == ['0', '2', '4', '5']
    assert [layer.name for layer in early_layers(model, x, cells=8, stride=2)] == ['0', '2']
    assert early_layers(model, x, cells=8, stride=0.5) == early_layers(model, x, cells=8), "no layer is so fine"
    with pytest.raises(ValueError, match='no layer of at least 40x40 cells on images of 64x64'): early_layers(model, x, cells=40)
