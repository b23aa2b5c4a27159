"""The guards of the method: items in doubt get no copy, and a copy may have to prove that what it erased was evidence."""
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from fastai.losses import BCEWithLogitsLossFlat
from torch import nn

from kit import (CLASSES, Coded, coded_dls, copied_files, copy_bytes, files_in, footprint, hooks_of, label_of, last_of, logits_of, make_learner, quiet_cb,
                 same_weights, shapes_dls, cb_of, weights)
from proxy_attention import erase, learner, select  # noqa: F401  (learner patches Learner)
from proxy_attention.callback import ProxyAttentionCB
from proxy_attention.targets import explained_classes, explained_probability, targets
from proxy_attention.policy import Policy
from proxy_attention.select import item_indices

LOW = 1e-3

def files_of(learn): return [str(f) for f in cb_of(learn).prepared.items.base.items]

def manifest(learn): return [json.loads(line) for line in (cb_of(learn).copies.store.path/'manifest.jsonl').read_text().splitlines()]

@pytest.fixture
def fitted(shapes):
    "A function: a learner fitted once with the callback's arguments given; every item that may gets a copy"
    def make(**kwargs):
        learn = make_learner(lambda: shapes_dls(shapes), quiet_cb(**dict(select='all') | kwargs))
        learn.fit(1, LOW)
        return learn
    return make


# -- suspects -------------------------------------------------------------------------------------------------------------------------------------

def mask_of(idxs, n=27): return np.isin(np.arange(n), idxs)

forms = {'list': [20, 3, 7], 'array': np.array([20, 3, 7]), 'tensor': torch.tensor([20, 3, 7]), 'series': pd.Series([20, 3, 7], index=[5, 6, 7]),
         'mask': mask_of([20, 3, 7]), 'mask of bools': mask_of([20, 3, 7]).tolist(), 'mask tensor': torch.from_numpy(mask_of([20, 3, 7])),
         'set': {20, 3, 7}, 'twice': [20, 3, 20, 7], 'function': lambda learn: [20, 3, 7], 'function, mask': lambda learn: mask_of([20, 3, 7])}

@pytest.mark.parametrize('form', forms)
def test_suspects_get_no_copy_and_are_listed(fitted, form):
    learn = fitted(suspects=forms[form])
    files = files_of(learn)
    doubted = [files[i] for i in (20, 3, 7)]
    assert copied_files(learn) == set(files) - set(doubted) and last_of(learn)['suspects'] == 3 and last_of(learn)['candidates'] == 24
    ordered = form in ('list', 'array', 'tensor', 'series', 'twice', 'function')
    assert learn.suspects['original'].tolist() == (doubted if ordered else [doubted[1], doubted[2], doubted[0]])

@pytest.mark.parametrize('nothing', [None, [], (), np.zeros(27, bool), lambda learn: None, lambda learn: []])
def test_no_suspects(fitted, nothing):
    learn = fitted(suspects=nothing)
    assert len(learn.proxies) == 27 and last_of(learn)['suspects'] == 0 and len(learn.suspects) == 0
    assert list(learn.suspects.columns) == ['index', 'original', 'label', 'predicted', 'confidence']

def test_what_the_list_of_suspects_says(fitted):
    learn = fitted(suspects=[9, 0, 26])
    got, files = learn.suspects, files_of(learn)
    p = logits_of(learn.model, [files[i] for i in (9, 0, 26)]).softmax(1)
    true = [label_of(files[i]) for i in (9, 0, 26)]
    assert got['index'].tolist() == [9, 0, 26] and got['label'].tolist() == [CLASSES[c] for c in true]
    assert got['predicted'].tolist() == [CLASSES[c] for c in p.argmax(1)]
    assert np.allclose(got['confidence'], [p[k, c] for k,c in enumerate(true)], atol=1e-5)

def test_a_learner_without_the_callback_has_no_suspects(shapes): assert len(make_learner(shapes_dls(shapes)).suspects) == 0

def test_suspects_are_known_before_the_first_look(shapes):
    learn = make_learner(lambda: shapes_dls(shapes), quiet_cb(suspects=[2]))
    learn._grab_cbs(ProxyAttentionCB)[0].prepare()
    row = learn.suspects.iloc[0]
    assert row['index'] == 2 and row['label'] == CLASSES[label_of(row['original'])] and pd.isna(row['predicted']) and np.isnan(row['confidence'])

