"""A run's folder as `proxy-attention run` leaves it behind, without any training: see `lab.runs` for what is in it."""
import hashlib
import json
from pathlib import Path

import cv2
import numpy as np

from proxy_attention.gallery import overlay_heatmap
from proxy_attention.lab.runs.checkpoint import MADE_BY

# Few and small images, and a network for them: the first sections of settings
FEW = """\
[data:digits]
source = shortcut_digits
n_train = 20
n_valid = 10
n_test = 10
size = 40
bs = 10
[model:net]
arch = small_cnn
width = 4
"""
# Settings of an experiment; epochs of three steps
INI = FEW.replace('n_train = 20', 'n_train = 30') + """\
[proxy:unsure]
scout = off
select = low_confidence
share = 0.2
cycles = 2
[proxy:early]
scout = 5 steps
scout_test = false
scout_merge = add
select = off
cycles = 0
[proxy:seen]
scout = off
select = ever_wrong
share = 1
[proxy:scouted]
scout = 3 steps
scout_test = false
cycles = 1
[proxy:tested]
scout = 5 steps
select = off
cycles = 0
[experiment:try]
data = digits
model = net
proxy = unsure
epochs = 2
freeze_epochs = 1
lr = 0.01
deterministic = true
threads = 1
"""
SMALL = ['proxy=early', 'freeze_epochs=0', 'steps=8', 'n_test=20'] # Changes for a comparison of short runs


def report(rng, names, accuracy, n=300, groups=False):
    "A classification report of made-up predictions, its parts in agreement with each other"
    c = len(names)
    y = np.arange(n) % c
    right = rng.random(n) < accuracy
    away = (y + rng.integers(1, max(2, c), n)) % c if c > 1 else y
    pred = np.where(right, y, np.where(rng.random(n) < .5, (y + 1) % c, away))
    right = pred == y
    confidence = np.where(right, rng.uniform(.5, 1, n)**.5, rng.uniform(1/c, .9, n))
    confusion = np.zeros((c, c), int)
    np.add.at(confusion, (y, pred), 1)
    precision, recall = confusion.diagonal()/np.maximum(confusion.sum(0), 1), confusion.diagonal()/np.maximum(confusion.sum(1), 1)
    f1 = 2*precision*recall/np.maximum(precision + recall, 1e-9)
    at = np.clip(np.ceil(confidence*15).astype(int) - 1, 0, 14)
    rows = [dict(n=int((at == b).sum()), confidence=float(confidence[at == b].mean()) if (at == b).any() else None,
                 accuracy=float(right[at == b].mean()) if (at == b).any() else None) for b in range(15)]
    sure = {f'{t:g}': dict(share=float((confidence >= t).mean()), accuracy=float(right[confidence >= t].mean()) if (confidence >= t).any() else None) for t in (.5, .7, .8, .9, .95)}
    out = dict(n=n, accuracy=float(right.mean()), precision=float(precision.mean()), recall=float(recall.mean()), f1=float(f1.mean()),
               per_class={k: dict(precision=float(p), recall=float(r), f1=float(f), n=int(m)) for k,p,r,f,m in zip(names, precision, recall, f1, confusion.sum(1))},
               confusion=confusion.tolist(), nll=float(-np.log(np.where(right, confidence, .1)).mean()), ece=.034, reliability=rows,
               confidence_right=float(confidence[right].mean()), confidence_wrong=float(confidence[~right].mean()) if (~right).any() else None, accuracy_at=sure)
    if groups: out |= dict(per_group={'colour tells the class': dict(accuracy=.97, n=n-40), 'colour misleads': dict(accuracy=.41, n=40)}, worst_group_accuracy=.41)
    return out

def split_files(
    path, # Folder made by `make_shortcut_digits`
    split='test', # train, valid or test
):
    "Image files of a split, in a fixed order"
    return sorted((Path(path)/split).rglob('*.png'))

