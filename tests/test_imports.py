"""The plan of the house: imports point one way, between packages and between rooms, and nowhere in a circle; a room
has a face and at most 15 files; tests mirror the rooms; importing lora_core is cheap.
"""

import ast
import itertools
import re
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
HEAVY = {"PIL", "onnxruntime", "sklearn", "seqeval", "tokenizers", "transformers", "peft", "matplotlib",
         "huggingface_hub", "tqdm", "tyro", "scipy", "pandas", "onnx", "triton"}  # fmt: skip
OPPONENTS = {"transformers", "peft", "optimum", "accelerate", "datasets"}

ORDER = (
    ("lora_core.formats",),
    ("lora_core",),
    ("lora_core.extras", "lora_core.models"),
    ("lora_core.models.encoders",),
    ("lora_core.models.pretrained",),
    ("lora_core.kernels.cuda", "lora_core.kernels.native"),
    ("lora_core.kernels",),
    ("lora_core.export",),
    ("trainers.processes",),
    ("trainers.other_names",),
    ("trainers.config", "trainers.show"),
    ("trainers.run_folder",),
    ("trainers.data", "trainers.recipes"),
    ("trainers.data.spans",),
    ("trainers.data.tokens",),
    ("trainers.data.texts", "trainers.data.images"),
    ("trainers.convert", "trainers.model", "trainers.training"),
    ("trainers.tasks",),
    ("trainers.monitor",),
    ("trainers.loop", "trainers.inputs"),
    ("trainers.sharing",),
    ("trainers.experiment",),
    ("trainers.finished",),
    ("trainers.serve", "trainers.results", "trainers.corpus"),
    ("trainers.report", "trainers.predict"),
    ("trainers.service", "trainers.series"),
    ("trainers.notebook",),
    ("trainers.commands",),
    ("trainers.cli",),
    ("trainers.__main__",),
)
"""The rooms from the ground up: folders, and the single files of trainers/. A room may import those on lower floors."""
FLOOR = {room: number for number, rooms in enumerate(ORDER) for room in rooms}
FACES = {"lora_core", "lora_core.models", "trainers"}
"""Packages whose own `__init__` shows what lies above it."""
MOST_FILES = 15


def module_name(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def sources(folder):
    found = sorted((ROOT / folder).rglob("*.py"))
    assert found, folder
    return found


MODULES = {module_name(path): path for folder in ("lora_core", "trainers") for path in sources(folder)}


def imported_names(path):
    """Dotted names that a file imports, wherever in it the import stands, each with its name in the module."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import; name the package"
            assert node.module
            yield from ((node.module, alias.name) for alias in node.names)


def imported(path):
    """Top-level packages that a file imports."""
    return {name.split(".")[0] for name, _ in imported_names(path)}


def neighbours(module):
    """Files of this project that a module imports."""
    names = {
        f"{name}.{inner}" if f"{name}.{inner}" in MODULES else name for name, inner in imported_names(MODULES[module])
    }
    return (names & MODULES.keys()) - {module}


def room(module):
    """The room that a module lies in: its folder, or for a single file of trainers/ itself."""
    package = module if MODULES[module].name == "__init__.py" else module.rpartition(".")[0]
    return module if package == "trainers" else package


@pytest.mark.parametrize(
    ("folder", "forbidden"),
    [
        ("lora_core", {"trainers", "examples", "benchmarks", "tests"} | OPPONENTS),
        ("trainers", {"examples", "benchmarks", "tests"} | OPPONENTS),
        ("examples", {"benchmarks", "tests"} | OPPONENTS),
    ],
)
def test_imports_point_one_way(folder, forbidden):
    wrong = {str(path.relative_to(ROOT)): names for path in sources(folder) if (names := forbidden & imported(path))}
    assert not wrong


def test_rooms_import_lower_floors_only():
    places = {module: room(module) for module in MODULES if module not in FACES}
    assert set(places.values()) == set(FLOOR), "a room is missing in ORDER, or is gone"
    wrong = [
        f"{module} (floor {FLOOR[places[module]]}) imports {other} (floor {FLOOR[places[other]]})"
        for module in places
        for other in sorted(neighbours(module) - FACES)
        if places[other] != places[module] and FLOOR[places[other]] >= FLOOR[places[module]]
    ]
    assert not wrong


def test_no_circle_between_files():
    try:
        TopologicalSorter({module: neighbours(module) for module in MODULES}).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


@pytest.mark.parametrize("folder", sorted({path.parent for path in MODULES.values()}), ids=lambda path: path.name)
def test_a_folder_has_a_face_and_at_most_15_files(folder):
    doc = ast.get_docstring(ast.parse((folder / "__init__.py").read_text(encoding="utf-8")))
    assert (folder / "README.md").is_file() or (doc and len(doc) > 60)
    assert len(list(folder.glob("*.py"))) <= MOST_FILES


def test_tests_mirror_the_rooms():
    """tests/a/b/test_c.py and test_c_more.py test a/b/c.py; test_b.py its face."""
    strangers = []
    for path in itertools.chain(sources("tests/lora_core"), sources("tests/trainers")):
        name = re.fullmatch(r"test_(.+)\.py", path.name)
        if not name:
            continue
        folder = ROOT / path.parent.relative_to(ROOT / "tests")
        if name[1] == folder.name:
            continue
        words = name[1].split("_")
        stems = ["_".join(words[:count]) for count in range(1, len(words) + 1)]
        if not any((folder / f"{stem}.py").is_file() or (folder / stem / "__init__.py").is_file() for stem in stems):
            strangers.append(str(path.relative_to(ROOT)))
    assert not strangers


def test_lora_files_need_torch_and_safetensors_only():
    allowed = {"torch", "safetensors", "lora_core", *sys.stdlib_module_names}
    for path in sources("lora_core"):
        if path.relative_to(ROOT).parts[1] not in ("models", "export"):
            own = {"triton"} if path.stem == "triton_kernels" else set()  # imported on the GPUs that it is for
            assert imported(path) <= allowed | own, path


@pytest.mark.parametrize("module", ["lora_core", "lora_core.models", "trainers.cli"])
def test_what_an_import_brings_along(module):
    # torch itself imports what it finds (tqdm, for one), so only what comes on top of it counts.
    first = "torch" if module.startswith("lora_core") else "tyro, tomli"
    code = f"import sys, {first}; before = set(sys.modules); import {module}; print(*set(sys.modules) - before)"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    brought = {name.split(".")[0] for name in done.stdout.split()}
    assert module.split(".")[0] in brought
    assert not brought & HEAVY
    if module == "lora_core":
        assert brought - sys.stdlib_module_names <= {"lora_core", "safetensors", "torch", "packaging"}
    if module == "trainers.cli":
        assert "torch" not in brought  # so that --help and a mistyped flag answer at once
