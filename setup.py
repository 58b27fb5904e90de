"""Build fastnmf._C as FASTNMF_BUILD=auto|cpu|cuda|none says; everything else is in pyproject.toml.

auto: where it cannot be built, install without it and leave the reason in fastnmf/_C.missing.
"""

import atexit
import os
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
KERNELS = sorted(glob("csrc/*_cpu.cpp"))


class BuildKernels(build_ext):
    def build_extension(self, ext):
        missing = Path("" if self.editable_mode else self.build_lib, "fastnmf", "_C.missing")
        missing.unlink(missing_ok=True)
        try:
            if BUILD == "cuda":
                raise CompileError("no CUDA sources yet" if shutil.which("nvcc") else "no nvcc")
            link, path = self.compiler.link_shared_object, self.get_ext_fullpath(ext.name)
            link(self.objects(), path, extra_postargs=OPENMP, target_lang="c++")
        except (BaseError, CCompilerError, ImportError, OSError) as error:
            if BUILD != "auto":
                raise CompileError(f"FASTNMF_BUILD={BUILD} is not possible: {error}") from error
            missing.parent.mkdir(parents=True, exist_ok=True)
            missing.write_text(f"{error}\n")
            atexit.register(print, f"\n*** fastnmf is WITHOUT compiled kernels (slower): {error}\n")

    def objects(self):
        """Compile side by side with ninja, or one by one without it."""
        import pybind11

        compiler = getattr(self.compiler, "compiler_so_cxx", [self.compiler.compiler_type])
        if not shutil.which(compiler[0]):
            raise CompileError(f"no C++ compiler ({compiler[0]}); GCC or Clang is needed")
        includes = [f"-I{path}" for path in [*self.compiler.include_dirs, pybind11.get_include()]]
        commands, rules = {}, f"builddir={self.build_temp}\nrule c\n command=$c\n deps=gcc\n"
        for source, isa in [("csrc/bindings.cpp", ""), *product(KERNELS, ISAS)]:
            built = f"{self.build_temp}/{isa or 'all'}/{Path(source).stem}.o"
            Path(built).parent.mkdir(parents=True, exist_ok=True)
            flags = [*ISAS[isa].split(), f"-DFASTNMF_ISA={isa}"] if isa else [*OPENMP, *includes]
            flags += [f"-DFASTNMF_X86={X86:d}", "-MMD", "-MF", f"{built}.d", "-c", source]
            commands[built] = [*compiler, *FLAGS.split(), *flags, "-o", built]
            line, target = shlex.join(commands[built]).replace("$", "$$"), built.replace(" ", "$ ")
            rules += f"build {target}: c {source}\n depfile={built}.d\n c={line}\n"
        plan = Path(self.build_temp, "build.ninja")
        plan.write_text(rules)
        ninja = [["ninja", "-f", str(plan)]] if shutil.which("ninja") else []
        for command in ninja or commands.values():
            if subprocess.call(command):
                raise CompileError(f"{command[0]} failed, pip install -v shows why")
        return list(commands)


sources, headers = ["csrc/bindings.cpp", *KERNELS], glob("csrc/*.h")
extension = Extension("fastnmf._C", sources, depends=headers, optional=BUILD == "auto")
setup(ext_modules=[extension] * (BUILD != "none"), cmdclass={"build_ext": BuildKernels})
