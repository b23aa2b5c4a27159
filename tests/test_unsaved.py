"""With `save=False` no copy is a file: each is made of its map when it is read, and everything else is as with files."""
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from kit import SIZES, cb_of, coded_dls, copy_bytes, files_in, footprint, make_learner, quiet_cb, same_weights, shapes_dls, weights
from proxy_attention import copies
from proxy_attention import gallery, learner  # noqa: F401  (patch Learner)
from proxy_attention.audit import audit
from proxy_attention.callback import ProxyAttentionCB
from proxy_attention.copies import ErasedOnLoad, eraser_from, maps_of
from proxy_attention.dataloaders import pixels
from proxy_attention.store import StoreError, decode_maps, encode_maps, purge, read_manifest

FILLS = ['black', 'noise', 'context', 'swap', 'blend']
untested = dict(scout='2 steps', scout_test=False, scout_merge='replace')

def one(make_dls, save=False, **conf):
    "A fit, and copies that are files or not"
    learn = make_learner(make_dls, quiet_cb(save=save, path=f'{save}_{len(files_in())}', **conf))
    learn.fit(1, 3e-2)
    return learn

def two(make_dls, **conf):
    "The same fit with files and without"
    return [one(make_dls, save, **conf) for save in (True, False)]

def copies_of(learn):
    "Pixels of all copies, as the training set gives them"
    ds = learn.dls.train.dataset
    return [pixels(ds[len(ds.originals) + k][0]) for k in range(len(ds.copies))]

@pytest.mark.parametrize('fill', FILLS)
def test_the_same_pixels_and_weights(shapes, fill):
    saved,unsaved = two(lambda: shapes_dls(shapes), select='all', share=.5, fill=fill)
    a,b = copies_of(saved), copies_of(unsaved)
    assert len(a) == len(b) == 13 and all(np.array_equal(x, y) for x,y in zip(a, b))
    assert not list(cb_of(unsaved).run_path.glob('*.png')) and len(list(cb_of(saved).run_path.glob('*.png'))) >= 13
    for learn in (saved, unsaved): learn.fit(1, 1e-2)
    assert same_weights(weights(saved.model), weights(unsaved.model))

def test_a_scouts_copies(shapes):
    "Also those that a second scout trains on"
    for conf in (untested, dict(scout='2 steps', probe=False)):
        saved,unsaved = two(lambda: shapes_dls(shapes), select=None, fill='context', **conf)
        assert same_weights(weights(saved.model), weights(unsaved.model))
        a,b = (footprint(x) for x in (saved, unsaved))
        assert a == b and len(saved.proxies) == len(unsaved.proxies)
    assert cb_of(saved).last_verdict == cb_of(unsaved).last_verdict is not None

@pytest.mark.parametrize('workers', [0, 1, 2])
def test_any_number_of_workers(shapes, workers):
    saved,unsaved = (make_learner(lambda: shapes_dls(shapes, num_workers=workers), quiet_cb(select='all', fill='swap', save=save, path=str(save))) for save in (True, False))
    seen = []
    for learn in (saved, unsaved):
        learn.fit(1, 1e-2)
        torch.manual_seed(0)
        learn.dls.train.rng.seed(0)
        seen.append(torch.cat([b[0].as_subclass(torch.Tensor) for b in learn.dls.train]))
    assert torch.equal(*seen) and len(seen[0]) == 48

def test_the_manifest_has_the_same_lines(shapes):
    saved,unsaved = two(lambda: shapes_dls(shapes), select='all', share=.5, fill='noise')
    a,b = (read_manifest(cb_of(x).run_path) for x in (saved, unsaved))
    assert list(a) == list(b)
    for x,y in zip(a.values(), b.values()):
        assert {k for k in x if x[k] != y[k]} <= {'file', 'sha256', 'bytes'} and y['file'].endswith('.npz')
    assert len({r['file'] for r in b.values()}) == 1, "a file of maps a cycle"
    columns = [c for c in saved.proxies if c != 'path']
    assert saved.proxies[columns].equals(unsaved.proxies[columns]) and unsaved.proxies['path'].isna().all()

def test_audit_and_gallery(shapes, capsys):
    learn = one(lambda: shapes_dls(shapes), select='all', share=.5, fill='context')
    found = audit(cb_of(learn).run_path)
    assert found and found.proxies == 13 and found.held_out == 9
    fig = learn.show_proxies(3, return_fig=True)
    drawn = fig.axes[2*3].get_images()[0].get_array()
    assert np.array_equal(drawn, copies_of(learn)[0])
    maps = cb_of(learn).run_path/cb_of(learn).copies.rows[0]['file']
    maps.write_bytes(maps.read_bytes()[:-1] + b'x')
    assert 'is not the file that was written' in str(audit(cb_of(learn).run_path))

