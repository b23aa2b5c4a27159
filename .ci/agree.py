"""Fail unless notebooks and modules, and index notebook and README, agree: what `nbdev-export` and `readme.py` make is what is committed."""
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent


def files(root): return {p.relative_to(root): p.read_bytes() for d in ('proxy_attention', 'nbs') for p in (root/d).rglob('*') if p.suffix in ('.py', '.ipynb')}


with tempfile.TemporaryDirectory() as tmp:
    copy = Path(tmp)/'copy'
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns('.git', '.venv', 'demo', '.proxies', '__pycache__', '*.egg-info', 'build', '.ipynb_checkpoints'))
    before = files(copy)
    for cmd in ('nbdev-export', 'nbdev-clean'): subprocess.run([BIN/cmd], cwd=copy, check=True)
    after = files(copy)
    differ = sorted(str(p) for p in before.keys() | after.keys() if before.get(p) != after.get(p))
    readme = subprocess.run([sys.executable, copy/'.ci'/'readme.py', '--print'], cwd=copy, check=True, capture_output=True, text=True).stdout
    if readme != (ROOT/'README.md').read_text(): differ.append('README.md')
if differ: sys.exit('notebooks and what is made of them differ (make notebooks readme):\n  ' + '\n  '.join(differ))
print(f"notebooks, modules and README agree ({len(before)} files)")
