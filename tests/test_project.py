"""What stands around the code: the promised versions, the workflows, the wheel, and what no module does with other people's files."""
import ast
import re
import runpy
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

if sys.version_info < (3, 11): import tomli as tomllib
else: import tomllib

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT/'pyproject.toml').read_text())
MODULES = sorted((ROOT/'proxy_attention').rglob('*.py'))


# -- versions -------------------------------------------------------------------------------------------------------------------------------------

def pythons(): return [m[1] for c in PROJECT['project']['classifiers'] if (m := re.fullmatch(r'Programming Language :: Python :: (3\.\d+)', c))]

def lower_bounds():
    "Name → the lowest version that pyproject.toml allows"
    asked = [*PROJECT['project']['dependencies'], *PROJECT['project']['optional-dependencies']['lab']]
    return dict(re.fullmatch(r'([\w.-]+)>=([\d.]+)', a).groups() for a in asked)

def version(text): return tuple(int(n) for n in text.split('.'))

def test_the_lowest_python_is_the_one_that_is_asked_for(): assert PROJECT['project']['requires-python'] == f'>={pythons()[0]}'

def test_the_lowest_versions_are_tested():
    lines = (ROOT/'.ci'/'lowest.txt').read_text().splitlines()
    pinned = dict(line.split('==') for line in lines if not line.startswith('#'))
    bounds = {n: v for n,v in lower_bounds().items() if n != 'fastcore'}
    assert pinned.keys() == bounds.keys()
    for name,low in bounds.items(): assert version(pinned[name])[:len(version(low))] == version(low), name


# -- workflows ------------------------------------------------------------------------------------------------------------------------------------

WORKFLOWS = sorted((ROOT/'.github'/'workflows').glob('*.yml'))
TARGETS = set(re.findall(r'^([a-z-]+):', (ROOT/'Makefile').read_text(), re.M))

@pytest.fixture(params=WORKFLOWS, ids=lambda f: f.stem)
def workflow(request): return pytest.importorskip('yaml').safe_load(request.param.read_text())

def steps(workflow): return [s for job in workflow['jobs'].values() for s in job.get('steps', ())]

def test_there_are_workflows(): assert {'tests', 'audit', 'docs', 'release'} <= {f.stem for f in WORKFLOWS}

def test_a_workflow_may_read_and_its_jobs_ask_for_more(workflow):
    assert workflow['permissions'] == {'contents': 'read'}
    for name,job in workflow['jobs'].items():
        more = {k for k,v in job.get('permissions', {}).items() if v == 'write'}
        assert more <= ({'pages', 'id-token'} if name == 'deploy' else {'id-token'} if name == 'publish' else set()), name
        assert 'uses' in job or job['timeout-minutes'] <= 180, name

def test_actions_have_a_major_version(workflow):
    for used in [s['uses'] for s in steps(workflow) if 'uses' in s]: assert re.fullmatch(r'[\w./-]+@(v\d+|release/v\d+)', used), used

def test_workflows_make_what_the_makefile_has(workflow):
    for run in [s['run'] for s in steps(workflow) if 'run' in s]:
        for target in re.findall(r'\bmake ([a-z-]+)', run): assert target in TARGETS, run

def test_the_tests_run_on_the_pythons_that_are_named():
    jobs = pytest.importorskip('yaml').safe_load((ROOT/'.github'/'workflows'/'tests.yml').read_text())['jobs']
    assert jobs['latest']['strategy']['matrix']['python'] == pythons()
    lowest = jobs['lowest']
    assert lowest['env']['PIP_CONSTRAINT'].endswith('/.ci/lowest.txt') and lowest['steps'][1]['with']['python-version'] == pythons()[0]
    assert {s['run'] for j in jobs.values() for s in j['steps'] if 'run' in s} == {'make lint', 'make site', 'make test', 'make test-trackers', 'make dist'}

def test_only_a_tested_tag_is_published():
    release = pytest.importorskip('yaml').safe_load((ROOT/'.github'/'workflows'/'release.yml').read_text())
    publish = release['jobs']['publish']
    assert release[True] == {'push': {'tags': ['v*']}} # YAML reads the key `on` as a truth value
    assert publish['environment'] == 'pypi' and publish['permissions'] == {'id-token': 'write'} and set(publish['needs']) == {'tests', 'build'}
    assert not any('password' in s.get('with', {}) for s in steps(release))


# -- the wheel ------------------------------------------------------------------------------------------------------------------------------------

@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
    "Names in a wheel that is built here and now"
    pytest.importorskip('build')
    tmp = tmp_path_factory.mktemp('wheel')
    for name in ('pyproject.toml', 'setup.py', 'settings.ini', 'README.md', 'LICENSE', 'MANIFEST.in', 'CHANGELOG.md'): shutil.copy(ROOT/name, tmp)
    shutil.copytree(ROOT/'proxy_attention', tmp/'proxy_attention', ignore=shutil.ignore_patterns('__pycache__'))
    subprocess.run([sys.executable, '-m', 'build', '--wheel', '--no-isolation', tmp], check=True, capture_output=True)
    return set(zipfile.ZipFile(next((tmp/'dist').glob('*.whl'))).namelist())

def test_the_wheel_has_types_settings_and_pages(wheel):
    pages = {str(f.relative_to(ROOT)) for kind in ('html', 'js') for f in (ROOT/'proxy_attention').rglob(f'*.{kind}')}
    assert len(pages) > 0 and {'proxy_attention/py.typed', 'proxy_attention/settings.ini', *pages} <= wheel

