"""Where sites and users are: a hexagonal grid and its centre cell."""

from __future__ import annotations

import numpy as np

from .arrays import Floats, Singles

RINGS = 2


def site_positions(n_sites: int, spacing_m: float) -> Floats:
    """Return the sites of a hexagonal grid nearest to its centre.

    Args:
        n_sites: How many, 1 to 19 (two rings).
        spacing_m: Distance of neighbouring sites, metres.

    Returns:
        Coordinates in metres, shape ``(n_sites, 2)``, the centre first.
    """
    steps = np.arange(-RINGS, RINGS + 1)
    u, v = (axis.ravel() for axis in np.meshgrid(steps, steps))
    grid = np.stack([u + v / 2, v * np.sqrt(3) / 2], axis=1)
    # rounded, so that sites of one ring are ordered by angle on every machine
    squared = np.round((grid**2).sum(axis=1), 6)
    angle = np.round(np.arctan2(grid[:, 1], grid[:, 0]), 6)
    return np.asarray(grid[np.lexsort((angle, squared))[:n_sites]] * spacing_m)


def hexagon_points(uniforms: Singles, spacing_m: float) -> Floats:
    """Map uniform numbers to points uniform in the centre cell of the grid.

    The hexagon is cut into three rhombi spanned by every second corner: the first number picks
    the rhombus, the others are coordinates along its sides.

    Args:
        uniforms: Numbers in [0, 1), shape ``(..., 3)``.
        spacing_m: Distance of neighbouring sites, metres.

    Returns:
        Coordinates in metres, shape ``(..., 2)``.
    """
    angles = np.pi / 6 + np.arange(3) * 2 * np.pi / 3
    corners = np.stack([np.cos(angles), np.sin(angles)], axis=1) * spacing_m / np.sqrt(3)
    pick = np.minimum((uniforms[..., 0] * 3).astype(np.int64), 2)
    along = uniforms.astype(np.float64)
    first, second = corners[pick], corners[(pick + 1) % 3]
    return np.asarray(along[..., 1:2] * first + along[..., 2:3] * second)
