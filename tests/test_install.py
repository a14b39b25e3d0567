"""Both kinds of install, into throw-away environments, used from the checkout's root and from elsewhere."""

from __future__ import annotations

import os
import shutil
import subprocess
import sysconfig
import textwrap
import tomllib
import venv
from dataclasses import dataclass
from pathlib import Path

import pytest

import metarl

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ("metarl", "envs", "agents")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


@dataclass(frozen=True)
class Install:
    """An environment with MetaRL in it, installed from a copy of the checkout."""

    checkout: Path
    elsewhere: Path
    python: Path

    def run(self, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
        env = {
            key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "PYTEST", "PIP_TARGET"))
        }
        return subprocess.run([self.python, *arguments], cwd=cwd, env=env, capture_output=True, text=True, timeout=120)

    def prints(self, code: str, *, cwd: Path) -> str:
        result = self.run("-c", textwrap.dedent(code), cwd=cwd)
        assert result.returncode == 0, result.stderr
        return result.stdout.strip()


def install(folder: Path, *options: str) -> Install:
    checkout, elsewhere, environment = folder / "checkout", folder / "elsewhere", folder / "environment"
    elsewhere.mkdir()
    for name in SOURCES:
        shutil.copytree(ROOT / name, checkout / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "LICENSE", "README.md"):
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, checkout)
    venv.create(environment, symlinks=True)
    python = environment / "bin" / "python"
    site = sysconfig.get_path("purelib", "venv", vars={"base": str(environment), "platbase": str(environment)})
    # The packages of the running environment (torch, pip, setuptools) are used, but not its MetaRL: Python ignores .pth
    # files in a folder that a .pth file names.
    Path(site, "lent.pth").write_text(sysconfig.get_path("purelib") + "\n")
    built = Install(checkout, elsewhere, python)
    pip = ("-m", "pip", "install", "--quiet", "--ignore-installed", "--no-deps", "--no-build-isolation", "--no-index")
    result = built.run(*pip, *options, str(checkout), cwd=elsewhere)
    assert result.returncode == 0, result.stderr
    return built


@pytest.fixture(scope="module")
def editable(tmp_path_factory: pytest.TempPathFactory) -> Install:
    return install(tmp_path_factory.mktemp("editable"), "--editable")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Install:
    return install(tmp_path_factory.mktemp("plain"))


LOCATIONS = """
    import metarl, metarl.agents, metarl.envs
    print(metarl.__file__, metarl.agents.__file__, metarl.envs.__file__, sep="\\n")
"""


@pytest.mark.parametrize("place", ["checkout", "elsewhere"])
def test_an_editable_install_imports_the_checkout_from_anywhere(editable: Install, place: str) -> None:
    files = editable.prints(LOCATIONS, cwd=getattr(editable, place)).splitlines()
    assert files == [str(editable.checkout / folder / "__init__.py") for folder in ("metarl", "agents", "envs")]


def test_a_plain_install_imports_itself_from_elsewhere(plain: Install) -> None:
    files = plain.prints(LOCATIONS, cwd=plain.elsewhere).splitlines()
    assert [Path(file).relative_to(files[0].removesuffix("/__init__.py")) for file in files] == [
        Path("__init__.py"),
        Path("agents/__init__.py"),
        Path("envs/__init__.py"),
    ]
    assert not files[0].startswith(str(plain.checkout))


@pytest.mark.parametrize("statement", ["import metarl.envs", "from metarl import agents", "import metarl"])
def test_a_plain_install_says_why_it_fails_at_the_checkouts_root(plain: Install, statement: str) -> None:
    result = plain.run("-c", statement, cwd=plain.checkout)
    last_line = result.stderr.strip().splitlines()[-1]
    assert result.returncode == 1
    assert last_line.startswith(f"ImportError: the checkout {plain.checkout} comes before the installed metarl")
    assert "pip install -e ." in last_line


def test_a_plain_install_ships_every_source_file(plain: Install) -> None:
    shipped = Path(plain.prints("import metarl; print(metarl.__path__[0])", cwd=plain.elsewhere))
    for name in SOURCES:
        target = shipped if name == "metarl" else shipped / name
        for source in (plain.checkout / name).rglob("*"):
            if source.suffix in {".py", ".toml", ".typed"}:
                assert (target / source.relative_to(plain.checkout / name)).is_file(), source


@pytest.mark.parametrize("kind", ["editable", "plain"])
def test_the_recorded_version_is_the_imported_one(kind: str, request: pytest.FixtureRequest) -> None:
    built: Install = request.getfixturevalue(kind)
    code = "import importlib.metadata as m, metarl; print(m.version('metarl-toolkit'), metarl.__version__)"
    assert built.prints(code, cwd=built.elsewhere) == f"{metarl.__version__} {metarl.__version__}"


@pytest.mark.parametrize("place", ["checkout", "elsewhere"])
def test_pytest_collects_and_pickles_under_an_editable_install(editable: Install, place: str) -> None:
    folder: Path = getattr(editable, place)
    (editable.checkout / "agents" / "sample.py").write_text("class Sample:\n    pass\n")
    (folder / "test_sample.py").write_text(
        textwrap.dedent(
            """
            import pickle

            from metarl.agents.sample import Sample

            def test_pickle():
                data = pickle.dumps(Sample())
                assert b"metarl.agents.sample" in data
                assert type(pickle.loads(data)) is Sample
            """
        )
    )
    result = editable.run("-m", "pytest", "-q", "-p", "no:cacheprovider", "test_sample.py", cwd=folder)
    assert result.returncode == 0, result.stdout + result.stderr


def test_constraints_pin_every_dependency_of_the_core_and_of_dev() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    assert lines[1:] == sorted(lines[1:], key=str.casefold)
    pinned = {line.split("==")[0].lower().replace("_", "-") for line in lines[1:]}
    extras = PROJECT["project"]["optional-dependencies"]
    wanted = [*PROJECT["project"]["dependencies"], *extras["dev"]]
    assert {requirement.split(">=")[0] for requirement in wanted} <= pinned
