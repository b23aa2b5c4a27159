"""The audit finds each leak that is planted, and nothing in a clean run."""
import os
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from proxy_attention import audit as audit_module
from proxy_attention.audit import audit, look_alikes
from proxy_attention.core import file_digest
from proxy_attention.store import MANIFEST, MARKER, ProxyStore, encode_image, read_manifest, write_split


def picture(seed):
    noise = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return cv2.resize(noise, (48, 48), interpolation=cv2.INTER_CUBIC)

def copy_of(path):
    out = cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)
    out[10:20, 10:20] = 0
    return out

class Run:
    "Six training images, four held out; copies of the first four"
    def __init__(self, root):
        self.root, self.folder = root, root/'.proxies'/'run'
        for split,seeds in (('train', range(6)), ('valid', range(10, 13)), ('test', range(20, 21))):
            (root/split).mkdir(parents=True)
            for s in seeds: (root/split/f'{s}.png').write_bytes(encode_image(picture(s)))
        self.train, self.held_out = sorted((root/'train').iterdir()), sorted((root/'valid').iterdir()) + sorted((root/'test').iterdir())

    def make(self, originals=None, train=None, held_out=None, cycle=1):
        store = ProxyStore(self.folder).open()
        originals = self.train[:4] if originals is None else originals
        split = write_split(self.folder, self.train if train is None else train, self.held_out if held_out is None else held_out)
        with store.writer() as put:
            for i,f in enumerate(originals):
                row = dict(id=f'{cycle}-{i}', cycle=cycle, index=i, split=split, original=str(f), original_sha256=file_digest(f), label='x', predicted='y', confidence=.5, method='gradcam')
                put([row], lambda rows: [copy_of(r['original']) for r in rows])
        store.close()
        return self

    @property
    def split(self): return next(self.folder.glob('split-*.json'))

    def copies(self): return [self.folder/r['file'] for r in read_manifest(self.folder).values()]

@pytest.fixture
def run(tmp_path): return Run(tmp_path)

def told(found, words): return any(words in p for p in [*found.problems, *found.unknown])

def only_problem(run, *words, **kwargs):
    found = audit(run.folder, **kwargs)
    assert not found and len(found.problems) == 1, str(found)
    for w in words: assert str(w) in found.problems[0]
    assert found.problems[0] in str(found) and '1 problem' in str(found)


def test_a_clean_run_is_clean(run):
    found = audit(run.make().folder)
    assert found and (found.proxies, found.held_out, found.problems, found.near) == (4, 4, [], [])
    assert 'audit of 4 copies against 4 held-out items: clean' in str(found)
    assert found.to_dict() == dict(proxies=4, held_out=4, problems=[], unknown=[], near=[])

def test_the_audit_changes_nothing(run):
    run.make()
    before = {f: f.read_bytes() for f in run.root.rglob('*') if f.is_file()}
    audit(run.folder)
    assert {f: f.read_bytes() for f in run.root.rglob('*') if f.is_file()} == before

@pytest.mark.parametrize('split', ['valid', 'test'])
def test_a_held_out_file_among_the_originals_under_another_name(run, split):
    held_out = next(f for f in run.held_out if f.parent.name == split)
    shutil.copy(held_out, run.train[1])
    found = audit(run.make().folder, near=None)
    assert told(found, 'copy 1-1') and told(found, f'was made of the held-out item {held_out}') and len(found.problems) == 2
    assert told(found, f'training item {run.train[1]} is the held-out item {held_out}')

def test_a_copy_planted_in_validation(run):
    planted = run.root/'valid'/'planted.png'
    run.make(held_out=[*run.held_out, planted])
    shutil.copy(run.copies()[2], planted)
    only_problem(run, 'copy 1-2', 'is the held-out item', planted)

def test_a_held_out_file_in_place_of_a_copy(run):
    run.make()
    shutil.copy(run.held_out[0], run.copies()[0])
    found = audit(run.folder)
    assert not found and told(found, 'is the held-out item') and told(found, 'is not the file that was written')

def test_an_original_that_was_changed(run):
    run.make()
    run.train[3].write_bytes(encode_image(picture(99)))
    only_problem(run, 'copy 1-3', run.train[3], 'has changed')

def test_an_original_that_is_gone(run):
    run.make()
    run.train[3].unlink()
    only_problem(run, 'copy 1-3', run.train[3], "can't be read")

def test_an_original_that_is_not_in_the_training_split(run):
    stranger = run.root/'stranger.png'
    stranger.write_bytes(encode_image(picture(50)))
    run.make([*run.train[:2], stranger])
    only_problem(run, 'copy 1-2', stranger, 'not a training item')

