"""From the model's input back to the original's pixels: the same place, through any of fastai's transforms.

Each original carries its own coordinates as colours: red is x, green is y, blue is 255. After the very transforms that the network's input
goes through, every pixel of the view tells where it came from. That is what `view_of`, `view_grid` and `maps_on_image` are compared with."""
import numpy as np
import pytest
import torch
from fastai.data.block import CategoryBlock, DataBlock
from fastai.data.transforms import GrandparentSplitter, IndexSplitter, parent_label
from fastai.vision.augment import (CropPad, PadMode, RandomCrop, RandomResizedCrop, RandomResizedCropGPU, RatioResize, Resize, ResizeMethod,
                                   aug_transforms)
from fastai.vision.core import PILImage
from fastai.vision.data import ImageBlock
from PIL import Image
from scipy.spatial import cKDTree

from proxy_attention.erase import erase, maps_on_image, saliency_masks, view_grid
from proxy_attention.dataloaders import Source, as_validation, eval_dl, view_of

SIDE = 112 # of the view

cases = { # item transforms, batch transforms
    'squish': ([Resize(SIDE, ResizeMethod.Squish)], []),
    'crop': ([Resize(SIDE, ResizeMethod.Crop)], []),
    'pad': ([Resize(SIDE, ResizeMethod.Pad, pad_mode=PadMode.Zeros)], []),
    'squish, not square': ([Resize((96, 144), ResizeMethod.Squish)], []),
    'crop, not square': ([Resize((96, 144), ResizeMethod.Crop)], []),
    'pad, not square': ([Resize((96, 144), ResizeMethod.Pad, pad_mode=PadMode.Zeros)], []),
    'random resized crop': ([RandomResizedCrop(SIDE, min_scale=0.35)], []),
    'random crop': ([RandomCrop(SIDE)], []),
    'crop or pad': ([CropPad(SIDE)], []),
    'pad by much': ([CropPad((260, 280))], []),
    'ratio': ([RatioResize(SIDE), CropPad(SIDE)], []),
    'ratio, kept whole': ([RatioResize(SIDE)], []),
    'augmented': ([Resize(SIDE)], aug_transforms()),
    'presizing': ([RandomResizedCrop(160, min_scale=0.5)], aug_transforms(size=SIDE)),
    'presizing of a squish': ([Resize(160, ResizeMethod.Squish)], aug_transforms(size=SIDE, min_scale=0.75)),
    'presizing to an oblong': ([Resize((120, 180), ResizeMethod.Crop)], aug_transforms(size=(80, 120))),
    'crop on the batch': ([Resize(160)], [RandomResizedCropGPU(SIDE, min_scale=0.35)]),
}
photos = {'wide': (220, 140), 'tall': (140, 220), 'square': (180, 180)} # (width, height)

def coordinates(size):
    w,h = size
    y,x = np.mgrid[:h, :w]
    return np.dstack([x, y, np.full((h, w), 255)]).astype(np.uint8)

@pytest.fixture(scope='module', params=photos)
def folder(request, tmp_path_factory):
    path, size = tmp_path_factory.mktemp(request.param), photos[request.param]
    for name in ('train/a/0', 'train/b/0', 'valid/a/0', 'valid/b/0'):
        file = path/f'{name}.png'
        file.parent.mkdir(parents=True)
        Image.fromarray(coordinates(size)).save(file)
    return path, size

def loaders(folder, item_tfms, batch_tfms):
    block = DataBlock((ImageBlock, CategoryBlock), get_items=lambda p: sorted(p.rglob('*.png')), get_y=parent_label,
                      splitter=GrandparentSplitter(), item_tfms=item_tfms, batch_tfms=batch_tfms)
    return block.dataloaders(folder, bs=2, num_workers=0, seed=0)

def iou(a, b): return (a & b).sum() / max((a | b).sum(), 1)

def origins(view):
    "Where the pixels of a view (3,h,w) in [0,255] came from: (h*w, 2), and which of them aren't padding"
    red, green, blue = view.reshape(3, -1).numpy()
    real = blue > 250
    share = np.where(real, blue, 255)/255 # at the edge some padding may have been mixed in
    return np.stack([red/share, green/share], 1), real

def intended(view, marked, size):
    "The original's pixels whose nearest pixel of the view is marked, and those that are in the view at all; not by the library's geometry"
    where, real = origins(view)
    w,h = size
    pixels = np.stack(np.mgrid[:h, :w][::-1], -1).reshape(-1, 2)
    distance, nearest = cKDTree(where[real]).query(pixels)
    apart = np.sqrt((np.ptp(where[real], axis=0) + 1).prod() / real.sum()) # pixels of the original between two of the view
    seen = distance <= max(apart, 1)*0.75 + 0.5 # half a diagonal, and what rounding of colours takes
    return (marked.reshape(-1)[real][nearest] & seen).reshape(h, w), seen.reshape(h, w)

def blob(h, w, cy, cx, radius):
    y,x = np.mgrid[:h, :w]
    return np.hypot((y+0.5)/h - cy, (x+0.5)/w - cx) < radius

def view_and_geometry(dls):
    dl = eval_dl(dls, dls.train_ds, 2)
    x = dl.one_batch()[0].as_subclass(torch.Tensor)*255
    assert torch.equal(x[0], x[1]), "a view of validation isn't random"
    return x[0], view_of(dl, dls.train_ds[0][0])

