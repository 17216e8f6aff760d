"""The configuration groups: the folders of conf/, whose files are the options. Light to import, for the help."""

from pathlib import Path

CONF_DIR = Path(__file__).resolve().parents[2] / "conf"


def groups() -> dict[str, list[str]]:
    """Each group's name with its options, both sorted; an option in a folder of its own is `folder/option`."""
    return {
        folder.name: options
        for folder in sorted(CONF_DIR.iterdir())
        if folder.is_dir() and (options := _options(folder))
    }


def _options(folder: Path) -> list[str]:
    return sorted(file.relative_to(folder).with_suffix("").as_posix() for file in folder.rglob("*.yaml"))
