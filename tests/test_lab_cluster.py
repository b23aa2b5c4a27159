"""Jobs of a cluster, by the dry run on this machine: reported when they are killed, cancelled by Ctrl-C, and the same command goes on."""
import contextlib
import math
import os
import re
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import pytest
from test_lab_experiment import lines
from typer.testing import CliRunner

from lab_kit import INI
from proxy_attention.files import read_lines
from proxy_attention.lab import cli
from proxy_attention.lab.compare import cluster as lab
from proxy_attention.lab.compare.cluster import Cluster, cluster_jobs, find_cluster, jobs_at_once
from proxy_attention.lab.compare.comparison import compare
from proxy_attention.lab.compare.jobs import LostJob, SlurmQueue, active, cancel_jobs
from proxy_attention.lab.compare.pool import workers
from proxy_attention.lab.compare.sweep import sweep
from proxy_attention.lab.config.problems import SettingsError
from proxy_attention.lab.config.sections import ClusterConfig
from proxy_attention.lab.config.settings import load_cluster
from proxy_attention.lab.runs.checkpoint import RunError, is_cost

needs_submitit = pytest.mark.skipif(find_spec('submitit') is None or not Path('/proc/self').exists(),
                                    reason="needs submitit, pip install 'proxy_attention[cluster]', and processes in /proc")
here = Cluster('local', ClusterConfig())


def wait_for(what, within=120):
    end = time.monotonic() + within
    while not what():
        assert time.monotonic() < end, f"{what} for {within} seconds"
        time.sleep(0.1)

def tasks_of(folder):
    "Process ids of the jobs that work for the folder's commands"
    found = []
    for f in Path('/proc').glob('[0-9]*/cmdline'):
        with contextlib.suppress(OSError): found.append((int(f.parent.name), f.read_bytes().decode(errors='replace').split('\0')))
    return [pid for pid,words in found if 'submitit.core._submit' in words and any(str(folder) in w for w in words)]


# ------------------------------------------------------------------------------------------------------------------------------- settings

def settings(*sections):
    Path('settings.ini').write_text('\n'.join([INI, *sections]))
    return 'settings.ini'

def test_one_section_is_it():
    assert load_cluster(None, settings()) == ClusterConfig()
    one = settings('[cluster:a]', 'partition = gpu', 'time = 36:00:30', 'memory_gb = 1.5', 'gpus = 2', 'setup = module load cuda/12')
    got = load_cluster(None, one)
    assert (got.partition, got.time, got.memory_gb, got.gpus, got.cpus, got.setup) == ('gpu', 2161, 1.5, 2, 1, 'module load cuda/12')
    assert load_cluster('a', one) == got

def test_one_of_several_is_named():
    two = settings('[cluster:a]', 'time = 5', '[cluster:b]')
    assert load_cluster('a', two).time == 5
    with pytest.raises(SettingsError, match='several clusters: a, b. Choose one with --cluster'): load_cluster(None, two)
    with pytest.raises(SettingsError, match=r'no section \[cluster:c\]. There are: a, b'): load_cluster('c', two)

@pytest.mark.parametrize('key,value,said', [('time', 'soon', 'must be minutes, as 90, or hours'), ('time', '1:60:00', 'as 1:30:00'), ('time', '0', 'greater than or equal to 1'),
                                            ('memory_gb', '0', 'greater than 0'), ('gpus', '-1', 'greater than or equal to 0'), ('cpus', 'two', 'not a whole number'),
                                            ('array', '0', 'greater than or equal to 1'), ('partion', 'gpu', "Did you mean 'partition'?"), ('memory', '8', "Did you mean 'memory_gb'?")])
def test_bad_sections(key, value, said):
    with pytest.raises(SettingsError) as e: load_cluster(None, settings('[cluster:a]', f'{key} = {value}'))
    (problem,) = e.value.problems
    assert (problem.section, problem.key, problem.value) == ('cluster:a', key, value) and problem.line == INI.count('\n') + 3 and said in problem.message

def test_a_clusters_keys_are_not_set_on_the_way():
    got = CliRunner().invoke(cli.app, ['run', 'try', '--settings', settings(), '--set', 'partition=gpu'])
    assert got.exit_code == 2 and "a cluster's keys are set in its section" in got.stderr


# ---------------------------------------------------------------------------------------------------------------------- before anything runs

@pytest.mark.parametrize('command', [('run', 'try'), ('compare', 'try', '--arms', 'early_look')])
@pytest.mark.parametrize('options,said', [(('--submit', 'slrum'), "Did you mean 'slurm'?"), (('--cluster', 'a'), 'say with submit where they run'),
                                          (('--submit', 'slurm'), 'has no SLURM'), (('--submit', 'local', '--cluster', 'a'), 'no section [cluster:a]')])
