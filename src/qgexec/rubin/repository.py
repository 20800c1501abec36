"""Opening a butler repository, with an error that says what is wrong with it; knows no graph."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from lsst.daf.butler import Butler, ButlerConfig, Config, StorageClassFactory
from lsst.resources import ResourcePath, ResourcePathExpression
from sqlalchemy.engine import make_url

from qgexec.errors import NotUtf8Error, RepositoryError
from qgexec.regularfile import YAML_BYTES, check_regular
from qgexec.rubin.compat import butler_config, registry_file

__all__ = [
    "learn_storage_classes",
    "locate",
    "nearest_existing",
    "open_butler",
    "repository_identity",
    "repository_uri",
    "require_writeable",
    "resolve_configuration",
]

_logger = logging.getLogger(__name__)


@contextmanager
def open_butler(repository: str | Butler, *, writeable: bool = False) -> Iterator[Butler]:
    """Open a full butler on a repository, and close it at the end.

    Parameters
    ----------
    repository
        Root, configuration file, alias or URI; or a butler that the caller has
        opened: then that is what is given, and it is not closed.
    writeable
        Open it for writing.

    Raises
    ------
    qgexec.errors.RepositoryError
        There is no such repository, it cannot be opened, or cannot be written.
    """
    if not isinstance(repository, str):
        if writeable and not repository.isWriteable():
            raise RepositoryError(
                f"the butler on {repository} is read-only",
                hint="Open it with writeable=True, or give its path.",
            )
        yield repository
        return
    _check_configuration(repository)
    try:
        butler = Butler.from_config(repository, writeable=writeable)
    except (FileNotFoundError, LookupError) as error:
        raise RepositoryError(
            f"there is no butler repository {repository}: {error}",
            hint="Check the path or alias given with -b.",
        ) from error
    except UnicodeEncodeError as error:
        raise NotUtf8Error(error.object) from error
    except Exception as error:  # configurations, databases and URIs of any kind
        if writeable:
            # Merely opening a butler for writing writes to its registry.
            _check_read_only(repository)
        raise RepositoryError(
            f"butler repository {repository} cannot be opened: {type(error).__name__}: {error}"
        ) from error
    with butler:
        yield butler


def learn_storage_classes(repository: str) -> None:
    """Make known in this process what storage classes a repository defines, as opening a butler would.

    Without them a graph of mocks, whose storage classes are named after others, cannot be read.

    Parameters
    ----------
    repository
        Root, configuration file or alias; about 10 ms.

    Raises
    ------
    qgexec.errors.RepositoryError
        There is no such repository.
    """
    _check_configuration(repository)
    try:
        StorageClassFactory().addFromConfig(ButlerConfig(repository))
    except Exception as error:  # configurations and URIs of any kind
        raise RepositoryError(
            f"there is no butler repository {repository}: {type(error).__name__}: {error}",
            hint="Check its path or alias.",
        ) from error


def resolve_configuration(repository: str, search_path: Sequence[str], file: Path) -> Config:
    """Return a repository's whole configuration, defaults included; it names the root, and is in no file.

    Parameters
    ----------
    repository
        Root, configuration file or alias.
    search_path
        Folders, or URIs of such; their defaults count before those of ``DAF_BUTLER_CONFIG_PATH``.
    file
        Where it is written to all the same, for who needs a name of it.

    Raises
    ------
    qgexec.errors.RepositoryError
        There is no such repository, or a default cannot be read.
    """
    _check_configuration(repository)
    try:
        config = ButlerConfig(repository, searchPaths=list(search_path))
        if "root" not in config:
            config["root"] = str(config.configDir)
        config.dumpToUri(ResourcePath(str(file)))
        return Config.fromYaml(file.read_text())
    except Exception as error:  # configurations and URIs of any kind
        raise RepositoryError(
            f"the configuration of {repository} cannot be read: {type(error).__name__}: {error}",
            hint=f"Check the path or alias given with -b, and --config-search-path {','.join(search_path)}",
        ) from error


def _check_configuration(repository: str) -> None:
    """Check that what a local repository is configured by can be read without waiting for it."""
    for path in (Path(repository), Path(repository, "butler.yaml")):
        try:
            if path.exists() and not path.is_dir():
                check_regular(path, YAML_BYTES)
        except OSError as error:
            raise RepositoryError(
                f"butler repository {repository} cannot be opened: {path}: {error.strerror}",
                hint="Check the path or alias given with -b.",
            ) from error


def _check_read_only(repository: str) -> None:
    """Say which path cannot be written, where that is why a repository does not open."""
    try:
        with Butler.from_config(repository, writeable=False) as butler:
            require_writeable(butler)
    except RepositoryError:
        raise
    except Exception:  # noqa: BLE001 - it does not open for reading either: the first error says more
        return


def require_writeable(butler: Butler) -> None:
    """Check that the repository's local files can be written, without writing any.

    Databases on servers and remote datastores say so only when they are
    written to.

    Raises
    ------
    qgexec.errors.RepositoryError
        They cannot; the message names the path.
    """
    roots = [root for root in butler.get_datastore_roots().values() if root is not None]
    # Of a chain of datastores some may be there to be read only: one that can be written is enough.
    writeable = [
        root for root in roots if not root.isLocal or os.access(nearest_existing(Path(root.ospath)), os.W_OK)
    ]
    paths = [] if writeable else [Path(root.ospath) for root in roots]
    database = registry_file(butler)
    if database is not None:
        # SQLite writes its journal beside the database.
        paths += [database, database.parent]
    refused = [path for path in paths if not os.access(nearest_existing(path), os.W_OK)]
    if refused:
        raise RepositoryError(
            f"the repository is read-only: {refused[0]} cannot be written",
            hint="Ask for write permission, or use a repository of your own.",
        )


def nearest_existing(path: Path) -> Path:
    """Return the path, or the first folder above it that exists: a root is made when it is first used."""
    return next(place for place in (path, *path.parents) if place.exists())


def locate(repository: Butler | ResourcePathExpression | Config, folder: Path) -> tuple[str | Butler, str]:
    """Return what `open_butler` takes for a repository, and where other processes find it.

    Parameters and errors are those of `repository_uri`.
    """
    uri = repository_uri(repository, folder)
    return repository if isinstance(repository, Butler) else uri, uri


def repository_uri(repository: Butler | ResourcePathExpression | Config, folder: Path) -> str:
    """Return where other processes find a repository.

    Parameters
    ----------
    repository
        A path, URI or alias; a configuration; or a butler.
    folder
        Where a configuration that is in no file is written, as ``butler.yaml``.

    Raises
    ------
    qgexec.errors.RepositoryError
        The configuration names no repository.
    """
    if not isinstance(repository, Butler | Config):
        return _from_anywhere(str(repository))
    config = butler_config(repository) if isinstance(repository, Butler) else ButlerConfig(repository)
    if config.configFile is not None:
        return str(config.configFile)
    if "root" not in config:
        raise RepositoryError(
            "the butler's configuration is in no file and names no root",
            hint="Give the repository's path instead.",
        )
    file = folder / "butler.yaml"
    config.dumpToUri(ResourcePath(str(file)))
    return str(file)


def repository_identity(repository: str | Butler) -> tuple[str, str]:
    """Return what a repository's registry and its datastore are, whatever it is called; nothing is opened.

    Parameters
    ----------
    repository
        Root, configuration file, alias or URI; or a butler.

    Returns
    -------
    registry
        URL of the database, of a file the real path; with the schema's name, and without user and password.
        Empty where the configuration does not say.
    datastore
        Root of the datastore; empty where it is several.
    """
    try:
        config = butler_config(repository) if isinstance(repository, Butler) else ButlerConfig(repository)
        root = str(config.get("root") or config.configDir or "")
        registry = _database(str(config.get(("registry", "db")) or ""), root)
        if registry and (schema := config.get(("registry", "namespace"))):
            registry = f"{registry}#{schema}"
        return registry, _real(str(config.get(("datastore", "root")) or ""), root)
    except Exception as error:  # noqa: BLE001 - configurations and URIs of any kind: who opens it says more
        _logger.debug("What %s is, is not known: %s", repository, error)
        return "", ""


def _database(text: str, root: str) -> str:
    if not text:
        return ""
    if text.startswith("sqlite:///"):
        return f"sqlite:///{_real(text.removeprefix('sqlite:///'), root)}"
    url = make_url(text)
    return f"{url.get_backend_name()}://{url.host or ''}:{url.port or ''}/{url.database or ''}"


def _real(place: str, root: str) -> str:
    """Return a path or URI, perhaps below the repository's root, without symbolic links."""
    if not place:
        return ""
    below = place.replace("<butlerRoot>", root.rstrip("/"))
    uri = ResourcePath(below, root=root or None, forceAbsolute=True)
    return str(Path(uri.ospath).resolve()) if uri.isLocal else str(uri).rstrip("/")


def _from_anywhere(repository: str) -> str:
    """Return what names a repository in any working folder: batch jobs, and who resumes, have another."""
    if ResourcePath(repository, forceAbsolute=False).isabs() or repository in Butler.get_known_repos():
        return repository
    return str(Path(repository).absolute()) if Path(repository).exists() else repository
