"""Does what was stopped end as if nothing had happened? Commands and a user's script are killed at random moments, or their disk fills up or can't be written to;
then the same is run again until it ends, and compared with what was never stopped: the weights bit by bit, the record without its costs, copies, every file's name.

A moment is a point of time, the start of a phase (a scout, copies, a checkpoint), the point before a file is touched, or the middle of a write. Work is done in
forks of a process that has imported torch and fastai. Full and read-only disks are real ones where this process may mount file systems,
and calls that fail, for a while or for good."""
import argparse
import builtins
import contextlib
import ctypes
import errno
import functools
import gc
import io
import itertools
import json
import math
import mmap
import os
import platform
import random
import re
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path
from typing import Callable, NamedTuple
from unittest import mock

os.environ |= dict(OMP_NUM_THREADS='1', MPLBACKEND='agg')
ROOT = Path(__file__).resolve().parent.parent
for p in (ROOT, ROOT/'tests'):
    if str(p) not in sys.path: sys.path.insert(0, str(p))

import cleanlab.filter  # noqa: E402,F401 (what children need is imported once)
import fastai  # noqa: E402
import torch  # noqa: E402
from fastai.learner import Learner  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

import proxy_attention  # noqa: E402
from kit import files_in, make_learner, make_shapes, quiet_cb, same_weights, shapes_dls, tiny_model  # noqa: E402
from proxy_attention import callback, gallery, store  # noqa: E402,F401 (gallery patches Learner)
from proxy_attention.audit import audit  # noqa: E402
from proxy_attention.callback import ProxyAttentionCB  # noqa: E402
from proxy_attention.files import read_json, read_lines, write_atomic  # noqa: E402
from proxy_attention.lab.cli import app  # noqa: E402
from proxy_attention.lab.compare import comparison  # noqa: E402,F401
from proxy_attention.lab.metrics.text import aligned  # noqa: E402
from proxy_attention.lab.report import compare_page, run_page  # noqa: E402,F401
from proxy_attention.lab.runs import runner, training  # noqa: E402
from proxy_attention.lab.runs.checkpoint import is_cost  # noqa: E402
from proxy_attention.lab.runs.folder import Run  # noqa: E402
from proxy_attention.shortcut_test import Verdict  # noqa: E402
from proxy_attention.store import StoreError, read_manifest  # noqa: E402
from lab_kit import INI  # noqa: E402
from test_lab_experiment import copies, final, lines, listed  # noqa: E402
from test_scout import Planted, coded_dls, scout_cb  # noqa: E402

RECORD = ROOT/'results'/'torture.jsonl'
LIMIT = 900 # Seconds after which a child hangs


# -- in the child ---------------------------------------------------------------------------------------------------------------------------------

class Board:
    "What a child has done and is at, in memory that outlives it"
    layout = struct.Struct('<qqq32s')
    kinds = 'phase', 'write', 'torn'
    def __init__(self): self.memory = mmap.mmap(-1, self.layout.size)
    def put(self, counts, phase): self.layout.pack_into(self.memory, 0, *(counts[k] for k in self.kinds), phase.encode())
    def get(self):
        *counts,phase = self.layout.unpack_from(self.memory, 0)
        return dict(zip(self.kinds, counts)), phase.rstrip(b'\0').decode()

class Moment(NamedTuple):
    "When something happens: at a share of the time ('time'), or at the k-th event of another kind"
    kind: str
    at: float

