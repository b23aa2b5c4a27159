"""Planted shortcuts: each kind tells the class and covers nothing else, as strong as asked, in the splits that the data set has without; reserved digits."""
import json
import shutil
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import cv2
from dataclasses import replace

import numpy as np
import pytest
from sklearn.datasets import load_digits

from lab_kit import patch_name, split_files
from proxy_attention.lab.data.shortcuts import write_png
from proxy_attention.lab.data.loaders import test_dl
from proxy_attention.core import seeded_rng
from proxy_attention.lab.data import digits as digits_module
from proxy_attention.lab.data import shortcuts as module
from proxy_attention.lab.data.items import DataError
from proxy_attention.lab.data.sources import load_items, plant
from proxy_attention.lab.data.splits import splits_of
from proxy_attention.lab.data.loaders import make_dls
from proxy_attention.lab.data.digits import make_shortcut_digits, reserved_digits, splits, truth_masks
from proxy_attention.lab.data.reading import read_image
from proxy_attention.lab.data.shortcuts import class_colours, corner, cue_side, least_side, most_classes, read_cues, shortcuts, shown_cues
from proxy_attention.lab.runs.audit import audit_run
from proxy_attention.lab.data.split_file import save_split

pytestmark = pytest.mark.filterwarnings('ignore')
both = 'position_and_square' # Two cues in one picture
kinds = [k for k in shortcuts if k != both]
large = ('border', 'background') # More than a fifth of the picture
fixed = ('position', 'letter', *large) # Nothing about them is random


def contents(path): return {f.relative_to(path).as_posix(): f.read_bytes() for f in sorted(path.rglob('*')) if f.is_file()}

def scene(seed, h=32, w=32):
    "Something like a photo: smooth, coloured, no two alike"
    small = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    return cv2.resize(small, (w, h), interpolation=cv2.INTER_CUBIC)

def sized(kind, mask):
    "Large enough to be seen; and unless it surrounds the object too small to hide it"
    return 0.15 < mask.mean() < 0.6 if kind in large else 0.008 < mask.mean() < 0.06

def draw(kind, img, k=0, n=10, seed=0, **kw): return shortcuts[kind](img, k, n, seeded_rng(seed, 'cue', 'x'), **kw)


