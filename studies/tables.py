"""Tables and drawings of a study, from its records alone: what an arm came to seed by seed, gaps closed, methods, amounts of data, time to a target."""

from pathlib import Path
from statistics import mean

import matplotlib.pyplot as plt
from matplotlib.ticker import PercentFormatter

from proxy_attention.lab.compare.arms import arm_kind
from proxy_attention.files import read_lines
from proxy_attention.lab.metrics.stats import Difference, paired_t
from proxy_attention.lab.metrics.text import interval_text

def read_study(
    records='results/study', # Folder of the records
) -> dict: # Name → lines of kind 'result'
    "The results of every comparison that has a record"
    return {f.stem: [o for o in read_lines(f) if o.get('kind') == 'result'] for f in sorted(Path(records).glob('*.jsonl'))}

def by_seed(
    results, # Lines of kind 'result'
    arm:str,
    measure:str='test_accuracy', # A key of the lines
) -> dict: # Seed → value
    "What an arm came to, seed by seed"
    return {o['seed']: o[measure] for o in results if o['arm'] == arm and o.get(measure) is not None}

def set_against(
    ours:dict, # Seed → value
    theirs:dict,
) -> Difference|None: # None: fewer than two seeds in common
    "The paired difference over the seeds that both have"
    seeds = sorted(ours.keys() & theirs.keys())
    return paired_t([ours[s] for s in seeds], [theirs[s] for s in seeds]) if len(seeds) > 1 else None

least_gap = 0.05 # Accuracy that a shortcut has to cost for a share of it to mean anything

def has_gap(
    results, # With a shortcut in training
    plain, # The same without one
) -> bool:
    "Does the shortcut cost plain training anything worth closing?"
    low,high = (by_seed(r, 'erm') for r in (results, plain))
    both = low.keys() & high.keys()
    return bool(both) and mean(high[s] - low[s] for s in both) >= least_gap

def gap_closed(
    results, # With a shortcut in training
    plain, # The same without one: what can be reached
    arm:str, # Of `results`
    measure:str='test_accuracy',
) -> Difference|None:
    "Share of the gap between plain training with the shortcut and without it that an arm closes, seed by seed, with its interval"
    ours,low,high = by_seed(results, arm, measure), by_seed(results, 'erm', measure), by_seed(plain, 'erm', measure)
    shares = {s: (ours[s] - low[s])/(high[s] - low[s]) for s in ours.keys() & low.keys() & high.keys() if high[s] != low[s]}
    return set_against(shares, dict.fromkeys(shares, 0.))

def spent_beside(
    line, # Of kind 'result'
) -> tuple: # (steps, seconds)
    "What a run has spent beside its stages: of scouts and of looking; in records of version 0.1 of looking and of a trial between the stages"
    trained = line['curve'][-1][0]
    between = line['steps'] - trained
    looks = sum(line.get(f'seconds_{k}') or 0 for k in ('scout', 'score', 'saliency', 'erase', 'write'))
    return (line.get('scout_steps') or 0) + between, looks + between*line['seconds_train']/max(1, trained)

def to_target(
    line, # Of kind 'result'
    target:float, # Validation accuracy
) -> tuple|None: # (steps, seconds); None: not reached
    "When a run reached a validation accuracy for the first time"
    more,scouted = spent_beside(line), bool(line.get('scout_steps'))
    for step,seconds,accuracy,_ in line['curve']:
        if accuracy >= target: return (step + more[0], seconds + more[1]) if scouted or step > line['stages'][0] else (step, seconds)
    return None

def in_points(
    d, # `Difference`, or None
) -> str:
    "A difference of shares in percentage points, with its interval; if that holds 0, in words too"
    return '' if d is None else interval_text(vars(d)) + ('' if d.sign else ' no effect shown')

def in_percent(
    d, # `Difference`, or None
) -> str:
    "A share with its interval"
    return '' if d is None else interval_text(vars(d), write='{:.1%}'.format).replace('-', '−')

def in_times(
    ratio, # Or None
) -> str:
    "Such as 1.04×"
    return '' if ratio is None else f'{ratio:.2f}×'

