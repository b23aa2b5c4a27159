"""A comparison's folder as `proxy-attention compare` leaves it behind, without any training: see `lab.compare` for what is in it."""
import json

import numpy as np

from proxy_attention.lab.compare.verdicts import verdicts
from proxy_attention.lab.metrics.stats import intervals

LEVELS = dict(erm=.52, duplicate_wrong=.545, random_erasing=.56, random_place=.53, shuffled_map=.525, masktune=.47, proposal=.55, early_look=.66, early_look_replace=.62)


def make_comparison(folder, levels=LEVELS, seeds=range(5), until=None, gain=1., drop=(), seed=0, margin=None, **about):
    "Made-up results around `levels` (their spread times `gain`); `until` so many runs, without those in `drop`: (arm, seed)"
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    luck = {s: rng.normal(0, .012) for s in seeds}
    results = []
    for s in seeds:
        for i,(arm,level) in enumerate(levels.items()):
            top = float(np.clip(.52 + (level-.52)*gain + luck[s] + rng.normal(0, .012), 0, 1))
            extra = dict(erm=0, masktune=3.1, proposal=4.4, duplicate_wrong=.8).get(arm, 2.2 if 'look' in arm or 'place' in arm else .1)
            train = 21. + rng.normal(0, .4)
            curve = [[36*k, round(train*k/20, 2), float(np.clip((.97 - .02*(i % 3))*(1 - .75**(k - 4*(k > 4 and 'look' in arm))) + rng.normal(0, .004), 0, 1)), .1] for k in range(1, 21)]
            results.append(dict(kind='result', arm=arm, seed=s, test_n=1000, test_accuracy=round(top, 3), test_precision=top, test_recall=top, test_f1=top, test_nll=1.4, test_ece=.2,
                                test_worst_group_accuracy=round(top - .2, 3), map_on_digit=round(.2 + top/5, 3), map_on_shortcut=round(.4 - top/4, 3), map_method='layercam', map_area_digit=.14,
                                valid_accuracy=curve[-1][2], steps=720, stop='trained' if i < 3 else 'cycles done', copies=[1200] if 'look' in arm else [31, 22, 9] if arm == 'proposal' else [],
                                audit_ok=True, split_sha256='5f1e'*16, initial_sha256=f'{s}abc'*16, commit='a'*40, seconds=train + extra + 2, seconds_train=train, seconds_valid=1.1,
                                seconds_score=extra/3, seconds_saliency=extra/3, seconds_erase=extra/6, seconds_write=extra/6, seconds_test=.4, peak_ram_mb=812., curve=curve))
    results = [r for r in results[:until] if (r['arm'], r['seed']) not in drop]
    head = dict(kind='compare', made_by='proxy_attention run', command='proxy-attention compare shortcut --arms ' + ','.join(levels), version='0.1', commit='a'*40,
                settings=dict(name='shortcut', data=dict(source='shortcut_digits', strength=.95), model=dict(arch='small_cnn'), experiment=dict(steps=720, lr=.01)), settings_sha256='c'*64,
                python='3.11', arms=list(levels), seeds=list(seeds), steps=720, interval='t', margin=margin, started='2026-01-02 03:04:05') | about
    lines = [head, *results, *(verdicts(results, interval=head['interval'] if head['interval'] in intervals else 't', margin=margin) if results else [])]
    (folder/'record.jsonl').write_text(''.join(json.dumps(o) + '\n' for o in lines))
    return folder
