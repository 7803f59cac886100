"""How the CPU library is compiled, found current and loaded: in copies, with a stand-in for g++.

The stand-in answers as g++ does and links a library of one function, in no time; it refuses
``-Werror``, which is for our tests, not for a user's compiler.
"""

import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import torch
from bertron_kernels import build as build_module
from bertron_kernels.build import BuildError, build
from bertron_kernels.native import LIBRARY, digest_of, digest_of_sources, read_note

ROOT = Path(__file__).parents[2]
PACKAGE = Path(build_module.__file__).parent
GXX = shutil.which("g++")
MAKE = shutil.which("make")
ADVICE = "python -m bertron_kernels.build"

needs_gxx = pytest.mark.skipif(GXX is None, reason="g++ is not installed")
needs_avx2 = pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"), reason="no AVX2"
)


def test_what_is_tested_is_the_library_of_these_sources():
    try:
        build_module._compiler()
    except BuildError as error:
        pytest.skip(str(error))
    assert read_note(LIBRARY).get("sources") == digest_of_sources(), ADVICE


def linked(path, source):
    command = [GXX, "-shared", "-fPIC", "-x", "c++", "-", "-o", str(path)]
    subprocess.run(command, input=source, text=True, check=True, timeout=60)
    return path


@pytest.fixture(scope="module")
def working(tmp_path_factory):
    """What the stand-in links."""
    source = 'extern "C" const char* bertron_cpu_kernels() { return "avx2"; }'
    return linked(tmp_path_factory.mktemp("working") / "lib.so", source)


@pytest.fixture(scope="module")
def foreign(tmp_path_factory):
    return linked(tmp_path_factory.mktemp("foreign") / "lib.so", "int answer() { return 42; }")


@pytest.fixture(scope="module")
def deadly(tmp_path_factory):
    """As one whose file was cut off: the process that loads it ends."""
    source = "#include <cstdlib>\n__attribute__((constructor)) void end() { abort(); }"
    return linked(tmp_path_factory.mktemp("deadly") / "lib.so", source)


@pytest.fixture
def compiler(tmp_path, working):
    """A folder for the PATH, by version and by what goes before each compilation."""

    def made(version="12.2.0", before=":"):
        folder = Path(tempfile.mkdtemp(dir=tmp_path))
        script = folder / "g++"
        script.write_text(f"""#!/bin/sh
case "$*" in
    -dumpversion) [ {version} != unknown ] && echo {version}; exit ;;
    *-Werror*) echo "a warning of this version" >&2; exit 1 ;;
esac
{before}
for last; do :; done
case "$*" in
    *-shared*) cp {working} "$last" ;;
    *) : > "$last" ;;
esac
""")
        script.chmod(0o755)
        return f"{folder}:/usr/bin:/bin"

    return made


NO_COMPILER = "/nowhere"


