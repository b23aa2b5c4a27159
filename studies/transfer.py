"""What does a second task, learnt later, cost with proxies and without? Finished runs get a new head and learn another data set; how well, and what is left of the first task?"""

import time
from pathlib import Path
from statistics import mean

from safetensors.torch import load_file

from proxy_attention.core import check_choice, check_number, preserve_rng
from proxy_attention.dataloaders import epoch_of
from proxy_attention.files import read_lines
from studies.agreement import against_erm, arm_of, by_arm, check_twice, run_folders, trained_line
from proxy_attention.lab.metrics.text import aligned, command_line
from proxy_attention.lab.config.problems import SettingsError
from proxy_attention.lab.config.file import SettingsFile, kinds
from proxy_attention.lab.data.sources import load_items
from proxy_attention.lab.data.splits import splits_of
from proxy_attention.lab.data.loaders import make_dls, test_dl
from proxy_attention.core import deterministic
from proxy_attention.lab.runs.job import finished_run, loaded, make_learn
from proxy_attention.lab.runs.measuring import predictions
from proxy_attention.lab.models.heads import head_keys
from proxy_attention.lab.models.zoo import input_stats
from proxy_attention.lab.models.learner import quiet
from proxy_attention.lab.runs.checkpoint import RunError
from proxy_attention.lab.runs.folder import check_free, write_lines
from proxy_attention.lab.runs.checkpoint import plain, provenance

def task_data(
    task:str, # Name of a [data:...] section
    settings=None, # Settings file; None: the working directory's, else the package's
):
    "The data set of the second task"
    file = SettingsFile(settings)
    if file.problems: raise SettingsError(file.problems)
    return kinds['data'](**file.raw['data'][check_choice('task', task, file.raw['data'])])

def accuracy_on(
    model,
    dl, # Labelled
) -> float:
    "Share of the images that the network gets right"
    probs,y = predictions(model, dl)
    return float((probs.argmax(1) == y).mean())

def learn_second(
    job, # A `Job`, of `finished_run`
    task, # (items, splits, data configuration) of the second task
    weights:str, # A file in the run's folder: what the network has learnt so far
    steps:int, # Optimizer steps of the second task
    lr:float, # Largest learning rate (one cycle)
) -> dict: # first_before, first_after, second: test accuracies; seconds of training
    "Learn the second task with a new head, and try the first task again, with its old head"
    items,splits,conf = task
    job.seed('second')
    stats = input_stats(job.conf.model.arch, job.conf.model.weights or 'none')
    learn = make_learn(job, dls=make_dls(items, splits, conf, stats=stats, size=job.size, device=job.device))
    first,head = loaded(job, weights), head_keys(learn.model)
    old_test = test_dl(first.dls, job.items, job.splits)
    before = accuracy_on(first.model, old_test)
    learnt = load_file(job.run.weights(weights))
    learn.model.load_state_dict({k: v for k,v in learnt.items() if k not in head}, strict=False)
    learn.unfreeze()
    start = time.perf_counter()
    with quiet(learn), epoch_of(learn.dls, steps), deterministic(job.conf.experiment.deterministic): learn.fit_one_cycle(1, lr)
    seconds = time.perf_counter() - start
    after = learn.model.state_dict()
    first.model.load_state_dict({k: v if k in head else after[k] for k,v in learnt.items()})
    return dict(first_before=before, first_after=accuracy_on(first.model, old_test), second=accuracy_on(learn.model, test_dl(learn.dls, items, splits)), seconds=seconds)

