"""The command line: help at once, one line and exit code 2 for what a user got wrong."""
import contextlib
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import filelock
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings as hypo
from hypothesis import strategies as st
from compare_kit import make_comparison
from lab_kit import make_run
from PIL import Image
from typer.testing import CliRunner

from test_lab_config import good, keys, mixed, texts, values

from lab_kit import patch_name
from proxy_attention.lab.runs.audit import audit_run
from proxy_attention import __version__
from proxy_attention.lab.cli import app
from proxy_attention.lab.config.file import package_settings
from proxy_attention.lab.report.records import read_records
from proxy_attention.lab.report.run_verdict import summary, verdict
from proxy_attention.store import MARKER

pytestmark = pytest.mark.usefixtures('drawn_once')

repo = Path(__file__).resolve().parents[1]


def run(*args, **kw): return CliRunner().invoke(app, [str(a) for a in args], **kw)

def wrong(*args, **kw):
    got = run(*args, **kw)
    assert got.exit_code == 2, (got.output, got.exception)
    assert 'Traceback' not in got.output and len(got.output.strip().splitlines()) == 1
    return got.output


def test_version(): assert run('--version').output.strip() == __version__

commands = ['demo', 'list', 'init', 'check', 'run', 'compare', 'sweep', 'report', 'diagnose', 'audit', 'clean']

@pytest.mark.parametrize('args', [['--help'], ['-h'], *([c, '--help'] for c in commands)])
def test_help(args):
    got = run(*args)
    assert got.exit_code == 0 and 'Usage' in got.output
    if len(args) > 1: assert 'Examples' in got.output and f'proxy-attention {args[0]}' in got.output
    if len(args) > 1 and args[0] != 'demo': assert 'Exit codes' in got.output and '--json' in got.output

def test_commands_are_all_known(): assert {c.name or c.callback.__name__ for c in app.registered_commands} == set(commands)

def test_as_a_module():
    got = subprocess.run([sys.executable, '-m', 'proxy_attention.lab', '--version'], capture_output=True, text=True, env=os.environ | {'PYTHONPATH': str(repo)})
    assert got.stdout.strip() == __version__

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
    (['--policy', 'proposl'], ["policy='proposl'", "'proposal'"]), (['--set', 'aera=0.1'], ["'area'"]), (['--set', 'area'], ['key=value']),
    (['--set', 'area=7'], ['area=7.0 is out of range']), (['--set', 'area=much'], ["area='much'"]), (['--settings', 'nowhere.ini'], ['nowhere.ini'])])
def test_settings_errors(tmp_path, monkeypatch, args, words):
    monkeypatch.chdir(tmp_path)
    said = wrong('demo', *args)
    assert all(w in said for w in words)
    assert list(tmp_path.iterdir()) == [], "something was written before the settings were checked"

def test_bad_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path/'settings.ini').write_text('[experiment:demo]\nlr = fast\n')
    got = run('demo')
    lines = got.output.splitlines()
    assert got.exit_code == 2 and len(lines) == 3 and "lr='fast'" in lines[2] and all(line.startswith('proxy-attention: settings.ini, line') for line in lines)

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
    monkeypatch.setattr('proxy_attention.lab.config.settings.load_experiment', broken)
    got = run('demo')
    assert isinstance(got.exception, KeyError) and got.exit_code == 1

