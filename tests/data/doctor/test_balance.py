"""A split in which no box counts, and why."""

import pytest

from data.doctor.balance import check_measurable
from data.formats.labels import LabelReport

NO_BOX = LabelReport(num_pictures=4, num_background=4, num_boxes=0)


@pytest.mark.parametrize(
    ("report", "reason"),
    [
        (NO_BOX, "the label files hold no box"),
        (NO_BOX._replace(num_boxes=3, num_ignored=3), "3 boxes are ignored (crowd or difficult)"),
        (NO_BOX._replace(num_unlisted=7), "7 boxes are of classes that `names` leaves out"),
        (NO_BOX._replace(num_skipped=2), "2 boxes are faulty and left out"),
        (NO_BOX._replace(num_empty=5), "5 boxes have no width or no height"),
        (NO_BOX._replace(num_missing=4), "4 of 4 pictures have no label file"),
        (NO_BOX._replace(num_skipped=2, num_empty=5), "left out; 5 boxes have"),
    ],
)
def test_nothing_to_measure(report, reason):
    (finding,) = check_measurable(report, "val")
    assert (finding.severity, finding.code) == ("warning", "nothing-to-measure") and reason in finding.text
    assert "last.pt is what counts" in finding.remedy
    assert check_measurable(report, "train") == check_measurable(report, "test") == []


def test_one_box_is_enough():
    assert check_measurable(NO_BOX._replace(num_boxes=4, num_ignored=3), "val") == []
