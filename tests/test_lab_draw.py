"""Drawings are well-formed, show what they are given, and take any text as text."""
import math
import re
import xml.etree.ElementTree as ET

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy_attention.lab.metrics.text import count, num, share, tenths
from proxy_attention.lab.report.pages import template
from proxy_attention.lab.report.run_page import confused_pairs
from proxy_attention.lab.report.svg import ARM_COLOURS, draw_svg, line_chart, reliability_chart

parts = template('parts.html').module
bars,meter,confusion_table = parts.bars, parts.meter, parts.confusion_table

hostile = '<script>alert(1)</script>"\'&{{ 7*7 }}'
numbers = st.none() | st.floats(-1e6, 1e6)


def parsed(markup):
    "The markup as a tree: an error if a tag is not closed or a character not escaped"
    return ET.fromstring(f'<div>{markup}</div>')

def line(ys, **kw): return dict(name='a', number=0, style='-', pieces=[dict(points=list(enumerate(ys)))]) | kw

def places(svg): return [(float(u.get('x')), float(u.get('y'))) for u in parsed(svg).iter('use') if '--line' not in u.get('style', '')]

def frame(svg): return map(float, re.search('viewBox="0 0 ([\\d.]+) ([\\d.]+)"', svg).groups())


@pytest.mark.parametrize('v, words', [(.5, '50.0%'), (0, '0.0%'), (None, '–'), ('x', '–'), (True, '–'), (math.nan, '–'), (math.inf, '–')])
def test_missing_numbers(v, words): assert share(v) == words and (count(v) == '–') == (tenths(v) == '–') == (num(v) is None)

@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(numbers, max_size=8), max_size=4), st.booleans())
def test_any_line_stays_in_its_frame(lines, percent):
    svg = line_chart([line(ys, name=f'{hostile}{i}', number=i) for i,ys in enumerate(lines)], hostile, hostile, percent=percent, marks=[1])
    known = sum(y is not None for ys in lines for y in ys)
    assert '<script' not in svg and (svg == '') == (known == 0)
    if known:
        (w,h),dots = frame(svg), [p for p in places(svg) if p[0]]
        assert len(dots) >= known and all(0 <= x <= w and -1 <= y <= h for x,y in dots)

def test_line_chart_tells_higher_from_lower():
    def ends(ys): return re.search(r'<path d="M ([\d.]+) ([\d.]+) \nL ([\d.]+) ([\d.]+) \n"[^>]*style="[^"]*--arm0', line_chart([line(ys)], 'epochs', 'accuracy')).groups()
    x0,y0,x1,y1 = map(float, ends([.2, .8]))
    assert x0 < x1 and y0 > y1

def test_line_chart_arguments():
    base = dict(lines=[line([.5, .9])], xlabel='epochs', title='accuracy')
    first = line_chart(**base)
    assert line_chart(**base) == first and 'Last values: a 0.9.' in first
    for change in (dict(xlabel='seconds'), dict(title='loss'), dict(percent=True), dict(marks=[.5]), *(dict(lines=[line([.5, .9], **kw)]) for kw in (
            dict(style='--'), dict(number=1), dict(name='b'), dict(width=3.), dict(gid='arm1'), dict(pieces=[dict(points=[(0, .5), (1, .9)], faint=True)])))):
        assert line_chart(**base | change) != first, change
    assert len(places(line_chart([line([.5]*200)], 'x', 'y'))) < 20 # a line of many points needs no dots
    assert 'class="arm1"' in line_chart([line([.5, .9], gid='arm1')], 'x', 'y')

def test_drawings_have_the_page_s_colours_and_no_ids_that_clash():
    svg = draw_svg(lambda ax: [ax.plot([0, 1], color=c, gid='all') for c in ARM_COLOURS], hostile)
    assert all(f'var(--arm{i})' in svg for i in range(6)) and '#abcde' not in svg and svg.count('class="all"') == 6 and 'font-family' not in svg
    other = draw_svg(lambda ax: ax.plot([0, 1], 'o', color=ARM_COLOURS[0]), 'other')
    assert not set(re.findall(' id="([^"]+)"', svg)) & set(re.findall(' id="([^"]+)"', other))
    assert list(frame(draw_svg(lambda ax: None, 't', 3., 2.))) == [216, 144]

@pytest.mark.parametrize('v, width', [(.5, '50.0'), (0, '0'), (1, '100'), (None, '0')])
def test_meter(v, width): assert f'width:{width}%' in meter(v) and 'f3' in meter(v, 'f3') and share(v) in meter(v)

def test_bars():
    got = bars([('a', 10, 'ten'), (hostile, 5, hostile), ('c', 0, '–')])
    widths = [i.get('style') for i in parsed(got).iter('i')]
    assert [float(w[6:-1]) for w in widths] == [72, 36, 0] and '<script' not in got

@given(st.integers(1, 6).flatmap(lambda c: st.lists(st.lists(st.integers(0, 50), min_size=c, max_size=c), min_size=c, max_size=c)))
@settings(max_examples=40, deadline=None)
def test_confusion_table(rows):
    names = [f'{hostile}{i}' for i in range(len(rows))]
    cells = [int(td.text) for td in parsed(confusion_table(rows, names)).iter('td')]
    assert cells == [v for r in rows for v in r]
    pairs = confused_pairs(dict(confusion=rows, per_class=dict.fromkeys(names)), 3)
    off = sorted((v for i,r in enumerate(rows) for j,v in enumerate(r) if i != j and v), reverse=True)
    assert [p['n'] for p in pairs] == off[:3] and all(p['of'] == sum(rows[names.index(p['true'])]) and p['true'] != p['seen'] for p in pairs)

def test_confusion_colours():
    table = parsed(confusion_table([[9, 1], [0, 0]], ['a', 'b']))
    assert [(td.get('class'), td.get('style')) for td in table.iter('td')] == [('diag hot', '--h:0.9'), ('off', '--h:0.1'), ('zero', '--h:0'), ('zero', '--h:0')]

def test_reliability():
    svg = reliability_chart([dict(n=10, confidence=.9, accuracy=.5), dict(n=90, confidence=.9, accuracy=.9), dict(n=0, confidence=None, accuracy=None)])
    assert '90.0% sure, 50.0% right (10); 90.0% sure, 90.0% right (90)' in svg
    dots = [[float(v) for v in re.findall(r'[\d.]+', d)] for d in re.findall(r'<path d="(M [^"]*z)\s*"[^>]*fill: var\(--arm0\)', svg)]
    (low,wide),(high,wider) = ((max(d[1::2]), max(d[::2]) - min(d[::2])) for d in dots)
    assert low > high and wide < wider
