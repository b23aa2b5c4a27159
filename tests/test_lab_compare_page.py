"""The page of a comparison: it claims what the intervals allow and no more, says what is missing, and takes any record."""
import json
import re
import shutil

import pytest
from compare_kit import LEVELS, make_comparison
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_lab_page import browse, check, framed, hostile, in_browser, rows_of, widths  # noqa: F401

from proxy_attention.lab.compare.arms import arm_kind, arms, controls
from proxy_attention.lab.compare.verdicts import verdicts
from proxy_attention.lab.report.compare_charts import compare_curves, forest, mean_curve, pairs
from proxy_attention.lab.report.compare_page import verdict_table
from proxy_attention.lab.report.records import is_comparison
from proxy_attention.lab.report.compare_page import write_compare_report
from proxy_attention.lab.report.compare_verdict import comparison_summary, comparison_verdict, difference, in_order, not_worse_of
from proxy_attention.lab.report.compare_verdict import read_comparison
from proxy_attention.lab.report.run_page import write_report

pytestmark = pytest.mark.usefixtures('drawn_once')

kinds = {a: arm_kind(a) for a in LEVELS}


def made(tmp_path, name='compared', **kw): return read_comparison(make_comparison(tmp_path/name, **kw))

def flat(tmp_path, **values):
    "A comparison of arms with these values a seed, in the order of seeds"
    folder = make_comparison(tmp_path/'flat', dict.fromkeys(values, .5), seeds=range(len(next(iter(values.values())))))
    lines = [json.loads(line) for line in (folder/'record.jsonl').read_text().splitlines()]
    results = [o | dict(test_accuracy=values[o['arm']][o['seed']], seconds=10.) for o in lines if o['kind'] == 'result']
    (folder/'record.jsonl').write_text('\n'.join(map(json.dumps, [lines[0], *results, *verdicts(results)])))
    return read_comparison(folder)


# -- what it says ---------------------------------------------------------------------------------------------------------------------------------

def test_arms_are_the_same_everywhere(): assert controls == tuple(a for a in arms if arm_kind(a) == 'control') and controls[0] == 'erm'

def test_a_gain_a_loss_and_neither(tmp_path):
    found = flat(tmp_path, erm=[.5, .5, .5, .51, .5], mixup=[.55, .56, .55, .54, .55], early_look=[.7, .71, .69, .7, .72], masktune=[.4, .41, .4, .39, .4], proposal=[.5, .6, .55, .57, .52])
    said = comparison_verdict(found)
    d = found['verdicts']['early_look']['against_best']
    assert said[0] == f"early_look beats the best control, mixup (55.0% right): +{100*d['mean']:.1f} points [{100*d['low']:.1f}, {100*d['high']:.1f}], at 1.00× its time." and d['arm'] == 'mixup'
    assert said[1] == "No effect shown against mixup: proposal." and said[2].startswith('masktune loses to mixup: −15.0 points')
    assert '5 seeds' in said[3] and 'not adjusted for the number of arms: of the 8 intervals' in said[3] and 'so few' not in said[3]

def test_nothing_shown(tmp_path):
    said = comparison_verdict(flat(tmp_path, erm=[.5, .6, .4], early_look=[.52, .57, .44]))
    assert said[0] == "Not one arm is shown to beat the best control, erm (50.0% right)." and said[1] == "No effect shown against erm: early_look." and 'so few' in said[2] and 'intervals' not in said[2]
    assert not any('beats' in s for s in said)

def test_two_seeds_show_nothing(tmp_path):
    "The claim that was wrong: two differences of 2 in 70 images each, and an interval of no width"
    found = flat(tmp_path, erm=[50/70, 48/70], early_look=[52/70, 50/70])
    said = comparison_verdict(found)
    assert said[0].startswith('Not one arm is shown to beat') and 'From fewer than 3 no gain or loss is claimed' in ' '.join(said)
    assert 'class="gain"' not in write_compare_report(found['folder']).read_text()

