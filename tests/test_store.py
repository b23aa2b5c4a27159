"""Copies on disk: named by content, whole or not there, listed once, whatever happens while they are written."""
import errno
import gc
import json
import os
import signal
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy_attention import store as store_module
from proxy_attention.core import digest
from proxy_attention.files import write_atomic
from proxy_attention.store import (MANIFEST, MARKER, SCHEMA, ProxyStore, StoreError, decode_image, encode_image, formats, purge, purge_run,
                                   read_manifest, read_marker, read_split, write_split)

quick = settings(deadline=None, max_examples=40, derandomize=True)
needs_fork = pytest.mark.skipif(not hasattr(os, 'fork'), reason="this system can't fork")


def img(i, shape=(12, 10, 3)): return np.random.default_rng(i).integers(0, 256, shape, dtype=np.uint8)

def row(i, cycle=1): return dict(id=f'{cycle}-{i}', cycle=cycle, index=i, original=None, label='x', predicted='y', confidence=0.5, method='gradcam')

def make(rows): return [img(r['index']) for r in rows]

def write(store, indices, cycle=1, make=make, at_a_time=3):
    "Put copies of these items into the store, a few at a time"
    with store.writer() as put:
        for i in range(0, len(indices), at_a_time): put([row(k, cycle) for k in indices[i:i+at_a_time]], make)
    return put.rows

def filled(path, n=6, **kwargs):
    store = ProxyStore(path, **kwargs).open()
    write(store, range(n))
    store.close()
    return path

def lines(path): return (Path(path)/MANIFEST).read_text().splitlines()

def assert_sound(path):
    "Each line of the manifest names a whole file, no id is there twice, and no file lies around half written"
    rows = [json.loads(line) for line in lines(path)]
    assert len({r['id'] for r in rows}) == len(rows)
    for r in rows:
        data = (Path(path)/r['file']).read_bytes()
        assert len(data) == r['bytes'] and digest(data) == r['sha256'] and decode_image(data) is not None
    return rows

def contents(path): return {f.name: f.read_bytes() for f in Path(path).iterdir() if not f.name.startswith('.') and f.name not in (MANIFEST, MARKER)}

def assert_as_uninterrupted(path, other):
    assert_sound(path)
    assert read_manifest(path) == read_manifest(other)
    assert contents(path) == contents(other)


# -- images --------------------------------------------------------------------------------------------------------------------------------

@st.composite
def images(draw):
    shape = (draw(st.integers(1, 16)), draw(st.integers(1, 16)), *draw(st.sampled_from([(), (3,), (4,)])))
    return np.random.default_rng(draw(st.integers(0, 9999))).integers(0, 256, shape, dtype=np.uint8)

@quick
@given(images())
def test_png_keeps_every_pixel(image):
    kept = image.copy()
    back = decode_image(encode_image(image))
    assert back.dtype == np.uint8 and back.shape == image.shape and (back == image).all() and (image == kept).all()

@quick
@given(images())
def test_arrays_that_are_not_contiguous(image): assert (decode_image(encode_image(image[::-1, ::-1])) == image[::-1, ::-1]).all()

@pytest.mark.parametrize('channels', [(), (3,)])
def test_jpeg_changes_them_a_little(channels):
    image = cv2.GaussianBlur(img(0, (64, 48, *channels)), (0, 0), 4)
    back = decode_image(encode_image(image, 'jpg'))
    assert back.shape == image.shape and abs(back.astype(int) - image).max() < 12 and encode_image(image, 'jpg')[:2] == b'\xff\xd8'

def test_jpeg_has_no_transparency():
    image = cv2.GaussianBlur(img(0, (64, 48, 4)), (0, 0), 4)
    back = decode_image(encode_image(image, 'jpg'))
    assert back.shape == (64, 48, 3) and abs(back.astype(int) - image[..., :3]).max() < 12

@pytest.mark.parametrize('data', [b'', b'no image', b'\x89PNG\r\n\x1a\n', bytes(1000)])
def test_no_image(data): assert decode_image(data) is None

def test_unknown_format():
    with pytest.raises(ValueError, match="format='gif'"): encode_image(img(0), 'gif')
    with pytest.raises(ValueError, match="format='PNG'.*'png'"): ProxyStore('x', format='PNG')


# -- writing -------------------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('format', formats)
def test_written_and_read_back(tmp_path, format):
    store = ProxyStore(tmp_path/'run', format=format).open()
    rows = write(store, range(7))
    assert [r['id'] for r in rows] == [f'1-{i}' for i in range(7)] == [r['id'] for r in assert_sound(store.path)]
    assert read_manifest(store.path) == store.rows == {r['id']: r for r in rows}
    for i,r in enumerate(rows):
        assert r['file'].endswith('.'+format) and r['schema'] == SCHEMA and r['version'] and store.whole(r)
        if format == 'png': assert (decode_image(store.file(r).read_bytes()) == img(i)).all()
    assert store.bytes == sum(f.stat().st_size for f in store.path.glob('*.'+format))

