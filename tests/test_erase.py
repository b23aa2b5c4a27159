"""Properties of masks and fills: exactly what was asked is erased, and nothing else changes."""
import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from proxy_attention.core import seeded_rng
from proxy_attention.erase import align_donor, check_rule, erase, fills, maps_on_image, saliency_masks, view_grid

quick = settings(deadline=None, max_examples=60, derandomize=True)
sides = st.integers(1, 12)
levels = st.integers(0, 6).map(lambda v: v/8) # few levels, exact in binary: many ties

@st.composite
def maps_and_seen(draw):
    b, h, w = draw(st.integers(1, 3)), draw(sides), draw(sides)
    maps = draw(hnp.arrays(np.float32, (b, h, w), elements=levels))
    seen = draw(st.one_of(st.none(), hnp.arrays(bool, (h, w))))
    return maps, seen

@st.composite
def images(draw, min_side=1):
    h, w = draw(st.integers(min_side, 12)), draw(st.integers(min_side, 12))
    shape = (h, w, *draw(st.sampled_from([(), (3,), (4,)])))
    return np.random.default_rng(draw(st.integers(0, 999))).integers(1, 255, shape, dtype=np.uint8)

@st.composite
def images_and_masks(draw):
    img = draw(images())
    return img, draw(hnp.arrays(bool, img.shape[:2]))

def seen_of(maps, seen): return np.ones(maps.shape[1:], bool) if seen is None else seen


# -- masks ---------------------------------------------------------------------------------------------------------------------------------

@quick
@given(maps_and_seen(), st.floats(0.001, 1))
def test_exactly_the_share_of_what_was_seen(case, area):
    maps, seen = case
    masks = saliency_masks(maps, seen, area=area)
    n = int(seen_of(maps, seen).sum())
    assert masks.shape == maps.shape and masks.dtype == bool
    assert masks.sum((1, 2)).tolist() == [0 if n == 0 else max(1, round(area*n))]*len(maps)

@quick
@given(maps_and_seen(), st.floats(0.001, 1))
def test_highest_first(case, area):
    maps, seen = case
    for m,mask in zip(maps, saliency_masks(maps, seen, area=area)):
        left = seen_of(maps, seen) & ~mask
        if mask.any() and left.any(): assert m[mask].min() >= m[left].max()

thresholds = st.one_of(levels, st.just('mean+2std')).map(lambda t: {'threshold': t})
rules = st.one_of(st.floats(0.001, 1).map(lambda a: {'area': a}), thresholds)

@quick
@given(maps_and_seen(), rules)
def test_nothing_outside_of_what_was_seen(case, rule):
    maps, seen = case
    assert not saliency_masks(maps, seen, **rule)[:, ~seen_of(maps, seen)].any()

@quick
@given(maps_and_seen(), levels)
def test_threshold_is_a_fraction_of_the_range(case, threshold):
    maps, seen = case
    for m,mask in zip(maps, saliency_masks(maps, seen, threshold=threshold)):
        values = m[seen_of(maps, seen)]
        if len(values): assert (mask[seen_of(maps, seen)] == (values > values.min() + threshold*(values.max() - values.min()))).all()

@quick
@given(maps_and_seen())
def test_mean_plus_two_standard_deviations(case):
    maps, seen = case
    for m,mask in zip(maps, saliency_masks(maps, seen, threshold='mean+2std')):
        values = m[seen_of(maps, seen)].astype(float)
        if len(values) and values.std(): # to the rounding of a float32 mean
            limit = values.mean() + 2*values.std()
            sure = abs(values - limit) > 1e-5
            assert (mask[seen_of(maps, seen)] == (values > limit))[sure].all()

@quick
@given(maps_and_seen(), st.floats(0.001, 0.5), st.floats(1, 2))
def test_more_area_erases_more(case, area, factor):
    maps, seen = case
    smaller, larger = (saliency_masks(maps, seen, area=a) for a in (area, area*factor))
    assert (larger.sum((1, 2)) >= smaller.sum((1, 2))).all()

@quick
@given(maps_and_seen(), st.sampled_from([{'area': 0.3}, {'threshold': 0.5}, {'threshold': 'mean+2std'}]))
def test_maps_of_a_batch_do_not_touch_each_other(case, rule):
    maps, seen = case
    together = saliency_masks(maps, seen, **rule)
    assert (together == np.concatenate([saliency_masks(m[None], seen, **rule) for m in maps])).all()