# -- a cue in a picture -----------------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('kind', kinds)
@pytest.mark.parametrize('h, w', [(28, 28), (32, 32), (40, 61), (96, 96), (224, 160)])
def test_a_cue_is_in_its_mask_only(kind, h, w):
    for k in range(10):
        img = scene(k, h, w)
        before = img.copy()
        out,mask = draw(kind, img, k, seed=k)
        assert (img == before).all() and out.shape == img.shape and out.dtype == np.uint8 and mask.shape == (h, w) and mask.dtype == bool
        assert (out[~mask] == img[~mask]).all()
        assert (out[mask] != img[mask]).any(-1).mean() > 0.8, "a mask holds little but the cue"
        assert sized(kind, mask)
        if kind in large:
            assert not mask[h//4:h-h//4, w//4:w-w//4].any(), "all around the object"
            continue
        ys,xs = np.nonzero(mask)
        assert max(np.ptp(ys), np.ptp(xs)) < cue_side(min(h, w)) <= 0.25*min(h, w)

@pytest.mark.parametrize('kind', kinds)
def test_a_cue_depends_on_its_arguments_only(kind):
    img = scene(0)
    out,mask = draw(kind, img, 3)
    np.random.seed(7)
    again,same = draw(kind, img, 3)
    assert (out == again).all() and (mask == same).all()
    assert (draw(kind, img, 4)[0] != out).any() and (draw(kind, scene(1), 3)[0] != out).any()
    moved = {draw(kind, img, 3, seed=s)[1].tobytes() for s in range(8)}
    assert (len(moved) == 1) == (kind in fixed), "the place is random, unless it is the cue"

@pytest.mark.parametrize('kind', [k for k in kinds if k != 'position'])
def test_the_place_says_nothing(kind):
    def centre(k):
        ys,xs = np.nonzero(draw(kind, scene(0), k)[1])
        return np.array([ys.min() + ys.max(), xs.min() + xs.max()])/2
    assert max(abs(centre(k) - centre(0)).max() for k in range(10)) <= 1.5 # Letters differ a little in their width

def test_a_watermark_is_faint_and_near_the_edge():
    for s in range(30):
        img = scene(s, 64, 64)
        out,mask = draw('watermark', img, s % 10, seed=s)
        change = abs(out.astype(int) - img)[mask]
        assert change.max() <= 0.4*255 + 1 and change.mean() > 8
        ys,xs = np.nonzero(mask)
        assert min(ys.min(), xs.min(), 63 - ys.max(), 63 - xs.max()) <= cue_side(64)//3 + 2

def test_a_texture_is_grey_and_as_bright_for_every_class():
    for k in range(10):
        out,mask = draw('texture', scene(0, 96, 96), k)
        assert np.ptp(out[mask], axis=-1).max() == 0 and abs(out[mask].mean() - 128) < 12 and out[mask].std() > 30

def test_position_is_the_same_mark_for_every_class():
    drawn = [draw('position', scene(0), k) for k in range(10)]
    assert len({out[mask].tobytes() for out,mask in drawn}) == 1 and len({mask.tobytes() for _,mask in drawn}) == 10

def nearest(train, test):
    "Share of `test` (class → features) whose class has the nearest mean of `train`"
    means = np.stack([np.mean(f, 0) for f in train])
    hits = [np.abs(means - x).reshape(len(means), -1).sum(1).argmin() == k for k,fs in enumerate(test) for x in fs]
    return np.mean(hits)

@pytest.mark.parametrize('kind', kinds)
@pytest.mark.parametrize('n, size', [(10, 32), (10, 28), (3, 40), (36, 96)])
def test_a_cue_alone_tells_the_class(kind, n, size):
    def feature(k, i):
        img = scene(1000*k + i, size, size)
        out,mask = draw(kind, img, k, n, seed=i)
        if kind == 'position': return np.argwhere(mask).mean(0)
        if kind in large: return (out[mask].astype(float) - 0.65*img[mask]*(kind == 'background')).mean(0)
        ys,xs = np.nonzero(mask)
        part = np.s_[ys.min():ys.max()+1, xs.min():xs.max()+1]
        if kind != 'watermark': return out[part].astype(float)
        change = abs(out[part].astype(np.float32) - img[part]).mean(-1)
        return cv2.resize(change/change.max(), (16, 16))
    features = [[feature(k, i) for i in range(6)] for k in range(n)]
    assert nearest([f[:3] for f in features], [f[3:] for f in features]) > 0.9

@pytest.mark.parametrize('free', [None, 'half'])
def test_two_cues_are_those_of_each_kind_side_by_side(free):
    img = scene(3, 60, 60)
    may = None if free is None else np.arange(60)[:, None]*np.ones(60) < 36
    for k in range(10):
        (out,mask), (_,mark) = (draw(kind, img, k, free=may) for kind in (both, 'position'))
        square = mask & ~mark
        assert (out[~mask] == img[~mask]).all() and mark.sum() + square.sum() == mask.sum() and square.sum() == cue_side(60)**2
        assert (out[square] == class_colours(10)[k]).all() and (out[mark] == draw('position', img, k)[0][mark]).all()
        assert may is None or may[square].all()

def test_colours_for_any_number_of_classes():
    assert (class_colours(10) == module.colours).all() and (class_colours(4) == module.colours[:4]).all()
    for n in (11, most_classes):
        c = class_colours(n).astype(int)
        assert c.shape == (n, 3) and min(abs(a - b).sum() for i,a in enumerate(c) for b in c[:i]) > 25

@pytest.mark.parametrize('kind', [k for k in kinds if k not in fixed])
def test_free_pixels(kind):
    free = np.zeros((40, 40), bool)
    free[30:, 4:20] = True
    for s in range(20): assert not (draw(kind, scene(0, 40, 40), 1, seed=s, free=free)[1] & ~free).any()
    with pytest.raises(ValueError, match='no room'): draw(kind, scene(0, 40, 40), free=np.zeros((40, 40), bool))

@pytest.mark.parametrize('kind', large)
def test_what_surrounds_the_object_spares_what_is_not_free(kind):
    free = np.ones((40, 40), bool)
    free[:20] = False
    mask = draw(kind, scene(0, 40, 40), 1, free=free)[1]
    assert mask.any() and not (mask & ~free).any()

def test_every_free_corner_is_chosen():
    free = np.zeros((10, 12), bool)
    free[4:, 5:] = True
    got = {tuple(corner(np.random.default_rng(i), 3, free)) for i in range(300)}
    assert got == {(y, x) for y in range(4, 8) for x in range(5, 10)}
    got = {tuple(corner(np.random.default_rng(i), 3, np.ones((10, 12), bool), 1)) for i in range(600)}
    assert got == {(y, x) for y in range(8) for x in range(10) if min(y, x, 7-y, 9-x) <= 1}

def test_shown_cues():
    labels = np.repeat(np.arange(5), 80)
    shown = shown_cues(labels, 0.7, 'train', np.random.default_rng(0), 5)
    assert abs((shown == labels).mean() - 0.7) < 4*np.sqrt(.21/400) and set(shown) == set(range(5))
    for strength,split in ((0.7, 'test'), (0, 'train')):
        table = np.zeros((5, 5), int)
        np.add.at(table, (labels, shown_cues(labels, strength, split, np.random.default_rng(0), 5)), 1)
        assert (table == 16).all(), "independent"


# -- planted into a data set ------------------------------------------------------------------------------------------------------------------------

def config(**kwargs):
    return SimpleNamespace(**(dict(source='folder', path=None, labels=None, pattern=None, table=None, file_column=None, label_column=None, group=None, valid=0.2,
                                   test=0.25, per_class=None, n_train=None, n_valid=None, n_test=None, shortcut='square', strength=0.9, reserved=0, holdout=False,
                                   size=32, resize='crop', augment=None, seed=0, bs=8, num_workers=0, download=False) | kwargs))

def change(conf, **kwargs): return SimpleNamespace(**(vars(conf) | kwargs))

@pytest.fixture(scope='module')
def photos(tmp_path_factory):
    "90 photos of three classes and 18 people, in two formats; three pictures are there twice"
    root = tmp_path_factory.mktemp('photos')/'mine'
    for i in range(90):
        file = root/'abc'[i % 3]/f"p{i//5:02}_{i:03}.{'jpg' if i % 2 else 'png'}"
        file.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(file), scene(i, 40, 52))
    for i,j in ((0, 87), (3, 50), (6, 31)): shutil.copy(sorted(root.rglob(f'*_{i:03}.*'))[0], root/'a'/f'p{j//5:02}_9{j:03}.png')
    return root

