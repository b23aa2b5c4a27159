"""The search for a policy: the same trials however often it was killed, failures recorded, little left on disk, and mistakes said beforehand."""
import json
import os
import signal
import sys
import tempfile
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import filelock
import pytest
from hypothesis import given, settings as hypo
from hypothesis import strategies as st
from test_lab_cli import answer
from test_lab_cli import run as command
from test_lab_cli import wrong as wrong_command
from test_lab_experiment import child, ended, lines

from lab_kit import FEW, patch_name
from proxy_attention.lab.config.settings import Settings
from proxy_attention.lab.config.search import Range, SweepConfig
from proxy_attention.lab.config.problems import SettingsError
from proxy_attention.lab.config.settings import load_sweep
from proxy_attention.lab.runs.checkpoint import RunError
from proxy_attention.files import read_lines

pytest.importorskip('optuna', reason="needs optuna: pip install 'proxy_attention[sweep]'")

from proxy_attention.lab.compare import space
from proxy_attention.lab.compare import sweep as lab  # noqa: E402
from proxy_attention.lab.compare.sweep_report import policy_section, sweep_summary, sweep_text
from proxy_attention.lab.compare.sweep import sweep
from proxy_attention.lab.compare.space import trial_settings  # noqa: E402

INI = '[DEFAULT]\narea = 0.3\n' + FEW + """\
[proxy:own]
select = wrong
fill = blur
[experiment:try]
data = digits
model = net
proxy = own
steps = 4
lr = 0.01
deterministic = true
[experiment:plain]
data = digits
model = net
steps = 3
lr = 0.02
[sweep:find]
# Which policy?
experiment = try
trials = 2
seeds = 1
sampler = random
select = all, low_confidence
area = 0.05..0.4 log
share = 0.5..1
scout = 1 steps, 2 steps, off
merge = add
"""


@pytest.fixture
def search(cache):
    "A function: the sweep with these changes; its folder"
    Path('settings.ini').write_text(INI)
    def _search(*overrides, out='swept', **kw):
        return sweep('find', 'settings.ini', out, data=cache, overrides=overrides, **{'jobs': 1, 'say': lambda *_: None, **kw})
    return _search

def quick(monkeypatch, value=lambda s: s.proxy.area or 0., **changes):
    "Runs that take no time: what they would have come to is `value` of their settings"
    def work(conf, folder, data, command):
        s = Settings(**conf)
        if callable(changes.get('before')): changes['before'](s, folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder/'value').write_text(json.dumps(value(s)))
    def run_line(arm, seed, folder):
        return dict(test_accuracy=json.loads((folder/'value').read_text()), test_nll=.5 - json.loads((folder/'value').read_text())/9, test_worst_group_accuracy=None, steps=changes.get('steps', 4),
                    stop='nothing left', audit_ok=changes.get('audit', lambda f: True)(folder), seconds=1.)
    patch_name(monkeypatch, 'run_job', work)
    patch_name(monkeypatch, 'run_line', run_line)
    patch_name(monkeypatch, 'plot_sweep', lambda study, about, file: file.touch())

def trials(out): return [o for o in read_lines(out) if o['kind'] == 'trial']
def drawn(out): return [o['params'] for o in trials(out)]
def free(out): return [{k: v for k,v in o.items() if k != 'seconds'} for o in read_lines(out)[1:]]


# ------------------------------------------------------------------------------------------------------------------------------------ a search

@pytest.fixture(scope='module')
def found(cache, tmp_path_factory):
    "A real search over two experiments and two seeds"
    folder = tmp_path_factory.mktemp('found')
    (folder/'settings.ini').write_text(INI)
    said = []
    out = sweep('find', folder/'settings.ini', folder/'out', 2, 1, cache, ['sweep.experiment=try, plain', 'sweep.seeds=2', 'sweep.probe=false', 'experiment.seed=5'], said.append)
    return out, said