def test_only_suspects_that_would_have_got_a_copy_count(shapes):
    "And they don't take up the share"
    wrong = make_learner(lambda: shapes_dls(shapes), quiet_cb(select='wrong'))
    wrong.fit(1, LOW)
    at = sorted(r['index'] for r in manifest(wrong))
    right = sorted(set(range(27)) - set(at))
    assert len(at) > 3 and len(right) > 2
    gated = make_learner(lambda: shapes_dls(shapes), quiet_cb(select='wrong', suspects=[*at[:2], *right[:2]]))
    gated.fit(1, LOW)
    assert last_of(gated)['suspects'] == 2 and sorted(r['index'] for r in manifest(gated)) == at[2:] and len(gated.suspects) == 4
    capped = make_learner(lambda: shapes_dls(shapes), quiet_cb(select='low_confidence', share=.2, suspects=at[:2]))
    capped.fit(1, LOW)
    assert len(capped.proxies) == 5

def test_the_line_counts_them(fitted, capsys):
    fitted(suspects=[1, 2], verbose=True)
    assert 'no copy: 2 suspects, see learn.suspects' in capsys.readouterr().out
    fitted(verbose=True)
    assert 'suspects' not in capsys.readouterr().out

def test_a_function_is_called_once_before_anything_is_trained(shapes):
    asked = []
    def doubt(learn):
        asked.append((learn, weights(learn.model)))
        return [len(asked)]
    learn = make_learner(lambda: shapes_dls(shapes), quiet_cb(select='all', suspects=doubt))
    before = weights(learn.model)
    learn.fit(1, LOW)
    learn.fit(1, LOW)
    assert len(asked) == 1 and asked[0][0] is learn and same_weights(asked[0][1], before) and learn.suspects['index'].tolist() == [1]
    learn.dls = shapes_dls(shapes, seed=3)
    with pytest.warns(UserWarning, match='learn.dls was replaced'): learn.fit(1, LOW)
    assert len(asked) == 2 and learn.suspects['index'].tolist() == [2], "other items: asked again"

@pytest.mark.parametrize('bad, error', [(lambda learn: 1/0, ZeroDivisionError), (lambda learn: 'nonsense', TypeError), (lambda learn: [99], ValueError),
                                        (lambda: [], TypeError), (lambda learn: [True]*5, ValueError)])
def test_a_bad_function_is_found_out_before_training(shapes, bad, error):
    learn = make_learner(lambda: shapes_dls(shapes), quiet_cb(select='all', suspects=bad))
    before = weights(learn.model)
    with pytest.raises(error): learn.fit(1, LOW)
    assert same_weights(weights(learn.model), before) and len(learn.proxies) == 0

def test_a_function_may_ask_the_learner_in_a_fit(shapes):
    "Predictions inside of the call change neither the fit nor what is recorded of it"
    def run(suspects):
        learn = make_learner(lambda: shapes_dls(shapes), quiet_cb(select='all', suspects=suspects))
        learn.fit(2, LOW)
        return learn, footprint(learn)
    def surest(learn): return learn.get_preds(dl=learn.dls.valid)[0].argmax(0)
    (learn,a),(_,b) = run(surest), run([])
    assert len(learn.suspects) > 0 and {k: v for k,v in a.items() if k != 'items'} == {k: v for k,v in b.items() if k != 'items'}

def test_a_function_may_ask_the_learner_itself(fitted):
    def unsure(learn):
        files = files_of(learn)
        p = logits_of(learn.model, files).softmax(1)
        hardest.extend(sorted(range(27), key=lambda i: p[i, label_of(files[i])])[:4])
        p,y = learn.get_preds(dl=learn.dls.train.new(shuffle=False, drop_last=False))
        return p.gather(1, y[:, None])[:, 0].argsort()[:4]
    hardest = []
    learn = fitted(suspects=unsure)
    assert learn.suspects['index'].tolist() == hardest and len(learn.proxies) == 23