@quick
@given(maps_and_seen(), st.sampled_from([{'area': 0.3}, {'threshold': 0.5}, {'threshold': 'mean+2std'}]))
def test_maps_are_not_changed_and_the_answer_is_the_same_again(case, rule):
    maps, seen = case
    kept, kept_seen = maps.copy(), None if seen is None else seen.copy()
    first = saliency_masks(maps, seen, **rule)
    assert (saliency_masks(maps, seen, **rule) == first).all()
    assert (maps == kept).all() and (seen is None or (seen == kept_seen).all())

@pytest.mark.parametrize('value', [0., 0.5, 1.])
def test_constant_maps(value):
    maps = np.full((2, 6, 8), value, np.float32)
    assert saliency_masks(maps, area=0.25).sum((1, 2)).tolist() == [12, 12]
    for threshold in (0, 0.6, 'mean+2std'): assert not saliency_masks(maps, threshold=threshold).any()

def test_known_masks():
    maps = np.array([[[0., 1., 2.], [3., 4., 10.]]], np.float32)
    assert saliency_masks(maps, area=1/3)[0].tolist() == [[False, False, False], [False, True, True]]
    assert saliency_masks(maps, threshold=0.3)[0].tolist() == [[False, False, False], [False, True, True]] # above 3, not at 3
    assert saliency_masks(maps, threshold=0)[0].tolist() == [[False, True, True], [True, True, True]]
    seen = np.array([[True, True, True], [True, True, False]]) # the 10 wasn't seen: neither erased nor in the range
    assert saliency_masks(maps, seen, threshold=0.5)[0].tolist() == [[False, False, False], [True, True, False]]
    peak = np.zeros((1, 10, 10), np.float32)
    peak[0, 2, 3] = 1
    assert np.argwhere(saliency_masks(peak, threshold='mean+2std')[0]).tolist() == [[2, 3]]
    three = np.eye(3, 8, dtype=np.float32)[None] # mean 0.125, standard deviation 0.331: above 0.786, not above 1.117
    assert (saliency_masks(three, threshold='mean+2std') == (three == 1)).all()

def test_the_highest_of_many():
    "Three tenths of 1000 different values, in a thousand orders: one that is taken by mistake is seldom"
    maps = np.random.default_rng(0).permuted(np.tile(np.arange(1000, dtype=np.float32), (1000, 1)), axis=1).reshape(-1, 25, 40)
    assert (saliency_masks(maps, area=0.3) == (maps >= 700)).all()

def test_a_tenth_unless_told_otherwise():
    maps = np.random.default_rng(0).random((2, 20, 30)).astype(np.float32)
    assert (saliency_masks(maps) == saliency_masks(maps, area=0.1)).all() and saliency_masks(maps).sum((1, 2)).tolist() == [60, 60]

bad_rules = [*(('area', v, ValueError) for v in (0, 1.01, -0.1, float('nan'))), *(('area', v, TypeError) for v in ('0.1', True)),
             *(('threshold', v, ValueError) for v in (1, 1.5, -0.1, 'mean', [0.5], float('nan'))), ('threshold', False, TypeError)]

@pytest.mark.parametrize('name,value,error', bad_rules)
def test_bad_rules(name, value, error):
    with pytest.raises(error, match=f"{name}="): check_rule(**{'area': None, 'threshold': None, name: value})
    with pytest.raises(error, match=f"{name}="): saliency_masks(np.ones((1, 2, 2), np.float32), **{name: value})

def test_both_rules_are_an_error():
    with pytest.raises(ValueError, match=r"area=0\.2.*threshold=0\.6"): check_rule(0.2, 0.6)

def test_rules():
    assert check_rule(None, None) == (0.1, None) and check_rule(1, None) == (1., None)
    assert check_rule(None, 0) == (None, 0.) and check_rule(None, 'mean+2std') == (None, 'mean+2std')


# -- fills ---------------------------------------------------------------------------------------------------------------------------------

