"""Tables and drawings of the study, from its records alone."""

from pathlib import Path
from statistics import mean

import matplotlib.pyplot as plt
from matplotlib.ticker import PercentFormatter

from proxy_attention.files import read_lines
from proxy_attention.lab.metrics.stats import Difference, paired_t
from proxy_attention.lab.metrics.text import interval_text

def read_study(
    records='results/study', # Folder of the records
) -> dict: # Name → lines of kind 'result'
    "The results of every comparison that has a record"
    files = sorted(Path(records).glob('*.jsonl'))
    return {f.stem: [o for o in read_lines(f) if o.get('kind') == 'result'] for f in files}

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
) -> Difference|None:
    "Share of the gap between plain training with the shortcut and without it that an arm closes, seed by seed"
    ours,low,high = by_seed(results, arm), by_seed(results, 'erm'), by_seed(plain, 'erm')
    both = [s for s in ours.keys() & low.keys() & high.keys() if high[s] != low[s]]
    shares = {s: (ours[s] - low[s])/(high[s] - low[s]) for s in both}
    return set_against(shares, dict.fromkeys(shares, 0.))

def to_target(
    line, # Of kind 'result'
    target:float, # Validation accuracy
) -> int|None: # None: not reached
    "Optimizer steps, those of scouts too, after which a run had a validation accuracy for the first time"
    reached = (step for step,_,accuracy,_ in line['curve'] if accuracy >= target)
    return next((step + (line.get('scout_steps') or 0) for step in reached), None)

def in_points(
    d, # `Difference`, or None
) -> str:
    "A difference of shares in percentage points, with its interval; if that holds 0, in words too"
    return '' if d is None else interval_text(vars(d)) + ('' if d.sign else ' no effect shown')

def in_percent(
    d, # `Difference`, or None
) -> str:
    "A share with its interval"
    return '' if d is None else interval_text(vars(d), write='{:.0%}'.format).replace('-', '−')

def markdown(
    rows, # Lists of texts, the first the heading
    words:int=1, # So many columns hold words, and stand to the left
) -> str:
    "A table in Markdown, numbers to the right"
    def line(r): return '| ' + ' | '.join(map(str, r)) + ' |'
    return '\n'.join([line(rows[0]), '|' + '---|'*words + '---:|'*(len(rows[0]) - words), *map(line, rows[1:])])

def spread(
    values, # Of seeds
) -> str:
    "Their mean as a percentage, and in brackets the lowest and the highest"
    v = list(values)
    return f"{mean(v):.1%} ({100*min(v):.1f}–{100*max(v):.1f})" if v else ''

def step_ratio(
    results, # Lines of kind 'result' of a comparison
    arm:str,
) -> str: # Such as 1.30×; empty: no such runs
    "Optimizer steps of an arm, those of scouts too, over those of its fit"
    mine = [o for o in results if o['arm'] == arm]
    if not mine: return ''
    return f"{1 + sum(o.get('scout_steps') or 0 for o in mine)/sum(o['steps'] for o in mine):.2f}×"

def memory(
    results, # Lines of kind 'result' of a comparison
    arm:str,
) -> str:
    "Peak memory of the process, mean over the seeds: a GPU's where there was one, else RAM, libraries and all"
    v = list((by_seed(results, arm, 'peak_gpu_allocated_mb') or by_seed(results, arm, 'peak_ram_mb')).values())
    return f'{mean(v):,.0f} MB' if v else ''

def arm_table(
    results, # Lines of kind 'result' of a comparison
) -> list: # Rows, the first the heading
    "A row an arm: test accuracy, difference to plain training in points, precision, recall, steps, memory"
    rows = [['arm', 'seeds', 'accuracy', 'against erm', 'precision', 'recall', 'steps', 'memory']]
    for a in dict.fromkeys(o['arm'] for o in results):
        if not (v := by_seed(results, a)): continue
        own = '' if a == 'erm' else in_points(set_against(v, by_seed(results, 'erm')))
        more = [by_seed(results, a, f'test_{k}').values() for k in ('precision', 'recall')]
        rows.append([a, len(v), spread(v.values()), own, *(f'{mean(m):.1%}' if m else '' for m in more),
                     step_ratio(results, a), memory(results, a)])
    return rows

