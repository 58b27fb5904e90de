"""Build fastnmf._C and fastnmf._cuda as FASTNMF_BUILD=auto|cpu|cuda|none says; the rest is in
pyproject.toml.

auto: what cannot be built is left out, and the reason in fastnmf/_C.missing or _cuda.missing. cpu:
without _cuda.
"""

import atexit
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from glob import glob
from itertools import product
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import BaseError, CCompilerError, CompileError

BUILD = os.environ.get("FASTNMF_BUILD") or "auto"
if BUILD not in ("auto", "cpu", "cuda", "none"):
    sys.exit(f"FASTNMF_BUILD={BUILD} is not known; use auto, cpu, cuda or none")

FLAGS = "-std=c++17 -O3 -g0 -fvisibility=hidden -fno-math-errno -ffp-contract=fast -fopenmp-simd"
# Apple's Clang comes without an OpenMP runtime: one thread there
OPENMP = ["-fopenmp"] if sys.platform == "linux" else []
# the kernels are compiled once for each; which of them run is decided when they run
ISAS = {"baseline": ""}
if X86 := sysconfig.get_platform().endswith(("-x86_64", "-amd64")):
    ISAS["avx2"] = "-mavx2 -mfma"
    ISAS["avx512"] = "-mavx512f -mavx512vl -mavx512dq -mavx512bw -mavx2 -mfma"
KERNELS = sorted({*glob("csrc/cpu/*.cpp")} - {"csrc/cpu/bindings.cpp"})
# machine code for these, and what a driver compiles for later GPUs
GPUS = "-gencode=arch=compute_80,code=sm_80 -gencode=arch=compute_90,code=[sm_90,compute_90]"
NVCC_FLAGS = f"-std=c++17 -O3 --threads=2 -Xcompiler=-fPIC,-fvisibility=hidden {GPUS}"
# the first that knows all of them
NVCC_VERSION = (11, 8)
# CUDA's runtime inside, and not to be mistaken for torch's
NVCC_LINK = "-shared -cudart=static -Xlinker=--exclude-libs=ALL"
SOURCES = {
    "_C": [("csrc/cpu/bindings.cpp", ""), *product(KERNELS, ISAS)],
    "_cuda": [("csrc/cuda/bindings.cpp", ""), ("csrc/cuda/nnls.cu", "")],
}
WANTED = {"auto": ["_C", "_cuda"], "cpu": ["_C"], "cuda": ["_C", "_cuda"], "none": []}[BUILD]
REASONS = (BaseError, CCompilerError, ImportError, OSError)