@quick
@given(st.lists(st.integers(0, 5), max_size=12), st.integers(1, 4))
def test_named_by_content(indices, at_a_time):
    with tempfile.TemporaryDirectory() as path:
        store = ProxyStore(path).open()
        try:
            with store.writer() as put:
                named = [{**row(i), 'id': str(n)} for n,i in enumerate(indices)]
                for n in range(0, len(indices), at_a_time): put(named[n:n+at_a_time], make)
            assert len({r['file'] for r in put.rows}) == len(list(Path(path).glob('*.png'))) == len(set(indices))
            assert [r['index'] for r in put.rows] == indices # in the order in which they were put
            for r in put.rows: assert (decode_image(store.file(r).read_bytes()) == img(r['index'])).all()
        finally: store.close()

def test_the_shape_is_part_of_the_content(tmp_path):
    store = ProxyStore(tmp_path).open()
    flat = img(0, (4, 6))
    with store.writer() as put: put([row(0), row(1), row(2)], lambda rows: [flat, flat.reshape(6, 4), flat.reshape(2, 4, 3)])
    assert len({r['file'] for r in put.rows}) == 3

def test_names_are_the_same_everywhere(tmp_path): # in another folder, process or year
    assert contents(filled(tmp_path/'a')) == contents(filled(tmp_path/'b'))

def test_none_is_no_copy(tmp_path):
    store = ProxyStore(tmp_path).open()
    rows = write(store, range(6), make=lambda rows: [img(r['index']) if r['index'] % 2 else None for r in rows])
    assert [r['index'] for r in rows] == [1, 3, 5] == [r['index'] for r in assert_sound(tmp_path)]

def test_what_make_fills_in_is_in_the_manifest(tmp_path):
    def noted(rows):
        for r in rows: r['erased'] = r['index']/10
        return make(rows)
    write(ProxyStore(tmp_path).open(), range(4), make=noted)
    assert [r['erased'] for r in assert_sound(tmp_path)] == [0, 0.1, 0.2, 0.3]

@pytest.mark.parametrize('label', ['../x', '/etc/passwd', 'a/b', 'ü\n"\\', '', '.', 'x'*500])
def test_labels_that_look_like_paths(tmp_path, label):
    store = ProxyStore(tmp_path/'deep'/'run').open()
    with store.writer() as put: put([{**row(0), 'label': label, 'predicted': label}], make)
    store.close()
    assert [f.relative_to(tmp_path/'deep'/'run').parts[0] for f in tmp_path.rglob('*.png')] == [put.rows[0]['file']]
    assert read_manifest(tmp_path/'deep'/'run')['1-0']['label'] == label and len(lines(tmp_path/'deep'/'run')) == 1

def test_a_second_cycle_adds_lines(tmp_path):
    store = ProxyStore(tmp_path).open()
    first, second = write(store, range(4)), write(store, range(2, 6), cycle=2)
    assert [r['id'] for r in assert_sound(tmp_path)] == [r['id'] for r in first + second]
    assert len(list(tmp_path.glob('*.png'))) == 6 # the same pictures are there once

def test_an_id_written_again_replaces_its_row(tmp_path):
    store = ProxyStore(tmp_path).open()
    write(store, range(3))
    with store.writer() as put: put([row(1)], lambda rows: [img(77)])
    assert read_manifest(tmp_path) == store.rows and read_manifest(tmp_path)['1-1']['file'] == put.rows[0]['file']
    assert list(read_manifest(tmp_path)) == ['1-0', '1-1', '1-2']

def test_memory_stays_flat(tmp_path):
    "Not all pictures are made before the first is written: a caller who is faster than the disk has to wait"
    store, ahead, begun = ProxyStore(tmp_path).open(), [], []
    def slow(rows):
        begun.append(1)
        time.sleep(0.002)
        return make(rows)
    with store.writer(threads=2) as put:
        for i in range(60):
            put([row(i)], slow)
            ahead.append(i + 1 - len(put.rows))
    assert len(put.rows) == 60 == len(begun) and max(ahead) <= 12

def test_an_exception_of_make_comes_out(tmp_path):
    def broken(rows):
        if rows[0]['index'] >= 6: raise ZeroDivisionError('in make')
        return make(rows)
    store = ProxyStore(tmp_path/'run').open()
    with pytest.raises(ZeroDivisionError, match='in make'): write(store, range(30), make=broken)
    assert_sound(store.path)
    write(store, range(30))
    assert_as_uninterrupted(store.path, filled(tmp_path/'other', 30))

