"""The command line: help at once, one line and exit code 2 for what a user got wrong."""
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
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
    pytest.importorskip('proxy_attention.cycles')
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
