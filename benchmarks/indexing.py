"""How long does a data set take before the first batch?  ``python -m benchmarks.indexing``

Generates 100,000 tiny pictures with label files and 1,000 JPEGs of 640x480, and times the reading of all
labels and headers, and the doctor's check, both the first time and from the cache, on the cores this process
may use. The files were just written, so the disk plays no part. Writes benchmarks/out/indexing.json.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from benchmarks.loader import SMALL, generate
from data.doctor.diagnosis import diagnose
from data.formats.sources import DataSpec
from data.index import load_split
from data.spec import load_data_spec
from utils.config_files import load_config
from utils.errors import OUR_FAULT

OUT = Path(__file__).parent / "out" / "indexing.json"
LIMITS = {"labels": (20.0, 0.5), "doctor": (5.0, 0.5)}  # seconds the first time, and cached
BOXES = 5


def write_labels(folder: Path, count: int) -> Path:
    """``count`` pictures of 64x48 px, all of the same bytes, with ``BOXES`` random boxes each; the YAML."""
    rng = np.random.default_rng(0)
    picture = cv2.imencode(".jpg", rng.integers(0, 256, (48, 64, 3), np.uint8))[1].tobytes()
    for part in ("images", "labels"):
        (folder / part).mkdir(parents=True)
    for number in range(count):
        (folder / "images" / f"{number:06}.jpg").write_bytes(picture)
        rows = rng.uniform(0.3, 0.5, (BOXES, 4)).round(6).tolist()
        text = "".join(f"{place % 3} {' '.join(map(str, row))}\n" for place, row in enumerate(rows))
        (folder / "labels" / f"{number:06}.txt").write_text(text, encoding="utf-8")
    (folder / "data.yaml").write_text("train: images\nnames: [a, b, c]\n", encoding="utf-8")
    return folder / "data.yaml"


def time_twice(action: Callable[[], object]) -> tuple[float, float]:
    """Seconds of the first call, and the least of three more."""
    seconds = []
    for _ in range(4):
        start = time.perf_counter()
        action()
        seconds.append(time.perf_counter() - start)
    return seconds[0], min(seconds[1:])


def check(spec: DataSpec) -> object:
    """The doctor's check of the training pictures at 640 px."""
    return diagnose(spec, load_config(sets=["data.imgsz=640"]).config, splits=["train"])


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--labels", type=int, default=100_000, help="default %(default)s")
    parser.add_argument("--pictures", type=int, default=1000, help="default %(default)s")
    args = parser.parse_args()
    result, met = {"num_labels": args.labels, "num_pictures": args.pictures}, True
    with tempfile.TemporaryDirectory() as folder:
        os.environ["LTRB_CACHE"] = str(Path(folder, "cache"))
        many = write_labels(Path(folder, "many"), args.labels)
        large = generate(Path(folder, "large"), SMALL, args.pictures)
        found = {
            "labels": time_twice(lambda: load_split(load_data_spec(many), "train")),
            "doctor": time_twice(lambda: check(load_data_spec(large))),
        }
    for name, seconds in found.items():
        fine = all(value <= limit for value, limit in zip(seconds, LIMITS[name], strict=True))
        result[name] = {"seconds": seconds, "limits": LIMITS[name], "met": fine}
        met = met and fine
        print(
            f"{name:>8}: first {seconds[0]:.2f} s, cached {seconds[1]:.2f} s, at most {LIMITS[name]}: {fine}"
        )
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(f"results: {OUT}")
    return 0 if met else OUR_FAULT


if __name__ == "__main__":
    raise SystemExit(main())
