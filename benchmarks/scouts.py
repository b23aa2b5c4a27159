"""What the one line does: fits with and without `ProxyAttentionCB()`, on development data with a cue and without, small networks and a pretrained one.

A fit that the record holds already isn't made again: the command can be stopped and goes on. Times are CPU seconds of one thread.
"""
import argparse
import json
import os
import tempfile
import time
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path

from common import ROOT, commit_of, data_folder

from proxy_attention.files import read_lines

warnings.filterwarnings('ignore')
os.environ['OMP_NUM_THREADS'] = '1'

FIRST_SEED = 60


@dataclass
class Row:
    "Fits of one network on one data set, with the cue and without"
    experiment: str # Of settings.ini
    changes: tuple # Of its settings, for all arms
    cue: tuple # The same, where the cue tells the class
    without: tuple|None # Where it tells nothing; None: the row is without a cue itself
    steps: int = 720
    lr: float = 0.01
    fit: str = 'fit_one_cycle' # All layers; or 'fine_tune': an epoch of the head first
    channels_last: bool = False # Faster for the pretrained network


def photos(cue, *changes, steps=96, lr=0.003, **kwargs):
    "ASL photos and a pretrained network"
    given = ('data.size=96', *changes, f'data.shortcut={cue}')
    return Row('dev_asl', given, (), ('strength=0',), steps, lr=lr, channels_last=True, **kwargs)


digits = 'dev_digits', ('n_train=800', 'n_valid=100')
cifar = 'dev_cifar10', ('n_train=4000',)
lite0 = 'dev_asl', ('data=dev_cifar10', 'data.size=96', 'n_train=600')
rows = {
    'digits, square 0.95': Row(*digits, ('strength=0.95',), ('strength=0',)),
    'digits, square 0.99': Row(*digits, ('strength=0.99',), ('strength=0',)),
    'digits, texture': Row(*digits, ('data.shortcut=texture',), ('data.shortcut=texture', 'strength=0')),
    'digits, position': Row(*digits, ('data.shortcut=position',), ('data.shortcut=position', 'strength=0')),
    'digits, position and square': Row(*digits, ('data.shortcut=position_and_square',), ('data.shortcut=position_and_square', 'strength=0')),
    'CIFAR-10, square': Row(*cifar, ('strength=0.95',), ('strength=0',)),
    'digits, nothing to tell': Row(*digits, ('strength=0',), None),
    'CIFAR-10, nothing to tell': Row(*cifar, ('strength=0',), None),
} | {
    f'ASL photos, {c}': photos(c) for c in ('square', 'sticker', 'texture', 'position', 'letter', 'watermark', 'border', 'background')
} | {
    'ASL photos, nothing to tell': Row('dev_asl', ('data.size=96', 'data.shortcut=square', 'strength=0'), (), None, 96, 0.003, channels_last=True),
    'ASL photos, square, fine_tune': photos('square', fit='fine_tune', lr=0.02),
    'ASL photos at 224, square': photos('square', 'data.size=224', steps=48),
    'ASL photos at 224, letter': photos('letter', 'data.size=224', steps=48),
    'CIFAR-10 at 96, square': Row(*lite0, (), ('strength=0',), 96, 0.003, channels_last=True),
    'CIFAR-10 at 96, nothing to tell': Row(*lite0, ('strength=0',), None, 96, 0.003, channels_last=True),
}
arms = { # Arguments of the callback
    'plain': None,
    'callback': {},
    'rounds': dict(rounds=3),
}

p = argparse.ArgumentParser(description=__doc__)
p.add_argument('--seeds', type=int, nargs='*', default=[FIRST_SEED, FIRST_SEED + 1])
p.add_argument('--rows', nargs='*', default=[*rows], choices=[*rows], metavar='ROW', help='only these rows of the table, by name')
p.add_argument('--arms', nargs='*', default=['plain', 'callback'], choices=[*arms])
p.add_argument('--data', help='folder that holds photos')
p.add_argument('--record', default=str(ROOT/'results'/'bench_scouts.jsonl'))
p.add_argument('--short', action='store_true', help='one line for all seeds, with fewer columns')
p.add_argument('--report', action='store_true', help='print the table of the record, run nothing')
args = p.parse_args()


