"""Data sets: found, labelled and checked, or one error that says what to change; DataLoaders that hold what the split says."""
import gzip
import hashlib
import json
import shutil
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fastai.data.external import URLs
from fastai.learner import Learner, load_learner
from fastai.losses import CrossEntropyLossFlat
from hypothesis import given
from hypothesis import strategies as st
from kit import tiny_model
from PIL import Image

from lab_kit import patch_name
from proxy_attention.lab.data.sources import fashion_names
from proxy_attention.callback import ProxyAttentionCB
from proxy_attention.lab.data.items import DataError, Items, by_folder, by_pattern, folder_splits
from proxy_attention.lab.data.sources import datasets, debian_fashion, load_items, signer_blocks
from proxy_attention.lab.data.loaders import make_dls, test_dl
from proxy_attention.lab.data.idx import read_idx, unpack_idx
from proxy_attention.lab.data.reading import read_image
from proxy_attention.lab.data.splits import make_splits

pytestmark = pytest.mark.filterwarnings('ignore')
split_dl = test_dl # pytest would take it for a test
del test_dl


def config(source='folder', **kwargs):
    return SimpleNamespace(**(dict(source=source, path=None, labels=None, pattern=None, table=None, file_column=None, label_column=None, group=None, valid=0.2,
                                   test=0.2, per_class=None, n_train=None, n_valid=None, n_test=None, shortcut=None, strength=0.95, reserved=0, holdout=False, size=32, resize='crop', augment='none',
                                   seed=0, bs=4, num_workers=0, download=False) | kwargs))

def picture(seed, w=32, h=32): return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (h, w, 3), dtype=np.uint8))

def put(root, names, **kwargs):
    "An image at each name"
    for i,n in enumerate(names):
        (root/n).parent.mkdir(parents=True, exist_ok=True)
        picture(i, **kwargs).save(root/n)
    return root

@pytest.fixture(autouse=True)
def nowhere(monkeypatch):
    "No data set lies anywhere, unless a test says so"
    monkeypatch.delenv('PROXY_ATTENTION_DATA', raising=False)

@pytest.fixture
def pets(tmp_path): return put(tmp_path/'pets', [f'{c}/{c}{i}.png' for c in ('cat', 'dog') for i in range(10)])

def refused(match, conf, cache='cache'):
    with pytest.raises(ValueError, match=match) as e: load_items(conf, cache)
    assert '\n' not in str(e.value)


# -- one's own images: folders ---------------------------------------------------------------------------------------------------------------------

def test_parent_folders(pets):
    put(pets, ['.copies/cat/9.png'])
    items = load_items(config(path=pets), 'cache')
    assert len(items) == 20 and items.classes == ['cat', 'dog'] and items.labels == [f.parent.name for f in items.files] == ['cat']*10 + ['dog']*10
    assert items.root == pets and items.names[0] == 'cat/cat0.png' and items.groups is None and items.fixed is None
    assert all(f.is_absolute() for f in items.files) and not Path('cache').exists()

def test_relative_paths(pets, monkeypatch):
    monkeypatch.chdir(pets.parent)
    items = load_items(config(path='pets'), 'cache')
    assert items.files == load_items(config(path=str(pets)), 'cache').files

def test_patterns(pets):
    items = load_items(config(path=pets, pattern=r'(?P<label>[a-z]+)\d'), 'cache')
    assert items.classes == ['cat', 'dog']
    assert load_items(config(path=pets, pattern=r'(\d)\.png$'), 'cache').classes == list('0123456789')
    assert load_items(config(path=pets, labels='folder', pattern=r'(\d)\.png$'), 'cache').classes == ['cat', 'dog'], "labels= decides"
    by_group = load_items(config(path=pets, group=r'/(?P<group>[a-z]+\d)'), 'cache')
    assert by_group.groups[:2] == ['cat0', 'cat1']
    assert load_items(config(path=pets, group=r'(\d)\.'), 'cache').groups[:2] == ['0', '1']

@pytest.mark.parametrize('kw, says', [
    (dict(pattern=r'(\d+)\.jpg'), r"pattern='.*' matches none of the 20 files, the first is cat/cat0.png"),
    (dict(pattern=r'(dog)'), r"pattern='\(dog\)' finds nothing in 10 of the 20 files: cat/cat0.png, cat/cat1.png, cat/cat2.png and 7 more"),
    (dict(pattern='(unclosed'), 'is not a regular expression'), (dict(pattern='no group'), 'it has 0 groups'), (dict(pattern='(a)(t)'), 'it has 2 groups'),
    (dict(pattern='(.png)'), "all 20 images in .* have the label '.png'"), (dict(group='(x)'), "group='\\(x\\)' matches none"),
    (dict(labels='pattern'), "labels='pattern' needs a pattern="), (dict(labels='foldr'), "labels='foldr' .* Did you mean 'folder'"),
    (dict(path=None), "source='folder' needs a path="), (dict(path='gone'), "path='gone' is not there"), (dict(source='foldr'), "source='foldr'.*'folder'")])
