"""Jobs of a real SLURM of one node, which `start.sh` starts: put back into the queue in the middle they go on from their checkpoints."""
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
from lab_kit import INI
from test_lab_experiment import final, lines, same

from proxy_attention.files import read_lines
from proxy_attention.lab.compare.comparison import compare
from proxy_attention.lab.compare.sweep import sweep
from proxy_attention.lab.runs.checkpoint import RunError, is_cost
from proxy_attention.lab.runs.runner import run_experiment
from proxy_attention.lab.runs.state import clean_run, jobs_folder

PROGRAMS = 'munged', 'slurmctld', 'slurmd', 'sbatch', 'srun', 'squeue', 'scancel', 'scontrol'
CLUSTER = '[cluster:tests]\npartition = tests\ntime = 20\ncpus = 1\narray = 2\n[cluster:none]\npartition = nowhere\n'
CHANGES = ['proxy=early', 'freeze_epochs=0', 'steps=900', 'n_train=40', 'n_valid=20', 'n_test=20', 'data.bs=20']


@pytest.fixture(scope='module')
def slurm(tmp_path_factory):
    "A SLURM of our own for as long as the tests take"
    if missing := [p for p in PROGRAMS if shutil.which(p) is None]: pytest.skip(f"needs {', '.join(missing)}: apt-get install slurm-wlm munge")
    if os.getuid() != 0: pytest.skip("needs root, to start munge and SLURM")
    if find_spec('submitit') is None: pytest.skip("needs submitit: pip install 'proxy_attention[cluster]'")
    folder, scripts = tmp_path_factory.mktemp('slurm'), Path(__file__).parent
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('SLURM_CONF', str(folder/'slurm.conf'))
        try:
            started = subprocess.run([scripts/'start.sh', folder], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, timeout=120)
            assert started.returncode == 0, started.stderr
            yield folder
        finally:
            subprocess.run([scripts/'stop.sh', folder])

@pytest.fixture
def command(slurm, cache):
    "A function: start a command whose runs are jobs; what it says is in the file `said`"
    Path('settings.ini').write_text('\n'.join([INI, CLUSTER]))
    started = []
    def start(*args):
        words = [*args, '--settings', 'settings.ini', '--data', cache, '--submit', 'slurm', '--cluster', 'tests', *(w for c in CHANGES for w in ('--set', c))]
        with open('said', 'w') as said:
            started.append(subprocess.Popen([sys.executable, '-m', 'proxy_attention.lab', *map(str, words)], stdout=said, stderr=subprocess.STDOUT))
        return started[-1]
    yield start
    for p in started: p.kill()

def wait_for(what, within=300):
    end = time.monotonic() + within
    while not (got := what()):
        assert time.monotonic() < end, f"waited {within} seconds; {Path('said').read_text()}"
        time.sleep(0.1)
    return got

def ask(*words): return subprocess.run(words, capture_output=True, text=True, check=True).stdout
def states(): return dict(line.split() for line in ask('squeue', '--noheader', '--array', '--format=%i %T').splitlines())
def at_once(job):
    "A job that was put back waits for two minutes unless it is told not to; in the second in which it was killed its credential would be refused"
    wait_for(lambda: states().get(job) == 'PENDING')
    ask('scontrol', 'update', f'JobId={job}', 'StartTime=now+3')

