"""Make README.md from nbs/index.ipynb: markdown as it is, code with its printed output or markdown; `#| hide` leaves a cell out, `#| echo: false` its code.

Links and images get the repository's address, so that they work on the package index too."""
import sys
from pathlib import Path

from fastcore.nbio import read_nb

from links import with_addresses

ROOT = Path(__file__).resolve().parent.parent


def text_of(cell):
    "A cell as markdown"
    source = ''.join(cell.source)
    if cell.cell_type == 'markdown': return source
    if '#| hide' in source or not source.strip(): return ''
    code = '\n'.join(line for line in source.splitlines() if not line.startswith('#|'))
    outputs = cell.get('outputs', [])
    printed = ''.join(''.join(o.get('text', '')) for o in outputs if o.get('name') == 'stdout')
    shown = [''.join(o['data']['text/markdown']) for o in outputs if 'text/markdown' in o.get('data', {})]
    parts = [] if '#| echo: false' in source else [f"```python\n{code.strip()}\n```"]
    if printed: parts.append(f"```text\n{printed.rstrip()}\n```")
    return '\n\n'.join([*parts, *shown])


def readme():
    cells = [text_of(c).strip() for c in read_nb(ROOT/'nbs'/'index.ipynb').cells if c.cell_type in ('markdown', 'code')]
    text = with_addresses('\n\n'.join(c for c in cells if c), 'nbs')
    return '<!-- made from nbs/index.ipynb by `make readme`; edit that -->\n\n' + text + '\n'


if __name__ == '__main__':
    if '--print' in sys.argv: print(readme(), end='')
    else: (ROOT/'README.md').write_text(readme())