def test_the_record(found):
    out,said = found
    head,*tried,best = read_lines(out)
    assert [o['kind'] for o in (head, *tried, best)] == ['sweep', 'trial', 'trial', 'best'] and [o['number'] for o in tried] == [0, 1]
    assert head['command'].startswith('proxy-attention sweep find --trials 2 --out ') and len(head['settings_sha256']) == 64 and 'commit' in head and head['settings']['file'] == 'settings.ini'
    assert head['settings']['experiments']['plain']['file'] == 'settings.ini', "no path of this machine"
    assert head['space'] == dict(select=['all', 'low_confidence'], share=dict(low=.5, high=1., log=False), area=dict(low=.05, high=.4, log=True), merge=['add'], probe=[False], scout=['1 steps', '2 steps', 'off'])
    assert (head['trials'], head['steps'], head['seeds'], head['objective']) == (2, dict(plain=3, **{'try': 4}), dict(plain=[5, 6], **{'try': [5, 6]}), 'test_accuracy')
    for o in tried:
        assert o['state'] == 'done' and o['audit_ok'] is True and o['error'] is None and o['seconds'] > 0 and o['params'].keys() == head['space'].keys()
        of = {e: [o['values'][e][s] for s in ('5', '6')] for e in ('try', 'plain')}
        assert o['value'] == pytest.approx(sum(map(sum, of.values()))/4)
        assert of['try'] == [lines(out/'trials'/f"{o['number']:04d}"/'try'/s, 'end')[0]['test']['accuracy'] for s in ('5', '6')]
    top = max(tried, key=lambda o: o['value'])
    assert (best['number'], best['value'], best['params'], best['trials'], best['failed']) == (top['number'], top['value'], top['params'], 2, 0)
    assert '0 trials of 2 ended before, 2 to go, 1 at a time; each is 2 seeds of try (4 steps) and plain (3 steps)' in said[0] and said[1].startswith('trial 0: ')

def test_every_run_has_the_trials_policy_and_the_same_steps(found):
    out,_ = found
    for o in trials(out):
        for e,steps in (('try', 4), ('plain', 3)):
            s = lines(out/'trials'/f"{o['number']:04d}"/e/'6', 'run')[0]['settings']
            assert {k: v for k,v in s['proxy'].items() if k in o['params']} == o['params'] and s['proxy']['fill'] is None, "the experiment's own policy plays no part"
            assert (s['experiment']['steps'], s['experiment']['seed'], s['experiment']['threads']) == (steps, 6, 1)
            assert lines(out/'trials'/f"{o['number']:04d}"/e/'6', 'end')[0]['steps'] == steps

def test_little_is_left_on_disk(found):
    out,_ = found
    assert {f.name for f in out.glob('trials/*/*/*/*')} <= {'config.json', 'state.json', 'record.jsonl', '.lock'} and len(list(out.glob('trials/*/*/*/record.jsonl'))) == 8

def test_trials_of_a_sweep_are_drawn_from_its_space(found):
    for p in drawn(found[0]): assert p['select'] in ('all', 'low_confidence') and .05 <= p['area'] <= .4 and .5 <= p['share'] <= 1 and p['scout'] in ('1 steps', '2 steps', 'off') and p['merge'] == 'add'

def test_text_and_figure(found):
    out,_ = found
    text = sweep_text(out)
    best = read_lines(out)[-1]
    assert 'trial  test_accuracy' in text and 'merge' not in text.split('[proxy:found]')[0], "what doesn't vary has no column"
    assert '2 of 2 trials, 2 seeds each; the mean over 2 experiments.' in text and text.splitlines()[2].split()[0] == str(best['number']) and 'flattered' in text
    assert len(sweep_text(out, top=1).splitlines()) == len(text.splitlines()) - 1
    assert '[proxy:found]\n' in text and f"select = {best['params']['select']}\n" in text and f"area = {best['params']['area']!r}" in text
    assert (out/'sweep.png').stat().st_size > 10000

def test_a_found_policy_is_a_section(found):
    (section := Path('settings.ini')).write_text(INI + policy_section('mine', read_lines(found[0])[-1]['params']) + '\n')
    from proxy_attention.lab.config.settings import load_experiment
    got = load_experiment('try', section, ['proxy=mine']).proxy
    assert {k: v for k,v in got if k in drawn(found[0])[0]} == read_lines(found[0])[-1]['params']

def test_summary(found):
    got = sweep_summary(found[0])
    assert got['done'] and (got['sweep'], got['trials'], got['asked'], got['failed']) == ('find', 2, 2, 0) and got['best']['number'] == read_lines(found[0])[-1]['number']

