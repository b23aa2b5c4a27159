"""What the benchmarks share: interleaved timing, where images come from, and a record of the run."""
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))


def interleaved(contestants, rounds, batches=(None,), warm_up=True, once=()):
    """Seconds by name, one entry a round; in each round every contestant takes its turn on every batch, so that a drifting machine hits all alike.
    Contestants named in `once` (slow ones) run in the first round only"""
    seconds = {name: [] for name in contestants}
    for r in range(-1 if warm_up else 0, rounds):
        spent = dict.fromkeys([n for n in contestants if r <= 0 or n not in once], 0.)
        for i,batch in enumerate(batches if r >= 0 else batches[:1]):
            names = list(spent)
            for name in names[i % len(names):] + names[:i % len(names)]:
                start = time.perf_counter()
                contestants[name](batch) if batch is not None else contestants[name]()
                spent[name] += time.perf_counter() - start
        if r >= 0:
            for name,s in spent.items(): seconds[name].append(s)
    return seconds


def ratio(a, b): return median(x/y for x,y in zip(a, b))


def image_files(folder, n):
    "n image files of a class-folder data set, spread over its classes; None where it is missing"
    files = sorted(f for f in Path(folder).rglob('*') if f.suffix.lower() in ('.jpg', '.jpeg', '.png')) if Path(folder).is_dir() else []
    if not files: return None
    step = max(1, len(files)//n)
    return (files[::step] if len(files) >= n else files*(n//len(files)+1))[:n]


def data_folder(given): return Path(given or os.environ.get('PROXY_ATTENTION_DATA') or ROOT.parent/'shared'/'data')


def commit_of():
    "The commit of the checkout, with + if files were changed since"
    def git(*words): return subprocess.run(['git', *words], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    return git('rev-parse', 'HEAD') + ('+' if git('status', '--porcelain', '--untracked-files=no', '--', 'proxy_attention', 'benchmarks') else '')


def save_record(name, figures, wanted):
    "Write the figures to results/bench_NAME.json with what they were measured on"
    if not wanted: return
    import torch
    record = dict(benchmark=name, command='python benchmarks/' + ' '.join([Path(sys.argv[0]).name, *sys.argv[1:]]), commit=commit_of(),
                  machine=dict(cpu=platform.processor() or platform.machine(), cores=os.cpu_count(), python=platform.python_version(), torch=torch.__version__),
                  figures=figures)
    path = ROOT/'results'/f'bench_{name}.json'
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + '\n')
    print(f"record: {path.relative_to(ROOT)}")