def markdown(
    rows, # Lists of texts, the first the heading
    words:int=1, # So many columns hold words, and stand to the left
) -> str:
    "A table in Markdown, numbers to the right"
    line = lambda r: '| ' + ' | '.join(map(str, r)) + ' |'
    return '\n'.join([line(rows[0]), '|' + '---|'*words + '---:|'*(len(rows[0]) - words), *map(line, rows[1:])])

def spread(
    values, # Of seeds
) -> str:
    "Their mean as a percentage, and in brackets the lowest and the highest"
    v = list(values)
    return f"{mean(v):.1%} ({100*min(v):.1f}–{100*max(v):.1f})" if v else ''

def seconds_ratio(
    results, # Lines of kind 'result' of a comparison
    arm:str,
    against:str='erm',
) -> float|None: # None: no such seed
    "Seconds of an arm over those of another, over the seeds that both have run at the same commit: another sitting is another load of the machine"
    ours,theirs = by_seed(results, arm, 'seconds'), by_seed(results, against, 'seconds')
    made = {(o['arm'], o['seed']): o.get('commit') for o in results}
    both = [s for s in ours if s in theirs and made[arm, s] == made[against, s]]
    return sum(ours[s] for s in both)/sum(theirs[s] for s in both) if both else None

def memory(
    results, # Lines of kind 'result' of a comparison
    arm:str,
) -> str:
    "Peak memory of the process, mean over the seeds: a GPU's where there was one, else RAM, libraries and all"
    v = list((by_seed(results, arm, 'peak_gpu_allocated_mb') or by_seed(results, arm, 'peak_ram_mb')).values())
    return f'{mean(v):,.0f} MB' if v else ''

baselines = ('duplicate_wrong', 'random_erasing', 'masktune') # Besides plain training, what an arm is set against

def arm_table(
    results, # Lines of kind 'result' of a comparison
    measure:str='test_accuracy',
) -> list: # Rows, the first the heading
    "A row an arm: mean and range over its seeds, differences with 95% intervals in points, time against plain training's, peak memory"
    arms = list(dict.fromkeys(o['arm'] for o in results))
    against = [a for a in ('erm', *baselines) if a in arms]
    rows = [['arm', 'seeds', 'mean', 'lowest', 'highest', *(f'against {a}' for a in against), 'time', 'memory']]
    for a in arms:
        v = by_seed(results, a, measure)
        time = in_times(seconds_ratio(results, a))
        if not v: continue
        rows.append([a, len(v), *(f'{f(v.values()):.1%}' for f in (mean, min, max)), *('' if b == a else in_points(set_against(v, by_seed(results, b, measure))) for b in against), time, memory(results, a)])
    return rows

def gap_table(
    listed, # Name → `ComparisonConfig`
    results, # Of `read_study`
    arms=None, # Which; None: all
) -> list: # Rows, the first the heading
    "A row a comparison that has a reference and an arm of it: accuracy between plain training's and what can be reached, share of the gap closed, time, memory"
    rows = [['shortcut', 'arm', 'seeds', 'plain training', 'without the shortcut', 'accuracy', 'gap closed', 'time', 'memory']]
    for name,c in listed.items():
        have,plain = results.get(name, []), results.get(c.reference, [])
        for a in dict.fromkeys(o['arm'] for o in have):
            if a == 'erm' or arms is not None and a not in arms or (gap := gap_closed(have, plain, a)) is None: continue
            rows.append([name, a, gap.n, *(f"{mean(by_seed(r, 'erm').values()):.1%}" for r in (have, plain)), spread(by_seed(have, a).values()), in_percent(gap) if has_gap(have, plain) else 'no gap', in_times(seconds_ratio(have, a)), memory(have, a)])
    return rows

def method_table(
    results, # Of `read_study`
    names, # Of comparisons with arms ARM and ARM@METHOD
    arms=('proposal', 'recommended'),
    usual:str='gradcam', # The method of an arm that names none
) -> list: # Rows, the first the heading
    "A row a method and an arm: what the arm comes to with it in each comparison, and the difference to plain training"
    names = [n for n in names if results.get(n)]
    rows = [['method', 'arm', *names]]
    methods = dict.fromkeys([usual, *(o['arm'].partition('@')[2] for n in names for o in results[n] if '@' in o['arm'])])
    for m in methods:
        for a in arms:
            full = a if m == usual else f'{a}@{m}'
            if not any(by_seed(results[n], full) for n in names): continue
            cell = lambda n: f"{mean(v.values()):.1%}, {in_points(set_against(v, by_seed(results[n], 'erm')))}" if (v := by_seed(results[n], full)) else ''
            rows.append([m, a, *map(cell, names)])
    return rows