def filled(img, mask, fill, seed=0):
    size = img.shape[1::-1]
    donor = np.random.default_rng(77).integers(0, 256, (5, 7, *img.shape[2:]), dtype=np.uint8)[..., :3 if img.ndim == 3 else None]
    saliency = np.random.default_rng(78).random(img.shape[:2])
    inside = mask & (np.indices(mask.shape).sum(0) % 2 == 0)
    return erase(img, mask, fill, saliency, seeded_rng(seed), align_donor(donor, size), inside)

@pytest.mark.parametrize('fill', fills)
@quick
@given(images_and_masks())
def test_untouched_elsewhere(fill, case):
    img, mask = case
    kept, kept_mask = img.copy(), mask.copy()
    out = filled(img, mask, fill)
    assert out.shape == img.shape and out.dtype == np.uint8
    assert (out[~mask] == img[~mask]).all()
    assert (img == kept).all() and (mask == kept_mask).all() and not np.shares_memory(out, img)
    if img.ndim == 3 and img.shape[2] == 4: assert (out[..., 3] == img[..., 3]).all()

@pytest.mark.parametrize('fill', [f for f in fills if f != 'unchanged'])
@pytest.mark.parametrize('channels', [(), (3,), (4,)])
def test_every_fill_changes_what_is_masked(fill, channels):
    img = np.random.default_rng(0).integers(0, 256, (24, 32, *channels), dtype=np.uint8)
    mask = np.zeros((24, 32), bool)
    mask[5:15, 8:20] = True
    out = filled(img, mask, fill)
    changed = out != img if img.ndim == 2 else (out != img)[..., :3].any(-1)
    assert changed[mask].mean() > 0.9 and not changed[~mask].any()

@pytest.mark.parametrize('fill', fills)
@quick
@given(images())
def test_nothing_masked_nothing_changed(fill, img): assert (filled(img, np.zeros(img.shape[:2], bool), fill) == img).all()

@pytest.mark.parametrize('fill', fills)
@pytest.mark.parametrize('shape', [(1, 1), (1, 1, 3), (1, 9, 3), (9, 1, 4), (6, 5, 3)])
def test_everything_masked(fill, shape):
    img = np.full(shape, 9, np.uint8)
    assert filled(img, np.ones(shape[:2], bool), fill).shape == shape

def test_fills_are_told_apart():
    img = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    outs = [filled(img, np.ones((24, 32), bool), fill) for fill in fills if fill not in ('inpaint', 'swap')]
    # Inpainting needs something to start from; a swap differs from context outside of the hole only
    assert all((a != b).any() for i,a in enumerate(outs) for b in outs[:i])

def test_what_the_fills_hold():
    img = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    mask = np.zeros((24, 32), bool)
    mask[4:9, 6:20] = True
    saliency = np.random.default_rng(1).random((24, 32))
    donor = np.random.default_rng(2).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    assert not erase(img, mask)[mask].any()
    assert (erase(img, mask, 'mean')[mask] == [round(img[..., c].mean()) for c in range(3)]).all()
    assert (erase(img, mask, 'context', donor=donor)[mask] == donor[mask]).all()
    expected = np.rint(img * (1 - saliency[..., None]))
    assert (erase(img, mask, 'blend', saliency)[mask] == expected[mask]).all()
    blurred = erase(img, mask, 'blur')[mask].astype(float)
    assert blurred.std() < img[mask].std()/4 and abs(blurred.mean() - img.mean()) < 16

def test_inpainting_goes_on_with_what_is_around():
    mask = np.zeros((20, 20), bool)
    mask[8:12, 8:12] = True
    outs = []
    for hole in (0, 255):
        img = np.full((20, 20, 3), 200, np.uint8)
        img[mask] = hole
        outs.append(erase(img, mask, 'inpaint'))
        assert (abs(outs[-1].astype(int) - 200) <= 5).all()
    assert (outs[0] == outs[1]).all() # nothing of what was erased shines through

def test_fills_by_hand():
    img, everywhere = np.random.default_rng(0).integers(0, 256, (24, 32), dtype=np.uint8), np.ones((24, 32), bool)
    assert (erase(img, everywhere, 'blur') == cv2.GaussianBlur(img, (0, 0), 4)).all(), "an eighth of 32"
    small = np.uint8([[[255]*3]*2, [[0]*3]*2])
    assert (erase(small, np.ones((2, 2), bool), 'blur') == cv2.GaussianBlur(small, (0, 0), 0.25)).all(), "of the sides, not of the channels"
    noise = erase(np.zeros((200, 300), np.uint8), np.ones((200, 300), bool), 'noise')
    assert (noise.min(), noise.max()) == (0, 255) and (noise == erase(noise, noise < 256, 'noise', rng=seeded_rng(0))).all()
    hole = np.zeros((24, 32), bool)
    hole[8:14, 8:14] = True
    assert (erase(img, hole, 'inpaint') == cv2.inpaint(img, hole.astype(np.uint8), 3, cv2.INPAINT_TELEA)).all()

