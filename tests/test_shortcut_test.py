"""The verdict on what was erased: counts, their intervals, and the words for them."""
import re
from dataclasses import FrozenInstanceError

import numpy as np
import pytest

from proxy_attention.shortcut_test import (CONFIDENCE, LATER_SUFFICIENCY_THRESHOLD, MIN_HELD_OUT, NECESSITY_THRESHOLD, PAIRED_NECESSITY_THRESHOLD,
                                           SUFFICIENCY_THRESHOLD, Counts, Verdict, _above, _interval, _rates, _share, count_right, necessity_bound,
                                           necessity_test, shortfall_of, shortfall_test, sufficiency_test, verdict_text)

def counts(n, image, copy, second=None, chance=0.5):
    "Right on the copy only where right on the image"
    return Counts(n, copy, image - copy, 0, second, chance)

def test_counting():
    labels = np.array([0, 0, 0, 1, 1, 2])
    on_images, on_copies = np.array([0, 0, 1, 1, 0, 2]), np.array([0, 1, 0, 1, 1, 2])
    c = count_right(labels, on_images, on_copies, np.array([0, 0, 0, 0, 0, 0]), np.array([0, 1, 1, 1, 0, 0]))
    assert c == Counts(n=6, both=3, image_only=1, copy_only=2, second=3, chance=0.5, control=2)
    assert (c.image, c.copy, c.second_image, c.elsewhere) == (4/6, 5/6, 0.5, 2/6)
    c = count_right(labels, on_images, on_copies)
    assert c.second is c.second_image is c.control is c.elsewhere is None and Counts(6, 3, 1, 2).chance == 0

def test_findings_are_not_changed_afterwards():
    found = sufficiency_test(counts(64, 60, 20, 40))
    with pytest.raises(FrozenInstanceError): found.name = 'real'
    with pytest.raises(FrozenInstanceError): found.counts.n = 65

@pytest.mark.parametrize('c,share', [(counts(100, 100, 50), 1.), (counts(100, 90, 90), 0.), (counts(100, 90, 70), 0.5), (counts(100, 95, 12, chance=0.1), 83/85),
                                     (Counts(100, 60, 20, 10, None, 0.5), (0.8-0.7)/0.3)])