# ------------------------------------------------------------------------------------------------------------------------------ what is drawn

def test_the_seed_decides_what_is_drawn(search, monkeypatch):
    quick(monkeypatch)
    one,same,other = search(out='a', trials=4), search(out='b', trials=4), search('sweep.seed=1', out='c', trials=4)
    assert drawn(one) == drawn(same) != drawn(other) and len({json.dumps(p) for p in drawn(one)}) == 4

def test_asked_for_more_it_goes_on_as_if_it_had_never_stopped(search, monkeypatch):
    quick(monkeypatch)
    whole,parts = search('sweep.sampler=tpe', out='a', trials=14), None
    for n in (1, 5, 12, 14): parts = search('sweep.sampler=tpe', out='b', trials=n)
    assert drawn(parts) == drawn(whole) and len(drawn(whole)) == 14
    assert drawn(search('sweep.sampler=tpe', out='b', trials=3)) == drawn(whole), "there are more already"

def test_tpe_learns_and_random_does_not(search, monkeypatch):
    quick(monkeypatch, lambda s: (s.proxy.area - .05)/.35)
    tpe,random = (drawn(search(f'sweep.sampler={s}', out=s, trials=22)) for s in ('tpe', 'random'))
    mean = lambda ps: sum(p['area'] for p in ps)/len(ps)
    assert tpe[:10] == random[:10] and tpe[10:] != random[10:] and mean(tpe[10:]) > mean(random[10:]) + .03

def test_the_objective_and_its_direction(search, monkeypatch):
    quick(monkeypatch)
    high,low = search(out='a', trials=6), search('sweep.objective=test_nll', out='b', trials=6)
    best = lambda out: read_lines(out)[-1]
    assert best(high)['value'] == max(o['value'] for o in trials(high)) and best(low)['value'] == min(o['value'] for o in trials(low)) and best(high)['number'] == best(low)['number']
    with pytest.raises(RunError, match="objective='test_worst_group_accuracy'.*\\[experiment:try\\] have none"): search('sweep.objective=test_worst_group_accuracy', out='c')
    assert f"{best(low)['value']:.4f}" in sweep_text(low)

def test_importance(search, monkeypatch):
    quick(monkeypatch, lambda s: s.proxy.area)
    got = read_lines(search(trials=12))[-1]['importance']
    assert max(got, key=got.get) == 'area' and got['area'] > .7 and 'merge' not in got and sum(got.values()) == pytest.approx(1, abs=.01)
    quick(monkeypatch, lambda s: .5)
    assert read_lines(search(out='flat'))[-1]['importance'] == {}, "nothing explains what doesn't vary"

def test_ranges_of_whole_numbers(search, monkeypatch):
    quick(monkeypatch, lambda s: s.proxy.cycles/9)
    got = {p['cycles'] for p in drawn(search('sweep.cycles=1..2', trials=8))}
    assert got == {1, 2} and all(isinstance(c, int) for c in got)

# ----------------------------------------------------------------------------------------------------------------------- failures and audits

def test_a_trial_that_fails_is_recorded_and_the_search_goes_on(search, monkeypatch):
    def before(s, folder):
        if s.proxy.select == 'all': raise ValueError("nothing\nto erase")
    quick(monkeypatch, before=before)
    said = []
    out = search(trials=6, say=said.append)
    bad = [o for o in trials(out) if o['state'] == 'failed']
    assert 0 < len(bad) < 6 and all(o['params']['select'] == 'all' and o['error'] == 'ValueError: nothing to erase' and o['value'] is None for o in bad)
    assert read_lines(out)[-1]['failed'] == len(bad) and read_lines(out)[-1]['params']['select'] == 'low_confidence'
    assert f'{len(bad)} failed: trial {bad[0]["number"]}, ValueError: nothing to erase' in sweep_text(out) and any(line.startswith(f'trial {bad[0]["number"]} failed: ') for line in said)
    again = []
    search(trials=6, say=again.append)
    assert len(again) == 1 and '6 trials of 6 ended before, 0 to go' in again[0], "a failed trial has ended, too"

