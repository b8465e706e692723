"""What people install: the wheel carries its configs and data, and works from any folder."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]


def test_wheel_works_from_another_folder(tmp_path: Path) -> None:
    uv = [sys.executable, "-m", "uv", "--quiet", "--offline"]
    subprocess.run(
        [*uv, "build", "--wheel", "--no-build-isolation", "--out-dir", tmp_path, ROOT], check=True, capture_output=True
    )
    wheel = next(tmp_path.glob("*.whl"))
    site = tmp_path / "site"
    subprocess.run([*uv, "pip", "install", "--no-deps", "--target", site, wheel], check=True)
    elsewhere = tmp_path / "else where"
    elsewhere.mkdir()
    # Before the checkout's editable install on the path, beside the locked environment.
    environment = os.environ | {"PYTHONPATH": str(site)}
    where = subprocess.run(
        [sys.executable, "-c", "import yi_tune; print(yi_tune.__file__)"],
        cwd=elsewhere,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert where.stdout.startswith(str(site))
    done = subprocess.run(
        [sys.executable, "-m", "yi_tune", "train", "--model", "nano", "--name", "N", "--author", "A", "--dry-run"],
        cwd=elsewhere,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    config = yaml.safe_load(done.stdout)
    assert config["model_name_or_path"] == str(site / "yi_tune" / "data" / "nano")
    assert "Note:" not in done.stderr
    names = zipfile.ZipFile(wheel).namelist()
    assert not [name for name in names if "test" in name or name.startswith(("bench", "docs"))]
    assert "yi_tune/serve/page/index.html" in names
