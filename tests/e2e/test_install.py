"""What people install: the wheel carries its configs and data, and works from any folder; the image; the notebook."""

import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import yaml

from tests.e2e.conftest import Trained, Workspace

ROOT = Path(__file__).parents[2]


def test_wheel_works_from_another_folder(tmp_path: Path, workspace: Workspace) -> None:
    uv, site = [sys.executable, "-m", "uv", "--quiet", "--offline"], tmp_path / "site"
    build = ["build", "--wheel", "--no-build-isolation", "--out-dir", tmp_path, ROOT]
    subprocess.run([*uv, *build], check=True, capture_output=True)
    wheel = next(tmp_path.glob("*.whl"))
    subprocess.run([*uv, "pip", "install", "--no-deps", "--target", site, wheel], check=True)
    # Before the checkout's editable install on the path, beside the locked environment.
    done = workspace.train("--dry-run", env=os.environ | {"PYTHONPATH": str(site)})
    assert done.status == 0, done.err
    # From the wheel's own files, not the checkout's.
    assert yaml.safe_load(done.out)["model_name_or_path"] == str(site / "yi_tune" / "data" / "nano")
    assert "Note:" not in done.err
    names = zipfile.ZipFile(wheel).namelist()
    assert not [name for name in names if "test" in name or name.startswith(("bench", "docs"))]
    assert "yi_tune/serve/page/index.html" in names


def test_image_installs_what_is_locked() -> None:
    """No container is built here: each step is held against the files that it is about."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    steps = [line.split(maxsplit=1) for line in text.replace("\\\n", "").splitlines() if line and line[0] != "#"]
    by_word = {word: [rest for one, rest in steps if one == word] for word, _ in steps}
    # The oldest Python that yi-tune takes, which is the one that the lock is made for.
    python = project["project"]["requires-python"].removeprefix(">=")
    assert by_word["FROM"] == [f"python:{python}-slim-bookworm"]
    assert f"--universal --python-version {python}" in (ROOT / "Makefile").read_text(encoding="utf-8")
    build = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    copied = {name for line in by_word["COPY"] for name in line.split()[:-1]}
    needed = {"requirements.lock", "pyproject.toml", "src", *build["force-include"], project["project"]["readme"]}
    assert copied == needed | set(project["project"]["license-files"])
    kept = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert {line[1:] for line in kept if line[0] == "!"} == copied
    environment, package = by_word["RUN"]
    assert "uv pip sync --system --no-cache --require-hashes" in environment
    assert environment.endswith("requirements.lock")
    # The same uv as make's, which is a locked one.
    assert re.search(r"\$\(sed .*\)", environment)[0] in (ROOT / "Makefile").read_text("utf-8").replace("$$", "$")
    assert package.startswith("uv pip install --system --no-cache --no-deps --no-build-isolation ")
    assert json.loads(by_word["ENTRYPOINT"][0])[0] in project["project"]["scripts"]
    assert not re.search(r"https?:|--index|--extra-index", text)


def test_notebook_trains_and_chats(trained: Trained) -> None:
    notebook = json.loads((ROOT / "notebooks" / "yi-tune.ipynb").read_text(encoding="utf-8"))
    cells = notebook["cells"]
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    assert len({cell["id"] for cell in cells}) == len(cells)
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    assert not [cell for cell in cells if cell.get("outputs") or cell.get("execution_count")]
    assert "uv pip sync --quiet --python .venv-notebook --require-hashes requirements.lock" in code[0]
    commands = [shlex.split(line)[1:] for line in re.findall(r"^!(yi-tune .*)", "\n".join(code[1:]), re.MULTILINE)]
    assert [name for name, *_ in commands] == ["download", "train", "chat"]
    # With nano for the model. Training it is what the run here was made by.
    (_, *model), (_, *training), asking = commands
    assert not model
    assert training == ["--name", "小易", "--author", "李雷"]
    assert trained.yi_tune("download", "nano").status == 0
    assert "小易" in trained.yi_tune(*asking).out
    # A kernel's backend for plots is not in that environment, where matplotlib would not load with it.
    assert 'os.environ["MPLBACKEND"] = "agg"' in code[0]
