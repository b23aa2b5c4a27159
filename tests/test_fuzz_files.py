"""Whatever stands in a file on disk: it is read, or one sentence says what is wrong with which file; never a traceback."""
import copy
import json
import shutil
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from typer.testing import CliRunner

from fuzz_kit import check_clear, fuzz, hostile, json_values
from kit import cb_of, make_learner, make_shapes, quiet_cb, shapes_dls
from lab_kit import make_run
from proxy_attention import gallery  # noqa: F401  (patches Learner)
from proxy_attention.audit import audit
from proxy_attention.lab.cli import app
from proxy_attention.lab.data.split_file import read_split as read_run_split
from proxy_attention.lab.runs.checkpoint import RunError
from proxy_attention.lab.runs.folder import Run
from proxy_attention.lab.runs.runner import run_experiment
from proxy_attention.store import ProxyStore, StoreError, purge, read_manifest

ROOT = Path(__file__).parents[1]


# -- what is done to a file ---------------------------------------------------------------------------------------------------------------------

def paths_in(value, at=()):
    "Every place in nested dicts and lists"
    yield at
    for k,v in (value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()): yield from paths_in(v, (*at, k))

def changed(value, at, new):
    "A copy with `new` at a place; without it if `new` is `...`"
    if not at: return new
    value = copy.deepcopy(value)
    here = value
    for k in at[:-1]: here = here[k]
    if new is ...: del here[at[-1]]
    else: here[at[-1]] = new
    return value

names = st.sampled_from(['../up', '/etc/passwd', '..', '.', '', 'a/b', '\\\\up', '\x00', 'x'*300, 'record.jsonl'])
values = st.one_of(json_values, names, st.sampled_from([-1, 10**30, True, float('nan'), float('inf'), 1e308, [], {}, [[]], '<script>', None, ...]))

@st.composite
def damage(draw, content, lines=False):
    "The bytes of a JSON file, or of one of JSON lines, with a place changed or bytes damaged"
    if draw(st.integers(0, 9)) == 0:
        raw = bytearray(content)
        k = draw(st.integers(0, len(raw)))
        return draw(st.sampled_from([bytes(raw[:k]), bytes(raw[:k]) + b'\x00\xff' + bytes(raw[k:]), b'['*100_000, b'', bytes(raw[:k]) + b'}\n' + bytes(raw[k:])]))
    parts = [json.loads(line) for line in content.splitlines()] if lines else [json.loads(content)]
    i = draw(st.integers(0, len(parts) - 1))
    at = draw(st.sampled_from(list(paths_in(parts[i]))))
    new = draw(values)
    assume(at or new is not ...)
    parts[i] = changed(parts[i], at, new)
    return b''.join(json.dumps(p).encode() + b'\n'*lines for p in parts)

class Replaced:
    "A file with another content inside of the block"
    def __init__(self, file, content): self.file, self.content = Path(file), content
    def __enter__(self):
        self.before = self.file.read_bytes()
        self.file.write_bytes(self.content)
    def __exit__(self, *_): self.file.write_bytes(self.before)

def answer(*words):
    "Exit code of a command; a traceback fails the test"
    got = CliRunner().invoke(app, list(map(str, words)))
    if got.exception is not None and not isinstance(got.exception, SystemExit): raise got.exception
    assert got.exit_code in (0, 1, 2), got.output
    return got.exit_code


# -- copies -------------------------------------------------------------------------------------------------------------------------------------

@pytest.fixture(scope='module')
def copies(tmp_path_factory):
    "The images, and a folder of copies of them"
    top = tmp_path_factory.mktemp('copies')
    images = make_shapes(top/'images')
    learn = make_learner(lambda: shapes_dls(images), quiet_cb(select='all', share=.3, path=top/'run'))
    learn.fit(1, 1e-3)
    cb_of(learn).copies.store.close()
    return images, top/'run'

def take_up(images, folder):
    "A learner that takes up the copies of a folder, shows them and trains on them"
    learn = make_learner(lambda: shapes_dls(images), quiet_cb(select='all', path=folder))
    try:
        if cb_of(learn).resume():
            learn.show_proxies(2)
            len(learn.proxies)
            learn.dls.train.one_batch()
    finally: learn.remove_proxies()

@fuzz(0.4)
@given(st.data())
def test_manifest(copies, data):
    images,folder = copies
    with Replaced(folder/'manifest.jsonl', data.draw(damage((folder/'manifest.jsonl').read_bytes(), lines=True))):
        for use in (read_manifest, lambda f: audit(f, near=None), lambda f: take_up(images, f)):
            try: use(folder)
            except (StoreError, ValueError) as e: check_clear(e, (StoreError, ValueError))

