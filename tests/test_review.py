"""What a person says of copies holds: in the training set, in later cycles, in the manifest, in another process."""
import builtins

import pytest

from kit import cb_of, make_learner, quiet_cb, shapes_dls
from proxy_attention import review  # noqa: F401  (patches Learner)
from proxy_attention.callback import ProxyAttentionCB
from proxy_attention.store import StoreError, read_manifest


def fitted(shapes, **conf):
    learn = make_learner(lambda: shapes_dls(shapes), quiet_cb(**{'select': 'all', **conf}))
    learn.fit(1, 1e-3)
    return learn

def indices(learn): return {r['index'] for r in cb_of(learn).copies.rows}

@pytest.mark.parametrize('save', [True, False])
def test_choices(shapes, save):
    learn = fitted(shapes, path='run', save=save)
    cb = cb_of(learn)
    rows = {c: r for c,r in zip(('keep', 'drop', 'object', 'label'), cb.copies.rows)}
    assert cb.review({r['id']: c for c,r in rows.items()}) == 3
    gone = {rows[c]['index'] for c in ('drop', 'object', 'label')}
    assert indices(learn) == set(range(27)) - gone and len(learn.dls.train_ds) == 27 + 24 == 27 + len(learn.proxies)
    assert learn.suspects['index'].tolist() == [rows['label']['index']]
    lines = read_manifest('run')
    assert {c: lines[r['id']]['review'] for c,r in rows.items()} == {c: c for c in rows} and len(lines) == 27
    learn.fit(1, 1e-3)
    assert indices(learn) == set(range(27)) - {rows[c]['index'] for c in ('object', 'label')}, "what was dropped may be made again"

def test_another_process_knows(shapes):
    learn = fitted(shapes, path='run')
    a,b = cb_of(learn).copies.rows[:2]
    cb_of(learn).review({a['id']: 'object', b['id']: 'label'})
    cb_of(learn).copies.store.close()
    again = make_learner(lambda: shapes_dls(shapes), quiet_cb(select='all', path='run'))
    again.fit(1, 1e-3)
    assert indices(again) == set(range(27)) - {a['index'], b['index']} and again.suspects['index'].tolist() == [b['index']]

def test_suspects_of_the_user_stay(shapes):
    learn = fitted(shapes, suspects=[4])
    row = cb_of(learn).copies.rows[0]
    cb_of(learn).review({row['id']: 'label'})
    assert learn.suspects['index'].tolist() == sorted([4, row['index']])

def test_an_original_comes_back(shapes):
    learn = fitted(shapes, merge='replace')
    row = cb_of(learn).copies.rows[0]
    assert len(learn.dls.train_ds) == 27 and list(learn.dls.train_ds.originals) == []
    cb_of(learn).review({row['id']: 'drop'})
    assert list(learn.dls.train_ds.originals) == [row['index']] and len(learn.dls.train_ds) == 27

def test_all_may_go(shapes):
    learn = fitted(shapes, share=.2)
    dls = cb_of(learn).prepared.dls
    cb_of(learn).review({r['id']: 'drop' for r in cb_of(learn).copies.rows})
    assert learn.dls is dls and not len(learn.proxies)
    assert cb_of(learn).review({}) == 0

@pytest.mark.parametrize('choices,words', [({'1-0': 'dorp'}, "Did you mean 'drop'"), ({'9-9': 'drop'}, "choices='9-9'"), ({'1-0': None}, 'choices=None')], ids=str)
def test_bad_choices(shapes, choices, words):
    learn = fitted(shapes, path='run')
    before = read_manifest('run')
    with pytest.raises(ValueError) as e: cb_of(learn).review(choices)
    assert words in str(e.value) and read_manifest('run') == before and len(learn.proxies) == 27

def test_a_hostile_line(shapes, tmp_path):
    import json
    learn = fitted(shapes, path=tmp_path/'run')
    cb_of(learn).copies.store.close()
    file = tmp_path/'run'/'manifest.jsonl'
    first,rest = file.read_text().split('\n', 1)
    file.write_text(json.dumps(json.loads(first) | dict(review='burn')) + '\n' + rest)
    with pytest.raises(StoreError, match="line 1 has review='burn'"): read_manifest(tmp_path/'run')

# -- the cards ----------------------------------------------------------------------------------------------------------------------------------

def test_cards(shapes):
    learn = fitted(shapes)
    view = learn.review_proxies(5)
    first = list(view.choices)
    assert first == [r['id'] for r in cb_of(learn).copies.rows[:5]] and len(view.box.children) == 6
    view.cards[first[0]].value, view.cards[first[3]].value = 'drop', 'object'
    view.button.click()
    assert len(learn.proxies) == 25 and view.said.value == '5 reviewed, 2 of them left the training set; 22 to go.'
    assert len(view.choices) == 5 and not set(first) & set(view.choices)
    picture = view.box.children[0].children[1]
    assert picture.value[:8] == b'\x89PNG\r\n\x1a\n'

def test_names_are_no_html(shapes):
    import ipywidgets as w
    learn = fitted(shapes)
    rows = cb_of(learn).copies.rows = list(cb_of(learn).copies.rows)
    rows[0]['label'] = '<img src=x onerror=alert(1)>'
    label = learn.review_proxies(1).box.children[0].children[0]
    assert type(label) is w.Label and '<img' in label.value

def test_until_nothing_is_left(shapes):
    learn = fitted(shapes, share=.1)
    view = learn.review_proxies(50)
    view.apply()
    assert len(learn.proxies) == 2 and view.choices == {} and '0 to go' in view.said.value
    assert learn.review_proxies().said.value == 'There are no copies to review.'

@pytest.mark.parametrize('max_n,error', [(0, ValueError), (1.5, ValueError), ('9', TypeError)])
def test_max_n(shapes, max_n, error):
    with pytest.raises(error, match='max_n='): fitted(shapes, share=.1).review_proxies(max_n)

def test_without_ipywidgets(shapes, monkeypatch):
    real = builtins.__import__
    def absent(name, *args, **kwargs):
        if name == 'ipywidgets': raise ImportError(name)
        return real(name, *args, **kwargs)
    learn = fitted(shapes, share=.1)
    monkeypatch.setattr(builtins, '__import__', absent)
    with pytest.raises(ImportError, match='pip install ipywidgets'): learn.review_proxies()

def test_without_the_callback(shapes):
    learn = make_learner(lambda: shapes_dls(shapes))
    with pytest.raises(ValueError, match='no ProxyAttentionCB'): learn.review_proxies()
    learn.add_cb(ProxyAttentionCB(verbose=False))
    assert learn.review_proxies().choices == {}
