"""Should a scout of a frozen network be frozen too? What scouts of ImageNet's tf_efficientnet_lite0 know after some steps, on ASL photos with a coloured square."""
import argparse
import os
import tempfile
import warnings
from pathlib import Path

from common import ROOT, data_folder, save_record

warnings.filterwarnings('ignore')
os.environ['OMP_NUM_THREADS'] = '1'

p = argparse.ArgumentParser(description=__doc__)
p.add_argument('--steps', type=int, nargs='*', default=[3, 12, 24, 48])
p.add_argument('--seed', type=int, default=60)
p.add_argument('--data', help='folder that holds photos')
p.add_argument('--save', action='store_true')
args = p.parse_args()
os.environ.setdefault('PROXY_ATTENTION_DATA', str(data_folder(args.data)))

import torch  # noqa: E402
from fastai.torch_core import set_seed  # noqa: E402

from proxy_attention.dataloaders import eval_dl, inject  # noqa: E402
from proxy_attention.check import training_set  # noqa: E402
from proxy_attention.lab.config.settings import load_experiment  # noqa: E402
from proxy_attention.lab.data.sources import load_items, splits_of
from proxy_attention.lab.data.loaders import make_dls, test_dl  # noqa: E402
from proxy_attention.lab.models.learner import make_learner  # noqa: E402
from proxy_attention.scan import Subset, predict_classes  # noqa: E402
from proxy_attention.scout import held_out_items, train_scout  # noqa: E402

torch.set_num_threads(1)
LR = 3e-3


def accuracy(model, dl):
    pred,y = predict_classes(model, dl)
    return float((pred == y).mean())


figures = []
with tempfile.TemporaryDirectory() as tmp:
    conf = load_experiment('study_square_asl', ROOT/'studies'/'settings.ini', ['data.size=96', 'data.seed=0'])
    items = load_items(conf.data, Path(tmp))
    splits = splits_of(items, conf.data)
    set_seed(args.seed)
    learn = make_learner(make_dls(items, splits, conf.data, device='cpu'), conf.model.arch, conf.model.weights, lr=LR)
    test, data = test_dl(learn.dls, items, splits), training_set(learn.dls)
    labels = torch.tensor([int(data.base[i][1]) for i in range(data.n)]).numpy()
    held = held_out_items(labels, args.seed)
    rest = [i for i in range(data.n) if i not in set(held.tolist())]
    dls = inject(learn.dls, *data, [], rest)
    print('layers    steps  held-out photos  photos whose square says nothing')
    for layers in ('head', 'all'):
        learn.unfreeze()
        for group in learn.opt.param_lists[:-1]: # by hand: a scout of `learn.freeze()` trains all layers
            for param in group: param.requires_grad_(layers == 'all')
        learn.opt.set_hyper('lr', LR)
        for steps in args.steps:
            scout = train_scout(learn, dls, steps, args.seed)
            known = accuracy(scout, eval_dl(learn.dls, Subset(data.base, held), len(held))), accuracy(scout, test)
            figures.append(dict(layers=layers, steps=steps, held_out=round(known[0], 4), test=round(known[1], 4), seed=args.seed))
            print(f"{layers:8} {steps:6} {known[0]:16.3f} {known[1]:12.3f}", flush=True)
save_record('frozen_scout', figures, args.save)
