"""Arms side by side: fair by construction, resumable, and judged by the numbers; and why the audit exists."""
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from test_lab_experiment import child, ended, lines, stages

from lab_kit import INI, SMALL, patch_name
from proxy_attention.lab.compare import comparison as lab
from proxy_attention.lab.runs import runner as experiment
from proxy_attention.lab.compare.arm_settings import arm_settings, arms, fair_steps
from proxy_attention.lab.compare.verdicts import check_fair, verdicts
from proxy_attention.lab.report.compare_page import comparison_text
from proxy_attention.lab.report.compare_verdict import comparison_verdict, read_comparison
from proxy_attention.lab.compare.comparison import compare
from proxy_attention.lab.compare.pool import asked_digest
from proxy_attention.lab.compare.arms import controls
from proxy_attention.lab.config.sections import ProxyConfig
from proxy_attention.lab.config.problems import SettingsError
from proxy_attention.lab.config.settings import load_experiment
from proxy_attention.lab.runs.checkpoint import RunError
from proxy_attention.files import read_lines
from proxy_attention.lab.runs.audit import audit_run
from proxy_attention.lab.data.splits import make_splits
from proxy_attention.lab.metrics.stats import not_worse, paired_t

ALL = list(arms)


@pytest.fixture
def run(cache):
    Path('settings.ini').write_text(INI)
    def _run(names, seeds=2, out='compared', overrides=(), **kw):
        return compare('try', names, seeds, 'settings.ini', out, [*SMALL, *overrides], cache, **{'jobs': 1, 'say': lambda *_: None, **kw})
    return _run

@pytest.fixture(scope='module')
def everything(cache, tmp_path_factory):
    "All arms with one seed; epochs of two steps"
    folder = tmp_path_factory.mktemp('all')
    (folder/'settings.ini').write_text(INI)
    return compare('try', [*ALL, 'unsure'], 1, folder/'settings.ini', folder/'out', [*SMALL, 'n_train=20'], cache, jobs=1, say=lambda *_: None)

@pytest.fixture
def compared(two_arms): return Path(shutil.copytree(two_arms, 'compared'))

def results(out): return [o for o in read_lines(out) if o['kind'] == 'result']

def states(out): return {f: f.stat().st_mtime_ns for f in out.rglob('state.json')}


# ---------------------------------------------------------------------------------------------------------------------------------------- fair

def test_all_arms_share_split_initial_weights_and_steps(everything):
    got = results(everything)
    assert [o['arm'] for o in got] == [*ALL, 'unsure'] and {o['steps'] for o in got} == {8}
    assert len({o['split_sha256'] for o in got}) == len({o['initial_sha256'] for o in got}) == 1 and all(o['audit_ok'] for o in got)
    assert all(sum(o['steps'] for o in stages(everything/'arms'/a/'0', 'train')) == 8 for a in ALL)

def test_the_arms_are_what_they_say(everything):
    first = {a: lines(everything/'arms'/a/'0', 'run')[0]['settings'] for a in [*ALL, 'unsure']}
    policy = {a: s['proxy'] for a,s in first.items()}
    assert all(policy[a] is None for a in ('erm', 'random_erasing', 'mixup', 'cutmix'))
    assert first['random_erasing']['data']['augment'] == 'random_erasing' and (first['mixup']['experiment']['mix'], first['cutmix']['experiment']['mix']) == ('mixup', 'cutmix')
    assert [policy[a]['place'] for a in ('random_place', 'least_salient', 'shuffled_map')] == ['random', 'least_salient', 'shuffled_map']
    for a in ('random_place', 'least_salient', 'shuffled_map'): assert {**policy[a], 'place': None} == policy['early_look'] | dict(fill=None), "the experiment's own policy"
    assert [policy['duplicate_wrong'][k] for k in ('fill', 'repeat', 'scout_select', 'scout_merge', 'scout_test', 'share')] == ['unchanged', 5, 'wrong', 'add', False, 1]
    assert policy['early_look']['scout'] == policy['duplicate_wrong']['scout'] == '5 steps' and policy['early_look_replace']['scout_merge'] == 'replace'
    assert [stages(everything/'arms'/a/'0', 'train')[0]['items'] for a in ('early_look', 'early_look_replace')] == [40, 20]
    assert policy['recommended'] == ProxyConfig(cycles=0).model_dump() and all(policy[a]['scout'] == 'off' for a in ('masktune', 'proposal', 'thesis_blend'))
    assert (policy['masktune']['threshold'], policy['masktune']['merge'], policy['masktune']['cycle_epochs']) == ('mean+2std', 'replace', 1)
    assert policy['thesis_blend']['fill'] == 'blend' and policy['proposal']['threshold'] == '0.6' or policy['proposal']['threshold'] == 0.6
    assert policy['unsure']['select'] == 'low_confidence' and policy['unsure']['cycles'] == 2

