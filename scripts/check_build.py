"""Check the wheel and the sdist in a folder: that no file is missing, and that the wheel works; used by `make build`.

The wheel is installed into a new, empty virtual environment. The commands of the README that need no download are run
in that environment, offline and outside the repository.

    python scripts/check_build.py dist
"""

import os
import subprocess
import sys
import tarfile
import tempfile
import venv
import zipfile
from pathlib import Path


ROOT = Path(__file__).resolve().parents[1]
# Files, most of them not Python modules, that a wrong package-data pattern in pyproject.toml would drop silently.
IN_THE_WHEEL = (
    "janus_hf/py.typed",
    "janus_hf/generation/kernels/x86/cpu_kernels.cpp",
    "janus_hf/assets/janus-shapes/config.json",
    "janus_hf/assets/janus-shapes/model.safetensors",
    "janus_hf/assets/janus-shapes/tokenizer.json",
    "janus_hf_cli/__main__.py",
)
IN_THE_SDIST = (*(f"src/{name}" for name in IN_THE_WHEEL), "LICENSE", "README.md", "pyproject.toml")


def main(folder: Path) -> None:
    """Check the one wheel and the one sdist in a folder.

    Raises:
        SystemExit: If a file is missing from the wheel or the sdist, or a command of the installed wheel fails.
        ValueError: If the folder does not hold exactly one wheel and one sdist.
    """
    (wheel,), (sdist,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as archive:
        check_names(wheel, archive.namelist(), IN_THE_WHEEL)
    with tarfile.open(sdist) as archive:
        names = [name.partition("/")[2] for name in archive.getnames()]
        check_names(sdist, names, IN_THE_SDIST)
    with tempfile.TemporaryDirectory() as work:
        try_wheel(wheel.resolve(), Path(work))


def check_names(archive: Path, found: list[str], expected: tuple[str, ...]) -> None:
    """Exit with an error unless every expected file name is among the names found in an archive.

    Args:
        archive: Path of the archive, for the message.
        found: Names of all entries of the archive.
        expected: Names that the archive must contain.
    """
    if missing := sorted(set(expected) - set(found)):
        sys.exit(f"{archive} lacks {', '.join(missing)}: correct [tool.setuptools] in pyproject.toml.")
    print(f"{archive.name}: {len(found)} entries, nothing missing")


def try_wheel(wheel: Path, work: Path) -> None:
    """Install the wheel into a new virtual environment and run the `janus-hf` commands that need no download.

    Args:
        wheel: Absolute path of the wheel.
        work: Empty folder, in which the environment and the commands' output are created.

    Raises:
        SystemExit: If a command fails.
    """
    environment, place = work / "environment", work / "elsewhere"
    place.mkdir()
    venv.create(environment, with_pip=True)
    python = environment / "bin" / "python"
    # torch is installed first, as in the Makefile. If pip finds a CPU build of it, the wheel's dependencies use that.
    for package in ("torch", str(wheel)):
        subprocess.run([python, "-m", "pip", "install", "-q", package, "-c", ROOT / "constraints.txt"], check=True)
    offline = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {"HF_HUB_OFFLINE": "1"}
    image = "a-photo-of-a-red-circle-0.png"
    for arguments in (["--help"], ["draw", "a photo of a red circle"], ["ask", image, "what colour is the circle"]):
        command = [environment / "bin" / "janus-hf", *arguments]
        print("janus-hf", *arguments)
        result = subprocess.run(command, cwd=place, env=offline, capture_output=True, text=True)
        if result.returncode:
            sys.exit(f"exit status {result.returncode}\n{result.stdout}\n{result.stderr}")
        print("   ", result.stdout.strip().splitlines()[-1])


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