def test_all_fail(search, monkeypatch):
    def before(s, folder): raise ValueError("no")
    quick(monkeypatch, before=before)
    with pytest.raises(RunError, match='all 2 trials failed; the first: ValueError: no'): search()
    assert read_lines('swept')[-1] == dict(kind='best', trials=2, failed=2, number=None, value=None, params=None, importance={}) and 'found' not in sweep_text('swept')

def test_a_real_policy_that_cannot_be(search):
    "Known only when the network is there: rollout follows the attention of a transformer"
    out = search('sweep.method=rollout, gradcam', trials=3)
    bad = [o for o in trials(out) if o['state'] == 'failed']
    assert bad and all(o['params']['method'] == 'rollout' for o in bad) and all(o['params']['method'] == 'gradcam' for o in trials(out) if o['state'] == 'done')

def test_a_trial_that_ends_early_is_no_fair_one(search, monkeypatch):
    quick(monkeypatch, steps=3)
    with pytest.raises(RunError, match='ended after 3 of 4 steps: nothing left'): search()

def test_a_full_disk_is_not_the_policys_fault(search, monkeypatch):
    def before(s, folder):
        if '0001' in str(folder): raise OSError("No space left on device")
    quick(monkeypatch, before=before)
    with pytest.raises(OSError, match='No space'): search(trials=3)
    assert len(trials('swept')) == 1
    quick(monkeypatch)
    assert drawn(search(trials=3)) == drawn(search(out='whole', trials=3)), "the trial that was under way is not lost"

def test_a_process_that_was_killed_is_not_the_policys_fault():
    gone = Future()
    gone.set_exception(BrokenProcessPool('one of them'))
    with pytest.raises(RunError, match='killed.*goes on'): lab._judged(gone, [], 'test_accuracy')

def test_a_trial_whose_audit_is_not_clean_is_not_chosen(search, monkeypatch):
    quick(monkeypatch)
    best = read_lines(search(out='a', trials=4))[-1]['number']
    quick(monkeypatch, audit=lambda folder: f'{best:04d}' not in str(folder))
    out = search(out='b', trials=4)
    assert read_lines(out)[-1]['number'] not in (best, None) and trials(out)[best]['audit_ok'] is False and f"audit isn't clean: trials {best}." in sweep_text(out)

# ---------------------------------------------------------------------------------------------------------------------------- killed, several

@pytest.fixture(scope='module')
def blind(cache, tmp_path_factory):
    "A real search of two trials, each drawn without a look at the others, for reading only"
    folder = tmp_path_factory.mktemp('blind')
    (folder/'settings.ini').write_text(INI)
    return sweep('find', folder/'settings.ini', folder/'out', 2, 1, cache, ['sweep.probe=false'], lambda *_: None)

def test_killed_between_its_steps(search, monkeypatch):
    "While a trial is drawn, runs, is told or is tidied up"
    quick(monkeypatch)
    whole = search('sweep.sampler=tpe', out='whole', trials=14)
    for name in ('_sampler', 'run_job', '_outcome', 'write_sweep', '_trial_text'):
        calls,real = [], getattr(space if name == '_sampler' else lab, name)
        def stopped(*args, calls=calls, real=real):
            calls.append(args)
            if len(calls) == 3: raise KeyboardInterrupt
            return real(*args)
        with monkeypatch.context() as m, pytest.raises(KeyboardInterrupt):
            patch_name(m, name, stopped)
            search('sweep.sampler=tpe', trials=14)
        assert 1 <= len(trials('swept')) < 14
    assert free(search('sweep.sampler=tpe', trials=14)) == free(whole)

@pytest.mark.skipif(not hasattr(os, 'fork'), reason="needs fork")
@pytest.mark.filterwarnings('ignore:.*fork.*')
def test_killed(search, blind):
    took,kills = sum(o['seconds'] for o in trials(blind)), 0
    for share in (.1, .3, .2, .4, .3, .5, 1, 2, 4, 8):
        pid = child(lambda: search('sweep.probe=false', out='killed'))
        status = ended(pid, share*took)
        if status is not None: break
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        kills += 1
    assert kills >= 3 and status == 0 and free('killed') == free(blind)
    assert not list(Path('killed').rglob('*.safetensors'))