class BuildKernels(build_ext):
    def run(self):
        # setuptools builds elsewhere first, and copies
        self.here = self.inplace or self.editable_mode
        super().run()

    def build_extensions(self):
        self.commands, self.refused = {}, {}
        for ext in self.extensions:
            try:
                self.commands[ext.name] = self.plan(ext.name.removeprefix("fastnmf."))
            except REASONS as error:
                self.refused[ext.name] = self.unless_wanted(error)
        rules = f"builddir={self.build_temp}\nrule c\n command=$c\n deps=gcc\n"
        # nvcc takes longest: first
        plans = reversed(self.commands.values())
        for built, command in [each for plan in plans for each in plan.items()]:
            line, target = shlex.join(command).replace("$", "$$"), built.replace(" ", "$ ")
            rules += f"build {target}: c {command[-1]}\n depfile={target}.d\n c={line}\n"
        Path(self.build_temp).mkdir(parents=True, exist_ok=True)
        Path(self.build_temp, "build.ninja").write_text(rules)
        # all side by side; one that fails is tried again, and counts, with its extension
        self.ninja(["-k", "0"])
        super().build_extensions()

    def build_extension(self, ext):
        name = ext.name.removeprefix("fastnmf.")
        missing = Path("" if self.here else self.build_lib, "fastnmf", f"{name}.missing")
        missing.unlink(missing_ok=True)
        try:
            if ext.name in self.refused:
                raise self.refused[ext.name]
            self.compile(self.commands[ext.name])
            self.link(name, list(self.commands[ext.name]), self.get_ext_fullpath(ext.name))
        except REASONS as error:
            self.unless_wanted(error)
            missing.parent.mkdir(parents=True, exist_ok=True)
            missing.write_text(f"{error}\n")
            without = "compiled kernels (slower)" if name == "_C" else "the solver for CUDA"
            atexit.register(print, f"\n*** fastnmf is WITHOUT {without}: {error}\n")

    def unless_wanted(self, error):
        """The error, or an end to it all where the extension was requested."""
        if BUILD != "auto":
            raise CompileError(f"FASTNMF_BUILD={BUILD} is not possible: {error}") from error
        return error

    def plan(self, name):
        """Object → the command that compiles it, its source last."""
        import pybind11

        cuda = name == "_cuda"
        compiler = [nvcc()] if cuda else self.cxx()
        includes = [f"-I{path}" for path in [*self.compiler.include_dirs, pybind11.get_include()]]
        commands = {}
        for source, isa in SOURCES[name]:
            built = f"{self.build_temp}/{isa or name}/{Path(source).stem}.o"
            Path(built).parent.mkdir(parents=True, exist_ok=True)
            if cuda:
                flags = [*NVCC_FLAGS.split(), *includes]
            else:
                own = [f"-DFASTNMF_ISA={isa}"] if isa else [*OPENMP, *includes]
                flags = [*FLAGS.split(), *ISAS.get(isa, "").split(), *own]
                flags.append(f"-DFASTNMF_X86={X86:d}")
                # last, so that they count
                flags += shlex.split(os.environ.get("CXXFLAGS", ""))
            depends = ["-MMD", "-MF", f"{built}.d"]
            commands[built] = [*compiler, *flags, *depends, "-o", built, "-c", source]
        return commands

    def cxx(self):
        compiler = getattr(self.compiler, "compiler_so_cxx", [self.compiler.compiler_type])
        if not shutil.which(compiler[0]):
            raise CompileError(f"no C++ compiler ({compiler[0]}); GCC or Clang is needed")
        return compiler

    def compile(self, commands):
        if self.ninja(list(commands)):
            return
        for command in commands.values():
            if shutil.which("ninja") or subprocess.call(command):
                raise CompileError(f"{command[0]} failed, pip install -v shows why")

    def ninja(self, arguments):
        """Whether there is ninja, and all went well."""
        plan = f"{self.build_temp}/build.ninja"
        return shutil.which("ninja") and not subprocess.call(["ninja", "-f", plan, *arguments])

    def link(self, name, objects, path):
        if name == "_C":
            link = self.compiler.link_shared_object
            return link(objects, path, extra_postargs=OPENMP, target_lang="c++")
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        if subprocess.call([nvcc(), *NVCC_LINK.split(), *objects, "-o", path]):
            raise CompileError("nvcc failed to link, pip install -v shows why")


def nvcc():
    """The path of an nvcc that can be used."""
    path = shutil.which("nvcc")
    if path is None:
        raise CompileError("there was no nvcc to build it with")
    printed = subprocess.run([path, "--version"], capture_output=True, text=True, check=False)
    version = re.search(r"release (\d+)\.(\d+)", printed.stdout)
    if printed.returncode or version is None:
        lines = (printed.stderr or printed.stdout).strip().splitlines()
        raise CompileError(f"{path} does not work: {lines[-1] if lines else 'it prints nothing'}")
    if tuple(map(int, version.groups())) < NVCC_VERSION:
        raise CompileError(f"nvcc {version[1]}.{version[2]} is too old, 11.8 or later is needed")
    return path


depends = glob("csrc/**/*.h", recursive=True)
setup(
    ext_modules=[
        Extension(
            f"fastnmf.{name}",
            sorted({source for source, _ in SOURCES[name]}),
            depends=depends,
            optional=BUILD == "auto",
        )
        for name in WANTED
    ],
    cmdclass={"build_ext": BuildKernels},
)
