"""What each process of test_distributed.py runs: `python distributed_worker.py SCENARIOS FOLDER`, started as one of several by torchrun or by hand."""
import hashlib
import json
import os
import random
import signal
import sys
import time
import warnings
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from fastai.distributed import DistributedDL
from fastcore.basics import patch

from kit import SIDE, Coded, cb_of, coded_dls, copied_files, make_learner, quiet_cb, seed_all, shapes_dls, tiny_model, wrong_files
from proxy_attention import callback, learner, ranks, shortcut_page, stages  # noqa: F401  (learner and shortcut_page patch Learner)
from proxy_attention.callback import ProxyAttentionCB

DATA = Path(sys.argv[2])/'shapes'


@patch
def _broadcast(self:DistributedDL, t, rank): # fastai's own goes through CUDA
    t = torch.LongTensor(t)
    dist.broadcast(t, rank)
    return t.tolist()

def rank(): return int(os.environ['RANK'])

def digest(*values):
    h = hashlib.sha256()
    for v in values: h.update(v if isinstance(v, bytes) else str(v).encode())
    return h.hexdigest()

def state(learn):
    "Weights and random streams, to the bit"
    tensors = [v.numpy().tobytes() for v in learn.model.state_dict().values()]
    return [digest(*tensors), digest(random.getstate()), digest(np.random.get_state()[1].tobytes()), digest(torch.get_rng_state().numpy().tobytes())]

def distributed(learn): return learn.distrib_ctx(sync_bn=False, cpu=True)

def holds(learn):
    "What a learner holds after a fit, as JSON"
    ds, rows = learn.dls.train_ds, learn.proxies
    items = [ds[i] for i in range(len(ds))]
    pixels = [np.asarray(x).tobytes() for x,_ in items]
    return dict(proxies=rows.fillna('').astype(str).values.tolist(), n=learn.dls.train.n, plain=not any(isinstance(dl, DistributedDL) for dl in learn.dls.loaders),
                bare=type(learn.model).__name__, items=digest(*pixels, [int(y) for _,y in items]), report=short(cb_of(learn).last_report.to_dict()))

def short(report): return {k: v for k,v in report.items() if 'seconds' not in k and k != 'text'}

class Drawn:
    "Which items the training draws, by epoch"
    def __init__(self): self.epochs = []
    def watch(self, learn):
        from fastai.callback.core import Callback
        epochs = self.epochs
        class Watch(Callback):
            order = 80
            def after_train(self): epochs.append(list(self.learn.dl._DataLoader__idxs))
        learn.add_cb(Watch())
        return self

def noise(n=48): # Nothing to be found in it
    data = Coded(n)
    rng = np.random.default_rng(5)
    for i,(img,c) in enumerate(data.items): data.items[i] = torch.from_numpy(rng.integers(0, 255, img.shape, dtype=np.uint8)), c
    return data

def with_dropout(): return torch.nn.Sequential(tiny_model()[0], torch.nn.Dropout(0.5), tiny_model()[1])

def no_regret():
    "Fits of the same seed: without a callback, and with one whose scout makes no copies"
    out = {}
    for name in ('without', 'with'):
        cb = quiet_cb(path='no_regret', scout='4 steps', select=None, method='gradcam', fill='context') if name == 'with' else None
        seed_all()
        learn = make_learner(coded_dls(noise(), noise(16)), cb, seed=rank(), model=with_dropout()) # processes draw different numbers
        dls, loaders = learn.dls, list(learn.dls.loaders)
        with distributed(learn): learn.fit_one_cycle(2, 1e-2)
        out[name] = state(learn)
    verdict = cb_of(learn).last_verdict # None: the maps say nothing
    out |= dict(verdict=verdict and verdict.name, steps=cb_of(learn).last_report.steps, same_dls=learn.dls is dls and learn.dls.loaders == loaders)
    return out