@needs_submitit
def test_what_is_wrong_is_one_line(monkeypatch, command, options, said):
    monkeypatch.setenv('PATH', '')
    got = CliRunner().invoke(cli.app, [*command, '--settings', settings(), *options])
    assert got.exit_code == 2 and said in got.stderr and len(got.stderr.splitlines()) == 1 and not Path('runs').exists()

def test_the_missing_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, 'submitit', None)
    got = CliRunner().invoke(cli.app, ['compare', 'try', '--arms', 'early_look', '--settings', settings(), '--submit', 'local'])
    assert got.exit_code == 2 and "pip install 'proxy_attention[cluster]'" in got.stderr and len(got.stderr.splitlines()) == 1

def test_nobody_else_imports_submitit():
    for f in Path(lab.__file__).parents[2].rglob('*.py'): assert not re.search(r'^(import|from) submitit', f.read_text(), re.M), f.name

def test_how_many_at_once(monkeypatch):
    monkeypatch.setattr(os, 'cpu_count', lambda: 2)
    slurm, local = (Cluster(s, ClusterConfig(array=5)) for s in ('slurm', 'local'))
    assert [jobs_at_once(slurm, *a) for a in ((None, 9), (None, 3), (7, 9), (None, 0))] == [5, 3, 7, 1]
    assert [jobs_at_once(local, *a) for a in ((None, 9), (4, 9))] == [jobs_at_once(None, *a) for a in ((None, 9), (4, 9))] == [2, 4]


# ---------------------------------------------------------------------------------------------------------------------------------- jobs

@needs_submitit
def test_jobs_end_with_a_value_or_an_error_or_are_lost(tmp_path):
    said = []
    with cluster_jobs(here, tmp_path/'out', 2, said.append) as pool:
        good, bad, killed = pool.submit(math.sqrt, 4), pool.submit(os.mkdir, '/proc/none'), pool.submit(signal.raise_signal, signal.SIGKILL)
        assert good.result(60) == 2 and isinstance(bad.exception(60), OSError)
        assert isinstance(killed.exception(60), LostJob) and 'it was killed, or its node was' in str(killed.exception()) and '_log.err' in str(killed.exception())
    (folder,) = (tmp_path/'.jobs'/'out').iterdir()
    assert str(folder) in said[0] and any('Errno' in f.read_text() for f in folder.glob('*_log.err')), 'the log holds the traceback'
    assert not tasks_of(tmp_path) and not (tmp_path/'out').exists(), 'results lie where they would without a cluster'

@pytest.fixture
def interrupts(request):
    "SIGINT as usual, or ignored, as by a command that a script has put into the background"
    before = signal.signal(signal.SIGINT, signal.SIG_IGN if request.param == 'ignored' else signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)

@needs_submitit
@pytest.mark.parametrize('interrupts', ['heeded', 'ignored'], indirect=True)
def test_ctrl_c_cancels_the_jobs(tmp_path, interrupts):
    said, before = [], signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), cluster_jobs(here, tmp_path/'out', 2, said.append) as pool:
        waiting = pool.submit(time.sleep, 300)
        wait_for(lambda: tasks_of(tmp_path))
        raise KeyboardInterrupt
    wait_for(lambda: not tasks_of(tmp_path))
    assert signal.getsignal(signal.SIGINT) == before and not waiting.done() and said[1:] == ["the jobs that had not ended are cancelled"]

@needs_submitit
def test_jobs_that_are_not_taken(tmp_path, monkeypatch):
    def refuse(*_): raise RuntimeError('sbatch: error:\ninvalid partition specified: nowhere\n')
    monkeypatch.setattr('submitit.LocalExecutor.submit_array', refuse)
    with cluster_jobs(here, tmp_path/'out', 1, lambda _: None) as pool:
        error = pool.submit(math.sqrt, 4).exception(60)
        assert isinstance(error, LostJob) and 'no job was taken: invalid partition specified: nowhere' in str(error)

def test_a_scheduler_that_does_not_answer_loses_no_job(monkeypatch, tmp_path):
    monkeypatch.setenv('PATH', str(tmp_path))
    queue = SlurmQueue('x')
    assert queue.states([]) is None and cancel_jobs(queue, []) == 0
    (tmp_path/'squeue').write_text('#!/bin/sh\nexit 1\n')
    (tmp_path/'squeue').chmod(0o755)
    assert queue.states([]) is None
    (tmp_path/'squeue').write_text("#!/bin/sh\necho '3_0 RUNNING'\necho '3_1 TIMEOUT'\n")
    assert queue.states([]) == {'3_0': 'RUNNING', '3_1': 'TIMEOUT'} and 'TIMEOUT' not in active


# -------------------------------------------------------------------------------------------------------------------------------- commands

STEPS = ['proxy=early', 'freeze_epochs=0', 'steps=40', 'n_train=40', 'n_valid=20', 'n_test=20', 'data.bs=20'] # long enough to be killed

