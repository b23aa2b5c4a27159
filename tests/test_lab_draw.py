"""Drawings are well-formed, stay inside of their frame, and take any text as text."""
import math
import xml.etree.ElementTree as ET

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy_attention.lab.report.svg import bars, confused_pairs, confusion_table, line_chart, matrix_of, meter
from proxy_attention.lab.metrics.text import count, num
from proxy_attention.lab.report.svg import reliability_chart
from proxy_attention.lab.metrics.text import secs, share, span, ticks

hostile = '<script>alert(1)</script>"\'&{{ 7*7 }}'
numbers = st.one_of(st.none(), st.just('x'), st.booleans(), st.integers(-10**6, 10**6), st.floats())


def parsed(markup):
    "The markup as a tree: an error if a tag is not closed or a character not escaped"
    return ET.fromstring(f'<div>{markup}</div>')

def line(ys, **kw): return dict(name='a', number=0, style='solid', pieces=[dict(points=[(i, y, f'at {i}') for i,y in enumerate(ys)])]) | kw

def places(svg): return [(float(c.get('cx')), float(c.get('cy'))) for c in parsed(svg).iter('circle')]


@pytest.mark.parametrize('v, words', [(.5, '50.0%'), (0, '0.0%'), (None, '–'), ('x', '–'), (True, '–'), (math.nan, '–'), (math.inf, '–')])
def test_missing_numbers(v, words): assert share(v) == words and (count(v) == '–') == (secs(v) == '–') == (num(v) is None)

@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6))
def test_ticks_are_round_and_inside(low, length):
    got = ticks(low, low+length)
    assert 2 <= len(got) <= 12 and all(low - length*1e-5 <= v <= low + length*1.00001 for v in got)

def test_number_of_ticks(): assert len(ticks(0, 100, 10)) > len(ticks(0, 100, 3))

@given(st.lists(numbers, max_size=20))
def test_span_holds_all(values):
    low,high = span(values)
    assert low < high and all(low - 1e-6*(high-low) <= v <= high + 1e-6*(high-low) for v in values if num(v) is not None)

def test_span_arguments():
    assert span([.2, .3], top=1)[1] == 1 and span([.2, .3])[1] < 1
    assert span([.95, .951], least=.1)[0] < span([.95, .951], least=.01)[0]

@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(numbers, max_size=8), max_size=4), st.booleans(), st.sampled_from([None, 1]))
def test_any_line_stays_in_its_frame(lines, percent, top):
    svg = line_chart([line(ys, name=hostile, number=i) for i,ys in enumerate(lines)], hostile, hostile, top=top, percent=percent, marks=[(1, hostile), (None, 'x')])
    assert '<script' not in svg
    known = sum(num(y) is not None for ys in lines for y in ys)
    assert len(places(svg)) == known and all(54 <= x <= 506 and 12 <= y <= 256 for x,y in places(svg))
    assert (svg == '') == (known == 0)

def test_line_chart_tells_higher_from_lower():
    (x0,y0),(x1,y1) = places(line_chart([line([.2, .8])], 'epochs', 'accuracy'))
    assert x0 < x1 and y0 > y1

def test_line_chart_arguments():
    base = dict(lines=[line([.5, .9])], xlabel='epochs', title='accuracy')
    first = line_chart(**base)
    for change in (dict(xlabel='seconds'), dict(title='loss'), dict(top=2), dict(percent=True), dict(marks=[(1, 'cycle 1')]), dict(width=300), dict(height=200),
                   dict(lines=[line([.5, .9], style='dashed')]), dict(lines=[line([.5, .9], number=1)]), dict(lines=[line([.5, .9], name='b')])):
        assert line_chart(**base | change) != first, change
    faint = line_chart([dict(line([]), pieces=[dict(points=[(0, .5, ''), (1, .9, '')], faint=True)])], 'epochs', 'accuracy')
    assert 'faint' in faint and 'faint' not in first
    assert line_chart([line([.5]*200)], 'x', 'y').count('<circle') == 0 # a line of many points needs no dots

@pytest.mark.parametrize('v, width', [(.5, 50), (0, 0), (1, 100), (7, 100), (-1, 0), (None, 0)])
def test_meter(v, width): assert f'width:{float(width):g}%' in meter(v).replace('.0%', '%', 1) and 'f3' in meter(v, 'f3')

def test_bars():
    got = bars([('a', 10, 'ten'), (hostile, 5, hostile), ('c', None, '–')])
    widths = [i.get('style') for i in parsed(got).iter('i')]
    assert widths == ['width:72.0%', 'width:36.0%', 'width:0.0%'] and '<script' not in got and 'f2' in bars([('a', 1, '')], 'f2')
    parsed(bars([]))

@given(st.integers(1, 6).flatmap(lambda c: st.lists(st.lists(st.integers(0, 50), min_size=c, max_size=c), min_size=c, max_size=c)))
@settings(max_examples=40, deadline=None)
def test_confusion_table(rows):
    names = [f'{hostile}{i}' for i in range(len(rows))]
    cells = [int(td.text) for td in parsed(confusion_table(rows, names)).iter('td')]
    assert cells == [v for r in rows for v in r]
    pairs = confused_pairs(rows, names, 3)
    off = sorted((v for i,r in enumerate(rows) for j,v in enumerate(r) if i != j and v), reverse=True)
    assert [p['n'] for p in pairs] == off[:3] and all(p['of'] == sum(rows[names.index(p['true'])]) and p['true'] != p['seen'] for p in pairs)

def test_confusion_colours():
    table = parsed(confusion_table([[9, 1], [0, 0]], ['a', 'b']))
    assert [(td.get('class'), td.get('style')) for td in table.iter('td')] == [('diag hot', '--h:0.9'), ('off', '--h:0.1'), ('zero', '--h:0'), ('zero', '--h:0')]

@pytest.mark.parametrize('bad', [None, 'x', 3, [1], [[1, 2]], [[1, None], [2, 3]], [[1], [2]], {}])
def test_no_matrix(bad): assert matrix_of(bad) == [] and confusion_table(bad, ['a', 'b']) == '' and confused_pairs(bad, ['a']) == []

def test_reliability():
    svg = reliability_chart([dict(n=10, confidence=.9, accuracy=.5), dict(n=90, confidence=.9, accuracy=.9), dict(n=0, confidence=None, accuracy=None), 'x', dict(n='y')])
    (_,low),(_,high) = places(svg)
    radii = [float(c.get('r')) for c in parsed(svg).iter('circle')]
    assert low > high and radii[0] < radii[1]
    assert all(0 <= v <= 300 for p in places(svg) for v in p) and reliability_chart([dict(n=1, confidence=.5, accuracy=1)], side=200) != reliability_chart([dict(n=1, confidence=.5, accuracy=1)])
    for nothing in (None, [], 'x', [dict(n=0)]): assert reliability_chart(nothing) == ''