def test_interrupt(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    def stopped(*args, **kw): raise KeyboardInterrupt
    monkeypatch.setattr('proxy_attention.lab.config.settings.load_experiment', stopped)
    assert run('demo').exit_code == 130

small = ['--set', 'data.size=40', '--set', 'n_train=40', '--set', 'n_valid=20', '--set', 'n_test=20', '--set', 'width=4', '--set', 'bs=20']

@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('policy, more', [('default', ['--set', 'experiment.epochs=2']), ('proposal', ['--set', 'proxy.epochs=1', '--set', 'cycles=2'])])
def test_the_demo(tmp_path, monkeypatch, policy, more):
    monkeypatch.chdir(tmp_path)
    args = ['demo', '--policy', policy, '--jobs', '1', *small, *more]
    got = run(*args)
    assert got.exit_code == 0, (got.output, got.exception)
    assert all(word in got.output.replace(os.sep, '/') for word in ('erm seed 0', f'{policy} seed 0', 'One seed, right on the test', 'demo/report.html'))
    text = (tmp_path/'demo/record.jsonl').read_text()
    head,plain,own,*_ = map(json.loads, text.splitlines())
    assert (plain['arm'], own['arm']) == ('erm', policy) and plain['steps'] == own['steps'] > 0
    assert (own['verdict'] is None) == (policy == 'proposal') and str(tmp_path) not in text, "a record names this machine's folders"
    assert shlex.split(head['command'])[:4] == ['proxy-attention', 'demo', '--policy', policy] and '--set' in head['command']
    told = json.loads(run(*args, '--json').stdout)
    assert told['done'] and told['arms'] == ['erm', policy] and Path(told['page']).is_file()


# -- the settings file ----------------------------------------------------------------------------------------------------------------------------

ini = """\
[DEFAULT]
seed = 3
[data:digits]
# Small digits. And more words.
source = shortcut_digits
n_train = 60
n_valid = 20
n_test = 30
size = 40
bs = 20
[model:net]
arch = small_cnn
width = 4
[proxy:unsure]
scout = off
select = low_confidence
share = 0.2
[experiment:try]
# One to try
data = digits
model = net
proxy = unsure
epochs = 1
lr = 0.01
threads = 1
"""

@pytest.fixture
def here(tmp_path, monkeypatch):
    "A working directory with a settings file"
    monkeypatch.chdir(tmp_path)
    (tmp_path/'settings.ini').write_text(ini)
    return tmp_path

def answer(*args, code=0):
    "The one JSON document that a command prints"
    got = run(*args, '--json')
    assert got.exit_code == code, (got.output, got.exception)
    return json.loads(got.stdout)

def test_init(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run('init').exit_code == 0 and (tmp_path/'settings.ini').read_bytes() == cli_settings()
    (tmp_path/'settings.ini').write_text('mine')
    assert 'settings.ini' in wrong('init') and (tmp_path/'settings.ini').read_text() == 'mine'
    (tmp_path/'study').mkdir()
    assert answer('init', '--out', 'study')['file'] == str(Path('study/settings.ini')) and (tmp_path/'study/settings.ini').is_file()
    assert run('init', '--out', 'other.ini').exit_code == 0 and run('check', '--settings', 'other.ini').exit_code == 0
    assert 'no folder' in wrong('init', '--out', 'no/where.ini') and 'nowhere' not in os.listdir()

def test_init_for_a_folder_of_images(tmp_path, monkeypatch):
    "A short file with a comment for every key, which is right and runs as it is; what is counted and chosen follows the folder"
    monkeypatch.chdir(tmp_path)
    folder_of_images(tmp_path/'pictures', 12)
    got = run('init', '--images', 'pictures')
    assert got.exit_code == 0 and 'proxy-attention run images trains' in got.output
    text = (tmp_path/'settings.ini').read_text()
    lines = text.splitlines()
    assert len(lines) <= 30 and all(before.startswith('# ') for before,line in zip(lines, lines[1:]) if ' = ' in line and line[0] != '#')
    assert '24 images of 2 classes (cat, dog): 14 for training, 5 for validation, 5 for the test' in text and 'path = pictures\n' in text and 'arch = small_cnn' in text
    assert run('check').exit_code == 0
    told = answer('run', 'images', '--set', 'width=4', '--set', 'experiment.epochs=1', '--set', 'data.size=16', '--set', 'bs=4')
    assert told['done'] and told['experiment'] == 'images' and told['audit_ok'] is True
    assert 'is there already' in wrong('init', '--images', 'pictures') and (tmp_path/'settings.ini').read_text() == text

def test_init_chooses_by_what_the_images_are(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder_of_images(tmp_path/'photos', 20, side=130, classes=('ant', 'bee', 'cow'))
    (tmp_path/'study').mkdir()
    for installed,arch,size in ((True, 'tf_efficientnet_lite0', '128'), (False, 'small_cnn', '64')):
        monkeypatch.setattr('proxy_attention.lab.commands.images._has_lite0', lambda installed=installed: installed)
        file = tmp_path/'study'/f'{arch}.ini'
        assert answer('init', '--images', 'photos', '--out', file)['experiment'] == 'images'
        text = file.read_text()
        assert f'arch = {arch}\n' in text and f'size = {size}\n' in text and 'of 3 classes' in text and f"path = {tmp_path/'photos'}\n" in text and len(text.splitlines()) <= 30
        assert ('weights = imagenet' in text) == installed == ("proxy_attention[lite0]" not in text)
        assert run('check', '--settings', file).exit_code == 0

@pytest.mark.parametrize('images, words', [('nowhere', 'is not there'), ('notes.txt', 'is a file'), ('one', 'at least two classes'), ('few', "class 'dog' has 2 images"), ('flat', 'not in the folder of a class'),
                                           ('empty', 'no images'), ('broken', "can't be read")])
def test_init_writes_nothing_for_what_it_cannot_use(tmp_path, monkeypatch, images, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path/'notes.txt').write_text('mine')
    (tmp_path/'empty').mkdir()
    folder_of_images(tmp_path/'one', 9, classes=('cat',))
    folder_of_images(tmp_path/'few', 9)
    for i in range(7): (tmp_path/f'few/dog/{i:02}.png').unlink()
    folder_of_images(tmp_path/'flat', 9)
    (tmp_path/'flat/cat/00.png').rename(tmp_path/'flat/00.png')
    for name in ('cat', 'dog'):
        (tmp_path/'broken'/name).mkdir(parents=True)
        for i in range(6): (tmp_path/'broken'/name/f'{i}.png').write_bytes(b'not a picture')
    assert words in wrong('init', '--images', images) and not (tmp_path/'settings.ini').exists()

def cli_settings():
    from proxy_attention.lab.config.file import package_settings
    return package_settings().read_bytes()

def test_check(here):
    got = run('check')
    assert got.exit_code == 0 and got.output == '1 experiment is right (settings.ini)\n'
    assert answer('check') == dict(file='settings.ini', ok=True, experiments=1, sweeps=0, problems=[])
    (here/'other.ini').write_text(ini.replace('= 40', '= tall').replace('share', 'shrae').replace('= unsure', '= unsrue'))
    got = run('check', '--settings', 'other.ini')
    lines = got.stdout.splitlines()
    assert got.exit_code == 2 and len(lines) == 3 and 'line 9' in lines[0] and "'share'" in lines[1] and "'unsure'" in lines[2]
    told = answer('check', '--settings', 'other.ini', code=2)
    assert not told['ok'] and [p['line'] for p in told['problems']] == [9, 17, 22] and told['problems'][0]['value'] == 'tall'

@pytest.mark.parametrize('old, new, line, word', [('= shortcut_digits', '= shortcut_digit', 5, 'shortcut_digits'), ('= shortcut_digits', '= shortcut_digits\nshortcut = sqare', 6, "'square'"), ('= small_cnn', '= smal_cnn', 12, 'small_cnn'),
                                                  ('= low_confidence', '= low_confidnce', None, 'low_confidence'), ('scout = off', 'look_after = 15%', 15, 'no such key')])
def test_check_knows_what_only_the_libraries_know(here, old, new, line, word):
    (here/'settings.ini').write_text(ini.replace(old, new))
    (problem,) = answer('check', code=2)['problems']
    assert word in problem['message'] and (problem['line'] == line or line is None and problem['section'] == 'proxy:unsure')

@pytest.mark.parametrize('more, line, key, words', [
    ('judge = bogus', 26, 'judge', "judge='bogus' is not one of"), ('judge = rollout', 26, 'judge', "judge='rollout' is not for arch='small_cnn'"),
    ('accumulate = 4096', 26, 'accumulate', 'accumulate=4096: Stage 1 has only 3 batches'), ('until = accuracy>=1e999', 26, 'until', 'finite'), ('lr = inf', 25, 'lr', 'finite')])
def test_check_finds_what_would_be_found_after_training(here, more, line, key, words):
    text = ini.replace('lr = 0.01\n', '') if key == 'lr' else ini
    (here/'settings.ini').write_text(text + more + '\n')
    (problem,) = answer('check', code=2)['problems']
    assert words in problem['message'] and (problem['line'], problem['key'], problem['section']) == (line, key, 'experiment:try')

def test_check_finds_too_many_folds(here):
    pytest.importorskip('cleanlab')
    (here/'settings.ini').write_text(ini.replace('share = 0.2', 'label_gate = true\nlabel_folds = 7'))
    (problem,) = answer('check', code=2)['problems']
    assert 'label_folds=7: the smallest class has at most 6 training images' in problem['message'] and (problem['line'], problem['section']) == (18, 'proxy:unsure')
    (here/'settings.ini').write_text(ini.replace('share = 0.2', 'label_gate = true\nlabel_folds = 6'))
    assert run('check').exit_code == 0

def folder_of_images(folder, n=12, side=16, classes=('cat', 'dog')):
    "Small pictures of two classes that differ in colour"
    rng = np.random.default_rng(0)
    for k,name in enumerate(classes):
        (folder/name).mkdir(parents=True)
        for i in range(n):
            picture = rng.integers(0, 120, (side, side, 3)) + np.array([0, 60*k, 120*(1 - k)])
            Image.fromarray(picture.astype(np.uint8)).save(folder/name/f'{i:02}.png')
    return folder

mistakes = [ # (section, the line that is wrong, what a right one says)
    ('data:folder', 'siez = 96', 'size = 96'), ('data:folder', 'valid = many', 'valid = 0.2'),
    ('data:gone', 'path = nowhere', 'path = two'), ('data:odd', 'source = foldr', 'source = folder'),
    ('data:one', 'path = single', 'path = two'), ('data:small', 'bs = 64', 'bs = 4'),
    ('model:net', 'arch = resnet19', 'arch = small_cnn'), ('model:own', 'weights = imagenet', 'weights = none'),
    ('model:file', 'weights = nowhere.pt', 'weights = none'),
    ('proxy:mine', 'method = gradcma', 'method = gradcam'), ('proxy:mine', 'fill = blak', 'fill = black'),
    ('proxy:long', 'scout = 99 steps', 'scout = 2 steps'),
    ('experiment:try', 'lr = fast', 'lr = 0.1'), ('experiment:try', 'model = nett', 'model = net'),
    ('experiment:few', 'judge = bogus', 'judge = gradcam'), ('experiment:few', 'proxy = log', 'proxy = mine'),
    ('sweep:find', 'fill = black, blak', 'fill = black, mean')]
unsaid = {'data:folder': 'source = folder\npath = two', 'data:gone': 'source = folder', 'data:odd': 'path = two',
          'data:one': 'source = folder', 'data:small': 'source = folder\npath = two', 'model:own': 'arch = small_cnn',
          'model:file': 'arch = small_cnn', 'proxy:long': '', 'experiment:try': 'data = folder',
          'experiment:few': 'data = small\nmodel = own', 'experiment:long': 'data = odd\nmodel = net\nproxy = long\nsteps = 20',
          'experiment:base': 'data = small\nmodel = own',
          'sweep:find': 'experiment = base\nscout = 2 steps'}

def with_mistakes(wrong):
    "A settings file with the mistakes `wrong`, and everything else right"
    out = ''
    for section in dict.fromkeys([*(s for s,*_ in mistakes), *unsaid]):
        said = [bad if (section, bad, right) in wrong else right for s,bad,right in mistakes if s == section]
        out += '\n'.join([f'[{section}]', *said, unsaid.get(section, '')]) + '\n'
    return out

@pytest.fixture
def images(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder_of_images(tmp_path/'two', 9)
    folder_of_images(tmp_path/'single', 18, classes=['cat'])
    return tmp_path

def told_lines(folder, wrong):
    "The lines of the file that `check` names, each as it stands there"
    text = with_mistakes(wrong)
    (folder/'settings.ini').write_text(text)
    problems = answer('check', code=2 if wrong else 0)['problems']
    return [text.splitlines()[p['line'] - 1] for p in problems]

def test_check_tells_all_mistakes_in_one_answer(images):
    "Each once; of those that follow from another mistake, none"
    wrong = [m for m in mistakes if m[1] != 'scout = 99 steps'] # How long its fit is isn't known while its data set is wrong
    assert sorted(told_lines(images, wrong)) == sorted(bad for _,bad,_ in wrong)

def test_check_tells_each_mistake_alone(images):
    assert told_lines(images, []) == []
    for m in mistakes: assert told_lines(images, [m]) == [m[1]], m

def test_check_tells_what_values_exclude_each_other(here):
    (here/'settings.ini').write_text(ini.replace('share = 0.2', 'area = 0.1\nthreshold = 0.5'))
    (problem,) = answer('check', code=2)['problems']
    assert 'area or threshold' in problem['message'] and problem['section'] == 'proxy:unsure'

def test_check_knows_a_new_data_set_and_a_new_network(here, monkeypatch):
    "An entry in each dict is enough"
    from proxy_attention.lab.data.sources import datasets
    from proxy_attention.lab.models.zoo import models
    (here/'settings.ini').write_text(ini.replace('= shortcut_digits', '= mine').replace('= small_cnn', '= my_net'))
    assert len(answer('check', code=2)['problems']) == 2
    monkeypatch.setitem(datasets, 'mine', datasets['shortcut_digits'])
    monkeypatch.setitem(models, 'my_net', models['small_cnn'])
    assert answer('check')['ok']

def test_check_leaves_what_is_slow_alone(tmp_path):
    "The packaged settings need neither fastai nor the libraries of networks"
    code = ("import sys; sys.argv = ['proxy-attention', 'check']\nfrom proxy_attention.lab.cli import main\n"
            "try: main()\nexcept SystemExit as e: assert not e.code\n"
            "assert not {'fastai', 'timm', 'torchvision', 'pandas', 'matplotlib'} & set(sys.modules), 'slow import'")
    subprocess.run([sys.executable, '-c', code], check=True, env=os.environ | {'PYTHONPATH': str(repo)}, cwd=tmp_path,
                   capture_output=True)

def test_check_cannot_read(here):
    assert 'nowhere.ini' in answer('check', '--settings', 'nowhere.ini', code=2)['problems'][0]['message']
    (here/'settings.ini').write_text('[data:x\nsource')
    assert run('check', '--settings', 'settings.ini').exit_code == 2

def test_every_value_of_an_experiment(here):
    got = run('list', 'try', '--set', 'share=0.5')
    assert got.exit_code == 0 and 'share = 0.5' in got.output and '# --set share=0.5' in got.output and '# line 6' in got.output and '# default' in got.output and 'line 2 [DEFAULT]' in got.output
    assert 'area = none' in got.output and 'download = false' in got.output
    told = answer('list', 'try', '--set', 'share=0.5')
    assert told['settings']['proxy']['share'] == .5 and dict(kind='data', section='digits', key='bs', value=20, **{'from': None}).keys() - {'from'} <= told['values'][0].keys()
    assert "'try'" in wrong('list', 'tri') and 'name the experiment' in wrong('list', '--set', 'share=0.5')
    got = run('list', 'try', '--set', 'share=half', '--set', 'lr=fast')
    assert got.exit_code == 2 and len(got.output.splitlines()) == 2
    told = answer('list', 'try', '--set', 'share=half', '--set', 'lr=fast', code=2)
    assert len(told['problems']) == 2 and told['error'].count('\n') == 1

def test_list(here):
    make_run(here/'runs'/'done', pictures=0)
    make_run(here/'runs'/'half', until=8, pictures=0)
    (here/'runs'/'else').mkdir()
    (here/'runs'/'else'/'config.json').write_text('nothing of ours')
    got = run('list').output
    assert 'try  digits, net, unsure' in got and 'One to try' in got and 'Small digits\n' in got and 'done' in got and 'stopped at' in got and 'else' not in got
    told = answer('list')
    assert told['experiments'] == [dict(name='try', data='digits', model='net', proxy='unsure', comment='One to try')] and told['data_sets'][0]['comment'] == 'Small digits'
    assert [(r['run'], r['state']) for r in told['runs']] == [('done', 'done'), ('half', 'stopped')] and told['runs'][0]['test_accuracy'] == summary(here/'runs'/'done')['test_accuracy']
    with filelock.FileLock(here/'runs'/'half'/'.lock'): assert answer('list')['runs'][1]['state'] == 'running'
    assert 'no runs in elsewhere' in run('list', '--runs', 'elsewhere').output
    (here/'bad.ini').write_text(ini.replace('share', 'shrae'))
    assert '1 thing is wrong with bad.ini' in run('list', '--settings', 'bad.ini').output and answer('list', '--settings', 'bad.ini')['problems'] == 1

def test_a_damaged_comparison_is_left_out_of_the_list(here):
    make_comparison(here/'runs'/'compared')
    record = here/'runs'/'compared'/'record.jsonl'
    assert [c['comparison'] for c in answer('list')['comparisons']] == ['compared']
    record.write_text(record.read_text().split('\n')[0].replace('"arms"', '"amrs"') + '\n')
    assert answer('list')['comparisons'] == []

def test_a_comment_of_the_first_key_is_not_the_sections(here):
    (here/'settings.ini').write_text(ini.replace('[model:net]\n', '[model:net]\n# Its kind\n# of layers\n', 1)
                                     .replace('width', '# Channels\nwidth', 1))
    assert [m['comment'] for m in answer('list')['networks']] == ['']
    (here/'settings.ini').write_text(ini.replace('[model:net]\n', '[model:net]\n# A small one. Indeed\n', 1))
    assert [m['comment'] for m in answer('list')['networks']] == ['A small one']

def test_the_packages_own_settings_are_named_as_such(here):
    assert "the package's own" not in run('check').output
    (here/'settings.ini').unlink()
    got = run('check')
    assert got.exit_code == 0 and "the package's own: there is no settings.ini here" in got.output
    assert "the package's own" not in run('check', '--settings', package_settings()).output

def test_what_needs_no_network_is_light(here):
    code = "import json, sys\nfrom proxy_attention.lab.cli import main\nfor args in json.loads(sys.argv[1]):\n" \
           "    sys.argv = ['proxy-attention', *args]\n    try: main()\n    except SystemExit: pass\n" \
           "    assert not {'torch', 'fastai', 'pandas'} & set(sys.modules), args"
    make_run(here/'runs'/'done', pictures=0)
    make_comparison(here/'runs'/'compared')
    commands = [['list'], ['list', 'try'], ['init', '--out', 'new.ini'], ['report', 'runs/done'], ['report', 'runs/compared'], ['compare', 'tri', '--arms', 'erm'], ['run', 'tri']]
    subprocess.run([sys.executable, '-c', code, json.dumps(commands)], check=True, env=os.environ | {'PYTHONPATH': str(repo)}, cwd=here, capture_output=True)
    assert all((here/f).is_file() for f in ('new.ini', 'runs/done/report.html', 'runs/compared/report.html'))

def quiet_names(*args): return []

@contextlib.contextmanager
def settings_file(data):
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder)/'settings.ini').write_bytes(data)
        yield Path(folder)/'settings.ini'

def never_a_traceback(*args):
    got = run(*args)
    assert got.exit_code in (0, 2) and (got.exception is None or isinstance(got.exception, SystemExit)), (args, got.exception)
    assert got.exit_code == 0 or got.output.strip()
    told = run(*args, '--json')
    json.loads(told.stdout)
    assert told.exit_code == got.exit_code

@hypo(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.one_of(texts, mixed))
@example(good)
@example('[experiment:\ud800]\n')
def test_any_settings_file(text):
    with settings_file(text.encode('utf-8', 'surrogatepass')) as file, pytest.MonkeyPatch.context() as m:
        m.setattr('proxy_attention.lab.runs.plan.wrong_names', quiet_names) # Its own test: here only the file matters
        m.setattr('proxy_attention.lab.runs.plan.wrong_judge', quiet_names)
        for args in (['check'], ['list'], ['list', 'try']): never_a_traceback(*args, '--settings', file)

@hypo(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.one_of(texts, st.tuples(st.sampled_from(keys), values).map('='.join)))
def test_any_change(change):
    with settings_file(good.encode()) as file: never_a_traceback('list', 'try', '--settings', file, '--set', change)

@hypo(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.sampled_from(['source = ', 'arch = ']), st.one_of(st.sampled_from(['resnet18', 'timm/', '../x', 'hf_hub:x/y', 'gradcam']), st.text('abcxyz_019/.: -é', min_size=1, max_size=9)))
def test_any_name(key, name):
    old = {'source = ': 'source = shortcut_digits', 'arch = ': 'arch = small_cnn'}[key]
    with settings_file(ini.replace(old, key + name).encode()) as file: never_a_traceback('check', '--settings', file)


# -- running --------------------------------------------------------------------------------------------------------------------------------------

@pytest.fixture
def fake(here, monkeypatch):
    "`run_experiment` that notes its arguments, and leaves the folder of a run"
    seen = {}
    def run_experiment(name, **kw):
        seen.update(kw, name=name)
        kw['say']('stage 1   train')
        print('a library prints')
        if isinstance(seen.get('raises'), BaseException): raise seen['raises']
        return make_run(kw['out'] or Path('runs')/name, pictures=0)
    patch_name(monkeypatch, 'run_experiment', run_experiment)
    return seen

def test_run(fake, here):
    got = run('run', 'try')
    assert got.exit_code == 0 and 'stage 1   train' in got.output and 'Stage 3, cycle 1' in got.output and (here/'runs/try/report.html').is_file()
    assert all(s in got.output for s in verdict(read_records('runs/try'))) and 'page   runs/try/report.html' in got.output.replace(os.sep, '/')
    assert (fake['name'], fake['settings'], fake['out'], tuple(fake['overrides']), fake['data'], fake['again']) == ('try', None, None, (), Path('data'), False)

def test_run_passes_everything_on(fake, here):
    (here/'other.ini').write_text(ini)
    run('run', 'try', '--settings', 'other.ini', '--out', 'there', '--set', 'share=0.5', '--set', 'lr=0.1', '--data', 'pictures', '--again')
    assert (fake['settings'], fake['out'], fake['overrides'], fake['data'], fake['again']) == (Path('other.ini'), Path('there'), ['share=0.5', 'lr=0.1'], Path('pictures'), True)
    assert (here/'there/report.html').is_file()

def test_run_json(fake, here):
    got = run('run', 'try', '--json')
    told = json.loads(got.stdout)
    assert got.exit_code == 0 and told['test_accuracy'] == summary('runs/try')['test_accuracy'] and told['verdict'] and Path(told['page']).is_file()
    assert 'stage 1' in got.stderr and 'a library prints' in got.stderr

def test_run_stopped(fake):
    fake['raises'] = KeyboardInterrupt()
    got = run('run', 'try', '--out', 'a b', '--set', 'area=0.05', '--again')
    assert got.exit_code == 130 and got.stderr.strip() == "stopped; `proxy-attention run try --out 'a b' --set area=0.05` goes on from here"
    told = run('run', 'try', '--json')
    assert told.exit_code == 130 and 'goes on' in json.loads(told.stdout)['error']

def test_run_errors(fake):
    from proxy_attention.lab.config.problems import SettingsError
    fake['raises'] = SettingsError(['one', 'two'])
    assert "'try'" in wrong('run', 'tri') and 'name' not in fake, "the settings are checked before anything slow"
    assert wrong('run', 'try', '--set', 'aera=1')
    fake['raises'] = KeyError('bug')
    assert isinstance(run('run', 'try').exception, KeyError)
    fake['raises'] = ValueError('of another library') # raised in this test, not by us
    assert isinstance(run('run', 'try').exception, ValueError)

@pytest.fixture(scope='module')
def real(tmp_path_factory):
    "A run by the command line"
    top = tmp_path_factory.mktemp('real')
    (top/'settings.ini').write_text(ini)
    with contextlib.chdir(top) if hasattr(contextlib, 'chdir') else _chdir(top): got = run('run', 'try')
    assert got.exit_code == 0, (got.output, got.exception)
    return top, got

@contextlib.contextmanager
def _chdir(to):
    before = os.getcwd()
    os.chdir(to)
    try: yield
    finally: os.chdir(before)

def test_a_real_run(real, monkeypatch):
    top,got = real
    monkeypatch.chdir(top)
    assert 'Stage 3, cycle 1' in got.output and 'of 30 test images' in got.output and 'UserWarning' not in got.output
    page = (top/'runs/try/report.html').read_text()
    assert 'class="card"' in page and 'Saliency on digit' in page and 'audit of 60 training' in page
    told = answer('run', 'try')
    assert told['done'] and told['experiment'] == 'try' and told['audit_ok'] is True
    again = run('run', 'try', '--set', 'lr=0.02')
    assert again.exit_code == 2 and 'other settings' in again.output
    assert answer('list')['runs'][0]['state'] == 'done'

# -- comparing ------------------------------------------------------------------------------------------------------------------------------------

tiny = ['--jobs', '1', '--set', 'steps=4', '--set', 'n_train=40']

def test_compare(here, monkeypatch):
    "Stopped after a run, gone on with, then with other seeds; every flag arrives"
    from proxy_attention.lab.compare import comparison as lab
    real = lab.run_job
    def work(conf, folder, *args):
        if (folder.parent.name, folder.name) == ('random_erasing', '3'): raise KeyboardInterrupt
        return real(conf, folder, *args)
    patch_name(monkeypatch, 'run_job', work)
    args = ['compare', 'try', '--arms', 'random_erasing,erm', '--seeds', '2', '--out', 'a b', '--data', 'pictures', *tiny]
    got = run(*args)
    assert got.exit_code == 130 and got.stderr.strip() == ("stopped; `proxy-attention compare try --arms random_erasing,erm --seeds 2 --out 'a b' --jobs 1 --data pictures "
                                                           "--set steps=4 --set n_train=40` goes on from here")
    assert 'This comparison is not finished: 1 of 4 runs is done' in run('report', 'a b').output and (here/'a b/report.html').is_file()
    patch_name(monkeypatch, 'run_job', real)
    got = run(*args)
    assert got.exit_code == 0 and '1 run done, 3 to go' in got.output and 'against erm' in got.output and 'Only controls were compared' in got.output
    assert 'page    a b/report.html' in got.output.replace(os.sep, '/') and (here/'pictures').is_dir()
    told = answer('compare', 'try', '--arms', 'random_erasing', '--seed-list', '4,7', '--out', 'a b', '--data', 'pictures', '--interval', 'bootstrap-t', '--margin', '0.3', *tiny)
    assert told['done'] and told['seeds'] == ['4', '7'] and told['interval'] == 'bootstrap-t' and told['steps'] == 4 and told['audits_clean'] == told['runs'] == 4
    assert [v['arm'] for v in told['verdicts']] == ['erm', 'random_erasing'] and told['verdict'] and Path(told['page']).is_file()
    assert told['verdicts'][1]['against_erm']['not_worse']['margin'] == 0.3 and '--margin 0.3' in told['command']
    assert 'other settings' in wrong(*args, '--set', 'lr=0.5')

@pytest.mark.parametrize('args, words', [(['--arms', 'random_erasin'], ["'random_erasin'", 'random_erasing']), (['--arms', 'erm,,mixup'], ['--arms', 'commas']),
                                         (['--arms', 'erm', '--seed-list', '1,x'], ['--seed-list', '1,x']), (['--arms', 'erm', '--seeds', '0'], ['seeds=0']),
                                         (['--arms', 'erm', '--seeds', '2', '--seed-list', '1'], ['one of them']), (['--arms', 'erm', '--interval', 'z'], ["'z'", 'bootstrap-t']),
                                         (['--arms', 'erm', '--jobs', '0'], ['jobs=0']),
                                         (['--arms', 'erm', '--margin', '-1'], ['margin=-1']),
                                         (['--arms', 'erm', '--set', 'aera=1'], ["'area'"]),
                                         (['--arms', 'erm', '--settings', 'nowhere.ini'], ['nowhere.ini'])])
def test_compare_errors(here, args, words):
    said = wrong('compare', 'try', *args)
    assert all(w in said for w in words) and sorted(os.listdir()) == ['settings.ini']

@pytest.mark.parametrize('args', [['compare', 'try', '--arms', 'erm', '--jobs', '1'], ['demo'], ['run', 'try']])
def test_no_command_takes_somebody_else_s_folder(here, args):
    (here/'record.jsonl').write_text('mine')
    (here/'report.html').write_text('mine')
    if args == ['demo']: args = ['demo', '--settings', str(repo/'settings.ini')] if (repo/'settings.ini').is_file() else pytest.skip('no settings of the package')
    said = wrong(*args, '--out', '.')
    assert "'.' is a folder with something else in it" in said and sorted(os.listdir()) == ['record.jsonl', 'report.html', 'settings.ini']
    assert (here/'record.jsonl').read_text() == (here/'report.html').read_text() == 'mine'

def test_compare_names_its_arms():
    from proxy_attention.lab.compare.arms import arms
    said = run('compare', '--help').output
    assert all(a in said for a in arms)

def test_comparisons_are_listed_and_reported(here):
    make_comparison(here/'runs'/'whole')
    make_comparison(here/'runs'/'part', until=20)
    got = run('list')
    assert 'arms of a comparison' in got.output and 'another image\'s map' in got.output and '20 of 45 runs' in got.output and 'early_look beats the best control' in got.output
    told = answer('list')
    assert [(c['comparison'], c['state']) for c in told['comparisons']] == [('part', '20 of 45 runs'), ('whole', 'done')] and told['runs'] == []
    assert dict(name='masktune', kind='baseline').items() <= next(a for a in told['arms'] if a['name'] == 'masktune').items()
    told = answer('report', 'runs/whole/record.jsonl', '--out', 'w.html')
    assert told['best_control'] == 'random_erasing' and 'Comparison whole' in (here/'w.html').read_text()
    make_run(here/'a')
    assert 'Report it alone' in wrong('report', 'a', 'runs/whole')

def test_audit(real, monkeypatch, tmp_path):
    top,_ = real
    monkeypatch.chdir(top)
    got = run('audit', 'runs/try')
    assert got.exit_code == 0 and 'clean' in got.output
    told = answer('audit', 'runs/try/proxies', '--no-near')
    assert told['ok'] and told['proxies'] == 12 and told['near'] == []
    import shutil
    shutil.copytree(top/'runs/try', tmp_path/'leaky')
    split = json.loads((tmp_path/'leaky/split.json').read_text())
    for part in ('files', 'labels', 'sha256'): split['valid'][part][0] = split['train'][part][0]
    (tmp_path/'leaky/split.json').write_text(json.dumps(split))
    got = run('audit', tmp_path/'leaky')
    assert got.exit_code == 1 and 'same picture' in got.output and 'problem' in got.output
    assert not answer('audit', tmp_path/'leaky', '--no-near', code=1)['ok']
    (tmp_path/'leaky/split.json').unlink()
    assert 'split.json' in wrong('audit', tmp_path/'leaky')
    (tmp_path/'empty').mkdir()
    assert 'neither' in wrong('audit', tmp_path/'empty') and 'not a folder' in wrong('audit', tmp_path/'nowhere')

def test_audit_near(real, monkeypatch):
    monkeypatch.chdir(real[0])
    seen = []
    def near_ones(folder, near=4):
        seen.append(near)
        out = audit_run(folder, near=None)
        out.near = [(f'a{i}', f'b{i}') for i in range(30)]
        return out
    patch_name(monkeypatch, 'audit_run', near_ones)
    got = run('audit', 'runs/try')
    assert got.exit_code == 0 and got.output.count('look-alike across') == 20 and 'and 10 more look-alikes' in got.output
    assert len(answer('audit', 'runs/try', '--no-near')['near']) == 30 and seen == [4, None]

def test_report(here):
    a,b = make_run(here/'a'), make_run(here/'b', until=9)
    got = run('report', 'a')
    assert got.exit_code == 0 and (a/'report.html').is_file() and verdict(read_records(a))[0] in got.output and 'page   a' in got.output
    told = answer('report', a, b)
    assert told['page'] == 'report.html' and [r['done'] for r in told['runs']] == [True, False] and '2 runs side by side' in (here/'report.html').read_text()
    assert run('report', 'a', 'b').exit_code == 0 # Its own page is replaced
    assert run('report', 'a/record.jsonl', '--out', 'x.html').exit_code == 0 and (here/'x.html').is_file()
    (here/'thesis.html').write_text('<html>all of it')
    assert 'thesis.html' in wrong('report', 'a', '--out', 'thesis.html') and (here/'thesis.html').read_text() == '<html>all of it'
    (here/'c').mkdir()
    (here/'c/record.jsonl').write_bytes((a/'record.jsonl').read_bytes())
    (here/'c/report.html').write_text('<html>mine')
    assert 'report.html' in wrong('report', 'c') and (here/'c/report.html').read_text() == '<html>mine'
    assert 'folder' in wrong('report', 'a', '--out', 'b') and 'nowhere' in wrong('report', 'nowhere') and 'error' in answer('report', 'nowhere', code=2)

def test_clean(here):
    a,b = make_run(here/'a'), make_run(here/'b')
    (b/'notes.txt').write_text('mine')
    logs = [here/'.jobs'/name/'20260101-000000' for name in ('a', 'b')]
    for folder in logs:
        folder.mkdir(parents=True)
        for name in ('7_0_0_log.out', '7_0_result.pkl', '7_submission.sh', '.submission_file_7.sh'): (folder/name).write_text('of submitit')
    (logs[1]/'mine.txt').write_text('mine')
    (here/'photos').mkdir()
    assert 'photos' in wrong('clean', 'a', 'photos') and a.is_dir()
    got = run('clean', 'a', input='n\n')
    assert got.exit_code == 0 and 'nothing deleted' in got.output and (a/'record.jsonl').is_file()
    assert '--yes' in answer('clean', 'a', code=2)['error']
    assert answer('clean', 'a', 'b', '--yes') == dict(deleted=['a', 'b'], left=['b'])
    assert not a.exists() and sorted(p.name for p in b.iterdir()) == ['notes.txt']
    assert [p.name for p in (here/'.jobs').iterdir()] == ['b'] and [p.name for p in logs[1].iterdir()] == ['mine.txt']

def a_folder_of_copies(folder):
    "As the library leaves one"
    from proxy_attention.store import ProxyStore
    store = ProxyStore(folder)
    store.open()
    store.close()
    (folder/f"{'0123456789ab'*2}.png").write_bytes(b'a copy')
    assert (folder/MARKER).is_file()
    return folder

def test_clean_deletes_copies_alone(here):
    "The default folder, one of its folders, or those of a run; what isn't ours is refused before anything is deleted"
    assert '.proxies: neither the folder of a run nor one of copies' in wrong('clean')
    one,two = (a_folder_of_copies(here/'.proxies'/n) for n in ('one', 'two'))
    (one/'notes.txt').write_text('mine')
    (here/'photos').mkdir()
    (here/'photos'/'cat.png').write_bytes(b'mine')
    assert 'photos: neither' in wrong('clean', two, 'photos', '--yes') and two.is_dir()
    assert 'nothing deleted' in run('clean', input='n\n').output and two.is_dir()
    assert answer('clean', two, '--yes') == dict(deleted=[str(two)], left=[]) and (one/MARKER).is_file()
    assert 'deleted the copies of 1 run in .proxies' in run('clean', input='y\n').output
    assert sorted(p.name for p in one.iterdir()) == ['notes.txt'] and (here/'photos'/'cat.png').read_bytes() == b'mine'
    a = make_run(here/'a')
    a_folder_of_copies(a/'proxies')
    assert run('clean', 'a/proxies', '--yes').exit_code == 0 and not (a/'proxies').exists() and (a/'record.jsonl').is_file()

def test_clean_asks(here):
    make_run(here/'a')
    assert run('clean', 'a', input='y\n').exit_code == 0 and not (here/'a').exists()

def test_a_reader_that_goes_away(here):
    code = "import sys; sys.argv = ['proxy-attention', 'list']; from proxy_attention.lab.cli import main; main()"
    p = subprocess.Popen([sys.executable, '-c', code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ | {'PYTHONPATH': str(repo)}, cwd=here)
    p.stdout.close()
    assert 'Traceback' not in p.stderr.read().decode()
    p.stderr.close()
    p.wait()


# -- the extra ----------------------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('missing, told', [('typer', True), ('jinja2', False)])
def test_without_the_extra(missing, told):
    "What the lab needs and isn't there costs one line; `--help` needs typer alone"
    code = f"import sys; sys.modules[{missing!r}] = None; sys.argv = ['proxy-attention', '--help']; from proxy_attention.lab.__main__ import main; main()"
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=repo)
    assert (done.returncode != 0) == told and 'Traceback' not in done.stderr
    assert ("pip install 'proxy_attention[lab]'" in done.stderr and missing in done.stderr) == told
