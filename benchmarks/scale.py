"""Time and memory an item of everything that the engine does between two fits, for sets of several sizes: flat up to a million items?"""
import argparse
import ctypes
import gc
import json
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

from common import ROOT, save_record

p = argparse.ArgumentParser(description=__doc__)
p.add_argument('--items', type=int, nargs='+', default=[10_000, 100_000, 1_000_000])
p.add_argument('--folder', help='where files go: some 800 bytes an item, on a disk; by default a temporary folder')
p.add_argument('--fill', default='context')
p.add_argument('--files', action='store_true', help='items are files (links to a thousand small ones), not drawn when asked for')
p.add_argument('--save', action='store_true', help='write results/bench_scale.json (bench_scale_files.json with --files)')
p.add_argument('--report', action='store_true', help='print the table of the record, run nothing')
p.add_argument('--one', type=int, help=argparse.SUPPRESS)
args = p.parse_args()

SIDE, BATCH, POOL = 16, 256, 1000
PHASES = {'start': "a fit's start", 'scan': 'scan', 'choose': 'selection', 'write': 'erase, list', 'inject': 'injection',
          'again': "a fit's start with copies", 'proxies': 'learn.proxies', 'audit': 'audit'}


# -- in a process of its own ----------------------------------------------------------------------------------------------------------------------

def status(name):
    "MB that this process holds (VmRSS), or held at most since it was reset (VmHWM)"
    return next(int(line.split()[1]) for line in Path('/proc/self/status').read_text().splitlines() if line.startswith(name))/1024

def held():
    "MB held now, after what is free has been given back"
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return status('VmRSS')

class Drawn:
    "(image, class) items that are drawn when they are asked for, by their number"
    def __init__(self, n, first=0):
        import numpy as np
        self.n, self.first, self.noise = n, first, np.random.default_rng(0).integers(0, 120, 3*SIDE*SIDE + 9973, dtype=np.uint8)
    def __len__(self): return self.n
    def __getitem__(self, i):
        import torch
        i += self.first
        img, c, at = self.noise[i*7919 % 9973:][:3*SIDE*SIDE].reshape(3, SIDE, SIDE).copy(), i % 2, i*31 % 100
        img[2*c, at//10:at//10 + 6, at % 10:at % 10 + 6] = 250
        return torch.from_numpy(img), c

def drawn_dls(n):
    from fastai.data.core import DataLoaders
    from fastai.data.load import DataLoader
    def to_float(b): return b[0].float()/255, b[1]
    how = dict(bs=BATCH, num_workers=0, after_batch=to_float)
    return DataLoaders(DataLoader(Drawn(n), shuffle=True, drop_last=True, **how), DataLoader(Drawn(64, n), **how))

def linked_files(folder, n):
    "`n` names of images: links to a thousand of them"
    import cv2
    pool, items = Path(folder)/'pool', Path(folder)/'items'
    for f in (pool, items): f.mkdir(parents=True, exist_ok=True)
    data = Drawn(POOL)
    for k in range(POOL): cv2.imwrite(str(pool/f'{k}.png'), data[k][0].permute(1, 2, 0).numpy())
    for k in range(n):
        (items/f'{k}.png').symlink_to(pool/f'{k % (POOL - 64)}.png')
    return [items/f'{k}.png' for k in range(n)] + [pool/f'{k}.png' for k in range(POOL - 64, POOL)]

def file_dls(folder, n):
    from fastai.data.block import CategoryBlock, DataBlock
    from fastai.data.transforms import IndexSplitter
    from fastai.vision.data import ImageBlock
    files = linked_files(folder, n)
    def label(f): return int(f.stem) % 2
    block = DataBlock((ImageBlock, CategoryBlock(vocab=[0, 1])), get_y=label, splitter=IndexSplitter(range(n, len(files))))
    return block.dataloaders(files, bs=BATCH, num_workers=0)

def one(n):
    "Seconds and peak MB of each phase, and MB kept when all of them are over"
    warnings.filterwarnings('ignore')
    import torch
    from fastai.learner import Learner
    from fastai.losses import CrossEntropyLossFlat
    from torch import nn

    from proxy_attention.audit import audit
    from proxy_attention.callback import ProxyAttentionCB
    torch.manual_seed(0)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=args.folder) as tmp:
        dls = file_dls(tmp, n) if args.files else drawn_dls(n)
        body = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 1, 1), nn.ReLU())
        net = nn.Sequential(body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))
        learn = Learner(dls, net, loss_func=CrossEntropyLossFlat())
        if hasattr(learn, 'progress'): learn.remove_cb(learn.progress)
        how = dict(scout=None, select='all', merge='replace', method='eigencam', fill=args.fill, save=False, verbose=False)
        learn.add_cb(ProxyAttentionCB(path=f'{tmp}/.warm', **how))
        learn.dls.train.n = 640 # warm up allocators and caches on a few items
        learn.proxy_attention_cb.make_proxies()
        learn.proxies, audit(f'{tmp}/.warm')
        learn.remove_proxies()
        learn.dls.train.n = n
        cb = ProxyAttentionCB(path=f'{tmp}/.run', **how)
        learn.add_cb(cb)
        out, before = {}, held()
        def phase(name, work):
            def timed(*args, **kwargs):
                Path('/proc/self/clear_refs').write_text('5') # from now on the peak is counted anew
                start = time.perf_counter()
                got = work(*args, **kwargs)
                out[name] = dict(seconds=time.perf_counter() - start, peak=status('VmHWM') - before)
                return got
            return timed
        for name,method in (('scan', '_scan'), ('choose', '_choose'), ('write', '_write_copies'), ('inject', '_inject')):
            setattr(cb, method, phase(name, getattr(cb, method)))
        phase('start', cb.prepare)()
        cb.make_proxies()
        for method in ('_scan', '_choose', '_write_copies', '_inject'): delattr(cb, method)
        kept = held() - before
        phase('again', cb.prepare)()
        rows = phase('proxies', lambda: len(learn.proxies))()
        phase('audit', lambda: audit(cb.run_path))()
        maps = sum(v.nbytes for e in cb.copies.erasers.values() for v in (e.seen.maps,))/2**20
        print(json.dumps(dict(items=n, copies=rows, kept=kept, maps=maps, phases=out)))


