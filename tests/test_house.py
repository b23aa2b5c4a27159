"""The repository itself: who imports whom, and that nothing published names a folder of a machine."""
import ast
import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MACHINE = re.compile(r'(?<![\w.:/-])/(?:tmp|work|root|home|Users|var|mnt)/\w[^\s"\'`)]*|[A-Z]:\\\\Users')


def outputs(nb):
    "What the cells of a notebook printed and showed"
    for cell in json.loads(nb.read_text())['cells']:
        for out in cell.get('outputs', ()):
            yield ''.join(out.get('text', ()))
            for kind,data in out.get('data', {}).items():
                if not kind.startswith('image/png'): yield ''.join(data) if isinstance(data, list) else str(data)

def test_the_pattern():
    assert MACHINE.search('in /tmp/tmpx1/copies;') and MACHINE.search('"/home/me/x"') and MACHINE.search("('/root/a')")
    assert not MACHINE.search('https://a.b/work/x') and not MACHINE.search('runs/tmp/x') and not MACHINE.search('and/or')

def test_records_name_no_folder_of_a_machine():
    for f in sorted([*(ROOT/'results').rglob('*'), *(ROOT/'studies').rglob('*')]):
        if f.suffix in ('.json', '.jsonl', '.md', '.html', '.svg', '.txt', '.csv'):
            assert not (found := MACHINE.search(f.read_text())), f'{f.relative_to(ROOT)}: {found.group()}'

def test_outputs_name_no_folder_of_a_machine():
    books = sorted([*(ROOT/'nbs').rglob('*.ipynb'), *(ROOT/'studies').rglob('*.ipynb')])
    assert len(books) > 30
    for nb in books:
        for text in outputs(nb): assert not (found := MACHINE.search(text)), f'{nb.relative_to(ROOT)}: {found.group()}'

def test_pages_name_no_folder_of_a_machine():
    for f in ROOT.glob('*.md'): assert not MACHINE.search(f.read_text()), f.name


# -- who imports whom -------------------------------------------------------------------------------------------------------------------------------

PACKAGE = ROOT/'proxy_attention'
FOLDERS = 'config', 'data', 'models', 'metrics', 'runs', 'compare', 'report', 'commands' # Each imports from itself and from those before it
MOST_LINES = 300

def modules():
    "Dotted name → source of every exported module"
    files = [f for f in sorted(PACKAGE.rglob('*.py')) if f.name not in ('_modidx.py', '__init__.py')]
    return {'.'.join(('proxy_attention', *f.relative_to(PACKAGE).with_suffix('').parts)): f.read_text() for f in files}

def imports(name, source, inside=True):
    "(module, names) of the package's own imports; not `inside` of functions: those that are made on import"
    tree = ast.parse(source)
    for n in ast.walk(tree) if inside else tree.body:
        if not isinstance(n, ast.ImportFrom): continue
        base = name.split('.')[:-n.level] if n.level else []
        target = '.'.join([*base, *([n.module] if n.module else [])])
        if target.startswith('proxy_attention'): yield target, [a.name for a in n.names]

def folder(name):
    "The lab's folder of a module; None: the library; '': the lab's top"
    parts = name.split('.')
    if parts[:2] != ['proxy_attention', 'lab']: return None
    return parts[2] if len(parts) > 2 and parts[2] in FOLDERS else ''

def test_the_library_does_not_know_the_lab():
    for name,source in modules().items():
        if folder(name) is None: assert not [t for t,_ in imports(name, source) if '.lab.' in f'{t}.'], name

def test_folders_import_downward():
    for name,source in modules().items():
        if not (mine := folder(name)): continue
        for target,_ in imports(name, source):
            if (theirs := folder(target)): assert FOLDERS.index(theirs) <= FOLDERS.index(mine), f'{name} imports {target}'

def test_no_private_name_of_another_lab_module():
    for name,source in modules().items():
        if folder(name) is None: continue
        for target,names in imports(name, source):
            assert not [n for n in names if n.startswith('_') and not n.startswith('__')], f'{name} imports {names} from {target}'

def test_no_circle():
    known = modules()
    asks = {name: {t for t,_ in imports(name, source, inside=False) if t in known} for name,source in known.items()}
    while (free := [name for name,others in asks.items() if not others & asks.keys()]):
        for name in free: del asks[name]
    assert not asks, f'in a circle: {sorted(asks)}'

def test_modules_are_short():
    assert not [name for name,source in modules().items() if folder(name) is not None and source.count('\n') > MOST_LINES]

def test_folders_are_small_and_say_what_they_are_for():
    for f in FOLDERS:
        books = sorted((ROOT/'nbs'/'lab'/f).glob('*.ipynb'))
        assert 0 < len(books) <= 10, f
        first = ''.join(json.loads(books[0].read_text())['cells'][0]['source'])
        assert f'`{f}`' in first, f'{books[0].name} says what the folder is for'