@pytest.fixture(scope='module')
def cache(tmp_path_factory): return tmp_path_factory.mktemp('cache')

def lists(items, parts): return {k: sorted(items.names[i] for i in idx) for k,idx in parts.items()}

def without(conf, cache): return load_items(change(conf, shortcut=None), cache)

@pytest.mark.parametrize('kw', [{}, dict(seed=3), dict(group=r'(p\d+)_'), dict(per_class=10), dict(n_train=30, n_valid=12, n_test=20), dict(test=0), dict(n_test=9, per_class=5)])
def test_the_splits_are_those_without_a_shortcut(photos, cache, kw):
    conf = config(path=photos, **kw)
    before, after = without(conf, cache), load_items(conf, cache)
    parts, again = splits_of(before, conf), splits_of(after, conf)
    assert {k: [f'{n}.png' for n in v] for k,v in lists(before, parts).items()} == lists(after, again)
    assert sum(map(len, again.values())) == len(after) and after.classes == before.classes
    was = {f'{n}.png': (c, g) for n,c,g in zip(before.names, before.labels, before.groups or [None]*len(before))}
    assert [(c, g) for c,g in zip(after.labels, after.groups or [None]*len(after))] == [was[n] for n in after.names], "labels and groups are kept"
    assert (after.groups is None) == (before.groups is None)
    if not kw: assert len(parts.doubles) >= 1 and len(after) == len(before) - len(parts.doubles), "a picture that is in two splits is found as before"

