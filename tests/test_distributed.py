"""Distributed fits: two real processes on the CPU (gloo), started twice for all tests, hold the same copies and end together."""
import json
import os
import socket
from pathlib import Path

import numpy as np
import pytest

from kit import Forked, cb_of, make_learner, make_shapes, quiet_cb, shapes_dls
from proxy_attention.audit import audit
from proxy_attention.store import read_manifest

pytest.importorskip('accelerate', reason="fastai's distrib_ctx needs accelerate")

WORKER = Path(__file__).with_name('distributed_worker.py')
SAME = 'no_regret', 'saved', 'unsaved', 'resume', 'full_disk', 'shortcut', 'probe', 'stages'
ENV = dict(os.environ, CUDA_VISIBLE_DEVICES='', PYTHONPATH=os.pathsep.join([str(WORKER.parent), str(WORKER.parents[1]), os.environ.get('PYTHONPATH', '')]))

@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp('distributed')
    make_shapes(root/'shapes')
    return root

def two_processes(scenarios, folder):
    "What torchrun would start, without its own seconds: how both have ended"
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = str(s.getsockname()[1])
    env = dict(ENV, WORLD_SIZE='2', LOCAL_WORLD_SIZE='2', MASTER_ADDR='127.0.0.1', MASTER_PORT=port)
    script = f"import runpy; runpy.run_path({str(WORKER)!r}, run_name='__main__')"
    both = [Forked(script, scenarios, folder, env=dict(env, RANK=r, LOCAL_RANK=r)) for r in '01']
    return [p.wait(300) for p in both]

@pytest.fixture(scope='module')
def found(folder):
    "What the scenarios of the worker found, by process"
    names = ['helpers', *SAME, 'error', 'outside', 'undone', 'silent']
    for done in two_processes(','.join(names), folder): assert done.returncode == 0, done.stderr[-5000:]
    return [json.loads((folder/f'found-{r}.json').read_text()) for r in (0, 1)]

@pytest.mark.parametrize('scenario', SAME)
def test_all_processes_hold_the_same(found, scenario):
    first,second = ({k: v for k,v in f[scenario].items() if k not in ('drawn', 'locked', 'without', 'with')} for f in found)
    assert first == second

def test_no_regret(found):
    for f in found:
        got = f['no_regret']
        assert got['with'] == got['without'], "weights and random streams, to the bit"
        assert got['verdict'] != 'shortcut' and got['steps'] >= 4 and got['same_dls']
    first,second = (f['no_regret']['with'] for f in found)
    assert first[0] == second[0] and first[3] != second[3], "one network; numbers of their own"

@pytest.mark.parametrize('way', ['saved', 'unsaved'])
def test_wrong_images_are_copied_and_trained_on(found, folder, way):
    first,second = (f[way] for f in found)
    assert first['first'] == first['wrong'] and 0 < len(first['first']) < 27, "as one evaluation of all images says"
    assert first['n'] == 27 + len(first['proxies']) and first['plain'] and first['bare'] == 'Sequential'
    n = 27 + len(first['first'])
    drawn = first['drawn'][1] + second['drawn'][1] # while the second fit trains
    assert set(drawn) == set(range(n)) and len(drawn) == n + n % 2 and len(first['drawn'][1]) == len(second['drawn'][1])

def test_files_are_written_once(found, folder):
    rows = (folder/'proposal_True'/'manifest.jsonl').read_text().splitlines()
    assert len(rows) == len(found[0]['saved']['first']) + len(found[0]['saved']['proxies']) == found[0]['resume']['n']
    assert [f['saved']['locked'] for f in found] == [f['resume']['locked'] for f in found] == [True, False], "one process holds the folder"
    assert len(list((folder/'proposal_False').glob('*.npz'))) == 2 and not list((folder/'proposal_False').glob('*.png'))
    assert found[0]['saved']['items'] == found[0]['unsaved']['items'], "the same pixels with files and without"