def picture(rng, side=100):
    img = rng.integers(60, 120, (side, side, 3), dtype=np.uint8)
    x,y = rng.integers(25, side-25, 2)
    cv2.circle(img, (int(x), int(y)), 18, tuple(map(int, rng.integers(120, 255, 3))), -1)
    return cv2.GaussianBlur(img, (5, 5), 0), (int(x), int(y))

def save_gallery(folder, rng, names, cycle, n):
    folder.mkdir(exist_ok=True)
    rows = []
    for i in range(n):
        img,(x,y) = picture(rng)
        heat = np.exp(-((np.mgrid[:100, :100] - np.array([y, x])[:, None, None])**2).sum(0)/300)
        glow = overlay_heatmap(img, heat)[..., ::-1]
        copy = np.where((heat > .6)[..., None], 0, img).astype(np.uint8)
        files = [f'{cycle}-{i}-{k}.jpg' for k in ('original', 'map', 'copy')]
        for f,p in zip(files, (img, glow, copy)): cv2.imwrite(str(folder/f), p, [cv2.IMWRITE_JPEG_QUALITY, 85])
        rows.append(dict(id=f'{cycle}-{i}', cycle=cycle, label=names[i % len(names)], predicted=names[(i + 1) % len(names)], confidence=.8 - i/100, erased=.1, files=files))
    (folder/f'cycle{cycle}.json').write_text(json.dumps(rows))