def test_necessity_by_hand(c, share):
    "What is lost on the copies, as a share of what is known above chance"
    found = necessity_test(c)
    found = sufficiency_test(Counts(c.n, c.both, c.image_only, c.copy_only, c.n//2, c.chance)) if found is None else found
    assert found.necessity == pytest.approx(share) and found.necessity_interval[0] <= share <= found.necessity_interval[1] + 0.05

@pytest.mark.parametrize('second,share', [(100, 1.), (75, 0.5), (50, 0.), (40, -0.2)])
def test_sufficiency_by_hand(second, share):
    found = sufficiency_test(counts(100, 100, 50, second))
    assert found.sufficiency == pytest.approx(share)
    low,high = found.sufficiency_interval
    assert low - 0.05 <= share <= high + 0.05

def test_necessity_beside_a_control_by_hand():
    "A probe loses something wherever a place is erased: what it loses elsewhere doesn't count"
    c = Counts(400, 240, 120, 20, 100, 0.5, control=340) # 90% of images, 65% of copies, 85% where another place is erased
    found = sufficiency_test(c)
    assert found.necessity == pytest.approx((0.85 - 0.65)/(0.9 - 0.5)) and found.necessity_interval[0] < 0.5 < found.necessity_interval[1]
    assert (necessity_bound(c), necessity_bound(counts(100, 90, 50))) == (PAIRED_NECESSITY_THRESHOLD, NECESSITY_THRESHOLD)

def test_the_shortfall_by_hand():
    "What a second network knows more than the first without that place, less what any hole costs"
    def asked(second, copy=160): return Counts(400, copy - 20, 400 - copy, 20, second, 0.1, control=360)
    share,(low,high) = shortfall_of(asked(340))
    assert share == pytest.approx((340 - 160 - (380 - 360))/(340 - 40)) and low < share < high
    assert [shortfall_test(asked(k)).name for k in (340, 250, 200)] == ['shortcut', 'unclear', 'real']
    assert shortfall_test(asked(250)).reason == 'shortfall' and shortfall_test(asked(250), 0.15).name == 'shortcut'
    assert shortfall_of(asked(340, 200))[0] < share, "a network that needs the place less lacks less without it"
    assert shortfall_test(asked(340)).necessity == pytest.approx((360 - 160)/(380 - 40)) and shortfall_test(asked(340)).sufficiency > 0.8

def test_necessity_with_a_bound_of_its_own():
    c = Counts(400, 240, 120, 20, None, 0.1, control=340)
    assert necessity_test(c, 0.1) is None and necessity_test(c).name == 'spread'

def test_plausible_rates_lie_around_the_counts():
    "Jeffreys' prior adds half an answer to each kind"
    rates = _rates(Counts(8, 4, 2, 1, 3, control=6))
    assert [r.mean() for r in rates] == pytest.approx([7/10, 6/10, 3.5/9, 6.5/9], abs=0.01) and {len(r) for r in rates} == {4000}
    assert _interval(np.linspace(0, 1, 1001)) == pytest.approx((0.05, 0.95))

def test_shares_of_nothing_and_bounds_that_are_touched():
    assert _share(np.array([0.3, 0.3, 0.3, 0.3]), np.array([0.6, 0.001, 0., -0.5])).tolist() == [0.5, 0, 0, 0]
    assert [_above(i, 0.5) for i in [(0.51, 0.7), (0.5, 0.7), (0.3, 0.5), (0.3, 0.49)]] == [True, None, None, False]

verdicts = {
    'needed': (counts(200, 190, 110), None), 'spread': (counts(200, 190, 185), 'spread'), 'few': (counts(MIN_HELD_OUT-1, 15, 0, chance=0.1), 'few'),
    'at chance': (counts(200, 105, 100), 'chance'), 'at the bound': (counts(30, 30, 22), 'necessity'),
}

@pytest.mark.parametrize('name', verdicts)
def test_first_verdicts(name):
    c,expected = verdicts[name]
    found = necessity_test(c)
    if expected is None: assert found is None
    elif expected == 'spread': assert found.name == 'spread' and found.reason == '' and found.sufficiency is None
    else: assert (found.name, found.reason) == ('unclear', expected)

@pytest.mark.parametrize('second,name', [(190, 'shortcut'), (140, 'shortcut'), (90, 'real'), (80, 'real'), (100, 'real'), (110, 'unclear'), (120, 'unclear')])
def test_second_verdicts(second, name):
    found = sufficiency_test(counts(200, 190, 100, second))
    assert found.name == name and found.reason == ('sufficiency' if name == 'unclear' else '')

def test_sixteen_are_enough():
    assert necessity_test(counts(16, 16, 2, chance=0.1)) is None and necessity_test(counts(15, 15, 2, chance=0.1)).reason == 'few'

@pytest.mark.parametrize('share', [0.6, 0.8])
def test_intervals_shrink_with_the_number_of_images(share):
    widths = [[], []]
    for n in (20, 80, 320, 1280):
        v = sufficiency_test(counts(n, int(0.95*n), int(0.5*n), int(share*n)))
        for w,(low,high) in zip(widths, (v.necessity_interval, v.sufficiency_interval)): w.append(high - low)
    for w in widths: assert all(0.3 < b/a < 0.7 for a,b in zip(w, w[1:])), w # half as wide with four times as many

def test_the_interval_holds_the_truth_as_often_as_it_says():
    "Necessity of networks that are right on 90% of images and on 60% of copies"
    rng, inside = np.random.default_rng(0), 0
    for _ in range(300):
        both,image_only,copy_only,_ = rng.multinomial(60, [0.58, 0.32, 0.02, 0.08])
        low,high = sufficiency_test(Counts(60, both, image_only, copy_only, 40, 0.5)).necessity_interval
        inside += low <= 0.3/0.4 <= high
    assert abs(inside/300 - CONFIDENCE) < 0.06

def test_the_more_is_lost_the_more_is_needed():
    shares = [sufficiency_test(counts(64, 60, k, 40)) for k in range(60, -1, -6)]
    for a,b in zip(shares, shares[1:]): assert a.necessity < b.necessity and a.necessity_interval[0] < b.necessity_interval[0]

def test_the_more_the_second_scout_knows_the_less_was_needed():
    found = [sufficiency_test(counts(64, 60, 20, k)) for k in range(0, 65, 8)]
    for a,b in zip(found, found[1:]): assert a.sufficiency < b.sufficiency and a.sufficiency_interval[0] < b.sufficiency_interval[0]
    order = [('real', 'unclear', 'shortcut').index(v.name) for v in found]
    assert order == sorted(order) and set(order) == {0, 1, 2} or set(order) == {0, 2}

def test_the_same_counts_give_the_same_verdict():
    assert sufficiency_test(counts(64, 60, 20, 40)) == sufficiency_test(counts(64, 60, 20, 40))

def test_bounds():
    assert 0 < SUFFICIENCY_THRESHOLD < PAIRED_NECESSITY_THRESHOLD < NECESSITY_THRESHOLD < 1 and 0.5 < CONFIDENCE < 1
    assert SUFFICIENCY_THRESHOLD < LATER_SUFFICIENCY_THRESHOLD < 1

def test_nothing_known_is_no_division_by_zero():
    for c in (counts(40, 20, 20), counts(40, 0, 0), counts(40, 40, 0, chance=1.)):
        assert (necessity_test(c).name, necessity_test(c).reason) == ('unclear', 'chance')

def test_plain_data(): assert sufficiency_test(counts(64, 60, 20, 40)).to_dict()['counts']['n'] == 64


# -- words ----------------------------------------------------------------------------------------------------------------------------------------

def numbers_in(text): return re.findall(r'\d+%', text)

def test_words_of_a_shortcut():
    text = verdict_text(sufficiency_test(counts(200, 190, 24, 132, chance=0.1)), '10% of each image', 1200)
    assert text == ("Shortcut found. Erasing 10% of each image drops a scout from 95% to 12%; trained without that evidence, a second scout still reaches 66%. "
                    "The fit trains on 1,200 erased copies in their originals' place.")

@pytest.mark.parametrize('v,words,numbers', [
    (sufficiency_test(counts(200, 190, 100, 90)), 'the evidence itself', ['95%', '50%', '45%']),
    (necessity_test(counts(200, 190, 180)), 'No single region.*does not rule out a cue at the border, in the colour or in the background', ['95%', '90%', '11%', '50%']),
    (necessity_test(counts(10, 9, 5)), f'Too little data to tell: 10 images.*at least {MIN_HELD_OUT}', []),
    (necessity_test(counts(200, 104, 90)), 'At chance, too early to tell.*scout=', ['52%', '50%']),
    (necessity_test(counts(30, 30, 22)), 'Too little data to tell.* 30 held-out', ['100%', '73%', '53%', '50%']),
    (sufficiency_test(counts(200, 190, 100, 110)), 'Too little data to tell.*second scout', ['95%', '50%', '55%']),
], ids=['real', 'spread', 'few', 'chance', 'necessity', 'sufficiency'])
def test_words_hold_their_numbers(v, words, numbers):
    text = verdict_text(v, 'what the maps mark')
    assert re.search(words, text) and set(numbers) <= set(numbers_in(text)) and text.endswith('No copies are used.')
    if v.reason not in ('few', 'chance'): assert 'what the maps mark' in text

def test_words_hold_the_interval():
    text = verdict_text(Verdict('unclear', counts(30, 30, 22), 8/15, (0.31, 0.74), reason='necessity'))
    assert 'loses 53% [31%, 74%] of what it knows above chance, and the bound is 50%' in text

def test_words_of_a_probe():
    text = verdict_text(Verdict('shortcut', Counts(400, 240, 120, 20, 160, 0.5, control=340), 0.5, (0.4, 0.6)), used=9, merge='add')
    assert text == ("Shortcut found in early layers. A linear probe knows 90% of 400 training images, 65% where one place of 10% of each image is erased, 85% where "
                    "another is; fitted without that evidence, 40%. The fit trains on 9 erased copies beside their originals.")
