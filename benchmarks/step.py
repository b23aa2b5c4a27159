"""A whole step (score, map, erase, write, inject) against a bare scoring pass plus the encoder (cv2.imwrite of the copies), and against the naive way."""
import argparse
import contextlib
import tempfile
import time
import warnings
from pathlib import Path
from statistics import median

from common import data_folder, image_files, interleaved, ratio, save_record

warnings.filterwarnings('ignore')
import cv2  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from fastai.data.transforms import parent_label  # noqa: E402
from fastai.learner import Learner  # noqa: E402
from fastai.losses import CrossEntropyLossFlat  # noqa: E402
from fastai.vision.augment import Resize  # noqa: E402
from fastai.vision.data import ImageDataLoaders  # noqa: E402
from PIL import Image  # noqa: E402
from torchvision.models import resnet18  # noqa: E402

from proxy_attention.callback import ProxyAttentionCB  # noqa: E402
from proxy_attention.core import no_footprint  # noqa: E402
from proxy_attention.dataloaders import eval_dl  # noqa: E402
from proxy_attention.lab.data.digits import make_shortcut_digits  # noqa: E402
from proxy_attention.lab.models.small import small_cnn  # noqa: E402
from proxy_attention.scan import plain_batch  # noqa: E402

p = argparse.ArgumentParser(description=__doc__)
p.add_argument('--items', type=int, default=2000)
p.add_argument('--rounds', type=int, default=3)
p.add_argument('--width', type=int, default=64, help='of the small CNN; with 16 loading and writing files outweigh the network')
p.add_argument('--naive', type=int, default=256, help='images the naive way is timed on, one at a time; the rest is scaled')
p.add_argument('--sets', nargs='+', default=['asl_digits', 'cifar10'], choices=['asl_digits', 'cifar10'])
p.add_argument('--data', help='folder that holds asl_digits and cifar10')
p.add_argument('--save', action='store_true', help='write results/bench_step*.json')
args = p.parse_args()


def learner(name, tmp):
    "ASL digits with a ResNet-18 at 224, or CIFAR-10 with a small CNN; shortcut digits where the set is missing"
    folder = data_folder(args.data)/('cifar10/train' if name == 'cifar10' else name)
    files = image_files(folder, args.items + 64) or image_files(make_shortcut_digits(Path(tmp)/'digits', n_train=1200)/'train', args.items + 64)
    size = 224 if name == 'asl_digits' else None
    dls = ImageDataLoaders.from_path_func(tmp, files, parent_label, valid_pct=64/(args.items + 64), seed=0, bs=64, num_workers=0,
                                          item_tfms=Resize(size) if size else None)
    torch.manual_seed(0)
    model = resnet18(num_classes=dls.c) if size else small_cnn(dls.c, args.width)
    return Learner(dls, model, loss_func=CrossEntropyLossFlat())


def bare_pass(learn):
    "The limit: every training image through the evaluation loader and the network once"
    with no_footprint(learn.model), torch.no_grad():
        for b in eval_dl(learn.dls, learn.dls.train_ds, learn.dls.train.n): learn.model(plain_batch(b, learn.model)[0]).argmax(1)


def naive(learn, share, out):
    "Seconds of get_preds, then pytorch-grad-cam an image at a time, numpy and Pillow's PNG"
    start = time.perf_counter()
    from pytorch_grad_cam import GradCAM
    dl = learn.dls.test_dl(learn.dls.train_ds.items, with_labels=True)
    preds,y,losses = learn.get_preds(dl=dl, with_loss=True, reorder=False)
    chosen = losses.argsort(descending=True)[:round(share*len(losses))]
    scored = time.perf_counter()
    layer = learn.model.layer4 if hasattr(learn.model, 'layer4') else learn.model[0]
    with GradCAM(learn.model, [layer]) as cam:
        for i in chosen[:args.naive].tolist():
            x = dl.new(dl.dataset, get_idxs=lambda i=i: [i], bs=1).one_batch()[0]
            m = cam(x.as_subclass(torch.Tensor), None)[0]
            img = np.array(Image.open(learn.dls.train_ds.items[i]).convert('RGB'))
            m = np.array(Image.fromarray(m).resize(img.shape[1::-1], Image.BILINEAR))
            img[m >= np.sort(m.ravel())[-round(.1*m.size)]] = 0
            Image.fromarray(img).save(Path(out)/f'{i}.png')
    return scored - start + (time.perf_counter() - scored)*len(chosen)/min(len(chosen), args.naive)


