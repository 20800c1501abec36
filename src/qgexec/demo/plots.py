"""Owns how the quality plots look; draws what it is given, and measures nothing but medians and scatters."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from astropy.stats import mad_std
from astropy.table import Table
from astropy.wcs import WCS
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

__all__ = ["FloatArray", "draw_astrometry", "draw_catalogue", "draw_photometry", "draw_picture"]

FloatArray = NDArray[np.floating]

BAND_COLOURS = {"g": "#2a7f62", "r": "#b5423a"}
INK = "#333333"
STAR_COLOUR, GALAXY_COLOUR = "#1f4e79", "#d08a2e"


def draw_astrometry(pairs: Table) -> Figure:
    """Draw how positions in single frames scatter around the catalogue.

    Parameters
    ----------
    pairs
        One row per bright star and frame: ``band``, ``east_mas``,
        ``north_mas`` and ``visit``.

    Returns
    -------
    figure : `matplotlib.figure.Figure`
        Scatter of offsets, and the median offset of each visit.
    """
    figure = _figure(11, 5.2)
    left, right = figure.subplots(1, 2)
    limit = max(20.0, 6 * float(mad_std(pairs["east_mas"])))
    for band, colour in BAND_COLOURS.items():
        of_band = pairs[pairs["band"] == band]
        left.plot(of_band["east_mas"], of_band["north_mas"], ".", ms=4, alpha=0.5, color=colour, label=band)
    text = "\n".join(
        f"{axis}: {np.median(pairs[f'{axis}_mas']):+.1f} ± {mad_std(pairs[f'{axis}_mas']):.1f} mas"
        for axis in ("east", "north")
    )
    _note(left, text)
    left.set(xlim=(limit, -limit), ylim=(-limit, limit), xlabel="east [mas]", ylabel="north [mas]")
    left.set_aspect("equal")
    left.set_title("Bright stars, frame minus catalogue")
    left.legend(loc="lower right", frameon=False)
    visits = np.unique(pairs["visit"])
    for axis, marker in (("east", "o"), ("north", "s")):
        values = [pairs[f"{axis}_mas"][pairs["visit"] == visit] for visit in visits]
        right.errorbar(
            np.arange(len(visits)) + (0.08 if axis == "north" else -0.08),
            [np.median(v) for v in values],
            [mad_std(v) / np.sqrt(len(v)) for v in values],
            fmt=marker,
            ms=5,
            capsize=2,
            color=STAR_COLOUR if axis == "east" else GALAXY_COLOUR,
            label=axis,
        )
    right.axhline(0, color=INK, lw=0.8)
    right.set_xticks(np.arange(len(visits)), [str(visit) for visit in visits])
    right.set(xlabel="visit", ylabel="median offset [mas]", title="Each visit as a whole")
    right.legend(frameon=False)
    return figure


def draw_photometry(pairs: Table, bright_snr: float) -> Figure:
    """Draw how magnitudes in single frames scatter around the catalogue.

    Parameters
    ----------
    pairs
        One row per star and frame: ``band``, ``mag``, ``delta_mmag`` and
        ``snr``.
    bright_snr
        From this signal-to-noise ratio on the scatter is quoted.

    Returns
    -------
    figure : `matplotlib.figure.Figure`
        One panel per band.
    """
    figure = _figure(11, 4.8)
    axes = figure.subplots(1, len(BAND_COLOURS), sharey=True)
    for ax, (band, colour) in zip(axes, BAND_COLOURS.items(), strict=True):
        of_band = pairs[pairs["band"] == band]
        mag, delta = np.asarray(of_band["mag"]), np.asarray(of_band["delta_mmag"])
        ax.plot(mag, delta, ".", ms=3, alpha=0.5, color=colour)
        order = np.argsort(mag)
        expected = 1085.7 / np.asarray(of_band["snr"])
        smooth = [np.median(part) for part in np.array_split(expected[order], 25)]
        centres = [np.median(part) for part in np.array_split(mag[order], 25)]
        ax.plot(centres, smooth, color=INK, lw=1.2, label="± expected noise")
        ax.plot(centres, np.negative(smooth), color=INK, lw=1.2)
        bright = delta[np.asarray(of_band["snr"]) > bright_snr]
        _note(ax, f"S/N > {bright_snr:.0f}: {np.median(bright):+.1f} ± {mad_std(bright):.1f} mmag")
        ax.axhline(0, color=INK, lw=0.6)
        ax.set(ylim=(-250, 250), xlabel=f"{band} [AB mag]", title=f"Stars in {band}, frame minus catalogue")
        ax.legend(loc="lower left", frameon=False)
    axes[0].set_ylabel("difference [mmag]")
    return figure


def draw_catalogue(objects: Table) -> Figure:
    """Draw colours, sizes and depth of the catalogue.

    Parameters
    ----------
    objects
        The catalogue of a tract.

    Returns
    -------
    figure : `matplotlib.figure.Figure`
        Colour-magnitude diagram, sizes, and number counts.
    """
    measured = (objects["psf_flux_g_njy"] > 0) & (objects["psf_flux_r_njy"] > 0)
    good = objects[measured & ~objects["is_saturated"]]
    mags = {band: 31.4 - 2.5 * np.log10(np.asarray(good[f"psf_flux_{band}_njy"])) for band in BAND_COLOURS}
    star = np.asarray(good["is_star"])
    figure = _figure(14, 5)
    colours, sizes, counts = figure.subplots(1, 3)
    for chosen, colour, label in ((~star, GALAXY_COLOUR, "extended"), (star, STAR_COLOUR, "stars")):
        style = {"ms": 3, "alpha": 0.6, "color": colour}
        colours.plot((mags["g"] - mags["r"])[chosen], mags["r"][chosen], ".", label=label, **style)
        sizes.plot(mags["r"][chosen], np.asarray(good["size_ratio"])[chosen], ".", label=label, **style)
        bins = np.arange(14, 25.6, 0.5)
        counts.hist(mags["r"][chosen], bins, histtype="step", lw=1.5, color=colour, label=label)
    colours.set(xlim=(-0.5, 2.2), ylim=(25, 14), xlabel="g - r [mag]", ylabel="r [AB mag]")
    colours.set_title("Colours and magnitudes")
    sizes.set(ylim=(0.7, 1.8), xlabel="r [AB mag]", ylabel="size / PSF", title="Sizes")
    noise_njy = np.median(np.asarray(good["psf_flux_err_r_njy"])[mags["r"] > 22])
    faintest = 31.4 - 2.5 * np.log10(5 * noise_njy)
    counts.axvline(faintest, color=INK, lw=1, ls="--")
    counts.set_yscale("log")
    counts.set(
        xlabel="r [AB mag]", ylabel="objects per 0.5 mag", title=f"Depth: r = {faintest:.2f} at 5 sigma"
    )
    for ax, place in ((colours, "lower right"), (sizes, "upper left"), (counts, "upper left")):
        ax.legend(frameon=False, loc=place)
    return figure


def draw_picture(mosaics: Mapping[str, FloatArray], wcs: WCS) -> Figure:
    """Draw the coadds of the tract as one picture.

    Parameters
    ----------
    mosaics
        Pixels in nJy, keyed by band, all of shape (rows, columns).
    wcs
        The WCS of all.

    Returns
    -------
    figure : `matplotlib.figure.Figure`
        The bands as colours: r red, g blue, their mean green.
    """
    red, blue = mosaics["r"], mosaics["g"]
    planes = [red, (red + 1.2 * blue) / 2, 1.4 * blue]
    # Dividing by the noise makes the sky grey; asinh shows faint and bright (Lupton et al. 2004).
    noise = [float(mad_std(plane[plane != 0])) for plane in planes]
    total = np.mean([plane / n for plane, n in zip(planes, noise, strict=True)], axis=0)
    stretch = np.arcsinh(np.maximum(total, 0) / 2) / np.arcsinh(300 / 2)
    factor = np.where(total > 0, stretch / np.maximum(total, 1e-9), 0)
    rgb = np.stack([plane / n * factor for plane, n in zip(planes, noise, strict=True)], axis=-1)
    figure = _figure(12, 8.2)
    ax = figure.add_subplot(projection=wcs)
    ax.imshow(np.clip(rgb + 0.04, 0, 1), origin="lower", interpolation="nearest")
    ax.set(xlabel="right ascension", ylabel="declination", title="Coadd of all visits, g and r")
    return figure


def _figure(width_inch: float, height_inch: float) -> Figure:
    # Without pyplot: it keeps every figure of the process alive.
    return Figure(figsize=(width_inch, height_inch), dpi=100, layout="constrained")


def _note(ax: Axes, text: str) -> None:
    box = {"facecolor": "white", "alpha": 0.85, "edgecolor": "none"}
    ax.text(0.03, 0.97, text, transform=ax.transAxes, va="top", color=INK, bbox=box)
