"""What `pip install` gives: the wheel, built from the sdist, in an environment and a folder where nothing else is."""

import os
import re
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest
import torch
from conftest import PYTHON, REPOSITORY, call, clean_environment, read_lines
from PIL import Image

import mnist_dist
from mnist_dist.scripts import load_script

STRANGER = 'raise SystemExit("this train.py is a stranger\'s")\n'


def test_the_version_has_one_source_and_the_citation_says_the_same():
    assert f"\nversion: {mnist_dist.__version__}\n" in (REPOSITORY / "CITATION.cff").read_text()
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    assert "version" in project["dynamic"] and "version" not in project
    first = re.search(r"^## (\S+)", (REPOSITORY / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert first and first[1] == mnist_dist.__version__


def test_scripts_are_loaded_by_file_and_once(tmp_path, monkeypatch):
    (tmp_path / "train.py").write_text(STRANGER)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    script = load_script("train")
    assert script is load_script("train")
    assert script.__file__ and Path(script.__file__) == REPOSITORY / "train.py"


def test_importing_the_package_never_ends_the_interpreter():
    done = call(
        PYTHON, "-c", "import mnist_dist; print(mnist_dist.__version__)", TQDM_MININTERVAL="abc"
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{mnist_dist.__version__}\n", "")


def test_commands_are_listed_and_an_unknown_one_is_refused():
    done = call(PYTHON, "-m", "mnist_dist", "--help")
    assert done.returncode == 0 and "  train " in done.stdout and "  verify " in done.stdout
    assert (
        call(PYTHON, "-m", "mnist_dist", "--version").stdout
        == f"mnist-dist {mnist_dist.__version__}\n"
    )
    done = call(PYTHON, "-m", "mnist_dist", "trian")
    assert (
        done.returncode == 2
        and "there is no command 'trian': give one of train, evaluate, " in done.stderr
    )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, which is built from the sdist, and not from the repository."""
    folder = tmp_path_factory.mktemp("dist")
    done = call(PYTHON, "-m", "build", "--outdir", folder, REPOSITORY)
    assert done.returncode == 0, done.stderr
    (found,) = folder.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """Calls commands of an environment that has the wheel, in a folder with a `train.py` of its own.

    The dependencies are those of the environment that runs the tests, which would take minutes to install: their folder
    is on the path, but not this project, for `.pth` files there are not read.
    """
    root = tmp_path_factory.mktemp("installed")
    venv.create(root / "venv")
    python = root / "venv" / "bin" / "python"
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(root / "venv")}))
    (packages / "dependencies.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "--python",
            python,
            "install",
            "-q",
            "--no-deps",
            "--no-index",
            wheel,
        ],
        check=True,
    )
    folder = root / "work"
    folder.mkdir()
    for name in ("train.py", "evaluate.py"):
        (folder / name).write_text(STRANGER)

    def run(*words: str, status: int = 0) -> str:
        environment = clean_environment(PATH=f"{python.parent}{os.pathsep}{os.environ['PATH']}")
        environment.pop("PYTHONPATH", None)
        done = subprocess.run(
            words, cwd=folder, env=environment, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout

    run.folder = folder  # type: ignore[attr-defined]
    return run


@pytest.mark.slow
def test_the_wheel_holds_what_the_commands_need_and_no_more(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    modules = {
        str(path.relative_to(REPOSITORY)) for path in (REPOSITORY / "mnist_dist").rglob("*.py")
    }
    scripts = {"mnist_dist/scripts/train.py", "mnist_dist/scripts/evaluate.py"}
    rest = {name for name in names - modules - scripts if ".dist-info/" not in name}
    of_pages = (REPOSITORY / "mnist_dist" / "report" / "page").iterdir()
    pages = {str(path.relative_to(REPOSITORY)) for path in of_pages}
    assert modules | scripts <= names and rest == {"mnist_dist/py.typed"} | pages


@pytest.mark.slow
def test_the_installed_package_trains_evaluates_predicts_and_exports(installed):
    where = installed("python", "-c", "import mnist_dist; print(mnist_dist.__file__)")
    assert Path(where.strip()).is_relative_to(installed.folder.parent / "venv")
    words = "--dataset mnist-5k --epochs 1 --cpu --wandb disabled --output-dir runs/mine"
    said = installed("mnist-dist", "train", *words.split())
    assert "Test Accuracy: " in said and "evaluate: mnist-dist evaluate runs/mine" in said
    (line,) = read_lines(installed.folder / "runs" / "mine" / "metrics.jsonl")
    assert line["test_accuracy"] > 0.7
    assert f"Test Accuracy: {100 * line['test_accuracy']:.2f}%" in installed(
        "python", "-m", "mnist_dist", "evaluate", "runs/mine", "--cpu"
    )
    Image.new("L", (28, 28), 0).save(installed.folder / "digit.png")
    picture = Image.new("L", (100, 100), 255)
    picture.paste(0, (45, 15, 55, 85))  # a one
    picture.save(installed.folder / "digit.png")
    assert "digit.png" in installed("mnist-dist", "predict", "digit.png")
    installed("mnist-dist", "export", "runs/mine", "--format", "safetensors")
    assert "mine" in installed("mnist-dist", "runs")
    torch.load(installed.folder / "runs" / "mine" / "mnist_model.pth", weights_only=True)


@pytest.mark.slow
def test_the_installed_package_verifies_on_one_process_and_on_two(installed):
    said = installed("mnist-dist", "verify", "--cpu")
    assert "FAIL" not in said and "PASS  gradient" in said
    launch = (
        "python -m torch.distributed.run --standalone --nproc-per-node 2 -m mnist_dist verify --cpu"
    )
    said = installed(*launch.split())
    assert "FAIL" not in said and "PASS  gradient" in said