figures = {}
for name in args.sets:
    with tempfile.TemporaryDirectory() as tmp, contextlib.ExitStack() as stack:
        learn = learner(name, tmp)
        stack.enter_context(learn.no_bar()) if hasattr(learn, 'progress') else None
        whole, learn.dls.train.n = learn.dls.train.n, min(learn.dls.train.n, 640)
        start = time.perf_counter()
        with learn.no_logging(): learn.fit(1, 1e-3) # with its validation, and scaled
        epoch = (time.perf_counter() - start) * whole / learn.dls.train.n
        learn.dls.train.n = whole
        print(f"\n{name}: {learn.dls.train.n} items, {type(learn.model).__name__}, {torch.get_num_threads()} threads, {args.rounds} rounds; "
              f"one epoch of training {epoch:.1f} s")
        for label,select,share in (('every item erased', 'all', 1.), ('the hardest 15% erased', 'high_loss', .15)):
            count = iter(range(100))
            def step():
                "Everything, into a fresh folder, so that nothing is found done already"
                cb = ProxyAttentionCB(select=select, share=share, area=.1, fill='black', path=f'{tmp}/.run{next(count)}', verbose=False)
                learn.add_cb(cb)
                begun = time.perf_counter()
                cb.prepare()
                preparing.append(time.perf_counter() - begun) # before training, once for a learner: not the step's
                cb.make_proxies()
                made.append(cb.last_report.proxies)
                start = time.perf_counter()
                pixels = list(_copies(cb)) # all: a file costs more the more are in its folder
                out = tempfile.mkdtemp(dir=tmp) # deleted at the very end: some file systems are slow to make files where many were just deleted
                begun = time.perf_counter()
                for k,img in enumerate(pixels): cv2.imwrite(f'{out}/{k}.png', img)
                encoder.append(time.perf_counter() - begun)
                encoding.append(time.perf_counter() - start)
                learn.remove_proxies()
            def _copies(cb):
                from proxy_attention.store import decode_image
                for r in cb.copies.rows: yield decode_image(cb.copies.store.file(r).read_bytes())
            made, encoder, encoding, preparing, naively = [], [], [], [], []
            def slow():
                with tempfile.TemporaryDirectory() as out, learn.no_logging(): naively.append(naive(learn, share, out))
            seconds = interleaved({'bare pass': lambda: bare_pass(learn), 'step': step, 'naive': slow}, args.rounds, warm_up=False, once=('naive',))
            seconds['step'] = [s - e - p for s,e,p in zip(seconds['step'], encoding, preparing)] # nor is what measuring the encoder cost
            seconds['naive'] = naively
            limit = [1.1*b + e for b,e in zip(seconds['bare pass'], encoder)]
            s = {k: median(v) for k,v in seconds.items()}
            fig = dict(proxies=made[-1], bare=s['bare pass'], step=s['step'], naive=s['naive'], encoder=median(encoder), of_limit=ratio(seconds['step'], limit),
                       per_bare=ratio(seconds['step'], seconds['bare pass']), naive_per_step=ratio(seconds['naive'], seconds['step']),
                       of_epoch=s['step']/epoch, of_five_epochs=s['step']/epoch/5)
            figures[f'{name}, {label}'] = {k: round(v, 4) for k,v in fig.items()}
            print(f"  {label}: {made[-1]} copies; bare pass {s['bare pass']:.2f} s, encoder alone {fig['encoder']:.2f} s, step {s['step']:.2f} s, naive {s['naive']:.2f} s")
            print(f"    step / (1.10 x bare pass + encoder) {fig['of_limit']:.2f}   step / bare pass {fig['per_bare']:.2f}   naive / step {fig['naive_per_step']:.2f}")
            print(f"    step / one epoch of training {fig['of_epoch']:.1%}   / five epochs {fig['of_five_epochs']:.1%}")
save_record('step_' + '_'.join(args.sets) if len(args.sets) == 1 else 'step', figures, args.save)
