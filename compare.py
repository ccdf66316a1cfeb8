"""Which loss is better on these pictures? ``python compare.py configs/compare/bins.yaml --data data.yaml``

Several losses and seeds are trained, measured by their last averaged weights, and compared seed by seed. What
is finished is kept: the same command goes on where it was interrupted.
"""

from utils.command import begin_command

if __name__ == "__main__":
    begin_command()  # before the imports that take seconds

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from data.check import check_before_training
from data.doctor.inspect_pictures import load_sound_split
from data.formats.sources import format_classes
from data.images import decode_image
from data.index import Index, fingerprint, path_of
from data.pixels import Pixels, pixels_of
from data.prepare import prepare_data
from data.run_data import ground_truth_of
from data.spec import check_there, load_data_spec, remembered
from utils.comparison.arguments import compare_parser, parse_comparison
from utils.comparison.collect import check_data, collect, complete_seeds, missing_runs, read_runs
from utils.comparison.finished import plan_of_finished
from utils.comparison.pictures import draw_differences
from utils.comparison.plan import Plan, check_start, check_started, make_plan, parse_train_flags
from utils.comparison.report import write_report
from utils.comparison.runs import alone_in, make_slots, next_stage, run_all
from utils.comparison.tables import format_comparison, write_csv
from utils.errors import DATA, OK, USAGE, UserError, run_main
from utils.metrics.crowding import crowding_of, describe_crowding
from val import write_json


class Pictures(NamedTuple):
    """The validation pictures."""

    index: Index
    truth: dict  # COCO ground truth
    fingerprint: str
    pixels: Pixels  # how values become 0..255
    training: str  # fingerprint of the training pictures, '' where nothing is trained


def main() -> int:
    """Command line."""
    if len(sys.argv) == 1:
        print(compare_parser().format_help())
        return USAGE
    args, flags = parse_comparison(sys.argv[1:])
    if args.finished:
        plan = read_finished(args, flags)
    else:
        plan = make_plan(args, flags)
        check_started(plan)
    slots = make_slots(plan.device, args.jobs)
    source = f"the runs of --from, as of {args.finished[0]}" if is_remembered(args, flags) else ""
    pictures = load_pictures(plan, train=not args.finished, source=source)
    check_data(plan, pictures.fingerprint)
    print(describe(plan, num_slots=len(slots)), flush=True)
    with alone_in(plan.folder):
        if not args.finished:
            check_start(plan, pictures.training)
        failed = run_all(plan, slots)
        if not args.finished:
            check_started(plan)  # a file may have been edited meanwhile
        if seeds := complete_seeds(plan):
            report(plan, seeds, pictures)
    say_what_is_next(plan, seeds, failed)
    return max(failed.values(), default=OK)


def read_finished(args, flags: list[str]) -> Plan:
    """The plan of ``--from``, which trains nothing and so takes no flags of a training."""
    asked, default = vars(parse_train_flags(flags)), vars(parse_train_flags([]))
    given = [f"--{name.replace('_', '-')}" for name in asked if asked[name] != default[name]]
    given += [f"--{name}" for name in ("losses", "seeds") if getattr(args, name)] + [args.yaml] * bool(
        args.yaml
    )
    if refused := [name for name in given if name not in ("--device", "--data", "--data-root")]:
        raise UserError(
            f"{', '.join(refused)}: --from reports on finished runs and trains nothing; losses, seeds and "
            "settings are the runs' own. It takes --baseline, --name, --project, --jobs, --device, --data "
            "and --data-root"
        )
    folder = Path(args.project) / (args.name or "exp")
    where = {key: asked[key] for key in ("device", "data", "data_root")}
    return plan_of_finished(args.finished, folder=folder, baseline=args.baseline, **where)


def is_remembered(args, flags: list[str]) -> bool:
    """Whether the path of the data is that of finished runs, and not one that was given."""
    return bool(args.finished) and not parse_train_flags(flags).data


