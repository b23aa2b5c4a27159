"""What does a second task, learnt later, cost with copies and without? Finished runs get a new head and learn on."""

import time
from os.path import relpath
from pathlib import Path

from safetensors.torch import load_file

from proxy_attention.core import check_choice, check_number, deterministic, preserve_rng
from proxy_attention.dataloaders import epoch_of
from proxy_attention.files import read_lines
from proxy_attention.lab.compare.verdicts import check_fair, run_line
from proxy_attention.lab.config.file import SettingsFile, kinds
from proxy_attention.lab.config.problems import SettingsError
from proxy_attention.lab.data.loaders import make_dls, test_dl
from proxy_attention.lab.data.sources import load_items
from proxy_attention.lab.data.splits import splits_of
from proxy_attention.lab.metrics.text import command_line
from proxy_attention.lab.models.heads import head_keys
from proxy_attention.lab.models.learner import quiet
from proxy_attention.lab.models.zoo import input_stats
from proxy_attention.lab.runs.checkpoint import RunError, plain, provenance
from proxy_attention.lab.runs.folder import check_free, write_lines
from proxy_attention.lab.runs.job import finished_run, loaded, make_learn
from proxy_attention.lab.runs.measuring import predictions
from studies.agreement import arm_of, difference_text, mean_text, run_folders

def task_data(
    task:str, # Name of a [data:...] section
    settings=None, # Settings file; None: the working directory's, else the package's
):
    "The data set of the second task"
    file = SettingsFile(settings)
    if file.problems: raise SettingsError(file.problems)
    return kinds['data'](**file.raw['data'][check_choice('task', task, file.raw['data'])])

def accuracy_on(model, dl) -> float:
    "Share of the loader's images that the network gets right"
    probs,y = predictions(model, dl)
    return float((probs.argmax(1) == y).mean())

def learn_second(
    job, # A `RunContext`, of `finished_run`
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
    before, learnt = accuracy_on(first.model, old_test), load_file(job.run.weights(weights))
    learn.model.load_state_dict({k: v for k,v in learnt.items() if k not in head}, strict=False)
    learn.unfreeze()
    start = time.perf_counter()
    with quiet(learn), epoch_of(learn.dls, steps), deterministic(job.conf.experiment.deterministic):
        learn.fit_one_cycle(1, lr)
    seconds, after = time.perf_counter() - start, learn.model.state_dict()
    first.model.load_state_dict({k: v if k in head else after[k] for k,v in learnt.items()})
    return dict(first_before=before, first_after=accuracy_on(first.model, old_test),
                second=accuracy_on(learn.model, test_dl(learn.dls, items, splits)), seconds=seconds)

def second_task(
    runs, # Folders of finished runs; that of a comparison stands for all of its runs
    task:str, # Name of the [data:...] section of the second task
    out, # Record that is written, a file of JSON lines
    steps:int=200, # Optimizer steps of the second task
    settings=None, # Settings file with the section; None: the working directory's, else the package's
    data='data', # Folder for data sets that are generated or unpacked
    say=lambda words: None, # What is said goes there, a line a run
) -> list: # Lines of the record: what was asked, a line a run, and a line a network with initial weights ('fresh')
    "What each run learns of a second task, and what it keeps of the first"
    check_number('steps', steps, 1, whole=True)
    check_free(out, 'second')
    conf, jobs = task_data(task, settings), [finished_run(f, data) for f in run_folders(runs)]
    if lost := [j for j in jobs if not isinstance(j.conf.experiment.lr, float)]:
        raise RunError(f"{str(lost[0].run.folder)!r} found its own learning rate: there is none to train on with.")
    items = load_items(conf, Path(data))
    splits = splits_of(items, conf)
    if not len(splits['test']): raise RunError(f"task={task!r}: this data set has no test images.")
    def line(job, weights, arm=None):
        shared = run_line(arm or arm_of(job.conf), job.conf.experiment.seed, job.run.folder)
        got = learn_second(job, (items, splits, conf), job.run.state[weights], steps, job.conf.experiment.lr)
        if arm is not None: got |= dict(first_before=None, first_after=None)
        say(f"{shared['arm']} seed {shared['seed']}: second task {got['second']:.1%}")
        keys = 'arm', 'seed', 'steps', 'split_sha256', 'initial_sha256', 'commit'
        return dict(kind='result', **{k: shared[k] for k in keys}, arch=job.conf.model.arch, **got)
    with preserve_rng():
        rows = [line(j, 'weights') for j in jobs]
        rows += [line(j, 'initial', 'fresh') for j in {r['initial_sha256']: j for r,j in zip(rows, jobs)}.values()]
    command = command_line('transfer', *map(str, runs), program=('python', '-m', 'studies'), task=task,
                           steps=(steps, 200), out=relpath(out), data=(data, 'data'),
                           settings=None if settings is None else relpath(settings))
    head = dict(kind='second', **provenance(jobs[0].conf, command), task=task, task_settings=conf.model_dump(),
                task_steps=steps)
    lines = [plain(o) for o in (head, *rows)]
    write_lines(out, lines)
    return lines

def second_table(
    lines, # Of `second_task`, or the file of its record
) -> list: # Rows, the first the heading
    "A row an arm: test accuracies, and the difference to `erm` in points, paired by seed"
    lines = lines if isinstance(lines, list) else read_lines(lines)
    rows = [o for o in lines if o['kind'] == 'result']
    check_fair(rows)
    none = {r['seed']: r for r in rows if r['arm'] == 'erm'}
    out = [['arm', 'seeds', 'first task', 'first task afterwards', 'second task', 'second task against erm']]
    for a in dict.fromkeys(r['arm'] for r in rows):
        mine = [r for r in rows if r['arm'] == a]
        percent = {s: dict(second=100*r['second']) for s,r in none.items()}
        own = [dict(seed=r['seed'], second=100*r['second']) for r in mine]
        out.append([a, len(mine), *(mean_text(mine, k, '.1%') for k in ('first_before', 'first_after', 'second')),
                    '' if a == 'erm' else difference_text(own, percent, 'second', '{:+.1f}')])
    return out