# -- all sizes ------------------------------------------------------------------------------------------------------------------------------------

def measure(n):
    words = [w for w in sys.argv[1:] if w not in ('--save',)]
    done = subprocess.run([sys.executable, __file__, *words, '--one', str(n)], capture_output=True, text=True)
    if done.returncode: raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])

def table(sizes):
    "Lines of text: the cost an item, and its ratio to that of the smallest set"
    first = sizes[0]
    yield f"{'':26}" + ''.join(f"{s['items']:>24,}" for s in sizes)
    for key,name in PHASES.items():
        cells = []
        for s in sizes:
            us = [1e6*x['phases'][key]['seconds']/x['items'] for x in (s, first)]
            cells.append(f"{us[0]:12.1f} µs  x{us[0]/us[1]:5.2f}   ")
        yield f"{name:26}" + ''.join(f'{c:>24}' for c in cells)
    def beyond(s): return s['kept'] - s['maps']
    more = [s for s in sizes[1:] if s['items'] > first['items']]
    cells = [f"{2**20*(beyond(s) - beyond(first))/(s['items'] - first['items']):10.0f} bytes        " for s in more]
    yield f"{'kept of each further item':26}" + ' '*24 + ''.join(f'{c:>24}' for c in cells)
    for name,value in (('kept beyond the maps', beyond), ('maps', lambda s: s['maps'])):
        cells = [f"{2**20*value(s)/s['items']:10.0f} bytes        " for s in sizes]
        yield f"{name:26}" + ''.join(f'{c:>24}' for c in cells)
    for key,name in PHASES.items():
        cells = [f"{2**20*s['phases'][key]['peak']/s['items']:10.0f} bytes        " for s in sizes]
        yield f"{'peak: ' + name:32}"[:32].ljust(26) + ''.join(f'{c:>24}' for c in cells)


NAME = 'scale_files' if args.files else 'scale'
if args.one: one(args.one)
elif args.report:
    print('\n'.join(table(json.loads((ROOT/'results'/f'bench_{NAME}.json').read_text())['figures']['sizes'])))
else:
    sizes = []
    for n in args.items:
        sizes.append(measure(n))
        print(f"{n:,} items: {sum(p['seconds'] for p in sizes[-1]['phases'].values()):.0f} s", flush=True)
    print('\n'.join(table(sizes)))
    save_record(NAME, dict(fill=args.fill, sizes=sizes), args.save)
