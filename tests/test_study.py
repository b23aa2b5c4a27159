"""A study: its list is the settings file's, and its records are all that is needed to go on."""
import json
import shutil
from pathlib import Path

import pytest

from lab_kit import FEW, patch_name
from proxy_attention.lab.compare import comparison as compare_module
from proxy_attention.lab.config.problems import SettingsError
from proxy_attention.files import read_lines
from proxy_attention.lab.runs.checkpoint import RunError
from studies.study import comparisons, run_study

INI = FEW + """\
[experiment:small]
data = digits
model = net
lr = 0.01
steps = 8
"""
LIST = """\
[strong]
experiment = small
arms = early_look
seeds = 2
[weak]
experiment = small
arms = early_look@layercam, random_erasing
seeds = 2
first_seed = 7
change = strength=0.5, steps=9
"""

def write_study(old='', new=''):
    "Settings and list of a study, with one change in either"
    assert not old or old in INI + LIST
    for file,text in (('settings.ini', INI), ('comparisons.ini', LIST)): Path(file).write_text(text.replace(old, new, 1) if old else text)

@pytest.fixture
def study(cache, monkeypatch):
    "A function: run the study; which runs that took"
    write_study()
    ran = []
    real = compare_module.run_job
    patch_name(monkeypatch, 'run_job', lambda conf, folder, *args: ran.append('/'.join(Path(folder).parts[-4:])) or real(conf, folder, *args))
    def _study(names=None, **kw):
        ran.clear()
        run_study(names, **{**dict(settings='settings.ini', records='records', out='runs', data=cache, jobs=1, say=lambda *_: None), **kw})
        return sorted(ran)
    return _study

@pytest.fixture(scope='module')
def weak(cache, tmp_path_factory):
    "The folder in which `weak` was run"
    folder = tmp_path_factory.mktemp('weak')
    with pytest.MonkeyPatch.context() as m:
        m.chdir(folder)
        write_study()
        run_study(['weak'], settings='settings.ini', records='records', out='runs', data=cache, jobs=1, say=lambda *_: None)
    return folder

@pytest.fixture
def weak_study(study, weak):
    "As `study`, in a folder where `weak` has been run"
    shutil.copytree(weak, '.', dirs_exist_ok=True)
    return study

WEAK = sorted(f'weak/arms/{a}/{s}' for a in ('erm', 'early_look@layercam', 'random_erasing') for s in (7, 8))

# ---------------------------------------------------------------------------------------------------------------------------------------- running

def test_the_list():
    write_study()
    listed = comparisons('settings.ini')
    assert list(listed) == ['strong', 'weak'] and listed['weak'].names == ['early_look@layercam', 'random_erasing'] and listed['weak'].seed_list == [7, 8]
    assert listed['weak'].overrides == ['strength=0.5', 'steps=9'] and listed['strong'].overrides == []

@pytest.mark.parametrize('old, new, words', [('experiment = small\narms = early_look\n', 'experiment = smal\narms = early_look\n', "experiment:smal.*Did you mean 'small'"),
                                             ('seeds = 2\nfirst', 'seeds = 1\nfirst', 'seeds'), ('change = strength=0.5', 'change = strenth=0.5', 'strenth'), ('first_seed', 'fist_seed', 'first_seed'),
                                             ('seeds = 2\nfirst', 'reference = strng\nseeds = 2\nfirst', "reference='strng'.*'strong'")])
def test_what_is_wrong_with_the_list_is_told_before_anything_runs(study, old, new, words):
    write_study(old, new)
    with pytest.raises(SettingsError, match=words): study(['strong'])
    assert not Path('runs').exists() and not Path('records').exists()

def test_unknown_names(study):
    with pytest.raises(ValueError, match="names='stron'.*'strong'"): study(['stron'])

@pytest.mark.parametrize('file, words', [('runs/weak/record.jsonl', 'something else'), ('runs/weak/notes.txt', 'something else'), ('records/weak.jsonl', 'not a record of compare'),
                                         ('records/README.md', 'not a report of ours')])
def test_what_is_somebody_else_s_is_left(study, file, words):
    "Told before the first of the comparisons runs"
    Path(file).parent.mkdir(parents=True)
    Path(file).write_text('{"kind": "compare"}')
    before = {f for f in Path().rglob('*')}
    with pytest.raises(ValueError, match=words): study()
    assert {f for f in Path().rglob('*')} == before and Path(file).read_text() == '{"kind": "compare"}'

def test_the_report_overwrites_nobody_s_page():
    from studies.report import study_report
    write_study()
    Path('README.md').write_text('# My project')
    with pytest.raises(ValueError, match="'README.md' is there already and not a report of ours"): study_report('.', 'settings.ini')
    assert Path('README.md').read_text() == '# My project'

