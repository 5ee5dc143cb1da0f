import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fornix.learner.losses import double_q_targets, quantile_huber_loss, take_action

SIZES = st.integers(1, 5)
RETURNS = st.floats(-50, 50, width=32)


def plain_quantile_huber(values, targets, taus, kappa):
    losses = np.zeros(len(values))
    for b in range(len(values)):
        for i, tau in enumerate(taus):
            for target in targets[b]:
                error = float(target) - float(values[b, i])
                size = abs(error)
                huber = size**2 / 2 if size <= kappa else kappa * (size - kappa / 2)
                losses[b] += abs(tau - (error < 0)) * huber / kappa / targets.shape[1]
    return losses


@given(data=st.data(), b=SIZES, n=SIZES, m=SIZES, kappa=st.floats(0.1, 10))
def test_quantile_huber_loss_equals_a_plain_double_loop(data, b, n, m, kappa):
    values = data.draw(hnp.arrays(np.float64, (b, n), elements=RETURNS))
    targets = data.draw(hnp.arrays(np.float64, (b, m), elements=RETURNS))
    taus = data.draw(hnp.arrays(np.float64, n, elements=st.floats(0, 1)))
    loss = quantile_huber_loss(*map(torch.from_numpy, (values, targets, taus)), kappa)
    np.testing.assert_allclose(
        loss.numpy(), plain_quantile_huber(values, targets, taus, kappa), rtol=1e-9, atol=1e-12
    )


def test_gradient_reaches_the_values_only():
    values = torch.zeros(2, 3, requires_grad=True)
    targets = torch.ones(2, 4, requires_grad=True)
    quantile_huber_loss(values, targets, torch.tensor([0.1, 0.5, 0.9])).sum().backward()
    # dL/dvalue = -τ·min(δ, κ) where the target is above.
    torch.testing.assert_close(values.grad, -torch.tensor([[0.1, 0.5, 0.9]] * 2))
    assert targets.grad is None


def test_minimum_of_the_loss_is_the_quantile():
    sample, taus = torch.arange(101.0).unsqueeze(0), torch.tensor([0.1, 0.5, 0.9])
    values = torch.full((1, 3), 30.0, requires_grad=True)
    optimizer = torch.optim.SGD([values], lr=5.0)
    for _ in range(2_000):
        optimizer.zero_grad()
        quantile_huber_loss(values, sample, taus).sum().backward()
        optimizer.step()
    torch.testing.assert_close(values.detach(), torch.tensor([[10.0, 50.0, 90.0]]), rtol=0, atol=1.0)


def test_online_network_chooses_and_target_network_values():
    reward, discount = torch.tensor([1.0, 2.0]), torch.tensor([0.5, 0.5])
    action_values = torch.tensor([[0.0, 9.0], [9.0, 0.0]])
    next_values = torch.tensor([[[10.0, 20.0], [30.0, 40.0]], [[50.0, 60.0], [70.0, 80.0]]])
    targets = double_q_targets(reward, discount, action_values, next_values)
    assert targets.tolist() == [[11.0, 21.0], [27.0, 37.0]]


def test_termination_ignores_what_comes_after():
    targets = double_q_targets(torch.tensor([3.0]), torch.zeros(1), torch.rand(1, 2), torch.rand(1, 4, 2))
    assert targets.tolist() == [[3.0] * 4]


def test_take_action():
    values = torch.arange(2 * 3 * 4).view(2, 3, 4)
    taken = take_action(values, torch.tensor([1, 3]))
    assert taken.tolist() == [[1, 5, 9], [15, 19, 23]]
