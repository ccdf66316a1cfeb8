"""What does a training picture cost beside its decoding?  ``python -m benchmarks.loader``

On one core, at 640 px with the default augmentation: a training sample (read, decode, mosaic, boxes, batch)
against ``cv2.imdecode`` of one picture, and the same for pictures of 12 megapixels. Without ``--data``,
pictures are generated: 640x480, 4.6 bits a pixel as COCO's photographs have. The large ones have 2, as a
telephone's 3 MB. Processor time; rounds of both take turns; medians. Writes benchmarks/out/loader.json.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from data.index import Index, load_split, path_of
from data.loader import make_train_loader
from data.spec import load_data_spec
from utils.config_files import load_config
from utils.errors import OUR_FAULT

OUT = Path(__file__).parent / "out" / "loader.json"
SMALL, BIG = (480, 640), (3000, 4000)  # height, width
LIMITS = {"sample_over_decode": 2.2, "big_over_full_decode": 0.6}
GROUP = 32


class Timing(NamedTuple):
    """Medians over the rounds; milliseconds a picture."""

    bits: float  # of the files, a pixel
    decode: float
    sample: float
    ratio: float  # the median of the rounds' own ratios


def enlarged(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """A photograph through a lens that resolves less than the pixels do, as a telephone's."""
    small = photograph(rng, (size[0] // 4, size[1] // 4))
    return cv2.resize(small, size[::-1], interpolation=cv2.INTER_CUBIC)


def photograph(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """(H, W, 3) uint8 with a spectrum that falls as a photograph's does: noise of many scales."""
    height, width = size
    picture = np.zeros((height, width, 3), np.float32)
    for octave in range(9):
        side = 2**octave
        small = rng.normal(0, 1, (max(2, height // side), max(2, width // side), 3)).astype(np.float32)
        weight = 16 * 1.12**octave
        picture += weight * cv2.resize(small - small.mean(), (width, height))
    return np.clip(128 + picture, 0, 255).astype(np.uint8)


def generate(folder: Path, size: tuple[int, int], count: int, draw=photograph, quality: int = 90) -> Path:
    """A YOLO data set of ``count`` JPEG pictures with 7 boxes each; returns its YAML."""
    rng = np.random.default_rng(0)
    (folder / "images").mkdir(parents=True)
    (folder / "labels").mkdir()
    for number in range(count):
        data = cv2.imencode(".jpg", draw(rng, size), [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
        (folder / "images" / f"{number}.jpg").write_bytes(data.tobytes())
        rows = np.column_stack((rng.uniform(0.3, 0.7, (7, 2)), rng.uniform(0.05, 0.5, (7, 2))))
        text = "".join(f"0 {' '.join(f'{value:.6f}' for value in row)}\n" for row in rows)
        (folder / "labels" / f"{number}.txt").write_text(text, encoding="utf-8")
    (folder / "data.yaml").write_text("train: images\nnames: [thing]\n", encoding="utf-8")
    return folder / "data.yaml"


def time_decoding(data: list[np.ndarray]) -> float:
    """Milliseconds a picture of the plain ``cv2.imdecode``."""
    start = time.process_time()
    for encoded in data:
        cv2.imdecode(encoded, cv2.IMREAD_COLOR)
    return 1000 * (time.process_time() - start) / len(data)


def time_samples(index: Index, epoch: int) -> float:
    """Milliseconds a picture of whole batches, from a loader in this process that knows no picture yet."""
    cfg = load_config(
        sets=["data.workers=0", "data.imgsz=640", f"data.group={GROUP}", "train.batch_size=16"]
    ).config
    loader = make_train_loader(index, cfg, pin=False)
    loader.set_epoch(epoch, mosaic=True)
    start = time.process_time()
    pictures = sum(len(batch.pictures) for batch in loader)
    return 1000 * (time.process_time() - start) / pictures


def measure(index: Index, rounds: int) -> Timing:
    """Rounds of decoding and of sampling in turn; the first, which fills caches, is left out."""
    data = [np.frombuffer(path_of(index, i).read_bytes(), np.uint8) for i in range(len(index.sizes))]
    pairs = [(time_decoding(data), time_samples(index, epoch)) for epoch in range(rounds + 1)][1:]
    decode, sample = (statistics.median(column) for column in zip(*pairs, strict=True))
    bits = 8 * sum(map(len, data)) / index.sizes.prod(1).sum()
    return Timing(bits, decode, sample, statistics.median(sample / decode for decode, sample in pairs))


def load(yaml: Path) -> Index:
    """The training pictures, whole groups of them: a last group of few would need fewer decodings."""
    index, _ = load_split(load_data_spec(yaml), "train")
    return index


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", help="data.yaml of real pictures instead of the generated 640x480 ones")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quality", type=int, default=75, help="of the large JPEGs (default %(default)s)")
    args = parser.parse_args()
    cv2.setNumThreads(0)
    with tempfile.TemporaryDirectory() as folder:
        small = load(Path(args.data or generate(Path(folder, "small"), SMALL, 4 * GROUP)))
        found = {"sample_over_decode": measure(small, args.rounds)}
        big = load(generate(Path(folder, "big"), BIG, GROUP, enlarged, args.quality))
        found["big_over_full_decode"] = measure(big, max(1, args.rounds // 2))
    result = {}
    for name, timing in found.items():
        met = timing.ratio <= LIMITS[name]
        result[name] = {**timing._asdict(), "limit": LIMITS[name], "met": met}
        times = (
            f"{timing.bits:.1f} bits a pixel, decode {timing.decode:6.2f} ms, sample {timing.sample:6.2f} ms"
        )
        print(f"{name:>22}: {times}, ratio {timing.ratio:.2f}, at most {LIMITS[name]}: {met}")
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(
        json.dumps({"data": args.data or "generated", "cv2": cv2.__version__, **result}, indent=2) + "\n",
        encoding="utf-8",
    )
    print(f"results: {OUT}")
    return 0 if all(item["met"] for item in result.values()) else OUR_FAULT


if __name__ == "__main__":
    raise SystemExit(main())
