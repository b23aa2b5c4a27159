"""Attention rollout and its gradient-weighted kin: against few-line versions with explicit hooks, by hand, and the model is left as it was."""
import copy
from functools import partial
from inspect import signature

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from kit import last_of, make_learner, quiet_cb, shapes_dls
from torch import nn

from proxy_attention.core import no_footprint
from proxy_attention.lab.models.zoo import make_model
from proxy_attention.lab.models.small import small_vit
from proxy_attention.layers import attention_blocks
from proxy_attention.saliency import (OnAttention, attention_weights, class_scores, gradrollout, method_layer, normalise, raw_maps, rollout, saliency_maps,
                                      saliency_methods)

both = ['rollout', 'gradrollout']
SIZE = (32, 48) # 4x6 patches: a transposed map would be seen
vit = partial(timm.models.VisionTransformer, SIZE, 8, 3, 5, embed_dim=24, depth=3, num_heads=3)

nets = { # a net, and the tokens its head reads
    'class token': (vit, [0]),
    'pooled, no class token': (lambda: small_vit(5, SIZE, patch=8, dim=24, depth=3, heads=3), range(24)),
    'pooled, with a class token': (partial(vit, global_pool='avg'), range(1, 25)),
    'pooled with its class token': (partial(vit, global_pool='avg', pool_include_prefix=True), range(25)),
    'registers': (partial(vit, reg_tokens=4), [0]),
    'attention pool': (partial(vit, global_pool='map', class_token=False), range(24)),
    'distilled': (lambda: timm.models.deit.VisionTransformerDistilled(SIZE, 8, 3, 5, embed_dim=24, depth=3, num_heads=3), [0, 1]),
    'normed queries': (partial(vit, qk_norm=True), [0]),
    'relative positions': (lambda: timm.models.beit.Beit(SIZE, 8, 3, 5, embed_dim=24, depth=3, num_heads=3, use_rel_pos_bias=True), range(1, 25)),
    'rotary positions': (lambda: timm.models.eva.Eva(SIZE, 8, 3, 5, embed_dim=24, depth=3, num_heads=3, use_rot_pos_emb=True), range(1, 25)),
}

def lively(model, seed=0):
    "With weights large enough that attention isn't uniform"
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() > 1: p.copy_(torch.randn(p.shape, generator=g)*.25)
    return model.eval()

@pytest.fixture(params=nets)
def net(request):
    make, read = nets[request.param]
    return lively(make()), list(read)

@pytest.fixture
def model(): return lively(vit())

@pytest.fixture
def x(): return torch.randn(3, 3, *SIZE, generator=torch.Generator().manual_seed(1))

def hooks(model):
    kinds = ('_forward_hooks', '_forward_pre_hooks', '_backward_hooks', '_backward_pre_hooks')
    return sum(len(getattr(m, k)) for m in model.modules() for k in kinds)

# -- oracles -------------------------------------------------------------------------------------------------------------------------------

def seen_attention(model, x, target=None):
    "Attention of every block, its gradients, and logits, from a copy on the slow path, image by image"
    model, attns = copy.deepcopy(model).eval(), []
    for b in model.blocks:
        b.attn.fused_attn = False
        b.attn.attn_drop.register_forward_hook(lambda m,i,o: (o.retain_grad(), attns.append(o))[0])
    logits = model(x)
    if target is not None: logits.gather(1, target[:, None]).sum().backward()
    return [a.detach() for a in attns], [a.grad for a in attns], logits.detach()

def slow_rollout(attns, read, prefix):
    maps = []
    for b in range(len(attns[0])):
        R = torch.eye(attns[0].shape[-1])
        for a in attns:
            A = a[b].mean(0) + torch.eye(len(R))
            R = (A / A.sum(1, keepdim=True)).matmul(R)
        maps.append(R[read].mean(0)[prefix:])
    return torch.stack(maps)

def slow_gradrollout(attns, grads, read, prefix): # as in github.com/hila-chefer/Transformer-MM-Explainability
    maps = []
    for b in range(len(attns[0])):
        R = torch.eye(attns[0].shape[-1])
        for a,g in zip(attns, grads):
            cam = (g[b]*a[b]).clamp(min=0).mean(0)
            R = R + torch.matmul(cam, R)
        maps.append(R[read].mean(0)[prefix:])
    return torch.stack(maps)

def stretched(raw):
    big = F.interpolate(raw.unflatten(1, (4, 6))[:, None], SIZE, mode='bilinear', align_corners=False)[:, 0]
    low, high = big.amin((1, 2), keepdim=True), big.amax((1, 2), keepdim=True)
    return (big - low) / (high - low)

