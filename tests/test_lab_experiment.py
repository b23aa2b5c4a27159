"""Stages 0 to 3 as one run: killed anywhere it goes on and ends as if nothing had happened; what a step knows, it knows from disk."""
import contextlib
import copy
import errno
import gc
import hashlib
import importlib.util
import io
import json
import math
import os
import random
import shutil
import signal
import sys
import time
import traceback
import weakref
from functools import partial
from pathlib import Path

import pytest
import torch
from fastai.callback.training import GradientAccumulation
from safetensors.torch import load_file, save_file

from lab_kit import INI, patch_name
from proxy_attention.lab.data.sources import load_items
from proxy_attention.labels import fold_probs
from proxy_attention.lab.runs.stages import seen_log
from proxy_attention.lab.runs.checkpoint import load_weights
from proxy_attention.lab.runs.training import CheckpointCallback, MetricsRecorder, run_fits
from proxy_attention.lab.runs.job import finished_run, loaded, make_learn
from proxy_attention import callback
from proxy_attention.callback import ProxyAttentionCB
from proxy_attention.lab.runs import runner as lab
from proxy_attention.lab.config.problems import SettingsError
from proxy_attention.lab.data.digits import make_shortcut_digits
from proxy_attention.lab.runs.runner import run_experiment
from proxy_attention.lab.runs.stages import stratified_sample, update_early_stopping
from proxy_attention.lab.runs.plan import precision, stage_fits, stage_steps
from proxy_attention.lab.runs.checkpoint import RunError, is_cost
from proxy_attention.lab.runs.state import is_run
from proxy_attention.files import read_lines
from proxy_attention.shortcut_test import Verdict

@pytest.fixture
def run(cache):
    "A function: run the experiment with these changes; folder of the run"
    Path('settings.ini').write_text(INI)
    def _run(*overrides, out='run', **kw): return run_experiment('try', 'settings.ini', out, overrides, cache, say=lambda *_: None, **kw)
    return _run

@pytest.fixture
def run_until(run, monkeypatch):
    "A function: as `run`, but stopped as soon as a line of this kind is in the record"
    def _run(kind, *overrides, **kw):
        def record(self, found, **values):
            real(self, found, **values)
            if found == kind: raise KeyboardInterrupt
        with monkeypatch.context() as m, pytest.raises(KeyboardInterrupt):
            real = lab.Run.record
            m.setattr(lab.Run, 'record', record)
            run(*overrides, **kw)
        return Path(kw.get('out', 'run'))
    return _run

def lines(folder, *kinds):
    "The record without what it cost"
    free = lambda v: {k: free(o) for k,o in v.items() if not is_cost(k)} if isinstance(v, dict) else v
    return [free(o) for o in read_lines(folder) if not kinds or o['kind'] in kinds]

def stages(folder, stage): return [o for o in lines(folder, 'stage') if o['stage'] == stage]

def final(folder):
    "The weights that the test was made with"
    return load_file(Path(folder)/'weights'/json.loads((Path(folder)/'state.json').read_text())['weights'])

def same(a, b): return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)

def listed(folder): return (Path(folder)/'suspects.json').read_text() if (Path(folder)/'suspects.json').exists() else None

def copies(folder): return {f.name: f.read_bytes() for f in (Path(folder)/'proxies').glob('*.png')}

def child(work):
    "`work` in a forked process; its number"
    pid = os.fork()
    if pid: return pid
    try:
        with contextlib.redirect_stdout(io.StringIO()): work()
        os._exit(0)
    except BaseException: traceback.print_exc()
    finally: os._exit(1)

def ended(pid, within):
    "Exit status of a process, None if it hasn't ended after so many seconds"
    end = time.monotonic() + within
    while time.monotonic() < end:
        got,status = os.waitpid(pid, os.WNOHANG)
        if got: return status
        time.sleep(0.002)
    return None

needs_cleanlab = pytest.mark.skipif(importlib.util.find_spec('cleanlab') is None, reason="needs cleanlab: pip install 'proxy_attention[labels]'")

forks = [pytest.mark.skipif(not hasattr(os, 'fork'), reason="needs fork"), pytest.mark.filterwarnings('ignore:.*fork.*')]


# ------------------------------------------------------------------------------------------------------------------------------------ a whole run

@pytest.fixture(scope='module')
def unchanging(cache, tmp_path_factory):
    "A function: the folder of a run that tests compare theirs with"
    def _run(*overrides):
        folder = tmp_path_factory.mktemp('unchanged')
        (folder/'settings.ini').write_text(INI)
        return run_experiment('try', folder/'settings.ini', folder/'run', overrides, cache, say=lambda *_: None)
    return _run

@pytest.fixture(scope='module')
def usual(unchanging):
    "The folder of the experiment as it stands in the settings, for reading only"
    return unchanging()

def test_a_run(run, cache):
    said = []
    out = run_experiment('try', 'settings.ini', 'run', (), cache, say=said.append)
    epochs = [s.split() for s in said if s.strip().startswith('epoch')]
    assert [s[1] for s in epochs] == ['1', '2', '3']*3 and all(s[2:4] == ['of', '3:'] for s in epochs)
    assert ['left' in s for s in epochs] == [True]*8 + [False], "nothing is left after the last epoch of the last cycle"
    assert [s[:7].strip() for s in said if not s.startswith(' ')] == ['Stage 0', 'Stage 1', 'Stage 2', 'Stage 3', 'Stage 2', 'Stage 3', 'Test']
    first,*_,end = lines(out)
    assert (first['kind'], end['kind'], end['stop']) == ('run', 'end', 'cycles done') and first['images'] == dict(train=30, valid=10, test=10)
    assert first['settings']['experiment']['lr'] == 0.01 and len(first['settings_sha256']) == 64 and first['parameters'] > 0 and first['multiply_adds'] > 0
    assert [(o['cycle'], o['epoch']) for o in lines(out, 'epoch')] == [(c, e) for c in range(3) for e in (1, 2, 3)]
    assert [(o['cycle'], o['items'], o['proxies'], o['steps']) for o in stages(out, 'train')] == [(0, 30, 0, 9), (1, 36, 6, 9), (2, 36, 6, 9)]
    assert [(o['cycle'], o['proxies'], o['live']) for o in stages(out, 'proxies')] == [(1, 6, 6), (2, 6, 6)]
    assert end['test']['n'] == 10 and end['audit']['ok'] and sum(map(sum, end['test']['confusion'])) == 10
    assert set(end['test']['per_group']) == {'colour agrees', 'colour differs'} or len(end['test']['per_group']) == 1
    assert 0 <= end['maps']['on_digit'] <= 1 and end['maps']['method'] == 'layercam'
    assert len(list((out/'gallery').glob('*.jpg'))) == 2*6*3 and is_run(out)

def test_every_cost_is_there(usual):
    whole = read_lines(usual)
    epoch,train,proxy,end = (next(o for o in whole if o['kind'] == k and (s is None or o['stage'] == s)) for k,s in
                             (('epoch', None), ('stage', 'train'), ('stage', 'proxies'), ('end', None)))
    for o in (epoch, train): assert o['seconds_train'] > 0 and o['seconds_valid'] > 0 and o['images_per_second'] > 0 and o['peak_ram_mb'] > 0
    assert all(proxy[f'seconds_{k}'] > 0 for k in ('score', 'saliency', 'erase', 'write')) and proxy['proxies_mb'] > 0
    assert end['seconds'] > end['seconds_train'] > 0 and end['seconds_train'] == pytest.approx(sum(o['seconds_train'] for o in whole if o.get('stage') == 'train' and o['kind'] == 'stage'))
    assert end['target']['epochs'] is not None and 'peak_gpu_allocated_mb' in epoch