def test_images_bound_what_is_shown(tmp_path):
    "The same difference in three seeds is a gain on 1,000 test images, as `flat` has them, and none on 70"
    values = dict(erm=[50/70, 48/70, 49/70], early_look=[53/70, 51/70, 52/70])
    assert 'early_look beats' in comparison_verdict(flat(tmp_path, **values))[0]
    lines = [json.loads(line) for line in (tmp_path/'flat'/'record.jsonl').read_text().splitlines()]
    results = [o | dict(test_n=70) for o in lines if o['kind'] == 'result']
    (tmp_path/'flat'/'record.jsonl').write_text('\n'.join(map(json.dumps, [lines[0], *results, *verdicts(results)])))
    assert comparison_verdict(read_comparison(tmp_path/'flat'))[0].startswith('Not one arm is shown to beat')

@pytest.mark.parametrize('copies, equal', [([[0], [0], []], True), ([[0], [0], [3]], False), ([None]*3, False)])
def test_an_arm_without_copies_is_plain_training(tmp_path, copies, equal):
    flat(tmp_path, erm=[.5, .6, .4], early_look=[.5, .6, .4])
    lines = [json.loads(line) for line in (tmp_path/'flat'/'record.jsonl').read_text().splitlines()]
    for o in lines:
        if o['kind'] == 'result' and o['arm'] == 'early_look': o['copies'] = copies[o['seed']]
    (tmp_path/'flat'/'record.jsonl').write_text('\n'.join(map(json.dumps, lines)))
    said = comparison_verdict(read_comparison(tmp_path/'flat'))
    assert ("Equal to plain training, since it trained on no copies: early_look." in said) == equal

def test_one_seed_shows_nothing(tmp_path):
    found = flat(tmp_path, erm=[.1], early_look=[.9])
    assert comparison_verdict(found)[0].startswith('One seed, right on the test (1,000 images): erm 10.0%, early_look 90.0%.') and 'one seed: no interval' in write_compare_report(found['folder']).read_text()

def test_what_scouts_found_is_told(tmp_path):
    found = flat(tmp_path, erm=[.1, .2, .3], early_look=[.9, .8, .7])
    record = found['folder']/'record.jsonl'
    def change(*verdicts):
        lines = [json.loads(line) for line in record.read_text().splitlines()]
        names = iter(verdicts)
        for o in lines:
            if o['kind'] == 'result' and o['arm'] == 'early_look': o['verdict'] = next(names, None)
        record.write_text(''.join(json.dumps(o) + '\n' for o in lines))
        return comparison_verdict(read_comparison(record))
    assert not any('Scouts of' in s for s in change())
    assert 'Scouts of early_look found: shortcut in 2 of 3 seeds, spread in 1 of 3 seeds.' in change('shortcut', 'spread', 'shortcut')

def test_an_arm_without_two_shared_seeds_is_named(tmp_path):
    said = comparison_verdict(made(tmp_path, drop=[('early_look', s) for s in range(4)] + [('proposal', s) for s in range(2)]))
    assert any(s == "Not judged, for want of two seeds shared with random_erasing: early_look." for s in said) and 'over 3 to 5 seeds' in ' '.join(said)

def test_none_is_the_best_control(tmp_path):
    "One column and one picture, not the same twice"
    found = flat(tmp_path, erm=[.5, .6, .4], mixup=[.3, .2, .3], early_look=[.52, .57, .44])
    page = write_compare_report(found['folder']).read_text()
    assert 'Against erm, the best control' in verdict_table(found)['heads'] and page.count('points of test accuracy</text>') == 1
    assert len({len(r['cells']) for r in verdict_table(found)['rows']} | {len(verdict_table(found)['heads'])}) == 1 and 'of the 2 intervals' in ' '.join(comparison_verdict(found))

def test_only_controls(tmp_path): assert comparison_verdict(flat(tmp_path, erm=[.1, .2], mixup=[.9, .9]))[0].startswith('Only controls')

def test_validation_would_have_chosen_otherwise(tmp_path):
    said = comparison_verdict(made(tmp_path))[-1]
    assert said.startswith('Validation would have chosen') and 'not early_look' in said and 'shares its shortcuts' in said