def test_rollout_agrees_with_explicit_hooks(net, x):
    model, read = net
    attns, _, logits = seen_attention(model, x)
    expected = slow_rollout(attns, read, model.num_prefix_tokens)
    assert expected.std(1).min() > 1e-4, "the case says nothing: the map is uniform"
    torch.testing.assert_close(saliency_maps(model, x, method='rollout'), stretched(expected), atol=1e-4, rtol=0)
    got, raw = raw_maps(model, x, attention_blocks(model), 'rollout', lambda l: class_scores(l, l.argmax(1)))
    torch.testing.assert_close(raw.flatten(1), expected, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(got, logits, atol=1e-5, rtol=1e-5)

def test_gradrollout_agrees_with_autograd(net, x):
    model, read = net
    target = torch.tensor([1, 4, 0])
    attns, grads, logits = seen_attention(model, x, target)
    expected = slow_gradrollout(attns, grads, read, model.num_prefix_tokens)
    got, raw = raw_maps(model, x, attention_blocks(model), 'gradrollout', lambda l: class_scores(l, target))
    prefix = model.num_prefix_tokens
    ones = torch.eye(attns[0].shape[-1])[read].mean(0)[prefix:] # of the identity that ours leaves out
    torch.testing.assert_close(raw.flatten(1) + ones, expected, atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(got, logits, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(saliency_maps(model, x, target, 'gradrollout'), stretched(raw.flatten(1)), atol=1e-6, rtol=0)

@pytest.mark.parametrize('method', both)
def test_without_fused_attention(model, x, method):
    fast = saliency_maps(model, x, 2, method)
    for b in model.blocks: b.attn.fused_attn = False
    with torch.no_grad(): logits = model(x)
    torch.testing.assert_close(saliency_maps(model, x, 2, method), fast, atol=1e-4, rtol=0)
    assert torch.equal(raw_maps(model, x, attention_blocks(model), method, lambda l: class_scores(l, l.argmax(1)))[0], logits)
    assert not any(b.attn.fused_attn for b in model.blocks) and hooks(model) == 0
    model.blocks[1].attn.fused_attn = True # one of three
    torch.testing.assert_close(saliency_maps(model, x, 2, method), fast, atol=1e-4, rtol=0)

@pytest.mark.parametrize('case', [{}, dict(scale=.7), dict(is_causal=True), dict(attn_mask='bool'), dict(attn_mask='bias'), dict(enable_gqa=True)], ids=str)
def test_attention_weights_are_those_that_fused_attention_applies(case):
    q, k, v = torch.randn(2, 4, 6, 8), torch.randn(2, 4, 6, 8), torch.randn(2, 4, 6, 8)
    if case.get('enable_gqa'): k, v = k[:, :2], v[:, :2]
    mask = dict(bool=torch.rand(2, 1, 6, 6) > .3, bias=torch.randn(1, 4, 6, 6)).get(case.get('attn_mask'))
    if mask is not None and mask.dtype == torch.bool: mask |= torch.eye(6, dtype=torch.bool)
    out = F.scaled_dot_product_attention(q, k, v, **case | dict(attn_mask=mask))
    args = {k: v for k,v in case.items() if k != 'enable_gqa'} | dict(attn_mask=mask)
    weights = attention_weights(q, k, **args)
    torch.testing.assert_close(weights @ v.repeat_interleave(4 // v.shape[1], 1), out, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 4, 6))

# -- by hand -------------------------------------------------------------------------------------------------------------------------------

ONE = torch.tensor([[[[0., 1.], [1., 0.]], [[0., 1.], [0., 1.]]]]) # two heads, two tokens
TWO = torch.tensor([[[[1., 0.], [.5, .5]], [[0., 1.], [.5, .5]]]])

def test_rollout_by_hand():
    # means over heads: [[0, 1], [.5, .5]] and [[.5, .5], [.5, .5]]; half of each and half of itself: [[.5, .5], [.25, .75]] and [[.75, .25], [.25, .75]]
    one = rollout(None, ONE)
    assert one.tolist() == [[[.5, .5], [.25, .75]]]
    # [.75*.5 + .25*.25, .75*.5 + .25*.75], [.25*.5 + .75*.25, .25*.5 + .75*.75]
    assert rollout(one, TWO).tolist() == [[[.4375, .5625], [.3125, .6875]]]

def test_gradrollout_by_hand():
    g1, g2 = torch.tensor([[[[1., 2.], [-1., 3.]], [[5., -2.], [1., 4.]]]]), torch.tensor([[[[2., 9.], [2., -4.]], [[1., 1.], [-6., 2.]]]])
    # positive gradient times attention: [[0, 2], [0, 0]] and [[0, 0], [0, 4]], mean [[0, 1], [0, 2]]
    one = gradrollout(None, ONE, g1)
    assert one.tolist() == [[[0., 1.], [0., 2.]]]
    # [[2, 0], [1, 0]] and [[0, 1], [0, 1]], mean [[1, .5], [.5, .5]]; with the identity R = [[1, 1], [0, 3]]: R + mean R = [[2, 3.5], [.5, 5]]; minus identity
    assert gradrollout(one, TWO, g2).tolist() == [[[1., 3.5], [.5, 4.]]]

class Copies(nn.Module):
    "An attention whose weights are given, for both heads alike: what `attn_drop` gets is what it is told"
    fused_attn = False
    def __init__(self, weights): super().__init__(); self.weights, self.attn_drop = nn.Parameter(weights), nn.Identity()
    def forward(self, x): return self.attn_drop(self.weights.expand(len(x), 1, -1, -1))[:, 0] @ x

class Block(nn.Module):
    def __init__(self, weights): super().__init__(); self.attn = Copies(weights)
    def forward(self, x): return x + self.attn(x)

class TwoBlocks(nn.Module):
    "A class token and two patches, one number each; the score of class 1 is what the class token holds at the end, of class 0 its negative"
    num_prefix_tokens, global_pool = 1, 'token'
    def __init__(self, first, second):
        super().__init__()
        self.patch_embed, self.blocks = nn.Identity(), nn.Sequential(Block(torch.tensor(first)), Block(torch.tensor(second)))
        self.patch_embed.grid_size = (1, 2)
    def forward(self, x):
        tokens = torch.cat([torch.zeros(len(x), 1, 1), x[:, :1].flatten(2).transpose(1, 2)], 1)
        top = self.blocks(tokens)[:, 0]
        return torch.cat([-top, top], 1)

def test_a_net_of_two_blocks_by_hand():
    first, second = [[0., .5, .5], [0., 1., 0.], [0., 1., 0.]], [[0., .25, .75], [0., 1., 0.], [0., 0., 1.]]
    model, x = TwoBlocks(first, second).eval(), torch.tensor([[[[3., 1.]]]])
    def maps(method, c): return raw_maps(model, x, attention_blocks(model), method, lambda l: class_scores(l, torch.tensor([c])))[1].tolist()
    # rollout: steps [[.5, .25, .25], [0, 1, 0], [0, .5, .5]] and [[.5, .125, .375], ...]; top row .5*row0 + .125*row1 + .375*row2
    assert maps('rollout', 1) == maps('rollout', 0) == [[[.125 + .125 + .1875, .125 + .1875]]]
    # tokens after the first block: class 0 + (1.5 + .5) = 2, patches 3 + 3 = 6 and 1 + 3 = 4. Gradient of class 1 with respect to the second attention's
    # top row: the tokens it reads, (2, 6, 4); times attention: (0, 1.5, 3); the other rows aren't read.
    # With respect to the first attention, entry (i, j): what the top holds of token i, 1, .25, .75, times token j, 0, 3, 1:
    # times attention: top row (0, 1.5, .5), first patch (0, .75, 0), second patch (0, 2.25, 0).
    # R - I after the first: those three rows; then + second's top row (0, 1.5, 3) and this row times the three rows: (0, 1.5*.75 + 3*2.25, 0)
    assert maps('gradrollout', 1) == [[[1.5 + 1.5 + 1.125 + 6.75, .5 + 3.]]]
    assert maps('gradrollout', 0) == [[[0., 0.]]] # every gradient is the negative of that

def test_uniform_attention_is_flat(x):
    model = vit()
    with torch.no_grad():
        for b in model.blocks: b.attn.qkv.weight.zero_()
    assert not saliency_maps(model.eval(), x, method='rollout').any()

def test_rollout_shows_what_is_attended_to(x):
    "All blocks attend to one patch alone"
    model = lively(vit())
    attns = [torch.zeros(1, 3, 25, 25) for _ in range(3)]
    for a in attns: a[..., 9] = 1
    so_far = None
    for a in attns: so_far = rollout(so_far, a)
    maps = attention_blocks(model).maps(so_far)
    assert maps.shape == (1, 4, 6) and maps.flatten().argmax() == 8 and maps[0, 1, 2].item() == 1 - .5**3

# -- against itself ------------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('method', both)
def test_shape_type_and_range(net, x, method):
    maps = saliency_maps(net[0], x, method=method)
    assert maps.shape == (3, *SIZE) and maps.dtype == torch.float32 and type(maps) is torch.Tensor and not maps.requires_grad
    assert maps.amax((1, 2)).tolist() == [1.]*3 and maps.amin() == 0

@pytest.mark.parametrize('method', both)
def test_a_batch_is_its_images(net, x, method):
    target = torch.tensor([0, 1, 2])
    together = saliency_maps(net[0], x, target, method)
    alone = torch.cat([saliency_maps(net[0], x[i:i+1], int(target[i]), method) for i in range(3)])
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=0)

def test_the_class(model, x):
    maps = [saliency_maps(model, x, c, 'gradrollout') for c in range(5)]
    assert all(not torch.allclose(a, b, atol=1e-3) for i,a in enumerate(maps) for b in maps[:i])
    maps = [saliency_maps(model, x, c, 'rollout') for c in range(5)]
    assert all(torch.equal(maps[0], m) for m in maps)
    assert not torch.allclose(saliency_maps(model, x, 0, 'rollout'), saliency_maps(model, x, 0, 'gradrollout'), atol=1e-2)

def test_scaling_and_shifting_the_head_changes_nothing(model, x):
    before = saliency_maps(model, x, 1, 'gradrollout')
    with torch.no_grad(): model.head.bias += 3
    assert torch.equal(saliency_maps(model, x, 1, 'gradrollout'), before)
    with torch.no_grad(): model.head.weight[1] = 0
    assert not saliency_maps(model, x, 1, 'gradrollout').any() and saliency_maps(model, x, 1, 'rollout').any()

@pytest.mark.parametrize('method', both)
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions(model, x, method, dtype):
    before = saliency_maps(model, x, 1, method)
    other = saliency_maps(model.to(dtype), x.to(dtype), 1, method)
    assert other.dtype == torch.float32 and other.amax((1, 2)).tolist() == [1.]*3
    torch.testing.assert_close(other, before, atol=1e-4 if dtype == torch.float64 else .15, rtol=0)

def test_weak_gradients_are_no_flat_map(x):
    "Where patches are pooled, the identity would drown them"
    model = lively(small_vit(5, SIZE, patch=8, dim=24, depth=3, heads=3))
    before = saliency_maps(model, x, 1, 'gradrollout')
    with torch.no_grad(): model.head.weight *= 1e-6
    torch.testing.assert_close(saliency_maps(model, x, 1, 'gradrollout'), before, atol=.02, rtol=0)

contexts = {'no_grad': torch.no_grad, 'inference_mode': torch.inference_mode, 'autocast': lambda: torch.autocast('cpu', torch.bfloat16)}

@pytest.mark.parametrize('context', contexts)
@pytest.mark.parametrize('method', both)
def test_the_callers_context_does_not_matter(model, x, method, context):
    before = saliency_maps(model, x, 1, method)
    with contexts[context](): within = saliency_maps(model, x, 1, method)
    assert torch.equal(within, before)

@pytest.mark.parametrize('method', both)
def test_not_finite(model, x, method):
    "One image that isn't finite spoils no other map of a scan; given by a user it is refused"
    def maps_of(x):
        def score(logits): return class_scores(logits, torch.full((len(logits),), 1))
        with no_footprint(model): return normalise(raw_maps(model, x, attention_blocks(model), method, score)[1])
    x[1, 0, 0, 0] = float('nan')
    maps = maps_of(x)
    assert not maps[1].any()
    torch.testing.assert_close(maps[[0, 2]], maps_of(x[[0, 2]]), atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match='not finite'): saliency_maps(model, x, 1, method)

# -- the model is left as it was -----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('method', both)
@pytest.mark.parametrize('kind', ['class token', 'pooled, no class token', 'registers', 'distilled', 'attention pool'])
def test_logits_are_the_models_own_to_the_last_bit(x, kind, method):
    model = lively(nets[kind][0]())
    with torch.no_grad(): before = model(x)
    logits, maps = raw_maps(model, x, attention_blocks(model), method, lambda l: class_scores(l, l.argmax(1)))
    with torch.no_grad(): after = model(x)
    assert torch.equal(before, after) and torch.equal(before, logits) and maps.shape == (3, 4, 6)
    assert hooks(model) == 0 and not any(p.grad is not None for p in model.parameters()) and not maps.requires_grad
    logits, maps = raw_maps(model, x, attention_blocks(model), method, lambda l: None)
    assert torch.equal(before, logits) and maps is None and hooks(model) == 0

@pytest.mark.parametrize('method', both)
def test_frozen_weights_change_nothing(model, x, method):
    free = saliency_maps(model, x, 1, method)
    assert torch.equal(saliency_maps(model.requires_grad_(False), x, 1, method), free)
    assert not any(p.requires_grad for p in model.parameters())

@pytest.fixture(params=[False, True])
def reentrant(request):
    "Checkpoints of the older kind run their blocks without gradients"
    before = timm.layers.use_reentrant_ckpt()
    timm.layers.set_reentrant_ckpt(request.param)
    yield
    timm.layers.set_reentrant_ckpt(before)

@pytest.mark.parametrize('method', both)
def test_mode_dropout_and_checkpoints(x, method, reentrant):
    model = lively(vit(proj_drop_rate=.3, attn_drop_rate=.3, drop_path_rate=.3))
    before = saliency_maps(model, x, 1, method)
    model.train().requires_grad_(False).set_grad_checkpointing()
    model.blocks[1].attn.eval()
    modes, rng = [m.training for m in model.modules()], torch.get_rng_state()
    assert torch.equal(saliency_maps(model, x, 1, method), before)
    assert [m.training for m in model.modules()] == modes and model.grad_checkpointing is True and torch.equal(torch.get_rng_state(), rng)

class Boom(nn.Module):
    def forward(self, *args, **kwargs): raise RuntimeError('boom')

@pytest.mark.parametrize('method', both)
@pytest.mark.parametrize('where', ['blocks.1.attn.proj', 'blocks.2.mlp', 'head'])
def test_an_exception_leaves_nothing_behind(model, x, method, where):
    parent, _, name = where.rpartition('.')
    kept = model.get_submodule(where)
    before = saliency_maps(model, x, 1, method)
    setattr(model.get_submodule(parent), name, Boom())
    model.grad_checkpointing = 'often'
    with pytest.raises(ValueError, match='boom'): saliency_maps(model, x, 1, method)
    assert hooks(model) == 0 and model.grad_checkpointing == 'often' and torch.is_grad_enabled()
    q = torch.randn(1, 1, 2, 4)
    assert F.scaled_dot_product_attention(q, q, q).shape == q.shape # nothing stands in its stead any more
    setattr(model.get_submodule(parent), name, kept)
    assert torch.equal(saliency_maps(model, x, 1, method), before)

@pytest.mark.parametrize('method', both)
def test_a_bad_target_leaves_nothing_behind(model, x, method):
    with pytest.raises(ValueError, match='target'): saliency_maps(model, x, 99, method)
    assert hooks(model) == 0 and torch.is_grad_enabled()

def test_wrapped_and_nested(model, x):
    before = saliency_maps(model, x, 1, 'gradrollout')
    for wrapped in (nn.DataParallel(model), nn.Sequential(nn.Identity(), model)): assert torch.equal(saliency_maps(wrapped, x, 1, 'gradrollout'), before)

# -- arguments -----------------------------------------------------------------------------------------------------------------------------

none_to_follow = {
    'ResNet': (lambda: torchvision.models.resnet18(num_classes=3), 64),
    'SwinTransformer': (lambda: make_model('swin_tiny', 3, size=64, embed_dim=24, depths=(1, 1), num_heads=(2, 2), window_size=4), 64),
    "torchvision's VisionTransformer": (lambda: torchvision.models.VisionTransformer(64, 16, 1, 2, 24, 48, num_classes=3), 64),
    'DiffAttention': (partial(vit, attn_layer='diff'), SIZE),
    'ParallelThings': (partial(vit, block_fn=timm.models.vision_transformer.ParallelThingsBlock), SIZE),
}

@pytest.mark.parametrize('method', both)
@pytest.mark.parametrize('kind', none_to_follow)
def test_nets_without_attention_to_follow(method, kind):
    make, size = none_to_follow[kind]
    if kind == 'DiffAttention' and 'attn_layer' not in signature(timm.models.VisionTransformer).parameters: pytest.skip("this timm has no DiffAttention in ViTs")
    model, h, w = make(), *(size if isinstance(size, tuple) else (size, size))
    with pytest.raises(ValueError, match="attention.*gradcam") as e: saliency_maps(model, torch.randn(1, 3, h, w), method=method)
    assert (kind.replace('ParallelThings', 'VisionTransformer')) in str(e.value) and hooks(model) == 0
    if kind != 'ParallelThings': assert saliency_maps(model, torch.randn(1, 3, h, w)).shape == (1, h, w)

@pytest.mark.parametrize('method', both)
def test_layer_and_reshape(model, x, method):
    with pytest.raises(ValueError, match=f"layer='blocks.1'.*{method}.*takes no layer"): saliency_maps(model, x, method=method, layer='blocks.1')
    with pytest.raises(TypeError, match='reshape='): saliency_maps(model, x, method=method, reshape=3)
    before = saliency_maps(model, x, 1, method)
    turned = saliency_maps(model, x, 1, method, reshape=lambda t: t[:, 1:].transpose(1, 2).unflatten(2, (4, 6)).flip(3))
    torch.testing.assert_close(turned.flip(2), before, atol=1e-5, rtol=0)
    assert torch.equal(saliency_maps(model, x, 1, method, layer=method_layer(model, x, method)), before)
    with pytest.raises(ValueError, match=r'reshape= must turn tokens \(3, 25, 1\)'): saliency_maps(model, x, 1, method, reshape=lambda t: t[:, 1:].transpose(1, 2))

def test_a_new_entry_is_a_new_method(model, x, monkeypatch):
    monkeypatch.setitem(saliency_methods, 'last block', OnAttention(lambda so_far, attn, grads: attn.mean(1)))
    attns, _, _ = seen_attention(model, x)
    torch.testing.assert_close(saliency_maps(model, x, method='last block'), stretched(attns[-1].mean(1)[:, 0, 1:]), atol=1e-4, rtol=0)

# -- in the callback -----------------------------------------------------------------------------------------------------------------------

def tiny_vit(): return lively(timm.models.VisionTransformer((32, 32), 8, 3, 3, embed_dim=24, depth=2, num_heads=2))

@pytest.mark.parametrize('method,target', [('rollout', 'pred'), ('gradrollout', 'pred'), ('gradrollout', 'true'), ('gradrollout', 'contrast')])
def test_in_the_callback(shapes, tmp_path, method, target):
    learn = make_learner(lambda: shapes_dls(shapes), quiet_cb(method=method, target=target, path=tmp_path/'run', select='all', share=.5), model=tiny_vit())
    learn.fit(1, 1e-4)
    assert last_of(learn)['proxies'] == 13 and set(learn.proxies['method']) == {method} and set(learn.proxies['target']) == {target}
    assert (learn.proxies['erased'] > .05).all() and hooks(learn.model) == 0

def test_every_target_erases_something_else(shapes, tmp_path):
    def files(target, method='gradrollout'):
        learn = make_learner(lambda: shapes_dls(shapes), quiet_cb(method=method, target=target, path=tmp_path/f'{method}-{target}', select='all', share=1.), model=tiny_vit())
        learn.fit(1, 1e-9)
        return [(f.name, f.read_bytes()) for f in sorted((tmp_path/f'{method}-{target}').rglob('*.png'))]
    made = {t: files(t) for t in ('pred', 'true', 'contrast')}
    assert made['pred'] != made['true'] != made['contrast'] != made['pred']
    assert files('pred', 'rollout') == files('true', 'rollout') # it knows no class

def test_a_cnn_is_refused_before_anything_is_trained_or_written(shapes, tmp_path):
    learn = make_learner(lambda: shapes_dls(shapes), quiet_cb(method='rollout', path=tmp_path/'run'))
    before = {k: v.clone() for k,v in learn.model.state_dict().items()}
    with pytest.raises(ValueError, match="method='rollout'.*gradcam"): learn.fit(1)
    assert all(torch.equal(v, before[k]) for k,v in learn.model.state_dict().items()) and not (tmp_path/'run').exists()
    learn = make_learner(lambda: shapes_dls(shapes), quiet_cb(method='rollout', layer='blocks.1', path=tmp_path/'run'), model=tiny_vit())
    with pytest.raises(ValueError, match="layer='blocks.1'.*takes no layer"): learn.fit(1)

def test_a_policy_with_another_method_looks_elsewhere(shapes, tmp_path):
    cb = quiet_cb(method='gradcam', path=tmp_path/'run', select='all')
    learn = make_learner(lambda: shapes_dls(shapes), cb, model=tiny_vit())
    learn.fit(1, 1e-4)
    for method in ('gradrollout', 'eigencam'):
        cb.method = method
        assert cb.make_proxies().proxies and set(learn.proxies['method']) == {method}