def test_half_a_line_in_the_journal(search, monkeypatch):
    quick(monkeypatch)
    search(trials=2)
    with open('swept/journal.log', 'a') as f: f.write('{"op_code": 4, "wor')
    assert drawn(search(trials=3)) == drawn(search(out='whole', trials=3))

def test_in_two_processes(search, blind):
    said = []
    there = search('sweep.probe=false', out='there', jobs=2, say=said.append)
    found = sorted(free(there)[:-1], key=lambda o: o['number'])
    assert '2 at a time' in said[0] and found == free(blind)[:-1], "blind draws don't depend on each other"

def test_only_one_at_a_time(search, monkeypatch):
    quick(monkeypatch)
    search()
    with filelock.FileLock('swept/.lock'), pytest.raises(RunError, match='in use by another process'): search(trials=3)

# --------------------------------------------------------------------------------------------------------------------------------------- errors

@pytest.mark.parametrize('overrides, kw, words', [
    ([], dict(trials=0), 'trials=0'), ([], dict(jobs=0), 'jobs=0'), ([], dict(trials=1.5), 'trials=1.5'),
    (['sweep.select=all, worng'], {}, "line .*select='worng'.*'wrong'"), (['sweep.fill=blak'], {}, "'black'"), (['sweep.method=gradcam,gradcm'], {}, "'gradcam'"),
    (['steps=1'], {}, "scout=1 steps: the 1 steps of .experiment:try. are too few"), (['sweep.cycles=1..9', 'sweep.scout=off'], {}, 'cycles=9.*too few'),
    (['sweep.scout=2 steps, 3 steps'], {}, 'scout=3 steps: the 4 steps of .experiment:try. are too few'), (['sweep.cycles=0, 1'], {}, 'scout=off, cycles=0: cycles = 0 makes no copies without a scout'),
    (['accumulate=3', 'sweep.cycle_epochs=1'], {}, 'cycle_epochs=1: the 4 steps of .experiment:try. are too few'), (['judge=bogus'], {}, "judge='bogus'"),
    (['model.arch=smal_cnn'], {}, 'small_cnn'), (['proxy.area=0.1'], {}, 'sweep.area')])
def test_bad_input(search, overrides, kw, words):
    with pytest.raises((ValueError, TypeError), match=words): search(*overrides, **kw)
    assert not Path('swept').exists()

def test_other_settings_or_something_else_in_the_folder(search, monkeypatch):
    quick(monkeypatch)
    search()
    for change,words in (('lr=0.5', 'experiments.try.experiment.lr: 0.01 then, 0.5 now'), ('sweep.seeds=2', 'sweep.seeds'), ('sweep.area=0.1..0.2', 'sweep.area')):
        with pytest.raises(RunError, match=words): search(change)
    Path('mine').mkdir()
    Path('mine/thesis.txt').write_text('all of it')
    with pytest.raises(RunError, match='something else'): search(out='mine')
    with pytest.raises(RunError, match='a file'): search(out='mine/thesis.txt')
    assert os.listdir('mine') == ['thesis.txt']

@pytest.mark.parametrize('name, text', [('record.jsonl', '{"kind": "sweep", "settings": {"sweep": {}}}\n'), ('.git', 'mine'), ('sweep.png', 'mine')])
def test_somebody_else_s_folder(search, monkeypatch, name, text):
    quick(monkeypatch)
    Path('mine').mkdir()
    (Path('mine')/name).write_text(text)
    with pytest.raises(RunError, match=r"'mine' is a folder with something else in it \(no sweep made it\)"): search(out='mine')
    assert os.listdir('mine') == [name] and (Path('mine')/name).read_text() == text

def test_a_folder_of_an_earlier_version_goes_on(search, monkeypatch):
    quick(monkeypatch)
    (search(trials=2)/'proxy_attention.json').unlink()
    assert len(trials(search(trials=3))) == 3

def test_killed_before_its_first_record(search, monkeypatch):
    quick(monkeypatch)
    def stopped(*args): raise KeyboardInterrupt
    with monkeypatch.context() as m, pytest.raises(KeyboardInterrupt):
        m.setattr(lab, 'write_sweep', stopped)
        search()
    assert len(trials(search())) == 2