def proposal(save):
    "The thesis proposal's policy: the wrong images of a whole scan"
    drawn = Drawn()
    learn = make_learner(lambda: shapes_dls(DATA), ProxyAttentionCB.preset('proposal', path=f'proposal_{save}', save=save, method='eigencam', share=1., verbose=False))
    drawn.watch(learn)
    with distributed(learn):
        learn.fit(1, 1e-3)
        train = [str(f) for f in cb_of(learn).prepared.files]
        wrong = wrong_files(learn.model, train) # of the network as it is now
        first = copied_files(learn)
        learn.fit(1, 1e-3)
    return dict(holds(learn), wrong=sorted(wrong), first=sorted(first), drawn=drawn.epochs, locked=cb_of(learn).copies.store.lock is not None)

def shortcut():
    "A scout finds a planted square, and the fit trains on copies without it"
    from test_scout import Planted
    seed_all()
    cb = quiet_cb(scout='100%', method='gradcam', area=0.2, path='shortcut', fill='context', select=None)
    learn = make_learner(lambda: coded_dls(Planted(384), Planted(32, 1, False), bs=8), cb, model=tiny_model(2))
    drawn, dls = Drawn().watch(learn), learn.dls
    with distributed(learn): learn.fit_one_cycle(2, 2e-2)
    found = holds(learn) | dict(drawn=drawn.epochs, state=state(learn)[0], replaced=learn.dls is not dls)
    learn.remove_proxies()
    return found | dict(back=learn.dls is dls and not any(isinstance(dl, DistributedDL) for dl in dls.loaders))

def probe():
    "A linear probe finds a dot whose colour is the class, where scouts of a step find nothing"
    from torch import nn
    rng, data = np.random.default_rng(0), Coded(120)
    for k in range(120):
        img, c = rng.integers(0, 120, (SIDE, SIDE, 3), dtype=np.uint8), k % 3
        img[::c + 2] += 35
        y,x = rng.integers(0, 24, 2)
        img[y:y+8, x:x+8] = np.eye(3, dtype=np.uint8)[c]*250
        data.items[k] = torch.from_numpy(img).permute(2, 0, 1).contiguous(), c
    seed_all(1)
    net = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 3))
    learn = make_learner(coded_dls(data, bs=16), quiet_cb(path='probe', scout='1 steps', method='gradcam', fill='context', area=0.1, select=None), model=net)
    with distributed(learn): learn.fit(1, 1e-4)
    return holds(learn)

def stages_end_together():
    "Time runs differently: on the second process the budget seems to be spent at once"
    learn = make_learner(lambda: coded_dls(drop_last=False), quiet_cb(path='stages', select='ever_wrong', accept=True))
    class Clock:
        now = 0
        def perf_counter(self):
            self.now += 1e6 if rank() else 1
            return self.now
    real, stages.time = stages.time, Clock()
    try:
        with distributed(learn): table = learn.fit_proxy(1, cycles=2, lr=1e-3, budget=100)
    finally: stages.time = real
    log = cb_of(learn).fit_state.log
    return dict(holds(learn), stop=table.stop.tolist(), proxies_by_cycle=table.proxies.tolist(), ever_wrong=log.wrong.tolist(), labels=log.y.tolist())

def error():
    "One process can't read what it needs for its share"
    learn = make_learner(lambda: shapes_dls(DATA), quiet_cb(path='error', select='all', method='expected_gradients'))
    real = callback.scan
    def fail(*args, **kwargs): raise OSError('no such disk')
    if rank() == 1: callback.scan = fail
    try:
        with distributed(learn): learn.fit(1, 1e-3)
    except Exception as e: found = dict(type=type(e).__name__, text=str(e))
    callback.scan = real
    learn.model = getattr(learn.model, 'module', learn.model)
    with distributed(learn): learn.fit(1, 1e-3)
    return found | dict(after=holds(learn))

def full_disk():
    "The first process can't write"
    learn = make_learner(lambda: shapes_dls(DATA), quiet_cb(path='full', max_gb=1e-7, select='all'))
    with warnings.catch_warnings(record=True):
        warnings.simplefilter('always')
        with distributed(learn): learn.fit(1, 1e-3)
    return dict(why=cb_of(learn).last_report.why, copies=len(learn.proxies))

def resume():
    "Copies of an earlier fit are taken up by both"
    learn = make_learner(lambda: shapes_dls(DATA), quiet_cb(path='proposal_True', select=None))
    with distributed(learn): n = cb_of(learn).resume()
    return dict(n=n, locked=cb_of(learn).copies.store.lock is not None, live=sorted(learn.proxies['id']))