def n_same(a, b): return next((k for k,(x,y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))
def kept(folder): return [line for line in (folder/'record.jsonl').read_text().splitlines() if '"epoch"' in line]


def test_requeued_jobs_go_on_from_their_checkpoints(command, cache):
    process = command('compare', 'try', '--arms', 'early_look', '--seeds', '1', '--out', 'there')
    arms = [Path('there')/'arms'/arm/'0' for arm in ('erm', 'early_look')]
    # As when the node is lost, and as before the end of a job's time; each as soon as it has a checkpoint, whichever is first
    before, stops = {}, {0: ['scontrol', 'requeue'], 1: ['scancel', '--signal=USR2']}
    def stop_one():
        for k in stops.keys() - before.keys():
            job = next((j for j in states() if j.endswith(f'_{k}')), None)
            if job is None or not (arms[k]/'partial.pt').exists(): continue
            before[k] = kept(arms[k])
            ask(*stops[k], job)
            at_once(job)
        return len(before) == len(stops)
    wait_for(stop_one)
    assert process.wait(500) == 0, Path('said').read_text()
    for k,folder in enumerate(arms):
        assert 0 < len(before[k]) < len(kept(folder)), "it was stopped in the middle"
        assert n_same(kept(folder), before[k]) > 0, "what a checkpoint holds is not trained again: lines are the same to the second that an epoch took"
    logs = {f.name.split('_')[1]: f.read_text() for f in Path('.jobs/there').glob('*/*_log.out')}
    errors = {f.name.split('_')[1]: f.read_text() for f in Path('.jobs/there').glob('*/*_log.err')}
    assert all(log.count('Starting with') == 2 and 'Job completed successfully' in log for log in logs.values()) and set(logs) == {'0', '1'}
    assert 'DUE TO JOB REQUEUE' in errors['0'] and 'Calling checkpoint method' in logs['1'] and re.search(r'Requeued job \d+_1', logs['1'])
    alone = compare('try', ['early_look'], 1, 'settings.ini', 'alone', CHANGES, cache, jobs=1, say=lambda _: None)
    for folder in arms:
        assert same(final(folder), final(alone/folder.relative_to('there'))) and lines(folder) == lines(alone/folder.relative_to('there'))
    def free(out): return [{k: v for k,v in o.items() if not is_cost(k) and k != 'curve'} for o in read_lines(out)]
    assert free('there') == free(alone)

def test_what_a_killed_command_left_is_cancelled_and_so_is_what_ctrl_c_stops(command, cache):
    process = command('run', 'try', '--out', 'there')
    wait_for(lambda: Path('there/partial.pt').exists())
    process.kill() # Nobody cancels its job: the next command does
    process.wait()
    process = command('run', 'try', '--out', 'there')
    wait_for(lambda: '1 job of an earlier command cancelled' in Path('said').read_text())
    before = kept(Path('there'))
    wait_for(lambda: len(kept(Path('there'))) > len(before) > 0)
    process.send_signal(signal.SIGINT)
    assert process.wait(100) == 130 and states() == {}, "nothing is left in the queue"
    said = Path('said').read_text()
    assert 'jobs that had not ended are cancelled' in said and re.search(r'stopped; `proxy-attention run try .*--submit slurm.*` goes on', said)
    there, alone = (run_experiment('try', 'settings.ini', out, CHANGES, cache, progress=False, say=lambda _: None) for out in ('there', 'alone'))
    assert n_same(kept(there), before) > 0 and same(final(there), final(alone)) and lines(there) == lines(alone)
    assert jobs_folder(there).is_dir()
    clean_run(there)
    assert not jobs_folder(there).parent.exists()

def test_a_sweep(command, cache):
    pytest.importorskip('optuna')
    with open('settings.ini', 'a') as f: f.write('[sweep:find]\nexperiment = try\ntrials = 2\nseeds = 1\narea = 0.1, 0.2\ncycles = 1\n')
    out = sweep('find', 'settings.ini', data=cache, overrides=['freeze_epochs=0', 'steps=12', 'n_train=40', 'n_test=20'], say=lambda _: None, submit='slurm', cluster='tests')
    assert [o['kind'] for o in read_lines(out)] == ['sweep', 'trial', 'trial', 'best'] and all(o['error'] is None for o in read_lines(out)[1:3])
    assert len(list(Path('runs/.jobs/sweep_find').glob('*/*_result.pkl'))) == 2 and (out/'journal.log').exists()

def test_what_slurm_refuses(command, cache):
    with pytest.raises(RunError, match='no job was taken: .*nvalid partition'):
        compare('try', [], 1, 'settings.ini', 'out', CHANGES, cache, say=lambda _: None, submit='slurm', cluster='none')
