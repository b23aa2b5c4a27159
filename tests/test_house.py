"""The repository itself: what is published names no folder of a machine."""
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
    for f in sorted((ROOT/'results').rglob('*')):
        if f.suffix in ('.json', '.jsonl', '.md', '.html', '.svg', '.txt', '.csv'):
            assert not (found := MACHINE.search(f.read_text())), f'{f.relative_to(ROOT)}: {found.group()}'

def test_outputs_name_no_folder_of_a_machine():
    books = sorted((ROOT/'nbs').rglob('*.ipynb'))
    assert len(books) > 30
    for nb in books:
        for text in outputs(nb): assert not (found := MACHINE.search(text)), f'{nb.relative_to(ROOT)}: {found.group()}'

def test_pages_name_no_folder_of_a_machine():
    for f in ROOT.glob('*.md'): assert not MACHINE.search(f.read_text()), f.name
