"""Reading with OpenCV: the pixels that Pillow gives, fewer of them where fewer will do, and errors that name the file."""
import io
import struct
import zlib

import cv2
import numpy as np
import pytest
from fastai.data.block import CategoryBlock, DataBlock
from fastai.learner import Learner
from fastai.losses import CrossEntropyLossFlat
from fastai.vision.augment import Resize
from fastai.vision.core import PILImage
from hypothesis import given, settings
from hypothesis import strategies as st
from kit import tiny_model
from PIL import Image

from proxy_attention.callback import ProxyAttentionCB
from proxy_attention.lab.data import reading
from proxy_attention.lab.data.reading import OpenCVBlock, OpenCVImage, ReadImage, read_image, reduction

pytestmark = pytest.mark.filterwarnings('ignore')


def picture(w=90, h=60, mode='RGB', seed=0):
    "Smooth colours, so that a JPEG keeps them"
    y,x = np.mgrid[:h, :w]
    rgb = np.stack([128+100*np.sin(x/9+seed), 128+100*np.cos(y/7+seed), 255*(x+y)/(w+h)], -1).astype(np.uint8)
    return Image.fromarray(rgb).convert(mode)

def like_fastai(file): return np.asarray(PILImage.create(file))

@pytest.fixture
def opencv_only(monkeypatch):
    def refuse(data): raise AssertionError('went to Pillow')
    monkeypatch.setattr(reading, '_with_pillow', refuse)


# -- the whole image ------------------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('mode', ['RGB', 'L', 'RGBA', 'LA', 'P', '1'])
def test_png_is_exact(tmp_path, mode, opencv_only):
    img = picture(mode=mode)
    if mode == 'RGBA': img.putalpha(Image.fromarray(np.tile(np.arange(90, dtype=np.uint8), (60, 1))))
    img.save(tmp_path/'a.png', **({'transparency': 3} if mode == 'P' else {}))
    got = read_image(tmp_path/'a.png')
    assert got.dtype == np.uint8 and got.shape == (60, 90, 3)
    assert (got == like_fastai(tmp_path/'a.png')).all()

def test_sixteen_bits_keep_their_upper_eight(tmp_path):
    deep = np.arange(256*4, dtype=np.uint16).reshape(16, 64)*64
    cv2.imwrite(str(tmp_path/'a.png'), deep)
    assert np.abs(read_image(tmp_path/'a.png')[..., 0].astype(int) - (deep >> 8)).max() <= 1

@pytest.mark.parametrize('mode, options', [('RGB', {}), ('L', {}), ('RGB', dict(progressive=True)), ('RGB', dict(subsampling=0, quality=98)), ('RGB', dict(quality=30))])
def test_jpeg_is_as_pillow_decodes_it(tmp_path, mode, options, opencv_only):
    picture(mode=mode).save(tmp_path/'a.jpg', **options)
    got = read_image(tmp_path/'a.jpg')
    assert got.shape == (60, 90, 3) and np.abs(got.astype(int) - like_fastai(tmp_path/'a.jpg')).max() <= 3

@pytest.mark.parametrize('name, mode', [('a.jpg', 'CMYK'), ('a.gif', 'P'), ('a.webp', 'RGB'), ('a.bmp', 'RGB'), ('a.tiff', 'L')])
def test_all_else_goes_to_pillow(tmp_path, name, mode):
    picture(mode=mode).save(tmp_path/name)
    assert (read_image(tmp_path/name) == like_fastai(tmp_path/name)).all()

def test_animated_png(tmp_path):
    picture().save(tmp_path/'a.png', save_all=True, append_images=[picture(seed=3)])
    assert (read_image(tmp_path/'a.png') == like_fastai(tmp_path/'a.png')).all()

@pytest.mark.parametrize('name', ['a.jpg', 'a.png'])
@pytest.mark.parametrize('size', [None, 10])
def test_rotation_marks_are_ignored_as_fastai_does(tmp_path, name, size):
    exif = Image.Exif()
    exif[0x112] = 6
    picture(160, 80).save(tmp_path/name, exif=exif)
    with Image.open(tmp_path/name) as im: assert im.getexif()[0x112] == 6
    got, expected = read_image(tmp_path/name, size), like_fastai(tmp_path/name)
    h,w = got.shape[:2]
    assert w == 2*h and np.abs(cv2.resize(expected, (w, h), interpolation=cv2.INTER_AREA).astype(int) - got).max() <= 8

def test_the_real_photos(data_dir):
    files = sorted((data_dir/'imagenet_samples').glob('*.JPEG'))[::9] + sorted((data_dir/'asl_digits').rglob('*.JPG'))[::300]
    assert files
    for f in files: assert np.abs(read_image(f).astype(int) - like_fastai(f)).max() <= 3, f


