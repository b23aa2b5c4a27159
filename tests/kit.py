"""What the tests of the callback share: a tiny data set, a tiny network, learners without progress bars, and an evaluation of its own."""
import json
import os
import random
import subprocess
import sys
import tempfile
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from fastai.callback.progress import ProgressCallback
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.data.transforms import get_image_files, parent_label
from fastai.learner import Learner, Metric
from fastai.losses import CrossEntropyLossFlat
from fastai.metrics import accuracy
from fastai.vision.core import PILImage
from fastai.vision.data import ImageDataLoaders
from fastai.vision.learner import model_meta, vision_learner
from fastcore.basics import noop
from fasttransform import Transform
from PIL import Image
from torch import nn
from torchvision.models.resnet import BasicBlock, ResNet, resnet18

from proxy_attention.callback import ProxyAttentionCB

CLASSES = ('blue', 'green', 'red')
SIDE = 32 # What the network sees
SIZES = (40, 24), (33, 33), (25, 30), (29, 37) # Widths and heights of the images


def seed_all(seed=0):
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)

def shape_image(c, rng, width, height):
    "A coloured shape on noise: a square, a disc or a triangle"
    img = rng.integers(0, 200, (height, width, 3), dtype=np.uint8)
    y,x = np.mgrid[:height, :width]
    r = rng.integers(6, 9)
    cy,cx = rng.integers(r, height-r), rng.integers(r, width-r)
    dy,dx = y-cy, x-cx
    inside = (np.maximum(abs(dy), abs(dx)) < r, dy**2 + dx**2 < r**2, (abs(dx) < (dy+r)/2) & (dy < r))[c]
    img[inside] = np.eye(3, dtype=np.uint8)[2-c]*200 + rng.integers(0, 55)
    return img

def make_shapes(root, per_class=12, seed=0):
    "A folder a class of images of mixed sizes; no two have the same mean colour"
    rng = np.random.default_rng(seed)
    for c,name in enumerate(CLASSES):
        (root/name).mkdir(parents=True)
        for k in range(per_class):
            width,height = SIZES[k % len(SIZES)]
            Image.fromarray(shape_image(c, rng, width, height)).save(root/name/f'{name}_{k:02}.png')
    return root

def tiny_model(classes=3):
    "Body and head, 8x8 feature map at 32 pixels"
    body = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU())
    return nn.Sequential(body, nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, classes)))

class Squish(Transform):
    "As `Resize(SIDE, method='squish')`, which pads, crops and draws for nothing, at a third of its cost"
    order = 1
    def encodes(self, x:PILImage): return x.resize((SIDE, SIDE), Image.BILINEAR)

def shapes_dls(root, **kwargs):
    "27 training and 9 validation images, if the folder holds 36"
    kwargs = dict(valid_pct=0.25, seed=0, bs=8, item_tfms=Squish(), num_workers=0) | kwargs
    # Not `from_folder`: which images are held out must not hang on the order in which a disk lists them
    return ImageDataLoaders.from_path_func(root, get_image_files(root).sorted(), parent_label, **kwargs)

def quiet(learn):
    "The learner, without bars and tables"
    learn.logger = noop
    return learn.remove_cb(ProgressCallback)

def resnet_learner(dls, **kwargs):
    "As `vision_learner` with a ResNet-18, new, of half its blocks"
    def resnet10(**kwargs): return ResNet(BasicBlock, [1]*4)
    return quiet(vision_learner(dls, resnet10, pretrained=False, path=Path.cwd(), cut=-2, splitter=model_meta[resnet18]['split'], **kwargs))

def make_learner(dls, cb=None, seed=0, model=None, **kwargs):
    "A learner whose every random number follows from `seed`; `dls` may be a function, called after seeding"
    seed_all(seed)
    dls = dls() if callable(dls) else dls
    kwargs = dict(loss_func=CrossEntropyLossFlat(), metrics=accuracy, cbs=cb, path=Path.cwd()) | kwargs
    return quiet(Learner(dls, tiny_model() if model is None else model, **kwargs))

def quiet_cb(**kwargs):
    "A callback that doesn't print, sends no scout, gives every wrong item a black copy, and whose maps are never flat"
    return ProxyAttentionCB(**(dict(method='eigencam', share=1., scout=None, fill='black', verbose=False) | kwargs))

def cb_of(learn): return learn._grab_cbs(ProxyAttentionCB)[0]

def last_of(learn): return cb_of(learn).last_report.to_dict()


# -- an evaluation of its own ---------------------------------------------------------------------------------------------------------------------

def logits_of(model, files):
    "What `model` says of image files: nothing of fastai's or the library's takes part"
    modes = [(m, m.training) for m in model.modules()]
    model.eval()
    out = []
    with torch.no_grad():
        for f in files:
            with Image.open(f) as im: small = im.convert('RGB').resize((SIDE, SIDE), Image.BILINEAR)
            x = torch.from_numpy(np.array(small)).permute(2, 0, 1)[None].float() / 255
            out.append(model(x)[0])
    for m,mode in modes: m.training = mode
    return torch.stack(out)

def label_of(file): return CLASSES.index(Path(file).parent.name)

def wrong_files(model, files):
    "The files whose class `model` gets wrong"
    preds = logits_of(model, files).argmax(1).tolist()
    return {str(f) for f,p in zip(files, preds) if p != label_of(f)}