def test_a_shortcut_is_replaced(found):
    first,second = (f['shortcut'] for f in found)
    assert first['report']['verdict']['name'] == 'shortcut' and len(first['proxies']) == first['n'] == 384 and first['replaced'] and first['back']
    assert set(first['drawn'][0] + second['drawn'][0]) == set(range(384)) and not set(first['drawn'][0]) & set(second['drawn'][0])

def test_a_probe_finds_what_scouts_do_not(found):
    got = found[0]['probe']
    assert got['report']['verdict']['name'] == 'shortcut' and got['report']['verdict']['counts']['control'] is not None
    assert len(got['proxies']) == 120 and got['report']['steps'] == 1

def test_one_clock_and_one_log(found):
    for f in found:
        got = f['stages']
        assert got['stop'] == ['', '', 'cycles done'], "the second process's clock would have ended it"
        assert got['labels'] == [i % 3 for i in range(24)] and any(got['ever_wrong']), "what both have seen"

def test_an_error_ends_all_and_the_next_fit_goes_well(found):
    first,second = (f['error'] for f in found)
    assert (first['type'], second['type']) == ('RankError', 'OSError') and 'no such disk' in second['text']
    assert 'process 1 of 2 failed, and all stop with it: OSError: no such disk' in first['text']
    assert first['after'] == second['after'] and len(first['after']['proxies']) == 27

def test_a_full_disk_is_met_alike(found):
    assert 'max_gb' in found[0]['full_disk']['why'] and found[0]['full_disk']['copies'] == 0

def test_a_fit_that_is_not_distributed_is_refused_and_so_is_a_report_by_two(found):
    for f in found:
        fit,report = f['outside']
        assert 'distrib_ctx' in fit and 'made by one process, here are 2' in report

def test_an_error_leaves_the_learner_distributed(found):
    assert all(f['undone'] == [True] for f in found)

def test_a_silent_process_is_given_up(found):
    assert 'was silent for 0:00:01' in found[0]['silent']

def test_helpers(found):
    first,second = (f['helpers'] for f in found)
    told = ('only_second', 'share_error', 'rank', 'outside', 'odd')
    assert {k: v for k,v in first.items() if k not in told} == {k: v for k,v in second.items() if k not in told}
    assert (first['rank'], second['rank'], first['n']) == (0, 1, 2)
    assert first['exchange'] == [0, 1] and first['same'] == 0 and first['slow'] == 'inside' and first['then'] == 'well'
    assert first['shares'] == [[0, 1], [2, 3, 4]] and first['one'] == [[7]] and first['none'] == []
    assert second['only_second'] == 'ValueError: second' and first['only_second'].endswith('process 1 of 2 failed, and all stop with it: ValueError: second')
    assert second['share_error'] == first['outer'] == first['first_error'] == "KeyError: 'own'" and 'RankError' in first['share_error']
    assert first['odd'] == 'Odd: 1 and 2' and second['odd'] == 'RankError: Odd: 1 and 2'
    assert first['lost'].startswith('RankError: another process') and first['other'] == 'RuntimeError: shapes differ'
    assert first['inside'] == second['inside'] == first['outside'] != second['outside'], "the second network has its own statistics again"

def test_a_killed_process_ends_the_other_and_the_folder_can_be_resumed(folder, monkeypatch):
    ended = two_processes('killed', folder) # torchrun would end the first itself
    assert [p.returncode for p in ended] == [1, -9]
    assert 'RankError' in ended[0].stderr and 'another process of this distributed fit has ended' in ended[0].stderr
    assert len(read_manifest(folder/'killed')) == 27
    monkeypatch.chdir(folder)
    learn = make_learner(lambda: shapes_dls(folder/'shapes'), quiet_cb(path='killed', select=None))
    assert cb_of(learn).resume() == 27 and np.isin(learn.proxies['cycle'], 1).all()
    learn.fit(1, 1e-3)
    assert len(learn.dls.train_ds) == 54
    learn.remove_proxies()
    assert audit('killed').problems == []