def test_a_function_that_draws_lots_changes_no_stream(shapes):
    def run(**kwargs):
        learn = make_learner(lambda: shapes_dls(shapes), quiet_cb(select='all', **kwargs))
        learn.fit(1, LOW)
        return footprint(learn)
    a,b = run(suspects=[]), run(suspects=lambda learn: [] if torch.rand(3).sum() + np.random.rand() > 0 else None)
    assert a == b

def test_suspects_get_no_copy_from_a_scout_either(shapes):
    learn = make_learner(lambda: shapes_dls(shapes), quiet_cb(suspects=[4, 5], scout='2 steps', scout_test=False, select=None))
    learn.fit(1, LOW)
    assert len(learn.proxies) == 25 and set(learn.proxies['cycle']) == {0} and {r['index'] for r in cb_of(learn).copies.rows}.isdisjoint({4, 5})
    assert list(learn.dls.train_ds.originals) == [4, 5] and last_of(learn)['suspects'] == 2

def test_suspects_and_ever_wrong(shapes):
    learn = make_learner(lambda: shapes_dls(shapes), quiet_cb(select='ever_wrong'))
    learn.fit(1, LOW)
    at, never = np.flatnonzero(cb_of(learn).fit_state.log.wrong), np.flatnonzero(~cb_of(learn).fit_state.log.wrong)
    assert len(at) > 3 and len(never)
    gated = make_learner(lambda: shapes_dls(shapes), quiet_cb(select='ever_wrong', suspects=[at[1], never[0]]))
    gated.fit(1, LOW)
    assert sorted(r['index'] for r in cb_of(gated).copies.rows) == sorted(set(at) - {at[1]}) and last_of(gated)['suspects'] == 1
    row = gated.suspects.set_index('index').loc[never[0]]
    assert pd.isna(row['predicted']) and np.isnan(row['confidence']), "an item that nobody looked at has no prediction"

def test_a_suspect_stays_in_where_copies_replace_originals(fitted):
    learn = fitted(suspects=[6], merge='replace')
    assert list(learn.dls.train_ds.originals) == [6] and len(learn.dls.train_ds) == 27

@pytest.mark.parametrize('value,words', [([27], '0 to 26.*got 27'), ([True]*26, 'a mask of 26 for 27 items')], ids=['too large', 'mask'])
def test_what_does_not_fit_the_training_set_is_told_before_training(shapes, value, words):
    learn = make_learner(lambda: shapes_dls(shapes), quiet_cb(suspects=value))
    before = weights(learn.model)
    with pytest.raises(ValueError, match=words): learn.fit(1, LOW)
    assert same_weights(before, weights(learn.model)) and files_in() == set()

def test_what_a_function_returns_is_checked_too(shapes):
    learn = make_learner(lambda: shapes_dls(shapes), quiet_cb(suspects=lambda learn: ['cat.png']))
    with pytest.raises(TypeError, match='suspects must hold indices'): learn.fit(1, LOW)
    assert hooks_of(learn.model) == 0

@pytest.mark.parametrize('value', ['cat.png', 3, [.5], [[1, 2]], [[1], [2, 3]], b'x', {'a': 1}], ids=str)
def test_what_can_not_be_suspects(value):
    with pytest.raises(TypeError, match='suspects'): ProxyAttentionCB(suspects=value)

def test_a_negative_index_is_no_item():
    with pytest.raises(ValueError, match='got -1'): ProxyAttentionCB(suspects=[3, -1])

def test_an_export_holds_no_suspects(fitted):
    learn = fitted(suspects=lambda learn: [11, 12]) # a lambda can't be pickled
    learn.export(Path('learner.pkl').resolve())
    assert len(learn.suspects) == 2 and b'suspects' not in Path('learner.pkl').read_bytes().replace(b'suspects_', b'')

def test_item_indices_keep_their_order():
    rng = np.random.default_rng(0)
    for _ in range(50):
        n = int(rng.integers(1, 20))
        given = rng.integers(0, n, rng.integers(0, 30))
        assert item_indices('i', given, n).tolist() == list(dict.fromkeys(given.tolist()))


# -- the acceptance test --------------------------------------------------------------------------------------------------------------------------

def what_falls(target, p, true, pred):
    "What must be less on the copy, computed by hand; `pred` and the rival are those of the original"
    rival = p.clone()
    return {'pred': lambda q: q[pred], 'true': lambda q: q[true],
            'contrast': lambda q: q[max((c for c in range(len(rival)) if c != true), key=lambda c: rival[c])] - q[true]}[target]