def test_without_optuna(search, monkeypatch):
    monkeypatch.setitem(sys.modules, 'optuna', None)
    with pytest.raises(RunError, match=r"pip install 'proxy_attention\[sweep\]'"): search()
    assert not Path('swept').exists() and "[sweep]'" in wrong_command('sweep', 'find') and command('check').exit_code == 0

def test_trial_settings():
    Path('settings.ini').write_text(INI)
    conf = load_sweep('find', 'settings.ini', ['until=accuracy>=0.9', 'rollback=0.1', 'freeze_epochs=1', 'threads=3']).experiments['try']
    s = trial_settings(conf, dict(select='all', scout='off'), 7, 99)
    assert s.proxy.policy == dict(select='all', scout=None) and s.data == conf.data and s.model == conf.model
    assert (s.experiment.seed, s.experiment.steps, s.experiment.threads, s.experiment.until, s.experiment.rollback, s.experiment.freeze_epochs) == (7, 99, 1, None, None, 0)

# ---------------------------------------------------------------------------------------------------------------------------------------- settings

@pytest.fixture
def read():
    def _read(old='', new='', overrides=()):
        assert old in INI
        Path('settings.ini').write_text(INI.replace(old, new))
        return load_sweep('find', 'settings.ini', overrides)
    return _read

def test_a_section(read):
    s = read().sweep
    assert s.space == dict(select=('all', 'low_confidence'), share=Range(low=.5, high=1.), area=Range(low=.05, high=.4, log=True), merge=('add',), scout=('1 steps', '2 steps', 'off'))
    assert (s.experiment, s.trials, s.seeds, s.sampler, s.objective, s.seed) == (('try',), 2, 1, 'random', 'test_accuracy', 0)
    assert 'area' not in read('area = 0.05..0.4 log\n').sweep.space, "the default for policies is not searched"
    assert read('[DEFAULT]', '[DEFAULT]\nseed = 4').sweep.seed == 4

@pytest.mark.parametrize('text, space', [('threshold = 0.5, mean+2std', (.5, 'mean+2std')), ('threshold = 0.3..0.8', Range(low=.3, high=.8)), ('area = none, 0.1', (None, .1)), ('area = none', (None,)),
                                         ('per_class = true, no', (True, False)), ('cycles = 1..40 log', Range(low=1, high=40, log=True)), ('scout = 0.5..2', Range(low=.5, high=2.)),
                                         ('scout = 25%, 3', ('25%', 3.)), ('keep = all,latest', ('all', 'latest')), ('cycle_epochs = 2', (2,))])
def test_values(read, text, space):
    key = text.split()[0]
    old = {'area': 'area = 0.05..0.4 log', 'scout': 'scout = 1 steps, 2 steps, off', 'threshold': 'area = 0.05..0.4 log'}.get(key, 'merge = add')
    got = read(old, text).sweep.space[key]
    assert got == space and (not isinstance(space, Range) or type(got.low) is type(space.low))

@pytest.mark.parametrize('old, new, words', [
    ('select =', 'slect =', ["slect='all, low_confidence'", "'select'", 'line 34']), ('merge = add', 'merge = ad', ["merge='ad'", "'add'"]), ('= add', '= add, ad', ["'ad':", "Did you mean 'add'?"]),
    ('0.05..0.4', '0.4..0.05', ['above the first']), ('0.05..0.4 log', '0.1..0.1', ['above the first']),
    ('= all, low', '= all..low', ['not a range of numbers']), ('0.5..1', '0.5..', ['not a range']), ('= all, ', '= all, , ', ['nothing left out']), ('= all, ', '= all, all, ', ['twice']),
    ('merge = add', 'threshold = 0.5', ['area or threshold, not both', '[sweep:find]']), ('merge = add', 'epochs = 1..3', ["epochs='1..3'", 'cycle_epochs']), ('experiment = try', 'experiment = tri', ["'try'", 'line 30']),
    ('experiment = try', 'experiment = try, try', ['twice']), ('experiment = try', 'experiment =', ['[experiment:...]']), ('experiment = try\n', '', ['missing']), ('trials = 2', 'trials = few', ["trials='few'"]),
    ('trials = 2', 'trials = 0', ["trials='0'"]), ('seeds = 1', 'seeds = 0', ["seeds='0'"]), ('random', 'randm', ["'random'"]), ('seeds = 1', 'objective = accuracy', ['objective', 'test_accuracy']),
    ('[sweep:find]', '[swep:find]', ["'sweep'"]), ('scout = 1 steps', 'look_after = 1 steps', ['no such key']), ('0.05..0.4 log', '0.05..0.4 lg', ["'0.4 lg'"]), ('merge = add', 'cycles = -1..3', ["'-1'"])])
