"""What the study has shown: goals judged by their numbers, what is missing called missing, and a report that comes back identical from its records."""
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from test_study import INI, cache, study, weak, weak_study  # noqa: F401
from test_study_tables import results

from studies.report import beats, goals, judged, study_report
from proxy_attention.lab.metrics.stats import paired_t
from studies.tables import in_percent, in_points

def d(*values): return paired_t(values, [0]*len(values))

@pytest.mark.parametrize('values, said', [((.97, .98, .97), 'met'), ((.9, .99, .99), 'met on average; the interval reaches 11.9 below'), ((.9, .91, .92), 'missed by 4.0'), ((-.2, -.1), 'missed by 110.0')])
def test_judged(values, said): assert judged(d(*values), .95) == said

def test_not_run_and_other_units():
    assert judged(None, .95) == beats(None) == 'not run' and judged(d(.9, .9), .95, lambda v: f'{v:.2f}') == 'missed by 0.05'
    assert [beats(x) for x in (d(.1, .11, .12), d(-.1, .1), d(-.1, -.11, -.12))] == ['met', 'missed: no effect shown', 'missed']

LISTED = {n: SimpleNamespace(reference=r) for n,r in (('fresh_95', 'fresh_0'), ('fresh_0', None), ('square_cifar10', 'square_cifar10_0'), ('holdout_texture', 'holdout_0'), ('holdout_0', None))}

def row(rows, words): return next(r for r in rows if words in r[0])

def test_goals():
    have = dict(fresh_95=results(erm=[.2, .2], recommended=[.97, .98]), fresh_0=results(erm=[1., 1.], recommended=[.98, .99]), square_cifar10=results(erm=[.1, .1], duplicate_wrong=[.2, .2], masktune=[.3, .5], recommended=[.4, .41]),
                holdout_0=results(erm=[.9, .9]), holdout_texture=results(erm=[.1, .1], recommended=[.5, .5]),
                fashion=results(erm=[.8, .8, .8], random_erasing=[.8, .8, .8], recommended=[.82, .83, .82]), asl=results(erm=[.8, .8, .8], random_erasing=[.9, .9, .9], recommended=[.82, .83, .82]))
    rows = goals(LISTED, have)
    assert row(rows, 'closes 95% of the gap on `fresh_95`')[1:] == [in_percent(d(.77/.8, .78/.8)), 'met on average; the interval reaches 6.1 points below']
    assert row(rows, 'gap on `fresh_99`')[1:] == ['', 'not run'] and row(rows, 'plain training on `fresh_95`')[1:] == ['2.00×', 'missed by 0.70×']
    assert row(rows, 'half a point on `fresh_0`')[1:] == [in_points(d(-.02, -.01)), 'missed by 1.0'] and row(rows, 'half a point on `holdout_0`')[2] == 'not run'
    assert row(rows, 'beats `duplicate_wrong` on `square_cifar10`')[2] == 'met' and row(rows, 'beats `masktune` on `square_cifar10`')[2] == 'missed: no effect shown' and row(rows, 'on `watermark_asl`')[2] == 'not run'
    assert row(rows, '`holdout_texture` (to be reported)')[1:] == ['50.0% [50.0%, 50.0%]', 'reported']
    small = goals(LISTED, have | dict(holdout_texture=results(erm=[.89, .89], recommended=[.9, .88])))
    assert row(small, '`holdout_texture`')[1:] == [in_points(d(.01, -.01)), 'no gap: plain training loses less than 5 points']
    assert row(rows, 'Random Erasing on `fashion`')[2] == 'met' and row(rows, 'Random Erasing on `asl`')[2] == 'missed by 7.2' and row(rows, 'Random Erasing on `cifar10`')[2] == 'not run'
    assert row(rows, 'two of three')[2] == 'met' and row(goals(LISTED, {k: v for k,v in have.items() if k != 'asl'}), 'two of three')[2] == 'not run'
    have['asl'] = results(erm=[.8, .8, .8], recommended=[.7, .8, .9])
    assert row(goals(LISTED, have), 'two of three')[2] == 'missed'

def test_report_comes_back_identical(weak_study):  # noqa: F811
    file = study_report('records', 'settings.ini')
    before = {f.name: f.read_bytes() for f in Path('records').iterdir()}
    text = file.read_text()
    assert '## strong' in text and '0 of 4 runs done' in text and '6 of 6 runs done, 9 optimizer steps each; audits: 6 of 6 clean' in text and '| random_erasing |' in text and '## Goals' not in text
    for f in ('README.md', 'weak.svg'): (Path('records')/f).unlink()
    study_report('records', 'settings.ini')
    assert {f.name: f.read_bytes() for f in Path('records').iterdir()} == before

def test_report_of_the_gap(tmp_path):
    Path('settings.ini').write_text(INI.replace('comparison:strong', 'comparison:digits_0').replace('comparison:weak]', 'comparison:less_digits_5]\nreference = digits_0'))
    for name,lines in (('digits_0', results(erm=[1., .9])), ('less_digits_5', results(erm=[.2, .4], recommended=[.6, .9])), ('digits_95', results(erm=[.2, .3]))):
        if name == 'less_digits_5': lines[2]['trial'], lines[3]['verdict'] = 'shortcut', 'real'
        (tmp_path/f'{name}.jsonl').write_text(''.join(json.dumps(o) + '\n' for o in lines))
    text = study_report(tmp_path, 'settings.ini').read_text()
    assert '| less_digits_5 | recommended | 2 | 30.0% | 95.0% | 75.0% (60.0–90.0) | 75.0% [' in text and 'Verdicts: shortcut in 1 runs of recommended; real in 1 runs of recommended' in text and '## Goals' in text
    assert {f.name for f in tmp_path.glob('*.svg')} == {'gaps.svg', 'digits_0.svg', 'less_digits_5.svg', 'less_digits.svg'}

def test_records_of_an_earlier_recipe_are_called_so(weak_study):  # noqa: F811
    assert "version 0.1's" not in study_report('records', 'settings.ini').read_text()
    first,*rest = (file := Path('records/weak.jsonl')).read_text().splitlines()
    file.write_text('\n'.join([json.dumps(json.loads(first) | dict(version='0.1.0')), *rest]) + '\n')
    assert "**These records are version 0.1's.**" in study_report('records', 'settings.ini').read_text().split('## ')[0]
