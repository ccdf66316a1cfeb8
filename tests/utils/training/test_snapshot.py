"""Taking a step back: to the bit, whatever stands there now; and buffers in one tensor for each type."""

import copy

import pytest
import torch
from torch import nn

from utils.training.snapshot import Snapshot, join_buffers


def make_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1), nn.BatchNorm2d(2))


@pytest.mark.parametrize("spoilt", [torch.nan, torch.inf, 7.0])
def test_back_to_what_was_kept(spoilt):
    floats, counts = torch.tensor([1.5, -0.0, 1e-42]), torch.tensor([3, 2**40])
    before = floats.clone(), counts.clone()
    snapshot = Snapshot((floats, counts))
    snapshot.keep()
    floats.fill_(spoilt)
    counts += 1
    snapshot.take_back(unless=torch.tensor(False))
    assert torch.equal(floats.view(torch.int32), before[0].view(torch.int32))
    assert torch.equal(counts, before[1]) and counts.dtype == torch.int64


def test_a_step_that_counts_stays():
    values = torch.tensor([1.0, 2.0])
    snapshot = Snapshot([values])
    snapshot.keep()
    values.copy_(torch.tensor([torch.inf, 3.0]))
    snapshot.take_back(unless=torch.tensor(True))
    assert values.tolist() == [torch.inf, 3.0]


def test_what_was_kept_last_counts_and_can_be_taken_more_than_once():
    values = torch.zeros(2)
    snapshot = Snapshot([values])
    for number in (1.0, 2.0):
        values.fill_(number)
        snapshot.keep()
    for _ in range(2):
        values.fill_(torch.nan)
        snapshot.take_back(unless=torch.tensor(False))
        assert values.tolist() == [2.0, 2.0]


def test_joined_buffers_are_one_tensor_for_each_type():
    model = make_model()
    names, before = list(model.state_dict()), copy.deepcopy(model.state_dict())
    joined = join_buffers(model)
    assert {tensor.dtype: tensor.numel() for tensor in joined} == {torch.float32: 2 * 6, torch.int64: 2}
    assert list(model.state_dict()) == names
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_forward_pass_writes_into_the_joined_tensors():
    """So they can be taken back all at once; also after ``load_state_dict``."""
    model, other = make_model(), make_model()
    other[1].running_mean.fill_(5.0)
    joined = join_buffers(model)
    model.load_state_dict(other.state_dict())
    assert any((tensor == 5.0).any() for tensor in joined)
    snapshot = Snapshot(joined)
    snapshot.keep()
    before = copy.deepcopy(model.state_dict())
    model(torch.full((2, 3, 4, 4), torch.nan))
    assert model[1].running_mean.isnan().all() and model[3].num_batches_tracked == 1
    snapshot.take_back(unless=torch.tensor(False))
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_copies_of_the_model_have_buffers_of_their_own():
    model = make_model()
    joined = join_buffers(model)
    twin = copy.deepcopy(model)
    twin(torch.randn(2, 3, 4, 4))
    assert all(not tensor.any() or (tensor == 0).logical_or(tensor == 1).all() for tensor in joined)
    assert twin[3].num_batches_tracked == 1 and model[3].num_batches_tracked == 0


def test_a_model_without_buffers():
    joined = join_buffers(nn.Linear(2, 2))
    snapshot = Snapshot(joined)
    snapshot.keep()
    snapshot.take_back(unless=torch.tensor(False))
    assert joined == []
