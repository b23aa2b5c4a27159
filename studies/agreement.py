"""Do networks look where another network looks? Maps of finished runs beside those of a reference, such as a ViT."""

from os.path import relpath
from pathlib import Path
from statistics import mean

import numpy as np

from proxy_attention.core import digest, preserve_rng
from proxy_attention.files import read_lines
from proxy_attention.layers import attention_blocks
from proxy_attention.lab.compare.verdicts import check_fair, run_line
from proxy_attention.lab.data.loaders import test_dl
from proxy_attention.lab.metrics.maps import map_quality
from proxy_attention.lab.metrics.stats import paired_t
from proxy_attention.lab.metrics.text import command_line, interval_text
from proxy_attention.lab.report.records import is_comparison
from proxy_attention.lab.report.run_verdict import wilson
from proxy_attention.lab.runs.checkpoint import RunError, plain, provenance
from proxy_attention.lab.runs.folder import check_free, write_lines
from proxy_attention.lab.runs.job import finished_run, loaded
from proxy_attention.lab.runs.measuring import loader_maps, predictions, true_masks
from proxy_attention.lab.runs.state import is_run
from studies.map_agreement import map_agreement

def arm_of(
    conf, # `Settings`
) -> str:
    "The arm that a run was in its comparison; outside of one, the name of its policy, or none"
    return conf.name.rpartition('/')[2] if '/' in conf.name else conf.experiment.proxy or 'erm'

def check_images(
    job, # A `RunContext`, of `finished_run`
    ref, # That of the reference, whose test images are looked at
):
    "An error unless these are test images of `job` too, by content, of one size and with the same classes"
    name,whose = (repr(str(j.run.folder)) for j in (job, ref))
    n,m = len(job.items.classes), len(ref.items.classes)
    if job.items.classes != ref.items.classes:
        raise RunError(f"the run {name} tells {n} classes apart, {whose} {m} others: their maps can't be compared.")
    a,b = ((j.size, j.conf.data.resize) for j in (job, ref))
    if a != b:
        raise RunError(f"the run {name} has images of {a} (side, resize), {whose} of {b}: "
                       "their maps can't be compared.")
    def content(*splits): return {job.splits.sha256[i] for k in splits for i in job.splits[k]}
    asked = [ref.splits.sha256[i] for i in ref.splits['test']]
    tested,seen = content('test'), content('train', 'valid')
    if strange := [h for h in asked if h not in tested]:
        trained = sum(h in seen for h in strange)
        worse = f"; {trained} of them it was trained or validated on" if trained else ''
        raise RunError(f"{len(strange)} of the {len(asked)} test images of {whose} are no test images of {name}, by "
                       f"content{worse}. Runs of one data set and split can be compared.")

# The preferred first
judges = {'attention': ('gradrollout', 'rollout'), 'features': ('layercam', 'gradcam', 'gradcam++')}

def judges_of(model) -> tuple:
    "Methods for a network: those that follow attention, where that can be done"
    try: attention_blocks(model)
    except ValueError: return judges['features']
    return judges['attention']

def judging(
    methods, # That could judge, the preferred first
    erased, # Methods that were used for erasing
) -> str:
    "The first method that wasn't used for erasing"
    found = next((m for m in methods if m not in erased), None)
    if found is None: raise RunError(f"runs have erased by all of {', '.join(methods)}: none is left to judge.")
    return found

def seen_by(job, ref, pick):
    "A network's accuracy on the reference's test images, whether that is chance, and its maps by methods of `pick`"
    learn = loaded(job, job.run.state['weights'])
    dl = test_dl(learn.dls, ref.items, {'test': ref.splits['test']}, 'test')
    probs,y = predictions(learn.model, dl)
    right,chance = float((probs.argmax(1) == y).mean()), float(np.bincount(y).max()/len(y))
    about = dict(arch=job.conf.model.arch, n=len(y), accuracy=right, chance=chance,
                 at_chance=bool(wilson(right, len(y))[0] <= chance))
    return about, {m: loader_maps(learn.model, dl, m) for m in pick(learn.model)}

def energy(maps, masks, names):
    "Share of the saliency on each part whose truth is known"
    return {k: v for k,v in map_quality(maps.numpy(), masks, names).items() if k.startswith('on_')} if names else {}

