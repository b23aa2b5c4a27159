"""What the study has shown: questions judged by their numbers, and the report of the gap."""
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from test_study import LIST, write_study
from test_study_tables import results

from proxy_attention.lab.metrics.stats import paired_t
from studies.report import answers, beats, judged, study_report
from studies.tables import in_percent, in_points

ROOT = Path(__file__).resolve().parent.parent


def d(*values): return paired_t(values, [0]*len(values))

@pytest.mark.parametrize('values, said', [
    ((.97, .98, .97), 'met'), ((.9, .99, .99), 'met on average; the interval reaches 11.9 below'), ((.9, .91, .92), 'missed by 4.0')])
def test_judged(values, said): assert judged(d(*values), .95) == said

def test_not_run():
    assert judged(None, .95) == beats(None) == 'not run'
    assert [beats(x) for x in (d(.1, .11, .12), d(-.1, .1), d(-.1, -.11, -.12))] == ['yes', 'not shown', 'no']

LISTED = {n: SimpleNamespace(reference=r) for n,r in (('digits_95', 'digits_0'), ('digits_0', None), ('holdout_texture', 'digits_0'),
                                                      ('square_asl', 'square_asl_0'), ('square_asl_0', None))}

def test_answers():
    have = dict(digits_95=results(erm=[.2, .2], random_place=[.2, .3], default=[.97, .98]),
                digits_0=results(erm=[1., 1.], default=[.98, .99]),
                holdout_texture=results(erm=[.98, .98], masktune_tuned=[.99, 1.], default=[.9, .91]))
    rows = answers(LISTED, have)
    def row(words): return next(r for r in rows if r[0] == words)[1:]
    assert row('closes a part of the gap on `digits_95`') == [f"{in_percent(d(.77/.8, .78/.8))}; {in_points(d(.77, .78))}", 'yes']
    assert row('closes a part of the gap on `holdout_texture`') == ['no gap: plain training loses less than 5 points', 'no']
    assert row('closes a part of the gap on `square_asl`') == ['', 'not run']
    assert row('loses at most half a point on `digits_0`') == [in_points(d(-.02, -.01)), 'missed by 1.0']
    assert row('beats `random_place` on `digits_95`')[1] == 'yes' and row('beats `masktune_tuned` on `holdout_texture`')[1] == 'no'
    assert row('beats `proposal` on `digits_95`') == ['', 'not run']

def test_report_of_the_gap(tmp_path):
    write_study()
    Path('comparisons.ini').write_text(LIST.replace('[strong]', '[digits_0]').replace('[weak]', '[images_120]\nreference = digits_0'))
    lines = results(erm=[.2, .4], default=[.6, .9])
    lines[2]['verdict'] = 'shortcut'
    for name,had in (('digits_0', results(erm=[1., .9])), ('images_120', lines), ('digits_95', results(erm=[.2, .3]))):
        (tmp_path/f'{name}.jsonl').write_text(''.join(json.dumps(o) + '\n' for o in had))
    text = study_report(tmp_path, 'settings.ini').read_text()
    assert '| images_120 | default | 2 | 30.0% | 95.0% | 75.0% (60.0–90.0) | 75% [' in text and '## Questions' in text
    assert 'Verdicts: default: shortcut in 1 of 1 runs.' in text
    assert {f.name for f in tmp_path.glob('*.svg')} == {'gaps.svg'}

def test_every_comparison_that_is_named_is_listed():
    from studies.report import asked_against, fewer_steps, less_data
    from studies.study import comparisons
    listed = comparisons(ROOT/'studies'/'settings.ini')
    for name in (*asked_against, *(n for _,n in (*less_data, *fewer_steps))): assert name in listed, name
    for name,others in asked_against.items(): assert {'default', *others} <= {*listed[name].names}, name
