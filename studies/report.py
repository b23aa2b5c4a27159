"""What the study was to show, and what it has shown: goals with the numbers that meet or miss them, and the report of all comparisons. From records alone; nothing is trained."""

from collections import Counter
from pathlib import Path

from proxy_attention.files import read_lines, write_atomic
from proxy_attention.lab.metrics.text import points
from studies.study import check_report, comparisons, report_sign
from studies.tables import arm_table, by_seed, draw_amounts, draw_arms, draw_gaps, gap_closed, gap_table, has_gap, in_percent, in_points, least_gap, markdown, read_study, seconds_ratio, set_against

def judged(
    d, # `Difference`, or None: not run
    least:float, # What its mean has to reach
    by=points, # How a distance is written
) -> str:
    "met, met on average, or missed by how much"
    if d is None: return 'not run'
    if d.mean < least: return f"missed by {by(least - d.mean).lstrip('+')}"
    return 'met' if d.low >= least else f"met on average; the interval reaches {by(least - d.low).lstrip('+')} below"

def beats(
    d, # `Difference`, or None: not run
) -> str:
    "Is the interval of a difference above 0?"
    return 'not run' if d is None else 'met' if d.low > 0 else 'missed' if d.high < 0 else 'missed: no effect shown'

def share_points(share): return f'{100*share:.1f} points'

recipe = 'recommended'

def _gap(results, listed, name, asked):
    c = listed.get(name)
    d = gap_closed(results.get(name, []), results.get(c.reference, []), recipe) if c is not None else None
    if d is not None and not has_gap(results[name], results[c.reference]): return [f"closes the gap on `{name}`", in_points(_against(results, name, 'erm')), f"no gap: plain training loses less than {100*least_gap:.0f} points"]
    return [f"closes 95% of the gap on `{name}`" if asked else f"closes the gap on `{name}` (to be reported)", '' if d is None else in_percent(d), judged(d, .95, share_points) if asked or d is None else 'reported']

def _time(results, name):
    ratio = seconds_ratio(results.get(name, []), recipe)
    verdict = 'not run' if ratio is None else 'met' if ratio <= 1.3 else f'missed by {ratio - 1.3:.2f}×'
    return [f"takes at most 1.3× the time of plain training on `{name}`, in as many steps", '' if ratio is None else f'{ratio:.2f}×', verdict]

def _against(results, name, other): return set_against(by_seed(results.get(name, []), recipe), by_seed(results.get(name, []), other))

clean_sets = ('fashion', 'asl', 'cifar10')

def goals(
    listed, # Name → `ComparisonConfig`
    results, # Of `read_study`
) -> list: # Rows, the first the heading
    "A row a goal: what was asked, what was found, whether that is enough"
    rows = [['goal', 'found', '']]
    rows += [_gap(results, listed, n, asked) for n,asked in (('fresh_95', True), ('fresh_99', True), ('digits_80', False))]
    rows += [_time(results, n) for n in ('fresh_95', 'fresh_99')]
    for n in ('fresh_0', 'square_cifar10_0', 'holdout_0'):
        d = _against(results, n, 'erm')
        rows.append([f"loses at most half a point on `{n}`, where the shortcut tells nothing", in_points(d), judged(d, -.005)])
    for n,others in (('square_cifar10', ('duplicate_wrong', 'masktune')), ('tuned_square_cifar10', ('jtt_tuned', 'masktune_tuned')), ('watermark_asl', ('duplicate_wrong', 'masktune'))):
        rows += [[f"beats `{other}` on `{n}`", in_points(d := _against(results, n, other)), beats(d)] for other in others]
        if n == 'square_cifar10': rows.append(_gap(results, listed, n, False))
    rows += [_gap(results, listed, n, False) for n in listed if n.startswith('holdout_') and listed[n].reference]
    for n in clean_sets:
        d = _against(results, n, 'random_erasing')
        rows.append([f"is not worse than Random Erasing on `{n}`, by half a point", in_points(d), judged(d, -.005)])
    better = {n: beats(_against(results, n, 'erm')) for n in clean_sets}
    done = [n for n,v in better.items() if v != 'not run']
    found = '; '.join(f"{n} {in_points(_against(results, n, 'erm'))}" for n in done)
    rows.append(["is better than plain training on two of three sets without a known shortcut", found, 'met' if sum(v == 'met' for v in better.values()) > 1 else 'not run' if len(done) < 2 else 'missed'])
    return rows