def test_mistakes_name_the_key(pets, kw, says): refused(says, config(**(dict(path=pets) | kw)))

def test_folders_that_hold_no_classes(tmp_path):
    refused('there are no images in', config(path=tmp_path))
    put(tmp_path, ['a.png', 'cat/b.png'])
    refused("labels='folder': 1 of its 2 images lie in the folder itself.*a.png", config(path=tmp_path))
    (tmp_path/'a.png').rename(tmp_path/'cat'/'a.png')
    refused("all 2 images .* have the label 'cat'", config(path=tmp_path))
    refused('is a file', config(path=tmp_path/'cat'/'a.png'))

@given(st.lists(st.tuples(st.sampled_from(['a', 'b', 'c d', 'é']), st.text('xyz_0', min_size=1, max_size=4)), min_size=1))
def test_label_by_folder_or_pattern_is_the_same(pairs):
    names = [f'top/{c}/{n}.png' for c,n in pairs]
    assert by_folder(names) == by_pattern(names, r'([^/]+)/[^/]+$') == [c for c,_ in pairs]


# -- splits that lie in folders ---------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('tops, expected', [
    (['train', 'valid', 'test'], ['train', 'valid', 'test']), (['train', 'val'], ['train', 'valid']), (['training', 'Testing'], ['train', 'test']),
    (['train', 'validation', 'test'], ['train', 'valid', 'test'])])
def test_split_folders(tmp_path, tops, expected):
    put(tmp_path, [f'{t}/{c}/{i}.png' for t in tops for c in 'ab' for i in range(6)])
    items = load_items(config(path=tmp_path), 'cache')
    assert list(items.fixed) == expected and items.classes == ['a', 'b']
    for top,name in zip(sorted(tops, key=lambda t: expected.index({'val': 'valid', 'validation': 'valid', 'training': 'train', 'Testing': 'test'}.get(t, t))), expected):
        assert {items.names[i].split('/')[0] for i in items.fixed[name]} == {top} and len(items.fixed[name]) == 12
    splits = make_splits(items)
    for name in ('valid', 'test'):
        if name in items.fixed: assert (splits[name] == items.fixed[name]).all()

def test_folders_that_are_no_splits(tmp_path):
    assert folder_splits(['train/1.png', 'plane/2.png']) is None, "two classes"
    assert folder_splits(['a/train/1.png', 'b/test/2.png']) is None and folder_splits(['test/a/1.png', 'b/2.png']) is None
    assert folder_splits(['train/a/1.png', 'train/b/2.png']) is None, "one split alone is none"
    put(tmp_path, ['train/a/1.png', 'test/b/2.png', 'extra/a/3.png'])
    refused('has splits .test, train., but 1 images lie outside of them: extra/a/3.png', config(path=tmp_path))


# -- tables ---------------------------------------------------------------------------------------------------------------------------------------

@pytest.fixture
def listed(tmp_path):
    "Six images and `write(text)`, which writes labels.csv and gives a configuration"
    put(tmp_path/'mine', [f'img/{i}.png' for i in range(6)])
    def write(text, name='labels.csv', **kwargs):
        (tmp_path/'mine'/name).write_text(text)
        return config('csv', path=tmp_path/'mine', **kwargs)
    return write

rows = ''.join(f'img/{i}.png,{"ab"[i % 2]},s{i // 2}\n' for i in range(6))

def test_tables(listed):
    items = load_items(listed('file,label,site\n' + rows), 'cache')
    assert items.names == [f'img/{i}.png' for i in range(6)] and items.labels == list('ababab') and items.fixed is None and items.groups is None
    assert load_items(listed('file,label,site\n' + rows, group='site'), 'cache').groups == ['s0', 's0', 's1', 's1', 's2', 's2']
    assert load_items(listed('file,label,site\n' + rows, label_column='site'), 'cache').classes == ['s0', 's1', 's2']
    assert load_items(listed('picture,kind,site\n' + rows), 'cache').labels == list('ababab'), "the first two columns, if none has the usual name"
    swapped = 'label,file\n' + ''.join(f'{"ab"[i % 2]},img/{i}.png\n' for i in range(6))
    assert load_items(listed(swapped), 'cache').labels == list('ababab'), "the usual names, wherever they are"
    assert load_items(listed('x,y,z\n' + rows, file_column='x', label_column='z'), 'cache').labels[0] == 's0'
    assert load_items(SimpleNamespace(**(vars(listed('file,label,site\n' + rows)) | dict(source='folder', labels='csv'))), 'cache').labels == list('ababab')