def test_a_data_set_that_comes_with_splits(tmp_path):
    for split,n in (('train', 30), ('test', 12)):
        for i in range(n):
            (tmp_path/'mine'/split/'ab'[i % 2]).mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(tmp_path/'mine'/split/'ab'[i % 2]/f'{i}.png'), scene(i + 100*n))
    conf = config(path=tmp_path/'mine', n_train=20)
    before, after = without(conf, tmp_path/'cache'), load_items(conf, tmp_path/'cache')
    assert {k: [f'{n}.png' for n in v] for k,v in lists(before, splits_of(before, conf)).items()} == lists(after, splits_of(after, conf))
    assert {n.split('/')[0] for n in lists(after, after.fixed)['test']} == {'test'} and len(after.fixed['train']) == 20

@pytest.mark.parametrize('kind', kinds)
def test_pictures_and_masks(photos, cache, kind):
    conf = config(path=photos, shortcut=kind, n_train=20, n_valid=6, n_test=10)
    before, items = without(conf, cache), load_items(conf, cache)
    original = dict(zip(before.names, before.files))
    x = dict(zip(before.names, make_whole(before, conf)))
    cues = read_cues(items.root)
    assert items.size == 32 and set(cues) == set(items.names)
    for f,n,c in zip(items.files, items.names, items.labels):
        img,masks = read_image(f), items.masks(f)
        assert list(masks) == ['shortcut'] and img.shape == (32, 32, 3) and sized(kind, masks['shortcut'])
        plain = x[n.removesuffix('.png')]
        assert (img[~masks['shortcut']] == plain[~masks['shortcut']]).all(), "what the network would get, but for the cue"
        expected,_ = shortcuts[kind](plain, 'abc'.index(cues[n]), 3, seeded_rng(0, 'cue', n.removesuffix('.png')))
        assert (img == expected).all()
        assert items.subgroup(f) == ('cue agrees' if cues[n] == c else 'cue differs')
    assert all(f.is_file() for f in original.values())

def make_whole(items, conf):
    "All pictures as the network gets them, in the order of the items"
    parts = dict(train=np.arange(len(items)), valid=np.arange(1))
    dl = test_dl(make_dls(items, parts, change(conf, bs=64), stats=None, device='cpu'), items, dict(test=np.arange(len(items))))
    return np.concatenate([(b[0].permute(0, 2, 3, 1).numpy()*255).round().astype(np.uint8) for b in dl])

@pytest.fixture(scope='module')
def scenes(tmp_path_factory):
    root = tmp_path_factory.mktemp('scenes')
    for i in range(300):
        (root/'abcd'[i % 4]).mkdir(exist_ok=True)
        cv2.imwrite(str(root/'abcd'[i % 4]/f'{i}.png'), scene(i))
    return root

@pytest.mark.parametrize('strength', [1, 0.6, 0])
def test_strength_is_what_was_asked(scenes, tmp_path, strength):
    conf = config(path=scenes, strength=strength, n_train=150, n_valid=60, n_test=90)
    items = load_items(conf, tmp_path/'cache')
    agree = {k: np.mean([items.subgroup(items.files[i]) == 'cue agrees' for i in v]) for k,v in items.fixed.items()}
    for k in ('train', 'valid'):
        if strength: assert abs(agree[k] - strength) <= 4*np.sqrt(strength*(1-strength)/len(items.fixed[k]))
        else: assert agree[k] <= 0.25
    cues, table = read_cues(items.root), np.zeros((4, 4), int)
    for i in items.fixed['test']: table['abcd'.index(items.labels[i]), 'abcd'.index(cues[items.names[i]])] += 1
    assert (table.max(1) - table.min(1) <= 1).all() and np.trace(table) <= 0.25*table.sum(), "the test's cue is independent of the class"

