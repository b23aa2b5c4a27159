"""Do networks look where another network looks? Maps of finished runs beside those of a reference, such as a ViT, on the same test images."""

from dataclasses import replace
from pathlib import Path
from statistics import mean

import numpy as np

from proxy_attention.core import check_choice, check_number, digest, file_digest, preserve_rng
from proxy_attention.files import read_lines
from proxy_attention.lab.metrics.text import aligned, command_line
from proxy_attention.lab.compare.verdicts import check_fair, run_line
from proxy_attention.lab.data.loaders import test_dl
from proxy_attention.lab.runs.job import finished_run, loaded
from proxy_attention.lab.runs.measuring import loader_maps, predictions, true_masks
from proxy_attention.lab.metrics.maps import map_quality
from studies.map_agreement import map_agreement
from proxy_attention.lab.report.records import is_comparison
from proxy_attention.lab.report.run_verdict import wilson
from proxy_attention.lab.runs.folder import check_free, write_lines
from proxy_attention.lab.runs.checkpoint import RunError
from proxy_attention.lab.runs.state import is_run
from proxy_attention.lab.runs.checkpoint import plain, provenance
from proxy_attention.lab.metrics.stats import in_words, paired_t
from proxy_attention.layers import attention_blocks
from proxy_attention.saliency import saliency_methods

def arm_of(
    conf, # `Settings`
) -> str:
    "The arm that a run was in its comparison; outside of one, the name of its policy, or none"
    return conf.name.rpartition('/')[2] if '/' in conf.name else conf.experiment.proxy or 'erm'

def images_of(
    job, # A `RunContext`, of `finished_run`
    images:int|None=None, # At most so many, evenly spaced in the order of the files, and so over the classes; None: all
) -> np.ndarray: # Indices of its items
    "The images that are looked at"
    idxs = job.splits['test']
    if not len(idxs): raise RunError(f"the run {str(job.run.folder)!r} has no test images.")
    if images is None or images >= len(idxs): return idxs
    return idxs[np.linspace(0, len(idxs) - 1, images).round().astype(int)]

def check_images(
    job, # A `RunContext`
    on, # The `RunContext` whose test images are looked at
    idxs, # Which of its items
):
    "An error unless the images are test images of `job` too, by content, of one size and with the same classes"
    name,whose = (repr(str(j.run.folder)) for j in (job, on))
    n,m = len(job.items.classes), len(on.items.classes)
    if job.items.classes != on.items.classes: raise RunError(f"the run {name} tells {n} classes apart, {whose} {m} others: their maps can't be compared.")
    a,b = ((j.size, j.conf.data.resize) for j in (job, on))
    if a != b: raise RunError(f"the run {name} has images of {a} (side, resize), {whose} of {b}: their maps can't be laid on each other.")
    holds = lambda *splits: {job.splits.sha256[i] for k in splits for i in job.splits[k]}
    tested,seen,hashes = holds('test'), holds('train', 'valid'), {i: on.splits.sha256[i] for i in idxs}
    if strange := [i for i in idxs if hashes[i] not in tested]:
        trained = sum(hashes[i] in seen for i in strange)
        worse = f"; {trained} of them it was trained or validated on" if trained else ''
        raise RunError(f"{len(strange)} of the {len(idxs)} test images of {whose} are no test images of {name}, by content, the first being "
                       f"{on.items.names[strange[0]]}{worse}. Runs of one data set and split can be compared.")

judges = {'attention': ('gradrollout', 'rollout'), 'features': ('layercam', 'gradcam', 'gradcam++')} # Methods, the preferred first

def kind_of(model) -> str:
    "attention if that can be followed in the network, else features"
    try: attention_blocks(model)
    except ValueError: return 'features'
    return 'attention'

def judging(
    kind:str, # A key of `judges`
    erased, # Methods that were used for erasing
) -> str:
    "The first method that wasn't used for erasing"
    found = next((m for m in judges[kind] if m not in erased), None)
    if found is None: raise RunError(f"runs have erased by all of {', '.join(judges[kind])}: give the method= that is to judge.")
    return found

def chance(
    targets, # (N,) class indices
) -> float:
    "What a network would get right that always says the most frequent class"
    return float(np.bincount(targets).max()/len(targets))

