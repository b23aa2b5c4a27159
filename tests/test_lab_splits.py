"""Splits: everything in one place only, the same for the same seed; and an audit that finds each leak that is planted."""
import json
import os
import shutil
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from fastai.learner import Learner
from fastai.losses import CrossEntropyLossFlat
from hypothesis import given, settings
from hypothesis import strategies as st
from kit import tiny_model

from proxy_attention.audit import look_alikes
from proxy_attention.callback import ProxyAttentionCB
from proxy_attention.core import digest
from proxy_attention.lab.data import splits as splits_module
from proxy_attention.lab.data.items import Items
from proxy_attention.lab.data.loaders import make_dls
from proxy_attention.lab.data.splits import SplitError, apportion, file_hashes, make_splits, shown, some, split_names, splits_of
from proxy_attention.lab.runs.audit import audit_run
from proxy_attention.lab.data.split_file import load_split, save_split, split_digest
from proxy_attention.store import encode_image, read_manifest

pytestmark = pytest.mark.filterwarnings('ignore')


def numbered(labels, groups=None, fixed=None):
    "Items without files"
    return SimpleNamespace(root=Path('nowhere'), files=[Path('nowhere')/f'{i}.png' for i in range(len(labels))], labels=list(labels), groups=groups, fixed=fixed)

@pytest.fixture
def fake_hashes(monkeypatch): monkeypatch.setattr(splits_module, 'file_hashes', lambda files: [str(f) for f in files])

def lists(splits): return {k: v.tolist() for k,v in splits.items()}

def of(items, idx): return Counter(items.labels[i] for i in idx)


# -- shares ---------------------------------------------------------------------------------------------------------------------------------------

@given(st.lists(st.integers(0, 60), min_size=1, max_size=12), st.integers(0, 300))
def test_apportion(counts, total):
    got = apportion(counts, total)
    room = np.clip(np.array(counts) - 1, 0, None)
    assert (got >= 0).all() and (got <= room).all(), "the last of a class stays behind"
    if not total:
        assert not got.any()
        return
    assert (got >= np.minimum(room, 1)).all(), "every class that can spare one gives one"
    able = int((room > 0).sum())
    assert got.sum() == min(max(total, able), room.sum())
    if sum(counts) and able <= total <= 0.5*sum(counts) and min(counts) >= 10: assert np.abs(got - np.array(counts)*total/sum(counts)).max() <= 1.5

def test_apportion_without_anything_to_spare():
    assert apportion([2, 2], 4, spare=0).tolist() == [2, 2] and apportion([2, 2], 4).tolist() == [1, 1]

def test_apportion_by_hand():
    "Exactly 0.2 of each rare class, 3.1 and 4.1 of the others: one of each rare class is too much for them, and the largest excess goes first"
    assert apportion([2, 2, 2, 2, 30, 40], 8).tolist() == [1, 1, 1, 1, 1, 3] and apportion([2, 2, 2, 2, 30, 40], 6).tolist() == [1]*6
    assert apportion([10, 20, 30], 7).tolist() == [1, 2, 4] and apportion([1, 0, 9], 3).tolist() == [0, 0, 3]
    with np.errstate(all='raise'): assert apportion([0, 0], 3).tolist() == [0, 0]

@settings(max_examples=60, deadline=None)
@given(labels=st.lists(st.sampled_from('aaaabbc'), min_size=12, max_size=120), valid=st.floats(0.05, 0.4), test=st.floats(0.05, 0.4), seed=st.integers(0, 99))
def test_every_item_once_and_stratified(labels, valid, test, seed):
    items = numbered(labels)
    count = Counter(labels)
    if min(count.values()) < 3: return
    with pytest.MonkeyPatch.context() as m:
        m.setattr(splits_module, 'file_hashes', lambda files: [str(f) for f in files])
        splits = make_splits(items, valid, test, seed)
    assert list(splits) == list(split_names) and sorted(np.concatenate(list(splits.values()))) == list(range(len(labels)))
    for name,share in (('valid', valid), ('test', test)):
        got = of(items, splits[name])
        assert set(got) == set(count), "every class is in every split"
        for c in count: assert abs(got[c] - share*count[c]) <= 2

