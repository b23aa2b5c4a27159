"""The demo's arms are a user's own lines, its page says first what was found, and none of its settings is ignored."""
import html

import pytest
import torch
from fastai.learner import Learner
from fastai.metrics import accuracy
from fastai.torch_core import set_seed
from sklearn.datasets import load_digits

from proxy_attention.callback import ProxyAttentionCB
from proxy_attention.lab import demo
from proxy_attention.lab.config.problems import SettingsError
from proxy_attention.lab.config.settings import load_experiment
from proxy_attention.lab.data.digits import shortcut_digits_dls
from proxy_attention.lab.models.small import small_cnn
from proxy_attention.lab.report.records import read_records
from proxy_attention.lab.report.run_verdict import verdict
from test_lab_report import check

pytestmark = pytest.mark.filterwarnings('ignore')

INI = """\
[data:few]
source = shortcut_digits
n_train = 200
n_valid = 50
bs = 20
[model:tiny]
arch = small_cnn
width = 4
[proxy:default]
scout = 15%
cycles = 0
[proxy:untested]
scout = 15%
scout_test = false
cycles = 0
[proxy:letter]
scout = off
cycles = 2
[experiment:demo]
data = few
model = tiny
proxy = default
epochs = 2
lr = 0.01
threads = 1
"""


@pytest.fixture
def run(tmp_path, monkeypatch):
    "A function: run the demo with changes; its records and the networks of its arms"
    x,y = load_digits(return_X_y=True)
    monkeypatch.setattr('sklearn.datasets.load_digits', lambda return_X_y: (x[:400], y[:400])) # Quicker
    monkeypatch.setattr('proxy_attention.lab.data.digits.n_digits', 400)
    (tmp_path/'settings.ini').write_text(INI)
    made, make = [], demo._learner
    monkeypatch.setattr(demo, '_learner', lambda *args: made.append(make(*args)) or made[-1])
    def _run(*overrides, policy=None):
        made.clear()
        table = demo.run_demo(settings=tmp_path/'settings.ini', policy=policy, out=tmp_path/'demo', progress=False,
                              overrides=overrides)
        return read_records(tmp_path/'demo'), [learn.model for learn in made], table
    return _run

def own_line(data, cbs=()):
    "What a user would write"
    set_seed(0)
    dls = shortcut_digits_dls(data, bs=20)
    learn = Learner(dls, small_cnn(dls.c, 4), metrics=accuracy)
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(2, 0.01, cbs=cbs)
    return learn.model

def same(a, b):
    pairs = zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    return all(torch.equal(x, y) for x,y in pairs)


def test_the_arms_are_a_user_s_own_lines(run, tmp_path):
    records,(proxied,plain),table = run(policy='untested')
    assert list(table['proxies']) == [200, 0] and list(table['items']) == [200, 200]
    assert list(table['steps']) == [20, 20]
    assert list(table['scout_steps']) == [3, 0] and not records['end']['same_weights'] and not same(proxied, plain)
    assert same(plain, own_line(tmp_path/'demo'/'data'))
    cb = ProxyAttentionCB(scout_test=False, path=tmp_path/'mine', verbose=False)
    assert same(proxied, own_line(tmp_path/'demo'/'data', cb)), "the demo's arm is not the user's line"
    assert records['scouts'][0]['words'] == '200 copies, untested.' == verdict(records)[0]

def test_where_nothing_is_found_both_arms_are_equal(run, tmp_path):
    records,(proxied,plain),table = run('strength=0')
    (found,) = records['scouts']
    assert found['verdict'] != 'shortcut' and found['words'].endswith('No copies are used.') and found['held_out'] > 16
    assert same(proxied, plain) and records['end']['same_weights'] is True
    assert same(plain, own_line(tmp_path/'demo'/'data'))
    others = 'items', 'proxies', 'steps', 'train_loss', 'on_digit', 'on_shortcut'
    measured = [c for c in table if c.endswith('accuracy') or c in others]
    for name in measured: assert table[name].nunique() == 1, name
    assert records['end']['only_proxy'] == records['end']['only_control'] == 0
    said = verdict(records)
    assert said[0] == found['words'] and 'Both arms end as the same network' in ' '.join(said)
    page = (tmp_path/'demo'/'report.html').read_text()
    check(page)
    assert 'Candidates that were tested and are not used' in page and 'Both arms end as the same network' in page

def test_the_verdict_comes_first(run, tmp_path, capsys):
    records,_,_ = run()
    words = records['scouts'][0]['words']
    page = (tmp_path/'demo'/'report.html').read_text().replace('&#39;', "'")
    assert page.index(html.escape(words, quote=False)) == page.index('<p>') + 3 < page.index('<table')
    printed = ' '.join(capsys.readouterr().out.split())
    assert printed.rindex(words) < printed.index('arm cycle images')

def test_a_policy_without_a_scout_takes_several_fits(run):
    records,_,table = run(policy='letter')
    assert records['scouts'] == [] and list(table['cycle']) == [0, 1, 2, 0]
    assert list(table['arm']) == ['letter']*3 + ['control']
    assert table['steps'][:3].sum() == table['steps'][3] > 3*20 and set(table['scout_steps']) == {0}
    assert table['proxies'][0] == 0 < table['proxies'][1] and all(table['items'] == 200 + table['proxies'])

@pytest.mark.parametrize('change, words', [
    ('look_after=15%', 'A scout has taken its place'), ('restart=initial', 'starts from the initial weights'),
    ('label_gate=true', 'set scout = off'), ('label_folds=3', 'the demo has no such key'), ('steps=20', 'no such key'),
    ('lr=find', 'a number'), ('mix=mixup', 'no such key'), ('freeze_epochs=1', 'no such key'),
    ('augment=flip', 'no such key'), ('shortcut=texture', 'runs on square'), ('proxy=none', 'needs a policy')])
def test_nothing_is_ignored(run, tmp_path, change, words):
    key = change.partition('=')[0]
    with pytest.raises(SettingsError, match=key) as e: run(change)
    assert words in str(e.value) and '\n' not in str(e.value) and not (tmp_path/'demo').exists()

def test_the_settings_of_the_package_suit(run):
    for name in ('default', 'proposal'): demo._suits(load_experiment('demo', None, [f'proxy={name}']))