def make_run(
    folder, # Made
    names=('cat', 'dog', 'eel', 'fox'), # Classes
    accuracies=(.82, .88, .91), # On validation after Stage 1, cycle 1, cycle 2, …
    undone=(), # Cycles that are rolled back
    epochs=5, # Of each stage
    stop='cycles done', # Why it ended
    until=None, # Lines of the record that were written before it was killed; None: all
    n=300, # Images in the test
    masks=False, # Are truth masks and groups known?
    pictures=8, # In each cycle's gallery
    audit=None, # Of the end's line; None: clean
    proxy=True, # A run with proxies?
    seed=0, # Of the made-up numbers
    **settings, # Of the experiment
) -> Path:
    folder, rng, names = Path(folder), np.random.default_rng(seed), list(names)
    folder.mkdir(parents=True, exist_ok=True)
    resolved = dict(name=folder.name, file='settings.ini', data=dict(source='folder', path='images', size=96, bs=32), model=dict(arch='resnet18', weights='imagenet'),
                    proxy=dict(method='gradcam++', select='low_confidence', share=.1, area=.1, cycles=len(accuracies)-1) if proxy else None,
                    experiment=dict(data='mine', model='resnet18', proxy='unsure' if proxy else None, seed=seed, epochs=epochs, lr=.003, monitor='accuracy') | settings)
    about = dict(made_by=MADE_BY, schema=1, command=f'proxy-attention run {folder.name}', version='0.3.0', commit='4f1c'*10, settings=resolved,
                 settings_sha256=hashlib.sha256(json.dumps(resolved).encode()).hexdigest(), python='3.11.2', torch='2.15.0', fastai='2.8.12', timm='1.0.31',
                 machine='x86_64', cores=2, threads=2, gpu=None, started='2026-11-22 14:00:00')
    (folder/'config.json').write_text(json.dumps(about))
    maps = lambda a: dict(maps=dict(method='layercam', split='valid', images=200, n=200, empty_maps=3, on_digit=a-.3, hit_digit=a-.2, area_digit=.12, on_shortcut=.9-a,
                                    hit_shortcut=.3, area_shortcut=.06)) if masks else {}
    ram = dict(peak_ram_mb=812.4, peak_ram_of='stage', peak_gpu_allocated_mb=None, peak_gpu_reserved_mb=None)
    lines = [dict(kind='run', **about, classes=names, images=dict(train=1200, valid=300, test=n), precision='fp32', device='cpu', parameters=11_180_616, trainable=11_180_616,
                  multiply_adds=334_000_000)]
    spent = dict.fromkeys(('train', 'valid', 'score', 'saliency', 'erase', 'write'), 0.)
    for c,top in enumerate(accuracies):
        if c:
            took = dict(seconds_score=2.1, seconds_saliency=.7, seconds_erase=.4, seconds_write=.3)
            lines.append(dict(kind='stage', stage='proxies', cycle=c, items=1200, wrong=140-40*c, candidates=120, proxies=118, flat=2, unreadable=0, held_out=0, live=118, **took,
                              proxies_mb=3.2*c, **ram))
            if pictures: save_gallery(folder/'gallery', rng, names, c, pictures)
            for k,v in took.items(): spent[k[8:]] += v
        start = accuracies[c-1]-.02 if c else 1/len(names)
        for e in range(1, epochs+1):
            a = start + (top-start)*(1 - .4**e)/(1 - .4**epochs)
            lines.append(dict(kind='epoch', stage='train', cycle=c, epoch=e, step=38*e, lr=.003/e, train_loss=2.2*(1-a)/e**.2, valid_loss=2*(1-a), accuracy=a, precision=a-.01, recall=a,
                              f1=a-.01, seconds_train=6.1, seconds_valid=.8, images_per_second=197., peak_ram_mb=811., peak_gpu_mb=None, peak_gpu_reserved_mb=None))
        got = report(rng, names, top)
        lines.append(dict(kind='stage', stage='train', cycle=c, items=1200 + 118*bool(c), proxies=118*bool(c), bs=32, accumulate=1, epochs=epochs, steps=38*epochs, lr=.003,
                          train_loss=.2, valid_loss=.3, valid=got | dict(accuracy=top), **maps(top), rolled_back=c in undone, seconds_train=6.1*epochs, seconds_valid=.8*epochs,
                          images_per_second=197., proxies_mb=3.2*c, **ram))
        spent['train'], spent['valid'] = spent['train'] + 6.1*epochs, spent['valid'] + .8*epochs
    lines.append(dict(kind='end', stop=stop, cycles=len(accuracies)-1, tested_on='test', test=report(rng, names, accuracies[-1], n, masks), **maps(accuracies[-1]),
                      target=dict(accuracy=.8, epochs=4, seconds=24.4),
                      audit=audit or dict(ok=True, problems=[], near=3, checked='audit of 1200 training, 300 validation and 300 test images and 236 copies: clean'),
                      proxies_mb=6.4, steps=38*epochs*len(accuracies), proxies_made=118*(len(accuracies)-1), **{f'seconds_{k}': v for k,v in spent.items()}, seconds_test=1.2,
                      seconds=sum(spent.values()) + 9, **ram))
    kept = lines[:until]
    (folder/'record.jsonl').write_text(''.join(json.dumps(o, ensure_ascii=False) + '\n' for o in kept), encoding='utf-8')
    done = len(kept) == len(lines)
    after = ['done'] if done else ['train', kept[-1].get('cycle', 0)] if len(kept) > 1 else ['prepare']
    (folder/'state.json').write_text(json.dumps(dict(next=after, record_bytes=(folder/'record.jsonl').stat().st_size)))
    return folder


def patch_name(monkeypatch, name, value):
    "Replace what the lab's modules call `name`, in each that has it: where it is made and where it is imported"
    import importlib
    import pkgutil

    import proxy_attention.lab
    found = [importlib.import_module(m.name) for m in pkgutil.walk_packages(proxy_attention.lab.__path__, 'proxy_attention.lab.') if not m.name.endswith('__main__')]
    holders = [m for m in found if name in vars(m)]
    assert holders, f"no module of the lab has {name!r}"
    assert len({id(vars(m)[name]) for m in holders}) == 1, f"several things are called {name!r}"
    for m in holders: monkeypatch.setattr(m, name, value)
