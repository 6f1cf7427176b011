"""`sample` draws from the softmax and from nothing else; generators and warpers do what they say."""

import pytest
import torch

from janus_hf.generation.sampling import check_codes, draw_uniforms, guide, make_warpers, sample


CPU = torch.device("cpu")


def test_guidance_arithmetic():
    conditional, unconditional = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 1.0]])
    assert guide(conditional, unconditional, 1.0).tolist() == conditional.tolist()
    assert guide(conditional, unconditional, 0.0).tolist() == unconditional.tolist()
    assert guide(conditional, unconditional, 5.0).tolist() == [[-7.0, 6.0]]


def test_samples_follow_the_softmax():
    torch.manual_seed(0)
    draws, codes = 20_000, 12
    scores = torch.randn(codes) * 1.5
    drawn = sample(scores.expand(draws, -1), draw_uniforms(draws, 1, torch.Generator().manual_seed(1), CPU)[:, 0])
    expected = scores.softmax(-1) * draws
    chi_square = ((drawn.bincount(minlength=codes) - expected) ** 2 / expected).sum()
    # Measured 4.7 at this seed with 11 degrees of freedom; 31.3 is exceeded by chance once in a thousand seeds.
    # Sampling at temperature 1.05 instead of 1 gives 60.
    assert chi_square < 31.3


def test_every_code_has_exactly_its_share_of_the_unit_interval():
    scores = torch.tensor([0.0, 1.0, float("-inf"), 2.0, -3.0])
    grid = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    share = sample(scores.expand(len(grid), -1), grid).bincount(minlength=5) / len(grid)
    # A grid of 1e5 points counts an interval to within two points.
    torch.testing.assert_close(share, scores.softmax(-1), atol=2e-5, rtol=0)


@pytest.mark.parametrize("uniform", [0.0, 1e-45, 2.0**-24, 0.5, 1 - 2.0**-24])
@pytest.mark.parametrize("possible", [[3], [0], [7], [2, 5], [1, 6]])
def test_impossible_codes_are_never_drawn(uniform, possible):
    scores = torch.full((1, 8), float("-inf"))
    scores[0, possible] = torch.linspace(-2, 3, len(possible))
    assert sample(scores, torch.tensor([uniform])).item() in possible


def test_the_last_possible_code_is_reached_despite_rounding():
    """16384 probabilities do not sum to one; the largest float32 below one must still land on a possible code."""
    torch.manual_seed(0)
    scores = torch.randn(64, 16384) * 4
    scores[:, -100:] = float("-inf")
    drawn = sample(scores, torch.full((64,), 1 - 2.0**-24))
    assert scores.gather(1, drawn[:, None]).isfinite().all()


def test_the_running_sum_is_precise_enough_for_16384_codes():
    """The middle of any code's interval draws that code, ones rarer than 1e-8 included; float32 sums miss those."""
    scores = torch.randn(1, 16384, generator=torch.Generator().manual_seed(0)) * 4
    probabilities = scores.double().softmax(-1)[0]
    middle = probabilities.cumsum(-1) - probabilities / 2
    codes = torch.arange(0, 16384, 64)
    assert probabilities[codes].min() < 1e-8
    assert torch.equal(sample(scores.expand(len(codes), -1), middle[codes]), codes)


def test_rows_are_independent():
    torch.manual_seed(0)
    scores, uniforms = torch.randn(5, 30), torch.rand(5)
    alone = torch.cat([sample(scores[i : i + 1], uniforms[i : i + 1]) for i in range(5)])
    assert torch.equal(sample(scores, uniforms), alone)


# --- generators


def test_a_list_gives_every_picture_its_own_stream():
    def seeds(*values):
        return [torch.Generator().manual_seed(value) for value in values]

    both = draw_uniforms(2, 9, seeds(3, 4), CPU)
    assert torch.equal(both[1], draw_uniforms(1, 9, seeds(4), CPU)[0])
    assert torch.equal(both.flip(0), draw_uniforms(2, 9, seeds(4, 3), CPU))
    assert (both >= 0).all()
    assert (both < 1).all()


def test_a_single_generator_serves_the_pictures_in_turn():
    both = draw_uniforms(2, 9, torch.Generator().manual_seed(3), CPU)
    generator = torch.Generator().manual_seed(3)
    assert torch.equal(both, torch.stack([torch.rand(9, generator=generator) for _ in range(2)]))


def test_without_a_generator_the_global_stream_is_used():
    torch.manual_seed(11)
    drawn = draw_uniforms(2, 9, None, CPU)
    torch.manual_seed(11)
    assert torch.equal(drawn, torch.rand(2, 9))


@pytest.mark.parametrize("count", [0, 1, 3])
def test_a_list_of_the_wrong_length_is_refused(count):
    with pytest.raises(ValueError, match=f"one generator per picture, 2 in all, got a list of {count}"):
        draw_uniforms(2, 9, [torch.Generator() for _ in range(count)], CPU)


# --- warpers


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"temperature": 0.0}, "temperature must be positive, got 0.0.*do_sample=False"),
        ({"temperature": -1.0}, "temperature must be positive"),
        ({"temperature": float("nan")}, "temperature must be positive"),
        ({"top_k": 0}, "top_k must be at least 1, got 0"),
        ({"top_p": 0.0}, "top_p must lie in"),
        ({"top_p": 1.5}, "top_p must lie in"),
    ],
)
def test_settings_out_of_range_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_warpers(**{"temperature": 1.0, "top_k": None, "top_p": None} | arguments)


def test_warpers_change_nothing_by_default():
    assert len(make_warpers(1.0, None, None)) == 0
    assert len(make_warpers(1.0, None, 1.0)) == 0


def test_temperature_top_k_and_top_p():
    scores = torch.tensor([[4.0, 3.0, 2.0, 1.0, 0.0]])
    codes = torch.zeros(1, 1, dtype=torch.long)
    assert make_warpers(2.0, None, None)(codes, scores.clone()).tolist() == (scores / 2).tolist()
    assert make_warpers(1.0, 2, None)(codes, scores.clone()).isfinite().tolist() == [[True] * 2 + [False] * 3]
    # Probabilities .636, .234, .086, ...: two codes hold the first 0.7.
    assert make_warpers(1.0, None, 0.7)(codes, scores.clone()).isfinite().tolist() == [[True] * 2 + [False] * 3]
    # At temperature 4 the same mass needs three (.347, .270, .211): temperature comes first.
    assert make_warpers(4.0, None, 0.7)(codes, scores.clone()).isfinite().tolist() == [[True] * 3 + [False] * 2]


@pytest.mark.parametrize("codes", [[[-1, 0]], [[0, 40]], [[100, 3]]])
def test_codes_outside_the_codebook_are_refused(codes):
    with pytest.raises(ValueError, match=r"must lie in \[0, 40\), got values from"):
        check_codes(torch.tensor(codes), 40)


def test_codes_of_the_codebook_pass():
    check_codes(torch.tensor([[0, 39]]), 40)
    check_codes(torch.empty(1, 0, dtype=torch.long), 40)
