"""Images a second through a training loader: originals, copies read from PNG files, and copies erased when they are read; disk and memory an item."""
import argparse
import gc
import tempfile
import tracemalloc
import warnings
from pathlib import Path
from statistics import median
from zlib import crc32

from common import data_folder, image_files, interleaved, ratio, save_record

warnings.filterwarnings('ignore')
import torch  # noqa: E402
from fastai.learner import Learner  # noqa: E402
from fastai.losses import CrossEntropyLossFlat  # noqa: E402
from fastai.vision.augment import Resize  # noqa: E402
from fastai.vision.data import ImageDataLoaders  # noqa: E402

from proxy_attention.callback import ProxyAttentionCB  # noqa: E402
from proxy_attention.lab.models.small import small_cnn  # noqa: E402

p = argparse.ArgumentParser(description=__doc__)
p.add_argument('--data', help='folder with imagenet_samples and asl_digits')
p.add_argument('--n', type=int, default=256, help='photos of signs; half as many large photos')
p.add_argument('--rounds', type=int, default=5)
p.add_argument('--num_workers', type=int, default=0)
p.add_argument('--fills', nargs='+', default=['black', 'context', 'swap'])
p.add_argument('--save', action='store_true', help='write results/bench_unsaved.json')
args = p.parse_args()


def learner(files, size, tmp, **conf):
    "A learner whose training images all have a copy in their place, or none without `save`"
    dls = ImageDataLoaders.from_path_func(tmp, files, lambda f: crc32(f.name.encode()) % 2, valid_pct=.1, seed=0, bs=32, item_tfms=Resize(size), num_workers=args.num_workers)
    torch.manual_seed(0)
    learn = Learner(dls, small_cnn(2, 8), loss_func=CrossEntropyLossFlat())
    if conf: learn.add_cb(ProxyAttentionCB(scout=None, select='all', merge='replace', method='eigencam', verbose=False, **conf))
    return learn


def with_copies(files, size, tmp, **conf):
    "The learner, its copies made, and the bytes that making them has added to this process"
    learn = learner(files, size, tmp, **conf)
    learn.create_opt()
    cb = learn.proxy_attention_cb
    cb.prepare()
    gc.collect()
    tracemalloc.start()
    cb.make_proxies()
    for e in cb.copies.erasers.values(): e.donors.clear() # The pool's size is an argument, and doesn't grow with the items
    gc.collect()
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    return learn, held + sum(e.seen.maps.nbytes for e in cb.copies.erasers.values()) # torch's memory isn't traced


def compare(name, files, size, fill):
    with tempfile.TemporaryDirectory() as tmp:
        learns = {k: with_copies(files, size, tmp, fill=fill, save=k == 'files', path=Path(tmp)/k) for k in ('files', 'no files')}
        loaders = {'originals': learner(files, size, tmp).dls.train, **{k: v[0].dls.train for k,v in learns.items()}}
        n = learns['files'][0].dls.train.n
        def through(dl): return lambda: [None for _ in dl]
        seconds = interleaved({k: through(dl) for k,dl in loaders.items()}, args.rounds)
        out = dict(images=n, images_per_second={k: round(n/median(s), 1) for k,s in seconds.items()},
                   times_originals={k: round(ratio(seconds[k], seconds['originals']), 2) for k in seconds})
        for k,(_,held) in learns.items():
            disk = {f.name: f.stat().st_size for f in (Path(tmp)/k).iterdir() if f.suffix in ('.png', '.npz')}
            out[k] = dict(disk_per_item=round(sum(disk.values())/n), manifest_per_item=round((Path(tmp)/k/'manifest.jsonl').stat().st_size/n), ram_per_item=round(held/n))
        for k,v in out['images_per_second'].items():
            more = out.get(k, {})
            print(f"{name:22}{fill:9}{k:10}{v:8.1f} images/s {out['times_originals'][k]:5.2f} x originals' time"
                  + (f"{more['disk_per_item']:9,} bytes of copies an item, {more['manifest_per_item']:,} of manifest, {more['ram_per_item']:,} of RAM" if more else ''))
        for learn,_ in learns.values(): learn.remove_proxies()
        return out


data = data_folder(args.data)
signs, photos = image_files(data/'asl_digits', args.n), image_files(data/'imagenet_samples', args.n//2)
if photos is None or signs is None: raise SystemExit(f"no photos in {data}: give --data, a folder with imagenet_samples and asl_digits")
figures = dict(rounds=args.rounds, num_workers=args.num_workers)
for fill in args.fills:
    figures[f'asl_digits (100x100), {fill}'] = compare('asl_digits (100x100)', signs, 96, fill)
    figures[f'photos as they are, {fill}'] = compare('photos as they are', photos, 224, fill)
save_record('unsaved', figures, args.save)
