"""The command that checks an accelerator, on a CPU: what it says where something is broken."""
from collections import OrderedDict

import pytest
import torch
from kit import fresh_process
from torch import nn

from proxy_attention import check_device as here
from proxy_attention.check_device import check_device, noise_learner
from proxy_attention.callback import ProxyAttentionCB


def silent(*words): pass

@pytest.fixture
def small_network(monkeypatch):
    "In the ResNet-18's place"
    def net(num_classes):
        def half(a, b): return nn.Sequential(nn.Conv2d(a, b, 3, 2, 1), nn.BatchNorm2d(b), nn.ReLU())
        return nn.Sequential(OrderedDict(stem=half(3, 8), layer1=half(8, 16), pool=nn.AdaptiveAvgPool2d(1), flat=nn.Flatten(),
                                         fc=nn.Linear(16, num_classes)))
    monkeypatch.setattr(here, 'resnet18', net)

def test_what_holds_on_a_cpu():
    lines = []
    found = check_device('cpu', ['no_regret', 'amp', 'compiled', 'memory', 'float64'], lines.append)
    assert [r.ok for r in found.values()] == [True, True, None, None, None], lines
    assert len(lines) == 5 and 'holds' in lines[0] and 'not told' in lines[-1]

def test_a_fit_that_is_changed_is_noticed(small_network, monkeypatch):
    class Meddling(ProxyAttentionCB):
        def after_fit(self):
            super().after_fit()
            with torch.no_grad(): next(self.learn.model.parameters()).add_(1e-7)
    monkeypatch.setattr(here, 'ProxyAttentionCB', Meddling)
    got = check_device('cpu', ['no_regret'], silent)['no_regret']
    assert got.ok is False and '1 of 16 tensors differ' in got.text

@pytest.mark.parametrize('other', [lambda maps: 1 - maps, lambda maps: maps.roll(1, 0)], ids=['inverted', 'of another image'])
def test_maps_that_differ_are_noticed(small_network, monkeypatch, other):
    real = here.saliency_maps
    monkeypatch.setattr(here, 'saliency_maps', lambda model, x, *args: real(model, x, *args) if x.dtype == torch.float32 else other(real(model, x, *args)))
    assert check_device('cpu', ['bf16'], silent)['bf16'].ok is False

def test_an_error_is_a_failure(monkeypatch):
    def broken(device): raise RuntimeError('no such kernel')
    monkeypatch.setitem(here.checks, 'amp', broken)
    broken.__doc__ = 'x'
    assert check_device('cpu', ['amp'], silent)['amp'] == (False, 'RuntimeError: no such kernel')
    with pytest.raises(ValueError, match="Did you mean 'fp16'"): check_device('cpu', ['fp61'])

def test_doubles_are_noticed():
    seen = set()
    with here._float64_on('cpu', seen): torch.ones(2).double()
    assert len(seen) == 1

def test_noise_is_drawn_by_its_seed():
    a,b,c = (noise_learner('cpu', seed=s) for s in (0, 0, 1))
    first = [next(iter(x.dls.train))[0] for x in (a, b, c)]
    assert torch.equal(first[0], first[1]) and not torch.equal(first[0], first[2])

def test_the_command():
    got = fresh_process("import runpy; runpy.run_module('proxy_attention.check_device', run_name='__main__')", 'memory', '--device', 'cpu')
    assert got.returncode == 0 and 'not told' in got.stdout and 'torch' in got.stdout, got.stderr