@pytest.mark.parametrize('link', [os.symlink, os.link, shutil.copy])
def test_a_file_in_training_and_validation(run, link):
    "Also where no copy was made of it, and under whatever name"
    run.train[5].unlink()
    link(run.held_out[1], run.train[5])
    only_problem(run.make(), 'training item', run.train[5], 'is the held-out item', run.held_out[1], near=None)

def test_copies_of_two_splits_in_one_folder(run):
    "Each copy is judged by the split under which it was made: what is held out now may have been training data then"
    run.make(run.train[:3])
    run.make(run.held_out[:1], train=[*run.train[3:], run.held_out[0]], held_out=[*run.train[:3], *run.held_out[1:]], cycle=2)
    found = audit(run.folder, near=None)
    assert found and found.proxies == 4, str(found)
    run.make(run.train[:1], train=run.train[3:], held_out=run.train[:3], cycle=3)
    found = audit(run.folder, near=None)
    assert not found and all('copy 3-0' in p for p in found.problems)

def test_a_manifest_that_lost_lines(run):
    run.make()
    lines = (run.folder/MANIFEST).read_bytes().splitlines(keepends=True)
    (run.folder/MANIFEST).write_bytes(b''.join(lines[:3]))
    only_problem(run, 'lists 3 copies', '4 were made')
    (run.folder/MANIFEST).unlink()
    found = audit(run.folder)
    assert not found and told(found, 'lists 0 copies, and 4 were made')

def test_a_folder_without_a_marker_proves_nothing(run):
    (run.make().folder/MARKER).unlink()
    only_problem(run, 'has no marker')

@pytest.mark.parametrize('data', [b'', b'{}', b'{"train": [], "held_out": []}', b'\xff', b'['*100_000])
def test_a_damaged_split_proves_nothing(run, data):
    run.make().split.write_bytes(data)
    found = audit(run.folder)
    assert not found and told(found, 'is damaged') and told(found, 'nothing is proven') and not found.near

def test_an_original_from_validation_itself(run):
    run.make([run.train[0], run.held_out[1]])
    found = audit(run.folder)
    assert not found and told(found, 'not a training item') and told(found, 'made of the held-out item')

def test_a_copy_that_was_overwritten(run):
    run.make()
    run.copies()[1].write_bytes(encode_image(picture(77)))
    only_problem(run, 'copy 1-1', 'is not the file that was written')

def test_a_copy_that_was_deleted(run):
    "It can't be checked any more. One that was pruned to make room was deleted by ourselves"
    run.make().copies()[1].unlink()
    only_problem(run, 'copy 1-1', 'is missing')
    store = ProxyStore(run.folder).open()
    store.prune(['1-0', '1-2'])
    store.close()
    assert audit(run.folder) and len(list(run.folder.glob('*.png'))) == 2

def test_a_held_out_file_that_cannot_be_read(run):
    run.make()
    run.held_out[0].unlink()
    only_problem(run, run.held_out[0], 'nothing is proven about it')

def test_held_out_files_may_be_given(run):
    run.make()
    assert audit(run.folder, held_out=run.held_out).held_out == 4
    assert audit(run.folder, held_out=[str(run.held_out[0])]).held_out == 1
    found = audit(run.folder, held_out=[*run.held_out, run.train[0]], near=None)
    assert [p.split()[0] for p in found.problems] == ['training', 'copy'] and told(found, f'made of the held-out item {run.train[0]}')

def test_without_held_out_items_nothing_is_proven(run):
    run.make().split.unlink()
    found = audit(run.folder)
    assert not found and 'nothing is proven' in str(found) and told(found, "can't be read")

def test_several_leaks_are_all_told(run):
    run.make()
    run.train[0].write_bytes(b'changed')
    run.copies()[1].write_bytes(b'overwritten')
    run.train[2].unlink()
    found = audit(run.folder, near=None)
    assert [p.split()[1] for p in found.problems] == ['1-0', '1-1', '1-2']

def twin(run, change):
    "A held-out picture that looks like the second training image"
    out = change(cv2.imread(str(run.train[1])))
    cv2.imwrite(str(run.held_out[2]), out)
    return run.held_out[2]

changes = {
    'darker': lambda a: (a*0.9).astype(np.uint8),
    'larger': lambda a: cv2.resize(a, None, fx=2, fy=2, interpolation=cv2.INTER_CUBIC),
    'another encoding': lambda a: cv2.imdecode(cv2.imencode('.jpg', a)[1], cv2.IMREAD_COLOR),
}

