"""What cycles found arrives in TensorBoard's files, in a W&B run that is offline, and in a local MLflow store."""
import importlib.util
import json
import random
import struct
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fastai.callback.core import Callback
from fastcore.basics import noop

from kit import cb_of, make_learner, quiet_cb, same_weights, shapes_dls, weights
from proxy_attention import callback, saliency, trackers
from proxy_attention.state import CycleReport
from proxy_attention.shortcut_test import Verdict
from proxy_attention.trackers import TrackedCycle, track

LOW = 1e-3
INSTALLED = {name for name in ('tensorboard', 'wandb', 'mlflow') if importlib.util.find_spec(name)}
GALLERY = 'proxy_attention/gallery'

def needs(name): return pytest.mark.skipif(name not in INSTALLED, reason=f"needs the package {name}: make test-trackers")

class Watch(Callback):
    "Counts batches, and keeps every report"
    order = 95
    def __init__(self): self.trained, self.validated, self.reports = 0, 0, []
    def before_batch(self):
        if not self.trained: self.reports.append(cb_of(self.learn).last_report)
        self.trained += self.training
        self.validated += not self.training
    def after_fit(self): self.reports.append(cb_of(self.learn).last_report)

def start_wandb(patch):
    "A W&B run that is offline, and fastai's callback"
    import fastai.callback.wandb as fastai_wandb
    import wandb
    patch.setattr(fastai_wandb, '_format_config', noop) # It fails on every fit: fastai 2.8.12 with fastcore 2.2.41
    run = wandb.init(mode='offline', dir=Path.cwd(), settings=wandb.Settings(silent=True, console='off', x_disable_stats=True))
    return run, fastai_wandb.WandbCallback(log_preds=False)

def start_mlflow(patch):
    "An MLflow run in a local folder"
    import mlflow
    patch.setenv('MLFLOW_ALLOW_FILE_STORE', 'true') # MLflow 3 prefers a database
    mlflow.set_tracking_uri(Path('mlruns').resolve().as_uri())
    return mlflow.start_run()

@pytest.fixture(scope='module')
def tracked(shapes, tmp_path_factory):
    "Two fits whose scout found a shortcut, with every tracker that is installed"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp('tracked'))
        patch.setattr(callback, 'necessity_test', lambda c: None)
        patch.setattr(callback, 'sufficiency_test', lambda c, *_: Verdict('shortcut', c, 1., (0.9, 1.1), 0.5, (0.4, 0.6)))
        cbs, watch = [], Watch()
        out = SimpleNamespace(folder=Path.cwd(), watch=watch)
        if 'tensorboard' in INSTALLED:
            from fastai.callback.tensorboard import TensorBoardCallback
            cbs.append(TensorBoardCallback('tb', trace_model=False, log_preds=False))
        if 'wandb' in INSTALLED:
            out.wandb,cb = start_wandb(patch)
            cbs.append(cb)
        if 'mlflow' in INSTALLED: out.mlflow = start_mlflow(patch)
        learn = make_learner(lambda: shapes_dls(shapes), [*cbs, watch, quiet_cb(scout='2 steps', probe=False, share=0.2, path='run')])
        with warnings.catch_warnings():
            warnings.filterwarnings('error', message='.*training goes on')
            learn.fit(2, LOW)
            learn.fit(1, LOW)
        if 'mlflow' in INSTALLED: sys.modules['mlflow'].end_run()
        if 'wandb' in INSTALLED: out.wandb.finish()
    assert [r.cycle for r in watch.reports] == [0, 1, 2] and watch.reports[0].verdict.name == 'shortcut' and watch.reports[2].proxies
    return out

def check_numbers(reports, series):
    "`series(name)`: [(step, value)] of a number"
    for k in ('wrong', 'proxies', 'live', 'seconds', 'seconds_erase'):
        assert series(f'proxy_attention/{k}') == [(r.cycle, pytest.approx(getattr(r, k))) for r in reports], k
    v = reports[0].verdict
    for k,value in (('necessity', 1.), ('necessity_interval/low', 0.9), ('sufficiency', 0.5), ('counts/n', v.counts.n)):
        assert series(f'proxy_attention/verdict/{k}') == [(0, pytest.approx(value))], k


# -- the three ------------------------------------------------------------------------------------------------------------------------------------

@needs('tensorboard')
def test_tensorboard(tracked):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    seen, reports = EventAccumulator(str(tracked.folder/'tb')).Reload(), tracked.watch.reports
    def texts(name): return [(e.step, e.tensor_proto.string_val[0].decode()) for e in seen.Tensors(f'proxy_attention/{name}/text_summary')]
    check_numbers(reports, lambda name: [(e.step, e.value) for e in seen.Scalars(name)])
    assert texts('text') == [(r.cycle, r.text) for r in reports] and texts('verdict/name') == [(0, 'shortcut')]
    assert [k for k,t in texts('settings') if '\nfill | `black`\n' in t and '\nscout | `2 steps`\n' in t] == [0, 1, 2]
    assert [(e.step, e.height > 100) for e in seen.Images(GALLERY)] == [(0, True), (1, True), (2, True)]
    assert len(seen.Scalars('train_loss')) == tracked.watch.trained + tracked.watch.validated, "fastai's own lines are all there"