def test_byte_for_byte(photos, tmp_path):
    conf = config(path=photos, n_train=20, n_valid=6, n_test=10)
    one = load_items(conf, tmp_path/'one')
    np.random.seed(5)
    other = load_items(conf, tmp_path/'other')
    assert contents(one.root) == contents(other.root) and one.root.name == other.root.name
    assert [p.name for p in one.root.parent.iterdir()] == [one.root.name], "a temporary folder was left"

def test_every_argument_matters(photos, cache):
    conf = config(path=photos, strength=0.5)
    first = load_items(conf, cache)
    seen = {first.root}
    for kw in (dict(shortcut='texture'), dict(strength=0.4), dict(size=40), dict(resize='squish'), dict(seed=1), dict(valid=0.3), dict(test=0.1), dict(per_class=5),
               dict(n_train=30), dict(n_valid=9), dict(n_test=12), dict(group=r'(p\d+)_'), dict(pattern=r'p(\d)\d_')):
        items = load_items(change(conf, **kw), cache)
        assert items.root not in seen and contents(items.root) != contents(first.root), kw
        seen.add(items.root)
    other = load_items(change(conf, seed=1), cache)
    shared = set(first.names) & set(other.names)
    assert len(shared) > 60 and all((first.root/n).read_bytes() != (other.root/n).read_bytes() for n in shared), "another place"
    same = load_items(change(conf, bs=3, augment='flip', num_workers=1), cache)
    assert same.root == first.root, "what doesn't change the pictures makes no other copy"

def test_one_picture_doesnt_depend_on_the_others(photos, cache):
    few, all_ = (load_items(config(path=photos, strength=1, per_class=n), cache) for n in (5, None))
    train = lists(few, few.fixed)['train']
    assert len(train) == 15 and all((few.root/n).read_bytes() == (all_.root/n).read_bytes() for n in train)

def test_reused_and_never_overwritten(photos, tmp_path, monkeypatch):
    conf = config(path=photos, n_train=20, n_valid=6, n_test=10)
    items = load_items(conf, tmp_path)
    with monkeypatch.context() as m:
        patch_name(m, '_write_planted', lambda *a: pytest.fail('made again'))
        again = load_items(conf, tmp_path)
        assert again.files == items.files and again.subgroup(items.files[0]) == items.subgroup(items.files[0])
    for damage in ('picture', 'mask', 'cues', 'gone'):
        before = contents(items.root)
        file = {'picture': items.files[3], 'mask': items.root/'.masks'/'shortcut'/items.names[3], 'cues': items.root/'cues.json', 'gone': items.files[3]}[damage]
        if damage == 'gone': file.unlink()
        else: file.write_bytes(file.read_bytes() + b' ')
        with pytest.raises(ValueError, match='its images were changed since'): load_items(conf, tmp_path)
        for name,data in before.items(): (items.root/name).write_bytes(data)
    assert load_items(conf, tmp_path).files == items.files
    (items.root/'recipe.json').write_text('mine')
    with pytest.raises(ValueError, match='not a data set'): load_items(conf, tmp_path)

def test_another_content_is_another_folder(tmp_path, photos):
    shutil.copytree(photos, tmp_path/'mine')
    conf = config(path=tmp_path/'mine')
    items = load_items(conf, tmp_path/'cache')
    i = items.fixed['train'][0]
    cv2.imwrite(str(tmp_path/'mine'/items.names[i].removesuffix('.png')), scene(999, 40, 52))
    other = load_items(conf, tmp_path/'cache')
    assert other.root != items.root and (other.root/items.names[i]).read_bytes() != items.files[i].read_bytes()

def test_nothing_is_left_of_a_failure(photos, tmp_path, monkeypatch):
    def full(file, img):
        if '/b/' in file.as_posix(): raise OSError(28, 'No space left on device')
        return write(file, img)
    write = write_png
    patch_name(monkeypatch, 'write_png', full)
    with pytest.raises(OSError, match='No space'): load_items(config(path=photos), tmp_path)
    assert not [p for p in tmp_path.rglob('*') if p.is_file() or p.name.startswith('.')]

