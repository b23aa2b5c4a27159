"""Make the pages in _docs with nbdev-docs. Their links need the address they will be at; in pyproject.toml it would end up in every module."""
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
LEFT_OUT = {'.git', '.venv', 'runs', 'demo', 'data', 'models', '_docs', '_proc', 'build', 'dist'}

with tempfile.TemporaryDirectory() as tmp:
    copy = Path(tmp)/'copy'
    shutil.copytree(ROOT, copy, ignore=lambda folder, names: LEFT_OUT if Path(folder) == ROOT else ())
    project = copy/'pyproject.toml'
    text = project.read_text()
    if sys.argv[1:]: project.write_text(text.replace('[project.urls]\n', f'[project.urls]\nDocumentation = "{sys.argv[1]}"\n'))
    env = os.environ | dict(PYTHONPATH=str(copy), MPLBACKEND='agg')
    subprocess.run([BIN/'nbdev-docs', '--n-workers', '1'], cwd=copy, check=True, env=env)
    shutil.rmtree(ROOT/'_docs', ignore_errors=True)
    shutil.copytree(copy/'_docs', ROOT/'_docs')