def wandb_rows(file):
    "The history in a run's file: records as in LevelDB's log, each a row of (step, name → value)"
    from wandb.proto.wandb_internal_pb2 import Record
    data, at, whole = file.read_bytes(), 7, b''
    while at + 7 <= len(data):
        if (room := 2**15 - at % 2**15) < 7:
            at += room
            continue
        length,kind = struct.unpack('<HB', data[at+4:at+7])
        whole, at = whole + data[at+7:at+7+length], at + 7 + length
        if kind not in (1, 4): continue # 2, 3: it goes on in the next block
        record, whole = Record.FromString(whole), b''
        if record.WhichOneof('record_type') == 'history':
            yield record.history.step.num, {i.key or i.nested_key[0]: json.loads(i.value_json) for i in record.history.item}

@needs('wandb')
def test_wandb(tracked):
    run, reports = tracked.wandb, tracked.watch.reports
    folder = Path(run.dir).parent
    rows = list(wandb_rows(next(folder.glob('*.wandb'))))
    def series(name): return [(int(row['proxy_attention/cycle']), row[name]) for _,row in rows if name in row]
    check_numbers(reports, series)
    assert series('proxy_attention/text') == [(r.cycle, r.text) for r in reports] and series('proxy_attention/verdict/name') == [(0, 'shortcut')]
    assert [c for c,_ in series(GALLERY)] == [0, 1, 2] and len(list((folder/'files'/'media').rglob('gallery*.png'))) == 3
    assert run.config['ProxyAttentionCB']['fill'] == 'black' and run.config['ProxyAttentionCB']['share'] == 0.2
    steps = [s for s,_ in rows]
    assert steps == sorted(set(steps)) and sum('raw_loss' in row for _,row in rows) == tracked.watch.trained, "no line of fastai's is lost"

@needs('mlflow')
def test_mlflow(tracked):
    from mlflow import MlflowClient
    client, reports = MlflowClient((tracked.folder/'mlruns').as_uri()), tracked.watch.reports
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('MLFLOW_ALLOW_FILE_STORE', 'true')
        run = client.get_run(tracked.mlflow.info.run_id)
        check_numbers(reports, lambda name: [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, name)])
    assert run.data.params['ProxyAttentionCB.fill'] == 'black' and run.data.params['ProxyAttentionCB.share'] == '0.2'
    assert run.data.tags['proxy_attention/verdict/name'] == 'shortcut' and run.data.tags['proxy_attention/text'] == reports[2].text
    files = tracked.folder/'mlruns'/'0'/run.info.run_id/'artifacts'/'proxy_attention'
    for r in reports:
        assert json.loads((files/f'cycle_{r.cycle}'/'report.json').read_text())['text'] == r.text
        assert (files/f'cycle_{r.cycle}'/'gallery.png').stat().st_size > 1000


# -- any tracker ----------------------------------------------------------------------------------------------------------------------------------

@pytest.fixture
def own(monkeypatch):
    "The one tracker that is active: what it is sent"
    sent = []
    monkeypatch.setattr(trackers, 'trackers', {'own': sent.append})
    return sent

def test_a_tracker_is_an_entry(learner, own):
    learn = learner(quiet_cb(suspects=[1]))
    learn.fit(1, LOW)
    cycle, = own
    assert cycle.step == 1 and cycle.report is cb_of(learn).last_report and cycle.numbers['proxy_attention/proxies'] == len(learn.proxies) > 0
    assert all(type(v) is float for v in cycle.numbers.values()) and cycle.texts == {'proxy_attention/text': cycle.report.text}
    assert cycle.settings['fill'] == 'black' and cycle.settings['seed'] == 0 and 'suspects' not in cycle.settings
    assert len(cycle.figure.axes) == 3*min(9, len(learn.proxies))
    learn.proxy_attention_cb.fill = 'mean'
    learn.proxy_attention_cb.make_proxies()
    assert own[1].settings['fill'] == 'mean' and own[1].step == 2

def test_a_cycle_without_copies_has_no_gallery(learner, monkeypatch):
    "Though copies of an earlier one may be live"
    drawn = []
    monkeypatch.setattr(trackers, 'trackers', {'own': lambda cycle: drawn.append((cycle.report.proxies > 0, cycle.figure is not None))})
    monkeypatch.setitem(saliency.saliency_methods, 'flat', lambda acts, grads, weights: torch.zeros_like(acts[:, 0]))
    learn = learner(quiet_cb(keep='all'))
    learn.fit(1, LOW)
    learn.proxy_attention_cb.method = 'flat'
    learn.proxy_attention_cb.make_proxies()
    assert drawn == [(True, True), (False, False)] and len(learn.proxies)

