"""Where a data set lies, and which split a file, a folder or a word belongs to: the same for every kind of data."""

import os
import re
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TypeVar

DATA_DIR_VARIABLE = "LORA_DATA_DIR"
SPLIT_NAMES = {
    "train": ("train", "training"),
    "validation": ("valid", "validation", "val", "dev", "devel", "development", "testa"),
    "test": ("test", "testing", "testb"),
}
"""What files, folders and words in a column can be called that stand for each split, in any case."""
SPLIT_OF_NAME = {name: split for split, names in SPLIT_NAMES.items() for name in names}
UNSPLIT = "all"
"""The split of a source that has none of its own, such as a single file."""

_SPLIT_STEM = re.compile(rf"({'|'.join(sorted(SPLIT_OF_NAME, key=len, reverse=True))})([-_.]\d.*)?")

_NUMBERS = re.compile(r"\d+(-of-\d+)?(-[0-9a-f]{16})?")
"""What tells the shards of a split apart; the hub's older ones end in a digest."""
_SET = re.compile(r"(?<=.)(set|data)$")
_TELL_NOTHING = {"set", "data", "dataset", "split", "folder", "files", "seg", "image", "images", "img", "imgs",
                 "pictures", "photos", "label", "labels", "metadata", "annotations"}  # fmt: skip


HUB_FILES = ("dataset_infos.json", "dataset_dict.json", "state.json", "dataset_info.json")
"""What the hub's libraries write about data, beside it."""
_TELLS_NOTHING = re.compile(r"\d.*|data-\d.*|seq\.in", re.DOTALL)


def names_no_split(name: str) -> bool:
    """Whether a file is called by its number, or by what it is, so that its folder must tell the split: 0000.parquet,
    data-00000-of-00001.arrow, seq.in."""
    return _TELLS_NOTHING.fullmatch(name) is not None


def split_of(path: Path) -> str | None:
    """The split that a file belongs to, or None.

    Its name tells (train.jsonl, test-00000-of-00002.parquet), or for a numbered file its folder's (train/0000.parquet).
    """
    if match := _SPLIT_STEM.fullmatch(path.name.split(".")[0].lower()):
        return SPLIT_OF_NAME[match[1]]
    return SPLIT_OF_NAME.get(path.parent.name.lower()) if names_no_split(path.name) else None


def split_in_name(name: str) -> str | None:
    """The split that a name tells in which other words tell nothing: TEST_SET, seg_train, val2017, training_images."""
    words = [_SET.sub("", word) for word in re.findall(r"[a-z]+", name.lower())]
    telling = {word for word in words if word and word not in _TELL_NOTHING}
    return SPLIT_OF_NAME.get(telling.pop()) if len(telling) == 1 else None


def split_in(path: Path) -> str | None:
    """The one split whose name is a word in a file's name: eng.testa, snli_1.0_dev.jsonl, trainLabels.csv."""
    name = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", path.name)
    words = (_SET.sub("", word) for word in re.split(r"[^a-z]+", name.lower()))
    found = {SPLIT_OF_NAME[word] for word in words if word in SPLIT_OF_NAME}
    return found.pop() if len(found) == 1 else None


Found = TypeVar("Found")


def by_split(files: Iterable[tuple[Path, Found]]) -> tuple[dict[str, list[Found]], list[Found]]:
    """The files of each split in their order, and those of none: the one rule for files of every kind of data.

    A name that is a split's own (`split_of`) comes first; one that holds it as a word (`split_in`) counts where the
    split has no file of the first kind, so that train_extra.csv is none of it beside train.csv. Of MultiNLI's two files
    for a split the one that is matched, of the genres of training, is taken.

    Args:
        files: the name of each, with the folder that it lies in, and what it is to be called here.
    """
    files = list(files)
    own = [split_of(name) for name, _ in files]
    found: dict[str, list[Found]] = {}
    others = []
    for (name, file), split in zip(files, own, strict=True):
        split = split or ((word := split_in(name)) not in own and word) or None
        before, mismatched, _ = name.name.lower().partition("mismatched")
        if mismatched and any(other.name.lower().startswith(f"{before}matched") for other, _ in files):
            split = None
        if split:
            found.setdefault(split, []).append(file)
        else:
            others.append(file)
    return found, others


def are_shards(names: Iterable[str]) -> bool:
    """Whether files differ in nothing but what tells shards apart: data-00000-of-00002.arrow."""
    return len({re.sub(r"\d+-of-\d+", "", name) for name in names}) == 1


def check_one_form(split: str, files: Sequence[Path], where: str | Path) -> None:
    """Refuse several files or folders for one split that are not its shards, whose names differ in a number alone.

    Raises:
        ValueError: there are several. The message names them.
    """
    stems = [path.name.removesuffix(".gz").rpartition(".")[0] for path in files]
    if len({_NUMBERS.sub("0", stem) for stem in stems}) > 1 or len(set(stems)) < len(stems):
        names = {path.name for path in files}
        listed = ", ".join(path.name if len(names) == len(files) else str(path) for path in files)
        raise ValueError(f"{where} holds {listed} for the {split} split. Keep one of them.")


def zip_members(path: Path) -> list[str]:
    """The names of the files in a zip, without what an operating system adds.

    Raises:
        ValueError: it is damaged.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return [name for name in archive.namelist() if not name.startswith("__MACOSX")]
    except zipfile.BadZipFile as error:
        raise ValueError(f"{path} is not a zip file, or is cut short ({error}). Fetch it again.") from error


def find_source(source: str | Path, patterns: Sequence[str], forms: str) -> Path:
    """The file or folder of a data set: a path; a name in the folder that LORA_DATA_DIR names; or a hub id.

    Of a hub id such as "tner/bionlp2004" LORA_DATA_DIR is searched first, also for its last part.

    Args:
        source: the path, name or hub id.
        patterns: names of the files to fetch from the hub.
        forms: what may be given, for the message: "a folder, or an .npz file".

    Raises:
        ValueError: there is no such data set.
    """
    name = str(source)
    is_hub_id = re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name) is not None
    candidates = [Path(source).expanduser()]
    if data_dir := os.environ.get(DATA_DIR_VARIABLE):
        candidates.append(Path(data_dir, name))
        if is_hub_id:
            candidates.append(Path(data_dir, name.split("/")[1]))
    for path in candidates:
        if path.exists():
            return path
    looked_at = f"nothing there (looked at {', '.join(str(path.absolute()) for path in candidates)})"
    if is_hub_id:
        return _download(name, patterns, looked_at)
    raise ValueError(
        f"no data set {name!r}: {looked_at}. Give {forms}, a name in the folder that {DATA_DIR_VARIABLE} names, or a "
        "hub id such as 'tner/bionlp2004'."
    )


def _download(hub_id: str, patterns: Sequence[str], looked_at: str) -> Path:
    """The folder of a hub data set, in the hub's own cache; works offline once it is there."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(hub_id, repo_type="dataset", allow_patterns=list(patterns)))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError) as error:
        raise ValueError(
            f"no data set {hub_id!r}: {looked_at}, and the hub did not give it: {error} Check the name "
            f"and the network, or put a copy under {DATA_DIR_VARIABLE}."
        ) from error
    if not folder.is_dir():
        raise ValueError(f"the data set {hub_id!r} on the hub has no file called {', '.join(patterns)}.")
    return folder
