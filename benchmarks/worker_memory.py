"""Does a loader process grow from epoch to epoch?  ``python -m benchmarks.worker_memory``

Generates 2,000 JPEGs of 640x480 px, loads three epochs at 640 px with two processes, and prints the memory of
each after every epoch, its share of shared pages included (Pss), against a growth of 5 %. Linux only.
"""

import argparse
import json
import tempfile
from pathlib import Path

import cv2
import numpy as np

from data.index import load_split
from data.loader import Loader, make_train_loader
from data.spec import load_data_spec
from utils.config_files import load_config
from utils.errors import OUR_FAULT

OUT = Path(__file__).parent / "out" / "worker_memory.json"
LIMIT, EPOCHS, WORKERS = 0.05, 3, 2


def memory_of(pid: int) -> int:
    """Bytes of a process's memory; a page that n processes share counts for 1 / n."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="utf-8").splitlines():
        if line.startswith("Pss:"):
            return 1024 * int(line.split()[1])
    raise ValueError(f"/proc/{pid}/smaps_rollup has no line Pss")


def measure_growth(loader: Loader, epochs: int = EPOCHS) -> list[list[int]]:
    """Bytes of each worker after each epoch, (epochs, workers); the loader must have workers that stay."""
    rows = []
    for epoch in range(epochs):
        loader.set_epoch(epoch, mosaic=True)
        for _ in loader:
            pass
        rows.append([memory_of(pid) for pid in loader.worker_pids()])
    return rows


def make_pictures(folder: Path, count: int) -> Path:
    """A data set of ``count`` pictures of blurred noise with three boxes each; its YAML."""
    rng, labels = np.random.default_rng(0), "".join(f"0 0.{n} 0.5 0.1 0.2\n" for n in (3, 5, 7))
    for part in ("images", "labels"):
        (folder / part).mkdir(parents=True)
    for number in range(count):
        small = rng.integers(0, 256, (60, 80, 3), np.uint8)
        picture = cv2.resize(small, (640, 480), interpolation=cv2.INTER_CUBIC)
        cv2.imwrite(str(folder / "images" / f"{number:06}.jpg"), picture)
        (folder / "labels" / f"{number:06}.txt").write_text(labels, encoding="utf-8")
    yaml = folder / "data.yaml"
    yaml.write_text("path: .\ntrain: images\nval: images\nnames: [thing]\n", encoding="utf-8")
    return yaml


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, default=2000, help="default %(default)s")
    parser.add_argument("--batch-size", type=int, default=16, help="default %(default)s")
    args = parser.parse_args()
    sets = (f"data.workers={WORKERS}", f"train.batch_size={args.batch_size}")
    with tempfile.TemporaryDirectory() as folder:
        spec = load_data_spec(make_pictures(Path(folder) / "set", args.pictures))
        loader = make_train_loader(load_split(spec, "train")[0], load_config(sets=sets).config, pin=False)
        rows = measure_growth(loader)
    growth = max(last / first for first, last in zip(rows[0], rows[-1], strict=True)) - 1
    for epoch, row in enumerate(rows, 1):
        print(f"epoch {epoch}: " + "  ".join(f"{size / 1e6:.1f} MB" for size in row))
    met = growth <= LIMIT
    print(f"growth over {EPOCHS} epochs {growth:.1%}, at most {LIMIT:.0%}{'' if met else '  missed'}")
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(
        json.dumps({"pss": rows, "growth": growth, "limit": LIMIT, "met": met}, indent=2) + "\n",
        encoding="utf-8",
    )
    return 0 if met else OUR_FAULT


if __name__ == "__main__":
    raise SystemExit(main())