def test_why_there_are_no_copies(learner, own):
    learn = learner(quiet_cb())
    learn.fit(1, LOW)
    with torch.no_grad(): next(learn.model.parameters()).fill_(np.nan)
    with pytest.warns(UserWarning, match='no copies'): learn.proxy_attention_cb.make_proxies()
    assert 'finite' in own[1].texts['proxy_attention/why']

def test_random_numbers_of_a_tracker_change_nothing(shapes, own, monkeypatch):
    def fitted():
        learn = make_learner(lambda: shapes_dls(shapes), quiet_cb(scout='2 steps', probe=False))
        learn.fit(1, LOW)
        return learn
    def draw(cycle): own.append((random.random(), np.random.rand(), torch.rand(1)))
    before = fitted()
    monkeypatch.setattr(trackers, 'trackers', {'own': draw})
    after = fitted()
    assert len(own) == 4 and same_weights(weights(before.model), weights(after.model))

def test_a_tracker_that_fails_is_named_once(learner, own, monkeypatch):
    def broken(cycle): raise OSError('no network')
    monkeypatch.setattr(trackers, 'trackers', {'Broken': broken, 'own': own.append})
    learn = learner(quiet_cb())
    with pytest.warns(UserWarning, match="Broken didn't take what was found in cycle 1, and training goes on: OSError: no network"): learn.fit(1, LOW)
    with warnings.catch_warnings():
        warnings.filterwarnings('error', message='.*training goes on')
        learn.fit(1, LOW)
    assert [c.step for c in own] == [1, 2] and cb_of(learn).last_report.cycle == 2

def test_the_first_process_alone_sends(learner, own, monkeypatch):
    cb = cb_of(learner(quiet_cb()))
    monkeypatch.setattr(callback, 'rank', lambda: 1)
    cb._keep(CycleReport(3))
    assert cb.last_report.cycle == 3 and not own
    monkeypatch.setattr(callback, 'rank', lambda: 0)
    cb._keep(CycleReport(3))
    assert [c.step for c in own] == [3]

def test_where_none_is_active_nothing_is_imported_or_drawn(learner, monkeypatch):
    names = 'wandb', 'mlflow', 'fastai.callback.tensorboard', 'tensorboard'
    for name in names: monkeypatch.delitem(sys.modules, name, raising=False)
    def figure(*_): raise AssertionError('drawn')
    monkeypatch.setattr(trackers, 'proxy_figure', figure)
    learn = learner(quiet_cb())
    learn.fit(1, LOW)
    assert track(learn, cb_of(learn).last_report) == {} and not any(name in sys.modules for name in names)

def test_trackers_without_a_run_are_left_alone(learner, monkeypatch):
    "Imported, and no run is active; a module that is only half there; fastai's callback before its first fit"
    monkeypatch.setitem(sys.modules, 'wandb', SimpleNamespace(run=None))
    monkeypatch.setitem(sys.modules, 'mlflow', SimpleNamespace(active_run=lambda: None))
    base = type('TensorBoardBaseCallback', (Callback,), {})
    monkeypatch.setitem(sys.modules, 'fastai.callback.tensorboard', SimpleNamespace(TensorBoardBaseCallback=base))
    learn = learner([quiet_cb(), base()])
    assert track(learn, CycleReport(1, wrong=2)) == {}
    for name in ('wandb', 'mlflow'): monkeypatch.setitem(sys.modules, name, SimpleNamespace())
    assert track(learn, CycleReport(1)) == {} and TrackedCycle(learn, CycleReport(1, wrong=2)).numbers['proxy_attention/wrong'] == 2

def test_numbers_arrive_where_the_gallery_fails(learner, monkeypatch):
    rows = []
    run = SimpleNamespace(config={}, define_metric=noop, log=lambda row, commit=True: rows.append(row))
    run.config = type('Config', (dict,), {'update': lambda self, new, allow_val_change: dict.update(self, new)})({'ProxyAttentionCB': {'kept': 1}})
    monkeypatch.setitem(sys.modules, 'wandb', SimpleNamespace(run=run))
    def figure(*_): raise ValueError('no picture')
    monkeypatch.setattr(trackers, 'proxy_figure', figure)
    learn = learner(quiet_cb())
    with pytest.warns(UserWarning, match='Weights & Biases.*no picture'): learn.fit(1, LOW)
    assert [row['proxy_attention/proxies'] for row in rows if row] == [len(learn.proxies)]
    assert run.config['ProxyAttentionCB']['kept'] == 1 and run.config['ProxyAttentionCB']['fill'] == 'black'