def test_a_group_by_pattern_in_a_table(listed):
    assert load_items(listed('file,label,site\n' + rows, group=r'(\d)'), 'cache').groups == list('012345')

def test_which_table(listed):
    conf = listed('file,label,site\n' + rows, 'other.csv')
    assert len(load_items(conf, 'cache')) == 6
    listed('file,label,site\n' + rows)
    refused('table= must name the CSV file .*labels.csv, other.csv', conf)
    assert len(load_items(config('csv', path=conf.path, table='other.csv'), 'cache')) == 6
    refused("table='othr.csv' is not in .* Did you mean 'other.csv'", config('csv', path=conf.path, table='othr.csv'))
    refused('table= must name .*there is none', config('csv', path=conf.path/'img'))

@pytest.mark.parametrize('text, kw, says', [
    ('file,label\n' + 'img/0.png,a\nimg/1.png,b\ngone1.png,a\ngone2.png,b\n', {}, "labels.csv: 2 of its 4 files aren't in .*gone1.png, gone2.png"),
    ('file,label\nimg/0.png,a\nimg/0.png,a\nimg/1.png,b\n', {}, '1 files are listed twice: img/0.png'),
    ('file,label\nimg/0.png,a\nimg/0.png,b\n', {}, '1 files are listed twice, with different labels: img/0.png'),
    ('file,label\nimg/0.png,\nimg/1.png,b\n', {}, '1 rows have no file or no label: img/0.png'),
    ('file,label\n,a\nimg/1.png,b\n', {}, 'a row without a file'), ('file,label\nimg/0.png,a\nimg/1.png,a\n', {}, "have the label 'a'"),
    ('file,label\n', {}, '2 columns and 0 rows'), ('file\nimg/0.png\n', {}, '1 columns'), ('', {}, "can't be read as CSV"), ('a,b\n1,2,3\n4\n"', {}, "can't be read as CSV"),
    ('file,label\n' + rows, dict(label_column='lable'), "label_column='lable': labels.csv has no such column. Did you mean 'label'"),
    ('file,label\n' + rows, dict(file_column='qqqq'), "file_column='qqqq': .* Columns: "),
    ('file,label\n' + rows, dict(file_column='label'), 'file_column and label_column are both')])
def test_mistakes_in_tables(listed, text, kw, says):
    if text.startswith('file,label\nimg/0.png,a,s0'): text = text.replace('file,label', 'file,label,site')
    refused(says, listed(text, **kw))

def test_labels_that_look_like_numbers_or_nothing(listed):
    items = load_items(listed('file,label\nimg/0.png,01\nimg/1.png,1\nimg/2.png,NA\nimg/3.png,null\n'), 'cache')
    assert items.labels == ['01', '1', 'NA', 'null']

def test_the_imagenet_samples(data_dir):
    items = load_items(config('csv', path=data_dir/'imagenet_samples', table='labels.csv', label_column='imagenet_index'), 'cache')
    assert len(items) == len(items.classes) > 50 and items.labels[1] == '16'


# -- known data sets --------------------------------------------------------------------------------------------------------------------------------

def test_every_known_set_says_what_is_missing(monkeypatch):
    patch_name(monkeypatch, 'debian_fashion', '/nowhere/fashion')
    for source in ('asl_digits', 'cifar10', 'imagenette', 'fashion_mnist'):
        refused(f"data set '{source}' is in none of data/{source}.*Put .* into one of these, or set path= to its folder, or PROXY_ATTENTION_DATA", config(source))
        refused('https?://', config(source))
    monkeypatch.setenv('PROXY_ATTENTION_DATA', '/mnt/sets')
    refused('is in none of /mnt/sets/cifar10, data/cifar10', config('cifar10'))
    refused("path='gone' is not there", config('cifar10', path='gone'))

def test_where_a_known_set_is_looked_for(tmp_path, monkeypatch):
    def make(root): return put(root, [f'{s}/{c}/{i}.png' for s in ('train', 'test') for c in ('cat', 'dog') for i in range(3)])
    monkeypatch.chdir(tmp_path)
    here, there, given = make(tmp_path/'data'/'cifar10'), make(tmp_path/'sets'/'cifar10'), make(tmp_path/'given')
    assert load_items(config('cifar10'), 'cache').root == here
    monkeypatch.setenv('PROXY_ATTENTION_DATA', str(tmp_path/'sets'))
    assert load_items(config('cifar10'), 'cache').root == there
    items = load_items(config('cifar10', path=given), 'cache')
    assert items.root == given and list(items.fixed) == ['train', 'test']

