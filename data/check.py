"""The data set doctor: ``python -m data.check --data data.yaml``, and its short form before every training.

It reads, and never changes, the files of the data set. Exit code 0: ready to train; 4: there are errors.
"""

from utils.command import begin_command, lost_output

if __name__ == "__main__":
    begin_command()  # before the imports that take seconds

import argparse
import json
import shlex
import sys
from contextlib import redirect_stdout

from data.doctor.bins import format_audit
from data.doctor.diagnosis import NEEDED, Diagnosis, diagnose, missing_splits
from data.doctor.findings import Finding, show_finding, sort_findings
from data.doctor.report import format_diagnosis, to_plain, verdict
from data.formats.labels import format_report
from data.formats.sources import SPLITS, DataSpec
from data.prepare import prepare_data
from data.spec import load_data_spec
from utils.arguments import add_data_flags, add_imgsz, add_set
from utils.config import Config
from utils.config_files import load_config
from utils.errors import DATA, OK, USAGE, UserError, run_main
from utils.files import write_to
from utils.settings import given_settings
from utils.wording import printable

SETTINGS = {
    "data": "data.path",
    "data_root": "data.root",
    "imgsz": "data.imgsz",
    "label_errors": "data.label_errors",
    "single_cls": "data.single_cls",
}


def check_parser() -> argparse.ArgumentParser:
    """Flags of the doctor."""
    parser = argparse.ArgumentParser(
        prog="python -m data.check", description="Check a data set: pictures, labels, classes, sizes, copies."
    )
    add = parser.add_argument
    add("--data", required=True, metavar="YAML", help="data set: a YAML file, or a folder")
    add_imgsz(parser)
    add_data_flags(parser)
    add("--cfg", default="n", metavar="YAML", help="model, for its levels and reg_max (default %(default)s)")
    add("--splits", nargs="+", choices=SPLITS, metavar="SPLIT", help="default: all that the data set has")
    add("--full", action="store_true", help="decode all pictures, also if there are more than 10,000")
    add("--single-cls", action="store_true", default=None, help="treat all classes as one")
    add("--json", metavar="FILE", help="write all facts as JSON; - prints them in place of the table")
    add_set(parser)
    return parser


def main() -> int:
    """Command line."""
    args = check_parser().parse_args()
    config = load_config(cfg=args.cfg, flags=given_settings(args, SETTINGS), sets=args.sets).config
    with redirect_stdout(sys.stderr):  # what is said on the way does not belong in the report
        prepare_data(config.data.path, root=config.data.root, download=args.download)
        spec = load_data_spec(config.data.path, root=config.data.root, single_cls=config.data.single_cls)
        splits = args.splits or [split for split in SPLITS if split in spec.splits]
        # published test sets have no labels, and exports may name a split that they do not hold
        optional = () if args.splits else [split for split in SPLITS if split not in NEEDED]
        diagnosis = diagnose(spec, config, splits=splits, optional=optional, full=args.full)
    if not args.splits:
        diagnosis = _with_missing(diagnosis)
    if args.json != "-":
        print(format_diagnosis(diagnosis))
    if args.json:
        _write_json(to_plain(diagnosis), args.json)
    return OK if diagnosis.trainable else DATA


def check_before_training(spec: DataSpec, config: Config) -> Diagnosis:
    """Read and check train and val; print what there is to say about them.

    The configuration of what is returned has the range of the pixels in place of ``auto``.

    An error of the doctor's is a ``UserError``: training would stop later, or learn nonsense.
    """
    diagnosis = diagnose(spec, config, splits=NEEDED)
    for split, report in diagnosis.reports.items():
        print(f"{split}: {format_report(report)}")
    print(diagnosis.pixels)
    if diagnosis.bins:
        print(format_audit(diagnosis.bins))
    errors = [finding for finding in diagnosis.findings if finding.severity == "error"]
    more = f"python -m data.check --data {printable(shlex.quote(str(spec.yaml)))} shows all"
    if errors:
        shown = "\n".join(map(show_finding, errors))
        raise UserError(f"{printable(spec.yaml)}: not ready to train\n{shown}\n{more}", DATA)
    for finding in diagnosis.findings:
        if finding.severity == "warning":
            print(show_finding(finding))
    print(f"{verdict(diagnosis).splitlines()[0]}; {more}")
    return diagnosis


def _with_missing(diagnosis: Diagnosis) -> Diagnosis:
    """With an error for each split that training needs and the YAML does not name."""
    remedy = "name its folder, list file or JSON file in the YAML"
    missing = [
        Finding("error", "split", split, 0, f"the data set has no {split} split; training needs one", remedy)
        for split in missing_splits(diagnosis.spec)
    ]
    return diagnosis._replace(findings=sort_findings([*diagnosis.findings, *missing]))


def _write_json(content: dict, target: str) -> None:
    text = json.dumps(content, indent=1)
    if target == "-":
        sys.stdout.write(text + "\n")
        if reason := lost_output():
            raise UserError(f"--json -: standard output cannot be written: {reason}", USAGE)
        return
    try:
        write_to(target, text + "\n")
    except OSError as error:
        raise UserError(f"--json {target}: cannot be written: {error.strerror or error}", USAGE) from error


if __name__ == "__main__":
    run_main(main)
