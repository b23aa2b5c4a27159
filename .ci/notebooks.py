"""Run the notebooks of nbs/ and the study's pages as `nbdev-test` does, in one process whose garbage collections leave out what was there before.

All that torch, fastai and earlier notebooks have made would take half a second each time, and IPython alone collects once for each notebook when the
process ends."""
import gc
import warnings

import nbdev.test

with warnings.catch_warnings():
    warnings.simplefilter('ignore') # fastai uses what torch has deprecated
    import fastai.vision.all  # noqa: F401 -- brings most of what notebooks import

test_nb = nbdev.test.test_nb


def freeze():
    gc.collect()
    gc.freeze()


def test_frozen(*args, **kwargs):
    freeze()
    return test_nb(*args, **kwargs)


if __name__ == '__main__':
    nbdev.test.test_nb = test_frozen
    try:
        for path in (None, 'studies/questions'): nbdev.test.nbdev_test(path, n_workers=0)
    finally: freeze()