@pytest.mark.parametrize('stop', [KeyboardInterrupt, ZeroDivisionError])
def test_an_exception_of_the_caller(tmp_path, stop):
    store = ProxyStore(tmp_path/'run').open()
    with pytest.raises(stop):
        with store.writer() as put:
            for i in range(20): put([row(i)], make)
            raise stop
    assert_sound(store.path)
    write(store, range(20))
    assert_as_uninterrupted(store.path, filled(tmp_path/'other', 20))

def test_a_picture_that_cannot_be_read_again_is_told_by_name(tmp_path):
    def gone(rows): return [Path(tmp_path/'original_7.png').read_bytes()]
    with pytest.raises((StoreError, OSError), match='original_7.png'): write(ProxyStore(tmp_path/'run').open(), [0], make=gone)

def test_write_atomic(tmp_path, monkeypatch):
    write_atomic(tmp_path/'f', b'one')
    write_atomic(tmp_path/'f', b'two')
    assert (tmp_path/'f').read_bytes() == b'two'
    def broken(*args): raise OSError(errno.ENOSPC, 'No space left on device')
    monkeypatch.setattr(store_module.os, 'replace', broken)
    with pytest.raises(OSError, match='No space'): write_atomic(tmp_path/'f', b'three')
    assert (tmp_path/'f').read_bytes() == b'two' and [f.name for f in tmp_path.iterdir()] == ['f']


# -- resuming ------------------------------------------------------------------------------------------------------------------------------

def test_a_rerun_does_not_write_again(tmp_path):
    filled(tmp_path)
    before, text = {f: f.stat().st_mtime_ns for f in tmp_path.glob('*.png')}, (tmp_path/MANIFEST).read_bytes()
    filled(tmp_path)
    assert {f: f.stat().st_mtime_ns for f in tmp_path.glob('*.png')} == before and (tmp_path/MANIFEST).read_bytes() == text

@pytest.mark.parametrize('harm', ['deleted', 'cut short', 'emptied'])
def test_a_lost_copy_is_made_again(tmp_path, harm):
    filled(tmp_path/'run')
    victim = tmp_path/'run'/read_manifest(tmp_path/'run')['1-3']['file']
    if harm == 'deleted': victim.unlink()
    else: victim.write_bytes(victim.read_bytes()[:20 if harm == 'cut short' else 0])
    store = ProxyStore(tmp_path/'run').open()
    assert [store.whole(r) for r in store.rows.values()] == [True]*3 + [False] + [True]*2
    write(store, range(6))
    assert_as_uninterrupted(tmp_path/'run', filled(tmp_path/'other'))

def kill_when(child, ready):
    "Fork, run `child` there, and kill it with SIGKILL as soon as `ready()`"
    pid = os.fork()
    if pid == 0:
        try: child()
        finally: os._exit(0)
    try:
        end = time.monotonic() + 20
        while not ready() and time.monotonic() < end and os.waitpid(pid, os.WNOHANG) == (0, 0): time.sleep(0.0005)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)

@needs_fork
def test_killed_while_writing(tmp_path):
    def slow(rows):
        time.sleep(0.008)
        return make(rows)
    n, rng, run = 240, np.random.default_rng(0), tmp_path/'run'
    def work():
        store = ProxyStore(run).open()
        write(store, range(n), make=slow)
    listed = []
    for _ in range(6): # each goes on where the one before was killed
        had = len(list(run.glob('*.png')))
        goal, wait = had + int(rng.integers(3, 14)), float(rng.random()*0.004)
        def ready():
            if len(list(run.glob('*.png'))) < goal: return False
            time.sleep(wait)
            return True
        kill_when(work, ready)
        known = read_manifest(run)
        for r in known.values(): assert digest((run/r['file']).read_bytes()) == r['sha256']
        whole = (run/MANIFEST).read_bytes().split(b'\n')[:-1]
        assert len(whole) == len({json.loads(line)['id'] for line in whole}), "an id is listed twice"
        listed.append(len(known))
    assert listed == sorted(listed) and listed[0] < n and listed[-1] > 0, listed
    before = {r['file']: (run/r['file']).stat().st_mtime_ns for r in known.values()}
    filled(run, n)
    assert before == {f: (run/f).stat().st_mtime_ns for f in before}, "what was listed was written again"
    assert_as_uninterrupted(run, filled(tmp_path/'other', n))

@pytest.mark.parametrize('cut', [1, 2, 3, 10, 100, -1]) # bytes missing from the end; the last one keeps one byte of the last line
def test_a_last_line_cut_off(tmp_path, cut):
    run = filled(tmp_path/'run')
    data = (run/MANIFEST).read_bytes()
    last = len(data) - data[:-1].rfind(b'\n') - 1
    (run/MANIFEST).write_bytes(data[:-(cut if cut > 0 else last-1)])
    assert list(read_manifest(run))[:5] == [f'1-{i}' for i in range(5)]
    store = ProxyStore(run).open()
    assert (run/MANIFEST).read_bytes().endswith(b'\n')
    assert list(read_manifest(run)) == list(store.rows), "the store knows other copies than the manifest"
    write(store, range(6))
    assert_as_uninterrupted(run, filled(tmp_path/'other'))

