"""Build the notebooks' pages in _site with smalldocs, in seconds and without running anything, and check every link and image on them.

`nbs/_quarto.yml`, `nbdev.yml` and `sidebar.yml` say what the pages look like, for this command and for nbdev-docs (`.ci/docs.py`). In a module's
notebook an exported cell becomes the signatures of its public names, with their comments, and its source, folded."""
import ast
import json
import re
import shutil
import subprocess
import sys
import tempfile
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

from fastcore.nbio import mk_cell, read_nb, write_nb

from links import ROOT, with_addresses

SITE = ROOT/'_site'
DEFS = ast.FunctionDef, ast.ClassDef


# -- from a notebook to a page ------------------------------------------------------------------------------------------------------------------------

def directives(cell): return {m[1] for m in re.finditer(r'^#\| *(\w+)', cell.source, re.M)}


def signature(node, lines):
    "What stands before the body, with its comments; of a dataclass its fields too"
    first = node.decorator_list[0].lineno if node.decorator_list else node.lineno
    body = [n for n in node.body if not (isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant))]
    last = node.body[0].lineno - 1
    if isinstance(node, ast.ClassDef):
        for n in body:
            if not isinstance(n, ast.AnnAssign): break
            last = n.end_lineno
    init = next((n for n in body if isinstance(n, ast.FunctionDef) and n.name == '__init__'), None)
    text = lines[first - 1:max(last, node.lineno)]
    if init is not None: text = [*text, *lines[init.lineno - 1:max(init.body[0].lineno - 1, init.lineno)]]
    return '\n'.join(line for line in text if not line.strip().startswith('"""') and not re.fullmatch(r'\s*"[^"]*"', line))


def name_of(node):
    "`Class.method` of what is patched into a class"
    own = node.args.args[0] if isinstance(node, ast.FunctionDef) and node.args.args else None
    patched = own is not None and any('patch' in ast.unparse(d) for d in node.decorator_list) and own.annotation is not None
    return f'{ast.unparse(own.annotation)}.{node.name}' if patched else node.name


def reference(cell):
    "Cells in place of an exported one"
    code = re.sub(r'^#\|.*\n?', '', cell.source, flags=re.M)
    tree,lines = ast.parse(code), code.splitlines()
    for node in [n for n in tree.body if isinstance(n, DEFS) and not n.name.startswith('_')]:
        doc = ast.get_docstring(node) or ''
        yield mk_cell(f'### `{name_of(node)}`\n\n```python\n{signature(node, lines)}\n```\n\n{doc}', 'markdown')
    if any(not isinstance(n, (ast.Import, ast.ImportFrom)) for n in tree.body):
        yield mk_cell(f'#| code-fold: true\n#| code-summary: Source\n{code}')


def page(nb, folder):
    "A notebook's cells as those of a page"
    cells = [c for c in nb.cells if c.source.strip() and not directives(c) & {'hide', 'default_exp', 'exporti'}]
    front = {}
    if cells[0].cell_type == 'raw': cells.pop(0) # it is for nbdev
    head = re.match(r'# (.+)\n+(?:> (.+(?:\n.+)*)\n*)?', cells[0].source)
    if head is not None:
        front = dict(title=head[1].strip(), **(dict(description=head[2].replace('\n', ' ')) if head[2] else {}))
        cells[0].source = cells[0].source[head.end():]
    yield mk_cell('---\n' + '\n'.join(f'{k}: {json.dumps(v, ensure_ascii=False)}' for k,v in front.items()) + '\n---', 'raw')
    for c in cells:
        if 'export' in directives(c): yield from reference(c)
        else:
            if c.cell_type == 'markdown': c.source = with_addresses(c.source, folder, inside='nbs')
            yield c


def build():
    with tempfile.TemporaryDirectory() as tmp:
        copy = Path(tmp)/'nbs'
        shutil.copytree(ROOT/'nbs', copy, ignore=shutil.ignore_patterns('.*', '_docs', '_proc', '_site'))
        for file in copy.rglob('*.ipynb'):
            nb = read_nb(file)
            nb.cells = list(page(nb, file.parent.relative_to(tmp)))
            write_nb(nb, file)
        done = subprocess.run([sys.executable, '-m', 'smalldocs.cli', 'render', copy], capture_output=True, text=True)
        if done.returncode: sys.exit(done.stdout + done.stderr)
        shutil.rmtree(SITE, ignore_errors=True)
        shutil.copytree(copy/'_docs', SITE)


# -- links --------------------------------------------------------------------------------------------------------------------------------------------

class Links(HTMLParser):
    "Addresses that a page names, and its anchors"
    def __init__(self, text):
        super().__init__()
        self.links, self.ids = [], {''}
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.ids.update(v for k,v in attrs if k in ('id', 'name') and v)
        for k in ('href', 'src'):
            if given.get(k): self.links.append(given[k])


def broken(site):
    "(page, link) of all links within the site that lead nowhere"
    pages = {f: Links(f.read_text()) for f in sorted(site.rglob('*.html'))}
    for file,links in pages.items():
        for link in links.links:
            to = urlsplit(link)
            if to.scheme or to.netloc: continue
            path = unquote(to.path)
            target = file if not path else (site/path[1:] if path.startswith('/') else file.parent/path).resolve()
            if target.is_dir(): target = target/'index.html'
            anchor = unquote(to.fragment)
            if not target.is_file() or target in pages and anchor not in pages[target].ids: yield file.relative_to(site), link


def unlisted(site):
    "Pages that the sidebar doesn't show"
    start = site/'index.html'
    shown = {(site/urlsplit(link).path).resolve() for link in Links(start.read_text()).links if link.split('#')[0].endswith('.html')}
    return [f.relative_to(site) for f in sorted(site.rglob('*.html')) if f.resolve() not in shown | {start.resolve()} and 'site_libs' not in f.parts]


if __name__ == '__main__':
    if sys.version_info < (3, 11): sys.exit(print('smalldocs needs Python 3.11 or newer: no pages were built'))
    build()
    problems = [f'{page}: {link} leads nowhere' for page,link in broken(SITE)] + [f'{page} is not in the sidebar' for page in unlisted(SITE)]
    if problems: sys.exit('\n'.join(problems[:50] + ([f'and {len(problems) - 50} more'] if len(problems) > 50 else [])))
    print(f"{len(list(SITE.rglob('*.html')))} pages in _site; every link and image within them exists")
