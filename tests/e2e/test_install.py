"""What people install: the wheel carries its configs and data, and works from any folder."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import yaml

from tests.e2e.conftest import Workspace

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