def test_published_sets_keep_their_test(tmp_path):
    root = put(tmp_path/'imagenette', [f'{s}/{c}/{i}.png' for s in ('train', 'val') for c in ('n01440764', 'n03888257') for i in range(9)])
    items = load_items(config('imagenette', path=root), 'cache')
    assert items.classes == ['parachute', 'tench'] and list(items.fixed) == ['train', 'test']
    splits = make_splits(items)
    assert {items.names[i].split('/')[0] for i in splits['test']} == {'val'} and len(splits['test']) == 18 and len(splits['valid']) == 4
    refused('lacks its folders train and test', config('cifar10', path=put(tmp_path/'flat', ['cat/1.png', 'dog/2.png'])))

@pytest.mark.parametrize('source', ['cifar10', 'imagenette', 'fashion_mnist'])
def test_no_connection(source, monkeypatch):
    def fail(*args, **kwargs): raise OSError('<urlopen error [Errno -2] Name or service not known>')
    monkeypatch.setattr('fastai.data.external.untar_data', fail)
    monkeypatch.setattr('torchvision.datasets.FashionMNIST', type('Fake', (), dict(mirrors=['http://fashion'], __init__=fail)))
    patch_name(monkeypatch, 'debian_fashion', '/nowhere/fashion')
    refused(f"download = true: the data set '{source}' could not be fetched from http.*Name or service not known.*put its .* into data/{source}, or set path=",
            config(source, download=True))

def test_a_wrong_hash(monkeypatch):
    def fail(url): raise Exception('Downloaded file is corrupt')
    monkeypatch.setattr('fastai.data.external.untar_data', fail)
    refused('could not be fetched .*corrupt', config('cifar10', download=True))

def test_download(tmp_path, monkeypatch):
    root = put(tmp_path/'fetched', [f'{s}/{c}/{i}.png' for s in ('train', 'test') for c in ('cat', 'dog') for i in range(3)])
    asked = []
    monkeypatch.setattr('fastai.data.external.untar_data', lambda url: asked.append(url) or root)
    assert len(load_items(config('cifar10', download=True), 'cache')) == 12 and asked == [URLs.CIFAR]
    monkeypatch.setenv('PROXY_ATTENTION_DATA', str(root.parent))
    shutil.move(root, root.parent/'cifar10')
    load_items(config('cifar10', download=True), 'cache')
    assert len(asked) == 1, "what is there isn't fetched"

def test_fastai_checks_the_hashes():
    from fastai.data import download_checks
    text = Path(download_checks.__file__).read_text()
    assert URLs.CIFAR in text and URLs.IMAGENETTE_160 in text


# -- ASL digits -------------------------------------------------------------------------------------------------------------------------------------

def photos(*runs): return [f'{d}/IMG_{first+i}.JPG' for first,digits in runs for i,d in enumerate(digits)]

def sizes(names): return list(Counter(signer_blocks(names)).values())

def test_blocks_of_signers():
    assert sizes(photos((1118, '01234567890123456789'))) == [10, 10]
    assert sizes(photos((1118, '0123456788901234567890213456789'))) == [11, 10, 10], "a digit twice, two in another order"
    assert sizes(photos((1118, '012345678'), (1127, '123456789'))) == [9, 9]
    assert sizes(photos((1322, '0123456789'), (4039, '5012346789'))) == [10, 10], "another camera, and a five out of turn"
    assert sizes(photos((1000, '0123'), (1005, '456789'), (1011, '0123456789'))) == [10, 10], "a missing number"
    names = photos((1118, '01234567890123456789'))
    assert signer_blocks(names[::-1]) == signer_blocks(names)[::-1], "the order of the list doesn't matter"
    with pytest.raises(DataError, match='finds nothing in 1'): signer_blocks([*names, '3/hand.JPG'])

def test_asl_digits(data_dir):
    items = load_items(config('asl_digits', path=data_dir/'asl_digits'), 'cache')
    per_group = Counter(items.groups)
    assert len(items) == 2062 and items.classes == list('0123456789') and len(per_group) == 205
    assert sum(n == 10 for n in per_group.values()) > 185 and max(per_group.values()) <= 15 and min(per_group.values()) >= 9
    splits = make_splits(items)
    where = {k: {items.groups[i] for i in idx} for k,idx in splits.items()}
    assert not (where['train'] & where['valid'] or where['train'] & where['test'] or where['valid'] & where['test'])
    for name,share in (('train', 0.6), ('valid', 0.2), ('test', 0.2)):
        count = Counter(items.labels[i] for i in splits[name])
        assert max(count.values()) - min(count.values()) <= 4 and abs(len(splits[name])/2062 - share) < 0.01
    assert load_items(config('asl_digits', path=data_dir/'asl_digits', group=r'IMG_(\d)'), 'cache').groups[0] == '1'

def test_asl_digits_in_batches(data_dir):
    items = load_items(config('asl_digits', path=data_dir/'asl_digits'), 'cache')
    splits = make_splits(items, per_class=2)
    dls = make_dls(items, splits, config(size=48, bs=10), device='cpu')
    assert len(dls.train_ds) == 20 and dls.one_batch()[0].shape == (10, 3, 48, 48)

