"""Tokens follow the softmax exactly; noise, generators and sampling settings work as documented."""

import pytest
import torch
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from janus_hf.generation import sampling
from janus_hf.generation.sampling import Draw, NoiseAhead, Sampling, check_codes, draw_keys, guide, gumbel_noise


CPU = torch.device("cpu")
PLAIN = Sampling.make(True, 1.0, None, None, CPU)


def keys(count, seed=0):
    """Return keys of `count` images, made by one generator."""
    return draw_keys(count, torch.Generator().manual_seed(seed), CPU)


def chi_square(generated, probabilities):
    """Return the chi-square statistic of how often each token was sampled, against its probability."""
    expected = probabilities * generated.numel()
    return ((generated.flatten().bincount(minlength=len(expected)) - expected) ** 2 / expected).sum().item()


def test_guidance_arithmetic():
    conditional, unconditional = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 1.0]])
    assert guide(conditional, unconditional, 1.0).tolist() == conditional.tolist()
    assert guide(conditional, unconditional, 0.0).tolist() == unconditional.tolist()
    assert guide(conditional, unconditional, 5.0).tolist() == [[-7.0, 6.0]]


# --- sampling


@pytest.mark.parametrize(("images", "positions"), [(20_000, 1), (1, 20_000), (200, 100)])
def test_samples_follow_the_softmax(images, positions):
    """The samples are those of one position in many images, many positions of one image, or both."""
    scores = torch.randn(12, generator=torch.Generator().manual_seed(0)) * 1.5
    generated = PLAIN.sample(scores.expand(images, positions, -1), keys(images), torch.arange(positions))
    # Measured 9.6, 8.1 and 9.8 with 11 degrees of freedom; 31.3 is exceeded by chance once in a thousand seeds.
    assert chi_square(generated, scores.softmax(-1)) < 31.3
    warm = (scores / 1.05).softmax(-1)
    assert chi_square(generated, warm) > 31.3  # a temperature of 1.05 would be detected


def test_rare_tokens_keep_their_probability():
    """Float32 noise still resolves probabilities of 6e-6: 16384 entries, one of them likely, the others rare."""
    scores = torch.zeros(16384)
    scores[0] = torch.log(torch.tensor(16383 * 9.0))  # 0.9, and 6.1e-6 for each of the others

    def sample(seed):
        # Noise of 20 positions at a time fits the cache of the processor; that of all 500 takes six times as long.
        return torch.cat(
            [PLAIN.sample(scores.expand(1, 20, -1), keys(1, seed), n) for n in torch.arange(500).split(20)], 1
        )

    rare = torch.cat([sample(seed) for seed in range(20)])
    share = (rare != 0).float().mean().item()
    assert abs(share - 0.1) < 4 * (0.1 * 0.9 / rare.numel()) ** 0.5
    assert rare[rare != 0].unique().numel() > 900  # of about 1000 samples: not always the same entries
    assert torch.equal(rare[:1], PLAIN.sample(scores.expand(1, 500, -1), keys(1), torch.arange(500)))


def test_neighbours_are_independent():
    """Pairs of samples at neighbouring positions, and at one position of neighbouring images, are independent."""
    scores = torch.tensor([0.0, 0.5, 1.0])
    one = scores.softmax(-1)
    pairs = torch.outer(one, one).flatten()
    generated = PLAIN.sample(scores.expand(200, 200, -1), keys(200), torch.arange(200))
    for first, second in ((generated[:, :-1], generated[:, 1:]), (generated[:-1], generated[1:])):
        # 8 degrees of freedom: exceeded once in a thousand. Every other pair, so that no two share a sample.
        assert chi_square((first * 3 + second)[::2, ::2], pairs) < 26.1


@pytest.mark.parametrize("codebook_size", [30, 256, 16384])
@pytest.mark.parametrize("images", [1, 3])
@pytest.mark.parametrize(
    "asked", [[(p, 1) for p in range(20)], [(0, 1), (1, 4), (4, 4), (5, 4), (9, 4)], [(7, 2), (3, 2)]]
)
def test_noise_ahead_is_the_noise(codebook_size, images, asked, monkeypatch):
    """Bit for bit, at every position, however many positions are computed at once."""
    for values in (1, 5 * images * codebook_size, 2**22):
        monkeypatch.setattr(sampling, "_VALUES_AHEAD", values)
        ahead = NoiseAhead(keys(images), codebook_size)
        for first, count in asked:
            expected = gumbel_noise(keys(images), torch.arange(first, first + count), codebook_size)
            assert torch.equal(ahead.at(first, count), expected)


def test_tokens_are_the_same_with_noise_ahead():
    scores = torch.randn(3, 5, 40, generator=torch.Generator().manual_seed(0))
    positions = torch.arange(2, 7)
    for settings in (PLAIN, Sampling.make(False, 1.0, None, None, CPU)):
        draw = Draw(keys(3), None, settings)
        with_noise = Draw(keys(3), None, settings, NoiseAhead(keys(3), 40).at(2, 5))
        assert torch.equal(with_noise.sample(scores, positions), draw.sample(scores, positions))


