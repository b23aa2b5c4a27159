"""The data set with the shortcut: the same bytes for the same seed, the shortcut as strong as asked, never any in the test."""
import json
import shutil

import cv2
import numpy as np
import pytest
from lab_kit import split_files
from sklearn.datasets import load_digits

from proxy_attention.lab.data import digits as digits_module
from proxy_attention.lab.data.digits import make_shortcut_digits, shown_colour, splits, truth_masks

pytestmark = pytest.mark.filterwarnings('ignore')


def contents(path): return {f.relative_to(path).as_posix(): f.read_bytes() for f in sorted(path.rglob('*')) if f.is_file()}

def told(files): return np.array([shown_colour(f) == int(f.parent.name) for f in files])


def draw(path, **kw): return make_shortcut_digits(path, **dict(size=40) | kw)

@pytest.fixture(scope='module')
def digits(tmp_path_factory): return draw(tmp_path_factory.mktemp('shortcut')/'digits')


def use_few(monkeypatch):
    x,y = load_digits(return_X_y=True)
    monkeypatch.setattr('sklearn.datasets.load_digits', lambda return_X_y: (x[:300], y[:300]))
    monkeypatch.setattr(digits_module, 'n_digits', 300)

@pytest.fixture
def few(monkeypatch):
    "A data set of 300 digits, where the number doesn't matter: quicker"
    use_few(monkeypatch)

def draw_few(path, **kw): return draw(path, **dict(n_train=200, n_valid=50) | kw)

@pytest.fixture(scope='module')
def few_digits(tmp_path_factory):
    "200 images for training, 50 for validation and 50 for the test"
    with pytest.MonkeyPatch.context() as m:
        use_few(m)
        return draw_few(tmp_path_factory.mktemp('shortcut')/'few')


def test_byte_for_byte(few, few_digits, tmp_path):
    np.random.seed(5) # Global random numbers don't matter
    again = draw_few(tmp_path/'again')
    assert contents(again) == contents(few_digits)
    assert [p.name for p in tmp_path.iterdir()] == ['again'], "a temporary folder was left"

def test_the_seed_matters(few, few_digits, tmp_path):
    other = contents(draw_few(tmp_path/'other', seed=1))
    assert other.keys() != contents(few_digits).keys() # Another split
    shared = [k for k in other if k.endswith('.png') and not k.startswith('.') and (few_digits/k).is_file()]
    assert shared and all(other[k] != (few_digits/k).read_bytes() for k in shared)

def test_numbers_and_splits(digits):
    numbers = {s: [f.stem for f in split_files(digits, s)] for s in splits}
    assert [len(numbers[s]) for s in splits] == [1200, 200, 397]
    assert len(set(sum(numbers.values(), []))) == 1797, "a handwriting is in two splits, or lost"
    for s in splits: # Stratified
        count = np.bincount([int(f.parent.name) for f in split_files(digits, s)], minlength=10)
        assert count.max() - count.min() <= 0.015*len(numbers[s]) + 2

def test_split_depends_on_the_seed_only(few, few_digits, tmp_path):
    digits, weaker = few_digits, draw_few(tmp_path/'weaker', strength=0.5)
    names = lambda p: [f.relative_to(p) for s in splits for f in split_files(p, s)]
    assert names(weaker) == names(digits)
    name = split_files(digits, 'train')[7].relative_to(digits)
    for one,other in zip(truth_masks(digits/name), truth_masks(weaker/name)): assert (one == other).all()

@pytest.mark.parametrize('strength, n', [(0.95, 800), (0.3, 300)])
def test_strength_respected(tmp_path, strength, n):
    path = draw(tmp_path/'d', strength=strength, seed=3, n_train=n, n_test=10)
    for split in ('train', 'valid'):
        hits = told(split_files(path, split))
        assert abs(hits.mean() - strength) < 4*np.sqrt(strength*(1-strength)/len(hits))
    lies = [(int(f.parent.name), shown_colour(f)) for f in split_files(path, 'train')]
    offset = np.bincount([(c-k) % 10 for k,c in lies if c != k], minlength=10)[1:]
    expected = offset.sum()/9
    assert ((offset-expected)**2/expected).sum() < 28, "wrong colours are not equally frequent" # chi-square, 8 degrees of freedom, p < 0.0005