def test_what_differs_comes_out_different(everything):
    curves = {o['arm']: json.dumps([c[3] for c in o['curve']]) for o in results(everything)}
    assert len({curves[a] for a in ALL}) >= len(ALL) - 2 and curves['recommended'] == curves['erm'], "five held-out images tell nothing, so that no copies are made"

def test_duplicates_are_the_wrong_images_five_times(everything):
    out = everything/'arms'/'duplicate_wrong'/'0'
    (scout,) = lines(out, 'scout')
    assert stages(out, 'train')[0]['items'] == 20 + 5*scout['wrong'] > 20

def test_a_result_says_what_the_scouts_cost_and_found(everything):
    got = {o['arm']: o for o in results(everything)}
    assert {a: got[a]['verdict'] for a in ('erm', 'early_look', 'recommended', 'proposal')} == dict(erm=None, early_look=None, recommended='unclear', proposal=None)
    assert [got[a]['scout_steps'] for a in ('erm', 'early_look', 'recommended')] == [0, 5, 1] and got['early_look']['seconds_scout'] > 0 == got['erm']['seconds_scout']
    assert got['early_look']['copies'] == [20] and got['recommended']['copies'] == [0] and len(got['proposal']['copies']) == 3

def test_seeds(run):
    out = run([], [3, 5])
    assert [o['seed'] for o in results(out)] == [3, 5] and len({o['initial_sha256'] for o in results(out)}) == 2 and len({o['split_sha256'] for o in results(out)}) == 1
    assert {o['settings']['experiment']['seed'] for s in (3, 5) for o in lines(out/'arms'/'erm'/str(s), 'run')} == {3, 5}

def test_unfair_runs_are_refused():
    r = lambda **kw: dict(arm='a', seed=0, split_sha256='s', initial_sha256='i', steps=8) | kw
    check_fair([r(), r(arm='b'), r(arm='b', seed=1, initial_sha256='j')])
    for change in (dict(split_sha256='t'), dict(initial_sha256='j'), dict(steps=9)):
        with pytest.raises(RunError, match='split|initial weights|steps'): check_fair([r(), r(arm='b', **change)])

def test_steps_without_steps():
    Path('settings.ini').write_text(INI)
    conf = lambda *o: load_experiment('try', 'settings.ini', o)
    assert fair_steps(conf('steps=7', 'freeze_epochs=0'), 30) == 7 and fair_steps(conf('proxy=none'), 30) == 2*3 and fair_steps(conf(), 30) == 3*2*3

# ------------------------------------------------------------------------------------------------------------------------------------- resumed

def test_what_is_done_is_not_done_again(run, compared):
    said,before = [], states(compared)
    out = run(['early', 'random_erasing'], 2, say=said.append)
    assert '4 runs done, 2 to go' in said[0] and len(results(out)) == 6 and states(out).items() >= before.items()

def test_half_written_files_go(run, compared):
    for name in ('.record.jsonl.1.2.tmp', '.report.html.1.2.tmp', '.mine.tmp'): (compared/name).touch()
    run(['early'])
    assert [f.name for f in compared.glob('*.tmp')] == ['.mine.tmp']

def test_other_settings_in_the_same_folder(run, compared):
    with pytest.raises(RunError, match='lr'): run(['early'], 1, overrides=['lr=0.02'])

@pytest.mark.skipif(not hasattr(os, 'fork'), reason="needs fork")
@pytest.mark.filterwarnings('ignore:.*fork.*')
def test_killed(run, two_arms):
    took,kills = sum(o['seconds'] for o in results(two_arms)), 0
    for share in (0.1, 0.3, 0.2, 0.4, 0.3, 0.5, 1, 2, 4, 8):
        pid = child(lambda: run(['early'], 2, out='killed'))
        status = ended(pid, share*took)
        if status is not None: break
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        kills += 1
    assert kills >= 3 and status == 0
    free = lambda o: [{k: v for k,v in r.items() if not k.startswith(('seconds', 'peak', 'curve'))} for r in results(o)]
    assert free('killed') == free(two_arms)

def test_in_processes(run, two_arms):
    there = run(['early'], 1, out='there', jobs=2)
    for arm in ('erm', 'early'):
        assert lines(two_arms/'arms'/arm/'0', 'epoch') == lines(there/'arms'/arm/'0', 'epoch')

