"""`context` and `swap`: the filled pixels are those that the network sees at the same place of another image, whatever the sizes of the two."""
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fastai.vision.augment import Resize, ResizeMethod
from fastai.vision.data import ImageDataLoaders
from hypothesis import given, settings
from hypothesis import strategies as st
from kit import SIDE, make_learner, quiet_cb
from PIL import Image

from proxy_attention.compact import Positions
from proxy_attention.copies import Eraser
from proxy_attention.dataloaders import as_validation
from proxy_attention.erase import align_donor, erase, saliency_masks, view_grid

quick = settings(deadline=None, max_examples=30, derandomize=True)


def smooth(seed, width, height):
    "A picture without edges, so that interpolation hardly matters"
    noise = np.random.default_rng(seed).integers(0, 256, (3, 3, 3), dtype=np.uint8)
    return cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)

def affine(draw_scale, draw_shift): return torch.tensor([[draw_scale[0], 0.], [0., draw_scale[1]], [draw_shift[0], draw_shift[1]]])

scales = st.tuples(st.floats(0.7, 1.4), st.floats(0.7, 1.4))
shifts = st.tuples(st.floats(-0.2, 0.2), st.floats(-0.2, 0.2))


# -- geometry ------------------------------------------------------------------------------------------------------------------------------

@quick
@given(scales, shifts, scales, shifts, st.integers(20, 60), st.integers(20, 60), st.integers(20, 60), st.integers(20, 60))
def test_the_same_place_in_the_view(a, b, c, d, width, height, w2, h2):
    "Both images, resampled to the view as torch does it, agree where both are in it"
    donor, to_view, donor_to_view = smooth(1, w2, h2), affine(a, b), affine(c, d)
    behind = align_donor(donor, (width, height), to_view, donor_to_view)
    assert behind.shape == (height, width, 3) and behind.dtype == np.uint8
    def view(img, m): # what the network sees: for each place of the view, where in the image it lies
        back = torch.linalg.inv(m[:2])
        theta = torch.cat([back, -(m[2:] @ back)])
        grid = F.affine_grid(theta.T[None], (1, 3, 24, 24), align_corners=False)
        x = torch.from_numpy(img).permute(2, 0, 1)[None].float()
        return F.grid_sample(x, grid, padding_mode='reflection', align_corners=False)[0], (grid.abs() < 0.85).all(-1)[0]
    ours, inside = view(behind, to_view)
    theirs, there = view(donor, donor_to_view)
    both = inside & there
    if both.any(): assert (ours - theirs).abs()[:, both].mean() < 6

def test_equal_views_and_sizes_copy_the_very_pixels():
    donor = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    m = torch.tensor([[1.3, 0.], [0., 0.8], [0.1, -0.2]])
    assert align_donor(donor, (40, 30)) is donor and align_donor(donor, (40, 30), m, m.clone()) is donor

@pytest.mark.parametrize('shape', [(30, 40), (30, 40, 3), (30, 40, 4)])
def test_shapes(shape):
    donor = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    for m in (None, torch.tensor([[1.3, 0.2], [-0.2, 0.8], [0.1, 0.]])): assert align_donor(donor, (17, 21), m).shape == (21, 17, *shape[2:])

def test_a_ramp_by_hand():
    "A ramp stays a ramp: each pixel shows the donor where the network sees it"
    donor = (4*np.arange(40)[:, None] + 3*np.arange(30)).astype(np.uint8)
    out = align_donor(donor, (25, 36), torch.tensor([[0.8, 0.], [0., 0.6], [0.1, -0.2]]), torch.tensor([[1.1, 0.], [0., 1.2], [0.05, 0.1]]))
    x,y = ((2*np.arange(n) + 1)/n - 1 for n in (25, 36)) # centres of the image's pixels
    x,y = (0.8*x + 0.1 - 0.05)/1.1, (0.6*y - 0.2 - 0.1)/1.2 # in the view, and from there in the donor
    assert abs(out - (4*((y + 1)*40 - 1)/2)[:, None] - 3*((x + 1)*30 - 1)/2).max() <= 1

def noise(*shape): return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)

shifted = torch.tensor([[1., 0.], [0., 1.], [0.2, 0.1]])

@pytest.mark.parametrize('shape', [(400, 400), (400, 20), (20, 400)])
def test_a_large_donor_is_averaged_and_not_sampled(shape):
    out = align_donor(noise(*shape), (20, 20), torch.tensor([[1.1, 0.], [0., 1.1], [0., 0.]]))
    assert out.std() < 25 and abs(out.mean() - 127) < 5

