"""Where a picture lies that a row of a table names: by a path, a file's name, or a name without its ending."""

from __future__ import annotations

import os
from functools import cached_property
from pathlib import Path, PurePosixPath

from trainers.data.images.files import image_files
from trainers.data.rows import short
from trainers.data.sources import DATA_DIR_VARIABLE, SPLIT_OF_NAME, split_in_name


class Pictures:
    """The pictures in a table's folder and below it.

    A path that leads out of the folder (absolute, or by ..) must lie below $LORA_DATA_DIR: a table from elsewhere shall
    not choose which of your files are opened. Links that lie inside may point anywhere.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        data_dir = os.environ.get(DATA_DIR_VARIABLE)
        self._allowed = [os.path.normpath(place) for place in (folder, *([data_dir] if data_dir else []))]

    @cached_property
    def _by_name(self) -> dict[str, list[Path]]:
        """Files by their names, whole and without ending, in lower case."""
        found: dict[str, list[Path]] = {}
        for path in image_files(self.folder):
            for name in {path.name.lower(), path.stem.lower()}:
                found.setdefault(name, []).append(path)
        return found

    def find(self, value: str, split: str = "") -> Path:
        """The file that a row means: a path from the table's folder, or the end of one, also without the ending.

        Of several the one in a folder of the row's split is taken. A path to nothing is given back as it is, for
        whoever opens it to say so.

        Raises:
            ValueError: it leads out of the folder, or several files fit.
        """
        for spelling in (value, value.replace("\\", "/")):
            path = Path(os.path.normpath(self.folder / spelling))
            if not any(Path(os.path.abspath(path)).is_relative_to(os.path.abspath(place)) for place in self._allowed):
                remedy = f"Use paths below it, or set {DATA_DIR_VARIABLE} to the pictures' folder"
                raise ValueError(f"{short(value)}, outside of {self.folder}. {remedy}")
            if path.is_file():
                return path
        parts = PurePosixPath(value.replace("\\", "/").lower()).parts
        fitting = self._by_name.get(parts[-1], []) if parts else []
        fitting = [file for file in fitting if _ends_with(file.relative_to(self.folder), parts)]
        for narrower in (
            [file for file in fitting if file.name == PurePosixPath(value).name or file.stem == value],
            [file for file in fitting if split and split_of_place(file.relative_to(self.folder)) == split],
        ):
            fitting = narrower if narrower and len(fitting) > 1 else fitting
        if len(fitting) > 1:
            listed = ", ".join(str(file.relative_to(self.folder)) for file in fitting[:3])
            raise ValueError(f"{short(value)}, which several pictures are called: {listed}. Give their paths")
        return fitting[0] if fitting else path

    def named(self, value: str) -> Path | None:
        """The file that a line of a list means, if there is one and no other fits."""
        try:
            path = self.find(value)
        except ValueError:
            return None
        return path if path.is_file() else None


def split_of_place(path: Path) -> str | None:
    """The split that the folders of a path tell, the outermost that tells one."""
    places = (SPLIT_OF_NAME.get(part.lower()) or split_in_name(part) for part in path.parts[:-1])
    return next((split for split in places if split), None)


def _ends_with(path: Path, parts: tuple[str, ...]) -> bool:
    """Whether a path ends with these parts, in lower case, the last perhaps without the file's ending."""
    own = tuple(part.lower() for part in path.parts[-len(parts) :])
    return own[:-1] == parts[:-1] and (parts[-1] in (own[-1], path.stem.lower()))