def test_an_empty_manifest(tmp_path):
    ProxyStore(tmp_path).open().close()
    (tmp_path/MANIFEST).write_bytes(b'')
    assert read_manifest(tmp_path) == {} == read_manifest(tmp_path/'nowhere')
    assert len(filled(tmp_path).joinpath(MANIFEST).read_text().splitlines()) == 6

@pytest.mark.parametrize('line', [b'{bad', b'\xff\xfe\x00', b'{}', b'{"id": "1-2"}', b'[]', b'null', b'7', b'"id"', bytes(40)])
def test_a_damaged_line_in_the_middle(tmp_path, line):
    filled(tmp_path)
    data = (tmp_path/MANIFEST).read_bytes().split(b'\n')
    data[2] = line
    (tmp_path/MANIFEST).write_bytes(b'\n'.join(data))
    kept = (tmp_path/MANIFEST).read_bytes()
    for ask in (lambda: read_manifest(tmp_path), lambda: ProxyStore(tmp_path).open()):
        with pytest.raises(StoreError, match='line 3'): ask()
    assert (tmp_path/MANIFEST).read_bytes() == kept and len(list(tmp_path.glob('*.png'))) == 6

def test_a_manifest_of_a_newer_version(tmp_path):
    filled(tmp_path)
    data = (tmp_path/MANIFEST).read_bytes()
    newer = json.dumps({**row(9), 'schema': SCHEMA+1, 'version': '99.1', 'file': 'x', 'bytes': 1}).encode() + b'\n'
    (tmp_path/MANIFEST).write_bytes(data + newer)
    with pytest.raises(StoreError, match=r'99\.1.*[Uu]pgrade') as caught: ProxyStore(tmp_path).open()
    assert 'path=' in str(caught.value) and (tmp_path/MANIFEST).read_bytes() == data + newer
    (tmp_path/MANIFEST).write_bytes(data) # upgraded: the folder isn't locked by the attempt
    ProxyStore(tmp_path).open().close()


# -- one at a time -------------------------------------------------------------------------------------------------------------------------

def test_two_stores_in_one_process(tmp_path, monkeypatch):
    first = ProxyStore(tmp_path/'run').open()
    monkeypatch.chdir(tmp_path)
    for same in (tmp_path/'run', tmp_path/'run'/'..'/'run', 'run'):
        with pytest.raises(StoreError, match='in use by another learner.*path='): ProxyStore(same).open()
    write(first, range(3))
    first.close()
    second = ProxyStore(tmp_path/'run').open()
    assert list(second.rows) == ['1-0', '1-1', '1-2']
    with pytest.raises(StoreError, match='in use'): first.open()

def test_open_and_close_as_often_as_you_like(tmp_path):
    store = ProxyStore(tmp_path)
    store.close()
    assert store.open() is store.open() is store
    write(store, range(2))
    store.close()
    store.close()
    write(store.open(), range(4))
    assert len(assert_sound(tmp_path)) == 4

def test_a_store_nobody_can_reach_lets_go(tmp_path):
    gc.disable()
    try:
        store = ProxyStore(tmp_path).open()
        store.me = store # a ring, as in a learner and its callback
        del store
        ProxyStore(tmp_path).open().close()
    finally: gc.enable()

@needs_fork
def test_two_processes_and_kill(tmp_path):
    "The other process holds the folder until it is killed"
    run = tmp_path/'run'
    def hold():
        store = ProxyStore(run).open()
        (tmp_path/'held').write_text(str(store.path))
        time.sleep(60)
    tried = []
    def ready():
        if not (tmp_path/'held').exists(): return False
        with pytest.raises(StoreError, match='in use by another learner'): ProxyStore(run).open()
        tried.append(True)
        return True
    kill_when(hold, ready)
    assert tried
    assert len(filled(run).joinpath(MANIFEST).read_text().splitlines()) == 6


# -- disks ---------------------------------------------------------------------------------------------------------------------------------

def full(*args, **kwargs): raise OSError(errno.ENOSPC, 'No space left on device')

def test_a_path_that_cannot_be_made(tmp_path):
    (tmp_path/'file').write_text('mine')
    for path in (tmp_path/'file', tmp_path/'file'/'run'):
        with pytest.raises(StoreError, match="path=.*file.*path="): ProxyStore(path).open()
    assert (tmp_path/'file').read_text() == 'mine'

def test_a_folder_that_cannot_be_written_to(tmp_path, monkeypatch):
    filled(tmp_path)
    def denied(*args, **kwargs): raise PermissionError(errno.EACCES, 'Permission denied')
    with monkeypatch.context() as m:
        m.setattr(store_module.tempfile, 'TemporaryFile', denied)
        with pytest.raises(StoreError, match="can't be written to: Permission denied") as caught: ProxyStore(tmp_path).open()
    store = ProxyStore(tmp_path).open() # put right; the error may still be held, as by a notebook: `caught` is
    assert len(store.rows) == 6 and 'path=' in str(caught.value)

