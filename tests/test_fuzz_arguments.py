"""Whatever stands in an argument: it is taken and means something, or one clear error says what is wrong, before anything is trained or written."""
import json
from dataclasses import asdict
from inspect import signature

import pytest
import torch
from fastai.learner import Learner
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fuzz_kit import check_clear, fuzz, hostile
from kit import files_in, make_learner, quiet_cb, shapes_dls, tiny_model
from proxy_attention import learner  # noqa: F401  (patches Learner)
from proxy_attention.callback import ProxyAttentionCB
from proxy_attention.saliency import expected_gradients, saliency_maps, saliency_methods

arguments = [n for n in signature(ProxyAttentionCB).parameters]

@fuzz(6)
@given(st.dictionaries(st.sampled_from(arguments), hostile, min_size=1, max_size=3))
def test_callback(given_args):
    try: cb = ProxyAttentionCB(**given_args)
    except Exception as e:
        check_clear(e, mentions=given_args)
        return
    finally: assert files_in() == set()
    # What was taken can stand in a manifest and makes the same policy again
    json.dumps(asdict(cb.policy), allow_nan=False)
    assert type(cb.seed) is int and type(cb.max_gb) is float and type(cb.verbose) is bool
    assert cb.policy == ProxyAttentionCB(**asdict(cb.policy)).policy


class Trained(Exception): "Training would have begun"

fit_arguments = [n for n in signature(Learner.fit_proxy).parameters if n != 'self']

@pytest.fixture(scope='module')
def idle(tmp_path_factory):
    "A learner whose fits end before they begin"
    from kit import make_shapes
    learn = make_learner(lambda: shapes_dls(make_shapes(tmp_path_factory.mktemp('shapes')/'images')), quiet_cb())
    def fit(*args, **kwargs): raise Trained
    learn.fit_one_cycle = learn.fine_tune = fit
    return learn

@fuzz(4)
@given(st.dictionaries(st.sampled_from(fit_arguments), hostile, min_size=1, max_size=3))
def test_fit_proxy(idle, given_args):
    try: idle.fit_proxy(**{'epochs': 1, **given_args})
    except Trained: pass
    except Exception as e: check_clear(e, mentions=given_args)
    else: raise AssertionError("it neither trained nor said why not")


shapes_of_x = st.lists(st.integers(0, 40), min_size=0, max_size=5)
dtypes = st.sampled_from([torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool, torch.complex64])
kinds_of_x = st.sampled_from(['plain', 'nan', 'inf', 'sparse', 'meta', 'grad', 'expanded'])

@st.composite
def tensors(draw):
    "Batches as they should be, and others"
    shape = draw(st.one_of(st.just([2, 3, 32, 32]), st.builds(lambda b, c, h, w: [b, c, h, w], st.integers(0, 2), st.integers(0, 4), st.integers(0, 33), st.integers(0, 33)),
                           shapes_of_x))
    kind = draw(kinds_of_x)
    x = torch.rand(shape).to(draw(st.one_of(st.just(torch.float32), dtypes)))
    if kind in ('nan', 'inf') and x.is_floating_point() and x.numel(): x.view(-1)[0] = float(kind)
    if kind == 'sparse': x = x.to_sparse()
    if kind == 'meta': x = x.to('meta')
    if kind == 'grad' and x.is_floating_point(): x = x.requires_grad_()
    if kind == 'expanded' and len(shape): x = x[:1].expand(*shape) if shape[0] else x
    return x

MODEL = tiny_model().eval()
layers = st.one_of(st.none(), st.sampled_from(['0', '0.5', '1', '1.2', 'nonsense', '', MODEL[0], MODEL[0][3], MODEL[1], nn.Conv2d(3, 8, 3), [], ['0.2', '0.5'], [MODEL], [None]]),
                   hostile)

@fuzz(2)
@given(tensors() | hostile, st.sampled_from([*saliency_methods, 'nonsense']),
       st.fixed_dictionaries({}, optional=dict(target=st.one_of(st.integers(-1, 3), hostile, tensors()), layer=layers, reshape=st.one_of(st.just(lambda o: o), hostile),
                                               baselines=st.one_of(tensors(), hostile), samples=hostile, blur=hostile)))
def test_saliency_maps(x, method, given_args):
    before = {k: v.clone() for k,v in MODEL.state_dict().items()}
    try: maps = saliency_maps(MODEL, x, method=method, **given_args)
    except Exception as e: check_clear(e)
    else:
        assert maps.shape == (len(x), *x.shape[2:]) and maps.dtype == torch.float32 and len(maps)
        assert torch.isfinite(maps).all() and maps.min() >= 0 and maps.max() <= 1
    assert all(torch.equal(v, before[k]) for k,v in MODEL.state_dict().items()) and not MODEL.training
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in MODEL.modules())

@fuzz(1.5)
@given(tensors() | hostile, st.one_of(st.none(), tensors(), hostile), st.one_of(st.none(), hostile), hostile | st.just(2))
def test_expected_gradients(x, baselines, target, samples):
    try: out = expected_gradients(MODEL, x, baselines, target, samples)
    except Exception as e: check_clear(e)
    else: assert out.shape == x.shape and torch.isfinite(out).all()
