"""3×3 convolutions of many channels with under half of the multiplications (Winograd, on a CPU).

One tile of m×m outputs depends on n×n inputs, n = m + 2. With matrices A, G and B it is

    y = Aᵀ [(G w Gᵀ) ⊙ (B x Bᵀ)] A,

which takes n² products instead of 9 m² (Lavin and Gray, 2016): 16 instead of 36 with m = 2, and 25
instead of 81 with m = 3. Over the channels these are n² matrix products. The gradients have the
same form. All transforms are matrix products too, with the Kronecker squares of A, G and B.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import numpy as np
import torch
from torch import Tensor

from gradshare.models.derivatives import is_channels_last

# Below these sizes oneDNN's convolutions are faster: the transforms cost more than they save.
FEWEST_CHANNELS = 10_000  # of input times output
FEWEST_TILES = 120

# The points, besides infinity, at which `_matrices` evaluates polynomials.
POINTS = (0.0, 1.0, -1.0, 2.0)


def is_faster(x: Tensor, W: Tensor) -> bool:
    """Whether it is faster for these images and 3×3 filters than a convolution of PyTorch."""
    tile = _tile(*x.shape[2:])
    tiles = len(x) * -(-x.shape[2] // tile) * -(-x.shape[3] // tile)
    return (
        x.device.type == "cpu"
        and x.dtype in (torch.float32, torch.float64)  # in half precision it is 12 times less exact
        and is_channels_last(x)
        and W.shape[0] * W.shape[1] >= FEWEST_CHANNELS
        and tiles >= FEWEST_TILES
    )


def forward(x: Tensor, W: Tensor) -> Tensor:
    """x * W with padding 1.

    Args:
        x: (N, C, H, W), the channels last in memory.
        W: (K, C, 3, 3).
    """
    tile = _tile(*x.shape[2:])
    _, G, _ = _matrices(tile, x.dtype)
    return _convolve(x, (G @ W.reshape(-1, 9).T).view(-1, *W.shape[:2]).mT, tile)


def backward(g: Tensor, x: Tensor, W: Tensor, needed: tuple[bool, bool]) -> list[Tensor | None]:
    """The gradients of x and W, those that are needed, from the gradient g of the output."""
    tile = _tile(*x.shape[2:])
    A, G, _ = _matrices(tile, x.dtype)
    gx = gW = None
    if needed[0]:  # a convolution with the filters turned by 180°
        gx = _convolve(g, (G.flip(1) @ W.reshape(-1, 9).T).view(-1, *W.shape[:2]), tile)
    if needed[1]:
        S = x.new_zeros(len(G), *W.shape[:2])
        for images in _slices(x, S, tile):
            of_g = (A.T @ _tiles(g[images], tile, tile)).view(len(G), -1, W.shape[0])
            S.baddbmm_(of_g.mT, _transformed(x[images], tile))
        gW = (G.T @ S.flatten(1)).T.reshape(W.shape)  # in this order a product of long rows
    return [gx, gW]


def _convolve(x: Tensor, U: Tensor, tile: int) -> Tensor:
    """The convolution of x with transformed filters (n², C, K)."""
    A, _, _ = _matrices(tile, x.dtype)
    N, _, H, W = x.shape
    K = U.shape[2]
    rows, columns = -(-H // tile), -(-W // tile)
    y = x.new_empty(N, rows * tile, columns * tile, K)
    for images in _slices(x, U, tile):
        tiles = A @ (_transformed(x[images], tile) @ U).flatten(1)
        tiles = tiles.view(tile, tile, -1, rows, columns, K).permute(2, 3, 0, 4, 1, 5)
        y[images].view(tiles.shape).copy_(tiles)
    return y[:, :H, :W].permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)


def _transformed(x: Tensor, tile: int) -> Tensor:
    """B x Bᵀ of all tiles of some images: (n², tiles, C)."""
    _, _, B = _matrices(tile, x.dtype)
    return (B @ _tiles(x, tile + 2, tile)).view(len(B), -1, x.shape[1])


def _tiles(x: Tensor, size: int, step: int) -> Tensor:
    """Tiles of x, one every `step` pixels, centred on the outputs: (size², tiles · C)."""
    N, C, H, W = x.shape
    rows, columns = -(-H // step), -(-W // step)
    border = (size - step) // 2
    shape = (N, rows * step + 2 * border, columns * step + 2 * border, C)
    padded = x.new_zeros(shape)
    padded[:, border : border + H, border : border + W] = x.permute(0, 2, 3, 1)
    image, row, column, channel = padded.stride()
    tiles = padded.as_strided(
        (size, size, N, rows, columns, C), (row, column, image, step * row, step * column, channel)
    )
    return tiles.reshape(size**2, -1)


def _slices(x: Tensor, U: Tensor, tile: int) -> Iterator[slice]:
    """Slices of the images whose transform is about as large as that of the filters."""
    image = len(U) * x[0].numel() // tile**2
    count = max(1, U.numel() // image)
    for start in range(0, len(x), count):
        yield slice(start, start + count)


def _tile(H: int, W: int) -> int:
    """The m, 2 or 3, with fewer products for an image."""
    return min((2, 3), key=lambda m: (m + 2) ** 2 * -(-H // m) * -(-W // m))


@cache
def _matrices(tile: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Aᵀ, G and B, as Kronecker squares.

    By the transposition principle: the product of two polynomials with m and 3 coefficients is
    their values at n points multiplied, and interpolated; a convolution is the transpose of that.
    """
    n = tile + 2

    def values(count: int) -> np.ndarray:
        """Of the powers below `count` at each point, and at infinity of the leading one."""
        at_points = np.vander(POINTS[: n - 1], count, increasing=True)
        return np.concatenate([at_points, np.eye(count)[-1:]])

    A, G, B = values(tile).T, values(3), np.linalg.inv(values(n)).T
    scale = np.abs(B).max(1, keepdims=True)  # so that none of them has large entries
    matrices = (A, G * scale, B / scale)
    A2, G2, B2 = (torch.from_numpy(np.kron(matrix, matrix)).to(dtype) for matrix in matrices)
    return A2, G2, B2
