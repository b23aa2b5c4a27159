"""Does `learn.shortcut_report(scout=...)` name a planted cue, and is it silent where there is none? Photos of signs and CIFAR-10, a small network.

A case that the record holds already isn't run again: the command can be stopped and goes on.
"""
import argparse
import json
import os
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path

from common import ROOT, commit_of, data_folder

from proxy_attention.files import read_lines

warnings.filterwarnings('ignore')
os.environ['OMP_NUM_THREADS'] = '1'

DEV_SEEDS, HELD_OUT_SEEDS = (60, 310, 311, 312), (313,)
LEAST = 0.5 # Of a cluster's images, that show at least so much of the cue in their patch


@dataclass
class Case:
    "A network that is trained, and what its images hold"
    changes: tuple # Of [experiment:dev_asl] in studies/settings.ini
    kind: str = 'patch' # A cue that fits into a patch: the claim; 'wide': one that doesn't; 'none': it tells nothing


asl = 'data.size=40', 'data.per_class=120', 'model=small_cnn', 'strength=0.99' # A later change wins
cifar = 'data=dev_cifar10', 'data.n_valid=500', 'model=small_cnn', 'strength=0.99'
digits = 'data=reserved_digits', 'data.n_valid=400', 'model=small_cnn', 'strength=0.99'
cases = {
    **{f'ASL, {c}': Case((*asl, f'data.shortcut={c}')) for c in ('square', 'sticker', 'letter', 'position', 'texture')},
    **{f'digits, {c}': Case((*digits, f'data.shortcut={c}')) for c in ('square', 'position', 'texture')},
    **{f'CIFAR-10, {c}': Case((*cifar, f'data.shortcut={c}')) for c in ('square', 'sticker')},
    **{f'ASL, {c}': Case((*asl, f'data.shortcut={c}'), 'wide') for c in ('watermark', 'border', 'background')},
    'ASL, nothing': Case((*asl, 'data.shortcut=square', 'strength=0'), 'none'),
    'CIFAR-10, nothing': Case((*cifar, 'strength=0'), 'none'),
    'digits, nothing': Case((*digits, 'strength=0'), 'none'),
}
EPOCHS, LR, SCOUT = 20, 0.01, 10 # Epochs of the network and of the second one

p = argparse.ArgumentParser(description=__doc__)
p.add_argument('--seeds', type=int, nargs='*', default=HELD_OUT_SEEDS, help=f'held out: {HELD_OUT_SEEDS}, development: {DEV_SEEDS}')
p.add_argument('--cases', nargs='*', default=[*cases], choices=[*cases], metavar='CASE')
p.add_argument('--data', help='folder that holds photos')
p.add_argument('--record', default=str(ROOT/'results'/'bench_diagnose.jsonl'))
p.add_argument('--pages', help='folder for the pages of the reports')
p.add_argument('--report', action='store_true', help='print the table of the record, run nothing')
args = p.parse_args()


def covers(cluster, area, items, files):
    "On how many of a cluster's images (a share) does the patch show most of the cue?"
    import numpy as np
    seen = []
    for i,(x,y) in zip(cluster.items, cluster.centres):
        cue = items.masks(files[i])['shortcut']
        (h,w), side = cue.shape, area**0.5
        top,left = (round(c*n - n*side/2) for c,n in ((y, h), (x, w)))
        box = np.zeros_like(cue)
        box[max(top, 0):round(top + h*side), max(left, 0):round(left + w*side)] = True
        seen.append(cue[box].sum() >= LEAST*min(cue.sum(), box.sum()))
    return float(np.mean(seen))


def asked(case, seed, tmp, page):
    "Train a network, ask for its report"
    import torch
    from fastai.callback import schedule  # noqa: F401
    from fastai.torch_core import set_seed

    from proxy_attention.all import ProxyAttentionCB  # noqa: F401  (patches the learner)
    from proxy_attention.lab.config.settings import load_experiment
    from proxy_attention.lab.data.loaders import make_dls
    from proxy_attention.lab.data.sources import load_items, splits_of
    from proxy_attention.lab.models.learner import make_learner, quiet

    torch.set_num_threads(1)
    changes = [*case.changes, f'data.seed={seed}']
    conf = load_experiment('dev_asl', ROOT/'studies'/'settings.ini', changes)
    items = load_items(conf.data, Path(tmp)/'data')
    splits = splits_of(items, conf.data)
    set_seed(seed)
    dls = make_dls(items, splits, conf.data, device='cpu')
    learn = make_learner(dls, conf.model.arch, conf.model.weights or 'none')
    set_seed(seed)
    with quiet(learn):
        learn.fit_one_cycle(EPOCHS, LR)
        report = learn.shortcut_report(scout=SCOUT, seed=seed, save=page)
    v, files = report.network.verdict, [items.files[i] for i in splits['valid']]
    first = {}
    for g in report.groups:
        if g.origin == 'network': first.setdefault(g.name, g)
    shown = {n: covers(g, report.network.patch_area, items, files) for n,g in first.items()}
    return dict(changes=changes, seed=seed, **{k: x for k,x in v.to_dict().items() if k != 'name'}, verdict=v.name,
                covered=shown, named=[g.name for g in report.groups if g.named], patch_area=report.network.patch_area,
                n_train=len(splits['train']), said=str(report), commit=commit_of())


def read(): return {(o['case'], o['seed']): o for o in read_lines(args.record)}


def run():
    os.environ.setdefault('PROXY_ATTENTION_DATA', str(data_folder(args.data)))
    known = read()
    with tempfile.TemporaryDirectory() as tmp:
        for seed in args.seeds:
            for name in args.cases:
                if (name, seed) in known: continue
                page = None if args.pages is None else Path(args.pages)/f"{name.replace(', ', '_')}_{seed}.html"
                got = dict(case=name) | asked(cases[name], seed, tmp, page)
                with open(args.record, 'a') as f: f.write(json.dumps(got) + '\n')
                print(name, seed, got['verdict'], got['reason'], f"{sum(s >= LEAST for s in got['covered'].values())} classes", flush=True)


def named(got):
    "Is the cue named: a shortcut, and the patches that are shown for most classes show it?"
    return got['verdict'] == 'shortcut' and sum(got['covered'].get(n, 0) >= LEAST for n in got['named']) > len(got['covered'])/2


def report():
    print('| data | seed | verdict | erased there | elsewhere | second network | classes whose patches show the cue |\n|---|---|---|---|---|---|---|')
    known = [o for o in read().values() if o['seed'] in args.seeds and o['case'] in args.cases]
    for o in known:
        c, kind = o['counts'], cases[o['case']].kind
        there, other, second = (None if v is None else v/c['n'] for v in (c['both'] + c['copy_only'], c['control'], c['second']))
        cells = ['' if v is None else f"{100*v:.0f}%" for v in (there, other, second)]
        shown = '' if kind == 'none' else f"{sum(s >= LEAST for s in o['covered'].values())} of {len(o['covered'])}"
        print(f"| {o['case']} | {o['seed']} | {o['verdict']}{' (' + o['reason'] + ')' if o['reason'] else ''} | {' | '.join(cells)} | {shown} |")
    for kind,what in (('patch', 'cues that fit into a patch'), ('wide', 'other cues'), ('none', 'no cue')):
        mine = [o for o in known if cases[o['case']].kind == kind]
        found = sum(o['verdict'] == 'shortcut' if kind == 'none' else named(o) for o in mine)
        print(f"\n{what}: {'a shortcut is named' if kind == 'none' else 'named'} in {found} of {len(mine)}")


if not args.report: run()
report()