def judged(learn, target):
    "For each original with a copy: what must fall, on the original and on the copy, by an evaluation of its own"
    out = {}
    for o,c in zip(learn.proxies['original'], learn.proxies['path']):
        p,q = logits_of(learn.model, [o, c]).softmax(1)
        told = what_falls(target, p, label_of(o), int(p.argmax()))
        out[o] = float(told(p)), float(told(q))
    return out

@pytest.mark.parametrize('target', targets)
def test_a_copy_is_kept_if_what_its_map_explains_falls(fitted, target):
    free, strict = (fitted(target=target, fill='blur', area=.3, accept=a) for a in (False, True))
    want = {o for o,(before,after) in judged(free, target).items() if after < before}
    assert 0 < len(want) < len(free.proxies), "this test needs some of both"
    assert copied_files(strict) == want and last_of(strict)['rejected'] == len(free.proxies) - len(want) and last_of(strict)['proxies'] == len(want)
    assert all(copy_bytes(strict)[o] == copy_bytes(free)[o] for o in want)
    for r,(before,after) in zip(cb_of(strict).copies.rows, judged(strict, target).values()):
        assert (r['before'], r['after']) == pytest.approx((before, after), abs=1e-4) and r['after'] < r['before']

def test_rejects_leave_nothing(fitted):
    learn = fitted(fill='blur', area=.3, accept=True)
    live = {Path(p).name for p in learn.proxies['path']}
    assert last_of(learn)['rejected'] > 0 and {p.name for p in cb_of(learn).copies.store.path.glob('*.png')} == live
    assert {r['file'] for r in manifest(learn)} == live and len(learn.dls.train_ds) == 27 + len(live)

def test_it_is_off_by_default(fitted):
    learn = fitted(area=.3)
    assert Policy().accept is False and last_of(learn)['rejected'] == 0 and len(learn.proxies) == 27 and 'before' not in manifest(learn)[0]

@pytest.fixture
def same(monkeypatch):
    "A fill that changes nothing: no copy can pass"
    monkeypatch.setitem(erase.fills, 'same', lambda img, *args, **kwargs: img.copy())
    return 'same'

def test_a_copy_that_changes_nothing_does_not_pass(fitted, same, capsys):
    learn = fitted(fill=same, accept=True, verbose=True)
    assert last_of(learn)['rejected'] == 27 == last_of(learn)['candidates'] and len(learn.proxies) == 0 and last_of(learn)['flat'] == 0
    said = capsys.readouterr().out
    assert 'no copy: 27 rejected' in said and 'dls.train is as it was made' in said and manifest(learn) == []

def test_when_all_are_rejected_there_is_no_footprint(shapes, same):
    seen = []
    for cb in (None, quiet_cb(select='all', fill=same, accept=True)):
        learn = make_learner(lambda: shapes_dls(shapes), cb)
        learn.fit(1, LOW)
        seen.append(footprint(learn))
    assert seen[0] == seen[1]

def test_the_loader_alone_changes(shapes):
    seen = []
    for cb in (None, quiet_cb(select='all', area=.3, accept=True)):
        learn = make_learner(lambda: shapes_dls(shapes), cb)
        learn.fit(1, LOW)
        seen.append(footprint(learn))
    assert seen[1].pop('items') > seen[0].pop('items') and seen[0] == seen[1]

def test_flat_and_rejected_are_counted_apart(fitted, monkeypatch):
    real = erase.saliency_masks
    def holes(maps, *args, **kwargs):
        masks = real(maps, *args, **kwargs)
        return [np.zeros_like(m) if k % 3 == 0 else m for k,m in enumerate(masks)] # the first of each size: nothing to erase
    from proxy_attention import copies
    monkeypatch.setattr(copies, 'saliency_masks', holes)
    learn = fitted(area=.3, accept=True, fill='noise')
    done = last_of(learn)
    assert done['flat'] > 0 and done['rejected'] > 0 and done['flat'] + done['rejected'] + done['proxies'] == 27

