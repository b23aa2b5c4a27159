"""What the lab costs around plain fastai: CPU seconds of Stage 1 as `run` does it, and of the same fine_tune by hand, in turn."""
import argparse
import gc
import os
import tempfile
import time
import warnings
from pathlib import Path
from statistics import median

from common import data_folder, image_files, save_record

warnings.filterwarnings('ignore')

from proxy_attention.lab.config.settings import load_experiment  # noqa: E402
from proxy_attention.lab.runs.checkpoint import provenance, save_weights  # noqa: E402
from proxy_attention.lab.runs.folder import Run  # noqa: E402
from proxy_attention.lab.runs.job import RunContext, loaded, prepare  # noqa: E402
from proxy_attention.lab.runs.measuring import test  # noqa: E402
from proxy_attention.lab.runs.training import train  # noqa: E402

p = argparse.ArgumentParser(description=__doc__)
p.add_argument('--images', type=int, default=600)
p.add_argument('--epochs', type=int, default=2, help='after one of the head alone')
p.add_argument('--pairs', type=int, default=5)
p.add_argument('--size', type=int, default=96)
p.add_argument('--data', help='folder that holds asl_digits')
p.add_argument('--save', action='store_true', help='write results/bench_overhead.json')
args = p.parse_args()

INI = f"""
[data:photos]
source = folder
path = images
size = {args.size}
bs = 32
[model:net]
arch = resnet18
[experiment:run]
data = photos
model = net
freeze_epochs = 1
epochs = {args.epochs}
"""


def by_hand(job):
    "The same data, network and fits, written as a fastai user would; weights saved at the end"
    start = time.process_time()
    job.seed('train', 0)
    learn = loaded(job, 'initial.safetensors')
    with learn.no_bar(), learn.no_logging(): learn.fine_tune(args.epochs, 1e-3, freeze_epochs=1)
    save_weights(job.run/'by_hand.safetensors', learn.model)
    return time.process_time() - start


def by_lab(job):
    "Stage 1 of a run: measured, checkpointed, recorded"
    job.run.state['next'] = ['train', 0]
    start = time.process_time()
    train(job, 0)
    return time.process_time() - start


with tempfile.TemporaryDirectory() as tmp:
    os.chdir(tmp)
    files = image_files(data_folder(args.data)/'asl_digits', args.images)
    if files is None: raise SystemExit("asl_digits is missing: name the folder that holds it with --data")
    for i,f in enumerate(files):
        to = Path('images')/f.parent.name/f"{i}{f.suffix}"
        to.parent.mkdir(parents=True, exist_ok=True)
        to.symlink_to(f.resolve())
    Path('settings.ini').write_text(INI)
    conf = load_experiment('run', 'settings.ini')
    seconds = {'by hand': [], 'lab': []}
    with Run('run', provenance(conf, '')) as run:
        job = RunContext(run, conf, 'data')
        start = time.process_time()
        prepare(job)
        stage_0 = time.process_time() - start
        fresh = dict(run.state)
        for k in range(-1, args.pairs): # the first pair warms up
            for name,work in (('by hand', by_hand), ('lab', by_lab))[::-1 if k % 2 else 1]:
                run.state = dict(fresh)
                gc.collect()
                took = work(job)
                if k >= 0: seconds[name].append(took)
        start = time.process_time()
        run.state |= dict(weights='train0.safetensors', stop='trained')
        test(job)
        end = time.process_time() - start
ratios = [b/a for a,b in zip(seconds['by hand'], seconds['lab'])]
figures = dict(images=args.images, epochs=args.epochs + 1, pairs=args.pairs, cpu_seconds={k: round(median(v), 2) for k,v in seconds.items()}, ratio=round(median(ratios), 4),
               ratios=[round(r, 4) for r in ratios], stage_0=round(stage_0, 2), test_and_audit=round(end, 2))
print(f"ResNet-18, {args.images} images at {args.size}, {args.epochs + 1} epochs, CPU seconds: by hand {figures['cpu_seconds']['by hand']}, lab {figures['cpu_seconds']['lab']}")
print(f"  lab / by hand {figures['ratio']:.3f} (median of {args.pairs} pairs; {', '.join(f'{r:.3f}' for r in ratios)})")
print(f"  besides, once a run: Stage 0 {stage_0:.2f} s, test and audit {end:.2f} s")
save_record('overhead', figures, args.save)