def second_task(
    runs, # Folders of finished runs; that of a comparison stands for all of its runs
    task:str, # Name of the [data:...] section of the second task
    steps:int=200, # Optimizer steps of the second task
    lr:float|None=None, # Largest learning rate; None: each run's own
    out=None, # Record that is written, a file of JSON lines; None: none
    settings=None, # Settings file with the section; None: the working directory's, else the package's
    data='data', # Folder for data sets that are generated or unpacked
    say=lambda words: None, # What is told goes there, a line a run
) -> list: # Lines of the record: what was asked, a line a run, a line an arm
    "What each run learns of a second task, and what it keeps of the first"
    check_number('steps', steps, 1, whole=True)
    if lr is not None: check_number('lr', lr, 0, 100, open_low=True)
    if out is not None: check_free(out, 'second')
    conf = task_data(task, settings)
    jobs = [finished_run(f, data) for f in run_folders(runs)]
    check_twice(jobs)
    items = load_items(conf, Path(data))
    splits = splits_of(items, conf)
    if not len(splits['test']): raise RunError(f"task={task!r}: this data set has no test images.")
    if find := [j for j in jobs if not isinstance(j.conf.experiment.lr, float) and lr is None]: raise RunError(f"lr=None: {str(find[0].run.folder)!r} found its own learning rate; give one.")
    with preserve_rng():
        rows = [_row(j, (items, splits, conf), steps, lr, say) for j in jobs]
        fresh = {r['initial_sha256']: j for r,j in zip(rows, jobs)}
        rows += [_row(j, (items, splits, conf), steps, lr, say, 'fresh') for j in fresh.values()]
    command = command_line('transfer', *map(str, runs), program=('python', '-m', 'studies'), task=task, steps=(steps, 200), lr=lr, out=(out, default_out(task)), settings=settings, data=(data, 'data'))
    head = provenance(jobs[0].conf, command) | dict(task=task, task_settings=conf.model_dump(), task_steps=steps, task_lr=lr)
    lines = [plain(o) for o in (dict(kind='second', **head), *rows, *summarise(rows))]
    if out is not None: write_lines(out, lines)
    return lines

def _row(job, task, steps, lr, say, arm=None):
    "A line of kind 'result': a run's final weights, or with `arm` its initial ones"
    got = learn_second(job, task, job.run.state['weights' if arm is None else 'initial'], steps, lr or job.conf.experiment.lr)
    if arm is not None: got |= dict(first_before=None, first_after=None)
    name = arm or arm_of(job.conf)
    say(f"{name} seed {job.conf.experiment.seed}: second task {got['second']:.1%}" + ('' if arm else f", first {got['first_before']:.1%} before, {got['first_after']:.1%} after"))
    return dict(kind='result', arm=name, seed=job.conf.experiment.seed, arch=job.conf.model.arch, **got, **trained_line(job))

measured = ('first_before', 'first_after', 'second')

def summarise(
    rows, # Lines of kind 'result'
) -> list: # A dict an arm
    "Means of every arm, and its differences to `erm`"
    by,out = by_arm(rows), []
    for (arch,arm),mine in by.items():
        of = lambda k: [r[k] for r in mine.values() if r[k] is not None]
        row = dict(kind='verdict', arm=arm, arch=arch, seeds=len(mine), mean={k: mean(v) if (v := of(k)) else None for k in measured})
        none = by.get((arch, 'erm'), {}) if arm != 'erm' else {}
        if none: row |= against_erm(mine, none, measured, percent=True)
        out.append(row)
    return out

def default_out(task:str) -> Path:
    "Where the command line writes the record"
    return Path('runs')/f'second_{task}.jsonl'

def second_text(
    lines, # Of `second_task`, or the file of its record
) -> str:
    "A row an arm, for a terminal, and what its differences are worth"
    lines = lines if isinstance(lines, list) else read_lines(lines)
    head,arms = lines[0], [o for o in lines if o['kind'] == 'verdict']
    share = lambda v: '–' if v is None else f'{v:.1%}'
    table = [('network', 'arm', 'seeds', 'first task', 'first task afterwards', 'second task')]
    table += [(v['arch'], v['arm'], str(v['seeds']), *(share(v['mean'][k]) for k in measured)) for v in arms]
    names = dict(first_before='first task', first_after='first task afterwards', second='second task')
    said = [f"{v['arm']}, {names[k]}: {got['words']}" for v in arms for k,got in v.get('against_erm', {}).items()]
    said += [f"{v['arm']}: not judged against erm; {v['unfair']}" for v in arms if 'unfair' in v]
    note = f"Test accuracy; the second task is [data:{head['task']}], {head['task_steps']} optimizer steps with a new head; fresh: from the initial weights, without a first task."
    return '\n'.join([*aligned(table, range(2, 6)), '', *said, '', note])
