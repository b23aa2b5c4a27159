"""Tables and drawings of a study: each number by hand, pairs by seed, gaps and missing runs left out and not guessed."""
from types import SimpleNamespace

import pytest

from proxy_attention.lab.metrics.stats import paired_t
from studies.tables import (amount_table, arm_table, by_seed, draw_amounts, draw_arms, draw_gaps, gap_closed, gap_table, has_gap, in_percent, in_points, in_times, markdown, memory, method_table,
                                        network_table, read_study, seconds_ratio, set_against, spent_beside, spread, target_table, to_target)

def results(**arms): return [dict(kind='result', arm=a, seed=s, test_accuracy=v, seconds=10*(1 + k), steps=5, audit_ok=True, f1=v/2, peak_ram_mb=1000*(1 + k) + s) for k,(a,vs) in enumerate(arms.items()) for s,v in enumerate(vs)]

def test_by_seed():
    lines = results(erm=[.1, .2], mine=[.3, .4])
    lines[0]['test_accuracy'] = None
    assert by_seed(lines, 'erm') == {1: .2} and by_seed(lines, 'mine', 'f1') == {0: .15, 1: .2}

def test_set_against():
    d = set_against({0: .5, 1: .7, 2: .6, 9: 1.}, {0: .1, 1: .2, 2: .3, 8: 0.})
    assert d == paired_t([.5, .7, .6], [.1, .2, .3]) and set_against({0: 1.}, {0: 0.}) is None

def test_has_gap():
    assert has_gap(results(erm=[.5, .9]), results(erm=[.9, .61])) and not has_gap(results(erm=[.5, .9]), results(erm=[.9, .59])) # .055 and .045 on average
    assert not has_gap([], results(erm=[.9])) and not has_gap(results(erm=[.1]), [])

def test_gap_closed():
    with_it, without = results(erm=[.2, .4], mine=[.6, .9]), results(erm=[1., .9])
    assert gap_closed(with_it, without, 'mine') == paired_t([.5, 1.], [0, 0])
    assert gap_closed(with_it, without, 'mine', 'f1').mean == pytest.approx(.75) and gap_closed(with_it, [], 'mine') is None

def test_markdown():
    assert markdown([['a', 'b'], ['x', 1]]) == '| a | b |\n|---|---:|\n| x | 1 |' and markdown([['a', 'b', 'c']], 2) == '| a | b | c |\n|---|---|---:|'

def test_arm_table():
    rows = arm_table(results(erm=[.2, .4, .3], masktune=[.5, .6, .7], mine=[.8, .7, .9]))
    assert rows[0] == ['arm', 'seeds', 'mean', 'lowest', 'highest', 'against erm', 'against masktune', 'time', 'memory']
    d = paired_t([.8, .7, .9], [.2, .4, .3])
    assert rows[3][:5] == ['mine', 3, '80.0%', '70.0%', '90.0%'] and rows[3][-2:] == ['3.00×', '3,001 MB'] and rows[3][5] == f"+50.0 [{100*d.low:.1f}, {100*d.high:.1f}]".replace('-', '−')
    assert rows[1][5] == '' and 'no effect shown' in rows[3][6] and arm_table(results(erm=[.2, .4], mine=[.8, .7]), 'f1')[2][2] == '37.5%'

def test_drawing_is_the_same_twice(tmp_path):
    lines = results(erm=[.2, .4], mine=[.6, .9])
    for name in 'ab': draw_arms(lines, tmp_path/f'{name}.svg', 'title here')
    draw_arms(lines, tmp_path/'c.svg', 'another')
    draw_arms(lines, tmp_path/'d.svg', 'title here', 'f1')
    a,b,c,d = ((tmp_path/f'{n}.svg').read_bytes() for n in 'abcd')
    assert a == b and len({a, c, d}) == 3

def test_an_arm_without_results_has_no_row():
    lines = results(erm=[.2, .4], mine=[.1, .2])
    for o in lines[2:]: o['test_accuracy'] = None
    assert [r[0] for r in arm_table(lines)] == ['arm', 'erm']

