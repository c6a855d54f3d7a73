"""How far pictures are from their originals. All are numbers in [0, 1], (B, C, H, W)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from scoresde.evaluation.gaussian import frechet_distance, moments

WINDOW, WIDTH = 11, 1.5
"""Side of the window of ``ssim`` in pixels and the standard deviation of its Gaussian."""
PATCH = 8
MOST_PATCHES = 8192
SMALLEST = 1e-10  # of a mean squared error: 100 dB


def psnr(x: Tensor, y: Tensor) -> Tensor:
    """The peak signal-to-noise ratio -10 log10 mean (x - y)^2 (B,) in dB, at most 100."""
    error = (x.double() - y.double()).square().flatten(1).mean(1)
    return -10 * error.clamp_min(SMALLEST).log10()


def ssim(x: Tensor, y: Tensor) -> Tensor:
    """The structural similarity (B,), a mean over all channels and whole windows.

        (2 m_x m_y + c1) (2 s_xy + c2) / ((m_x^2 + m_y^2 + c1) (s_x^2 + s_y^2 + c2))

    with means, variances and the covariance under a Gaussian window of 11 x 11 pixels and width
    1.5, c1 = 0.01^2 and c2 = 0.03^2. Raises ValueError for pictures smaller than the window.
    Image Quality Assessment: From Error Visibility to Structural Similarity, Wang and others,
    IEEE Transactions on Image Processing 13 (2004), eq. 13.
    """
    if min(x.shape[2:]) < WINDOW:
        raise ValueError(
            f"pictures of {x.shape[2]} x {x.shape[3]} pixels are smaller than the window of "
            f"{WINDOW} x {WINDOW}"
        )
    place = torch.arange(WINDOW, dtype=torch.float64, device=x.device) - WINDOW // 2
    line = (-(place**2) / (2 * WIDTH**2)).exp()
    line = line / line.sum()

    def local(numbers: Tensor) -> Tensor:
        flat = numbers.flatten(0, 1)[:, None]
        flat = F.conv2d(F.conv2d(flat, line.view(1, 1, -1, 1)), line.view(1, 1, 1, -1))
        return flat.view(*numbers.shape[:2], *flat.shape[2:])

    x, y, c1, c2 = x.double(), y.double(), 0.01**2, 0.03**2
    mx, my = local(x), local(y)
    vx, vy = local(x * x) - mx * mx, local(y * y) - my * my
    covariance = local(x * y) - mx * my
    alike = (2 * mx * my + c1) * (2 * covariance + c2)
    return (alike / ((mx**2 + my**2 + c1) * (vx + vy + c2))).flatten(1).mean(1)


def frechet_of_patches(x: Tensor, y: Tensor) -> float:
    """The Frechet distance between the Gaussians of all squares of 8 x 8 pixels of two sets.

    It needs no network. Blur shows as a lack of variance, and blocks as another covariance. The
    squares do not overlap, and at most 8192 evenly spread ones count.
    """
    return frechet_distance(moments(_patches(x)), moments(_patches(y)))


def _patches(x: Tensor) -> Tensor:
    """Squares (N, C side^2) of pictures."""
    side = min(PATCH, *x.shape[2:])
    found = F.unfold(x.double(), side, stride=side).transpose(1, 2).flatten(0, 1)
    rows = torch.linspace(0, len(found) - 1, min(len(found), MOST_PATCHES), device=x.device)
    return found[rows.round().long()]