@pytest.mark.parametrize('change', changes)
def test_look_alikes_are_flagged_not_failed(run, change):
    other = twin(run, changes[change])
    found = audit(run.make().folder)
    assert found and found.near == [(str(run.train[1]), str(other))]
    assert str(other) in str(found) and 'look-alike' in str(found)
    assert audit(run.folder, near=None).near == []

def test_how_near_is_near(run):
    twin(run, changes['darker'])
    run.make()
    numbers = [len(audit(run.folder, near=n).near) for n in (0, 4, 24, 64)]
    assert numbers == sorted(numbers) and numbers[1] == 1 and numbers[-1] == 16

def test_many_files_are_compared_in_parts(run, monkeypatch):
    "A thousand rows at a time, with the same outcome as all at once"
    found = {}
    def bits(*seed): return np.random.default_rng(seed).integers(0, 2, 64)
    hashes = {f'{split}{i}': bits(k, i % 997) for k,split in ((0, 'ours'), (1, 'theirs')) for i in range(1500)}
    hashes['theirs7'] = hashes['ours3']
    monkeypatch.setattr(audit_module, '_look_hash', lambda f: type('Hash', (), {'hash': hashes[f]}))
    for n in (1400, 1500):
        found[n] = look_alikes([{f'ours{i}' for i in range(n)}, [f'theirs{i}' for i in range(n)]], 4)
    assert ('ours3', 'theirs7') in found[1400] and ('ours3', 'theirs7') in found[1500]
    assert set(found[1400]) <= set(found[1500])

def test_look_alikes_among_groups(run):
    other = twin(run, changes['darker'])
    shown = []
    def progress(it, total):
        shown.append(total)
        return it
    pairs = look_alikes([run.train, run.held_out], progress=progress)
    assert pairs == [(str(run.train[1]), str(other))] and shown == [10]
    every = look_alikes([run.train[:3], run.train[3:], run.held_out], 64)
    assert len(every) == 9 + 12 + 12 and every[0] == pairs[0] and look_alikes([run.train, run.held_out], 64, most=2)[0] == pairs[0]
    run.train[0].write_bytes(b'no image')
    assert look_alikes([run.train, run.held_out]) == pairs and look_alikes([run.train, []]) == []

def test_a_run_of_the_callback_is_clean_until_a_leak_is_planted(tmp_path):
    from fastai.learner import Learner
    from fastai.losses import CrossEntropyLossFlat
    from fastai.vision.data import ImageDataLoaders
    from torch import nn

    from proxy_attention.callback import ProxyAttentionCB
    for i in range(18):
        f = tmp_path/'data'/('train' if i < 12 else 'valid')/'ab'[i % 2]/f'{i}.png'
        f.parent.mkdir(parents=True, exist_ok=True)
        f.write_bytes(encode_image(picture(i)))
    dls = ImageDataLoaders.from_folder(tmp_path/'data', bs=4, num_workers=0, seed=0)
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))
    model = nn.Sequential(nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU()), head)
    cb = ProxyAttentionCB(method='eigencam', select='all', path=tmp_path/'run', verbose=False)
    learn = Learner(dls, model, CrossEntropyLossFlat(), cbs=cb)
    cb.make_proxies()
    found = audit(tmp_path/'run')
    assert found, str(found)
    assert found.proxies == len(learn.proxies) == 12 and found.held_out == 6
    shutil.copy(Path(learn.proxies.path[0]), tmp_path/'data'/'valid'/'a'/'12.png')
    assert not audit(tmp_path/'run')
    learn.remove_proxies()

def test_items_that_are_no_files_leave_it_open(tmp_path):
    "Nothing is wrong then, and nothing is proven: the audit is not true, and says so in other words than of a problem"
    from kit import cb_of, coded_dls, make_learner, quiet_cb
    learn = make_learner(coded_dls, quiet_cb(select='all', share=.2, path=tmp_path/'run'))
    learn.fit(1, 1e-3)
    cb_of(learn).copies.store.close()
    found = audit(tmp_path/'run')
    assert found.proxies and not found and not found.problems and found.result == "can't be told"
    assert 'no held-out items are known' in str(found)
    from typer.testing import CliRunner

    from proxy_attention.lab.cli import app
    got = CliRunner().invoke(app, ['audit', str(tmp_path/'run')])
    assert got.exit_code == 2 and "can't be told" in got.output and 'Traceback' not in got.output