def test_seed_and_nothing_else(fake_hashes):
    items = numbered('abc'*40)
    first = lists(make_splits(items, seed=1))
    np.random.seed(7)
    assert lists(make_splits(items, seed=1)) == first and lists(make_splits(items, seed=2)) != first
    assert all(v == sorted(v) for v in first.values())

def test_shares_and_numbers(fake_hashes):
    items = numbered('ab'*50)
    def sizes(**kw): return [len(v) for v in make_splits(items, **kw).values()]
    assert sizes() == [60, 20, 20] and sizes(valid=0.1, test=0.3) == [60, 10, 30] and sizes(test=0) == [80, 20, 0]
    assert sizes(n_valid=7) == [73, 7, 20] and sizes(n_test=5) == [75, 20, 5] and sizes(n_train=11) == [11, 20, 20] and sizes(n_test=0) == [80, 20, 0]
    assert sizes(per_class=4) == [8, 20, 20] and sizes(per_class=4, n_train=6) == [6, 20, 20] and sizes(per_class=3, n_train=60) == [6, 20, 20]
    assert sizes(per_class=1) == [2, 20, 20] and [len(v) for v in make_splits(numbered('aaa'), n_valid=1, n_test=1).values()] == [1, 1, 1]

def test_splits_of_a_configuration(fake_hashes):
    items, conf = numbered('ab'*50), dict(valid=0.3, test=0.25, seed=3, per_class=9, n_train=16, n_valid=21, n_test=12)
    whole, counted = splits_of(items, SimpleNamespace(**conf)), splits_of(items, SimpleNamespace(**conf), read=False)
    assert lists(whole) == lists(counted) == lists(make_splits(items, **conf)) and [len(v) for v in whole.values()] == [16, 21, 12]
    assert whole.sha256 == [str(f) for f in items.files] and counted.sha256 is None

def test_a_smaller_training_set_is_a_part_of_the_larger(fake_hashes):
    items = numbered('aab'*40)
    whole = make_splits(items)
    for kw in (dict(per_class=5), dict(per_class=12), dict(n_train=20)):
        few = make_splits(items, **kw)
        assert set(few['train']) < set(whole['train'])
        assert (few['valid'] == whole['valid']).all() and (few['test'] == whole['test']).all(), "what is left out of training goes nowhere else"
    assert set(make_splits(items, per_class=5)['train']) < set(make_splits(items, per_class=12)['train'])
    assert of(items, make_splits(items, n_train=30)['train']) == {'a': 20, 'b': 10}


# -- groups ---------------------------------------------------------------------------------------------------------------------------------------

@settings(max_examples=60, deadline=None)
@given(sizes=st.lists(st.integers(1, 12), min_size=10, max_size=40), seed=st.integers(0, 99))
def test_no_group_in_two_splits(sizes, seed):
    rng = np.random.default_rng(seed)
    groups = [f'g{i}' for i,n in enumerate(sizes) for _ in range(n)]
    items = numbered(['ab'[k] for k in rng.integers(0, 2, len(groups))], groups)
    with pytest.MonkeyPatch.context() as m:
        m.setattr(splits_module, 'file_hashes', lambda files: [str(f) for f in files])
        try: splits = make_splits(items, seed=seed)
        except SplitError: return # too few groups
    where = {k: {groups[i] for i in idx} for k,idx in splits.items()}
    assert not (where['train'] & where['valid'] or where['train'] & where['test'] or where['valid'] & where['test'])
    assert sorted(np.concatenate(list(splits.values()))) == list(range(len(groups)))
    for name in ('valid', 'test'): assert abs(len(splits[name]) - 0.2*len(groups)) <= 2*max(sizes) # a group too much or too few for each of the two classes

def test_groups_are_stratified_as_far_as_they_go(fake_hashes):
    groups = [f'person{i//10}' for i in range(400)]
    items = numbered([str(i % 10) for i in range(400)], groups)
    splits = make_splits(items, 0.2, 0.2)
    assert [len(v) for v in splits.values()] == [240, 80, 80]
    for idx in splits.values(): assert len(set(of(items, idx).values())) == 1
    assert lists(make_splits(items, seed=3)) != lists(splits) and lists(make_splits(items)) == lists(splits)

