"""The tutorials run from beginning to end, on fewer photos and epochs."""
import os
from pathlib import Path

import pytest
from kit import fresh_process

NBS = Path(__file__).parent.parent/'nbs'

RUN = """
import sys
from execnb.shell import CaptureShell
from fastcore.nbio import read_nb
nb = read_nb(sys.argv[1])
CaptureShell().run_all(nb, exc_stop=True)
print(nb.cells[-1].source)
"""


@pytest.mark.parametrize('name', sorted(p.name for p in (NBS/'tutorials').glob('*.ipynb')))
def test_tutorial_runs(name, request, tmp_path):
    photos = {'ASL_DIGITS': str(request.getfixturevalue('data_dir')/'asl_digits')} if name == 'asl_digits.ipynb' else {} # the others make their own images
    env = {**os.environ, **photos, 'QUICK': '1', 'PYTHONPATH': str(NBS.parent)}
    done = fresh_process(RUN, NBS/'tutorials'/name, cwd=tmp_path, env=env)
    assert done.returncode == 0, done.stderr[-2000:]
    assert not list((tmp_path/'.proxies').glob('*/*.png')), "the tutorial purges its copies"
