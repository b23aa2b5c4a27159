"""What a recipe costs beside plain training of as many optimizer steps: CPU seconds of whole runs of a study's experiment, in turn."""
import argparse
import os
import tempfile
import time
import warnings
from pathlib import Path
from statistics import median

from common import data_folder, save_record

warnings.filterwarnings('ignore')

p = argparse.ArgumentParser(description=__doc__)
p.add_argument('--experiment', default='study_digits', help='an [experiment:...] section of settings.ini, with steps')
p.add_argument('--arm', default='recommended')
p.add_argument('--set', action='append', default=[], metavar='KEY=VALUE', help='change a value of the settings')
p.add_argument('--pairs', type=int, default=3)
p.add_argument('--data', help='folder that holds photos')
p.add_argument('--save', action='store_true', help='write results/bench_recipe_EXPERIMENT.json')
args = p.parse_args()
os.environ.setdefault('PROXY_ATTENTION_DATA', str(data_folder(args.data)))

from proxy_attention.lab.compare import arm_settings, fair_settings  # noqa: E402
from proxy_attention.lab.config import load_experiment  # noqa: E402
from proxy_attention.lab.experiment import run_settings  # noqa: E402
from proxy_attention.lab.runs import read_lines  # noqa: E402

conf = load_experiment(args.experiment, Path(__file__).resolve().parent.parent/'settings.ini', args.set)
steps = conf.experiment.steps
seconds, verdicts = {'none': [], args.arm: []}, []
with tempfile.TemporaryDirectory() as tmp:
    for k in range(-1, args.pairs): # the first pair, of few steps, warms up and makes the data
        for arm in ('none', args.arm)[::-1 if k % 2 else 1]:
            out = Path(tmp)/f'{arm}{k}'
            start = time.process_time()
            run_settings(fair_settings(arm_settings(conf, arm, 300 + k if k >= 0 else 0, threads=1), steps if k >= 0 else 40), out, data=f'{tmp}/data', progress=False, say=lambda *_: None)
            if k < 0: continue
            seconds[arm].append(time.process_time() - start)
            verdicts += [o['verdict'] for o in read_lines(out) if o['kind'] == 'trial']
ratios = [b/a for a,b in zip(seconds['none'], seconds[args.arm])]
figures = dict(experiment=args.experiment, changes=args.set, arm=args.arm, steps=steps, pairs=args.pairs, trial=verdicts, cpu_seconds={k: round(median(v), 1) for k,v in seconds.items()},
               ratio=round(median(ratios), 3), ratios=[round(r, 3) for r in ratios])
print(f"{args.experiment}, {steps} steps, CPU seconds of a whole run: none {figures['cpu_seconds']['none']}, {args.arm} {figures['cpu_seconds'][args.arm]}"
      + (f" (its trial said {', '.join(verdicts)})" if verdicts else ''))
print(f"  {args.arm} / none {figures['ratio']:.3f} (median of {args.pairs} pairs; {', '.join(f'{r:.3f}' for r in ratios)})")
save_record(f'recipe_{args.experiment}', figures, args.save)
