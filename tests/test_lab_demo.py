"""The demo is a comparison of two arms, whose page says what was found and shows the copies."""
import json

import pytest

from proxy_attention.lab.report.compare_page import comparison_text
from proxy_attention.lab.config.problems import SettingsError
from proxy_attention.lab.demo import plot_gallery, run_demo
from proxy_attention.lab.report.compare_verdict import comparison_verdict, read_comparison

pytestmark = pytest.mark.filterwarnings('ignore')

INI = """\
[data:few]
source = shortcut_digits
n_train = 60
n_valid = 20
n_test = 30
size = 40
bs = 10
[model:tiny]
arch = small_cnn
width = 4
[proxy:default]
scout = 15%
probe = false
cycles = 0
[proxy:untested]
scout = 15%
scout_test = false
cycles = 0
[experiment:demo]
data = few
model = tiny
proxy = default
epochs = 2
lr = 0.01
threads = 1
"""


@pytest.fixture
def demo(tmp_path, cache):
    "A function: run the demo; what its comparison says"
    (tmp_path/'settings.ini').write_text(INI)
    def _demo(policy=None, *overrides, **kwargs):
        return read_comparison(run_demo(policy, settings=tmp_path/'settings.ini', out=tmp_path/'demo', data=cache,
                                        overrides=overrides, jobs=1, say=said.append, **kwargs))
    said = _demo.said = []
    return _demo


def test_the_demo_is_a_comparison_of_two_arms(demo, tmp_path):
    found = demo('untested', seed=3)
    assert (found['arms'], found['seeds']) == (['erm', 'untested'], ['3'])
    plain,copies = (found['results'][arm, '3'] for arm in found['arms'])
    assert plain['copies'] == [] and copies['copies'] == [60] and plain['steps'] == copies['steps'] == 12
    assert plain['initial_sha256'] == copies['initial_sha256'] and copies['scout_steps'] == 2 and plain['scout_steps'] == 0
    (words,*_) = comparison_verdict(found)
    assert f"erm {plain['test_accuracy']:.1%}" in words and f"untested {copies['test_accuracy']:.1%}" in words
    page = (tmp_path/'demo'/'report.html').read_text()
    assert page.count('<figure class="card"') == 4 and '<h3>untested, seed 3</h3>' in page and (tmp_path/'demo'/'gallery.png').is_file()
    assert found['about']['command'].startswith('proxy-attention demo --policy untested --seed 3')

def test_another_policy_takes_over_the_plain_run(demo, tmp_path):
    demo()
    before = (tmp_path/'demo'/'arms'/'erm'/'0'/'record.jsonl').read_text()
    demo.said.clear()
    found = demo('untested')
    assert demo.said[0].endswith('1 run done, 1 to go, 1 at a time') and [w.split()[0] for w in demo.said[1:] if 'seed' in w] == ['untested']
    assert (tmp_path/'demo'/'arms'/'erm'/'0'/'record.jsonl').read_text() == before and found['arms'] == ['erm', 'untested']

def test_where_nothing_is_found_the_page_says_so(demo, tmp_path):
    found = demo(None, 'strength=0')
    plain,own = (found['results'][arm, '0'] for arm in ('erm', 'default'))
    assert own['verdict'] != 'shortcut' and own['copies'] == [0] and own['test_accuracy'] == plain['test_accuracy']
    said = comparison_verdict(found)
    assert f"default: {own['found']}" in said and own['found'].endswith('No copies are used.')
    assert 'Equal to plain training, since it trained on no copies: default.' in said
    assert not (tmp_path/'demo'/'gallery.png').exists() and '<figure class="card"' not in (tmp_path/'demo'/'report.html').read_text()
    assert 'against' not in comparison_text(found), "one seed has no interval"

def test_the_demo_needs_a_policy(demo, tmp_path):
    with pytest.raises(SettingsError, match='needs a policy'): demo(None, 'proxy=none')
    with pytest.raises(ValueError, match="policy='proposl'.*proposal"): demo('proposl')
    assert not (tmp_path/'demo').exists()

def test_the_picture_follows_the_run(tmp_path):
    file = tmp_path/'gallery.png'
    file.write_bytes(b'an earlier one')
    plot_gallery(tmp_path/'run', file)
    assert not file.exists()
    (tmp_path/'run'/'gallery').mkdir(parents=True)
    (tmp_path/'run'/'gallery'/'cycle0.json').write_text(json.dumps([]))
    plot_gallery(tmp_path/'run', file)
    assert not file.exists()