def test_a_rare_class_is_in_every_split(fake_hashes):
    "Class b is in three groups of thirty only"
    groups = [f'g{i//5:02}' for i in range(150)]
    items = numbered(['b' if i//5 in (4, 17, 25) else 'a' for i in range(150)], groups)
    for seed in range(8):
        for idx in make_splits(items, seed=seed).values(): assert of(items, idx)['b'] == 5

def test_a_class_of_one_image_stays_in_training(fake_hashes):
    for seed in range(4): assert of(numbered('a'*20 + 'b'), make_splits(numbered('a'*20 + 'b'), seed=seed)['train'])['b'] == 1

def test_a_class_in_one_group_stays_in_training(fake_hashes):
    items = numbered(['b' if i//5 == 3 else 'a' for i in range(100)], [f'g{i//5}' for i in range(100)])
    for seed in range(8): assert of(items, make_splits(items, seed=seed)['train'])['b'] == 5

def chosen(table, want): return np.array(table)[splits_module._choose_groups(np.array(table), np.array(want), np.random.default_rng(0))].sum(0).tolist()

def test_the_last_group_of_a_class_is_left():
    assert chosen([[2], [2], [2]], [3]) == chosen([[2], [2], [2]], [2.8]) == [2] and chosen([[1], [1]], [0]) == [0], "nothing is taken that brings no gain"
    assert chosen([[1], [1], [1]], [1.6]) == [2], "but a small one is one"
    assert chosen([[1], [1]], [2]) == [1] and chosen([[1, 0], [1, 1], [1, 0]], [3, 1]) == [2, 0]

def test_groups_too_large_for_what_is_wanted():
    "Each class gets one all the same, by what the groups taken before hold: the third would hold too much of the first class"
    assert chosen([[10, 0], [10, 0], [10, 10], [0, 11], [0, 11]], [1, 1]) == [10, 11]
    assert chosen([[10, 0, 0]]*2 + [[0, 19, 0]]*2 + [[0, 10, 12]] + [[0, 0, 13]]*2, [1, 9, 1]) == [10, 19, 13]


# -- splits that a data set comes with --------------------------------------------------------------------------------------------------------------

def test_a_fixed_test_stays_the_test(fake_hashes):
    items = numbered('ab'*60, fixed=dict(train=np.arange(100), test=np.arange(100, 120)))
    splits = make_splits(items, valid=0.1)
    assert splits['test'].tolist() == list(range(100, 120)) and len(splits['valid']) == 10 and len(splits['train']) == 90
    assert make_splits(items, valid=0.1, test=0.5, seed=4)['test'].tolist() == list(range(100, 120))
    assert [len(v) for v in make_splits(items, n_train=20, n_valid=4, n_test=6).values()] == [20, 4, 6]

def test_fewer_of_a_fixed_test_hold_its_only_image_of_a_class(fake_hashes):
    items = numbered('ab'*10 + 'a'*9 + 'b', fixed=dict(train=np.arange(20), test=np.arange(20, 30)))
    assert of(items, make_splits(items, n_test=4)['test']) == dict(a=3, b=1)

def test_all_three_fixed(fake_hashes):
    fixed = dict(train=np.arange(60), valid=np.arange(60, 80), test=np.arange(80, 90))
    items = numbered('ab'*45, fixed=fixed)
    assert lists(make_splits(items, 0.3, 0.3, seed=9)) == lists(fixed)
    assert [len(v) for v in make_splits(items, per_class=7).values()] == [14, 20, 10]

def test_a_fixed_validation_and_no_test(fake_hashes):
    items = numbered('ab'*50, fixed=dict(train=np.arange(80), valid=np.arange(80, 100)))
    splits = make_splits(items, test=0.25)
    assert [len(v) for v in splits.values()] == [60, 20, 20] and splits['valid'].tolist() == list(range(80, 100))

def test_groups_that_cross_fixed_splits(fake_hashes):
    items = numbered('ab'*20, [f'g{i//7}' for i in range(40)], dict(train=np.arange(30), test=np.arange(30, 40)))
    with pytest.raises(SplitError, match='train and test share 1 groups: g4'): make_splits(items)

def test_groups_of_fixed_splits_stay_together(fake_hashes):
    fixed = dict(train=np.arange(30), valid=np.arange(30, 35), test=np.arange(35, 40))
    items = numbered('ab'*20, [f'g{i//5}' for i in range(40)], fixed)
    assert lists(make_splits(items)) == lists(fixed)
    items.groups[31] = 'g7'
    with pytest.raises(SplitError, match='valid and test share 1 groups: g7'): make_splits(items)


# -- errors ---------------------------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('kw, says', [
    (dict(valid=0.6, test=0.5), 'test=0.5, valid=0.6: that leaves 0 of 40 images'), (dict(n_valid=30, n_test=10), 'n_test=10, n_valid=30: that leaves 0'),
    (dict(n_train=30), 'n_train=30: that leaves 24 of 40')])
def test_bad_numbers(fake_hashes, kw, says):
    with pytest.raises(ValueError, match=says): make_splits(numbered('ab'*20), **kw)

def test_the_first_few_names():
    assert (some('abcde'), some('abcd'), some('abc'), some([1, 2], n=1)) == ('a, b, c and 2 more', 'a, b, c and 1 more', 'a, b, c', '1 and 1 more')

def test_too_few_groups(fake_hashes):
    with pytest.raises(SplitError, match='nothing is left for (valid|test): 20 images of 2 classes in 2 groups are too few. A class needs three groups'):
        make_splits(numbered('ab'*10, ['x']*10 + ['y']*10))
    with pytest.raises(SplitError, match='nothing is left for valid: 2 images of 2 classes are too few. A class needs three images'): make_splits(numbered('ab'))
    with pytest.raises(SplitError, match='nothing is left for test'): make_splits(numbered('abab', fixed=dict(train=np.arange(2), valid=np.arange(2, 4))))

def test_a_class_that_training_lacks(fake_hashes):
    with pytest.raises(SplitError, match='class c: .* none in training'): make_splits(numbered('ab'*10 + 'cc', fixed=dict(train=np.arange(20), test=np.arange(20, 22))))

def test_fixed_splits_must_hold_something(fake_hashes):
    with pytest.raises(SplitError, match="own split 'test' holds no images"): make_splits(numbered('abab', fixed=dict(train=np.arange(4), test=[])))
    with pytest.raises(SplitError, match="own split 'exam'"): make_splits(numbered('abab', fixed=dict(train=np.arange(2), exam=np.arange(2, 4))))


# -- on disk --------------------------------------------------------------------------------------------------------------------------------------

def picture(seed):
    noise = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return cv2.resize(noise, (32, 32), interpolation=cv2.INTER_CUBIC)

def make_items(root, n=30):
    "Pictures of two classes"
    files = [root/'data'/'ab'[i % 2]/f'{i:02}.png' for i in range(n)]
    for i,f in enumerate(files):
        f.parent.mkdir(parents=True, exist_ok=True)
        f.write_bytes(encode_image(picture(i)))
    return Items(root/'data', files, [f.parent.name for f in files])

@pytest.fixture
def items(tmp_path): return make_items(tmp_path)

@pytest.fixture
def saved(items, tmp_path):
    splits = make_splits(items, per_class=8)
    save_split(tmp_path/'run'/'split.json', items, splits, seed=0)
    return tmp_path/'run'/'split.json', items, splits

def test_hashes(items, tmp_path):
    assert file_hashes(items.files) == [digest(f.read_bytes()) for f in items.files] and file_hashes([tmp_path/'gone', items.files[0]])[0] is None

@pytest.mark.parametrize('terminal', [False, True])
@pytest.mark.parametrize('notebook', [False, True])
def test_a_bar_where_somebody_looks(monkeypatch, terminal, notebook):
    files = ['a', 'b']
    monkeypatch.setattr(splits_module, 'progress_bar', lambda it, total, leave: (it, total, leave))
    monkeypatch.setattr(splits_module, 'sys', SimpleNamespace(stdout=SimpleNamespace(isatty=lambda: terminal), modules=dict(ipykernel=None) if notebook else {}))
    assert shown(files, 2) == ((files, 2, False) if terminal or notebook else files)

def test_there_and_back(saved):
    file,items,splits = saved
    again = load_split(file, items)
    assert lists(again) == lists(splits) and again.sha256 == splits.sha256
    written = json.loads(file.read_text())
    assert written['root'] == str(items.root) and written['classes'] == ['a', 'b'] and written['seed'] == 0
    assert written['test']['files'] == [items.names[i] for i in splits['test']] and len(written['left_out']['files']) == 30 - sum(map(len, splits.values()))
    assert written['train']['sha256'][0] == digest(items.files[splits['train'][0]].read_bytes())

def test_the_order_of_files_and_the_place_of_the_folder_do_not_matter(saved, tmp_path):
    file,items,splits = saved
    moved = tmp_path/'moved'
    shutil.copytree(items.root, moved)
    back = Items(moved, [moved/n for n in reversed(items.names)], items.labels[::-1])
    assert [sorted(back.names[i] for i in idx) for idx in load_split(file, back).values()] == [sorted(items.names[i] for i in idx) for idx in splits.values()]

def test_what_changed_is_named(saved):
    file,items,splits = saved
    def says(text, items=items):
        with pytest.raises(SplitError, match=text) as e: load_split(file, items)
        assert str(file) in str(e.value)
    name = items.names[splits['train'][2]]
    before = (items.root/name).read_bytes()
    (items.root/name).write_bytes(encode_image(picture(99)))
    says(f'1 file with changed content: {name}')
    (items.root/name).unlink()
    says(f'1 file with changed content: {name}')
    (items.root/name).write_bytes(before)
    fewer = Items(items.root, items.files[2:], items.labels[2:])
    says('2 files missing: .*a/00.png', fewer)
    says('1 file of another class than before: a/00.png .a, now b', Items(items.root, items.files, ['b', *items.labels[1:]]))
    (items.root/'c').mkdir()
    (items.root/'c'/'new.png').write_bytes(encode_image(picture(50)))
    more = Items(items.root, [*items.files, items.root/'c'/'new.png'], [*items.labels, 'c'])
    says('1 file new: c/new.png; new class: c', more)
    assert load_split(file, items)

def test_a_split_file_is_written_whole_or_not_at_all(saved, monkeypatch):
    file,items,splits = saved
    before = file.read_bytes()
    monkeypatch.setattr(os, 'replace', lambda *a: (_ for _ in ()).throw(OSError(28, 'No space left on device')))
    with pytest.raises(OSError): save_split(file, items, splits, seed=1)
    assert file.read_bytes() == before and [p.name for p in file.parent.iterdir()] == ['split.json']

def test_images_that_cannot_be_read_are_not_split(items, tmp_path):
    splits = make_splits(items)
    splits.sha256 = None
    items.files[4].unlink()
    with pytest.raises(SplitError, match="can't be read: a/04.png"): save_split(tmp_path/'split.json', items, splits)
    assert not (tmp_path/'split.json').exists()

@pytest.mark.parametrize('text, says', [('', "can't be read"), ('[1]', 'not a split file'), ('{"schema": 1}', 'not a split file')])
def test_other_files_are_not_split_files(saved, text, says):
    file,items,_ = saved
    file.write_text(text)
    with pytest.raises(SplitError, match=says): load_split(file, items)
    assert not audit_run(file.parent) and 'Nothing is proven' in str(audit_run(file.parent))

def test_a_newer_split_file(saved):
    file,items,_ = saved
    file.write_text(json.dumps(json.loads(file.read_text()) | {'schema': 99, 'version': '9.9'}))
    with pytest.raises(SplitError, match='newer version, 9.9'): load_split(file, items)

def test_no_split_file(items, tmp_path):
    with pytest.raises(SplitError, match='there is no split file'): load_split(tmp_path/'split.json', items)

@pytest.mark.parametrize('groups', [None, [f'g{i//2}' for i in range(30)]])
def test_twins_never_land_on_two_sides(items, groups):
    "The same picture under other names"
    items.groups = groups
    for i in range(0, 20, 4): shutil.copy(items.files[i], items.files[i+6])
    for seed in range(6):
        splits = make_splits(items, seed=seed)
        inside = {k: {splits.sha256[i] for i in idx} for k,idx in splits.items()}
        assert not (inside['train'] & inside['valid'] or inside['train'] & inside['test'] or inside['valid'] & inside['test'])
        every = np.concatenate([*splits.values(), splits.doubles])
        assert sorted(every) == list(range(30))

def test_of_twins_the_test_keeps_its_own(items):
    shutil.copy(items.files[2], items.files[28])
    items.fixed = dict(train=np.arange(20), valid=np.arange(20, 25), test=np.arange(25, 30))
    splits = make_splits(items)
    assert splits.doubles == [2] and 28 in splits['test'] and 2 not in splits['train'] and len(splits['train']) == 19


# -- the audit ------------------------------------------------------------------------------------------------------------------------------------

class Run:
    "A run's folder after Stage 2"
    def __init__(self, root):
        self.folder, self.items = root/'run', make_items(root)
        self.splits = make_splits(self.items)
        self.save()
        self.make(self.splits)
    def save(self): save_split(self.folder/'split.json', self.items, self.splits)
    def make(self, splits):
        conf = SimpleNamespace(size=32, resize='crop', augment='none', bs=4, num_workers=0)
        cb = ProxyAttentionCB(method='eigencam', select='all', path=self.folder/'proxies', verbose=False)
        learn = Learner(make_dls(self.items, splits, conf, device='cpu'), tiny_model(2), CrossEntropyLossFlat(), cbs=cb)
        cb.make_proxies()
        learn.remove_proxies()
    def file(self, split, k=0): return self.items.files[self.splits[split][k]]
    @property
    def copies(self): return [self.folder/'proxies'/r['file'] for r in read_manifest(self.folder/'proxies').values()]

@pytest.fixture(scope='module')
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp('made')
    Run(root)
    return root

@pytest.fixture
def run(made):
    "The same run, to be broken: put back afterwards"
    keep = {f: f.read_bytes() for f in made.rglob('*') if f.is_file()}
    out = Run.__new__(Run)
    out.folder, out.items = made/'run', make_items(made)
    out.splits = load_split(out.folder/'split.json', out.items)
    yield out
    for f in [f for f in made.rglob('*') if f.is_file() and f not in keep]: f.unlink()
    for f,data in keep.items():
        f.parent.mkdir(parents=True, exist_ok=True)
        f.write_bytes(data)

def told(found, *words): return any(all(str(w) in p for w in words) for p in [*found.problems, *found.unknown])

def test_a_clean_run(run):
    found = audit_run(run.folder)
    assert found and found.problems == [] and found.near == []
    assert (found.train, found.valid, found.test, found.held_out, found.proxies) == (18, 6, 6, 12, len(run.copies)) and found.proxies >= 5
    assert str(found) == f"audit of 18 training, 6 validation and 6 test images and {found.proxies} copies: clean"
    assert found.to_dict()['train'] == 18

def test_without_copies(run):
    shutil.rmtree(run.folder/'proxies')
    found = audit_run(run.folder)
    assert found and found.proxies == 0

@pytest.mark.parametrize('a, b', [('train', 'valid'), ('train', 'test'), ('valid', 'test')])
def test_a_picture_under_another_name(run, a, b):
    shutil.copy(run.file(a), run.file(b))
    run.splits.sha256 = None # as if the split had been made without looking
    run.save()
    found = audit_run(run.folder)
    assert told(found, run.file(b), f"({b}) is the same picture as", run.file(a), f"({a})")

def test_the_same_file_twice_in_the_list(run):
    split = json.loads((run.folder/'split.json').read_text())
    for k in ('files', 'labels', 'sha256'): split['test'][k].append(split['train'][k][0])
    (run.folder/'split.json').write_text(json.dumps(split))
    assert told(audit_run(run.folder), run.file('train'), 'is the same picture as')

def test_a_split_made_anew_between_the_stages(run):
    run.splits = make_splits(run.items, seed=1)
    run.save()
    found = audit_run(run.folder)
    assert not found and told(found, 'the split was made anew between training and making copies', 'were training images then and are not now')
    assert told(found, 'was made of the held-out item')

def test_a_copy_in_validation(run):
    shutil.copy(run.copies[0], run.file('valid'))
    run.splits.sha256 = None
    run.save()
    assert told(audit_run(run.folder), 'copy 1-', 'is the held-out item', run.file('valid'))

def test_a_copy_in_validation_whose_file_is_gone_since(run):
    shutil.move(run.copies[0], run.file('valid'))
    run.splits.sha256 = None
    run.save()
    assert told(audit_run(run.folder), 'copy 1-', 'is the held-out item', run.file('valid'))

def test_a_copy_of_a_test_image(run):
    manifest = run.folder/'proxies'/'manifest.jsonl'
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    rows[0] |= dict(original=str(run.file('test')), original_sha256=digest(run.file('test').read_bytes()))
    manifest.write_text(''.join(json.dumps(r) + '\n' for r in rows))
    found = audit_run(run.folder)
    assert told(found, 'was made of the held-out item', run.file('test')) and told(found, run.file('test'), 'not a training item')

def test_a_changed_file(run):
    run.file('train', 3).write_bytes(encode_image(picture(88)))
    assert told(audit_run(run.folder), run.file('train', 3), 'has changed since the split was made')
    run.file('test', 1).write_bytes(encode_image(picture(89)))
    assert told(audit_run(run.folder), run.file('test', 1), 'has changed since the split was made')

def test_a_missing_file(run):
    run.file('valid').unlink()
    found = audit_run(run.folder)
    assert [p for p in found.problems if str(run.file('valid')) in p] == [f"{run.file('valid')} can't be read: nothing is proven about it"]

def test_a_leak_that_was_covered_up(run):
    "The test image was overwritten since, but the split remembers what it was"
    split = json.loads((run.folder/'split.json').read_text())
    split['test']['sha256'][0] = split['train']['sha256'][0]
    (run.folder/'split.json').write_text(json.dumps(split))
    assert told(audit_run(run.folder), 'is the same picture as')

@pytest.mark.parametrize('text, says', [(None, "can't be read"), ('{', 'is damaged')])
def test_the_split_of_the_copies(run, text, says):
    file, = (run.folder/'proxies').glob('split-*.json')
    file.unlink() if text is None else file.write_text(text)
    assert told(audit_run(run.folder), says)

def test_a_lost_manifest(run):
    (run.folder/'proxies'/'manifest.jsonl').unlink()
    assert told(audit_run(run.folder), 'the manifest lists 0 copies')

def test_a_damaged_manifest(run):
    with (run.folder/'proxies'/'manifest.jsonl').open('a') as f: f.write('nonsense\n')
    assert told(audit_run(run.folder), "can't be read")

def test_without_anything_held_out(run):
    run.splits['valid'] = run.splits['test'] = np.array([], int)
    run.save()
    assert told(audit_run(run.folder), 'holds no validation or test images')

def test_look_alikes_are_flagged_and_not_failed(run):
    darker = (cv2.imread(str(run.file('train', 1)))*0.9).astype(np.uint8)
    cv2.imwrite(str(run.file('test', 2)), darker)
    run.splits.sha256 = None
    run.save()
    found = audit_run(run.folder)
    assert found and found.near == [(str(run.file('train', 1)), str(run.file('test', 2)))] and 'look-alike across the split' in str(found)
    assert audit_run(run.folder, near=None).near == []
    assert len(audit_run(run.folder, near=64).near) == 18*12 + 6*6 and len(audit_run(run.folder, near=64, most=5).near) == 5
    assert audit_run(run.folder, near=64, most=1).near == found.near, "the nearest comes first"
    assert 'and 232 more look-alikes' in str(audit_run(run.folder, near=64))

def test_thousands_are_compared_in_parts(monkeypatch):
    rng = np.random.default_rng(0)
    bits = {f'{i:05}': rng.integers(0, 2, (8, 8)).astype(bool) for i in range(5500)}
    bits['02345'] = bits['05000'].copy()
    bits['04999'] = bits['05400'].copy()
    bits['04999'][0, :3] ^= True
    monkeypatch.setattr('proxy_attention.audit._look_hash', lambda f: SimpleNamespace(hash=bits[f]))
    names = sorted(bits)
    assert look_alikes([names[:5000], names[5000:]], 3) == [('02345', '05000'), ('04999', '05400')]
    assert look_alikes([names[:5000], names[5000:]], 2) == [('02345', '05000')]


def test_split_digest_knows_content_and_not_places(tmp_path):
    def made(root, seed=0, blue=1):
        for c in 'ab':
            (root/c).mkdir(parents=True)
            for k in range(6): (root/c/f'{k}.png').write_bytes(bytes([ord(c), k, blue]))
        files = sorted(root.rglob('*.png'))
        items = Items(root, files, [f.parent.name for f in files])
        save_split(root/'split.json', items, make_splits(items, valid=.3, test=.3, seed=seed), seed=seed)
        return split_digest(root/'split.json')
    first = made(tmp_path/'here')
    assert first == made(tmp_path/'there') and first != made(tmp_path/'other', seed=1) and first != made(tmp_path/'else', blue=2)
