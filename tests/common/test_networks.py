import pytest
import torch

from fornix.common.config import NetworkConfig
from fornix.common.layers import ImageStacks, NoisyLinear
from fornix.common.networks import ImplicitQuantileNetwork, midpoints, stratified

SMALL = NetworkConfig(width=16, layers=2, cosines=8)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def network(
    config: NetworkConfig = SMALL, frame_shape: tuple[int, ...] = (6,), seed: int = 0
) -> ImplicitQuantileNetwork:
    return ImplicitQuantileNetwork(frame_shape, 3, 4, config, generator(seed))


def stacks(*shape: int) -> torch.Tensor:
    return torch.randint(0, 2, (7, 3, *shape), dtype=torch.uint8, generator=generator(9))


@pytest.mark.parametrize("frame_shape", [(), (6,), (2, 3, 2, 2), (9, 12), (9, 12, 3)])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.float32, torch.float64])
@pytest.mark.parametrize("dueling", [True, False])
def test_quantile_values_for_stacks_of_any_shape_and_dtype(frame_shape, dtype, dueling):
    net = network(SMALL.model_copy(update={"dueling": dueling}), frame_shape)
    values = net(stacks(*frame_shape).to(dtype), midpoints(5))
    assert values.shape == (7, 5, 4)
    assert values.dtype == torch.float32
    assert values.isfinite().all()


def test_action_values_are_the_mean_of_the_quantile_values():
    net, taus = network(), midpoints(5)
    net.resample_noise(generator())
    torch.testing.assert_close(
        net.action_values(stacks(6), taus), net(stacks(6), taus).mean(1), rtol=1e-4, atol=1e-6
    )


def test_folded_head_equals_the_paper_written_out():
    """Z = V + A - mean(A), each stream f(ψ ⊙ φ), where the network uses one folded matrix."""
    net, taus = network(), midpoints(5)
    net.resample_noise(generator())
    features = net.trunk(stacks(6)).unsqueeze(1) * net._embed(taus)
    value_features, advantage_features = features.split(SMALL.width, dim=2)
    value, advantage = net.value(value_features), net.advantage(advantage_features)
    expected = value + advantage - advantage.mean(2, keepdim=True)
    torch.testing.assert_close(net(stacks(6), taus), expected, rtol=1e-4, atol=1e-6)


def test_dueling_identity_the_mean_over_actions_is_the_value():
    net, taus = network(), midpoints(5)
    features = (net.trunk(stacks(6)).unsqueeze(1) * net._embed(taus))[..., : SMALL.width]
    values = net(stacks(6), taus)
    torch.testing.assert_close(values.mean(2, keepdim=True), net.value(features))


def test_noise_off_is_deterministic_and_on_is_not():
    net, taus = network(), midpoints(5)

    def values(seed: int) -> torch.Tensor:
        net.resample_noise(generator(seed))
        return net(stacks(6), taus)

    assert not torch.equal(values(1), values(2))
    assert torch.equal(values(1), values(1))
    net.eval()
    assert torch.equal(values(1), values(2))


def test_network_without_noisy_layers_draws_no_noise():
    net = network(SMALL.model_copy(update={"noisy": False}))
    before = net(stacks(6), midpoints(5))
    net.resample_noise(generator(1))
    assert torch.equal(before, net(stacks(6), midpoints(5)))
    assert not any("sigma" in name for name in net.state_dict())


def test_noise_has_the_spread_that_its_scale_says():
    layer = NoisyLinear(4, 3, sigma=0.5, generator=generator())
    draws, source = [], generator(1)
    for _ in range(4_000):
        layer.resample(source)
        draws.append((layer.effective()[0] - layer.weight).detach())
    spread = torch.stack(draws).square().mean(0).sqrt()
    # Var f(ε)f(ε') with f(x) = sign(x)√|x| is (E|ε|)² = 2/π, times σ = 0.5/√4.
    expected = torch.full((3, 4), 0.25 * (2 / torch.pi) ** 0.5)
    torch.testing.assert_close(spread, expected, rtol=0.06, atol=0)


def test_same_seed_same_weights_and_the_global_generator_is_left_alone():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, second, other = (network(frame_shape=(9, 12), seed=s) for s in (0, 0, 1))
    assert torch.equal(before, torch.get_rng_state())
    for name, weight in first.state_dict().items():
        assert torch.equal(weight, second.state_dict()[name])
    assert not torch.equal(first.state_dict()["embedding.weight"], other.state_dict()["embedding.weight"])


def test_weights_hold_no_noise():
    net = network()
    before = {name: weight.clone() for name, weight in net.state_dict().items()}
    net.resample_noise(generator(1))
    after = net.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_vectors_are_not_scaled_but_byte_images_are():
    net, taus = network(), midpoints(3)
    assert torch.equal(net(stacks(6), taus), net(stacks(6).double(), taus))
    images = network(frame_shape=(9, 12, 3))
    pixels = stacks(9, 12, 3) * 255
    torch.testing.assert_close(images(pixels, taus), images(pixels / 255, taus))


def test_colours_and_frames_become_channels_in_order():
    entrance = ImageStacks((8, 8, 3), 2, generator())
    first = entrance.convolutions[0]
    entrance.convolutions = torch.nn.Identity()
    stack = torch.rand(5, 2, 8, 8, 3)
    channels = entrance(stack).view(5, 6, 8, 8)
    assert first.in_channels == 6
    assert torch.equal(channels[:, 4], stack[:, 1, :, :, 1])


def test_fractions():
    torch.testing.assert_close(midpoints(4), torch.tensor([0.125, 0.375, 0.625, 0.875]))
    source = generator()
    draws = torch.stack([stratified(4, source) for _ in range(4_000)])
    assert torch.equal((draws * 4).floor(), torch.arange(4.0).expand(4_000, 4))
    torch.testing.assert_close(draws.mean(0), midpoints(4), rtol=0, atol=0.01)