def test_gumbel_noise_is_gumbel():
    noise = gumbel_noise(keys(4), torch.arange(50), 1000).flatten().sort().values
    expected = torch.exp(-torch.exp(-noise))  # the Gumbel distribution function
    distance = (expected - (torch.arange(len(noise)) + 0.5) / len(noise)).abs().max().item()
    assert distance < 1.95 / len(noise) ** 0.5  # Kolmogorov-Smirnov, exceeded once in a thousand
    assert noise.isfinite().all()


def test_noise_depends_on_key_position_and_entry_only():
    both = gumbel_noise(keys(2), torch.arange(6), 30)
    assert torch.equal(both[1:, 2:4], gumbel_noise(keys(2)[1:], torch.tensor([2, 3]), 30))
    assert both.unique().numel() == both.numel()


@pytest.mark.parametrize("possible", [[3], [0], [7], [2, 5], [1, 6]])
def test_excluded_tokens_are_never_sampled(possible):
    scores = torch.full((50, 20, 8), float("-inf"))
    scores[..., possible] = torch.linspace(-2, 3, len(possible))
    assert set(PLAIN.sample(scores, keys(50), torch.arange(20)).unique().tolist()) == set(possible)


def test_greedy_takes_the_most_likely_token():
    scores = torch.randn(3, 4, 9, generator=torch.Generator().manual_seed(0))
    greedy = Sampling.make(False, 2.0, None, None, CPU)
    assert torch.equal(greedy.sample(scores, keys(3), torch.arange(4)), scores.argmax(-1))
    assert torch.equal(greedy.scores(scores), scores / 2)


# --- generators


def test_a_list_gives_every_image_its_own_stream():
    def seeds(*values):
        return [torch.Generator().manual_seed(value) for value in values]

    both = draw_keys(2, seeds(3, 4), CPU)
    assert torch.equal(both[1], draw_keys(1, seeds(4), CPU)[0])
    assert torch.equal(both.flip(0), draw_keys(2, seeds(4, 3), CPU))
    assert both.min() >= 0
    assert both.max() < 2**32


def test_a_single_generator_serves_the_images_in_turn():
    generator = torch.Generator().manual_seed(3)
    both = draw_keys(2, generator, CPU)
    generator.manual_seed(3)
    assert torch.equal(both, torch.cat([draw_keys(1, generator, CPU) for _ in range(2)]))
    assert both.unique().numel() == 4


def test_without_a_generator_the_global_stream_is_used():
    torch.manual_seed(11)
    generated = draw_keys(2, None, CPU)
    assert not torch.equal(generated, draw_keys(2, None, CPU))
    torch.manual_seed(11)
    assert torch.equal(generated, draw_keys(2, None, CPU))


@pytest.mark.parametrize("count", [0, 1, 3])
def test_a_list_of_the_wrong_length_is_refused(count):
    with pytest.raises(ValueError, match=f"one generator per image, 2 in all, got a list of {count}"):
        draw_keys(2, [torch.Generator() for _ in range(count)], CPU)


# --- settings


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"temperature": 0.0}, "`temperature` must be positive, got 0.0: use do_sample=False"),
        ({"temperature": -1.0}, "`temperature` must be positive"),
        ({"temperature": float("nan")}, "`temperature` must be positive"),
        ({"top_k": 0}, "`top_k` must be at least 1, got 0"),
        ({"top_p": 0.0}, "`top_p` must lie in"),
        ({"top_p": 1.5}, "`top_p` must lie in"),
    ],
)
def test_settings_out_of_range_are_refused(arguments, message):
    settings = {"do_sample": True, "temperature": 1.0, "top_k": None, "top_p": None, "device": CPU} | arguments
    with pytest.raises(ValueError, match=message):
        Sampling.make(**settings)


@pytest.mark.parametrize("top_p", [None, 1.0])
def test_by_default_scores_are_the_logits(top_p):
    logits = torch.randn(2, 3, 50, generator=torch.Generator().manual_seed(0))
    assert torch.equal(Sampling.make(True, 1.0, None, top_p, CPU).scores(logits), logits)


@pytest.mark.parametrize("temperature", [1.0, 0.3, 4.0])
@pytest.mark.parametrize(
    ("top_k", "top_p"), [(None, None), (1, None), (7, None), (900, None), (None, 0.01), (None, 0.7), (20, 0.9)]
)
def test_scores_are_those_of_transformers_warpers(temperature, top_k, top_p):
    logits = torch.randn(6, 300, generator=torch.Generator().manual_seed(0)) * 3
    expected = TemperatureLogitsWarper(temperature)(None, logits)
    if top_k is not None:
        expected = TopKLogitsWarper(top_k)(None, expected)
    if top_p is not None:
        expected = TopPLogitsWarper(top_p)(None, expected)
    assert torch.equal(
        Sampling.make(True, temperature, top_k, top_p, CPU).scores(logits.view(2, 3, 300)).view(6, 300), expected
    )


@pytest.mark.parametrize("codes", [[[-1, 0]], [[0, 40]], [[100, 3]]])
def test_codes_outside_the_codebook_are_refused(codes):
    with pytest.raises(ValueError, match=r"must lie in \[0, 40\), got values from"):
        check_codes(torch.tensor(codes), 40)


def test_codes_of_the_codebook_pass():
    check_codes(torch.tensor([[0, 39]]), 40)
    check_codes(torch.empty(1, 0, dtype=torch.long), 40)