def test_the_record_does_not_grow_with_the_data(run):
    size = lambda *o: (run(*o, out=f'run{o[2]}')/'record.jsonl').stat().st_size
    small,large = size(*ONE, 'n_train=20', 'n_valid=10'), size(*ONE, 'n_train=60', 'n_valid=40')
    assert abs(small - large) < 0.05*small

def test_no_proxies_at_all(run):
    out = run('proxy=none')
    assert [o['kind'] for o in lines(out)] == ['run', 'epoch', 'epoch', 'epoch', 'stage', 'end'] and lines(out, 'end')[0]['stop'] == 'trained'
    assert not (out/'proxies').exists()

def test_stage_1_is_a_plain_fine_tune(run, cache):
    "The lab adds nothing to what fastai does with the same model, data and random numbers"
    out = run('proxy=none')
    conf = lab.load_experiment('try', 'settings.ini', ['proxy=none'])
    with lab.Run('other', lab.provenance(conf, '')) as r, lab.deterministic(True):
        job = lab.RunContext(r, conf, cache)
        lab.prepare(job)
        job.seed('train', 0)
        learn = loaded(job, 'initial.safetensors')
        with learn.no_bar(), learn.no_logging(): learn.fine_tune(2, 0.01, freeze_epochs=1)
    assert same(final(out), learn.model.state_dict())

@pytest.mark.parametrize('test', ['true', 'false'])
def test_one_engine(run, cache, test):
    "A run with a scout and a user's own line with the same settings and seed end with the same weights"
    out = run('proxy=scouted', 'cycles=0', 'probe=false', 'experiment.epochs=1', f'proxy.scout_test={test}')
    conf = lab.load_experiment('try', 'settings.ini', ['proxy=none'])
    with lab.Run('other', lab.provenance(conf, '')) as r, lab.deterministic(True):
        job = lab.RunContext(r, conf, cache)
        lab.prepare(job)
        job.seed('train', 0)
        learn = loaded(job, 'initial.safetensors', [ProxyAttentionCB(scout='3 steps', scout_test=test == 'true', probe=False, select=None, path='own', verbose=False)])
        with learn.no_bar(), learn.no_logging(): learn.fine_tune(1, 0.01, freeze_epochs=1)
    assert same(final(out), learn.model.state_dict())
    found = next(o for o in lines(out) if o['kind'] == 'scout')
    assert found['steps'] >= 3 and found['copies'] == len(learn.proxies) == (0 if test == 'true' else 30)
    assert [o['steps'] for o in lines(out) if o['kind'] == 'stage'] == [6] and lines(out)[-1]['audit']['ok']

def test_the_copies_of_a_scout_stay(run):
    out = run('proxy=scouted')
    stages = [o for o in lines(out) if o['kind'] == 'stage']
    assert [o['proxies'] for o in stages if o['stage'] == 'train'][0] == 30 and stages[1]['live'] == 30 + stages[1]['proxies']
    assert stages[2]['items'] == 30 + stages[1]['proxies'], "the scout's copies replace their originals"

# ------------------------------------------------------------------------------------------------------------------------------------- killed

def go_on(work, moments, most):
    "Run `work` again and again until it ends, killing it after the seconds that `moments` gives, at most so often; how often it was killed"
    kills = 0
    while True:
        pid = child(work)
        status = ended(pid, moments() if kills < most else math.inf)
        if status is not None:
            assert status == 0, "the run failed by itself"
            return kills
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        kills += 1

@pytest.mark.parametrize('change', [('experiment.epochs=1',), ('proxy=early', 'steps=12', 'freeze_epochs=0', 'repeat=2'), ('proxy=seen', 'accumulate=2', 'experiment.epochs=1', 'cycles=1'),
                                    ('proxy=tested', 'steps=12', 'freeze_epochs=0'), ('proxy=scouted', 'scout=2 steps', 'experiment.epochs=1'),
                                    pytest.param(('label_gate=true', 'label_folds=2', 'accept=true', 'experiment.epochs=1', 'cycles=1'), marks=needs_cleanlab)],
                         ids=['on', 'early', 'seen', 'tested', 'scouted', 'labels'])
def test_killed_at_any_moment(run, change, monkeypatch):
    change = *change, 'n_train=20'
    patch_name(monkeypatch, 'keep_every', 0) # A checkpoint after each epoch
    verdict_of(monkeypatch, 'shortcut')
    start = time.monotonic()
    whole = run(*change, out='whole')
    took,rng,kills,n = time.monotonic() - start, random.Random(str(change)), 0, 0 # other moments for each
    while kills < 4: # In all of them together 24
        kills += go_on(lambda: run(*change, out=f'killed{n}'), lambda: rng.uniform(0.02, 0.6)*took, 4 - kills) # noqa: B023
        assert lines(f'killed{n}') == lines(whole) and same(final(f'killed{n}'), final(whole)) and copies(f'killed{n}') == copies(whole)
        assert listed(f'killed{n}') == listed(whole)
        assert not list(Path(f'killed{n}').rglob('*.tmp')) and not Path(f'killed{n}/partial.pt').exists()
        n += 1

test_killed_at_any_moment.pytestmark = [*test_killed_at_any_moment.pytestmark, *forks]

def test_killed_at_every_write(run, monkeypatch):
    "Before a file is moved to its place: what a killed process leaves is the folder as it is then"
    patch_name(monkeypatch, 'keep_every', 0)
    real,moves,left = os.replace, [], []
    def replace(a, b):
        if len(moves) % 6 == 0: left.append(shutil.copytree('whole', f'left{len(moves)}'))
        moves.append(b)
        return real(a, b)
    with monkeypatch.context() as m:
        m.setattr(os, 'replace', replace)
        whole = run(*ONE, 'share=0.1', out='whole')
    assert len(moves) > 12
    for out in left: assert alike(run(*ONE, 'share=0.1', out=out), whole), moves[int(out[4:])]

@pytest.fixture(scope='module')
def found_shortcut(unchanging):
    with pytest.MonkeyPatch.context() as m:
        verdict_of(m, 'shortcut')
        return unchanging(*TESTED)

@pytest.mark.parametrize('where', ['.png', '.jpg'], ids=['copies', 'gallery'])
@pytest.mark.filterwarnings('ignore:.*no copies.*')
def test_a_disk_that_is_full_for_a_moment_is_an_error(run, found_shortcut, monkeypatch, where):
    "A run that went on without a scout's copies, or with a page whose pictures are broken, would look like any other"
    verdict_of(monkeypatch, 'shortcut')
    whole,real,failed = found_shortcut, os.replace, []
    def replace(a, b):
        if str(b).endswith(where) and not failed:
            failed.append(b)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(b))
        return real(a, b)
    with monkeypatch.context() as m:
        m.setattr(os, 'replace', replace)
        with pytest.raises((RunError, OSError), match='No space left'): run(*TESTED)
    assert failed and not lines('run', 'stage')
    out = run(*TESTED)
    assert lines(out) == lines(whole) and same(final(out), final(whole)) and copies(out) == copies(whole)
    assert {f.name: f.read_bytes() for f in (out/'gallery').glob('*')} == {f.name: f.read_bytes() for f in (whole/'gallery').glob('*')}

