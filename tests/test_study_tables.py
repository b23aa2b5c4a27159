"""Tables and drawings of a study: each number by hand, pairs by seed, and what is missing left out and not guessed."""
from types import SimpleNamespace

from proxy_attention.lab.metrics.stats import paired_t
from studies.tables import (amount_table, arm_table, by_seed, draw_gaps, gap_closed, gap_table, has_gap,
                            in_percent, in_points, markdown, memory, read_study, set_against, spread, target_table,
                            step_ratio, to_target, verdict_counts)


def results(**arms):
    return [dict(kind='result', arm=a, seed=s, test_accuracy=v, test_precision=v/2, seconds=10*(1 + k), steps=5,
                 audit_ok=True, peak_ram_mb=1000*(1 + k) + s) for k,(a,vs) in enumerate(arms.items()) for s,v in enumerate(vs)]

def test_by_seed():
    lines = results(erm=[.1, .2], mine=[.3, .4])
    lines[0]['test_accuracy'] = None
    assert by_seed(lines, 'erm') == {1: .2} and by_seed(lines, 'mine', 'test_precision') == {0: .15, 1: .2}

def test_set_against():
    d = set_against({0: .5, 1: .7, 2: .6, 9: 1.}, {0: .1, 1: .2, 2: .3, 8: 0.})
    assert d == paired_t([.5, .7, .6], [.1, .2, .3]) and set_against({0: 1.}, {0: 0.}) is None

def test_has_gap():
    with_it = results(erm=[.5, .9])
    assert has_gap(with_it, results(erm=[.9, .61])) and not has_gap(with_it, results(erm=[.9, .59])) # .055 and .045
    assert not has_gap([], results(erm=[.9])) and not has_gap(with_it, [])

def test_gap_closed():
    with_it, without = results(erm=[.2, .4], mine=[.6, .9]), results(erm=[1., .9])
    assert gap_closed(with_it, without, 'mine') == paired_t([.5, 1.], [0, 0])
    assert gap_closed(with_it, [], 'mine') is None

def test_markdown():
    assert markdown([['a', 'b'], ['x', 1]]) == '| a | b |\n|---|---:|\n| x | 1 |'
    assert markdown([['a', 'b', 'c']], 2) == '| a | b | c |\n|---|---|---:|'

def test_words():
    d = paired_t([.5, .7, .6], [.1, .2, .3])
    assert in_points(d) == f"+40.0 [{100*d.low:.1f}, {100*d.high:.1f}]" and in_points(None) == in_percent(None) == ''
    assert in_points(paired_t([.1, -.1], [0, 0])).endswith('no effect shown')
    assert in_percent(paired_t([-.5, -.5], [0, 0])) == '−50% [−50%, −50%]'
    assert spread([.2, .4]) == '30.0% (20.0–40.0)' and spread([]) == ''

def test_memory():
    lines = results(erm=[.2, .4], mine=[.6, .9])
    assert memory(lines, 'mine') == '2,000 MB' and memory(lines, 'other') == ''
    assert memory([o | dict(peak_gpu_allocated_mb=77.) for o in lines], 'mine') == '77 MB'

def test_step_ratio():
    lines = results(erm=[.2, .4], mine=[.6, .9])
    lines[2]['scout_steps'] = 3 # of 5 + 5
    assert step_ratio(lines, 'mine') == '1.30×' and step_ratio(lines, 'erm') == '1.00×' and step_ratio(lines, 'other') == ''

# ------------------------------------------------------------------------------------------------------------- tables

LISTED = {'a': SimpleNamespace(reference='b'), 'b': SimpleNamespace(reference=None), 'c': SimpleNamespace(reference='nowhere')}
SHORTCUT = {'a': results(erm=[.2, .4], masktune_tuned=[.3, .5], default=[.6, .9]), 'b': results(erm=[1., .9])}

def test_arm_table():
    rows = arm_table(results(erm=[.2, .4, .3], other=[.5, .6, .7], mine=[.8, .7, .9]))
    assert rows[0] == ['arm', 'seeds', 'accuracy', 'against erm', 'precision', 'recall', 'steps', 'memory']
    assert rows[3] == ['mine', 3, '80.0% (70.0–90.0)', in_points(paired_t([.8, .7, .9], [.2, .4, .3])), '40.0%', '', '1.00×', '3,001 MB']
    assert rows[1][3] == ''
    lines = results(erm=[.2, .4], mine=[.1, .2])
    for o in lines[2:]: o['test_accuracy'] = None
    assert [r[0] for r in arm_table(lines)] == ['arm', 'erm'], "an arm without results has no row"