def test_disk_full_at_a_picture(tmp_path, monkeypatch):
    store = ProxyStore(tmp_path/'run').open()
    def sometimes(path, data, sync=True):
        if Path(path).suffix == '.png' and lines(store.path): full() # as soon as the first copies have landed, whatever the threads do
        write_atomic(path, data, sync)
    with monkeypatch.context() as m:
        m.setattr(store_module, 'write_atomic', sometimes)
        with pytest.raises(StoreError, match='No space left on device'): write(store, range(40))
    before = assert_sound(store.path)
    assert before and store.rows == read_manifest(store.path)
    write(store, range(40)) # room was made
    assert_as_uninterrupted(store.path, filled(tmp_path/'other', 40))

@pytest.mark.parametrize('limit', [2000, 2100, 2300, 3001])
def test_disk_full_at_the_manifest(tmp_path, limit):
    "The manifest may not grow beyond `limit` bytes: its last line is cut somewhere"
    resource = pytest.importorskip('resource')
    store, old = ProxyStore(tmp_path/'run').open(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, old[1]))
    try:
        with pytest.raises(StoreError, match='could not be written'): write(store, range(40))
    finally: resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert 0 < (store.path/MANIFEST).stat().st_size <= limit
    landed = read_manifest(store.path)
    assert landed and all(store.whole(r) for r in landed.values())
    write(store, range(40)) # room was made; the store is still open
    assert_as_uninterrupted(store.path, filled(tmp_path/'other', 40))

def test_the_folder_vanishes(tmp_path):
    store = ProxyStore(tmp_path/'run').open()
    for f in (tmp_path/'run').iterdir(): f.unlink()
    (tmp_path/'run').rmdir()
    with pytest.raises(StoreError, match="path=.*run.*No such file"): write(store, range(3))

def test_a_cap_on_the_size(tmp_path):
    size = sum(len(encode_image(img(i))) for i in range(10))
    store = ProxyStore(tmp_path/'run', max_gb=size/1e9).open()
    with pytest.raises(StoreError, match='max_gb='): write(store, range(40), at_a_time=1)
    assert [r['index'] for r in assert_sound(store.path)] == list(range(10)) and store.bytes == size
    assert store.rows == read_manifest(store.path)
    store.close()
    write(ProxyStore(tmp_path/'run').open(), range(40))
    assert_as_uninterrupted(tmp_path/'run', filled(tmp_path/'other', 40))

def test_the_same_picture_counts_once_for_the_cap(tmp_path):
    size = sum(len(encode_image(img(i))) for i in range(3))
    store = ProxyStore(tmp_path, max_gb=(size+1)/1e9).open()
    for cycle in (1, 2, 3): write(store, range(3), cycle)
    assert len(assert_sound(tmp_path)) == 9

def test_pruned_copies_make_room(tmp_path):
    size = sum(len(encode_image(img(i))) for i in range(6))
    store = ProxyStore(tmp_path, max_gb=(size+1)/1e9).open()
    write(store, range(6))
    store.prune(['1-4', '1-5'])
    for _ in range(2): # at once, and after opening it again
        assert len(list(tmp_path.glob('*.png'))) == 2 and store.bytes == sum(f.stat().st_size for f in tmp_path.glob('*.png'))
        store.close()
        store = ProxyStore(tmp_path, max_gb=(size+1)/1e9).open()
    assert [store.whole(r) for r in read_manifest(tmp_path).values()] == [False]*4 + [True]*2, "the lines stay, the files go"
    write(store, range(4)) # there is room for them again
    assert all(store.whole(r) for r in read_manifest(tmp_path).values()) and len(list(tmp_path.glob('*.png'))) == 6

def test_copies_made_again_count_for_the_cap(tmp_path):
    size = sum(len(encode_image(img(i))) for i in range(6))
    store = ProxyStore(tmp_path, max_gb=(size+1)/1e9).open()
    write(store, range(6))
    store.prune([])
    store.close()
    with pytest.raises(StoreError, match='max_gb='): write(ProxyStore(tmp_path, max_gb=(size+1)/1e9).open(), range(12), at_a_time=1)
    assert sum(store.file(r).stat().st_size for r in read_manifest(tmp_path).values() if store.whole(r)) <= size

def test_the_same_picture_twice_at_a_time_counts_once(tmp_path):
    size = len(encode_image(img(0)))
    store = ProxyStore(tmp_path, max_gb=(size+1)/1e9).open()
    with store.writer() as put: put([{**row(0), 'id': str(k)} for k in range(5)], make)
    assert len(put.rows) == 5 and store.bytes == size