def test_wrong_sections(read, old, new, words):
    with pytest.raises(SettingsError) as e: read(old, new)
    assert all(w in str(e.value) for w in (*words, 'settings.ini')) and all('\n' not in str(p) for p in e.value.problems), e.value

@pytest.mark.parametrize('old, new, words', [('0.4 log', '4', "area='4.0': 4.0 is out of range; it must be a number above 0 up to 1"), ('0.05..0.4 log', 'x', "area"), ('scout = 1 steps', 'scout = 1 stps', "'N steps'"),
                                             ('= all, low', '= al, low', "select='al': 'al' is not one of .*Did you mean 'all'")])
def test_values_that_no_policy_has_are_told_before_a_run(search, old, new, words):
    Path('settings.ini').write_text(INI.replace(old, new, 1))
    with pytest.raises(SettingsError, match=words): search()
    assert not Path('swept').exists()

def test_everything_wrong_is_told_at_once(read):
    with pytest.raises(SettingsError) as e: read('trials = 2\nseeds = 1\nsampler = random\nselect = all, low_confidence\narea = 0.05..0.4 log', 'trials = 0\nseed = x\nsampler = rnd\nslect = all\narea = nine')
    assert [(p.key, p.line) for p in e.value.problems] == [('trials', 31), ('seed', 32), ('sampler', 33), ('slect', 34), ('area', 35)]

def test_nothing_to_search(read):
    with pytest.raises(SettingsError, match='nothing is searched'): read(INI[INI.index('select = all'):], '')

def test_overrides(read):
    got = read(overrides=['sweep.trials=9', 'area=0.2', 'data.seed=3', 'steps=8', 'experiment.epochs=3', 'sweep.seed=5'])
    assert (got.sweep.trials, got.sweep.area, got.sweep.seed) == (9, (.2,), 5)
    assert all((e.data.seed, e.experiment.steps, e.experiment.epochs) == (3, 8, 3) for e in got.experiments.values())
    assert list(read(overrides=['experiment=plain, try']).experiments) == ['plain', 'try']
    for change,words in (('seed=1', 'sweep.seed'), ('proxy.area=1', 'set what it searches'), ('trails=3', "'trials'"), ('sweep.steps=3', 'no such key'), ('area=big', "with --set area=big.*area='big'"),
                         ('experiment=plane', "'plain'")):
        with pytest.raises(SettingsError, match=words): read(overrides=[change])
    assert 'select' not in read(overrides=['sweep.select=']).sweep.space

ends = st.sampled_from(['', '0', '1', '-1', '0.5', '1e400', 'nan', 'inf', 'none', 'true', '9'*400, '1 steps', 'x', '½', ' ', ',', '..', 'log', ' log'])
spaces = st.one_of(st.text(max_size=8), st.lists(ends, max_size=5).map(''.join), st.tuples(ends, ends, ends).map('{0[0]}..{0[1]} {0[2]}'.format), st.lists(ends, max_size=3).map(','.join))

@hypo(max_examples=200, deadline=None)
@given(st.sampled_from(list(SweepConfig.model_fields)), spaces)
def test_any_value(key, value):
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder)/'settings.ini'
        file.write_text(INI)
        try: got = load_sweep('find', file, [f'sweep.{key}={value}'])
        except SettingsError as e: assert e.problems and all('\n' not in str(p) for p in e.problems)
        else: assert all(isinstance(s, Range) or len(s) > 0 for s in got.sweep.space.values())

def test_unknown_sweep():
    Path('settings.ini').write_text(INI)
    with pytest.raises(SettingsError, match="sweep:fnd.*'find'"): load_sweep('fnd', 'settings.ini')

