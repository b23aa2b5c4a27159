"""The probe in the callback: it is asked where a tested scout finds no single region, finds a planted dot, and leaves no trace where it finds nothing."""
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from kit import CLASSES, SIDE, cb_of, make_learner, quiet_cb, read_rgb, seed_all, shapes_dls
from proxy_attention import callback, gallery, probe_test  # noqa: F401  (show_proxies is patched in by gallery)
from proxy_attention.audit import audit
from proxy_attention.callback import ProxyAttentionCB
from proxy_attention.copies import Eraser
from proxy_attention.probe_scan import FOLDS, draw_folds, fit_folds, out_of_fold_scores
from proxy_attention.shortcut_test import Counts, Verdict, necessity_test, sufficiency_test, verdict_text

DOT = 8


def cued(root, strength=1., per_class=36):
    "Noise with faint stripes that tell the class, all over, and a coloured dot that tells it too, at a random place"
    rng = np.random.default_rng(0)
    for c,name in enumerate(CLASSES):
        (root/name).mkdir(parents=True)
        for k in range(per_class):
            img = rng.integers(0, 120, (SIDE, SIDE, 3), dtype=np.uint8)
            img[::c + 2] += 35
            colour = c if rng.random() < strength else rng.integers(3)
            y,x = rng.integers(0, SIDE - DOT, 2)
            img[y:y+DOT, x:x+DOT] = np.eye(3, dtype=np.uint8)[2 - colour]*250
            Image.fromarray(img).save(root/name/f'{name}_{k:02}.png')
    return root

@pytest.fixture(scope='module')
def dots(tmp_path_factory): return cued(tmp_path_factory.mktemp('dots')/'images')

def scout_found_spread(c): return Verdict('spread', c, 0.1, (0., 0.2))

@pytest.fixture
def spread(monkeypatch):
    "A scout's necessity test says spread; a probe's is its own"
    monkeypatch.setattr(callback, 'necessity_test', scout_found_spread)

def fitted(root, **kwargs):
    seed_all(1)
    learn = make_learner(lambda: shapes_dls(root), quiet_cb(**dict(select=None, probe=True, scout='2 steps', fill='context', path='run') | kwargs))
    learn.fit(1, 1e-3)
    return learn

def weights(learn): return torch.cat([p.detach().flatten() for p in learn.model.state_dict().values()])

@pytest.fixture(scope='module')
def found(dots, tmp_path_factory):
    "A learner whose probe has found the dots, for reading only; `asked`: for a place that all images share"
    with pytest.MonkeyPatch.context() as m:
        m.setattr(callback, 'necessity_test', scout_found_spread)
        asked, real = [], probe_test.shared_map
        m.setattr(probe_test, 'shared_map', lambda *args: asked.append(1) or real(*args))
        learn = fitted(dots, path=tmp_path_factory.mktemp('found')/'run')
        learn.asked = asked
        return learn

def test_a_dot_is_found_and_erased(found):
    learn = found
    cb, report = cb_of(learn), cb_of(learn).last_report
    assert cb.last_verdict.name == 'shortcut' and cb.last_verdict.counts.control is not None and 'linear probe' in report.text
    assert len(learn.proxies) == report.proxies == 81 and set(learn.proxies['method']) == {'probe'}
    assert len(learn.dls.train_ds) == 81, "in their originals' place"
    gone = []
    for row in learn.proxies.itertuples():
        before, after = read_rgb(row.original), read_rgb(row.path)
        dot = before.max(-1) == 250
        gone.append((before != after).any(-1)[dot].mean())
    assert np.mean(gone) > 0.8 and np.allclose(learn.proxies['erased'], 0.1, atol=0.03)
    assert audit(cb.run_path, near=None)
    learn.show_proxies(2)

def test_off_asks_none(dots, spread):
    learn = fitted(dots, probe=False)
    assert cb_of(learn).last_verdict.name == 'spread' and not len(learn.proxies)