def test_processes_end_with_the_one_that_started_them(tmp_path):
    "Killed, it leaves nobody behind who works on a run, or waits for work for ever"
    (tmp_path/'go.py').write_text("""
import multiprocessing, os, time
from proxy_attention.lab.compare import pool
if __name__ == '__main__':
    pool._context = lambda: multiprocessing.get_context('forkserver' if os.name == 'posix' else 'spawn') # which need not import torch first
    with pool.processes(1) as pool:
        print(pool.submit(os.getpid).result(), flush=True)
        pool.submit(time.sleep, 1000).result()
""")
    with subprocess.Popen([sys.executable, tmp_path/'go.py'], env=os.environ | {'PYTHONPATH': str(Path(lab.__file__).parents[3])}, stdout=subprocess.PIPE, text=True) as parent:
        pid = int(parent.stdout.readline())
        os.kill(pid, 0) # It is there
        parent.kill()
        assert parent.communicate(timeout=120) == ('', None), "the pipe is closed when the last that writes to it has ended"

def test_a_run_that_fails_is_told_and_the_others_are_kept(run, monkeypatch):
    real = lab.run_job
    def work(conf, folder, *args):
        if 'random_erasing' in str(folder): raise OSError("No space left on device")
        return real(conf, folder, *args)
    patch_name(monkeypatch, 'run_job', work)
    with pytest.raises(RunError, match='1 of 2 runs failed: random_erasing seed 0: No space left'): run(['random_erasing'], 1)
    assert [o['arm'] for o in results('compared')] == ['erm']

# -------------------------------------------------------------------------------------------------------------------------------------- verdict

def fake(**arms_): return [dict(kind='result', arm=a, seed=s, test_accuracy=v, seconds=10.*(1 + len(a))) for a,vs in arms_.items() for s,v in enumerate(vs)]

def test_verdicts():
    rows = {v['arm']: v for v in verdicts(fake(erm=[.4, .5, .3, .4, .4], random_erasing=[.45, .52, .36, .46, .41], mine=[.9, .92, .88, .91, .93]))}
    d = paired_t([.9, .92, .88, .91, .93], [.45, .52, .36, .46, .41])
    assert rows['mine']['against_best']['arm'] == 'random_erasing' and rows['mine']['against_best']['low'] == pytest.approx(d.low)
    assert rows['mine']['against_erm']['arm'] == 'erm' and rows['mine']['against_erm']['cost'] == 1.25 and rows['random_erasing']['against_erm']['cost'] == 3.75
    assert 'against_erm' not in rows['erm'] and 'against_best' not in rows['random_erasing'] and rows['erm']['mean'] == pytest.approx(.4)
    assert rows['mine']['against_best']['cost'] == pytest.approx(1/3)

def test_verdicts_pair_by_seed():
    "Not by place: arm b lacks seed 0"
    got = fake(erm=[.1, .5, .6], b=[.9, .6, .8])
    got = [r for r in got if not (r['arm'] == 'b' and r['seed'] == 0)]
    v = next(v for v in verdicts(got) if v['arm'] == 'b')
    assert v['against_erm']['n'] == 2 and v['against_erm']['mean'] == pytest.approx(.15)

def test_verdicts_by_another_interval():
    got = fake(erm=[.4, .5, .3, .4], b=[.5, .6, .3, .6])
    assert verdicts(got, interval='bootstrap-t')[1]['against_erm']['low'] != verdicts(got)[1]['against_erm']['low']

NEAR = dict(erm=[.90, .91, .90, .92, .91], mixup=[.93, .92, .93, .93, .92], mine=[.901, .911, .899, .92, .909])

def test_verdicts_of_not_worse():
    "Against erm it is shown, against the best control not; without a margin nothing is said of it"
    rows = {v['arm']: v for v in verdicts(fake(**NEAR), margin=0.005)}
    none,best = rows['mine']['against_erm'], rows['mine']['against_best']
    assert none['not_worse'] == dict(margin=0.005, shown=True, bound=pytest.approx(paired_t(NEAR['mine'], NEAR['erm'], 0.9).low))
    assert none['low'] < 0 < none['high'] and best['arm'] == 'mixup' and not best['not_worse']['shown']
    assert not verdicts(fake(**NEAR), margin=0.0005)[2]['against_erm']['not_worse']['shown']
    by_bootstrap = verdicts(fake(**NEAR), margin=0.005, interval='bootstrap-t')[2]['against_erm']['not_worse']
    assert by_bootstrap['bound'] == not_worse(NEAR['mine'], NEAR['erm'], 0.005, interval='bootstrap-t')[1]
    without = verdicts(fake(**NEAR))
    assert not any('not_worse' in v.get(f'against_{k}', {}) for v in without for k in ('erm', 'best'))

