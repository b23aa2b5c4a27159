"""Peak RAM of a step over sets of several sizes: what grows is a few numbers and a low-resolution map an item, and nothing else."""
import argparse
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

from common import data_folder, image_files, save_record

p = argparse.ArgumentParser(description=__doc__)
p.add_argument('--items', type=int, nargs='+', default=[2000, 8000, 32000])
p.add_argument('--copies', type=int, default=300, help='copies made, the same number at each size')
p.add_argument('--data', help='folder that holds cifar10')
p.add_argument('--save', action='store_true', help='write results/bench_memory.json')
p.add_argument('--one', type=int, help=argparse.SUPPRESS)
args = p.parse_args()


def rss():
    "MB this process holds now"
    return int(Path('/proc/self/statm').read_text().split()[1]) * 4096 / 2**20


def one(n):
    "In a process of its own: RAM before the step, at its peak, and the numbers kept of all items"
    warnings.filterwarnings('ignore')
    import threading
    import time

    import torch
    from fastai.data.transforms import parent_label
    from fastai.learner import Learner
    from fastai.losses import CrossEntropyLossFlat
    from fastai.vision.data import ImageDataLoaders

    from proxy_attention.callback import ProxyAttentionCB
    from proxy_attention.lab.data.digits import make_shortcut_digits
    from proxy_attention.lab.models.small import small_cnn
    with tempfile.TemporaryDirectory() as tmp:
        files = image_files(data_folder(args.data)/'cifar10'/'train', n+64) or image_files(make_shortcut_digits(Path(tmp)/'digits')/'train', n+64)
        dls = ImageDataLoaders.from_path_func(tmp, files, parent_label, valid_pct=64/(n+64), seed=0, bs=64, num_workers=0)
        torch.manual_seed(0)
        learn = Learner(dls, small_cnn(dls.c), loss_func=CrossEntropyLossFlat())
        step = ProxyAttentionCB(select='random', share=args.copies/n, fill='black', path=f'{tmp}/.run', verbose=False)
        if hasattr(learn, 'progress'): learn.remove_cb(learn.progress)
        warm = ProxyAttentionCB(select='random', share=args.copies/n, fill='black', path=f'{tmp}/.warm', verbose=False)
        learn.add_cb(warm)
        few = learn.dls.train.n
        learn.dls.train.n = 640 # warm up allocators and caches on a few items
        warm.make_proxies()
        learn.remove_proxies()
        learn.dls.train.n = few
        before, peak, done = rss(), [0.], threading.Event()
        def watch():
            while not done.is_set():
                peak[0] = max(peak[0], rss())
                time.sleep(.005)
        t = threading.Thread(target=watch)
        t.start()
        learn.add_cb(step)
        step.make_proxies()
        done.set()
        t.join()
        eraser = next(iter(step.copies.erasers.values()))
        seen = eraser.seen
        numbers = seen.maps.nbytes + sum(v.nbytes for v in vars(seen.scores).values() if v is not None) + seen.idxs.nbytes + seen.flat.nbytes
        print(n, before, peak[0], numbers/2**20, step.last_report.proxies)


if args.one: one(args.one)
else:
    figures, base = {}, None
    print(f"{'items':>7}{'copies':>8}{'RAM before':>12}{'peak':>9}{'per-item numbers':>18}{'peak - numbers':>16}{'/ smallest':>12}   (MB)")
    for n in args.items:
        cmd = [sys.executable, __file__, '--one', str(n), '--copies', str(args.copies), *(['--data', args.data] if args.data else [])]
        n,before,peak,numbers,copies = (float(v) for v in subprocess.run(cmd, capture_output=True, text=True, check=True).stdout.split()[-5:])
        base = base or peak - numbers
        figures[str(int(n))] = dict(copies=int(copies), before_mb=round(before, 1), peak_mb=round(peak, 1), numbers_mb=round(numbers, 2),
                                    flat_ratio=round((peak - numbers)/base, 4))
        print(f"{n:7.0f}{copies:8.0f}{before:12.1f}{peak:9.1f}{numbers:18.2f}{peak-numbers:16.1f}{(peak-numbers)/base:12.3f}")
    save_record('memory', figures, args.save)