def test_prune_keeps_a_file_that_another_copy_needs(tmp_path):
    store = ProxyStore(tmp_path).open()
    write(store, range(2))
    write(store, range(1), cycle=2) # the same picture as 1-0
    store.prune(['2-0'])
    assert [f.name for f in tmp_path.glob('*.png')] == [store.rows['2-0']['file']]


# -- whose folder is it? -------------------------------------------------------------------------------------------------------------------

def tree(path): return {str(f.relative_to(path)): f.read_bytes() if f.is_file() else None for f in sorted(Path(path).rglob('*'))}

foreign = {
    'an audio data set': {MANIFEST: b'{"audio_filepath": "a.wav"}\n', 'split.json': b'{}'},
    'an empty manifest': {MANIFEST: b''},
    'notes': {'.notes.tmp': b'my notes'},
    'another lock': {'.lock': b'pid 1234'},
    'photos': {'0123456789abcdef01234567.png': b'a photo'},
    'another marker': {MARKER: b'{"made_by": "somebody"}'},
    'a damaged marker': {MARKER: b'{"made_by": "proxy_att'},
}

@pytest.mark.parametrize('kind', foreign)
def test_a_foreign_folder_is_left_alone(tmp_path, kind):
    "Neither used, nor mended, nor purged"
    folder = tmp_path/'theirs'
    folder.mkdir()
    for name,data in foreign[kind].items(): (folder/name).write_bytes(data)
    before = tree(folder)
    with pytest.raises(StoreError, match=f'other files in it.*{MARKER}.*path=') as caught: ProxyStore(folder).open()
    assert next(iter(foreign[kind])) in str(caught.value)
    assert purge(folder) == 0 == purge(tmp_path) and tree(folder) == before
    with pytest.raises(StoreError): purge_run(folder)
    assert tree(folder) == before

def test_a_marker_says_whose_folder_it_is(tmp_path):
    store = ProxyStore(tmp_path/'run').open()
    assert read_marker(tmp_path/'run') | dict(version=None) == dict(made_by='proxy_attention', kind='proxies', schema=SCHEMA, version=None, copies=0)
    write(store, range(5))
    assert read_marker(tmp_path/'run')['copies'] == 5 and read_marker(tmp_path) is None
    store.prune(['1-0'])
    assert read_marker(tmp_path/'run')['copies'] == 1

@pytest.mark.parametrize('change', [dict(made_by='me'), dict(kind='run'), dict(schema='2'), dict(copies=None)])
def test_a_marker_of_something_else(tmp_path, change):
    marker = json.loads((filled(tmp_path)/MARKER).read_bytes())
    (tmp_path/MARKER).write_text(json.dumps(marker | change))
    assert read_marker(tmp_path) is None and purge(tmp_path) == 0 and len(list(tmp_path.glob('*.png'))) == 6

def test_a_folder_of_a_newer_version(tmp_path):
    marker = json.loads((filled(tmp_path)/MARKER).read_bytes())
    (tmp_path/MARKER).write_text(json.dumps(marker | dict(schema=SCHEMA+1, version='99.1')))
    before = tree(tmp_path)
    with pytest.raises(StoreError, match=r'99\.1.*[Uu]pgrade'): ProxyStore(tmp_path).open()
    with pytest.raises(StoreError, match=r'99\.1.*[Uu]pgrade'): purge_run(tmp_path)
    assert tree(tmp_path) == before

def test_a_folder_whose_owner_was_killed_before_its_marker(tmp_path):
    (tmp_path/'.lock').write_bytes(b'')
    (tmp_path/f'.{MARKER}.12.34.tmp').write_bytes(b'{"made')
    store = ProxyStore(tmp_path).open()
    write(store, range(2))
    assert sorted(f.suffix for f in tmp_path.iterdir() if f.name != '.lock') == ['.json', '.jsonl', '.png', '.png']

def test_only_our_own_half_written_files_are_cleared_away(tmp_path):
    filled(tmp_path)
    (tmp_path/'.notes.tmp').write_bytes(b'mine')
    (tmp_path/'.0123456789abcdef01234567.png.99.88.tmp').write_bytes(b'half')
    ProxyStore(tmp_path).open().close()
    assert [f.name for f in tmp_path.glob('.*.tmp')] == ['.notes.tmp']

@pytest.mark.parametrize('name', [MANIFEST, MARKER, '.lock'])
def test_links_are_not_followed(tmp_path, name):
    run = filled(tmp_path/'run')
    (tmp_path/'mine').write_bytes((run/name).read_bytes())
    (run/name).unlink()
    (run/name).symlink_to(tmp_path/'mine')
    before = tree(tmp_path)
    with pytest.raises(StoreError): ProxyStore(run).open()
    assert tree(tmp_path) == before

