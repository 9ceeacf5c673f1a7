"""The file of `--config`, as a source of settings."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic_settings import BaseSettings, SettingsError, TomlConfigSettingsSource

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable


class SettingsFile(TomlConfigSettingsSource):
    """The file, each of whose keys counts, or is refused."""

    def __init__(self, settings_cls: type[BaseSettings]) -> None:
        self._names = settings_cls.model_fields.keys()
        super().__init__(settings_cls)  # Reads the file.

    def _read_file(self, file_path: Path | Traversable) -> dict[str, Any]:
        try:
            settings = super()._read_file(file_path)
        except ValueError as error:
            raise SettingsError(f"{file_path}: {error}") from error
        if "config" in map(str.lower, settings):
            raise SettingsError(f"{file_path} names another file with settings, which would not be read")
        for name in settings:
            # pydantic reads THREADS as threads, and so one of two that differ in nothing else.
            if name != name.lower() and name.lower() in self._names:
                raise SettingsError(f"{file_path} has the key {name}; expected {name.lower()}")
        return settings