@pytest.mark.parametrize('kw, says', [
    (dict(shortcut='sqare'), "shortcut='sqare' is not one of 'square', 'watermark', 'texture', 'position', 'sticker', 'letter', 'border', 'background', 'position_and_square'. Did you mean 'square'"),
    (dict(size=least_side-1), f"size={least_side-1}: a cue .shortcut='square'. needs at least {least_side} pixels"),
    (dict(n_train=1000), 'n_train=1000')])
def test_mistakes(photos, tmp_path, kw, says):
    with pytest.raises((ValueError, TypeError), match=says): load_items(config(**(dict(path=photos) | kw)), tmp_path)
    assert not list(tmp_path.iterdir()), "nothing is written"

def test_too_many_classes(photos, tmp_path):
    items = without(config(path=photos), tmp_path)
    items.labels = [str(i % (most_classes+1)) for i in range(len(items))]
    with pytest.raises(DataError, match=f"shortcut='square': there are cues for {most_classes} classes, and data source='folder' has {most_classes+1}"):
        plant(items, config(path=photos), tmp_path)

def test_files_outside_of_the_folder_get_a_place_inside(tmp_path):
    (tmp_path/'mine').mkdir()
    (tmp_path/'far').mkdir()
    rows = []
    for i in range(30):
        cv2.imwrite(str(tmp_path/'far'/f'{i}.png'), scene(i))
        rows.append(f"../far/{i}.png,{'ab'[i % 2]}")
    (tmp_path/'mine'/'labels.csv').write_text('file,label\n' + '\n'.join(rows))
    before = contents(tmp_path/'far')
    items = load_items(config(source='csv', path=tmp_path/'mine'), tmp_path/'cache')
    assert items.names[0].startswith('_/far/') and all(items.root in f.parents for f in items.files) and contents(tmp_path/'far') == before

def test_a_kind_of_ones_own(photos, tmp_path, monkeypatch):
    def corner_dot(img, k, n, rng, free=None):
        mask = np.zeros(img.shape[:2], bool)
        mask[:2, :2] = True
        out = img.copy()
        out[mask] = 255*k//(n-1)
        return out, mask
    monkeypatch.setitem(shortcuts, 'dot', corner_dot)
    items = load_items(config(path=photos, shortcut='dot', strength=1), tmp_path)
    assert all((read_image(items.files[i])[0, 0] == 127*'abc'.index(items.labels[i]) + (items.labels[i] == 'c')).all() for i in items.fixed['train'])
    assert truth_masks(split_files(make_shortcut_digits(tmp_path/'d', n_train=20, n_valid=10, n_test=10, shortcut='dot'))[0])[1].sum() == 4

def test_the_audit_of_planted_data_is_clean_and_finds_what_is_not(photos, cache, tmp_path):
    conf = config(path=photos, group=r'(p\d+)_')
    items = load_items(conf, cache)
    parts = splits_of(items, conf)
    save_split(tmp_path/'run'/'split.json', items, parts, seed=0)
    audit = audit_run(tmp_path/'run')
    assert audit and (audit.train, audit.valid, audit.test) == tuple(len(parts[k]) for k in ('train', 'valid', 'test'))
    copied = Path(shutil.copytree(items.root, tmp_path/'copied'))
    moved = replace(items, root=copied, files=[copied/n for n in items.names])
    shutil.copy(moved.files[parts['train'][0]], moved.files[parts['test'][0]])
    save_split(tmp_path/'bad'/'split.json', moved, {k: parts[k] for k in ('train', 'valid', 'test')}, seed=0)
    assert not audit_run(tmp_path/'bad') and 'is the same picture as' in str(audit_run(tmp_path/'bad'))

