"""The study's commands: `python -m studies run` and `report`, from the top of the repository."""
import argparse
import sys
import warnings
from pathlib import Path

HERE = Path(__file__).parent


def arguments():
    p = argparse.ArgumentParser(prog='python -m studies', description=__doc__)
    commands = p.add_subparsers(dest='command', required=True)

    def command(name, text): return commands.add_parser(name, help=text, description=text)

    run = command('run', "Run the comparisons that the settings list, as far as the records don't hold their results, "
                  "and report all of them.")
    report = command('report', "Make the report from the records; nothing is trained.")
    for c in (run, report):
        c.add_argument('--settings', type=Path, default=HERE/'settings.ini',
                       help="settings file (default: the study's)")
        c.add_argument('--records', type=Path, default=HERE/'results'/'study',
                       help="where the records are, and the report")
    run.add_argument('names', nargs='*', help="names of [comparison:NAME] sections (default: all)")
    run.add_argument('--out', type=Path, default=Path('runs/study'), help="where the runs are")
    run.add_argument('--jobs', type=int, help="runs at the same time, one thread each (default: one a core)")
    run.add_argument('--data', type=Path, default=Path('data'), help="folder for data sets")
    return p.parse_args()


def report(args):
    from studies.report import study_report
    print('report', study_report(args.records, args.settings))


def run(args):
    from studies.study import run_study
    run_study(args.names, args.settings, args.records, args.out, args.data, args.jobs)
    report(args)


def main():
    args = arguments()
    warnings.filterwarnings('ignore', category=FutureWarning)
    try: dict(run=run, report=report)[args.command](args)
    except KeyboardInterrupt: sys.exit("stopped; the same command goes on from here")
    except (ValueError, OSError) as e: sys.exit(f'studies: {e}')


if __name__ == '__main__': main()
