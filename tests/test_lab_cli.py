"""The command line: help at once, one line and exit code 2 for what a user got wrong."""
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from sklearn.datasets import load_digits
from typer.testing import CliRunner

from proxy_attention import __version__
from proxy_attention.lab.cli import app

repo = Path(__file__).resolve().parents[1]


def run(*args, **kw): return CliRunner().invoke(app, [str(a) for a in args], **kw)

def wrong(*args, **kw):
    got = run(*args, **kw)
    assert got.exit_code == 2, (got.output, got.exception)
    assert 'Traceback' not in got.output and len(got.output.strip().splitlines()) == 1
    return got.output


def test_version(): assert run('--version').output.strip() == __version__

@pytest.mark.parametrize('args', [['--help'], ['-h'], ['demo', '--help'], ['purge', '--help']])
def test_help(args):
    got = run(*args)
    assert got.exit_code == 0 and 'Usage' in got.output
    if len(args) > 1: assert 'Examples' in got.output and f'proxy-attention {args[0]}' in got.output

def test_no_command():
    got = run()
    assert 'Usage' in got.output and got.exit_code in (0, 2)

def test_unknown_command(): assert run('dmo').exit_code == 2

def test_help_is_quick_and_light(tmp_path):
    code = "import sys; sys.argv = ['proxy-attention', '--help']\nfrom proxy_attention.lab.cli import main\n" \
           "try: main()\nexcept SystemExit: pass\nassert not {'torch', 'fastai', 'matplotlib', 'pandas', 'numpy'} & set(sys.modules), 'heavy import'"
    env = os.environ | {'PYTHONPATH': str(repo)}
    times = []
    for _ in range(3):
        start = time.perf_counter()
        subprocess.run([sys.executable, '-c', code], check=True, env=env, cwd=tmp_path, capture_output=True)
        times.append(time.perf_counter() - start)
    assert min(times) < 1

@pytest.mark.parametrize('args, words', [
    (['--policy', 'proposl'], ["proxy='proposl'", "'proposal'"]), (['--set', 'aera=0.1'], ["'area'"]), (['--set', 'area'], ['key=value']),
    (['--set', 'area=7'], ["area='7'"]), (['--settings', 'nowhere.ini'], ['nowhere.ini'])])
def test_settings_errors(tmp_path, monkeypatch, args, words):
    monkeypatch.chdir(tmp_path)
    said = wrong('demo', *args)
    assert all(w in said for w in words)
    assert list(tmp_path.iterdir()) == [], "something was written before the settings were checked"

def test_bad_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path/'settings.ini').write_text('[experiment:demo]\nlr = fast\n')
    assert "lr='fast'" in wrong('demo') or 'lacks' in wrong('demo')

@pytest.mark.filterwarnings('ignore')
def test_late_errors(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert 'gradcma' in wrong('demo', '--set', 'method=gradcma') and not (tmp_path/'demo').exists()
    assert 'seed=-1' in wrong('demo', '--seed', '-1') and not (tmp_path/'demo').exists()
    (tmp_path/'mine').mkdir()
    (tmp_path/'mine/thesis.txt').write_text('all of it')
    assert 'mine' in wrong('demo', '--out', 'mine') and (tmp_path/'mine/thesis.txt').read_text() == 'all of it'
    assert 'thesis' in wrong('demo', '--out', 'mine/thesis.txt')

def test_a_bug_keeps_its_traceback(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    def broken(*args, **kw): return {}['bug']
    monkeypatch.setattr('proxy_attention.lab.config.load_experiment', broken)
    got = run('demo')
    assert isinstance(got.exception, KeyError) and got.exit_code == 1

def test_interrupt(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    def stopped(*args, **kw): raise KeyboardInterrupt
    monkeypatch.setattr('proxy_attention.lab.config.load_experiment', stopped)
    assert run('demo').exit_code == 130

def test_purge(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert '.proxies' in wrong('purge') # There is none
    mine = tmp_path/'photos'
    mine.mkdir()
    (mine/'cat.png').write_bytes(b'mine')
    assert 'nothing deleted' in run('purge', mine, '--yes').output and (mine/'cat.png').read_bytes() == b'mine'
    got = run('purge', mine, input='n\n')
    assert got.exit_code == 0 and 'nothing deleted' in got.output

small = ['--set', 'n_train=200', '--set', 'n_valid=50', '--set', 'width=4', '--set', 'bs=20']

@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('policy, more', [('early_look', ['--set', 'look_after=8 steps', '--set', 'proxy.epochs=1']),
                                          ('proposal', ['--set', 'proxy.epochs=1', '--set', 'cycles=2'])])
def test_the_demo(tmp_path, monkeypatch, policy, more):
    x,y = load_digits(return_X_y=True)
    monkeypatch.setattr('sklearn.datasets.load_digits', lambda return_X_y: (x[:400], y[:400])) # Quicker
    monkeypatch.setattr('proxy_attention.lab.digits.n_digits', 400)
    monkeypatch.chdir(tmp_path)
    def demo():
        got = run('demo', '--policy', policy, *small, *more)
        assert got.exit_code == 0, (got.output, got.exception)
        lines = [json.loads(line) for line in (tmp_path/'demo/record.jsonl').read_text().splitlines()]
        return got.output, [{k: v for k,v in o.items() if not k.startswith('seconds') and k != 'peak_ram_mb'} for o in lines]
    output,lines = demo()
    for word in ('arm', policy, 'control', 'test images without the shortcut', 'demo/gallery.png', 'demo/report.html'):
        assert word in output.replace(os.sep, '/')
    fits = [o for o in lines if o['kind'] == 'fit']
    assert sum(f['steps'] for f in fits if f['arm'] == 'control') == sum(f['steps'] for f in fits if f['arm'] == policy) > 0
    assert [f['proxies'] for f in fits][0] == 0 and fits[-1]['proxies'] == 0
    for f in fits: assert 0 <= f['on_digit'] + f['on_shortcut'] <= 1 and 0 <= f['test_accuracy'] <= 1 and f['items'] == 200 + f['proxies']
    config = json.loads((tmp_path/'demo/config.json').read_text())
    assert config['settings']['proxy']['select'] == {'early_look': 'all', 'proposal': 'wrong'}[policy] and config['settings']['data']['n_train'] == 200
    page = (tmp_path/'demo/report.html').read_text()
    assert 'data:image/png;base64,' in page and policy in page
    if policy == 'proposal': return
    (tmp_path/'demo/notes.txt').write_text('mine')
    _,again = demo() # Replaces the former, reuses its data, leaves others' files alone
    assert again == lines, "the same seed gave another run"
    assert (tmp_path/'demo/notes.txt').read_text() == 'mine'
    assert sorted(p.name for p in tmp_path.iterdir()) == ['demo']
