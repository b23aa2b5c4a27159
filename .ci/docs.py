"""Make the pages in _docs with nbdev-docs, from a copy of the repository that is changed in three ways.

The links need the address that the pages will be at; in pyproject.toml it would end up in every module. And nbdev runs every cell with an import,
for the sake of the functions' documentation: examples that import something would run too, without the cells before them. Links to files that
are no pages lead to the repository."""
import ast
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from fastcore.nbio import read_nb, write_nb

from links import with_addresses

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
LEFT_OUT = {'.git', '.venv', 'runs', 'demo', 'data', 'models', '_docs', '_proc', 'build', 'dist'}


def is_example(cell):
    "Does it import something and do something else, and isn't it part of a module?"
    if cell.cell_type != 'code' or '#| export' in cell.source: return False
    try: tree = ast.parse(cell.source)
    except SyntaxError: return False
    imports = (ast.Import, ast.ImportFrom)
    return any(isinstance(n, imports) for n in ast.walk(tree)) and not all(isinstance(n, imports) for n in tree.body)


def prepare(file, folder):
    nb = read_nb(file)
    for cell in nb.cells:
        if is_example(cell): cell.source = '#| eval: false\n' + cell.source
        if cell.cell_type == 'markdown': cell.source = with_addresses(cell.source, folder, inside='nbs')
    write_nb(nb, file)


with tempfile.TemporaryDirectory() as tmp:
    copy = Path(tmp)/'copy'
    shutil.copytree(ROOT, copy, ignore=lambda folder, names: LEFT_OUT if Path(folder) == ROOT else ())
    for file in (copy/'nbs').rglob('*.ipynb'): prepare(file, file.parent.relative_to(copy))
    project = copy/'pyproject.toml'
    if sys.argv[1:]: project.write_text(project.read_text().replace('[project.urls]\n', f'[project.urls]\nDocumentation = "{sys.argv[1]}"\n'))
    subprocess.run([BIN/'nbdev-docs', '--n-workers', '1'], cwd=copy, check=True, env=os.environ | dict(PYTHONPATH=str(copy), MPLBACKEND='agg'))
    shutil.rmtree(ROOT/'_docs', ignore_errors=True)
    shutil.copytree(copy/'_docs', ROOT/'_docs')