def test_missing_runs(tmp_path):
    found = made(tmp_path, until=19, drop=[('masktune', 0)])
    said = ' '.join(comparison_verdict(found))
    assert '18 of 45 runs are done' in said and 'seeds 2, 3 and 4 of duplicate_wrong' in said and 'seeds 0, 2, 3 and 4 of masktune' in said and 'seeds 3 and 4 of erm' in said
    assert 'To go on: proxy-attention compare shortcut --arms erm' in said and comparison_summary(found)['state'] == '18 of 45 runs' and not comparison_summary(found)['done']
    page = write_compare_report(found['folder']).read_text()
    check(page)
    assert 'class="verdict warn"' in page and next(r for r in rows_of(page) if r[0] == 'masktune')[-1] == '– ' + f"{100*found['results']['masktune', '1']['test_accuracy']:.1f}" + ' – – –'
    nothing = write_compare_report(make_comparison(tmp_path/'nothing', until=0)).read_text()
    check(nothing)
    assert 'There is no result yet' in nothing and 'every seed of erm; ' in nothing and 'No epoch has ended yet' in nothing

def test_what_makes_it_unfair_or_untrue_comes_first(tmp_path):
    folder = make_comparison(tmp_path/'bad')
    def change(**kw):
        lines = [json.loads(line) for line in (folder/'record.jsonl').read_text().splitlines()]
        lines[3].update(kw)
        (folder/'record.jsonl').write_text('\n'.join(map(json.dumps, lines)))
        return comparison_verdict(read_comparison(folder))
    assert 'audit of 1 run is not clean' in change(audit_ok=False)[0]
    assert 'class="verdict warn"' in write_compare_report(folder).read_text()

def test_the_table_is_the_record(tmp_path):
    found = made(tmp_path)
    assert in_order(found)[0] == 'random_erasing' and [kinds[a] for a in in_order(found)] == ['control']*5 + ['baseline'] + ['proxies']*3
    page = write_report(found['folder']).read_text()
    check(page)
    row = next(r for r in rows_of(page) if r[0] == 'early_look')
    mean = sum(found['results']['early_look', str(s)]['test_accuracy'] for s in range(5))/5
    d = found['verdicts']['early_look']['against_erm']
    assert row[1:4] == ['proxies', f'{mean:.1%}', f"+{100*d['mean']:.1f} [{100*d['low']:.1f}, {100*d['high']:.1f}]"] and '1,200' in row
    assert len(verdict_table(found)['heads']) + 2 == len(row) and 'Saliency on shortcut' in verdict_table(found)['heads'] and 'Worst group' in verdict_table(found)['heads']
    assert '45 of 45 runs have a clean audit' in page and '720 optimizer steps' in page and 'proxy-attention compare shortcut' in page and str(tmp_path) not in page
    took = [found['results']['early_look', str(s)]['seconds'] for s in range(5)]
    assert f'{min(took):.1f} to {max(took):.1f}</td>' in page
    assert 'SHA-256 of the three lists 5f1e5f1e5f1e5f1e' in page and 'shortcut_digits' in page and page.count('class="gain"') + page.count('n gain') == sum(
        (x := difference(v, k)) is not None and x['sign'] > 0 for v in found['verdicts'].values() for k in ('erm', 'best'))

def test_not_worse(tmp_path):
    found = made(tmp_path, margin=0.02)
    said,page = comparison_verdict(found), write_compare_report(found['folder']).read_text()
    best = not_worse_of(found['verdicts']['early_look'], 'best')
    assert best == dict(arm='random_erasing', margin=0.02, bound=found['verdicts']['early_look']['against_best']['not_worse']['bound'], shown=True, n=5)
    shown = next(s for s in said if s.startswith('Shown to be not worse than random_erasing by 2 points or more: '))
    unshown = next(s for s in said if s.startswith('Not shown to be not worse than random_erasing by 2 points or more: '))
    assert f"early_look (bound +{100*best['bound']:.1f})" in shown and 'masktune' in unshown and 'masktune' not in shown and '5 seeds are fewer than 10' in unshown
    check(page)
    row = next(r for r in rows_of(page) if r[0] == 'early_look')
    assert f"yes (+{100*best['bound']:.1f})" in row and 'Not worse than erm' in page and 'is a loss of 2 points or more ruled out' in page
    assert len({len(r['cells']) for r in verdict_table(found)['rows']} | {len(verdict_table(found)['heads'])}) == 1
    ten = made(tmp_path, 'ten', margin=0.02, seeds=range(10))
    assert not any('fewer than 10' in s for s in comparison_verdict(ten))
    off = made(tmp_path, 'off')
    assert not_worse_of(off['verdicts']['early_look'], 'best') is None and 'ot worse' not in write_compare_report(off['folder']).read_text()