def seen_by(job, on, idxs, pick):
    "A network's accuracy on the images, whether that is chance, and its maps by the methods that `pick` chooses for it"
    learn = loaded(job, job.run.state['weights'])
    dl = test_dl(learn.dls, on.items, {'test': idxs}, 'test')
    probs,y = predictions(learn.model, dl)
    right = float((probs.argmax(1) == y).mean())
    about = dict(arch=job.conf.model.arch, n=len(idxs), accuracy=right, chance=chance(y), at_chance=bool(wilson(right, len(y))[0] <= chance(y)))
    return about, {m: loader_maps(learn.model, dl, m) for m in pick(learn.model)}

def energy(maps, masks, names):
    "Share of the saliency on each part whose truth is known, and how many maps are empty"
    return {k: v for k,v in map_quality(maps.numpy(), masks, names).items() if k.startswith(('on_', 'empty'))} if names else {}

def agrees(maps, theirs):
    "Agreement of a run's maps with the reference's, by each of its methods"
    out = {}
    for m,other in theirs.items():
        got,strange = map_agreement(maps, other), map_agreement(maps, other.roll(len(other)//2, 0))
        out |= {f'rank_{m}': got['rank_correlation'], f'iou_{m}': got['iou_top'], f'rank_other_{m}': strange['rank_correlation']}
    return out

def by_arm(
    rows, # Lines of kind 'result'
) -> dict: # (arch, arm) → seed → line
    "The lines of each network's arms"
    by = {}
    for r in rows: by.setdefault((r['arch'], r['arm']), {})[r['seed']] = r
    return by

def summarise(
    rows, # Lines of kind 'result'
) -> list: # A dict an arm
    "Means of every arm, and its difference to `erm` in agreement; a run that is the reference itself counts in neither"
    by,out = by_arm([r for r in rows if not r.get('is_reference')]), []
    for (arch,arm),mine in by.items():
        number = lambda k, rs: (lambda v: mean(v) if v else None)([r[k] for r in rs if r.get(k) is not None])
        keys = [k for k in next(iter(mine.values())) if k.startswith(('rank_', 'iou_', 'on_')) or k == 'accuracy']
        row = dict(kind='verdict', arm=arm, arch=arch, seeds=len(mine), mean={k: number(k, mine.values()) for k in keys})
        none = by.get((arch, 'erm'), {}) if arm != 'erm' else {}
        if none: row |= against_erm(mine, none, [k for k in keys if k.startswith(('rank_', 'iou_')) and 'other' not in k])
        out.append(row)
    return out

def against_erm(
    mine:dict, # Seed → line of an arm
    none:dict, # Seed → line of plain training
    keys, # What is compared
    percent:bool=False, # In percentage points?
) -> dict: # `against_erm`: key → difference, in words and numbers; or `unfair`: why there is none
    "Paired differences to `erm`"
    try: check_fair([*none.values(), *mine.values()])
    except RunError as e: return dict(unfair=str(e))
    out = {}
    for k in keys:
        pairs = [(mine[s][k], none[s][k]) for s in mine if s in none and None not in (mine[s][k], none[s][k])]
        if len(pairs) < 2: continue
        d, most = paired_t(*zip(*pairs)), 2 if k.startswith('rank_') else 1 # Correlations lie in [-1, 1], shares in [0, 1]
        d = replace(d, low=max(d.low, -most), high=min(d.high, most))
        out[k] = dict(words=in_words(d, 'erm', percent=percent), **d.to_dict())
    return dict(against_erm=out)

def run_folders(
    runs, # Folders of runs and of comparisons
) -> list:
    "Folders of runs; that of a comparison stands for all of its runs"
    by_seed = lambda p: (p.parent.name, len(p.name), p.name)
    found = [f for r in map(Path, runs) for f in (sorted(filter(is_run, r.glob('arms/*/*')), key=by_seed) if is_comparison(r) else [r])]
    if not found: raise RunError("runs: there is none.")
    return found

def check_twice(
    jobs, # A `RunContext` a run
):
    "An error if two runs are the same arm and seed of the same network"
    seen = {}
    for j in jobs:
        first = seen.setdefault(who := (j.conf.model.arch, arm_of(j.conf), j.conf.experiment.seed), j)
        if first is not j: raise RunError(f"{str(first.run.folder)!r} and {str(j.run.folder)!r} are both {who[1]}, seed {who[2]}, of {who[0]}: leave out one.")

def agreement(
    reference, # Folder of a finished run: whose maps are the measure
    runs, # Folders of finished runs; that of a comparison stands for all of its runs
    out=None, # Record that is written, a file of JSON lines; None: none
    images:int|None=None, # At most so many test images, evenly spaced; None: all
    on=None, # Folder of the run whose test images are looked at; None: the reference's
    method:str|None=None, # Of the runs' maps; None: one that none of them erased by
    data='data', # Folder for data sets that are generated or unpacked
    say=lambda words: None, # What is told goes there, a line a run
) -> list: # Lines of the record: what was asked, the reference, a line a run, a line an arm
    "Accuracy and maps of each run beside those of a reference, on the same test images, and arms against `erm`"
    if method is not None: check_choice('method', method, saliency_methods)
    if images is not None: check_number('images', images, 2, whole=True)
    if out is not None: check_free(out, 'agreement')
    ref,jobs = finished_run(reference, data), [finished_run(f, data) for f in run_folders(runs)]
    on_ = ref if on is None else finished_run(on, data)
    idxs = images_of(on_, images)
    check_twice(jobs)
    for j in (ref, *jobs): check_images(j, on_, idxs) # All that is wrong is said before anything is looked at
    erased = {j.conf.proxy.method or 'auto' for j in jobs if j.conf.proxy is not None}
    if 'auto' in erased: erased |= {'gradcam', 'expected_gradients'}
    parts = true_masks(on_.items, idxs, on_.size) if on_.items.masks is not None else (None, [])
    with preserve_rng():
        about,theirs = seen_by(ref, on_, idxs, lambda model: judges['attention'] if kind_of(model) == 'attention' else judges['features'][:1])
        say(f"reference: {about['accuracy']:.1%} of {len(idxs)} images are right")
        rows = [_row(j, on_, idxs, theirs, parts, say, lambda model: [method or judging(kind_of(model), erased)]) for j in jobs]
    for j,row in zip(jobs, rows):
        if Path(j.run.folder).resolve() == Path(reference).resolve(): row['is_reference'] = True
    first,*rest = theirs
    own = {m: map_agreement(theirs[first], v) for m,v in theirs.items()}
    about |= {f'rank_{first}_{m}': own[m]['rank_correlation'] for m in rest} | trained_line(ref) | dict(maps={m: energy(v, *parts) for m,v in theirs.items()})
    content = digest('\n'.join(on_.splits.sha256[i] for i in idxs).encode())
    head = provenance(ref.conf, _command(reference, runs, out, images, on, method, data)) | dict(images=len(idxs), images_sha256=content, iou_chance=own[first]['iou_chance'])
    lines = [plain(o) for o in (dict(kind='agreement', **head), dict(kind='reference', run=Path(reference).name, **about), *rows, *summarise(rows))]
    if out is not None: write_lines(out, lines)
    return lines

def _row(job, on, idxs, theirs, parts, say, pick):
    about,maps = seen_by(job, on, idxs, pick)
    (method,maps), = maps.items()
    arm,seed = arm_of(job.conf), job.conf.experiment.seed
    say(f"{arm} seed {seed}: {about['accuracy']:.1%}")
    return dict(kind='result', arm=arm, seed=seed, **about, method=method, **agrees(maps, theirs), **energy(maps, *parts), **trained_line(job))

def trained_line(
    job, # A `RunContext`, of `finished_run`
) -> dict:
    "What tells which network it was, and what runs that are compared must share"
    line = run_line(arm_of(job.conf), job.conf.experiment.seed, job.run.folder)
    return {k: line[k] for k in ('steps', 'split_sha256', 'initial_sha256', 'commit')} | dict(
        settings_sha256=job.run.about['settings_sha256'], weights_sha256=file_digest(job.run.weights(job.run.state['weights'])))

def _command(reference, runs, out, images, on, method, data):
    return command_line('agree', str(reference), *map(str, runs), program=('python', '-m', 'studies'), out=(out, default_out(reference)), images=images, on=on, method=method,
                        data=(data, 'data'))

def default_out(reference) -> Path:
    "Where the command line writes the record"
    return Path('runs')/f'agreement_{Path(reference).name}.jsonl'

def _kinds(lines):
    "What was asked, the reference, the runs, the arms, of lines or of the file of a record"
    lines = lines if isinstance(lines, list) else read_lines(lines)
    of = lambda kind: [o for o in lines if o['kind'] == kind]
    return of('agreement')[0], of('reference')[0], of('result'), of('verdict')

def _shown(v, form='.3f'): return '–' if v is None else format(v, form).replace('-', '−')

def agreement_text(
    lines, # Of `agreement`, or the file of its record
) -> str:
    "The table of an agreement, a row a run, then a row an arm, for a terminal"
    _,ref,rows,arms = _kinds(lines)
    methods,parts = list(ref['maps']), [k for k in next(iter(ref['maps'].values())) if k.startswith('on_')]
    heads = [h for m in methods for h in (f'rank {m}', f'IoU {m}')] + [k.replace('_', ' ') for k in parts]
    cells = lambda o: [_shown(o.get(f'{k}_{m}')) for m in methods for k in ('rank', 'iou')] + [_shown(o.get(k), '.1%') for k in parts]
    table = [('network', 'arm', 'seed', 'accuracy', 'maps', *heads)]
    right = lambda o: _shown(o['accuracy'], '.1%')
    table += [(ref['arch'], 'reference', '', right(ref), m, *['']*2*len(methods), *(_shown(v.get(k), '.1%') for k in parts)) for m,v in ref['maps'].items()]
    table += [(r['arch'], r['arm'], str(r['seed']), right(r), r['method'], *cells(r)) for r in rows]
    table += [(v['arch'], v['arm'], 'mean', right(v['mean']), '', *cells(v['mean'])) for v in arms if v['seeds'] > 1]
    return '\n'.join(aligned(table, range(2, len(table[0]))))

_measures = {'rank': 'rank correlation', 'iou': 'IoU of the brightest tenth'}

def agreement_verdict(
    lines, # Of `agreement`, or the file of its record
) -> list: # Sentences
    "What the numbers say, and what they can't"
    head,ref,rows,arms = _kinds(lines)
    right = f"The reference, {ref['arch']} (run {ref['run']}), is right on {ref['accuracy']:.1%} of {ref['n']} test images"
    nothing = " That is chance: it has learnt nothing that holds here, its maps prove nothing, and so does agreement with them." if ref['at_chance'] else ''
    out = [f"{right}; always the same class would be right on {ref['chance']:.1%}.{nothing}"]
    for v in arms: out += _arm_words(v, ref)
    if blind := [f"{r['arm']} seed {r['seed']} ({r['accuracy']:.1%})" for r in rows if r['at_chance']]:
        out.append(f"At chance, so that their maps say nothing of how classes are told apart: {', '.join(blind)}.")
    return out + [_yardsticks(head, ref, rows), _caveat(arms)]

def _arm_words(v, ref):
    "What is said of one arm"
    who = f"{v['arm']} ({v['arch']}, {v['mean']['accuracy']:.1%} right; the reference {ref['accuracy']:.1%})"
    if 'unfair' in v: return [f"{who}: not judged against erm; {v['unfair']}"]
    got = v.get('against_erm', {})
    if not got: return [f"{who}: not judged, for want of two seeds shared with erm."] if v['arm'] != 'erm' else []
    return [f"{who}, {name} with {m}: {got[f'{k}_{m}']['words']}." for m in ref['maps'] for k,name in _measures.items() if f'{k}_{m}' in got]

def _yardsticks(head, ref, rows):
    "What agreement there is without any cause"
    other = lambda m: (lambda v: _shown(mean(v)) if v else '–')([r[f'rank_other_{m}'] for r in rows if r.get(f'rank_other_{m}') is not None])
    own = [f"The reference's own maps agree with each other by {_shown(v)}." for k,v in ref.items() if k.startswith('rank_')]
    strange = ', '.join(f'{other(m)} ({m})' for m in ref['maps'])
    return ' '.join([f"To measure by: maps of different images have a rank correlation of {strange}, random maps an IoU of {head['iou_chance']:.3f}.", *own])

def _caveat(arms):
    n = sum(len(v.get('against_erm', {})) for v in arms)
    judged = f" In brackets: 95% intervals (t) of the paired difference over seeds, {n} of them, not adjusted for their number." if n else ''
    return f"There is one reference network: what another one would look at isn't known.{judged}"