def agrees(maps, theirs):
    "Agreement of a run's maps with the reference's, by each of its methods; `other`: with those of other images"
    out = {}
    for m,other in theirs.items():
        got,strange = map_agreement(maps, other), map_agreement(maps, other.roll(len(other)//2, 0))
        out |= {f'rank_{m}': got['rank_correlation'], f'iou_{m}': got['iou_top'],
                f'other_{m}': strange['rank_correlation'], 'iou_chance': got['iou_chance']}
    return out

def run_folders(
    runs, # Folders of runs and of comparisons
) -> list:
    "Folders of runs; that of a comparison stands for all of its runs"
    found = []
    for r in map(Path, runs): found += sorted(filter(is_run, r.glob('arms/*/*'))) if is_comparison(r) else [r]
    if not found: raise RunError("runs: there is none.")
    return found

def agreement(
    reference, # Folder of a finished run: whose maps are the measure
    runs, # Folders of finished runs; that of a comparison stands for all of its runs
    out, # Record that is written, a file of JSON lines
    data='data', # Folder for data sets that are generated or unpacked
    say=lambda words: None, # What is said goes there, a line a run
) -> list: # Lines of the record: what was asked, the reference, a line a run
    "Accuracy and maps of each run beside those of a reference, on the reference's test images"
    check_free(out, 'agreement')
    ref,jobs = finished_run(reference, data), [finished_run(f, data) for f in run_folders(runs)]
    if not len(ref.splits['test']): raise RunError(f"the run {str(reference)!r} has no test images.")
    for j in jobs: check_images(j, ref) # All that is wrong is said before anything is looked at
    erased = {j.conf.proxy.method or 'auto' for j in jobs if j.conf.proxy is not None}
    if 'auto' in erased: erased |= {'gradcam', 'expected_gradients'}
    parts = true_masks(ref.items, ref.splits['test'], ref.size) if ref.items.masks is not None else (None, [])
    rows = []
    with preserve_rng():
        about,theirs = seen_by(ref, ref, lambda model: [m for m in judges_of(model) if not m.startswith('gradcam')])
        say(f"reference: {about['accuracy']:.1%} of {about['n']} images are right")
        for j in jobs:
            mine,maps = seen_by(j, ref, lambda model: [judging(judges_of(model), erased)])
            (method,maps), = maps.items()
            line = run_line(arm_of(j.conf), j.conf.experiment.seed, j.run.folder)
            shared = {k: line[k] for k in ('arm', 'seed', 'steps', 'split_sha256', 'initial_sha256', 'commit')}
            rows.append(dict(kind='result', **shared, **mine, method=method, **agrees(maps, theirs),
                             **energy(maps, *parts)))
            say(f"{line['arm']} seed {line['seed']}: {mine['accuracy']:.1%}")
    command = command_line('agree', str(reference), *map(str, runs), program=('python', '-m', 'studies'),
                           out=relpath(out), data=(data, 'data'))
    content = digest('\n'.join(ref.splits.sha256[i] for i in ref.splits['test']).encode())
    head = dict(kind='agreement', **provenance(ref.conf, command), images_sha256=content)
    told = dict(kind='reference', run=Path(reference).name, **about,
                maps={m: energy(v, *parts) for m,v in theirs.items()})
    lines = [plain(o) for o in (head, told, *rows)]
    write_lines(out, lines)
    return lines

def _kinds(lines):
    "The reference and the runs, of lines or of the file of a record"
    lines = lines if isinstance(lines, list) else read_lines(lines)
    return next(o for o in lines if o['kind'] == 'reference'), [o for o in lines if o['kind'] == 'result']

def mean_text(rows, key, form):
    "The mean of the rows that know `key`; empty where none does"
    v = [r[key] for r in rows if r.get(key) is not None]
    return format(mean(v), form).replace('-', '−') if v else ''

def difference_text(mine, none, key, write='{:+.3f}'):
    "Paired by seed, in words; empty for want of two seeds"
    pairs = [(r[key], none[r['seed']][key]) for r in mine if r['seed'] in none]
    pairs = [p for p in pairs if None not in p]
    if len(pairs) < 2: return ''
    d = paired_t(*zip(*pairs))
    return interval_text(vars(d), write=write.format).replace('-', '−') + (
        '' if d.sign else ' no effect shown')

def agreement_table(
    lines, # Of `agreement`, or the file of its record
) -> list: # Rows, the first the heading
    "A row a method of the reference and an arm: agreement of the maps, and the difference to `erm`, paired by seed"
    ref,rows = _kinds(lines)
    check_fair(rows)
    none = {r['seed']: r for r in rows if r['arm'] == 'erm'}
    parts = list(next(iter(ref['maps'].values())))
    out = [["the reference's maps", 'arm', 'seeds', 'right', *(p.replace('_', ' ') for p in parts),
            'rank correlation', 'against erm', 'IoU of the brightest tenth', 'against erm']]
    for m,own in ref['maps'].items():
        out.append([m, 'the reference itself', '', f"{ref['accuracy']:.1%}", *(f'{own[p]:.1%}' for p in parts),
                    '', '', '', ''])
        for a in dict.fromkeys(r['arm'] for r in rows):
            mine = [r for r in rows if r['arm'] == a]
            row = [m, a, len(mine), mean_text(mine, 'accuracy', '.1%'), *(mean_text(mine, p, '.1%') for p in parts)]
            for k in (f'rank_{m}', f'iou_{m}'):
                row += [mean_text(mine, k, '.3f'), '' if a == 'erm' else difference_text(mine, none, k)]
            out.append(row)
    return out

def agreement_words(
    lines, # Of `agreement`, or the file of its record
) -> str:
    "What the table is measured by, and what it can't tell"
    ref,rows = _kinds(lines)
    out = [f"The reference, {ref['arch']}, is right on {ref['accuracy']:.1%} of {ref['n']} test images; always the "
           f"same class would be right on {ref['chance']:.1%}."]
    if ref['at_chance']: out.append("That is chance: its maps prove nothing, and so does agreement with them.")
    if blind := [f"{r['arm']} seed {r['seed']} ({r['accuracy']:.1%})" for r in rows if r['at_chance']]:
        out.append("At chance, so that their maps say nothing of how classes are told apart: "
                   f"{', '.join(blind)}.")
    other = ', '.join(f"{mean_text(rows, f'other_{m}', '.3f')} ({m})" for m in ref['maps'])
    out.append(f"To measure by: maps of different images have a rank correlation of {other}, random maps an IoU "
               f"of {mean_text(rows, 'iou_chance', '.3f')}.")
    out.append("There is one reference network: what another one would look at isn't known.")
    return ' '.join(out)