def test_not_worse_where_none_is_the_best_control(tmp_path):
    found = made(tmp_path, levels=dict(erm=.6, mixup=.3, early_look=.6), margin=0.1)
    assert verdict_table(found)['heads'].count('Not worse than erm') == 1 and sum('not worse' in s for s in comparison_verdict(found)) == 1

def test_out(tmp_path):
    folder = make_comparison(tmp_path/'c', interval='bootstrap-t')
    assert write_report(folder/'record.jsonl', tmp_path/'x.html') == tmp_path/'x.html' and not (folder/'report.html').exists() and '(bootstrap-t)' in (tmp_path/'x.html').read_text()
    assert is_comparison(folder) and is_comparison(folder/'record.jsonl') and not is_comparison(tmp_path) and not is_comparison(tmp_path/'x.html')
    with pytest.raises(ValueError, match='not the folder of a comparison'): read_comparison(tmp_path)
    with pytest.raises(ValueError, match='Report it alone'): write_report([folder, folder], tmp_path/'y.html')

# -- drawings -------------------------------------------------------------------------------------------------------------------------------------

def row(low, mean, high, dots, name='a'): return dict(name=name, kind='proxies', diff=dict(arm='erm', low=low, mean=mean, high=high, n=2, cost=1., sign=int(low > 0) - int(high < 0)), dots=dots)

def marks(svg):
    "Where 0, the ends of the interval, its mean and the dots are"
    svg = str(svg)
    low,high = map(float, re.search(r'd="M ([\d.]+) [\d.]+ \nL ([\d.]+) [\d.]+ \n"[^>]*style="[^"]*stroke: var\(--arm0\); stroke-opacity', svg).groups())
    zero = float(re.search(r'd="M ([\d.]+) [\d.]+ \nL [\d.]+ [\d.]+ \n"[^>]*style="[^"]*stroke: var\(--fg\)', svg)[1])
    mean,*dots = [float(x) for x in re.findall(r'<use [^>]*x="([\d.]+)"[^>]*style="[^"]*--arm0', svg)]
    return zero, low, high, mean, dots

def test_the_forest_is_to_scale():
    zero,low,high,mean,dots = marks(forest([row(.02, .05, .08, [('0', .04), ('1', .06)])], 't'))
    a = (high - low)/.06
    assert mean - low == pytest.approx(.03*a, abs=.2) and low - zero == pytest.approx(.02*a, abs=.3) and dots == pytest.approx([zero + .04*a, zero + .06*a], abs=.4)

def test_an_interval_of_two_seeds_does_not_hide_the_seeds():
    svg = str(forest([row(-.9, .05, 1., [('0', .04), ('1', .06)])], 't'))
    dots = sorted({float(x) for x in re.findall(r'<use [^>]*x="([\d.]+)"[^>]*style="[^"]*--arm0', svg)})
    left,*seeds,right = dots[0], *(d for d in dots[1:-1]), dots[-1] # two arrows at the ends
    assert 0 <= left < seeds[0] < seeds[-1] < right <= 375 and seeds[-1] - seeds[0] > 10
    assert len(marks(forest([row(.02, .05, .08, [])], 't'))[4]) == 0 and forest([], 't') == ''