less_data = {'digits': ((60, 'less_digits_5'), (120, 'less_digits_10'), (300, 'less_digits_25'), (600, 'less_digits_50'), (1200, 'fewer_steps_digits_180'))}
fewer_steps = ((180, 'fewer_steps_digits_180'), (360, 'fewer_steps_digits_360'), (720, 'digits_95'))
networks = (('small CNN', 'cnn_square_fashion', 'erm'), ('small CNN, recommended', 'cnn_square_fashion', 'recommended'), ('small ViT', 'vit_square_fashion', 'erm'),
            ('small ViT, recommended by gradient-weighted rollout', 'vit_square_fashion', 'recommended@gradrollout'))

def _section(name, c, have, out):
    "What is said of a comparison"
    arms = dict.fromkeys(['erm', *c.names])
    listed,others = len([o for o in have if o['arm'] in arms]), list(dict.fromkeys(o['arm'] for o in have if o['arm'] not in arms))
    steps = f", {have[0]['steps']} optimizer steps each; audits: {sum(o['audit_ok'] for o in have)} of {len(have)} clean" if have else ''
    parts = [f"## {name}", f"`{c.experiment}`{f', {c.change}' if c.change else ''}; seeds {c.first_seed} to {c.first_seed + c.seeds - 1}; {listed} of {len(arms)*c.seeds} runs done{steps}."]
    if not have: return parts
    if others: parts.append(f"Not in the list any more: {', '.join(others)}.")
    found = Counter((o['arm'], v) for o in have if (v := o.get('verdict') or o.get('trial'))) # `trial` in records of version 0.1
    if found: parts.append(f"Verdicts: {'; '.join(f'{v} in {n} runs of {a}' for (a,v),n in found.items())}.")
    draw_arms(have, out/f'{name}.svg', name)
    return parts + [markdown(arm_table(have)), f"![{name}]({name}.svg)"]

def _former(records):
    "A warning where records are of version 0.1"
    if not any(str((read_lines(f) or [{}])[0].get('version')).startswith('0.1.') for f in Path(records).glob('*.jsonl')): return []
    return ["**These records are version 0.1's.** Its recipe `recommended` was a short Stage 1 in place of a scout, a test of the holes, and a second start (`early_look` and `early_look_replace` the "
            "same without the test); its steps before the second start count among an arm's. What stands under the same names in `settings.ini` now sends scouts, and is not measured here."]

def study_report(
    records='results/study', # Folder of the records; the report goes there too: README.md and the drawings
    settings=None, # Settings file that lists the comparisons; None: the working directory's, else the package's
) -> Path: # README.md
    "Goals, tables and drawings of all comparisons, from their records"
    listed,results,out,file = comparisons(settings), read_study(records), Path(records), check_report(records)
    parts = ["# Results of the study", f"{report_sign}; don't edit. Test accuracy; differences in percentage points, paired by seed, with "
             "95% t intervals, not adjusted for the number of arms or goals. Time is against plain training's, of runs of one sitting; without such it is left empty. All arms of a comparison share split, initial weights by seed and number of optimizer steps.", *_former(records)]
    if any(n in results for n in ('fresh_95', 'digits_95', *clean_sets)): parts += ["## Goals", markdown(goals(listed, results), 3)]
    if len(rows := gap_table(listed, results)) > 1:
        draw_gaps(listed, results, out/'gaps.svg')
        parts += ["## The gap closed", "0% is plain training with the shortcut, 100% plain training on the same images where it tells nothing.", "![gaps](gaps.svg)", markdown(rows, 2)]
    for name,amounts in less_data.items():
        if any(results.get(n) for _,n in amounts[:-1]): draw_amounts(results, amounts, out/f'less_{name}.svg', ('erm', 'recommended', 'early_look_replace'))
    for name,c in listed.items(): parts += _section(name, c, results.get(name, []), out)
    write_atomic(file, '\n\n'.join(parts) + '\n')
    return file