def amount_table(
    results, # Of `read_study`
    amounts, # (words, name of a comparison), from little to much
    arms=('erm', 'recommended'), # The second is set against the first
) -> list: # Rows, the first the heading
    "A row an amount, of images or of steps: both arms and their difference, over the seeds that all amounts have"
    amounts = [(w, n) for w,n in amounts if results.get(n)]
    seeds = set.intersection(*({o['seed'] for o in results[n]} for _,n in amounts)) if amounts else set()
    of = lambda n,a: {s: v for s,v in by_seed(results[n], a).items() if s in seeds}
    rows = [['', 'seeds', *arms, 'difference', 'time', 'memory']]
    for w,n in amounts:
        both = [of(n, a) for a in arms]
        rows.append([w, len(both[1]), *(spread(v.values()) for v in both), in_points(set_against(both[1], both[0])), in_times(seconds_ratio(results[n], arms[1], arms[0])), memory(results[n], arms[1])])
    return rows

def target_table(
    results, # Of `read_study`
    names, # Of comparisons whose validation is free of shortcuts
    below:float=0.02, # What the target lies below the accuracy that plain training ends at
) -> list: # Rows, the first the heading
    "A row a comparison and an arm: steps and seconds to what plain training reaches, less the allowance, and how many runs got there"
    rows = [['data', 'arm', 'reached it', 'steps', 'seconds']]
    for name in (n for n in names if results.get(n)):
        targets = {s: v - below for s,v in by_seed(results[name], 'erm', 'valid_accuracy').items()}
        for a in dict.fromkeys(o['arm'] for o in results[name]):
            mine = [o for o in results[name] if o['arm'] == a and o['seed'] in targets]
            got = [t for o in mine if (t := to_target(o, targets[o['seed']])) is not None]
            rows.append([name, a, f'{len(got)} of {len(mine)}', *(f'{mean(v):.0f}' for v in zip(*got))] if got else [name, a, f'0 of {len(mine)}', '', ''])
    return rows

def network_table(
    results, # Of `read_study`
    rows_of, # (words, name of a comparison, arm)
) -> list: # Rows, the first the heading
    "A row a network: accuracy, precision, recall on the test, seconds, memory, and how much of its maps lies on the shortcut, means over seeds"
    rows = [['network', 'seeds', 'accuracy', 'against erm', 'precision', 'recall', 'training', 'all', 'peak memory', 'maps on the shortcut', 'its share of the picture']]
    for words,name,arm in rows_of:
        have = results.get(name, [])
        of = lambda k: list(by_seed(have, arm, k).values())
        if not of('test_accuracy'): continue
        share = lambda k: f'{mean(v):.1%}' if (v := of(k)) else ''
        own = '' if arm == 'erm' else in_points(set_against(by_seed(have, arm), by_seed(have, 'erm')))
        rows.append([words, len(of('test_accuracy')), share('test_accuracy'), own, share('test_precision'), share('test_recall'), f"{mean(of('seconds_train')):.0f} s", f"{mean(of('seconds')):.0f} s",
                     memory(have, arm), share('map_on_shortcut'), share('map_area_shortcut')])
    return rows

def save_svg(
    draw, # Function (axes)
    file, # An SVG
    size, # (width, height) in inches
    title:str='',
):
    "A drawing as a file, the same bytes each time"
    with plt.rc_context({'svg.hashsalt': 'study', 'font.size': 9}):
        fig,ax = plt.subplots(figsize=size, layout='constrained')
        draw(ax)
        ax.set_title(title)
        for side in ('top', 'right'): ax.spines[side].set_visible(False)
        fig.savefig(file, metadata={'Date': None, 'Creator': None})
        plt.close(fig)