def gap_table(
    listed, # Name → `ComparisonConfig`
    results, # Of `read_study`
) -> list: # Rows, the first the heading
    "A row an arm of each comparison with a reference: accuracy, and the share of the gap closed"
    rows = [['shortcut', 'arm', 'seeds', 'plain training', 'without the shortcut', 'accuracy', 'gap closed']]
    for name,c in listed.items():
        have,plain = results.get(name, []), results.get(c.reference, [])
        for a in dict.fromkeys(o['arm'] for o in have):
            if a == 'erm' or (gap := gap_closed(have, plain, a)) is None: continue
            rows.append([name, a, gap.n, *(f"{mean(by_seed(r, 'erm').values()):.1%}" for r in (have, plain)),
                         spread(by_seed(have, a).values()), in_percent(gap) if has_gap(have, plain) else 'no gap'])
    return rows

def amount_table(
    results, # Of `read_study`
    amounts, # (words, name of a comparison), from little to much
    arms=('erm', 'default'), # The second is set against the first
) -> list: # Rows, the first the heading
    "A row an amount, of images or of steps: both arms and their difference, over the seeds that all amounts have"
    amounts = [(w, n) for w,n in amounts if results.get(n)]
    seeds = set.intersection(*({o['seed'] for o in results[n]} for _,n in amounts)) if amounts else set()
    rows = [['', 'seeds', *arms, 'difference', 'steps']]
    for w,n in amounts:
        both = [{s: v for s,v in by_seed(results[n], a).items() if s in seeds} for a in arms]
        rows.append([w, len(both[1]), *(spread(v.values()) for v in both), in_points(set_against(both[1], both[0])),
                     step_ratio(results[n], arms[1])])
    return rows

def target_table(
    results, # Of `read_study`
    names, # Of comparisons whose validation is free of shortcuts
    below:float=0.02, # What the target lies below the accuracy that plain training ends at
) -> list: # Rows, the first the heading
    "A row a comparison and an arm: steps to what plain training ends at, less the allowance"
    rows = [['data', 'arm', 'reached it', 'steps']]
    for name in (n for n in names if results.get(n)):
        targets = {s: v - below for s,v in by_seed(results[name], 'erm', 'valid_accuracy').items()}
        for a in dict.fromkeys(o['arm'] for o in results[name]):
            mine = [o for o in results[name] if o['arm'] == a and o['seed'] in targets]
            got = [t for o in mine if (t := to_target(o, targets[o['seed']])) is not None]
            rows.append([name, a, f'{len(got)} of {len(mine)}', f'{mean(got):.0f}' if got else ''])
    return rows

def verdict_counts(
    results, # Lines of kind 'result' of a comparison
) -> str: # Such as "default: shortcut in 3 of 3 runs"
    "What the library's tests said in the runs of each arm that has them"
    told = {}
    for o in results:
        if o.get('verdict'): told.setdefault(o['arm'], []).append(o['verdict'])
    return '; '.join(f"{a}: " + ', '.join(f"{w} in {v.count(w)} of {len(v)} runs" for w in dict.fromkeys(v))
                     for a,v in told.items())

# Arm → name, mark and colour in drawings
marks = {'erm': ('plain training', 'o', '0.6'), 'default': ('the default', 'o', 'C0'),
         'proposal': ('the proposal', 's', 'C2'), 'jtt_tuned': ('Just Train Twice, tuned', '^', 'C3'),
         'masktune_tuned': ('MaskTune, tuned', 'D', 'C1'), 'random_place': ('random places', 'x', 'black')}

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
            ax.plot(ends, [k, k], color='0.88', lw=9, solid_capstyle='butt', zorder=0)
            ax.plot(ends[1], k, '|', ms=17, mew=1.8, color='black', label='plain training without the shortcut')
            for arm,(words,mark,colour) in marks.items():
                if v := by_seed(results[n], arm): ax.plot(mean(v.values()), k, mark, color=colour, ms=6, label=words)
        ax.set(yticks=range(len(names)), yticklabels=names, ylim=(len(names)-.5, -.5), xlim=(0, 1),
               xlabel='test accuracy, mean over seeds; in the test the shortcut tells nothing')
        ax.xaxis.set_major_formatter(PercentFormatter(1))
        ax.grid(axis='x', alpha=0.3)
        once = dict(zip(*reversed(ax.get_legend_handles_labels()))) # Each name once
        if names:
            legend = ax.legend(once.values(), once, loc='lower center', bbox_to_anchor=(.42, 1), ncols=3,
                               frameon=False, fontsize=8)
            for mark in legend.legend_handles: mark.set_markersize(7)
    with plt.rc_context({'svg.hashsalt': 'study', 'svg.fonttype': 'none', 'font.size': 9}): # The same bytes each time
        fig,ax = plt.subplots(figsize=(7.2, 1.5 + 0.36*len(names)), layout='constrained')
        draw(ax)
        for side in ('top', 'right'): ax.spines[side].set_visible(False)
        fig.savefig(file, metadata={'Date': None, 'Creator': None})
        plt.close(fig)