def test_no_shortcut(few, tmp_path):
    path = draw_few(tmp_path/'d', strength=None)
    assert draw_few(path, strength=0) == path # The same
    for split in splits: assert told(split_files(path, split)).mean() <= 0.1
    assert json.loads((path/'recipe.json').read_text())['strength'] == 0

def test_colour_never_helps_in_the_test(few, tmp_path):
    path = make_shortcut_digits(tmp_path/'d', strength=1, seed=1, n_train=100, n_valid=50)
    table = np.zeros((10, 10), int)
    for f in split_files(path, 'test'): table[int(f.parent.name), shown_colour(f)] += 1
    assert np.trace(table) <= 0.1*table.sum()
    assert (table.max(1) - table.min(1) <= 1).all(), "within a class every colour is equally frequent, as far as whole numbers go"
    assert told(split_files(path, 'train')).all()

def test_masks_are_where_things_are(digits):
    for f in [f for s in splits for f in split_files(digits, s)[::40]]:
        img = cv2.imread(str(f))[..., ::-1].astype(float)
        digit,shortcut = truth_masks(f)
        assert digit.dtype == shortcut.dtype == bool and digit.shape == shortcut.shape == img.shape[:2]
        ys,xs = np.nonzero(shortcut)
        assert shortcut.sum() == 64 and np.ptp(ys) == np.ptp(xs) == 7
        assert not (digit & shortcut).any()
        assert img[digit].mean() > 1.5*img[~digit & ~shortcut].mean()
        around = cv2.dilate(digit.astype(np.uint8), np.ones((9, 9))).astype(bool) | shortcut
        assert np.ptp(img[~around], axis=-1).mean() < np.ptp(img[shortcut].mean(0)), "colour outside of the square"

def test_square_never_touches_the_digits_box(tmp_path, monkeypatch):
    digit = np.full((8, 8), 16.)
    for i in range(300):
        _,ink,shortcut = digits_module._draw(digit, digits_module.colours[0], 40, np.random.default_rng(i))
        assert ink.sum() == 24*24 and shortcut.sum() == 64 and not (ink & shortcut).any()

def test_masks_of_another_image(tmp_path, digits):
    with pytest.raises(FileNotFoundError, match='truth masks'): truth_masks(tmp_path/'train/3/0001.png')
    with pytest.raises(FileNotFoundError, match='truth masks'): truth_masks('0001.png')

def test_reuse(digits):
    before = contents(digits), (digits/'train').stat().st_mtime_ns
    assert make_shortcut_digits(digits) == digits
    assert (contents(digits), (digits/'train').stat().st_mtime_ns) == before

def test_empty_folder_is_fine(tmp_path, few):
    (tmp_path/'d').mkdir()
    assert (make_shortcut_digits(tmp_path/'d', n_train=20, n_valid=10)/'recipe.json').is_file()

def test_never_overwrites(tmp_path, few):
    path = make_shortcut_digits(tmp_path/'d', n_train=50, n_valid=20)
    before = contents(path)
    with pytest.raises(ValueError, match='strength=0.95 instead of 0.5'): make_shortcut_digits(path, strength=0.5, n_train=50, n_valid=20)
    assert contents(path) == before
    split_files(path)[0].unlink()
    with pytest.raises(ValueError, match='changed'): make_shortcut_digits(path, n_train=50, n_valid=20)
    mine = tmp_path/'mine'
    mine.mkdir()
    (mine/'thesis.txt').write_text('all of it')
    with pytest.raises(ValueError, match='not a data set'): make_shortcut_digits(mine, n_train=50, n_valid=20)
    with pytest.raises(ValueError, match='not a data set'): make_shortcut_digits(mine/'thesis.txt', n_train=50, n_valid=20)
    assert contents(mine) == {'thesis.txt': b'all of it'}

