"""A second task: the body of a finished run with a new head, then the first test again with the old head."""
import pytest
import torch
from lab_kit import INI
from safetensors.torch import load_file
from test_study import command

from proxy_attention.files import read_lines
from proxy_attention.lab.config.problems import SettingsError
from proxy_attention.lab.models.heads import head_keys
from proxy_attention.lab.runs.checkpoint import RunError
from proxy_attention.lab.runs.job import finished_run
from studies import transfer as lab
from studies.transfer import second_table, second_task, task_data

LATER = """
[data:later]
source = shortcut_digits
strength = 0
seed = 1
n_train = 40
n_valid = 20
n_test = 30
size = 40
bs = 20
"""


class Made:
    def __init__(self, top, cache, compared):
        self.top, self.data, self.settings, self.compared = top, cache, top/'settings.ini', compared
        self.settings.write_text(INI + LATER)
    def arm(self, arm, seed): return self.compared/'arms'/arm/str(seed)
    def second(self, runs=None, task='later', out='record.jsonl', steps=3):
        return second_task(runs or [self.compared], task, out, steps, self.settings, self.data)

@pytest.fixture(scope='module')
def made(tmp_path_factory, cache, two_arms): return Made(tmp_path_factory.mktemp('second'), cache, two_arms)

@pytest.fixture(scope='module')
def lines(made, tmp_path_factory): return made.second(out=tmp_path_factory.mktemp('lines')/'record.jsonl')

def results(lines): return [o for o in lines if o['kind'] == 'result']

def test_a_line_a_run_and_one_a_fresh_network(lines, made):
    assert [o['kind'] for o in lines] == ['second', *['result']*6]
    assert [(o['arm'], o['seed']) for o in results(lines)] == [
        (a, s) for a in ('early', 'erm', 'fresh') for s in (0, 1)]
    for r in results(lines)[:4]:
        assert r['first_before'] == read_lines(made.arm(r['arm'], r['seed']))[-1]['test']['accuracy']
    assert all(r['first_before'] is r['first_after'] is None for r in results(lines)[4:])
    assert lines[0]['task'] == 'later' and lines[0]['task_settings']['seed'] == 1 and lines[0]['task_steps'] == 3

def test_the_body_is_the_runs_and_the_head_is_new(made, monkeypatch):
    "Before its first step the network is the finished run's but for its head, and all of it is trained"
    seen, real, make = [], lab.epoch_of, lab.make_learn
    def spy(dls, steps):
        model = made.learn.model
        seen.append(({k: v.clone() for k,v in model.state_dict().items()}, [p.requires_grad for p in model.parameters()]))
        return real(dls, steps)
    def keep(*args, **kw):
        made.learn = make(*args, **kw)
        return made.learn
    monkeypatch.setattr(lab, 'make_learn', keep)
    monkeypatch.setattr(lab, 'epoch_of', spy)
    made.second([made.arm('erm', 0)])
    job = finished_run(made.arm('erm', 0), made.data)
    for (before,trained),name in zip(seen, ('weights', 'initial')):
        learnt, head = load_file(job.run.weights(job.run.state[name])), head_keys(made.learn.model)
        assert head and all(trained) and all(torch.equal(before[k], v) for k,v in learnt.items() if k not in head)
        assert not any(torch.equal(before[k], learnt[k]) for k in head)
    assert len(seen) == 2

def test_the_same_twice_and_nothing_written_into_the_runs(made, lines):
    def files(): return {str(f): f.stat().st_mtime_ns for f in made.compared.rglob('*') if f.is_file()}
    def free(o): return {k: v for k,v in o.items() if k not in ('seconds', 'started', 'command')}
    before, state = files(), torch.get_rng_state()
    again = made.second()
    assert list(map(free, again)) == list(map(free, lines)) and files() == before
    assert torch.equal(torch.get_rng_state(), state) and list(map(free, read_lines('record.jsonl'))) == list(map(free, again))

def test_steps_count(made, lines):
    longer = results(made.second([made.arm('erm', 0)], steps=9))[0]
    usual = next(o for o in results(lines) if (o['arm'], o['seed']) == ('erm', 0))
    assert (longer['second'], longer['first_after']) != (usual['second'], usual['first_after'])

def row(arm, seed, second, before=.5, after=.4, **more):
    return dict(kind='result', arm=arm, seed=seed, arch='net', second=second, first_before=before, first_after=after,
                steps=3, split_sha256='s', initial_sha256=str(seed)) | more

def test_the_table_by_hand():
    rows = [row('erm', 0, .1), row('erm', 1, .2), row('mine', 0, .5, after=.1), row('mine', 1, .7),
            row('fresh', 0, .3, None, None), row('fresh', 1, .3, None, None)]
    _,erm,mine,fresh = second_table(rows)
    assert erm == ['erm', 2, '50.0%', '40.0%', '15.0%', ''] and mine[:5] == ['mine', 2, '50.0%', '25.0%', '60.0%']
    assert mine[5].startswith('+45.0 [') and fresh[2:4] == ['', ''] and fresh[5].startswith('+15.0 [')
    with pytest.raises(RunError, match='another split'): second_table([row('erm', 0, .1), row('mine', 0, .2, split_sha256='t')])

def test_what_is_wrong_is_said_before_anything_is_trained(made, tmp_path, monkeypatch):
    monkeypatch.setattr(lab, 'learn_second', lambda *_: pytest.fail('trained'))
    (tmp_path/'notes.jsonl').write_text('{"mine": 1}\n')
    for words,error,kw in (("task='latr'.*'later'", ValueError, dict(task='latr')), ('steps=0', ValueError, dict(steps=0)),
                           ('not the folder of a run', RunError, dict(runs=[tmp_path])),
                           ('not a record of second', ValueError, dict(out=tmp_path/'notes.jsonl')),
                           ('is a folder', ValueError, dict(out=tmp_path))):
        with pytest.raises(error, match=words): made.second(**kw)
    monkeypatch.setattr(lab, 'splits_of', lambda *_: dict(test=[]))
    with pytest.raises(RunError, match="task='later'.*no test images"): made.second()
    (tmp_path/'wrong.ini').write_text('[data:later]\nsauce = shortcut_digits\n')
    with pytest.raises(SettingsError, match='sauce'): task_data('later', tmp_path/'wrong.ini')

def test_command(made, monkeypatch, capsys):
    args = 'transfer', made.arm('erm', 0), '--task', 'later', '--settings', made.settings, '--data', made.data
    command(monkeypatch, *args, '--steps', 2, '--out', 'b.jsonl')
    head,*rest = read_lines('b.jsonl')
    assert head['task_steps'] == 2 and [r['arm'] for r in rest] == ['erm', 'fresh']
    assert head['command'].startswith('python -m studies transfer') and 'record   b.jsonl' in capsys.readouterr().out
    with pytest.raises(SystemExit, match='not the folder of a run'): command(monkeypatch, 'transfer', 'nowhere', *args[2:])