@pytest.mark.parametrize('fill', ['noise', 'context'])
def test_resume(shapes, fill):
    "Another process makes the same copies of the maps in the folder"
    first = one(lambda: shapes_dls(shapes), select='all', share=.5, fill=fill)
    path,before = cb_of(first).run_path, copies_of(first)
    cb_of(first).copies.store.close()
    again = make_learner(lambda: shapes_dls(shapes), quiet_cb(select='all', fill=fill, save=False, path=path))
    ids = [r['id'] for r in cb_of(first).copies.rows]
    assert cb_of(again).resume(ids) == 13
    assert all(np.array_equal(x, y) for x,y in zip(before, copies_of(again)))
    assert again.show_proxies(2, return_fig=True) is not None
    again.fit(1, 1e-3)
    assert len(again.proxies) == 27

def test_resume_of_other_data(shapes, own_shapes):
    first = one(lambda: shapes_dls(shapes), select='all')
    cb_of(first).copies.store.close()
    again = make_learner(lambda: shapes_dls(own_shapes), quiet_cb(save=False, path=cb_of(first).run_path))
    with pytest.raises(ValueError, match='holds copies of other images'): cb_of(again).resume()

def test_maps_that_are_lost(shapes):
    "Their copies leave the training set, and it is said"
    learn = one(lambda: shapes_dls(shapes), select='all', share=.5)
    (cb_of(learn).run_path/cb_of(learn).copies.rows[0]['file']).unlink()
    with pytest.warns(UserWarning, match='13 of 13 copies .* are missing or damaged'): learn.fit(1, 1e-3)

def test_an_original_that_is_gone_in_an_epoch(own_shapes):
    "As with any damaged original: fastai's own error where the user's dataset raises it, and the fit goes on where only the donor is gone"
    learn = one(lambda: shapes_dls(own_shapes), select='all', share=.2, fill='context')
    ds = learn.dls.train.dataset
    lost = Path(cb_of(learn).copies.rows[0]['original'])
    maker = ds.copies[0][0]
    maker.eraser.donors.clear()
    data = lost.read_bytes()
    lost.unlink()
    with pytest.raises(OSError), pytest.warns(UserWarning, match='copy of item'): ds[len(ds.originals)]
    others = [pixels(ds[len(ds.originals) + k][0]) for k in range(1, len(ds.copies))]
    assert len(others) == 4
    lost.write_bytes(data)

def test_remove_and_purge(shapes):
    learn = one(lambda: shapes_dls(shapes), select='all')
    path,dls = cb_of(learn).run_path, cb_of(learn).prepared.dls
    learn.remove_proxies(purge=True)
    assert learn.dls is dls and not path.exists()
    learn = one(lambda: shapes_dls(shapes), select='all')
    path = cb_of(learn).run_path
    cb_of(learn).copies.store.close()
    assert purge(path) == 1 and not path.exists()

def test_room_on_disk(shapes):
    learn = make_learner(lambda: shapes_dls(shapes), quiet_cb(select='all', save=False, max_gb=1e-7))
    with pytest.warns(UserWarning, match='would grow beyond max_gb=1e-07'): learn.fit(1, 1e-3)
    assert not len(learn.proxies)

def test_rollback(shapes):
    learn = make_learner(lambda: shapes_dls(shapes), quiet_cb(select='all', share=.5, save=False))
    learn.fit(1, 1e-2)
    cb = cb_of(learn)
    kept, before = cb.copies.snapshot(), copies_of(learn)
    learn.fit(1, 1e-2)
    assert not all(np.array_equal(x, y) for x,y in zip(before, copies_of(learn)))
    cb.restore(kept)
    assert all(np.array_equal(x, y) for x,y in zip(before, copies_of(learn)))

def test_items_without_files():
    saved,unsaved = two(coded_dls, select='all', fill='context')
    assert all(np.array_equal(x, y) for x,y in zip(copies_of(saved), copies_of(unsaved)))

@pytest.mark.parametrize('accept', [True, False])
def test_acceptance(shapes, accept):
    saved,unsaved = two(lambda: shapes_dls(shapes), select='all', area=.3, accept=accept)
    assert copy_bytes(saved).keys() == set(unsaved.proxies['original']) and len(unsaved.proxies) == (27 if not accept else len(saved.proxies))

def test_less_on_disk(shapes):
    saved,unsaved = two(lambda: shapes_dls(shapes), select='all', fill='noise')
    size = lambda learn: sum(f.stat().st_size for f in cb_of(learn).run_path.iterdir() if f.suffix in ('.png', '.npz'))
    assert size(unsaved) < size(saved)/5

