"""Do the tests notice? Change one operator, number or condition of a module at a time (a mutant) and run the module's tests until one fails (it is killed).

The changes are cosmic-ray's, but for each operator one or two others and not all eleven: what turns a sum into a shift is killed by any test. Annotations are
left alone, texts too. Tests run in a fork of a process that has imported torch and fastai, on a copy in a temporary folder."""
import argparse
import gc
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

os.environ |= dict(OMP_NUM_THREADS='1', MPLBACKEND='agg', PYTHONWARNINGS='ignore', PYTEST_DISABLE_PLUGIN_AUTOLOAD='1')

import cv2, fastai.vision.all, pydantic, sklearn.linear_model, torch  # noqa: E401,E402,F401 (what the tests import is imported once)
import hypothesis.extra.numpy  # noqa: E402,F401
import pytest  # noqa: E402
from cosmic_ray.ast import ast_nodes, get_ast  # noqa: E402
from cosmic_ray.mutating import mutate_code  # noqa: E402
from cosmic_ray.operators.provider import OperatorProvider  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
os.environ.setdefault('PROXY_ATTENTION_DATA', str(ROOT.parent/'shared'/'data'))
WANTED = 0.85 # Share of a module's mutants that must be killed

tests = { # Of each module
    'erase': ['test_erase', 'test_context_fill'], 'select': ['test_select'], 'shortcut_test': ['test_shortcut_test'], 'stages': ['test_stages'],
    'lab/data/splits': ['test_lab_splits'],
}
binary = 'Add_Sub Sub_Add Mul_Div Div_Mul FloorDiv_Div Mod_Mul Pow_Mul BitOr_BitAnd BitAnd_BitOr BitXor_BitAnd LShift_RShift RShift_LShift'
compare = 'Eq_NotEq NotEq_Eq Lt_LtE Lt_GtE LtE_Lt LtE_Gt Gt_GtE Gt_LtE GtE_Gt GtE_Lt Is_IsNot IsNot_Is'
operators = [*(f'ReplaceBinaryOperator_{k}' for k in binary.split()), *(f'ReplaceComparisonOperator_{k}' for k in compare.split()),
             *(f'ReplaceUnaryOperator_Delete_{k}' for k in ('USub', 'Not', 'Invert')), 'AddNot', 'ReplaceTrueWithFalse', 'ReplaceFalseWithTrue', 'ReplaceAndWithOr',
             'ReplaceOrWithAnd', 'NumberReplacer', 'RemoveDecorator', 'ZeroIterationForLoop', 'ExceptionReplacer', 'ReplaceBreakWithContinue', 'ReplaceContinueWithBreak']


def in_annotation(node):
    while (above := node.parent) is not None:
        if above.type == 'tfpdef' or above.type == 'annassign' and node is above.children[1] or above.type == 'funcdef' and node is above.annotation: return True
        node = above
    return False

def mutants(source):
    "(line, before, after, whole mutated source) of each mutant"
    nodes = list(ast_nodes(get_ast(source)))
    for name in operators:
        op = OperatorProvider()[name]()
        places = [in_annotation(node) for node in nodes for _ in op.mutation_positions(node)]
        for k in [k for k,skip in enumerate(places) if not skip]:
            changed = mutate_code(source, op, k)
            both = list(zip(source.splitlines(), changed.splitlines()))
            line = next((i for i,(a,b) in enumerate(both) if a != b), None)
            if line is not None: yield line + 1, both[line][0].strip(), both[line][1].strip(), changed

class QuickestFirst:
    "A plugin: the process ends at the first failure, without pytest's tidying up; a file keeps how long each test took"
    def __init__(self, file): self.file, self.took, self.known = file, Counter(), json.loads(file.read_text()) if file.exists() else {}
    def pytest_collection_modifyitems(self, items): items.sort(key=lambda item: self.known.get(item.nodeid, 0))
    def pytest_collectreport(self, report):
        if report.failed: os._exit(1)
    def pytest_runtest_logreport(self, report):
        self.took[report.nodeid] += report.duration
        if report.failed: os._exit(1)
    def pytest_sessionfinish(self, exitstatus):
        if not self.known: self.file.write_text(json.dumps(self.took))
        os._exit(int(exitstatus))

def outcome(copy, files, limit):
    "How the tests end in a fork: 'passed', 'failed' or 'timeout'"
    pid = os.fork()
    if not pid:
        os.chdir(copy)
        null = os.open(os.devnull, os.O_RDWR)
        for k in range(3): os.dup2(null, k)
        sys.path.insert(0, str(copy))
        plugin = QuickestFirst(copy/f'{files[0]}.json')
        os._exit(int(pytest.main(['-p', 'no:cacheprovider', '-p', 'no:logging', f'--basetemp={copy/"tmp"}', *(f'tests/{f}.py' for f in files)], [plugin])))
    end, done = time.monotonic() + limit, 0
    try:
        while time.monotonic() < end:
            done,status = os.waitpid(pid, os.WNOHANG)
            if done: return 'passed' if status == 0 else 'failed'
            time.sleep(0.01)
        return 'timeout'
    finally:
        if not done:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)

def check(module, copy):
    "Counts of what became of a module's mutants; those that survive are printed"
    file = copy/'proxy_attention'/f'{module}.py'
    source, start, sys.dont_write_bytecode = file.read_text(), time.monotonic(), False
    if outcome(copy, tests[module], 600) != 'passed': sys.exit(f"{module}: its tests fail without any change")
    limit, count = 5 + 3*(time.monotonic() - start), Counter()
    for f in (file.parent/'__pycache__').glob(f'{file.stem}.*'): f.unlink()
    sys.dont_write_bytecode = True # a mutant may be as long and as old as another
    for line,before,after,changed in mutants(source):
        file.write_text(changed)
        count[found := outcome(copy, tests[module], limit)] += 1
        if found == 'passed': print(f"  {module}.py:{line} survives\n    - {before}\n    + {after}", flush=True)
    file.write_text(source)
    return count


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('modules', nargs='*', choices=[[], *tests], help="all, unless named")
    hypothesis.settings.register_profile('mutants', derandomize=True, database=None, phases=(hypothesis.Phase.explicit, hypothesis.Phase.generate))
    hypothesis.settings.load_profile('mutants') # a failing example isn't made smaller
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1)) # the folder goes then too
    gc.freeze() # forks need not look through torch
    low = []
    memory = Path('/dev/shm') # noqa: S108  (a folder of our own is made in it)
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as tmp: # in memory, where there is such a folder
        for d in ('proxy_attention', 'tests'): shutil.copytree(ROOT/d, Path(tmp)/d, ignore=shutil.ignore_patterns('__pycache__'))
        shutil.copy(ROOT/'pyproject.toml', tmp)
        for module in parser.parse_args().modules or tests:
            start = time.monotonic()
            count = check(module, Path(tmp))
            share = 1 - count['passed']/count.total()
            print(f"{module}: {count.total()} mutants, {count['failed']} killed, {count['timeout']} timeouts, {count['passed']} survivors: "
                  f"{share:.0%} killed ({time.monotonic() - start:.0f} s)", flush=True)
            if share < WANTED: low.append(module)
    if low: sys.exit(f"fewer than {WANTED:.0%} killed: {', '.join(low)}")