def helpers():
    "The functions of `ranks` themselves"
    def failing(*_): raise KeyError('own')
    def caught(f):
        try: f()
        except Exception as e: return f'{type(e).__name__}: {e}'
    class Odd(Exception): # can't be sent
        def __init__(self, a, b): super().__init__(f'{a} and {b}')
    def odd(): raise Odd(1, 2)
    def only_second():
        with ranks.agreed():
            if rank(): raise ValueError('second')
    def outer(): # an error that all know is not told twice
        with ranks.agreed(): ranks.first_rank(failing)
    ranks._BEAT = 0.
    def slow():
        for _ in range(3): ranks.still_working()
        return ranks.same('inside') # nobody waits there
    def lost():
        with ranks.watch_peers(): raise RuntimeError('Connection closed by peer [10.0.0.1]')
    def other():
        with ranks.watch_peers(): raise RuntimeError('shapes differ')
    net = torch.nn.BatchNorm1d(2)
    with torch.no_grad(): net.running_mean += rank() + 1
    with ranks.first_weights(net): inside = net.running_mean.tolist()
    return dict(n=ranks.n_ranks(), rank=ranks.rank(), exchange=ranks.exchange(rank()), same=ranks.same(rank()), slow=ranks.first_rank(slow),
                shares=ranks.each_share(list(range(5)), list), one=ranks.each_share([7], list), none=ranks.each_share([], list), only_second=caught(only_second),
                outer=caught(outer), share_error=caught(lambda: ranks.each_share([1, 2], lambda part: failing() if rank() else part)),
                first_error=caught(lambda: ranks.first_rank(failing)), then=ranks.same('well'), odd=caught(lambda: ranks.first_rank(odd)), lost=caught(lost), other=caught(other), inside=inside, outside=net.running_mean.tolist())

def outside():
    "A fit that isn't distributed though there are two processes, and a report by two"
    learn, said = make_learner(lambda: shapes_dls(DATA), quiet_cb(path='outside')), []
    for ask in (lambda: learn.fit(1), learn.shortcut_report):
        try: ask()
        except ValueError as e: said.append(str(e))
    return said

def undone():
    "What a learner is after an error inside of `undistributed`"
    from fastai.callback.core import Callback
    found = []
    class Fails(Callback):
        order = 80
        def before_train(self):
            model = self.learn.model
            try:
                with ranks.undistributed(self.learn): raise KeyError('inside')
            except KeyError: found.append(self.learn.model is model and all(isinstance(dl, DistributedDL) for dl in self.learn.dls.loaders))
    learn = make_learner(lambda: shapes_dls(DATA), quiet_cb(path='undone'))
    learn.add_cb(Fails())
    with distributed(learn): learn.fit(1, 1e-3)
    return found

def silent():
    "The second process comes too late; nothing can be said between the two from then on"
    ranks.TIMEOUT, ranks._ours[:] = timedelta(seconds=1), [None, None]
    ranks.exchange(None)
    time.sleep(3*rank())
    try: ranks.exchange(None)
    except ranks.RankError as e: return str(e)

def killed():
    "The second process is killed in its second scan"
    learn = make_learner(lambda: shapes_dls(DATA), quiet_cb(path='killed', select='all', keep='all'))
    with distributed(learn):
        learn.fit(1, 1e-3)
        real = callback.scan
        def die(*args, **kwargs): os.kill(os.getpid(), signal.SIGKILL)
        if rank() == 1: callback.scan = die
        learn.fit(1, 1e-3)
    callback.scan = real

SCENARIOS = dict(helpers=helpers, no_regret=no_regret, saved=lambda: proposal(True), unsaved=lambda: proposal(False), shortcut=shortcut, stages=stages_end_together,
                 error=error, full_disk=full_disk, resume=resume, outside=outside, undone=undone, probe=probe, silent=silent, killed=killed)

if __name__ == '__main__':
    os.chdir(sys.argv[2])
    from accelerate import Accelerator
    Accelerator(cpu=True) # the process group stands from here on
    found = {name: SCENARIOS[name]() for name in sys.argv[1].split(',')}
    Path(f'found-{rank()}.json').write_text(json.dumps(found, default=str))