def load_pictures(plan: Plan, *, train: bool, source: str = "") -> Pictures:
    """Read the validation pictures; with ``train`` let the doctor check what is trained on, too.

    ``source``: what remembers the data's path where it was not given now.
    """
    config = plan.groups[plan.baseline].config
    with remembered(source):
        prepare_data(config.data.path, root=config.data.root, download=plan.download)
        spec = load_data_spec(config.data.path, root=config.data.root, single_cls=config.data.single_cls)
        check_there(spec, ["val"] if source else ())
    if train:
        print(format_classes(spec))
        config = check_before_training(spec, config).config
    index, _ = load_sound_split(spec, "val", config.data)
    training = fingerprint(load_sound_split(spec, "train", config.data)[0], spec.names) if train else ""
    if index.ignore.all():
        raise UserError(
            f"{spec.yaml}: the validation pictures hold no box; there is nothing to compare", DATA
        )
    truth, pixels = ground_truth_of(index, spec), pixels_of(config.data)
    for line in describe_crowding(crowding_of(truth), config.val.max_det):
        print(f"note: {line}")
    return Pictures(index, truth, fingerprint(index, spec.names), pixels, training)


def describe(plan: Plan, *, num_slots: int) -> str:
    """The first screen: what will run, how much of it is done, where results go."""
    runs, config = plan.runs, plan.groups[plan.baseline].config
    seeds = sorted({run.seed for run in runs})
    left = sum(next_stage(run) is not None for run in runs)
    return "\n".join(
        (
            f"losses: {', '.join(plan.groups)}; baseline: {plan.baseline}",
            f"seeds: {', '.join(map(str, seeds))}; {config.train.epochs} epochs at {config.data.imgsz} px",
            f"runs: {len(runs)}, {len(runs) - left} of them done; {num_slots} at a time",
            f"results: {plan.folder}",
            *([] if find_spec("plotly") else ["no report.html without plotly: python -m pip install plotly"]),
        )
    )


def report(plan: Plan, seeds: list[int], pictures: Pictures) -> None:
    """Compare the complete seeds: comparison.json, comparison.csv, report.html and the last screen."""
    index, truth = pictures.index, pictures.truth
    check_data(plan, pictures.fingerprint)
    measured = read_runs(plan, seeds, truth)
    names = [path_of(index, i).name for i in range(len(index.paths))]
    content = collect(plan, measured, seeds, truth=truth, names=names)
    write_json(plan.folder / "comparison.json", content, indent=1)
    write_csv(content, plan.folder / "comparison.csv")
    places = {int(number): i for i, number in enumerate(index.picture_ids)}
    drawn = draw_differences(
        content,
        {name: measured[group.runs[seeds[0]].name].rows for name, group in plan.groups.items()},
        truth,
        conf=plan.groups[plan.baseline].config.val.detect_conf,
        open_picture=lambda number: decode_image(path_of(index, places[number]), pixels=pictures.pixels),
    )
    print(f"\n{format_comparison(content)}\n")
    try:
        print(f"report: {write_report(content, plan.folder, drawn)}; it opens in any browser, offline")
    except UserError as error:
        print(f"no report.html: {error}")
    print(f"all figures: {plan.folder / 'comparison.json'}; one row a run: {plan.folder / 'comparison.csv'}")


def say_what_is_next(plan: Plan, seeds: list[int], failed: dict[str, int]) -> None:
    """Which runs failed, and what to do next."""
    if not seeds:
        missing = ", ".join(missing_runs(plan))
        print(f"the comparison is not made: no seed has all of its runs; missing: {missing}")
    for name, code in failed.items():
        print(f"failed with code {code}: {name}; its log is in {plan.folder / 'runs'}")
    if failed:
        print("next: mend the cause, then give the same command again; what is finished is kept")
    elif plan.flags:
        print("next: more seeds narrow the intervals; the same command with more --seeds trains only those")


if __name__ == "__main__":
    run_main(main)