@pytest.mark.parametrize('fill', ['context', 'swap'])
def test_the_pool_of_donors(shapes, fill):
    "Its size changes how often a file is decoded, at most twice a copy, and nothing else"
    def reads(size):
        learn = make_learner(lambda: shapes_dls(shapes), quiet_cb(select='all', fill=fill, save=False, donor_pool=size))
        learn.fit(1, 1e-2)
        maker = learn.dls.train.dataset.copies[0][0]
        got, real = [], maker.eraser.source.read
        maker.eraser.source.read = lambda i, *args: got.append(i) or real(i, *args)
        maker.eraser.donors.clear()
        made = copies_of(learn)
        assert len(maker.eraser.donors) <= size
        return len(got), made
    (few,a), (many,b) = reads(1), reads(100)
    assert 27 < many < few <= 54 and all(np.array_equal(x, y) for x,y in zip(a, b))

@pytest.mark.parametrize('given,error,words', [(dict(save='no'), TypeError, "save='no'"), (dict(save=0), TypeError, 'save=0'), (dict(save=False, format='jpg'), ValueError, "format='jpg'"),
                                               (dict(donor_pool=0), ValueError, 'donor_pool=0'), (dict(donor_pool='all'), TypeError, "donor_pool='all'")], ids=str)
def test_bad_arguments(given, error, words):
    with pytest.raises(error) as e: ProxyAttentionCB(**given)
    assert words in str(e.value)

def test_an_eraser_can_be_pickled(shapes):
    "As loaders do where processes aren't forked"
    learn = one(lambda: shapes_dls(shapes), select='all', fill='context')
    maker = learn.dls.train.dataset.copies[0][0]
    again = pickle.loads(pickle.dumps(maker))
    assert np.array_equal(again(3), maker(3))

def test_few_grids_are_kept(shapes, monkeypatch):
    "One is as large as an image: with as many sizes as images they would be a second data set in memory"
    monkeypatch.setattr(copies, '_GRIDS', 2)
    learn = one(lambda: shapes_dls(shapes), select='all', fill='context')
    e = learn.dls.train.dataset.copies[0][0].eraser
    assert len(e.views) == len(SIZES) and len(e.grids) == 2 and all(v.shape == (3, 2) for v in e.views.values())

# -- the file of maps ---------------------------------------------------------------------------------------------------------------------------

@pytest.fixture(scope='module')
def maker(shapes, tmp_path_factory):
    "What makes the copies of a fit, for reading only"
    learn = make_learner(lambda: shapes_dls(shapes), quiet_cb(select='all', save=False, path=tmp_path_factory.mktemp('maps')/'run'))
    learn.fit(1, 1e-2)
    return learn.dls.train.dataset.copies[0][0]

def test_maps_and_back(maker):
    e = maker.eraser
    arrays,about = decode_maps(encode_maps(*maps_of(e)))
    again = eraser_from(arrays, about, e.source, e.seen.dl, e.kind)
    assert np.array_equal(ErasedOnLoad(again, 1)(5), maker(5))
    assert arrays['maps0'].dtype == np.float16 and again.views.keys() == e.views.keys()

bad_about = [dict(n=1), dict(area='x'), dict(area=2), dict(threshold=.5), dict(fill='gold'), dict(seed='x'), dict(scans=2), dict(scans=None), dict(views=5), dict(views=[[1, 2, 'x']]),
             dict(views=[[1, 2, [[1, 2]]*3, 4]]), dict(views=[[32, 32, [[float('inf'), 0], [0, 1], [0, 0]]]])]

@pytest.mark.parametrize('change', bad_about, ids=str)
def test_what_is_said_of_maps(maker, change):
    e = maker.eraser
    arrays,about = maps_of(e)
    with pytest.raises(StoreError, match='something else than this library writes'): eraser_from(arrays, about | change, e.source, e.seen.dl, e.kind)

@pytest.mark.parametrize('change', [dict(maps0=None), dict(maps0=np.ones((27, 8))), dict(maps0=np.ones((26, 8, 8), np.float16)), dict(maps0=np.full((27, 8, 8), np.nan, np.float16)),
                                    dict(idxs0=np.zeros(27)), dict(idxs0=np.arange(27) - 1), dict(flat0=np.zeros(27)), dict(flat0=np.zeros(3, bool))], ids=lambda c: str(c)[:24])
def test_arrays_of_maps(maker, change):
    e = maker.eraser
    arrays,about = maps_of(e)
    arrays = {k: v for k,v in (arrays | change).items() if v is not None}
    with pytest.raises(StoreError, match='something else than this library writes'): eraser_from(arrays, about, e.source, e.seen.dl, e.kind)
