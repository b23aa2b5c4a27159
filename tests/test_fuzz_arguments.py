"""Whatever stands in an argument: it is taken and means something, or one clear error says what is wrong, before anything is trained or written."""
import json
from dataclasses import asdict
from inspect import signature

import numpy as np
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


# -- what attacks and fuzzing have found, by name -----------------------------------------------------------------------------------------------

@pytest.mark.parametrize('given_args', [dict(share=np.float32(.25)), dict(seed=0.), dict(seed=np.int64(3)), dict(repeat=2.), dict(threshold=np.float64(.5)), dict(blur=np.float16(.125)),
                                        dict(scout=np.float32(1)), dict(max_gb=np.int8(3)), dict(per_class=np.bool_(True))], ids=str)
def test_numbers_of_numpy_become_pythons(given_args):
    cb = ProxyAttentionCB(**given_args)
    (name,value), = given_args.items()
    assert getattr(cb, name) == value and type(getattr(cb, name)) in (int, float, bool)
    json.dumps(asdict(cb.policy), allow_nan=False)

@pytest.mark.parametrize('given_args,words', [
    (dict(epochs=10**400), 'epochs='), (dict(cycles=10**400), 'cycles='), (dict(cycles=float('inf')), 'cycles=inf'), (dict(lr=float('nan')), 'lr=nan'), (dict(until='accuracy>=2'), 'from 0 to 1'),
    (dict(until='accuracy<-0.1'), 'from 0 to 1'), (dict(until='accuracy'), 'until='), (dict(monitor='acuracy'), "Did you mean 'accuracy'")], ids=str)
def test_fit_proxy_refuses(idle, given_args, words):
    with pytest.raises((TypeError, ValueError)) as e: idle.fit_proxy(**{'epochs': 1, **given_args})
    assert words in str(e.value)

def test_whole_numbers_may_be_floats(idle):
    with pytest.raises(Trained): idle.fit_proxy(epochs=1., cycles=np.int64(0), freeze_epochs=0.)

@pytest.mark.parametrize('until', ['valid_loss<2', 'accuracy>=1', 'accuracy>0.5'])
def test_what_until_may_say(idle, until):
    with pytest.raises(Trained): idle.fit_proxy(1, until=until)

@pytest.mark.parametrize('x,error,words', [
    (torch.rand(2, 4, 32, 32), ValueError, "the model can't take x (2, 4, 32, 32)"), (torch.rand(2, 3, 32, 32).double(), ValueError, 'torch.float64'),
    (torch.rand(2, 3, 32, 32).to_sparse(), TypeError, 'dense'), (torch.rand(2, 3, 32, 32).to('meta'), ValueError, 'on meta'), (torch.rand(0, 3, 32, 32), ValueError, 'empty'),
    (torch.rand(2, 3, 0, 32), ValueError, 'empty'), (torch.full((1, 3, 32, 32), float('nan')), ValueError, 'not finite'), (torch.full((1, 3, 32, 32), float('inf')), ValueError, 'not finite'),
    (torch.randint(0, 255, (2, 3, 32, 32)), TypeError, 'torch.int64'), (torch.rand(3, 32, 32), TypeError, '(3, 32, 32)')], ids=lambda v: str(tuple(v.shape)) if torch.is_tensor(v) else '')
@pytest.mark.parametrize('explain', [saliency_maps, expected_gradients])
def test_images_that_no_map_is_made_of(explain, x, error, words):
    with pytest.raises(error) as e: explain(MODEL, x)
    assert words in str(e.value)

def test_a_bug_in_our_own_code_keeps_its_error(monkeypatch):
    "Only what the model itself can't take is told as such"
    def broken(*args): raise RuntimeError('a bug')
    monkeypatch.setitem(saliency_methods, 'gradcam', broken)
    with pytest.raises(RuntimeError, match='a bug'): saliency_maps(MODEL, torch.rand(1, 3, 32, 32))