@pytest.mark.parametrize('case', cases)
def test_back_to_the_original(folder, case):
    path, size = folder
    with as_validation((dls := loaders(path, *cases[case])).train_ds): view, to_view = view_and_geometry(dls)
    h,w = view.shape[1:]
    for cy,cx in ((0.5, 0.5), (0.35, 0.65), (0.6, 0.4)):
        marked = blob(h, w, cy, cx, 0.25)
        expected, expected_seen = intended(view, marked, size)
        back, seen = maps_on_image(torch.from_numpy(marked).float()[None], view_grid(size, to_view))
        assert back.shape == (1, size[1], size[0])
        assert expected.sum() > 300, "the case says nothing"
        assert iou(back[0] > 0.5, expected) >= 0.95
        assert iou(seen, expected_seen) >= 0.95

@pytest.mark.parametrize('case', ['squish', 'crop', 'pad', 'random resized crop', 'presizing'])
def test_a_low_resolution_map(folder, case):
    "A patch of a 7x7 map: the same as enlarging it to the view first, as a heat map does"
    path, size = folder
    with as_validation((dls := loaders(path, *cases[case])).train_ds): view, to_view = view_and_geometry(dls)
    low = torch.zeros(1, 7, 7)
    low[0, 1:4, 3:6] = 1
    shown = torch.nn.functional.interpolate(low[None], view.shape[1:], mode='bilinear', align_corners=False)[0, 0].numpy()
    expected, _ = intended(view, shown > 0.5, size)
    back, _ = maps_on_image(low, view_grid(size, to_view))
    assert expected.sum() > 300 and iou(back[0] > 0.5, expected) >= 0.95

@pytest.mark.parametrize('case', ['squish', 'crop', 'pad', 'presizing'])
def test_what_is_erased_is_what_was_marked(folder, case):
    "The whole way: a map, a mask, an erased copy, and through the transforms again"
    path, size = folder
    with as_validation((dls := loaders(path, *cases[case])).train_ds): view, to_view = view_and_geometry(dls)
    marked = blob(*view.shape[1:], 0.5, 0.45, 0.2)
    back, seen = maps_on_image(torch.from_numpy(marked).float()[None], view_grid(size, to_view))
    copy = erase(coordinates(size), saliency_masks(back, seen, threshold=0.5)[0])
    other = path.parent/f'{path.name} copies'
    for split in ('train', 'valid'):
        for label in 'ab':
            (other/split/label).mkdir(parents=True, exist_ok=True)
            Image.fromarray(copy).save(other/split/label/'0.png')
    again = loaders(other, *cases[case])
    with as_validation(again.train_ds): erased, _ = view_and_geometry(again)
    holes = (erased[2] < 127) & (view[2] > 250)
    assert iou(holes.numpy(), marked & (view[2] > 250).numpy()) >= 0.9

def test_a_mirrored_border_has_one_original():
    "Reflection padding shows some places twice; the middle is told rightly all the same"
    block = DataBlock((ImageBlock, CategoryBlock), splitter=IndexSplitter([1]), get_y=lambda i: 'ab'[i % 2],
                      get_x=lambda i: PILImage.create(coordinates((220, 140))),
                      item_tfms=Resize(SIDE, ResizeMethod.Pad, pad_mode=PadMode.Reflection))
    dls = block.dataloaders([0, 1, 2], bs=2, num_workers=0)
    with as_validation(dls.train_ds): view, to_view = view_and_geometry(dls)
    y,x = np.mgrid[:SIDE, :SIDE]
    inner = abs(y + 0.5 - SIDE/2) < SIDE*140/220/2 # not mirrored
    marked = blob(SIDE, SIDE, 0.5, 0.5, 0.25) & inner
    where, _ = origins(view)
    distance, nearest = cKDTree(where[inner.reshape(-1)]).query(np.stack(np.mgrid[:140, :220][::-1], -1).reshape(-1, 2))
    expected = marked[inner][nearest].reshape(140, 220)
    back, seen = maps_on_image(torch.from_numpy(marked).float()[None], view_grid((220, 140), to_view))
    assert iou(back[0] > 0.5, expected) >= 0.95 and seen.mean() > 0.98

def test_images_of_several_sizes_have_their_own_geometry(tmp_path):
    for i,size in enumerate(((220, 140), (140, 220), (100, 100))):
        for split in ('train', 'valid'):
            (tmp_path/split/'ab'[i % 2]).mkdir(parents=True, exist_ok=True)
            Image.fromarray(coordinates(size)).save(tmp_path/split/'ab'[i % 2]/f'{i}.png')
    dls = loaders(tmp_path, [Resize(SIDE)], [])
    source = Source(dls.train_ds)
    with as_validation(dls.train_ds):
        dl = eval_dl(dls, dls.train_ds, 3, bs=3)
        views = dl.one_batch()[0].as_subclass(torch.Tensor)*255
        for i in range(3):
            img = source.image(i)
            marked = blob(SIDE, SIDE, 0.4, 0.6, 0.25)
            expected, _ = intended(views[i], marked, img.size)
            back, _ = maps_on_image(torch.from_numpy(marked).float()[None], view_grid(img.size, view_of(dl, img)))
            assert iou(back[0] > 0.5, expected) >= 0.95

def test_geometry_leaves_the_image_and_randomness_alone(folder):
    path, size = folder
    dls = loaders(path, *cases['presizing'])
    dl, img = eval_dl(dls, dls.train_ds, 2), dls.train_ds[0][0]
    with as_validation(dls.train_ds): first = view_of(dl, img)
    assert (np.asarray(img) == coordinates(size)).all()
    for seed in (1, 2):
        torch.manual_seed(seed)
        with as_validation(dls.train_ds): assert torch.allclose(view_of(dl, img), first)
