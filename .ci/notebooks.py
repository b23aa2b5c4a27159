"""Run the notebooks of nbs/ and the study's pages as `nbdev-test` does, in one process that doesn't look through torch again and again.

IPython collects garbage once for each notebook when the process ends: half a second each, if all that the imports have made were looked through."""
import gc
import warnings

from nbdev.test import nbdev_test

with warnings.catch_warnings():
    warnings.simplefilter('ignore') # fastai uses what torch has deprecated
    import fastai.vision.all  # noqa: F401 -- brings most of what notebooks import


def freeze():
    "What is there now counts as no garbage: collections leave it out"
    gc.collect()
    gc.freeze()


if __name__ == '__main__':
    freeze()
    try:
        for path in (None, 'studies/questions'): nbdev_test(path, n_workers=0)
    finally: freeze()
