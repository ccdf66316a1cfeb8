"""Parameters and operations of the shipped models: ``python -m scripts.model_sizes``, a Markdown table."""

from models.detector import build_detector, count_flops, count_parameters
from utils.config_files import ROOT, load_config

NUM_CLASSES, SIZE = 80, (640, 640)


def main() -> None:
    """Command line."""
    print(f"| model | parameters | GFLOPs at {SIZE[0]} px |\n|---|---|---|")
    rows = []
    for path in (ROOT / "configs" / "models").glob("*.yaml"):
        model = build_detector(load_config(cfg=path).config.model, NUM_CLASSES)
        rows.append((count_parameters(model), count_flops(model, SIZE), path.stem))
    for parameters, flops, name in sorted(rows):
        print(f"| {name} | {parameters / 1e6:.2f} M | {flops / 1e9:.1f} |")


if __name__ == "__main__":
    main()