def test_words():
    d = paired_t([.5, .7, .6], [.1, .2, .3])
    assert in_points(d) == f"+40.0 [{100*d.low:.1f}, {100*d.high:.1f}]" and in_points(None) == in_percent(None) == in_times(None) == '' and in_times(1.234) == '1.23×'
    assert in_points(paired_t([.1, -.1], [0, 0])).endswith('no effect shown') and in_percent(paired_t([-.5, -.5], [0, 0])) == '−50.0% [−50.0%, −50.0%]'
    assert spread([.2, .4]) == '30.0% (20.0–40.0)' and spread([]) == ''

def test_memory():
    lines = results(erm=[.2, .4], mine=[.6, .9])
    assert memory(lines, 'mine') == '2,000 MB' and memory(lines, 'other') == '' and memory([o | dict(peak_gpu_allocated_mb=77.) for o in lines], 'mine') == '77 MB'

def test_seconds_ratio():
    lines = results(erm=[.2, .4], mine=[.6, .9])
    assert seconds_ratio(lines, 'mine') == 2 and seconds_ratio(lines, 'erm', 'mine') == .5 and seconds_ratio(lines, 'other') is None
    for o,c in zip(lines, 'abac'): o['commit'] = c # seed 0 of both arms in one sitting, seed 1 not
    lines[2]['seconds'] = 50
    assert seconds_ratio(lines, 'mine') == 5 and seconds_ratio(lines[1:2] + lines[3:], 'mine') is None

# ------------------------------------------------------------------------------------------------------------------------------------------ tables

LISTED = {'a': SimpleNamespace(reference='b'), 'b': SimpleNamespace(reference=None), 'c': SimpleNamespace(reference='nowhere')}

def test_gap_table():
    got = gap_table(LISTED, {'a': results(erm=[.2, .4], masktune=[.3, .5], mine=[.6, .9]), 'b': results(erm=[1., .9]), 'c': results(erm=[.1, .2], mine=[.3, .4])})
    small = gap_table(LISTED, {'a': results(erm=[.9, .9], mine=[.8, .9]), 'b': results(erm=[.94, .94])})
    assert small[1][6] == 'no gap' and '%' in got[1][6]
    assert [r[:2] for r in got[1:]] == [['a', 'masktune'], ['a', 'mine']], "a comparison without a reference's runs has no gap"
    assert got[2][2:] == [2, '30.0%', '95.0%', '75.0% (60.0–90.0)', in_percent(paired_t([.5, 1.], [0, 0])), '3.00×', '3,000 MB']
    assert len(gap_table(LISTED, {'a': results(erm=[.2, .4], masktune=[.3, .5], mine=[.6, .9]), 'b': results(erm=[1., .9])}, ['mine'])) == 2

def test_method_table():
    have = {'x': results(erm=[.1, .2], proposal=[.3, .3], **{'proposal@cam': [.5, .7]}), 'y': results(erm=[.1, .2], recommended=[.3, .3])}
    got = method_table(have, ['x', 'y', 'missing'])
    assert got[0] == ['method', 'arm', 'x', 'y'] and [r[:2] for r in got[1:]] == [['gradcam', 'proposal'], ['gradcam', 'recommended'], ['cam', 'proposal']]
    assert got[3][2] == f"60.0%, {in_points(paired_t([.5, .7], [.1, .2]))}" and got[3][3] == got[1][3] == ''
    assert [r[:2] for r in method_table(have, ['x'], ('proposal',), usual='layercam')[1:]] == [['layercam', 'proposal'], ['cam', 'proposal']]

def test_amounts_are_compared_over_the_seeds_that_all_have():
    have = {'little': results(erm=[.1, .2], recommended=[.3, .5]), 'all': results(erm=[.4, .5, .9], recommended=[.6, .6, .1])}
    got = amount_table(have, [('10%', 'little'), ('50%', 'missing'), ('100%', 'all')])
    assert [r[:2] for r in got[1:]] == [['10%', 2], ['100%', 2]] and got[2][2:4] == ['45.0% (40.0–50.0)', '60.0% (60.0–60.0)'] and got[2][4] == in_points(paired_t([.6, .6], [.4, .5]))
    assert amount_table(have, [('50%', 'missing')]) == got[:1]