def test_cifar10(data_dir):
    items = load_items(config('cifar10', path=data_dir/'cifar10'), 'cache')
    splits = make_splits(items, valid=0.1)
    assert len(items.classes) == 10 and {items.names[i].split('/')[0] for i in splits['test']} == {'test'}
    assert not splits.doubles and len(splits['valid']) == round(0.1*len(items.fixed['train']))


# -- IDX ------------------------------------------------------------------------------------------------------------------------------------------

def idx(array, code=8): return bytes([0, 0, code, array.ndim]) + np.array(array.shape, '>u4').tobytes() + array.tobytes()

def write_pair(root, split='train', n=12, side=5, packed=True, labels=None):
    root.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(len(split)).integers(0, 256, (n, side, side), dtype=np.uint8)
    labels = np.arange(n, dtype=np.uint8) % 10 if labels is None else labels
    for name,a in ((f'{split}-images-idx3-ubyte', pixels), (f'{split}-labels-idx1-ubyte', labels)):
        (root/(name + ('.gz' if packed else ''))).write_bytes(gzip.compress(idx(a)) if packed else idx(a))
    return pixels, labels

@pytest.fixture
def idx_root(tmp_path):
    write_pair(tmp_path/'idx', 'train', 30)
    write_pair(tmp_path/'idx', 't10k', 10, packed=False)
    return tmp_path/'idx'

def test_read_idx(tmp_path):
    for code,kind in ((8, '>u1'), (9, '>i1'), (11, '>i2'), (12, '>i4'), (13, '>f4'), (14, '>f8')):
        a = (np.arange(24).reshape(2, 3, 4) - 3).astype(kind)
        (tmp_path/'x').write_bytes(idx(a, code))
        assert (read_idx(tmp_path/'x') == a).all() and read_idx(tmp_path/'x').shape == (2, 3, 4)
        (tmp_path/'x.gz').write_bytes(gzip.compress(idx(a, code)))
        assert (read_idx(tmp_path/'x.gz') == a).all()

@given(st.binary(max_size=60))
def test_any_bytes_are_an_array_or_an_error(tmp_path_factory, data):
    file = tmp_path_factory.getbasetemp()/'any.idx'
    file.write_bytes(data)
    try: assert isinstance(read_idx(file), np.ndarray)
    except DataError as e: assert 'any.idx' in str(e)

def test_fashion_labels_and_pixels(idx_root, tmp_path):
    items = load_items(config('fashion_mnist', path=idx_root), tmp_path/'cache')
    assert len(items) == 40 and items.size == 5 and items.classes == sorted(fashion_names) and {k: len(v) for k,v in items.fixed.items()} == {'train': 30, 'test': 10}
    pixels,labels = (read_idx(idx_root/f'train-{k}-ubyte.gz') for k in ('images-idx3', 'labels-idx1'))
    for i in items.fixed['train']:
        n = int(items.files[i].stem)
        assert items.labels[i] == fashion_names[labels[n]] and (read_image(items.files[i])[..., 1] == pixels[n]).all()
    assert (tmp_path/'cache') in items.root.parents

def test_unpacked_once(idx_root, tmp_path, monkeypatch):
    path,side = unpack_idx(idx_root, tmp_path/'cache', 'mine')
    assert sorted({p.parent.name for p in path.rglob('*.png')}) == list('0123456789') and side == 5
    written = json.loads((path/'source.json').read_text())
    assert written['images'] == 40 and written['sources']['t10k-images-idx3-ubyte'] == hashlib.sha256((idx_root/'t10k-images-idx3-ubyte').read_bytes()).hexdigest()
    with monkeypatch.context() as m:
        patch_name(m, '_write_idx', lambda *a: pytest.fail('made again'))
        assert unpack_idx(idx_root, tmp_path/'cache', 'mine') == (path, side)
    next(path.rglob('*.png')).unlink()
    assert unpack_idx(idx_root, tmp_path/'cache', 'mine') == (path, side) and len(list(path.rglob('*.png'))) == 40, "mended"
    write_pair(idx_root, 'train', 20)
    other,_ = unpack_idx(idx_root, tmp_path/'cache', 'mine')
    assert other != path and len(list(other.rglob('*.png'))) == 30, "other content, other folder"
    assert unpack_idx(idx_root, tmp_path/'cache', 'mine', list('abcdefghij'))[0] not in (path, other)

def test_nothing_is_left_of_a_failure(idx_root, tmp_path, monkeypatch):
    def full(img): raise OSError(28, 'No space left on device')
    patch_name(monkeypatch, 'encode_image', full)
    with pytest.raises(OSError, match='No space'): unpack_idx(idx_root, tmp_path/'cache', 'mine')
    assert not [p for p in (tmp_path/'cache').rglob('*') if p.is_file() or p.name.startswith('.')]