def test_same_seed_same_bytes(fitted):
    a,b = (fitted(path=p, area=.3, accept=True, fill='noise') for p in ('a', 'b'))
    assert copy_bytes(a) == copy_bytes(b) and manifest(a) == manifest(b) and 0 < len(a.proxies) < 27

def test_copies_are_judged_as_they_will_be_read(fitted):
    learn = fitted(format='jpg', area=.3, accept=True)
    raw = {r['original']: r['after'] for r in manifest(fitted(format='png', area=.3, accept=True))}
    got = {o: (r['after'], after) for r,(o,(_,after)) in zip(cb_of(learn).copies.rows, judged(learn, 'pred').items())}
    assert all(a == pytest.approx(b, abs=1e-3) for a,b in got.values())
    assert any(abs(raw[o] - a) > 1e-5 for o,(a,_) in got.items() if o in raw), "JPEG changes pixels, and so probabilities"

def test_the_model_is_asked_once_more_for_the_copies_only(shapes):
    counts = []
    class Counted(nn.Module):
        def forward(self, x):
            if not self.training: counts.append(len(x))
            return x
    from kit import tiny_model
    def images(accept):
        learn = make_learner(lambda: shapes_dls(shapes), quiet_cb(select='low_confidence', share=.3, accept=accept), model=nn.Sequential(Counted(), *tiny_model()))
        learn.fit(1, LOW)
        got, counts[:] = sum(counts), []
        return got
    assert images(True) - images(False) == 8

def test_several_labels(tmp_path):
    "Each label has a probability of its own"
    class Several(Coded):
        def __init__(self, n, seed=0, first=0):
            super().__init__(n, seed, first)
            self.items = [(x, torch.tensor([c == 0, c != 1, c == 2]).float()) for x,c in self.items]
    def run(accept):
        learn = make_learner(lambda: coded_dls(Several(24), Several(9, 1, 100)), quiet_cb(select='all', area=.3, accept=accept, method='gradcam++', path=tmp_path/str(accept)),
                             loss_func=BCEWithLogitsLossFlat(), metrics=[])
        learn.fit(2, 3e-2)
        return learn
    free, strict = run(False), run(True)
    base, passed = cb_of(free).prepared.items.base, set()
    free.model.eval()
    from proxy_attention.store import decode_image
    for r in cb_of(free).copies.rows:
        copy = torch.from_numpy(decode_image((cb_of(free).copies.store.path/r['file']).read_bytes())).permute(2, 0, 1)
        x,y = base[r['index']]
        with torch.no_grad(): p,q = free.model(torch.stack([x, copy]).float()/255).sigmoid()
        false = [c for c in range(3) if y[c] == 0 and p[c] > .5]
        c = max(false or range(3), key=lambda c: p[c])
        if q[c] < p[c]: passed.add(r['index'])
    assert {r['index'] for r in cb_of(strict).copies.rows} == passed and 0 < len(passed) < 24

def test_explained_and_probability():
    logits = torch.tensor([[0., 1, 2, -1], [3, 0, 0, 0]])
    coefs = torch.tensor([[0., 1, 0, -1], [0, 0, 1, 0]])
    classes = explained_classes(coefs)
    assert classes.tolist() == [[1, 3], [2, -1]]
    p,s = logits.softmax(1), logits.sigmoid()
    assert torch.allclose(explained_probability(logits, classes), torch.stack([p[0, 1] - p[0, 3], p[1, 2]]))
    assert torch.allclose(explained_probability(logits, classes, multilabel=True), torch.stack([s[0, 1] - s[0, 3], s[1, 2]]))

@pytest.mark.parametrize('value', [1, 'yes', None], ids=str)
def test_accept_is_true_or_false(value):
    with pytest.raises(TypeError, match='accept='): ProxyAttentionCB(accept=value)
    with pytest.raises(TypeError, match='accept='): Policy(accept=value)

def test_workers(shapes):
    "Loaders with worker processes give the same"
    def run(workers):
        learn = make_learner(lambda: shapes_dls(shapes, num_workers=workers), quiet_cb(select='all', area=.3, accept=True, fill='noise'))
        learn.validate()
        learn._grab_cbs(ProxyAttentionCB)[0].make_proxies()
        return learn
    a,b = run(0), run(1)
    assert copy_bytes(a) == copy_bytes(b) and 0 < len(a.proxies) < 27