def draw_arms(
    results, # Lines of kind 'result' of a comparison
    file, # An SVG
    title:str='',
    measure:str='test_accuracy',
):
    "A dot a run, a bar the mean of its arm"
    arms = [a for a in dict.fromkeys(o['arm'] for o in results) if by_seed(results, a, measure)]
    def draw(ax):
        for k,a in enumerate(arms):
            v,kind = list(by_seed(results, a, measure).values()), arm_kind(a.partition('@')[0])
            ax.plot(v, [k]*len(v), 'o', ms=4, alpha=0.6, color='C0' if kind == 'proxies' else 'C1' if kind == 'baseline' else '0.5')
            ax.plot([mean(v)]*2, [k-.3, k+.3], color='black', lw=1.5)
        ax.set(yticks=range(len(arms)), yticklabels=arms, ylim=(len(arms)-.5, -.5), xlim=(0, 1), xlabel=f"{measure.replace('_', ' ')}; a dot a run, a bar the mean")
        ax.xaxis.set_major_formatter(PercentFormatter(1))
        ax.grid(axis='x', alpha=0.3)
    save_svg(draw, file, (6.4, 0.9 + 0.25*len(arms)), title)

_marks = {'erm': ('plain training', 'o', '0.6'), 'duplicate_wrong': ('Just Train Twice', 's', '0.35'), 'masktune': ('MaskTune', 'D', 'C1'), 'recommended': ('recommended', 'o', 'C0')}

def draw_gaps(
    listed, # Name → `ComparisonConfig`
    results, # Of `read_study`
    file, # An SVG
):
    "A row a shortcut: where the arms stand between plain training with it and plain training without it"
    names = [n for n,c in listed.items() if results.get(n) and by_seed(results.get(c.reference, []), 'erm')]
    def draw(ax):
        for k,n in enumerate(names):
            ends = [mean(by_seed(r, 'erm').values()) for r in (results[n], results[listed[n].reference])]
            ax.plot(ends, [k, k], color='0.85', lw=7, solid_capstyle='butt', zorder=0)
            ax.plot(ends[1], k, '|', ms=17, mew=1.8, color='black', label='plain training without the shortcut' if k == 0 else None)
            for arm,(words,mark,colour) in _marks.items():
                if v := by_seed(results[n], arm): ax.plot(mean(v.values()), k, mark, color=colour, ms=6, label=words if k == 0 else None)
        ax.set(yticks=range(len(names)), yticklabels=names, ylim=(len(names)-.5, -.5), xlim=(0, 1), xlabel='test accuracy, mean over seeds; in the test the shortcut tells nothing')
        ax.xaxis.set_major_formatter(PercentFormatter(1))
        ax.grid(axis='x', alpha=0.3)
        if names: ax.legend(loc='lower center', bbox_to_anchor=(.42, 1), ncols=3, frameon=False, fontsize=8)
    save_svg(draw, file, (7.2, 1.4 + 0.32*len(names)))

def draw_amounts(
    results, # Of `read_study`
    amounts, # (number, name of a comparison), from little to much
    file, # An SVG
    arms=('erm', 'recommended'),
    what:str='training images',
):
    "Accuracy over the amount of data: a dot a run, a line through the means"
    amounts = [(x, n) for x,n in amounts if results.get(n)]
    def draw(ax):
        for arm,colour in zip(arms, ('0.5', 'C0', 'C1')):
            at = [(x, list(by_seed(results[n], arm).values())) for x,n in amounts if by_seed(results[n], arm)]
            if at: ax.plot([x for x,_ in at], [mean(v) for _,v in at], color=colour, label=arm)
            for x,v in at: ax.plot([x]*len(v), v, 'o', ms=3.5, alpha=0.6, color=colour)
        ax.set_xscale('log')
        ax.set_xticks([x for x,_ in amounts], [f'{x:,}' for x,_ in amounts])
        ax.set_xticks([], minor=True)
        ax.set(ylim=(0, 1), xlabel=what, ylabel='test accuracy')
        ax.yaxis.set_major_formatter(PercentFormatter(1))
        ax.grid(alpha=0.3)
        ax.legend(frameon=False, fontsize=8)
    save_svg(draw, file, (4.2, 3))