class Checkout:
    """A copy of the package, without a library."""

    def __init__(self, root):
        self.root = root
        self.package = root / "bertron_kernels"
        left_out = shutil.ignore_patterns("lib", "__pycache__")
        shutil.copytree(PACKAGE, self.package, ignore=left_out)

    @property
    def library(self):
        return self.package / "lib" / "libbertron_cpu.so"

    def start(self, *arguments, path, **environment):
        variables = {"BERTRON_CPU_KERNELS": "", "BERTRON_CPU_LIBRARY": "", **environment}
        return subprocess.Popen(
            [sys.executable, *arguments],
            env={**os.environ, "PATH": path, "PYTHONPATH": str(self.root), **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def build(self, path, **environment):
        """The exit status and what it says."""
        process = self.start("-m", "bertron_kernels.build", path=path, **environment)
        _, said = process.communicate(timeout=120)
        return process.returncode, said

    def imported(self, **environment):
        """What the CPU runs, and what importing says."""
        program = "import bertron_kernels; print(bertron_kernels.implementation('cpu'))"
        process = self.start("-c", program, path=NO_COMPILER, **environment)
        out, said = process.communicate(timeout=120)
        return out.strip(), said

    def install(self, library):
        """Put ``library`` in place of what was built."""
        self.library.parent.mkdir(exist_ok=True)
        shutil.copy(library, self.library)

    def change_a_source(self):
        with (self.package / "csrc" / "ops.cpp").open("a") as file:
            file.write("// changed\n")


@pytest.fixture
def checkout(tmp_path):
    return Checkout(tmp_path / "checkout")


@pytest.fixture
def built(checkout, compiler, monkeypatch):
    """A copy with what the stand-in links."""
    with monkeypatch.context() as patch:
        patch.setenv("PATH", compiler())
        assert build(checkout.library, tried=False)
    return checkout


@needs_gxx
@needs_avx2
def test_it_is_compiled_once_and_serves(checkout, compiler):
    assert checkout.imported() == ("eager", "")
    status, said = checkout.build(compiler())
    assert (status, said[:30]) == (0, "libbertron_cpu.so compiled in ")
    assert checkout.build(NO_COMPILER) == (0, "libbertron_cpu.so is up to date\n")
    assert checkout.imported() == ("avx2", "")
    assert sorted(path.name for path in checkout.library.parent.iterdir()) == [
        "libbertron_cpu.so",
        "libbertron_cpu.txt",
    ]


@needs_gxx
def test_a_checkout_that_was_moved_is_up_to_date(built):
    moved = Checkout.__new__(Checkout)
    moved.root = built.root.rename(built.root.with_name("moved"))
    assert moved.build(NO_COMPILER) == (0, "libbertron_cpu.so is up to date\n")


@needs_gxx
@needs_avx2
@pytest.mark.parametrize(
    ("what", "is_recorded"),
    # As if a compiler, or another PyTorch, had left it so; or put there since.
    [("deadly", True), ("deadly", False), ("foreign", True)],
)
def test_a_library_that_does_not_load_is_built_again(built, compiler, request, what, is_recorded):
    built.install(request.getfixturevalue(what))
    if is_recorded:
        lines = read_note(built.library) | {"library": digest_of(built.library)}
        note = "".join(f"{name} {value}\n" for name, value in lines.items())
        built.library.with_suffix(".txt").write_text(note)
    if (what, is_recorded) != ("deadly", True):
        chosen, said = built.imported()
        assert chosen == "eager", said
        assert "libbertron_cpu.so does not load, PyTorch's operators serve: " in said
        assert f"build it again with {ADVICE}\n" in said
    # Also for who has asked for what it does not offer.
    status, said = built.build(compiler(), BERTRON_CPU_KERNELS="avx2")
    assert (status, said[:30]) == (0, "libbertron_cpu.so compiled in ")
    assert digest_of(built.library) == read_note(built.library)["library"]


@needs_gxx
@needs_avx2
def test_without_a_compiler_it_says_what_serves(built, foreign):
    needed = "g++ is not installed, GCC 11 or newer is needed (Debian: apt-get install g++)\n"
    not_built = "The CPU library was not built, "
    built.change_a_source()
    assert built.build(NO_COMPILER) == (1, f"{not_built}the one before serves on: {needed}")
    chosen, said = built.imported()
    assert chosen == "avx2"
    assert said.count("RuntimeWarning") == 1
    assert "libbertron_cpu.so serves, but was built from other sources than " in said
    assert f"build it again with {ADVICE}\n" in said
    built.install(foreign)
    assert built.build(NO_COMPILER) == (1, f"{not_built}PyTorch's operators serve: {needed}")


@needs_gxx
@needs_avx2
def test_other_sources_are_no_matter_without_sources_or_with_another_library(built, working):
    built.change_a_source()
    assert built.imported(BERTRON_CPU_LIBRARY=str(working)) == ("avx2", "")
    shutil.rmtree(built.package / "csrc")  # as a package may be installed
    assert built.imported() == ("avx2", "")
    status, said = built.build(NO_COMPILER)
    assert (status, said.count("\n")) == (1, 1)
    assert "there are no sources in " in said


def test_instructions_asked_for_without_a_library_are_an_error(checkout):
    chosen, said = checkout.imported(BERTRON_CPU_KERNELS="avx2")
    assert chosen == ""
    assert "BERTRON_CPU_KERNELS is 'avx2', but the library does not load: " in said
    assert f"build it with {ADVICE}" in said


@needs_gxx
@pytest.mark.parametrize("version", ["10.2.1", "4.9", "unknown"])
def test_a_compiler_that_is_too_old_is_told(tmp_path, compiler, monkeypatch, version):
    monkeypatch.setenv("PATH", compiler(version))
    with pytest.raises(BuildError, match=rf"^\S+ is of version {version}, GCC 11 or newer is nee"):
        build(tmp_path / "lib.so")


@needs_gxx
def test_where_it_cannot_be_written_that_is_told(tmp_path, compiler, monkeypatch):
    monkeypatch.setenv("PATH", compiler())
    (tmp_path / "lib").write_text("")
    with pytest.raises(BuildError, match=r"File exists: .*/lib'$"):
        build(tmp_path / "lib" / "lib.so")


@needs_gxx
def test_a_compiler_that_does_not_end_is_told(tmp_path, compiler, monkeypatch):
    monkeypatch.setenv("PATH", compiler(before="exec sleep 5"))
    monkeypatch.setattr(build_module, "COMPILE_TIMEOUT_S", 0.2)
    with pytest.raises(BuildError, match=r"g\+\+ took longer than 0.2 s"):
        build(tmp_path / "lib.so", instruction_sets={"team.cpp": []})
    assert not list(tmp_path.glob(".lib.so-*"))


@needs_gxx
def test_a_library_that_does_not_end_loading_is_none(tmp_path, compiler, monkeypatch):
    monkeypatch.setenv("PATH", compiler())
    monkeypatch.setattr(build_module, "LOAD_TIMEOUT_S", 0.01)
    with pytest.raises(BuildError, match=r"does not load: it was not loaded after 0\.01 s"):
        build(tmp_path / "lib.so", instruction_sets={"team.cpp": []})
    assert not (tmp_path / "lib.so").exists()


@needs_gxx
def test_a_note_that_is_no_text_is_no_note(tmp_path, compiler, monkeypatch):
    monkeypatch.setenv("PATH", compiler())
    library = tmp_path / "lib.so"
    library.write_text("no library")
    library.with_suffix(".txt").write_bytes(b"library \xff\xfe\nsources \xff")
    assert build(library)
    assert not build(library)


@needs_gxx
def test_what_a_killed_build_left_is_swept_and_a_running_one_is_let_be(
    checkout, compiler, monkeypatch
):
    killed = checkout.start("-m", "bertron_kernels.build", path=compiler(before="exec sleep 3"))
    folder = checkout.library.parent
    deadline = time.monotonic() + 60
    while not list(folder.glob(".libbertron_cpu.so-*/")):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    killed.terminate()
    killed.communicate(timeout=60)
    (left,) = folder.iterdir()
    running = folder / ".libbertron_cpu.so-running"
    running.mkdir()
    descriptor = os.open(running, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    monkeypatch.setenv("PATH", compiler())
    assert build(checkout.library, tried=False)
    os.close(descriptor)
    assert not left.exists()
    assert running.exists()
    assert not build(checkout.library, tried=False)
    assert not running.exists()


@pytest.fixture
def make(tmp_path, checkout):
    """Runs the Makefile's rule for the library: what it says, and whether it counts as built."""
    root = tmp_path / "made"
    (root / ".venv/bin").mkdir(parents=True)
    (root / "scripts").mkdir()
    shutil.copy(ROOT / "Makefile", root)
    for name in ("pyproject.toml", "constraints.txt", "scripts/check_machine.py"):
        (root / name).touch()
    (root / "kernels").symlink_to(checkout.root)
    python = root / ".venv/bin/python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH={checkout.root} exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    (root / ".venv/.installed").touch()
    target = Path("kernels/bertron_kernels/lib/.built")

    def run(path):
        done = subprocess.run(
            [MAKE, str(target)],
            cwd=root,
            env={**os.environ, "PATH": path, "BERTRON_CPU_KERNELS": "", "BERTRON_CPU_LIBRARY": ""},
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        )
        return done.stderr, (root / target).exists()

    return run


@needs_gxx
@needs_avx2
@pytest.mark.skipif(MAKE is None, reason="make is not installed")
def test_make_goes_on_without_the_library_and_tries_again(
    make, checkout, compiler, tmp_path, working
):
    said, counts = make(compiler(before="echo no such option >&2; exit 1"))
    assert "The CPU library was not built, PyTorch's operators serve: " in said
    assert "no such option" in said
    assert not counts
    path = compiler()
    assert make(path)[1]
    assert make(path) == ("", True)
    # An old library and no compiler.
    checkout.change_a_source()
    (checkout.library.parent / ".built").unlink()
    bare = tmp_path / "bare"
    bare.mkdir()
    for tool in ("touch", "sh", "bash", "sed"):
        (bare / tool).symlink_to(shutil.which(tool))
    said, counts = make(str(bare))
    assert "was not built, the one before serves on: g++ is not installed" in said
    assert not counts