def test_a_donor_of_another_size_is_stretched():
    "Where both views show the whole image"
    donor = cv2.GaussianBlur(np.random.default_rng(2).integers(0, 256, (48, 16, 3), dtype=np.uint8), (0, 0), 3)
    out = align_donor(donor, (32, 24))
    assert out.shape == (24, 32, 3) and out.dtype == np.uint8
    assert abs(out.astype(int) - cv2.resize(donor, (32, 24), interpolation=cv2.INTER_LINEAR)).max() <= 3
    assert (erase(np.zeros((24, 32, 3), np.uint8), np.ones((24, 32), bool), 'context', donor=out) == out).all()

def test_a_donor_lies_at_the_same_place_of_the_view():
    "The network sees the left half of the image and the right half of the donor: that half is laid behind the image's left one"
    left, right = torch.tensor([[2., 0.], [0., 1.], [1., 0.]]), torch.tensor([[2., 0.], [0., 1.], [-1., 0.]])
    donor = cv2.GaussianBlur(np.random.default_rng(2).integers(0, 256, (12, 20, 3), dtype=np.uint8), (0, 0), 3)
    out = align_donor(donor, (20, 12), left, right)
    assert abs(out[:, :10].astype(int) - donor[:, 10:]).max() <= 1 and abs(out[:, :10].astype(int) - donor[:, :10]).max() > 5

@pytest.mark.parametrize('channels', [(), (3,)])
def test_a_swap_erases_and_pastes(channels):
    img, donor = (np.random.default_rng(s).integers(0, 256, (24, 32, *channels), dtype=np.uint8) for s in range(2))
    mask, there = np.zeros((2, 24, 32), bool)
    mask[4:9, 6:20] = there[7:15, 18:25] = True
    before = mask.copy()
    out = erase(img, mask, 'swap', donor=donor, donor_mask=there)
    either = mask | there
    assert (out[either] == donor[either]).all() and (out[~either] == img[~either]).all() and (mask == before).all()

def test_a_donor_without_colour_and_with_alpha():
    for shape in ((9, 9), (9, 9, 4)):
        donor = np.random.default_rng(3).integers(0, 256, shape, dtype=np.uint8)
        assert align_donor(donor, (14, 11)).shape[:2] == (11, 14)

def test_noise_follows_its_seed():
    img, mask = np.zeros((24, 32, 3), np.uint8), np.ones((24, 32), bool)
    one, again, other = (erase(img, mask, 'noise', rng=seeded_rng(s)) for s in (1, 1, 2))
    assert (one == again).all() and (one != other).mean() > 0.9
    np.random.seed(0)
    assert (erase(img, mask, 'noise', rng=seeded_rng(1)) == one).all()

def test_a_new_entry_is_a_new_fill(monkeypatch):
    monkeypatch.setitem(fills, 'white', lambda img, mask, saliency, rng, donor: np.full_like(img, 255))
    mask = np.eye(6, dtype=bool)
    assert (erase(np.zeros((6, 6), np.uint8), mask, 'white') == np.where(mask, 255, 0)).all()

bad_shapes = (4, 4, 2), (4, 4, 1), (4, 4, 5), (4,), (1, 4, 4, 3)
bad_images = [((4, 4, 3), np.float32), ((4, 4, 3), np.int64), *((s, np.uint8) for s in bad_shapes)]

@pytest.mark.parametrize('shape,dtype', bad_images)
def test_bad_images(shape, dtype):
    img = np.zeros(shape, dtype)
    with pytest.raises(TypeError, match='img must be uint8'): erase(img, np.ones(img.shape[:2], bool))