def test_own_idx_files(tmp_path):
    write_pair(tmp_path/'digits', 'train', 30, side=6)
    items = load_items(config('folder', path=tmp_path/'digits', labels='idx'), tmp_path/'cache')
    assert items.classes == list('0123456789') and items.fixed is None and items.size == 6

def test_bad_idx_files(idx_root, tmp_path):
    conf = config('fashion_mnist', path=idx_root)
    good = {f: f.read_bytes() for f in idx_root.iterdir()}
    def broken(name, data, says):
        (idx_root/name).write_bytes(data)
        refused(says, conf, tmp_path/'cache')
        for f,d in good.items(): f.write_bytes(d)
    images = 'train-images-idx3-ubyte.gz'
    broken(images, good[idx_root/images][:50], f"{images} can't be read")
    broken(images, b'<html>not found</html>', f'{images} is not an IDX file')
    broken('t10k-images-idx3-ubyte', good[idx_root/'t10k-images-idx3-ubyte'][:-7], 'should hold 10 × 5 × 5 values, but has 243 bytes')
    broken('t10k-labels-idx1-ubyte', idx(np.zeros(9, np.uint8)), r'hold arrays \(10, 5, 5\) and \(9,\)')
    broken('t10k-labels-idx1-ubyte', idx(np.full(10, 11, np.uint8)), 'has the label 11; there are 10 classes')
    (idx_root/'t10k-labels-idx1-ubyte').unlink()
    refused('holds no IDX file of test labels', conf, tmp_path/'cache')
    refused('holds no IDX file of train images, train labels', config('fashion_mnist', path=put(tmp_path/'png', ['a/1.png'])), tmp_path/'cache')
    refused("labels='folder'", config('fashion_mnist', path=idx_root, labels='folder'), tmp_path/'cache')

def test_fashion_mnist_of_debian(tmp_path):
    "The real one, cut short so that unpacking is quick; the test's half is whole"
    if not Path(debian_fashion).is_dir(): pytest.skip("Debian's package dataset-fashion-mnist isn't installed")
    root = tmp_path/'fashion'
    root.mkdir()
    for kind,per_item,head in (('images-idx3', 784, 16), ('labels-idx1', 1, 8)):
        data = gzip.decompress((Path(debian_fashion)/f'train-{kind}-ubyte.gz').read_bytes())
        cut = data[:4] + (2000).to_bytes(4, 'big') + data[8:head] + data[head:head + 2000*per_item]
        (root/f'train-{kind}-ubyte').write_bytes(cut)
        shutil.copy(Path(debian_fashion)/f't10k-{kind}-ubyte.gz', root)
    items = load_items(config('fashion_mnist', path=root, size=28), tmp_path/'cache')
    assert {k: len(v) for k,v in items.fixed.items()} == {'train': 2000, 'test': 10000} and items.size == 28
    assert set(Counter(items.labels[i] for i in items.fixed['test']).values()) == {1000}
    splits = make_splits(items, per_class=20)
    dls = make_dls(items, splits, config(size=28, bs=50), device='cpu')
    assert dls.one_batch()[0].shape == (50, 3, 28, 28) and len(dls.train_ds) == 200 and len(dls.valid_ds) == 400

def test_fashion_mnist_is_found_at_debians_place(idx_root, tmp_path, monkeypatch):
    patch_name(monkeypatch, 'debian_fashion', str(idx_root))
    assert len(load_items(config('fashion_mnist'), tmp_path/'cache')) == 40

def test_fashion_mnist_is_found_again_where_data_is_the_cache(idx_root, tmp_path, monkeypatch):
    "What the first run has unpacked into data/fashion_mnist isn't taken for the IDX files"
    monkeypatch.chdir(tmp_path)
    patch_name(monkeypatch, 'debian_fashion', str(idx_root))
    first = load_items(config('fashion_mnist'), Path('data'))
    assert first.root.parent == (tmp_path/'data'/'fashion_mnist') and load_items(config('fashion_mnist'), Path('data')).root == first.root


# -- shortcut digits --------------------------------------------------------------------------------------------------------------------------------

@pytest.fixture(scope='module')
def digits(tmp_path_factory):
    conf = config('shortcut_digits', size=40, n_train=100, n_valid=40, n_test=150, bs=16)
    return conf, load_items(conf, tmp_path_factory.mktemp('cache'))

