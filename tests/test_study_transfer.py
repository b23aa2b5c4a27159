"""A second task: the body of a finished run with a new head, then the first test again with the old head; arms are paired by seed, and a run is read, not written."""
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_study import command
from test_lab_compare import SMALL
from lab_kit import INI
from test_lab_experiment import cache  # noqa: F401

from studies import transfer as lab
from proxy_attention.lab.runs.job import finished_run
from proxy_attention.lab.compare.comparison import compare
from proxy_attention.lab.config.problems import SettingsError
from proxy_attention.lab.runs.checkpoint import RunError
from proxy_attention.files import read_lines
from proxy_attention.lab.models.heads import head_keys
from studies.transfer import second_task, second_text, summarise, task_data
from proxy_attention.lab.metrics.stats import paired_t

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
    def __init__(self, top, cache): # noqa: F811
        self.top, self.data, self.settings = top, cache, top/'settings.ini'
        self.settings.write_text(INI + LATER)
        self.compared = compare('try', ['early'], 2, self.settings, top/'compared', SMALL, cache, jobs=1, say=lambda *_: None)
    def arm(self, arm, seed): return self.compared/'arms'/arm/str(seed)
    def second(self, runs=None, task='later', steps=3, **kw): return second_task(runs or [self.compared], task, steps, settings=self.settings, data=self.data, **kw)

@pytest.fixture(scope='module')
def made(tmp_path_factory, cache): # noqa: F811
    return Made(tmp_path_factory.mktemp('second'), cache)

@pytest.fixture(scope='module')
def lines(made): return made.second()

def of(lines, kind): return [o for o in lines if o['kind'] == kind]

def test_a_line_a_run_and_one_a_fresh_network(lines, made):
    assert [o['kind'] for o in lines] == ['second', *['result']*6, *['verdict']*3]
    assert [(o['arm'], o['seed']) for o in of(lines, 'result')] == [(a, s) for a in ('early', 'erm', 'fresh') for s in (0, 1)]
    for r in of(lines, 'result')[:4]: assert r['first_before'] == read_lines(made.arm(r['arm'], r['seed']))[-1]['test']['accuracy'] and r['seconds'] > 0
    assert all(r['first_before'] is r['first_after'] is None for r in of(lines, 'result')[4:])
    assert lines[0]['task'] == 'later' and lines[0]['task_settings']['seed'] == 1 and lines[0]['task_steps'] == 3

def test_the_body_is_the_runs_and_the_head_is_new(made, monkeypatch):
    "Before its first step the network is the finished run's but for its head, and all of it is trained"
    seen, real = [], lab.epoch_of
    def spy(dls, steps):
        seen.append((made.learn.model.state_dict() | {}, [p.requires_grad for p in made.learn.model.parameters()], steps))
        seen[-1] = ({k: v.clone() for k,v in seen[-1][0].items()}, *seen[-1][1:])
        return real(dls, steps)
    make = lab.make_learn
    def keep(*args, **kw):
        made.learn = make(*args, **kw)
        return made.learn
    monkeypatch.setattr(lab, 'make_learn', keep)
    monkeypatch.setattr(lab, 'epoch_of', spy)
    made.second([made.arm('erm', 0)])
    job = finished_run(made.arm('erm', 0), made.data)
    for (before,trained,steps),name in zip(seen, ('weights', 'initial')):
        learnt, head = load_file(job.run.weights(job.run.state[name])), head_keys(made.learn.model)
        assert head == {'1.2.weight', '1.2.bias'} and all(trained) and steps == 3
        assert all(torch.equal(before[k], v) for k,v in learnt.items() if k not in head) and not any(torch.equal(before[k], learnt[k]) for k in head)
    assert len(seen) == 2

def test_what_is_kept_of_the_first_task_is_measured_with_its_old_head(made):
    "A learning rate of next to nothing changes nothing: the first task is as it was; a high one destroys it"
    still = of(made.second([made.arm('early', 1)], lr=1e-12), 'result')[0]
    moved = of(made.second([made.arm('early', 1)], lr=1., steps=5), 'result')[0]
    assert still['first_after'] == pytest.approx(still['first_before'], abs=.11), "batch normalisation follows the new images even so"
    assert (moved['first_after'], moved['second']) != (still['first_after'], still['second'])

