"""The head: where its outputs go, what it says before training, and how large it is."""

import math

import pytest
import torch
from torch import nn

from models.head import LTRBHead
from utils.config import ModelConfig
from utils.geometry.anchor_points import make_anchor_points
from utils.geometry.ltrb import decode_sides

CHANNELS = [16, 24, 32]
SIZES = [(6, 10), (3, 5), (2, 3)]
STRIDES = [8, 16, 32]


def make_head(num_classes=3, *, reg_max=15, class_prior=0.01, quality_branch="none"):
    torch.manual_seed(0)
    cfg = ModelConfig(reg_max=reg_max, class_prior=class_prior, quality_branch=quality_branch)
    return LTRBHead(CHANNELS, num_classes, cfg).eval()


def make_features(batch=2):
    return [torch.randn(batch, c, *size) for c, size in zip(CHANNELS, SIZES, strict=True)]


class Mark(nn.Module):
    """Stands in for an output layer: 1 at one channel of one cell of the second picture, else 0."""

    def __init__(self, channels, channel=None, row=0, column=0):
        super().__init__()
        self.channels, self.place = channels, (1, channel, row, column)

    def forward(self, x):
        y = x.new_zeros(x.shape[0], self.channels, *x.shape[2:])
        if self.place[1] is not None:
            y[self.place] = 1
        return y


@pytest.mark.parametrize("num_classes", [1, 3, 80])
@pytest.mark.parametrize("reg_max", [0, 1, 15])
def test_shapes(num_classes, reg_max):
    cls, sides = make_head(num_classes, reg_max=reg_max)(make_features())
    assert cls.shape == (2, 60 + 15 + 6, num_classes)
    assert sides.shape == (2, 60 + 15 + 6, 4, reg_max + 1)


@pytest.mark.parametrize("level", [0, 1, 2])
@pytest.mark.parametrize("cell", [(0, 0), (0, 2), (1, 0), (1, 2)])
def test_the_output_of_a_cell_lands_at_its_point(level, cell):
    row, column = cell
    head = make_head()
    points, strides = make_anchor_points(SIZES, STRIDES)
    expected = torch.tensor([(column + 0.5) * STRIDES[level], (row + 0.5) * STRIDES[level]])
    for number in range(3):
        head.cls_outputs[number] = Mark(3)
        head.box_outputs[number] = Mark(4 * 16)
    # Class 2, and bin 5 of the right side: the sides are left, top, right, bottom, the bins lie within each.
    head.cls_outputs[level] = Mark(3, 2, row, column)
    head.box_outputs[level] = Mark(4 * 16, 2 * 16 + 5, row, column)
    cls, sides = head(make_features())
    for outputs, rest in ((cls, [2]), (sides, [2, 5])):
        assert outputs.sum() == 1
        picture, point, *place = outputs.nonzero()[0].tolist()
        assert picture == 1 and place == rest
        assert torch.equal(points[point], expected)
        assert strides[point].item() == STRIDES[level]


def test_a_changed_feature_changes_the_points_around_it():
    head, features = make_head(), make_features(1)
    points, strides = make_anchor_points(SIZES, STRIDES)
    before = head(features)
    features[1][0, :, 1, 3] += 5
    for old, new in zip(before, head(features), strict=True):
        moved = (new - old).flatten(2).abs().amax(-1)[0] > 1e-7
        # Two 3x3 convolutions reach two cells: columns 1..4 and all rows of the second level, no other level.
        assert torch.equal(moved, (strides[:, 0] == 16) & (points[:, 0] > 16))


@pytest.mark.parametrize("prior", [0.01, 0.2])
@pytest.mark.parametrize("num_classes", [1, 80])
def test_scores_start_at_the_prior(prior, num_classes):
    cls, _ = make_head(num_classes, class_prior=prior)(make_features())
    scores = cls.sigmoid()
    assert scores.mean().item() == pytest.approx(prior, rel=0.2)
    assert (scores - prior).abs().max() < 0.5 * prior


@pytest.mark.parametrize(("reg_max", "expected"), [(15, 2.725), (7, 2.068), (3, 1.135), (0, 2.7)])
def test_sides_start_at_2_7_strides(reg_max, expected):
    # The mean of exp(-0.3 i) over the bins 0..reg_max; without bins the value itself.
    _, sides = make_head(reg_max=reg_max)(make_features())
    distances = decode_sides(sides)
    assert distances.mean().item() == pytest.approx(expected, abs=0.05)
    assert (distances - expected).abs().max() < 0.5


def test_initial_weights_of_the_outputs_are_small_and_not_zero():
    head = make_head(80)
    for layer in (*head.cls_outputs, *head.box_outputs):
        assert layer.weight.std().item() == pytest.approx(0.01, rel=0.1)


def test_plain_sides_have_towers_as_wide_as_those_of_the_bins():
    plain, bins = make_head(reg_max=0), make_head(reg_max=15)
    for name, parameter in bins.named_parameters():
        if not name.startswith("box_outputs"):
            assert dict(plain.named_parameters())[name].shape == parameter.shape, name


def test_the_quality_branch_starts_as_if_it_were_not_there():
    features = make_features()
    plain, branch = make_head(), make_head(quality_branch="dgqp")
    branch.load_state_dict(plain.state_dict(), strict=False)
    for one, other in zip(plain(features), branch(features), strict=True):
        assert torch.equal(one, other)


def test_the_quality_branch_by_hand():
    """Two bins of .75 and .25 are the top four (.75, .25, 0, 0), mean .25; flat bins are 1/16 each."""
    branch = make_head(quality_branch="dgqp").quality_branch
    assert (branch.hidden.in_features, branch.hidden.out_features) == (4 * 5, 64)
    sharp = torch.full((16,), -100.0)
    sharp[7], sharp[3] = math.log(0.75), math.log(0.25)
    logits = torch.stack([torch.stack([sharp] * 4), torch.zeros(4, 16)]).unsqueeze(0)  # (1, 2, 4, 16)
    seen = []
    branch.hidden.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        branch.hidden.weight.fill_(1)
        branch.hidden.bias.zero_()
        branch.output.weight.fill_(1)
    sums = branch(logits)
    expected = torch.tensor([[0.75, 0.25, 0, 0, 0.25] * 4, [1 / 16] * 20]).unsqueeze(0)
    torch.testing.assert_close(seen[0], expected)
    torch.testing.assert_close(sums, 64 * expected.sum(-1, keepdim=True))


def test_the_quality_branch_adds_one_logit_to_all_classes_and_does_not_see_where_the_bins_are():
    head, features = make_head(quality_branch="dgqp"), make_features()
    plain, sides = head(features)
    nn.init.normal_(head.quality_branch.output.weight)
    added = head(features)[0] - plain
    torch.testing.assert_close(added, added[..., :1].expand_as(added))
    assert added.abs().min() > 1e-3
    torch.testing.assert_close(head.quality_branch(sides), head.quality_branch(sides.roll(3, -1)))
    # As in the paper the class loss trains the distributions, too.
    (slope,) = torch.autograd.grad(head.quality_branch(sides).sum(), sides)
    assert slope.abs().max() > 0


def test_levels_do_not_share_weights():
    head = make_head()
    names = {name.split(".")[1] for name, _ in head.named_parameters()}
    assert names == {"0", "1", "2"}
    assert len({id(parameter) for parameter in head.parameters()}) == len(list(head.parameters()))