def test_half_written_files_go(run, usual):
    "Those that a process has left which was killed while it wrote the page or the gallery's list, and no others"
    out = Path(shutil.copytree(usual, 'run'))
    for name in ('.report.html.1.2.tmp', 'gallery/.cycle1.json.1.2.tmp', 'gallery/.mine.tmp'): (out/name).touch()
    run()
    assert [f.name for f in out.rglob('*.tmp')] == ['.mine.tmp']

def test_a_checkpoint_is_used(run, usual, monkeypatch):
    patch_name(monkeypatch, 'keep_every', 0)
    real,epochs = CheckpointCallback.after_epoch, []
    def stop(self):
        real(self)
        if self.job.run.state['next'] == ['train', 1] and self.fit_no == 1: raise KeyboardInterrupt
    monkeypatch.setattr(CheckpointCallback, 'after_epoch', stop)
    with pytest.raises(KeyboardInterrupt): run()
    assert Path('run/partial.pt').exists()
    monkeypatch.setattr(CheckpointCallback, 'after_epoch', lambda self: epochs.append((self.fit_no, self.epoch)) if self.epoch >= self.watch.first else None)
    run('proxy.cycles=2')
    assert epochs[0] == (1, 1), "the epochs before the checkpoint were trained again"
    assert lines('run') == lines(usual) and same(final('run'), final(usual))

@pytest.mark.parametrize('every', [0, 1e9])
def test_how_often_a_checkpoint_is_written(run, monkeypatch, every):
    written = []
    patch_name(monkeypatch, 'keep_every', every)
    monkeypatch.setattr(lab.Run, 'checkpoint', lambda self, **kw: written.append(kw['epoch']))
    run('proxy=none')
    assert written == ([0, 1] if every == 0 else [])

def test_done_is_done(run, usual):
    out = shutil.copytree(usual, Path('run'))
    before,said = (out/'record.jsonl').read_bytes(), []
    run_experiment('try', 'settings.ini', 'run', (), 'nowhere', say=said.append)
    assert (out/'record.jsonl').read_bytes() == before and 'done already' in said[0]

def test_keys_that_a_later_version_adds_make_no_other_run(run):
    out = run('proxy=none')
    about = json.loads((out/'config.json').read_text())
    del about['settings']['experiment']['channels_last'], about['settings']['data']['holdout']
    (out/'config.json').write_text(json.dumps(about))
    run('proxy=none')
    with pytest.raises(RunError, match=r"other settings \(experiment.channels_last: False then, True now\)"): run('proxy=none', 'channels_last=true')

def test_again(run):
    out = run('proxy=none')
    with pytest.raises(RunError, match=r"other settings \(experiment.lr: 0.01 then, 0.02 now\)"): run('proxy=none', 'lr=0.02')
    run('proxy=none', 'lr=0.02', again=True)
    assert lines(out, 'stage')[0]['lr'] == 0.02

# ------------------------------------------------------------------------------------------------------------------------------------ damaged files

@pytest.fixture(scope='module')
def stops(cache, tmp_path_factory):
    "A function: the folder of a run as it is when a step begins, copied to `run`; at the end to `whole`"
    top = tmp_path_factory.mktemp('stops')
    (top/'settings.ini').write_text(INI)
    def kept(job, *args, real):
        shutil.copytree(job.run.folder, top/'-'.join(map(str, job.run.state['next'])))
        real(job, *args)
    with pytest.MonkeyPatch.context() as m:
        for name,real in list(lab.steps.items()): m.setitem(lab.steps, name, partial(kept, real=real))
        run_experiment('try', top/'settings.ini', top/'end', ONE, cache, say=lambda *_: None)
    return lambda *step: Path(shutil.copytree(top/'-'.join(map(str, step)), 'whole' if step == ('end',) else 'run'))

ONE = ('cycles=1', 'experiment.epochs=1')

@pytest.fixture
def goes_on(run, cache):
    "A function: go on with the run in `run`; what was told"
    def _goes_on():
        said = []
        run_experiment('try', 'settings.ini', 'run', ONE, cache, say=said.append)
        return said
    return _goes_on

@pytest.fixture
def begins():
    "A function: what the run in `run` is told as it goes on; it is stopped before its first step, which is that of the state `at`"
    def _begins(at):
        said = []
        with lab.Run('run', json.loads(Path('run/config.json').read_text()), said.append) as r: assert r.state == at
        return said
    return _begins

def alike(a, b): return lines(a) == lines(b) and same(final(a), final(b)) and copies(a) == copies(b)

