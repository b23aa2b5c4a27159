"""What the fuzz tests share: hostile values, and what counts as an answer to them."""
import os
from decimal import Decimal
from fractions import Fraction

import numpy as np
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

UNIT = int(os.environ.get('FUZZ_UNIT', 27)) # Examples of a test of weight 1: 500 in all; 20,000 in `make fuzz`, which sets it

def fuzz(weight):
    "As many examples as the weight says; a test whose examples are slow has a small one"
    health = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large]
    return settings(max_examples=max(2, round(weight*UNIT)), deadline=None, database=None, suppress_health_check=health)

strange = st.sampled_from([
    None, True, False, float('nan'), float('inf'), -float('inf'), 0, -1, 1, 2, 0.5, 1e-320, 1e308, 10**30, 10**400, -10**400,
    np.float16(.5), np.float32(.25), np.float64('nan'), np.int8(3), np.uint64(2**64-1), np.bool_(True), np.str_('0.5'), np.array(0.5), np.array([1, 2]),
    torch.tensor(0.5), torch.tensor([1.]), Fraction(1, 3), Decimal('0.5'), 1j, '', ' ', '0.5', '٣', '٣ steps', '101%', '-5%', '1e9 steps', '9'*500 + ' steps', 'nan',
    'accuracy>=2', 'valid_loss<0.1', '\x00', '\ud800', 'a'*3000, b'0.5', [], [0.5], (), {}, {'a': 1}, set(), object, len, slice(1, 2), slice(None), range(3),
])
texts = st.text(max_size=20)
numbers = st.one_of(st.floats(), st.integers(), st.integers(-10**320, 10**320))
hostile = st.one_of(strange, numbers, texts, st.binary(max_size=8), st.lists(numbers, max_size=3))
# What JSON can hold, and what isn't JSON at all
json_values = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | texts,
                           lambda v: st.lists(v, max_size=3) | st.dictionaries(texts, v, max_size=3), max_leaves=8)


def raised_by_us(e, name='proxy_attention'):
    "Did our own code raise it? Else it is an error of a library that we have let through"
    tb = e.__traceback__
    while tb.tb_next: tb = tb.tb_next
    return str(tb.tb_frame.f_globals.get('__name__')).split('.')[0] == name

def check_clear(e, kinds=(TypeError, ValueError), mentions=()):
    "A raised error is ours, short, and names one of the arguments"
    said = str(e)
    assert isinstance(e, kinds), f"a raw {type(e).__name__}: {said[:300]}"
    assert raised_by_us(e), f"not raised by us: {type(e).__name__}: {said[:300]}"
    assert said.strip() and len(said) < 4000, f"no message, or a page of it: {said[:200]!r}"
    assert not mentions or any(m in said for m in mentions), f"none of {mentions} is named in: {said[:300]}"