# -- reduced --------------------------------------------------------------------------------------------------------------------------------------

@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(1, 1000))
def test_the_smaller_side_stays_large_enough(w, h, size):
    k = reduction(w, h, size)
    assert k in (1, 2, 4, 8)
    assert k == 1 or min(w, h)//k >= size
    assert k == 8 or min(w, h) < 2*k*size, "a stronger reduction would have done"
    assert reduction(w, h, None) == 1

sides = st.one_of(st.integers(4, 40).map(lambda n: 8*n), st.integers(30, 300))

@settings(max_examples=40, deadline=None)
@given(w=sides, h=sides, size=st.integers(8, 80))
def test_reduced_jpegs_are_the_same_picture(tmp_path_factory, w, h, size):
    file = tmp_path_factory.getbasetemp()/'reduced.jpg'
    picture(w, h).save(file, quality=95)
    got, k = read_image(file, size), reduction(w, h, size)
    assert got.shape[:2] == (-(-h//k), -(-w//k)) and min(got.shape[:2]) >= min(size, w, h)
    if w % 8 or h % 8: return # an edge of less than a whole pixel: not to be compared so simply
    whole = np.asarray(picture(w, h).resize(got.shape[1::-1], Image.BOX)).astype(int)
    assert np.abs(whole - got).mean() < 3

def test_after_a_resize_nothing_is_lost(tmp_path):
    "The reduced decode, resized, is as good as the whole decode, resized"
    rng = np.random.default_rng(0)
    noise = (cv2.GaussianBlur(rng.integers(0, 256, (900, 1200, 3), dtype=np.uint8), (0, 0), 2).astype(float) - 128)*5 + 128
    Image.fromarray(noise.clip(0, 255).astype(np.uint8)).save(tmp_path/'a.jpg', quality=92)
    full,small = (np.asarray(Image.fromarray(read_image(tmp_path/'a.jpg', s)).resize((224, 168), Image.BILINEAR)).astype(float) for s in (None, 168))
    assert read_image(tmp_path/'a.jpg', 168).shape == (225, 300, 3)
    assert np.abs(full - small).mean() < 0.15*full.std()

def test_png_is_never_reduced(tmp_path):
    picture(400, 400).save(tmp_path/'a.png')
    assert read_image(tmp_path/'a.png', 10).shape == (400, 400, 3)

def test_a_thumbnail_in_the_file_is_not_the_photo(tmp_path):
    "Exif holds a small JPEG of its own, with an end of its own"
    thumb = io.BytesIO()
    picture(16, 16).save(thumb, 'jpeg')
    picture(200, 120).save(tmp_path/'a.jpg', exif=b'Exif\0\0' + b'II*\0\x08\0\0\0\0\0\0\0\0\0' + thumb.getvalue())
    assert read_image(tmp_path/'a.jpg').shape == (120, 200, 3) and read_image(tmp_path/'a.jpg', 30).shape == (30, 50, 3)
    data = (tmp_path/'a.jpg').read_bytes()
    (tmp_path/'a.jpg').write_bytes(data[:len(data)*2//3])
    with pytest.raises(OSError, match='a.jpg'): read_image(tmp_path/'a.jpg')


# -- damage ---------------------------------------------------------------------------------------------------------------------------------------

damages = {'empty': lambda data: b'', 'text': lambda data: b'not an image', 'half': lambda data: data[:len(data)//2], 'head': lambda data: data[:20]}

@pytest.mark.parametrize('kind', damages)
@pytest.mark.parametrize('name', ['a.jpg', 'a.png'])
def test_damaged_files_are_named(tmp_path, kind, name):
    picture().save(tmp_path/name)
    (tmp_path/name).write_bytes(damages[kind]((tmp_path/name).read_bytes()))
    with pytest.raises(OSError, match=f"image file .*{name} can't be read: .+"): read_image(tmp_path/name)

def test_a_png_with_a_wrong_checksum(tmp_path):
    picture().save(tmp_path/'a.png')
    data = bytearray((tmp_path/'a.png').read_bytes())
    data[data.find(b'IDAT')+200] ^= 0xff
    (tmp_path/'a.png').write_bytes(bytes(data))
    with pytest.raises(OSError, match='a.png'): read_image(tmp_path/'a.png')

def test_missing_files_and_folders(tmp_path):
    with pytest.raises(FileNotFoundError, match="gone.png isn't there"): read_image(tmp_path/'gone.png')
    with pytest.raises(OSError, match="can't be read: .*directory"): read_image(tmp_path)

def test_a_bomb_is_refused(tmp_path):
    def chunk(kind, data): return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))
    head = struct.pack('>IIBBBBB', 60_000, 60_000, 8, 0, 0, 0, 0)
    (tmp_path/'a.png').write_bytes(b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', head) + chunk(b'IDAT', zlib.compress(bytes(100))) + chunk(b'IEND', b''))
    with pytest.raises(OSError, match='a.png'): read_image(tmp_path/'a.png')

@settings(max_examples=150, deadline=None)
@given(cut=st.integers(0, 3000), at=st.integers(0, 3000), byte=st.integers(0, 255), name=st.sampled_from(['a.jpg', 'a.png']))
def test_whatever_the_damage_an_image_or_an_oserror(tmp_path_factory, cut, at, byte, name):
    file, out = tmp_path_factory.getbasetemp()/f'fuzz_{name}', io.BytesIO()
    picture(40, 30).save(out, 'jpeg' if name == 'a.jpg' else 'png')
    data = bytearray(out.getvalue())
    data[at % len(data)] = byte
    file.write_bytes(bytes(data[:len(data) - cut % 50]))
    try: img = read_image(file)
    except OSError as e: assert str(file) in str(e)
    else: assert img.dtype == np.uint8 and img.ndim == 3 and img.shape[2] == 3

@pytest.mark.parametrize('size, error', [(0, ValueError), (-3, ValueError), ('224', TypeError), (2.5, ValueError)])
def test_bad_sizes(tmp_path, size, error):
    picture().save(tmp_path/'a.png')
    with pytest.raises(error, match='size='): read_image(tmp_path/'a.png', size)


# -- in fastai ------------------------------------------------------------------------------------------------------------------------------------

@pytest.fixture
def photos(tmp_path):
    "Large JPEGs of two kinds"
    files = []
    for i in range(12):
        file = tmp_path/'photos'/f"{'ab'[i % 2]}_{i:02}.jpg"
        file.parent.mkdir(exist_ok=True)
        picture(280, 210, seed=i).save(file, quality=95)
        files.append(file)
    return files

def kind_of(file): return file.name[0]

def photo_dls(files, block=None):
    block = DataBlock(blocks=(OpenCVBlock(32) if block is None else block, CategoryBlock), get_items=lambda _: files, get_y=kind_of,
                      splitter=lambda x: (range(9), range(9, 12)), item_tfms=Resize(32, method='squish'))
    return block.dataloaders(None, bs=3, num_workers=0, device='cpu')

def test_the_block(photos):
    dls, whole = photo_dls(photos), photo_dls(photos, OpenCVBlock())
    img,_ = dls.train_ds[0]
    assert type(img) is OpenCVImage and isinstance(img, PILImage) and img.size == (70, 53) and whole.train_ds[0][0].size == (280, 210)
    x,y = dls.valid.one_batch()
    assert x.shape == (3, 3, 32, 32) and x.dtype.is_floating_point and 0 <= x.min() and 0.5 < x.max() <= 1
    assert (x - whole.valid.one_batch()[0]).abs().mean() < 0.03
    dls.show_batch(max_n=2)

def test_create_takes_what_pilimage_takes(photos):
    whole = OpenCVImage.create(photos[0])
    assert whole.size == (280, 210) and OpenCVImage.create(str(photos[0]), size=100).size == (140, 105)
    for other in (np.asarray(whole), photos[0].read_bytes(), Image.open(photos[0])):
        assert type(OpenCVImage.create(other)) is OpenCVImage and OpenCVImage.create(other).size == (280, 210)
    assert ReadImage(100)(photos[0]).size == (140, 105) and ReadImage()(photos[0]).size == (280, 210)

def test_copies_of_reduced_images(photos, tmp_path):
    "A copy is the picture the network was shown with a hole in it, and comes back as it was saved"
    dls = photo_dls(photos)
    cb = ProxyAttentionCB(method='eigencam', select='all', share=1, area=0.2, fill='black', path=tmp_path/'copies', verbose=False)
    learn = Learner(dls, tiny_model(2), CrossEntropyLossFlat(), path=tmp_path, cbs=cb)
    cb.make_proxies()
    assert len(learn.proxies) == 9
    at = {str(f): i for i,f in enumerate(dls.train_ds.items)}
    for _,row in learn.proxies.iterrows():
        original, copy = np.asarray(dls.train_ds[at[row['original']]][0]), read_image(row['path'])
        assert copy.shape == original.shape == (53, 70, 3)
        hole = (copy == 0).all(-1) & (original != 0).any(-1)
        assert 0.15 < hole.mean() < 0.25 and (copy[~hole] == original[~hole]).all()
    img,_ = learn.dls.train_ds[9]
    assert type(img) is OpenCVImage and img.size == (70, 53)
    learn.remove_proxies()