def test_gap_table():
    got = gap_table(LISTED, SHORTCUT | {'c': results(erm=[.1, .2], mine=[.3, .4])})
    assert [r[:2] for r in got[1:]] == [['a', 'masktune_tuned'], ['a', 'default']], "without a reference's runs there is no gap"
    assert got[2][2:] == [2, '30.0%', '95.0%', '75.0% (60.0–90.0)', in_percent(paired_t([.5, 1.], [0, 0]))]
    small = gap_table(LISTED, {'a': results(erm=[.9, .9], mine=[.8, .9]), 'b': results(erm=[.94, .94])})
    assert small[1][6] == 'no gap'

def test_amounts_are_compared_over_the_seeds_that_all_have():
    have = {'little': results(erm=[.1, .2], default=[.3, .5]), 'all': results(erm=[.4, .5, .9], default=[.6, .6, .1])}
    got = amount_table(have, [('10%', 'little'), ('50%', 'missing'), ('100%', 'all')])
    assert [r[:2] for r in got[1:]] == [['10%', 2], ['100%', 2]]
    assert got[2][2:] == ['45.0% (40.0–50.0)', '60.0% (60.0–60.0)', in_points(paired_t([.6, .6], [.4, .5])), '1.00×']
    assert amount_table(have, [('50%', 'missing')]) == got[:1]
    assert amount_table(have, [('10%', 'little')], ('default', 'erm'))[1][2] == got[1][3]

def test_to_target():
    line = dict(curve=[[20, 2., .5, 1.], [60, 6., .7, 1.]], steps=60)
    assert to_target(line, .4) == 20 and to_target(line, .7) == 60 and to_target(line, .71) is None
    assert to_target(line | dict(scout_steps=12), .4) == 32, "scouts go first"

def test_target_table():
    def line(arm, seed, *accuracies, valid=.8):
        return dict(arm=arm, seed=seed, valid_accuracy=valid, curve=[[50*(k+1), 5.*(k+1), a, 1.] for k,a in enumerate(accuracies)])
    have = {'x': [line('erm', 0, .7, .8), line('erm', 1, .79, .8), line('mine', 0, .5, .9), line('mine', 1, .5, .6), line('mine', 9, .9)]}
    got = target_table(have, ['x', 'missing'], below=.02)
    assert got[1:] == [['x', 'erm', '2 of 2', '75'], ['x', 'mine', '1 of 2', '100']], "seeds without plain training have no target"
    assert target_table(have, ['x'], below=.35)[2] == ['x', 'mine', '2 of 2', '50']
    assert target_table(have, ['x'], below=-.15)[1] == ['x', 'erm', '0 of 2', '']

def test_verdict_counts():
    lines = results(erm=[.1, .2], mine=[.1, .2, .3], other=[.5])
    for o,v in zip(lines[2:], ('shortcut', 'real', 'shortcut', 'spread')): o['verdict'] = v
    assert verdict_counts(lines) == 'mine: shortcut in 2 of 3 runs, real in 1 of 3 runs; other: spread in 1 of 1 runs'
    assert verdict_counts(lines[:2]) == ''

# ----------------------------------------------------------------------------------------------------------- drawings

def test_the_drawing_follows_the_numbers(tmp_path):
    changed = SHORTCUT | {'a': results(erm=[.2, .4], masktune_tuned=[.3, .5], default=[.6, .8])}
    for name,have in (('1', SHORTCUT), ('2', SHORTCUT), ('3', changed)): draw_gaps(LISTED, have, tmp_path/f'{name}.svg')
    one,same,other = ((tmp_path/f'{n}.svg').read_text() for n in '123')
    assert one == same != other and one.count('MaskTune, tuned') == 1 and 'Just Train Twice' not in one

def test_read_study(tmp_path):
    (tmp_path/'a.jsonl').write_text('{"kind": "compare"}\n{"kind": "result", "arm": "erm"}\n{"kind": "verdict"}\n')
    assert read_study(tmp_path) == {'a': [{'kind': 'result', 'arm': 'erm'}]}
