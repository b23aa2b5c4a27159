"""What is held out is never copied, under whatever name it comes; and a damaged copy costs a copy, not a fit."""
import gc
import os
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
from fastai.vision.data import ImageDataLoaders
from kit import Squish, cb_of, make_learner, quiet_cb, shapes_dls
from PIL import Image

from proxy_attention.audit import audit
from proxy_attention.store import StoreError, read_manifest

LOW = 1e-6


# -- the firewall ------------------------------------------------------------------------------------------------------------------------------------

def disguised(root, held_out, how):
    "A path that is another name of a held-out file"
    other = root/'green'/f'{how}.png'
    if how == 'dots': return held_out.parent/'..'/held_out.parent.name/held_out.name
    {'symbolic link': os.symlink, 'hard link': os.link, 'byte copy': shutil.copy}[how](held_out, other)
    return other

def lists_dls(train, valid, **kwargs):
    files = [*train, *valid]
    df = dict(name=[str(f) for f in files], label=[Path(f).resolve().parent.name for f in files], is_valid=[False]*len(train) + [True]*len(valid))
    import pandas as pd
    return ImageDataLoaders.from_df(pd.DataFrame(df), path='/', valid_col='is_valid', bs=8, num_workers=0, item_tfms=Squish(), **kwargs)

def split_files(root):
    files = sorted(root.rglob('*.png'))
    return files[::2], files[1::2]

@pytest.mark.parametrize('how', ['dots', 'symbolic link', 'hard link', 'byte copy'])
def test_a_held_out_image_is_not_copied_under_another_name(own_shapes, how):
    train,valid = split_files(own_shapes)
    other = disguised(own_shapes, valid[3], how)
    learn = make_learner(lists_dls([*train, other], valid), quiet_cb(select='all', path='run'))
    with pytest.warns(UserWarning, match='1 training items are validation or test items too'): learn.fit(1, LOW)
    assert len(learn.proxies) == len(train) and str(other) not in set(learn.proxies['original'])
    found = audit('run', near=None)
    assert not found and len(found.problems) == 1 and 'training item' in found.problems[0] and 'is the held-out item' in found.problems[0]

def test_images_that_only_look_alike_are_copied(own_shapes):
    train,valid = split_files(own_shapes)
    other = own_shapes/'green'/'again.png'
    with Image.open(valid[3]) as im: im.save(other, compress_level=1) # the same pixels in other bytes: for a person to judge
    learn = make_learner(lists_dls([*train, other], valid), quiet_cb(select='all'))
    learn.fit(1, LOW)
    assert len(learn.proxies) == len(train) + 1


# -- splits ------------------------------------------------------------------------------------------------------------------------------------------

def test_new_dataloaders_get_a_split_of_their_own(own_shapes):
    "A leak under the second split is found, although the folder was made under the first"
    train,valid = split_files(own_shapes)
    learn = make_learner(lists_dls(train, valid), quiet_cb(select='all', path='run'))
    learn.fit(1, LOW)
    assert audit('run', near=None)
    learn.dls = lists_dls(valid, train)
    with pytest.warns(UserWarning, match='replaced'): learn.fit(1, LOW)
    assert audit('run', near=None), "a clean split is no alarm"
    assert len(list(Path('run').glob('split-*.json'))) == 2
    shutil.copy(valid[0], own_shapes/'blue'/'leak.png')
    learn.dls = lists_dls(train, [*valid[1:], own_shapes/'blue'/'leak.png'])
    with pytest.warns(UserWarning, match='replaced'): learn.fit(1, LOW)
    assert audit('run', near=None)
    rows = read_manifest('run')
    leak = next(r for r in rows.values() if r['original'].endswith(valid[0].name))
    cb_of(learn).copies.store.relist([leak], cb_of(learn).prepared.split) # as if it were still trained on
    found = audit('run', near=None)
    assert not found and all(leak['id'] in p for p in found.problems)

def test_a_lost_split_is_written_again(shapes):
    learn = make_learner(lambda: shapes_dls(shapes), quiet_cb(select='all', path='run'))
    learn.fit(1, LOW)
    for f in Path('run').glob('split-*.json'): f.unlink()
    learn.fit(1, LOW)
    assert audit('run', near=None)

def test_copies_taken_up_are_listed_under_the_split_of_today(own_shapes):
    train,valid = split_files(own_shapes)
    learn = make_learner(lists_dls(train, valid), quiet_cb(select='all', path='run'))
    learn.fit(1, LOW)
    learn.remove_proxies()
    again = make_learner(lists_dls(train, valid[:-1]), quiet_cb(select='all', path='run'))
    again.proxy_attention_cb.resume()
    assert {r['split'] for r in read_manifest('run').values()} == {cb_of(again).prepared.split} and audit('run', near=None)


# -- folders -----------------------------------------------------------------------------------------------------------------------------------------

def test_a_foreign_folder_is_refused_before_training(shapes):
    Path('audio').mkdir()
    Path('audio/manifest.jsonl').write_text('{"audio_filepath": "a.wav"}\n')
    Path('audio/split.json').write_text('{}')
    learn = make_learner(lambda: shapes_dls(shapes), quiet_cb(path='audio'))
    before = [p.clone() for p in learn.model.parameters()]
    with pytest.raises(StoreError, match='other files in it'): learn.fit(1, LOW)
    learn.remove_proxies(purge=True)
    assert all((a == b).all() for a,b in zip(before, learn.model.parameters()))
    assert {f.name: f.read_text() for f in Path('audio').iterdir()} == {'manifest.jsonl': '{"audio_filepath": "a.wav"}\n', 'split.json': '{}'}