def line(arm, seed, curve, stages, steps, valid=.8, looks=0.): return dict(arm=arm, seed=seed, curve=[[s, t, a, 1.] for s,t,a in curve], stages=stages, steps=steps, seconds_train=curve[-1][1], valid_accuracy=valid, seconds_score=looks)

def test_to_target():
    two = line('mine', 0, [(20, 2., .5), (60, 6., .7)], [20, 40], 70, looks=3.)
    assert spent_beside(two) == (10, 3. + 1.) and to_target(two, .4) == (20, 2.) and to_target(two, .6) == (70, 10.) and to_target(two, .71) is None
    scouted = line('mine', 0, [(20, 2., .5), (60, 6., .7)], [60], 60, looks=3.) | dict(scout_steps=12, seconds_scout=1.5)
    assert spent_beside(scouted) == (12, 4.5) and to_target(scouted, .4) == (32, 6.5), "scouts go first"

def test_target_table():
    have = {'x': [line('erm', 0, [(50, 5., .7), (100, 10., .8)], [100], 100), line('erm', 1, [(50, 5., .79), (100, 10., .8)], [100], 100),
                  line('mine', 0, [(20, 2., .5), (100, 10., .9)], [20, 80], 100), line('mine', 1, [(20, 2., .5), (100, 10., .6)], [20, 80], 100), line('mine', 9, [(20, 2., .9)], [20], 20)]}
    got = target_table(have, ['x', 'missing'], below=.02)
    assert got[1:] == [['x', 'erm', '2 of 2', '75', '8'], ['x', 'mine', '1 of 2', '100', '10']], "seeds without plain training have no target"
    assert target_table(have, ['x'], below=.35)[2] == ['x', 'mine', '2 of 2', '20', '2'] and target_table(have, ['x'], below=-.15)[1] == ['x', 'erm', '0 of 2', '', '']

def test_network_table():
    more = dict(test_precision=.5, test_recall=.6, seconds_train=8., peak_ram_mb=1234.4, map_on_shortcut=.2, map_area_shortcut=.04)
    have = {'x': [o | more for o in results(erm=[.2, .4], mine=[.6, .9])], 'y': results(erm=[.1])}
    got = network_table(have, [('net', 'x', 'erm'), ('net, mine', 'x', 'mine'), ('other', 'missing', 'erm'), ('absent', 'x', 'absent')])
    assert got[1] == ['net', 2, '30.0%', '', '50.0%', '60.0%', '8 s', '10 s', '1,234 MB', '20.0%', '4.0%'] and got[2][3] == in_points(paired_t([.6, .9], [.2, .4])) and len(got) == 3

# ---------------------------------------------------------------------------------------------------------------------------------------- drawings

def test_drawings_follow_the_numbers(tmp_path):
    a = {'a': results(erm=[.2, .4], recommended=[.6, .9]), 'b': results(erm=[1., .9])}
    b = {'a': results(erm=[.2, .4], recommended=[.6, .8]), 'b': results(erm=[1., .9])}
    for name,have in (('1', a), ('2', a), ('3', b)):
        draw_gaps(LISTED, have, tmp_path/f'g{name}.svg')
        draw_amounts(have, [(10, 'a'), (20, 'missing')], tmp_path/f'a{name}.svg')
    for k in 'ga': assert (one := (tmp_path/f'{k}1.svg').read_bytes()) == (tmp_path/f'{k}2.svg').read_bytes() != (tmp_path/f'{k}3.svg').read_bytes() and one
    draw_amounts(a, [(10, 'a')], tmp_path/'arms.svg', arms=('erm', 'other'))
    draw_amounts(a, [(10, 'a')], tmp_path/'what.svg', what='steps')
    assert len({(tmp_path/f'{n}.svg').read_bytes() for n in ('a1', 'arms', 'what')}) == 3

def test_read_study(tmp_path):
    (tmp_path/'a.jsonl').write_text('{"kind": "compare"}\n{"kind": "result", "arm": "erm"}\n{"kind": "verdict"}\n')
    assert read_study(tmp_path) == {'a': [{'kind': 'result', 'arm': 'erm'}]}