def test_shortcut_digits(digits):
    conf,items = digits
    assert len(items) == 290 and {k: len(v) for k,v in items.fixed.items()} == {'train': 100, 'valid': 40, 'test': 150} and items.size == 40
    assert {k: len(v) for k,v in make_splits(items, seed=5).items()} == {'train': 100, 'valid': 40, 'test': 150}
    masks = items.masks(items.files[0])
    assert sorted(masks) == ['digit', 'shortcut'] and masks['shortcut'].sum() == 64
    kinds = {s: Counter(items.subgroup(items.files[i]) for i in items.fixed[s]) for s in items.fixed}
    assert kinds['train']['colour agrees'] > 85 and kinds['test']['colour agrees'] <= 15 and set(kinds['test']) == {'colour agrees', 'colour differs'}

def test_every_recipe_has_its_folder(digits, tmp_path):
    conf,items = digits
    cache = items.root.parents[1]
    assert load_items(conf, cache).root == items.root
    for change in (dict(strength=0.5), dict(seed=1), dict(size=48), dict(n_train=90), dict(n_valid=30), dict(n_test=50)):
        other = load_items(config(**(vars(conf) | change)), cache)
        assert other.root != items.root
        if 'size' not in change: assert other.names != items.names or other.files[0].read_bytes() != items.files[0].read_bytes() or 'strength' in change
    placed = load_items(config(**(vars(conf) | dict(path=str(tmp_path/'placed')))), cache)
    assert placed.root == tmp_path/'placed' and placed.names == items.names
    refused("labels='csv'", config(**(vars(conf) | dict(labels='csv'))), cache)


# -- DataLoaders ------------------------------------------------------------------------------------------------------------------------------------

@pytest.fixture(scope='module')
def wide(tmp_path_factory):
    "Forty pictures twice as wide as high: the left part tells the class, each its own shade"
    root = tmp_path_factory.mktemp('wide')
    for i in range(40):
        a = np.full((40, 80, 3), 6*i, np.uint8)
        a[:, :30, i % 2] = 255
        (root/'ab'[i % 2]).mkdir(exist_ok=True)
        Image.fromarray(a).save(root/'ab'[i % 2]/f'{i:02}.png')
    return load_items(config(path=root), 'cache')

def expected(items, i, size=20, stats=None):
    "The picture as it should come out of the loader: the middle, resized"
    with Image.open(items.files[i]) as im: x = np.asarray(im.convert('RGB').crop((20, 0, 60, 40)).resize((size, size), Image.BILINEAR))/255.
    if stats: x = (x - stats[0])/stats[1]
    return torch.tensor(x).permute(2, 0, 1).float()

def test_what_the_loaders_hold(wide):
    splits = make_splits(wide, per_class=8)
    stats = ([0.5, 0.4, 0.3], [0.2, 0.3, 0.4])
    dls = make_dls(wide, splits, config(size=20, bs=4), stats=stats, device='cpu', path='models_go_here')
    assert [e.file for e in dls.train_ds.items] == [wide.files[i] for i in splits['train']] and [e.file for e in dls.valid_ds.items] == [wide.files[i] for i in splits['valid']]
    assert list(dls.vocab) == ['a', 'b'] and dls.bs == 4 and str(dls.path) == 'models_go_here' and str(dls.device) == 'cpu'
    for split in ('valid', 'test', 'train'):
        dl = split_dl(dls, wide, splits, split)
        x,y = (torch.cat(t) for t in zip(*[(x, y) for x,y in dl]))
        assert len(x) == len(splits[split]) and [wide.labels[i] for i in splits[split]] == [dls.vocab[k] for k in y]
        for got,i in zip(x, splits[split]): assert torch.allclose(got.as_subclass(torch.Tensor), expected(wide, i, stats=stats), atol=1e-5)

def test_training_is_shuffled_and_the_rest_is_not(wide):
    splits = make_splits(wide)
    dls = make_dls(wide, splits, config(size=20, bs=8), stats=None, device='cpu')
    def order(dl): return [round(float(v)*255) for x,_ in dl for v in x[:, 2].amax((1, 2))]
    assert order(dls.train) != order(dls.train) and order(dls.valid) == order(dls.valid) == [6*int(wide.files[i].stem) for i in splits['valid']]
    assert order(split_dl(dls, wide, splits)) == [6*int(wide.files[i].stem) for i in splits['test']]

def images_of(wide, n=6, **kwargs):
    splits = make_splits(wide)
    torch.manual_seed(0)
    dls = make_dls(wide, splits, config(**(dict(size=20, bs=24) | kwargs)), stats=None, device='cpu')
    train,valid = dls.train.new(shuffle=False).one_batch()[0], dls.valid.one_batch()[0]
    plain = [torch.stack([expected(wide, i) for i in splits[k][:n]]) for k in ('train', 'valid')]
    return train[:n].as_subclass(torch.Tensor), valid[:n].as_subclass(torch.Tensor), *plain

