"""YOLOv5's flags that have no counterpart: what to use instead, or why none is needed."""

REPLACED_IN_TRAIN = {
    "--label-smoothing": "the class target is the IoU of the box, which is soft already",
    "--image-weights": "every picture is seen once an epoch; the focal factor weighs the hard ones",
    "--evolve": "change settings with --set or a recipe file, and repeat runs over seeds to compare them",
    "--noautoanchor": "there are no anchor boxes to fit; the side distributions need none",
    "--quad": "use a larger --batch-size; nothing is gained by packing pictures in fours",
    "--bucket": "runs are written to --project; copy them with your own tools",
    "--entity": "--loggers wandb sends the figures; WANDB_ENTITY names the account",
    "--upload_dataset": "--loggers wandb sends the figures; pictures are never uploaded",
    "--bbox_interval": "--loggers wandb sends the figures; pictures with boxes stay in the run's folder",
    "--artifact_alias": "--loggers wandb sends the figures; weights are never uploaded",
    "--local_rank": "torchrun tells each process its rank by itself",
}
REPLACED_IN_VAL = {
    "--half": "validation and detection compute in float32",
    "--augment": "one pass over each picture; there is no test-time augmentation",
    "--verbose": "every class is always listed",
    "--dnn": "PyTorch computes the network",
    "--save-hybrid": "--save-json writes the predictions, apart from the labels",
    "--save-txt": "--save-json writes all predictions; detect.py --save-txt writes label files",
    "--save-conf": "predictions.json of --save-json holds the scores",
    "--single-cls": "weights trained with --single-cls are measured as one class",
}
REPLACED_IN_DETECT = {
    "--half": "validation and detection compute in float32",
    "--augment": "one pass over each picture; there is no test-time augmentation",
    "--view-img": "open the pictures in the results folder",
    "--visualize": "feature maps are not drawn",
    "--update": "best.pt has no optimiser to strip; last.pt needs its own to resume",
    "--dnn": "PyTorch computes the network",
    "--vid-stride": "pictures only; extract the frames of a video first",
    "--save-csv": "--save-txt writes one label file per picture, with --save-conf the scores too",
    "--save-format": "--save-txt writes YOLO's form; val.py --save-json writes COCO's",
    "--data": "the weights hold the class names",
}
