"""Fixtures of all tests; what they share besides is in `kit.py`."""
import gc
import os
import sys

os.environ['MPLBACKEND'] = 'agg' # before matplotlib is imported
os.environ.setdefault('OMP_NUM_THREADS', '1')

from functools import lru_cache, wraps  # noqa: E402
from importlib.metadata import version  # noqa: E402
from pathlib import Path  # noqa: E402

# Its MKL rounds by where memory lies, unless told otherwise before it is loaded
if version('torch').startswith('2.4.'): os.environ.setdefault('MKL_CBWR', 'COMPATIBLE')

import pytest  # noqa: E402
import torch  # noqa: E402

from proxy_attention.core import frozen_heap  # noqa: E402

torch.set_num_threads(1)

@pytest.fixture(autouse=True, scope='session')
def heap():
    "Collections leave alone what the imports have made: with it each takes half a second"
    with frozen_heap(): yield
    gc.freeze() # pytest collects five times at its end, and Python once more

@pytest.fixture(autouse=True, scope='module')
def heap_of_a_module(heap):
    "The same for what earlier tests have imported, or keep for the session"
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope='session')
def no_fsync():
    "No test cuts the power: what is written need not reach the disk"
    with pytest.MonkeyPatch.context() as m:
        m.setattr(os, 'fsync', lambda fd: None)
        yield

@pytest.fixture(autouse=True, scope='session')
def decoded_once():
    "An image file that is read again, and hasn't changed, is not decoded again"
    from fastai.vision import core
    from proxy_attention.lab.data import reading
    def remembered(read):
        @lru_cache(1000)
        def known(file, changed, *args, **kwargs): return read(file, *args, **kwargs)
        @wraps(read) # So that an export names it, and holds none of the images
        def again(file, *args, **kwargs):
            if not (isinstance(file, (str, Path)) and os.path.isfile(file)): return read(file, *args, **kwargs)
            stat = os.stat(file)
            return known(file, (stat.st_ino, stat.st_mtime_ns, stat.st_size), *args, **kwargs).copy()
        return again
    with pytest.MonkeyPatch.context() as m:
        m.setattr(core, 'load_image', remembered(core.load_image))
        m.setattr(reading, 'read_image', remembered(reading.read_image))
        yield

@pytest.fixture(autouse=True)
def own_folder(tmp_path_factory, monkeypatch):
    "Each test works in a folder of its own, so that nothing it writes lands in the repository"
    monkeypatch.chdir(tmp_path_factory.mktemp('cwd'))

@pytest.fixture(autouse=True)
def seeds():
    "Each test starts from the same random numbers"
    from kit import seed_all
    seed_all()

@pytest.fixture(autouse=True)
def no_figures():
    yield
    if plt := sys.modules.get('matplotlib.pyplot'): plt.close('all')

@pytest.fixture(scope='session')
def data_dir():
    "Real images: the folder PROXY_ATTENTION_DATA names, or `../shared/data` beside the repository"
    named = os.environ.get('PROXY_ATTENTION_DATA')
    path = Path(named) if named else Path(__file__).resolve().parents[1]/'..'/'shared'/'data'
    if not path.is_dir(): pytest.skip("no real images: set PROXY_ATTENTION_DATA, or put them into ../shared/data")
    return path.resolve()

@pytest.fixture(scope='session')
def cache(tmp_path_factory):
    "Where the data sets of the lab's runs are generated"
    return tmp_path_factory.mktemp('lab')/'data'

drawings = {} # By what was drawn

@pytest.fixture(scope='module')
def drawn_once():
    "Drawings of a page that have been drawn before are not drawn again"
    from lab_kit import patch_name
    from proxy_attention.lab.report import compare_charts, svg
    def remembered(draw):
        def of(*args, **kw):
            key = draw.__name__, repr((args, kw))
            if key not in drawings: drawings[key] = draw(*args, **kw)
            return drawings[key]
        return of
    with pytest.MonkeyPatch.context() as m:
        for draw in (svg.line_chart, svg.reliability_chart, compare_charts.forest): patch_name(m, draw.__name__, remembered(draw))
        yield

@pytest.fixture(scope='session')
def two_arms(cache, tmp_path_factory):
    "The folder of a comparison of `early` with `erm`, two seeds, for reading only"
    from lab_kit import INI, SMALL
    from proxy_attention.lab.compare.comparison import compare
    folder = tmp_path_factory.mktemp('two_arms')
    (folder/'settings.ini').write_text(INI)
    return compare('try', ['early'], 2, folder/'settings.ini', folder/'out', SMALL, cache, jobs=1, say=lambda *_: None)

@pytest.fixture(scope='session')
def shapes(tmp_path_factory):
    "36 images of three classes, for reading only"
    from kit import make_shapes
    return make_shapes(tmp_path_factory.mktemp('shapes')/'images')

@pytest.fixture
def own_shapes(tmp_path):
    "The same images, to be broken"
    from kit import make_shapes
    return make_shapes(tmp_path/'images')

@pytest.fixture
def learner(shapes):
    "A function: a learner on the shapes with the callback given; same seed, same learner"
    from kit import make_learner, shapes_dls
    def make(cb=None, seed=0, dls=None, root=shapes, **kwargs):
        return make_learner((lambda: shapes_dls(root)) if dls is None else dls, cb, seed, **kwargs)
    return make
