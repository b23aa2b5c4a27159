"""Images a second through the same fastai loader, read with Pillow (fastai's own way) and with OpenCV: large photos, photos as they are, small ones."""
import argparse
import tempfile
from pathlib import Path
from statistics import median

from common import data_folder, image_files, interleaved, ratio, save_record
from fastai.data.block import CategoryBlock, DataBlock
from fastai.vision.augment import Resize
from fastai.vision.data import ImageBlock
from PIL import Image

from proxy_attention.lab.data.reading import OpenCVBlock

p = argparse.ArgumentParser(description=__doc__)
p.add_argument('--data', help='folder with imagenet_samples and asl_digits')
p.add_argument('--n', type=int, default=64, help='large photos; four times as many of the others')
p.add_argument('--size', type=int, default=224)
p.add_argument('--rounds', type=int, default=7)
p.add_argument('--num_workers', type=int, default=0)
p.add_argument('--save', action='store_true', help='write results/bench_reading.json')
args = p.parse_args()


def loader(block, files):
    "The same loader but for the reader: crop to the size, batches of 32, in order"
    block = DataBlock(blocks=(block, CategoryBlock), get_items=lambda _: files, get_y=lambda f: f.name[-5] > '4', splitter=lambda x: (range(len(files)), [0]),
                      item_tfms=Resize(args.size))
    dls = block.dataloaders(None, bs=32, num_workers=args.num_workers, device='cpu')
    return dls.train.new(shuffle=False, drop_last=False)


def enlarged(files, folder):
    "The photos with a smaller side of 1500, as JPEGs of quality 90"
    out = []
    for i,f in enumerate(files):
        with Image.open(f) as im: img = im.convert('RGB')
        k = 1500/min(img.size)
        img.resize((round(k*img.width), round(k*img.height)), Image.BICUBIC).save(folder/f'{i:04}.jpg', quality=90)
        out.append(folder/f'{i:04}.jpg')
    return out


def compare(name, files):
    readers = {'pillow': ImageBlock, 'opencv, whole': OpenCVBlock(), 'opencv': OpenCVBlock(args.size)}
    loaders = {k: loader(block, files) for k,block in readers.items()}
    def through(dl): return lambda: [None for _ in dl]
    seconds = interleaved({k: through(dl) for k,dl in loaders.items()}, args.rounds)
    out = {k: round(len(files)/median(s), 1) for k,s in seconds.items()}
    faster = {k: round(ratio(seconds['pillow'], seconds[k]), 2) for k in ('opencv, whole', 'opencv')}
    for k,v in out.items(): print(f"{name:28}{k:15}{v:8.1f} images/s{faster.get(k, 1.):7.2f} x pillow")
    return dict(images=len(files), images_per_second=out, times_pillow=faster)


data = data_folder(args.data)
photos, small = image_files(data/'imagenet_samples', args.n), image_files(data/'asl_digits', 4*args.n)
if photos is None or small is None: raise SystemExit(f"no photos in {data}: give --data, a folder with imagenet_samples and asl_digits")
figures = dict(size=args.size, rounds=args.rounds, num_workers=args.num_workers)
with tempfile.TemporaryDirectory() as tmp:
    figures['photos at 1500x2000'] = compare('photos at 1500x2000', enlarged(photos, Path(tmp)))
    figures['photos as they are'] = compare('photos as they are', photos*4)
    figures['asl_digits (100x100)'] = compare('asl_digits (100x100)', small)
save_record('reading', figures, args.save)
