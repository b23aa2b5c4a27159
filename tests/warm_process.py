"""A process that has imported torch and fastai, and nothing of ours, runs scripts in forks of itself: see `kit.fresh_process`."""
import importlib
import json
import os
import signal
import sys
import time
import traceback
import types
import warnings


def run(code, argv, folder, env, out, err):
    "The script as `python -c` would run it, in this process; its exit code"
    for fd,file in enumerate((os.devnull, out, err)): os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC if fd else os.O_RDONLY), fd)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(env)
    sys.argv = ['-c', *argv]
    sys.path[:] = ['', *filter(None, env.get('PYTHONPATH', '').split(os.pathsep)), *sys.path[1:]]
    main = sys.modules['__main__'] = types.ModuleType('__main__')
    status = 0
    try: exec(compile(code, '<string>', 'exec'), vars(main)) # noqa: S102
    except SystemExit as e:
        if isinstance(e.code, str): print(e.code, file=sys.stderr)
        status = e.code if isinstance(e.code, int) else int(e.code is not None)
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return status

def start(*args):
    pid = os.fork()
    if pid: return pid
    try: os._exit(run(*args))
    finally: os._exit(1)

def wait(pid, seconds):
    "The exit code of a process, which is killed if it takes longer"
    end, ended = time.monotonic() + seconds, (0, 0)
    while not ended[0] and time.monotonic() < end:
        ended = os.waitpid(pid, os.WNOHANG)
        if not ended[0]: time.sleep(0.01)
    if not ended[0]:
        os.kill(pid, signal.SIGKILL)
        ended = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(ended[1])

def serve():
    "A script to start, or a process to wait for, a line of standard input; its number, or its exit code (below 0: the signal that ended it), a line of standard output"
    warnings.simplefilter('ignore')
    for name in ('torch', 'torchvision', 'pandas', 'scipy.stats', 'sklearn.metrics', 'matplotlib.pyplot', 'fastai.learner', 'fastai.vision.core'): importlib.import_module(name)
    for line in sys.stdin:
        asked, args = json.loads(line)
        print(start(*args) if asked == 'start' else wait(*args), flush=True)

if __name__ == '__main__': serve()