@fuzz(0.8)
@given(st.data())
def test_split_of_copies(copies, data):
    "Also one whose name fits its content: whoever writes the one can write the other"
    from proxy_attention.core import digest
    images,folder = copies
    file = next(folder.glob('split-*.json'))
    new = data.draw(damage(file.read_bytes()))
    name = f'split-{digest(new)[:16]}.json'
    manifest = (folder/'manifest.jsonl').read_bytes().replace(file.stem[6:].encode(), digest(new)[:16].encode())
    with Replaced(file, new), Replaced(folder/'manifest.jsonl', manifest):
        (folder/name).write_bytes(new)
        try: audit(folder, near=None)
        except (StoreError, ValueError) as e: check_clear(e, (StoreError, ValueError))
        finally: (folder/name).unlink()

@fuzz(1)
@given(st.data())
def test_marker(copies, data):
    images,folder = copies
    with Replaced(folder/'proxy_attention.json', data.draw(damage((folder/'proxy_attention.json').read_bytes()))):
        for use in (lambda f: ProxyStore(f).open().close(), lambda f: audit(f, near=None)):
            try: use(folder)
            except (StoreError, ValueError) as e: check_clear(e, (StoreError, ValueError))


# -- runs ---------------------------------------------------------------------------------------------------------------------------------------

INI = """\
[data:digits]
source = shortcut_digits
n_train = 40
n_valid = 20
n_test = 20
size = 40
bs = 20
[model:net]
arch = small_cnn
width = 4
[proxy:all]
scout = off
select = all
cycles = 1
[experiment:tiny]
data = digits
model = net
proxy = all
epochs = 1
lr = 0.01
threads = 1
"""

@pytest.fixture(scope='module')
def run(tmp_path_factory):
    "A finished run"
    top = tmp_path_factory.mktemp('runs')
    (top/'settings.ini').write_text(INI)
    run_experiment('tiny', top/'settings.ini', top/'runs'/'tiny', data=top/'data', progress=False, say=lambda *_: None)
    return top/'runs'/'tiny'

@pytest.fixture(scope='module')
def pages(tmp_path_factory):
    "A run with everything that a page shows, a comparison and a sweep"
    top = tmp_path_factory.mktemp('pages')
    make_run(top/'rich', masks=True, undone=(1,), pictures=2, epochs=2)
    for name,file in (('compared', ROOT/'results'/'demo'/'record.jsonl'), ('swept', ROOT/'studies'/'results'/'sweeps'/'jtt.jsonl')):
        (top/name).mkdir()
        shutil.copy(file, top/name/'record.jsonl')
    return top

files_of_a_run = ['config.json', 'state.json', 'split.json', 'record.jsonl']

@fuzz(0.4)
@given(st.sampled_from(files_of_a_run), st.data())
def test_run_folder(run, name, data):
    "`list`, `audit` and what opens a run to go on with it"
    about = json.loads((run/'config.json').read_text())
    with Replaced(run/name, data.draw(damage((run/name).read_bytes(), name.endswith('jsonl')))):
        answer('list', '--runs', run.parent)
        if name != 'record.jsonl': answer('audit', run, '--no-near')
        try:
            with Run(run, about, say=lambda *_: None): pass
        except (RunError, ValueError) as e: check_clear(e, (RunError, ValueError))
        finally:
            for f in ('state.json', 'record.jsonl'): # what going back to an earlier state has written
                if f != name: (run/f).write_bytes(kept[f])

kept = {}

@pytest.fixture(autouse=True)
def keep(request):
    if 'run' in request.fixturenames and not kept:
        run = request.getfixturevalue('run')
        kept.update({f: (run/f).read_bytes() for f in files_of_a_run})

@fuzz(1)
@given(st.data())
def test_split_of_a_run(run, data):
    with Replaced(run/'split.json', data.draw(damage((run/'split.json').read_bytes()))):
        try: split = read_run_split(run/'split.json')
        except ValueError as e: check_clear(e)
        else: assert all(isinstance(f, str) for k in ('train', 'valid', 'test') for f in split[k]['files'])

records = st.sampled_from(['rich/record.jsonl', 'rich/config.json', 'rich/gallery/cycle1.json', 'compared/record.jsonl', 'swept/record.jsonl'])

@fuzz(0.3)
@given(records, st.data())
def test_pages(pages, name, data):
    file = pages/name
    with Replaced(file, data.draw(damage(file.read_bytes(), name.endswith('jsonl')))):
        answer('report', pages/name.split('/')[0], '--out', pages/'page.html')
        answer('list', '--runs', pages)


