"""Links of Markdown: those that lead out of a page's own place get the repository's address."""
import os
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
REPOSITORY = re.search(r'^Repository = "(.+)"$', (ROOT/'pyproject.toml').read_text(), re.M)[1]
RAW = REPOSITORY.replace('https://github.com/', 'https://raw.githubusercontent.com/')
LINK = re.compile(r'(!?)\[([^\[\]]*)\]\((?!\w+:|#)([^()\s#]+)(#[^()\s]*)?\)')


def address(path, image=False):
    "Where a file of the repository is on the web"
    if image: return f'{RAW}/main/{path}'
    return f"{REPOSITORY}/{'tree' if (ROOT/path).is_dir() else 'blob'}/main/{path}"


def with_addresses(
    text, # Markdown of a page
    folder, # That the page is in, relative to the repository
    inside=None, # Links to files in this folder stay as they are; None: all get an address
):
    "`text` with the repository's address in links to its files"
    def changed(m):
        mark,words,target,anchor = m.groups(default='')
        path = Path(os.path.normpath(Path(folder)/target))
        if not (ROOT/path).exists() or inside is not None and path.is_relative_to(inside): return m[0]
        return f'{mark}[{words}]({address(path.as_posix(), bool(mark))}{anchor})'
    return LINK.sub(changed, text)
