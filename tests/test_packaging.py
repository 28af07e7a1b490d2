"""What is installed is what lies in the folders: a package works in place and is easily left out of the wheel."""

import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("adapters", "bridge", "engine", "sorting")


def test_pyproject_names_every_package() -> None:
    found = {
        "neuromod." + ".".join(path.parent.relative_to(ROOT).parts)
        for folder in FOLDERS
        for path in (ROOT / folder).rglob("__init__.py")
    }
    named = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    assert set(named) == found


def test_the_wheel_holds_every_source_and_document(tmp_path: Path) -> None:
    # built from a copy: what setuptools leaves in build/ goes into every later wheel, also what was deleted since
    tree = tmp_path / "tree"
    tree.mkdir()
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, tree / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(tree)],
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        held = set(archive.namelist())
    wanted = {
        f"neuromod/{path.relative_to(ROOT).as_posix()}"
        for folder in FOLDERS
        for pattern in ("*.py", "*.md", "*.toml", "*.cpp", "*.h", "*.v", "*.xdc", "*.tcl", "py.typed")
        for path in (ROOT / folder).rglob(pattern)
    }
    about = {name for name in held if name.split("/")[0].endswith(".dist-info")}
    assert held - about == wanted
