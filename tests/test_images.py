"""Images of every kind that Pillow reads: the pixels erased in are those that the user's pipeline gives, by OpenCV or not."""
import io
import os
import struct
import warnings
import zlib
from hashlib import sha256
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from fastai.data.block import CategoryBlock, DataBlock
from fastai.data.transforms import IndexSplitter
from fastai.learner import Learner
from fastai.losses import CrossEntropyLossFlat
from fastai.vision.augment import Resize
from fastai.vision.core import PILImage, PILImageBW, TensorImage
from fastai.vision.data import ImageBlock, ImageDataLoaders
from PIL import Image
from torch import nn

from proxy_attention.callback import ProxyAttentionCB
from proxy_attention.dataloaders import Source, image_size, load_copy, pixels
from proxy_attention.store import decode_image, encode_image

pytestmark = pytest.mark.filterwarnings('ignore:Palette images with Transparency:UserWarning') # Pillow's own

DATA = Path(os.environ.get('PROXY_ATTENTION_DATA') or Path(__file__).resolve().parents[2]/'shared'/'data')

def photo(w=61, h=43, seed=0):
    "Something between a photo and noise: smooth, with edges"
    noise = np.random.default_rng(seed).integers(0, 256, (h, w, 3), dtype=np.uint8)
    smooth = cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 3), None, 0, 255, cv2.NORM_MINMAX)
    smooth[h//3:h//2, w//4:w//2] = noise[h//3:h//2, w//4:w//2]
    return smooth

def image(**kwargs): return Image.fromarray(photo(**kwargs))

def saved(img, format, **kwargs):
    out = io.BytesIO()
    img.save(out, format, **kwargs)
    return out.getvalue()

def turned(n):
    exif = Image.Exif()
    exif[274] = n
    return exif

def png(depth, kind, chunks=()):
    "A PNG by hand, of random bytes: what Pillow doesn't write"
    w, h, channels = 61, 43, {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[kind]
    rng = np.random.default_rng(depth)
    rows = b''.join(b'\0' + rng.bytes(-(-w*depth*channels//8)) for _ in range(h))
    chunk = lambda name, data: struct.pack('>I', len(data)) + name + data + struct.pack('>I', zlib.crc32(name+data))
    head = chunk(b'IHDR', struct.pack('>IIBBBBB', w, h, depth, kind, 0, 0, 0))
    return b'\x89PNG\r\n\x1a\n' + head + b''.join(chunk(*c) for c in chunks) + chunk(b'IDAT', zlib.compress(rows)) + chunk(b'IEND', b'')

def bmp(bits, masks=()):
    w,h = 61, 43
    row = -(-w*bits//32)*4
    px, extra = np.random.default_rng(bits).bytes(row*h), b''.join(struct.pack('<I', m) for m in masks)
    start = 54 + len(extra)
    head = struct.pack('<IiiHHIIiiII', 40, w, h, 1, bits, 3 if masks else 0, len(px), 2835, 2835, 0, 0)
    return b'BM' + struct.pack('<IHHI', start+len(px), 0, 0, start) + head + extra + px

def without(data, marker):
    "A JPEG less its segments of this kind"
    out, i = data[:2], 2
    while data[i+1] != 0xda: # the picture begins
        end = i + 2 + int.from_bytes(data[i+2:i+4], 'big')
        out += b'' if data[i+1] == marker else data[i:end]
        i = end
    return out + data[i:]

def palette(): return image().quantize(16)

def see_through(img):
    alpha = Image.fromarray(np.tile(np.linspace(0, 255, img.width).astype(np.uint8), (img.height, 1)))
    img.putalpha(alpha)
    return img

kinds = { # file name: bytes
    'rgb.png': lambda: saved(image(), 'PNG'),
    'rgba.png': lambda: saved(see_through(image()), 'PNG'),
    'palette.png': lambda: saved(palette(), 'PNG'),
    'palette_transparent.png': lambda: saved(palette(), 'PNG', transparency=3),
    'palette_transparencies.png': lambda: saved(palette(), 'PNG', transparency=bytes(range(0, 256, 16))),
    'grey.png': lambda: saved(image().convert('L'), 'PNG'),
    'grey_alpha.png': lambda: saved(see_through(image().convert('L')), 'PNG'),
    'grey_transparent.png': lambda: saved(image().convert('L'), 'PNG', transparency=100),
    'rgb_transparent.png': lambda: saved(image(), 'PNG', transparency=(10, 20, 30)),
    'one_bit.png': lambda: saved(image().convert('1'), 'PNG'),
    'two_bit.png': lambda: png(2, 0),
    'four_bit.png': lambda: png(4, 0),
    'grey16.png': lambda: png(16, 0),
    'grey16_alpha.png': lambda: png(16, 4),
    'rgb16.png': lambda: png(16, 2),
    'rgba16.png': lambda: png(16, 6),
    'gamma.png': lambda: png(8, 2, [(b'gAMA', struct.pack('>I', 22727))]),
    'background.png': lambda: png(8, 6, [(b'bKGD', b'\0\x05\0\x05\0\x05')]),
    'turned.png': lambda: saved(image(), 'PNG', exif=turned(6)),
    'animated.png': lambda: saved(image(), 'PNG', save_all=True, append_images=[image(seed=1)]),
    'animated_with_cover.png': lambda: saved(image(), 'PNG', save_all=True, default_image=True, append_images=[image(seed=1)]*2),
    'rgb.jpg': lambda: saved(image(), 'JPEG', quality=90),
    'full_colour.jpg': lambda: saved(image(), 'JPEG', subsampling='4:4:4'),
    'half_colour.jpg': lambda: saved(image(), 'JPEG', subsampling='4:2:2'),
    'progressive.jpg': lambda: saved(image(), 'JPEG', progressive=True, quality=40),
    'not_ycc.jpg': lambda: saved(image(), 'JPEG', keep_rgb=True),
    'grey.jpg': lambda: saved(image().convert('L'), 'JPEG'),
    'cmyk.jpg': lambda: saved(image().convert('CMYK'), 'JPEG'),
    'cmyk_not_said.jpg': lambda: without(saved(image().convert('CMYK'), 'JPEG'), 0xee),
    **{f'turned{n}.jpg': lambda n=n: saved(image(), 'JPEG', exif=turned(n)) for n in (2, 3, 6, 8)},
    'two_pictures.jpg': lambda: saved(image(), 'MPO', save_all=True, append_images=[image(seed=1)]),
    'rgb.bmp': lambda: saved(image(), 'BMP'),
    'grey.bmp': lambda: saved(image().convert('L'), 'BMP'),
    'bits16.bmp': lambda: bmp(16),
    'bits16_565.bmp': lambda: bmp(16, (0xF800, 0x07E0, 0x001F)),
    'bits32.bmp': lambda: bmp(32),
    'rgb.gif': lambda: saved(image(), 'GIF'),
    'rgb.tif': lambda: saved(image(), 'TIFF'),
    'tall.png': lambda: saved(image(w=17, h=90), 'PNG'),
    'one_row.jpg': lambda: saved(image(w=40, h=9).crop((0, 0, 40, 1)), 'JPEG'),
}

@pytest.fixture(scope='module')
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp('kinds')
    for name,make in kinds.items(): (folder/name).write_bytes(make())
    return [folder/name for name in kinds]

def loaders(files, folder):
    "The files as training set, two more as validation set"
    held_out = [folder/f'held_out_{i}.png' for i in range(2)]
    for f in held_out: f.write_bytes(saved(image(seed=9), 'PNG'))
    rows = [(str(f), 'ab'[i % 2], False) for i,f in enumerate(files)] + [(str(f), 'ab'[i], True) for i,f in enumerate(held_out)]
    table = pd.DataFrame(rows, columns=['file', 'label', 'is_valid'])
    return ImageDataLoaders.from_df(table, path='/', valid_col='is_valid', item_tfms=Resize(48), bs=4, num_workers=0, seed=0)


# -- reading -------------------------------------------------------------------------------------------------------------------------------

@pytest.fixture(scope='module')
def dls(files, tmp_path_factory): return loaders(files, tmp_path_factory.mktemp('held_out'))

@pytest.mark.parametrize('k', range(len(kinds)), ids=list(kinds))
def test_pixels_are_those_of_the_pipeline(files, dls, k):
    source = Source(dls.train_ds)
    assert source.opencv and source.path(k) == files[k]
    got, sha = source.read(k)
    expected = np.asarray(dls.train_ds[k][0])
    assert got.dtype == np.uint8 and got.shape == expected.shape
    assert (got == expected).all()
    assert sha == sha256(files[k].read_bytes()).hexdigest()

@pytest.mark.parametrize('name', ['grey.png', 'rgb.jpg', 'palette.png', 'rgba.png', 'cmyk.jpg', 'turned6.jpg', 'grey16.png'])
def test_grey_pipelines(files, name):
    block = DataBlock((ImageBlock(PILImageBW), CategoryBlock), splitter=IndexSplitter([1]), get_y=lambda f: 'ab'[files.index(f) % 2])
    k = list(kinds).index(name)
    dls = block.datasets([files[k], files[k]])
    got, _ = Source(dls.train).read(0, PILImageBW)
    assert got.shape == np.asarray(dls.train[0][0]).shape == (43, 61) and (got == np.asarray(dls.train[0][0])).all()

@pytest.mark.parametrize('name', ['rgb.png', 'grey.png', 'rgb.jpg', 'progressive.jpg', 'grey.jpg'])
def test_the_usual_kinds_are_read_by_opencv(dls, name, monkeypatch):
    source = Source(dls.train_ds)
    def never(self, i): raise AssertionError("read by Pillow")
    monkeypatch.setattr(Source, 'image', never)
    assert source.read(list(kinds).index(name))[0].shape == (43, 61, 3)

def test_a_pipeline_of_the_users_own_is_respected(files):
    "A function that makes the picture itself: what it does to it is kept"
    def opened(f): return PILImage.create(f).transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    block = DataBlock((ImageBlock, CategoryBlock), get_x=opened, get_y=lambda f: 'ab'[files.index(f) % 2], splitter=IndexSplitter([0, 1]))
    ds = block.datasets(files[:6]).train
    source = Source(ds)
    for i in range(len(ds)): assert (source.read(i)[0] == np.asarray(ds[i][0])).all()
    assert (source.read(0)[0] == np.asarray(PILImage.create(files[2]))[:, ::-1]).all()

def test_pictures_that_are_in_no_file():
    arrays = [photo(seed=i) for i in range(4)]
    block = DataBlock((ImageBlock, CategoryBlock), get_x=lambda i: arrays[i], get_y=lambda i: 'ab'[i % 2], splitter=IndexSplitter([3]))
    source = Source(block.datasets([0, 1, 2, 3]).train)
    shas = set()
    for i in range(3):
        px, sha = source.read(i)
        assert source.path(i) is None and (px == arrays[i]).all()
        shas.add(sha)
    assert len(shas) == 3

@pytest.mark.parametrize('mode', ['P', 'I;16', 'I', 'F', '1', 'LA', 'CMYK', 'HSV'])
def test_modes_that_have_to_be_converted_first(mode):
    img = Image.new(mode, (5, 4))
    with pytest.raises(TypeError, match=f"mode {mode}"): pixels(img)

def test_pixels_and_sizes():
    for mode,shape in (('RGB', (4, 5, 3)), ('RGBA', (4, 5, 4)), ('L', (4, 5))):
        assert pixels(Image.new(mode, (5, 4))).shape == shape and image_size(Image.new(mode, (5, 4))) == (5, 4)
    for channels,shape in ((3, (4, 5, 3)), (1, (4, 5)), (4, (4, 5, 4))):
        t = torch.arange(channels*20, dtype=torch.uint8).reshape(channels, 4, 5)
        assert pixels(t).shape == shape and image_size(t) == (5, 4)
        assert (pixels(t).reshape(4, 5, -1) == t.permute(1, 2, 0).numpy()).all()
    for bad in (torch.zeros(3, 4, 5), torch.zeros(2, 4, 5).byte(), torch.zeros(4, 5).byte(), 'x.png', np.zeros((4, 5, 3), np.uint8)):
        with pytest.raises(TypeError, match='PIL images or uint8 tensors'): pixels(bad)


# -- copies --------------------------------------------------------------------------------------------------------------------------------

def learner(dls, path, **policy):
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU())
    model = nn.Sequential(body, nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2)))
    policy = {**dict(method='eigencam', select='all', area=0.2, fill='black'), **policy} # Eigen-CAM's maps are hardly ever flat
    return Learner(dls, model, CrossEntropyLossFlat(), cbs=ProxyAttentionCB(path=path, verbose=False, **policy))

def proxies_of(learn, caught=None):
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter('always')
        done = next(cb for cb in learn.cbs if isinstance(cb, ProxyAttentionCB)).make_proxies()
    if caught is not None: caught += [str(w.message) for w in found]
    return done

def test_copies_keep_size_and_untouched_pixels(files, dls, tmp_path):
    originals = [np.asarray(dls.train_ds[i][0]) for i in range(len(files))]
    learn, caught = learner(dls, tmp_path/'copies'), []
    done = proxies_of(learn, caught)
    assert done.proxies == len(files) and done.unreadable == done.flat == 0, caught
    for row in learn.proxies.itertuples():
        k = int(row.id.split('-')[1])
        assert row.original == str(files[k].resolve())
        copy = decode_image(Path(row.path).read_bytes())
        assert copy.shape == originals[k].shape, files[k].name
        changed = (copy != originals[k]).any(-1)
        assert not copy[changed].any(), files[k].name # what changed is black
        assert 0.2 < changed.sum() / round(row.erased*changed.size) <= 1, files[k].name # some were black before
    learn.remove_proxies()

def test_copies_come_back_as_they_were_written(files, dls, tmp_path):
    n, learn = len(files), learner(dls, tmp_path/'copies', fill='noise')
    proxies_of(learn)
    for j,row in enumerate(learn.proxies.itertuples()):
        x, y = learn.dls.train_ds[n+j]
        assert type(x) is PILImage and (np.asarray(x) == decode_image(Path(row.path).read_bytes())).all()
        assert y == dls.train_ds[int(row.id.split('-')[1])][1]
    learn.remove_proxies()

damage = {
    'no picture': lambda data: b'This is no picture at all',
    'nothing': lambda data: b'',
    'cut short': lambda data: data[:len(data)//2],
}

@pytest.mark.parametrize('how', damage)
@pytest.mark.parametrize('fill', ['black', 'context'])
@pytest.mark.parametrize('name', ['rgb.png', 'palette.png', 'rgb.jpg'])
def test_a_damaged_file_costs_its_own_copy_only(tmp_path, name, fill, how):
    for i in range(8): (tmp_path/f'{i}-{name}').write_bytes(kinds[name]())
    (tmp_path/f'3-{name}').write_bytes(damage[how](kinds[name]()))
    learn, caught = learner(loaders([tmp_path/f'{i}-{name}' for i in range(8)], tmp_path), tmp_path/'.copies', fill=fill), []
    done = proxies_of(learn, caught)
    assert done.proxies == 7 and done.unreadable == 1, caught
    assert any(f'3-{name}' in w for w in caught) # told by name
    learn.remove_proxies()

def test_load_copy_has_the_type_of_the_original(tmp_path):
    colour, grey = photo(), photo()[..., 0]
    for img,name in ((colour, 'colour'), (grey, 'grey')): (tmp_path/f'{name}.png').write_bytes(encode_image(img))
    cases = ((PILImage, 'colour', colour), (PILImageBW, 'grey', grey), (Image.Image, 'colour', colour), (Image.Image, 'grey', grey))
    for like,name,expected in cases:
        copy = load_copy(tmp_path/f'{name}.png', like)
        assert isinstance(copy, like) and (np.asarray(copy) == expected).all()
    for like in (torch.Tensor, TensorImage):
        assert type(load_copy(tmp_path/'colour.png', like)) is like
        assert (load_copy(tmp_path/'colour.png', like).permute(1, 2, 0).numpy() == colour).all()
        assert load_copy(tmp_path/'grey.png', like).shape == (1, 43, 61)
    (tmp_path/'colour.png').write_bytes(b'')
    with pytest.raises(OSError, match='colour.png'): load_copy(tmp_path/'colour.png', TensorImage)


# -- real photos ---------------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('name', ['imagenet_samples', 'asl_digits', 'cifar10'])
def test_real_photos_are_the_same_by_both_ways(name, tmp_path):
    if not (DATA/name).is_dir(): pytest.skip(f"no real photos in {DATA/name} (set PROXY_ATTENTION_DATA)")
    found = sorted(f for f in (DATA/name).rglob('*') if f.suffix.lower() in ('.jpg', '.jpeg', '.png'))
    some = found[::max(1, len(found)//40)]
    source = Source(loaders(some, tmp_path).train_ds)
    assert source.opencv and len(some) >= 40
    for i,f in enumerate(some): assert (source.read(i)[0] == np.asarray(PILImage.create(f))).all(), f