@needs_submitit
def test_a_killed_and_requeued_job_ends_with_the_same_record(cache):
    file = settings()
    def run(out, **kw): return compare('try', [], 1, file, out, STEPS, cache, say=lambda _: None, **kw)
    alone,arm = run('alone', jobs=1), Path('there')/'arms'/'erm'/'0'
    def process():
        "Which trains"
        if not lines(arm, 'epoch'): return None
        for task in tasks_of(Path.cwd()):
            for f in Path(f'/proc/{task}/fd').glob('*'):
                with contextlib.suppress(OSError): # It has just closed the file, or ended
                    if os.readlink(f) == str(Path.cwd()/arm/'.lock'): return task
    killed = []
    def kill(sig):
        "Has a process that trains, and that wasn't killed before, been sent the signal?"
        task = process()
        if task in (None, *killed): return False
        os.kill(task, sig)
        killed.append(task)
        return True
    with ThreadPoolExecutor(1) as threads:
        command = threads.submit(run, 'there', jobs=2, submit='local')
        for sig in (signal.SIGUSR2, signal.SIGKILL): # As before a time limit, and as when memory has run out
            wait_for(lambda: kill(sig) or command.done())
        with pytest.raises(RunError, match='1 of 1 runs failed: erm seed 0: job .* has left no result: it was killed'): command.result(200)
    (logs,) = Path('.jobs/there').iterdir()
    assert any('Requeued job' in f.read_text() and f.read_text().count('Starting with') == 2 for f in logs.glob('*_log.out'))
    there = run('there', jobs=1) # The same folder, so that it may as well go on without a cluster
    def free(out): return [{k: v for k,v in o.items() if not is_cost(k) and k != 'curve'} for o in read_lines(out)]
    assert free(there) == free(alone) and [o['kind'] for o in free(there)][:2] == ['compare', 'result']
    assert lines(arm) == lines(alone/'arms'/'erm'/'0')

@pytest.fixture
def at_once(monkeypatch):
    "Jobs run in this process; where their files would lie"
    if find_spec('submitit') is None: pytest.skip("needs submitit: pip install 'proxy_attention[cluster]'")
    asked = []
    @contextlib.contextmanager
    def jobs(cluster, folder, most, say):
        asked.append((cluster.submit, str(folder), most))
        with workers(1) as pool: yield pool
    monkeypatch.setattr(lab, 'cluster_jobs', jobs)
    return asked

def test_a_run_is_a_job(cache, at_once):
    args = ['run', 'try', '--settings', settings(), '--data', str(cache), '--submit', 'local', *(w for s in STEPS[:2] + ['steps=8', 'n_train=40', 'n_test=20'] for w in ('--set', s))]
    got = CliRunner().invoke(cli.app, args)
    assert got.exit_code == 0 and at_once == [('local', 'runs/try', 1)] and Path('runs/try/report.html').exists() and [o['kind'] for o in lines('runs/try')][-1] == 'end'
    assert '--submit' not in lines('runs/try', 'run')[0].get('command', '')
    got = CliRunner().invoke(cli.app, args)
    assert got.exit_code == 0 and 'done already' in got.stdout and len(at_once) == 1, 'what is done is no job'

def test_trials_are_jobs(cache, at_once):
    pytest.importorskip('optuna')
    file = settings('[sweep:find]', 'experiment = try', 'trials = 2', 'seeds = 1', 'area = 0.1, 0.2', 'cycles = 1', '[cluster:a]', 'array = 3')
    out = sweep('find', file, data=cache, overrides=['freeze_epochs=0', 'steps=6', 'n_train=20', 'n_test=20'], say=lambda _: None, submit='local', jobs=2)
    assert at_once == [('local', 'runs/sweep_find', 2)] and [o['kind'] for o in read_lines(out)] == ['sweep', 'trial', 'trial', 'best']

def test_a_lost_trial_is_not_the_policys_fault(cache, monkeypatch, at_once):
    pytest.importorskip('optuna')
    class Lost:
        def submit(self, f, *args):
            from concurrent.futures import Future
            done = Future()
            done.set_exception(LostJob('job 3 has left no result'))
            return done
    monkeypatch.setattr(lab, 'cluster_jobs', lambda *_: contextlib.nullcontext(Lost()))
    file = settings('[sweep:find]', 'experiment = try', 'trials = 2', 'seeds = 1', 'area = 0.1, 0.2', 'cycles = 1')
    with pytest.raises(RunError, match='job 3 has left no result. The same command goes on'):
        sweep('find', file, data=cache, overrides=['freeze_epochs=0', 'steps=12', 'n_train=40', 'n_test=20'], say=lambda _: None, submit='local')
    assert [o['kind'] for o in read_lines('runs/sweep_find')][:1] == ['sweep'] and not find_cluster(None)