@pytest.mark.parametrize('kwargs', [dict(place='random'), dict(accept=True), dict(threshold=0.5), dict(scout_test=False, scout_merge='add')], ids=str)
def test_where_it_is_not_asked(dots, spread, monkeypatch, kwargs):
    monkeypatch.setattr(probe_test, 'probe_scan', lambda *args: pytest.fail('asked'))
    fitted(dots, **kwargs)

def test_real_evidence_is_not_asked_again(dots, monkeypatch):
    monkeypatch.setattr(callback, 'necessity_test', lambda c: None)
    monkeypatch.setattr(callback, 'sufficiency_test', lambda c, *_: Verdict('real', c, 1., (.9, 1.), 0., (0., .1)))
    monkeypatch.setattr(probe_test, 'probe_scan', lambda *args: pytest.fail('asked'))
    assert cb_of(fitted(dots)).last_verdict.name == 'real'

@pytest.mark.parametrize('why', ['nothing to find', 'real'])
def test_no_trace_where_it_finds_nothing(tmp_path, dots, spread, monkeypatch, why):
    root = dots if why == 'real' else cued(tmp_path/'none', strength=0.)
    if why == 'real': monkeypatch.setattr(probe_test, 'sufficiency_test', lambda c, *_: Verdict('real', c, 1., (.9, 1.), 0., (0., .1)))
    seed_all(1)
    without = make_learner(lambda: shapes_dls(root))
    without.fit(1, 1e-3)
    learn = fitted(root)
    assert torch.equal(weights(learn), weights(without)) and not len(learn.proxies) and learn.dls.train_ds is not None
    assert not any(m._forward_hooks for m in learn.model.modules()) and cb_of(learn).last_verdict.name == 'spread'
    assert cb_of(learn).last_report.verdict.counts.control is None, "what is reported is the scout's"

def test_the_same_seed_makes_the_same_copies(found, dots, spread):
    made = [learn.proxies.drop(columns='path') for learn in (found, fitted(dots, path='b'))]
    assert made[0].equals(made[1])

def test_suspects_get_no_copy(dots, spread):
    learn = fitted(dots, suspects=[7, 20, 33])
    assert len(learn.proxies) == 78 and len(learn.dls.train_ds) == 81

def test_images_too_small_for_early_layers(shapes, spread):
    learn = make_learner(lambda: shapes_dls(shapes), quiet_cb(select=None, probe=True, scout='2 steps'))
    learn.model[0][0].stride = (4, 4)
    learn.fit(1, 1e-3)
    assert cb_of(learn).last_verdict.name == 'spread'

def test_features_that_are_not_finite(dots, spread, monkeypatch):
    monkeypatch.setattr(probe_test, 'item_features', lambda model, dls, data, *args: (torch.full((len(data), 4), torch.nan), np.ones(len(data), bool)))
    assert cb_of(fitted(dots)).last_verdict.name == 'spread'

def test_donors_are_items_whose_place_is_known(dots, spread, monkeypatch):
    "Only some of the items have a map while a window is tested"
    monkeypatch.setattr(probe_test, 'MAX_FITTED', 40)
    asked, old = [], Eraser.other
    def other(self, i, *args):
        k, img = old(self, i, *args)
        if len(self.seen.idxs) == 40: asked.append(k in self.at)
        return k, img
    monkeypatch.setattr(Eraser, 'other', other)
    fitted(dots)
    assert len(asked) > 40 and all(asked)

def test_true_or_false():
    with pytest.raises(TypeError, match='probe='): ProxyAttentionCB(probe=1)


# -- how much is erased, and with what ------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('more, area', [(1., 0.04), (-1., 0.1)])
def test_the_smallest_window_that_tells_as_much(dots, spread, monkeypatch, more, area):
    monkeypatch.setattr(probe_test, 'WINDOW_TOLERANCE', more)
    monkeypatch.setattr(probe_test, 'sufficiency_test', lambda c, *_: Verdict('shortcut', c, 1., (.9, 1.), .5, (.4, .6)))
    asked = []
    monkeypatch.setattr(probe_test, 'necessity_test', asked.append)
    learn = fitted(dots)
    assert np.allclose(learn.proxies['erased'], area, atol=0.02)
    assert len(asked) == (2 if more > 0 else 3)
    assert np.allclose([r['area'] for r in cb_of(learn).copies.store.rows.values()], area) and f'{100*area:g}% of each image' in cb_of(learn).last_report.text