def test_a_run_on_planted_data(photos, tmp_path):
    from proxy_attention.lab.runs.runner import run_experiment
    from proxy_attention.files import read_lines
    Path('settings.ini').write_text(f"""\
[data:planted]
source = folder
path = {photos}
shortcut = square
size = 32
bs = 16
[model:net]
arch = small_cnn
width = 4
[proxy:all]
scout = off
select = all
[experiment:try]
data = planted
model = net
proxy = all
epochs = 1
threads = 1
""")
    out = run_experiment('try', 'settings.ini', tmp_path/'run', data=tmp_path/'data', say=lambda *_: None)
    end = [o for o in read_lines(out) if o['kind'] == 'end'][0]
    assert end['audit']['ok'] and audit_run(out) and end['proxies_made'] > 30
    assert set(end['test']['per_group']) == {'cue agrees', 'cue differs'} and 0 <= end['maps']['on_shortcut'] <= 1
    from proxy_attention.lab.config.problems import SettingsError
    with pytest.raises(SettingsError, match="shortcut='sqare' is not one of 'square'"): run_experiment('try', 'settings.ini', tmp_path/'bad', ['shortcut=sqare'])


# -- other cues on the digits -----------------------------------------------------------------------------------------------------------------------

few = dict(n_train=60, n_valid=30, n_test=50)

@pytest.fixture(scope='module')
def digits(tmp_path_factory): return make_shortcut_digits(tmp_path_factory.mktemp('digits')/'d', **few)

def test_the_digits_are_what_they_always_were(digits):
    recipe = json.loads((digits/'recipe.json').read_text())
    assert set(recipe) == {'dataset', 'version', 'strength', 'n_train', 'n_valid', 'seed', 'size', 'n_test', 'digest'} and not (digits/'cues.json').exists()
    assert recipe['digest'] == '2034541dd17a0fb36bcdbbfbec098bfeb8f6ad25323e1860531a55b94ef4f2ef'
    assert make_shortcut_digits(digits, **few, shortcut='square', reserved=0, holdout=False) == digits

@pytest.mark.parametrize('kind', [k for k in kinds if k != 'square'])
def test_another_cue_on_the_digits(digits, tmp_path, kind):
    path = make_shortcut_digits(tmp_path/'d', **few, shortcut=kind)
    again = make_shortcut_digits(tmp_path/'again', **few, shortcut=kind)
    assert contents(path) == contents(again)
    names = lambda p: [f.relative_to(p).as_posix() for s in splits for f in split_files(p, s)]
    assert names(path) == names(digits), "the same split"
    cues = read_cues(path)
    assert list(cues) and set(cues) == set(names(path))
    shown = {s: np.mean([cues[n] == n.split('/')[1] for n in cues if n.startswith(s)]) for s in splits}
    assert shown['train'] > 0.85 and shown['test'] <= 0.1
    for n in names(path):
        digit,shortcut = truth_masks(path/n)
        assert digit.sum() > 60 and sized(kind, shortcut) and not (digit & shortcut).any()
    with pytest.raises(ValueError, match=f"shortcut='{kind}' instead of None"): make_shortcut_digits(path, **few)

def test_the_place_of_the_digit_says_nothing_of_the_position(tmp_path):
    one, other = (make_shortcut_digits(tmp_path/str(s), **few, shortcut='position', strength=s) for s in (1, 0.2))
    for f in split_files(one, 'train'):
        assert (truth_masks(f)[0] == truth_masks(other/f.relative_to(one))[0]).all(), "whatever the cue is"

def test_other_cues_as_a_data_set(tmp_path):
    conf = config(source='shortcut_digits', size=40, **few, shortcut='watermark')
    items = load_items(conf, tmp_path)
    usual = load_items(change(conf, shortcut=None), tmp_path)
    assert load_items(change(conf, shortcut='square'), tmp_path).root == usual.root != items.root and usual.names == items.names
    assert set(map(items.subgroup, items.files)) == {'cue agrees', 'cue differs'} and set(map(usual.subgroup, usual.files)) == {'colour agrees', 'colour differs'}
    kinds = Counter(items.subgroup(items.files[i]) for i in items.fixed['train'])
    assert kinds['cue agrees'] > 45 and sorted(items.masks(items.files[0])) == ['digit', 'shortcut']
    assert usual.root.name == 'b764a267b3a4', "the folder's name is what it was before there were other cues"


