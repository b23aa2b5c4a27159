"""Does a linear probe of the early layers find a shortcut, and nothing where there is none? Pretrained and untrained networks that are not trained here at all.

Fourfold cross-validation on the training images of development data: each image's evidence, its erased copy and the answers are of a probe that was fitted
without it. `elsewhere` is the control: as large a square is erased at a random place; `shuffled`: at the place of another image. `refitted` is right on whole
images after it was fitted on copies.
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
p.add_argument('--area', type=float, default=0.1)
p.add_argument('--data', help='folder that holds photos')
p.add_argument('--record', default=str(ROOT/'results'/'bench_probe.jsonl'))
p.add_argument('--report', action='store_true', help='print the table of the record, run nothing')
args = p.parse_args()

FIRST_SEED = 60
LITE0, SMALL = ('tf_efficientnet_lite0', 'imagenet'), ('small_cnn', 'none')
asl, cifar = ['size=96'], ['data=square_cifar10', 'size=96', 'n_train=600']
cues = ('square', 'sticker', 'texture', 'position', 'letter', 'watermark', 'border', 'background')
nothing = ['shortcut=square', 'strength=0']
# name: network, weights, experiment, changes
rows = {f'ASL photos, {c}': (*LITE0, 'study_watermark_asl', [*asl, f'shortcut={c}']) for c in cues} | {
    'ASL photos, nothing to tell': (*LITE0, 'study_watermark_asl', [*asl, *nothing]),
    'CIFAR-10 at 96 pixels, square': (*LITE0, 'study_watermark_asl', [*cifar, 'shortcut=square']),
    'CIFAR-10 at 96 pixels, nothing to tell': (*LITE0, 'study_watermark_asl', [*cifar, *nothing]),
    'digits, square': (*SMALL, 'dev_digits', ['n_train=800', 'n_valid=100']),
    'digits, texture': (*SMALL, 'dev_digits', ['n_train=800', 'n_valid=100', 'shortcut=texture']),
    'digits, position': (*SMALL, 'dev_digits', ['n_train=800', 'n_valid=100', 'shortcut=position']),
    'digits, nothing to tell': (*SMALL, 'dev_digits', ['n_train=800', 'n_valid=100', 'strength=0']),
    'CIFAR-10, square': (*SMALL, 'dev_cifar10', ['n_train=1500']),
    'CIFAR-10, nothing to tell': (*SMALL, 'dev_cifar10', ['n_train=1500', 'strength=0']),
}


def read():
    path = Path(args.record)
    lines = map(json.loads, path.read_text().splitlines()) if path.exists() else ()
    return {(o['row'], o['seed'], o['area']): o for o in lines}


def load(arch, weights, experiment, changes, seed, tmp):
    "Network, training images as it sees them, class indices, and where the cue is"
    import cv2
    import numpy as np
    import torch
    from fastai.torch_core import set_seed

    from proxy_attention.dataloaders import as_validation, eval_dl
    from proxy_attention.lab.config import load_experiment
    from proxy_attention.lab.data import load_items, make_dls, splits_of
    from proxy_attention.lab.models import make_learner
    from proxy_attention.scan import plain_batch
    torch.set_num_threads(1)
    conf = load_experiment(experiment, ROOT/'settings.ini', [f'data.{c}' if not c.startswith('data=') else c for c in changes])
    items = load_items(conf.data, Path(tmp)/'data')
    splits = splits_of(items, conf.data)
    set_seed(seed)
    dls = make_dls(items, splits, conf.data, device='cpu')
    model = make_learner(dls, arch, weights).model.eval()
    with as_validation(dls.train.dataset):
        xs,ys = zip(*[plain_batch(b, model) for b in eval_dl(dls, dls.train.dataset, len(splits['train']), num_workers=0)])
    x, y = torch.cat(xs), torch.cat(ys)
    masks = [items.masks(items.files[i])['shortcut'].astype(np.uint8) for i in splits['train']]
    cue = np.stack([cv2.resize(m, tuple(x.shape[:1:-1]), interpolation=cv2.INTER_NEAREST) for m in masks]).astype(bool)
    return model, x, y, torch.from_numpy(cue)


def brightest(maps, area, size):
    "Masks (n,H,W) of the brightest `area`"
    import torch
    import torch.nn.functional as F
    flat = F.interpolate(maps[:, None], size, mode='bilinear', align_corners=False).flatten(1)
    mask = torch.zeros_like(flat, dtype=torch.bool)
    return mask.scatter_(1, flat.topk(round(area*flat.shape[1]), 1).indices, True).view(len(maps), *size)


def read_by_folds(model, x, y, cue, seed, area):
    "Accuracies of the probes on images, copies, copies erased elsewhere, and after refitting; how much of the cue is erased"
    import numpy as np
    import torch
    import torch.nn.functional as F

    from proxy_attention.core import seeded_rng
    from proxy_attention.layers import early_layers
    from proxy_attention.probe import class_evidence, layer_outputs, pooled_features, window_maps
    from proxy_attention.probe_scan import FOLDS, draw_folds, fit_folds, fold_scores
    n, k, layers = len(x), int(y.max()) + 1, early_layers(model, x)
    folds = draw_folds(y.numpy(), seed)
    fold = torch.from_numpy(folds)
    def features(images): return torch.cat([pooled_features(layer_outputs(model, b, layers)) for b in images.split(64)])
    def right(probes, z): return (fold_scores(probes, z, folds).argmax(1) == y).float().mean().item()
    z = features(x)
    probes = fit_folds(z, y.numpy(), folds, k)
    classes = fold_scores(probes, z, folds).argmax(1)
    windows = torch.empty(n, *x.shape[2:])
    for at in torch.arange(n).split(64):
        maps = layer_outputs(model, x[at], layers)
        for f in range(FOLDS):
            of = fold[at] == f
            if not of.any(): continue
            evidence = class_evidence(probes[f], [m[of] for m in maps], classes[at[of]])
            windows[at[of]] = F.interpolate(window_maps(evidence, area)[:, None], x.shape[2:], mode='bilinear', align_corners=False)[:, 0]
    place = brightest(windows, area, x.shape[2:])
    rng = seeded_rng(seed, 'fill')
    donors = x[torch.from_numpy((np.arange(n) + 1 + rng.integers(n-1, size=n)) % n)]
    centres = torch.zeros(n, 24, 24)
    centres[torch.arange(n), torch.from_numpy(rng.integers(24, size=n)), torch.from_numpy(rng.integers(24, size=n))] = 1
    anywhere, others = brightest(window_maps(centres, area), area, x.shape[2:]), place[torch.from_numpy(rng.permutation(n))]
    copies, elsewhere, shuffled = (features(torch.where(m[:, None], donors, x)) for m in (place, anywhere, others))
    again = fit_folds(copies, y.numpy(), folds, k)
    found = dict(images=right(probes, z), copies=right(probes, copies), elsewhere=right(probes, elsewhere), shuffled=right(probes, shuffled), refitted=right(again, z))
    return {k: round(v, 4) for k,v in (found | dict(cue_erased=((place & cue).sum()/cue.sum()).item(), chance=y.bincount().max().item()/n)).items()} | dict(n=n)


def run():
    os.environ.setdefault('PROXY_ATTENTION_DATA', str(data_folder(args.data)))
    known = read()
    with tempfile.TemporaryDirectory() as tmp:
        for seed in range(FIRST_SEED, FIRST_SEED + args.seeds):
            for row in args.rows or rows:
                if (row, seed, args.area) in known: continue
                what = load(*rows[row], seed, tmp)
                start = time.process_time()
                got = dict(row=row, seed=seed, area=args.area, **read_by_folds(*what, seed, args.area),
                           seconds=round(time.process_time() - start, 2), commit=commit_of())
                with open(args.record, 'a') as f: f.write(json.dumps(got) + '\n')
                print(row, seed, got, flush=True)


def report():
    print('| data | seed | images | copies | erased elsewhere | needed | refitted | suffices | cue erased | CPU seconds |')
    print('|---|---|---|---|---|---|---|---|---|---|')
    for (row,seed,area),o in sorted(read().items(), key=lambda kv: ([*rows].index(kv[0][0]), kv[0][1:])):
        if area != args.area: continue
        above = max(o['images'] - o['chance'], 1e-9)
        share = (o['elsewhere'] - o['copies'])/above, (o['refitted'] - o['chance'])/above
        cells = [row, seed, *(f"{o[k]:.3f}" for k in ('images', 'copies', 'elsewhere')), f"{100*share[0]:.0f}%", f"{o['refitted']:.3f}", f"{100*share[1]:.0f}%",
                 f"{100*o['cue_erased']:.0f}%", f"{o['seconds']:.0f}"]
        print('| ' + ' | '.join(map(str, cells)) + ' |')


if not args.report: run()
report()