def test_a_copy_that_is_a_link_is_not_whole(tmp_path):
    store = ProxyStore(tmp_path/'run').open()
    file = store.file(write(store, range(1))[0])
    file.rename(tmp_path/'elsewhere.png')
    file.symlink_to(tmp_path/'elsewhere.png')
    assert not store.whole(store.rows['1-0'])
    write(store, range(1))
    assert not file.is_symlink() and store.whole(store.rows['1-0']) and (tmp_path/'elsewhere.png').exists()

hostile = {'file': ['../big.bin', '/etc/passwd', 'big.bin', 'sub/0123456789abcdef01234567.png', '0123456789ABCDEF01234567.png', '', None, 7,
                    '0123456789abcdef01234567.png\n', MANIFEST, '0123456789abcdef01234567.gif', ['0123456789abcdef01234567.png']],
           'bytes': [-1, 1.5, True, '7', None], 'sha256': ['', 'x'*64, None], 'id': [None, 7, []], 'index': [-1, 'a', 1.5], 'cycle': ['1'],
           'original': [7, []], 'original_sha256': ['abc', 1], 'split': ['../x', 7]}

@pytest.mark.parametrize('key, value', [(k, v) for k,vs in hostile.items() for v in vs])
def test_a_hostile_line_is_refused_when_it_is_read(tmp_path, key, value):
    run = filled(tmp_path/'run')
    (tmp_path/'big.bin').write_bytes(b'mine')
    good = json.loads(lines(run)[0])
    with open(run/MANIFEST, 'a') as f: f.write(json.dumps({**good, 'id': '9-9', key: value}) + '\n')
    before = tree(tmp_path)
    for ask in (lambda: read_manifest(run), lambda: ProxyStore(run).open()):
        with pytest.raises(StoreError, match='line 7') as caught: ask()
        assert key in str(caught.value)
    assert tree(tmp_path) == before


# -- damage --------------------------------------------------------------------------------------------------------------------------------

harms = {'zeros': lambda data: bytes(len(data)), 'a flipped bit': lambda data: data[:50] + bytes([data[50] ^ 4]) + data[51:]}

@pytest.mark.parametrize('harm', harms)
def test_damage_that_keeps_the_size(tmp_path, harm):
    filled(tmp_path/'run')
    victim = tmp_path/'run'/read_manifest(tmp_path/'run')['1-3']['file']
    victim.write_bytes(harms[harm](victim.read_bytes()))
    store = ProxyStore(tmp_path/'run').open()
    assert [store.whole(r) for r in store.rows.values()] == [True]*3 + [False] + [True]*2
    write(store, range(6))
    assert_as_uninterrupted(tmp_path/'run', filled(tmp_path/'other'))

def test_damage_while_the_store_is_open(tmp_path):
    store = ProxyStore(tmp_path).open()
    rows = write(store, range(3))
    assert all(map(store.whole, rows))
    store.file(rows[1]).write_bytes(bytes(rows[1]['bytes']))
    assert [store.whole(r) for r in rows] == [True, False, True]

def test_a_file_is_hashed_once(tmp_path, monkeypatch):
    filled(tmp_path)
    hashed = []
    monkeypatch.setattr(store_module, 'file_digest', lambda f: hashed.append(f) or digest(Path(f).read_bytes()))
    store = ProxyStore(tmp_path).open()
    for _ in range(3): assert all(map(store.whole, store.rows.values()))
    assert len(hashed) == 6


# -- splits and names ----------------------------------------------------------------------------------------------------------------------

def test_splits_are_kept_side_by_side(tmp_path):
    a,b = write_split(tmp_path, ['a'], ['b']), write_split(tmp_path, ['b'], ['a'])
    assert a != b and write_split(tmp_path, ['a'], ['b']) == a and len(list(tmp_path.iterdir())) == 2
    assert read_split(tmp_path, a) == dict(train=['a'], held_out=['b']) and read_split(tmp_path, b) == dict(train=['b'], held_out=['a'])

def test_a_split_that_a_full_disk_cut_is_written_again(tmp_path, monkeypatch):
    with monkeypatch.context() as m:
        m.setattr(store_module.os, 'replace', full)
        with pytest.raises(OSError): write_split(tmp_path, ['a'], ['b'])
    assert not list(tmp_path.iterdir())
    assert read_split(tmp_path, write_split(tmp_path, ['a'], ['b']))['train'] == ['a']

def test_names_that_are_not_utf8(tmp_path):
    odd = b'caf\xe9.png'.decode(errors='surrogateescape')
    store = ProxyStore(tmp_path).open()
    with store.writer() as put: put([{**row(0), 'original': odd, 'label': 'naïve'}], make)
    assert read_manifest(tmp_path)['1-0']['original'] == odd and read_manifest(tmp_path)['1-0']['label'] == 'naïve'
    assert read_split(tmp_path, write_split(tmp_path, [odd], [])) == dict(train=[odd], held_out=[])


# -- purging -------------------------------------------------------------------------------------------------------------------------------