@pytest.mark.parametrize('name', ['jtt', 'masktune'])
def test_the_studys_sweeps(name):
    got = load_sweep(name, Path(__file__).parents[1]/'studies'/'settings.ini')
    assert lab.check_space(got) == [] and list(got.experiments) == ['dev_digits', 'dev_cifar10']
    assert all(c.data.reserved == 500 and not c.data.holdout for e,c in got.experiments.items() if e == 'dev_digits'), "the held-out digits are in no search"
    lab.check_lengths(got, {e: c.experiment.steps for e,c in got.experiments.items()}, {e: c.data.n_train for e,c in got.experiments.items()})

def test_the_packages_own_sweep():
    got = load_sweep('find')
    assert lab.check_space(got) == [] and list(got.experiments) == ['shortcut']

# --------------------------------------------------------------------------------------------------------------------------------- command line

def test_command(search, cache, monkeypatch):
    quick(monkeypatch)
    args = ['sweep', 'find', '--jobs', '1', '--data', cache, '--out', 'a b']
    got = command(*args, '--trials', '3', '--set', 'sweep.seed=1')
    assert got.exit_code == 0 and 'trial 2: ' in got.output and '3 of 3 trials' in got.output and '[proxy:found]' in got.output and 'figure a b/sweep.png' in got.output.replace(os.sep, '/'), got.output
    told = answer(*args, '--trials', '4', '--set', 'sweep.seed=1')
    assert told['done'] and told['trials'] == 4 and told['best']['params'] == read_lines('a b')[-1]['params'] and Path(told['figure']).is_file() and '--trials 4' in told['command']
    assert 'other settings' in wrong_command(*args)
    Path('other.ini').write_text(INI.replace('trials = 2', 'trials = 1'))
    assert answer('sweep', 'find', '--settings', 'other.ini', '--jobs', '1', '--data', cache)['folder'] == str(Path('runs/sweep_find')), "its own folder"

def test_command_stopped(search, monkeypatch):
    def before(s, folder): raise KeyboardInterrupt
    quick(monkeypatch, before=before)
    got = command('sweep', 'find', '--trials', '3', '--out', 'swept', '--set', 'lr=0.1', '--jobs', '1')
    assert got.exit_code == 130 and got.stderr.strip() == 'stopped; `proxy-attention sweep find --trials 3 --out swept --jobs 1 --set lr=0.1` goes on from here'

@pytest.mark.parametrize('args, words', [(['fnd'], "'find'"), (['find', '--trials', '0'], 'trials=0'), (['find', '--jobs', '0'], 'jobs=0'), (['find', '--set', 'sweep.area=7'], "area='7.0': 7.0 is out of range"),
                                         (['find', '--settings', 'nowhere.ini'], 'nowhere.ini'), (['find', '--set', 'sweep.fill=blak'], "'black'")])
def test_command_errors(search, args, words):
    assert words in wrong_command('sweep', *args) and sorted(os.listdir()) == ['settings.ini']

def test_check_and_list(search, monkeypatch):
    assert command('check').output == '2 experiments and 1 sweep are right (settings.ini)\n' and answer('check')['sweeps'] == 1
    Path('bad.ini').write_text(INI.replace('= all, low_confidence', '= all, low_confidnce'))
    (problem,) = answer('check', '--settings', 'bad.ini', code=2)['problems']
    assert problem['line'] == 34 and problem['key'] == 'select' and 'low_confidence' in problem['message']
    quick(monkeypatch)
    search(trials=2, out='runs/sweep_find')
    said,told = command('list').output, answer('list')
    assert '  find  try  Which policy?\n' in said and 'sweep_find  done  best test_accuracy 0.' in said and told['runs'] == told['comparisons'] == []
    assert told['sweeps'] == [dict(name='find', experiment='try', comment='Which policy?')] and told['swept'][0]['params'] == read_lines('runs/sweep_find')[-1]['params']
    head,*others = read_lines('runs/sweep_find')
    Path('runs/sweep_find/record.jsonl').write_text('\n'.join(map(json.dumps, [head | dict(trials=9), *others])) + '\n')
    assert '2 of 9 trials' in command('list').output