def test_augmentation(wide):
    train,valid,plain,plain_valid = images_of(wide, augment='none')
    assert torch.allclose(train, plain, atol=1e-5) and torch.allclose(valid, plain_valid, atol=1e-5), "the middle, in training too"
    train,valid,plain,plain_valid = images_of(wide, n=24, augment='flip')
    same = [torch.allclose(a, b, atol=1e-2) for a,b in zip(train, plain)]
    flipped = [torch.allclose(a, b.flip(2), atol=1e-2) for a,b in zip(train, plain)]
    assert all(s or f for s,f in zip(same, flipped)) and any(same) and any(flipped) and torch.allclose(valid, plain_valid[:len(valid)], atol=1e-5)
    train,valid,plain,plain_valid = images_of(wide, augment='standard')
    assert not torch.allclose(train, plain, atol=0.05) and torch.allclose(valid, plain_valid, atol=1e-5)

def test_resize(wide):
    _,crop,_,_ = images_of(wide, resize='crop')
    _,pad,_,_ = images_of(wide, resize='pad')
    _,squish,_,_ = images_of(wide, resize='squish')
    assert crop.shape == pad.shape == squish.shape == (6, 3, 20, 20)
    assert (pad[:, :, :4] == 0).all() and (pad[:, :, -4:] == 0).all() and pad[:, :, 10].amax() == 1, "black above and below"
    assert torch.allclose(squish[:, :, 5, 2], squish[:, :, 15, 6], atol=0.02) and not torch.allclose(squish, crop, atol=0.05)

def test_size_and_batch(wide):
    splits = make_splits(wide)
    dls = make_dls(wide, splits, config(size=20, bs=4), size=32, bs=3, device='cpu')
    assert dls.one_batch()[0].shape == (3, 3, 32, 32)
    assert make_dls(wide, splits, config(size=20, bs=64), device='cpu').one_batch()[0].shape == (24, 3, 20, 20), "a batch never larger than the training set"
    workers = make_dls(wide, splits, config(size=20, bs=4, num_workers=2), device='cpu')
    assert workers.train.fake_l.num_workers == 2 and workers.one_batch()[0].shape == (4, 3, 20, 20)

def test_images_of_the_right_size_are_not_resized(digits):
    conf,items = digits
    splits = make_splits(items)
    names = lambda size: [type(t).__name__ for t in make_dls(items, splits, conf, size=size, device='cpu').after_item.fs]
    assert 'SteadyResize' not in names(40) and 'SteadyResize' in names(20)
    x,_ = split_dl(make_dls(items, splits, conf, stats=None, device='cpu'), items, splits).one_batch()
    assert (np.round(x[0].permute(1, 2, 0).numpy()*255) == read_image(items.files[splits['test'][0]])).all()

def test_classes_are_the_same_whatever_the_split_holds(wide):
    splits = make_splits(wide)
    splits['valid'] = np.array([i for i in splits['valid'] if wide.labels[i] == 'b'])
    dls = make_dls(wide, splits, config(size=20, bs=4), device='cpu')
    assert list(dls.vocab) == wide.classes == ['a', 'b'] and set(torch.cat([y for _,y in dls.valid]).tolist()) == {1}

def test_a_learner_with_copies_predicts_and_is_exported_without_names(wide, tmp_path):
    splits = make_splits(wide)
    cb = ProxyAttentionCB(method='eigencam', select='all', path=tmp_path/'copies', verbose=False)
    learn = Learner(make_dls(wide, splits, config(size=20, bs=4), device='cpu', path=tmp_path), tiny_model(2), CrossEntropyLossFlat(), cbs=cb)
    cb.make_proxies()
    assert len(learn.proxies) >= 6 and len(learn.dls.train_ds) == 24 + len(learn.proxies)
    by_label = {str(f): c for f,c in zip(wide.files, wide.labels)}
    assert (learn.proxies.label == [by_label[o] for o in learn.proxies.original]).all()
    with learn.no_bar(): before = learn.predict(wide.files[0])[2]
    learn.remove_proxies()
    learn.export(tmp_path/'learner.pkl')
    assert wide.root.name.encode() not in (tmp_path/'learner.pkl').read_bytes() and b'07.png' not in (tmp_path/'learner.pkl').read_bytes()
    loaded = load_learner(tmp_path/'learner.pkl')
    with loaded.no_bar(): assert torch.allclose(loaded.predict(wide.files[0])[2], before)

def test_a_registry_of_functions():
    assert list(datasets) == ['shortcut_digits', 'asl_digits', 'cifar10', 'fashion_mnist', 'imagenette', 'folder', 'csv']
    def two(conf, cache): return Items(Path('x'), [Path('x/a.png'), Path('x/a.png')], ['a', 'b'])
    with pytest.MonkeyPatch.context() as m:
        m.setitem(datasets, 'two', two)
        refused('1 files are listed twice: x/a.png', config('two'))