def test_the_same_twice_and_nothing_written(made, lines):
    files = lambda: {str(f): f.stat().st_mtime_ns for f in made.compared.rglob('*') if f.is_file()}
    before, free = files(), lambda o: {k: v for k,v in o.items() if k not in ('seconds', 'started')}
    state = torch.get_rng_state()
    again = made.second()
    assert list(map(free, again)) == list(map(free, lines)) and files() == before and torch.equal(torch.get_rng_state(), state)

def test_steps_count(made, lines): assert of(made.second([made.arm('erm', 0)], steps=9), 'result')[0]['second'] != next(o for o in of(lines, 'result') if (o['arm'], o['seed']) == ('erm', 0))['second']

def row(arm, seed, second, before=.5, after=.4, **more): return dict(kind='result', arm=arm, seed=seed, arch='net', second=second, first_before=before, first_after=after, steps=3, split_sha256='s', initial_sha256=str(seed)) | more

def test_summary():
    rows = [row('erm', 0, .1), row('erm', 1, .2), row('mine', 0, .5, after=.1), row('mine', 1, .7), row('fresh', 0, .3, None, None), row('fresh', 1, .3, None, None), row('alone', 7, .3)]
    by = {v['arm']: v for v in summarise(rows)}
    d = paired_t([.5, .7], [.1, .2])
    assert by['mine']['against_erm']['second'] | {'words': ''} == dict(words='', **d.to_dict() | dict(high=1)) and by['mine']['mean'] == dict(first_before=.5, first_after=.25, second=.6)
    assert list(by['fresh']['against_erm']) == ['second'] and by['fresh']['mean']['first_after'] is None and 'against_erm' not in by['erm'] and by['alone']['against_erm'] == {}
    text = second_text([dict(kind='second', task='later', task_steps=3), *rows, *by.values()])
    assert 'mine, second task: ' in text and '45.0 points' in text and '[data:later], 3 optimizer steps' in text and '–' in text
    unfair = summarise([row('erm', 0, .1), row('mine', 0, .2, split_sha256='t')])
    assert 'another split' in second_text([dict(kind='second', task='later', task_steps=3), *unfair])

def test_what_is_wrong_is_said_before_anything_is_trained(made, tmp_path, monkeypatch):
    monkeypatch.setattr(lab, 'learn_second', lambda *_: pytest.fail('trained'))
    (tmp_path/'notes.jsonl').write_text('{"mine": 1}\n')
    for words,error,kw in (("task='latr'.*'later'", ValueError, dict(task='latr')), ('steps=0', ValueError, dict(steps=0)), ('lr=0', ValueError, dict(lr=0)), ('not the folder of a run', RunError, dict(runs=[tmp_path])), ('are both erm', RunError, dict(runs=[made.arm('erm', 0), made.arm('erm', 0)])),
                           ('not a record of second', ValueError, dict(out=tmp_path/'notes.jsonl')), ('is a folder', ValueError, dict(out=tmp_path))):
        with pytest.raises(error, match=words): made.second(**kw)
    monkeypatch.setattr(lab, 'splits_of', lambda *_: dict(test=[]))
    with pytest.raises(RunError, match="task='later'.*no test images"): made.second()
    (tmp_path/'wrong.ini').write_text('[data:later]\nsauce = shortcut_digits\n')
    with pytest.raises(SettingsError, match='sauce'): task_data('later', tmp_path/'wrong.ini')

def test_command(made, monkeypatch, capsys):
    args = 'transfer', made.arm('erm', 0), '--task', 'later', '--steps', 2, '--settings', made.settings, '--data', made.data
    command(monkeypatch, *args)
    file, said = Path('runs/second_later.jsonl'), capsys.readouterr().out
    assert second_text(file) in said and f'record   {file}' in said and read_lines(file)[0]['task_steps'] == 2
    command(monkeypatch, *args, '--lr', 0.02, '--out', 'b.jsonl')
    head, *rest = read_lines('b.jsonl')
    assert [r['arm'] for r in rest if r['kind'] == 'result'] == ['erm', 'fresh'] and head['task_lr'] == 0.02
    assert head['command'].startswith('python -m studies transfer') and '--lr 0.02' in head['command']
    before = os.listdir()
    with pytest.raises(SystemExit, match='not the folder of a run'): command(monkeypatch, 'transfer', 'nowhere', *args[2:])
    assert os.listdir() == before
