"""Comparisons that belong together: the list, `comparisons.ini`, is fixed before anything runs, and reported whole."""

import configparser
import shutil
from pathlib import Path
from typing import Optional

from pydantic import Field, field_validator

from proxy_attention.core import check_choice, check_number
from proxy_attention.lab.compare.arm_settings import arm_settings
from proxy_attention.lab.compare.comparison import compare
from proxy_attention.lab.config.file import check_section, find_settings
from proxy_attention.lab.config.problems import Problem, SettingsError, nearest_hint
from proxy_attention.lab.config.sections import Section
from proxy_attention.lab.config.settings import load_experiment
from proxy_attention.lab.runs.folder import check_folder, check_free
from proxy_attention.lab.runs.state import is_run

class ComparisonConfig(Section):
    "A comparison of a study: which experiment, which arms, how many seeds"
    experiment: str # Name of an [experiment:...] section of the settings file
    arms: str # Names of arms or [proxy:...] sections, separated by commas; none is always among them
    seeds: int = Field(5, ge=2, le=1000) # How many
    first_seed: int = Field(0, ge=0, lt=2**32) # The first of them
    # Name of the comparison whose plain training, without the shortcut, is what can be reached; none: no gap to close
    reference: Optional[str] = None
    change: str = '' # What differs from the experiment's sections: key=value or kind.key=value, separated by commas

    @field_validator('change', mode='before')
    @classmethod
    def _none(cls, v): return v or ''

    @property
    def names(self) -> list: return [a.strip() for a in self.arms.split(',') if a.strip()]

    @property
    def overrides(self) -> list: return [c.strip() for c in self.change.split(',') if c.strip()]

    @property
    def seed_list(self) -> list: return list(range(self.first_seed, self.first_seed + self.seeds))

def comparisons(
    settings=None, # Settings file; None: the working directory's, else the package's
) -> dict: # Name → `ComparisonConfig`
    "What comparisons.ini beside a settings file lists, in its order, every value checked, those of experiments too"
    parser = configparser.ConfigParser(interpolation=None)
    file = find_settings(settings).with_name('comparisons.ini')
    parser.read_string(file.read_text(encoding='utf-8'), str(file))
    sections = {name: dict(parser[name]) for name in parser.sections()}
    problems = [Problem(message, str(file), None, name, key, value) for name,values in sections.items()
                for key,value,message in check_section(ComparisonConfig, values)[1]]
    if problems: raise SettingsError(problems)
    out = {name: ComparisonConfig(**values) for name,values in sections.items()}
    for c in out.values():
        if c.reference is not None and c.reference not in out:
            raise SettingsError(f"{file} reference={c.reference!r}: {nearest_hint(c.reference, out, 'Comparisons')}")
        conf = load_experiment(c.experiment, settings, c.overrides)
        for arm in c.names: arm_settings(conf, arm, c.first_seed) # An error if there is no such arm
    return out

report_sign = "Made from the records in this folder by `python -m studies report`" # Stands in every report of ours

def check_report(
    records, # Folder of the records
) -> Path: # Its README.md
    "An error if the report's place is taken by something else"
    file = Path(records)/'README.md'
    if file.exists() and report_sign not in file.read_text(encoding='utf-8', errors='replace'):
        raise ValueError(f"{str(file)!r} is there already and not a report of ours; it is left as it is. "
                         "Give another folder for the records.")
    return file

def run_study(
    names=None, # Names of comparisons; None: all
    settings=None, # Settings file; None: the working directory's, else the package's
    records='results/study', # Folder of the records
    out='runs/study', # Folder of the runs
    data='data', # Folder for data sets
    jobs:int|None=None, # Processes; None: one a core
    say=print, # What is said goes there
) -> list: # Files of the records
    "Run the listed comparisons one after the other, as far as their records don't hold the results yet"
    listed,made = comparisons(settings), []
    for name in names or (): check_choice('names', name, listed)
    if jobs is not None: check_number('jobs', jobs, 1, whole=True)
    check_report(records)
    for name in names or listed: # Everything that is in the way is said before anything runs
        check_folder(Path(out)/name, 'compare')
        check_free(Path(records)/f'{name}.jsonl', 'compare')
    for name in names or listed:
        c,record = listed[name], Path(records)/f'{name}.jsonl'
        say(f"{name}: {c.experiment}{f', {c.change}' if c.change else ''}")
        compare(c.experiment, c.names, c.seed_list, settings, Path(out)/name, c.overrides, data, jobs, record=record,
                reuse=[f for f in Path(records).glob('*.jsonl') if f != record],
                command=f'python -m studies run {name}', say=say)
        for run in Path(out, name).glob('arms/*/*'):
            # The audit has seen the copies: thousands of small files a comparison
            if is_run(run): shutil.rmtree(run/'proxies', ignore_errors=True)
        made.append(record)
    return made