def test_text_of_not_worse(tmp_path):
    def text(**kw):
        got = fake(**NEAR)
        head = dict(kind='compare', arms=list(NEAR), seeds=list(range(5)), steps=8, interval='t', **kw)
        (tmp_path/'record.jsonl').write_text('\n'.join(map(json.dumps, [head, *(r | dict(audit_ok=True) for r in got), *verdicts(got, **kw)])))
        found = read_comparison(tmp_path)
        return '\n'.join([comparison_text(found), *comparison_verdict(found)])
    asked = text(margin=0.005)
    assert 'ot worse' not in text() and 'not worse than erm by 0.5 points or more: mine' in asked
    assert re.search(r'against erm +against mixup +not worse than erm +not worse than mixup +seconds\n', asked) and re.search(r'mine .* yes \(−0.1\) +not shown \(−2.\d\)', asked)

def test_margin(run, compared):
    "It judges runs that are there; head line, command, and the note hold it"
    trained = states(compared)
    out = run(['early'], margin=0.25)
    head,*_,last = read_lines(out)
    assert head['margin'] == last['against_erm']['not_worse']['margin'] == 0.25 and '--margin 0.25' in head['command']
    assert states(out) == trained and 'not worse than erm' in comparison_text(read_comparison(out))
    assert read_lines(run(['early']))[0]['margin'] is None and '--margin' not in read_lines(out)[0]['command']

def test_the_best_control_is_a_control():
    rows = verdicts(fake(erm=[.4, .5], early_look=[.9, .95], mixup=[.6, .7]))
    assert {v['arm']: v.get('against_best', {}).get('arm') for v in rows} == dict(erm='mixup', early_look='mixup', mixup=None) and set(controls) < set(arms)

def test_text(run, compared):
    found = read_comparison(run(['early'], 2, interval='bootstrap-t'))
    text = '\n'.join([comparison_text(found), *comparison_verdict(found)])
    assert 'early' in text and 'against erm' in text and '8 optimizer steps each' in text and '(bootstrap-t)' in text and 'of 2 seeds' in text and '4 of 4 runs clean' in text

# --------------------------------------------------------------------------------------------------------------------------------------- errors

@pytest.mark.parametrize('kw, words', [(dict(names=['random_erasin']), "arms='random_erasin'.*random_erasing"),
                                       (dict(names=[], seeds=0), 'seeds=0'), (dict(names=[], seeds=[-1]), 'seeds=-1'), (dict(names=[], jobs=0), 'jobs=0'),
                                       (dict(names=[], interval='z'), "interval='z'"),
                                       (dict(names=[], margin=0), 'margin=0'), (dict(names=[], margin=5), 'margin=5'), (dict(names=[], overrides=['method=gradcm']), 'gradcm')])
def test_bad_input(run, kw, words):
    with pytest.raises((ValueError, TypeError), match=words): run(**kw)
    assert not Path('compared').exists()

FOREIGN = {'record.jsonl': '{"kind": "compare", "mine": 1}\n', 'report.html': '<p>mine', 'proxy_attention.json': '{"made_by": "me"}', 'notes.txt': 'mine', '.git': 'mine'}

@pytest.mark.parametrize('name', FOREIGN)
def test_somebody_else_s_folder(run, name):
    "It is left as it is, before anything is trained or written; a record's name or kind doesn't make it ours"
    Path('mine').mkdir()
    (Path('mine')/name).write_text(FOREIGN[name])
    before = os.listdir()
    with pytest.raises(RunError, match=r"'mine' is a folder with something else in it \(no compare made it\)"): run([], out='mine')
    assert os.listdir() == before and os.listdir('mine') == [name] and (Path('mine')/name).read_text() == FOREIGN[name]
    with pytest.raises(RunError, match='is a file'): run([], out=Path('mine')/name)

def test_the_working_directory_is_not_taken(run):
    before = Path('settings.ini').read_text()
    with pytest.raises(RunError, match='something else'): run([], out='.')
    assert os.listdir() == ['settings.ini'] and Path('settings.ini').read_text() == before

def test_somebody_else_s_record(run):
    Path('mine.jsonl').write_text(FOREIGN['record.jsonl'])
    with pytest.raises(ValueError, match="mine.jsonl' is there already and not a record of compare"): run([], record='mine.jsonl')
    assert Path('mine.jsonl').read_text() == FOREIGN['record.jsonl'] and not Path('compared').exists()