def key(row, changes, arm, seed): return row.experiment, (*row.changes, *changes), arm, seed, row.fit


def read():
    return {(o['experiment'], tuple(o['changes']), o['arm'], o['seed'], o.get('fit', 'fit_one_cycle')): o for o in read_lines(args.record)}


def cue_erased(cb, items):
    "Of the cue's pixels the share that is erased in the first copies, on average; None: no copies"
    import numpy as np

    from proxy_attention.erase import saliency_masks
    eraser, shares = cb.copies.erasers.get(0), []
    for row in [r for r in cb.copies.rows if r['cycle'] == 0]:
        cue = items.masks(Path(row['original']))['shortcut']
        maps,seen = eraser.saliency([row['index']], cue.shape[::-1])
        shares.append(saliency_masks(maps, seen, eraser.area, eraser.threshold)[0][cue].mean())
    return float(np.mean(shares)) if shares else None


def worst_class(right, y, differs):
    "The lowest accuracy of a class on images that show another class' cue"
    return min((float(right[(y == c) & differs].mean()) for c in set(y[differs].tolist())), default=None)


def trained(row, changes, arm, seed, tmp):
    "Fit once: accuracy on test images whose cue says nothing, verdict, CPU seconds, a digest of the weights"
    import numpy as np
    import torch
    from fastai.callback import schedule  # noqa: F401
    from fastai.callback.core import Callback
    from fastai.torch_core import set_seed

    from proxy_attention.callback import ProxyAttentionCB
    from proxy_attention.core import digest
    from proxy_attention.lab.config.settings import load_experiment
    from proxy_attention.lab.data.sources import load_items, splits_of
    from proxy_attention.lab.data.loaders import make_dls, test_dl
    from proxy_attention.lab.models.learner import make_learner, quiet
    from proxy_attention.scan import predict_classes

    class Note(Callback):
        "Keeps what the scouts reported; later reports are of other cycles"
        report = None
        def before_train(self): self.report = self.report or self.learn.proxy_attention_cb.last_report

    torch.set_num_threads(1)
    changes = [*row.changes, *changes]
    conf = load_experiment(row.experiment, ROOT/'studies'/'settings.ini', changes)
    items = load_items(conf.data, Path(tmp)/'data')
    splits = splits_of(items, conf.data)
    set_seed(seed)
    dls = make_dls(items, splits, conf.data, device='cpu')
    cbs = [] if arms[arm] is None else [ProxyAttentionCB(path=Path(tmp)/f'copies_{time.time_ns()}', verbose=False, **arms[arm]), Note()]
    learn = make_learner(dls, conf.model.arch, conf.model.weights or 'none', cbs=cbs)
    if row.channels_last: learn.model.to(memory_format=torch.channels_last)
    epochs = round(row.steps/len(dls.train))
    set_seed(seed)
    start = time.process_time()
    with quiet(learn):
        if row.fit == 'fine_tune': learn.fine_tune(epochs - 1, row.lr)
        else:
            learn.unfreeze()
            learn.fit_one_cycle(epochs, row.lr)
    seconds = time.process_time() - start
    pred,y = predict_classes(learn.model, test_dl(learn.dls, items, splits))
    differs = np.array([items.subgroup(items.files[i]).endswith('differs') for i in splits['test']])
    weights = digest(b''.join(v.numpy().tobytes() for v in learn.model.state_dict().values()))
    out = dict(experiment=row.experiment, changes=changes, arm=arm, seed=seed, fit=row.fit,
               steps=epochs*len(splits['train'])//conf.data.bs, accuracy=float((pred == y).mean()), worst=worst_class(pred == y, y, differs),
               n_test=len(y), seconds=round(seconds, 2), weights=weights[:16], commit=commit_of())
    if cbs:
        r = cbs[1].report
        found = dict(name=None, reason='', necessity=None, sufficiency=None) if r.verdict is None else r.verdict.to_dict()
        spent = {k: v for k,v in asdict(r).items() if k.startswith('seconds') or k == 'steps'}
        out.update(found, verdict=found['name'], said=r.text, scouts=spent, copies=int((learn.proxies.cycle == 0).sum()), erased=cue_erased(cbs[0], items))
        learn.remove_proxies(purge=True)
    return out


