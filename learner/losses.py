"""The quantile Huber loss and the targets that it pulls towards (Dabney et al. 2018)."""

import torch
from torch import Tensor
from torch.nn import functional


def quantile_huber_loss(values: Tensor, targets: Tensor, taus: Tensor, kappa: float = 1.0) -> Tensor:
    """Return Σ_i E_j[ |τ_i - 1{δ_ij < 0}| · L_κ(δ_ij)/κ ] with δ_ij = target_j - value_i.

    L_κ is Huber's loss: δ²/2 up to κ, κ(|δ| - κ/2) beyond (Dabney et al. 2018, equation 3).

    Args:
        values: [B, N], the quantiles Z_τ(x, a) of the action taken; gradients flow here.
        targets: [B, M], samples of the return; no gradient flows here.
        taus: [N], the fractions that `values` stand for.
        kappa: Where the loss turns from quadratic to linear, above 0, in units of return.

    Returns:
        [B]: one loss for each transition.
    """
    shape = (*values.shape, targets.shape[1])
    i, j = values.unsqueeze(2).expand(shape), targets.detach().unsqueeze(1).expand(shape)
    weight = (taus.view(-1, 1) - (j < i.detach()).to(values.dtype)).abs()
    huber = functional.huber_loss(i, j, reduction="none", delta=kappa)
    return (weight * huber).sum((1, 2)) / (kappa * targets.shape[1])


def double_q_targets(
    reward: Tensor, discount: Tensor, action_values: Tensor, next_values: Tensor
) -> Tensor:
    """Return samples of the n-step return: R + γ^m · Z_τ(x', argmax_a Q(x', a)).

    One network chooses the action and another values it (van Hasselt et al. 2016).

    Args:
        reward: [B], the n-step return R, already summed and discounted.
        discount: [B], γ^m after m steps, 0 where the episode terminated.
        action_values: [B, A], the online network's Q(x', ·), which chooses.
        next_values: [B, M, A], the target network's Z_τ(x', ·), which values the choice.

    Returns:
        [B, M]
    """
    best = action_values.argmax(1)
    chosen = take_action(next_values, best)
    return torch.addcmul(reward.unsqueeze(1), discount.unsqueeze(1), chosen)


def take_action(values: Tensor, action: Tensor) -> Tensor:
    """Return values[b, :, action[b]], [B, N], of values [B, N, A] and action [B] integers."""
    index = action.to(torch.int64).view(-1, 1, 1).expand(-1, values.shape[1], 1)
    return values.gather(2, index).squeeze(2)
