"""What is installed is what is in the repository, under one import name."""

from __future__ import annotations

import pkgutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import featurestore
from featurestore.random_weights import random_weights
from featurestore.registry import write_named

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def project() -> dict[str, dict[str, object]]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_every_subpackage_is_in_the_wheels_list(project: dict) -> None:
    found = {
        module.name
        for module in pkgutil.walk_packages(featurestore.__path__, "featurestore.")
        if module.ispkg
    }
    assert {"featurestore", *found} == set(project["tool"]["setuptools"]["packages"])


def test_the_version_is_said_once_and_twice_the_same(project: dict) -> None:
    assert project["project"]["version"] == featurestore.__version__
    assert f"## {featurestore.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_public_names_resolve() -> None:
    for name in featurestore.__all__:
        assert getattr(featurestore, name) is not None


def test_imports_point_one_way() -> None:
    """cli -> benchmarks -> featurestore -> kernels, and kernels import nothing but JAX."""
    for path in (ROOT / "kernels").glob("*.py"):
        for line in path.read_text().splitlines():
            if line.startswith(("import ", "from ")):
                top = line.split()[1]
                allowed = (
                    "__future__",
                    "cmath",
                    "collections",
                    "dataclasses",
                    "functools",
                    "logging",
                    "typing",
                )
                allowed += ("math", "typing", "jax", "jaxtyping", "featurestore.kernels")
                assert top.startswith(allowed), f"{path.name}: {line}"
    for path in (ROOT / "featurestore").rglob("*.py"):
        if not {"benchmarks", "cli"} & set(path.relative_to(ROOT / "featurestore").parts):
            for above in ("featurestore.benchmarks", "featurestore.cli"):
                assert above not in path.read_text(), path
    for path in (ROOT / "benchmarks").glob("*.py"):
        assert "featurestore.cli" not in path.read_text(), path


def test_the_wheel_installs_one_import_name(tmp_path: Path) -> None:
    """Built from the sdist, unpacked beside a foreign `kernels`, it must not touch that one."""
    copy = tmp_path / "source"
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if listed.returncode:
        pytest.skip("not a git checkout, so there is nothing to say what belongs to the project")
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_symlink():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            (copy / name).symlink_to((ROOT / name).readlink())
        elif (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            (copy / name).write_bytes((ROOT / name).read_bytes())
    data = copy / "featurestore" / "data"
    if not (data / "default.safetensors").exists():  # not trained yet: something in its place
        write_named(random_weights(0), data / "default.safetensors", dtype="float16")
        (data / "default.md").write_text("# A model card\n")
    shipped = {path.name: path.read_bytes() for path in data.iterdir()}
    assert {"default.safetensors", "default.json", "default.md"} <= shipped.keys()
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(tmp_path / "dist")]
    subprocess.run([*build, str(copy)], check=True, capture_output=True)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    site = tmp_path / "site"
    (site / "kernels").mkdir(parents=True)
    (site / "kernels" / "__init__.py").write_text("OWNER = 'somebody else'\n")
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index"]
    subprocess.run([*install, "--target", str(site), str(wheel)], check=True, capture_output=True)
    tops = {path.name for path in site.iterdir() if not path.name.endswith(".dist-info")}
    assert tops <= {"featurestore", "kernels", "bin"}
    for name, content in shipped.items():
        assert (site / "featurestore" / "data" / name).read_bytes() == content, name
    assets = Path("featurestore", "report", "assets")
    for path in (ROOT / assets).glob("*.*"):
        assert (site / assets / path.name).read_bytes() == path.read_bytes(), path.name
    code = (
        f"import sys; sys.path.insert(0, {str(site)!r})\n"
        "import kernels, featurestore, featurestore.kernels, featurestore.cli\n"
        "import featurestore.benchmarks.suite, featurestore.cli.bench\n"
        "import featurestore.encoder\n"
        "assert kernels.OWNER == 'somebody else'\n"
        f"assert featurestore.kernels.__file__.startswith({str(site)!r})\n"
        "from featurestore.checkpoint import load_weights\n"
        "assert load_weights('default').fingerprint\n"
    )
    subprocess.run([sys.executable, "-I", "-c", code], check=True, cwd=tmp_path)