def run():
    os.environ.setdefault('PROXY_ATTENTION_DATA', str(data_folder(args.data)))
    known = read()
    with tempfile.TemporaryDirectory() as tmp:
        for seed in args.seeds:
            for name in args.rows:
                row = rows[name]
                wanted = [(row.cue, a) for a in args.arms]
                if row.without is not None and 'plain' in args.arms: wanted.append((row.without, 'plain'))
                for changes,arm in wanted:
                    k = key(row, changes, arm, seed)
                    if k in known: continue
                    got = known[k] = trained(row, changes, arm, seed, tmp)
                    with open(args.record, 'a') as f: f.write(json.dumps(got) + '\n')
                    print(name, arm, seed, f"{got['accuracy']:.3f}", got.get('verdict', ''), f"{got['seconds']:.0f} s", flush=True)


def percent(v): return '' if v is None else f"{100*v:.0f}%"


def closed(plain, ours, clean):
    "Of what the cue costs, the share that is won back; nothing where it costs less than two points"
    gap = clean['accuracy'] - plain['accuracy']
    return f"{100*(ours['accuracy'] - plain['accuracy'])/gap:.0f}%" if gap >= 0.02 else ''


def finished():
    "(name, arm, seed, plain, with the callback, without the cue) of all fits that have their counterparts"
    known = read()
    for name in args.rows:
        row = rows[name]
        for arm in args.arms:
            for seed in args.seeds:
                plain,clean = (known.get(key(row, c, 'plain', seed)) for c in (row.cue, row.without or row.cue))
                ours = known.get(key(row, row.cue, arm, seed))
                if arm != 'plain' and None not in (plain, ours, clean): yield name, arm, seed, plain, ours, None if row.without is None else clean


def cells_of(plain, ours, clean):
    "What the table says of a fit, by column"
    verdict = f"{ours['verdict']}{' (' + ours['reason'] + ')' if ours['reason'] else ''}"
    return {
        'plain': f"{plain['accuracy']:.3f}", 'callback': f"{ours['accuracy']:.3f}", 'without the cue': '' if clean is None else f"{clean['accuracy']:.3f}",
        'gap closed': '' if clean is None else closed(plain, ours, clean), 'verdict': verdict, 'necessity': percent(ours['necessity']),
        'sufficiency': percent(ours['sufficiency']), 'cue erased': percent(ours.get('erased')),
        'worst class, plain': percent(plain.get('worst')), 'worst class': percent(ours.get('worst')),
        'equal to plain': 'to the bit' if ours['weights'] == plain['weights'] else 'no', 'CPU time': f"{ours['seconds']/plain['seconds']:.2f}×",
    }


def print_table(lines):
    "Dicts of the same columns as Markdown"
    for k,cells in enumerate([list(lines[0]), ['---']*len(lines[0]), *(list(d.values()) for d in lines)] if lines else []):
        print('|' + '|'.join(cells) + '|' if k == 1 else '| ' + ' | '.join(map(str, cells)) + ' |')


def report():
    made = list(finished())
    if not args.short:
        return print_table([dict(data=name, arm=arm, seed=seed) | cells_of(*fits) for name,arm,seed,*fits in made])
    lines = []
    for name,arm in dict.fromkeys(m[:2] for m in made):
        each = [cells_of(*fits) for n,a,_,*fits in made if (n, a) == (name, arm)]
        shown = ('plain', 'callback', 'without the cue', 'gap closed', 'verdict', 'CPU time')
        lines.append(dict(data=name) | {k: ', '.join(dict.fromkeys(c[k] for c in each) if k == 'verdict' else [c[k] for c in each if c[k]]) for k in shown})
    print_table(lines)


if not args.report: run()
report()
