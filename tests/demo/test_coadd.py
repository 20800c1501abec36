"""Averaging visits, and each object once."""

from __future__ import annotations

import numpy as np
import pytest
from astropy.table import Table

from qgexec.demo.skygrid import SkyGrid
from qgexec.demo.tasks.catalogue import unique_objects
from qgexec.demo.tasks.coadd import Warp, average

SHAPE = (40, 40)


def _warp(value: float, sigma: float, *, seed: int) -> Warp:
    noise = np.random.default_rng(seed).normal(0, sigma, SHAPE)
    return Warp(
        image=value + noise,
        variance=np.full(SHAPE, sigma**2),
        weight=np.full(SHAPE, sigma**-2),
        saturated=np.zeros(SHAPE, dtype=np.bool_),
        psf_fwhm_px=np.full(SHAPE, 3.0),
    )


def test_weights_are_inverse_variances() -> None:
    """The variance of the average is that of the best combination, and holds."""
    warps = [_warp(0.0, sigma, seed=i) for i, sigma in enumerate((1.0, 2.0, 2.0, 1.0))]
    image, variance, _, rejected = average(warps, clip_sigma=6.0, clip_contrast=1.0)
    assert variance[0, 0] == pytest.approx(1 / 2.5)
    assert np.std(image) == pytest.approx(np.sqrt(1 / 2.5), rel=0.05)
    assert rejected <= 2


@pytest.mark.parametrize("n_visits", [2, 3, 4])
def test_cosmic_rays_are_rejected(n_visits: int) -> None:
    """What only one visit shows is not in the sky."""
    warps = [_warp(0.0, 1.0, seed=i) for i in range(n_visits)]
    warps[1].image[20, 10:15] = 500.0
    image, variance, _, rejected = average(warps, clip_sigma=6.0, clip_contrast=1.0)
    assert rejected >= 5
    assert np.abs(image[20, 10:15]).max() < 4
    assert variance[20, 12] == pytest.approx(1 / (n_visits - 1))


def test_stars_are_not_rejected_for_their_seeing() -> None:
    """A peak that is a third higher in the sharpest visit is a star."""
    warps = [_warp(0.0, 1.0, seed=i) for i in range(4)]
    for warp, height in zip(warps, (900.0, 1000.0, 1000.0, 1330.0), strict=True):
        warp.image[20, 20] += height
    image, _, _, _ = average(warps, clip_sigma=6.0, clip_contrast=1.0)
    assert image[20, 20] == pytest.approx(1057.5, abs=3)


def test_pixels_without_data_are_nan() -> None:
    """Where no visit has a pixel the average has none."""
    warp = _warp(5.0, 1.0, seed=1)
    warp.weight[0, 0] = 0
    warp.image[0, 0] = np.nan
    image, _, fwhm, _ = average([warp], clip_sigma=6.0, clip_contrast=1.0)
    assert np.isnan(image[0, 0])
    assert np.isfinite(image).sum() == image.size - 1
    assert fwhm[1, 1] == pytest.approx(3.0)


def test_each_object_once() -> None:
    """Of an object on two patches that is kept which lies deeper in its patch; neighbours stay."""
    objects = Table(
        {
            "ra_deg": np.array([150.0, 150.0 + 0.1 / 3600, 150.0 + 0.5 / 3600, 150.1]),
            "dec_deg": np.full(4, 2.0),
            "patch": [0, 1, 1, 0],
            "edge_px": [30.0, 50.0, 55.0, 3.0],
        }
    )
    assert unique_objects(objects, 0.3).tolist() == [False, True, True, True]


def test_patches_overlap_and_share_pixels() -> None:
    """A position in the overlap falls on the same sub-pixel of both patches."""
    grid = SkyGrid(
        ra_deg=150.1,
        dec_deg=2.2,
        pixel_scale_arcsec=0.4,
        patch_inner_px=100,
        patch_border_px=10,
        n_patches_x=2,
        n_patches_y=1,
    )
    assert grid.patch_shape == (120, 120)
    sky = grid.patch_wcs(0).all_pix2world([[112.25, 60.5]], 0)
    np.testing.assert_allclose(grid.patch_wcs(1).all_world2pix(sky, 0), [[12.25, 60.5]], atol=1e-6)
    assert grid.tract_region().contains(grid.patch_region(1).getCentroid())
    assert not grid.patch_region(0).isDisjointFrom(grid.patch_region(1))
    assert grid.cell(1) == (1, 0)