# -- settings and commands ----------------------------------------------------------------------------------------------------------------------

keys = st.sampled_from(['source', 'n_train', 'size', 'bs', 'arch', 'width', 'select', 'cycles', 'data', 'model', 'proxy', 'epochs', 'lr', 'scout', 'area', 'threshold', 'path', 'seed',
                        'until', 'monitor', 'strength', 'steps', 'share', 'rounds', 'nonsense'])
sections = st.sampled_from(['[data:digits]', '[model:net]', '[proxy:all]', '[experiment:tiny]', '[experiment:../up]', '[sweep:s]', '[DEFAULT]', '[x:', ']', '[data:]'])
lines = st.one_of(sections, st.builds(lambda k, v: f'{k} = {v}', keys, st.one_of(hostile.map(str), st.integers(-2, 9).map(str), names)), st.text(max_size=20))

@fuzz(0.8)
@given(st.lists(lines, max_size=4), st.booleans())
def test_settings(tmp_path_factory, more, first):
    file = tmp_path_factory.mktemp('settings')/'settings.ini'
    text = '\n'.join(more)
    file.write_bytes((text + '\n' + INI if first else INI + text).encode(errors='surrogatepass'))
    for command in (['check', '--settings', file], ['list', '--settings', file], ['list', 'tiny', '--settings', file]): answer(*command)

words = st.one_of(st.sampled_from(['check', 'list', 'audit', 'report', 'clean', 'init', 'tiny', '--settings', '--set', 'area=7', 'nonsense=1', '=', '--json', '--runs', '--out', '.', '..', '-h', '--yes',
                                   '--near', 'settings.ini', 'runs', '--images', '--version', '']), st.text(max_size=8), names)

@fuzz(0.6)
@given(given_words=st.lists(words, max_size=5))
def test_command_lines(tmp_path_factory, given_words, monkeypatch):
    folder = tmp_path_factory.mktemp('here')
    (folder/'settings.ini').write_text(INI)
    monkeypatch.chdir(folder)
    assume(not {'run', 'compare', 'sweep', 'demo'} & set(given_words))
    answer(*given_words)


# -- what attacks and fuzzing have found, by name -----------------------------------------------------------------------------------------------

def test_purge_takes_what_is_left(copies, tmp_path):
    "A damaged manifest is no hindrance"
    shutil.copytree(copies[1], tmp_path/'run')
    (tmp_path/'run'/'manifest.jsonl').write_bytes(b'['*100_000)
    assert purge(tmp_path/'run') == 1 and not (tmp_path/'run').exists()

@pytest.mark.parametrize('key,value', [('label', 5), ('predicted', None), ('confidence', 'high'), ('confidence', float('nan')), ('confidence', 7), ('index', -1), ('index', True), ('original', 'a\0b'),
                                       ('original', 5), ('cycle', 1.5), ('replaces', 'yes'), ('method', None), ('file', '../up.png'), ('bytes', -1)])
def test_a_line_of_the_manifest(copies, key, value):
    "One sentence: file, line, key and value"
    images,folder = copies
    lines = (folder/'manifest.jsonl').read_bytes().splitlines()
    lines[1] = json.dumps(json.loads(lines[1]) | {key: value}).encode()
    with Replaced(folder/'manifest.jsonl', b'\n'.join(lines) + b'\n'):
        for use in (read_manifest, lambda f: audit(f, near=None), lambda f: take_up(images, f)):
            with pytest.raises(StoreError, match=rf"manifest.jsonl, line 2 has {key}="): use(folder)

@pytest.mark.parametrize('key', ['cycle', 'index', 'original', 'label', 'predicted', 'confidence', 'method', 'id', 'file', 'sha256', 'bytes'])
def test_a_line_of_the_manifest_that_lacks_something(copies, key):
    images,folder = copies
    lines = [json.loads(line) for line in (folder/'manifest.jsonl').read_bytes().splitlines()]
    del lines[1][key]
    with Replaced(folder/'manifest.jsonl', b''.join(json.dumps(o).encode() + b'\n' for o in lines)):
        for use in (read_manifest, lambda f: take_up(images, f)):
            with pytest.raises(StoreError, match=f"line 2 is not a line of ours: it has no '{key}'"): use(folder)

