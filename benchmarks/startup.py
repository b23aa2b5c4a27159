"""How long the command line takes to say its help, and what the saliency room brings in when imported alone."""
import argparse
import subprocess
import sys
import time
from statistics import median

from common import ROOT, save_record

p = argparse.ArgumentParser(description=__doc__)
p.add_argument('--rounds', type=int, default=5)
p.add_argument('--save', action='store_true', help='write results/bench_startup.json')
args = p.parse_args()


def seconds(code):
    start = time.perf_counter()
    subprocess.run([sys.executable, '-c', code], cwd=ROOT, check=True, capture_output=True)
    return time.perf_counter() - start


help_code = "import sys; sys.argv = ['proxy-attention', '--help']; from proxy_attention.lab.cli import main; main()"
runs = {'python -c pass': 'pass', 'proxy-attention --help': help_code, 'import torch': 'import torch',
        'import proxy_attention.saliency': 'import proxy_attention.saliency', 'import proxy_attention.callback': 'import proxy_attention.callback'}
figures = {name: round(median(seconds(code) for _ in range(args.rounds + 1)), 3) for name,code in runs.items()}
for name,s in figures.items(): print(f"{name:34}{s:7.2f} s{s/figures['import torch']:7.2f} x import torch")
code = "import sys, proxy_attention.saliency; print(any(m.split('.')[0] == 'fastai' for m in sys.modules))"
got = subprocess.run([sys.executable, '-c', code], cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()
print(f"does import proxy_attention.saliency import fastai? {got}")
save_record('startup', {**figures, 'saliency imports fastai': got == 'True'}, args.save)