def test_a_folder_of_an_earlier_version_goes_on(run, compared):
    "It has no mark but its record"
    out,before = compared, states(compared)
    (out/'proxy_attention.json').unlink()
    assert [o['seed'] for o in results(run(['early'], 2))] == [0, 0, 1, 1] and states(out) == before
    assert json.loads((out/'proxy_attention.json').read_text())['kind'] == 'compare'

@pytest.mark.parametrize('overrides, words', [(['accumulate=8'], 'accumulate=8: Stage 3 has only 3 batches'), (['judge=bogus'], "judge='bogus'"), (['scout=9 steps'], 'longer than the fit of 8')])
def test_what_would_be_found_after_training(run, overrides, words):
    with pytest.raises(SettingsError, match=words): run(['early_look', 'masktune'], overrides=overrides)
    assert not Path('compared').exists()

def test_an_arm_that_varies_a_policy_that_is_not_there(run):
    with pytest.raises(SettingsError, match="varies the experiment's policy"): run(['random_place'], overrides=['proxy=none'])

def test_sections_are_arms():
    Path('settings.ini').write_text(INI)
    assert arm_settings(load_experiment('try', 'settings.ini'), 'seen', 4).proxy.select == 'ever_wrong'

def test_set_changes_the_own_policy_and_the_controls_that_vary_it():
    Path('settings.ini').write_text(INI)
    conf = load_experiment('try', 'settings.ini', ['share=0.7'])
    assert [arm_settings(conf, arm, 4).proxy.share for arm in ('unsure', 'unsure@layercam', 'random_place', 'seen')] == [0.7, 0.7, 0.7, 1]
    assert asked_digest(arm_settings(load_experiment('try', 'settings.ini'), 'unsure', 4)) == asked_digest(arm_settings(load_experiment('try', 'settings.ini', ['share=0.2']), 'unsure', 4))

# ------------------------------------------------------------------------------------------------------------------------------ why there is an audit

def test_a_split_that_is_remade_between_stages_shows_a_false_gain(cache, monkeypatch):
    "The mistake of a published predecessor: its validation images were trained on after the first stage. It looks like a gain, and the audit finds it"
    ini = INI.replace('n_train = 30\nn_valid = 10\nn_test = 10\nsize = 40\nbs = 10', 'n_train = 60\nn_valid = 20\nn_test = 40\nstrength = 0\nsize = 40\nbs = 20').replace('width = 4', 'width = 8')
    Path('settings.ini').write_text(ini.replace('share = 0.2\ncycles = 2', 'share = 0.2\ncycles = 1'))
    more = ['freeze_epochs=0', 'experiment.epochs=5']
    go = lambda out: experiment.run_experiment('try', 'settings.ini', out, more, 'own', say=lambda *_: None)
    honest = go('honest')
    assert audit_run(honest)
    real,first = dict(experiment.steps), []
    def remade(job, cycle):
        if cycle == 1:
            first.append(job.splits)
            whole = type(job.items)(**{**vars(job.items), 'fixed': None})
            job.splits = make_splits(whole, valid=20/120, test=40/120, seed=99)
            job.run.state['live'] = [] # copies of the former split's images would be refused
        real['train'](job, cycle)
    def tested(job): # On the first split's test, as it would be reported
        job.splits = first[0]
        real['test'](job)
    monkeypatch.setitem(experiment.steps, 'train', remade)
    monkeypatch.setitem(experiment.steps, 'test', tested)
    leaky = go('leaky')
    end = lambda out: lines(out, 'end')[0]
    found = audit_run(leaky)
    assert not found and any('split was made anew' in p for p in found.problems) and not end(leaky)['audit']['ok']
    assert end(leaky)['test']['accuracy'] > end(honest)['test']['accuracy'], "test images that were trained on look easy"

def test_a_run_in_this_process_leaves_warnings_on(monkeypatch, recwarn):
    "A comparison with jobs=1 is silent, and the user's process isn't afterwards"
    import warnings

    from proxy_attention.lab.compare import pool
    from proxy_attention.lab.runs import runner
    monkeypatch.setattr(runner, 'run_settings', lambda *args, **kwargs: warnings.warn('within'))
    monkeypatch.setattr(pool, 'Settings', lambda **conf: None)
    warnings.simplefilter('always')
    before = list(warnings.filters)
    pool.run_job({}, 'folder', 'data', 'command')
    assert warnings.filters == before and not len(recwarn)
    warnings.warn('after')
    assert [str(w.message) for w in recwarn] == ['after']