class Watcher:
    "Counts what a child does, and at a given moment lets it die, or every write fail from then on"
    def __init__(self, board, folder, moment=None, fails=None, lasts=math.inf):
        self.board, self.folder, self.moment, self.fails, self.lasts = board, f'{folder}/', moment, fails, lasts
        self.counts, self.phases, self.raised = Counter(), ['start'], '' # And where the first error was raised
        self.board.put(self.counts, 'start')

    def reached(self, kind): return self.moment is not None and self.moment.kind == kind and self.counts[kind] >= self.moment.at

    def die(self): os.kill(os.getpid(), signal.SIGKILL)

    def enter(self, phase):
        self.phases.append(phase)
        self.counts['phase'] += 1
        self.board.put(self.counts, phase)
        if self.reached('phase'): self.die()

    def leave(self):
        self.phases.pop()
        self.board.put(self.counts, self.raised or self.phases[-1])

    def inside(self, path):
        "Is it in the folder that is watched?"
        return isinstance(path, (str, bytes, os.PathLike)) and os.path.abspath(os.fsdecode(path)).startswith(self.folder)

    def hear(self, event, args):
        "An audit hook: a file is about to be touched"
        if event not in touches or not touches[event](args) or not self.inside(args[0]): return
        self.counts['write'] += 1
        self.board.put(self.counts, self.phases[-1])
        if not self.reached('write'): return
        if self.fails is None: self.die()
        if self.counts['write'] >= self.moment.at + self.lasts: return # There is room again
        if self.fails != errno.ENOSPC or event in ('open', 'os.mkdir'): raise OSError(self.fails, os.strerror(self.fails), os.fsdecode(args[0]))

    def opened(self, real, path, mode='r', *args, **kwargs):
        "Instead of `open`: the first write to the file that is meant ends in the middle"
        f = real(path, mode, *args, **kwargs)
        if not set(mode) & set('wxa+') or not self.inside(path): return f
        self.counts['torn'] += 1
        if self.reached('torn'): f.write = functools.partial(self.tear, f, f.write)
        return f

    def tear(self, f, write, data):
        write(data[:max(1, len(data)//2)])
        f.flush()
        self.die()

def creates(args): return isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
def always(args): return True

touches = {'open': creates, 'os.rename': always, 'os.remove': always, 'os.mkdir': always, 'os.rmdir': always, 'os.truncate': always}

def in_phase(watcher, f, name):
    "The function as a phase of its own"
    @functools.wraps(f)
    def call(*args, **kwargs):
        watcher.enter(name(args) if callable(name) else name)
        try: return f(*args, **kwargs)
        except BaseException: watcher.raised = watcher.raised or watcher.phases[-1]; raise
        finally: watcher.leave()
    return call

def name_of_scout(args): return args[4]

def watch(watcher):
    "Tell the watcher of phases, opened files and files touched; for good, in this process"
    def name_of_fit(args): return 'fit' if watcher.phases[-1] == 'start' else watcher.phases[-1]
    for name,f in list(runner.steps.items()): runner.steps[name] = in_phase(watcher, f, name)
    for holder,attr,name in ((callback, 'train_scout', name_of_scout), (ProxyAttentionCB, '_scout_rounds', 'between scouts'), (ProxyAttentionCB, '_scan', 'maps'),
                             (ProxyAttentionCB, '_write_copies', 'copies'), (Run, 'checkpoint', 'checkpoint'), (Run, 'commit', 'commit'), (Learner, 'fit', name_of_fit)):
        setattr(holder, attr, in_phase(watcher, getattr(holder, attr), name))
    builtins.open = io.open = functools.partial(watcher.opened, builtins.open)
    sys.addaudithook(watcher.hear)

def show(message, *_):
    "A warning in one line, wherever pytest would put it"
    print(message, file=sys.stderr)

def fork(work, top, board, *more):
    "Start `work` in a child whose folder is `top`; its number"
    pid = os.fork()
    if pid: return pid
    code = 1
    try:
        os.chdir(top)
        said = os.open('said.txt', os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for k in (1, 2): os.dup2(said, k)
        sys.stdout, sys.stderr = (open(k, 'w', buffering=1, closefd=False) for k in (1, 2)) # noqa: SIM115 (pytest may have others)
        warnings.showwarning = show
        sys.modules['__main__'].__file__ = None # Processes that the child starts have no need of this file
        watch(Watcher(board, top/'disk', *more))
        work()
        code = 0
    except SystemExit as e:
        if isinstance(e.code, str): print(e.code, file=sys.stderr)
        code = e.code if isinstance(e.code, int) else 0 if e.code is None else 1
    except BaseException: traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)

class End(NamedTuple):
    "How a child ended"
    code: int|None # Exit code; None: it was killed
    seconds: float
    phase: str # In which it was
    counts: dict
    said: str

def outcome(work, top, board, *more, seconds=None, then=None) -> End:
    "Let a child work; after so many `seconds` it is killed, or `then` is called. The rest is the watcher's"
    start, pid = time.monotonic(), fork(work, top, board, *more)
    end = start + (LIMIT if seconds is None else seconds)
    while not (done := os.waitpid(pid, os.WNOHANG))[0]:
        if time.monotonic() > end:
            if then is None or end > start + LIMIT - 1: os.kill(pid, signal.SIGKILL)
            else: then()
            end = start + LIMIT
        time.sleep(0.002)
    took = time.monotonic() - start
    counts,phase = board.get()
    code = os.waitstatus_to_exitcode(done[1])
    said = (top/'said.txt').read_text(errors='replace') if (top/'said.txt').exists() else ''
    if code == -signal.SIGKILL and took >= LIMIT: code, said = 1, f'{said}\nhangs'
    return End(None if code == -signal.SIGKILL else code, took, phase, counts, said)


# -- what is tortured -----------------------------------------------------------------------------------------------------------------------------

def lab(*args):
    "A command of the lab, as a user types it"
    def work():
        with mock.patch.object(training, 'keep_every', 0): # A checkpoint after each epoch
            app([*args, '--out', 'disk/out', '--data', '../data'])
    return work

def finds_shortcuts(work):
    "The work where the tests of two scouts find a shortcut, and those of the third don't"
    def wrapped():
        names = itertools.chain(['shortcut', 'shortcut'], itertools.repeat('real'))
        def test(c, bound): return Verdict(next(names), c, 1., (0.9, 1.), 0.5, (0.4, 0.6))
        def none(c): return None
        with mock.patch.multiple(callback, necessity_test=none, sufficiency_test=test): work()
    return wrapped

def script(make, fits):
    "A user's script: a learner whose copies go to a folder of his own, two fits, and the weights saved"
    def work():
        learn = make()
        try:
            for n in fits: learn.fit_one_cycle(n, 2e-2)
        except StoreError as e: sys.exit(f'StoreError: {e}')
        save_file({k: v.contiguous() for k,v in learn.model.state_dict().items()}, 'weights.safetensors')
        learn.remove_proxies()
    return work

def learner_of_files():
    "It copies wrong images after each fit"
    cb = quiet_cb(path='disk/copies', select='low_confidence', share=0.8, keep='all', fill='noise')
    return make_learner(lambda: shapes_dls(Path('..')/'images'), cb)

def learner_with_scouts():
    "Its scouts find the planted cue by themselves"
    cb = scout_cb(scout='100%', method='gradcam', area=0.2, path='disk/copies', rounds=2, probe=False)
    return make_learner(lambda: coded_dls(Planted(384), Planted(32, 1, False), bs=16), cb, model=tiny_model(2))

def settings(top): (top/'settings.ini').write_text(INI)

def unlike(named):
    "Names of the pairs that aren't alike"
    return [name for name,(a,b) in named.items() if a != b]

def other_lines(a, b):
    "Which of the lines of two records differ, and in what"
    if len(a) != len(b): return [f"{len(b)} lines of the record in place of {len(a)}"]
    return [f"record, line {i+1} ({x['kind']}): {', '.join(k for k in {**x, **y} if x.get(k) != y.get(k))}" for i,(x,y) in enumerate(zip(a, b)) if x != y]

def run_differs(a, b):
    "In what two folders of runs differ"
    a,b = Path(a), Path(b)
    if not same_weights(final(a), final(b)): return ['weights']
    states = [{k: v for k,v in read_json(d/'state.json').items() if not is_cost(k) and k not in ('record_bytes', 'record_sha256')} for d in (a, b)]
    pictures = [{f.name: f.read_bytes() for f in d.glob('gallery/*')} for d in (a, b)]
    return other_lines(lines(a), lines(b)) + unlike(dict(copies=(copies(a), copies(b)), manifest=(read_manifest(a/'proxies'), read_manifest(b/'proxies')),
                       suspects=(listed(a), listed(b)), state=states, gallery=pictures, files=(files_in(a), files_in(b))))

def results_of(folder):
    "The results in a comparison's record, without costs"
    rows = [{k: v for k,v in o.items() if not is_cost(k)} for o in read_lines(folder) if o['kind'] == 'result']
    return [o | dict(curve=[[step, *rest] for step,_,*rest in o['curve']]) for o in rows]

def compare_differs(a, b):
    runs = [f"{d.relative_to(a/'arms')}: {what}" for d in sorted((a/'arms').glob('*/*')) for what in run_differs(d, b/d.relative_to(a))]
    kinds = [Counter(o['kind'] for o in read_lines(d)) for d in (a, b)]
    return runs + unlike(dict(results=(results_of(a), results_of(b)), lines=kinds, files=(files_in(a), files_in(b))))

def script_differs(a, b):
    "The weights are beside the folder that is on the disk"
    weights = [load_file(d.parent.parent/'weights.safetensors') for d in (a, b)]
    found = unlike(dict(manifest=(read_manifest(a), read_manifest(b)), files=(files_in(a), files_in(b)),
                        contents=({f.name: f.read_bytes() for f in a.glob('*.png')}, {f.name: f.read_bytes() for f in b.glob('*.png')})))
    known = audit(a, near=None).problems # Of items without files nothing is proven
    return found + ['weights']*(not same_weights(*weights)) + [p for p in audit(b, near=None).problems if p not in known]

class Scenario(NamedTuple):
    "Something that is stopped"
    what: str # In words
    work: Callable
    out: str # Its folder
    differs: Callable # (folder, folder) → in what they differ
    tries: int
    how: str = 'killed' # or 'full', 'read-only'
    setup: Callable = settings

def changes(*values): return [a for v in values for a in ('--set', v)]

few = changes('experiment.epochs=1')
run_args = ['run', 'try', *few, *changes('label_gate=true', 'label_folds=2', 'accept=true')]
scout_args = ['run', 'try', *few, *changes('proxy=scouted', 'scout_test=true', 'probe=false', 'rounds=3', 'select=low_confidence', 'share=0.2')]
compare_args = ['compare', 'try', '--arms', 'early_look', '--seeds', '2', *changes('proxy=early', 'freeze_epochs=0', 'steps=8')]
kinds = {
    'run': ("run: copies after fits, folds for labels, checkpoints", lab(*run_args), 'disk/out', run_differs),
    'scouts': ("run: scouts that find a shortcut, three rounds", finds_shortcuts(lab(*scout_args)), 'disk/out', run_differs),
    'compare': ("compare: two arms, two seeds, one process", lab(*compare_args, '--jobs', '1'), 'disk/out', compare_differs),
    'processes': ("compare: the same in two processes, whose parent is killed", lab(*compare_args, '--jobs', '2'), 'disk/out', compare_differs),
    'script': ("a user's script: path=, copies after two fits", script(learner_of_files, (2, 2)), 'disk/copies', script_differs),
    'script_scouts': ("a user's script: path=, two rounds of scouts", script(learner_with_scouts, (2,)), 'disk/copies', script_differs),
}
scenarios = {k: Scenario(*v, tries=n) for (k,v),n in zip(kinds.items(), (14, 14, 5, 2, 32, 5))}
scenarios |= {f'{name}_{how}'.replace('-', '_'): Scenario(*kinds[name], tries=2, how=how) for how in ('full', 'read-only') for name in ('run', 'scouts', 'script', 'script_scouts')}


# -- disks ----------------------------------------------------------------------------------------------------------------------------------------

def may_mount():
    "Can this process mount file systems that nobody else sees? From then on it does"
    if os.name == 'nt' or os.geteuid() != 0 or ctypes.CDLL(None, use_errno=True).unshare(0x20000) != 0: return False # CLONE_NEWNS
    if subprocess.run(['mount', '--make-rprivate', '/'], capture_output=True).returncode: return False
    with tempfile.TemporaryDirectory() as tmp:
        ok = subprocess.run(['mount', '-t', 'tmpfs', 'torture', tmp], capture_output=True).returncode == 0
        if ok: subprocess.run(['umount', tmp], check=True)
    return ok

def mount(*args): subprocess.run(['mount', *map(str, args)], check=True)
def umount(*args): subprocess.run(['umount', *map(str, args)], check=True)

class Disk:
    "A small disk at `top`/disk: it can be filled, or be made read-only"
    def __init__(self, top, size):
        self.at, self.read_only = top/'disk', top/'ro'
        mount('-t', 'tmpfs', '-o', f'size={size}', 'torture', self.at)
        self.read_only.mkdir()
        mount('--bind', self.at, self.read_only)
        mount('-o', 'remount,bind,ro', self.read_only)
    def fill(self, room):
        "Leave so many bytes of room"
        free = os.statvfs(self.at)
        with open(self.at/'filler', 'wb') as f: os.posix_fallocate(f.fileno(), 0, max(1, free.f_bavail*free.f_frsize - int(room)))
    def empty(self): (self.at/'filler').unlink()
    def lock(self): mount('--bind', self.read_only, self.at) # Over the other, in which files may be open
    def unlock(self): umount(self.at)
    def close(self):
        umount(self.read_only)
        while subprocess.run(['umount', self.at], capture_output=True).returncode == 0: pass
        self.read_only.rmdir()

def told(end, name):
    "What is wrong with how an error was told; '' if nothing is"
    if 'Traceback' in end.said: return 'a traceback'
    if name.startswith('script'):
        ok = end.code == 0 and 'made no copies' in end.said or end.code == 1 and '\nStoreError: ' in f'\n{end.said}'
        return '' if ok else f'exit code {end.code} without a warning or an error'
    errors = [s for s in end.said.splitlines() if s.startswith('proxy-attention: ')]
    return '' if end.code == 2 and len(errors) == 1 else f'exit code {end.code} and {len(errors)} lines of error'


# -- tries ----------------------------------------------------------------------------------------------------------------------------------------

class Try(NamedTuple):
    "What became of a try"
    stops: list # (kind, share of the work, phase) of each
    wrong: str = '' # What is not as it should be

class Torture:
    "A scenario, and what it comes to when nothing stops it"
    def __init__(self, name, tmp, rng, mounts=False):
        self.name, self.scenario, self.rng, self.mounts, self.board = name, scenarios[name], rng, mounts, Board()
        self.folder, self.n = Path(tmp)/name, 0
        self.warm()
        self.whole = self.new('whole')
        self.end = self.outcome(self.whole, check=True)

    def new(self, name):
        "A folder to work in"
        top = self.folder/name
        (top/'disk').mkdir(parents=True)
        self.scenario.setup(top)
        if not (self.folder/'images').exists(): make_shapes(self.folder/'images')
        return top

    def warm(self):
        "Once in this process: data sets are made, templates compiled, and whatever else would be slow in each fork"
        top, before = self.new('warm'), os.getcwd()
        os.chdir(top)
        try:
            with contextlib.redirect_stdout(io.StringIO()): self.scenario.work()
        except SystemExit as e:
            if e.code: raise
        finally: os.chdir(before)
        shutil.rmtree(top)
        gc.collect()
        gc.freeze() # Forks need not look through what is there

    def outcome(self, top, *more, check=False, **kwargs):
        end = outcome(self.scenario.work, top, self.board, *more, **kwargs)
        if check and end.code != 0: sys.exit(f"{self.name} fails by itself:\n{end.said}")
        return end

    def draw(self, kind):
        "A moment of this kind; of time, where there is no other in this process"
        if kind == 'time' or not self.end.counts[kind]: return Moment('time', self.rng.uniform(0.01, 0.98))
        return Moment(kind, self.rng.randint(1, self.end.counts[kind]))

    def share(self, moment): return moment.at/(1 if moment.kind == 'time' else self.end.counts[moment.kind])

    def stopped(self, top, moment):
        "Work until the moment; how it ended"
        return self.outcome(top, seconds=moment.at*self.end.seconds) if moment.kind == 'time' else self.outcome(top, moment)

    def killed(self, top, moment) -> Try:
        "Killed at the moment, and perhaps again, until it ends"
        stops = []
        while True:
            end = self.outcome(top) if moment is None else self.stopped(top, moment)
            if end.code is not None: break
            stops.append((moment.kind, self.share(moment), end.phase))
            moment = self.draw('time') if self.rng.random() < 0.5 else None
        return Try(stops, self.wrong(top, end))

    def wrong(self, top, end):
        "What is wrong with how it ended, in one line"
        if end.code != 0: return f"exit code {end.code}: {self.shown(end.said)}"
        try: differ = self.scenario.differs(self.whole/self.scenario.out, top/self.scenario.out)
        except Exception as e: differ = [f"{type(e).__name__}: {e}"]
        return self.shown(f"differs: {', '.join(differ)}") if differ else ''

    def shown(self, text):
        "The end of a text, without folders of this machine"
        return re.sub(rf'{re.escape(str(self.folder.parent))}[^\s\'":]*/', '.../', ' '.join(text.split()).replace(str(ROOT), '...'))[-300:]

    def failed(self, top) -> Try:
        "The disk fails; then it doesn't any more, and the same is done again"
        how, used = self.scenario.how, sum(f.stat().st_blocks*512 for f in (self.whole/'disk').rglob('*') if f.is_file())
        if not self.mounts or self.n % 2 == 0:
            moment, lasts = self.draw('write'), self.rng.choice((math.inf, 1, 5, 25))
            end = self.outcome(top, moment, errno.ENOSPC if how == 'full' else errno.EROFS, lasts)
            return self.after(top, end, self.share(moment), 'call')
        disk, share = Disk(top, 2*used + 2**24), self.rng.uniform(0, 0.98)
        try:
            if how == 'full':
                disk.fill(share*used)
                end = self.outcome(top)
                disk.empty()
            else:
                calls = []
                end = self.outcome(top, seconds=share*self.end.seconds, then=lambda: calls.append(disk.lock()))
                if calls: disk.unlock()
            return self.after(top, end, share, 'disk')
        finally: disk.close()

    def after(self, top, end, share, kind) -> Try:
        "The same is done again, with a disk that works"
        wrong, stops = told(end, self.name), [(kind, share, end.phase)]
        if end.code == 0 and wrong and not self.wrong(top, end): return Try([]) # The moment came too late
        if wrong: return Try(stops, f"{wrong}: {self.shown(end.said)}")
        return Try(stops, self.wrong(top, self.outcome(top)))

    def one(self) -> Try:
        "A try; one whose moment came too late is done again with another"
        kind = ('time', 'phase', 'write', 'time', 'torn')[self.n % 5]
        self.n += 1
        for _ in range(10):
            top = self.new('try')
            got = self.killed(top, self.draw(kind)) if self.scenario.how == 'killed' else self.failed(top)
            shutil.rmtree(top, ignore_errors=not got.wrong)
            if got.stops or got.wrong: return got
        return Try([], "the moment came too late ten times")

def torture(name, tmp, tries, seed, mounts=False, say=print) -> dict:
    "A line for the record"
    made, done = Torture(name, tmp, random.Random(f'{seed} {name}'), mounts), []
    for k in range(tries):
        done.append(got := made.one())
        where = ', '.join(f"{kind} {share:.0%} {phase}" for kind,share,phase in got.stops)
        say(f"{name} {k+1}/{tries}: {where}: {got.wrong or 'the same'}")
    stops = [s for t in done for s in t.stops]
    shares = [round(share, 2) for _,share,_ in stops]
    shutil.rmtree(made.folder)
    return dict(scenario=name, what=made.scenario.what, how=made.scenario.how, tries=tries, stops=len(stops), first=min(shares, default=None), last=max(shares, default=None),
                moments=dict(Counter(k for k,*_ in stops).most_common()), phases=dict(Counter(p for *_,p in stops).most_common()), same=sum(not t.wrong for t in done),
                failures=[t.wrong for t in done if t.wrong], seed=seed)

def versions():
    return dict(proxy_attention=proxy_attention.__version__, python=platform.python_version(), torch=torch.__version__, fastai=fastai.__version__)

def save(row):
    "Put the line of a scenario into the record, in place of an earlier one"
    known = {r['scenario']: r for r in read_lines(RECORD)} | {row['scenario']: row}
    RECORD.parent.mkdir(exist_ok=True)
    write_atomic(RECORD, ''.join(json.dumps(known[k]) + '\n' for k in scenarios if k in known))

def table(rows):
    "The lines of the record as text"
    cells = [[r['scenario'], str(r['tries']), str(r['stops']), f"{r['first']:.0%}", f"{r['last']:.0%}", f"{r['same']} of {r['tries']}"] for r in rows]
    return '\n'.join(aligned([['scenario', 'tries', 'stops', 'from', 'to', 'the same'], *cells], right=(1, 2, 3, 4)))


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--scenario', action='append', choices=list(scenarios), help="all, unless named")
    parser.add_argument('--tries', type=int, help="of each scenario (default: its own number)")
    parser.add_argument('--seed', type=int, default=0, help="draws the moments; how far a process then is depends on the machine")
    parser.add_argument('--save', action='store_true', help=f"write {RECORD.relative_to(ROOT)}")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1)) # the folder goes then too
    warnings.filterwarnings('ignore', message='.*fork.*')
    os.environ['PYTHONWARNINGS'] = 'ignore' # Of processes that are started
    torch.set_num_threads(1)
    mounts, rows, start = may_mount(), [], time.monotonic()
    with tempfile.TemporaryDirectory(prefix='torture') as tmp:
        for name in args.scenario or scenarios:
            rows.append(torture(name, tmp, args.tries or scenarios[name].tries, args.seed, mounts, functools.partial(print, flush=True)) | versions())
            if args.save: save(rows[-1])
    print(f"\n{table(rows)}\n{sum(r['stops'] for r in rows)} stops in {time.monotonic() - start:.0f} s")
    sys.exit(any(r['failures'] for r in rows))
