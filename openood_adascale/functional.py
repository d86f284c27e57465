"""The equations of AdaSCALE (arXiv 2503.08023) as pure functions of tensors.

Shapes: ``B`` images, ``D`` activations, ``C`` classes. Statistics are float64 wherever the device has it, whatever the
network ran in, so that thousands of terms add up exactly enough and ``exp(r)`` has room.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

PIXELS = ("trivial", "random", "salient", "all")
VARIANTS = ("A", "L")

# Above this magnitude a scaled logit becomes limit·(1 + ln(value / limit)): larger than every logit below it, in the
# right order, and finite for any r.
_LOG_LIMIT = math.log(1e300)


def statistics_dtype(device: torch.device) -> torch.dtype:
    """Return float64, or float32 on a device without it (``mps``).

    Args:
        device: Device of the statistics.
    """
    return torch.float32 if device.type == "mps" else torch.float64


def leading_count(percent: float, size: int) -> int:
    """Return the count of k1 or k2, ``int(size·percent/100)``, at least 1.

    Args:
        percent: k1 or k2, in (0, 100].
        size: Number D of activations.
    """
    return max(1, int(size * percent / 100))


def pixel_count(fraction: float, size: int) -> int:
    """Return the count of perturbed channel values, ``int(size·fraction)``, at least 1.

    Args:
        fraction: o, in (0, 1].
        size: Number of channel values of an image.
    """
    return max(1, int(size * fraction))


def kept_count(percentile: Tensor, size: int) -> Tensor:
    """Return k of the scaling factor, ``size − round(size·p/100)`` (half to even), at least 1.

    Args:
        percentile: Percentiles in percent, in (0, 100), of any shape; the int64 counts have the same.
        size: Number D of activations.
    """
    return (percentile * size).div_(100).round_().neg_().add_(size).clamp_(1, size).long()


def perturbation_direction(gradient: Tensor, fraction: float, pixels: str) -> Tensor:
    """Return ``sign(∇)·1_R`` of Algorithm 1: the gradient's sign on the chosen channel values, 0 elsewhere.

    Args:
        gradient: (B, ...) gradient of the predicted class's logit with respect to the image.
        fraction: Fraction o of an image's channel values in R, in (0, 1].
        pixels: ``trivial`` (smallest absolute gradient), ``salient`` (largest) or ``all`` (ignores ``fraction``).

    Returns:
        Tensor like ``gradient`` with values −1, 0, 1. Of equal gradients the first one in the image is chosen first.

    Raises:
        ValueError: Other ``pixels``.
    """
    if pixels not in ("trivial", "salient", "all"):
        raise ValueError(
            f"pixels: {pixels!r} has no gradient direction; allowed are 'trivial', 'salient', 'all'"
        )
    sign = gradient.sign()
    size = gradient[0].numel()
    count = pixel_count(fraction, size)
    if pixels == "all" or count >= size:
        return sign
    magnitude = gradient.flatten(1).abs()
    if pixels == "salient":
        magnitude = -magnitude
    threshold = magnitude.kthvalue(count, dim=1, keepdim=True).values
    chosen = magnitude <= threshold
    # A tie at the threshold chooses too many, which does not matter for a gradient of 0, as its sign is 0.
    tied = (chosen.sum(1, keepdim=True) > count) & (threshold != 0)
    if tied.any():
        below, equal = magnitude < threshold, magnitude == threshold
        place = equal.cumsum(1, dtype=torch.int32)
        first = below | (equal & (place <= count - below.sum(1, keepdim=True)))
        chosen = torch.where(tied, first, chosen)
    return sign * chosen.view_as(sign)


def random_direction(shape: tuple[int, ...], fraction: float, seed: int) -> Tensor:
    """Return the direction of ``pixels='random'``: pixels and signs drawn once, the same for every image.

    The paper's Table 11 draws the pixels and takes the gradient's signs. Drawing the signs as well saves the gradient.

    Args:
        shape: Shape of an image, (channels, height, width).
        fraction: Fraction o in (0, 1].
        seed: Seed of a generator of its own; the global random state is left alone.

    Returns:
        float32 CPU tensor of ``shape`` with :func:`pixel_count` values of ±1 and 0 elsewhere.
    """
    generator = torch.Generator("cpu").manual_seed(seed)
    size = math.prod(shape)
    count = pixel_count(fraction, size)
    chosen = torch.randperm(size, generator=generator, device="cpu")[:count]
    direction = torch.zeros(size, dtype=torch.float32, device="cpu")
    direction[chosen] = 2.0 * torch.randint(0, 2, (count,), generator=generator, device="cpu").float() - 1
    return direction.view(shape)


def running_sums(values: Tensor) -> Tensor:
    """Return the running sums along each row, in :func:`statistics_dtype`.

    Args:
        values: (B, D).
    """
    return values.cumsum(1, dtype=statistics_dtype(values.device))


def oodness(shift: Tensor, correction: Tensor, lmbda: float) -> Tensor:
    """Return Q' = λ·Q + C_o, larger for images that a small perturbation moves more.

    Args:
        shift: (B,) Q, the sum of ``|a_ε − a|`` over the k1 largest activations.
        correction: (B,) C_o, the sum of ReLU(a_ε) over the k2 largest activations.
        lmbda: λ ≥ 0.
    """
    return lmbda * shift + correction


def empirical_cdf(reference: Tensor, values: Tensor) -> Tensor:
    """Return the right-continuous empirical CDF of ``reference`` at ``values``.

    >>> empirical_cdf(torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([0.5, 2.0, 9.0]))
    tensor([0.0000, 0.5000, 1.0000])

    Args:
        reference: (n,) values in ascending order.
        values: Tensor of any shape.
    """
    return torch.searchsorted(reference, values, right=True).to(reference.dtype) / len(reference)


def adaptive_percentile(cdf: Tensor, p_min: float, p_max: float) -> Tensor:
    """Return the adaptive percentile p = p_min + (1 − F(Q'))·(p_max − p_min), in percent.

    >>> adaptive_percentile(torch.tensor([0.0, 0.5, 1.0]), 80, 85)
    tensor([85.0000, 82.5000, 80.0000])

    Args:
        cdf: F(Q'), of any shape, in [0, 1].
        p_min: Smallest percentile, in (0, 100).
        p_max: Largest percentile, in (0, 100).
    """
    return p_min + (1 - cdf) * (p_max - p_min)


def factor_from_sums(total: Tensor, kept: Tensor) -> Tensor:
    """Return r = Σ a⁺ / Σ (k largest a⁺), 1 for a row without positive activations.

    Args:
        total: (B,) Σ a⁺.
        kept: (B,) sum of the k largest a⁺.
    """
    return (total / kept).nan_to_num_(nan=1.0)  # the sums are finite, so only 0/0 is NaN


def scaling_factor(activation: Tensor, percentile: Tensor | float) -> Tensor:
    """Return the scaling factor r = Σ a⁺ / Σ (the k largest a⁺) with k = :func:`kept_count`.

    >>> scaling_factor(torch.tensor([[4.0, 1.0, 1.0, -1.0]]), 75)       # the sum of all over the largest
    tensor([1.5000], dtype=torch.float64)

    Args:
        activation: (B, D) floating activations, rectified here.
        percentile: Percentile in percent, in (0, 100), one number or (B,).

    Returns:
        (B,) float64 (float32 on ``mps``), in [1, D].
    """
    dtype = statistics_dtype(activation.device)
    total = activation.relu().sum(1, dtype=dtype)
    percentiles = torch.as_tensor(percentile, dtype=dtype, device=activation.device).expand_as(total)
    counts = kept_count(percentiles, activation.shape[1])
    sums = running_sums(activation.topk(int(counts.max()) if len(counts) else 1, dim=1).values.relu_())
    return factor_from_sums(total, sums.gather(1, counts[:, None] - 1).squeeze(1))


def scale_activation_logits(logits: Tensor, bias: Tensor, factor: Tensor) -> Tensor:
    """Return the logits of the scaled activation a·exp(r) (variant A) from z and the head's bias.

    The head is linear, so they are exp(r)·(z − b) + b. Beyond 1e300 they grow with their logarithm instead, and so stay
    finite and in order for every r.

    Args:
        logits: (B, C) z; the result is in :func:`statistics_dtype`.
        bias: (C,) b, zeros for a head without bias.
        factor: (B,) r.
    """
    dtype = statistics_dtype(logits.device)
    bias = bias.to(logits.device, dtype)
    weighted = logits.to(dtype) - bias
    factor = factor.to(dtype)[:, None]
    limit = _LOG_LIMIT if dtype == torch.float64 else math.log(1e30)
    if not len(logits):
        return weighted
    largest = float(factor.max()) + max(0.0, math.log(max(float(weighted.abs().max()), 1.0)))
    if largest <= limit:
        return weighted * factor.exp() + bias
    log_magnitude = factor + weighted.abs().log()
    magnitude = log_magnitude.clamp(max=limit).exp() * (1 + (log_magnitude - limit).clamp(min=0))
    return weighted.sign() * magnitude + bias


def scale_logits(logits: Tensor, factor: Tensor) -> Tensor:
    """Return the scaled logits z·r² (variant L), (B, C) in :func:`statistics_dtype`.

    Args:
        logits: (B, C) z.
        factor: (B,) r.
    """
    dtype = statistics_dtype(logits.device)
    return logits.to(dtype) * factor.to(dtype).square()[:, None]


def energy(logits: Tensor) -> Tensor:
    """Return the (B,) energy score, the logsumexp of the logits; larger is more in-distribution.

    Args:
        logits: (B, C).
    """
    return logits.logsumexp(dim=1)
