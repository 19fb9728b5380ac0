"""Steps of the ResNet through static buffers: the bits of the plain loop, what is captured and when, what stays put."""

import pytest
import torch
from networks import CLASSES, PLAN, REPLAYED, chosen_step, network, tiny_images

from VarPro_resnet import replay
from VarPro_resnet.training import train

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(
    "arguments",
    [*([optimizer] for optimizer in REPLAYED), ["varprom", "--lambda", "1e-5"]],  # the last with a loss in float64
    ids=" ".join,
)
def test_a_replayed_run_is_the_plain_one_to_the_last_bit(arguments, monkeypatch):
    """With a smaller last mini-batch in every pass, which is not replayed, and a change of rate; captured once a rate,
    after a few steps: two parts where there is a solve between them."""
    captures = []
    monkeypatch.setattr(
        replay.capture, "captured", lambda device, *actions: captures.append(len(actions)) or list(actions)
    )
    ends = []
    for replayed in (False, True):
        of = network(dtype=torch.float32)
        take = chosen_step(of, *arguments)
        record = train(take, tiny_images(), PLAN, seed=1, replay=replayed)
        ends.append([record.loss, record.accuracy, *of.state_dict().values()])
        assert captures == [2 if take.solves else 1] * (2 if replayed else 0)
    assert all(map(torch.equal, *ends))
    assert ends[0][0].isfinite().all()


@pytest.mark.parametrize("optimizer", REPLAYED)
def test_the_captured_parts_leave_everything_where_it_is(optimizer):
    """A graph goes on reading and writing the memory that it was captured with."""
    of = network(dtype=torch.float32).train()
    take = chosen_step(of, optimizer)
    images, targets = torch.rand(8, 3, 16, 16), torch.eye(8, CLASSES)
    steps = replay.Replay(take, torch.zeros(9, dtype=torch.float64), 8)

    def places() -> list[int]:
        momenta = [buffer for kept in take.optimizer.state.values() for buffer in kept.values() if buffer is not None]
        return [tensor.data_ptr() for tensor in (*of.state_dict().values(), *momenta, steps.images, steps.losses)]

    seen = []
    for number in range(5):
        steps(number, images + number, targets)
        seen.append(places())
    assert seen == seen[:1] * 5
    assert (steps.outer is not None) == take.solves
    assert steps.losses[:5].unique().numel() == 5
    assert not steps.losses[5:].any()


def test_shampoo_is_not_replayed():
    assert not replay.replayable(chosen_step(network(), "shampoo"))
    assert all(replay.replayable(chosen_step(network(), optimizer)) for optimizer in REPLAYED)
