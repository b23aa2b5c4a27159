"""A million items: what is kept of each is a few bytes, and what is done for each doesn't grow with their number. Counts, no clocks."""
import gc
import sys
from array import array
from pathlib import Path
from types import FunctionType, MethodType, ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from hypothesis import given, settings
from hypothesis import strategies as st
from kit import CLASSES, SIDE, cb_of, coded_dls, make_learner, quiet_cb, shapes_dls, to_float
from PIL import Image

from proxy_attention import audit as audit_module
from proxy_attention import manifest as manifest_module
from proxy_attention.audit import audit
from proxy_attention.compact import IntMap
from proxy_attention.copies import Eraser
from proxy_attention.dataloaders import CopyTable, ItemFiles, ProxyDataset, Source, pixels
from proxy_attention.manifest import Lines, StoreError, read_manifest

MOST = 120 # Bytes that may be kept of an item, beyond the user's own list and the maps

class Drawn:
    "Items that are drawn when they are asked for"
    def __init__(self, n): self.n = n
    def __len__(self): return self.n
    def __getitem__(self, i):
        img = torch.zeros(3, SIDE, SIDE, dtype=torch.uint8)
        img[i % 3, i % 20:i % 20 + 9, 3:12] = 100 + i % 99
        return img, i % 3

def drawn_dls(n):
    return DataLoaders(DataLoader(Drawn(n), bs=64, shuffle=True, after_batch=to_float), DataLoader(Drawn(9), bs=9, after_batch=to_float))

def size_of(*roots, but=()):
    "Bytes of all that the roots hold, once each; code, networks and `but` are not gone into"
    seen, todo, total = {id(o) for o in but}, list(roots), 0
    while todo:
        o = todo.pop()
        if id(o) in seen or isinstance(o, (type, ModuleType, FunctionType, MethodType, torch.nn.Module)): continue
        seen.add(id(o))
        if isinstance(o, np.ndarray):
            if o.base is not None: todo.append(o.base)
            total += o.nbytes if o.base is None else 0
        elif torch.is_tensor(o):
            if o.untyped_storage().data_ptr() not in seen: total += o.untyped_storage().nbytes()
            seen.add(o.untyped_storage().data_ptr())
        else:
            total += sys.getsizeof(o)
            if not isinstance(o, (str, bytes, array)): todo += gc.get_referents(o)
    return total

def kept(learn):
    "Bytes that the library keeps beyond the user's DataLoaders and the maps"
    cb, dls = cb_of(learn), cb_of(learn).prepared.dls
    user = [cb, learn, dls, *dls.loaders, *(dl.dataset for dl in dls.loaders)]
    for dl in dls.loaders:
        for part in vars(dl.dataset).values(): user.append(part) # the user's own list
    maps = sum(e.seen.maps.nbytes for e in cb.copies.erasers.values())
    return size_of(cb.prepared, cb.copies, learn.dls.train.dataset, vars(learn.dls).get('proxy_rows'), but=user) - maps

def made(dls, **conf):
    learn = make_learner(dls, quiet_cb(select='all', **conf))
    cb_of(learn).make_proxies()
    return learn


# -- memory ---------------------------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('conf', [dict(save=False, fill='swap'), dict(save=False, merge='replace'), dict(save=True)], ids=str)
def test_bytes_kept_of_an_item(conf):
    few,many = (kept(made(lambda n=n: drawn_dls(n), path=str(n), **conf)) for n in (300, 900))
    assert 8 < (many - few)/600 < MOST

def test_bytes_kept_of_an_item_that_is_a_file(tmp_path):
    "No list of paths: they are told when they are asked for"
    real = [tmp_path/c/'0.png' for c in CLASSES]
    for k,f in enumerate(real):
        f.parent.mkdir()
        Image.fromarray(pixels(Drawn(9)[k][0])).save(f)
    def linked(n):
        "As many names of three files, each a folder a class"
        root = tmp_path/f'set{n}'
        for c in CLASSES: (root/c).mkdir(parents=True)
        for k in range(n): (root/CLASSES[k % 3]/f'{k}.png').symlink_to(real[k % 3])
        return root
    found = []
    for n in (200, 800):
        root = linked(n)
        learn = make_learner(lambda root=root: shapes_dls(root, bs=64), quiet_cb(select='all', save=False, path=tmp_path/f'run{n}'))
        cb_of(learn).prepare() # all would be held out too, by their content
        found.append(kept(learn)/len(learn.dls.train_ds))
    assert found[1] < MOST and len(list(cb_of(learn).prepared.files)) == 600