# -- reserved digits --------------------------------------------------------------------------------------------------------------------------------

def numbers(path, split): return {int(f.stem) for f in split_files(path, split)}

def test_reserved_digits_are_a_fixed_rule():
    labels = load_digits().target
    kept = reserved_digits(labels, 500)
    assert len(set(kept)) == 500 and (kept == np.sort(kept)).all() and set(reserved_digits(labels, 100)) < set(kept) and len(reserved_digits(labels, 0)) == 0
    count = np.bincount(labels[kept])/np.bincount(labels)
    assert count.max() - count.min() < 0.01, "stratified"
    assert kept[:8].tolist() == [2, 5, 6, 8, 15, 17, 19, 20], "whoever searched with other digits apart has seen these"

def test_no_split_holds_a_reserved_digit(tmp_path):
    kept = set(reserved_digits(load_digits().target, 500))
    made = [make_shortcut_digits(tmp_path/str(s), n_train=100, n_valid=50, n_test=n, seed=s, reserved=500) for s,n in ((0, 120), (1, 90))]
    for path in made: assert not kept & set.union(*(numbers(path, s) for s in splits))
    assert [len(numbers(made[0], s)) for s in splits] == [100, 50, 120] and len(numbers(made[1], 'test')) == 90
    every = digits_module._split_digits(load_digits().target, 100, 50, 0, None, 500)
    assert len(every['test']) == 1147 and not kept & set(every['test'])
    assert numbers(made[0], 'train') != numbers(made[1], 'train')
    holdout = make_shortcut_digits(tmp_path/'holdout', n_train=100, n_valid=50, reserved=500, holdout=True)
    assert numbers(holdout, 'test') == kept
    for s in ('train', 'valid'):
        assert numbers(holdout, s) == numbers(made[0], s)
        assert all(f.read_bytes() == (made[0]/f.relative_to(holdout)).read_bytes() for f in split_files(holdout, s)), "training is what it was"
    told = [digits_module.shown_colour(f) == int(f.parent.name) for f in split_files(holdout)]
    assert np.mean(told) <= 0.1
    with pytest.raises(ValueError, match='holdout=True instead of False'): make_shortcut_digits(holdout, n_train=100, n_valid=50, reserved=500)

@pytest.mark.parametrize('kw, error, says', [
    (dict(reserved=-1), ValueError, 'reserved=-1'), (dict(reserved=5), ValueError, 'reserved=5'), (dict(reserved='many'), TypeError, "reserved='many'"),
    (dict(reserved=1.5), ValueError, 'reserved=1.5'), (dict(reserved=None), TypeError, 'reserved=None'), (dict(reserved=1790), ValueError, 'reserved=1790'),
    (dict(reserved=500), ValueError, 'n_valid=200'), (dict(reserved=700), ValueError, 'n_train=1200'), (dict(holdout=True), ValueError, 'holdout=True.*reserved=0'),
    (dict(holdout='yes', reserved=300), TypeError, "holdout='yes'"), (dict(holdout=True, reserved=300, n_test=50), ValueError, 'n_test=50.*leave n_test out'),
    (dict(shortcut='squre'), ValueError, "shortcut='squre' is not one of .*'square'"), (dict(shortcut=None), ValueError, 'shortcut=None')])
def test_bad_arguments(tmp_path, kw, error, says):
    with pytest.raises(error, match=says): make_shortcut_digits(tmp_path/'d', **kw)
    assert not list(tmp_path.iterdir())

def test_reserved_digits_as_a_data_set(tmp_path):
    conf = config(source='shortcut_digits', shortcut=None, size=40, n_train=60, n_valid=30, reserved=100)
    search, holdout = load_items(change(conf, n_test=80), tmp_path), load_items(change(conf, holdout=True), tmp_path)
    assert search.root != holdout.root
    part = lambda items, s: {Path(n).name for n in lists(items, splits_of(items, conf))[s]}
    assert part(search, 'train') == part(holdout, 'train') and len(part(holdout, 'test')) == 100 and not part(holdout, 'test') & set.union(*(part(search, s) for s in splits))
