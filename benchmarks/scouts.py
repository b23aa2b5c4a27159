"""What the default one-liner does: `fit_one_cycle` with and without `ProxyAttentionCB()`, on development data with a cue and without.

A run that the record holds already isn't made again: the command can be stopped and goes on. Times are CPU seconds of one thread.
"""
import argparse
import json
import os
import tempfile
import time
import warnings
from pathlib import Path

from common import ROOT, commit_of, data_folder

warnings.filterwarnings('ignore')
os.environ['OMP_NUM_THREADS'] = '1'

p = argparse.ArgumentParser(description=__doc__)
p.add_argument('--seeds', type=int, default=2)
p.add_argument('--rows', nargs='*', help='only these rows of the table, by name')
p.add_argument('--data', help='folder that holds photos')
p.add_argument('--record', default=str(ROOT/'results'/'bench_scouts.jsonl'))
p.add_argument('--report', action='store_true', help='print the table of the record, run nothing')
args = p.parse_args()

STEPS, LR, FIRST_SEED = 720, 0.01, 60
digits = ('dev_digits', ['n_train=800', 'n_valid=100'])
cifar = ('dev_cifar10', ['n_train=4000'])
# name: experiment, changes with the cue, changes without it; None: the row is without a cue itself
rows = {
    'digits, square 0.95': (*digits, ['strength=0.95'], ['strength=0']),
    'digits, square 0.99': (*digits, ['strength=0.99'], ['strength=0']),
    'digits, texture': (*digits, ['data.shortcut=texture'], ['data.shortcut=texture', 'strength=0']),
    'digits, position': (*digits, ['data.shortcut=position'], ['data.shortcut=position', 'strength=0']),
    'CIFAR-10, square': (*cifar, ['strength=0.95'], ['strength=0']),
    'digits, nothing to tell': (*digits, ['strength=0'], None),
    'CIFAR-10, nothing to tell': (*cifar, ['strength=0'], None),
}


def key(o): return o['experiment'], tuple(o['changes']), o['arm'], o['seed']


def read():
    path = Path(args.record)
    return {key(o): o for o in map(json.loads, path.read_text().splitlines())} if path.exists() else {}


def trained(experiment, changes, arm, seed, tmp):
    "Fit once; accuracy on test images whose cue says nothing, verdict, CPU seconds, and a digest of the weights"
    import torch
    from fastai.callback import schedule  # noqa: F401
    from fastai.torch_core import set_seed

    from proxy_attention.callback import ProxyAttentionCB
    from proxy_attention.core import digest
    from proxy_attention.lab.config import load_experiment
    from proxy_attention.lab.data import load_items, make_dls, splits_of, test_dl
    from proxy_attention.lab.models import make_learner, quiet
    from proxy_attention.scan import predict_classes
    torch.set_num_threads(1)
    conf = load_experiment(experiment, ROOT/'settings.ini', changes)
    items = load_items(conf.data, Path(tmp)/'data')
    splits = splits_of(items, conf.data)
    set_seed(seed)
    dls = make_dls(items, splits, conf.data, device='cpu')
    cbs = [ProxyAttentionCB(path=Path(tmp)/f'copies_{time.time_ns()}', verbose=False)] if arm == 'callback' else []
    learn = make_learner(dls, conf.model.arch, cbs=cbs)
    set_seed(seed)
    start = time.process_time()
    with quiet(learn): learn.fit_one_cycle(round(STEPS/len(dls.train)), LR)
    seconds = time.process_time() - start
    pred,y = predict_classes(learn.model, test_dl(learn.dls, items, splits))
    weights = digest(b''.join(v.numpy().tobytes() for v in learn.model.state_dict().values()))
    out = dict(experiment=experiment, changes=changes, arm=arm, seed=seed, steps=round(STEPS/len(dls.train))*len(splits['train'])//conf.data.bs,
               accuracy=float((pred == y).mean()), n_test=len(y), seconds=round(seconds, 2), weights=weights[:16], commit=commit_of())
    if arm == 'callback':
        cb = learn.proxy_attention_cb
        v = cb.last_verdict
        found = dict(name=None, reason='', necessity=None, sufficiency=None) if v is None else v.to_dict()
        out.update(found, verdict=found['name'], copies=len(learn.proxies))
        learn.remove_proxies(purge=True)
    return out


def run():
    os.environ.setdefault('PROXY_ATTENTION_DATA', str(data_folder(args.data)))
    known = read()
    with tempfile.TemporaryDirectory() as tmp:
        for seed in range(FIRST_SEED, FIRST_SEED + args.seeds):
            for name in args.rows or rows:
                experiment,base,cue,none = rows[name]
                wanted = [(cue, 'plain'), (cue, 'callback')] + ([] if none is None else [(none, 'plain')])
                for changes,arm in wanted:
                    asked = dict(experiment=experiment, changes=base + changes, arm=arm, seed=seed)
                    if key(asked) in known: continue
                    got = known[key(asked)] = trained(**asked, tmp=tmp)
                    with open(args.record, 'a') as f: f.write(json.dumps(got) + '\n')
                    print(name, arm, seed, f"{got['accuracy']:.3f}", got.get('verdict', ''), f"{got['seconds']:.0f} s", flush=True)


def report():
    known = read()
    print('| data | seed | plain | callback | without the cue | gap closed | verdict | necessity | sufficiency | equal to plain | CPU time |')
    print('|---|---|---|---|---|---|---|---|---|---|---|')
    for name,(experiment,base,cue,none) in rows.items():
        for seed in range(FIRST_SEED, FIRST_SEED + args.seeds):
            plain,ours,clean = (known.get((experiment, tuple(base + c), arm, seed)) for c,arm in ((cue, 'plain'), (cue, 'callback'), (none or cue, 'plain')))
            if None in (plain, ours, clean): continue
            gap = clean['accuracy'] - plain['accuracy']
            closed = '' if none is None else f"{100*(ours['accuracy'] - plain['accuracy'])/gap:.0f}%"
            share = ['' if ours.get(k) is None else f"{100*ours[k]:.0f}%" for k in ('necessity', 'sufficiency')]
            cells = [name, seed, f"{plain['accuracy']:.3f}", f"{ours['accuracy']:.3f}", '' if none is None else f"{clean['accuracy']:.3f}", closed,
                     f"{ours['verdict']}{' (' + ours['reason'] + ')' if ours['reason'] else ''}", *share,
                     'to the bit' if ours['weights'] == plain['weights'] else 'no', f"{ours['seconds']/plain['seconds']:.2f}×"]
            print('| ' + ' | '.join(map(str, cells)) + ' |')


if not args.report: run()
report()