def emptied(file): file.write_bytes(b'')
def cut(file): file.write_bytes(file.read_bytes()[:-20])
def flipped(file):
    data = bytearray(file.read_bytes())
    data[len(data)//2] ^= 1
    file.write_bytes(data)

def test_the_state_knows_the_checksum_of_every_file_that_is_built_on(stops):
    out = stops('train', 1)
    state = json.loads((out/'state.json').read_text())
    assert set(state['files']) == {'split.json', 'weights/initial.safetensors', 'weights/train0.safetensors', 'weights/train0.pt'}
    assert all(hashlib.sha256((out/n).read_bytes()).hexdigest() == h for n,h in state['files'].items())
    assert hashlib.sha256((out/'record.jsonl').read_bytes()).hexdigest() == state['record_sha256']

@pytest.mark.parametrize('harm', [emptied, cut, flipped], ids=['empty', 'cut', 'flipped'])
def test_a_damaged_checkpoint_is_dropped(run, stops, goes_on, monkeypatch, harm):
    stops('train', 1)
    real = CheckpointCallback.after_epoch
    def stop(self):
        real(self)
        if self.fit_no == 1: raise KeyboardInterrupt
    with monkeypatch.context() as m:
        patch_name(m, 'keep_every', 0)
        m.setattr(CheckpointCallback, 'after_epoch', stop)
        with pytest.raises(KeyboardInterrupt): run(*ONE)
    harm(Path('run/partial.pt'))
    said = goes_on()
    assert len([w for w in said if 'partial.pt is damaged' in w]) == 1 and not Path('run/partial.pt').exists() and alike('run', stops('end'))

@pytest.mark.parametrize('harm, step, name, back', [
    (cut, ('train', 0), 'weights/initial.safetensors', 'Stage 0, split and initial weights'), (flipped, ('proxies', 1), 'weights/train0.safetensors', 'Stage 1'),
    (emptied, ('train', 1), 'weights/train0.pt', 'Stage 1'), (flipped, ('train', 1), 'proxies/', 'Stage 2, cycle 1'), (Path.unlink, ('test',), 'weights/train1.safetensors', 'Stage 3, cycle 1')])
def test_a_damaged_file_is_made_again(stops, goes_on, harm, step, name, back):
    "The run goes back to the last step whose files are whole, says so, and ends as if nothing had happened"
    out = stops(*step)
    harm(next((out/name).glob('*.png')) if name == 'proxies/' else out/name)
    first = goes_on()[0]
    assert name in first and f'missing or damaged; goes on from {back}, the last step whose files are whole' in first
    assert alike('run', stops('end'))

@pytest.mark.parametrize('harm', [emptied, cut, flipped])
def test_however_a_file_is_damaged_the_run_goes_back(stops, begins, harm):
    out = stops('test')
    before = json.loads((out/'state.json.bak').read_text())
    harm(out/'weights'/'train1.safetensors')
    assert 'weights/train1.safetensors is missing or damaged; goes on from Stage 3, cycle 1' in begins(before)[0]

def test_a_record_that_lost_its_last_line(stops, goes_on):
    cut(stops('train', 1)/'record.jsonl')
    assert 'record.jsonl is missing or damaged; goes on from Stage 2, cycle 1' in goes_on()[0] and alike('run', stops('end'))

@needs_cleanlab
def test_a_damaged_fold_is_trained_again(run, cache, monkeypatch):
    change,said = ('label_gate=true', 'label_folds=2', 'freeze_epochs=0', *ONE), []
    whole = run(*change, out='whole')
    with monkeypatch.context() as m:
        real = lab.steps['labels']
        def stop(job, fold):
            if fold == 1: raise KeyboardInterrupt
            real(job, fold)
        m.setitem(lab.steps, 'labels', stop)
        with pytest.raises(KeyboardInterrupt): run(*change)
    cut(Path('run/weights/labels0.pt'))
    run_experiment('try', 'settings.ini', 'run', change, cache, say=said.append)
    assert 'goes on from Stage 2, labels in doubt, fold 0' in said[0] and alike('run', whole) and listed('run') == listed(whole)

@pytest.mark.parametrize('harm, name', [*((h, n) for h in (emptied, cut, flipped, Path.unlink) for n in ('weights/initial.safetensors', 'split.json')),
                                        (emptied, 'record.jsonl'), (Path.unlink, 'record.jsonl')])
def test_a_file_that_no_step_can_do_without_is_one_clear_error(run, stops, goes_on, harm, name):
    out = stops('train', 1)
    harm(out/name)
    before = {f: f.read_bytes() for f in out.rglob('*') if f.is_file()}
    with pytest.raises(RunError, match=f"'run' can't go on: {name} .*missing or damaged.*--again"): goes_on()
    assert {f: f.read_bytes() for f in out.rglob('*') if f.is_file()} == before
    if harm is cut: assert alike(run(*ONE, again=True), stops('end'))

@pytest.mark.parametrize('text', ['', '{"next": ["tr', '[]', 'null', '{}', '{"next": "train", "record_bytes": 0}', '{"next": [], "record_bytes": 0}', '{"next": ["test"], "record_bytes": "9"}',
                                  '{"next": ["test"], "record_bytes": 0, "weights": 5}', '{"next": ["test"], "record_bytes": 0, "files": []}', '{"next": ["test"], "record_bytes": -1}', '{"next": ["test"], "record_bytes": 0, "seconds": NaN}', '\x00\xff', None])
def test_a_damaged_state(stops, begins, goes_on, text):
    "The state before is used, and that is said; without it there is an error"
    out = stops('test')
    kept = (out/'state.json.bak').read_bytes()
    if text is None: (out/'state.json').unlink()
    else:
        for n in ('state.json', 'state.json.bak'): (out/n).write_text(text, encoding='latin-1')
        with pytest.raises(RunError, match=r"'run' can't go on: state.json is missing or damaged.*--again"): goes_on()
        (out/'state.json.bak').write_bytes(kept)
    said = goes_on() if not text else begins(json.loads(kept))
    assert 'state.json is missing or damaged; goes on from Stage 3, cycle 1' in said[0] and (text or alike('run', stops('end')))

def test_a_damaged_config_is_one_clear_error(stops, goes_on):
    from proxy_attention.lab.runs.state import check_same
    emptied(stops('train', 1)/'config.json')
    with pytest.raises(RunError, match="'run' is a folder with something else"): goes_on()
    with pytest.raises(RunError, match='config.json.*damaged'): check_same('run', {})

def test_a_finished_run_keeps_no_more_than_it_needs(usual):
    out = shutil.copytree(usual, Path('run'))
    state = json.loads((out/'state.json').read_text())
    assert {f.name for f in (out/'weights').iterdir()} == {state[k] for k in ('initial', 'weights', 'opt', 'seen') if state.get(k)} and 'back' not in state
    emptied(out/'weights'/state['weights'])
    with pytest.raises(RunError, match=f"can't be used: weights/{state['weights']} is missing or damaged"): finished_run(out)

# --------------------------------------------------------------------------------------------------------------------------- one process, from disk

def test_a_second_process_is_told(run, cache):
    with lab.Run('run', lab.provenance(lab.load_experiment('try', 'settings.ini'), '')):
        pid = child(lambda: pytest.raises(RunError, run).match('in use by another process'))
        assert os.waitpid(pid, 0)[1] == 0
        with pytest.raises(RunError, match='in use by another process'): run()
    run('proxy=none', out='other')

test_a_second_process_is_told.pytestmark = forks

def test_nothing_holds_a_model_and_the_next_stage_starts_from_disk(run, monkeypatch):
    models,make = [], make_learn
    def watched(*args, **kw):
        learn = make(*args, **kw)
        models.append(weakref.ref(learn.model))
        return learn
    patch_name(monkeypatch, 'make_learn', watched)
    order = []
    for name in ('train', 'proxies', 'test'):
        def step(job, *args, real=lab.steps[name], name=name):
            gc.collect()
            assert all(m() is None for m in models), f"something still holds a model when {name} begins"
            if name != 'train' or args[0] > 0: # What is on disk is what is used: with other weights there, the outcome is other
                order.append((job.run/'weights'/job.run.state['weights']).is_file())
            real(job, *args)
        monkeypatch.setitem(lab.steps, name, step)
    run()
    assert order == [True]*5 and len(models) == 7

def test_the_next_stage_uses_the_weights_on_disk(run, monkeypatch):
    real = lab.steps['proxies']
    def zeroed(job, cycle):
        file = job.run.weights(job.run.state['weights'])
        save_file({k: torch.zeros_like(v) for k,v in load_file(file).items()}, file)
        real(job, cycle)
    whole = run(*ONE, out='whole')
    monkeypatch.setitem(lab.steps, 'proxies', zeroed)
    assert not same(final(run(*ONE)), final(whole))

def test_interrupted_it_leaves_a_sound_folder(run, usual, monkeypatch):
    real,count = MetricsRecorder.after_pred, []
    def stop(self):
        count.append(1)
        if len(count) == 25: raise KeyboardInterrupt
        return real(self)
    monkeypatch.setattr(MetricsRecorder, 'after_pred', stop)
    threads = torch.get_num_threads()
    with pytest.raises(KeyboardInterrupt): run()
    assert torch.get_num_threads() == threads and not torch.are_deterministic_algorithms_enabled()
    run() # the lock is free
    assert lines('run') == lines(usual) and same(final('run'), final(usual))

def test_no_footprint(run):
    random.seed(3); torch.manual_seed(3)
    expected = random.random(), torch.rand(1).item()
    random.seed(3); torch.manual_seed(3)
    run('proxy=none', 'threads=2', 'steps=1', 'freeze_epochs=0', 'n_train=10')
    assert (random.random(), torch.rand(1).item()) == expected and torch.get_num_threads() == 1

# ----------------------------------------------------------------------------------------------------------------------------------- arguments

SMALL = ['experiment.epochs=1', 'freeze_epochs=0', 'cycles=1', 'share=0.5', 'experiment.seed=1']

def outcome(folder, *kinds): return [{k: v for k,v in o.items() if k not in ('settings', 'settings_sha256')} for o in lines(folder, *kinds)]

@pytest.fixture
def departs(run, monkeypatch):
    "A function: does the record of a run become another than `usual`? The run is stopped as soon as it does"
    def _departs(usual, *overrides, kinds=()):
        real = lab.Run.record
        def record(self, *args, **values):
            real(self, *args, **values)
            found = outcome(self.folder, *kinds)
            if found != usual[:len(found)]: raise KeyboardInterrupt
        monkeypatch.setattr(lab.Run, 'record', record)
        try: return outcome(run(*overrides), *kinds) != usual
        except KeyboardInterrupt: return True
    return _departs

@pytest.fixture(scope='module')
def unchanged(unchanging): return outcome(unchanging(*SMALL))

def test_what_changes_nothing_does_not_depart(departs, unchanged): assert not departs(unchanged, *SMALL)

@pytest.mark.parametrize('override', ['experiment.seed=2', 'data.seed=1', 'lr=0.02', 'experiment.epochs=3', 'freeze_epochs=1', 'weight_decay=5', 'width=5', 'data.bs=15',
                                      'accumulate=2', 'augment=flip', 'strength=0.1', 'share=0.4', 'area=0.3', 'place=random', 'repeat=2', 'mix=mixup', 'mix=cutmix', 'augment=random_erasing', 'method=layercam', 'cycles=2', 'cycle_epochs=2',
                                      'scout=2 steps', 'merge=replace', 'data.size=48', 'model.size=64', 'judge=gradcam++',
                                      'target_accuracy=0.01', 'n_test=20', 'data.per_class=2', 'accept=true'])
def test_every_key_changes_the_outcome(departs, unchanged, override):
    assert departs(unchanged, *SMALL, override)

SCOUTED = ['proxy=scouted', 'cycles=0', 'freeze_epochs=0']

@pytest.fixture(scope='module')
def usual_scout(unchanging): return outcome(unchanging(*SCOUTED), 'epoch')

def test_scouts_are_announced_and_their_verdict_is_said(cache):
    Path('settings.ini').write_text(INI)
    def said(*overrides):
        out = []
        run_experiment('try', 'settings.ini', overrides[-1], (*SCOUTED, *overrides[:-1]), cache, say=out.append)
        return [line.strip() for line in out]
    told = said('scouted')
    at = told.index('scouts train first')
    assert told[at+1].startswith('scout: ') and told[at+2].startswith('epoch 1 ')
    assert 'scouts train first' not in said('proxy=unsure', 'cycles=1', 'other')

@pytest.mark.parametrize('override', ['scout=4 steps', 'scout_select=wrong', 'scout_merge=add', 'scout_test=true', 'repeat=2', 'fill=black', 'area=0.3', 'method=layercam', 'place=random'])
def test_every_key_of_a_scout_changes_what_is_trained(departs, usual_scout, override):
    assert departs(usual_scout, *SCOUTED, override, kinds=['epoch'])

@pytest.mark.parametrize('asked', [True, False])
def test_channels_last(run, monkeypatch, asked):
    seen, real = [], load_weights
    def spy(file, model):
        real(file, model)
        seen.append(next(p for p in model.parameters() if p.ndim == 4).is_contiguous(memory_format=torch.channels_last))
    patch_name(monkeypatch, 'load_weights', spy)
    run(*SMALL, f'channels_last={asked}')
    assert seen and set(seen) == {asked}

def test_until(run):
    out = run('until=accuracy>=0.01', *ONE)
    assert lines(out, 'end')[0]['stop'] == 'until' and not stages(out, 'proxies')

def test_patience(run, monkeypatch):
    values = iter([0.5, 0.4, 0.3, 0.2])
    scripted(monkeypatch, lambda: next(values))
    out = run('patience=2', 'cycles=3', 'experiment.epochs=1')
    assert lines(out, 'end')[0]['stop'] == 'patience' and len(stages(out, 'train')) == 3

def test_budget(run):
    out = run('budget=0.001', *ONE)
    assert lines(out, 'end')[0]['stop'] == 'budget' and len(stages(out, 'train')) == 1

def scripted(monkeypatch, value):
    real = update_early_stopping
    patch_name(monkeypatch, 'update_early_stopping', lambda e, st, cycle, values, seconds: real(e, st, cycle, {**values, 'accuracy': value()}, seconds))

def test_rollback_undoes_weights_and_copies(run, monkeypatch):
    values = iter([0.5, 0.1, 0.6])
    scripted(monkeypatch, lambda: next(values))
    seen,real = [], lab.steps['proxies']
    def noted(job, cycle):
        seen.append((dict(final(job.run.folder)), list(job.run.state['live'])))
        real(job, cycle)
    monkeypatch.setitem(lab.steps, 'proxies', noted)
    out = run('rollback=0.05', 'experiment.epochs=1')
    assert [o['rolled_back'] for o in stages(out, 'train')] == [False, True, False]
    assert same(seen[0][0], seen[1][0]) and seen[1][1] == [], "cycle 2 didn't start from where cycle 1 had started"

def test_rollback_of_the_last_cycle(run, monkeypatch):
    values = iter([0.5, 0.1])
    with monkeypatch.context() as m:
        scripted(m, lambda: next(values))
        out = run('rollback=0.05', *ONE)
    assert same(final(out), final(run('proxy=none', *ONE[1:], out='plain'))), "the test must be made with the weights that were kept"

# ------------------------------------------------------------------------------------------------------------------------------ the scout's verdict

TESTED = ('proxy=tested', 'probe=false', 'steps=12', 'freeze_epochs=0')

def verdict_of(monkeypatch, name):
    "Let the scouts' tests come to this verdict"
    found = lambda c, *_: Verdict(name, c, 1., (1., 1.), 1., (1., 1.), 'few' if name == 'unclear' else '')
    monkeypatch.setattr(callback, 'necessity_test', lambda c: None if name in ('shortcut', 'real') else found(c))
    monkeypatch.setattr(callback, 'sufficiency_test', found)

def test_a_shortcut_is_trained_on_from_the_initial_weights(run, monkeypatch):
    verdict_of(monkeypatch, 'shortcut')
    began,real = [], run_fits
    patch_name(monkeypatch, 'run_fits', lambda job, learn, watch, fits: began.append(copy.deepcopy(learn.model.state_dict())) or real(job, learn, watch, fits))
    monkeypatch.setattr(lab.Run, '_tidy', lambda self: None)
    out = run(*TESTED)
    (found,),end = lines(out, 'scout'), lines(out)[-1]
    assert (found['steps'], found['copies'], found['verdict']['name']) == (10, 30, 'shortcut') and found['text'].startswith('scout: Shortcut found.')
    assert [(o['items'], o['proxies'], o['steps']) for o in stages(out, 'train')] == [(30, 30, 12)], "the copies replace their originals"
    assert (end['steps'], end['scout_steps'], end['proxies_made'], end['stop']) == (12, 10, 30, 'cycles done') and end['audit']['ok']
    assert same(began[0], load_file(out/'weights'/'initial.safetensors')) and len(list((out/'gallery').glob('0-*.jpg'))) == 3*30

@pytest.fixture(scope='module')
def untouched(unchanging): return unchanging('proxy=none', *TESTED[2:])

@pytest.mark.parametrize('name, steps', [('spread', 5), ('unclear', 5), ('real', 10)])
def test_otherwise_a_run_is_one_without_proxies(run, untouched, monkeypatch, name, steps):
    verdict_of(monkeypatch, name)
    out,plain = run(*TESTED), untouched
    (found,) = lines(out, 'scout')
    assert (found['steps'], found['copies'], found['verdict']['name']) == (steps, 0, name) and not (out/'gallery').exists()
    assert same(final(out), final(plain)) and lines(out, 'epoch') == lines(plain, 'epoch')
    assert [(o['items'], o['proxies'], o['steps']) for o in stages(out, 'train')] == [(30, 0, 12)] and lines(out)[-1]['audit']['ok']

def test_the_real_tests_leave_a_line(run):
    out = run(*TESTED, 'n_train=300', 'probe=false')
    (found,) = lines(out, 'scout')
    assert found['verdict']['name'] in ('shortcut', 'real', 'spread', 'unclear')
    c = found['verdict']['counts']
    assert 30 <= c['n'] <= 50 and c['control'] is None, "a scout's held-out images"
    assert found['text'] and read_lines(out)[-1]['seconds_scout'] > 0

def test_a_scout_in_epochs_and_in_percent(run_until):
    from proxy_attention.scout import FROZEN_STEPS
    of = lambda scout, *more: lines(run_until('scout', 'proxy=early', f'scout={scout}', *more, out=f'{scout}{len(more)}'), 'scout')[0]['steps']
    assert [of('1'), of('50%'), of('10%', 'steps=20', 'freeze_epochs=0')] == [3, FROZEN_STEPS, 2], "the first fit is a frozen epoch of three steps"

def test_copies_of_a_scout_are_drawn_as_often_as_asked(run_until):
    (stage,) = stages(run_until('stage', 'proxy=early', 'repeat=3', *TESTED[2:]), 'train')
    assert (stage['items'], stage['proxies']) == (30 + 3*30, 30)

def test_an_unset_scout_is_the_library_s(run_until):
    assert 'scout' not in lab.load_experiment('try', 'settings.ini', ['proxy=tested', 'scout=']).proxy.policy
    assert [o['kind'] for o in lines(run_until('stage', 'proxy=tested', 'scout=', 'probe=false'))].count('scout') == 1

def test_early_stopping():
    from proxy_attention.lab.config.sections import ExperimentConfig
    e = lambda **kw: ExperimentConfig(data='d', model='m', **kw)
    state = dict(best=0.5, kept=0.5, stale=0)
    update = lambda values, state=state, seconds=0., **kw: update_early_stopping(e(**kw), state, 1, values, seconds)
    assert update(dict(accuracy=0.5), patience=2) == (False, '', dict(best=0.5, kept=0.5, stale=1)) and update(dict(accuracy=0.5), patience=1)[1] == 'patience'
    loss = dict(best=-1., kept=-1., stale=0)
    assert update(dict(valid_loss=0.9), loss, monitor='valid_loss')[2] == dict(best=-0.9, kept=-0.9, stale=0)
    assert update(dict(valid_loss=1.2), loss, monitor='valid_loss', rollback=0.1) == (True, '', dict(best=-1., kept=-1., stale=1))
    assert not update(dict(valid_loss=1.2), loss, monitor='valid_loss', rollback=0.3)[0]
    assert update(dict(accuracy=0.1, f1=0.41), until='f1>0.4')[1] == 'until' and update(dict(accuracy=0.1), seconds=9., budget=8.)[1] == 'budget'
    assert update(dict(accuracy=float('nan')))[2] == dict(best=0.5, kept=None, stale=1), "not a number is the worst"
    assert update_early_stopping(e(rollback=0.), {}, 0, dict(accuracy=0.3)) == (False, '', dict(best=0.3, kept=0.3, stale=0)), "Stage 1 is never undone"

def test_fits():
    conf = lambda **kw: lab.load_experiment('try', Path('settings.ini'), [f'{k}={v}' for k,v in kw.items()])
    Path('settings.ini').write_text(INI)
    head,rest = stage_fits(conf(), 0, 0.01, 3)
    assert (head['frozen'], head['epochs'], head['lr'].stop) == (True, 1, 0.01) and (rest['frozen'], rest['epochs'], rest['lr']) == (False, 2, slice(0.01/200, 0.005))
    assert [stage_fits(conf(scout='50%'), 0, 0.01, 3), len(stage_fits(conf(), 1, 0.01, 3))] == [[head, rest], 2], "a scout makes no fit shorter"
    assert stage_fits(conf(cycle_epochs=7), 1, 0.01, 3)[1]['epochs'] == 7 and stage_fits(conf(cycle_epochs=7), 0, 0.01, 3)[1]['epochs'] == 2

@pytest.mark.parametrize('cycle_epochs', [None, 1, 3])
@pytest.mark.parametrize('cycles', [0, 1, 2, 5])
def test_steps_of_all_stages_add_up(cycles, cycle_epochs):
    each = [stage_steps(100, cycles, c, cycle_epochs, 6) for c in range(cycles + 1)]
    assert sum(each) == 100 and min(each) > 0 and (cycle_epochs is None or each[1:] == [6*cycle_epochs]*cycles)
    with pytest.raises(SettingsError, match='steps=5 is too little'): stage_steps(5, 5, 0)

def test_find_lr(run_until):
    out = run_until('stage', 'lr=find', 'data.bs=4', 'proxy=none')
    found = lines(out, 'find_lr')[0]['lr']
    assert found > 0 and lines(out, 'stage')[0]['lr'] == found

def test_ever_wrong_knows_what_training_saw(run, monkeypatch):
    seen = []
    real = seen_log
    patch_name(monkeypatch, 'seen_log', lambda state: seen.append(int(state['wrong'].sum())) or real(state))
    out = run('proxy=seen', *ONE)
    assert seen and stages(out, 'proxies')[0]['proxies'] == seen[0] > 0

def test_keep_all(run):
    kept = run('keep=all', 'experiment.epochs=1')
    assert [o['proxies'] for o in stages(kept, 'train')] == [0, 6, 12] and [o['live'] for o in stages(kept, 'proxies')] == [6, 12]

def test_replace_leaves_originals_out(run): assert [o['items'] for o in stages(run('merge=replace', 'experiment.epochs=1'), 'train')] == [30, 30, 30]

def test_nothing_to_erase_ends_the_run(run):
    out = run('select=wrong', 'experiment.epochs=25', 'lr=0.03', 'n_train=20', 'n_valid=10', 'width=16', 'freeze_epochs=0')
    assert lines(out, 'end')[0]['stop'] == 'nothing left to erase'

# ------------------------------------------------------------------------------------------------------------------------------ labels in doubt

@needs_cleanlab
def test_labels_in_doubt_are_listed_and_not_erased(run, cache):
    said = []
    Path('settings.ini').write_text(INI)
    out = run_experiment('try', 'settings.ini', 'run', ['label_gate=true', 'label_folds=2', 'share=1'], cache, say=said.append)
    assert [s for s in said if 'labels' in s] == ['Stage 2, labels in doubt, fold 0', 'Stage 2, labels in doubt, fold 1']
    split, got = json.loads((out/'split.json').read_text())['train'], json.loads((out/'suspects.json').read_text())
    rows, line = got['suspects'], lines(out, 'labels')[0]
    assert len(rows) > 0 and (got['folds'], got['images'], line['images']) == (2, 30, 30)
    for r in rows: assert split['files'][r['index']] == r['file'] and split['labels'][r['index']] == r['label'] and 0 <= r['confidence'] <= 1
    assert line['suspects'] == len(rows) and line['files'] == [r['file'] for r in rows][:20]
    copied = {json.loads(o)['index'] for o in (out/'proxies'/'manifest.jsonl').read_text().splitlines()}
    assert copied and copied.isdisjoint(r['index'] for r in rows)
    assert [o['suspects'] for o in stages(out, 'proxies')] == [len(rows)]*2 and stages(out, 'proxies')[0]['proxies'] <= 30 - len(rows)
    assert [o['fold'] for o in lines(out, 'fold')] == [0, 1] and sum(o['images'] for o in lines(out, 'fold')) == 30
    order = [o.get('stage') or o['kind'] for o in lines(out) if o['kind'] in ('stage', 'fold', 'labels')]
    assert order == ['train', 'fold', 'fold', 'labels', 'proxies', 'train', 'proxies', 'train']
    costs = [o for o in read_lines(out) if o['kind'] in ('fold', 'labels')]
    assert all(o['seconds'] > 0 for o in costs) and costs[-1]['seconds'] > costs[0]['seconds'] and not list((out/'weights').glob('labels*'))

@needs_cleanlab
def test_few_are_named_in_the_record(run_until, monkeypatch):
    patch_name(monkeypatch, 'named', 2)
    out = run_until('labels', 'label_gate=true', 'label_folds=2', 'cycles=1')
    assert len(lines(out, 'labels')[0]['files']) == 2 < lines(out, 'labels')[0]['suspects'] == len(json.loads(listed(out))['suspects'])

GATED = ['label_gate=true', 'label_folds=2', 'experiment.epochs=1', 'cycles=1']

@pytest.fixture(scope='module')
def usual_gate(unchanging): return unchanging(*GATED)

@pytest.fixture
def until_copies(run, monkeypatch):
    "A function: the folder of a run that is stopped before it makes copies"
    def stop(*args): raise KeyboardInterrupt
    def _run(*overrides):
        monkeypatch.setitem(lab.steps, 'proxies', stop)
        with pytest.raises(KeyboardInterrupt): run(*overrides)
        return Path('run')
    return _run

@needs_cleanlab
@pytest.mark.parametrize('override', ['label_folds=3', 'label_epochs=5', 'label_gate=false', 'experiment.seed=1', 'freeze_epochs=0'])
def test_keys_of_the_gate(until_copies, usual_gate, override):
    found = listed(until_copies(*GATED, override))
    assert found != listed(usual_gate) and (found is None) == (override == 'label_gate=false')

@needs_cleanlab
def test_the_networks_of_the_folds_change_nothing_else(run, monkeypatch):
    patch_name(monkeypatch, 'find_label_errors', lambda *args: [])
    gated, plain = (run(*more, 'freeze_epochs=0', *ONE, out=out) for out,more in (('gated', GATED[:2]), ('plain', [])))
    assert copies(gated) == copies(plain) and same(final(gated), final(plain))

@needs_cleanlab
def test_no_labels_are_looked_at_where_no_copies_are_made(run):
    assert listed(run('label_gate=true', 'label_folds=2', 'until=accuracy>=0.01')) is None

@needs_cleanlab
def test_groups_stay_in_one_fold(run, monkeypatch):
    seen, real = [], fold_probs
    patch_name(monkeypatch, 'fold_probs', lambda dls, make, held, *args: seen.append(held) or real(dls, make, held, *args))
    make_shortcut_digits(Path('all').absolute(), n_train=80, n_valid=20, n_test=20, size=40)
    shutil.move('all/train', 'mine')
    group = r'data.group=(\d)\.png$' # as if the last digit of the name were a person
    run('source=folder', 'data.path=mine', 'n_train=', 'n_valid=', 'n_test=', group, 'label_gate=true', 'label_folds=2', 'cycles=1', 'experiment.epochs=1')
    names = json.loads(Path('run/split.json').read_text())['train']['files']
    persons = [{names[i][-5] for i in held} for held in seen]
    assert len(seen) == 2 and persons[0] and persons[1] and not persons[0] & persons[1]

def test_without_cleanlab_it_is_told_before_anything_is_written(run, monkeypatch):
    monkeypatch.setitem(sys.modules, 'cleanlab.filter', None)
    with pytest.raises(SettingsError, match=r"cleanlab, which isn't installed: pip install 'proxy_attention\[labels\]'"): run('label_gate=true')
    assert not Path('run').exists()
    run('proxy=none')

def test_precision():
    assert precision('auto', 'cpu') == 'fp32' and precision('fp32', 'cpu') == 'fp32'
    with pytest.raises(SettingsError, match="precision='bf16'.*CUDA"): precision('bf16', 'cpu')

def test_spread():
    rows = [dict(label=label, k=k) for k,label in enumerate('aaaaabbc')]
    assert [r['k'] for r in stratified_sample(rows, 5)] == [0, 5, 7, 1, 6]

# ------------------------------------------------------------------------------------------------------------------------------------ memory, faults

def hungry(monkeypatch, most):
    "A machine that holds batches of at most `most` images"
    real = MetricsRecorder.after_pred
    def check(self):
        if self.training and len(self.pred) > most: raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return real(self)
    monkeypatch.setattr(MetricsRecorder, 'after_pred', check)

def test_a_smaller_batch_is_found(run, monkeypatch):
    hungry(monkeypatch, 3)
    out = run('auto_batch=true', 'n_train=24', 'data.bs=8', *ONE)
    assert [o['bs'] for o in lines(out, 'batch')] == [4, 2] and {(o['bs'], o['accumulate']) for o in stages(out, 'train')} == {(2, 4)}
    assert [o['steps'] for o in stages(out, 'train')][0] == 6, "the effective batch, and so the number of steps, stays"

def test_out_of_memory_is_one_clear_error(run, monkeypatch):
    hungry(monkeypatch, 6)
    with pytest.raises(RunError, match='out of memory with bs=10.*auto_batch'): run()

def test_accumulation(run, monkeypatch):
    seen,make = [], make_learn
    patch_name(monkeypatch, 'make_learn', lambda *a, **k: seen.append(make(*a, **k)) or seen[-1])
    out = run('proxy=none', 'data.bs=5', 'accumulate=2')
    assert seen[1]._grab_cbs(GradientAccumulation)[0].n_acc == 10 and stages(out, 'train')[0]['steps'] == 9

@pytest.mark.parametrize('override, words', [('source=shortcut_digit', "source='shortcut_digit'"), ('arch=resnt18', 'resnt18'), ('method=gradcm', "method='gradcm'"),
                                             ('select=wrng', "select='wrng'"), ('precision=fp16', "precision='fp16'"), ('until=acc>1', 'until'),
                                             ('judge=bogus', r"\[experiment:try\] judge='bogus' is not one of 'cam', 'gradcam'"), ('judge=rollout', "judge='rollout' is not for arch='small_cnn'"),
                                             ('lr=inf', "lr='inf'.*finite"), ('lr=nan', "lr='nan'.*finite"), ('until=accuracy>=1e999', 'until=.*finite')])
def test_wrong_names_before_anything_is_written(run, override, words):
    with pytest.raises(SettingsError, match=words): run(override)
    assert not Path('run').exists()

def test_judges_that_the_network_allows(run):
    from proxy_attention.lab.runs.plan import check_settings
    Path('settings.ini').write_text(INI)
    for arch,judges in (('small_cnn', ('cam', 'gradcam', 'eigencam')), ('small_vit', ('rollout', 'gradrollout', 'gradcam'))):
        more = ['width='] if arch == 'small_vit' else []
        for j in judges: check_settings(lab.load_experiment('try', 'settings.ini', [f'arch={arch}', f'judge={j}', *more]))

@pytest.mark.parametrize('overrides, words', [
    (['label_gate=true', 'label_folds=4'], r'\[proxy:unsure\] label_folds=4: the smallest class has at most 3'), (['label_gate=true', 'label_folds=3', 'data.per_class=2'], 'label_folds=3.*at most 2'),
    (['accumulate=4096'], r'\[experiment:try\] accumulate=4096: Stage 1 has only 3 batches'), (['accumulate=4', 'freeze_epochs=0', 'experiment.epochs=1'], 'accumulate=4: Stage 1 has only 3 batches'),
    (['proxy=early', 'scout=4 steps'], r"\[proxy:early\] scout='4 steps' is 4 steps, longer than the fit of 3"), (['proxy=tested', 'scout=21 steps', 'freeze_epochs=0', 'steps=20'], 'longer than the fit of 20'), (['accumulate=4', 'freeze_epochs=0', 'cycle_epochs=1'], 'accumulate=4: Stage 3 has only 3'),
    (['accumulate=4', 'label_gate=true', 'label_folds=2', 'freeze_epochs=0', 'label_epochs=3'], 'accumulate=4: the network of a fold has only 3 batches')])
@needs_cleanlab
def test_too_little_data_before_anything_is_written(run, overrides, words):
    with pytest.raises(SettingsError, match=words): run(*overrides)
    assert os.listdir() == ['settings.ini']

def own_digits(*more):
    "Settings of a folder of images, of which the settings alone tell nothing"
    make_shortcut_digits(Path('all').absolute(), n_train=80, n_valid=20, n_test=20, size=40)
    shutil.move('all/train', 'mine')
    return 'source=folder', 'data.path=mine', 'n_train=', 'n_valid=', 'n_test=', 'data.bs=20', *more

@pytest.mark.parametrize('overrides, words', [
    (['label_gate=true', 'label_folds=8'], 'label_folds=8: the smallest class has only 4 items'), (['label_gate=true', 'label_folds=20', r'data.group=(\d)\.png$'], 'label_folds=20: there are only 3 groups'),
    (['accumulate=9', 'freeze_epochs=0'], 'accumulate=9: Stage 1 has only 4 batches')])
@needs_cleanlab
def test_too_little_data_as_the_images_tell(run, overrides, words):
    change = own_digits(*overrides)
    with pytest.raises(SettingsError, match=words): run(*change)
    assert not Path('run').exists()
    ok = run('proxy=none', 'experiment.epochs=1', 'freeze_epochs=0')
    before = (ok/'record.jsonl').read_bytes()
    with pytest.raises(SettingsError, match=words): run(*change, again=True)
    assert (ok/'record.jsonl').read_bytes() == before, "the earlier run is deleted only for one that can be made"

def test_a_run_that_failed_before_training_makes_way(run, cache):
    "Settings that `prepare` refuses leave a folder that takes the corrected ones, and only until it has trained"
    with pytest.raises(ValueError, match='layer'): run('layer=nowhere')
    assert json.loads(Path('run/config.json').read_text())['settings']['proxy']['layer'] == 'nowhere'
    said = []
    run_experiment('try', 'settings.ini', 'run', ['proxy=none'], cache, say=said.append)
    assert json.loads(Path('run/config.json').read_text())['settings']['proxy'] is None and any('is replaced' in s for s in said)
    assert read_lines('run')[-1]['kind'] == 'end'
    with pytest.raises(RunError, match='other settings'): run('proxy=none', 'lr=0.02')

def test_a_first_stage_that_failed_makes_way(run, monkeypatch):
    "Split and initial weights of the other settings go, too; weights that were trained stay"
    def fails(*args): raise RunError('out of memory')
    with monkeypatch.context() as m:
        m.setitem(lab.steps, 'train', fails)
        with pytest.raises(RunError, match='out of memory'): run('proxy=none', 'data.seed=5')
    before = Path('run/split.json').read_bytes()
    run('proxy=none')
    assert Path('run/split.json').read_bytes() != before and len(lines('run', 'run')) == 1
    with monkeypatch.context() as m:
        m.setitem(lab.steps, 'test', fails)
        with pytest.raises(RunError, match='out of memory'): run('proxy=none', out='two')
    with pytest.raises(RunError, match='other settings'): run('proxy=none', 'data.seed=5', out='two')

def test_as_many_as_there_are(run):
    "What just suffices is no error, and each stage makes its steps"
    out = run('accumulate=3', 'freeze_epochs=0', 'experiment.epochs=1', 'cycles=1')
    assert [o['steps'] for o in stages(out, 'train')] == [1, 1]

def test_a_fit_without_a_step_is_no_stage(run, monkeypatch):
    "Where it couldn't be foreseen, it is told before the stage is trained"
    patch_name(monkeypatch, 'check_amounts', lambda *args: None)
    with pytest.raises(SettingsError, match='accumulate=4: Stage 1 has only 3 batches'): run('accumulate=4', 'freeze_epochs=0', 'experiment.epochs=1')
    assert not lines('run', 'epoch')

def test_a_policy_that_cannot_work_is_told_before_training(run):
    with pytest.raises(ValueError, match='layer'): run('layer=nowhere')
    assert not lines('run', 'epoch')

def test_somebody_else_s_folder(run):
    Path('mine').mkdir()
    Path('mine/thesis.txt').write_text('all of it')
    for again in (False, True):
        with pytest.raises(RunError, match='mine'): run(out='mine', again=again)
    assert [f.name for f in Path('mine').iterdir()] == ['thesis.txt']

def test_initial_weights_do_not_depend_on_the_augmentation(run, monkeypatch):
    def stop(*args): raise KeyboardInterrupt
    monkeypatch.setitem(lab.steps, 'train', stop)
    made = []
    for augment in ('none', 'flip', 'standard', 'random_erasing'):
        with pytest.raises(KeyboardInterrupt): run('proxy=none', f'augment={augment}', out=augment)
        made.append(load_file(Path(augment)/'weights'/'initial.safetensors'))
    assert all(same(made[0], m) for m in made)

def test_divergence(run):
    with pytest.raises(RunError, match='diverged.*lr'): run('lr=100', 'weight_decay=10', 'freeze_epochs=0', 'experiment.epochs=12')

def test_a_changed_image_is_noticed(run, cache, monkeypatch):
    def stop(*args): raise KeyboardInterrupt
    shutil.copytree(load_items(lab.load_experiment('try', 'settings.ini').data, cache).root, 'mine')
    with monkeypatch.context() as m:
        m.setitem(lab.steps, 'proxies', stop)
        with pytest.raises(KeyboardInterrupt): run('source=folder', 'data.path=mine', 'n_train=', 'n_valid=', 'n_test=')
    file = next(Path('mine/train').rglob('*.png'))
    file.write_bytes(next(Path('mine/test').rglob('*.png')).read_bytes())
    with pytest.raises(ValueError, match=file.name): run('source=folder', 'data.path=mine', 'n_train=', 'n_valid=', 'n_test=')

def test_tensorboard(run):
    pytest.importorskip('tensorboard')
    assert list((run('proxy=none', 'tensorboard=true')/'tensorboard').rglob('events.*'))
