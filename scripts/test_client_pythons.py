"""Installs the client alone under each Python that is here, and runs its tests.

    python scripts/test_client_pythons.py [--numpy VERSION] [PYTHON ...]

Without PYTHON it takes python3.9 to python3.14 from the PATH; those that are not there are named.
Runs under the system's own Python, so it uses the standard library only.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

ROOT = Path(__file__).parents[1]
ENVIRONMENTS = ROOT / "build" / "pythons"
NAMES = [f"python3.{minor}" for minor in range(9, 15)]
TEST_PACKAGES = ["pytest>=8.3", "pytest-timeout>=2.3", "hypothesis>=6.100", "trustme>=1.2"]
# What texts come in, a progress bar and traces: the client knows them without needing them.
TEST_PACKAGES += ["pandas", "polars", "pyarrow", "tqdm", "opentelemetry-sdk"]
# The integrations need their libraries, which have Pythons of their own.
TESTS = ["tests/client", "--ignore", "tests/client/integrations"]
INSTALL_LIMIT_S = 900
TESTS_LIMIT_S = 1800
COLUMNS = ["Python", "numpy", "grpcio", "tritonclient", "passed", "failed", "skipped"]


def version_of(python: str) -> str | None:
    """The version of an interpreter, or None where there is none by this name."""
    path = shutil.which(python)
    if path is None:
        return None
    code = "import platform; print(platform.python_version())"
    done = subprocess.run([path, "-c", code], capture_output=True, text=True, timeout=60)
    return done.stdout.strip() if done.returncode == 0 else None  # a version manager's shim


def install(python: str, environment: Path, numpy: str | None) -> dict[str, str]:
    """Make an environment as a user would; return the versions of what is in it.

    Raises:
        subprocess.CalledProcessError: The client cannot be installed there.
    """
    subprocess.run([python, "-m", "venv", "--clear", environment], check=True, timeout=120)
    pip = [environment / "bin" / "python", "-m", "pip", "--disable-pip-version-check"]

    def add(*what: str) -> None:
        command = [*pip, "install", "--quiet", *what]
        subprocess.run(command, cwd=ROOT, check=True, timeout=INSTALL_LIMIT_S)

    wanted = [f"numpy=={numpy}"] if numpy else []
    add("--only-binary", "numpy", ".", *wanted)  # it is not compiled where it has no wheel
    listed = subprocess.run(
        [*pip, "list", "--format", "json"], check=True, capture_output=True, timeout=60
    )
    versions = {entry["name"].lower(): entry["version"] for entry in json.loads(listed.stdout)}
    if "torch" in versions:
        sys.exit("the client alone has brought torch")
    packages = [*TEST_PACKAGES, f"numpy=={versions['numpy']}"]
    if versions["numpy"].startswith("1."):
        packages.append("pyarrow<24")  # later ones want numpy 2 and do not say so to pip
    add("--only-binary", ":all:", *packages)
    return versions


def run_tests(environment: Path) -> dict[str, int]:
    """Run the client's tests; return how many passed, failed and were skipped."""
    report = environment / "report.xml"
    command = [environment / "bin" / "pytest", *TESTS, "--quiet", f"--junitxml={report}"]
    command += ["-p", "no:cacheprovider"]
    subprocess.run(command, cwd=ROOT, timeout=TESTS_LIMIT_S)
    if not report.exists():
        return {"passed": 0, "failed": 1, "skipped": 0}
    (suite,) = ET.parse(report).getroot()  # noqa: S314 - pytest's own
    count = {name: int(suite.get(name, 0)) for name in ("tests", "failures", "errors", "skipped")}
    failed = count["failures"] + count["errors"]
    passed = count["tests"] - failed - count["skipped"]
    return {"passed": passed, "failed": failed, "skipped": count["skipped"]}


def main() -> int:
    """Return 0 when every test passed or was skipped under every Python."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("pythons", nargs="*", metavar="PYTHON", default=NAMES)
    parser.add_argument("--numpy", metavar="VERSION", help="for example 1.26.4; default: newest")
    arguments = parser.parse_args()
    rows = []
    for python in arguments.pythons:
        version = version_of(python)
        if version is None:
            print(f"{python} is not here", file=sys.stderr)
            continue
        print(f"Python {version}", flush=True)
        environment = ENVIRONMENTS / version
        versions = install(python, environment, arguments.numpy)
        rows.append({"Python": version, **versions, **run_tests(environment)})
    print("\n| " + " | ".join(COLUMNS) + " |\n|" + "---|" * len(COLUMNS))
    for row in rows:
        print("| " + " | ".join(str(row[column]) for column in COLUMNS) + " |")
    return 0 if rows and not any(row["failed"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
