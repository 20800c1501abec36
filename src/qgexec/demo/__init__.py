"""The demonstration: a small survey that is simulated, reduced by real PipelineTasks, and held to the truth.

Importing this package costs nothing; what needs the extra ``[demo]`` is
imported when it is called.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from qgexec.demo.layout import OUTPUT_COLLECTION, PIPELINE, DemoRepository
from qgexec.errors import QgexecError, RepositoryError

if TYPE_CHECKING:
    from lsst.daf.butler import Butler

    from qgexec.demo.truth import Recovery

__all__ = [
    "OUTPUT_COLLECTION",
    "PIPELINE",
    "DemoExtraMissingError",
    "DemoRepository",
    "build_demo_graph",
    "make_repository",
    "measure_recovery",
]

_EXTRA = ("astropy", "astroscrappy", "matplotlib", "photutils", "reproject", "scipy")


class DemoExtraMissingError(QgexecError, ImportError):
    """The packages that the demonstration reduction needs are not installed."""


def make_repository(
    root: str | Path,
    *,
    seed: int = 20260115,
    visits_per_band: int = 4,
    n_detectors: int = 6,
    log: Callable[[str], object] | None = None,
) -> DemoRepository:
    """Simulate a night at a small telescope, and make a butler repository of it.

    The default is 2 bands x 4 visits x 6 detectors: 80 MB, 10 s; the
    reduction adds 270 MB.

    Parameters
    ----------
    root
        Directory of the new repository; made if it does not exist.
    seed
        Seed of the random numbers; the same seed gives the same pixels.
    visits_per_band
        Number of exposures in each of two bands.
    n_detectors
        Number of detectors, at most 6.
    log
        Called with one line of text when a step begins.

    Returns
    -------
    repository : `DemoRepository`
        Where everything is, and what a graph builder must be told.

    Raises
    ------
    DemoExtraMissingError
        If the extra ``[demo]`` is not installed.
    qgexec.errors.RepositoryError
        If the directory holds a repository already.
    """
    _require_extra()
    from qgexec.demo.repository import build_repository  # noqa: PLC0415 - see the module's docstring

    root = Path(root).absolute()
    if (root / "butler.yaml").exists():
        raise RepositoryError(f"{root} holds a butler repository already.", hint="Name another directory.")
    return build_repository(
        root,
        seed=seed,
        visits_per_band=visits_per_band,
        n_detectors=n_detectors,
        log=log if log is not None else _say_nothing,
    )


def build_demo_graph(repository: DemoRepository, *, save_to: str | Path) -> str:
    """Build the quantum graph of the whole reduction, with lsst.pipe.base's own builder.

    Parameters
    ----------
    repository
        From `make_repository`.
    save_to
        The ``.qg`` file to write.

    Returns
    -------
    path : `str`
        That file. Its outputs go to a new RUN in `OUTPUT_COLLECTION`.
    """
    _require_extra()
    from qgexec.config.buildoptions import GraphOptions  # noqa: PLC0415 - see the module's docstring
    from qgexec.rubin.build import build_graph  # noqa: PLC0415

    return build_graph(
        str(repository.root),
        str(repository.pipeline),
        inputs=[repository.input_collection],
        output=OUTPUT_COLLECTION,
        options=GraphOptions(data_query=repository.data_query),
        save_to=save_to,
    )


def measure_recovery(
    repository: DemoRepository | str | Path | Butler, collection: str = OUTPUT_COLLECTION
) -> Recovery:
    """Compare the catalogue that a pipeline made with what was simulated.

    Parameters
    ----------
    repository
        The demonstration repository, its root, or a butler on it.
    collection
        Collection with the outputs of the pipeline.

    Returns
    -------
    recovery : `qgexec.demo.truth.Recovery`
        Completeness, and astrometric and photometric scatter; `str` of it is
        a short text.

    Raises
    ------
    DemoExtraMissingError
        If the extra ``[demo]`` is not installed.
    """
    _require_extra()
    from lsst.daf.butler import Butler  # noqa: PLC0415 - see the module's docstring

    from qgexec.demo.truth import read_recovery  # noqa: PLC0415 - see the module's docstring

    if isinstance(repository, Butler):
        return read_recovery(repository, collection)
    root = repository.root if isinstance(repository, DemoRepository) else repository
    with Butler.from_config(str(root)) as butler:
        return read_recovery(butler, collection)


def _require_extra() -> None:
    missing = [name for name in _EXTRA if find_spec(name) is None]
    if missing:
        raise DemoExtraMissingError(
            f"The demonstration needs {', '.join(missing)}, which is not installed.",
            hint="Install it with: pip install 'qgexec[demo]'",
        )


def _say_nothing(_line: str) -> None:
    return None