def test_the_loader_of_a_scan_keeps_no_list():
    "Its indices as Python numbers would take 36 bytes each"
    learn = made(lambda: drawn_dls(70))
    assert '_DataLoader__idxs' not in vars(cb_of(learn).copies.erasers[1].seen.dl)

def test_files_are_told_when_asked_for(shapes):
    source = Source(shapes_dls(shapes).train.dataset)
    files = ItemFiles(source, 5)
    assert files and list(files) == [str(source.path(i)) for i in range(5)] == list(files) and list(ItemFiles(source, 5, absolute=True)) == [str(Path(f).absolute()) for f in files]
    assert not ItemFiles(Source(coded_dls().train.dataset), 5) and list(ItemFiles(Source(coded_dls().train.dataset), 5)) == []


# -- work -----------------------------------------------------------------------------------------------------------------------------------------

def reads_of(n, monkeypatch):
    "How many lines of the manifest a step reads, and how many files an audit digests"
    lines, digested = [], []
    real, real_digest = manifest_module.row_at, audit_module.file_digest
    with monkeypatch.context() as m:
        m.setattr(manifest_module, 'row_at', lambda *args: lines.append(0) or real(*args))
        m.setattr(audit_module, 'file_digest', lambda f: digested.append(0) or real_digest(f))
        learn = made(lambda: drawn_dls(n), save=False, path=f'reads{n}')
        cb_of(learn).prepare()
        learn.proxies, audit(cb_of(learn).run_path)
    return len(lines), len(digested)