def test_bad_masks():
    img = np.full((4, 4, 3), 7, np.uint8)
    with pytest.raises(ValueError, match=r'mask has shape \(4, 5\), the image \(4, 4\)'): erase(img, np.ones((4, 5), bool))
    with pytest.raises(TypeError, match='mask'): erase(img, np.eye(4, dtype=np.uint8)) # numbers would be taken for indices of rows

def test_bad_fills():
    img, mask = np.zeros((4, 4, 3), np.uint8), np.ones((4, 4), bool)
    with pytest.raises(ValueError, match="fill='blak'.*Did you mean 'black'"): erase(img, mask, 'blak')
    with pytest.raises(ValueError, match="fill='blend'"): erase(img, mask, 'blend')
    with pytest.raises(ValueError, match="fill='context'"): erase(img, mask, 'context')
    with pytest.raises(ValueError, match="fill='swap'"): erase(img, mask, 'swap', donor=img)


# -- from view to image --------------------------------------------------------------------------------------------------------------------

def test_whole_image_at_its_own_size():
    maps = torch.rand(2, 9, 13, generator=torch.Generator().manual_seed(0))
    out, seen = maps_on_image(maps, view_grid((13, 9)))
    assert out.shape == (2, 9, 13) and seen.shape == (9, 13) and seen.all()
    np.testing.assert_allclose(out, maps.numpy(), atol=1e-5)

def test_a_coarse_map_is_enlarged():
    out, _ = maps_on_image(torch.tensor([[[0., 1.], [0., 1.]]]), view_grid((8, 6)))
    assert (np.diff(out[0], axis=1) >= 0).all() and (out[0, :, :2] == 0).all() and (out[0, :, -2:] == 1).all()
    np.testing.assert_allclose(out[0], out[0, :1].repeat(6, 0), atol=1e-6)

def test_half_of_the_image_was_seen():
    to_view = torch.tensor([[2., 0.], [0., 1.], [1., 0.]]) # x: -1 -> -1, 0 -> 1: the left half fills the view
    out, seen = maps_on_image(torch.ones(1, 4, 4), view_grid((20, 10), to_view))
    assert seen[:, :10].all() and not seen[:, 10:].any()
    assert (out[0] == seen).all()

@pytest.mark.parametrize('size', [(12, 12), (20, 11), (11, 20)])
def test_a_mirrored_view(size):
    maps = torch.rand(1, size[1], size[0], generator=torch.Generator().manual_seed(0))
    out, seen = maps_on_image(maps, view_grid(size, torch.tensor([[-1., 0.], [0., 1.], [0., 0.]])))
    np.testing.assert_allclose(out[0], maps[0].numpy()[:, ::-1], atol=1e-5)
    assert seen.all()

def test_a_view_that_is_turned():
    "Columns of the original are rows of the view"
    turned = view_grid((5, 3), torch.tensor([[0., 1.], [1., 0.], [0., 0.]]))
    maps = torch.rand(2, 5, 3, generator=torch.Generator().manual_seed(0))
    out, seen = maps_on_image(maps, turned)
    np.testing.assert_allclose(out, maps.numpy().transpose(0, 2, 1), atol=1e-5)
    assert seen.all() and turned.grid is not None and view_grid((5, 3)).grid is None

def test_maps_by_hand():
    "Between the centres of two cells a straight line, beyond the outermost the same value"
    out, _ = maps_on_image(torch.tensor([[[0., 3., 6.], [12., 15., 18.]]]), view_grid((6, 2)))
    np.testing.assert_allclose(out[0], [[0, .75, 2.25, 3.75, 5.25, 6], [12, 12.75, 14.25, 15.75, 17.25, 18]], atol=1e-5)
    out, _ = maps_on_image(torch.tensor([[[0.5]]]), view_grid((3, 2)))
    np.testing.assert_allclose(out[0], np.full((2, 3), 0.5))

@pytest.mark.parametrize('turned', [False, True])
@pytest.mark.parametrize('x,y,seen', [(2, 2, True), (2.01, 2, False), (2, 2.01, False), (1.99, 1.99, True)])
def test_pixels_at_the_border_of_the_view(turned, x, y, seen):
    "The centres of two by two pixels lie at -0.5 and 0.5"
    to_view = [[0., y], [x, 0.], [0., 0.]] if turned else [[x, 0.], [0., y], [0., 0.]]
    assert (view_grid((2, 2), torch.tensor(to_view)).seen == seen).all()