@pytest.mark.parametrize('change', [dict(trials=None), dict(trials='many'), dict(objective=5), None], ids=str)
def test_a_sweep_is_listed(pages, change):
    "Also one whose record is damaged, or holds its first line only"
    file = pages/'swept'/'record.jsonl'
    head,*rest = file.read_bytes().splitlines()
    lines = [head] if change is None else [json.dumps(json.loads(head) | change).encode(), *rest]
    with Replaced(file, b'\n'.join(lines) + b'\n'): assert answer('list', '--runs', pages) == 0

@pytest.mark.parametrize('content', [b'{"train": [NaN], "held_out": []}', b'{"train": [], "held_out": 5}', b'[]', b'"split"', b'\xff\xfe', b'['*100_000, b'', b'{"train": ["a\\u0000b"], "held_out": []}'],
                         ids=['not text', 'no list', 'list', 'text', 'bytes', 'deep', 'empty', 'null byte'])
def test_a_split_of_copies_that_fits_its_name(tmp_path, content):
    from proxy_attention.core import digest
    from proxy_attention.store import read_split
    key = digest(content)[:16]
    (tmp_path/f'split-{key}.json').write_bytes(content)
    with pytest.raises(StoreError, match=f'split-{key}.json has no list of files'): read_split(tmp_path, key)

@pytest.mark.parametrize('change,words', [(dict(schema=None), 'schema'), (dict(root=5), 'root'), (dict(train='x'), 'train'), (dict(valid=dict(files=['a'], labels=[], sha256=[])), 'differ in length'),
                                          (dict(test=dict(files=['a\0b'], labels=['a'], sha256=[None])), 'test.files.0')], ids=lambda v: str(v)[:20])
def test_a_split_of_a_run(run, change, words):
    with Replaced(run/'split.json', json.dumps(json.loads((run/'split.json').read_text()) | change).encode()):
        with pytest.raises(ValueError, match='split.json is damaged: ') as e: read_run_split(run/'split.json')
        assert words in str(e.value) and answer('audit', run, '--no-near') == 1

@pytest.mark.parametrize('name', ['../../config.json', '/etc/passwd', '..'])
@pytest.mark.parametrize('key', ['initial', 'weights', 'suspects'])
def test_a_state_names_files_of_its_run_only(run, key, name):
    from proxy_attention.lab.runs.state import read_state
    state = json.loads((run/'state.json').read_text())
    assert read_state(run/'state.json') is not None
    with Replaced(run/'state.json', json.dumps(state | {key: name}).encode()): assert read_state(run/'state.json') is None
    with Replaced(run/'state.json', json.dumps(state | dict(files={name: 'x'})).encode()): assert read_state(run/'state.json') is None

@pytest.mark.parametrize('step', [['nonsense'], ['train'], ['train', -1], ['train', 'x'], ['test', 1], ['done', 0], [0], ['train', 0, 0]], ids=str)
def test_a_state_names_a_step(run, step):
    from proxy_attention.lab.runs.state import read_state
    state = json.loads((run/'state.json').read_text())
    with Replaced(run/'state.json', json.dumps(state | dict(next=step)).encode()): assert read_state(run/'state.json') is None

@pytest.mark.parametrize('what', ['picture', 'folder'])
def test_a_page_embeds_no_file_from_elsewhere(tmp_path, what):
    "A picture of the gallery, or the gallery, that is a link to a place outside of the run"
    import base64

    import cv2
    import numpy as np
    make_run(tmp_path/'run', pictures=2)
    secret = tmp_path/'secret'
    if what == 'folder': (tmp_path/'run'/'gallery').rename(secret)
    else: secret.mkdir()
    cv2.imwrite(str(secret/'1-0-copy.jpg'), np.full((8, 8, 3), 77, np.uint8))
    if what == 'folder': (tmp_path/'run'/'gallery').symlink_to(secret)
    else:
        (tmp_path/'run'/'gallery'/'1-0-copy.jpg').unlink()
        (tmp_path/'run'/'gallery'/'1-0-copy.jpg').symlink_to(secret/'1-0-copy.jpg')
    assert answer('report', tmp_path/'run') == 0
    page = (tmp_path/'run'/'report.html').read_text()
    assert base64.b64encode((secret/'1-0-copy.jpg').read_bytes()).decode() not in page
    assert ('data:image/jpeg' in page) == (what == 'picture'), "the other pictures are there"

@pytest.mark.parametrize('name', ['../up', '/tmp/up', 'a/b', '..'])
def test_an_experiment_stays_in_its_folder(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path/'settings.ini').write_text(INI.replace('[experiment:tiny]', f'[experiment:{name}]'))
    assert answer('check') == 2 and answer('run', name) == 2
    assert [p.name for p in tmp_path.rglob('*')] == ['settings.ini']