def test_purging_one_learner_leaves_the_others(shapes):
    one,two = (make_learner(lambda: shapes_dls(shapes), quiet_cb(select='all', path=p)) for p in ('all', 'all/two'))
    for learn in (one, two): learn.fit(1, LOW)
    two.proxy_attention_cb.copies.store.close()
    one.remove_proxies(purge=True)
    assert len(list(Path('all/two').glob('*.png'))) == 27 and not list(Path('all').glob('*.png'))

def test_a_symbolic_link_as_path(shapes):
    Path('mine').mkdir()
    Path('mine/photo.png').write_bytes(b'mine')
    Path('link').symlink_to('mine')
    learn = make_learner(lambda: shapes_dls(shapes), quiet_cb(path='link'))
    with pytest.raises(StoreError, match='other files in it'): learn.fit(1, LOW)
    learn.remove_proxies(purge=True)
    assert [f.name for f in Path('mine').iterdir()] == ['photo.png']


# -- damage ------------------------------------------------------------------------------------------------------------------------------------------

def damage(file, how):
    data = Path(file).read_bytes()
    if how == 'deleted': return Path(file).unlink()
    Path(file).write_bytes({'zeros': bytes(len(data)), 'a flipped bit': data[:60] + bytes([data[60] ^ 8]) + data[61:], 'cut': data[:40]}[how])

@pytest.mark.parametrize('how', ['zeros', 'a flipped bit', 'cut', 'deleted'])
def test_damage_between_fits(shapes, how):
    learn = make_learner(lambda: shapes_dls(shapes), quiet_cb(select='all', keep='all'))
    learn.fit(1, LOW)
    damage(learn.proxies.path[4], how)
    with pytest.warns(UserWarning, match='1 of 27 copies .* missing or damaged'): learn.fit(1, LOW)
    assert len(learn.proxies) == 53

@pytest.mark.parametrize('how, workers', [('zeros', 0), ('cut', 0), ('deleted', 0), ('cut', 2)])
def test_damage_in_an_epoch(shapes, how, workers):
    "The original is trained on in the copy's place; said once, with its name"
    from fastai.callback.core import Callback
    class Harm(Callback):
        order = 95 # after the copies have been checked
        def before_train(self):
            if self.epoch == 0: damage(self.learn.proxies.path[4], how)
    learn = make_learner(lambda: shapes_dls(shapes, num_workers=workers), quiet_cb(select='all'))
    learn.fit(1, LOW)
    victim,ds = learn.proxies.path[4], learn.dls.train_ds
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter('always')
        learn.fit(3, LOW, cbs=Harm())
    if workers == 0: assert [str(victim) in str(w.message) for w in told if "can't be read any more" in str(w.message)] == [True]
    assert ds.lost.sum() == 1 and ds.lost[4] == 1 and len(learn.recorder.values) == 3

def test_a_lost_copy_gives_its_original(shapes):
    learn = make_learner(lambda: shapes_dls(shapes), quiet_cb(select='all', merge='replace'))
    learn.fit(1, LOW)
    ds = learn.dls.train_ds
    before = np.asarray(ds[3][0])
    damage(learn.proxies.path[3], 'zeros')
    with pytest.warns(UserWarning, match="can't be read any more"): img,y = ds[3]
    original,y0 = ds.base[ds.origin(3)]
    assert (np.asarray(img) == np.asarray(original)).all() and y == y0 and not (before == np.asarray(img)).all()

def test_a_broken_original_is_not_blamed_on_its_copy(own_shapes):
    learn = make_learner(lambda: shapes_dls(own_shapes), quiet_cb(select='all'))
    learn.fit(1, LOW)
    ds = learn.dls.train_ds
    ds.source.targets = lambda i: (_ for _ in ()).throw(ValueError('a target that fails'))
    with pytest.raises(ValueError, match='a target that fails'): ds[len(ds.originals)]


# -- names and descriptors ---------------------------------------------------------------------------------------------------------------------------

@pytest.mark.skipif(os.name == 'nt', reason="Windows has no such names")
def test_a_file_name_that_is_not_utf8(own_shapes):
    odd = os.fsencode(own_shapes/'green') + b'/caf\xe9.png'
    try: shutil.copy(os.fsencode(next((own_shapes/'green').iterdir())), odd)
    except OSError: pytest.skip("this file system refuses such names")
    Image.fromarray(np.full((30, 30, 3), 7, np.uint8)).save(open(odd, 'wb'), 'png')
    learn = make_learner(lambda: shapes_dls(own_shapes, seed=1), quiet_cb(select='all', path='run'))
    learn.fit(2, LOW)
    assert len(learn.proxies) == len(learn.dls.train_ds)//2 and audit('run', near=None)

@pytest.mark.skipif(not Path('/proc/self/fd').exists(), reason="needs /proc")
def test_no_file_descriptor_a_cycle(shapes):
    learn = make_learner(lambda: shapes_dls(shapes), quiet_cb(select='all', keep='all'))
    counts = []
    for _ in range(5):
        learn.fit(1, LOW)
        gc.collect()
        counts.append(len(os.listdir('/proc/self/fd')))
    assert counts[-1] <= counts[0] + 1, counts