def test_detectors_find_more_of_the_dots(found, dots, spread, monkeypatch):
    "Evidence alone misses some"
    def covered(learn):
        shares = []
        for r in learn.proxies.itertuples():
            before, after = read_rgb(r.original), read_rgb(r.path)
            shares.append((before != after).any(-1)[before.max(-1) == 250].mean())
        return np.mean(shares)
    monkeypatch.setattr(probe_test, 'fit_detectors', lambda model, dls, base, idxs, by, *args: by)
    assert covered(found) > covered(fitted(dots))

def placed(root):
    "Noise with faint stripes that tell the class, all over, and a white dot whose place tells it too"
    cued(root, 0.)
    rng = np.random.default_rng(2)
    for f in sorted(root.rglob('*.png')):
        img, c = rng.integers(0, 120, (SIDE, SIDE, 3), dtype=np.uint8), CLASSES.index(f.parent.name)
        img[::c + 2] += 48 # Enough for a probe to read where the dot is gone
        y,x = (0, SIDE//2 - DOT//2, SIDE - DOT)[c], (SIDE - DOT, SIDE//2 - DOT//2, 0)[c]
        img[y:y+DOT, x:x+DOT] = 250
        Image.fromarray(img).save(f)
    return root

@pytest.fixture(scope='module')
def places(tmp_path_factory): return placed(tmp_path_factory.mktemp('places')/'images')

@pytest.mark.parametrize('fill, used', [('context', 'swap'), ('mean', 'mean')])
def test_a_place_that_tells_gets_another_images_dot(places, spread, fill, used):
    learn = fitted(places, fill=fill)
    cb, report = cb_of(learn), cb_of(learn).last_report
    assert cb.last_verdict.name == 'shortcut' and {r['fill'] for r in cb.copies.store.rows.values()} == {used}
    assert report.swapped == (fill == 'context') == ('shows that of another image' in report.text)
    if used == 'swap':
        shown = [(read_rgb(r.path).min(-1) == 250).sum() for r in learn.proxies.itertuples()]
        assert np.mean(np.array(shown) > DOT*DOT/2) > 0.8, "a dot, at another place"
    assert audit(cb.run_path, near=None)

def test_a_place_that_does_not_tell_is_filled_as_asked(found):
    assert {r['fill'] for r in cb_of(found).copies.store.rows.values()} == {'context'}


# -- a place that all images share ----------------------------------------------------------------------------------------------------------------

def framed(root, strength=1., per_class=36):
    "Noise with faint stripes that tell the class, all over, and a frame whose colour tells it too"
    cued(root, 0., per_class)
    rng = np.random.default_rng(1)
    for f in sorted(root.rglob('*.png')):
        img, c = read_rgb(f).copy(), CLASSES.index(f.parent.name)
        inner = img[2:-2, 2:-2].copy()
        img[:] = np.eye(3, dtype=np.uint8)[2 - (c if rng.random() < strength else rng.integers(3))]*250
        img[2:-2, 2:-2] = inner
        Image.fromarray(img).save(f)
    return root

@pytest.fixture(scope='module')
def frames(tmp_path_factory): return framed(tmp_path_factory.mktemp('frames')/'images')

def test_a_frame_is_found_and_erased(frames, spread):
    learn = fitted(frames)
    cb, report = cb_of(learn), cb_of(learn).last_report
    assert cb.last_verdict.name == 'shortcut' and '25% of each image, the same in all, is erased' in report.text and report.erased
    assert len(learn.proxies) == 81 and np.allclose(learn.proxies['erased'], 0.25, atol=0.03)
    rows = cb.copies.store.rows.values()
    assert {r['area'] for r in rows} == {0.25} and {r['method'] for r in rows} == {'probe'}, "what a manifest says is what was done"
    lost = np.mean([(read_rgb(r.original) != read_rgb(r.path)).any(-1) for r in learn.proxies.itertuples()], axis=0)
    frame = np.ones((SIDE, SIDE), bool)
    frame[2:-2, 2:-2] = False
    middle = np.s_[SIDE//3:-(SIDE//3), SIDE//3:-(SIDE//3)]
    assert lost[frame].mean() > 0.5 > 0.1 > lost[middle].mean(), "a donor's frame may have the same colour"
    assert audit(cb.run_path, near=None)
    learn.show_proxies(2)

def test_a_frame_that_tells_nothing_is_none(tmp_path, spread):
    assert not len(fitted(framed(tmp_path/'images', strength=0.)).proxies)

def test_a_window_comes_first(found): assert not found.asked and set(found.proxies['method']) == {'probe'}

@pytest.mark.parametrize('copy, name, found', [(0.30, 'shortcut', True), (0.60, 'shortcut', False), (0.30, 'real', False)])
def test_enough_must_be_erased(frames, spread, monkeypatch, copy, name, found):
    "The frame counts as erased only if hardly anything is known without it, and only as a shortcut"
    n, asked = 81, []
    def necessity(c): return Verdict('spread', c, 0.1, (0., 0.2)) if not asked.append(1) and len(asked) == 1 else None
    def sufficiency(c, *_): return Verdict(name, replace(c, both=int(copy*n), copy_only=0, image_only=n - int(copy*n), n=n), 1., (.9, 1.), .5, (.4, .6))
    monkeypatch.setattr(probe_test, 'necessity_test', necessity)
    monkeypatch.setattr(probe_test, 'sufficiency_test', sufficiency)
    learn = fitted(frames)
    assert bool(len(learn.proxies)) == found and len(asked) == (2 if found else 3), "a window, then each area until one is found"


# -- parts ------------------------------------------------------------------------------------------------------------------------------------------

def test_folds_hold_a_part_of_each_class():
    labels = np.repeat([0, 1, 2], [40, 9, 3])
    folds = draw_folds(labels)
    assert [sorted(np.bincount(folds[labels == c], minlength=FOLDS)) for c in (0, 1, 2)] == [[10]*4, [2, 2, 2, 3], [0, 1, 1, 1]]
    assert (draw_folds(labels) == folds).all() and (draw_folds(labels, 1) != folds).any()

def test_classes_of_one_image_are_in_all_folds():
    assert np.bincount(draw_folds(np.arange(200)), minlength=FOLDS).min() > 30

def test_each_is_judged_by_a_probe_that_does_not_know_it():
    g = torch.Generator().manual_seed(0)
    features, labels = torch.randn(80, 200, generator=g), np.arange(80) % 2
    folds = draw_folds(labels)
    probes = fit_folds(features, labels, folds, 2)
    assert (out_of_fold_scores(probes, features, folds).argmax(1).numpy() == labels).mean() < 0.75, "noise can't be known"
    assert (out_of_fold_scores(probes, features, (folds + 1) % FOLDS).argmax(1).numpy() == labels).mean() > 0.95, "but learnt by heart"

@pytest.mark.parametrize('copies,elsewhere,refitted,name', [(100, 340, 200, 'shortcut'), (100, 340, 45, 'real'), (300, 340, None, 'spread'), (190, 345, None, 'unclear')])
def test_verdicts(copies, elsewhere, refitted, name):
    c = Counts(400, copies, 380 - copies, 0, refitted, 0.1, elsewhere)
    v = necessity_test(c)
    if v is None: v = sufficiency_test(c)
    assert v.name == name and np.isclose(v.necessity, (elsewhere - copies)/(380 - 40))
    text = verdict_text(v)
    assert name == 'unclear' or ('linear probe' in text and f"{100*elsewhere/400:.0f}%" in text)