def test_its_report_comes_back_identical(weak_study):
    from studies.report import study_report
    file = study_report('records', 'settings.ini')
    before = {f.name: f.read_bytes() for f in Path('records').iterdir()}
    text = file.read_text()
    assert '## strong' in text and '0 of 4 runs done' in text and '| random_erasing |' in text and '## Questions' not in text
    assert '6 of 6 runs done, 9 optimizer steps each; audits: 6 of 6 clean' in text
    file.unlink()
    study_report('records', 'settings.ini')
    assert {f.name: f.read_bytes() for f in Path('records').iterdir()} == before

def test_it_goes_on_from_its_records(weak_study):
    study = weak_study
    assert sorted(f.parent.relative_to('runs').as_posix() for f in Path('runs').rglob('state.json')) == WEAK and study(['weak']) == []
    lines = read_lines('records/weak.jsonl')
    assert lines[0]['command'] == 'python -m studies run weak' and lines[0]['steps'] == 9 and lines[0]['settings']['data']['strength'] == 0.5
    assert not list(Path('runs').rglob('proxies')) and list(Path('runs').rglob('*.safetensors'))
    shutil.rmtree('runs')
    cut = [o for o in lines if not (o['kind'] == 'result' and o['arm'] == 'random_erasing' and o['seed'] == 8)]
    Path('records/weak.jsonl').write_text(''.join(json.dumps(o) + '\n' for o in cut))
    assert study(['weak']) == ['weak/arms/random_erasing/8']
    again = read_lines('records/weak.jsonl')
    free = lambda o: {k: v for k,v in o.items() if not k.startswith(('seconds', 'peak', 'curve'))}
    assert [free(o) for o in again if o['kind'] == 'result'] == [free(o) for o in lines if o['kind'] == 'result']
    assert study(['weak']) == [] and len(study()) == 4

def test_a_run_that_two_comparisons_ask_for_is_made_once(study):
    write_study('arms = early_look@layercam, random_erasing\nseeds = 2\nfirst_seed = 7\nchange = strength=0.5, steps=9', 'arms = random_erasing\nseeds = 2')
    assert study(['strong']) == sorted(f'strong/arms/{a}/{s}' for a in ('erm', 'early_look') for s in (0, 1))
    assert study(['weak']) == sorted(f'weak/arms/random_erasing/{s}' for s in (0, 1))
    none = [[o for o in read_lines(f'records/{n}.jsonl') if o.get('arm') == 'erm' and o['kind'] == 'result'] for n in ('strong', 'weak')]
    assert none[0] == none[1] and len(none[0]) == 2
    (Path('records')/'strong.jsonl').unlink()
    assert [o for o in study() if 'erm' in o] == [], "nor again from the other record"

def test_other_settings_are_run_again(weak_study, monkeypatch):
    shutil.rmtree('runs')
    write_study('lr = 0.01', 'lr = 0.02')
    asked = []
    def refused(conf, folder, *args):
        asked.append('/'.join(Path(folder).parts[-4:]))
        raise OSError('not today')
    patch_name(monkeypatch, 'run_job', refused)
    with pytest.raises(RunError, match='6 of 6 runs failed'): weak_study(['weak'])
    assert sorted(asked) == WEAK

def test_the_method_of_an_arm(weak_study):
    used = {f.parts[-3]: json.loads(f.read_text())['settings']['proxy'] for f in Path('runs').glob('weak/arms/*/7/config.json')}
    assert used['early_look@layercam']['method'] == 'layercam' and used['erm'] is None

@pytest.mark.parametrize('arm, words', [('erm@cam', "arm 'erm' makes no copies"), ('early_look@gradcm', 'gradcm'), ('early_lok@cam', "arms='early_lok'")])
def test_arms_with_methods_that_cannot_be(study, arm, words):
    write_study('early_look@layercam', arm)
    with pytest.raises(ValueError, match=words): study(['weak'])
    assert not Path('runs').exists()

def command(monkeypatch, *args):
    from studies.__main__ import main
    monkeypatch.setattr('sys.argv', ['studies', *map(str, args)])
    main()

def test_commands(tmp_path, monkeypatch, capsys):
    "Run, gone on with from the records alone, and reported; every flag arrives"
    monkeypatch.chdir(tmp_path)
    write_study('arms = early_look@layercam, random_erasing', 'arms = random_erasing')
    Path('settings.ini').rename('mine.ini')
    where = '--settings', 'mine.ini', '--records', 'kept'
    command(monkeypatch, 'run', 'weak', *where, '--data', 'pictures', '--out', 'away', '--jobs', 1)
    assert '0 runs done, 4 to go' in capsys.readouterr().out and Path('pictures').is_dir() and [p.name for p in Path('away').iterdir()] == ['weak']
    page = Path('kept/README.md')
    assert 'random_erasing' in page.read_text()
    page.unlink()
    shutil.rmtree('away')
    command(monkeypatch, 'report', *where)
    assert page.is_file() and not Path('away').exists()
    with pytest.raises(SystemExit, match="'weak'"): command(monkeypatch, 'run', 'weka', *where)
    with pytest.raises(SystemExit, match='nowhere.ini'): command(monkeypatch, 'report', '--settings', 'nowhere.ini')