def test_pairs_and_mean_curve(tmp_path):
    found = flat(tmp_path, erm=[.5, .4], early_look=[.7, .7])
    assert pairs(found, 'early_look', 'erm') == [('0', pytest.approx(.2)), ('1', pytest.approx(.3))]
    assert mean_curve([[(1, .2), (2, .4)], [(3, .4), (4, .6), (6, .8)]]) == [(2, pytest.approx(.3)), (4, pytest.approx(.6))] and mean_curve([[], []]) == []

def test_curves(tmp_path):
    found = made(tmp_path, levels={f'policy_{i}': .5 for i in range(15)} | dict(erm=.5), seeds=range(2))
    svg = str(compare_curves(found))
    looks = re.findall(r'class="curve arm\d+">\s*<path [^>]*style="fill: none;(?: stroke-dasharray: ([^;]*);[^;]*;)? stroke: var\((--arm\d)\)', svg)
    assert len(looks) == len(set(looks)) == 16 and svg.count('seed arm') == 32 and 'policy_3' in svg and 'optimizer steps' in svg
    assert 'seconds of training' in compare_curves(found, 'seconds') and compare_curves(found, 'seconds') != svg

# -- any record -----------------------------------------------------------------------------------------------------------------------------------

def test_everything_is_text(tmp_path):
    found = made(tmp_path, levels={'erm': .5, hostile: .7, 'žluť 🐴': .6}, command=f'proxy-attention compare {hostile}', interval=hostile)
    page = write_compare_report(found['folder']).read_text()
    check(page)
    assert 'alert(1)' in page and '<script>alert' not in page and '49' not in re.findall(r'amp;(\d\d)', page)

values = st.recursive(st.one_of(st.none(), st.booleans(), st.integers(-10**20, 10**20), st.floats(), st.text(max_size=5)), lambda s: st.lists(s, max_size=3) | st.dictionaries(st.text(max_size=3), s, max_size=2), max_leaves=5)

@pytest.fixture
def folder(tmp_path):
    made = make_comparison(tmp_path/'any', dict(erm=.5, mixup=.5, early_look=.7), seeds=range(3))
    shutil.copy(made/'record.jsonl', made/'whole.jsonl')
    return made

@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.tuples(st.integers(0, 14), st.sampled_from(['arm', 'seed', 'arms', 'seeds', 'test_accuracy', 'valid_accuracy', 'curve', 'copies', 'seconds', 'steps', 'settings', 'command', 'interval', 'audit_ok',
                                                               'against_erm', 'against_best', 'map_on_digit', 'split_sha256', 'initial_sha256', 'kind']), values), max_size=8))
def test_any_record(folder, changes):
    lines = [json.loads(line) for line in (folder/'whole.jsonl').read_text().splitlines()]
    for i,key,v in changes:
        if i % len(lines) or key != 'kind': lines[i % len(lines)][key] = v
    (folder/'record.jsonl').write_text('\n'.join(map(json.dumps, lines)))
    try: page = write_compare_report(folder)
    except ValueError: return # It is damaged, and refused as such
    check(page.read_text())

# -- in a browser ---------------------------------------------------------------------------------------------------------------------------------

@in_browser
def test_in_a_browser(tmp_path, browse): # noqa: F811
    page = write_compare_report(make_comparison(tmp_path/'compare_with_a_rather_long_name', levels=LEVELS | {'a_policy_with_a_very_long_name_'*3: .5}))
    press = "<script>document.querySelectorAll('.pick button')[2].click()</script></body>"
    dom,complaints,asked = browse(f'file://{page}')
    assert complaints == [] and asked == [] and 'lit' not in re.findall(r'<g class="curve[^>]*>', dom)[0]
    (tmp_path/'pressed.html').write_text(re.sub(r'<meta http-equiv[^>]*>', '', page.read_text()).replace('</body>', press))
    dom,complaints,_ = browse(f'file://{tmp_path}/pressed.html')
    lit = re.findall(r'<g class="curve ([^"]*) lit"', dom)
    assert complaints == [] and lit and all('arm2' in c.split() for c in lit) and 'aria-pressed="true"' in dom
    (tmp_path/'frame.html').write_text(framed(390, page.read_text()))
    assert widths(browse(f'file://{tmp_path}/frame.html')[0]) == [(390, 390)]