def test_nothing_left_after_a_failure(tmp_path, monkeypatch, few):
    def full(file, img):
        if '/train/5/' in file.as_posix(): raise OSError(28, 'No space left on device')
        return write(file, img)
    write = digits_module.write_png
    monkeypatch.setattr(digits_module, 'write_png', full)
    with pytest.raises(OSError, match='No space'): make_shortcut_digits(tmp_path/'d', n_train=100, n_valid=50)
    assert list(tmp_path.iterdir()) == []

@pytest.mark.parametrize('name, value, error', [
    ('strength', 1.5, ValueError), ('strength', -0.1, ValueError), ('strength', 'strong', TypeError), ('strength', float('nan'), ValueError),
    ('strength', True, TypeError),
    ('n_train', 0, ValueError), ('n_train', 1.5, ValueError), ('n_train', '100', TypeError), ('n_train', 1790, ValueError),
    ('n_valid', 9, ValueError), ('n_valid', 600, ValueError), ('seed', -1, ValueError), ('seed', None, TypeError), ('size', 39, ValueError),
    ('size', 10**6, ValueError)])
def test_bad_arguments(tmp_path, name, value, error):
    with pytest.raises(error, match=f"{name}="): make_shortcut_digits(tmp_path/'d', **{name: value})
    assert list(tmp_path.iterdir()) == []

def test_size_and_numbers(tmp_path, few):
    path = make_shortcut_digits(tmp_path/'d', size=56, n_train=30, n_valid=10)
    assert cv2.imread(str(split_files(path)[0])).shape == (56, 56, 3)
    assert [len(split_files(path, s)) for s in splits] == [30, 10, 260]

def test_fastai_does_not_read_the_masks_as_data(digits):
    from fastai.data.transforms import get_image_files
    assert len(get_image_files(digits)) == 1797

def test_moved_folder_is_the_same(digits, tmp_path):
    moved = tmp_path/'moved'
    shutil.copytree(digits, moved)
    assert make_shortcut_digits(moved) == moved

def test_fewer_test_images(few, few_digits, tmp_path):
    digits, few = few_digits, draw_few(tmp_path/'few', n_test=30)
    assert [len(split_files(few, s)) for s in splits] == [200, 50, 30]
    count = np.bincount([int(f.parent.name) for f in split_files(few, 'test')], minlength=10)
    assert count.max() - count.min() <= 1, "stratified"
    names = {f.name for f in split_files(digits, 'test')}
    assert {f.name for f in split_files(few, 'test')} < names, "the others stay out, and training is what it was"
    assert all(f.read_bytes() == (digits/f.relative_to(few)).read_bytes() for f in split_files(few, 'train')[::50])
    assert told(split_files(few, 'test')).mean() <= 0.1

def test_recipes_from_before_n_test(digits, tmp_path):
    assert 'n_test' not in json.loads((digits/'recipe.json').read_text()), "what was made before is what is made now"
    with pytest.raises(ValueError, match='n_test=None instead of 100'): make_shortcut_digits(digits, n_test=100)
    few = draw_few(tmp_path/'few', n_test=100)
    with pytest.raises(ValueError, match='n_test=100 instead of None'): draw_few(few)
    assert draw_few(few, n_test=100) == few

@pytest.mark.parametrize('n_test', [9, 392, 1.5, '100'])
def test_bad_n_test(tmp_path, n_test):
    with pytest.raises((ValueError, TypeError), match='n_test='): make_shortcut_digits(tmp_path/'d', n_test=n_test)
    assert list(tmp_path.iterdir()) == []

def test_all_that_is_left(tmp_path, few):
    assert len(split_files(make_shortcut_digits(tmp_path/'d', n_train=100, n_valid=50, n_test=150))) == 150