def test_the_wheel_has_every_module_and_nothing_else(wheel):
    assert {n for n in wheel if n.endswith('.py')} == {str(f.relative_to(ROOT)) for f in MODULES}
    assert {n.split('/')[0].split('-')[0] for n in wheel} == {'proxy_attention'}


# -- what no module does --------------------------------------------------------------------------------------------------------------------------

# ruff's rules S102, S301, S302, S307, S506, S602 and S605 refuse `exec`, calls of pickle, marshal, `eval`, `yaml.load` and shells (`make lint`);
# they know neither torch nor fastai, nor what NumPy, pandas and joblib unpickle.
UNSAFE = {'load_learner', 'load_model', 'read_pickle', 'unpickle'}

def unsafe_calls(source):
    "Lines of calls that could run what is in a file, and that ruff lets pass"
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call): continue
        name, given = ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}
        last = name.split('.')[-1]
        if last in UNSAFE or name == 'joblib.load' or given.get('allow_pickle', 'False') != 'False': yield node.lineno
        if name in ('torch.load', 'load') and given.get('weights_only') != 'True': yield node.lineno

@pytest.mark.parametrize('line', ["torch.load(f)", "torch.load(f, weights_only=False)", "load(f)", "load_learner(f)", "learner.load_learner(f)",
                                  "pd.read_pickle(f)", "np.load(f, allow_pickle=True)", "joblib.load(f)"])
def test_unsafe_calls_are_seen(line): assert list(unsafe_calls(line)) == [1]

def test_safe_calls_are_not(): assert not list(unsafe_calls("torch.load(f, weights_only=True); np.load(f); json.loads(t); load_file(f)"))

def test_no_module_runs_what_is_in_a_file():
    "But for the one that loads exported learners, of which SECURITY.md speaks"
    assert len(MODULES) > 50
    unsafe = {'.'.join(f.relative_to(ROOT/'proxy_attention').with_suffix('').parts): n for f in MODULES if (n := len(list(unsafe_calls(f.read_text()))))}
    assert unsafe == {'lab.models.exported': 1} and '`lab.models.exported`' in (ROOT/'SECURITY.md').read_text()

def test_ruff_looks_for_the_rest():
    lint = PROJECT['tool']['ruff']['lint']
    refused = {'S102', 'S301', 'S302', 'S307', 'S506', 'S602', 'S605'}
    assert 'S' in lint['select'] and not refused & set(lint['ignore'])
    for pattern,off in lint['per-file-ignores'].items(): assert not pattern.startswith('proxy_attention') or not {'S', *refused} & set(off)
    for f in MODULES: assert not re.search('noqa(?!: )|noqa:.*(' + '|'.join(refused) + ')', f.read_text()), f.name


# -- what is written ----------------------------------------------------------------------------------------------------------------------------------

def test_promises_name_tests_that_exist():
    named = re.findall(r'`tests/(\w+\.py)::(\w+)`', (ROOT/'SECURITY.md').read_text())
    assert len(named) > 5
    for file,test in named: assert f'def {test}(' in (ROOT/'tests'/file).read_text(), f'{file}::{test}'

def test_pages_name_commands_that_exist():
    for page in ('CONTRIBUTING.md', 'SECURITY.md', 'README.md', '.github/PULL_REQUEST_TEMPLATE.md'):
        for target in re.findall(r'(?:`|^)make ([a-z-]+)', (ROOT/page).read_text(), re.M): assert target in TARGETS, f'{page}: {target}'

def test_links_of_pages_lead_somewhere():
    for page in ('CONTRIBUTING.md', 'SECURITY.md'):
        for link in re.findall(r'\]\((?!https:)([^)#]+)', (ROOT/page).read_text()): assert (ROOT/link).exists(), f'{page}: {link}'

def test_the_readme_is_short_and_its_links_lead_somewhere():
    text, url = (ROOT/'README.md').read_text(), PROJECT['project']['urls']['Repository']
    assert len(text.encode()) <= 9000
    links = re.findall(r'\]\(([^)]+)\)', text)
    assert len(links) > 10 and all(link.startswith('https://') for link in links)
    raw = url.replace('https://github.com/', 'https://raw.githubusercontent.com/')
    for link in links:
        for start in (f'{url}/blob/main/', f'{url}/tree/main/', f'{raw}/main/'):
            if link.startswith(start): assert (ROOT/link.removeprefix(start)).exists(), link

def test_a_link_that_leads_nowhere_is_found(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT/'.ci')
    check = runpy.run_path(str(ROOT/'.ci'/'site.py'))
    (tmp_path/'index.html').write_text('<a href="x.html"></a><img src="i.png"><a href="#no"></a><a href="index.html#t"></a><p id="t">')
    (tmp_path/'other.html').write_text('<a href="https://a.b/c">')
    assert [link for _,link in check['broken'](tmp_path)] == ['x.html', 'i.png', '#no']
    assert check['unlisted'](tmp_path) == [Path('other.html')]

def test_the_citation_has_the_version():
    cite = pytest.importorskip('yaml').safe_load((ROOT/'CITATION.cff').read_text())
    own = re.search(r"__version__ = ['\"](.+)['\"]", (ROOT/'proxy_attention'/'__init__.py').read_text())[1]
    assert cite['version'] == own and cite['license'] == PROJECT['project']['license']
    assert cite['repository-code'] == PROJECT['project']['urls']['Repository']
