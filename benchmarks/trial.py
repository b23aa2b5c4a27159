"""Can the trial by holes tell a shortcut from the thing itself? On development data: the early look of the recipe, with its cue and without, and what the two tests find."""
import argparse
import os
import tempfile
import warnings
from pathlib import Path

from common import data_folder, save_record

warnings.filterwarnings('ignore')

p = argparse.ArgumentParser(description=__doc__)
p.add_argument('--seeds', type=int, default=5)
p.add_argument('--data', help='folder that holds photos')
p.add_argument('--save', action='store_true', help='write results/bench_trial.json')
args = p.parse_args()
os.environ.setdefault('PROXY_ATTENTION_DATA', str(data_folder(args.data)))

import torch  # noqa: E402

from proxy_attention.callback import ProxyAttentionCB  # noqa: E402
from proxy_attention.cycles import recipes  # noqa: E402
from proxy_attention.lab.agreement import finished  # noqa: E402
from proxy_attention.lab.compare import arm_settings, fair_settings  # noqa: E402
from proxy_attention.lab.config import load_experiment  # noqa: E402
from proxy_attention.lab.experiment import loaded, run_settings  # noqa: E402
from proxy_attention.lab.models import quiet  # noqa: E402
from proxy_attention.trial import ask_holes, half, needs, tells  # noqa: E402

# name, is there a shortcut?, experiment, steps before the look, changes. Other digits than the exam's; photos and clothes split by other seeds than the study's.
sets = [('digits, square 0.95', True, 'dev_digits', 108, ['n_train=1000']), ('digits, square 0.8', True, 'dev_digits', 108, ['n_train=1000', 'strength=0.8']),
        ('digits, texture 0.95', True, 'dev_digits', 108, ['n_train=1000', 'data.shortcut=texture']), ('CIFAR-10, square 0.95, 2,000', True, 'dev_cifar10', 72, []),
        ('CIFAR-10, square 0.95, 4,000', True, 'dev_cifar10', 150, ['n_train=4000']), ('digits, square 0', False, 'dev_digits', 108, ['n_train=1000', 'strength=0']),
        ('digits, square 0, 72 steps', False, 'dev_digits', 72, ['strength=0']), ('digits, texture 0', False, 'dev_digits', 108, ['n_train=1000', 'data.shortcut=texture', 'strength=0']),
        ('CIFAR-10, square 0, 2,000', False, 'dev_cifar10', 72, ['strength=0']), ('CIFAR-10, square 0, 4,000', False, 'dev_cifar10', 150, ['n_train=4000', 'strength=0']),
        ('clothes', False, 'study_fashion', 120, ['data.seed=7'])]

torch.set_num_threads(1)
settings, looks = Path(__file__).resolve().parent.parent/'settings.ini', []
policy = recipes['recommended']['policy'] | dict(method='gradcam')
with tempfile.TemporaryDirectory() as tmp:
    for k,(name,shortcut,experiment,steps,changes) in enumerate(sets):
        conf = load_experiment(experiment, settings, changes)
        for seed in range(60, 60 + args.seeds):
            out = Path(tmp)/f'{k}_{seed}'
            run_settings(fair_settings(arm_settings(conf, 'none', seed, threads=1), steps), out, data=f'{tmp}/data', progress=False, say=lambda *_: None)
            job = finished(out, f'{tmp}/data')
            learn = loaded(job, job.run.state['weights'], [ProxyAttentionCB(**policy, path=out/'copies', verbose=False)])
            with quiet(learn): learn.proxy_attention_cb.make_proxies()
            found = ask_holes(learn, needs(learn))
            looks.append(dict(data=name, shortcut=shortcut, experiment=experiment, changes=changes, steps=steps, seed=seed, **found.to_dict()))
            print(f"{name}, seed {seed}: needed {found.needed:.2f}, told {found.told:.2f}: {found.verdict}", flush=True)

right = sum((o['verdict'] == 'shortcut') == o['shortcut'] for o in looks)
yes,no = ([o for o in looks if o['shortcut'] == s] for s in (True, False))
leant,rest = ([o for o in no if (o['needed'] >= half) == s] for s in (True, False))
ends = dict(shortcuts_needed_from=min(o['needed'] for o in yes), shortcuts_told_to=max(o['told'] for o in yes), others_leant_on_told_from=min((o['told'] for o in leant), default=None),
            others_not_leant_on_needed_to=max((o['needed'] for o in rest), default=None))
print(f"right in {right} of {len(looks)} (bounds: needed {half}, told {tells})", *(f"  {k.replace('_', ' ')} {'-' if v is None else f'{v:.2f}'}" for k,v in ends.items()), sep='\n')
save_record('trial', dict(half=half, tells=tells, right=right, of=len(looks), **ends, looks=looks), args.save)