@pytest.mark.parametrize('height,left', [(40, 20), (30, 20), (10, 10)])
def test_a_donor_twice_as_large_is_halved_first(height, left):
    "In both directions, but nothing is enlarged by it"
    small = cv2.resize(noise(height, 60), (30, left), interpolation=cv2.INTER_AREA)
    assert (align_donor(noise(height, 60), (30, 20), shifted) == align_donor(small, (30, 20), shifted)).all()

def test_a_donor_of_one_pixel_is_left_at_least():
    halves = np.repeat(np.array([[0, 200]], np.uint8), 15, 1).repeat(30, 0)
    assert align_donor(halves, (1, 1), torch.tensor([[3., 0.], [0., 3.], [0.6, 0.]])) == 100

@pytest.mark.parametrize('side', [25, 30])
def test_a_donor_a_little_larger_is_interpolated(side):
    at = view_grid((20, 20), shifted)
    grid = torch.tensor(np.stack(np.meshgrid(at.x, at.y), -1))[None]
    expected = F.grid_sample(torch.from_numpy(noise(side, side))[None, None].float(), grid, align_corners=False)[0, 0].numpy()
    assert abs(align_donor(noise(side, side), (20, 20), shifted) - expected)[3:-3, 3:-3].max() <= 9 # OpenCV's positions are to a 32nd of a pixel

@pytest.mark.parametrize('m', [None, torch.tensor([[1.2, 0.], [0., 1.2], [0., 0.]])])
def test_a_mask_stays_a_mask(m):
    mask = np.zeros((40, 40), np.uint8)
    mask[10:20, 10:20] = 255
    got = align_donor(mask, (23, 31), m, None, cv2.INTER_NEAREST)
    assert set(np.unique(got)) == {0, 255}


# -- fills ---------------------------------------------------------------------------------------------------------------------------------

def test_swap_pastes_the_patch():
    rng = np.random.default_rng(0)
    img,donor = rng.integers(0, 256, (2, 12, 12, 3), dtype=np.uint8)
    mask,salient = np.zeros((2, 12, 12), bool)
    mask[:4, :4], salient[8:, 8:] = True, True
    out = erase(img, mask, 'swap', donor=donor, donor_mask=salient)
    there = mask | salient
    assert (out[there] == donor[there]).all() and (out[~there] == img[~there]).all()
    with pytest.raises(ValueError, match="fill='swap' needs"): erase(img, mask, 'swap', donor=donor)

@pytest.mark.parametrize('fill', ['context', 'swap'])
def test_transparency_is_kept(fill):
    rng = np.random.default_rng(0)
    img,donor = rng.integers(0, 256, (2, 12, 12, 4), dtype=np.uint8)
    mask = np.zeros((12, 12), bool)
    mask[3:6, 3:6] = True
    out = erase(img, mask, fill, donor=donor, donor_mask=mask)
    assert (out[..., 3] == img[..., 3]).all() and (out[mask][:, :3] == donor[mask][:, :3]).all()

@pytest.fixture
def mixed(tmp_path):
    "Smooth pictures of very different sizes, of two classes"
    rng = np.random.default_rng(0)
    for i in range(16):
        folder = tmp_path/'ab'[i % 2]
        folder.mkdir(exist_ok=True)
        Image.fromarray(smooth(i, *(int(v) for v in rng.integers(40, 120, 2)))).save(folder/f'{i:02}.png')
    return tmp_path

@pytest.mark.parametrize('method', [ResizeMethod.Squish, ResizeMethod.Crop, ResizeMethod.Pad])
def test_what_the_network_sees_in_the_hole(mixed, method):
    "In the model's view, the hole of a copy shows what the donor shows there"
    dls = ImageDataLoaders.from_folder(mixed, valid_pct=.25, seed=0, bs=4, num_workers=0, item_tfms=Resize(SIDE, method=method, pad_mode='zeros'))
    cb = quiet_cb(select='all', fill='context', area=0.15)
    make_learner(dls, cb)
    cb.make_proxies()
    eraser, source = cb.copies.erasers[1], cb.prepared.source
    donors = {}
    other = eraser.other
    def noted(i, rng):
        k,img = other(i, rng)
        donors[i] = k
        return k, img
    eraser.other = noted
    rows = [dict(r) for r in cb.copies.rows]
    with as_validation(cb.prepared.items.base): copies = eraser(rows)
    seen = 0
    for row,copy in zip(rows, copies):
        i = row['index']
        img,_ = source.read(i)
        maps,inside = eraser.saliency([i], img.shape[1::-1])
        mask = saliency_masks(maps, inside, 0.15)[0]
        hole = _view(dls, (mask*255).astype(np.uint8)[..., None].repeat(3, 2))[..., 0] > 250
        hole = cv2.erode(hole.astype(np.uint8), np.ones((3, 3), np.uint8)).astype(bool)
        ours, theirs = _view(dls, copy), _view(dls, source.read(donors[i])[0])
        picture = np.pad((theirs.sum(-1) > 0).astype(np.uint8), 2) # not padding, nor its edge, nor the view's: there the two may be mixed
        picture = cv2.erode(picture, np.ones((5, 5), np.uint8))[2:-2, 2:-2].astype(bool)
        if (hole & picture).any():
            seen += 1
            assert abs(ours.astype(int) - theirs)[hole & picture].mean() < 10
    assert seen > 6