def test_reads_grow_with_the_items_only(monkeypatch):
    (few,one), (many,same) = (reads_of(n, monkeypatch) for n in (70, 140))
    assert many - few == 70*(few//70) and few < 6*70 and one == same == 1, "the maps of all copies are digested once"

class Lots:
    "Random numbers, of which few may be drawn at a time"
    def __init__(self, seed): self.rng, self.drawn = np.random.default_rng(seed), 0
    def integers(self, low, high):
        self.drawn += 1
        return self.rng.integers(low, high)
    def choice(self, n, size, replace):
        assert isinstance(n, int)
        self.drawn += size
        return self.rng.choice(n, size, replace=replace)

@pytest.mark.parametrize('apart,fill,most', [(False, 'context', 1), (False, 'swap', 1), (True, 'context', 16), (True, 'swap', 16)])
@pytest.mark.parametrize('flat', [False, True])
def test_a_donor_costs_the_same_in_a_large_set(apart, fill, most, flat):
    n = 200_000
    scan = SimpleNamespace(idxs=np.arange(n), maps=torch.rand(1, 4, 4).expand(n, 4, 4), flat=np.arange(n) % 5 == 0 if flat else np.zeros(n, bool), dl=None)
    scan.maps.half = lambda: scan.maps # the same for all: no memory
    source = SimpleNamespace(read=lambda i, kind: (np.full((4, 4), i % 250, np.uint8), ''))
    eraser = Eraser(source, scan, None, n, area=0.25, fill=fill, apart=apart)
    found = set()
    for i in range(0, n, n//50):
        rng = Lots(i)
        k,px = eraser.other(i, rng)
        assert k != i and 0 <= k < n and rng.drawn == most and px[0, 0] == k % 250
        assert not (flat and (fill == 'swap' or apart) and k % 5 == 0), "its map says nothing"
        found.add(k)
    assert len(found) > 45

@settings(deadline=None, max_examples=40, derandomize=True)
@given(st.integers(0, 2**32), st.integers(0, 60), st.integers(0, 60), st.sampled_from([0, 1, 4, 9, 15, 16, 40, 64]))
def test_near_pairs_are_those_of_all_pairs(seed, n, m, near):
    rng = np.random.default_rng(seed)
    def hashes(k): # some near one of three
        flips = [sum(2**int(b) for b in rng.choice(64, rng.integers(0, 20), replace=False)) for _ in range(k)]
        return np.array([(int(rng.integers(3))*0x5555_1234_8888_9999 ^ f) % 2**64 for f in flips], np.uint64)
    a,b = hashes(n), hashes(m)
    found = audit_module._near_pairs(a, b, near)
    every = [(i, j, (int(x) ^ int(y)).bit_count()) for i,x in enumerate(a) for j,y in enumerate(b)]
    assert [tuple(p) for p in found.tolist()] == [p for p in every if p[2] <= near]

def test_few_pairs_are_compared(monkeypatch):
    rng, compared = np.random.default_rng(0), []
    real = audit_module._n_differ
    monkeypatch.setattr(audit_module, '_n_differ', lambda a, b: compared.append(len(a)) or real(a, b))
    a,b = (rng.integers(0, 2**64, n, dtype=np.uint64) for n in (20_000, 5_000))
    audit_module._near_pairs(a, b, 4)
    assert sum(compared) < len(a)*len(b)/500


# -- the same outcome -----------------------------------------------------------------------------------------------------------------------------

def test_tables_and_lists_give_the_same_items(shapes):
    learn = made(lambda: shapes_dls(shapes), keep='all', fill='noise', repeat=2)
    cb = cb_of(learn)
    cb.save = False
    cb.make_proxies() # copies that are files, and copies that are none
    ds = learn.dls.train.dataset
    assert isinstance(ds.copies, CopyTable) and len(ds.copies) == 2*54 == 2*len(learn.proxies)
    plain = ProxyDataset(ds.base, list(ds.originals), list(ds.copies))
    for k in range(len(ds.originals), len(ds), 7): assert np.array_equal(pixels(ds[k][0]), pixels(plain[k][0])) and ds[k][1] == plain[k][1]
    every = np.arange(len(ds))
    assert ds.origins(every).tolist() == plain.origins(every).tolist() == [ds.origin(i) for i in every]
    assert {str(f) for f,_,_ in ds.copies[:54] if not callable(f)} == set(learn.proxies['path'].dropna()) and len(ds.copies[::2]) == 54
    with pytest.raises(IndexError): ds.copies[108]

def test_rows_stay_what_they_were(shapes):
    "A snapshot of the live copies names lines, and a line never changes"
    learn = made(lambda: shapes_dls(shapes), path='run')
    cb = cb_of(learn)
    before, table = list(cb.copies.rows), cb.copies.rows
    cb.review({before[3]['id']: 'drop', before[4]['id']: 'keep'})
    assert list(table) == before and len(cb.copies.rows) == 26 and cb.copies.rows[3]['review'] == 'keep' and 'review' not in before[4]
    assert isinstance(table, Lines) and table[3:5] == before[3:5] and table + table[:1] == before + before[:1] and table != before[1:]

def test_a_manifest_that_is_gone(shapes):
    learn = made(lambda: shapes_dls(shapes), path='run')
    Path('run/manifest.jsonl').unlink()
    with pytest.raises(StoreError, match="can't be read any more"): len(learn.proxies)
    with pytest.warns(UserWarning, match='27 of 27 copies in .* are missing or damaged'): cb_of(learn).prepare()
    assert len(learn.proxies) == 0 and len(learn.dls.train_ds) == 27

def test_a_manifest_as_a_mapping(shapes):
    learn = made(lambda: shapes_dls(shapes), path='run', save=False)
    rows = {r['id']: r for r in cb_of(learn).copies.rows}
    known = read_manifest('run')
    assert known == rows == dict(known) == dict(cb_of(learn).copies.store.rows) and list(known) == list(rows) and '9-9' not in known and 7 not in known
    assert known.lines(list(rows)[:2]) == list(rows.values())[:2] and known.live.all() and not known.saved.any() and len(known.files_of_maps()) == 1
    with pytest.raises(KeyError): known['9-9']

@settings(deadline=None, max_examples=20, derandomize=True)
@given(st.lists(st.tuples(st.integers(0, 900), st.integers(0, 2**31 - 1)), max_size=3000))
def test_int_map(pairs):
    numbers, known = IntMap(), {}
    for key,number in pairs: numbers[key] = known[key] = number
    assert {k: numbers.get(k) for k in known} == known and numbers.get(901) is None and sorted(numbers) == sorted(known.values()) and bool(numbers) == bool(known)