def test_purge_leaves_foreign_files_alone(tmp_path):
    for name in ('one', 'two'): filled(tmp_path/name)
    write_split(tmp_path/'one', ['a.png'], ['b.png'])
    foreign = {'one/split.json': b'0', 'one/photo.png': b'1', 'one/notes.txt': b'2', 'three/manifest.txt': b'3', 'four/0123456789abcdef01234567.png': b'4',
               'three/deep/manifest.jsonl': b'', 'readme': b'5'}
    for name,data in foreign.items():
        (tmp_path/name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path/name).write_bytes(data)
    assert purge(tmp_path) == 2
    assert {str(f.relative_to(tmp_path)): f.read_bytes() for f in tmp_path.rglob('*') if f.is_file()} == foreign
    assert not (tmp_path/'two').exists() and purge(tmp_path) == 0 and purge(tmp_path/'nowhere') == 0

def test_purge_of_one_run(tmp_path):
    for name in ('one', 'two'): filled(tmp_path/name)
    assert purge(tmp_path/'one') == 1 and not (tmp_path/'one').exists() and len(lines(tmp_path/'two')) == 6

def test_purge_of_a_run_leaves_the_runs_inside_of_it(tmp_path):
    filled(tmp_path/'all')
    filled(tmp_path/'all'/'another')
    assert purge(tmp_path/'all') == 1 and len(lines(tmp_path/'all'/'another')) == 6 and not (tmp_path/'all'/MARKER).exists()

def test_purge_does_not_follow_links(tmp_path):
    filled(tmp_path/'mine'/'run')
    (tmp_path/'runs').mkdir()
    (tmp_path/'runs'/'link').symlink_to(tmp_path/'mine'/'run')
    before = tree(tmp_path/'mine')
    assert purge(tmp_path/'runs') == 0 and tree(tmp_path/'mine') == before

def test_a_purge_that_was_killed_can_be_done_again(tmp_path, monkeypatch):
    filled(tmp_path/'run')
    removed = []
    unlink = Path.unlink
    def stop(self, missing_ok=False):
        if len(removed) > 3: raise KeyboardInterrupt
        removed.append(self)
        unlink(self, missing_ok)
    with monkeypatch.context() as m:
        m.setattr(Path, 'unlink', stop)
        with pytest.raises(KeyboardInterrupt): purge(tmp_path/'run')
    assert (tmp_path/'run'/MARKER).exists() and purge(tmp_path/'run') == 1 and not (tmp_path/'run').exists()

def test_purge_takes_what_a_killed_run_left(tmp_path):
    filled(tmp_path/'run')
    (tmp_path/'run'/'.0123456789abcdef01234567.png.99.88.tmp').write_bytes(b'half')
    (tmp_path/'run'/'0123456789abcdef01234567.png').write_bytes(b'written, but not listed')
    assert purge(tmp_path/'run') == 1 and not (tmp_path/'run').exists()

def test_purge_of_a_folder_in_use(tmp_path):
    store = ProxyStore(tmp_path/'run').open()
    write(store, range(3))
    with pytest.raises(StoreError, match='in use'): purge(tmp_path)
    assert len(assert_sound(tmp_path/'run')) == 3
    store.close()
    assert purge(tmp_path) == 1

def test_purge_of_a_damaged_run(tmp_path): # its own error message says to do so
    filled(tmp_path/'run')
    data = (tmp_path/'run'/MANIFEST).read_bytes().split(b'\n')
    data[2] = b'{bad'
    (tmp_path/'run'/MANIFEST).write_bytes(b'\n'.join(data))
    with pytest.raises(StoreError, match='purge'): ProxyStore(tmp_path/'run').open()
    assert purge(tmp_path/'run') == 1 and not (tmp_path/'run').exists()

def test_prune_never_leaves_the_folder(tmp_path):
    "A line that was put into the open store by hand can't name a file elsewhere either: it is refused at the next opening, and nothing is deleted"
    store = ProxyStore(tmp_path/'run').open()
    write(store, range(2))
    store.close()
    (tmp_path/'mine.png').write_bytes(b'mine')
    outside = {**store.rows['1-0'], 'id': '9-9', 'file': '../mine.png'}
    with open(tmp_path/'run'/MANIFEST, 'a') as f: f.write(json.dumps(outside) + '\n')
    with pytest.raises(StoreError, match='line 3'): ProxyStore(tmp_path/'run').open().prune([])
    purge(tmp_path/'run')
    assert (tmp_path/'mine.png').read_bytes() == b'mine'


def test_writer_gives_the_switch_interval_back(tmp_path):
    before = sys.getswitchinterval()
    store = ProxyStore(tmp_path/'run').open()
    with store.writer(): assert sys.getswitchinterval() < before
    assert sys.getswitchinterval() == before
    with pytest.raises(RuntimeError, match='stop'), store.writer(): raise RuntimeError('stop')
    assert sys.getswitchinterval() == before