def _view(dls, img):
    "The pixels that the network gets of an image"
    from fastai.vision.core import PILImage
    dls.valid.after_item.split_idx = 1
    x = dls.valid.after_item((PILImage.create(img), 0))[0]
    return np.asarray(x.permute(1, 2, 0)) if torch.is_tensor(x) else np.asarray(x)

@pytest.mark.parametrize('fill', ['context', 'swap'])
def test_copies_depend_on_the_seed_and_are_made_again(mixed, fill):
    def made(seed):
        dls = ImageDataLoaders.from_folder(mixed, valid_pct=.25, seed=0, bs=4, num_workers=0, item_tfms=Resize(SIDE))
        cb = quiet_cb(select='all', fill=fill, seed=seed)
        make_learner(dls, cb)
        cb.make_proxies()
        return [r['sha256'] for r in cb.copies.rows]
    assert made(0) == made(0) != made(1)


# -- donors -----------------------------------------------------------------------------------------------------------------------------------------

class Items:
    "A `Source` of as many images as maps, of which some can't be read"
    def __init__(self, bad=()): self.bad = bad
    def read(self, i, kind=None):
        if i in self.bad: raise OSError
        return np.full((8, 8, 3), i, np.uint8), ''

def an_eraser(maps, area=0.25, bad=(), apart=True, fill='context'):
    seen = SimpleNamespace(idxs=np.arange(len(maps)), maps=maps, flat=np.zeros(len(maps), bool), dl=None)
    return Eraser(Items(bad), seen, None, len(maps), area, fill=fill, apart=apart)

def drawn(eraser, i, n=60): return [eraser.other(i, np.random.default_rng(k))[0] for k in range(n)]

def corners(n):
    "Maps bright in one of four corners, by turns"
    maps = torch.zeros(n, 4, 4)
    for k in range(n): maps[k, 2*(k//2 % 2):, 2*(k % 2):][:2, :2] = 1
    return maps

def test_a_donor_shows_its_own_evidence_elsewhere():
    "Of 40 items ten have their salient part where item 5 has it"
    donors = drawn(an_eraser(corners(40)), 5)
    assert not any(k % 4 == 1 for k in donors) and len(set(donors)) > 15 and {k % 4 for k in donors} == {0, 2, 3}

def test_any_donor_unless_it_is_to_be_apart():
    assert {k % 4 for k in drawn(an_eraser(corners(40), apart=False), 5, 200)} == {0, 1, 2, 3}

def test_the_least_overlap_where_all_overlap():
    maps = torch.zeros(6, 4, 4)
    maps[:, :2, :2] = 1
    maps[4] = maps[4].roll(1, 1)
    assert set(drawn(an_eraser(maps), 0)) == {4}

def test_any_donor_where_all_maps_are_one():
    "The border of another image may have any colour, its own class' too: then it tells nothing"
    maps = torch.zeros(12, 4, 4)
    maps[:, 0] = 1
    assert set(drawn(an_eraser(maps), 3, 200)) == set(range(12)) - {3}

def test_donors_that_cannot_be_read_or_have_no_map():
    assert set(drawn(an_eraser(corners(8), bad=(0, 2, 3)), 5)) == {4, 6, 7}
    eraser = an_eraser(corners(8))
    eraser.seen.flat[[0, 2, 3]] = True
    assert set(drawn(eraser, 5)) == {4, 6, 7}, "where a map says nothing, nothing is known"

def test_a_swap_needs_a_donor_with_a_map():
    eraser = an_eraser(corners(8), bad=(7,), apart=False, fill='swap')
    eraser.seen.flat[[0, 2, 3]] = True
    assert set(drawn(eraser, 5)) == {1, 4, 6}

@pytest.mark.parametrize('how', [dict(area=0.25), dict(threshold=0.5)])
def test_overlap(how):
    eraser = an_eraser(corners(4), area=None)
    eraser.area, eraser.threshold = how.get('area'), how.get('threshold')
    half = torch.zeros(4, 4)
    half[:2, 1:3] = 1
    eraser.seen.maps = torch.cat([eraser.seen.maps, half[None]])
    eraser.at = Positions(np.arange(5))
    assert eraser.overlap(0, [0, 1, 4]).tolist() == [1, 0, 0.5]