def copied_files(learn): return set(learn.proxies['original'])

def read_rgb(path):
    with Image.open(path) as im: return np.array(im.convert('RGB'))

def copy_bytes(learn):
    "The live copies: file contents by original"
    return {o: Path(p).read_bytes() for o,p in zip(learn.proxies['original'], learn.proxies['path'])}

def files_in(folder='.'): return {p.relative_to(folder).as_posix() for p in Path(folder).rglob('*')}


# -- states, to be compared -----------------------------------------------------------------------------------------------------------------------

def weights(model): return {k: v.clone() for k,v in model.state_dict().items()}

def same_weights(a, b): return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)

def plain(v):
    "Something that `==` compares bit by bit"
    if torch.is_tensor(v): return str(v.dtype), tuple(v.shape), v.detach().cpu().contiguous().numpy().tobytes()
    if isinstance(v, np.ndarray): return str(v.dtype), v.shape, v.tobytes()
    if isinstance(v, dict): return {str(k): plain(x) for k,x in v.items()}
    if hasattr(v, '__iter__') and not isinstance(v, (str, bytes)): return [plain(x) for x in v]
    return v.hex() if isinstance(v, float) else v

def footprint(learn):
    "Everything that a cycle without copies has to leave alone"
    rec, train = learn.recorder, learn.dls.train
    return dict(
        weights=plain(learn.model.state_dict()),
        optimizer=plain(learn.opt.state_dict()),
        grads=plain([[] if p.grad is None else p.grad for p in learn.model.parameters()]),
        modes=[m.training for m in learn.model.modules()],
        requires_grad=[p.requires_grad for p in learn.model.parameters()],
        recorder=plain([[[v for v in row if not isinstance(v, str)] for row in rec.values], rec.losses, rec.lrs, rec.iters]),
        python=random.getstate(), numpy=plain(np.random.get_state()), torch=plain(torch.get_rng_state()),
        loader=train.rng.getstate(), items=len(learn.dls.train_ds), hooks=hooks_of(learn.model),
    )

def hooks_of(model):
    "How many hooks the modules of `model` hold"
    kinds = ('_forward_hooks', '_forward_pre_hooks', '_backward_hooks', '_backward_pre_hooks')
    return sum(len(getattr(m, k)) for m in model.modules() for k in kinds)

class Scripted(Metric):
    "A metric that goes through `values`, one each validation"
    def __init__(self, *values): self.values, self.k = values, -1
    def reset(self): self.k += 1
    def accumulate(self, learn): pass
    @property
    def value(self): return float(self.values[min(self.k, len(self.values)-1)])
    @property
    def name(self): return 'scripted'


# -- items without files --------------------------------------------------------------------------------------------------------------------------

class Coded:
    "(uint8 tensor, class) items; the first pixel holds the item's number, and every read is noted"
    def __init__(self, n=24, seed=0, first=0):
        rng = np.random.default_rng(seed)
        self.reads, self.items = [], []
        for i in range(n):
            img = shape_image(i % 3, rng, SIDE, SIDE)
            img[0, 0] = first + i
            self.items.append((torch.from_numpy(img).permute(2, 0, 1).contiguous(), i % 3))
    def __len__(self): return len(self.items)
    def __getitem__(self, i):
        self.reads.append(i)
        return self.items[i]

def to_float(b): return b[0].float() / 255, b[1]

def coded_dls(train=None, valid=None, bs=8, drop_last=True, **kwargs):
    train, valid = Coded() if train is None else train, Coded(9, 1, 100) if valid is None else valid
    return DataLoaders(DataLoader(train, bs=bs, shuffle=True, drop_last=drop_last, after_batch=to_float, **kwargs),
                       DataLoader(valid, bs=bs, after_batch=to_float))


# -- processes of their own -----------------------------------------------------------------------------------------------------------------------

@lru_cache
def warm_process(): return subprocess.Popen([sys.executable, Path(__file__).with_name('warm_process.py')], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

def ask_warm(*request):
    warm = warm_process()
    warm.stdin.write(json.dumps(request) + '\n')
    warm.stdin.flush()
    return int(warm.stdout.readline())

class Forked:
    "A script in a fork of a process that has imported torch and fastai, and nothing of ours"
    def __init__(self, code, *argv, cwd='.', env=None):
        self.args, self.folder = [code, *map(str, argv)], tempfile.TemporaryDirectory()
        self.files = [Path(self.folder.name)/name for name in ('out', 'err')]
        self.pid = ask_warm('start', [code, self.args[1:], os.path.abspath(cwd), dict(os.environ) if env is None else env, *map(str, self.files)])
    def wait(self, seconds=900):
        "As `subprocess.run` with `capture_output=True, text=True`; killed if it takes longer"
        with self.folder: return subprocess.CompletedProcess(self.args, ask_warm('wait', [self.pid, seconds]), *(f.read_text() if f.exists() else '' for f in self.files))

def fresh_process(code, *argv, cwd='.', env=None):
    "As `subprocess.run([sys.executable, '-W', 'ignore', '-c', code, *argv], capture_output=True, text=True)`, without the seconds that importing torch and fastai takes"
    if hasattr(os, 'fork'): return Forked(code, *argv, cwd=cwd, env=env).wait()
    return subprocess.run([sys.executable, '-W', 'ignore', '-c', code, *map(str, argv)], cwd=cwd, env=env, capture_output=True, text=True)
