"""The harness that stops runs at random moments: it tells of one that doesn't recover."""
import importlib.util
import os
import sys
from pathlib import Path

import pytest

from proxy_attention.store import ProxyStore

pytest.importorskip('cleanlab')
pytestmark = [pytest.mark.skipif(not hasattr(os, 'fork'), reason="needs fork"), pytest.mark.filterwarnings('ignore:.*fork.*')]


class Halfway:
    "Draws the middle; what was killed is not killed again"
    def random(self): return 1.
    def randint(self, low, high): return (low + high)//2
    def choice(self, among): return among[0]

@pytest.fixture(scope='module')
def harness():
    file = Path(__file__).resolve().parents[1]/'.ci'/'torture.py'
    spec = importlib.util.spec_from_file_location('torture', file)
    sys.modules['torture'] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module

@pytest.fixture(scope='module')
def script(harness, tmp_path_factory):
    "A user's script with a folder of its own"
    return harness.Torture('script', tmp_path_factory.mktemp('torture'), Halfway())

def kill(harness, script, name, k):
    return script.killed(script.new(name), harness.Moment('torn', k))

def test_what_recovers_is_the_same(harness, script):
    assert harness.audit(script.whole/'disk'/'copies', near=None)
    for k in (3, script.end.counts['torn']):
        got = kill(harness, script, f'fine{k}', k)
        assert [kind for kind,*_ in got.stops] == ['torn'] and not got.wrong

def test_a_broken_recovery_is_noticed(harness, script, monkeypatch):
    "Half-written files stay where they are"
    monkeypatch.setattr(ProxyStore, '_mend', lambda self: None)
    assert 'files' in kill(harness, script, 'broken', 5).wrong

def test_a_full_disk(harness, script, monkeypatch):
    "Told, and made good when there is room again"
    monkeypatch.setattr(script, 'scenario', harness.scenarios['script_full'])
    script.n = 0
    got = script.failed(script.new('full'))
    assert [kind for kind,*_ in got.stops] == ['call'] and not got.wrong

def test_a_silent_fault_is_noticed(harness, script):
    end = harness.End(0, 1., 'copies', {}, 'all is well')
    assert 'without a warning' in harness.told(end, 'script_full') and 'exit code 0' in harness.told(end, 'run_full')

def test_no_folder_of_a_machine(script): assert script.shown(f"can't read {script.folder}/try/disk/out/state.json: gone") == "can't read .../state.json: gone"

def test_record(harness):
    rows = [dict(scenario='run', tries=3, stops=4, first=0.1, last=0.95, same=2)]
    assert harness.table(rows).splitlines()[-1].split() == ['run', '3', '4', '10%', '95%', '2', 'of', '3']
