"""Make README.md from nbs/index.ipynb: markdown as it is, code with its printed output; cells that say `#| hide` are left out."""
import sys
from pathlib import Path

from fastcore.nbio import read_nb

ROOT = Path(__file__).resolve().parent.parent


def text_of(cell):
    "A cell as markdown"
    source = ''.join(cell.source)
    if cell.cell_type == 'markdown': return source
    if '#| hide' in source or not source.strip(): return ''
    code = '\n'.join(line for line in source.splitlines() if not line.startswith('#|'))
    out = ''.join(''.join(o.get('text', '')) for o in cell.get('outputs', []) if o.get('name') == 'stdout')
    return f"```python\n{code.strip()}\n```" + (f"\n\n```text\n{out.rstrip()}\n```" if out else '')


def readme():
    cells = [text_of(c).strip() for c in read_nb(ROOT/'nbs'/'index.ipynb').cells if c.cell_type in ('markdown', 'code')]
    return '<!-- made from nbs/index.ipynb by `make readme`; edit that -->\n\n' + '\n\n'.join(c for c in cells if c) + '\n'


if __name__ == '__main__':
    if '--print' in sys.argv: print(readme(), end='')
    else: (ROOT/'README.md').write_text(readme())
