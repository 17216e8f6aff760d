"""Copies the files of a corpus from URLs to this machine, so that later stages read local files only."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from transloom.pipeline.data.corpus_config import SPLITS, CorpusConfig, CorpusKind, SplitConfig
from transloom.pipeline.data.sources import as_settings, with_local_source
from transloom.pipeline.progress import Progress, no_progress
from transloom.pipeline.storage.files import GLOB, fetch_file, is_url


def with_local_files(corpus: CorpusConfig, folder: Path, progress: Progress = no_progress) -> CorpusConfig:
    """The corpus with each URL replaced by the path of a copy below `folder`, which is fetched if missing or if the
    file has changed. URLs of the hub (hf://) and patterns of several files stay, for the `datasets` library to read.

    Raises:
        UserError: a file is missing or can't be reached; names the setting.
    """
    changes: dict[str, Any] = {}
    if corpus.kind is CorpusKind.sources:
        for split in filter(corpus.has_own_data, SPLITS):
            own: SplitConfig = getattr(corpus, split)
            sources = [
                with_local_source(source, f"corpus.{split}.sources[{place}]", corpus.path, folder, progress)
                for place, source in enumerate(own.parsed)
            ]
            sides = {
                side: str(fetch_file(url, folder, f"corpus.{split}.{side}", progress))
                for side in ("source", "target")
                if own.source is not None and is_url(url := _joined(corpus.path, getattr(own, side)))
            }
            if sides or tuple(sources) != own.parsed:
                changes[split] = replace(own, sources=as_settings(sources), **sides)
        if is_url(corpus.path):
            changes["path"] = str(folder)
    elif corpus.reads_text:
        for split in filter(corpus.has_own_data, SPLITS):
            where: SplitConfig = getattr(corpus, split)
            sides = {}
            for side in ("source", "target"):
                url = _joined(corpus.path, getattr(where, side))
                if is_url(url):
                    sides[side] = str(fetch_file(url, folder, f"corpus.{split}.{side}", progress))
            if sides:
                changes[split] = replace(where, **sides)
        if is_url(corpus.path):
            changes["path"] = str(folder)
    elif any(map(_is_fetched, corpus.data_files.values())):
        changes["data_files"] = {
            name: str(fetch_file(file, folder, f"corpus.data_files.{name}", progress)) if _is_fetched(file) else file
            for name, file in corpus.data_files.items()
        }
    mix = {
        side: str(fetch_file(url, folder, f"corpus.mix.{side}", progress))
        for side in ("source", "target")
        if is_url(url := getattr(corpus.mix, side))
    }
    if mix:
        changes["mix"] = replace(corpus.mix, **mix)
    return replace(corpus, **changes) if changes else corpus


def _joined(path: str | None, name: str) -> str:
    if path is None or is_url(name) or os.path.isabs(name):
        return name
    return f"{path.rstrip('/')}/{name}"


def _is_fetched(file: str) -> bool:
    return is_url(file) and not file.startswith("hf://") and not GLOB & set(file.partition("?")[0])
